"""A Hugging Face `Trainer` that shows, while it trains, which tasks its network holds apart.

    trainer = Trainer(…, callbacks=[nucleate.ProbeCallback("prompts.jsonl", every=100)])

Every look is a whole probe with all of its controls, in a run folder that `nucleate report` draws at any time. Looking
changes nothing: the trained weights are, to the bit, those of a training without it.
"""

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from nucleate.data.sources import Source
from nucleate.probing.live import LOADING, LiveProbe
from nucleate.probing.result import ProbeResult
from nucleate.probing.settings import ProbeSettings
from nucleate.refusal import Refused
from nucleate.report.figures import draw_figures
from nucleate.report.page import write_page
from nucleate.runs import load_run
from nucleate.settings import chosen, documented_by


@documented_by(ProbeSettings, without=LOADING)
class ProbeCallback(TrainerCallback):
    """Probes the network of a Trainer before the first step, every so many, and after the last.

    `data` are the labelled prompts: anything that `nucleate.probe` takes. `every` counts optimiser steps, or is a share
    of all of them where it is below 1. `out` is the run folder; unless it is given, the Trainer's output folder with
    `-probe` after its name. A training that goes on from a checkpoint goes on with its looks too; otherwise a folder
    that holds something is refused before the first step, unless `overwrite` is set. `tokenizer` is the Trainer's
    unless given. Under several processes the first one looks, and the others wait for it at their next step.

    Afterwards `result` holds what was found. Each look hands `probe/readable`, `probe/clustered` and `probe/best_layer`
    to the Trainer's `log`: to TensorBoard, W&B or whatever else it reports to (transformers puts `train/` before their
    names there), and to the `log_history` of its state.
    """

    def __init__(
        self,
        data: Source,
        *,
        every: float = 0.1,
        layers: Sequence[int] | None = None,
        out: str | Path | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        overwrite: bool = False,
        columns: Mapping[str, str] | None = None,
        limit: int | None = None,
        template: str | None = None,
        chat: bool = False,
        thorough: bool = False,
        seed: int = 100,
        perplexity: float = 10,
        iterations: int = 1000,
        initialisations: int = 10,
        repeats: int = 20,
    ) -> None:
        settings = ProbeSettings(**chosen(ProbeSettings, locals()))
        number = isinstance(every, int | float) and not isinstance(every, bool)
        if not (number and (0 < every < 1 or (1 <= every < float("inf") and every == int(every)))):
            raise Refused(f"every={every!r} is neither a number of steps nor a share of them below 1")
        self.every = every
        self.out = None if out is None else Path(out)
        self.tokenizer = tokenizer
        self.overwrite = overwrite
        self.result: ProbeResult | None = None
        self._trainer: Trainer | None = None
        self._probe = LiveProbe.of(data, Path(), settings)
        self._unfinished: Path | None = None  # a folder of this one's own that is not finished
        self._seconds = self._since = 0.0  # spent on looks, and when the training began

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        network, tokenizer = inside_of(model), self.tokenizer or kwargs.get("processing_class")
        if tokenizer is None:
            raise Refused("the Trainer has no processing_class: give ProbeCallback(…, tokenizer=tokenizer)")
        self._tokenizer, self._trainer = tokenizer, _calling_trainer()
        if not state.is_world_process_zero:
            return
        place = Path(str(args.output_dir)).resolve()
        folder = (self.out or place.with_name(f"{place.name}-probe")) / (state.trial_name or "")
        self._probe.folder = folder
        self._since, self._seconds, self.result = time.monotonic(), 0.0, None
        with self._timed():
            self._probe.begin(
                network,
                self._tokenizer,
                state.global_step,
                resume=state.global_step > 0,
                overwrite=not state.global_step and (self.overwrite or self._unfinished == folder),
                go_on="train(resume_from_checkpoint=True)",
                progress=lambda sentence, fraction: None if fraction is not None else say(sentence),
            )
            self._unfinished = folder
            if not self._probe.looks:
                self._look(state, control, model)

    def on_step_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        steps = self.every if self.every >= 1 else max(1, round(self.every * state.max_steps))
        if state.global_step % steps == 0 or state.global_step >= state.max_steps:
            self._look_once(state, control, model)

    def on_epoch_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if control.should_training_stop:  # early, perhaps to go back to the best checkpoint
            self._look_once(state, control, model)

    on_save = on_epoch_end

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        if not state.is_world_process_zero:
            return
        if not args.load_best_model_at_end:  # which has put another network in its place
            self._look_once(state, control, model)
        with spared(f"{self._probe.folder} was not finished"):
            with self._timed():
                (self.result, page), self._unfinished = finished(self._probe), None
            share = self._seconds / (time.monotonic() - self._since)
            say(f"looking took {share:.0%} of the time, tables and page included; page: {page}")

    def _look_once(self, state: TrainerState, control: TrainerControl, model: nn.Module | None) -> None:
        seen = any(look.step == state.global_step for look in self._probe.looks)
        if state.is_world_process_zero and not seen:
            with spared(f"step {state.global_step} was not probed"), self._timed():
                self._look(state, control, model)

    @contextmanager
    def _timed(self) -> Iterator[None]:
        began = time.monotonic()
        try:
            yield
        finally:
            self._seconds += time.monotonic() - began

    def _look(self, state: TrainerState, control: TrainerControl, model: nn.Module | None) -> None:
        first = not self._probe.looks
        epoch = None if state.epoch is None else int(state.epoch + 1e-6)  # whole ones, as a saved checkpoint tells it

        def progress(sentence: str, fraction: float | None) -> None:
            if fraction is None and first:  # what is to be said of the prompts is said once
                say(sentence)

        seen = self._probe.look(inside_of(model), self._tokenizer, state.global_step, epoch, progress)
        say(f"step {state.global_step}: {seen.words}")
        told = {"readable": seen.readable, "clustered": seen.clustered, "best_layer": seen.best_layer}
        logs = {f"probe/{name}": value for name, value in told.items() if value is not None}
        if self._trainer is None:
            state.log_history.append({**logs, "epoch": state.epoch, "step": state.global_step})
            return
        due = control.should_log  # the loss of this step, which `log` would take for told
        with spared(f"step {state.global_step} was probed, but not logged"):
            Trainer.log(self._trainer, logs)  # not what a kind of Trainer has made of it, which may average and clear
        control.should_log = due


def finished(probe: LiveProbe) -> tuple[ProbeResult, Path]:
    """What the looks have found, and the page of it."""
    result, run = probe.end(), load_run(probe.folder)
    drawn = draw_figures(run, run.folder / "figures")
    return result, write_page(run, run.folder / "page.html", {(run.folder,): drawn})


def _calling_trainer() -> Trainer | None:
    """The Trainer that has called, which hands itself to no callback."""
    frame = inspect.currentframe()
    while frame is not None:
        if isinstance(frame.f_locals.get("self"), Trainer):
            return frame.f_locals["self"]
        frame = frame.f_back
    return None


def say(sentence: str) -> None:
    """Above the bar of whoever trains."""
    tqdm.write(f"nucleate: {sentence}")


@contextmanager
def spared(what: str) -> Iterator[None]:
    """Hours of training are worth more than a look: what goes wrong in here is told, and ends nothing."""
    try:
        yield
    except Exception as error:
        say(f"{what}: {type(error).__name__}: {error}")


def inside_of(model: Any) -> PreTrainedModel:
    """The transformers network inside of what a Trainer holds: a compiled one, one with an adapter."""
    while True:
        if type(model).__name__ == "FullyShardedDataParallel":
            raise Refused(_DEALT)
        inside = getattr(model, "_orig_mod", None) or getattr(model, "module", None)
        if inside is None and hasattr(model, "get_base_model"):
            if getattr(model.active_peft_config, "is_prompt_learning", False):
                raise Refused("virtual tokens (prompt learning) are no part of the network that is read here")
            inside = model.get_base_model()  # which holds the adapter's weights
        if inside is None:
            break
        model = inside
    sharded = ("ds_id", "full_tensor")  # DeepSpeed's third stage, FSDP
    if any(hasattr(parameter, name) for parameter in model.parameters() for name in sharded):
        raise Refused(_DEALT)
    return model


_DEALT = "the network's weights are dealt over several processes: probe its checkpoints instead"
