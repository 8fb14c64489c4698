"""Task by task, on states whose structure is planted: what is separate, what is confused, which labels are wrong."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from nucleate.long_table import verdict_from
from nucleate.measures.labelling import Cohort, labelling_of
from nucleate.measures.neighbours import Labels
from nucleate.measures.scores import cluster_scores
from nucleate.measures.shares import NeighbourShares, TaskDeals, neighbour_shares
from nucleate.measures.survey import Effort, survey
from nucleate.probing import layers
from nucleate.probing.changes import change, difference
from nucleate.probing.design import Design
from nucleate.probing.findings import doubted_in_words
from nucleate.probing.halves import Side, deciding_search, held_out_units, sides_of, some_units
from nucleate.probing.layers import measure_layers
from nucleate.probing.margins import GAIN, margins
from nucleate.probing.separation import (
    MISLABELLED,
    best_cluster_f1,
    by_task,
    confusion,
    doubts,
    f1_interval,
    f1_of,
    mean_interval,
    planted_found,
)

TASKS, WIDTH = 4, 16


def labels(*, inputs: int = 5, instructions: int = 12, distributions: bool = True) -> Labels:
    """Every instruction of four tasks with every input; two distributions a task."""
    rows = [
        (12 * t + i, x, 10 * t + x, t, 2 * t + i % 2)
        for t in range(TASKS)
        for i in range(instructions)
        for x in range(inputs)
    ]
    columns = [np.array(column) for column in zip(*rows, strict=True)]
    if not distributions:
        columns[4] = np.full(len(rows), -1)
    return Labels(*columns)


def states(some: Labels, task: np.ndarray | None = None, *, strength: float, seed: int = 0) -> np.ndarray:
    """(instance, width): the effect of the task, and noise."""
    rng = np.random.default_rng(seed)
    effect = rng.normal(size=(TASKS, WIDTH))
    noise = rng.normal(size=(len(some), WIDTH))
    return (strength * effect[some.task if task is None else task] + noise).astype(np.float32)


def around(some: Labels, points: np.ndarray) -> NeighbourShares:
    deals, nobody = {"none": TaskDeals.of(some, some)}, np.full(len(some), -1)
    (seen,) = neighbour_shares([(points, some)], points, some, deals=[deals], origin=[nobody])
    return seen


def test_own_shares_have_the_mean_of_the_survey_and_are_unknown_where_a_task_offers_nobody():
    some = labels()
    seen = around(some, states(some, strength=1))
    for search, name in (("", "knn_share"), ("other_inputs", "knn_share_other_inputs")):
        assert np.isclose(np.nanmean(seen.own[search]), seen.measures["none"][name])
    alone = Labels(
        *(np.append(getattr(some, n), 99) for n in ("instruction", "input", "output", "task", "distribution"))
    )
    seen = around(alone, np.vstack([states(some, strength=1), np.zeros((1, WIDTH), np.float32)]))
    shares = seen.own[""]
    assert np.isnan(shares[-1]) and not np.isnan(shares[:-1]).any()


def test_confusion_sums_to_one_and_has_the_own_share_on_its_diagonal():
    some = labels()
    merged = np.where(some.task == 1, 0, some.task)  # the states of task 1 are those of task 0
    seen = around(some, states(some, merged, strength=3))
    table = confusion(seen.mixed[""])
    assert np.allclose(table.sum(axis=1), 1)
    assert np.allclose(np.diag(table), by_task(seen.own[""], some.task))
    assert table[0, 1] > 0.3 and table[1, 0] > 0.3 and table[2, 2] > 0.95 and table[2, 3] < 0.05


def test_f1_by_task_is_one_on_perfect_clusters_and_sums_to_the_f1_of_all():
    rng = np.random.default_rng(0)
    task, clusters = rng.integers(0, 5, 300), rng.integers(0, 7, 300)
    assert np.isclose(f1_of(task, clusters), cluster_scores(task, clusters).f1)
    assert np.allclose(best_cluster_f1(task, 4 - task), 1)
    by_hand = best_cluster_f1(np.array([0, 0, 0, 1]), np.array([0, 0, 1, 1]))
    assert np.allclose(by_hand, [2 * 2 / (3 + 2), 2 * 1 / (1 + 2)])


@pytest.mark.parametrize("strength", [1.5, 3.0])
def test_two_percent_of_planted_labels_are_found_and_their_true_tasks_named(strength):
    some = labels(instructions=40)
    planted, rng = some.task.copy(), np.random.default_rng(1)
    wrong = rng.choice(len(some), len(some) // 50, replace=False)
    planted[wrong] = (planted[wrong] + rng.integers(1, TASKS, len(wrong))) % TASKS
    prompt = np.arange(len(some))
    result = doubts(states(some, strength=strength), planted, prompt, seed=0)
    first = np.argsort(-result.margin)[: len(wrong)]
    assert np.isin(first, wrong).mean() >= 0.8
    assert (result.nearest[wrong] == some.task[wrong]).mean() >= 0.9
    clean = doubts(states(some, strength=3), some.task, prompt, seed=0)
    assert (clean.margin > MISLABELLED).mean() < 0.005


def test_doubts_list_the_most_doubtful_of_each_task_and_judge_no_prompt_by_its_own_copy():
    some = labels()
    points, prompt = states(some, strength=2), np.arange(len(some))
    planted = some.task.copy()
    planted[[7, 8]] = 2  # task 0 in truth
    points[8], prompt[8] = points[7], prompt[7]  # the same prompt twice: neither may vouch for the other
    result = doubts(points, planted, prompt, seed=0)
    assert (result.margin[[7, 8]] > MISLABELLED).all() and (result.nearest[[7, 8]] == 0).all()
    listed = result.most(planted, 3)
    assert len(listed) == 3 * TASKS and set(listed[6:8]) == {7, 8}
    for task in range(TASKS):
        mine = listed[planted[listed] == task]
        assert len(mine) == 3 and (np.diff(result.margin[mine]) <= 0).all()
        assert result.margin[planted == task].max() == result.margin[mine[0]]


def test_intervals_hold_the_mean_and_are_left_out_where_there_are_too_few_instructions():
    some = labels()
    values = np.random.default_rng(0).random(len(some))
    values[3] = np.nan
    interval = mean_interval(values, some.instruction, seed=0)
    assert interval is not None and interval.low < np.nanmean(values) < interval.high
    assert np.isclose(interval.mean, np.nanmean(values))
    assert mean_interval(values[:15], some.instruction[:15], seed=0) is None
    clusters = np.random.default_rng(1).integers(0, TASKS, len(some))
    bounds = f1_interval(some.task, clusters, some.instruction, seed=0)
    assert bounds is not None and np.isclose(bounds.mean, f1_of(some.task, clusters))


# --- what is measured against what ------------------------------------------------------------------------------------


def test_halves_share_no_instruction_are_even_in_every_group_and_do_not_depend_on_the_order_of_the_rows():
    units = [f"instruction {number // 3}" for number in range(180)]
    groups = [("task", number // 45) for number in range(180)]
    everything, validation, test = sides_of(units, groups, ["test"] * 180, seed=3)
    assert set(everything.members) == set(range(180))
    chosen = {units[place] for place in validation.members}
    assert not chosen & {units[place] for place in test.members}
    assert np.array_equal(validation.members, test.against) and np.array_equal(validation.members, validation.against)
    for group in range(4):
        here = [place for place in validation.members if groups[place][1] == group]
        assert len(here) in (21, 24)
    order = np.random.default_rng(0).permutation(180)
    again = sides_of([units[i] for i in order], [groups[i] for i in order], ["test"] * 180, seed=3)[1]
    assert {units[order[place]] for place in again.members} == chosen
    other = sides_of(units, groups, ["test"] * 180, seed=4)[1]
    assert {units[place] for place in other.members} != chosen


def test_data_that_come_in_splits_are_measured_against_their_training_split():
    splits = ["train"] * 6 + ["validation"] * 3 + ["test"] * 3
    _, validation, test = sides_of([str(n) for n in range(12)], ["g"] * 12, splits, seed=0)
    assert list(validation.against) == list(test.against) == list(range(6)) and list(test.members) == [9, 10, 11]
    without = test.among(np.array([0, 1, 2, 10, 11]), 12)
    assert list(without.members) == [3, 4] and list(without.against) == [0, 1, 2]


def test_where_all_prompts_share_a_request_the_prompt_is_held_out():
    units, by_instruction = held_out_units(["Classify:"] * 4, ["a", "b", "c", "d"], ["x", "x", "y", "y"])
    assert len(set(units)) == 4 and not by_instruction
    assert held_out_units(list("abcdefgh"), ["q"] * 8, list("xxxxyyyy")) == (list("abcdefgh"), True)


def test_the_share_among_other_inputs_decides_where_there_are_other_inputs():
    everyone = np.arange(len(labels()))
    side = Side("test", everyone, everyone)
    assert deciding_search(side, labels()) == "other_inputs"
    one = labels(inputs=1)
    assert deciding_search(Side("test", np.arange(len(one)), np.arange(len(one))), one) == ""


def test_some_units_keeps_units_whole():
    units = np.repeat(np.arange(30), 4)
    kept = some_units(units, 50, seed=0)
    assert len(kept) == 48 and all(np.isin(np.flatnonzero(units == unit), kept).all() for unit in units[kept])
    assert len(some_units(units, 120, seed=0)) == 120
    assert (
        len(some_units(np.zeros(120, dtype=int), 50, seed=0)) == 50
    )  # one instruction with more inputs than are shown


def test_what_is_unknown_has_no_rows_and_no_regrouped_control():
    some = labels(distributions=False)
    nothing = np.full(len(some), -1)
    bare = Labels(some.instruction, nothing, nothing, some.task, nothing)
    here = Cohort("test", bare, nothing, np.empty((0, 2), dtype=np.int64))
    dealt = labelling_of([here], Cohort("train", bare, nothing, here.pairs), seed=0, repeats=2, spaces=("raw",))
    points = states(some, strength=3)[np.newaxis]
    rows = survey(dealt, {"test": points, "train": points}, Effort(), layers=[7]).rows
    assert {row.control for row in rows} == {"none", "shuffled"} and {row.layer for row in rows} == {7}
    assert {row.labels for row in rows} == {"task", None} and {row.space for row in rows} == {"raw"}
    assert {row.measure for row in rows if row.labels is None} == {"variance_task"}
    assert not {row.measure for row in rows if "inputs" in row.measure or "distributions" in row.measure}


# --- the verdict ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def design() -> Design:
    some = labels()
    units = [str(one) for one in some.instruction]
    sides = sides_of(units, some.distribution.tolist(), ["test"] * len(some), seed=0)
    mapping = np.full(len(some), -1)
    return Design.of(
        some,
        mapping,
        [f"t{n}" for n in range(TASKS)],
        sides,
        seed=0,
        effort=Effort(perplexity=5, iterations=250, initialisations=3),
        repeats=2,
    )


def told(measured, clustered=0, readable=0):
    """What something scores, as a control."""
    return {"clustered": measured.shares["test", clustered], "readable": measured.said[readable]}


def against(**controls):
    """Controls by reading."""
    return {reading: {name: one[reading] for name, one in controls.items()} for reading in ("clustered", "readable")}


def flags(found):
    return {row["measure"]: row["value"] for row in found.rows}


def held(values):
    return max(values["held_clustered"], values["held_readable"])


def test_a_layer_is_clustered_where_it_exceeds_every_control_and_a_task_that_is_not_is_told(design):
    some = design.labels
    half = np.where(some.task == 1, 0, some.task)  # tasks 0 and 1 are one
    layers = [states(some, strength=0, seed=1), states(some, half, strength=3), states(some, strength=3)]
    measured = measure_layers(design, np.stack(layers), [0, 4, 8], lambda what, done, of: None)
    assert measured.best_layer == 8 and measured.best_readable_layer == 8
    weak = measure_layers(design, states(some, strength=0, seed=2)[np.newaxis], [0], lambda what, done, of: None)
    controls = against(untrained=told(weak))
    nothing = flags(margins(design, measured, 0, controls))
    assert nothing["clustered"] == nothing["readable"] == held(nothing) == 0
    middle, last = margins(design, measured, 4, controls), margins(design, measured, 8, controls)
    assert flags(last)["clustered"] == flags(last)["readable"] == held(flags(last)) == 1
    assert [task["clustered"] for task in last.by_task] == [1, 1, 1, 1] == [task["readable"] for task in last.by_task]
    assert [task["clustered"] for task in middle.by_task][2:] == [1, 1]
    for task in last.by_task:
        for margin in ("margin", "linear_margin"):
            assert task[margin] >= GAIN and 0 < task[f"{margin}_low"] <= task[f"{margin}_high"]
    words = margins(design, measured, 8, against(untrained=told(weak), surface_prompt=told(measured, 8, 8)))
    found = flags(words)  # as good as the words: held, and no more than they
    assert found["clustered"] == found["readable"] == 0 and held(found) == 1
    assert all(task["clustered"] == task["readable"] == 0 and held(task) == 1 for task in words.by_task)


@pytest.mark.parametrize("some", [0, 1, slice(None)], ids=["all", "validation", "every side"])
def test_sides_that_share_their_products_measure_what_each_measures_alone(design, some, monkeypatch):
    sides = design.sides[some] if isinstance(some, slice) else (design.sides[some],)
    points = np.stack([states(design.labels, strength=strength) for strength in (0, 1, 3)])
    shared = measure_layers(design, points, [0, 1, 2], lambda what, done, of: None, sides=sides)
    made = []
    monkeypatch.setattr(layers, "shared_by", lambda sides: made.append(sides))
    alone = measure_layers(design, points, [0, 1, 2], lambda what, done, of: None, sides=sides)
    assert made and len(shared.rows) == len(alone.rows) > 0
    for one, other in zip(shared.rows, alone.rows, strict=True):
        assert {**one, "value": 0} == {**other, "value": 0}
        same = one["measure"].startswith(("knn", "hard", "linear", "variance"))
        assert one["value"] == other["value"] if same else one["value"] == pytest.approx(other["value"], abs=0.05), one
    for place, share in shared.shares.items():
        assert np.array_equal(share, alone.shares[place], equal_nan=True)


def test_no_more_products_are_held_at_once_than_fit(design, monkeypatch):
    made, products_of = [], layers.products_of
    monkeypatch.setattr(
        layers, "products_of", lambda block, threads: made.append(len(block)) or products_of(block, threads)
    )
    points = np.stack([states(design.labels, strength=1)] * 4)
    busy = replace(design, effort=replace(design.effort, threads=4))
    for largest, at_once in ((2 * len(design.labels), [4]), (len(design.labels), [1, 1, 1, 1])):
        monkeypatch.setattr(layers, "LARGEST", largest)
        measure_layers(busy, points, [0, 1, 2, 3], lambda what, done, of: None)
        assert made == at_once
        made.clear()


def test_labels_that_a_plane_parts_but_no_neighbourhood_are_readable_and_not_clustered(design):
    some = design.labels
    noise = np.random.default_rng(3).normal(size=(len(some), 30)).astype(np.float32)
    points = np.concatenate([8 * noise, states(some, strength=1.5)[:, : TASKS * 3]], axis=1)
    measured = measure_layers(design, points[np.newaxis], [0], lambda what, done, of: None)
    weak = measure_layers(design, states(some, strength=0, seed=2)[np.newaxis], [0], lambda what, done, of: None)
    found = flags(margins(design, measured, 0, against(untrained=told(weak))))
    assert found["readable"] == held(found) == 1 and found["clustered"] == 0


@pytest.mark.parametrize(
    ("clustered", "readable", "held", "verdict"),
    [
        (1, 0, 1, "clustered"),
        (1, 1, 1, "clustered"),
        (0, 1, 1, "readable"),
        (None, 1, 1, "readable"),
        (None, 0, 1, None),
        (0, None, 1, None),
        (0, 0, 1, "no more than the words"),
        (0, 0, 0, "not held"),
        (None, None, None, None),
    ],
)
def test_the_verdict_is_the_strongest_of_four(clustered, readable, held, verdict):
    assert verdict_from(clustered, readable, held) == verdict


def test_the_difference_of_two_models_names_the_task_that_changed():
    some = labels()
    numbers = np.arange(len(some))
    frame = {"instance": numbers, "text": numbers.astype(str), "task": [f"t{n}" for n in some.task]}
    frame["unit"] = some.instruction
    before = np.random.default_rng(0).uniform(0.3, 0.5, len(some))
    after = np.where(some.task == 2, 0.95, before)
    here, there = (pl.DataFrame({**frame, "split": "test", "share": share}) for share in (after, before))
    found = difference(here, there)
    changed = found.filter(pl.col("changed"))
    assert changed["task"].to_list() == ["t2"] and np.isclose(changed["difference"][0], 0.55, atol=0.02)

    def said(frame, now=(), before=()):
        return change({"clustered": frame}, "base", {"clustered": set(now)}, {"clustered": set(before)})

    assert "made 't2' (41 %" in said(found, now={"t2"}) and "→ 95 %) clustered" in said(found, now={"t2"})
    assert "→ 95 %) more clustered" in said(found)
    back = difference(there, here)
    assert "made 't2' (95 % →" in said(back, before={"t2"}) and "no longer clustered" in said(back, before={"t2"})
    assert "less clustered" in said(back)
    same = difference(here, here)
    assert "the model changes no task beyond chance" in said(same, now={"t1"})
    unknown = found.with_columns(low=pl.lit(None, pl.Float64), high=pl.lit(None, pl.Float64))
    assert "too few instructions to tell" in said(unknown, now={"t1"})


def test_of_two_hundred_comparisons_without_a_difference_few_find_any():
    """Twenty tasks each; that any of them is called changed should happen in five of a hundred at most, but for chance:
    of 200 such numbers one in a thousand exceeds 19."""
    rng = np.random.default_rng(0)
    task, unit = np.repeat(np.arange(20), 60), np.repeat(np.arange(20 * 15), 4)
    frame = {"instance": np.arange(1200), "text": np.arange(1200).astype(str), "task": task.astype(str), "unit": unit}
    false = uncorrected = 0
    for _ in range(200):
        lean = rng.normal(size=20 * 15)[unit] * 0.15  # an instruction's prompts move together
        here, there = (
            pl.DataFrame({**frame, "split": "test", "share": 0.5 + move + 0.1 * rng.normal(size=1200)})
            for move in (lean, 0.0)
        )
        found = difference(here, there)
        false += bool(found["changed"].any())
        uncorrected += found.filter((pl.col("low") > 0) | (pl.col("high") < 0)).height > 0
    assert false <= 19 < 100 < uncorrected


@pytest.mark.parametrize(
    ("count", "found", "words"),
    [
        (0, None, "no prompts look mislabelled"),
        (2, None, "2 prompts look mislabelled"),
        (1, 0.95, "1 prompt looks mislabelled (of single labels changed at random as a test, 95 % come to look so)"),
        (0, 0.3, "no prompts look mislabelled (of single labels changed at random as a test, 30 % come to look so)"),
    ],
)
def test_doubtful_prompts_are_told_with_how_much_the_list_sees(count, found, words):
    assert doubted_in_words(count, found) == words


@pytest.mark.parametrize(("apart", "low", "high"), [(3.0, 0.95, 1.0), (0.0, 0.0, 0.2)])
def test_labels_changed_on_purpose_are_found_where_states_tell_labels_apart_and_not_where_they_do_not(apart, low, high):
    rng = np.random.default_rng(4)
    task, prompt = np.repeat(np.arange(4), 150), np.arange(600)
    states = rng.normal(size=(600, 20)).astype(np.float32)
    states[np.arange(600), task] += 2 * apart
    told = planted_found(states, task, prompt, seed=1)
    assert low <= told <= high and told == planted_found(states, task, prompt, seed=1)


def test_labels_that_were_wrong_before_do_not_lower_what_is_found():
    rng = np.random.default_rng(4)
    task, prompt = np.repeat(np.arange(4), 150), np.arange(600)
    states = rng.normal(size=(600, 20)).astype(np.float32)
    states[np.arange(600), task] += 6
    wrong = task.copy()
    wrong[::20] = (wrong[::20] + 1) % 4
    assert planted_found(states, wrong, prompt, seed=1) > 0.9
    assert planted_found(states, np.zeros(600, dtype=int), prompt, seed=1) is None


def unequal(sizes=(160, 40), seed=0):
    """Labels and the design of prompts without inputs, of tasks of unequal size."""
    task = np.repeat(np.arange(len(sizes)), sizes)
    nothing = np.full(len(task), -1)
    some = Labels(np.arange(len(task)), nothing, nothing, task, nothing)
    sides = sides_of([str(n) for n in range(len(task))], task.tolist(), ["test"] * len(task), seed=seed)
    effort = Effort(perplexity=5, iterations=250, initialisations=2)
    names = [f"t{n}" for n in range(len(sizes))]
    return some, Design.of(some, nothing, names, sides, seed=seed, effort=effort, repeats=5)


def read(design, points):
    return measure_layers(design, points[np.newaxis].astype(np.float32), [0], lambda what, done, of: None)


@pytest.mark.parametrize("sizes", [(160, 40), (150, 30, 30, 30)])
def test_of_noise_the_largest_task_is_not_held_because_it_is_large(sizes):
    held_ones = []
    for seed in range(6):
        some, design = unequal(sizes, seed)
        rng = np.random.default_rng(seed)
        noise, other = (read(design, rng.normal(size=(len(some), 12))) for _ in range(2))
        found = margins(design, noise, 0, against(untrained=told(other)))
        held_ones += [flags(found)["held_readable"], found.by_task[0]["held_readable"]]
        assert flags(found)["readable"] == 0 and found.by_task[0].get("readable") == 0
    assert sum(held_ones) <= 1


def test_a_small_task_that_is_read_is_readable_beside_a_large_one():
    some, design = unequal((300, 40, 40))
    rng = np.random.default_rng(1)
    effect = 2.5 * rng.normal(size=(3, 12))
    strong, noise = (
        read(design, effect[some.task] + rng.normal(size=(len(some), 12))),
        read(design, rng.normal(size=(len(some), 12))),
    )
    found = margins(design, strong, 0, against(untrained=told(noise)))
    assert [task["readable"] for task in found.by_task] == [1, 1, 1]
    assert [task["clustered"] for task in found.by_task[1:]] == [1, 1]


def test_a_control_that_always_names_the_same_task_is_no_bar_to_that_task():
    some, design = unequal((60, 60, 60))
    rng = np.random.default_rng(2)
    effect = 2.5 * rng.normal(size=(3, 12))
    strong = read(design, effect[some.task] + rng.normal(size=(len(some), 12)))
    constant = read(design, np.ones((len(some), 12)))
    found = margins(design, strong, 0, against(neutral=told(constant)))
    assert [task["readable"] for task in found.by_task] == [1, 1, 1]
