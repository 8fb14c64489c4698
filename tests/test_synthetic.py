"""The synthetic task: the paper's rules hold in the two files, for every seed; what cannot be is refused."""

import json
import random
import re
import subprocess
import sys
import time
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest

import check_dataset
from nucleate.config import DataSettings, configure
from nucleate.data import synthetic
from nucleate.data.dataset import Dataset, Instance, load_dataset
from nucleate.data.roles import _deal, deal_roles
from nucleate.data.synthetic import _deal_inputs
from nucleate.data.synthetic_settings import ALPHABET, LATER, as_used
from nucleate.refusal import Refused

SMALL: dict[str, Any] = {
    "tasks": 6,
    "mappings": 3,
    "total_distributions": 10,
    "instructions": 5,
    "subset_tasks": 2,
    "source_distributions": 2,
    "validation_tasks": 3,
    "validation_distributions": 4,
}
OTHERS: tuple[dict[str, Any], ...] = (  # other readings of the paper
    {"patterns": "short"},
    {"totals": "free"},
    {"subset": "several"},
    {"patterns": "short", "totals": "free", "subset": "several"},
    {"likeliest": 0.7, "input_place": "inside"},
)
TOLD = ("source_targets", "second_outputs", "taught_second")  # beside the settings


def generate(*, seed: int, kind: str = "main", **settings: Any) -> Dataset:
    return synthetic.generate(DataSettings(**settings), seed=seed, kind=kind)


@pytest.fixture(scope="module")
def paper() -> Dataset:
    return generate(seed=0)


def assert_all_rules_hold(dataset: Dataset, folder: Path) -> None:
    dataset.save(folder)
    broken = {rule.name: rule.broken for rule in check_dataset.check(folder) if rule.broken}
    assert not broken
    assert load_dataset(folder) == dataset


# --- the rules hold -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_papers_settings_pass_the_independent_check(seed: int, tmp_path: Path) -> None:
    dataset = generate(seed=seed)
    dataset.save(tmp_path)
    script = [sys.executable, str(Path(check_dataset.__file__)), str(tmp_path)]
    checked = subprocess.run(script, capture_output=True, text=True, env={"PYTHONUTF8": "1"})
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "BROKEN" not in checked.stdout
    sizes = {split: dataset.counts[split] for split in ("train", "subset", "hard", "validation", "test")}
    assert sizes == {"train": 7290, "subset": 180, "hard": 90, "validation": 315, "test": 315}
    assert load_dataset(tmp_path) == dataset


@pytest.mark.parametrize(
    "settings",
    [
        {"kind": "alignment"},
        {"kind": "alignment", "inputs": "shared"},
        {"inputs": "shared"},
        {"subset": "broad"},
        {"subset": "broad", "hard_instructions": 0},
        {"subset_tasks": 0},
        SMALL,
        *OTHERS,
        {"kind": "alignment", "patterns": "short", "totals": "free"},
        SMALL | {"subset": "several", "totals": "free"},
        SMALL | {"kind": "alignment"},
        SMALL | {"inputs": "shared", "task_symbols": 9},
        SMALL | {"validation_tasks": 6, "validation_distributions": 10},
        {"min_metacharacters": 2, "max_metacharacters": 2, "min_characters": 4, "max_characters": 4},
        {"task_symbols": 150, "instruction_symbols": 60},
    ],
    ids=str,
)
def test_other_settings_pass_the_independent_check_too(settings: dict, tmp_path: Path) -> None:
    assert_all_rules_hold(generate(seed=1, **settings), tmp_path)


@pytest.mark.parametrize("size", ["micro", "tiny", "paper"])
@pytest.mark.parametrize("kind", ["main", "alignment"])
def test_every_size_of_the_configuration_makes_its_data(size: str, kind: str, tmp_path: Path) -> None:
    settings = asdict(configure(size).data)
    for seed in (100, 101, 102):
        assert_all_rules_hold(generate(seed=seed, kind=kind, **settings), tmp_path / str(seed))


def test_the_dataset_keeps_every_setting_of_the_configuration_under_its_name(paper: Dataset) -> None:
    """But those that came later, which are told where they are not the default: older hashes stay."""
    told = asdict(DataSettings())
    later = {name: told.pop(name) for name in LATER}
    assert paper.settings == {"seed": 0, "kind": "main", **told}
    assert later == {"patterns": "usual", "totals": "kept", "likeliest": 1.0, "input_place": "after"}


def test_the_dataset_of_a_size_is_that_of_its_settings_and_loads_no_torch() -> None:
    assert synthetic.synthetic_dataset("micro", 3) == synthetic.generate(configure("micro").data, seed=3)
    check = "import nucleate, sys; nucleate.synthetic_dataset('micro'); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check], check=False).returncode == 0


# --- the check notices --------------------------------------------------------------------------------------------


def changed(dataset: Dataset, change: Callable[[Instance], Instance]) -> Dataset:
    return replace(dataset, instances=tuple(map(change, dataset.instances)))


def renumbered(dataset: Dataset, keep: Callable[[Instance], bool]) -> Dataset:
    kept = [one for one in dataset.instances if keep(one)]
    numbers = {one.instance: place for place, one in enumerate(kept)}
    return replace(
        dataset,
        instances=tuple(
            replace(one, instance=numbers[one.instance], origin=numbers.get(one.origin or 0) if one.is_hard else None)
            for one in kept
        ),
    )


def renamed_instruction(dataset: Dataset, old: str, new: str) -> Dataset:
    return changed(dataset, lambda one: replace(one, instruction=new) if one.instruction == old else one)


def _two_tasks(data: Dataset) -> Dataset:
    one, other = data.select("validation")[0], data.select("validation")[-1]
    return renamed_instruction(data, one.instruction, other.instruction)


def _seen_in_training(data: Dataset) -> Dataset:
    unseen = data.select("test")[0]
    seen = next(one for one in data.select("train") if one.distribution == unseen.distribution)
    return renamed_instruction(data, unseen.instruction, seen.instruction)


def _two_symbols_replaced(data: Dataset) -> Dataset:
    hard = next(one for one in data.instances if one.is_hard)
    words, original = hard.instruction.split(), data.instances[hard.origin or 0].instruction.split()
    place = next(i for i, word in enumerate(original) if words[i] == word)
    words[place] = next(word for word in data.vocabulary["instruction"] if word != words[place])
    return renamed_instruction(data, hard.instruction, " ".join(words))


def _same_output(data: Dataset) -> Dataset:
    hard = next(one for one in data.instances if one.is_hard)
    output = data.instances[hard.origin or 0].output or ""
    mappings = {task: dict(function) for task, function in data.mappings.items()}
    mappings[hard.task][hard.input] = output
    moved = changed(
        data, lambda one: replace(one, output=output) if (one.task, one.input) == (hard.task, hard.input) else one
    )
    return replace(moved, mappings=mappings)


def _wrong_output(data: Dataset) -> Dataset:
    return changed(data, lambda one: replace(one, output=data.instances[11].output) if one.instance == 10 else one)


def _unmatched(data: Dataset) -> Dataset:
    return replace(data, patterns=data.patterns | {"task-01-d1": "[ab]{3,9}"})


def _overlapping(data: Dataset) -> Dataset:
    everything = "[" + "".join(data.vocabulary["instruction"]) + "]*"
    return replace(data, patterns=data.patterns | {"task-01-d1": everything})


def _folding(data: Dataset) -> Dataset:
    return replace(data, vocabulary=data.vocabulary | {"task": ["A", *data.vocabulary["task"][1:]]})


def _special(data: Dataset) -> Dataset:
    return replace(data, vocabulary=data.vocabulary | {"instruction": ["-", *data.vocabulary["instruction"][1:]]})


def _lost_mapping(data: Dataset) -> Dataset:
    return renumbered(data, lambda one: one.mapping != "task-01-m5")


def _lost_instruction(data: Dataset) -> Dataset:
    first = data.instances[0].instruction
    return renumbered(data, lambda one: one.instruction != first)


def _lost_validation(data: Dataset) -> Dataset:
    task = data.select("validation")[0].task
    return renumbered(data, lambda one: one.split != "validation" or one.task != task)


def _narrow_without_originals(data: Dataset) -> Dataset:
    return changed(data, lambda one: replace(one, in_subset=one.is_hard))


def _hard_without_origin(data: Dataset) -> Dataset:
    return changed(data, lambda one: replace(one, origin=None))


def _other_input(data: Dataset) -> Dataset:
    hard = [one.instance for one in data.instances if one.is_hard]
    return changed(data, lambda one: replace(one, origin=(one.origin or 0) + 1) if one.instance == hard[0] else one)


def _fewer_distributions(data: Dataset) -> Dataset:
    return replace(data, settings=data.settings | {"total_distributions": 145, "source_distributions": 7})


def _too_small(data: Dataset) -> Dataset:
    names = {one.distribution for one in data.select("train") if not one.in_subset}
    kept = set(sorted(name or "" for name in names)[:120])
    return renumbered(data, lambda one: one.distribution in kept or one.in_subset)


@pytest.mark.parametrize(
    ("corrupt", "rule"),
    [
        (_two_tasks, "an instruction belongs to one task"),
        (_seen_in_training, "an instruction belongs to one split"),
        (_two_symbols_replaced, "its instruction differs from the original's in exactly one symbol"),
        (_same_output, "it has the same input and another output"),
        (_same_output, "no two tasks share a mapping"),
        (_wrong_output, "rows follow their task's mappings"),
        (_unmatched, "an ordinary instruction matches its pattern"),
        (_overlapping, "and no other distribution's pattern"),
        (_overlapping, "a metacharacter has as many distinct characters as allowed"),
        (_overlapping, "a hard instruction matches no pattern"),
        (_folding, "symbols are disjoint and unique under casefold"),
        (_special, "symbols are not special in re"),
        (_special, "texts are symbols of their vocabulary between single spaces"),
        (_lost_mapping, "an instruction comes once with each input of its task"),
        (_lost_instruction, "a distribution has as many instructions per split as set"),
        (_lost_validation, "validation and test have the same tasks, as many as set"),
        (_narrow_without_originals, "the subset is the hard instances with what belongs to them"),
        (_hard_without_origin, "a hard instance is training and has an ordinary training original, no other has"),
        (_other_input, "it has the same input and another output"),
        (_fewer_distributions, "the totals of distributions are as set"),
        (_fewer_distributions, "the source tasks have as many distributions as set"),
        (_too_small, "the sizes are Table 3's within 5 % (Table 4's settings)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_the_independent_check_notices_a_violation(
    corrupt: Callable[[Dataset], Dataset], rule: str, paper: Dataset, tmp_path: Path
) -> None:
    corrupt(paper).save(tmp_path)
    broken = {one.name for one in check_dataset.check(tmp_path) if one.broken}
    assert rule in broken


def test_the_check_exits_with_1_and_names_the_broken_rule(paper: Dataset, tmp_path: Path) -> None:
    _two_tasks(paper).save(tmp_path)
    script = [sys.executable, str(Path(check_dataset.__file__)), str(tmp_path)]
    checked = subprocess.run(script, capture_output=True, text=True, env={"PYTHONUTF8": "1"})
    assert checked.returncode == 1
    assert "an instruction belongs to one task: BROKEN 1" in checked.stdout


def test_the_check_notices_unlike_alignment_pairs(tmp_path: Path) -> None:
    data = generate(seed=0, kind="alignment")
    (source, target), *_ = data.settings["source_targets"].items()
    other = next(task for task, xs in data.mappings.items() if xs.keys() != data.mappings[source].keys())
    for pairs in ({source: other}, {source: source}):
        replace(data, settings=data.settings | {"source_targets": pairs, "pairs": 1}).save(tmp_path)
        assert any(one.broken for one in check_dataset.check(tmp_path)), pairs
    assert data.mappings[source].keys() == data.mappings[target].keys()


# --- single laws --------------------------------------------------------------------------------------------------


def test_hard_example_differs_from_its_original_in_one_symbol_and_in_its_output(paper: Dataset) -> None:
    hard = [one for one in paper.instances if one.is_hard]
    assert len(hard) == 90
    for one in hard:
        original = paper.instances[one.origin or 0]
        pairs = zip(one.instruction.split(), original.instruction.split(), strict=True)
        assert sum(a != b for a, b in pairs) == 1
        assert (one.input, one.task) == (original.input, f"{original.task}-hard")
        assert one.output != original.output
        assert original.in_subset and one.in_subset and one.split == "train"


def test_symbols_are_letters_and_digits_that_unicode_leaves_alone() -> None:
    assert len({symbol.casefold() for symbol in ALPHABET}) == len(ALPHABET) >= 35 + 65
    for symbol in ALPHABET:
        assert symbol.isalnum()
        assert unicodedata.normalize("NFKD", symbol) == symbol == symbol.casefold()


@pytest.mark.parametrize(
    ("settings", "symbols"),
    [
        ({}, 25),
        ({"task_symbols": 30}, 30),
        ({"inputs": "shared"}, 60),
        ({"inputs": "shared", "task_symbols": 56}, 56),
        ({"inputs": "shared"} | SMALL, 25),
        ({"kind": "alignment"}, 65),
        ({"kind": "alignment", "task_symbols": 30}, 30),
    ],
    ids=str,
)
def test_the_task_vocabulary_is_the_default_of_the_kind_or_what_was_asked_for(settings: dict, symbols: int) -> None:
    data = generate(seed=0, **settings)
    assert len(data.vocabulary["task"]) == data.settings["task_symbols"] == symbols


def test_with_shared_inputs_every_task_has_the_same_and_with_own_ones_they_overlap_by_chance(paper: Dataset) -> None:
    shared = generate(seed=0, inputs="shared")
    assert len({frozenset(function) for function in shared.mappings.values()}) == 1
    own = {frozenset(function) for task, function in paper.mappings.items() if not task.endswith("-hard")}
    assert len(own) > 45
    assert min(Counter(x for inputs in own for x in inputs).values()) > 1


def test_alignment_data_have_pairs_no_hard_examples_and_measure_sources_targets_and_others() -> None:
    data = generate(seed=0, kind="alignment")
    targets = data.settings["source_targets"]
    assert len(targets) == len(set(targets.values())) == data.settings["pairs"] == 3
    for split in ("validation", "test"):
        measured = {one.task for one in data.select(split)}
        assert len(measured) == 10
        assert measured > {*targets, *targets.values()}
    assert data.counts["hard"] == data.counts["subset"] == data.counts["hard_tasks"] == 0
    assert data.counts["train"] == 144 * 10 * 5


def test_sources_validate_only_where_other_tasks_are_too_few(paper: Dataset) -> None:
    def overlap(data: Dataset) -> int:
        sources = {one.task.removesuffix("-hard") for one in data.instances if one.is_hard}
        return len(sources & {one.task for one in data.select("validation")})

    assert overlap(paper) == 0
    assert overlap(generate(seed=0, **SMALL | {"validation_tasks": 5, "validation_distributions": 9})) == 1


def test_the_same_seed_gives_the_same_content_and_another_seed_another() -> None:
    small = generate(seed=3, **SMALL)
    assert generate(seed=3, **SMALL).content_hash() == small.content_hash()
    assert generate(seed=4, **SMALL).content_hash() != small.content_hash()


def test_the_content_of_seed_0_is_the_one_that_was_recorded(paper: Dataset) -> None:
    """On every machine and Python. A deliberate change of the law changes this, and with it all measured results."""
    assert paper.content_hash() == "687025d6cac201f2a146ca1c377a9922e037c20ef8aa2e7d9cf8918276f1f587"


def test_the_settings_that_were_used_give_the_same_dataset_again() -> None:
    for asked in ({}, {"kind": "alignment"}, {"inputs": "shared"}, {"subset": "broad"}, SMALL, *OTHERS):
        data = generate(seed=2, **asked)
        used = {key: value for key, value in data.settings.items() if key not in TOLD}
        assert generate(**used) == data
        assert json.loads(json.dumps(data.settings)) == data.settings


def test_an_unrelated_setting_leaves_other_streams_alone(paper: Dataset) -> None:
    assert generate(seed=0, mappings=4).patterns == paper.patterns
    assert generate(seed=0, min_characters=4).mappings == paper.mappings


def test_numbers_of_distributions_are_uniform_over_all_that_meet_the_total() -> None:
    possible = [counts for counts in product(range(1, 5), repeat=3) if sum(counts) == 7]
    rng = random.Random(0)
    found = Counter(tuple(_deal(rng, 3, 1, 4, 7)) for _ in range(1000 * len(possible)))
    assert sorted(found) == sorted(possible)
    assert all(abs(number - 1000) < 5 * 1000**0.5 for number in found.values())


def test_distributions_per_task_range_from_one_to_six_over_seeds() -> None:
    totals: Counter[int] = Counter()
    for seed in range(5):
        names = generate(seed=seed).patterns
        totals.update(Counter(name.rsplit("-", 1)[0] for name in names).values())
    assert sorted(totals) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(5))
def test_inputs_are_dealt_even_where_every_pair_of_symbols_is_needed(seed: int) -> None:
    for symbols, number, demand in (("abcde", 4, [1] * 5), ("abcdef", 3, [2, 2, 2, 2, 1, 1])):
        dealt = _deal_inputs(random.Random(seed), symbols, number, demand)
        used = Counter(x for inputs, needed in zip(dealt, demand, strict=True) for x in inputs * needed)
        assert set(used.values()) == {len(symbols) - 1}
        assert all(len(set(inputs)) == number for inputs in dealt)


def test_inputs_that_only_seem_enough_are_refused() -> None:
    """Five symbols have twenty pairs, but what the first task's twin leaves cannot serve the other three."""
    with pytest.raises(Refused, match=r"data\.task_symbols=5 .* raise data\.task_symbols"):
        _deal_inputs(random.Random(0), "abcde", 4, [2, 1, 1, 1])


# --- other readings of the paper ----------------------------------------------------------------------------------


def test_short_patterns_are_one_metacharacter_and_at_most_twelve_symbols(paper: Dataset) -> None:
    data = generate(seed=0, patterns="short")
    lengths = [len(one.instruction.split()) for one in data.instances]
    assert min(lengths) >= 3 and max(lengths) == 12 < max(len(one.instruction.split()) for one in paper.instances)
    for pattern in data.patterns.values():
        assert len(re.findall(r"\[[^]]*\]|\([^)]*\)", pattern)) == 1, pattern
    assert data.counts["train"] == paper.counts["train"] and data.counts["distributions"] == 144
    assert data.settings["patterns"] == "short" and data.mappings == paper.mappings


def test_free_numbers_of_distributions_are_each_tasks_own_and_even() -> None:
    found: Counter[int] = Counter()
    totals = set()
    for seed in range(60):
        data = deal_roles(as_used(DataSettings(totals="free"), seed=seed, kind="main"), seed)
        found.update(data.distributions)
        totals.add(sum(data.distributions))
    assert sorted(found) == [1, 2, 3, 4, 5, 6]
    assert all(abs(number - 500) < 5 * 500**0.5 for number in found.values())
    assert len(totals) > 30 and 165 < sum(totals) / len(totals) < 185


def test_free_totals_are_told_as_they_were_drawn() -> None:
    data = generate(seed=1, totals="free")
    of_task = Counter(name.rsplit("-", 1)[0] for name in data.patterns)
    sources = {one.task.removesuffix("-hard") for one in data.instances if one.is_hard}
    measured = {one.task for one in data.select("validation")}
    assert data.settings["total_distributions"] == len(data.patterns) != 144
    assert data.settings["source_distributions"] == sum(of_task[task] for task in sources)
    assert data.settings["validation_distributions"] == sum(of_task[task] for task in measured)
    assert (len(sources), len(measured), sources & measured) == (5, 10, set())


@pytest.mark.parametrize("seed", range(3))
def test_several_takes_source_tasks_of_two_distributions_or_more_each(seed: int) -> None:
    data = generate(seed=seed, subset="several")
    of_task = Counter(name.rsplit("-", 1)[0] for name in data.patterns)
    sources = {one.task.removesuffix("-hard") for one in data.instances if one.is_hard}
    assert len(sources) == 5 and all(2 <= of_task[task] <= 6 for task in sources)
    used = sum(of_task[task] for task in sources)
    assert data.settings["source_distributions"] == used >= 10 and len(data.patterns) == 144
    assert data.counts["subset"] == used * (3 + 3) * 5
    assert {one.origin for one in data.instances if one.is_hard} == {
        one.instance for one in data.select("subset") if not one.is_hard
    }


# --- refusals -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "fragments"),
    [
        ({"mappings": 13}, ("data.mappings=13", "715 mappings", "600 pairs", "data.task_symbols to 28")),
        ({"mappings": 25}, ("data.mappings=25", "data.task_symbols", "26 or more")),
        ({"task_symbols": 10}, ("data.mappings=5", "90 pairs", "data.task_symbols to 18")),
        ({"inputs": "shared", "task_symbols": 40}, ("data.task_symbols=40", "set data.task_symbols to 60")),
        ({"validation_tasks": 51}, ("data.validation_tasks=51", "data.tasks=50", "lower")),
        ({"subset_tasks": 51}, ("data.subset_tasks=51", "data.tasks=50")),
        ({"total_distributions": 301}, ("data.total_distributions=301", "50-300")),
        ({"total_distributions": 49}, ("data.total_distributions=49", "50-300")),
        ({"validation_distributions": 61}, ("data.validation_distributions=61", "10-60")),
        ({"source_distributions": 4}, ("data.source_distributions=4", "5-30")),
        ({"total_distributions": 60}, ("data.total_distributions=60", "cannot be met", "set it to 61-")),
        ({"tasks": 20}, ("data.total_distributions=144", "120")),
        ({"min_distributions": 4, "max_distributions": 3}, ("data.min_distributions=4", "data.max_distributions=3")),
        ({"min_metacharacters": 4}, ("data.min_metacharacters=4", "data.max_metacharacters=3")),
        ({"min_characters": 11}, ("data.min_characters=11", "data.max_characters=10")),
        ({"min_length": 41}, ("data.min_length=41", "data.max_length=40")),
        ({"instruction_symbols": 9}, ("data.max_characters=10", "data.instruction_symbols=9")),
        (
            {"max_metacharacters": 1, "min_length": 40},
            ("data.instructions=10", "need 16 distinct strings", "raise data.max_length"),
        ),
        ({"max_length": 3, "min_characters": 8}, ("need 16 distinct strings of 3-3", "raise data.max_length")),
        (
            {"instruction_symbols": 3, "max_characters": 3},
            ("data.instruction_symbols=3", "apart", "raise data.instruction_symbols"),
        ),
        ({"hard_instructions": 11}, ("data.hard_instructions=11", "data.instructions=10")),
        ({"hard_instructions": 0}, ("data.hard_instructions=0", "narrow subset empty", "data.subset=broad")),
        (
            {"subset": "broad", "min_distributions": 5, "total_distributions": 275, "validation_distributions": 55},
            ("data.subset=broad", "data.subset=narrow"),
        ),
        ({"subset": "several", "hard_instructions": 0}, ("leaves the several subset empty",)),
        (
            {"subset": "several", "max_distributions": 1, "total_distributions": 50, "validation_distributions": 10},
            ("data.subset=several", "at least 2", "data.subset=narrow"),
        ),
        ({"patterns": "short", "min_length": 13}, ("data.min_length=13", "data.max_length=12")),
        ({"patterns": "short", "instructions": 60}, ("60 and", "3-12 symbols", "lower data.instructions")),
        ({"totals": "loose"}, ("data.totals='loose'", "kept")),
        ({"subset": "wide"}, ("data.subset='wide' is not known",)),
        ({"inputs": "sharred"}, ("data.inputs='sharred'", "did you mean 'shared'")),
        ({"kind": "align"}, ("kind='align'", "did you mean 'alignment'")),
        ({"pairs": 3}, ("data.pairs=3", "--kind alignment")),
        ({"kind": "alignment", "pairs": 5}, ("data.pairs=5", "data.validation_tasks to 11")),
        ({"kind": "alignment", "tasks": 1}, ("data.pairs=0", "data.tasks is 1")),
        ({"tasks": 0}, ("data.tasks=0", "at least 1")),
        ({"seed": -1}, ("seed=-1", "at least 0")),
        ({"tasks": 2.5}, ("data.tasks=2.5", "whole number")),
        ({"task_symbols": 30000}, ("data.task_symbols=30000", "more than", "lower one")),
    ],
    ids=str,
)
def test_impossible_settings_are_refused_by_name_with_the_remedy_and_soon(settings: dict, fragments: tuple) -> None:
    start = time.perf_counter()
    with pytest.raises(Refused) as refusal:
        generate(**{"seed": 0} | settings)
    assert time.perf_counter() - start < 60  # a search without end would hang here
    message = str(refusal.value)
    assert "\n" not in message
    assert ";" in message
    for fragment in fragments:
        assert fragment in message, message
