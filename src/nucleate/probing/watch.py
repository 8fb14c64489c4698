"""A training loop of one's own that shows, while it runs, which tasks its network holds apart.

    with nucleate.watch(model, "prompts.jsonl", tokenizer=tokenizer, out="watched", every=100) as seen:
        for batch in batches:
            …
            seen.step()
    print(seen.result)

What `ProbeCallback` is to a Trainer: the same looks, in the same kind of run folder, which change nothing.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from transformers import PreTrainedTokenizerBase

from nucleate.data.sources import Source
from nucleate.probing.callback import finished, inside_of, say, spared
from nucleate.probing.live import LOADING, LiveProbe, Look
from nucleate.probing.result import ProbeResult
from nucleate.probing.settings import ProbeSettings
from nucleate.refusal import Refused
from nucleate.settings import chosen, documented_by


@documented_by(ProbeSettings, without=LOADING)
class watch:  # named as what is done with it
    """Probes a network before the first step of a training loop, every so many steps, and when the block is left.

    `data` are the labelled prompts: anything that `nucleate.probe` takes. `out` is the run folder. `step()` is called
    after each step of the optimiser; it gives a `Look` (`words`, `readable`, `clustered`, `best_layer`) at every
    `every`-th one, else None. A loop that goes on where an earlier one ended says `begin=` how many steps that had; its
    folder goes on too, without the looks after that step. After an error in the block the folder stays unfinished and
    can be gone on with. `overwrite` begins a folder anew. Afterwards `result` holds what was found."""

    def __init__(
        self,
        model: Any,
        data: Source,
        *,
        tokenizer: PreTrainedTokenizerBase,
        out: str | Path,
        every: int = 100,
        begin: int = 0,
        overwrite: bool = False,
        layers: Sequence[int] | None = None,
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
        for name, number, least in (("every", every, 1), ("begin", begin, 0)):
            if isinstance(number, bool) or not isinstance(number, int) or number < least:
                raise Refused(f"{name}={number!r} is no whole number of steps from {least} on")
        self.every, self.steps = every, begin
        self.result: ProbeResult | None = None
        self._model, self._tokenizer, self._overwrite = model, tokenizer, overwrite
        self._probe = LiveProbe.of(data, Path(out), settings)

    def __enter__(self) -> Self:
        together = torch.distributed.is_available() and torch.distributed.is_initialized()
        if together and torch.distributed.get_world_size() > 1:
            raise Refused("several processes train together: use a Trainer and ProbeCallback, or probe checkpoints")
        self._probe.begin(
            inside_of(self._model),
            self._tokenizer,
            self.steps,
            resume=self.steps > 0,
            overwrite=self._overwrite,
            go_on="begin=…, the steps that are behind",
            progress=lambda sentence, fraction: None if fraction is not None else say(sentence),
        )
        if not self._probe.looks:
            self._look()
        return self

    def step(self) -> Look | None:
        """One more step was taken. What a look that fails says is told, and the loop goes on."""
        self.steps += 1
        if self.steps % self.every:
            return None
        with spared(f"step {self.steps} was not probed"):
            return self._look()
        return None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is not None:
            return
        if all(look.step != self.steps for look in self._probe.looks):
            with spared(f"step {self.steps} was not probed"):
                self._look()
        with spared(f"{self._probe.folder} was not finished"):
            self.result, page = finished(self._probe)
            say(f"page: {page}")

    def _look(self) -> Look:
        seen = self._probe.look(
            inside_of(self._model), self._tokenizer, self.steps, None, lambda sentence, fraction: None
        )
        say(f"step {self.steps}: {seen.words}")
        return seen
