"""What follows when a state is moved to another task: the share of answers that become that task's, by layer.

A panel for each arm, its controls in it; of one run, or the mean of several that differ in their seed alone.
"""

from collections.abc import Sequence
from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nucleate.report.drawing import WIDTH
from nucleate.report.seeds import spread_note
from nucleate.runs import Run

ARMS = {"mean": "mean", "mean_x2": "twice the mean", "mean_x3": "three times the mean", "state": "a whole state"}
_SPLITS = {"test": "unseen instructions (test)", "validation": "unseen instructions (validation)"}
_BESIDE = "transfer_others_unchanged"
_LOOKS: dict[str, tuple[str, dict[str, Any]]] = {  # control or measure -> words, look
    "none": ("moved to the other task", {"color": "#0072B2", "linewidth": 1.6, "marker": "o", "markersize": 3}),
    "answers": (
        "moved by the answers' states",
        {"color": "#E69F00", "linewidth": 1.1, "marker": "s", "markersize": 2.5},
    ),
    "regrouped": ("regrouped distributions", {"color": "#C35500", "linewidth": 1.0, "dashes": (5, 2)}),
    "random": ("a random direction", {"color": "#7f7f7f", "linewidth": 1.0, "dashes": (1.5, 1.5)}),
    "untrained": ("untrained network", {"color": "#8a6d3b", "linewidth": 1.0, "dashes": (3, 1, 1, 1)}),
    _BESIDE: ("other tasks' answers that stay", {"color": "#29A36F", "linewidth": 1.0, "dashes": (6, 1.5)}),
}


def transfer_figure(runs: Sequence[Run]) -> Figure | None:
    """None where nothing was moved."""
    tables = [run.metrics.filter(pl.col("experiment") == "transfer") for run in runs]
    split = next((one for one in _SPLITS if all(_has(rows, one) for rows in tables)), None)
    if split is None:
        return None
    tables = [rows.filter(pl.col("split") == split) for rows in tables]
    moved = tables[0].filter(pl.col("measure") == "transfer_target")
    arms = [arm for arm in ARMS if arm in set(moved["arm"])]
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots(1, len(arms), sharex=True, sharey=True, squeeze=False)[0]
    drawn: set[str] = set()
    for axis, arm in zip(axes, arms, strict=True):
        for name, (_, look) in _LOOKS.items():
            measure, control = (name, "none") if name == _BESIDE else ("transfer_target", name)
            line = _by_layer([rows.filter(measure=measure, arm=arm, control=control) for rows in tables])
            if line.is_empty():
                continue
            drawn.add(name)
            if (line["high"] > line["low"]).any():
                axis.fill_between(
                    line["layer"], line["low"], line["high"], alpha=0.15, linewidth=0, color=look["color"]
                )
            alone = {"marker": "o", "markersize": 3} if len(line) == 1 else {}  # of one layer there is no line
            axis.plot(line["layer"], line["mean"], **{**look, **alone})
        axis.set_title(ARMS[arm])
        axis.set_xlabel("layer")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=7, min_n_ticks=1))
    axes[0].set_ylim(-0.03, 1.03)
    axes[0].set_ylabel("share of answers that become\nthe other task's")
    handles = [Line2D([], [], label=words, **look) for name, (words, look) in _LOOKS.items() if name in drawn]
    notes = [f"{_SPLITS[split].capitalize()}. {_kept(tables)}", spread_note(runs)]
    title = "\n".join(note for note in notes if note)
    legend = figure.legend(
        handles=handles, loc="outside lower center", ncols=3, title=title, title_fontsize=8, frameon=False
    )
    legend.get_title().set_multialignment("center")
    return figure


def _has(rows: pl.DataFrame, split: str) -> bool:
    return not rows.filter(measure="transfer_target", control="none", split=split).is_empty()


def _by_layer(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """layer, mean, low, high of the layers that all have, layers rising."""
    value = pl.col("value")
    every = pl.concat(tables).group_by("layer").agg(pl.len(), mean=value.mean(), low=value.min(), high=value.max())
    return every.filter(pl.col("len") == len(tables)).sort("layer")


def _kept(tables: Sequence[pl.DataFrame]) -> str:
    """How many pairs there were to move: the number without which no share means anything."""
    shares = [rows.filter(measure="transfer_kept")["value"].item() for rows in tables]
    pairs = [rows.filter(measure="transfer_pairs", control="none")["value"].item() for rows in tables]
    low, high = f"{100 * min(shares):.0f}", f"{100 * max(shares):.0f}"
    share = low if low == high else f"{low} to {high}"
    count = f"{min(pairs):,.0f}" if min(pairs) == max(pairs) else f"{min(pairs):,.0f} to {max(pairs):,.0f}"
    return f"Kept, since answered as their own task when nothing is moved: {share} % of the pairs; {count} are moved."
