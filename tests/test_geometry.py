"""Rank, dimension and the parent's cosine of points whose answer is known, and of others for which it is another."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from nucleate.measures.geometry import FEWEST_POINTS, effective_rank, intrinsic_dimension, parent_cosine
from nucleate.measures.neighbours import Labels
from nucleate.measures.survey import Effort
from nucleate.probing import geometry as room
from nucleate.probing.geometry import geometry_rows
from nucleate.probing.halves import sides_of
from nucleate.probing.layers import Design

WIDTH = 48


def on_a_plane(dimensions, points=1500, *, width=WIDTH, seed=0):
    """Points spread evenly over a flat piece of so many dimensions, somewhere in a wider space."""
    rng = np.random.default_rng(seed)
    axes = np.linalg.qr(rng.normal(size=(width, width)))[0][:dimensions]
    return (rng.uniform(-1, 1, (points, dimensions)) @ axes + 2 * rng.normal(size=width)).astype(np.float32)


# --- effective rank ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 3, 12])
def test_equal_spread_in_so_many_directions_is_that_rank_wherever_the_points_lie(dimensions):
    corners = np.concatenate([np.eye(dimensions, WIDTH), -np.eye(dimensions, WIDTH)])
    assert effective_rank(corners) == pytest.approx(dimensions)
    assert effective_rank(corners * 7 + 100) == pytest.approx(dimensions)
    assert effective_rank(corners * (1 + 20 * (np.arange(WIDTH) == 0))) < dimensions or dimensions == 1


def test_effective_rank_is_the_exponential_of_the_entropy_of_singular_values():
    for shape in ((300, 20), (20, 300)):
        states = np.random.default_rng(1).normal(size=shape) * np.geomspace(1, 1e-3, shape[1])
        values = np.linalg.svd(states - states.mean(axis=0), compute_uv=False)
        shares = values[values > 1e-10] / values.sum()
        assert effective_rank(states) == pytest.approx(np.prod(shares**-shares), rel=1e-6)
        whole = np.linalg.svd(states + 5, compute_uv=False)  # of states with their mean it would be another number
        shares = whole / whole.sum()
        assert effective_rank(states) != pytest.approx(np.prod(shares**-shares), rel=0.05)


def test_states_that_coincide_have_no_rank():
    same = np.tile(np.random.default_rng(2).normal(size=WIDTH) * 30, (50, 1)).astype(np.float32)
    assert effective_rank(same) is None
    assert effective_rank(same * (1 + 1e-8 * np.arange(50)[:, None])) is None  # as rounding parts them
    assert effective_rank(np.zeros((5, 3))) is None
    same[0] += 1
    assert effective_rank(same) == pytest.approx(1, abs=1e-4)


# --- intrinsic dimension ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dimensions", [1, 2, 5])
def test_points_on_a_plane_have_its_dimension(dimensions):
    flat = on_a_plane(dimensions)
    assert intrinsic_dimension(flat) == pytest.approx(dimensions, rel=0.12)
    assert intrinsic_dimension(flat) < 0.5 * intrinsic_dimension(on_a_plane(3 * dimensions))
    noise = np.random.default_rng(3).normal(size=flat.shape).astype(np.float32)
    assert intrinsic_dimension(flat + 0.3 * noise) > 2 * dimensions  # a plane no more
    curved = np.concatenate([np.cos(3 * flat), np.sin(3 * flat)], axis=1)
    assert intrinsic_dimension(curved) == pytest.approx(dimensions, rel=0.12)
    assert effective_rank(curved) > 1.5 * dimensions  # which sees straight directions alone


def slow_dimension(states):
    """Facco et al. word by word, for points that all differ."""
    distances = np.sort(cdist(states, states), axis=1)
    ratios = np.sort(distances[:, 2] / distances[:, 1])
    share = np.arange(1, len(ratios) + 1) / len(ratios)
    kept = int(0.9 * len(ratios))
    across, up = np.log(ratios[:kept]), -np.log(1 - share[:kept])
    return np.linalg.lstsq(across[:, None], up, rcond=None)[0][0]


def test_the_dimension_is_that_of_the_slow_way_and_neither_scale_place_nor_order_matter():
    states = on_a_plane(4, 400).astype(np.float64)
    assert intrinsic_dimension(states) == pytest.approx(slow_dimension(states), rel=1e-9)
    turned = np.random.default_rng(4).permutation(len(states))
    assert intrinsic_dimension(states[turned]) == intrinsic_dimension(states)
    assert intrinsic_dimension(states * 1e4) == pytest.approx(intrinsic_dimension(states), rel=1e-9)


@pytest.mark.parametrize("jitter", [0, 1e-7])
def test_points_that_coincide_count_as_one(jitter):
    once = on_a_plane(3, 600)
    rng = np.random.default_rng(5)
    again = once[rng.integers(600, size=900)]
    twice = np.concatenate([once, again + jitter * rng.normal(size=again.shape).astype(np.float32)])
    assert intrinsic_dimension(twice) == pytest.approx(intrinsic_dimension(once), rel=0.02)
    if jitter:
        assert slow_dimension(twice) < 0.5  # taken as different points, they are next to each other and far from all


def test_too_few_different_points_and_a_grid_have_no_dimension():
    states = on_a_plane(2, FEWEST_POINTS)
    assert intrinsic_dimension(states) is not None
    assert intrinsic_dimension(states[1:]) is None
    assert intrinsic_dimension(np.concatenate([states[1:], states[1:]])) is None
    assert intrinsic_dimension(np.concatenate([states[1:], states[1:] + np.float32(1e-7)])) is None
    assert intrinsic_dimension(np.stack(np.meshgrid(range(8), range(8)), axis=-1).reshape(-1, 2).astype(float)) is None


# --- the parent's cosine ----------------------------------------------------------------------------------------------

PARENTS, CHILDREN = 4, 3
PARENT = np.repeat(np.arange(PARENTS), CHILDREN)
CHILD = np.arange(PARENTS * CHILDREN)


def family(strength, *, graded=False):
    """A state for each child: its parent's direction, and one of its own at right angles to all others; or `graded`,
    its own amount of its parent's direction."""
    axes = np.linalg.qr(np.random.default_rng(6).normal(size=(WIDTH, WIDTH)))[0]
    if graded:
        return strength * (1 + 0.5 * (CHILD % CHILDREN))[:, None] * axes[PARENT]
    return strength * axes[PARENT] + axes[PARENTS + CHILD]


@pytest.mark.parametrize("strength", [0, 1, 3, 20])
def test_children_at_right_angles_give_the_number_that_their_lengths_say(strength):
    between = (strength**2 + 1 / CHILDREN) / (PARENTS - 1)  # what the other parents' mean adds to the direction
    direction = strength**2 + 1 / (CHILDREN - 1) + between
    expected = 1 / (CHILDREN - 1) / np.sqrt((1 + 1 / (CHILDREN - 1)) * direction)
    assert parent_cosine(family(strength), CHILD, PARENT) == pytest.approx(expected)
    assert (expected < 0.03) == (strength == 20)
    assert strength or 0.5 < expected < CHILDREN**-0.5  # no hierarchy


def test_children_with_more_or_less_of_their_parent_are_far_from_right_angles():
    graded = parent_cosine(family(20, graded=True), CHILD, PARENT)
    assert graded > 0.8 > 0.03 > parent_cosine(family(20), CHILD, PARENT)


def test_children_dealt_to_other_parents_lose_the_right_angle():
    rng, true = np.random.default_rng(7), parent_cosine(family(5), CHILD, PARENT)
    dealt = [parent_cosine(family(5), CHILD, rng.permutation(PARENT)) for _ in range(20)]
    assert true < 0.1 < 0.4 < np.mean(dealt)


def slow_cosine(states, child, parent):
    middles = {c: states[child == c].mean(axis=0) for c in set(child)}
    of = {c: parent[child == c][0] for c in set(child)}
    sizes = []
    for c, own in middles.items():
        siblings = [middles[other] for other in middles if of[other] == of[c] and other != c]
        strangers = [
            np.mean([middles[other] for other in middles if of[other] == p], axis=0) for p in set(parent) if p != of[c]
        ]
        if siblings:
            apart, along = own - np.mean(siblings, axis=0), np.mean(siblings, axis=0) - np.mean(strangers, axis=0)
            sizes.append(abs(apart @ along) / np.linalg.norm(apart) / np.linalg.norm(along))
    return np.mean(sizes)


def test_the_cosine_is_that_of_the_slow_way_and_neither_codes_order_scale_nor_place_matter():
    rng = np.random.default_rng(8)
    child = rng.integers(9, size=200)
    parent = np.array([5, 5, 5, 5, 2, 2, 7, 7, 9])[child]  # the last one has no sibling
    states = rng.normal(size=(200, 10)) + rng.normal(size=(9, 10))[child] + 2 * rng.normal(size=(10, 10))[parent]
    expected = slow_cosine(states, child, parent)
    assert parent_cosine(states, child, parent) == pytest.approx(expected)
    order = rng.permutation(200)
    moved = states[order] @ np.linalg.qr(rng.normal(size=(10, 10)))[0] * 3 + 11
    assert parent_cosine(moved, 100 - child[order], 2 * parent[order]) == pytest.approx(expected)
    assert parent_cosine(states, child, rng.permutation(9)[child] // 4) != pytest.approx(expected, rel=0.05)


def test_without_siblings_a_second_parent_or_different_states_there_is_no_cosine():
    states = family(3)
    assert parent_cosine(states, CHILD, CHILD) is None
    assert parent_cosine(states, CHILD, np.zeros_like(CHILD)) is None
    assert parent_cosine(np.ones_like(states) + 1e-9 * states, CHILD, PARENT) is None
    assert parent_cosine(states, CHILD, PARENT) is not None


# --- as rows of a probe -----------------------------------------------------------------------------------------------


def a_design(*, threads=1, known=True):
    """Four tasks of two distributions of six instructions with five inputs each."""
    task, distribution, instruction, given = (np.arange(240) // size % of for size, of in TREE)
    distribution = distribution if known else np.full(240, -1)
    labels = Labels(instruction, given, np.full(240, -1), task, distribution)
    units, tasks = [f"{one}" for one in instruction], "abcd"
    sides = sides_of(units, list(zip(task, distribution, strict=True)), ["test"] * 240, seed=1)
    return Design.of(labels, distribution, tasks, sides, seed=1, effort=Effort(threads=threads), repeats=3)


TREE = ((60, 4), (30, 8), (5, 48), (1, 5))


def some_states():
    rng, labels = np.random.default_rng(9), a_design().labels
    layers = [
        rng.normal(size=(240, 12))
        + strength * (2 * rng.normal(size=(4, 12))[labels.task] + rng.normal(size=(8, 12))[labels.distribution])
        for strength in (0, 3)
    ]
    return np.stack(layers).astype(np.float32)


def test_rows_of_a_probe_are_what_the_measures_say_of_each_layer_for_any_number_of_threads():
    design, states = a_design(), some_states()
    rows = geometry_rows(design, states, [0, 7])
    assert rows == geometry_rows(a_design(threads=3), states, [0, 7])
    told = {(row["layer"], row["measure"], row["control"]): row["value"] for row in rows}
    assert len(told) == len(rows) == 2 * 5
    for layer, here in zip((0, 7), states, strict=True):
        assert told[layer, "effective_rank", "none"] == pytest.approx(effective_rank(here))
        assert told[layer, "intrinsic_dimension", "none"] == pytest.approx(intrinsic_dimension(here))
        cosine = parent_cosine(here, design.labels.distribution, design.labels.task)
        assert told[layer, "parent_cosine", "none"] == pytest.approx(cosine, abs=1e-5)
    dealt = [told[7, "parent_cosine", control] for control in ("shuffled", "regrouped")]
    assert told[7, "parent_cosine", "none"] < min(dealt) - 0.15
    assert {row["measure"] for row in geometry_rows(a_design(known=False), states, [0, 7])} == {
        "effective_rank",
        "intrinsic_dimension",
    }


def test_where_the_distributions_of_a_task_coincide_dealt_labels_have_no_row_either():
    labels = a_design().labels
    words = np.random.default_rng(10).normal(size=(10, 12))[labels.input + 5 * (labels.task // 2)]
    rows = geometry_rows(a_design(), words[np.newaxis].astype(np.float32), [0])
    assert [row["measure"] for row in rows] == ["effective_rank"]  # ten states in all
    assert parent_cosine(words, labels.distribution, labels.task) is None
    assert parent_cosine(words, labels.distribution, labels.distribution % 4) is not None  # as dealt labels might


def test_of_more_prompts_than_are_looked_at_the_same_ones_are_drawn_in_every_layer(monkeypatch):
    monkeypatch.setattr(room, "MOST_POINTS", 100)
    states = some_states()
    first, second = (geometry_rows(a_design(), np.stack([states[1], one]), [0, 1]) for one in (states[1], states[0]))
    told = [[row["value"] for row in rows if row["layer"] == layer] for rows in (first, second) for layer in (0, 1)]
    assert told[0] == told[1] == told[2] != told[3]
    assert told[0][1] != pytest.approx(intrinsic_dimension(states[1]))
