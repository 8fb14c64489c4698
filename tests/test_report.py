"""Figures, tables and the page are functions of a run folder: same folder, same bytes; hostile text stays text."""

import base64
import hashlib
import json
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import polars as pl
import pytest

from fake_run import build, write_dataset
from nucleate.long_table import Score, best_epoch, pick
from nucleate.report.application_tables import alignment_table, pretraining_table
from nucleate.report.dataset_figure import figure_1
from nucleate.report.drawing import layer_colour, plain, task_colour
from nucleate.report.figures import draw_figures, draw_svg, figures_of
from nucleate.report.page import write_page
from nucleate.report.sentences import sentences_of
from nucleate.report.tables import answers_table, first_and_last, last_measured_epoch, summary_table
from nucleate.runs import Run, load_run

HOSTILE = "<script>alert(1)</script>"
MATHEMATICAL = r"_$\frac{x_1^2$ <b>漢字" + "\x1b\u202e"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return load_run(build(tmp_path_factory.mktemp("runs") / "small", layers=3, epochs=6))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Run:
    names = {"task-0": HOSTILE, "task-0-hard": MATHEMATICAL}
    folder = build(tmp_path_factory.mktemp("runs") / "h<i>&", layers=1, epochs=2, names=names, long_prompt=True)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["machine"] = "</td><img src=x onerror=alert(2)>"
    manifest["versions"]["'\"><script>"] = "y" * 10_000
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return load_run(folder)


@pytest.fixture(scope="module")
def drawn(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's figures, drawn once for all tests that only look."""
    folder = tmp_path_factory.mktemp("figures")
    draw_figures(run, folder)
    return folder


@pytest.fixture(scope="module")
def page_path(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_page(run, tmp_path_factory.mktemp("page") / "page.html")


def texts(svg: bytes | Path) -> list[str]:
    root = ET.fromstring(svg.read_bytes() if isinstance(svg, Path) else svg)
    return ["".join(element.itertext()) for element in root.iter("{http://www.w3.org/2000/svg}text")]


def changed(run: Run, folder: Path, change: pl.Expr) -> Run:
    """The same run with other metrics."""
    for name in ("config.toml", "manifest.json"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes((run.folder / name).read_bytes())
    run.metrics.filter(change).write_parquet(folder / "metrics.parquet")
    return load_run(folder)


# --- figures ----------------------------------------------------------------------------------------------------------


def test_every_figure_of_the_paper_is_drawn_twice_and_names_its_layers_and_controls(run: Run, drawn: Path) -> None:
    names = [
        "figure_1_dataset", "figure_2_clustering_f1", "figure_3_learning", "figure_4_neighbours",
        "figure_6_clustering_all", "figure_layouts",
    ]  # fmt: skip
    written = {f"{name}.{ending}" for name in names for ending in ("png", "svg")}
    assert {path.name for path in drawn.iterdir()} == written, "and nothing half written is left"
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in drawn.glob("*.png"))
    for name in ("figure_2_clustering_f1", "figure_4_neighbours", "figure_6_clustering_all"):
        seen = texts(drawn / f"{name}.svg")
        layers = ["layer 0 (embedding)", "layer 1", "layer 2", "layer 3 (last)"]
        controls = ["shuffled labels (all layers)", "regrouped distributions (all layers)"]
        assert set(layers + controls + ["surface of the instruction", "surface of the prompt", "epoch"]) <= set(seen)
        assert [text for text in seen if text.startswith("layer ")] == layers
    seen = " ".join(texts(drawn / "figure_2_clustering_f1.svg"))
    assert "better of raw states and t-SNE" in seen
    assert all(f"labels: {labels}" in seen for labels in ("task", "distribution", "distribution-mapping"))
    assert f"best epoch: {best_epoch(run.metrics).epoch}," in " ".join(texts(drawn / "figure_3_learning.svg"))
    assert {"epoch 0", "epoch 6", "hard example"} <= set(texts(drawn / "figure_layouts.svg"))


def test_the_same_run_gives_the_same_bytes_whatever_the_users_own_matplotlib_settings(
    run: Run, drawn: Path, tmp_path: Path
) -> None:
    with matplotlib.rc_context({"font.size": 30, "text.parse_math": True, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        again = draw_figures(load_run(run.folder), tmp_path)
        assert dict(matplotlib.rcParams) == before, "the user's settings come back"
    there = [name for name in figures_of(run) if (drawn / f"{name}.svg").exists()]
    assert len(there) == 6
    assert list(again) == there
    names = [f"{name}.{ending}" for name in there for ending in ("png", "svg")]
    assert [name for name in names if (drawn / name).read_bytes() != (tmp_path / name).read_bytes()] == []


def test_a_page_that_is_handed_its_figures_has_the_bytes_of_one_that_draws_them(run: Run, tmp_path: Path) -> None:
    drawn = draw_figures(run, tmp_path)
    pages = [
        write_page(run, tmp_path / name / "page.html", given)
        for name, given in (("drawn", {(run.folder,): drawn}), ("alone", None))
    ]
    assert pages[0].read_bytes() == pages[1].read_bytes()
    without = write_page(run, tmp_path / "other" / "page.html", {(run.folder,): dict(list(drawn.items())[:1])})
    assert without.read_text().count("<figure>") == 1


def test_pictures_hold_neither_dates_nor_versions(drawn: Path) -> None:
    pictures = list(drawn.iterdir())
    assert len(pictures) == 2 * 6
    for path in pictures:
        content = path.read_bytes()
        assert b"Matplotlib v" not in content and b"dc:date" not in content
        assert b"tEXt" not in content or path.suffix == ".svg"


def test_other_metrics_give_another_picture_of_just_what_changed(run: Run, drawn: Path, tmp_path: Path) -> None:
    moved = run.metrics.with_columns(
        pl.when((pl.col("measure") == "f1") & (pl.col("layer") == 2) & (pl.col("epoch") == 3))
        .then(pl.col("value") * 0.5)
        .otherwise("value")
        .alias("value")
    )
    other = changed(run, tmp_path, pl.lit(True))
    moved.write_parquet(other.folder / "metrics.parquet")
    other_svg = {name: svg for name, (svg, _, _) in draw_svg(load_run(other.folder)).items()}
    differing = {name for name, svg in other_svg.items() if svg != (drawn / f"{name}.svg").read_bytes()}
    assert differing == {"figure_2_clustering_f1", "figure_6_clustering_all"}
    assert "figure_3_learning" in other_svg


def test_a_point_is_the_better_of_raw_and_tsne_and_a_control_has_the_same_choice(run: Run) -> None:
    for control in ("none", "shuffled", "surface_prompt"):
        raw, tsne, best = (
            pick(run.metrics, Score("f1", "validation", "distribution_mapping", spaces), control)["value"]
            for spaces in (("raw",), ("tsne",), ("raw", "tsne"))
        )
        assert len(best) == len(raw) > 0
        assert best.to_list() == [max(pair) for pair in zip(raw, tsne, strict=True)]
        assert best.to_list() != raw.to_list()


@pytest.mark.parametrize(
    ("width", "names"),
    [
        (32, {"figure_7_clustering_all", "figure_8_neighbours"}),
        (256, {"figure_6_clustering_all", "figure_4_neighbours"}),
        (768, {"figure_6_clustering_all", "figure_4_neighbours"}),
        (2048, {"figure_9_clustering_all", "figure_10_neighbours"}),
    ],
)
def test_figures_are_numbered_by_width_as_in_the_paper(run: Run, width: int, names: set[str]) -> None:
    other = Run(run.folder, {**run.config, "model": {"width": width, "layers": 3}}, run.manifest)
    numbered = {name for name in figures_of(other) if name.endswith(("_all", "_neighbours"))}
    assert numbered == names


def test_missing_splits_controls_and_labels_are_left_out_and_never_an_empty_axes(run: Run, tmp_path: Path) -> None:
    here = pl.col("control").eq("none") & pl.col("split").is_in(["validation"])
    bare = changed(run, tmp_path / "bare", here & pl.col("labels").eq_missing("task"))
    drawn = {name: texts(svg) for name, (svg, _, _) in draw_svg(bare).items()}
    assert set(drawn) == {"figure_2_clustering_f1", "figure_4_neighbours", "figure_6_clustering_all"}
    seen = drawn["figure_2_clustering_f1"]
    assert "labels: task" in seen and "labels: distribution" not in seen and "training subset" not in seen
    assert not any("shuffled" in text or "surface" in text for text in seen)
    only_learning = changed(run, tmp_path / "learning", here & pl.col("measure").eq("accuracy"))
    (name,) = draw_svg(only_learning)
    seen = texts(draw_svg(only_learning)[name][0])
    assert name == "figure_3_learning" and "(a) validation accuracy" in seen and "training loss" not in " ".join(seen)
    nothing = changed(run, tmp_path / "nothing", pl.lit(False))
    assert draw_svg(nothing) == {} and draw_figures(nothing, tmp_path / "figures") == {}
    assert summary_table(nothing).rows == [] and sentences_of(nothing) == []
    assert "<figure>" not in write_page(nothing, tmp_path / "page.html").read_text()


def test_an_unfinished_run_is_drawn_as_far_as_it_got(tmp_path: Path) -> None:
    run = load_run(build(tmp_path / "run", layers=2, epochs=6, finished=False))
    assert last_measured_epoch(run) == 3
    page = write_page(run, tmp_path / "page.html").read_text()
    assert "not finished" in page and "interrupted" in page and page.count("<figure>") == 6


def test_a_run_of_a_single_moment_is_drawn(tmp_path: Path) -> None:
    run = load_run(build(tmp_path / "run", layers=1, epochs=1))
    at_start = changed(run, tmp_path / "start", pl.col("epoch").is_null() | pl.col("epoch").eq(0))
    assert "figure_2_clustering_f1" in draw_svg(at_start)
    rows = summary_table(at_start).rows
    assert rows and all(row[4] is None for row in rows), "epoch 0 is not its own control"


def test_figure_1_shows_a_task_and_marks_exactly_the_symbol_that_makes_a_hard_example(tmp_path: Path) -> None:
    frame = write_dataset(tmp_path, names={}, long_prompt=False)
    facts = json.loads((tmp_path / "dataset.json").read_text())
    paths = figure_1(frame, facts, tmp_path)
    assert [path.name for path in paths] == ["figure_1_dataset.png", "figure_1_dataset.svg"]
    seen = texts(paths[1])
    assert {"task-0", "task-0-hard", "A → B", "0a", "0b", "0c"} <= set(seen)
    assert facts["patterns"]["0a"] in seen
    hard = frame.filter(pl.col("is_hard")).row(0, named=True)
    original = frame.row(hard["origin"], named=True)
    red = [
        "".join(element.itertext())
        for element in ET.parse(paths[1]).iter("{http://www.w3.org/2000/svg}text")
        if "#c4201f" in element.attrib.get("style", "") and len("".join(element.itertext())) == 1
    ]
    pairs = zip(original["instruction"].split(), hard["instruction"].split(), strict=True)
    assert [tuple(red)] == [pair for pair in pairs if pair[0] != pair[1]]


def test_figure_1_of_data_without_hard_examples_patterns_or_facts(tmp_path: Path) -> None:
    frame = write_dataset(tmp_path, names={}, long_prompt=False).filter(~pl.col("is_hard"))
    svg = figure_1(frame, None, tmp_path)[1]
    seen = texts(svg)
    assert "task-0" in seen and not any("hard" in text for text in seen)
    assert figure_1(frame.clear(), None, tmp_path / "empty") == []


def test_hostile_names_are_drawn_as_plain_text(hostile: Run) -> None:
    svg, _, _ = draw_svg(hostile)["figure_1_dataset"]
    seen = texts(svg)
    assert HOSTILE in seen, "the pair of hard examples names its tasks in full"
    assert any(text.startswith(r"_$\frac{x_1^2$ <b>□□□□") for text in seen)
    root = ET.fromstring(svg)
    assert not [
        element for element in root.iter() if element.tag.split("}")[1] in ("script", "foreignObject", "image", "a")
    ]
    assert max(map(len, seen)) < 200


def test_text_made_fit_to_draw_is_one_short_line_of_known_glyphs() -> None:
    assert plain("αβγ жщ Ω9", 20) == "αβγ жщ Ω9"
    assert plain("a\nb\tc\u2028d", 20) == "a b c d"
    assert plain("\x00\x1b\u202e漢", 20) == "□□□□"
    assert plain("x" * 10_000, 5) == "xxxx…"


def test_layers_darken_with_height_and_up_to_forty_tasks_have_colours_of_their_own() -> None:
    def lightness(layer: int) -> float:
        red, green, blue, _ = layer_colour(layer, 6)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    assert all(lightness(layer) > lightness(layer + 1) + 0.02 for layer in range(6))
    for count in (1, 10, 11, 40):
        assert len({task_colour(place, count) for place in range(count)}) == count


# --- tables -----------------------------------------------------------------------------------------------------------


def test_the_summary_holds_the_last_epoch_beside_every_control(run: Run) -> None:
    header, rows = summary_table(run)
    assert header[:5] == ("measure", "space", "layer", "value", "untrained")
    assert [row[:3] for row in rows[:4]] == [("knn_share", "raw", layer) for layer in range(4)]
    assert len(rows) == 6 * 4
    for row in rows:
        named = dict(zip(header, row, strict=True))

        def value(control: str, epoch: int | None, layer: int | None, named: dict = named) -> float:
            wanted = {"measure": named["measure"], "space": named["space"], "split": "validation", "labels": "task"}
            same = [pl.col(name).eq(want) for name, want in wanted.items()]
            same += [pl.col("control").eq(control), pl.col("epoch").eq_missing(epoch)]
            return run.metrics.filter(*same, pl.col("layer").eq_missing(layer))["value"].item()

        assert named["value"] == value("none", 6, named["layer"])
        assert named["untrained"] == value("none", 0, named["layer"])
        assert named["shuffled"] == value("shuffled", 6, named["layer"])
        assert named["surface_prompt"] == value("surface_prompt", None, None)
        assert named["margin"] == named["value"] - max(row[4:9])


def test_missing_controls_are_none_and_the_margin_counts_those_that_are_there(run: Run, tmp_path: Path) -> None:
    bare = changed(run, tmp_path / "bare", pl.col("control").is_in(["none", "shuffled"]))
    header, rows = summary_table(bare)
    assert len(rows) == 6 * 4
    for row in rows:
        named = dict(zip(header, row, strict=True))
        assert named["regrouped"] is named["surface_instruction"] is None
        assert named["margin"] == named["value"] - max(named["untrained"], named["shuffled"])


def raised(run: Run, folder: Path, control: str, level: float) -> Run:
    """The same run with one control at a level."""
    copy = changed(run, folder, pl.lit(True))
    lifted = pl.when(pl.col("control") == control).then(level).otherwise("value").alias("value")
    run.metrics.with_columns(lifted).write_parquet(copy.folder / "metrics.parquet")
    return load_run(copy.folder)


def test_the_sentences_name_what_was_seen_and_the_hardest_control_first(run: Run) -> None:
    first = sentences_of(run)[0]
    header, rows = summary_table(run)
    bottom, top = (dict(zip(header, rows[place], strict=True)) for place in (0, 3))
    assert first.startswith(f"Seen: {top['value']:.0%} of the ten nearest".replace("%", " %"))
    assert f"(layer 0: {bottom['value']:.0%})".replace("%", " %") in first
    levels = {"the n-grams of the instruction": "surface_instruction", "the untrained network": "untrained"}
    places = []
    for words, control in levels.items():
        said = f"{top[control]:.0%}".replace("%", " %")
        assert f"{words}, gives {said}" in first or f"{words} {said}" in first
        places.append(first.index(words))
    assert places == sorted(places) and first.index("The hardest control, the n-grams of the instruction") > 0


def test_the_sentences_say_so_when_a_control_is_as_good_as_the_network(run: Run, tmp_path: Path) -> None:
    told = sentences_of(raised(run, tmp_path / "poor", "surface_prompt", 1.0))
    assert all("The hardest control, the n-grams of the prompt, gives 100 %" in one for one in told[:3])
    assert all(one.startswith("Not seen beyond the controls: ") for one in told[:3])
    assert not any(one.startswith("Seen") for one in told)


def test_clusters_that_beat_their_controls_but_not_the_papers_number_are_seen_in_part(run: Run, tmp_path: Path) -> None:
    def about_clusters(of: Run) -> str:
        (one,) = [sentence for sentence in sentences_of(of) if "clusters that match the tasks" in sentence]
        return one

    assert about_clusters(run).startswith("Seen in part: clusters that match the tasks, short of the paper's 90 %.")
    good = changed(run, tmp_path / "good", pl.lit(True))
    f1 = pl.col("measure").eq("f1") & pl.col("control").eq("none") & pl.col("epoch").gt(0)
    run.metrics.with_columns(pl.when(f1).then(0.95).otherwise("value").alias("value")).write_parquet(
        good.folder / "metrics.parquet"
    )
    assert about_clusters(load_run(good.folder)).startswith("Seen: clusters that match the tasks. The F1")


def test_a_share_that_a_control_equals_in_the_tables_decimals_is_not_seen(run: Run, tmp_path: Path) -> None:
    header, rows = summary_table(run)
    level = float(rows[3][header.index("value")])  # type: ignore[arg-type]
    for off, seen in ((-0.0004, False), (-0.002, True), (0.002, False)):
        first = sentences_of(raised(run, tmp_path / f"{off}", "surface_prompt", level + off))[0]
        assert first.startswith("Seen: ") == seen
        assert f"{100 * level:.1f} %" in first and f"{100 * (level + off):.1f} %" in first  # told apart


RESULTS = Path(__file__).parents[1] / "results"


def test_the_sentences_of_a_pretraining_compare_every_arm_and_say_which_is_sooner_and_higher(tmp_path: Path) -> None:
    seen = load_run(RESULTS / "judged" / "pretrain-small-seed0")
    sooner, higher, named = sentences_of(seen)
    rows = {row[0]: dict(zip(pretraining_table(seen).header, row, strict=True)) for row in pretraining_table(seen).rows}
    for text, column in ((sooner, "area_under_curve"), (higher, "final test")):
        assert text.startswith("Seen: ") and all(f"{100 * row[column]:.1f} %" in text for row in rows.values())
    assert f"{100 * rows['task_id']['task named']:.0f} %" in named
    worse = Path(shutil.copytree(seen.folder, tmp_path / "worse"))
    arms = (
        pl.when(pl.col("arm") == "task_id").then(pl.lit("none")).when(pl.col("arm") == "none").then(pl.lit("task_id"))
    )
    swapped = pl.read_parquet(worse / "metrics.parquet").with_columns(arms.otherwise("arm").alias("arm"))
    swapped.write_parquet(worse / "metrics.parquet")
    assert all(text.startswith("Not seen: ") for text in sentences_of(load_run(worse))[:2])


def test_the_sentences_of_an_alignment_say_whether_the_papers_order_was_seen(tmp_path: Path) -> None:
    run = load_run(RESULTS / "judged" / "align-small-seed0")
    fixed, order = sentences_of(run)
    drop = alignment_table(run).rows[1]
    assert order.startswith("Not seen: the paper's order") and fixed.count("100 %") == 4
    assert all(f"{100 * value:.1f} points" in order for value in drop[1:] if isinstance(value, float))
    ordered = Path(shutil.copytree(run.folder, tmp_path / "ordered"))
    lost = pl.col("measure").eq("accuracy_drop")
    levels = pl.col("arm").replace_strict(
        {"direct": 0.4, "head": 0.3, "linear_switch": 0.2, "mlp_switch": 0.1}, default=0
    )
    metrics = run.metrics.with_columns(pl.when(lost).then(levels).otherwise("value").alias("value"))
    metrics.write_parquet(ordered / "metrics.parquet")
    assert sentences_of(load_run(ordered))[1].startswith("Seen: each method costs the other tasks less accuracy")


def test_the_sentences_of_a_redirected_model_begin_with_whether_it_worked() -> None:
    """Of the guide's own run: one prompt in a hundred short of the bar, and said so."""
    run = load_run(RESULTS / "align-smollm2" / "continent")
    first, beside = sentences_of(run)
    table = alignment_table(run)
    values = {row[0]: dict(zip(table.header, row, strict=True)) for row in table.rows}
    wished, kept = values["source: wished output"], values["all others: prediction unchanged"]
    assert first.startswith(
        "Does not work: the switch finds 97 % of the source but the output is the wished one for 94 %"
    )
    assert first.endswith("Saved is the MLP switch, which reads layer 30 and is on above 0.5.")
    assert f"{100 * wished['MLP switch']:.0f} % of 77 (before: {100 * wished['before']:.0f} %)" in first
    assert f"{100 * kept['MLP switch']:.0f} % of 6,150 other predictions are unchanged" in first
    for method in ("whole head", "low-rank head", "linear switch"):
        assert f"the {method} {100 * wished[method]:.0f} % of the source as wished" in beside
        assert f"{100 * kept[method]:.1f} % of all others unchanged" in beside


def test_the_small_table_holds_the_first_layer_and_the_last_beside_the_last_ones_controls(run: Run) -> None:
    names, rows = summary_table(run)
    header, lines = first_and_last(run)
    assert header[1:3] == ("layer 0", "layer 3") and len(lines) == len({row[:2] for row in rows if row[0] != "ari"})
    top = dict(zip(names, rows[3], strict=True))
    grams = max(top["surface_instruction"], top["surface_prompt"])
    controls = (top["untrained"], top["shuffled"], top["regrouped"], grams, top["answers"])
    wanted = (rows[0][3], top["value"], *controls)
    assert lines[0] == ("same-task neighbours", *wanted)


def test_the_best_epoch_is_the_earliest_of_the_highest_validation_accuracy(run: Run, tmp_path: Path) -> None:
    flat = changed(run, tmp_path / "flat", pl.lit(True))
    accuracy = pl.col("measure").eq("accuracy") & pl.col("split").eq("validation")
    levels = pl.when(accuracy).then(pl.when(pl.col("epoch").is_in([2, 4])).then(0.9).otherwise(0.1)).otherwise("value")
    run.metrics.with_columns(levels.alias("value")).write_parquet(flat.folder / "metrics.parquet")
    best = best_epoch(load_run(flat.folder).metrics)
    assert best is not None and (best.epoch, best.accuracy) == (2, 0.9)


def test_answers_are_unseen_prompts_with_what_the_network_gave(run: Run) -> None:
    header, rows = answers_table(run)
    assert header == ("instruction", "input", "expected", "given", "task") and 0 < len(rows) <= 12
    asked = run.dataset.filter(pl.col("split") == "validation").select("instruction", "input", "output", "task")
    assert {(row[0], row[1], row[2], row[4]) for row in rows} <= set(asked.iter_rows())


# --- the page ---------------------------------------------------------------------------------------------------------


class Parsed(HTMLParser):
    """A page as a browser sees it: tags with attributes, the text of each element, whether all are closed."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == [], "every element is closed"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        for tag in self.open[-1:]:
            self.text.setdefault(tag, []).append(data)

    @property
    def blocks(self) -> list[tuple[dict[str, str | None], str]]:
        """Each script element with its text."""
        return list(zip(self.all("script"), self.text["script"], strict=True))

    def all(self, tag: str) -> Iterator[dict[str, str | None]]:
        return (attributes for name, attributes in self.tags if name == tag)


def test_the_page_is_one_offline_file_whose_policy_allows_its_own_style_and_script_only(page_path: Path) -> None:
    page = Parsed(page_path)
    (policy,) = (meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'; img-src data:;")
    *blocks, script = page.text["script"]
    assert blocks
    for tag, content in (("style", "".join(page.text["style"])), ("script", script)):
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in policy
    assert [tag.get("type") for tag in page.all("script")] == ["application/octet-stream"] * len(blocks) + [None]
    assert all(re.fullmatch(r"[A-Za-z0-9+/]+=*", block) for block in blocks), "packed data that no browser runs"
    assert "unsafe" not in policy
    for tag, attributes in page.tags:
        assert not any(name.startswith("on") or name == "style" for name in attributes), (tag, attributes)
        for name in ("src", "href"):
            assert (attributes.get(name) or "data:").startswith(("data:", "#"))
    namespace = '"http://www.w3.org/2000/svg"'  # a name, never an address
    assert re.search(r"url\(|@import|https?:", page.text["style"][0] + script.replace(namespace, "")) is None


def test_the_page_shows_every_figure_with_words_and_every_table(run: Run, drawn: Path, page_path: Path) -> None:
    page, there = Parsed(page_path), {path.name for path in drawn.iterdir()}
    pictures = list(page.all("img"))
    assert len(pictures) == 6
    for picture, name in zip(pictures, [one for one in figures_of(run) if f"{one}.svg" in there], strict=True):
        packed = next(text for tag, text in page.blocks if tag["id"] == picture["data-chunk"])
        assert zlib.decompress(base64.b64decode(packed), -15) == (drawn / f"{name}.svg").read_bytes()
        assert len(picture["alt"] or "") > 40 and int(picture["width"] or 0) > 500
    cells = page.text["td"]
    header, rows = summary_table(run)
    assert rows and all(f"{row[3]:.3f}" in cells for row in rows)
    assert {"training.learning_rate", "data_hash", "sha256:0123", "seconds.train", "model.width", "256"} <= set(cells)
    assert set(page.text["button"]) >= {name.replace("_", " ") for name in header}
    assert page.text["summary"].count("Figures") == 1
    assert page.text["h1"] == ["nucleate: small"]
    assert "light-dark(" in "".join(page.text["style"])
    assert any(meta.get("name") == "viewport" for meta in page.all("meta"))


def test_hostile_names_and_very_long_prompts_are_text_and_do_no_harm(hostile: Run, tmp_path: Path) -> None:
    path = write_page(hostile, tmp_path / "page.html")
    page = Parsed(path)
    assert [tag.get("type") for tag in page.all("script")].count(None) == 1 and len(list(page.all("i"))) == 0
    assert all("src" not in picture for picture in page.all("img"))
    cells = page.text["td"]
    assert HOSTILE in cells and "</td><img src=x onerror=alert(2)>" in cells and "versions.'\"><script>" in cells
    assert "h<i>&" in page.text["h2"]
    assert any(cell.startswith("yyy") and cell.endswith("… (10,000 characters)") for cell in cells)
    assert max(map(len, cells)) < 400


def test_several_runs_share_a_page_and_the_same_runs_give_the_same_bytes(run: Run, tmp_path: Path) -> None:
    some = pl.col("measure").is_in(["knn_share", "accuracy"])
    runs = [changed(run, tmp_path / name, some) for name in ("one", "two")]
    first = write_page(runs, tmp_path / "a" / "page.html")
    second = write_page(runs, tmp_path / "b" / "page.html")
    assert first.read_bytes() == second.read_bytes()
    page = Parsed(first)
    assert page.text["h1"] == ["nucleate: 2 runs"]
    anchors = [link["href"] for link in page.all("a")]
    sections = [f"#{section['id']}" for section in page.all("section")]
    assert sections == ["#show", *anchors] and anchors == ["#run-0", "#run-1"]
    assert [path.name for path in first.parent.iterdir()] == ["page.html"]


# --- walls ------------------------------------------------------------------------------------------------------------


def test_reporting_never_loads_torch_nor_pyplot_and_changes_nothing_in_the_run_folder(run: Run, tmp_path: Path) -> None:
    def content() -> dict[str, str]:
        files = (path for path in run.folder.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    script = (
        "import sys; from pathlib import Path\n"
        "from nucleate.report.figures import draw_figures\n"
        "from nucleate.report.page import write_page\n"
        "from nucleate.report.tables import summary_table\n"
        "from nucleate.runs import load_run\n"
        "run, out = load_run(sys.argv[1]), Path(sys.argv[2])\n"
        "draw_figures(run, out); write_page(run, out / 'page.html'); summary_table(run)\n"
        "print([name for name in ('torch', 'transformers', 'sklearn', 'matplotlib.pyplot') if name in sys.modules])\n"
    )
    command = [sys.executable, "-W", "error", "-c", script, str(run.folder), str(tmp_path)]
    before = content()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout.strip(), done.stderr) == (0, "[]", "")
    assert content() == before


def test_the_redirection_that_must_fail_is_kept_and_told_as_failed() -> None:
    """One constant output, four instructions that have nothing in common, 25 inputs."""
    run = load_run(RESULTS / "align-smollm2" / "few")
    first, beside = sentences_of(run)
    assert first.startswith("Does not work: the switch misses 100 % of the source; give more instructions")
    assert "the others lose 9 % of their predictions" in first and "unseen inputs" in first
    assert "the low-rank head 100 % of the source as wished" in beside, "the head alone has learnt its one output"
    assert first in " ".join((RESULTS / "align-smollm2" / "README.md").read_text(encoding="utf-8").split())
