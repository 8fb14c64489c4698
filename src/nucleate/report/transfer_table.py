"""What follows when a state is moved to another task, layer by layer, in rows of plain values."""

from collections.abc import Mapping

import polars as pl

from nucleate.report.tables import Cell, Table
from nucleate.runs import Run

MEANS = ("mean", "mean_x2", "mean_x3")
STRENGTHS = {"mean": "its mean", "mean_x2": "twice its mean", "mean_x3": "three times its mean"}
CONTROLS = {
    "random": "a random direction",
    "regrouped": "regrouped distributions",
    "answers": "the answers' states",
    "untrained": "the untrained network",
}


def transfer_table(run: Run) -> Table:
    """A row per layer, on test: the share of answers that become the other task's, by the mean once, twice, three times
    and by a whole state; each control at its best strength; how many other answers stay under the mean once."""
    split = told_split(run)
    header = ("layer", "mean", "x 2", "x 3", "state", *CONTROLS, "others stay")
    if split is None:
        return Table((), [])
    target, stay = shares_of(run, "transfer_target", split), shares_of(run, "transfer_others_unchanged", split)
    layers = sorted({layer for layer, _, _ in target})
    rows: list[tuple[Cell, ...]] = []
    for layer in layers:
        own = [target.get((layer, arm, "none")) for arm in (*MEANS, "state")]
        beside = [_highest(target, layer, control) for control in CONTROLS]
        rows.append((layer, *own, *beside, stay.get((layer, "mean", "none"))))
    return Table(header, rows)


Shares = Mapping[tuple[int, str, str], float]  # layer, arm, control


def shares_of(run: Run, measure: str, split: str) -> Shares:
    rows = run.metrics.filter(pl.col("layer").is_not_null(), measure=measure, split=split)
    return {(row["layer"], row["arm"], row["control"]): row["value"] for row in rows.iter_rows(named=True)}


def told_split(run: Run) -> str | None:
    """The split that is told."""
    return next((split for split in ("test", "validation") if shares_of(run, "transfer_target", split)), None)


def best_place(found: Shares, control: str, arms: tuple[str, ...] = MEANS) -> tuple[int, str, str] | None:
    """The earliest layer and smallest strength of the highest share, above the embedding."""
    there = [place for place in found if place[0] > 0 and place[1] in arms and place[2] == control]
    return min(there, key=lambda place: (-found[place], place), default=None)


def _highest(found: Shares, layer: int, control: str) -> float | None:
    return max(
        (value for (at, arm, name), value in found.items() if (at, name) == (layer, control) and arm in MEANS),
        default=None,
    )
