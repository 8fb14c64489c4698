"""The run folder: manifest, long table, layouts, log, lock; a kill at any moment loses only the last epochs.

`open_run` hands a `RunWriter` to an experiment and keeps the folder locked meanwhile; `load_run` reads a folder back,
finished or not. Every file appears whole (written beside its place, then renamed). What was measured is not its affair.
"""

import hashlib
import json
import os
import platform
import shutil
import time
import tomllib
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.files import write_whole
from nucleate.locks import LOCK, is_locked, locked
from nucleate.refusal import Refused
from nucleate.run_in_words import in_words
from nucleate.threads import thread_count

# The long table: every measurement is a row; the columns other than `value` are unique together and sort the rows.
METRICS = pl.Schema(
    {
        "experiment": pl.String,
        "model": pl.String,
        "arm": pl.String,
        "control": pl.String,
        "seed": pl.Int32,
        "epoch": pl.Int32,
        "step": pl.Int32,
        "split": pl.String,
        "layer": pl.Int32,
        "read": pl.String,
        "labels": pl.String,
        "space": pl.String,
        "measure": pl.String,
        "value": pl.Float64,
    }
)
LAYOUT = pl.Schema(
    {
        "instance": pl.Int32,
        "layer": pl.Int32,
        "view": pl.String,
        "x": pl.Float32,
        "y": pl.Float32,
        "z": pl.Float32,
    }
)
_KEYS = [name for name in METRICS if name != "value"]
_PACKAGES = ("nucleate", "torch", "transformers", "numpy", "scipy", "scikit-learn", "numba", "polars")


def make_folder(folder: Path) -> None:
    """So that it is there and can be written into; else refused."""
    why = "it may not be written to"
    try:
        if folder.exists() and not folder.is_dir():
            raise Refused(f"{folder} is a file; --out names a folder")
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        why = error.strerror or str(error)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"{folder} cannot be written into ({why}); name another folder with --out")


def metrics_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as the long table: what does not apply is null; the columns other than value are unique together."""
    listed = list(rows)
    columns = {name: [row.get(name) for row in listed] for name in METRICS}
    unknown = {name for row in listed for name in row} - set(METRICS)
    if unknown:
        raise ValueError(f"no such column in metrics: {sorted(unknown)}")
    return _checked_and_sorted(pl.DataFrame(columns, schema=METRICS, strict=False))


def _checked_and_sorted(frame: pl.DataFrame) -> pl.DataFrame:
    if not frame["value"].is_finite().all() or frame["value"].null_count():
        raise ValueError("metrics hold a value that is not a finite number; an undefined score has no row")
    if frame.select(_KEYS).is_duplicated().any():
        twice = frame.filter(frame.select(_KEYS).is_duplicated()).row(0, named=True)
        raise ValueError(f"metrics hold the same measurement twice: {twice}")
    return frame.sort(_KEYS, nulls_last=False, maintain_order=True)


@dataclass
class RunWriter:
    """One run while it computes. `saved` says from which moment a resumed run goes on; None at a fresh start."""

    folder: Path
    manifest: dict[str, Any]
    resumed: bool
    paused: bool = False  # it is left for now and will be gone on with, as if it had been interrupted
    began: float = field(default_factory=time.monotonic)

    def write_part(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of one moment; the parts are joined into `metrics.parquet` at the end."""
        frame = metrics_frame(rows)
        write_whole(self.folder / "parts" / f"{name}.parquet", frame.write_parquet)

    def read_part(self, name: str) -> pl.DataFrame:
        """A part that was written before."""
        return pl.read_parquet(self.folder / "parts" / f"{name}.parquet")

    def write_layout(self, epoch: int, layout: pl.DataFrame) -> None:
        """Where each instance lies at one epoch, per layer and view."""
        frame = layout.select(LAYOUT.names()).cast(LAYOUT)
        write_whole(self.folder / "layouts" / f"epoch-{epoch:04d}.parquet", frame.write_parquet)

    def write_predictions(self, epoch: int, instances: Sequence[int], outputs: Sequence[str]) -> None:
        """What the network answered at one epoch."""
        frame = pl.DataFrame({"instance": pl.Series(instances, dtype=pl.Int32), "output": list(outputs)})
        write_whole(self.folder / "layouts" / f"predictions-{epoch:04d}.parquet", frame.write_parquet)

    def log(self, event: str, **facts: Any) -> None:
        """One line of `log.jsonl`."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}
        with open(self.folder / "log.jsonl", "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")

    def record(self, **facts: Any) -> None:
        """Facts for the manifest."""
        self.manifest.update(facts)
        text = json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n"
        write_whole(self.folder / "manifest.json", lambda path: path.write_text(text, encoding="utf-8"))

    def finish(self, parts: Sequence[str]) -> None:
        """Join the named parts into `metrics.parquet`."""
        frames = [self.read_part(name) for name in parts]
        write_whole(self.folder / "metrics.parquet", _checked_and_sorted(pl.concat(frames)).write_parquet)


@contextmanager
def open_run(
    folder: Path,
    *,
    settings: str,
    differing: Callable[[str, str], list[str]],
    resume: bool = False,
    overwrite: bool = False,
    reopen: bool = False,
    reads: Iterable[Any] = (),
    facts: Mapping[str, Any] | None = None,
) -> Iterator[RunWriter | None]:
    """The folder, locked, for one run under `settings` (the text of config.toml); None where it is finished already.

    Refuses, with nothing changed on disk: a folder that is not a run, one that another process holds, a finished one
    without `resume` or `overwrite`, an unfinished one likewise, and one whose settings differ from those asked for.
    With `reopen` and `resume` a finished one is gone on with. What lies in the folder and is among `reads`, the files
    and folders that the run will read, is never cleared away.
    """
    if resume and overwrite:
        raise Refused("--resume keeps what is there, --overwrite replaces it; give one of them")
    make_folder(folder)
    _check_place(folder)
    with locked(folder):
        status = _status(folder)
        if status is not None and not overwrite:
            _check_resumable(folder, status, settings, differing, resume)
            if status == "done" and not reopen:
                yield None
                return
        going_on = status is not None and not overwrite
        if not going_on:
            _check_reads(folder, reads)
            _clear(folder)
            write_whole(folder / "config.toml", lambda path: path.write_text(settings, encoding="utf-8"))
        manifest = _read_json(folder / "manifest.json") if going_on else {}
        run = RunWriter(folder, manifest, resumed=going_on)
        run.record(**_surroundings(), **(facts or {}), status="running")
        run.log("resumed" if going_on else "begun")
        try:
            yield run
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            run.record(status=status)
            run.log(status, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            raise
        status = "interrupted" if run.paused else "done"
        run.record(status=status)
        run.log("paused" if run.paused else status)


def _check_place(folder: Path) -> None:
    if not folder.is_dir():
        return
    if (folder / "manifest.json").exists():
        if _status(folder) is None or (folder / "config.toml").is_file():
            return
        raise Refused(f"{folder} holds a manifest.json but is not a run folder; name a new folder with --out")
    if any(inside.name not in _OURS for inside in folder.iterdir()):
        raise Refused(f"{folder} holds files but is not a run folder; name a new folder with --out")


def _check_resumable(
    folder: Path, status: str, settings: str, differing: Callable[[str, str], list[str]], resume: bool
) -> None:
    if not resume:
        state = "holds a finished run" if status == "done" else "holds an unfinished run"
        remedy = "--overwrite replaces it" if status == "done" else "--resume continues it, --overwrite replaces it"
        raise Refused(f"{folder} {state}; {remedy}")
    changed = differing((folder / "config.toml").read_text(encoding="utf-8"), settings)
    if changed:
        raise Refused(f"{folder} was begun under other settings: {'; '.join(changed)}; use those, or --overwrite")


def _check_reads(folder: Path, reads: Iterable[Any]) -> None:
    """Refuse to clear away what is about to be read."""
    for path in (Path(one).expanduser() for one in reads if isinstance(one, str | Path)):
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise Refused(f"{path} lies in {folder}, which would be cleared first; name another folder with --out")


# What a run may leave behind when it is killed before its first manifest is written.
_OURS = {LOCK, "config.toml", ".config.toml.part", ".manifest.json.part"}


def _status(folder: Path) -> str | None:
    """The manifest's status; None where there is no run, or one that was being cleared away."""
    if not (folder / "manifest.json").is_file():
        return None
    try:
        status = str(_read_json(folder / "manifest.json")["status"])
        return None if status == "cleared" else status
    except (ValueError, KeyError, TypeError):
        raise Refused(f"{folder / 'manifest.json'} is damaged; move the folder away, or begin in a new one") from None


def _clear(folder: Path) -> None:
    """Remove an old run. Its manifest goes last and says `cleared`, so that a kill meanwhile leaves no half a run."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        write_whole(manifest, lambda path: path.write_text('{"status": "cleared"}\n', encoding="utf-8"))
    for inside in folder.iterdir():
        if inside.name in (LOCK, "manifest.json"):
            continue
        if inside.is_dir() and not inside.is_symlink():
            shutil.rmtree(inside)
        else:
            inside.unlink()


def clear_runs(folders: Iterable[Path], *, reads: Iterable[Any] = ()) -> None:
    """Remove the runs in these folders, or refuse with none of them changed."""
    there, kept = [folder for folder in folders if folder.is_dir()], list(reads)
    with ExitStack() as locks:
        for folder in there:
            _check_place(folder)
            _check_reads(folder, kept)
            locks.enter_context(locked(folder))
        for folder in there:
            _clear(folder)


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings or facts by dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _surroundings() -> dict[str, Any]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {"versions": {name: version(name) for name in _PACKAGES}, "machine": machine, "threads": thread_count()}


def _read_json(path: Path) -> dict[str, Any]:
    with open(path, encoding="utf-8") as stream:
        return dict(json.load(stream))


@dataclass(frozen=True)
class Run:
    """A run folder read back. Its tables are read when first asked for; an unfinished run shows what it has so far."""

    folder: Path
    config: dict[str, Any]
    manifest: dict[str, Any]

    def __str__(self) -> str:
        return in_words(self, flat(self.config))

    @cached_property
    def metrics(self) -> pl.DataFrame:
        """The long table; the parts so far where the run is not finished."""
        whole = self.folder / "metrics.parquet"
        if self.manifest["status"] == "done" and whole.is_file():
            return pl.read_parquet(whole)
        parts = sorted((self.folder / "parts").glob("*.parquet"))
        frames = [pl.read_parquet(part) for part in parts]
        return _checked_and_sorted(pl.concat(frames)) if frames else pl.DataFrame(schema=METRICS)

    @cached_property
    def dataset(self) -> pl.DataFrame | None:
        """A row per instance, as `nucleate data` writes it."""
        path = self.folder / "data" / "dataset.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @cached_property
    def dataset_facts(self) -> dict[str, Any] | None:
        """The patterns, mappings, vocabulary and counts beside the dataset."""
        path = self.folder / "data" / "dataset.json"
        return _read_json(path) if path.is_file() else None

    @property
    def layout_epochs(self) -> list[int]:
        """Epochs whose layouts were recorded. A model that was probed may be called `epoch-3-better`: that is none."""
        names = (path.stem.removeprefix("epoch-") for path in (self.folder / "layouts").glob("epoch-*.parquet"))
        return sorted(int(name) for name in names if name.isdecimal() and name == f"{int(name):04d}")

    def layout(self, epoch: int) -> pl.DataFrame:
        """instance, layer, view, x, y, z at one epoch."""
        return pl.read_parquet(self.folder / "layouts" / f"epoch-{epoch:04d}.parquet")

    def predictions(self, epoch: int) -> pl.DataFrame | None:
        """instance, output: what the network answered at one epoch."""
        path = self.folder / "layouts" / f"predictions-{epoch:04d}.parquet"
        return pl.read_parquet(path) if path.is_file() else None

    @property
    def is_packed(self) -> bool:
        """Was a network of our own trained by the packed law (`--fast`)?"""
        return bool(self.config.get("training", {}).get("packing") == "tree")

    @property
    def size_bytes(self) -> int:
        """Bytes of all files in the folder."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    @property
    def state(self) -> str:
        """The manifest's status, or `killed` for a run that says it is running while no process holds its lock."""
        status = str(self.manifest["status"])
        return "killed" if status == "running" and not is_locked(self.folder) else status


def load_run(path: str | Path) -> Run:
    """A run folder's settings, manifest and tables. Nothing is changed."""
    folder = Path(path)
    if not folder.is_dir():
        raise Refused(f"{folder} does not exist; name a run folder, such as one written by nucleate learn --out")
    if _status(folder) is None:
        inside = [run.folder.name for run in find_runs(folder) if run.folder != folder]
        hint = f"; it holds the runs {', '.join(inside)}" if inside else ""
        raise Refused(f"{folder} is not a run folder: it has no manifest.json{hint}")
    try:
        config = tomllib.loads((folder / "config.toml").read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise Refused(f"{folder / 'config.toml'} is damaged: {error}") from None
    return Run(folder, config, _read_json(folder / "manifest.json"))


def find_runs(folder: Path) -> list[Run]:
    """The run folders in and below a folder."""
    manifests = sorted(folder.rglob("manifest.json"))
    folders = [path.parent for path in manifests if (path.parent / "config.toml").is_file()]
    return [load_run(one) for one in folders if _status(one) is not None]


def failure_log(folder: Path, error: str) -> Path | None:
    """The newest log in or below a folder, if it ends in this failure: its last line holds the traceback."""
    log = max(folder.rglob("log.jsonl"), key=lambda path: path.stat().st_mtime_ns, default=None)
    try:
        ends = json.loads(log.read_text(encoding="utf-8").splitlines()[-1]) if log else {}
    except (ValueError, IndexError):  # cut short
        return None
    return log if ends.get("event") == "failed" and ends.get("error") == error else None
