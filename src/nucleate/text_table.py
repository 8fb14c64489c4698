"""A table as plain text: the one printer for whatever a terminal or `print` shows in columns.

Numbers stand to the right and what is too long goes on below, in its own column; there is no markup and no colour, so
the same rows give the same text everywhere.
"""

import io
from collections.abc import Iterable, Sequence

WIDTH = 120  # columns of a page that is no terminal
_GAP = 2  # columns between two others
_LONGEST_WORD = 32  # signs; a longer one may be broken


def text_table(
    header: Sequence[str], rows: Iterable[Sequence[object]], *, title: str | None = None, width: int = WIDTH
) -> str:
    """Lines of at most `width` columns, without an end of line after the last.

    A float has three decimals, None is left blank, anything else is shown as it is.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    listed = [[_cell(value) for value in row] for row in rows]
    numbers = [place > 0 and all(_is_number(row[place]) for row in listed) for place in range(len(header))]
    widths = _widths([[name, *(row[place] for row in listed)] for place, name in enumerate(header)], numbers, width)
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False)
    for name, is_number, own in zip(header, numbers, widths, strict=True):
        table.add_column(Text(name), justify="right" if is_number else "left", width=own, overflow="fold")
    for row in listed:
        table.add_row(*map(Text, row))
    page = Console(file=io.StringIO(), width=sum(widths) + _GAP * len(widths), color_system=None, force_terminal=False)
    with page.capture() as captured:
        page.print(table)
    lines = [line.rstrip() for line in captured.get().splitlines()]
    return "\n".join([*([title] if title else []), *lines])


def _widths(columns: Sequence[Sequence[str]], numbers: Sequence[bool], width: int) -> list[int]:
    """Of each column, its header first among its cells. Where all do not fit, the widest gives way first, but no number
    is broken and no word: rather than that the lines are too long."""
    widths = [max(map(len, column)) for column in columns]
    least = [
        max(len(word) for cell in (column[:1] if number else column) for word in (cell.split() or [""]))
        for column, number in zip(columns, numbers, strict=True)
    ]
    least = [
        max([smallest, *map(len, column[1:])]) if number else min(smallest, _LONGEST_WORD)
        for column, number, smallest in zip(columns, numbers, least, strict=True)
    ]
    for _ in range(sum(widths) + _GAP * (len(widths) - 1) - width):
        widest = max(range(len(widths)), key=lambda place: (widths[place] > least[place], widths[place]))
        widths[widest] -= widths[widest] > least[widest]
    return widths


def _cell(value: object) -> str:
    """One line of signs that a terminal shows as they are and takes for no command."""
    text = "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)
    return "".join(sign if sign.isprintable() else "□" for sign in " ".join(text.split()))


def _is_number(cell: str) -> bool:
    return not cell or cell.lstrip("-+–").startswith(tuple("0123456789"))
