"""By how much a layer's two readings of the labels, by linear probes and by neighbours, exceed their controls."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from nucleate.probing.design import Design
from nucleate.probing.layers import LayerMeasures, Rows
from nucleate.probing.separation import bounds, mean_interval, mean_known

GAIN = 0.1  # by which a share has to exceed every control for a task to count as clustered, or readable
READINGS = {"clustered": "margin", "readable": "linear_margin"}  # reading -> the name of what exceeds its controls
# reading -> control -> (prompt,) on test: the share of neighbours of its task; the task that a linear probe names
Controls = Mapping[str, Mapping[str, np.ndarray]]


class Margins(NamedTuple):
    """By how much a layer's two readings exceed their hardest controls. `clustered` and `readable` are 1 where that is
    enough and 0 where it is not; missing where it would be enough but is not sure, or there are too few instructions.
    `held_clustered` and `held_readable` say the same of shuffled labels alone."""

    rows: Rows  # over all tasks
    by_task: list[dict[str, float]]  # by the codes of the tasks


def margins(design: Design, measured: LayerMeasures, layer: int, controls: Controls) -> Margins:
    """Of both readings on test."""
    shares, said = measured.shares["test", layer], measured.said[layer]
    told = ~np.isnan(said)
    sizes = np.bincount(design.task[told & (design.task >= 0)], minlength=len(design.tasks))
    largest = sizes.max(initial=0) / max(1, sizes.sum())  # named rightly by whoever always names the largest task

    def whole(values: np.ndarray) -> np.ndarray:
        return np.where(np.isnan(values), np.nan, values == design.task)

    every = _judged(design, "clustered", shares, controls["clustered"], _chance(design, measured, layer), "all", layer)
    named = {control: whole(theirs) for control, theirs in controls["readable"].items()}
    level = np.full(len(said), max(measured.named_by_chance[layer], largest))
    every |= _judged(design, "readable", whole(said), named, level, "all", layer)
    by_task = []
    for code, name in enumerate(design.tasks):
        here = design.task == code
        near = np.where(here, shares, np.nan)
        values = _judged(
            design, "clustered", near, controls["clustered"], _chance(design, measured, layer), name, layer
        )
        if (told & here).any() and (told & ~here).any():
            signed = {control: _signed(theirs, design.task, code) for control, theirs in controls["readable"].items()}
            own = _signed(said, design.task, code)
            values |= _judged(design, "readable", own, signed, np.zeros(len(said)), name, layer)
        by_task.append(values)
    place = {"split": "test", "layer": layer, "labels": "task", "space": "raw"}
    return Margins([{**place, "measure": measure, "value": value} for measure, value in every.items()], by_task)


def _chance(design: Design, measured: LayerMeasures, layer: int) -> np.ndarray:
    """(prompt,) what neighbours give of the prompt's task under shuffled labels."""
    by_task = np.append(measured.chance[layer], np.nan)
    return by_task[np.where((design.task >= 0) & (design.task < len(by_task) - 1), design.task, -1)]


def _signed(said: np.ndarray, task: np.ndarray, code: int) -> np.ndarray:
    """(prompt,) values whose mean is the share of a task's prompts that are named so, less the share of the others that
    are: whoever always names the same task has 0 of it."""
    told = ~np.isnan(said)
    here = task == code
    size, own, others = told.sum(), (told & here).sum(), (told & ~here).sum()
    weight = np.where(here, size / max(1, own), -size / max(1, others))
    return np.where(told, (said == code) * weight, np.nan)


def _judged(
    design: Design,
    reading: str,
    values: np.ndarray,
    controls: Mapping[str, np.ndarray],
    chance: np.ndarray,
    name: str,
    layer: int,
) -> dict[str, float]:
    """The smallest margin with its interval; whether all are enough, and whether that over chance is."""
    margin, flags = READINGS[reading], dict[str, bool | None]()
    least: dict[str, float] = {}
    for control, theirs in {"shuffled": chance, **controls}.items():
        gap = values - theirs
        if np.isnan(gap).all():
            return {}  # its task is on one side only
        mean, seed = mean_known(gap), design.seed_of("margin", reading, control, name, layer)
        interval = mean_interval(gap, design.unit, seed=seed)
        flags[control] = None if interval is None or (interval.low <= 0 and mean >= GAIN) else mean >= GAIN
        if not least or mean < least[margin]:
            least = {margin: mean, **bounds(margin, interval)}
    if flags["shuffled"] is not None:
        least[f"held_{reading}"] = float(flags["shuffled"])
    if False in flags.values():
        least[reading] = 0.0
    elif None not in flags.values():
        least[reading] = 1.0
    return least
