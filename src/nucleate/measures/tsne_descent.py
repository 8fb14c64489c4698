"""The descent of t-SNE problems: `descend` on CPUs with the loops of `tsne_kernel.py`, `descend_on` a GPU with torch.
`Schedule` says how: scikit-learn's exaggeration, momentum and stopping rules, in one place.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from nucleate.measures import tsne_kernel as kernel
from nucleate.measures.tsne_start import Prepared, Share, in_turn
from nucleate.refusal import Refused

EXAGGERATION = 12.0
EXAGGERATED_ITERATIONS = 250
CHECK_EVERY = 50
PATIENCE = 300
LEAST_NORM = 1e-7

# From here on a problem's rows are shared between threads; below, each problem stays on one, which costs less.
SHARED_FROM = 1500
_ROWS = 256  # of the points against all of them, at a time
_BATCH_PAIRS = 2**28  # of a batch on a GPU: about 6 GiB of working arrays


@dataclass(frozen=True)
class Embedding:
    """A layout, the Kullback–Leibler divergence (≥ 0, in nats, smaller is better) of exactly this layout, and the
    number of iterations done, which is below the number asked for where scikit-learn's rules stop early.

    scikit-learn's `kl_divergence_` is that of the layout one step before the last; its `n_iter_` counts from zero.
    """

    embedding: np.ndarray  # float32 (n, components)
    kl_divergence: float
    iterations: int


class Schedule:
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


def _degrees_of_freedom(components: int) -> int:
    return max(components - 1, 1)


def _learning_rate(n: int) -> float:
    return max(n / EXAGGERATION / 4, 50.0)


def scaled_layout(layout: np.ndarray, width: int) -> np.ndarray:
    """layout / √dof with at least three rows (of zeros) and padding columns far away, as the loops want it."""
    components, n = layout.shape
    scaled = np.zeros((max(components, 3), width), np.float32)
    scaled[0, n:] = kernel.FAR
    scaled[:components, :n] = layout / np.float32(np.sqrt(_degrees_of_freedom(components)))
    return scaled


def descend(prepared: Prepared, iterations: int, literal: bool, share: Share = in_turn) -> Embedding:
    layout = prepared.layout.copy()
    joint = prepared.joint
    components, n = layout.shape
    dof = _degrees_of_freedom(components)
    dense = isinstance(joint, np.ndarray)
    scaled = scaled_layout(layout, joint.shape[1] if dense else -(-n // kernel.LANES) * kernel.LANES)
    velocity, gains = np.zeros_like(layout), np.ones_like(layout)
    forces, sums = np.zeros((2 * len(scaled), n), np.float32), np.zeros(n)
    pairs = (joint,) if dense else (joint.indptr, joint.indices, joint.data)
    push = kernel.dense_forces if dense else kernel.sparse_forces
    state = (layout, scaled, velocity, gains)

    schedule = Schedule(iterations, warm=prepared.warm)
    while schedule.running:
        how = (schedule.exaggeration, schedule.momentum, _learning_rate(n))
        for remaining in range(schedule.steps, 0, -1):
            if remaining == 1:
                cross = _cross_entropy(prepared, scaled, dof, sums, share)
            share(lambda low, high: push(*pairs, scaled, dof, literal, low, high, forces, sums), n)
            normaliser, norm = kernel.step(n, forces, sums, *state, dof, *how)
        if schedule.tell(prepared.entropy + cross + np.log(normaliser), np.sqrt(norm)):
            velocity[:] = 0
            gains[:] = 1
    return finished(prepared, layout, schedule.done, share)


def _cross_entropy(prepared: Prepared, scaled: np.ndarray, dof: int, sums: np.ndarray, share: Share) -> float:
    """−Σ p ln w, the part of the divergence that needs every pair."""
    joint = prepared.joint
    if not isinstance(joint, np.ndarray):
        apart = np.repeat(scaled[:, : len(sums)], np.diff(joint.indptr), axis=1) - scaled[:, joint.indices]
        return float(joint.data @ np.log1p((apart**2).sum(axis=0))) * (dof + 1) / 2

    def add_up(low: int, high: int) -> None:
        for rows in _blocks(low, high):
            sums[rows] = (joint[rows] * np.log(_spread(scaled, rows))).sum(axis=1)

    share(add_up, len(sums))
    return float(sums.sum()) * (dof + 1) / 2


def _blocks(low: int, high: int) -> list[slice]:
    return [slice(first, min(first + _ROWS, high)) for first in range(low, high, _ROWS)]


def _spread(scaled: np.ndarray, rows: slice) -> np.ndarray:
    """(row, point) 1 + d²/dof, of which Student's t is a power."""
    spread = np.ones((rows.stop - rows.start, scaled.shape[1]), scaled.dtype)
    for axis in scaled:
        spread += (axis[rows, None] - axis) ** 2
    return spread


def finished(prepared: Prepared, layout: np.ndarray, iterations: int, share: Share = in_turn) -> Embedding:
    components, n = layout.shape
    dof = _degrees_of_freedom(components)
    dense = isinstance(prepared.joint, np.ndarray)
    scaled = scaled_layout(layout, prepared.joint.shape[1] if dense else n)
    sums = np.zeros(n)
    cross = _cross_entropy(prepared, scaled, dof, sums, share)
    double = scaled[:, :n].astype(np.float64)

    def add_up(low: int, high: int) -> None:
        for rows in _blocks(low, high):
            weight = _spread(double, rows) ** (-(dof + 1) / 2)
            weight[np.arange(len(weight)), np.arange(rows.start, rows.stop)] = 0  # its own
            sums[rows] = weight.sum(axis=1)

    share(add_up, n)
    divergence = prepared.entropy + cross + float(np.log(sums.sum()))
    return Embedding(np.ascontiguousarray(layout.T), max(0.0, divergence), iterations)


# --- The same on a GPU ------------------------------------------------------------------------------------------------


def descend_on(
    device: str,
    points: list[np.ndarray],
    begin: Callable[..., Prepared],
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
        prepared = list(pool.map(lambda index: begin(index, dense=True), batch))
        layouts = descend_batch(prepared, iterations, literal, torch.device(device))
        ends = pool.map(lambda problem, end: finished(problem, *end), prepared, layouts)
        found |= dict(zip(batch, ends, strict=True))
    return [found[index] for index in range(len(points))]


def descend_batch(
    prepared: list[Prepared], iterations: int, literal: bool, device: Any
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
    schedules = [Schedule(iterations, warm=problem.warm) for problem in prepared]
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
