"""The ledger of claims on paper: claims.json, claims.md, one figure with a panel per claim, lines for the terminal.

What is judged, and how, stands in `claims/table.py` and `verdicts.py`; here judgements only become files. The
same judgements give the same bytes. Names that come from run folders (sizes, settings, models) are escaped wherever
they appear.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from nucleate.files import write_whole
from nucleate.report.drawing import WIDTH, plain, save, style
from nucleate.report.markdown import code_block, escaped, markdown_table


class Judged(Protocol):
    """A judgement, as `claims/verdicts.py` makes it."""

    @property
    def claim(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def paper(self) -> str: ...
    @property
    def note(self) -> str: ...
    @property
    def size(self) -> str: ...
    @property
    def verdict(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def judged(self) -> bool: ...
    @property
    def seeds(self) -> Sequence[int]: ...
    @property
    def primary(self) -> str: ...
    @property
    def meaning(self) -> str: ...
    @property
    def direction(self) -> str: ...
    @property
    def threshold(self) -> float: ...
    @property
    def estimate(self) -> float | None: ...
    @property
    def low(self) -> float | None: ...
    @property
    def high(self) -> float | None: ...
    @property
    def points(self) -> Mapping[int, float]: ...
    @property
    def controls(self) -> Mapping[int, Mapping[str, float]]: ...
    @property
    def differences(self) -> Mapping[int, float]: ...
    @property
    def difference(self) -> float | None: ...
    @property
    def difference_low(self) -> float | None: ...
    @property
    def difference_high(self) -> float | None: ...
    @property
    def aside(self) -> Mapping[int, float]: ...
    @property
    def beside(self) -> Mapping[str, Mapping[int, float]]: ...
    @property
    def command(self) -> str: ...


class Missing(Protocol):
    """A claim that no run was given for."""

    @property
    def id(self) -> str: ...
    @property
    def sentence(self) -> str: ...
    @property
    def command(self) -> str: ...


def write_ledger(judgements: Sequence[Judged], missing: Sequence[Missing], folder: Path) -> list[Path]:
    """claims.json, claims.md, and figures/figure_claims.{png,svg} where there is a point to draw."""
    texts = {"claims.json": ledger_json(judgements), "claims.md": ledger_markdown(judgements, missing)}
    paths = []
    for name, text in texts.items():
        content = text.encode("utf-8")
        write_whole(folder / name, lambda path, content=content: path.write_bytes(content))  # type: ignore[misc]
        paths.append(folder / name)
    with style():
        figure = _figure(judgements)
        if figure is not None:
            paths += save(figure, folder / "figures", "figure_claims")
    return paths


JSON_KEYS = ("claim", "size", "verdict", "seeds", "primary", "threshold", "estimate", "low", "high", "command")


def ledger_json(judgements: Iterable[Judged]) -> str:
    """A list of objects with exactly `JSON_KEYS`. `estimate`, `low` and `high` are of the primary quantity, as the
    threshold is; null where there are too few seeds for them."""
    rows = [{key: getattr(judgement, key) for key in JSON_KEYS} for judgement in judgements]
    return json.dumps(rows, indent=2, ensure_ascii=False, allow_nan=False, default=list) + "\n"


def ledger_lines(judgements: Sequence[Judged], missing: Sequence[Missing]) -> list[str]:
    """The ledger for a terminal: a line per judgement, columns aligned; then what was not run."""
    header = ("claim", "size", "verdict", "primary", "threshold", "estimate", "paired difference", "seeds")
    rows = [header]
    for one in judgements:
        rows.append(
            (
                one.claim,
                plain(one.size, 40),
                one.verdict if one.judged else "exploratory",
                one.primary,
                _threshold(one),
                _with_interval(one.estimate, one.low, one.high),
                _with_interval(one.difference, one.difference_low, one.difference_high),
                _seeds(one.seeds),
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    if missing:
        lines.append(f"not run: {', '.join(claim.id for claim in missing)}")
    return lines


# --- Markdown ---------------------------------------------------------------------------------------------------------

_RULE = """\
One row per claim of the paper and group of runs that differ in nothing but their seed. **Holds**: at least five judged
seeds (0 to 4), all beyond the threshold and beyond every control, and the 95 % t-intervals of the quantity and of the
paired difference (per seed: the quantity minus the highest control) beyond too. **Fails**: at least five, all on the
wrong side of the threshold, or none beyond its highest control. **Undecided**: anything else. Quantities and thresholds
were fixed before the judged runs. *Exploratory* rows are shown and never judged. Groups named `training.packing=tree`
are runs by the packed law (`--fast`), which come after those by single rows.
"""


def ledger_markdown(judgements: Sequence[Judged], missing: Sequence[Missing]) -> str:
    """The whole ledger: an overview, then each claim with the paper's words, all points, controls and differences."""
    lines = ["# The claims of the paper, with evidence", "", _RULE]
    if judgements:
        lines += markdown_table(
            ("claim", "size", "verdict", "threshold", "estimate", "paired difference", "seeds"),
            [
                (
                    f"{one.claim}. {escaped(one.sentence)}",
                    escaped(one.size),
                    _verdict(one),
                    _threshold(one),
                    _with_interval(one.estimate, one.low, one.high),
                    _with_interval(one.difference, one.difference_low, one.difference_high),
                    _seeds(one.seeds),
                )
                for one in judgements
            ],
        )
    by_claim: dict[str, list[Judged]] = {}
    for one in judgements:
        by_claim.setdefault(one.claim, []).append(one)
    for claim, group in by_claim.items():
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


def _section(one: Judged) -> list[str]:
    lines = [f"### {one.claim} at {escaped(one.size)}: {_verdict(one)}", "", f"{_sentence_case(one.reason)}.", ""]
    controls = list(dict.fromkeys(name for beaten in one.controls.values() for name in beaten))
    others = list(one.beside)
    seeds = list(one.points) or sorted({seed for values in one.beside.values() for seed in values})
    if seeds:
        rows = [
            (
                str(seed),
                _number(one.points.get(seed)),
                *(_number(one.controls.get(seed, {}).get(name)) for name in controls),
                *((_number(one.differences.get(seed)),) if controls else ()),
                *(_number(one.beside[words].get(seed)) for words in others),
            )
            for seed in seeds
        ]
        columns = (*controls, *(("paired difference",) if controls else ()))
        header = ("seed", "quantity", *columns, *(f"beside: {words}" for words in others))
        lines += markdown_table(tuple(escaped(name) for name in header), rows)
    if one.aside:
        shown = ", ".join(f"{_number(point)} (seed {seed})" for seed, point in one.aside.items())
        lines += [f"Shown, not judged: {shown}.", ""]
    return [*lines, *code_block(one.command), ""]


# --- numbers and words ------------------------------------------------------------------------------------------------


def _verdict(one: Judged) -> str:
    return f"**{one.verdict}**" if one.judged else "*exploratory*"


def _threshold(one: Judged) -> str:
    return f"{one.direction} {_number(one.threshold)}"


def _with_interval(estimate: float | None, low: float | None, high: float | None) -> str:
    return _number(estimate) if low is None else f"{_number(estimate)} [{_number(low)}, {_number(high)}]"


def _number(value: float | None) -> str:
    """Three decimals; fewer for numbers of epochs; a dash for what there is not."""
    if value is None:
        return "-"
    if abs(value) >= 2:
        return f"{value:.0f}" if float(value).is_integer() else f"{value:.1f}"
    return f"{value:.3f}".replace("-0.000", "0.000")


def _seeds(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds)) or "-"


def _sentence_case(text: str) -> str:
    shown = escaped(text)
    return shown[:1].upper() + shown[1:]


# --- the figure -------------------------------------------------------------------------------------------------------

_COLOURS = {"holds": "#0072B2", "fails": "#D55E00", "undecided": "#666666"}
_MARKERS = {
    "untrained": "s",
    "shuffled": "x",
    "regrouped": "+",
    "surface_instruction": "^",
    "surface_prompt": "v",
    "layer_0": "D",
    "neutral": "*",
}
_SIDE = "#e9f1f8"
_ACROSS = 3


def _figure(judgements: Sequence[Judged]) -> Figure | None:
    """A panel per claim, a column of points per group of runs, controls to its right, the interval to its left."""
    panels: dict[str, list[Judged]] = {}
    for one in judgements:
        if one.points or one.aside:
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


def _column(one: Judged) -> str:
    """What stands below a column: the size, the verdict, a line for each setting that it has otherwise."""
    size, *others = [re.sub(r"^\w+\.(?=\w+=)", "", part) for part in one.size.split(", ")]  # settings without sections
    verdict = one.verdict if one.judged else "exploratory"
    return "\n".join([plain(size, 16), verdict, *(plain(other, 16) for other in others)])


def _draw(axis: Axes, place: int, one: Judged) -> None:
    colour = _COLOURS[one.verdict]
    look: dict[str, Any] = {"marker": "o", "linestyle": "", "markersize": 4, "markeredgecolor": colour, "zorder": 4}
    for points, centre, filled in ((one.points, place, one.judged), (one.aside, place + 0.17, False)):
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
