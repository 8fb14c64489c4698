"""Each compiled loop of t-SNE and k-means against what it replaces: the same problems, alternating, in processor time.

    python benchmarks/kernels.py            all of them (some two minutes of one core)
    python benchmarks/kernels.py t-SNE      those whose line holds these words

A line gives the work, how many times it is faster with the loop (median over rounds, first and third quartile), and
both times. Layouts and partitions are compared by their divergence and inertia: no speed is claimed for worse work.
"""

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from peers import alternate, report, set_threads

set_threads(1)

import numpy as np  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.manifold import TSNE  # noqa: E402

from nucleate.measures import clustering  # noqa: E402
from nucleate.measures import tsne_kernel as kernel  # noqa: E402
from nucleate.measures import tsne_start as start  # noqa: E402
from nucleate.measures.clustering import KMeansJob, kmeans_many  # noqa: E402
from nucleate.measures.tsne import tsne  # noqa: E402


def main() -> None:
    small, large = states(315, 256), states(3000, 256)
    huge = states(5000, 64)
    fit = partial(tsne, [small])
    lines: dict[str, Callable[[], tuple[Callable[[], Any], Callable[[], Any]]]] = {
        "t-SNE, 315 points: against scikit-learn, Barnes-Hut": lambda: (
            fit,
            lambda: TSNE(3, perplexity=10, max_iter=2000, random_state=0, n_jobs=1).fit(small),
        ),
        "t-SNE, 315 points: forces written for three dimensions": lambda: (
            fit,
            changed(fit, kernel, dense_forces=kernel._forces_general),
        ),
        "t-SNE, 315 points: forces against numpy": lambda: (
            partial(tsne, [small], iterations=500),
            changed(partial(tsne, [small], iterations=500), kernel, dense_forces=forces),
        ),
        "t-SNE, 315 points: a step against numpy": lambda: (
            fit,
            changed(fit, kernel, step=step),
        ),
        "t-SNE, 5,000 points: few neighbours attract, against all": lambda: (
            partial(tsne, [huge], iterations=50),
            changed(partial(tsne, [huge], iterations=50), start, SPARSE_FROM=10**6),
        ),
        "k-means, 315 points: pairwise against scikit-learn": lambda: (
            partial(clusters, small, 21),
            lambda: KMeans(21, n_init=10, random_state=0).fit(small),
        ),
        "k-means, 315 points: pairwise against by products": lambda: (
            partial(clusters, small, 21),
            changed(partial(clusters, small, 21), clustering, LARGEST_PAIRWISE=1),
        ),
        "k-means, 315 points in three dimensions: pairwise against by products": lambda: (
            partial(clusters, small[:, :3], 21),
            changed(partial(clusters, small[:, :3], 21), clustering, LARGEST_PAIRWISE=1),
        ),
        "k-means, 3,000 points: by products against scikit-learn": lambda: (
            partial(clusters, large, 16),
            lambda: KMeans(16, n_init=10, random_state=0).fit(large),
        ),
        "k-means, 3,000 points: by products against pairwise": lambda: (
            partial(clusters, large, 16),
            changed(partial(clusters, large, 16), clustering, LARGEST_PAIRWISE=10**6),
        ),
        "k-means, 3,000 points, 160 clusters: by products against scikit-learn": lambda: (
            partial(clusters, large, 160),
            lambda: KMeans(160, n_init=10, random_state=0).fit(large),
        ),
        "k-means, 3,000 points, 160 clusters: by products against pairwise": lambda: (
            partial(clusters, large, 160),
            changed(partial(clusters, large, 160), clustering, LARGEST_PAIRWISE=10**6),
        ),
    }
    for name, sides in lines.items():
        if all(word in name for word in sys.argv[1:]):
            ours, theirs = sides()
            first, second = quality(ours()), quality(theirs())  # compiles, too
            rounds = 3 if "000 points" in name else 7
            ratios = alternate(ours, theirs, rounds=rounds, warmup=0, timer=time.process_time)
            report(name, ratios, quality=f"{first:.4f} / {second:.4f}")


def quality(found: Any) -> float:
    """Divergence or inertia: the less the better."""
    for name in ("kl_divergence_", "inertia_"):
        if hasattr(found, name):
            return float(getattr(found, name))
    return found[0].kl_divergence if hasattr(found[0], "kl_divergence") else found[0].inertia


def states(n: int, width: int) -> np.ndarray:
    """Tasks, their instructions and inputs on axes of very different scale, as in a layer of a network."""
    rng = np.random.default_rng(n)
    task = rng.integers(0, 16, n)
    effects = rng.standard_normal((16, width))[task] + 0.7 * rng.standard_normal((n // 5 + 1, width))[np.arange(n) // 5]
    effects += 0.7 * rng.standard_normal((25, width))[rng.integers(0, 25, n)] + 0.5 * rng.standard_normal((n, width))
    return (effects * np.exp(0.7 * rng.standard_normal(width))).astype(np.float32)


def clusters(points: np.ndarray, k: int) -> list[clustering.Clustering]:
    return kmeans_many([KMeansJob(points, k, 0)])


def changed(work: Callable[[], Any], *homes: Any, **values: Any) -> Callable[[], Any]:
    """The work with some names of these modules replaced."""

    def inside() -> Any:
        found = [(home, name) for home in homes for name in values if hasattr(home, name)]
        before = [getattr(home, name) for home, name in found]
        try:
            for home, name in found:
                setattr(home, name, values[name])
            return work()
        finally:
            for (home, name), value in zip(found, before, strict=True):
                setattr(home, name, value)

    return inside


# --- the plain ways ---------------------------------------------------------------------------------------------------


def forces(probabilities, scaled, dof, literal, low, high, out, totals):
    spread = np.ones((high - low, scaled.shape[1]), np.float32)
    for axis in scaled:
        spread += (axis[low:high, None] - axis) ** 2
    inverse = 1 / spread
    weight = inverse ** np.float32((dof + 1) / 2)
    totals[low:high] = weight.sum(axis=1)
    for d, axis in enumerate(scaled):
        step = inverse * (axis[low:high, None] - axis)
        out[d, low:high] = (probabilities[low:high] * step).sum(axis=1)
        out[len(scaled) + d, low:high] = (weight * step).sum(axis=1)


def step(n, out, totals, layout, scaled, velocity, gains, dof, exaggeration, momentum, rate):
    normaliser = max(totals.sum() - n, 1e-6 * n)
    count, dimensions = len(layout), len(scaled)
    factor = 2 * (dof + 1) / np.sqrt(dof)
    gradient = factor * exaggeration * out[:count] - factor / normaliser * out[dimensions : dimensions + count]
    gains[:] = np.maximum(np.where(velocity * gradient < 0, gains + 0.2, gains * 0.8), 0.01)
    gradient *= gains
    velocity[:] = momentum * velocity - rate * gradient
    layout += velocity
    scaled[:count, :n] = layout / np.sqrt(dof)
    return normaliser, float((gradient * gradient).sum())


if __name__ == "__main__":
    main()
