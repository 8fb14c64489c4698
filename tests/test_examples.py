"""The examples run as they stand."""

import re
import runpy
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from nucleate import verbs
from nucleate.cli import main
from nucleate.paper.network import check_network
from nucleate.runs import load_run

EXAMPLES = Path(__file__).parents[1] / "examples"


def test_the_example_that_looks_into_a_checkpoint_prints_a_line_per_layer(micro_run):
    command = [sys.executable, str(EXAMPLES / "look_into_a_checkpoint.py"), str(micro_run)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [line.split(":")[0] for line in printed] == ["layer 0", "layer 1", "layer 2"]


STUDY = EXAMPLES / "studies" / "likeliest_reading.py"


def test_every_sweep_of_the_study_is_one_that_nucleate_takes(monkeypatch, capsys):
    printed = subprocess.run([sys.executable, str(STUDY), "out"], capture_output=True, text=True, check=True).stdout
    planned = []
    learn = SimpleNamespace(dataset_for=lambda config: planned.append(config) or check_network(config))
    monkeypatch.setattr(verbs, "_experiments", lambda: {"learn": learn})
    monkeypatch.setattr("nucleate.engines.sweep.sweep", lambda runs, *more, **how: [])
    sweeps = [shlex.split(line) for line in printed.splitlines()]
    for words in sweeps:
        assert words.pop(0) == "nucleate" and main(words) == 0, words
    assert len(planned) == 2 * (len(sweeps) + 2 * 3)  # two seeds; of either base three factors have two values
    assert {config.model.width for config in planned} == {128}
    assert {config.training.epochs for config in planned} == {60, 200}
    assert {config.model.architecture for config in planned} == {"gpt2", "marian"}


def test_the_table_of_the_study_is_of_finished_runs_nearest_first(micro_run, tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copytree(micro_run, tmp_path / name / "seed100", ignore=shutil.ignore_patterns("layouts", "checkpoints"))
    manifest = tmp_path / "b" / "seed100" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"done"', '"interrupted"'))
    command = [sys.executable, str(STUDY), str(tmp_path), "--table"]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "a/seed100" in printed and "b/seed100" not in printed and "distance" in printed
    parts = runpy.run_path(str(STUDY))["distance"](load_run(micro_run))
    assert all(value >= 0 for value in parts.values()) and parts["F1 above 0.9"] > 0 and parts["counts"] > 5


def test_every_example_is_run_by_a_test():
    """Here, by the commands of the guide, or by the test beside them."""
    guide = (EXAMPLES.parent / "docs" / "guides" / "probe.md").read_text(encoding="utf-8")
    beside = Path(__file__).with_name("test_guides.py").read_text(encoding="utf-8")
    run = re.findall(r"^python examples/(\S+)", guide, flags=re.MULTILINE)
    run += re.findall(r'"examples" / "(\w+\.py)"', beside)
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"look_into_a_checkpoint.py", *run}
