"""The two applications (§4) as figures and tables: pre-training with task identities (Figure 5), alignment (Table 2).

Like every figure and table, they are functions of a run folder and give None, or no rows, where it lacks their part.
"""

from typing import Any

import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

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
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
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
    "accuracy_drop_n2": "  with 2 examples of each",
    "accuracy_drop_n5": "  with 5",
    "accuracy_drop_n10": "  with 10",
    "accuracy_drop_others": "  without the target tasks",
    "others_kept": "all other tasks: answers unchanged",
    "switch_false_positives": "all other tasks: switched",
    "switch_misses": "source tasks: not switched",
    "conditional_source_accuracy": "only after a further symbol: sources with it",
    "conditional_sources_kept": "  sources without it",
    "conditional_sources_kept_n10": "    with 10 examples",
    "conditional_accuracy_drop_others": "  other tasks: accuracy drop",
    "second_source_accuracy": "second correction: its sources",
    "second_sources_kept": "  the first one's sources",
    "second_accuracy_drop_others": "  other tasks: accuracy drop",
}


def alignment_table(run: Run) -> Table:
    """A row per measure on test, a column per method: Table 2 and what goes beyond it."""
    rows = run.metrics.filter(pl.col("experiment").eq("align") & pl.col("split").eq("test") & pl.col("epoch").is_null())
    found = {(row["arm"], row["measure"]): row["value"] for row in rows.to_dicts()}
    listed: list[Any] = [
        (words, *(found.get((method, measure)) for method in METHODS))
        for measure, words in ALIGNMENT.items()
        if any((method, measure) in found for method in METHODS)
    ]
    names = [words for words, _ in METHODS.values()]
    if "network" in run.config:  # a real model, of which the head alone is tuned
        names[0] = "whole head"
    return Table(("on test", *names), listed)


def alignment_figure(run: Run) -> Figure | None:
    """What each method teaches and what it costs, epoch by epoch, at its chosen learning rate (test)."""
    panels = {"source_accuracy": "source tasks: accuracy", "accuracy_drop": "all other tasks: accuracy drop"}
    align = pl.col("experiment").eq("align") & pl.col("split").eq("test") & pl.col("epoch").is_not_null()
    curves = run.metrics.filter(align & pl.col("measure").is_in(list(panels))).sort("epoch")
    if not len(curves):
        return None
    figure = Figure(figsize=(7.2, 3.3), layout="constrained")
    for axis, (measure, words) in zip(figure.subplots(1, 2), panels.items(), strict=True):
        for method, (name, look) in METHODS.items():
            line = curves.filter(pl.col("arm").eq(method) & pl.col("measure").eq(measure))
            axis.plot(line["epoch"], line["value"], linewidth=1.3, label=name, **look)
        axis.set(title=words, xlabel="epoch of alignment")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure
