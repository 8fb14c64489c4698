"""One behaviour of any language model redirected, and what everything else lost (§4.2 in "a more realistic setting").

A frozen network is read once: states of the prompts of a source task, with the outputs that are wished from now on, and
of all other tasks. From these a second head and the switches are taught in minutes on a CPU, and measured on
instructions and inputs that they have not seen; in place of the head an adapter may be tuned. `_redirect` is the whole
story; `teaching.py` compares the methods, `tuning.py` tunes the adapter, `outcome.py` says what has come of each; the
network with the better switch is saved in the run (`model/`). What is read and what is taught is kept until the run is
done (`states/`), so that a killed one goes on from there.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.config import differing, flat_toml
from nucleate.data.sources import Source
from nucleate.devices import device_for
from nucleate.files import write_table
from nucleate.model.batches import layers_of
from nucleate.model.converted import conversion_told
from nucleate.model.estimate import estimate
from nucleate.model.networks import load_network, network_shape, tokenizer_of
from nucleate.model.packed_pass import text_config
from nucleate.model.series import located
from nucleate.model.texts import PLAIN_CHATS, Prompt
from nucleate.progress import Progress, Workload, about, silent
from nucleate.redirecting.card import model_card
from nucleate.redirecting.loading import load_switched
from nucleate.redirecting.outcome import before_rows, method_rows
from nucleate.redirecting.settings import RedirectSettings
from nucleate.redirecting.stored import is_switched, network_name, network_of
from nucleate.redirecting.study import (
    PARTS,
    RedirectStudy,
    SavedParts,
    mark_of,
    read_others,
    read_source,
    source_prompts,
    study_of,
)
from nucleate.redirecting.switched import SwitchedModel
from nucleate.redirecting.teaching import better_switch, teach
from nucleate.redirecting.tuning import passes_of, tuned_adapter
from nucleate.runs import RunWriter, load_run, open_run


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

    `model` is a path or a hub id; a model that this has saved is redirected once more. `data` is whatever
    `read_prompts` reads."""
    study = study_of(data, settings)
    place = located(*network_of(model))
    if told := conversion_told(place):
        progress(told, None)
    tokenizer = tokenizer_of(place, trust_remote_code=settings.trust_remote_code)
    if settings.layers is not None:
        layers_of(network_shape(place, trust_remote_code=settings.trust_remote_code), settings.layers)
    lessons = source_prompts(study, tokenizer)
    everything = study.dealt.prompts.dataset.content_hash()
    wished = json.dumps(sorted(study.dealt.wished.items()), ensure_ascii=False)
    what = {"verb": "align", "size": study.dealt.prompts.name, "network": str(model), "data_hash": everything}
    opening = open_run(
        folder,
        settings=flat_toml(settings, **what, wished=wished),
        differing=partial(differing, kind=RedirectSettings),
        resume=resume,
        overwrite=overwrite,
        reads=[model, data, settings.outputs],
        facts={"seeds": {"root": settings.seed}, "device": device_for(settings.device), "data_hash": everything},
        progress=progress,
    )
    with opening as run:
        if run is None:
            return False
        prompts = study.dealt.prompts
        plain = prompts.messages is not None and not settings.chat
        for sentence in (*prompts.warnings, *([PLAIN_CHATS] if plain else []), *study.dealt.doubts()):
            progress(sentence, None)
        progress("loading the weights", None if resume else 0.0)  # what is behind a resumed one is not known yet
        loading: dict[str, Any] = {
            "tokenizer": tokenizer,
            "device": device_for(settings.device),
            "dtype": settings.dtype,
            "trust_remote_code": settings.trust_remote_code,
        }
        if is_switched(model):
            switched = load_switched(model, **loading)
        else:
            switched = SwitchedModel(load_network(place, **loading)[0], tokenizer)
        _redirect(study, str(model), switched, lessons, run, progress)
    shutil.rmtree(folder / "states", ignore_errors=True)  # not before the manifest says done
    return True


def budget(model: str | Path, data: Source, settings: RedirectSettings) -> list[str]:
    """What redirecting will take, in sentences, from the model's settings alone."""
    study = study_of(data, settings)
    prompts = [*(one for side in study.dealt.sides.values() for one in side), *study.dealt.others]
    shared = sum(len(text) for text in {one.instruction for one in prompts}) / 4
    tokens = round(shared + sum((len(one.input) + len(one.output or "")) / 3 + 1 for one in prompts))
    if settings.expert == "adapter":
        tokens += round(tokens / len(prompts) * passes_of(study))
    needed = estimate(
        network_of(model)[0],
        len(prompts),
        tokens,
        layers=1 + (PARTS if settings.layers is None else len(settings.layers)),
        dtype=settings.dtype,
        device=device_for(settings.device),
        trust_remote_code=settings.trust_remote_code,
    )
    return [
        f"{network_name(model)}: {needed.parameters / 1e6:,.0f} million parameters; {study.dealt.describe()}; about "
        f"{tokens:,} tokens, {about(needed.seconds)} to read them and about {needed.peak_bytes / 2**30:.1f} GiB of "
        "memory",
        *study.dealt.doubts(),
    ]


def _redirect(
    study: RedirectStudy,
    name: str,
    model: SwitchedModel,
    lessons: Mapping[str, Sequence[Prompt]],
    run: RunWriter,
    progress: Progress,
) -> None:
    settings, earlier = study.settings, [facts.get("source", "?") for facts in model.facts]
    model.turn_off()  # while it is read
    progress(study.dealt.describe(), None)
    tried = study.layers(model.network)
    layers = tuple(sorted({*tried, *model.layers, text_config(model.network).num_hidden_layers}))
    saved, sides = SavedParts(run.place("states", mark_of(model, study, lessons, layers)), run.note), {}
    work = _workload(study, lessons, saved)
    for side, own in lessons.items():
        if own:
            begun = saved.holds(f"source-{side}")
            progress(f"reading the source: {side.replace('_', ' ')}", work.fraction)
            sides[side] = read_source(model, lessons, side, layers, saved)
            work.did("source", 0 if begun else len(own))
    others = read_others(study, model, layers, saved, work.part("others", progress))

    def told(text: str, piece: float, begun: bool) -> None:
        if begun:
            work.skip({"teaching": piece})
        progress(text, work.did("teaching", 0 if begun else piece))

    adapter = None
    if settings.expert == "adapter":
        adapter = tuned_adapter(study, model, lessons, sides, others, saved, told)
    methods = teach(settings, tried, sides, others, saved, told, adapter)
    if "head" in methods and "direct" not in methods:
        progress("the whole head was left out: it has too many weights to be taught here", None)

    progress("judging", work.fraction)
    rows, lost = list(before_rows(sides, others)), list[pl.DataFrame]()
    for arm, method in methods.items():
        own_rows, by_name = method_rows(arm, method, model.network, sides, others)
        rows += own_rows
        lost.append(by_name)
    same = {"experiment": "align", "model": network_name(name), "control": "none", "seed": settings.seed}
    run.write_part("methods", [{**same, **row} for row in rows])
    run.finish(["methods"])
    write_table(run.place("others.parquet"), pl.concat(lost))
    arm = better_switch(methods) if settings.switch is None else f"{settings.switch}_switch"
    run.record(saved=arm, seconds={kind: round(seconds, 3) for kind, seconds in saved.seconds.items()})

    best = methods[arm]
    assert best.switch is not None
    prompts = {"template": settings.template, "chat": settings.chat}
    facts = {"source": settings.source, "target": settings.target, "wished": study.dealt.wished, "prompts": prompts}
    model.add(best.switch, best.expert, facts)
    model.turn_on()
    card = model_card(
        load_run(run.folder),
        model=network_name(name),
        taught=f"{study.dealt.describe()} (data: {study.dealt.prompts.name}, seed {settings.seed})",
        expert=settings.expert,
        rank=settings.rank,
        earlier=earlier,
        has_inputs=study.dealt.prompts.has_inputs,
    )
    network, revision = network_of(name)
    model.save(run.place("model"), network=network, revision=revision, copy=settings.copy, card=card)


def _workload(study: RedirectStudy, lessons: Mapping[str, Sequence[Prompt]], saved: SavedParts) -> Workload:
    """The prompts of the source and of all others, and what is taught from them: about half as long as the reading."""
    source, others = sum(map(len, lessons.values())), len(study.dealt.others)
    taught = passes_of(study) if study.settings.expert == "adapter" else 0.5 * (source + others)
    work = Workload({"source": (source, 1.0), "others": (1, float(others)), "teaching": (1, taught)})
    work.skip({"source": sum(len(own) for name, own in lessons.items() if saved.holds(f"source-{name}"))})
    work.skip({"others": saved.holds("others")})
    return work
