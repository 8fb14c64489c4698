"""Instances by split, as groups to feed to a network."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from transformers import PreTrainedTokenizerFast

from nucleate.data.dataset import Dataset, Instance
from nucleate.model.prefix_tree import Group
from nucleate.model.states import instances_as_groups

MEASURED = ("subset", "validation", "test")  # their neighbours are sought in `train`, which holds the subset too


@dataclass(frozen=True)
class Members:
    """Instances of some splits as groups to feed, and themselves in the order of those groups."""

    groups: list[Group]
    instances: tuple[Instance, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, instances: Sequence[Instance], **forms: Any) -> Self:
        """`forms`: what makes the texts of a prompt and its answer, as `instances_as_groups` takes them."""
        groups, places = instances_as_groups(tokenizer, instances, **forms)
        return cls(groups, tuple(instances[place] for place in places))


def of_splits(dataset: Dataset, splits: Iterable[str]) -> list[Instance]:
    """The instances of these splits, one split after the other."""
    return [instance for split in splits for instance in dataset.select(split)]


def taught(dataset: Dataset) -> list[Instance]:
    """The training instances with the outputs that they are taught: of a stochastic mapping some have the second one.
    Whatever is measured goes by the rows as they are, with the likeliest output as the right answer."""
    seconds: dict[str, dict[str, str]] = dataset.settings.get("second_outputs", {})
    numbers = set(dataset.settings.get("taught_second", ()))
    return [
        replace(one, output=seconds.get(one.task, {}).get(one.input, one.output)) if one.instance in numbers else one
        for one in dataset.select("train")
    ]


def in_split(instance: Instance, split: str) -> bool:
    """Is it there? `subset` is a part of `train`."""
    return instance.in_subset if split == "subset" else instance.split == split


def places_of(members: Sequence[Instance], split: str) -> np.ndarray:
    """(instance,) which of the members are in a split."""
    return np.array([place for place, instance in enumerate(members) if in_split(instance, split)], dtype=np.int64)


def candidates_of(
    tokenizer: PreTrainedTokenizerFast, mappings: Mapping[str, Mapping[str, str]], members: Sequence[Instance]
) -> list[tuple[int, ...]]:
    """Each instance's own task's outputs, as tokens."""
    code = tokenizer.get_vocab()
    outputs = {task: tuple(sorted({code[o] for o in m.values()})) for task, m in mappings.items()}
    return [outputs[instance.task] for instance in members]
