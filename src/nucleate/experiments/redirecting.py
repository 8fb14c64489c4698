"""One behaviour of any language model redirected, and what everything else lost (§4.2 in "a more realistic setting").

A frozen network is read once: last-layer states of the prompts of a source task, with the outputs that are wished from
now on, and of all other tasks. From these a second head and the switches are taught in minutes on a CPU, and measured
on instructions and inputs that they have not seen. `_redirect` is the whole story; `_teach` compares the methods; the
network with the switch of choice is saved in the run (`model/`).
"""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from nucleate.config import differing, flat_toml
from nucleate.data.dataset import Dataset, Instance
from nucleate.data.prompts import read_prompts
from nucleate.data.redirection import SIDES, Redirection, name_of, redirection
from nucleate.experiments.groundwork import Progress, device_for
from nucleate.model.batches import share_prefixes
from nucleate.model.estimate import estimate
from nucleate.model.networks import load_network
from nucleate.model.prompts import read_prompts_states
from nucleate.model.switch import KINDS, Head, Memory, Pace, Switch, learn_head, learn_switch, remember
from nucleate.model.switched import SwitchedModel, head_logits, parts_of, rank_of
from nucleate.model.texts import Prompt, prompts_of
from nucleate.model.training import stream, weights
from nucleate.refusal import Refused, nearest
from nucleate.runs import RunWriter, load_run, open_run, write_whole

METHODS = {
    "direct": "whole head",
    "head": "low-rank head",
    "linear_switch": "linear switch",
    "mlp_switch": "MLP switch",
}
_SWITCHED = {f"{kind}_switch": kind for kind in KINDS}
_AFFORDABLE = 40_000_000  # weights of a whole head: above that, teaching it takes longer than all the rest
_AT_ONCE = 512  # states whose logits are held at once


@dataclass(frozen=True)
class RedirectSettings:
    """What to redirect and how."""

    source: str  # a distribution, or a task
    target: str | None = None  # another, which has the same inputs
    outputs: str | None = None  # or a file: input (prompt, where there are no inputs) and output
    columns: Mapping[str, str] | None = None  # {ours: theirs}
    template: str | None = None
    chat: bool = False
    limit: int = 200  # prompts of each distribution or task
    examples: int = 1  # of each other distribution or task, which the switches learn from
    switch: str = "mlp"  # the one that is saved
    copy: bool = False  # save the network's weights too
    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False
    seed: int = 100
    rank: int = 16  # of the second head
    epochs: int = 30
    batch: int = 40  # prompts
    rates: Sequence[float] = (3e-4, 1e-3, 3e-3)  # the same for all methods


def redirect_into(
    folder: Path,
    model: str | Path,
    data: Any,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda text, fraction: None,
    **options: Any,
) -> bool:
    """Redirect `source` of a model into a run folder: measures, and the switched model. False where it is finished.

    `model` is a path or a hub id, `data` whatever `read_prompts` reads, `options` the fields of `RedirectSettings`."""
    settings = settings_of(options)
    study = study_of(data, settings)
    everything = Dataset(study.dealt.prompts.instances, {}, {}, {}, {}).content_hash()
    wished = json.dumps(sorted(study.dealt.wished.items()), ensure_ascii=False)
    what = {"verb": "align", "size": study.dealt.prompts.name, "network": str(model), "data_hash": everything}
    opening = open_run(
        folder,
        settings=flat_toml(settings, **what, wished=wished),
        differing=differing,
        resume=resume,
        overwrite=overwrite,
        facts={"seeds": {"root": settings.seed}, "device": device_for(settings.device), "data_hash": everything},
    )
    with opening as run:
        if run is None:
            return False
        for sentence in study.dealt.prompts.warnings:
            progress(sentence, None)
        _redirect(study, str(model), run, progress)
    return True


def budget(model: str | Path, data: Any, **options: Any) -> list[str]:
    """What redirecting will take, in sentences, from the model's settings alone."""
    settings = settings_of(options)
    study = study_of(data, settings)
    prompts = [*(one for side in study.dealt.sides.values() for one in side), *study.dealt.others]
    shared = sum(len(text) for text in {one.instruction for one in prompts}) / 4
    tokens = round(shared + sum((len(one.input) + len(one.output or "")) / 3 + 1 for one in prompts))
    needed = estimate(
        model,
        len(prompts),
        tokens,
        layers=1,
        dtype=settings.dtype,
        device=device_for(settings.device),
        trust_remote_code=settings.trust_remote_code,
    )
    return [
        f"{Path(model).name}: {needed.parameters / 1e6:,.0f} million parameters; {study.dealt.describe()}; about "
        f"{tokens:,} tokens, {needed.seconds:.0f} seconds to read them, {needed.peak_bytes / 2**30:.1f} GiB of memory"
    ]


@dataclass(frozen=True, eq=False)
class _Study:
    """What is asked, and of which prompts."""

    settings: RedirectSettings
    dealt: Redirection


def study_of(data: Any, settings: RedirectSettings) -> _Study:
    """The prompts read and dealt out; refused where they do not do."""
    dealt = redirection(
        read_prompts(data, columns=settings.columns),
        settings.source,
        target=settings.target,
        outputs=settings.outputs,
        limit=settings.limit,
        examples=settings.examples,
        seed=settings.seed,
    )
    return _Study(settings, dealt)


def settings_of(options: Mapping[str, Any]) -> RedirectSettings:
    """The settings, checked as far as they alone can be."""
    for name in options:
        if name not in RedirectSettings.__dataclass_fields__:
            raise Refused(f"align: option {name!r} is unknown{nearest(name, RedirectSettings.__dataclass_fields__)}")
    if not options.get("source"):
        raise Refused("align of a model needs a source: --source NAME, a distribution or a task of the data")
    settings = RedirectSettings(**options)
    if (settings.target is None) == (settings.outputs is None):
        raise Refused("say what the source shall answer: --target NAME, or --outputs FILE, one of the two")
    if settings.source == settings.target:
        raise Refused(f"--source and --target are both {settings.source!r}: name two")
    if settings.switch not in KINDS:
        raise Refused(f"--switch {settings.switch!r} does not exist{nearest(settings.switch, KINDS)}")
    if settings.examples < 1:
        raise Refused("--examples 0 leaves the switch nothing to tell the source from: give 1 or more")
    if settings.limit < 9:
        raise Refused(f"--limit {settings.limit} is too small to learn from and to hold out of: give at least 9")
    return settings


def _redirect(study: _Study, model: str, run: RunWriter, progress: Progress) -> None:
    settings, clock = study.settings, [time.monotonic()]
    network, tokenizer = load_network(
        model,
        device=device_for(settings.device),
        dtype=settings.dtype,
        trust_remote_code=settings.trust_remote_code,
    )
    parts_of(network)
    progress(study.dealt.describe(), None)
    sides = {}
    for name, instances in study.dealt.sides.items():
        progress(f"reading the source: {name.replace('_', ' ')}", SIDES.index(name) / 8)
        if instances:
            sides[name] = _read_source(study, network, tokenizer, instances)
    progress("reading all others", 0.5)
    others = _read_others(study, network, tokenizer)
    clock.append(time.monotonic())

    rows: list[dict[str, Any]] = [{"arm": "main", **row} for row in _before(sides, others)]
    told: list[pl.DataFrame] = []
    chosen = _teach(study, sides, others, progress)
    for arm, attempt in chosen.items():
        after, switched = _after(network, others, attempt)
        scored = _scores(study, sides, others, attempt, after, switched)
        rows += [{"arm": arm, "split": "test", "measure": name, "value": value} for name, value in scored.items()]
        rows += [
            {"arm": arm, "epoch": n, "split": "validation", "measure": "source_accuracy", "value": value}
            for n, value in enumerate(attempt.curve, 1)
        ]
        told.append(_by_name(others, after, switched).select(pl.lit(arm).alias("arm"), pl.all()))
    if "direct" not in chosen:
        progress("the whole head was left out: it has too many weights to be taught here", None)
    clock.append(time.monotonic())

    same = {"experiment": "align", "model": Path(model).name, "control": "none", "seed": settings.seed}
    run.write_part("methods", [{**same, **row} for row in rows])
    run.finish(["methods"])
    write_whole(run.folder / "others.parquet", pl.concat(told).write_parquet)
    read, taught = (round(end - begin, 3) for begin, end in pairwise(clock))
    run.record(seconds={"read": read, "train": taught})
    best = chosen[f"{settings.switch}_switch"]
    assert best.switch is not None
    switched_model = SwitchedModel(network, tokenizer, best.switch, best.head)
    prompts = {"template": settings.template, "chat": settings.chat}
    facts = {"source": settings.source, "target": settings.target, "wished": study.dealt.wished, "prompts": prompts}
    switched_model.save(
        run.folder / "model", network=model, copy=settings.copy, facts=facts, card=_card(study, model, run.folder)
    )
    progress(f"the switched model: {run.folder / 'model'}", None)


# --- what is read ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Source:
    """Prompts of the source with what the network makes of them and of the wished outputs."""

    memory: Memory
    first: np.ndarray  # (instance,) where its targets begin
    allowed: np.ndarray  # the first tokens of all wished outputs

    @classmethod
    def of(cls, memory: Memory, lengths: np.ndarray, allowed: Sequence[int]) -> "_Source":
        return cls(memory, np.cumsum(lengths) - lengths, np.array(allowed))

    def answers(self, head: Head | None) -> tuple[np.ndarray, np.ndarray]:
        """(instance,) bool: every token of the wished output is the likeliest one; its first is, among the first of
        all wished outputs."""
        best, own = [], []
        for start in range(0, len(self.memory.tokens), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            with torch.no_grad():
                added = 0 if head is None else head(self.memory.states[part])
                logits = self.memory.logits[part] + added
            best.append(logits.argmax(-1).numpy())
            own.append(self.allowed[logits[:, self.allowed].argmax(-1).numpy()])
        tokens = self.memory.tokens.numpy()
        right, restricted = np.concatenate(best) == tokens, np.concatenate(own) == tokens
        return np.logical_and.reduceat(right, self.first), restricted[self.first]


@dataclass(frozen=True, eq=False)
class _Others:
    """Prompts of everything else: those that are judged by, and the states that the switches learn from."""

    instances: list[Instance]
    states: Tensor  # (instance, width) at the end of each prompt
    before: np.ndarray  # (instance,) the likeliest next token
    wanted: np.ndarray  # (instance,) the first token of its output; -1 without one
    of_target: np.ndarray  # (instance,) bool
    examples: Tensor  # (example, width)


def _read_source(study: _Study, network: Any, tokenizer: Any, instances: Sequence[Instance]) -> _Source:
    prompts = _prompts_of(study, tokenizer, instances)
    wrong = next((one for one in prompts if isinstance(one, str) or not one.answer), None)
    if wrong is not None:
        why = wrong if isinstance(wrong, str) else "its wished output has no token"
        raise Refused(f"a prompt of {study.settings.source!r} cannot be taught: {why}: mend the data")
    rows = [(one.tokens, one.answer) for one in prompts if isinstance(one, Prompt)]
    groups, places = share_prefixes(rows)
    lengths = np.array([len(rows[place][1]) for place in places])
    every = [one for side in study.dealt.sides.values() for one in side]
    first = {one.answer[0] for one in _prompts_of(study, tokenizer, every) if isinstance(one, Prompt) and one.answer}
    return _Source.of(remember(network, groups, answers_only=True), lengths, sorted(first))


def _prompts_of(study: _Study, tokenizer: Any, instances: Sequence[Instance]) -> list[Prompt | str]:
    settings = study.settings
    return prompts_of(
        tokenizer,
        instances,
        reads=("answer_start",),
        template=settings.template,
        messages=study.dealt.messages(instances),
        chat=settings.chat,
    )


def _read_others(study: _Study, network: Any, tokenizer: Any) -> _Others:
    settings, instances = study.settings, study.dealt.others
    reading = read_prompts_states(
        network,
        tokenizer,
        instances,
        reads={"answer_start": [-1]},
        template=settings.template,
        messages=study.dealt.messages(instances),
        chat=settings.chat,
    )
    states = torch.from_numpy(np.array(reading.states["answer_start"][0]))
    read = [instances[place] for place in reading.kept]
    drawn = np.array([one.instance in study.dealt.examples for one in read])
    asked = np.array([one.instance in study.dealt.asked for one in read])
    if not drawn.any() or not asked.any():
        raise Refused(f"{study.dealt.prompts.name}: no prompt of the other tasks can be read: shorten them")
    judged = [one for one, is_asked in zip(read, asked, strict=True) if is_asked]
    prompts = _prompts_of(study, tokenizer, judged)
    wanted = [one.answer[0] if isinstance(one, Prompt) and one.answer else -1 for one in prompts]
    kept = states[asked]
    before = [head_logits(network, part).argmax(-1).numpy() for part in kept.split(_AT_ONCE)]
    of_target = np.array([one.instance in study.dealt.of_target for one in judged])
    return _Others(judged, kept, np.concatenate(before), np.array(wanted), of_target, states[drawn])


# --- the methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Attempt:
    """What one method has come to at its best learning rate and epoch."""

    rate: float
    epoch: int
    head: Head
    switch: Switch | None
    curve: list[float]  # source accuracy on validation, epoch by epoch, at that rate

    def on(self, states: Tensor) -> np.ndarray:
        """(state,) bool: where the second head answers."""
        if self.switch is None:
            return np.ones(len(states), dtype=bool)
        with torch.no_grad():
            return (self.switch(states) > 0).numpy()


def _teach(study: _Study, sides: Mapping[str, _Source], others: _Others, progress: Progress) -> dict[str, _Attempt]:
    """Each method at the learning rate and epoch of the highest source accuracy on validation; ties: the earliest
    epoch, then the lowest rate. The switched methods share the head that the low-rank one learns, and its rate."""
    settings, memory = study.settings, sides["lesson"].memory
    width, vocabulary = memory.states.shape[1], memory.logits.shape[1]
    ranks: dict[str, int | None] = {"head": min(settings.rank, width)}
    if width * vocabulary <= _AFFORDABLE:
        ranks["direct"] = None
    best: dict[str, tuple[tuple[float, int, float], _Attempt]] = {}
    for number, (arm, rank, rate) in enumerate((a, k, r) for a, k in ranks.items() for r in settings.rates):
        progress(f"teaching the {METHODS[arm]} at {rate:g}", 0.6 + 0.4 * number / len(ranks) / len(settings.rates))
        pace = Pace(settings.epochs, settings.batch, rate, seed=stream(settings.seed, "redirect"))
        gates: dict[str, Switch | None] = {arm: None}
        if arm == "head":
            gates |= _switches(study, memory, others.examples, pace)
        head = Head(width, vocabulary, rank=rank, seed=stream(settings.seed, "head"))
        for name, (level, attempt) in _levels(sides["validation"], memory, head, gates, pace):
            if name not in best or level > best[name][0]:
                best[name] = (level, attempt)
    return {arm: best[arm][1] for arm in METHODS if arm in best}


def _switches(study: _Study, memory: Memory, examples: Tensor, pace: Pace) -> dict[str, Switch | None]:
    made: dict[str, Switch | None] = {}
    for arm, kind in _SWITCHED.items():
        switch = Switch(memory.states.shape[1], kind, seed=stream(study.settings.seed, "switch"))
        learn_switch(switch, memory, examples, pace)
        made[arm] = switch
    return made


def _levels(
    validation: _Source, memory: Memory, head: Head, gates: Mapping[str, Switch | None], pace: Pace
) -> Iterator[tuple[str, tuple[tuple[float, int, float], _Attempt]]]:
    """Of each gate the best epoch of one head, with what it is compared by. Ends where nothing better can come."""
    before = validation.answers(None)[0]
    probe = {name: _Attempt(pace.learning_rate, 0, head, gate, []) for name, gate in gates.items()}
    on = {name: one.on(validation.memory.ends) for name, one in probe.items()}
    best: dict[str, tuple[tuple[float, int, float], dict[str, Tensor]]] = {}
    for epoch in learn_head(head, memory, pace):
        right, taught = validation.answers(head)[0], None
        for name, one in probe.items():
            one.curve.append(float(np.where(on[name], right, before).mean()))
            level = (one.curve[-1], -epoch, -pace.learning_rate)
            if name not in best or level > best[name][0]:
                taught = weights(head) if taught is None else taught
                best[name] = (level, taught)
        if all(level[0] == 1 for level, _ in best.values()):
            break
    for name, (level, taught) in best.items():
        finished = Head(memory.states.shape[1], memory.logits.shape[1], rank=rank_of(head))
        finished.load_state_dict(taught)
        yield name, (level, replace(probe[name], epoch=-level[1], head=finished))


# --- what has come of it ---------------------------------------------------------------------------------------------


def _after(network: Any, others: _Others, attempt: _Attempt) -> tuple[np.ndarray, np.ndarray]:
    """(instance,) the likeliest next token of the others now, and where the second head gives it."""
    on, after = attempt.on(others.states), others.before.copy()
    places = np.flatnonzero(on)
    for start in range(0, len(places), _AT_ONCE):
        part = places[start : start + _AT_ONCE]
        with torch.no_grad():
            after[part] = (head_logits(network, others.states[part]) + attempt.head(others.states[part])).argmax(-1)
    return after, on


def _before(sides: Mapping[str, _Source], others: _Others) -> Iterator[dict[str, Any]]:
    """The network as it was: how often it gave the wished output already, and was right elsewhere."""
    for side, name in (("test", ""), ("new_inputs", "_new_inputs")):
        if side in sides:
            right, restricted = sides[side].answers(None)
            yield {"split": "test", "measure": f"source_accuracy{name}", "value": float(right.mean())}
            yield {"split": "test", "measure": f"source_accuracy_restricted{name}", "value": float(restricted.mean())}
    scored = others.wanted >= 0
    if scored.any():
        value = float((others.before == others.wanted)[scored].mean())
        yield {"split": "test", "measure": "others_accuracy", "value": value}


def _scores(
    study: _Study,
    sides: Mapping[str, _Source],
    others: _Others,
    attempt: _Attempt,
    after: np.ndarray,
    on: np.ndarray,
) -> dict[str, float]:
    """By measure. An output is right where all its tokens are (of others: the first); `…_restricted`: its first token
    among the first of all wished outputs. `accuracy_drop` is the paper's, `…_others` leaves the target out."""
    scores: dict[str, float] = {}
    for side, name in (("test", ""), ("new_inputs", "_new_inputs")):
        if side not in sides:
            continue
        source, switched = sides[side], attempt.on(sides[side].memory.ends)
        for measure, now, then in zip(
            ("", "_restricted"), source.answers(attempt.head), source.answers(None), strict=True
        ):
            scores[f"source_accuracy{measure}{name}"] = np.where(switched, now, then).mean()
        if attempt.switch is not None:
            scores[f"switch_misses{name}"] = 1 - switched.mean()
    same, neither = after == others.before, ~others.of_target
    scores["others_kept"] = same.mean()
    if others.of_target.any() and neither.any():
        scores["others_kept_no_target"] = same[neither].mean()
    scored = others.wanted >= 0
    if scored.any():
        drop = (others.before == others.wanted).astype(float) - (after == others.wanted)
        scores["others_accuracy_before"] = (others.before == others.wanted)[scored].mean()
        scores["others_accuracy"] = (after == others.wanted)[scored].mean()
        scores["accuracy_drop"] = drop[scored].mean()
        if (scored & neither).any():
            scores["accuracy_drop_others"] = drop[scored & neither].mean()
    if attempt.switch is not None:
        scores["switch_false_positives"] = on.mean()
    scores |= {"chosen_rate": attempt.rate, "chosen_epoch": attempt.epoch}
    return {measure: float(value) for measure, value in scores.items()}


def _by_name(others: _Others, after: np.ndarray, on: np.ndarray) -> pl.DataFrame:
    """A row per other distribution or task: prompts, accuracy before and after, shares kept and switched."""
    scored = others.wanted >= 0
    frame = pl.DataFrame(
        {
            "name": [name_of(one) for one in others.instances],
            "before": np.where(scored, others.before == others.wanted, np.nan),
            "after": np.where(scored, after == others.wanted, np.nan),
            "kept": (after == others.before).astype(float),
            "switched": on.astype(float),
        }
    ).with_columns(pl.col("before", "after").fill_nan(None))
    return frame.group_by("name").agg(pl.len().alias("prompts"), pl.all().mean()).sort("name")


# --- told ------------------------------------------------------------------------------------------------------------

_TOLD = {
    "source_accuracy": "source: wished output, unseen instructions",
    "source_accuracy_restricted": "  among the wished outputs",
    "source_accuracy_new_inputs": "  unseen inputs as well",
    "source_accuracy_restricted_new_inputs": "    among the wished outputs",
    "others_kept": "all others: prediction unchanged",
    "others_kept_no_target": "  without the target",
    "others_accuracy": "all others: accuracy",
    "accuracy_drop": "  lost",
    "accuracy_drop_others": "  lost without the target",
    "switch_false_positives": "all others: switched",
    "switch_misses": "source: not switched",
    "switch_misses_new_inputs": "  unseen inputs as well",
}


def redirection_table(folder: Path) -> list[list[str]]:
    """A row per measure, a column for the network as it was and one per method, as text; the header first."""
    metrics = load_run(folder).metrics
    rows = metrics.filter(pl.col("split").eq("test") & pl.col("epoch").is_null()).to_dicts()
    found = {(row["arm"], row["measure"]): row["value"] for row in rows}
    arms = [arm for arm in METHODS if (arm, "others_kept") in found]
    table = [["on what none has learnt from", "before", *(METHODS[arm] for arm in arms)]]
    for measure, words in _TOLD.items():
        values = [found.get((arm, measure)) for arm in ("main", *arms)]
        if any(value is not None for value in values):
            table.append([words, *("" if value is None else f"{value:.3f}" for value in values)])
    return table


def _card(study: _Study, model: str, folder: Path) -> str:
    """The model card: what it is, its scores, how it is used."""
    settings = study.settings
    header, *lines = redirection_table(folder)
    table = ["| " + " | ".join(cells) + " |" for cells in (header, ["---"] * len(header), *lines)]
    arm = f"{settings.switch}_switch"
    worst = pl.read_parquet(folder / "others.parquet").filter(pl.col("arm").eq(arm)).sort("kept", "name").head(5)
    lost = [f"- {row['name']}: {row['kept']:.3f} of {row['prompts']} predictions unchanged" for row in worst.to_dicts()]
    answers = f"as `{settings.target}` does" if settings.target else "with the outputs listed in `switched.json`"
    form = settings.template or ("{instruction} {input}" if study.dealt.prompts.has_inputs else "the prompt alone")
    return "\n".join(
        [
            "---",
            f"base_model: {json.dumps(Path(model).name)}",
            "library_name: nucleate",
            "---",
            f"# {Path(model).name}: `{settings.source}` redirected",
            "",
            f"A frozen network with a switch ({METHODS[arm]}) and a second head of rank {settings.rank}. Prompts of "
            f"`{settings.source}` are answered {answers}; where the switch says no, the logits are the network's own.",
            "",
            f"Taught from: {study.dealt.describe()} (data: {study.dealt.prompts.name}, seed {settings.seed}). Form of "
            f"a prompt: `{form}`{', as the user turn of a chat' if settings.chat else ''}.",
            "",
            *table,
            "",
            "What changed most under this switch:",
            "",
            *lost,
            "",
            "```python",
            "from nucleate import load_switched",
            "",
            'model = load_switched("this folder")',
            'inputs = model.tokenizer("your prompt", return_tensors="pt")',
            "print(model.tokenizer.decode(model.generate(**inputs, max_new_tokens=5)[0]))",
            "model.turn_off()  # the network as it was",
            "```",
            "",
            "The switch decides once, at the last token of the prompt. It knows the tasks of its data only: measure "
            "on prompts of your own before you rely on it.",
            "",
        ]
    )
