"""The baselines: each does what it says and, beside it, shows the contrast for which it is there."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from nucleate.measures import baselines
from nucleate.measures.baselines import (
    MOST_FEATURES,
    RIDGE,
    InputMeans,
    LinearProbe,
    answer_features,
    averaged,
    dealt_outputs,
    explained_variance,
    regrouped_tasks,
    shuffled_labels,
    surface_features,
)
from nucleate.measures.scores import cluster_scores
from nucleate.refusal import Refused


def linear_probe(states, task, test, test_task):
    return LinearProbe.fit(states, task).accuracy(test, test_task)


def centred(states, inputs, *, reference_states, reference_inputs, reference_tasks):
    return InputMeans.of(reference_states, reference_inputs, reference_tasks).taken_from(states, inputs)


INSTRUCTIONS = np.repeat(np.arange(40), 5)
DISTRIBUTION = INSTRUCTIONS % 20
TASK = (DISTRIBUTION * 3) % 8  # four tasks have three distributions, four have two
MAPPING = TASK * 5 + np.arange(200) % 5


# --- permuted labels


@given(st.integers(0, 2**63 - 1), st.permutations(range(200)))
@settings(max_examples=25, deadline=None)
def test_shuffled_labels_stay_whole_inside_instructions_and_classes_keep_their_sizes(seed, order):
    order = np.array(order)
    shuffled = shuffled_labels(TASK[order], INSTRUCTIONS[order], seed=seed, repeats=3)
    assert shuffled.shape == (3, 200)
    for row in shuffled:
        for instruction in range(40):
            assert len(set(row[INSTRUCTIONS[order] == instruction])) == 1
        assert np.array_equal(np.bincount(row, minlength=8), np.bincount(TASK, minlength=8))


def test_labels_that_differ_inside_an_instruction_move_as_blocks_in_their_order():
    shuffled = shuffled_labels(MAPPING, INSTRUCTIONS, seed=3, repeats=4)
    blocks = {tuple(block) for block in MAPPING.reshape(40, 5)}
    for row in shuffled:
        assert {tuple(block) for block in row.reshape(40, 5)} == blocks
        assert np.array_equal(np.sort(row), np.sort(MAPPING))
        assert not np.array_equal(row, MAPPING)


def test_donors_of_another_size_are_repeated_or_cut():
    labels, instructions = np.array([7, 7, 7, 1, 2]), np.array([0, 0, 0, 1, 1])
    seen = {tuple(row) for row in shuffled_labels(labels, instructions, seed=0, repeats=30)}
    assert seen == {(7, 7, 7, 1, 2), (1, 2, 1, 7, 7)}


def test_shuffled_labels_are_the_same_for_a_seed_and_fewer_repeats_are_the_first_of_more():
    many = shuffled_labels(TASK, INSTRUCTIONS, seed=5)
    assert many.shape == (20, 200)
    assert np.array_equal(many[:3], shuffled_labels(TASK, INSTRUCTIONS, seed=5, repeats=3))
    assert not np.array_equal(many, shuffled_labels(TASK, INSTRUCTIONS, seed=6))
    assert len({row.tobytes() for row in many}) == 20


def test_labels_shuffled_between_instructions_are_a_harder_baseline_than_labels_shuffled_between_instances():
    clusters = INSTRUCTIONS  # every instruction its own cluster: nothing about tasks is known
    labels = np.repeat(np.arange(20), 10)
    by_instruction = shuffled_labels(labels, INSTRUCTIONS, seed=1)
    one_by_one = np.stack([np.random.default_rng(i).permutation(labels) for i in range(20)])
    honest = np.mean([cluster_scores(row, clusters).f1 for row in by_instruction])
    easy = np.mean([cluster_scores(row, clusters).f1 for row in one_by_one])
    assert honest == pytest.approx(cluster_scores(labels, clusters).f1) and easy < honest - 0.2


@given(st.integers(0, 2**63 - 1))
@settings(max_examples=25, deadline=None)
def test_regrouped_tasks_keep_distributions_whole_and_give_each_task_as_many_as_it_had(seed):
    for row in regrouped_tasks(TASK, DISTRIBUTION, seed=seed, repeats=3):
        owners = [set(row[d == DISTRIBUTION]) for d in range(20)]
        assert all(len(owner) == 1 for owner in owners)
        before = np.bincount([TASK[d == DISTRIBUTION][0] for d in range(20)], minlength=8)
        assert np.array_equal(np.bincount([next(iter(owner)) for owner in owners], minlength=8), before)


def test_one_deal_over_two_splits_gives_equal_distributions_equal_tasks():
    both = regrouped_tasks(np.concatenate([TASK, TASK[:50]]), np.concatenate([DISTRIBUTION, DISTRIBUTION[:50]]), seed=2)
    assert np.array_equal(both[:, :50], both[:, 200:])
    assert np.array_equal(both[:, :200], regrouped_tasks(TASK, DISTRIBUTION, seed=2))
    assert (both != np.concatenate([TASK, TASK[:50]])).mean() > 0.5


# --- the text without a model


def _nearest_has_same_task(features, task):
    likeness = features @ features.T
    np.fill_diagonal(likeness, -1)
    return (task[likeness.argmax(axis=1)] == task).mean()


def test_surface_of_synthetic_symbols_sees_short_sequences_and_not_only_single_symbols():
    # two tasks with the same symbols in another order; nothing else tells them apart
    texts = ["a b c a b c d", "c b a c b a d", "d a b c a b c", "d c b a c b a"] * 5
    task = np.array([0, 1, 0, 1] * 5)
    features = surface_features(texts, texts)
    assert features.dtype == np.float32 and features[0] @ features[2] > features[0] @ features[1] + 0.2
    assert linear_probe(features, task, features, task) == 1.0


def test_surface_of_natural_text_sees_parts_of_words():
    texts = ["Translate this word to German", "Translating the word into German", "Give me the opposite of it"]
    features = surface_features(texts, texts)
    assert features[0] @ features[1] > 3 * (features[0] @ features[2])


def test_surface_rows_have_length_one_unknown_text_is_zero_and_the_number_of_features_is_bounded(monkeypatch):
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 20)) for _ in range(500)]
    features = surface_features(texts, [*texts[:5], "1 2 3"])
    assert features.shape == (6, MOST_FEATURES)
    np.testing.assert_allclose(np.linalg.norm(features, axis=1), [1, 1, 1, 1, 1, 0], atol=1e-6)
    assert surface_features(texts, []).shape == (0, MOST_FEATURES)
    assert np.array_equal(surface_features(texts, texts[:5]), features[:5])
    monkeypatch.setattr(baselines, "MOST_FEATURES", 50)
    assert surface_features(texts, texts[:3]).shape == (3, 50)


def test_answers_are_coded_side_by_side_and_as_pairs_and_the_rarest_are_zeros(monkeypatch):
    inputs, outputs = np.array([0, 0, 1, 1, 2]), np.array([7, 7, 7, 9, 9])
    tasks = np.array([3, 3, 3, 4, 5])
    apart, pairs, users = answer_features(inputs, outputs, tasks)
    assert users.tolist() == [[0, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 1], [0, 1, 1]]  # 7 is of one task alone
    assert apart.tolist() == [[1, 0, 0, 1, 0], [1, 0, 0, 1, 0], [0, 1, 0, 1, 0], [0, 1, 0, 0, 1], [0, 0, 1, 0, 1]]
    assert pairs.tolist() == [[1, 0, 0, 0], [1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]]
    monkeypatch.setattr("nucleate.measures.baselines.MOST_FEATURES", 1)
    apart, pairs = answer_features(inputs, outputs, tasks)  # of the one task that is left no output is shared
    assert apart.tolist() == [[1, 1], [1, 1], [0, 1], [0, 0], [0, 0]] and pairs[:, 0].tolist() == [1, 1, 0, 0, 0]


def test_outputs_are_dealt_among_the_inputs_of_a_task_and_only_the_answers_own_variance_is_lost():
    rng = np.random.default_rng(0)
    task, inputs = (one.reshape(-1) for one in np.mgrid[0:6, 0:12])
    task, inputs = np.repeat(task, 8), np.repeat(inputs, 8)
    output = np.array([rng.permutation(12) // 3 for _ in range(6)])[task, inputs]
    dealt = dealt_outputs(task, inputs, output, seed=1, repeats=20)
    assert (dealt == dealt_outputs(task, inputs, output, seed=1, repeats=20)).all()
    for row in dealt:
        for t in range(6):
            outputs = [set(row[(task == t) & (inputs == i)].tolist()) for i in range(12)]
            assert all(len(one) == 1 for one in outputs)  # an input has one output
            assert sorted(one.pop() for one in outputs) == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert (dealt != output).mean() > 0.5
    cells, answers = rng.normal(size=(6, 12, 30)), rng.normal(size=(4, 30))
    kept = {}
    for name, states in (("cells", cells[task, inputs]), ("answers", answers[output])):
        own = explained_variance(states, output)
        kept[name] = own - explained_variance(states, dealt)
    assert abs(kept["cells"]) < 0.03 and kept["answers"] > 0.8


def test_the_variance_of_several_deals_is_their_mean():
    rng = np.random.default_rng(0)
    states, deals = rng.normal(size=(40, 5)), rng.integers(4, size=(3, 40))
    one_by_one = [explained_variance(states, dealt) for dealt in deals]
    assert explained_variance(states, deals) == pytest.approx(np.mean(one_by_one), abs=1e-15)


def test_surface_symbols_are_told_apart_by_case():
    features = surface_features(["a b", "A B"], ["a b", "A B"])
    assert features[0] @ features[1] == 0


# --- what is in the states


@pytest.mark.parametrize(("n", "width", "share"), [(300, 20, 1), (300, 299, 1), (120, 400, 1), (600, 200, 0.03)])
def test_linear_probe_is_scikit_learns_ridge_classifier_on_standardised_features(n, width, share):
    rng = np.random.default_rng(width)
    task, test_task = rng.integers(0, 6, n), rng.integers(0, 6, 200)
    centres = rng.normal(size=(6, width)) * 0.15
    states = (centres[task] + rng.normal(size=(n, width))) * rng.uniform(0.01, 100, width) + 5
    test = (centres[test_task] + rng.normal(size=(200, width))) * states.std(axis=0) + 5
    if share < 1:  # as with n-grams of a text
        states, test = (np.where(rng.random(some.shape) < share, some, 0) for some in (states, test))
    scaler = StandardScaler().fit(states)
    peer = RidgeClassifier(alpha=RIDGE * n).fit(scaler.transform(states), task)
    expected = peer.score(scaler.transform(test), test_task)
    assert 0.2 < expected < 1.0
    assert linear_probe(states, task, test, test_task) == pytest.approx(expected, abs=1e-12)


def test_linear_probe_reads_what_is_there_and_nothing_from_noise():
    rng = np.random.default_rng(1)
    task, test_task = rng.integers(0, 10, 1000), rng.integers(0, 10, 300)
    effect = rng.normal(size=(10, 30))
    there = linear_probe(effect[task] + rng.normal(size=(1000, 30)), task, effect[test_task], test_task)
    noise = linear_probe(rng.normal(size=(1000, 30)), task, rng.normal(size=(300, 30)), test_task)
    assert there == 1.0 and noise < 0.2


def test_linear_probe_stands_constant_features_absent_classes_two_classes_and_one():
    rng = np.random.default_rng(2)
    task = rng.integers(0, 3, 90)
    states = np.eye(3, dtype=np.float32)[task] + rng.normal(size=(90, 3)).astype(np.float32) * 0.01
    padded = np.hstack([states, np.full((90, 4), 0.1, np.float32), np.zeros((90, 1), np.float32)])
    changed = padded.copy()
    changed[:, 3:] += 1e3  # what never varied in training must not speak in the test
    assert linear_probe(padded, task, changed, task) == 1.0
    assert linear_probe(states, task, states[task < 2], task[task < 2]) == 1.0
    assert linear_probe(states[task < 2], task[task < 2], states, task) == pytest.approx((task < 2).mean())
    assert linear_probe(states, np.full(90, "x"), states, np.full(90, "x")) == 1.0
    assert linear_probe(np.zeros((4, 2)), [0, 0, 0, 1], np.zeros((2, 2)), [0, 1]) == 0.5  # the frequent one


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_linear_probe_does_not_depend_on_scale(scale):
    rng = np.random.default_rng(3)
    task = rng.integers(0, 4, 200)
    states = (rng.normal(size=(4, 8))[task] + rng.normal(size=(200, 8))).astype(np.float32)
    expected = linear_probe(states, task, states, task)
    assert 0.4 < expected < 1.0
    assert linear_probe(states * np.float32(scale), task, states * np.float32(scale), task) == expected


def test_explained_variance_is_the_share_between_classes():
    rng = np.random.default_rng(4)
    labels = rng.integers(0, 5, 300)
    states = rng.normal(size=(5, 12))[labels] + rng.normal(size=(300, 12))
    within = sum(((states[labels == k] - states[labels == k].mean(0)) ** 2).sum() for k in range(5))
    expected = 1 - within / ((states - states.mean(0)) ** 2).sum()
    assert explained_variance(states, labels) == pytest.approx(expected, abs=1e-12)
    assert explained_variance(states[labels], labels) == pytest.approx(1.0)  # a state per class
    assert explained_variance(states, np.zeros(300, int)) == pytest.approx(0.0, abs=1e-12)
    assert explained_variance(states, rng.permutation(labels)) < 0.05
    assert explained_variance(states.astype(np.float32) * np.float32(1e-20), labels) == pytest.approx(
        expected, abs=1e-5
    )


def test_explained_variance_of_states_without_variance_is_none():
    assert explained_variance(np.full((10, 4), 0.1, np.float32), np.arange(10)) is None
    assert explained_variance(np.zeros((1, 4)), ["a"]) is None


def test_centred_states_lose_the_inputs_mean_over_training_and_nothing_else():
    rng = np.random.default_rng(5)
    inputs, tasks = np.repeat(np.arange(6), 40), np.tile(np.arange(8), 30)
    of_input, of_task = rng.normal(size=(6, 10)) * 10, rng.normal(size=(8, 10))
    reference = of_input[inputs] + of_task[tasks]  # every input in every task: the two are told apart
    means = {"reference_states": reference, "reference_inputs": inputs, "reference_tasks": tasks}
    new = of_input[[0, 0, 5]] + of_task[[1, 2, 1]]
    less, kept = centred(new, np.array([0, 0, 5]), **means)
    assert kept.all() and less.dtype == np.float32
    np.testing.assert_allclose(less, (of_task - of_task.mean(0))[[1, 2, 1]], atol=1e-5)
    everything, _ = centred(reference, inputs, **means)
    assert explained_variance(reference, inputs) > 0.9 and explained_variance(everything, inputs) < 1e-9
    assert explained_variance(everything, tasks) == pytest.approx(1.0)


def test_inputs_seen_in_fewer_than_two_training_tasks_are_left_out():
    reference = np.arange(12.0).reshape(6, 2)
    means = {
        "reference_states": reference,
        "reference_inputs": np.array(["a", "a", "b", "b", "c", "a"]),
        "reference_tasks": np.array([0, 1, 1, 1, 0, 0]),
    }
    less, kept = centred(np.ones((5, 2)), np.array(["a", "b", "c", "never", "a"]), **means)
    assert kept.tolist() == [True, False, False, False, True]
    assert np.array_equal(less[1:4], np.zeros((3, 2)))
    np.testing.assert_allclose(less[0], 1 - reference[[0, 1, 5]].mean(0))


def test_averages_of_raw_states_leak_the_task_through_its_set_of_inputs_and_centred_ones_do_not():
    rng = np.random.default_rng(6)
    sets = np.array([rng.choice(12, 5, replace=False) for _ in range(10)])  # the inputs of ten tasks
    task = np.repeat(np.arange(10), 20)
    inputs = sets[task].ravel()
    instructions, tasks = np.repeat(np.arange(200), 5), np.repeat(task, 5)
    states = rng.normal(size=(12, 16))[inputs] + 0.25 * rng.normal(size=(1000, 16))  # no task in them at all
    less, kept = centred(states, inputs, reference_states=states, reference_inputs=inputs, reference_tasks=tasks)
    assert kept.all()
    raw, first = averaged(states, instructions)
    clean, _ = averaged(less, instructions)
    assert np.array_equal(tasks[first], task)
    assert explained_variance(raw, task) > 0.8  # what an honest score has to be protected from
    assert explained_variance(clean, task) < 0.1


def test_averaged_points_come_in_order_of_first_appearance():
    states = np.array([[1.0], [10.0], [3.0], [20.0], [5.0]])
    points, first = averaged(states, np.array(["z", "a", "z", "a", "m"]))
    assert points.tolist() == [[2.0], [15.0], [5.0]] and first.tolist() == [0, 1, 4]


def test_block_by_block_sums_equal_those_in_one_piece(monkeypatch):
    rng = np.random.default_rng(7)
    states, task, inputs = rng.normal(size=(200, 6)), rng.integers(0, 4, 200), rng.integers(0, 5, 200)
    means = {"reference_states": states, "reference_inputs": inputs, "reference_tasks": task}

    def all_of_it():
        return (
            explained_variance(states, task),
            linear_probe(states, task, states, task),
            centred(states, inputs, **means)[0],
            averaged(states, task)[0],
        )

    whole = all_of_it()
    monkeypatch.setattr("nucleate.measures.baselines._NUMBERS_AT_ONCE", 50)
    for a, b in zip(whole, all_of_it(), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)


def test_bad_input_is_refused_by_name():
    states, three = np.zeros((3, 2)), np.arange(3)
    with pytest.raises(Refused, match=r"labels has shape \(3,\) and instructions \(2,\)"):
        shuffled_labels(three, np.arange(2), seed=0)
    with pytest.raises(Refused, match="distribution 7 belongs to several tasks"):
        regrouped_tasks(np.array([0, 1]), np.array([7, 7]), seed=0)
    with pytest.raises(Refused, match="no texts"):
        surface_features([], ["a"])
    with pytest.raises(Refused, match="all blank"):
        surface_features(["", "  "], ["a"])
    with pytest.raises(Refused, match="row 1 holds NaN"):
        explained_variance(np.array([[0.0], [np.nan], [1.0]]), three)
    with pytest.raises(Refused, match="one label per row"):
        averaged(states, np.arange(2))
    with pytest.raises(Refused, match="width 2 in training and 3"):
        linear_probe(states, three, np.zeros((3, 3)), three)
    with pytest.raises(Refused, match="no instances"):
        linear_probe(states, three, np.zeros((0, 2)), np.arange(0))
