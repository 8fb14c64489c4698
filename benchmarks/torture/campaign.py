"""What the campaigns share: numbered cases under a seed, each result a line of a file, so that it can be run in slices.

    python benchmarks/torture/NAME.py --count 500 --seed 0 --minutes 30      goes on until 500 are done, or 30 minutes
    python benchmarks/torture/NAME.py --again                                cases that failed, once more

A case is a function of (seed, number) alone. Lines stand in `runs/torture/NAME.jsonl`; a later line of a number
replaces an earlier one. `python benchmarks/torture/table.py` makes a table of them all.
"""

import argparse
import json
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "src")]  # whose readers, oracles and browser the campaigns use


class Result(NamedTuple):
    number: int
    what: str  # the kind of case, which the counts are told by
    fault: str = ""  # what went wrong; nothing where all is well


Campaign = Callable[[Iterable[int], argparse.Namespace], Iterator[Result]]


def run(name: str, title: str, campaign: Campaign, *, count: int, minutes: float = 2.0, each: int = 1) -> int:
    """The command of one campaign: 1 where a case failed. A case may stand for `each` of what is counted."""
    parser = argparse.ArgumentParser(description=title)
    parser.add_argument("--count", type=int, default=count, help="cases in all, those of earlier calls among them")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=minutes, help="stop after so many")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "torture", help="folder of the results")
    parser.add_argument("--again", action="store_true", help="the cases that failed, and no others")
    asked = parser.parse_args()
    asked.out.mkdir(parents=True, exist_ok=True)
    file, stop = asked.out / f"{name}.jsonl", time.monotonic() + 60 * asked.minutes
    done = read(file, asked.seed)
    failed = [number for number, result in done.items() if result.fault]
    numbers = failed if asked.again else [number for number in range(asked.count) if number not in done]
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=ROOT, capture_output=True, text=True, check=False
    ).stdout.strip()

    def in_time() -> Iterator[int]:
        for number in numbers:
            if time.monotonic() > stop:
                return
            yield number

    with open(file, "a", encoding="utf-8") as stream:
        for result in campaign(in_time(), asked):
            line = {**result._asdict(), "seed": asked.seed, "commit": commit, "each": each, "title": title}
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            done[result.number] = result
            if result.fault:
                print(f"FAULT in case {result.number}, {result.what}: {result.fault}", flush=True)
    return told(name, title, done, each)


def read(file: Path, seed: int) -> dict[int, Result]:
    """The last result of each number."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    rows = [json.loads(line) for line in lines if line.endswith("}")]  # a kill may have cut the last one
    return {row["number"]: Result(row["number"], row["what"], row["fault"]) for row in rows if row["seed"] == seed}


def told(name: str, title: str, done: dict[int, Result], each: int) -> int:
    faults = sum(bool(result.fault) for result in done.values())
    kinds = Counter(result.what for result in done.values())
    print(f"{name}: {title}: {each * len(done)} cases, {faults} faults")
    for kind, number in sorted(kinds.items()):
        print(f"  {each * number:7}  {kind}")
    return int(faults > 0)


def main(*arguments: object, **more: object) -> None:
    sys.exit(run(*arguments, **more))  # type: ignore[arg-type]
