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
    right: list[list[list[int]]]  # the same by epoch, set of prompts and prompt, of the head alone
    switch: Switch | None = None
    switch_rate: float | None = None
    errors: Mapping[int, Errors] = field(default_factory=dict)  # by layer, at the best rate and threshold there

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
    """Every method at its best; of equal heads the one that also ends its outputs most often, then the earliest epoch
    and the lowest rate; of equal switches the surest, then the threshold nearest to one half. `told` hears what was
    taught, what share of all that is and whether it was there already."""
    memory = sides["lesson"].memory
    width, vocabulary = memory.states.shape[1], memory.logits.shape[1]
    ranks: dict[str, int | None] = {"head": min(settings.rank, width)}
    if width * vocabulary <= _AFFORDABLE:
        ranks["direct"] = None
    piece = 1 / (len(ranks) * len(settings.rates) + len(layers))

    def part(name: str, words: str, make: Callable[[], tuple[dict[str, Tensor], Any]]) -> tuple[dict[str, Tensor], Any]:
        begun = saved.holds(name)
        made = saved.part(name, "train", make)
        told(f"teaching: {words}", piece, begun)
        return made

    methods: dict[str, Method] = {}
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
        errors = {layer: Errors(*found[kind][2:]) for layer, (_, found) in by_layer.items()}
        layer = max(errors, key=lambda one: errors[one].order)
        tensors, found = by_layer[layer]
        switch = _filled(Switch(width, kind, layer=layer), tensors, f"{kind}/")
        rate, switch.threshold, *_ = found[kind]
        behind = replace(methods["head"], switch=switch, switch_rate=rate, errors=errors)
        methods[name] = replace(behind, curve=_curve_behind(behind, sides))
    return {arm: methods[arm] for arm in METHODS if arm in methods}


def _curve_behind(method: Method, sides: Mapping[str, TeachingSet]) -> list[float]:
    """Source accuracy on validation, epoch by epoch of the head, where the switch lets it answer."""
    asked = [(method.on(side.ends), side.answers(None)[0]) for side in _chosen_by(sides)]
    return [
        float(np.mean([np.where(on, now, before).mean() for now, (on, before) in zip(right, asked, strict=True)]))
        for right in method.right
    ]


def _chosen_by(sides: Mapping[str, TeachingSet]) -> list[TeachingSet]:
    """What of the source the methods are chosen by: held-out instructions, and held-out inputs where there are some."""
    return [sides[name] for name in ("validation", "validation_new_inputs") if name in sides]


def better_switch(methods: Mapping[str, Method]) -> str:
    """Whichever tells the source from all others better on validation; of equals the surer one."""
    best = {name: max(one.order for one in methods[name].errors.values()) for name in SWITCHED}
    return max(best, key=lambda name: best[name])


def _filled(module: Any, tensors: Mapping[str, Tensor], stem: str) -> Any:
    """With the weights whose names begin so."""
    module.load_state_dict({key.removeprefix(stem): one for key, one in tensors.items() if key.startswith(stem)})
    return module


def _pace(settings: RedirectSettings, rate: float) -> SwitchTraining:
    return SwitchTraining(settings.epochs, settings.batch, rate, seed=stream(settings.seed, "redirect"))


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
    for _ in learn_head(head, memory, _pace(settings, rate)):
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
    """Both switches at one layer, each at its best rate and threshold: weights; rate, threshold and errors on
    validation."""
    memory, examples = sides["lesson"].memory, others.examples[layer]
    memory = replace(memory, ends=sides["lesson"].ends[layer])
    chosen_by = [side.ends[layer] for side in _chosen_by(sides)]
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
