"""The verbs at size micro, as one types them, and what tells whether two run folders hold the same."""

import importlib
import json
import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
VERBS = ("learn", "probe", "pretrain", "align", "transfer", "sweep")
_FEWER = {"pretrain": ("training.epochs=1", "pretrain.epochs=1", "pretrain.unseen=no", "measure.dense_until=0")}

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is there
sys.path.insert(0, str(ROOT / "src"))

# What no two runs have in common: when it was, and how long it took.
UNLIKE = {"log.jsonl": "its times", "manifest.json": "its key seconds", "page.html": "its rows of the same seconds"}
_SECONDS = re.compile(rb"<tr><td>seconds\.\w+</td>.*?</tr>")


def environment(**more: str) -> dict[str, str]:
    """One thread, this checkout's code, a cache beside, nothing asked of a network."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT / "src"),
        "HF_HUB_OFFLINE": "1",
        **more,
    }


def command(words: list[str]) -> list[str]:
    return [sys.executable, "-m", "nucleate", *words]


def call(words: list[str], **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(words), env=environment(**more), capture_output=True, text=True, check=False)


def words_of(folder: Path) -> dict[str, list[str]]:
    """The words of each verb, without --out. What they read is made in `folder` first, and unbroken runs of all."""
    learnt, prompts = whole_of(folder, "learn"), folder / "prompts.jsonl"
    prompts.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"instruction": f"{one} {two}", "input": third, "task": one, "output": third} for one in "abc" for two in
            "abcdef" for third in "xy"]  # fmt: skip
    prompts.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    words = {verb: [verb, "--size", "micro", "--seed", "3"] for verb in ("learn", "pretrain", "align")}
    words["sweep"] = [
        "sweep",
        "learn",
        "--size",
        "micro",
        "--seed",
        "3,4",
        "--workers",
        "1",
        "--set",
        "training.epochs=2",
    ]
    words["probe"] = ["probe", str(learnt / "checkpoints" / "best"), str(prompts)]
    words["transfer"] = ["transfer", str(learnt), str(learnt / "data")]
    for verb, changes in _FEWER.items():
        words[verb] += [word for change in changes for word in ("--set", change)]
    return {verb: words[verb] for verb in VERBS}


def whole_of(folder: Path, verb: str) -> Path:
    """Named as every run here, for its page says the name."""
    return folder / "whole" / verb / "run"


def unbroken(folder: Path, verb: str, words: list[str]) -> Path:
    """The run that nothing happened to."""
    whole = whole_of(folder, verb)
    done = call([*words, "--out", str(whole), "--resume"], NUCLEATE_CACHE=str(folder / "cache"))
    assert done.returncode == 0, done.stderr
    return whole


def contents(folder: Path) -> dict[str, Any]:
    """Name of each file -> what counts of it."""
    found: dict[str, Any] = {}
    for path in sorted(folder.rglob("*")):
        name = str(path.relative_to(folder))
        if not path.is_file() or path.name == ".lock":
            continue
        if path.name == "manifest.json":
            told = json.loads(path.read_text(encoding="utf-8"))
            found[name] = {key: value for key, value in told.items() if key != "seconds"}
        elif path.name == "page.html":
            found[name] = _SECONDS.sub(b"", path.read_bytes())
        else:
            found[name] = None if path.name in UNLIKE else path.read_bytes()
    return found


def differing(whole: Path, other: Path) -> list[str]:
    """Names of the files that two run folders do not have alike."""
    one, two = contents(whole), contents(other)
    return sorted(name for name in one.keys() | two.keys() if one.get(name, b"none") != two.get(name, b"none"))


def in_process(work: Callable[[], object], said: Path) -> int:
    """Exit code of a forked child that does the work, minus the signal where it died of one; what it says stands in
    `said`. The parent loads the packages once, and computes nothing: threads do not survive a fork."""
    for room in ("paper.learning", "paper.pretraining", "paper.alignment", "probing.probe", "probing.transfer",
                 "report.page", "report.figures", "cli"):  # fmt: skip
        importlib.import_module(f"nucleate.{room}")
    child = os.fork()
    if child == 0:
        code = 1
        try:
            place = os.open(said, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
            os.dup2(place, 1)
            os.dup2(place, 2)
            work()
            code = 0
        except SystemExit as end:
            code = int(end.code or 0)
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
