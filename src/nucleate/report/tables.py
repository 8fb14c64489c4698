"""A run in rows of plain values: what `nucleate` prints at the end and what the page shows. No drawing here.

`summary_table` comes first.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

from nucleate.long_table import ANY, TIMELESS, Score, by_layer, pick
from nucleate.runs import Run, flat

Cell = str | int | float | bool | None

UNSEEN = ("validation", "test", "subset", "all")  # the split that a summary is about: the first one measured
CONTROLS = ("shuffled", "regrouped", *TIMELESS)
# What the summary shows, most telling first: (measure, space).
MAIN_MEASURES = (
    ("knn_share", "raw"),
    ("knn_share_other_distributions", "raw"),
    ("knn_share_other_both", "centred"),
    ("knn_accuracy", "raw"),
    ("f1", "raw"),
    ("f1", "tsne"),
    ("f1", "centred"),
    ("f1", "averaged"),
    ("ari", "raw"),
    ("ari", "tsne"),
    ("ari", "averaged"),
)


class Table(NamedTuple):
    """A header and rows of plain values; None where a value was not measured."""

    header: tuple[str, ...]
    rows: list[tuple[Cell, ...]]


def percent(share: float, digits: int = 0) -> str:
    """A share in words: 0.874 is `87 %`."""
    return f"{100 * share:.{digits}f} %".replace("-0 %", "0 %")


def summary_table(run: Run) -> Table:
    """The last measured epoch against every control: a row per main measure and layer, scored with tasks as labels.

    All values lie in [0, 1], except ari, which is 0 for chance and may fall a little below. `untrained` is the same
    layer at epoch 0. Shuffled and regrouped labels are those of the same layer; the surface of the text has no layers,
    and right answers have none, so that their one value stands in each row. `margin` is the value minus the highest
    control; right answers are one where the space is centred, and stand beside elsewhere, where they score 1 or nearly.
    """
    header = ("measure", "space", "layer", "value", "untrained", *CONTROLS, "margin")
    split, last = summary_split(run), last_measured_epoch(run)
    rows: list[tuple[Cell, ...]] = []
    if split is None:
        return Table(header, rows)
    for measure, space in MAIN_MEASURES:
        wanted = Score(measure, split, "task", (space,), experiment="learn")
        trained = by_layer(pick(run.metrics, wanted, epoch=last))
        controls = [by_layer(pick(run.metrics, wanted, epoch=0)) if last != 0 else {}]
        for control in CONTROLS:
            epoch = ANY if control in TIMELESS else last
            controls.append(by_layer(pick(run.metrics, wanted, control, epoch=epoch)))
        for layer, value in sorted(trained.items(), key=lambda item: -1 if item[0] is None else item[0]):
            beside = [found.get(layer, found.get(None)) for found in controls]
            named = zip(header[4:], beside, strict=False)
            counted = [(name, number) for name, number in named if name != "answers" or space == "centred"]
            measured = [number for _, number in counted if number is not None]
            rows.append((measure, space, layer, value, *beside, value - max(measured) if measured else None))
    return Table(header, rows)


def first_and_last(run: Run) -> Table:
    """The summary for a terminal: a line per measure, the first layer and the last, the last one's controls."""
    header, rows = summary_table(run)
    found: dict[tuple[Cell, ...], list[dict[str, Any]]] = {}
    for row in rows:
        found.setdefault(row[:2], []).append(dict(zip(header, row, strict=True)))
    ends, listed = "last layer", list[tuple[Cell, ...]]()
    for place, words in _LINES.items():
        if place in found:
            first, last = found[place][0], found[place][-1]
            grams = [last[name] for name in ("surface_instruction", "surface_prompt") if last[name] is not None]
            controls = (last[name] for name in ("untrained", "shuffled", "regrouped"))
            row = (words, first["value"], last["value"], *controls, max(grams, default=None), last["answers"])
            listed.append(row)
            ends = f"layer {last['layer']}"
    return Table(("", "layer 0", ends, "untrained", "shuffled", "regrouped", "n-grams", "answers"), listed)


_LINES: dict[tuple[Cell, ...], str] = {
    ("knn_share", "raw"): "same-task neighbours",
    ("knn_share_other_distributions", "raw"): "of other distributions",
    ("knn_share_other_both", "centred"): "and other inputs, centred",
    ("knn_accuracy", "raw"): "right answers by them",
    ("f1", "raw"): "F1, raw states",
    ("f1", "tsne"): "F1, t-SNE",
    ("f1", "centred"): "F1, centred",
    ("f1", "averaged"): "F1, per instruction",
}


def last_measured_epoch(run: Run) -> int | None:
    """The last epoch at which hidden states were measured; loss and accuracy may go further."""
    return _states(run)["epoch"].max()  # type: ignore[return-value]


def summary_split(run: Run) -> str | None:
    """The split of the summary: validation where it was measured."""
    measured = set(_states(run)["split"].unique())
    return next((split for split in UNSEEN if split in measured), None)


def _states(run: Run) -> pl.DataFrame:
    rows = run.metrics
    return rows.filter(pl.col("experiment").eq("learn") & pl.col("control").eq("none") & pl.col("layer").is_not_null())


def settings_table(run: Run) -> Table:
    """Every setting with its value."""
    return Table(("setting", "value"), _rows_of(run.config))


def manifest_table(run: Run) -> Table:
    """Versions, machine, seeds, hashes, seconds and status."""
    return Table(("fact", "value"), _rows_of(run.manifest))


def counts_table(run: Run) -> Table:
    """How much data there is; empty where the run keeps no dataset.json."""
    return Table(("what", "count"), _rows_of((run.dataset_facts or {}).get("counts", {})))


def _rows_of(tree: Mapping[str, Any]) -> list[tuple[Cell, ...]]:
    return [(key, value if isinstance(value, Cell) else str(value)) for key, value in flat(tree).items()]


def answers_table(run: Run, *, limit: int = 12) -> Table:
    """Unseen prompts, spread evenly over the split, with what was expected and what the network gave at the end."""
    header = ("instruction", "input", "expected", "given", "task")
    if run.dataset is None or not run.layout_epochs:
        return Table(header, [])
    given = run.predictions(run.layout_epochs[-1])
    if given is None:
        return Table(header, [])
    answered = run.dataset.join(given.rename({"output": "given"}), on="instance", maintain_order="left")
    split = next((split for split in UNSEEN if split in set(answered["split"].unique())), None)
    answered = answered.filter(pl.col("split") == split) if split else answered
    spread = answered.gather_every(max(1, -(-len(answered) // limit)))
    columns = ("instruction", "input", "output", "given", "task")
    return Table(header, [tuple(row) for row in spread.select(columns).iter_rows()])
