"""The loops of the neighbour search: states that coincide, squared distances, who may be among the nearest."""

import numpy as np

from nucleate.compiled import REORDERED, compiled

# Distances count as equal where they differ by less than this share of (the distance + the candidates' median norm):
# eight to sixteen roundings of a single-precision state. Points that should coincide but were computed in another
# batch, or had a mean subtracted, are ties by it; in real states chance brings two distances as near about once in
# ten thousand queries.
TIE = 2.0**-20

_NUMBERS_AT_ONCE = 2**22  # of states turned to integers
_STRETCH = 64  # candidates that are passed over together where none is near

kernel = compiled(fastmath=REORDERED)


def distinct_states(states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The states without repetitions, and for each state where it went.

    That no two hashes collide is checked; where they do nothing is merged, which costs time and changes no number.
    """
    everyone = np.arange(len(states))
    if len(np.unique(_hashes(states[:, :: max(1, states.shape[1] // 8)]))) == len(states):
        return states, everyone  # a few numbers of each state tell them apart already
    first, point = np.unique(_hashes(states), return_index=True, return_inverse=True)[1:]
    if len(first) == len(states) or not _equal_rows(states, first[point]):
        return states, everyone
    return states[first], point


def _hashes(states: np.ndarray) -> np.ndarray:
    """(n,) int64: equal bytes give equal hashes."""
    width = states.shape[1]
    odd = np.random.default_rng(0).integers(-(2**62), 2**62, width) * 2 + 1
    kind = np.int32 if states.dtype == np.float32 else np.int64
    hashes = np.empty(len(states), dtype=np.int64)
    step = max(1, _NUMBERS_AT_ONCE // width)
    for first in range(0, len(states), step):
        bits: np.ndarray = np.ascontiguousarray(states[first : first + step]).view(kind)
        hashes[first : first + step] = (bits * odd).sum(axis=1)
    return hashes


@kernel
def squared_distances(queries, points, row, column):
    """(pair,) squared distances in double precision, from the differences."""
    squares = np.empty(len(row))
    for pair in range(len(row)):
        query, point = queries[row[pair]], points[column[pair]]
        total = 0.0
        for i in range(len(query)):
            difference = np.float64(query[i]) - np.float64(point[i])
            total += difference * difference
        squares[pair] = total
    return squares


@kernel
def squared_norms(states):
    """(n,) in double precision."""
    squares = np.empty(len(states))
    for row in range(len(states)):
        state, total = states[row], 0.0
        for i in range(len(state)):
            total += np.float64(state[i]) * np.float64(state[i])
        squares[row] = total
    return squares


@kernel
def _equal_rows(states, twin):
    for row in range(len(states)):
        for i in range(states.shape[1]):
            if states[row, i] != states[twin[row], i]:
                return False
    return True


@kernel
def screen(dots, square, squares, start, member, own, theirs, allowed, searches, most, doubt, least, scale):
    """Who may be among the `most` nearest of each query, in any search: (pair,) query, candidate, bits of searches.

    `dots` (query, point), `square` (query,) and `squares` (point,) make squared distances that are right within
    `doubt` x their two squares + `least`. Candidates `member[start[p]:start[p + 1]]` lie on point p. `own` (query,
    column) and `theirs` (candidate, column) are codes; bit s of `allowed[b]` is set where search s allows a pair that
    is the same in the columns that are the bits of b.
    """
    queries, points = dots.shape
    high, low = (1.0 + doubt) * squares, (1.0 - doubt) * squares  # less twice the product: from, to, less the query's
    nearest = np.empty((searches, most))  # of the upper ends, rising
    held = np.empty(searches, np.int64)
    bound = np.empty(searches)
    room = 64 * queries + 1024
    pair_query, pair_candidate, pair_bits = np.empty(room, np.int64), np.empty(room, np.int64), np.empty(room, np.int64)
    pairs = 0
    for q in range(queries):
        dot = dots[q]
        held[:] = 0
        bound[:] = np.inf
        loosest = np.inf
        for first in range(0, points, _STRETCH):
            last = min(first + _STRETCH, points)
            if not _any_within(high[first:last], dot[first:last], loosest):
                continue
            for p in range(first, last):
                end = high[p] - 2.0 * dot[p]
                if end >= loosest:
                    continue
                for m in range(start[p], start[p + 1]):
                    bits = allowed[_same(own, q, theirs, member[m])]
                    for s in range(searches):
                        if end < bound[s] and bits >> s & 1:
                            row = nearest[s]
                            place = min(held[s], most - 1)
                            held[s] = place + 1
                            while place > 0 and row[place - 1] > end:
                                row[place] = row[place - 1]
                                place -= 1
                            row[place] = end
                            if held[s] == most:
                                bound[s] = row[most - 1]
                                loosest = bound[0]
                                for other in range(1, searches):
                                    loosest = max(loosest, bound[other])
        for s in range(searches):
            reach = np.sqrt(max(bound[s] + (1.0 + doubt) * square[q] + least, 0.0))
            reach += 2 * TIE * (reach + scale)  # all that may tie with the last of them
            bound[s] = reach * reach - (1.0 - doubt) * square[q] + least
        loosest = bound.max()
        for first in range(0, points, _STRETCH):
            last = min(first + _STRETCH, points)
            if not _any_within(low[first:last], dot[first:last], loosest):
                continue
            for p in range(first, last):
                end = low[p] - 2.0 * dot[p]
                if end > loosest:
                    continue
                for m in range(start[p], start[p + 1]):
                    bits = allowed[_same(own, q, theirs, member[m])]
                    for s in range(searches):
                        if end > bound[s]:
                            bits &= ~(1 << s)
                    if bits == 0:
                        continue
                    if pairs == room:
                        more = np.empty(room, np.int64)
                        pair_query = np.concatenate((pair_query, more))
                        pair_candidate = np.concatenate((pair_candidate, more))
                        pair_bits = np.concatenate((pair_bits, more))
                        room *= 2
                    pair_query[pairs], pair_candidate[pairs], pair_bits[pairs] = q, member[m], bits
                    pairs += 1
    return pair_query[:pairs], pair_candidate[:pairs], pair_bits[:pairs]


@kernel
def _any_within(ends, dot, limit):
    within = 0  # counted, not left early, so that it is pure vector code
    for p in range(len(ends)):
        within += 1 if ends[p] - 2.0 * dot[p] <= limit else 0
    return within > 0


@kernel
def _same(own, q, theirs, j):
    same = 0
    for column in range(own.shape[1]):
        same |= (1 if own[q, column] == theirs[j, column] else 0) << column
    return same
