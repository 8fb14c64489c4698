"""Instances that share an instruction become one packed batch that equals plain rows, at a tenth of the cost.

An instruction with its five inputs is a small tree: one stem of tokens and five branches. In causal attention the
stem never sees a branch, so it is computed once. Several trees lie side by side in a row of a batch; a mask keeps
them apart, so nothing is spent on padding and no sorting by length is needed. The same instances as right-padded rows
(`plain`) are the oracle of the packed form in the tests, the yardstick of `packing_is_exact`, and the way taken where
a network does not honour such masks.
"""

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# A place costs as much in attention as in the rest of a layer when its row is about this long (one thread: 70 at
# width 32, 270 at 256); below SHORTEST_ROW nothing is gained by shorter rows. Both move time only, never a number.
HALF_COST = 200
SHORTEST_ROW = 32


class _Laid(NamedTuple):
    """A group written out in the order in which it is fed; places count from the start of the group."""

    tokens: np.ndarray  # (place,) stem, then branch after branch
    positions: np.ndarray  # (place,) every branch goes on where the stem ends
    segments: np.ndarray  # (place,) 0 in the stem, b+1 in branch b
    logit_at: np.ndarray  # (asked,) the places whose logits are needed, each once
    end_row: np.ndarray  # (branch,) index into logit_at of the last token of each branch
    target_row: np.ndarray  # (target,) index into logit_at
    target_token: np.ndarray  # (target,)
    target_weight: np.ndarray  # (target,) how many instances share this prediction
    target_branch: np.ndarray  # (target,) whose prediction it is; -1 for the stem's, which belong to all


@dataclass(frozen=True)
class Group:
    """Instances that begin with the same tokens. `branches` holds what each of them goes on with (the last token is
    the one whose state is read); `targets` holds the answer that follows. The last target token is predicted and
    never fed. `answers_only` predicts nothing but the targets: for networks that see the whole text at once."""

    prefix: tuple[int, ...]
    branches: tuple[tuple[int, ...], ...]
    targets: tuple[tuple[int, ...], ...] | None = None
    answers_only: bool = False

    def __post_init__(self) -> None:
        if not self.branches or not all(self.branches):
            raise ValueError("a group needs at least one branch, and every branch at least one token")
        if self.targets is not None and len(self.targets) != len(self.branches):
            raise ValueError(f"{len(self.branches)} branches but {len(self.targets)} targets")

    @cached_property
    def size(self) -> int:
        """How many tokens are fed in packed form."""
        return len(self.prefix) + sum(len(self.fed(b)) for b in range(len(self.branches)))

    @cached_property
    def longest(self) -> int:
        """Tokens fed for its longest instance: the number of positions that a network must have."""
        return len(self.prefix) + max(len(self.fed(b)) for b in range(len(self.branches)))

    def target(self, branch: int) -> tuple[int, ...]:
        return () if self.targets is None else self.targets[branch]

    def fed(self, branch: int) -> tuple[int, ...]:
        """The branch and all but the last of its targets."""
        return self.branches[branch] + self.target(branch)[:-1]

    def only(self, branches: Sequence[int]) -> "Group":
        """The same stem with some of the branches."""
        targets = None if self.targets is None else tuple(self.targets[b] for b in branches)
        return replace(self, branches=tuple(self.branches[b] for b in branches), targets=targets)

    def predicted(self, branch: int) -> int:
        """How many tokens of one instance are predicted."""
        own = len(self.target(branch))
        return own if self.answers_only else len(self.prefix) + len(self.branches[branch]) + own - 1

    @cached_property
    def laid(self) -> _Laid:
        stem, count = len(self.prefix), len(self.branches)
        tokens, positions, segments = list(self.prefix), list(range(stem)), [0] * stem
        logit_at = list(range(stem))
        seen = 0 if self.answers_only else stem  # of the stem, what is predicted or predicts
        target_row, target_token = list(range(seen - 1)), list(self.prefix[1:seen])
        weights, owners = [count] * len(target_token), [-1] * len(target_token)
        end_row = []
        for b, branch in enumerate(self.branches):
            fed, first = self.fed(b), len(tokens)
            start = len(branch) - 1 if self.answers_only else 0
            predicted = (branch[1:] + self.target(b))[start:]  # by the branch's own tokens
            if seen:  # the last token of the stem predicts where each branch begins
                target_row.append(stem - 1)
                target_token.append(branch[0])
            target_row.extend(range(len(logit_at) + start, len(logit_at) + start + len(predicted)))
            target_token.extend(predicted)
            new = len(predicted) + bool(seen)
            weights.extend([1] * new)
            owners.extend([b] * new)
            end_row.append(len(logit_at) + len(branch) - 1)
            logit_at.extend(range(first, first + len(fed)))
            tokens.extend(fed)
            positions.extend(range(stem, stem + len(fed)))
            segments.extend([b + 1] * len(fed))
        lists = (tokens, positions, segments, logit_at, end_row, target_row, target_token, weights, owners)
        return _Laid(*(np.array(x, dtype=np.int64) for x in lists))


@dataclass(frozen=True)
class PackedBatch:
    """What a network is fed, and what is asked of it. Flat indices count through (row, place).

    `mask` is additive (row, 1, place, place) when instances share tokens, a 1/0 padding mask (row, place) in plain
    rows. Instances are numbered group after group, branch after branch."""

    tokens: Tensor  # (row, place)
    positions: Tensor  # (row, place)
    mask: Tensor
    logit_at: Tensor  # (asked,) flat indices whose logits are needed, each once
    end_row: Tensor  # (instance,) index into logit_at of the last token of each branch
    target_row: Tensor  # (target,) index into logit_at
    target_token: Tensor  # (target,)
    target_weight: Tensor  # (target,) float32
    target_instance: np.ndarray  # (target,) -1 where the whole group shares the prediction
    target_group: np.ndarray  # (target,)
    instance_group: np.ndarray  # (instance,)
    predicted: float  # sum of the weights: the number of predicted tokens of the plain rows

    @property
    def ends(self) -> Tensor:
        """(instance,) flat index of the last token of each branch, where states are read."""
        return self.logit_at[self.end_row]

    @property
    def target_at(self) -> Tensor:
        """(target,) flat index of the place that predicts it."""
        return self.logit_at[self.target_row]

    @property
    def packed(self) -> bool:
        return self.mask.ndim == 4

    def to(self, device: torch.device | str, dtype: torch.dtype = torch.float32) -> "PackedBatch":
        """On the network's device, the additive mask in the network's precision."""
        names = ("tokens", "positions", "mask", "logit_at", "end_row", "target_row", "target_token", "target_weight")
        moved = {name: getattr(self, name).to(device, non_blocking=True) for name in names}
        if self.packed and dtype != moved["mask"].dtype:
            moved["mask"] = moved["mask"].clamp(min=torch.finfo(dtype).min).to(dtype)
        return replace(self, **moved)


def pack(groups: Sequence[Group], *, rows: int | None = None) -> PackedBatch:
    """One batch in which every stem is computed once. The number of rows is chosen for speed unless it is given."""
    if not groups:
        raise ValueError("nothing to pack")
    laid = [group.laid for group in groups]
    sizes = np.array([len(x.tokens) for x in laid])
    row, start, count, places = _arrange(sizes.tolist(), rows)
    offsets = row * places + start
    where = _spread(offsets, sizes)  # flat index of every fed token
    group_of = np.full(count * places, -1)
    group_of[where] = np.repeat(np.arange(len(groups)), sizes)
    tokens, positions, segments = (np.zeros(count * places, dtype=np.int64) for _ in range(3))
    tokens[where] = np.concatenate([x.tokens for x in laid])
    positions[where] = np.concatenate([x.positions for x in laid])
    segments[where] = np.concatenate([x.segments for x in laid])

    # Padding sees the padding before it and itself: no row of the mask is empty, so no kernel can turn it into NaN.
    g, s = group_of.reshape(count, places), segments.reshape(count, places)
    seen = (s[:, None, :] == 0) | (s[:, None, :] == s[:, :, None])
    seen &= g[:, None, :] == g[:, :, None]
    seen &= np.tri(places, dtype=bool)
    mask = np.where(seen, np.float32(0), np.finfo(np.float32).min)[:, None]

    return _batch(laid, offsets, (count, places), tokens, positions, mask)


def plain(groups: Sequence[Group]) -> PackedBatch:
    """One right-padded row per instance, as every other program feeds them: the oracle, and the way out."""
    alone = [g.only([b]) for g in groups for b in range(len(g.branches))]
    if not alone:
        raise ValueError("nothing to feed")
    laid = [group.laid for group in alone]
    sizes = np.array([len(x.tokens) for x in laid])
    count, places = len(alone), int(sizes.max())
    offsets = np.arange(count) * places
    tokens = np.zeros(count * places, dtype=np.int64)
    mask = np.zeros(count * places, dtype=np.int64)
    where = _spread(offsets, sizes)
    tokens[where] = np.concatenate([x.tokens for x in laid])
    mask[where] = 1
    positions = np.tile(np.arange(places), count)
    shape = (count, places)
    batch = _batch(laid, offsets, shape, tokens, positions, mask.reshape(shape))
    of = np.repeat(np.arange(len(groups)), [len(g.branches) for g in groups])
    instance = batch.target_group  # every instance was a group of its own
    return replace(batch, target_instance=instance, target_group=of[instance], instance_group=of)


def _arrange(sizes: list[int], rows: int | None) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Row and start of every group, number of rows, places in a row. The longest group goes first, each into the row
    with most room. Short rows are cheap in attention and many small groups fill them evenly, so little padding is
    left."""
    total, longest = sum(sizes), max(sizes)
    if rows is not None:
        counts = {rows}
    else:
        most = math.ceil(total / max(longest, SHORTEST_ROW))
        counts = {max(1, round(most * share)) for share in (1, 0.95, 0.9, 0.8, 0.7, 0.6, 0.5, 0.35)}
    order = sorted(range(len(sizes)), key=lambda i: (-sizes[i], i))
    best: tuple[float, list[int], list[int], int, int] | None = None
    for count in sorted(counts):
        room = [(0, r) for r in range(count)]
        row, start = [0] * len(sizes), [0] * len(sizes)
        for i in order:
            used, r = room[0]
            row[i], start[i] = r, used
            heapq.heapreplace(room, (used + sizes[i], r))
        places = max(used for used, _ in room)
        cost = count * places * (1 + places / HALF_COST)
        if best is None or cost < best[0]:
            best = (cost, row, start, count, places)
    assert best is not None
    return np.array(best[1]), np.array(best[2]), best[3], best[4]


def _spread(offsets: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """offset, offset+1, … offset+size-1 for every pair, end to end."""
    before = np.cumsum(sizes) - sizes
    return np.repeat(offsets - before, sizes) + np.arange(sizes.sum())


def _batch(
    laid: Sequence[_Laid],
    offsets: np.ndarray,
    shape: tuple[int, int],
    tokens: np.ndarray,
    positions: np.ndarray,
    mask: np.ndarray,
) -> PackedBatch:
    asked = np.array([len(x.logit_at) for x in laid])
    branches = np.array([len(x.end_row) for x in laid])
    targets = np.array([len(x.target_row) for x in laid])
    first_asked, first_branch = np.cumsum(asked) - asked, np.cumsum(branches) - branches
    branch = np.concatenate([x.target_branch for x in laid])
    weight = np.concatenate([x.target_weight for x in laid])
    flat = {
        "tokens": tokens.reshape(shape),
        "positions": positions.reshape(shape),
        "mask": mask,
        "logit_at": np.concatenate([x.logit_at for x in laid]) + np.repeat(offsets, asked),
        "end_row": np.concatenate([x.end_row for x in laid]) + np.repeat(first_asked, branches),
        "target_row": np.concatenate([x.target_row for x in laid]) + np.repeat(first_asked, targets),
        "target_token": np.concatenate([x.target_token for x in laid]),
        "target_weight": weight.astype(np.float32),
    }
    return PackedBatch(
        **{name: torch.from_numpy(array) for name, array in flat.items()},
        target_instance=np.where(branch < 0, -1, branch + np.repeat(first_branch, targets)),
        target_group=np.repeat(np.arange(len(laid)), targets),
        instance_group=np.repeat(np.arange(len(laid)), branches),
        predicted=float(weight.sum()),
    )


def instance_losses(losses: np.ndarray, batch: PackedBatch) -> np.ndarray:
    """(instance,) float64: the sum over the targets of each instance, shared ones counted for all who share."""
    own = batch.target_instance >= 0
    groups, instances = int(batch.instance_group.max()) + 1, len(batch.instance_group)
    shared = np.bincount(batch.target_group[~own], losses[~own], minlength=groups)
    alone = np.bincount(batch.target_instance[own], losses[own], minlength=instances)
    return alone + shared[batch.instance_group]
