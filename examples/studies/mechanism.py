"""Two pictures of finished runs that differ in their seed alone: where the task is read off, what a layer holds.

    python examples/studies/mechanism.py RUN [RUN ...] OUT

Writes OUT/mechanism_layers and OUT/mechanism_parts (PNG and SVG). All numbers are late in training, on unseen
instructions; lines are means over the runs, bands go from the lowest to the highest.
"""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nucleate.long_table import Score, level_of, shares_of
from nucleate.report.drawing import WIDTH, save, style
from nucleate.runs import Run, load_run

CONTROLS = ("untrained", "shuffled", "regrouped", "surface_instruction", "surface_prompt", "answers")
OF_A_MOVE = ("random", "regrouped", "answers", "untrained")
Levels = dict[int, float]  # by layer
DOTTED: dict[str, Any] = {"linewidth": 1.0, "dashes": (1.5, 1.5)}
PLAIN: dict[str, Any] = {"linewidth": 1.5, "marker": "o", "markersize": 3}


def levels(table: pl.DataFrame, score: Score, control: str = "none") -> Levels:
    """Late in training; of the untrained network before it; what has no layer stands at each."""
    layers = sorted(table.filter(experiment="learn")["layer"].drop_nulls().unique())
    found = {layer: level_of(table, score, layer, control) for layer in layers}
    return {layer: value for layer, value in found.items() if value is not None}


def hardest(table: pl.DataFrame, score: Score, *, but: str = "") -> Levels:
    """Of all controls that were measured, layer by layer."""
    every = [levels(table, score, control) for control in CONTROLS if control != but]
    return {layer: max(one[layer] for one in every if layer in one) for layer in set().union(*every)}


def moved(table: pl.DataFrame, arm: str) -> Levels:
    """The share of answers that follow."""
    return {
        at: v
        for (at, of, name), v in shares_of(table, "transfer_target", "test").items()
        if (of, name) == (arm, "none")
    }


def hardest_move(table: pl.DataFrame, arm: str) -> Levels:
    """Of all controls at the same place and strength."""
    found: dict[int, list[float]] = {}
    for (at, of, name), value in shares_of(table, "transfer_target", "test").items():
        if of == arm and name in OF_A_MOVE:
            found.setdefault(at, []).append(value)
    return {at: max(values) for at, values in found.items()}


# Input and right output together name the task, so that of answers a linear probe says nothing.
LINEAR = Score("linear_accuracy", "test", experiment="learn")
CLUSTERS = Score("f1", "test", "task", ("centred",), experiment="learn")
LAYERS: dict[str, tuple[str, Callable[[pl.DataFrame], Levels], Callable[[pl.DataFrame], Levels]]] = {
    "a linear probe names the task": (
        "#0072B2",
        lambda t: levels(t, LINEAR),
        lambda t: hardest(t, LINEAR, but="answers"),
    ),
    "clusters match the tasks (F1, centred)": (
        "#29A36F",
        lambda t: levels(t, CLUSTERS),
        lambda t: hardest(t, CLUSTERS),
    ),
    "answers that follow twice the task's mean": (
        "#C35500",
        lambda t: moved(t, "mean_x2"),
        lambda t: hardest_move(t, "mean_x2"),
    ),
    "answers that follow a whole state": ("#CC78A5", lambda t: moved(t, "state"), lambda t: hardest_move(t, "state")),
}


def variance(labels: str, space: str) -> Score:
    return Score(f"variance_{labels}", "validation", None, (space,), experiment="learn")


PARTS: dict[str, tuple[str, Score, str]] = {  # words -> colour, score, what it is held against
    "between inputs": ("#6E5F62", variance("input", "raw"), "untrained"),
    "between outputs, the input's mean taken off": ("#C35500", variance("output", "centred"), "shuffled"),
    "between tasks, the input's mean taken off": ("#0072B2", variance("task", "centred"), "untrained"),
}


def draw(axis: Axes, runs: Sequence[Run], of: Callable[[pl.DataFrame], Levels], **look: Any) -> None:
    """A line over layers, in a band where there are several runs."""
    every = [of(run.metrics) for run in runs]
    layers = sorted(set.intersection(*(set(one) for one in every)))
    values = np.array([[one[layer] for layer in layers] for one in every])
    if not layers:
        return
    if len(runs) > 1:
        axis.fill_between(layers, values.min(0), values.max(0), alpha=0.12, linewidth=0, color=look["color"])
    axis.plot(layers, values.mean(0), **look)


def figures(runs: Sequence[Run]) -> dict[str, Figure]:
    """By name."""
    layers, parts = (Figure(figsize=(WIDTH, 3.6), layout="constrained") for _ in range(2))
    axis = layers.subplots()
    for words, (colour, own, its) in LAYERS.items():
        draw(axis, runs, own, color=colour, label=words, **PLAIN)
        draw(axis, runs, its, color=colour, **DOTTED)
    axis.set_ylabel("share of unseen instances (test)")
    _finish(layers, axis, "dotted: the hardest control of each")
    axis = parts.subplots()
    for words, (colour, score, control) in PARTS.items():
        draw(axis, runs, lambda t, s=score: levels(t, s), color=colour, label=words, **PLAIN)
        draw(axis, runs, lambda t, s=score, c=control: levels(t, s, c), color=colour, **DOTTED)
    axis.set_ylabel("share of the states' variance (validation)")
    _finish(parts, axis, "dotted: the untrained network; of outputs, outputs dealt anew among each task's inputs")
    return {"mechanism_layers": layers, "mechanism_parts": parts}


def _finish(figure: Figure, axis: Axes, title: str) -> None:
    axis.set_ylim(-0.03, 1.03)
    axis.set_xlabel("layer (0: the embedding)")
    axis.xaxis.get_major_locator().set_params(integer=True)
    figure.legend(loc="outside lower center", ncols=2, title=title, title_fontsize=8, frameon=False)


def main(*asked: str) -> None:
    *folders, out = map(Path, asked)
    runs = [load_run(folder) for folder in folders]
    with style():
        for name, figure in figures(runs).items():
            print(*save(figure, out, name), sep="\n")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        raise SystemExit(__doc__)
    main(*sys.argv[1:])
