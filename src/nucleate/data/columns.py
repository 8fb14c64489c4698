"""Which column of a user's table is the prompt and which the label; where none fits, what there is instead.

Nothing is ever guessed: a table whose columns do not say what they are is refused, with the options that would
probably mend it.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from nucleate.data.dataset import SPLITS
from nucleate.data.sources import NamedColumns, as_text
from nucleate.refusal import Refused, nearest

FORMS = ("instruction", "prompt", "text", "messages")  # which column holds the prompt; only `instruction` has inputs
OPTIONAL = ("output", "distribution", "mapping", "format")  # what a row may lack
NAMES = (*FORMS, "input", "task", *OPTIONAL, "split")

_SEEN = 20_000  # rows that are looked at, spread over the table
_LISTED = 12  # columns that a refusal names
_WORDS_OF_A_LABEL = 4  # at most, in the mean
_LETTERS_OF_A_TEXT = 20  # at least, in the mean, where it is written without blanks
_TEXTS = ("prompt", "text", "utterance", "question", "query", "sentence", "content", "message", "instruction")
_LABELS = ("task", "label", "intent", "category", "class", "topic", "target")


def choose_columns(table: NamedColumns, columns: Mapping[str, str]) -> dict[str, str]:
    """{our name: theirs} of the columns to read. A column asked for under another name is not read under its own."""
    for ours, theirs in columns.items():
        if ours not in NAMES:
            raise Refused(f"--columns {ours}={theirs}: there is no {ours!r} to name{nearest(ours, NAMES)}")
        if theirs not in table.columns:
            close = get_close_matches(theirs, table.columns, n=1)
            meant = {ours: close[0]} if close else {}
            known = _found(table, {one: name for one, name in columns.items() if name in table.columns})
            raise Refused(
                f"{table.title} has no column {theirs!r}; {there_are(table, theirs)}{_mended(table, known | meant)}"
            )
    found = _found(table, columns)
    forms = [form for form in FORMS if form in columns] or [form for form in FORMS if form in found]
    if len(forms) > 1:
        raise Refused(
            f"{table.title} has its prompts twice, in {' and '.join(repr(found[one]) for one in forms)}; "
            f"name the one to read, as in --columns {forms[-1]}={found[forms[-1]]}"
        )
    needed = _needed(forms[0]) if forms else ()
    if not needed or any(one not in found for one in needed):
        raise Refused(f"{table.title}: {_what_is_missing(table, found, columns, *forms)}")
    optional = [one for one in (*OPTIONAL, "split") if one in found]
    return {one: found[one] for one in (*needed, *optional)}


def _found(table: NamedColumns, columns: Mapping[str, str]) -> dict[str, str]:
    """Those that were named, and those that have our names."""
    return {one: one for one in NAMES if one in table.columns and one not in columns.values()} | dict(columns)


def _needed(form: str) -> tuple[str, ...]:
    return (form, "input", "task") if form == "instruction" else (form, "task")


def _what_is_missing(table: NamedColumns, found: Mapping[str, str], columns: Mapping[str, str], form: str = "") -> str:
    """The first column that is needed and not there, what there is, and what would probably mend it."""
    near = _near(table, found)
    form = form or next((one for one in FORMS if one in near), "prompt")
    needed = _needed(form)
    missing = next(one for one in needed if one not in found)
    known = dict(columns) | {one: {**near, **found}[one] for one in needed if one in near or one in found}
    remedy = _mended(table, known, form) or f"; name it with --columns {missing}=…"
    alone = f", or read the instruction alone with --columns prompt={found[form]}" if missing == "input" else ""
    close = [near[missing]] if missing in near else []
    return f"column {missing!r} is missing{_meant(close)}; {there_are(table)}{remedy}{alone}"


def _near(table: NamedColumns, found: Mapping[str, str]) -> dict[str, str]:
    """{our name: theirs} of columns whose name is nearly ours, unless they look like something else."""
    looks = {one.name: one.kind for one in _look_at(table) if one.name not in found.values()}
    near = {}
    for ours in NAMES:
        unlike = {"task": ("text", "chats"), "messages": ("text", "labels"), "input": ("chats",)}.get(ours, ("labels",))
        fitting = [name for name, kind in looks.items() if kind not in unlike]
        if ours not in found and (close := get_close_matches(ours, fitting, n=1)):
            near[ours] = close[0]
    return near


def there_are(table: NamedColumns, missing: str = "") -> str:
    """The columns of a table and what they look like, in words; first the one whose name is nearly that of the
    `missing` one."""
    looks = _look_at(table)
    first = sorted(looks, key=lambda one: not one.kind) if len(looks) > _LISTED else looks
    more = f" and {len(looks) - _LISTED} more" if len(looks) > _LISTED else ""
    meant = _meant(get_close_matches(missing, table.columns, n=1)).removeprefix("; ")
    return f"{meant}{meant and '; '}there are: {', '.join(map(str, first[:_LISTED]))}{more}"


# --- what a column looks like -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Look:
    """What a column looks like, from its values."""

    name: str
    kind: str  # text, labels, chats, or nothing that could be read
    texts: tuple[str | None, ...]
    distinct: int
    is_split: bool = False

    @property
    def filled(self) -> int:
        return sum(text is not None for text in self.texts)

    @property
    def has_blanks(self) -> bool:
        return any(text is not None and " " in text for text in self.texts)

    @property
    def has_letters(self) -> bool:
        return any(text is not None and any(map(str.isalpha, text)) for text in self.texts)

    def __str__(self) -> str:
        if self.kind == "labels":
            return f"{self.name!r} (labels: {self.distinct} values in {self.filled} rows)"
        return f"{self.name!r}" + (f" ({self.kind})" if self.kind else "")


def _look_at(table: NamedColumns) -> list[_Look]:
    step = -(-len(table.places) // _SEEN) or 1
    return [_look(name, table.cells(name)[::step]) for name in table.columns]


def _look(name: str, cells: Sequence[Any]) -> _Look:
    if _is_chat(next((cell for cell in cells if cell is not None), None)):
        return _Look(name, "chats", (), 0)
    try:
        texts = tuple(as_text(cell, name) for cell in cells)
    except Refused:
        return _Look(name, "", (), 0)
    filled = [text for text in texts if text is not None]
    values = set(filled)
    words = sum(len(text.split()) for text in filled) / max(1, len(filled))
    letters = sum(map(len, filled)) / max(1, len(filled))
    is_text = any(isinstance(cell, str) for cell in cells)
    few = 2 <= len(values) <= len(filled) / 2
    if few and words <= _WORDS_OF_A_LABEL:
        kind = "labels"
    else:
        kind = "text" if is_text and len(values) > 1 and (words >= 2 or letters >= _LETTERS_OF_A_TEXT) else ""
    return _Look(name, kind, texts, len(values), bool(values) and values <= {*SPLITS, "dev", "valid", "val"})


def _is_chat(cell: Any) -> bool:
    if isinstance(cell, str) and cell.lstrip().startswith("[{"):
        try:
            cell = json.loads(cell)
        except (ValueError, RecursionError):
            return False
    return isinstance(cell, list) and bool(cell) and isinstance(cell[0], Mapping) and "role" in cell[0]


# --- what would probably mend it --------------------------------------------------------------------------------------


def _mended(table: NamedColumns, known: Mapping[str, str], form: str = "") -> str:
    """The option that would probably do, from what is `known` already; nothing where no column looks like what is
    missing."""
    looks, chosen = {one.name: one for one in _look_at(table)}, dict(known)

    def left(kind: str) -> list[_Look]:
        return [one for one in looks.values() if one.kind == kind and one.name not in chosen.values()]

    if "task" not in chosen:
        labels = [one for one in left("labels") if not one.is_split]
        if not labels:
            return ""
        chosen["task"] = min(labels, key=lambda one: (not _named_like(one, _LABELS), one.distinct)).name
    form = next((one for one in FORMS if one in chosen), form)
    prompts = [looks[chosen[form]]] if form in chosen else left("chats") or left("text")
    if not prompts:
        return ""
    prompt = min(prompts, key=lambda one: (not _named_like(one, _TEXTS), not one.has_blanks, -one.distinct))
    others = [one for one in looks.values() if one.name not in (*chosen.values(), prompt.name)]
    if form not in chosen or (form == "instruction" and "input" not in chosen):
        chosen |= _as_prompt(prompt, others) if form not in chosen else {"input": _input_of(prompt, others)}
    named = [f"{one}={chosen[one]}" for one in ("task", *FORMS, "input", *NAMES) if chosen.get(one, one) != one]
    return f"; try --columns {','.join(dict.fromkeys(named))}" if named and all(chosen.values()) else ""


def _as_prompt(look: _Look, others: Iterable[_Look]) -> dict[str, str]:
    """A text that comes again and again is an instruction, where another column tells its rows apart."""
    if look.kind == "chats":
        return {"messages": look.name}
    given = _input_of(look, others) if look.distinct <= look.filled / 2 else ""
    return {"instruction": look.name, "input": given} if given else {"prompt": look.name}


def _input_of(instruction: _Look, others: Iterable[_Look]) -> str:
    """The column of fewest values that tells the rows of an instruction apart; nothing where there is none."""
    apart = [
        one
        for one in others
        if instruction.texts and one.has_letters
        if len(set(zip(instruction.texts, one.texts, strict=True))) > 0.9 * instruction.filled
    ]
    return min(apart, key=lambda one: one.distinct).name if apart else ""


def _named_like(look: _Look, names: Sequence[str]) -> bool:
    return any(name in look.name.casefold() for name in names)


def _meant(close: Sequence[str]) -> str:
    return f"; did you mean {close[0]!r}?" if close else ""
