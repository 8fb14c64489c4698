"""One network's layers, or anything in their place, on all sides: rows of the long table, and the tables by task.

A `Design` knows the prompts' labels and how they are dealt; `sweep` measures states by it. The same for a trained
network, an untrained one, a neutral instruction and the bare text.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from nucleate.measures.clustering import KMeansJob, kmeans_many
from nucleate.measures.held_out import LinearReading, read_linearly
from nucleate.measures.labelling import Labelling
from nucleate.measures.products import LARGEST, Part, products_of
from nucleate.measures.survey import Survey, survey
from nucleate.probing.design import Design
from nucleate.probing.halves import Side, shared_by, some_units
from nucleate.probing.separation import (
    bounds,
    confusion,
    f1_interval,
    f1_of,
    mean_interval,
    mean_known,
)

MOST_SHOWN = 2000  # prompts in a t-SNE: its cost goes with their square
_SEEDS = 5  # of k-means, for the spread
Tell = Callable[[str, int, int], None]  # what, done, of
Rows = list[dict[str, Any]]


@dataclass(frozen=True, eq=False)
class LayerMeasures:
    """The rows of some layers; and, by split and layer, what the tables are made of."""

    rows: Rows = field(default_factory=list)
    shares: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # (prompt,) the deciding one; else NaN
    chance: dict[int, np.ndarray] = field(default_factory=dict)  # layer -> (task,) the same, labels shuffled, on test
    said: dict[int, np.ndarray] = field(default_factory=dict)  # layer -> (prompt,) the task that a probe names, on test
    named: dict[int, np.ndarray] = field(default_factory=dict)  # layer -> (prompt,) 1 where it is the prompt's own
    named_by_chance: dict[int, float] = field(default_factory=dict)  # layer -> their share with shuffled labels
    chosen: dict[int, float] = field(default_factory=dict)  # layer -> share that is named where layers are chosen
    plain: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # (prompt,) among neighbours of any input
    confusion: dict[int, np.ndarray] = field(default_factory=dict)  # layer -> (task, other), on test
    clusters: dict[tuple[str, int], np.ndarray] = field(default_factory=dict)  # (member,) as many as there are tasks

    @property
    def best_layer(self) -> int:
        """The layer with the highest deciding share on validation, the earliest of equal ones."""
        chosen = {layer: mean_known(shares) for (split, layer), shares in self.shares.items() if split == "validation"}
        return max(sorted(chosen), key=lambda layer: chosen[layer])

    @property
    def best_readable_layer(self) -> int:
        """The layer of which a linear probe names the largest share where layers are chosen, likewise."""
        known = {layer: -1.0 if np.isnan(share) else share for layer, share in self.chosen.items()}
        return max(sorted(known), key=lambda layer: known[layer])


def measure_layers(
    design: Design, states: np.ndarray, layers: Sequence[int], tell: Tell, *, sides: Sequence[Side] | None = None
) -> LayerMeasures:
    """Raw clusters and neighbours of every layer, on every side unless some are named, and linear probes where test is
    one of them. `states` is (layer, instance, width)."""
    found, sides = LayerMeasures(), design.sides if sides is None else sides
    tell("measuring the layers", 0, len(layers))
    linearly = any(side.split == "test" for side in sides)
    for side, some, one in _surveys(design, design.labellings, sides, states, layers, found if linearly else None):
        tell("measuring the layers", list(layers).index(some[-1]) + 1, len(layers))
        found.rows.extend(row._asdict() for row in one.rows)
        for layer in some:
            around = one.neighbours_of[side.split, layer, "raw"]
            found.clusters[side.split, layer] = one.clusters[side.split, layer, "raw", "task"]
            for search, shares in ((design.search, found.shares), ("", found.plain)):
                shares[side.split, layer] = design.spread(around.own[search], side.members)
            if side.split == "test":
                found.chance[layer] = around.chance[design.search]
                found.confusion[layer] = confusion(around.mixed[design.search])
    return found


def read_labels(
    found: LayerMeasures, design: Design, states: np.ndarray, layers: Sequence[int], parts: Sequence[Part] = ()
) -> None:
    """What linear probes name of every layer, on instructions, and inputs where they repeat, that they have not met.
    `parts`, layer by layer, are the instances among points whose products are known."""
    folds, everyone = design.folds, np.arange(len(design.kept))

    def one(place: int) -> LinearReading:
        part = parts[place] if parts else None
        return read_linearly(np.asarray(states[place]), design.dealt, folds.inner, folds.outer, part=part)

    # The last bits of a matrix product depend on BLAS's threads; ours are put to whole layers instead.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(design.effort.threads) as pool:
        readings = list(pool.map(one, range(len(layers))))
    for layer, reading in zip(layers, readings, strict=True):
        named = reading.named(design.dealt)
        found.said[layer] = design.spread(np.where(reading.said[0] >= 0, reading.said[0], np.nan), everyone)
        found.named[layer] = design.spread(named[0], everyone)
        found.named_by_chance[layer] = mean_known(named[1:])
        found.chosen[layer] = reading.chosen
        values = {
            ("validation", "none"): reading.chosen,
            ("test", "none"): mean_known(named[0]),
            ("test", "shuffled"): mean_known(named[1:]),
        }
        place = {"layer": layer, "labels": "task", "space": "raw", "measure": "linear_accuracy"}
        found.rows.extend(
            {**place, "split": split, "control": control, "value": value}
            for (split, control), value in values.items()
            if not np.isnan(value)
        )


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
    read_into: LayerMeasures | None = None,
) -> Iterator[tuple[Side, list[int], Survey]]:
    """A few layers at a time, so that not all of them need to be in memory; labels are read beside where that is
    asked for."""
    raw = any((split, "raw") in one.places for split, one in labellings.items())
    who, effort, step = shared_by(sides) if raw else None, design.effort, design.effort.threads
    if who is not None:  # a GiB of products, however many threads there are
        step = min(step, max(1, (LARGEST // len(who)) ** 2))
    for first in range(0, len(layers), step):
        some, block = list(layers[first : first + step]), np.asarray(states[first : first + step])
        products = [] if who is None else products_of(block[:, who], effort.threads)
        if read_into is not None:
            places = None if who is None else np.searchsorted(who, np.arange(block.shape[1]))
            read_labels(
                read_into, design, block, some, [] if places is None else [one.part(places) for one in products]
            )
        for side in sides:
            parts = [] if who is None else [side.parts(one, who) for one in products]
            yield side, some, survey(labellings[side.split], side.states(block), effort, layers=some, parts=parts)


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
                add(split, layer, bounds(measure, mean_interval(shares[split, layer], design.unit, seed=seed)))
        if split != "validation":
            members = next(side.members for side in design.sides if side.split == split)
            seed = design.seed_of("interval", "f1", split, layer)
            found = f1_interval(task[members], measured.clusters[split, layer], unit[members], seed=seed)
            add(split, layer, bounds("f1", found))
    for layer, named in measured.named.items():
        sure = mean_interval(named, design.unit, seed=design.seed_of("interval", "linear_accuracy", layer))
        add("test", layer, bounds("linear_accuracy", sure))
    add("validation", None, best_layers_of(measured))
    jobs = [KMeansJob(states, len(np.unique(task)), design.seed_of("k-means", number)) for number in range(_SEEDS)]
    tried = kmeans_many(jobs, initialisations=design.effort.initialisations, threads=design.effort.threads)
    spread = [f1_of(task, one.clusters) for one in tried]
    add("all", best, {"f1_seeds_low": min(spread), "f1_seeds_high": max(spread)})
    return rows


def best_layers_of(measured: LayerMeasures) -> dict[str, float]:
    """By the measures under which they stand."""
    return {
        "best_layer": float(measured.best_layer),
        "best_readable_layer": float(measured.best_readable_layer),
    }
