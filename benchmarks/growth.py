"""How cost grows: seconds and peak memory against points, width, layers, epochs and prompts, each with its exponent.

    python benchmarks/growth.py --out DIR            t-SNE to 20,000 points, 100,000 prompts (half an hour)
    python benchmarks/growth.py --quick --out DIR    to 2,000 points and 5,000 prompts (about a minute)

Writes growth.csv, growth.png and growth.svg into DIR (default runs/growth). All runs on one thread. Every size is
measured in a forked process (Linux only), whose peak memory above what it began with is its own, inputs included; what
is compiled or loaded once is not counted. Short work is done three times and the fastest counts. The exponent is the
slope of a line fitted to the logarithms: 1 means in proportion, 2 means four times for twice as much. It is fitted to
the upper half of the sizes, where fixed costs weigh less, and is missing where memory hardly moves.
"""

import argparse
import csv
import multiprocessing
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peers import set_threads

set_threads(1)

import matplotlib  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402

from nucleate.measures.labelling import Cohort, Labelling, labelling_of  # noqa: E402
from nucleate.measures.neighbours import Labels  # noqa: E402
from nucleate.measures.survey import Effort, survey  # noqa: E402
from nucleate.measures.tsne import tsne  # noqa: E402
from nucleate.model.networks import gpt2  # noqa: E402
from nucleate.model.prefix_tree import Group  # noqa: E402
from nucleate.model.states import read_groups  # noqa: E402
from nucleate.model.training import make_optimizer, train  # noqa: E402

LEAST_MEMORY = 4.0  # MiB: less is the allocator's grain


@dataclass(frozen=True)
class Growth:
    """One thing that grows. `prepare` makes the inputs of a size and returns what is to be timed."""

    name: str
    what: str
    prepare: Callable[[int], Callable[[], Any]]
    quick: tuple[int, ...]
    full: tuple[int, ...]  # on top


@dataclass(frozen=True)
class Point:
    size: int
    seconds: float
    mebibytes: float  # peak, above what the process began with


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="small sizes only")
    parser.add_argument("--out", type=Path, default=Path("runs/growth"), help="folder for table and plot")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    found: dict[str, list[Point]] = {}
    for growth in GROWTHS:
        growth.prepare(growth.quick[0])()  # load or compile
        found[growth.name] = []
        for size in growth.quick if options.quick else (*growth.quick, *growth.full):
            point = measured(growth, size)
            found[growth.name].append(point)
            print(f"{growth.name:16} {size:7,} {point.seconds:9.3f} s {point.mebibytes:8.0f} MiB", flush=True)
        time_slope, memory_slope = slopes(found[growth.name])
        print(f"  {growth.what}: time ~ size^{time_slope:.2f}, memory ~ {told(memory_slope)}", flush=True)
    with open(options.out / "growth.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file)
        table.writerow(("work", "size", "seconds", "peak_mebibytes", "time_exponent", "memory_exponent"))
        for name, points in found.items():
            time_slope, memory_slope = slopes(points)
            for one in points:
                memory = "" if memory_slope is None else round(memory_slope, 3)
                figures = (round(one.seconds, 4), round(one.mebibytes, 1), round(time_slope, 3), memory)
                table.writerow((name, one.size, *figures))
    draw(found, options.out)
    print(f"{options.out}/growth.csv, growth.png, growth.svg")


def measured(growth: Growth, size: int) -> Point:
    here = multiprocessing.get_context("fork")
    receiver, sender = here.Pipe(duplex=False)

    def work() -> None:
        before = memory("VmRSS")
        task = growth.prepare(size)
        Path("/proc/self/clear_refs").write_text("5")  # forgets the peak that making the inputs may have left
        spent = [timed(task)]
        peak = memory("VmHWM")
        while len(spent) < 3 and sum(spent) < 3:
            spent.append(timed(task))
        sender.send((min(spent), max(0.0, peak - before)))

    process = here.Process(target=work)
    process.start()
    sender.close()
    try:
        seconds, mebibytes = receiver.recv()
    except EOFError:
        raise SystemExit(f"{growth.name} at {size:,} did not finish: out of memory?") from None
    process.join()
    return Point(size, seconds, mebibytes)


def timed(task: Callable[[], Any]) -> float:
    began = time.perf_counter()
    task()
    return time.perf_counter() - began


def memory(name: str) -> float:
    """MiB of this process: now (VmRSS) or at most so far (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(name)).split()[1]) / 1024


def slopes(points: list[Point]) -> tuple[float, float | None]:
    upper = points[-max(2, (len(points) + 1) // 2) :]
    sizes = np.log([one.size for one in upper])
    seconds = float(np.polyfit(sizes, np.log([one.seconds for one in upper]), 1)[0])
    if min(one.mebibytes for one in upper) < LEAST_MEMORY:
        return seconds, None
    return seconds, float(np.polyfit(sizes, np.log([one.mebibytes for one in upper]), 1)[0])


def told(slope: float | None) -> str:
    return "hardly moves" if slope is None else f"size^{slope:.2f}"


def draw(found: dict[str, list[Point]], folder: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(2, len(GROWTHS), figsize=(3 * len(GROWTHS), 5.5), layout="constrained")
    for growth, (above, below) in zip(GROWTHS, axes.T, strict=True):
        points = found[growth.name]
        time_slope, memory_slope = slopes(points)
        sizes = [one.size for one in points]
        above.loglog(sizes, [one.seconds for one in points], "o-", color="#3b6ea5")
        above.set_title(growth.what.replace(": ", ":\n").replace(" (", "\n("), fontsize=8)
        above.text(0.05, 0.9, f"time ~ size^{time_slope:.2f}", transform=above.transAxes, fontsize=8)
        below.loglog(sizes, [max(one.mebibytes, 0.1) for one in points], "s-", color="#a5533b")
        below.text(0.05, 0.9, f"memory: {told(memory_slope)}", transform=below.transAxes, fontsize=8)
        below.set_xlabel(growth.name.split("_")[1], fontsize=8)
        for axis, values in ((above, [one.seconds for one in points]), (below, [one.mebibytes for one in points])):
            ends = sorted({max(min(values), 0.1), max(max(values), 0.1)})
            axis.minorticks_off()
            axis.set_xticks([sizes[0], sizes[-1]], [f"{sizes[0]:,}", f"{sizes[-1]:,}"], fontsize=8)
            axis.set_yticks(ends, [f"{end:.2g}" if end < 10 else f"{end:,.0f}" for end in ends], fontsize=8)
    axes[0, 0].set_ylabel("seconds")
    axes[1, 0].set_ylabel("peak memory, MiB")
    for ending in ("png", "svg"):
        figure.savefig(folder / f"growth.{ending}", dpi=120)


# --- what grows -------------------------------------------------------------------------------------------------------


def tsne_points(size: int) -> Callable[[], Any]:
    points = np.random.default_rng(0).normal(size=(size, 64)).astype(np.float32)
    return lambda: tsne([points], iterations=500, threads=1)


def prompts_and_states(prompts: int, layers: int, width: int) -> tuple[Labelling, dict[str, np.ndarray]]:
    """Training prompts of 50 tasks, 144 distributions and five inputs an instruction, and 315 validation prompts."""
    rng = np.random.default_rng(0)

    def cohort(split: str, count: int, first: int) -> Cohort:
        instruction = first + np.arange(count) // 5
        distribution = instruction % 144
        task = distribution % 50
        given = (7 * task + np.arange(count) % 5) % 25
        labels = Labels(instruction, given, 25 * task + given, task, distribution)
        return Cohort(split, labels, 25 * distribution + given, np.empty((0, 2), dtype=np.int64))

    cohorts = cohort("validation", 315, 10**6), cohort("train", prompts, 0)
    effects = {name: rng.normal(size=(layers, 25 * 50, width)) for name in ("input", "task")}
    states = {}
    for one in cohorts:
        noise = rng.normal(size=(layers, len(one.labels), width), scale=0.5)
        states[one.split] = sum(
            (effect[:, getattr(one.labels, name)] for name, effect in effects.items()), noise
        ).astype(np.float32)
    return labelling_of([cohorts[0]], cohorts[1], seed=0), states


def survey_of(prompts: int, layers: int, width: int) -> Callable[[], Any]:
    chosen, states = prompts_and_states(prompts, layers, width)
    return lambda: survey(chosen, states, Effort(iterations=250))


def groups_of(prompts: int) -> list[Group]:
    rng = np.random.default_rng(0)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(rng.integers(2, 62, count).tolist())

    return [
        Group(tokens(rng.integers(3, 30)), tuple((x,) for x in range(5, 10)), tuple((x,) for x in range(10, 15)))
        for _ in range(prompts // 5)
    ]


def network(width: int) -> torch.nn.Module:
    sizes = {"vocabulary": 62, "width": width, "feed_forward": 2 * width, "layers": 6, "heads": 8, "positions": 40}
    return gpt2(**sizes, dropout=0.2, pad=0, seed=0)


def read_prompts(size: int) -> Callable[[], Any]:
    model, groups = network(256), groups_of(size)
    return lambda: read_groups(model, groups)


def training(width: int, prompts: int, epochs: int) -> Callable[[], Any]:
    model, groups = network(width), groups_of(prompts)
    optimizer = make_optimizer(model, learning_rate=1e-4)
    settings = {"batch": 65, "learning_rate": 1e-4, "packing": "tree", "seed": 0}
    return lambda: list(train(model, optimizer, groups, epochs=epochs, **settings))


GROWTHS = (
    Growth(
        "tsne_points",
        "t-SNE: points (500 iterations)",
        tsne_points,
        (200, 400, 800, 1400, 2000),
        (4000, 5000, 8000, 12000, 20000),
    ),
    Growth(
        "survey_prompts",
        "measuring: training prompts (one layer, width 256)",
        lambda size: survey_of(size, 1, 256),
        (600, 1250, 2500, 5000),
        (10000, 25000, 50000, 100000),
    ),
    Growth(
        "read_prompts",
        "reading all states: prompts (width 256)",
        read_prompts,
        (600, 1250, 2500, 5000),
        (10000, 25000, 50000, 100000),
    ),
    Growth(
        "survey_width",
        "measuring: width (one layer, 2,000 prompts)",
        lambda size: survey_of(2000, 1, size),
        (64, 128, 256, 512, 1024),
        (2048, 4096),
    ),
    Growth(
        "survey_layers",
        "measuring: layers (width 64, 600 prompts)",
        lambda size: survey_of(600, size, 64),
        (1, 2, 4, 8),
        (16, 32),
    ),
    Growth(
        "train_width",
        "training: width (six layers, four steps)",
        lambda size: training(size, 4 * 65, 1),
        (64, 128, 256, 512),
        (768, 1024, 2048),
    ),
    Growth(
        "train_epochs",
        "training: epochs (width 64, four steps each)",
        lambda size: training(64, 4 * 65, size),
        (1, 2, 4, 8),
        (16, 32),
    ),
)


if __name__ == "__main__":
    main()
