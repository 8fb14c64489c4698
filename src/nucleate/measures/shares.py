"""What tasks and outputs the neighbours have (§3.3): shares, votes, whom hard examples lie beside, who is mixed up.

`neighbour_shares` searches the states once and reads off everything, so that true, shuffled and regrouped labels
(`TaskDeals`) cost one search together.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np

from nucleate.measures.neighbour_kernels import TIE, kernel
from nucleate.measures.neighbours import (
    BARE,
    KS,
    SEARCHES,
    Labels,
    Neighbours,
    neighbour_blocks,
    searches_of,
)
from nucleate.refusal import Refused

_BOTH = "other_both"  # the search of whose neighbours the mean over tasks is told too

# --- what the neighbours are ------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class TaskDeals:
    """Task labels of queries and candidates under one or more deals: the true ones, or permuted ones.

    `offered[search]` says whose task offers a candidate at all that the search allows. It depends on the labels alone,
    so make the deals once and use them for every layer and epoch.
    """

    query: np.ndarray  # (deal, query)
    candidate: np.ndarray  # (deal, candidate)
    offered: dict[str, np.ndarray]  # (deal, query) bool

    @classmethod
    def of(
        cls,
        query: Labels,
        candidate: Labels,
        *,
        query_tasks: np.ndarray | None = None,
        candidate_tasks: np.ndarray | None = None,
    ) -> "TaskDeals":
        """The true tasks, or `query_tasks` (deal, query) with `candidate_tasks` (deal, candidate) in their place.

        Which candidates are allowed never changes with a deal: instructions, inputs and distributions stay.
        """
        query_tasks = query.task[None] if query_tasks is None else query_tasks
        candidate_tasks = candidate.task[None] if candidate_tasks is None else candidate_tasks
        if query_tasks.shape[1:] != query.task.shape or candidate_tasks.shape[1:] != candidate.task.shape:
            raise Refused("task deals: give one task per instance in every deal, shape (deal, instance)")
        if len(query_tasks) != len(candidate_tasks):
            raise Refused(
                f"task deals: {len(query_tasks)} for the queries but {len(candidate_tasks)} for the candidates; "
                "deal both sides equally often"
            )
        offered = {
            name: _offers(query, candidate, ("instruction", *SEARCHES[name]), query_tasks, candidate_tasks) > 0
            for name in searches_of(query, candidate)
        }
        return cls(query_tasks, candidate_tasks, offered)


def _means(search: str, shares: np.ndarray, ks: Sequence[int], deals: TaskDeals) -> dict[str, float]:
    """How many of the neighbours of one search have the query's task, from their shares (deal, k, query): the mean over
    queries, then over deals.

    Queries whose task offers no candidate are left out; `..._kept` is the share of queries that stay. A measure for
    which none stays is missing. `..._by_task`, of the ten nearest that differ in input and distribution, is the mean
    over tasks instead, since few tasks may have most of the queries that stay.
    """
    name, offered = "_".join(("knn_share", search)).rstrip("_"), deals.offered[search]
    if not offered.shape[1]:
        return {}
    measures: dict[str, float] = {}
    kept = offered.sum(axis=1)
    for row, k in enumerate(ks):
        means = np.sum(shares[:, row], axis=1, where=offered)[kept > 0] / kept[kept > 0]
        if len(means):
            measures[name + _suffix(k)] = float(means.mean())
    if search == _BOTH and (kept > 0).any():
        ten = shares[:, ks.index(BARE)]
        by_task = [_mean_by_class(ten[deal], deals.query[deal], offered[deal]) for deal in np.flatnonzero(kept)]
        measures[f"{name}_by_task"] = float(np.mean(by_task))
    return measures | {f"{name}_kept": float(offered.mean())}


def _mean_by_class(values: np.ndarray, classes: np.ndarray, counted: np.ndarray) -> float:
    """The mean over classes of the means of those of their values that are counted."""
    code = np.unique(classes[counted], return_inverse=True)[1]
    return float(np.mean(np.bincount(code, values[counted]) / np.bincount(code)))


def share(neighbours: Neighbours, query_labels: np.ndarray, candidate_labels: np.ndarray) -> np.ndarray:
    """Share of each query's K nearest that carry its own label, 0..1; 0 where a query has no neighbours.

    Labels are (query,) and (candidate,), the result (k, query); or (deal, query), (deal, candidate), the result
    (deal, k, query). Made of two counts and one fraction, so the order of ties cannot move even its last bit.
    """
    alone = query_labels.ndim == 1
    own, theirs = (x[None] if alone else x for x in (query_labels, candidate_labels))
    places = neighbours.start, neighbours.candidate, neighbours.inside, neighbours.reach
    fully, tied = _matches(*places, own.astype(np.int64), theirs.astype(np.int64))
    shares = (fully + neighbours.fraction * tied) / np.maximum(neighbours.total, 1)
    return shares[0] if alone else shares


def _right(votes: Sequence[np.ndarray], ks: Sequence[int], outputs: np.ndarray) -> dict[str, float]:
    """Share of queries whose neighbours' majority output, from the votes (k, query), is their own: over those whose
    output is known (not -1); one without any neighbour counts as wrong."""
    known = outputs >= 0
    return {
        f"knn_accuracy{_suffix(k)}": float((cast[known] == outputs[known]).mean())
        for k, cast in zip(ks, votes, strict=True)
    }


def vote(neighbours: Neighbours, candidate_outputs: np.ndarray, k: int) -> np.ndarray:
    """(query,) the output of the largest summed weight among the K nearest; -1 without neighbours.

    Of equal ones the one with the smaller summed (weighted) distance, then the smaller code: a law, not file order.
    Candidates of unknown output (-1) vote for it.
    """
    row = neighbours.ks.index(k)
    names, code = np.unique(candidate_outputs, return_inverse=True)
    places = neighbours.start, neighbours.candidate, neighbours.distance, neighbours.inside[row], neighbours.reach[row]
    elected = _elected(*places, neighbours.fraction[row], code, len(names), neighbours.scale)
    return np.where(elected >= 0, names[elected], -1)


def _hard(shares: np.ndarray, hard: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Whose neighbours hard examples are, from the shares of the origin's and of the own task, (2, deal, k, query). The
    two need not sum to 1: other tasks take the rest."""
    means = shares[..., hard].mean(axis=-1).mean(axis=1)  # (2, k)
    names = ("hard_share_origin", "hard_share_own")
    return {
        name + _suffix(k): float(value)
        for name, row in zip(names, means, strict=True)
        for k, value in zip(ks, row, strict=True)
    }


def _suffix(k: int) -> str:
    return "" if k == BARE else f"_k{k}"


def _offers(
    query: Labels, candidate: Labels, apart: Sequence[str], query_tasks: np.ndarray, candidate_tasks: np.ndarray
) -> np.ndarray:
    """(deal, query) how many candidates have the query's task and differ from it in every column of `apart`.

    All of the task, less those that share one column, plus those that share two, ... (inclusion and exclusion).
    """
    offers = np.zeros(query_tasks.shape, dtype=np.int64)
    for size in range(len(apart) + 1):
        for columns in combinations(apart, size):
            cells = np.zeros(len(query) + len(candidate), dtype=np.int64)
            for column in columns:
                codes = np.concatenate([getattr(query, column), getattr(candidate, column)])
                both = np.stack([cells, codes])
                cells = np.unique(both, axis=1, return_inverse=True)[1].reshape(-1)
            stride = int(cells.max(initial=0)) + 1
            for deal, (own, theirs) in enumerate(zip(query_tasks, candidate_tasks, strict=True)):
                held = np.sort(theirs.astype(np.int64) * stride + cells[len(query) :])
                wanted = own.astype(np.int64) * stride + cells[: len(query)]
                count = np.searchsorted(held, wanted, side="right") - np.searchsorted(held, wanted, side="left")
                offers[deal] += (-1) ** size * count
    return offers


# --- without keeping them ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class NeighbourShares:
    """What the neighbours of some queries come to; who they are is not kept."""

    measures: dict[str, dict[str, float]]  # control -> measure -> value; accuracy and hard examples under `none`
    own: dict[str, np.ndarray]  # search -> (query,) share of the K = 10 nearest that have the query's true task
    chance: dict[str, np.ndarray]  # search -> (task,) the same under shuffled labels, of those who were dealt the task
    mixed: dict[str, np.ndarray]  # search -> (task, other) whose the neighbours of a task are, summed over queries


def neighbour_shares(
    queries: Sequence[tuple[Any, Labels]],
    candidate_states: Any,
    candidate: Labels,
    *,
    deals: Sequence[Mapping[str, TaskDeals]],
    origin: Sequence[np.ndarray],
) -> list[NeighbourShares]:
    """For each set of queries every measure of its neighbours, 0..1, block by block.

    Under each of its deals (control -> deals, `none` the true ones) `knn_share` of each search and, of the queries that
    were made from another one (`origin` (query,): its place among the queries, else -1), `hard_share_own` and
    `hard_share_origin`; under the true one `knn_accuracy`. With `_k1` and so on for K other than 10."""
    collected = [_Collected() for _ in queries]
    for number, rows, found in neighbour_blocks(queries, candidate_states, candidate):
        collected[number].add(found, queries[number][1], candidate, deals[number], origin[number], rows)
    return [
        one.whole(labels, dealt, made_from)
        for one, (_, labels), dealt, made_from in zip(collected, queries, deals, origin, strict=True)
    ]


class _Collected:
    """Query by query what each block told."""

    def __init__(self) -> None:
        self._shares: dict[tuple[str, str], list[np.ndarray]] = {}  # (control, search): of (deal, k, query)
        self._votes: list[np.ndarray] = []  # of (k, query)
        self._hard: dict[str, list[np.ndarray]] = {}  # control: of (2, deal, k, query)
        self._mixed: dict[str, np.ndarray] = {}

    def add(
        self,
        found: Mapping[str, Neighbours],
        query: Labels,
        candidate: Labels,
        deals: Mapping[str, TaskDeals],
        origin: np.ndarray,
        rows: slice,
    ) -> None:
        for search, neighbours in found.items():
            for control, dealt in deals.items():
                shares = share(neighbours, dealt.query[:, rows], dealt.candidate)
                self._shares.setdefault((control, search), []).append(shares)
            tasks = int(max(query.task.max(initial=0), candidate.task.max())) + 1
            mixed = mixture(neighbours, query.task[rows], candidate.task, tasks=tasks)
            self._mixed[search] = mixed + self._mixed.get(search, 0)
        near = found[""]
        if (query.output >= 0).any():
            self._votes.append(np.stack([vote(near, candidate.output, k) for k in near.ks]))
        if (origin >= 0).any():
            for control, dealt in deals.items():
                own = dealt.query[:, rows]
                origins = np.where(origin[rows] >= 0, dealt.query[:, origin[rows]], -1)
                both = np.stack([share(near, labels, dealt.candidate) for labels in (origins, own)])
                self._hard.setdefault(control, []).append(both)

    def whole(self, query: Labels, deals: Mapping[str, TaskDeals], origin: np.ndarray) -> NeighbourShares:
        measures: dict[str, dict[str, float]] = {control: {} for control in deals}
        own, chance = dict[str, np.ndarray](), dict[str, np.ndarray]()
        for (control, search), parts in self._shares.items():
            shares, offered = np.concatenate(parts, axis=2), deals[control].offered[search]
            measures[control] |= _means(search, shares, KS, deals[control])
            ten = shares[:, KS.index(BARE)]
            if control == "none":
                own[search] = np.where(offered[0], ten[0], np.nan)
            if control == "shuffled":
                dealt, most = deals[control].query[offered], int(deals[control].query.max(initial=0)) + 1
                count = np.bincount(dealt, minlength=most)
                total = np.bincount(dealt, ten[offered], minlength=most)
                chance[search] = np.divide(total, count, out=np.full(most, np.nan), where=count > 0)
        if self._votes:
            measures["none"] |= _right(list(np.concatenate(self._votes, axis=1)), KS, query.output)
        for control, parts in self._hard.items():
            measures[control] |= _hard(np.concatenate(parts, axis=-1), origin >= 0, KS)
        return NeighbourShares(measures, own, chance, self._mixed)


def mixture(found: Neighbours, query_task: np.ndarray, candidate_task: np.ndarray, *, tasks: int) -> np.ndarray:
    """(task, other) how many queries' worth of a task's neighbours have the other task; a row sums to its queries."""
    share_of = 1 / np.maximum(found.total[found.ks.index(BARE)], 1)
    cell = query_task[found.query] * tasks + candidate_task[found.candidate]
    weights = found.weights(BARE) * share_of[found.query]
    return np.bincount(cell, weights=weights, minlength=tasks * tasks).reshape(tasks, tasks).astype(float)


@kernel
def _elected(start, candidate, distance, inside, reach, fraction, output, outputs, scale):
    """(query,) the output that is elected, -1 where nobody votes. `fraction` (query,) is what each that ties counts."""
    queries = len(start) - 1
    elected = np.full(queries, -1, np.int64)
    votes, far = np.zeros(outputs), np.zeros(outputs)
    for q in range(queries):
        first, most = start[q], 0.0
        for e in range(reach[q]):
            weight = 1.0 if e < inside[q] else fraction[q]
            party = output[candidate[first + e]]
            votes[party] += weight
            far[party] += weight * distance[first + e]
            most = max(most, votes[party])
        if most > 0.0:
            nearest = np.inf
            for party in range(outputs):
                if votes[party] >= most - 1e-9:  # three thirds are one
                    nearest = min(nearest, far[party])
            for party in range(outputs):
                if votes[party] >= most - 1e-9 and far[party] <= nearest + TIE * (nearest + votes[party] * scale):
                    elected[q] = party
                    break
        for e in range(reach[q]):
            party = output[candidate[first + e]]
            votes[party] = far[party] = 0.0
    return elected


@kernel
def _matches(start, candidate, inside, reach, own, theirs):
    """(2, deal, k, query) how many neighbours have the query's label: of those that count fully, of those that tie."""
    ks, queries = inside.shape
    matches = np.empty((2, len(own), ks, queries), np.int64)
    before = np.zeros(len(candidate) + 1, np.int64)  # how many of the first i entries of a query match
    for deal in range(len(own)):
        for q in range(queries):
            first, label = start[q], own[deal, q]
            for e in range(start[q + 1] - first):
                before[e + 1] = before[e] + (1 if theirs[deal, candidate[first + e]] == label else 0)
            for k in range(ks):
                fully = before[inside[k, q]]
                matches[0, deal, k, q] = fully
                matches[1, deal, k, q] = before[reach[k, q]] - fully
    return matches
