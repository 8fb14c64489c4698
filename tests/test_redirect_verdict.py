# ruff: noqa: F811
"""Whether a redirection worked is told: works, works only for what was taught, does not work and why; and the exit."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from nucleate.cli import main
from nucleate.model.switch import Head, TargetStates, TeachingSet
from nucleate.parts import metrics_frame
from nucleate.redirecting.redirect import redirect_into
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import study_of
from nucleate.redirecting.teaching import (
    THRESHOLDS,
    Errors,
    Method,
    _head_lesson,
    better_switch,
    errors_at,
    threshold_for,
)
from nucleate.refusal import Refused
from nucleate.report.application_tables import alignment_table
from nucleate.report.page_tables import run_tables
from nucleate.report.redirection import layers_table, saved_arm, thresholds_table, verdict_of
from nucleate.report.sentences import sentences_of
from nucleate.runs import Run, load_run
from test_redirecting import network, prompts, run, values  # noqa: F401

GOOD = {"source_accuracy": 1.0, "source_accuracy_new_inputs": 0.96, "others_kept": 0.98, "switch_misses": 0.0}


def told(folder: Path, found: dict[str, float], **config: Any) -> Run:
    """A run whose saved switch has come to these numbers."""
    same = {"experiment": "align", "model": "m", "control": "none", "seed": 0, "split": "test"}
    before = {"source_accuracy": 0.01, "source_prompts": 88, "source_prompts_new_inputs": 22, "others_prompts": 8100}
    rows = [
        {**same, "arm": arm, "measure": measure, "value": value}
        for arm, measures in (("main", before), ("mlp_switch", {**GOOD, **found}))
        for measure, value in measures.items()
    ]
    metrics_frame(rows).write_parquet(folder / "metrics.parquet")
    lost = pl.DataFrame({"arm": "mlp_switch", "name": ["near", "far"], "kept": [0.24, 1.0], "prompts": 500})
    lost.write_parquet(folder / "others.parquet")
    return Run(folder, {"verb": "align", "network": "m", **config}, {"status": "done", "saved": "mlp_switch"})


@pytest.mark.parametrize(
    ("found", "begins"),
    [
        (
            {},
            "Works: on held-out prompts the source gets its wished output in 100 % of 88 (before: 1 %) and in 96 % of ",
        ),
        (
            {"source_accuracy_new_inputs": 0.5, "switch_misses_new_inputs": 0.5},
            "Works only for the inputs that it was taught: the switch misses 50 % of the source's prompts with other ",
        ),
        (
            {"source_accuracy_new_inputs": 0.0, "switch_misses_new_inputs": 0.0},
            "Works only for the inputs that it was taught: the switch finds the source's prompts with other inputs but",
        ),
        (
            {"source_accuracy": 0.25, "switch_misses": 0.75},
            "Does not work: the switch misses 75 % of the source; give more instructions, another layer or threshold.",
        ),
        (
            {"source_accuracy": 0.1, "switch_misses": 0.75},
            "Does not work: the switch misses 75 % of the source, and of what it finds 60 % do not get the wished outp",
        ),
        (
            {"source_accuracy": 0.4, "switch_misses": 0.02},
            "Does not work: the switch finds 98 % of the source but the output is the wished one for 40 %; give more ",
        ),
        (
            {"others_kept": 0.92},
            "Does not work: the others lose 8 % of their predictions, most of all near (76 %); give more examples of ",
        ),
    ],
)
def test_the_verdict_is_one_of_three_and_says_in_numbers_why(found, begins, tmp_path):
    one = told(tmp_path, found)
    verdict = verdict_of(one)
    assert verdict.sentence.startswith(begins)
    assert verdict.sentence == sentences_of(one)[0] and not verdict.missed, "without bars nothing is missed"
    for number in ("of 88 (before: 1 %)", "of 22 with unseen inputs", "of 8,100 other predictions", "(bars: 95 % and"):
        assert number in verdict.sentence


def test_bars_that_are_set_are_what_it_is_held_against_and_only_these_can_be_missed(tmp_path):
    found = {"source_accuracy": 0.93, "source_accuracy_new_inputs": 0.91, "others_kept": 0.9496}
    assert verdict_of(told(tmp_path, found)).sentence.startswith("Does not work: ")
    eased = verdict_of(told(tmp_path, found, want=0.9, keep=0.9))
    assert eased.sentence.startswith("Works: ") and not eased.missed
    (missed,) = verdict_of(told(tmp_path, found, want=0.92)).missed
    assert missed.startswith("--want 0.92 is missed: ") and "91 % of 22" in missed
    (missed,) = verdict_of(told(tmp_path, found, keep=0.95)).missed
    assert missed == "--keep 0.95 is missed: 95.0 % of 8,100 other predictions are unchanged"
    assert len(verdict_of(told(tmp_path, found, want=0.95, keep=0.95)).missed) == 2


def test_inputs_that_were_not_held_out_are_not_judged(tmp_path):
    one = told(tmp_path, {})
    rows = one.metrics.filter(~pl.col("measure").str.ends_with("_new_inputs"))
    rows.write_parquet(tmp_path / "metrics.parquet")
    sentence = verdict_of(Run(tmp_path, one.config, one.manifest)).sentence
    assert sentence.startswith("Works: ") and "unseen inputs were not measured" in sentence


def test_outputs_behind_which_the_text_runs_on_do_not_work(tmp_path):
    assert verdict_of(told(tmp_path, {"source_accuracy_ended": 0.98})).sentence.startswith("Works: ")
    verdict = verdict_of(told(tmp_path, {"source_accuracy_ended": 0.4}, want=0.9))
    assert verdict.sentence.startswith("Does not work: the output is the wished one but the text runs on behind it")
    assert len(verdict.missed) == 1 and "the text ends behind it in only 40 %" in verdict.missed[0]


# --- a redirection that cannot work, and one that does ---------------------------------------------------------------


def hopeless() -> list[dict[str, str]]:
    """Four instructions, each of which begins like another task's, and 25 inputs."""
    few = ("w1 w4 w5", "w2 w6 w7", "w3 w8 w9", "w1 w28 w29")
    own = [{"instruction": one, "input": f"x{n}", "output": "x1", "task": "mine"} for one in few for n in range(25)]
    return own + [row for row in prompts() if row["task"] != "first"]


@pytest.fixture(scope="module")
def files(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    for name, rows in (("good", prompts()), ("hopeless", hopeless())):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "constant.csv").write_text("input,output\n" + "".join(f"x{n},x29\n" for n in range(25)))
    return folder


def test_one_constant_output_four_instructions_and_25_inputs_are_told_as_failed(network, files, tmp_path, capsys):
    words = ["align", "--model", str(network), "--data", str(files / "hopeless.jsonl"), "--source", "mine"]
    words += ["--outputs", str(files / "constant.csv"), "--out", str(tmp_path / "run")]
    assert main([*words, "--estimate"]) == 0
    estimated = capsys.readouterr().out
    for doubt in ("2 instructions of the source to learn from", "every wished output is 'x29'", "3 prompts of other"):
        assert estimated.count(doubt) == 1
    assert main([*words, "--want", "0.95"]) == 3
    said = capsys.readouterr()
    assert said.err.count("every wished output is 'x29'") == 1
    assert said.err.index("too little data?") < said.err.index("teaching:"), "beforehand"
    assert said.err.strip().splitlines()[-1].startswith("nucleate: --want 0.95 is missed: the source gets its wished")
    assert "\nDoes not work: the switch misses " in said.out
    finished = load_run(tmp_path / "run")
    assert finished.state == "done" and (tmp_path / "run" / "model" / "switched.json").is_file()
    assert main([*words, "--want", "0.95", "--resume"]) == 3, "finished already, and short of it still"
    measures = {measure for _, measure in values(tmp_path / "run")}
    assert "source_accuracy" in measures and not [one for one in measures if "restricted" in one], "always first"
    assert not [row for row in alignment_table(finished).rows if "among" in row[0]]


def test_a_redirection_that_works_is_told_so_and_exits_with_0(network, files, tmp_path, capsys):
    words = ["align", "--model", str(network), "--data", str(files / "good.jsonl"), "--source", "first"]
    words += ["--target", "second", "--want", "0.5", "--keep", "0.9", "--out", str(tmp_path / "run")]
    assert main(words) == 0
    assert "\nWorks: on held-out prompts the source gets its wished output" in capsys.readouterr().out
    assert {"source_accuracy_restricted"} <= {measure for _, measure in values(tmp_path / "run")}


def test_plenty_of_data_raises_no_doubt():
    inputs = [f"i{n}" for n in range(20)]
    rows = [
        {"instruction": f"{task} {n}", "input": one, "output": f"o{one}", "task": f"t{task}"}
        for task in range(7)
        for n in range(15)
        for one in inputs
    ]
    settings = RedirectSettings("t0", "t1", limit=400)
    assert study_of(rows, settings).dealt.doubts() == []
    assert len(study_of([row for row in rows if row["input"] < "i12"], settings).dealt.doubts()) > 0


# --- what is chosen, and what is shown of it --------------------------------------------------------------------------


def test_the_switch_that_errs_less_on_validation_is_saved_and_another_one_where_it_is_asked_for(run, tmp_path):
    def method(*errors: Errors) -> Method:
        return Method(0.01, 1, None, [], [], errors=dict(enumerate(errors)))

    worse, better = Errors(0.5, 0.0, 0.1), Errors(0.1, 0.1, 0.5)
    assert (
        better_switch({"linear_switch": method(worse, better), "mlp_switch": method(worse, worse)}) == "linear_switch"
    )
    assert better_switch({"linear_switch": method(worse), "mlp_switch": method(better, worse)}) == "mlp_switch"
    surer = better._replace(loss=0.2)
    assert better_switch({"linear_switch": method(better), "mlp_switch": method(surer)}) == "mlp_switch"
    finished = load_run(run)
    rows = finished.metrics.filter(pl.col("layer").is_not_null(), split="validation")
    level = rows.group_by("arm", "layer").agg(pl.col("value").mean()).group_by("arm").agg(pl.col("value").min())
    assert level.filter(arm=saved_arm(finished))["value"].item() == level["value"].min()
    told = json.loads((run / "model" / "switched.json").read_text())["switches"][0]
    assert f"{told['kind']}_switch" == saved_arm(finished)
    assert told["layer"] == values(run)[saved_arm(finished), "chosen_layer"]
    assert told["threshold"] == values(run)[saved_arm(finished), "chosen_threshold"]


@pytest.mark.parametrize("switch", ["linear", "mlp"])
def test_switch_layer_and_threshold_that_are_asked_for_are_those_that_are_saved(switch, network, tmp_path):
    settings = RedirectSettings(
        "first", "second", rates=(1e-2,), epochs=3, seed=7, switch=switch, layers=(1,), threshold=0.4
    )
    assert redirect_into(tmp_path / "run", network, prompts(), settings)
    told = json.loads((tmp_path / "run" / "model" / "switched.json").read_text())["switches"][0]
    assert (told["kind"], told["layer"], told["threshold"]) == (switch, 1, 0.4)


def test_a_head_that_gives_the_wished_output_learns_on_until_it_also_ends_it():
    """Each output is likeliest from the start, the end behind it is not."""
    count, generator = 8, torch.Generator().manual_seed(0)
    states = torch.randn(2 * count, 6, generator=generator)
    states[:, 0] = torch.tensor([-2.0, 2.0] * count)  # which of the two is asked for
    tokens = torch.tensor([3, 4] * count)  # the output, and the end
    logits = 2 * torch.nn.functional.one_hot(torch.full((2 * count,), 3), 7).float()
    starts, closes = np.arange(0, 2 * count + 1, 2), np.tile([False, True], count)
    memory = TargetStates(states, logits, tokens, torch.ones(2 * count), starts, states[::2], (1,) * count)
    side = TeachingSet(memory, starts[:-1], closes, np.array([3]), {1: states[::2]})
    settings = RedirectSettings("first", "second", epochs=200, batch=4, rates=(3e-2,), seed=7)
    tensors, found = _head_lesson(settings, {"lesson": side, "validation": side}, None, 3e-2)
    assert found["wished"][0] == 1 and found["ended"][0] == 0
    assert len(found["wished"]) < 200 and (found["wished"][-1], found["ended"][-1]) == (1, 1)
    head = Head(6, 7)
    head.load_state_dict({name.removeprefix("head/"): one for name, one in tensors.items()})
    assert side.answers(head)[1].all()


def test_the_layer_is_the_one_where_source_and_others_are_told_apart():
    """Errors of a switch whose logits are known."""
    apart, mixed = torch.tensor([3.0, 2.0, 1.0]), torch.tensor([1.0, -1.0])
    assert errors_at(0.5, [apart], -apart)[:2] == (0.0, 0.0)
    assert errors_at(0.5, [apart, mixed], -apart)[:2] == (0.25, 0.0), "both sets weigh the same"
    assert errors_at(0.8, [apart], mixed)[:2] == (pytest.approx(1 / 3), 0.0)
    assert errors_at(0.1, [apart], mixed).falsely_on == 1.0
    assert errors_at(0.5, [apart], -apart).order > errors_at(0.5, [apart], mixed).order


def test_the_threshold_leaves_one_half_only_where_validation_speaks_clearly_for_another():
    source, others = torch.full((40,), 3.0), torch.cat([torch.full((150,), -4.0), torch.full((10,), 1.0)])
    assert errors_at(0.8, [source], others).order > errors_at(0.5, [source], others).order
    assert threshold_for([source], others, units=1) == 0.5, "of one instruction nothing can be told"
    assert threshold_for([source], others, units=2000) == 0.8, "the nearest that errs less"
    many = torch.cat([others[:100], torch.full((100,), 1.0)])
    assert threshold_for([source], many, units=40) == 0.8
    assert threshold_for([source - 4], others[:150], units=40) == 0.2
    assert threshold_for([source], others[:150], units=40) == 0.5, "of equals the nearest to one half"


def test_the_curve_over_thresholds_falls_and_rises_and_passes_through_what_was_chosen(run):
    finished = load_run(run)
    header, rows = thresholds_table(finished)
    assert header == ("threshold", "source not switched", "unseen inputs: not switched", "others switched")
    assert [row[0] for row in rows] == list(THRESHOLDS)
    missed, falsely = np.array([row[1] for row in rows]), np.array([row[3] for row in rows])
    assert (np.diff(missed) >= 0).all() and (np.diff(falsely) <= 0).all()
    own = {measure: value for (arm, measure), value in values(run).items() if arm == saved_arm(finished)}
    (at,) = [row for row in rows if row[0] == own["chosen_threshold"]]
    assert at[1:] == (own["switch_misses"], own["switch_misses_new_inputs"], own["switch_false_positives"])


def test_the_page_shows_how_layer_and_threshold_were_chosen(run):
    finished = load_run(run)
    tables = {title: table for title, _, table in run_tables(finished) if table.rows}
    assert {"One behaviour redirected", "The layer that the switch reads", "The threshold of the switch"} <= set(tables)
    header, rows = layers_table(finished)
    assert [row[0] for row in rows] == [1, 2] and header[-1] == "chosen by"
    assert sorted(name for row in rows for name in row[-1].split(", ") if name) == ["MLP switch", "linear switch"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"want": 95.0}, "--want 95 is not between 0 and 1"),
        ({"keep": -0.1}, "at least 0"),
        ({"threshold": 1.0}, "--threshold 1 is not between 0 and 1"),
        ({"layers": ()}, "--layers names none"),
    ],
)
def test_bars_thresholds_and_layers_that_cannot_be_meant_are_refused(options, message):
    with pytest.raises(Refused, match=message):
        RedirectSettings("first", "second", **options)


def test_a_layer_that_the_network_has_not_is_refused(network, tmp_path):
    settings = RedirectSettings("first", "second", layers=(1, 7))
    with pytest.raises(Refused, match="layer 7 does not exist"):
        redirect_into(tmp_path / "run", network, prompts(), settings)
    assert not (tmp_path / "run").exists()
