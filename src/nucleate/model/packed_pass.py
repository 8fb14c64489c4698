"""One forward pass of a network over a packed batch: logits, losses and states, and whether they are those that the
network has for plain rows."""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nucleate.model.prefix_tree import SHORTEST_ROW, Group, PackedBatch, instance_losses, pack, plain
from nucleate.refusal import Refused

_WITHOUT_EMBEDDING = ("mamba", "mamba2", "falcon_mamba")  # whose hidden states begin after the first block


def batch_loss(model: nn.Module, batch: PackedBatch) -> Tensor:
    """Mean negative log-likelihood, in nats, of every token after the first of every instance, input and output
    alike: what Hugging Face's `labels` give on plain rows. A scalar that carries gradients."""
    if not batch.predicted:
        raise ValueError("this batch predicts nothing: every instance is a single token")
    logits, _ = evaluate(model, batch)
    return (token_losses(logits, batch) * batch.target_weight).sum() / batch.predicted


def token_losses(logits: Tensor, batch: PackedBatch) -> Tensor:
    """(target,) negative log-likelihood of each target, in float32."""
    logits = logits.float()
    return logits.logsumexp(-1)[batch.target_row] - logits[batch.target_row, batch.target_token]


def evaluate(model: nn.Module, batch: PackedBatch, *, hidden: bool = False) -> tuple[Tensor, tuple[Tensor, ...]]:
    """One forward pass: logits (asked, vocabulary) at `batch.logit_at` and, on request, all hidden states (row,
    place, width).

    The head runs on the places asked for, by the network's own code (some families scale or cap their logits): a hook
    hands it a shorter last layer. Where that is not how the family works, the logits of all places are computed and
    picked from."""
    arguments: dict[str, Any] = {"input_ids": batch.tokens, "attention_mask": batch.mask, "use_cache": False}
    table = None
    if batch.packed and _sees_all(model):
        raise NotImplementedError(
            f"{type(model).__name__} sees a whole row at once: a mask that hides what follows lies"
        )
    if takes_positions(model):
        arguments["position_ids"] = batch.positions
    elif batch.packed and (table := _position_table(model)) is None:
        raise NotImplementedError(f"{type(model).__name__} takes no position_ids, so instances cannot share tokens")
    if hidden:
        arguments["output_hidden_states"] = True
    with _only_at(model, batch.logit_at) as shortened, _placed(table, batch.positions):
        out = model(**arguments)
    logits = out.logits[0] if shortened else out.logits.flatten(0, 1)[batch.logit_at.to(out.logits.device)]
    return logits, _layers(model, batch, out.hidden_states) if hidden else ()


def _sees_all(model: nn.Module) -> bool:
    """An encoder. Its fresh weights let so little through that a comparison of states might not notice."""
    return type(model).__name__.endswith("ForMaskedLM")


def _layers(model: Any, batch: PackedBatch, hidden: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The embedding first and then what each block puts out, whatever the family returns: Mamba and its kin leave the
    embedding out and give the last layer twice, before and after the final norm."""
    if text_config(model).model_type not in _WITHOUT_EMBEDDING:
        return tuple(hidden)
    return (model.get_input_embeddings()(batch.tokens), *hidden[:-2], hidden[-1])


def packing_is_exact(model: nn.Module, groups: Sequence[Group]) -> bool:
    """Does this network give shared tokens the states and losses that they have in plain rows? Asked of a first row
    as long as any that will be read, with the longest of the texts in it; an error while trying counts as no.

    False for networks whose attention or memory goes by the place in the row: sliding windows shorter than the text,
    ALiBi, state-space models. The tolerance, relative to a state's length, is 1e-4; below float32 it is six units of
    rounding, so in bfloat16 (0.05) the check is a coarse one."""
    device, dtype = where_it_runs(model)
    tolerance = max(1e-4, 6 * torch.finfo(dtype).eps)
    chosen = _sample(groups)
    shown = [sorted({0, len(g.branches) // 2, len(g.branches) - 1, _longest_branch(g)}) for g in chosen]
    try:
        with at_rest(model):
            together, losses = _ends(model, pack(chosen, rows=1).to(device, dtype))
            alone = plain([g.only(b) for g, b in zip(chosen, shown, strict=True)])
            apart, expected = _ends(model, alone.to(device, dtype))
        starts = np.cumsum([0, *(len(g.branches) for g in chosen[:-1])])
        same = np.concatenate([first + np.array(b) for first, b in zip(starts, shown, strict=True)])
        together, losses = together[:, same], losses[same]
        size = apart.norm(dim=-1).clamp(min=torch.finfo(torch.float32).tiny)
        worst = ((together - apart).norm(dim=-1) / size).max().item()  # (layer, instance, width) -> (layer, instance)
        gap = float((np.abs(losses - expected) / np.maximum(expected, 1)).max())
        return worst <= tolerance and gap <= tolerance  # a NaN on either side compares false
    except Exception:
        return False


def check_positions(model: nn.Module, groups: Sequence[Group]) -> None:
    """Refuse instances with more tokens than the network has positions for."""
    limit = position_limit(model)
    for number, group in enumerate(groups):
        if limit is not None and group.longest > limit:
            raise Refused(
                f"group {number} has an instance of {group.longest} tokens, the network {limit} positions: "
                "shorten it, or take a network with more"
            )


def position_limit(model: nn.Module) -> int | None:
    """How many tokens a text may have; None where the network sets no limit (state-space models, ALiBi)."""
    config = text_config(model)
    limit = getattr(config, "max_position_embeddings", getattr(config, "max_seq_len", None))
    if not isinstance(limit, int) or limit <= 0:
        return None
    tables = [m for name, m in model.named_modules() if name.endswith("position_embeddings")]
    padding = getattr(tables[0], "padding_idx", None) if tables else None
    return limit if padding is None else limit - padding - 1  # RoBERTa and its kin count from there


def takes_positions(model: Any) -> bool:
    """Can the place of each token in its text be said to this network?"""
    return "position_ids" in _parameters(type(model.get_base_model() if hasattr(model, "get_base_model") else model))


def text_config(model: Any) -> Any:
    """The settings of the language model, where it is one part of several."""
    return model.config.get_text_config()


@contextmanager
def at_rest(model: nn.Module) -> Iterator[None]:
    """Without dropout and gradients; afterwards every part of it is in the mode in which it was."""
    training = [part for part in model.modules() if part.training]
    model.eval()
    try:
        with torch.inference_mode():
            yield
    finally:
        for part in training:
            part.training = True


def where_it_runs(model: nn.Module) -> tuple[torch.device, torch.dtype]:
    """Device of the network's input and precision of its weights."""
    device = next(model.parameters()).device
    return device, next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)


_PARAMETERS: dict[type, frozenset[str]] = {}


def _parameters(kind: type[nn.Module]) -> frozenset[str]:
    if kind not in _PARAMETERS:
        _PARAMETERS[kind] = frozenset(inspect.signature(kind.forward).parameters)
    return _PARAMETERS[kind]


def _position_table(model: nn.Module) -> nn.Module | None:
    """The one part that looks up the place of each token and would be told another, where the network itself would
    not (Marian's decoder)."""
    named = [part for name, part in model.named_modules() if name.rpartition(".")[2] == "embed_positions"]
    return named[0] if len(named) == 1 and "position_ids" in _parameters(type(named[0])) else None


@contextmanager
def _placed(table: nn.Module | None, positions: Tensor) -> Iterator[None]:
    """Inside, the table of positions looks up these."""
    if table is None:
        yield
        return
    handle = table.register_forward_pre_hook(
        lambda module, arguments, named: (arguments, {**named, "position_ids": positions}), with_kwargs=True
    )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _only_at(model: Any, flat: Tensor) -> Iterator[list[bool]]:
    """Inside, the network's body hands its head the last hidden states at these flat indices alone, (1, asked,
    width). What is yielded is empty until that has happened."""
    shortened: list[bool] = []

    def shorten(module: nn.Module, arguments: Any, output: Any) -> Any:
        last = output[0]
        short = last.flatten(0, 1).index_select(0, flat.to(last.device))[None]
        shortened.append(True)
        if isinstance(output, tuple):
            return (short, *output[1:])
        output.last_hidden_state = short
        return output

    body = model.get_decoder() if hasattr(model, "get_decoder") else getattr(model, "base_model", None)
    if body is None or body is model:
        yield shortened
        return
    handle = body.register_forward_hook(shorten)
    try:
        yield shortened
    finally:
        handle.remove()


def _ends(model: nn.Module, batch: PackedBatch) -> tuple[Tensor, np.ndarray]:
    logits, hidden = evaluate(model, batch, hidden=True)
    states = torch.stack([h.flatten(0, 1)[batch.ends.to(h.device)].float().cpu() for h in hidden])
    losses = token_losses(logits, batch).double().cpu().numpy()
    return states, instance_losses(losses, batch)


def _longest_branch(group: Group) -> int:
    return max(range(len(group.branches)), key=lambda b: len(group.fed(b)))


def _sample(groups: Sequence[Group]) -> list[Group]:
    """The group with most tokens, the one with the longest text, and a few that fit beside them: whatever depends on
    the distance between stem and branch, on the length of the text or on the neighbours in the row shows in these."""
    order = sorted(range(len(groups)), key=lambda i: (-groups[i].size, i))
    first = list(dict.fromkeys([order[0], max(range(len(groups)), key=lambda i: groups[i].longest)]))
    room = max(groups[order[0]].size, SHORTEST_ROW)
    chosen = [groups[i] for i in first]
    for i in order[1:]:
        if i not in first and groups[i].size <= room and len(chosen) < 8:
            chosen.append(groups[i])
            room -= groups[i].size
    return chosen
