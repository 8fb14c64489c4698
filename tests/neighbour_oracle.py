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


def neighbour_measures(query_states, candidate_states, query, candidate, *, origin=None):
    """Every measure of one layer under the true labels."""
    found = find_neighbours(query_states, candidate_states, query, candidate)
    deals = TaskDeals.of(query, candidate)
    measures = share_measures(found, deals) | knn_accuracy(found[""], query.output, candidate.output)
    return measures if origin is None else measures | hard_shares(found[""], deals, origin=origin)


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
        if search == "other_both" and offered.any():
            each = []
            for one, kept, tasks in zip(shares, offered, deals.query, strict=True):
                ten, counted = one[neighbours.ks.index(10)], set(tasks[kept])
                if counted:
                    each.append(np.mean([ten[kept & (tasks == task)].mean() for task in counted]))
            measures[f"{name}_by_task"] = np.mean(each)
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


def hard_shares(neighbours, deals, *, origin):
    """Over the queries that were made from another of them, then over deals: a share of neighbours each."""
    found = {}
    for query in np.flatnonzero(origin >= 0):
        for name, owner in (("hard_share_origin", origin[query]), ("hard_share_own", query)):
            for row, k in enumerate(neighbours.ks):
                for own, theirs in zip(deals.query, deals.candidate, strict=True):
                    labels = np.full(len(own), own[owner])
                    found.setdefault(name + suffix(k), []).append(share(neighbours, labels, theirs)[row][query])
    return {name: np.mean(values) for name, values in found.items()}


def suffix(k):
    return "" if k == 10 else f"_k{k}"
