"""A run's long table in, one number out: the primary quantities of the ledger that `learn` measures, a function each.

Each takes the table and a control. Under `none` it is the run's own number; under any other name the very same quantity
of that control: the untrained network (epoch 0), permuted labels, the bare text, right answers alone. (Where the
comparison lies inside the quantity, no control is asked for.) None where the table lacks what it takes, or where the
event that is asked about never comes. What the quantities are held against stands in `claims/table.py`.
"""

from collections.abc import Iterable, Mapping

import polars as pl
from scipy.stats import linregress, spearmanr

from nucleate.long_table import (
    ACCURACY,
    BEST_OF,
    FIRST,
    LATE,
    LOSS,
    TIMELESS,
    Score,
    best_epoch,
    curve_of,
    f1,
    late_mean,
    level_of,
    pick,
    told_move,
    told_on_test,
)

GUESSED = 0.2  # of the answers are right by a guess among a task's five outputs
ONE_GUESS = 1 / 25  # among all outputs


def _layers(table: pl.DataFrame, score: Score, control: str) -> dict[int, float]:
    """layer -> level."""
    rows = pick(table, score, "none" if control == "untrained" else control).drop_nulls(["epoch", "layer"])
    curves: dict[int, dict[int, float]] = {}
    for epoch, layer, value in rows.iter_rows():
        curves.setdefault(layer, {})[epoch] = value
    levels = {layer: curve.get(0) if control == "untrained" else late_mean(curve) for layer, curve in curves.items()}
    return {layer: level for layer, level in sorted(levels.items()) if level is not None}


def lowest(values: Iterable[float | None]) -> float | None:
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


def less(value: float | None, other: float | None) -> float | None:
    """A difference; None where either is missing."""
    return None if value is None or other is None else value - other


# --- Figures 2 to 4 and 6 to 10 ---------------------------------------------------------------------------------------


def late_f1_subset(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of clusters against tasks, late in training.

    By k-means on the training subset, last layer; 0 to 1. At each epoch the better of raw states and t-SNE, as in the
    paper, whose 0.9 was read off that way. Every control has the same choice; both spaces are shown beside.
    """
    return level_of(table, f1("subset"), control=control)


def f1_gain(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 gained by training. The late F1 (subset, last layer, as for C1) less that before the first step; -1 to 1."""
    curve = curve_of(table, f1("subset"), control=control)
    return less(late_mean(curve), curve.get(0))


def saturation_epoch(curve: Mapping[int, float]) -> int | None:
    """The first measured epoch at 95 % of the late level, or above; None of a curve that does not rise to it."""
    late = late_mean(curve)
    return None if late is None or late <= curve[min(curve)] else _first(curve, 0.95 * late)


def f1_gain_per_layer(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 gained per layer. The slope of the late F1 (subset) over the layers 1..L, by least squares; without layer 0,
    which the paper calls a baseline, because the step from it to layer 1 alone would make a slope."""
    levels = {layer: level for layer, level in _layers(table, f1("subset"), control).items() if layer >= 1}
    return float(linregress(list(levels), list(levels.values())).slope) if len(levels) >= 2 else None


def peak_layer(table: pl.DataFrame) -> int | None:
    """The layer of the highest late F1 (subset); the lower one where two are."""
    levels = _layers(table, f1("subset"), "none")
    return min(levels, key=lambda layer: (-levels[layer], layer)) if levels else None


def change_of_layer_0(table: pl.DataFrame, control: str = "none") -> float | None:
    """Change of layer 0's F1. Its late F1 (subset) and that before the first step, the absolute difference."""
    return change_of(table, FIRST)


def change_of(table: pl.DataFrame, layer: int) -> float | None:
    """The same of any layer."""
    curve = curve_of(table, f1("subset"), layer)
    change = less(late_mean(curve), curve.get(0))
    return None if change is None else abs(change)


def unseen_less_subset(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of unseen instructions less that of the subset.

    The lower of validation and test, late, last layer, as for C1. A control stands as far below the network as its F1
    is below the network's on the split where it comes nearest: it is the F1 itself that has to be higher.
    """
    splits = ("validation", "test")
    own, levels = ([level_of(table, f1(split), control=name) for split in splits] for name in ("none", control))
    gap = less(lowest(own), late_f1_subset(table))
    lead = lowest(less(mine, its) for mine, its in zip(own, levels, strict=True))
    return gap if control == "none" else less(gap, lead)


def told_share_other_both(table: pl.DataFrame, control: str = "none") -> float | None:
    """Same-task share of neighbours with other input and distribution.

    Of the ten training instances of another input and another distribution that are nearest to an unseen instance, in
    centred states: middle layer, late, chosen on validation, told on test, the mean over tasks; 0 to 1. Right answers
    find none of them. Undefined for a network that has not learnt.
    """
    if not has_learnt(table):
        return None
    return told_level(table, control, measure="knn_share_other_both_by_task")


def told_level(table: pl.DataFrame, control: str = "none", *, measure: str) -> float | None:
    """Of centred states, late, in the middle layer that validation chooses, told on test."""
    told = told_on_test(table, Score(measure, "test", "task", ("centred",)), control)
    return None if told is None else told.value


def hard_margin(table: pl.DataFrame, control: str = "none", *, suffix: str = "_k1", space: str = "raw") -> float | None:
    """Margin by which hard examples have left their originals.

    The share of a hard example's nearest training instance with its own task, less the share with its original's; last
    layer, late, subset, raw states; -1 to 1.
    """
    own, origin = (
        level_of(table, Score(f"hard_share_{whose}{suffix}", "subset", "task", (space,)), control=control)
        for whose in ("own", "origin")
    )
    return less(own, origin)


def late_f1_distributions(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of clusters against distributions. Validation, last layer, late, the better of raw states and t-SNE."""
    return _inner_f1(table, "distribution", control)


def late_f1_distribution_mappings(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of clusters against distribution-mappings. Validation, last layer, late, the better of raw and t-SNE."""
    return _inner_f1(table, "distribution_mapping", control)


def _inner_f1(table: pl.DataFrame, labels: str, control: str) -> float | None:
    return level_of(table, Score("f1", "validation", labels, BEST_OF), control=control)


def ari_within(table: pl.DataFrame, labels: str, control: str = "none") -> float | None:
    """ARI inside tasks, the better of raw states and t-SNE."""
    return level_of(table, Score("ari_within_tasks", "validation", labels, BEST_OF), control=control)


# --- when -------------------------------------------------------------------------------------------------------------


def waiting_share(table: pl.DataFrame, control: str = "none", *, split: str = "subset") -> float | None:
    """Share of the rise of accuracy that is spent waiting.

    On the subset, corrected for one guess in 25: the epochs whose accuracy stays under 5 % of its late level, as a
    share of those up to 50 %; 0 to 1. A straight rise from what guesses give has at most 0.1, one that slows down
    less; only a late and abrupt rise gives more. It is 0 where the training loss does not fall steadily meanwhile
    (rank correlation with the epochs above -0.9). Undefined for a network that has not learnt: late in training it has
    under a fifth of the unseen instances right, as guessing among a task's five outputs would.
    """
    if not has_learnt(table):
        return None
    five, fifty = (accuracy_epoch(table, split, share) for share in (0.05, 0.5))
    if five is None or not fifty:
        return None
    loss = {epoch: value for epoch, value in curve_of(table, LOSS, None).items() if epoch <= fifty}
    return max(0, five - 1) / fifty if trend(loss) <= -0.9 else 0.0


def accuracy_epoch(table: pl.DataFrame, split: str, share: float) -> int | None:
    """The first epoch at which the accuracy, corrected for guesses, is at a share of its late level."""
    raw = curve_of(table, ACCURACY[split], None)
    curve = {epoch: max(0.0, (value - ONE_GUESS) / (1 - ONE_GUESS)) for epoch, value in raw.items()}
    level = late_mean(curve)
    return _first(curve, share * level) if level else None


def clustering_lead(table: pl.DataFrame, control: str = "none") -> float | None:
    """Epochs by which clustering is half done before accuracy is.

    The epochs from which each stays above half of its rise, from before the first step to its late level: the accuracy,
    and the F1 of centred clusters in the middle layer that validation chooses, both on test at the measured epochs.
    Negative where clustering comes after. Half of the rise and not of the level, because an untrained network's F1 is
    about half of any late one. Undefined for a network that has not learnt, and where the clustering never rises.
    """
    score = Score("f1", "test", "task", ("centred",))
    told = told_on_test(table, score)
    if told is None or not has_learnt(table):
        return None
    clusters, right = curve_of(table, score, told.layer), curve_of(table, ACCURACY["test"], None)
    halves = [
        stays_above_half({epoch: curve[epoch] for epoch in clusters if epoch in curve}) for curve in (right, clusters)
    ]
    return None if halves[0] is None or halves[1] is None else float(halves[0] - halves[1])


def stays_above_half(curve: Mapping[int, float]) -> int | None:
    """The first epoch from which on a curve is above half of its rise from the first level to the late one."""
    late = late_mean(curve)
    if late is None or late <= curve[min(curve)]:
        return None
    half = (curve[min(curve)] + late) / 2
    below = [epoch for epoch, value in curve.items() if value <= half]
    return min((epoch for epoch in curve if epoch > max(below)), default=None)


def has_learnt(table: pl.DataFrame) -> bool:
    """Late in training it has a fifth of the unseen instances right, more than guesses would have."""
    late = late_mean(curve_of(table, ACCURACY["validation"], None))
    return late is not None and late >= GUESSED


def persistence(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 gained after the best epoch.

    Last-layer F1 (validation, as for C1), late less that at the best epoch. Undefined for a network that has not
    learnt, and where the best epoch lies in the last tenth of the training, so that nothing is left to persist in.
    """
    curve, best = curve_of(table, f1("validation")), best_epoch(table)
    late = late_mean(curve)
    if best is None or late is None or not has_learnt(table) or best.epoch > LATE * max(curve):
        return None
    return late - _at(curve, best.epoch)


def best_epoch_to_saturation(table: pl.DataFrame, control: str = "none") -> float | None:
    """Distance from the best epoch to saturation, as a share of all epochs.

    Saturation of the last-layer F1 on validation. Undefined for a network that has not learnt, and where the F1 never
    rises.
    """
    curve, best = curve_of(table, f1("validation")), best_epoch(table)
    saturation = saturation_epoch(curve)
    if best is None or saturation is None or not has_learnt(table):
        return None
    return abs(best.epoch - saturation) / max(curve)


def _at(curve: Mapping[int, float], epoch: int) -> float:
    """The value at the last measured epoch up to this one."""
    return curve[max((measured for measured in curve if measured <= epoch), default=min(curve))]


# --- neighbours, widths -----------------------------------------------------------------------------------------------


def late_knn_share(table: pl.DataFrame, control: str = "none") -> float | None:
    """Share of the ten nearest training instances that have the same task. Nearest to an unseen instance: validation,
    raw states, last layer, late; 0 to 1."""
    return level_of(table, Score("knn_share", "validation"), control=control)


def late_knn_accuracy(table: pl.DataFrame, control: str = "none") -> float | None:
    """Accuracy of answering as the ten nearest training instances do. Validation, raw states, last layer, late."""
    return level_of(table, Score("knn_accuracy", "validation"), control=control)


# --- what the paper does not ask --------------------------------------------------------------------------------------

CONTROLS_OF_THE_CODE = ("untrained", "shuffled", "regrouped", *TIMELESS)


def told_centred_f1(table: pl.DataFrame, control: str = "none") -> float | None:
    """F1 of centred clusters against tasks: middle layer, late, chosen on validation, told on test."""
    return told_level(table, control, measure="f1")


def told_layer(table: pl.DataFrame) -> int | None:
    """The middle layer that validation chooses for it."""
    told = told_on_test(table, Score("f1", "test", "task", ("centred",)))
    return None if told is None else told.layer


def lead_of_centred_f1(table: pl.DataFrame, control: str = "none") -> float | None:
    """Lead of the task's clusters over the hardest of six controls.

    F1 of k-means clusters of centred states against tasks: middle layer, late, chosen on validation, told on test; less
    the same of the hardest control, each at the layer of its own that validation chooses: untrained network, shuffled
    and regrouped labels, n-grams of instruction and of prompt, right answers alone. Undefined for a network that has
    not learnt.
    """
    if not has_learnt(table):
        return None
    return lowest(less(told_centred_f1(table), told_centred_f1(table, control)) for control in CONTROLS_OF_THE_CODE)


def turn_to_answers(table: pl.DataFrame, control: str = "none") -> float | None:
    """What training adds to the answer's own share of variance.

    Over the task's share and over chance. Of centred states, last layer, validation: the share between outputs, less
    the share between tasks; and less the share between outputs that are dealt anew among each task's inputs (mean of
    20), which any state of its own for each pair of task and input would have; late less before the first step, the
    lower of the two; -2 to 2. Undefined for a network that has not learnt.
    """
    return lowest((turn_from(table, "task", "none"), turn_from(table, "output", "shuffled")))


def turn_from(table: pl.DataFrame, other: str, control: str) -> float | None:
    """What training adds to the outputs' share over another."""
    if not has_learnt(table):
        return None
    output = curve_of(table, centred_variance("output"))
    against = curve_of(table, centred_variance(other), control=control)
    gap = {epoch: output[epoch] - against[epoch] for epoch in output if epoch in against}
    return less(late_mean(gap), gap.get(0))


def centred_variance(labels: str) -> Score:
    """The share of the centred states' variance that lies between some labels."""
    return Score(f"variance_{labels}", "validation", None, ("centred",))


def turned_answers(table: pl.DataFrame, control: str = "none") -> float | None:
    """Answers that become another task's when its mean state is put in.

    Of held-out instances that are answered as their own task: the mean state of its other instructions and inputs is
    taken off at the input token and the other task's put there, both centred by input. Middle layer and strength (once,
    twice, three times) are those where the share is furthest above the hardest control at the same place on validation;
    told on test, the controls at that place as well; 0 to 1. Undefined with fewer than thirty pairs.
    """
    move = told_move(table)
    return None if move is None else move.share if control == "none" else move.controls.get(control)


def turned_by_states(table: pl.DataFrame) -> float | None:
    """The same by a whole state of the other task."""
    move = told_move(table, arms=("state",))
    return None if move is None else move.share


def transfer_kept(table: pl.DataFrame) -> float | None:
    """On test, of all pairs of an instance and another task."""
    rows = table.filter(measure="transfer_kept", split="test", control="none")
    return float(rows["value"][0]) if len(rows) else None
