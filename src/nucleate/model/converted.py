"""GGUF files as ordinary folders: converted once, kept in a cache, checked by their bytes whenever they are used.

Converting 135 million parameters takes most of a minute, loading what was converted a few seconds. An entry is
known by the bytes of its GGUF file and by what converted it; it is there whole or not at all, as safetensors.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from safetensors import SafetensorError

from nucleate.files import sync_all, write_text
from nucleate.model.places import is_gguf
from nucleate.model.series import checksum, digest_of
from nucleate.reading import read_json

_MADE = "converted.json"  # written last: the names of an entry's files, and their digest
_BEGUN, _A_DAY = ".begun-", 86400.0


def cache_folder() -> Path:
    """`NUCLEATE_CACHE`, or `nucleate` in the user's own folder of caches. Removing it loses nothing but time."""
    if named := os.environ.get("NUCLEATE_CACHE"):
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "nucleate"


def kept_of(file: Path) -> Path | None:
    """The folder that this file was converted into; None where there is none, or where its bytes have changed."""
    entry = _entry_of(file)
    try:
        made = read_json(entry / _MADE)
        return entry if digest_of([entry / name for name in made["files"]]) == made["digest"] else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def converted(file: Path, convert: Callable[[Path], None]) -> Path | None:
    """The folder that this file was converted into, by `convert` now unless it was before; None where nothing can be
    kept, for want of room or of the right to write. Two processes may convert at once: one of them is kept."""
    if kept := kept_of(file):
        return kept
    entry = _entry_of(file)
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        for left in entry.parent.glob(f"{_BEGUN}*"):  # by a process that was killed
            if time.time() - left.stat().st_mtime > _A_DAY:
                shutil.rmtree(left, ignore_errors=True)
        with TemporaryDirectory(prefix=_BEGUN, dir=entry.parent, ignore_cleanup_errors=True) as beside:
            new = Path(beside) / "new"
            new.mkdir()
            convert(new)
            files = sorted(new.iterdir())
            made = {"of": file.name, "by": _versions(), "files": [one.name for one in files]}
            told = json.dumps(made | {"digest": digest_of(files)}, indent=1) + "\n"
            write_text(new / _MADE, told)
            sync_all(new)
            if kept := kept_of(file):  # by another process, meanwhile
                return kept
            if entry.exists():
                entry.rename(Path(beside) / "old")
            new.rename(entry)
    except (OSError, SafetensorError):
        pass
    return kept_of(file)


def conversion_told(model: object) -> str | None:
    """What to say before a model is loaded that has to be converted first."""
    if not isinstance(model, str | Path) or not is_gguf(file := Path(model).expanduser()) or kept_of(file):
        return None
    return f"{file.name} is converted, which takes a while; next time it lies in {_entry_of(file).parent}"


def _entry_of(file: Path) -> Path:
    key = hashlib.sha256(json.dumps([checksum(file), _versions()]).encode()).hexdigest()
    return cache_folder() / "gguf" / key[:32]


def _versions() -> dict[str, str]:
    return {name: version(name) if find_spec(name) else "" for name in ("transformers", "gguf")}
