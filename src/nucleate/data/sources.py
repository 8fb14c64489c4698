"""Whatever holds a table (a file, a folder, a data frame, a list) opened as named columns, or refused in one line."""

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import polars as pl

from nucleate.data.dataset import DESCRIPTION, SPLITS, TABLE, Dataset, load_dataset, refuse_inside
from nucleate.data.natural import GROUPS, natural_dataset
from nucleate.reading import read_arrow, read_json, read_parquet, read_text, refusing
from nucleate.refusal import Refused

_READABLE = (
    "data is a .jsonl, .csv, .tsv or .parquet file, a folder of `nucleate data` or of Hugging Face datasets "
    f"(save_to_disk), or one of {', '.join(GROUPS)}"
)


class PandasFrame(Protocol):
    """A data frame of pandas, which need not be installed."""

    def notna(self) -> Any: ...
    def astype(self, dtype: Any) -> Any: ...


class ArrowTable(Protocol):
    """Whatever hands over Arrow's columns: a table of pyarrow, polars, DuckDB and others."""

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any: ...


Source = str | Path | Dataset | PandasFrame | ArrowTable | pl.LazyFrame | Iterable[Mapping[str, Any]]  # a name: ours


@dataclass(frozen=True)
class NamedColumns:
    """Named columns of any source; a cell is still whatever the source holds."""

    title: str  # what a refusal calls it
    columns: tuple[str, ...]
    places: Sequence[int]  # (row,) the line or row that a refusal names
    cells: Callable[[str], Sequence[Any]]  # column -> (row,) values
    unit: str = "row"

    def at(self, place: int) -> str:
        return f"{self.title}, {self.unit} {place}"


def open_source(source: Source) -> tuple[str, Dataset | NamedColumns]:
    """The name of the data, and the data: as a dataset where it is one of ours."""
    name, opened = _open(source)
    if isinstance(opened, Dataset):
        refuse_inside(opened, name)
    return name, opened


def _open(source: Source) -> tuple[str, Dataset | NamedColumns]:
    if isinstance(source, str) and source in GROUPS:
        return source, natural_dataset(source)
    if isinstance(source, str | Path):
        return _open_path(Path(source))
    if isinstance(source, Dataset):
        return str(source.settings.get("group", "dataset")), source
    if isinstance(source, pl.LazyFrame):
        source = source.collect()
    if hasattr(source, "notna") and hasattr(source, "astype"):  # of pandas, whose nulls have many faces
        source = source.astype(object).where(source.notna(), None).to_dict("records")
    elif hasattr(source, "features"):  # of Hugging Face datasets
        source = _dataset_rows(source)
    elif isinstance(source, Mapping) and source and all(hasattr(one, "features") for one in source.values()):
        for split in source:
            _check_split(split, "the dataset", f"take one part of it, as dataset[{split!r}]")
        source = [{**row, "split": split} for split, part in source.items() for row in _dataset_rows(part)]
    elif hasattr(source, "__arrow_c_stream__"):
        return "prompts", frame_table(pl.DataFrame(source), "the data frame")
    if not isinstance(source, Iterable) or isinstance(source, Mapping):
        raise Refused(f"a {type(source).__name__} is no table of prompts; give a list of rows, each a dict")
    rows = list(source)
    return "prompts", _row_table(rows, range(len(rows)), "the list of prompts", "row")


def _open_path(path: Path) -> tuple[str, Dataset | NamedColumns]:
    if not path.exists():
        raise Refused(f"{path} does not exist; mend the path: {_READABLE}")
    name = path.name if path.is_file() else f"{path.resolve().name}/"  # no name that our own data have
    if path.is_dir():
        if (path / DESCRIPTION).is_file():
            return name, load_dataset(path)
        if (path / TABLE).is_file():
            return name, _open_path(path / TABLE)[1]
        if (path / "config.json").is_file():
            raise Refused(f"{path} holds a model, not prompts; models come first, the prompts last")
        return name, frame_table(_read_datasets_folder(path), str(path))
    match path.suffix.lower():
        case ".jsonl":
            return name, _read_jsonl(path)
        case ".csv" | ".tsv":
            return name, _read_csv(path)
        case ".parquet":
            return name, frame_table(read_parquet(path, "write it again"), str(path))
    raise Refused(f"{path} has the unknown extension {path.suffix!r}; {_READABLE}")


def frame_table(frame: pl.DataFrame, title: str) -> NamedColumns:
    return NamedColumns(title, tuple(frame.columns), range(frame.height), lambda column: frame[column].to_list())


def _row_table(rows: Sequence[Any], places: Sequence[int], title: str, unit: str) -> NamedColumns:
    for place, row in zip(places, rows, strict=True):
        if not isinstance(row, Mapping):
            raise Refused(f"{title}, {unit} {place}: no object with named columns; give each prompt as one")
    columns = tuple(dict.fromkeys(column for row in rows for column in row))
    stray = next((column for column in columns if not isinstance(column, str)), "")
    if stray != "":
        raise Refused(f"{title}: a column is called {stray!r}, which is no text; give every column a name")
    return NamedColumns(title, columns, places, lambda column: [row.get(column) for row in rows], unit)


def as_text(value: Any, where: str) -> str | None:
    """A cell as text; null, NaN and blanks are None. A whole float is its integer: tables with gaps make 3 into 3.0."""
    if isinstance(value, bytes | Mapping | list | tuple | np.ndarray):
        raise Refused(f"{where} holds a {type(value).__name__}, not text; name another column with --columns")
    if isinstance(value, bool | np.bool_):
        value = str(value).lower()
    elif isinstance(value, float):
        value = None if np.isnan(value) else int(value) if value.is_integer() else value
    return str(value) if value is not None and str(value).strip() else None


def _read_jsonl(path: Path) -> NamedColumns:
    rows, lines = [], []
    for line, text in enumerate(read_text(path).split("\n"), start=1):
        if not text.strip():
            continue
        try:
            rows.append(json.loads(text))
        except (ValueError, RecursionError) as error:
            what = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
            raise Refused(f"{path}, line {line}: no whole JSON ({what}); write one object a line") from None
        lines.append(line)
    return _row_table(rows, lines, str(path), "line")


def _read_csv(path: Path) -> NamedColumns:
    text = read_text(path)
    head = next((line for line in text.splitlines() if line.strip()), "")
    # As spreadsheets of other countries write it; commas where there is none. Between tabs any of them may stand.
    parted = "\t" if path.suffix.lower() == ".tsv" else max(",;\t|", key=head.count)
    reader = csv.reader(StringIO(text, newline=""), strict=True, delimiter=parted)
    header: list[str] = []
    rows, lines, line = [], [], 1
    before = csv.field_size_limit(len(text) + 1)  # else a long cell is taken for an unclosed quote
    try:
        for cells in reader:
            if cells and not header:
                header = cells
                if len(set(header)) < len(header):
                    raise Refused(f"{path}, line {line}: two columns have the same name; rename one: {header}")
            elif cells:
                if len(cells) != len(header):
                    raise Refused(
                        f"{path}, line {line}: {len(cells)} cells under {len(header)} columns; "
                        f"put cells that hold {parted!r} into double quotes"
                    )
                rows.append(dict(zip(header, cells, strict=True)))
                lines.append(line)
            line = reader.line_num + 1
    except csv.Error as error:
        raise Refused(f"{path}, line {line}: no valid {path.suffix[1:].upper()} ({error}); mend its quotes") from None
    finally:
        csv.field_size_limit(before)
    return _row_table(rows, lines, str(path), "line")


def _dataset_rows(dataset: Any) -> Iterator[dict[str, Any]]:
    """Rows of a dataset of Hugging Face, whatever format it was set to; numbers that stand for names become these."""
    features = dataset.features or {}
    names = {column: one.names for column, one in features.items() if hasattr(one, "int2str")}
    for row in dataset.with_format(None):
        numbers = {column: row[column] for column in names}
        named = {c: None if n is None or n < 0 else names[c][n] for c, n in numbers.items()}  # -1: none
        yield {**row, **named}


def _check_split(split: Any, title: str, remedy: str) -> None:
    if split not in SPLITS:
        raise Refused(f"{title} has the split {split!r}, none of {', '.join(SPLITS)}; {remedy}")


def _read_datasets_folder(folder: Path) -> pl.DataFrame:
    """What `save_to_disk` of Hugging Face datasets wrote; the parts of a DatasetDict become the column `split`."""
    if (folder / "dataset_dict.json").is_file():
        splits = _read_key(folder, "dataset_dict", "splits", list)
        for split in splits:
            _check_split(split, str(folder), f"name {folder / str(split)}")
        frames = [_read_datasets_folder(folder / split).with_columns(split=pl.lit(split)) for split in splits]
        return pl.concat(frames, how="diagonal_relaxed")
    if not (folder / "state.json").is_file():
        raise Refused(f"{folder} holds no data that can be read; {_READABLE}")
    with refusing(f"{folder} does not fit together", _SAVE):
        files = [folder / one["filename"] for one in _read_key(folder, "state", "_data_files", list)]
        frame = pl.concat([read_arrow(one, _SAVE) for one in files])
        for column, feature in _read_key(folder, "dataset_info", "features", dict).items():
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel":  # numbers for names; -1 for none
                named = dict(enumerate(feature["names"]))
                frame = frame.with_columns(pl.col(column).replace_strict(named, default=None, return_dtype=pl.String))
    return frame


_SAVE = "save the dataset again"


def _read_key(folder: Path, file: str, key: str, kind: type) -> Any:
    path = folder / f"{file}.json"
    value = read_json(path, _SAVE).get(key)
    if not value or not isinstance(value, kind):
        raise Refused(f"{path} does not tell {key!r}; {_SAVE}")
    return value
