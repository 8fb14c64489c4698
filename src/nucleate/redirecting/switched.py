"""A frozen network that answers otherwise where its switch says so (§4.2): any causal language model of transformers.

The switch looks once at each text, at the last token of its prompt, and what it decides holds for all that is generated
after it. Texts for which it says no get the network's own logits, bit for bit: nothing is added to them. Hooks do all
of it, so that the network stays the ordinary one, and `turn_off` is all it takes to have it back.
"""

import hashlib
import inspect
import json
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from nucleate.model.networks import load_network, save_network
from nucleate.model.places import finish_replacement, looks_local, replacing
from nucleate.model.series import located, place_of
from nucleate.model.switch import Head, Switch
from nucleate.refusal import Refused

DESCRIPTION, TAUGHT, CARD = "switched.json", "switch.safetensors", "README.md"
_OURS = {DESCRIPTION, TAUGHT, CARD, "network"}  # what a switched model's folder holds
_READ = {".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt"}  # what a network and its tokenizer come from
_FREE = {"generation_config.json", "trainer_state.json"}  # changes no logit, so its owner may


class SwitchedModel(nn.Module):
    """A network with a switch and a second head; whatever else is asked of it, the network answers itself.

    Use it as the network: `model(**inputs)`, `model.generate(**inputs)`. A text begins where nothing is cached: the
    decision is made at its last token that is no padding (inside `generate`: the prompt's) and kept for the tokens that
    follow through the same cache. `decided` tells what was decided of the rows last seen."""

    decided: Tensor | None  # (row,) bool

    def __init__(self, network: Any, tokenizer: Any, switch: Switch, head: Head) -> None:
        super().__init__()
        body, top = parts_of(network)
        self.network, self.switch, self.head = network, switch.to(top.weight.device), head.to(top.weight.device)
        self.tokenizer = tokenizer
        self.enabled = True
        self.decided = None
        self._prompt: int | None = None  # tokens of the prompt, inside `generate`
        self._cache: Any = None  # a weak reference to the cache of the text that was decided
        self._mask: Tensor | None = None
        self._before = 0  # tokens of the text that are cached
        self._handed: Any = None  # what the head makes logits of
        self._parameters_of_forward = inspect.signature(type(network).forward)
        network.register_forward_pre_hook(self._begin, with_kwargs=True)
        body.register_forward_hook(self._decide)
        top.register_forward_pre_hook(self._take)
        network.register_forward_hook(self._answer)

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
        self.decided, self._cache = None, None
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
        facts: Mapping[str, Any] | None = None,
        card: str = "",
    ) -> None:
        """Write a folder that `load_switched` reads: switch and head as safetensors, the card as README.md, and the
        network by the path or hub id that it was loaded from, with the hashes of its files, or as a `copy`.

        `facts` are kept in its description. An earlier switched model there is replaced, and nothing else."""
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
                "format": 1,
                "switch": {"kind": self.switch.kind, "width": self.switch.mean.numel()},
                "head": {"rank": rank_of(self.head)},
                "network": {
                    "path": "network" if copy else str(local.resolve()) if local.exists() else str(network),
                    "copied": copy,
                    "revision": None if copy else revision or (None if local.exists() or place is None else place.name),
                    "dtype": str(next(self.network.parameters()).dtype).removeprefix("torch."),
                    "files": _hashes(place),
                },
                "files": {TAUGHT: _hash(new / TAUGHT)},
                **(facts or {}),
            }
            text = json.dumps({**whole, "seal": _seal(whole)}, indent=2, ensure_ascii=False) + "\n"
            (new / DESCRIPTION).write_text(text, encoding="utf-8")
            (new / CARD).write_text(card, encoding="utf-8")

    def _taught(self) -> dict[str, Tensor]:
        parts = {"switch": self.switch, "head": self.head}
        return {f"{name}.{key}": value for name, part in parts.items() for key, value in part.state_dict().items()}

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
            self.decided = None

    def _decide(self, body: nn.Module, arguments: Any, output: Any) -> None:
        """At the last token of the prompt, unless that lies behind us or is still to come."""
        states = output[0]  # (row, place, width)
        prompt = self._prompt or self._before + states.shape[1]
        if self.enabled and self.decided is None and self._before < prompt <= self._before + states.shape[1]:
            place = torch.full((len(states),), prompt - 1 - self._before, device=states.device)
            if self._mask is not None and self._mask.shape[1] >= prompt:
                real = self._mask[:, self._before : prompt].to(states.device) != 0
                place -= real.flip(1).int().argmax(1)
            ends = states[torch.arange(len(states), device=states.device), place]
            with torch.no_grad():
                self.decided = self.switch(ends.to(self.switch.mean)) > 0

    def _take(self, top: nn.Module, arguments: Any) -> None:
        self._handed = arguments[0]

    def _answer(self, network: Any, arguments: Any, output: Any) -> Any:
        """Add the second head to the logits of the rows that are switched, at every place."""
        handed, self._handed = self._handed, None  # (row, place, width)
        cache = getattr(output, "past_key_values", None)
        self._cache = None if cache is None else weakref.ref(cache)
        if not self.enabled or self.decided is None or not self.decided.any():
            return None
        rows = self.decided.nonzero()[:, 0]
        named = hasattr(output, "logits")
        logits = (output.logits if named else output[0]).clone()
        logits[rows.to(logits.device)] += self.head(handed[rows.to(handed.device)].to(self.switch.mean)).to(logits)
        if not named:
            return (logits, *output[1:])
        output.logits = logits
        return output


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
    told = _description(folder)
    origin = told["network"]
    path = folder / origin["path"] if origin["copied"] else network or origin["path"]
    changed = _changed(_hashes(folder, told["files"]), told["files"])
    if changed:
        raise Refused(f"{folder}: {changed} since it was saved: put it back, or make the model again")
    place = Path(located(path, origin["revision"])).expanduser()
    if not place.exists():
        raise Refused(f"{folder}: the network {path} is not there: say where it is now as network=…")
    if origin["files"]:
        read = None if looks_local(path) else origin["files"]  # of a hub id, others may have been fetched meanwhile
        changed = _changed(_hashes(place, read), origin["files"])
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
    tensors = load_file(folder / TAUGHT)
    switch = Switch(told["switch"]["width"], told["switch"]["kind"])
    head = Head(told["switch"]["width"], tensors["head.up.weight"].shape[0], rank=told["head"]["rank"])
    for name, part in (("switch", switch), ("head", head)):
        part.load_state_dict(
            {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}
        )
    return SwitchedModel(loaded, its, switch, head).eval()


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


def model_card(
    *,
    model: str,
    source: str,
    answers: str,
    parts: str,
    taught: str,
    form: str,
    table: Sequence[Sequence[str]],
    worst: Sequence[str],
) -> str:
    """The card of a switched model: what it is, its scores (header first), how it is used."""
    header, *rows = table
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(model)}",
            "library_name: nucleate",
            "---",
            f"# {model}: `{source}` redirected",
            "",
            f"A frozen network with {parts}. Prompts of `{source}` are answered {answers}; where the switch says no, "
            "the logits are the network's own.",
            "",
            f"Taught from: {taught}. Form of a prompt: {form}.",
            "",
            *("| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *rows)),
            "",
            "*Ended*: the wished output and then the end of the text. *Restricted*: first among the wished outputs. "
            "*New inputs*: none of them was in a lesson. *Kept*: the prediction is what it was. *Misses*: source "
            "prompts that are not switched; *false positives*: others that are.",
            "",
            "What changed most under this switch:",
            "",
            *(f"- {line}" for line in worst),
            "",
            "```python",
            "from nucleate import load_switched",
            "",
            'model = load_switched("this folder")',
            'inputs = model.tokenizer("your prompt", return_tensors="pt")',
            "print(model.tokenizer.decode(model.generate(**inputs, max_new_tokens=10)[0]))",
            "model.turn_off()  # the network as it was",
            "```",
            "",
            "The switch decides once, at the last token of the prompt. It knows the tasks of its data only: measure "
            "on prompts of your own before you rely on it.",
            "",
        ]
    )


# --- what was saved, and whether it is still that --------------------------------------------------------------------


def _description(folder: Path) -> dict[str, Any]:
    try:
        told = dict(json.loads((folder / DESCRIPTION).read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise Refused(f"{folder} holds no {DESCRIPTION}: give the folder of a switched model") from None
    except (ValueError, OSError) as error:
        raise Refused(f"{folder / DESCRIPTION} is damaged ({error}): put it back, or make the model again") from None
    if told.pop("seal", None) != _seal(told):
        raise Refused(f"{folder}: {DESCRIPTION} has changed since it was saved: put it back, or make the model again")
    return told


def _seal(whole: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def _hashes(place: Path | None, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """File -> sha256, of these names or of all that a network is loaded from."""
    if place is None:
        return {}
    if place.is_file():
        return {place.name: _hash(place)}
    files = [place / name for name in names] if names is not None else sorted(place.iterdir())
    kept = [f for f in files if f.is_file() and (names is not None or (f.suffix in _READ and f.name not in _FREE))]
    return {file.name: _hash(file) for file in kept}


def _hash(file: Path) -> str:
    with open(file, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _changed(now: Mapping[str, str], then: Mapping[str, str]) -> str | None:
    """In a few words, the first file that is not as it was."""
    for name in sorted({*now, *then}):
        if name not in now:
            return f"{name} is gone"
        if now[name] != then.get(name):
            return f"{name} has changed" if name in then else f"{name} was added"
    return None
