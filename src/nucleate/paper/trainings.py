"""A training of one of the paper's networks: its epochs, the record that is carried through them, what is kept.

The experiments of this room may all import it; it imports none of them (docs/architecture.md).
"""

import copy
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import torch
from transformers import PreTrainedModel

from nucleate.config import Config, MeasureSettings, TrainingSettings, differing, to_toml
from nucleate.data.dataset import Dataset
from nucleate.files import file_hash
from nucleate.model.architectures import FAMILIES
from nucleate.model.prefix_tree import Group
from nucleate.model.training import (
    Epoch,
    load_state,
    make_optimizer,
    order,
    previous_of,
    read_state,
    save_state,
    train,
    weights,
)
from nucleate.progress import Progress
from nucleate.refusal import Refused
from nucleate.runs import RunWriter, open_run
from nucleate.threads import thread_count

SECONDS = ("train", "read", "measure", "total")
PACKED_NOTE = (
    "The packed law (--fast): a step holds whole instructions with all their inputs. An epoch costs less and teaches "
    "less than by the paper's law of single rows; it is for trying things out."
)
_PLAIN_NOTE = (
    "This architecture cannot hold several instances in a row: it is trained and read on padded rows, which is slower "
    "and gives the same numbers."
)
_NARROW = 128  # widths up to here train as fast on one thread as on two
_SAVING_SHARE = 0.05  # of the time may go into saving: a kill costs at most twenty times what one saving takes


@contextmanager
def run_of(
    verb: str,
    config: Config,
    dataset: Dataset,
    device: str,
    folder: Path,
    *,
    resume: bool,
    overwrite: bool,
    progress: Progress,
) -> Iterator[RunWriter | None]:
    """The run folder of a network of our own, and the threads it trains best on; None where it is finished already."""
    opening = open_run(
        folder,
        settings=to_toml(config, verb=verb),
        differing=differing,
        resume=resume,
        overwrite=overwrite,
        facts={"device": device, "seeds": {"root": config.seed}, "data_hash": dataset.content_hash()},
        progress=progress,
    )
    family = FAMILIES.get(config.model.architecture)
    with opening as run, _threads_for(config), warnings.catch_warnings():
        if run is not None and config.training.is_packed:
            progress(PACKED_NOTE, None)
        if run is not None and family is not None and not family.shares_tokens:
            progress(_PLAIN_NOTE, None)
            warnings.filterwarnings("ignore", ".* does not keep packed instances apart")  # as has just been said
        yield run


@contextmanager
def _threads_for(config: Config) -> Iterator[None]:
    """One thread for narrow networks: a second one gains nothing there and waits at every step on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1 if config.model.width <= _NARROW else thread_count())
    try:
        yield
    finally:
        torch.set_num_threads(before)


def optimizer_for(model: PreTrainedModel, training: TrainingSettings) -> torch.optim.AdamW:
    """AdamW under the settings."""
    return make_optimizer(model, learning_rate=training.learning_rate, weight_decay=training.weight_decay)


def steps_of_an_epoch(groups: Sequence[Group], training: TrainingSettings) -> int:
    """Optimiser steps."""
    branches = [len(group.branches) for group in groups]
    return len(order(branches, packing=training.packing, batch=training.batch, seed=0, epoch=1))


def epochs_of(
    model: PreTrainedModel,
    optimizer: torch.optim.Optimizer,
    groups: Sequence[Group],
    training: TrainingSettings,
    *,
    seed: int,
    dtype: str,
    first_epoch: int = 1,
) -> Iterator[Epoch]:
    """`train` under the settings."""
    return train(
        model,
        optimizer,
        groups,
        epochs=training.epochs,
        first_epoch=first_epoch,
        batch=training.batch,
        learning_rate=training.learning_rate,
        max_gradient_norm=training.max_gradient_norm,
        packing=training.packing,
        seed=seed,
        dtype=dtype,
    )


def seconds_of_an_epoch(
    model: PreTrainedModel, groups: Sequence[Group], training: TrainingSettings, *, dtype: str
) -> float:
    """Guessed from a few steps of a copy of the network: the fastest pass over them within a second, but the first."""
    few = groups[: 4 * max(1, training.batch // len(groups[0].branches))]
    copied = copy.deepcopy(model)
    tried = train(
        copied,
        optimizer_for(copied, training),
        few,
        epochs=8,
        batch=training.batch,
        learning_rate=training.learning_rate,
        packing=training.packing,
        seed=0,
        dtype=dtype,
    )
    began, seconds = time.monotonic(), list[float]()
    for epoch in tried:
        seconds.append(epoch.seconds)
        if len(seconds) > 1 and time.monotonic() - began > 1:
            break
    return min(seconds[1:]) * len(groups) / len(few)


def is_measured(measure: MeasureSettings, epoch: int, last: int) -> bool:
    """Are the hidden states measured at this epoch of a training that ends at `last`?"""
    return epoch <= measure.dense_until or epoch % measure.every == 0 or epoch == last


@dataclass
class TrainingRecord:
    """What is carried from epoch to epoch of one training, and saved with its weights."""

    epoch: int = -1  # the last moment behind us
    score: float = 0.0  # by which the best epoch is chosen, then: the higher the better
    best_epoch: int = 0
    best_score: float = 0.0
    train: float = 0.0  # seconds inside optimiser steps, then reading states, measuring, and all
    read: float = 0.0
    measure: float = 0.0
    total: float = 0.0
    best: dict[str, torch.Tensor] = field(default_factory=dict)  # weights of the best epoch
    clock: float = field(default_factory=time.monotonic)
    saving: float = 0.0  # seconds that the last saving took
    saved_at: float = field(default_factory=time.monotonic)

    @classmethod
    def opened(
        cls,
        run: RunWriter,
        file: Path,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        *,
        has: Callable[[int], bool],
    ) -> Self:
        """Where the last saving left off, network and optimiser included; where it is torn, or the run no longer `has`
        all of an epoch before it, the saving before that one; an empty record at a fresh start."""
        for path in (file, previous_of(file)):
            if not path.is_file():
                continue
            try:
                saved = int(read_state(path)[1]["epoch"])
            except (Refused, KeyError, TypeError, ValueError) as damage:
                run.note(f"left out: {damage}")
                continue
            lost = next((epoch for epoch in range(saved + 1) if not has(epoch)), None)
            if lost is None:
                return cls(**load_state(path, model, optimizer))
            run.note(f"epoch {lost} is computed anew, and all after it: {path.name} is later")
        return cls()

    def tick(self) -> float:
        """Seconds since the last call; added to the total."""
        now = time.monotonic()
        since, self.clock = now - self.clock, now
        self.total += since
        return since

    def turn(self, epoch: int, score: float, model: PreTrainedModel) -> None:
        """An epoch is behind us. The earliest one of the highest score is the best; epoch 0 is none."""
        self.epoch, self.score = epoch, score
        if epoch > 0 and (not self.best or score > self.best_score):
            self.best_epoch, self.best_score, self.best = epoch, score, weights(model)

    def saving_is_due(self) -> bool:
        """Has enough time gone by for another saving?"""
        return (time.monotonic() - self.saved_at) * _SAVING_SHARE >= self.saving

    def save(
        self,
        file: Path,
        model: PreTrainedModel,
        optimizer: torch.optim.Optimizer,
        *,
        beside: Callable[[], None] = lambda: None,
    ) -> None:
        """All that a resumed run needs, in one file that is replaced whole; `beside` saves what others may read."""
        began = time.monotonic()
        beside()
        save_state(file, model, optimizer, best=self.best, **{name: getattr(self, name) for name in _SCALARS})
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - began


def forget(file: Path) -> None:
    """Remove a saved state, and the one before it."""
    for path in (file, previous_of(file)):
        path.unlink(missing_ok=True)


_SCALARS = ("epoch", "score", "best_epoch", "best_score", *SECONDS)


def with_weights(model: PreTrainedModel, best: Mapping[str, torch.Tensor]) -> PreTrainedModel:
    """A copy of a network with these weights."""
    copied = copy.deepcopy(model)
    copied.load_state_dict(best, strict=False)  # tied weights are named once
    return copied


def checkpoint_hashes(run: RunWriter) -> dict[str, str]:
    """For the manifest: the hash of every saved network's weights."""
    folders = sorted(path for path in (run.folder / "checkpoints").iterdir() if path.is_dir())
    return {path.name: file_hash(path / "model.safetensors") for path in folders}
