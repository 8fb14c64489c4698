"""A user's prompts: every kind of source says the same, what is missing is counted, what is wrong is refused."""

import csv
import json
import random
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow
import pytest

from nucleate.config import DataSettings
from nucleate.data.dataset import Dataset, Instance
from nucleate.data.natural import GROUPS, natural_dataset
from nucleate.data.prompts import Prompts, read_prompts
from nucleate.data.synthetic import generate
from nucleate.refusal import Refused

Row = dict[str, Any]
TASKS = ("refund", "cancel", "greet")


def some_rows(instructions: int = 4, inputs: int = 3) -> list[Row]:
    """Three tasks, instruction by instruction; text that a careless reader would damage."""
    return [
        {
            "instruction": f'Say "{task}",\nway {way} – naïve\u2028: ',
            "input": f"word {given}, é",
            "output": f"out {given}",
            "task": task,
            "distribution": f"{task}-{way % 2}",
            "mapping": f"{task}-{given}",
            "split": ("train", "validation", "test", "test")[way % 4],
        }
        for task in TASKS
        for way in range(instructions)
        for given in range(inputs)
    ]


def texts(count: int = 4) -> list[Row]:
    return [{"text": f"{task} number {number}", "task": task} for task in TASKS for number in range(count)]


def changed(rows: list[Row], *places: int, **cells: Any) -> list[Row]:
    return [row | cells if place in places else row for place, row in enumerate(rows)]


def write_jsonl(path: Path, rows: list[Row]) -> Path:
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_csv(path: Path, rows: list[Row]) -> Path:
    with path.open("w", encoding="utf-8-sig", newline="") as file:
        table = csv.DictWriter(file, list(rows[0]))
        table.writeheader()
        table.writerows(rows)
    return path


def write_datasets_folder(folder: Path, frame: pl.DataFrame, **labels: list[str]) -> Path:
    """What `datasets.Dataset.save_to_disk` leaves: two Arrow streams and two descriptions."""
    folder.mkdir(parents=True)
    files = [f"data-0000{number}-of-00002.arrow" for number in (0, 1)]
    for file, part in zip(files, (frame.head(5), frame.slice(5)), strict=True):
        part.write_ipc_stream(folder / file)
    features: dict[str, Any] = {column: {"dtype": "string", "_type": "Value"} for column in frame.columns}
    features |= {column: {"names": names, "_type": "ClassLabel"} for column, names in labels.items()}
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": file} for file in files]}))
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def write_datasets_dict(folder: Path, rows: list[Row]) -> Path:
    splits = ["test", "train", "validation"]
    for split in splits:
        own = [row for row in rows if row["split"] == split]
        write_datasets_folder(folder / split, pl.DataFrame(own).drop("split"))
    (folder / "dataset_dict.json").write_text(json.dumps({"splits": splits}))
    return folder


def write_parquet(path: Path, frame: pl.DataFrame) -> Path:
    frame.write_parquet(path)
    return path


def write_bare_folder(folder: Path, frame: pl.DataFrame) -> Path:
    folder.mkdir()
    write_parquet(folder / "dataset.parquet", frame)
    return folder


def as_pandas(frame: pl.DataFrame) -> Any:
    return pytest.importorskip("pandas").DataFrame(frame.to_dicts())


class Names:
    """`datasets.ClassLabel`: numbers that stand for names."""

    def __init__(self, names: list[str]) -> None:
        self.names = names

    def int2str(self, number: int) -> str:
        return self.names[number]


class PlayedDataset:
    """What of `datasets.Dataset` is used, set to a format that gives something else than rows."""

    def __init__(self, rows: list[Row], **labels: list[str]) -> None:
        self._rows = rows
        self.features = {column: object() for column in rows[0]} | {c: Names(names) for c, names in labels.items()}

    def with_format(self, kind: None) -> list[Row]:
        return self._rows


class Arrow:
    """A table of nobody's, known by its protocol alone."""

    def __init__(self, frame: pl.DataFrame) -> None:
        self._frame = frame

    def __arrow_c_stream__(self, requested_schema: Any = None) -> Any:
        return self._frame.__arrow_c_stream__(requested_schema)


SOURCES: dict[str, Callable[[Path, list[Row]], Any]] = {
    "jsonl": lambda path, rows: write_jsonl(path / "my.jsonl", rows),
    "csv": lambda path, rows: write_csv(path / "my.csv", rows),
    "parquet": lambda path, rows: str(write_parquet(path / "my.PARQUET", pl.DataFrame(rows))),
    "folder with a table": lambda path, rows: write_bare_folder(path / "my", pl.DataFrame(rows)),
    "datasets folder": lambda path, rows: write_datasets_folder(path / "my", pl.DataFrame(rows)),
    "data frame": lambda _, rows: pl.DataFrame(rows),
    "lazy frame": lambda _, rows: pl.DataFrame(rows).lazy(),
    "table of pyarrow": lambda _, rows: pyarrow.Table.from_pylist(rows),
    "whatever has Arrow's columns": lambda _, rows: Arrow(pl.DataFrame(rows)),
    "dataset": lambda _, rows: PlayedDataset(rows),
    "pandas data frame": lambda _, rows: as_pandas(pl.DataFrame(rows)),
    "list": lambda _, rows: rows,
    "iterator": lambda _, rows: iter(rows),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_every_kind_of_source_gives_the_rows_as_they_were_written(kind: str, tmp_path: Path) -> None:
    rows = some_rows()
    prompts = read_prompts(SOURCES[kind](tmp_path, rows))
    assert prompts.instances == tuple(
        Instance(instance=number, in_subset=False, is_hard=False, origin=None, **row) for number, row in enumerate(rows)
    )
    made = next(tmp_path.iterdir(), None)
    assert prompts.name == ("prompts" if made is None else f"{made.name}/" if made.is_dir() else made.name)
    assert (prompts.has_inputs, prompts.messages, prompts.dropped, prompts.warnings) == (True, None, (), ())


def test_numbers_that_stand_for_names_become_these_also_of_a_loaded_dataset() -> None:
    rows: list[Row] = [{"prompt": f"p{number}", "task": number % 3 - 1} for number in range(6)]
    prompts = read_prompts(PlayedDataset(rows, task=["refund", "greeting"]))
    assert [one.task for one in prompts.instances] == ["refund", "greeting"] * 2
    assert len(prompts.dropped) == 2  # -1: none


def test_a_loaded_dataset_dict_has_its_splits_and_another_name_of_a_part_is_refused() -> None:
    rows = some_rows()
    parts = {split: [row for row in rows if row["split"] == split] for split in ("test", "train", "validation")}
    prompts = read_prompts({split: PlayedDataset(own) for split, own in parts.items()})
    assert Counter(one.split for one in prompts.instances) == Counter(row["split"] for row in rows)
    with pytest.raises(Refused, match=r"split 'unsupervised', none of .*; take one part of it, as dataset\['unsuper"):
        read_prompts({"unsupervised": PlayedDataset(rows)})


def test_the_parts_of_a_dataset_dict_become_the_splits(tmp_path: Path) -> None:
    rows = some_rows()
    prompts = read_prompts(write_datasets_dict(tmp_path / "my", rows))
    by_split = sorted(rows, key=lambda row: str(row["split"]))
    assert [(one.instruction, one.input, one.split) for one in prompts.instances] == [
        (row["instruction"], row["input"], row["split"]) for row in by_split
    ]


@pytest.mark.parametrize("group", GROUPS)
def test_our_own_data_come_as_they_are(group: str) -> None:
    prompts = read_prompts(group)
    assert prompts.instances == natural_dataset(group).instances
    assert (prompts.name, prompts.warnings, prompts.dropped) == (group, (), ())
    assert read_prompts(natural_dataset(group)) == prompts


def test_a_folder_of_a_saved_dataset_gives_the_dataset(dataset: Dataset, tmp_path: Path) -> None:
    dataset.save(tmp_path / "saved")
    assert read_prompts(tmp_path / "saved").instances == dataset.instances


def test_hard_instances_of_our_own_data_keep_their_originals(dataset: Dataset) -> None:
    assert read_prompts(dataset).instances == dataset.instances
    rotated = Dataset(tuple(reversed(dataset.instances)), {}, {}, {}, {})
    read = read_prompts(rotated).instances
    hard = [one for one in read if one.is_hard]
    assert hard
    for one in hard:
        original = read[-1 if one.origin is None else one.origin]
        assert (original.input, original.is_hard) == (one.input, False)
        assert f"{original.distribution}-hard" == one.distribution
    few = read_prompts(dataset, limit=60).instances
    assert all(few[one.origin].input == one.input for one in few if one.origin is not None)
    assert any(one.is_hard and one.origin is None for one in few), "its original was left out"


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    settings = DataSettings(
        tasks=6,
        mappings=3,
        total_distributions=10,
        max_distributions=3,
        instructions=5,
        subset_tasks=2,
        source_distributions=2,
        validation_tasks=3,
        validation_distributions=4,
        task_symbols=10,
        instruction_symbols=20,
        max_length=16,
    )
    return generate(settings, seed=100)


# --- forms and columns --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["prompt", "text", "words"])
def test_one_column_of_text_is_the_instruction_and_there_is_no_input(column: str) -> None:
    rows = [{column: row["text"], "label": row["task"]} for row in texts()]
    renamed = {"task": "label"} | ({"prompt": "words"} if column == "words" else {})
    prompts = read_prompts(rows, columns=renamed)
    assert not prompts.has_inputs
    assert [(one.instruction, one.input, one.task) for one in prompts.instances] == [
        (row["text"], "", row["task"]) for row in texts()
    ]
    assert {(one.split, one.output, one.distribution, one.mapping) for one in prompts.instances} == {
        ("test", None, None, None)
    }


def test_messages_are_read_up_to_the_assistants_turn_which_is_the_output(tmp_path: Path) -> None:
    system = {"role": "system", "content": "Be kind."}
    rows = []
    for row in texts():
        chat = [system, {"role": "user", "content": row["text"]}]
        rows.append({"messages": chat, "task": row["task"]})
    rows[0]["messages"].append({"role": "assistant", "content": "Gladly.", "tool_calls": None})
    chats = tuple((system, {"role": "user", "content": row["text"]}) for row in texts())
    as_json = [row | {"messages": json.dumps(row["messages"])} for row in rows]
    for source in (rows, pl.DataFrame(rows), as_json, write_csv(tmp_path / "my.csv", as_json)):
        prompts = read_prompts(source)
        assert prompts.messages == chats
        assert [one.instruction for one in prompts.instances] == [f"Be kind.\n{row['text']}" for row in texts()]
        assert [one.output for one in prompts.instances] == ["Gladly."] + [None] * 11
        assert not prompts.has_inputs
        assert prompts.warnings == (
            "the assistant's last turn in 1 chats is taken as the output, not read as the prompt",
        )


def test_chats_without_text_are_left_out_and_the_others_stay_with_their_instances() -> None:
    chats: list[Any] = [[{"role": "user", "content": f"prompt {number}"}] for number in range(9)]
    silent = {"role": "system", "content": ""}
    chats[1:5] = [
        None,
        " ",
        [*chats[0], {"role": "user", "content": None}],
        [{"role": "assistant", "content": "alone"}],
    ]
    chats[5] = [silent, *chats[5]]  # nothing said by the system is no reason to leave a chat out
    prompts = read_prompts([{"messages": chat, "task": number % 2} for number, chat in enumerate(chats)])
    assert prompts.dropped == tuple((place, "messages is empty") for place in range(1, 5))
    assert [one.instruction for one in prompts.instances] == [
        "prompt 0",
        "\nprompt 5",
        "prompt 6",
        "prompt 7",
        "prompt 8",
    ]
    assert prompts.messages == tuple(tuple(chats[place]) for place in (0, 5, 6, 7, 8))


def test_a_named_column_decides_where_there_are_two_and_is_not_read_under_its_own_name() -> None:
    rows = [row | {"text": f"{row['instruction']} {row['input']}"} for row in some_rows()]
    alone = read_prompts(rows, columns={"text": "text"})
    assert [one.instruction for one in alone.instances] == [row["text"] for row in rows]
    assert read_prompts(rows, columns={"instruction": "instruction"}).has_inputs
    swapped = read_prompts(rows, columns={"prompt": "instruction", "task": "distribution"})
    assert {one.task for one in swapped.instances} == {row["distribution"] for row in rows}
    assert {one.distribution for one in swapped.instances} == {None}


def labels(source: Any) -> list[str]:
    return [one.task for one in read_prompts(source, columns={"task": "label"}).instances]


def test_labels_of_a_pandas_frame_may_be_numbers_booleans_and_missing_in_all_its_ways() -> None:
    floats = [{"text": f"prompt {n}", "label": None if n == 4 else n % 2 + 0.0} for n in range(6)]
    frame = as_pandas(pl.DataFrame(floats))
    assert labels(frame) == ["0", "1", "0", "1", "1"]
    assert labels(frame.convert_dtypes()) == ["0", "1", "0", "1", "1"], "its nulls are pd.NA"
    assert len(labels(frame.astype({"label": "datetime64[s]"}))) == 5, "its null is NaT"
    truths = as_pandas(pl.DataFrame({"text": list("abcd"), "label": [False, True, False, True]}))
    assert labels(truths) == ["false", "true"] * 2


def test_labels_may_be_numbers_and_booleans(tmp_path: Path) -> None:
    rows = [{"text": f"prompt {number}", "label": number % 2} for number in range(6)]
    assert labels(rows) == labels(pl.DataFrame(rows)) == labels(write_csv(tmp_path / "a.csv", rows)) == ["0", "1"] * 3
    floats = [row | {"label": None if place == 4 else place % 2 + 0.0} for place, row in enumerate(rows)]
    assert labels(floats) == ["0", "1", "0", "1", "1"]
    assert labels(changed(floats, 4, label=float("nan"))) == ["0", "1", "0", "1", "1"]
    truths = [row | {"label": bool(row["label"])} for row in rows]
    assert labels(truths) == labels(pl.DataFrame(truths))
    assert labels(truths) == labels(write_jsonl(tmp_path / "b.jsonl", truths)) == ["false", "true"] * 3
    numbered = pl.DataFrame(changed(rows, 5, label=-1))
    assert labels(write_datasets_folder(tmp_path / "c", numbered, label=["no", "yes"])) == [
        "no",
        "yes",
        "no",
        "yes",
        "no",
    ]


# --- what is left out, what is warned of --------------------------------------------------------------------------


def test_rows_that_lack_something_are_left_out_and_named_by_their_line(tmp_path: Path) -> None:
    rows = changed(some_rows(), 1, task=" ")
    rows = changed(rows, 3, input="")
    rows = changed(rows, 5, task=None)
    rows = changed(rows, 6, output="", distribution=None, mapping=" ")
    file = write_jsonl(tmp_path / "my.jsonl", rows)
    file.write_text(file.read_text(encoding="utf-8").replace("\n", "\n\n", 2), encoding="utf-8")  # two blank lines
    prompts = read_prompts(file)
    assert prompts.dropped == ((3, "task is empty"), (6, "input is empty"), (8, "task is empty"))
    assert prompts.warnings == ("3 of 36 prompts were left out: task is empty (line 3, 8); input is empty (line 6)",)
    assert [one.instance for one in prompts.instances] == list(range(33))
    poor = prompts.instances[3]
    assert (poor.instruction, poor.output, poor.distribution, poor.mapping) == (
        rows[6]["instruction"],
        None,
        None,
        None,
    )
    assert read_prompts(rows).dropped == ((1, "task is empty"), (3, "input is empty"), (5, "task is empty"))


def test_lines_of_a_csv_count_the_breaks_inside_its_cells(tmp_path: Path) -> None:
    old = tmp_path / "old.csv"
    old.write_bytes(b"text,task\ra,x\r,y\rb,x\rc,y\rd,y\r")  # lines as Excel once ended them
    assert read_prompts(old).dropped == ((3, "text is empty"),)
    file = write_csv(tmp_path / "my.csv", changed(some_rows(), 2, input=None))
    assert read_prompts(file).dropped == ((6, "input is empty"),), "line 1 the header, two lines for each row before"


@pytest.mark.parametrize("parted", [";", "\t", "|"])
def test_a_csv_parted_as_spreadsheets_of_other_countries_do_is_read_alike(tmp_path: Path, parted: str) -> None:
    (tmp_path / "my.csv").write_text(write_csv(tmp_path / "plain.csv", texts()).read_text().replace(",", parted))
    assert read_prompts(tmp_path / "my.csv").instances == read_prompts(texts()).instances


def test_a_tsv_is_parted_by_tabs_alone(tmp_path: Path) -> None:
    rows = [row | {"text": f"well, {row['text']}; so | there, then"} for row in texts()]
    (tmp_path / "my.TSV").write_text("\n".join("\t".join(row.values()) for row in [{"a": "text", "b": "task"}, *rows]))
    assert read_prompts(tmp_path / "my.TSV").instances == read_prompts(rows).instances
    (tmp_path / "my.tsv").write_text('text\ttask\na\tx\n"b\ty\n')
    with pytest.raises(Refused, match=r"my\.tsv, line 3: no valid TSV .*; mend its quotes"):
        read_prompts(tmp_path / "my.tsv")


def test_half_a_character_is_left_out_since_no_tokenizer_takes_it(tmp_path: Path) -> None:
    file = tmp_path / "my.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in changed(texts(), 3, text="cut \ud83d")))
    assert read_prompts(file).dropped == ((4, "text holds half a character"),)


def test_missing_values_of_a_column_leave_the_others_alone() -> None:
    rows = [{key: row[key] for key in ("instruction", "input", "task")} for row in some_rows()]
    rows[0]["mapping"] = "m"
    assert [one.mapping for one in read_prompts(rows).instances] == ["m"] + [None] * 35


def test_warnings_name_what_makes_numbers_misleading() -> None:
    def warned(rows: list[Row]) -> str:
        (warning,) = read_prompts(rows).warnings
        return warning

    assert warned(changed(texts(), 1, 2, task=" Refund")) == (
        "tasks ' Refund', 'refund' differ only by case or blanks; they count as different"
    )
    lonely = [row | {"instruction": f"Do {row['task']}."} if row["task"] != "greet" else row for row in some_rows()]
    assert warned(lonely) == (
        "2 of 3 tasks have one instruction only, and neighbours are sought among other instructions: 'cancel', 'refund'"
    )
    assert warned([*texts(), texts()[0] | {"task": "greet"}]) == "1 prompts appear under more than one task"


def test_the_format_stays_with_its_prompt_and_counts_only_where_every_row_tells_one_of_several() -> None:
    rows = [row | {"way": f"form {place % 2}"} for place, row in enumerate(texts(8))]
    rows[5]["text"] = None
    read = read_prompts(rows, columns={"format": "way"}, limit=12)
    assert len(read.instances) == 12
    assert read.formats == tuple(f"form {place % 2}" for place in read.places)
    assert not any("format" in warning for warning in read.warnings)
    assert read_prompts(rows).formats is None
    for changed_rows, why in (
        (changed(rows, 3, 4, way=""), "2 prompts have none (column 'way')"),
        (changed(rows, *range(24), way="plain"), "all are one (column 'way')"),
    ):
        without = read_prompts(changed_rows, columns={"format": "way"})
        assert without.formats is None and len(without.instances) == 23
        assert any(warning.endswith(why) for warning in without.warnings)


def test_a_distribution_under_several_tasks_gets_a_name_of_its_own_under_each() -> None:
    rows = [row | {"distribution": "short"} if row["split"] == "test" else row for row in some_rows()]
    rows[0]["distribution"] = "refund/short"  # taken already
    prompts = read_prompts(rows)
    assert prompts.warnings == ("distributions under several tasks were renamed to task/distribution: short",)
    names = {(one.task, one.distribution) for one in prompts.instances if one.split == "test"}
    assert names == {("refund", "refund/short'"), ("cancel", "cancel/short"), ("greet", "greet/short")}
    assert prompts.instances[0].distribution == "refund/short"
    assert prompts.instances[1].distribution == "refund-0", "one task's own names stay"


# --- limit --------------------------------------------------------------------------------------------------------


def content(prompts: Prompts) -> set[Instance]:
    return {replace(one, instance=0) for one in prompts.instances}


@pytest.mark.parametrize("limit", [6, 23, 100, 300, 1000, 8799])
def test_a_limit_spreads_over_the_tasks_and_the_same_prompts_come_in_any_order(limit: int) -> None:
    rows = (
        natural_dataset("natural").frame().select("instruction", "input", "output", "task", "distribution").to_dicts()
    )
    prompts = read_prompts(rows, limit=limit)
    assert limit - 10 <= len(prompts.instances) <= limit
    assert [one.instance for one in prompts.instances] == list(range(len(prompts.instances)))
    assert prompts.warnings == (f"{len(prompts.instances)} of 8800 prompts are read: the limit is {limit}",)
    of_task = Counter(one.task for one in prompts.instances)
    smallest_task = 55 * 10 * 4
    assert min(of_task.values()) >= min(limit // 3, smallest_task) - 10
    assert all(len({one.instruction for one in prompts.instances if one.task == task}) > 1 for task in of_task)
    of_instruction = set(Counter(one.instruction for one in prompts.instances).values())
    assert of_instruction == ({10} if limit > 60 else {limit // 6}), "whole instructions, where two fit into a share"
    order = {pair: place for place, pair in enumerate((row["instruction"], row["input"]) for row in rows)}
    read = [(one.instruction, one.input) for one in prompts.instances]
    assert read == sorted(read, key=order.__getitem__)
    random.Random(limit).shuffle(rows)
    assert content(read_prompts(rows, limit=limit)) == content(prompts)


def test_a_limit_keeps_the_shares_of_splits_and_distributions_and_the_same_inputs() -> None:
    half = read_prompts(some_rows(instructions=40, inputs=3), limit=3 * 20 * 3)
    of_split = Counter((one.task, one.split) for one in half.instances)
    assert of_split == {
        (task, split): 15 * (1 + (split == "test")) for task in TASKS for split in ("train", "validation", "test")
    }
    cut = read_prompts(some_rows(instructions=40, inputs=30), limit=3 * 20 * 2).instances
    assert len(cut) == 120
    assert set(Counter(one.input for one in cut).values()) == {6}, "the same inputs under two instructions a task"


def test_a_limit_keeps_chats_beside_their_instances_and_a_large_one_changes_nothing() -> None:
    rows = [{"messages": [{"role": "user", "content": row["text"]}], "task": row["task"]} for row in texts(9)]
    few = read_prompts(rows, limit=10)
    assert few.messages is not None
    assert [chat[0]["content"] for chat in few.messages if chat] == [one.instruction for one in few.instances]
    assert read_prompts(rows, limit=27) == read_prompts(rows)


# --- refusals -----------------------------------------------------------------------------------------------------


def write_text(name: str, text: str | bytes) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        file = folder / name
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        return file

    return write


def damaged_folder(damage: Callable[[Path], object]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        made = write_datasets_folder(folder / "my", pl.DataFrame(texts()))
        damage(made)
        return made

    return write


def cut(file: Path) -> int:
    return file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


GOOD = '{"text": "a", "task": "x"}\n'
PAIR = {"instruction": "a", "input": "b"}
REFUSALS: dict[str, tuple[Callable[[Path], Any] | list[Any], Mapping[str, str], tuple[str, ...]]] = {
    "no file": (lambda f: f / "no.jsonl", {}, ("no.jsonl does not exist", "natural-shared")),
    "misspelt group": (lambda _: "natrual", {}, ("natrual does not exist", "natural")),
    "unknown extension": (
        write_text("my.json", "[]"),
        {},
        ("unknown extension '.json'", ".jsonl, .csv, .tsv or .parquet"),
    ),
    "empty JSONL": (write_text("my.jsonl", "\n"), {}, ("my.jsonl has no rows",)),
    "empty CSV": (write_text("my.csv", ""), {}, ("my.csv has no rows",)),
    "CSV of a header": (write_text("my.csv", "text,task\n"), {}, ("my.csv has no rows",)),
    "empty list": ([], {}, ("the list of prompts has no rows",)),
    "Latin-1": (
        write_text("my.jsonl", GOOD.encode() + '{"text": "é"}'.encode("latin-1")),
        {},
        ("my.jsonl, line 2: byte 0xe9 is no UTF-8", "save the file as UTF-8"),
    ),
    "UTF-16": (write_text("my.csv", "text,task".encode("utf-16")), {}, ("my.csv, line 1: byte 0xff",)),
    "cut line": (
        write_text("my.jsonl", GOOD + '\n{"text": "b", "ta'),
        {},
        ("my.jsonl, line 3: no whole JSON (Unterminated string starting at, column 15)",),
    ),
    "JSON of another kind": (write_text("my.jsonl", GOOD + "[1]\n"), {}, ("my.jsonl, line 2: no object",)),
    "list of texts": (["a", "b"], {}, ("the list of prompts, row 0: no object with named columns",)),
    "a dict": (lambda _: {"text": ["a"]}, {}, ("a dict is no table of prompts",)),
    "ragged CSV": (
        write_text("my.csv", 'text,task\n"a\nb",x\na, b,x\n'),
        {},
        ("my.csv, line 4: 3 cells under 2 columns", "double quotes"),
    ),
    "open quote in a CSV": (write_text("my.csv", 'text,task\na,x\n"b,y\n'), {}, ("my.csv, line 3: no valid CSV",)),
    "column twice": (write_text("my.csv", "text,text\na,x\n"), {}, ("my.csv, line 1: two columns have the same name",)),
    "cut Parquet": (write_text("my.parquet", b"PAR1"), {}, ("my.parquet is no whole Parquet file",)),
    "folder of nothing": (lambda f: f, {}, ("holds no data that can be read", "save_to_disk")),
    "cut Arrow": (
        damaged_folder(lambda f: cut(f / "data-00001-of-00002.arrow")),
        {},
        ("data-00001-of-00002.arrow is no whole Arrow file",),
    ),
    "lost Arrow": (
        damaged_folder(lambda f: (f / "data-00000-of-00002.arrow").unlink()),
        {},
        ("data-00000-of-00002.arrow cannot be read (No such file",),
    ),
    "cut description": (
        damaged_folder(lambda f: cut(f / "state.json")),
        {},
        (
            "state.json is damaged",
            "save the dataset again",
        ),
    ),
    "split of a datasets folder": (
        damaged_folder(lambda f: (f / "dataset_dict.json").write_text('{"splits": ["train_sft"]}')),
        {},
        ("has the split 'train_sft'", "name "),
    ),
    "no task": (
        [row | {"taks": row.pop("task")} for row in texts()],
        {},
        ("column 'task' is missing; did you mean 'taks'?; there are: 'text' (text), 'taks'", "try --columns task=taks"),
    ),
    "no task and nothing near": (
        [{"text": "a", "label": "x"}],
        {},
        ("column 'task' is missing; there are: 'text', 'label'; name it with --columns task=…",),
    ),
    "no name of ours": (
        [{"id": n, "frase": f"say {n} words", "Klasse": "ab"[n % 2]} for n in range(9)],
        {},
        (
            "column 'prompt' is missing; there are: 'id', 'frase' (text), 'Klasse' (labels: 2 values in 9 rows); ",
            "; try --columns task=Klasse,prompt=frase",
        ),
    ),
    "no text": ([{"promt": "a", "task": "x"}], {}, ("column 'prompt' is missing; did you mean 'promt'?",)),
    "no input": (
        [{"instruction": "a", "task": "x", "ipnut": "b"}],
        {},
        ("column 'input' is missing; did you mean 'ipnut'?", "--columns prompt=instruction"),
    ),
    "text and instruction": (
        [PAIR | {"text": "a b", "task": "x"}],
        {},
        ("prompts twice, in 'instruction' and 'text'; name the one to read, as in --columns text=text",),
    ),
    "two named forms": (texts(), {"text": "text", "prompt": "text"}, ("prompts twice, in 'text' and 'text'",)),
    "unknown name": (
        texts(),
        {"lable": "task"},
        ("there is no 'lable' to name", "there are: distribution, format, input"),
    ),
    "unknown column": (texts(), {"task": "txet"}, ("has no column 'txet'; did you mean 'text'?",)),
    "list in a cell": (changed(texts(), 2, task=["a"]), {}, ("row 2, column 'task' holds a list, not text",)),
    "chat of text": (
        [{"messages": "hello", "task": "x"}],
        {},
        ("row 0: messages are no whole JSON list",),
    ),
    "chat of another shape": (
        [{"messages": [{"from": "human", "value": "a"}], "task": "x"}],
        {},
        ("row 0: messages must be a list of {role: …, content: text}",),
    ),
    "chat with pictures": (
        [{"messages": [{"role": "user", "content": [{"type": "image"}]}], "task": "x"}],
        {},
        ("row 0: messages must be a list",),
    ),
    "unknown split": (changed(some_rows(), 4, split="tset"), {}, ("row 4: split 'tset'", "did you mean 'test'")),
    "nothing remains": (
        [{"text": f"a {number}", "task": None} for number in range(3)],
        {},
        ("row 0: task is empty, and so on: no prompt remains of 3",),
    ),
    "one task": (
        [{"text": f"a {number}", "task": "x"} for number in range(9)],
        {},
        ("every prompt has the task 'x'; give prompts of at least two tasks",),
    ),
    "more tasks than prompts": (
        [{"text": f"a {number}", "task": "x", "id": number // 2 * 2 if number else 9} for number in range(8)],
        {"task": "id"},
        ("8 prompts for the 5 tasks of column 'id'", "--columns task="),
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_what_cannot_be_read_is_refused_in_one_line_with_its_place_and_a_remedy(name: str, tmp_path: Path) -> None:
    make, columns, fragments = REFUSALS[name]
    source = make(tmp_path) if callable(make) else make
    with pytest.raises(Refused) as refusal:
        read_prompts(source, columns=columns)
    message = str(refusal.value)
    assert "\n" not in message
    assert ";" in message, "a remedy follows"
    for fragment in fragments:
        assert fragment in message, message


def advice(source: Any, **columns: str) -> str:
    with pytest.raises(Refused) as refusal:
        read_prompts(source, columns=columns)
    return str(refusal.value)


def test_what_a_refusal_of_columns_advises_is_read_when_it_is_followed() -> None:
    """Strange names throughout; each table is mended by what it is told, and read as it is meant."""
    names = {"text": "Äußerung", "task": "intención"}
    plain = [
        {"nr": n, "lang": "en", "split": "train"} | {names[k]: v for k, v in row.items()}
        for n, row in enumerate(texts())
    ]
    shared = [{"what": row["instruction"], "word": row["input"], "kind": row["task"]} for row in some_rows(6, 5)]
    talks = [{"talk": [{"role": "user", "content": row["text"]}], "kind": row["task"]} for row in texts()]
    unbroken = [{"文": f"请把这笔钱退还给我因为我被收取了两次费用{n}", "类": "ab"[n % 2]} for n in range(8)]
    for rows, followed in (
        (plain, "task=intención,prompt=Äußerung"),
        (shared, "task=kind,instruction=what,input=word"),
        ([row | {"talk": json.dumps(row["talk"])} for row in talks], "task=kind,messages=talk"),
        (talks, "task=kind,messages=talk"),
        (unbroken, "task=类,prompt=文"),
    ):
        said = advice(rows)
        assert said.endswith(f"; try --columns {followed}"), said
        columns = dict(part.split("=") for part in followed.split(","))
        assert len(read_prompts(rows, columns=columns).instances) == len(rows)
    numbered = [{"nr": str(n), "key": f"{n:032x}"} | row for n, row in enumerate(shared)]
    assert advice(numbered).endswith("; try --columns task=kind,instruction=what,input=word")
    keyed = [{"key": f"{n:032x}"} | row for n, row in enumerate(plain)]
    assert advice(keyed).endswith("; try --columns task=intención,prompt=Äußerung")
    said = advice(shared, instruction="what", task="knid")
    assert "has no column 'knid'; did you mean 'kind'?; there are: 'what' (text), 'word'" in said
    assert said.endswith("; try --columns task=kind,instruction=what,input=word")
    assert advice(shared, instruction="what", task="kind").endswith(
        "; try --columns task=kind,instruction=what,input=word, or read the instruction alone with "
        "--columns prompt=what"
    )
    assert "try" not in advice([{"a": 1, "b": 2}, {"a": 3, "b": 4}]), "nothing looks like a prompt"
    listed = [{"instruction": ["a", "b"], "word": f"w{n}", "kind": "ab"[n % 2]} for n in range(8)]
    assert "there are: 'instruction', 'word', 'kind' (labels: 2 values in 8 rows)" in advice(listed)


def test_a_refusal_of_columns_names_so_many_and_those_that_look_like_something() -> None:
    rows = [{f"c{n}": None for n in range(90)} | {"ask": row["text"], "kind": row["task"]} for row in texts()]
    said = advice(rows)
    assert "there are: 'ask' (text), 'kind' (labels: 3 values in 12 rows), 'c0', " in said
    assert "'c9' and 80 more; try --columns task=kind,prompt=ask" in said


def test_numbers_and_splits_are_not_taken_for_what_they_are_not() -> None:
    """Scores are no text, an identifier no label, and a split no task."""
    rows = [
        {"id": n, "score": n / 7, "part": ("train", "test")[n % 2], "said": row["text"], "topic": row["task"]}
        for n, row in enumerate(texts())
    ]
    said = advice(rows)
    assert "'id', 'score', 'part' (labels: 2 values in 12 rows), 'said' (text), 'topic' (labels" in said
    assert said.endswith("try --columns task=topic,prompt=said")


@pytest.mark.parametrize("limit", [-1, 0, 5])
def test_a_limit_below_two_prompts_a_task_is_refused(limit: int) -> None:
    with pytest.raises(Refused, match=f"limit {limit} is too small for the 3 tasks of .*; give at least 6"):
        read_prompts(texts(), limit=limit)


def test_a_long_cell_of_a_csv_is_no_unclosed_quote(tmp_path: Path) -> None:
    long = "word " * 60_000
    rows = [{"text": long, "task": "x"}, *({"text": f"t{n}", "task": "xy"[n % 2]} for n in range(9))]
    prompts = read_prompts(write_csv(tmp_path / "my.csv", rows))
    assert prompts.instances[0].instruction == long


@pytest.mark.parametrize("name", [0, None])
def test_a_column_without_a_name_is_refused(name: object) -> None:
    with pytest.raises(Refused, match=f"a column is called {name}, which is no text"):
        read_prompts([{"text": "a", "task": "x", name: "b"}, {"text": "c", "task": "y", name: "d"}])
