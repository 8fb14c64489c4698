"""The settings of the synthetic data at the door: what the kind implies is filled in, the impossible refused."""

from dataclasses import asdict, replace
from typing import Any

from nucleate.config import Config, DataSettings
from nucleate.refusal import Refused, nearest
from nucleate.settings import check, check_all, fields_of

KINDS = ("main", "alignment")

# Single letters and digits that differ at a glance: no 0 beside o, no Greek or Cyrillic letter that looks Latin, none
# that Unicode splits or folds into another (ß, ς, й, ё, և). The instructions' vocabulary comes first, so that Table 4's
# 35 are all of Latin; ideographs follow for vocabularies larger than the paper's.
ALPHABET = "abcdefghijklmnopqrstuvwxyz123456789βγδεζηθλμξπσφψωвгджиклмнптцчшщъыьэюяბგდევზთიკლმნპჟრსტუფქღყშჩცძწჭხჯჰ"
IDEOGRAPHS = range(0x4E00, 0x9FA6)

_TABLE_4_TASK_SYMBOLS = 25
_TABLE_7_TASK_SYMBOLS = 65
_TABLE_7_PAIRS = 3
_SOURCES = {"several": (2, 10**6), "broad": (2, 4)}  # distributions of a source task, by subset
_SHORT = 12  # symbols of an instruction, under patterns=short
# Settings that came after datasets had been made: told of only where they are not the default, so that hashes stay.
LATER = ("totals", "patterns", "likeliest", "input_place")


def hard_tasks(settings: DataSettings) -> int:
    """How many tasks the hard examples come from."""
    return settings.subset_tasks if settings.hard_instructions else 0


def strings_needed(settings: DataSettings) -> int:
    """Distinct strings that every pattern must offer: those for training, for validation and for test."""
    return settings.instructions + 2 * settings.validation_instructions


def described(settings: DataSettings) -> dict[str, Any]:
    """The settings as a dataset tells of them."""
    usual = DataSettings()
    return {
        name: value for name, value in asdict(settings).items() if name not in LATER or value != getattr(usual, name)
    }


def as_used(asked: DataSettings, *, seed: int, kind: str) -> DataSettings:
    """The settings with what the kind implies filled in; impossible ones are refused, with the remedy."""
    if kind not in KINDS:
        raise Refused(f"kind={kind!r} is not known{nearest(str(kind), KINDS)}")
    check("seed", seed, fields_of(Config)["seed"])
    check_all(asked, "data.")
    settings = _of_kind(asked, kind)
    for low, high in (
        ("min_distributions", "max_distributions"),
        ("min_metacharacters", "max_metacharacters"),
        ("min_characters", "max_characters"),
        ("min_length", "max_length"),
    ):
        _at_most(settings, low, high)
    _at_most(settings, "max_characters", "instruction_symbols")
    _at_most(settings, "subset_tasks", "tasks")
    _at_most(settings, "validation_tasks", "tasks")
    _at_most(settings, "hard_instructions", "instructions")
    if not 0.5 < settings.likeliest <= 1:
        raise Refused(f"data.likeliest={settings.likeliest} must be above 0.5, to be the likeliest, and at most 1")
    _check_subset(settings)
    _check_totals(settings)
    _check_symbols(settings)
    return settings


def _of_kind(asked: DataSettings, kind: str) -> DataSettings:
    if kind == "alignment":
        room = (asked.validation_tasks - 1) // 2
        if min(room, asked.tasks // 2) < max(1, asked.pairs):
            wanted = max(1, asked.pairs)
            raise Refused(
                f"data.pairs={asked.pairs} needs {wanted} source and {wanted} target tasks and at least one other in "
                f"validation; set data.validation_tasks to {2 * wanted + 1} or more (data.tasks is {asked.tasks}), "
                "or lower data.pairs"
            )
        symbols = _TABLE_7_TASK_SYMBOLS if asked.task_symbols == _TABLE_4_TASK_SYMBOLS else asked.task_symbols
        asked = replace(
            asked,
            pairs=asked.pairs or min(_TABLE_7_PAIRS, room, asked.tasks // 2),
            task_symbols=symbols,
            subset_tasks=0,
        )
    elif asked.pairs:
        raise Refused(f"data.pairs={asked.pairs} belongs to the alignment data; set it to 0, or use --kind alignment")
    if asked.subset_tasks == 0:
        asked = replace(asked, source_distributions=0, hard_instructions=0)
    elif asked.subset != "narrow":
        asked = replace(asked, source_distributions=0)
    if asked.totals == "free":
        asked = replace(asked, total_distributions=0, source_distributions=0, validation_distributions=0)
    if asked.patterns == "short":
        low, high = min(1, asked.min_metacharacters), min(_SHORT, asked.max_length)
        asked = replace(asked, min_metacharacters=low, max_metacharacters=1, max_length=high)
    needed = asked.tasks + hard_tasks(asked) + asked.mappings
    if asked.inputs == "shared" and asked.task_symbols == _TABLE_4_TASK_SYMBOLS and asked.task_symbols < needed:
        asked = replace(asked, task_symbols=needed)
    return asked


def _check_subset(settings: DataSettings) -> None:
    if settings.subset != "broad" and settings.subset_tasks and not settings.hard_instructions:
        raise Refused(
            f"data.hard_instructions=0 leaves the {settings.subset} subset empty; raise it, or set data.subset=broad "
            "or data.subset_tasks=0"
        )
    low, high = bounds(settings, source=True)
    if settings.subset_tasks and low > high:
        raise Refused(
            f"data.subset={settings.subset} takes source tasks with {_told(settings.subset)} distributions, but tasks "
            f" have {settings.min_distributions}-{settings.max_distributions}; change data.min_distributions or "
            "data.max_distributions, or set data.subset=narrow"
        )


def _told(subset: str) -> str:
    low, high = _SOURCES[subset]
    return f"{low}-{high}" if subset == "broad" else f"at least {low}"


def _check_totals(settings: DataSettings) -> None:
    """Each total of distributions by itself; `synthetic._possible_groups` refuses what only together is impossible."""
    if settings.totals == "free":
        return
    for name, number, what in (
        ("total_distributions", settings.tasks, "tasks"),
        ("validation_distributions", settings.validation_tasks, "validation tasks"),
        ("source_distributions", settings.subset_tasks, "source tasks"),
    ):
        if name == "source_distributions" and settings.subset != "narrow":
            continue
        low, high = number * settings.min_distributions, number * settings.max_distributions
        value = getattr(settings, name)
        if not low <= value <= high:
            raise Refused(
                f"data.{name}={value} is not reachable: {number} {what} of {settings.min_distributions}-"
                f"{settings.max_distributions} distributions have {low}-{high}; set it within"
            )


def _check_symbols(settings: DataSettings) -> None:
    symbols, tasks = settings.task_symbols, settings.tasks + hard_tasks(settings)
    most = len(ALPHABET) + len(IDEOGRAPHS)
    if symbols + settings.instruction_symbols > most:
        raise Refused(
            f"data.task_symbols={symbols} and data.instruction_symbols={settings.instruction_symbols} are more than "
            f"the {most} symbols there are; lower one"
        )
    if settings.mappings >= symbols:
        raise Refused(
            f"data.mappings={settings.mappings} needs as many inputs and another symbol for the output; set "
            f"data.task_symbols (now {symbols}) to {settings.mappings + 1} or more"
        )
    if settings.inputs == "shared" and tasks > symbols - 1:
        raise Refused(
            f"data.task_symbols={symbols} gives a shared input {symbols - 1} different outputs, but {tasks} tasks need "
            f"one each; set data.task_symbols to {tasks + settings.mappings}, or lower data.tasks"
        )
    if tasks * settings.mappings > symbols * (symbols - 1):
        enough = next(n for n in range(symbols, 10**6) if n * (n - 1) >= tasks * settings.mappings)
        raise Refused(
            f"data.mappings={settings.mappings} for {tasks} tasks are {tasks * settings.mappings} mappings, but "
            f"{symbols} symbols have {symbols * (symbols - 1)} pairs; set data.task_symbols to {enough} or more, or "
            "lower data.mappings"
        )


def _at_most(settings: DataSettings, low: str, high: str) -> None:
    if getattr(settings, low) > getattr(settings, high):
        raise Refused(
            f"data.{low}={getattr(settings, low)} is more than data.{high}={getattr(settings, high)}; "
            f"lower data.{low} or raise data.{high}"
        )


def bounds(settings: DataSettings, *, source: bool) -> tuple[int, int]:
    """Fewest and most distributions of a task."""
    low, high = settings.min_distributions, settings.max_distributions
    if source and settings.subset in _SOURCES:
        fewest, most = _SOURCES[settings.subset]
        return max(low, fewest), min(high, most)
    return low, high
