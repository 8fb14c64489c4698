"""The ledger of claims: claims.json, claims.md, a figure with a panel for each claim, rows for a terminal.

What is judged, and how, stands in `claims/table.py` and `verdicts.py`; here judgements only become files and rows. The
same judgements give the same bytes. Names that come from run folders (sizes, settings, models) are escaped wherever
they appear.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from textwrap import wrap
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nucleate.claims.claim import beyond, hardest
from nucleate.claims.table import CLAIMS
from nucleate.claims.verdicts import LEAST_SEEDS, Judgement, NotRun
from nucleate.files import write_text
from nucleate.report.drawing import WIDTH, plain, save, style
from nucleate.report.markdown import code_block, escaped, markdown_table


def write_ledger(judgements: Sequence[Judgement], missing: Sequence[NotRun], folder: Path) -> list[Path]:
    """claims.json, claims.md, and figures/figure_claims.{png,svg} where there is a point to draw."""
    texts = {"claims.json": ledger_json(judgements), "claims.md": ledger_markdown(judgements, missing)}
    paths = []
    for name, text in texts.items():
        write_text(folder / name, text)
        paths.append(folder / name)
    with style():
        figure = _figure(judgements)
        if figure is not None:
            paths += save(figure, folder / "figures", "figure_claims")
    return paths


def ledger_json(judgements: Iterable[Judgement]) -> str:
    """A list with an object for each judgement, its fields as they are; null where there is no number. What was not run
    has no row: `verdicts.not_run` tells it from the rows that are there."""
    return json.dumps([vars(one) for one in judgements], indent=2, ensure_ascii=False, allow_nan=False) + "\n"


# --- for a terminal, for a document -----------------------------------------------------------------------------------

LEDGER_HEADER = ("the paper says", "quantity and its bar", "runs", "seen?", "measured", "hardest control")
_WIDTHS = (30, 22, 16)  # characters of the first three columns


def ledger_rows(judgements: Sequence[Judgement]) -> list[tuple[str, ...]]:
    """The ledger for a terminal, below `LEDGER_HEADER`, in at most 120 characters: a row for each judgement; the words
    of a claim run on beside its judgements, and below them where they need more lines."""
    rows = []
    for claim, group in _by_claim(judgements).items():
        words = wrap(group[0].sentence, _WIDTHS[0], initial_indent=f"{claim:5}", subsequent_indent=" " * 5)
        cells = [
            (plain(_runs(one), _WIDTHS[2]), _seen(one), _number(one.estimate, 2), _hardest_control(one))
            for one in group
        ]
        columns = (words, wrap(_bar(group[0]), _WIDTHS[1]), cells)
        for sentence, bar, rest in zip_longest(*columns, fillvalue=""):
            rows.append((sentence, bar, *(rest or ("",) * 4)))
    return rows


def not_run_line(missing: Sequence[NotRun]) -> str:
    """Which claims no run was given for."""
    return f"not run: {', '.join(claim.id for claim in missing)}"


def short_table(columns: Mapping[str, Sequence[Judgement]]) -> list[str]:
    """The ledger for a document, as Markdown: a row for each claim, and a column for each set of runs, under its name.

    A cell has the verdict, the estimate with its interval, and the paired difference to the hardest control, with two
    decimals. A set that has several judgements of a claim cannot stand in one column.
    """
    groups = _by_claim(one for judgements in columns.values() for one in judgements)
    rows = []
    for claim, group in ((one.id, groups[one.id]) for one in CLAIMS if one.id in groups):
        cells = []
        for name, judgements in columns.items():
            here = [one for one in judgements if one.claim == claim]
            if len(here) > 1:
                raise ValueError(f"{claim} is judged by {len(here)} groups of the runs of {name!r}")
            cells.append(_cell(here[0]) if here else "–")
        rows.append((f"{claim}. {escaped(group[0].sentence.rstrip('.'))}", escaped(_bar(group[0])), *cells))
    return markdown_table(("what the paper says", "to hold", *map(escaped, columns)), rows)


def _cell(one: Judgement) -> str:
    if one.estimate is None:
        return "–"
    verdict = "**holds**" if one.verdict == "holds" else one.verdict if one.judged else "exploratory"
    shown = f"{verdict} {_with_interval(one.estimate, one.low, one.high, 2)}"
    return shown if one.difference is None else f"{shown}; {one.difference:+.2f}"


def _by_claim(judgements: Iterable[Judgement]) -> dict[str, list[Judgement]]:
    groups: dict[str, list[Judgement]] = {}
    for one in judgements:
        groups.setdefault(one.claim, []).append(one)
    return groups


def _bar(one: Judgement) -> str:
    """What is measured, in a few words, and what it has to reach."""
    return f"{one.meaning.partition('. ')[0].rstrip('.')}: {one.direction} {one.threshold:.3g}"


def _seen(one: Judgement) -> str:
    """The verdict in the words of someone who looks for what the paper says."""
    if not one.points:
        return "cannot be told"
    if len(one.points) == 1:
        return "one seed only"
    if not one.judged or len(one.points) < LEAST_SEEDS:
        return f"{len(one.points)} seeds only" if one.judged else "not judged"
    if one.verdict != "undecided":
        return "seen" if one.verdict == "holds" else "not seen"
    sides = {beyond(one.direction, point, one.threshold) > 0 for point in one.points.values()}
    ahead = {beyond(one.direction, difference, 0) > 0 for difference in one.differences.values()}
    return "seeds disagree" if 2 in (len(sides), len(ahead)) else "undecided"


def _hardest_control(one: Judgement) -> str:
    """The control that is hardest to beat on the mean over the seeds, with that mean; blank without controls."""
    values: dict[str, list[float]] = {}
    for beaten in one.controls.values():
        for name, value in beaten.items():
            values.setdefault(name, []).append(value)
    means = {name: sum(each) / len(each) for name, each in values.items()}
    if not means:
        return ""
    level = hardest(one.direction, means.values())
    return f"{_number(level, 2)} {_CONTROLS[next(name for name, mean in means.items() if mean == level)]}"


_CONTROLS = {
    "untrained": "untrained network",
    "shuffled": "shuffled labels",
    "regrouped": "regrouped",
    "surface_instruction": "n-grams",
    "surface_prompt": "n-grams",
    "answers": "answers alone",
    "random": "random direction",
    "neutral": "neutral words",
}
_LAWS = {"rows": "by rows", "tree": "packed"}


def _runs(one: Judgement) -> str:
    """The runs in words: their size, how their batches were drawn, what was set otherwise."""
    size, *others = one.size.split(", ")
    words = [_LAWS[one.law]] if one.law else []
    return ", ".join([size, *words, *(part for part in others if part != f"training.packing={one.law}")])


# --- Markdown ---------------------------------------------------------------------------------------------------------

_RULE = """\
Each row judges one claim of the paper by a group of runs that differ only in their seed. **Holds**: at least five
judged seeds (5 to 9; of pre-training, alignment and probes 0 to 4), all beyond the threshold and beyond every
control, and so are the 95 % t-intervals of the quantity and of the paired difference (for each seed, the quantity
minus its hardest control). **Fails**: at least five judged seeds, all on the wrong side of the threshold, or none
ahead of its hardest control. **Undefined**: at least five judged seeds, and of none is there a number, because the
network has not learnt or the event never happens. **Undecided**: anything else. *Late* is the mean over the measured
epochs in the last tenth; a *middle* layer is any but the first and the last, chosen on validation and told on test,
each control at a layer of its own (of N3 at the same layer and strength). *Right answers* are states that hold
nothing but the input and the right output. *Exploratory* rows are shown and never judged. A training step holds
instances drawn one by one (*by rows*) or whole instructions with their inputs (*packed*, which `--fast` asks for).
"""


def ledger_markdown(judgements: Sequence[Judgement], missing: Sequence[NotRun]) -> str:
    """The whole ledger: an overview, then each claim with the paper's words, all points, controls and differences."""
    lines = ["# The claims of the paper, with evidence", "", _RULE]
    if judgements:
        lines += markdown_table(
            ("claim", "runs", "verdict", "threshold", "estimate", "paired difference", "seeds"),
            [
                (
                    f"{one.claim}. {escaped(one.sentence)}",
                    escaped(_runs(one)),
                    _verdict(one),
                    _threshold(one),
                    _with_interval(one.estimate, one.low, one.high),
                    _with_interval(one.difference, one.difference_low, one.difference_high),
                    _seeds(one.seeds),
                )
                for one in judgements
            ],
        )
    for claim, group in _by_claim(judgements).items():
        first = group[0]
        lines += [f"## {claim}. {escaped(first.sentence)}", "", f"> {escaped(first.paper)}", ""]
        lines += [f"`{first.primary}`, to be {_threshold(first)}. {escaped(first.meaning)}", ""]
        lines += [f"Note: {escaped(first.note)}", ""] if first.note else []
        for one in group:
            lines += _section(one)
    if missing:
        lines += ["## Not run", ""]
        lines += [f"- {claim.id}. {escaped(claim.sentence)} `{claim.command}`" for claim in missing]
    return "\n".join(lines).rstrip() + "\n"


def _section(one: Judgement) -> list[str]:
    lines = [f"### {one.claim}, {escaped(_runs(one))}: {_verdict(one)}", "", f"{_sentence_case(one.reason)}.", ""]
    controls, others = (
        list(dict.fromkeys(name for values in by_seed.values() for name in values))
        for by_seed in (one.controls, one.beside)
    )
    differences = one.differences
    seeds = list(one.points) or list(one.beside)
    if seeds:
        rows = [
            (
                str(seed),
                _number(one.points.get(seed)),
                *(_number(one.controls.get(seed, {}).get(name)) for name in controls),
                *((_number(differences.get(seed)),) if controls else ()),
                *(_number(one.beside.get(seed, {}).get(words)) for words in others),
            )
            for seed in seeds
        ]
        columns = (*controls, *(("paired difference",) if controls else ()))
        header = ("seed", "quantity", *columns, *(f"beside: {words}" for words in others))
        lines += markdown_table(tuple(escaped(name) for name in header), rows)
    if one.exploratory:
        shown = ", ".join(f"{_number(point)} (seed {seed})" for seed, point in one.exploratory.items())
        lines += [f"Shown, not judged: {shown}.", ""]
    return [*lines, *code_block(one.command), ""]


# --- numbers and words ------------------------------------------------------------------------------------------------


def _verdict(one: Judgement) -> str:
    return f"**{one.verdict}**" if one.judged else "*exploratory*"


def _threshold(one: Judgement) -> str:
    return f"{one.direction} {_number(one.threshold)}"


def _with_interval(estimate: float | None, low: float | None, high: float | None, decimals: int = 3) -> str:
    shown, *ends = (_number(value, decimals) for value in (estimate, low, high))
    return shown if low is None else f"{shown} [{', '.join(ends)}]"


def _number(value: float | None, decimals: int = 3) -> str:
    """Rounded from the full number, never from one that is rounded already. Fewer decimals for numbers of epochs; a
    dash for what there is not."""
    if value is None:
        return "-"
    if abs(value) >= 2:
        decimals = 0 if float(value).is_integer() else decimals - 2
    return f"{value:.{decimals}f}".replace("-0.000", "0.000")  # of two decimals the sign says which side it is


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "-"


def _sentence_case(text: str) -> str:
    shown = escaped(text)
    return shown[:1].upper() + shown[1:]


# --- the figure -------------------------------------------------------------------------------------------------------

_COLOURS = {"holds": "#0072B2", "fails": "#D55E00", "undecided": "#666666", "undefined": "#666666"}
_MARKERS = {
    "untrained": "s",
    "shuffled": "x",
    "regrouped": "+",
    "surface_instruction": "^",
    "surface_prompt": "v",
    "answers": "P",
    "random": "D",
    "neutral": "*",
}
_SIDE = "#e9f1f8"
_ACROSS = 3


def _figure(judgements: Sequence[Judgement]) -> Figure | None:
    """A panel per claim, a column of points per group of runs, controls to its right, the interval to its left."""
    panels: dict[str, list[Judgement]] = {}
    for one in judgements:
        if one.points or one.exploratory:
            panels.setdefault(one.claim, []).append(one)
    if not panels:
        return None
    down = -(-len(panels) // _ACROSS)
    figure = Figure(figsize=(WIDTH, 2.1 * down + 0.9), layout="constrained")
    axes = figure.subplots(down, _ACROSS, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.set_axis_off()
    for axis, (claim, group) in zip(axes.flat, panels.items(), strict=False):
        first = group[0]
        axis.set_title(f"{claim}  {first.primary.replace('_', ' ')}", fontsize=8)
        for place, one in enumerate(group):
            _draw(axis, place, one)
        axis.axhline(first.threshold, color="black", linewidth=0.9, dashes=(4, 2), zorder=1)
        small = 7 if len(group) < 3 else 5.5 if len(group) < 5 else 4.3
        axis.set_xticks(range(len(group)), [_column(one) for one in group], fontsize=small)
        axis.set_xlim(-0.6, len(group) - 0.4)
        axis.grid(False, axis="x")
        axis.margins(y=0.12)
        low, high = axis.get_ylim()
        edges = (first.threshold, high) if first.direction == "above" else (low, first.threshold)
        axis.axhspan(*edges, facecolor=_SIDE, zorder=0)
        axis.set_ylim(low, high)
    drawn = {name for group in panels.values() for one in group for beaten in one.controls.values() for name in beaten}
    figure.legend(handles=_handles(drawn), loc="outside lower center", ncols=5, frameon=False)
    return figure


def _column(one: Judgement) -> str:
    """What stands below a column: the size, the verdict, the law of batches, what was set otherwise."""
    size, *others = [
        re.sub(r"^\w+\.(?=\w+=)", "", part) for part in _runs(one).split(", ")
    ]  # settings without sections
    verdict = one.verdict if one.judged else "exploratory"
    return "\n".join([plain(size, 16), verdict, *(plain(other, 16) for other in others)])


def _draw(axis: Axes, place: int, one: Judgement) -> None:
    colour = _COLOURS[one.verdict]
    look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 4, "markeredgecolor": colour, "zorder": 4}
    for points, centre, filled in ((one.points, place, one.judged), (one.exploratory, place + 0.17, False)):
        offsets = [centre + 0.05 * (number - (len(points) - 1) / 2) for number in range(len(points))]
        axis.plot(offsets, list(points.values()), markerfacecolor=colour if filled else "white", **look)
    if one.low is not None and one.high is not None:
        axis.plot([place - 0.25] * 2, [one.low, one.high], color=colour, linewidth=1.6, zorder=3)
    for beaten in one.controls.values():
        for name, value in beaten.items():
            axis.plot(place + 0.28, value, linestyle="", marker=_MARKERS.get(name, "."), **_CONTROL)


_CONTROL: dict[str, Any] = {"color": "#8c8c8c", "markersize": 4, "markerfacecolor": "none", "zorder": 2}


def _handles(controls: set[str]) -> list[Artist]:
    dot: dict[str, Any] = {"linestyle": "", "marker": "o", "markersize": 4, "markeredgecolor": "#444444"}
    return [
        Line2D([], [], color="black", linewidth=0.9, dashes=(4, 2), label="threshold"),
        Patch(facecolor=_SIDE, label="the claim's side"),
        Line2D([], [], markerfacecolor="#444444", label="judged seed", **dot),
        Line2D([], [], markerfacecolor="white", label="exploratory", **dot),
        Line2D([], [], color="#444444", linewidth=1.6, label="95 % t-interval"),
        *(
            Line2D([], [], linestyle="", marker=marker, label=name.replace("_", " "), **_CONTROL)
            for name, marker in _MARKERS.items()
            if name in controls
        ),
    ]
