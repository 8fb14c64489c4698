"""What the page can show of a run: its points in every layer and moment, the answers given, and its curves.

A scene is a run, or one model of a run with several; a series of checkpoints is one scene whose moments they are.
Nothing is measured here: layouts, answers and scores are read from the run folder, turned, rounded and packed.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl

from nucleate.files import file_name
from nucleate.long_table import best_epoch
from nucleate.report.pack import VALUE, Chunks, levelled, turned
from nucleate.runs import Run

LONGEST_TEXT = 500  # characters of an instruction or answer that travel with a point

# The views a page offers, the first that was recorded of each pair, and how their layouts are aligned.
VIEWS = (("display", "tsne"), ("pca",))
VIEW_WORDS = {
    "display": (
        "t-SNE",
        "3-D t-SNE of all these points together, begun at each moment from the one before, so that a point stays where "
        "the eye expects it. For looking at; never scored.",
    ),
    "tsne": ("t-SNE", "3-D t-SNE of each moment by itself, turned as a whole to fit the moment after it."),
    "pca": (
        "principal axes",
        "The three main axes of the last moment's states, the same axes at every moment: a plain shadow of the states.",
    ),
}
BANDS = ("shuffled", "regrouped")


def scenes_of(run: Run, chunks: Chunks) -> list[dict[str, Any]]:
    """A scene per model; the keys that a run has nothing for are missing."""
    scenes = []
    for source in _sources(run):
        models = [model for model in source.models if model is not None]
        scene: dict[str, Any] = {"name": source.name} | _stage(run, source, chunks)
        curves = _curves(run.metrics.filter(pl.col("model").is_null() | pl.col("model").is_in(models)), _unit(run))
        if curves["curves"]:
            scene["curves"] = chunks.json(curves)
        if (confusion := run.table("confusion")) is not None:
            scene |= _confusion(confusion, source, chunks)
        best = best_epoch(run.metrics)
        # Of a probe every prompt comes first, at the layer that the verdict names.
        probed = {"shown": "*"} | _opening(run, models) if run.config.get("verb") == "probe" else {}
        scene["unit"] = _unit(run)
        scenes.append(scene | probed | ({"best": best.epoch} if best else {}))
    return scenes


def _opening(run: Run, models: list[str]) -> dict[str, int]:
    """The layer at which the last of the models is shown first."""
    told = run.table("coordinates", ["model", "layer"])
    if told is None or not models:
        return {}
    found = told.filter(pl.col("model") == models[-1])["layer"]
    return {"opens": int(found[0])} if len(found) else {}


@dataclass(frozen=True)
class _SceneSource:
    """Who stands on a stage: a name; the files of its layouts, the epoch or step of each, the models they are of."""

    name: str
    files: list[str]
    moments: list[int]
    models: list[str | None]


def _sources(run: Run) -> list[_SceneSource]:
    """The run itself; of a probe each model, but checkpoints that tell their age as one, in order."""
    name = run.folder.resolve().name
    if run.config.get("verb") != "probe":
        epochs = run.layout_epochs
        models = run.metrics["model"].unique().drop_nulls().to_list()
        return [_SceneSource(name, [f"epoch-{epoch:04d}" for epoch in epochs], epochs, [*models])]
    listed = run.config.get("models", [])
    age = pl.col(_unit(run)).max().alias("age")
    ages = dict(run.metrics.drop_nulls("model").group_by("model").agg(age).drop_nulls("age").iter_rows())
    series = sorted((model for model in listed if model in ages), key=lambda model: ages[model])
    if len(series) < 2 or len({ages[model] for model in series}) < len(series):
        series = []
    files, moments = [file_name(one) for one in series], [ages[one] for one in series]
    together = [_SceneSource(name, files, moments, [*series])] if series else []
    return together + [_SceneSource(model, [file_name(model)], [0], [model]) for model in listed if model not in series]


def _unit(run: Run) -> str:
    """What moments are counted in: epochs; of a probe steps, where its models tell theirs."""
    probed = run.config.get("verb") == "probe"
    return "step" if probed and run.metrics["step"].null_count() < len(run.metrics) else "epoch"


# --- the stage --------------------------------------------------------------------------------------------------------


def _stage(run: Run, source: _SceneSource, chunks: Chunks) -> dict[str, Any]:
    """Points, moments, views and answers; nothing where no layout was recorded."""
    found = recorded(run, source.files)
    if found is None:
        return {"moments": []}
    several = run.config.get("verb") == "probe" and len(source.files) > 1
    return {
        "moments": source.moments,
        "points": chunks.json(_points(found.points)),
        "views": [_view(view, one, chunks, networks=several) for view, one in found.views.items()],
    } | _answers(run, source.files, found.points, chunks)


@dataclass(frozen=True)
class Recorded:
    """Layouts read back: a row of the dataset per point, and each view."""

    points: pl.DataFrame
    views: dict[str, "View"]


@dataclass(frozen=True)
class View:
    """Places (moment, layer, point, 3); which layers; which rows of `points`, where it does not show them all."""

    cube: np.ndarray
    layers: list[int]
    rows: list[int] | None


def recorded(run: Run, files: Sequence[str]) -> Recorded | None:
    """The layers and points that a view has at every moment; None where there is nothing to show."""
    paths = [run.folder / "layouts" / f"{file}.parquet" for file in files]
    if run.dataset is None or not paths or not all(path.is_file() for path in paths):
        return None
    known = pl.col("instance").is_in(run.dataset["instance"].implode())
    frames = [run.layout_of(file).filter(known) for file in files]
    cubes: dict[str, tuple[np.ndarray, list[int], list[int]]] = {}
    for names in VIEWS:
        found = ((view, _cube([frame.filter(pl.col("view") == view) for frame in frames])) for view in names)
        cubes.update([(view, cube) for view, cube in found if cube is not None][:1])
    shown = sorted({instance for _, _, instances in cubes.values() for instance in instances})
    points = run.dataset.filter(pl.col("instance").is_in(shown)).sort("instance")
    if points.is_empty():
        return None
    row = {instance: place for place, instance in enumerate(points["instance"])}
    views = {
        view: View(cube, layers, None if len(own) == len(points) else [row[one] for one in own])
        for view, (cube, layers, own) in cubes.items()
    }
    return Recorded(points, views)


def _cube(frames: Sequence[pl.DataFrame]) -> tuple[np.ndarray, list[int], list[int]] | None:
    """Places (moment, layer, point, 3), layers, instances; None where a moment lacks the view: a run cut short."""
    layers, instances = (
        sorted(set.intersection(*(set(frame[name]) for frame in frames))) for name in ("layer", "instance")
    )
    if not layers or not instances:
        return None
    places = []
    for frame in frames:
        same = pl.col("layer").is_in(layers) & pl.col("instance").is_in(instances)
        rows = frame.filter(same).sort("layer", "instance").select("x", "y", "z")
        if len(rows) != len(layers) * len(instances):
            return None
        places.append(rows.to_numpy().reshape(len(layers), len(instances), 3))
    return np.stack(places).astype(np.float64), layers, instances


def _view(view: str, shown: View, chunks: Chunks, *, networks: bool) -> dict[str, Any]:
    """`networks`: each moment is a network that was read by itself, with axes of its own."""
    name, words = VIEW_WORDS[view]
    if networks and view == "pca":
        words = "The three main axes of each moment's states, turned as a whole to fit the moment after it."
    if len(shown.layers) > 1:
        words += " Each layer is turned as a whole to fit the layer below it; distances are untouched."
    layers = turned(list(shown.cube.swapaxes(0, 1)), moments_too=view == "tsne" or networks)
    packed = [levelled(points) for points in layers]
    some = {} if shown.rows is None else {"rows": shown.rows}
    return {
        "name": name,
        "words": words,
        "at": shown.layers,
        "cubes": [cube for _, cube in packed],
        "layers": [chunks.numbers(steps) for steps, _ in packed],
    } | some


def _points(points: pl.DataFrame) -> dict[str, Any]:
    """Columns; a text that many points share is kept once and named by its place."""
    kept: dict[str, Any] = {"instance": points["instance"].to_list()}
    part = pl.when(pl.col("in_subset")).then(pl.lit("subset")).otherwise("split").alias("split")
    shown = points.with_columns(part) if "in_subset" in points.columns else points
    for name in ("split", "task", "distribution", "mapping", "input", "output", "instruction"):
        if name in shown.columns and shown[name].null_count() < len(shown):
            texts = shown[name].fill_null("").unique(maintain_order=True).to_list()
            place = {text: number for number, text in enumerate(texts)}
            kept[name] = {
                "texts": [cut(text) for text in texts],
                "of": [place[text] for text in shown[name].fill_null("")],
            }
    if "is_hard" in points.columns:
        kept["hard"] = [place for place, hard in enumerate(points["is_hard"]) if hard]
    return kept


def _answers(run: Run, files: Sequence[str], points: pl.DataFrame, chunks: Chunks) -> dict[str, Any]:
    """What was answered at each moment, as places in a list of texts; 0 is no answer."""
    texts: dict[str, int] = {"": 0}
    codes = np.zeros((len(files), len(points)), dtype=np.int32)
    for moment, file in enumerate(files):
        epoch = file.removeprefix("epoch-")
        if epoch.isdecimal() and (told := run.predictions(int(epoch))) is not None:
            given = dict(told.iter_rows())
            codes[moment] = [texts.setdefault(given.get(one) or "", len(texts)) for one in points["instance"]]
    if not codes.any() or len(texts) > 2**15:
        return {}
    return {"answers": {"texts": [cut(text) for text in texts], "of": chunks.numbers(codes)}}


def cut(text: str, longest: int = LONGEST_TEXT) -> str:
    """Long text cut, with its length told."""
    return text if len(text) <= longest else f"{text[:longest]}… ({len(text):,} characters)"


# --- the curves -------------------------------------------------------------------------------------------------------

_KEY = ("experiment", "arm", "control", "split", "read", "labels", "space", "measure", "layer")


def _curves(rows: pl.DataFrame, unit: str) -> dict[str, Any]:
    """Every curve of one scene: its key as places in `words`, its epochs as a place in `epochs`, its values × 10,000.

    Other numbers of neighbours (`_k5`), shares that could be scored (`_kept`) and intervals stay in `metrics.parquet`,
    and so does what is moved at a single epoch. Over epochs a control by labels is kept as its lowest and highest
    layer: the band that is drawn.
    """
    rows = rows.with_columns(epoch=pl.col(unit))
    rows = rows.filter(pl.col("experiment").ne_missing("transfer"))
    rows = rows.filter(~pl.col("measure").str.contains(r"_(?:k\d+|kept|low|high)$"))
    rows = rows.filter(~(pl.col("epoch").is_null() & pl.col("layer").is_null() & (pl.col("control") == "none")))
    rows = rows.with_columns(layer=pl.col("layer").cast(pl.String))
    banded = pl.col("control").is_in(BANDS) & pl.col("epoch").is_not_null()
    others = [name for name in (*_KEY, "epoch") if name != "layer"]
    edges = [
        rows.filter(banded).group_by(others).agg(edge).with_columns(layer=pl.lit(name))
        for name, edge in (("low", pl.col("value").min()), ("high", pl.col("value").max()))
    ]
    columns = [*_KEY, "epoch", "value"]
    every = pl.concat([part.select(columns) for part in (rows.filter(~banded), *edges)])
    curves = every.sort(columns[:-1], nulls_last=False).group_by(_KEY, maintain_order=True)
    words: dict[str | None, int] = {}
    epochs: dict[tuple[int | None, ...], int] = {}
    listed = []
    for *key, when, values in curves.agg("epoch", (pl.col("value") * VALUE).round().cast(pl.Int64)).iter_rows():
        places = [words.setdefault(word, len(words)) for word in key]
        listed.append([*places, epochs.setdefault(tuple(when), len(epochs)), values])
    return {"key": _KEY, "words": list(words), "epochs": [list(one) for one in epochs], "curves": listed}


# --- confusion --------------------------------------------------------------------------------------------------------

_MOST_TASKS = 80  # more would be a matrix that nobody can point at


def _confusion(frame: pl.DataFrame, source: _SceneSource, chunks: Chunks) -> dict[str, Any]:
    """Which tasks a task's neighbours have: shares in thousandths (task, other), per moment and layer; of the tasks
    that are least together, where they are many."""
    own = frame.filter(pl.col("model").is_in([model for model in source.models if model is not None]))
    if own.is_empty():
        return {}
    together = dict(own.filter(pl.col("task") == pl.col("other")).group_by("task").agg(pl.col("share").mean()).rows())
    tasks = sorted({*frame["task"], *frame["other"]}, key=lambda task: (together.get(task, 0.0), task))
    count, tasks = len(tasks), sorted(tasks[:_MOST_TASKS])
    place = {task: number for number, task in enumerate(tasks)}
    moment = {model: number for number, model in enumerate(source.models)}
    matrices: dict[str, list[int]] = {}
    for row in own.iter_rows(named=True):
        key = f"{moment[row['model']]} {row['layer']}"
        matrix = matrices.setdefault(key, [0] * len(tasks) ** 2)
        if row["task"] in place and row["other"] in place:
            matrix[place[row["task"]] * len(tasks) + place[row["other"]]] = round(1000 * row["share"])
    told = {"tasks": [cut(task, 200) for task in tasks], "count": count, "at": matrices}
    return {"confusion": chunks.json(told)}
