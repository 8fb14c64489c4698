"""What the page moves, packed small: layouts and answers as binary chunks, everything else as one JSON head.

A chunk is whole numbers of 16 bits: differences from moment to moment, folded so that small ones stay small, all low
bytes before all high ones, deflated. `unpack.js` reads it back; the page opens only the chunks that it shows.
"""

import base64
import json
import zlib
from collections.abc import Sequence
from typing import Any

import numpy as np

LEVELS = 4096  # steps of a coordinate from wall to wall: finer than the pixels of any stage, four times enlarged
VALUE = 10_000  # scores are kept to four decimals


class Chunks:
    """Chunks under short names, as the base64 text of raw deflate; the same content is kept once."""

    def __init__(self) -> None:
        self.texts: dict[str, str] = {}
        self._names: dict[str, str] = {}

    def numbers(self, values: np.ndarray) -> str:
        """The name of a chunk of whole numbers in [0, 32767], (moment, ...)."""
        return self._put(folded(values))

    def json(self, content: Any) -> str:
        """The name of a chunk of JSON."""
        return self.text(json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":")))

    def text(self, content: str) -> str:
        """The name of a chunk of text."""
        return self._put(content.encode())

    def _put(self, content: bytes) -> str:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        text = base64.b64encode(packer.compress(content) + packer.flush()).decode()
        if text not in self._names:
            self._names[text] = f"chunk-{len(self.texts)}"
            self.texts[self._names[text]] = text
        return self._names[text]


def folded(values: np.ndarray) -> bytes:
    """Differences over the first axis, 0 -1 1 -2 2 ... as 0 1 2 3 4 ..., low bytes, then high bytes."""
    flat = values.reshape(len(values), -1).astype(np.int32)  # (moment, place)
    steps = np.diff(flat, axis=0, prepend=np.zeros_like(flat[:1]))
    folded = ((steps << 1) ^ (steps >> 31)).astype("<u2")
    return folded.view(np.uint8).reshape(-1, 2).T.tobytes()


def unfolded(content: bytes, moments: int) -> np.ndarray:
    """What `folded` was given, (moment, place): the oracle of the script that does the same in the page."""
    planes = np.frombuffer(content, np.uint8).reshape(2, moments, -1).astype(np.int32)
    folded = planes[0] | planes[1] << 8
    return np.cumsum((folded >> 1) ^ -(folded & 1), axis=0)


def levelled(points: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Points (moment, point, 3) as whole numbers (moment, 3, point) in a cube; its middle and half its edge beside.

    One cube for all moments of a layer, so that what grows over epochs grows on the page.
    """
    low, high = points.min(axis=(0, 1)), points.max(axis=(0, 1))
    middle, half = (low + high) / 2, float((high - low).max() / 2) or 1.0
    steps = np.round((points - middle) / half * (LEVELS / 2 - 1) + LEVELS / 2)
    return steps.astype(np.int32).transpose(0, 2, 1), [round(float(one), 4) for one in (*middle, half)]


def turned(layers: Sequence[np.ndarray], *, moments_too: bool) -> list[np.ndarray]:
    """Each layer's points (moment, point, 3) turned or mirrored as a whole to fit the layer below, at the last moment.

    Distances stay as they are. With `moments_too`, each moment is first turned to fit the one before: for layouts that
    were made one by one and whose directions mean nothing.
    """
    done: list[np.ndarray] = []
    for points in layers:
        centred = points - points[-1].mean(axis=0)
        if moments_too:
            for moment in range(len(centred) - 2, -1, -1):
                own = centred[moment] - centred[moment].mean(axis=0)
                centred[moment] = own @ _turn(own, centred[moment + 1])
        done.append(centred @ _turn(centred[-1], done[-1][-1]) if done else centred)
    return done


def _turn(points: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """The orthogonal matrix that brings `points` nearest to `onto` (orthogonal Procrustes)."""
    left, _, right = np.linalg.svd(points.T @ onto)
    return left @ right
