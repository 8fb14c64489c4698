"""A run's long table in, one number out: the primary quantities of the ledger, one function per claim.

Each takes the table and a control. Under `none` it is the run's own number; under any other name the very same quantity
of that control: the untrained network (epoch 0), permuted labels, the bare text, layer 0. (Where the comparison lies
inside the quantity, no control is asked for.) None where the table lacks what it takes. What the quantities are held
against stands in `claims/table.py`.
"""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
import polars as pl
from scipy.stats import linregress, spearmanr

from nucleate.long_table import (
    ACCURACY,
    BEST_OF,
    FIRST,
    LAST,
    LATE,
    LOSS,
    METHODS,
    Score,
    best_epoch,
    curve_of,
    f1,
    late_mean,
    level_of,
    pick,
)

GUESSED = 0.2  # of the answers are right by a guess among a task's five outputs


def _layers(table: pl.DataFrame, score: Score, control: str) -> dict[int, float]:
    """layer -> level."""
    rows = pick(table, score, "none" if control == "untrained" else control).drop_nulls(["epoch", "layer"])
    curves: dict[int, dict[int, float]] = {}
    for epoch, layer, value in rows.iter_rows():
        curves.setdefault(layer, {})[epoch] = value
    levels = {layer: curve.get(0) if control == "untrained" else late_mean(curve) for layer, curve in curves.items()}
    return {layer: level for layer, level in sorted(levels.items()) if level is not None}


def _lowest(values: Iterable[float | None]) -> float | None:
    """None as soon as one is missing."""
    listed = list(values)
    known = [value for value in listed if value is not None]
    return min(known) if known and len(known) == len(listed) else None


def _first(curve: Mapping[int, float], least: float) -> int | None:
    """The first epoch at which a curve is at `least` or above."""
    return next((epoch for epoch, value in curve.items() if value >= least), None)


def trend(curve: Mapping[int, float]) -> float:
    """Spearman's correlation of value and epoch; 0 for what is constant or a single point."""
    if len(curve) < 2 or len(set(curve.values())) < 2:
        return 0.0
    return float(spearmanr(list(curve), list(curve.values())).statistic)


# --- primary quantities: what the paper shows in Figures 2 to 4 and 6 to 10 -------------------------------------------


def late_f1_subset(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of clusters against tasks, late in training.

    By k-means on the training subset, last layer; 0 to 1. At each epoch the better of raw states and t-SNE, as in the
    paper, whose 0.9 was read off that way. Every control has the same choice; both spaces are shown beside.
    """
    return level_of(table, f1("subset"), control=control)


def growth_to_saturation(table: pl.DataFrame, control: str = "none") -> float | None:
    """Rank correlation of epoch and F1 up to saturation.

    Last layer, subset, from epoch 0 on; -1 to 1. It is 0 where saturation comes within the first five measured epochs:
    what is there at once, or from the start, does not grow gradually.
    """
    curve = curve_of(table, f1("subset"), control=control)
    end = saturation_epoch(curve)
    if end is None:
        return None
    rising = {epoch: value for epoch, value in curve.items() if epoch <= end}
    return trend(rising) if len(rising) > 5 else 0.0


def saturation_epoch(curve: Mapping[int, float]) -> int | None:
    """The first measured epoch at 95 % of the mean of the last ten measured ones, or above."""
    return _first(curve, 0.95 * float(np.mean(list(curve.values())[-10:]))) if curve else None


def f1_gain_per_layer(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 gained per layer. The slope of the late F1 (subset) over the layers 1..L, by least squares; without layer 0,
    which the paper calls a baseline, because the step from it to layer 1 alone would make a slope."""
    levels = {layer: level for layer, level in _layers(table, f1("subset"), control).items() if layer >= 1}
    return float(linregress(list(levels), list(levels.values())).slope) if len(levels) >= 2 else None


def range_of_layer_0(table: pl.DataFrame, control: str = "none") -> float | None:
    """Range of layer 0's F1, as a share of the last layer's. Over all epochs, subset; 0 is no change at all."""
    ranges = [np.ptp(list(curve_of(table, f1("subset"), layer).values()) or [0.0]) for layer in (FIRST, LAST)]
    return float(ranges[0] / ranges[1]) if ranges[1] > 0 else None


def late_f1_unseen(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of clusters against tasks, the lower of validation and test. As for C1, but of instructions never seen. A
    control counts as far below the network as it is on the split where it comes nearest."""
    splits = ("validation", "test")
    own, levels = ([level_of(table, f1(split), control=name) for split in splits] for name in ("none", control))
    lead = _lowest(less(mine, its) for mine, its in zip(own, levels, strict=True))
    return _lowest(levels) if control == "none" else less(_lowest(own), lead)


def late_share_other_distributions(table: pl.DataFrame, control: str = "none") -> float | None:
    """Share of the nearest from other distributions that have the same task.

    Of the ten training instances of other distributions that are nearest to an unseen instance: validation, raw states,
    last layer, late; 0 to 1. Recognising each distribution by itself gives nothing here.
    """
    return level_of(table, Score("knn_share_other_distributions", "validation"), control=control)


def hard_margin(table: pl.DataFrame, control: str = "none") -> float | None:
    """Margin by which hard examples have left their originals.

    The lower of two margins, last layer, late, subset; -1 to 0.5, and above 0 they have left. The first is the share of
    pairs (hard example, original) in different clusters, less a half. The second is the share of a hard example's
    nearest training instances with its own task, less the share with its original's. The second is needed because any
    clustering, even a meaningless one, parts most pairs by chance.
    """
    return _lowest(
        (
            less(pairs_apart(table, control), 0.5),
            less(own_neighbours(table, control), neighbours_of_origin(table, control)),
        )
    )


def pairs_apart(table: pl.DataFrame, control: str = "none") -> float | None:
    """Share of hard examples in another cluster than their originals, where the paper would look: raw or t-SNE,
    whichever has the higher F1 at that epoch (raw, if equal)."""
    curves = []
    for space in BEST_OF:
        scores = [f1("subset", (space,)), Score("hard_separated", "subset", "task", (space,))]
        curves.append([_levels_by_epoch(table, score, control) for score in scores])
    (raw_f1, raw_apart), (tsne_f1, tsne_apart) = curves
    epochs = raw_f1.keys() & raw_apart.keys() & tsne_f1.keys() & tsne_apart.keys()
    chosen = {e: raw_apart[e] if raw_f1[e] >= tsne_f1[e] else tsne_apart[e] for e in epochs}
    return late_mean(chosen)


def _levels_by_epoch(table: pl.DataFrame, score: Score, control: str) -> dict[int, float]:
    """The last layer's curve; what has no epochs stands at epoch 0, as the untrained network does."""
    if control.startswith("surface"):
        level = level_of(table, score, control=control)
        return {} if level is None else {0: level}
    curve = curve_of(table, score, control="none" if control == "untrained" else control)
    return {epoch: value for epoch, value in curve.items() if epoch == 0} if control == "untrained" else curve


def own_neighbours(table: pl.DataFrame, control: str = "none") -> float | None:
    """Share of a hard example's nearest training instances that have its own task."""
    return level_of(table, Score("hard_share_own", "subset"), control=control)


def neighbours_of_origin(table: pl.DataFrame, control: str = "none") -> float | None:
    """Share of a hard example's nearest training instances that have its original's task."""
    return level_of(table, Score("hard_share_origin", "subset"), control=control)


def late_ari_within_tasks(table: pl.DataFrame, control: str = "none") -> float | None:
    """ARI inside tasks, the lower of distributions and mappings.

    Against distributions, and against pairs of distribution and mapping; 0 is chance, 1 perfect; validation, last
    layer, late. The text alone finds the distributions and the input word alone the mappings; a hierarchy needs both.
    """
    return _lowest(ari_within(table, labels, control) for labels in ("distribution", "distribution_mapping"))


def ari_within(table: pl.DataFrame, labels: str, control: str = "none") -> float | None:
    """The better of raw states and t-SNE."""
    return level_of(table, Score("ari_within_tasks", "validation", labels, BEST_OF), control=control)


def waiting_share(table: pl.DataFrame, control: str = "none") -> float | None:
    """Share of the rise of accuracy that is spent waiting.

    The epochs whose accuracy stays under 5 % of its final level, as a share of those up to 50 %; 0 to 1. The lower of
    subset and validation, since the paper names both. A straight rise from the first epoch gives at most 0.1, and one
    that slows down gives less; only a late and abrupt rise gives more. It is 0 where the training loss does not fall
    steadily meanwhile (rank correlation with the epochs above -0.9). Undefined for a network that has not learnt: late
    in training it has under a fifth of the unseen instances right, as guessing among a task's five outputs would.
    """
    if not _has_learnt(table):
        return None
    return _lowest(_waiting(table, split) for split in ("subset", "validation"))


def _waiting(table: pl.DataFrame, split: str) -> float | None:
    five, fifty = (accuracy_epoch(table, split, share) for share in (0.05, 0.5))
    if five is None or not fifty:
        return None
    loss = {epoch: value for epoch, value in curve_of(table, LOSS, None).items() if epoch <= fifty}
    return max(0, five - 1) / fifty if trend(loss) <= -0.9 else 0.0


def accuracy_epoch(table: pl.DataFrame, split: str, share: float) -> int | None:
    """The first epoch at which the accuracy is at a share of its late level."""
    curve = curve_of(table, ACCURACY[split], None)
    level = late_mean(curve)
    return _first(curve, share * level) if level else None


def clustering_lead(table: pl.DataFrame, control: str = "none") -> float | None:
    """Epochs by which clustering is half done before accuracy is.

    Negative where it comes after. Last-layer F1 and accuracy, both on validation. Half done is half way from the level
    at epoch 0 to the late level, because an untrained network's F1 is well above 0 and would be "half" from the start.
    Clustering that never rises is done at the end. Undefined, as for C9, for a network that has not learnt. Clustering
    is measured at every fifth epoch after the first twenty, so that its half is found up to four epochs late, which
    counts against the claim.
    """
    if not _has_learnt(table):
        return None
    accuracy, clustering = curve_of(table, ACCURACY["validation"], None), curve_of(table, f1("validation"))
    halves = [half_rise_epoch(accuracy), half_rise_epoch(clustering)]
    return None if halves[0] is None or halves[1] is None else float(halves[0] - halves[1])


def _has_learnt(table: pl.DataFrame) -> bool:
    late = late_mean(curve_of(table, ACCURACY["validation"], None))
    return late is not None and late >= GUESSED


def half_rise_epoch(curve: Mapping[int, float]) -> int | None:
    """The first epoch half way from the first level to the late one; the last epoch where nothing rises."""
    late = late_mean(curve)
    if late is None:
        return None
    start = next(iter(curve.values()))
    return _first(curve, (start + late) / 2) if late > start else max(curve)


def half_level_epoch(curve: Mapping[int, float]) -> int | None:
    """The first epoch at half of the late level, wherever the curve began."""
    late = late_mean(curve)
    return None if late is None else _first(curve, late / 2)


def best_epoch_to_saturation(table: pl.DataFrame, control: str = "none") -> float | None:
    """Distance from the best epoch to saturation, as a share of all epochs.

    Saturation of the last-layer F1 on validation. It is 1 where clustering does not persist (late level under 95 % of
    that at the best epoch), or where the best epoch lies in the last tenth of the training, so that nothing is left to
    persist in.
    """
    curve, best = curve_of(table, f1("validation")), best_epoch(table)
    saturation, late = saturation_epoch(curve), late_mean(curve)
    if best is None or saturation is None or late is None:
        return None
    if best.epoch > LATE * max(curve) or late < 0.95 * _at(curve, best.epoch):
        return 1.0
    return abs(best.epoch - saturation) / max(curve)


def growth_after_best(table: pl.DataFrame) -> float | None:
    """Last-layer F1 (validation) late in training, less that at the best epoch."""
    curve, best = curve_of(table, f1("validation")), best_epoch(table)
    late = late_mean(curve)
    return None if best is None or late is None else late - _at(curve, best.epoch)


def _at(curve: Mapping[int, float], epoch: int) -> float:
    """The value at the last measured epoch up to this one."""
    return curve[max((measured for measured in curve if measured <= epoch), default=min(curve))]


def late_knn_share(table: pl.DataFrame, control: str = "none") -> float | None:
    """Share of the ten nearest training instances that have the same task. Nearest to an unseen instance: validation,
    raw states, last layer, late; 0 to 1."""
    return level_of(table, Score("knn_share", "validation"), control=control)


def late_knn_accuracy(table: pl.DataFrame, control: str = "none") -> float | None:
    """Accuracy of answering as the ten nearest training instances do. Validation, raw states, last layer, late."""
    return level_of(table, Score("knn_accuracy", "validation"), control=control)


# --- primary quantities: Table 1, Figure 5, Table 2 -------------------------------------------------------------------


def category_f1(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of clusters against tasks, the lowest of the models.

    Each model at its best layer, raw or t-SNE, as in Table 1; 0 to 1. Layer and space are chosen with the labels in
    hand, as the paper does; a control has the same choice and counts with its highest over the models. Raw states alone
    where a control was not laid out by t-SNE.
    """
    best = _by_model(table, "task", control, _spaces_of_all(table))
    return None if not best else min(best.values()) if control == "none" else max(best.values())


def family_gap(table: pl.DataFrame) -> float | None:
    """Distribution-mapping F1: the lowest of the LLaMAs less the highest of the GPT-Js; None without both."""
    best = _by_model(table, "distribution_mapping", "none", BEST_OF)
    families = [
        [value for model, value in best.items() if part in model.lower().replace("-", "")] for part in ("llama", "gptj")
    ]
    return min(families[0]) - max(families[1]) if all(families) else None


def best_f1(table: pl.DataFrame, space: str) -> float | None:
    """The lowest over the models of the task F1 at the model's best layer, in one space."""
    return _lowest(_by_model(table, "task", "none", (space,)).values())


def _spaces_of_all(table: pl.DataFrame) -> tuple[str, ...]:
    """Those in which the models and every control were clustered."""
    rows = table.filter(measure="f1", split="all", labels="task")
    there = rows.group_by("control").agg(pl.col("space").unique())["space"].to_list()
    return tuple(space for space in BEST_OF if all(space in spaces for spaces in there))


def _by_model(table: pl.DataFrame, labels: str, control: str, spaces: Sequence[str]) -> dict[str, float]:
    rows = table.filter(
        pl.col("measure").eq("f1") & pl.col("split").eq("all") & pl.col("labels").eq(labels),
        pl.col("control").eq(control) & pl.col("space").is_in(spaces),
        pl.col("read").is_null() | pl.col("read").eq("input"),
    )
    best = rows.group_by("model").agg(pl.col("value").max()).sort("model")
    return {str(model): value for model, value in best.iter_rows()}


def area_gain(table: pl.DataFrame, control: str = "none") -> float | None:
    """Mean validation accuracy, less the better of the paper's other arms. The mean over the fine-tuning after task-id
    pre-training; -1 to 1. All arms have equally many epochs, so that it is speed and height together."""
    return _gain({arm: curve_measure(table, arm, "area_under_curve") for arm in ("task_id", "none", "instruction")})


def final_accuracy_gain(table: pl.DataFrame, control: str = "none") -> float | None:
    """Final test accuracy, less the best of the other arms.

    After task-id pre-training, late in the fine-tuning; -1 to 1. Among the others is an arm that the paper lacks, which
    trains longer by the steps of the pre-training: otherwise more compute could be the reason.
    """
    return _gain({arm: final_accuracy(table, arm) for arm in ("task_id", "none", "instruction", "longer")})


def _gain(levels: Mapping[str, float | None]) -> float | None:
    others = [level for arm, level in levels.items() if arm != "task_id" and level is not None]
    return less(levels["task_id"], max(others)) if len(others) == len(levels) - 1 else None


def curve_measure(table: pl.DataFrame, arm: str, measure: str) -> float | None:
    """What an arm's validation curve comes to: area_under_curve, epochs_to_90, ..."""
    return _single(table, Score(measure, "validation", None, (), arm))


def final_accuracy(table: pl.DataFrame, arm: str) -> float | None:
    """An arm's accuracy on test, late in its fine-tuning."""
    return late_mean(curve_of(table, ACCURACY["test"]._replace(arm=arm), None))


def smallest_relief(table: pl.DataFrame, control: str = "none") -> float | None:
    """Smallest of the three steps by which forgetting falls.

    From direct to head to linear switch to MLP switch, in accuracy drop of the tasks other than the source tasks, on
    test; above 0 where each method forgets less than the one before it. Where a method leaves the source tasks below
    0.995 (the paper's 1.00, rounded), it is the shortfall of the worst from 1 instead, as a negative number.
    """
    drops = [chosen_model(table, arm, "accuracy_drop") for arm in METHODS]
    sources = _lowest(chosen_model(table, arm, "source_accuracy") for arm in METHODS)
    if sources is None or None in drops:
        return None
    known = [drop for drop in drops if drop is not None]
    return min(worse - better for worse, better in pairwise(known)) if sources >= 0.995 else sources - 1


def chosen_model(table: pl.DataFrame, arm: str, measure: str) -> float | None:
    """The chosen model's row, which has no epoch."""
    return _single(table, Score(measure, "test", None, (), arm))


def _single(table: pl.DataFrame, score: Score) -> float | None:
    rows = pick(table, score, "none").filter(pl.col("epoch").is_null())
    return float(rows["value"][0]) if len(rows) else None


def less(value: float | None, other: float | None) -> float | None:
    """A difference; None where either is missing."""
    return None if value is None or other is None else value - other
