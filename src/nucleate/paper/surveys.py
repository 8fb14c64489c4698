"""One moment's hidden states, measured: every score of every layer, and what the text alone gives."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from nucleate.config import Config, MeasureSettings
from nucleate.data.dataset import Instance
from nucleate.measures.baselines import surface_features
from nucleate.measures.labelling import Cohort, Labelling, labelling_of
from nucleate.measures.neighbours import Labels
from nucleate.measures.survey import Effort, Row, Survey, answer_rows, survey
from nucleate.paper.instances import MEASURED, in_split, places_of
from nucleate.threads import thread_count

LABELS = ("instruction", "input", "output", "task", "distribution", "mapping")


def labels_of(config: Config, members: Sequence[Instance], known: Sequence[str] = LABELS) -> Labelling:
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

    return labelling_of(
        [cohort(s) for s in MEASURED], cohort("train"), seed=config.seed, repeats=config.measure.repeats
    )


def surface_rows(
    labels: Labelling,
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


def answer_rows_of(labels: Labelling, measure: MeasureSettings) -> list[Row]:
    """What right answers alone give, through the same survey."""
    return answer_rows(labels, _effort(measure))


def survey_of(labels: Labelling, states: Mapping[str, np.ndarray], measure: MeasureSettings) -> Survey:
    """All measures of one moment's states, which are given by split."""
    return survey(labels, states, _effort(measure))


def _effort(measure: MeasureSettings) -> Effort:
    settings = (measure.components, measure.perplexity, measure.iterations, measure.initialisations)
    return Effort(*settings, thread_count(), measure.clusters)
