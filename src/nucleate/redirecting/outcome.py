"""What has come of a redirection, as rows of the long table: the source as wished, all others as they were, on test."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel

from nucleate.model.own_head import head_logits
from nucleate.model.switch import AT_ONCE, Head, TeachingSet
from nucleate.redirecting.prompts import name_of
from nucleate.redirecting.study import Others
from nucleate.redirecting.teaching import THRESHOLDS, Errors, Method, errors_at

Row = dict[str, Any]
_JUDGED = {"test": "", "new_inputs": "_new_inputs"}  # side -> how its measures end


def before_rows(sides: Mapping[str, TeachingSet], others: Others) -> Iterator[Row]:
    """The network as it was: how often it gave the wished output already, and was right elsewhere; and how many
    prompts that is told of."""
    nothing = {name: np.zeros(len(side.first), dtype=bool) for name, side in sides.items()}
    scores = _of_source(sides, lambda side: sides[side].answers(None), nothing)
    scored = others.wanted >= 0
    if scored.any():
        scores["others_accuracy"] = float((others.before == others.wanted)[scored].mean())
    scores |= {f"source_prompts{name}": len(sides[side].first) for side, name in _JUDGED.items() if side in sides}
    scores["others_prompts"] = len(others.instances)
    for measure, value in scores.items():
        yield {"arm": "main", "split": "test", "measure": measure, "value": float(value)}


def method_rows(
    arm: str, method: Method, network: PreTrainedModel, sides: Mapping[str, TeachingSet], others: Others
) -> tuple[list[Row], pl.DataFrame]:
    """All rows of a method, and what each other distribution or task lost by it."""
    after, on = _after(network, others, method)
    rows: list[Row] = [
        {"split": "test", "measure": measure, "value": value}
        for measure, value in _scores(sides, others, method, after, on).items()
    ]
    rows += [
        {"epoch": epoch, "split": "validation", "measure": "source_accuracy", "value": value}
        for epoch, value in enumerate(method.curve, 1)
    ]
    if method.switch is not None:
        for layer, errors in method.errors.items():
            rows += [{**row, "layer": layer, "split": "validation"} for row in _of_errors(errors)]
        rows += _over_thresholds(method, sides, others)
    told = _by_name(others, after, on).select(pl.lit(arm).alias("arm"), pl.all())
    return [{"arm": arm, **row} for row in rows], told


def _after(network: PreTrainedModel, others: Others, method: Method) -> tuple[np.ndarray, np.ndarray]:
    """(instance,) the likeliest next token of the others now, and where head or adapter gives it."""
    on, after = method.on(others.ends), others.before.copy()
    places = np.flatnonzero(on)
    if method.answered is not None:
        after[places] = method.answered.others[places]
        return after, on
    for start in range(0, len(places), AT_ONCE):
        part = places[start : start + AT_ONCE]
        with torch.no_grad():
            after[part] = (head_logits(network, others.states[part]) + method.expert(others.states[part])).argmax(-1)
    return after, on


def _of_source(
    sides: Mapping[str, TeachingSet],
    answers: Callable[[str], tuple[np.ndarray, ...]],
    on: Mapping[str, np.ndarray],
) -> dict[str, float]:
    """`source_accuracy`: all tokens of the wished output are right; `…_ended`: so is the one that ends it;
    `…_restricted`: its first token is, among the first of all wished outputs, where these are more than one."""
    scores = {}
    for side, name in _JUDGED.items():
        if side in sides:
            both = zip(("", "_ended", "_restricted"), answers(side), sides[side].answers(None), strict=True)
            told = {"": True, "_ended": sides[side].closing.any(), "_restricted": len(sides[side].allowed) > 1}
            for measure, now, then in both:
                if told[measure]:
                    scores[f"source_accuracy{measure}{name}"] = float(np.where(on[side], now, then).mean())
    return scores


def _scores(
    sides: Mapping[str, TeachingSet], others: Others, method: Method, after: np.ndarray, on: np.ndarray
) -> dict[str, float]:
    """By measure. An output of the others is right where its first token is. `accuracy_drop` is the paper's,
    `…_others` leaves the target out."""
    switched = {side: method.on(sides[side].ends) for side in _JUDGED if side in sides}
    scores = _of_source(sides, partial(_answers, method, sides), switched)
    if method.switch is not None:
        scores |= {f"switch_misses{_JUDGED[side]}": 1 - here.mean() for side, here in switched.items()}
        scores["switch_false_positives"] = on.mean()
        scores |= {"chosen_layer": method.switch.layer or 0, "chosen_threshold": method.switch.threshold}
        scores["chosen_switch_rate"] = method.switch_rate or 0
    same, neither = after == others.before, ~others.of_target
    scores["others_kept"] = same.mean()
    if others.of_target.any() and neither.any():
        scores["others_kept_no_target"] = same[neither].mean()
    scored = others.wanted >= 0
    if scored.any():
        drop = (others.before == others.wanted).astype(float) - (after == others.wanted)
        scores["others_accuracy_before"] = (others.before == others.wanted)[scored].mean()
        scores["others_accuracy"] = (after == others.wanted)[scored].mean()
        scores["accuracy_drop"] = drop[scored].mean()
        if (scored & neither).any():
            scores["accuracy_drop_others"] = drop[scored & neither].mean()
    scores |= {"chosen_rate": method.rate, "chosen_epoch": method.epoch}
    return {measure: float(value) for measure, value in scores.items()}


def _answers(method: Method, sides: Mapping[str, TeachingSet], side: str) -> tuple[np.ndarray, ...]:
    """Of its head or adapter alone, whatever its switch says."""
    if method.answered is not None:
        return method.answered.sides[side]
    assert isinstance(method.expert, Head)
    return sides[side].answers(method.expert)


def _of_errors(errors: Errors, ending: str = "", *, inputs: str = "") -> list[Row]:
    told = {f"switch_misses{inputs}{ending}": errors.missed, f"switch_false_positives{ending}": errors.falsely_on}
    return [{"measure": measure, "value": value} for measure, value in told.items()]


def _over_thresholds(method: Method, sides: Mapping[str, TeachingSet], others: Others) -> list[Row]:
    """What the switch misses and for what it is falsely on, at each threshold (`…_t50` at one half), on test."""
    theirs, rows = method.logits(others.ends), list[Row]()
    for threshold in THRESHOLDS:
        ending = f"_t{100 * threshold:.0f}"
        for side, name in _JUDGED.items():
            if side in sides:
                errors = errors_at(threshold, [method.logits(sides[side].ends)], theirs)
                told = _of_errors(errors, ending, inputs=name)
                rows += told if not name else told[:1]  # the others are the same
    return [{**row, "split": "test"} for row in rows]


def _by_name(others: Others, after: np.ndarray, on: np.ndarray) -> pl.DataFrame:
    """A row per other distribution or task: prompts, accuracy before and after, shares kept and switched."""
    scored = others.wanted >= 0
    frame = pl.DataFrame(
        {
            "name": [name_of(one) for one in others.instances],
            "before": np.where(scored, others.before == others.wanted, np.nan),
            "after": np.where(scored, after == others.wanted, np.nan),
            "kept": (after == others.before).astype(float),
            "switched": on.astype(float),
        }
    ).with_columns(pl.col("before", "after").fill_nan(None))
    return frame.group_by("name").agg(pl.len().alias("prompts"), pl.all().mean()).sort("name")
