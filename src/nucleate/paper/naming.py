"""What a pre-training is taught (§4.1): instructions that name their task, or instructions alone.

Both of all tasks, or of the half that is not kept for fine-tuning."""

import random
from collections.abc import Callable, Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerFast

from nucleate.data.dataset import Dataset, Instance
from nucleate.model.prefix_tree import Group
from nucleate.paper.instances import Members
from nucleate.streams import stream

TASK_TOKEN = "<task>"  # noqa: S105 -- after it, the next token names the task


def name_of(task: str) -> str:
    """The word that stands for a task."""
    return f"<{task}>"


def named(dataset: Dataset) -> Dataset:
    """Every instruction once, the special token as its input and the name of its task as its output."""
    first: dict[str, Instance] = {}
    for one in dataset.instances:
        first.setdefault(one.instruction, one)
    instruction_of = {one.instance: one.instruction for one in dataset.instances}
    instances = [
        replace(
            one,
            input=TASK_TOKEN,
            output=name_of(one.task),
            mapping=None,
            origin=None if one.origin is None else first[instruction_of[one.origin]].instance,
        )
        for one in first.values()
    ]
    mappings = {task: {TASK_TOKEN: name_of(task)} for task in dataset.mappings}
    return replace(dataset, instances=tuple(instances), mappings=mappings)


def instructions_alone(tokenizer: PreTrainedTokenizerFast, instances: Sequence[Instance]) -> Members:
    """Instructions alone, each a group of its own so that a step holds the same ones as in the other pre-training."""
    rows = tokenizer([one.instruction for one in instances])["input_ids"]
    return Members([Group(tuple(row[:-1]), (tuple(row[-1:]),)) for row in rows], tuple(instances))


def halves(dataset: Dataset, *, seed: int) -> tuple[Dataset, Dataset]:
    """Two halves of the tasks: for pre-training, and for fine-tuning. Those in validation are halved for themselves,
    and so are those with hard examples, which stay with their originals."""
    task_of = {one.instance: one.task for one in dataset.instances}
    root = {one.task: task_of[one.origin] for one in dataset.instances if one.origin is not None}
    validated = {one.task for one in dataset.select("validation")}
    kinds: dict[tuple[bool, bool], list[str]] = {}
    for task in sorted({one.task for one in dataset.instances} - set(root)):
        kinds.setdefault((task in validated, task in root.values()), []).append(task)
    rng = random.Random(stream(seed, "halves"))
    dealt = [task for _, tasks in sorted(kinds.items()) for task in rng.sample(tasks, len(tasks))]
    first = set(dealt[1::2])

    def is_first(task: str) -> bool:
        return root.get(task, task) in first

    return _only(dataset, is_first), _only(dataset, lambda task: not is_first(task))


def _only(dataset: Dataset, wanted: Callable[[str], bool]) -> Dataset:
    instances = tuple(one for one in dataset.instances if wanted(one.task))
    mappings = {task: pairs for task, pairs in dataset.mappings.items() if wanted(task)}
    return replace(dataset, instances=instances, mappings=mappings)
