"""What is known of the instances before any state is read: the splits to measure, their labels, and the labels that the
controls deal instead of them. Made once a run; `survey.py` measures every moment against it.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from nucleate.measures.baselines import dealt_outputs, regrouped_tasks, shuffled_labels
from nucleate.measures.neighbours import Labels
from nucleate.measures.shares import TaskDeals
from nucleate.streams import stream

KINDS = ("task", "distribution", "distribution_mapping")
SPACES = ("raw", "tsne", "centred", "averaged")


@dataclass(frozen=True)
class Cohort:
    """The instances of one split: what stays the same while their states change."""

    split: str
    labels: Labels
    mapping: np.ndarray  # (instance,) codes of (distribution, mapping) pairs
    pairs: np.ndarray  # (pair, 2) positions of a hard instance and of its original; none where they are not both here

    def classes(self, kind: str) -> np.ndarray:
        """(instance,) codes of one kind of labels; -1 where they are unknown."""
        return {"task": self.labels.task, "distribution": self.labels.distribution}.get(kind, self.mapping)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of labels that every instance has."""
        return tuple(kind for kind in KINDS if (self.classes(kind) >= 0).all())


@dataclass(frozen=True, eq=False)
class Placing:
    """Which instances of a split are points in a space, and what their labels are when true and when dealt."""

    members: np.ndarray  # (point,) position of an instance that the point stands for
    point_of: np.ndarray  # (instance,) its point; -1 where it was left out
    deals: dict[str, dict[str, np.ndarray]]  # kind of labels -> control -> (deal, point)
    outputs: np.ndarray  # (deal, point) dealt anew among each task's inputs; no deal where some are unknown

    @classmethod
    def of(
        cls, cohort: Cohort, members: np.ndarray, point_of: np.ndarray, kinds: Sequence[str], **dealing: int
    ) -> Self:
        labels = cohort.labels[members]
        instruction, distribution = labels.instruction, labels.distribution
        deals = {}
        for kind in kinds:
            classes = cohort.classes(kind)[members]
            deals[kind] = {
                "none": classes[np.newaxis],
                "shuffled": shuffled_labels(classes, instruction, **dealing),
            }
            if kind == "task" and "distribution" in cohort.kinds:
                deals[kind]["regrouped"] = regrouped_tasks(classes, distribution, **dealing)
        known = (labels.input >= 0).all() and (labels.output >= 0).all()
        outputs = (
            dealt_outputs(labels.task, labels.input, labels.output, **dealing)
            if known
            else np.empty((0, len(members)), dtype=np.int64)
        )
        return cls(members, point_of, deals, outputs)


@dataclass(frozen=True)
class Labelling:
    """The splits to measure, their training set, and all that depends on labels alone: made once a run."""

    cohorts: tuple[Cohort, ...]
    reference: Cohort
    seed: int
    deals: dict[tuple[str, str], dict[str, TaskDeals]]  # (split, space) -> control -> whose task is whose
    places: dict[tuple[str, str], Placing]  # (split, space); no centred and averaged where no input is shared
    kept: np.ndarray  # (training instance,) whether its input is seen in two tasks: only then is it more than a name
    probed: frozenset[str]  # splits without any instruction of the training set: only for them is there a linear probe


def labelling_of(
    cohorts: Sequence[Cohort],
    reference: Cohort,
    *,
    seed: int,
    repeats: int = 20,
    spaces: Collection[str] = SPACES,
) -> Labelling:
    """Deal the labels of the controls. Shuffled: between instructions, each side for itself. Regrouped: distributions
    to tasks at random, the same deal on both sides, sizes kept; not where some instance's distribution is unknown.
    Only `spaces` will be looked at."""
    deals: dict[tuple[str, str], dict[str, TaskDeals]] = {}
    places: dict[tuple[str, str], Placing] = {}
    for cohort in cohorts:
        for space, place in _places(cohort, reference, seed=seed, repeats=repeats):
            if space in spaces:
                places[cohort.split, space] = place
        for space in ("raw", "centred"):
            if space not in spaces:
                continue
            query, candidate = cohort.labels, reference.labels
            if space == "centred":
                query, candidate = (one[_shared_inputs(one, reference.labels)] for one in (query, candidate))
            if not len(query) or not len(candidate):
                continue
            shuffled = [
                shuffled_labels(one.task, one.instruction, seed=stream(seed, "shuffled", split), repeats=repeats)
                for one, split in ((query, cohort.split), (candidate, "train"))
            ]
            deals[cohort.split, space] = {
                "none": TaskDeals.of(query, candidate),
                "shuffled": TaskDeals.of(query, candidate, query_tasks=shuffled[0], candidate_tasks=shuffled[1]),
            }
            if "distribution" in cohort.kinds and "distribution" in reference.kinds:
                tasks, distributions = (
                    np.concatenate([getattr(one, name) for one in (query, candidate)])
                    for name in ("task", "distribution")
                )
                regrouped = regrouped_tasks(tasks, distributions, seed=stream(seed, "regrouped"), repeats=repeats)
                deals[cohort.split, space]["regrouped"] = TaskDeals.of(
                    query,
                    candidate,
                    query_tasks=regrouped[:, : len(query)],
                    candidate_tasks=regrouped[:, len(query) :],
                )
    known = reference.labels.instruction
    probed = frozenset(one.split for one in cohorts if not np.isin(one.labels.instruction, known).any())
    kept = _shared_inputs(reference.labels, reference.labels)
    return Labelling(tuple(cohorts), reference, seed, deals, places, kept, probed)


def _places(cohort: Cohort, reference: Cohort, *, seed: int, repeats: int) -> Iterator[tuple[str, Placing]]:
    """raw; tsne; centred: less what the input alone says; averaged: one point per instruction."""
    dealing = {"seed": stream(seed, "clusters", cohort.split), "repeats": repeats}
    everyone = np.arange(len(cohort.labels))
    placing = Placing.of(cohort, everyone, everyone, cohort.kinds, **dealing)
    yield "raw", placing
    yield "tsne", placing
    kept = _shared_inputs(cohort.labels, reference.labels)
    if not kept.any():
        return  # nothing can be told apart from the input
    members = np.flatnonzero(kept)
    yield "centred", Placing.of(cohort, members, np.where(kept, np.cumsum(kept) - 1, -1), cohort.kinds, **dealing)
    instructions = cohort.labels.instruction[members]
    first = members[np.sort(np.unique(instructions, return_index=True)[1])]
    point = {instruction: number for number, instruction in enumerate(cohort.labels.instruction[first])}
    point_of = np.array([point.get(instruction, -1) for instruction in cohort.labels.instruction])
    # One point stands for all mappings of its instruction.
    kinds = [kind for kind in cohort.kinds if kind != "distribution_mapping"]
    yield "averaged", Placing.of(cohort, first, point_of, kinds, **dealing)


def _shared_inputs(labels: Labels, reference: Labels) -> np.ndarray:
    pairs = np.unique(np.stack([reference.input, reference.task]), axis=1)
    inputs, tasks = np.unique(pairs[0], return_counts=True)
    return np.isin(labels.input, inputs[(tasks >= 2) & (inputs >= 0)])
