"""The paper's figures, drawn from run folders alone, as PNG and SVG.

`draw_figures` comes first; each figure is a function of a run, or of several that differ in their seed alone, and gives
None where its part was not measured. The same runs give the same bytes. All text is plain: no `$` or `_` of a data file
is read as mathematics.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from nucleate.long_table import Score, best_epoch, pick
from nucleate.report.application_figures import alignment_figure, drops_figure, pretraining_figure
from nucleate.report.dataset_figure import dataset_figure
from nucleate.report.drawing import LINE, WIDTH, draw_curve, encoded, layer_colour, layer_name, save, style, task_colour
from nucleate.report.layer_figures import MEASURES, clustering_figure, neighbours_figure, variance_figure
from nucleate.report.probe_figures import probe_figures
from nucleate.report.seeds import curve_over, spread_note
from nucleate.report.transfer_figure import transfer_figure
from nucleate.runs import Run

Runs = Run | Sequence[Run]  # one, or several that differ in their seed alone


Drawn = dict[str, tuple[bytes, int, int]]  # name -> SVG, width and height in CSS pixels (96 an inch)


def draw_figures(runs: Runs, folder: Path) -> Drawn:
    """Every figure that there are the parts for, as `<name>.png` (150 dpi) and `<name>.svg`, in the paper's order; the
    page can show what this gives, so that nothing is drawn twice."""
    drawn = {}
    for name, figure in _drawn(runs):
        _, svg = save(figure, folder, name)
        drawn[name] = (svg.read_bytes(), *_pixels(figure))
    return drawn


def draw_svg(runs: Runs) -> Drawn:
    """The same figures in memory alone."""
    return {name: (encoded(figure, "svg"), *_pixels(figure)) for name, figure in _drawn(runs)}


def _pixels(figure: Figure) -> tuple[int, int]:
    width, height = figure.get_size_inches()
    return round(width * 96), round(height * 96)


def _drawn(runs: Runs) -> Iterator[tuple[str, Figure]]:
    with style():
        for name, draw in figures_of(runs).items():
            figure = draw()
            if figure is not None:
                yield name, figure


def figures_of(runs: Runs) -> dict[str, Callable[[], Figure | None]]:
    """name -> what draws it; the numbers of the later ones follow the network's width, as in the paper. Data and
    layouts are those of one run."""
    several = [runs] if isinstance(runs, Run) else list(runs)
    one = several[0]
    if one.config.get("verb") == "probe":
        return probe_figures(one)
    if one.config.get("verb") == "transfer":
        return {"figure_transfer": lambda: transfer_figure(several)}
    width = one.config.get("model", {}).get("width")
    clustering, neighbours = {32: (7, 8), 2048: (9, 10)}.get(width, (6, 4))
    figures: dict[str, Callable[[], Figure | None]] = {
        "figure_1_dataset": lambda: dataset_figure(one.dataset, one.dataset_facts or {}),
        "figure_2_clustering_f1": lambda: clustering_figure(several, ("f1",)),
        "figure_3_learning": lambda: _learning(several),
        f"figure_{neighbours}_neighbours": lambda: neighbours_figure(several),
        f"figure_{clustering}_clustering_all": lambda: clustering_figure(several, tuple(MEASURES)),
        "figure_variance": lambda: variance_figure(several),
        "figure_transfer": lambda: transfer_figure(several),
        "figure_layouts": lambda: _layouts(one),
        "figure_5a_pretraining": lambda: clustering_figure(
            several, ("f1",), experiment="pretrain", arm="task_id", read="task_token"
        ),
        "figure_5b_finetuning": lambda: pretraining_figure(several),
        "figure_table_2": lambda: drops_figure(several),
        "figure_alignment": lambda: alignment_figure(several),
    }
    of_one = ("figure_1_dataset", "figure_layouts")
    return {name: draw for name, draw in figures.items() if len(several) == 1 or name not in of_one}


# --- Figure 3: loss and accuracy --------------------------------------------------------------------------------------


def _learning(runs: Sequence[Run]) -> Figure | None:
    wanted = {
        "training loss": ("loss", "train"),
        "training subset accuracy": ("accuracy", "subset"),
        "validation accuracy": ("accuracy", "validation"),
    }
    curves = {
        words: curve_over([pick(run.metrics, Score(measure, split, None, (), experiment="learn")) for run in runs])
        for words, (measure, split) in wanted.items()
    }
    curves = {words: curve for words, curve in curves.items() if len(curve.epochs)}
    if not curves:
        return None
    best = [found for run in runs if (found := best_epoch(run.metrics)) is not None]
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    axes = figure.subplots(1, len(curves), sharex=True, squeeze=False)[0]
    for place, (axis, (words, curve)) in enumerate(zip(axes, curves.items(), strict=True)):
        draw_curve(axis, curve, color=layer_colour(1, 1), **LINE)
        axis.set_title(f"({'abc'[place]}) {words}")
        axis.set_xlabel("epoch")
        if "accuracy" in words:
            axis.set_ylim(-0.03, 1.03)
        for found in best:
            axis.axvline(found.epoch, color=_BEST, linewidth=1.0, dashes=(4, 2), zorder=1)
    marks, note = [], spread_note(runs)
    if best:
        epochs, accuracy = ", ".join(str(found.epoch) for found in best), np.mean([found.accuracy for found in best])
        words = f"best epoch: {epochs}, validation accuracy {accuracy:.3f}" + (" (mean)" if len(best) > 1 else "")
        marks.append(Line2D([], [], color=_BEST, linewidth=1.0, dashes=(4, 2), label=words))
    if marks or note:
        figure.legend(handles=marks, loc="outside lower center", frameon=False, title=note, title_fontsize=8)
    return figure


_BEST = "#c4511f"


# --- The layouts at a glance ------------------------------------------------------------------------------------------


def _layouts(run: Run) -> Figure | None:
    """Where the states lie: rows are layers, columns epochs; a block per split, since each has a layout of its own."""
    if run.dataset is None or not run.layout_epochs:
        return None
    view = _view(run.layout(run.layout_epochs[-1]))
    shown = {epoch: run.layout(epoch).filter(pl.col("view") == view) for epoch in _spread(run.layout_epochs, 4)}
    kept = run.dataset.filter(pl.col("instance").is_in(shown[max(shown)]["instance"].implode()))
    members = {
        "subset": kept.filter(pl.col("in_subset")),
        "validation": kept.filter(pl.col("split") == "validation"),
    }
    members = {split: rows for split, rows in members.items() if not rows.is_empty()}
    layers = _spread(sorted(shown[max(shown)]["layer"].unique()), 3)
    if not members or not layers:
        return None
    top = max(run.config.get("model", {}).get("layers", 0), *layers)
    figure = Figure(figsize=(1.25 * len(shown) * len(members) + 0.4, 1.25 * len(layers) + 0.85), layout="constrained")
    blocks = figure.subfigures(1, len(members), squeeze=False)[0]
    for block, (split, rows) in zip(blocks, members.items(), strict=True):
        axes = block.subplots(len(layers), len(shown), squeeze=False)
        count = rows["task"].n_unique()
        seen = "training subset" if split == "subset" else "validation, unseen instructions"
        block.suptitle(f"{seen}: {count} tasks", fontsize=9)
        for row, layer in enumerate(layers):
            points = {epoch: _joined(layout, rows, layer) for epoch, layout in shown.items()}
            for column, epoch in enumerate(shown):
                axis = axes[row, column]
                _scatter(axis, points[epoch], rows["task"].unique(maintain_order=True).to_list())
                if row == 0:
                    axis.set_title(f"epoch {epoch}")
                if column == 0:
                    axis.set_ylabel(layer_name(layer, top).replace(" (", "\n("))
    ordinary = Line2D([], [], linestyle="", marker="o", markersize=4, color="#666666", label="ordinary instance")
    hard = Line2D([], [], linestyle="", marker="^", markersize=5, color="#666666", label="hard example")
    handles = [ordinary, hard] if any(rows["is_hard"].any() for rows in members.values()) else [ordinary]
    note = f"Colour: task, which the network is never told. {_VIEW_WORDS[view]}"
    figure.legend(handles=handles, loc="outside lower center", ncols=2, title=note, title_fontsize=8, frameon=False)
    return figure


_VIEW_WORDS = {
    "display": "3-D t-SNE, at each epoch begun from the one before, so that places can be compared along a row.",
    "tsne": "3-D t-SNE of each epoch by itself: directions differ from epoch to epoch.",
    "pca": "The first three principal components, the same basis at all epochs of a row.",
}


def _view(layout: pl.DataFrame) -> str:
    """The view that keeps its orientation over epochs, where it was recorded."""
    views = set(layout["view"].unique())
    return next((view for view in _VIEW_WORDS if view in views), "display")


def _joined(layout: pl.DataFrame, rows: pl.DataFrame, layer: int) -> pl.DataFrame:
    here = layout.filter(pl.col("layer") == layer).select("instance", "x", "y", "z")
    return rows.select("instance", "task", "is_hard").join(here, on="instance", maintain_order="left")


def _scatter(axis: Axes, points: pl.DataFrame, tasks: Sequence[str]) -> None:
    """Three dimensions seen slantwise from above; nearer points are drawn later."""
    axis.set(xticks=[], yticks=[], box_aspect=1)
    axis.spines[:].set_color("#cccccc")
    if points.is_empty():
        return
    flat = points.select("x", "y", "z").to_numpy() @ _VIEW  # (instance, right-up-near)
    order = np.argsort(flat[:, 2], kind="stable")
    colours = np.array([task_colour(tasks.index(task), len(tasks)) for task in points["task"]])
    hard = points["is_hard"].to_numpy()
    for marker, size, member in (("o", 7, ~hard), ("^", 11, hard)):
        chosen = order[member[order]]
        axis.scatter(
            flat[chosen, 0],
            flat[chosen, 1],
            s=size,
            c=colours[chosen],
            marker=marker,
            linewidths=0.2,
            edgecolors="white",
        )
    axis.margins(0.06)


_TURN, _TILT = np.radians(30.0), np.radians(20.0)
_VIEW = np.array(
    [
        [np.cos(_TURN), np.sin(_TILT) * np.sin(_TURN), np.cos(_TILT) * np.sin(_TURN)],
        [np.sin(_TURN), -np.sin(_TILT) * np.cos(_TURN), -np.cos(_TILT) * np.cos(_TURN)],
        [0.0, np.cos(_TILT), -np.sin(_TILT)],
    ]
)


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, first and last among them, evenly placed."""
    if len(values) <= count:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, count).round().astype(int)]
