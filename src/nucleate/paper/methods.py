"""The four methods of alignment (§4.2): each at one learning rate, epoch by epoch, and the best of several rates."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from nucleate.config import Config
from nucleate.model.states import read_groups
from nucleate.model.switch import Head, Switch, SwitchTraining, learn_head, learn_switch
from nucleate.model.training import make_optimizer, train, weights
from nucleate.paper.corrections import Correction
from nucleate.paper.trainings import with_weights
from nucleate.streams import stream


@dataclass(frozen=True)
class EpochAnswers:
    """The unseen instances after one epoch of one attempt."""

    epoch: int
    rate: float
    answers: np.ndarray  # (asked,) tokens
    switched: np.ndarray | None  # (asked,) bool: where the second head answered; None without a switch
    taught: dict[str, torch.Tensor]  # the weights of the network (direct) or of the second head


def attempt(
    correction: Correction,
    method: str,
    rate: float,
    config: Config,
    *,
    examples: int = 1,
    earlier: EpochAnswers | None = None,
) -> Iterator[EpochAnswers]:
    """One method at one learning rate, epoch by epoch; on top of what an `earlier` correction of the same has left.

    The switch is taught before the head, through all of its epochs. Both may learn at once (they share nothing), but a
    model is chosen by its source accuracy alone, which does not see a switch that is still on for everything.
    """
    if method == "direct":
        yield from _attempt_directly(correction, rate, config, earlier)
        return
    pace, width = _pace(config, rate), correction.memory.states.shape[1]
    answers, states = correction.answers_and_states
    if earlier is not None:
        answers = earlier.answers
    head = Head(width, correction.memory.logits.shape[1])
    if method == "head" and earlier is not None:
        head.load_state_dict(earlier.taught)
    logits = _first_logits(correction.network.model, states)
    on = np.ones(len(answers), dtype=bool)
    if method != "head":
        switch = Switch(width, method.removesuffix("_switch"), seed=stream(config.seed, "switch"))
        learn_switch(switch, correction.memory, correction.examples(examples), pace)
        on = switch.is_on(states)
    for epoch in learn_head(head, correction.memory, pace):
        with torch.no_grad():
            new = (logits + head(states)).argmax(-1).numpy()
        switched = None if method == "head" else on
        yield EpochAnswers(epoch, rate, np.where(on, new, answers), switched, weights(head))


def _attempt_directly(
    correction: Correction, rate: float, config: Config, earlier: EpochAnswers | None
) -> Iterator[EpochAnswers]:
    """All weights learn, on the same loss; the head stays tied to the embedding."""
    pace = _pace(config, rate)
    model = with_weights(correction.network.model, earlier.taught if earlier else {})
    epochs = train(
        model,
        make_optimizer(model, learning_rate=rate, weight_decay=pace.weight_decay),
        correction.lesson.groups,
        epochs=pace.epochs,
        batch=pace.batch,
        learning_rate=rate,
        max_gradient_norm=pace.max_gradient_norm,
        packing="tree",  # whole instructions, as the switch and its head are taught
        seed=pace.seed,
        dtype=config.dtype,
    )
    for epoch in epochs:
        answers = read_groups(model, correction.asked.groups, layers=[]).predicted
        yield EpochAnswers(epoch.number, rate, answers, None, weights(model))


def _pace(config: Config, rate: float) -> SwitchTraining:
    return SwitchTraining(
        epochs=config.align.epochs,
        batch=config.align.batch,
        learning_rate=rate,
        seed=stream(config.seed, "align"),
        weight_decay=config.training.weight_decay,
        max_gradient_norm=config.training.max_gradient_norm,
    )


def _first_logits(model: PreTrainedModel, states: torch.Tensor) -> torch.Tensor:
    """(state, vocabulary) what the network's own head makes of last-layer states."""
    head = model.get_output_embeddings()
    with torch.no_grad():
        return head(states.to(head.weight.device)).float().cpu()


def best_attempt(
    correction: Correction, method: str, rates: Sequence[float], config: Config, **options: Any
) -> tuple[EpochAnswers, Iterator[tuple[int, np.ndarray]]]:
    """The outcome of the highest source accuracy on validation; ties: the earliest epoch, then the lowest rate. And
    the answers of its attempt, epoch by epoch, to the end for whoever asks for them.

    Nothing is computed that could not be chosen: after an accuracy of 1, only what reaches it earlier.
    """
    here = correction.places("validation") & correction.corrected
    chosen, level = None, (-1.0, 0, 0.0)
    curve: Iterator[tuple[int, np.ndarray]] = iter(())
    for rate in sorted(rates, reverse=True):  # the highest gets there first
        tried, heard = attempt(correction, method, rate, config, **options), dict[int, np.ndarray]()
        for outcome in tried:
            heard[outcome.epoch] = outcome.answers
            reached = (float((outcome.answers == correction.wished)[here].mean()), -outcome.epoch, -outcome.rate)
            if reached > level:
                chosen, level = outcome, reached
                curve = _all_of(heard, tried)
            if level[0] == 1 and outcome.epoch >= -level[1]:
                break
    assert chosen is not None
    return chosen, curve


def _all_of(heard: dict[int, np.ndarray], attempt: Iterator[EpochAnswers]) -> Iterator[tuple[int, np.ndarray]]:
    """Epochs that are behind an attempt, and then those to come."""
    yield from heard.items()
    yield from ((outcome.epoch, outcome.answers) for outcome in attempt)
