"""Which prompts teach a redirection and which judge it: the source with its wished outputs, and all that shall stay.

`redirection` comes first. Nothing that is judged by was learnt from: instructions are held out as a whole, and of the
source a few inputs too. The same prompts in any order of the rows.
"""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nucleate.data.columns import there_are
from nucleate.data.dataset import Dataset, Instance
from nucleate.data.prompts import Prompts, read_prompts
from nucleate.data.sources import Source, as_text, frame_table, open_source
from nucleate.redirecting.settings import RedirectSettings
from nucleate.refusal import Refused, nearest

SIDES = ("lesson", "validation", "validation_new_inputs", "test", "new_inputs")
_FEW = {"instructions": 8, "inputs": 12, "judged": 20, "others": 5}  # below that, the result is likely to disappoint


@dataclass(frozen=True, eq=False)
class Redirection:
    """The prompts of a redirection, dealt out."""

    prompts: Prompts
    source: str
    wished: dict[str, str]  # input (or prompt) -> output from now on
    sides: dict[str, list[Instance]]  # of the source, with the wished outputs
    others: list[Instance]  # of each other distribution or task
    examples: frozenset[int]  # which of the others the switches learn from, by their number
    choosing: frozenset[int]  # which of the others the switch is chosen by; none where there are too few
    asked: frozenset[int]  # which of the others are judged by
    of_target: frozenset[int]  # which of the others are the target's

    def describe(self) -> str:
        """In a sentence."""
        counts = {name: len(side) for name, side in self.sides.items()}
        return (
            f"{self.source}: {counts['lesson']} prompts to learn from, "
            f"{counts['validation'] + counts['validation_new_inputs']} to choose by, "
            f"{counts['test']} to judge by, {counts['new_inputs']} more with unseen inputs; of "
            f"{len({name_of(one) for one in self.others})} others {len(self.examples)} to learn from, "
            f"{len(self.choosing)} to choose by, {len(self.asked)} to judge by"
        )

    def doubts(self) -> list[str]:
        """What there is too little of, each in a sentence that says what may come of it."""
        lesson, told = self.sides["lesson"], []
        instructions, inputs = ({getattr(one, kind) for one in lesson} for kind in ("instruction", "input"))
        if len(instructions) < _FEW["instructions"]:
            told.append(
                f"{counted(len(instructions), 'instruction')} of the source to learn from: a switch that has seen so "
                "few may miss the others; give more ways to ask for it"
            )
        if self.prompts.has_inputs and len(inputs) < _FEW["inputs"]:
            told.append(
                f"{counted(len(inputs), 'input')} of the source to learn from: the head learns the outputs of these, "
                "hardly those of others; give more inputs"
            )
        outputs = {one.output for side in self.sides.values() for one in side}
        if len(outputs) == 1:
            told.append(
                f"every wished output is {outputs.pop()!r}: whether the head goes by the input cannot be seen, only "
                "whether the switch finds the source"
            )
        judged = len(self.sides["test"])
        if judged < _FEW["judged"]:
            told.append(f"{counted(judged, 'prompt')} of the source to judge by: the shares told of it are coarse")
        if len(self.examples) < _FEW["others"]:
            told.append(
                f"{counted(len(self.examples), 'prompt')} of other tasks to learn from: what the switch has not seen "
                "it may take for the source; give more tasks, or more --examples of each"
            )
        return [f"too little data? {sentence}" for sentence in told]

    def messages(self, instances: Sequence[Instance]) -> list[Any] | None:
        """The chats of these, where the data have some."""
        chats = self.prompts.messages
        return None if chats is None else [chats[one.instance] for one in instances]


def redirection(
    prompts: Prompts,
    source: str,
    *,
    target: str | None = None,
    outputs: str | None = None,
    limit: int = 200,
    examples: int = 1,
    seed: int = 100,
) -> Redirection:
    """The source answers from now on as `target` does, or as the table `outputs` says; about `limit` prompts of each
    distribution or task, and `examples` of each other one for the switches."""
    own = _named(prompts, source, "--source")
    numbers = {one.instance for one in own}
    rest = [one for one in prompts.instances if one.instance not in numbers]
    aimed = _named(prompts, target, "--target") if target is not None else []
    wished = _wished(prompts, source, own, _answers_of(prompts, target, aimed, outputs))
    own = _thinned([replace(one, output=wished[_key(one)]) for one in own], limit, random.Random(f"{seed} {source}"))
    others: list[Instance] = []
    drawn: set[int] = set()
    choosing: set[int] = set()
    asked: set[int] = set()
    for name in sorted({name_of(one) for one in rest}):
        rng = random.Random(f"{seed} other {name}")
        mine = _thinned([one for one in rest if name_of(one) == name], limit, rng)
        unit, few = _unit(mine), rng.sample(mine, len(mine))[:examples]
        seen = {unit(one) for one in few}
        others += mine
        drawn |= {one.instance for one in few}
        unseen = sorted({unit(one) for one in mine} - seen)
        chosen_by = set(rng.sample(unseen, len(unseen))[: len(unseen) // 4])
        choosing |= {one.instance for one in mine if unit(one) in chosen_by}
        asked |= {one.instance for one in mine if unit(one) not in seen | chosen_by}
    if not asked:
        raise Refused(f"{prompts.name}: nothing of the other tasks is left to judge by: give two prompts of each")
    sides = _dealt(own, source, random.Random(f"{seed} sides {source}"))
    of_target = frozenset(one.instance for one in aimed)
    by_role = frozenset(drawn), frozenset(choosing), frozenset(asked)
    return Redirection(prompts, source, wished, sides, others, *by_role, of_target)


def counted(number: int, what: str) -> str:
    """`1 input`, `2 inputs`."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def redirection_of(data: Source, settings: RedirectSettings) -> Redirection:
    """The prompts read and dealt out; refused where they do not do."""
    return redirection(
        read_prompts(data, columns=settings.columns),
        settings.source,
        target=settings.target,
        outputs=settings.outputs,
        limit=settings.limit,
        examples=settings.examples,
        seed=settings.seed,
    )


def name_of(one: Instance) -> str:
    """What the data call it: its distribution, or else its task."""
    return one.distribution or one.task


def _key(one: Instance) -> str:
    """What the wished output goes by."""
    return one.input or one.instruction


def _named(prompts: Prompts, name: str, option: str) -> list[Instance]:
    """The instances of a distribution or, where none has the name, of a task."""
    instances = prompts.instances
    found = [one for one in instances if one.distribution == name] or [one for one in instances if one.task == name]
    if not found:
        known = {label for one in instances for label in (one.distribution, one.task) if label}
        raise Refused(f"{option} {name!r} is neither a distribution nor a task of {prompts.name}{nearest(name, known)}")
    return found


# --- what shall be answered ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Answers:
    """Outputs from anywhere, and what a refusal says of them."""

    where: str
    pairs: Sequence[tuple[str, str]]
    remedy: str


def _answers_of(prompts: Prompts, target: str | None, aimed: Sequence[Instance], outputs: str | None) -> _Answers:
    if target is None:
        pairs = _pairs_of(str(outputs), "input" if prompts.has_inputs else "prompt")
        return _Answers(f"--outputs {outputs}", pairs, "add it")
    if not prompts.has_inputs:
        raise Refused(f"--target {target!r}: {prompts.name} has no inputs that two tasks could share: use --outputs")
    remedy = "name a target with the same inputs, or give the outputs with --outputs FILE"
    return _Answers(f"--target {target!r}", [(_key(one), one.output) for one in aimed if one.output], remedy)


def _wished(prompts: Prompts, source: str, own: Sequence[Instance], answers: _Answers) -> dict[str, str]:
    """{input: output from now on} for every input of the source."""
    given: dict[str, str] = {}
    for key, output in answers.pairs:
        if given.setdefault(key, output) != output:
            raise Refused(f"{answers.where}: has two outputs for {key!r}, {given[key]!r} and {output!r}: leave one")
    missing = sorted({_key(one) for one in own} - set(given))
    if missing:
        raise Refused(
            f"{answers.where}: has no output for {missing[0]!r}, an input of {source!r} (and {len(missing) - 1} more "
            f"are missing): {answers.remedy}"
        )
    return {key: given[key] for key in sorted({_key(one) for one in own})}


def _pairs_of(source: str, column: str) -> list[tuple[str, str]]:
    name, opened = open_source(source)
    table = frame_table(opened.frame(), name) if isinstance(opened, Dataset) else opened
    for one in (column, "output"):
        if one not in table.columns:
            raise Refused(
                f"{table.title}: column {one!r} is missing; {there_are(table, one)}; rename the one that is meant"
            )
    pairs = []
    for place, *row in zip(table.places, table.cells(column), table.cells("output"), strict=True):
        key, output = (as_text(cell, table.at(place)) for cell in row)
        if key is None or output is None:
            raise Refused(f"{table.at(place)}: {column} or output is empty: fill it")
        pairs.append((key, output))
    return pairs


# --- dealt out -------------------------------------------------------------------------------------------------------


def _unit(instances: Sequence[Instance]) -> Callable[[Instance], str]:
    """What is held out as a whole: instructions; inputs where there are not three instructions."""
    return _instruction if len({one.instruction for one in instances}) > 2 else _key


def _instruction(one: Instance) -> str:
    return one.instruction


def _thinned(instances: Sequence[Instance], limit: int, rng: random.Random) -> list[Instance]:
    """About `limit` of them, in whole units and of at most a third of so many inputs."""
    unit, kept = _unit(instances), list(instances)
    inputs = sorted({one.input for one in kept})
    if unit is not _key and len(inputs) > limit // 3:
        few = set(rng.sample(inputs, limit // 3))
        kept = [one for one in kept if one.input in few]
    units: dict[str, list[Instance]] = {}
    for one in sorted(kept, key=lambda one: (one.instruction, one.input)):
        units.setdefault(unit(one), []).append(one)
    chosen: list[Instance] = []
    for number, name in enumerate(rng.sample(sorted(units), len(units))):
        if number > 2 and len(chosen) + len(units[name]) > limit:
            break
        chosen += units[name]
    return chosen


def _dealt(own: Sequence[Instance], source: str, rng: random.Random) -> dict[str, list[Instance]]:
    """The source by side: a fifth of its units to choose by, a fifth to judge by. These have inputs that nothing else
    has: a fifth of all to judge by, a tenth to choose by."""
    unit = _unit(own)
    units = sorted({unit(one) for one in own})
    if len(units) < 3:
        raise Refused(
            f"{source!r} has {len(units)} prompts to tell apart: give at least three instructions, or three inputs, to "
            "learn from, to choose by and to judge by"
        )
    rng.shuffle(units)
    fifth = max(1, len(units) // 5)
    side_of = {
        name: "validation" if n < fifth else "test" if n < 2 * fifth else "lesson" for n, name in enumerate(units)
    }
    inputs = sorted({one.input for one in own}) if unit is not _key else []
    drawn = rng.sample(inputs, max(1, len(inputs) // 5) + len(inputs) // 10) if len(inputs) > 2 else []
    new = dict.fromkeys(drawn, "test") | dict.fromkeys(drawn[max(1, len(inputs) // 5) :], "validation")
    if {"lesson", "validation", "test"} - {side_of[unit(one)] for one in own if one.input not in new}:
        new = {}  # too few prompts to hold inputs out as well
    sides: dict[str, list[Instance]] = {name: [] for name in SIDES}
    for one in own:
        side = side_of[unit(one)]
        if one.input not in new:
            sides[side].append(one)
        elif side == new[one.input]:
            sides["new_inputs" if side == "test" else "validation_new_inputs"].append(one)
    return sides
