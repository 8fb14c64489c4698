"""A switched model from its folder: refused where a file of it, or of the network beneath it, was changed since."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nucleate.model.adapter import Adapter
from nucleate.model.networks import load_network
from nucleate.model.places import finish_replacement, looks_local
from nucleate.model.series import located
from nucleate.model.switch import Head, Switch
from nucleate.reading import read_tensors, refusing
from nucleate.redirecting.stored import (
    DESCRIPTION,
    OF_A_SWITCH,
    change_of,
    description,
    hashes,
    refuse_download,
    switches_in,
)
from nucleate.redirecting.switched import TAUGHT, Expert, SwitchedModel, stem_of
from nucleate.refusal import Refused


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
            kind, width, layer, threshold, rank, form = (facts.pop(name) for name in OF_A_SWITCH)
            with torch.device("meta"):  # takes no memory, whatever the description speaks of
                switch = Switch(width, kind, layer=layer)
            switch.threshold = threshold
            _fill(switch, tensors, stem_of("switch", number))
            expert: Expert
            if form == "adapter":
                expert = Adapter.load(folder / stem_of("adapter", number))
            else:
                with torch.device("meta"):
                    expert = Head(width, tensors[f"{stem_of('head', number)}.up.weight"].shape[0], rank=rank)
                _fill(expert, tensors, stem_of("head", number))
        model.add(switch, expert, facts)
    return model.eval()


def _fill(module: nn.Module, tensors: Mapping[str, Tensor], stem: str) -> None:
    """With the weights whose names begin so."""
    own = {key.removeprefix(f"{stem}."): value.clone() for key, value in tensors.items() if key.startswith(f"{stem}.")}
    module.load_state_dict(own, assign=True)
