"""Whose neighbours are the instances? The exact nearest training instances, for every K and restriction at once.

What tasks and outputs these have is read off in `shares.py`. Candidates that are as far as the K-th nearest count
fractionally, so that the weights sum to K and file order decides nothing: in the embedding layer hundreds of training
states coincide. A neighbour never has the same instruction.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property, partial
from itertools import chain
from typing import Any

import numpy as np
import torch

from nucleate.measures.neighbour_kernels import TIE, distinct_states, screen, squared_distances, squared_norms
from nucleate.measures.products import Part, exponent_of, largest_of
from nucleate.refusal import Refused

KS = (1, 2, 5, 10, 20)
BARE = 10  # the K whose measures carry no suffix; the paper gives none

# A name for each search, and what a neighbour must not share with the query beyond the instruction.
SEARCHES: dict[str, tuple[str, ...]] = {
    "": (),
    "other_inputs": ("input",),
    "other_distributions": ("distribution",),
    "other_both": ("input", "distribution"),  # what right answers alone cannot find
    "other_format": ("format",),  # another way to ask
}

_PAIRS_AT_ONCE = 2**20  # of queries and candidates: 4 MiB on a CPU, 40 on a GPU, and 160 where all of them tie
_LEAST_AT_ONCE = 16  # queries, however many the candidates: all of these are looked through once for each block
_NUMBERS_AT_ONCE = 2**22  # of candidate states turned to double precision


@dataclass(frozen=True, eq=False)
class Labels:
    """What is known about some instances: integer codes, (instance,) each, shared by queries and candidates.

    -1 stands for unknown. Where any input (distribution, format) is unknown, nothing is searched among other inputs
    (distributions, formats); instances without a known output have no say in accuracy.
    """

    instruction: np.ndarray
    input: np.ndarray
    output: np.ndarray
    task: np.ndarray
    distribution: np.ndarray
    format: np.ndarray = None  # type: ignore[assignment]  # None: unknown of all

    def __post_init__(self) -> None:
        if self.format is None:
            object.__setattr__(self, "format", np.full(len(self), -1))
        for field in fields(self):
            codes = getattr(self, field.name)
            if not (isinstance(codes, np.ndarray) and codes.ndim == 1 and codes.dtype.kind in "iu"):
                raise Refused(f"labels: {field.name} must be a one-dimensional array of integer codes")
            if len(codes) != len(self):
                raise Refused(
                    f"labels: {len(codes)} of {field.name} but {len(self)} instructions; give one an instance"
                )

    def __len__(self) -> int:
        return len(self.instruction)

    def __getitem__(self, members: Any) -> "Labels":
        """The labels of some of the instances, in the order of `members`."""
        return Labels(*(getattr(self, field.name)[members] for field in fields(self)))

    @classmethod
    def coded(cls, *tables: Mapping[str, Sequence[str | None]]) -> tuple["Labels", ...]:
        """Labels of one or several tables of text columns, under one code book: equal text has equal codes anywhere.

        Codes count from 0 in the order of the sorted texts. `instruction` and `task` are needed; other columns may be
        missing or hold None, which becomes -1.
        """
        columns: list[dict[str, np.ndarray]] = [{} for _ in tables]
        for field in fields(cls):
            needed = field.name in ("instruction", "task")
            for table in tables:
                if needed and (field.name not in table or any(text is None for text in table[field.name])):
                    raise Refused(f"labels: every instance needs its {field.name}; name the column that holds it")
            texts = [table.get(field.name, [None] * len(table["instruction"])) for table in tables]
            book = {text: code for code, text in enumerate(sorted({t for t in chain(*texts) if t is not None}))}
            for column, values in zip(columns, texts, strict=True):
                codes = [-1 if text is None else book[text] for text in values]
                column[field.name] = np.array(codes, dtype=np.int64)
        return tuple(cls(**column) for column in columns)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """The nearest candidates of each query: everything that any K of `ks` needs, ties included.

    A query's entries are `start[query]:start[query + 1]`, nearest first. For each K, its first `inside` entries count
    fully; those from there to `reach` are as far as the K-th, and share what is left of K. Where fewer than K
    candidates are allowed all of them count; where there are none a query has no entries.
    """

    ks: tuple[int, ...]
    start: np.ndarray  # (query + 1,) int64
    candidate: np.ndarray  # (entry,) int64
    distance: np.ndarray  # (entry,) float64, Euclidean
    inside: np.ndarray  # (k, query) int64
    reach: np.ndarray  # (k, query) int64
    scale: float  # the candidates' median norm, of which `TIE` is a share

    @property
    def query(self) -> np.ndarray:
        """(entry,) whose neighbour an entry is."""
        return np.repeat(np.arange(len(self.start) - 1), np.diff(self.start))

    @property
    def total(self) -> np.ndarray:
        """(k, query) sum of the weights: K, or less where fewer candidates are allowed."""
        return np.minimum(np.array(self.ks)[:, None], np.diff(self.start))

    @property
    def fraction(self) -> np.ndarray:
        """(k, query) weight of each entry that is as far as the K-th, 0..1."""
        return (self.total - self.inside) / np.maximum(self.reach - self.inside, 1)

    def weights(self, k: int) -> np.ndarray:
        """(entry,) how much each entry counts among the K nearest: 1, a fraction, or 0."""
        row, query = self.ks.index(k), self.query
        place = np.arange(len(query)) - self.start[query]
        tied = np.where(place < self.reach[row, query], self.fraction[row, query], 0.0)
        return np.where(place < self.inside[row, query], 1.0, tied)


def searches_of(query: Labels, candidate: Labels) -> Iterator[str]:
    """The searches for which everything is known."""
    for name, columns in SEARCHES.items():
        codes = [getattr(labels, column) for column in columns for labels in (query, candidate)]
        if all((column >= 0).all() for column in codes):
            yield name


# --- the search -------------------------------------------------------------------------------------------------------


def neighbour_blocks(
    queries: Sequence[tuple[Any, Labels]],
    candidate_states: Any,
    candidate: Labels,
    *,
    ks: Sequence[int] = KS,
    device: str | torch.device | None = None,
) -> Iterator[tuple[int, slice, dict[str, Neighbours]]]:
    """The nearest candidates of every query, for each search of `SEARCHES` whose labels are known, some queries after
    others: the number of their set, which of it they are, and what was found. So few at once that all candidates may
    tie for each of them, as where all prompts end in the same word.

    Several sets of queries (states with their labels) share the candidates, which are made ready once. States are
    arrays or tensors (n, width), finite, or all of them parts of points whose products are known; the search runs
    where `device` says, or where tensors lie already. A matrix product finds who may be among the nearest, with a
    margin for all that rounding may have moved; their distances are then computed one by one from the differences, in
    double precision. So neither the number of queries at once, nor the order of candidates, nor threads, nor the
    device, nor what the products were made with changes a bit of the result.
    """
    ks = tuple(ks)
    if not ks or min(ks) < 1 or len(set(ks)) < len(ks):
        raise Refused(f"neighbours: ks is {ks}; give different whole numbers from 1 on")
    given = [(_as_array(states, labels, "queries"), labels) for states, labels in queries]
    candidates = _as_array(candidate_states, candidate, "candidates")
    for states, _ in given:
        if states.shape[1] != candidates.shape[1]:
            raise Refused(
                f"neighbours: queries of width {states.shape[1]} but candidates of width {candidates.shape[1]}; "
                "give states of the same layer and model"
            )
    if not len(candidates):
        raise Refused("neighbours: no candidates; give at least one training instance")
    if device is None:
        device = next((s.device for s, _ in queries if isinstance(s, torch.Tensor)), "cpu")
    near = _near if torch.device(device).type == "cpu" else partial(_near_on, torch.device(device))
    parts = [states for states in (*(states for states, _ in queries), candidate_states) if isinstance(states, Part)]
    search = _Search.of([states for states, _ in given], candidates, parts if len(parts) > len(given) else ())
    at_once = max(_LEAST_AT_ONCE, _PAIRS_AT_ONCE // len(candidates))
    asked = [labels for _, labels in given]
    del given, candidates  # of a million states, these are gigabytes
    for number, (states, labels) in enumerate(zip(search.queries, asked, strict=True)):
        names = tuple(searches_of(labels, candidate))
        for first in range(0, max(len(states), 1), at_once):
            rows = slice(first, first + at_once)
            pairs = near(search, number, rows, labels[rows], candidate, max(ks), names)
            yield number, rows, _measured(search, states[rows], pairs, names, ks)


def _as_array(states: Any, labels: Labels, name: str) -> np.ndarray:
    if isinstance(states, Part):
        states = states.states
    if isinstance(states, torch.Tensor):
        states = states.detach().cpu()
        states = (states if states.dtype in (torch.float32, torch.float64) else states.float()).numpy()
    array = np.asarray(states)
    if array.ndim != 2 or len(array) != len(labels) or not array.shape[1]:
        raise Refused(
            f"neighbours: states of the {name} have shape {array.shape}; give ({len(labels)}, width) for their labels"
        )
    array = np.ascontiguousarray(array, dtype=np.float64 if array.dtype == np.float64 else np.float32)
    if not np.isfinite(largest_of(array)):
        row = int(np.isfinite(array).all(axis=1).argmin())
        raise Refused(f"neighbours: the state of row {row} of the {name} holds NaN or infinity; leave it out")
    return array


@dataclass(frozen=True, eq=False)
class _Search:
    """States in a form fit for searching: scaled by a power of two to at most 1, coinciding candidates merged."""

    queries: list[np.ndarray]  # (query, width) each
    distinct: np.ndarray  # (point, width): the candidates without repetitions
    point: np.ndarray  # (candidate,) where each candidate lies
    unit: float  # a distance of 1 here is so far in the states
    scale: float  # median norm of the candidates, in these units
    middle: np.ndarray  # (width,) mean of the candidates, single precision
    parts: Sequence[Part]  # the queries and the distinct candidates among points whose products are known; or nothing

    @classmethod
    def of(cls, queries: Sequence[np.ndarray], candidates: np.ndarray, parts: Sequence[Part] = ()) -> "_Search":
        exponent = parts[-1].products.exponent if parts else exponent_of(*queries, candidates)
        dtype = np.result_type(candidates, *queries)
        unit = dtype.type(2.0**-exponent)
        scaled = [np.multiply(states, unit, dtype=dtype) for states in (*queries, candidates)]
        for states in scaled:
            states += dtype.type(0)  # -0 becomes 0, so that equal numbers are equal bytes
        candidates = scaled.pop()
        norms = np.sqrt(squared_norms(candidates))
        distinct, point = distinct_states(candidates)
        middle = candidates.mean(axis=0, dtype=np.float64).astype(np.float32)
        if parts:
            parts = (*parts[:-1], parts[-1][np.unique(point, return_index=True)[1]])
        median = float(np.partition(norms, (len(norms) - 1) // 2)[(len(norms) - 1) // 2])
        return cls(scaled, distinct, point, 2.0**exponent, median, middle, parts)

    def products(self, number: int, rows: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(query, point) of some queries with the distinct candidates, in single precision, and the squared norms of
        both: around a mean, because the rounding goes with the lengths, and states have much in common."""
        if self.parts:
            some = self.parts[number][rows]
            return some.dots(self.parts[-1]), some.squares, self.parts[-1].squares
        around = (self.queries[number][rows] - self.middle).astype(np.float32, copy=False)
        return around @ self._around.T, squared_norms(around), self._squares

    @cached_property
    def _around(self) -> np.ndarray:
        return (self.distinct - self.middle).astype(np.float32, copy=False)

    @cached_property
    def _squares(self) -> np.ndarray:
        return squared_norms(self._around)

    @cached_property
    def members(self) -> tuple[np.ndarray, np.ndarray]:
        """Candidates by the point where they lie, and where those of each point begin."""
        start = np.concatenate([[0], np.cumsum(np.bincount(self.point, minlength=len(self.distinct)))])
        return np.argsort(self.point, kind="stable"), start


@dataclass(frozen=True, eq=False)
class _Pairs:
    """Who may be among the nearest of whom: all that are, and few others."""

    query: np.ndarray  # (pair,) sorted
    candidate: np.ndarray  # (pair,)
    searches: np.ndarray  # (pair,) int64: bit s is set where search s allows the pair


def _near(
    search: _Search, number: int, rows: slice, query: Labels, candidate: Labels, most: int, names: Sequence[str]
) -> _Pairs:
    """By products in single precision, and one pass over each query's row for all searches."""
    # Single precision moves a squared distance |a|² + |b|² - 2ab by at most (width + 4) 2^-24 (|a|² + |b|²), the
    # subtraction of the mean included; what leaves its range, by nothing that counts beside 2^-100. Twice that is safe.
    doubt = 2 * (search.distinct.shape[1] + 8) * 2.0**-24
    columns = ("instruction", *sorted({column for name in names for column in SEARCHES[name]}))
    own, theirs = (
        np.stack([getattr(labels, column).astype(np.int64) for column in columns], axis=1)
        for labels in (query, candidate)
    )
    allowed = np.zeros(2 ** len(columns), dtype=np.int64)
    for shared in range(len(allowed)):
        barred = {column for bit, column in enumerate(columns) if shared >> bit & 1}
        for bit, name in enumerate(names):
            allowed[shared] |= (not barred & {"instruction", *SEARCHES[name]}) << bit
    most = min(most, len(candidate))
    dots, squares, others = search.products(number, rows)
    member, start = search.members
    bounds = (len(names), most, doubt, 2.0**-100, search.scale)
    return _Pairs(*screen(dots, squares, others, start, member, own, theirs, allowed, *bounds))


@torch.no_grad()
def _near_on(
    device: torch.device,
    search: _Search,
    number: int,
    rows: slice,
    query: Labels,
    candidate: Labels,
    most: int,
    names: Sequence[str],
) -> _Pairs:
    """The same by torch: products in double precision, since settings that lower that of single precision (TF32) cannot
    reach it. For GPUs: on a CPU the passes over (query, candidate) take three times the product's time."""
    queries = search.queries[number][rows]
    width, double = queries.shape[1], torch.from_numpy(queries).to(device).double()
    norms = (double * double).sum(dim=1, keepdim=True)
    squared = torch.empty((len(queries), len(search.distinct)), dtype=torch.float64, device=device)
    step, reach = max(1, _NUMBERS_AT_ONCE // width), 0.0
    for first in range(0, len(search.distinct), step):
        points = torch.from_numpy(search.distinct[first : first + step]).to(device).double()
        lengths = (points * points).sum(dim=1)
        reach = max(reach, float(lengths.max().sqrt()))
        squared[:, first : first + step] = (double @ points.T).mul_(-2).add_(norms).add_(lengths)
    doubt = 4 * (width + 8) * 2.0**-53 * (norms.sqrt() + reach) ** 2  # (query, 1)
    squared = squared[:, torch.from_numpy(search.point).to(device)]

    def same(column: str) -> torch.Tensor:
        own, theirs = (
            torch.from_numpy(getattr(labels, column).astype(np.int64)).to(device) for labels in (query, candidate)
        )
        return own[:, None] == theirs

    squared.masked_fill_(same("instruction"), torch.inf)
    bits = torch.zeros(squared.shape, dtype=torch.int64, device=device)
    for number, name in enumerate(names):
        allowed = squared
        for apart in SEARCHES[name]:
            allowed = allowed.masked_fill(same(apart), torch.inf)
        nearest = allowed.topk(min(most, allowed.shape[1]), dim=1, largest=False, sorted=False).values
        # Whoever may be as near as the last of them, seen with all doubt on its side; infinity is never allowed.
        bound = (nearest.amax(dim=1, keepdim=True) + doubt).clamp(min=0).sqrt()
        bound = (bound + 2 * TIE * (bound + search.scale)) ** 2 + doubt
        bits |= (allowed <= bound.clamp(max=torch.finfo(torch.float64).max)).long() << number
    row, column = bits.nonzero(as_tuple=True)
    return _Pairs(row.cpu().numpy(), column.cpu().numpy(), bits[row, column].cpu().numpy())


def _measured(
    search: _Search, queries: np.ndarray, pairs: _Pairs, names: Sequence[str], ks: tuple[int, ...]
) -> dict[str, Neighbours]:
    """The distances of all pairs, those to coinciding candidates once, and what follows from them for each search."""
    points = len(search.distinct)
    point = search.point[pairs.candidate]
    if points < len(search.point):
        cell = pairs.query * points + point
        asked = np.zeros(len(queries) * points, dtype=bool)
        asked[cell] = True
        squares = np.empty(len(asked))
        squares[asked] = squared_distances(queries, search.distinct, *np.divmod(np.flatnonzero(asked), points))
        distance = np.sqrt(squares[cell])
    else:
        distance = np.sqrt(squared_distances(queries, search.distinct, pairs.query, point))
    order = np.lexsort((pairs.candidate, distance, pairs.query))
    row, column, distance, searches = (x[order] for x in (pairs.query, pairs.candidate, distance, pairs.searches))
    found = {}
    for number, name in enumerate(names):
        held = (searches >> number) & 1 == 1
        found[name] = _ranked(search, row[held], column[held], distance[held], len(queries), ks)
    return found


def _ranked(
    search: _Search, row: np.ndarray, column: np.ndarray, distance: np.ndarray, queries: int, ks: tuple[int, ...]
) -> Neighbours:
    """Of entries sorted by query and distance: for each K how many count fully and how many at all, none beyond."""
    count = np.bincount(row, minlength=queries)
    start = np.concatenate([[0], np.cumsum(count)])
    inside, reach = np.zeros((2, len(ks), queries), dtype=np.int64)
    some = np.flatnonzero(count)
    for at, k in enumerate(ks):
        last = np.zeros(queries)
        last[some] = distance[start[some] + np.minimum(k, count[some]) - 1]
        slack = TIE * (last + search.scale)
        inside[at] = np.bincount(row[distance < (last - slack)[row]], minlength=queries)
        reach[at] = np.bincount(row[distance <= (last + slack)[row]], minlength=queries)
    longest = reach.max(axis=0)
    counts = np.arange(len(row)) - start[row] < longest[row]
    return Neighbours(
        ks=ks,
        start=np.concatenate([[0], np.cumsum(longest)]),
        candidate=column[counts],
        distance=distance[counts] * search.unit,
        inside=inside,
        reach=reach,
        scale=search.scale * search.unit,
    )
