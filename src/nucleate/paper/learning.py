"""The main experiment: train on the synthetic task and watch the hidden states meanwhile (§3; Figures 2-4 and 6-10).

`_learn` is the whole story from top to bottom. A moment is an epoch border. At every moment the answers are scored; at
the measured ones the same forward pass also gives every layer's states, of which `measures.survey` makes rows.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from safetensors.numpy import load_file, save_file
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.config import Config
from nucleate.data.dataset import Dataset, Instance
from nucleate.data.synthetic import generate
from nucleate.devices import device_for
from nucleate.files import write_whole
from nucleate.measures.baselines import MOST_FEATURES
from nucleate.measures.labelling import Labelling
from nucleate.measures.survey import Row, Survey
from nucleate.measures.tsne import tsne
from nucleate.memory import memory_of
from nucleate.model.networks import save_network
from nucleate.model.states import Reading, read_groups
from nucleate.paper.answers import answer_rows, curve_rows, score_in
from nucleate.paper.instances import MEASURED, Members, candidates_of, in_split, of_splits, places_of
from nucleate.paper.network import check_network, make_network
from nucleate.paper.surveys import labels_of, surface_rows, survey_of
from nucleate.paper.trainings import (
    SECONDS,
    TrainingRecord,
    checkpoint_hashes,
    epochs_of,
    is_measured,
    optimizer_for,
    run_of,
    seconds_of_an_epoch,
    steps_of_an_epoch,
    with_weights,
)
from nucleate.paper.transfers import passes, transfer_rows
from nucleate.progress import Progress, Workload, silent
from nucleate.refusal import Refused
from nucleate.runs import RunWriter
from nucleate.streams import stream
from nucleate.threads import thread_count

SHOWN = ("subset", "validation")  # the points of the page's stage
_COMPILED = 2**29  # bytes that products compiled for every length of a batch come to take


def learn(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """Train and measure into a run folder. False where the run is finished already and nothing was done."""
    device, dataset = device_for(config.device), dataset_for(config)
    with run_of("learn", config, dataset, device, folder, resume=resume, overwrite=overwrite, progress=progress) as run:
        if run is None:
            return False
        _learn(_prepare(config, dataset, device, run), progress)
    _state_file(run).unlink(missing_ok=True)  # not before the manifest says done
    return True


def _learn(study: "_Learning", progress: Progress) -> None:
    training = study.config.training
    study.dataset.save(study.run.folder / "data")
    optimizer = optimizer_for(study.model, training)
    record = TrainingRecord.opened(_state_file(study.run), study.model, optimizer)
    progress(_announcement(study), None)
    workload = _workload(study, record)
    progress("measuring the untrained network" if record.epoch < 0 else "going on", workload.fraction)
    if record.epoch < 0:
        _moment(study, record, 0)
        study.run.write_part("surface", _surface_rows(study))
        _save(study, optimizer, record)
        progress("the untrained network is measured", workload.did("start"))
    for epoch in epochs_of(
        study.model,
        optimizer,
        study.members["train"].groups,
        training,
        seed=study.config.seed,
        dtype=study.config.dtype,
        first_epoch=record.epoch + 1,
    ):
        record.train += epoch.seconds
        workload.did("train")
        _moment(study, record, epoch.number, training_loss=epoch.loss)
        if epoch.number == training.epochs or record.saving_is_due():
            _save(study, optimizer, record)
        done = workload.did("states" if _is_measured(study.config, epoch.number) else "answers")
        progress(f"epoch {epoch.number} of {training.epochs}, validation {record.score:.2f}", done)
    _finish(study, record, workload.part("transfer", progress))


@dataclass(frozen=True)
class _Learning:
    """What stays the same from epoch to epoch."""

    config: Config
    dataset: Dataset
    run: RunWriter
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    members: dict[str, Members]  # train; measured (subset, validation, test); all (train, validation, test)
    labelling: Labelling  # labels and the controls' deals of labels
    steps: int  # optimiser steps of an epoch


def _prepare(config: Config, dataset: Dataset, device: str, run: RunWriter) -> _Learning:
    model, tokenizer = make_network(config, dataset, device=device)
    chosen = {"train": ("train",), "measured": MEASURED, "all": ("train", "validation", "test")}
    members = {name: Members.of(tokenizer, of_splits(dataset, splits)) for name, splits in chosen.items()}
    steps = steps_of_an_epoch(members["train"].groups, config.training)
    return _Learning(
        config, dataset, run, model, tokenizer, members, labels_of(config, members["all"].instances), steps
    )


def _moment(study: _Learning, record: TrainingRecord, epoch: int, *, training_loss: float | None = None) -> None:
    """Score one epoch border, write its rows, and turn the page of the record."""
    record.tick()
    measured = _is_measured(study.config, epoch)
    name = "all" if measured else "measured"
    members = study.members[name].instances
    reading = read_groups(
        study.model,
        study.members[name].groups,
        layers=None if measured else [],
        candidates=candidates_of(study.tokenizer, study.dataset.mappings, members),
    )
    record.read += record.tick()
    rows = answer_rows(study.tokenizer, members, reading, (*MEASURED, "train") if measured else MEASURED)
    if training_loss is not None:  # the one trained on, dropout and all, as in Figure 3a; the others' are without
        rows.append({"split": "train", "measure": "loss", "value": training_loss})
    if measured:
        states = {split: reading.states[:, places_of(members, split)] for split in (*MEASURED, "train")}
        surveyed = survey_of(study.labelling, states, study.config.measure)
        rows += [_row(row, read="input") for row in surveyed.rows]
        _write_layouts(study, epoch, states, surveyed)
        _write_predictions(study, epoch, members, reading)
    study.run.write_part(f"epoch-{epoch:04d}", [_complete(study, row, epoch) for row in rows])
    record.measure += record.tick()

    record.turn(epoch, score_in(rows), study.model)
    if epoch % max(1, study.config.training.epochs // 10) == 0:
        save_network(study.model, study.tokenizer, study.run.folder / "checkpoints" / f"epoch-{epoch:04d}")


# --- rows ------------------------------------------------------------------------------------------------------------


def _surface_rows(study: _Learning) -> list[dict[str, Any]]:
    texts = {
        "surface_instruction": lambda instance: instance.instruction,
        "surface_prompt": lambda instance: f"{instance.instruction} {instance.input}",
    }
    found = surface_rows(study.labelling, study.members["all"].instances, texts, study.config.measure)
    return [_complete(study, _row(row, read=None), None) for row in found]


def _curve_rows(study: _Learning) -> list[dict[str, Any]]:
    epochs = range(1, study.config.training.epochs + 1)
    rows = curve_rows(study.run.read_part(f"epoch-{epoch:04d}") for epoch in epochs)
    return [_complete(study, row, None) for row in rows]


def _row(row: Row, *, read: str | None) -> dict[str, Any]:
    return {**row._asdict(), "read": read}


def _complete(study: _Learning, row: dict[str, Any], epoch: int | None) -> dict[str, Any]:
    """A row with the columns that a whole moment shares."""
    step = None if epoch is None else epoch * study.steps
    shared = {"experiment": "learn", "arm": "main", "control": "none", "seed": study.config.seed}
    return {**shared, "epoch": epoch, "step": step, **row}


# --- layouts ---------------------------------------------------------------------------------------------------------


def _write_layouts(study: _Learning, epoch: int, states: dict[str, np.ndarray], surveyed: Survey) -> None:
    """View `tsne` holds the embeddings that were scored, split by split; `display` shows the two splits together.

    The display layout starts from the previous measured epoch's, so that points stay where the eye expects them; it is
    never scored. The states are kept at half precision until the end of the run, when the basis of view `pca` is known.
    """
    measure, folder = study.config.measure, study.run.folder
    instances = {split: _numbers(study, split) for split in SHOWN}
    shown = np.concatenate([states[split] for split in SHOWN], axis=1)  # (layer, point, width)
    points = np.concatenate([instances[split] for split in SHOWN])
    before = _epochs_before(study.config, epoch)
    start = None
    if before is not None:
        kept = pl.read_parquet(folder / "layouts" / f"epoch-{before:04d}.parquet").filter(pl.col("view") == "display")
        start = list(kept.select("x", "y", "z").to_numpy().reshape(len(shown), len(points), 3))
    display = tsne(
        list(shown),
        components=3,
        perplexity=measure.perplexity,
        iterations=measure.iterations if start is None else measure.display_iterations,
        seed=stream(study.config.seed, "display"),
        start=start,
        threads=thread_count(),
    )
    frames = [_layout("display", layer, points, one.embedding) for layer, one in enumerate(display)]
    for (split, layer), one in surveyed.embeddings.items():
        if split in SHOWN:
            frames.append(_layout("tsne", layer, instances[split], one.embedding))
    study.run.write_layout(epoch, pl.concat(frames))
    tensors = {"states": np.ascontiguousarray(shown, dtype=np.float16)}  # safetensors writes memory as it lies
    write_whole(folder / "states" / f"epoch-{epoch:04d}.safetensors", lambda path: save_file(tensors, path))


def _layout(view: str, layer: int, instances: np.ndarray, points: np.ndarray) -> pl.DataFrame:
    """One layer in one view; fewer than three dimensions are filled up with zeros."""
    placed = np.zeros((len(instances), 3), dtype=np.float32)
    placed[:, : min(3, points.shape[1])] = points[:, :3]
    x, y, z = placed.T
    return pl.DataFrame({"instance": instances, "x": x, "y": y, "z": z}).with_columns(
        layer=pl.lit(layer), view=pl.lit(view)
    )


def _add_fixed_view(study: _Learning) -> None:
    """View `pca`: every epoch on the three main axes of the last epoch's states, layer by layer."""
    folder = study.run.folder / "states"
    epochs = [e for e in range(study.config.training.epochs + 1) if _is_measured(study.config, e)]
    kept = {epoch: folder / f"epoch-{epoch:04d}.safetensors" for epoch in epochs}
    if not all(path.is_file() for path in kept.values()):
        return  # killed while clearing up after this very work
    points = np.concatenate([_numbers(study, split) for split in SHOWN])
    last = load_file(kept[epochs[-1]])["states"].astype(np.float64)  # (layer, point, width)
    middles = last.mean(axis=1, keepdims=True)
    axes = [_main_axes(layer) for layer in last - middles]
    for epoch in epochs:
        states = load_file(kept[epoch])["states"].astype(np.float64) - middles
        frames = [
            _layout("pca", n, points, layer @ axis) for n, (layer, axis) in enumerate(zip(states, axes, strict=True))
        ]
        layout = pl.read_parquet(study.run.folder / "layouts" / f"epoch-{epoch:04d}.parquet")
        frames = [frame.cast({"x": pl.Float32, "y": pl.Float32, "z": pl.Float32}) for frame in frames]
        others = layout.filter(pl.col("view") != "pca")
        study.run.write_layout(
            epoch, pl.concat([others, *[f.select(others.columns).cast(others.schema) for f in frames]])
        )
    shutil.rmtree(folder)


def _main_axes(centred: np.ndarray) -> np.ndarray:
    """(width, at most 3): the directions of largest variance; each points to where its largest entry is positive."""
    axes = np.linalg.svd(centred, full_matrices=False)[2][:3].T
    return axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])


def _write_predictions(study: _Learning, epoch: int, members: Sequence[Instance], reading: Reading) -> None:
    places = np.unique(np.concatenate([places_of(members, split) for split in MEASURED]))
    answers = study.tokenizer.convert_ids_to_tokens(reading.predicted[places].tolist())
    study.run.write_predictions(epoch, [members[place].instance for place in places], answers)


# --- saving ----------------------------------------------------------------------------------------------------------


def _save(study: _Learning, optimizer: torch.optim.Optimizer, record: TrainingRecord) -> None:
    """What a resumed run needs, and the checkpoints that others may read."""
    checkpoints = study.run.folder / "checkpoints"

    def networks() -> None:
        save_network(study.model, study.tokenizer, checkpoints / "last")
        if record.best:
            save_network(with_weights(study.model, record.best), study.tokenizer, checkpoints / "best")

    record.save(_state_file(study.run), study.model, optimizer, beside=networks)


def _finish(study: _Learning, record: TrainingRecord, progress: Progress) -> None:
    run, epochs = study.run, study.config.training.epochs
    _add_fixed_view(study)
    run.write_part("curve", _curve_rows(study))
    if not (run.folder / "parts" / "transfer.parquet").is_file():
        best = with_weights(study.model, record.best)
        rows = transfer_rows(study.config, study.dataset, best, study.tokenizer, progress)
        run.write_part("transfer", [_complete(study, row, record.best_epoch) for row in rows])
    run.finish(["curve", "surface", "transfer", *(f"epoch-{epoch:04d}" for epoch in range(epochs + 1))])
    record.measure += record.tick()
    run.record(
        best_epoch=record.best_epoch,
        checkpoints=checkpoint_hashes(run),
        seconds={name: round(getattr(record, name), 3) for name in SECONDS},
    )


def _state_file(run: RunWriter) -> Path:
    return run.folder / "resume.safetensors"


# --- how long, how large ---------------------------------------------------------------------------------------------


def _announcement(study: _Learning) -> str:
    config, millions = study.config, study.model.num_parameters() / 1e6
    moments = sum(_is_measured(config, epoch) for epoch in range(config.training.epochs + 1))
    return (
        f"{config.size}: {millions:.3g} million parameters, {config.training.epochs} epochs of {study.steps} steps, "
        f"states measured at {moments} of them; at most about {_memory_needed(study) / 2**30:.1f} GiB of memory and "
        f"about {_bytes_needed(study) / 2**20:,.0f} MiB in {study.run.folder}"
    )


def _memory_needed(study: _Learning) -> int:
    """What is taken already; weights with gradients, moments and best; then whichever is larger, the n-grams of the
    text or the states, each with the copies that neighbours and probes make (`benchmarks/memory.py` compares)."""
    count, layers = len(study.members["all"].instances), study.config.model.layers + 1
    taken = memory_of()
    states, texts = 3 * layers * study.config.model.width, 6 * MOST_FEATURES
    return taken + 5 * 4 * study.model.num_parameters() + 4 * count * max(states, texts) + _COMPILED


def _bytes_needed(study: _Learning) -> int:
    """Thirteen checkpoints, the saved state (weights, two moments, best weights), layouts, kept states and rows."""
    config = study.config
    shown = sum(len(_numbers(study, split)) for split in SHOWN) * (config.model.layers + 1)
    moments = sum(_is_measured(config, epoch) for epoch in range(config.training.epochs + 1))
    per_moment = shown * (2 * config.model.width + 60) + 200_000
    return 4 * study.model.num_parameters() * (13 + 4) + moments * per_moment


def _workload(study: _Learning, record: TrainingRecord) -> Workload:
    """The epochs, the moments after them at which states are measured or only answers read, and the untrained network,
    which also waits for kernels to be compiled and is no measure of the others."""
    config, behind = study.config, max(0, record.epoch)
    epochs = range(1, config.training.epochs + 1)
    measured = [epoch for epoch in epochs if _is_measured(config, epoch)]
    train = (
        record.train / behind
        if behind
        else seconds_of_an_epoch(study.model, study.members["train"].groups, config.training, dtype=config.dtype)
    )
    asked, taught = (len(study.members[name].instances) for name in ("measured", "train"))
    moving = train / 3 * passes(config.model.layers, taught, asked // 2)
    workload = Workload(
        {
            "start": (1, 0.0),
            "train": (len(epochs), train),
            "answers": (len(epochs) - len(measured), train / 3 * asked / taught),  # a pass without its way back
            "states": (len(measured), train),
            "transfer": (1, moving),
        }
    )
    if record.epoch >= 0:
        seen = sum(epoch <= behind for epoch in measured)
        workload.skip({"start": 1, "train": behind, "states": seen, "answers": behind - seen})
    return workload


# --- at the door -----------------------------------------------------------------------------------------------------


def dataset_for(config: Config) -> Dataset:
    """The synthetic data; settings that only fail together are refused."""
    check_network(config)
    dataset = generate(config.data, seed=config.seed)
    for split in MEASURED:
        count = len(dataset.select(split))
        if count <= 3 * config.measure.perplexity:
            raise Refused(
                f"measure.perplexity={config.measure.perplexity:g} needs more than {3 * config.measure.perplexity:.0f} "
                f"instances; split {split!r} has {count}: lower the perplexity or enlarge the data"
            )
    return dataset


# --- small questions -------------------------------------------------------------------------------------------------


def _is_measured(config: Config, epoch: int) -> bool:
    return is_measured(config.measure, epoch, config.training.epochs)


def _epochs_before(config: Config, epoch: int) -> int | None:
    """The measured epoch before this one."""
    return next((before for before in range(epoch - 1, -1, -1) if _is_measured(config, before)), None)


def _numbers(study: _Learning, split: str) -> np.ndarray:
    instances = study.members["all"].instances
    return np.array([instance.instance for instance in instances if in_split(instance, split)], dtype=np.int32)
