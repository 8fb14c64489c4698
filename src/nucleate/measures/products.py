"""The states of one layer and their products with each other: made once, for all that ask how far two are apart.

Neighbours among all prompts and among their halves, and the seeds of k-means in each, want the same products. They are
of single precision and only ever find candidates; who counts is decided on the states themselves.
"""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Self

import numpy as np
from threadpoolctl import threadpool_limits

from nucleate.compiled import compiled
from nucleate.measures.neighbour_kernels import squared_norms

LARGEST = 2**14  # points whose products with each other are kept: 1 GiB


@dataclass(frozen=True, eq=False)
class Products:
    """Of all points; `part` gives those of some of them."""

    states: np.ndarray  # (point, width) float32, as they are
    exponent: int  # below, 2 ** -exponent times these
    middle: np.ndarray  # (width,) float32: their mean
    around: np.ndarray  # (point, width) float32: the points less `middle`
    squares: np.ndarray  # (point,) squared norms of those, double precision
    dots: np.ndarray  # (point, point) float32: their products

    @classmethod
    def of(cls, states: np.ndarray) -> Self:
        """Of at most `LARGEST` points."""
        exponent = exponent_of(states)
        scaled = np.multiply(states, np.float32(2.0**-exponent), dtype=np.float32)
        middle = scaled.mean(axis=0, dtype=np.float64).astype(np.float32)
        scaled -= middle
        return cls(states, exponent, middle, scaled, squared_norms(scaled), scaled @ scaled.T)

    def part(self, places: np.ndarray) -> "Part":
        """Some of the points."""
        return Part(self, places)


@dataclass(frozen=True, eq=False)
class Part:
    """Some of the points, in the order of their places."""

    products: Products
    places: np.ndarray

    def __len__(self) -> int:
        return len(self.places)

    def __getitem__(self, some: slice | np.ndarray) -> "Part":
        return Part(self.products, self.places[some])

    @property
    def states(self) -> np.ndarray:
        """(point, width) as they are."""
        return self.products.states[self.places]

    @property
    def around(self) -> np.ndarray:
        """(point, width) less the mean of all, scaled."""
        return self.products.around[self.places]

    @property
    def squares(self) -> np.ndarray:
        """(point,) squared norms of those."""
        return self.products.squares[self.places]

    def dots(self, other: "Part") -> np.ndarray:
        """(point, other point) products."""
        return _cut(self.products.dots, self.places, other.places)


def products_of(states: np.ndarray, threads: int) -> list[Products]:
    """Of each layer (layer, point, width)."""
    # The last bits of a matrix product depend on BLAS's threads; ours are put to whole layers instead.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(threads) as pool:
        return list(pool.map(Products.of, states))


def exponent_of(*arrays: np.ndarray) -> int:
    """Of the power of two by which the numbers are divided, to at most 1: squares of very large or very small ones
    would leave even double precision."""
    largest = max(largest_of(states) for states in arrays)
    return max(int(np.frexp(largest)[1]), -126 if arrays[-1].dtype == np.float32 else -1021)


def largest_of(states: np.ndarray) -> float:
    """Largest absolute number; NaN where one is NaN."""
    return max(float(states.max()), -float(states.min())) if states.size else 0.0


@compiled()
def _cut(table, rows, columns):
    part = np.empty((len(rows), len(columns)), table.dtype)
    for i in range(len(rows)):
        row, cut = table[rows[i]], part[i]
        for j in range(len(columns)):
            cut[j] = row[columns[j]]
    return part
