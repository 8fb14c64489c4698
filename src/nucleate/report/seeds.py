"""Runs that differ in nothing but their seed, taken together: which they are, their curves, a number's interval."""

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from nucleate.runs import Run

_OWN = ("seed", "device")  # what runs of one series may differ in


class Series(NamedTuple):
    """Two runs or more, by rising seed."""

    name: str  # fit for a folder: verb and size, and what sets it apart from other series of these
    runs: tuple[Run, ...]

    @property
    def words(self) -> str:
        """`size small, seeds 0, 1, 2`."""
        return f"size {self.runs[0].config.get('size')}, {seeds_of(self.runs)}"


def series_of(runs: Sequence[Run]) -> list[Series]:
    """In the order of their first runs. Probes have no series: their models are compared inside one run."""
    groups: dict[str, dict[int, Run]] = {}
    for run in runs:
        if "model" in run.config:  # settings of a network of our own
            settings = {key: value for key, value in run.config.items() if key not in _OWN}
            groups.setdefault(json.dumps(settings, sort_keys=True), {})[run.config["seed"]] = run
    several = [tuple(run for _, run in sorted(group.items())) for group in groups.values() if len(group) > 1]
    return [Series(_name(group, several), group) for group in several]


def _name(group: Sequence[Run], several: Sequence[Sequence[Run]]) -> str:
    own = _flat(group[0].config)
    alike = [_flat(other[0].config) for other in several]
    alike = [one for one in alike if all(one.get(key) == own.get(key) for key in ("verb", "size"))]
    apart = [key for key in own if key not in _OWN and any(one.get(key) != own[key] for one in alike)]
    return "-".join([str(own["verb"]), str(own["size"]), *(f"{key.split('.')[-1]}={own[key]}" for key in apart)])


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def seeds_of(runs: Sequence[Run]) -> str:
    """`seeds 0, 1, 2`."""
    return f"seeds {', '.join(str(run.config.get('seed')) for run in runs)}"


def spread_note(runs: Sequence[Run]) -> str | None:
    """What a line and its band are; None for one run, which has no band."""
    return None if len(runs) < 2 else f"Lines: mean of {seeds_of(runs)}; bands: from the lowest to the highest of them."


class Curve(NamedTuple):
    """Over epochs that all runs measured: the mean, and the lowest and highest of the runs (of one: itself)."""

    epochs: np.ndarray
    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


def curve_over(frames: Sequence[pl.DataFrame]) -> Curve:
    """Of one frame a run, each with columns epoch and value."""
    together = pl.concat([frame.select("epoch", "value") for frame in frames]).drop_nulls("epoch")
    rows = (
        together.group_by("epoch")
        .agg(pl.len(), mean=pl.col("value").mean(), low=pl.col("value").min(), high=pl.col("value").max())
        .filter(pl.col("len") == len(frames))
        .sort("epoch")
    )
    return Curve(*(rows[name].to_numpy() for name in ("epoch", "mean", "low", "high")))


class Interval(NamedTuple):
    """Mean, and Student's 95 % interval of it."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return "{} [{}, {}]".format(*(f"{number:.3f}".replace("-0.000", "0.000") for number in self))


def interval(values: Sequence[float] | np.ndarray) -> Interval:
    """Of two values or more."""
    from scipy.stats import sem, t

    mean = float(np.mean(values))
    half = float(t.ppf(0.975, len(values) - 1) * sem(values))
    return Interval(mean, mean - half, mean + half)
