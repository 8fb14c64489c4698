"""Faults below Python's file calls: a write error, a full disk, a short write, a failed rename, a failed sync, at every
call site of a micro run of each verb; a clear line or a right result, and then a --resume to the same bytes.

    python benchmarks/torture/faults.py --count 2000 --seed 0 --minutes 60

`faults.c` is compiled and loaded before the C library, so that files written by libraries in Rust are reached as well.
A site is a kind of call and a path whose digits count as one; each is hit at its first call and at one that the seed
chooses. A full disk stays full until the process ends.
"""

import argparse
import ctypes
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

from campaign import Result, main
from commands import VERBS, call, differing, in_process, unbroken, whole_of, words_of

TITLE = "a fault below Python's file calls at every call site, then --resume to the bytes of an unbroken run"
KINDS = {"write": ("error", "full", "short"), "fsync": ("sync",), "rename": ("rename",)}


def library(folder: Path) -> Path:
    """The compiled faults."""
    made = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    folder.mkdir(parents=True, exist_ok=True)
    if not made.is_file() or made.stat().st_mtime < source.stat().st_mtime:
        subprocess.run(["cc", "-O1", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"], check=True)
    return made


def with_faults(words: list[str], folder: Path, **armed: str) -> tuple[int, str, str]:
    """Exit code, what was said, and the log of the calls, of a verb that writes below a folder."""
    log, said = folder / "calls.txt", folder / "said.txt"
    told = {f"TORTURE_{name}": value for name, value in {"below": f"{folder}/run", "log": str(log), **armed}.items()}
    arming = {name.upper(): value for name, value in told.items()}

    def work() -> None:
        os.environ.update(arming)
        ctypes.CDLL(None).torture_arm()
        from nucleate.cli import main as nucleate

        sys.exit(nucleate(words))

    if words[0] == "sweep":  # its workers are processes of their own, which read the environment
        done = call(words, **arming)
        return done.returncode, done.stderr, log.read_text() if log.is_file() else ""
    code = in_process(work, said)
    return code, said.read_text(encoding="utf-8", errors="replace"), log.read_text() if log.is_file() else ""


def sites(words: list[str], folder: Path) -> Counter[str]:
    """Call site -> how many calls there are, in an undisturbed run."""
    file = folder / f"sites-{words[0]}.txt"
    if not file.is_file():
        with tempfile.TemporaryDirectory(dir=folder) as place:
            code, said, log = with_faults([*words, "--out", f"{place}/run"], Path(place))
            assert code == 0 and log, said[-800:]
        file.write_text(log)
    return Counter(file.read_text().splitlines())


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    """Verbs take turns; of each, every site, in an order that the seed shuffles."""
    folder = asked.out.absolute() / "made"
    words, cases = words_of(folder), dict[str, list[tuple[str, str, int]]]()
    for number in numbers:
        verb, turn = VERBS[number % len(VERBS)], number // len(VERBS)
        if verb not in cases:
            for needed in ("learn", verb):
                unbroken(folder, needed, words[needed])
            cases[verb] = cases_of(words[verb], folder, asked.seed)
            print(f"{verb}: {len(cases[verb])} cases", flush=True)
        if turn < len(cases[verb]):
            with tempfile.TemporaryDirectory(dir=folder) as out:
                yield one(number, verb, words[verb], whole_of(folder, verb), Path(out), *cases[verb][turn])
        elif turn >= max(map(len, cases.values())):
            return


def cases_of(words: list[str], folder: Path, seed: int) -> list[tuple[str, str, int]]:
    """(site, kind of fault, which call of that site)."""
    rng, found = random.Random(f"faults {seed} {words[0]}"), []
    for site, calls in sorted(sites(words, folder).items()):
        places = sorted({1, rng.randint(1, calls)})
        found += [(site, kind, place) for kind in KINDS[site.split()[0]] for place in places]
    rng.shuffle(found)
    return found


def one(
    number: int, verb: str, words: list[str], whole: Path, folder: Path, site: str, kind: str, place: int
) -> Result:
    out = folder / "run"
    code, said, log = with_faults([*words, "--out", str(out)], folder, site=site, kind=kind, nth=str(place))
    if "FIRED" not in log.splitlines():
        return Result(number, f"{verb}: {kind}, not reached this time")
    where, lines = f"call {place} of {site!r}: ", [line for line in said.splitlines() if line.startswith("nucleate:")]
    what = f"{verb}: {kind}, " + ("right all the same" if code == 0 else "one clear line")
    if code not in (0, 1, 2) or "Traceback" in said or (code != 0 and len(lines) != 1):
        return Result(number, what, f"{where}exit code {code}: {said[-500:]}")
    if code == 0 and (odd := differing(whole, out)):
        return Result(number, what, f"{where}exit code 0, but differs: {', '.join(odd)}")
    code, said, _ = with_faults([*words, "--out", str(out), "--resume"], folder)
    odd = differing(whole, out) if code == 0 else []
    if code != 0 or odd:
        return Result(number, what, f"{where}then --resume: exit code {code}, differs: {', '.join(odd)}: {said[-300:]}")
    return Result(number, what)


def reexecuted(folder: Path) -> None:
    """This process with the faults loaded, which they must be before all else."""
    made = str(library(folder).absolute())
    if os.environ.get("LD_PRELOAD") != made:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "LD_PRELOAD": made})


if __name__ == "__main__":
    reexecuted(Path(__file__).parents[2] / "runs" / "torture")
    main("faults", TITLE, campaign, count=100_000)
