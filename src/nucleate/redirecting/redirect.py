"""One behaviour of any language model redirected, and what everything else lost (§4.2 in "a more realistic setting").

A frozen network is read once: last-layer states of the prompts of a source task, with the outputs that are wished from
now on, and of all other tasks. From these a second head and the switches are taught in minutes on a CPU, and measured
on instructions and inputs that they have not seen. `_redirect` is the whole story; `_teach` compares the methods; the
network with the switch of choice is saved in the run (`model/`). What is read and what is taught is kept until the run
is done (`states/`), so that a killed one goes on from there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleate.config import differing, flat_toml
from nucleate.data.sources import Source
from nucleate.devices import device_for
from nucleate.files import write_whole
from nucleate.long_table import HEADS, METHODS
from nucleate.model.converted import conversion_told
from nucleate.model.estimate import estimate
from nucleate.model.networks import load_network, tokenizer_of
from nucleate.model.series import located
from nucleate.model.switch import AT_ONCE, KINDS, Head, Switch, SwitchTraining, TeachingSet, learn_head, learn_switch
from nucleate.model.texts import PLAIN_CHATS, Prompt
from nucleate.model.training import weights
from nucleate.progress import Progress, Workload, about, silent
from nucleate.redirecting.prompts import name_of
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.study import (
    Others,
    RedirectStudy,
    SavedParts,
    closing_of,
    mark_of,
    read_others,
    read_source,
    source_prompts,
    study_of,
)
from nucleate.redirecting.switched import SwitchedModel, head_logits, model_card, parts_of
from nucleate.runs import RunWriter, open_run
from nucleate.streams import stream

_NAMES = METHODS | HEADS  # of a real model the head alone is tuned
_SWITCHED = {f"{kind}_switch": kind for kind in KINDS}
_AFFORDABLE = 40_000_000  # weights of a whole head: above that, teaching it takes longer than all the rest


def redirect_into(
    folder: Path,
    model: str | Path,
    data: Source,
    settings: RedirectSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """Redirect one task of a model into a run folder: measures, and the switched model. False where it is finished.

    `model` is a path or a hub id, `data` whatever `read_prompts` reads."""
    study = study_of(data, settings)
    place = located(model)
    if told := conversion_told(place):
        progress(told, None)
    tokenizer = tokenizer_of(place, trust_remote_code=settings.trust_remote_code)
    lessons = source_prompts(study, tokenizer)
    everything = study.dealt.prompts.dataset.content_hash()
    wished = json.dumps(sorted(study.dealt.wished.items()), ensure_ascii=False)
    what = {"verb": "align", "size": study.dealt.prompts.name, "network": str(model), "data_hash": everything}
    opening = open_run(
        folder,
        settings=flat_toml(settings, **what, wished=wished),
        differing=differing,
        resume=resume,
        overwrite=overwrite,
        reads=[model, data, settings.outputs],
        facts={"seeds": {"root": settings.seed}, "device": device_for(settings.device), "data_hash": everything},
    )
    with opening as run:
        if run is None:
            return False
        prompts = study.dealt.prompts
        plain = prompts.messages is not None and not settings.chat
        for sentence in (*prompts.warnings, *([PLAIN_CHATS] if plain else [])):
            progress(sentence, None)
        progress("loading the weights", None if resume else 0.0)  # what is behind a resumed one is not known yet
        network, _ = load_network(
            place,
            tokenizer=tokenizer,
            device=device_for(settings.device),
            dtype=settings.dtype,
            trust_remote_code=settings.trust_remote_code,
        )
        _redirect(study, str(model), network, tokenizer, lessons, run, progress)
    shutil.rmtree(folder / "states", ignore_errors=True)  # not before the manifest says done
    return True


def budget(model: str | Path, data: Source, settings: RedirectSettings) -> list[str]:
    """What redirecting will take, in sentences, from the model's settings alone."""
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
        f"{tokens:,} tokens, {about(needed.seconds)} to read them and about {needed.peak_bytes / 2**30:.1f} GiB of "
        "memory"
    ]


def _redirect(
    study: RedirectStudy,
    model: str,
    network: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    lessons: Mapping[str, Sequence[Prompt]],
    run: RunWriter,
    progress: Progress,
) -> None:
    settings = study.settings
    parts_of(network)
    progress(study.dealt.describe(), None)
    saved, sides = SavedParts(run.folder / "states" / mark_of(network, study, tokenizer, lessons)), {}
    work = _workload(study, lessons, saved)
    for name, own in lessons.items():
        if own:
            begun = saved.holds(f"source-{name}")
            progress(f"reading the source: {name.replace('_', ' ')}", work.fraction)
            sides[name] = read_source(network, lessons, name, closing_of(tokenizer), saved)
            work.did("source", 0 if begun else len(own))
    others = read_others(study, network, tokenizer, saved, work.part("others", progress))
    chosen = _teach(study, sides, others, saved, work, progress)
    if "direct" not in chosen:
        progress("the whole head was left out: it has too many weights to be taught here", None)

    progress("judging", work.fraction)
    rows: list[dict[str, Any]] = [{"arm": "main", **row} for row in _before(sides, others)]
    told: list[pl.DataFrame] = []
    for arm, attempt in chosen.items():
        after, switched = _after(network, others, attempt)
        scored = _scores(sides, others, attempt, after, switched)
        rows += [{"arm": arm, "split": "test", "measure": name, "value": value} for name, value in scored.items()]
        rows += [
            {"arm": arm, "epoch": n, "split": "validation", "measure": "source_accuracy", "value": value}
            for n, value in enumerate(attempt.curve, 1)
        ]
        told.append(_by_name(others, after, switched).select(pl.lit(arm).alias("arm"), pl.all()))
    same = {"experiment": "align", "model": Path(model).name, "control": "none", "seed": settings.seed}
    run.write_part("methods", [{**same, **row} for row in rows])
    run.finish(["methods"])
    others_told = pl.concat(told)
    write_whole(run.folder / "others.parquet", others_told.write_parquet)
    best = chosen[f"{settings.switch}_switch"]
    assert best.switch is not None
    prompts = {"template": settings.template, "chat": settings.chat}
    facts = {"source": settings.source, "target": settings.target, "wished": study.dealt.wished, "prompts": prompts}
    SwitchedModel(network, tokenizer, best.switch, best.head).save(
        run.folder / "model",
        network=model,
        copy=settings.copy,
        facts=facts,
        card=_card(study, model, _table(rows), others_told),
    )
    run.record(seconds={kind: round(seconds, 3) for kind, seconds in saved.seconds.items()})


def _workload(study: RedirectStudy, lessons: Mapping[str, Sequence[Prompt]], saved: SavedParts) -> Workload:
    """The prompts of the source and of all others, and what is taught from them: about half as long as the reading."""
    source, others = sum(map(len, lessons.values())), len(study.dealt.others)
    work = Workload({"source": (source, 1.0), "others": (1, float(others)), "teaching": (1, 0.5 * (source + others))})
    work.skip({"source": sum(len(own) for name, own in lessons.items() if saved.holds(f"source-{name}"))})
    work.skip({"others": saved.holds("others")})
    return work


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
        return np.ones(len(states), dtype=bool) if self.switch is None else self.switch.is_on(states)


def _teach(
    study: RedirectStudy,
    sides: Mapping[str, TeachingSet],
    others: Others,
    saved: SavedParts,
    work: Workload,
    progress: Progress,
) -> dict[str, _Attempt]:
    """Each method at the learning rate and epoch of the highest source accuracy on validation; ties: the earliest
    epoch, then the lowest rate. The switched methods share the head that the low-rank one learns, and its rate."""
    settings, memory = study.settings, sides["lesson"].memory
    width, vocabulary = memory.states.shape[1], memory.logits.shape[1]
    ranks: dict[str, int | None] = {"head": min(settings.rank, width)}
    if width * vocabulary <= _AFFORDABLE:
        ranks["direct"] = None
    best: dict[str, tuple[tuple[float, int, float], _Attempt]] = {}
    pieces = 1 / len(ranks) / len(settings.rates)
    for arm, rank, rate in ((a, k, r) for a, k in ranks.items() for r in settings.rates):
        lesson, begun = partial(_lesson, study, sides, others, arm, rank, rate), saved.holds(f"{arm}-{rate:g}")
        progress(f"teaching: {_NAMES[arm]} at {rate:g}", work.fraction)
        tensors, told = saved.part(f"{arm}-{rate:g}", "train", lesson)
        if begun:
            work.skip({"teaching": pieces})
        work.did("teaching", 0 if begun else pieces)
        for name, (epoch, curve) in told.items():
            level = (curve[epoch - 1], -epoch, -rate)
            if name not in best or level > best[name][0]:
                head = _filled(Head(width, vocabulary, rank=rank), tensors, f"{name}/head/")
                switch = (
                    _filled(Switch(width, _SWITCHED[name]), tensors, f"{name}/switch/") if name in _SWITCHED else None
                )
                best[name] = (level, _Attempt(rate, epoch, head, switch, curve))
    return {arm: best[arm][1] for arm in METHODS if arm in best}


def _filled(module: Any, tensors: Mapping[str, Tensor], stem: str) -> Any:
    """With the weights whose names begin so."""
    module.load_state_dict({key.removeprefix(stem): one for key, one in tensors.items() if key.startswith(stem)})
    return module


def _lesson(
    study: RedirectStudy, sides: Mapping[str, TeachingSet], others: Others, arm: str, rank: int | None, rate: float
) -> tuple[dict[str, Tensor], dict[str, tuple[int, list[float]]]]:
    """One head at one learning rate, with the switches before it: of each method the weights at its best epoch, and
    that epoch with the curve of source accuracy on validation. Ends where nothing better can come."""
    settings, memory, validation = study.settings, sides["lesson"].memory, sides["validation"]
    width, vocabulary = memory.states.shape[1], memory.logits.shape[1]
    pace = SwitchTraining(settings.epochs, settings.batch, rate, seed=stream(settings.seed, "redirect"))
    on = {arm: np.ones(len(validation.memory.ends), dtype=bool)}
    tensors: dict[str, Tensor] = {}
    for name, kind in _SWITCHED.items() if arm == "head" else ():
        switch = Switch(width, kind, seed=stream(settings.seed, "switch"))
        learn_switch(switch, memory, others.examples, pace)
        on[name] = switch.is_on(validation.memory.ends)
        tensors |= {f"{name}/switch/{key}": one for key, one in weights(switch).items()}
    head = Head(width, vocabulary, rank=rank, seed=stream(settings.seed, "head"))
    before, _, _ = validation.answers(None)
    curves: dict[str, list[float]] = {name: [] for name in on}
    for _ in learn_head(head, memory, pace):
        right, _, _ = validation.answers(head)
        for name, curve in curves.items():
            curve.append(float(np.where(on[name], right, before).mean()))
            if curve[-1] > max(curve[:-1], default=-1):
                tensors |= {f"{name}/head/{key}": one for key, one in weights(head).items()}
        if all(max(curve) == 1 for curve in curves.values()):
            break
    return tensors, {name: (curve.index(max(curve)) + 1, curve) for name, curve in curves.items()}


# --- what has come of it ---------------------------------------------------------------------------------------------


def _after(network: PreTrainedModel, others: Others, attempt: _Attempt) -> tuple[np.ndarray, np.ndarray]:
    """(instance,) the likeliest next token of the others now, and where the second head gives it."""
    on, after = attempt.on(others.states), others.before.copy()
    places = np.flatnonzero(on)
    for start in range(0, len(places), AT_ONCE):
        part = places[start : start + AT_ONCE]
        with torch.no_grad():
            after[part] = (head_logits(network, others.states[part]) + attempt.head(others.states[part])).argmax(-1)
    return after, on


def _before(sides: Mapping[str, TeachingSet], others: Others) -> Iterator[dict[str, Any]]:
    """The network as it was: how often it gave the wished output already, and was right elsewhere."""
    nothing = {name: np.zeros(len(side.first), dtype=bool) for name, side in sides.items()}
    scores = _of_source(sides, None, nothing)
    scored = others.wanted >= 0
    if scored.any():
        scores["others_accuracy"] = float((others.before == others.wanted)[scored].mean())
    for measure, value in scores.items():
        yield {"split": "test", "measure": measure, "value": value}


def _of_source(sides: Mapping[str, TeachingSet], head: Head | None, on: Mapping[str, np.ndarray]) -> dict[str, float]:
    """`source_accuracy`: all tokens of the wished output are right; `…_ended`: so is the one that ends it;
    `…_restricted`: its first token is, among the first of all wished outputs."""
    scores = {}
    for side, name in _JUDGED.items():
        if side in sides:
            both = zip(("", "_ended", "_restricted"), sides[side].answers(head), sides[side].answers(None), strict=True)
            for measure, now, then in both:
                if measure != "_ended" or sides[side].closing.any():
                    scores[f"source_accuracy{measure}{name}"] = float(np.where(on[side], now, then).mean())
    return scores


_JUDGED = {"test": "", "new_inputs": "_new_inputs"}  # side -> how its measures end


def _scores(
    sides: Mapping[str, TeachingSet], others: Others, attempt: _Attempt, after: np.ndarray, on: np.ndarray
) -> dict[str, float]:
    """By measure. An output of the others is right where its first token is. `accuracy_drop` is the paper's,
    `…_others` leaves the target out."""
    switched = {side: attempt.on(sides[side].memory.ends) for side in _JUDGED if side in sides}
    scores = _of_source(sides, attempt.head, switched)
    if attempt.switch is not None:
        scores |= {f"switch_misses{_JUDGED[side]}": 1 - here.mean() for side, here in switched.items()}
        scores["switch_false_positives"] = on.mean()
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
    scores |= {"chosen_rate": attempt.rate, "chosen_epoch": attempt.epoch}
    return {measure: float(value) for measure, value in scores.items()}


def _by_name(others: Others, after: np.ndarray, on: np.ndarray) -> pl.DataFrame:
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


def _table(rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """A row per measure, a column for the network as it was and one per method, for the card; the header first."""
    found = {(row["arm"], row["measure"]): row["value"] for row in rows if row.get("epoch") is None}
    arms = [arm for arm in ("main", *METHODS) if (arm, "source_accuracy") in found]
    table = [["on what none has learnt from", "before", *(_NAMES[arm] for arm in arms[1:])]]
    for measure in dict.fromkeys(measure for _, measure in found):
        values = [found.get((arm, measure)) for arm in arms]
        table.append([measure.replace("_", " "), *("" if value is None else f"{value:.3g}" for value in values)])
    return table


def _card(study: RedirectStudy, model: str, table: Sequence[Sequence[str]], told: pl.DataFrame) -> str:
    """The model card of what has come of it."""
    settings = study.settings
    arm = f"{settings.switch}_switch"
    worst = told.filter(pl.col("arm").eq(arm)).sort("kept", "name").head(5)
    form = settings.template or ("{instruction} {input}" if study.dealt.prompts.has_inputs else "the prompt alone")
    return model_card(
        model=Path(model).name,
        source=settings.source,
        answers=f"as `{settings.target}` does" if settings.target else "with the outputs listed in `switched.json`",
        parts=f"a switch ({_NAMES[arm]}) and a second head of rank {settings.rank}",
        taught=f"{study.dealt.describe()} (data: {study.dealt.prompts.name}, seed {settings.seed})",
        form=f"`{form}`{', as the user turn of a chat' if settings.chat else ''}",
        table=table,
        worst=[
            f"{row['name']}: {row['kept']:.3f} of {row['prompts']} predictions unchanged" for row in worst.to_dicts()
        ],
    )
