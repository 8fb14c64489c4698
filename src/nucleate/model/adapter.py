"""A LoRA adapter: a frozen network answers otherwise by what low-rank layers add beside its own linear ones.

Hooks add it, so that the network stays the ordinary one: rows that are not adapted keep every bit, and nothing is left
of it where the hooks are gone. Its files are those of peft, which reads what is written here and the other way round.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from nucleate.files import make_folders
from nucleate.model.finite import stop_if_diverged
from nucleate.model.packed_pass import check_positions, evaluate, packing_is_exact, token_losses, where_it_runs
from nucleate.model.patching import blocks_of
from nucleate.model.prefix_tree import Group, pack, plain
from nucleate.model.switch import answer_places
from nucleate.model.training import cosine, make_optimizer, order
from nucleate.reading import read_json, read_tensors, refusing
from nucleate.refusal import Refused

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Rows = Tensor | bool  # (row,) bool: which rows are adapted; True or False for all
_STEM = "base_model.model."  # with which peft begins the name of each tensor
_AS_HERE = {"use_dora": False, "bias": "none", "modules_to_save": None, "rank_pattern": {}, "alpha_pattern": {}}


class Adapter(nn.Module):
    """Beside each layer of `shapes` (name in the network -> width in, width out) two matrices of a low rank, which add
    `scale · up(down(states))`: nothing before they have learnt."""

    def __init__(
        self, shapes: Mapping[str, tuple[int, int]], *, rank: int, alpha: float | None = None, seed: int = 0
    ) -> None:
        super().__init__()
        self.names, self.rank, self.alpha = tuple(shapes), rank, 2.0 * rank if alpha is None else alpha
        self.scale = self.alpha / rank
        self.downs, self.ups = nn.ParameterList(), nn.ParameterList()
        rng = torch.Generator().manual_seed(seed)
        for inner, outer in shapes.values():
            down = torch.empty(rank, inner).uniform_(-(inner**-0.5), inner**-0.5, generator=rng)  # as peft begins
            self.downs.append(nn.Parameter(down))
            self.ups.append(nn.Parameter(torch.zeros(outer, rank)))

    def added(self, number: int, states: Tensor) -> Tensor:
        """What is added to the output of the layer of that number."""
        down, up = self.downs[number], self.ups[number]
        return (states.to(down) @ down.T @ up.T) * self.scale

    def attach(self, network: nn.Module, rows: Callable[[], Rows]) -> list[Any]:
        """Hooks on the network's layers, each of which asks `rows` whom it is for; their handles."""
        parts = dict(network.named_modules())
        missing = [name for name in self.names if name not in parts]
        if missing:
            raise Refused(f"the adapter is for another network: {missing[0]} is not in {type(network).__name__}")
        hooks = (partial(self._hook, number, rows) for number in range(len(self.names)))
        return [parts[name].register_forward_hook(hook) for name, hook in zip(self.names, hooks, strict=True)]

    def _hook(self, number: int, rows: Callable[[], Rows], module: nn.Module, arguments: Any, output: Any) -> Any:
        which, states = rows(), arguments[0]
        if isinstance(which, bool):
            return output + self.added(number, states).to(output) if which else None
        places = which.nonzero()[:, 0].to(states.device)
        if not len(places):
            return None
        own = states.reshape(len(which), -1, states.shape[-1])[places]  # some families hand over (row x place, width)
        new = output.reshape(len(which), -1, output.shape[-1]).clone()
        new[places] += self.added(number, own).to(new)
        return new.reshape(output.shape)

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        """Inside, every row of the network goes through the adapter."""
        handles = self.attach(network, lambda: True)
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def save(self, folder: Path, *, network: nn.Module, base: str) -> None:
        """Into a folder as peft's `save_pretrained` writes it. `base` is the path or hub id of the network."""
        make_folders(folder)
        pairs = zip(self.names, self.downs, self.ups, strict=True)
        tensors = {
            f"{_STEM}{name}.lora_{letter}.weight": one.detach().cpu().contiguous()
            for name, *both in pairs
            for letter, one in zip("AB", both, strict=True)
        }
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        parts = dict(network.named_modules())
        told = {
            **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": base, "inference_mode": True},
            **{
                "r": self.rank,
                "lora_alpha": self.scale * self.rank,
                "lora_dropout": 0.0,
                "target_modules": sorted(self.names),
            },
            **{"fan_in_fan_out": any(isinstance(parts[name], Conv1D) for name in self.names), **_AS_HERE},
        }
        (folder / CONFIG).write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, folder: str | Path) -> "Adapter":
        """Of a folder that `save` or peft has written; refused where it does what is not done here."""
        folder = Path(folder).expanduser()
        remedy = "give the folder that peft's save_pretrained made"
        if not (folder / CONFIG).is_file():
            raise Refused(f"{folder}: is no adapter: {remedy}")
        told, (tensors, _) = read_json(folder / CONFIG, remedy), read_tensors(folder / WEIGHTS, remedy)
        with refusing(f"{folder} holds no adapter that fits its {CONFIG}", remedy):
            return cls._of(folder, told, tensors)

    @classmethod
    def _of(cls, folder: Path, told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> "Adapter":
        other = [name for name, plainly in _AS_HERE.items() if (told.get(name) or plainly) != plainly]
        ends = (".lora_A.weight", ".lora_B.weight")
        if told.get("peft_type") != "LORA" or other or not all(name.endswith(ends) for name in tensors):
            why = other[0] if other else f"peft_type {told.get('peft_type')}"
            raise Refused(
                f"{folder}: only plain LoRA of linear layers is read ({why}): merge it into a network instead"
            )
        names = sorted(name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0]))
        shapes = {
            name.removeprefix(_STEM): (tensors[name + ends[0]].shape[1], tensors[name + ends[1]].shape[0])
            for name in names
        }
        made = cls(shapes, rank=told["r"], alpha=told["lora_alpha"])
        made.scale = told["lora_alpha"] / (told["r"] ** (0.5 if told.get("use_rslora") else 1))
        with torch.no_grad():
            for name, down, up in zip(names, made.downs, made.ups, strict=True):
                down.copy_(tensors[name + ends[0]])
                up.copy_(tensors[name + ends[1]])
        return made


def linear_layers(network: Any) -> dict[str, tuple[int, int]]:
    """name -> widths in and out, of every linear layer inside the blocks of a causal language model."""
    inside = set(blocks_of(network).modules())
    found: dict[str, Any] = {
        name: tuple(part.weight.shape if isinstance(part, Conv1D) else part.weight.shape[::-1])
        for name, part in network.named_modules()
        if part in inside and isinstance(part, nn.Linear | Conv1D)
    }
    if not found:
        raise Refused(
            f"{type(network).__name__} has no linear layer in its blocks: no adapter fits, take --expert head"
        )
    return found


def tune(
    network: nn.Module,
    adapter: Adapter,
    groups: Sequence[Group],
    *,
    steps: int,
    batch: int,
    learning_rate: float,
    seed: int,
) -> Iterator[int]:
    """Tune an adapter on the answers of these groups, every token of each, yielding the number of each step that is
    behind it. Steps see whole instructions, about `batch` instances of them; the network itself learns nothing."""
    check_positions(network, groups)
    device, dtype = where_it_runs(network)
    collate = pack if packing_is_exact(network, groups) else plain
    optimizer, branches, step = (
        make_optimizer(adapter, learning_rate=learning_rate),
        [len(g.branches) for g in groups],
        0,
    )
    frozen = [one for one in network.parameters() if one.requires_grad]
    was_training = network.training
    network.requires_grad_(False).eval()
    try:
        for epoch in range(1, steps + 1):
            for numbers in order(branches, packing="tree", batch=batch, seed=seed, epoch=epoch):
                for settings in optimizer.param_groups:
                    settings["lr"] = cosine(step, steps, learning_rate)
                chosen = [groups[number] for number in numbers]
                asked = sum(len(group.target(b)) for group in chosen for b in range(len(group.branches)))
                with adapter.on(network):
                    for group in chosen:  # one by one, so that a long one needs no more memory than when it is read
                        rows = collate([group]).to(device, dtype)
                        logits, _ = evaluate(network, rows)
                        kept = torch.from_numpy(answer_places(group, rows.target_instance))
                        losses = token_losses(logits, rows)[kept] * rows.target_weight[kept]
                        (losses.sum() / asked).backward()  # what is not finite in it is not in its gradient either
                stop_if_diverged(torch.nn.utils.clip_grad_norm_(adapter.parameters(), 1.0), epoch, step)
                optimizer.step()
                optimizer.zero_grad()
                step += 1
                yield step
                if step == steps:
                    return
    finally:
        network.train(was_training)
        for one in frozen:
            one.requires_grad_(True)
