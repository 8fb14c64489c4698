"""Blocks of prompts: what one forward pass reads, whole in itself, so that any process with the network can read it.

Which prompts share a pass, and how they lie in it, decides the low bits of their states. It is therefore decided once,
before anybody reads: workers that share the blocks out, a thread each, give the very bits of one thread that reads
them all.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from nucleate.model.batches import deal, share_prefixes
from nucleate.model.finite import stop_if_not_finite
from nucleate.model.packed_pass import at_rest, evaluate, where_it_runs
from nucleate.model.prefix_tree import Group, PackedBatch, pack, plain
from nucleate.model.texts import Prompt


@dataclass(frozen=True)
class Block:
    """Prompts for one forward pass; those that begin alike stand together, so that it is computed once."""

    prompts: tuple[Prompt, ...]  # (row,)
    stems: tuple[tuple[int, int], ...]  # (group,) how many tokens its rows share, and how many rows; none: whole rows
    packed: bool
    entries: tuple[tuple[int, int], ...]  # (entry,) a row and a task: what is told of
    own: tuple[tuple[int, ...], ...]  # (task,) the first tokens of the task's outputs

    @property
    def groups(self) -> list[Group]:
        found, first = [], 0
        for stem, count in self.stems:
            rows = self.prompts[first : first + count]
            branches, targets = tuple(one.tokens[stem:] for one in rows), tuple(one.answer for one in rows)
            found.append(Group(rows[0].tokens[:stem], branches, targets))
            first += count
        return found

    def to_json(self) -> str:
        prompts = [(one.tokens, one.places, one.answer) for one in self.prompts]
        return json.dumps([prompts, self.stems, self.packed, self.entries, self.own])

    @classmethod
    def of_json(cls, text: str) -> Self:
        prompts, stems, packed, entries, own = json.loads(text)
        whole = tuple(Prompt(*map(tuple, one)) for one in prompts)
        return cls(whole, *(tuple(map(tuple, stems)), packed), *(tuple(map(tuple, some)) for some in (entries, own)))


@dataclass(frozen=True)
class BlockReading:
    """What is read of a block. The answers of a network that gives none are -1."""

    states: np.ndarray  # (place, entry, width) float32, a place being a layer at a read
    answers: np.ndarray  # (entry,) the likeliest token after the prompt
    right: np.ndarray  # (3, entry) bool: the first token is, every token is, the first among the task's own is


ReadBlocks = Callable[["Callable[[], Reader]", Sequence[Block], Path], Iterator[tuple[int, BlockReading]]]
"""An engine that reads: what opens the reader in each of its workers, the blocks, and a folder for what it keeps; gives
the place of each block and its reading, in any order."""


@dataclass(frozen=True)
class Reader:
    """A network that reads blocks."""

    network: Any
    speaks: bool  # a causal language model, which answers
    layers: tuple[tuple[int, ...], ...]  # (read,) those that are wanted there
    pad: int

    def __call__(self, block: Block) -> BlockReading:
        with at_rest(self.network):
            return self._read_shared(block) if self.speaks else self._read_whole(block)

    def _read_shared(self, block: Block) -> BlockReading:
        """Causal: what prompts have in common at their beginning is computed once, where the network allows it."""
        groups = block.groups
        batch = pack(groups) if block.packed else plain(groups)
        places = _places(batch, groups, block.prompts)
        asked = np.array([max(1, len(one.answer)) for one in block.prompts])
        first = np.cumsum(asked) - asked
        at = np.repeat(batch.ends.numpy() - first, asked) + np.arange(asked.sum())
        batch = replace(batch, logit_at=torch.from_numpy(at)).to(*where_it_runs(self.network))
        logits, hidden = evaluate(self.network, batch, hidden=any(self.layers))
        return BlockReading(self._states(block, hidden, places), *_answers(block, logits, first))

    def _read_whole(self, block: Block) -> BlockReading:
        """Whatever sees its whole text at once: right-padded rows."""
        device, _ = where_it_runs(self.network)
        lengths = torch.tensor([len(one.tokens) for one in block.prompts])
        longest = int(lengths.max())
        tokens = torch.full((len(lengths), longest), self.pad)
        for row, one in enumerate(block.prompts):
            tokens[row, : len(one.tokens)] = torch.tensor(one.tokens)
        mask = (torch.arange(longest) < lengths[:, None]).long()
        out = self.network(input_ids=tokens.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        places = np.array([one.places for one in block.prompts], dtype=np.int64).T + np.arange(len(lengths)) * longest
        count = len(block.entries)
        return BlockReading(
            self._states(block, out.hidden_states, places), np.full(count, -1), np.zeros((3, count), dtype=bool)
        )

    def _states(self, block: Block, hidden: Sequence[Tensor], places: np.ndarray) -> np.ndarray:
        """`places` are (read, row), flat through rows and places."""
        rows = [row for row, _ in block.entries]
        found = []
        for flat, layers in zip(places, self.layers, strict=True):
            for layer in layers:
                one = hidden[layer]
                there = one.flatten(0, 1)[torch.from_numpy(flat).to(one.device)]
                stop_if_not_finite(there, layer)
                found.append(there.float().cpu().numpy()[rows])
        return np.stack(found) if found else np.empty((0, len(rows), 0), dtype=np.float32)


def blocks_of(
    model: Any,
    prompts: Sequence[Prompt],
    tasks: Sequence[Sequence[int]],
    own: Mapping[int, Sequence[int]],
    *,
    budget: int,
) -> tuple[list[Block], list[np.ndarray], str | None]:
    """Prompts that are all different, dealt over passes of about `budget` tokens by how a causal network reads them.

    `tasks` are (prompt, …) the tasks of which it is a prompt, and `own` the first tokens of their outputs. Beside the
    blocks, which entries each has, counted through prompts and their tasks; and a sentence where beginnings cannot be
    shared."""
    groups, order = share_prefixes([(prompt.tokens, prompt.answer) for prompt in prompts])
    dealt = deal(model, groups, budget=budget)
    parts = (
        (order[numbers], tuple((len(one.prefix), len(one.branches)) for one in some)) for some, numbers in dealt.batches
    )
    return *_dealt(parts, prompts, tasks, own, packed=dealt.packed), dealt.note


def whole_blocks_of(
    prompts: Sequence[Prompt], tasks: Sequence[Sequence[int]], own: Mapping[int, Sequence[int]], *, budget: int
) -> tuple[list[Block], list[np.ndarray], None]:
    """The same for whatever sees its whole text at once: rows of like length."""
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))

    def parts() -> Iterator[tuple[np.ndarray, tuple[tuple[int, int], ...]]]:
        start = 0
        while start < len(order):
            rows = np.array(order[start : start + max(1, budget // len(prompts[order[start]].tokens))])
            start += len(rows)
            yield rows, ()

    return *_dealt(parts(), prompts, tasks, own, packed=False), None


def _dealt(
    parts: Iterator[tuple[np.ndarray, tuple[tuple[int, int], ...]]],
    prompts: Sequence[Prompt],
    tasks: Sequence[Sequence[int]],
    own: Mapping[int, Sequence[int]],
    *,
    packed: bool,
) -> tuple[list[Block], list[np.ndarray]]:
    """Blocks of (the prompts' numbers, their groups), and the numbers of each block's entries."""
    counts = np.array([len(some) for some in tasks])
    first = np.cumsum(counts) - counts
    blocks, numbers = [], []
    for rows, stems in parts:
        there = sorted({task for row in rows for task in tasks[row]})
        place = {task: number for number, task in enumerate(there)}
        entries = tuple((row, place[task]) for row, number in enumerate(rows) for task in tasks[number])
        allowed = tuple(tuple(own[task]) for task in there)
        blocks.append(Block(tuple(prompts[row] for row in rows), stems, packed, entries, allowed))
        numbers.append(np.concatenate([first[row] + np.arange(counts[row]) for row in rows]))
    return blocks, numbers


def _places(batch: PackedBatch, parts: Sequence[Group], prompts: Sequence[Prompt]) -> np.ndarray:
    """(read, row) flat index of each prompt's places: in the stem that it shares, or counted back from its end."""
    asked = np.array([len(group.laid.logit_at) for group in parts])
    starts = batch.logit_at.numpy()[np.cumsum(asked) - asked]  # of the stem, where there is one
    of = np.repeat(np.arange(len(parts)), [len(group.branches) for group in parts])
    stems = np.array([len(group.prefix) for group in parts])[of]
    lengths = np.array([len(prompt.tokens) for prompt in prompts])
    places = np.array([prompt.places for prompt in prompts], dtype=np.int64).T  # (read, row)
    return np.where(places < stems, starts[of] + places, batch.ends.numpy() - (lengths - 1 - places))


def _answers(block: Block, logits: Tensor, first: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`answers` and `right` of the block; `first` is (row,) where in `logits` those of a prompt begin."""
    best = logits.argmax(-1).cpu().numpy()
    rows = np.array([row for row, _ in block.entries])
    right = np.zeros((3, len(rows)), dtype=bool)
    asked = [place for place, row in enumerate(rows) if block.prompts[row].answer]
    if asked:
        after = logits[torch.from_numpy(first[rows[asked]]).to(logits.device)].float().cpu().numpy()
        own = best_of(after, [block.own[block.entries[place][1]] for place in asked])
        for place, restricted in zip(asked, own, strict=True):
            answer, start = block.prompts[rows[place]].answer, first[rows[place]]
            given = tuple(best[start : start + len(answer)])
            right[:, place] = given[0] == answer[0], given == answer, restricted == answer[0]
    return best[first[rows]], right


def best_of(logits: np.ndarray, candidates: Sequence[Sequence[int]]) -> np.ndarray:
    """(instance,) the likeliest of each instance's candidates."""
    widest = max(len(c) for c in candidates)
    padded = np.array([[*c, *[c[0]] * (widest - len(c))] for c in candidates])  # (instance, candidate)
    best = np.take_along_axis(logits, padded, axis=1).argmax(axis=1)
    return padded[np.arange(len(padded)), best]
