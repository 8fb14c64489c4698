"""The methods, taught from states that were read once: heads at several rates, switches at several layers.

What is kept of each is chosen on validation: of a head the rate and the epoch, by the source's wished outputs; of a
switch the rate and the layer, by how well it tells the source from all others, and then the threshold. Where inputs
are held out to choose by, they weigh as much as the instructions. Every switch stands before the same head, the
low-rank one, or before the adapter that `tuning.py` has tuned.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import softplus

from nucleate.long_table import HEADS, METHODS
from nucleate.model.switch import (
    KINDS,
    Head,
    Switch,
    SwitchTraining,
    TargetStates,
    TeachingSet,
    learn_head,
    learn_switch,
    logit_of,
)
from nucleate.model.training import weights
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import Ends, Others, SavedParts
from nucleate.redirecting.switched import Expert
from nucleate.streams import stream

SWITCHED = {f"{kind}_switch": kind for kind in KINDS}  # method -> the kind of its switch
CHOSEN_BY = ("validation", "validation_new_inputs")  # sides of the source
THRESHOLDS = (0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99)
_NAMES = METHODS | HEADS  # of a real model the head alone is tuned
_EPOCHS, _STEPS = 30, 100  # at least
_AFFORDABLE = 40_000_000  # weights of a whole head: above that, teaching it takes longer than all the rest


class Errors(NamedTuple):
    """Of a switch at one threshold: shares of the source that it misses and of all others for which it is on, and
    its loss in nats, in which both sides weigh the same."""

    missed: float
    falsely_on: float
    loss: float

    @property
    def order(self) -> tuple[float, float]:
        """The better the higher: the share that it decides rightly, source and others weighing the same; of equals
        the one that is surer."""
        return 1 - (self.missed + self.falsely_on) / 2, -self.loss


@dataclass(frozen=True, eq=False)
class Answered:
    """What an adapter answers, of the source by side as `TeachingSet.answers` tells it."""

    sides: Mapping[str, tuple[np.ndarray, ...]]
    others: np.ndarray  # (instance,) the likeliest next token


@dataclass(frozen=True, eq=False)
class Method:
    """What one method has come to."""

    rate: float  # of its head or adapter
    epoch: int
    expert: Expert
    curve: list[float]  # source accuracy on validation, epoch by epoch, at that rate
    right: list[list[list[int]]]  # the same by epoch, set of prompts and prompt, of that alone
    switch: Switch | None = None
    switch_rate: float | None = None
    errors: Mapping[int, Errors] = field(default_factory=dict)  # by layer, at the best rate there
    answered: Answered | None = None  # of an adapter; what a head answers is made of states

    def on(self, ends: Ends) -> np.ndarray:
        """(instance,) bool: where its head or adapter answers."""
        if self.switch is None:
            return np.ones(len(next(iter(ends.values()))), dtype=bool)
        return self.switch.is_on(ends[self.switch.layer or 0])

    def logits(self, ends: Ends) -> Tensor:
        """(instance,) of the switch: how surely each is of the source."""
        assert self.switch is not None
        with torch.no_grad():
            return self.switch(ends[self.switch.layer or 0])


def errors_at(threshold: float, source: Sequence[Tensor], others: Tensor) -> Errors:
    """From the logits of a switch; several sets of source prompts weigh the same."""
    cut = logit_of(threshold)
    surprise = np.mean([softplus(-one).mean().item() for one in source]) + softplus(others).mean().item()
    missed = np.mean([(one <= cut).double().mean().item() for one in source])
    return Errors(float(missed), (others > cut).double().mean().item(), float(surprise) / 2)


def threshold_for(source: Sequence[Tensor], others: Tensor, *, units: int) -> float:
    """One half, unless another one errs less by more than a standard error: then the nearest to one half that does not.
    Of the source so many units (instructions) were asked, whose prompts are hit or missed together: of one or two no
    threshold can be told from another."""
    found = {threshold: errors_at(threshold, source, others) for threshold in THRESHOLDS}
    best = max(found.values(), key=lambda one: one.order)
    sides = ((best.missed, units), (best.falsely_on, len(others)))
    variance = sum(_share(one, n) * (1 - _share(one, n)) / (n + 1) for one, n in sides) / 4
    near = [one for one in found if found[one].order[0] >= best.order[0] - variance**0.5]
    return min(near, key=lambda one: abs(one - 0.5))


def _share(share: float, count: int) -> float:
    """Drawn a little to one half, so that none of few is not taken for never."""
    return (share * count + 0.5) / (count + 1)


def teach(
    settings: RedirectSettings,
    layers: Sequence[int],
    sides: Mapping[str, TeachingSet],
    others: Others,
    saved: SavedParts,
    told: Callable[[str, float, bool], None],
    adapter: Method | None = None,
) -> dict[str, Method]:
    """Every method at its best, with an `adapter` in place of the heads; of equal heads the one that also ends its
    outputs most often, then the earliest epoch and the lowest rate; of equal switches the surest. `told` hears what was
    taught, what share of all that is and whether it was there already."""
    memory = sides["lesson"].memory
    width, vocabulary = memory.states.shape[1], memory.logits.shape[1]
    ranks: dict[str, int | None] = {} if adapter else {"head": min(settings.rank, width)}
    if not adapter and width * vocabulary <= _AFFORDABLE:
        ranks["direct"] = None
    piece = (0.2 if adapter else 1) / (len(ranks) * len(settings.rates) + len(layers))

    def part(name: str, words: str, make: Callable[[], tuple[dict[str, Tensor], Any]]) -> tuple[dict[str, Tensor], Any]:
        begun = saved.holds(name)
        told(f"teaching: {words}", 0.0, False)
        made = saved.part(name, "train", make)
        told(f"teaching: {words}", piece, begun)
        return made

    methods: dict[str, Method] = {"adapter": adapter} if adapter else {}
    for arm, rank in ranks.items():
        tried = []
        for rate in settings.rates:
            lesson = partial(_head_lesson, settings, sides, rank, rate)
            tensors, found = part(f"{arm}-{rate:g}", f"{_NAMES[arm]} at {rate:g}", lesson)
            levels = list(zip(found["wished"], found["ended"], strict=True))
            tried.append((max(levels), -levels.index(max(levels)), -rate, found, tensors))
        _, place, less, found, tensors = max(tried, key=lambda one: one[:3])
        head = _filled(Head(width, vocabulary, rank=rank), tensors, "head/")
        methods[arm] = Method(-less, 1 - place, head, found["wished"], found["right"])
    by_layer = {
        layer: part(
            f"switches-{layer}", f"switches at layer {layer}", partial(_switches, settings, sides, others, layer)
        )
        for layer in layers
    }
    for name, kind in SWITCHED.items():
        errors = {layer: Errors(*found[kind][1:]) for layer, (_, found) in by_layer.items()}
        layer = max(errors, key=lambda one: errors[one].order)
        tensors, found = by_layer[layer]
        switch = _filled(Switch(width, kind, layer=layer), tensors, f"{kind}/")
        behind = replace(adapter or methods["head"], switch=switch, switch_rate=found[kind][0], errors=errors)
        switch.threshold = settings.threshold or threshold_for(
            [behind.logits(side.ends) for side in _chosen_by(sides)],
            behind.logits(others.choosing),
            units=len(sides["validation"].memory.branches),
        )
        methods[name] = replace(behind, curve=_curve_behind(behind, sides))
    return {arm: methods[arm] for arm in HEADS | METHODS if arm in methods}


def _curve_behind(method: Method, sides: Mapping[str, TeachingSet]) -> list[float]:
    """Source accuracy on validation, epoch by epoch of the head, where the switch lets it answer."""
    asked = [(method.on(side.ends), side.answers(None)[0]) for side in _chosen_by(sides)]
    return [
        float(np.mean([np.where(on, now, before).mean() for now, (on, before) in zip(right, asked, strict=True)]))
        for right in method.right
    ]


def _chosen_by(sides: Mapping[str, TeachingSet]) -> list[TeachingSet]:
    """What of the source the methods are chosen by: held-out instructions, and held-out inputs where there are some."""
    return [sides[name] for name in CHOSEN_BY if name in sides]


def better_switch(methods: Mapping[str, Method]) -> str:
    """Whichever tells the source from all others better on validation; of equals the surer one."""
    best = {name: max(one.order for one in methods[name].errors.values()) for name in SWITCHED}
    return max(best, key=lambda name: best[name])


def _filled(module: Any, tensors: Mapping[str, Tensor], stem: str) -> Any:
    """With the weights whose names begin so."""
    module.load_state_dict({key.removeprefix(stem): one for key, one in tensors.items() if key.startswith(stem)})
    return module


def _pace(settings: RedirectSettings, memory: TargetStates, rate: float) -> SwitchTraining:
    """Of few prompts an epoch is a single step, and thirty of them teach a head no end to its outputs."""
    steps = math.ceil(len(memory.ends) / settings.batch)
    epochs = settings.epochs or max(_EPOCHS, math.ceil(_STEPS / steps))
    return SwitchTraining(epochs, settings.batch, rate, seed=stream(settings.seed, "redirect"))


def _head_lesson(
    settings: RedirectSettings, sides: Mapping[str, TeachingSet], rank: int | None, rate: float
) -> tuple[dict[str, Tensor], dict[str, list[Any]]]:
    """A head at one learning rate: its weights at its best epoch, and by epoch the shares of validation that got the
    wished output, and its end too, and which did, by set of prompts. Ends where nothing better can come."""
    memory = sides["lesson"].memory
    head = Head(memory.states.shape[1], memory.logits.shape[1], rank=rank, seed=stream(settings.seed, "head"))
    tensors: dict[str, Tensor] = {}
    found: dict[str, list[Any]] = {"wished": [], "ended": [], "right": []}
    best = (-1.0, -1.0)
    for _ in learn_head(head, memory, _pace(settings, memory, rate)):
        answers = [side.answers(head) for side in _chosen_by(sides)]
        wished, ended = (float(np.mean([one[kind].mean() for one in answers])) for kind in (0, 1))
        found["wished"].append(wished)
        found["ended"].append(ended)
        found["right"].append([one[0].astype(int).tolist() for one in answers])
        if (wished, ended) > best:
            best, tensors = (wished, ended), {f"head/{key}": one for key, one in weights(head).items()}
        if wished == ended == 1:
            break
    return tensors, found


def _switches(
    settings: RedirectSettings, sides: Mapping[str, TeachingSet], others: Others, layer: int
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Both switches at one layer, each at its best rate: weights; rate and errors on validation, where it is on above
    one half, or the threshold that is asked for."""
    memory = replace(sides["lesson"].memory, ends=sides["lesson"].ends[layer])
    tensors: dict[str, Tensor] = {}
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        best: Errors | None = None
        for rate in settings.rates:
            switch = Switch(memory.ends.shape[1], kind, seed=stream(settings.seed, "switch"))
            learn_switch(switch, memory, others.examples[layer], _pace(settings, memory, rate))
            with torch.no_grad():
                ours, theirs = [switch(side.ends[layer]) for side in _chosen_by(sides)], switch(others.choosing[layer])
            errors = errors_at(settings.threshold or 0.5, ours, theirs)
            if best is None or errors.order > best.order:
                best, found[kind] = errors, [rate, *errors]
                tensors |= {f"{kind}/{key}": one for key, one in weights(switch).items()}
    return tensors, found
