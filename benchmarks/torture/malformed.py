"""Malformed inputs over every reader in process: read right or refused in one line, within 5 s and 1 GiB each.

    python benchmarks/torture/malformed.py --count 100000 --seed 0 --minutes 60

The readers and their whole files are those of `tests/test_damage.py`; each case malforms one file in one or two ways
(`malform.py`). A process reads many; one that dies is a fault of the case that it was at.
"""

import argparse
import faulthandler
import json
import os
import random
import resource
import shutil
import tempfile
import time
import warnings
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from campaign import Result, main
from commands import in_process
from malform import malformed

TITLE = "malformed inputs read in process: right or refused in one line, under 1 GiB and 5 s each"
BATCH = 400  # cases of one process
SECONDS, BYTES = 5.0, 2**30
_HEAVY = {"model", "gguf", "shards", "adapter", "switched"}  # a case costs ten times that of a file


def readers() -> dict[str, Any]:
    from test_damage import READERS

    return READERS


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    left = iter(numbers)
    while batch := list(islice(left, BATCH)):
        yield from in_batches(batch, asked.seed, asked.out)


def in_batches(batch: list[int], seed: int, folder: Path) -> Iterator[Result]:
    """The results of these cases, whatever happens to the processes."""
    folder = folder.absolute()
    while batch:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            lines, said = Path(place, "lines.jsonl"), Path(place, "said.txt")
            code = in_process(lambda batch=batch, place=place, lines=lines: work(batch, seed, Path(place), lines), said)
            told = [json.loads(line) for line in lines.read_text().splitlines()] if lines.is_file() else []
            yield from (Result(*one) for one in told)
            batch = batch[len(told) :]
            if code != 0 and batch:  # it died of the first that it did not tell of
                yield Result(
                    batch[0], "the process died", f"exit code {code}: {said.read_text(errors='replace')[-400:]}"
                )
                batch = batch[1:]
            elif code == 0:
                return


def work(batch: list[int], seed: int, place: Path, lines: Path) -> None:
    os.environ["NUCLEATE_CACHE"] = str(place / "cache")
    warnings.simplefilter("ignore")
    whole: dict[str, Path] = {}
    resource.setrlimit(resource.RLIMIT_AS, (memory() + 4 * BYTES, -1))  # what would take far more fails at once
    with open(lines, "a", encoding="utf-8") as stream:
        for number in batch:
            result = one(number, seed, place, whole)
            stream.write(json.dumps(result) + "\n")
            stream.flush()


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def made(reader: Any, name: str, place: Path, whole: dict[str, Path]) -> Path:
    """The folder that a reader reads, made once a process and read once whole, which loads what it needs."""
    if name not in whole:
        whole[name] = place / name.replace(".", "-")
        whole[name].mkdir()
        reader.make(whole[name])
        reader.read(whole[name])
    return whole[name]


def one(number: int, seed: int, place: Path, whole: dict[str, Path]) -> Result:
    from nucleate.refusal import Refused

    rng, found = random.Random(f"malformed {seed} {number}"), readers()
    name = rng.choices(list(found), [1 if one in _HEAVY else 10 for one in found])[0]
    reader = found[name]
    file = rng.choice(reader.files)
    path = made(reader, name, place, whole) / file
    content = kept = path.read_bytes()
    ways = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        way, content = malformed(content, rng)
        ways.append(way)
    path.write_bytes(content)
    before, began, fault, ended = peak(), time.monotonic(), "", "read"
    faulthandler.dump_traceback_later(60, exit=True)
    try:
        reader.read(whole[name])
    except Refused as refusal:
        said, ended = str(refusal), "refused"
        if "\n" in said or not any(part in said for part in reader.names(whole[name], file)):
            fault = f"its refusal: {said[:300]!r}"
    except BaseException as error:
        fault = f"{type(error).__name__}: {str(error)[:300]}"
    faulthandler.cancel_dump_traceback_later()
    seconds, bytes_ = time.monotonic() - began, peak() - before
    if not fault and seconds > SECONDS:
        fault = f"took {seconds:.1f} s"
    if not fault and bytes_ > BYTES:
        fault = f"took {bytes_ / 2**30:.1f} GiB"
    if path.is_dir():
        shutil.rmtree(path)
    path.write_bytes(kept)
    return Result(number, f"{name}: {ended}", f"{file}, {' and '.join(ways)}: {fault}" if fault else "")


def peak() -> int:
    """The most memory that the process had in use so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main("malformed", TITLE, campaign, count=100_000)
