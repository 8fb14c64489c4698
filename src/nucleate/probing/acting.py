"""Where to act: at which layer the task's part of a state, put in place, turns the answers; in numbers and a sentence.

From the tables alone, so that a run folder read back says the same.
"""

from dataclasses import asdict, dataclass
from typing import Any

import polars as pl

from nucleate.long_table import (
    NOT_HELD,
    READABLE,
    STRENGTHS,
    WORDS,
    is_beyond,
    main_read,
    shares_of,
    told_move,
    value_of,
)
from nucleate.measures.transfer import FEWEST
from nucleate.probing.findings import layer_of, verdict_of
from nucleate.report.tables import percent
from nucleate.report.transfer_table import CONTROLS, put_in_place

ANSWERS, LIKELIER, CORRELATION = "answers", "likelier", "correlation"
_MEASURES = {ANSWERS: "transfer_target", LIKELIER: "transfer_turned"}
_STEMS = {ANSWERS: "transfer", LIKELIER: "transfer_turned"}  # of how many pairs, of how many instructions


@dataclass(frozen=True)
class WhereToAct:
    """At which layer of a model to act, and how that is known; prints as a sentence."""

    by: str  # answers: that turned; likelier: which of two answers is; correlation: labels are read there, no more
    layer: int | None  # None: no layer was found
    strength: int | None  # how many times the mean is put in place
    turned: float | None  # share of pairs on test, also where it is not beyond its controls
    control: str | None  # the hardest one at the same place
    control_value: float | None
    others_changed: float | None  # share of answers of other tasks' prompts that change by the same move
    pairs: int | None  # moved on test
    answered: float | None  # share of all pairs on test that are answered as their own task
    sentence: str

    def __str__(self) -> str:
        return self.sentence

    @property
    def told(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def where_to_act(metrics: pl.DataFrame, model: str) -> WhereToAct:
    """Of one model: by its answers, else by which of two answers is the likelier one, else by where labels are read."""
    moves = metrics.filter(pl.col("model") == model, pl.col("experiment") == "transfer")
    return _moved(moves, ANSWERS) or _moved(moves, LIKELIER) or _correlated(metrics, moves, model)


def _moved(moves: pl.DataFrame, by: str) -> WhereToAct | None:
    """None where too little was moved."""
    best = told_move(moves, measure=_MEASURES[by])
    if best is None:
        return None
    pairs, units = (_of_test(moves, f"{_STEMS[by]}_{name}") or 0.0 for name in ("pairs", "instructions"))
    answered = _of_test(moves, "transfer_kept")
    hardest = max(best.controls, key=lambda name: best.controls[name], default=None)
    level = 0.0 if hardest is None else best.controls[hardest]
    unchanged = value_of(moves, "transfer_others_unchanged", split="test", layer=best.layer, arm=best.arm)
    changed = None if unchanged is None else 1 - unchanged
    found = hardest is not None and is_beyond(best.share, level, units)
    layers = sorted({layer for layer, _, _ in shares_of(moves, _MEASURES[by], "validation")})
    turns = f"when {put_in_place(best.arm)} is put in its place"
    if by == ANSWERS:
        turned = f"{percent(best.share)} of {pairs:.0f} answers become the other task's {turns}"
        turned += "" if answered is None else f" ({percent(answered)} of all pairs are answered rightly, and moved)"
    else:
        turned = f"for {percent(best.share)} of {pairs:.0f} pairs the other task's answer, less likely before, is the "
        turned += f"likelier of the two {turns}"
    beside = "no control could be made" if hardest is None else f"the hardest control, {CONTROLS[hardest]}, gives "
    beside += "" if hardest is None else percent(level)
    if "answers" not in best.controls:
        beside += "; right answers alone could not be made a control here, so a push towards the answer may do the same"
    parts = [_too_few(moves)] if by == LIKELIER else []
    tried = f"chosen on validation from {_listed(layers)}" if len(layers) > 1 else "the only one tried"
    place = f"layer {best.layer} ({tried})"
    place += ": " if found else ", "
    parts.append(f"{'' if found else 'no layer was found beyond its controls: at '}{place}{turned}; {beside}")
    if changed is not None:
        parts.append(f"the same shift changes {percent(changed)} of the answers of other tasks' prompts")
    return WhereToAct(
        by,
        best.layer if found else None,
        STRENGTHS[best.arm] if found else None,
        best.share,
        hardest,
        None if hardest is None else level,
        changed,
        round(pairs),
        answered,
        f"where to act: {'; '.join(parts)}",
    )


def _correlated(metrics: pl.DataFrame, moves: pl.DataFrame, model: str) -> WhereToAct:
    best = layer = layer_of(metrics, model, READABLE)
    between = _between(metrics, model)
    elsewhere = ""
    if between and best not in between:
        layer = max(sorted(between), key=lambda one: between[one])
        elsewhere = (
            f"; no vector can be added there: at layer {layer} one can, off which {percent(between[layer])} are read"
        )
    why = "not measured (that takes outputs, inputs that tasks share, and a finished causal language model)"
    if not moves.is_empty():
        why = f"cannot be told by moving states: {_too_few(moves)}"
        count = min(_counts(moves, "transfer_turned_pairs"), default=None)
        some = f"only {count:.0f}" if count else "none"
        why += "" if count is None else f", and for {some} of them the own answer is the likelier of the two"
    verdict = verdict_of(metrics, model)
    no_more = f" ({verdict})" if verdict in (WORDS, NOT_HELD) else ""
    return WhereToAct(
        CORRELATION,
        layer,
        *(None,) * 6,
        _of_test(moves, "transfer_kept"),
        f"where to act: {why}; labels are read best off layer {best}{no_more}, which is correlation, no cause"
        f"{elsewhere}",
    )


def _between(metrics: pl.DataFrame, model: str) -> dict[int, float]:
    """layer -> the share of labels read where layers are chosen, between the embedding and the last layer."""
    here = main_read(metrics).filter(model=model, control="none")
    read = here.filter(measure="linear_accuracy", split="validation")
    depth = value_of(here, "depth") or 0  # not told by earlier versions
    return {layer: share for layer, share in zip(read["layer"], read["value"], strict=True) if 0 < layer < depth}


def _too_few(moves: pl.DataFrame) -> str:
    """How many pairs are answered as their own task, in the half that has fewer."""
    count = min(_counts(moves, "transfer_pairs"), default=0)
    some = f"only {count:.0f} pairs" if count else "no pairs"
    return f"{some} of a prompt and another task are answered as their own task, {FEWEST} are needed"


def _counts(moves: pl.DataFrame, measure: str) -> list[float]:
    return moves.filter(measure=measure)["value"].to_list()


def _of_test(moves: pl.DataFrame, measure: str) -> float | None:
    return value_of(moves, measure, split="test")


def _listed(layers: list[int]) -> str:
    """layers 5, 10 and 15"""
    return f"layers {', '.join(map(str, layers[:-1]))} and {layers[-1]}"
