"""Where the seconds of one measured moment go: the same survey as `nucleate learn` makes, taken apart; one thread.

    python benchmarks/moment.py                  size small (about a minute)
    python benchmarks/moment.py --size paper
    python benchmarks/moment.py --plain          the whole survey, and its neighbours, against plain ways to search

States are those of an untrained network; the parts' times lie inside the whole and do not overlap. The plain ways find
the same neighbours, which is checked: by a float64 product of all queries with all candidates and numpy's partition; by
the same without computing the distances again from the differences; by torch's `topk`.
"""

import argparse
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

from peers import alternate, report, set_threads

set_threads(1)

import numpy as np  # noqa: E402
import torch  # noqa: E402

from nucleate.config import configure  # noqa: E402
from nucleate.data.synthetic import generate  # noqa: E402
from nucleate.measures import neighbours as search  # noqa: E402
from nucleate.measures import survey as surveys  # noqa: E402
from nucleate.measures.neighbour_kernels import TIE  # noqa: E402
from nucleate.measures.neighbours import SEARCHES, Labels  # noqa: E402
from nucleate.measures.tsne import tsne  # noqa: E402
from nucleate.model.states import read_groups  # noqa: E402
from nucleate.paper.instances import MEASURED, Members, places_of  # noqa: E402
from nucleate.paper.network import make_network  # noqa: E402
from nucleate.paper.surveys import labels_of, survey_of  # noqa: E402

PARTS = {
    "t-SNE": (surveys, "tsne"),
    "neighbours": (surveys, "_neighbour_rows"),
    "k-means": (surveys, "kmeans_many"),
    "scores": (surveys, "_score_rows"),
    "linear probe": (surveys.LinearProbe, "fit"),
    "input means": (surveys.InputMeans, "of"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", choices=("tiny", "small", "paper"))
    parser.add_argument("--plain", action="store_true", help="against plain ways to search for neighbours")
    options = parser.parse_args()
    config = configure(options.size)
    torch.set_num_threads(1)
    dataset = generate(config.data, seed=config.seed)
    model, tokenizer = make_network(config, dataset, device="cpu")
    members = Members.of(tokenizer, [i for split in ("train", "validation", "test") for i in dataset.select(split)])
    read = read_groups(model, members.groups).states
    states = {s: read[:, places_of(members.instances, s)] for s in (*MEASURED, "train")}
    labelling = labels_of(config, members.instances)
    survey_of(labelling, states, config.measure)  # loads or compiles
    if options.plain:
        against_plain(config.size, lambda: survey_of(labelling, states, config.measure))
        return
    spent: dict[str, float] = defaultdict(float)
    for name, (home, function) in PARTS.items():
        setattr(home, function, timed(name, getattr(home, function), spent))
    began = time.perf_counter()
    survey_of(labelling, states, config.measure)
    whole = time.perf_counter() - began
    shown = np.concatenate([states["subset"], states["validation"]], axis=1)
    settings = {"components": 3, "perplexity": config.measure.perplexity, "threads": 1}
    before = [one.embedding for one in tsne(list(shown), iterations=250, **settings)]
    began = time.perf_counter()
    tsne(list(shown), iterations=config.measure.display_iterations, start=before, **settings)
    print(f"{config.size}: one survey {whole:.2f} s, display layouts {time.perf_counter() - began:.2f} s beside it")
    for name, seconds in spent.items():
        print(f"  {name:14} {seconds:6.2f} s")
    print(f"  {'the rest':14} {whole - sum(spent.values()):6.2f} s")


def against_plain(size: str, survey: Callable[[], surveys.Survey]) -> None:
    ways = {
        "product and partition": {"_near": near_by_partition},
        "the same, distances kept": {"_near": near_by_partition, "squared_distances": kept_distances},
        "torch's topk": {"_near": partial(search._near_on, torch.device("cpu"))},
    }
    for name, changes in ways.items():
        shares: dict[str, list[float]] = {"ours": [], "theirs": []}  # seconds among neighbours alone
        rows: dict[str, list[surveys.Row]] = {}
        work = partial(one_survey, survey, shares, rows)
        ratios = alternate(
            partial(work, "ours", {"_near": search._near}),
            partial(work, "theirs", changes),
            rounds=4,
            warmup=0,
            timer=time.process_time,
        )
        gap = max(abs(a.value - b.value) for a, b in zip(rows["ours"], rows["theirs"], strict=True))
        report(f"whole survey, {size}, against {name}", ratios, rows_differ_by=gap)
        parts = sorted(b / a for a, b in zip(shares["ours"], shares["theirs"], strict=True))
        print(f"    neighbours alone: {np.median(parts):.2f}x ({parts[0]:.2f}-{parts[-1]:.2f})", flush=True)


def one_survey(
    survey: Callable[[], surveys.Survey],
    shares: dict[str, list[float]],
    rows: dict[str, list[surveys.Row]],
    side: str,
    changes: dict[str, Any],
) -> None:
    spent: dict[str, float] = defaultdict(float)
    work = timed("neighbours", surveys._neighbour_rows, spent, time.process_time)
    with patch.object(surveys, "_neighbour_rows", work), patch.multiple(search, **changes):
        rows[side] = survey().rows
    shares[side].append(spent["neighbours"])


KEPT: dict[str, np.ndarray] = {}


def near_by_partition(
    space: search._Search, number: int, rows: slice, query: Labels, candidate: Labels, most: int, names: Sequence[str]
) -> search._Pairs:
    """All squared distances by one product in double precision; for each search the K-th least by partition."""
    queries = space.queries[number][rows]
    double, points = queries.astype(np.float64), space.distinct.astype(np.float64)
    lengths, squares = (np.einsum("ij,ij->i", one, one) for one in (double, points))
    squared = double @ points.T
    squared *= -2
    squared += lengths[:, None]
    squared += squares
    np.maximum(squared, 0, out=squared)
    KEPT["squared"] = squared
    squared = squared[:, space.point] if len(points) < len(space.point) else squared.copy()
    squared[query.instruction[:, None] == candidate.instruction] = np.inf
    doubt = 4 * (queries.shape[1] + 8) * 2.0**-53 * (np.sqrt(lengths) + np.sqrt(squares.max(initial=0)))[:, None] ** 2
    bits = np.zeros(squared.shape, dtype=np.int64)
    place = min(most, squared.shape[1]) - 1
    for number, name in enumerate(names):
        allowed = squared
        for column in SEARCHES[name]:
            same = getattr(query, column)[:, None] == getattr(candidate, column)
            allowed = np.where(same, np.inf, allowed)
        last = np.partition(allowed, place, axis=1)[:, place : place + 1]
        bound = np.sqrt(last + doubt)
        bound = (bound + 2 * TIE * (bound + space.scale)) ** 2 + doubt
        bits |= (allowed <= np.minimum(bound, np.finfo(float).max)).astype(np.int64) << number
    row, column = bits.nonzero()
    return search._Pairs(row, column, bits[row, column])


def kept_distances(queries: np.ndarray, points: np.ndarray, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    return KEPT["squared"][row, column]


def timed(
    name: str,
    work: Callable[..., Any],
    spent: dict[str, float],
    timer: Callable[[], float] = time.perf_counter,
) -> Callable[..., Any]:
    def inside(*given: Any, **named: Any) -> Any:
        began = timer()
        try:
            return work(*given, **named)
        finally:
            spent[name] += timer() - began

    return inside


if __name__ == "__main__":
    main()
