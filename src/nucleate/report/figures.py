"""The paper's figures, drawn from a run folder alone, as PNG and SVG.

`draw_figures` comes first; each figure is a function of the run that gives None where its part was not measured.
The same run gives the same bytes. All text is plain: no `$` or `_` of a data file is read as mathematics.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from nucleate.report.application_figures import alignment_figure, pretraining_figure
from nucleate.report.dataset_figure import dataset_figure
from nucleate.report.pens import WIDTH, encoded, layer_colour, layer_name, save, style, task_colour
from nucleate.report.probe_figures import probe_figures
from nucleate.report.tables import best_epoch, pick
from nucleate.runs import Run

SPLITS = {"subset": "training subset", "validation": "validation"}
LABELS = {"task": "task", "distribution": "distribution", "distribution_mapping": "distribution-mapping"}
MEASURES = {"f1": "F1", "ari": "ARI", "ami": "AMI"}
BEST_OF = ("raw", "tsne")
BEST_OF_NOTE = (
    "Every point is the better of raw states and t-SNE, as in the paper; the controls are given the same choice,\n"
    "since choosing after the labels are known flatters."
)


def draw_figures(run: Run, folder: Path) -> list[Path]:
    """Every figure that the run has the parts for, as `<name>.png` (150 dpi) and `<name>.svg`, in the paper's order."""
    paths = []
    with style():
        for name, draw in figures_of(run).items():
            figure = draw()
            if figure is not None:
                paths += save(figure, folder, name)
    return paths


def draw_svg(run: Run) -> dict[str, tuple[bytes, int, int]]:
    """The same figures in memory, for the page: name -> SVG, width and height in CSS pixels (96 an inch)."""
    drawn = {}
    with style():
        for name, draw in figures_of(run).items():
            figure = draw()
            if figure is not None:
                width, height = figure.get_size_inches()
                drawn[name] = (encoded(figure, "svg"), round(width * 96), round(height * 96))
    return drawn


def figures_of(run: Run) -> dict[str, Callable[[], Figure | None]]:
    """name -> what draws it; the numbers of the later ones follow the network's width, as in the paper."""
    if run.config.get("verb") == "probe":
        return probe_figures(run)
    width = run.config.get("model", {}).get("width")
    clustering, neighbours = {32: (7, 8), 2048: (9, 10)}.get(width, (6, 4))
    figures: dict[str, Callable[[], Figure | None]] = {
        "figure_1_dataset": lambda: dataset_figure(run.dataset, run.dataset_facts or {}),
        "figure_2_clustering_f1": lambda: _clustering(run, ("f1",)),
        "figure_3_learning": lambda: _learning(run),
        f"figure_{neighbours}_neighbours": lambda: _neighbours(run),
        f"figure_{clustering}_clustering_all": lambda: _clustering(run, tuple(MEASURES)),
        "figure_layouts": lambda: _layouts(run),
        "figure_5a_pretraining": lambda: _clustering(
            run, ("f1",), experiment="pretrain", arm="task_id", read="task_token"
        ),
        "figure_5b_finetuning": lambda: pretraining_figure(run),
        "figure_alignment": lambda: alignment_figure(run),
    }
    return figures


# --- Figures 2, 4 and 6 to 10: a line per layer, controls in grey -----------------------------------------------------


def _clustering(run: Run, measures: Sequence[str], **of: str) -> Figure | None:
    """Rows: measures within splits; columns: kinds of labels (Figures 2, 5a, 6, 7, 9). `of` goes to `pick`."""
    panels = {
        (split, measure, labels): _Panel(run, measure=measure, split=split, labels=labels, spaces=BEST_OF, **of)
        for split in SPLITS
        for measure in measures
        for labels in LABELS
    }
    rows = [
        (split, measure)
        for split in SPLITS
        for measure in measures
        if any(panels[split, measure, labels] for labels in LABELS)
    ]
    columns = [labels for labels in LABELS if any(panels[split, measure, labels] for split, measure in rows)]
    if not rows:
        return None
    figure = Figure(figsize=(WIDTH, 1.3 + (1.75 if len(rows) < 4 else 1.45) * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), len(columns), sharex=True, sharey=True, squeeze=False)
    for row, (split, measure) in enumerate(rows):
        axes[row, 0].set_ylabel(f"{SPLITS[split]}\n{MEASURES[measure]}")
        for column, labels in enumerate(columns):
            axis, panel = axes[row, column], panels[split, measure, labels]
            if row == 0:
                axis.set_title(f"labels: {LABELS[labels]}")
            if row == len(rows) - 1:
                axis.set_xlabel("epoch")
            if panel:
                panel.draw(axis)
            else:
                axis.set_axis_off()
    _limits(axes, panels.values())
    _legend(figure, panels.values(), title=BEST_OF_NOTE)
    return figure


def _neighbours(run: Run) -> Figure | None:
    """Same-task share of the nearest training instances; accuracy of answering as they do (Figures 4, 8, 10)."""
    drawn = {
        "same-task share of the K nearest": _Panel(run, measure="knn_share", split="validation", labels="task"),
        "KNN accuracy": _Panel(run, measure="knn_accuracy", split="validation", labels="task"),
    }
    drawn = {words: panel for words, panel in drawn.items() if panel}
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 3.7), layout="constrained")
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)
    for place, (words, panel) in enumerate(drawn.items()):
        panel.draw(axes[0, place])
        axes[0, place].set_title(f"({'ab'[place]}) {words}")
        axes[0, place].set_xlabel("epoch")
    axes[0, 0].set_ylabel("share, accuracy")
    _limits(axes, drawn.values())
    note = "Neighbours of unseen instances (validation) among all training instances: K = 10, Euclidean, raw states."
    _legend(figure, drawn.values(), title=note)
    return figure


class _Panel:
    """What one small plot shows: a curve per layer, the controls beside it. False where no layer was measured."""

    def __init__(
        self, run: Run, *, measure: str, split: str, labels: str, spaces: Sequence[str] = ("raw",), **of: str
    ) -> None:
        where: dict[str, Any] = {"measure": measure, "split": split, "labels": labels, "spaces": spaces, **of}
        self.layers = _curves(pick(run, **where))
        self.bands = {control: _band(pick(run, control=control, **where)) for control in _BANDS}
        self.levels = {control: _level(pick(run, control=control, **where)) for control in _LEVELS}
        self.top = max(run.config.get("model", {}).get("layers", 0), *self.layers, 0)

    def __bool__(self) -> bool:
        return bool(self.layers)

    def draw(self, axis: Axes) -> None:
        for control, band in self.bands.items():
            if band is not None:
                epochs, low, high = band
                axis.fill_between(epochs, low - 0.004, high + 0.004, zorder=1, **_BANDS[control][1])
        for control, level in self.levels.items():
            if level is not None:
                axis.axhline(level, zorder=2, **_LEVELS[control][1])
        for layer, (epochs, values) in self.layers.items():
            axis.plot(epochs, values, color=layer_colour(layer, self.top), zorder=3 + layer, **_LINE)
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))

    def lowest(self) -> float:
        values = [values.min() for _, values in self.layers.values()]
        values += [band[1].min() for band in self.bands.values() if band is not None]
        return float(min([*values, *(level for level in self.levels.values() if level is not None)]))


_LINE: dict[str, Any] = {"linewidth": 1.1, "marker": "o", "markersize": 2.2, "markeredgewidth": 0}
_BANDS: dict[str, tuple[str, dict[str, Any]]] = {
    "shuffled": ("shuffled labels (all layers)", {"facecolor": "#d9d9d9", "edgecolor": "#bdbdbd", "linewidth": 0.6}),
    "regrouped": (
        "regrouped distributions (all layers)",
        {"facecolor": "none", "edgecolor": "#ababab", "linewidth": 0.6, "hatch": "/////"},
    ),
}
_LEVELS: dict[str, tuple[str, dict[str, Any]]] = {
    "surface_instruction": ("surface of the instruction", {"color": "#595959", "linewidth": 1.0, "dashes": (5, 2)}),
    "surface_prompt": ("surface of the prompt", {"color": "#7f7f7f", "linewidth": 1.0, "dashes": (1.5, 1.5)}),
}


def _curves(picked: pl.DataFrame) -> dict[int, tuple[np.ndarray, np.ndarray]]:
    """layer -> epochs, values."""
    rows = picked.drop_nulls(["epoch", "layer"])
    return {
        layer: (part["epoch"].to_numpy(), part["value"].to_numpy())
        for (layer,), part in rows.sort("layer", "epoch").group_by("layer", maintain_order=True)
    }


def _band(picked: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """epochs, lowest and highest value over the layers."""
    rows = picked.drop_nulls("epoch").group_by("epoch").agg(low=pl.col("value").min(), high=pl.col("value").max())
    if rows.is_empty():
        return None
    rows = rows.sort("epoch")
    return rows["epoch"].to_numpy(), rows["low"].to_numpy(), rows["high"].to_numpy()


def _level(picked: pl.DataFrame) -> float | None:
    """The one value of a control without epochs."""
    rows = picked.filter(pl.col("epoch").is_null())
    return None if rows.is_empty() else float(rows["value"][0])


def _limits(axes: np.ndarray, panels: Any) -> None:
    lowest = min(panel.lowest() for panel in panels if panel)
    axes[0, 0].set_ylim(min(-0.03, lowest - 0.03), 1.03)


def _legend(figure: Figure, panels: Any, *, title: str) -> None:
    """Below the plots: layers in order, at most nine of them, then the controls that were drawn."""
    drawn = [panel for panel in panels if panel]
    top = max(panel.top for panel in drawn)
    layers = sorted({layer for panel in drawn for layer in panel.layers})
    if len(layers) > 9:
        layers = [layers[place] for place in np.linspace(0, len(layers) - 1, 9).round().astype(int)]
    handles: list[Any] = [
        Line2D([], [], color=layer_colour(layer, top), label=layer_name(layer, top), **_LINE) for layer in layers
    ]
    controls: list[Any] = [
        Patch(label=words, **look)
        for control, (words, look) in _BANDS.items()
        if any(panel.bands[control] is not None for panel in drawn)
    ]
    controls += [
        Line2D([], [], label=words, **look)
        for control, (words, look) in _LEVELS.items()
        if any(panel.levels[control] is not None for panel in drawn)
    ]
    columns = 4
    if controls:  # in a column of their own: legends fill column by column
        blank = Line2D([], [], linestyle="", label=" ")
        depth = max(len(controls), min(4, len(handles)))
        columns = -(-len(handles) // depth)
        handles += [blank] * (columns * depth - len(handles))
        handles += controls + [blank] * (depth - len(controls))
        columns += 1
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, title=title, title_fontsize=8, frameon=False
    )
    legend.get_title().set_multialignment("center")


# --- Figure 3: loss and accuracy --------------------------------------------------------------------------------------


def _learning(run: Run) -> Figure | None:
    wanted = {
        "training loss": ("loss", "train"),
        "training subset accuracy": ("accuracy", "subset"),
        "validation accuracy": ("accuracy", "validation"),
    }
    curves = {}
    for words, (measure, split) in wanted.items():
        rows = pick(run, measure=measure, split=split).drop_nulls("epoch")
        if not rows.is_empty():
            curves[words] = (rows["epoch"].to_numpy(), rows["value"].to_numpy())
    if not curves:
        return None
    best = best_epoch(run)
    figure = Figure(figsize=(WIDTH, 2.7), layout="constrained")
    axes = figure.subplots(1, len(curves), sharex=True, squeeze=False)[0]
    for place, (axis, (words, (epochs, values))) in enumerate(zip(axes, curves.items(), strict=True)):
        axis.plot(epochs, values, color=layer_colour(1, 1), **_LINE)
        axis.set_title(f"({'abc'[place]}) {words}")
        axis.set_xlabel("epoch")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
        if "accuracy" in words:
            axis.set_ylim(-0.03, 1.03)
        if best is not None:
            axis.axvline(best.epoch, color=_BEST, linewidth=1.0, dashes=(4, 2), zorder=1)
    if best is not None:
        words = f"best epoch: {best.epoch}, validation accuracy {best.accuracy:.3f}"
        mark = Line2D([], [], color=_BEST, linewidth=1.0, dashes=(4, 2), label=words)
        figure.legend(handles=[mark], loc="outside lower center", frameon=False)
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
