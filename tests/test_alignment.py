"""The alignment experiment: what each method may see, which model is chosen, and a run small but whole."""

import shutil
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch

from nucleate.claims.applications import chosen_model, lowest_source_accuracy, relief
from nucleate.cli import main
from nucleate.config import configure
from nucleate.data.synthetic import generate
from nucleate.paper import alignment, methods
from nucleate.paper.alignment import METHODS, align
from nucleate.paper.corrections import Network
from nucleate.paper.network import make_network
from nucleate.parts import METRICS
from nucleate.refusal import Refused
from nucleate.runs import load_run

CONFIG = configure("micro", seed=3)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory):
    """A finished micro run, made through the command line."""
    folder = tmp_path_factory.mktemp("align") / "micro"
    assert main(["align", "--size", "micro", "--seed", "3", "--out", str(folder)]) == 0
    return folder


@pytest.fixture(scope="module")
def network():
    """An untrained one: what is taught to whom does not depend on what it knows."""
    dataset = generate(CONFIG.data, seed=CONFIG.seed, kind="alignment")
    model, _ = make_network(CONFIG, dataset, device="cpu")
    return Network(model, dataset, CONFIG.seed)


def test_the_run_folder_holds_table_2_its_curves_and_the_network_before(aligned):
    run = load_run(aligned)
    assert run.manifest["status"] == "done"
    assert set(run.manifest["checkpoints"]) == {"base"}
    table = run.metrics
    assert table.schema == METRICS
    assert set(table["experiment"]) == {"align"}
    assert set(table["arm"]) == {"main", *METHODS}
    for method in METHODS:
        rows = table.filter(pl.col("arm") == method, pl.col("split") == "test")
        chosen = set(rows.filter(pl.col("epoch").is_null())["measure"])
        assert {"source_accuracy", "accuracy_drop", "accuracy_drop_others", "others_accuracy_before"} <= chosen
        assert {"conditional_source_accuracy", "conditional_sources_kept", "second_sources_kept"} <= chosen
        examples = {f"accuracy_drop_n{count}" for count in (2, 5, 10)}
        switch_alone = examples | {"switch_false_positives", "switch_misses", "conditional_sources_kept_n10"}
        assert (chosen & switch_alone) == (switch_alone if method.endswith("switch") else set())
        curve = rows.filter(pl.col("measure") == "accuracy_drop", pl.col("epoch").is_not_null()).sort("epoch")
        assert curve["epoch"].to_list() == [0, 1, 2]
        assert curve["value"][0] == 0
    assert relief(table, worse="head", better=("linear_switch", "mlp_switch")) is not None
    assert lowest_source_accuracy(table) is not None
    assert (aligned / "figures" / "figure_alignment.svg").is_file()
    assert (aligned / "page.html").is_file()


def test_the_chosen_models_numbers_are_those_of_its_epoch_on_the_curve(aligned):
    table = load_run(aligned).metrics
    for method in METHODS:
        rows = table.filter(pl.col("arm") == method)
        epoch = rows.filter(pl.col("measure") == "chosen_epoch")["value"].item()
        for measure in ("source_accuracy", "accuracy_drop"):
            curve = rows.filter(pl.col("measure") == measure, pl.col("split") == "test", pl.col("epoch") == int(epoch))
            assert curve["value"].item() == chosen_model(table, method, measure)


def test_a_run_that_is_stopped_anywhere_and_resumed_has_the_bytes_of_an_unbroken_one(aligned, tmp_path):
    config, wanted = configure("micro", seed=3), (aligned / "metrics.parquet").read_bytes()
    for moment in (1, 4, 7, 9):
        calls = 0

        def stop(text, fraction, last=moment):
            nonlocal calls
            calls += 1
            if calls == last:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            align(config, tmp_path / "run", progress=stop)
        assert align(config, tmp_path / "run", resume=True)
        assert (tmp_path / "run" / "metrics.parquet").read_bytes() == wanted, moment
        assert not align(config, tmp_path / "run", resume=True)
        shutil.rmtree(tmp_path / "run")


def test_the_lesson_is_the_source_tasks_alone_answered_as_their_targets_answer(network):
    lesson, dataset = network.redirection.lesson.instances, network.dataset
    assert {instance.task for instance in lesson} == set(network.pairs)
    assert {instance.split for instance in lesson} == {"train"}
    for instance in lesson:
        assert instance.output == dataset.mappings[network.pairs[instance.task]][instance.input]
        assert instance.output != dataset.mappings[instance.task][instance.input]


def test_the_switch_sees_one_instance_of_each_other_task_and_more_are_more_of_the_same(network):
    correction = network.redirection
    assert set(correction.others) == set(network.dataset.mappings) - set(network.pairs)
    one, three = correction.examples(1), correction.examples(3)
    assert len(one) == len(correction.others)
    assert len(three) == 3 * len(one)
    assert torch.allclose(three[::3], one, atol=1e-5)


def test_what_is_asked_is_unseen_and_only_the_sources_shall_change(network):
    correction = network.redirection
    assert {instance.split for instance in correction.asked.instances} == {"validation", "test"}
    for instance, corrected in zip(correction.asked.instances, correction.corrected, strict=True):
        assert corrected == (instance.task in network.pairs)
        own = network.dataset.mappings[instance.task][instance.input]
        assert (instance.output != own) == corrected


def test_a_conditional_correction_asks_every_source_with_and_without_the_symbol(network):
    correction, dataset = network.conditional, network.dataset
    (symbol,) = {instance.instruction.split()[0] for instance in correction.lesson.instances}
    known = {instance.instruction for instance in dataset.instances}
    assert all(instance.instruction.removeprefix(f"{symbol} ") in known for instance in correction.lesson.instances)
    assert not known & {instance.instruction for instance in correction.lesson.instances}
    for instance, corrected in zip(correction.asked.instances, correction.corrected, strict=True):
        assert corrected == (instance.task in network.pairs and instance.instruction not in known)
        assert (instance.output != dataset.mappings[instance.task][instance.input]) == corrected
    unmarked = correction.of_source & ~correction.corrected
    assert unmarked.sum() == network.redirection.corrected.sum() > 0
    assert set(network.pairs) <= set(correction.others)  # without the symbol a source is a task like any other


def test_a_second_correction_wants_the_first_ones_answers_to_stay(network):
    second, pairs = network.second, network.pairs
    assert {instance.task for instance in second.lesson.instances} == set(pairs.values())
    assert set(second.corrected.tolist()) == {True, False}
    swapped = pairs | {target: source for source, target in pairs.items()}
    for instance, corrected in zip(second.asked.instances, second.corrected, strict=True):
        assert corrected == (instance.task in pairs.values())
        task = swapped.get(instance.task, instance.task)
        assert instance.output == network.dataset.mappings[task][instance.input]


def test_the_chosen_model_is_the_best_on_validation_then_the_earliest_then_of_the_lowest_rate(network, monkeypatch):
    correction = network.redirection
    wrong = np.where(correction.corrected & correction.places("validation"), -1, correction.wished)
    half = wrong.copy()
    half[np.flatnonzero(wrong == -1)[::2]] = correction.wished[np.flatnonzero(wrong == -1)[::2]]
    told = {  # answers by epoch; those on test never count
        0.1: (wrong, half, correction.wished, correction.wished),
        0.01: (half, half, correction.wished, wrong),
        0.001: (half, half, half, correction.wished),
    }

    def attempt(_, method, rate, config):
        for epoch, answers in enumerate(told[rate], start=1):
            yield methods.EpochAnswers(epoch, rate, answers, None, {})

    monkeypatch.setattr(methods, "attempt", attempt)
    chosen, curve = methods.best_attempt(correction, "head", list(told), CONFIG)
    assert (chosen.epoch, chosen.rate) == (3, 0.01)
    assert [answers is told[0.01][epoch - 1] for epoch, answers in curve] == [
        True
    ] * 4  # to the end, though chosen at 3
    chosen, curve = methods.best_attempt(correction, "head", [0.001], CONFIG)
    assert (chosen.epoch, chosen.rate) == (4, 0.001)
    told[0.001] = (half, wrong, half, half)
    chosen, curve = methods.best_attempt(correction, "head", [0.001], CONFIG)
    assert (chosen.epoch, chosen.rate) == (1, 0.001)


def test_scores_of_hand_placed_answers(network):
    """A switch that is on for half of the sources and for one other instance, and answers rightly wherever it is on."""
    correction = network.redirection
    here = correction.places("test")
    sources, kept = np.flatnonzero(here & correction.corrected), np.flatnonzero(here & ~correction.corrected)
    knowing = replace(correction)
    before = correction.wished.copy()
    before[correction.corrected] = -1
    knowing.__dict__["answers_and_states"] = (before, None)
    answers, on = before.copy(), np.zeros(len(before), dtype=bool)
    on[sources[: len(sources) // 3]] = True
    answers[on] = correction.wished[on]
    on[kept[0]], answers[kept[0]] = True, -2
    scores = alignment._scores(knowing, methods.EpochAnswers(1, 0.1, answers, on, {}), "test")
    assert scores["source_accuracy"] == pytest.approx(1 / 3)
    assert scores["others_accuracy_before"] == 1
    assert scores["accuracy_drop"] == pytest.approx(1 / len(kept))
    assert scores["others_kept"] == pytest.approx(1 - 1 / len(kept))
    assert scores["switch_false_positives"] == pytest.approx(1 / len(kept))
    assert scores["switch_misses"] == pytest.approx(2 / 3)


def test_settings_that_cannot_work_are_refused_before_anything_is_written(tmp_path):
    cases = {
        "align.lowest_rate": ("0", "must lie above 0"),
        "align.highest_rate": ("1e-9", "not above align.highest_rate"),
        "data.max_length": ("61", "leaves no position"),
    }
    for key, (value, says) in cases.items():
        with pytest.raises(Refused, match=says):
            align(configure("micro", changes={key: value}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_setting_of_the_alignment_reaches_what_it_names(network):
    correction = network.redirection

    def taught(**changes):
        config = replace(CONFIG, align=replace(CONFIG.align, **changes))
        rates = alignment._rates(config)
        outcomes = list(methods.attempt(correction, "head", rates[0], config))
        return len(rates), rates[-1], len(outcomes), outcomes[0].taught["up.weight"]

    plain = taught()
    assert taught(rates=5)[0] == 5
    assert taught(highest_rate=1.0)[1] == pytest.approx(1.0)
    assert taught(epochs=4)[2] == 4
    for changes in ({"batch": 12}, {"lowest_rate": 5e-4}):
        assert not torch.equal(taught(**changes)[3], plain[3])


@pytest.mark.timeout(300)
def test_at_size_tiny_all_methods_fix_the_sources_and_both_switches_forget_less_than_fine_tuning(tmp_path):
    assert align(configure("tiny"), tmp_path / "run")
    table = load_run(tmp_path / "run").metrics
    drops = {method: chosen_model(table, method, "accuracy_drop") for method in METHODS}
    assert chosen_model(table, "direct", "others_accuracy_before") > 0.8
    for method in METHODS:
        assert chosen_model(table, method, "source_accuracy") > 0.9, method
    assert max(drops["linear_switch"], drops["mlp_switch"]) < drops["direct"], drops
