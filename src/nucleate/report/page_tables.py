"""The tables of the page that only some runs have: Table 1 and the tasks of a probe, those of the applications."""

from collections.abc import Iterator, Mapping
from typing import Any

import polars as pl

from nucleate.long_table import deciding_measure, either, main_read, verdict_from
from nucleate.report.application_tables import alignment_table, pretraining_table
from nucleate.report.redirection import layers_table, thresholds_table
from nucleate.report.tables import Table
from nucleate.report.transfer_table import acting_table, transfer_table
from nucleate.runs import Run

_DOUBTED = ("model", "row", "task", "nearest", "margin", "text")
_MOST = 100  # suspicious prompts on the page; suspicious.parquet has them all
_SCORES = ("f1", "ari", "ami")
_KINDS = ("task", "distribution", "distribution_mapping")


def run_tables(run: Run) -> Iterator[tuple[str, str, Table]]:
    """Name, what it shows, content; nothing of what the run lacks."""
    if run.config.get("verb") == "probe":
        yield (
            "The tasks",
            "Held-out prompts: labels read and neighbours, each at its best layer; the least readable first",
            per_task(run),
        )
        yield (
            "Table 1",
            "Each model at the layer where its tasks cluster best, all prompts, better of raw and t-SNE",
            table_1(run),
        )
        yield (
            "Suspicious prompts",
            f"Labels that a linear probe contradicts, at most {_MOST}; the row, or line, is that of the data given",
            doubted(run),
        )
    yield (
        "One behaviour redirected" if "network" in run.config else "Table 2",
        "Four ways to change one behaviour: the sources, and what all other tasks lose",
        alignment_table(run),
    )
    if "network" in run.config:
        yield (
            "The layer that the switch reads",
            "What each switch got wrong on validation, at its best learning rate there and a threshold of one half",
            layers_table(run),
        )
        yield (
            "The threshold of the switch",
            "What the saved switch misses of the source, and for which others it is on, by its threshold (test)",
            thresholds_table(run),
        )
    if run.config.get("verb") == "probe":
        yield (
            "Where to act",
            "Another task's mean put in place of the own one: the share of answers that follow, on validation at every "
            "layer tried and on test at the one chosen; controls at their best strength",
            acting_table(run),
        )
    else:
        yield (
            "States moved to another task",
            "Share of answers that become the other task's, by layer, on test; controls at their best strength",
            transfer_table(run),
        )
    yield "Pre-training", "How fast and how far each arm learns after its pre-training", pretraining_table(run)


def table_1(run: Run) -> Table:
    """A row per model. The layer is chosen by the best F1 on tasks, as in the paper: that flatters."""
    header = ("model", "layer", *(f"{labels} {score}" for labels in _KINDS for score in _SCORES))
    kept = main_read(run.metrics).filter(
        pl.col("experiment").eq("probe") & pl.col("control").eq("none") & pl.col("split").eq("all")
        & pl.col("measure").is_in(_SCORES) & pl.col("space").is_in(["raw", "tsne"]) & pl.col("labels").is_in(_KINDS)
    )  # fmt: skip
    rows: list[Any] = []
    for model in run.config.get("models", []):
        own = kept.filter(pl.col("model") == model)
        best = own.filter(measure="f1", labels="task").sort("value", "layer", descending=[True, False])
        if best.is_empty():
            continue
        layer = best["layer"][0]
        here = own.filter(layer=layer)
        values = [here.filter(labels=labels, measure=score)["value"].max() for labels in _KINDS for score in _SCORES]
        rows.append((model, layer, *values))
    return Table(header, rows)


def per_task(run: Run) -> Table:
    """A row per model and task: its verdict, what is read at the layer for it, what is clustered at its own; the least
    readable first."""
    frame = run.table("tasks")
    if frame is None:
        return Table((), [])
    linear = pl.col("measure").str.contains("linear_|readable")
    parts = []
    for name, rows in (("best_readable_layer", linear), ("best_layer", ~linear)):
        best = run.metrics.filter(measure=name, control="none").select(
            "model", pl.col("value").cast(pl.Int32).alias("at")
        )
        parts.append(frame.filter(rows).join(best, on="model").filter(pl.col("layer") == pl.col("at")))
    own: dict[tuple[str, str], dict[str, float]] = {}
    for model, task, measure, value in pl.concat(parts).select("model", "task", "measure", "value").iter_rows():
        own.setdefault((model, task), {})[measure] = value
    share = deciding_measure(run.metrics)
    lines: list[tuple[Any, ...]] = []
    place = {name: number for number, name in enumerate(run.config.get("models", []))}
    order = sorted(own, key=lambda one: (place.get(one[0], -1), own[one].get("linear_margin", -1.0), one[1]))
    for model, task in order:
        values = own[model, task]
        held = either([values.get("held_clustered"), values.get("held_readable")])
        verdict = verdict_from(values.get("clustered"), values.get("readable"), held)
        read, near = (
            (values.get(measure), _between(values, measure), values.get(margin))
            for measure, margin in (("linear_accuracy", "linear_margin"), (share, "margin"))
        )
        lines.append((model, task, verdict or "too few to tell", *read, *near, values.get("f1")))
    header: tuple[str, ...] = ("model", "task", "verdict", "labels read", "95 %", "above controls", "neighbours")
    header += ("95 % of these", "above their controls", "F1 of clusters")
    kept = slice(0 if len({line[0] for line in lines}) > 1 else 1, None)  # of one model its name says nothing
    return Table(header[kept], [line[kept] for line in lines])


def _between(values: Mapping[str, float], measure: str) -> str | None:
    """0.36–0.66; a share lies between 0 and 1."""
    low, high = (values.get(f"{measure}_{end}") for end in ("low", "high"))
    return None if low is None or high is None else f"{max(low, 0.0):.2f}–{min(high, 1.0):.2f}"


def doubted(run: Run) -> Table:
    """Prompts that look mislabelled, the most doubtful first."""
    frame = run.table("suspicious")
    if frame is None or "counted" not in frame.columns:  # which earlier versions did not tell
        return Table((), [])
    frame = frame.filter(pl.col("counted")).sort("margin", "row", descending=[True, False]).head(_MOST)
    return Table(_DOUBTED, frame.select(_DOUBTED).rows())
