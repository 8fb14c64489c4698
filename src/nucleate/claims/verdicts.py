"""Verdicts on the paper's claims: finished runs, the table of `table.py`, and one rule.

*holds*: at least five judged seeds, all beyond the threshold and beyond every control, and so are the 95 % t-intervals
of the quantity and of the paired difference (for each seed, the quantity less its hardest control). *fails*: at least
five judged seeds, all short of the threshold, or all short of their hardest control. *undefined*: at least five judged
seeds, and of none is there a number, because the network has not learnt or the event never happens. *undecided*:
anything else; fewer seeds, seeds that disagree or of which one is undefined, a control that was not measured, an
unfinished run, a size that the claim is not about.
"""

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial, update_wrapper
from typing import Any, Literal, NamedTuple

import polars as pl

from nucleate.claims.application_claims import PACKED
from nucleate.claims.claim import Claim, Direction, beyond, hardest
from nucleate.claims.table import CLAIMS, verdicts_alike
from nucleate.config import FAST, SIZES, changed_from_size, configure
from nucleate.intervals import t_interval
from nucleate.long_table import settings_but_seed
from nucleate.refusal import Refused
from nucleate.runs import Run

Verdict = Literal["holds", "fails", "undefined", "undecided"]

LEAST_SEEDS = 5


def judge(runs: Sequence[Run], claims: Sequence[Claim] | None = None) -> list["Judgement"]:
    """A judgement per claim and group of runs, in the order of `CLAIMS`; claims without a run of theirs have none.

    Runs belong together when they differ in nothing but seed and device. Runs that may not be judged (another seed, not
    finished) are shown, and stand alone only where their group has no other.
    """
    groups = _groups(runs)
    found: list[Judgement] = []
    for claim in CLAIMS if claims is None else claims:
        for group in groups:
            if group.verb == claim.experiment and (not claim.only or group.size in claim.only):
                found.append(_judgement(_comparing(claim, group, found), group))
    return found


def _comparing(claim: Claim, group: "_RunGroup", found: Sequence["Judgement"]) -> Claim:
    """A claim that compares verdicts, with those at width 256 of runs of the same settings."""
    if not claim.as_at_256:
        return claim
    label = group._replace(size="small").label
    verdicts = {one.claim: one.verdict for one in found if one.size == label and one.claim in claim.as_at_256}
    expected = {name: verdict == "holds" for name, verdict in verdicts.items() if verdict in ("holds", "fails")}
    return replace(claim, primary=update_wrapper(partial(verdicts_alike, expected=expected), claim.primary))


@dataclass(frozen=True)
class NotRun:
    """A claim that no given run speaks about, and what would judge it."""

    id: str
    sentence: str
    command: str


def not_run(judgements: Iterable["Judgement"]) -> list[NotRun]:
    """What is missing, each with its command at the smallest size where it is judged."""
    spoken = {judgement.claim for judgement in judgements}
    return [NotRun(claim.id, claim.sentence, _command_for(claim)) for claim in CLAIMS if claim.id not in spoken]


@dataclass(frozen=True)
class Judgement:
    """What the runs of one group say about one claim: a row of the ledger, in claims.json with these fields as keys."""

    claim: str
    sentence: str
    paper: str  # the paper's own words
    size: str  # the size, and what was set otherwise; for a probe its models
    law: str | None  # of batches, rows or tree; None where no network was trained
    judged: bool  # False: all runs of the group are exploratory, and the points are shown only
    exploratory: Mapping[int, float]  # seed -> quantity of runs beside judged ones that are shown only
    verdict: Verdict
    reason: str
    note: str
    meaning: str  # what the primary quantity is: in a few words up to the first full stop, then exactly
    direction: Direction
    seeds: tuple[int, ...]  # those behind the estimate
    primary: str
    threshold: float
    points: Mapping[int, float]  # seed -> quantity
    controls: Mapping[int, Mapping[str, float]]  # seed -> control -> the same quantity, where it was measured
    difference: float | None  # mean over the seeds of `differences`
    difference_low: float | None
    difference_high: float | None
    estimate: float | None  # mean of the points
    low: float | None  # 95 % t-interval of that mean; None below two seeds
    high: float | None
    beside: Mapping[int, Mapping[str, float]]  # seed -> what else is worth knowing -> number; never judged
    command: str

    @property
    def differences(self) -> dict[int, float]:
        """seed -> quantity less its hardest control; only of seeds for which every control was measured."""
        if self.difference is None:
            return {}
        names = {name for beaten in self.controls.values() for name in beaten}
        return _differences(self.direction, self.points, self.controls, len(names))


# --- the rule ---------------------------------------------------------------------------------------------------------


def decide(
    claim: Claim, points: Mapping[int, float], controls: Mapping[int, Mapping[str, float]]
) -> tuple[Verdict, str]:
    """The verdict on judged seeds alone, and what decided it."""
    if len(points) < LEAST_SEEDS:
        return "undecided", f"only {len(points)} of {LEAST_SEEDS} seeds"
    way = claim.direction
    past = [beyond(way, point, claim.threshold) for point in points.values()]
    ahead = [beyond(way, points[seed], hardest(way, beaten.values())) for seed, beaten in controls.items() if beaten]
    if max(past) <= 0:
        return "fails", "every seed is on the wrong side of the threshold"
    if len(ahead) == len(points) and max(ahead) <= 0:
        return "fails", "no seed beats its hardest control"
    missing = sorted({name for seed in points for name in claim.controls if name not in controls.get(seed, {})})
    if missing:
        return "undecided", f"not measured: {', '.join(missing)}"
    for values, bar, interval in (
        (past, "the threshold", "the 95 % interval includes the threshold"),
        (ahead, "the hardest control", "the 95 % interval of the paired difference includes zero"),
    ):
        wrong = sum(value <= 0 for value in values)
        if wrong:
            return "undecided", f"{wrong} of {len(values)} seeds on the wrong side of {bar}"
        if values and t_interval(values).low <= 0:
            return "undecided", interval
    return "holds", "every seed and interval is beyond the threshold" + (" and every control" if ahead else "")


def _differences(
    direction: Direction, points: Mapping[int, float], controls: Mapping[int, Mapping[str, float]], asked: int
) -> dict[int, float]:
    """seed -> quantity less its hardest control, where all controls that were asked for are measured."""
    return {
        seed: points[seed] - hardest(direction, beaten.values())
        for seed, beaten in controls.items()
        if len(beaten) == asked > 0
    }


def _judgement(claim: Claim, group: "_RunGroup") -> Judgement:
    asked = [group.verb, "transfer"]  # with which `learn` ends
    tables = {run.config["seed"]: run.metrics.filter(pl.col("experiment").is_in(asked)) for run in group.runs}
    found = {seed: claim.primary(table, "none") for seed, table in tables.items()}
    measured = {seed: point for seed, point in found.items() if point is not None}
    fit = not claim.sizes or group.size in claim.sizes
    finished = {run.config["seed"] for run in group.runs if run.manifest["status"] == "done"}
    judged = {seed for seed in tables if fit and seed in claim.seeds and seed in finished}
    points = {seed: point for seed, point in measured.items() if seed in judged or not judged}
    controls = {
        seed: {
            name: value
            for name in claim.controls
            if (value := claim.primary(tables[seed], name)) is not None
        }
        for seed in points
    }  # fmt: skip
    undefined = sorted(judged - set(points))
    verdict: Verdict = "undecided"
    unknown = len(judged) >= LEAST_SEEDS > len(points)  # though enough were run
    if unknown and not points and claim.may_never_come:
        verdict = "undefined"
        reason = "of no seed is there a number: the network has not learnt, or the event never happens"
    elif unknown:
        lacking = "undefined" if claim.may_never_come else "not measured"
        reason = f"{lacking} for seed{'s' * (len(undefined) > 1)} {', '.join(map(str, undefined))}"
    elif judged:
        verdict, reason = decide(claim, points, controls)
    elif not fit:
        reason = f"exploratory: not judged at size {group.size}"
    else:
        unfinished = [seed for seed in tables if seed in claim.seeds]
        seeds = f"{claim.seeds[0]} to {claim.seeds[-1]}"
        why = "not finished" if unfinished else f"none of the judged seeds, {seeds}"
        reason = f"exploratory: {why}"
    estimate, low, high = _interval(points.values())
    differences = _differences(claim.direction, points, controls, len(claim.controls))
    difference, difference_low, difference_high = _interval(differences.values())
    beside = {
        seed: {words: value for words, tell in claim.beside.items() if (value := tell(tables[seed])) is not None}
        for seed in points or tables
    }
    return Judgement(
        claim=claim.id,
        sentence=claim.sentence,
        paper=claim.paper,
        size=group.label,
        law=group.law,
        judged=bool(judged),
        exploratory={seed: point for seed, point in measured.items() if seed not in points},
        verdict=verdict,
        reason=reason if points or unknown else f"{reason}; the runs lack the measurements that it needs",
        note=claim.note,
        meaning=" ".join((claim.primary.__doc__ or "").split()),
        direction=claim.direction,
        seeds=tuple(points),
        primary=getattr(claim.primary, "__name__", "quantity"),
        threshold=claim.threshold,
        points=points,
        controls=controls,
        difference=difference,
        difference_low=difference_low,
        difference_high=difference_high,
        estimate=estimate,
        low=low,
        high=high,
        beside={seed: values for seed, values in beside.items() if values},
        command=_command(group, sorted(judged or points or tables)),
    )


def _interval(values: Iterable[float]) -> tuple[float | None, float | None, float | None]:
    listed = list(values)
    if len(listed) < 2:
        return (listed[0] if listed else None), None, None
    found = t_interval(listed)
    return found.mean, found.low, found.high


# --- which runs belong together ---------------------------------------------------------------------------------------


class _RunGroup(NamedTuple):
    verb: str
    size: str
    changes: tuple[tuple[str, str], ...]  # settings that the size has otherwise
    models: tuple[str, ...]  # of a probe
    runs: tuple[Run, ...]  # by rising seed

    @property
    def label(self) -> str:
        """How the ledger calls it."""
        if self.verb == "probe":
            return (", ".join(self.models) or self.size) + ("" if self.size == "natural" else f" on {self.size}")
        return ", ".join([self.size, *(f"{key}={value}" for key, value in self.changes)])

    @property
    def law(self) -> str | None:
        """The law of batches: `rows` or `tree`; None of a probe and of a model that was not trained here."""
        if self.verb == "probe" or self.size not in SIZES:
            return None
        return dict(self.changes).get("training.packing", configure(self.size).training.packing)


def _groups(runs: Sequence[Run]) -> list[_RunGroup]:
    kinds = {claim.experiment for claim in CLAIMS}
    found: dict[tuple[Any, ...], dict[int, Run]] = {}
    for run in runs:
        verb, size, seed = run.config.get("verb"), str(run.config.get("size", "")), run.config.get("seed")
        if verb not in kinds or not isinstance(seed, int):
            raise Refused(
                f"{run.folder} is a run of {verb!r}, which no claim is about; give runs of {', '.join(sorted(kinds))}"
            )
        models = tuple(run.metrics["model"].drop_nulls().unique().sort()) if verb == "probe" else ()
        members = found.setdefault((verb, size, _changes(run.config, size), models, _asked(run.config, size)), {})
        if seed in members:
            raise Refused(f"{members[seed].folder} and {run.folder} are the same run, {size} seed {seed}; give one")
        members[seed] = run
    groups = [
        _RunGroup(verb, size, changes, models, tuple(run for _, run in sorted(members.items())))
        for (verb, size, changes, models, _), members in found.items()
    ]
    sizes = list(SIZES)
    return sorted(
        groups,
        key=lambda group: (
            sizes.index(group.size) if group.size in sizes else len(sizes),
            len(group.changes),
            group[:-1],  # all but the runs
        ),
    )


def _changes(config: Mapping[str, Any], size: str) -> tuple[tuple[str, str], ...]:
    """Settings of a run that its size has otherwise; seed, device and what is only looked at make no other
    experiment."""
    return tuple((key, str(value)) for key, value in changed_from_size(size, settings_but_seed(config)).items())


def _asked(config: Mapping[str, Any], size: str) -> tuple[tuple[str, str], ...]:
    """All settings of a run on a user's data or model, which has no size to compare with."""
    if size in SIZES:
        return ()
    return tuple((key, str(value)) for key, value in sorted(settings_but_seed(config).items()))


def _command(group: _RunGroup, seeds: Sequence[int]) -> str:
    """What makes these runs again and judges them; the same on every machine, so no folders of this one."""
    words = [shlex.quote(one) for one in (*group.models, group.size or "natural")] if group.verb == "probe" else []
    words += [f"--size {shlex.quote(group.size)}"] if group.size and group.verb != "probe" else []
    for key, value in group.changes:
        option = f"--set {shlex.quote(f'{key}={value}')}" if "." in key else f"--{key} {shlex.quote(value)}"
        words.append("--fast" if (key, value) == FAST else option)
    if len(seeds) == 1:
        return " ".join(["nucleate", group.verb, *words, f"--seed {seeds[0]}", "--out RUN && nucleate claims RUN"])
    if group.verb == "probe":  # which sweep does not run: a seed after another
        each = [" ".join(["nucleate probe", *words, f"--seed {seed}", f"--out DIR/seed{seed}"]) for seed in seeds]
        return " && ".join([*each, "nucleate claims DIR/seed*/ --out DIR"])
    whole = list(seeds) == list(range(seeds[0], seeds[-1] + 1))
    listed = f"{seeds[0]}..{seeds[-1]}" if whole else ",".join(map(str, seeds))
    made = ["nucleate sweep", group.verb, *words, f"--seed {listed}", "--out DIR"]
    return " ".join([*made, "&& nucleate claims DIR/seed*/ --out DIR"])


def _command_for(claim: Claim) -> str:
    size = (claim.only or claim.sizes or ("",))[0]
    changes = (FAST,) if claim.experiment in PACKED else ()
    group = _RunGroup(claim.experiment, size, changes, ("MODEL",) if claim.experiment == "probe" else (), ())
    return _command(group, [0] if claim.experiment == "probe" else claim.seeds)
