# ruff: noqa: F811
"""A model that was redirected is redirected again, and again: what came first stays, and is among what is judged."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
import torch

from nucleate.cli import main
from nucleate.model.networks import load_network
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.redirect import redirect_into
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import study_of
from nucleate.report.redirection import saved_arm
from nucleate.runs import load_run
from test_redirecting import QUICK, network, prompts, values  # noqa: F401

LESSONS = {"one": ("first", "second"), "two": ("third", "fourth"), "three": ("fourth", "first")}


class Taught(NamedTuple):
    folder: Path
    settings: RedirectSettings


@pytest.fixture(scope="module")
def sequence(network, tmp_path_factory) -> list[Taught]:
    """Three runs, each of the model that the one before has saved."""
    folder, model, found = tmp_path_factory.mktemp("sequence"), network, []
    for name, (source, target) in LESSONS.items():
        settings = replace(QUICK, source=source, target=target, examples=4)
        assert redirect_into(folder / name, model, prompts(), settings)
        found.append(Taught(folder / name, settings))
        model = folder / name / "model"
    return found


def likeliest(model, tokenizer, one):
    tokens = tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        return int(model(tokens).logits[0, -1].argmax())


def test_after_the_third_all_three_sources_get_their_wished_outputs(sequence):
    model = load_switched(sequence[-1].folder / "model")
    assert len(model.switches) == 3
    for number, taught in enumerate(sequence):
        right, by = [], []
        for one in study_of(prompts(), taught.settings).dealt.sides["test"]:
            given = model.tokenizer(f"{one.instruction} {one.input}", return_tensors="pt")
            given.pop("token_type_ids", None)
            said = model.generate(**given, max_new_tokens=2, do_sample=False, eos_token_id=None)
            right.append(model.tokenizer.decode(said[0, -2:]) == one.output)
            by += model.by.tolist()
        assert np.mean(right) > 0.8, taught.settings.source
        assert np.mean(np.array(by) == number) > 0.8


def test_what_a_later_one_keeps_is_what_the_model_said_before_it_earlier_redirections_included(sequence):
    for earlier, later in pairwise(sequence):
        before, after = (load_switched(taught.folder / "model") for taught in (earlier, later))
        dealt = study_of(prompts(), later.settings).dealt
        asked = [one for one in dealt.others if one.instance in dealt.asked]
        same = [likeliest(before, before.tokenizer, one) == likeliest(after, after.tokenizer, one) for one in asked]
        assert earlier.settings.source in {one.task for one in asked}
        told = values(later.folder)[saved_arm(load_run(later.folder)), "others_kept"]
        assert np.mean(same) == pytest.approx(told) and told > 0.9


def test_before_a_source_is_redirected_again_it_gets_what_it_was_redirected_to(sequence, tmp_path):
    """The first source back to its own outputs: before, none are right, since the switch of the first lesson is on."""
    wished = tmp_path / "own.csv"
    own = {row["input"]: row["output"] for row in prompts() if row["task"] == "first"}
    wished.write_text("input,output\n" + "".join(f"{given},{output}\n" for given, output in own.items()))
    settings = replace(QUICK, target=None, outputs=str(wished), examples=4)
    assert redirect_into(tmp_path / "run", sequence[-1].folder / "model", prompts(), settings)
    found = values(tmp_path / "run")
    assert found["main", "source_accuracy"] < 0.2
    assert found[saved_arm(load_run(tmp_path / "run")), "source_accuracy"] > 0.8


def test_turned_off_it_is_the_first_network_whatever_was_taught_after(sequence, network):
    model, (plain, tokenizer) = load_switched(sequence[-1].folder / "model"), load_network(network)
    model.turn_off()
    tokens = tokenizer("w0 w10 w20 x1", return_tensors="pt")["input_ids"]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, plain(tokens).logits)


def test_each_card_names_what_was_redirected_before_and_each_description_all(sequence):
    cards = [(taught.folder / "model" / "README.md").read_text(encoding="utf-8") for taught in sequence]
    assert "Redirected before" not in cards[0]
    assert "Redirected before, and still so: `first`." in cards[1] and "still so: `first`, `third`." in cards[2]
    assert all(card.startswith('---\nbase_model: "tiny"\n') for card in cards)
    told = json.loads((sequence[-1].folder / "model" / "switched.json").read_text())
    assert [one["source"] for one in told["switches"]] == ["first", "third", "fourth"]
    assert Path(told["network"]["path"]).name == "tiny" and not told["network"]["copied"]


def test_the_command_line_takes_a_switched_model_with_its_weights_beside_it(sequence, tmp_path, capsys):
    data = tmp_path / "data.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in prompts()))
    words = ["align", "--data", str(data), "--examples", "4", "--copy"]
    assert main([*words, "--model", str(sequence[0].folder / "model"), "--source", "third", "--target", "fourth",
                 "--out", str(tmp_path / "a")]) == 0  # fmt: skip
    again = [*words, "--model", str(tmp_path / "a" / "model"), "--source", "fourth", "--target", "first"]
    assert main([*again, "--estimate"]) == 0
    assert "million parameters" in capsys.readouterr().out
    assert main([*again, "--out", str(tmp_path / "b")]) == 0
    model = load_switched(tmp_path / "b" / "model")
    assert len(model.switches) == 3 and (tmp_path / "b" / "model" / "network" / "model.safetensors").is_file()
    assert '"tiny"' in (tmp_path / "b" / "model" / "README.md").read_text(encoding="utf-8")
    told = pl.read_parquet(tmp_path / "b" / "others.parquet")
    assert set(told["name"]) == {"first", "second", "third"}
