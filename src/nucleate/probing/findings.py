"""What a probe comes to, in words: which tasks are separate, from which layer on, what a fine-tuning changed.

From the tables alone, so that a run folder read back says the same.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import polars as pl

from nucleate.long_table import best_layer_of, best_layers, deciding_measure, main_read, value_of
from nucleate.probing.separation import MISLABELLED, by_task, mean_interval
from nucleate.report.sentences import CONTROL_WORDS
from nucleate.report.tables import percent
from nucleate.text_table import text_table

_MOST_NAMED = 4  # tasks in a sentence
_MOST_DOUBTED = 0.1  # of the prompts; beyond, it is the model that errs
_WHO = {
    "knn_share": "neighbours: prompts of other instructions",
    "knn_share_other_inputs": "neighbours: prompts of other instructions with other inputs",
}
_CONTROLS = ("untrained", "surface_instruction", "surface_prompt")


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
    here = tasks.filter(pl.col("model") == model)
    yes, no = separated_tasks(here, best)
    parts = []
    if value_of(metrics, "separated", model=model, layer=best, **_TOLD) == 1:
        first, last, to_the_end = span_of_layers(here, best)
        span = f"at layer {best}" if first == last else f"in layers {first} to {last}"
        span = f"from layer {first} on" if to_the_end and first < last else span
        parts.append(f"{len(yes)} of {len(yes) + len(no)} tasks are separate {span}" if yes else "separate as a whole")
        parts += [f"{_named(no)} {'is' if len(no) == 1 else 'are'} not"] if no and yes else []
    else:
        if yes or no:
            parts.append("as a whole no more than the words" if yes else "no more than the words")
        parts += [f"only {_named(yes)} {'is' if len(yes) == 1 else 'are'} separate"] if yes else []
    untold = sorted({*here["task"]} - {*yes, *no})
    parts += [f"too few prompts to tell about {_named(untold)}"] if untold else []
    count = mislabelled(metrics, coordinates, model)
    if count is None:
        parts.append("the labels cannot be checked by a model that hardly tells them apart")
    else:
        parts.append(f"{count or 'no'} prompt{' looks' if count == 1 else 's look'} mislabelled")
    share = value_of(metrics, measure, model=model, layer=best, **_TOLD)
    if share is None:
        return "; ".join(parts)
    prompts = coordinates.filter(pl.col("model") == model)
    unit = "instructions" if prompts["unit"].n_unique() < prompts["text"].n_unique() else "prompts"
    number, against = _beside_hardest(metrics, measure, model, share)
    where = f"at layer {best}, the best, {number} of the neighbours on held-out {unit} share the task"
    return f"{'; '.join(parts)} ({where}{against})"


_TOLD = {"split": "test", "space": "raw", "labels": "task"}  # where a share is reported


def _beside_hardest(metrics: pl.DataFrame, measure: str, model: str, share: float) -> tuple[str, str]:
    """The share, and the hardest control, which its margin was taken against: in as many figures as tell them apart."""
    margin = value_of(metrics, "margin", model=model, layer=best_layer_of(metrics, model), **_TOLD)
    levels = {
        control: level
        for control in _CONTROLS
        if (level := _level_of_control(metrics, measure, control, model)) is not None
    }
    if margin is None or not levels:
        return percent(share), ""
    hardest = min(levels, key=lambda control: abs(share - levels[control] - margin))
    digits = 1 if percent(share) == percent(levels[hardest]) else 0
    told = f"; the hardest control, {CONTROL_WORDS[hardest]}, gives {percent(levels[hardest], digits)}"
    return percent(share, digits), told


def _level_of_control(metrics: pl.DataFrame, measure: str, control: str, model: str) -> float | None:
    if control == "untrained":
        return _untrained(metrics, measure, model)
    return value_of(metrics, measure, **_TOLD, layer=None, control=control)


def mislabelled(metrics: pl.DataFrame, coordinates: pl.DataFrame, model: str) -> int | None:
    """How many prompts look mislabelled to a model; None where its share of neighbours is within chance, or
    where it doubts so many that it is the model that errs."""
    measure, place = deciding_measure(metrics), {"split": "test", "space": "raw", "labels": "task", "model": model}
    metrics, best = main_read(metrics), best_layer_of(metrics, model)
    doubts = coordinates.filter(pl.col("model") == model)["margin"]
    count = int((doubts > MISLABELLED).sum())
    low = value_of(metrics, f"{measure}_low", layer=best, **place)
    share = value_of(metrics, measure, layer=best, **place) if low is None else low
    chance = [_untrained(metrics, measure, model), value_of(metrics, measure, layer=best, control="shuffled", **place)]
    knows = share is not None and all(level is None or share > level for level in chance)
    return count if knows and count <= _MOST_DOUBTED * len(doubts) else None


def separate_at_best(metrics: pl.DataFrame, tasks: pl.DataFrame, model: str) -> set[str]:
    """The tasks that are separate at the model's best layer."""
    return set(separated_tasks(tasks.filter(pl.col("model") == model), best_layer_of(metrics, model))[0])


def change(found: pl.DataFrame, base: str, now: Collection[str], before: Collection[str]) -> str:
    """What a fine-tuning did, in a sentence; `now` and `before` are the tasks that are and were separate."""
    rose = found.filter(pl.col("low") > 0).sort("difference", descending=True)
    fell = found.filter(pl.col("high") < 0).sort("difference")
    parted = pl.col("task").is_in([task for task in now if task not in before])
    merged = pl.col("task").is_in([task for task in before if task not in now])
    parts = []
    for verb, rows in (
        ("separated", rose.filter(parted)),
        ("raised", rose.filter(~parted)),
        ("merged", fell.filter(merged)),
        ("lowered", fell.filter(~merged)),
    ):
        moved = rows.select("task", "base_share", "share").rows()
        named = [f"{_quoted(task)} ({percent(before)} → {percent(after)})" for task, before, after in moved]
        parts += [f"{verb} {_named(named, quote=False)}"] if named else []
    for words, tasks in (
        ("has {} separate now", [task for task in now if task not in {*before, *rose["task"]}]),
        ("no longer has {} separate", [task for task in before if task not in {*now, *fell["task"]}]),
    ):
        parts += [f"{words.format(_named(sorted(tasks)))}, by a change within chance"] if tasks else []
    if found["low"].is_null().all():
        return f"compared with {base}, too few instructions to tell what has changed"
    return f"compared with {base}, the model " + (", ".join(parts) or "changes no task's share beyond chance")


def summary_lines(metrics: pl.DataFrame) -> list[tuple[str, ...]]:
    """A line per model with its controls beside it; the first line names the columns."""
    measure = deciding_measure(metrics)
    against = ("untrained", "n-grams: instruction", "n-grams: prompt", "shuffled")
    header = ("model", "best layer", "same-task neighbours", "95 %", *against, "best F1", "by t-SNE", "accuracy")
    lines: list[tuple[str, ...]] = [header]
    metrics = main_read(metrics)
    models = list(best_layers(metrics))
    for model in models:
        best = best_layer_of(metrics, model)
        here = {**_TOLD, "layer": best}
        controls = [
            *(_level_of_control(metrics, measure, control, model) for control in _CONTROLS),
            value_of(metrics, measure, **here, model=model, control="shuffled"),
        ]
        low, high = (value_of(metrics, f"{measure}_{end}", **here, model=model) for end in ("low", "high"))
        clustered = pl.col("measure").eq("f1") & pl.col("labels").eq("task") & pl.col("control").eq("none")
        clustered &= pl.col("split").eq("all") & pl.col("model").eq(model)
        top = [metrics.filter(clustered, pl.col("space") == space)["value"].max() for space in ("raw", "tsne")]
        accuracy = value_of(metrics, "accuracy", model=model, split="all")
        share = value_of(metrics, measure, **here, model=model)
        interval = _between(low, high)
        lines.append((model, str(best), _number(share), interval, *(_number(v) for v in (*controls, *top, accuracy))))
    return lines


def task_lines(
    metrics: pl.DataFrame, tasks: pl.DataFrame, confusion: pl.DataFrame, model: str
) -> list[tuple[str, ...]]:
    """A line per task of one model at its best layer, the least separate first; the first line names the columns."""
    best, measure = best_layer_of(metrics, model), deciding_measure(metrics)
    here = tasks.filter(pl.col("model") == model)
    value = {(row["task"], row["measure"]): row["value"] for row in _at(here, best).iter_rows(named=True)}
    others = _at(confusion.filter(pl.col("model") == model), best).filter(pl.col("task") != pl.col("other"))
    most = {row["task"]: row for row in others.sort("share").iter_rows(named=True)}  # the last of each counts
    lines = []
    for task in sorted({*here["task"]}, key=lambda task: (value.get((task, "margin"), -1.0), task)):
        share, margin = value.get((task, measure)), value.get((task, "margin"))
        control = None if share is None or margin is None else share - margin
        verdict = {1.0: "yes", 0.0: "no", None: "too few to tell"}[value.get((task, "separated"))]
        since = _since(here.filter(pl.col("task") == task), best) if verdict == "yes" else None
        low, high = (value.get((task, f"{measure}_{end}")) for end in ("low", "high"))
        interval = _between(low, high)
        beside = f"{most[task]['other']} ({most[task]['share']:.2f})" if task in most and most[task]["share"] else ""
        from_layer = "" if since is None else str(since)
        lines.append((task, verdict, from_layer, _number(share), interval, _number(control), beside))
    header = ("task", "separate", "from layer", "same-task neighbours", "95 %", "hardest control", "most confused with")
    return [header, *lines]


def _at(frame: pl.DataFrame, layer: int) -> pl.DataFrame:
    return frame.filter(pl.col("layer") == layer)


def _since(task: pl.DataFrame, best: int) -> int:
    """The first of the layers up to the best one in which a task is separate without a break."""
    apart = dict(task.filter(pl.col("measure") == "separated").select("layer", "value").rows())
    since = best
    for layer in sorted(layer for layer in apart if layer < best)[::-1]:
        if apart[layer] != 1:
            break
        since = layer
    return since


def doubt_lines(suspicious: pl.DataFrame, model: str, most: int = 5) -> list[tuple[str, ...]]:
    """The prompts that look most mislabelled to one model; the first line names the columns."""
    worst = suspicious.filter(pl.col("model") == model, pl.col("counted")).sort(
        "margin", "row", descending=[True, False]
    )
    worst = worst.head(most)
    lines = [
        (str(row["row"]), row["task"], row["nearest"], f"{row['margin']:.2f}", " ".join(row["text"].split())[:60])
        for row in worst.iter_rows(named=True)
    ]
    return [("row", "label", "looks like", "margin", "prompt"), *lines]


def in_full(
    metrics: pl.DataFrame,
    tasks: pl.DataFrame,
    confusion: pl.DataFrame,
    suspicious: pl.DataFrame,
    verdicts: Mapping[str, str],
) -> str:
    """All of it as text: the verdicts, the models, task by task the one that matters most, its doubtful prompts."""
    main = main_model(metrics, list(verdicts))
    parts = [
        (models_title(metrics), summary_lines(metrics)),
        (f"Task by task: {main}", task_lines(metrics, tasks, confusion, main)),
        (f"Prompts that look mislabelled to {main}", doubt_lines(suspicious, main)),
    ]
    tables = [text_table(lines[0], lines[1:], title=title) for title, lines in parts if len(lines) > 1]
    return "\n\n".join(["\n".join(f"{model}: {words}." for model, words in verdicts.items()), *tables])


def models_title(metrics: pl.DataFrame) -> str:
    """What stands above `summary_lines`."""
    return f"Each model at its best layer, beside its controls ({_WHO[deciding_measure(metrics)]})"


def doubts_told(suspicious: pl.DataFrame, model: str) -> list[str]:
    """A sentence with the rows of the prompts that look most mislabelled; none where no prompt does."""
    listed = [f"{row} ({task}, looks like {nearest})" for row, task, nearest, *_ in doubt_lines(suspicious, model)[1:]]
    count = len(suspicious.filter(pl.col("model") == model, pl.col("counted")))
    of = "" if count == len(listed) else f", the first {len(listed)} of {count}"
    return [f"Rows that look mislabelled{of}: {', '.join(listed)}."] if listed else []


def main_model(metrics: pl.DataFrame, models: Sequence[str]) -> str:
    """The last of a series of checkpoints, else the first that was named."""
    ages = metrics.filter(pl.col("model").is_in(models)).group_by("model").agg(pl.col("step", "epoch").max())
    for age in ("step", "epoch"):
        if ages[age].null_count() == 0 and ages[age].n_unique() > 1:
            return str(ages.sort(age)["model"][-1])
    return models[0]


def _untrained(metrics: pl.DataFrame, measure: str, model: str) -> float | None:
    """The same architecture with fresh weights, at its own best layer."""
    place = {**_TOLD, "control": "untrained", "model": model}
    best = value_of(metrics, "best_layer", model=model, control="untrained")
    return value_of(metrics, measure, **place, layer=None if best is None else int(best))


def _number(value: object) -> str:
    return "" if value is None else f"{value:.2f}"


def _between(low: float | None, high: float | None) -> str:
    """An interval of a share; one that leaves 0..1 ends there."""
    return "" if low is None or high is None else f"{max(low, 0):.2f}–{min(high, 1):.2f}"


def _quoted(name: str) -> str:
    return f"'{name}'"


def _named(names: Sequence[str], *, quote: bool = True) -> str:
    """'a', 'b' and 'c'; beyond a few, how many more."""
    shown = [_quoted(name) if quote else name for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        shown.append(f"{len(names) - _MOST_NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
