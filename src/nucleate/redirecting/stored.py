"""What is written of a switched model, and whether its files and those of its network are still what they were."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nucleate.files import file_hash
from nucleate.model.places import finish_replacement, looks_local
from nucleate.reading import read_json, refusing
from nucleate.refusal import Refused

DESCRIPTION = "switched.json"
OF_A_SWITCH = ("kind", "width", "layer", "threshold", "rank", "expert")
_READ = {".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt"}  # what a network and its tokenizer come from
_FREE = {"generation_config.json", "trainer_state.json"}  # changes no logit, so its owner may


def switches_in(told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Of each switch what is written of it. Format 1 had one, which read the last layer; before format 3 what answers
    behind a switch was a head."""
    if told["format"] > 1:
        return [{"expert": "head", **one} for one in told["switches"]]
    facts = {name: told[name] for name in ("source", "target", "wished", "prompts") if name in told}
    return [{**told["switch"], "layer": None, "threshold": 0.5, "expert": "head", **told["head"], **facts}]


def network_of(model: str | Path) -> tuple[str, str | None]:
    """Path or hub id, and revision, of the network that a model is: of a switched one that beneath it."""
    folder = Path(model).expanduser()
    finish_replacement(folder)
    if not (folder / DESCRIPTION).is_file():
        return str(model), None
    origin = description(folder)["network"]
    if origin["copied"]:
        return str(folder / origin["path"]), origin["revision"]
    refuse_download(folder, origin["path"], origin["revision"])
    return origin["path"], origin["revision"]


def refuse_download(folder: Path, network: str | Path, revision: str | None) -> None:
    """Refuse a network of a hub that is not on this machine: only what the user names is fetched."""
    if looks_local(network):
        return
    from nucleate.model.series import snapshot  # whose client of the hub takes its time

    if snapshot(str(network), revision) is None:
        raise Refused(
            f"{folder}: its network {network} is not on this machine, and a folder starts no download: fetch it with "
            f"`hf download {network}`, or say where it is as network=…"
        )


def network_name(model: str | Path) -> str:
    """What the network that a model is was called, also where it is a copy beside its switches."""
    path = Path(model).expanduser()
    if is_switched(path):
        origin = description(path)["network"]
        return str(origin.get("name") or Path(origin["path"]).name)
    return network_name(path.parent) if is_switched(path.parent) else path.name


def is_switched(model: str | Path) -> bool:
    """Is it the folder of a switched model?"""
    return (Path(model).expanduser() / DESCRIPTION).is_file()


def description(folder: Path) -> dict[str, Any]:
    if not (folder / DESCRIPTION).exists():
        raise Refused(f"{folder} holds no {DESCRIPTION}: give the folder of a switched model")
    told = read_json(folder / DESCRIPTION, "put it back, or make the model again")
    if told.pop("seal", None) != seal(told):
        raise Refused(f"{folder}: {DESCRIPTION} has changed since it was saved: put it back, or make the model again")
    with refusing(f"{folder / DESCRIPTION} is damaged", "make the model again"):
        origin, _, _ = told["network"], dict(told["files"]), switches_in(told)
        dict(origin["files"])
        if not isinstance(origin["path"], str) or not {"copied", "revision", "dtype"} <= {*origin}:
            raise ValueError("it does not tell of which network it is")
        if origin["copied"] and not (folder / origin["path"]).resolve().is_relative_to(folder.resolve()):
            raise ValueError("it names a network outside the folder")
    return told


def seal(whole: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()


def hashes(place: Path | None, names: Mapping[str, str] | None = None) -> dict[str, str]:
    """File -> sha256, of these names or of all that a network is loaded from."""
    if place is None:
        return {}
    if place.is_file():
        return {place.name: file_hash(place)}
    if names is not None:
        return {name: file_hash(place / name) for name in names if (place / name).is_file()}
    kept = [f for f in sorted(place.iterdir()) if f.is_file() and f.suffix in _READ and f.name not in _FREE]
    return {file.name: file_hash(file) for file in kept}


def change_of(now: Mapping[str, str], then: Mapping[str, str]) -> str | None:
    """In a few words, the first file that is not as it was."""
    for name in sorted({*now, *then}):
        if name not in now:
            return f"{name} is gone"
        if now[name] != then.get(name):
            return f"{name} has changed" if name in then else f"{name} was added"
    return None
