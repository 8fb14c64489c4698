"""Runs that differ in nothing but their seed, taken together: which they are, and their curves."""

import json
import re
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import polars as pl

from nucleate.long_table import settings_but_seed
from nucleate.runs import Run


class Series(NamedTuple):
    """Finished runs of one experiment, by rising seed; or one run that stands alone."""

    name: str  # fit for a folder: verb and size, and what sets it apart from others of these
    words: str  # the same for a reader: `size small, packing=tree, seeds 0, 1, 2`
    runs: tuple[Run, ...]


def series_of(runs: Sequence[Run]) -> list[Series]:
    """All of the runs, in the order of their first ones. Alone stand runs that are not finished (a mean over what all
    have would end where they do), those of ready-made models, and all of an experiment where one seed is there twice.
    """
    groups: dict[str, list[Run]] = {}
    for number, run in enumerate(runs):
        is_ours = "model" in run.config and run.manifest["status"] == "done"
        groups.setdefault(
            json.dumps(settings_but_seed(run.config), sort_keys=True) if is_ours else str(number), []
        ).append(run)
    parted: list[list[Run]] = []
    for group in groups.values():
        apart = len({run.config["seed"] for run in group}) == len(group)
        parted += [sorted(group, key=lambda run: run.config["seed"])] if apart else [[run] for run in group]
    found: list[Series] = []
    for several in parted:
        told = _apart(several[0], [others[0] for others in parted]) if "model" in several[0].config else []
        seeds = f"seed{'s' if len(several) > 1 else ''} {', '.join(str(run.config.get('seed')) for run in several)}"
        words = ", ".join([f"size {several[0].config.get('size')}", *told, seeds])
        kind = [several[0].config.get("verb"), several[0].config.get("size"), *told]
        alone = [] if len(several) > 1 else [f"seed{several[0].config.get('seed')}"]
        name = re.sub(r"[^\w.=+-]+", "_", "-".join(map(str, [*kind, *alone])))
        taken = sum(re.sub(r"~\d+$", "", one.name) == name for one in found)
        found.append(Series(f"{name}~{taken + 1}" if taken else name, words, tuple(several)))
    return found


def _apart(run: Run, others: Sequence[Run]) -> list[str]:
    """`packing=tree`: the settings in which it differs from others of its verb and size, and the packed law always."""
    own = settings_but_seed(run.config)
    every = (settings_but_seed(other.config) for other in others)
    alike = [one for one in every if all(one.get(key) == own.get(key) for key in ("verb", "size"))]
    told = {key for key in own if any(other.get(key) != own[key] for other in alike)}
    told |= {"training.packing"} if run.is_packed else set()
    return [f"{key.split('.')[-1]}={own[key]}" for key in own if key in told]


def spread_note(runs: Sequence[Run]) -> str | None:
    """What a line and its band are; None for one run, which has no band."""
    if len(runs) < 2:
        return None
    seeds = ", ".join(str(run.config["seed"]) for run in runs)
    return f"Lines: mean of seeds {seeds}; bands in their colour: from the lowest to the highest of them."


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
