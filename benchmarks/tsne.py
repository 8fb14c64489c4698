"""Our t-SNE against scikit-learn's Barnes-Hut and exact methods: the same problems, alternating, one thread each.

    python benchmarks/tsne.py                    the 14 problems of one measured epoch, three times (four minutes)
    python benchmarks/tsne.py --quick            four of them once, with fewer iterations (about ten seconds)
    python benchmarks/tsne.py --large 8800       one large problem against Barnes-Hut instead, on --threads threads

Time is the time of a fit from points to layout. Quality is judged by others: the divergence of every layout by
scikit-learn's own exact functions (large problem: against one common set of neighbour probabilities), and how well
k-means on it finds the tasks. The ratio is that of the better of scikit-learn's two to ours, from the same round.
Exit code 1 where a layout's quality falls behind, so that no speed is claimed for worse work.
"""

import argparse
import os
import platform
import sys
import time


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=2000)
    parser.add_argument("--quick", action="store_true", help="two problems of each size, one round, 500 iterations")
    parser.add_argument("--large", type=int, metavar="N", help="one problem of N points against Barnes-Hut")
    parser.add_argument("--threads", type=int, default=1, help="for both sides, with --large only")
    return parser.parse_args()


OPTIONS = arguments()
THREADS = OPTIONS.threads if OPTIONS.large else 1
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ[name] = str(THREADS)  # read when the libraries load, hence before the imports below

import numpy as np  # noqa: E402
from scipy.spatial.distance import pdist, squareform  # noqa: E402
from sklearn.cluster import KMeans  # noqa: E402
from sklearn.manifold import TSNE as PeerTSNE  # noqa: E402
from sklearn.manifold._t_sne import _joint_probabilities, _kl_divergence  # noqa: E402
from sklearn.metrics import adjusted_rand_score  # noqa: E402

from nucleate.measures import tsne_descent as descent  # noqa: E402
from nucleate.measures import tsne_start as start  # noqa: E402
from nucleate.measures.tsne import tsne  # noqa: E402

PERPLEXITY = 10


def hidden_states(n: int, *, tasks: int, seed: int, width: int = 768) -> tuple[np.ndarray, np.ndarray]:
    """What a layer's states look like: an effect of the task, of its instruction, of the input, and noise, on axes of
    very different scale."""
    rng = np.random.default_rng(seed)
    task = rng.integers(0, tasks, n)
    instruction = task * 6 + rng.integers(0, 6, n)
    given = rng.integers(0, 25, n)
    effects = rng.standard_normal((tasks, width))[task] + 0.7 * rng.standard_normal((tasks * 6, width))[instruction]
    effects += 0.7 * rng.standard_normal((25, width))[given] + 0.7 * rng.standard_normal((n, width))
    return (effects * np.exp(0.7 * rng.standard_normal(width))).astype(np.float32), task


def timed(work):
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def fit_ours(points: np.ndarray, iterations: int) -> tuple[float, np.ndarray, int]:
    seconds, (result,) = timed(lambda: tsne([points], perplexity=PERPLEXITY, iterations=iterations, threads=THREADS))
    return seconds, result.embedding, result.iterations


def fit_peer(points: np.ndarray, iterations: int, method: str) -> tuple[float, np.ndarray, int]:
    peer = PeerTSNE(3, perplexity=PERPLEXITY, max_iter=iterations, method=method, random_state=0, n_jobs=THREADS)
    seconds, embedding = timed(lambda: peer.fit_transform(points))
    return seconds, embedding, peer.n_iter_ + 1


def exact_divergence(points: np.ndarray, embedding: np.ndarray) -> float:
    joint = _joint_probabilities(squareform(pdist(points.astype(np.float64), "sqeuclidean")), PERPLEXITY, 0)
    return float(_kl_divergence(embedding.ravel().astype(np.float64), joint, 2, *embedding.shape)[0])


def tasks_found(task: np.ndarray, embedding: np.ndarray) -> float:
    clusters = KMeans(len(np.unique(task)), n_init=10, random_state=0).fit_predict(embedding)
    return adjusted_rand_score(task, clusters)


def spread(values: list[float] | np.ndarray) -> str:
    return f"{np.median(values):6.1f}  ({np.min(values):.1f} to {np.max(values):.1f})"


def small(repeats: int, iterations: int, each: int) -> int:
    problems = [hidden_states(n, tasks=10 + 2 * k, seed=1000 * n + k) for n in (180, 315) for k in range(each)]
    warm_up, _ = timed(lambda: tsne([problems[0][0]], iterations=10, threads=1))
    print(f"{len(problems)} problems, {iterations} iterations; loading or compiling took {warm_up:.1f} s, not counted")
    methods = ("ours", "barnes_hut", "exact")
    seconds = np.zeros((repeats, len(problems), 3))
    divergences, found = np.zeros((len(problems), 3)), np.zeros((len(problems), 3))
    for repeat in range(repeats):
        for index, (points, task) in enumerate(problems):
            fits = [fit_ours(points, iterations)]
            fits += [fit_peer(points, iterations, method) for method in methods[1:]]
            seconds[repeat, index] = [fit[0] for fit in fits]
            if repeat == 0:
                divergences[index] = [exact_divergence(points, fit[1]) for fit in fits]
                found[index] = [tasks_found(task, fit[1]) for fit in fits]
                done = " ".join(f"{method} {fit[2]}" for method, fit in zip(methods, fits, strict=True))
            mine, *theirs = seconds[repeat, index]
            print(
                f"round {repeat + 1}  N {len(points)}  ours {mine:.3f} s  Barnes-Hut {theirs[0]:.2f} s  "
                f"exact {theirs[1]:.2f} s  ratio {min(theirs) / mine:.1f}  (iterations: {done})",
                flush=True,
            )
    totals = seconds.sum(axis=1)
    pairs = sum(len(points) ** 2 for points, _ in problems) * iterations
    print(f"pairs of points a second, ours, all included: {pairs / np.median(totals[:, 0]) / 1e9:.2f} thousand million")
    print("ratio, problem by problem:           ", spread((seconds[:, :, 1:].min(2) / seconds[:, :, 0]).ravel()))
    print("ratio, all problems, better of two:  ", spread(totals[:, 1:].min(1) / totals[:, 0]))
    print("ratio, all problems, against exact:  ", spread(totals[:, 2] / totals[:, 0]))
    for column, method in enumerate(methods):
        print(
            f"{method:11s} divergence {divergences[:, column].mean():.4f}   "
            f"ARI of k-means with the tasks {found[:, column].mean():.3f}"
        )
    behind = divergences[:, 0].mean() > 1.02 * divergences[:, 2].mean()
    gain = found[:, 0] - found[:, 2]
    error = gain.std(ddof=1) / np.sqrt(len(gain))
    print(f"ARI, ours minus exact: {gain.mean():+.3f} ± {error:.3f} (standard error over {len(gain)} problems)")
    return int(behind or gain.mean() < -2 * error - 0.01)


def large(n: int, iterations: int) -> int:
    """Barnes-Hut, then ours with an eighth, a quarter, half and all of its iterations: which reach its divergence?"""
    points, _ = hidden_states(n, tasks=16, seed=n)
    tsne([points[:60]], iterations=10)
    theirs, peer, done = fit_peer(points, iterations, "barnes_hut")
    prepared = start.prepare(points, peer, 3, PERPLEXITY, 0, start.in_turn, False)

    def judged(layout: np.ndarray) -> float:
        return descent.finished(prepared, np.ascontiguousarray(layout.T, np.float32), 0).kl_divergence

    goal = judged(peer)
    print(
        f"N {n}, {THREADS} thread(s)\nBarnes-Hut: {done} iterations, {theirs:.1f} s, divergence {goal:.4f}", flush=True
    )
    for part in (8, 4, 2, 1):
        mine, layout, done = fit_ours(points, iterations // part)
        reached = judged(layout)
        print(f"ours: {done} iterations, {mine:.1f} s, divergence {reached:.4f}, ratio {theirs / mine:.1f}", flush=True)
    return int(reached > 1.02 * goal)


if __name__ == "__main__":
    print(f"{platform.processor() or platform.machine()}, Python {platform.python_version()}, {THREADS} thread(s)")
    if OPTIONS.large:
        sys.exit(large(OPTIONS.large, OPTIONS.iterations))
    if OPTIONS.quick:
        sys.exit(small(1, min(OPTIONS.iterations, 500), 2))
    sys.exit(small(OPTIONS.repeats, OPTIONS.iterations, 7))
