"""Each campaign of `benchmarks/torture` sees a fault that was planted for it, and none where there is none."""

import importlib
import json
import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pytest

from browser import CHROMIUM
from killed_run import in_a_child
from nucleate.files import write_text
from nucleate.refusal import Refused

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch):
    """name -> a campaign, as a module."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "torture")
    return importlib.import_module


WRITER = """
import sys, time
from pathlib import Path
sys.path.insert(0, {source!r})
from nucleate.files import write_text
out = Path(sys.argv[sys.argv.index("--out") + 1])
out.mkdir(parents=True, exist_ok=True)
write_text(out / "config.toml", "")
for number in range(20):
    place = out / str(number)
    if {always!r} or not place.exists():
        write_text(place, str({told}))
    time.sleep(0.1)
"""


@pytest.mark.parametrize(("told", "sees"), [("number", False), ("time.time()", True)])
def test_a_run_that_goes_on_to_other_bytes_after_a_kill_is_seen(told, sees, scripts, tmp_path, monkeypatch):
    kills, script = scripts("kills"), tmp_path / "writer.py"
    script.write_text(WRITER.format(source=str(ROOT / "src"), always=False, told=told))
    monkeypatch.setattr(kills, "command", lambda words: [sys.executable, str(script), *words])
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path / "whole")], check=True)
    found = kills.one(0, "toy", [], tmp_path / "whole", tmp_path / "run", [0.5], 1.0)
    assert "killed once" in found.what
    assert ("differs" in found.fault) == sees


def test_a_byte_a_fact_or_a_file_that_differs_is_seen_and_the_seconds_are_not(scripts, tmp_path):
    commands = scripts("commands")
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text("text")
        (tmp_path / name / "log.jsonl").write_text(name)
        (tmp_path / name / "page.html").write_text(f"<p><tr><td>seconds.total</td><td>{name}</td></tr></p>")
        (tmp_path / name / "manifest.json").write_text(json.dumps({"status": "done", "seconds": name}))
    assert commands.differing(tmp_path / "one", tmp_path / "two") == []
    (tmp_path / "two" / "a").write_text("texts")
    (tmp_path / "two" / "manifest.json").write_text(json.dumps({"status": "failed"}))
    (tmp_path / "two" / "b").write_text("")
    assert commands.differing(tmp_path / "one", tmp_path / "two") == ["a", "b", "manifest.json"]


def test_what_was_never_synced_is_lost_in_the_simulated_power_cut(scripts, tmp_path):
    """Written as the package does, a file has its old bytes or its new ones; renamed without a sync it is empty."""
    power = scripts("power")

    def contents(write) -> set[str]:
        place, told = tmp_path / write.__name__, tmp_path / f"{write.__name__}.json"
        place.mkdir()

        def work() -> None:
            disk = power.Disk(place)
            write_text(place / "a", "old")
            disk.sync(place / "a")
            disk.sync(place)
            with disk.watched():
                write(place / "a", "new and longer")
                write_text(place / "last", "")
            trees = [tree for way in power.WAYS for tree in disk.moments[way].values()]
            told.write_text(json.dumps(sorted({tree["a"].decode() for tree in trees})))

        assert in_a_child(work) == 0
        return set(json.loads(told.read_text()))

    def careless(path: Path, text: str) -> None:
        path.with_name("beside").write_text(text)
        os.replace(path.with_name("beside"), path)

    assert contents(write_text) == {"old", "new and longer"}
    assert {"", "old"} < contents(careless)


SAVES = """
import sys
sys.path.insert(0, {source!r})
from pathlib import Path
from nucleate.files import write_text
try:
    write_text(Path(sys.argv[1]) / "epoch-0012.txt", "0123456789")
except OSError as error:
    sys.exit(error.errno)
"""


@pytest.mark.parametrize(
    ("site", "kind", "code", "left"),
    [
        ("write /.epoch-#.txt.part", "error", 5, None),
        ("write /.epoch-#.txt.part", "full", 28, None),
        ("write /.epoch-#.txt.part", "short", 0, "0123456789"),
        ("fsync /.epoch-#.txt.part", "sync", 5, None),
        ("rename /epoch-#.txt", "rename", 5, None),
        ("rename /epoch-#.txt", "", 0, "0123456789"),
    ],
)
def test_the_chosen_file_call_goes_wrong_and_no_other(site, kind, code, left, scripts, tmp_path):
    library = scripts("faults").library(tmp_path)
    (tmp_path / "run").mkdir()
    log = tmp_path / "calls.txt"
    armed = {"BELOW": f"{tmp_path}/run", "SITE": site, "KIND": kind, "LOG": str(log)}
    environment = {**os.environ, "LD_PRELOAD": str(library), **{f"TORTURE_{k}": v for k, v in armed.items()}}
    script = SAVES.format(source=str(ROOT / "src"))
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path / "run")], env=environment, check=False)
    assert done.returncode == code
    calls = log.read_text().splitlines()
    assert site in calls and ("FIRED" in calls) == bool(kind)
    place = tmp_path / "run" / "epoch-0012.txt"
    assert (place.read_text() if place.exists() else None) == left


def test_a_reader_that_lets_an_error_through_is_seen_and_so_is_one_that_dies(scripts, tmp_path, monkeypatch):
    malformed = scripts("malformed")
    from test_damage import READERS

    whole = READERS["prompts.jsonl"]

    def lets_through(folder: Path) -> None:
        try:
            whole.read(folder)
        except Refused:
            if b"{" in (folder / "p.jsonl").read_bytes():
                raise KeyError("task") from None
            os._exit(7)

    def faults(reader) -> list[str]:
        monkeypatch.setattr(malformed, "readers", lambda: {"prompts.jsonl": reader})
        found = list(malformed.campaign(range(60), Namespace(seed=4, out=tmp_path)))
        assert [one.number for one in found] == list(range(60))
        return [one.fault for one in found if one.fault]

    assert faults(whole) == []
    seen = faults(replace(whole, read=lets_through))
    assert any("KeyError" in one for one in seen) and any("exit code 7" in one for one in seen)


def test_the_same_number_malforms_in_the_same_way(scripts):
    import random

    malform = scripts("malform")
    content = b'{"a": [1, 2], "b": "text"}'
    drawn = [[malform.malformed(content, random.Random(n)) for n in range(200)] for _ in range(2)]
    assert drawn[0] == drawn[1] and len(set(drawn[0])) > 150


def test_a_measure_that_is_wrong_now_and_then_is_seen(scripts, monkeypatch):
    properties = scripts("properties")
    assert properties.checked("scores", 1, 30) == properties.checked("t_interval", 1, 30) == ""
    right = properties.cluster_scores

    def wrong(labels, clusters):
        found = right(labels, clusters)
        return replace(found, f1_pairwise=found.f1_pairwise + 1e-6) if len(set(labels)) == 3 else found

    monkeypatch.setattr(properties, "cluster_scores", wrong)
    assert "f1_pairwise" in properties.checked("scores", 1, 200)


def test_a_mutant_is_killed_by_a_test_that_looks_and_survives_one_that_does_not(scripts, tmp_path):
    mutants, mutate = scripts("mutants"), scripts("mutate")
    source = 'def larger(a: int, b: int = 1) -> int:\n    """The larger 1."""\n    return a if a > b else b\n'
    made = [one() for one in mutate.mutants(source)]
    assert len({one.source for one in made}) == len(made) == 4  # the default, None, the comparison, the condition
    assert all('"""The larger 1."""' in one.source for one in made)
    package = tmp_path / "src" / "nucleate"
    package.mkdir(parents=True)
    (package / "toy.py").write_text(source)
    checks = tmp_path / "test_toy.py"
    told = {}
    for name, body in (("looks", "assert larger(2, 3) == 3"), ("does not", "larger(2, 3)")):
        checks.write_text(f"import sys\nsys.path.insert(0, {str(package)!r})\nfrom toy import larger\n\n\n")
        checks.write_text(checks.read_text() + f"def test_larger():\n    {body}\n")
        turned = next(one for one in mutate.mutants(source) if "condition" in one().told)
        told[name] = mutants.one(0, "toy.py", turned, tmp_path / "src", [str(checks)], 30)
    assert told["looks"].fault == "" and told["looks"].what.endswith(": killed")
    assert "condition turned" in told["does not"].fault and "line 3" in told["does not"].fault
    assert (package / "toy.py").read_text() == source


PAGE = """<!doctype html><meta charset=utf-8><body><input id=search><canvas id=canvas-0></canvas>
<button id=play>x</button><div id=name></div><script>document.documentElement.dataset.ready = 'yes';
document.getElementById('play').onclick = () => (document.getElementById('name').{how} = {name});</script>"""


@pytest.mark.skipif(CHROMIUM is None, reason="NO CHROMIUM HERE: apt-get install chromium runs these")
def test_a_page_that_takes_a_name_for_markup_is_seen(scripts, tmp_path):
    hostile = scripts("hostile_page")
    name = "<img src=x onerror=alert(1)>"
    with hostile.Browser("--disable-3d-apis") as browser:
        for how, sees in (("textContent", False), ("innerHTML", True)):
            page = tmp_path / f"{how}.html"
            page.write_text(PAGE.format(how=how, name=json.dumps(name)))
            assert ("alert" in hostile.opened(browser, page, name)) == sees, how


def test_slices_go_on_where_they_stopped_and_the_table_counts_the_last_word_of_each(scripts, tmp_path, monkeypatch):
    campaign, table = scripts("campaign"), scripts("table")

    def run(*words: str, fault: str = "") -> int:
        seen: list[int] = []

        def cases(numbers, asked):
            for number in numbers:
                seen.append(number)
                yield campaign.Result(number, "a | kind", fault if number == 2 else "")

        monkeypatch.setattr(sys, "argv", ["toy.py", "--out", str(tmp_path), *words])
        code = campaign.run("toy", "a toy", cases, count=6)
        run.seen = seen
        return code

    assert run("--count", "4", fault="broken") == 1 and run.seen == [0, 1, 2, 3]
    assert run() == 1 and run.seen == [4, 5]
    assert "| a toy | 6 | 1 | 6 a \\| kind |" in table.markdown(tmp_path) and "broken" in table.markdown(tmp_path)
    assert run("--again") == 0 and run.seen == [2]
    assert "| a toy | 6 | 0 |" in table.markdown(tmp_path) and "## Faults" not in table.markdown(tmp_path)
