"""Does a model use what it holds apart? States moved from task to task in any causal language model, into a run folder.

Which prompts are moved and by which others is as in a probe: two halves of the instructions, or the splits that the
data come in (`halves.py`). What is moved and counted stands in `transferring.py`.
"""

import shutil
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import polars as pl

from nucleate.config import differing, flat_toml
from nucleate.data.prompts import Prompts, read_prompts
from nucleate.data.sources import Source
from nucleate.devices import device_for
from nucleate.files import write_table
from nucleate.memory import total_memory
from nucleate.model.networks import untrained
from nucleate.model.places import looks_local
from nucleate.model.subjects import Subject, all_ready, subjects_of
from nucleate.probing.halves import held_out_units, sides_of
from nucleate.probing.settings import TransferSettings
from nucleate.progress import Progress, silent
from nucleate.reading import read_json
from nucleate.refusal import Refused
from nucleate.runs import RunWriter, open_run
from nucleate.streams import stream
from nucleate.transferring import Sides, refuse_unpaired, transfer

TABLE = {  # transfer.parquet: the same shares for every pair of tasks
    "model": pl.String,
    "split": pl.String,
    "layer": pl.Int32,
    "arm": pl.String,
    "control": pl.String,
    "source": pl.String,
    "target": pl.String,
    "measure": pl.String,
    "value": pl.Float64,
}


def transfer_into(
    folder: Path,
    model: str | Path,
    data: Source,
    settings: TransferSettings,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """Move states and count the answers that follow, into a run folder. False where it is finished already.

    `model` is a run folder of ours (its best checkpoint), a folder, a GGUF file or a hub id; `data` whatever
    `read_prompts` reads, with outputs, and with inputs that tasks share."""
    prompts = read_prompts(data, columns=settings.columns, limit=settings.limit)
    if prompts.messages is not None:
        raise Refused(f"{prompts.name}: chats have no inputs that tasks share; give the columns instruction and input")
    units, _ = held_out_units(
        *([getattr(one, n) for one in prompts.instances] for n in ("instruction", "input", "task"))
    )
    sides = _sides(prompts, units, settings.seed)
    refuse_unpaired(prompts.instances, sides, units=units)
    subject = _subject(model, settings, progress)
    opening = open_run(
        folder,
        settings=flat_toml(
            settings,
            verb="transfer",
            size=prompts.name,
            models=[subject.name],
            data_hash=prompts.dataset.content_hash(),
            weights=[subject.checksum or ""],
        ),
        differing=partial(differing, kind=TransferSettings),
        resume=resume,
        overwrite=overwrite,
        reads=[model, data],
        facts={
            "seeds": {"root": settings.seed},
            "device": device_for(settings.device),
            "data_hash": prompts.dataset.content_hash(),
            "checkpoints": {subject.name: subject.checksum} if subject.checksum else {},
        },
        progress=progress,
    )
    with opening as run:
        if run is None:
            return False
        _transfer(run, subject, prompts, sides, units, settings, progress)
    return True


def _transfer(
    run: RunWriter,
    subject: Subject,
    prompts: Prompts,
    sides: Sides,
    units: list[str],
    settings: TransferSettings,
    progress: Progress,
) -> None:
    began = time.perf_counter()
    write_table(run.place("data", "dataset.parquet"), prompts.dataset.frame())
    for sentence in prompts.warnings:
        progress(sentence, None)
    progress("loading the weights", 0.0)
    network, tokenizer = subject.load()
    layers = (
        settings.layers if settings.layers is not None else range(network.config.get_text_config().num_hidden_layers)
    )
    needed = 4 * network.config.get_text_config().hidden_size * len(layers) * len(prompts.instances)
    spill = run.folder / "spill"
    found = transfer(
        network,
        tokenizer,
        prompts.instances,
        sides,
        units=units,
        untrained=untrained(network, stream(settings.seed, "untrained")),
        layers=layers,
        template=settings.template,
        chat=settings.chat,
        seed=settings.seed,
        most=settings.pairs,
        spill=spill if needed > total_memory() / 8 else None,  # of two networks
        progress=progress,
    )
    shutil.rmtree(spill, ignore_errors=True)
    for sentence in found.notes:
        progress(sentence, None)
    own: dict[str, Any] = {"experiment": "transfer", "model": subject.name, "seed": settings.seed, **subject.age}
    run.write_part("transfer", [{**own, **row} for row in found.rows])
    listed = [{"model": subject.name, **row} for row in found.by_tasks]
    by_tasks = pl.DataFrame([{n: row[n] for n in TABLE} for row in listed], schema=TABLE, infer_schema_length=None)
    write_table(run.place("transfer.parquet"), by_tasks)
    run.finish(["transfer"])
    run.record(notes=[*prompts.warnings, *found.notes], seconds={"total": round(time.perf_counter() - began, 3)})


def _sides(prompts: Prompts, units: list[str], seed: int) -> Sides:
    """Each half, and the prompts whose means it is moved by: of validation its own, of test those of validation."""
    groups = [(one.task, one.distribution) for one in prompts.instances]
    _, *halves = sides_of(units, groups, [one.split for one in prompts.instances], seed=seed)
    return {one.split: (one.members, one.against) for one in halves}


def _subject(model: str | Path, settings: TransferSettings, progress: Progress) -> Subject:
    """The one model that is meant, with its weights on this machine; refused where it gives no answers."""
    place, name, epoch = _checkpoint(model)
    loading: dict[str, Any] = {n: getattr(settings, n) for n in ("dtype", "trust_remote_code")}
    loading |= {"device": device_for(settings.device), **(settings.loading or {})}
    subjects, _ = subjects_of(str(place), None, None, loading, [settings.revision] if settings.revision else [])
    if len(subjects) != 1:
        raise Refused(f"{model} stands for {len(subjects)} models: name one of them, as {subjects[0].what}")
    (subject,) = all_ready(subjects, progress)
    shape = subject.shape
    if shape.config.is_encoder_decoder or shape.get_output_embeddings() is None:
        raise Refused(f"{model}: a {type(shape).__name__} is no causal language model, and gives no answers to follow")
    depth = shape.config.get_text_config().num_hidden_layers
    if settings.layers is not None and depth in subject.layers(settings.layers):
        raise Refused(f"layer {depth} is the last one, behind which there is nothing to move: take 0 to {depth - 1}")
    return replace(subject, name=name or subject.name, epoch=epoch if epoch is not None else subject.epoch)


def _checkpoint(model: str | Path) -> tuple[str | Path, str | None, int | None]:
    """Where the weights are; of the best checkpoint of one of our own runs its epoch, and of a run its name."""
    folder = Path(model).expanduser()
    if not looks_local(model) or not folder.is_dir():
        return model, None, None
    resolved, name = folder.resolve(), None
    if (resolved / "manifest.json").is_file() and (resolved / "checkpoints" / "best").is_dir():
        name, resolved = resolved.name, resolved / "checkpoints" / "best"
    manifest = resolved.parent.parent / "manifest.json"
    if resolved.name != "best" or resolved.parent.name != "checkpoints" or not manifest.is_file():
        return model, None, None
    epoch = read_json(manifest).get("best_epoch")
    return resolved, name, epoch if isinstance(epoch, int) else None
