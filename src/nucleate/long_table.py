"""The long table of finished runs, read: which rows are meant, their curves, what "late" and "best epoch" are.

Whatever is judged, drawn or told of a run picks its numbers here, so that a word means the same wherever it stands.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import polars as pl

from nucleate.runs import flat

LATE = 0.9  # "late": the measured epochs after this share of the training, averaged
BEST_OF = ("raw", "tsne")  # the paper clusters t-SNE's points where that scores higher (§3.2)
PAPERS_F1 = 0.9  # "over 0.9 at the late training stage" (§3.2): from here on clusters are said to match the tasks
LEAD = 0.1  # the task's clusters in a middle layer above those of the hardest control: from here on they are said to be
MOST = (
    0.5  # of the neighbours with another input and another distribution: from here on they are said to share the task
)
TURNED = 0.25  # of the answers that follow a moved state: from here on the task's part of it is said to be used
FIRST, LAST = 0, -1  # layers
TIMELESS = ("surface_instruction", "surface_prompt", "answers")  # controls without a network: no layer, no epoch
ANY = -1  # an epoch that `pick` does not look at
METHODS = {  # of alignment, by their arms, in the order of Table 2
    "direct": "direct fine-tuning",
    "head": "language head",
    "linear_switch": "linear switch",
    "mlp_switch": "MLP switch",
}
HEADS = {  # what is tuned of a ready-made model, without a switch
    "direct": "whole head",
    "head": "low-rank head",
    "adapter": "adapter",
}
# Settings in which runs of one experiment may differ: whose it is, where it computes, what is only looked at.
_OF_NO_MATTER = ("seed", "device", "measure.display_iterations")

# --- which rows -------------------------------------------------------------------------------------------------------


class Score(NamedTuple):
    """Which rows: one measure of one split; of several spaces the highest value counts."""

    measure: str
    split: str
    labels: str | None = "task"
    spaces: tuple[str, ...] = ("raw",)  # empty: what has no space
    arm: str | None = None  # None: whichever the table has, as for `experiment`
    experiment: str | None = None
    read: str = "input"  # the token, for what was read at one


ACCURACY = {split: Score("accuracy", split, None, ()) for split in ("subset", "validation", "test")}
LOSS = Score("loss", "train", None, ())


def f1(split: str, spaces: tuple[str, ...] = BEST_OF) -> Score:
    """F1 of clusters against tasks."""
    return Score("f1", split, "task", spaces)


def pick(table: pl.DataFrame, score: Score, control: str = "none", *, epoch: int | None = ANY) -> pl.DataFrame:
    """epoch, layer, value in this order, nulls first; None for `epoch` picks what has no epoch."""
    same = pl.col("measure").eq(score.measure) & pl.col("control").eq(control)
    same &= pl.col("split").eq(score.split) & pl.col("labels").eq_missing(score.labels)
    same &= pl.col("read").is_null() | pl.col("read").eq(score.read)
    if score.spaces:  # the surface of a text has no hidden states and may have no space either
        same &= pl.col("space").is_null() | pl.col("space").is_in(score.spaces)
    if score.arm is not None:
        same &= pl.col("arm").is_null() | pl.col("arm").eq(score.arm)
    if score.experiment is not None:
        same &= pl.col("experiment").eq(score.experiment)
    if epoch != ANY:
        same &= pl.col("epoch").eq_missing(epoch)
    return table.filter(same).group_by("epoch", "layer").agg(pl.col("value").max()).sort("epoch", "layer")


def by_layer(picked: pl.DataFrame) -> dict[int | None, float]:
    """layer -> value; None is the layer of what has none."""
    return {row["layer"]: row["value"] for row in picked.iter_rows(named=True)}


def value_of(metrics: pl.DataFrame, measure: str, **wanted: object) -> float | None:
    """One number of the long table; rows have control none unless another is named. None where there is no such row."""
    rows = metrics.filter(pl.col("measure") == measure)
    for column, value in {"control": "none", **wanted}.items():
        rows = rows.filter(pl.col(column).eq_missing(value))
    return rows["value"][0] if len(rows) else None


# --- curves and levels ------------------------------------------------------------------------------------------------


def curve_of(table: pl.DataFrame, score: Score, layer: int | None = LAST, control: str = "none") -> dict[int, float]:
    """epoch -> value, epochs rising, in one layer (-1: the last one; None for what has no layers)."""
    rows = pick(table, score, control).drop_nulls("epoch")
    if layer is not None:
        layers = rows["layer"].drop_nulls().unique().sort().to_list()
        if not layers:
            return {}
        rows = rows.filter(pl.col("layer") == layers[layer])
    return dict(zip(rows["epoch"], rows["value"], strict=True))


def late_mean(curve: Mapping[int, float]) -> float | None:
    """The mean over the measured epochs in the last tenth of the training."""
    if not curve:
        return None
    last = max(curve)
    return float(np.mean([value for epoch, value in curve.items() if epoch > LATE * last or epoch == last]))


def level_of(table: pl.DataFrame, score: Score, layer: int | None = LAST, control: str = "none") -> float | None:
    """Late in training; of the untrained network at epoch 0; of the bare text its one value."""
    if control == "untrained":
        return curve_of(table, score, layer).get(0)
    if control in TIMELESS:
        rows = pick(table, score, control)
        return float(rows["value"][0]) if len(rows) else None
    return late_mean(curve_of(table, score, layer, control))


class Told(NamedTuple):
    """A level on test, and the layer that validation chose for it; None where there are no layers to choose from."""

    layer: int | None
    value: float


def told_on_test(table: pl.DataFrame, score: Score, control: str = "none") -> Told | None:
    """Late on test, in the middle layer (any but the first and the last) that is the highest late on validation; the
    lower one where two are. A control has the same choice."""
    seen, asked = score._replace(split="validation"), score._replace(split="test")
    if control in TIMELESS:
        level = level_of(table, asked, control=control)
        return None if level is None else Told(None, level)
    epochs = pick(table, seen, "none" if control == "untrained" else control).drop_nulls("epoch")
    layers = epochs["layer"].drop_nulls().unique().sort().to_list()
    levels = {place: level_of(table, seen, place, control) for place in range(1, len(layers) - 1)}
    known = {place: level for place, level in levels.items() if level is not None}
    if not known:
        return None
    chosen = min(known, key=lambda place: (-known[place], place))
    level = level_of(table, asked, chosen, control)
    return None if level is None else Told(layers[chosen], level)


class BestEpoch(NamedTuple):
    """The earliest epoch of the highest validation accuracy after at least one epoch, and that accuracy in [0, 1]."""

    epoch: int
    accuracy: float


def best_epoch(table: pl.DataFrame) -> BestEpoch | None:
    """Of a learning run; None where validation accuracy was not measured."""
    accuracy = ACCURACY["validation"]._replace(experiment="learn")
    curve = {epoch: value for epoch, value in curve_of(table, accuracy, None).items() if epoch > 0}
    if not curve:
        return None
    epoch = min(curve, key=lambda one: (-curve[one], one))
    return BestEpoch(epoch, curve[epoch])


# --- of a probe -------------------------------------------------------------------------------------------------------


def main_read(metrics: pl.DataFrame) -> pl.DataFrame:
    """The rows of the token by which the best layer was chosen, and those of no token."""
    reads = metrics.filter(pl.col("measure") == "best_layer")["read"]
    return metrics.filter(pl.col("read").is_null() | pl.col("read").is_in(reads.unique().to_list()))


def best_layer_of(metrics: pl.DataFrame, model: str) -> int:
    """The layer that was chosen on validation."""
    return best_layers(metrics)[model]


def best_layers(metrics: pl.DataFrame, measure: str = "best_layer", control: str = "none") -> dict[str, int]:
    """model -> the layer that was chosen for it on validation: by neighbours, or `best_readable_layer`."""
    rows = metrics.filter(pl.col("measure") == measure, pl.col("control") == control)
    return {row["model"]: int(row["value"]) for row in rows.iter_rows(named=True)}


def deciding_measure(metrics: pl.DataFrame) -> str:
    """Whichever share of neighbours the verdict goes by: the one that has an interval beside its margin."""
    others = metrics.filter(pl.col("measure") == "knn_share_other_inputs_low")
    return "knn_share" if others.is_empty() else "knn_share_other_inputs"


# --- states moved to another task -------------------------------------------------------------------------------------

STRENGTHS = {"mean": 1, "mean_x2": 2, "mean_x3": 3}  # arm -> how many times the shift is added
Shares = Mapping[tuple[int, str, str], float]  # layer, arm, control


def shares_of(table: pl.DataFrame, measure: str, split: str) -> Shares:
    """Of one split, wherever something was moved."""
    rows = table.filter(pl.col("layer").is_not_null(), measure=measure, split=split)
    return {(row["layer"], row["arm"], row["control"]): row["value"] for row in rows.iter_rows(named=True)}


class Move(NamedTuple):
    """A middle layer and an arm that validation chose, and what became the other task's on test."""

    layer: int
    arm: str
    share: float
    controls: dict[str, float]  # at the same place


def told_move(table: pl.DataFrame, arms: Collection[str] = STRENGTHS, measure: str = "transfer_target") -> Move | None:
    """Chosen on validation as `best_move` does, among what test can tell of."""
    choosing, told = (shares_of(table, measure, split) for split in ("validation", "test"))
    place = best_move({key: share for key, share in choosing.items() if (*key[:2], "none") in told}, arms)
    if place is None:
        return None
    return Move(*place, told[*place, "none"], _controls_at(told, *place))


def best_move(choosing: Shares, arms: Collection[str] = STRENGTHS) -> tuple[int, str] | None:
    """The layer and the arm where the share is furthest above the hardest control at the same place: in late layers a
    move to the other answer alone turns every answer, which says nothing of a move to the other task in an earlier
    one. The embedding is no middle layer; of equals the earliest layer and the smallest strength."""
    leads = {
        (layer, arm): share - max(_controls_at(choosing, layer, arm).values(), default=0.0)
        for (layer, arm, control), share in choosing.items()
        if control == "none" and layer > 0 and arm in arms
    }
    return min(leads, key=lambda place: (-leads[place], place), default=None)


def _controls_at(found: Shares, layer: int, arm: str) -> dict[str, float]:
    return {name: value for (at, of, name), value in found.items() if (at, of) == (layer, arm) and name != "none"}


def is_beyond(share: float, control: float, units: float) -> bool:
    """Further above a control than two standard errors of the difference. Pairs of one instruction count as one, of so
    many `units` in all: they share its state but for the input."""
    few = (units * np.array([share, control]) + 0.5) / (units + 1)  # none and all of few are no certainty
    return share - control > 2 * float(np.sqrt((few * (1 - few)).sum() / max(units, 1)))


# --- the verdict of a probe -------------------------------------------------------------------------------------------

CLUSTERED, READABLE, WORDS, NOT_HELD = "clustered", "readable", "no more than the words", "not held"
VERDICTS = (CLUSTERED, READABLE, WORDS, NOT_HELD)


def verdict_from(clustered: float | None, readable: float | None, held: float | None) -> str | None:
    """Of a task, or the whole; None where there are too few prompts to tell."""
    if clustered == 1:
        return CLUSTERED
    if readable == 1:
        return READABLE
    if clustered is None or readable is None or held is None:
        return None
    return WORDS if held == 1 else NOT_HELD


def either(flags: Sequence[float | None]) -> float | None:
    """1 as soon as one is; else None where one is unknown."""
    return 1.0 if 1.0 in flags else None if None in flags else 0.0


# --- runs that belong together ----------------------------------------------------------------------------------------


def settings_but_seed(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run by dotted name, without those in which runs of one experiment may differ."""
    return {key: value for key, value in flat(config).items() if key not in _OF_NO_MATTER}
