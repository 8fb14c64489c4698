"""Any model, any labelled prompts: at which layer are the tasks separate, which are confused, which labels look wrong?

The paper's realistic setting (§3.4, Table 1) for any network and any prompts. What is written of each model stands in
`one_model.py`; what it comes to in words, in `findings.py`.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from tempfile import mkdtemp
from typing import Any
from weakref import finalize

from transformers import PreTrainedTokenizerBase

from nucleate.config import differing
from nucleate.data.prompts import read_prompts
from nucleate.data.sources import Source
from nucleate.devices import device_for
from nucleate.files import write_table
from nucleate.measures.baselines import MOST_FEATURES
from nucleate.measures.products import LARGEST
from nucleate.model.blocks import ReadBlocks
from nucleate.model.subjects import Model, Subject, all_ready, subjects_of
from nucleate.model.texts import fill
from nucleate.probing.controls import surface_of
from nucleate.probing.costs import measuring_seconds, moving_seconds, tokens_of, total_of, workload_of
from nucleate.probing.one_model import finish, is_measured, note_seconds, probe_one
from nucleate.probing.result import ProbeResult, load_probe
from nucleate.probing.settings import ProbeSettings
from nucleate.probing.study import ProbeStudy
from nucleate.progress import Progress, about, silent
from nucleate.runs import open_run
from nucleate.settings import chosen, documented_by
from nucleate.threads import thread_count


@documented_by(ProbeSettings)
def probe(
    model: Model | Sequence[Model],
    data: Source,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: Model | None = None,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    template: str | None = None,
    chat: bool = False,
    layers: Sequence[int] | None = None,
    revisions: Sequence[str] = (),
    dtype: str = "float32",
    device: str = "auto",
    trust_remote_code: bool = False,
    loading: Mapping[str, Any] | None = None,
    thorough: bool = False,
    seed: int = 100,
    perplexity: float = 10,
    iterations: int = 1000,
    initialisations: int = 10,
    repeats: int = 20,
    progress: Progress = silent,
) -> ProbeResult:
    """Does a model separate the tasks of labelled prompts, where, and which not?

    `model` is a path, a hub id or a loaded network (with its `tokenizer`), or a list of such; a folder of checkpoints
    is a series. `data` is a file, a folder, a data frame, a list of dictionaries, a Dataset, or one of `natural`,
    `natural-shared`, `natural-sentences`. `base` is the model before its fine-tuning, to compare with. `progress` is
    called with what is going on."""
    settings = ProbeSettings(**chosen(ProbeSettings, locals()))
    place = Path(mkdtemp(prefix="nucleate-probe-"))
    try:
        probe_into(place / "run", model, data, settings, tokenizer=tokenizer, base=base, progress=progress)
        result = load_probe(place / "run")
    except BaseException:
        shutil.rmtree(place, ignore_errors=True)
        raise
    finalize(result, shutil.rmtree, place, ignore_errors=True)  # the folder lives as long as the result
    return result


def probe_into(
    folder: Path,
    model: Model | Sequence[Model],
    data: Source,
    settings: ProbeSettings,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    base: Model | None = None,
    engine: ReadBlocks | None = None,
    resume: bool = False,
    overwrite: bool = False,
    progress: Progress = silent,
) -> bool:
    """`probe` into a run folder, a part for each model. False where the run is finished and nothing was done. An
    `engine` reads the prompts in the place of this process."""
    study, subjects, compared = _at_the_door(model, data, base, tokenizer, settings, progress)
    study = replace(study, engine=engine)
    weights = [one.checksum or "" for one in subjects]
    opening = open_run(
        folder,
        settings=study.config([one.name for one in subjects], compared, weights=weights),
        differing=partial(differing, kind=ProbeSettings),
        resume=resume,
        overwrite=overwrite,
        reads=[data, *(one.what for one in subjects)],
        facts={
            **study.facts(device_for(settings.device)),
            "checkpoints": {one.name: one.checksum for one in subjects if one.checksum},
        },
        progress=progress,
    )
    with opening as run:
        if run is None:
            return False
        for sentence in (*(_announcement(study, one) for one in subjects), *study.notes):
            progress(sentence, None)
        write_table(run.place("data", "dataset.parquet"), study.prompts.dataset.frame())
        began = time.perf_counter()
        work = workload_of(study, subjects, text=True)
        missing = [one for one in subjects if not is_measured(run, one)]
        for subject in subjects:
            work.skip(total_of(study, subject) if subject not in missing else {})
        progress("n-grams of the text", work.fraction)
        surface = surface_of(study, run, work, progress)
        for subject in missing:
            probe_one(study, subject, run, surface, work, progress)
            began = note_seconds(run, began, study.reading)
        finish(run, study, subjects, compared)
    return True


def check(model: Model | Sequence[Model], data: Source, settings: ProbeSettings) -> None:
    """Refuse what `probe` would refuse before it reads; models of a hub are fetched."""
    _at_the_door(model, data, None, None, settings)


def _at_the_door(
    model: Model | Sequence[Model],
    data: Source,
    base: Model | None,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: ProbeSettings,
    progress: Progress = silent,
) -> tuple[ProbeStudy, list[Subject], str | None]:
    study = ProbeStudy.of(read_prompts(data, columns=settings.columns, limit=settings.limit), settings)
    found, compared = _subjects(model, base, tokenizer, settings)
    subjects = all_ready(found, progress)
    for subject in subjects:
        study.check(subject)
    return study, subjects, compared


def budget(
    model: Model | Sequence[Model],
    data: Source,
    settings: ProbeSettings,
    *,
    base: Model | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> list[str]:
    """A sentence per model: what probing it will take, from its settings alone."""
    study = ProbeStudy.of(read_prompts(data, columns=settings.columns, limit=settings.limit), settings)
    if settings.template is not None:
        fill(settings.template, {"instruction": "", "input": ""}, (study.main, *study.other_reads))
    return [_announcement(study, one) for one in _subjects(model, base, tokenizer, settings)[0]]


def _announcement(study: ProbeStudy, subject: Subject) -> str:
    prompts, settings = study.prompts, study.settings
    count = len(prompts.instances)
    tokens = tokens_of(prompts)
    needed = subject.estimate(count, tokens, layers=len(subject.layers(settings.layers)))
    passes = 2.5 if prompts.has_inputs else 2  # trained, untrained, and the few distinct neutral prompts
    products = (
        min(4 * LARGEST**2, thread_count() * 4 * count**2) if count <= LARGEST else 0
    )  # of points with each other
    beside = needed.weight_bytes + 2 * 4 * count * MOST_FEATURES + products + _LIBRARIES  # untrained network, n-grams
    measuring = measuring_seconds(needed.state_bytes / 4, count)
    moving = moving_seconds(study, subject, needed.seconds)
    to_move = f"{about(moving)} to move states from task to task (twice that if few answers are right)"
    return (
        f"{subject.name}: {_millions(needed.parameters)} parameters, {count:,} prompts of about {_rounded(tokens)} "
        f"tokens in all; about {_size(needed.peak_bytes + beside)} of memory ({_size(needed.weight_bytes)} of weights, "
        f"{_size(needed.state_bytes)} of states), {about(needed.seconds * passes)} to read"
        f"{', ' if moving else ' and '}{about(measuring)} to measure"
        f"{f' and {to_move}' if moving else ''}"
    )


_LIBRARIES = 2**30  # bytes: Python, torch, compiled kernels, blocks of neighbours


def _millions(count: int) -> str:
    return f"{count / 1e6:,.0f} million" if count >= 1e7 else f"{count:,}"


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**29 else f"{count / 2**20:.0f} MiB"


def _rounded(count: int) -> str:
    """Two figures, as befits a guess."""
    return f"{round(count, 2 - len(str(count))):,}"


def _subjects(
    model: Model | Sequence[Model],
    base: Model | None,
    tokenizer: PreTrainedTokenizerBase | None,
    settings: ProbeSettings,
) -> tuple[list[Subject], str | None]:
    loading: dict[str, Any] = {name: getattr(settings, name) for name in ("dtype", "trust_remote_code")}
    loading |= {"device": device_for(settings.device), **(settings.loading or {})}
    return subjects_of(model, base, tokenizer, loading, settings.revisions)
