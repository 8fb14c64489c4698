"""After Ctrl-C the advice works as it stands: a real process is interrupted, and the command that it prints goes on."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from nucleate.cli import main
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.refusal import Refused
from nucleate.runs import clear_runs, find_runs
from test_redirecting import prompts

ROOT = Path(__file__).parents[1]
SHORT = ["--epochs", "2", "--set", "measure.repeats=1", "--set", "pretrain.epochs=1", "--set", "pretrain.unseen=no"]
SHORT += ["--set", "align.epochs=1"]


def interrupted(command: list[str], *, at: str, **how) -> tuple[int, list[str]]:
    """Ctrl-C as soon as the process says this on standard error: its exit code, and all lines that it wrote there."""
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, start_new_session=True, **how
    )
    killer = threading.Timer(300, process.kill)
    killer.start()
    told, sent = [], False
    assert process.stderr is not None
    for line in process.stderr:
        told.append(line.rstrip("\n"))
        if at in line and not sent:
            os.killpg(process.pid, signal.SIGINT)  # a terminal interrupts all that run in it
            sent = True
    process.stderr.close()
    code = process.wait()
    killer.cancel()
    assert sent, told
    return code, told


def advice(told: list[str], program: str = "nucleate") -> list[str]:
    """The words of the command that goes on."""
    (line,) = [line for line in told if line.startswith("nucleate: stopped")]
    words = shlex.split(line.partition("holds: ")[2])
    assert words[0] == program and words.count("--resume") == 1 and "--overwrite" not in words
    return words[1:]


def events(folder: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (folder / "log.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def given(tmp_path_factory) -> dict[str, str]:
    """A small network and labelled prompts whose words it knows."""
    folder = tmp_path_factory.mktemp("given")
    tokenizer = word_tokenizer(sorted({word for row in prompts() for text in row.values() for word in text.split()}))
    shape = {"width": 16, "feed_forward": 32, "layers": 2, "heads": 2, "positions": 64, "dropout": 0, "pad": 0}
    save_network(gpt2(vocabulary=len(tokenizer), seed=0, **shape), tokenizer, folder / "model")
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts()), encoding="utf-8")
    return {"model": str(folder / "model"), "prompts": str(folder / "prompts.jsonl")}


VERBS = {  # and what the process says when it is interrupted
    "learn": (["learn", "--size", "micro", "--overwrite"], "  0%"),
    "probe": (["probe", "{model}", "{prompts}"], "%  "),
    "align": (
        ["align", "--model", "{model}", "--data", "{prompts}", "--source", "first", "--target", "second"],
        "%  ",
    ),
}


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_that_is_printed_after_ctrl_c_goes_on_to_the_end(verb, given, tmp_path, monkeypatch):
    words, at = VERBS[verb]
    command = [*(word.format(**given) for word in words), "--out", str(tmp_path / "a run")]
    code, told = interrupted([sys.executable, "-m", "nucleate", *command], at=at)
    assert code == 130
    again = advice(told)
    assert again == [*(word for word in command if word != "--overwrite"), "--resume"]
    assert {run.state for run in find_runs(tmp_path)} <= {"interrupted", "done"}
    assert main(again) == 0
    assert {run.state for run in find_runs(tmp_path)} == {"done"}


def test_a_reproduction_that_began_anew_goes_on_without_what_an_older_one_left(tmp_path):
    """With --overwrite all of the old runs go at once: what goes on later would refuse their settings, hours later."""
    out = tmp_path / "all"
    (out / "align").mkdir(parents=True)
    (out / "align" / "config.toml").write_text('verb = "align"\nsize = "tiny"\n')
    (out / "align" / "manifest.json").write_text('{"status": "done"}')
    (out / "align" / "metrics.parquet").touch()
    command = ["reproduce", "--size", "micro", *SHORT, "--out", str(out), "--overwrite"]
    code, told = interrupted([sys.executable, "-m", "nucleate", *command], at="  0%")
    assert code == 130 and events(out / "learn") == ["begun", "interrupted"]
    assert [run.folder.name for run in find_runs(out)] == ["learn"]  # of the older one only a mark is left
    assert not (out / "align" / "metrics.parquet").exists()
    assert advice(told) == [*command[:-1], "--resume"]


def test_what_a_reproduction_will_read_is_not_cleared_away(tmp_path, capsys):
    out = tmp_path / "all"
    with pytest.raises(Refused, match="would be cleared first"):
        (out / "learn").mkdir(parents=True)
        (out / "learn" / "config.toml").write_text("")
        clear_runs([out / "learn", out / "align"], reads=[out / "learn"])
    assert (out / "learn" / "config.toml").is_file()


# --- make demo --------------------------------------------------------------------------------------------------------

SHIM = f"""#!{sys.executable}
import sys
sys.path.insert(0, {str(ROOT / "src")!r})
sys.argv = [sys.argv[0], *[word.replace("tiny", "micro") for word in sys.argv[1:]], *{SHORT!r}]
from nucleate.cli import main
sys.exit(main())
"""
RECORDING = """#!/bin/sh
echo "$@" >> calls
case "$*" in *--resume*) exit $CODE;; esac
"""


def a_checkout(folder: Path, program: str) -> Path:
    """Where make finds all set up, and a program in place of the command."""
    shutil.copy(ROOT / "Makefile", folder)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "nucleate").write_text(program)
    (folder / ".venv" / "bin" / "nucleate").chmod(0o755)
    for name in ("pyproject.toml", "constraints.txt"):
        (folder / name).touch()
        os.utime(folder / name, (0, 0))
    (folder / ".venv" / "ready").touch()
    return folder


@pytest.fixture
def no_make_above(monkeypatch):
    """As typed in a terminal: `make test` tells a `make` inside it to name every folder that it enters and leaves."""
    for name in ("MAKEFLAGS", "MAKELEVEL", "MFLAGS"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.usefixtures("no_make_above")
def test_make_demo_typed_again_after_ctrl_c_goes_on_and_typed_once_more_says_where_the_page_is(tmp_path):
    checkout = a_checkout(tmp_path, SHIM)
    code, told = interrupted(["make", "demo"], at="  0%", cwd=checkout)
    assert code != 0
    assert advice(told, program=".venv/bin/nucleate")[:2] == ["reproduce", "--size"]
    again = subprocess.run(["make", "demo"], cwd=checkout, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stderr
    demo = checkout / "runs" / "demo"
    assert events(demo / "learn") == ["begun", "interrupted", "resumed", "done"]
    assert again.stdout.splitlines()[-1] == "page: runs/demo/page.html"
    once_more = subprocess.run(["make", "demo"], cwd=checkout, capture_output=True, text=True, check=True)
    assert once_more.stdout.splitlines()[-1] == "page: runs/demo/page.html"
    assert events(demo / "learn")[-1] == "done" and "finished already" in once_more.stdout


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make here")
@pytest.mark.parametrize(("code", "calls"), [(0, 1), (1, 1), (130, 1), (2, 2)])
def test_make_demo_begins_anew_only_where_going_on_is_refused(code, calls, tmp_path):
    checkout = a_checkout(tmp_path, RECORDING)
    environment = {**os.environ, "CODE": str(code)}
    ended = subprocess.run(["make", "demo"], cwd=checkout, env=environment, capture_output=True, check=False)
    asked = (checkout / "calls").read_text().splitlines()
    assert len(asked) == calls and asked[0].endswith("--resume")
    assert asked[-1].endswith("--overwrite") == (code == 2) and (ended.returncode == 0) == (code in (0, 2))
