"""The page measured: bytes, seconds to write, seconds to the first picture, frames a second while it plays.

    python benchmarks/page.py [RUN ...]

Without runs: the paper's size (200 epochs, 7 layers, 495 points, two views) and a probe's (31 layers, 8,800 points),
both invented but as hard to pack as real ones (steps of a walk, scores with noise). Chromium draws in software at
1280 x 800; opening and frames are also told in processor time of all its processes, since a busy machine shows less and
a headless browser never more than 60 a second. Needs Chromium (apt-get install chromium).
"""

import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import polars as pl

from nucleate.report.page import write_page
from nucleate.runs import Run, load_run

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from browser import CHROMIUM, Browser
from fake_run import build

TARGETS = {"paper": "under 8 MB, 1 s, 30 frames a second", "probe": "20 frames a second"}

FRAMES = 120
# Every frame of these moves everything: the run plays and the stage turns.
PLAY = f"""new Promise((done) => {{
  const times = [];
  now.time = 0;
  const frame = (at) => {{
    times.push(at);
    now.yaw += 0.02;
    if (scene().moments.length > 1) {{ now.time = (now.time + 0.25) % (scene().moments.length - 1); momentChanged(); }}
    paint(at);
    cancelAnimationFrame(painting);
    painting = 0;
    if (times.length <= {FRAMES}) requestAnimationFrame(frame);
    else done({FRAMES * 1000} / (times.at(-1) - times[0]));
  }};
  requestAnimationFrame(frame);
}})"""


def main(runs: list[str]) -> None:
    if CHROMIUM is None:
        print("benchmarks/page.py: no Chromium here, so nothing is measured (apt-get install chromium)")
        return
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        measured = {run: load_run(run) for run in runs} or {"paper": paper(folder), "probe": probe(folder)}
        print(f"{'page':34}    MB  written s  first picture s  CPU s to open  CPU ms a frame  frames/s by that  seen")
        for name, run in measured.items():
            began = time.perf_counter()
            path = write_page(run, folder / "page.html")
            seconds = time.perf_counter() - began
            with Browser("--disable-3d-apis") as browser:
                before = browser.cpu_seconds()
                page = browser.open(path)
                opened = browser.cpu_seconds() - before
                size = f"{name:34} {path.stat().st_size / 1e6:5.2f} {seconds:10.1f}"
                first = page("performance.getEntriesByName('first picture')[0]?.startTime / 1000")
                if first is None:
                    print(f"{size} {'-':>16} {opened:14.2f}   no stage: this run recorded no layouts", flush=True)
                    continue
                if page("[...document.getElementById('shown').options].some((one) => one.value === '*')"):
                    page.choose("#shown", "*")
                before = browser.cpu_seconds()
                seen = page(PLAY)
                each = 1000 * (browser.cpu_seconds() - before) / FRAMES
            line = f"{size} {first:16.2f} {opened:14.2f} {each:15.1f} {1000 / each:17.0f} {seen:5.1f}"
            print(f"{line}   {TARGETS.get(name, '')}", flush=True)


def paper(folder: Path) -> Run:
    """200 epochs, all of them recorded, with the points of the paper: 180 of the subset and 315 unseen."""
    run = load_run(build(folder / "paper", layers=6, epochs=200))
    frame = run.dataset
    assert frame is not None
    shown = pl.concat([frame.filter("in_subset").head(180), frame.filter(pl.col("split") != "train").head(315)])
    walks(run.folder / "layouts", shown["instance"].to_numpy(), layers=7, moments=200, views=("display", "pca"))
    return run


def probe(folder: Path) -> Run:
    """One moment of 31 layers with 8,800 points."""
    run = load_run(build(folder / "probe", layers=1, epochs=1))
    assert run.dataset is not None
    frame = pl.concat([run.dataset] * (8800 // len(run.dataset) + 1)).head(8800)
    frame = frame.with_columns(instance=pl.int_range(8800, dtype=pl.Int32), split=pl.lit("validation"), in_subset=False)
    frame.write_parquet(run.folder / "data" / "dataset.parquet")
    walks(run.folder / "layouts", np.arange(8800), layers=31, moments=1, views=("tsne", "pca"))
    return load_run(run.folder)


def walks(folder: Path, instances: np.ndarray, *, layers: int, moments: int, views: tuple[str, ...]) -> None:
    """Every point walks on its own, some percent of the cloud's width at each moment, as in real layouts."""
    noise = np.random.default_rng(11)
    for file in folder.iterdir():
        file.unlink()
    places = {view: noise.normal(0, 17, (layers, len(instances), 3)) for view in views}
    for moment in range(moments):
        parts = []
        for view, cube in places.items():
            cube += noise.normal(0, 1.4 if view == "display" else 0.7, cube.shape)
            flat = pl.DataFrame(cube.reshape(-1, 3).astype(np.float32), schema=["x", "y", "z"])
            parts.append(
                flat.with_columns(
                    instance=pl.Series(np.tile(instances, layers), dtype=pl.Int32),
                    layer=pl.Series(np.repeat(np.arange(layers), len(instances)), dtype=pl.Int32),
                    view=pl.lit(view),
                )
            )
        layout = pl.concat(parts).select("instance", "layer", "view", "x", "y", "z")
        layout.write_parquet(folder / f"epoch-{moment:04d}.parquet")


if __name__ == "__main__":
    main(sys.argv[1:])
