"""Can a linear probe name the task of a prompt whose instruction, and whose input, it has never met?

A ridge classifier as `LinearProbe` is, fitted many times over: folds inside the half that chooses (a penalty, and of
several layers the best), then one or a few fits for the half that is told. `Told` says who is told by a probe fitted to
whom; features are standardised once, over all that may be fitted to, without their labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, cho_solve
from scipy.sparse import csr_array, diags_array

from nucleate.measures.products import Part
from nucleate.streams import stream

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # penalties that are tried, times the number of instances fitted to
FOLDS = 5
_SPARSE = 0.05  # share of numbers that are not 0 up to which the zeros are left out
_NUMBERS_AT_ONCE = 2**21  # turned to double precision: 16 MiB
_LEAST_SPREAD = 8 * np.finfo(np.float32).eps  # of a feature beside its mean; less is rounding of a constant


@dataclass(frozen=True, eq=False)
class Told:
    """One fit: places of the instances that it is fitted to, and of those that it answers for."""

    fitted: np.ndarray
    answers: np.ndarray


def inner_folds(units: np.ndarray, inputs: np.ndarray | None, some: np.ndarray, *, seed: int) -> list[Told]:
    """Five fits inside `some` (places): each answers for a fifth of the units, from the others. With `inputs` (codes,
    where they repeat) for those whose input, too, is in the fifth that is left out: the rest of it is not told."""
    unit = _dealt(units, some, stream(seed, "units"))
    given = None if inputs is None else _dealt(inputs, some, stream(seed, "inputs"))
    folds = []
    for number in range(FOLDS):
        asked, apart = unit == number, unit != number
        if given is not None:
            asked, apart = asked & (given == number), apart & (given != number)
        folds.append(Told(some[apart], some[asked]))
    return [fold for fold in folds if len(fold.fitted) and len(fold.answers)]


def outer_folds(
    units: np.ndarray, inputs: np.ndarray | None, known: np.ndarray, told: np.ndarray, *, seed: int
) -> list[Told]:
    """Who answers for `told`: all of `known`; with `inputs` (codes) five fits, each without a fifth of the inputs and
    for those who have them. Where units stand on both sides, likewise without a fifth of the units: then some of `told`
    are not told."""
    parts = [] if inputs is None else [(inputs, "inputs")]
    parts += [(units, "units")] if np.isin(units[told], units[known]).any() else []
    if not parts:
        return [Told(known, told)]
    everyone = np.concatenate([known, told])
    dealt = np.stack([_dealt(codes, everyone, stream(seed, name)) for codes, name in parts])
    there, here = dealt[:, : len(known)], dealt[:, len(known) :]
    folds = [Told(known[(there != number).all(axis=0)], told[(here == number).all(axis=0)]) for number in range(FOLDS)]
    return [fold for fold in folds if len(fold.fitted) and len(fold.answers)]


def _dealt(codes: np.ndarray, some: np.ndarray, seed: int) -> np.ndarray:
    """(some,) the fold of each, equal codes in the same one, as evenly as they come."""
    names, code = np.unique(codes[some], return_inverse=True)
    order = np.random.default_rng(seed).permutation(len(names))
    return (np.argsort(order, kind="stable") % FOLDS)[code]


@dataclass(frozen=True, eq=False)
class LinearReading:
    """What probes of one layer come to."""

    penalty: float  # of RIDGES, the best inside the half that chooses, the larger one of equals
    chosen: float  # the share named there with it; NaN where nobody could be told
    said: np.ndarray  # (deal, instance) the task that is named in the half that is told; -1: not told

    def named(self, tasks: np.ndarray) -> np.ndarray:
        """(deal, instance) 1 where the task is the one that is named, 0 where not, NaN where nobody is told."""
        return np.where(self.said >= 0, self.said == np.atleast_2d(tasks), np.nan)


def read_linearly(
    states: np.ndarray,
    tasks: np.ndarray,
    inner: Sequence[Told],
    outer: Sequence[Told],
    *,
    penalty: float | None = None,
    part: Part | None = None,
) -> LinearReading:
    """Penalty chosen by the `inner` fits, told by the `outer` ones. `states` (instance, feature); `tasks` (deal,
    instance) are the true tasks first, then any others that the same is asked of, under the same penalty. Whose task
    nobody has who was fitted to is not told. `part` are the instances among points whose products are known."""
    tasks = np.atleast_2d(tasks)
    fits = _Fits(states, np.unique(np.concatenate([fold.fitted for fold in (*inner, *outer)])), part)
    shares = np.full(len(RIDGES), np.nan)
    if penalty is None and inner:
        said = np.full((len(RIDGES), tasks.shape[1]), -1)
        for fold in inner:
            for row, (found,) in zip(said, fits.answers(tasks[:1], fold, RIDGES), strict=True):
                row[fold.answers] = found
        right = np.where(said >= 0, said == tasks[0], np.nan)
        shares = np.array([np.nan if np.isnan(one).all() else np.nanmean(one) for one in right])
    best = len(RIDGES) - 1 if np.isnan(shares).all() else int(np.flatnonzero(shares == np.nanmax(shares))[-1])
    ridge = RIDGES[best] if penalty is None else penalty
    told = np.full(tasks.shape, -1)
    for fold in outer:
        (told[:, fold.answers],) = fits.answers(tasks, fold, (ridge,))
    return LinearReading(ridge, float(shares[best]), told)


# --- the fits ---------------------------------------------------------------------------------------------------------


class _Features:
    """Standardised features (instance, feature), by the means and deviations of some of the instances; never whole in
    double precision. Where nearly all are zero, as of n-grams, the zeros are left out of the products, and all features
    are divided by one number, the root of their mean variance, since the rarest would else weigh the most."""

    def __init__(self, states: np.ndarray, known: np.ndarray, part: Part | None) -> None:
        self._part = part
        few = np.count_nonzero(states) < _SPARSE * states.size
        self._states: Any = csr_array(states, dtype=np.float64) if few else states
        self.few = few
        if few:
            some = self._states[known]
            self._mean = np.asarray(some.mean(axis=0)).reshape(-1)
            square = np.asarray(some.multiply(some).mean(axis=0)).reshape(-1)
            spread = np.full(len(square), np.sqrt(np.maximum(square - self._mean**2, 0).mean()))
        else:
            self._mean = np.asarray(np.mean(states[known], axis=0, dtype=np.float64)).reshape(-1)
            total: Any = 0.0
            for rows in _blocks(known, states.shape[1]):
                total += ((states[rows] - self._mean) ** 2).sum(axis=0)
            spread = np.sqrt(total / len(known))
        varies = spread > _LEAST_SPREAD * np.abs(self._mean)
        self._scale = np.divide(1.0, spread, out=np.zeros(len(spread)), where=varies)
        self.width = states.shape[1]

    def _dense(self, rows: np.ndarray) -> np.ndarray:
        return (self._states[rows] - self._mean) * self._scale

    def times(self, rows: np.ndarray, targets: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Of these rows: products of features with features (feature, feature) and with the targets (row, target), and
        the features' sums (feature,)."""
        if self.few:
            some, count = self._states[rows], len(rows)
            raw, totals = (some.T @ some).toarray(), np.asarray(some.sum(axis=0)).reshape(-1)
            middle = np.outer(self._mean, totals)
            product = (raw - middle - middle.T + count * np.outer(self._mean, self._mean)) * np.outer(
                self._scale, self._scale
            )
            answer = (some.T @ targets - np.outer(self._mean, targets.sum(axis=0))) * self._scale[:, None]
            return product, answer, (totals - count * self._mean) * self._scale
        product, answer = np.zeros((self.width, self.width)), np.zeros((self.width, targets.shape[1]))
        sums, done = np.zeros(self.width), 0
        for block in _blocks(rows, self.width):
            features = self._dense(block)
            product += features.T @ features
            answer += features.T @ targets[done : done + len(block)]
            sums += features.sum(axis=0)
            done += len(block)
        return product, answer, sums

    def with_each_other(self, rows: np.ndarray, others: np.ndarray) -> np.ndarray:
        """(row, other) products of features; around another mean than theirs where they are known already."""
        if self.few and self._part is not None:
            exponent = self._part.products.exponent
            return (
                np.ldexp(self._part[rows].dots(self._part[others]), 2 * exponent, dtype=float) * self._scale.max() ** 2
            )
        if not self.few:
            there = self._dense(others)
            return np.concatenate([self._dense(block) @ there.T for block in _blocks(rows, self.width)])
        scaled = self._states @ diags_array(self._scale**2)
        raw = (scaled[rows] @ self._states[others].T).toarray()
        along = scaled @ self._mean
        return (
            raw - along[rows][:, None] - along[others] + float((self._scale * self._mean) @ (self._scale * self._mean))
        )

    def weighed(self, rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """(row, target) features times weights (feature, target)."""
        if self.few:
            scaled = weights * self._scale[:, None]
            return self._states[rows] @ scaled - self._mean @ scaled
        return np.concatenate([self._dense(block) @ weights for block in _blocks(rows, self.width)])


class _Fits:
    """Ridge classifiers for one layer: by products of features where they are fewer than the instances that are fitted
    to, else by products of instances."""

    def __init__(self, states: np.ndarray, known: np.ndarray, part: Part | None) -> None:
        self._features = _Features(states, known, part)

    def answers(self, tasks: np.ndarray, fold: Told, ridges: Sequence[float]) -> Iterator[np.ndarray]:
        """(deal, told) for each ridge: the task that is named; -1 where its own is not among those fitted to."""
        dealt = [np.unique(tasks[deal, fold.fitted]) for deal in range(len(tasks))]
        ends = np.cumsum([len(classes) for classes in dealt])
        targets = np.concatenate(
            [np.where(tasks[d, fold.fitted][:, None] == c, 1.0, -1.0) for d, c in enumerate(dealt)], axis=1
        )
        middle = targets.mean(axis=0)
        for scores in self._scores(fold, targets - middle, ridges):
            named = np.empty((len(tasks), len(fold.answers)), dtype=np.int64)
            for deal, (classes, mine) in enumerate(
                zip(dealt, np.split(scores + middle, ends[:-1], axis=1), strict=True)
            ):
                own = tasks[deal, fold.answers]
                named[deal] = np.where(np.isin(own, classes), classes[mine.argmax(axis=1)], -1)
            yield named

    def _scores(self, fold: Told, targets: np.ndarray, ridges: Sequence[float]) -> Iterator[np.ndarray]:
        """(told, target) less the targets' means."""
        features, count = self._features, len(fold.fitted)
        if features.width < count:
            product, answer, sums = features.times(fold.fitted, targets)
            product -= np.outer(sums, sums) / count
            for ridge in ridges:
                held = product.copy()
                held[np.diag_indices(features.width)] += ridge * count
                weights = cho_solve(cho_factor(held, overwrite_a=True), answer)
                yield features.weighed(fold.answers, weights) - (sums / count) @ weights
            return
        product = features.with_each_other(fold.fitted, fold.fitted)
        across = features.with_each_other(fold.answers, fold.fitted)
        along = product.mean(axis=0)
        across -= across.mean(axis=1, keepdims=True) + along - along.mean()
        product -= along[:, None] + along - along.mean()
        for ridge in ridges:
            held = product.copy()
            held[np.diag_indices(count)] += ridge * count
            yield across @ cho_solve(cho_factor(held, overwrite_a=True), targets)


def _blocks(rows: np.ndarray, width: int) -> list[np.ndarray]:
    step = max(1, _NUMBERS_AT_ONCE // max(width, 1))
    return [rows[first : first + step] for first in range(0, len(rows), step)]
