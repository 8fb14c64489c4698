"""Task by task, what a model separates and confuses; prompt by prompt, which look mislabelled, and where each one lies.

`texts` is a frame with a row per instance of the design, in their order: instance, row (or line) in the user's data,
text, and what else is to be shown.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import polars as pl
from scipy.linalg import eigh

from nucleate.probing.design import Design
from nucleate.probing.layers import CloserLook, LayerMeasures
from nucleate.probing.margins import Margins
from nucleate.probing.separation import (
    MISLABELLED,
    Doubts,
    best_cluster_f1,
    bounds,
    by_task,
    mean_interval,
    mean_known,
)

LISTED = 10  # prompts of each task, beside all that look mislabelled


def suspicious_frame(design: Design, texts: pl.DataFrame, doubted: Doubts, layer: int) -> pl.DataFrame:
    """layer, instance, row, task, nearest, margin, text: the most suspicious first in each task."""
    task, margin = design.labels.task, doubted.margin
    listed = np.union1d(doubted.most(task, LISTED), np.flatnonzero(margin > MISLABELLED))
    listed = listed[np.lexsort((listed, -margin[listed], task[listed]))]
    shown = texts[listed.tolist()]
    return pl.DataFrame(
        {
            "layer": pl.Series([layer] * len(listed), dtype=pl.Int32),
            "instance": shown["instance"],
            "row": shown["row"],
            "task": shown["task"],
            "nearest": [design.tasks[code] for code in doubted.nearest[listed]],
            "margin": margin[listed],
            "text": shown["text"],
        }
    )


def coordinate_frame(
    design: Design,
    texts: pl.DataFrame,
    measured: LayerMeasures,
    layer: int,
    states: np.ndarray,
    near: CloserLook,
    doubted: Doubts,
) -> pl.DataFrame:
    """A row per prompt at the layer that the verdict names, whose `states` these are: x and y on the main axes, tsne_x
    and tsne_y where it was shown, its split, its margin of doubt; its share of same-task neighbours, and whether a
    linear probe names its task, each at the best layer for it."""
    best = measured.best_layer
    placed = np.full((len(texts), 2), np.nan)
    if layer in near.embeddings:
        placed[near.shown] = near.embeddings[layer][:, :2]
    half: list[str | None] = [None] * len(texts)
    share = np.full(design.everyone, np.nan)
    for side in design.sides[1:]:
        for member in side.members:
            half[member] = side.split
        here = measured.shares[side.split, best]
        share = np.where(np.isnan(here), share, here)
    x, y, _ = main_axes(states).T
    frame = texts.drop("prompt").with_columns(
        pl.Series("unit", design.labels.instruction, dtype=pl.Int32),
        pl.Series("split", half, dtype=pl.String),
        pl.lit(layer, pl.Int32).alias("layer"),
        pl.Series("share", share[design.kept]),
        pl.Series("named", measured.named[measured.best_readable_layer][design.kept]),
        pl.Series("margin", doubted.margin),
        pl.Series("x", x),
        pl.Series("y", y),
        pl.Series("tsne_x", placed[:, 0]),
        pl.Series("tsne_y", placed[:, 1]),
    )
    return frame.with_columns(pl.col("share", "named", "margin", "tsne_x", "tsne_y").fill_nan(None))


def layout_frame(instances: np.ndarray, states: np.ndarray, layers: Sequence[int], near: CloserLook) -> pl.DataFrame:
    """instance, layer, view, x, y, z: `pca` at all layers, `tsne` at some."""
    placed = [(instances, layer, "pca", main_axes(np.asarray(states[n]))) for n, layer in enumerate(layers)]
    placed += [(instances[near.shown], layer, "tsne", points) for layer, points in sorted(near.embeddings.items())]
    frames = [
        pl.DataFrame({"instance": some, "x": points[:, 0], "y": points[:, 1], "z": points[:, 2]}).select(
            pl.col("instance").cast(pl.Int32),
            pl.lit(layer, pl.Int32).alias("layer"),
            pl.lit(view).alias("view"),
            pl.col("x", "y", "z").cast(pl.Float32),
        )
        for some, layer, view, points in placed
    ]
    return pl.concat(frames)


def main_axes(points: np.ndarray) -> np.ndarray:
    """(n, 3) float32 on the directions of largest variance, zeros where there are fewer; signs fixed."""
    centred = points - points.mean(axis=0, dtype=np.float64)
    wide = centred.shape[1] > len(centred)
    products = centred @ centred.T if wide else centred.T @ centred
    few = (max(len(products) - 3, 0), len(products) - 1)
    vectors = eigh(products, subset_by_index=few)[1][:, ::-1]
    axes = centred.T @ vectors if wide else vectors
    axes = axes / np.maximum(np.linalg.norm(axes, axis=0), np.finfo(np.float64).tiny)
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    placed = np.zeros((len(points), 3), dtype=np.float32)
    placed[:, : axes.shape[1]] = centred @ axes
    return placed


def task_frame(
    design: Design, measured: LayerMeasures, found: Mapping[int, Margins], right: Mapping[str, np.ndarray]
) -> pl.DataFrame:
    """layer, task, measure, value: shares and margins on test, F1 and the answers that are `right` on all prompts."""
    rows: list[tuple[int | None, str, str, float]] = []
    for layer, margin in found.items():
        f1 = best_cluster_f1(design.labels.task, measured.clusters["all", layer])
        plain, deciding = measured.plain["test", layer], measured.shares["test", layer]
        for code in np.unique(design.labels.task):
            name, here = design.tasks[code], np.where(design.task == code, deciding, np.nan)
            sure = mean_interval(here, design.unit, seed=design.seed_of("interval", name, layer))
            values = {
                "f1": f1[code],
                "knn_share": mean_known(plain[design.task == code]),
                design.deciding: mean_known(here),
            }
            values |= bounds(design.deciding, sure) | margin.by_task[code]
            here = np.where(design.task == code, measured.named[layer], np.nan)
            sure = mean_interval(here, design.unit, seed=design.seed_of("interval", "linear_accuracy", name, layer))
            values |= {"linear_accuracy": mean_known(here), **bounds("linear_accuracy", sure)}
            rows += [(layer, name, measure, float(value)) for measure, value in values.items() if not np.isnan(value)]
    for measure, answers in right.items():
        shares = by_task(answers, design.labels.task)
        rows += [(None, design.tasks[code], measure, float(v)) for code, v in enumerate(shares) if not np.isnan(v)]
    schema = {"layer": pl.Int32, "task": pl.String, "measure": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def confusion_frame(design: Design, measured: LayerMeasures, layers: Sequence[int]) -> pl.DataFrame:
    """layer, task, other, share: whose task the neighbours on test have."""
    rows = [
        (layer, design.tasks[own], design.tasks[other], float(share))
        for layer in layers
        for (own, other), share in np.ndenumerate(measured.confusion[layer])
        if not np.isnan(share)
    ]
    schema = {"layer": pl.Int32, "task": pl.String, "other": pl.String, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")
