"""One network's layers, or anything in their place, on all sides: rows of the long table, and the tables by task.

A `Design` knows the prompts' labels and how they are dealt; `sweep` measures states by it. The same for a trained
network, an untrained one, a neutral instruction and the bare text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple, Self

import numpy as np
import polars as pl

from nucleate.intervals import Interval
from nucleate.measures.clustering import KMeansJob, kmeans_many
from nucleate.measures.labelling import Labelling
from nucleate.measures.neighbours import Labels
from nucleate.measures.survey import Effort, Survey, survey
from nucleate.probing.halves import Side, deciding_search, some_units
from nucleate.probing.separation import (
    best_cluster_f1,
    by_task,
    confusion,
    f1_interval,
    f1_of,
    mean_interval,
)
from nucleate.streams import stream

GAIN = 0.1  # by which a share has to exceed every control for a task to count as separate
MOST_SHOWN = 2000  # prompts in a t-SNE: its cost goes with their square
_SEEDS = 5  # of k-means, for the spread
Tell = Callable[[str, int, int], None]  # what, done, of
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class Design:
    """What is known of the prompts, and how they are dealt: the same for every network."""

    labels: Labels
    mapping: np.ndarray  # (instance,) codes of (distribution, mapping); -1 where they are unknown
    tasks: tuple[str, ...]  # by their codes
    sides: tuple[Side, ...]
    search: str  # whose share of neighbours decides
    kept: np.ndarray  # (instance,) their places among all prompts
    everyone: int
    seed: int
    effort: Effort
    repeats: int  # deals of the shuffled and regrouped labels

    @classmethod
    def of(
        cls,
        labels: Labels,
        mapping: np.ndarray,
        tasks: Sequence[str],
        sides: Sequence[Side],
        *,
        seed: int,
        effort: Effort,
        repeats: int,
    ) -> Self:
        """All the prompts; `tasks` are the names of the codes."""
        kept, search = np.arange(len(labels)), deciding_search(sides[-1], labels)
        return cls(labels, mapping, tuple(tasks), tuple(sides), search, kept, len(labels), seed, effort, repeats)

    @property
    def deciding(self) -> str:
        """The name of the measure that decides."""
        return f"knn_share_{self.search}" if self.search else "knn_share"

    @property
    def has_inputs(self) -> bool:
        return bool((self.labels.input >= 0).all())

    @cached_property
    def labellings(self) -> dict[str, Labelling]:
        """split -> its labels for raw states."""
        return {side.split: self.labelling(side, "raw") for side in self.sides}

    def labelling(self, side: Side, *spaces: str) -> Labelling:
        """The labels of a side for some spaces."""
        return side.labelling(self.labels, self.mapping, seed=self.seed, repeats=self.repeats, spaces=spaces)

    def only(self, kept: np.ndarray) -> "Design":
        """The same with the prompts that a network could read."""
        if len(kept) == len(self.kept):
            return self
        sides = tuple(side.among(kept, len(self.kept)) for side in self.sides)
        return replace(self, labels=self.labels[kept], mapping=self.mapping[kept], sides=sides, kept=self.kept[kept])

    def spread(self, values: np.ndarray, members: np.ndarray) -> np.ndarray:
        """Values of some of the instances as one for each of all the prompts, NaN where there is none."""
        wide = np.full(self.everyone, np.nan)
        wide[self.kept[members]] = values
        return wide

    @cached_property
    def task(self) -> np.ndarray:
        """(prompt,) the code of its task; -1 where it was not read."""
        return self._wide(self.labels.task)

    @cached_property
    def unit(self) -> np.ndarray:
        """(prompt,) what it was held out with; -1 where it was not read."""
        return self._wide(self.labels.instruction)

    def _wide(self, codes: np.ndarray) -> np.ndarray:
        wide = np.full(self.everyone, -1)
        wide[self.kept] = codes
        return wide

    def seed_of(self, *names: object) -> int:
        """A random stream's own seed."""
        return stream(self.seed, *names)


@dataclass(frozen=True, eq=False)
class LayerMeasures:
    """The rows of some layers; and, by split and layer, what the tables are made of."""

    rows: Rows = field(default_factory=list)
    shares: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # (prompt,) the deciding one; else NaN
    plain: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # (prompt,) among neighbours of any input
    confusion: dict[int, np.ndarray] = field(default_factory=dict)  # layer -> (task, other), on test
    clusters: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # (member,) as many as there are tasks

    @property
    def best_layer(self) -> int:
        """The layer with the highest deciding share on validation, the earliest of equal ones."""
        chosen = {layer: _mean(shares) for (split, layer), shares in self.shares.items() if split == "validation"}
        return max(sorted(chosen), key=lambda layer: chosen[layer])


def measure_layers(design: Design, states: np.ndarray, layers: Sequence[int], tell: Tell) -> LayerMeasures:
    """Raw clusters and neighbours of every layer, on every side. `states` is (layer, instance, width)."""
    found = LayerMeasures()
    tell("measuring the layers", 0, len(layers))
    for side, some, one in _surveys(design, design.labellings, design.sides, states, layers):
        tell("measuring the layers", list(layers).index(some[-1]) + 1, len(layers))
        found.rows.extend(row._asdict() for row in one.rows)
        for layer in some:
            around = one.neighbours_of[side.split, layer, "raw"]
            found.clusters[side.split, layer] = one.clusters[side.split, layer, "raw", "task"]
            for search, shares in ((design.search, found.shares), ("", found.plain)):
                shares[side.split, layer] = design.spread(around.own[search], side.members)
            if side.split == "test":
                found.confusion[layer] = confusion(around.mixed[design.search])
    return found


class CloserLook(NamedTuple):
    """A few layers in the spaces that cost more."""

    rows: Rows
    shown: np.ndarray  # (point,) places of the instances in the t-SNE
    embeddings: dict[int, np.ndarray]  # layer -> (point, 3)


def look_closer(design: Design, states: np.ndarray, layers: Sequence[int], tell: Tell) -> CloserLook:
    """The reported half without what the inputs alone say, by means of the other; and all prompts, or many of them, by
    t-SNE."""
    rows: Rows = []
    if design.has_inputs:
        halves = [side for side in design.sides if not np.isin(side.members, side.against).any()]
        labellings = {side.split: design.labelling(side, "centred", "averaged") for side in halves}
        tell("centring", 0, len(layers))
        for _, some, one in _surveys(design, labellings, halves, states, layers):
            tell("centring", list(layers).index(some[-1]) + 1, len(layers))
            rows += [row._asdict() for row in one.rows]
    shown = some_units(design.labels.instruction, MOST_SHOWN, seed=design.seed_of("shown"))
    found = CloserLook(rows, shown, {})
    if len(shown) <= 3 * design.effort.perplexity:
        return found
    side = Side("all", shown, shown)
    tell("t-SNE", 0, len(layers))
    for _, some, one in _surveys(design, {"all": design.labelling(side, "tsne")}, [side], states, layers):
        tell("t-SNE", list(layers).index(some[-1]) + 1, len(layers))
        rows += [row._asdict() for row in one.rows]
        for layer in some:
            found.embeddings[layer] = one.embeddings["all", layer].embedding
            kept = len(shown) / len(design.kept)
            rows.append({"split": "all", "layer": layer, "space": "tsne", "measure": "tsne_kept", "value": kept})
    return found


def _surveys(
    design: Design,
    labellings: Mapping[str, Labelling],
    sides: Sequence[Side],
    states: np.ndarray,
    layers: Sequence[int],
) -> Iterator[tuple[Side, list[int], Survey]]:
    """A few layers at a time, so that not all of them need to be in memory."""
    effort, step = design.effort, design.effort.threads
    for first in range(0, len(layers), step):
        some, block = list(layers[first : first + step]), np.asarray(states[first : first + step])
        for side in sides:
            yield side, some, survey(labellings[side.split], side.states(block), effort, layers=some)


# --- how sure --------------------------------------------------------------------------------------------------------


def interval_rows(design: Design, measured: LayerMeasures, states: np.ndarray) -> Rows:
    """How sure the shares (on test) and the F1s (on test and on all) are, over instructions; which layer is the best;
    and how far its F1 moves with the seed of k-means. `states` are those of the best layer."""
    unit, task, best = design.labels.instruction, design.labels.task, measured.best_layer
    rows: Rows = []

    def add(split: str, layer: int | None, values: Mapping[str, float]) -> None:
        place = {"split": split, "layer": layer, "labels": "task", "space": "raw"}
        rows.extend({**place, "measure": measure, "value": value} for measure, value in values.items())

    for split, layer in measured.clusters:
        if split == "test":
            for measure, shares in {"knn_share": measured.plain, design.deciding: measured.shares}.items():
                seed = design.seed_of("interval", measure, layer)
                add(split, layer, _bounds(measure, mean_interval(shares[split, layer], design.unit, seed=seed)))
        if split != "validation":
            members = next(side.members for side in design.sides if side.split == split)
            seed = design.seed_of("interval", "f1", split, layer)
            found = f1_interval(task[members], measured.clusters[split, layer], unit[members], seed=seed)
            add(split, layer, _bounds("f1", found))
    add("validation", None, {"best_layer": float(best)})
    jobs = [KMeansJob(states, len(np.unique(task)), design.seed_of("k-means", number)) for number in range(_SEEDS)]
    tried = kmeans_many(jobs, initialisations=design.effort.initialisations, threads=design.effort.threads)
    spread = [f1_of(task, one.clusters) for one in tried]
    add("all", best, {"f1_seeds_low": min(spread), "f1_seeds_high": max(spread)})
    return rows


def _bounds(measure: str, found: Interval | None) -> dict[str, float]:
    return {} if found is None else {f"{measure}_low": found.low, f"{measure}_high": found.high}


class Margins(NamedTuple):
    """By how much a layer's share exceeds the hardest control; `separated` is 1 where that is enough, 0 where it is
    not, and missing where there are too few instructions for an interval."""

    rows: Rows  # over all tasks
    by_task: list[dict[str, float]]  # by the codes of the tasks


def margins(design: Design, measured: LayerMeasures, layer: int, controls: Mapping[str, np.ndarray]) -> Margins:
    """Of the deciding share on test; `controls` hold that share of each, (prompt,)."""
    shares = measured.shares["test", layer]
    found = _margin(design, shares, controls, "all", layer)
    by_task = [
        _margin(design, np.where(design.task == code, shares, np.nan), controls, name, layer)
        for code, name in enumerate(design.tasks)
    ]
    place = {"split": "test", "layer": layer, "labels": "task", "space": "raw"}
    return Margins([{**place, "measure": measure, "value": value} for measure, value in found.items()], by_task)


def _margin(
    design: Design, shares: np.ndarray, controls: Mapping[str, np.ndarray], name: str, layer: int
) -> dict[str, float]:
    least: dict[str, float] = {}
    separated, known = True, True
    for control, theirs in controls.items():
        gap = shares - theirs
        if np.isnan(gap).all():
            return {}  # its task is on one side only
        interval = mean_interval(gap, design.unit, seed=design.seed_of("margin", control, name, layer))
        known &= interval is not None
        separated &= interval is not None and interval.mean >= GAIN and interval.low > 0
        if not least or _mean(gap) < least["margin"]:
            least = {"margin": _mean(gap), **_bounds("margin", interval)}
    return {**least, "separated": float(separated)} if known else least


# --- tables ----------------------------------------------------------------------------------------------------------


def task_frame(
    design: Design, measured: LayerMeasures, found: Mapping[int, Margins], right: Mapping[str, np.ndarray]
) -> pl.DataFrame:
    """layer, task, measure, value: shares and margins on test, F1 and the answers that are `right` on all prompts."""
    rows: list[tuple[int | None, str, str, float]] = []
    for layer, margin in found.items():
        f1 = best_cluster_f1(design.labels.task, measured.clusters["all", layer])
        plain, deciding = measured.plain["test", layer], measured.shares["test", layer]
        for code in np.unique(design.labels.task):
            name, here = design.tasks[code], np.where(design.task == code, deciding, np.nan)
            sure = mean_interval(here, design.unit, seed=design.seed_of("interval", name, layer))
            values = {"f1": f1[code], "knn_share": _mean(plain[design.task == code]), design.deciding: _mean(here)}
            values |= _bounds(design.deciding, sure) | margin.by_task[code]
            rows += [(layer, name, measure, float(value)) for measure, value in values.items() if not np.isnan(value)]
    for measure, answers in right.items():
        shares = by_task(answers, design.labels.task)
        rows += [(None, design.tasks[code], measure, float(v)) for code, v in enumerate(shares) if not np.isnan(v)]
    schema = {"layer": pl.Int32, "task": pl.String, "measure": pl.String, "value": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def confusion_frame(design: Design, measured: LayerMeasures, layers: Sequence[int]) -> pl.DataFrame:
    """layer, task, other, share: whose task the neighbours on test have."""
    rows = [
        (layer, design.tasks[own], design.tasks[other], float(share))
        for layer in layers
        for (own, other), share in np.ndenumerate(measured.confusion[layer])
        if not np.isnan(share)
    ]
    schema = {"layer": pl.Int32, "task": pl.String, "other": pl.String, "share": pl.Float64}
    return pl.DataFrame(rows, schema=schema, orient="row")


def _mean(values: np.ndarray) -> float:
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))
