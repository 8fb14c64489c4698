"""What a run comes to, in sentences: a terminal shows them when a verb ends, the page shows them at its top.

Each is made from the tables of the run (`tables.py`, `application_tables.py`) and says no more and no less than they
do: what was seen beyond which controls, and as plainly what was not.
"""

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any

import polars as pl

from nucleate.long_table import (
    LEAD,
    METHODS,
    MOST,
    PAPERS_F1,
    TURNED,
    Score,
    best_epoch,
    is_beyond,
    shares_of,
    told_move,
    told_on_test,
)
from nucleate.report.application_tables import ARMS, PAPER, SIDES, alignment_table, pretraining_table
from nucleate.report.redirection import redirected
from nucleate.report.tables import CONTROLS, Table, percent, summary_split, summary_table
from nucleate.report.transfer_table import CONTROLS as MOVED_CONTROLS
from nucleate.report.transfer_table import put_in_place, told_split
from nucleate.runs import Run

CONTROL_WORDS = {
    "untrained": "the untrained network",
    "shuffled": "shuffled labels",
    "regrouped": "regrouped distributions",
    "surface_instruction": "the n-grams of the instruction",
    "surface_prompt": "the n-grams of the prompt",
    "answers": "right answers alone",
}
_ASKED = {  # split -> one of its instances
    "validation": "an unseen instance",
    "test": "an unseen instance",
    "subset": "an instance of the training subset",
    "all": "an instance",
}


def sentences_of(run: Run) -> list[str]:
    """In the order in which they are to be read; none where the run has not come to anything yet."""
    verb = run.config.get("verb")
    if verb == "probe":
        return _probed(run)
    if verb == "transfer":
        return [*_moved(run), *map(str, run.manifest.get("notes", []))]
    if verb == "pretrain":
        return _pretrained(run)
    if verb == "align":
        return redirected(run) if "network" in run.config else _aligned(run)
    return _learnt(run) + _moved(run)


def _named(table: Table) -> list[dict[str, Any]]:
    """The rows by the names of their columns."""
    return [dict(zip(table.header, row, strict=True)) for row in table.rows]


# --- learn ------------------------------------------------------------------------------------------------------------


def _learnt(run: Run) -> list[str]:
    """What the last measured epoch shows in the last layer, beside the first layer and every control."""
    summary = summary_table(run)
    asked = _ASKED[summary_split(run) or "all"]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for named in _named(summary):
        found.setdefault((named["measure"], named["space"]), []).append(named)
    sentences = []
    for measure, nothing, words in _NEIGHBOURS:
        if (measure, "raw") in found:
            sentences.append(_seen_or_not(found[measure, "raw"], nothing, f"{words} {asked}"))
    spaces = [space for space in ("raw", "tsne") if ("f1", space) in found]
    if spaces:  # as in the paper, the better of the two
        space = max(spaces, key=lambda one: found["f1", one][-1]["value"])
        sentences.append(_clusters(found["f1", space], space))
    for measure, bar_of, nothing, words in _IN_THE_MIDDLE:
        if (said := _told(run, measure, bar_of, nothing, words)) is not None:
            sentences.append(said)
    best = best_epoch(run.metrics)
    if best is not None:
        right = f"{percent(best.accuracy)} of the unseen instances of validation are answered correctly"
        sentences.append(f"The best epoch on validation is {best.epoch}: {right}.")
    return sentences


_NEIGHBOURS = (  # measure, what is not seen where a control does as well, what the number is a share of
    ("knn_share", "neighbours of the same task", "of the ten nearest training instances share the task of"),
    (
        "knn_share_other_distributions",
        "neighbours of the same task across distributions",
        "of the ten nearest training instances of another distribution share the task of",
    ),
    (
        "knn_accuracy",
        "right answers by the neighbours",
        "is how often the ten nearest training instances give the right answer to",
    ),
)


_IN_THE_MIDDLE = (  # measure, the bar it has to reach, what is not seen where a control does as well, what it is
    (
        "f1",
        lambda hardest: (hardest + LEAD, f"{percent(LEAD)} above the hardest control"),
        "clusters by task in a middle layer, once what the input says is taken off",
        "is the F1 of k-means clusters of centred states",
    ),
    (
        "knn_share_other_both_by_task",
        lambda hardest: (MOST, percent(MOST)),
        "neighbours of the same task that have another input and another distribution",
        "of the ten nearest with another input and another distribution share the task, in centred states (mean over "
        "tasks)",
    ),
)


def _told(run: Run, measure: str, bar_of: Callable[[float], tuple[float, str]], nothing: str, words: str) -> str | None:
    """Late in training; a middle layer is chosen on validation and told on test, for each control one of its own. Seen
    is what is beyond the ledger's bar too."""
    score = Score(measure, "validation", "task", ("centred",), experiment="learn")
    told = told_on_test(run.metrics, score)
    if told is None:
        return None
    levels = {name: told_on_test(run.metrics, score, name) for name in ("untrained", *CONTROLS)}
    row = {name: None if level is None else level.value for name, level in levels.items()}
    measured = [level for level in row.values() if level is not None]
    row |= {"value": told.value, "margin": told.value - max(measured) if measured else None}
    controls, digits = _controls(row, counted=("untrained", *CONTROLS))
    number = f"{percent(told.value, digits)} {words}, late: layer {told.layer}, chosen on validation and told on test"
    if not controls:
        return f"{number}; no control was measured."
    bar, bar_in_words = bar_of(next(iter(controls.values())))
    if not _is_above(row):
        verdict = f"Not seen beyond the controls: {nothing}."
    elif round(told.value - bar, 3) < 0:
        verdict = f"Seen in part, short of the ledger's {bar_in_words}:"
    else:
        verdict = "Seen:"
    return f"{verdict} {number}. {_listed(controls, digits)}."


def _seen_or_not(layers: Sequence[Mapping[str, Any]], nothing: str, words: str) -> str:
    """`layers` are the rows of one measure, the first layer's first."""
    controls, digits = _controls(layers[-1])
    number = f"{percent(layers[-1]['value'], digits)} {words}{_where(layers, digits)}"
    if not controls:
        return f"{number}; no control was measured."
    verdict = "Seen" if _is_above(layers[-1]) else f"Not seen beyond the controls: {nothing}"
    told = f"{verdict}{':' if verdict == 'Seen' else '.'} {number}. {_listed(controls, digits)}."
    answers = layers[-1].get("answers")
    if answers is None:
        return told
    if verdict == "Seen" and answers >= layers[-1]["value"]:
        told = told.replace("Seen:", "Seen, as right answers alone would show it:", 1)
    return f"{told} Right answers alone, without any task, give {percent(answers, digits)}."


def _clusters(layers: Sequence[Mapping[str, Any]], space: str) -> str:
    """F1 has a bar of its own beside the controls: the paper's."""
    last = layers[-1]
    controls, digits = _controls(last)
    states = "of raw states" if space == "raw" else "by t-SNE"
    number = f"The F1 of k-means clusters {states} is {percent(last['value'], digits)}{_where(layers, digits)}"
    if not controls:
        return f"{number}; no control was measured."
    if not _is_above(last):
        verdict = "Not seen beyond the controls: clusters that match the tasks"
    elif last["value"] >= PAPERS_F1:
        verdict = "Seen: clusters that match the tasks"
    else:
        verdict = f"Seen in part: clusters that match the tasks, short of the paper's {percent(PAPERS_F1)}"
    return f"{verdict}. {number}. {_listed(controls, digits)}."


def _where(layers: Sequence[Mapping[str, Any]], digits: int) -> str:
    first, last = layers[0], layers[-1]
    if first is last:
        return f" in layer {last['layer']}"
    return f" in the last layer (layer {first['layer']}: {percent(first['value'], digits)})"


_NOT_ANSWERS = ("untrained", *(name for name in CONTROLS if name != "answers"))


def _controls(row: Mapping[str, Any], counted: Sequence[str] = _NOT_ANSWERS) -> tuple[dict[str, float], int]:
    """The controls, hardest first; and how many decimals tell the value from the hardest one."""
    measured = {name: row[name] for name in counted if row.get(name) is not None}
    controls = dict(sorted(measured.items(), key=lambda item: -item[1]))
    alike = bool(controls) and percent(next(iter(controls.values()))) == percent(row["value"])
    return controls, 1 if alike else 0


def _is_above(row: Mapping[str, Any]) -> bool:
    """Above every control, in the three decimals that the tables show."""
    return round(row["margin"], 3) > 0


def _listed(controls: Mapping[str, float], digits: int) -> str:
    (hardest, level), *others = controls.items()
    text = f"The hardest control, {CONTROL_WORDS[hardest]}, gives {percent(level, digits)}"
    listed = [f"{CONTROL_WORDS[name]} {percent(value, digits)}" for name, value in others]
    return ", ".join([f"{text}; {listed[0]}", *listed[1:]]) if listed else text


# --- the applications -------------------------------------------------------------------------------------------------


def _pretrained(run: Run) -> list[str]:
    """Whether naming the tasks first made the fine-tuning sooner and its end higher than each other arm."""
    rows = {row["arm"]: row for row in _named(pretraining_table(run))}
    sentences = []
    for ending, tasks in SIDES.items():
        named = rows.get(f"task_id{ending}")
        others = {arm: rows[arm + ending] for arm in ARMS if arm != "task_id" and arm + ending in rows}
        if named is None or not others:
            continue
        on = "" if not ending else f" (on {tasks})"
        for column, nothing, words in _SOONER_AND_HIGHER:
            level, levels = named[column], {arm: one[column] for arm, one in others.items() if one[column] is not None}
            if level is None or not levels:
                continue
            told = sorted(levels.items(), key=lambda item: -item[1])
            listed = ", ".join(f"{_PLAIN_ARMS[arm]} {percent(value, 1)}" for arm, value in told)
            number = f"{words} is {percent(level, 1)} after pre-training that names the task{on}"
            more = round(level - told[0][1], 3) > 0
            sentences.append(f"{'Seen' if more else 'Not seen'}: {nothing}{on}. {number}; {listed}.")
        if named["task named"] is not None:
            share, chosen = percent(named["task named"]), named["pre-trained to epoch"]
            sentences.append(
                f"The pre-trained network (epoch {chosen}) names the task of {share} of validation's instructions{on}."
            )
    return sentences


_SOONER_AND_HIGHER = (
    ("area_under_curve", "sooner than every other arm", "Validation accuracy, averaged over the fine-tuning,"),
    ("final test", "higher at the end than every other arm", "Test accuracy in the last tenth of the fine-tuning"),
)
_PLAIN_ARMS = {
    "none": "without pre-training",
    "instruction": "after pre-training on the instructions alone",
    "longer": "without pre-training but trained for as many steps",
}


def _aligned(run: Run) -> list[str]:
    """Table 2: what each method teaches, and what that costs all other tasks."""
    measured = _measures(alignment_table(run))
    fixed, lost = (measured.get(words, {}) for words in ("source tasks: accuracy", "all other tasks: accuracy drop"))
    if set(fixed) != set(METHODS.values()) or set(lost) != set(fixed):
        return []
    taught = ", ".join(f"{percent(value)} by {_with_article(method)}" for method, value in fixed.items())
    paper = dict(zip(METHODS.values(), PAPER["accuracy_drop"], strict=True))
    costs = ", ".join(
        f"{100 * value:.1f} points by {_with_article(method)} (paper: {100 * paper[method]:.1f})"
        for method, value in lost.items()
    )
    drops = [round(value, 3) for value in lost.values()]
    ordered = all(less < more for more, less in pairwise(drops))
    order = "each method costs the other tasks less accuracy than the one before"
    return [
        f"On test, source instances that are given the corrected answer: {taught}.",
        f"Seen: {order}. The other tasks lose {costs}."
        if ordered
        else f"Not seen: the paper's order, in which {order}. The other tasks lose {costs}.",
    ]


def _with_article(method: str) -> str:
    return method if method == METHODS["direct"] else f"the {method}"


def _measures(table: Table) -> dict[str, dict[str, float]]:
    """measure -> method -> value, in the words of the table."""
    found: dict[str, dict[str, float]] = {}
    for row in _named(table):
        words = row.pop(table.header[0])
        found[words] = {method: value for method, value in row.items() if value is not None}
    return found


# --- states moved to another task -------------------------------------------------------------------------------------


def _moved(run: Run) -> list[str]:
    """Strength and layer chosen on validation among the layers above the embedding, told on test beside every control
    at the same place."""
    rows = run.metrics.filter(
        pl.col("measure").is_in(["transfer_kept", "transfer_pairs", "transfer_instructions"]), control="none"
    )
    if rows.is_empty():
        return []
    split, shares = told_split(run), rows.filter(measure="transfer_kept")
    if split != "test" or not shares_of(run.metrics, "transfer_target", "validation"):
        share = "none is" if shares.is_empty() else f"{percent(min(shares['value']))} are"
        count = f"{min(rows.filter(measure='transfer_pairs')['value']):.0f}"
        return [
            "Whether the task's part of a state is used cannot be told: of the pairs of a prompt and another task "
            f"{share} answered as their own task, and {count} are too few to be moved."
        ]
    kept = f"{percent(shares.filter(split='test')['value'].item())} of the pairs are answered as their own task"
    best, whole = told_move(run.metrics), told_move(run.metrics, arms=("state",))
    if best is None:
        return []
    controls = {name: best.controls[name] for name in MOVED_CONTROLS if name in best.controls}
    hardest = max(controls, key=lambda name: controls[name], default=None)
    number = f"{percent(best.share)} of the answers become the other task's when {put_in_place(best.arm)} is put in its"
    number += f" place in layer {best.layer} (chosen on validation)"
    sentences = [f"{number}; {kept}."]
    if hardest is not None:
        units = rows.filter(measure="transfer_instructions", split="test")["value"].item()
        if not is_beyond(best.share, controls[hardest], units):
            verdict = "Not seen beyond the controls"
        elif round(best.share - TURNED, 3) < 0:
            verdict = f"Seen in part, short of the ledger's {percent(TURNED)}"
        else:
            verdict = "Seen"
        sentences[0] = f"{verdict}: {sentences[0]}"
        sentences[0] += (
            f" The hardest control at that place, {MOVED_CONTROLS[hardest]}, gives {percent(controls[hardest])}"
        )
        others = [f"{MOVED_CONTROLS[name]} {percent(value)}" for name, value in controls.items() if name != hardest]
        sentences[0] += f"; {', '.join(others)}." if others else "."
    if whole is not None:
        turned = f"turns {percent(whole.share)} in layer {whole.layer}"
        sentences[0] += f" A whole state, which any code at that place could do, {turned}."
    return sentences


# --- a probe ----------------------------------------------------------------------------------------------------------


def _probed(run: Run) -> list[str]:
    """The answer for each model and where to act on the one that matters most, as the run has recorded it, and what has
    to be said besides."""
    found = run.manifest.get("verdict", {})
    verdicts: Sequence[str] = [f"{model}: {said}." for model, said in found.items()] if isinstance(found, dict) else []
    acting = [str(run.manifest[name]) for name in ("where_to_act",) if name in run.manifest]
    return [*verdicts, *acting, *map(str, run.manifest.get("notes", []))]
