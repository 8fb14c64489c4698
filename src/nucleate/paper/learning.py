"""The main experiment: train on the synthetic task and watch the hidden states meanwhile (§3; Figures 2-4 and 6-10).

`_learn` is the whole story from top to bottom. A moment is an epoch border. At every moment the answers are scored; at
the measured ones the same forward pass also gives every layer's states, of which `measures.survey` makes rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.config import Config
from nucleate.data.dataset import Dataset, Instance
from nucleate.data.inside import text_of
from nucleate.data.synthetic import generate
from nucleate.devices import device_for
from nucleate.measures.baselines import MOST_FEATURES
from nucleate.measures.labelling import Labelling
from nucleate.measures.survey import Row
from nucleate.memory import memory_of
from nucleate.model.networks import save_network
from nucleate.model.states import Reading, read_groups
from nucleate.paper.answers import answer_rows, curve_rows, score_in
from nucleate.paper.instances import MEASURED, Members, candidates_of, in_split, of_splits, places_of, taught
from nucleate.paper.layouts import SHOWN, add_fixed_view, has_layouts, write_layouts
from nucleate.paper.network import check_network, forms_of, make_network
from nucleate.paper.surveys import answer_rows_of, labels_of, surface_rows, survey_of
from nucleate.paper.trainings import (
    SECONDS,
    TrainingRecord,
    checkpoint_hashes,
    epochs_of,
    forget,
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
    forget(_state_file(run))  # not before the manifest says done
    return True


def _learn(study: "_Learning", progress: Progress) -> None:
    training = study.config.training
    study.dataset.save(study.run.place("data"))
    optimizer = optimizer_for(study.model, training)
    record = TrainingRecord.opened(
        study.run, _state_file(study.run), study.model, optimizer, has=partial(_has_epoch, study)
    )
    progress(_announcement(study), None)
    workload = _workload(study, record)
    progress("measuring the untrained network" if record.epoch < 0 else "going on", workload.fraction)
    if not study.run.has_part("surface"):
        study.run.write_part("surface", _surface_rows(study))
    if record.epoch < 0:
        _moment(study, record, 0)
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

    @property
    def shown(self) -> dict[str, np.ndarray]:
        """The numbers of the instances that are laid out, by split."""
        instances = self.members["all"].instances
        return {
            split: np.array([one.instance for one in instances if in_split(one, split)], dtype=np.int32)
            for split in SHOWN
        }


def _prepare(config: Config, dataset: Dataset, device: str, run: RunWriter) -> _Learning:
    model, tokenizer = make_network(config, dataset, device=device)
    chosen = {"measured": of_splits(dataset, MEASURED), "all": of_splits(dataset, ("train", "validation", "test"))}
    chosen["train"], forms = taught(dataset), forms_of(config, dataset)
    members = {name: Members.of(tokenizer, some, **forms) for name, some in chosen.items()}
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
        state=study.config.measure.state,
    )
    record.read += record.tick()
    rows = answer_rows(study.tokenizer, members, reading, (*MEASURED, "train") if measured else MEASURED)
    if training_loss is not None:  # the one trained on, dropout and all, as in Figure 3a; the others' are without
        rows.append({"split": "train", "measure": "loss", "value": training_loss})
    if measured:
        states = {split: reading.states[:, places_of(members, split)] for split in (*MEASURED, "train")}
        surveyed = survey_of(study.labelling, states, study.config.measure)
        rows += [_row(row, read="input") for row in surveyed.rows]
        write_layouts(study.run, study.config, study.shown, epoch, states, surveyed)
        _write_predictions(study, epoch, members, reading)
    study.run.write_part(f"epoch-{epoch:04d}", [_complete(study, row, epoch) for row in rows])
    record.measure += record.tick()

    record.turn(epoch, score_in(rows), study.model)
    if epoch % max(1, study.config.training.epochs // 10) == 0:
        save_network(study.model, study.tokenizer, study.run.place("checkpoints", f"epoch-{epoch:04d}"))


def _has_epoch(study: _Learning, epoch: int) -> bool:
    """Are rows and layouts of this epoch border written, and whole?"""
    layouts = has_layouts(study.run, epoch) if _is_measured(study.config, epoch) else True
    return study.run.has_part(f"epoch-{epoch:04d}") and layouts


# --- rows ------------------------------------------------------------------------------------------------------------


def _surface_rows(study: _Learning) -> list[dict[str, Any]]:
    texts = {
        "surface_instruction": lambda instance: instance.instruction,
        "surface_prompt": text_of(study.dataset),
    }
    found = surface_rows(study.labelling, study.members["all"].instances, texts, study.config.measure)
    found += answer_rows_of(study.labelling, study.config.measure)
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


def _write_predictions(study: _Learning, epoch: int, members: Sequence[Instance], reading: Reading) -> None:
    places = np.unique(np.concatenate([places_of(members, split) for split in MEASURED]))
    answers = study.tokenizer.convert_ids_to_tokens(reading.predicted[places].tolist())
    study.run.write_predictions(epoch, [members[place].instance for place in places], answers)


# --- saving ----------------------------------------------------------------------------------------------------------


def _save(study: _Learning, optimizer: torch.optim.Optimizer, record: TrainingRecord) -> None:
    """What a resumed run needs, and the checkpoints that others may read."""
    checkpoints = study.run.place("checkpoints")

    def networks() -> None:
        save_network(study.model, study.tokenizer, checkpoints / "last")
        if record.best:
            save_network(with_weights(study.model, record.best), study.tokenizer, checkpoints / "best")

    record.save(_state_file(study.run), study.model, optimizer, beside=networks)


def _finish(study: _Learning, record: TrainingRecord, progress: Progress) -> None:
    run, epochs = study.run, study.config.training.epochs
    add_fixed_view(study.run, study.config, study.shown)
    run.write_part("curve", _curve_rows(study))
    if not run.has_part("transfer"):
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
    return run.place("resume.safetensors")


# --- how long, how large ---------------------------------------------------------------------------------------------


def _announcement(study: _Learning) -> str:
    config, millions = study.config, study.model.num_parameters(only_trainable=True) / 1e6
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
    """Thirteen checkpoints, the last two saved states (weights, two moments, best weights), layouts, kept states and
    rows."""
    config = study.config
    shown = sum(map(len, study.shown.values())) * (config.model.layers + 1)
    moments = sum(_is_measured(config, epoch) for epoch in range(config.training.epochs + 1))
    per_moment = shown * (2 * config.model.width + 60) + 200_000
    return 4 * study.model.num_parameters() * (13 + 2 * 4) + moments * per_moment


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
    asked, trained = (len(study.members[name].instances) for name in ("measured", "train"))
    moving = train / 3 * passes(config.model.layers, trained, asked // 2)
    workload = Workload(
        {
            "start": (1, 0.0),
            "train": (len(epochs), train),
            "answers": (len(epochs) - len(measured), train / 3 * asked / trained),  # a pass without its way back
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
