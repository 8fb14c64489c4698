"""Property tests of the measures against oracles: scikit-learn, scipy, and counting by hand in the tests of each room.

    python benchmarks/torture/properties.py --seed 0 --minutes 60        10,000 cases of each property

A numbered case here is a slice of 500 cases of one property, with a seed of its own.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
from campaign import Result, main
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.optimize import linear_sum_assignment
from sklearn.metrics import adjusted_mutual_info_score, adjusted_rand_score

from neighbour_oracle import find_neighbours
from nucleate.intervals import discoveries, t_interval, t_probability
from nucleate.measures.clustering import KMeansJob, kmeans_many
from nucleate.measures.geometry import effective_rank
from nucleate.measures.scores import ari_within, cluster_scores
from test_clustering import inertia_of
from test_neighbours import dense_weights, labels, measured, slow_weights
from test_scores import slow_scores

TITLE = "property tests of the measures against oracles"
EACH = 500
CLOSE = {"rtol": 1e-9, "atol": 1e-9}
COUNTED = 10_000

sizes = st.integers(1, 40)
partitions = sizes.flatmap(lambda n: st.tuples(*[st.lists(st.integers(0, 8), min_size=n, max_size=n)] * 3))
numbers = st.lists(st.floats(-1e6, 1e6), min_size=2, max_size=30)
seeds = st.integers(0, 2**32 - 1)


def points_of(random: int, n: int, width: int) -> np.ndarray:
    """Ordinary, coinciding, on a grid, or of another scale, by what the number says."""
    rng = np.random.default_rng(random)
    points = rng.normal(size=(n, width))
    kind = random % 4
    if kind == 1:
        points = points[rng.integers(0, max(1, n // 3), n)]
    elif kind == 2:
        points = rng.integers(0, 3, points.shape).astype(float)
    elif kind == 3:
        points = points * 10.0 ** rng.integers(-8, 8) + rng.choice([0, 50])
    return points.astype(np.float32)


def scores_by_counting(three: Any) -> None:
    """F1s, counted point by point and pair by pair; the adjusted ones by scikit-learn, the matched one by scipy."""
    given_labels, clusters, _ = three
    found = cluster_scores(given_labels, clusters)
    for name, value in slow_scores(given_labels, clusters).items():
        np.testing.assert_allclose(getattr(found, name), value, **CLOSE, err_msg=name)
    np.testing.assert_allclose(found.ari, adjusted_rand_score(given_labels, clusters), **CLOSE)
    alone = len(set(given_labels)) == len(set(clusters)) == len(given_labels) > 1  # 0/0, where that one returns noise
    np.testing.assert_allclose(
        found.ami, 1.0 if alone else adjusted_mutual_info_score(given_labels, clusters), rtol=1e-7, atol=1e-7
    )
    classes, groups = np.array(given_labels), np.array(clusters)
    sizes_of = {one: (classes == one).sum() for one in np.unique(classes)}
    worth = np.array([
        [2 * ((classes == a) & (groups == b)).sum() / (size + (groups == b).sum()) * size / len(classes)
         for b in np.unique(groups)] for a, size in sizes_of.items()
    ])  # fmt: skip
    np.testing.assert_allclose(found.f1_matched, worth[linear_sum_assignment(worth, maximize=True)].sum(), **CLOSE)


def ari_inside_groups(three: Any) -> None:
    """The mean of scikit-learn's index inside each group of two classes or more, weighted by size."""
    inner, clusters, outer = map(np.array, three)
    parts = [(len(inner[outer == one]), adjusted_rand_score(inner[outer == one], clusters[outer == one]))
             for one in np.unique(outer) if len(np.unique(inner[outer == one])) > 1]  # fmt: skip
    found = ari_within(*three)
    if not parts:
        assert found is None
        return
    np.testing.assert_allclose(found, np.average([v for _, v in parts], weights=[n for n, _ in parts]), **CLOSE)


def students_interval(values: list[float]) -> None:
    found, spread = t_interval(values), stats.sem(values)
    low, high = (
        stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=spread) if spread else [np.mean(values)] * 2
    )
    np.testing.assert_allclose(tuple(found), (np.mean(values), low, high), rtol=1e-7, atol=1e-6)


def students_probability(values: list[float]) -> None:
    spread = np.std(values, ddof=1)
    if spread > 1e-9 * max(map(abs, values)):
        np.testing.assert_allclose(t_probability(np.array(values)), stats.ttest_1samp(values, 0).pvalue, rtol=1e-6)


def false_discoveries(probabilities: list[float]) -> None:
    adjusted = stats.false_discovery_control(probabilities)
    sure = np.abs(adjusted - 0.05) > 1e-12
    assert np.array_equal(discoveries(np.array(probabilities))[sure], (adjusted <= 0.05)[sure])


def neighbours_by_differences(drawn: Any) -> None:
    """How much each candidate counts, from every difference in double precision."""
    random, n, width = drawn
    rng = np.random.default_rng(random)
    points, few = points_of(random, n + 12, width), max(2, n // 3)
    query, candidate = (
        labels(m, instruction=rng.integers(0, few, m), input=rng.integers(0, 3, m)) for m in (12, n)
    )  # fmt: skip
    found = find_neighbours(points[:12], points[12:], query, candidate, ks=(1, 5, 10))
    apart = query.instruction[:, None] != candidate.instruction
    for search, allowed in (("", apart), ("other_inputs", apart & (query.input[:, None] != candidate.input))):
        for k in (1, 5, 10):
            wanted = slow_weights(points[:12], points[12:], allowed, k)
            np.testing.assert_allclose(dense_weights(found[search], k, n), wanted, atol=1e-9)


def shares_by_keeping_all(drawn: Any) -> None:
    """What is measured without keeping a neighbour is what all neighbours, kept, give."""
    random, n, width = drawn
    rng, points = np.random.default_rng(random), points_of(random, n + 10, width)
    query, candidate = (
        labels(m, instruction=rng.integers(0, 1 + n // 3, m), input=rng.integers(0, 3, m),
               output=rng.integers(-1, 3, m), task=rng.integers(0, 4, m), distribution=rng.integers(0, 6, m))
        for m in (10, n)
    )  # fmt: skip
    measured(points[:10], points[10:], query, candidate)


def inertia_of_the_partition(drawn: Any) -> None:
    """k clusters where there are as many different points, the inertia theirs, and no point better off elsewhere."""
    random, n, width = drawn
    points = points_of(random, n, width)
    k = 1 + random % min(n, 6)
    (found,) = kmeans_many([KMeansJob(points, k, random % 1000)])
    distinct = len(np.unique(points, axis=0))
    used = np.unique(found.clusters)
    assert len(used) == min(k, distinct) and used[-1] == len(used) - 1
    scale = float(np.square(points.astype(np.float64) - points.mean(axis=0, dtype=np.float64)).sum())
    np.testing.assert_allclose(found.inertia, inertia_of(points, found.clusters), rtol=1e-5, atol=1e-9 * scale + 1e-30)
    means = np.stack([points[found.clusters == c].mean(axis=0, dtype=np.float64) for c in used])
    distances = np.square(points[:, None].astype(np.float64) - means).sum(axis=-1)
    own = distances[np.arange(n), found.clusters]
    assert (own <= distances.min(axis=1) + 1e-5 * (own + scale / n) + 1e-30).all()


def rank_by_singular_values(drawn: Any) -> None:
    random, n, width = drawn
    points = points_of(random, n, width).astype(np.float64)
    values = np.linalg.svd(points - points.mean(axis=0), compute_uv=False)
    if values[0] <= 1e-4 * np.linalg.norm(points):
        return  # nothing varies but rounding
    shares = values[values > 1e-7 * values[0]]
    shares = shares / shares.sum()
    np.testing.assert_allclose(effective_rank(points), np.exp(-(shares * np.log(shares)).sum()), rtol=1e-4)


drawn = st.tuples(seeds, st.integers(12, 40), st.integers(1, 8))
PROPERTIES: dict[str, tuple[Any, Callable[[Any], None]]] = {
    "scores": (partitions, scores_by_counting),
    "ari_within": (partitions, ari_inside_groups),
    "t_interval": (numbers, students_interval),
    "t_probability": (numbers, students_probability),
    "discoveries": (st.lists(st.floats(0, 1), min_size=1, max_size=40), false_discoveries),
    "neighbours": (drawn, neighbours_by_differences),
    "neighbour shares": (drawn, shares_by_keeping_all),
    "k-means": (drawn, inertia_of_the_partition),
    "effective rank": (drawn, rank_by_singular_values),
}


def checked(name: str, random: int, cases: int = EACH) -> str:
    """What the smallest counterexample says; nothing where there is none."""
    strategy, check = PROPERTIES[name]
    quiet = settings(
        max_examples=cases, deadline=None, database=None, suppress_health_check=list(HealthCheck),
        phases=(Phase.generate, Phase.shrink),
    )  # fmt: skip
    try:
        seed(random)(quiet(given(strategy)(check)))()
    except Exception as error:
        notes = " ".join(getattr(error, "__notes__", []))
        return f"{type(error).__name__}: {' '.join(str(error).split())[:400]} {notes[:400]}"
    return ""


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    names = list(PROPERTIES)
    for number in numbers:
        name = names[number % len(names)]
        yield Result(number, name, checked(name, 1_000_000 * asked.seed + number))


if __name__ == "__main__":
    main("properties", TITLE, campaign, count=len(PROPERTIES) * COUNTED // EACH, each=EACH)
