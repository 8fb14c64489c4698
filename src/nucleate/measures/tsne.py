"""t-SNE of thousands of small problems at once, exactly: the objective and the schedule of scikit-learn 1.9's
`TSNE(method="exact", init="pca", learning_rate="auto")`, at the speed of the vector unit.

`tsne` is the door, `TSNE` the same as a scikit-learn estimator. A problem is prepared (`tsne_start.py`), then descends
(`tsne_descent.py`), on a CPU with the loops of `tsne_kernel.py`.

One difference is meant. With more than one degree of freedom, so in three dimensions, scikit-learn 1.9 (Barnes-Hut and
exact alike) does not descend along the gradient of its own objective: pairs have the factor (1 + d²/dof)^-((dof+1)/2)
where the derivative has (1 + d²/dof)^-1, as a finite difference shows; its layouts often end at twice the divergence.
We take the gradient; `direction="scikit-learn"` takes theirs, for comparisons. In one and two dimensions both agree.
"""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from threadpoolctl import ThreadpoolController

from nucleate.measures import tsne_descent as descent
from nucleate.measures.tsne_descent import Embedding, descend, descend_on
from nucleate.measures.tsne_start import Prepared, Share, in_turn, prepare
from nucleate.refusal import Refused
from nucleate.threads import thread_count

FARTHEST_START = 1e4  # for given layouts: points further apart than some thousands no longer feel each other


def tsne(
    problems: Sequence[ArrayLike],
    *,
    components: int = 3,
    perplexity: float = 10,
    iterations: int = 2000,
    seed: int = 0,
    start: Sequence[ArrayLike | None] | None = None,
    threads: int | None = None,
    device: str = "cpu",
    direction: str = "gradient",
) -> list[Embedding]:
    """One `Embedding` per problem; a problem is an (n, width) array, and problems of different n go together.

    `components` are the dimensions of a layout, `perplexity` the neighbours that a point feels, `iterations` the steps
    at most. With a starting layout (`start`: one (n, components) array or None per problem) there is neither PCA nor
    early exaggeration: for displays that follow a layout from epoch to epoch. `seed` matters only where PCA has
    nothing to say, that is for axes without variance. On the CPU a problem's result is the same bytes whatever the
    other problems, their order and the number of threads (default: `OMP_NUM_THREADS`, else all cores). Any other
    `device` is torch's: the same algorithm, whose last bits depend on the batch. `direction`: "gradient", or
    "scikit-learn" for its own.
    """
    _check_settings(components, perplexity, iterations, threads)
    if direction not in ("gradient", "scikit-learn"):
        raise Refused(f"direction is {direction!r}; it must be 'gradient' or 'scikit-learn'")
    literal = direction == "scikit-learn"
    points = [_checked_points(problem, index, perplexity) for index, problem in enumerate(problems)]
    starts = _checked_starts(start, points, components)
    workers = threads or thread_count()

    def begin(index: int, share: Share = in_turn, dense: bool = False) -> Prepared:
        return prepare(points[index], starts[index], components, perplexity, seed, share, dense)

    with _one_blas_thread(), ThreadPoolExecutor(workers) as pool:
        if device != "cpu":
            return descend_on(device, points, begin, iterations, literal, pool)

        def share(work: Callable[[int, int], None], count: int) -> None:
            if workers == 1:
                work(0, count)
            else:
                borders = np.linspace(0, count, workers + 1).astype(int).tolist()
                for _ in pool.map(lambda border: work(*border), pairwise(borders)):
                    pass

        small = [index for index, rows in enumerate(points) if len(rows) < descent.SHARED_FROM]
        small.sort(key=lambda index: -len(points[index]))  # so that no thread is left with a long one at the end
        found = dict(zip(small, pool.map(lambda index: descend(begin(index), iterations, literal), small), strict=True))
        for index in range(len(points)):
            if index not in found:
                found[index] = descend(begin(index, share), iterations, literal, share)
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
        random_state: int | np.random.RandomState | None = 0,
        n_jobs: int | None = None,
        device: str = "cpu",
    ) -> None:
        self.n_components = n_components
        self.perplexity = perplexity
        self.max_iter = max_iter
        self.random_state = random_state
        self.n_jobs = n_jobs
        self.device = device

    def fit(self, X: ArrayLike, y: object = None) -> "TSNE":
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
            threads=thread_count() if self.n_jobs == -1 else self.n_jobs,
            device=self.device,
        )
        self.embedding_ = found.embedding
        self.kl_divergence_ = found.kl_divergence
        self.n_iter_ = found.iterations
        return self

    def fit_transform(self, X: ArrayLike, y: object = None) -> np.ndarray:
        return self.fit(X).embedding_

    @property
    def _n_features_out(self) -> int:
        return self.embedding_.shape[1]


# --- The door ---------------------------------------------------------------------------------------------------------


def _check_settings(components: int, perplexity: float, iterations: int, threads: int | None) -> None:
    for name, value in (("components", components), ("iterations", iterations), ("threads", threads)):
        if value is not None and (not isinstance(value, int | np.integer) or value < 1):
            raise Refused(f"{name} is {value!r}; it must be a whole number, at least 1")
    if not 1 <= perplexity < np.inf:
        raise Refused(f"perplexity is {perplexity!r}; it counts neighbours and must be at least 1")


def _checked_points(problem: ArrayLike, index: int, perplexity: float) -> np.ndarray:
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


def _checked_starts(
    start: Sequence[ArrayLike | None] | None, points: list[np.ndarray], components: int
) -> list[np.ndarray | None]:
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


def _array(given: ArrayLike) -> np.ndarray:
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
