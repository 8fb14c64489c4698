"""The paper's figures, drawn from a run folder alone, as PNG and SVG.

`draw_figures` comes first; each figure is a function of the run that gives None where its part was not measured.
The same run gives the same bytes. All text is plain: no `$` or `_` of a data file is read as mathematics.
"""

import io
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
from matplotlib.ticker import MaxNLocator

from nucleate.report.application_figures import alignment_figure, pretraining_figure
from nucleate.report.tables import best_epoch, pick
from nucleate.runs import Run, write_whole

WIDTH = 7.2  # inches: the text width of a page, so that 8 points stay 8 points in print
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
    with _style():
        for name, draw in figures_of(run).items():
            figure = draw()
            if figure is not None:
                paths += _save(figure, folder, name)
    return paths


def draw_svg(run: Run) -> dict[str, tuple[bytes, int, int]]:
    """The same figures in memory, for the page: name -> SVG, width and height in CSS pixels (96 an inch)."""
    drawn = {}
    with _style():
        for name, draw in figures_of(run).items():
            figure = draw()
            if figure is not None:
                width, height = figure.get_size_inches()
                drawn[name] = (_encoded(figure, "svg"), round(width * 96), round(height * 96))
    return drawn


def figure_1(frame: pl.DataFrame, facts: Mapping[str, Any] | None, folder: Path) -> list[Path]:
    """Figure 1 of a dataset (the rows of dataset.parquet, the content of dataset.json) without any run."""
    with _style():
        figure = _dataset(frame, facts or {})
        return _save(figure, folder, "figure_1_dataset") if figure is not None else []


def figures_of(run: Run) -> dict[str, Callable[[], Figure | None]]:
    """name -> what draws it; the numbers of the later ones follow the network's width, as in the paper."""
    if run.config.get("verb") == "probe":
        from nucleate.report.probe_figures import probe_figures  # which draws with the pens of this file

        return probe_figures(run)
    width = run.config.get("model", {}).get("width")
    clustering, neighbours = {32: (7, 8), 2048: (9, 10)}.get(width, (6, 4))
    figures: dict[str, Callable[[], Figure | None]] = {
        "figure_1_dataset": lambda: _dataset(run.dataset, run.dataset_facts or {}),
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


def layer_colour(layer: int, top: int) -> tuple[float, float, float, float]:
    """From orange (layer 0) through magenta to dark blue (the last layer): ordered in lightness, readable on white."""
    return matplotlib.colormaps["plasma"](0.80 * (1 - layer / top) if top else 0.0)


def layer_name(layer: int, top: int) -> str:
    """How a legend calls a layer."""
    return f"layer {layer}" + (" (embedding)" if layer == 0 else " (last)" if layer == top else "")


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

# Okabe and Ito's colours and two more: told apart with any common colour blindness.
_TEN = (
    "#278BDE", "#E6A15A", "#29A36F", "#C35500", "#CC78A5",
    "#57B6EA", "#121300", "#BEAC05", "#76499E", "#6E5F62",
)  # fmt: skip


def task_colour(place: int, count: int) -> tuple[float, float, float]:
    """Colour-blind-safe up to ten tasks; beyond, hues a golden angle apart at three lightnesses."""
    if count <= len(_TEN):
        return matplotlib.colors.to_rgb(_TEN[place])
    hue, value = (place * 0.381966) % 1.0, (0.85, 0.62, 0.42)[place % 3]
    red, green, blue = matplotlib.colors.hsv_to_rgb((hue, 0.8, value))
    return float(red), float(green), float(blue)


def _spread(values: Sequence[int], count: int) -> list[int]:
    """At most `count` of the values, first and last among them, evenly placed."""
    if len(values) <= count:
        return list(values)
    return [values[place] for place in np.linspace(0, len(values) - 1, count).round().astype(int)]


# --- Figure 1: the dataset --------------------------------------------------------------------------------------------

_GREEN, _PINK, _RED, _GREY = "#2a7f3f", "#b0366f", "#c4201f", "#666666"
_CELL = 8.5 * 0.602 / 72  # inches: one character of DejaVu Sans Mono at 8.5 points
_LINE_HEIGHT = 0.175


def _dataset(frame: pl.DataFrame | None, facts: Mapping[str, Any]) -> Figure | None:
    """One task with its mappings (green) and instruction distributions (pink); a hard example beside its original."""
    if frame is None or frame.is_empty():
        return None
    task, pair = _example(frame)
    of_task = frame.filter((pl.col("task") == task) & (pl.col("split") == "train"))
    of_task = of_task if not of_task.is_empty() else frame.filter(pl.col("task") == task)
    distributions = of_task["distribution"].drop_nulls().unique(maintain_order=True).to_list()
    mappings = list((facts.get("mappings", {}).get(task) or _seen_mappings(of_task)).items())
    shown, per_distribution = distributions[:3], 3
    right = sum(0.42 + _LINE_HEIGHT * (per_distribution + 1) for _ in shown) or 1.2
    left = 0.62 + _LINE_HEIGHT * min(len(mappings), 8)
    middle = max(right, left)
    height = 0.45 + middle + (1.45 if pair else 0.1)
    figure = Figure(figsize=(WIDTH, height))
    axis = figure.add_axes((0, 0, 1, 1))
    axis.set(xlim=(0, WIDTH), ylim=(0, height))
    axis.set_axis_off()
    draw = _Pen(axis)

    ordinary = frame.filter(~pl.col("is_hard"))
    hard_tasks = frame.filter(pl.col("is_hard"))["task"].n_unique()
    facts_line = f"tasks: {ordinary['task'].n_unique()}; distributions: {ordinary['distribution'].n_unique()}; "
    facts_line += f"hard tasks beside them: {hard_tasks}; " if hard_tasks else ""
    draw.words(0.1, height - 0.2, f"{facts_line}instances: {len(frame):,}. One task:", size=9)

    y = height - 0.45
    draw.box(0.1, y - middle + 0.1, 1.55, middle - 0.1, _GREEN)
    draw.words(0.2, y - 0.17, "task", colour=_GREEN, size=9, weight="bold")
    draw.text(0.2 + 0.4, y - 0.17, task, 13, colour=_GREEN)
    draw.words(0.2, y - 0.42, "input → output", colour=_GREY)
    for place, (source, target) in enumerate(mappings[:8]):
        draw.text(0.3, y - 0.62 - place * _LINE_HEIGHT, f"{plain(source, 7)} → {plain(target, 7)}", 17)
    if len(mappings) > 8:
        draw.words(0.3, y - 0.62 - 8 * _LINE_HEIGHT, f"… {len(mappings)} in all", colour=_GREY)

    for distribution in shown:
        bottom = y - 0.42 - _LINE_HEIGHT * (per_distribution + 1) + 0.1
        draw.box(1.8, bottom, WIDTH - 1.9, y - bottom, _PINK)
        draw.words(1.9, y - 0.17, "distribution", colour=_PINK, size=9, weight="bold")
        draw.text(2.85, y - 0.17, distribution, 16, colour=_PINK)
        pattern = facts.get("patterns", {}).get(distribution)
        if pattern is not None:
            x = 2.85 + _CELL * (len(plain(distribution, 16)) + 2)
            draw.text(x, y - 0.17, pattern, int((WIDTH - 0.25 - x) / _CELL), colour=_GREY)
        member = of_task.filter(pl.col("distribution") == distribution)
        instructions = member["instruction"].unique(maintain_order=True).to_list()
        for place, instruction in enumerate(instructions[:per_distribution]):
            draw.cells(2.0, y - 0.40 - place * _LINE_HEIGHT, instruction, WIDTH - 0.15)
        rest = len(instructions) - per_distribution
        if rest > 0:
            draw.words(2.0, y - 0.40 - per_distribution * _LINE_HEIGHT, f"… and {rest} more", colour=_GREY)
        y = bottom - 0.1
    if len(distributions) > len(shown):
        words = f"{len(distributions)} distributions, {len(shown)} of them shown"
        draw.words(WIDTH - 0.1, height - 0.2, words, colour=_GREY, align="right")
    if pair:
        _pair(draw, *pair, top=height - 0.45 - middle - 0.02)
    return figure


def _pair(draw: "_Pen", original: Mapping[str, Any], hard: Mapping[str, Any], *, top: float) -> None:
    """Original and hard instruction, symbol under symbol; what was replaced stands in a red frame."""
    draw.box(0.1, 0.1, WIDTH - 0.2, top - 0.1, _GREY)
    words = "A hard example beside its original: one symbol replaced, another task, the same inputs, other outputs."
    draw.words(0.2, top - 0.18, words)
    old, new = str(original["instruction"]).split(" "), str(hard["instruction"]).split(" ")
    changed = {place for place, (a, b) in enumerate(zip(old, new, strict=False)) if a != b}
    for y, name, row in ((top - 0.48, "original", original), (top - 0.92, "hard", hard)):
        draw.words(0.2, y, name, colour=_RED if name == "hard" else "black", weight="bold")
        draw.cells(0.85, y, row["instruction"], WIDTH - 0.2, marked=changed, around=min(changed, default=0))
        end = f"{plain(row['input'], 12)} → {plain(row['output'] or '?', 12)}"
        draw.text(0.85, y - _LINE_HEIGHT, end, 30, colour="black")
        draw.words(3.2, y - _LINE_HEIGHT, "task", colour=_GREEN)
        draw.text(3.5, y - _LINE_HEIGHT, row["task"], 40, colour=_GREEN)


def _example(frame: pl.DataFrame) -> tuple[str, tuple[dict[str, Any], dict[str, Any]] | None]:
    """The task to show: the one with most distributions among those that hard examples were made from."""
    hard = frame.filter(pl.col("is_hard") & pl.col("origin").is_not_null()).sort("instance")
    pairs = hard.join(frame, left_on="origin", right_on="instance", suffix="_original", maintain_order="left")
    sources = frame.filter(pl.col("task").is_in(pairs["task_original"].implode())) if len(pairs) else frame
    spread = sources.group_by("task", maintain_order=True).agg(pl.col("distribution").n_unique())
    task = spread.sort("distribution", descending=True, maintain_order=True)["task"][0]
    if pairs.is_empty():
        return task, None
    one = pairs.filter(pl.col("task_original") == task).row(0, named=True)
    original = frame.filter(pl.col("instance") == one["origin"]).row(0, named=True)
    return task, (original, {name: one[name] for name in frame.columns})


def _seen_mappings(rows: pl.DataFrame) -> dict[str, str]:
    """Input -> output as the instances show them."""
    return {
        row["input"]: row["output"] or "?"
        for row in rows.select("input", "output").unique(maintain_order=True).to_dicts()
    }


class _Pen:
    """Writes on an axis whose units are inches. Text of the data is monospaced, so that its width is known."""

    def __init__(self, axis: Axes) -> None:
        self.axis = axis

    def box(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        shape = FancyBboxPatch((x, y), width, height, boxstyle="round,pad=0,rounding_size=0.06")
        shape.set(facecolor=(*matplotlib.colors.to_rgb(colour), 0.06), edgecolor=colour, linewidth=0.9)
        self.axis.add_patch(shape)

    def words(
        self, x: float, y: float, text: str, *, colour: str = "black", size: float = 8.5, align: str = "left",
        weight: str = "normal",
    ) -> None:  # fmt: skip
        self.axis.text(x, y, text, color=colour, fontsize=size, ha=align, va="center", fontweight=weight)

    def text(self, x: float, y: float, text: str, limit: int, *, colour: str = "black") -> None:
        self.axis.text(x, y, plain(text, limit), color=colour, va="center", fontsize=8.5, family="DejaVu Sans Mono")

    def cells(
        self, x: float, y: float, text: object, end: float, *, marked: set[int] | None = None, around: int = 0
    ) -> None:
        """The words of a text, each at its own place, until `end`; begins later where word `around` would be cut."""
        symbols = [plain(symbol, 24) for symbol in str(text).split(" ")]
        gap = 0.6 * _CELL if max(map(len, symbols)) == 1 else _CELL
        begin = 0
        while _reach(symbols[begin : around + 1], gap) + 4 * _CELL > end - x and begin < around:
            begin += 1
        if begin:
            self.text(x, y, "…", 1, colour=_GREY)
            x += 2 * _CELL
        for place, symbol in enumerate(symbols[begin:], start=begin):
            width = _CELL * len(symbol)
            if x + width + (2 * _CELL if place < len(symbols) - 1 else 0) > end:
                self.text(x, y, "…", 1, colour=_GREY)
                break
            if marked and place in marked:
                frame = FancyBboxPatch(
                    (x - 0.02, y - 0.085), width + 0.04, 0.17, boxstyle="round,pad=0,rounding_size=0.03"
                )
                frame.set(facecolor="#ffe3e0", edgecolor=_RED, linewidth=0.9)
                self.axis.add_patch(frame)
            self.text(x, y, symbol, 24, colour=_RED if marked and place in marked else "black")
            x += width + gap


def _reach(symbols: Sequence[str], gap: float) -> float:
    return sum(_CELL * len(symbol) + gap for symbol in symbols)


# --- text, style, files -----------------------------------------------------------------------------------------------


def plain(text: object, limit: int) -> str:
    """Text of a data file made fit to draw: one line, at most `limit` characters, `□` for what the font lacks."""
    words = str(text)
    cut = words if len(words) <= limit else words[: limit - 1] + "…"
    known = _drawable()
    return "".join(
        " " if sign.isspace() else sign if ord(sign) in known and unicodedata.category(sign)[0] != "C" else "□"
        for sign in cut
    )


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Code points that both fonts of the figures have (they come with matplotlib)."""
    fonts = (get_font(findfont(FontProperties(family=name))) for name in ("DejaVu Sans", "DejaVu Sans Mono"))
    sans, mono = (frozenset(font.get_charmap()) for font in fonts)
    return sans & mono


@contextmanager
def _style() -> Iterator[None]:
    """The look of every figure; a user's own matplotlib settings are put aside meanwhile: same run, same bytes."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "axes.grid": True,
                "axes.labelsize": 8.5,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlesize": 9,
                "font.family": ["DejaVu Sans"],
                "font.size": 8.5,
                "grid.color": "#ececec",
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "hatch.linewidth": 0.5,
                "legend.fontsize": 8,
                "legend.columnspacing": 1.4,
                "svg.fonttype": "none",  # text stays text: it can be searched, selected and read aloud
                "svg.hashsalt": "nucleate",
                "text.parse_math": False,
                "xtick.labelsize": 8,
                "ytick.labelsize": 8,
            }
        )
        yield


def _save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """PNG and SVG of one layout, each appearing whole."""
    contents = {"svg": _encoded(figure, "svg")}  # first, so that it is the one of `draw_svg`
    figure.set_layout_engine("none")  # arranging a second time would move things by a hair
    contents["png"] = _encoded(figure, "png")
    paths = {ending: folder / f"{name}.{ending}" for ending in ("png", "svg")}
    for ending, path in paths.items():
        write_whole(path, partial(_write, content=contents[ending]))
    return list(paths.values())


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _encoded(figure: Figure, ending: str) -> bytes:
    """PNG or SVG without dates or versions inside."""
    content = io.BytesIO()
    nothing = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[ending]
    figure.savefig(content, format=ending, dpi=150, metadata=nothing)
    return content.getvalue()
