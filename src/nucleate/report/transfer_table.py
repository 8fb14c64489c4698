"""What follows when a state is moved to another task, layer by layer, in rows of plain values."""

import polars as pl

from nucleate.long_table import STRENGTHS, Shares, shares_of
from nucleate.report.tables import Cell, Table
from nucleate.runs import Run

CONTROLS = {
    "random": "a random direction",
    "regrouped": "regrouped distributions",
    "answers": "the answers' states",
    "untrained": "the untrained network",
}


def put_in_place(arm: str) -> str:
    """What an arm puts in the place of a task's own mean."""
    return f"{('', 'twice ', 'three times ')[STRENGTHS[arm] - 1]}its mean"


COUNTED = {"transfer_target": "the answer", "transfer_turned": "the likelier of two"}  # measure -> what it counts


def transfer_table(run: Run) -> Table:
    """A row per layer, on test: the share of answers that become the other task's, by the mean once, twice, three times
    and by a whole state; each control at its best strength; how many other answers stay under the mean once."""
    split = told_split(run)
    header = ("layer", "mean", "x 2", "x 3", "state", *CONTROLS, "others stay")
    if split is None:
        return Table((), [])
    target, stay = (shares_of(run.metrics, f"transfer_{name}", split) for name in ("target", "others_unchanged"))
    layers = sorted({layer for layer, _, _ in target})
    rows: list[tuple[Cell, ...]] = []
    for layer in layers:
        own = [target.get((layer, arm, "none")) for arm in (*STRENGTHS, "state")]
        beside = [_highest(target, layer, control) for control in CONTROLS]
        rows.append((layer, *own, *beside, stay.get((layer, "mean", "none"))))
    return Table(header, rows)


def acting_table(run: Run) -> Table:
    """Of a probe, a row per model, half and layer: on validation all that were tried, on test the one that was chosen.
    The share of answers that become the other task's or, where too few were right, of pairs whose other answer becomes
    the likelier one; each control at its best strength."""
    if run.config.get("verb") != "probe":
        return Table((), [])
    rows: list[tuple[Cell, ...]] = []
    for model in run.config["models"]:
        own = run.metrics.filter(pl.col("model") == model, pl.col("experiment") == "transfer")
        counted = next((one for one in COUNTED if shares_of(own, one, "test")), None)
        if counted is None:
            continue
        for split in ("validation", "test"):
            turned, stay = (shares_of(own, measure, split) for measure in (counted, "transfer_others_unchanged"))
            for layer in sorted({layer for layer, _, _ in turned}):
                arms = [turned.get((layer, arm, "none")) for arm in STRENGTHS]
                beside = [_highest(turned, layer, control) for control in CONTROLS]
                kept = max((share for (at, _, _), share in stay.items() if at == layer), default=None)
                rows.append((model, split, COUNTED[counted], layer, *arms, *beside, kept))
    header = ("model", "half", "counted", "layer", "mean", "x 2", "x 3", *CONTROLS, "others stay")
    return Table(header, rows) if rows else Table((), [])


def told_split(run: Run) -> str | None:
    """The split that is told."""
    return next((split for split in ("test", "validation") if shares_of(run.metrics, "transfer_target", split)), None)


def _highest(found: Shares, layer: int, control: str) -> float | None:
    return max(
        (value for (at, arm, name), value in found.items() if (at, name) == (layer, control) and arm in STRENGTHS),
        default=None,
    )
