"""Where a network lies: on this machine or not, whole or not, and how a folder is replaced. Loads no torch.

What cannot be a network is refused here, before anything is opened.
"""

import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from nucleate.files import disk_errors, file_name, make_folders, sync, sync_all
from nucleate.reading import AGAIN, read_json, refusing
from nucleate.refusal import Refused

_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
CHECKPOINT = re.compile(r"(?P<unit>checkpoint|epoch|step)[-_]?(?P<number>\d+)")


def locate(path: str | Path, *, revision: str | None, trust_remote_code: bool) -> tuple[str, dict[str, Any]]:
    """The folder or hub id to load from, and what every loading function is told."""
    local = Path(path).expanduser()
    finish_replacement(local)
    common: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    if revision:
        common["revision"] = revision
    if local.is_file() and is_gguf(local):
        missing = [package for package in ("gguf", "accelerate") if find_spec(package) is None]
        if missing:
            raise Refused(f"model {path}: a GGUF file needs {' and '.join(missing)}: pip install 'nucleate[gguf]'")
        common["gguf_file"] = local.name
        local = local.parent
    elif not local.is_dir() and looks_local(path):
        what = "is no folder" if local.exists() else "does not exist"
        raise Refused(f"model {path}: {what}: give a folder with config.json and *.safetensors, or a hub id")
    if not local.is_dir():
        return str(path), common
    return str(local), common | {"local_files_only": True}  # a folder starts no download


def look_at(folder: Path) -> None:
    """Refuse a local folder that cannot hold a network, before anything is opened."""
    if not folder.is_dir():
        return
    _check_inside(folder)
    if is_adapter(folder):
        if not (folder / "adapter_model.safetensors").exists():
            raise Refused(f"model {folder}: holds no adapter_model.safetensors: save the adapter as safetensors")
        return
    if not (folder / "config.json").exists():
        raise Refused(f"model {folder}: holds no config.json: give the folder of a Hugging Face model")
    if not any(folder.glob("*.safetensors")):
        pickles = sorted(f.name for pattern in _PICKLES for f in folder.glob(pattern))
        if pickles:
            raise Refused(
                f"model {folder}: holds weights only as a pickle ({pickles[0]}), which could run code: convert it with "
                "save_pretrained to safetensors where you trust it"
            )
        raise Refused(f"model {folder}: holds no *.safetensors: give a folder with weights")


def _check_inside(folder: Path) -> None:
    """Refuse weights that an index file names, or a link leads to, outside the folder. What Hugging Face's cache keeps
    of a model, its links among themselves, lies inside."""
    named = {one.name: one.name for one in folder.glob("*.safetensors")}
    for index in sorted(folder.glob("*.index.json")):
        shards = read_json(index).get("weight_map")
        if not isinstance(shards, dict) or not all(isinstance(shard, str) for shard in shards.values()):
            raise Refused(f"{index} is damaged (its weight_map names no files); {AGAIN}")
        named |= {shard: index.name for shard in shards.values()}
    home = folder.resolve()
    homes = [home, *([home.parent.parent / "blobs"] if home.parent.name == "snapshots" else [])]
    for name, by in named.items():
        with refusing(f"model {folder}: {name} cannot be found"):
            place = (folder / name).resolve()
        if not any(place.is_relative_to(one) for one in homes):
            how = "is a link to" if by == name else f"is named by {by} and is"
            raise Refused(f"model {folder}: {name!r} {how} a file outside the folder: copy the weights into it")


def looks_local(path: str | Path) -> bool:
    """Does this name a place on this machine (there or not), rather than a hub id?"""
    name = str(path)
    local = isinstance(path, Path) or name.startswith((".", "/", "~")) or name.lower().endswith(".gguf")
    return local or name.count("/") > 1 or Path(name).exists()


def is_gguf(file: Path) -> bool:
    """Weights, settings and tokenizer in the one file that llama.cpp reads."""
    return file.is_file() and file.suffix.lower() == ".gguf"


def is_adapter(folder: Path) -> bool:
    return (folder / "adapter_config.json").exists()


def base_of(folder: Path) -> str | None:
    """Path or hub id of the network that a folder's adapter belongs to; None where it holds none."""
    if not is_adapter(folder):
        return None
    base = read_json(folder / "adapter_config.json").get("base_model_name_or_path")
    if isinstance(base, str) and is_adapter(Path(base).expanduser()):
        raise Refused(f"model {folder}: its base {base} is an adapter itself: merge that one into its own base")
    if not isinstance(base, str) or not base:
        raise Refused(f"model {folder}: its adapter_config.json names no base_model_name_or_path: write it there")
    return base


# --- which ones are meant ---------------------------------------------------------------------------------------------


def at_the_door(
    models: Sequence[str | Path],
    revisions: Sequence[str] = (),
    read: Callable[[], object] | None = None,
    *,
    weights: bool = True,
) -> None:
    """Refuse models that are not there and what cannot be `read` before torch loads, which takes longer than reading
    the data twice; only then is a model of the hub fetched."""
    meant = [run_checkpoint(one) for one in models]
    refuse_absent(meant, revisions, weights=weights)
    if read is not None:
        read()
    if weights:
        from nucleate.model.series import located  # whose client of the hub takes its time

        for path, revision in listed(meant, revisions):
            located(path, revision)


def refuse_absent(arguments: Sequence[str | Path], revisions: Sequence[str] = (), *, weights: bool = True) -> None:
    """Refuse what is no model, from the names of files alone: in no time, with nothing opened and nothing fetched.
    Without `weights`, settings are enough."""
    for path, _ in listed(arguments, revisions):
        if looks_local(path):
            locate(path, revision=None, trust_remote_code=False)
            if weights:
                look_at(Path(path).expanduser())
            base = base_of(Path(path).expanduser())
            if base is not None and looks_local(base):
                refuse_absent([base], weights=weights)
            elif base is not None and base not in map(str, arguments):
                from nucleate.model.series import base_here  # whose client of the hub takes its time

                base_here(Path(path).expanduser())


def run_checkpoint(model: str | Path) -> str | Path:
    """The best checkpoint where this is a run folder of ours; else the same."""
    best = Path(model).expanduser() / "checkpoints" / "best"
    return best if (best.parent.parent / "manifest.json").is_file() and best.is_dir() else model


def listed(arguments: Sequence[str | Path], revisions: Sequence[str]) -> list[tuple[str, str | None]]:
    """The paths and hub ids that are meant, with their revisions."""
    found: list[tuple[str, str | None]] = []
    for argument in arguments:
        local = Path(argument).expanduser()
        if not looks_local(argument):
            found += [(str(argument), revision) for revision in revisions] if revisions else [(str(argument), None)]
            continue
        if revisions:
            raise Refused(f"model {argument}: a local folder has no revisions: give a hub id, or leave them out")
        finish_replacement(local)
        if not local.exists():
            raise Refused(f"model {argument}: does not exist: give a folder with weights, a GGUF file or a hub id")
        if local.is_file() and local.suffix.lower() != ".gguf":
            raise Refused(f"model {argument}: is neither a folder nor a GGUF file: models come first, the prompts last")
        found += [(str(one), None) for one in ([local] if _is_model(local) else _checkpoints(local))]
    return found


def _is_model(place: Path) -> bool:
    return bool(weights_of(place)) or (place / "config.json").exists() or (place / "adapter_config.json").exists()


def weights_of(place: Path) -> list[Path]:
    return [place] if place.is_file() else sorted(place.glob("*.safetensors"))


def _checkpoints(folder: Path) -> list[Path]:
    inside = folder / "checkpoints" if (folder / "checkpoints").is_dir() else folder
    numbered = [
        (int(match["number"]), one)
        for one in inside.iterdir()
        if one.is_dir() and (match := CHECKPOINT.fullmatch(one.name)) and match["unit"] != "step"
    ]
    if not numbered:
        raise Refused(
            f"model {folder}: holds neither config.json with *.safetensors nor folders checkpoint-… or epoch-…: "
            "give the folder of a model or of its checkpoints"
        )
    empty = next((one for _, one in sorted(numbered) if not _is_model(one)), None)
    if empty is not None:
        raise Refused(f"model {empty}: holds no weights: remove this checkpoint, or save it again")
    return [one for _, one in sorted(numbered)]


# --- replaced whole ---------------------------------------------------------------------------------------------------


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """An empty folder to write into, which then takes the place of `folder`. One that stood there is set aside first;
    should the process die between the two renames, the next look at the folder puts it back."""
    new, old = _beside(folder, "new"), _beside(folder, "old")
    finish_replacement(folder)
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    make_folders(new.parent)
    new.mkdir()
    try:
        with disk_errors(folder):
            yield new
            sync_all(new)
            if folder.exists():
                os.rename(folder, old)
            os.rename(new, folder)
            sync(folder.parent)
    finally:
        finish_replacement(folder)
        shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)


def finish_replacement(folder: Path) -> None:
    """Put back what a process that died in the middle of a replacement had set aside."""
    old = _beside(folder, "old")
    if old.is_dir() and not folder.exists():
        os.rename(old, folder)


def _beside(folder: Path, what: str) -> Path:
    return folder.parent / f".{file_name(folder.name)}.{what}"
