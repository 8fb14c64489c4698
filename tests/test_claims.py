"""The ledger's rule and quantities: verdicts follow from the long tables alone."""

import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from invented_claims import frame, raised, rows_of, without, write_run
from nucleate.claims import applications, quantities
from nucleate.claims.table import CLAIMS, verdicts_alike
from nucleate.claims.verdicts import decide, judge, not_run
from nucleate.refusal import Refused
from nucleate.runs import load_run

BY_ID = {claim.id: claim for claim in CLAIMS}
VERBS = {claim.id: claim.experiment for claim in CLAIMS}
SIZE = {"probe": "natural"}
FIRST_SEED = {"learn": 5}
NAMES = [claim.id for claim in CLAIMS if claim.id != "C14"]  # which compares verdicts, and has tests of its own


def runs(folder, verb, truths, *, first=None, status="done", size=None, change=lambda rows: rows, settings=""):
    """A run per entry of `truths`, seeds rising from `first`; `change` alters the rows of each."""
    made = []
    for seed, true in enumerate(truths, start=FIRST_SEED.get(verb, 0) if first is None else first):
        rows = change(rows_of(verb, true=true, shift=0.0005 * (seed % 5)))
        at = folder / f"{verb}-{seed}"
        size_here = size or SIZE.get(verb, "small")
        made.append(
            load_run(write_run(at, rows, verb=verb, size=size_here, seed=seed, status=status, settings=settings))
        )
    return made


def verdict(claim, given, **changes):
    (found,) = judge(given, [replace(claim, **changes)])
    return found


@pytest.fixture(scope="module")
def worlds(tmp_path_factory):
    """verb -> truth -> five finished runs of the judged seeds; `mixed`: three true and two false."""
    folder = tmp_path_factory.mktemp("worlds")
    truths = {"true": [True] * 5, "false": [False] * 5, "mixed": [True, False, True, False, True]}
    return {
        verb: {name: runs(folder / name, verb, each) for name, each in truths.items()} for verb in set(VERBS.values())
    }


# --- every claim ------------------------------------------------------------------------------------------------------


def test_the_table_names_each_claim_of_the_design_once():
    parted = {8: "ab", 11: "ab", 18: "abcd"}
    named = [f"C{number}{letter}" for number in range(1, 19) for letter in parted.get(number, " ")]
    assert [claim.id for claim in CLAIMS] == [*map(str.strip, named), "N1", "N2", "N3"]
    assert all(claim.primary.__doc__ and claim.paper and claim.sentence for claim in CLAIMS)
    ours = [claim.id for claim in CLAIMS if claim.paper.startswith("What the paper does not ask")]
    assert ours == ["N1", "N2", "N3"]


@pytest.mark.parametrize("name", NAMES)
def test_a_claim_holds_fails_or_stays_undecided_as_its_tables_say(name, worlds):
    claim, world = BY_ID[name], worlds[VERBS[name]]
    assert verdict(claim, world["true"]).verdict == "holds"
    assert verdict(claim, world["false"]).verdict == "fails"
    assert verdict(claim, world["mixed"]).verdict == "undecided"


@pytest.mark.parametrize("name", NAMES)
def test_another_threshold_turns_the_verdict_over(name, worlds):
    claim, world = BY_ID[name], worlds[VERBS[name]]
    held = verdict(claim, world["true"])
    best = max(held.points.values()) if claim.direction == "above" else min(held.points.values())
    assert verdict(claim, world["true"], threshold=best).verdict == "fails"  # none is beyond it
    if not claim.controls:
        failed = verdict(claim, world["false"])
        worst = min(failed.points.values()) if claim.direction == "above" else max(failed.points.values())
        beyond = worst - 0.001 if claim.direction == "above" else worst + 0.001
        assert verdict(claim, world["false"], threshold=beyond).verdict == "holds"


@pytest.mark.parametrize("name", NAMES)
def test_four_seeds_never_decide(name, worlds):
    for truth in ("true", "false"):
        found = verdict(BY_ID[name], worlds[VERBS[name]][truth][:4])
        assert found.verdict == "undecided"
        assert "4 of 5 seeds" in found.reason


@pytest.mark.parametrize(("name", "control"), [(claim.id, control) for claim in CLAIMS for control in claim.controls])
def test_a_control_that_was_not_measured_leaves_a_claim_undecided(name, control, tmp_path):
    given = runs(tmp_path, VERBS[name], [True] * 4)
    lacking = rows_of(VERBS[name], true=True, shift=0.001)
    size, last = SIZE.get(VERBS[name], "small"), FIRST_SEED.get(VERBS[name], 0) + 4
    if VERBS[name] == "learn":
        lacking = without(lacking, control)
    else:
        lacking = [row for row in lacking if row.get("control") != control]
    given.append(load_run(write_run(tmp_path / "last", lacking, verb=VERBS[name], size=size, seed=last)))
    found = verdict(BY_ID[name], given)
    assert found.verdict == "undecided"
    assert control in found.reason
    assert last not in found.differences


@pytest.mark.parametrize(
    ("name", "control"),
    [
        (claim.id, control)
        for claim in CLAIMS
        for control in claim.controls
        if (control != "untrained" or claim.id == "N3")
        and claim.id not in ("C2", "C3", "C7")  # not one number a control
    ],
)
def test_a_control_that_does_as_well_makes_a_claim_fail(name, control, tmp_path):
    given = runs(tmp_path, VERBS[name], [True] * 5, change=lambda rows: raised(rows, control, 1.0))
    found = verdict(BY_ID[name], given)
    assert found.verdict == "fails"
    assert "control" in found.reason


def test_an_untrained_network_that_clusters_as_well_makes_the_claim_fail(tmp_path):
    def early(rows):
        return [{**row, "value": 0.99} if row["measure"] == "f1" and row.get("epoch") == 0 else row for row in rows]

    found = verdict(BY_ID["C1"], runs(tmp_path, "learn", [True] * 5, change=early))
    assert (found.verdict, found.reason) == ("fails", "no seed beats its hardest control")


# --- which runs are judged --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_runs_with_exploratory_seeds_are_shown_and_never_judged(name, tmp_path):
    for truth in (True, False):
        found = verdict(BY_ID[name], runs(tmp_path / str(truth), VERBS[name], [truth] * 6, first=100))
        assert (found.verdict, found.judged) == ("undecided", False)
        assert found.reason.startswith("exploratory")
        assert found.seeds == (100, 101, 102, 103, 104, 105)


def test_an_exploratory_run_beside_judged_ones_changes_nothing_but_is_shown(worlds, tmp_path):
    judged = verdict(BY_ID["C1"], worlds["learn"]["true"])
    both = verdict(BY_ID["C1"], worlds["learn"]["true"] + runs(tmp_path, "learn", [False], first=100))
    assert 100 in both.exploratory and 100 not in both.points
    assert list(judged.points) == [5, 6, 7, 8, 9]
    assert replace(both, exploratory={}) == judged


def test_an_unfinished_run_is_not_judged(tmp_path):
    found = verdict(BY_ID["C1"], runs(tmp_path, "learn", [True] * 5, status="interrupted"))
    assert (found.verdict, found.judged, found.reason) == ("undecided", False, "exploratory: not finished")
    assert len(found.points) == 5


def test_a_size_that_the_claim_is_not_about_is_not_judged(tmp_path):
    found = verdict(BY_ID["C1"], runs(tmp_path, "learn", [True] * 5, size="tiny"))
    assert (found.verdict, found.judged) == ("undecided", False)
    assert "tiny" in found.reason


def test_sizes_and_settings_are_judged_apart(tmp_path):
    given = runs(tmp_path / "a", "learn", [True] * 5) + runs(tmp_path / "b", "learn", [False] * 5, size="narrow")
    given += runs(tmp_path / "c", "learn", [False] * 5, settings='device = "cuda"\n[training]\npacking = "tree"\n')
    found = judge(given, [BY_ID["C1"]])
    assert [(one.size, one.verdict) for one in found] == [
        ("narrow", "fails"),
        ("small", "holds"),  # the law of evidence comes first
        ("small, training.packing=tree", "fails"),
    ]
    given += runs(tmp_path / "d", "learn", [True] * 5, settings="[training]\nbatch = 13\n")
    assert judge(given[::-1], [BY_ID["C1"]]) == judge(given, [BY_ID["C1"]])
    assert (
        found[1].command
        == "nucleate sweep learn --size small --seed 5..9 --out DIR && nucleate claims DIR/seed*/ --out DIR"
    )
    assert "--size small --fast --seed 5..9" in found[2].command and "packing" not in found[2].command


def test_a_usual_setting_or_one_that_no_number_depends_on_makes_no_group_of_its_own(tmp_path):
    usual = '[training]\npacking = "rows"\nepochs = 200\n[measure]\ndisplay_iterations = 7\n'
    given = runs(tmp_path / "a", "learn", [True] * 3)
    given += runs(tmp_path / "b", "learn", [True] * 2, first=8, settings=usual)
    (found,) = judge(given, [BY_ID["C1"]])
    assert (found.size, found.verdict) == ("small", "holds")


def test_the_same_run_twice_is_refused(worlds):
    with pytest.raises(Refused, match="seed 5; give one"):
        judge([*worlds["learn"]["true"], worlds["learn"]["true"][0]])


def test_a_run_that_no_claim_is_about_is_refused(tmp_path):
    run = load_run(write_run(tmp_path / "x", [], verb="sing", seed=0))
    with pytest.raises(Refused, match="'sing'"):
        judge([run])


def test_claims_without_a_run_are_listed_as_not_run(worlds):
    found = judge(worlds["learn"]["true"])
    assert [claim.id for claim in not_run(found)] == ["C14", "C15", "C16", "C17", "C18a", "C18b", "C18c", "C18d"]
    missing = not_run([])
    assert [claim.id for claim in missing] == [claim.id for claim in CLAIMS]
    (probe,) = (claim.command for claim in missing if claim.id == "C15")
    assert probe == "nucleate probe MODEL natural --seed 0 --out RUN && nucleate claims RUN"
    for claim in missing:
        assert ("--fast" in claim.command) == ("sweep pretrain" in claim.command or "sweep align" in claim.command)


def test_a_run_without_the_rows_gives_no_point_and_no_verdict(tmp_path):
    found = judge(runs(tmp_path, "learn", [True] * 5, change=lambda rows: rows[:1]))
    undefined = {one.claim for one in found if one.verdict == "undefined"}
    assert undefined == {"C6", "C9", "C10", "C11a", "C11b", "N1", "N2", "N3"} and {one.verdict for one in found} == {
        "undefined",
        "undecided",
    }
    assert all("not measured for seeds 5, 6, 7, 8, 9" in one.reason for one in found if one.verdict == "undecided")
    assert all(one.estimate is None and one.low is None and not one.points for one in found)


# --- the rule ---------------------------------------------------------------------------------------------------------

CLAIM = replace(BY_ID["C1"], threshold=0.5, controls=("untrained",))


def by_seed(values):
    return dict(enumerate(values))


def test_one_seed_on_the_other_side_leaves_it_undecided():
    controls = {seed: {"untrained": 0.1} for seed in range(5)}
    assert decide(CLAIM, by_seed([0.6, 0.7, 0.8, 0.9, 0.49]), controls)[0] == "undecided"
    assert decide(CLAIM, by_seed([0.6, 0.7, 0.8, 0.9, 0.51]), controls)[0] == "holds"


def test_an_interval_across_the_threshold_leaves_it_undecided():
    controls = {seed: {"untrained": 0.1} for seed in range(5)}
    points = by_seed([0.501, 0.501, 0.501, 0.501, 0.9])  # all above, but one far away
    assert decide(CLAIM, points, controls) == ("undecided", "the 95 % interval includes the threshold")


def test_an_interval_of_the_paired_difference_across_zero_leaves_it_undecided():
    points = by_seed([0.81, 0.82, 0.8, 0.8, 0.83])
    controls = {seed: {"untrained": point - (0.5 if seed == 2 else 0.001)} for seed, point in points.items()}
    includes_zero = "the 95 % interval of the paired difference includes zero"
    assert decide(CLAIM, points, controls) == ("undecided", includes_zero)


def test_differences_are_paired_by_seed():
    points = by_seed([0.6, 0.7, 0.8, 0.9, 1.0])
    controls = {seed: {"untrained": point - 0.05} for seed, point in points.items()}  # overlap, yet always below
    assert decide(CLAIM, points, controls)[0] == "holds"


def test_to_be_exactly_at_the_threshold_is_not_beyond_it():
    assert decide(replace(CLAIM, controls=()), by_seed([0.5] * 5), {})[0] == "fails"


@given(
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.floats(0, 1),
)
def test_below_is_above_in_a_mirror(points, controls, threshold):
    above = replace(CLAIM, threshold=threshold)
    below = replace(CLAIM, threshold=-threshold, direction="below")
    beaten = {seed: {"untrained": value} for seed, value in enumerate(controls)}
    mirrored = {seed: {"untrained": -value} for seed, value in enumerate(controls)}
    found = decide(above, by_seed(points), beaten)
    assert found == decide(below, by_seed([-point for point in points]), mirrored)
    if found[0] == "holds":
        assert min(points) > threshold
        assert all(point > control for point, control in zip(points, controls, strict=True))


# --- quantities with known answers ------------------------------------------------------------------------------------


def curve(values, **row):
    return frame([{"epoch": epoch, "value": value, **row} for epoch, value in values.items()])


F1 = {"measure": "f1", "split": "subset", "labels": "task", "space": "raw", "layer": 6, "read": "input"}


def test_late_is_the_mean_over_the_measured_epochs_of_the_last_tenth():
    values = {epoch: float(epoch > 180) * epoch / 1000 for epoch in [*range(21), *range(25, 201, 5)]}
    assert quantities.late_f1_subset(curve(values, **F1)) == pytest.approx((0.185 + 0.19 + 0.195 + 0.2) / 4)


def test_each_epoch_takes_its_better_space_and_controls_do_so_too():
    raw, tsne = curve({9: 0.2, 10: 0.4}, **F1), curve({9: 0.9, 10: 0.6}, **{**F1, "space": "tsne"})
    table = pl.concat([raw, tsne])
    assert quantities.late_f1_subset(table) == 0.6
    shuffled = table.with_columns(control=pl.lit("shuffled"))
    assert quantities.late_f1_subset(pl.concat([table, shuffled]), "shuffled") == 0.6
    averaged = curve({10: 0.99}, **{**F1, "space": "averaged"})
    assert quantities.late_f1_subset(pl.concat([table, averaged])) == 0.6


def test_language_models_are_laid_out_only_where_every_control_is():
    place = {"model": "m", "split": "all", "layer": 2, "read": "input", "measure": "f1", "labels": "task"}
    own = [{**place, "space": "raw", "value": 0.80}, {**place, "space": "tsne", "value": 0.93}]
    bare = {**place, "layer": None, "read": None, "control": "surface_prompt"}
    plain = frame([*own, {**bare, "space": "raw", "value": 0.84}])
    assert (applications.category_f1(plain), applications.category_f1(plain, "surface_prompt")) == (0.80, 0.84)
    both = frame([*own, {**bare, "space": "raw", "value": 0.84}, {**bare, "space": "tsne", "value": 0.90}])
    assert (applications.category_f1(both), applications.category_f1(both, "surface_prompt")) == (0.93, 0.90)
    assert (applications.best_f1(plain, "raw"), applications.best_f1(plain, "tsne")) == (0.80, 0.93)


def test_on_two_splits_a_control_is_as_far_below_as_where_it_comes_nearest():
    levels = {("validation", "none"): 0.95, ("test", "none"): 0.90, ("validation", "shuffled"): 0.93}
    levels["test", "shuffled"] = 0.5
    levels["subset", "none"] = 0.97
    tables = [curve({10: v}, **{**F1, "split": s, "control": c}) for (s, c), v in levels.items()]
    table = pl.concat(tables)
    assert quantities.unseen_less_subset(table) == pytest.approx(0.90 - 0.97)
    assert quantities.unseen_less_subset(table, "shuffled") == pytest.approx(0.90 - 0.97 - (0.95 - 0.93))
    assert quantities.unseen_less_subset(pl.concat([*tables[:3], tables[4]]), "shuffled") is None


def test_what_a_network_that_has_not_learnt_waits_for_is_undefined(tmp_path):
    def dull(rows):
        return [{**row, "value": row["value"] / 8} if row["measure"] == "accuracy" else row for row in rows]

    given = runs(tmp_path, "learn", [True] * 5, change=dull)
    for name in ("C9", "C10", "C11a", "C11b"):
        found = verdict(BY_ID[name], given)
        assert (found.verdict, found.points) == ("undefined", {})
        assert "has not learnt" in found.reason and "--seed 5..9" in found.command
    one = verdict(BY_ID["C9"], given)
    assert max(seed["accuracy, validation"] for seed in one.beside.values()) < quantities.GUESSED
    some = verdict(BY_ID["C9"], [*runs(tmp_path / "learnt", "learn", [True] * 4), given[-1]])
    assert (some.verdict, some.reason) == ("undecided", "undefined for seed 9")


def test_probes_of_other_data_or_by_other_options_are_other_runs_and_judge_nothing(tmp_path):
    ours = runs(tmp_path / "ours", "probe", [True] * 5)
    mine = runs(tmp_path / "mine", "probe", [True] * 5, size="my.jsonl", settings='template = "a"\n')
    again = runs(tmp_path / "again", "probe", [True] * 5, size="my.jsonl", settings='template = "b"\n')
    found = sorted(judge([*ours, *mine, *again]), key=lambda one: one.size)
    assert [one.verdict for one in found] == ["holds", "undecided", "undecided"]
    assert [one.size.endswith(" on my.jsonl") for one in found] == [False, True, True]
    assert "not judged at size my.jsonl" in found[1].reason and " my.jsonl --seed 0 " in found[1].command


def test_what_training_adds_is_told_from_before_the_first_step():
    assert quantities.f1_gain(curve({0: 0.3, 5: 0.9, 10: 0.7}, **F1)) == pytest.approx(0.4)
    assert quantities.f1_gain(curve({1: 0.3, 10: 0.7}, **F1)) is None
    layers = [curve({0: 0.5, 10: value}, **{**F1, "layer": layer}) for layer, value in enumerate((0.46, 0.6, 0.9))]
    table = pl.concat(layers)
    assert quantities.change_of_layer_0(table) == pytest.approx(0.04)
    assert quantities.change_of(table, -1) == pytest.approx(0.4)
    assert quantities.peak_layer(table) == 2


CENTRED = {**F1, "space": "centred"}


def by_layer(split, values, **row):
    """Late values of layers 0, 1, ... on one split, and 0.1 at epoch 0."""
    here = {**CENTRED, "split": split, **row}
    return [curve({0: 0.1, 10: value}, **{**here, "layer": layer}) for layer, value in enumerate(values)]


def test_a_middle_layer_is_chosen_on_validation_and_told_on_test_for_each_control_as_well():
    table = pl.concat(
        [
            *by_layer("validation", [0.99, 0.5, 0.8, 0.7, 0.99]),  # layer 2; the first and the last are none
            *by_layer("test", [0.9, 0.8, 0.6, 0.95, 0.9]),
            *by_layer("validation", [0, 0.2, 0.1, 0.3, 0], control="shuffled"),
            *by_layer("test", [0, 0.5, 0.5, 0.25, 0.5], control="shuffled"),
            *by_layer("validation", [0, 0.3, 0.2, 0.1, 0], control="regrouped"),
            *by_layer("test", [0, 0.35, 0.5, 0.5, 0.5], control="regrouped"),
        ]
    )
    assert quantities.told_layer(table) == 2 and quantities.told_centred_f1(table) == 0.6
    assert quantities.told_centred_f1(table, "shuffled") == 0.25
    assert quantities.told_centred_f1(table, "regrouped") == 0.35
    assert quantities.told_centred_f1(table, "untrained") == 0.1
    assert quantities.told_centred_f1(table, "answers") is None and quantities.lead_of_centred_f1(table) is None
    bare = [
        curve({None: value}, **{**CENTRED, "split": "test", "layer": None, "control": control})
        for control, value in (("surface_instruction", 0.2), ("surface_prompt", 0.3), ("answers", 0.38))
    ]
    whole = pl.concat([table, *bare])
    assert quantities.lead_of_centred_f1(whole) is None  # nothing says that it has learnt
    learnt = [curve({0: 0.0, 10: right}, measure="accuracy", split="validation") for right in (0.1, 0.9)]
    assert quantities.lead_of_centred_f1(pl.concat([whole, learnt[0]])) is None
    assert quantities.lead_of_centred_f1(pl.concat([whole, learnt[1]])) == pytest.approx(0.6 - 0.38)


def test_hard_examples_are_judged_by_their_nearest_neighbour():
    rows = {"measure": "hard_share_own_k1", "split": "subset", "labels": "task", "space": "raw", "layer": 6}
    table = pl.concat([curve({10: 0.7}, **rows), curve({10: 0.2}, **{**rows, "measure": "hard_share_origin_k1"})])
    assert quantities.hard_margin(table) == pytest.approx(0.5)
    assert quantities.hard_margin(table, suffix="") is None


def test_the_turn_to_answers_is_what_training_adds_to_the_difference_of_two_shares():
    rows = {"split": "validation", "space": "centred", "layer": 6}

    def table(dealt, right):
        return pl.concat(
            [
                curve({0: 0.3, 10: 0.7}, measure="variance_output", **rows),
                curve({0: 0.2, 10: 0.4}, measure="variance_task", **rows),
                curve({0: 0.3, 10: dealt}, measure="variance_output", control="shuffled", **rows),
                curve({0: 0.0, 10: right}, measure="accuracy", split="validation"),
            ]
        )

    assert quantities.turn_to_answers(table(0.3, 0.9)) == pytest.approx((0.7 - 0.4) - (0.3 - 0.2))
    # A vector of its own for each pair of task and input: outputs dealt anew explain as much.
    assert quantities.turn_to_answers(table(0.7, 0.9)) == pytest.approx(0)
    assert quantities.turn_to_answers(table(0.3, 0.1)) is None  # it has not learnt


def test_the_slope_over_layers_leaves_layer_0_out():
    tables = [curve({0: 0.3, 10: value}, **{**F1, "layer": layer}) for layer, value in enumerate([0.0, 0.5, 0.6, 0.7])]
    assert quantities.f1_gain_per_layer(pl.concat(tables)) == pytest.approx(0.1)
    assert quantities.f1_gain_per_layer(pl.concat(tables), "untrained") == pytest.approx(0.0, abs=1e-12)


def test_waiting_is_at_most_a_tenth_for_a_straight_rise_and_more_for_a_late_one():
    def table(accuracy, loss):
        rows = [{"measure": "loss", "split": "train", "epoch": e, "value": loss(e)} for e in range(1, 101)]
        for split in ("subset", "validation"):
            rows += [{"measure": "accuracy", "split": split, "epoch": e, "value": accuracy(e)} for e in range(101)]
        return frame(rows)

    def falling(epoch):
        return -float(epoch)

    straight = quantities.waiting_share(table(lambda e: min(1, 1 / 25 + e / 50), falling))
    assert straight is not None and 0 < straight <= 0.1
    slowing = quantities.waiting_share(table(lambda e: 1 - 0.96 * math.exp(-e / 20), falling))
    assert slowing is not None and slowing < straight
    late = quantities.waiting_share(table(lambda e: float(e >= 10), falling))
    assert late == pytest.approx(9 / 10)
    assert quantities.waiting_share(table(lambda e: float(e >= 10), lambda e: (-1.0) ** e)) == 0.0


def test_the_lead_counts_from_where_each_stays_above_half():
    accuracy = {epoch: min(1.0, epoch / 40) for epoch in range(101)}  # above half from 21 on
    f1 = {epoch: (0.9 if epoch == 3 else 0.0) + 0.8 * (epoch >= 10) for epoch in range(101)}  # once before, too early
    learnt = curve(accuracy, measure="accuracy", split="validation")
    right = curve(accuracy, measure="accuracy", split="test")

    def table(clusters):
        layers = [
            curve(clusters, **{**CENTRED, "split": split, "layer": n})
            for split in ("validation", "test")
            for n in range(3)
        ]
        return pl.concat([learnt, right, *layers])

    assert quantities.clustering_lead(table(f1)) == 21 - 10
    assert quantities.clustering_lead(table({epoch: f1[epoch] for epoch in range(0, 101, 20)})) == 40 - 20
    assert quantities.stays_above_half({0: 0.4, 1: 0.45, 2: 0.7, 3: 0.8}) == 2  # half of the rise, not of the level
    assert quantities.stays_above_half({0: 1.0, 1: 0.2, 2: 0.4}) is None
    late = {epoch: 0.5 * (epoch >= 95) for epoch in range(101)}
    assert quantities.clustering_lead(table(late)) == 21 - 95


def test_a_best_epoch_at_the_very_end_leaves_nothing_to_persist_in(tmp_path):
    def later(rows):
        return [{**row, "value": row["epoch"] / 40} if row["measure"] == "accuracy" else row for row in rows]

    given = runs(tmp_path, "learn", [True] * 5, change=later)
    assert verdict(BY_ID["C11a"], given).verdict == "undefined"
    assert verdict(BY_ID["C11b"], given).verdict == "fails"


def test_what_persists_is_told_from_the_last_measured_epoch_up_to_the_best_one():
    accuracy = {epoch: min(epoch, 12) / 20 for epoch in range(41)}  # the best epoch is 12
    clustering = {0: 0.2, 5: 0.5, 10: 0.9, 15: 0.7, 40: 0.8}
    table = pl.concat(
        [
            curve(accuracy, measure="accuracy", split="validation", experiment="learn"),
            curve(clustering, **{**F1, "split": "validation"}),
        ]
    )
    assert quantities.persistence(table) == pytest.approx(0.8 - 0.9)
    assert quantities.best_epoch_to_saturation(table) == pytest.approx((12 - 10) / 40)
    falling = curve({0: 0.9, 10: 0.5, 40: 0.4}, **{**F1, "split": "validation"})
    table = pl.concat([curve(accuracy, measure="accuracy", split="validation", experiment="learn"), falling])
    assert quantities.best_epoch_to_saturation(table) is None


# --- other widths -----------------------------------------------------------------------------------------------------


def test_another_width_holds_where_its_verdicts_are_those_at_256(worlds, tmp_path):
    claims = [claim for claim in CLAIMS if claim.id in ("C1", "C3", "C12", "C13", "C14")]

    def of_width_32(given):
        (found,) = (one for one in judge(given, claims) if one.claim == "C14")
        return found

    for truth in ("true", "false"):
        alike = runs(tmp_path / truth, "learn", [truth == "true"] * 5, size="narrow")
        apart = runs(tmp_path / f"not {truth}", "learn", [truth != "true"] * 5, size="narrow")
        assert of_width_32([*worlds["learn"][truth], *alike]).verdict == "holds"
        assert of_width_32([*worlds["learn"][truth], *apart]).verdict == "fails"
        assert of_width_32(alike).points == {} and of_width_32(alike).verdict == "undefined"

    def dull(rows):
        return [{**row, "value": row["value"] / 8} if row["measure"] == "accuracy" else row for row in rows]

    unlearnt = runs(tmp_path / "dull", "learn", [True] * 5, size="narrow", change=dull)
    assert of_width_32([*worlds["learn"]["true"], *unlearnt]).verdict == "undefined"
    assert verdicts_alike(worlds["learn"]["true"][0].metrics) is None


def test_of_several_methods_the_one_that_loses_more_has_to_lose_less():
    table = frame(rows_of("align", true=True))
    relief = applications.relief(table, worse="head", better=("linear_switch", "mlp_switch"))
    assert relief == pytest.approx(0.12 - 0.09)
    assert applications.relief(table, worse="head", better=("linear_switch", "none such")) is None
    assert applications.lowest_source_accuracy(table) == 1.0


def test_the_families_of_table_1_are_told_apart_by_name():
    assert applications.family_gap(frame(rows_of("probe", true=True))) == pytest.approx(0.5)
    lone = [row for row in rows_of("probe", true=True) if row["model"] != "GPT-J-6B"]
    assert applications.family_gap(frame(lone)) is None


# --- once more, by others ---------------------------------------------------------------------------------------------


def recomputed(folders):
    script = Path(__file__).parent / "recompute_claims.py"
    done = subprocess.run([sys.executable, str(script), *map(str, folders)], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", ["C1", "C3", "C6", "C12", "N1", "N3"])
def test_an_independent_script_finds_the_same_from_the_stored_tables(name, worlds):
    again = recomputed([run.folder for run in worlds["learn"]["mixed"]])[name]
    one = verdict(BY_ID[name], worlds["learn"]["mixed"])
    assert list(one.points.values()) == pytest.approx(again["points"])
    assert [one.estimate, one.low, one.high] == pytest.approx(again["estimate"])
    if BY_ID[name].controls:
        assert [one.difference, one.difference_low, one.difference_high] == pytest.approx(again["difference"])


def test_an_independent_script_finds_the_same_in_a_real_run(micro_run):
    again = recomputed([micro_run])
    found = {one.claim: one for one in judge([load_run(micro_run)])}
    for name in ("C1", "C3", "C6", "C12", "N1"):
        assert [found[name].estimate] == pytest.approx(again[name]["points"])
        assert name == "N1" or [found[name].difference] == pytest.approx(again[name]["difference"][:1])
    assert all(not one.judged for one in found.values())  # micro is for tests, whatever the seed
    assert {one.claim for one in found.values() if one.estimate is None} <= {"C7", "C9", "C10", "C11a", "C11b", "N3"}


def test_judging_loads_no_torch():
    check = "import nucleate.claims.verdicts, sys; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


def test_the_judged_seeds_are_5_to_9_and_of_what_the_first_ledger_keeps_0_to_4():
    seeds = {claim.id: list(claim.seeds) for claim in CLAIMS}
    kept = {"C15", "C16", "C17", "C18a", "C18b", "C18c", "C18d"}
    assert all(found == ([0, 1, 2, 3, 4] if name in kept else [5, 6, 7, 8, 9]) for name, found in seeds.items())
