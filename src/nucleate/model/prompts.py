"""What any network makes of labelled prompts: its states at several tokens of each, and whether its answers are right.

One forward pass gives all of it. A causal language model reads prompts that begin alike once up to where they part; an
encoder, whose first token already sees the last, reads whole rows and has no answers. Only the chosen tokens' states
leave the network.
"""

import json
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from nucleate.model.batches import batch_budget, layers_of
from nucleate.model.blocks import Block, BlockReading, Reader, blocks_of, whole_blocks_of
from nucleate.model.packed_pass import at_rest, position_limit, where_it_runs
from nucleate.model.texts import Chat, HasPrompts, Prompt, prompts_of
from nucleate.progress import Progress, silent
from nucleate.refusal import Refused

Elsewhere = Callable[[tuple[tuple[int, ...], ...], Sequence[Block]], Iterator[tuple[int, BlockReading]]]
"""Given the layers at each read, and the blocks: the place of each and its reading, in any order."""


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
    elsewhere: Elsewhere | None = None,
) -> PromptReading:
    """The states at each of `reads` ({read: its layers, None for all}) and, where there are outputs, the answers.

    Without any input there is one place to read, the last token of the prompt: whatever was asked for comes back as
    `answer_start`. `template` is "{instruction} {input}" unless given. With `chat` the text goes through the
    tokenizer's chat template as the user's turn, or `messages` do as they are. Equal prompts are computed once.
    `spill` is a folder for a safetensors file per read where the states are too large for memory. `elsewhere` reads the
    blocks in place of this process."""
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
    readings = _Readings(layers, prompts, [instances[i].task for i in kept], spill, speaks)
    progress("reading the prompts", 0.0)
    budget, dealt = tokens_per_batch or batch_budget(network, any(layers.values())), readings.dealt
    if speaks:
        blocks, numbers, note = blocks_of(network, *dealt, budget=budget)
    else:
        blocks, numbers, note = whole_blocks_of(*dealt, budget=budget)
    if elsewhere is None:
        reader = Reader(network, speaks, tuple(layers.values()), _pad(network, tokenizer))
        read: Iterator[tuple[int, BlockReading]] = enumerate(map(reader, blocks))
    else:
        read = elsewhere(tuple(layers.values()), blocks)
    done = 0
    for number, reading in read:
        readings.enter(numbers[number], reading)
        done += len(blocks[number].prompts)
        progress("reading the prompts", done / len(dealt[0]))
    return PromptReading(
        **readings.close(tokenizer),
        kept=kept,
        dropped=tuple(dropped),
        unknown_words=0 if unknown is None else sum(prompt.tokens.count(unknown) for prompt in prompts),
        note=note,
    )


def open_reader(load: Callable[[], tuple[Any, Any]], layers: Sequence[Sequence[int]]) -> Reader:
    """The reader of a network that is loaded now, with its tokenizer, by whoever is to read. `layers` are (read, …)."""
    model, tokenizer = load()
    network, speaks = reader_of(model)
    return Reader(network, speaks, tuple(map(tuple, layers)), _pad(network, tokenizer))


class _Readings:
    """Deals the prompts out as entries, each once, takes what is read of them, and keeps it instance by instance."""

    def __init__(
        self,
        layers: Mapping[str, tuple[int, ...]],
        prompts: Sequence[Prompt],
        tasks: Sequence[str],
        spill: Path | None,
        speaks: bool,
    ) -> None:
        self._layers, self._prompts, self._spill, self._speaks = layers, prompts, spill, speaks
        self._states: dict[str, np.ndarray] = {}
        self._answers = np.empty(len(prompts), dtype=np.int64)
        self._right = np.zeros((3, len(prompts)), dtype=bool)  # first token, every token, first of the task's own
        names = {task: number for number, task in enumerate(dict.fromkeys(tasks))}
        own: dict[int, set[int]] = {number: set() for number in names.values()}
        owners: dict[Prompt, dict[int, list[int]]] = {}  # the instances of each prompt, by task where that matters
        for instance, (prompt, task) in enumerate(zip(prompts, tasks, strict=True)):
            own[names[task]] |= set(prompt.answer[:1])
            owners.setdefault(prompt, {}).setdefault(names[task] if prompt.answer else 0, []).append(instance)
        self._owners = [np.array(mine) for by_task in owners.values() for mine in by_task.values()]  # (entry,)
        allowed = {number: sorted(tokens) for number, tokens in own.items()}
        self.dealt = list(owners), [list(by_task) for by_task in owners.values()], allowed  # as `blocks_of` takes it

    def enter(self, entries: np.ndarray, reading: BlockReading) -> None:
        """What was read of these entries."""
        of = [self._owners[entry] for entry in entries]
        owners, rows = np.concatenate(of), np.repeat(np.arange(len(of)), [len(x) for x in of])
        place = 0
        for read, layers in self._layers.items():
            for number in range(len(layers)):
                if read not in self._states:
                    shape = (len(layers), len(self._prompts), reading.states.shape[-1])
                    self._states[read] = _room(self._spill, read, shape)
                self._states[read][number, owners] = reading.states[place][rows]
                place += 1
        self._answers[owners], self._right[:, owners] = reading.answers[rows], reading.right[:, rows]

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
