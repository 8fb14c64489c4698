"""Many runs: every combination of the axes a run folder of its own, computed by an engine, one long table out.

`sweep` is the whole story; where jobs compute, only the engine knows (`local.py`, `ray.py`, `slurm.py`).
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.config import differing
from nucleate.engines.door import SLURM, RunAll
from nucleate.engines.local import Job, JobResult
from nucleate.files import make_folder, write_table, write_text
from nucleate.locks import LOCK, locked
from nucleate.parts import METRICS
from nucleate.progress import Progress
from nucleate.reading import read_json
from nucleate.refusal import Refused
from nucleate.runs import load_run

_PLAN = "sweep.json"
_TABLES = ("metrics.parquet", "runs.parquet")
_OURS = {LOCK, f".{_PLAN}.part"}  # what a sweep leaves behind when it is killed before its plan is written


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
    run_all: RunAll,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress,
) -> list[JobResult]:
    """Have an engine compute the runs that are not finished; write the tables of all; the outcomes of those.

    With `resume` finished runs are skipped, killed ones go on, failed ones are tried again, and runs that the sweep did
    not have before are added. `metrics.parquet` then has the bytes of an unbroken sweep. Without `resume` or
    `overwrite` a folder that holds anything is refused, with nothing changed on disk.
    """
    _check_alone(runs)
    _check_place(folder, resume=resume, overwrite=overwrite)
    before = _read_plan(folder)
    if resume and not overwrite:
        _check_plan(folder, before, runs)
    _check_idle(folder, before)
    make_folder(folder)
    with locked(folder, "sweep"):
        if overwrite:
            _clear(folder, before)
            before = {}
        plan = {run.name: run.settings for run in runs}
        if before != plan:
            write_text(folder / _PLAN, json.dumps({"runs": plan}, indent=2, ensure_ascii=False) + "\n")
        finished = {name for name in before if _state(folder / name) == "done"}
        jobs = [
            Job(run.name, (*run.arguments, "--out", str(folder.absolute() / run.name), "--resume"))
            for run in runs
            if run.name not in finished
        ]
        if finished and jobs:
            progress(f"{len(finished)} of {len(runs)} runs are finished already", None)
        outcomes = run_all(jobs, progress=progress) if jobs else []
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
    write_table(folder / "metrics.parquet", pl.concat(frames, rechunk=True))
    columns = {
        "run": [run.name for run in listed],
        "settings": [json.dumps(dict(run.varied)) for run in listed],
        "state": [states[run.name] for run in listed],
    }
    write_table(folder / "runs.parquet", pl.DataFrame(columns, schema=dict.fromkeys(columns, pl.String)))


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
    remedy = "move the folder away, or name a new one with --out"
    runs = read_json(folder / _PLAN, remedy).get("runs")
    if not isinstance(runs, dict):
        raise Refused(f"{folder / _PLAN} is damaged (it tells no runs); {remedy}")
    return {Path(name).name: str(settings) for name, settings in runs.items()}


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
    shutil.rmtree(folder / SLURM, ignore_errors=True)
    for table in (*_TABLES, _PLAN):
        (folder / table).unlink(missing_ok=True)
