"""Files that are there in full or not at all, also after a power cut: written beside their place, synced, renamed."""

import errno
import hashlib
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

from nucleate.refusal import Refused

_LONGEST = 180  # bytes of a name, since most systems allow 255 and more is written around it


def write_whole(path: Path, write: Callable[[Path], object], *, previous: Path | None = None) -> None:
    """`write` is given a place beside `path`; what it leaves there is then renamed. What lay in `path` is kept as
    `previous`."""
    make_folders(path.parent)
    beside = path.with_name(f".{file_name(path.name)}.part")
    try:
        with disk_errors(path):
            write(beside)
            sync(beside)
            if previous is not None and path.exists():
                os.replace(path, previous)
            os.replace(beside, path)
            sync(path.parent)
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    write_whole(path, lambda beside: beside.write_bytes(content))


def write_text(path: Path, text: str) -> None:
    """As UTF-8, with the line ends that it has."""
    write_bytes(path, text.encode("utf-8"))


def write_table(path: Path, frame: Any, **how: Any) -> None:
    """A frame of polars as Parquet; polars itself would take some letters of a path for a pattern."""
    content = BytesIO()
    frame.write_parquet(content, **how)
    write_bytes(path, content.getvalue())


def sync(path: Path) -> None:
    """Returns once the disk holds the file, or the names in the folder; systems that sync no folder are let be."""
    is_folder = path.is_dir()
    if is_folder and os.name == "nt":
        return
    place = os.open(path, os.O_RDONLY if is_folder else os.O_RDWR)
    try:
        os.fsync(place)
    except OSError as error:
        if not is_folder or error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(place)


def sync_all(folder: Path) -> None:
    """All files in and below a folder, and the folders."""
    for inside in sorted(folder.rglob("*")):
        sync(inside)
    sync(folder)


def make_folders(folder: Path) -> None:
    """The folder and those above it, each new one synced into the one that holds it: else a power cut could take the
    folder with all that was synced in it."""
    if folder.is_dir():
        return
    make_folders(folder.parent)
    folder.mkdir(exist_ok=True)
    with suppress(PermissionError):  # of a folder that may be written to and not read
        sync(folder.parent)


def make_folder(folder: Path) -> None:
    """So that it is there and can be written into; else refused."""
    why = "it may not be written to"
    try:
        if folder.exists() and not folder.is_dir():
            raise Refused(f"{folder} is a file; --out names a folder")
        make_folders(folder)
    except OSError as error:
        why = error.strerror or str(error)
    if not os.access(folder, os.W_OK | os.X_OK):
        raise Refused(f"{folder} cannot be written into ({why}); name another folder with --out")


def file_name(name: str) -> str:
    """A name, fit for a file: a long one is cut, and told apart by its hash."""
    fit = name.replace("/", "--")
    if len(fit.encode()) <= _LONGEST:
        return fit
    return f"{fit.encode()[:_LONGEST].decode(errors='ignore')}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def last_line(path: Path) -> bytes:
    """The last line of a file, with the end that it has, however much stands before it."""
    with open(path, "rb") as stream:
        end, part = stream.seek(0, os.SEEK_END), 2**12
        while True:
            stream.seek(max(0, end - part))
            before, _, line = stream.read().removesuffix(b"\n").rpartition(b"\n")
            if before or part >= end:
                break
            part *= 2
        stream.seek(max(0, end - 1))
        return line + (b"\n" if stream.read() == b"\n" else b"")


def file_hash(path: Path) -> str:
    """sha256 of a file."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def disk_errors(path: Path) -> Iterator[None]:
    """What the disk refused to a library in Rust, which tells it in a text of its own, as an OSError with the path."""
    try:
        yield
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)
        raise
    except Exception as error:
        if (told := re.search(r"\(os error (\d+)\)", str(error))) is None:
            raise
        number = int(told[1])
        raise OSError(number, os.strerror(number), str(path)) from error
