"""Every score of one moment: the states of several splits and layers in, rows of the long table out.

`survey` turns states into four spaces, clusters each, scores the clusters against three kinds of labels beside shuffled
and regrouped ones, and looks at neighbours among the training instances, a linear probe and explained variances.
A trained network, an untrained one and the bare surface of the text all go through it alike.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields, replace
from operator import attrgetter
from typing import NamedTuple

import numpy as np
from threadpoolctl import threadpool_limits

from nucleate.measures.baselines import InputMeans, LinearProbe, answer_features, averaged, explained_variance
from nucleate.measures.clustering import KMeansJob, kmeans_many
from nucleate.measures.labelling import Cohort, Labelling
from nucleate.measures.products import Part
from nucleate.measures.scores import ClusterScores, ari_within, cluster_scores_many
from nucleate.measures.shares import NeighbourShares, neighbour_shares
from nucleate.measures.tsne import Embedding, tsne
from nucleate.streams import stream

_SCORES = tuple(field.name for field in fields(ClusterScores))
_all_scores = attrgetter(*_SCORES)


class Row(NamedTuple):
    """A measurement, less what only the run knows (experiment, model, arm, seed, epoch, step, read)."""

    split: str
    layer: int | None
    labels: str | None
    space: str | None
    control: str
    measure: str
    value: float


@dataclass(frozen=True)
class Effort:
    """How much is spent on t-SNE and k-means, and on how many threads; what they are done to stands elsewhere."""

    components: int = 3  # of t-SNE, like the next two
    perplexity: float = 10
    iterations: int = 2000
    initialisations: int = 10  # of k-means
    threads: int = 1
    clusters: str = "present"  # k: the classes among the points, or "all" of the training set


@dataclass(frozen=True)
class Survey:
    """The rows of one moment, and what they were counted from."""

    rows: list[Row]
    embeddings: dict[tuple[str, int], Embedding]  # (split, layer): the t-SNE that was scored
    neighbours_of: dict[tuple[str, int, str], NeighbourShares]  # (split, layer, space)
    clusters: dict[tuple[str, int, str, str], np.ndarray]  # (split, layer, space, kind of labels) -> (point,)


def survey(
    labelling: Labelling,
    states: Mapping[str, np.ndarray],  # split -> (layer, instance, width), the training set among them
    effort: Effort,
    *,
    layers: Sequence[int] | None = None,  # their numbers in the rows; None: 0, 1, ...
    parts: Sequence[Mapping[str, Part]] = (),  # layer by layer the same states among points whose products are known
) -> Survey:
    """All measures of all splits and layers at one moment, under control none, shuffled and regrouped.

    The same rows in the same order for any number of threads."""
    if layers is None:
        layers = range(len(states[labelling.reference.split]))
    by_layer = [{split: some[place] for split, some in states.items()} for place in range(len(layers))]
    shown = [
        (cohort, layer, here[cohort.split])
        for layer, here in zip(layers, by_layer, strict=True)
        for cohort in labelling.cohorts
        if (cohort.split, "tsne") in labelling.places
    ]
    # The last bits of a matrix product depend on BLAS's threads; ours are put to whole layers instead.
    with threadpool_limits(1, user_api="blas"), ThreadPoolExecutor(effort.threads) as pool:
        embedded = tsne(
            [points for _, _, points in shown],
            components=effort.components,
            perplexity=effort.perplexity,
            iterations=effort.iterations,
            seed=stream(labelling.seed, "tsne"),
            threads=effort.threads,
        )
        embeddings = {(cohort.split, layer): one for (cohort, layer, _), one in zip(shown, embedded, strict=True)}
        looks = [
            pool.submit(look, labelling, layer, here, among)
            for layer, here, among in zip(layers, by_layer, parts or [{}] * len(layers), strict=True)
            for look in (_look_at_raw, _look_at_centred)
        ]
        rows: list[Row] = []
        clouds: list[_PointCloud] = []
        neighbours_of: dict[tuple[str, int, str], NeighbourShares] = {}
        for layer, raw, centred in zip(layers, looks[::2], looks[1::2], strict=True):
            for cohort in labelling.cohorts:
                place = (cohort.split, layer)
                embedding = (
                    [_PointCloud(cohort, layer, "tsne", embeddings[place].embedding)] if place in embeddings else []
                )
                for found in (
                    raw.result().get(cohort.split),
                    _Unclustered(embedding, [], {}),
                    centred.result().get(cohort.split),
                ):
                    if found is not None:
                        rows += found.rows
                        clouds += found.clouds
                        neighbours_of |= {(*place, space): one for space, one in found.neighbours_of.items()}
        scored, clusters = _cluster_rows(labelling, clouds, effort, pool)
    return Survey(rows + scored, embeddings, neighbours_of, clusters)


def answer_rows(labelling: Labelling, effort: Effort) -> list[Row]:
    """What states give that hold nothing but the input and the right output: control `answers`, without a layer, of
    each score the highest of three codings. Without t-SNE, where points that coincide lie anywhere."""
    sides = {cohort.split: cohort.labels for cohort in (*labelling.cohorts, labelling.reference)}
    columns = [np.concatenate([getattr(one, name) for one in sides.values()]) for name in ("input", "output", "task")]
    if (np.concatenate(columns) < 0).any():
        return []
    ends = np.cumsum([len(one) for one in sides.values()])[:-1]
    places = {key: place for key, place in labelling.places.items() if key[1] != "tsne"}
    highest: dict[Row, float] = {}
    for features in answer_features(*columns):
        states = {split: part[np.newaxis] for split, part in zip(sides, np.split(features, ends), strict=True)}
        for row in survey(replace(labelling, places=places), states, effort).rows:
            if row.control == "none" and row.labels is not None:
                of_what = row._replace(layer=None, control="answers", value=0.0)
                highest[of_what] = max(row.value, highest.get(of_what, -np.inf))
    return [row._replace(value=value) for row, value in highest.items()]


# --- spaces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _PointCloud:
    """One split's points in one layer and one space."""

    cohort: Cohort
    layer: int
    space: str
    points: np.ndarray  # (point, width)
    part: Part | None = None  # the same among others

    def row(self, labels: str | None, control: str, measure: str, value: float) -> Row:
        return Row(self.cohort.split, self.layer, labels, self.space, control, measure, value)


@dataclass(frozen=True)
class _Unclustered:
    """What was found out about one split in one layer before anything is clustered."""

    clouds: list[_PointCloud]
    rows: list[Row]
    neighbours_of: dict[str, NeighbourShares]  # by space


def _look_at_raw(
    labelling: Labelling, layer: int, states: Mapping[str, np.ndarray], parts: Mapping[str, Part]
) -> dict[str, _Unclustered]:
    """Neighbours, linear probe and explained variances of the states as they are, by split."""
    cohorts = [cohort for cohort in labelling.cohorts if (cohort.split, "raw") in labelling.places]
    if not cohorts:
        return {}
    known = labelling.reference
    clouds = [_PointCloud(cohort, layer, "raw", states[cohort.split], parts.get(cohort.split)) for cohort in cohorts]
    there = parts.get(known.split, states[known.split])
    neighbours = _neighbour_rows(labelling, clouds, there, np.arange(len(known.labels)))
    probe = LinearProbe.fit(states[known.split], known.labels.task) if labelling.probed else None
    looked = {}
    for cloud, (rows, found) in zip(clouds, neighbours, strict=True):
        rows = _variance_rows(labelling, cloud) + rows
        if probe is not None and cloud.cohort.split in labelling.probed:
            accuracy = probe.accuracy(cloud.points, cloud.cohort.labels.task)
            rows.append(cloud.row("task", "none", "linear_accuracy", accuracy))
        looked[cloud.cohort.split] = _Unclustered([cloud], rows, {"raw": found})
    return looked


def _look_at_centred(
    labelling: Labelling, layer: int, states: Mapping[str, np.ndarray], parts: Mapping[str, Part]
) -> dict[str, _Unclustered]:
    """Neighbours of the states less what their inputs alone say, by split; splits without a shared input are left out.

    The cloud `averaged` comes along: the mean of these over the inputs of an instruction."""
    cohorts = [cohort for cohort in labelling.cohorts if (cohort.split, "centred") in labelling.places]
    if not cohorts:
        return {}
    known, place = labelling.reference, np.flatnonzero(labelling.kept)
    means = InputMeans.of(states[known.split], known.labels.input, known.labels.task)
    reference, _ = means.taken_from(states[known.split][place], known.labels.input[place])
    clouds, averages = [], []
    for cohort in cohorts:
        members = labelling.places[cohort.split, "centred"].members
        points, _ = means.taken_from(states[cohort.split][members], cohort.labels.input[members])
        clouds.append(_PointCloud(cohort, layer, "centred", points))
        points, _ = averaged(points, cohort.labels.instruction[members])
        averages.append(_PointCloud(cohort, layer, "averaged", points))
    looked = {}
    neighbours = _neighbour_rows(labelling, clouds, reference, place)
    for cloud, average, (rows, found) in zip(clouds, averages, neighbours, strict=True):
        split = cloud.cohort.split
        kept = float((labelling.places[split, "centred"].point_of >= 0).mean())
        rows = [cloud.row(None, "none", "centred_kept", kept), *_variance_rows(labelling, cloud), *rows]
        here = [one for one in (cloud, average) if (split, one.space) in labelling.places]
        looked[split] = _Unclustered(here, rows, {"centred": found})
    return looked


# --- clusters --------------------------------------------------------------------------------------------------------


def _cluster_rows(
    labelling: Labelling,
    clouds: Sequence[_PointCloud],
    effort: Effort,
    pool: ThreadPoolExecutor,
) -> tuple[list[Row], dict[tuple[str, int, str, str], np.ndarray]]:
    """k-means with as many clusters as `effort` says, scored against true, shuffled and regrouped labels."""
    tried = [(cloud, kind) for cloud in clouds for kind in labelling.places[cloud.cohort.split, cloud.space].deals]
    jobs = []
    for cloud, kind in tried:
        (classes,) = labelling.places[cloud.cohort.split, cloud.space].deals[kind]["none"]
        seed = stream(labelling.seed, cloud.cohort.split, cloud.layer, cloud.space, kind)
        known = classes if effort.clusters == "present" else np.union1d(classes, labelling.reference.classes(kind))
        jobs.append(
            KMeansJob(cloud.points, min(len(np.unique(known[known >= 0])), len(cloud.points)), seed, cloud.part)
        )
    found = kmeans_many(jobs, initialisations=effort.initialisations, threads=effort.threads)
    scored = [
        pool.submit(_score_rows, labelling, cloud, kind, one.clusters)
        for (cloud, kind), one in zip(tried, found, strict=True)
    ]
    clusters = {
        (cloud.cohort.split, cloud.layer, cloud.space, kind): one.clusters
        for (cloud, kind), one in zip(tried, found, strict=True)
    }
    return [row for rows in scored for row in rows.result()], clusters


def _score_rows(labelling: Labelling, cloud: _PointCloud, kind: str, clusters: np.ndarray) -> list[Row]:
    place, labels = labelling.places[cloud.cohort.split, cloud.space], cloud.cohort.labels
    deals = place.deals[kind]
    scores = cluster_scores_many(np.concatenate(list(deals.values())), clusters)  # equal sizes share their chance level
    table = np.array([_all_scores(one) for one in scores]).T.copy()  # (measure, deal)
    rows, first = [], 0
    for control, dealt in deals.items():
        means = table[:, first : first + len(dealt)].mean(axis=1).tolist()
        rows += [cloud.row(kind, control, measure, mean) for measure, mean in zip(_SCORES, means, strict=True)]
        first += len(dealt)
    if kind == "task":
        hard, original = place.point_of[cloud.cohort.pairs].reshape(-1, 2).T
        both = (hard >= 0) & (original >= 0)
        if both.any():
            apart = float((clusters[hard[both]] != clusters[original[both]]).mean())
            rows.append(cloud.row(kind, "none", "hard_separated", apart))
    else:
        within = ari_within(deals["none"][0], clusters, labels.task[place.members])
        if within is not None:
            rows.append(cloud.row(kind, "none", "ari_within_tasks", within))
    return rows


# --- neighbours, variances -------------------------------------------------------------------------------------------


def _neighbour_rows(
    labelling: Labelling, clouds: Sequence[_PointCloud], reference: np.ndarray | Part, reference_members: np.ndarray
) -> list[tuple[list[Row], NeighbourShares]]:
    """Whose neighbours the points of each cloud are among the training instances in the same space: one search for all
    splits and controls."""
    queries, deals, origins = [], [], []
    for cloud in clouds:
        place, labels = labelling.places[cloud.cohort.split, cloud.space], cloud.cohort.labels
        hard, original = place.point_of[cloud.cohort.pairs].T
        here = (hard >= 0) & (original >= 0)
        origin = np.full(len(place.members), -1)
        origin[hard[here]] = original[here]
        queries.append((cloud.points if cloud.part is None else cloud.part, labels[place.members]))
        deals.append(labelling.deals[cloud.cohort.split, cloud.space])
        origins.append(origin)
    found = neighbour_shares(
        queries, reference, labelling.reference.labels[reference_members], deals=deals, origin=origins
    )
    return [
        (
            [
                cloud.row("task", control, measure, value)
                for control, measures in one.measures.items()
                for measure, value in measures.items()
            ],
            one,
        )
        for cloud, one in zip(clouds, found, strict=True)
    ]


def _variance_rows(labelling: Labelling, cloud: _PointCloud) -> list[Row]:
    place = labelling.places[cloud.cohort.split, cloud.space]
    labels = cloud.cohort.labels[place.members]
    codes = {("none", name): getattr(labels, name) for name in ("input", "task", "output")}
    codes["shuffled", "output"] = place.outputs
    shares = {
        key: explained_variance(cloud.points, some) for key, some in codes.items() if some.size and (some >= 0).all()
    }
    return [
        cloud.row(None, control, f"variance_{name}", share)
        for (control, name), share in shares.items()
        if share is not None
    ]
