"""The intervals: they cover as often as they say, and the naive ones beside them do not."""

import numpy as np
import pytest
from scipy import stats

from nucleate.intervals import subsample_interval, t_interval
from nucleate.refusal import Refused


def test_t_interval_is_scipys():
    values = [0.4, 0.5, 0.45, 0.7, 0.52]
    interval = t_interval(values)
    low, high = stats.t.interval(0.95, 4, loc=np.mean(values), scale=stats.sem(values))
    assert tuple(interval) == pytest.approx((np.mean(values), low, high), abs=1e-12)
    assert t_interval(values, 0.99).low < interval.low
    assert t_interval([2.0, 2.0]) == (2.0, 2.0, 2.0)


def test_t_interval_of_three_seeds_covers_what_it_says_and_the_bootstrap_does_not():
    rng = np.random.default_rng(8)
    samples = rng.normal(size=(2000, 3))
    held = np.mean([t.low <= 0 <= t.high for t in map(t_interval, samples)])
    drawn = samples[:, rng.integers(0, 3, (400, 3))].mean(axis=2)
    low, high = np.quantile(drawn, [0.025, 0.975], axis=1)
    assert held == pytest.approx(0.95, abs=0.02) and np.mean((low <= 0) & (high >= 0)) < 0.85


def test_subsample_interval_covers_a_mean_over_dependent_instances():
    rng = np.random.default_rng(9)
    instructions = np.repeat(np.arange(40), 5)
    held, widths, naive = [], [], []
    for seed in range(150):
        values = rng.normal(size=40)[instructions] + 0.2 * rng.normal(size=200)  # an instruction's instances are alike
        interval = subsample_interval(
            lambda rows, v=values: float(v[rows].mean()), instructions, seed=seed, repeats=200
        )
        held.append(interval.low <= 0 <= interval.high)
        widths.append(interval.high - interval.low)
        naive.append(abs(values.mean()) <= 1.96 * values.std() / np.sqrt(200))
    assert 0.88 <= np.mean(held) <= 0.99
    assert np.mean(widths) == pytest.approx(2 * 1.96 / np.sqrt(40), rel=0.1)
    assert np.mean(naive) < 0.75  # instances are not independent


@pytest.mark.parametrize("instructions", [4, 7, 12])
def test_subsample_interval_covers_a_mean_also_over_a_handful_of_instructions(instructions: int):
    """The true mean, 0, lies inside in 95 % of 300 samples: quantiles of the few halves would do so in 70-90 %."""
    hits = 0
    for values in np.random.default_rng(3).normal(size=(300, instructions)):
        found = subsample_interval(lambda rows, all=values: float(all[rows].mean()), np.arange(instructions), seed=0)
        hits += found.low <= 0 <= found.high
    assert 0.92 < hits / 300 < 0.98


@pytest.mark.parametrize("instructions", [18, 19, 20, 21])
def test_subsample_interval_is_students_below_twenty_instructions_and_by_quantiles_from_there_on(instructions: int):
    values, told = np.random.default_rng(5).normal(size=instructions), []

    def mean(rows):
        told.append(values[rows].mean())
        return told[-1]

    found, half = subsample_interval(mean, np.arange(instructions), seed=0, confidence=0.9), instructions // 2
    apart = np.sqrt(half / (instructions - half)) * (np.array(told[1:]) - told[0])
    reach = stats.t.ppf(0.95, instructions - 1) * apart.std()
    students = (apart.mean() - reach, apart.mean() + reach)
    low, high = students if instructions < 20 else np.quantile(apart, [0.05, 0.95])
    assert tuple(found) == pytest.approx((told[0], told[0] - high, told[0] - low), abs=1e-12)


def test_subsample_interval_draws_whole_instructions_without_copies():
    instructions = np.array([3, 1, 3, 2, 2, 1, 7, 7, 9])
    seen = []

    def statistic(rows):
        seen.append(tuple(rows))
        return float(len(rows))

    subsample_interval(statistic, instructions, seed=0, repeats=50)
    assert seen[0] == tuple(range(9))
    for rows in seen[1:]:
        assert list(rows) == sorted(set(rows))
        chosen = set(instructions[list(rows)])
        assert len(chosen) == 2 and len(rows) == np.isin(instructions, list(chosen)).sum()


def test_subsample_interval_is_the_same_for_a_seed_and_collapses_without_variation():
    rows_to_mean = np.arange(40.0)
    first, again = (
        subsample_interval(lambda rows: float(rows_to_mean[rows].mean()), np.arange(40), seed=4) for _ in range(2)
    )
    assert first == again and first.low < first.mean == 19.5 < first.high
    assert subsample_interval(lambda rows: 0.25, np.arange(40), seed=4) == (0.25, 0.25, 0.25)


def test_subsample_interval_corrects_a_bias_that_falls_with_the_number_of_instructions():
    interval = subsample_interval(lambda rows: 10 / len(rows), np.arange(40), seed=0)  # the truth is 0
    assert interval.mean == 0.25 and interval.low == interval.high == 0.0


def test_subsample_interval_skips_undefined_halves_and_refuses_when_most_are():
    interval = subsample_interval(lambda rows: None if 0 in rows and len(rows) < 8 else 1.0, np.arange(8), seed=0)
    assert interval == (1.0, 1.0, 1.0)
    with pytest.raises(Refused, match="most halves"):
        subsample_interval(lambda rows: None if len(rows) < 8 else 1.0, np.arange(8), seed=0)
    with pytest.raises(Refused, match="whole set"):
        subsample_interval(lambda rows: None, np.arange(8), seed=0)


def test_too_few_values_and_impossible_confidences_are_refused():
    with pytest.raises(Refused, match="at least two"):
        t_interval([1.0])
    with pytest.raises(Refused, match="share between 0 and 1"):
        t_interval([1.0, 2.0], 95)
    with pytest.raises(Refused, match="at least 4"):
        subsample_interval(lambda rows: 1.0, np.arange(3), seed=0)
