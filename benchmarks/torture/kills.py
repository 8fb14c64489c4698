"""Kills: SIGKILL at a random moment of learn, probe, pretrain, align, transfer and sweep at size micro, through the
real command, then --resume; each file must have the bytes that an unbroken run gives it.

    python benchmarks/torture/kills.py --count 500 --seed 0 --minutes 60

One in four is killed a second time while it is gone on with. A kill that comes after the end, or before the run folder
is begun, is told apart. Beyond the log's times and the seconds in manifest.json, which the page shows,
nothing may differ.
"""

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from campaign import Result, main
from commands import VERBS, command, differing, environment, unbroken, words_of

TITLE = "SIGKILL at random moments, then --resume to the bytes of an unbroken run"


def campaign(numbers: Iterable[int], asked: argparse.Namespace) -> Iterator[Result]:
    folder = asked.out / "made"
    words, whole, seconds = words_of(folder), {}, {}
    for number in numbers:
        rng = random.Random(f"kills {asked.seed} {number}")
        verb = VERBS[number % len(VERBS)]
        for needed in ("learn", verb):
            if needed not in whole:
                whole[needed], seconds[needed] = unbroken_and_seconds(folder, needed, words[needed])
        with tempfile.TemporaryDirectory(dir=asked.out) as place:
            moments = [rng.uniform(0.02, 1.0) for _ in range(1 + (rng.random() < 0.25))]
            yield one(number, verb, words[verb], whole[verb], Path(place) / "run", moments, seconds[verb])


def unbroken_and_seconds(folder: Path, verb: str, words: list[str]) -> tuple[Path, float]:
    """How long a run takes is measured once, on the second one, when the loops are compiled."""
    file = folder / f"seconds-{verb}.json"
    whole = unbroken(folder, verb, words)
    if not file.is_file():
        began = time.monotonic()
        subprocess.run(
            command([*words, "--out", str(folder / "timed"), "--overwrite"]),
            env=environment(), capture_output=True, check=True,
        )  # fmt: skip
        shutil.rmtree(folder / "timed")
        file.write_text(json.dumps(time.monotonic() - began))
    return whole, float(json.loads(file.read_text()))


def one(
    number: int, verb: str, words: list[str], whole: Path, out: Path, moments: list[float], seconds: float
) -> Result:
    """Killed at these moments, as shares of the time that a run takes, and then gone on with to the end."""
    asked = command([*words, "--out", str(out), "--resume"])
    killed = 0
    for moment in moments:
        process = subprocess.Popen(
            asked, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
        )
        try:
            process.wait(moment * seconds)
        except subprocess.TimeoutExpired:
            os.kill(process.pid, signal.SIGKILL)  # alone: what it began must end by itself
            killed += 1
        process.wait()
    begun = (out / "config.toml").is_file() or (out / "sweep.json").is_file()
    told = f"{verb}: killed {('never: it had ended', 'once', 'twice')[killed]}" + ("" if begun else ", before it began")
    for _ in range(50):  # a worker of a sweep dies when its parent is gone, but not in the same instant
        done = subprocess.run(asked, env=environment(), capture_output=True, text=True, check=False)
        if done.returncode != 2 or "in use" not in done.stderr:
            break
        time.sleep(0.2)
    if done.returncode:
        return Result(number, told, f"exit code {done.returncode}: {done.stderr[-400:]}")
    odd = differing(whole, out)
    return Result(number, told, f"at {moments}: differs: {', '.join(odd)}" if odd else "")


if __name__ == "__main__":
    main("kills", TITLE, campaign, count=500)
