"""The engine Ray: runs as tasks, and prompts as a dataset that is read, on one machine or on a cluster.

Whatever Ray moves elsewhere finds its folder on storage that all machines share: a run goes on from its run folder, and
of a reading the blocks that were told before a kill are not read again.
"""

import hashlib
import logging
import math
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from nucleate.engines.local import Job, JobResult, run_one, tell_ended
from nucleate.files import write_table
from nucleate.progress import Progress
from nucleate.reading import read_parquet, reason_of
from nucleate.refusal import Refused
from nucleate.threads import thread_count

if TYPE_CHECKING:
    from nucleate.model.blocks import Block, BlockReading, Reader

_RETRIES = 3  # of a run that is killed, or whose machine is lost
_STORE = 2**28  # bytes of Ray's store of objects on one machine, where none is running
_FACTS = ("entry", "place", "answer", "first", "whole", "restricted")
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
_LOOK = 0.5  # seconds between two looks for readings


class _Killed(RuntimeError):
    """A run was killed, as by a system whose memory ran out; it is tried again, perhaps elsewhere."""


@contextmanager
def _connected(address: str | None, workers: int) -> Iterator[Any]:
    """Ray: the cluster at the address (or at RAY_ADDRESS), else one of this machine alone, gone at the end."""
    for name, value in _QUIET.items():
        os.environ.setdefault(name, value)
    import ray

    address = address or os.environ.get("RAY_ADDRESS")
    own: dict[str, Any] = {"num_cpus": workers, "include_dashboard": False, "object_store_memory": _STORE}
    try:
        ray.init(address or "local", logging_level=logging.ERROR, log_to_driver=False, **({} if address else own))
    except (ConnectionError, ray.exceptions.RayError) as error:
        why = reason_of(error)
        raise Refused(f"--address {address}: no cluster of Ray takes us there ({why}); start one: ray start") from None
    try:
        yield ray
    finally:
        ray.shutdown()


def _gpus(ray: Any, workers: int) -> float:
    """The share of a GPU that each of the workers has; none where there is none."""
    there = ray.cluster_resources().get("GPU", 0)
    return 1 / math.ceil(workers / there) if there else 0


# --- runs ------------------------------------------------------------------------------------------------------------


def run_all(jobs: Sequence[Job], *, workers: int | None, address: str | None, progress: Progress) -> list[JobResult]:
    """Every job as a task with one thread, at most `workers` at once; the outcomes, in the order of the jobs.

    A run that is killed, or whose machine is lost, is tried again from its run folder; one that fails is not."""
    waiting, running, outcomes = deque(jobs), dict[Any, Job](), dict[str, JobResult]()
    with _connected(address, workers or thread_count()) as ray:
        at_once = workers or max(1, int(ray.cluster_resources().get("CPU", 1)))
        how = {"max_retries": _RETRIES, "retry_exceptions": [_Killed], "num_cpus": 1, "num_gpus": _gpus(ray, at_once)}
        task = ray.remote(**how)(_run)
        while waiting or running:
            while waiting and len(running) < at_once:
                job = waiting.popleft()
                running[task.remote(job)] = job
            (ended,), _ = ray.wait(list(running), num_returns=1)
            job = running.pop(ended)
            outcome = outcomes[job.name] = _outcome(ray, job, ended)
            tell_ended(progress, outcome, len(outcomes), len(jobs))
    return [outcomes[job.name] for job in jobs]


def _run(job: Job) -> JobResult:
    outcome = run_one(job)
    if outcome.killed:
        raise _Killed(outcome.error)
    return outcome


def _outcome(ray: Any, job: Job, ended: Any) -> JobResult:
    try:
        found: JobResult = ray.get(ended)
        return found
    except ray.exceptions.RayError as error:
        last = next((line.strip() for line in reversed(str(error).splitlines()) if line.strip()), type(error).__name__)
        return JobResult(job.name, "failed", 0.0, f"{last} ({1 + _RETRIES} times)")


# --- prompts ---------------------------------------------------------------------------------------------------------


def read_blocks(
    open_reader: "Callable[[], Reader]", blocks: "Sequence[Block]", place: Path, *, workers: int, address: str | None
) -> "Iterator[tuple[int, BlockReading]]":
    """Blocks read through Ray Data by `workers` actors with a network and one thread each.

    Every block is a file in `place`, with a hash of its content: what an earlier process was told is not read again."""
    asked, told = place.absolute() / "asked.parquet", place.absolute() / "told"
    texts = [block.to_json() for block in blocks]
    missing, seen = {_name(text): number for number, text in enumerate(texts)}, set[Path]()
    yield from _told(told, blocks, missing, seen)
    if not missing:
        return
    rows = {"block": list(missing), "text": [texts[number] for number in missing.values()]}
    write_table(asked, pl.DataFrame(rows), row_group_size=1)
    with ThreadPoolExecutor(1) as beside, _connected(address, workers + 1) as ray:
        there = int(ray.cluster_resources().get("CPU", 0))
        if there <= workers:
            raise Refused(f"--workers {workers} is too many for a cluster of {there} CPUs: one is for the files")
        writing = beside.submit(_read_all, open_reader, asked, told, len(missing), workers, _gpus(ray, workers))
        while not writing.done():
            wait([writing], timeout=_LOOK)
            yield from _told(told, blocks, missing, seen)
        writing.result()
        yield from _told(told, blocks, missing, seen)
    if missing:
        raise RuntimeError(f"Ray told nothing of {len(missing)} of {len(blocks)} blocks; --resume reads them")


def _read_all(
    open_reader: "Callable[[], Reader]", asked: Path, told: Path, count: int, workers: int, gpus: float
) -> None:
    import ray.data

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = None  # a block's reading is never cut in two
    (
        ray.data.read_parquet(str(asked))
        .repartition(target_num_rows_per_block=1)  # a small file would be one piece of work
        .map_batches(
            _BlockReader,
            fn_constructor_args=(open_reader,),
            batch_size=1,
            batch_format="pyarrow",
            compute=ray.data.ActorPoolStrategy(size=min(workers, count)),
            num_cpus=1,
            num_gpus=gpus,
        )
        .write_parquet(str(told))
    )


def _name(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


class _BlockReader:
    """What an actor of Ray Data does: a row with a block in, the rows of its reading out."""

    def __init__(self, open_reader: "Callable[[], Reader]") -> None:
        import torch

        torch.set_num_threads(1)
        self._read = open_reader()

    def __call__(self, batch: Any) -> Any:
        import pyarrow

        from nucleate.model.blocks import Block

        (name,), (text,) = batch["block"].to_pylist(), batch["text"].to_pylist()
        found = self._read(Block.of_json(text))
        places, entries, width = found.states.shape
        facts = np.stack([np.arange(entries), np.zeros(entries), found.answers, *found.right]).astype(np.int64)
        facts = np.tile(facts, places)
        facts[1] = np.repeat(np.arange(places), entries)
        columns = {"block": pyarrow.array([name] * facts.shape[1]), **dict(zip(_FACTS, facts, strict=True))}
        flat = found.states.reshape(-1, width)
        return pyarrow.table(columns | {f"state{k}": np.ascontiguousarray(flat[:, k]) for k in range(width)})


def _told(
    folder: Path, blocks: "Sequence[Block]", missing: dict[str, int], seen: set[Path]
) -> "Iterator[tuple[int, BlockReading]]":
    """The readings of missing blocks that lie whole in the folder, in files not seen yet; they are missing no more."""
    from nucleate.model.blocks import BlockReading

    for file in sorted(set(folder.glob("*.parquet")) - seen):
        try:
            frame = read_parquet(file)
        except Refused:  # it is being written, or was when Ray was killed
            continue
        seen.add(file)
        for (name,), rows in frame.group_by("block", maintain_order=True):
            number = missing.get(str(name))
            if number is None:
                continue
            entries = len(blocks[number].entries)
            rows = rows.sort("place", "entry")
            states = rows.select(pl.col("^state.*$")).to_numpy().astype(np.float32, copy=False)
            facts = rows.head(entries)
            if len(rows) % entries or facts["entry"].to_list() != list(range(entries)):
                continue
            right = facts.select("first", "whole", "restricted").to_numpy().T.astype(bool)
            yield number, BlockReading(states.reshape(-1, entries, states.shape[1]), facts["answer"].to_numpy(), right)
            del missing[str(name)]
