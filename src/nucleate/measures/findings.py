"""What a probe comes to, in words: which tasks are separate, from which layer on, what a fine-tuning changed.

From the tables alone, so that a run folder read back says the same.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl

from nucleate.measures.separation import MISLABELLED, by_task, mean_interval

_MOST_NAMED = 4  # tasks in a sentence
_MOST_DOUBTED = 0.1  # of the prompts; beyond, it is the model that errs
_CONTROLS = ("untrained", "surface_instruction", "surface_prompt")


def value_of(metrics: pl.DataFrame, measure: str, **wanted: object) -> float | None:
    """One number of the long table; rows have control none unless another is named. None where there is no such row."""
    rows = metrics.filter(pl.col("measure") == measure)
    for column, value in {"control": "none", **wanted}.items():
        rows = rows.filter(pl.col(column).eq_missing(value))
    return rows["value"][0] if len(rows) else None


def main_read(metrics: pl.DataFrame) -> pl.DataFrame:
    """The rows of the token by which the best layer was chosen, and those of no token."""
    reads = metrics.filter(pl.col("measure") == "best_layer")["read"]
    return metrics.filter(pl.col("read").is_null() | pl.col("read").is_in(reads.unique().to_list()))


def best_layer_of(metrics: pl.DataFrame, model: str) -> int:
    """The layer that was chosen on validation."""
    chosen = value_of(metrics, "best_layer", model=model)
    assert chosen is not None
    return int(chosen)


def deciding_measure(metrics: pl.DataFrame) -> str:
    """Whichever share of neighbours the verdict goes by: the one that has an interval beside its margin."""
    others = metrics.filter(pl.col("measure") == "knn_share_other_inputs_low")
    return "knn_share" if others.is_empty() else "knn_share_other_inputs"


def separated_tasks(tasks: pl.DataFrame, layer: int) -> tuple[list[str], list[str]]:
    """The tasks of one model that are separate at a layer, and those that are not."""
    rows = tasks.filter(pl.col("measure") == "separated", pl.col("layer") == layer).sort("task")
    return tuple(rows.filter(pl.col("value") == truth)["task"].to_list() for truth in (1.0, 0.0))  # type: ignore[return-value]


def span_of_layers(tasks: pl.DataFrame, best: int) -> tuple[int, int, bool]:
    """From which layer to which, the best among them, all tasks are separate that are so there; and whether the last of
    them is the network's last."""
    rows = tasks.filter(pl.col("measure") == "separated").sort("layer")
    layers = rows["layer"].unique().sort().to_list()
    there = set(separated_tasks(tasks, best)[0])
    apart = {layer: there <= set(separated_tasks(tasks, layer)[0]) for layer in layers}
    first = last = best
    for layer in reversed(layers[: layers.index(best)]):
        if not apart[layer]:
            break
        first = layer
    for layer in layers[layers.index(best) + 1 :]:
        if not apart[layer]:
            break
        last = layer
    return first, last, last == layers[-1]


def difference(here: pl.DataFrame, there: pl.DataFrame) -> pl.DataFrame:
    """task, share, base_share, difference, low, high: what two models' coordinates say of the prompts on test in both.

    Each at its own best layer, prompt by prompt; the intervals are over instructions."""
    same = ["instance", "text", "task"]
    mine, theirs = (one.filter(pl.col("split") == "test") for one in (here, there))
    both = mine.join(theirs.select(*same, base="share"), on=same)
    both = both.drop_nulls(["share", "base"]).sort("instance")
    names = sorted(both["task"].unique())
    task = np.array([names.index(name) for name in both["task"]], dtype=np.int64)
    share, base, unit = (both[column].to_numpy() for column in ("share", "base", "unit"))
    rows = []
    for code, name in enumerate(names):
        found = mean_interval(np.where(task == code, share - base, np.nan), unit, seed=code)
        bounds = (None, None) if found is None else (found.low, found.high)
        rows.append((name, by_task(share, task)[code], by_task(base, task)[code], *bounds))
    schema = {"task": pl.String, "share": pl.Float64, "base_share": pl.Float64, "low": pl.Float64, "high": pl.Float64}
    frame = pl.DataFrame(rows, schema=schema, orient="row")
    gap = (pl.col("share") - pl.col("base_share")).alias("difference")
    return frame.select("task", "share", "base_share", gap, "low", "high")


def headline(metrics: pl.DataFrame, tasks: pl.DataFrame, coordinates: pl.DataFrame, model: str) -> str:
    """The answer for one model in a sentence or two."""
    metrics = main_read(metrics)
    best, measure = best_layer_of(metrics, model), deciding_measure(metrics)
    place = {"split": "test", "space": "raw", "labels": "task"}
    share = value_of(metrics, measure, model=model, layer=best, **place)
    margin = value_of(metrics, "margin", model=model, layer=best, **place)
    here = tasks.filter(pl.col("model") == model)
    yes, no = separated_tasks(here, best)
    where = f"same-task share of the neighbours {_number(share)} on held-out instructions at layer {best}, the best"
    parts = []
    if value_of(metrics, "separated", model=model, layer=best, **place) == 1:
        first, last, to_the_end = span_of_layers(here, best)
        span = f"at layer {best}" if first == last else f"in layers {first} to {last}"
        span = f"from layer {first} on" if to_the_end and first < last else span
        parts.append(f"{len(yes)} of {len(yes) + len(no)} tasks are separate {span}" if yes else "separate as a whole")
        parts += [f"{_named(no)} {'is' if len(no) == 1 else 'are'} not"] if no and yes else []
    else:
        parts.append("no more than the words")
        parts += [f"only {_named(yes)} {'is' if len(yes) == 1 else 'are'} separate"] if yes else []
    untold = sorted({*here["task"]} - {*yes, *no})
    parts += [f"too few instructions to tell of {_named(untold)}"] if untold else []
    doubts = coordinates.filter(pl.col("model") == model)["margin"]
    count = int((doubts > MISLABELLED).sum())
    chance = [
        _untrained(metrics, measure, model),
        value_of(metrics, measure, model=model, layer=best, control="shuffled", **place),
    ]
    knows = share is not None and all(level is None or share > level for level in chance)
    if count > _MOST_DOUBTED * len(doubts) or not knows:
        parts.append("the labels cannot be checked by a model that hardly tells them apart")
    else:
        parts.append(f"{count or 'no'} prompt{' looks' if count == 1 else 's look'} mislabelled")
    gain = "" if margin is None else f", {margin:+.2f} against the hardest control"
    return f"{'; '.join(parts)} ({where}{gain})"


def change(found: pl.DataFrame, base: str) -> str:
    """What a fine-tuning did, in a sentence."""
    rose = found.filter(pl.col("low") > 0).sort("difference", descending=True)
    fell = found.filter(pl.col("high") < 0).sort("difference")
    parts = []
    for verb, rows in (("separated", rose), ("blurred", fell)):
        moved = rows.select("task", "base_share", "share").rows()
        named = [f"{_quoted(task)} ({before:.2f} → {after:.2f})" for task, before, after in moved]
        parts += [f"{verb} {_named(named, quote=False)}"] if named else []
    return f"compared with {base}, the model " + (" and ".join(parts) if parts else "separates no task differently")


def summary_lines(metrics: pl.DataFrame) -> list[tuple[str, ...]]:
    """A line per model with its controls beside it; the first line names the columns."""
    measure = deciding_measure(metrics)
    header = ("model", "best layer", measure, "interval", *_CONTROLS, "shuffled", "F1 (best layer of all)", "accuracy")
    lines: list[tuple[str, ...]] = [header]
    metrics = main_read(metrics)
    models = metrics.filter(pl.col("measure") == "best_layer", pl.col("control") == "none")["model"].to_list()
    for model in models:
        best = best_layer_of(metrics, model)
        place = {"split": "test", "space": "raw", "labels": "task"}
        here = {**place, "layer": best}
        controls = [
            _untrained(metrics, measure, model),
            *(value_of(metrics, measure, **place, layer=None, control=control) for control in _CONTROLS[1:]),
            value_of(metrics, measure, **here, model=model, control="shuffled"),
        ]
        low, high = (value_of(metrics, f"{measure}_{end}", **here, model=model) for end in ("low", "high"))
        clustered = pl.col("measure").eq("f1") & pl.col("labels").eq("task") & pl.col("space").is_in(["raw", "tsne"])
        clustered &= pl.col("control").eq("none") & pl.col("split").eq("all")
        top = metrics.filter(clustered, pl.col("model") == model)["value"].max()
        accuracy = value_of(metrics, "accuracy", model=model, split="all")
        share = value_of(metrics, measure, **here, model=model)
        interval = "" if low is None else f"{low:.2f}–{high:.2f}"
        lines.append((model, str(best), _number(share), interval, *(_number(v) for v in (*controls, top, accuracy))))
    return lines


def _untrained(metrics: pl.DataFrame, measure: str, model: str) -> float | None:
    """The same architecture with fresh weights, at its own best layer."""
    place = {"split": "test", "space": "raw", "labels": "task", "control": "untrained", "model": model}
    best = value_of(metrics, "best_layer", model=model, control="untrained")
    return value_of(metrics, measure, **place, layer=None if best is None else int(best))


def _number(value: object) -> str:
    return "" if value is None else f"{value:.2f}"


def _quoted(name: str) -> str:
    return f"'{name}'"


def _named(names: Sequence[str], *, quote: bool = True) -> str:
    """'a', 'b' and 'c'; beyond a few, how many more."""
    shown = [_quoted(name) if quote else name for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        shown.append(f"{len(names) - _MOST_NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
