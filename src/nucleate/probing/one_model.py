"""What a probe writes into its run folder: a part for each model, one after the other, and at the end the whole.

`probe_one` is the whole story of one model: read the prompts, measure every layer, choose the best on one half of the
instructions and report it on the other, and give every control the same treatment. `surface_of` comes before the first,
`finish` after the last; `join` makes the whole of what is there so far.
"""

import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from nucleate.data.prompts import Prompts
from nucleate.files import write_table
from nucleate.long_table import CLUSTERED, READABLE, deciding_measure
from nucleate.model.networks import untrained
from nucleate.model.prompts import Elsewhere, PromptReading
from nucleate.model.subjects import Subject
from nucleate.parts import read_metrics, read_part, write_part
from nucleate.probing.changes import difference
from nucleate.probing.controls import at_best_of, rows_with
from nucleate.probing.costs import costs_of, spread
from nucleate.probing.design import Design
from nucleate.probing.findings import layer_of
from nucleate.probing.geometry import geometry_rows
from nucleate.probing.layers import (
    MOST_SHOWN,
    LayerMeasures,
    Rows,
    Tell,
    best_layers_of,
    interval_rows,
    look_closer,
    measure_layers,
)
from nucleate.probing.margins import Controls, margins
from nucleate.probing.moves import moved
from nucleate.probing.result import TABLES, load_probe
from nucleate.probing.separation import MISLABELLED, doubts, planted_found
from nucleate.probing.steering import write_means
from nucleate.probing.study import ProbeStudy
from nucleate.probing.tables import confusion_frame, coordinate_frame, layout_frame, suspicious_frame, task_frame
from nucleate.progress import Progress, Workload
from nucleate.runs import RunWriter
from nucleate.streams import stream

NEUTRAL = "Answer:"  # an instruction that says nothing
_Frames = dict[str, pl.DataFrame]


def probe_one(
    study: ProbeStudy,
    subject: Subject,
    run: RunWriter,
    surface: Controls,
    work: Workload,
    progress: Progress,
    *,
    act: bool = True,
) -> None:
    """One model, from its weights to its tables; with `act` also where to act on it."""
    main, costs, progress = study.main, costs_of(study, subject), _named(progress, subject.name)
    progress("loading the weights", work.fraction)
    network, tokenizer = subject.load()
    work.did("loading")
    layers = subject.layers(study.settings.layers)
    deep = layers if study.settings.thorough else spread(layers)
    spill, blocks = run.folder / "spill", run.folder / "blocks" / subject.file
    loaded = replace(subject).load  # by a worker too: without what is cached of this one
    reads = {main: layers, **{read: deep for read in study.other_reads}}
    reading = study.read(
        network,
        tokenizer,
        study.prompts,
        reads,
        work.part("reading", progress, costs["reading"]),
        spill=spill,
        elsewhere=study.elsewhere(loaded, blocks / "trained"),
    )
    design, states = study.design.only(reading.kept), reading.states[main]

    measured = measure_layers(design, states, layers, _telling(work, costs, progress))
    best, readable = measured.best_layer, measured.best_readable_layer
    closer = sorted({*deep, best, readable})
    near = look_closer(
        design, states[[layers.index(layer) for layer in closer]], closer, _telling(work, costs, progress)
    )
    progress("intervals", work.fraction)
    sure = interval_rows(design, measured, np.array(states[layers.index(best)]))
    rows = rows_with(measured.rows + sure + near.rows, read=main)
    rows += rows_with(geometry_rows(design, states, layers), read=main)
    depth = subject.layers(None)[-1]
    rows += rows_with([{"split": "all", "measure": "depth", "value": float(depth)}])
    for read in study.other_reads:
        rows += rows_with(
            measure_layers(design, reading.states[read], deep, _telling(work, costs, progress)).rows, read=read
        )
    others = {}
    if study.prompts.has_inputs:
        told = _named(progress, "neutral instruction")
        away = study.elsewhere(loaded, blocks / "neutral")
        others["neutral"] = _neutral(study, design, network, tokenizer, deep, work, costs, told, away)
    told = _named(progress, "untrained")
    others["untrained"] = _untrained(study, design, network, tokenizer, deep, work, costs, told, subject, blocks)
    for control, one in others.items():
        rows += rows_with([*one.rows, *_best_rows(one)], read=main, control=control)
    rows += rows_with(_answer_rows(design, reading))
    remarks = _remarks(study, reading)
    if act:
        moving = work.part("moving", progress, costs["moving"])
        found_by_moving, said = moved(study, subject, network, tokenizer, reading, moving)
        rows, remarks = rows + found_by_moving, remarks + said
        means = run.place("means", f"{subject.file}.safetensors")
        write_means(means, design, states, layers, depth=depth, model_type=str(network.config.model_type))

    progress("margins and doubtful prompts", work.fraction)
    controls = {
        reading_of: {**some, **{control: at_best_of(one)[reading_of] for control, one in others.items()}}
        for reading_of, some in surface.items()
    }
    found = {layer: margins(design, measured, layer, controls) for layer in layers}
    rows += rows_with([row for one in found.values() for row in one.rows], read=main)
    texts = _texts(study, reading.kept)
    at_best = np.array(states[layers.index(readable)])
    labelled = at_best, design.labels.task, texts["prompt"].to_numpy()
    doubted = doubts(*labelled, seed=design.seed_of("doubts"))
    trust = planted_found(*labelled, seed=design.seed_of("planted"))
    if trust is not None:
        place = {"split": "all", "layer": readable, "labels": "task", "space": "raw"}
        rows += rows_with([{**place, "measure": "planted_found", "value": trust}], read=main)
    clustered = any(row["measure"] == "clustered" and row["value"] == 1 for row in found[best].rows)
    told_layer = best if clustered else readable
    at_told = np.array(states[layers.index(told_layer)])
    frames = {
        "tasks": task_frame(design, measured, found, _right(reading)),
        "confusion": confusion_frame(design, measured, closer),
        "suspicious": suspicious_frame(design, texts, doubted, readable),
        "coordinates": coordinate_frame(design, texts, measured, told_layer, at_told, near, doubted),
        "dropped": _dropped_frame([(study.prompts.places[place], why) for place, why in reading.dropped]),
    }
    facts = (pl.lit(subject.name).alias("model"), *(pl.lit(v, pl.Int32).alias(n) for n, v in subject.age.items()))
    for name, frame in frames.items():
        whole = frame.select(*facts, pl.all())
        write_part(run.place("pieces", piece_of(subject, name)), whole)
    layout = layout_frame(texts["instance"].to_numpy(), states, layers, near)
    write_table(run.place("layouts", f"{subject.file}.parquet"), layout)
    known = {"model": subject.name, **subject.age}
    run.write_part(part_of(subject), [study.complete({**row, **known}) for row in rows])
    for sentence in remarks:
        progress(sentence, None)
    progress("done", work.did("the rest", costs["the rest"]))
    run.log("probed", model=subject.name, remarks=remarks)
    del reading, states
    for folder in (spill, run.folder / "blocks"):
        shutil.rmtree(folder, ignore_errors=True)


def part_of(subject: Subject) -> str:
    return f"model-{subject.file}"


def piece_of(subject: Subject, table: str) -> str:
    return f"{part_of(subject)}-{table}.parquet"


def is_measured(run: RunWriter, subject: Subject) -> bool:
    """Was this model measured before, with all that is written of it whole?"""
    pieces = [("pieces", piece_of(subject, name)) for name in TABLES] if (run.folder / "pieces").is_dir() else []
    return all([run.has_part(part_of(subject)), *(run.has(*names) for names in pieces)])


def _texts(study: ProbeStudy, kept: np.ndarray) -> pl.DataFrame:
    """instance, row, prompt (equal numbers for equal prompts) and what a reader wants to see of it."""
    frame = _kept(study.prompts, kept).dataset.frame()
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


def _remarks(study: ProbeStudy, reading: PromptReading) -> list[str]:
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


def _telling(work: Workload, costs: Mapping[str, float], progress: Progress, part: str | None = None) -> Tell:
    """For one call that measures layers: as one part of the workload, or as the parts that are named like what it
    does."""
    behind: dict[str, int] = {}

    def tell(what: str, done: int, of: int) -> None:
        gained = max(0, done - behind.get(what, 0))  # one side after the other is as far
        behind[what] = behind.get(what, 0) + gained
        fraction = work.did(part or what, gained * costs[part or what])
        progress(what, min(fraction, 0.99))  # 1 is the end of the run

    return tell


# --- controls --------------------------------------------------------------------------------------------------------


def _neutral(
    study: ProbeStudy,
    design: Design,
    network: Any,
    tokenizer: Any,
    layers: Sequence[int],
    work: Workload,
    costs: Mapping[str, float],
    progress: Progress,
    elsewhere: Elsewhere | None,
) -> LayerMeasures:
    """The same inputs after an instruction that says nothing: what is left is the input's own doing."""
    asked = _kept(study.prompts, design.kept)
    asked = replace(asked, instances=tuple(replace(one, instruction=NEUTRAL) for one in asked.instances))
    told = work.part("reading", progress, costs["reading"] / 2)
    reading = study.read(network, tokenizer, asked, {study.main: layers}, told, elsewhere=elsewhere)
    telling = _telling(work, costs, progress, "the neutral instruction")
    return measure_layers(design.only(reading.kept), reading.states[study.main], layers, telling)


def _untrained(
    study: ProbeStudy,
    design: Design,
    network: Any,
    tokenizer: Any,
    layers: Sequence[int],
    work: Workload,
    costs: Mapping[str, float],
    progress: Progress,
    subject: Subject,
    blocks: Path,
) -> LayerMeasures:
    """The same architecture with fresh weights; models of one architecture share it."""
    settings = {name: v for name, v in network.config.to_dict().items() if not name.startswith("_")}
    chat = getattr(tokenizer, "chat_template", None) if study.settings.chat else None
    words = sorted(tokenizer.get_vocab().items())
    key = json.dumps([settings, list(layers), design.kept.tolist(), chat, words], sort_keys=True, default=str)
    if key not in study.known:
        progress("drawing fresh weights", work.fraction)
        seed = stream(study.settings.seed, "untrained")
        fresh = untrained(network, seed)
        away = study.elsewhere(partial(_fresh, replace(subject), seed), blocks / "untrained")
        prompts, told = _kept(study.prompts, design.kept), work.part("reading", progress, costs["reading"])
        reading = study.read(fresh, tokenizer, prompts, {study.main: layers}, told, elsewhere=away)
        study.known[key] = measure_layers(design, reading.states[study.main], layers, _telling(work, costs, progress))
        study.known[key].rows.extend(geometry_rows(design, reading.states[study.main], layers))
    else:
        measuring = len(layers) * costs["measuring the layers"]
        work.skip({"reading": costs["reading"], "measuring the layers": measuring})
    return study.known[key]


def _fresh(subject: Subject, seed: int) -> tuple[Any, Any]:
    """The same for a worker."""
    network, tokenizer = subject.load()
    return untrained(network, seed), tokenizer


# --- rows ------------------------------------------------------------------------------------------------------------


def _best_rows(measured: LayerMeasures) -> Rows:
    place = {"split": "validation", "labels": "task", "space": "raw", "layer": None}
    return [{**place, "measure": measure, "value": layer} for measure, layer in best_layers_of(measured).items()]


def _right(reading: PromptReading) -> dict[str, np.ndarray]:
    """measure -> (instance,) 1 where the answer is right, NaN where there is none to compare with."""
    found = {"accuracy": reading.predicted, "accuracy_whole": reading.whole, "accuracy_restricted": reading.restricted}
    scored = reading.scored
    if scored is None:
        return {}
    return {name: np.where(scored, one, np.nan) for name, one in found.items() if one is not None}


def _answer_rows(design: Design, reading: PromptReading) -> Rows:
    return [
        {"split": side.split, "measure": measure, "value": float(np.nanmean(right[side.members]))}
        for measure, right in _right(reading).items()
        for side in design.sides
        if not np.isnan(right[side.members]).all()
    ]


# --- the run folder --------------------------------------------------------------------------------------------------


def finish(run: RunWriter, study: ProbeStudy, subjects: Sequence[Subject], compared: str | None) -> None:
    """The whole, and nothing beside it."""
    pieces, joined = (run.folder / name for name in ("pieces", "pieces-joined"))
    if pieces.is_dir():  # else it was killed after all was written
        join(run, study, subjects, compared)
        pieces.rename(joined)
    shutil.rmtree(joined, ignore_errors=True)  # gone whole, or not at all
    for left in ("spill", "blocks"):  # by a kill after the last model was written
        shutil.rmtree(run.folder / left, ignore_errors=True)


def join(run: RunWriter, study: ProbeStudy, subjects: Sequence[Subject], compared: str | None) -> None:
    """The parts as whole tables, the differences to the base, and the answer in words."""
    pieces = run.folder / "pieces"
    run.finish(["surface", *(part_of(subject) for subject in subjects)])
    tables = {name: pl.concat([read_part(pieces / piece_of(one, name)) for one in subjects]) for name in TABLES}
    metrics = read_metrics(run.folder / "metrics.parquet")
    counted = (pl.col("margin") > MISLABELLED).alias("counted")
    tables["suspicious"] = tables["suspicious"].with_columns(counted)
    own = _dropped_frame(study.prompts.dropped)
    tables["dropped"] = pl.concat([own, tables["dropped"]], how="diagonal").select(tables["dropped"].columns)
    if compared is not None:
        for one in subjects:
            gained = ("pieces", piece_of(one, "gained"))
            if one.name != compared and not run.has(*gained):
                write_part(run.place(*gained), _over_base(tables, metrics, one, compared))
        found = [read_part(pieces / piece_of(one, "gained")) for one in subjects if one.name != compared]
        tables["tasks"] = pl.concat([tables["tasks"], *found])
    for name, frame in tables.items():
        write_table(run.place(f"{name}.parquet"), frame)
    result, told = load_probe(run.folder), dict(run.manifest.get("verdict", {}))
    told.pop(subjects[-1].name, None)  # what was said of the others stays true
    run.record(
        verdict={one.name: told.get(one.name) or result.verdict_of(one.name) for one in subjects},
        where_to_act=f"{result.main}, {result.where_to_act}.",
        notes=list(study.notes),
    )


def note_seconds(run: RunWriter, began: float, reading: list[float]) -> float:
    """Adds to the manifest what a model took, over all processes of a resumed run; when the next one begins."""
    now, read, before = time.perf_counter(), sum(reading), run.manifest.get("seconds", {})
    passed = {"read": read, "measure": now - began - read, "total": now - began}
    run.record(seconds={name: round(before.get(name, 0) + value, 3) for name, value in passed.items()})
    reading.clear()
    return now


def _over_base(tables: _Frames, metrics: pl.DataFrame, subject: Subject, compared: str) -> pl.DataFrame:
    """Rows of `tasks`: by how much either reading exceeds the base's, each model at its own best layer."""
    here, there = (tables["coordinates"].filter(pl.col("model") == name) for name in (subject.name, compared))
    parts = []
    for reading, measure in ((CLUSTERED, deciding_measure(metrics)), (READABLE, "linear_accuracy")):
        names = {"difference": f"{measure}_over_base", "changed": f"{measure}_changed"}
        names |= {end: f"{measure}_over_base_{end}" for end in ("low", "high")}
        found = difference(here, there, reading).rename(names).drop("share", "base_share")
        found = found.with_columns(pl.col(names["changed"]).cast(pl.Float64))
        long = found.unpivot(index="task", variable_name="measure").drop_nulls("value")
        parts.append(long.with_columns(layer=pl.lit(layer_of(metrics, subject.name, reading), pl.Int32)))
    long = pl.concat(parts)
    facts = {"model": subject.name, **subject.age}
    schema = tables["tasks"].schema
    whole = long.with_columns(pl.lit(value, schema[name]).alias(name) for name, value in facts.items())
    return whole.select(schema.names())
