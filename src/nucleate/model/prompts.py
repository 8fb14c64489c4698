"""What any network makes of labelled prompts: its states at several tokens of each, and whether its answers are right.

One forward pass gives all of it. A causal language model reads prompts that begin alike once up to where they part; an
encoder, whose first token already sees the last, reads whole rows and has no answers. Only the chosen tokens' states
leave the network.
"""

import json
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.model.batches import batch_budget, deal, layers_of, share_prefixes
from nucleate.model.finite import stop_if_not_finite
from nucleate.model.packed_pass import at_rest, evaluate, position_limit, where_it_runs
from nucleate.model.prefix_tree import Group, PackedBatch, pack, plain
from nucleate.model.texts import Chat, HasPrompts, Prompt, prompts_of
from nucleate.progress import Progress, silent
from nucleate.refusal import Refused


class HasTask(HasPrompts, Protocol):
    """A prompt with the label that it is probed for."""

    @property
    def task(self) -> str: ...


@dataclass(frozen=True)
class PromptReading:
    """Instances that were kept, in their order. Answers are None for a network that gives none."""

    states: Mapping[str, np.ndarray]  # read -> (layer, instance, width) float32; a memory map where it was spilled
    layers: Mapping[str, tuple[int, ...]]  # read -> the layers that those are
    answers: tuple[str, ...] | None  # (instance,) the likeliest token after the prompt, as text
    scored: np.ndarray | None  # (instance,) bool: has an output, so that the next three say something
    predicted: np.ndarray | None  # (instance,) bool: that token is the output's first; None without any output
    whole: np.ndarray | None  # (instance,) bool: so is every token of the output, given those before it
    restricted: np.ndarray | None  # (instance,) bool: the first one is, among the first of the task's own outputs
    kept: np.ndarray  # (instance,) their places in the instances given
    dropped: tuple[tuple[int, str], ...]  # (place in the instances given, why)
    unknown_words: int
    note: str | None  # a sentence where rows were read plainly, one by one


def read_prompts_states(
    model: Any,
    tokenizer: Any,
    instances: Sequence[HasTask],
    *,
    reads: Mapping[str, Sequence[int] | None],
    template: str | None = None,
    messages: Sequence[Chat | None] | None = None,
    chat: bool = False,
    spill: Path | None = None,
    progress: Progress = silent,
    tokens_per_batch: int | None = None,
) -> PromptReading:
    """The states at each of `reads` ({read: its layers, None for all}) and, where there are outputs, the answers.

    Without any input there is one place to read, the last token of the prompt: whatever was asked for comes back as
    `answer_start`. `template` is "{instruction} {input}" unless given. With `chat` the text goes through the
    tokenizer's chat template as the user's turn, or `messages` do as they are. Equal prompts are computed once.
    `spill` is a folder for a safetensors file per read where the states are too large for memory."""
    if not instances:
        raise Refused("there are no prompts to read: give at least one")
    if not any(one.input for one in instances) and reads:
        everything = any(layers is None for layers in reads.values())
        reads = {"answer_start": None if everything else sorted({k for layers in reads.values() for k in layers or ()})}
    network, speaks = reader_of(model)
    layers = {read: tuple(layers_of(network, chosen)) for read, chosen in reads.items()}
    texts = prompts_of(
        tokenizer, instances, reads=tuple(reads), template=template, messages=messages, chat=chat, closed=not speaks
    )
    kept, dropped = _fitting(network, texts)
    if not kept.size:
        raise Refused(f"no prompt can be read: prompt {dropped[0][0]}: {dropped[0][1]}; and so on: mend the data")
    prompts = [one for number in kept if isinstance(one := texts[number], Prompt)]
    unknown = getattr(tokenizer, "unk_token_id", None)
    if unknown in [getattr(tokenizer, f"{name}_token_id", None) for name in ("bos", "eos", "cls", "sep")]:
        unknown = None  # it says something else
    distinct = {prompt: number for number, prompt in enumerate(dict.fromkeys(prompts))}
    prompt_of = np.array([distinct[prompt] for prompt in prompts])
    owners = np.split(np.argsort(prompt_of, kind="stable"), np.cumsum(np.bincount(prompt_of))[:-1])  # by prompt
    readings = _Readings(layers, prompts, [instances[i].task for i in kept], spill, speaks)
    progress("reading the prompts", 0.0)
    budget, note = tokens_per_batch or batch_budget(network, any(layers.values())), None
    if speaks:
        batches, note = _read_shared(network, list(distinct), hidden=any(layers.values()), budget=budget)
    else:
        batches = _read_whole(network, list(distinct), pad=_pad(network, tokenizer), budget=budget)
    done = 0
    with at_rest(network):
        for batch in batches:
            readings.enter(batch, [owners[number] for number in batch.numbers])
            done += len(batch.numbers)
            progress("reading the prompts", done / len(distinct))
    return PromptReading(
        **readings.close(tokenizer),
        kept=kept,
        dropped=tuple(dropped),
        unknown_words=0 if unknown is None else sum(prompt.tokens.count(unknown) for prompt in prompts),
        note=note,
    )


class _Batch(NamedTuple):
    numbers: np.ndarray  # (row,) which of the distinct prompts
    hidden: tuple[Tensor, ...]  # (layer) of (row, place, width)
    places: np.ndarray  # (read, row) flat indices into row x place
    logits: Tensor | None  # (asked, vocabulary) after the prompt and after each token of its answer but the last
    first: np.ndarray  # (row,) where in `logits` those of a prompt begin


def _read_shared(
    model: nn.Module, prompts: Sequence[Prompt], *, hidden: bool, budget: int
) -> tuple[Iterator[_Batch], str | None]:
    """Causal: what prompts have in common at their beginning is computed once, where the network allows it (else the
    second result says so)."""
    groups, order = share_prefixes([(prompt.tokens, prompt.answer) for prompt in prompts])
    device, dtype = where_it_runs(model)
    dealt = deal(model, groups, budget=budget)

    def batches() -> Iterator[_Batch]:
        for parts, numbers in dealt.batches:
            rows = order[numbers]
            batch = pack(parts) if dealt.packed else plain(parts)
            places = _places(batch, parts, [prompts[r] for r in rows])
            asked = np.array([max(1, len(prompts[r].answer)) for r in rows])
            first = np.cumsum(asked) - asked
            at = np.repeat(batch.ends.numpy() - first, asked) + np.arange(asked.sum())
            batch = replace(batch, logit_at=torch.from_numpy(at)).to(device, dtype)
            logits, states = evaluate(model, batch, hidden=hidden)
            yield _Batch(rows, states, places, logits, first)

    return batches(), dealt.note


def _places(batch: PackedBatch, parts: Sequence[Group], prompts: Sequence[Prompt]) -> np.ndarray:
    """(read, row) flat index of each prompt's places: in the stem that it shares, or counted back from its end."""
    asked = np.array([len(group.laid.logit_at) for group in parts])
    starts = batch.logit_at.numpy()[np.cumsum(asked) - asked]  # of the stem, where there is one
    of = np.repeat(np.arange(len(parts)), [len(group.branches) for group in parts])
    stems = np.array([len(group.prefix) for group in parts])[of]
    lengths = np.array([len(prompt.tokens) for prompt in prompts])
    places = np.array([prompt.places for prompt in prompts], dtype=np.int64).T  # (read, row)
    return np.where(places < stems, starts[of] + places, batch.ends.numpy() - (lengths - 1 - places))


def _read_whole(model: nn.Module, prompts: Sequence[Prompt], *, pad: int, budget: int) -> Iterator[_Batch]:
    """Whatever sees its whole text at once: right-padded rows of like length."""
    device, _ = where_it_runs(model)
    order = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i].tokens), i))
    start = 0
    while start < len(order):
        longest = len(prompts[order[start]].tokens)
        rows = np.array(order[start : start + max(1, budget // longest)])
        start += len(rows)
        tokens = torch.full((len(rows), longest), pad)
        for row, number in enumerate(rows):
            tokens[row, : len(prompts[number].tokens)] = torch.tensor(prompts[number].tokens)
        lengths = torch.tensor([len(prompts[number].tokens) for number in rows])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        out = model(input_ids=tokens.to(device), attention_mask=mask.to(device), output_hidden_states=True)
        places = np.array([prompts[number].places for number in rows], dtype=np.int64).T
        yield _Batch(rows, out.hidden_states, places + np.arange(len(rows)) * longest, None, np.empty(0))


class _Readings:
    """Takes batch after batch and keeps what was asked for, instance by instance."""

    def __init__(
        self,
        layers: Mapping[str, tuple[int, ...]],
        prompts: Sequence[Prompt],
        tasks: Sequence[str],
        spill: Path | None,
        speaks: bool,
    ) -> None:
        self._layers, self._prompts, self._tasks, self._spill, self._speaks = layers, prompts, tasks, spill, speaks
        self._states: dict[str, np.ndarray] = {}
        self._answers = np.empty(len(prompts), dtype=np.int64)
        self._right = np.zeros((3, len(prompts)), dtype=bool)  # first token, every token, first of the task's own
        allowed: dict[str, set[int]] = {task: set() for task in tasks}
        for prompt, task in zip(prompts, tasks, strict=True):
            allowed[task] |= set(prompt.answer[:1])
        self._allowed = {task: sorted(tokens) for task, tokens in allowed.items()}

    def enter(self, batch: _Batch, owners_of: Sequence[np.ndarray]) -> None:
        """`owners_of` holds the instances of each row's prompt."""
        owners, rows = np.concatenate(owners_of), np.repeat(np.arange(len(owners_of)), [len(x) for x in owners_of])
        for read, flat in zip(self._layers, batch.places, strict=True):
            for number, layer in enumerate(self._layers[read]):
                hidden = batch.hidden[layer]
                there = hidden.flatten(0, 1)[torch.from_numpy(flat).to(hidden.device)]
                stop_if_not_finite(there, layer)
                chosen = there.float().cpu().numpy()
                if read not in self._states:
                    shape = (len(self._layers[read]), len(self._prompts), chosen.shape[-1])
                    self._states[read] = _room(self._spill, read, shape)
                self._states[read][number, owners] = chosen[rows]
        if batch.logits is not None:
            self._mark(batch.logits, batch.first, owners, rows)

    def _mark(self, logits: Tensor, first: np.ndarray, owners: np.ndarray, rows: np.ndarray) -> None:
        best = logits.argmax(-1).cpu().numpy()
        self._answers[owners] = best[first[rows]]
        asked = [(i, row) for i, row in zip(owners, rows, strict=True) if self._prompts[i].answer]
        if not asked:
            return
        after = logits[torch.from_numpy(first[[row for _, row in asked]]).to(logits.device)].float().cpu().numpy()
        own = best_of(after, [self._allowed[self._tasks[i]] for i, _ in asked])
        for (i, row), restricted in zip(asked, own, strict=True):
            answer = self._prompts[i].answer
            given = tuple(best[first[row] : first[row] + len(answer)])
            self._right[:, i] = given[0] == answer[0], given == answer, restricted == answer[0]

    def close(self, tokenizer: Any) -> dict[str, Any]:
        for read in self._layers:
            states = self._states.setdefault(read, np.empty((0, len(self._prompts), 0), dtype=np.float32))
            if isinstance(states, np.memmap):
                states.flush()
                self._states[read] = np.memmap(
                    str(states.filename), states.dtype, "r", offset=states.offset, shape=states.shape
                )
        scored = np.array([bool(prompt.answer) for prompt in self._prompts])
        right: list[np.ndarray | None] = [*self._right] if self._speaks and scored.any() else [None] * 3
        answers = tuple(tokenizer.batch_decode(self._answers[:, None].tolist())) if self._speaks else None
        return {
            "states": self._states,
            "layers": self._layers,
            "answers": answers,
            "scored": scored if self._speaks else None,
            **dict(zip(("predicted", "whole", "restricted"), right, strict=True)),
        }


def best_of(logits: np.ndarray, candidates: Sequence[Sequence[int]]) -> np.ndarray:
    """(instance,) the likeliest of each instance's candidates."""
    widest = max(len(c) for c in candidates)
    padded = np.array([[*c, *[c[0]] * (widest - len(c))] for c in candidates])  # (instance, candidate)
    best = np.take_along_axis(logits, padded, axis=1).argmax(axis=1)
    return padded[np.arange(len(padded)), best]


def _room(folder: Path | None, read: str, shape: tuple[int, int, int]) -> np.ndarray:
    """Room for states: in memory, or in a safetensors file that is filled place by place."""
    if folder is None:
        return np.empty(shape, dtype=np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    size = 4 * int(np.prod(shape, dtype=np.int64))
    header = json.dumps({"states": {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}}).encode()
    header += b" " * (-len(header) % 8)
    file = folder / f"{read}.safetensors"
    with open(file, "wb") as stream:
        stream.write(struct.pack("<Q", len(header)) + header)
        stream.truncate(8 + len(header) + size)
    return np.memmap(file, np.float32, "r+", offset=8 + len(header), shape=shape)


def _fitting(model: Any, prompts: Sequence[Prompt | str]) -> tuple[np.ndarray, list[tuple[int, str]]]:
    """The places of the prompts that the network can read, and of the others with the reason."""
    limit, known = position_limit(model), model.get_input_embeddings().num_embeddings
    kept, dropped = [], []
    for number, prompt in enumerate(prompts):
        if isinstance(prompt, str):
            dropped.append((number, prompt))
            continue
        length = len(prompt.tokens) + len(prompt.answer[1:])
        if max(prompt.tokens + prompt.answer) >= known:
            raise Refused(
                f"prompt {number}: token {max(prompt.tokens + prompt.answer)} lies outside the network's vocabulary of "
                f"{known}: network and tokenizer do not belong together"
            )
        if limit is not None and length > limit:
            dropped.append((number, f"is {length} tokens long, the network has {limit} positions"))
        else:
            kept.append(number)
    return np.array(kept, dtype=np.int64), dropped


def reader_of(model: Any) -> tuple[Any, bool]:
    """The part of the network that reads, and whether it is a causal language model, which answers too. Asked of the
    network itself: does its first token see a later one?"""
    if model.config.is_encoder_decoder:
        return model.get_encoder(), False
    if model.get_output_embeddings() is None:
        return model, False
    with at_rest(model):
        tokens = torch.tensor([[3, 1, 1, 1], [3, 2, 2, 2]], device=where_it_runs(model)[0])
        one, other = model(input_ids=tokens, output_hidden_states=True).hidden_states[-1][:, 0].float()
    if (one - other).norm() > 1e-4 * one.norm():
        return model.base_model, False
    return model, True


def _pad(model: Any, tokenizer: Any) -> int:
    """Some encoders count positions by what is no padding, so rows are filled with the token that they know."""
    for holder in (model.config, tokenizer):
        if isinstance(getattr(holder, "pad_token_id", None), int):
            return int(holder.pad_token_id)
    return 0
