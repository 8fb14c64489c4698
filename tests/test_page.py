"""The page in Debian's Chromium: real pixels, pointers and keys; with WebGL as it comes, and once without any.

Where no Chromium is installed these tests are skipped, and say so.
"""

import base64
import csv
import io
import json
import re
import warnings
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from browser import CHROMIUM, Browser, Page
from fake_run import build
from nucleate.cli import main
from nucleate.report.film import write_film
from nucleate.report.pack import LEVELS, Chunks, folded, levelled, turned, unfolded
from nucleate.report.page import write_page
from nucleate.runs import Run, load_run

HOSTILE = "<script>alert(1)</script>"
MARKUP = "</script><img src=x onerror=alert(2)>"

if CHROMIUM is None:
    warnings.filterwarnings("default", message="NO CHROMIUM")
    warnings.warn("NO CHROMIUM HERE: the page's browser tests are SKIPPED (apt-get install chromium)", stacklevel=1)
in_browser = pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM HERE: apt-get install chromium runs these")


FIGURE = b'<svg xmlns="http://www.w3.org/2000/svg" width="600" height="300"><text y="20">drawn</text></svg>'


@pytest.fixture(autouse=True, scope="module")
def one_plain_figure() -> Iterator[None]:
    """The figures have tests of their own and take seconds to draw: here one stands for all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nucleate.report.page.draw_svg", lambda run: {"figure_3_learning": (FIGURE, 600, 300)})
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(build(tmp_path_factory.mktemp("runs") / "small", layers=3, epochs=6))


@pytest.fixture(scope="module")
def path(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(run, tmp_path_factory.mktemp("page") / "page.html")


@pytest.fixture(scope="module", params=["as it is", "without WebGL"])
def browser(request: pytest.FixtureRequest) -> Iterator[Browser]:
    with Browser(*(["--disable-3d-apis"] if request.param == "without WebGL" else [])) as one:
        yield one


@pytest.fixture(scope="module")
def once() -> Iterator[Browser]:
    with Browser("--disable-3d-apis") as one:
        yield one


def quiet(page: Page) -> None:
    """No console message, and nothing was asked for outside the file."""
    page.look()
    assert page.messages == []
    outside = [url for url in page.requests if not url.startswith(("file:///", "data:", "blob:"))]
    assert outside == [] and sum(url.startswith("file:") for url in page.requests) == 1


def pixels(page: Page) -> str:
    page.settle()
    return str(page("document.getElementById('canvas-0').toDataURL()"))


def settled(page: Page) -> str:
    """The stage's pixels once nothing glides any more."""
    page.until("!stages.some((stage) => stage.blend) && !now.playing")
    return pixels(page)


# Where in the window the first visible point is, and where in the heat map layer 1 at epoch 2 is.
FIRST_POINT = """(() => {
  const [stage, k] = [stages[0], casts[0].looks.findIndex((one) => one !== 255)];
  const box = stage.canvas.getBoundingClientRect();
  return [box.x + stage.flat[3 * k] / stage.scale, box.y + stage.flat[3 * k + 1] / stage.scale];
})()"""
A_CELL = """(() => {
  const cell = drawn.heat.cells.find((one) => one.layer === 1 && one.epoch === 2);
  return [(cell.x0 + cell.x1) / 2, (cell.y0 + cell.y1) / 2];
})()"""

# --- in the browser ---------------------------------------------------------------------------------------------------


@in_browser
def test_sliders_play_hover_pin_filter_and_search_change_what_is_seen(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    last = settled(page)
    page.click(*page.place("#time", 0.02))
    assert settled(page) != last and "Epoch 0" in page("document.getElementById('time-label').textContent")
    early = settled(page)
    page.click(*page.place("#layer", 0.02))
    assert settled(page) != early and "Layer 0 (embedding)" in page(
        "document.getElementById('layer-label').textContent"
    )

    page.press("#play")
    page.until("now.time > 0.5")
    page.until("!now.playing")
    assert "Epoch 6" in page("document.getElementById('time-label').textContent")

    at = page(FIRST_POINT)
    page.mouse("Moved", *at)
    page.settle()
    told = page("document.getElementById('tip').textContent")
    assert all(word in told for word in ("instruction", "input", "expected", "given", "task"))
    before = pixels(page)
    page.click(*at)
    page.mouse("Moved", 5, 5)
    assert pixels(page) != before and page("document.querySelectorAll('#pin li').length") == 8
    page.key("Escape")
    assert page("document.getElementById('pin').hidden")

    whole = pixels(page)
    page.press("#legend button:nth-of-type(2)")
    assert pixels(page) != whole and re.search(
        r"45 of 270 instances", page("document.getElementById('said').textContent")
    )
    page.press("#legend button:nth-of-type(1)")
    assert pixels(page) == whole
    page.write("#search", "task-3")
    assert pixels(page) != whole and "45 found" in page("document.getElementById('said').textContent")
    page.key("Enter")
    assert page("casts[0].text('task', now.pinned)") == "task-3"
    quiet(page)


@in_browser
def test_every_view_saves_a_picture_in_pixels_and_lines_and_its_numbers(browser: Browser, path: Path) -> None:
    page = browser.open(path)
    for view in ("stage", "curves", "heat", "progress"):
        button = f"[data-save='{view}'] button:nth-of-type"
        with Image.open(page.saved(f"{button}(1)")) as picture:
            assert picture.format == "PNG" and len(picture.convert("RGB").getcolors(1 << 24)) > 5
        drawing = ET.fromstring(page.saved(f"{button}(2)").read_bytes())
        kinds = [element.tag.split("}")[1] for element in drawing.iter()]
        assert kinds[0] == "svg" and kinds.count("text") > 3 and "image" not in kinds
        rows = list(csv.reader(io.StringIO(page.saved(f"{button}(3)").read_text())))
        assert len(rows) > 20 and len({len(row) for row in rows}) == 1
        if view == "stage":
            assert kinds.count("circle") == 270 + 6, "each point and each colour of the legend is a circle"
            assert rows[0][:4] == ["instance", "x", "y", "z"] and len(rows) == 271
    page("document.querySelectorAll('section > details').forEach((one) => (one.open = true))")
    page.until("document.querySelector('.figures img').naturalWidth === 600")
    table = page.saved("section table [data-table] button").read_text()
    assert "same" not in table and table.startswith("measure,space,layer,value")
    quiet(page)


@in_browser
def test_the_stage_and_its_table_show_the_recorded_places_and_answers(once: Browser, path: Path, run: Run) -> None:
    page = once.open(path)
    page("goTo(3, 2)")
    settled(page)
    rows = list(csv.DictReader(io.StringIO(page.saved("[data-save='stage'] button:nth-of-type(3)").read_text())))
    instances = [int(row["instance"]) for row in rows]
    told = run.dataset.filter(pl.col("instance").is_in(instances)).sort("instance")
    assert instances == told["instance"].to_list() and set(told["split"]) == {"validation"}
    assert [row["expected"] for row in rows] == told["output"].to_list()
    given = dict(run.predictions(3).iter_rows())
    assert [row["given"] for row in rows] == [given[one] for one in instances]
    layout = run.layout(3).filter((pl.col("layer") == 2) & (pl.col("view") == "display"))
    kept = layout.filter(pl.col("instance").is_in(instances)).sort("instance").select("x", "y", "z").to_numpy()
    shown = np.array([[float(row[axis]) for axis in "xyz"] for row in rows])
    apart = [np.linalg.norm(one[:, None] - one[None], axis=2) for one in (kept, shown)]
    assert np.abs(apart[0] - apart[1]).max() < 0.002 * apart[0].max(), "turned as a whole: distances are untouched"


@in_browser
def test_the_page_is_worked_with_the_keyboard_alone(once: Browser, path: Path) -> None:
    page = once.open(path)
    for _ in range(30):
        page.key("Tab")
        if page("document.activeElement.id") == "canvas-0":
            break
    assert page("document.activeElement.id") == "canvas-0"
    seen = [settled(page)]
    for key, shift in (
        ("ArrowRight", False),
        ("ArrowUp", False),
        ("+", False),
        ("ArrowLeft", True),
        ("ArrowDown", True),
    ):
        page.key(key, shift=shift)
        seen.append(settled(page))
    assert len(set(seen)) == len(seen)
    assert (page("now.time"), page("now.layer")) == (5, 2)
    page.key(" ")
    page.until("now.time === 6 && !now.playing")
    page.key("Tab")
    page.key("Tab")
    assert page("document.activeElement.parentElement.id") == "legend"
    page.key("Enter")
    assert page("now.only.size") == 1
    page.write("#search", "0a")
    page.key("Enter")
    assert page("now.pinned !== null && document.querySelector('#pin dl').textContent.includes('0a')")
    quiet(page)


@in_browser
def test_curves_and_heat_map_follow_the_switches_and_move_the_stage(once: Browser, path: Path) -> None:
    page = once.open(path)
    x, y = page(A_CELL)
    left, top = page.place("#heat svg", 0, 0)
    page.click(left + x, top + y)
    page.until("now.layer === 1 && now.time === 2")
    marked = page("document.querySelector('#chart .now').getAttribute('x1')")
    page("goTo(4, 1)")
    assert page("document.querySelector('#chart .now').getAttribute('x1')") != marked
    before = page("document.querySelector('#chart').innerHTML")
    page.choose("#measure", "ari")
    assert page("document.querySelector('#chart').innerHTML") != before
    assert page("document.getElementById('curves-title').textContent") == "ARI"
    assert page("drawn.chart.spec.bands.length") == 2 and page("drawn.chart.spec.levels.length") == 2
    assert page("document.querySelectorAll('#progress svg').length") == 2
    x, y = page.place("#chart svg", 0.5, 0.4)
    page.click(x, y)
    assert page("now.time") == 3
    quiet(page)


@in_browser
def test_the_curves_are_the_rows_of_the_long_table(once: Browser, path: Path, run: Run) -> None:
    page = once.open(path)
    rows = list(csv.DictReader(io.StringIO(page.saved("[data-save='curves'] button:nth-of-type(3)").read_text())))
    kept = run.metrics.filter(measure="knn_share", split="validation", labels="task", space="raw")
    for layer in range(4):
        values = kept.filter(control="none", layer=layer).sort("epoch")["value"].to_list()
        assert [float(row["value"]) for row in rows if row["line"] == f"layer {layer}"] == [
            round(one, 4) for one in values
        ]
    lowest = kept.filter(control="shuffled").group_by("epoch").agg(pl.col("value").min()).sort("epoch")["value"]
    assert [float(row["value"]) for row in rows if row["line"] == "shuffled labels, lowest layer"] == lowest.round(
        4
    ).to_list()


@in_browser
def test_both_themes_and_a_narrow_screen_are_readable(once: Browser, path: Path) -> None:
    ground = {}
    for dark in (False, True):
        page = once.open(path, dark=dark)
        picture = Image.open(io.BytesIO(page.picture())).convert("L")
        ground[dark] = picture.getpixel((3, 3))
        page.press("#theme")
        page.press("#theme")
        assert Image.open(io.BytesIO(page.picture())).convert("L").getpixel((3, 3)) < 60, "the switch reaches the dark"
        quiet(page)
    assert ground[False] > 240 and ground[True] < 60
    page = once.open(path, 390, 844)
    assert page("document.documentElement.scrollWidth") <= 390
    page = once.open(path, 1280, 800)
    assert page("document.documentElement.scrollWidth") <= 1280
    pictures = "[...document.querySelectorAll('canvas, svg[role=img], img')]"
    assert page(f"{pictures}.length") > 2
    assert page(f"{pictures}.every((one) => one.ariaLabel || one.alt || one.checkVisibility() === false)")


@in_browser
def test_hostile_names_and_prompts_are_inert_and_shown_as_text(once: Browser, tmp_path: Path) -> None:
    names = {"task-0": HOSTILE, "task-1": MARKUP, "task-2": "=1+1", "task-0-hard": "__proto__"}
    folder = build(tmp_path / "h<i>&", layers=1, epochs=2, names=names, long_prompt=True)
    page = once.open(write_page(load_run(folder), tmp_path / "page.html"))
    legend = page("[...document.querySelectorAll('#legend button span')].map((one) => one.textContent)")
    assert {HOSTILE, MARKUP, "=1+1"} <= set(legend)
    page.write("#search", "x<b>$")
    page.key("Enter")
    told = page("document.getElementById('pin').textContent")
    assert "x<b>$_^\\frac{" in told and "(10,000 characters)" in page("casts[0].text('instruction', now.pinned)")
    assert page("document.querySelectorAll('i:not(#legend i):not(.key i), b:not(#pin b)').length") == 0
    page.choose("#shown", "subset")
    drawing = ET.fromstring(page.saved("[data-save='stage'] button:nth-of-type(2)").read_bytes())
    assert not [one for one in drawing.iter() if one.tag.split("}")[1] in ("script", "foreignObject", "image")]
    page.choose("#shown", "*")
    assert ",'=1+1," in page.saved("[data-save='stage'] button:nth-of-type(3)").read_text()
    quiet(page)


@in_browser
def test_two_runs_stand_beside_each_other_and_what_is_missing_is_left_out(
    once: Browser, run: Run, tmp_path: Path
) -> None:
    bare = build(tmp_path / "bare", layers=2, epochs=4, splits=("validation",), controls=())
    page = once.open(write_page([run, load_run(bare)], tmp_path / "two.html"))
    assert page("document.getElementById('canvas-1').clientWidth") == 0
    page.choose("#beside", "1")
    assert page("document.getElementById('canvas-1').clientWidth") > 200
    first, second = (page(f"document.getElementById('canvas-{k}').toDataURL()") for k in (0, 1))
    page.drag("#canvas-1", 60, 10)
    assert page("document.getElementById('canvas-0').toDataURL()") != first, "both turn together"
    assert page("document.getElementById('canvas-1').toDataURL()") != second
    page.choose("#scene", "1")
    assert page("drawn.chart.spec.bands.length + drawn.chart.spec.levels.length") == 0
    quiet(page)
    for place in (bare / "layouts").iterdir():
        place.unlink()
    page = once.open(write_page(load_run(bare), tmp_path / "curves.html"))
    assert page("document.getElementById('stages').clientHeight") == 0 and page(
        "document.querySelector('#chart svg') !== null"
    )
    quiet(page)
    load_run(bare).metrics.clear().write_parquet(bare / "metrics.parquet")
    page = once.open(write_page(load_run(bare), tmp_path / "nothing.html"))
    assert page("document.getElementById('show').hidden")
    quiet(page)


@in_browser
def test_a_run_without_a_stage_can_be_chosen_and_left_again(once: Browser, run: Run, tmp_path: Path) -> None:
    bare = [load_run(build(tmp_path / name, layers=layers, epochs=4)) for name, layers in (("one", 1), ("two", 2))]
    for other in bare:
        for place in (other.folder / "layouts").iterdir():
            place.unlink()
    page = once.open(write_page([run, *bare], tmp_path / "page.html"))
    first = settled(page)
    for scene, lines in (("2", 3), ("0", 4), ("1", 2), ("0", 4)):
        page.choose("#scene", scene)
        assert page("drawn.chart.spec.lines.length") == lines
        assert (page("document.getElementById('stages').clientHeight") > 0) == (scene == "0")
        shade = page("drawn.chart.spec.lines[0].colour")
        page.press("#theme")
        page.press("#theme")
        assert page("drawn.chart.spec.lines[0].colour") != shade
        page.press("#theme")
    assert settled(page) == first
    quiet(page)
    page = once.open(write_page(bare, tmp_path / "curves.html"))
    assert page("drawn.chart.spec.lines.length") == 2
    page.choose("#scene", "1")
    assert page("drawn.chart.spec.lines.length") == 3
    quiet(page)


@in_browser
def test_who_turns_quickly_from_run_to_run_ends_with_the_points_of_the_last(
    once: Browser, run: Run, tmp_path: Path
) -> None:
    other = load_run(build(tmp_path / "other", layers=3, epochs=6, long_prompt=True))
    page = once.open(write_page([run, other], tmp_path / "page.html"))
    first = settled(page)
    page(
        "void opened.set(scenes[1].points, new Promise((done) => setTimeout(done, 300))"  # the other is slow to open
        ".then(() => inflated(scenes[1].points)).then((bytes) => JSON.parse(new TextDecoder().decode(bytes))))"
    )
    page.choose("#scene", "1")
    page.choose("#scene", "0")
    page("opened.get(scenes[1].points).then(() => 1)")
    page.settle()
    assert page("casts[0].number") == 0
    assert settled(page) == first
    quiet(page)


@in_browser
def test_a_probe_shows_its_models_its_confusion_and_its_doubts(once: Browser, run: Run, tmp_path: Path) -> None:
    page = once.open(write_page(probed(run, tmp_path / "probe", ages=[None, None, None]), tmp_path / "page.html"))
    names = page("[...document.querySelectorAll('#scene option')].map((one) => one.textContent)")
    assert names == ["a/small", "a/tuned", HOSTILE]
    assert page("document.getElementById('time-row').hidden") and page("now.found.all") == 40, (
        "t-SNE shows some prompts"
    )
    page.choose("#view", "1")
    assert page("now.found.all") == 720 and page("document.getElementById('layer').max") == "3"
    assert page("drawn.chart.spec.lines.filter((line) => line.note).length") == 3, "the model, shuffled, regrouped"
    page("drawn.confusion.svg.scrollIntoView()")
    left, top = page.place("#confusion svg", 0, 0)
    x, y = page("['x', 'y'].map((one) => +drawn.confusion.svg.querySelectorAll('rect')[3].getAttribute(one))")
    page.click(left + x + 3, top + y + 3)
    assert page("[...now.only].sort().join()") == "task-0,task-1" and page("now.found.shown") == 270
    parts = page("[...document.querySelectorAll('summary')].map((one) => one.textContent)")
    assert {"Table 1", "The tasks", "Suspicious prompts"} <= set(parts)
    text = page("document.querySelector('main').textContent")
    assert "2 of 8 tasks are separate" in text and "looks-like-this" in text
    quiet(page)


@in_browser
def test_checkpoints_of_one_model_are_the_moments_of_one_scene(once: Browser, run: Run, tmp_path: Path) -> None:
    page = once.open(write_page(probed(run, tmp_path / "series", ages=[100, 300, 200]), tmp_path / "page.html"))
    assert page("scenes.length") == 1 and page("scenes[0].moments.join()") == "100,200,300"
    before = settled(page)
    page.click(*page.place("#time", 0.02))
    assert settled(page) != before and page("document.getElementById('time-label').textContent") == "Step 100"
    assert page("document.getElementById('time').getAttribute('aria-valuetext')") == "step 100"
    assert page("document.getElementById('heat-title').textContent") == "Layer by step"
    assert page("drawn.heat.cells.length") == 4 * 3 and page("now.confused !== null")
    quiet(page)


def probed(run: Run, folder: Path, ages: list[int | None]) -> Run:
    """A run folder as `nucleate probe` leaves it: three models, each with two views, the second of all prompts."""
    build(folder, layers=3, epochs=1)
    models = ["a/small", "a/tuned", HOSTILE]
    (folder / "config.toml").write_text(f'verb = "probe"\nsize = "prompts"\nseed = 1\nmodels = {json.dumps(models)}\n')
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"verdict": {models[0]: "2 of 8 tasks are separate"}, "notes": ["540 of 9000 prompts are read"]}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    plain = load_run(folder).layout(1).filter(view="pca")
    few = plain.filter(pl.col("instance").rank("dense") <= 40, pl.col("layer") > 1).with_columns(view=pl.lit("tsne"))
    for file in (folder / "layouts").iterdir():
        file.unlink()
    rows, confusion = [], []
    tasks = sorted(run.dataset["task"].unique())
    kept = pl.col("epoch").eq(1) & pl.col("measure").is_in(["knn_share", "f1"]) & pl.col("split").eq("test")
    for number, (model, age) in enumerate(zip(models, ages, strict=True)):
        layout = pl.concat([plain, few]).with_columns(pl.col("x", "y") * (1 + number) + pl.col("z") * number)
        layout.write_parquet(folder / "layouts" / f"{model.replace('/', '--')}.parquet")
        place = {"model": pl.lit(model), "experiment": pl.lit("probe"), "epoch": pl.lit(None, pl.Int32)}
        place["step"] = pl.lit(age, pl.Int32)
        held_out = run.metrics.filter(kept).with_columns(**place)
        rows += [held_out, held_out.with_columns(split=pl.lit("all"))]
        pairs = [(layer, a, b, 1 / (1 + len(a) + len(b))) for layer in range(4) for a in tasks for b in tasks]
        frame = pl.DataFrame(pairs, schema=["layer", "task", "other", "share"], orient="row")
        confusion.append(frame.with_columns(model=pl.lit(model), epoch=place["epoch"], step=place["step"]))
    pl.concat(confusion).write_parquet(folder / "confusion.parquet")
    best = pl.DataFrame({"model": models, "layer": 3, "task": tasks[0], "measure": "f1", "value": 0.5})
    best.write_parquet(folder / "tasks.parquet")
    doubt = pl.DataFrame({"model": models, "layer": 3, "instance": 1, "task": tasks[0], "nearest": "looks-like-this"})
    doubt.with_columns(margin=0.6, counted=True, row=7, text=pl.lit("a prompt")).write_parquet(
        folder / "suspicious.parquet"
    )
    chosen = (
        pl.concat(rows)
        .filter(pl.col("layer") == 3)
        .unique("model")
        .with_columns(measure=pl.lit("best_layer"), layer=pl.lit(None, pl.Int32), value=pl.lit(3.0))
    )
    whole = pl.concat([*rows, chosen]).select(run.metrics.columns)
    whole.write_parquet(folder / "metrics.parquet")
    return load_run(folder)


@in_browser
def test_up_to_ten_tasks_have_colours_that_the_colour_blind_can_tell_apart(once: Browser, path: Path) -> None:
    page = once.open(path)
    for dark in ("false", "true"):
        ten = page(f"Array.from({{length: 10}}, (_, k) => categoryColour(k, 10, {dark}))")
        for sight in (np.eye(3), PROTANOPIA, DEUTERANOPIA):
            seen = [lab(sight @ linear(colour)) for colour in ten]
            apart = [np.linalg.norm(a - b) for k, a in enumerate(seen) for b in seen[:k]]
            assert min(apart) > 15, (dark, min(apart))
        forty = page(f"Array.from({{length: 40}}, (_, k) => categoryColour(k, 40, {dark}))")
        assert len(set(forty)) == 40


# Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB.
PROTANOPIA = np.array(
    [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
)
DEUTERANOPIA = np.array(
    [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
)


def linear(colour: str) -> np.ndarray:
    rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b*: a distance of about 2 is just seen."""
    mix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    x, y, z = np.cbrt(np.clip(mix @ rgb / [0.9505, 1, 1.089], 0.009, None))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@in_browser
def test_many_points_are_written_into_pixels_and_can_still_be_pointed_at(
    once: Browser, tmp_path: Path, run: Run
) -> None:
    page = once.open(write_page(many_points(run, tmp_path / "many", 3000), tmp_path / "page.html"))
    assert page("casts[0].count") == 3000
    before = settled(page)
    page("now.yaw += 0.3; repaint()")
    assert pixels(page) != before
    page("var [x, y] = stages[0].flat")
    assert page("stages[0].under(x / stages[0].scale, y / stages[0].scale, casts[0].looks)") is not None
    quiet(page)


def many_points(run: Run, folder: Path, count: int) -> Run:
    """The same run with a layout of many points at its only moment."""
    build(folder, layers=1, epochs=1)
    frame = pl.concat([run.dataset.filter(split="validation")] * (count // 90 + 1)).head(count)
    frame = frame.with_columns(instance=pl.int_range(count, dtype=pl.Int32))
    frame.write_parquet(folder / "data" / "dataset.parquet")
    places = np.random.default_rng(5).normal(size=(count, 3)).astype(np.float32)
    for file in (folder / "layouts").iterdir():
        file.unlink()
    layout = pl.DataFrame(places, schema=["x", "y", "z"]).with_columns(
        instance=pl.int_range(count, dtype=pl.Int32), layer=pl.lit(0, pl.Int32), view=pl.lit("display")
    )
    layout.write_parquet(folder / "layouts" / "epoch-0001.parquet")
    return load_run(folder)


# --- packing and the film ---------------------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 6), st.integers(1, 40), st.integers(0, 1000))
def test_folded_numbers_unfold_to_what_they_were(moments: int, places: int, seed: int) -> None:
    numbers = np.random.default_rng(seed).integers(0, 2**15, (moments, places))
    assert (unfolded(folded(numbers), moments) == numbers).all()


def test_chunks_hold_raw_deflate_and_the_same_content_once() -> None:
    chunks = Chunks()
    assert [chunks.text("ü"), chunks.json({"ä": [1]}), chunks.text("ü")] == ["chunk-0", "chunk-1", "chunk-0"]
    texts = [zlib.decompress(base64.b64decode(text), -15).decode() for text in chunks.texts.values()]
    assert texts == ["ü", '{"ä":[1]}']


def test_levels_keep_places_to_a_four_thousandth_and_turning_keeps_distances_and_finds_the_layer_below() -> None:
    noise = np.random.default_rng(2)
    below = noise.normal(size=(4, 30, 3)) * [1, 3, 0.5]
    turn = np.linalg.qr(noise.normal(size=(3, 3)))[0]
    first, second = turned([below, below @ turn + 7], moments_too=False)
    assert np.allclose(first, second) and np.allclose(first, below - below[-1].mean(axis=0))
    own = [below[moment] @ np.linalg.qr(noise.normal(size=(3, 3)))[0] for moment in range(3)]
    (joined,) = turned([np.stack([own[0], *(below[-1] @ one for one in (turn, np.eye(3)))])], moments_too=True)
    assert np.allclose(joined[1], joined[2]), "a moment that was only turned comes back onto the next"
    steps, (*middle, half) = levelled(below)
    again = (steps.transpose(0, 2, 1) - LEVELS / 2) / (LEVELS / 2 - 1) * half + middle
    assert np.abs(again - below).max() <= half / LEVELS * 1.1 and steps.min() >= 0 and steps.max() < LEVELS


def test_the_film_moves_and_is_small_and_a_run_without_epochs_is_refused(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nucleate.report.film.FRAMES", 8)
    path = write_film(run, tmp_path / "film.webp")
    with Image.open(path) as film:
        assert film.n_frames == 8 and film.width == 900
        first = np.asarray(film.convert("RGB"))
        film.seek(film.n_frames - 1)
        assert (np.asarray(film.convert("RGB")) != first).mean() > 0.01
    assert path.stat().st_size < 8 * 3_000_000 / 96, "at its full length it stays below 3 MB"
    empty = build(tmp_path / "empty", layers=1, epochs=1)
    for file in (empty / "layouts").iterdir():
        file.unlink()
    assert main(["report", str(empty), "--film"]) == 2
    assert "no film" in capsys.readouterr().err
