"""The film: clusters forming over the epochs of a run, three layers side by side, as one animated picture (WebP)."""

from collections.abc import Sequence
from functools import lru_cache, partial
from pathlib import Path

import numpy as np
import polars as pl
from matplotlib.font_manager import FontProperties, findfont
from PIL import Image, ImageDraw, ImageFont

from nucleate.files import write_whole
from nucleate.long_table import Score, by_layer, pick
from nucleate.refusal import Refused
from nucleate.report.drawing import layer_name, task_colour
from nucleate.report.pack import turned
from nucleate.report.scenes import recorded
from nucleate.runs import Run

PANEL, HEAD, FOOT = 300, 56, 34  # pixels: the edge of a panel, the lines above it, the time below
FRAMES, SECONDS, HOLD = 96, 9.0, 2.0  # of the way through all epochs, and of rest on the last
TURN, TILT = np.radians(35.0), np.radians(18.0)  # turned by this much from first to last, seen from above by this much
FINE = 2  # drawn this many times larger, then made small: smooth edges
INK, QUIET, TRACK, MARK = "#1b1d22", "#5b6069", "#d9dce1", "#c4511f"


def write_film(run: Run, path: Path) -> Path:
    """Unseen instances in the first, the middle and the last layer while the network learns; a colour per task."""
    found = recorded(run, [f"epoch-{epoch:04d}" for epoch in run.layout_epochs])
    if found is None or len(run.layout_epochs) < 2:
        raise Refused(
            f"{run.folder} holds no layouts of several epochs, so there is no film; nucleate learn records them"
        )
    rows = found.points.with_row_index("place").filter(pl.col("split") == "validation")
    rows = rows if len(rows) else found.points.with_row_index("place")
    view = next(iter(found.views.values()))
    cube, numbers = view.cube[:, :, rows["place"].to_numpy()], view.layers  # (moment, layer, point, 3)
    shown = sorted({0, len(numbers) // 2, len(numbers) - 1})
    layers = [_fitted(points) for points in turned([cube[:, place] for place in shown], moments_too=False)]
    tasks = rows["task"].unique(maintain_order=True).to_list()
    colours = [_hex(task_colour(tasks.index(task), len(tasks))) for task in rows["task"]]
    shares = [_shares(run, numbers[place]) for place in shown]
    frames = []
    for part in np.linspace(0, 1, FRAMES):
        time = part * (len(cube) - 1)
        epoch = np.interp(time, range(len(cube)), run.layout_epochs)
        frame = _Frame(len(shown), f"epoch {epoch:.0f}")
        for column, (place, points, share) in enumerate(zip(shown, layers, shares, strict=True)):
            value = f"same-task neighbours {np.interp(epoch, *share):.2f}" if share else ""
            frame.panel(column, layer_name(numbers[place], numbers[-1]), value, _at(points, time, part), colours)
        frames.append(frame.done(part))
    pause = round(1000 * SECONDS / FRAMES)
    durations = [pause] * (FRAMES - 1) + [round(1000 * HOLD)]
    save = partial(
        frames[0].save, format="WebP", save_all=True, append_images=frames[1:], duration=durations, loop=0, quality=60
    )
    write_whole(path, save)
    return path


def _fitted(points: np.ndarray) -> np.ndarray:
    """Nearly all points of all moments within -1 and 1."""
    middle = points.mean(axis=(0, 1))
    return (points - middle) / np.quantile(np.abs(points - middle), 0.985) / 1.1


def _shares(run: Run, layer: int) -> tuple[list[int], list[float]] | None:
    """Epochs and the share of same-task neighbours of unseen instances in one layer."""
    picked = pick(run.metrics, Score("knn_share", "validation", experiment="learn")).drop_nulls("epoch")
    own = [(epoch, by_layer(rows).get(layer)) for (epoch,), rows in picked.group_by("epoch", maintain_order=True)]
    known = [(epoch, value) for epoch, value in own if value is not None]
    return ([epoch for epoch, _ in known], [value for _, value in known]) if known else None


def _at(points: np.ndarray, time: float, part: float) -> np.ndarray:
    """Places on the panel at a time between two moments: to the right, upwards, nearness; (point, 3)."""
    below = min(int(time), len(points) - 2)
    x, y, z = (points[below] + (points[below + 1] - points[below]) * (time - below)).T
    cos, sin, tilt, rise = np.cos(TURN * part), np.sin(TURN * part), np.cos(TILT), np.sin(TILT)
    across, inward = cos * x + sin * y, cos * y - sin * x
    near = rise * z - tilt * inward
    scale = 0.40 * PANEL * 4 / (4 - near)
    return np.stack([across * scale, (tilt * z + rise * inward) * scale, near], axis=1)


class _Frame:
    """One picture: a panel per layer under its name, the time as a line below."""

    def __init__(self, panels: int, title: str) -> None:
        self.width, self.height = panels * PANEL, HEAD + PANEL + FOOT
        self.image = Image.new("RGB", (self.width * FINE, self.height * FINE), "white")
        self.pen = ImageDraw.Draw(self.image)
        self.title = title

    def panel(self, column: int, name: str, value: str, places: np.ndarray, colours: Sequence[str]) -> None:
        middle = np.array([column * PANEL + PANEL / 2, HEAD + PANEL / 2])
        self._write(middle[0], 18, name, 15, INK)
        self._write(middle[0], 40, value, 12.5, QUIET)
        for k in np.argsort(places[:, 2], kind="stable"):
            across, up, near = places[k]
            radius = 3.4 * (1 + 0.22 * np.clip(near, -1.2, 1.2)) * FINE
            x, y = (middle[0] + across) * FINE, (middle[1] - up) * FINE
            self.pen.ellipse((x - radius, y - radius, x + radius, y + radius), colours[k], "white", 1)

    def done(self, part: float) -> Image.Image:
        left, right, y = 90, self.width - 24, self.height - FOOT / 2
        self._write(46, y, self.title, 14, INK)
        for end, colour in ((1.0, TRACK), (part, MARK)):
            bar = (left, y - 2, left + (right - left) * max(end, 0.004), y + 2)
            self.pen.rectangle([FINE * at for at in bar], colour)
        return self.image.resize((self.width, self.height), Image.Resampling.LANCZOS)

    def _write(self, x: float, y: float, text: str, size: float, colour: str) -> None:
        self.pen.text((x * FINE, y * FINE), text, colour, _font(size * FINE), anchor="mm")


@lru_cache(maxsize=8)
def _font(size: float) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(findfont(FontProperties(family="DejaVu Sans")), size)


def _hex(colour: tuple[float, float, float]) -> str:
    red, green, blue = (round(255 * one) for one in colour)
    return f"#{red:02x}{green:02x}{blue:02x}"
