"""What a network shall answer otherwise from now on: the paper's redirection, and the harder ones that it leaves open.

Each is a `Correction`: instances with the outputs that are wished, to learn from and to be judged by.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.data.dataset import Dataset, Instance
from nucleate.model.networks import word_tokenizer
from nucleate.model.states import read_groups
from nucleate.model.switch import TargetStates, remember
from nucleate.paper.instances import Members, of_splits
from nucleate.streams import stream

UNSEEN = ("validation", "test")


@dataclass(frozen=True, eq=False)
class Network:
    """The trained network and what shall be corrected in it."""

    model: PreTrainedModel
    dataset: Dataset
    seed: int

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        vocabulary = self.dataset.vocabulary
        return word_tokenizer([*vocabulary["instruction"], *vocabulary["task"]])

    @property
    def pairs(self) -> dict[str, str]:
        """source task -> target task"""
        return dict(self.dataset.settings["source_targets"])

    @cached_property
    def redirection(self) -> "Correction":
        """The paper's."""
        return redirection_of(self, self.pairs)

    @cached_property
    def conditional(self) -> "Correction":
        return conditional_on_symbol(self, self.pairs)

    @cached_property
    def second(self) -> "Correction":
        """After the paper's: now the targets answer as the sources did, so that both have changed places."""
        return redirection_of(self, {target: source for source, target in self.pairs.items()}, earlier=self.pairs)

    def read(self, members: Members) -> tuple[np.ndarray, torch.Tensor]:
        """(instance,) its answers as tokens, and (instance, width) the states that head and switch are handed."""
        reading = read_groups(self.model, members.groups, layers=[-1])
        return reading.predicted, torch.from_numpy(reading.states[0])


@dataclass(frozen=True, eq=False)
class Correction:
    """Instances with the outputs that are wished from now on, and which of them that is a change for."""

    network: Network
    lesson: Members  # training instances that shall be answered otherwise: what all methods learn from
    others: dict[str, list[Instance]]  # training instances of each other task, of which the switch sees a few
    asked: Members  # unseen instances, of validation and test
    corrected: np.ndarray  # (asked,) bool
    of_source: np.ndarray  # (asked,) bool: of a source task (§4.2)
    paired: np.ndarray  # (asked,) bool: of a source or of a target task

    @cached_property
    def wished(self) -> np.ndarray:
        return np.array(self.network.tokenizer.convert_tokens_to_ids([str(i.output) for i in self.asked.instances]))

    @cached_property
    def answers_and_states(self) -> tuple[np.ndarray, torch.Tensor]:
        """Of the network before any correction."""
        return self.network.read(self.asked)

    @property
    def before(self) -> np.ndarray:
        return self.answers_and_states[0]

    @cached_property
    def memory(self) -> TargetStates:
        return remember(self.network.model, self.lesson.groups, answers_only=False)

    def examples(self, count: int) -> torch.Tensor:
        """(example, width) the states of that many instances of each other task, the same ones first."""
        seed = self.network.seed
        drawn = []
        for name, instances in self.others.items():
            rng = random.Random(stream(seed, "examples", name))
            drawn += rng.sample(instances, len(instances))[:count]
        return self.network.read(Members.of(self.network.tokenizer, drawn))[1]

    def places(self, split: str) -> np.ndarray:
        """(asked,) bool"""
        return np.array([instance.split == split for instance in self.asked.instances])


def redirection_of(network: Network, pairs: dict[str, str], earlier: dict[str, str] | None = None) -> Correction:
    """The sources of `pairs` answer as their targets do; those of `earlier` do so already."""
    dataset = network.dataset
    learnt = dataset.select("train")
    asked = [_answering_as(i, {**(earlier or {}), **pairs}, dataset) for i in of_splits(dataset, UNSEEN)]
    return _correction(
        network,
        lesson=[_answering_as(i, pairs, dataset) for i in learnt if i.task in pairs],
        others=_by_name((i.task, i) for i in learnt if i.task not in pairs),
        asked=asked,
        is_corrected=lambda instance: instance.task in pairs,
    )


def conditional_on_symbol(network: Network, pairs: dict[str, str]) -> Correction:
    """The sources of `pairs` answer as their targets do where one more symbol stands first; else as ever."""
    dataset = network.dataset
    symbol = random.Random(stream(network.seed, "symbol")).choice(dataset.vocabulary["instruction"])
    known = {instance.instruction for instance in dataset.instances}

    def marked(instances: Sequence[Instance]) -> list[Instance]:
        new = [replace(instance, instruction=f"{symbol} {instance.instruction}") for instance in instances]
        return [instance for instance in new if instance.instruction not in known]

    learnt, unseen = dataset.select("train"), of_splits(dataset, UNSEEN)
    plain = {id(instance) for instance in unseen}
    with_symbol = marked(learnt)
    kinds = [(i.task, i) for i in learnt] + [(f"{i.task} with symbol", i) for i in with_symbol if i.task not in pairs]
    return _correction(
        network,
        lesson=[_answering_as(i, pairs, dataset) for i in with_symbol if i.task in pairs],
        others=_by_name(kinds),
        asked=[*unseen, *(_answering_as(i, pairs, dataset) for i in marked(unseen))],
        is_corrected=lambda instance: instance.task in pairs and id(instance) not in plain,
    )


def _correction(
    network: Network,
    *,
    lesson: Sequence[Instance],
    others: dict[str, list[Instance]],
    asked: Sequence[Instance],
    is_corrected: Callable[[Instance], bool],
) -> Correction:
    members = Members.of(network.tokenizer, asked)
    corrected = np.array([is_corrected(instance) for instance in members.instances])
    of_source = np.array([instance.task in network.pairs for instance in members.instances])
    of_target = np.array([instance.task in network.pairs.values() for instance in members.instances])
    lessons = Members.of(network.tokenizer, lesson)
    return Correction(network, lessons, others, members, corrected, of_source, of_source | of_target)


def _answering_as(instance: Instance, pairs: dict[str, str], dataset: Dataset) -> Instance:
    """With its target's output, where it has one."""
    if instance.task not in pairs:
        return instance
    return replace(instance, output=dataset.mappings[pairs[instance.task]][instance.input])


def _by_name(named: Any) -> dict[str, list[Instance]]:
    found: dict[str, list[Instance]] = {}
    for name, instance in named:
        found.setdefault(name, []).append(instance)
    return found
