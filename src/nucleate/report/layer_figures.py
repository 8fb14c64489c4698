"""Figures 2, 4, 5a and 6 to 10: a small plot with a line for each layer over the epochs, controls in grey.

Of one run, or of several that differ in their seed alone: then a line is their mean, in a band from the lowest to the
highest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nucleate.long_table import Score, pick
from nucleate.report.drawing import LINE, WIDTH, draw_curve, layer_colour, layer_name
from nucleate.report.seeds import Curve, curve_over, spread_note
from nucleate.runs import Run

SPLITS = {"subset": "training subset", "validation": "validation"}
LABELS = {"task": "task", "distribution": "distribution", "distribution_mapping": "distribution-mapping"}
MEASURES = {"f1": "F1", "ari": "ARI", "ami": "AMI"}
BEST_OF = ("raw", "tsne")
BEST_OF_NOTE = (
    "Every point is the better of raw states and t-SNE, as in the paper; the controls are given the same choice,\n"
    "since choosing after the labels are known flatters."
)


def clustering_figure(runs: Sequence[Run], measures: Sequence[str], **of: str) -> Figure | None:
    """Rows: measures within splits; columns: kinds of labels (Figures 2, 5a, 6, 7, 9). `of` goes to `pick`."""
    panels = {
        (split, measure, labels): _LayerPlot(runs, measure=measure, split=split, labels=labels, spaces=BEST_OF, **of)
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
    _legend(figure, panels.values(), BEST_OF_NOTE, spread_note(runs))
    return figure


def neighbours_figure(runs: Sequence[Run]) -> Figure | None:
    """Same-task share of the nearest training instances; accuracy of answering as they do (Figures 4, 8, 10)."""
    plots = {
        "same-task share of the K nearest": _LayerPlot(runs, measure="knn_share", split="validation", labels="task"),
        "KNN accuracy": _LayerPlot(runs, measure="knn_accuracy", split="validation", labels="task"),
    }
    note = "Neighbours of unseen instances (validation) among all training instances: K = 10, Euclidean, raw states."
    return _in_a_row(runs, plots, "share, accuracy", note, height=3.7)


def variance_figure(runs: Sequence[Run]) -> Figure | None:
    """What the states are made of: the share of their variance between inputs, between tasks and between outputs."""
    plots = {
        f"between {name}s": _LayerPlot(runs, measure=f"variance_{name}", split="validation", labels=None)
        for name in ("input", "task", "output")
    }
    note = (
        "Raw states at the input token, validation. The shares overlap, as input and task together name the output;\n"
        "they are not corrected for the number of classes, so that epochs and layers compare and panels hardly do."
    )
    return _in_a_row(runs, plots, "share of the variance", note, height=3.3)


def _in_a_row(
    runs: Sequence[Run], plots: Mapping[str, "_LayerPlot"], measured: str, note: str, *, height: float
) -> Figure | None:
    """One plot beside the other, by their titles; None where nothing was measured."""
    drawn = {title: plot for title, plot in plots.items() if plot}
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)
    for place, (title, plot) in enumerate(drawn.items()):
        plot.draw(axes[0, place])
        axes[0, place].set_title(f"({'abc'[place]}) {title}")
        axes[0, place].set_xlabel("epoch")
    axes[0, 0].set_ylabel(measured)
    _limits(axes, drawn.values())
    _legend(figure, drawn.values(), note, spread_note(runs))
    return figure


class _LayerPlot:
    """What one small plot shows: a curve per layer, the controls beside it. False where no layer was measured."""

    def __init__(
        self,
        runs: Sequence[Run],
        *,
        measure: str,
        split: str,
        labels: str | None,
        spaces: tuple[str, ...] = ("raw",),
        **of: str,
    ) -> None:
        score = Score(measure, split, labels, spaces, **{"experiment": "learn", "arm": "main", **of})

        def picked(control: str) -> list[pl.DataFrame]:
            return [pick(run.metrics, score, control) for run in runs]

        self.layers = _curves(picked("none"))
        self.bands = {control: _band(pl.concat(picked(control))) for control in _BANDS}
        self.levels = {control: _level(pl.concat(picked(control))) for control in _LEVELS}
        self.top = max(runs[0].config.get("model", {}).get("layers", 0), *self.layers, 0)

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
        for layer, line in self.layers.items():
            draw_curve(axis, line, color=layer_colour(layer, self.top), zorder=3 + layer, **LINE)

    def lowest(self) -> float:
        values = [line.low.min() for line in self.layers.values()]
        values += [band[1].min() for band in self.bands.values() if band is not None]
        return float(min([*values, *(level for level in self.levels.values() if level is not None)]))


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
    "answers": ("right answers alone", {"color": "#a33d1f", "linewidth": 1.0, "dashes": (6, 1.5, 1, 1.5)}),
}


def _curves(picked: Sequence[pl.DataFrame]) -> dict[int, Curve]:
    """layer -> its curve, of every layer that all runs measured."""
    layers = {layer for layer in picked[0]["layer"] if layer is not None}
    curves = {layer: curve_over([rows.filter(pl.col("layer") == layer) for rows in picked]) for layer in sorted(layers)}
    return {layer: curve for layer, curve in curves.items() if len(curve.epochs)}


def _band(picked: pl.DataFrame) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """epochs, lowest and highest value over layers and runs."""
    rows = picked.drop_nulls("epoch").group_by("epoch").agg(low=pl.col("value").min(), high=pl.col("value").max())
    if rows.is_empty():
        return None
    rows = rows.sort("epoch")
    return rows["epoch"].to_numpy(), rows["low"].to_numpy(), rows["high"].to_numpy()


def _level(picked: pl.DataFrame) -> float | None:
    """The value of a control without epochs; the mean of several runs."""
    rows = picked.filter(pl.col("epoch").is_null())
    return None if rows.is_empty() else float(rows["value"].to_numpy().mean())


def _limits(axes: np.ndarray, panels: Any) -> None:
    lowest = min(panel.lowest() for panel in panels if panel)
    axes[0, 0].set_ylim(min(-0.03, lowest - 0.03), 1.03)


def _legend(figure: Figure, panels: Any, *notes: str | None) -> None:
    """Below the plots: what they show; layers in order, at most nine of them, then the controls that were drawn."""
    drawn = [panel for panel in panels if panel]
    top = max(panel.top for panel in drawn)
    layers = sorted({layer for panel in drawn for layer in panel.layers})
    if len(layers) > 9:
        layers = [layers[place] for place in np.linspace(0, len(layers) - 1, 9).round().astype(int)]
    handles: list[Any] = [
        Line2D([], [], color=layer_colour(layer, top), label=layer_name(layer, top), **LINE) for layer in layers
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
    title = "\n".join(note for note in notes if note)
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=columns, title=title, title_fontsize=8, frameon=False
    )
    legend.get_title().set_multialignment("center")
