"""The one way to say no at the door: bad input is refused in a single line that names the thing and the remedy. And
the one way to say at the end that a result falls short of what was asked of it."""

from collections.abc import Iterable
from difflib import get_close_matches


class Refused(ValueError):
    """Input that cannot be used. The message is one line: what, where, how to mend; the command line exits with 2."""


class FellShort(Exception):
    """A result that is whole but misses a bar which was set for it. The message is one line: which bar, and by how
    much; the command line exits with 3."""


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?` for a misspelt word, the list of what exists where nothing is near."""
    names = sorted(known)
    close = get_close_matches(word, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; there are: {', '.join(names)}"
