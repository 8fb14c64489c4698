"""Loops as machine code: numba's compiler, its results kept on disk from one process to the next.

What is kept is thrown away when the file of the loop itself changes, not when a loop or constant that it takes from
another file does, nor when this file does: after such an edit, touch those that use it (`grep -l compiled -r src`).
"""

from collections.abc import Callable
from typing import Any

from numba import njit

# Sums may be reordered into vectors, in the same way each time; infinities and NaN keep their meaning.
REORDERED = frozenset({"reassoc", "contract", "nsz"})


def compiled(*, fastmath: bool | frozenset[str] = False, error_model: str = "python") -> Callable[[Callable], Any]:
    """A decorator: compiled when first called, without Python's lock."""
    options: dict[str, Any] = {"nogil": True, "error_model": error_model}
    options["fastmath"] = fastmath if isinstance(fastmath, bool) else set(fastmath)

    def compile_it(function: Callable) -> Any:
        try:
            return njit(function, cache=True, **options)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written: in every process again
            return njit(function, **options)

    return compile_it
