"""What a probe found, read back from its run folder: tables, the answer in words, the difference to another model."""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.files import file_name
from nucleate.long_table import best_layer_of
from nucleate.parts import read_metrics
from nucleate.probing.acting import WhereToAct, where_to_act
from nucleate.probing.changes import change, difference
from nucleate.probing.findings import (
    CLUSTERED,
    READABLE,
    headline,
    in_full,
    main_model,
    tasks_that_are,
)
from nucleate.probing.steering import SteeringVector, steering_vector
from nucleate.refusal import Refused, nearest
from nucleate.runs import load_run

TABLES = ("tasks", "confusion", "suspicious", "coordinates", "dropped")


def load_probe(folder: str | Path) -> "ProbeResult":
    """A finished run of `probe`."""
    run = load_run(folder)
    if run.config.get("verb") != "probe" or not (run.folder / "metrics.parquet").is_file():
        raise Refused(f"{folder} is not a finished run of nucleate probe; make one, or continue it with --resume")
    missing = next((name for name in TABLES if not (run.folder / f"{name}.parquet").is_file()), None)
    if missing:
        raise Refused(f"{folder} has no {missing}.parquet: an earlier version made it; probe again")
    tables = {name: table for name in TABLES if (table := run.table(name)) is not None}
    metrics = read_metrics(run.folder / "metrics.parquet")
    if "best_readable_layer" not in metrics["measure"]:
        raise Refused(f"{folder} has no linear readings: an earlier version made it; probe again")
    return ProbeResult(run.folder, tuple(run.config["models"]), run.config.get("base"), metrics, **tables)


@dataclass(frozen=True, eq=False)
class ProbeResult:
    """What a probe found; prints as a table with the answer in words below it."""

    folder: Path
    models: tuple[str, ...]
    base: str | None
    metrics: pl.DataFrame = field(repr=False)  # the long table
    tasks: pl.DataFrame = field(repr=False)  # model, epoch, step, layer, task, measure, value
    confusion: pl.DataFrame = field(repr=False)  # model, epoch, step, layer, task, other, share
    suspicious: pl.DataFrame = field(repr=False)  # ..., instance, row, task, nearest, margin, text, counted
    coordinates: pl.DataFrame = field(repr=False)  # a row per model and prompt at the best layer
    dropped: pl.DataFrame = field(repr=False)  # model, epoch, step, row, why: prompts that were left out

    @cached_property
    def verdicts(self) -> dict[str, str]:
        """model -> the answer in words."""
        return {name: self.verdict_of(name) for name in self.models}

    def verdict_of(self, model: str) -> str:
        """The answer for one model, with what has changed since the base."""
        found = headline(self.metrics, self.tasks, self.coordinates, model)
        if self.base is not None and model != self.base:
            readings = (READABLE, CLUSTERED)
            moved = {one: self.difference(self.base, model=model, reading=one) for one in readings}
            now, before = (
                {reading: tasks_that_are(self.metrics, self.tasks, one, reading) for reading in readings}
                for one in (model, self.base)
            )
            found += f"; {change(moved, self.base, now, before)}"
        return found

    @property
    def main(self) -> str:
        """The model that matters most: the last of a series of checkpoints, else the first that was named."""
        return main_model(self.metrics, self.models)

    @property
    def verdict(self) -> str:
        """The answer for the main model."""
        return self.verdicts[self.main]

    @property
    def where_to_act(self) -> WhereToAct:
        """The layer at which the main model is to be acted on, and how that is known; prints as a sentence."""
        return self.where_to_act_on(self.main)

    def where_to_act_on(self, model: str) -> WhereToAct:
        """The same for one of the models."""
        return where_to_act(self.metrics, model)

    def steering_vector(
        self,
        target: str,
        source: str | None = None,
        *,
        layer: int | Sequence[int] | None = None,
        model: str | None = None,
    ) -> SteeringVector:
        """The mean state of `target` less that of `source` (of all other tasks unless given), at one layer or several:
        at that of `where_to_act` unless given. Means are of the half that chose, less what their inputs alone say
        where all of these tasks share inputs with others."""
        name = self.main if model is None else model
        if name not in self.models:
            raise Refused(f"model {name!r} was not probed{nearest(name, self.models)}")
        where = self.where_to_act_on(name)
        if layer is None and where.layer is None:
            raise Refused("no layer was found at which to act: name one, as layer=8")
        asked = where.layer if layer is None else layer
        layers = [asked] if isinstance(asked, int) else sorted(set(asked or ()))
        strength = where.strength if layers == [where.layer] else None
        file = self.folder / "means" / f"{file_name(name)}.safetensors"
        return steering_vector(file, target, source, layers, strength)

    @property
    def best_layer(self) -> int:
        """The main model's, chosen on validation."""
        return best_layer_of(self.metrics, self.main)

    def difference(
        self, other: "ProbeResult | str", *, model: str | None = None, reading: str = CLUSTERED
    ) -> pl.DataFrame:
        """task, share, base_share, difference, low, high, changed: this model against another of this result, or
        against that of another result on the same prompts; by the neighbours' share, or of `readable` by the labels
        that are read."""
        if reading not in (CLUSTERED, READABLE):
            raise Refused(f"reading {reading!r} does not exist: take {CLUSTERED} or {READABLE}")
        theirs = other if isinstance(other, ProbeResult) else self
        there = other.models[0] if isinstance(other, ProbeResult) else other
        here = self.models[0] if model is None else model
        for name, result in ((here, self), (there, theirs)):
            if name not in result.models:
                raise Refused(f"model {name!r} was not probed{nearest(name, result.models)}")
        mine, base = (r.coordinates.filter(pl.col("model") == n) for r, n in ((self, here), (theirs, there)))
        if mine.join(base, on=["instance", "text"]).is_empty():
            raise Refused("the two probes have no prompt in common; probe the same data with both models")
        return difference(mine, base, reading)

    def plot(self) -> Any:
        """A matplotlib figure: the share of same-task neighbours by layer, beside its controls."""
        from nucleate.report.probe_figures import layers_figure

        return layers_figure(self.metrics)

    def save(self, run: str | Path) -> Path:
        """Keep the run folder, with all tables and layouts."""
        if Path(run).exists():
            raise Refused(f"{run} exists; name a new folder")
        return Path(shutil.copytree(self.folder, run))

    def __str__(self) -> str:
        return in_full(self.metrics, self.tasks, self.confusion, self.suspicious, self.verdicts, str(self.where_to_act))
