"""k-means: scikit-learn and exhaustive search as oracles, laws of the objective, degenerate points, equal bytes."""

from itertools import pairwise, product

import numpy as np
import pytest
from sklearn.cluster import KMeans
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from nucleate.measures import clustering, kmeans_pairwise, kmeans_points
from nucleate.measures.clustering import Clustering, KMeansJob, kmeans, kmeans_many
from nucleate.measures.products import Products
from nucleate.refusal import Refused

ROUTES = ("distances", "points")


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    """Both ways of solving a problem, whatever its size."""
    monkeypatch.setattr(clustering, "LARGEST_PAIRWISE", 1024 if request.param == "distances" else 0)
    return request.param


def solve(points, k, *, seed=0, initialisations=10) -> Clustering:
    return kmeans_many([KMeansJob(points, k, seed)], initialisations=initialisations)[0]


def blobs(n, width, k, *, noise, seed=0):
    rng = np.random.default_rng(seed)
    label = rng.permutation(np.arange(n) % k)
    return (rng.normal(size=(k, width))[label] + noise * rng.normal(size=(n, width))).astype(np.float32), label


def inertia_of(points, clusters):
    points = np.asarray(points, np.float64)
    return sum(
        ((points[clusters == c] - points[clusters == c].mean(0)) ** 2).sum() for c in range(int(clusters.max()) + 1)
    )


# --- oracles --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("n", "width", "k"), [(180, 32, 10), (180, 3, 60), (315, 3, 21), (315, 256, 105), (90, 768, 7)]
)
def test_inertia_is_no_worse_than_scikit_learns_by_a_thousandth_in_the_mean(route, n, width, k):
    ratios = []
    for seed in range(6):
        points, _ = blobs(n, width, k, noise=0.7, seed=seed)
        peer = KMeans(k, n_init=10, random_state=seed).fit(points)
        ratios.append(solve(points, k, seed=seed).inertia / peer.inertia_)
    assert np.mean(ratios) < 1.001
    assert max(ratios) < 1.05  # luck of ten draws, on either side


@pytest.mark.parametrize("k", [1, 2, 13, 60])
def test_reported_inertia_is_that_of_the_partition(route, k):
    points, _ = blobs(120, 20, 8, noise=1)
    found = solve(points, k)
    assert found.inertia == pytest.approx(inertia_of(points, found.clusters), rel=1e-6)
    assert found.clusters.dtype == np.int32
    assert set(found.clusters) == set(range(k))
    assert found.iterations >= 1


def test_result_is_a_fixed_point_of_scikit_learns_lloyd(route):
    for seed, (n, width, k) in enumerate([(180, 32, 12), (315, 3, 21), (200, 5, 80)]):
        points, _ = blobs(n, width, k, noise=0.8, seed=seed)
        found = solve(points, k)
        means = np.stack([points[found.clusters == c].mean(0) for c in range(k)])
        again = KMeans(k, init=means, n_init=1, max_iter=1).fit(points)
        assert np.array_equal(again.labels_, found.clusters)


def test_no_single_point_can_move_to_the_good_of_the_inertia(route):
    points, _ = blobs(60, 4, 6, noise=1)
    points = np.concatenate([points, points[:7], points[:3]])  # weights 1, 2 and 3; copies have to stay together
    found = solve(points, 9)
    for i in range(60):
        copies = np.flatnonzero((points == points[i]).all(1))
        assert len(set(found.clusters[copies])) == 1
        for c in range(9):
            moved = found.clusters.copy()
            moved[copies] = c
            if len(set(moved)) == 9:
                assert inertia_of(points, moved) >= found.inertia * (1 - 1e-6)


def test_lloyd_alone_leaves_what_single_moves_then_find():
    points, _ = blobs(200, 3, 60, noise=0.5)
    lloyd = KMeans(60, n_init=10, random_state=0).fit(points)
    assert solve(points, 60).inertia < 0.99 * lloyd.inertia_


def test_the_optimum_of_a_tiny_problem_is_found(route):
    partitions = [np.array((0, *rest)) for rest in product(range(3), repeat=7)]
    for seed in range(5):
        points = np.random.default_rng(seed).normal(size=(8, 2)).astype(np.float32)
        optimum = min(inertia_of(points, p) for p in partitions if len(set(p)) == 3)
        assert solve(points, 3, seed=seed).inertia == pytest.approx(optimum, rel=1e-6)


def test_squared_distances_are_those_of_double_precision():
    for n, width in ((1, 3), (2, 1), (7, 5), (64, 3), (131, 70)):
        points = np.random.default_rng(n).normal(size=(n, width)) + 1000
        distances = np.full((n, n), np.nan)
        kmeans_pairwise._squared_distances(points, distances)
        expected = ((points[:, None] - points[None]) ** 2).sum(-1)
        np.testing.assert_allclose(distances, expected, rtol=1e-12)
        assert np.array_equal(distances, distances.T)


def test_seeds_are_those_of_greedy_k_means_plus_plus_written_plainly():
    points, _ = blobs(80, 3, 12, noise=0.5)
    points = points.astype(np.float64)
    copies = np.random.default_rng(1).integers(1, 4, size=80).astype(np.float64)
    draws = np.random.default_rng(2).random((12, 4))
    distances = ((points[:, None] - points[None]) ** 2).sum(-1)
    seeds = [int(np.searchsorted(np.cumsum(copies), draws[0, 0] * copies.sum(), side="right"))]
    for draw in draws[1:]:
        running = np.cumsum(copies * distances[seeds].min(0))
        candidates = np.searchsorted(running, draw * running[-1], side="right")
        seeds.append(min(candidates, key=lambda one: copies @ distances[[*seeds, one]].min(0)))
    label = np.empty(80, np.int32)
    kmeans_pairwise._seed(distances, copies, draws, label)
    assert np.array_equal(label, distances[seeds].argmin(0))


# --- known answers --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("n", "width", "k"), [(100, 2, 5), (315, 64, 21), (180, 768, 60)])
def test_far_apart_blobs_are_recovered_exactly_and_drowned_ones_are_not(route, n, width, k):
    rng = np.random.default_rng(3)
    label = rng.permutation(np.arange(n) % k)
    corners = 50 * rng.permutation(k)[:, None] * np.ones(width) / np.sqrt(width)
    noise = 0.1 * rng.normal(size=(n, width))
    assert adjusted_rand_score(label, kmeans((corners[label] + noise).astype(np.float32), k, seed=0)) == 1
    assert adjusted_rand_score(label, kmeans(noise.astype(np.float32), k, seed=0)) < 0.2


def test_a_large_problem_is_recovered_in_blocks_as_in_one_piece(monkeypatch):
    points, label = blobs(6000, 40, 30, noise=0.15)
    whole = solve(points, 30)
    assert adjusted_rand_score(label, whole.clusters) == 1
    assert whole.inertia == pytest.approx(inertia_of(points, whole.clusters), rel=1e-6)
    for entries in (400_000, 1000):  # two initialisations at a time; not even one table at a time
        monkeypatch.setattr(kmeans_points, "LARGEST_TABLE", entries)
        assert np.array_equal(solve(points, 30).clusters, whole.clusters)


def test_points_among_others_are_clustered_as_they_are_alone(monkeypatch):
    monkeypatch.setattr(clustering, "LARGEST_PAIRWISE", 0)
    points, label = blobs(1500, 40, 30, noise=0.15)
    points[7], points[300] = points[8], points[8]
    label = label.copy()
    label[[7, 300]] = label[8]
    others = 3 + np.random.default_rng(1).normal(size=(900, 40)).astype(np.float32)
    places = np.random.default_rng(2).permutation(2400)
    everyone = np.empty((2400, 40), np.float32)
    everyone[places] = np.concatenate([points, others])
    part = Products.of(everyone).part(places[:1500])
    (alone,) = kmeans_many([KMeansJob(points, 30, 0)])
    (among,) = kmeans_many([KMeansJob(points, 30, 0, part)])
    assert adjusted_rand_score(label, among.clusters) == 1 and np.array_equal(among.clusters, alone.clusters)
    assert among.inertia == pytest.approx(inertia_of(points, among.clusters), rel=1e-5)


def test_a_descent_that_hardly_moves_is_not_followed_to_its_end_and_the_best_one_is(monkeypatch):
    monkeypatch.setattr(clustering, "LARGEST_PAIRWISE", 0)
    points, _ = blobs(2000, 16, 12, noise=1.5)
    early = solve(points, 12)
    monkeypatch.setattr(kmeans_points, "ENOUGH", 0)
    late = solve(points, 12)
    assert early.inertia == pytest.approx(late.inertia, rel=0.01)
    for found in (early, late):  # no point can change its cluster to the good of the inertia
        means = np.stack([points[found.clusters == c].mean(0, dtype=float) for c in range(12)])
        size = np.bincount(found.clusters)
        far = ((points[:, None].astype(float) - means) ** 2).sum(2)
        own = far[np.arange(2000), found.clusters] * size[found.clusters] / (size[found.clusters] - 1)
        gain = own[:, None] - far * size / (size + 1)
        gain[np.arange(2000), found.clusters] = 0
        assert gain.max() <= 1e-3 * far.mean()


def test_both_routes_reach_the_same_quality(monkeypatch):
    ratios = []
    for seed in range(5):
        points, _ = blobs(400, 12, 20, noise=0.8, seed=seed)
        small = solve(points, 20)
        monkeypatch.setattr(clustering, "LARGEST_PAIRWISE", 0)
        ratios.append(solve(points, 20).inertia / small.inertia)
        monkeypatch.undo()
    assert np.mean(ratios) == pytest.approx(1, abs=0.01)


# --- laws -----------------------------------------------------------------------------------------------------------


def test_clusters_are_numbered_by_first_appearance(route):
    points, _ = blobs(150, 5, 12, noise=0.5)
    clusters = kmeans(points, 12, seed=1)
    assert list(dict.fromkeys(clusters.tolist())) == list(range(12))


def test_more_clusters_never_cost_more(route):
    points, _ = blobs(120, 6, 10, noise=1)
    inertias = [solve(points, k).inertia for k in (1, 2, 3, 5, 8, 13, 21, 40, 80, 119, 120)]
    assert all(later < earlier for earlier, later in pairwise(inertias))
    assert inertias[-1] == 0


def test_one_cluster_costs_the_whole_variance(route):
    points, _ = blobs(70, 9, 4, noise=1)
    assert solve(points, 1).inertia == pytest.approx(points.var(0, dtype=np.float64).sum() * 70, rel=1e-6)


def test_more_initialisations_contain_the_fewer():
    points, _ = blobs(150, 3, 30, noise=1)
    inertias = [solve(points, 30, initialisations=count).inertia for count in (1, 2, 5, 10, 20)]
    assert inertias == sorted(inertias, reverse=True)
    assert inertias[0] > inertias[-1]


def test_a_permutation_of_the_points_changes_neither_clear_clusters_nor_the_quality_of_others(route):
    order = np.random.default_rng(5).permutation(200)
    points, _ = blobs(200, 16, 10, noise=0.1)
    assert adjusted_rand_score(kmeans(points, 10, seed=0)[order], kmeans(points[order], 10, seed=0)) == 1
    points, _ = blobs(200, 16, 10, noise=1.5)
    assert solve(points[order], 10).inertia == pytest.approx(solve(points, 10).inertia, rel=0.03)


def test_translation_by_whole_numbers_and_scaling_by_powers_of_two_change_no_byte_of_the_clusters():
    points = np.random.default_rng(0).integers(-200, 200, size=(150, 4)).astype(np.float32)
    found = solve(points, 20)
    moved = solve(points + np.float32(1_000_000), 20)
    assert np.array_equal(moved.clusters, found.clusters)
    assert moved.inertia == found.inertia
    for exponent in (-120, 3, 100):
        scaled = solve(np.ldexp(points, exponent).astype(np.float32), 20)
        assert np.array_equal(scaled.clusters, found.clusters)
        assert scaled.inertia == np.ldexp(found.inertia, 2 * exponent)


@pytest.mark.parametrize("scale", [1e-38, 1e-20, 1e18, 1e36])
def test_huge_and_tiny_scales_give_the_same_clusters(route, scale):
    points, label = blobs(120, 8, 6, noise=0.1)
    found = solve((points * np.float64(scale)).astype(np.float32), 6)
    assert adjusted_rand_score(label, found.clusters) == 1
    assert found.inertia == pytest.approx(solve(points, 6).inertia * scale**2, rel=1e-2)


def test_a_far_off_origin_does_no_harm(route):
    points, label = blobs(120, 8, 6, noise=0.1)
    assert adjusted_rand_score(label, kmeans(points + np.float32(10_000), 6, seed=0)) == 1


# --- equal bytes ----------------------------------------------------------------------------------------------------


def test_no_byte_depends_on_threads_or_on_the_other_jobs():
    rng = np.random.default_rng(0)
    sets = [rng.normal(size=size).astype(np.float32) for size in ((180, 32), (315, 3), (1500, 20), (90, 5))]
    sets.append(np.repeat(sets[0][:40], 4, axis=0))
    jobs = [KMeansJob(points, k, seed) for points in sets for k, seed in ((10, 0), (33, 7))]
    alone = [kmeans_many([job])[0] for job in jobs]
    order = rng.permutation(len(jobs))
    for threads in (1, 2, 5):
        found = kmeans_many([jobs[i] for i in order], threads=threads)
        for place, i in enumerate(order):
            assert found[place].clusters.tobytes() == alone[i].clusters.tobytes()
            assert (found[place].inertia, found[place].iterations) == (alone[i].inertia, alone[i].iterations)


def test_no_byte_depends_on_the_threads_of_blas():
    points, _ = blobs(3000, 64, 40, noise=1.5)
    found = []
    for limit in (1, 2):
        with threadpool_limits(limit, user_api="blas"):
            found.append(solve(points, 40))
    assert found[0].clusters.tobytes() == found[1].clusters.tobytes()
    assert found[0].inertia == found[1].inertia


def test_views_copies_and_other_precisions_of_the_same_points_are_the_same_problem(route):
    points, _ = blobs(100, 6, 8, noise=1)
    expected = kmeans(points, 8, seed=2)
    wide = np.zeros((200, 12), np.float32)
    wide[::2, ::2] = points
    for same in (points.copy(), wide[::2, ::2], np.asfortranarray(points), points.astype(np.float64), points.tolist()):
        assert kmeans(same, 8, seed=2).tobytes() == expected.tobytes()
    # Overlapping views with the same first byte are different problems.
    first, second = kmeans_many([KMeansJob(wide[:100], 8, 2), KMeansJob(wide[::2], 8, 2)])
    assert second.clusters.tobytes() == expected.tobytes() != first.clusters.tobytes()


def test_seeds_matter_only_where_clusters_are_unclear(route):
    points, _ = blobs(200, 10, 40, noise=1)
    assert len({kmeans(points, 40, seed=seed).tobytes() for seed in range(4)}) > 1
    points, _ = blobs(200, 64, 5, noise=0.05)
    assert len({kmeans(points, 5, seed=seed).tobytes() for seed in range(4)}) == 1


def test_points_are_not_written_to(route):
    points, _ = blobs(100, 4, 5, noise=1)
    points.flags.writeable = False
    before = points.tobytes()
    kmeans(points, 5, seed=0)
    assert points.tobytes() == before


# --- degenerate points; every warning is an error here --------------------------------------------------------------


def test_fewer_distinct_points_than_clusters_give_a_cluster_to_each(route):
    rng = np.random.default_rng(0)
    which = rng.integers(7, size=100)
    points = rng.normal(size=(7, 5)).astype(np.float32)[which]
    for k in (7, 8, 60, 100):
        found = solve(points, k)
        assert adjusted_rand_score(which, found.clusters) == 1
        assert found.clusters.max() == 6
        assert found.inertia == 0
    assert solve(points, 6).clusters.max() == 5


def test_all_points_alike_are_one_cluster(route):
    for points in (np.full((30, 4), 3.3, np.float32), np.zeros((30, 1), np.float32), np.zeros((1, 2), np.float32)):
        found = solve(points, min(5, len(points)))
        assert not found.clusters.any()
        assert found.inertia == 0


def test_minus_zero_is_zero(route):
    points = np.zeros((10, 2), np.float32)
    points[::2] = -0.0
    points[5:, 1] = 1
    assert kmeans(points, 3, seed=0).tolist() == [0] * 5 + [1] * 5


def test_as_many_clusters_as_points(route):
    points, _ = blobs(50, 3, 5, noise=1)
    assert kmeans(points, 50, seed=0).tolist() == list(range(50))


def test_coinciding_points_count_as_often_as_they_occur(route):
    line = np.array([[0.0]] * 9 + [[1.0]] + [[3.0]], np.float32)
    # Without weights {0, 1}, {3} would cost 0.5; with them 0.9, still less than 2 for {0}, {1, 3}.
    found = solve(line, 2)
    assert found.clusters.tolist() == [0] * 10 + [1]
    assert found.inertia == pytest.approx(0.9)


def test_constant_features_change_nothing():
    points, _ = blobs(90, 5, 6, noise=0.6)
    padded = np.concatenate([np.full((90, 2), 7.7, np.float32), points, np.zeros((90, 1), np.float32)], axis=1)
    assert np.array_equal(kmeans(points, 6, seed=0), kmeans(padded, 6, seed=0))


def test_groups_of_nearly_equal_points_stay_whole(route):
    rng = np.random.default_rng(0)
    label = np.arange(180) % 60
    points = (rng.normal(size=(60, 8))[label] + 1e-6 * rng.normal(size=(180, 8))).astype(np.float32)
    assert adjusted_rand_score(label, kmeans(points, 60, seed=0)) == 1
    finer = solve(points, 90)  # inside the groups there is only rounding to go by
    assert 60 <= finer.clusters.max() + 1 <= 90
    assert finer.clusters.max() == 89 or route == "points"
    assert finer.iterations < 100


def test_one_far_outlier_gets_its_own_cluster(route):
    points, _ = blobs(100, 4, 1, noise=1)
    points[17] = 1e6
    clusters = kmeans(points, 2, seed=0)
    assert np.flatnonzero(clusters == clusters[17]).tolist() == [17]


@pytest.mark.parametrize(
    ("points", "k", "word"),
    [
        (np.zeros((5, 2)), 6, "k is 6 with 5 points"),
        (np.zeros((5, 2)), 0, "k is 0"),
        (np.zeros((5, 2)), 2.5, "k is 2.5"),
        (np.array([[0.0, 1.0], [2.0, np.nan]]), 1, "point 1 has nan in column 1"),
        (np.array([[0.0, -np.inf], [2.0, 0.0]]), 1, "point 0 has -inf in column 1"),
        (np.array([[1e300]]), 1, "point 0 has inf"),
        (np.zeros(5), 1, "shape (5,)"),
        (np.zeros((0, 3)), 1, "shape (0, 3)"),
        (np.zeros((3, 0)), 1, "shape (3, 0)"),
        (np.zeros((3, 2), complex), 1, "complex"),
        (np.array([["a", "b"]]), 1, "<U1"),
        ([[1.0], [1.0, 2.0]], 1, "no array"),
    ],
)
def test_unusable_input_is_refused_in_one_line(points, k, word):
    with pytest.raises(Refused) as refusal:
        kmeans_many([KMeansJob(np.zeros((4, 4)), 2, 0), KMeansJob(points, k, 0)])
    assert word in str(refusal.value)
    assert "job 1" in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("settings", [{"initialisations": 0}, {"threads": 0}])
def test_impossible_settings_are_refused(settings):
    with pytest.raises(Refused, match=next(iter(settings))):
        kmeans_many([], **settings)
    with pytest.raises(Refused, match="seed is -1"):
        kmeans(np.zeros((3, 2)), 2, seed=-1)


def test_no_jobs_give_no_results():
    assert kmeans_many([], threads=3) == []
