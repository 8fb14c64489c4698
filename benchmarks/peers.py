"""What the benchmarks share: how the peer pads and steps, and how two sides are timed in one run.

The peer is what people write with transformers: right-padded rows, logits at every place, AdamW. Where it had a choice
it gets the faster one: the collator below pads ready-made token lists, without a tokenizer's overhead, and batches are
collated outside the clock where a benchmark says so.
"""

import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

    from nucleate.model.prefix_tree import Group


class Ratios(NamedTuple):
    """The peer's seconds over ours, round by round: above 1 we are faster."""

    median: float
    low: float  # first quartile over the rounds
    high: float  # third
    ours_seconds: float  # median of one call
    theirs_seconds: float


def set_threads(count: int) -> None:
    """The same number of threads for every library of both sides. Call it before numpy and torch are imported."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(count)
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(count)


def alternate(
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    rounds: int,
    warmup: int = 1,
    timer: Callable[[], float] = time.perf_counter,
) -> Ratios:
    """Time both in turn, the first to go changing from round to round: what else the machine does meets both alike.
    Where both sides keep to one thread, `time.process_time` leaves the waiting out that others cause."""
    for _ in range(warmup):
        ours()
        theirs()
    pairs: list[tuple[float, float]] = []
    for number in range(rounds):
        if number % 2:
            second = seconds(theirs, timer)
            pairs.append((seconds(ours, timer), second))
        else:
            first = seconds(ours, timer)
            pairs.append((first, seconds(theirs, timer)))
    low, median, high = quartiles([b / a for a, b in pairs])
    return Ratios(median, low, high, statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs))


def seconds(work: Callable[[], Any], timer: Callable[[], float] = time.perf_counter) -> float:
    began = timer()
    work()
    return timer() - began


def quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """First quartile, median, third quartile; of a single value, that value."""
    if len(values) == 1:
        return values[0], values[0], values[0]
    low, median, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, median, high


def report(name: str, ratios: Ratios, **facts: Any) -> None:
    """One line: the ratio with its quartiles, both times, then whatever else is known."""
    print(
        f"{name}: {ratios.median:.2f}x ({ratios.low:.2f}-{ratios.high:.2f}), "
        f"ours {clock(ratios.ours_seconds)}, theirs {clock(ratios.theirs_seconds)}{told(facts)}",
        flush=True,
    )


def told(facts: dict[str, Any]) -> str:
    """Facts as `, name value`; floats to four digits."""
    return "".join(f", {k.replace('_', ' ')} {f'{v:.4g}' if isinstance(v, float) else v}" for k, v in facts.items())


def clock(value: float) -> str:
    return f"{value * 1000:.1f} ms" if value < 1 else f"{value:.2f} s"


def sequences(groups: "Sequence[Group]") -> list[tuple[int, ...]]:
    """All tokens of every instance, prefix to answer, in the order of the groups."""
    return [g.prefix + branch + g.target(b) for g in groups for b, branch in enumerate(g.branches)]


def padded_batches(
    groups: "Sequence[Group]", pad: int, *, batch: int = 65, order: Sequence[Sequence[int]] | None = None
) -> "Iterator[dict[str, torch.Tensor]]":
    """Right-padded batches as Hugging Face's Trainer with a padding collator makes them: `input_ids`,
    `attention_mask`, and `labels` with -100 at the padding, each (row, place).

    `order` holds the numbers of the instances of each batch, group after group; without it they are taken in turn,
    `batch` at a time."""
    import torch

    rows = sequences(groups)
    if order is None:
        order = [range(first, min(first + batch, len(rows))) for first in range(0, len(rows), batch)]
    for numbers in order:
        chosen = [rows[i] for i in numbers]
        longest = max(len(row) for row in chosen)
        tokens = torch.tensor([row + (pad,) * (longest - len(row)) for row in chosen])
        lengths = torch.tensor([len(row) for row in chosen])
        mask = (torch.arange(longest) < lengths[:, None]).long()
        yield {"input_ids": tokens, "attention_mask": mask, "labels": tokens.masked_fill(mask == 0, -100)}


def padded_step(
    model: "torch.nn.Module",
    optimizer: "torch.optim.Optimizer",
    batch: "dict[str, torch.Tensor]",
    *,
    max_gradient_norm: float = 1.0,
) -> "torch.Tensor":
    """One optimiser step of the peer; returns the loss. The gradients are gone afterwards."""
    import torch

    loss: torch.Tensor = model(**batch, use_cache=False).loss
    loss.backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_gradient_norm)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach()
