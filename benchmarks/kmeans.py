"""k-means of one measured epoch: ours against scikit-learn's `KMeans(n_init=10)`, alternating, one thread each.

    python benchmarks/kmeans.py             seven layers: 63 sets of points, each clustered for three kinds of labels
    python benchmarks/kmeans.py --quick     two layers
    python benchmarks/kmeans.py --large     8,800 points of width 576 instead, k = 3, 16, 50, 160
    python benchmarks/kmeans.py --early     4,400 points of width 256: starts followed to their ends against ours, which
                                            leaves those that hardly move

The states are made up with the main experiment's structure (ten tasks, their distributions, five inputs each, three
instructions), so that layer 0 has coinciding points and the last layer has clear clusters. Prints for each space the
ratio of times (median and quartiles over sets of points), the inertia against scikit-learn's, the adjusted Rand index
against the labels of both, and how much scikit-learn's own moves with its seed.
"""

import argparse
import time
import warnings
from dataclasses import dataclass
from unittest.mock import patch

import numpy as np
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score
from threadpoolctl import threadpool_limits

from nucleate.measures import kmeans_points
from nucleate.measures.clustering import Clustering, KMeansJob, kmeans, kmeans_many

KINDS = ("task", "distribution", "distribution_mapping")


@dataclass(frozen=True)
class PointSet:
    space: str
    points: np.ndarray  # (n, width) float32
    labels: dict[str, np.ndarray]


@dataclass(frozen=True)
class Row:
    """One job, measured. Seconds are a third of those of its set of points, whose three jobs run together."""

    space: str
    kind: str
    ratio: float  # scikit-learn's seconds over ours
    seconds: float  # ours
    inertia: float  # ours over scikit-learn's, minus 1
    ari: float
    ari_sklearn: float
    ari_spread: float  # standard deviation over scikit-learn's seeds; NaN where not measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two layers instead of seven")
    parser.add_argument("--large", action="store_true", help="8,800 points instead of an epoch")
    parser.add_argument("--early", action="store_true", help="what it costs and gains to leave starts early")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore", ConvergenceWarning)  # scikit-learn on coinciding points
    rng = np.random.default_rng(100)
    for n in (20, 1100):  # compile both ways
        kmeans(rng.normal(size=(n, 3)), 4, seed=0)
    if arguments.early:
        leave_early(rng)
        return
    if arguments.large:
        sets = [large_set(rng)]
    else:
        layers = (0, 6) if arguments.quick else range(7)
        sets = [one for layer in layers for split in (12, 21, 21) for one in epoch_sets(rng, layer, split)]
    with threadpool_limits(1):
        rows = [row for number, one in enumerate(sets) for row in measure(one, seeds=1 + 4 * (number % 4 == 0))]
    show(rows)


def leave_early(rng: np.random.Generator) -> None:
    """Processor time and inertia, in the mean over three seeds, against every start followed to its end."""
    n, width = 4400, 256
    groups = sum(s * rng.normal(size=(k, width))[rng.integers(k, size=n)] for k, s in ((16, 0.5), (110, 1.5), (160, 1)))
    noise = rng.normal(size=(n, width))
    kinds = {"groups": groups + 0.3 * noise, "noise": noise, "falling spectrum": noise * np.exp(-np.arange(width) / 12)}
    for kind, points in kinds.items():
        for k in (3, 16, 160):
            jobs = [KMeansJob(points.astype(np.float32), k, seed) for seed in range(3)]
            found: dict[float, tuple[float, np.ndarray]] = {}
            for enough in (0.0, kmeans_points.ENOUGH):
                with patch.object(kmeans_points, "ENOUGH", enough), threadpool_limits(1):
                    began = time.process_time()
                    inertia = np.array([one.inertia for one in kmeans_many(jobs)])
                    found[enough] = time.process_time() - began, inertia
            (whole, deep), (early, ours) = found.values()
            print(
                f"{kind:18} k {k:3}: {early / whole:.2f} of the time, inertia {100 * np.mean(ours / deep - 1):+.3f} %"
            )


def measure(one: PointSet, *, seeds: int) -> list[Row]:
    ks = [len(np.unique(labels)) for labels in one.labels.values()]
    start = time.perf_counter()
    peers = [KMeans(k, n_init=10, random_state=0).fit(one.points) for k in ks]
    middle = time.perf_counter()
    ours = kmeans_many([KMeansJob(one.points, k, 0) for k in ks])
    end = time.perf_counter()
    rows = []
    for (kind, labels), k, peer, found in zip(one.labels.items(), ks, peers, ours, strict=True):
        check(one.points, found)
        scores = [adjusted_rand_score(labels, peer.labels_)]
        for seed in range(1, seeds if len(one.points) < 1000 else 1):
            again = KMeans(k, n_init=10, random_state=seed).fit(one.points)
            scores.append(adjusted_rand_score(labels, again.labels_))
        rows.append(
            Row(
                space=one.space,
                kind=kind,
                ratio=(middle - start) / (end - middle),
                seconds=(end - middle) / len(ks),
                # Fewer distinct points than clusters: both are zero, scikit-learn's but for rounding.
                inertia=found.inertia / float(peer.inertia_) - 1 if found.inertia > 0 else 0.0,
                ari=adjusted_rand_score(labels, found.clusters),
                ari_sklearn=float(np.mean(scores)),
                ari_spread=float(np.std(scores, ddof=1)) if len(scores) > 1 else float("nan"),
            )
        )
    return rows


def check(points: np.ndarray, found: Clustering) -> None:
    means = np.stack([points[found.clusters == c].mean(0, dtype=float) for c in range(found.clusters.max() + 1)])
    assert np.isclose(found.inertia, ((points - means[found.clusters]) ** 2).sum(), rtol=1e-5, atol=1e-20)


def show(rows: list[Row]) -> None:
    print(f"{'space or labels':28}{'jobs':>5}{'ms each':>9}{'times faster (quartiles)':>26}", end="")
    print(f"{'inertia':>10}{'ARI ours':>10}{'sklearn':>9}{'spread':>8}")
    chosen = {space: [row for row in rows if row.space == space] for space in dict.fromkeys(row.space for row in rows)}
    chosen |= {kind: [row for row in rows if row.kind == kind] for kind in dict.fromkeys(row.kind for row in rows)}
    for name, some in (chosen | {"all": rows}).items():
        times = " " * 35  # the three kinds of labels run together: they have no times of their own
        if name == "all" or some[0].space == name:
            low, median, high = np.quantile([row.ratio for row in some], (0.25, 0.5, 0.75))
            times = (
                f"{1e3 * np.mean([row.seconds for row in some]):9.2f}{f'{median:.1f} ({low:.1f} to {high:.1f})':>26}"
            )
        spread = [row.ari_spread for row in some if not np.isnan(row.ari_spread)]
        print(
            f"{name:28}{len(some):5}{times}{100 * np.mean([row.inertia for row in some]):+9.3f}%"
            f"{np.mean([row.ari for row in some]):10.3f}{np.mean([row.ari_sklearn for row in some]):9.3f}"
            f"{np.mean(spread) if spread else float('nan'):8.3f}"
        )
    ours = sum(row.seconds for row in rows)
    peer = sum(row.seconds * row.ratio for row in rows)
    print(f"in all: {ours:.2f} s against {peer:.2f} s, {peer / ours:.1f} times faster")


def epoch_sets(rng: np.random.Generator, layer: int, distributions: int) -> list[PointSet]:
    """The three spaces of one layer and split: 12 distributions make 180 instances, 21 make 315."""
    task_of = np.concatenate([np.arange(10), rng.integers(10, size=distributions - 10)])
    distribution = np.repeat(np.arange(distributions), 15)
    word = np.tile(np.arange(5), 3 * distributions)
    task = task_of[distribution]
    mapping = 5 * distribution + word
    instruction = np.arange(len(task)) // 5
    strength = layer / 6
    spectrum = 1 / np.sqrt(1 + np.arange(256) / 4)  # hidden states have few strong directions

    def effect(levels: np.ndarray) -> np.ndarray:
        return rng.normal(size=(levels.max() + 1, 256))[levels] * spectrum

    raw = 2 * effect(5 * task + word)  # the input token, tasks having inputs of their own
    raw += effect(instruction % 6)  # its position: at layer 0 all there is besides, so that points coincide
    if layer:
        raw += strength * (2 * effect(task) + effect(distribution) + 0.5 * effect(mapping))
        raw += 0.7 * effect(instruction) + 0.3 * effect(np.arange(len(task)))
    raw = raw.astype(np.float32)
    centred = raw - np.stack([raw[word == one].mean(0) for one in range(5)])[word]
    # Like t-SNE at perplexity 10: islands of a task's input, drawn together by task, of a few units' width.
    islands = 25 * rng.normal(size=(50, 3))[5 * task + word] + 15 * strength * rng.normal(size=(10, 3))[task]
    islands += 4 * strength * rng.normal(size=(distributions, 3))[distribution] + 2 * rng.normal(size=(len(task), 3))
    labels = dict(zip(KINDS, (task, distribution, mapping), strict=True))
    return [
        PointSet("raw 256", raw, labels),
        PointSet("tsne 3", islands.astype(np.float32), labels),
        PointSet("centred 256", centred.astype(np.float32), labels),
    ]


def large_set(rng: np.random.Generator) -> PointSet:
    labels = {
        "format (3)": np.arange(8800) % 3,
        "task (16)": np.arange(8800) % 16,
        "distribution (50)": rng.integers(50, size=8800),
        "distribution_mapping (160)": rng.integers(160, size=8800),
    }
    spectrum = 1 / np.sqrt(1 + np.arange(576) / 8)
    points = 1.5 * rng.normal(size=(8800, 576)) + 3
    for levels in labels.values():
        points += 0.8 * rng.normal(size=(levels.max() + 1, 576))[levels]
    return PointSet("raw 576", (points * spectrum).astype(np.float32), labels)


if __name__ == "__main__":
    main()
