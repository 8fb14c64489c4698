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


STUDY = EXAMPLES / "studies" / "sweeps.py"


def test_every_sweep_of_the_study_is_one_that_nucleate_takes(monkeypatch, capsys):
    printed = subprocess.run([sys.executable, str(STUDY), "out"], capture_output=True, text=True, check=True).stdout
    planned: dict[str, list] = {"learn": [], "pretrain": []}
    experiments = {
        verb: SimpleNamespace(
            dataset_for=lambda config, verb=verb: planned[verb].append(config) or check_network(config)
        )
        for verb in planned
    }
    monkeypatch.setattr(verbs, "_experiments", lambda: experiments)
    monkeypatch.setattr("nucleate.engines.sweep.sweep", lambda runs, *more, **how: [])
    sweeps = [shlex.split(line) for line in printed.splitlines()]
    for words in sweeps:
        assert words.pop(0) == "nucleate" and main(words) == 0, words
    reading = runpy.run_path(str(STUDY))
    factors = 2 * len(reading["FACTORS"]) - 1
    of_reading = planned["learn"][: 2 * (factors + 2 * 3)]  # two seeds; from either base three factors have two values
    assert {config.model.width for config in of_reading} == {128}
    assert {config.model.feed_forward for config in of_reading} == {256}
    assert {config.training.epochs for config in of_reading} == {60, 200}
    assert {config.model.architecture for config in of_reading} == {"gpt2", "marian"}
    assert {config.seed for config in planned["pretrain"]} == {100, 101, 102}
    steps = [c.training.epochs * c.data.total_distributions for c in planned["learn"] if c.data.tasks != 50]
    assert set(steps) == {60 * 144}  # other numbers of tasks are trained for as many steps


def test_the_tables_of_the_study_are_of_finished_runs_nearest_first_and_each_against_its_base(micro_run, tmp_path):
    for name in ("prenorm-base/seed100", "prenorm-batch/seed100-batch8", "postnorm-base/seed100"):
        shutil.copytree(micro_run, tmp_path / name, ignore=shutil.ignore_patterns("layouts", "checkpoints"))
    manifest = tmp_path / "postnorm-base" / "seed100" / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"done"', '"interrupted"'))

    def printed(asked):
        command = [sys.executable, str(STUDY), str(tmp_path), asked]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    near = printed("--distance")
    assert "prenorm-base/seed100" in near and "postnorm" not in near
    header, base, batch = printed("--effects").splitlines()
    assert header.startswith("factor") and base.startswith("prenorm-base") and batch.startswith("prenorm-batch batch8")
    assert batch.split().count("0.000") == 2 and "0.000" not in base  # less the base's, which is the same run
    parts = runpy.run_path(str(STUDY))["distance"](load_run(micro_run))
    assert all(value >= 0 for value in parts.values()) and parts["F1 above 0.9"] > 0 and parts["counts"] > 5


def test_the_mechanism_is_drawn_in_two_pictures(micro_run, tmp_path):
    command = [sys.executable, str(EXAMPLES / "studies" / "mechanism.py"), str(micro_run), str(tmp_path)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    assert [Path(one).name for one in printed] == [
        f"mechanism_{name}.{ending}" for name in ("layers", "parts") for ending in ("png", "svg")
    ]
    assert all(Path(one).stat().st_size > 5000 for one in printed)
    assert "a linear probe names the task" in (tmp_path / "mechanism_layers.svg").read_text(encoding="utf-8")


def test_every_example_is_run_by_a_test():
    """Here, by the commands of the guide, or by the test beside them."""
    guide = (EXAMPLES.parent / "docs" / "guides" / "probe.md").read_text(encoding="utf-8")
    beside = Path(__file__).with_name("test_guides.py").read_text(encoding="utf-8")
    run = re.findall(r"^python examples/(\S+)", guide, flags=re.MULTILINE)
    run += re.findall(r'"examples" / "(\w+\.py)"', beside)
    assert {path.name for path in EXAMPLES.glob("*.py")} == {"look_into_a_checkpoint.py", *run}
