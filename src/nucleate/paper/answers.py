"""How many answers are right, as rows of the long table, and how fast that number rose."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import polars as pl
from transformers import PreTrainedTokenizerFast

from nucleate.data.dataset import Instance
from nucleate.model.states import Reading
from nucleate.paper.instances import places_of


def answer_rows(
    tokenizer: PreTrainedTokenizerFast, members: Sequence[Instance], reading: Reading, splits: Iterable[str]
) -> list[dict[str, Any]]:
    """By split: accuracy (greedy, over all words), accuracy_restricted (among the outputs of the instance's own task,
    where candidates were read), and, but for the training split, loss per predicted token."""
    wished = np.array(tokenizer.convert_tokens_to_ids([str(i.output) for i in members]))
    rows = []
    for split in splits:
        here = places_of(members, split)
        found = {"accuracy": float((reading.predicted == wished)[here].mean())}
        if reading.restricted is not None:
            found["accuracy_restricted"] = float((reading.restricted == wished)[here].mean())
        if split != "train":
            found["loss"] = float(reading.loss[here].sum() / reading.predicted_tokens[here].sum())
        rows += [{"split": split, "measure": measure, "value": value} for measure, value in found.items()]
    return rows


def score_in(rows: Iterable[Mapping[str, Any]], measure: str = "accuracy") -> float:
    """What is scored on validation."""
    return next(row["value"] for row in rows if (row["measure"], row["split"]) == (measure, "validation"))


def curve_rows(parts: Iterable[pl.DataFrame]) -> list[dict[str, Any]]:
    """How fast validation accuracy rose over the parts of a training from epoch 1 on: its mean, and the first epoch at
    a share of its final level (the mean of the last ten epochs)."""
    curve = pl.concat(parts).filter(measure="accuracy", split="validation")["value"].to_numpy()
    final = float(curve[-10:].mean())
    rows: list[dict[str, Any]] = [{"measure": "area_under_curve", "value": float(curve.mean())}]
    if final > 0:
        rows += [
            {"measure": f"epochs_to_{share}", "value": float(np.argmax(curve >= share / 100 * final) + 1)}
            for share in (50, 80, 90)
            if (curve >= share / 100 * final).any()
        ]
    return [{**row, "split": "validation"} for row in rows]
