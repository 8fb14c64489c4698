"""The shape of a layer's states: how many directions they fill, how many they vary in nearby, how two levels of labels
lie to each other. Three numbers that recent work makes claims about; `reference.py` says whose.
"""

import numpy as np

from nucleate.measures.baselines import sums_by_class
from nucleate.measures.neighbour_kernels import TIE, distinct_states
from nucleate.measures.neighbours import Labels, neighbour_blocks

FEWEST_POINTS = 50  # different ones, for a dimension: its error is about one part in the root of their number
_KEPT = 0.9  # of the ratios of distances; Facco et al. leave out the largest tenth


def effective_rank(states: np.ndarray) -> float | None:
    """In how many directions (point, width) states vary: 1 to the smaller of width and points less one. None where they
    all coincide.

    The exponential of the entropy of the singular values' shares, as RankMe (Garrido et al. 2023), of the states less
    their mean: what a language model's states have in common is longer than all in which they differ.
    """
    centred = states - states.mean(axis=0, dtype=np.float64)
    products = centred.T @ centred if centred.shape[0] > centred.shape[1] else centred @ centred.T
    squares = np.linalg.eigvalsh(products)
    # Rounding leaves squares of this size where nothing varies; RankMe adds 1e-7 to every share instead.
    squares[squares <= squares[-1] * len(squares) * np.finfo(float).eps] = 0
    length = float(np.sqrt(np.square(states, dtype=np.float64).sum()))
    if np.sqrt(squares[-1]) <= TIE * length:
        return None
    values = np.sqrt(squares[squares > 0])
    shares = values / values.sum()
    return float(np.exp(-(shares * np.log(shares)).sum()))


def intrinsic_dimension(states: np.ndarray) -> float | None:
    """In how many dimensions (point, width) states lie as seen from each to its two nearest: above 0, no upper end.

    TwoNN (Facco et al. 2017): where the density is even that far, the ratio of the second distance to the first exceeds
    r with probability r^-d; d is fitted through the origin, without the largest tenth of the ratios. Points that
    coincide (within `TIE`, which rounding may part) count as one: else the first distance is nothing, and d with it.
    None for fewer than `FEWEST_POINTS` different ones, or where all ratios are 1, as on a grid.
    """
    points = distinct_states(np.ascontiguousarray(states))[0]
    if len(points) < FEWEST_POINTS:
        return None
    first, second, twin = _two_nearest(points)
    if twin.any():
        if np.count_nonzero(~twin) < FEWEST_POINTS:
            return None
        first, second, _ = _two_nearest(points[~twin])
    ratios = np.sort(np.log(second / first))
    kept = ratios[: int(_KEPT * len(ratios))]
    rarer = -np.log1p(-np.arange(1, len(kept) + 1) / len(ratios))
    return float(kept @ rarer / (kept @ kept)) if kept[-1] > TIE else None


def _two_nearest(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(point,) distances to the nearest other point and to the second, and whether an earlier point coincides."""
    everyone, unknown = np.arange(len(points)), np.full(len(points), -1)
    labels = Labels(everyone, unknown, unknown, unknown, unknown)
    distances, twin = np.empty((2, len(points))), np.zeros(len(points), dtype=bool)
    for _, rows, found in neighbour_blocks([(points, labels)], points, labels, ks=(1, 2)):
        near = found[""]
        distances[:, rows] = near.distance[near.start[:-1]], near.distance[near.start[:-1] + 1]
        asked = everyone[rows][near.query]
        twin[asked[(near.distance <= TIE * near.scale) & (near.candidate < asked)]] = True
    return *distances, twin


def parent_cosine(states: np.ndarray, child: np.ndarray, parent: np.ndarray) -> float | None:
    """How far children differ along their parent's direction: the size of a cosine, 0..1, mean over children. None
    where no parent has two children that lie apart, or there is one parent only.

    `child` and `parent` (point,) are codes, each child of one parent. A child's difference is its mean state less its
    siblings'; the parent's direction is the siblings' mean less the mean of the other parents. The child has no part in
    that direction: with a parent's mean over all its children, the products with their differences sum to zero by
    construction, whatever the states. Without a sign, since children of which each has the more or the less of one and
    the same direction would cancel out.

    Park et al. (2024): a child's difference is at right angles to its parent, 0. Children that differ in nothing but
    how much they have of their parent give 1. Where parents have no direction of their own, siblings are strangers:
    about 1 over the root of the number of children that a parent has. Of two children the one is all that is known of
    the parent, so that 0 needs parents far further apart than siblings; what dealt labels give stands beside it.
    """
    names, first, code = np.unique(child, return_index=True, return_inverse=True)
    means = sums_by_class(states, code, len(names)) / np.bincount(code)[:, None]
    owner = np.unique(parent[first], return_inverse=True)[1]  # (child,)
    size = np.bincount(owner)
    if len(size) < 2:
        return None
    totals = sums_by_class(means, owner, len(size))
    middles = totals / size[:, None]
    others = (middles.sum(axis=0) - middles) / (len(size) - 1)
    kept = size[owner] >= 2
    own, mine = means[kept], owner[kept]
    siblings = (totals[mine] - own) / (size[mine] - 1)[:, None]
    apart, direction = own - siblings, siblings - others[mine]
    lengths = np.linalg.norm(apart, axis=1), np.linalg.norm(direction, axis=1)
    told = np.minimum(*lengths) > TIE * np.linalg.norm(own, axis=1)  # else it is the rounding's direction
    if not told.any():
        return None
    cosines = (apart * direction).sum(axis=1)[told] / (lengths[0] * lengths[1])[told]
    return float(np.abs(cosines).mean())
