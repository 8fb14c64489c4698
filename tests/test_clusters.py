"""Other engines than the local one: the same bytes, whatever is lost on the way.

Ray has a cluster of two machines, which this one plays, and Slurm is submitit's executor of local processes. They
compute two of the four runs that the local engine computes for `test_engines.py`, and are held against those.
"""

import json
import os
import re
import shlex
import shutil
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import psutil
import pytest

import test_engines
from nucleate.cli import main
from nucleate.engines import door, local, slurm
from nucleate.engines import ray as on_ray
from nucleate.engines.local import JobResult
from nucleate.files import write_text
from nucleate.model.blocks import Block
from nucleate.model.networks import gpt2, save_network, word_tokenizer
from nucleate.model.prompts import open_reader, read_prompts_states
from nucleate.refusal import Refused
from nucleate.runs import load_run
from test_engines import COMMAND, TABLES, copy_of, has_begun, wait_for
from test_families import lines, tiny, words
from test_guides import ROOT, options_of, prompts

GUIDE = (ROOT / "docs" / "guides" / "clusters.md").read_text(encoding="utf-8")
whole = test_engines.whole  # a fixture
MISSING = ("seed0-batch6", "seed1-batch6")


@pytest.fixture(autouse=True)
def _alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray keeps no token in the home of whoever runs the tests, and tells nobody of them."""
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")


def without_two(whole: Path, folder: Path) -> Path:
    copy_of(whole, folder, without=MISSING[0])
    shutil.rmtree(folder / MISSING[1])
    return folder


def events(run: Path) -> list[str]:
    return [json.loads(line)["event"] for line in (run / "log.jsonl").read_text().splitlines()]


def processes_of(run: Path) -> list[psutil.Process]:
    """Those that compute a run."""
    found = []
    for process in psutil.process_iter():
        try:
            words = process.cmdline()
        except psutil.Error:
            continue
        if "nucleate.engines.local" in words and str(run) in words:
            found.append(process)
    return found


def same_sweep(folder: Path, whole: Path) -> None:
    for table in TABLES:
        assert (folder / table).read_bytes() == (whole / table).read_bytes()
    assert {load_run(folder / name).manifest["threads"] for name in MISSING} == {1}


# --- runs ------------------------------------------------------------------------------------------------------------


def test_slurm_gives_the_same_bytes_and_a_run_that_is_queued_again_goes_on_from_its_folder(
    whole, tmp_path, monkeypatch
):
    import submitit

    folder, struck = without_two(whole, tmp_path / "sweep"), []
    monkeypatch.setenv(slurm.CLUSTER, "local")
    asked = submitit.AutoExecutor.map_array

    class Watched:
        """A job that is given notice once its run has begun, as by a cluster that wants its machine back."""

        def __init__(self, job, run):
            self.job, self.run = job, run

        def done(self):
            if not struck and has_begun(self.run):
                struck.append(self.run)
                for task in psutil.Process(int(self.job.job_id)).children():
                    task.send_signal(signal.SIGUSR2)
            return self.job.done()

        def __getattr__(self, name):
            return getattr(self.job, name)

    def watched(executor, function, jobs):
        return [Watched(one, folder / job.name) for one, job in zip(asked(executor, function, jobs), jobs, strict=True)]

    monkeypatch.setattr(submitit.AutoExecutor, "map_array", watched)
    monkeypatch.setattr(slurm, "_LOOK", 0.02)
    words = ["--engine", "slurm", "--minutes", "60", "--memory", "2", "--out", str(folder), "--resume"]
    assert main([*COMMAND, *words]) == 0
    same_sweep(folder, whole)
    assert len(struck) == 1 and "resumed" in events(struck[0])
    assert not [path for path in (folder / "slurm").rglob("*") if path.stat().st_size > 2**17]  # logs, and no states


@pytest.fixture
def cluster() -> Iterator[SimpleNamespace]:
    """Two machines with a core each, the first of which answers at `address`."""
    from ray.cluster_utils import Cluster

    machine = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    quick = {"health_check_initial_delay_ms": 2000, "health_check_period_ms": 1000, "health_check_failure_threshold": 5}
    made = Cluster(initialize_head=True, head_node_args={**machine, "_system_config": quick})
    try:
        second = made.add_node(**machine)
        lose = partial(made.remove_node, second, allow_graceful=False)
        yield SimpleNamespace(address=made.address, second=second, lose_second=lose)
    finally:
        made.shutdown()


def test_ray_gives_the_same_bytes_though_a_worker_is_killed_and_a_machine_lost(whole, tmp_path, cluster):
    folder = without_two(whole, tmp_path / "sweep")
    finished = {path: path.stat().st_mtime_ns for path in folder.rglob("metrics.parquet")}
    command = [*COMMAND, "--engine", "ray", "--address", cluster.address, "--workers", "2"]
    program = [sys.executable, "-m", "nucleate.cli", *command, "--out", str(folder), "--resume"]
    with psutil.Popen(program, stderr=-1, stdout=-1, text=True) as process:
        (lost,) = (one.process.pid for one in cluster.second.all_processes["raylet"])
        struck = set()

        def both_struck() -> bool:
            assert process.poll() is None, process.communicate()
            for name in sorted(set(MISSING) - struck):
                if not has_begun(folder / name) or not (at_work := processes_of(folder / name)):
                    continue
                worker = at_work[0].parent()
                struck.add(name)
                if worker.ppid() == lost:
                    cluster.lose_second()
                else:
                    worker.send_signal(signal.SIGKILL)
            return len(struck) == 2

        wait_for(both_struck, "the runs did not begin", seconds=250)
        printed = process.communicate(timeout=250)
    assert process.returncode == 0, printed
    assert {path: path.stat().st_mtime_ns for path in finished} == finished
    assert all("resumed" in events(folder / name) for name in MISSING)
    same_sweep(folder, whole)


def test_a_run_that_the_system_kills_is_tried_again_and_one_that_fails_is_not(monkeypatch):
    ended = [
        JobResult("one", "failed", 1.0, "killed by SIGKILL", killed=True),
        JobResult("two", "failed", 1.0, "refused"),
    ]
    monkeypatch.setattr(on_ray, "run_one", lambda job: job)
    with pytest.raises(on_ray._Killed, match="SIGKILL"):
        on_ray._run(ended[0])
    assert on_ray._run(ended[1]) is ended[1]


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["local", "ray"])
def test_prompts_read_by_two_workers_have_the_states_of_one_process_to_the_bit(engine, tmp_path, monkeypatch):
    rows = prompts()
    tokenizer = word_tokenizer(sorted({word for row in rows for word in row["prompt"].split()}))
    shape = {"width": 16, "feed_forward": 32, "layers": 2, "heads": 2, "positions": 64, "dropout": 0, "pad": 0}
    save_network(gpt2(vocabulary=len(tokenizer), seed=1, **shape), tokenizer, tmp_path / "model")
    write_text(tmp_path / "prompts.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    monkeypatch.setattr("nucleate.model.prompts.batch_budget", lambda *_: 40)  # so that there are several blocks
    readings: list[list[np.ndarray]] = []

    def read(*arguments, **named):
        assert (named["elsewhere"] is None) == (len(readings) == 1)
        found = read_prompts_states(*arguments, **named)
        readings[-1].extend(np.array(states) for states in found.states.values())
        return found

    monkeypatch.setattr("nucleate.probing.study.read_prompts_states", read)
    asked = ["probe", str(tmp_path / "model"), str(tmp_path / "prompts.jsonl"), "--columns", "task=label"]
    for name, more in {"one": [], "two": ["--engine", engine, "--workers", "2"]}.items():
        readings.append([])
        assert main([*asked, *more, "--out", str(tmp_path / name)]) == 0
        assert not (tmp_path / name / "blocks").exists()
    one, two = readings
    assert len(one) == len(two) == 2 and one[0].shape == (3, len(rows), 16)  # trained and untrained
    assert not np.array_equal(*one)
    assert all(np.array_equal(*both) for both in zip(one, two, strict=True))
    assert (tmp_path / "one" / "metrics.parquet").read_bytes() == (tmp_path / "two" / "metrics.parquet").read_bytes()


@pytest.mark.parametrize("kind", ["llama", "bert"])
def test_blocks_that_were_told_before_a_kill_are_not_read_again(kind, tmp_path, monkeypatch):
    import pyarrow
    import pyarrow.parquet

    model, tokenizer, some, dealt = tiny(kind), words(), lines(), []
    opened = partial(open_reader, lambda: (model, tokenizer))

    def asked(layers, blocks):
        dealt.append((layers, blocks))
        return enumerate(map(opened(layers), blocks))

    given = {"reads": {"input": None, "instruction_end": [1]}, "tokens_per_batch": 30}
    whole = read_prompts_states(model, tokenizer, some, elsewhere=asked, **given)
    ((layers, blocks),) = dealt
    assert len(blocks) > 2 and [Block.of_json(one.to_json()) for one in blocks] == blocks
    reader, folder = on_ray._BlockReader(partial(opened, layers)), tmp_path / "told"
    folder.mkdir()
    for number, block in enumerate(blocks):
        row = {"block": [on_ray._name(block.to_json())], "text": [block.to_json()]}
        pyarrow.parquet.write_table(reader(pyarrow.table(row)), folder / f"{number}.parquet")

    def none(*_):
        raise AssertionError("Ray was started")

    monkeypatch.setattr(on_ray, "_connected", none)
    again = partial(on_ray.read_blocks, opened, place=tmp_path, workers=1, address=None)
    reading = read_prompts_states(model, tokenizer, some, elsewhere=lambda _, blocks: again(blocks), **given)
    for read, states in whole.states.items():
        np.testing.assert_array_equal(reading.states[read], states)
    assert reading.answers == whole.answers
    for name in ("predicted", "whole", "restricted"):
        assert np.array_equal(getattr(reading, name), getattr(whole, name))

    (folder / "1.parquet").write_bytes((folder / "1.parquet").read_bytes()[:-9])  # it was killed while it wrote
    told = []
    with pytest.raises(AssertionError, match="Ray was started"):
        told.extend(number for number, _ in again(blocks))
    assert sorted([*told, 1]) == list(range(len(blocks)))
    assert pl.read_parquet(tmp_path / "asked.parquet")["text"].to_list() == [blocks[1].to_json()]


def test_a_worker_that_is_killed_ends_the_reading_in_one_line(monkeypatch):
    blocks = [Block((), (), False, (), ())] * 3
    with pytest.raises(RuntimeError, match="ask for fewer --workers"):
        list(local.read_blocks(partial(os._exit, 9), blocks, Path(), workers=1))


# --- at the door -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("engine", "package"), [("ray", "pyarrow"), ("slurm", "submitit")])
def test_without_its_package_an_engine_is_refused_in_one_line_that_names_the_extra(engine, package, monkeypatch):
    monkeypatch.setattr(door, "find_spec", lambda name: None if name == package else name)
    with pytest.raises(Refused, match=rf"needs the package {package}: pip install 'nucleate\[{engine}\]'"):
        door.runner(engine, Path())


def test_the_guide_names_every_option_of_the_engines_and_its_commands_are_understood(tmp_path, monkeypatch):
    options = {"--engine", "--workers", "--address", "--minutes", "--memory"}
    assert options <= options_of("sweep") and options - {"--minutes", "--memory"} <= options_of("probe")
    assert all(f"`{option}" in GUIDE for option in options) and slurm.CLUSTER in GUIDE
    monkeypatch.chdir(tmp_path)
    handed, read = [], []

    def run_none(jobs, *, progress, **how):
        handed.append((len(jobs), how))
        return [JobResult(job.name, "failed", 0.0, "not here") for job in jobs]

    for engine in (local, on_ray, slurm):
        monkeypatch.setattr(engine, "run_all", run_none)
    monkeypatch.setattr("nucleate.probing.probe.probe_into", lambda *_, engine, **__: read.append(engine) or False)
    monkeypatch.setattr("nucleate.model.places.at_the_door", lambda *_, **__: None)
    monkeypatch.setattr("nucleate.verbs._redraw", lambda folders: None)
    for line in re.findall(r"^(?:\w+=\S+ )*nucleate (.+)$", GUIDE, flags=re.MULTILINE):
        words = shlex.split(line.replace("--size small", "--size micro").replace("/shared", "shared"))
        words[-1] += "" if words[0] == "probe" else f"-{len(handed)}"
        assert main(words) == (0 if words[0] == "probe" else 1), line
    assert {count for count, _ in handed} == {20}
    assert [how.get("address") for _, how in handed] == [None, None, "head:6379", None]
    assert [engine.func.__module__ for engine in read] == [local.read_blocks.__module__, on_ray.__name__]
