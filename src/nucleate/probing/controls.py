"""What needs no network: the bare text and right answers alone, measured as if they were states."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nucleate.measures.baselines import answer_features, surface_features
from nucleate.probing.costs import costs_of_text
from nucleate.probing.design import Design
from nucleate.probing.halves import Side
from nucleate.probing.layers import LayerMeasures, Rows, measure_layers
from nucleate.probing.margins import Controls
from nucleate.probing.separation import mean_known
from nucleate.probing.study import ProbeStudy
from nucleate.progress import Progress, Workload
from nucleate.runs import RunWriter


def surface_of(study: ProbeStudy, run: RunWriter, work: Workload, progress: Progress) -> Controls:
    """What the text alone gives, as if its n-grams were states, and right answers alone: reading -> control ->
    (prompt,) on test."""
    texts = {"surface_prompt": [f"{one.instruction} {one.input}".strip() for one in study.prompts.instances]}
    if study.prompts.has_inputs:
        texts["surface_instruction"] = [one.instruction for one in study.prompts.instances]
    rows, found = [], dict[str, LayerMeasures]()
    costs, warm = costs_of_text(study.prompts), False
    for control, column in texts.items():
        for sides in _by_other_half(study.design.sides):  # whose n-grams they are
            features = surface_features([column[place] for place in sides[0].against], column)[np.newaxis]
            one = measure_layers(study.design, features, [0], _untold, sides=sides)
            if sides[-1].split == "test":
                found[control] = one
            rows += rows_with([{**row, "layer": None} for row in one.rows], control=control)
            done = work.did("n-grams", costs[control] * len(sides))
            if warm:  # the first one waits for kernels and promises nothing
                progress("n-grams of the text", done)
            warm = True
    shares: dict[str, dict[str, np.ndarray]] = {
        "clustered": {control: one.shares["test", 0] for control, one in found.items()},
        "readable": {control: one.said[0] for control, one in found.items()},
    }
    progress("right answers as a control", work.fraction)
    codings = _codings(study.design)
    if codings:
        rows += _highest(codings)
        nearest = max(codings, key=lambda one: mean_known(one.shares["validation", 0]))
        named = max(codings, key=lambda one: one.chosen[0])
        shares["clustered"]["answers"], shares["readable"]["answers"] = nearest.shares["test", 0], named.said[0]
    work.did("n-grams", costs["answers"])
    run.write_part("surface", [study.complete(row) for row in rows])
    return shares


def _by_other_half(sides: Sequence[Side]) -> list[tuple[Side, ...]]:
    """Sides that are sought in the same instances go together."""
    groups: dict[bytes, tuple[Side, ...]] = {}
    for side in sides:
        where = side.against.tobytes()
        groups[where] = (*groups.get(where, ()), side)
    return list(groups.values())


def _untold(what: str, done: int, of: int) -> None:
    """Progress that nobody hears of."""


def _codings(design: Design) -> list[LayerMeasures]:
    """What states give that hold nothing but the input and the right output, in each coding; none where some prompt
    lacks either."""
    labels = design.labels
    if (labels.input < 0).any() or (labels.output < 0).any():
        return []
    codings = answer_features(labels.input, labels.output, labels.task)
    return [measure_layers(design, features[np.newaxis], [0], _untold) for features in codings]


def _highest(codings: Sequence[LayerMeasures]) -> Rows:
    """Of each score the highest."""
    highest: dict[tuple[Any, ...], dict[str, Any]] = {}
    for found in codings:
        for row in rows_with([{**row, "layer": None} for row in found.rows], control="answers"):
            key = tuple((name, value) for name, value in sorted(row.items(), key=str) if name != "value")
            if key not in highest or row["value"] > highest[key]["value"]:
                highest[key] = row
    return list(highest.values())


def at_best_of(measured: LayerMeasures) -> dict[str, np.ndarray]:
    """reading -> (prompt,) on test, each at the layer that was chosen for it."""
    return {
        "clustered": measured.shares["test", measured.best_layer],
        "readable": measured.said[measured.best_readable_layer],
    }


def rows_with(rows: Sequence[Mapping[str, Any]], *, read: str | None = None, control: str = "none") -> Rows:
    """Rows with their read; those of a control without shuffled and regrouped labels of its own."""
    kept = [row for row in rows if control == "none" or row.get("control", "none") == "none"]
    return [
        {"control": control, **row, "read": read} | ({"control": control} if control != "none" else {}) for row in kept
    ]
