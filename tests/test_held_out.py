"""Linear probes told on what they have not met, held to scikit-learn's."""

import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.preprocessing import StandardScaler

from nucleate.measures.held_out import RIDGES, Told, inner_folds, outer_folds, read_linearly
from nucleate.measures.products import Products


def world(n=240, width=12, tasks=4, units=60, inputs=20, seed=0):
    rng = np.random.default_rng(seed)
    unit, given = rng.integers(units, size=n), rng.integers(inputs, size=n)
    task = unit % tasks
    states = rng.normal(size=(n, width)) + 1.2 * rng.normal(size=(tasks, width))[task]
    states[:, -1] = 3.0  # a feature that says nothing
    return states.astype(np.float32), task, unit, given


def by_sklearn(states, task, known, fold, ridge, few=False):
    scaler = StandardScaler().fit(states[known].astype(float))
    if few:  # of n-grams all features are divided by one number
        scaler.scale_ = np.full_like(scaler.scale_, np.sqrt(scaler.var_.mean()))
    model = RidgeClassifier(alpha=ridge * len(fold.fitted), solver="cholesky")
    model.fit(scaler.transform(states[fold.fitted].astype(float)), task[fold.fitted])
    return model.predict(scaler.transform(states[fold.answers].astype(float))) == task[fold.answers]


@pytest.mark.parametrize("width", [12, 400])  # by features, by instances
@pytest.mark.parametrize("few", [False, True])
def test_penalty_and_answers_are_scikit_learns(width, few):
    states, task, unit, given = world(width=width)
    if few:  # as n-grams are
        rng = np.random.default_rng(1)
        states = states * (rng.random(states.shape) < 0.04)
    half = np.flatnonzero(unit // 4 % 2 == 0), np.flatnonzero(unit // 4 % 2)
    inner = inner_folds(unit, given, half[0], seed=1)
    outer = outer_folds(unit, given, *half, seed=1)
    known = np.unique(np.concatenate([fold.fitted for fold in (*inner, *outer)]))
    found = read_linearly(states, task, inner, outer)
    shares = [np.concatenate([by_sklearn(states, task, known, fold, r, few) for fold in inner]).mean() for r in RIDGES]
    assert (
        found.chosen == pytest.approx(max(shares))
        and found.penalty == RIDGES[np.flatnonzero(shares == max(shares))[-1]]
    )
    for fold in outer:
        expected = by_sklearn(states, task, known, fold, found.penalty, few)
        assert (found.named(task)[0, fold.answers] == expected).mean() > 0.99
    if few:  # the products may be known, with those of other points
        others = 1 + np.random.default_rng(2).normal(size=(50, width))
        part = Products.of(np.concatenate([others, states]).astype(np.float32)).part(50 + np.arange(len(states)))
        again = read_linearly(states, task, inner, outer, part=part)
        assert again.penalty == found.penalty and (again.said == found.said).mean() > 0.99
    named = found.named(task)[0]
    assert np.isnan(named[half[0]]).all() and not np.isnan(named[half[1]]).any()


def test_nobody_is_told_by_a_probe_that_met_its_unit_or_its_input():
    _, _, unit, given = world()
    half = np.flatnonzero(unit // 4 % 2 == 0), np.flatnonzero(unit // 4 % 2)
    for fold in inner_folds(unit, given, half[0], seed=3):
        assert not np.isin(unit[fold.answers], unit[fold.fitted]).any()
        assert not np.isin(given[fold.answers], given[fold.fitted]).any()
    folds = outer_folds(unit, given, *half, seed=3)
    assert sorted(np.concatenate([fold.answers for fold in folds])) == half[1].tolist()
    for fold in folds:
        assert not np.isin(given[fold.answers], given[fold.fitted]).any()
        assert np.isin(fold.fitted, half[0]).all()
    (one,) = outer_folds(unit, None, *half, seed=3)
    assert one.fitted is half[0] and one.answers is half[1]


def test_a_word_that_gives_the_label_away_is_no_help_for_other_words():
    """States that hold the input alone, each input with one task: read at once where inputs repeat, not for others."""
    rng = np.random.default_rng(0)
    given = rng.integers(40, size=800)
    task, unit = given % 4, rng.integers(100, size=800)
    states = rng.normal(size=(40, 60))[given].astype(np.float32)
    half = np.flatnonzero(unit // 4 % 2 == 0), np.flatnonzero(unit // 4 % 2)
    told = []
    for inputs in (None, given):
        folds = inner_folds(unit, inputs, half[0], seed=0), outer_folds(unit, inputs, *half, seed=0)
        told.append(np.nanmean(read_linearly(states, task, *folds).named(task)[0]))
    assert told[0] > 0.95 and told[1] < 0.5


def test_other_labels_are_asked_of_the_same_fits_and_a_task_that_nobody_has_is_not_told():
    states, task, unit, _ = world()
    half = np.flatnonzero(unit // 4 % 2 == 0), np.flatnonzero(unit // 4 % 2)
    alone = task.copy()
    alone[half[1][0]] = 9  # nobody else has it
    shuffled = np.random.default_rng(0).permutation(task)
    inner, outer = inner_folds(unit, None, half[0], seed=1), outer_folds(unit, None, *half, seed=1)
    both = np.stack([alone, shuffled])
    found = read_linearly(states, both, inner, outer)
    named = found.named(both)
    assert np.isnan(named[0, half[1][0]])
    again = read_linearly(states, shuffled, inner, outer, penalty=found.penalty)
    assert np.array_equal(found.said[1], again.said[0])
    assert np.nanmean(named[0]) > 0.6 > 0.45 > np.nanmean(named[1])


def test_without_anybody_to_choose_by_the_largest_penalty_is_taken():
    states, task, unit, _ = world()
    half = np.flatnonzero(unit // 4 % 2 == 0), np.flatnonzero(unit // 4 % 2)
    found = read_linearly(states, task, [], [Told(*half)])
    assert found.penalty == RIDGES[-1] and np.isnan(found.chosen)


def test_where_units_stand_on_both_sides_nobody_is_told_by_a_probe_that_met_the_unit():
    _, _, unit, given = world(n=400)
    half = np.arange(0, 200), np.arange(200, 400)
    for inputs in (None, given):
        folds = outer_folds(unit, inputs, *half, seed=2)
        assert sum(len(fold.answers) for fold in folds) > 20
        for fold in folds:
            assert not np.isin(unit[fold.answers], unit[fold.fitted]).any()
            assert inputs is None or not np.isin(given[fold.answers], given[fold.fitted]).any()
