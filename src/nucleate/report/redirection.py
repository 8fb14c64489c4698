"""Whether the redirection of a real model worked: its verdict against two bars, and how its switch was chosen."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from nucleate.long_table import HEADS, METHODS
from nucleate.report.tables import Table, percent
from nucleate.runs import Run

BARS = {"want": 0.95, "keep": 0.95}  # of the source answered as wished, of all others unchanged; unless others are set
_NAMES = HEADS | {arm: name for arm, name in METHODS.items() if arm not in HEADS}
_RUNS_ON = "the output is the wished one but the text runs on behind it; give more prompts"
_MOST_LOST = 0.5  # another task that keeps less is named


class Verdict(NamedTuple):
    """Whether it worked, in a sentence; and in a sentence each, which of the bars that were set are missed."""

    sentence: str
    missed: list[str]


def saved_arm(run: Run) -> str:
    """The method that is saved: the better switch on validation, or the one that was asked for."""
    return str(run.manifest.get("saved") or f"{run.config.get('switch')}_switch")


def verdict_of(run: Run) -> Verdict | None:
    """On test, of the method that is saved: it works where the source is answered as wished and no more, on
    instructions and on inputs that nothing was learnt from, and all others are as they were. None where that was not
    measured."""
    arm = saved_arm(run)
    found, before = _on_test(run, arm), _on_test(run, "main")
    if "source_accuracy" not in found or "others_kept" not in found:
        return None
    want, keep = (float(run.config.get(name, bar)) for name, bar in BARS.items())
    wished, unseen, kept = found["source_accuracy"], found.get("source_accuracy_new_inputs"), found["others_kept"]
    ended, expert = found.get("source_accuracy_ended", wished), str(run.config.get("expert", "head"))
    reasons = [
        *(_why_missed(found, want, "", expert) if wished < want else []),
        *([_RUNS_ON] if ended < want <= wished else []),
        *(_why_lost(run, kept, keep) if kept < keep else []),
    ]
    source = f"the source gets its wished output in {_beside(wished, want)}{_of(before, 'source_prompts')}"
    source += f" (before: {percent(before['source_accuracy'])})" if "source_accuracy" in before else ""
    if unseen is None:
        source += "; unseen inputs were not measured"
    else:
        source += f" and in {_beside(unseen, want)}{_of(before, 'source_prompts_new_inputs')} with unseen inputs"
    if ended < want <= wished:
        source += f"; the text ends behind it in only {_beside(ended, want)}"
    others = f"{_beside(kept, keep)}{_of(before, 'others_prompts')} other predictions are unchanged"
    numbers = f"on held-out prompts {source}; {others} (bars: {percent(want)} and {percent(keep)})"
    if reasons:
        said = f"Does not work: {'; and '.join(reasons)}. O{numbers[1:]}."
    elif unseen is not None and unseen < want:
        (why, *_) = _why_missed(found, want, "_new_inputs", expert)
        said = f"Works only for the inputs that it was taught: {why}. O{numbers[1:]}."
    else:
        said = f"Works: {numbers}."
    missed = []
    if "want" in run.config and min(wished, ended, wished if unseen is None else unseen) < want:
        missed.append(f"--want {want:g} is missed: {source}")
    if "keep" in run.config and kept < keep:
        missed.append(f"--keep {keep:g} is missed: {others}")
    return Verdict(f"{said} {_saved(arm, found)}", missed)


def _on_test(run: Run, arm: str) -> dict[str, float]:
    rows = run.metrics.filter(pl.col("epoch").is_null(), arm=arm, split="test", experiment="align")
    return dict(rows.select("measure", "value").iter_rows())


def _why_missed(found: Mapping[str, float], want: float, inputs: str, expert: str) -> list[str]:
    """Why too little of the source gets its wished output: the switch, or the head or adapter behind it."""
    wished, missed = found[f"source_accuracy{inputs}"], found.get(f"switch_misses{inputs}", 0.0)
    what = "the source's prompts with other inputs" if inputs else "the source"
    more = "inputs" if inputs else "instructions"
    on_missing = f"the switch misses {_beside(missed, 1 - want)} of {what}"
    advice = f"give more {more}, another layer or threshold"
    if missed <= 1 - want:
        where = f"finds {percent(1 - missed)} of {what}" if missed else f"finds {what}"
        rule = ": a new head learns outputs, hardly a rule" if expert == "head" else ""
        more = f"more inputs{rule}" if inputs else "more instructions and inputs"
        return [f"the switch {where} but the output is the wished one for {_beside(wished, want)}; give {more}"]
    wrong = 1 - min(1.0, wished / (1 - missed)) if missed < 1 else 0.0
    if wrong > 1 - want:
        return [f"{on_missing}, and of what it finds {percent(wrong)} do not get the wished output; {advice}"]
    return [f"{on_missing}; {advice}"]


def _why_lost(run: Run, kept: float, keep: float) -> list[str]:
    said = f"the others lose {_beside(1 - kept, 1 - keep)} of their predictions"
    others = run.table("others")
    told = others.filter(arm=saved_arm(run)).sort("kept", "name") if others is not None else None
    if told is not None and len(told) and told["kept"][0] < _MOST_LOST:
        said += f", most of all {told['name'][0]} ({percent(1 - told['kept'][0])})"
    return [f"{said}; give more examples of each, a higher threshold or another layer"]


def _beside(value: float, bar: float) -> str:
    """In percent, with a decimal where it would else be taken for the bar."""
    return percent(value, 1 if value != bar and percent(value) == percent(bar) else 0)


def _of(before: Mapping[str, float], measure: str) -> str:
    return f" of {before[measure]:,.0f}" if measure in before else " of the" if "others" in measure else ""


def _saved(arm: str, found: Mapping[str, float]) -> str:
    where = f", which reads layer {found['chosen_layer']:.0f}" if "chosen_layer" in found else ""
    on = f" and is on above {found['chosen_threshold']:g}" if "chosen_threshold" in found else ""
    return f"Saved is the {_NAMES.get(arm, arm)}{where}{on}."


def redirected(run: Run) -> list[str]:
    """Whether it worked, and the other methods beside it."""
    verdict, beside = verdict_of(run), methods_beside(run)
    return [*([verdict.sentence] if verdict else []), *([beside] if beside else [])]


def methods_beside(run: Run) -> str:
    """In a sentence, what the methods that are not saved come to."""
    told = []
    for arm, name in _NAMES.items():
        found = _on_test(run, arm)
        if arm == saved_arm(run) or "source_accuracy" not in found or "others_kept" not in found:
            continue
        unseen = found.get("source_accuracy_new_inputs")
        inputs = f" ({percent(unseen)} with unseen inputs)" if unseen is not None else ""
        source = f"{percent(found['source_accuracy'])} of the source as wished{inputs}"
        told.append(f"the {name} {source}, {percent(found['others_kept'], 1)} of all others unchanged")
    return f"Beside it: {'; '.join(told)}." if told else ""


# --- how the switch was chosen ---------------------------------------------------------------------------------------

_ERRORS = {"switch_misses": "source not switched", "switch_false_positives": "others switched"}


def layers_table(run: Run) -> Table:
    """A row per layer that a switch could read: what it got wrong there on validation, and which one was chosen."""
    rows = run.metrics.filter(
        pl.col("layer").is_not_null() & pl.col("measure").is_in(list(_ERRORS)),
        experiment="align",
        split="validation",
    )
    arms = [arm for arm in METHODS if arm in rows["arm"].unique().to_list()]
    found = {(row["arm"], row["layer"], row["measure"]): row["value"] for row in rows.iter_rows(named=True)}
    chosen = {arm: _on_test(run, arm).get("chosen_layer") for arm in arms}
    header = ("layer", *(f"{METHODS[arm]}: {words}" for arm in arms for words in _ERRORS.values()), "chosen by")
    listed: list[Any] = [
        (
            layer,
            *(found.get((arm, layer, measure)) for arm in arms for measure in _ERRORS),
            ", ".join(METHODS[arm] for arm in arms if chosen[arm] == layer),
        )
        for layer in rows["layer"].unique().sort().to_list()
    ]
    return Table(header, listed)


def thresholds_table(run: Run) -> Table:
    """A row per threshold of the switch that is saved: what it misses, and for what it is falsely on, on test."""
    columns = {
        "switch_misses": "source not switched",
        "switch_misses_new_inputs": "unseen inputs: not switched",
        "switch_false_positives": "others switched",
    }
    found = _on_test(run, saved_arm(run))
    told = {tuple(measure.rsplit("_t", 1)): value for measure, value in found.items() if measure[-1].isdigit()}
    thresholds = sorted({int(at) for name, at in told if name in columns})
    there = {name: words for name, words in columns.items() if any((name, str(at)) in told for at in thresholds)}
    return Table(
        ("threshold", *there.values()),
        [(at / 100, *(told.get((name, str(at))) for name in there)) for at in thresholds],
    )
