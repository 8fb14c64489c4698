"""What scripts ask of a probe: one object with the answer of each model, and bars that it has to reach."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import polars as pl

from nucleate.long_table import deciding_measure
from nucleate.probing.acting import where_to_act
from nucleate.probing.findings import (
    CLUSTERED,
    READABLE,
    reading_of,
    tasks_that_are,
    verdict_of,
    verdicts_of,
)
from nucleate.probing.separation import MISLABELLED
from nucleate.probing.settings import Bar


def missed(
    bars: Sequence[Bar], metrics: pl.DataFrame, tasks: pl.DataFrame, coordinates: pl.DataFrame, model: str
) -> list[str]:
    """A sentence for each bar that a model misses."""
    found: dict[str, Callable[[], float | None]] = {
        "readable": lambda: reading_of(metrics, model, READABLE).value,
        "clustered": lambda: reading_of(metrics, model, CLUSTERED).value,
        "readable_tasks": lambda: float(len(tasks_that_are(metrics, tasks, model, READABLE))),
        "clustered_tasks": lambda: float(len(tasks_that_are(metrics, tasks, model, CLUSTERED))),
        "doubtful": lambda: float((coordinates.filter(pl.col("model") == model)["margin"] > MISLABELLED).sum()),
    }
    said = []
    for one in bars:
        value = found[one.name]()
        if not one.is_met(value):
            got = "unknown" if value is None else f"{value:g}"
            said.append(f"{model}: {one.name} is {got}, {'>=' if one.at_least else '<='} {one.value:g} was required")
    return said


def answer(
    metrics: pl.DataFrame, tasks: pl.DataFrame, verdicts: Mapping[str, str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """{"models": {name: {verdict, sentence, readable, clustered, where_to_act, tasks}}}, with the values of the half
    that is told; `verdicts` are the sentences by model."""
    found = {}
    for model, sentence in verdicts.items():
        readings = {name: _reading(metrics, model, name) for name in (READABLE, CLUSTERED)}
        each = verdicts_of(metrics, tasks, model)
        shares = {name: _by_task(metrics, tasks, model, name) for name in (READABLE, CLUSTERED)}
        found[model] = {
            "verdict": verdict_of(metrics, model),
            "sentence": sentence,
            **readings,
            "where_to_act": where_to_act(metrics, model).told,
            "tasks": {
                task: {"verdict": verdict, **{name: share.get(task) for name, share in shares.items()}}
                for task, verdict in each.items()
            },
        }
    return {"models": found}


def _reading(metrics: pl.DataFrame, model: str, name: str) -> dict[str, Any]:
    one = reading_of(metrics, model, name)
    control = one.hardest
    level = None if control is None else one.controls[control]
    low, high = (None if one.low is None else max(one.low, 0.0), None if one.high is None else min(one.high, 1.0))
    told = {"value": one.value, "low": low, "high": high, "layer": one.layer}
    return {**told, "control": control, "control_value": level}


def _by_task(metrics: pl.DataFrame, tasks: pl.DataFrame, model: str, name: str) -> dict[str, float]:
    measure = "linear_accuracy" if name == READABLE else deciding_measure(metrics)
    layer = reading_of(metrics, model, name).layer
    here = tasks.filter(pl.col("model") == model, pl.col("layer") == layer, pl.col("measure") == measure)
    return dict(here.select("task", "value").iter_rows())
