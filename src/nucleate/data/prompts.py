"""A user's labelled prompts: a file, a table or a list in, checked instances out.

What cannot be read is refused in one line; a row that lacks something is left out and counted, never filled in.
Rows of a text file are named by their line (the header of a CSV is line 1), all others by their row, counted from 0.
"""

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from nucleate.data.columns import FORMS, OPTIONAL, choose_columns
from nucleate.data.dataset import SPLITS, Dataset, Instance
from nucleate.data.sources import NamedColumns, Source, as_text, frame_table, open_source
from nucleate.refusal import Refused, nearest

_HALF_A_CHARACTER = re.compile("[\ud800-\udfff]")  # what a JSON text cut inside an emoji leaves
Chat = tuple[Mapping[str, str], ...]


@dataclass(frozen=True)
class Prompts:
    """Labelled prompts, ready to be read. What the data do not tell is None, but `split`, which is then `test`."""

    instances: tuple[Instance, ...]  # `instance` counts from 0 in the order of the kept rows
    messages: tuple[Chat | None, ...] | None  # (instance,) the chat, up to the assistant's turn; None without chats
    formats: (
        tuple[str, ...] | None
    )  # (instance,) which way to ask it is; None where some row does not tell, or all are one
    has_inputs: bool  # False: the whole prompt is the instruction, and the input is empty
    places: tuple[int, ...]  # (instance,) line of a text file (`unit` says which), or row of a table
    unit: str
    dropped: tuple[tuple[int, str], ...]  # (line or row, why)
    warnings: tuple[str, ...]
    name: str

    @cached_property
    def dataset(self) -> Dataset:
        """The same instances, of which nothing else is known."""
        return Dataset(self.instances, settings={}, vocabulary={}, patterns={}, mappings={})


def read_prompts(
    source: Source,
    *,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> Prompts:
    """Reads prompts with their labels. `columns` are {our name: their name}; what is named there decides.

    Of `messages` that end with the assistant's turn, that turn is the output and no part of the prompt. `limit` keeps
    at most so many prompts, spread evenly over the tasks, whole instructions together: the same ones in any order of
    the rows. A distribution's name found under several tasks becomes `task/distribution`.
    """
    name, opened = open_source(source)
    table = frame_table(opened.frame(), name) if isinstance(opened, Dataset) else opened
    if not table.places:
        raise Refused(f"{table.title} has no rows; give it labelled prompts")
    names = choose_columns(table, columns or {})
    kept, chats, ways, dropped = _read_rows(table, names)
    tasks = _check_tasks(kept, table, names["task"], dropped)
    warnings = list(_warnings(kept, table, dropped))
    answered = sum(one.output is not None for one in kept)
    if answered and "messages" in names and "output" not in names:
        warnings.append(f"the assistant's last turn in {answered} chats is taken as the output, not read as the prompt")
    kept, shared = _own_distributions(kept)
    if shared:
        warnings.append(f"distributions under several tasks were renamed to task/distribution: {_some(shared)}")
    if limit is not None and limit < 2 * tasks:
        raise Refused(f"limit {limit} is too small for the {tasks} tasks of {table.title}; give at least {2 * tasks}")
    if limit is not None and limit < len(kept):
        everything, kept = len(kept), _spread(kept, limit)
        warnings.append(f"{len(kept)} of {everything} prompts are read: the limit is {limit}")
    formats = tuple(way for one in kept if (way := ways[one.instance]) is not None)
    told = len(formats) == len(kept) and len(set(formats)) > 1
    if "format" in names and not told:
        lack = "all are one" if len(formats) == len(kept) else f"{len(kept) - len(formats)} prompts have none"
        warnings.append(f"no neighbours of another format are sought: {lack} (column {names['format']!r})")
    return Prompts(
        instances=_number(kept, opened if isinstance(opened, Dataset) else None),
        messages=tuple(chats[one.instance] for one in kept) if "messages" in names else None,
        formats=formats if told else None,
        has_inputs="instruction" in names,
        places=tuple(one.instance for one in kept),
        unit=table.unit,
        dropped=tuple(dropped),
        warnings=tuple(warnings),
        name=name,
    )


# --- rows ---------------------------------------------------------------------------------------------------------


def _read_rows(
    table: NamedColumns, names: Mapping[str, str]
) -> tuple[list[Instance], dict[int, Chat], dict[int, str | None], list[tuple[int, str]]]:
    """The whole rows (for now `instance` is the row's place), chats and formats by place, and the rows left out."""
    kept: list[Instance] = []
    chats: dict[int, Chat] = {}
    formats: dict[int, str | None] = {}
    dropped: list[tuple[int, str]] = []
    values = [table.cells(column) for column in names.values()]
    for place, *cells in zip(table.places, *values, strict=True):
        row = dict(zip(names, cells, strict=True))
        answer = None
        if "messages" in row:
            chats[place], answer = _read_chat(row["messages"], table.at(place))
            row["messages"] = "\n".join(turn["content"] for turn in chats[place])
        texts = {
            column: as_text(value, f"{table.at(place)}, column {names[column]!r}") for column, value in row.items()
        }
        texts["output"] = texts.get("output") or answer
        why = next(filter(None, (_lack(column, text) for column, text in texts.items())), None)
        if why:
            dropped.append((place, why))
        else:
            kept.append(_as_instance(place, texts, table))
            formats[place] = texts.get("format")
    return kept, chats, formats, dropped


def _as_instance(place: int, texts: Mapping[str, str | None], table: NamedColumns) -> Instance:
    split = texts.get("split") or "test"
    if split not in SPLITS:
        raise Refused(f"{table.at(place)}: split {split!r} does not exist{nearest(split, SPLITS)}; rename it")
    return Instance(
        instance=place,
        split=split,
        in_subset=False,
        instruction=next(text for form in FORMS if (text := texts.get(form))),
        input=texts.get("input") or "",
        output=texts.get("output"),
        task=texts["task"] or "",
        distribution=texts.get("distribution"),
        mapping=texts.get("mapping"),
        is_hard=False,
        origin=None,
    )


def _lack(column: str, text: str | None) -> str | None:
    """Why a row cannot be used because of this cell."""
    if text is None:
        return None if column in OPTIONAL else f"{column} is empty"
    return f"{column} holds half a character" if _HALF_A_CHARACTER.search(text) else None


def _read_chat(value: Any, where: str) -> tuple[Chat, str | None]:
    """The turns to read, and the assistant's last turn, which is the answer. An empty chat stands for a missing one."""
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, str) and value.strip():
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            raise Refused(f"{where}: messages are no whole JSON list; mend the row, or delete it") from None
    turns = [] if value is None or isinstance(value, str) else value
    if not isinstance(turns, list | tuple) or not all(_is_turn(turn) for turn in turns):
        raise Refused(f"{where}: messages must be a list of {{role: …, content: text}}; write them so, or drop the row")
    chat = [{"role": turn["role"], "content": turn["content"] or ""} for turn in turns]
    answer = None
    if chat and chat[-1]["role"] == "assistant":
        answer = chat.pop()["content"]
    readable = chat and chat[-1]["content"].strip()
    return tuple(chat) if readable else (), answer or None


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, Mapping)
        and isinstance(turn.get("role"), str)
        and isinstance(turn.get("content", 0), str | None)
    )


# --- labels -------------------------------------------------------------------------------------------------------


def _check_tasks(kept: Sequence[Instance], table: NamedColumns, column: str, dropped: Sequence[tuple[int, str]]) -> int:
    """How many tasks there are; refused where they leave nothing to separate."""
    tasks = {one.task for one in kept}
    if not kept:
        place, why = dropped[0]
        raise Refused(
            f"{table.at(place)}: {why}, and so on: no prompt remains of {len(dropped)}; fill the cells, or name "
            "other columns with --columns"
        )
    if len(tasks) == 1:
        raise Refused(f"{table.title}: every prompt has the task {kept[0].task!r}; give prompts of at least two tasks")
    if len(kept) < 2 * len(tasks):
        raise Refused(
            f"{table.title}: {len(kept)} prompts for the {len(tasks)} tasks of column {column!r}, and two each are the "
            "least; give more, or name the column of the labels with --columns task=…"
        )
    return len(tasks)


def _warnings(kept: Sequence[Instance], table: NamedColumns, dropped: Sequence[tuple[int, str]]) -> Iterable[str]:
    """What a user should look at before believing a number."""
    if dropped:
        places: dict[str, list[int]] = defaultdict(list)
        for place, why in dropped:
            places[why].append(place)
        reasons = (f"{why} ({table.unit} {_some(map(str, where), 5)})" for why, where in places.items())
        yield f"{len(dropped)} of {len(table.places)} prompts were left out: {'; '.join(reasons)}"
    alike, instructions = defaultdict(set), defaultdict(set)
    tasks: dict[tuple[str, str], set[str]] = defaultdict(set)
    for one in kept:
        alike[" ".join(one.task.split()).casefold()].add(one.task)
        instructions[one.task].add(one.instruction)
        tasks[one.instruction, one.input].add(one.task)
    for labels in alike.values():
        if len(labels) > 1:
            yield f"tasks {_some(map(repr, sorted(labels)))} differ only by case or blanks; they count as different"
    lonely = sorted(repr(task) for task, own in instructions.items() if len(own) == 1)
    if lonely:
        yield (
            f"{len(lonely)} of {len(instructions)} tasks have one instruction only, and neighbours are sought among "
            f"other instructions: {_some(lonely)}"
        )
    contradicted = sum(len(labels) > 1 for labels in tasks.values())
    if contradicted:
        yield f"{contradicted} prompts appear under more than one task"


def _some(names: Iterable[str], most: int = 3) -> str:
    listed = list(names)
    return ", ".join(listed[:most]) + (f" and {len(listed) - most} more" if len(listed) > most else "")


def _own_distributions(kept: list[Instance]) -> tuple[list[Instance], list[str]]:
    """Every distribution under one task only, and the names for which that took a new one."""
    owners: dict[str, set[str]] = defaultdict(set)
    for one in kept:
        if one.distribution is not None:
            owners[one.distribution].add(one.task)
    shared = sorted(name for name, tasks in owners.items() if len(tasks) > 1)
    taken, renamed = set(owners), {}
    for name in shared:
        for task in sorted(owners[name]):
            own = f"{task}/{name}"
            while own in taken:
                own += "'"
            taken.add(own)
            renamed[task, name] = own
    own_names = (renamed.get((one.task, one.distribution or ""), one.distribution) for one in kept)
    return [replace(one, distribution=name) for one, name in zip(kept, own_names, strict=True)], shared


def _spread(kept: Sequence[Instance], limit: int) -> list[Instance]:
    """At most `limit` instances in their old order: whole instructions, dealt to the task that has the fewest.

    Splits and distributions keep their shares of a task. Of an instruction larger than half of its task's even share
    only so many inputs stay, those of the smallest hashes and so the same everywhere: a task needs two instructions.
    """
    tasks: dict[str, dict[str, list[Instance]]] = defaultdict(lambda: defaultdict(list))
    for one in kept:
        tasks[one.task][one.instruction].append(one)
    queues: dict[str, list[list[Instance]]] = {}
    for task, instructions in sorted(tasks.items()):
        most = limit // len(tasks) // min(2, len(instructions))
        for own in instructions.values():
            own.sort(key=lambda one: (_hash(one.input), one.instance))
        strata = Counter((own[0].split, own[0].distribution) for own in instructions.values())
        passed: Counter[tuple[str, str | None]] = Counter()
        queue = []
        for instruction in sorted(instructions, key=_hash):
            own = instructions[instruction]
            stratum = own[0].split, own[0].distribution
            passed[stratum] += 1
            queue.append((passed[stratum] / strata[stratum], own[:most]))
        queues[task] = [own for _, own in sorted(queue, key=lambda pair: pair[0])][::-1]  # taken from its end
    chosen: list[Instance] = []
    counts = dict.fromkeys(queues, 0)
    while queues and len(chosen) < limit:
        task = min(queues, key=counts.__getitem__)
        own = queues[task].pop()
        if len(chosen) + len(own) <= limit:
            chosen += own
            counts[task] += len(own)
        if not queues[task]:
            del queues[task]
    return sorted(chosen, key=lambda one: one.instance)


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _number(kept: Sequence[Instance], dataset: Dataset | None) -> tuple[Instance, ...]:
    """Instances counted from 0. Of our own data the subset and the hard ones are known too; a hard one whose original
    was left out has no `origin`."""
    numbered = [replace(one, instance=number) for number, one in enumerate(kept)]
    if dataset is None:
        return tuple(numbered)
    originals = [dataset.instances[one.instance] for one in kept]
    number_of = {one.instance: number for number, one in enumerate(originals)}
    return tuple(
        replace(
            one,
            in_subset=original.in_subset,
            is_hard=original.is_hard,
            origin=None if original.origin is None else number_of.get(original.origin),
        )
        for one, original in zip(numbered, originals, strict=True)
    )
