"""k-means of many points: on the points themselves, by matrix products in blocks."""

from dataclasses import dataclass
from functools import cached_property
from hashlib import blake2b

import numpy as np

from nucleate.measures.kmeans_pairwise import MOST_SWEEPS, STAYS, accumulate, add, between, by_appearance, find, kernel
from nucleate.measures.products import LARGEST, Part

LARGEST_TABLE = 2**26  # entries of the (cluster, point) table of a large problem: 256 MiB in single precision
ENOUGH = (
    0.005  # of the points: where fewer move, it has shown how good an initialisation is (benchmarks/kmeans.py --early)
)
_BLOCK = 2048  # points that are multiplied at once


@dataclass(frozen=True, eq=False)
class Points:
    """A problem, made ready once for all that ask."""

    values: np.ndarray  # (m, width) float32: the distinct points around a mean, the largest coordinate near 1
    squares: np.ndarray  # (m,) float32 squared lengths
    copies: np.ndarray  # (m,) float64
    inverse: np.ndarray  # (n,) which distinct point each point is
    exponent: int  # values are 2 ** -exponent times the points
    part: Part | None = None  # the same among others, whose products are known

    def products(self, some: np.ndarray, *, of: int) -> np.ndarray:
        """(some, m) of some of the points with all. `of`: so many are asked for in all; of few each is multiplied by
        itself."""
        if self.part is not None:
            return self.part[some].dots(self.part)
        if of >= len(self.values) / 4 and len(self.values) <= LARGEST:
            return self._gram[some]
        return self.values[some] @ self.values.T

    @cached_property
    def _gram(self) -> np.ndarray:
        return self.values @ self.values.T


def cluster_points(problem: Points, draws: np.ndarray) -> tuple[np.ndarray, float, int]:
    """As `kmeans_pairwise.cluster_distances`, but only the best of Lloyd's ends, or of what comes near to them, goes on
    to single moves: from there on the others cost more than they promise."""
    m = len(problem.values)
    initialisations, k, _ = draws.shape
    if m <= k:
        return by_appearance(problem.inverse), 0.0, 0
    labels = _seeds(problem, draws)
    best: tuple[float, _Descent] | None = None
    together = max(1, LARGEST_TABLE // (k * m))
    for start in range(0, initialisations, together):
        descents = [_begin(problem, label) for label in labels[start : start + together]]
        _settle(problem, descents, alone=False)
        for descent in descents:
            inertia = _inertia(problem.values, problem.copies, descent.label, len(descent.size))
            if best is None or inertia < best[0]:
                best = inertia, descent
    assert best is not None
    descent = best[1]
    _settle(problem, [descent], alone=True)
    inertia = _inertia(problem.values, problem.copies, descent.label, len(descent.size))
    clusters = by_appearance(descent.label[problem.inverse])
    return clusters, float(np.ldexp(inertia, 2 * problem.exponent)), descent.sweeps


def distinct_points(points: np.ndarray, part: Part | None = None) -> Points:
    """`part` are these points among others, around whose mean they are then taken."""
    values = points + np.float32(0)  # minus zero becomes zero: the same point, the same bytes
    seen: dict[bytes, int] = {}
    inverse = np.array([seen.setdefault(blake2b(row, digest_size=16).digest(), len(seen)) for row in values])
    first = np.unique(inverse, return_index=True)[1]
    copies = np.bincount(inverse).astype(np.float64)
    if part is not None:
        part = part[first]
        return Points(part.around, part.squares.astype(np.float32), copies, inverse, part.products.exponent, part)
    mean = values.mean(axis=0, dtype=np.float64)
    largest = max(float((values.max(axis=0) - mean).max()), float((mean - values.min(axis=0)).max()))
    exponent = int(np.frexp(largest)[1])
    if len(seen) < len(values):
        values = values[first]
    _centre(values, mean, np.ldexp(1.0, -exponent))
    squares = np.einsum("ij,ij->i", values, values)
    return Points(values, squares, copies, inverse, exponent)


@kernel
def _centre(points, mean, scale):
    for i in range(len(points)):
        row = points[i]
        for t in range(len(mean)):
            row[t] = (row[t] - mean[t]) * scale


def _seeds(problem: Points, draws: np.ndarray) -> np.ndarray:
    """Greedy k-means++ of all initialisations side by side, their candidates in one product: labels (descent, m)."""
    descents, k, trials = draws.shape
    m = len(problem.values)
    closest = np.ones((descents, m), np.float32)
    labels = np.zeros((descents, m), np.int32)
    reached = np.empty(m)
    for c in range(k):
        candidates = _candidates(closest, problem.copies, reached, draws[:, c] if c else draws[:, 0, :1])
        products = problem.products(candidates.ravel(), of=k * descents * trials)  # (descent × trial, m)
        _keep_best(products, problem.squares, problem.copies, candidates, c, closest, labels)
    return labels


@kernel
def _candidates(closest, copies, reached, draws):
    chosen = np.empty(draws.shape, np.int64)
    for r in range(len(draws)):
        accumulate(closest[r], copies, reached)
        for trial in range(draws.shape[1]):
            chosen[r, trial] = find(closest[r], reached, draws[r, trial])
    return chosen


@kernel
def _keep_best(products, squares, copies, candidates, c, closest, labels):
    m = len(squares)
    descents, trials = candidates.shape
    for r in range(descents):
        known, label = closest[r], labels[r]
        least, best = np.inf, 0
        for trial in range(trials):
            if c == 0:
                break
            row, square = products[r * trials + trial], squares[candidates[r, trial]]
            potential = 0.0
            for i in range(m):
                distance = squares[i] + square - np.float32(2) * row[i]
                distance = distance if distance < known[i] else known[i]
                potential += copies[i] * (distance if distance > 0 else np.float32(0))
            if potential < least:
                least, best = potential, trial
        row, seed = products[r * trials + best], candidates[r, best]
        square = squares[seed]
        for i in range(m):
            distance = squares[i] + square - np.float32(2) * row[i]
            distance = distance if distance > 0 else np.float32(0)
            nearer = (distance < known[i]) | (c == 0)
            known[i] = distance if nearer else known[i]
            label[i] = c if nearer else label[i]
        known[seed] = np.float32(0)
        label[seed] = c


@dataclass(eq=False)
class _Descent:
    """One initialisation on its way down; sums, sizes and means in double precision."""

    label: np.ndarray  # (m,)
    sums: np.ndarray  # (cluster, width)
    size: np.ndarray
    means: np.ndarray
    changed: np.ndarray  # which means have moved since the last sweep
    nearest: np.ndarray  # (m,)
    sweeps: int = 0


def _begin(problem: Points, label: np.ndarray) -> _Descent:
    label = np.unique(label, return_inverse=True)[1].astype(np.int32)  # seeds that rounding made one own nothing
    k = int(label.max()) + 1
    sums, size = _sums(problem.values, problem.copies, label, k)
    return _Descent(label, sums, size, sums / size[:, None], np.ones(k, bool), np.empty_like(label))


def _settle(problem: Points, descents: list[_Descent], *, alone: bool) -> None:
    """Lloyd's sweeps of several initialisations side by side until hardly a point moves, or single moves (`alone`)
    until none is left.

    The products only find who may want to move. Every move is decided in double precision on the distances to the two
    means concerned, so rounding cannot make points alternate, and only means that have moved are multiplied again.
    """
    values, squares, copies = problem.values, problem.squares, problem.copies
    m, k = len(values), max(len(descent.size) for descent in descents)
    kept = len(descents) * k * m <= LARGEST_TABLE
    tables = np.empty((len(descents), k, m) if kept else (1, k, min(m, _BLOCK)), np.float32)
    for descent in descents:
        descent.changed[:] = True
    moving = list(enumerate(descents))
    for _ in range(MOST_SWEEPS):
        rows = [np.flatnonzero(descent.changed | (not kept)) for _, descent in moving]
        near = np.concatenate([descent.means[some] for (_, descent), some in zip(moving, rows, strict=True)])
        near = near.astype(np.float32)
        lengths = np.einsum("ij,ij->i", near, near)
        for start in range(0, m, _BLOCK):
            part = slice(start, min(start + _BLOCK, m))
            products = near @ values[part].T  # (rows of all descents, point)
            done = 0
            for (place, descent), some in zip(moving, rows, strict=True):
                table, offset = (tables[place], start) if kept else (tables[0], 0)
                these = slice(done, done + len(some))
                done = these.stop
                _tabulate(products[these], lengths[these], squares[part], some, table, offset)
                _propose(table, offset, squares[part], copies[part], descent.size, descent.label[part], alone,
                         descent.nearest[part])  # fmt: skip
        few = 0 if alone else ENOUGH * m
        moving = [(place, descent) for place, descent in moving if _move(problem, descent, alone) > few]
        if not moving:
            return


def _move(problem: Points, descent: _Descent, alone: bool) -> int:
    descent.sweeps += 1
    descent.changed[:] = False
    move = _move_singly if alone else _move_together
    return move(problem.values, problem.copies, descent.label, descent.nearest, descent.sums, descent.size,
                descent.means, descent.changed)  # fmt: skip


@kernel
def _sums(values, copies, label, k):
    sums, size = np.zeros((k, values.shape[1])), np.zeros(k)
    for i in range(len(label)):
        add(sums[label[i]], values[i], copies[i])
        size[label[i]] += copies[i]
    return sums, size


@kernel
def _tabulate(products, lengths, squares, rows, table, offset):
    """Squared distances (cluster, point) of the clusters in `rows`."""
    for r in range(len(rows)):
        row, product, length = table[rows[r]][offset : offset + len(squares)], products[r], lengths[r]
        for i in range(len(squares)):
            row[i] = squares[i] + length - np.float32(2) * product[i]


@kernel
def _propose(table, offset, squares, copies, size, label, alone, nearest):
    """The cluster each point might prefer, its own where nothing in the table speaks for another.

    With `alone`, by Hartigan's rule and with some slack, because the table is in single precision.
    """
    n = len(squares)
    value = np.full(n, np.inf, np.float32)
    for c in range(len(size)):
        row, many = table[c][offset : offset + n], np.float32(size[c])
        if alone:
            for i in range(n):
                here = row[i] * (many / (many + np.float32(copies[i])))
                better = (here < value[i]) & (label[i] != c)
                value[i] = here if better else value[i]
                nearest[i] = c if better else nearest[i]
        else:
            for i in range(n):
                better = row[i] < value[i]
                value[i] = row[i] if better else value[i]
                nearest[i] = c if better else nearest[i]
    for i in range(n):
        a = label[i]
        if size[a] == copies[i]:
            nearest[i] = a
        elif alone:
            saved = table[a, offset + i] * size[a] / (size[a] - copies[i])
            if value[i] > saved + 1e-5 * (squares[i] + abs(saved)):
                nearest[i] = a


@kernel
def _transfer(i, a, b, values, copies, label, sums, size):
    label[i] = b
    add(sums[a], values[i], -copies[i])
    add(sums[b], values[i], copies[i])
    size[a] -= copies[i]
    size[b] += copies[i]


@kernel
def _move_together(values, copies, label, nearest, sums, size, means, changed):
    """One step of Lloyd's: all decide on the means as they are. A cluster's last point stays, as in
    `kmeans_pairwise._lloyd`."""
    moves = 0
    for i in range(len(label)):
        a, b = label[i], nearest[i]
        if a == b or size[a] == copies[i] or between(values[i], means[b]) >= between(values[i], means[a]) * STAYS:
            continue
        _transfer(i, a, b, values, copies, label, sums, size)
        changed[a] = changed[b] = True
        moves += 1
    for c in range(len(size)):
        if changed[c]:
            means[c] = sums[c] / size[c]
    return moves


@kernel
def _move_singly(values, copies, label, nearest, sums, size, means, changed):
    """Hartigan's rule, as in `kmeans_pairwise._single_moves`."""
    moves = 0
    for i in range(len(label)):
        a, b, w = label[i], nearest[i], copies[i]
        if a == b or size[a] == w:
            continue
        saved = between(values[i], means[a]) * size[a] / (size[a] - w)
        if between(values[i], means[b]) * size[b] / (size[b] + w) >= saved * STAYS:
            continue
        _transfer(i, a, b, values, copies, label, sums, size)
        means[a] = sums[a] / size[a]
        means[b] = sums[b] / size[b]
        changed[a] = changed[b] = True
        moves += 1
    return moves


@kernel
def _inertia(values, copies, label, k):
    sums, size = _sums(values, copies, label, k)
    inertia = 0.0
    for c in range(k):
        sums[c] /= size[c]
    for i in range(len(label)):
        inertia += copies[i] * between(values[i], sums[label[i]])
    return inertia
