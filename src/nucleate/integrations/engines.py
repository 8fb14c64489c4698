"""Many runs: every combination of the axes a run folder of its own, computed by local workers, one long table out.

`sweep` is the whole story; `run_all` is the engine behind it, and the only function that knows where jobs compute: a
cluster takes its place by the same call. A worker is the command line in a process of its own, so that a run that
crashes, or that the system kills for its memory, harms no other; what the verb computes is not this file's affair.
"""

import fcntl
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import compress, product
from math import prod
from pathlib import Path
from typing import IO, Any, Literal

import polars as pl

from nucleate.config import differing
from nucleate.files import write_whole
from nucleate.progress import Progress
from nucleate.refusal import Refused
from nucleate.runs import METRICS, load_run, make_folder

_MOST_RUNS = 10_000  # more is a slip of the finger
_PLAN = "sweep.json"
_TABLES = ("metrics.parquet", "runs.parquet")
_OURS = {".lock", f".{_PLAN}.part"}  # what a sweep leaves behind when it is killed before its plan is written
_LOOK = 0.1  # seconds between two looks at the workers
_TELL = 1.0  # seconds between two looks at how far they are
_TAIL = 4096  # bytes of what a worker wrote last
_GRACE = 30.0  # seconds in which an interrupted run may close its folder; then it is killed, which harms it no more
_FIRST_GUESS = 2**30  # bytes of a worker before any has been seen at work: interpreter and torch alone take 0.8 GiB
_ONE_THREAD = {
    name: "1"
    for name in (
        "OMP_NUM_THREADS",
        "MKL_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "NUMBA_NUM_THREADS",
        "POLARS_MAX_THREADS",
    )
}


@dataclass(frozen=True)
class Planned:
    """One run of a sweep: its folder's name, the verb with its options, and what it is made from."""

    name: str
    arguments: tuple[str, ...]  # of the command line, without --out, --resume and --overwrite
    settings: str  # everything that decides its numbers, as TOML: a finished run under other settings is not skipped
    varied: Mapping[str, Any] = field(default_factory=dict)  # what sets it apart from its siblings


def sweep(
    runs: Sequence[Planned],
    folder: Path,
    *,
    workers: int,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress,
) -> "list[Outcome]":
    """Compute the runs that are not finished; write the tables of all; the outcomes of those computed now.

    With `resume` finished runs are skipped, killed ones go on, failed ones are tried again, and runs that the sweep did
    not have before are added. `metrics.parquet` then has the bytes of an unbroken sweep. Without `resume` or
    `overwrite` a folder that holds anything is refused, with nothing changed on disk.
    """
    if workers < 1:
        raise Refused(f"--workers {workers} is too small: at least 1")
    _check_alone(runs)
    _check_place(folder, resume=resume, overwrite=overwrite)
    before = _read_plan(folder)
    if resume and not overwrite:
        _check_plan(folder, before, runs)
    _check_idle(folder, before)
    make_folder(folder)
    with _locked(folder):
        if overwrite:
            _clear(folder, before)
            before = {}
        plan = {run.name: run.settings for run in runs}
        if before != plan:
            text = json.dumps({"runs": plan}, indent=2, ensure_ascii=False) + "\n"
            write_whole(folder / _PLAN, lambda path: path.write_text(text, encoding="utf-8"))
        finished = {name for name in before if _state(folder / name) == "done"}
        jobs = [
            Job(run.name, (*run.arguments, "--out", str(folder / run.name), "--resume"))
            for run in runs
            if run.name not in finished
        ]
        if finished and jobs:
            progress(f"{len(finished)} of {len(runs)} runs are finished already", None)
        outcomes = run_all(jobs, workers=workers, progress=progress)
        if jobs or not all((folder / table).is_file() for table in _TABLES):
            states = {**dict.fromkeys(finished, "done"), **{one.name: one.state for one in outcomes}}
            _write_tables(folder, runs, states)
    return outcomes


def _write_tables(folder: Path, runs: Sequence[Planned], states: Mapping[str, str]) -> None:
    """`metrics.parquet`: the rows of every finished run, as they stand there, under its name. `runs.parquet`: all."""
    listed = sorted(runs, key=lambda run: run.name)
    frames = [pl.DataFrame(schema={"run": pl.String, **METRICS})]
    for run in listed:
        if states[run.name] == "done":
            metrics = load_run(folder / run.name).metrics
            frames.append(metrics.select(pl.lit(run.name).alias("run"), pl.all()))
    write_whole(folder / "metrics.parquet", pl.concat(frames, rechunk=True).write_parquet)
    columns = {
        "run": [run.name for run in listed],
        "settings": [json.dumps(dict(run.varied)) for run in listed],
        "state": [states[run.name] for run in listed],
    }
    write_whole(folder / "runs.parquet", pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)).write_parquet)


# --- the engine ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One command of `nucleate` to be run."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """How a job ended. `error` is the last line that a failed one wrote, or the signal that killed it."""

    name: str
    state: Literal["done", "failed"]
    seconds: float
    error: str | None = None


def run_all(jobs: Sequence[Job], *, workers: int, progress: Progress) -> list[Outcome]:
    """Run every job, at most `workers` at once with one thread each; the outcomes, in the order of the jobs.

    A job that fails stops no other. A further worker starts only where the free memory, less what the running ones may
    still take, holds the largest that any worker has been so far (1 GiB before that is known; one always runs). On
    Ctrl-C the workers are interrupted and waited for; when this process dies in any other way, they die with it.
    """
    waiting, running, outcomes = deque(jobs), list[_Worker](), dict[str, Outcome]()
    looked, largest, told, seen = time.monotonic(), _FIRST_GUESS, False, list[float]()
    try:
        while waiting or running:
            while waiting and len(running) < workers:
                if running and not _room(running, largest):
                    if not told:
                        progress(f"free memory allows {len(running)} of {workers} workers for now", None)
                    told = True
                    break
                running.append(_Worker.started(waiting.popleft()))
            time.sleep(_LOOK)
            largest = max(largest, *(worker.memory("VmHWM") for worker in running))
            for worker in [worker for worker in running if worker.process.poll() is not None]:
                running.remove(worker)
                outcome = outcomes[worker.job.name] = worker.outcome()
                _tell(progress, outcome, len(outcomes), len(jobs))
            if running and time.monotonic() - looked >= _TELL:
                looked = time.monotonic()
                _tell_all(progress, running, len(outcomes), len(jobs), seen)
    except KeyboardInterrupt:
        for worker in running:
            worker.process.send_signal(signal.SIGINT)
        deadline = time.monotonic() + _GRACE
        while any(worker.process.poll() is None for worker in running) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        raise
    finally:
        for worker in running:
            worker.process.kill()
            worker.outcome()
    return [outcomes[job.name] for job in jobs]


def _tell(progress: Progress, outcome: Outcome, behind: int, total: int) -> None:
    ended = "done in" if outcome.state == "done" else "FAILED after"
    why = f": {outcome.error}" if outcome.error else ""
    progress(f"{behind} of {total}: {outcome.name} {ended} {_clock(outcome.seconds)}{why}", None)


def _tell_all(progress: Progress, running: "Sequence[_Worker]", behind: int, total: int, seen: list[float]) -> None:
    """How far all runs are together, and each of those at work. `seen` keeps the first look, time and share: the time
    left goes by what was gained since, for runs that are gone on with begin with a share."""
    shares = {worker.job.name: worker.told() for worker in running}
    share = min((behind + sum(shares.values())) / total, 0.99)  # 1 is the end
    now = time.monotonic()
    if not seen and share:
        seen += [now, share]
    known = seen and share > seen[1]
    left = f", about {_clock((now - seen[0]) / (share - seen[1]) * (1 - share))} left" if known else ""
    each = ", ".join(f"{name} {own:.0%}" for name, own in shares.items())
    progress(f"{behind} of {total} runs{left}; {each}", share)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@dataclass
class _Worker:
    """A process at work on one job."""

    job: Job
    process: subprocess.Popen[bytes]
    errors: IO[bytes]
    began: float

    @classmethod
    def started(cls, job: Job) -> "_Worker":
        """In a session of its own: Ctrl-C in the terminal reaches the parent only, which hands it on."""
        errors = tempfile.TemporaryFile()  # noqa: SIM115 -- closed with the worker
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *job.arguments],
            stdin=subprocess.PIPE,  # never written to: it closes when this process dies
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
            env={**os.environ, **_ONE_THREAD},
        )
        return cls(job, process, errors, time.monotonic())

    def memory(self, name: str) -> int:
        """Bytes held now (VmRSS) or at most so far (VmHWM); 0 where the system does not say."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
        except OSError:
            return 0
        found = re.search(rf"^{name}:\s+(\d+) kB", status, flags=re.MULTILINE)
        return int(found[1]) * 1024 if found else 0

    def told(self) -> float:
        """How far it says it is: the last share (` 40%  words`) that its bar has written, 0..1."""
        file = self.errors.fileno()
        size = os.fstat(file).st_size
        tail = os.pread(file, _TAIL, max(0, size - _TAIL))  # the place where it goes on writing is shared: no seek
        found = re.findall(rb"^ *(\d+)%  ", tail, flags=re.MULTILINE)
        return int(found[-1]) / 100 if found else 0.0

    def outcome(self) -> Outcome:
        """Wait for the end, and close what is open."""
        code = self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.errors.seek(0)
        lines = self.errors.read().decode("utf-8", errors="replace").split("\n")
        self.errors.close()
        seconds = time.monotonic() - self.began
        if code == 0:
            return Outcome(self.job.name, "done", seconds)
        if code < 0:
            memory = ", as the system does where memory runs out" if code == -signal.SIGKILL else ""
            return Outcome(self.job.name, "failed", seconds, f"killed by {signal.Signals(-code).name}{memory}")
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
        return Outcome(self.job.name, "failed", seconds, last.removeprefix("nucleate: "))


def _room(running: Sequence[_Worker], largest: int) -> bool:
    """Whether one more worker of that size fits beside the running ones, once these have grown to it."""
    free = _free_memory()
    return free is None or free >= largest + sum(max(0, largest - worker.memory("VmRSS")) for worker in running)


def _free_memory() -> int | None:
    """Bytes that new processes may take from the machine, or from its container where that has less; None: unknown."""
    try:
        found = re.search(r"^MemAvailable:\s+(\d+) kB", Path("/proc/meminfo").read_text(), flags=re.MULTILINE)
    except OSError:
        return None
    free = int(found[1]) * 1024 if found else None
    try:
        group = Path("/sys/fs/cgroup")
        limit = int((group / "memory.max").read_text())  # "max", no number, where there is no limit
        cached = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), flags=re.MULTILINE)
        inside = limit - int((group / "memory.current").read_text()) + (int(cached[1]) if cached else 0)
    except (OSError, ValueError):
        return free
    return inside if free is None else min(free, inside)


def _work(arguments: Sequence[str]) -> None:
    """What a worker does: the command line, under the eye of a thread that ends it when its parent is gone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os.kill(os.getpid(), signal.SIGKILL)  # runs are made to survive this; an orphan would hold their locks

    threading.Thread(target=watch, daemon=True).start()
    sys.argv = ["nucleate", *arguments]
    runpy.run_module("nucleate.cli", run_name="__main__")


# --- axes ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes, as typed."""

    option: str  # `--seed`, or `--set training.batch`
    key: str
    values: tuple[str, ...]

    def words(self, value: str) -> list[str]:
        """One of the values as the command line takes it."""
        return ["--set", f"{self.key}={value}"] if self.option.startswith("--set ") else [self.option, value]


def axis(option: str, key: str, text: str) -> Axis:
    """`0..4` (both ends included), `32,256`, or both mixed."""
    values: list[str] = []
    for item in (part.strip() for part in text.split(",")):
        first, dots, last = item.partition("..")
        if not item:
            raise Refused(f"{option} {text!r} has an empty value; write 0..4 or 32,256")
        if not dots:
            values.append(item)
            continue
        if not all(re.fullmatch(r"-?\d{1,18}", end) for end in (first, last)):
            raise Refused(f"{option} {item!r} is not a range of whole numbers such as 0..4; else list the values: 1,2")
        if int(last) < int(first):
            raise Refused(f"{option} {item!r} runs backwards; did you mean {last}..{first}?")
        if int(last) - int(first) >= _MOST_RUNS:
            raise Refused(f"{option} {item!r} has {int(last) - int(first) + 1} values; at most {_MOST_RUNS}")
        values += map(str, range(int(first), int(last) + 1))
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise Refused(f"{option} {text!r} names {twice[0]} twice; leave one out")
    return Axis(option, key, tuple(values))


def combinations(axes: Sequence[Axis], *, alone: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name, a value of each axis) of every run, the last axis fastest. A name is made of what varies: `seed0-width32`.

    Where nothing varies the only run is called `alone`.
    """
    twice = [key for key, count in Counter(one.key for one in axes).items() if count > 1]
    if twice:
        raise Refused(f"{twice[0]} is given twice; give all its values at once: {twice[0]}=1,2")
    count = prod(len(one.values) for one in axes)
    if count > _MOST_RUNS:
        raise Refused(f"these axes make {count} runs; at most {_MOST_RUNS}: leave values out")
    varying = [len(one.values) > 1 for one in axes]
    short = Counter(one.key.rpartition(".")[2] for one in compress(axes, varying))
    for values in product(*(one.values for one in axes)):
        words = []
        for one, value in compress(zip(axes, values, strict=True), varying):
            last = one.key.rpartition(".")[2]
            word = last if short[last] == 1 else one.key.replace(".", "_")
            words.append(word + ("" if value[0].isdigit() else "_") + re.sub(r"[^A-Za-z0-9.+-]", "_", value))
        yield "-".join(words) or alone, values


# --- at the door -----------------------------------------------------------------------------------------------------


def _check_alone(runs: Sequence[Planned]) -> None:
    """Two runs in one folder would overwrite each other; two of the same settings would count twice."""
    for what in ("name", "settings"):
        seen: dict[str, str] = {}
        for run in runs:
            mark = run.name.casefold() if what == "name" else run.settings
            if mark in seen:
                raise Refused(f"the runs {seen[mark]} and {run.name} have the same {what}; leave one of them out")
            seen[mark] = run.name


def _check_place(folder: Path, *, resume: bool, overwrite: bool) -> None:
    if resume and overwrite:
        raise Refused("--resume keeps what is there, --overwrite replaces it; give one of them")
    if not folder.is_dir():
        return
    if (folder / _PLAN).is_file():
        if not resume and not overwrite:
            raise Refused(f"{folder} holds a sweep; --resume continues it, --overwrite replaces it")
    elif any(inside.name not in _OURS for inside in folder.iterdir()):
        raise Refused(f"{folder} holds files but is not a sweep; name a new folder with --out")


def _read_plan(folder: Path) -> dict[str, str]:
    """Name and settings of every run that the sweep was begun with; empty where there is none."""
    if not (folder / _PLAN).is_file():
        return {}
    try:
        runs = json.loads((folder / _PLAN).read_text(encoding="utf-8"))["runs"]
        return {str(Path(name).name): str(settings) for name, settings in runs.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Refused(f"{folder / _PLAN} is damaged; move the folder away, or name a new one with --out") from None


def _check_plan(folder: Path, before: Mapping[str, str], runs: Sequence[Planned]) -> None:
    wanted = {run.name: run.settings for run in runs}
    missing = sorted(set(before) - set(wanted))
    if missing:
        raise Refused(
            f"{folder} was begun with {len(missing)} runs that are not asked for now, such as {missing[0]}; "
            "ask for them too (others may be added), or name a new folder with --out"
        )
    for name, settings in before.items():
        changed = differing(settings, wanted[name])
        if changed:
            raise Refused(
                f"{folder / name} was begun under other settings: {'; '.join(changed)}; use those, or --overwrite"
            )


def _check_idle(folder: Path, before: Mapping[str, str]) -> None:
    for name in before:
        if _state(folder / name) == "running":
            raise Refused(f"{folder / name} is in use by another process; wait for it, or name another folder")


def _state(folder: Path) -> str | None:
    """The state of a run folder; None where no run has begun."""
    return load_run(folder).state if (folder / "manifest.json").is_file() else None


def _clear(folder: Path, before: Mapping[str, str]) -> None:
    """Remove an old sweep and nothing else. Its plan goes last, so that a kill meanwhile leaves it recognisable."""
    for name in before:
        if (folder / name).is_dir() and not (folder / name).is_symlink():
            shutil.rmtree(folder / name)
    for table in (*_TABLES, _PLAN):
        (folder / table).unlink(missing_ok=True)


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The operating system's lock: it dies with the process, so a killed sweep never blocks the next."""
    with open(folder / ".lock", "w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise Refused(f"{folder} is in use by another sweep; wait for it, or name another folder") from None
        yield


if __name__ == "__main__":
    _work(sys.argv[1:])
