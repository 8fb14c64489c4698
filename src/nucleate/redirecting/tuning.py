"""An adapter tuned on the wished outputs of the source, and what it answers.

Unlike a head it changes every state, so what it answers cannot be made of states that were read before: the prompts
that are judged by are read once more, through it. It is tuned for few steps, and kept as it was where validation was
answered best; an epoch is ten steps.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nucleate.model.adapter import Adapter, linear_layers, tune
from nucleate.model.packed_pass import where_it_runs
from nucleate.model.switch import TeachingSet, remember
from nucleate.model.texts import Prompt
from nucleate.model.training import weights
from nucleate.redirecting.study import Others, RedirectStudy, SavedParts, groups_of, likeliest_tokens
from nucleate.redirecting.switched import SwitchedModel
from nucleate.redirecting.teaching import CHOSEN_BY, Answered, Method
from nucleate.streams import stream

BATCH = 16  # prompts of a step, in whole instructions
STEPS = 10  # of an epoch
EPOCHS, _PATIENCE = 10, 3  # at most; without anything better on validation
_JUDGED = ("test", "new_inputs")


def tuned_adapter(
    study: RedirectStudy,
    model: SwitchedModel,
    lessons: Mapping[str, Sequence[Prompt]],
    sides: Mapping[str, TeachingSet],
    others: Others,
    saved: SavedParts,
    told: Callable[[str, float, bool], None],
) -> Method:
    """The adapter by itself, in front of which the switches will stand. `told` hears what is done, what share of all
    teaching it was and whether it was there already."""
    settings, adapter = study.settings, fresh_adapter(study, model)

    def lesson() -> tuple[dict[str, Tensor], Any]:
        return adapter_lesson(study, model, adapter, lessons, sides, lambda text: told(text, 0.0, False))

    def answers() -> tuple[dict[str, Tensor], None]:
        found = {"others": torch.from_numpy(_others_through(study, model, adapter, others))}
        for name in _JUDGED:
            if name in sides:
                three = answers_through(model, adapter, lessons, sides, name)
                found |= {f"{name}/{place}": torch.from_numpy(one) for place, one in enumerate(three)}
        return found, None

    begun = saved.holds("adapter")
    told("tuning an adapter", 0.0, False)
    tensors, found = saved.part("adapter", "train", lesson)
    adapter.load_state_dict(tensors)
    told("what the adapter answers", 0.5, begun)
    begun = saved.holds("adapter-answers")
    said, _ = saved.part("adapter-answers", "read", answers)
    told("what the adapter answers", 0.3, begun)
    by_side = {
        name: tuple(said[f"{name}/{place}"].numpy() for place in range(3)) for name in _JUDGED if f"{name}/0" in said
    }
    levels = list(zip(found["wished"], found["ended"], strict=True))
    epoch = levels.index(max(levels)) + 1
    answered = Answered(by_side, said["others"].numpy())
    return Method(settings.adapter_rate, epoch, adapter, found["wished"], found["right"], answered=answered)


def fresh_adapter(study: RedirectStudy, model: SwitchedModel) -> Adapter:
    """Beside every linear layer of the network; it changes nothing yet."""
    shapes, seed = linear_layers(model.network), stream(study.settings.seed, "adapter")
    return Adapter(shapes, rank=study.settings.rank, seed=seed).to(where_it_runs(model.network)[0])


def adapter_lesson(
    study: RedirectStudy,
    model: SwitchedModel,
    adapter: Adapter,
    lessons: Mapping[str, Sequence[Prompt]],
    sides: Mapping[str, TeachingSet],
    told: Callable[[str], None] = lambda text: None,
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """Tune the adapter from what it is: its weights at its best epoch, and by epoch the shares of validation that got
    the wished output, and its end too, and which did. Ends where nothing better can come, or has come for a while."""
    settings = study.settings
    steps = STEPS * (settings.epochs or EPOCHS)
    tensors: dict[str, Tensor] = {}
    found: dict[str, list[Any]] = {"wished": [], "ended": [], "right": []}
    best, since = (-1.0, -1.0), 0
    for step in tune(
        model.network,
        adapter,
        groups_of(model.tokenizer, lessons, "lesson"),
        steps=steps,
        batch=BATCH,
        learning_rate=settings.adapter_rate,
        seed=stream(settings.seed, "tune"),
    ):
        if step % STEPS:
            continue
        told(f"tuning an adapter: step {step} of at most {steps}")
        answers = [answers_through(model, adapter, lessons, sides, name) for name in CHOSEN_BY if name in sides]
        wished, ended = (float(np.mean([one[kind].mean() for one in answers])) for kind in (0, 1))
        found["wished"].append(wished)
        found["ended"].append(ended)
        found["right"].append([one[0].astype(int).tolist() for one in answers])
        since += 1
        if (wished, ended) > best:
            best, since, tensors = (wished, ended), 0, weights(adapter)
        if wished == ended == 1 or (since >= _PATIENCE and best[0] > 0):
            break
    return tensors, found


def answers_through(
    model: SwitchedModel,
    adapter: Adapter,
    lessons: Mapping[str, Sequence[Prompt]],
    sides: Mapping[str, TeachingSet],
    name: str,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What `TeachingSet.answers` tells of a side, through the adapter."""
    with adapter.on(model.network):
        memory = remember(model.network, groups_of(model.tokenizer, lessons, name), answers_only=True)
    return replace(sides[name], memory=memory, before=None).answers(None)


def _others_through(study: RedirectStudy, model: SwitchedModel, adapter: Adapter, others: Others) -> np.ndarray:
    with adapter.on(model.network):
        return likeliest_tokens(study, model, others.instances)


def passes_of(study: RedirectStudy) -> float:
    """How many prompts are read besides, as it were, where an adapter is tuned: a step costs about three readings."""
    counts = {name: len(side) for name, side in study.dealt.sides.items()}
    epochs = study.settings.epochs or EPOCHS
    tuned = 3 * epochs * STEPS * BATCH + epochs * sum(counts[name] for name in CHOSEN_BY)
    return math.ceil(tuned + sum(counts[name] for name in _JUDGED) + len(study.dealt.asked))
