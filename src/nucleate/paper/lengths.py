"""About how long the experiments take beside each other, so that one that runs all of them can say how far it is."""

from nucleate.config import Config
from nucleate.paper.trainings import is_measured

_MOMENT = 0.5  # what measuring the states takes, in epochs of the main training; this and the rest at size tiny
_UNTRAINED = 4.0  # and the untrained network, the n-grams and the kernels that are compiled meanwhile
_MOVING = 3.0  # moving states at the end
_FIRST = 0.3  # an epoch of a pre-training, which sees each instruction once
_ATTEMPT = 0.025  # an epoch of a method of alignment


def lengths_of(config: Config) -> dict[str, float]:
    """Verb -> its length, in epochs of the main training."""
    epochs, settings = config.training.epochs, config.align
    moments = sum(is_measured(config.measure, epoch, epochs) for epoch in range(1, epochs + 1))
    pretraining = 2 * _FIRST * config.pretrain.epochs + 5 * config.pretrain.finetuning * epochs
    attempts = 2.4 * (settings.rates + 2) + 2.2 * (settings.rates + 6)  # the MLP switch takes longest, the head least
    return {
        "learn": epochs + _MOMENT * moments + _UNTRAINED + _MOVING,
        "pretrain": pretraining * (1.5 if config.pretrain.unseen == "yes" else 1),  # the same on half of the tasks
        "align": epochs + _ATTEMPT * settings.epochs * attempts,
    }
