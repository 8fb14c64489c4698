"""The figures of a probe: tasks by layer beside the controls, task by task, which are confused, and along a series.

Functions of the run folder's tables alone, as those of `figures.py`, which writes them.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from nucleate.long_table import best_layers, deciding_measure, main_read
from nucleate.report.drawing import WIDTH, plain, style, task_colour
from nucleate.runs import Run

_SHARE = "neighbours with the same task"
_CONTROLS = {
    "untrained": ("untrained network", "#8a6d3b", "--"),
    "neutral": ("neutral instruction", "#777777", ":"),
    "shuffled": ("shuffled labels", "#bbbbbb", "-."),
    "surface_instruction": ("n-grams of the instruction", "#c4201f", ":"),
    "surface_prompt": ("n-grams of the prompt", "#c4201f", "--"),
    "answers": ("right answers alone", "#a33d1f", "-."),
}
_MOST_TASKS = 40  # rows of a figure


def probe_figures(run: Run) -> dict[str, Callable[[], Figure | None]]:
    """name -> what draws it, for `figures.figures_of`."""

    def table(name: str) -> pl.DataFrame:
        found = run.table(name)
        assert found is not None  # all are written together
        return found

    if not (run.folder / "tasks.parquet").is_file():
        return {}  # not finished
    return {
        "figure_probe_layers": lambda: layers_figure(run.metrics),
        "figure_probe_tasks": lambda: tasks_figure(run.metrics, table("tasks")),
        "figure_probe_confusion": lambda: confusion_figure(run.metrics, table("confusion")),
        "figure_probe_series": lambda: series_figure(run.metrics),
    }


def layers_figure(metrics: pl.DataFrame) -> Figure:
    """Labels read, neighbours and F1 by layer, on held-out instructions: a colour per model, the first one's controls
    beside it; a point at the layer that was chosen."""
    measure, best = deciding_measure(metrics), best_layers(metrics)
    chosen = {"linear_accuracy": best_layers(metrics, "best_readable_layer"), measure: best, "f1": {}}
    models = list(best)
    with style():
        lines = len(models) + 5  # of the legend, in three columns
        figure = Figure(figsize=(WIDTH, 2.7 + 0.18 * -(-lines // 3)), layout="constrained")
        axes = figure.subplots(1, 3)
        titles = ("labels read", "neighbours that share the label", "F1 of clusters")
        for axis, name, title in zip(axes, chosen, titles, strict=True):
            rows = _rows(metrics, name, "test")
            for number, model in enumerate(models):
                colour = task_colour(number, len(models))
                own = rows.filter(pl.col("model") == model, pl.col("control") == "none").sort("layer")
                axis.plot(own["layer"], own["value"], color=colour, label=plain(model, 28), linewidth=1.5)
                _band(axis, metrics, name, model, colour)
                if model in chosen[name]:
                    mark = own.filter(pl.col("layer") == chosen[name][model])
                    axis.plot(mark["layer"], mark["value"], "o", color=colour, markersize=4)
            _draw_controls(axis, rows, models[0])
            axis.set_title(
                title + ("\n(with another input)" if name == measure.removesuffix("_inputs") + "_inputs" else "")
            )
            axis.set_xlabel("layer")
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
            axis.set_ylim(0, 1.02)
        axes[0].set_ylabel("share of held-out prompts")
        handles = dict(zip(*reversed(axes[1].get_legend_handles_labels()), strict=True))
        figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def tasks_figure(metrics: pl.DataFrame, tasks: pl.DataFrame) -> Figure | None:
    """Each task's labels read (circles) and neighbours (diamonds), each at its best layer with its interval: filled
    where it is beyond the controls, open where not, a cross where there are too few instructions to tell."""
    readings = (  # measure, what says that it is beyond, the layers, mark
        ("linear_accuracy", "readable", best_layers(metrics, "best_readable_layer"), "o"),
        (deciding_measure(metrics), "clustered", best_layers(metrics), "D"),
    )
    measure, _, best, _ = readings[0]
    if not best:
        return None  # of an earlier version
    first, at = next(iter(best.items()))
    own = tasks.filter(pl.col("model") == first, pl.col("layer") == at, pl.col("measure") == measure)
    everybody = tasks["task"].unique().to_list()
    names = _least(everybody, dict(own.select("task", "value").iter_rows()))
    figure = Figure(figsize=(WIDTH, 0.9 + 0.2 * len(names)), layout="constrained")
    axis = figure.subplots()
    for number, model in enumerate(best):
        colour, shift = task_colour(number, len(best)), 0.6 * (number + 0.5) / len(best) - 0.3
        for measure, beyond, layers, mark in readings:
            here = tasks.filter(pl.col("model") == model, pl.col("layer") == layers[model])
            value = {(row["task"], row["measure"]): row["value"] for row in here.iter_rows(named=True)}
            for row, task in enumerate(names):
                share = value.get((task, measure))
                if share is None:
                    continue
                low, high = (value.get((task, f"{measure}_{end}"), share) for end in ("low", "high"))
                axis.plot([max(low, 0), min(high, 1)], [row + shift] * 2, color=colour, linewidth=1)
                verdict = value.get((task, beyond))
                shape, face = ("x" if verdict is None else mark), (colour if verdict == 1 else "white")
                axis.plot(share, row + shift, shape, color=colour, markerfacecolor=face, markersize=4.5)
        axis.plot([], [], "o", color=colour, markersize=4.5, label=plain(model, 28))
    axis.set_yticks(range(len(names)), [plain(name, 30) for name in names])
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.set_xlim(-0.02, 1.02)
    axis.set_xlabel(
        "circles: labels read; diamonds: neighbours that share the label; each at its best layer\n"
        "(filled: beyond the controls; open: no more than a control; cross: too few to tell)"
        + _left_out(names, everybody)
    )
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def confusion_figure(metrics: pl.DataFrame, confusion: pl.DataFrame) -> Figure | None:
    """Whose neighbours each task has, at the best layer of the first model, or of the last in a series."""
    best = best_layers(metrics)
    age = _age(metrics)
    last = None if age is None else metrics.drop_nulls(age).sort(age)["model"][-1]
    model = last or next(iter(best))
    layer = best[model]
    here = confusion.filter(pl.col("model") == model, pl.col("layer") == layer)
    everybody = here["task"].unique().to_list()
    own = here.filter(pl.col("task") == pl.col("other"))
    names = _least(everybody, dict(own.select("task", "share").iter_rows()))
    table = np.zeros((len(names), len(names)))
    place = {name: number for number, name in enumerate(names)}
    for task, other, share in here.select("task", "other", "share").iter_rows():
        if task in place and other in place:
            table[place[task], place[other]] = share
    side = min(WIDTH, 2.4 + 0.22 * len(names))
    figure = Figure(figsize=(side, side), layout="constrained")
    axis = figure.subplots()
    image = axis.imshow(table, cmap="Greys", vmin=0, vmax=1)
    axis.set_xticks(range(len(names)), [plain(name, 28) for name in names], rotation=90)
    axis.set_yticks(range(len(names)), [plain(name, 28) for name in names])
    axis.set_xlabel("task of the neighbours" + _left_out(names, everybody))
    axis.set_ylabel("task")
    figure.suptitle(f"layer {layer} of {plain(model, 28)}", fontsize="medium")
    axis.grid(False)
    figure.colorbar(image, ax=axis, shrink=0.7, label="share")
    return figure


def series_figure(metrics: pl.DataFrame) -> Figure | None:
    """Along a series of checkpoints: labels read and neighbours, each at the layer that is best for it, and the
    accuracy. None without a series."""
    age = _age(metrics)
    if age is None:
        return None
    lines = (  # measure, split, label, the layers at which it is told
        ("linear_accuracy", "test", "labels read", best_layers(metrics, "best_readable_layer")),
        (deciding_measure(metrics), "test", _SHARE, best_layers(metrics)),
        ("accuracy", "all", "accuracy", None),
    )
    figure = Figure(figsize=(WIDTH / 2, 2.8), layout="constrained")
    axis = figure.subplots()
    for measure, split, label, layers in lines:
        found = _rows(metrics, measure, split).filter(pl.col("control") == "none")
        if layers is not None:
            chosen = pl.DataFrame({"model": list(layers), "layer": list(layers.values())}, schema=_CHOSEN)
            found = found.join(chosen, on=["model", "layer"])
        found = found.drop_nulls(age).sort(age)
        if len(found):
            axis.plot(found[age], found["value"], marker="o", markersize=3, label=label)
    axis.set_xlabel(age)
    axis.set_ylim(0, 1.02)
    axis.legend(frameon=False)
    return figure


_CHOSEN = {"model": pl.String, "layer": pl.Int32}


def _least(tasks: Sequence[str], share: Mapping[str, float]) -> list[str]:
    """All tasks in order; where they are too many for a figure, those of the smallest shares."""
    return sorted(sorted(tasks, key=lambda task: (share.get(task, 0.0), task))[:_MOST_TASKS])


def _left_out(shown: Sequence[str], tasks: Sequence[str]) -> str:
    return f"\n(the {len(shown)} least readable of {len(tasks)} tasks)" if len(shown) < len(tasks) else ""


def _age(metrics: pl.DataFrame) -> str | None:
    """What orders the models, where they are a series."""
    rows = metrics.filter(pl.col("measure") == "best_layer", pl.col("control") == "none")
    return next((age for age in ("step", "epoch") if rows[age].n_unique() > 1 and rows[age].null_count() == 0), None)


def _rows(metrics: pl.DataFrame, measure: str, split: str) -> pl.DataFrame:
    """One measure of raw states at the token that was read at every layer, all controls."""
    same = pl.col("measure").eq(measure) & pl.col("split").eq(split)
    same &= pl.col("labels").is_null() | pl.col("labels").eq("task")
    same &= pl.col("space").is_null() | pl.col("space").eq("raw")
    return main_read(metrics).filter(same)


def _band(axis: Axes, metrics: pl.DataFrame, measure: str, model: str, colour: object) -> None:
    low, high = (
        _rows(metrics, f"{measure}_{end}", "test").filter(pl.col("model") == model, pl.col("control") == "none")
        for end in ("low", "high")
    )
    both = low.join(high, on="layer", suffix="_high").sort("layer")
    if len(both) == 1:  # of one layer there is no band
        axis.vlines(both["layer"], both["value"], both["value_high"], color=colour, linewidth=1)
    elif len(both):
        axis.fill_between(both["layer"], both["value"], both["value_high"], color=colour, alpha=0.18, linewidth=0)


def _draw_controls(axis: Axes, rows: pl.DataFrame, model: str) -> None:
    for control, (label, colour, dashes) in _CONTROLS.items():
        here = rows.filter(pl.col("control") == control, pl.col("model").is_null() | (pl.col("model") == model))
        if here["layer"].null_count():
            axis.axhline(here["value"][0], color=colour, linestyle=dashes, linewidth=1, label=label)
        elif len(here):
            here = here.sort("layer")
            (line,) = axis.plot(here["layer"], here["value"], color=colour, linestyle=dashes, linewidth=1, label=label)
            if len(here) == 1:  # of one layer there is no line
                line.set(marker="D", markersize=3)
