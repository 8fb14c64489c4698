"""A network probed while it learns: a run folder of `probe` that has one more model at every look.

What `probe.py` does with checkpoints, without checkpoints: each look is a model called `step-…`, the first one the
base that all others are compared with. Between two looks the folder is closed, and an interrupted run to whoever reads
it: it can be drawn at any time, and a training that was killed goes on where its own checkpoint begins.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from nucleate.config import differing
from nucleate.data.prompts import read_prompts
from nucleate.data.sources import Source
from nucleate.files import write_table, write_text
from nucleate.long_table import CLUSTERED, READABLE
from nucleate.model.packed_pass import where_it_runs
from nucleate.model.subjects import Subject
from nucleate.probing.controls import surface_of
from nucleate.probing.costs import workload_of
from nucleate.probing.findings import reading_of
from nucleate.probing.margins import Controls
from nucleate.probing.one_model import TABLES, join, note_seconds, part_of, piece_of, probe_one
from nucleate.probing.result import ProbeResult, load_probe
from nucleate.probing.settings import ProbeSettings
from nucleate.probing.study import ProbeStudy
from nucleate.progress import Progress
from nucleate.refusal import Refused
from nucleate.runs import RunWriter, load_run, open_run

LOADING = (
    "revisions",
    "dtype",
    "device",
    "trust_remote_code",
    "loading",
)  # settings without a use here: the weights are there


@dataclass(frozen=True)
class Look:
    """What one look has found."""

    words: str  # the answer, with what has changed since the first look
    readable: float | None  # share of held-out labels that are read
    clustered: float | None  # share of their neighbours that have the same label
    best_layer: int  # of which labels are read


@dataclass(eq=False)
class LiveProbe:
    """The looks at one training, in one folder."""

    study: ProbeStudy
    folder: Path
    source: Source  # of the prompts
    looks: list[Subject] = field(default_factory=list)  # by rising step; their networks have moved on since
    surface: Controls = field(default_factory=dict)

    @classmethod
    def of(cls, data: Source, folder: Path, settings: ProbeSettings) -> "LiveProbe":
        """`data` as for `probe`; what cannot be probed is refused here."""
        prompts = read_prompts(data, columns=settings.columns, limit=settings.limit)
        return cls(ProbeStudy.of(prompts, settings), folder, data)

    def begin(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        step: int,
        *,
        resume: bool,
        overwrite: bool,
        go_on: str,
        progress: Progress,
    ) -> None:
        """Open the folder, before the first step of a training or, to `resume`, before the one after `step`; what
        could not be read is refused, and of an unfinished folder it is said how to `go_on` with it."""
        device, dtype = where_it_runs(network)
        settings = replace(self.study.settings, device=device.type, dtype=str(dtype).removeprefix("torch."))
        self.study = replace(self.study, settings=settings)
        self.study.check(_subject(network, tokenizer, step, None))
        self.looks = []
        overwrite = overwrite or _is_empty(self.folder)
        try:
            self._begin(tokenizer, step, resume=resume and not overwrite, overwrite=overwrite, progress=progress)
        except Refused as refusal:
            why = str(refusal).partition(";")[0]  # the remedies behind it are the command line's
            remedies = [f"go on with {go_on}"] if "unfinished" in why else []
            remedies += ["give another folder as out=…", *([] if resume or overwrite else ["or overwrite=True"])]
            raise Refused(f"{why}: {', '.join(remedies)}") from None

    def _begin(
        self, tokenizer: PreTrainedTokenizerBase, step: int, *, resume: bool, overwrite: bool, progress: Progress
    ) -> None:
        with self._open(resume=resume, overwrite=overwrite) as run:
            for seen in (int(name.rpartition("-")[2]) for name in load_run(self.folder).config["models"]):
                earlier = _subject(None, tokenizer, seen, None)
                if seen <= step:
                    epoch = run.read_part(part_of(earlier))["epoch"][0]
                    self.looks.append(replace(earlier, epoch=epoch))
                else:  # of steps that will be taken anew
                    _forget(run, earlier)
            write_table(run.place("data", "dataset.parquet"), self.study.prompts.dataset.frame())
            for sentence in self.study.notes:
                progress(sentence, None)
            self.surface = surface_of(self.study, run, workload_of(self.study, [], text=True), progress)
            self._list(run)

    def look(
        self,
        network: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        step: int,
        epoch: int | None,
        progress: Progress,
    ) -> "Look":
        """Probe the network as it is now. Its modes, its gradients and all random streams stay as they are."""
        subject = _subject(network, tokenizer, step, epoch)
        began = time.perf_counter()
        cuda = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with self._open(resume=True) as run, torch.random.fork_rng(devices=cuda), _as_it_is(network):
            work = workload_of(self.study, [subject], text=False, act=False)
            probe_one(self.study, subject, run, self.surface, work, progress, act=False)
            note_seconds(run, began, self.study.reading)
            self.looks.append(replace(subject, what=None))
            self._list(run)
            join(run, self.study, self.looks, self.looks[0].name)
            words = run.manifest["verdict"][subject.name]
        found = load_probe(self.folder)
        read, near = (reading_of(found.metrics, subject.name, reading) for reading in (READABLE, CLUSTERED))
        return Look(words, read.value, near.value, read.layer)

    def end(self) -> ProbeResult:
        """Close the folder. Its `pieces/` stay, so that a training which goes on can open it again."""
        with self._open(resume=True) as run:
            join(run, self.study, self.looks, self.looks[0].name)
            run.paused = False
        return load_probe(self.folder)

    @property
    def _settings(self) -> str:
        names = [one.name for one in self.looks]
        return self.study.config(names, names[0] if names else None)

    def _list(self, run: RunWriter) -> None:
        """The looks so far, for whoever reads the folder."""
        write_text(run.place("config.toml"), self._settings)

    @contextmanager
    def _open(self, *, resume: bool, overwrite: bool = False) -> Iterator[RunWriter]:
        opening = open_run(
            self.folder,
            settings=self._settings,
            differing=_differing,
            resume=resume,
            overwrite=overwrite,
            reopen=True,
            reads=[self.source],
            facts=self.study.facts(self.study.settings.device),
        )
        with opening as run:
            assert run is not None
            run.paused = True
            yield run


def _subject(
    network: PreTrainedModel | None, tokenizer: PreTrainedTokenizerBase, step: int, epoch: int | None
) -> Subject:
    return Subject(f"step-{step}", network, tokenizer, {}, epoch, step)


def _is_empty(folder: Path) -> bool:
    """Is it one whose first look failed?"""
    return (folder / "config.toml").is_file() and not load_run(folder).config.get("models", True)


def _forget(run: RunWriter, look: Subject) -> None:
    for path in (
        run.folder / "parts" / f"{part_of(look)}.parquet",
        run.folder / "layouts" / f"{look.file}.parquet",
        *(run.folder / "pieces" / piece_of(look, table) for table in (*TABLES, "gained")),
    ):
        path.unlink(missing_ok=True)


def _differing(begun: str, asked: str) -> list[str]:
    """As for any run, but for the looks, which grow."""
    return [one for one in differing(begun, asked, ProbeSettings) if one.split(" ")[0] not in ("models", "base")]


@contextmanager
def _as_it_is(network: Any) -> Iterator[None]:
    """In the precision of its weights, as a saved checkpoint is read, and as its untrained control: without the mixed
    precision that accelerate, or whoever trains, has wrapped around it."""
    wrapped = vars(network).get("forward") if hasattr(network, "_original_forward") else None
    if wrapped is not None:
        network.forward = network._original_forward
    try:
        with torch.autocast(where_it_runs(network)[0].type, enabled=False):
            yield
    finally:
        if wrapped is not None:
            network.forward = wrapped
