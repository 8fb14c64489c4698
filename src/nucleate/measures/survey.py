"""Every score of one moment: the states of several splits and layers in, rows of the long table out.

`survey` turns states into four spaces, clusters each, scores the clusters against three kinds of labels beside shuffled
and regrouped ones, and looks at neighbours among the training instances, a linear probe and explained variances.
A trained network, an untrained one and the bare surface of the text all go through it alike.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import NamedTuple, Self

import numpy as np
from threadpoolctl import threadpool_limits

from nucleate.measures.baselines import (
    InputMeans,
    LinearProbe,
    averaged,
    explained_variance,
    regrouped_tasks,
    shuffled_labels,
)
from nucleate.measures.clustering import KMeansJob, kmeans_many
from nucleate.measures.neighbours import Labels
from nucleate.measures.scores import ClusterScores, ari_within, cluster_scores_many
from nucleate.measures.shares import NeighbourShares, TaskDeals, neighbour_shares
from nucleate.measures.tsne import Embedding, tsne
from nucleate.streams import stream

KINDS = ("task", "distribution", "distribution_mapping")
SPACES = ("raw", "tsne", "centred", "averaged")
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
class Cohort:
    """The instances of one split: what stays the same while their states change."""

    split: str
    labels: Labels
    mapping: np.ndarray  # (instance,) codes of (distribution, mapping) pairs
    pairs: np.ndarray  # (pair, 2) positions of a hard instance and of its original; none where they are not both here

    def classes(self, kind: str) -> np.ndarray:
        """(instance,) codes of one kind of labels; -1 where they are unknown."""
        return {"task": self.labels.task, "distribution": self.labels.distribution}.get(kind, self.mapping)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of labels that every instance has."""
        return tuple(kind for kind in KINDS if (self.classes(kind) >= 0).all())


@dataclass(frozen=True, eq=False)
class Placing:
    """Which instances of a split are points in a space, and what their labels are when true and when dealt."""

    members: np.ndarray  # (point,) position of an instance that the point stands for
    point_of: np.ndarray  # (instance,) its point; -1 where it was left out
    deals: dict[str, dict[str, np.ndarray]]  # kind of labels -> control -> (deal, point)

    @classmethod
    def of(
        cls, cohort: Cohort, members: np.ndarray, point_of: np.ndarray, kinds: Sequence[str], **dealing: int
    ) -> Self:
        instruction, distribution = cohort.labels.instruction[members], cohort.labels.distribution[members]
        deals = {}
        for kind in kinds:
            classes = cohort.classes(kind)[members]
            deals[kind] = {
                "none": classes[np.newaxis],
                "shuffled": shuffled_labels(classes, instruction, **dealing),
            }
            if kind == "task" and "distribution" in cohort.kinds:
                deals[kind]["regrouped"] = regrouped_tasks(classes, distribution, **dealing)
        return cls(members, point_of, deals)


@dataclass(frozen=True)
class Labelling:
    """The splits to measure, their training set, and all that depends on labels alone: made once a run."""

    cohorts: tuple[Cohort, ...]
    reference: Cohort
    seed: int
    deals: dict[tuple[str, str], dict[str, TaskDeals]]  # (split, space) -> control -> whose task is whose
    places: dict[tuple[str, str], Placing]  # (split, space); no centred and averaged where no input is shared
    kept: np.ndarray  # (training instance,) whether its input is seen in two tasks: only then is it more than a name
    probed: frozenset[str]  # splits without any instruction of the training set: only for them is there a linear probe


def labelling_of(
    cohorts: Sequence[Cohort],
    reference: Cohort,
    *,
    seed: int,
    repeats: int = 20,
    spaces: Collection[str] = SPACES,
) -> Labelling:
    """Deal the labels of the controls. Shuffled: between instructions, each side for itself. Regrouped: distributions
    to tasks at random, the same deal on both sides, sizes kept; not where some instance's distribution is unknown.
    Only `spaces` will be looked at."""
    deals: dict[tuple[str, str], dict[str, TaskDeals]] = {}
    places: dict[tuple[str, str], Placing] = {}
    for cohort in cohorts:
        for space, place in _places(cohort, reference, seed=seed, repeats=repeats):
            if space in spaces:
                places[cohort.split, space] = place
        for space in ("raw", "centred"):
            if space not in spaces:
                continue
            query, candidate = cohort.labels, reference.labels
            if space == "centred":
                query, candidate = (one[_shared_inputs(one, reference.labels)] for one in (query, candidate))
            if not len(query) or not len(candidate):
                continue
            shuffled = [
                shuffled_labels(one.task, one.instruction, seed=stream(seed, "shuffled", split), repeats=repeats)
                for one, split in ((query, cohort.split), (candidate, "train"))
            ]
            deals[cohort.split, space] = {
                "none": TaskDeals.of(query, candidate),
                "shuffled": TaskDeals.of(query, candidate, query_tasks=shuffled[0], candidate_tasks=shuffled[1]),
            }
            if "distribution" in cohort.kinds and "distribution" in reference.kinds:
                tasks, distributions = (
                    np.concatenate([getattr(one, name) for one in (query, candidate)])
                    for name in ("task", "distribution")
                )
                regrouped = regrouped_tasks(tasks, distributions, seed=stream(seed, "regrouped"), repeats=repeats)
                deals[cohort.split, space]["regrouped"] = TaskDeals.of(
                    query,
                    candidate,
                    query_tasks=regrouped[:, : len(query)],
                    candidate_tasks=regrouped[:, len(query) :],
                )
    known = reference.labels.instruction
    probed = frozenset(one.split for one in cohorts if not np.isin(one.labels.instruction, known).any())
    kept = _shared_inputs(reference.labels, reference.labels)
    return Labelling(tuple(cohorts), reference, seed, deals, places, kept, probed)


def _places(cohort: Cohort, reference: Cohort, *, seed: int, repeats: int) -> Iterator[tuple[str, Placing]]:
    """raw; tsne; centred: less what the input alone says; averaged: one point per instruction."""
    dealing = {"seed": stream(seed, "clusters", cohort.split), "repeats": repeats}
    everyone = np.arange(len(cohort.labels))
    placing = Placing.of(cohort, everyone, everyone, cohort.kinds, **dealing)
    yield "raw", placing
    yield "tsne", placing
    kept = _shared_inputs(cohort.labels, reference.labels)
    if not kept.any():
        return  # nothing can be told apart from the input
    members = np.flatnonzero(kept)
    yield "centred", Placing.of(cohort, members, np.where(kept, np.cumsum(kept) - 1, -1), cohort.kinds, **dealing)
    instructions = cohort.labels.instruction[members]
    first = members[np.sort(np.unique(instructions, return_index=True)[1])]
    point = {instruction: number for number, instruction in enumerate(cohort.labels.instruction[first])}
    point_of = np.array([point.get(instruction, -1) for instruction in cohort.labels.instruction])
    # One point stands for all mappings of its instruction.
    kinds = [kind for kind in cohort.kinds if kind != "distribution_mapping"]
    yield "averaged", Placing.of(cohort, first, point_of, kinds, **dealing)


def _shared_inputs(labels: Labels, reference: Labels) -> np.ndarray:
    pairs = np.unique(np.stack([reference.input, reference.task]), axis=1)
    inputs, tasks = np.unique(pairs[0], return_counts=True)
    return np.isin(labels.input, inputs[(tasks >= 2) & (inputs >= 0)])


@dataclass(frozen=True)
class Effort:
    """How much is spent on t-SNE and k-means, and on how many threads; what they are done to stands elsewhere."""

    components: int = 3  # of t-SNE, like the next two
    perplexity: float = 10
    iterations: int = 2000
    initialisations: int = 10  # of k-means
    threads: int = 1


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
            pool.submit(look, labelling, layer, here)
            for layer, here in zip(layers, by_layer, strict=True)
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


# --- spaces ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _PointCloud:
    """One split's points in one layer and one space."""

    cohort: Cohort
    layer: int
    space: str
    points: np.ndarray  # (point, width)

    def row(self, labels: str | None, control: str, measure: str, value: float) -> Row:
        return Row(self.cohort.split, self.layer, labels, self.space, control, measure, value)


@dataclass(frozen=True)
class _Unclustered:
    """What was found out about one split in one layer before anything is clustered."""

    clouds: list[_PointCloud]
    rows: list[Row]
    neighbours_of: dict[str, NeighbourShares]  # by space


def _look_at_raw(labelling: Labelling, layer: int, states: Mapping[str, np.ndarray]) -> dict[str, _Unclustered]:
    """Neighbours, linear probe and explained variances of the states as they are, by split."""
    cohorts = [cohort for cohort in labelling.cohorts if (cohort.split, "raw") in labelling.places]
    if not cohorts:
        return {}
    known = labelling.reference
    clouds = [_PointCloud(cohort, layer, "raw", states[cohort.split]) for cohort in cohorts]
    neighbours = _neighbour_rows(labelling, clouds, states[known.split], np.arange(len(known.labels)))
    probe = LinearProbe.fit(states[known.split], known.labels.task) if labelling.probed else None
    looked = {}
    for cloud, (rows, found) in zip(clouds, neighbours, strict=True):
        rows = _variance_rows(cloud) + rows
        if probe is not None and cloud.cohort.split in labelling.probed:
            accuracy = probe.accuracy(cloud.points, cloud.cohort.labels.task)
            rows.append(cloud.row("task", "none", "linear_accuracy", accuracy))
        looked[cloud.cohort.split] = _Unclustered([cloud], rows, {"raw": found})
    return looked


def _look_at_centred(labelling: Labelling, layer: int, states: Mapping[str, np.ndarray]) -> dict[str, _Unclustered]:
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
        rows = [cloud.row(None, "none", "centred_kept", kept), *rows]
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
    """k-means with as many clusters as there are classes, scored against true, shuffled and regrouped labels."""
    tried = [(cloud, kind) for cloud in clouds for kind in labelling.places[cloud.cohort.split, cloud.space].deals]
    jobs = []
    for cloud, kind in tried:
        (classes,) = labelling.places[cloud.cohort.split, cloud.space].deals[kind]["none"]
        seed = stream(labelling.seed, cloud.cohort.split, cloud.layer, cloud.space, kind)
        jobs.append(KMeansJob(cloud.points, len(np.unique(classes)), seed))
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
    labelling: Labelling, clouds: Sequence[_PointCloud], reference: np.ndarray, reference_members: np.ndarray
) -> list[tuple[list[Row], NeighbourShares]]:
    """Whose neighbours the points of each cloud are among the training instances in the same space: one search for all
    splits and controls."""
    queries, deals, origins = [], [], []
    for cloud in clouds:
        labels, pairs = cloud.cohort.labels, cloud.cohort.pairs
        origin = np.full(len(labels), -1)
        origin[pairs[:, 0]] = labels.task[pairs[:, 1]]
        some = labelling.places[cloud.cohort.split, cloud.space].members
        queries.append((cloud.points, labels[some]))
        deals.append(labelling.deals[cloud.cohort.split, cloud.space])
        origins.append(origin[some])
    found = neighbour_shares(
        queries, reference, labelling.reference.labels[reference_members], deals=deals, origin_task=origins
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


def _variance_rows(cloud: _PointCloud) -> list[Row]:
    labels = cloud.cohort.labels
    shares = {
        name: explained_variance(cloud.points, codes)
        for name, codes in {"input": labels.input, "task": labels.task, "output": labels.output}.items()
        if (codes >= 0).all()
    }
    return [cloud.row(None, "none", f"variance_{name}", share) for name, share in shares.items() if share is not None]
