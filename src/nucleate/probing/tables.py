"""Prompt by prompt: which look mislabelled, and where each one lies.

`texts` is a frame with a row per instance of the design, in their order: instance, row (or line) in the user's data,
text, and what else is to be shown.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from scipy.linalg import eigh

from nucleate.probing.layers import CloserLook, Design, LayerMeasures
from nucleate.probing.separation import MISLABELLED, Doubts

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
    design: Design, texts: pl.DataFrame, measured: LayerMeasures, states: np.ndarray, near: CloserLook, doubted: Doubts
) -> pl.DataFrame:
    """A row per prompt at the best layer, whose `states` these are: x and y on the main axes, tsne_x and tsne_y where
    it was shown, its split, its share of same-task neighbours there and its margin of doubt."""
    best = measured.best_layer
    placed = np.full((len(texts), 2), np.nan)
    if best in near.embeddings:
        placed[near.shown] = near.embeddings[best][:, :2]
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
        pl.lit(best, pl.Int32).alias("layer"),
        pl.Series("share", share[design.kept]),
        pl.Series("margin", doubted.margin),
        pl.Series("x", x),
        pl.Series("y", y),
        pl.Series("tsne_x", placed[:, 0]),
        pl.Series("tsne_y", placed[:, 1]),
    )
    return frame.with_columns(pl.col("share", "margin", "tsne_x", "tsne_y").fill_nan(None))


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
