"""The synthetic instruction-following task (§2.2, Appendix A, Tables 3, 4 and 7): tasks, instructions, hard examples.

`generate` tells the story: how many distributions each task has, which symbols the tasks map, a pattern with
instructions per distribution, hard examples that differ in one symbol, and the rows of the splits. Every random stream
derives from the seed and a name. `docs/paper.md` says which of the choices are the paper's.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

from nucleate.config import DataSettings, configure
from nucleate.data.dataset import Dataset, Instance
from nucleate.data.patterns import sample_pattern, sample_strings
from nucleate.data.roles import Roles, deal_roles, random_stream
from nucleate.data.synthetic_settings import ALPHABET, IDEOGRAPHS, as_used, described, hard_tasks, strings_needed
from nucleate.refusal import Refused

_PATTERN_ATTEMPTS = {"usual": 200, "short": 1000}  # by data.patterns: few short ones offer enough and keep apart


@dataclass(frozen=True)
class _Distribution:
    task: str
    name: str
    pattern: str
    train: tuple[str, ...]
    validation: tuple[str, ...]  # empty where the task is not measured there
    test: tuple[str, ...]


def synthetic_dataset(size: str = "paper", seed: int = 100) -> Dataset:
    """The synthetic dataset of a size: the same for the same seed on any machine."""
    return generate(configure(size).data, seed=seed)


def generate(settings: DataSettings, *, seed: int, kind: str = "main") -> Dataset:
    """The data of the main experiment (`kind="main"`, Table 4) or of §4.2 (`"alignment"`, Table 7).

    `dataset.settings` holds the settings as they were used, which differ from those asked for in these cases:
    - 25 task symbols are Table 4's default. Where every task has the same inputs and 25 cannot hold them, they become
      tasks + hard tasks + mappings (60); in the alignment data they become Table 7's 65.
    - The alignment data have no hard examples and no subset. `pairs=0` means three there, fewer where validation has no
      room for three sources, three targets and another task; `settings["source_targets"]` names each source's target.
    - `source_distributions` is the number drawn where `subset` is not narrow, all three totals are where they are free.
    - `likeliest` below 1 adds `second_outputs` {task: {input: output}} and `taught_second`, the numbers of the training
      instances that are taught it; the rows keep the likeliest output, which is the right answer.
    - `patterns="short"` is one metacharacter and at most 12 symbols.
    """
    settings = as_used(settings, seed=seed, kind=kind)
    symbols = [*ALPHABET, *map(chr, IDEOGRAPHS)]
    instruction_words = symbols[: settings.instruction_symbols]
    task_words = symbols[settings.instruction_symbols :][: settings.task_symbols]

    roles = deal_roles(settings, seed)
    functions = _sample_functions(settings, seed, roles, task_words)
    distributions = _sample_distributions(settings, seed, roles, instruction_words)
    hard = _sample_hard_instructions(settings, seed, roles, distributions, instruction_words)

    used: dict[str, Any] = {"seed": seed, "kind": kind, **described(settings)}
    if kind == "alignment":
        used["source_targets"] = {_task(source): _task(target) for source, target in roles.pairs}
    if settings.subset != "narrow" or settings.totals == "free":
        used["source_distributions"] = sum(roles.distributions[task] for task in roles.sources)
    instances = tuple(_rows(settings, roles, functions, distributions, hard))
    if settings.likeliest < 1:
        used["second_outputs"] = _sample_second_outputs(seed, functions, task_words)
        rng = random_stream(seed, "taught")
        taught = [one.instance for one in instances if one.split == "train" and rng.random() >= settings.likeliest]
        used["taught_second"] = taught
    if settings.totals == "free":
        used["validation_distributions"] = sum(roles.distributions[task] for task in roles.validation)
        used["total_distributions"] = sum(roles.distributions)
    return Dataset(
        instances=instances,
        settings=used,
        vocabulary={"instruction": instruction_words, "task": task_words},
        patterns={one.name: one.pattern for one in distributions},
        mappings=functions,
    )


# --- what the tasks do --------------------------------------------------------------------------------------------


def _sample_functions(
    settings: DataSettings, seed: int, roles: Roles, symbols: Sequence[str]
) -> dict[str, dict[str, str]]:
    """{task: {input: output}}, the hard tasks last.

    A mapping is two different symbols. No two tasks share one; a source and its hard task (or its target) have the same
    inputs, so all their outputs differ. Inputs are drawn uniformly for each task, or once for all (`inputs="shared"`).
    Outputs are drawn uniformly among those that the input has left, and may repeat within a task.
    """
    twins = {source: _hard_task(source) for source in roles.sources if hard_tasks(settings)}
    twins |= {source: _task(target) for source, target in roles.pairs}
    targets = {target for _, target in roles.pairs}
    # Tasks that need their inputs twice choose first: only they can fail to find room.
    alone = [task for task in range(settings.tasks) if task not in twins and task not in targets]
    order = [*sorted(twins), *alone]
    demand = [2] * len(twins) + [1] * len(alone)

    rng = random_stream(seed, "inputs")
    if settings.inputs == "shared":
        inputs = [rng.sample(symbols, settings.mappings)] * len(order)
    else:
        inputs = _deal_inputs(rng, symbols, settings.mappings, demand)
    rng = random_stream(seed, "outputs")
    left = {x: rng.sample([y for y in symbols if y != x], len(symbols) - 1) for x in symbols}
    functions: dict[str, dict[str, str]] = {}
    for task, xs in zip(order, inputs, strict=True):
        for name in (_task(task), twins[task]) if task in twins else (_task(task),):
            functions[name] = {x: left[x].pop() for x in xs}
    names = [*map(_task, range(settings.tasks)), *(_hard_task(source) for source in roles.sources)]
    return {name: functions[name] for name in names if name in functions}


def _deal_inputs(rng: random.Random, symbols: Sequence[str], number: int, demand: Sequence[int]) -> list[list[str]]:
    """Inputs for each task; a symbol serves at most as often as it has outputs, `len(symbols) - 1` times."""
    room = {symbol: len(symbols) - 1 for symbol in symbols}
    dealt = []
    for place, needed in enumerate(demand):
        later = sum(demand[place + 1 :])
        for attempt in range(100):
            if attempt < 99:
                chosen = rng.sample(symbols, number)
            else:  # nearly full: the emptiest symbols, which leaves the most room to the others
                chosen = sorted(rng.sample(symbols, len(symbols)), key=lambda symbol: -room[symbol])[:number]
            after = {symbol: room[symbol] - needed * (symbol in chosen) for symbol in symbols}
            if min(after.values()) >= 0 and sum(min(one, later) for one in after.values()) >= later * number:
                break
        else:
            raise Refused(
                f"data.task_symbols={len(symbols)} are too few to give every task {number} mappings of its own; "
                "raise data.task_symbols"
            )
        room = after
        dealt.append(chosen)
    return dealt


def _sample_second_outputs(
    seed: int, functions: dict[str, dict[str, str]], symbols: Sequence[str]
) -> dict[str, dict[str, str]]:
    """{task: {input: its less likely output}}: drawn uniformly among what is the likeliest of that input for no task,
    so that such an answer is never another task's right one."""
    rng = random_stream(seed, "second outputs")
    right = {x: {function.get(x, x) for function in functions.values()} | {x} for x in symbols}
    free = {x: [y for y in symbols if y not in right[x]] for x in symbols}
    needed = {x for function in functions.values() for x in function}
    if full := sorted(x for x in needed if not free[x]):
        raise Refused(
            f"data.likeliest needs a second output for every input, but input {full[0]!r} has every symbol as some "
            f"task's output already; raise data.task_symbols (now {len(symbols)}), or set data.likeliest=1"
        )
    return {task: {x: rng.choice(free[x]) for x in function} for task, function in functions.items()}


# --- what the tasks are called by ---------------------------------------------------------------------------------


def _sample_distributions(
    settings: DataSettings, seed: int, roles: Roles, symbols: Sequence[str]
) -> list[_Distribution]:
    """A pattern and its instructions for every distribution, in the order of the tasks.

    An instruction matches its own distribution's pattern and no other: else the task would be ill-defined (§2.1).
    A pattern is drawn anew until it offers enough strings and keeps apart from those before it.
    """
    found: list[_Distribution] = []
    earlier: list[tuple[re.Pattern[str], tuple[str, ...]]] = []
    attempts = _PATTERN_ATTEMPTS[settings.patterns]
    for task in range(settings.tasks):
        for place in range(1, roles.distributions[task] + 1):
            name = f"{_task(task)}-d{place}"
            strings: tuple[str, ...] | None = None
            short = 0
            for attempt in range(attempts):
                rng = random_stream(seed, "pattern", name, str(attempt))
                pattern = sample_pattern(
                    rng,
                    symbols,
                    min_metacharacters=settings.min_metacharacters,
                    max_metacharacters=settings.max_metacharacters,
                    min_characters=settings.min_characters,
                    max_characters=settings.max_characters,
                )
                strings = sample_strings(
                    pattern,
                    rng,
                    strings_needed(settings),
                    min_length=settings.min_length,
                    max_length=settings.max_length,
                )
                if strings is None:
                    short += 1
                    continue
                compiled = re.compile(pattern.regex)
                if not any(
                    any(map(other.fullmatch, strings)) or any(map(compiled.fullmatch, theirs))
                    for other, theirs in earlier
                ):
                    earlier.append((compiled, strings))
                    break
            else:
                _refuse_patterns(settings, name, short)
            assert strings is not None
            train, validation, test = _cut(strings, settings.instructions, settings.validation_instructions)
            measured = task in roles.validation
            found.append(
                _Distribution(
                    _task(task),
                    name,
                    pattern.regex,
                    train,
                    validation if measured else (),
                    test if measured else (),
                )
            )
    return found


def _refuse_patterns(settings: DataSettings, name: str, short: int) -> None:
    attempts = _PATTERN_ATTEMPTS[settings.patterns]
    if short > attempts // 2:
        mend = "raise data.max_length, data.max_characters or data.max_metacharacters"
        if settings.patterns == "short":
            mend = "lower data.instructions, or set data.patterns=usual"
        raise Refused(
            f"data.instructions={settings.instructions} and data.validation_instructions="
            f"{settings.validation_instructions} need {strings_needed(settings)} distinct strings of "
            f"{settings.min_length}-{settings.max_length} symbols per pattern, but {short} of {attempts} "
            f"patterns drawn had fewer; {mend}"
        )
    raise Refused(
        f"data.instruction_symbols={settings.instruction_symbols} are too few to keep "
        f"{settings.total_distributions} patterns apart (stuck at {name}); raise data.instruction_symbols, or lower "
        "data.max_characters or data.total_distributions"
    )


def _cut(strings: tuple[str, ...], train: int, further: int) -> Iterator[tuple[str, ...]]:
    rest = iter(strings)
    return (tuple(islice(rest, number)) for number in (train, further, further))


def _sample_hard_instructions(
    settings: DataSettings,
    seed: int,
    roles: Roles,
    distributions: Sequence[_Distribution],
    symbols: Sequence[str],
) -> dict[str, tuple[tuple[str, str], ...]]:
    """{distribution of a source task: ((original, hard), ...)}: one symbol replaced, uniform among what is allowed.

    A hard instruction is new and matches no pattern, not even its original's: it is an outlier of that distribution
    (§2.2), and no instruction that could be drawn from a distribution belongs to another task.
    """
    if not hard_tasks(settings):
        return {}
    matches = [re.compile(one.pattern).fullmatch for one in distributions]
    taken: set[str] = set()
    hard: dict[str, tuple[tuple[str, str], ...]] = {}
    sources = {_task(task) for task in roles.sources}
    for one in distributions:
        if one.task not in sources:
            continue
        rng = random_stream(seed, "hard", one.name)
        pairs = []
        for original in rng.sample(one.train, len(one.train)):
            changes = [
                original[:place] + symbol + original[place + 1 :]
                for place in range(len(original))
                for symbol in symbols
                if symbol != original[place]
            ]
            rng.shuffle(changes)
            allowed = (new for new in changes if new not in taken and not any(match(new) for match in matches))
            if (new := next(allowed, None)) is not None:
                taken.add(new)
                pairs.append((original, new))
            if len(pairs) == settings.hard_instructions:
                break
        else:
            raise Refused(
                f"data.instruction_symbols={settings.instruction_symbols} are too few for "
                f"{settings.hard_instructions} hard instructions of {one.name} that match no pattern; raise "
                "data.instruction_symbols or lower data.hard_instructions"
            )
        hard[one.name] = tuple(pairs)
    return hard


# --- the rows -----------------------------------------------------------------------------------------------------


def _rows(
    settings: DataSettings,
    roles: Roles,
    functions: dict[str, dict[str, str]],
    distributions: Sequence[_Distribution],
    hard: dict[str, tuple[tuple[str, str], ...]],
) -> Iterator[Instance]:
    """Training instances, the hard ones after all others, then validation and test; numbered as they come."""
    originals = {original for pairs in hard.values() for original, _ in pairs}
    sources = {_task(task) for task in roles.sources}
    numbers: dict[tuple[str, str], int] = {}  # (instruction, input) -> instance
    number = 0

    def instances(
        split: str, task: str, distribution: str, instruction: str, original: str | None
    ) -> Iterator[Instance]:
        nonlocal number
        in_subset = original is not None or (
            split == "train" and (instruction in originals or (settings.subset == "broad" and task in sources))
        )
        for place, (x, y) in enumerate(functions[task].items(), start=1):
            numbers[instruction, x] = number
            yield Instance(
                instance=number,
                split=split,
                in_subset=in_subset,
                instruction=" ".join(instruction),
                input=x,
                output=y,
                task=task,
                distribution=distribution,
                mapping=f"{task}-m{place}",
                is_hard=original is not None,
                origin=None if original is None else numbers[original, x],
            )
            number += 1

    for one in distributions:
        for instruction in one.train:
            yield from instances("train", one.task, one.name, instruction, None)
    for one in distributions:
        for original, instruction in hard.get(one.name, ()):
            yield from instances("train", f"{one.task}-hard", f"{one.name}-hard", instruction, original)
    for split in ("validation", "test"):
        for one in distributions:
            for instruction in one.validation if split == "validation" else one.test:
                yield from instances(split, one.task, one.name, instruction, None)


def _task(number: int) -> str:
    return f"task-{number + 1:02d}"


def _hard_task(number: int) -> str:
    return f"{_task(number)}-hard"
