"""The two applications (§4) as tables: pre-training with task identities (Figure 5), alignment (Table 2).

Each is a function of a run folder, without rows where that lacks its part. `over_seeds` gives the same for runs that
differ in their seed alone, with intervals and paired differences.
"""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nucleate.files import write_text
from nucleate.intervals import t_interval
from nucleate.long_table import HEADS, METHODS, late_mean
from nucleate.report.markdown import escaped, markdown_table
from nucleate.report.seeds import Series
from nucleate.report.tables import Table
from nucleate.runs import Run


def over_seeds(series: Series) -> tuple[str, Table] | None:
    """A title and a table of several runs of an application; else None."""
    verb = series.runs[0].config.get("verb")
    if len(series.runs) < 2 or verb not in ("pretrain", "align"):
        return None
    title = "Figure 5b" if verb == "pretrain" else "Table 2 (paper: one run, validation)"
    table = (_pretraining_over_seeds if verb == "pretrain" else _alignment_over_seeds)(series.runs)
    return f"{title}, {series.words}: mean, 95 % t-interval", table


def save_over_seeds(title: str, table: Table, folder: Path) -> Path:
    """The same as a document beside the figures."""
    rows = [["" if cell is None else escaped(cell) for cell in row] for row in table.rows]
    text = "\n".join([f"# {escaped(title)}", "", *markdown_table(table.header, rows), ""])
    path = folder / "over_seeds.md"
    write_text(path, text)
    return path


# --- pre-training (Figure 5) ------------------------------------------------------------------------------------------

ARMS = {
    "none": "no pre-training",
    "instruction": "instruction pre-training",
    "task_id": "task-id pre-training",
    "longer": "no pre-training, longer by its steps",
}
SIDES = {"": "tasks of the pre-training", "_unseen": "tasks not in the pre-training"}
_SPEEDS = ("area_under_curve", "epochs_to_50", "epochs_to_80", "epochs_to_90")


def pretraining_table(run: Run) -> Table:
    """A row per arm: how fast validation accuracy rose, accuracy in the last tenth of the epochs, and, of the
    pre-training, the chosen epoch and its accuracy in naming the task (validation)."""
    told = {arm: _arm(run, arm) for arm in (arm + side for side in SIDES for arm in ARMS)}
    columns = ("epochs", *_SPEEDS, "final validation", "final test", "pre-trained to epoch", "task named")
    return Table(("arm", *columns), [(arm, *(one[name] for name in columns)) for arm, one in told.items() if one])


def _pretraining_over_seeds(runs: Sequence[Run]) -> Table:
    """A row per arm; below those of a side, what task-id pre-training has more than each other arm, seed by seed."""
    columns = (*_SPEEDS, "final validation", "final test", "task named")
    rows: list[Any] = []
    for side in SIDES:
        found = {arm: [_arm(run, arm + side) for run in runs] for arm in ARMS}
        values = {  # arm -> column -> a number for each seed; NaN where it has none
            arm: {name: np.array([math.nan if one[name] is None else one[name] for one in ones]) for name in columns}
            for arm, ones in found.items()
            if all(ones)
        }
        rows += [(arm + side, *map(_cell, own.values())) for arm, own in values.items()]
        for arm, own in values.items():
            if arm != "task_id" and "task_id" in values:
                apart = [values["task_id"][name] - own[name] for name in columns]
                rows.append((f"task_id{side} less {arm}{side}", *map(_cell, apart)))
    return Table(("arm", *(name.replace("_", " ") for name in columns)), rows)


def _cell(values: np.ndarray) -> str:
    """Mean and interval; nothing where a seed has no number."""
    return "" if np.isnan(values).any() else str(t_interval(values))


def _arm(run: Run, arm: str) -> dict[str, Any]:
    """What one arm came to; nothing where it was not run."""
    validation, test = (accuracy(run, arm, split) for split in ("validation", "test"))
    if not len(validation):
        return {}
    single = {row["measure"]: row["value"] for row in _rows(run, arm).filter(pl.col("epoch").is_null()).to_dicts()}
    epoch = run.manifest.get("chosen_epochs", {}).get(arm)
    named = _rows(run, arm, "task_id_accuracy", "validation", read="task_token")
    at = named.filter(pl.col("epoch").eq_missing(epoch))["value"].to_list()
    return {
        "epochs": validation["epoch"].max(),
        **{name: int(single[name]) if name in single else None for name in _SPEEDS[1:]},
        _SPEEDS[0]: single.get(_SPEEDS[0]),
        "final validation": _late(validation),
        "final test": _late(test),
        "pre-trained to epoch": epoch,
        "task named": at[0] if at else None,
    }


def _late(curve: pl.DataFrame) -> float | None:
    return late_mean(dict(curve.iter_rows()))


def accuracy(run: Run, arm: str, split: str) -> pl.DataFrame:
    """epoch, value: of an arm while it is fine-tuned."""
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
    names, told = METHODS, ALIGNMENT
    if "network" in run.config:  # of a real model the head alone is tuned, where even that is affordable
        names, told = {"main": "before", **HEADS, **{k: v for k, v in names.items() if k not in HEADS}}, REDIRECTION
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


def _alignment_over_seeds(runs: Sequence[Run]) -> Table:
    """Table 2; below the drop, how much smaller it is than that of the method to the left, seed by seed, which is what
    the paper's ordering says."""
    frames = [run.metrics.filter(pl.col("split").eq("test") & pl.col("epoch").is_null()) for run in runs]
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
            rows.append((words, *(str(t_interval(values[m])) if m in values else "" for m in METHODS)))
        if measure == "accuracy_drop" and len(values) == len(METHODS):
            steps = [str(t_interval(worse - better)) for worse, better in pairwise(values.values())]
            rows.append(("all other tasks: drop less than the one before by", "", *steps))
        if values and measure in PAPER:
            rows.append((f"{words} (paper)", *(f"{value:.3f}" for value in PAPER[measure])))
    return Table(("on test", *METHODS.values()), rows)
