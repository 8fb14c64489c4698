"""Neighbours on points placed by hand, against scikit-learn and plain NumPy, and under laws about ties and order."""

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors

from neighbour_oracle import find_neighbours, hard_shares, knn_accuracy, neighbour_measures, share_measures
from nucleate.measures import neighbours as room
from nucleate.measures.neighbour_kernels import TIE
from nucleate.measures.neighbours import Labels, neighbour_blocks
from nucleate.measures.products import Products
from nucleate.measures.shares import TaskDeals, mixture, neighbour_shares, share, vote
from nucleate.refusal import Refused


def measured(query_states, candidate_states, query, candidate, *, origin=None):
    """What the package measures under the true labels; the oracle says the same."""
    origin = np.full(len(query), -1) if origin is None else origin
    (seen,) = neighbour_shares(
        [(query_states, query)],
        candidate_states,
        candidate,
        deals=[{"none": TaskDeals.of(query, candidate)}],
        origin=[origin],
    )
    plain = neighbour_measures(query_states, candidate_states, query, candidate, origin=origin)
    assert seen.measures["none"] == pytest.approx(plain, abs=1e-12)
    return seen.measures["none"]


def labels(n, **columns):
    """Labels of n instances that share nothing, but for the columns given."""
    alone = dict.fromkeys(("instruction", "input", "output", "task", "distribution", "format"), np.arange(n))
    return Labels(**(alone | {name: np.array(codes) for name, codes in columns.items()}))


def unlike(n):
    """Labels that share no instruction, input, distribution or format with those of `labels`."""
    return labels(n, **dict.fromkeys(("instruction", "input", "distribution", "format"), np.arange(n) + 10_000))


def slow_weights(queries, candidates, allowed, k):
    """(query, candidate) how much each counts: one query after the other, every distance from the differences."""
    queries, candidates = np.asarray(queries, np.float64), np.asarray(candidates, np.float64)
    norms = np.sort(np.linalg.norm(candidates, axis=1))
    scale = norms[(len(norms) - 1) // 2]
    weights = np.zeros((len(queries), len(candidates)))
    for i, query in enumerate(queries):
        distance = np.where(allowed[i], np.linalg.norm(candidates - query, axis=1), np.inf)
        total = min(k, int(allowed[i].sum()))
        if total == 0:
            continue
        last = np.sort(distance)[total - 1]
        nearer = distance < last - TIE * (last + scale)
        tied = ~nearer & (distance <= last + TIE * (last + scale))
        weights[i] = nearer + tied * (total - nearer.sum()) / tied.sum()
    return weights


def dense_weights(neighbours, k, candidates):
    weights = np.zeros((len(neighbours.start) - 1, candidates))
    weights[neighbours.query, neighbours.candidate] = neighbours.weights(k)
    return weights


def space(name, rng, *, queries=40, candidates=300, width=16):
    """States of one kind, ordinary or degenerate; float32 as states are."""
    points = rng.normal(size=(queries + candidates, width))
    match name:
        case "many coinciding points":
            points = rng.normal(size=(25, width))[rng.integers(0, 25, len(points))]
        case "a grid with equal distances":
            points = rng.integers(0, 3, points.shape).astype(float)
        case "one single point":
            points = np.ones_like(points)
        case "constant features":
            points[:, 3:] = 7.25
        case "huge scale":
            points *= 1e36
        case "tiny scale":
            points *= 1e-41
        case "far from the origin":
            points = points + 600 * np.sign(rng.normal(size=width))
        case "two far groups, each tight":
            points = points * 1e-3 + np.where(rng.random(len(points)) < 0.5, 50, -50)[:, None]
    points = points.astype(np.float32)
    return points[:queries], points[queries:]


SPACES = (
    "random",
    "many coinciding points",
    "a grid with equal distances",
    "one single point",
    "constant features",
    "huge scale",
    "tiny scale",
    "far from the origin",
    "two far groups, each tight",
)


@pytest.mark.parametrize("name", SPACES)
def test_weights_equal_those_of_plain_float64_differences(name):
    rng = np.random.default_rng(1)
    queries, candidates = space(name, rng)
    query = labels(40, instruction=rng.integers(0, 30, 40), input=rng.integers(0, 4, 40))
    candidate = labels(300, instruction=rng.integers(0, 30, 300), input=rng.integers(0, 4, 300))
    query = replace(query, distribution=rng.integers(0, 3, 40), format=rng.integers(0, 2, 40))
    candidate = replace(candidate, distribution=rng.integers(0, 3, 300), format=rng.integers(0, 2, 300))
    found = find_neighbours(queries, candidates, query, candidate, ks=(1, 5, 10))
    other = {
        column: getattr(query, column)[:, None] != getattr(candidate, column)
        for column in ("instruction", "input", "distribution", "format")
    }
    allowed = {
        "": other["instruction"],
        "other_inputs": other["instruction"] & other["input"],
        "other_distributions": other["instruction"] & other["distribution"],
        "other_both": other["instruction"] & other["input"] & other["distribution"],
        "other_format": other["instruction"] & other["format"],
    }
    assert set(found) == set(allowed)
    for search, mask in allowed.items():
        for k in (1, 5, 10):
            expected = slow_weights(queries, candidates, mask, k)
            np.testing.assert_allclose(dense_weights(found[search], k, 300), expected, atol=1e-12)


def test_without_ties_neighbours_and_distances_are_those_of_scikit_learn():
    rng = np.random.default_rng(2)
    queries, candidates = rng.normal(size=(60, 32)), rng.normal(size=(900, 32))
    found = find_neighbours(queries, candidates, unlike(60), labels(900), ks=(10,))[""]
    distance, index = NearestNeighbors(n_neighbors=10, algorithm="brute").fit(candidates).kneighbors(queries)
    np.testing.assert_array_equal(found.candidate.reshape(60, 10), index)
    np.testing.assert_allclose(found.distance.reshape(60, 10), distance, rtol=1e-12)
    assert np.all(found.weights(10) == 1)


def test_candidates_as_far_as_the_last_count_fractionally():
    #  the query lies at 0; one candidate at 1, three at 2 (left, right, and one on top of it), one at 5
    candidates = np.array([[1.0], [2.0], [-2.0], [2.0], [5.0]])
    candidate = labels(5, task=[0, 0, 1, 1, 0], output=[4, 4, 6, 6, 4])
    query = labels(1, instruction=[99], input=[99], distribution=[99], task=[0], output=[6])
    found = find_neighbours([[0.0]], candidates, query, candidate, ks=(1, 2, 3, 4, 5, 20))[""]
    weights = [dense_weights(found, k, 5)[0].tolist() for k in found.ks]
    third = pytest.approx([1, 1 / 3, 1 / 3, 1 / 3, 0])
    assert weights[0] == [1, 0, 0, 0, 0] and weights[1] == third
    assert weights[2] == pytest.approx([1, 2 / 3, 2 / 3, 2 / 3, 0])
    assert weights[3] == [1, 1, 1, 1, 0]
    assert weights[4] == weights[5] == [1, 1, 1, 1, 1]  # five are all there is
    expected = [1, (1 + 1 / 3) / 2, (1 + 2 / 3) / 3, 2 / 4, 3 / 5, 3 / 5]
    assert share(found, query.task, candidate.task)[:, 0].tolist() == pytest.approx(expected)


def test_weights_of_every_query_sum_to_k_whatever_coincides():
    rng = np.random.default_rng(3)
    for name in SPACES:
        queries, candidates = space(name, rng)
        for neighbours in find_neighbours(queries, candidates, unlike(40), labels(300)).values():
            for k in neighbours.ks:
                sums = np.bincount(neighbours.query, weights=neighbours.weights(k), minlength=40)
                np.testing.assert_allclose(sums, k, rtol=1e-12)


def test_with_coinciding_points_the_share_is_that_of_the_place_and_not_of_the_first_rows_in_the_file():
    candidates = np.zeros((400, 8))
    candidate = labels(400, task=[0] * 100 + [1] * 300)
    query = labels(1, instruction=[999], input=[999], distribution=[999], task=[0])
    measures = measured(np.zeros((1, 8)), candidates, query, candidate)
    assert measures["knn_share"] == measures["knn_share_k1"] == measures["knn_share_k20"] == 0.25


def test_points_that_differ_by_rounding_alone_are_ties():
    rng = np.random.default_rng(4)
    place = rng.normal(size=64).astype(np.float32)
    effect = rng.normal(size=(200, 64)).astype(np.float32)
    again = (place + effect) - effect  # as after subtracting a mean: the same point, but for rounding
    assert 0 < np.linalg.norm(again - place, axis=1).max() < 1e-5
    found = find_neighbours(place[None], again, unlike(1), labels(200), ks=(10,))[""]
    assert np.all(found.weights(10) == 0.05)
    near = place + np.arange(1, 201)[:, None] * 1e-4 * effect / np.linalg.norm(effect, axis=1, keepdims=True)
    found = find_neighbours(place[None], near, unlike(1), labels(200), ks=(10,))[""]  # small differences are real
    assert found.candidate.tolist() == list(range(10))


def _everything(found, query, candidate, rng):
    """All that can be read off a search, for comparisons to the last bit."""
    deals = TaskDeals.of(query, candidate)
    return share_measures(found, deals) | knn_accuracy(found[""], query.output, candidate.output)


def _crowd(rng, n, *, instructions, first=0):
    instruction = rng.integers(first, first + instructions, n)
    task, given, output = instruction % 7, rng.integers(0, 8, n), rng.integers(0, 6, n)
    return Labels(instruction, given, output, task, task * 3 + n % 3, rng.integers(0, 2, n))


@pytest.mark.parametrize("name", SPACES)
def test_neither_the_order_of_candidates_nor_the_queries_at_once_nor_threads_change_a_bit(name, monkeypatch):
    rng = np.random.default_rng(5)
    queries, candidates = space(name, rng, candidates=500, width=48)
    query, candidate = _crowd(rng, 40, instructions=20, first=15), _crowd(rng, 500, instructions=20)
    found = find_neighbours(queries, candidates, query, candidate)
    expected = _everything(found, query, candidate, rng)
    order = rng.permutation(500)
    turned = find_neighbours(queries, candidates[order], query, candidate[order])
    assert _everything(turned, query, candidate[order], rng) == expected
    for search, neighbours in found.items():
        assert neighbours.distance.tobytes() == turned[search].distance.tobytes()
    threads = torch.get_num_threads()
    try:
        for at_once, number in ((1, 1), (7, 2), (40, 2)):
            torch.set_num_threads(number)
            monkeypatch.setattr(room, "_LEAST_AT_ONCE", 1)
            monkeypatch.setattr(room, "_PAIRS_AT_ONCE", at_once * len(candidates))
            again = find_neighbours(queries, candidates, query, candidate)
            for search, neighbours in found.items():
                for field in ("start", "candidate", "distance", "inside", "reach"):
                    assert getattr(neighbours, field).tobytes() == getattr(again[search], field).tobytes(), field
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("name", SPACES)
@pytest.mark.parametrize("double", [False, True])
def test_the_search_by_torch_and_the_search_by_compiled_loops_find_the_same_bytes(name, double, monkeypatch):
    rng = np.random.default_rng(15)
    queries, candidates = space(name, rng, candidates=500, width=48)
    if double:
        queries, candidates = queries.astype(np.float64), candidates + 1e-9 * rng.normal(size=candidates.shape)
    query, candidate = _crowd(rng, 40, instructions=20, first=15), _crowd(rng, 500, instructions=20)
    expected = find_neighbours(queries, candidates, query, candidate)
    monkeypatch.setattr(room, "_near", partial(room._near_on, torch.device("cpu")))
    for search, neighbours in find_neighbours(queries, candidates, query, candidate).items():
        for field in ("start", "candidate", "distance", "inside", "reach"):
            assert getattr(neighbours, field).tobytes() == getattr(expected[search], field).tobytes(), field


@pytest.mark.parametrize("name", SPACES)
def test_products_that_were_made_with_other_points_find_the_same_bytes(name):
    rng = np.random.default_rng(21)
    queries, candidates = space(name, rng, candidates=500, width=48)
    query, candidate = _crowd(rng, 40, instructions=20, first=15), _crowd(rng, 500, instructions=20)
    others = 5 * queries[::-1] + candidates[0]
    places = rng.permutation(580)
    everyone = np.empty((580, 48), np.float32)
    everyone[places] = np.concatenate([queries, candidates, others])
    products = Products.of(everyone)
    mine, theirs = products.part(places[:40]), products.part(places[40:540])
    expected = find_neighbours(queries, candidates, query, candidate)
    for search, neighbours in find_neighbours(mine, theirs, query, candidate).items():
        for field in ("start", "candidate", "distance", "inside", "reach"):
            assert getattr(neighbours, field).tobytes() == getattr(expected[search], field).tobytes(), field


def test_parts_have_the_products_of_their_points():
    rng = np.random.default_rng(22)
    states = (3 + rng.normal(size=(60, 12))).astype(np.float32)
    one, other = rng.permutation(60)[:25], rng.permutation(60)[:40]
    products = Products.of(states)
    around = (states.astype(float) - states.mean(0, dtype=float)) * 2.0**-products.exponent
    for rows, columns in ((one, other), (np.arange(60), np.arange(60)), (one, one[:0])):
        here, there = products.part(rows), products.part(columns)
        assert np.allclose(here.dots(there), around[rows] @ around[columns].T, atol=1e-5)
        assert np.allclose(here.squares, (around[rows] ** 2).sum(1), atol=1e-5) and len(here) == len(rows)
        assert np.array_equal(here.states, states[rows]) and np.allclose(here.around, around[rows], atol=1e-6)
    assert np.array_equal(products.part(other)[5:9].places, other[5:9])


def test_few_who_cannot_be_neighbours_are_measured_and_nobody_who_is_one_is_missed():
    rng = np.random.default_rng(16)
    query, candidate = unlike(50), labels(3000)
    states = 300 + rng.normal(size=(3050, 64)).astype(np.float32)  # far from the origin, as states of one layer are
    search = room._Search.of([states[:50]], states[50:])
    pairs = room._near(search, 0, slice(None), query, candidate, 20, ("",))
    assert 50 * 20 <= len(pairs.query) < 50 * 25
    near = np.argsort(np.linalg.norm(states[50:, None].astype(float) - states[:50], axis=2), axis=0)[:20].T
    assert {(q, j) for q in range(50) for j in near[q]} <= set(zip(pairs.query, pairs.candidate, strict=True))


def test_several_sets_of_queries_at_once_find_what_each_finds_alone():
    rng = np.random.default_rng(17)
    candidate, states = _crowd(rng, 400, instructions=60), rng.normal(size=(400, 24)).astype(np.float32)
    sets = [
        (rng.normal(size=(n, 24)).astype(np.float32), _crowd(rng, n, instructions=60, first=40)) for n in (30, 1, 55)
    ]
    sets.append(
        (
            sets[0][0],
            Labels(
                *(getattr(sets[0][1], f) for f in ("instruction",)),
                *[np.full(30, -1)] * 2,
                sets[0][1].task,
                np.full(30, -1),
            ),
        )
    )  # inputs, outputs, distributions unknown
    blocks = list(neighbour_blocks(sets, states, candidate))
    assert [number for number, _, _ in blocks] == [0, 1, 2, 3]  # each set small enough for one block
    together = [found for _, _, found in blocks]
    assert [len(found) for found in together] == [5, 5, 5, 1]
    for (queries, query), found in zip(sets, together, strict=True):
        for search, neighbours in find_neighbours(queries, states, query, candidate).items():
            for field in ("start", "candidate", "distance", "inside", "reach"):
                assert getattr(neighbours, field).tobytes() == getattr(found[search], field).tobytes(), field


def test_a_neighbour_never_has_the_same_instruction_even_where_it_is_the_query_itself():
    rng = np.random.default_rng(6)
    states = rng.normal(size=(100, 8))
    everyone = labels(100, instruction=np.arange(100) // 5, task=np.arange(100) // 20, input=np.arange(100) % 5)
    for neighbours in find_neighbours(states, states, everyone, everyone).values():
        mine, theirs = neighbours.query, neighbours.candidate
        assert np.all(everyone.instruction[mine] != everyone.instruction[theirs])
    alone = labels(100, instruction=np.zeros(100, int), task=np.zeros(100, int))
    found = find_neighbours(states, states, alone, alone)
    assert len(found[""].candidate) == 0
    measures = measured(states, states, alone, alone)
    assert measures["knn_share_kept"] == 0 and "knn_share" not in measures  # undefined: no row, never NaN


def test_restricted_searches_look_past_the_same_input_and_the_same_distribution():
    #  positions on a line: same input and distribution nearest, then another distribution, then another input as well
    candidates = np.array([[1.0], [2.0], [3.0]])
    candidate = labels(3, input=[0, 0, 1], distribution=[0, 1, 1], task=[0, 1, 0])
    query = labels(1, instruction=[9], input=[0], distribution=[0], task=[0])
    found = find_neighbours([[0.0]], candidates, query, candidate, ks=(1,))
    assert [found[name].candidate[0] for name in ("", "other_distributions", "other_inputs")] == [0, 1, 2]
    measures = measured([[0.0]], candidates, query, candidate)
    assert measures["knn_share_k1"] == measures["knn_share_other_inputs_k1"] == 1.0
    assert measures["knn_share_other_distributions_k1"] == 0.0


def test_queries_whose_task_offers_no_candidate_are_left_out_and_the_share_kept_is_told():
    # task 0 has two distributions, task 1 only its own; all lie on top of each other
    candidate = labels(4, task=[0, 0, 1, 1], distribution=[0, 1, 2, 2])
    query = labels(2, instruction=[8, 9], input=[8, 9], task=[0, 1], distribution=[0, 2])
    measures = measured(np.zeros((2, 3)), np.zeros((4, 3)), query, candidate)
    assert measures["knn_share_other_distributions_kept"] == 0.5
    assert measures["knn_share_other_distributions_k1"] == pytest.approx(1 / 3)  # one of three allowed ones
    assert measures["knn_share_kept"] == 1.0 and measures["knn_share_k1"] == 0.5


def test_the_mean_over_tasks_counts_a_task_with_many_queries_once():
    # Task 0 has three queries, beside ten candidates of its own; task 1 has one, at the same place, far from its own.
    candidate = labels(12, task=[0] * 10 + [1, 1])
    far = np.r_[np.zeros(10), 50, 51][:, None]
    query = labels(
        4, **{name: np.arange(4) + 90 for name in ("instruction", "input", "distribution")}, task=[0, 0, 0, 1]
    )
    measures = measured(np.zeros((4, 1)), far, query, candidate)
    assert measures["knn_share_other_both"] == 3 / 4
    assert measures["knn_share_other_both_by_task"] == 1 / 2


def test_neighbours_of_another_format_tell_the_task_from_the_way_of_asking():
    """Two tasks in two formats: the one axis is the format, the other the task, in both formats or in one alone."""
    rng = np.random.default_rng(14)
    task, form = np.repeat([0, 1], 60), np.tile([0, 1], 60)
    crowd = labels(120, task=task, format=form)
    for meaning, least, most in ((True, 0.99, 1), (False, 0.3, 0.7)):
        states = np.stack([10 * form, 3 * task * (1 if meaning else form)], axis=1)
        states = states + 0.1 * rng.normal(size=states.shape)
        found = measured(states, states, crowd, crowd)
        assert least <= found["knn_share_other_format"] <= most
        assert found["knn_share"] > 0.6  # of any format, in which each task may lie by itself
    assert "knn_share_other_format" not in measured(states, states, *[labels(120, task=task, format=[-1] * 120)] * 2)


def test_who_is_offered_a_candidate_equals_counting_one_by_one_under_every_deal():
    rng = np.random.default_rng(7)
    query, candidate = _crowd(rng, 30, instructions=9), _crowd(rng, 40, instructions=9)
    own, theirs = rng.integers(0, 12, (5, 30)), rng.integers(0, 12, (5, 40))
    deals = TaskDeals.of(query, candidate, query_tasks=own, candidate_tasks=theirs)
    apart = {
        "": (),
        "other_inputs": ("input",),
        "other_distributions": ("distribution",),
        "other_both": ("input", "distribution"),
        "other_format": ("format",),
    }
    for search, columns in apart.items():
        allowed = np.ones((30, 40), bool)
        for column in ("instruction", *columns):
            allowed &= getattr(query, column)[:, None] != getattr(candidate, column)
        expected = [[np.any(allowed[i] & (theirs[d] == own[d, i])) for i in range(30)] for d in range(5)]
        np.testing.assert_array_equal(deals.offered[search], expected)
        assert 0 < deals.offered[search].mean() < 1


def test_shares_under_many_deals_are_the_mean_of_the_deals_one_by_one():
    rng = np.random.default_rng(8)
    query, candidate = _crowd(rng, 30, instructions=9), _crowd(rng, 200, instructions=40, first=5)
    found = find_neighbours(rng.normal(size=(30, 4)), rng.normal(size=(200, 4)), query, candidate)
    own, theirs = rng.integers(0, 5, (6, 30)), rng.integers(0, 5, (6, 200))
    together = share_measures(found, TaskDeals.of(query, candidate, query_tasks=own, candidate_tasks=theirs))
    alone = [
        share_measures(
            found, TaskDeals.of(query, candidate, query_tasks=own[d : d + 1], candidate_tasks=theirs[d : d + 1])
        )
        for d in range(6)
    ]
    for name, value in together.items():
        assert value == pytest.approx(np.mean([one[name] for one in alone]), abs=1e-12)
    assert together["knn_share"] == pytest.approx(0.2, abs=0.05)  # five tasks at random: the contrast to true ones


def test_states_that_hold_the_task_find_it_and_states_without_it_do_not():
    rng = np.random.default_rng(9)
    query, candidate = _crowd(rng, 60, instructions=70, first=300), _crowd(rng, 900, instructions=200)
    centres = rng.normal(size=(7, 20))
    clear = [centres[one.task] + 0.1 * rng.normal(size=(len(one), 20)) for one in (query, candidate)]
    blind = [rng.normal(size=(len(one), 20)) for one in (query, candidate)]
    assert measured(*clear, query, candidate)["knn_share"] == 1.0
    assert measured(*blind, query, candidate)["knn_share"] < 0.3


def test_the_vote_goes_to_the_largest_weight_then_to_the_smaller_distance_then_to_the_smaller_code():
    def elected(positions, outputs, k):
        candidate = labels(len(outputs), output=outputs)
        query = labels(1, instruction=[99], input=[99], distribution=[99])
        points = np.array(positions, float)[:, None]
        return int(vote(find_neighbours([[0.0]], points, query, candidate, ks=(k,))[""], candidate.output, k)[0])

    assert elected([1, 2, 3], [5, 7, 7], 3) == 7  # majority
    assert elected([1, 2, 3, 4], [7, 5, 5, 7], 4) == 5  # two each, both at 5: the smaller code
    assert elected([1, 2, 3, 5], [5, 7, 7, 5], 4) == 7  # two each: 5 < 6
    assert elected([1, 3, -3, -1], [8, 4, 8, 4], 4) == 4  # equal in all: the smaller code
    assert elected([-1, -3, 3, 1], [4, 8, 4, 8], 4) == 4
    assert elected([1, 2, 2, 2], [5, 6, 6, 6], 2) == 5  # 1 against three thirds: nearer wins
    assert elected([0.1, 0.2, -0.15, 0.15], [4, 4, 8, 8], 4) == 4  # equal sums, though 0.1 + 0.2 > 0.3 in binary
    assert elected([2, 2, 2], [3, 9, 9], 1) == 9  # a third against two thirds


def test_accuracy_counts_known_outputs_only_and_no_neighbour_is_wrong():
    candidate = labels(2, instruction=[0, 1], output=[3, 3])
    query = labels(3, instruction=[0, 7, 8], output=[3, 4, -1])
    states = np.zeros((3, 2)), np.ones((2, 2))
    assert measured(*states, query, candidate)["knn_accuracy"] == 0.5
    unknown = labels(3, output=[-1, -1, -1])
    assert not any(name.startswith("knn_accuracy") for name in measured(*states, unknown, candidate))
    alone = labels(2, instruction=[0, 0], output=[3, 3])
    measures = measured(np.zeros((1, 2)), np.ones((2, 2)), alone[:1], alone)
    assert measures["knn_accuracy"] == 0.0


def test_hard_examples_are_told_by_whose_neighbours_they_have():
    candidate = labels(4, task=[0, 0, 1, 2])
    query = labels(2, instruction=[8, 9], input=[8, 9], distribution=[8, 9], task=[1, 0])  # the first is hard, from 0
    states = np.zeros((2, 1)), np.zeros((4, 1))
    measures = measured(*states, query, candidate, origin=np.array([1, -1]))
    assert measures["hard_share_origin"] == 0.5 and measures["hard_share_own"] == 0.25
    assert measures["hard_share_origin_k1"] == 0.5 and measures["hard_share_own_k2"] == 0.25
    assert not any(name.startswith("hard") for name in measured(*states, query, candidate, origin=np.array([-1, -1])))


def test_names_of_measures_are_those_of_the_contract():
    rng = np.random.default_rng(10)
    query, candidate = _crowd(rng, 20, instructions=9), _crowd(rng, 90, instructions=40)
    measures = measured(rng.normal(size=(20, 3)), rng.normal(size=(90, 3)), query, candidate)
    searches = ("", "_other_inputs", "_other_distributions", "_other_both", "_other_format")
    names = {f"knn_share{search}" for search in searches}
    every = {f"{name}{suffix}" for name in (*names, "knn_accuracy") for suffix in ("", "_k1", "_k2", "_k5", "_k20")}
    assert set(measures) == every | {f"{name}_kept" for name in names} | {"knn_share_other_both_by_task"}
    assert all(type(value) is float and 0 <= value <= 1 for value in measures.values())


def test_what_is_unknown_leaves_out_its_search_and_nothing_else():
    text = {"instruction": ["do", "make", "do"], "task": ["b", "a", "b"]}
    query, candidate = Labels.coded(text, {"instruction": ["say"], "task": ["a"], "input": ["x"], "output": [None]})
    assert query.task.tolist() == [1, 0, 1] and candidate.task.tolist() == [0]
    assert query.instruction.tolist() == [0, 1, 0] and candidate.instruction.tolist() == [2]
    assert query.input.tolist() == [-1, -1, -1] and candidate.output.tolist() == [-1]
    assert set(find_neighbours(np.zeros((3, 2)), np.zeros((1, 2)), query, candidate)) == {""}


def test_tensors_and_half_precision_and_gradients_are_welcome():
    rng = np.random.default_rng(11)
    states = rng.normal(size=(50, 8)).astype(np.float16)
    query, candidate = unlike(10), labels(50)
    expected = find_neighbours(states[:10], states, query, candidate, ks=(3,))[""]
    tensor = torch.from_numpy(states.astype(np.float32)).requires_grad_()
    given = find_neighbours(tensor[:10], tensor, query, candidate, ks=(3,))[""]
    assert given.candidate.tobytes() == expected.candidate.tobytes()
    assert given.distance.tobytes() == expected.distance.tobytes()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("name", SPACES)
def test_on_a_gpu_every_number_has_the_same_bits(name):
    rng = np.random.default_rng(12)
    queries, candidates = space(name, rng, candidates=2000, width=96)
    query, candidate = _crowd(rng, 40, instructions=20, first=15), _crowd(rng, 2000, instructions=20)
    here = find_neighbours(queries, candidates, query, candidate)
    there = find_neighbours(queries, candidates, query, candidate, device="cuda")
    for search, neighbours in here.items():
        for field in ("start", "candidate", "distance", "inside", "reach"):
            assert getattr(neighbours, field).tobytes() == getattr(there[search], field).tobytes(), field


def test_arrays_may_be_read_only_reversed_of_other_integer_types_or_lists():
    rng = np.random.default_rng(13)
    states = rng.normal(size=(60, 4)).astype(np.float32)
    query, candidate = unlike(20), labels(60)
    expected = find_neighbours(states[:20], states, query, candidate)
    states.flags.writeable = False
    small = Labels(*(getattr(candidate, field).astype(np.uint16) for field in Labels.__dataclass_fields__))
    frozen = find_neighbours(states[:20], states[::-1], query, small[::-1])
    listed = find_neighbours(states[:20].tolist(), states, query, small)
    for search, neighbours in expected.items():
        assert np.array_equal(59 - frozen[search].candidate, neighbours.candidate)
        assert np.array_equal(listed[search].candidate, neighbours.candidate)
    assert share_measures(frozen, TaskDeals.of(query, small[::-1])) == share_measures(
        expected, TaskDeals.of(query, candidate)
    )


def test_no_queries_and_fewer_candidates_than_k_are_no_special_case():
    none = find_neighbours(np.zeros((0, 3)), np.zeros((4, 3)), labels(0), labels(4))
    assert none[""].start.tolist() == [0]
    assert measured(np.zeros((0, 3)), np.zeros((4, 3)), labels(0), labels(4)) == {}
    few = find_neighbours(np.zeros((2, 3)), np.arange(9.0).reshape(3, 3), unlike(2), labels(3), ks=(2, 10))[""]
    assert few.total.tolist() == [[2, 2], [3, 3]] and few.weights(10).tolist() == [1.0] * 6


def test_bad_input_is_refused_by_name():
    good, two = np.zeros((2, 3)), labels(2)
    with pytest.raises(Refused, match="row 1 of the candidates holds NaN"):
        find_neighbours(good, np.array([[0.0, 0, 0], [0, np.nan, 0]]), two, two)
    with pytest.raises(Refused, match="row 0 of the queries holds NaN or infinity"):
        find_neighbours(np.full((2, 3), np.inf), good, two, two)
    with pytest.raises(Refused, match=r"shape \(2, 3\); give \(5, width\)"):
        find_neighbours(good, good, two, labels(5))
    with pytest.raises(Refused, match="width 3 but candidates of width 4"):
        find_neighbours(good, np.zeros((2, 4)), two, two)
    with pytest.raises(Refused, match="no candidates"):
        find_neighbours(good, np.zeros((0, 3)), two, labels(0))
    with pytest.raises(Refused, match="ks is"):
        find_neighbours(good, good, two, two, ks=(1, 0))
    with pytest.raises(Refused, match="integer codes"):
        labels(2, task=["a", "b"])
    with pytest.raises(Refused, match="3 of task but 2 instructions"):
        labels(2, task=[1, 2, 3])
    with pytest.raises(Refused, match="needs its task"):
        Labels.coded({"instruction": ["a"], "task": [None]})
    with pytest.raises(Refused, match="equally often"):
        TaskDeals.of(two, two, query_tasks=np.zeros((2, 2), int))


@pytest.mark.parametrize("pairs_at_once", [2**22, 200, 1])
def test_looking_around_block_by_block_gives_what_the_neighbours_of_all_give(pairs_at_once, monkeypatch):
    """Two sets of queries, hard examples in one, among candidates of which half lie on one point."""
    monkeypatch.setattr(room, "_PAIRS_AT_ONCE", pairs_at_once)
    rng = np.random.default_rng(5)

    def some(n):
        codes = {"task": 3, "input": 4, "output": 5, "distribution": 6, "instruction": 9}
        return labels(n, **{name: rng.integers(0, most, n) for name, most in codes.items()})

    candidate, near = some(40), rng.normal(size=(40, 3)).astype(np.float32)
    near[::2] = near[0]
    sets = [(near[:15] + 0, some(15)), (rng.normal(size=(7, 3)).astype(np.float32), some(7))]
    for _, one in sets:
        one.task[0] = 3  # which no candidate has
    deals = [
        {
            "none": TaskDeals.of(query, candidate),
            "shuffled": TaskDeals.of(
                query,
                candidate,
                query_tasks=rng.integers(0, 3, (2, len(query))),
                candidate_tasks=rng.integers(0, 3, (2, 40)),
            ),
        }
        for _, query in sets
    ]
    origins = [np.where(np.arange(15) % 4, -1, 2), np.full(7, -1)]
    seen = neighbour_shares(sets, near, candidate, deals=deals, origin=origins)
    for (points, query), dealt, origin, one in zip(sets, deals, origins, seen, strict=True):
        found = find_neighbours(points, near, query, candidate)
        true = share_measures(found, dealt["none"]) | knn_accuracy(found[""], query.output, candidate.output)
        true |= hard_shares(found[""], dealt["none"], origin=origin)
        assert one.measures.keys() == dealt.keys()
        assert one.measures["none"] == pytest.approx(true, abs=1e-12)
        chance = share_measures(found, dealt["shuffled"]) | hard_shares(found[""], dealt["shuffled"], origin=origin)
        assert one.measures["shuffled"] == pytest.approx(chance, abs=1e-12)
        for search, neighbours in found.items():
            offered = dealt["none"].offered[search][0]
            own = share(neighbours, query.task, candidate.task)[neighbours.ks.index(10)]
            np.testing.assert_array_equal(one.own[search], np.where(offered, own, np.nan))
            np.testing.assert_allclose(
                one.mixed[search], mixture(neighbours, query.task, candidate.task, tasks=4), atol=1e-12
            )
