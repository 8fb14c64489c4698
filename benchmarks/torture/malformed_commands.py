"""Malformed inputs through the command: exit code 0 or 2, at most one line of ours, never a traceback or a panic.

    python benchmarks/torture/malformed_commands.py --count 500 --seed 0 --minutes 60

The whole files are those of `tests/test_damage.py`; each case malforms one in one or two ways (`malform.py`).
"""

import argparse
import random
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from campaign import Result, main
from commands import call, unbroken, words_of
from malform import malformed
from malformed import readers

TITLE = "malformed inputs through the command: no traceback, no panic, one line"
# Reader of `tests/test_damage.py` -> the verbs that read it; MODEL and PROMPTS are whole, HERE its folder.
COMMANDS = {
    "dataset": ("transfer MODEL HERE --out OUT",),
    "prompts.jsonl": ("probe MODEL HERE/p.jsonl --out OUT", "probe MODEL HERE/p.jsonl --estimate"),
    "prompts.csv": ("probe MODEL HERE/p.csv --out OUT",),
    "prompts.parquet": ("probe MODEL HERE/p.parquet --out OUT",),
    "datasets": ("probe MODEL HERE --out OUT",),
    "run": ("report HERE/run", "claims HERE/run", "runs HERE", "transfer HERE/run HERE/run/data --out OUT"),
    "part": ("report HERE/run", "claims HERE/run", "runs HERE"),
    "sweep": ("sweep learn --size micro --seed 1 --out HERE --resume",),
    "model": ("probe HERE/model PROMPTS --out OUT",),
    "gguf": ("probe HERE/tiny.gguf PROMPTS --out OUT",),
    "shards": ("probe HERE/model PROMPTS --out OUT",),
    "adapter": ("probe HERE/model PROMPTS --estimate", "probe HERE/model PROMPTS --out OUT"),
    "switched": ("align --model HERE/model --data PROMPTS --source a --target b --out OUT",),
}


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    folder = (asked.out / "made").absolute()
    model = unbroken(folder, "learn", words_of(folder)["learn"]) / "checkpoints" / "best"
    for number in numbers:
        with tempfile.TemporaryDirectory(dir=folder) as place:
            yield one(number, asked.seed, Path(place), model, folder / "prompts.jsonl")


def one(number: int, seed: int, place: Path, model: Path, prompts: Path) -> Result:
    rng = random.Random(f"commands {seed} {number}")
    name = rng.choice(list(COMMANDS))
    reader, here = readers()[name], place / "here"
    here.mkdir()
    reader.make(here)
    file, ways = rng.choice(reader.files), []
    content = (here / file).read_bytes()
    for _ in range(rng.choice((1, 1, 1, 2))):
        way, content = malformed(content, rng)
        ways.append(way)
    (here / file).write_bytes(content)
    asked = rng.choice(COMMANDS[name])
    put = {"MODEL": str(model), "PROMPTS": str(prompts), "OUT": str(place / "out")}
    words = [put.get(word, word.replace("HERE", str(here))) for word in asked.split()]
    done = call(words)
    lines = [line for line in done.stderr.splitlines() if line.startswith("nucleate:")]
    clear = "Traceback" not in done.stderr and "panicked" not in done.stderr and len(lines) == (done.returncode != 0)
    ended = {0: "done", 2: "refused"}.get(done.returncode, f"exit code {done.returncode}")
    fault = (
        "" if clear and done.returncode in (0, 2) else f"{asked}, {file}, {' and '.join(ways)}: {done.stderr[-500:]}"
    )
    return Result(number, f"{asked.split()[0]} of {name}: {ended}", fault)


if __name__ == "__main__":
    main("malformed_commands", TITLE, campaign, count=500)
