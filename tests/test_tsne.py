"""t-SNE against scikit-learn and a plain double-precision oracle, and the laws of every batch of problems."""

import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.spatial.distance import pdist, squareform
from scipy.special import entr
from sklearn.base import clone
from sklearn.datasets import make_blobs
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE as PeerTSNE
from sklearn.manifold import trustworthiness
from sklearn.manifold._t_sne import _gradient_descent, _joint_probabilities, _kl_divergence
from sklearn.manifold._utils import _binary_search_perplexity
from sklearn.utils.estimator_checks import check_estimator

from nucleate.measures import tsne_descent as descent
from nucleate.measures import tsne_kernel as kernel
from nucleate.measures import tsne_start
from nucleate.measures.tsne import TSNE, tsne
from nucleate.refusal import Refused


def blobs(n: int, *, width: int = 20, centres: int = 6, seed: int = 0, spread: float = 1.0) -> np.ndarray:
    points, _ = make_blobs(n, width, centers=centres, cluster_std=spread, random_state=seed)
    return points.astype(np.float32)


def noise(n: int, *, width: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, width)).astype(np.float32)


def coinciding(n: int = 120) -> np.ndarray:
    """A quarter of the points is one point, a quarter another: as at layer 0."""
    points = noise(n, seed=5)
    points[: n // 4] = points[0]
    points[n // 4 : n // 2] = points[n // 2]
    return points


def one_constant_feature_and_one_binary(n: int = 90) -> np.ndarray:
    points = noise(n, width=5, seed=6)
    points[:, 1] = 3.0
    points[:, 2] = points[:, 2] > 0
    return points


DATA = {
    "blobs": blobs(100),
    "noise": noise(80),
    "wide": noise(70, width=300, seed=2) + np.repeat(noise(7, width=300, seed=3), 10, axis=0),
    "coinciding": coinciding(),
    "constant": one_constant_feature_and_one_binary(),
    "barely": blobs(31, seed=4),
}


def prepared(points: np.ndarray, *, components: int = 3, perplexity: float = 10.0) -> tsne_start.Prepared:
    return tsne_start.prepare(points, None, components, perplexity, 0, tsne_start.in_turn, False)


def joint_of(points: np.ndarray, perplexity: float = 10.0) -> np.ndarray:
    return prepared(points, perplexity=perplexity).joint[:, : len(points)].astype(np.float64)


def identical(one: list, other: list) -> bool:
    return all(
        a.embedding.tobytes() == b.embedding.tobytes()
        and a.kl_divergence == b.kl_divergence
        and a.iterations == b.iterations
        for a, b in zip(one, other, strict=True)
    )


# --- The plain oracle: everything in double precision, whole matrices, no tricks --------------------------------------


def plain_joint(points: np.ndarray, perplexity: float) -> np.ndarray:
    squared = squareform(pdist(points.astype(np.float64), "sqeuclidean"))
    n = len(points)
    conditional = np.zeros((n, n))
    for i in range(n):
        others = np.arange(n) != i
        gaps = squared[i, others] - squared[i, others].min()

        def row(log_precision: float, gaps: np.ndarray = gaps) -> np.ndarray:
            weights = np.exp(-gaps * np.exp(log_precision))
            return weights / weights.sum()

        found = brentq(lambda b: entr(row(b)).sum() - np.log(perplexity), -60.0, 60.0, xtol=1e-13, rtol=1e-13)
        conditional[i, others] = row(found)
    return np.maximum((conditional + conditional.T) / (2 * n), np.finfo(float).eps) * (1 - np.eye(n))


def plain_gradient(
    joint: np.ndarray, layout: np.ndarray, exaggeration: float = 1.0, literal: bool = False
) -> tuple[float, np.ndarray]:
    dof = max(layout.shape[1] - 1, 1)
    differences = layout[:, None] - layout[None]
    inverse = 1 / (1 + (differences**2).sum(-1) / dof)
    weights = inverse ** ((dof + 1) / 2) * (1 - np.eye(len(layout)))
    q = weights / weights.sum()
    off = ~np.eye(len(layout), dtype=bool)
    divergence = float((joint[off] * np.log(joint[off] / q[off])).sum())
    pull = (exaggeration * joint - q) * (weights if literal else inverse)
    return divergence, 2 * (dof + 1) / dof * (pull[:, :, None] * differences).sum(1)


def plain_descent(
    joint: np.ndarray, layout: np.ndarray, iterations: int, *, exaggerated: int = 250, literal: bool = False
) -> np.ndarray:
    layout = layout.astype(np.float64)
    rate = max(len(layout) / 12 / 4, 50)
    border = min(exaggerated, iterations)
    for count, exaggeration, momentum in ((border, 12, 0.5), (iterations - border, 1, 0.8)):
        velocity, gains = np.zeros_like(layout), np.ones_like(layout)
        for _ in range(count):
            _, gradient = plain_gradient(joint, layout, exaggeration, literal)
            gains = np.maximum(np.where(velocity * gradient < 0, gains + 0.2, gains * 0.8), 0.01)
            velocity = momentum * velocity - rate * gains * gradient
            layout = layout + velocity
    return layout


# --- Preparation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DATA)
def test_conditional_probabilities_equal_scikit_learns(name):
    points = DATA[name]
    squared = squareform(pdist(points.astype(np.float64), "sqeuclidean"))
    theirs = _binary_search_perplexity(squared.astype(np.float32), 10.0, 0)
    ours = tsne_start.calibrated(squared, np.log(10.0), own=0)
    np.testing.assert_allclose(ours.sum(1), 1.0, atol=1e-6)
    # Where a point's nearest neighbours tie, more of them than the perplexity, scikit-learn's search may run into
    # underflow and leave the whole row zero; ours shares it between them.
    full = theirs.sum(1) > 0.5
    assert full.mean() > 0.95
    # Theirs stops bisecting at an entropy error of 1e-5, and its distances are float32.
    np.testing.assert_allclose(ours[full], theirs[full], rtol=3e-4, atol=1e-7)


@pytest.mark.parametrize("name", ["blobs", "noise", "wide", "constant", "barely"])
def test_joint_probabilities_equal_scikit_learns(name):
    points = DATA[name]
    theirs = squareform(_joint_probabilities(squareform(pdist(points.astype(np.float64), "sqeuclidean")), 10.0, 0))
    np.testing.assert_allclose(joint_of(points), theirs, rtol=3e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["blobs", "noise", "wide", "constant", "barely"])
def test_joint_probabilities_equal_the_oracle_to_single_precision(name):
    np.testing.assert_allclose(joint_of(DATA[name]), plain_joint(DATA[name], 10.0), rtol=2e-6, atol=1e-12)


def test_every_point_of_a_row_of_ties_gets_the_same_share():
    points = np.repeat(noise(4, seed=1), 30, axis=0)  # 29 points at distance 0, where 10 were asked for
    joint = joint_of(points)
    same = np.kron(np.eye(4), np.ones((30, 30))) - np.eye(120)
    np.testing.assert_allclose(joint, same / same.sum(), atol=1e-9)


@given(scale=st.integers(-60, 60), n=st.integers(12, 40), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None)
def test_joint_probabilities_are_symmetric_sum_to_one_and_ignore_scale(scale, n, seed):
    points = noise(n, seed=seed).astype(np.float64)
    joint = joint_of(points)
    assert joint.sum() == pytest.approx(1.0, abs=1e-6)
    assert (joint == joint.T).all()
    assert (np.diag(joint) == 0).all()
    assert (joint_of(points * 2.0**scale) == joint).all()


def test_near_points_keep_their_distance_beside_far_ones():
    points = np.zeros((40, 3))
    points[20:, 0] = 1.0
    points[:20, 1] = points[20:, 1] = np.arange(20) * 1e-9  # squared: 1e-18, beyond what |a|² + |b|² - 2ab can resolve
    np.testing.assert_allclose(joint_of(points, 3.0), plain_joint(points, 3.0), rtol=1e-3, atol=1e-9)


@pytest.mark.parametrize("shape", [(100, 8), (40, 300)])
def test_start_is_scikit_learns_exact_principal_components(shape):
    points = noise(shape[0], width=shape[1], seed=3) * np.linspace(1, 4, shape[1], dtype=np.float32)
    theirs = PCA(3, svd_solver="full").fit_transform(points)
    theirs = theirs / np.std(theirs[:, 0]) * 1e-4
    np.testing.assert_allclose(prepared(points).layout.T, theirs, atol=3e-8)  # of about 1e-4: theirs is float32


# --- Descent ----------------------------------------------------------------------------------------------------------


def one_gradient(points: np.ndarray, layout: np.ndarray, *, literal: bool) -> tuple[np.ndarray, float]:
    """The gradient at `layout` (components, n), read off one step of rate 1, and the norm that the step reports."""
    joint = prepared(points).joint
    n, dof = layout.shape[1], max(len(layout) - 1, 1)
    scaled = descent.scaled_layout(layout, joint.shape[1])
    forces, sums = np.zeros((2 * len(scaled), n), np.float32), np.zeros(n)
    kernel.dense_forces(joint, scaled, dof, literal, 0, n, forces, sums)
    velocity, gains = np.zeros_like(layout), np.full_like(layout, 1.25)  # a first step multiplies gains by 0.8
    _, squared_norm = kernel.step(n, forces, sums, layout.copy(), scaled, velocity, gains, dof, 1.0, 0.5, 1.0)
    return -velocity, float(np.sqrt(squared_norm))


@pytest.mark.parametrize("components", [1, 2, 3, 4, 7])
def test_gradient_taken_literally_equals_scikit_learns(components):
    points = DATA["blobs"]
    layout = np.random.default_rng(1).standard_normal((components, 100)).astype(np.float32) * 3
    gradient, norm = one_gradient(points, layout, literal=True)
    divergence, theirs = _kl_divergence(
        layout.T.ravel().astype(float), squareform(joint_of(points)), max(components - 1, 1), 100, components
    )
    np.testing.assert_allclose(gradient, theirs.reshape(100, components).T, atol=2e-5 * np.abs(theirs).max())
    assert norm == pytest.approx(np.linalg.norm(theirs), rel=1e-4)
    assert descent.finished(prepared(points), layout, 0).kl_divergence == pytest.approx(divergence, rel=1e-4)


@pytest.mark.parametrize("components", [1, 2, 3, 4, 7])
def test_gradient_is_the_derivative_of_scikit_learns_divergence_which_its_own_is_only_in_the_plane(components):
    points = DATA["barely"]
    layout = np.random.default_rng(1).standard_normal((components, 31)).astype(np.float32) * 3
    gradient, _ = one_gradient(points, layout, literal=False)
    condensed, flat = squareform(joint_of(points)), layout.T.ravel().astype(float)

    def divergence(change: np.ndarray) -> float:
        return _kl_divergence(flat + change, condensed, max(components - 1, 1), 31, components)[0]

    steps = np.eye(len(flat)) * 1e-5
    slope = np.array([divergence(step) - divergence(-step) for step in steps]) / 2e-5
    np.testing.assert_allclose(gradient.T.ravel(), slope, atol=1e-4 * np.abs(slope).max())
    literal, _ = one_gradient(points, layout, literal=True)
    assert (np.abs(literal - gradient).max() < 1e-5 * np.abs(slope).max()) == (components <= 2)


# From exaggeration's fifteenth step or so, differences in the last bit have grown to the size of the layout (the oracle
# started a millionth off parts from itself in the same way), so long runs are compared by where they end.
@pytest.mark.parametrize("literal", [False, True])
@pytest.mark.parametrize("components", [1, 2, 3, 5])
@pytest.mark.parametrize("name", ["blobs", "coinciding"])
def test_the_first_iterations_follow_the_oracle(name, components, literal):
    points = DATA[name]
    start = prepared(points, components=components).layout.T
    direction = "scikit-learn" if literal else "gradient"
    for iterations in (1, 3, 6):
        ours = tsne([points], components=components, iterations=iterations, direction=direction)[0]
        oracle = plain_descent(joint_of(points), start, iterations, literal=literal)
        assert ours.iterations == iterations
        assert np.abs(ours.embedding - oracle).max() < 1e-3 * np.abs(oracle).max()


def test_the_end_of_exaggeration_follows_the_oracle(monkeypatch):
    points = DATA["noise"]
    monkeypatch.setattr(descent, "EXAGGERATED_ITERATIONS", 4)
    start = prepared(points).layout.T
    for iterations in (4, 5, 8):
        ours = tsne([points], iterations=iterations)[0].embedding
        oracle = plain_descent(joint_of(points), start, iterations, exaggerated=4)
        wrong = plain_descent(joint_of(points), start, iterations, exaggerated=3)
        assert np.abs(ours - oracle).max() < 1e-3 * np.abs(oracle).max() < 0.1 * np.abs(wrong - oracle).max()


def test_two_hundred_iterations_from_a_settled_layout_follow_the_oracle():
    points = DATA["noise"]
    settled = tsne([points], iterations=1500)[0].embedding
    ours = tsne([points], start=[settled], iterations=200)[0].embedding
    oracle = plain_descent(joint_of(points), settled, 200, exaggerated=0)
    assert np.abs(ours - oracle).max() < 1e-2 * np.abs(oracle).max()


def test_divergence_is_that_of_the_layout_returned():
    points = DATA["noise"]
    result = tsne([points], iterations=400)[0]
    divergence, _ = plain_gradient(joint_of(points), result.embedding.astype(np.float64), 1.0)
    assert result.kl_divergence == pytest.approx(divergence, rel=1e-5)


@pytest.mark.parametrize("name", DATA)
def test_final_divergence_is_no_higher_than_that_of_scikit_learns_exact_method(name):
    points = DATA[name]
    ours = tsne([points], iterations=750)[0]
    peer = PeerTSNE(3, perplexity=10, max_iter=750, method="exact", random_state=0).fit(points)
    assert ours.kl_divergence <= peer.kl_divergence_ * 1.02
    assert np.isfinite(ours.embedding).all()


@pytest.mark.parametrize(("components", "direction"), [(2, "gradient"), (2, "scikit-learn"), (3, "scikit-learn")])
def test_final_divergence_equals_scikit_learns_in_the_mean_where_both_descend_alike(components, direction):
    problems = [noise(60, seed=seed) for seed in range(12)]
    ours = [
        result.kl_divergence for result in tsne(problems, components=components, iterations=500, direction=direction)
    ]
    peer = PeerTSNE(components, perplexity=10, max_iter=500, method="exact", random_state=0)
    theirs = [peer.fit(points).kl_divergence_ for points in problems]
    noise_of_means = np.hypot(np.std(ours), np.std(theirs)) / np.sqrt(len(problems))
    assert abs(np.mean(ours) - np.mean(theirs)) < 3 * noise_of_means + 0.02 * np.mean(theirs)


def test_neighbours_survive_as_in_scikit_learn_and_not_before_training():
    points = DATA["wide"]
    ours = trustworthiness(points, tsne([points], iterations=750)[0].embedding)
    peer = trustworthiness(points, PeerTSNE(3, perplexity=10, max_iter=750, method="exact").fit_transform(points))
    shuffled = np.random.default_rng(0).permutation(tsne([points], iterations=1)[0].embedding)
    assert trustworthiness(points, shuffled) < 0.6 < 0.9 < ours
    assert ours > peer - 0.01


def test_divergence_falls_with_iterations():
    values = [tsne([DATA["blobs"]], iterations=count)[0].kl_divergence for count in (1, 400, 1500)]
    assert values[0] > 5 * values[1] > 5 * values[2] > 0


# --- Schedule ---------------------------------------------------------------------------------------------------------


def told(schedule, divergences, norm=1.0):
    for divergence in divergences:
        if not schedule.running:
            break
        schedule.tell(divergence, norm)
    return schedule.done


def test_schedule_exaggerates_for_250_iterations_and_then_changes_momentum():
    schedule = descent.Schedule(1000, warm=False)
    assert (schedule.exaggeration, schedule.momentum, schedule.steps) == (12.0, 0.5, 50)
    assert [schedule.tell(1.0 / check, 1.0) for check in range(1, 6)] == [False] * 4 + [True]
    assert (schedule.exaggeration, schedule.momentum, schedule.done) == (1.0, 0.8, 250)


def test_schedule_stops_after_300_iterations_without_progress_and_at_tiny_gradients():
    falling = (1.0 / check for check in range(1, 100))
    assert told(descent.Schedule(2000, warm=False), falling) == 2000
    # As in scikit-learn: a stage begins anew at 250, its best is at 300; the first check more than 300 later is 650.
    assert told(descent.Schedule(2000, warm=False), [1.0] * 100) == 650
    assert told(descent.Schedule(2000, warm=True), [1.0] * 100) == 400
    assert told(descent.Schedule(2000, warm=False), [1.0] * 100, norm=1e-8) == 100  # one check in each stage


def test_schedule_ends_between_checks():
    for iterations in (1, 49, 50, 75, 250, 260):
        assert told(descent.Schedule(iterations, warm=False), [1.0] * 9) == iterations


@given(
    errors=st.lists(st.sampled_from([1.0, 2.0, 3.0]), min_size=60, max_size=60),
    slope=st.sampled_from([1.0, 0.0]),
    iterations=st.integers(251, 2000),
)
@settings(max_examples=60, deadline=None)
def test_schedule_stops_where_scikit_learns_descent_stops(errors, slope, iterations):
    def objective(layout, compute_error):
        objective.calls += 1
        return errors[(objective.calls - 1) // 50], np.full(2, slope)

    objective.calls = 0
    common = {"n_iter_check": 50, "min_grad_norm": 1e-7, "kwargs": {}}
    _, _, last = _gradient_descent(objective, np.zeros(2), 0, 250, momentum=0.5, n_iter_without_progress=250, **common)
    _gradient_descent(objective, np.zeros(2), last + 1, iterations, n_iter_without_progress=300, **common)
    schedule = descent.Schedule(iterations, warm=False)
    while schedule.running:
        schedule.tell(errors[(schedule.done + schedule.steps - 1) // 50], slope)
    assert schedule.done == objective.calls


# --- Laws of the batch ------------------------------------------------------------------------------------------------


def test_result_does_not_depend_on_the_batch_its_order_or_the_threads():
    problems = [DATA["blobs"], DATA["noise"], DATA["barely"], DATA["coinciding"], DATA["blobs"]]
    alone = [tsne([problem], iterations=300, threads=1)[0] for problem in problems]
    assert identical(alone, tsne(problems, iterations=300, threads=3))
    assert identical(alone[::-1], tsne(problems[::-1], iterations=300, threads=2))
    assert identical(alone[:1], alone[4:])
    assert not np.array_equal(alone[0].embedding[:31], alone[2].embedding)


def test_rows_shared_between_threads_give_the_same_bytes(monkeypatch):
    points = blobs(300, centres=9)
    monkeypatch.setattr(descent, "SHARED_FROM", 200)
    results = [tsne([points], iterations=120, threads=threads) for threads in (1, 2, 5)]
    assert identical(results[0], results[1])
    assert identical(results[0], results[2])


def test_rows_shared_between_threads_agree_with_one_thread_per_problem(monkeypatch):
    points = blobs(150)
    whole = tsne([points], iterations=60)
    monkeypatch.setattr(descent, "SHARED_FROM", 100)
    assert identical(tsne([points], iterations=60, threads=3), whole)


def test_nearest_neighbours_alone_lead_to_the_same_divergence(monkeypatch):
    points = blobs(400, centres=10, width=12)
    whole = tsne([points], iterations=500)[0]
    monkeypatch.setattr(descent, "SHARED_FROM", 300)
    monkeypatch.setattr(tsne_start, "SPARSE_FROM", 300)
    near = [tsne([points], iterations=500, threads=threads)[0] for threads in (1, 3)]
    assert identical(near[:1], near[1:])
    joint = joint_of(points) + np.eye(len(points)) * np.finfo(float).tiny
    monkeypatch.undo()
    of_all = plain_gradient(joint_of(points), near[0].embedding.astype(float), 1.0)[0]
    assert joint.sum() == pytest.approx(1.0, abs=1e-5)
    assert of_all == pytest.approx(whole.kl_divergence, rel=0.05)


def test_sparse_forces_of_all_neighbours_equal_the_dense_ones(monkeypatch):
    points = DATA["noise"]
    monkeypatch.setattr(tsne_start, "SPARSE_FROM", 10)
    sparse = prepared(points, perplexity=79 / 3)  # 3 × perplexity + 1 covers everybody
    monkeypatch.undo()
    dense = prepared(points, perplexity=79 / 3)
    np.testing.assert_allclose(sparse.joint.toarray(), dense.joint[:, :80], rtol=1e-5, atol=1e-12)
    assert sparse.entropy == pytest.approx(dense.entropy, rel=1e-9)
    scaled = descent.scaled_layout(noise(80, width=3).T, dense.joint.shape[1])
    pairs = (sparse.joint.indptr, sparse.joint.indices, sparse.joint.data)
    one, other, sums = np.zeros((6, 80), np.float32), np.zeros((6, 80), np.float32), np.zeros(80)
    for literal in (False, True):
        kernel.dense_forces(dense.joint, scaled, 2, literal, 0, 80, one, sums)
        kernel.sparse_forces(*pairs, scaled, 2, literal, 0, 80, other, sums)
        np.testing.assert_allclose(other, one, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("direction", ["gradient", "scikit-learn"])
def test_torch_path_follows_the_compiled_path(direction):
    problems = [DATA["blobs"], DATA["barely"], DATA["noise"]]
    for components in (1, 2, 3, 4):
        ready = [prepared(points, components=components) for points in problems]
        ours = tsne(problems, components=components, iterations=6, direction=direction)
        theirs = descent.descend_batch(ready, 6, direction == "scikit-learn", "cpu")
        for one, (layout, iterations) in zip(ours, theirs, strict=True):
            assert iterations == 6
            assert np.abs(layout.T - one.embedding).max() < 1e-3 * np.abs(one.embedding).max()


def test_torch_path_follows_the_compiled_path_from_a_settled_layout():
    settled = tsne([DATA["noise"]], iterations=1500)[0].embedding
    one = tsne([DATA["noise"]], start=[settled], iterations=120)[0]
    other = tsne([DATA["noise"], DATA["barely"]], start=[settled, None], iterations=120, device="cpu:0")[0]
    assert np.abs(one.embedding - other.embedding).max() < 1e-2 * np.abs(one.embedding).max()


def test_torch_path_ends_at_the_same_divergence_and_keeps_the_order_of_problems(monkeypatch):
    problems = [DATA["barely"], blobs(60, seed=1), DATA["barely"][:20]]
    monkeypatch.setattr(descent, "_BATCH_PAIRS", 2 * 60**2)  # two problems to a batch
    theirs = tsne(problems, perplexity=5, iterations=500, device="cpu:0")
    ours = tsne(problems, perplexity=5, iterations=500)
    assert [len(result.embedding) for result in theirs] == [31, 60, 20]
    for points, one, other in zip(problems, ours, theirs, strict=True):
        divergence, _ = plain_gradient(plain_joint(points, 5.0), other.embedding.astype(np.float64))
        assert other.kl_divergence == pytest.approx(divergence, rel=1e-4)
        assert (
            other.kl_divergence
            < 3 * one.kl_divergence
            < 0.5 * tsne([points], perplexity=5, iterations=1)[0].kl_divergence
        )


# --- Warm start -------------------------------------------------------------------------------------------------------


def test_warm_start_stays_near_and_does_not_exaggerate():
    points = DATA["blobs"]
    settled = tsne([points], iterations=1000)[0]
    again = tsne([points], start=[settled.embedding], iterations=100)[0]
    fresh = tsne([points[:, ::-1] + 0.1 * noise(100, width=20)], iterations=100)[0]
    size = pdist(settled.embedding).mean()
    assert np.linalg.norm(again.embedding - settled.embedding, axis=1).mean() < 0.2 * size
    assert again.kl_divergence <= settled.kl_divergence * 1.01
    assert fresh.kl_divergence > 1.5 * again.kl_divergence


def test_warm_start_is_per_problem():
    problems = [DATA["noise"], DATA["barely"]]
    cold = tsne(problems, iterations=60)
    mixed = tsne(problems, start=[None, cold[1].embedding], iterations=60)
    assert identical(cold[:1], mixed[:1])
    assert not identical(cold[1:], mixed[1:])


def test_start_is_not_changed_in_place():
    first = tsne([DATA["barely"]], iterations=60)[0].embedding
    kept = first.copy()
    tsne([DATA["barely"]], start=[first], iterations=60)
    assert (first == kept).all()


# --- Degenerate input -------------------------------------------------------------------------------------------------


def test_one_repeated_point_gives_a_finite_layout_that_the_seed_decides():
    points = np.full((200, 7), 12345.678, np.float32)
    first, again = (tsne([points], seed=3, iterations=300)[0] for _ in range(2))
    other = tsne([points], seed=4, iterations=300)[0]
    assert np.isfinite(first.embedding).all()
    assert identical([first], [again])
    assert not np.array_equal(first.embedding, other.embedding)


def test_seed_changes_nothing_where_the_data_decide():
    assert identical(tsne([DATA["noise"]], seed=0, iterations=60), tsne([DATA["noise"]], seed=9, iterations=60))


@pytest.mark.parametrize("scale", [1e-300, 1e-6, 1e6, 1e150])
def test_huge_and_tiny_scales_change_nothing_but_rounding(scale):
    points = DATA["noise"].astype(np.float64)
    ours, scaled = tsne([points, points * scale], iterations=100)
    assert np.abs(ours.embedding - scaled.embedding).max() < 2e-2 * np.abs(ours.embedding).max()


def test_scaling_by_a_power_of_two_gives_the_same_bytes():
    points = DATA["noise"]
    assert identical(tsne([points], iterations=100), tsne([points * np.float32(2.0**-30)], iterations=100))


def test_coinciding_points_stay_together():
    embedding = tsne([coinciding()], iterations=500)[0].embedding
    apart = np.linalg.norm(embedding[:30] - embedding[0], axis=1).max()
    assert apart < 1e-3 * np.linalg.norm(embedding - embedding.mean(0), axis=1).mean()


@pytest.mark.parametrize(
    "points",
    [np.arange(30.0)[:, None], np.eye(30), np.eye(12), np.column_stack([np.arange(40.0), np.zeros((40, 9))])],
    ids=["one feature", "equidistant", "two more than perplexity", "a line"],
)
def test_fewer_axes_than_components_still_give_a_finite_layout(points):
    for components in (1, 3, 4):
        result = tsne([points], components=components, iterations=300)[0]
        assert np.isfinite(result.embedding).all()
        assert np.isfinite(result.kl_divergence)
        assert result.embedding.std(axis=0).min() > 1e-6


def test_where_a_lapack_finds_no_eigenvalue_among_equal_ones_all_of_them_are_sought(monkeypatch):
    whole = tsne_start.eigh

    def finds_none(gram, subset_by_index=None, **options):
        values, vectors = whole(gram, **options)
        return (values[:0], vectors[:, :0]) if subset_by_index else (values, vectors)

    expected = tsne([np.eye(30)], iterations=300)[0].embedding
    monkeypatch.setattr(tsne_start, "eigh", finds_none)
    found = tsne([np.eye(30)], iterations=300)[0].embedding
    assert np.isfinite(found).all() and found.shape == expected.shape


def test_smallest_problem_has_two_points():
    result = tsne([[[0.0, 1.0], [2.0, 3.0]]], perplexity=1, iterations=300)[0]
    assert result.kl_divergence == pytest.approx(0.0, abs=1e-6)


def test_far_apart_start_stays_finite():
    start = np.random.default_rng(0).standard_normal((31, 3)) * 2000
    result = tsne([DATA["barely"]], start=[start], iterations=200)[0]
    assert np.isfinite(result.embedding).all()
    assert np.isfinite(result.kl_divergence)


def test_no_problems_give_no_results():
    assert tsne([]) == []


def test_other_number_types_and_layouts_of_memory_give_the_same_bytes():
    points = np.random.default_rng(0).integers(-9, 9, (40, 6))
    expected = tsne([points.astype(np.float64)], iterations=60)
    for same in (
        points,
        points.astype(np.float16),
        np.asfortranarray(points),
        points.tolist(),
        points[::1].astype(">f4"),
    ):
        assert identical(expected, tsne([same], iterations=60))


# --- The door ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perplexity": 80}, "perplexity 80 needs more than 80 points; problem 0 has 80"),
        ({"perplexity": 0.5}, "perplexity is 0.5"),
        ({"perplexity": float("nan")}, "perplexity is nan"),
        ({"components": 0}, "components is 0"),
        ({"iterations": 0}, "iterations is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"start": []}, "start has 0 layouts for 1 problems"),
        ({"start": [np.zeros((80, 2))]}, r"start of problem 0 has shape \(80, 2\); it needs \(80, 3\)"),
        ({"start": [np.full((80, 3), np.nan)]}, "start of problem 0 holds nan in row 0, column 0"),
        ({"start": [np.full((80, 3), 1e7)]}, "rescale"),
        ({"device": "nowhere"}, "torch finds no device 'nowhere' here"),
    ],
)
def test_impossible_settings_are_refused_in_one_line(change, message):
    with pytest.raises(Refused, match=message) as refusal:
        tsne([DATA["noise"]], **change)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused_by_problem_row_and_column(bad):
    points = DATA["noise"].copy()
    points[7, 2] = bad
    with pytest.raises(Refused, match=r"problem 1 holds -?(nan|inf) in row 7, column 2"):
        tsne([DATA["noise"], points])


@pytest.mark.parametrize(
    "shape", [np.zeros(20), np.zeros((20, 0)), np.zeros((20, 2, 2)), np.zeros((20, 2), complex), np.array([["a"]] * 20)]
)
def test_what_is_no_table_of_numbers_is_refused(shape):
    with pytest.raises(Refused, match="problem 0 is an array of"):
        tsne([shape])


# --- The estimator ----------------------------------------------------------------------------------------------------


def test_estimator_passes_scikit_learns_own_checks():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # checks that need a further package are skipped with a warning
        for estimator in (TSNE(), TSNE(2, perplexity=2, max_iter=260)):
            check_estimator(estimator)


def test_estimator_gives_what_the_function_gives():
    points = DATA["noise"]
    (expected,) = tsne([points], components=2, perplexity=7, iterations=120, seed=5)
    estimator = TSNE(2, perplexity=7, max_iter=120, random_state=5)
    assert estimator.fit_transform(points).tobytes() == expected.embedding.tobytes()
    assert (estimator.kl_divergence_, estimator.n_iter_) == (expected.kl_divergence, 120)
    assert list(estimator.get_feature_names_out()) == ["tsne0", "tsne1"]
    assert clone(estimator).get_params() == estimator.get_params()


def test_every_parameter_of_the_estimator_arrives():
    points = np.ones((20, 3), np.float32)  # without variance, so that the seed matters too
    plain = TSNE(perplexity=5, max_iter=60).fit(points).embedding_
    for change in ({"n_components": 2}, {"max_iter": 61}, {"random_state": 1}):
        assert not np.array_equal(TSNE(**{"perplexity": 5, "max_iter": 60} | change).fit(points).embedding_, plain)
    varied = DATA["barely"]
    assert TSNE(perplexity=4, max_iter=60).fit(varied).kl_divergence_ != TSNE(max_iter=60).fit(varied).kl_divergence_
    with pytest.raises(Refused, match="threads is 0"):
        TSNE(n_jobs=0).fit(varied)
    with pytest.raises(Refused, match="nowhere"):
        TSNE(device="nowhere").fit(varied)
