"""By how much a layer's two readings of the labels, by linear probes and by neighbours, exceed their controls."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nucleate.probing.design import Design
from nucleate.probing.layers import LayerMeasures, Rows
from nucleate.probing.separation import bounds, mean_interval, mean_known

GAIN = 0.1  # by which a share has to exceed every control for a task to count as clustered, or readable
READINGS = {"clustered": "margin", "readable": "linear_margin"}  # reading -> the name of what exceeds its controls
Controls = Mapping[str, Mapping[str, np.ndarray]]  # reading -> control -> (prompt,) on test


class Margins(NamedTuple):
    """By how much a layer's two readings exceed their hardest controls. `clustered` and `readable` are 1 where that is
    enough, `held` where either is enough above shuffled labels; 0 where it is not; missing where there are too few
    instructions for an interval."""

    rows: Rows  # over all tasks
    by_task: list[dict[str, float]]  # by the codes of the tasks


def margins(design: Design, measured: LayerMeasures, layer: int, controls: Controls) -> Margins:
    """Of both readings on test."""
    own = {"clustered": measured.shares["test", layer], "readable": measured.named[layer]}
    chance = {"clustered": measured.chance[layer], "readable": measured.named_by_chance[layer]}

    def judged(name: str, here: np.ndarray) -> dict[str, float]:
        values: dict[str, float] = {}
        for reading, margin in READINGS.items():
            some = np.where(here, own[reading], np.nan)
            against = {**controls[reading], "shuffled": chance[reading]}
            values |= _margin(design, some, against, name, layer, margin, reading)
            values |= _margin(design, some, {"shuffled": chance[reading]}, name, layer, "", f"held_{reading}")
        held = [values.pop(f"held_{reading}") for reading in READINGS if f"held_{reading}" in values]
        return values | ({"held": max(held)} if held else {})

    place = {"split": "test", "layer": layer, "labels": "task", "space": "raw"}
    every = judged("all", np.ones(design.everyone, dtype=bool))
    rows = [{**place, "measure": measure, "value": value} for measure, value in every.items()]
    return Margins(rows, [judged(name, design.task == code) for code, name in enumerate(design.tasks)])


def _margin(
    design: Design,
    values: np.ndarray,
    controls: Mapping[str, np.ndarray],
    name: str,
    layer: int,
    margin: str,
    enough: str,
) -> dict[str, float]:
    """The smallest margin under the name `margin`, unless that is empty, with its interval; and under `enough` whether
    every margin is enough."""
    least: dict[str, float] = {}
    smallest, above, known = np.inf, True, True
    for control, theirs in controls.items():
        gap = values - theirs
        if np.isnan(gap).all():
            return {}  # its task is on one side only
        interval = mean_interval(gap, design.unit, seed=design.seed_of("margin", enough, control, name, layer))
        known &= interval is not None
        above &= interval is not None and interval.mean >= GAIN and interval.low > 0
        if mean_known(gap) < smallest:
            smallest = mean_known(gap)
            least = {margin: smallest, **bounds(margin, interval)} if margin else {}
    return least | ({enough: float(above)} if known else {})
