"""Alignment with less forgetting (§4.2, Tables 2 and 7): redirect some tasks of a trained network, keep all others.

A network is trained on all tasks. Then the instructions of the source tasks shall be answered as their target tasks
answer, taught by four methods (`METHODS`) from the instances of the source tasks alone, but for the switches, which
also see one instance of each other task. Two harder corrections follow, which the paper leaves open: one that applies
only where a further symbol stands before the instruction, and a second correction on top of the first.

`_align` is the whole story; `methods.py` has each method at one learning rate.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from nucleate.config import Config
from nucleate.data.dataset import Dataset
from nucleate.data.synthetic import generate
from nucleate.devices import device_for
from nucleate.long_table import METHODS
from nucleate.model.networks import load_network, save_network
from nucleate.model.states import read_groups
from nucleate.paper.answers import answer_rows, curve_rows, score_in
from nucleate.paper.corrections import UNSEEN, Correction, Network
from nucleate.paper.instances import Members, of_splits, taught
from nucleate.paper.methods import EpochAnswers, best_attempt
from nucleate.paper.network import check_alone, check_network, make_network
from nucleate.paper.trainings import (
    SECONDS,
    TrainingRecord,
    checkpoint_hashes,
    epochs_of,
    forget,
    optimizer_for,
    run_of,
    seconds_of_an_epoch,
    steps_of_an_epoch,
    with_weights,
)
from nucleate.progress import Progress, Workload, silent
from nucleate.refusal import Refused
from nucleate.runs import RunWriter

EXAMPLES = (1, 2, 5, 10)  # of each other task; the first is the paper's
# What an epoch of each method takes: seconds, and times that the unseen instances take to be read.
_PACE = {"direct": (0.05, 3.0), "head": (0.01, 0.1), "linear_switch": (0.03, 0.1), "mlp_switch": (0.035, 0.1)}
_LONGEST = 60  # symbols: one more, an input and an output still have a position


def align(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """Train a network and redirect it by all methods into a run folder. False where it is finished already."""
    device, dataset = device_for(config.device), dataset_for(config)
    with run_of("align", config, dataset, device, folder, resume=resume, overwrite=overwrite, progress=progress) as run:
        if run is None:
            return False
        _align(_Alignment(config, dataset, run, device), progress)
    return True


def _align(study: "_Alignment", progress: Progress) -> None:
    run = study.run
    study.dataset.save(run.place("data"))
    workload = _workload(study)
    progress("begins", workload.fraction)
    if not _has_base(study):
        _train_base(study, workload, progress)
    model, _ = load_network(_base(run), device=study.device, attn_implementation="eager")
    network = Network(model, study.dataset, study.config.seed)
    for method, words in METHODS.items():

        def tell(attempts: int, method: str = method, words: str = words) -> None:
            progress(words, workload.did(method, attempts))

        if not run.has_part(method):
            run.write_part(method, [study.row(row, method) for row in _rows_of(network, method, study.config, tell)])
    run.finish(["base", *(f"base-{epoch:04d}" for epoch in range(study.config.training.epochs + 1)), *METHODS])
    run.record(checkpoints=checkpoint_hashes(run))


@dataclass(frozen=True)
class _Alignment:
    """What a run is about."""

    config: Config
    dataset: Dataset
    run: RunWriter
    device: str

    def row(self, row: dict[str, Any], arm: str, epoch: int | None = None) -> dict[str, Any]:
        """A row with the columns that all share."""
        return {
            "experiment": "align",
            "arm": arm,
            "control": "none",
            "seed": self.config.seed,
            "epoch": epoch,
            **row,
        }


# --- the network before any correction -------------------------------------------------------------------------------


def _workload(study: _Alignment) -> Workload:
    """The epochs of the network before any correction, and the attempts of each method at one learning rate."""
    config, dataset = study.config, study.dataset
    model, tokenizer = make_network(config, dataset, device=study.device)
    train = Members.of(tokenizer, of_splits(dataset, ("train",)))
    epoch = seconds_of_an_epoch(model, train.groups, config.training, dtype=config.dtype)
    read = _seconds_to_read(model, Members.of(tokenizer, of_splits(dataset, UNSEEN)))
    attempts = {method: _attempts(method, config) for method in METHODS}
    guesses = {
        method: (attempts[method], config.align.epochs * (seconds + times * read))
        for method, (seconds, times) in _PACE.items()
    }
    workload = Workload({"base": (config.training.epochs, epoch), **guesses})
    workload.skip({method: attempts[method] for method in METHODS if study.run.has_part(method)})
    if _has_base(study):
        workload.skip({"base": config.training.epochs})
    return workload


def _seconds_to_read(model: PreTrainedModel, members: Members) -> float:
    """The second of two readings: the first one waits for what is set up meanwhile."""
    for _ in range(2):
        began = time.monotonic()
        read_groups(model, members.groups, layers=[])
    return time.monotonic() - began


def _attempts(method: str, config: Config) -> int:
    """How often `_rows_of` teaches a method: at each rate, and then for more examples, a condition, a second one."""
    return config.align.rates + (6 if method in SWITCHED else 2)


def _train_base(study: _Alignment, workload: Workload, progress: Progress) -> None:
    """On all tasks, as in the main experiment; the best epoch on validation is the network that is redirected."""
    config, run = study.config, study.run
    normed = replace(config, measure=replace(config.measure, last_layer="normed"))  # the state that a head is handed
    model, tokenizer = make_network(normed, study.dataset, device=study.device)
    members = {
        name: Members.of(tokenizer, some)
        for name, some in {"train": taught(study.dataset), "unseen": of_splits(study.dataset, UNSEEN)}.items()
    }
    optimizer = optimizer_for(model, config.training)
    state_file, last = run.place("resume.safetensors"), config.training.epochs
    record = TrainingRecord.opened(
        run, state_file, model, optimizer, has=lambda epoch: run.has_part(f"base-{epoch:04d}")
    )
    workload.skip({"base": max(0, record.epoch)})

    def moment(epoch: int, training_loss: float | None) -> None:
        record.tick()
        reading = read_groups(model, members["unseen"].groups, layers=[])
        rows = answer_rows(tokenizer, members["unseen"].instances, reading, UNSEEN)
        if training_loss is not None:  # the one trained on, dropout and all
            rows.append({"split": "train", "measure": "loss", "value": training_loss})
        step = epoch * steps_of_an_epoch(members["train"].groups, config.training)
        run.write_part(f"base-{epoch:04d}", [study.row({**row, "step": step}, "main", epoch) for row in rows])
        record.read += record.tick()
        record.turn(epoch, score_in(rows), model)

    if record.epoch < 0:
        moment(0, None)
    for epoch in epochs_of(
        model,
        optimizer,
        members["train"].groups,
        config.training,
        seed=config.seed,
        dtype=config.dtype,
        first_epoch=record.epoch + 1,
    ):
        record.train += epoch.seconds
        moment(epoch.number, epoch.loss)
        if record.saving_is_due():
            record.save(state_file, model, optimizer)
        progress(f"epoch {epoch.number} of {last}, validation {record.score:.2f}", workload.did("base"))
    save_network(with_weights(model, record.best), tokenizer, _base(run))
    run.record(best_epoch=record.best_epoch, seconds={name: round(getattr(record, name), 3) for name in SECONDS})
    rows = curve_rows(run.read_part(f"base-{epoch:04d}") for epoch in range(1, last + 1))
    run.write_part("base", [study.row(row, "main") for row in rows])
    forget(state_file)


def _base(run: RunWriter) -> Path:
    return run.place("checkpoints", "base")


def _has_base(study: _Alignment) -> bool:
    """Is the network before any correction trained, with all its parts whole?"""
    epochs = range(study.config.training.epochs + 1)
    return all(map(study.run.has_part, ("base", *(f"base-{epoch:04d}" for epoch in epochs))))


# --- rows ------------------------------------------------------------------------------------------------------------


def _rows_of(network: Network, method: str, config: Config, tell: Callable[[int], None]) -> Iterator[dict[str, Any]]:
    """All that is measured of one method. `tell` is told how many more attempts are behind it."""
    rates, first = _rates(config), network.redirection
    tell(0)
    chosen, attempt = best_attempt(first, method, rates, config)
    curve = {0: first.before, **dict(attempt)}
    tell(len(rates))
    for split in UNSEEN:
        yield from _told(first, chosen, split)
        for epoch, answers in curve.items():
            for row in _told(first, replace(chosen, answers=answers), split, _CURVES):
                yield {**row, "epoch": epoch}
    yield {"measure": "chosen_rate", "value": chosen.rate}
    yield {"measure": "chosen_epoch", "value": float(chosen.epoch)}

    # What follows is taught at the rate that was chosen; its epoch is chosen anew.
    for count in EXAMPLES[1:] if method in SWITCHED else ():
        more, _ = best_attempt(first, method, [chosen.rate], config, examples=count)
        tell(1)
        for split in UNSEEN:
            yield from _told(first, more, split, _CURVES, f"{{}}_n{count}")

    for count in (EXAMPLES[0], EXAMPLES[-1]) if method in SWITCHED else EXAMPLES[:1]:
        found, _ = best_attempt(network.conditional, method, [chosen.rate], config, examples=count)
        tell(1)
        for split in UNSEEN:
            name = "conditional_{}" + (f"_n{count}" if count > 1 else "")
            yield from _told(network.conditional, found, split, (*_HARDER, "sources_kept"), name)
    found, _ = best_attempt(network.second, method, [chosen.rate], config, earlier=chosen)
    tell(1)
    for split in UNSEEN:
        yield from _told(network.second, found, split, (*_HARDER, "sources_kept"), "second_{}")


SWITCHED = ("linear_switch", "mlp_switch")
_CURVES = ("source_accuracy", "accuracy_drop", "accuracy_drop_others")
_HARDER = ("source_accuracy", "accuracy_drop_others")


def _told(
    correction: Correction, outcome: EpochAnswers, split: str, measures: Sequence[str] | None = None, name: str = "{}"
) -> Iterator[dict[str, Any]]:
    """Rows of these scores, or of all."""
    for measure, value in _scores(correction, outcome, split).items():
        if measures is None or measure in measures:
            yield {"split": split, "measure": name.format(measure), "value": value}


def _scores(correction: Correction, outcome: EpochAnswers, split: str) -> dict[str, float]:
    """What is right after a correction, by measure.

    `accuracy_drop` is the paper's: of all tasks but the corrected ones, before less after. `accuracy_drop_others`
    leaves the targets out too: a switch that errs falls on them most, and there the second head's answers are right.
    """
    here = correction.places(split)
    right, before = outcome.answers == correction.wished, correction.before == correction.wished
    sources, kept = here & correction.corrected, here & ~correction.corrected
    neither, rest = here & ~correction.paired, kept & correction.of_source
    scores = {
        "source_accuracy": right[sources].mean(),
        "others_accuracy_before": before[kept].mean(),
        "others_accuracy": right[kept].mean(),
        "accuracy_drop": before[kept].mean() - right[kept].mean(),
        "accuracy_drop_others": before[neither].mean() - right[neither].mean(),
        "others_kept": (outcome.answers == correction.before)[kept].mean(),
    }
    if rest.any():  # instances of source tasks that this correction leaves as they are
        scores["sources_kept"] = right[rest].mean()
    if outcome.switched is not None:
        scores["switch_false_positives"] = outcome.switched[kept].mean()
        scores["switch_misses"] = 1 - outcome.switched[sources].mean()
    return {measure: float(value) for measure, value in scores.items()}


def _rates(config: Config) -> list[float]:
    settings = config.align
    return [float(rate) for rate in np.geomspace(settings.lowest_rate, settings.highest_rate, settings.rates)]


# --- at the door -----------------------------------------------------------------------------------------------------


def dataset_for(config: Config) -> Dataset:
    """Table 7's data; settings that only fail together are refused."""
    check_network(config)
    settings = config.align
    if not 0 < settings.lowest_rate <= settings.highest_rate:
        raise Refused(
            f"align.lowest_rate={settings.lowest_rate:g} must lie above 0 and not above align.highest_rate="
            f"{settings.highest_rate:g}; change one of them"
        )
    if config.data.max_length > _LONGEST:
        raise Refused(
            f"data.max_length={config.data.max_length} leaves no position for the further symbol of a conditional "
            f"correction; set it to {_LONGEST} or less"
        )
    dataset = generate(config.data, seed=config.seed, kind="alignment")
    check_alone(config, dataset, "align")
    return dataset
