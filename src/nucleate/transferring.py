"""One network asked whether it uses a task's part of its states: states read, moved, answers counted, as rows.

`transfer` is the whole story. Prompts of one task are asked while their state in one layer is moved towards another
task's, by its mean or by a whole state, and by what must not do the same; `measures/transfer.py` says who is moved by
what, `model/patching.py` does it. The paper's experiment and the verb for any model both end here.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nucleate.data.dataset import Instance
from nucleate.long_table import STRENGTHS
from nucleate.measures.baselines import regrouped_tasks
from nucleate.measures.neighbours import Labels
from nucleate.measures.transfer import (
    FEWEST,
    CentredStates,
    Pairs,
    is_there,
    no_shorter,
    other_prompts,
    outcomes,
    pairs_of,
    random_shift,
    shares,
)
from nucleate.model.batches import layers_of
from nucleate.model.patching import answers_when_moved, blocks_of
from nucleate.model.prompts import PromptReading, read_prompts_states
from nucleate.model.texts import Prompt, prompts_of
from nucleate.progress import Progress, silent
from nucleate.refusal import Refused
from nucleate.streams import stream

MOST = 2000  # pairs of a split that are moved
DEALS = 20  # of regrouped tasks; each pair goes by one of them
_MOVES = 18  # of each pair in a layer: four arms with their controls
_WHOLE = "state"  # the arm in which a whole state is put in
ARMS = (*STRENGTHS, _WHOLE)
Row = dict[str, Any]
Sides = Mapping[str, tuple[np.ndarray, np.ndarray]]  # split -> places of the held-out instances, of the training ones


@dataclass(frozen=True)
class Transfer:
    """What was counted: rows of the long table, less what only the run knows; the same by pair of tasks; and what has
    to be said besides."""

    rows: list[Row]
    by_tasks: list[Row]  # with source and target
    notes: list[str]


def transfer(
    model: Any,
    tokenizer: Any,
    instances: Sequence[Instance],
    sides: Sides,
    *,
    units: Sequence[str] | None = None,
    untrained: Any = None,
    layers: Sequence[int] | None = None,
    template: str | None = None,
    chat: bool = False,
    seed: int,
    most: int = MOST,
    arms: Sequence[str] = ARMS,
    likelier: bool = False,
    beside: bool = True,
    reading: PromptReading | None = None,
    spill: Path | None = None,
    progress: Progress = silent,
) -> Transfer:
    """How often the answer follows when a state is moved to another task, by split, layer, arm and control.

    Layers are 0 to L-1, all unless given. `units` are what is held out as a whole, the instructions unless given: what
    shares a prompt's unit is left out of its own task's mean. Of each split's pairs that the network answers as their
    own task, at most `most` are moved, drawn at random. `untrained` is the same network with fresh weights: its own
    states, the same pairs. `spill` is a folder for states that are too large for memory.

    With `likelier` what counts is which of the two answers is the likelier one: of at most `most` pairs those are moved
    whose own answer is, and `transfer_turned` is the share of these whose other answer is afterwards. `beside` asks
    prompts of other tasks too. `reading` is what has been read of the instances already, at their inputs: then nothing
    is read again but by the untrained network (and of it the training instances alone), and all moves in a layer share
    the beginnings of their prompts."""
    labels = _labels_of(instances, units)
    depth = len(blocks_of(model))
    chosen = sorted(set(layers_of(model, range(depth) if layers is None else layers)))
    if depth in chosen:
        raise Refused(f"layer {depth} cannot be moved: nothing but the head follows it; take layers 0 to {depth - 1}")
    held = sum(len(some) for some, _ in sides.values()) / max(1, len(sides))
    # In tokens: a prompt has about twenty, a moved one three beside the stem that it shares.
    reading_cost, moving, behind = 20.0 * len(instances), 3.0 * min(4 * held, most), 0.0
    readings = (reading is None) + (untrained is not None)
    total = reading_cost * readings + moving * _MOVES * len(sides) * len(chosen) * len(arms) / len(ARMS) + 1

    def ask(network: Any, place: Path | None, some: np.ndarray, there: PromptReading | None) -> _Asked:
        def told(text: str, fraction: float | None) -> None:
            progress(text, None if fraction is None else min(1.0, (behind + fraction * reading_cost) / total))

        return _Asked(network, tokenizer, instances, labels, template, chat, chosen, some, there, place, told)

    everyone = np.arange(len(instances))
    asked = ask(model, spill, everyone, reading)
    notes = [*asked.notes]
    studies = []
    for split, places in sides.items():
        study = _Study.of(asked, split, *places, seed=seed, most=most, likelier=likelier)
        studies.append(study)
        notes += study.notes
    moved, behind = [study for study in studies if len(study.pairs) >= FEWEST], reading_cost * (reading is None)
    networks = {"none": asked}
    if untrained is not None and moved:
        some = everyone if reading is None else np.unique(np.concatenate([study.known for study in moved]))
        networks["untrained"] = ask(untrained, spill and spill / "untrained", some, None)
        behind += reading_cost
    rows = [row for study in studies for row in study.before()]
    by_tasks = [row for study in studies for row in study.before_by_tasks()]
    for study in moved:
        for number, layer in enumerate(chosen):
            for control, network in networks.items():
                doing = f"{study.split}, layer {layer}, {len(study.pairs):,} pairs"
                doing += ": untrained" if control == "untrained" else ""
                progress(doing, min(1.0, behind / total))
                for one in study.at(network, number, control, arms, beside, together=reading is not None):
                    place = {"arm": one.arm, "control": one.control, "split": study.split, "layer": layer}
                    place |= {"read": "input", "labels": "task", "space": "raw" if one.arm == _WHOLE else "centred"}
                    rows += [{**place, "measure": name, "value": value} for name, value in one.shares.items()]
                    by_tasks += [{**place, **row} for row in one.by_tasks(study)]
                    behind += moving
                    progress(doing, min(1.0, behind / total))
    progress("the answers are counted", 1.0)
    return Transfer(rows, by_tasks, notes)


def refuse_unpaired(instances: Sequence[Instance], sides: Sides, *, units: Sequence[str] | None = None) -> None:
    """Refuse prompts of which none could be moved, before any network reads them."""
    if not any(one.input for one in instances):
        raise Refused("the prompts have no inputs, so that no two tasks share one: give the column input")
    if not any(one.output for one in instances):
        raise Refused("the prompts have no outputs, so that no answer can follow: give the column output")
    labels = _labels_of(instances, units)
    if not any(len(pairs_of(labels[held], labels[known], seed=0)) for held, known in sides.values()):
        raise Refused(
            "no prompt has an input to which another task gives another output, so that nothing could be moved: give "
            "prompts whose tasks share inputs"
        )


def _labels_of(instances: Sequence[Instance], units: Sequence[str] | None) -> Labels:
    columns = ("input", "output", "task", "distribution")
    table: dict[str, Sequence[str | None]] = {n: [getattr(one, n) or None for one in instances] for n in columns}
    table["instruction"] = [one.instruction for one in instances] if units is None else units
    return Labels.coded(table)[0]


class _Asked:
    """What a network makes of the prompts: its states and its answers."""

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        instances: Sequence[Instance],
        labels: Labels,
        template: str | None,
        chat: bool,
        layers: Sequence[int],
        some: np.ndarray,
        reading: PromptReading | None,
        spill: Path | None,
        progress: Progress,
    ) -> None:
        """`some` of the instances are read, unless a `reading` of them is given."""
        self.right: np.ndarray | None = None  # (instance,) bool: answered rightly, where that is known already
        if reading is None:
            reading = read_prompts_states(
                model,
                tokenizer,
                [instances[place] for place in some],
                reads={"input": layers},
                template=template,
                chat=chat,
                spill=spill,
                progress=progress,
            )
        elif reading.predicted is not None:
            self.right = np.zeros(len(instances), dtype=bool)
            self.right[some[reading.kept]] = reading.predicted
        prompts = prompts_of(tokenizer, instances, reads=("input",), template=template, chat=chat)
        self.model, self.layers, self.instances, self.labels = model, layers, instances, labels
        self.states = reading.states["input"]  # (layer, readable instance, width)
        self.place_of = [reading.layers["input"].index(layer) for layer in layers]
        self.row_of = np.full(len(instances), -1)  # (instance,) its row there; -1 where it could not be read
        self.row_of[some[reading.kept]] = np.arange(len(reading.kept))
        self.placed = [(one.tokens, one.places[0]) if isinstance(one, Prompt) else ((), 0) for one in prompts]
        first = [one.answer[0] if isinstance(one, Prompt) and one.answer else -1 for one in prompts]
        self.answer = np.array(first, dtype=np.int64)  # (instance,) the first token of its output; -1 without one
        self.notes = [f"{len(reading.dropped)} prompts are left out: the first {why}" for _, why in reading.dropped[:1]]
        self.notes += [reading.note] if reading.note else []

    def answers(self, some: np.ndarray, **moved: Any) -> Any:
        """What it says to these instances."""
        return answers_when_moved(self.model, [self.placed[place] for place in some], **moved)

    def at(self, number: int, some: np.ndarray) -> np.ndarray:
        """(instance, width) the states of these in the number-th of its layers."""
        return np.asarray(self.states[self.place_of[number]][self.row_of[some]], dtype=np.float32)


@dataclass(frozen=True)
class _Moved:
    """What one arm did under one control."""

    arm: str
    control: str
    pairs: Pairs
    found: Mapping[str, np.ndarray]  # measure -> (pair,) bool
    beside: Mapping[str, float]

    @property
    def shares(self) -> dict[str, float]:
        return shares(self.found) | dict(self.beside)

    def by_tasks(self, study: "_Study") -> Iterator[Row]:
        yield from _by_tasks(study, self.pairs, self.found)


@dataclass(frozen=True, eq=False)
class _Study:
    """One split: its pairs, and all that does not depend on the layer."""

    asked: _Asked
    split: str
    held: np.ndarray  # places in the instances
    known: np.ndarray
    plain: np.ndarray  # (held,) the answers as they are; -1 where none was needed
    all_pairs: Pairs
    kept: np.ndarray | None  # (pair of all,) bool: answered as its own task; None without any pair
    pairs: Pairs  # those that are moved
    others: np.ndarray  # (pair,) a held-out prompt of neither task; -1 where there is none
    deals: np.ndarray | None  # (deal, known) tasks regrouped
    seed: int
    likelier: bool
    notes: list[str]

    @classmethod
    def of(
        cls, asked: _Asked, split: str, held: np.ndarray, known: np.ndarray, *, seed: int, most: int, likelier: bool
    ) -> "_Study":
        held, known = (some[asked.row_of[some] >= 0] for some in (held, known))
        labels, notes = asked.labels, list[str]()
        there, here = labels[known], labels[held]
        pairs = pairs_of(here, there, seed=stream(seed, "transfer", split, "donors"))
        ask = np.stack([asked.answer[held[pairs.instance]], asked.answer[known[pairs.donor]]])
        pairs, ask = pairs[(ask >= 0).all(axis=0)], ask[:, (ask >= 0).all(axis=0)]
        same = ask[0] == ask[1]
        if same.any():
            notes.append(f"{split}: {same.sum():,} pairs are left out, whose two answers begin with the same token")
        pairs = pairs[~same]
        nothing = CentredStates.of(np.zeros((len(known), 1), dtype=np.float32), there) if len(known) else None
        if nothing is not None and len(pairs):  # a task without another instruction has no mean
            pairs = pairs[is_there(nothing.task_shift(pairs, here))]
        sample = np.random.default_rng(stream(seed, "transfer", split, "sample"))
        if likelier and len(pairs) > most:
            notes.append(f"{split}: {most:,} of {len(pairs):,} pairs are asked")
            pairs = pairs[np.sort(sample.permutation(len(pairs))[:most])]
        plain, kept = np.full(len(held), -1), None
        if likelier and len(pairs):
            kept = _own_is_likelier(asked, held[pairs.instance], known[pairs.donor])
        elif len(pairs) and asked.right is not None:
            kept = asked.right[held[pairs.instance]]
        elif len(pairs):
            plain = asked.answers(held).predicted
            kept = plain[pairs.instance] == asked.answer[held[pairs.instance]]
        moved = pairs if kept is None else pairs[kept]
        if len(moved) > most:
            notes.append(f"{split}: {most:,} of {len(moved):,} pairs are moved")
            moved = moved[np.sort(sample.permutation(len(moved))[:most])]
        others = other_prompts(moved, here, seed=stream(seed, "transfer", split, "others"))
        unasked = np.unique(others[(others >= 0) & (plain[others] < 0)])
        if len(unasked):
            plain[unasked] = asked.answers(held[unasked]).predicted
        deals = None
        if len(known) and (there.distribution >= 0).all():
            deals = regrouped_tasks(there.task, there.distribution, seed=stream(seed, "regrouped"), repeats=DEALS)
        return cls(asked, split, held, known, plain, pairs, kept, moved, others, deals, seed, likelier, notes)

    def before(self) -> Iterator[Row]:
        """Of the answers as they are: the share of the pairs that is kept, and how many are moved."""
        same = {"arm": None, "control": "none", "split": self.split, "read": "input", "labels": "task"}
        if self.kept is not None:
            yield {**same, "measure": f"{self._stem}_kept", "value": float(self.kept.mean())}
        yield {**same, "measure": f"{self._stem}_pairs", "value": float(len(self.pairs))}
        units = self.asked.labels.instruction[self.held[self.pairs.instance]]
        yield {**same, "measure": f"{self._stem}_instructions", "value": float(len(np.unique(units)))}

    @property
    def _stem(self) -> str:
        return "transfer_turned" if self.likelier else "transfer"

    def before_by_tasks(self) -> Iterator[Row]:
        if self.kept is not None:
            for row in _by_tasks(self, self.all_pairs, {f"{self._stem}_kept": self.kept}, count=False):
                yield {"arm": None, "control": "none", "split": self.split, "layer": None, **row}

    def at(
        self, network: _Asked, number: int, control: str, arms: Sequence[str], beside: bool, *, together: bool
    ) -> Iterator[_Moved]:
        """Every arm in one layer of a network, the number-th of those asked for: of the one in question with its
        controls, of the untrained one alone. `together` in as few passes as possible, else one by one, for which the
        moved states need less memory."""
        layer, here, there = network.layers[number], network.labels[self.held], network.labels[self.known]
        known = network.at(number, self.known)
        centred = CentredStates.of(known, there)
        mean = centred.task_shift(self.pairs, here)
        shifts, of_layer = {control: mean}, ("transfer", self.split, layer)
        if control == "none":
            shifts["random"] = random_shift(mean, seed=stream(self.seed, *of_layer, "random"))
            if self.deals is not None:
                drawn = stream(self.seed, "transfer", self.split, "deals")
                dealt = centred.regrouped_shift(self.pairs, here, self.deals, seed=drawn)
                shifts["regrouped"] = no_shorter(dealt, mean)
            # As large as it is in the states: a push along an answer's direction that is long enough turns any answer.
            shifts["answers"] = centred.answer_shift(self.pairs, here, there)
        able = np.ones(len(self.pairs), dtype=bool)
        if self.likelier and control != "none":  # what another network holds likelier already cannot be turned
            able = _own_is_likelier(network, self.held[self.pairs.instance], self.known[self.pairs.donor])
        there_are = {name: np.flatnonzero(is_there(shift) & able) for name, shift in shifts.items()}
        enough = {name: some for name, some in there_are.items() if len(some) >= FEWEST}
        moves = [(arm, name) for arm in STRENGTHS if arm in arms for name in enough]
        for these in [moves] if together else [[one] for one in moves]:
            asked = [(enough[name], STRENGTHS[arm] * shifts[name][enough[name]]) for arm, name in these]
            for (arm, name), found in zip(these, self._moved(network, layer, asked), strict=True):
                others = self._others(network, layer, STRENGTHS[arm] * mean) if name == "none" and beside else {}
                yield _Moved(arm, name, self.pairs[enough[name]], found, others)
        if _WHOLE not in arms:
            return
        everyone, whole = np.arange(len(self.pairs)), known[self.pairs.donor]
        (found,) = self._moved(network, layer, [(everyone, whole)], replace=True)
        yield _Moved(_WHOLE, control, self.pairs, found, {})
        if control == "none":
            between = whole - network.at(number, self.held[self.pairs.instance])
            away = random_shift(between, seed=stream(self.seed, *of_layer, "random state"))
            (found,) = self._moved(network, layer, [(everyone, away)])
            yield _Moved(_WHOLE, "random", self.pairs, found, {})

    def _moved(
        self, network: _Asked, layer: int, moves: Sequence[tuple[np.ndarray, np.ndarray]], replace: bool = False
    ) -> list[dict[str, np.ndarray]]:
        """What comes of each of the moves: places of the pairs, and their states (pair, width)."""
        if not moves:
            return []
        pairs = self.pairs[np.concatenate([some for some, _ in moves])]
        states = np.concatenate([states.astype(np.float32) for _, states in moves])
        own = self.held[pairs.instance]
        ask = np.stack([network.answer[own], network.answer[self.known[pairs.donor]]], axis=1)
        said = network.answers(own, layer=layer, states=states, replace=replace, ask=ask)
        found = outcomes(said.predicted, said.logits, *ask.T)
        if self.likelier:
            found = {"transfer_turned": found["transfer_likelier"]}
        ends = np.cumsum([len(some) for some, _ in moves])[:-1]
        parts = {name: np.split(values, ends) for name, values in found.items()}
        return [{name: values[number] for name, values in parts.items()} for number in range(len(moves))]

    def _others(self, network: _Asked, layer: int, shift: np.ndarray) -> dict[str, float]:
        """The share of answers of other tasks that stay under the same shifts."""
        some = np.flatnonzero((self.others >= 0) & is_there(shift))
        if len(some) < FEWEST:
            return {}
        asked = self.others[some]
        said = network.answers(self.held[asked], layer=layer, states=shift[some].astype(np.float32))
        return {"transfer_others_unchanged": float((said.predicted == self.plain[asked]).mean())}


def _own_is_likelier(network: _Asked, own: np.ndarray, donor: np.ndarray) -> np.ndarray:
    """(pair,) bool: before anything is moved the own answer is likelier than the donor's."""
    logits = network.answers(own, ask=np.stack([network.answer[own], network.answer[donor]], axis=1)).logits
    return logits[:, 0] > logits[:, 1]


def _by_tasks(study: _Study, pairs: Pairs, found: Mapping[str, np.ndarray], *, count: bool = True) -> Iterator[Row]:
    """source, target, measure, value: every pair of tasks by itself, with the number of its pairs."""
    names = sorted({one.task for one in study.asked.instances})  # as their codes count
    both, of = np.unique(np.stack([pairs.source, pairs.target]), axis=1, return_inverse=True)
    of = of.reshape(-1)
    sizes = np.bincount(of, minlength=both.shape[1])
    for measure, value in found.items():
        sums = np.bincount(of, value, minlength=both.shape[1])
        for source, target, total, size in zip(*both, sums, sizes, strict=True):
            yield {"source": names[source], "target": names[target], "measure": measure, "value": float(total / size)}
    for source, target, size in zip(*both, sizes, strict=True) if count else ():
        yield {"source": names[source], "target": names[target], "measure": "transfer_pairs", "value": float(size)}
