"""A run folder in about ten lines: what it is, how it went, what it holds, how to come by its numbers."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import polars as pl

from nucleate.config import SIZES, changed_from_size
from nucleate.files import last_line

_MOST = 8  # measures, models or settings in a line; how many more there are is said
_FIRST = ("knn_share", "f1", "knn_accuracy", "source_accuracy", "accuracy_drop", "accuracy", "loss")


class RunFolder(Protocol):
    """A `Run`, as `runs.py` reads it."""

    @property
    def folder(self) -> Path: ...
    @property
    def config(self) -> dict[str, Any]: ...
    @property
    def manifest(self) -> dict[str, Any]: ...
    @property
    def metrics(self) -> pl.DataFrame: ...
    @property
    def state(self) -> str: ...
    @property
    def layout_epochs(self) -> list[int]: ...


def in_words(run: RunFolder, settings: Mapping[str, Any]) -> str:
    """`settings` are those of the run by dotted name. What a run does not have makes no line."""
    config, metrics = run.config, run.metrics
    of = "prompts" if "models" in config or "network" in config else "size"
    seconds = run.manifest.get("seconds", {}).get("total")
    took = f", {seconds / 60:.1f} minutes" if seconds else ""
    lines = {
        "run": f"{run.folder}: nucleate {config.get('verb')}, {of} {config.get('size')}, seed {config.get('seed')}",
        "state": f"{run.state}{took}{_when(run.folder)}",
        "models": _some(config.get("models", [])) or str(config.get("network", "")),
        "settings": _changed(config, settings),
        "epochs": _epochs(metrics),
        "layers": _span(metrics["layer"]),
        "best epoch": str(run.manifest.get("best_epoch", "")),
        "tables": _some(sorted(path.name for path in run.folder.glob("*.parquet"))),
        "layouts": _some([f"epoch {epoch}" for epoch in run.layout_epochs]),
        "checkpoints": _some(sorted(path.name for path in (run.folder / "checkpoints").glob("*") if path.is_dir())),
        "rows": f"{len(metrics):,} of {_some(_telling(metrics))}" if len(metrics) else "none so far",
        "page": str(run.folder / "page.html") if (run.folder / "page.html").is_file() else "",
        "to pick": _example(metrics),
    }
    return "\n".join(f"{name:12} {text}" for name, text in lines.items() if text)


def _when(folder: Path) -> str:
    """The day and minute of its last event, from the log."""
    log = folder / "log.jsonl"
    last = last_line(log).decode("utf-8", errors="replace") if log.is_file() else ""
    _, found, rest = last.partition('"time": "')
    return f", last written {rest[:16].replace('T', ' ')}" if found else ""


def _changed(config: Mapping[str, Any], settings: Mapping[str, Any]) -> str:
    """In what a run of ours differs from its size."""
    size = config.get("size")
    if not isinstance(size, str) or size not in SIZES or "model" not in config:
        return ""
    changed = changed_from_size(size, settings)
    return _some([f"{key}={value}" for key, value in changed.items() if key != "seed"]) or f"those of size {size}"


def _epochs(metrics: pl.DataFrame) -> str:
    """All of them, and those at which states were measured."""
    epochs = metrics["epoch"].drop_nulls().unique().sort().to_list()
    measured = metrics.filter(pl.col("layer").is_not_null())["epoch"].drop_nulls().unique()
    if not epochs:
        return ""
    return f"{epochs[0]} to {epochs[-1]}" + (f", states measured at {len(measured)} of them" if len(measured) else "")


def _span(layers: pl.Series) -> str:
    found = layers.drop_nulls().unique().sort().to_list()
    return f"{found[0]} to {found[-1]}, {len(found)} in all" if found else ""


def _telling(metrics: pl.DataFrame) -> list[str]:
    """The measures, those first that a reader asks for first."""
    there = set(metrics["measure"])
    return [*(one for one in _FIRST if one in there), *sorted(there.difference(_FIRST))]


def _example(metrics: pl.DataFrame) -> str:
    """A call that gives rows of this very table."""
    if metrics.is_empty():
        return ""
    plain = pl.col("measure").eq(_telling(metrics)[0]) & pl.col("control").eq("none")
    own = metrics.filter(plain)
    row = (metrics if own.is_empty() else own).row(-1, named=True)  # a table may hold controls alone
    named = {name: row[name] for name in ("measure", "control", "split", "space", "layer") if row[name] is not None}
    return f"run.metrics.filter({', '.join(f'{name}={value!r}' for name, value in named.items())})"


def _some(names: Sequence[str]) -> str:
    """At most a few, and how many more."""
    shown = ", ".join(names[:_MOST])
    return shown + (f" and {len(names) - _MOST} more" if len(names) > _MOST else "")
