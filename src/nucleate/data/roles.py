"""Which tasks of the synthetic data play which part, and how many instruction distributions each of them has.

Drawn uniformly over all that respect the least, the most and the totals asked for; what cannot be met is refused.
"""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

from nucleate.config import DataSettings
from nucleate.data.synthetic_settings import bounds
from nucleate.refusal import Refused


@dataclass(frozen=True)
class Roles:
    """Which tasks (by number) play which part, and how many distributions each task has."""

    sources: tuple[int, ...]  # of the hard examples and the subset
    pairs: tuple[tuple[int, int], ...]  # (source, target) of the alignment data
    validation: frozenset[int]
    distributions: tuple[int, ...]  # of every task


def deal_roles(settings: DataSettings, seed: int) -> Roles:
    """Sources, validation tasks and numbers of distributions.

    Source tasks and alignment pairs are drawn uniformly. Validation tasks are drawn uniformly among the tasks that are
    no sources of hard examples; only where there are too few of them (or the totals cannot be met) do the fewest
    sources needed join. Alignment's sources and targets are always among them. Given those parts, the numbers of
    distributions are uniform over all that respect the least, the most and, unless they are free, the totals asked for.
    """
    everyone = range(settings.tasks)
    sources = sorted(random_stream(seed, "sources").sample(everyone, settings.subset_tasks))
    drawn = random_stream(seed, "pairs").sample(everyone, 2 * settings.pairs)
    pairs = sorted(zip(drawn[::2], drawn[1::2], strict=True))

    is_free = settings.totals == "free"
    groups, overlap = ({}, _fewest_joining(settings)) if is_free else _possible_groups(settings)
    rng = random_stream(seed, "validation")
    always = sorted(drawn)
    others = [task for task in everyone if task not in sources and task not in always]
    joining = rng.sample(sources, overlap)
    validation = [*always, *joining, *rng.sample(others, settings.validation_tasks - len(always) - overlap)]

    members = (
        sorted(joining),
        [task for task in sources if task not in joining],
        sorted(set(validation) - set(joining)),
        [task for task in everyone if task not in sources and task not in validation],
    )
    rng = random_stream(seed, "distributions")
    if is_free:
        drawn_alone = (rng.randint(*bounds(settings, source=task in sources)) for task in everyone)
        return Roles(tuple(sources), tuple(pairs), frozenset(validation), tuple(drawn_alone))
    sums = _draw_weighted(rng, groups)
    counts = [0] * settings.tasks
    for place, (of_group, total) in enumerate(zip(members, sums, strict=True)):
        low, high = bounds(settings, source=place < 2)
        for task, count in zip(of_group, _deal(rng, len(of_group), low, high, total), strict=True):
            counts[task] = count
    return Roles(tuple(sources), tuple(pairs), frozenset(validation), tuple(counts))


Sums = tuple[int, int, int, int]  # distributions of: sources in validation, other sources, other validation, the rest


def _possible_groups(settings: DataSettings) -> tuple[dict[Sums, int], int]:
    """In how many ways each split of the total over the four groups can come about; how many sources validate."""
    sources, validation, tasks = settings.subset_tasks, settings.validation_tasks, settings.tasks
    for overlap in range(_fewest_joining(settings), min(sources, validation) + 1):
        groups = _groups(settings, overlap, settings.total_distributions)
        if groups:
            return groups, overlap
    feasible = [
        total
        for total in range(tasks * settings.min_distributions, tasks * settings.max_distributions + 1)
        for overlap in range(_fewest_joining(settings), min(sources, validation) + 1)
        if _groups(settings, overlap, total)
    ]
    mend = f"set it to {min(feasible)}-{max(feasible)}" if feasible else "change one of the other two"
    raise Refused(
        f"data.total_distributions={settings.total_distributions} cannot be met with "
        f"data.validation_distributions={settings.validation_distributions} in {validation} tasks and "
        f"data.source_distributions={settings.source_distributions} in {sources}; {mend}"
    )


def _fewest_joining(settings: DataSettings) -> int:
    """How many sources have to be validation tasks too."""
    return max(0, settings.validation_tasks + settings.subset_tasks - settings.tasks)


def _groups(settings: DataSettings, overlap: int, total: int) -> dict[Sums, int]:
    sources, validation = settings.subset_tasks, settings.validation_tasks
    free = settings.tasks - sources - validation + overlap
    low, high = bounds(settings, source=False)
    ways_source = [_ways(number, *bounds(settings, source=True)) for number in (overlap, sources - overlap)]
    ways_validation, ways_free = _ways(validation - overlap, low, high), _ways(free, low, high)
    found: dict[Sums, int] = {}
    for both, ways_both in ways_source[0].items():
        for source, ways_only in ways_source[1].items():
            rest = settings.validation_distributions - both
            last = total - both - source - rest
            ways = ways_both * ways_only * ways_validation.get(rest, 0) * ways_free.get(last, 0)
            if ways and (settings.subset != "narrow" or both + source == settings.source_distributions):
                found[both, source, rest, last] = ways
    return found


@cache
def _ways(number: int, low: int, high: int) -> dict[int, int]:
    """{sum: in how many ways `number` counts between low and high make it}."""
    ways = {0: 1}
    for _ in range(number):
        longer: dict[int, int] = {}
        for total, count in ways.items():
            for one in range(low, high + 1):
                longer[total + one] = longer.get(total + one, 0) + count
        ways = longer
    return ways


def _deal(rng: random.Random, number: int, low: int, high: int, total: int) -> Iterator[int]:
    """`number` counts between low and high that make the total, uniform over all such."""
    for left in reversed(range(number)):
        after = _ways(left, low, high)
        count = _draw_weighted(rng, {one: after.get(total - one, 0) for one in range(low, high + 1)})
        total -= count
        yield count


def _draw_weighted(rng: random.Random, weights: dict[Any, int]) -> Any:
    """A key, exactly in proportion to its weight (the weights outgrow floats)."""
    point = rng.randrange(sum(weights.values()))
    for key, weight in weights.items():
        if (point := point - weight) < 0:
            return key
    raise AssertionError("unreachable: the point lies below the sum of the weights")


def random_stream(seed: int, *names: str) -> random.Random:
    """A random stream of its own for every name, whatever is drawn elsewhere."""
    digest = hashlib.sha256("/".join([str(seed), "data", *names]).encode()).digest()
    return random.Random(int.from_bytes(digest[:8], "big") >> 1)
