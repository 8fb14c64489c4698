"""The dataset: instances in splits with what generated them, and its two files, `dataset.parquet` and `dataset.json`.

`load_dataset` checks every row against the description, so that whoever holds a `Dataset` may trust it. Its refusals
name the file, the row (counted from 0, which is also the `instance` of our own files), the column and the remedy.
"""

import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import astuple, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn

import polars as pl

from nucleate.files import write_table, write_text
from nucleate.reading import read_json, read_parquet
from nucleate.refusal import Refused, nearest

TABLE, DESCRIPTION = "dataset.parquet", "dataset.json"
SPLITS = ("train", "validation", "test")
COLUMNS = pl.Schema(
    {
        "instance": pl.Int32,
        "split": pl.String,
        "in_subset": pl.Boolean,
        "instruction": pl.String,
        "input": pl.String,
        "output": pl.String,
        "task": pl.String,
        "distribution": pl.String,
        "mapping": pl.String,
        "is_hard": pl.Boolean,
        "origin": pl.Int32,
    }
)
_MAY_BE_NULL = ("output", "distribution", "mapping", "origin")
_KEYS = ("settings", "vocabulary", "patterns", "mappings", "counts")
_AGAIN = "make the dataset again with `nucleate data`"


@dataclass(frozen=True, slots=True)
class Instance:
    """An instruction with one input and its output; the fields are the columns of `dataset.parquet`, in order."""

    instance: int
    split: str
    in_subset: bool
    instruction: str
    input: str
    output: str | None
    task: str
    distribution: str | None
    mapping: str | None
    is_hard: bool
    origin: int | None


@dataclass(frozen=True)
class Dataset:
    """All instances and their description. Not to be changed once made: the hash and the counts are kept."""

    instances: tuple[Instance, ...]
    settings: dict[str, Any]
    vocabulary: dict[str, list[str]]  # {"instruction": [...], "task": [...]}
    patterns: dict[str, str]  # distribution -> regular expression, once the blanks of an instruction are removed
    mappings: dict[str, dict[str, str]]  # task -> {input: output}, the hard tasks included

    @cached_property
    def counts(self) -> dict[str, int | float]:
        """Instances per split (`subset` and `hard` are parts of `train`), then what is distinct among all instances.

        `mean_length` is the mean number of words of the distinct instructions, rounded to three digits.
        """
        lengths = {one.instruction: one.instruction.count(" ") + 1 for one in self.instances}
        return {
            "train": len(self.select("train")),
            "subset": len(self.select("subset")),
            "hard": sum(one.is_hard for one in self.instances),
            "validation": len(self.select("validation")),
            "test": len(self.select("test")),
            "tasks": len({one.task for one in self.instances if not one.is_hard}),
            "hard_tasks": len({one.task for one in self.instances if one.is_hard}),
            "distributions": len({one.distribution for one in self.instances if one.distribution and not one.is_hard}),
            "instructions": len(lengths),
            "mean_length": round(sum(lengths.values()) / len(lengths), 3) if lengths else 0.0,
        }

    def select(self, split: str) -> tuple[Instance, ...]:
        """The instances of `train`, `validation`, `test`, `subset` (a part of train) or `all`, in order."""
        if split == "all":
            return self.instances
        if split == "subset":
            return tuple(one for one in self.instances if one.in_subset)
        if split not in SPLITS:
            raise Refused(f"split {split!r} does not exist{nearest(split, (*SPLITS, 'subset', 'all'))}")
        return tuple(one for one in self.instances if one.split == split)

    def frame(self) -> pl.DataFrame:
        return pl.DataFrame([astuple(one) for one in self.instances], schema=COLUMNS, orient="row")

    def content_hash(self) -> str:
        """sha256 of what the dataset says: the same on every machine and for every version of the Parquet writer."""
        digest = hashlib.sha256(_canonical([self.settings, self.vocabulary, self.patterns, self.mappings]))
        for one in self.instances:
            digest.update(b"\n" + _canonical(astuple(one)))
        return digest.hexdigest()

    def save(self, folder: Path) -> None:
        """Writes both files; each appears whole or not at all."""
        folder = Path(folder)
        description = {key: getattr(self, key) for key in _KEYS}
        text = json.dumps(description, ensure_ascii=False, indent=1) + "\n"
        write_text(folder / DESCRIPTION, text)
        write_table(folder / TABLE, self.frame(), compression="zstd")


def is_inside(dataset: Dataset) -> bool:
    """Do its inputs stand inside their instructions (`data/inside.py`)?"""
    return bool(dataset.settings.get("input_place") == "inside")


def refuse_inside(dataset: Dataset, what: str) -> None:
    """At the door of whatever feeds every input after its instruction."""
    if is_inside(dataset):
        raise Refused(
            f"{what}: data.input_place=inside is for `nucleate learn` alone, all else feeds an input after its "
            "instruction; take data with data.input_place=after"
        )


def load_dataset(path: str | Path) -> Dataset:
    """The dataset of a folder with both files, or of a `dataset.parquet` (with the `dataset.json` beside it, if any).

    A table alone has no settings and no patterns; its vocabulary and mappings are then those of its rows.
    """
    path = Path(path)
    table = path / TABLE if path.is_dir() else path
    described = table.with_name(DESCRIPTION)
    if path.name == DESCRIPTION:
        raise Refused(f"{path} only describes a dataset; name its folder {path.parent} instead")
    for file in (table, described) if path.is_dir() else (table,):
        if not file.is_file():
            raise Refused(
                f"{file} does not exist; a dataset is a folder with {TABLE} and {DESCRIPTION}: "
                "mend the path, or make one with `nucleate data`"
            )
    instances = _read_table(table)
    if not described.is_file():
        return _undescribed(instances, table)
    description = _read_description(described)
    dataset = Dataset(instances, **{key: description[key] for key in _KEYS if key != "counts"})
    _check_rows(dataset, table)
    for key, value in dataset.counts.items():
        if description["counts"].get(key) != value:
            raise Refused(
                f"{described}: counts.{key} is {description['counts'].get(key)!r}, but the rows of {table.name} "
                f"give {value}: the two files do not belong together; {_AGAIN}"
            )
    return dataset


def _read_table(file: Path) -> tuple[Instance, ...]:
    frame = read_parquet(file, _AGAIN)
    for column in COLUMNS:
        if column not in frame.columns:
            others = [one for one in frame.columns if one not in COLUMNS]
            close = nearest(column, others) if others else ""
            raise Refused(f"{file} is no dataset: column {column!r} is missing{close}; rename it, or {_AGAIN}")
    for column in frame.columns:
        if column not in COLUMNS:
            raise Refused(f"{file} has an unknown column {column!r}; drop it: a dataset has {', '.join(COLUMNS)}")
    if frame.is_empty():
        raise Refused(f"{file} has no rows; {_AGAIN}")
    for column, wanted in COLUMNS.items():
        frame = frame.with_columns(_as_type(frame[column], wanted, file))
    return tuple(Instance(*row) for row in frame.select(list(COLUMNS)).iter_rows())


def _as_type(column: pl.Series, wanted: Any, file: Path) -> pl.Series:
    """The column in the type of the contract, without changing a value; nulls only where they are allowed."""
    fits = column.dtype == wanted or (column.dtype.is_integer() and wanted == pl.Int32) or column.dtype == pl.Null
    if not fits:
        raise Refused(f"{file}, column {column.name!r} has type {column.dtype}, not {wanted}; cast it, or {_AGAIN}")
    typed = column.cast(wanted, strict=False)
    for bad, what in (
        (typed.is_null() & column.is_not_null(), "is too large for 32 bits"),
        (typed.is_null() & (column.name not in _MAY_BE_NULL), "is null"),
    ):
        if bad.any():
            row = bad.arg_max()
            raise Refused(f"{file}, row {row}, column {column.name!r}: {what}; give it a value, or {_AGAIN}")
    return typed


def _read_description(file: Path) -> dict[str, Any]:
    description = read_json(file, _AGAIN)
    for key in _KEYS:
        if key not in description:
            others = [one for one in description if one not in _KEYS]
            close = nearest(key, others) if others else ""
            raise Refused(f"{file}: key {key!r} is missing{close}; rename it, or {_AGAIN}")
        if not isinstance(description[key], dict):
            raise Refused(f"{file}: {key} is no JSON object; {_AGAIN}")
    for key in description:
        if key not in _KEYS:
            raise Refused(f"{file} has an unknown key {key!r}; drop it: there are {', '.join(_KEYS)}")
    _check_shapes(description, file)
    return description


def _check_shapes(description: dict[str, Any], file: Path) -> None:
    """Beneath the five keys everything is text; patterns compile."""
    vocabulary = description["vocabulary"]
    if set(vocabulary) != {"instruction", "task"} or not all(_all_text(words, list) for words in vocabulary.values()):
        raise Refused(f"{file}: vocabulary must be {{instruction: [words], task: [words]}}; {_AGAIN}")
    for task, mapping in description["mappings"].items():
        if not _all_text(mapping, dict):
            raise Refused(f"{file}: mappings of task {task!r} must be {{input: output}}, all text; {_AGAIN}")
    for distribution, pattern in description["patterns"].items():
        try:
            re.compile(pattern)
        except (re.error, TypeError) as error:
            raise Refused(f"{file}: pattern of {distribution!r} is no regular expression ({error}); {_AGAIN}") from None


def _all_text(value: Any, kind: type[list] | type[dict]) -> bool:
    words = value.values() if isinstance(value, dict) else value
    return isinstance(value, kind) and all(isinstance(one, str) for one in words)


def _undescribed(instances: tuple[Instance, ...], table: Path) -> Dataset:
    mappings: dict[str, dict[str, str]] = {}
    for one in instances:
        if one.output is not None:
            mappings.setdefault(one.task, {}).setdefault(one.input, one.output)
    vocabulary = {
        "instruction": sorted({word for one in instances for word in one.instruction.split(" ")}),
        "task": sorted({word for one in instances for text in (one.input, one.output or "") for word in text.split()}),
    }
    dataset = Dataset(instances, {}, vocabulary, {}, mappings)
    _check_rows(dataset, table)
    return dataset


def _check_rows(dataset: Dataset, file: Path) -> None:
    """Refuses the first row that contradicts the description or an earlier row."""
    by_id = {one.instance: one for one in dataset.instances}
    matches: dict[str, Callable[[str], Any]] = {
        distribution: re.compile(pattern).fullmatch for distribution, pattern in dataset.patterns.items()
    }
    words = {kind: frozenset(symbols) for kind, symbols in dataset.vocabulary.items()}
    first_with: dict[tuple[str, str, str], str | None] = {}
    seen: set[int] = set()
    for row, one in enumerate(dataset.instances):
        refuse = _refusal_of_row(file, row)
        if one.instance in seen:
            refuse("instance", f"instance {one.instance} appears twice", "number the instances anew")
        seen.add(one.instance)
        _check_row(one, dataset, by_id, matches, words, refuse)
        # What may belong to one thing only: an instruction to one task, and so on.
        for column, owner, belongs in (
            ("instruction", "task", one.task),
            ("instruction", "split", one.split),
            ("instruction", "distribution", one.distribution),
            ("distribution", "task", one.task),
            ("mapping", "task and input", f"{one.task} / {one.input}"),
        ):
            value = getattr(one, column)
            if value is not None and first_with.setdefault((column, owner, value), belongs) != belongs:
                earlier = first_with[column, owner, value]
                refuse(column, f"{value!r} belongs to {owner} {earlier!r} and {belongs!r}", f"mend the {owner}")


def _refusal_of_row(file: Path, row: int) -> Callable[[str, str, str], NoReturn]:
    def refuse(column: str, what: str, remedy: str) -> NoReturn:
        raise Refused(f"{file}, row {row}, column {column!r}: {what}; {remedy}, or {_AGAIN}")

    return refuse


def _check_row(
    one: Instance,
    dataset: Dataset,
    by_id: dict[int, Instance],
    matches: dict[str, Callable[[str], Any]],
    words: dict[str, frozenset[str]],
    refuse: Callable[[str, str, str], NoReturn],
) -> None:
    """One row against the description, and a hard one against its original."""
    if one.split not in SPLITS:
        refuse("split", f"{one.split!r} is no split{nearest(one.split, SPLITS)}", "mend it")
    if one.in_subset and one.split != "train":
        refuse("in_subset", f"the subset is a part of train, the row of {one.split}", "set it to false")
    for column, kind in (("instruction", "instruction"), ("input", "task"), ("output", "task")):
        value = getattr(one, column)
        if value is not None and (not value.strip() or value != " ".join(value.split())):
            refuse(column, f"{value!r} is not words separated by single spaces", "mend the blanks")
        for word in value.split() if value else ():
            if word not in words[kind]:
                refuse(column, f"{word!r} is not in the {kind} vocabulary of {DESCRIPTION}", "mend the word")
    if not one.task.strip():
        refuse("task", "is blank", "name the task")
    if one.output is not None:
        if one.task not in dataset.mappings:
            refuse("task", f"{one.task!r} is not in mappings{nearest(one.task, dataset.mappings)}", "mend it")
        expected = dataset.mappings[one.task].get(one.input)
        if expected is None:
            refuse("input", f"{one.input!r} is no input of task {one.task!r} in mappings", "mend it")
        if expected != one.output:
            refuse(
                "output", f"{one.output!r} where task {one.task!r} maps {one.input!r} to {expected!r}", "mend the task"
            )
    if one.is_hard:
        _check_hard(one, by_id, refuse)
    elif one.origin is not None:
        refuse("origin", f"is {one.origin}, but only hard instances have an original", "set it to null")
    elif dataset.patterns and one.distribution is not None:
        if one.distribution not in matches:
            close = nearest(one.distribution, matches)
            refuse("distribution", f"{one.distribution!r} has no pattern{close}", "mend it")
        if not matches[one.distribution](one.instruction.replace(" ", "")):
            pattern = dataset.patterns[one.distribution]
            refuse("instruction", f"does not match its pattern {pattern}", "mend the distribution")


def _check_hard(one: Instance, by_id: dict[int, Instance], refuse: Callable[[str, str, str], NoReturn]) -> None:
    original = by_id.get(-1 if one.origin is None else one.origin)
    if original is None or original.is_hard or original.split != "train":
        refuse("origin", f"{one.origin} is no ordinary training instance, as a hard one's original must be", "mend it")
    if one.split != "train":
        refuse("split", "a hard instance belongs to train", "mend it")
    if original.task == one.task or original.input != one.input or original.output == one.output:
        refuse("origin", f"instance {one.origin} must have another task, the same input and another output", "mend it")
    ours, theirs = one.instruction.split(" "), original.instruction.split(" ")
    if len(ours) != len(theirs) or sum(a != b for a, b in zip(ours, theirs, strict=True)) != 1:
        refuse("instruction", f"differs from its original's (instance {one.origin}) not in one symbol", "mend it")
    if one.distribution != f"{original.distribution}-hard":
        refuse("distribution", f"must be '{original.distribution}-hard', after its original's", "mend it")


def _canonical(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, separators=(",", ":")).encode()
