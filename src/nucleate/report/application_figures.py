"""The two applications (§4) as figures and tables: pre-training with task identities (Figure 5), alignment (Table 2).

Like every figure and table, they are functions of a run folder and give None, or no rows, where it lacks their part.
"""

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from nucleate.report.pens import WIDTH, plain
from nucleate.report.tables import Table
from nucleate.runs import Run

ARMS = {  # of a pre-training run: in words, and as they are drawn
    "none": ("no pre-training", {"color": "#7f7f7f"}),
    "instruction": ("instruction pre-training", {"color": "#E69F00"}),
    "task_id": ("task-id pre-training", {"color": "#0072B2"}),
    "longer": ("no pre-training, longer by its steps", {"color": "#7f7f7f", "linestyle": (0, (3, 1.5))}),
}
SIDES = {"": "tasks of the pre-training", "_unseen": "tasks not in the pre-training"}


def pretraining_figure(run: Run) -> Figure | None:
    """Figure 5b: validation accuracy while each arm is fine-tuned."""
    curves = {side: {arm: _accuracy(run, arm + side, "validation") for arm in ARMS} for side in SIDES}
    drawn = {side: lines for side, lines in curves.items() if any(len(line) for line in lines.values())}
    if not drawn:
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    axes = figure.subplots(1, len(drawn), sharey=True, squeeze=False)[0]
    for axis, (side, lines) in zip(axes, drawn.items(), strict=True):
        for arm, line in lines.items():
            axis.plot(line["epoch"], line["value"], linewidth=1.3, **_look(arm))
        axis.set(title=f"fine-tuning on {SIDES[side]}", xlabel="epoch of fine-tuning", ylim=(-0.03, 1.03))
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    axes[0].set_ylabel("validation accuracy")
    handles = [Line2D([], [], label=words, linewidth=1.3, **_look(arm)) for arm, (words, _) in ARMS.items()]
    figure.legend(handles=handles, loc="outside lower center", ncols=2, frameon=False)
    return figure


def pretraining_table(run: Run) -> Table:
    """A row per arm: how fast validation accuracy rose, accuracy in the last tenth of the epochs, and, of the
    pre-training, the chosen epoch and its accuracy in naming the task (validation)."""
    measures = ("area_under_curve", "epochs_to_50", "epochs_to_80", "epochs_to_90")
    header = ("arm", "epochs", *measures, "final validation", "final test", "pre-trained to epoch", "task named")
    rows: list[Any] = []
    for arm in (arm + side for side in SIDES for arm in ARMS):
        validation, test = (_accuracy(run, arm, split) for split in ("validation", "test"))
        if not len(validation):
            continue
        single = {row["measure"]: row["value"] for row in _rows(run, arm).filter(pl.col("epoch").is_null()).to_dicts()}
        late = (pl.col("epoch") > 0.9 * pl.col("epoch").max()) | (pl.col("epoch") == pl.col("epoch").max())
        finals = [curve.filter(late)["value"].mean() for curve in (validation, test)]
        epoch = run.manifest.get("chosen_epochs", {}).get(arm)
        named = _rows(run, arm, "task_id_accuracy", "validation", read="task_token")
        at = named.filter(pl.col("epoch").eq_missing(epoch))["value"].to_list()
        speeds = [single.get(measures[0]), *(int(single[name]) if name in single else None for name in measures[1:])]
        rows.append((arm, validation["epoch"].max(), *speeds, *finals, epoch, at[0] if at else None))
    return Table(header, rows)


def _look(arm: str) -> dict[str, Any]:
    return ARMS[arm][1]  # type: ignore[return-value]


def _accuracy(run: Run, arm: str, split: str) -> pl.DataFrame:
    """epoch, value."""
    return _rows(run, arm, "accuracy", split).drop_nulls("epoch").select("epoch", "value").sort("epoch")


def _rows(
    run: Run, arm: str, measure: str | None = None, split: str | None = None, read: str | None = None
) -> pl.DataFrame:
    same = pl.col("experiment").eq("pretrain") & pl.col("arm").eq(arm) & pl.col("read").eq_missing(read)
    for column, value in {"measure": measure, "split": split}.items():
        if value is not None:
            same &= pl.col(column).eq(value)
    return run.metrics.filter(same)


# --- alignment (Table 2) ---------------------------------------------------------------------------------------------

METHODS = {
    "direct": ("direct fine-tuning", {"color": "#7f7f7f"}),
    "head": ("language head", {"color": "#E69F00"}),
    "linear_switch": ("linear switch", {"color": "#56B4E9"}),
    "mlp_switch": ("MLP switch", {"color": "#0072B2"}),
}
ALIGNMENT = {  # measure -> what it is; the first two are Table 2
    "source_accuracy": "source tasks: accuracy",
    "accuracy_drop": "all other tasks: accuracy drop",
    "accuracy_drop_n2": "all other tasks: drop with 2 examples of each",
    "accuracy_drop_n5": "all other tasks: drop with 5 examples of each",
    "accuracy_drop_n10": "all other tasks: drop with 10 examples of each",
    "accuracy_drop_others": "all other tasks but the targets: drop",
    "others_kept": "all other tasks: answers unchanged",
    "switch_false_positives": "all other tasks: switched",
    "switch_misses": "source tasks: not switched",
    "conditional_source_accuracy": "only after a further symbol: sources with it",
    "conditional_sources_kept": "only after a further symbol: sources without it",
    "conditional_sources_kept_n10": "only after a further symbol: the same, 10 examples of each",
    "conditional_accuracy_drop_others": "only after a further symbol: drop of the others",
    "second_source_accuracy": "second correction: its sources",
    "second_sources_kept": "second correction: the sources of the first",
    "second_accuracy_drop_others": "second correction: drop of the others",
}
REDIRECTION = {  # the same of a real model
    "source_accuracy": "source: wished output",
    "source_accuracy_ended": "source: wished output and then its end",
    "source_accuracy_restricted": "source: first among the wished outputs",
    "source_accuracy_new_inputs": "unseen inputs: wished output",
    "source_accuracy_ended_new_inputs": "unseen inputs: wished output and then its end",
    "source_accuracy_restricted_new_inputs": "unseen inputs: first among the wished outputs",
    "switch_misses": "source: not switched",
    "switch_misses_new_inputs": "unseen inputs: not switched",
    "others_kept": "all others: prediction unchanged",
    "others_kept_no_target": "all others but the target: prediction unchanged",
    "switch_false_positives": "all others: switched",
    "others_accuracy": "all others: accuracy",
    "accuracy_drop": "all others: accuracy lost",
    "accuracy_drop_others": "all others but the target: accuracy lost",
}


def alignment_table(run: Run) -> Table:
    """A row per measure on test, a column per method: Table 2 and what goes beyond it; of a real model also a column
    for the network as it was."""
    rows = run.metrics.filter(pl.col("experiment").eq("align") & pl.col("split").eq("test") & pl.col("epoch").is_null())
    found = {(row["arm"], row["measure"]): row["value"] for row in rows.to_dicts()}
    names, told = {method: words for method, (words, _) in METHODS.items()}, ALIGNMENT
    if "network" in run.config:  # of a real model the head alone is tuned, where even that is affordable
        names, told = {"main": "before", **names, "direct": "whole head", "head": "low-rank head"}, REDIRECTION
        if "target" not in run.config:  # then all others are all others but the target
            told = {measure: words for measure, words in told.items() if "but the target" not in words}
    arms = [arm for arm in names if any(found_arm == arm for found_arm, _ in found)]
    listed: list[Any] = [
        (words, *(found.get((arm, measure)) for arm in arms))
        for measure, words in told.items()
        if any((arm, measure) in found for arm in arms)
    ]
    return Table(("on test", *(names[arm] for arm in arms)), listed)


PAPER = {"source_accuracy": (1.0, 1.0, 1.0, 1.0), "accuracy_drop": (0.210, 0.120, 0.087, 0.080)}  # Table 2


def alignment_over_seeds(runs: Sequence[Run]) -> list[tuple[str, Table]]:
    """Table 2 over runs that differ in nothing but their seed: a title and a table for each two or more of them.

    Cells hold the mean and Student's 95 % interval; below the drop, how much smaller it is than that of the method to
    the left, seed by seed, which is what the paper's ordering says."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        if run.config.get("verb") == "align" and "network" not in run.config:
            settings = {name: value for name, value in run.config.items() if name not in ("seed", "device")}
            groups.setdefault(json.dumps(settings, sort_keys=True), {})[run.config["seed"]] = run
    return [_over_seeds(group) for group in groups.values() if len(group) > 1]


def _over_seeds(runs: Mapping[int, Run]) -> tuple[str, Table]:
    frames = [run.metrics.filter(pl.col("split").eq("test") & pl.col("epoch").is_null()) for run in runs.values()]
    whole = pl.concat(frames).filter(experiment="align")
    found = {
        (arm, measure): rows.sort("seed")["value"].to_numpy()
        for (arm, measure), rows in whole.group_by("arm", "measure")
        if len(rows) == len(runs)
    }
    rows: list[Any] = []
    for measure, words in ALIGNMENT.items():
        values = {method: found[method, measure] for method in METHODS if (method, measure) in found}
        if values:
            rows.append((words, *(_with_interval(values[m]) if m in values else "" for m in METHODS)))
        if measure == "accuracy_drop" and len(values) == len(METHODS):
            steps = [_with_interval(worse - better) for worse, better in pairwise(values.values())]
            rows.append(("all other tasks: drop less than the one before by", "", *steps))
        if measure in PAPER:
            rows.append((f"{words} (paper)", *(f"{value:.3f}" for value in PAPER[measure])))
    run = next(iter(runs.values()))
    seeds = ", ".join(map(str, sorted(runs)))
    title = f"Table 2, size {run.config['size']}, seeds {seeds}: mean, 95 % t-interval (paper: one run, validation)"
    return title, Table(("on test", *(words for words, _ in METHODS.values())), rows)


def _with_interval(values: np.ndarray) -> str:
    from scipy.stats import sem, t

    half = t.ppf(0.975, len(values) - 1) * sem(values)
    numbers = (values.mean(), values.mean() - half, values.mean() + half)
    return "{} [{}, {}]".format(*(f"{number:.3f}".replace("-0.000", "0.000") for number in numbers))


def alignment_figure(run: Run) -> Figure | None:
    """What each method teaches and what it costs, epoch by epoch, at its chosen learning rate (test)."""
    if "network" in run.config:
        return _redirection_figure(run)
    panels = {"source_accuracy": "source tasks: accuracy", "accuracy_drop": "all other tasks: accuracy drop"}
    align = pl.col("experiment").eq("align") & pl.col("split").eq("test") & pl.col("epoch").is_not_null()
    curves = run.metrics.filter(align & pl.col("measure").is_in(list(panels))).sort("epoch")
    if not len(curves):
        return None
    figure = Figure(figsize=(WIDTH, 3.3), layout="constrained")
    for axis, (measure, words) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for method, (name, look) in METHODS.items():
            line = curves.filter(pl.col("arm").eq(method) & pl.col("measure").eq(measure))
            axis.plot(line["epoch"], line["value"], linewidth=1.3, label=name, **look)
        axis.set(title=words, xlabel="epoch of alignment")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


def _redirection_figure(run: Run) -> Figure | None:
    """What each method teaches a real model, epoch by epoch, and how much of every other task it leaves as it was."""
    if not (run.folder / "others.parquet").is_file():
        return None
    others = pl.read_parquet(run.folder / "others.parquet")
    curves = run.metrics.filter(pl.col("epoch").is_not_null(), split="validation", measure="source_accuracy")
    tasks = others.group_by("name").agg(pl.col("kept").mean()).sort("kept", "name")["name"].to_list()
    figure = Figure(figsize=(WIDTH, 1.5 + 0.19 * max(len(tasks), 8)), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (method, (words, look)) in enumerate(METHODS.items()):
        line = curves.filter(arm=method).sort("epoch")
        width = 1.3 + 1.2 * (len(METHODS) - 1 - place)  # lines that coincide lie inside each other
        left.plot(line["epoch"], line["value"], linewidth=width, marker="o", markersize=2 + width, **look)
        kept = dict(others.filter(arm=method).select("name", "kept").iter_rows())
        where = [(kept[task], row + 0.18 * (place - 1.5)) for row, task in enumerate(tasks) if task in kept]
        if where:
            name = {"direct": "whole head", "head": "low-rank head"}.get(method, words)
            right.plot(*zip(*where, strict=True), linestyle="", marker="o", markersize=3, label=name, **look)
    left.set(title="source: wished output (validation)", xlabel="epoch of alignment", ylim=(-0.03, 1.03))
    left.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    right.set(title="other tasks: prediction unchanged", xlabel="share of prompts (test)", xlim=(-0.03, 1.03))
    right.set_yticks(range(len(tasks)), [plain(task, 28) for task in tasks], fontsize=7)
    figure.legend(*right.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
