"""One loop that yields epochs. What happens in an epoch depends on the network before it, the seed and the epoch's
number, and on nothing else: a run that is stopped at an epoch's end and continued gives the same bytes as one that
never stopped.
"""

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from warnings import warn

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nucleate.files import write_whole
from nucleate.model.finite import stop_if_diverged
from nucleate.model.packed_pass import batch_loss, check_positions, packing_is_exact, where_it_runs
from nucleate.model.prefix_tree import Group, PackedBatch, pack, plain
from nucleate.reading import read_tensors, refusing
from nucleate.refusal import Refused
from nucleate.streams import stream

PACKINGS = ("rows", "tree")


@dataclass(frozen=True)
class Epoch:
    """One pass over the training instances."""

    number: int  # from 1
    loss: float  # mean over all predicted tokens in nats, with dropout, while the network changed
    seconds: float  # wall time inside optimiser steps, the making of batches included


def train(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Group],
    *,
    epochs: int,
    first_epoch: int = 1,
    batch: int = 65,
    learning_rate: float,
    max_gradient_norm: float = 1.0,
    packing: str,
    seed: int,
    dtype: str = "float32",
) -> Iterator[Epoch]:
    """Train from `first_epoch` to `epochs`, yielding after each; between epochs the caller may measure, save, or stop.

    `groups` holds the training instances by instruction. The learning rate falls along a cosine to 0 over all steps
    of all `epochs`, as a function of the step alone. `dtype="bfloat16"` computes in bfloat16 and keeps weights in
    float32. A loss or gradient that is not finite stops the run."""
    if packing not in PACKINGS:
        raise Refused(f"training.packing {packing!r} is unknown: take one of {', '.join(PACKINGS)}")
    if dtype not in ("float32", "bfloat16"):
        raise Refused(f"dtype {dtype!r} cannot be trained in: take float32 or bfloat16")
    if not groups:
        raise Refused("there are no instances to train on: the data need a training split")
    check_positions(model, groups)
    # Rows drawn one by one share nothing, not even dropout; they are packed only to do without padding.
    alone = [g.only([b]) for g in groups for b in range(len(g.branches))] if packing == "rows" else []
    units = alone or list(groups)
    branches = [len(g.branches) for g in groups]
    collate: Callable[[Sequence[Group]], PackedBatch] = pack
    if not packing_is_exact(model, units):
        warn(f"{type(model).__name__} does not keep packed instances apart: trained on plain padded rows", stacklevel=2)
        collate = plain
    device, precision = where_it_runs(model)
    parameters = [p for p in model.parameters() if p.requires_grad]
    steps = len(order(branches, packing=packing, batch=batch, seed=seed, epoch=1))
    was_training = model.training
    try:
        for epoch in range(first_epoch, epochs + 1):
            model.train()
            step, seconds, predicted = (epoch - 1) * steps, 0.0, 0.0
            total = torch.zeros((), dtype=torch.float64, device=device)  # of losses
            health = torch.zeros_like(total)  # of gradient norms: finite as long as every one was
            with _randomness(stream(seed, "dropout", epoch), device):
                for numbers in order(branches, packing=packing, batch=batch, seed=seed, epoch=epoch):
                    began = time.perf_counter()
                    for settings in optimizer.param_groups:
                        settings["lr"] = cosine(step, steps * epochs, learning_rate)
                    rows = collate([units[i] for i in numbers]).to(device, precision)
                    with torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext():
                        loss = batch_loss(model, rows)
                    loss.backward()
                    health += torch.nn.utils.clip_grad_norm_(parameters, max_gradient_norm, foreach=True)
                    total += loss.detach() * rows.predicted
                    if device.type == "cpu":  # elsewhere looking at a number stalls the device: once an epoch
                        stop_if_diverged(total + health, epoch, step)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    predicted += rows.predicted
                    step += 1
                    seconds += time.perf_counter() - began
                began = time.perf_counter()
                stop_if_diverged(total + health, epoch, step)  # waits for the device
                seconds += time.perf_counter() - began
            yield Epoch(epoch, total.item() / predicted, seconds)
    finally:
        model.train(was_training)


def order(branches: Sequence[int], *, packing: str, batch: int, seed: int, epoch: int) -> list[np.ndarray]:
    """The batches of an epoch, a pure function of (seed, epoch). `branches` holds how many instances each group has.

    `tree`: numbers of groups, whole instructions at random, as many as make about `batch` instances (13 of five at 65).
    `rows`: numbers of instances, group after group, drawn one by one. The last batch holds what is left."""
    rng = np.random.default_rng(stream(seed, "order", packing, epoch))
    if packing == "tree":
        count, size = len(branches), max(1, int(batch * len(branches) // sum(branches)))
    else:
        count, size = sum(branches), batch
    shuffled = rng.permutation(count)
    return [shuffled[first : first + size] for first in range(0, count, size)]


def cosine(step: int, steps: int, peak: float) -> float:
    """Learning rate of a step counted from 0: `peak` at first, 0 after the last."""
    return peak * (1 + math.cos(math.pi * step / steps)) / 2


def make_optimizer(model: nn.Module, *, learning_rate: float, weight_decay: float = 0.01) -> torch.optim.AdamW:
    """AdamW with torch's betas; decay on all parameters. Fused into one kernel where the device has it."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    fused = all(p.device.type in ("cpu", "cuda") and p.is_floating_point() for p in parameters)
    return torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=weight_decay, fused=fused)


def weights(model: nn.Module) -> dict[str, Tensor]:
    """A copy of all parameters and persistent buffers by name, tied ones once."""
    return {name: tensor.detach().clone() for name, tensor in _own(model).items()}


def save_state(
    path: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    best: Mapping[str, Tensor] | None = None,
    **scalars: Any,
) -> None:
    """All that training needs to go on: one safetensors file, there whole or not at all. `best` may hold the weights
    of the best epoch so far (see `weights`); `scalars` is anything that JSON holds."""
    tensors = {f"weights/{name}": tensor.detach() for name, tensor in _own(model).items()}
    tensors |= {f"best/{name}": tensor for name, tensor in (best or {}).items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer/{key}/{name}"] = torch.as_tensor(value).detach()
    # A single key: safetensors writes several in no fixed order, and equal states shall be equal bytes.
    metadata = {"scalars": json.dumps(scalars, sort_keys=True, allow_nan=False)}
    whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
    write_whole(path, lambda beside: save_file(whole, beside, metadata=metadata), previous=previous_of(path))


def previous_of(path: Path) -> Path:
    """Where the state lies that was saved before the one in `path`."""
    return path.with_stem(f"{path.stem}.previous")


def read_state(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors that `save_state` wrote, and the scalars."""
    tensors, told = read_tensors(path, "start again with --overwrite")
    with refusing(f"{path} is no training state", "start again with --overwrite"):
        scalars = dict(json.loads(told["scalars"]))
    # Copies, for the file is replaced later, and Windows replaces none that is still mapped.
    return {name: tensor.clone() for name, tensor in tensors.items()}, scalars


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Put network and optimiser back where `save_state` saw them. Returns the scalars, and the best weights as `best`
    where there are some. Networks of another shape are refused before anything changes."""
    stored, scalars = read_state(path)
    own = _own(model)
    found = {name.removeprefix("weights/"): t for name, t in stored.items() if name.startswith("weights/")}
    shapes = {name: tuple(t.shape) for name, t in own.items()}
    there = {name: tuple(t.shape) for name, t in found.items()}
    if shapes != there:
        odd = sorted(n for n in shapes.keys() | found.keys() if shapes.get(n) != there.get(n))
        raise Refused(f"{path}: belongs to another network ({', '.join(odd[:3])} differ): start again")
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(found[name])
    names = {parameter: name for name, parameter in model.named_parameters()}
    state, number = {}, 0
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            ending = f"/{names[parameter]}"
            moments = {
                name.removeprefix("optimizer/").removesuffix(ending): tensor
                for name, tensor in stored.items()
                if name.startswith("optimizer/") and name.split("/", 2)[2] == names[parameter]
            }
            if moments:
                state[number] = moments
            number += 1
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    best = {name.removeprefix("best/"): tensor for name, tensor in stored.items() if name.startswith("best/")}
    return scalars | ({"best": best} if best else {})


def _own(model: nn.Module) -> dict[str, Tensor]:
    kept = model.state_dict().keys()
    buffers = {name: tensor for name, tensor in model.named_buffers() if name in kept}
    return dict(model.named_parameters()) | buffers  # both leave out the second name of what is tied


@contextmanager
def _randomness(seed: int, device: torch.device) -> Iterator[None]:
    """Inside, torch's dropout follows `seed`; afterwards the caller's random state is as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield
