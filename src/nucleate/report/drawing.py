"""What every figure is drawn with: widths, colours, fonts, text made safe to draw, files that are the same each time.

The same run gives the same bytes. All text is plain: no `$` or `_` of a data file is read as mathematics.
"""

import io
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties, findfont, get_font
from matplotlib.ticker import MaxNLocator

from nucleate.files import write_bytes
from nucleate.report.seeds import Curve

WIDTH = 7.2  # inches: the text width of a page, so that 8 points stay 8 points in print

# --- colours ----------------------------------------------------------------------------------------------------------

# Okabe and Ito's colours and two more: told apart with any common colour blindness.
_TEN = (
    "#278BDE", "#E6A15A", "#29A36F", "#C35500", "#CC78A5",
    "#57B6EA", "#121300", "#BEAC05", "#76499E", "#6E5F62",
)  # fmt: skip


def task_colour(place: int, count: int) -> tuple[float, float, float]:
    """Colour-blind-safe up to ten tasks; beyond, hues a golden angle apart at three lightnesses."""
    if count <= len(_TEN):
        return matplotlib.colors.to_rgb(_TEN[place])
    hue, value = (place * 0.381966) % 1.0, (0.85, 0.62, 0.42)[place % 3]
    red, green, blue = matplotlib.colors.hsv_to_rgb((hue, 0.8, value))
    return float(red), float(green), float(blue)


def layer_colour(layer: int, top: int) -> tuple[float, float, float, float]:
    """From orange (layer 0) through magenta to dark blue (the last layer): ordered in lightness, readable on white."""
    return matplotlib.colormaps["plasma"](0.80 * (1 - layer / top) if top else 0.0)


def layer_name(layer: int, top: int) -> str:
    """How a legend calls a layer."""
    return f"layer {layer}" + (" (embedding)" if layer == 0 else " (last)" if layer == top else "")


# --- lines ------------------------------------------------------------------------------------------------------------

LINE: dict[str, Any] = {"linewidth": 1.1, "marker": "o", "markersize": 2.2, "markeredgewidth": 0}


def draw_curve(axis: Axes, curve: Curve, *, color: Any, **look: Any) -> None:
    """A line over whole epochs; of several runs in a band from the lowest to the highest."""
    if (curve.high > curve.low).any():
        axis.fill_between(curve.epochs, curve.low, curve.high, alpha=0.15, linewidth=0, color=color)
    axis.plot(curve.epochs, curve.mean, color=color, **look)
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=5, min_n_ticks=1))


# --- text, style, files -----------------------------------------------------------------------------------------------


def plain(text: object, limit: int) -> str:
    """Text of a data file made fit to draw: one line, at most `limit` characters, `□` for what the font lacks."""
    words = str(text)
    cut = words if len(words) <= limit else words[: limit - 1] + "…"
    known = _drawable()
    return "".join(
        " " if sign.isspace() else sign if ord(sign) in known and unicodedata.category(sign)[0] != "C" else "□"
        for sign in cut
    )


@lru_cache(maxsize=1)
def _drawable() -> frozenset[int]:
    """Code points that both fonts of the figures have (they come with matplotlib)."""
    fonts = (get_font(findfont(FontProperties(family=name))) for name in ("DejaVu Sans", "DejaVu Sans Mono"))
    sans, mono = (frozenset(font.get_charmap()) for font in fonts)
    return sans & mono


@contextmanager
def style() -> Iterator[None]:
    """The look of every figure; a user's own matplotlib settings are put aside meanwhile: same run, same bytes."""
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "axes.grid": True,
                "axes.labelsize": 8.5,
                "axes.spines.right": False,
                "axes.spines.top": False,
                "axes.titlesize": 9,
                "font.family": ["DejaVu Sans"],
                "font.size": 8.5,
                "grid.color": "#ececec",
                "grid.linewidth": 0.6,
                "axes.axisbelow": True,
                "hatch.linewidth": 0.5,
                "legend.fontsize": 8,
                "legend.columnspacing": 1.4,
                "svg.fonttype": "none",  # text stays text: it can be searched, selected and read aloud
                "svg.hashsalt": "nucleate",
                "text.parse_math": False,
                "xtick.labelsize": 8,
                "ytick.labelsize": 8,
            }
        )
        yield


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """PNG and SVG of one layout, each appearing whole."""
    contents = {"svg": encoded(figure, "svg")}  # first, so that it is the one of `draw_svg`
    figure.set_layout_engine("none")  # arranging a second time would move things by a hair
    contents["png"] = encoded(figure, "png")
    paths = {ending: folder / f"{name}.{ending}" for ending in ("png", "svg")}
    for ending, path in paths.items():
        write_bytes(path, contents[ending])
    return list(paths.values())


def encoded(figure: Figure, ending: str) -> bytes:
    """PNG or SVG without dates or versions inside."""
    content = io.BytesIO()
    nothing = {"png": {"Software": None}, "svg": {"Date": None, "Creator": None}}[ending]
    figure.savefig(content, format=ending, dpi=150, metadata=nothing)
    return content.getvalue()
