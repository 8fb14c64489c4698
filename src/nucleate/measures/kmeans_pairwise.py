"""k-means of up to a thousand points, in the matrix of their squared distances, computed once for all that ask.

The inertia of a cluster needs no mean (sum_ij w_i w_j d_ij / 2W), so a sweep costs the same in 768 dimensions as in
three.
"""

import numpy as np

from nucleate.compiled import REORDERED, compiled

MOST_SWEEPS = 300  # of each kind; scikit-learn's max_iter
# A move has to gain more than rounding can feign, or two equally good partitions would alternate.
STAYS = 1 - 1e-9

kernel = compiled(fastmath=REORDERED)


def cluster_distances(
    distances: np.ndarray, copies: np.ndarray, inverse: np.ndarray, draws: np.ndarray
) -> tuple[np.ndarray, float, int]:
    """Clusters (n,), inertia and sweeps of the best of as many beginnings as `draws` (beginning, cluster, trial)."""
    if len(distances) <= draws.shape[1]:
        return by_appearance(inverse), 0.0, 0
    clusters, inertia, iterations = _best_of(distances, copies, draws)
    return by_appearance(clusters[inverse]), float(inertia), int(iterations)


def distinct_distances(points: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Squared distances of the m distinct points (m, m), copies of each (m,), which of them each point is (n,).

    Layer 0 has hundreds of coinciding points; counting them once is exact and leaves no distance of zero.
    """
    distances = np.empty((len(points), len(points)))
    _squared_distances(points.astype(np.float64), distances)
    first, inverse, copies = _coinciding(distances)
    if len(first) < len(points):
        distances = np.ascontiguousarray(distances[np.ix_(first, first)])
    return distances, copies, inverse


@kernel
def _squared_distances(points, distances):  # (n, width) -> (n, n)
    # Differences, not |x|² + |y|² - 2xy: nothing cancels, so zero means equal (the square of the smallest difference
    # of two float32 is far above double precision's smallest number) and a far-off origin does no harm. Two rows by
    # two columns at a time within 64 columns, because loading is what costs.
    n, width = points.shape
    even = n - n % 2
    for i in range(n):
        distances[i, i] = 0.0
    for i in range(0, even, 2):
        distances[i, i + 1] = distances[i + 1, i] = between(points[i], points[i + 1])
    for start in range(0, even, 64):
        stop = min(start + 64, even)
        for i in range(0, stop, 2):
            x0, x1 = points[i], points[i + 1]
            for j in range(max(start, i + 2), stop, 2):
                y0, y1 = points[j], points[j + 1]
                s00 = s01 = s10 = s11 = 0.0
                for t in range(width):
                    e00, e01 = x0[t] - y0[t], x0[t] - y1[t]
                    e10, e11 = x1[t] - y0[t], x1[t] - y1[t]
                    s00 += e00 * e00
                    s01 += e01 * e01
                    s10 += e10 * e10
                    s11 += e11 * e11
                distances[i, j] = distances[j, i] = s00
                distances[i, j + 1] = distances[j + 1, i] = s01
                distances[i + 1, j] = distances[j, i + 1] = s10
                distances[i + 1, j + 1] = distances[j + 1, i + 1] = s11
    if even < n:
        for i in range(even):
            distances[i, even] = distances[even, i] = between(points[i], points[even])


@kernel
def between(x, y):
    square = 0.0
    for t in range(len(x)):
        square += (x[t] - y[t]) * (x[t] - y[t])
    return square


@kernel
def _coinciding(distances):
    n = len(distances)
    first = np.empty(n, np.int64)  # (m,) a point that stands for each distinct one
    inverse = np.empty(n, np.int64)
    copies = np.zeros(n)
    m = 0
    for i in range(n):
        row = distances[i]
        twin = 0
        while row[twin] != 0.0:
            twin += 1
        if twin == i:
            first[m] = i
            inverse[i] = m
            m += 1
        else:
            inverse[i] = inverse[twin]
        copies[inverse[i]] += 1.0
    return first[:m].copy(), inverse, copies[:m].copy()


@kernel
def _best_of(distances, copies, draws):
    """The best of len(draws) descents; needs more distinct points than clusters."""
    m, k = len(distances), draws.shape[1]
    sums = np.empty((k, m))  # sums[c, i]: squared distances from point i to the members of c, summed
    size, within = np.empty(k), np.empty(k)  # points in c, inertia of c
    label, best = np.empty(m, np.int32), np.empty(m, np.int32)
    least, iterations = np.inf, 0
    for r in range(len(draws)):
        _seed(distances, copies, draws[r], label)
        _gather(distances, copies, label, sums, size, within)
        sweeps = _lloyd(distances, copies, label, sums, size, within)
        _gather(distances, copies, label, sums, size, within)  # sheds what adding and subtracting have left behind
        sweeps += _single_moves(distances, copies, label, sums, size, within)
        inertia = within.sum()
        if inertia < least:
            least, iterations = inertia, sweeps
            best[:] = label
    _gather(distances, copies, best, sums, size, within)
    return best, within.sum(), iterations


@kernel
def _seed(distances, copies, draw, label):
    """Greedy k-means++; `label` becomes each point's nearest seed. A seed is a point, so no cluster is empty."""
    m = len(distances)
    k, trials = draw.shape
    reached, closest = np.empty(m), np.ones(m)
    accumulate(closest, copies, reached)
    closest[:] = distances[find(closest, reached, draw[0, 0])]
    label[:] = 0
    for c in range(1, k):
        accumulate(closest, copies, reached)
        least, seed = np.inf, 0
        for trial in range(trials):
            candidate = find(closest, reached, draw[c, trial])
            row = distances[candidate]
            potential = 0.0
            for i in range(m):
                potential += copies[i] * (row[i] if row[i] < closest[i] else closest[i])
            if potential < least:
                least, seed = potential, candidate
        row = distances[seed]
        for i in range(m):
            nearer = row[i] < closest[i]
            closest[i] = row[i] if nearer else closest[i]
            label[i] = c if nearer else label[i]


@kernel
def accumulate(closest, copies, reached):
    total = 0.0
    for i in range(len(closest)):
        total += copies[i] * closest[i]
        reached[i] = total


@kernel
def find(closest, reached, draw):
    """The point at share `draw` of the running sum; never one of distance zero, unless all are."""
    low, high = 0, len(reached) - 1
    target = draw * reached[high]
    while low < high:
        middle = (low + high) >> 1
        if reached[middle] > target:
            high = middle
        else:
            low = middle + 1
    while low > 0 and closest[low] == 0.0:  # the product was rounded up to the whole sum
        low -= 1
    return low


@kernel
def add(sums, distances, factor):
    for i in range(len(sums)):
        sums[i] += factor * distances[i]


@kernel
def _gather(distances, copies, label, sums, size, within):
    sums[:] = 0.0
    size[:] = 0.0
    for i in range(len(label)):
        add(sums[label[i]], distances[i], copies[i])
        size[label[i]] += copies[i]
    _measure(copies, label, sums, size, within)


@kernel
def _measure(copies, label, sums, size, within):
    within[:] = 0.0
    for i in range(len(label)):
        within[label[i]] += copies[i] * sums[label[i], i]
    for c in range(len(within)):
        within[c] /= 2.0 * size[c]


@kernel
def _nearest(sums, factor, shift, barred, nearest, value):
    """For each point the cluster with the least sums[c, i] * factor[c] - shift[c], the barred one left out."""
    value[:] = np.inf
    for c in range(len(sums)):
        row, by, less = sums[c], factor[c], shift[c]
        for i in range(len(value)):
            here = row[i] * by - less
            better = (here < value[i]) & (barred[i] != c)
            value[i] = here if better else value[i]
            nearest[i] = c if better else nearest[i]


@kernel
def _lloyd(distances, copies, label, sums, size, within):
    """All points go to their nearest mean at once, until none has a nearer one. A cluster's last point stays: alone it
    costs nothing, so the inertia never rises and no cluster runs empty. The squared distance from point i to the mean
    of c is sums[c, i] / size[c] - within[c] / size[c]."""
    k, m = sums.shape
    nearest, nobody, value = np.empty(m, np.int32), np.full(m, -1, np.int32), np.empty(m)
    factor, shift = np.empty(k), np.empty(k)
    for sweep in range(MOST_SWEEPS):
        for c in range(k):
            factor[c] = 1.0 / size[c]
            shift[c] = within[c] / size[c]
        _nearest(sums, factor, shift, nobody, nearest, value)
        moves = 0
        for i in range(m):
            a = label[i]
            if nearest[i] != a and size[a] > copies[i] and value[i] < (sums[a, i] * factor[a] - shift[a]) * STAYS:
                moves += 1
            else:
                nearest[i] = a
        if moves == 0:
            return sweep + 1
        for i in range(m):
            a, b = label[i], nearest[i]
            if a != b and size[a] > copies[i]:
                label[i] = b
                size[a] -= copies[i]
                size[b] += copies[i]
                if 4 * moves < m:
                    add(sums[a], distances[i], -copies[i])
                    add(sums[b], distances[i], copies[i])
        if 4 * moves < m:
            _measure(copies, label, sums, size, within)
        else:
            _gather(distances, copies, label, sums, size, within)
    return MOST_SWEEPS


@kernel
def _single_moves(distances, copies, label, sums, size, within):
    """Hartigan's rule: a point (with its copies, w in all) leaves a for b where d_b W_b / (W_b + w) is less than
    d_a W_a / (W_a - w), for that difference is what the inertia loses. Each move counts at once for the next."""
    k, m = sums.shape
    nearest, value = np.empty(m, np.int32), np.empty(m)
    factor, shift = np.empty(k), np.empty(k)
    for sweep in range(MOST_SWEEPS):
        for c in range(k):
            factor[c] = 1.0 / (size[c] + 1.0)
            shift[c] = within[c] * factor[c]
        _nearest(sums, factor, shift, label, nearest, value)
        moves = 0
        for i in range(m):
            a, b, w = label[i], nearest[i], copies[i]
            if size[a] == w:
                continue
            saved = (sums[a, i] - within[a]) / (size[a] - w)
            if w > 1.0:  # the factors above are those of a single point
                b = _cheapest(sums, size, within, i, a, w)
            cost = (sums[b, i] - within[b]) / (size[b] + w)
            if cost < saved * STAYS:
                moves += 1
                label[i] = b
                within[a] -= w * saved
                within[b] += w * cost
                size[a] -= w
                size[b] += w
                add(sums[a], distances[i], -w)
                add(sums[b], distances[i], w)
        if moves == 0:
            return sweep + 1
        _measure(copies, label, sums, size, within)
    return MOST_SWEEPS


@kernel
def _cheapest(sums, size, within, i, a, w):
    least, cheapest = np.inf, 0 if a else 1
    for c in range(len(size)):
        cost = (sums[c, i] - within[c]) / (size[c] + w)
        if c != a and cost < least:
            least, cheapest = cost, c
    return cheapest


@kernel
def by_appearance(clusters):
    number = np.full(clusters.max() + 1, -1, np.int32)
    renamed = np.empty(len(clusters), np.int32)
    names = 0
    for i in range(len(clusters)):
        if number[clusters[i]] < 0:
            number[clusters[i]] = names
            names += 1
        renamed[i] = number[clusters[i]]
    return renamed
