"""Groups dealt out over batches: as many tokens as fit, packed where the network keeps packed instances apart."""

import weakref
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from nucleate.model.packed_pass import packing_is_exact, text_config, where_it_runs
from nucleate.model.prefix_tree import HALF_COST, Group
from nucleate.refusal import Refused

_BYTES = 2**29  # of hidden states and of logits in one batch
_TOKENS = {"cpu": 2048}  # larger batches leave the caches: 4,096 took 8 % longer at width 256
_TOKENS_ELSEWHERE = 16384


@dataclass(frozen=True)
class Dealt:
    """The batches to come, each with the numbers of its instances: those of the groups, branch after branch."""

    batches: Iterator[tuple[list[Group], np.ndarray]]
    packed: bool
    note: str | None  # a sentence where plain rows had to be taken


def deal(model: nn.Module, groups: Sequence[Group], *, budget: int) -> Dealt:
    """All groups in batches of about `budget` tokens; as plain rows where the network does not keep instances that
    share tokens apart (slower, the same numbers)."""
    parts = _pieces(groups, budget)
    if _keeps_apart(model, [group for group, _ in parts]):
        return Dealt(_batches(parts, budget), True, None)
    note = f"{type(model).__name__} does not keep packed instances apart, so plain padded rows were read (slower)"
    return Dealt(_plain_batches(groups, budget), False, note)


def share_prefixes(
    rows: Sequence[tuple[tuple[int, ...], tuple[int, ...]]],
) -> tuple[list[Group], np.ndarray]:
    """Rows of (tokens, answer) as groups with common stems; and for each instance of the groups its place in `rows`.

    In sorted order each row joins the group before it where that saves more than the longer row of a batch costs."""
    order = sorted(range(len(rows)), key=rows.__getitem__)
    members: list[list[int]] = []
    stem, fed, spent = 0, 0, 0.0  # of the last group: tokens shared, tokens fed without sharing, cost
    for number in order:
        tokens, answer = rows[number]
        length = len(tokens) + len(answer[1:])
        if members:
            first, count = rows[members[-1][0]][0], len(members[-1])
            shared = min(_common(first, tokens), stem, len(tokens) - 1)
            together = _cost(fed + length - count * shared)
            if together < spent + _cost(length):
                members[-1].append(number)
                stem, fed, spent = shared, fed + length, together
                continue
        members.append([number])
        stem, fed, spent = len(tokens) - 1, length, _cost(length)
    groups = [group_rows([rows[i][0] for i in own], [rows[i][1] for i in own]) for own in members]
    return groups, np.array([i for own in members for i in own], dtype=np.int64)


def group_rows(rows: Sequence[tuple[int, ...]], targets: Sequence[tuple[int, ...]] | None) -> Group:
    """Split after the longest prefix that all share, leaving every branch a token of its own."""
    shared = min(_common(min(rows), max(rows)), min(len(row) for row in rows) - 1)
    return Group(rows[0][:shared], tuple(row[shared:] for row in rows), None if targets is None else tuple(targets))


def _common(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """How many tokens both begin with. What the first and the last of sorted rows share, all of them share."""
    return next((k for k, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _cost(size: int) -> float:
    """Time of a group, up to a factor: its tokens, each of which looks at a row at least that long."""
    return size * (1 + size / HALF_COST)


def layers_of(model: Any, layers: Sequence[int] | None) -> list[int]:
    depth = text_config(model).num_hidden_layers
    if layers is None:
        return list(range(depth + 1))
    wrong = [layer for layer in layers if not -depth - 1 <= layer <= depth]
    if wrong:
        raise Refused(f"layer {wrong[0]} does not exist: the network has layers 0 (the embedding) to {depth}")
    return [layer % (depth + 1) for layer in layers]


def batch_budget(model: Any, hidden: bool) -> int:
    """As many tokens as keep hidden states and logits of one batch within half a GiB."""
    config = text_config(model)
    width, depth, vocabulary = config.hidden_size, config.num_hidden_layers + 1, config.vocab_size
    each = 4 * max(width * depth if hidden else width, 2 * vocabulary)
    return max(256, min(_TOKENS.get(where_it_runs(model)[0].type, _TOKENS_ELSEWHERE), _BYTES // each))


_CHECKED: "weakref.WeakKeyDictionary[nn.Module, dict[Any, tuple[int, int]]]" = weakref.WeakKeyDictionary()


def _keeps_apart(model: Any, groups: Sequence[Group]) -> bool:
    """`packing_is_exact`, asked again only when texts or groups are longer than those that passed before."""
    longest, largest = max(g.longest for g in groups), max(g.size for g in groups)
    passed = _CHECKED.setdefault(model, {})
    key = (getattr(model.config, "_attn_implementation", None), where_it_runs(model))
    text, size = passed.get(key, (0, 0))
    if longest <= text and largest <= size:
        return True
    if not packing_is_exact(model, groups):
        return False
    passed[key] = (max(longest, text), max(largest, size))
    return True


def _pieces(groups: Sequence[Group], budget: int) -> list[tuple[Group, np.ndarray]]:
    """Groups with the numbers of their instances; one too large for a batch is dealt out over several, stem and all."""
    pieces, first = [], 0
    for group in groups:
        count = len(group.branches)
        if group.size <= budget:
            pieces.append((group, np.arange(first, first + count)))
        else:
            start, used = 0, len(group.prefix)
            for b in range(count + 1):
                if b == count or (b > start and used + len(group.fed(b)) > budget):
                    pieces.append((group.only(range(start, b)), np.arange(first + start, first + b)))
                    start, used = b, len(group.prefix)
                if b < count:
                    used += len(group.fed(b))
        first += count
    return pieces


def _batches(pieces: Sequence[tuple[Group, np.ndarray]], budget: int) -> Iterator[tuple[list[Group], np.ndarray]]:
    parts: list[Group] = []
    numbers: list[np.ndarray] = []
    used = 0
    for group, mine in pieces:
        if parts and used + group.size > budget:
            yield parts, np.concatenate(numbers)
            parts, numbers, used = [], [], 0
        parts.append(group)
        numbers.append(mine)
        used += group.size
    yield parts, np.concatenate(numbers)


def _plain_batches(groups: Sequence[Group], budget: int) -> Iterator[tuple[list[Group], np.ndarray]]:
    """Single instances of like length together, so that padding stays small."""
    alone = [g.only([b]) for g in groups for b in range(len(g.branches))]
    order = sorted(range(len(alone)), key=lambda i: (-alone[i].size, i))
    first = 0
    while first < len(order):
        size = max(1, budget // alone[order[first]].size)
        numbers = order[first : first + size]
        yield [alone[i] for i in numbers], np.array(numbers)
        first += size
