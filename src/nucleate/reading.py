"""The door by which every file comes in: whole and of the right kind, or refused in one line with file and place.

A path is a name here and never a pattern: files are opened by Python, and polars is handed their bytes.
"""

import json
import os
import threading
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from io import BytesIO
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.refusal import Refused

AGAIN = "put it back, or make it again"


@contextmanager
def refused_as(
    told: Callable[[BaseException], str], *, unseen: bool = False, but: tuple[type[BaseException], ...] = ()
) -> Iterator[None]:
    """Whatever goes wrong inside, `but` for these, is refused in the line that is `told` of it, a panic of Rust
    included, which is no `Exception`. `unseen` is its backtrace, and all else that is written to standard error below
    Python."""
    passed: tuple[type[BaseException], ...] = (Refused, KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, *but)
    try:
        with _unseen() if unseen else nullcontext():
            yield
    except passed:
        raise
    except BaseException as error:
        raise Refused(told(error)) from error


def refusing(what: str, remedy: str = AGAIN) -> AbstractContextManager[None]:
    """Whatever goes wrong inside is refused in one line that begins with `what`."""
    return refused_as(lambda error: f"{what} ({reason_of(error)}); {remedy}", unseen=True)


def shown(runs: Iterable[str | Path]) -> AbstractContextManager[None]:
    """Run folders come from anyone: what of them cannot be shown is refused as damage, unless it is our disk's."""
    names = ", ".join(map(str, runs))
    remedy = "a file in it is damaged, or of another version, or nucleate is at fault: NUCLEATE_TRACEBACK=1 shows where"

    def told(error: BaseException) -> str:
        return f"{names} cannot be shown ({type(error).__name__}: {reason_of(error)}); {remedy}"

    return refused_as(told, but=(OSError,))


def reason_of(error: BaseException) -> str:
    """Its first line, or its name where it says nothing; of a system call only what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return f"no {said}" if isinstance(error, KeyError) else said[:300]


def is_there(path: Path) -> bool:
    """Something of that name, be it a link that leads nowhere."""
    return path.exists() or path.is_symlink()


def read_bytes(path: Path, remedy: str = AGAIN) -> bytes:
    with refusing(f"{path} cannot be read", remedy):
        return Path(path).read_bytes()


def read_text(path: Path, remedy: str = "save the file as UTF-8") -> str:
    """A text in UTF-8, a mark at its beginning left out; a byte that is none has its line named."""
    content = read_bytes(path, "make it readable" if path.exists() else AGAIN)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Refused(f"{path}, line {line}: byte {content[error.start]:#x} is no UTF-8; {remedy}") from None


def read_json(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    """A JSON object."""
    text = read_text(path, remedy)
    with refusing(f"{path} is damaged", remedy):
        found = json.loads(text)
        if not isinstance(found, dict):
            raise ValueError(f"it holds a {type(found).__name__}, where an object belongs")
    return found


def read_json_rows(path: Path, remedy: str = AGAIN) -> list[dict[str, Any]]:
    """A JSON list of objects."""
    text = read_text(path, remedy)
    with refusing(f"{path} is damaged", remedy):
        found = json.loads(text)
        if not isinstance(found, list) or not all(isinstance(row, dict) for row in found):
            raise ValueError("it holds something else, where a list of objects belongs")
    return found


def read_toml(path: Path, remedy: str = AGAIN) -> dict[str, Any]:
    text = read_text(path, remedy)
    with refusing(f"{path} is damaged", remedy):
        return tomllib.loads(text)


def read_parquet(
    path: Path,
    remedy: str = AGAIN,
    *,
    schema: Mapping[str, Any] | None = None,
    columns: Sequence[str] | None = None,
    check: Callable[[bytes, pl.DataFrame], object] = lambda content, frame: None,
) -> pl.DataFrame:
    """A table, of these columns with these types where a `schema` is given."""
    content = read_bytes(path, remedy)
    with refusing(f"{path} is no whole Parquet file", remedy):
        _check_headers(content)
        frame = pl.read_parquet(BytesIO(content), columns=None if columns is None else list(columns))
        check(content, frame)
    return of_schema(frame, path, schema or {}, remedy)


def of_schema(frame: pl.DataFrame, path: Path, schema: Mapping[str, Any], remedy: str = AGAIN) -> pl.DataFrame:
    """The table, refused where a column is missing or has another type."""
    for name, dtype in schema.items():
        if name not in frame.columns:
            raise Refused(f"{path} lacks the column {name!r}; {remedy}")
        if frame.schema[name] != dtype:
            raise Refused(f"{path}, column {name!r} has type {frame.schema[name]}, not {dtype}; {remedy}")
    return frame


def read_arrow(path: Path, remedy: str = AGAIN) -> pl.DataFrame:
    """A table as Hugging Face datasets keep it."""
    content = read_bytes(path, remedy)
    with refusing(f"{path} is no whole Arrow file", remedy):
        return pl.read_ipc_stream(BytesIO(content))


def read_tensors(path: Path, remedy: str = AGAIN, *, framework: str = "pt") -> tuple[dict[str, Any], dict[str, str]]:
    """The tensors of a safetensors file by name, and the texts beside them."""
    with refusing(f"{path} is no whole safetensors file", remedy):
        from safetensors import safe_open

        with safe_open(path, framework=framework) as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118


def tensors_are_whole(path: Path) -> bool:
    """Is there a safetensors file that goes on to the end that its beginning tells of?"""
    try:
        with refusing(str(path)):
            from safetensors import safe_open

            with safe_open(path, framework="numpy"):
                return True
    except Refused:
        return False


# --- what libraries in Rust would die of ------------------------------------------------------------------------------

_one_at_a_time = threading.RLock()


@contextmanager
def _unseen() -> Iterator[None]:
    """Nothing that is written to standard error below Python is seen meanwhile."""
    with _one_at_a_time:
        try:
            kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
        except OSError:  # there is no standard error
            yield
            return
        try:
            os.dup2(nothing, 2)
            yield
        finally:
            os.dup2(kept, 2)
            for one in (kept, nothing):
                with suppress(OSError):
                    os.close(one)


def _check_headers(content: bytes) -> None:
    """The sizes that a Parquet file tells of itself fit together: by others, polars would allocate any amount of
    memory, and the process would end without a word."""
    if len(content) < 12 or content[:4] != b"PAR1" or content[-4:] != b"PAR1":
        raise ValueError("its first or last bytes are missing")
    size = int.from_bytes(content[-8:-4], "little")
    if size > len(content) - 12:
        raise ValueError("its end is missing")
    for group in _Compact(content, len(content) - 8 - size).struct().get(4, ()):
        for column in (one.get(3, {}) for one in group.get(1, ())):
            first = column.get(11) or column[9]
            end, values, at = first + column[7], column[5], first
            if not 4 <= first <= end <= len(content) - 8 or values < 0 or not 0 <= group[3] < 2**31:
                raise ValueError("a column lies outside the file")
            while at < end:
                header = _Compact(content, at)
                page = header.struct()
                at = header.at + page[3]
                is_dictionary = 7 in page
                count = page[7][1] if is_dictionary else page.get(5, page.get(8, {})).get(1, 0)
                if not 0 <= count <= (page[2] if is_dictionary else values) or not header.at <= at <= end:
                    raise ValueError(f"a page at byte {header.at} has an impossible size")
                values -= 0 if is_dictionary else count
            if values:
                raise ValueError("a column lacks values")


class _Compact:
    """Thrift's compact protocol, as far as the headers of Parquet speak it."""

    def __init__(self, content: bytes, at: int) -> None:
        self.content, self.at = content, at

    def struct(self) -> dict[int, Any]:
        """Number of the field -> its value."""
        found: dict[int, Any] = {}
        number = 0
        while byte := self._take(1)[0]:
            number = number + (byte >> 4) if byte >> 4 else self._integer()
            found[number] = (byte & 15) == 1 if byte & 15 in (1, 2) else self._value(byte & 15)
        return found

    def _take(self, count: int) -> bytes:
        self.at += count
        if count < 0 or self.at > len(self.content):
            raise ValueError("a header is cut short")
        return self.content[self.at - count : self.at]

    def _natural(self) -> int:
        value = shift = 0
        while True:
            byte = self._take(1)[0]
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a header holds no number where it should")

    def _integer(self) -> int:
        value = self._natural()
        return (value >> 1) ^ -(value & 1)

    def _value(self, kind: int) -> Any:
        if kind in (1, 2, 3):
            return self._take(1)[0]
        if kind in (4, 5, 6):
            return self._integer()
        if kind == 7:
            return self._take(8)
        if kind == 8:
            return self._take(self._natural())
        if kind in (9, 10):
            byte = self._take(1)[0]
            count = byte >> 4 if byte >> 4 < 15 else self._natural()
            if count > len(self.content) - self.at:
                raise ValueError("a header is cut short")
            return [self._value(byte & 15) for _ in range(count)]
        if kind == 12:
            return self.struct()
        raise ValueError("a header is damaged")
