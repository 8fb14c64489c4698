"""What a network answers when the hidden state of one token is moved, or another one put in its place.

Layers are numbered as states are everywhere else (`states.py`): layer 0 is the embedding, layer i what block i puts
out, counted from 1, so that layer i is at once what the next block takes in. Of L blocks, layer L is moved before the
final norm, where `states.py` reads it after. All else of the pass is the packed pass of `packed_pass.py`: prompts that
begin alike up to the moved token are computed once up to there, each moved token is a branch of its own.
"""

import dataclasses
import math
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.model.batches import batch_budget, deal, layers_of
from nucleate.model.packed_pass import at_rest, check_positions, evaluate, text_config, where_it_runs
from nucleate.model.prefix_tree import HALF_COST, Group, pack, plain
from nucleate.model.prompts import reader_of
from nucleate.refusal import Refused

Placed = tuple[tuple[int, ...], int]  # the tokens of a prompt, and the place of the one that is moved


@dataclass(frozen=True)
class MovedAnswers:
    """Prompts in their order."""

    predicted: np.ndarray  # (prompt,) token id, the likeliest after the last token
    logits: np.ndarray  # (prompt, asked) float32, of the tokens asked for
    note: str | None  # a sentence where plain rows had to be used


def answers_when_moved(
    model: Any,
    prompts: Sequence[Placed],
    *,
    layer: int = 0,
    states: np.ndarray | None = None,
    replace: bool = False,
    ask: np.ndarray | None = None,
    tokens_per_batch: int | None = None,
) -> MovedAnswers:
    """The answer to each prompt when `states` (prompt, width) are added to the hidden state of `layer` at its place,
    or put there instead (`replace`); without `states`, the answers as they are. `ask` (prompt, asked) are the tokens
    whose logits are wanted. `tokens_per_batch` moves time and memory only."""
    if not prompts:
        raise Refused("there are no prompts to move: give at least one")
    if states is not None and (states.ndim != 2 or len(states) != len(prompts)):
        raise ValueError(f"{len(prompts)} prompts but states of shape {states.shape}")
    groups, order = _groups(prompts)
    check_positions(model, groups)
    (chosen,) = layers_of(model, [layer])
    blocks_of(model)
    device, dtype = where_it_runs(model)
    dealt = deal(model, groups, budget=tokens_per_batch or batch_budget(model, False))
    asked = np.empty((len(prompts), 0), dtype=np.int64) if ask is None else np.asarray(ask)
    predicted, logits = np.empty(len(prompts), dtype=np.int64), np.empty(asked.shape, dtype=np.float32)
    with at_rest(model):
        for parts, numbers in dealt.batches:
            rows = order[numbers]
            batch = pack(parts) if dealt.packed else plain(parts)
            behind = np.array([len(prompts[row][0]) - 1 - prompts[row][1] for row in rows])
            places = batch.ends - torch.from_numpy(behind)
            batch = dataclasses.replace(batch, logit_at=batch.ends).to(device, dtype)
            if states is None:
                found, _ = evaluate(model, batch)
            else:
                with _moving(model, chosen, places, torch.from_numpy(states[rows]), replace):
                    found, _ = evaluate(model, batch)
            found = found.float().cpu()
            predicted[rows] = found.argmax(-1).numpy()
            logits[rows] = np.take_along_axis(found.numpy(), asked[rows], axis=1)
    return MovedAnswers(predicted, logits, dealt.note)


def blocks_of(model: Any) -> nn.ModuleList:
    """The blocks of a causal language model, found by their number, the first of which takes in layer 0. A short pass
    must show that each takes in the hidden state of its layer; refused where no list of modules does."""
    if model not in _BLOCKS:
        if not reader_of(model)[1]:
            raise Refused(f"{type(model).__name__} is no causal language model: only what answers can be moved")
        depth = text_config(model).num_hidden_layers
        lists = (part for part in model.modules() if isinstance(part, nn.ModuleList) and len(part) == depth)
        found = next((one for one in lists if _take_in_layers(model, one)), None)
        if found is None:
            raise Refused(
                f"{type(model).__name__} has no list of {depth} blocks that take in its hidden states: its states "
                "cannot be moved here; give a model built as transformers builds them"
            )
        _BLOCKS[model] = found
    return _BLOCKS[model]


_BLOCKS: "weakref.WeakKeyDictionary[Any, nn.ModuleList]" = weakref.WeakKeyDictionary()


def _take_in_layers(model: Any, blocks: nn.ModuleList) -> bool:
    """Does the first block take in layer 0, the next one layer 1, and so on?"""
    seen: list[Tensor] = []

    def look(module: nn.Module, arguments: Any, named: Any) -> None:
        seen.append(_state_in(arguments, named).clone())

    def look_behind(module: nn.Module, arguments: Any, output: Any) -> None:
        seen.append((output[0] if isinstance(output, tuple) else output).clone())

    handles = [block.register_forward_pre_hook(look, with_kwargs=True) for block in blocks]
    handles.append(blocks[-1].register_forward_hook(look_behind))
    try:
        with at_rest(model):
            tokens = torch.tensor([[3, 1, 2, 1]], device=where_it_runs(model)[0])
            states = model(input_ids=tokens, output_hidden_states=True).hidden_states[:-1]
    except (LookupError, AttributeError):  # it is called without a state
        return False
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != len(blocks) + 1 or len(states) != len(blocks):
        return False
    # Those of Mamba begin behind its first block, and `packed_pass.evaluate` puts the embedding before them.
    return any(all(map(torch.equal, seen[first:], states)) for first in (0, 1))


def _state_in(arguments: tuple[Any, ...], named: dict[str, Any]) -> Tensor:
    """The hidden state that a block is called with."""
    return arguments[0] if arguments else named["hidden_states"]


@contextmanager
def _moving(model: Any, layer: int, places: Tensor, states: Tensor, instead: bool) -> Iterator[None]:
    """Inside, the states of a layer at these flat indices are moved by `states`, or replaced by them."""
    blocks = blocks_of(model)

    def moved(hidden: Tensor) -> Tensor:
        new, at = hidden.flatten(0, 1).clone(), places.to(hidden.device)
        given = states.to(hidden.device, hidden.dtype)
        new[at] = given if instead else new[at] + given
        return new.view_as(hidden)

    def before(module: nn.Module, arguments: Any, named: Any) -> Any:
        hidden = moved(_state_in(arguments, named))
        return ((hidden, *arguments[1:]), named) if arguments else ((), {**named, "hidden_states": hidden})

    def after(module: nn.Module, arguments: Any, output: Any) -> Any:
        return (moved(output[0]), *output[1:]) if isinstance(output, tuple) else moved(output)

    if layer < len(blocks):
        handle: Any = blocks[layer].register_forward_pre_hook(before, with_kwargs=True)
    else:
        handle = blocks[-1].register_forward_hook(after)
    try:
        yield
    finally:
        handle.remove()


def _groups(prompts: Sequence[Placed]) -> tuple[list[Group], np.ndarray]:
    """Prompts with the same tokens before the moved one share these; and for each instance of the groups its prompt.
    A group is as large as makes a token of it cheapest: the stem once for all, and yet a short row."""
    members: dict[tuple[int, ...], list[int]] = {}
    for number, (tokens, place) in enumerate(prompts):
        members.setdefault(tokens[:place], []).append(number)
    groups, order = [], list[int]()
    for stem, numbers in members.items():
        length = max(len(prompts[number][0]) for number in numbers) - len(stem)
        most = max(1, round(math.sqrt(len(stem) * (HALF_COST + len(stem))) / length))
        for first in range(0, len(numbers), most):
            part = numbers[first : first + most]
            groups.append(Group(stem, tuple(prompts[number][0][len(stem) :] for number in part)))
            order += part
    return groups, np.array(order, dtype=np.int64)
