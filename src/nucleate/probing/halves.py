"""Which prompts are measured against which: labelled prompts in halves that share no instruction.

Whoever chooses a layer on some instructions reports it on others. So there are three sides: all prompts, as in the
paper, and two halves: `validation`, to choose, with neighbours of its own half; and `test`, to report, with neighbours,
centred means and linear probes from validation. If validation sought its neighbours in test, choice and report would
read the same distances, once by rows and once by columns.
"""

import hashlib
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self

import numpy as np

from nucleate.measures.held_out import Told, inner_folds, outer_folds
from nucleate.measures.labelling import Cohort, Labelling, labelling_of
from nucleate.measures.neighbours import Labels
from nucleate.measures.products import LARGEST, Part, Products
from nucleate.measures.shares import TaskDeals

AGAINST = "against"  # the name of a side's other half among its states


@dataclass(frozen=True, eq=False)
class Side:
    """One split, and the instances among which its neighbours are sought; both as places in the instances."""

    split: str
    members: np.ndarray
    against: np.ndarray

    def among(self, kept: np.ndarray, count: int) -> Self:
        """The same where only the `kept` ones of `count` instances are there, as places among these."""
        place = np.full(count, -1)
        place[kept] = np.arange(len(kept))
        members, against = (some[some >= 0] for some in (place[self.members], place[self.against]))
        return replace(self, members=members, against=against)

    def states(self, states: np.ndarray) -> Mapping[str, np.ndarray]:
        """(layer, instance, width) as `survey` wants them."""
        return {self.split: states[:, self.members], AGAINST: states[:, self.against]}

    def parts(self, products: Products, who: np.ndarray) -> Mapping[str, Part]:
        """The same, of a layer, where `who` (instance,) are the instances that have products."""
        members, against = (products.part(np.searchsorted(who, some)) for some in (self.members, self.against))
        return {self.split: members, AGAINST: against}

    def labelling(
        self, labels: Labels, mapping: np.ndarray, *, seed: int, repeats: int, spaces: Collection[str] = ("raw",)
    ) -> Labelling:
        """The labels of this side, true and dealt, under the codes of all instances."""
        none = np.empty((0, 2), dtype=np.int64)
        here, there = (
            Cohort(name, labels[some], mapping[some], none)
            for name, some in ((self.split, self.members), (AGAINST, self.against))
        )
        dealt = labelling_of([here], there, seed=seed, repeats=repeats, spaces=spaces)
        return replace(dealt, probed=frozenset())  # linear probes are told by `folds_of`


def shared_by(sides: Sequence[Side]) -> np.ndarray | None:
    """The instances of all sides, where their products with each other are fewer than what each side asks for alone:
    its neighbours, and half of its own for k-means. None where they are more, or too many."""
    who = np.unique(np.concatenate([some for side in sides for some in (side.members, side.against)]))
    alone = sum(len(side.members) * (len(side.against) + len(side.members) / 2) for side in sides)
    return who if len(who) ** 2 / 2 < alone and len(who) <= LARGEST else None


def held_out_units(instructions: Sequence[str], inputs: Sequence[str], tasks: Sequence[str]) -> tuple[list[str], bool]:
    """What is held out as a whole: the instruction of each prompt; or, where there are hardly more instructions than
    tasks (one request before every text, say), the prompt. And whether it is the instruction."""
    if len(set(instructions)) >= max(8, 2 * len(set(tasks))):
        return list(instructions), True
    return [f"{instruction}\n{given}" for instruction, given in zip(instructions, inputs, strict=True)], False


def sides_of(units: Sequence[str], groups: Sequence[object], splits: Sequence[str], *, seed: int) -> list[Side]:
    """all, validation, test. Data that come in train, validation and test are taken so, with neighbours from train;
    others are halved, unit by unit and evenly within each group, in an order that only unit and seed decide: a
    validation half that is sought in itself, and a test half that is sought in validation."""
    everyone, split = np.arange(len(units)), np.array(splits)
    if {"train", "validation", "test"} <= set(splits):
        train, validation, test = (np.flatnonzero(split == name) for name in ("train", "validation", "test"))
        return [Side("all", everyone, everyone), Side("validation", validation, train), Side("test", test, train)]
    members: dict[str, list[str]] = {}
    for unit, group in dict(zip(reversed(units), reversed(groups), strict=True)).items():  # of several, the first
        members.setdefault(str(group), []).append(unit)
    chosen: set[str] = set()
    place = 0
    for group in sorted(members):
        for unit in sorted(members[group], key=lambda unit: hashlib.sha256(f"{seed}/{unit}".encode()).digest()):
            place += 1
            if place % 2:
                chosen.add(unit)
    first = np.array([unit in chosen for unit in units])
    one, other = np.flatnonzero(first), np.flatnonzero(~first)
    return [Side("all", everyone, everyone), Side("validation", one, one), Side("test", other, one)]


def deciding_search(test: Side, labels: Labels) -> str:
    """The search whose share decides: among other inputs, where at least half of the prompts find their task there."""
    offered = TaskDeals.of(labels[test.members], labels[test.against]).offered
    among_others = offered.get("other_inputs")
    return "other_inputs" if among_others is not None and among_others.mean() >= 0.5 else ""


class Folds(NamedTuple):
    """Who is told by a linear probe that is fitted to whom: to choose, and to report."""

    inner: list[Told]
    outer: list[Told]


def folds_of(sides: Sequence[Side], labels: Labels, search: str, *, seed: int) -> Folds:
    """A layer and a penalty are chosen by five folds inside validation, from where test is told; where the data come
    with a training set, both are told from there. Where the neighbours that decide must have another input, and inputs
    stand in both halves, nobody is told by a probe that has met the input: a word may give its label away."""
    _, choosing, telling = sides
    repeated = np.isin(labels.input[telling.members], labels.input[telling.against]).any()
    inputs = labels.input if search and repeated else None
    if np.array_equal(choosing.members, choosing.against):
        inner = inner_folds(labels.instruction, inputs, choosing.members, seed=seed)
    else:
        inner = outer_folds(labels.instruction, inputs, choosing.against, choosing.members, seed=seed)
    return Folds(inner, outer_folds(labels.instruction, inputs, telling.against, telling.members, seed=seed))


def some_units(units: np.ndarray, most: int, *, seed: int) -> np.ndarray:
    """Places of at most `most` instances, whole units of them, drawn at random; all where they are no more, and any of
    them where no unit is small enough."""
    if len(units) <= most:
        return np.arange(len(units))
    names, code = np.unique(units, return_inverse=True)
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(names))
    within = np.cumsum(np.bincount(code)[order]) <= most
    return np.flatnonzero(np.isin(code, order[within])) if within.any() else np.sort(rng.permutation(len(units))[:most])
