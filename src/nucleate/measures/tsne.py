"""t-SNE of thousands of small problems at once, exactly: the objective and the schedule of scikit-learn 1.9's
`TSNE(method="exact", init="pca", learning_rate="auto")`, at the speed of the vector unit.

`tsne` is the door, `TSNE` the same as a scikit-learn estimator. A problem is prepared (`_prepare`: joint probabilities
and a starting layout), then descends (`_descend` on CPUs with the loops of `tsne_kernel.py`, `_descend_batch` on a GPU
with torch), and `_Schedule` says how: scikit-learn's exaggeration, momentum and stopping rules, in one place.

One difference is meant. With more than one degree of freedom, so in three dimensions, scikit-learn 1.9 (Barnes-Hut and
exact alike) does not descend along the gradient of its own objective: pairs have the factor (1 + d²/dof)^-((dof+1)/2)
where the derivative has (1 + d²/dof)^-1, as a finite difference shows; its layouts often end at twice the divergence.
We take the gradient; `direction="scikit-learn"` takes theirs, for comparisons. In one and two dimensions both agree.
"""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from scipy.linalg import eigh
from scipy.sparse import csr_array
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from threadpoolctl import ThreadpoolController

from nucleate.measures import tsne_kernel as kernel
from nucleate.refusal import Refused

EXAGGERATION = 12.0
EXAGGERATED_ITERATIONS = 250
CHECK_EVERY = 50
PATIENCE = 300
LEAST_NORM = 1e-7
START_DEVIATION = 1e-4
FARTHEST_START = 1e4  # for given layouts: points further apart than some thousands no longer feel each other

# From here on a problem's rows are shared between threads; below, each problem stays on one. The size alone decides,
# not the number of threads: the two ways sum in different orders, and a result must not depend on who computes it.
SHARED_FROM = 1500
# Beyond, only the 3 × perplexity + 1 nearest neighbours of a point attract it, as in scikit-learn's Barnes-Hut (a dense
# matrix would take 4 n² bytes); the repulsion stays exact. Only in up to three dimensions.
SPARSE_FROM = 4096
_ROWS = 256  # of the distance matrix worked on at a time
_BATCH_PAIRS = 2**28  # of a batch on a GPU: about 6 GiB of working arrays
_VOID = 1e-12  # a principal axis with a smaller share of the first one's variance is rounding noise


@dataclass(frozen=True)
class Embedding:
    """A layout, the Kullback–Leibler divergence (≥ 0, in nats, smaller is better) of exactly this layout, and the
    number of iterations done, which is below the number asked for where scikit-learn's rules stop early.

    scikit-learn's `kl_divergence_` is that of the layout one step before the last; its `n_iter_` counts from zero.
    """

    embedding: np.ndarray  # float32 (n, components)
    kl_divergence: float
    iterations: int


def tsne(
    problems: Sequence[Any],
    *,
    components: int = 3,
    perplexity: float = 10,
    iterations: int = 2000,
    seed: int = 0,
    start: Sequence[Any] | None = None,
    threads: int | None = None,
    device: str = "cpu",
    direction: str = "gradient",
) -> list[Embedding]:
    """One `Embedding` per problem; a problem is an (n, width) array, and problems of different n go together.

    With a starting layout (`start`: one (n, components) array or None per problem) there is neither PCA nor early
    exaggeration: for displays that follow a layout from epoch to epoch. `seed` matters only where PCA has nothing to
    say, that is for axes without variance. On the CPU a problem's result is the same bytes whatever the other problems,
    their order and the number of threads (default: `OMP_NUM_THREADS`, else all cores). Any other `device` is torch's:
    the same algorithm, whose last bits depend on the batch. `direction`: "gradient", or "scikit-learn" for its own.
    """
    _check_settings(components, perplexity, iterations, threads)
    if direction not in ("gradient", "scikit-learn"):
        raise Refused(f"direction is {direction!r}; it must be 'gradient' or 'scikit-learn'")
    literal = direction == "scikit-learn"
    points = [_checked_points(problem, index, perplexity) for index, problem in enumerate(problems)]
    starts = _checked_starts(start, points, components)
    workers = threads or available_threads()

    def prepare(index: int, share: _Share = _in_turn, dense: bool = False) -> _Prepared:
        return _prepare(points[index], starts[index], components, perplexity, seed, share, dense)

    with _one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        if device != "cpu":
            return _descend_on(device, points, prepare, iterations, literal, pool)

        def share(work: Callable[[int, int], None], count: int) -> None:
            if workers == 1:
                work(0, count)
            else:
                borders = np.linspace(0, count, workers + 1).astype(int).tolist()
                for _ in pool.map(lambda border: work(*border), pairwise(borders)):
                    pass

        small = [index for index, rows in enumerate(points) if len(rows) < SHARED_FROM]
        small.sort(key=lambda index: -len(points[index]))  # so that no thread is left with a long one at the end
        found = dict(
            zip(small, pool.map(lambda index: _descend(prepare(index), iterations, literal), small), strict=True)
        )
        for index in range(len(points)):
            if index not in found:
                found[index] = _descend(prepare(index, share), iterations, literal, share)
    return [found[index] for index in range(len(points))]


class TSNE(ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """`tsne` of one problem, with scikit-learn's names of parameters and attributes (see `sklearn.manifold.TSNE`).

    `perplexity=None` is 10, and a third of the other points where there are no more than ten points; a number that is
    too large for the points is refused. `n_jobs=None` takes as many threads as `tsne` does by default.
    Attributes after `fit`: `embedding_` (n, n_components), `kl_divergence_`, `n_iter_` (iterations done).
    """

    def __init__(
        self,
        n_components: int = 3,
        *,
        perplexity: float | None = None,
        max_iter: int = 2000,
        random_state: Any = 0,
        n_jobs: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.perplexity = perplexity
        self.max_iter = max_iter
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device

    def fit(self, X: Any, y: Any = None) -> "TSNE":
        points = validate_data(self, X, dtype=[np.float64, np.float32], ensure_min_samples=2)
        if isinstance(self.random_state, int | np.integer):
            seed = int(self.random_state)
        else:
            seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        few = 10.0 if len(points) > 10 else max(1.0, (len(points) - 1) / 3)
        (found,) = tsne(
            [points],
            components=self.n_components,
            perplexity=few if self.perplexity is None else self.perplexity,
            iterations=self.max_iter,
            seed=seed,
            threads=available_threads() if self.n_jobs == -1 else self.n_jobs,
            device=self.device,
        )
        self.embedding_ = found.embedding
        self.kl_divergence_ = found.kl_divergence
        self.n_iter_ = found.iterations
        return self

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:
        return self.fit(X).embedding_

    @property
    def _n_features_out(self) -> int:
        return self.embedding_.shape[1]


class _Schedule:
    """What scikit-learn's `_tsne` and `_gradient_descent` decide, as a state: exaggeration and momentum now, how many
    steps until the next check, and after each check whether to go on, to change the stage, or to stop."""

    def __init__(self, iterations: int, *, warm: bool) -> None:
        self.iterations = iterations
        self.done = 0
        self.running = True
        self._enter(late=warm)

    def _enter(self, *, late: bool) -> None:
        self.late = late
        self.exaggeration = 1.0 if late else EXAGGERATION
        self.momentum = 0.8 if late else 0.5
        self._end = self.iterations if late else min(self.iterations, EXAGGERATED_ITERATIONS)
        self._best = np.inf
        self._best_at = self.done

    @property
    def steps(self) -> int:
        return min(CHECK_EVERY - self.done % CHECK_EVERY, self._end - self.done)

    def tell(self, divergence: float, norm: float) -> bool:
        """After `steps` steps: true where a new stage begins, which forgets velocities and gains.

        While exaggerated, scikit-learn watches the divergence from 12 P, a rising function of the one given here.
        """
        self.done += self.steps
        over = self.done >= self._end
        if self.done % CHECK_EVERY == 0:
            last = self.done - 1
            if divergence < self._best:
                self._best, self._best_at = divergence, last
            elif last - self._best_at > PATIENCE:
                over = True
            over = over or norm <= LEAST_NORM
        if over and not self.late and self.done < self.iterations:
            self._enter(late=True)
            return True
        self.running = not over
        return False


# --- The door ---------------------------------------------------------------------------------------------------------


def available_threads() -> int:
    """`OMP_NUM_THREADS` where it is set to a number, else the cores this process may use."""
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdigit() and int(wanted) > 0:
        return int(wanted)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_settings(components: int, perplexity: float, iterations: int, threads: int | None) -> None:
    for name, value in (("components", components), ("iterations", iterations), ("threads", threads)):
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise Refused(f"{name} is {value!r}; it must be a whole number, at least 1")
    if not 1 <= perplexity < np.inf:
        raise Refused(f"perplexity is {perplexity!r}; it counts neighbours and must be at least 1")


def _checked_points(problem: Any, index: int, perplexity: float) -> np.ndarray:
    points = _array(problem)
    if points.ndim != 2 or points.shape[1] == 0 or points.dtype.kind not in "fiub":
        raise Refused(
            f"problem {index} is an array of {points.dtype} with shape {points.shape}; give real numbers, (n, width)"
        )
    if perplexity >= len(points):
        raise Refused(
            f"perplexity {perplexity:g} needs more than {perplexity:g} points; problem {index} has {len(points)}"
        )
    _check_finite(points, f"problem {index}")
    return points


def _checked_starts(start: Sequence[Any] | None, points: list[np.ndarray], components: int) -> list[np.ndarray | None]:
    if start is None:
        return [None] * len(points)
    if len(start) != len(points):
        raise Refused(f"start has {len(start)} layouts for {len(points)} problems; give one (or None) per problem")
    checked: list[np.ndarray | None] = []
    for index, (first, rows) in enumerate(zip(start, points, strict=True)):
        if first is None:
            checked.append(None)
            continue
        layout = _array(first)
        if layout.shape != (len(rows), components) or layout.dtype.kind not in "fiub":
            raise Refused(f"start of problem {index} has shape {layout.shape}; it needs {(len(rows), components)}")
        _check_finite(layout, f"start of problem {index}")
        if np.abs(layout).max() > FARTHEST_START:
            raise Refused(f"start of problem {index} reaches beyond ±{FARTHEST_START:g}; layouts span tens: rescale it")
        checked.append(layout)
    return checked


def _array(given: Any) -> np.ndarray:
    """A numpy array, also from a torch tensor (bfloat16 has no numpy form, so tensors go through float64)."""
    return given.detach().cpu().double().numpy() if hasattr(given, "detach") else np.asarray(given)


def _check_finite(array: np.ndarray, name: str) -> None:
    finite = np.isfinite(array)
    if not finite.all():
        row, column = (int(place) for place in np.argwhere(~finite)[0])
        raise Refused(
            f"{name} holds {array[row, column]} in row {row}, column {column}; remove or mend that row (NaN, inf)"
        )


_limit = threading.Lock()
_limited: dict[str, Any] = {"depth": 0, "limiter": None}


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _one_blas_thread() -> Iterator[None]:
    """Matrix products on one thread: with more their last bits depend on how many. Calls may overlap in time: the
    first to come sets the limit, the last to go lifts it."""
    with _limit:
        if _limited["depth"] == 0:
            _limited["limiter"] = _libraries().limit(limits=1, user_api="blas")
        _limited["depth"] += 1
    try:
        yield
    finally:
        with _limit:
            _limited["depth"] -= 1
            if _limited["depth"] == 0:
                _limited["limiter"].restore_original_limits()


# --- Preparation: joint probabilities and a starting layout -----------------------------------------------------------

_Share = Callable[[Callable[[int, int], None], int], None]  # runs work(low, high) on the parts of range(count)


def _in_turn(work: Callable[[int, int], None], count: int) -> None:
    work(0, count)


@dataclass(frozen=True)
class _Prepared:
    layout: np.ndarray  # float32 (components, n): where the descent starts
    joint: Any  # p(i, j) in float32: an array (n, padded) or, of the nearest neighbours only, a csr_array (n, n)
    entropy: float  # Σ p ln p
    warm: bool  # the layout was given


def _prepare(
    points: np.ndarray,
    first: np.ndarray | None,
    components: int,
    perplexity: float,
    seed: int,
    share: _Share,
    dense: bool,
) -> _Prepared:
    points = _centred(points)
    n, width = points.shape
    gram = points @ points.T if n <= min(width, SPARSE_FROM) else None  # serves distances and principal axes alike
    if first is None:
        layout = _principal_layout(points, gram, components, seed)
    else:
        layout = np.array(first.T, dtype=np.float32, order="C")
    norms = np.einsum("ij,ij->i", points, points)
    target = float(np.log(perplexity))
    blocks = [slice(top, min(top + _ROWS, n)) for top in range(0, n, _ROWS)]

    def squared_distances(block: slice) -> np.ndarray:
        squared = gram[block] if gram is not None else points[block] @ points.T
        squared = norms[block, None] + norms - 2.0 * squared
        kernel.recompute_near(points, norms, block.start, squared)
        return squared

    if n > SPARSE_FROM and components <= 3 and not dense:
        near = min(n - 1, int(3 * perplexity + 1))
        neighbours = np.empty((n, near), np.int32)
        conditional = np.empty((n, near), np.float32)

        def find(low: int, high: int) -> None:
            for block in blocks[low:high]:
                squared = squared_distances(block)
                squared[np.arange(len(squared)), np.arange(n)[block]] = np.inf
                neighbours[block] = np.sort(np.argpartition(squared, near - 1, axis=1)[:, :near], axis=1)
                nearest = np.take_along_axis(squared, neighbours[block], axis=1)
                kernel.calibrate(nearest, -1, target, conditional[block])

        share(find, len(blocks))
        ends = np.arange(0, n * near + 1, near)
        one_sided = csr_array((conditional.ravel().astype(np.float64), neighbours.ravel(), ends), shape=(n, n))
        joint = (one_sided + one_sided.T).tocsr() / (2 * n)
        joint.data = np.maximum(joint.data, kernel.TINY)
        entropy = float(np.sum(joint.data * np.log(joint.data)))
        return _Prepared(layout, joint.astype(np.float32), entropy, first is not None)

    table = np.zeros((n, -(-n // kernel.LANES) * kernel.LANES), np.float32)

    def fill(low: int, high: int) -> None:
        for block in blocks[low:high]:
            kernel.calibrate(squared_distances(block), block.start, target, table[block])

    share(fill, len(blocks))
    return _Prepared(layout, table, kernel.symmetrise(table), first is not None)


def _centred(points: np.ndarray) -> np.ndarray:
    """float64, mean zero, scaled by a power of two to about 1: t-SNE ignores scale, and a power of two costs no digit.

    The first row is subtracted before the mean, so that equal rows become zeros exactly, whatever their size.
    """
    points = points.astype(np.float64, order="C")  # a copy, changed in place from here on
    for _ in range(2):
        exponent = int(np.frexp(max(points.max(), -points.min()))[1])
        points *= np.ldexp(1.0, min(1000, max(-1000, -exponent)))
        points -= points[0].copy()
    points -= points.mean(axis=0)
    return points


def _principal_layout(points: np.ndarray, gram: np.ndarray | None, components: int, seed: int) -> np.ndarray:
    """The first principal components, the first with standard deviation 1e-4, as float32 (components, n).

    Exact eigenvectors of the smaller of the two Gram matrices; the largest loading of an axis is positive, which is
    scikit-learn's rule. Axes without variance (constant features, n or width below `components`, one repeated point)
    start from normal noise of deviation 1e-4; there scikit-learn refuses, takes rounding noise or divides by zero.
    """
    n, width = points.shape
    layout = np.random.default_rng(seed).standard_normal((n, components)) * START_DEVIATION
    found = min(components, n, width)
    if gram is None:
        gram = points @ points.T if n <= width else points.T @ points
    size = len(gram)
    variances, vectors = eigh(gram, subset_by_index=[size - found, size - 1])
    if len(variances) < found:  # where eigenvalues are all equal, some LAPACKs find none of those asked for
        variances, vectors = (part[..., -found:] for part in eigh(gram, driver="evd"))
    variances, vectors = variances[::-1], vectors[:, ::-1]
    if n <= width:
        loadings, scores = points.T @ vectors, vectors * np.sqrt(np.maximum(variances, 0.0))
    else:
        loadings, scores = vectors, points @ vectors
    signs = np.sign(np.take_along_axis(loadings, np.abs(loadings).argmax(axis=0)[None], axis=0))
    real = variances > _VOID * max(variances[0], 0.0)
    if real[0]:
        layout[:, :found][:, real] = (scores * signs / np.std(scores[:, 0]) * START_DEVIATION)[:, real]
    return np.array(layout.T, dtype=np.float32, order="C")


# --- Descent ----------------------------------------------------------------------------------------------------------


def _degrees_of_freedom(components: int) -> int:
    return max(components - 1, 1)


def _learning_rate(n: int) -> float:
    return max(n / EXAGGERATION / 4, 50.0)


def _scaled(layout: np.ndarray, width: int) -> np.ndarray:
    """layout / √dof with at least three rows (of zeros) and padding columns far away, as the loops want it."""
    components, n = layout.shape
    scaled = np.zeros((max(components, 3), width), np.float32)
    scaled[0, n:] = kernel.FAR
    scaled[:components, :n] = layout / np.float32(np.sqrt(_degrees_of_freedom(components)))
    return scaled


def _descend(prepared: _Prepared, iterations: int, literal: bool, share: _Share = _in_turn) -> Embedding:
    layout = prepared.layout.copy()
    joint = prepared.joint
    components, n = layout.shape
    dof = _degrees_of_freedom(components)
    dense = isinstance(joint, np.ndarray)
    scaled = _scaled(layout, joint.shape[1] if dense else -(-n // kernel.LANES) * kernel.LANES)
    velocity, gains = np.zeros_like(layout), np.ones_like(layout)
    forces, sums = np.zeros((2 * len(scaled), n), np.float32), np.zeros(n)
    pairs = (joint,) if dense else (joint.indptr, joint.indices, joint.data)
    push = kernel.dense_forces if dense else kernel.sparse_forces
    state = (layout, scaled, velocity, gains)

    def advance(count: int, exaggeration: float, momentum: float) -> tuple[float, float, float]:
        how = (exaggeration, momentum, _learning_rate(n))
        if n < SHARED_FROM:
            return kernel.dense_steps(count, joint, *state, forces, sums, dof, literal, *how)
        cross = normaliser = norm = 0.0
        for remaining in range(count, 0, -1):
            if remaining == 1:
                cross = _cross_entropy(prepared, scaled, dof, sums, share)
            share(lambda low, high: push(*pairs, scaled, dof, literal, low, high, forces, sums), n)
            normaliser, norm = kernel.step(n, forces, sums, *state, dof, *how)
        return cross, normaliser, norm

    schedule = _Schedule(iterations, warm=prepared.warm)
    while schedule.running:
        cross, normaliser, norm = advance(schedule.steps, schedule.exaggeration, schedule.momentum)
        if schedule.tell(prepared.entropy + cross + np.log(normaliser), np.sqrt(norm)):
            velocity[:] = 0
            gains[:] = 1
    return _finished(prepared, layout, schedule.done, share)


def _cross_entropy(prepared: _Prepared, scaled: np.ndarray, dof: int, sums: np.ndarray, share: _Share) -> float:
    """−Σ p ln w."""
    joint = prepared.joint
    if isinstance(joint, np.ndarray):
        share(lambda low, high: kernel.dense_cross_entropy(joint, scaled, dof, low, high, sums), len(sums))
    else:
        near = (joint.indptr, joint.indices, joint.data)
        share(lambda low, high: kernel.sparse_cross_entropy(*near, scaled, dof, low, high, sums), len(sums))
    return float(sums.sum())


def _finished(prepared: _Prepared, layout: np.ndarray, iterations: int, share: _Share = _in_turn) -> Embedding:
    components, n = layout.shape
    dof = _degrees_of_freedom(components)
    dense = isinstance(prepared.joint, np.ndarray)
    scaled = _scaled(layout, prepared.joint.shape[1] if dense else n)
    sums = np.zeros(n)
    cross = _cross_entropy(prepared, scaled, dof, sums, share)
    share(lambda low, high: kernel.weight_sums(scaled, n, dof, low, high, sums), n)
    divergence = prepared.entropy + cross + float(np.log(sums.sum()))
    return Embedding(np.ascontiguousarray(layout.T), max(0.0, divergence), iterations)


# --- The same on a GPU ------------------------------------------------------------------------------------------------


def _descend_on(
    device: str,
    points: list[np.ndarray],
    prepare: Callable[..., _Prepared],
    iterations: int,
    literal: bool,
    pool: ThreadPoolExecutor,
) -> list[Embedding]:
    """All problems on one torch device, in batches of like size, none larger than the working memory allows."""
    try:
        import torch
    except ImportError:
        raise Refused(f"device {device!r} needs torch: install it, or use device='cpu'") from None
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError):
        raise Refused(f"torch finds no device {device!r} here: use device='cpu'") from None
    found: dict[int, Embedding] = {}
    waiting = sorted(range(len(points)), key=lambda index: -len(points[index]))
    while waiting:
        count = max(1, _BATCH_PAIRS // len(points[waiting[0]]) ** 2)
        batch, waiting = waiting[:count], waiting[count:]
        prepared = list(pool.map(lambda index: prepare(index, dense=True), batch))
        layouts = _descend_batch(prepared, iterations, literal, torch.device(device))
        finished = pool.map(lambda problem, end: _finished(problem, *end), prepared, layouts)
        found |= dict(zip(batch, finished, strict=True))
    return [found[index] for index in range(len(points))]


def _descend_batch(
    prepared: list[_Prepared], iterations: int, literal: bool, device: Any
) -> list[tuple[np.ndarray, int]]:
    """Final layout (components, n) and iterations of each problem, all padded to the largest."""
    import torch

    sizes = [problem.layout.shape[1] for problem in prepared]
    components, most = prepared[0].layout.shape[0], max(sizes)
    dof = _degrees_of_freedom(components)
    joint = torch.zeros((len(sizes), most, most))
    layout = torch.zeros((len(sizes), most, components))
    real = torch.zeros((len(sizes), most, 1))
    for place, (problem, n) in enumerate(zip(prepared, sizes, strict=True)):
        joint[place, :n, :n] = torch.from_numpy(problem.joint[:, :n])
        layout[place, :n] = torch.from_numpy(problem.layout.T)
        layout[place, n:] = float(kernel.FAR)
        real[place, :n] = 1.0
    joint, layout, real = joint.to(device), layout.to(device), real.to(device)  # (problem, n, n | components | 1)
    entropy = torch.tensor([problem.entropy for problem in prepared], dtype=torch.float64, device=device)
    rate = torch.tensor([_learning_rate(n) for n in sizes], device=device)[:, None, None]
    velocity, gains = torch.zeros_like(layout), torch.ones_like(layout)
    schedules = [_Schedule(iterations, warm=problem.warm) for problem in prepared]
    places = list(range(len(sizes)))
    done: dict[int, tuple[np.ndarray, int]] = {}
    while places:
        now = [schedules[place] for place in places]
        exaggeration = torch.tensor([schedule.exaggeration for schedule in now], device=device)[:, None, None]
        momentum = torch.tensor([schedule.momentum for schedule in now], device=device)[:, None, None]
        steps = now[0].steps  # the same for all: they began together and stages end at checks
        for remaining in range(steps, 0, -1):
            spread = torch.ones_like(joint)
            for axis in layout.unbind(-1):
                spread += (axis[:, :, None] - axis[:, None, :]).square_().div_(dof)
            weight = spread.pow(-0.5 * (dof + 1))
            factor = weight if literal else spread.reciprocal()
            sums = (weight.sum(-1, keepdim=True) * real).sum((1, 2), dtype=torch.float64)
            normaliser = torch.maximum(sums - real.sum((1, 2)), 1e-6 * real.sum((1, 2)))
            if remaining == 1:
                cross = (joint * spread.log_()).sum((1, 2), dtype=torch.float64) * (0.5 * (dof + 1))
                divergence = entropy + cross + normaliser.log()
            pull = (joint * exaggeration - weight / normaliser.float()[:, None, None]).mul_(factor)
            pull.diagonal(dim1=1, dim2=2).zero_()  # a point's own weight, by far the largest, would only add rounding
            gradient = (pull.sum(-1, keepdim=True) * layout - pull @ layout) * real * (2 * (dof + 1) / dof)
            gains = torch.where(velocity * gradient < 0, gains + 0.2, gains * 0.8).clamp_(min=0.01)
            gradient *= gains
            velocity = momentum * velocity - rate * gradient
            layout = layout + velocity
        norms = gradient.double().square().sum((1, 2)).sqrt().tolist()
        fresh = [
            schedule.tell(value, norm) for schedule, value, norm in zip(now, divergence.tolist(), norms, strict=True)
        ]
        for row, place in enumerate(places):
            if fresh[row]:
                velocity[row] = 0
                gains[row] = 1
            if not now[row].running:
                done[place] = (layout[row, : sizes[place]].T.contiguous().cpu().numpy(), now[row].done)
        if any(place in done for place in places):
            keep = [row for row, place in enumerate(places) if place not in done]
            places = [places[row] for row in keep]
            joint, layout, real, entropy, rate, velocity, gains = (
                tensor[keep] for tensor in (joint, layout, real, entropy, rate, velocity, gains)
            )
    return [done[place] for place in range(len(sizes))]
