"""Where the states lie at each measured epoch: what the page's stage shows, kept in the run folder's `layouts/`."""

import shutil
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import polars as pl
from safetensors.numpy import save_file

from nucleate.config import Config
from nucleate.files import write_whole
from nucleate.measures.survey import Survey
from nucleate.measures.tsne import tsne
from nucleate.paper.trainings import is_measured
from nucleate.reading import read_parquet, read_tensors, tensors_are_whole
from nucleate.runs import RunWriter
from nucleate.streams import stream
from nucleate.threads import thread_count

SHOWN = ("subset", "validation")  # the points of the page's stage


def write_layouts(
    run: RunWriter,
    config: Config,
    instances: Mapping[str, np.ndarray],  # split -> their numbers
    epoch: int,
    states: Mapping[str, np.ndarray],
    surveyed: Survey,
) -> None:
    """View `tsne` holds the embeddings that were scored, split by split; `display` shows the two splits together.

    The display layout starts from the previous measured epoch's, so that points stay where the eye expects them; it is
    never scored. The states are kept at half precision until the end of the run, when the basis of view `pca` is known.
    """
    shown = np.concatenate([states[split] for split in SHOWN], axis=1)  # (layer, point, width)
    points = np.concatenate([instances[split] for split in SHOWN])
    before = max((one for one in _measured_epochs(config) if one < epoch), default=None)
    start = None
    if before is not None:
        kept = read_parquet(_layout_of(run, before)).filter(pl.col("view") == "display")
        start = list(kept.select("x", "y", "z").to_numpy().reshape(len(shown), len(points), 3))
    display = tsne(
        list(shown),
        components=3,
        perplexity=config.measure.perplexity,
        iterations=config.measure.iterations if start is None else config.measure.display_iterations,
        seed=stream(config.seed, "display"),
        start=start,
        threads=thread_count(),
    )
    frames = [_frame("display", layer, points, one.embedding) for layer, one in enumerate(display)]
    for (split, layer), one in surveyed.embeddings.items():
        if split in SHOWN:
            frames.append(_frame("tsne", layer, instances[split], one.embedding))
    run.write_layout(epoch, pl.concat(frames))
    tensors = {"states": np.ascontiguousarray(shown, dtype=np.float16)}  # safetensors writes memory as it lies
    write_whole(run.place("states", f"epoch-{epoch:04d}.safetensors"), lambda path: save_file(tensors, path))


def has_layouts(run: RunWriter, epoch: int) -> bool:
    """Are the layouts of this epoch written, and whole? Its states may be gone, as they are when all is done."""
    states = run.place("states", f"epoch-{epoch:04d}.safetensors")
    files = (f"epoch-{epoch:04d}.parquet", f"predictions-{epoch:04d}.parquet")
    return all(run.has("layouts", file) for file in files) and (not states.exists() or tensors_are_whole(states))


def add_fixed_view(run: RunWriter, config: Config, instances: Mapping[str, np.ndarray]) -> None:
    """View `pca`: every epoch on the three main axes of the last epoch's states, layer by layer."""
    folder = run.place("states")
    kept = {epoch: folder / f"epoch-{epoch:04d}.safetensors" for epoch in _measured_epochs(config)}
    if not all(path.is_file() for path in kept.values()):
        return  # killed while clearing up after this very work
    points = np.concatenate([instances[split] for split in SHOWN])
    last = _states_in(kept[max(kept)])  # (layer, point, width)
    middles = last.mean(axis=1, keepdims=True)
    axes = [_main_axes(layer) for layer in last - middles]
    for epoch, path in kept.items():
        states = _states_in(path) - middles
        frames = [
            _frame("pca", n, points, layer @ axis) for n, (layer, axis) in enumerate(zip(states, axes, strict=True))
        ]
        others = read_parquet(_layout_of(run, epoch)).filter(pl.col("view") != "pca")
        run.write_layout(epoch, pl.concat([others, *[f.select(others.columns).cast(others.schema) for f in frames]]))
    shutil.rmtree(folder)


def _states_in(file: Path) -> np.ndarray:
    """(layer, point, width)"""
    states: np.ndarray = read_tensors(file, framework="numpy")[0]["states"]
    return states.astype(np.float64)


def _measured_epochs(config: Config) -> list[int]:
    epochs = config.training.epochs
    return [epoch for epoch in range(epochs + 1) if is_measured(config.measure, epoch, epochs)]


def _layout_of(run: RunWriter, epoch: int) -> Path:
    return run.place("layouts", f"epoch-{epoch:04d}.parquet")


def _frame(view: str, layer: int, instances: np.ndarray, points: np.ndarray) -> pl.DataFrame:
    """One layer in one view; fewer than three dimensions are filled up with zeros."""
    placed = np.zeros((len(instances), 3), dtype=np.float32)
    placed[:, : min(3, points.shape[1])] = points[:, :3]
    x, y, z = placed.T
    return pl.DataFrame({"instance": instances, "x": x, "y": y, "z": z}).with_columns(
        layer=pl.lit(layer), view=pl.lit(view)
    )


def _main_axes(centred: np.ndarray) -> np.ndarray:
    """(width, at most 3): the directions of largest variance; each points to where its largest entry is positive."""
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3].T
    return axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
