"""Pre-training with task identities (§4.1; Figure 5): does a network that has learnt to name the task learn faster?

Two networks are pre-trained on the instructions alone: one as a language model (arm `instruction`), one that goes on
to name the task after a special token (`task_id`); no mapping is seen. Both are then fine-tuned on the task of the main
experiment, beside a fresh network (`none`) and one that trains longer instead, by as many steps as a pre-training takes
(`longer`). All begin with the same weights and see the same data in the same order. The arms `..._unseen` do all of it
with fine-tuning tasks that the pre-training has not seen.

`_pretrain` is the whole story: trainings (`_Stage`) one after the other, each of them a row of moments (`_train`).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.config import Config, MeasureSettings, TrainingSettings
from nucleate.data.dataset import Dataset
from nucleate.data.synthetic import generate
from nucleate.devices import device_for
from nucleate.measures.labelling import Labelling
from nucleate.model.networks import load_network, save_network
from nucleate.model.states import read_groups
from nucleate.paper.answers import answer_rows, curve_rows, score_in
from nucleate.paper.instances import MEASURED, Members, candidates_of, of_splits, places_of, taught
from nucleate.paper.naming import TASK_TOKEN, halves, instructions_alone, name_of, named
from nucleate.paper.network import check_alone, check_network, make_network
from nucleate.paper.surveys import labels_of, surface_rows, survey_of
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
from nucleate.progress import Progress, Workload, silent
from nucleate.refusal import Refused
from nucleate.runs import RunWriter
from nucleate.streams import stream

ARMS = ("none", "instruction", "task_id", "longer")
PRETRAINED = ("instruction", "task_id")
_FEWEST = 4  # instructions of a split that t-SNE can lay out


def pretrain(
    config: Config,
    folder: Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """Pre-train, fine-tune and measure every arm into a run folder. False where it is finished already."""
    device, dataset = device_for(config.device), dataset_for(config)
    with run_of(
        "pretrain", config, dataset, device, folder, resume=resume, overwrite=overwrite, progress=progress
    ) as run:
        if run is None:
            return False
        _pretrain(_Pretraining(config, dataset, run, device), progress)
    return True


def _pretrain(study: "_Pretraining", progress: Progress) -> None:
    study.dataset.save(study.run.place("data"))
    stages = list(_stages(study))
    workload, sentence = _workload(study, stages)
    progress(sentence, None)
    for stage in stages:
        if not stage.is_done:
            _train(stage, workload, progress)
    study.run.finish([name for stage in stages for name in stage.parts])
    study.run.record(checkpoints=checkpoint_hashes(study.run))


@dataclass(frozen=True, eq=False)
class _Pretraining:
    """What all trainings of a run share."""

    config: Config
    dataset: Dataset
    run: RunWriter
    device: str

    def network(self) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
        """Fresh, the same weights each time; its vocabulary has the special token and a name for every task."""
        words = [TASK_TOKEN, *(name_of(task) for task in sorted(self.dataset.mappings))]
        return make_network(self.config, self.dataset, device=self.device, words=words)

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerFast:
        return self.network()[1]


@dataclass(frozen=True, eq=False)
class _TaughtForm:
    """Instances in the form in which they are taught."""

    dataset: Dataset
    members: dict[str, Members]  # train; measured (subset, validation, test); all (train, validation, test)

    @classmethod
    def of(cls, study: _Pretraining, dataset: Dataset, form: Callable[..., Members]) -> Self:
        chosen = {"measured": of_splits(dataset, MEASURED), "all": of_splits(dataset, ("train", "validation", "test"))}
        chosen["train"] = taught(dataset)
        return cls(dataset, {name: form(study.tokenizer, some) for name, some in chosen.items()})


@dataclass(frozen=True, eq=False)
class _Stage:
    """One training: a pre-training or a fine-tuning of one arm."""

    study: _Pretraining
    arm: str
    kind: str  # pretraining, finetuning
    lesson: _TaughtForm
    training: TrainingSettings

    @property
    def name(self) -> str:
        return f"{self.arm}-{self.kind}"

    @property
    def method(self) -> str:
        """The arm, whatever its tasks are."""
        return self.arm.removesuffix("_unseen")

    @cached_property
    def steps(self) -> int:
        """Optimiser steps of an epoch."""
        return steps_of_an_epoch(self.lesson.members["train"].groups, self.training)

    @cached_property
    def labels(self) -> Labelling | None:
        """Of the instructions, where the states at the special token are measured (Figure 5a); else None."""
        if self.name != "task_id-pretraining":
            return None
        members = self.lesson.members["all"].instances
        return labels_of(self.study.config, members, ("instruction", "task", "distribution"))

    @property
    def form(self) -> str:
        """What its steps are like, and so what one takes."""
        return self.method if self.kind == "pretraining" else self.kind

    def is_measured(self, epoch: int) -> bool:
        """Are the hidden states measured at this epoch?"""
        return self.labels is not None and is_measured(self.study.config.measure, epoch, self.training.epochs)

    def work(self, epochs: int) -> dict[str, float]:
        """The steps and the measured moments of its first epochs, for the workload."""
        measured = sum(self.is_measured(epoch) for epoch in range(1, epochs + 1))
        return {self.form: max(0, epochs) * self.steps, "measured": measured}

    @property
    def scored_by(self) -> str:
        """What chooses a network on validation: the least loss where only a language is learnt, else accuracy."""
        return "loss" if (self.method, self.kind) == ("instruction", "pretraining") else "accuracy"

    @property
    def state_file(self) -> Path:
        return self.study.run.place(f"resume-{self.name}.safetensors")

    @property
    def checkpoint(self) -> Path:
        """The chosen network of a pre-training, the last one of a fine-tuning."""
        return self.study.run.place("checkpoints", self.name if self.kind == "pretraining" else self.arm)

    @property
    def parts(self) -> list[str]:
        """The last one appears when all else is there."""
        return [*(f"{self.name}-{epoch:04d}" for epoch in range(self.training.epochs + 1)), f"{self.name}-end"]

    @property
    def is_done(self) -> bool:
        return all(self.study.run.has_part(name) for name in reversed(self.parts))

    def has(self, epoch: int) -> bool:
        """Is this moment written, and whole?"""
        return self.study.run.has_part(self.parts[epoch])

    def row(self, row: dict[str, Any], epoch: int | None) -> dict[str, Any]:
        """A row with the columns that a whole moment shares."""
        read = "task_token" if self.kind == "pretraining" else None
        shared = {"experiment": "pretrain", "arm": self.arm, "control": "none", "read": read}
        step = None if epoch is None else epoch * self.steps
        return {**shared, "seed": self.study.config.seed, "epoch": epoch, "step": step, **row}


def _stages(study: _Pretraining) -> Iterator[_Stage]:
    """In the order in which they run: a pre-training comes before the fine-tuning that begins with it."""
    config, whole = study.config, study.dataset
    sides = {"": (whole, whole)}
    if config.pretrain.unseen == "yes":
        sides["_unseen"] = halves(whole, seed=config.seed)
    forms: dict[str, Callable[..., Members]] = {"instruction": instructions_alone, "task_id": Members.of}
    first = replace(config.training, epochs=config.pretrain.epochs)
    epochs = max(1, round(config.training.epochs * config.pretrain.finetuning))
    for ending, (before, after) in sides.items():
        naming = named(before)
        earlier = [
            _Stage(study, arm + ending, "pretraining", _TaughtForm.of(study, naming, form), first)
            for arm, form in forms.items()
        ]
        lesson = _TaughtForm.of(study, after, Members.of)
        later = _Stage(study, "none" + ending, "finetuning", lesson, replace(config.training, epochs=epochs))
        longer = replace(later.training, epochs=epochs + math.ceil(earlier[0].steps * first.epochs / later.steps))
        yield from earlier
        for arm in ARMS:
            yield replace(later, arm=arm + ending, training=longer if arm == "longer" else later.training)


# --- one training ----------------------------------------------------------------------------------------------------


def _train(stage: _Stage, workload: Workload, progress: Progress) -> None:
    model = _beginning(stage)
    optimizer = optimizer_for(model, stage.training)
    record = TrainingRecord.opened(
        stage.study.run,
        stage.state_file,
        model,
        optimizer,
        has=stage.has,
    )
    workload.skip(stage.work(record.epoch))
    progress(f"{stage.name}: begins", workload.fraction)
    if record.epoch < 0:
        _moment(stage, model, record, 0)
        record.save(stage.state_file, model, optimizer)
    for epoch in epochs_of(
        model,
        optimizer,
        stage.lesson.members["train"].groups,
        stage.training,
        seed=stream(stage.study.config.seed, stage.kind),
        dtype=stage.study.config.dtype,
        first_epoch=record.epoch + 1,
    ):
        record.train += epoch.seconds
        measured = stage.is_measured(epoch.number)
        if measured:  # its clusters are timed for themselves
            workload.did(stage.form, stage.steps)
        _moment(stage, model, record, epoch.number, training_loss=epoch.loss)
        if record.saving_is_due():
            record.save(stage.state_file, model, optimizer)
        done = workload.did("measured") if measured else workload.did(stage.form, stage.steps)
        score = f"validation {stage.scored_by} {abs(record.score):.2f}"
        progress(f"{stage.name}: epoch {epoch.number} of {stage.training.epochs}, {score}", done)
    _end(stage, model, record)


def _beginning(stage: _Stage) -> PreTrainedModel:
    """The chosen network of the arm's pre-training, or a fresh one."""
    if stage.kind == "finetuning" and stage.method in PRETRAINED:
        pretrained = replace(stage, kind="pretraining").checkpoint
        return load_network(pretrained, device=stage.study.device, attn_implementation="eager")[0]
    return stage.study.network()[0]


def _moment(
    stage: _Stage, model: PreTrainedModel, record: TrainingRecord, epoch: int, *, training_loss: float | None = None
) -> None:
    """Score one epoch border, write its rows, and turn the page of the record."""
    record.tick()
    measure, tokenizer, dataset = stage.study.config.measure, stage.study.tokenizer, stage.lesson.dataset
    labels = stage.labels if stage.is_measured(epoch) else None
    members = stage.lesson.members["measured" if labels is None else "all"]
    reading = read_groups(
        model,
        members.groups,
        layers=[] if labels is None else None,
        candidates=candidates_of(tokenizer, dataset.mappings, members.instances),
        state=measure.state,
    )
    record.read += record.tick()
    splits = [split for split in MEASURED if dataset.select(split)]  # half of the tasks may have no hard examples
    rows = answer_rows(tokenizer, members.instances, reading, splits if labels is None else [*splits, "train"])
    if training_loss is not None:  # the one trained on, dropout and all
        rows.append({"split": "train", "measure": "loss", "value": training_loss})
    score = score_in(rows, stage.scored_by)
    if stage.kind == "pretraining":
        names = _FIRST_STAGE[stage.method]
        rows = [{**row, "measure": names[row["measure"]]} for row in rows if row["measure"] in names]
    if labels is not None:
        states = {split: reading.states[:, places_of(members.instances, split)] for split in (*MEASURED, "train")}
        rows += [row._asdict() for row in survey_of(labels, states, _fitting(measure, dataset)).rows]
    stage.study.run.write_part(stage.parts[epoch], [stage.row(row, epoch) for row in rows])
    record.measure += record.tick()
    record.turn(epoch, -score if stage.scored_by == "loss" else score, model)


_FIRST_STAGE = {
    "instruction": {"loss": "pretraining_loss"},
    "task_id": {"loss": "pretraining_loss", "accuracy": "task_id_accuracy"},
}


def _fitting(measure: MeasureSettings, dataset: Dataset) -> MeasureSettings:
    """One point for each instruction is few: the perplexity is at most a third of the other points of any split."""
    fewest = min(len(dataset.select(split)) for split in MEASURED)
    return replace(measure, perplexity=min(measure.perplexity, (fewest - 1) / 3))


def _end(stage: _Stage, model: PreTrainedModel, record: TrainingRecord) -> None:
    """Keep the network; then the last part, which says that all of this is behind us."""
    run = stage.study.run
    rows: list[dict[str, Any]] = []
    if stage.kind == "finetuning":
        save_network(model, stage.study.tokenizer, stage.checkpoint)
        rows += curve_rows(run.read_part(name) for name in stage.parts[1:-1])
    else:
        save_network(with_weights(model, record.best), stage.study.tokenizer, stage.checkpoint)
    if stage.labels is not None:
        texts = {"surface_instruction": lambda instance: instance.instruction}
        measure = _fitting(stage.study.config.measure, stage.lesson.dataset)
        found = surface_rows(stage.labels, stage.lesson.members["all"].instances, texts, measure)
        rows += [row._asdict() for row in found]
    record.tick()
    before = run.manifest.get("seconds", {})
    chosen = {stage.arm: record.best_epoch} if stage.kind == "pretraining" else {}
    run.record(
        chosen_epochs={**run.manifest.get("chosen_epochs", {}), **chosen},
        seconds={name: round(before.get(name, 0) + getattr(record, name), 3) for name in SECONDS},
    )
    run.write_part(stage.parts[-1], [stage.row(row, None) for row in rows])
    forget(stage.state_file)


# --- at the door, and how long ----------------------------------------------------------------------------------------


def dataset_for(config: Config) -> Dataset:
    """That of the main experiment; settings that only fail together are refused."""
    check_network(config)
    dataset = generate(config.data, seed=config.seed)
    check_alone(config, dataset, "pretrain")
    for split in MEASURED:
        count = len({one.instruction for one in dataset.select(split)})
        if count < _FEWEST:
            raise Refused(
                f"split {split!r} has {count} instructions; clusters need at least {_FEWEST}: enlarge the data"
            )
    if config.pretrain.unseen == "yes" and len({one.task for one in dataset.select("validation")}) < 2:
        raise Refused(
            "pretrain.unseen=yes needs two validation tasks to deal out: raise data.validation_tasks, or say no"
        )
    return dataset


def _workload(study: _Pretraining, stages: Sequence[_Stage]) -> tuple[Workload, str]:
    """Optimiser steps of each form and the epochs at which states are measured; and what all of it will take."""
    model = study.network()[0]
    work, guess = dict[str, float](), {"measured": 0.0}  # which is soon known
    for stage in stages:
        if stage.form not in guess:
            groups = stage.lesson.members["train"].groups
            epoch = seconds_of_an_epoch(model, groups, stage.training, dtype=study.config.dtype)
            guess[stage.form] = epoch / stage.steps
        for part, pieces in stage.work(stage.training.epochs).items():
            work[part] = work.get(part, 0) + pieces
    workload = Workload({part: (pieces, guess[part]) for part, pieces in work.items()})
    for stage in stages:
        if stage.is_done:
            workload.skip(stage.work(stage.training.epochs))
    megabytes = 4 * model.num_parameters() * (len(stages) + 4) / 2**20  # the saved state: weights, two moments, best
    return workload, (
        f"{study.config.size}: {model.num_parameters() / 1e6:.3g} million parameters, {len(stages)} trainings of "
        f"{sum(work.values()) - work['measured']:,} steps in all; about {megabytes:,.0f} MiB in {study.run.folder}"
    )
