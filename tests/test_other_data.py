"""Stochastic mappings, and inputs inside the instruction: what the data say, what is taught, what counts as right."""

import json
from collections import defaultdict
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import nucleate
from nucleate.config import DataSettings, configure
from nucleate.data.dataset import Dataset, load_dataset
from nucleate.data.inside import MARK, text_of
from nucleate.data.synthetic import generate
from nucleate.model.networks import word_tokenizer
from nucleate.paper import alignment, pretraining
from nucleate.paper.instances import Members, taught
from nucleate.paper.learning import learn
from nucleate.probing.probe import probe
from nucleate.refusal import Refused
from nucleate.runs import load_run
from test_synthetic import assert_all_rules_hold


@pytest.fixture(scope="module")
def stochastic() -> Dataset:
    return generate(DataSettings(likeliest=0.7), seed=0)


@pytest.fixture(scope="module")
def inside() -> Dataset:
    return generate(DataSettings(input_place="inside"), seed=0)


@pytest.fixture(scope="module")
def plain() -> Dataset:
    return generate(DataSettings(), seed=0)


# --- stochastic mappings ------------------------------------------------------------------------------------------


def test_the_rows_hold_the_likeliest_output_and_are_those_of_tasks_that_are_functions(stochastic, plain, tmp_path):
    assert stochastic.instances == plain.instances and stochastic.mappings == plain.mappings
    assert_all_rules_hold(stochastic, tmp_path)
    assert set(stochastic.settings) - set(plain.settings) == {"likeliest", "second_outputs", "taught_second"}
    assert generate(DataSettings(likeliest=0.7), seed=0) == stochastic != generate(DataSettings(likeliest=0.8), seed=0)
    assert set(json.loads((tmp_path / "dataset.json").read_text(encoding="utf-8"))) == {
        *("settings", "vocabulary", "patterns", "mappings", "counts")
    }


def test_every_input_of_every_task_has_a_second_output_which_is_right_for_no_task(stochastic):
    seconds, right = stochastic.settings["second_outputs"], defaultdict(set)
    for function in stochastic.mappings.values():
        for x, y in function.items():
            right[x].add(y)
    assert {task: set(function) for task, function in seconds.items()} == {
        task: set(function) for task, function in stochastic.mappings.items()
    }
    for function in seconds.values():
        assert all(y in stochastic.vocabulary["task"] and y != x and y not in right[x] for x, y in function.items())


def test_three_in_ten_training_instances_are_taught_the_second_output_and_no_other_instance_is(stochastic, plain):
    lesson = taught(stochastic)
    rows = stochastic.select("train")
    assert [one.instance for one in lesson] == [one.instance for one in rows]
    seconds = stochastic.settings["second_outputs"]
    other = [one for one, row in zip(lesson, rows, strict=True) if one != row]
    assert all(one.output == seconds[one.task][one.input] for one in other)
    assert [one.instance for one in other] == stochastic.settings["taught_second"]
    assert abs(len(other) / len(rows) - 0.3) < 4 * (0.3 * 0.7 / len(rows)) ** 0.5
    assert tuple(taught(plain)) == plain.select("train")


def test_what_is_trained_on_has_the_taught_outputs_and_what_is_measured_the_likeliest(tmp_path, monkeypatch):
    from nucleate.paper import learning

    seen = {}
    prepared = learning._prepare

    def look(*arguments):
        seen["study"] = prepared(*arguments)
        return seen["study"]

    monkeypatch.setattr(learning, "_prepare", look)
    changes = {"data.likeliest": "0.7", "training.epochs": "2"}
    assert learn(configure("micro", seed=3, changes=changes), tmp_path / "run")
    study = seen["study"]
    seconds, right = study.dataset.settings["second_outputs"], study.dataset.mappings
    code = study.tokenizer.get_vocab()

    def answers(name):
        members = study.members[name]
        targets = [target for group in members.groups for target in group.targets]
        return zip(members.instances, targets, strict=True)

    for name in ("measured", "all"):
        assert all(target == (code[right[one.task][one.input]],) for one, target in answers(name))
    chosen = set(study.dataset.settings["taught_second"])
    for one, target in answers("train"):
        assert target == (code[(seconds if one.instance in chosen else right)[one.task][one.input]],)
    assert 0 < len(chosen) < len(study.members["train"].instances) / 2


def test_pretraining_and_alignment_teach_them_too(tmp_path, monkeypatch):
    counted = []

    def count(dataset):
        lesson = taught(dataset)
        counted.append(sum(a != b for a, b in zip(lesson, dataset.select("train"), strict=True)))
        return lesson

    for room in (pretraining, alignment):
        monkeypatch.setattr(room, "taught", count)
    changes = {"data.likeliest": "0.7", "training.epochs": "1", "pretrain.epochs": "1", "pretrain.unseen": "no"}
    changes |= {"align.epochs": "1", "align.rates": "1"}
    assert pretraining.pretrain(configure("micro", seed=3, changes=changes), tmp_path / "pretrain")
    assert counted[-1] > 0 and 0 in counted  # names of tasks are no mapping
    counted.clear()
    assert alignment.align(configure("micro", seed=3, changes=changes), tmp_path / "align")
    assert counted[0] > 0


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"likeliest": 0.5}, "above 0.5"),
        ({"likeliest": 1.5}, "at most 1"),
        ({"likeliest": 0.7, "inputs": "shared", "task_symbols": 56}, "raise data.task_symbols"),
    ],
)
def test_a_share_that_is_not_the_likeliest_or_no_room_for_second_outputs_is_refused(settings, says):
    with pytest.raises(Refused, match=says):
        generate(DataSettings(**settings), seed=0)


# --- inputs inside ------------------------------------------------------------------------------------------------


def test_an_input_inside_stands_between_two_symbols_of_its_instruction_always_at_the_same_place(
    inside, plain, tmp_path
):
    assert inside.instances == plain.instances and inside.settings == {**plain.settings, "input_place": "inside"}
    assert_all_rules_hold(inside, tmp_path)
    text, places, shares = text_of(inside), defaultdict(set), []
    for one in inside.instances:
        *words, mark = text(one).split()
        assert mark == MARK
        place = words.index(one.input)
        assert [*words[:place], *words[place + 1 :]] == one.instruction.split()
        assert 0 < place < len(words) - 1
        places[one.instruction].add(place)
        shares.append((place - 1) / max(1, len(words) - 3))
    assert {len(found) for found in places.values()} == {1}
    assert 0.4 < np.mean(shares) < 0.6 and np.std(shares) > 0.2
    assert text_of(load_dataset(tmp_path))(inside.instances[7]) == text(inside.instances[7])
    assert all(text_of(plain)(one) == f"{one.instruction} {one.input}" for one in plain.instances[:50])


def test_what_instances_share_is_shared_and_the_last_token_is_read(inside):
    tokenizer = word_tokenizer([*inside.vocabulary["instruction"], *inside.vocabulary["task"], MARK])
    text = text_of(inside)
    members = Members.of(tokenizer, inside.select("validation"), text=text)
    rows = [[*g.prefix, *branch] for g in members.groups for branch in g.branches]
    assert rows == [tokenizer(text(one))["input_ids"] for one in members.instances]
    assert len(members.groups) == len({one.instruction for one in members.instances})
    assert all(branch[-1] == tokenizer(MARK)["input_ids"][0] for g in members.groups for branch in g.branches)
    assert all(len({branch[0] for branch in g.branches}) == len(g.branches) == 5 for g in members.groups)
    usual = Members.of(tokenizer, inside.select("validation"))
    assert Members.of(tokenizer, usual.instances, text=lambda one: f"{one.instruction} {one.input}") == usual


def test_accuracy_with_inputs_inside_is_that_of_the_saved_network_asked_prompt_by_prompt(tmp_path):
    changes = {"data.input_place": "inside", "training.epochs": "3"}
    assert learn(configure("micro", seed=3, changes=changes), tmp_path / "run")
    run, data = load_run(tmp_path / "run"), load_dataset(tmp_path / "run" / "data")
    folder, text = tmp_path / "run" / "checkpoints" / "last", text_of(data)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert tokenizer.unk_token_id not in tokenizer(text(data.instances[0]))["input_ids"]
    right = []
    for one in data.select("validation"):
        with torch.inference_mode():
            logits = model(**tokenizer(text(one), return_tensors="pt")).logits[0, -1]
        right.append(tokenizer.decode(logits.argmax()).strip() == one.output)
    rows = run.metrics.filter(
        pl.col("measure") == "accuracy", pl.col("split") == "validation", pl.col("epoch") == run.metrics["epoch"].max()
    )
    assert rows["value"].item() == pytest.approx(np.mean(right))


def test_whatever_feeds_inputs_after_instructions_refuses_data_with_inputs_inside(micro_run: Path, tmp_path):
    config = configure("micro", changes={"data.input_place": "inside"})
    data = generate(config.data, seed=3)
    model, tokenizer = (auto.from_pretrained(micro_run / "checkpoints" / "best") for auto in _AUTO)
    for refused in (
        lambda: pretraining.dataset_for(config),
        lambda: alignment.dataset_for(config),
        lambda: probe(micro_run / "checkpoints" / "best", data),
        lambda: nucleate.read_states(model, tokenizer, data),
    ):
        with pytest.raises(Refused, match="inside is for `nucleate learn` alone"):
            refused()


_AUTO = (AutoModelForCausalLM, AutoTokenizer)
