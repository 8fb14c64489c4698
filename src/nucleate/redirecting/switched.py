"""A frozen network that answers otherwise where a switch says so (§4.2): any causal language model of transformers.

A switch looks once at each text, at the last token of its prompt, and what it decides holds for all that is generated
after it. Texts for which every switch says no get the network's own logits, bit for bit: nothing is added to them.
Hooks do all of it, so that the network stays the ordinary one, and `turn_off` is all it takes to have it back.
"""

import inspect
import json
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from nucleate.files import file_hash
from nucleate.model.networks import load_network, save_network
from nucleate.model.packed_pass import text_config
from nucleate.model.patching import blocks_of
from nucleate.model.places import finish_replacement, looks_local, replacing
from nucleate.model.series import located, place_of
from nucleate.model.switch import Head, Switch
from nucleate.reading import read_tensors, refusing
from nucleate.redirecting.stored import (
    DESCRIPTION,
    OF_A_SWITCH,
    change_of,
    description,
    hashes,
    network_name,
    refuse_download,
    seal,
    switches_in,
)
from nucleate.refusal import Refused

TAUGHT, CARD = "switch.safetensors", "README.md"
_OURS = {DESCRIPTION, TAUGHT, CARD, "network"}  # what a switched model's folder holds


class SwitchedModel(nn.Module):
    """A network with switches and a second head behind each; whatever else is asked of it, the network answers itself.

    Use it as the network: `model(**inputs)`, `model.generate(**inputs)`. A text begins where nothing is cached: the
    decision is made at its last token that is no padding (inside `generate`: the prompt's) and kept for the tokens that
    follow through the same cache. Of several switches that say yes the last one taught answers. `decided` tells which
    of the rows last seen are switched, `by` the number of the switch of each, -1 for none."""

    by: Tensor | None  # (row,) int

    def __init__(self, network: Any, tokenizer: Any, switch: Switch | None = None, head: Head | None = None) -> None:
        super().__init__()
        body, top = parts_of(network)
        self.network, self.tokenizer = network, tokenizer
        self.switches, self.heads = nn.ModuleList(), nn.ModuleList()
        self._parts: list[tuple[Switch, Head]] = []  # the same
        self.facts: list[dict[str, Any]] = []  # of each switch: what it was taught, for its description
        self.enabled = True
        self.by = None
        self._said: dict[int, Tensor] = {}  # switch -> (row,) bool, while a text is decided
        self._prompt: int | None = None  # tokens of the prompt, inside `generate`
        self._cache: Any = None  # a weak reference to the cache of the text that was decided
        self._mask: Tensor | None = None
        self._before = 0  # tokens of the text that are cached
        self._handed: Any = None  # what the head makes logits of
        self._parameters_of_forward = inspect.signature(type(network).forward)
        self._device = top.weight.device
        self._depth = text_config(network).num_hidden_layers
        network.register_forward_pre_hook(self._begin, with_kwargs=True)
        body.register_forward_hook(self._decide)
        top.register_forward_pre_hook(self._take)
        network.register_forward_hook(self._answer)
        if switch is not None and head is not None:
            self.add(switch, head)

    def add(self, switch: Switch, head: Head, facts: Mapping[str, Any] | None = None) -> None:
        """One more redirection, before all earlier ones. `facts` are kept in its description when it is saved."""
        if switch.layer is not None and switch.layer != self._depth:
            block = blocks_of(self.network)[switch.layer]
            block.register_forward_pre_hook(partial(self._look, len(self.switches)), with_kwargs=True)
        self.switches.append(switch.to(self._device))
        self.heads.append(head.to(self._device))
        self._parts.append((switch, head))
        self.facts.append(dict(facts or {}))

    @property
    def switch(self) -> Switch:
        """The one taught last."""
        return self._parts[-1][0]

    @property
    def head(self) -> Head:
        """The one taught last."""
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
        """The logits of these last-layer states behind the switches of these numbers."""
        new = logits.clone() if self._parts else logits
        for number, (_, head) in enumerate(self._parts):
            rows = (by == number).nonzero()[:, 0]
            with torch.no_grad():
                new[rows] += head(states[rows].to(self._device)).to(new)
        return new

    def _layer(self, switch: Switch) -> int:
        return self._depth if switch.layer is None else int(switch.layer)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)

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
        """Write a folder that `load_switched` reads: switches and heads as safetensors, the card as README.md, and the
        network by the path or hub id that it was loaded from, with the hashes of its files, or as a `copy`.

        An earlier switched model there is replaced, and nothing else."""
        folder, local = Path(folder), Path(network).expanduser()
        if folder.exists() and not (folder / DESCRIPTION).is_file():
            raise Refused(f"{folder} exists and holds no switched model: name a new folder")
        if not copy and local.exists() and local.resolve().is_relative_to(folder.resolve()):
            raise Refused(f"{network} lies in {folder}, which will be replaced: name another folder, or copy=True")
        others = {inside.name for inside in folder.iterdir()} - _OURS if folder.exists() else set()
        if others:
            raise Refused(f"{folder} also holds {min(others)}, which is not ours to replace: name a new folder")
        with replacing(folder) as new:
            taught = {name: tensor.contiguous() for name, tensor in self._taught().items()}
            save_file(taught, new / TAUGHT)
            if copy:
                save_network(self.network, self.tokenizer, new / "network")
            place = new / "network" if copy else place_of(network, revision)
            whole = {
                "format": 2,
                "switches": [
                    {
                        **{"kind": switch.kind, "width": switch.mean.numel(), "layer": switch.layer},
                        **{"threshold": switch.threshold, "rank": rank_of(head), **facts},
                    }
                    for (switch, head), facts in zip(self._parts, self.facts, strict=True)
                ],
                "network": {
                    "name": network_name(network),
                    "path": "network" if copy else str(local.resolve()) if local.exists() else str(network),
                    "copied": copy,
                    "revision": None if copy else revision or (None if local.exists() or place is None else place.name),
                    "dtype": str(next(self.network.parameters()).dtype).removeprefix("torch."),
                    "files": hashes(place),
                },
                "files": {TAUGHT: file_hash(new / TAUGHT)},
            }
            text = json.dumps({**whole, "seal": seal(whole)}, indent=2, ensure_ascii=False) + "\n"
            (new / DESCRIPTION).write_text(text, encoding="utf-8")
            (new / CARD).write_text(card, encoding="utf-8")

    def _taught(self) -> dict[str, Tensor]:
        parts = {
            _stem(part, number): module
            for part, modules in (("switch", self.switches), ("head", self.heads))
            for number, module in enumerate(modules)
        }
        return {f"{stem}{key}": value for stem, module in parts.items() for key, value in module.state_dict().items()}

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
        if self._prompt is None and not goes_on:
            self.by = None
        self._said = {}

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
        self.by = _last_yes(self._said, len(ends))

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

    def _answer(self, network: Any, arguments: Any, output: Any) -> Any:
        """Add the second head to the logits of the rows that are switched, at every place."""
        handed, self._handed = self._handed, None  # (row, place, width)
        cache = getattr(output, "past_key_values", None)
        self._cache = None if cache is None else weakref.ref(cache)
        if not self.enabled or self.by is None or not (self.by >= 0).any():
            return None
        named = hasattr(output, "logits")
        logits = (output.logits if named else output[0]).clone()
        for number, (_, head) in enumerate(self._parts):
            rows = (self.by == number).nonzero()[:, 0]
            if len(rows):
                own = handed[rows.to(handed.device)].to(self._device, torch.float32)
                logits[rows.to(logits.device)] += head(own).to(logits)
        if not named:
            return (logits, *output[1:])
        output.logits = logits
        return output


def _last_yes(said: Mapping[int, Tensor], rows: int) -> Tensor:
    """(row,) the highest number of those that said yes, -1 where none did."""
    by = torch.full((rows,), -1)
    for number in sorted(said):
        by[said[number].cpu()] = number
    return by


def _stem(part: str, number: int) -> str:
    """How the names of its tensors begin; those of the first one as when there was but one."""
    return f"{part}{number or ''}."


def load_switched(
    folder: str | Path,
    *,
    network: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | None = None,
    trust_remote_code: bool = False,
    tokenizer: Any = None,
) -> SwitchedModel:
    """What `SwitchedModel.save` wrote, refused where a file was changed since. `network` says where the original
    weights are now, if they have moved; `dtype` is the one that the switch was taught in unless it is given."""
    folder = Path(folder).expanduser()
    finish_replacement(folder)
    told = description(folder)
    origin = told["network"]
    path = folder / origin["path"] if origin["copied"] else network or origin["path"]
    changed = change_of(hashes(folder, told["files"]), told["files"])
    if changed:
        raise Refused(f"{folder}: {changed} since it was saved: put it back, or make the model again")
    if network is None:
        refuse_download(folder, path, origin["revision"])
    place = Path(located(path, origin["revision"])).expanduser()
    if not place.exists():
        raise Refused(f"{folder}: the network {path} is not there: say where it is now as network=…")
    if origin["files"]:
        read = None if looks_local(path) else origin["files"]  # of a hub id, others may have been fetched meanwhile
        changed = change_of(hashes(place, read), origin["files"])
        if changed:
            raise Refused(
                f"{folder}: of the network {path}, {changed} since the switch was taught on it: give the original as "
                "network=…, or make the switch again"
            )
    loaded, its = load_network(
        place,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype or origin["dtype"],
        trust_remote_code=trust_remote_code,
    )
    tensors, model = read_tensors(folder / TAUGHT)[0], SwitchedModel(loaded, its)
    for number, one in enumerate(switches_in(told)):
        facts = dict(one)
        with refusing(f"{folder / TAUGHT} does not fit its {DESCRIPTION}", "make the model again"):
            kind, width, layer, threshold, rank = (facts.pop(name) for name in OF_A_SWITCH)
            with torch.device("meta"):  # takes no memory, whatever the description speaks of
                switch, shape = Switch(width, kind, layer=layer), tensors[f"{_stem('head', number)}up.weight"].shape
                head = Head(width, shape[0], rank=rank)
            switch.threshold = threshold
            for name, part in (("switch", switch), ("head", head)):
                stem = _stem(name, number)
                own = {key.removeprefix(stem): value.clone() for key, value in tensors.items() if key.startswith(stem)}
                part.load_state_dict(own, assign=True)
            model.add(switch, head, facts)
    return model.eval()


def parts_of(network: Any) -> tuple[nn.Module, Any]:
    """The body that gives the last hidden states and the head that makes logits of them; refused where there are none,
    or where something stands between."""
    name = type(network).__name__
    top = network.get_output_embeddings()
    body = network.get_decoder() if hasattr(network, "get_decoder") else getattr(network, "base_model", None)
    if top is None or body is None or body is network or network.config.is_encoder_decoder:
        raise Refused(f"{name} is no causal language model with a head of its own: take one that generates text")
    seen: list[Tensor] = []
    handles = [
        body.register_forward_hook(lambda module, arguments, output: seen.append(output[0])),
        top.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0])),
    ]
    try:
        with torch.inference_mode():
            network(input_ids=torch.tensor([[1, 1]], device=next(network.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != 2 or not torch.equal(seen[0].to(seen[1].device), seen[1]):
        raise Refused(f"{name} does not hand its last hidden states to its head as they are: it cannot be switched")
    return body, top


def rank_of(head: Head) -> int | None:
    """None of one as wide as the whole head."""
    return None if head.down is None else head.down.out_features


def head_logits(network: Any, states: Tensor) -> Tensor:
    """(state, vocabulary) float32 what the network's own code makes of last-layer states, scales and caps included."""
    top = network.get_output_embeddings()
    there = states.to(top.weight)[None]
    handle = top.register_forward_pre_hook(lambda module, arguments: (there,))
    try:
        with torch.inference_mode():
            out = network(input_ids=torch.ones(1, 1, dtype=torch.long, device=there.device), use_cache=False)
    finally:
        handle.remove()
    return out.logits[0].float().cpu()
