"""The shape of a network's layers as rows of the long table, over all prompts: cheap beside all that is measured."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from threadpoolctl import threadpool_limits

from nucleate.measures.baselines import averaged, regrouped_tasks, shuffled_labels
from nucleate.measures.geometry import effective_rank, intrinsic_dimension, parent_cosine
from nucleate.probing.design import Design
from nucleate.probing.layers import Rows

MOST_POINTS = 2000  # prompts of which rank and dimension are told, drawn at random: their cost goes with the square


def geometry_rows(design: Design, states: np.ndarray, layers: Sequence[int]) -> Rows:
    """Effective rank and intrinsic dimension of each layer; of labels in two levels the parent's cosine too, beside
    what shuffled and regrouped labels give. `states` is (layer, instance, width). The same rows for any number of
    threads."""
    count = len(design.kept)
    drawn = np.random.default_rng(design.seed_of("geometry")).permutation(count)[:MOST_POINTS]
    drawn.sort()
    unit, dealt = _dealt_labels(design)

    def look(place: int) -> Rows:
        here = np.asarray(states[place])
        found: list[tuple[str | None, str, str, float | None]] = [
            (None, "none", "effective_rank", effective_rank(here[drawn])),
            (None, "none", "intrinsic_dimension", intrinsic_dimension(here[drawn])),
        ]
        if dealt:
            points = averaged(here, unit)[0]
            for control, deals in dealt.items():
                told = [one for deal in deals if (one := parent_cosine(points, *deal)) is not None]
                if not told:
                    break  # `none` comes first: what dealt labels give stands beside it, or nowhere
                found.append(("distribution", control, "parent_cosine", float(np.mean(told))))
        where = {"split": "all", "layer": layers[place], "space": "raw"}
        return [
            {**where, "labels": labels, "control": control, "measure": measure, "value": value}
            for labels, control, measure, value in found
            if value is not None
        ]

    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(design.effort.threads) as pool:
        return [row for rows in pool.map(look, range(len(layers))) for row in rows]


def _dealt_labels(design: Design) -> tuple[np.ndarray, dict[str, list[tuple[np.ndarray, np.ndarray]]]]:
    """(prompt,) the instruction that it counts for, under each of its distributions by itself; and control -> deals of
    the (distribution, task) of these: nothing where a distribution is unknown or no task has two."""
    labels = design.labels
    unit = np.unique(np.stack([labels.instruction, labels.distribution]), axis=1, return_inverse=True)[1].reshape(-1)
    first = np.sort(np.unique(unit, return_index=True)[1])  # in the order of `averaged`
    child, parent = labels.distribution[first], labels.task[first]
    families = np.unique(np.stack([parent, child]), axis=1)[0]
    if (child < 0).any() or np.bincount(families).max() < 2:
        return unit, {}
    dealing = {"seed": design.seed_of("geometry", "labels"), "repeats": design.repeats}
    owner = np.zeros(child.max() + 1, dtype=np.int64)
    owner[child] = parent
    shuffled = shuffled_labels(child, labels.instruction[first], **dealing)
    return unit, {
        "none": [(child, parent)],
        "shuffled": [(deal, owner[deal]) for deal in shuffled],
        "regrouped": [(child, deal) for deal in regrouped_tasks(parent, child, **dealing)],
    }
