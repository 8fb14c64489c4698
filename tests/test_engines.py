"""Many runs: axes and their refusals, runs that fail beside runs that do not, and a sweep killed half way.

Runs of a network are dear here (each starts a process of its own), so one sweep is computed whole, and the others begin
from copies of it in which runs are missing.
"""

import fcntl
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import polars as pl
import pytest

from nucleate import locks
from nucleate.cli import main
from nucleate.engines import local
from nucleate.engines.axes import axis, combinations
from nucleate.engines.local import Job, run_all
from nucleate.memory import free_memory, total_memory
from nucleate.parts import METRICS
from nucleate.progress import TimeLeft
from nucleate.refusal import Refused
from nucleate.runs import load_run

NAMES = ["seed0-batch12", "seed0-batch6", "seed1-batch12", "seed1-batch6"]  # as text sorts them
TABLES = ("metrics.parquet", "runs.parquet")
COMMAND = ["sweep", "learn", "--size", "micro", "--epochs", "1", "--seed", "0..1", "--set", "training.batch=6,12"]
COMMAND += ["--set", "measure.dense_until=0", "--set", "measure.repeats=1", "--set", "model.layers=1", "--workers", "1"]


def quiet(text: str, fraction: float | None) -> None:
    """Progress that nobody reads."""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An unbroken sweep of two seeds and two settings, to be looked at only; test processes side by side share one."""
    shared = tmp_path_factory.getbasetemp()
    shared = shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared
    with open(shared / "sweep.lock", "w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        patch.setenv("OMP_NUM_THREADS", "2")
        if not (shared / "sweep" / "runs.parquet").exists():
            assert main([*COMMAND, "--out", str(shared / "sweep")]) == 0
    return shared / "sweep"


def copy_of(whole: Path, folder: Path, *, without: str | None = None) -> Path:
    """The sweep again; or as it lies on disk before one of its runs begins."""
    shutil.copytree(whole, folder)
    if without:
        for table in TABLES:
            (folder / table).unlink()
        shutil.rmtree(folder / without)
    return folder


def wait_for(happened: Callable[[], bool], what: str, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def has_begun(run: Path) -> bool:
    return (run / "manifest.json").is_file() and load_run(run).manifest["status"] == "running"


# --- a whole sweep ---------------------------------------------------------------------------------------------------


def test_a_sweep_makes_a_run_folder_for_every_combination_with_one_thread_each(whole):
    assert sorted(path.name for path in whole.iterdir() if path.is_dir()) == NAMES
    for name in NAMES:
        run = load_run(whole / name)
        assert run.manifest["status"] == "done"
        assert run.manifest["threads"] == 1
        assert name == f"seed{run.config['seed']}-batch{run.config['training']['batch']}"


def test_the_long_table_is_the_concatenation_of_the_runs_under_their_names(whole):
    table = pl.read_parquet(whole / "metrics.parquet")
    assert table.columns == ["run", *METRICS]
    parts = [load_run(whole / name).metrics.with_columns(run=pl.lit(name)) for name in NAMES]
    assert table.equals(pl.concat(parts).select(table.columns))
    assert table["run"].unique(maintain_order=True).to_list() == NAMES


def test_the_table_of_runs_says_what_sets_each_apart_and_how_it_ended(whole):
    table = pl.read_parquet(whole / "runs.parquet")
    assert table.columns == ["run", "settings", "state"]
    assert table["run"].to_list() == NAMES
    assert json.loads(table["settings"][0]) == {"seed": 0, "training.batch": 12}
    assert set(table["state"]) == {"done"}


def test_resume_on_a_finished_sweep_changes_nothing_and_says_so(whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path / "sweep")

    def contents() -> dict[Path, tuple[int, int]]:
        files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".lock"]
        return {path: (path.stat().st_mtime_ns, path.stat().st_size) for path in files}

    before = contents()
    assert main([*COMMAND, "--out", str(folder), "--resume"]) == 0
    assert "all 4 runs" in capsys.readouterr().out
    assert contents() == before


# --- interrupted, killed, failed -------------------------------------------------------------------------------------


def test_a_sweep_interrupted_then_killed_half_way_then_resumed_gives_the_same_tables(whole, tmp_path, capsys):
    name = "seed1-batch6"
    folder = copy_of(whole, tmp_path / "sweep", without=name)
    command = [*COMMAND, "--out", str(folder), "--resume"]

    def started() -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "nucleate.cli", *command]
        process = subprocess.Popen(words, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        wait_for(lambda: has_begun(folder / name), "the missing run did not begin")
        return process

    interrupted = started()
    interrupted.send_signal(signal.SIGINT)
    printed = interrupted.communicate(timeout=60)[1]
    assert interrupted.returncode == 130
    assert "--resume" in printed.splitlines()[-1]
    assert load_run(folder / name).state == "interrupted"

    killed = started()
    killed.kill()
    killed.communicate(timeout=60)
    wait_for(lambda: load_run(folder / name).state == "killed", "the worker outlived its parent", seconds=20)
    assert not (folder / "metrics.parquet").exists()

    assert main(command) == 0
    assert "3 of 4 runs are finished already" in capsys.readouterr().err
    for table in TABLES:
        assert (folder / table).read_bytes() == (whole / table).read_bytes()


def test_a_run_that_fails_is_reported_and_the_others_are_in_the_table(whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path / "sweep", without="seed1-batch6")
    (folder / "seed1-batch6").mkdir()
    (folder / "seed1-batch6" / "thesis.tex").write_text("years of work")
    assert main([*COMMAND, "--out", str(folder), "--resume"]) == 1
    printed = capsys.readouterr()
    assert "3 of 4 runs" in printed.out
    assert "seed1-batch6 failed: " in printed.err
    assert "is not a run folder" in printed.err
    assert "1 of 4 runs" in printed.err.splitlines()[-1]
    wanted = pl.read_parquet(whole / "metrics.parquet").filter(pl.col("run") != "seed1-batch6")
    assert pl.read_parquet(folder / "metrics.parquet").equals(wanted)
    states = dict(pl.read_parquet(folder / "runs.parquet").select("run", "state").iter_rows())
    assert states == {**dict.fromkeys(NAMES, "done"), "seed1-batch6": "failed"}
    assert (folder / "seed1-batch6" / "thesis.tex").read_text() == "years of work"


def test_a_job_that_is_refused_or_killed_harms_no_other_and_the_outcomes_keep_the_order(monkeypatch, tmp_path):
    original, told = local._Worker.started, []

    def started(job: Job) -> local._Worker:
        worker = original(job)
        if job.name == "killed":
            os.kill(worker.process.pid, signal.SIGKILL)
        if job.name == "fine":  # counts as at work until it was told of, however soon it ended
            ended = worker.process.poll
            worker.process.poll = lambda: ended() if any("; fine " in text for text, _ in told) else None
        return worker

    monkeypatch.setattr(local._Worker, "started", started)
    monkeypatch.setattr(local, "_TELL", 0.0)
    jobs = [
        Job("killed", ("learn", "--size", "micro", "--out", str(tmp_path / "run"))),
        Job("refused", ("settings", "--size", "smal")),
        Job("fine", ("settings", "--size", "micro")),
    ]
    killed, refused, fine = run_all(jobs, workers=2, progress=lambda text, fraction: told.append((text, fraction)))
    assert (killed.name, killed.state) == ("killed", "failed")
    assert "SIGKILL" in killed.error
    assert (refused.name, refused.state) == ("refused", "failed")
    assert refused.error.startswith("size 'smal' does not exist")
    assert (fine.name, fine.state, fine.error) == ("fine", "done", None)
    lines = [text for text, fraction in told if fraction is None]
    assert len(lines) == 3
    assert lines[-1].startswith("3 of 3: ")
    shares = [fraction for _, fraction in told if fraction is not None]
    assert shares
    assert shares == sorted(shares) and all(0 <= share < 1 for share in shares)


def test_a_worker_is_as_far_as_its_last_line_says_and_writes_on_where_it_was():
    script = "import sys; say = sys.stderr.write; say('3 %\\n 40%  epoch 4 of 10\\n'); sys.stdin.read(1); say('x')"
    with tempfile.NamedTemporaryFile() as errors:
        with subprocess.Popen([sys.executable, "-uc", script], stdin=subprocess.PIPE, stderr=errors) as process:
            worker = local._Worker(Job("one", ()), process, errors, time.monotonic())
            while not worker.told():
                assert process.poll() is None
                time.sleep(0.01)
            assert worker.told() == 0.4
            process.communicate(b"\n")
        errors.seek(0)
        assert errors.read() == b"3 %\n 40%  epoch 4 of 10\nx"


def test_a_sweep_tells_how_far_its_runs_are_while_they_compute(tmp_path, monkeypatch):
    monkeypatch.setattr(local, "_TELL", 0.05)
    told = []
    job = Job("seed7", ("learn", "--size", "micro", "--seed", "7", "--epochs", "2", "--out", str(tmp_path / "seed7")))
    run_all([job], workers=1, progress=lambda text, fraction: told.append((text, fraction)))
    between = [text for text, share in told if share and share < 0.99]
    assert between
    assert all(re.fullmatch(r"0 of 1 runs; seed7 \d+%", text) for text in between)


def test_runs_that_are_gone_on_with_are_told_from_where_they_begin_so_that_the_time_left_is_right(monkeypatch):
    class Stub:
        job = Job("seed0", ())
        share = None  # it has not said anything

        def told(self):
            return self.share

    clock = [100.0]
    left = TimeLeft(lambda: clock[0])
    told, stub = [], Stub()

    def progress(text, share):
        left.tell(share)
        told.append((text, share))

    for clock[0], stub.share in ((90.0, None), (100.0, 0.6), (110.0, 0.8)):
        local._tell_all(progress, [stub], 0, 2)
    assert told == [("0 of 2 runs; seed0 60%", 0.3), ("0 of 2 runs; seed0 80%", 0.4)]
    assert left.seconds == pytest.approx(60)


@pytest.mark.parametrize(("free", "at_once"), [(2**60, 3), (0, 1)])
def test_no_more_workers_run_than_were_asked_for_or_than_memory_has_room_for(free, at_once, monkeypatch):
    monkeypatch.setattr(local, "free_memory", lambda: free)
    original, alive, most = local._Worker.started, [], 0

    def started(job: Job) -> local._Worker:
        nonlocal most
        worker = original(job)
        alive.append(worker.process)
        most = max(most, sum(process.returncode is None for process in alive))
        return worker

    monkeypatch.setattr(local._Worker, "started", started)
    told = []
    jobs = [Job(f"job {n}", ("settings", "--size", "micro")) for n in range(5)]
    outcomes = run_all(jobs, workers=3, progress=lambda text, fraction: told.append(text))
    assert [(outcome.name, outcome.state) for outcome in outcomes] == [(f"job {n}", "done") for n in range(5)]
    assert most == at_once
    assert sum("free memory" in text for text in told) == (at_once == 1)


def test_the_free_memory_of_this_machine_is_a_sensible_number():
    assert 2**26 < free_memory() <= total_memory() < 2**50


# --- axes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("7", ["7"]),
        ("0..4", ["0", "1", "2", "3", "4"]),
        ("3..3", ["3"]),
        ("32, 256", ["32", "256"]),
        ("0..2,7,9..10", ["0", "1", "2", "7", "9", "10"]),
        ("1e-3,0.5", ["1e-3", "0.5"]),
        ("tree,rows", ["tree", "rows"]),
    ],
)
def test_values_are_single_ones_ranges_with_both_ends_and_lists(text, values):
    assert list(axis("--seed", "seed", text).values) == values


def test_a_name_is_made_of_what_varies_and_two_keys_of_one_last_word_are_told_apart():
    axes = [
        axis("--seed", "seed", "0,1"),
        axis("--epochs", "training.epochs", "5"),
        axis("--set training.packing", "training.packing", "tree,rows"),
        axis("--set data.inputs", "data.inputs", "own,a/b"),
    ]
    named = dict(combinations(axes, alone="learn"))
    wanted = ["packing_tree-inputs_own", "packing_tree-inputs_a_b", "packing_rows-inputs_own"]
    assert list(named)[:3] == [f"seed0-{name}" for name in wanted]
    assert named["seed1-packing_rows-inputs_own"] == ("1", "5", "rows", "own")
    assert len(named) == 8
    alike = [axis("--set a.size", "a.size", "1,2"), axis("--set b.size", "b.size", "1,2")]
    assert next(combinations(alike, alone="learn"))[0] == "a_size1-b_size1"
    assert list(combinations([axis("--seed", "seed", "3")], alone="learn")) == [("learn", ("3",))]


def test_more_runs_than_anybody_means_are_refused_before_they_are_counted_out():
    with pytest.raises(Refused, match="at most 10000"):
        axis("--seed", "seed", "0..999999999999")
    many = [axis("--seed", "seed", "0..999"), axis("--width", "model.width", "1..11")]
    with pytest.raises(Refused, match="11000 runs"):
        next(combinations(many, alone="learn"))


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--seed", "0..x"], "whole numbers"),
        (["--seed", "4..0"], "did you mean 0..4"),
        (["--seed", "0,,1"], "empty value"),
        (["--seed", "0..2,1"], "names 1 twice"),
        (["--set", "training.batch"], "section.key=value"),
        (["--set", "training.bach=6,12"], "did you mean 'training.batch'"),
        (["--set", "seed=0,1"], "'seed' does not exist"),
        (["--set", "overwrite=0,1"], "'overwrite' does not exist"),
        (["--width", "16,wide"], "--width 'wide' is not a whole number"),
        (["--width", "16", "--set", "model.width=8,16"], "given twice"),
        (["--dtype", "float32,float31"], "did you mean 'float32'"),
        (["--set", "training.learning_rate=1e-3,0.001"], "have the same settings"),
        (["--sed", "0..4"], "option --sed is unknown; did you mean '--seed'"),
        (["--worker", "2"], "did you mean '--workers'"),
        (["--device", "abacus"], "--device"),
        (["--workers", "0"], "at least 1"),
        (["--engine", "slrum"], "did you mean 'slurm'"),
        (["--address", "head:6379"], "--address belongs to ray"),
        (["--minutes", "60"], "--minutes belongs to slurm"),
        (["--engine", "ray", "--memory", "8"], "--memory belongs to slurm"),
        (["--engine", "slurm", "--memory", "0"], "at least 1"),
        (["--resume", "--overwrite"], "one of them"),
        (["--out", "{tmp}/full"], "is not a sweep"),
        (["--out", "{tmp}/full", "--overwrite"], "is not a sweep"),
        (["--out", "{tmp}/full/thesis.tex"], "is a file"),
    ],
)
def test_what_cannot_be_swept_is_refused_in_one_line_with_nothing_on_disk(arguments, says, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years of work")
    words = ["sweep", "learn", "--size", "micro", "--out", "{tmp}/new", *arguments]
    assert main([word.replace("{tmp}", str(tmp_path)) for word in words]) == 2
    printed = capsys.readouterr()
    assert says in printed.err
    assert printed.err.count("\n") == 1
    assert not printed.out
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["thesis.tex"]
    assert not (tmp_path / "new").exists()


def test_fast_is_passed_on_to_every_run_and_said_once(tmp_path, monkeypatch, capsys):
    planned = []
    monkeypatch.setattr("nucleate.engines.sweep.sweep", lambda runs, *_, **__: planned.extend(runs) or [])
    for more in (["--fast"], []):
        assert main(["sweep", "align", "--size", "micro", "--seed", "0,1", *more, "--out", str(tmp_path / "x")]) == 0
        assert capsys.readouterr().err.count("packed law") == len(more)
    assert ["--fast" in run.arguments for run in planned] == [True, True, False, False]
    assert ['packing = "tree"' in run.settings for run in planned] == [True, True, False, False]


def test_only_verbs_that_write_one_run_folder_are_swept(tmp_path, capsys):
    assert main(["sweep", "data", "--out", str(tmp_path / "new")]) == 2
    assert "'data' is unknown" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("more", "says"),
    [
        ([], "--resume continues it"),
        (["--resume", "--seed", "1..2"], "2 runs that are not asked for now, such as seed0-batch12"),
        (["--resume", "--epochs", "2"], "training.epochs (1 there, 2 now)"),
    ],
)
def test_a_sweep_is_not_mixed_with_another(more, says, whole, capsys):
    assert main([*COMMAND, *more, "--out", str(whole)]) == 2
    assert says in capsys.readouterr().err


def test_overwrite_replaces_the_old_sweep_and_leaves_what_is_not_its_own(whole, tmp_path, monkeypatch):
    folder = copy_of(whole, tmp_path / "sweep")
    (folder / "notes.txt").write_text("mine")
    asked = []

    def run_none(jobs, *, workers, progress):
        asked.extend(jobs)
        return [local.JobResult(job.name, "failed", 0.0, "not here") for job in jobs]

    monkeypatch.setattr(local, "run_all", run_none)
    assert main([*COMMAND, "--seed", "7", "--out", str(folder), "--overwrite"]) == 1
    assert [job.name for job in asked] == ["batch6", "batch12"]
    assert asked[0].arguments[-3:] == ("--out", str(folder / "batch6"), "--resume")
    assert not any((folder / name).exists() for name in NAMES)
    assert (folder / "notes.txt").read_text() == "mine"
    assert pl.read_parquet(folder / "metrics.parquet").is_empty()


def test_a_resumed_sweep_may_grow_by_runs_and_computes_only_those(whole, tmp_path, monkeypatch):
    folder = copy_of(whole, tmp_path / "sweep")
    asked = []

    def run_none(jobs, *, workers, progress):
        asked.extend(job.name for job in jobs)
        return [local.JobResult(job.name, "failed", 0.0, "not here") for job in jobs]

    monkeypatch.setattr(local, "run_all", run_none)
    assert main([*COMMAND, "--seed", "0..2", "--out", str(folder), "--resume"]) == 1
    assert asked == ["seed2-batch6", "seed2-batch12"]
    assert (folder / "metrics.parquet").read_bytes() == (whole / "metrics.parquet").read_bytes()


def test_a_sweep_that_another_process_holds_is_refused(whole, tmp_path, capsys):
    folder = copy_of(whole, tmp_path / "sweep")
    with locks.locked(folder, "sweep"):
        assert main([*COMMAND, "--out", str(folder), "--resume"]) == 2
    assert "in use by another sweep" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "killed"), [("os.kill(os.getpid(), 9)", True), ("sys.exit(130)", True), ("sys.exit(1)", False)]
)
def test_who_is_killed_or_stopped_is_told_from_who_fails(code, killed, monkeypatch):
    """A machine that shuts down stops its workers by SIGTERM, after which the command line ends with 130."""
    words = [sys.executable, "-c", f"import os, sys; {code}"]
    monkeypatch.setattr(local.subprocess, "Popen", lambda _, **how: Popen(words, **how))
    outcome = local._Worker.started(Job("toy", ("learn",))).outcome()
    assert outcome.state == "failed" and outcome.killed == killed


def test_a_run_of_a_sweep_has_the_bytes_of_the_same_run_by_itself(whole, tmp_path):
    """One thread each, as a worker has."""
    alone = {"0..1": "1", "training.batch=6,12": "training.batch=12"}
    words = [alone.get(word, word) for word in COMMAND[1 : COMMAND.index("--workers")]]
    assert main([*words, "--out", str(tmp_path / "alone")]) == 0
    wanted = (tmp_path / "alone" / "metrics.parquet").read_bytes()
    assert sum((place / "metrics.parquet").read_bytes() == wanted for place in whole.iterdir() if place.is_dir()) == 1
