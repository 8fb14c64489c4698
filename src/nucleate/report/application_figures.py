"""The two applications (§4) as figures: pre-training with task identities (Figure 5b), alignment (Table 2 as curves).

Like every figure, they are functions of a run folder, or of several that differ in their seed alone, and give None
where that lacks their part.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nucleate.intervals import t_interval
from nucleate.long_table import HEADS, METHODS
from nucleate.report.application_tables import ALIGNMENT, ARMS, PAPER, SIDES, accuracy
from nucleate.report.drawing import WIDTH, draw_curve, plain
from nucleate.report.seeds import curve_over, spread_note
from nucleate.runs import Run

_GREY, _ORANGE, _LIGHT_BLUE, _BLUE = "#7f7f7f", "#E69F00", "#56B4E9", "#0072B2"
_ARM_LOOKS: dict[str, dict[str, Any]] = {
    "none": {"color": _GREY},
    "instruction": {"color": _ORANGE},
    "task_id": {"color": _BLUE},
    "longer": {"color": _GREY, "linestyle": (0, (3, 1.5))},
}
_METHOD_LOOKS: dict[str, dict[str, Any]] = {
    "direct": {"color": _GREY},
    "head": {"color": _ORANGE},
    "adapter": {"color": _ORANGE},
    "linear_switch": {"color": _LIGHT_BLUE},
    "mlp_switch": {"color": _BLUE},
}

_LEGEND: dict[str, Any] = {"frameon": False, "title_fontsize": 8}


def pretraining_figure(runs: Sequence[Run]) -> Figure | None:
    """Figure 5b: validation accuracy while each arm is fine-tuned."""
    curves = {
        side: {arm: curve_over([accuracy(run, arm + side, "validation") for run in runs]) for arm in ARMS}
        for side in SIDES
    }
    drawn = {side: lines for side, lines in curves.items() if any(len(line.epochs) for line in lines.values())}
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axis, (side, lines) in zip(axes, drawn.items(), strict=True):
        for arm, line in lines.items():
            draw_curve(axis, line, linewidth=1.3, **_ARM_LOOKS[arm])
        axis.set(title=f"fine-tuning on {SIDES[side]}", xlabel="epoch of fine-tuning", ylim=(-0.03, 1.03))
    axes[0].set_ylabel("validation accuracy")
    handles = [Line2D([], [], label=words, linewidth=1.3, **_ARM_LOOKS[arm]) for arm, words in ARMS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, **_LEGEND, title=spread_note(runs))
    return figure


def alignment_figure(runs: Sequence[Run]) -> Figure | None:
    """What each method teaches and what it costs, epoch by epoch, at its chosen learning rate (test)."""
    if "network" in runs[0].config:
        return _redirection_figure(runs[0])
    panels = {measure: ALIGNMENT[measure] for measure in PAPER}
    align = pl.col("experiment").eq("align") & pl.col("split").eq("test") & pl.col("epoch").is_not_null()
    curves = [run.metrics.filter(align & pl.col("measure").is_in(list(panels))) for run in runs]
    if not any(len(rows) for rows in curves):
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    for axis, (measure, words) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for method, name in METHODS.items():
            line = curve_over([rows.filter(arm=method, measure=measure) for rows in curves])
            draw_curve(axis, line, linewidth=1.3, label=name, **_METHOD_LOOKS[method])
        axis.set(title=words, xlabel="epoch of alignment")
    handles = axis.get_legend_handles_labels()
    figure.legend(*handles, loc="outside lower center", ncols=4, **_LEGEND, title=spread_note(runs))
    return figure


def drops_figure(runs: Sequence[Run]) -> Figure | None:
    """Table 2 over several seeds: the sources' accuracy and what all other tasks lost, a line for each seed."""
    chosen = pl.col("experiment").eq("align") & pl.col("split").eq("test") & pl.col("epoch").is_null()
    found = [run.metrics.filter(chosen) for run in runs]
    if len(runs) < 2 or not all(len(rows.filter(measure="accuracy_drop")) == len(METHODS) for rows in found):
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    for axis, (measure, paper) in zip(figure.subplots(1, 2), PAPER.items(), strict=True):
        points = [[rows.filter(arm=arm, measure=measure)["value"].item() for arm in METHODS] for rows in found]
        for values in points:
            axis.plot(range(len(METHODS)), values, color="#bdbdbd", linewidth=0.8, marker="o", markersize=2.5, zorder=1)
        for place, (method, of_seeds) in enumerate(zip(METHODS, zip(*points, strict=True), strict=True)):
            here = t_interval(of_seeds)
            axis.plot([place] * 2, here[1:], linewidth=2, zorder=2, **_METHOD_LOOKS[method])
            axis.plot(place, here.mean, marker="o", markersize=6, zorder=3, **_METHOD_LOOKS[method])
        axis.plot(range(len(METHODS)), paper, linestyle="", marker="x", color="black", markersize=6, zorder=4)
        axis.set_xticks(range(len(METHODS)), [words.replace(" ", "\n", 1) for words in METHODS.values()], fontsize=7.5)
        axis.set(title=ALIGNMENT[measure], xlim=(-0.4, len(METHODS) - 0.6))
    handles = [
        Line2D([], [], color="#bdbdbd", marker="o", markersize=2.5, linewidth=0.8, label="a seed"),
        Line2D([], [], color=_BLUE, marker="o", markersize=6, linewidth=2, label="mean, 95 % t-interval"),
        Line2D([], [], color="black", marker="x", linestyle="", label="the paper's (one run, validation)"),
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _redirection_figure(run: Run) -> Figure | None:
    """What each method teaches a real model, epoch by epoch, and how much of every other task it leaves as it was."""
    others = run.table("others")
    if others is None:
        return None
    curves = run.metrics.filter(pl.col("epoch").is_not_null(), split="validation", measure="source_accuracy")
    tasks = others.group_by("name").agg(pl.col("kept").mean()).sort("kept", "name")["name"].to_list()
    figure = Figure(figsize=(WIDTH, 1.5 + 0.19 * max(len(tasks), 8)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for method, words in (HEADS | METHODS).items():
        place = 1 if method == "adapter" else [*METHODS].index(method)  # it stands where the head would
        line = curves.filter(arm=method).sort("epoch")
        width = 1.3 + 1.2 * (len(METHODS) - 1 - place)  # lines that coincide lie inside each other
        look = {"marker": "o", **_METHOD_LOOKS[method]}
        left.plot(line["epoch"], line["value"], linewidth=width, markersize=2 + width, **look)
        kept = dict(others.filter(arm=method).select("name", "kept").iter_rows())
        where = [(kept[task], row + 0.18 * (place - 1.5)) for row, task in enumerate(tasks) if task in kept]
        if where:
            label = HEADS.get(method, words)
            right.plot(*zip(*where, strict=True), linestyle="", markersize=3, label=label, **look)
    left.set(title="source: wished output (validation)", xlabel="epoch of alignment", ylim=(-0.03, 1.03))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    right.set(title="other tasks: prediction unchanged", xlabel="share of prompts (test)", xlim=(-0.03, 1.03))
    right.set_yticks(range(len(tasks)), [plain(task, 28) for task in tasks], fontsize=7)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
