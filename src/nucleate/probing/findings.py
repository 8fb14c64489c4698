"""What a probe comes to, in words: what is clustered, what is readable, what is no more than the words; what a
fine-tuning changed.

From the tables alone, so that a run folder read back says the same.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import polars as pl

from nucleate.long_table import (
    CLUSTERED,
    READABLE,
    VERDICTS,
    best_layers,
    deciding_measure,
    either,
    main_read,
    value_of,
    verdict_from,
)
from nucleate.probing.separation import MISLABELLED
from nucleate.report.sentences import CONTROL_WORDS
from nucleate.report.tables import percent
from nucleate.text_table import text_table

_MOST_NAMED = 4  # tasks in a sentence
_WHO = {
    "knn_share": "of other instructions",
    "knn_share_other_inputs": "of other instructions with other inputs",
}
_CONTROLS = {  # in the order of the table
    "untrained": "untrained",
    "surface_prompt": "n-grams: prompt",
    "surface_instruction": "n-grams: instruction",
    "neutral": "neutral instruction",
    "answers": "answers alone",
    "shuffled": "shuffled",
}
_TOLD = {"split": "test", "space": "raw", "labels": "task"}  # where a share is reported
_WORDS_OF = {**CONTROL_WORDS, "neutral": "the same inputs after a neutral instruction"}

# --- two readings -----------------------------------------------------------------------------------------------------


class Reading(NamedTuple):
    """A share on the half that is told, at the layer that was chosen for it, beside its controls."""

    layer: int
    value: float | None
    low: float | None
    high: float | None
    controls: dict[str, float]  # each at a layer of its own; shuffled labels at the same one

    @property
    def hardest(self) -> str | None:
        """The control that is the hardest to exceed."""
        return max(self.controls, key=lambda name: self.controls[name], default=None)


def reading_of(metrics: pl.DataFrame, model: str, reading: str) -> Reading:
    """`clustered`, by the neighbours that decide, or `readable`, by linear probes."""
    metrics = main_read(metrics)
    measure = deciding_measure(metrics) if reading == CLUSTERED else "linear_accuracy"
    layer = layer_of(metrics, model, reading)
    here = {**_TOLD, "layer": layer, "model": model}
    value, low, high = (value_of(metrics, measure + end, **here) for end in ("", "_low", "_high"))
    levels: dict[str, float | None] = {}
    for control in _CONTROLS:
        at, whose = (None, {}) if control not in ("untrained", "neutral", "shuffled") else (layer, {"model": model})
        if control in ("untrained", "neutral"):
            at = layers_of(metrics, reading, control).get(model)
        levels[control] = value_of(metrics, measure, **_TOLD, **whose, layer=at, control=control)
    return Reading(layer, value, low, high, {name: level for name, level in levels.items() if level is not None})


def layers_of(metrics: pl.DataFrame, reading: str, control: str = "none") -> dict[str, int]:
    """model -> the layer that was chosen for a reading."""
    return best_layers(metrics, "best_layer" if reading == CLUSTERED else "best_readable_layer", control)


def layer_of(metrics: pl.DataFrame, model: str, reading: str) -> int:
    """Of one model."""
    return layers_of(metrics, reading)[model]


def verdict_of(metrics: pl.DataFrame, model: str) -> str | None:
    """Of all tasks together."""
    metrics = main_read(metrics)

    def flag(name: str, reading: str) -> float | None:
        return value_of(metrics, name, **_TOLD, model=model, layer=layer_of(metrics, model, reading))

    held = [flag(f"held_{reading}", reading) for reading in (CLUSTERED, READABLE)]
    return verdict_from(flag(CLUSTERED, CLUSTERED), flag(READABLE, READABLE), either(held))


def verdicts_of(metrics: pl.DataFrame, tasks: pl.DataFrame, model: str) -> dict[str, str | None]:
    """task -> its verdict, each reading at the layer that was chosen for all tasks."""
    metrics, here = main_read(metrics), tasks.filter(pl.col("model") == model)
    some = {reading: _values(here, layer_of(metrics, model, reading)) for reading in (CLUSTERED, READABLE)}
    found = {}
    for task in sorted(set(here["task"])):
        held = [values.get((task, f"held_{reading}")) for reading, values in some.items()]
        clustered, readable = (values.get((task, reading)) for reading, values in some.items())
        found[task] = verdict_from(clustered, readable, either(held))
    return found


def _values(tasks: pl.DataFrame, layer: int) -> dict[tuple[str, str], float]:
    """(task, measure) -> value."""
    return {(row["task"], row["measure"]): row["value"] for row in _at(tasks, layer).iter_rows(named=True)}


def tasks_that_are(metrics: pl.DataFrame, tasks: pl.DataFrame, model: str, verdict: str) -> set[str]:
    """The tasks of one verdict; what is clustered counts as readable too."""
    wanted = VERDICTS[: VERDICTS.index(verdict) + 1] if verdict == READABLE else (verdict,)
    return {task for task, found in verdicts_of(metrics, tasks, model).items() if found in wanted}


# --- the answer in a sentence -----------------------------------------------------------------------------------------


def headline(metrics: pl.DataFrame, tasks: pl.DataFrame, coordinates: pl.DataFrame, model: str) -> str:
    """The answer for one model: the verdict, both readings with their hardest control, the tasks, doubtful prompts."""
    verdict, each = verdict_of(metrics, model), verdicts_of(metrics, tasks, model)
    prompts = coordinates.filter(pl.col("model") == model)
    read, near = (reading_of(metrics, model, reading) for reading in (READABLE, CLUSTERED))
    parts = []
    if read.value is not None:
        parts.append(f"labels are read off layer {read.layer} for {_beside(read, 'of held-out prompts')}")
    if near.value is not None:
        told = f"at layer {near.layer}, {_beside(near, 'of the neighbours share the label')}"
        parts.append(told if verdict in (CLUSTERED, None) else f"not clustered, {told}")
    if verdict == CLUSTERED:
        parts.reverse()
    parts[0] = f"{verdict or 'too few prompts to tell'}: {parts[0]}" if parts else verdict or "too few prompts to tell"
    parts += _counted(each)
    found = value_of(main_read(metrics), "planted_found", model=model)
    parts.append(doubted_in_words(int((prompts["margin"] > MISLABELLED).sum()), found))
    return "; ".join(parts)


def _beside(reading: Reading, of_what: str) -> str:
    """The share, and the hardest control, in as many figures as tell them apart."""
    value, hardest = reading.value or 0.0, reading.hardest
    if hardest is None:
        return f"{percent(value)} {of_what}"
    level = reading.controls[hardest]
    digits = 1 if value != level and percent(value) == percent(level) else 0
    told = f"{_WORDS_OF[hardest]} {'gives' if hardest == 'untrained' else 'give'} {percent(level, digits)}"
    return f"{percent(value, digits)} {of_what} ({told})"


def _counted(verdicts: Mapping[str, str | None]) -> list[str]:
    """How many tasks have each verdict, by name where they are few."""
    told = [verdict for verdict in VERDICTS if verdict in verdicts.values()]
    counted = [task for task, verdict in verdicts.items() if verdict is not None]
    parts = []
    if len(told) == 1:
        few = {1: "the one task that can be told is", 2: "both tasks are"}
        parts.append(f"{few.get(len(counted), f'all {len(counted)} tasks are')} {told[0]}")
    elif told:
        groups = [sorted(task for task, found in verdicts.items() if found == verdict) for verdict in told]
        listed = [
            f"{len(tasks)} {verdict}" + (f" ({named_in_words(tasks)})" if len(tasks) <= _MOST_NAMED else "")
            for verdict, tasks in zip(told, groups, strict=True)
        ]
        parts.append(f"of {len(counted)} tasks: {', '.join(listed[:-1])} and {listed[-1]}")
    untold = sorted(task for task, verdict in verdicts.items() if verdict is None)
    return parts + ([f"too few prompts to tell about {named_in_words(untold)}"] if untold else [])


def doubted_in_words(count: int, found: float | None) -> str:
    """How many prompts look mislabelled, and how much the list sees, by `planted_found`."""
    looks = f"{count or 'no'} prompt{' looks' if count == 1 else 's look'} mislabelled"
    if found is None:
        return looks
    return f"{looks} (of single labels changed at random as a test, {percent(found)} come to look so)"


# --- tables -----------------------------------------------------------------------------------------------------------


def summary_lines(metrics: pl.DataFrame) -> list[tuple[str, ...]]:
    """Lines for each model: its readings beside their controls, the F1 of its clusters, its right answers; the first
    line names the columns."""
    lines = []
    for model in best_layers(main_read(metrics)):
        for reading, words in ((READABLE, "labels read"), (CLUSTERED, "neighbours")):
            one = reading_of(metrics, model, reading)
            controls = (_number(one.controls.get(control)) for control in _CONTROLS)
            sure = _between(one.low, one.high)
            lines.append((model, words, str(one.layer), _number(one.value), sure, *controls))
        whole = pl.col("measure").eq("f1") & pl.col("labels").eq("task") & pl.col("control").eq("none")
        whole &= pl.col("split").eq("all") & pl.col("model").eq(model)
        for space, words in (("raw", "F1 of k-means"), ("tsne", "F1 by t-SNE")):
            best = main_read(metrics).filter(whole, pl.col("space") == space).sort("value", "layer").tail(1)
            if len(best):
                lines.append((model, words, str(best["layer"].item()), _number(best["value"].item()), *[""] * 7))
        accuracy = value_of(main_read(metrics), "accuracy", model=model, split="all")
        if accuracy is not None:
            lines.append((model, "answers right", "", _number(accuracy), *[""] * 7))
    return _without_empty([("model", "what", "layer", "share", "95 %", *_CONTROLS.values()), *lines])


def task_lines(
    metrics: pl.DataFrame, tasks: pl.DataFrame, confusion: pl.DataFrame, model: str
) -> list[tuple[str, ...]]:
    """A line per task of one model, the least readable first; the first line names the columns."""
    metrics, measure = main_read(metrics), deciding_measure(metrics)
    best, readable = (layer_of(metrics, model, reading) for reading in (CLUSTERED, READABLE))
    here = tasks.filter(pl.col("model") == model)
    near, read = _values(here, best), _values(here, readable)
    others = _at(confusion.filter(pl.col("model") == model), best).filter(pl.col("task") != pl.col("other"))
    most = {row["task"]: row for row in others.sort("share").iter_rows(named=True)}  # the last of each counts
    verdicts = verdicts_of(metrics, tasks, model)
    lines = []
    for task in sorted(verdicts, key=lambda task: (read.get((task, "linear_margin"), -1.0), task)):
        since = _since(here.filter(pl.col("task") == task), best) if verdicts[task] == CLUSTERED else None
        beside = f"{most[task]['other']} ({most[task]['share']:.2f})" if task in most and most[task]["share"] else ""
        lines.append(
            (
                task,
                verdicts[task] or "too few",
                _number(read.get((task, "linear_accuracy"))),
                _between(*(read.get((task, f"linear_accuracy_{end}")) for end in ("low", "high"))),
                _signed(read.get((task, "linear_margin"))),
                _number(near.get((task, measure))),
                _signed(near.get((task, "margin"))),
                "" if since is None else str(since),
                beside,
            )
        )
    header = ("task", "verdict", "labels read", "95 %", "above controls", "neighbours", "above their controls")
    return _without_empty([(*header, "clustered from layer", "most confused with"), *lines])


def _without_empty(lines: Sequence[tuple[str, ...]]) -> list[tuple[str, ...]]:
    """Without the columns in which nothing stands."""
    kept = [place for place in range(len(lines[0])) if any(line[place] for line in lines[1:])]
    return [tuple(line[place] for place in kept) for line in lines]


def _at(frame: pl.DataFrame, layer: int) -> pl.DataFrame:
    return frame.filter(pl.col("layer") == layer)


def _since(task: pl.DataFrame, best: int) -> int:
    """The first of the layers up to the best one in which a task is clustered without a break."""
    apart = dict(task.filter(pl.col("measure") == CLUSTERED).select("layer", "value").rows())
    since = best
    for layer in sorted(layer for layer in apart if layer < best)[::-1]:
        if apart[layer] != 1:
            break
        since = layer
    return since


def doubt_lines(suspicious: pl.DataFrame, model: str, most: int = 5) -> list[tuple[str, ...]]:
    """The prompts that look most mislabelled to one model; the first line names the columns."""
    worst = suspicious.filter(pl.col("model") == model, pl.col("margin") > MISLABELLED).sort(
        "margin", "row", descending=[True, False]
    )
    lines = [
        (str(row["row"]), row["task"], row["nearest"], f"{row['margin']:.2f}", " ".join(row["text"].split())[:60])
        for row in worst.head(most).iter_rows(named=True)
    ]
    return [("row", "label", "looks like", "margin", "prompt"), *lines]


def in_full(
    metrics: pl.DataFrame,
    tasks: pl.DataFrame,
    confusion: pl.DataFrame,
    suspicious: pl.DataFrame,
    verdicts: Mapping[str, str],
    acting: str,
) -> str:
    """All of it as text: the verdicts, where to act on the model that matters most, the models, task by task the one
    that matters most, its doubtful prompts."""
    main = main_model(metrics, list(verdicts))
    parts = [
        (models_title(metrics), summary_lines(metrics)),
        (f"Task by task: {main}", task_lines(metrics, tasks, confusion, main)),
        (f"Prompts that look mislabelled to {main}", doubt_lines(suspicious, main)),
    ]
    tables = [text_table(lines[0], lines[1:], title=title) for title, lines in parts if len(lines) > 1]
    said = [f"{model}: {words}." for model, words in verdicts.items()] + [f"{main}, {acting}."]
    return "\n\n".join(["\n".join(said), *tables])


def models_title(metrics: pl.DataFrame) -> str:
    """What stands above `summary_lines`."""
    who = _WHO[deciding_measure(metrics)]
    return f"On held-out prompts, each at its best layer and beside its controls (neighbours: {who})"


def doubts_told(suspicious: pl.DataFrame, model: str) -> list[str]:
    """A sentence with the rows of the prompts that look most mislabelled; none where no prompt does."""
    listed = [f"{row} ({task}, looks like {nearest})" for row, task, nearest, *_ in doubt_lines(suspicious, model)[1:]]
    count = len(suspicious.filter(pl.col("model") == model, pl.col("margin") > MISLABELLED))
    of = "" if count == len(listed) else f", the first {len(listed)} of {count}"
    return [f"Rows that look mislabelled{of}: {', '.join(listed)}."] if listed else []


def main_model(metrics: pl.DataFrame, models: Sequence[str]) -> str:
    """The last of a series of checkpoints, else the first that was named."""
    ages = metrics.filter(pl.col("model").is_in(models)).group_by("model").agg(pl.col("step", "epoch").max())
    for age in ("step", "epoch"):
        if ages[age].null_count() == 0 and ages[age].n_unique() > 1:
            return str(ages.sort(age)["model"][-1])
    return models[0]


def _number(value: object) -> str:
    return "" if value is None else f"{value:.2f}"


def _signed(value: float | None) -> str:
    return "" if value is None else f"{value:+.2f}"


def _between(low: float | None, high: float | None) -> str:
    """An interval of a share; one that leaves 0..1 ends there."""
    return "" if low is None or high is None else f"{max(low, 0):.2f}–{min(high, 1):.2f}"


def quoted(name: str) -> str:
    return f"'{name}'"


def named_in_words(names: Sequence[str], *, quote: bool = True) -> str:
    """'a', 'b' and 'c'; beyond a few, how many more."""
    shown = [quoted(name) if quote else name for name in names[:_MOST_NAMED]]
    if len(names) > _MOST_NAMED:
        shown.append(f"{len(names) - _MOST_NAMED} more")
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
