"""What a sweep varies: axes as they are typed, and every combination of their values."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import compress, product
from math import prod

from nucleate.refusal import Refused

_MOST_RUNS = 10_000  # more is a slip of the finger


@dataclass(frozen=True)
class Axis:
    """A setting and the values that it takes, as typed."""

    option: str  # `--seed`, or `--set training.batch`
    key: str
    values: tuple[str, ...]

    def words(self, value: str) -> list[str]:
        """One of the values as the command line takes it."""
        return ["--set", f"{self.key}={value}"] if self.option.startswith("--set ") else [self.option, value]


def axis(option: str, key: str, text: str) -> Axis:
    """`0..4` (both ends included), `32,256`, or both mixed."""
    values: list[str] = []
    for item in (part.strip() for part in text.split(",")):
        first, dots, last = item.partition("..")
        if not item:
            raise Refused(f"{option} {text!r} has an empty value; write 0..4 or 32,256")
        if not dots:
            values.append(item)
            continue
        if not all(re.fullmatch(r"-?\d{1,18}", end) for end in (first, last)):
            raise Refused(f"{option} {item!r} is not a range of whole numbers such as 0..4; else list the values: 1,2")
        if int(last) < int(first):
            raise Refused(f"{option} {item!r} runs backwards; did you mean {last}..{first}?")
        if int(last) - int(first) >= _MOST_RUNS:
            raise Refused(f"{option} {item!r} has {int(last) - int(first) + 1} values; at most {_MOST_RUNS}")
        values += map(str, range(int(first), int(last) + 1))
    twice = [value for value, count in Counter(values).items() if count > 1]
    if twice:
        raise Refused(f"{option} {text!r} names {twice[0]} twice; leave one out")
    return Axis(option, key, tuple(values))


def combinations(axes: Sequence[Axis], *, alone: str) -> Iterator[tuple[str, tuple[str, ...]]]:
    """(name, a value of each axis) of every run, the last axis fastest. A name is made of what varies: `seed0-width32`.

    Where nothing varies the only run is called `alone`.
    """
    twice = [key for key, count in Counter(one.key for one in axes).items() if count > 1]
    if twice:
        raise Refused(f"{twice[0]} is given twice; give all its values at once: {twice[0]}=1,2")
    count = prod(len(one.values) for one in axes)
    if count > _MOST_RUNS:
        raise Refused(f"these axes make {count} runs; at most {_MOST_RUNS}: leave values out")
    varying = [len(one.values) > 1 for one in axes]
    short = Counter(one.key.rpartition(".")[2] for one in compress(axes, varying))
    for values in product(*(one.values for one in axes)):
        words = []
        for one, value in compress(zip(axes, values, strict=True), varying):
            last = one.key.rpartition(".")[2]
            word = last if short[last] == 1 else one.key.replace(".", "_")
            words.append(word + ("" if value[0].isdigit() else "_") + re.sub(r"[^A-Za-z0-9.+-]", "_", value))
        yield "-".join(words) or alone, values
