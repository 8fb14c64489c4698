"""Markdown that shows any text as it is: tables, names that come from data, commands."""

import unicodedata
from collections.abc import Iterable, Sequence


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    return [_row(header), _row(["---"] * len(header)), *(_row(row) for row in rows), ""]


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


_SPECIAL = frozenset("\\`*_[]|#~$!")
_ENTITIES = {"&": "&amp;", "<": "&lt;", ">": "&gt;"}


def escaped(text: object) -> str:
    """Text that Markdown shows as it is: one line, no markup, no HTML, no control characters."""
    return "".join(_ENTITIES.get(sign, f"\\{sign}" if sign in _SPECIAL else sign) for sign in one_line(text))


def one_line(text: object) -> str:
    """Blanks for line breaks and tabs; other control and format characters (such as reversed writing) go."""
    signs = (" " if sign.isspace() else sign for sign in str(text))
    return "".join(sign for sign in signs if unicodedata.category(sign)[0] != "C")


def code_block(text: str) -> list[str]:
    """A block whose fence is longer than any run of backticks inside."""
    line, fence = one_line(text), "```"
    while fence in line:
        fence += "`"
    return [f"{fence}sh", line, fence]
