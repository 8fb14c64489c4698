"""Neighbours that are kept, all at once, and their measures as plain means: the oracle of `shares.neighbour_shares`,
which keeps none. Search, shares and votes of each query are the package's own; they have tests of their own."""

import numpy as np

from nucleate.measures.neighbours import KS, Neighbours, neighbour_blocks
from nucleate.measures.shares import TaskDeals, share, vote


def find_neighbours(query_states, candidate_states, query, candidate, *, ks=KS, **how):
    """search -> the nearest candidates of every query."""
    blocks = neighbour_blocks([(query_states, query)], candidate_states, candidate, ks=ks, **how)
    parts = [found for _, _, found in blocks]
    return {name: joined([part[name] for part in parts]) for name in parts[0]}


def joined(parts):
    if len(parts) == 1:
        return parts[0]
    return Neighbours(
        ks=parts[0].ks,
        start=np.concatenate([[0], np.cumsum(np.concatenate([np.diff(part.start) for part in parts]))]),
        candidate=np.concatenate([part.candidate for part in parts]),
        distance=np.concatenate([part.distance for part in parts]),
        inside=np.concatenate([part.inside for part in parts], axis=1),
        reach=np.concatenate([part.reach for part in parts], axis=1),
        scale=parts[0].scale,
    )


def neighbour_measures(query_states, candidate_states, query, candidate, *, origin_task=None):
    """Every measure of one layer under the true labels."""
    found = find_neighbours(query_states, candidate_states, query, candidate)
    measures = share_measures(found, TaskDeals.of(query, candidate))
    measures |= knn_accuracy(found[""], query.output, candidate.output)
    if origin_task is not None:
        measures |= hard_shares(found[""], query.task, candidate.task, origin_task=origin_task)
    return measures


def share_measures(found, deals):
    """The mean over queries whose task offers a candidate, then over deals; how many of them there are."""
    measures = {}
    for search, neighbours in found.items():
        offered, name = deals.offered[search], f"knn_share_{search}".rstrip("_")
        shares = share(neighbours, deals.query, deals.candidate)
        for row, k in enumerate(neighbours.ks):
            means = [one[row][kept].mean() for one, kept in zip(shares, offered, strict=True) if kept.any()]
            if means:
                measures[name + suffix(k)] = np.mean(means)
        if offered.shape[1]:
            measures[f"{name}_kept"] = offered.mean()
    return measures


def knn_accuracy(neighbours, query_outputs, candidate_outputs):
    """Over the queries whose output is known."""
    known = query_outputs >= 0
    if not known.any():
        return {}
    votes = {k: vote(neighbours, candidate_outputs, k) for k in neighbours.ks}
    return {f"knn_accuracy{suffix(k)}": (cast == query_outputs)[known].mean() for k, cast in votes.items()}


def hard_shares(neighbours, query_task, candidate_task, *, origin_task):
    """Over the queries that were made from another instance."""
    hard, row = origin_task >= 0, neighbours.ks.index(10)
    kinds = {"hard_share_origin": origin_task, "hard_share_own": query_task}
    return {
        name: share(neighbours, task, candidate_task)[row][hard].mean() for name, task in kinds.items() if hard.any()
    }


def suffix(k):
    return "" if k == 10 else f"_k{k}"
