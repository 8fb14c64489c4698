"""Which models were meant: single ones, or folders of checkpoints as a series in order, each known by its weights."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from huggingface_hub import constants, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.file_download import try_to_load_from_cache

from nucleate.model.places import CHECKPOINT, base_of, listed, looks_local, weights_of
from nucleate.reading import read_json
from nucleate.refusal import Refused

_WANTED = [
    "*.json",
    "*.safetensors",
    "*.model",
    "*.tiktoken",
    "*.txt",
    "*.jinja",
    "*.py",
]  # no weights that are pickles
_UNWANTED = ["*/*", "consolidated*", "*.fp16.*"]  # the same weights again, in other forms


@dataclass(frozen=True)
class Source:
    """A model to be read."""

    name: str  # the shortest tail of its path that no other has
    path: str  # a folder, a GGUF file or a hub id
    revision: str | None = None
    epoch: int | None = None  # whole epochs done, where the checkpoint tells
    step: int | None = None
    checksum: str | None = None  # of its weights; None where they are not on this machine yet


def find_models(arguments: Sequence[str | Path], revisions: Sequence[str] = ()) -> list[Source]:
    """All models that the arguments name, in order. A folder that has no weights of its own but folders `epoch-…` or
    `checkpoint-…` (as it is, or in `checkpoints/`) stands for these, the earliest first. With `revisions`, each hub id
    stands for so many models. Two with the same weights are refused: one of them is not what it says."""
    found = listed(arguments, revisions)
    names = _names([(*_parts(path), *([revision] if revision else [])) for path, revision in found])
    sources = []
    for name, (path, revision) in zip(names, found, strict=True):
        epoch, step = _age(Path(path), revision)
        sources.append(Source(name, path, revision, epoch, step, checksum(path, revision)))
    refuse_twins({one.name: one.checksum for one in sources})
    return sources


def checksum(path: str | Path, revision: str | None = None) -> str | None:
    """sha256 of the bytes of its *.safetensors (or of the GGUF file); None for a hub id that is not on this machine."""
    place = place_of(path, revision)
    files = weights_of(place) if place else []
    if not files:
        return None
    base = base_of(place) if place else None  # an adapter is nothing without it
    return digest_of(files, begun=checksum(base) or "" if base else "")


def digest_of(files: Sequence[Path], *, begun: str = "") -> str:
    """sha256 of all their bytes, behind those of what was `begun` with."""
    stats = [file.stat() for file in files]
    return _digest(tuple(files), tuple((one.st_size, one.st_mtime_ns) for one in stats), begun)


@cache
def _digest(files: Sequence[Path], stamps: Sequence[tuple[int, int]], base: str) -> str:
    """Read once a process, as long as nothing was written: a series of adapters has one base."""
    digest = hashlib.sha256(base.encode())
    for file in files:
        with open(file, "rb") as stream:
            while block := stream.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def place_of(path: str | Path, revision: str | None = None) -> Path | None:
    """Where the files of a network lie; None for what is not on this machine."""
    local = Path(path).expanduser()
    return local if local.exists() else snapshot(str(path), revision)


def snapshot(hub_id: str, revision: str | None = None) -> Path | None:
    """The folder of a hub id's files, where all of them are on this machine."""
    try:
        cached = try_to_load_from_cache(hub_id, "config.json", revision=revision or constants.DEFAULT_REVISION)
    except HFValidationError:  # no name that the hub could have
        return None
    return Path(cached).parent if isinstance(cached, str) and _is_whole(Path(cached).parent) else None


def located(model: str | Path, revision: str | None = None) -> str:
    """A path as it is; for a hub id the folder of its files on this machine, so that all that is read of it is of one
    commit. They are fetched where they are not there."""
    if looks_local(model):
        return str(model)
    return str(snapshot(str(model), revision) or fetch(str(model), revision))


def base_here(folder: Path) -> str | None:
    """Where the network lies that a folder's adapter belongs to; None where it holds none. One that is not on this
    machine is refused: only what the user names is fetched."""
    base = base_of(folder)
    if base is None or looks_local(base):
        return base
    place = snapshot(base)
    if place is None:
        raise Refused(
            f"model {folder}: its adapter belongs to {base}, which is not on this machine, and a folder starts no "
            f"download: fetch it with `hf download {base}`, or write the path of a copy into adapter_config.json"
        )
    return str(place)


def _is_whole(folder: Path) -> bool:
    """Are all its weights there, and a tokenizer? Its settings alone may have been read before."""
    index = folder / "model.safetensors.index.json"
    shards = dict(read_json(index).get("weight_map", {})).values() if index.is_file() else []
    weights = bool(weights_of(folder)) and all((folder / file).is_file() for file in shards)
    return weights and any(folder.glob("*token*"))


def fetch(hub_id: str, revision: str | None = None) -> Path:
    """Have a model of the hub on this machine: the folder of its files."""
    try:
        folder = snapshot_download(hub_id, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED)
    except (HfHubHTTPError, HFValidationError, OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise Refused(
            f"model {hub_id}: is no folder here, and the hub does not give it ({why}): check name and connection"
        ) from error
    return Path(folder)


def refuse_twins(checksums: Mapping[str, str | None]) -> None:
    """Refuse two models with the same weights: published series have held the wrong ones."""
    first: dict[str, str] = {}
    for name, value in checksums.items():
        if value is not None and first.setdefault(value, name) != name:
            raise Refused(
                f"models {first[value]} and {name} have the same weights: one of them is not what its name says; "
                "leave one out"
            )


def _age(path: Path, revision: str | None) -> tuple[int | None, int | None]:
    """Epoch and step, from the name and from what Hugging Face's Trainer writes beside the weights."""
    match = CHECKPOINT.search(revision) if revision else CHECKPOINT.fullmatch(path.name)
    if match is None:
        return None, None
    number = int(match["number"])
    if match["unit"] == "epoch":
        return number, None
    try:
        epoch = read_json(path / "trainer_state.json")["epoch"]
        return int(epoch + 1e-6), number
    except (ValueError, KeyError, TypeError, OverflowError):  # a refusal is a ValueError
        return None, number


def _parts(path: str) -> tuple[str, ...]:
    place = Path(path).expanduser()
    return place.resolve().parts if place.exists() else tuple(path.split("/"))


def _names(paths: Iterable[tuple[str, ...]]) -> list[str]:
    """The shortest tail of each path that is none of another."""
    paths = list(paths)
    twice = next((parts for parts, count in Counter(paths).items() if count > 1), None)
    if twice is not None:
        raise Refused(f"model {'/'.join(twice)}: is given twice: leave one out")
    tails = Counter(parts[k:] for parts in paths for k in range(len(parts)))
    return [
        "/".join(next((parts[-n:] for n in range(1, len(parts) + 1) if tails[parts[-n:]] == 1), parts)).strip("/")
        for parts in paths
    ]
