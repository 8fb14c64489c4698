"""The engine Slurm: each run is a job of an array, which submitit hands in, watches and has queued again.

What is queued again is the command line alone, which goes on from the run folder: no state is ever pickled.
"""

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nucleate.engines.local import Job, JobResult, run_one, tell_ended
from nucleate.progress import Progress

CLUSTER = "NUCLEATE_SLURM_CLUSTER"  # local: submitit's own executor, processes of this machine
_LOOK = 1.0  # seconds
_MINUTES, _MEMORY = 240, 4  # of a run, unless they are given
_AGAIN = 100  # how often a run may come to the end of its time and be queued again


class _Resumed:
    """Runs a job. Submitit queues again what has a method of that name: after its time, or for another's job."""

    def __call__(self, job: Job) -> JobResult:
        return run_one(job)

    def checkpoint(self, job: Job) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, job)


def run_all(
    jobs: Sequence[Job],
    *,
    workers: int | None,
    folder: Path,
    minutes: int | None,
    memory: int | None,
    progress: Progress,
) -> list[JobResult]:
    """Every job as one of an array, at most `workers` at once; the outcomes, in the order of the jobs.

    `folder` is for submitit's logs. Partition, account and GPUs are told by Slurm's own SBATCH_… variables. On Ctrl-C
    the jobs are cancelled; when this process dies in another way, they go on."""
    import submitit

    executor = submitit.AutoExecutor(folder.absolute(), os.environ.get(CLUSTER), slurm_max_num_timeout=_AGAIN)
    executor.update_parameters(
        name="nucleate",
        timeout_min=minutes or _MINUTES,
        mem_gb=memory or _MEMORY,
        cpus_per_task=1,
        slurm_array_parallelism=workers or len(jobs),
    )
    submitted = executor.map_array(_Resumed(), jobs)
    progress(f"{len(jobs)} runs handed in; their logs: {folder}", None)
    waiting, outcomes = dict(zip(jobs, submitted, strict=True)), dict[str, JobResult]()
    began = time.monotonic()
    try:
        while waiting:
            for job in [job for job, one in waiting.items() if one.done()]:
                outcome = outcomes[job.name] = _outcome(job, waiting.pop(job), time.monotonic() - began)
                tell_ended(progress, outcome, len(outcomes), len(jobs))
            time.sleep(_LOOK if waiting else 0)
    finally:
        for one in waiting.values():
            one.cancel()
    return [outcomes[job.name] for job in jobs]


def _outcome(job: Job, submitted: Any, seconds: float) -> JobResult:
    try:
        found: JobResult = submitted.result()
        return found
    except Exception as error:  # what ended the job, of whatever kind
        return JobResult(job.name, "failed", seconds, " ".join(str(error).split())[:300])
