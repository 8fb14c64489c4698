"""The run folder: manifest, long table, layouts, log, lock; a kill at any moment loses only the last epochs.

`open_run` hands a `RunWriter` to an experiment and keeps the folder locked meanwhile; `load_run` reads a folder back,
finished or not. Every file appears whole (written beside its place, then renamed). What was measured is not its affair.
"""

import errno
import json
import os
import platform
import shutil
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.files import last_line, make_folder, sync, write_table, write_text
from nucleate.locks import LOCK, is_locked, locked
from nucleate.parts import (
    LAYOUT,
    METRICS,
    PREDICTIONS,
    checked_and_sorted,
    metrics_frame,
    read_metrics,
    read_part,
    write_part,
)
from nucleate.progress import Progress, silent
from nucleate.reading import is_there, read_json, read_parquet, read_text, read_toml, refusing
from nucleate.refusal import Refused
from nucleate.run_in_words import in_words
from nucleate.threads import thread_count

_PACKAGES = ("nucleate", "torch", "transformers", "numpy", "scipy", "scikit-learn", "numba", "polars")


@dataclass
class RunWriter:
    """One run while it computes. `saved` says from which moment a resumed run goes on; None at a fresh start."""

    folder: Path
    manifest: dict[str, Any]
    resumed: bool
    progress: Progress = silent
    paused: bool = False  # it is left for now and will be gone on with, as if it had been interrupted
    began: float = field(default_factory=time.monotonic)
    _whole: set[Path] = field(default_factory=set)  # tables that are known to be

    def place(self, *names: str) -> Path:
        """Where a file of the run lies. A folder that was moved away meanwhile is not begun anew under its old name."""
        if not (self.folder / LOCK).exists():
            why = "was moved or removed while a run wrote into it; give it back its name, and --resume goes on"
            raise FileNotFoundError(errno.ENOENT, why, str(self.folder))
        return self.folder.joinpath(*names)

    def write_part(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Rows of one moment, with a checksum; the parts are joined into `metrics.parquet` at the end."""
        write_part(self.place("parts", f"{name}.parquet"), metrics_frame(rows))

    def read_part(self, name: str) -> pl.DataFrame:
        """A part that was written before."""
        return read_part(self.place("parts", f"{name}.parquet"), schema=METRICS)

    def has_part(self, name: str) -> bool:
        return self.has("parts", f"{name}.parquet")

    def has(self, *names: str) -> bool:
        """Was this table written before? One that is damaged is removed, to be made anew, and that is said."""
        path = self.place(*names)
        if path not in self._whole and path.is_file():
            try:
                read_part(path)
                self._whole.add(path)
            except Refused as damage:
                path.unlink()
                self.note(f"made anew: {damage}")
        return path in self._whole or path.is_file()

    def write_layout(self, epoch: int, layout: pl.DataFrame) -> None:
        """Where each instance lies at one epoch, per layer and view."""
        frame = layout.select(LAYOUT.names()).cast(LAYOUT)
        write_table(self.place("layouts", f"epoch-{epoch:04d}.parquet"), frame)

    def write_predictions(self, epoch: int, instances: Sequence[int], outputs: Sequence[str]) -> None:
        """What the network answered at one epoch."""
        frame = pl.DataFrame({"instance": instances, "output": list(outputs)}, schema=PREDICTIONS)
        write_table(self.place("layouts", f"predictions-{epoch:04d}.parquet"), frame)

    def log(self, event: str, **facts: Any) -> None:
        """One line of `log.jsonl`."""
        line = {"time": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "event": event, **facts}
        with open(self.place("log.jsonl"), "a", encoding="utf-8") as stream:
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
        sync(self.folder / "log.jsonl")

    def note(self, text: str) -> None:
        """Something that whoever goes on with a run should know: said, and written into the log."""
        self.progress(text, None)
        self.log("note", text=text)

    def record(self, **facts: Any) -> None:
        """Facts for the manifest."""
        self.manifest.update(facts)
        write_text(self.place("manifest.json"), json.dumps(self.manifest, indent=2, ensure_ascii=False) + "\n")

    def finish(self, parts: Sequence[str]) -> None:
        """Join the named parts into `metrics.parquet`."""
        frames = [self.read_part(name) for name in parts]
        write_table(self.place("metrics.parquet"), checked_and_sorted(pl.concat(frames)))


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
    progress: Progress = silent,
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
    _check_place(folder, overwrite=overwrite)
    with locked(folder):
        status = None if overwrite else _status(folder)
        if status is not None:
            _check_resumable(folder, status, settings, differing, resume)
            if status == "done" and not reopen:
                yield None
                return
        else:
            _check_reads(folder, reads)
            _clear(folder)
            write_text(folder / "config.toml", settings)
        manifest = _manifest(folder / "manifest.json", _ANEW) if status is not None else {}
        run = RunWriter(folder, manifest, resumed=status is not None, progress=progress)
        run.record(**_surroundings(), **(facts or {}), status="running")
        torn = _mend_log(folder / "log.jsonl")
        run.log("resumed" if run.resumed else "begun")
        if torn:
            run.note(f"{folder / 'log.jsonl'}: its last line was cut short, and is dropped")
        try:
            yield run
        except BaseException as error:
            status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
            with suppress(OSError):  # of a full disk, or a folder that is gone: the error itself is what is told
                run.record(status=status)
                run.log(status, error=f"{type(error).__name__}: {error}", traceback=traceback.format_exc())
            raise
        status = "interrupted" if run.paused else "done"
        run.record(status=status)
        run.log("paused" if run.paused else status)


def _mend_log(log: Path) -> bool:
    """Drop a last line that was cut short; was there one?"""
    line = last_line(log) if log.is_file() else b""
    if not line or line.endswith(b"\n"):
        return False
    os.truncate(log, log.stat().st_size - len(line))
    return True


def _check_place(folder: Path, *, overwrite: bool = False) -> None:
    if not folder.is_dir():
        return
    if (folder / "manifest.json").exists():
        if _status(folder, overwrite=overwrite) is None or (folder / "config.toml").is_file():
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
    path = folder / "config.toml"
    read_toml(path, _ANEW)
    begun = read_text(path)
    if begun != settings and settings.startswith(begun):  # and what followed cannot be known
        raise Refused(f"{path} is damaged (it is cut short); {_ANEW}")
    changed = differing(begun, settings)
    if changed:
        raise Refused(f"{folder} was begun under other settings: {'; '.join(changed)}; use those, or --overwrite")


def _check_reads(folder: Path, reads: Iterable[Any]) -> None:
    """Refuse to clear away what is about to be read."""
    for path in (Path(one).expanduser() for one in reads if isinstance(one, str | Path)):
        if path.exists() and path.resolve().is_relative_to(folder.resolve()):
            raise Refused(f"{path} lies in {folder}, which would be cleared first; name another folder with --out")


# What a run may leave behind when it is killed before its first manifest is written.
_OURS = {LOCK, "config.toml", ".config.toml.part", ".manifest.json.part"}


_ANEW = "--overwrite begins the run anew, or move the folder away"


def _status(folder: Path, *, overwrite: bool = False) -> str | None:
    """The manifest's status; None where there is no run, or one that was being cleared away. One that cannot be read is
    refused, unless it is to be replaced and the settings beside it are ours."""
    path = folder / "manifest.json"
    if not path.is_file():
        return None
    try:
        status = str(_manifest(path, _remedy(folder))["status"])
    except Refused:
        if overwrite and "verb" in read_toml(folder / "config.toml", _remedy(folder)):
            return "damaged"
        raise
    return None if status == "cleared" else status


def _remedy(folder: Path) -> str:
    return _ANEW if (folder / "config.toml").is_file() else "move the folder away, or begin in a new one"


_KINDS = {"status": str, "seconds": dict, "verdict": dict, "chosen_epochs": dict, "checkpoints": dict, "notes": list}


def _manifest(path: Path, remedy: str) -> dict[str, Any]:
    found = read_json(path, remedy)
    odd = [name for name, kind in _KINDS.items() if not isinstance(found.get(name, kind()), kind)]
    if odd or "status" not in found:
        raise Refused(f"{path} is damaged ({' and '.join(odd) or 'status'} cannot be read); {remedy}")
    return found


def _clear(folder: Path) -> None:
    """Remove an old run. Its manifest goes last and says `cleared`, so that a kill meanwhile leaves no half a run."""
    manifest = folder / "manifest.json"
    if manifest.exists():
        write_text(manifest, '{"status": "cleared"}\n')
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


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings or facts by dotted name."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        found |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return found


def _surroundings() -> dict[str, Any]:
    machine = f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"
    return {"versions": {name: version(name) for name in _PACKAGES}, "machine": machine, "threads": thread_count()}


_REMAKE = "put it back, or compute the run anew"


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
            return read_metrics(whole, _REMAKE)
        parts = sorted((self.folder / "parts").glob("*.parquet"))
        frames = [read_part(part, "--resume makes it anew", schema=METRICS) for part in parts]
        with refusing(f"{self.folder / 'parts'} does not fit together", _REMAKE):
            return checked_and_sorted(pl.concat(frames)) if frames else pl.DataFrame(schema=METRICS)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pl.DataFrame | None:
        """Another table of the run, by the name of its file; None where there is none."""
        path = self.folder / f"{name}.parquet"
        return read_parquet(path, _REMAKE, columns=columns) if is_there(path) else None

    @cached_property
    def dataset(self) -> pl.DataFrame | None:
        """A row per instance, as `nucleate data` writes it."""
        path = self.folder / "data" / "dataset.parquet"
        return read_parquet(path, _REMAKE) if is_there(path) else None

    @cached_property
    def dataset_facts(self) -> dict[str, Any] | None:
        """The patterns, mappings, vocabulary and counts beside the dataset."""
        path = self.folder / "data" / "dataset.json"
        return read_json(path, _REMAKE) if is_there(path) else None

    @property
    def layout_epochs(self) -> list[int]:
        """Epochs whose layouts were recorded. A model that was probed may be called `epoch-3-better`: that is none."""
        names = (path.stem.removeprefix("epoch-") for path in (self.folder / "layouts").glob("epoch-*.parquet"))
        return sorted(int(name) for name in names if name.isdecimal() and name == f"{int(name):04d}")

    def layout(self, epoch: int) -> pl.DataFrame:
        """instance, layer, view, x, y, z at one epoch."""
        return self.layout_of(f"epoch-{epoch:04d}")

    def layout_of(self, file: str) -> pl.DataFrame:
        """The same of a model that was probed, by the name of its file."""
        return read_parquet(self.folder / "layouts" / f"{file}.parquet", _REMAKE, schema=LAYOUT)

    def predictions(self, epoch: int) -> pl.DataFrame | None:
        """instance, output: what the network answered at one epoch."""
        path = self.folder / "layouts" / f"predictions-{epoch:04d}.parquet"
        return read_parquet(path, _REMAKE, schema=PREDICTIONS) if is_there(path) else None

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
    path = folder / "manifest.json"
    manifest = _manifest(path, _remedy(folder)) if path.is_file() else {"status": "cleared"}
    if manifest["status"] == "cleared":
        inside = [run.folder.name for run in find_runs(folder) if run.folder != folder]
        hint = f"; it holds the runs {', '.join(inside)}" if inside else ""
        raise Refused(f"{folder} is not a run folder: it has no manifest.json{hint}")
    config = read_toml(folder / "config.toml", _REMAKE)
    missing = next((name for name in ("verb", "seed") if name not in config), None)
    if missing:
        raise Refused(f"{folder / 'config.toml'} is damaged (it tells no {missing}); {_REMAKE}")
    return Run(folder, config, manifest)


def run_folders(folder: Path) -> list[Path]:
    """The run folders in and below a folder, whole or not."""
    manifests = sorted(folder.rglob("manifest.json"))
    return [path.parent for path in manifests if (path.parent / "config.toml").is_file()]


def find_runs(folder: Path) -> list[Run]:
    """The runs in and below a folder."""
    return [load_run(one) for one in run_folders(folder) if _status(one) is not None]
