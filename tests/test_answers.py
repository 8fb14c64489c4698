"""What scripts get: one object on standard output, and an exit code where a bar is missed."""

import json
import shutil

import pytest

from nucleate.cli import main
from nucleate.data.prompts import read_prompts
from nucleate.probing.settings import BARS, bar
from nucleate.refusal import Refused
from test_probing import folder, result  # noqa: F401  (a probe of two models)


def asked(capsys, *words):
    """The exit code, the one object on standard output, what standard error says."""
    code = main([*map(str, words), "--json"])
    told = capsys.readouterr()
    assert told.out.count("\n") == 1
    return code, json.loads(told.out), told.err


def test_a_probe_answers_with_its_verdicts_readings_and_tasks(folder, result, capsys):  # noqa: F811
    words = ["probe", folder / "tuned", folder / "prompts.jsonl", "--columns", "task=label", "--base", folder / "base"]
    code, told, said = asked(capsys, *words, "--out", folder / "run", "--resume")
    assert code == 0 and set(told) == {"models"} and set(told["models"]) == {"tuned", "base"}
    assert "finished already" in said
    tuned = told["models"]["tuned"]
    assert tuned["verdict"] == "clustered" and tuned["sentence"] == result.verdict
    assert set(tuned) == {"verdict", "sentence", "readable", "clustered", "where_to_act", "tasks"}
    where = tuned["where_to_act"]
    assert where["by"] == "correlation" and where["layer"] == 1  # between the first and the last
    for reading in ("readable", "clustered"):
        one = tuned[reading]
        assert set(one) == {"value", "low", "high", "layer", "control", "control_value"}
        assert one["low"] <= one["value"] <= one["high"] + 1e-9 and one["control_value"] < one["value"]
        assert one["control"] in ("untrained", "surface_prompt", "shuffled")
    assert set(tuned["tasks"]) == {"t0", "t1", "t2", "t3"}
    assert all(set(task) == {"verdict", "readable", "clustered"} for task in tuned["tasks"].values())
    share = sum(task["readable"] for task in tuned["tasks"].values()) / 4
    assert share == pytest.approx(tuned["readable"]["value"], abs=0.05)


def test_bars_that_hold_exit_with_0_and_one_that_is_missed_with_3_and_a_line(folder, capsys):  # noqa: F811
    words = ["probe", folder / "tuned", folder / "prompts.jsonl", "--columns", "task=label", "--base", folder / "base"]
    words += ["--out", folder / "run", "--resume"]
    held = ("readable>=0.8", "clustered >= 0.6", "readable_tasks>=4", "clustered_tasks>=4", "doubtful<=3")
    required = [word for one in held for word in ("--require", one)]
    assert main([*map(str, words), *required]) == 0
    capsys.readouterr()
    for name, text in {"readable": "readable>=0.999", "doubtful": "doubtful<=2", "clustered": "clustered>=1"}.items():
        assert main([*map(str, words), "--require", "readable>=0.1", "--require", text]) == 3
        line = capsys.readouterr().err.splitlines()[-1]
        assert line.startswith("nucleate: tuned: ") and f"{name} is " in line and "was required" in line
    code, told, said = asked(capsys, *words, "--require", "doubtful<=2")
    assert code == 3 and told["models"] and "doubtful is 3" in said


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("readable", "not of the form"),
        ("readable>0.9", "not of the form"),
        ("readable>=often", "not of the form"),
        ("readible>=0.9", "did you mean 'readable'"),
    ],
)
def test_a_bar_that_cannot_be_meant_is_refused_at_the_door(text, why, capsys):
    with pytest.raises(Refused, match=why):
        bar(text)
    assert main(["probe", "gpt2", "natural", "--out", "x", "--require", text]) == 2
    assert why in capsys.readouterr().err


def test_every_bar_has_a_number(folder, result):  # noqa: F811
    from nucleate.probing.bars import missed

    bars = [bar(f"{name}<=0") for name in BARS]
    said = missed(bars, result.metrics, result.tasks, result.coordinates, "tuned")
    assert len(said) == len(BARS) and not any("unknown" in line for line in said)


def test_an_estimate_answers_with_its_sentences(folder, capsys):  # noqa: F811
    given = [folder / "base", folder / "prompts.jsonl", "--columns", "task=label", "--estimate"]
    code, told, _ = asked(capsys, "probe", *given)
    assert code == 0 and len(told["estimate"]) == 1 and "parameters" in told["estimate"][0]


def test_the_other_verbs_answer_as_well(micro_run, tmp_path, capsys):
    _, told, _ = asked(capsys, "settings", "--size", "micro")
    assert told["model.width"]["value"] == 16 and told["model.width"]["meaning"]
    _, told, _ = asked(capsys, "data", "--size", "micro", "--out", tmp_path / "data")
    assert told["counts"]["train"] > 0 and len(read_prompts(tmp_path / "data").instances) > 0
    run = shutil.copytree(micro_run, tmp_path / "runs" / "one")
    _, told, _ = asked(capsys, "runs", run.parent)
    assert [(one["run"], one["state"]) for one in told] == [(str(run), "done")]
    _, told, said = asked(capsys, "report", run)
    (one,) = told["runs"]
    assert one["run"] == str(run) and one["sentences"] and one["table"]["rows"] and "page: " in said
    _, told, _ = asked(capsys, "claims", run)
    assert isinstance(told, list) and {"claim", "verdict"} <= set(told[0])
    code, told, _ = asked(capsys, "sweep", "learn", "--size", "micro", "--epochs", "1", "--out", tmp_path / "sweep")
    assert code == 0 and told["runs"][0]["state"] == "done" and told["metrics"].endswith("metrics.parquet")
