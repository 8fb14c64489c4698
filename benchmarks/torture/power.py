"""Power loss: what the disk holds for sure at every write of a micro run, and a --resume from there to the same bytes.

    python benchmarks/torture/power.py --count 2000 --seed 0 --minutes 60

Each verb runs once under a record of what was synced: a file has the bytes of its last fsync, a folder the names of its
own last fsync. Before every call that opens a file to write, renames, removes, makes a folder or syncs, the plug is
pulled in three ways: `synced`, only what was synced is there; `names`, all names are there, each file with its bytes as
last synced (none, if never); `halves`, as `names`, but what was not synced is there to its half.
"""

import argparse
import hashlib
import os
import pickle
import random
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from campaign import Result, main
from commands import differing, in_process, unbroken, whole_of, words_of

TITLE = "power cut at every write, then --resume to the bytes of an unbroken run"
WAYS = ("synced", "names", "halves")
_CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
Tree = dict[str, Any]  # name -> bytes of a file, or the tree of a folder


@dataclass
class Kept:
    """What the disk holds for sure of one file or folder."""

    content: bytes | None = None  # of a file
    names: "dict[str, Kept]" = field(default_factory=dict)  # of a folder
    is_folder: bool = False


class Disk:
    """A folder's files as they would be found after a power cut; `root` itself is there before all."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.live: dict[int, Kept] = {}  # inode -> what is kept of what lies there now
        self.moments: dict[str, dict[str, Tree]] = {way: {} for way in WAYS}  # digest -> tree, each once
        self.told: dict[str, str] = {}
        self._busy = False

    def kept(self, path: Path) -> Kept:
        facts = path.lstat()
        one = self.live.setdefault(facts.st_ino, Kept())
        one.is_folder = path.is_dir()
        return one

    def sync(self, path: Path) -> None:
        one = self.kept(path)
        if one.is_folder:
            one.names = {inside.name: self.kept(inside) for inside in path.iterdir()}
        else:
            one.content = path.read_bytes()

    def forget(self, path: Path) -> None:
        """What lies there is about to go, and its number may be given to another file."""
        if os.path.lexists(path):
            self.live.pop(path.lstat().st_ino, None)

    def pull(self, before: str) -> None:
        """The plug: remember what would be found."""
        for way in WAYS:
            tree = self._synced(self.kept(self.root)) if way == "synced" else self._seen(self.root, way == "halves")
            mark = digest(tree)
            if mark not in self.moments[way]:
                self.moments[way][mark] = tree
                self.told[f"{way} {len(self.moments[way])}"] = before

    def _synced(self, one: Kept) -> Any:
        if one.is_folder:
            return {name: self._synced(inside) for name, inside in sorted(one.names.items())}
        return one.content or b""

    def _seen(self, path: Path, half: bool) -> Any:
        if path.is_dir():
            return {inside.name: self._seen(inside, half) for inside in sorted(path.iterdir())}
        kept, now = self.kept(path).content or b"", path.read_bytes()
        return now[: (len(kept) + len(now)) // 2] if half and kept != now else kept

    @contextmanager
    def watched(self) -> Iterator[None]:
        """While this lasts, every call that changes the folder is preceded by a look. The hook stays; it is for a
        process that ends soon."""
        real, watching = os.fsync, [True]

        def within(path: Any, place: Any = -1) -> Path | None:
            try:
                base = os.readlink(f"/proc/self/fd/{place}") if isinstance(place, int) and place >= 0 else os.getcwd()
                whole = Path(base, os.fsdecode(path))
            except (TypeError, ValueError, OSError):
                return None
            return whole if whole.is_relative_to(self.root) and whole != self.root else None

        def hook(event: str, facts: tuple[Any, ...]) -> None:
            if self._busy or not watching[0] or not (event in _CHANGES or event == "open"):
                return
            if event == "open" and not (isinstance(facts[2], int) and facts[2] & (os.O_WRONLY | os.O_RDWR)):
                return
            target = within(facts[1], facts[3]) if event == "os.rename" else within(
                facts[0], facts[1] if event in ("os.remove", "os.rmdir") else facts[2] if event == "os.mkdir" else -1
            )  # fmt: skip
            if target is None:
                return
            self._busy = True
            try:
                self.pull(f"{event} {target.relative_to(self.root)}")
                if event in ("os.rename", "os.remove", "os.rmdir"):
                    self.forget(target)
            finally:
                self._busy = False

        def fsync(place: int) -> None:
            path = within(os.readlink(f"/proc/self/fd/{place}")) or self.root
            self._busy = True
            try:
                self.pull(f"fsync {path.relative_to(self.root)}")
                real(place)
                self.sync(path)
            finally:
                self._busy = False

        sys.addaudithook(hook)
        os.fsync = fsync
        try:
            yield
        finally:
            watching[0], os.fsync = False, real


def digest(tree: Any) -> str:
    """Equal for equal names and bytes."""
    if isinstance(tree, dict):
        told = repr([(name, digest(inside)) for name, inside in sorted(tree.items())]).encode()
        return f"folder {hashlib.sha256(told).hexdigest()}"
    return hashlib.sha256(tree).hexdigest()


def record(words: list[str], file: Path) -> None:
    """Run the verb once and keep all that a power cut would have left, each once."""
    with tempfile.TemporaryDirectory(dir=file.parent) as place:

        def work() -> None:
            disk = Disk(Path(place))
            disk.sync(disk.root)
            with disk.watched():
                code = in_main([*words, "--out", str(Path(place, "run"))])
            assert code == 0
            found = [(way, disk.told[f"{way} {number}"], tree) for way in WAYS
                     for number, tree in enumerate(disk.moments[way].values(), 1)]  # fmt: skip
            file.write_bytes(pickle.dumps(found))

        assert in_process(work, file.with_suffix(".txt")) == 0, file.with_suffix(".txt").read_text()[-800:]


def in_main(words: list[str]) -> int:
    from nucleate.cli import main as nucleate

    return nucleate(words)


def lay(tree: Tree, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for name, inside in tree.items():
        if isinstance(inside, dict):
            lay(inside, folder / name)
        else:
            (folder / name).write_bytes(inside)


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    """Verbs take turns; of each, every moment once, in an order that the seed shuffles."""
    folder = asked.out.absolute() / "made"
    words = {verb: some for verb, some in words_of(folder).items() if verb != "sweep"}  # whose workers write, not it
    moments: dict[str, list[Any]] = {}
    for number in numbers:
        verb, turn = list(words)[number % len(words)], number // len(words)
        if verb not in moments:
            moments[verb] = moments_of(verb, words, folder)
            random.Random(f"power {asked.seed} {verb}").shuffle(moments[verb])
            print(f"{verb}: {len(moments[verb])} moments", flush=True)
        if turn < len(moments[verb]):
            way, before, tree = moments[verb][turn]
            with tempfile.TemporaryDirectory(dir=folder) as place:
                yield resumed(number, words[verb], whole_of(folder, verb), Path(place), tree, f"{verb}, {way}", before)
        elif turn >= max(map(len, moments.values())):
            return


def moments_of(verb: str, words: Mapping[str, list[str]], folder: Path) -> list[Any]:
    """(way, before which call, tree) of one run, recorded once."""
    file = folder / f"power-{verb}.pickle"
    for needed in ("learn", verb):
        unbroken(folder, needed, words[needed])
    if not file.is_file():
        record(words[verb], file)
    return list(pickle.loads(file.read_bytes()))


def resumed(number: int, words: list[str], whole: Path, place: Path, tree: Tree, what: str, before: str) -> Result:
    lay(tree, place)
    code = in_process(lambda: sys.exit(in_main([*words, "--out", str(place / "run"), "--resume"])), place / "said.txt")
    said = (place / "said.txt").read_text(encoding="utf-8", errors="replace")
    if code != 0:
        return Result(number, what, f"before {before}: exit code {code}: {said[-300:]}")
    odd = differing(whole, place / "run")
    return Result(number, what, f"before {before}: differs: {', '.join(odd)}" if odd else "")


if __name__ == "__main__":
    main("power", TITLE, campaign, count=100_000)
