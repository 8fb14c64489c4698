"""What a run writes as tables: the long one, with its law and the checksum of its parts; layouts and predictions."""

import hashlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.files import write_table
from nucleate.reading import AGAIN, read_parquet, refusing

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
PREDICTIONS = pl.Schema({"instance": pl.Int32, "output": pl.String})
_KEYS = [name for name in METRICS if name != "value"]
_CHECKSUM = "nucleate.sha256"  # among the facts of a Parquet file


def metrics_frame(rows: Iterable[Mapping[str, Any]]) -> pl.DataFrame:
    """Rows as the long table: what does not apply is null; the columns other than value are unique together."""
    listed = list(rows)
    columns = {name: [row.get(name) for row in listed] for name in METRICS}
    unknown = {name for row in listed for name in row} - set(METRICS)
    if unknown:
        raise ValueError(f"no such column in metrics: {sorted(unknown)}")
    return checked_and_sorted(pl.DataFrame(columns, schema=METRICS, strict=False))


def _check_values(frame: pl.DataFrame) -> None:
    if not frame["value"].is_finite().all() or frame["value"].null_count():
        raise ValueError("metrics hold a value that is not a finite number; an undefined score has no row")
    if frame["measure"].null_count():
        raise ValueError("metrics hold a value that does not say what it measures")


def checked_and_sorted(frame: pl.DataFrame) -> pl.DataFrame:
    _check_values(frame)
    if frame.select(_KEYS).is_duplicated().any():
        twice = frame.filter(frame.select(_KEYS).is_duplicated()).row(0, named=True)
        raise ValueError(f"metrics hold the same measurement twice: {twice}")
    return frame.sort(_KEYS, nulls_last=False, maintain_order=True)


def write_part(path: Path, frame: pl.DataFrame) -> None:
    """A table with its checksum."""
    write_table(path, frame, metadata={_CHECKSUM: _checksum(frame)})


def _checksum(frame: pl.DataFrame) -> str:
    """sha256 of what a table says."""
    return hashlib.sha256(repr(frame.rows()).encode()).hexdigest()


def read_part(path: Path, remedy: str = AGAIN, *, schema: Mapping[str, Any] | None = None) -> pl.DataFrame:
    """A table, refused where it has a checksum that does not fit."""

    def check(content: bytes, frame: pl.DataFrame) -> None:
        told = pl.read_parquet_metadata(BytesIO(content)).get(_CHECKSUM)
        if told not in (None, _checksum(frame)):
            raise ValueError("its checksum does not fit")

    return read_parquet(path, remedy, schema=schema, check=check)


def read_metrics(path: Path, remedy: str = AGAIN) -> pl.DataFrame:
    """The long table of a finished run."""
    frame = read_parquet(path, remedy, schema=METRICS)
    with refusing(f"{path} is damaged", remedy):
        _check_values(frame)
    return frame
