"""The local engine: commands of `nucleate`, and blocks of prompts, in worker processes of this machine.

A run's worker is the command line in a process of its own, so that a run that crashes, or that the system kills for
its memory, harms no other; what the verb computes is not this file's affair. The other engines run each job in the
same way, on the machine that they found for it.
"""

import _thread
import multiprocessing
import os
import re
import runpy
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

from nucleate.locks import is_locked
from nucleate.memory import free_memory, memory_of
from nucleate.progress import Progress, silent

if TYPE_CHECKING:
    from nucleate.model.blocks import Block, BlockReading, Reader

_LOOK = 0.1  # seconds between two looks at the workers
_TELL = 1.0  # seconds between two looks at how far they are
_TAIL = 4096  # bytes of what a worker wrote last
_STOPPED = 130  # the exit code after Ctrl-C, SIGTERM and SIGHUP
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
class Job:
    """One command of `nucleate` to be run."""

    name: str
    arguments: tuple[str, ...]


@dataclass(frozen=True)
class JobResult:
    """How a job ended. `error` is the last line that a failed one wrote, or the signal that killed it."""

    name: str
    state: Literal["done", "failed"]
    seconds: float
    error: str | None = None
    killed: bool = False


def run_all(jobs: Sequence[Job], *, workers: int, progress: Progress) -> list[JobResult]:
    """Run every job, at most `workers` at once with one thread each; the outcomes, in the order of the jobs.

    A job that fails stops no other. A further worker starts only where the free memory, less what the running ones may
    still take, holds the largest that any worker was seen to be (1 GiB before that is known; one always runs). On
    Ctrl-C the workers are interrupted and waited for; when this process dies in any other way, they die with it.
    """
    waiting, running, outcomes = deque(jobs), list[_Worker](), dict[str, JobResult]()
    looked, largest, told = time.monotonic(), _FIRST_GUESS, False
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
            largest = max(largest, *(memory_of(worker.process.pid) for worker in running))
            for worker in [worker for worker in running if worker.process.poll() is not None]:
                running.remove(worker)
                outcome = outcomes[worker.job.name] = worker.outcome()
                tell_ended(progress, outcome, len(outcomes), len(jobs))
            if running and time.monotonic() - looked >= _TELL:
                looked = time.monotonic()
                _tell_all(progress, running, len(outcomes), len(jobs))
    except KeyboardInterrupt:
        for worker in running:
            worker.interrupt()
        deadline = time.monotonic() + _GRACE
        while any(worker.process.poll() is None for worker in running) and time.monotonic() < deadline:
            time.sleep(_LOOK)
        raise
    finally:
        for worker in running:
            worker.process.kill()
            worker.outcome()
    return [outcomes[job.name] for job in jobs]


def run_one(job: Job) -> JobResult:
    """One job on the machine of whoever calls. One that was killed elsewhere may take a moment to die, and holds its
    folder till then."""
    folder, deadline = Path(job.arguments[job.arguments.index("--out") + 1]), time.monotonic() + _GRACE
    while is_locked(folder) and time.monotonic() < deadline:
        time.sleep(_LOOK)
    return run_all([job], workers=1, progress=silent)[0]


def tell_ended(progress: Progress, outcome: JobResult, behind: int, total: int) -> None:
    ended = "done in" if outcome.state == "done" else "FAILED after"
    why = f": {outcome.error}" if outcome.error else ""
    progress(f"{behind} of {total}: {outcome.name} {ended} {_clock(outcome.seconds)}{why}", None)


def _tell_all(progress: Progress, running: "Sequence[_Worker]", behind: int, total: int) -> None:
    """How far all runs are together, and each of those at work; nothing before the first ones have said where they
    begin, for those that are gone on with begin with a share."""
    shares = {worker.job.name: worker.told() for worker in running}
    if behind == 0 and None in shares.values():
        return
    known = {name: share or 0.0 for name, share in shares.items()}
    share = min((behind + sum(known.values())) / total, 0.99)  # 1 is the end
    each = ", ".join(f"{name} {own:.0%}" for name, own in known.items())
    progress(f"{behind} of {total} runs; {each}", share)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}" if minutes >= 60 else f"{minutes}:{rest:02}"


@dataclass
class _Worker:
    """A process at work on one job."""

    job: Job
    process: subprocess.Popen[bytes]
    errors: IO[bytes]  # a file with a name
    began: float

    @classmethod
    def started(cls, job: Job) -> "_Worker":
        """Out of the terminal's reach: Ctrl-C there is for the parent only, which hands it on."""
        errors = tempfile.NamedTemporaryFile(delete=False)  # noqa: SIM115 -- closed and removed with the worker
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, *job.arguments],
            stdin=subprocess.PIPE,  # a byte hands on Ctrl-C; it closes when this process dies
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,  # and the same on Windows, which ignores this:
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
            env={**os.environ, **_ONE_THREAD},
        )
        return cls(job, process, errors, time.monotonic())

    def interrupt(self) -> None:
        """What Ctrl-C does, asked for through the pipe: no signal does it on every system."""
        assert self.process.stdin is not None
        with suppress(OSError):  # it has just ended
            os.write(self.process.stdin.fileno(), b"\n")

    def told(self) -> float | None:
        """How far it says it is: the last share (` 40%  words`) that its bar has written, 0..1; None before that."""
        with open(self.errors.name, "rb") as file:  # anew: the place where the worker goes on writing is shared
            file.seek(max(0, os.fstat(file.fileno()).st_size - _TAIL))
            found = re.findall(rb"^ *(\d+)%  ", file.read(_TAIL), flags=re.MULTILINE)
        return int(found[-1]) / 100 if found else None

    def outcome(self) -> JobResult:
        """Wait for the end, and close what is open."""
        code = self.process.wait()
        if self.process.stdin:
            self.process.stdin.close()
        self.errors.close()
        lines = Path(self.errors.name).read_text("utf-8", errors="replace").split("\n")
        Path(self.errors.name).unlink()
        seconds = time.monotonic() - self.began
        if code == 0:
            return JobResult(self.job.name, "done", seconds)
        if code < 0:
            name = signal.Signals(-code).name
            memory = ", as the system does where memory runs out" if name == "SIGKILL" else ""
            return JobResult(self.job.name, "failed", seconds, f"killed by {name}{memory}", killed=True)
        last = next((line.strip() for line in reversed(lines) if line.strip()), f"exit code {code}")
        stopped = code == _STOPPED  # politely, as a machine that shuts down does
        return JobResult(self.job.name, "failed", seconds, last.removeprefix("nucleate: "), killed=stopped)


def _room(running: Sequence[_Worker], largest: int) -> bool:
    """Whether one more worker of that size fits beside the running ones, once these have grown to it."""
    return free_memory() >= largest + sum(max(0, largest - memory_of(worker.process.pid)) for worker in running)


def _work(arguments: Sequence[str]) -> None:
    """What a worker does: the command line, beside a thread that listens to its parent: a byte is Ctrl-C; the end of
    the pipe is the end of the parent, and of the worker too."""

    def watch() -> None:
        while os.read(0, 1):
            _thread.interrupt_main()
        os._exit(1)  # at once: runs are made to survive this; an orphan would hold their locks

    threading.Thread(target=watch, daemon=True).start()
    if hasattr(signal, "SIGUSR2"):  # Slurm gives notice by it to all there is: the parent has the job queued again
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    sys.argv = ["nucleate", *arguments]
    runpy.run_module("nucleate.cli", run_name="__main__")


# --- prompts ---------------------------------------------------------------------------------------------------------


def read_blocks(
    open_reader: "Callable[[], Reader]", blocks: "Sequence[Block]", place: Path, *, workers: int
) -> "Iterator[tuple[int, BlockReading]]":
    """Blocks read by processes with a network and one thread each, on the GPUs in turn where there are some. Nothing is
    kept in `place`: who is killed begins anew."""
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(min(workers, len(blocks)), context, _begin, (open_reader, context.Value("i", 0)))
    waiting, running = deque(enumerate(blocks)), dict[Future[Any], int]()
    try:
        while waiting or running:
            while waiting and len(running) < 2 * workers:  # no worker waits, and few readings do
                number, block = waiting.popleft()
                running[pool.submit(_read, block)] = number
            for ended in wait(running, return_when=FIRST_COMPLETED).done:
                yield running.pop(ended), ended.result()
    except BrokenProcessPool:
        told = "a worker was killed, as the system does where memory runs out: ask for fewer --workers"
        raise RuntimeError(told) from None
    finally:
        pool.shutdown(cancel_futures=True)


_begun: Any = None  # in a worker: what opens its reader, and then that
_reader: Any = None


def _begin(open_reader: "Callable[[], Reader]", others: Any) -> None:
    """What a worker does first. Ctrl-C is for its parent, and it dies with it."""
    import torch

    global _begun
    _begun = open_reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    torch.set_num_threads(1)
    with others.get_lock():
        number, others.value = others.value, others.value + 1
    if torch.cuda.is_available():
        torch.cuda.set_device(number % torch.cuda.device_count())


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def _read(block: "Block") -> "BlockReading":
    global _reader
    if _reader is None:  # here, so that a failure is told to the parent
        _reader = _begun()
    found: BlockReading = _reader(block)
    return found


if __name__ == "__main__":
    _work(sys.argv[1:])
