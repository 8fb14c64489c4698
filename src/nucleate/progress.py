"""How a long computation tells how far it is: a function that is given a sentence, and how much is done.

Library code is silent; the command line shows a bar (`terminal.py`), and from Python any function will do.
"""

from collections.abc import Callable

Progress = Callable[[str, float | None], None]  # a sentence to keep; or what is going on and the fraction done


def silent(text: str, fraction: float | None) -> None:
    """Shows nothing."""
