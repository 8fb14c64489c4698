"""Task by task: how far it is separate, with which others it is confused, which of its prompts look mislabelled.

`survey` gives one number for all tasks; this room opens it up, from the neighbours and clusters that were found there.
"""

from dataclasses import dataclass

import numpy as np

from nucleate.intervals import Interval, subsample_interval
from nucleate.measures.baselines import LinearProbe

MISLABELLED = 0.5  # a margin of `doubts` from which on a prompt looks mislabelled
_FOLDS = 5
_PLANTED, _ENOUGH, _MOST_DEALS = (
    0.02,
    100,
    50,
)  # share of labels that are changed on purpose, how many in all, how often
FEWEST = 4  # instructions; with fewer there is no interval


def confusion(mixed: np.ndarray) -> np.ndarray:
    """(task, other) share of a task's neighbours that have the other task, from `NeighbourShares.mixed`: rows sum to 1,
    or are NaN without any."""
    queries = mixed.sum(axis=1, keepdims=True)
    return np.divide(mixed, queries, out=np.full_like(mixed, np.nan), where=queries > 0)


def best_cluster_f1(task: np.ndarray, clusters: np.ndarray) -> np.ndarray:
    """(task,) F1 of each task with the cluster that fits it best, 0..1; their mean by size is `f1`. NaN if absent."""
    sizes, held = np.bincount(task), np.bincount(clusters)
    together = np.bincount(task * len(held) + clusters, minlength=len(sizes) * len(held)).reshape(len(sizes), -1)
    best = (2 * together / np.maximum(sizes[:, None] + held, 1)).max(axis=1)
    return np.where(sizes > 0, best, np.nan)


def f1_of(task: np.ndarray, clusters: np.ndarray) -> float:
    """The F1 of `ClusterScores`, and nothing else: fast enough to ask hundreds of times."""
    return float(np.nansum(best_cluster_f1(task, clusters) * np.bincount(task)) / len(task))


def f1_interval(task: np.ndarray, clusters: np.ndarray, instructions: np.ndarray, *, seed: int) -> Interval | None:
    """F1 of fixed clusters, with its interval over whole instructions; None where there are too few."""
    if len(np.unique(instructions)) < FEWEST:
        return None
    return subsample_interval(lambda rows: f1_of(task[rows], clusters[rows]), instructions, seed=seed)


def by_task(values: np.ndarray, task: np.ndarray) -> np.ndarray:
    """(task,) mean of the values that are not NaN; NaN where a task has none."""
    here = ~np.isnan(values)
    count = np.bincount(task[here], minlength=int(task.max()) + 1)
    total = np.bincount(task[here], weights=values[here], minlength=len(count))
    return np.divide(total, count, out=np.full(len(count), np.nan), where=count > 0)


def mean_interval(values: np.ndarray, instructions: np.ndarray, *, seed: int) -> Interval | None:
    """Mean of the values that are not NaN, with its interval over whole instructions (`subsample_interval`); None
    where too few instructions have any."""
    here = ~np.isnan(values)
    code = np.unique(instructions[here], return_inverse=True)[1]
    if not len(code) or code.max() + 1 < FEWEST:
        return None
    total, count = np.bincount(code, weights=values[here]), np.bincount(code)  # a row per instruction: the same mean
    return subsample_interval(
        lambda rows: float(total[rows].sum() / count[rows].sum()), np.arange(len(total)), seed=seed
    )


def mean_known(values: np.ndarray) -> float:
    """The mean of the values that are not NaN; NaN without any."""
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def bounds(measure: str, found: Interval | None) -> dict[str, float]:
    """An interval's ends by the names of their measures; nothing where there is none."""
    return {} if found is None else {f"{measure}_low": found.low, f"{measure}_high": found.high}


@dataclass(frozen=True, eq=False)
class Doubts:
    """What other task each prompt might have."""

    nearest: np.ndarray  # (instance,) the likeliest task but its own; -1 where there is none
    margin: np.ndarray  # (instance,) by how much that one is likelier, about -2..2; NaN where it cannot be said

    def most(self, task: np.ndarray, per_task: int = 10) -> np.ndarray:
        """The most doubtful prompts of each task, tasks in order, most doubtful first."""
        order = np.lexsort((np.arange(len(task)), -self.margin, task))
        order = order[~np.isnan(self.margin[order])]
        rank = np.arange(len(order)) - np.searchsorted(task[order], task[order])
        return order[rank < per_task]


def doubts(states: np.ndarray, task: np.ndarray, prompt: np.ndarray, *, seed: int) -> Doubts:
    """Whether a linear probe that has not seen a prompt takes it for another task.

    The probe is fitted to four fifths of the prompts and answers for the last fifth, five times; equal prompts (codes)
    stay together. Other prompts of the same instruction do count as witnesses: of 2 % planted labels, the first 2 % by
    margin then held 93-97 % on prompts whose nearest neighbours had 7-66 % (docs/notebook.md). The price: an
    instruction that is mislabelled as a whole, with all its inputs, is not found.
    """
    distinct, code = np.unique(prompt, return_inverse=True)
    fold = np.random.default_rng(seed).permutation(len(distinct))[code] % _FOLDS
    nearest, margin = np.full(len(task), -1), np.full(len(task), np.nan)
    for number in range(_FOLDS):
        asked = np.flatnonzero(fold == number)
        known = task[fold != number]
        if not len(asked) or len(np.unique(known)) < 2:
            continue
        probe = LinearProbe.fit(states[fold != number], known)
        asked = asked[np.isin(task[asked], probe.classes)]  # a task that nobody else has cannot be recognised
        answers = ((states[asked] - probe.mean) * probe.scale) @ probe.weights + probe.intercept
        own = np.searchsorted(probe.classes, task[asked])
        rows = np.arange(len(asked))
        given = answers[rows, own]
        answers[rows, own] = -np.inf
        other = answers.argmax(axis=1)
        nearest[asked], margin[asked] = probe.classes[other], answers[rows, other] - given
    return Doubts(nearest, margin)


def planted_found(states: np.ndarray, task: np.ndarray, prompt: np.ndarray, *, seed: int) -> float | None:
    """How sharp the list is: of single labels changed at random on purpose, two in a hundred at a time, the share that
    comes to look mislabelled. None where there is but one task. It says nothing of false alarms, nor of labels that are
    wrong alike (two tasks taken for each other, an instruction as a whole)."""
    tasks, count = np.unique(task), max(1, round(_PLANTED * len(task)))
    if len(tasks) < 2:
        return None
    found, deals = 0, min(_MOST_DEALS, -(-_ENOUGH // count))
    for deal in range(deals):
        rng = np.random.default_rng([seed, deal])
        planted = rng.permutation(len(task))[:count]
        changed = task.copy()
        step = rng.integers(1, len(tasks), size=count)
        changed[planted] = tasks[(np.searchsorted(tasks, task[planted]) + step) % len(tasks)]
        found += int((doubts(states, changed, prompt, seed=seed).margin[planted] > MISLABELLED).sum())
    return found / (deals * count)
