"""The dataset's two files: saved and loaded without a change, and damage named in one line."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from nucleate.config import DataSettings
from nucleate.data.dataset import COLUMNS, Dataset, Instance, load_dataset
from nucleate.data.synthetic import generate
from nucleate.refusal import Refused

MICRO: dict[str, Any] = {
    "tasks": 6,
    "mappings": 3,
    "total_distributions": 10,
    "max_distributions": 3,
    "instructions": 5,
    "subset_tasks": 2,
    "source_distributions": 2,
    "validation_tasks": 3,
    "validation_distributions": 4,
    "task_symbols": 10,
    "instruction_symbols": 20,
    "max_length": 16,
}


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    return generate(DataSettings(**MICRO), seed=100)


@pytest.fixture
def folder(dataset: Dataset, tmp_path: Path) -> Path:
    dataset.save(tmp_path / "data")
    return tmp_path / "data"


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_loaded_dataset_equals_the_saved_one_and_saves_to_the_same_bytes(
    dataset: Dataset, folder: Path, tmp_path: Path
) -> None:
    loaded = load_dataset(folder)
    assert loaded == dataset
    assert loaded.content_hash() == dataset.content_hash()
    loaded.save(tmp_path / "again")
    assert contents(tmp_path / "again") == contents(folder)
    assert sorted(contents(folder)) == ["dataset.json", "dataset.parquet"]


def test_files_are_the_same_bytes_in_another_process_with_other_hashes_and_threads(
    folder: Path, tmp_path: Path
) -> None:
    code = (
        "import json, sys; from pathlib import Path; from nucleate.config import DataSettings; "
        "from nucleate.data.synthetic import generate; "
        "generate(DataSettings(**json.loads(sys.argv[1])), seed=100).save(Path(sys.argv[2]))"
    )
    for place, threads in enumerate(("1", "4")):
        there = tmp_path / threads
        environment = os.environ | {"PYTHONHASHSEED": str(place + 1), "POLARS_MAX_THREADS": threads}
        subprocess.run([sys.executable, "-c", code, json.dumps(MICRO), str(there)], check=True, env=environment)
        assert contents(there) == contents(folder)


def test_the_content_hash_sees_every_part(dataset: Dataset) -> None:
    first, *rest = dataset.instances
    changed = [
        Dataset((*rest, first), dataset.settings, dataset.vocabulary, dataset.patterns, dataset.mappings),
        Dataset(dataset.instances, {"seed": 1}, dataset.vocabulary, dataset.patterns, dataset.mappings),
        Dataset(dataset.instances, dataset.settings, {}, dataset.patterns, dataset.mappings),
        Dataset(dataset.instances, dataset.settings, dataset.vocabulary, {}, dataset.mappings),
        Dataset(dataset.instances, dataset.settings, dataset.vocabulary, dataset.patterns, {}),
    ]
    assert len({one.content_hash() for one in (dataset, *changed)}) == 6


def test_columns_of_the_table_are_the_fields_of_an_instance(dataset: Dataset) -> None:
    frame = dataset.frame()
    assert frame.schema == COLUMNS
    assert tuple(frame.columns) == Instance.__slots__
    assert frame.row(0) == tuple(getattr(dataset.instances[0], column) for column in COLUMNS)


def test_splits_part_the_instances_and_the_subset_is_a_part_of_train(dataset: Dataset) -> None:
    parts = [dataset.select(split) for split in ("train", "validation", "test")]
    assert sum(parts, ()) == dataset.select("all") == dataset.instances
    assert 0 < len(dataset.select("subset")) < len(parts[0])
    assert set(dataset.select("subset")) < set(parts[0])
    with pytest.raises(Refused, match="'valid' does not exist; did you mean 'validation'"):
        dataset.select("valid")


def test_counts_are_those_of_the_rows(dataset: Dataset) -> None:
    assert dataset.counts == {
        "train": 10 * 5 * 3 + 18,
        "subset": 36,
        "hard": 18,
        "validation": 36,
        "test": 36,
        "tasks": 6,
        "hard_tasks": 2,
        "distributions": 10,
        "instructions": 50 + 6 + 2 * 12,
        "mean_length": pytest.approx(10, abs=4),
    }


def test_a_table_alone_loads_with_what_its_rows_say(dataset: Dataset, folder: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.parquet"
    shutil.copy(folder / "dataset.parquet", alone)
    loaded = load_dataset(alone)
    assert loaded.instances == dataset.instances
    assert loaded.mappings == dataset.mappings
    assert loaded.settings == loaded.patterns == {}
    assert set(loaded.vocabulary["task"]) <= set(dataset.vocabulary["task"])
    assert set(loaded.vocabulary["task"]) == {symbol for one in dataset.instances for symbol in (one.input, one.output)}
    assert load_dataset(folder / "dataset.parquet") == dataset, "the description beside a table is read with it"


def test_a_failed_save_leaves_the_old_files_whole(
    dataset: Dataset, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = contents(folder)

    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(pl.DataFrame, "write_parquet", fail)
    with pytest.raises(OSError, match="no space left"):
        dataset.save(folder)
    assert contents(folder) == before


# --- refusals -----------------------------------------------------------------------------------------------------


def set_cell(row: int, column: str, value: object) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        frame = pl.read_parquet(folder / "dataset.parquet")
        values = frame[column].to_list()
        values[row] = value
        frame.with_columns(pl.Series(column, values, COLUMNS[column])).write_parquet(folder / "dataset.parquet")

    return damage


def change_table(change: Callable[[pl.DataFrame], pl.DataFrame]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        change(pl.read_parquet(folder / "dataset.parquet")).write_parquet(folder / "dataset.parquet")

    return damage


def change_json(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        described = json.loads((folder / "dataset.json").read_text())
        change(described)
        (folder / "dataset.json").write_text(json.dumps(described))

    return damage


def write(name: str, text: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        (folder / name).write_text(text)

    return damage


def truncate(folder: Path) -> None:
    file = folder / "dataset.parquet"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


DAMAGE: dict[str, tuple[Callable[[Path], None], tuple[str, ...]]] = {
    "no table": (lambda f: (f / "dataset.parquet").unlink(), ("dataset.parquet does not exist", "nucleate data")),
    "no description": (lambda f: (f / "dataset.json").unlink(), ("dataset.json does not exist", "nucleate data")),
    "truncated table": (truncate, ("dataset.parquet is no whole Parquet file", "nucleate data")),
    "text for a table": (write("dataset.parquet", "task,input\n1,2\n"), ("is no whole Parquet file",)),
    "empty table file": (write("dataset.parquet", ""), ("is no whole Parquet file",)),
    "invalid JSON": (write("dataset.json", '{"settings": {'), ("dataset.json is damaged", "line 1 column")),
    "JSON of another kind": (write("dataset.json", "[1]"), ("dataset.json is damaged (it holds a list",)),
    "misnamed column": (
        change_table(lambda t: t.rename({"task": "tasks"})),
        ("column 'task' is missing", "did you mean 'tasks'"),
    ),
    "dropped column": (change_table(lambda t: t.drop("origin")), ("column 'origin' is missing",)),
    "further column": (change_table(lambda t: t.with_columns(note=pl.lit(1))), ("unknown column 'note'", "drop it")),
    "column of another type": (
        change_table(lambda t: t.with_columns(pl.col("in_subset").cast(pl.Int8))),
        ("column 'in_subset' has type Int8", "cast it"),
    ),
    "number too large": (
        change_table(lambda t: t.with_columns(pl.col("instance").cast(pl.Int64) + 2**31 - 3)),
        ("row 3, column 'instance'", "too large"),
    ),
    "no rows": (change_table(lambda t: t.head(0)), ("has no rows",)),
    "lost row": (change_table(lambda t: t.head(t.height - 1)), ("counts.test is 36", "give 35")),
    "null task": (set_cell(7, "task", None), ("row 7, column 'task'", "is null")),
    "null split": (set_cell(0, "split", None), ("row 0, column 'split'", "is null")),
    "unknown split": (set_cell(9, "split", "tset"), ("row 9, column 'split'", "did you mean 'test'")),
    "twice the same instance": (set_cell(5, "instance", 4), ("row 5, column 'instance'", "appears twice")),
    "unknown task": (set_cell(3, "task", "task-1"), ("row 3, column 'task'", "not in mappings", "did you mean")),
    "task against the mappings": (set_cell(3, "task", "task-02"), ("row 3, column 'input'", "no input of task")),
    "output against the mappings": (set_cell(3, "output", "u"), ("row 3, column 'output'", "maps")),
    "foreign symbol": (set_cell(3, "output", "ß"), ("row 3, column 'output'", "'ß' is not in the task vocabulary")),
    "double blank": (set_cell(3, "instruction", "a  b c"), ("row 3, column 'instruction'", "single spaces")),
    "blank instruction": (set_cell(3, "instruction", " "), ("row 3, column 'instruction'", "single spaces")),
    "instruction off its pattern": (
        set_cell(3, "instruction", "a b c d e f g h i j k l m"),
        ("row 3, column 'instruction'", "match"),
    ),
    "unknown distribution": (set_cell(3, "distribution", "task-01-d9"), ("row 3, column 'distribution'", "pattern")),
    "subset outside train": (set_cell(-1, "in_subset", True), ("column 'in_subset'", "part of train")),
    "origin of an ordinary row": (set_cell(3, "origin", 0), ("row 3, column 'origin'", "only hard")),
    "hard row without an original": (set_cell(150, "origin", None), ("row 150, column 'origin'", "training instance")),
    "hard row with another original": (set_cell(150, "origin", 0), ("row 150, column",)),
    "hard row's distribution": (set_cell(150, "distribution", "x"), ("row 150, column 'distribution'", "-hard'")),
    "mapping id of two inputs": (set_cell(1, "mapping", "task-01-m1"), ("row 1, column 'mapping'", "belongs to")),
    "missing key": (
        change_json(lambda d: d.update(pattern=d.pop("patterns"))),
        ("key 'patterns' is missing", "did you mean 'pattern'"),
    ),
    "further key": (change_json(lambda d: d.update(note=1)), ("unknown key 'note'",)),
    "key of another kind": (change_json(lambda d: d.update(counts=[])), ("counts is no JSON object",)),
    "invalid pattern": (
        change_json(lambda d: d["patterns"].update({"task-01-d1": "[a"})),
        ("pattern of 'task-01-d1' is no regular expression",),
    ),
    "vocabulary of another shape": (change_json(lambda d: d["vocabulary"].pop("task")), ("vocabulary must be",)),
    "vocabulary of numbers": (change_json(lambda d: d["vocabulary"].update(task=[1])), ("vocabulary must be",)),
    "vocabulary of nothing": (change_json(lambda d: d["vocabulary"].update(task=None)), ("vocabulary must be",)),
    "mapping of another shape": (change_json(lambda d: d["mappings"].update({"task-01": 3})), ("of task 'task-01'",)),
    "counts of another dataset": (change_json(lambda d: d["counts"].update(train=7)), ("counts.train is 7",)),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused_in_one_line_with_file_place_and_remedy(name: str, folder: Path) -> None:
    damage, fragments = DAMAGE[name]
    damage(folder)
    with pytest.raises(Refused) as refusal:
        load_dataset(folder)
    message = str(refusal.value)
    assert "\n" not in message
    assert str(folder) in message
    assert ";" in message, "a remedy follows"
    for fragment in fragments:
        assert fragment in message, message


def move_rows(dataset: Dataset, move: Callable[[Instance], dict[str, object]]) -> pl.DataFrame:
    rows = [{column: getattr(one, column) for column in COLUMNS} | move(one) for one in dataset.instances]
    return pl.DataFrame(rows, schema=COLUMNS)


def test_an_instruction_of_two_tasks_is_refused(dataset: Dataset, folder: Path) -> None:
    (folder / "dataset.json").unlink()  # the rows alone must tell
    one, other = dataset.select("test")[0], dataset.select("test")[-1]
    assert one.task != other.task
    move_rows(
        dataset, lambda row: {"instruction": one.instruction} if row.instruction == other.instruction else {}
    ).write_parquet(folder / "dataset.parquet")
    with pytest.raises(Refused, match=rf"column 'instruction': .* belongs to task '{one.task}' and '{other.task}'"):
        load_dataset(folder / "dataset.parquet")


def test_an_instruction_seen_in_training_is_refused_in_test(dataset: Dataset, folder: Path) -> None:
    (folder / "dataset.json").unlink()
    unseen = dataset.select("test")[0]
    seen = next(one for one in dataset.select("train") if one.distribution == unseen.distribution)
    move_rows(
        dataset, lambda row: {"instruction": seen.instruction} if row.instruction == unseen.instruction else {}
    ).write_parquet(folder / "dataset.parquet")
    with pytest.raises(Refused, match="belongs to split 'train' and 'test'"):
        load_dataset(folder / "dataset.parquet")


def test_a_hard_instruction_that_differs_in_two_symbols_is_refused(dataset: Dataset, folder: Path) -> None:
    (folder / "dataset.json").unlink()
    hard = next(one for one in dataset.instances if one.is_hard)
    original = dataset.instances[hard.origin or 0]
    words = hard.instruction.split(" ")
    place = next(i for i, word in enumerate(original.instruction.split(" ")) if word == words[i])
    words[place] = next(word for word in dataset.vocabulary["instruction"] if word != words[place])
    move_rows(
        dataset, lambda row: {"instruction": " ".join(words)} if row.instruction == hard.instruction else {}
    ).write_parquet(folder / "dataset.parquet")
    with pytest.raises(Refused, match=f"row {hard.instance}, column 'instruction': .*not in one symbol"):
        load_dataset(folder / "dataset.parquet")


def test_a_path_that_is_no_dataset_is_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="nowhere does not exist"):
        load_dataset(tmp_path / "nowhere")
    with pytest.raises(Refused, match="name its folder"):
        load_dataset(folder / "dataset.json")
