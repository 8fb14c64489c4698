"""Any model, any labelled prompts: at which layer are the tasks separate, which are confused, which labels look wrong?

The paper's realistic setting (§3.4, Table 1) for any network and any prompts. `_probe` is the whole story of one model:
read the prompts, measure every layer, choose the best on one half of the instructions and report it on the other, and
give every control the same treatment. What it comes to in words stands in `measures/findings.py`.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

import numpy as np
import polars as pl

from nucleate.config import differing, flat_toml
from nucleate.data.dataset import Dataset
from nucleate.data.prompts import Prompts, read_prompts
from nucleate.experiments.groundwork import Progress, device_for
from nucleate.experiments.probe_result import TABLES, ProbeResult, load_probe
from nucleate.experiments.probe_study import ProbeSettings, Study, settings_of
from nucleate.measures.baselines import MOST_FEATURES, surface_features
from nucleate.measures.findings import (
    best_layer_of,
    deciding_measure,
    difference,
    mislabelled,
)
from nucleate.measures.panel import (
    MOST_SHOWN,
    Panel,
    Rows,
    Sweep,
    Tell,
    confusion_frame,
    interval_rows,
    look_closer,
    margins,
    sweep,
    task_frame,
)
from nucleate.measures.prompt_tables import coordinate_frame, layout_frame, suspicious_frame
from nucleate.measures.separation import MISLABELLED, doubts
from nucleate.model.networks import untrained
from nucleate.model.prompts import PromptReading
from nucleate.model.subjects import Subject, all_ready, subjects_of
from nucleate.model.texts import fill
from nucleate.model.training import stream
from nucleate.runs import RunWriter, open_run, thread_count, write_whole

NEUTRAL = "Answer:"  # an instruction that says nothing
_DEEP = 5  # layers that are looked at more closely
_Frames = dict[str, pl.DataFrame]


def probe(
    model: Any,
    data: Any,
    *,
    tokenizer: Any = None,
    base: Any = None,
    progress: Progress = lambda text, fraction: None,
    **options: Any,
) -> ProbeResult:
    """Does a model separate the tasks of labelled prompts, where, and which not?

    `model` is a path, a hub id or a loaded network (with its `tokenizer`), or a list of such; a folder of checkpoints
    is a series. `data` is a file, a table, a list of dicts, a Dataset, or `natural`. `base` is the model before its
    fine-tuning, to compare with. `options` are the fields of `ProbeSettings`."""
    place = Path(mkdtemp(prefix="nucleate-probe-"))
    try:
        probe_into(place / "run", model, data, tokenizer=tokenizer, base=base, progress=progress, **options)
        result = load_probe(place / "run")
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    finalize(result, shutil.rmtree, place, ignore_errors=True)  # the folder lives as long as the result
    return result


def probe_into(
    folder: Path,
    model: Any,
    data: Any,
    *,
    tokenizer: Any = None,
    base: Any = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda text, fraction: None,
    **options: Any,
) -> bool:
    """`probe` into a run folder, a part for each model. False where the run is finished and nothing was done."""
    study, subjects, compared = _at_the_door(model, data, base, tokenizer, settings_of(options))
    settings = study.settings
    dataset = Dataset(study.prompts.instances, {}, {}, {}, {})
    what = {"verb": "probe", "size": study.prompts.name, "models": [one.name for one in subjects], "base": compared}
    same = {"data_hash": dataset.content_hash(), "weights": [one.checksum or "" for one in subjects]}
    opening = open_run(
        folder,
        settings=flat_toml(settings, **what, **same),
        differing=differing,
        resume=resume,
        overwrite=overwrite,
        facts={
            "seeds": {"root": settings.seed},
            "device": device_for(settings.device),
            "data_hash": same["data_hash"],
            "checkpoints": {one.name: one.checksum for one in subjects if one.checksum},
        },
    )
    with opening as run:
        if run is None:
            return False
        for sentence in (*(_announcement(study.prompts, settings, one) for one in subjects), *study.notes):
            progress(sentence, None)
        write_whole(run.folder / "data" / "dataset.parquet", dataset.frame().write_parquet)
        began = time.perf_counter()
        surface = _surface(study, run, progress)
        for subject in subjects:
            if not (run.folder / "parts" / f"{_part(subject)}.parquet").is_file():
                _probe(study, subject, run, surface, progress)
                began = _note_seconds(run, began, study.reading)
        _finish(run, study, subjects, compared)
    return True


def check(model: Any, data: Any, **options: Any) -> None:
    """Refuse what `probe` would refuse before it reads; models of a hub are fetched."""
    _at_the_door(model, data, None, None, settings_of(options))


def _at_the_door(
    model: Any, data: Any, base: Any, tokenizer: Any, settings: ProbeSettings
) -> tuple[Study, list[Subject], str | None]:
    study = Study.of(read_prompts(data, columns=settings.columns, limit=settings.limit), settings)
    found, compared = _subjects(model, base, tokenizer, settings)
    subjects = all_ready(found)
    for subject in subjects:
        study.check(subject)
    return study, subjects, compared


def budget(model: Any, data: Any, *, base: Any = None, tokenizer: Any = None, **options: Any) -> list[str]:
    """A sentence per model: what probing it will take, from its settings alone."""
    settings = settings_of(options)
    study = Study.of(read_prompts(data, columns=settings.columns, limit=settings.limit), settings)
    if settings.template is not None:
        fill(settings.template, {"instruction": "", "input": ""}, (study.main, *study.other_reads))
    return [_announcement(study.prompts, settings, one) for one in _subjects(model, base, tokenizer, settings)[0]]


def _announcement(prompts: Prompts, settings: ProbeSettings, subject: Subject) -> str:
    count = len(prompts.instances)
    shared = {one.instruction for one in prompts.instances}
    own = [one.input + (one.output or "") for one in prompts.instances]
    tokens = round(sum(map(len, shared)) / 4 + sum(len(text) / 3 + 1 for text in own))
    needed = subject.estimate(count, tokens, layers=len(subject.layers(settings.layers)))
    passes = 2.5 if prompts.has_inputs else 2  # trained, untrained, and the few distinct neutral prompts
    beside = needed.weight_bytes + 2 * 4 * count * MOST_FEATURES + _LIBRARIES  # untrained network, n-grams
    measuring = needed.state_bytes / 4 * (count * _SECONDS_A_PAIR + _SECONDS_A_NUMBER) / thread_count()
    return (
        f"{subject.name}: {_millions(needed.parameters)} parameters, {count:,} prompts of about {tokens:,} tokens; "
        f"{_size(needed.peak_bytes + beside)} of memory ({_size(needed.weight_bytes)} of weights, "
        f"{_size(needed.state_bytes)} of states), about {_duration(needed.seconds * passes)} to read and "
        f"{_duration(measuring)} to measure"
    )


_LIBRARIES = 2**30  # bytes: Python, torch, compiled kernels, blocks of neighbours
_SECONDS_A_PAIR, _SECONDS_A_NUMBER = 2.5e-10, 2e-6  # of each number of a state: times the prompts, and once


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} million" if count >= 1e7 else f"{count:,}"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"


def _duration(seconds: float) -> str:
    if seconds < 1:
        return "a second"
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 60 * 60 else f"{seconds / 3600:.0f} hours"


def _probe(
    study: Study, subject: Subject, run: RunWriter, surface: Mapping[str, np.ndarray], progress: Progress
) -> None:
    """One model, from its weights to its tables."""
    network, tokenizer = subject.load()
    layers = subject.layers(study.settings.layers)
    deep = layers if study.settings.thorough else _spread(layers)
    main, told = study.main, _telling(_named(progress, subject.name))
    spill = run.folder / "spill"
    reads = {main: layers, **{read: deep for read in study.other_reads}}
    reading = study.read(network, tokenizer, study.prompts, reads, _named(progress, subject.name), spill=spill)
    panel, states = study.panel.only(reading.kept), reading.states[main]

    swept = sweep(panel, states, layers, told)
    best = swept.best_layer
    at_best = np.array(states[layers.index(best)])
    closer = sorted({*deep, best})
    near = look_closer(panel, states[[layers.index(layer) for layer in closer]], closer, told)
    rows = _settled(swept.rows + interval_rows(panel, swept, at_best) + near.rows, read=main)
    for read in study.other_reads:
        rows += _settled(sweep(panel, reading.states[read], deep, told).rows, read=read)
    if study.prompts.has_inputs:
        neutral = _named(progress, f"{subject.name}, neutral instruction")
        rows += _settled(_neutral(study, panel, network, tokenizer, deep, neutral), read=main, control="neutral")
    fresh = _untrained(study, panel, network, tokenizer, deep, _named(progress, f"{subject.name}, untrained"))
    rows += _settled([*fresh.rows, _best_row(fresh)], read=main, control="untrained")
    rows += _settled(_answer_rows(panel, reading))

    controls = {"untrained": fresh.shares["test", fresh.best_layer], **surface}
    found = {layer: margins(panel, swept, layer, controls) for layer in layers}
    rows += _settled([row for one in found.values() for row in one.rows], read=main)
    texts = _texts(study, reading.kept)
    doubted = doubts(at_best, panel.labels.task, texts["prompt"].to_numpy(), seed=panel.seed_of("doubts"))
    frames = {
        "tasks": task_frame(panel, swept, found, _right(reading)),
        "confusion": confusion_frame(panel, swept, closer),
        "suspicious": suspicious_frame(panel, texts, doubted, best),
        "coordinates": coordinate_frame(panel, texts, swept, at_best, near, doubted),
        "dropped": _dropped_frame([(study.prompts.places[place], why) for place, why in reading.dropped]),
    }
    facts = (pl.lit(subject.name).alias("model"), *(pl.lit(v, pl.Int32).alias(n) for n, v in subject.age.items()))
    for name, frame in frames.items():
        whole = frame.select(*facts, pl.all())
        write_whole(run.folder / "pieces" / f"{_part(subject)}-{name}.parquet", whole.write_parquet)
    layout = layout_frame(texts["instance"].to_numpy(), states, layers, near)
    write_whole(run.folder / "layouts" / f"{subject.file}.parquet", layout.write_parquet)
    known = {"model": subject.name, **subject.age}
    run.write_part(_part(subject), [study.complete({**row, **known}) for row in rows])
    remarks = _remarks(study, reading)
    for sentence in remarks:
        progress(f"{subject.name}: {sentence}", None)
    run.log("probed", model=subject.name, remarks=remarks)
    del reading, states
    shutil.rmtree(spill, ignore_errors=True)


# --- what is probed --------------------------------------------------------------------------------------------------


def _subjects(model: Any, base: Any, tokenizer: Any, settings: ProbeSettings) -> tuple[list[Subject], str | None]:
    loading = {name: getattr(settings, name) for name in ("dtype", "trust_remote_code")}
    loading |= {"device": device_for(settings.device), **(settings.loading or {})}
    return subjects_of(model, base, tokenizer, loading, settings.revisions)


def _part(subject: Subject) -> str:
    return f"model-{subject.file}"


def _texts(study: Study, kept: np.ndarray) -> pl.DataFrame:
    """instance, row, prompt (equal numbers for equal prompts) and what a reader wants to see of it."""
    frame = Dataset(_kept(study.prompts, kept).instances, {}, {}, {}, {}).frame()
    row = pl.Series("row", [study.prompts.places[place] for place in kept], dtype=pl.Int32)
    text = pl.concat_str("instruction", "input", separator=" ").str.strip_chars().alias("text")
    prompt = pl.struct("instruction", "input").rank("dense").cast(pl.Int64).alias("prompt")
    return frame.select("instance", row, prompt, text, "instruction", "input", "task", "distribution")


def _dropped_frame(dropped: Sequence[tuple[int, str]]) -> pl.DataFrame:
    """row, why: the prompts that were left out."""
    return pl.DataFrame(dropped, schema={"row": pl.Int32, "why": pl.String}, orient="row")


def _kept(prompts: Prompts, places: np.ndarray) -> Prompts:
    messages = None if prompts.messages is None else tuple(prompts.messages[place] for place in places)
    return replace(prompts, instances=tuple(prompts.instances[place] for place in places), messages=messages)


def _spread(layers: Sequence[int]) -> list[int]:
    """Five of the layers, first and last among them."""
    return [layers[n] for n in sorted(set(np.linspace(0, len(layers) - 1, _DEEP).round().astype(int).tolist()))]


def _remarks(study: Study, reading: PromptReading) -> list[str]:
    """What a user has to know about how the prompts were read."""
    remarks = []
    if reading.dropped:
        place, why = reading.dropped[0]
        first = f"{study.prompts.unit} {study.prompts.places[place]}"
        remarks.append(f"{len(reading.dropped)} prompts were left out (dropped.parquet); {first}: {why}")
    if reading.unknown_words:
        remarks.append(f"{reading.unknown_words} words are unknown to the tokenizer")
    if len(reading.kept) > MOST_SHOWN:
        remarks.append(f"t-SNE shows at most {MOST_SHOWN} of the prompts, whole instructions of them")
    return remarks + ([reading.note] if reading.note else [])


def _named(progress: Progress, name: str) -> Progress:
    return lambda text, fraction: progress(f"{name}: {text}", fraction)


def _telling(progress: Progress) -> Tell:
    return lambda what, done, of: progress(what, min(done / of, 0.99))  # 1 is the end of the run


# --- controls --------------------------------------------------------------------------------------------------------


def _neutral(
    study: Study, panel: Panel, network: Any, tokenizer: Any, layers: Sequence[int], progress: Progress
) -> Rows:
    """The same inputs after an instruction that says nothing: what is left is the input's own doing."""
    asked = _kept(study.prompts, panel.kept)
    asked = replace(asked, instances=tuple(replace(one, instruction=NEUTRAL) for one in asked.instances))
    reading = study.read(network, tokenizer, asked, {study.main: layers}, progress)
    return sweep(panel.only(reading.kept), reading.states[study.main], layers, _telling(progress)).rows


def _untrained(
    study: Study, panel: Panel, network: Any, tokenizer: Any, layers: Sequence[int], progress: Progress
) -> Sweep:
    """The same architecture with fresh weights; models of one architecture share it."""
    settings = {name: v for name, v in network.config.to_dict().items() if not name.startswith("_")}
    chat = getattr(tokenizer, "chat_template", None) if study.settings.chat else None
    words = sorted(tokenizer.get_vocab().items())
    key = json.dumps([settings, list(layers), panel.kept.tolist(), chat, words], sort_keys=True, default=str)
    if key not in study.known:
        fresh = untrained(network, stream(study.settings.seed, "untrained"))
        reading = study.read(fresh, tokenizer, _kept(study.prompts, panel.kept), {study.main: layers}, progress)
        study.known[key] = sweep(panel, reading.states[study.main], layers, _telling(progress))
    return study.known[key]


def _surface(study: Study, run: RunWriter, progress: Progress) -> dict[str, np.ndarray]:
    """What the text alone gives, as if its n-grams were states: control -> (prompt,) the deciding share on test."""
    texts = {"surface_prompt": [f"{one.instruction} {one.input}".strip() for one in study.prompts.instances]}
    if study.prompts.has_inputs:
        texts["surface_instruction"] = [one.instruction for one in study.prompts.instances]
    rows, shares = [], {}
    for control, column in texts.items():
        for side in study.panel.sides:  # the n-grams are those of the other half
            features = surface_features([column[place] for place in side.against], column)
            panel = replace(study.panel, sides=(side,))
            found = sweep(panel, features[np.newaxis], [0], _telling(_named(progress, control)))
            rows += _settled([{**row, "layer": None} for row in found.rows], control=control)
            if side.split == "test":
                shares[control] = found.shares["test", 0]
    run.write_part("surface", [study.complete(row) for row in rows])
    return shares


# --- rows ------------------------------------------------------------------------------------------------------------


def _settled(rows: Sequence[Mapping[str, Any]], *, read: str | None = None, control: str = "none") -> Rows:
    """Rows with their read; those of a control without shuffled and regrouped labels of its own."""
    kept = [row for row in rows if control == "none" or row.get("control", "none") == "none"]
    return [
        {"control": control, **row, "read": read} | ({"control": control} if control != "none" else {}) for row in kept
    ]


def _best_row(swept: Sweep) -> dict[str, Any]:
    place = {"split": "validation", "labels": "task", "space": "raw", "layer": None}
    return {**place, "measure": "best_layer", "value": float(swept.best_layer)}


def _right(reading: PromptReading) -> dict[str, np.ndarray]:
    """measure -> (instance,) 1 where the answer is right, NaN where there is none to compare with."""
    found = {"accuracy": reading.predicted, "accuracy_whole": reading.whole, "accuracy_restricted": reading.restricted}
    scored = reading.scored
    if scored is None:
        return {}
    return {name: np.where(scored, one, np.nan) for name, one in found.items() if one is not None}


def _answer_rows(panel: Panel, reading: PromptReading) -> Rows:
    return [
        {"split": side.split, "measure": measure, "value": float(np.nanmean(right[side.members]))}
        for measure, right in _right(reading).items()
        for side in panel.sides
        if not np.isnan(right[side.members]).all()
    ]


# --- the run folder --------------------------------------------------------------------------------------------------


def _finish(run: RunWriter, study: Study, subjects: Sequence[Subject], compared: str | None) -> None:
    """The parts as whole tables, the differences to the base, and the answer in words."""
    pieces = run.folder / "pieces"
    run.finish(["surface", *(_part(subject) for subject in subjects)])
    joined = run.folder / "pieces-joined"
    if not pieces.is_dir():  # killed after all was written
        shutil.rmtree(joined, ignore_errors=True)
        return
    tables = {n: pl.concat([pl.read_parquet(pieces / f"{_part(s)}-{n}.parquet") for s in subjects]) for n in TABLES}
    metrics = pl.read_parquet(run.folder / "metrics.parquet")
    doubted = [one.name for one in subjects if mislabelled(metrics, tables["coordinates"], one.name)]
    counted = pl.col("model").is_in(doubted) & (pl.col("margin") > MISLABELLED)
    tables["suspicious"] = tables["suspicious"].with_columns(counted.alias("counted"))
    own = _dropped_frame(study.prompts.dropped)
    tables["dropped"] = pl.concat([own, tables["dropped"]], how="diagonal").select(tables["dropped"].columns)
    if compared is not None:
        gained = [_over_base(tables, metrics, one, compared) for one in subjects if one.name != compared]
        tables["tasks"] = pl.concat([tables["tasks"], *gained])
    for name, frame in tables.items():
        write_whole(run.folder / f"{name}.parquet", frame.write_parquet)
    run.record(verdict=load_probe(run.folder).verdicts, notes=list(study.notes))
    shutil.rmtree(pieces.rename(joined))  # gone whole, or not at all


def _note_seconds(run: RunWriter, began: float, reading: list[float]) -> float:
    """Adds to the manifest what a model took, over all processes of a resumed run; when the next one begins."""
    now, read, before = time.perf_counter(), sum(reading), run.manifest.get("seconds", {})
    passed = {"read": read, "measure": now - began - read, "total": now - began}
    run.record(seconds={name: round(before.get(name, 0) + value, 3) for name, value in passed.items()})
    reading.clear()
    return now


def _over_base(tables: _Frames, metrics: pl.DataFrame, subject: Subject, compared: str) -> pl.DataFrame:
    """Rows of `tasks`: by how much the deciding share exceeds the base's, each model at its own best layer."""
    coordinates, measure = tables["coordinates"], f"{deciding_measure(metrics)}_over_base"
    here, there = (coordinates.filter(pl.col("model") == name) for name in (subject.name, compared))
    found = difference(here, there).rename({"difference": measure, "low": f"{measure}_low", "high": f"{measure}_high"})
    long = found.drop("share", "base_share").unpivot(index="task", variable_name="measure").drop_nulls("value")
    facts = {"model": subject.name, **subject.age, "layer": best_layer_of(metrics, subject.name)}
    schema = tables["tasks"].schema
    whole = long.with_columns(pl.lit(value, schema[name]).alias(name) for name, value in facts.items())
    return whole.select(schema.names())
