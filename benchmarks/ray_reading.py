"""Prompts read by one process, by worker processes and by Ray: the same states, what it costs, each worker's memory.

    python benchmarks/ray_reading.py                                   2,000 prompts, two workers (under a minute)
    python benchmarks/ray_reading.py --prompts 100000 --workers 4

A line for each way of reading: seconds from the first prompt to the last, the starting of the workers included; whether
the states are those of one process to the bit; the memory of its largest worker, early (while the first quarter of the
prompts is read) and at most. Exit code 1 where states differ. Needs `nucleate[ray]`.
"""

import argparse
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from peers import set_threads

WORDS = [f"w{number}" for number in range(300)]


@dataclass(frozen=True)
class Line:
    instruction: str
    input: str
    output: str
    task: str


class Memory:
    """Bytes of this process's largest worker, looked at while something computes."""

    def __init__(self) -> None:
        self.share, self.early, self.most, self._going = 0.0, 0, 0, True
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def tell(self, text: str, fraction: float | None) -> None:
        self.share = fraction or 0.0

    def _look(self) -> None:
        while self._going:
            for worker in psutil.Process().children(recursive=True):
                try:
                    words = " ".join(worker.cmdline())
                    if "ray::" not in words and "spawn_main" not in words:
                        continue
                    own = worker.memory_full_info().uss  # without Ray's store of objects, which all map
                except psutil.Error:
                    continue
                self.most = max(self.most, own)
                if self.share <= 0.25:
                    self.early = max(self.early, own)
            time.sleep(0.2)

    def end(self) -> None:
        self._going = False
        self._thread.join()


def prompts(count: int) -> list[Line]:
    """Instructions of eight words, each with five inputs."""
    rng = np.random.default_rng(0)
    instructions = [" ".join(rng.choice(WORDS, 8)) for _ in range(count // 5 + 1)]
    inputs, outputs = rng.choice(WORDS, (2, count))
    return [Line(instructions[n // 5], str(inputs[n]), str(outputs[n]), f"task {n // 5 % 20}") for n in range(count)]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    set_threads(1)

    from nucleate.engines.door import reader
    from nucleate.model.networks import gpt2, load_network, save_network, word_tokenizer
    from nucleate.model.prompts import open_reader, read_prompts_states

    given, expected, fine = prompts(asked.prompts), None, True
    print(f"{asked.prompts:,} prompts, {asked.workers} workers")
    print(f"{'read by':12} {'seconds':>8} {'prompts/s':>10} {'same bits':>10} {'worker early':>13} {'at most':>9}")
    with tempfile.TemporaryDirectory() as place:
        model, tokenizer = Path(place) / "model", word_tokenizer(WORDS)
        shape: dict[str, Any] = {"width": 64, "feed_forward": 128, "layers": 3, "heads": 4, "positions": 32}
        save_network(gpt2(vocabulary=len(tokenizer), dropout=0, pad=0, seed=1, **shape), tokenizer, model)
        load = partial(load_network, model)
        network, tokenizer = load()
        for name in ("one process", "local", "ray"):
            engine = None if name == "one process" else reader(name, workers=asked.workers)
            elsewhere: Callable[..., Any] | None = None
            if engine is not None:
                elsewhere = lambda layers, blocks, engine=engine: engine(  # noqa: E731
                    partial(open_reader, load, layers), blocks, Path(place) / "blocks"
                )
            memory, began = Memory(), time.perf_counter()
            reading = read_prompts_states(
                network, tokenizer, given, reads={"input": None}, progress=memory.tell, elsewhere=elsewhere
            )
            seconds = time.perf_counter() - began
            memory.end()
            expected = reading.states["input"] if expected is None else expected
            same = np.array_equal(reading.states["input"], expected)
            fine &= same
            sizes = [f"{size / 2**20:.0f} MiB" if size else "" for size in (memory.early, memory.most)]
            print(
                f"{name:12} {seconds:8.1f} {asked.prompts / seconds:10.0f} {'yes' if same else 'NO':>10} "
                f"{sizes[0]:>13} {sizes[1]:>9}",
                flush=True,
            )
    return 0 if fine else 1


if __name__ == "__main__":
    sys.exit(main())
