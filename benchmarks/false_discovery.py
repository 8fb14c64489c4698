"""How often does a comparison of two models that do not differ name a task, and how many real changes does it find?

    python benchmarks/false_discovery.py --out FOLDER

200 comparisons for each number of tasks: fifteen instructions a task with four prompts each, which move together. Where
nothing has changed: in how many is any task called changed, with the correction for the number of tasks and without it
(an interval of 95 % without zero). Where a quarter of the tasks has risen by 0.15, one standard deviation of an
instruction: how many of these are found, and which share of what is named had not changed.
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import polars as pl

from nucleate.probing.changes import difference

TASKS, COMPARISONS, INSTRUCTIONS, PROMPTS = (5, 20, 60), 200, 15, 4
RISE, LEAN, NOISE = 0.15, 0.15, 0.1


def main() -> int:
    if len(sys.argv) == 1:
        print(__doc__)
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    frame = pl.DataFrame([simulated(tasks) for tasks in TASKS])
    frame.write_csv(out / "false_discovery.csv", float_precision=3)
    with pl.Config(tbl_cols=-1, tbl_width_chars=200, tbl_hide_dataframe_shape=True):
        print(frame)
    return 0


def simulated(tasks: int) -> dict[str, float]:
    """One line of the table."""
    rng = np.random.default_rng(tasks)
    task = np.repeat(np.arange(tasks), INSTRUCTIONS * PROMPTS)
    unit = np.repeat(np.arange(tasks * INSTRUCTIONS), PROMPTS)
    names = {"instance": np.arange(len(task)), "text": np.arange(len(task)).astype(str), "task": task.astype(str)}

    def compared(rise: np.ndarray) -> pl.DataFrame:
        lean = rng.normal(size=tasks * INSTRUCTIONS)[unit] * LEAN + rise
        here, there = (
            pl.DataFrame(
                {**names, "unit": unit, "split": "test", "share": 0.5 + move + NOISE * rng.normal(size=len(task))}
            )
            for move in (lean, 0.0)
        )
        return difference(here, there)

    found = [compared(np.zeros(len(task))) for _ in range(COMPARISONS)]
    apart = (pl.col("low") > 0) | (pl.col("high") < 0)
    risen = max(1, tasks // 4)
    real = [compared(np.where(task < risen, RISE, 0.0)) for _ in range(COMPARISONS)]
    named = [set(one.filter("changed")["task"].cast(pl.Int64)) for one in real]
    right = [sum(one < risen for one in some) for some in named]
    wrong = [1 - hits / len(some) if some else 0.0 for hits, some in zip(right, named, strict=True)]
    return {
        "tasks": tasks,
        "comparisons": COMPARISONS,
        "any named though none changed": float(np.mean([one["changed"].any() for one in found])),
        "the same without the correction": float(np.mean([one.filter(apart).height > 0 for one in found])),
        "changed tasks found": float(np.sum(right) / (COMPARISONS * risen)),
        "of those named had not changed": float(np.mean(wrong)),
    }


if __name__ == "__main__":
    sys.exit(main())
