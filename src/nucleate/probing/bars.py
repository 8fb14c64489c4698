"""What scripts ask of a probe: one object with the answer of each model, and bars that it has to reach."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import polars as pl

from nucleate.long_table import deciding_measure
from nucleate.probing.findings import (
    CLUSTERED,
    READABLE,
    reading_of,
    tasks_that_are,
    verdict_of,
    verdicts_of,
)
from nucleate.probing.separation import MISLABELLED
from nucleate.refusal import Refused, nearest

BARS = ("readable", "clustered", "readable_tasks", "clustered_tasks", "doubtful")
_FORM = re.compile(r"\s*([a-z_]+)\s*(>=|<=)\s*(\d+(?:\.\d+)?)\s*")


class Bar(NamedTuple):
    """A number that a probe has to reach, or to stay under."""

    name: str  # of BARS
    at_least: bool
    value: float

    def is_met(self, found: float | None) -> bool:
        """What is unknown meets no bar."""
        return found is not None and (found >= self.value if self.at_least else found <= self.value)


def bar(text: str) -> Bar:
    """`readable>=0.9`; refused where it is not of this form."""
    found = _FORM.fullmatch(text)
    if found is None:
        raise Refused(f"--require {text!r} is not of the form readable>=0.9: a name, >= or <=, a number")
    name, sign, value = found.groups()
    if name not in BARS:
        raise Refused(f"--require {text!r}: {name!r} is none of {', '.join(BARS)}{nearest(name, BARS)}")
    return Bar(name, sign == ">=", float(value))


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
            got = "unknown" if value is None else f"{value:.4g}"
            said.append(f"{model}: {one.name} is {got}, {'>=' if one.at_least else '<='} {one.value:g} was required")
    return said


def answer(
    metrics: pl.DataFrame, tasks: pl.DataFrame, verdicts: Mapping[str, str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """{"models": {name: {verdict, sentence, readable, clustered, tasks}}}, with the values of the half that is told;
    `verdicts` are the sentences by model."""
    found = {}
    for model, sentence in verdicts.items():
        readings = {name: _reading(metrics, model, name) for name in (READABLE, CLUSTERED)}
        each = verdicts_of(metrics, tasks, model)
        shares = {name: _by_task(metrics, tasks, model, name) for name in (READABLE, CLUSTERED)}
        found[model] = {
            "verdict": verdict_of(metrics, model),
            "sentence": sentence,
            **readings,
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
    told = {"value": one.value, "low": one.low, "high": one.high, "layer": one.layer}
    return {**told, "control": control, "control_value": level}


def _by_task(metrics: pl.DataFrame, tasks: pl.DataFrame, model: str, name: str) -> dict[str, float]:
    measure = "linear_accuracy" if name == READABLE else deciding_measure(metrics)
    layer = reading_of(metrics, model, name).layer
    here = tasks.filter(pl.col("model") == model, pl.col("layer") == layer, pl.col("measure") == measure)
    return dict(here.select("task", "value").iter_rows())
