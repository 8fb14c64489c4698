"""Prompts whose input stands inside the instruction (§2.1: "integrated into the instruction"), of synthetic data.

The rows of such a dataset are those of any other: instruction and input apart. Only the text that a network is fed
differs, and with it the token that the output follows: a mark, the same for all, for nothing else would tell where
an instruction ends.
"""

from collections.abc import Callable
from typing import Protocol

from nucleate.data.dataset import Dataset, is_inside
from nucleate.data.roles import random_stream

MARK = "?"  # of no alphabet


class _Apart(Protocol):
    @property
    def instruction(self) -> str: ...
    @property
    def input(self) -> str: ...


def text_of(dataset: Dataset) -> Callable[[_Apart], str]:
    """The text of a prompt: instruction and input; or, where the dataset says so, the input behind one of the
    instruction's symbols but the last (drawn evenly for each instruction, the same for all its inputs) and a mark."""
    if not is_inside(dataset):
        return lambda one: f"{one.instruction} {one.input}"
    seed = dataset.settings["seed"]

    def text(one: _Apart) -> str:
        words = one.instruction.split()
        place = random_stream(seed, "input place", one.instruction).randint(1, max(1, len(words) - 1))
        return " ".join([*words[:place], one.input, *words[place:], MARK])

    return text
