"""Is a task's part of a state used? Who is moved to which other task, by what, and what came of it.

A held-out instance of task A is paired with every task B that has its input with another output. What is added to its
state is B's mean less A's, both of training instances less what their inputs alone say (`InputMeans`, space `centred`
everywhere else). States, labels and answers in, numbers out: the pass itself is `model/patching.py`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

import numpy as np
from scipy.sparse import csr_array

from nucleate.measures.baselines import InputMeans
from nucleate.measures.neighbours import Labels

FEWEST = 30  # pairs; of fewer nothing is told


@dataclass(frozen=True, eq=False)
class Pairs:
    """Held-out instances with the other tasks that they could be moved to."""

    instance: np.ndarray  # (pair,) its place among the held-out instances
    source: np.ndarray  # (pair,) its own task, A
    target: np.ndarray  # (pair,) the other one, B
    donor: np.ndarray  # (pair,) the place of a training instance of B with the same input, drawn at random

    def __len__(self) -> int:
        return len(self.instance)

    def __getitem__(self, some: Any) -> Self:
        return type(self)(*(getattr(self, field.name)[some] for field in fields(self)))


def pairs_of(held: Labels, known: Labels, *, seed: int) -> Pairs:
    """Every held-out instance with every other task that has its input with another output among the training
    instances, instance by instance. Inputs to which a task gives several outputs are left out there."""
    able = np.flatnonzero((known.input >= 0) & (known.output >= 0))
    cells, cell = np.unique(
        np.stack([known.input[able], known.task[able], known.output[able]]), axis=1, return_inverse=True
    )
    cell = cell.reshape(-1)
    members = np.split(able[np.argsort(cell, kind="stable")], np.cumsum(np.bincount(cell, minlength=1))[:-1])
    twice = np.unique(cells[:2], axis=1, return_inverse=True)[1].reshape(-1)
    single = np.bincount(twice, minlength=1)[twice] == 1
    of_input: dict[int, list[int]] = {}
    for number in np.flatnonzero(single).tolist():
        of_input.setdefault(int(cells[0, number]), []).append(number)
    rng, found = np.random.default_rng(seed), list[tuple[int, int, int, int]]()
    for place, (given, task, output) in enumerate(zip(held.input, held.task, held.output, strict=True)):
        for number in of_input.get(int(given), []) if given >= 0 and output >= 0 else []:
            if cells[1, number] != task and cells[2, number] != output:
                donor = members[number][rng.integers(len(members[number]))]
                found.append((place, int(task), int(cells[1, number]), int(donor)))
    return Pairs(*np.array(found, dtype=np.int64).reshape(-1, 4).T)


def other_prompts(pairs: Pairs, held: Labels, *, seed: int) -> np.ndarray:
    """(pair,) a held-out instance of neither of its tasks, drawn at random; -1 where there is none."""
    rng, drawn = np.random.default_rng(seed), np.full(len(pairs), -1)
    for place, (source, target) in enumerate(zip(pairs.source, pairs.target, strict=True)):
        others = np.flatnonzero((held.task != source) & (held.task != target))
        if len(others):
            drawn[place] = others[rng.integers(len(others))]
    return drawn


# --- by what they are moved -------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class CentredStates:
    """The training states of one layer less their inputs' means; those whose input stands in one task alone are not
    there. Every shift is (pair, width), a row of NaN where there is none."""

    points: np.ndarray  # (point, width) float64
    labels: Labels  # of the points
    place: np.ndarray  # (point,) its place among the training instances

    @classmethod
    def of(cls, states: np.ndarray, known: Labels) -> Self:
        points, kept = InputMeans.of(states, known.input, known.task).taken_from(states, known.input)
        kept &= known.input >= 0
        return cls(points[kept].astype(np.float64), known[kept], np.flatnonzero(kept))

    def task_shift(self, pairs: Pairs, held: Labels) -> np.ndarray:
        """The mean of the target's instances less that of the source's, in either without the instruction that is
        moved and without its input, whose right answer it would tell."""
        return self._shift(pairs, held, self.labels.task)

    def regrouped_shift(self, pairs: Pairs, held: Labels, deals: np.ndarray, *, seed: int) -> np.ndarray:
        """The same under tasks dealt anew, `deals` (deal, training instance); each pair goes by one of the deals, drawn
        at random."""
        shift = np.full((len(pairs), self.points.shape[1]), np.nan)
        drawn = np.random.default_rng(seed).integers(len(deals), size=len(pairs))
        for number, deal in enumerate(deals):
            some = np.flatnonzero(drawn == number)
            shift[some] = self._shift(pairs[some], held, deal[self.place])
        return shift

    def answer_shift(self, pairs: Pairs, held: Labels, known: Labels) -> np.ndarray:
        """The mean state of instances with the target's output, less the same for the source's; of neither task and
        with other inputs."""
        apart = self.labels.input != held.input[pairs.instance][:, None]  # (pair, point)
        for task in (pairs.source, pairs.target):
            apart &= self.labels.task != task[:, None]
        theirs, own = known.output[pairs.donor], held.output[pairs.instance]
        return self._mean(apart & (self.labels.output == theirs[:, None])) - self._mean(
            apart & (self.labels.output == own[:, None])
        )

    def _shift(self, pairs: Pairs, held: Labels, tasks: np.ndarray) -> np.ndarray:
        apart = self.labels.instruction != held.instruction[pairs.instance][:, None]  # (pair, point)
        apart &= self.labels.input != held.input[pairs.instance][:, None]
        return self._mean(apart & (tasks == pairs.target[:, None])) - self._mean(
            apart & (tasks == pairs.source[:, None])
        )

    def _mean(self, members: np.ndarray) -> np.ndarray:
        """(pair, width) the mean of the points that are members (pair, point)."""
        chosen, size = csr_array(members.astype(np.float64)), members.sum(axis=1)[:, None]
        total = chosen @ self.points
        return np.divide(total, size, out=np.full(total.shape, np.nan), where=size > 0)


def random_shift(shift: np.ndarray, *, seed: int) -> np.ndarray:
    """As long as each row of `shift`, in a direction drawn at random."""
    drawn = np.random.default_rng(seed).normal(size=shift.shape)
    return drawn * (np.linalg.norm(shift, axis=1) / np.linalg.norm(drawn, axis=1))[:, None]


def no_shorter(shift: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Each row of `shift`, made as long as that of `other` where it is shorter, so that a control is no weaker than
    what it is a control of; NaN where either is missing, and as it is where it has no direction."""
    length, wanted = np.linalg.norm(shift, axis=1), np.linalg.norm(other, axis=1)
    scale = np.divide(wanted, length, out=np.where(np.isnan(wanted), np.nan, 1.0), where=length > 0)
    return shift * np.maximum(scale, 1.0)[:, None]


def is_there(shift: np.ndarray) -> np.ndarray:
    """(pair,) bool: the shifts that there are."""
    return ~np.isnan(shift).any(axis=1)


# --- what came of it --------------------------------------------------------------------------------------------------


def outcomes(
    predicted: np.ndarray, logits: np.ndarray, source_answer: np.ndarray, target_answer: np.ndarray
) -> dict[str, np.ndarray]:
    """measure -> (pair,) bool, from the answers after the move and the logits (pair, 2) of the source's answer and of
    the target's: it is the target's, the source's, neither; the target's is likelier than the source's."""
    target, source = predicted == target_answer, predicted == source_answer
    return {
        "transfer_target": target,
        "transfer_source": source,
        "transfer_neither": ~(target | source),
        "transfer_likelier": logits[:, 1] > logits[:, 0],
    }


def shares(found: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The share of the pairs, by measure; nothing where they are too few."""
    return {name: float(one.mean()) for name, one in found.items() if len(one) >= FEWEST}
