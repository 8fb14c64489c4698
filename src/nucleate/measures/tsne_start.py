"""The beginning of a t-SNE problem: the joint probabilities of its points, and the layout to descend from."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array
from scipy.special import xlogy

from nucleate.measures import tsne_kernel as kernel

START_DEVIATION = 1e-4
# Beyond, only the 3 × perplexity + 1 nearest neighbours of a point attract it, as in scikit-learn's Barnes-Hut (a dense
# matrix would take 4 n² bytes); the repulsion stays exact. Only in up to three dimensions.
SPARSE_FROM = 4096
_ROWS = 256  # of the distance matrix worked on at a time
_TINY = np.finfo(np.float64).eps  # scikit-learn's floor for joint probabilities
_VOID = 1e-12  # a principal axis with a smaller share of the first one's variance is rounding noise

Share = Callable[[Callable[[int, int], None], int], None]  # runs work(low, high) on the parts of range(count)


def in_turn(work: Callable[[int, int], None], count: int) -> None:
    work(0, count)


@dataclass(frozen=True)
class Prepared:
    layout: np.ndarray  # float32 (components, n): where the descent starts
    joint: Any  # p(i, j) in float32: an array (n, padded) or, of the nearest neighbours only, a csr_array (n, n)
    entropy: float  # Σ p ln p
    warm: bool  # the layout was given


def prepare(
    points: np.ndarray,
    first: np.ndarray | None,
    components: int,
    perplexity: float,
    seed: int,
    share: Share,
    dense: bool,
) -> Prepared:
    points = _centred(points)
    n, width = points.shape
    gram = points @ points.T if n <= min(width, SPARSE_FROM) else None  # serves distances and principal axes alike
    if first is None:
        layout = _principal_layout(points, gram, components, seed)
    else:
        layout = np.array(first.T, dtype=np.float32, order="C")
    norms = np.einsum("ij,ij->i", points, points)
    target = float(np.log(perplexity))
    blocks = [slice(top, min(top + _ROWS, n)) for top in range(0, n, _ROWS)]

    def squared_distances(block: slice) -> np.ndarray:
        squared = gram[block] if gram is not None else points[block] @ points.T
        squared = norms[block, None] + norms - 2.0 * squared
        # |a|² + |b|² − 2ab loses all digits where points nearly coincide; where they do it must be 0 exactly.
        near = squared < 1e-6 * (norms[block, None] + norms)
        for row in np.flatnonzero(near.sum(axis=1) > 1):  # not its own point alone
            squared[row, near[row]] = ((points[near[row]] - points[block.start + row]) ** 2).sum(axis=1)
        return squared

    if n > SPARSE_FROM and components <= 3 and not dense:
        near = min(n - 1, int(3 * perplexity + 1))
        neighbours = np.empty((n, near), np.int32)
        conditional = np.empty((n, near), np.float32)

        def find(low: int, high: int) -> None:
            for block in blocks[low:high]:
                squared = squared_distances(block)
                squared[np.arange(len(squared)), np.arange(n)[block]] = np.inf
                neighbours[block] = np.sort(np.argpartition(squared, near - 1, axis=1)[:, :near], axis=1)
                nearest = np.take_along_axis(squared, neighbours[block], axis=1)
                conditional[block] = calibrated(nearest, target)

        share(find, len(blocks))
        ends = np.arange(0, n * near + 1, near)
        one_sided = csr_array((conditional.ravel().astype(np.float64), neighbours.ravel(), ends), shape=(n, n))
        joint = (one_sided + one_sided.T).tocsr() / (2 * n)
        joint.data = np.maximum(joint.data, _TINY)
        entropy = float(np.sum(joint.data * np.log(joint.data)))
        return Prepared(layout, joint.astype(np.float32), entropy, first is not None)

    table = np.zeros((n, -(-n // kernel.LANES) * kernel.LANES), np.float32)

    def fill(low: int, high: int) -> None:
        for block in blocks[low:high]:
            table[block, :n] = calibrated(squared_distances(block), target, own=block.start)

    share(fill, len(blocks))
    return Prepared(layout, table, _symmetrise(table, blocks), first is not None)


def calibrated(squared: np.ndarray, target: float, *, own: int | None = None) -> np.ndarray:
    """Conditional probabilities p(j|i) whose entropy is `target` = ln perplexity, a row per point.

    `own` is the column of the first row's own point (it grows by one a row and gets probability 0); None where the
    columns are neighbours and hold no own point. scikit-learn bisects until the entropy is within 1e-5; Newton's method
    on the logarithm of the precision, with bisection where it leaves the bracket, gets within 1e-10 in a few rounds.
    Where more points tie at the smallest distance than the perplexity asks for, the entropy cannot come down to the
    target: the precision grows without end and the tied points share the row evenly (as in scikit-learn).
    """
    rows = len(squared)
    others = np.ones(squared.shape)
    if own is not None:
        others[np.arange(rows), own + np.arange(rows)] = 0
    gaps = (squared - squared.min(axis=1, where=others > 0, initial=np.inf, keepdims=True)) * others
    mean = gaps.sum(axis=1, keepdims=True) / others.sum(axis=1, keepdims=True)
    gaps /= np.where(mean > 0, mean, 1)  # precisions are in units of 1 / mean: one start serves every scale
    weights = others.copy()
    precision, low, high = np.ones(rows), np.zeros(rows), np.full(rows, np.inf)
    left = np.flatnonzero(mean)
    for _ in range(200):
        if not left.size:
            break
        b, gap = precision[left], gaps[left]
        weight = np.exp(-gap * b[:, None]) * others[left]
        weights[left] = weight
        total = weight.sum(axis=1)
        weight *= gap
        first, second = weight.sum(axis=1) / total, (weight * gap).sum(axis=1) / total
        excess = np.log(total) + b * first - target
        low[left] = below = np.where(excess > 0, b, low[left])
        high[left] = above = np.where(excess > 0, high[left], b)
        # The entropy falls with the precision b: dH / d(ln b) = -b² Var(gap).
        slope = np.maximum(b * b * (second - first * first), 1e-100)
        proposal = b * np.exp(np.clip(excess / slope, -3, 3))
        middle = np.where(above == np.inf, 8 * b, np.where(below == 0, b / 8, (below + above) / 2))
        precision[left] = proposal = np.where((below < proposal) & (proposal < above), proposal, middle)
        left = left[(abs(excess) > 1e-10) & (b > 1e-30) & (b < 1e30) & (proposal != b)]
    return weights / weights.sum(axis=1, keepdims=True)


def _symmetrise(probabilities: np.ndarray, blocks: list[slice]) -> float:
    """p(j|i) becomes p(i, j) = (p(j|i) + p(i|j)) / 2n in place, (n, padded); returns Σ p ln p, the fixed part of the
    divergence."""
    entropy = 0.0
    for place, one in enumerate(blocks):
        for other in blocks[place:]:
            both = probabilities[one, other].astype(np.float64) + probabilities[other, one].T
            both = np.maximum(both / (2 * len(probabilities)), _TINY)
            if one == other:
                np.fill_diagonal(both, 0)
            probabilities[one, other], probabilities[other, one] = both, both.T
            entropy += (1 if one == other else 2) * float(xlogy(both, both).sum())
    return entropy


def _centred(points: np.ndarray) -> np.ndarray:
    """float64, mean zero, scaled by a power of two to about 1: t-SNE ignores scale, and a power of two costs no digit.

    The first row is subtracted before the mean, so that equal rows become zeros exactly, whatever their size.
    """
    points = points.astype(np.float64, order="C")  # a copy, changed in place from here on
    for _ in range(2):
        exponent = int(np.frexp(max(points.max(), -points.min()))[1])
        points *= np.ldexp(1.0, min(1000, max(-1000, -exponent)))
        points -= points[0].copy()
    points -= points.mean(axis=0)
    return points


def _principal_layout(points: np.ndarray, gram: np.ndarray | None, components: int, seed: int) -> np.ndarray:
    """The first principal components, the first with standard deviation 1e-4, as float32 (components, n).

    Exact eigenvectors of the smaller of the two Gram matrices; the largest loading of an axis is positive, which is
    scikit-learn's rule. Axes without variance (constant features, n or width below `components`, one repeated point)
    start from normal noise of deviation 1e-4; there scikit-learn refuses, takes rounding noise or divides by zero.
    """
    n, width = points.shape
    layout = np.random.default_rng(seed).standard_normal((n, components)) * START_DEVIATION
    found = min(components, n, width)
    if gram is None:
        gram = points @ points.T if n <= width else points.T @ points
    size = len(gram)
    variances, vectors = eigh(gram, subset_by_index=[size - found, size - 1])
    if len(variances) < found:  # where eigenvalues are all equal, some LAPACKs find none of those asked for
        variances, vectors = (part[..., -found:] for part in eigh(gram, driver="evd"))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    if n <= width:
        loadings, scores = points.T @ vectors, vectors * np.sqrt(np.maximum(variances, 0.0))
    else:
        loadings, scores = vectors, points @ vectors
    signs = np.sign(np.take_along_axis(loadings, np.abs(loadings).argmax(axis=0)[None], axis=0))
    real = variances > _VOID * max(variances[0], 0.0)
    if real[0]:
        layout[:, :found][:, real] = (scores * signs / np.std(scores[:, 0]) * START_DEVIATION)[:, real]
    return np.array(layout.T, dtype=np.float32, order="C")
