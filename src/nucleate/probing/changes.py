"""What a fine-tuning changed: two models' readings of the same prompts, task by task, and in a sentence.

From the tables alone, so that a run folder read back says the same.
"""

from collections.abc import Mapping

import numpy as np
import polars as pl

from nucleate.intervals import discoveries, t_probability
from nucleate.long_table import CLUSTERED
from nucleate.probing.findings import named_in_words, quoted
from nucleate.probing.separation import by_task, mean_interval
from nucleate.report.tables import percent


def difference(here: pl.DataFrame, there: pl.DataFrame, reading: str = CLUSTERED) -> pl.DataFrame:
    """task, share, base_share, difference, low, high, changed: what two models' coordinates say of the prompts on test
    in both.

    Each at its own best layer, prompt by prompt; the intervals are over instructions. `changed` allows for the number
    of tasks: of those that are called so, at most one in twenty is expected to be so by chance (Benjamini and
    Hochberg)."""
    column = "share" if reading == CLUSTERED else "named"
    same = ["instance", "text", "task"]
    mine, theirs = (one.filter(pl.col("split") == "test") for one in (here, there))
    both = mine.join(theirs.select(*same, base=column), on=same)
    both = both.drop_nulls([column, "base"]).sort("instance")
    names = sorted(both["task"].unique())
    task = np.array([names.index(name) for name in both["task"]], dtype=np.int64)
    share, base, unit = (both[name].to_numpy().astype(float) for name in (column, "base", "unit"))
    rows, chances = [], []
    for code, name in enumerate(names):
        moved = np.where(task == code, share - base, np.nan)
        found = mean_interval(moved, unit, seed=code)
        bounds = (None, None) if found is None else (found.low, found.high)
        rows.append((name, by_task(share, task)[code], by_task(base, task)[code], *bounds))
        chances.append(1.0 if found is None else t_probability(by_task(moved, np.unique(unit, return_inverse=True)[1])))
    schema = {"task": pl.String, "share": pl.Float64, "base_share": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    gap = (pl.col("share") - pl.col("base_share")).alias("difference")
    changed = pl.Series("changed", discoveries(np.array(chances)), dtype=pl.Boolean)
    return frame.select("task", "share", "base_share", gap, "low", "high", changed)


def change(
    found: Mapping[str, pl.DataFrame], base: str, now: Mapping[str, set[str]], before: Mapping[str, set[str]]
) -> str:
    """What a fine-tuning did, in a sentence: reading -> the differences; the tasks that are so now and were before."""
    if all(frame["low"].is_null().all() for frame in found.values()):
        return f"compared with {base}, too few instructions to tell what has changed"
    parts = []
    for reading, frame in found.items():
        moved = frame.filter(pl.col("changed"))
        rose = moved.filter(pl.col("difference") > 0).sort("difference", descending=True)
        fell = moved.filter(pl.col("difference") < 0).sort("difference")
        new = pl.col("task").is_in(sorted(now[reading] - before[reading]))
        gone = pl.col("task").is_in(sorted(before[reading] - now[reading]))
        for words, rows in (
            (f"made {{}} {reading}", rose.filter(new)),
            (f"made {{}} more {reading}", rose.filter(~new)),
            (f"made {{}} no longer {reading}", fell.filter(gone)),
            (f"made {{}} less {reading}", fell.filter(~gone)),
        ):
            shares = rows.select("task", "base_share", "share").rows()
            named = [f"{quoted(task)} ({percent(old)} → {percent(share)})" for task, old, share in shares]
            parts += [words.format(named_in_words(named, quote=False))] if named else []
    return f"compared with {base}, the model " + (", ".join(parts) or "changes no task beyond chance")
