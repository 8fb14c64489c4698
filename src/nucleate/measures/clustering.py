"""k-means for thousands of small problems, and for some large ones: where the clusters of a space are.

Each problem is solved ten times from greedy k-means++ seeds (2 + log k trials a seed, as scikit-learn does), first by
Lloyd's sweeps, then by Hartigan's single moves, until no point can change its cluster to the good of the inertia. Every
such end is a fixed point of Lloyd's algorithm too, only a deeper one: with three points a cluster by 2 % and more.

Up to `LARGEST_PAIRWISE` points everything happens in the matrix of squared distances (`kmeans_pairwise.py`); larger
problems work on the points themselves, by matrix products (`kmeans_points.py`).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from nucleate.measures.kmeans_pairwise import cluster_distances, distinct_distances
from nucleate.measures.kmeans_points import cluster_points, distinct_points
from nucleate.measures.products import LARGEST, Part
from nucleate.refusal import Refused

LARGEST_PAIRWISE = 1024  # points: 8 MiB of distances; beyond, products of points are faster (benchmarks/kmeans.py)


@dataclass(frozen=True, eq=False)
class KMeansJob:
    """One problem: `points` (n, width) in single precision, into `k` clusters.

    Jobs that hold the same array share its distances: hand the array over, not copies of it. `part` are the same points
    among others whose products with each other are known; the last bits may then depend on those.
    """

    points: np.ndarray
    k: int
    seed: int
    part: Part | None = None


@dataclass(frozen=True, eq=False)
class Clustering:
    """A partition.

    `clusters` (n,) int32 counts from 0 in the order of first appearance, so equal partitions are equal bytes. None is
    empty; there are fewer than k where fewer than k points are distinct (beyond `LARGEST_PAIRWISE` points also where
    their distances drown in the rounding of single precision). `inertia` is the sum of squared distances to the
    cluster means, in double precision. `iterations` counts the sweeps over all points, Lloyd's and single moves,
    that the best initialisation took.
    """

    clusters: np.ndarray
    inertia: float
    iterations: int


def kmeans(points: np.ndarray, k: int, *, seed: int) -> np.ndarray:
    """Cluster of every point, (n,) int32, numbered by first appearance: the best of ten initialisations by inertia."""
    return kmeans_many([KMeansJob(points, k, seed)])[0].clusters


def kmeans_many(jobs: Sequence[KMeansJob], *, initialisations: int = 10, threads: int = 1) -> list[Clustering]:
    """The clustering of each job, in the order of the jobs.

    A job's bytes depend on its points, k, seed and on `initialisations`; never on the other jobs or on `threads`.
    Memory for each thread: 8 n (n + k) bytes up to `LARGEST_PAIRWISE` points; beyond, one or two copies of the points,
    40 n (2 + log k) bytes for the seeds, at most 4 `kmeans_points.LARGEST_TABLE` for the sweeps and, up to
    `products.LARGEST` points, 4 n n for products that all jobs on them share.
    """
    if initialisations < 1:
        raise Refused(f"kmeans: initialisations is {initialisations}; at least 1 is needed, 10 is usual")
    if threads < 1:
        raise Refused(f"kmeans: threads is {threads}; at least 1 is needed")
    groups: dict[tuple, list[int]] = {}
    for place, job in enumerate(jobs):
        groups.setdefault(_identity(job.points), []).append(place)

    checked: dict[int, np.ndarray] = {}
    units: list[list[int]] = []  # what one thread does at a stretch: jobs on the same points
    for places in groups.values():
        points = _checked_points(jobs[places[0]].points, places[0])
        for place in places:
            _check_numbers(jobs[place], len(points), place)
            checked[place] = points
        # Of more than these nothing that costs is shared, so they may run side by side.
        units += [places] if len(points) <= LARGEST else [[place] for place in places]

    found: dict[int, Clustering] = {}

    def work(places: list[int]) -> None:
        points = checked[places[0]]
        pairwise = len(points) <= LARGEST_PAIRWISE
        problem: Any = distinct_distances(points) if pairwise else (distinct_points(points, jobs[places[0]].part),)
        solve: Any = cluster_distances if pairwise else cluster_points
        for place in places:
            found[place] = Clustering(*solve(*problem, _draws(jobs[place], initialisations)))

    # A product's last bits depend on BLAS's threads; the matrix of distances is computed without BLAS.
    large = any(len(points) > LARGEST_PAIRWISE for points in checked.values())
    with threadpool_limits(1, user_api="blas") if large else nullcontext():
        if threads == 1 or len(units) < 2:
            for unit in units:
                work(unit)
        else:
            with ThreadPoolExecutor(min(threads, len(units))) as pool:
                list(pool.map(work, units))
    return [found[place] for place in range(len(jobs))]


def _identity(points: np.ndarray) -> tuple:
    """Equal for two names of the same memory; equal content elsewhere is not looked for."""
    if not isinstance(points, np.ndarray):
        return (id(points),)
    return (points.__array_interface__["data"][0], points.shape, points.strides, points.dtype.str)


def _checked_points(points: np.ndarray, place: int) -> np.ndarray:
    where = f"kmeans job {place}"
    try:
        array = np.asarray(points)
    except ValueError:
        raise Refused(f"{where}: points are no array; give float32 of shape (n, width)") from None
    if array.dtype.kind not in "biuf" or array.ndim != 2 or not array.size:
        raise Refused(f"{where}: points are {array.dtype} of shape {array.shape}; give float32 of shape (n, width)")
    with np.errstate(over="ignore"):  # what single precision cannot hold becomes infinite and is refused here
        array = np.ascontiguousarray(array, dtype=np.float32)
    finite = np.isfinite(array)
    if not finite.all():
        row, column = (int(index[0]) for index in np.nonzero(~finite))
        raise Refused(
            f"{where}: point {row} has {array[row, column]} in column {column}; leave such points out before clustering"
        )
    return array


def _check_numbers(job: KMeansJob, n: int, place: int) -> None:
    if not isinstance(job.k, Integral) or not 1 <= job.k <= n:
        raise Refused(f"kmeans job {place}: k is {job.k} with {n} points; choose a whole number from 1 to {n}")
    if not isinstance(job.seed, Integral) or job.seed < 0:
        raise Refused(f"kmeans job {place}: seed is {job.seed}; give a whole number from 0 on")


def _draws(job: KMeansJob, initialisations: int) -> np.ndarray:
    """(initialisation, cluster, trial) uniform draws: fewer initialisations are the first of more."""
    trials = 2 + int(np.log(job.k))
    return np.random.default_rng(job.seed).random((initialisations, job.k, trials))
