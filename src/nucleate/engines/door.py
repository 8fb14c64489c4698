"""The door of the engines: by its name, what computes many runs, or what reads many prompts.

Jobs go in and finished run folders come out, the same bytes whichever engine computed them.
"""

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from nucleate.engines.local import JobResult
from nucleate.refusal import Refused
from nucleate.threads import thread_count

if TYPE_CHECKING:
    from nucleate.model.blocks import ReadBlocks

RunAll = Callable[..., list[JobResult]]  # given the jobs, and `progress`: the outcomes, in the order of the jobs
SLURM = "slurm"  # the folder, in that of a sweep, of what submitit keeps
_PACKAGES = {"ray": ("ray", "pyarrow"), "slurm": ("submitit",)}  # an extra of that name brings them


def runner(
    engine: str,
    folder: Path,
    *,
    workers: int | None = None,
    address: str | None = None,
    minutes: int | None = None,
    memory: int | None = None,
) -> RunAll:
    """What computes the runs of a sweep into its folder; refused where an option is another engine's."""
    _check(engine, workers, address)
    for option, value in {"--minutes": minutes, "--memory": memory}.items():
        if value is not None and engine != "slurm":
            raise Refused(f"{option} belongs to slurm: add --engine slurm, or leave it out")
        if value is not None and value < 1:
            raise Refused(f"{option} {value} is too small: at least 1")
    if engine == "ray":
        from nucleate.engines import ray

        return partial(ray.run_all, workers=workers, address=address)
    if engine == "slurm":
        from nucleate.engines import slurm

        return partial(slurm.run_all, workers=workers, folder=folder / SLURM, minutes=minutes, memory=memory)
    from nucleate.engines import local

    return partial(local.run_all, workers=workers or thread_count())


def reader(engine: str, *, workers: int | None = None, address: str | None = None) -> "ReadBlocks | None":
    """What reads the prompts of a probe; None: the process itself."""
    _check(engine, workers, address)
    if engine == "ray":
        from nucleate.engines import ray

        return partial(ray.read_blocks, workers=workers or thread_count(), address=address)
    from nucleate.engines import local

    return None if workers is None else partial(local.read_blocks, workers=workers)


def _check(engine: str, workers: int | None, address: str | None) -> None:
    if workers is not None and workers < 1:
        raise Refused(f"--workers {workers} is too small: at least 1")
    if address is not None and engine != "ray":
        raise Refused("--address belongs to ray: add --engine ray, or leave it out")
    if missing := [name for name in _PACKAGES.get(engine, ()) if find_spec(name) is None]:
        raise Refused(f"--engine {engine} needs the package {missing[0]}: pip install 'nucleate[{engine}]'")
