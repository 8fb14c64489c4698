"""Figure 1: one task of a dataset with its mappings and instructions, and a hard example beside its original."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

from nucleate.report.drawing import WIDTH, plain, save, style

_GREEN, _PINK, _RED, _GREY = "#2a7f3f", "#b0366f", "#c4201f", "#666666"
_CELL = 8.5 * 0.602 / 72  # inches: one character of DejaVu Sans Mono at 8.5 points
_LINE_HEIGHT = 0.175


def figure_1(frame: pl.DataFrame, facts: Mapping[str, Any] | None, folder: Path) -> list[Path]:
    """Figure 1 of a dataset (the rows of dataset.parquet, the content of dataset.json) without any run."""
    with style():
        figure = dataset_figure(frame, facts or {})
        return save(figure, folder, "figure_1_dataset") if figure is not None else []


def dataset_figure(frame: pl.DataFrame | None, facts: Mapping[str, Any]) -> Figure | None:
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
    draw = _InchAxis(axis)

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


def _pair(draw: "_InchAxis", original: Mapping[str, Any], hard: Mapping[str, Any], *, top: float) -> None:
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


class _InchAxis:
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
