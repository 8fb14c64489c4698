"""What the experiments on the paper's own networks stand on: data, a network, its run folder, rows of one moment.

No experiment itself, so they may all import it; it imports none of them (docs/architecture.md).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.config import Config, MeasureSettings, configure, differing, to_toml
from nucleate.data.dataset import Dataset, Instance
from nucleate.data.synthetic import generate
from nucleate.measures.baselines import surface_features
from nucleate.measures.neighbours import Labels
from nucleate.measures.survey import Cast, Cohort, Row, Survey, cast, survey
from nucleate.model.networks import gpt2, word_tokenizer
from nucleate.model.prefix_tree import Group
from nucleate.model.states import Reading, instances_as_groups
from nucleate.refusal import Refused
from nucleate.runs import RunWriter, open_run
from nucleate.threads import thread_count

MEASURED = ("subset", "validation", "test")  # their neighbours are sought in `train`, which holds the subset too
_NARROW = 128  # widths up to here train as fast on one thread as on two
LABELS = ("instruction", "input", "output", "task", "distribution", "mapping")


# --- data and network ------------------------------------------------------------------------------------------------


def synthetic_dataset(size: str = "paper", seed: int = 100) -> Dataset:
    """The synthetic dataset of a size."""
    return make_dataset(configure(size, seed=seed))


def make_dataset(config: Config, *, kind: str = "main") -> Dataset:
    """The dataset of a run: the same for the same data settings and seed, on any machine."""
    return generate(seed=config.seed, kind=kind, **asdict(config.data))


def make_network(
    config: Config, dataset: Dataset, *, device: str, words: Sequence[str] = (), seed: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A fresh network for the symbols of a dataset and further `words`; equal seeds give equal weights."""
    tokenizer = word_tokenizer([*dataset.vocabulary["instruction"], *dataset.vocabulary["task"], *words])
    model = gpt2(
        vocabulary=len(tokenizer),
        positions=_positions(dataset),
        pad=int(tokenizer.pad_token_id),
        seed=config.seed if seed is None else seed,
        **asdict(config.model),
    )
    torch.nn.Module.to(model, device)
    if config.measure.last_layer == "plain":
        model.config.tie_last_hidden_states = False
    return model, tokenizer


def _positions(dataset: Dataset) -> int:
    """Longest sequence + 4, at most 64."""
    longest = max(len(f"{i.instruction} {i.input} {i.output}".split()) for i in dataset.instances)
    return max(longest, min(64, longest + 4))


def check_network(config: Config) -> None:
    """Refuse settings of the network that only fail together."""
    if config.model.width % config.model.heads:
        raise Refused(f"model.width={config.model.width} is not a multiple of model.heads={config.model.heads}")
    if config.model.dropout >= 1:
        raise Refused(f"model.dropout={config.model.dropout} leaves nothing: it must be below 1")


@contextmanager
def run_of(
    verb: str, config: Config, dataset: Dataset, device: str, folder: Path, *, resume: bool, overwrite: bool
) -> Iterator[RunWriter | None]:
    """The run folder of a network of our own, and the threads it trains best on; None where it is finished already."""
    opening = open_run(
        folder,
        settings=to_toml(config, verb=verb),
        differing=differing,
        resume=resume,
        overwrite=overwrite,
        facts={"device": device, "seeds": {"root": config.seed}, "data_hash": dataset.content_hash()},
    )
    with opening as run, _threads_for(config):
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


# --- instances by split ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Members:
    """Instances of some splits as groups to feed, and themselves in the order of those groups."""

    groups: list[Group]
    instances: tuple[Instance, ...]

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerFast, instances: Sequence[Instance], **forms: str) -> Self:
        """`forms`: the template of a prompt and the answer's, as `instances_as_groups` takes them."""
        groups, places = instances_as_groups(tokenizer, instances, **forms)
        return cls(groups, tuple(instances[place] for place in places))


def of_splits(dataset: Dataset, splits: Iterable[str]) -> list[Instance]:
    """The instances of these splits, one split after the other."""
    return [instance for split in splits for instance in dataset.select(split)]


def in_split(instance: Instance, split: str) -> bool:
    """Is it there? `subset` is a part of `train`."""
    return instance.in_subset if split == "subset" else instance.split == split


def places_of(members: Sequence[Instance], split: str) -> np.ndarray:
    """(instance,) which of the members are in a split."""
    return np.array([place for place, instance in enumerate(members) if in_split(instance, split)], dtype=np.int64)


def candidates_of(
    tokenizer: PreTrainedTokenizerFast, mappings: Mapping[str, Mapping[str, str]], members: Sequence[Instance]
) -> list[tuple[int, ...]]:
    """Each instance's own task's outputs, as tokens."""
    code = tokenizer.get_vocab()
    outputs = {task: tuple(sorted({code[o] for o in m.values()})) for task, m in mappings.items()}
    return [outputs[instance.task] for instance in members]


# --- rows ------------------------------------------------------------------------------------------------------------


def answer_rows(
    tokenizer: PreTrainedTokenizerFast, members: Sequence[Instance], reading: Reading, splits: Iterable[str]
) -> list[dict[str, Any]]:
    """By split: accuracy (greedy, over all words), accuracy_restricted (among the outputs of the instance's own task,
    where candidates were read), and, but for the training split, loss per predicted token."""
    wished = np.array(tokenizer.convert_tokens_to_ids([str(i.output) for i in members]))
    rows = []
    for split in splits:
        here = places_of(members, split)
        found = {"accuracy": float((reading.predicted == wished)[here].mean())}
        if reading.restricted is not None:
            found["accuracy_restricted"] = float((reading.restricted == wished)[here].mean())
        if split != "train":
            found["loss"] = float(reading.loss[here].sum() / reading.predicted_tokens[here].sum())
        rows += [{"split": split, "measure": measure, "value": value} for measure, value in found.items()]
    return rows


def score_in(rows: Iterable[Mapping[str, Any]], measure: str = "accuracy") -> float:
    """What is scored on validation."""
    return next(row["value"] for row in rows if (row["measure"], row["split"]) == (measure, "validation"))


def curve_rows(parts: Iterable[pl.DataFrame]) -> list[dict[str, Any]]:
    """How fast validation accuracy rose over the parts of a training from epoch 1 on: its mean, and the first epoch at
    a share of its final level (the mean of the last ten epochs)."""
    curve = pl.concat(parts).filter(measure="accuracy", split="validation")["value"].to_numpy()
    final = float(curve[-10:].mean())
    rows: list[dict[str, Any]] = [{"measure": "area_under_curve", "value": float(curve.mean())}]
    if final > 0:
        rows += [
            {"measure": f"epochs_to_{share}", "value": float(np.argmax(curve >= share / 100 * final) + 1)}
            for share in (50, 80, 90)
            if (curve >= share / 100 * final).any()
        ]
    return [{**row, "split": "validation"} for row in rows]


def labels_of(config: Config, members: Sequence[Instance], known: Sequence[str] = LABELS) -> Cast:
    """The labels of all splits under one code book, and the controls' deals of them. What is not `known` stays out of
    every measure."""
    (labels,) = Labels.coded({name: [getattr(i, name) for i in members] for name in known if name != "mapping"})
    mapping = np.full(len(members), -1)
    if "mapping" in known:
        pairs = {(str(i.distribution), str(i.mapping)) for i in members}
        codes = {pair: code for code, pair in enumerate(sorted(pairs))}
        mapping = np.array([codes[str(i.distribution), str(i.mapping)] for i in members])

    def cohort(split: str) -> Cohort:
        here = places_of(members, split)
        place_of = {members[place].instance: number for number, place in enumerate(here)}
        hard = [(number, members[place].origin) for number, place in enumerate(here) if members[place].is_hard]
        found = [(number, place_of[origin]) for number, origin in hard if origin in place_of]
        return Cohort(split, labels[here], mapping[here], np.array(found, dtype=np.int64).reshape(-1, 2))

    return cast([cohort(s) for s in MEASURED], cohort("train"), seed=config.seed, repeats=config.measure.repeats)


def surface_rows(
    labels: Cast,
    members: Sequence[Instance],
    texts: Mapping[str, Callable[[Instance], str]],
    measure: MeasureSettings,
) -> list[Row]:
    """What text alone gives, by control: n-gram features instead of states, through the same survey."""
    rows = []
    by_split = {split: [i for i in members if in_split(i, split)] for split in (*MEASURED, "train")}
    for control, text in texts.items():
        fitted = [text(instance) for instance in by_split["train"]]
        features = surface_features(fitted, [text(instance) for split in by_split.values() for instance in split])
        ends = np.cumsum([len(split) for split in by_split.values()])[:-1]
        states = {name: part[np.newaxis] for name, part in zip(by_split, np.split(features, ends), strict=True)}
        for row in survey_of(labels, states, measure).rows:
            if row.control == "none":
                rows.append(row._replace(layer=None, control=control))
    return rows


def survey_of(labels: Cast, states: Mapping[str, np.ndarray], measure: MeasureSettings) -> Survey:
    """All measures of one moment's states, which are given by split."""
    return survey(
        labels,
        states,
        components=measure.components,
        perplexity=measure.perplexity,
        iterations=measure.iterations,
        initialisations=measure.initialisations,
        threads=thread_count(),
    )
