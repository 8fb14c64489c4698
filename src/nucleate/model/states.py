"""What a network makes of each instance: its hidden state at the chosen token in every layer, its answer and its loss.

One forward pass gives all three. Only the chosen places leave the device, so memory goes with instances, not with
tokens.

Layer 0 is the embedding (in GPT-2 token plus position, so the length of the instruction is in it), layer i what block
i puts out. The last layer is what Hugging Face returns: after the final norm, unless `config.tie_last_hidden_states`
is False.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from warnings import warn

import numpy as np
import torch
from torch import nn
from transformers import PreTrainedTokenizerBase

from nucleate.data.dataset import Dataset, refuse_inside
from nucleate.model.attention import attention_outputs
from nucleate.model.batches import batch_budget, deal, group_rows, layers_of
from nucleate.model.blocks import best_of
from nucleate.model.finite import stop_if_not_finite
from nucleate.model.packed_pass import at_rest, check_positions, evaluate, token_losses, where_it_runs
from nucleate.model.prefix_tree import Group, instance_losses, pack, plain
from nucleate.model.prompts import read_prompts_states
from nucleate.model.texts import HasPrompts, tokenise
from nucleate.refusal import Refused


@dataclass(frozen=True)
class Reading:
    """Instances in the order of the groups, branch after branch."""

    states: np.ndarray  # (layer, instance, width) float32
    predicted: np.ndarray  # (instance,) token id, the likeliest after the last token of the branch
    restricted: np.ndarray | None  # (instance,) the likeliest of the candidates; None where none were given
    loss: np.ndarray  # (instance,) float64, summed negative log-likelihood in nats of all that is predicted
    predicted_tokens: np.ndarray  # (instance,) how many tokens that sum covers
    note: str | None = None  # a sentence where plain rows had to be used


def read_groups(
    model: nn.Module,
    groups: Sequence[Group],
    *,
    layers: Sequence[int] | None = None,
    candidates: Sequence[Sequence[int]] | None = None,
    state: str = "block",
    tokens_per_batch: int | None = None,
) -> Reading:
    """States, predictions and losses of all instances, without dropout and without gradients.

    `layers=None` reads all, 0 to L; an empty list reads none (accuracy and loss alone are cheaper). `candidates`
    holds the allowed token ids of each instance. `state="attention"` reads as layer i what the attention of block i
    puts out, instead of what the whole block does; layer 0 stays the embedding. Where the network does not keep packed
    instances apart, plain rows are read instead: slower, the same numbers; the result's `note` and a warning say so.
    `tokens_per_batch` moves time and memory only."""
    if not groups:
        raise Refused("there are no instances to read: give at least one")
    check_positions(model, groups)
    device, dtype = where_it_runs(model)
    count = sum(len(g.branches) for g in groups)
    if candidates is not None and (len(candidates) != count or not all(len(c) for c in candidates)):
        raise ValueError(f"candidates need one non-empty list for each of the {count} instances")
    chosen = layers_of(model, layers)
    budget = tokens_per_batch or batch_budget(model, bool(chosen))
    dealt = deal(model, groups, budget=budget)
    if dealt.note:
        warn(dealt.note, stacklevel=2)

    states: np.ndarray | None = None
    predicted = np.empty(count, dtype=np.int64)
    restricted = None if candidates is None else np.empty(count, dtype=np.int64)
    loss = np.empty(count)
    with at_rest(model), attention_outputs(model) if state == "attention" else nullcontext() as attended:
        for parts, numbers in dealt.batches:
            batch = (pack(parts) if dealt.packed else plain(parts)).to(device, dtype)
            logits, hidden = evaluate(model, batch, hidden=bool(chosen))
            if attended is not None and chosen:
                hidden = (hidden[0], *attended)
            ends = batch.ends
            if chosen:
                read = torch.stack([hidden[k].flatten(0, 1)[ends.to(hidden[k].device)].cpu() for k in chosen])
                for layer, one in zip(chosen, read, strict=True):
                    stop_if_not_finite(one, layer)
                read = read.float()  # bfloat16 has no numpy form
                if states is None:
                    states = np.empty((len(chosen), count, read.shape[-1]), dtype=np.float32)
                states[:, numbers] = read.numpy()
            loss[numbers] = instance_losses(token_losses(logits, batch).double().cpu().numpy(), batch)
            at_ends = logits[batch.end_row.to(logits.device)].float().cpu()
            predicted[numbers] = at_ends.argmax(-1).numpy()
            if candidates is not None and restricted is not None:
                restricted[numbers] = best_of(at_ends.numpy(), [candidates[i] for i in numbers])
    covered = [g.predicted(b) for g in groups for b in range(len(g.branches))]
    if states is None:
        states = np.empty((0, count, 0), dtype=np.float32)
    return Reading(states, predicted, restricted, loss, np.array(covered, dtype=np.int64), dealt.note)


@dataclass(frozen=True)
class _Bare:
    """A prompt that has nothing but its text."""

    instruction: str
    input: str
    output: None = None
    task: str = ""


def read_states(
    model: nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Dataset | Sequence[tuple[str, str]],
    *,
    read: str = "input",
    layers: Sequence[int] | None = None,
    template: str | None = None,
    tokens_per_batch: int | None = None,
) -> np.ndarray:
    """float32 array (layer, instance, width): the hidden states of each prompt at one token.

    `prompts` is a sequence of (instruction, input), joined by `template` (a blank between them, if any has an input),
    or a Dataset. `read` is the last token of the `input` (the paper's choice), that of the instruction
    (`instruction_end`), or that of the whole prompt (`answer_start`). `layers` are those to read, all unless given.
    Instruction and input are tokenised together, so where they or the template merge, the last token that holds some
    of the input is read. Equal prompts are computed once, a shared instruction once. Words unknown to the tokenizer
    are read and counted in a warning. `tokens_per_batch` moves time and memory only."""
    if isinstance(prompts, Dataset):
        refuse_inside(prompts, "read_states")
    given = [(i.instruction, i.input) for i in prompts.instances] if isinstance(prompts, Dataset) else prompts
    instances = [_Bare(instruction, input) for instruction, input in given]
    reading = read_prompts_states(
        model, tokenizer, instances, reads={read: layers}, template=template, tokens_per_batch=tokens_per_batch
    )
    for number, why in reading.dropped:
        raise Refused(f"prompt {number}: {why}: mend it or leave it out")
    if reading.unknown_words:
        warn(f"{reading.unknown_words} words of the prompts are unknown to the tokenizer", stacklevel=2)
    if reading.note:
        warn(reading.note, stacklevel=2)
    (states,) = reading.states.values()
    return states


def instances_as_groups(
    tokenizer: PreTrainedTokenizerBase,
    instances: Sequence[HasPrompts],
    *,
    template: str = "{instruction} {input}",
    answer: str = " {output}",
    text: Callable[[HasPrompts], str] | None = None,
    answers_only: bool = False,
) -> tuple[list[Group], np.ndarray]:
    """Instances by instruction, their outputs as targets, ready to train on or to read; and, for each instance of the
    groups in their order, its place in `instances`. The branch ends with the last token of the input; where `text`
    makes the prompt of an instance, with the last token of that. `answers_only` is what a group makes of it."""
    if not instances:
        return [], np.empty(0, dtype=np.int64)
    pairs = [(i.instruction, i.input) for i in instances]
    if text is not None:
        pairs, template = [("", text(i)) for i in instances], "{input}"
    answers = ["" if i.output is None else answer.replace("{output}", i.output) for i in instances]
    rows = tokenise(tokenizer, pairs, template=template, answers=answers)
    members: dict[str, list[int]] = {}
    for number, instance in enumerate(instances):
        members.setdefault(instance.instruction, []).append(number)
    groups = []
    for numbers in members.values():
        split = [(rows[i][0][: rows[i][1] + 1], rows[i][0][rows[i][1] + 1 :]) for i in numbers]
        group = group_rows([fed for fed, _ in split], [target for _, target in split])
        groups.append(replace(group, answers_only=answers_only))
    return groups, np.array([i for numbers in members.values() for i in numbers], dtype=np.int64)
