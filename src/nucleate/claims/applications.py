"""A run's long table in, one number out, as in `quantities.py`: of probes (Table 1), pre-training (Figure 5) and
alignment (Table 2)."""

from collections.abc import Mapping, Sequence

import polars as pl

from nucleate.claims.quantities import less, lowest
from nucleate.long_table import ACCURACY, BEST_OF, METHODS, Score, curve_of, late_mean, pick


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
    return lowest(_by_model(table, "task", "none", (space,)).values())


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
    """Final test accuracy, less the better of the paper's other arms. After task-id pre-training, late in the
    fine-tuning; -1 to 1."""
    return _gain({arm: final_accuracy(table, arm) for arm in ("task_id", "none", "instruction")})


def _gain(levels: Mapping[str, float | None]) -> float | None:
    others = [level for arm, level in levels.items() if arm != "task_id" and level is not None]
    return less(levels["task_id"], max(others)) if len(others) == len(levels) - 1 else None


def curve_measure(table: pl.DataFrame, arm: str, measure: str) -> float | None:
    """What an arm's validation curve comes to: area_under_curve, epochs_to_90, ..."""
    return _single(table, Score(measure, "validation", None, (), arm))


def final_accuracy(table: pl.DataFrame, arm: str) -> float | None:
    """An arm's accuracy on test, late in its fine-tuning."""
    return late_mean(curve_of(table, ACCURACY["test"]._replace(arm=arm), None))


def lowest_source_accuracy(table: pl.DataFrame, control: str = "none") -> float | None:
    """Accuracy on the source tasks, the lowest of the four methods. On test, after the correction; 0 to 1."""
    return lowest(chosen_model(table, arm, "source_accuracy") for arm in METHODS)


def relief(table: pl.DataFrame, control: str = "none", *, worse: str, better: Sequence[str]) -> float | None:
    """What the other tasks lose by one method less what they lose by another.

    In accuracy on test, of all tasks but the source tasks; above 0 where the second forgets less. Of several second
    methods the one that loses more counts.
    """
    losses = [chosen_model(table, arm, "accuracy_drop") for arm in better]
    known = [loss for loss in losses if loss is not None]
    return less(chosen_model(table, worse, "accuracy_drop"), max(known)) if len(known) == len(losses) else None


def chosen_model(table: pl.DataFrame, arm: str, measure: str) -> float | None:
    """The chosen model's row, which has no epoch."""
    return _single(table, Score(measure, "test", None, (), arm))


def _single(table: pl.DataFrame, score: Score) -> float | None:
    rows = pick(table, score, "none").filter(pl.col("epoch").is_null())
    return float(rows["value"][0]) if len(rows) else None
