"""A frozen network that answers otherwise where a switch says so (§4.2): any causal language model of transformers.

A switch looks once at each text, at the last token of its prompt, and what it decides holds for all that is generated
after it. Texts for which every switch says no get the network's own logits, bit for bit: nothing is added to them.
What answers behind a switch is a second head, whose logits are added, or an adapter, through which the whole text then
goes: its prompt is read once more. Hooks do all of it, so that the network stays the ordinary one, and `turn_off` is
all it takes to have it back.
"""

import inspect
import json
import re
import weakref
from collections.abc import Mapping
from contextlib import AbstractContextManager
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nucleate.files import file_hash
from nucleate.model.adapter import CONFIG, WEIGHTS, Adapter, Rows
from nucleate.model.networks import save_network
from nucleate.model.own_head import parts_of
from nucleate.model.packed_pass import text_config
from nucleate.model.patching import blocks_of
from nucleate.model.places import replacing
from nucleate.model.series import place_of
from nucleate.model.switch import Head, Switch
from nucleate.redirecting.stored import (
    DESCRIPTION,
    hashes,
    network_name,
    seal,
)
from nucleate.refusal import Refused

TAUGHT, CARD = "switch.safetensors", "README.md"
_OURS = {DESCRIPTION, TAUGHT, CARD, "network"}  # what a switched model's folder holds, beside folders of adapters
_CACHES = ("past_key_values", "cache_params")
Expert = Head | Adapter


class SwitchedModel(nn.Module):
    """A network with switches and behind each a second head or an adapter; whatever else is asked of it, the network
    answers itself.

    Use it as the network: `model(**inputs)`, `model.generate(**inputs)`. A text begins where nothing is cached: the
    decision is made at its last token that is no padding (inside `generate`: the prompt's) and kept for the tokens that
    follow through the same cache. Of several switches that say yes the last one taught answers. `decided` tells which
    of the rows last seen are switched, `by` the number of the switch of each, -1 for none."""

    by: Tensor | None  # (row,) int

    def __init__(
        self, network: Any, tokenizer: Any, switch: Switch | None = None, expert: Expert | None = None
    ) -> None:
        super().__init__()
        body, top = parts_of(network)
        self.network, self.tokenizer = network, tokenizer
        self.switches, self.experts = nn.ModuleList(), nn.ModuleList()
        self._parts: list[tuple[Switch, Expert]] = []  # the same
        self.facts: list[dict[str, Any]] = []  # of each switch: what it was taught, for its description
        self.enabled = True
        self.by = None
        self._said: dict[int, Tensor] = {}  # switch -> (row,) bool, while a text is decided
        self._prompt: int | None = None  # tokens of the prompt, inside `generate`
        self._cache: Any = None  # a weak reference to the cache of the text that was decided
        self._mask: Tensor | None = None
        self._before = 0  # tokens of the text that are cached
        self._handed: Any = None  # what the head makes logits of
        self._fresh = self._repeated = False  # was it decided in this pass; is this the one through an adapter
        self._empty: dict[str, Any] = {}  # caches as they were before the text was read
        self._parameters_of_forward = inspect.signature(type(network).forward)
        self._device = top.weight.device
        self._depth = text_config(network).num_hidden_layers
        network.register_forward_pre_hook(self._begin, with_kwargs=True)
        body.register_forward_hook(self._decide)
        top.register_forward_pre_hook(self._take)
        network.register_forward_hook(self._answer, with_kwargs=True)
        if switch is not None and expert is not None:
            self.add(switch, expert)

    def add(self, switch: Switch, expert: Expert, facts: Mapping[str, Any] | None = None) -> None:
        """One more redirection, before all earlier ones. `facts` are kept in its description when it is saved."""
        if switch.layer is not None and switch.layer != self._depth:
            block = blocks_of(self.network)[switch.layer]
            block.register_forward_pre_hook(partial(self._look, len(self.switches)), with_kwargs=True)
        self.switches.append(switch.to(self._device))
        self.experts.append(expert.to(self._device))
        if isinstance(expert, Adapter):
            expert.attach(self.network, partial(self._rows_of, len(self._parts)))
        self._parts.append((switch, expert))
        self.facts.append(dict(facts or {}))

    @property
    def switch(self) -> Switch:
        """The one taught last."""
        return self._parts[-1][0]

    @property
    def expert(self) -> Expert:
        """What answers behind that."""
        return self._parts[-1][1]

    @property
    def layers(self) -> set[int]:
        """Those that its switches read."""
        return {self._layer(switch) for switch, _ in self._parts}

    @property
    def decided(self) -> Tensor | None:
        """(row,) bool"""
        return None if self.by is None else self.by >= 0

    def decide(self, ends: Mapping[int, Tensor]) -> Tensor:
        """(row,) the number of the switch that each row's prompt is answered behind, -1 for none, from the states of
        its last token by layer."""
        said = {
            number: one.says_yes(ends[self._layer(one)].to(self._device)) for number, (one, _) in enumerate(self._parts)
        }
        return _last_yes(said, len(next(iter(ends.values()))))

    def added(self, states: Tensor, by: Tensor, logits: Tensor) -> Tensor:
        """The logits of these last-layer states with the heads behind the switches of these numbers. What an adapter
        answers cannot be made of them: it is read inside `through`."""
        new = logits.clone() if self._parts else logits
        for number, (_, expert) in enumerate(self._parts):
            rows = (by == number).nonzero()[:, 0]
            if isinstance(expert, Head):
                with torch.no_grad():
                    new[rows] += expert(states[rows].to(self._device)).to(new)
        return new

    def adapted(self, by: Tensor) -> list[int]:
        """Which of these numbers stand for adapters, each once."""
        return [int(number) for number in by.unique() if number >= 0 and isinstance(self.experts[number], Adapter)]

    def through(self, number: int) -> AbstractContextManager[None]:
        """Inside, the network alone goes through the adapter of that number. To be turned off before."""
        return self.experts[number].on(self.network)  # type: ignore[operator]

    def _layer(self, switch: Switch) -> int:
        return self._depth if switch.layer is None else int(switch.layer)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

    def push_to_hub(self, *arguments: Any, **named: Any) -> None:
        """Refused, since it would be the network's own, without any switch."""
        raise Refused(
            "a switched model is its folder: save it with copy=True, or align with --copy, and upload that, as "
            "HfApi().upload_folder(repo_id=…, folder_path='RUN/model')"
        )

    def turn_off(self) -> None:
        """From now on the network answers as it always did."""
        self.enabled = False

    def turn_on(self) -> None:
        self.enabled = True

    def forward(self, *arguments: Any, **named: Any) -> Any:
        return self.network(*arguments, **named)

    def generate(self, inputs: Tensor | None = None, *arguments: Any, **named: Any) -> Any:
        """The network's own `generate`, under the decision made at the last token of each prompt."""
        given = (inputs, named.get("input_ids"), named.get("inputs_embeds"), named.get("attention_mask"))
        self._prompt = max((one.shape[1] for one in given if one is not None), default=1)
        self.by, self._cache = None, None
        try:
            return self.network.generate(inputs, *arguments, **named)
        finally:
            self._prompt = None

    def save(
        self,
        folder: str | Path,
        *,
        network: str | Path,
        revision: str | None = None,
        copy: bool = False,
        card: str = "",
    ) -> None:
        """Write a folder that `load_switched` reads: switches and heads as safetensors, adapters as folders of peft's,
        the card as README.md, and the network by the path or hub id that it was loaded from, with the hashes of its
        files, or as a `copy`.

        An earlier switched model there is replaced, and nothing else."""
        folder, local = Path(folder), Path(network).expanduser()
        if folder.exists() and not (folder / DESCRIPTION).is_file():
            raise Refused(f"{folder} exists and holds no switched model: name a new folder")
        if not copy and local.exists() and local.resolve().is_relative_to(folder.resolve()):
            raise Refused(f"{network} lies in {folder}, which will be replaced: name another folder, or copy=True")
        found = {inside.name for inside in folder.iterdir()} if folder.exists() else set()
        others = {name for name in found - _OURS if not re.fullmatch(r"adapter\d*", name)}
        if others:
            raise Refused(f"{folder} also holds {min(others)}, which is not ours to replace: name a new folder")
        with replacing(folder) as new:
            taught = {name: tensor.contiguous() for name, tensor in self._taught().items()}
            save_file(taught, new / TAUGHT)
            if copy:
                save_network(self.network, self.tokenizer, new / "network")
            place = new / "network" if copy else place_of(network, revision)
            path = "network" if copy else str(local.resolve()) if local.exists() else str(network)
            files = [TAUGHT]
            for number, expert in enumerate(self.experts):
                if isinstance(expert, Adapter):
                    expert.save(new / stem_of("adapter", number), network=self.network, base=path)
                    files += [f"{stem_of('adapter', number)}/{name}" for name in (CONFIG, WEIGHTS)]
            whole = {
                "format": 3,
                "switches": [
                    {
                        **{"kind": switch.kind, "width": switch.mean.numel(), "layer": switch.layer},
                        **{"threshold": switch.threshold, "rank": rank_of(expert)},
                        **{"expert": "adapter" if isinstance(expert, Adapter) else "head", **facts},
                    }
                    for (switch, expert), facts in zip(self._parts, self.facts, strict=True)
                ],
                "network": {
                    "name": network_name(network),
                    "path": path,
                    "copied": copy,
                    "revision": None if copy else revision or (None if local.exists() or place is None else place.name),
                    "dtype": str(next(self.network.parameters()).dtype).removeprefix("torch."),
                    "files": hashes(place),
                },
                "files": {name: file_hash(new / name) for name in files},
            }
            text = json.dumps({**whole, "seal": seal(whole)}, indent=2, ensure_ascii=False) + "\n"
            (new / DESCRIPTION).write_text(text, encoding="utf-8")
            (new / CARD).write_text(card, encoding="utf-8")

    def _taught(self) -> dict[str, Tensor]:
        parts = {
            stem_of(part, number): module
            for part, modules in (("switch", self.switches), ("head", self.experts))
            for number, module in enumerate(modules)
            if not isinstance(module, Adapter)  # which has files of its own
        }
        return {f"{stem}.{key}": value for stem, module in parts.items() for key, value in module.state_dict().items()}

    # --- hooks, in the order in which they are called -------------------------------------------------------------

    def _begin(self, network: Any, arguments: Any, named: Any) -> None:
        """What the network is about to be fed."""
        given = self._parameters_of_forward.bind_partial(network, *arguments, **named).arguments
        given |= given.pop("kwargs", {})
        if self.enabled and given.get("labels") is not None:
            raise Refused("a switched model gives no loss for labels: compute it from the logits, or turn it off first")
        mask, cache = given.get("attention_mask"), given.get("past_key_values")
        self._mask = mask if isinstance(mask, Tensor) and mask.ndim == 2 else None
        self._before = 0 if cache is None else int(cache.get_seq_length())
        goes_on = self._before > 0 and self._cache is not None and cache is self._cache()
        if self._repeated:
            return
        if self._prompt is None and not goes_on:
            self.by = None
        self._said, self._fresh = {}, False
        if (
            self.enabled
            and self.by is None
            and not self._before
            and any(isinstance(one, Adapter) for one in self.experts)
        ):
            self._empty = {name: deepcopy(given[name]) for name in _CACHES if given.get(name) is not None}

    def _look(self, number: int, block: nn.Module, arguments: Any, named: Any) -> None:
        """What a block is handed is what the layer before it puts out."""
        states = arguments[0] if arguments else named["hidden_states"]
        if (ends := self._ends(states)) is not None:
            self._said[number] = self._parts[number][0].says_yes(ends.to(self._device, torch.float32))

    def _decide(self, body: nn.Module, arguments: Any, output: Any) -> None:
        ends = self._ends(output[0])
        if ends is None:
            return
        for number, (switch, _) in enumerate(self._parts):
            if self._layer(switch) == self._depth:
                self._said[number] = switch.says_yes(ends.to(self._device, torch.float32))
        self.by, self._fresh = _last_yes(self._said, len(ends)), True

    def _ends(self, states: Tensor) -> Tensor | None:
        """(row, width) at the last token of the prompt, unless that lies behind us or is still to come."""
        length = states.shape[1]  # (row, place, width)
        prompt = self._prompt or self._before + length
        if not self.enabled or self.by is not None or not self._before < prompt <= self._before + length:
            return None
        place = torch.full((len(states),), prompt - 1 - self._before, device=states.device)
        if self._mask is not None and self._mask.shape[1] >= prompt:
            real = self._mask[:, self._before : prompt].to(states.device) != 0
            place -= real.flip(1).int().argmax(1)
        return states[torch.arange(len(states), device=states.device), place]

    def _take(self, top: nn.Module, arguments: Any) -> None:
        self._handed = arguments[0]

    def _rows_of(self, number: int) -> Rows:
        """Which rows go through the adapter of that number."""
        return self.by == number if self.enabled and self.by is not None else False

    def _answer(self, network: Any, arguments: Any, named: Any, output: Any) -> Any:
        """Read the text once more where an adapter was chosen; else add the second head to the logits of the rows that
        are switched, at every place."""
        handed, self._handed = self._handed, None  # (row, place, width)
        if self._fresh and self.by is not None and self.adapted(self.by):
            return self._read_again(arguments, named)
        self._fresh = False
        cache = getattr(output, "past_key_values", None)
        self._cache = None if cache is None else weakref.ref(cache)
        if not self.enabled or self.by is None or not (self.by >= 0).any():
            return None
        named = hasattr(output, "logits")
        logits = (output.logits if named else output[0]).clone()
        for number, (_, expert) in enumerate(self._parts):
            rows = (self.by == number).nonzero()[:, 0]
            if len(rows) and isinstance(expert, Head):
                own = handed[rows.to(handed.device)].to(self._device, torch.float32)
                logits[rows.to(logits.device)] += expert(own).to(logits)
        if not named:
            return (logits, *output[1:])
        output.logits = logits
        return output

    def _read_again(self, arguments: Any, named: Any) -> Any:
        """The same pass under the decision just made, into caches as they were before it."""
        self._fresh = False
        if self._before:
            raise Refused("an adapter reads a prompt as a whole: hand it over in one piece, with nothing of it cached")
        given = self._parameters_of_forward.bind_partial(self.network, *arguments, **named).arguments
        for name, empty in self._empty.items():
            ((given | given.get("kwargs", {}))[name]).__dict__ = deepcopy(empty).__dict__
        self._repeated = True
        try:
            return self.network(*arguments, **named)
        finally:
            self._repeated = False


def _last_yes(said: Mapping[int, Tensor], rows: int) -> Tensor:
    """(row,) the highest number of those that said yes, -1 where none did."""
    by = torch.full((rows,), -1)
    for number in sorted(said):
        by[said[number].cpu()] = number
    return by


def stem_of(part: str, number: int) -> str:
    """How the names of its tensors begin; those of the first one as when there was but one."""
    return f"{part}{number or ''}"


def rank_of(expert: Expert) -> int | None:
    """None of a head as wide as the whole one."""
    if isinstance(expert, Adapter):
        return expert.rank
    return None if expert.down is None else expert.down.out_features
