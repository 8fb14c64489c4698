"""The four methods, taught from states that were read once: heads at several rates, switches at several layers.

What is kept of each is chosen on validation: of a head the rate and the epoch, by the source's wished outputs; of a
switch the rate, the layer and the threshold, by how well it tells the source from all others. Where inputs are held
out to choose by, they weigh as much as the instructions. Every switch stands before the same head, the low-rank one.
"""

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
    TeachingSet,
    learn_head,
    learn_switch,
    logit_of,
)
from nucleate.model.training import weights
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import Ends, Others, SavedParts
from nucleate.streams import stream

SWITCHED = {f"{kind}_switch": kind for kind in KINDS}  # method -> the kind of its switch
THRESHOLDS = (0.01, 0.05, *(n / 10 for n in range(1, 10)), 0.95, 0.99)
_NAMES = METHODS | HEADS  # of a real model the head alone is tuned
_AFFORDABLE = 40_000_000  # weights of a whole head: above that, teaching it takes longer than all the rest
_CHOSEN_BY = ("validation", "validation_new_inputs")


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
class Method:
    """What one method has come to."""

    rate: float  # of its head
    epoch: int
    head: Head
    curve: list[float]  # source accuracy on validation, epoch by epoch, at that rate
    switch: Switch | None = None
    switch_rate: float | None = None
    by_layer: Mapping[int, Errors] = field(default_factory=dict)  # on validation, at the best rate and threshold there

    def on(self, ends: Ends) -> np.ndarray:
        """(instance,) bool: where the second head answers."""
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
    missed = np.mean([(one <= cut).float().mean().item() for one in source])
    return Errors(float(missed), (others > cut).float().mean().item(), float(surprise) / 2)


def teach(
    settings: RedirectSettings,
    layers: Sequence[int],
    sides: Mapping[str, TeachingSet],
    others: Others,
    saved: SavedParts,
    told: Callable[[str, float, bool], None],
) -> dict[str, Method]:
    """Every method at its best; of equal heads the earliest epoch, then the lowest rate; of equal switches the surest,
    then the threshold nearest to one half. `told` hears what was taught, what share of all that is and whether it was
    there already."""
    memory = sides["lesson"].memory
    width, vocabulary = memory.states.shape[1], memory.logits.shape[1]
    ranks: dict[str, int | None] = {"head": min(settings.rank, width)}
    if width * vocabulary <= _AFFORDABLE:
        ranks["direct"] = None
    piece = 1 / (len(ranks) * len(settings.rates) + len(layers))

    def part(name: str, words: str, make: Callable[[], tuple[dict[str, Tensor], Any]]) -> tuple[dict[str, Tensor], Any]:
        begun = saved.holds(name)
        told(f"teaching: {words}", 0.0, False)
        made = saved.part(name, "train", make)
        told(f"teaching: {words}", piece, begun)
        return made

    best: dict[str, tuple[tuple[float, int, float], Method, list[list[np.ndarray]]]] = {}
    for arm, rank, rate in ((arm, rank, rate) for arm, rank in ranks.items() for rate in settings.rates):
        lesson = partial(_head_lesson, settings, sides, rank, rate)
        tensors, found = part(f"{arm}-{rate:g}", f"{_NAMES[arm]} at {rate:g}", lesson)
        curve, right = found["curve"], [[np.array(one, dtype=bool) for one in side] for side in found["right"]]
        epoch = curve.index(max(curve)) + 1
        if arm not in best or (max(curve), -epoch, -rate) > best[arm][0]:
            head = _filled(Head(width, vocabulary, rank=rank), tensors, "head/")
            best[arm] = (max(curve), -epoch, -rate), Method(rate, epoch, head, curve), right
    methods = {arm: method for arm, (_, method, _) in best.items()}
    chosen_by = [sides[name] for name in _CHOSEN_BY if name in sides]
    found_by_layer = {
        layer: part(
            f"switches-{layer}", f"switches at layer {layer}", partial(_switches, settings, sides, others, layer)
        )
        for layer in layers
    }
    for name, kind in SWITCHED.items():
        by_layer, chosen = {}, None
        for layer, (tensors, found) in found_by_layer.items():
            rate, threshold, *errors = found[kind]
            by_layer[layer] = Errors(*errors)
            if chosen is None or by_layer[layer].order > by_layer[chosen.layer or 0].order:
                chosen, chosen_rate = _filled(Switch(width, kind, layer=layer), tensors, f"{kind}/"), rate
                chosen.threshold = threshold
        assert chosen is not None
        method = replace(methods["head"], switch=chosen, switch_rate=chosen_rate, by_layer=by_layer)
        behind: list[list[float]] = []
        for side, rights in zip(chosen_by, best["head"][2], strict=True):
            on, before = method.on(side.ends), side.answers(None)[0]
            behind.append([float(np.where(on, now, before).mean()) for now in rights])
        methods[name] = replace(method, curve=np.mean(behind, axis=0).tolist())
    return {arm: methods[arm] for arm in METHODS if arm in methods}


def better_switch(methods: Mapping[str, Method]) -> str:
    """Whichever tells the source from all others better on validation; of equals the surer one."""
    best = {name: max(one.order for one in methods[name].by_layer.values()) for name in SWITCHED}
    return max(best, key=lambda name: best[name])


def _filled(module: Any, tensors: Mapping[str, Tensor], stem: str) -> Any:
    """With the weights whose names begin so."""
    module.load_state_dict({key.removeprefix(stem): one for key, one in tensors.items() if key.startswith(stem)})
    return module


def _pace(settings: RedirectSettings, rate: float) -> SwitchTraining:
    return SwitchTraining(settings.epochs, settings.batch, rate, seed=stream(settings.seed, "redirect"))


def _head_lesson(
    settings: RedirectSettings, sides: Mapping[str, TeachingSet], rank: int | None, rate: float
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A head at one learning rate: its weights at its best epoch, the curve of source accuracy on validation, and what
    was right there after each epoch. Ends where nothing better can come."""
    memory = sides["lesson"].memory
    chosen_by = [sides[name] for name in _CHOSEN_BY if name in sides]
    head = Head(memory.states.shape[1], memory.logits.shape[1], rank=rank, seed=stream(settings.seed, "head"))
    tensors: dict[str, Tensor] = {}
    curve: list[float] = []
    right: list[list[list[int]]] = [[] for _ in chosen_by]  # side, epoch, instance
    for _ in learn_head(head, memory, _pace(settings, rate)):
        for side, told in zip(chosen_by, right, strict=True):
            told.append(side.answers(head)[0].astype(int).tolist())
        curve.append(float(np.mean([np.mean(told[-1]) for told in right])))
        if curve[-1] > max(curve[:-1], default=-1):
            tensors = {f"head/{key}": one for key, one in weights(head).items()}
        if curve[-1] == 1:
            break
    return tensors, {"curve": curve, "right": right}


def _switches(
    settings: RedirectSettings, sides: Mapping[str, TeachingSet], others: Others, layer: int
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Both switches at one layer, each at its best rate and threshold: weights; rate, threshold and errors on
    validation."""
    memory, examples = sides["lesson"].memory, others.examples[layer]
    memory = replace(memory, ends=sides["lesson"].ends[layer])
    chosen_by = [sides[name].ends[layer] for name in _CHOSEN_BY if name in sides]
    thresholds = THRESHOLDS if settings.threshold is None else (settings.threshold,)
    tensors: dict[str, Tensor] = {}
    found: dict[str, list[float]] = {}
    for kind in KINDS:
        best = None
        for rate in settings.rates:
            switch = Switch(memory.ends.shape[1], kind, seed=stream(settings.seed, "switch"))
            learn_switch(switch, memory, examples, _pace(settings, rate))
            with torch.no_grad():
                ours, theirs = [switch(ends) for ends in chosen_by], switch(others.choosing[layer])
            for threshold in thresholds:
                errors = errors_at(threshold, ours, theirs)
                here = (*errors.order, -abs(threshold - 0.5))
                if best is None or here > best:
                    best, found[kind] = here, [rate, threshold, *errors]
                    own = {f"{kind}/{key}": one for key, one in weights(switch).items()}
        tensors |= own
    return tensors, found
