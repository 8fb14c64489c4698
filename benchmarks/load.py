"""Load: a million labelled states scored within 8 GiB, a folder of ten thousand runs listed, the log of a week.

    python benchmarks/load.py                      50,000 states of width 768, 1,000 runs, a log of 100,000 lines
    python benchmarks/load.py --states 1000000 --runs 10000 --lines 1000000

The states are random around their tasks' means, kept in half precision in a memory map. Each measure runs in a process
of its own; what is told of it are seconds, the most memory that it had in use, and how much of that was no file's.
"""

import argparse
import json
import os
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

TASKS, WIDTH, QUERIES = 20, 768, 10_000
WORST = 8.0  # GiB


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=50_000)
    parser.add_argument("--queries", type=int, default=QUERIES)
    parser.add_argument("--runs", type=int, default=1_000)
    parser.add_argument("--lines", type=int, default=100_000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        write_states(folder, asked.states)
        worst = max(
            told(f"k-means of {asked.states:,} states, k = {TASKS}", lambda: cluster(folder)),
            told(f"linear probe of {asked.states:,} states", lambda: read_off(folder)),
            told(f"neighbours of {asked.queries:,} among {asked.states:,}", lambda: neighbours(folder, asked.queries)),
            told(f"{asked.runs:,} runs written", lambda: write_runs(folder / "runs", asked.runs)),
            told(f"{asked.runs:,} runs listed", lambda: list_them(folder / "runs")),
            told(f"a log of {asked.lines:,} lines gone on with", lambda: go_on(folder / "week", asked.lines)),
        )
    print(f"the most: {worst:.2f} GiB of {WORST:g}")


def told(what: str, work: Callable[[], str]) -> float:
    """Print what it took; the most memory in use, in GiB."""
    there, here = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            watch = Memory()
            began = time.perf_counter()
            said = work()
            found = {"seconds": time.perf_counter() - began, "said": said, **watch.ends()}
            os.write(here, json.dumps(found).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(here)
    with os.fdopen(there) as stream:
        answer = stream.read()
    assert os.waitpid(child, 0)[1] == 0, what
    found = json.loads(answer)
    print(f"{what:44} {found['seconds']:9.1f} s {found['most']:6.2f} GiB, {found['own']:.2f} its own; {found['said']}")
    return float(found["most"])


class Memory:
    """The most that this process has in use, looked at ten times a second."""

    def __init__(self) -> None:
        self.most = self.own = 0.0
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.watch, daemon=True)
        self.thread.start()

    def look(self) -> None:
        facts = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        all_, own = (int(facts[name].split()[0]) / 2**20 for name in ("VmRSS", "RssAnon"))
        self.most, self.own = max(self.most, all_), max(self.own, own)

    def watch(self) -> None:
        while not self.ended.wait(0.1):
            self.look()

    def ends(self) -> dict[str, float]:
        self.ended.set()
        self.thread.join()
        self.look()
        return {"most": self.most, "own": self.own}


def write_states(folder: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    means = rng.normal(size=(TASKS, WIDTH)).astype(np.float32)
    states = np.lib.format.open_memmap(folder / "states.npy", "w+", np.float16, (count, WIDTH))
    for first in range(0, count, 10_000):
        rows = states[first : first + 10_000]
        rows[:] = means[np.arange(first, first + len(rows)) % TASKS] + 4 * rng.normal(size=rows.shape).astype(
            np.float32
        )


def states_of(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    states = np.load(folder / "states.npy", mmap_mode="r")
    return states, np.arange(len(states)) % TASKS


def cluster(folder: Path) -> str:
    from nucleate.measures.clustering import kmeans
    from nucleate.measures.scores import cluster_scores

    states, task = states_of(folder)
    return f"F1 {cluster_scores(task, kmeans(states, TASKS, seed=0)).f1:.3f}"


def read_off(folder: Path) -> str:
    from nucleate.measures.held_out import inner_folds, outer_folds, read_linearly

    states, task = states_of(folder)
    units, everyone = np.arange(len(states)) // 5, np.arange(len(states))
    known, asked = everyone[: len(everyone) // 2], everyone[len(everyone) // 2 :]
    units[asked] += units.max() + 1
    inner, outer = inner_folds(units, None, known, seed=0), outer_folds(units, None, known, asked, seed=0)
    return f"accuracy {np.nanmean(read_linearly(states, task, inner, outer).named(task)[0][asked]):.3f}"


def neighbours(folder: Path, count: int) -> str:
    from nucleate.measures.neighbours import Labels
    from nucleate.measures.shares import TaskDeals, neighbour_shares

    states, task = states_of(folder)
    chosen = np.sort(np.random.default_rng(1).choice(len(states), min(count, len(states)), replace=False))

    def labels(rows: np.ndarray) -> Labels:
        unknown = np.full(len(rows), -1)
        return Labels(rows, unknown, unknown, task[rows], unknown)

    query, candidate = labels(chosen), labels(np.arange(len(states)))
    deals = [{"none": TaskDeals.of(query, candidate)}]
    nobody = [np.full(len(chosen), -1)]
    (found,) = neighbour_shares([(states[chosen], query)], states, candidate, deals=deals, origin=nobody)
    return f"share of ten {found.measures['none']['knn_share']:.3f}"


def write_runs(folder: Path, count: int) -> str:
    for number in range(count):
        run = folder / f"group-{number % 100}" / f"run-{number}"
        (run / "parts").mkdir(parents=True)
        (run / "config.toml").write_text(f'verb = "learn"\nsize = "small"\nseed = {number}\n')
        (run / "manifest.json").write_text('{"status": "done"}')
        for part in range(10):
            (run / "parts" / f"epoch-{part:04d}.parquet").write_bytes(b"part")
    return ""


def list_them(folder: Path) -> str:
    from contextlib import redirect_stdout
    from io import StringIO

    from nucleate.terminal import list_runs

    with redirect_stdout(StringIO()) as said:
        list_runs(folder)
    return f"{len(said.getvalue().splitlines()):,} lines"


def go_on(folder: Path, lines: int) -> str:
    """Begun, stopped with a long log, gone on with and shown."""
    from nucleate.runs import load_run, open_run

    asked = {"settings": 'verb = "learn"\nsize = "small"\nseed = 1\n', "differing": lambda *two: []}
    with open_run(folder, **asked) as run:
        assert run is not None
        run.paused = True
    line = json.dumps({"time": "2026-11-30T00:00:00+0000", "event": "epoch", "text": "x" * 100}) + "\n"
    with open(folder / "log.jsonl", "a") as log:
        for _ in range(lines):
            log.write(line)
    with open_run(folder, resume=True, **asked) as run:
        assert run is not None
        for number in range(100):
            run.log("epoch", number=number)
    return f"{len(str(load_run(folder)))} characters said of it"


if __name__ == "__main__":
    main()
