"""The survey of one moment on states whose structure is planted: what it must find, and must not find where it is not.

A state is the sum of an input's effect, a task's, a distribution's and noise; each test says how strong these are.
"""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from nucleate.config import configure
from nucleate.data.synthetic import generate
from nucleate.measures.labelling import Cohort, Labelling, labelling_of
from nucleate.measures.neighbour_kernels import TIE
from nucleate.measures.neighbours import Labels
from nucleate.measures.survey import Effort, answer_rows, survey
from nucleate.paper.instances import of_splits
from nucleate.paper.surveys import labels_of

TASKS, WIDTH = 6, 24
QUICK = Effort(iterations=250, perplexity=8)


@dataclass
class World:
    """Training: six tasks of two distributions, four instructions each, five of nine inputs. Validation: four of the
    tasks, instructions of its own. Subset: the first distribution of two tasks, and as many hard instances, whose task
    (6, 7) is their own and whose instructions are nobody else's."""

    cohorts: list[Cohort]
    reference: Cohort
    seed: int = 3

    def labelling(self, *splits: str, repeats: int = 5) -> Labelling:
        chosen = [one for one in self.cohorts if not splits or one.split in splits]
        return labelling_of(chosen, self.reference, seed=self.seed, repeats=repeats)

    def states(self, *, seed: int = 0, layers: int = 1, **strength: float) -> dict[str, np.ndarray]:
        """split -> (layer, instance, width); the effect of a code is the same in all splits."""
        rng = np.random.default_rng(seed)
        effects = {name: rng.normal(size=(layers, 2000, WIDTH)) for name in ("input", "task", "distribution")}
        found = {}
        for one in (*self.cohorts, self.reference):
            noise = np.random.default_rng((seed, len(one.labels))).normal(size=(layers, len(one.labels), WIDTH))
            total = strength.get("noise", 0.1) * noise
            for name, effect in effects.items():
                total = total + strength.get(name, 0.0) * effect[:, getattr(one.labels, name)]
            found[one.split] = total.astype(np.float32)
        return found


def cohort(split: str, rows: list[tuple[int, int, int, int]], pairs: list[tuple[int, int]] | None = None) -> Cohort:
    """Rows are (instruction, input, task, distribution); the output is that of input and task."""
    instruction, given, task, distribution = np.array(rows).T
    labels = Labels(instruction, given, 100 * task + given, task, distribution)
    mapping = 100 * distribution + given
    return Cohort(split, labels, mapping, np.array(pairs or [], dtype=np.int64).reshape(-1, 2))


def world(*, own_input: bool = False, shared: bool = True) -> World:
    """`own_input`: one task has an input that no other has. `shared=False`: no task shares an input."""
    rng = np.random.default_rng(1)
    given = [rng.choice(9, 5, replace=False) for _ in range(TASKS)]
    if own_input:
        given[3] = np.array([50, *given[3][1:]])
    if not shared:
        given = [100 + 10 * task + np.arange(5) for task in range(TASKS)]

    def rows(tasks, instructions, first, distributions=(0, 1)):
        return [
            (first + 100 * task + 10 * d + i, int(x), task, 2 * task + d)
            for task in tasks
            for d in distributions
            for i in range(instructions)
            for x in given[task]
        ]

    originals = rows(range(2), 4, 0, (0,))
    hard = [(5000 + i, x if shared else x + 500, TASKS + task, 40 + task) for i, x, task, _ in originals]
    train = rows(range(TASKS), 4, 0) + hard
    pairs = [(len(originals) + place, place) for place in range(len(originals))]
    return World(
        [cohort("subset", originals + hard, pairs), cohort("validation", rows(range(4), 3, 1000))],
        cohort("train", train),
    )


def table(rows, **wanted):
    """(measure) -> value of the rows with these columns."""
    chosen = [row for row in rows if all(getattr(row, name) == value for name, value in wanted.items())]
    assert chosen, wanted
    return {row.measure: row.value for row in chosen}


def test_rows_are_unique_finite_and_inside_their_ranges():
    w = world()
    rows = survey(w.labelling(), w.states(layers=2, input=1, task=1), QUICK).rows
    keys = [row[:-1] for row in rows]
    assert len(set(keys)) == len(keys) > 0
    assert all(type(row.value) is float and np.isfinite(row.value) for row in rows)
    assert all(-0.5 <= row.value <= 1 for row in rows)
    may_be_negative = {"ari", "ami", "ari_within_tasks"}
    assert all(row.value >= 0 for row in rows if row.measure not in may_be_negative)


def test_planted_tasks_are_found_in_every_space_and_not_under_shuffled_labels():
    w = world()
    rows = survey(w.labelling(), w.states(task=2, distribution=0.2, input=0.2), QUICK).rows
    for space in ("raw", "tsne", "centred", "averaged"):
        for split in ("subset", "validation"):
            here = {"split": split, "space": space, "labels": "task"}
            assert table(rows, **here, control="none")["ari"] > 0.9
            assert table(rows, **here, control="none")["f1"] > 0.9
            assert abs(table(rows, **here, control="shuffled")["ari"]) < 0.25
            assert table(rows, **here, control="shuffled")["f1"] < 0.75
    for space in ("raw", "centred"):
        here = {"split": "validation", "space": space, "labels": "task"}
        assert table(rows, **here, control="none")["knn_share"] > 0.95
        assert table(rows, **here, control="shuffled")["knn_share"] < 0.4
    assert table(rows, split="validation", measure="linear_accuracy")["linear_accuracy"] > 0.95


def test_in_noise_nothing_is_found():
    w = world()
    rows = survey(w.labelling(), w.states(noise=1), QUICK).rows
    for space in ("raw", "tsne", "centred", "averaged"):
        found = table(rows, split="validation", space=space, labels="task", control="none")
        assert abs(found["ari"]) < 0.2 and found["f1"] < 0.7
    found = table(rows, split="validation", space="raw", labels="task", control="none")
    assert found["knn_share"] < 0.35 and found["knn_accuracy"] < 0.3 and found["linear_accuracy"] < 0.5
    shares = table(rows, split="validation", space="raw", labels=None, control="none")
    assert all(shares[f"variance_{name}"] < 0.25 for name in ("input", "task"))


def test_distributions_recognised_one_by_one_do_not_beat_the_regrouped_control_and_tasks_do():
    w = world()
    alone = survey(w.labelling(repeats=20), w.states(distribution=2), QUICK).rows
    together = survey(w.labelling(repeats=20), w.states(task=2, distribution=0.3), QUICK).rows
    here = {"split": "validation", "space": "raw", "labels": "task"}
    other = "knn_share_other_distributions"
    assert table(together, **here, control="none")[other] > 0.9
    assert table(alone, **here, control="none")[other] < 0.5
    for rows, least, most in ((alone, -0.3, 0.3), (together, 0.4, 1.0)):
        gain = table(rows, **here, control="none")["f1"] - table(rows, **here, control="regrouped")["f1"]
        assert least < gain < most
    assert table(alone, split="validation", space="raw", labels="distribution")["ari_within_tasks"] > 0.9
    assert table(together, split="validation", space="tsne", labels="distribution", control="none")["ari"] > 0.3


def test_raw_states_cluster_by_input_and_centred_and_averaged_ones_by_task():
    w = world()
    rows = survey(w.labelling("validation"), w.states(input=3, task=1), QUICK).rows
    ari = {s: table(rows, space=s, labels="task", control="none")["ari"] for s in ("raw", "centred", "averaged")}
    assert ari["raw"] < 0.4 and ari["centred"] > 0.85 and ari["averaged"] > 0.85
    found = table(rows, space="raw", labels=None)
    assert found["variance_input"] > 0.85
    assert found["variance_input"] > found["variance_task"]


def test_averaged_points_of_pure_inputs_hold_no_task():
    w = world()
    rows = survey(w.labelling("validation"), w.states(input=3, noise=0.3), QUICK).rows
    assert abs(table(rows, space="averaged", labels="task", control="none")["ari"]) < 0.3
    assert table(rows, space="centred", labels=None)["centred_kept"] == 1.0


def test_every_score_has_its_controls_and_every_space_its_measures():
    w = world()
    rows = survey(w.labelling(), w.states(task=1), QUICK).rows
    scores = {"f1", "f1_purity", "f1_matched", "f1_pairwise", "f1_bcubed", "ari", "ami"}
    for split in ("subset", "validation"):
        for space in ("raw", "tsne", "centred", "averaged"):
            for kind in ("task", "distribution", "distribution_mapping"):
                if (space, kind) == ("averaged", "distribution_mapping"):  # a point stands for several mappings
                    assert not [row for row in rows if (row.space, row.labels) == (space, kind)]
                    continue
                for control in ("none", "shuffled", *["regrouped"] * (kind == "task")):
                    assert scores <= set(table(rows, split=split, space=space, labels=kind, control=control))
        for space in ("raw", "centred"):
            for control in ("none", "shuffled", "regrouped"):
                measures = set(table(rows, split=split, space=space, labels="task", control=control))
                assert {"knn_share", "knn_share_k1", "knn_share_other_inputs", "knn_share_kept"} <= measures
                assert ("knn_accuracy" in measures) == (control == "none")
    assert {row.control for row in rows} == {"none", "shuffled", "regrouped"}
    assert not [row for row in rows if row.measure.startswith("knn") and row.space in ("tsne", "averaged")]


def test_right_answers_alone_fake_neighbours_probe_and_averages_and_nothing_that_asks_for_another_input():
    """No two tasks share an output here, so that input and output name the task: whatever may meet an instance with the
    same input finds its task. With another input all candidates are equally far, and the share is the task's own."""
    w = world()
    rows = answer_rows(w.labelling(), QUICK)
    assert {row.control for row in rows} == {"answers"} and {row.layer for row in rows} == {None}
    assert {row.space for row in rows} == {"raw", "centred", "averaged"}
    query, candidate = w.cohorts[1].labels, w.reference.labels
    apart = query.input[:, None] != candidate.input
    apart &= query.distribution[:, None] != candidate.distribution
    same = query.task[:, None] == candidate.task
    by_hand = ((apart & same).sum(axis=1) / apart.sum(axis=1)).mean()
    raw = table(rows, split="validation", space="raw", labels="task")
    fooled = ("knn_share_k5", "knn_share_other_distributions_k2", "knn_accuracy", "linear_accuracy")
    assert all(raw[measure] == 1 for measure in fooled)
    for k in ("_k1", "_k2", "_k5", "", "_k20"):
        assert raw[f"knn_share_other_both{k}"] == pytest.approx(by_hand, abs=1e-9)
    averaged = table(rows, split="validation", space="averaged", labels="task")
    assert averaged["f1"] == 1
    hard = table(rows, split="subset", space="raw", labels="task")
    assert hard["hard_share_own_k1"] == 1 and hard["hard_share_origin_k1"] == 0
    planted = survey(w.labelling(), w.states(task=2), QUICK).rows
    for space in ("raw", "centred"):
        found = table(planted, split="validation", space=space, labels="task", control="none")
        assert found["knn_share_other_both_k5"] > 0.9


def test_in_the_synthetic_data_answers_stay_near_shuffled_labels_where_another_input_and_distribution_is_asked_for():
    config = configure("tiny")
    dataset = generate(config.data, seed=config.seed)
    labelling = labels_of(config, of_splits(dataset, ("train", "validation", "test")))
    rows = answer_rows(labelling, QUICK)
    shuffled = labelling.deals["validation", "raw"]["shuffled"]
    chance = float((shuffled.query[:, :, None] == shuffled.candidate[:, None, :]).mean())
    for split in ("validation", "test"):
        for space in ("raw", "centred"):
            found = table(rows, split=split, space=space, labels="task")
            assert found["knn_share_other_both"] < chance + 0.05 and found["knn_share_other_both_k1"] < chance + 0.1
            assert found["knn_share_other_distributions"] > 0.9


def test_without_outputs_there_is_no_control_of_answers():
    w = world()
    unknown = [replace(one, labels=replace(one.labels, output=one.labels.output * 0 - 1)) for one in w.cohorts]
    labelling = labelling_of(unknown, w.reference, seed=w.seed, repeats=2)
    assert answer_rows(labelling, QUICK) == []


def test_the_linear_probe_is_for_instructions_it_has_not_seen():
    w = world()
    rows = survey(w.labelling(), w.states(task=1), QUICK).rows
    assert {row.split for row in rows if row.measure == "linear_accuracy"} == {"validation"}
    assert {row.space for row in rows if row.measure == "linear_accuracy"} == {"raw"}


def test_other_layers_and_other_splits_change_nothing():
    w = world()
    states = w.states(layers=3, task=0.5, input=1, noise=0.5)
    full = survey(w.labelling(), states, QUICK)
    first = survey(w.labelling(), {split: some[:1] for split, some in states.items()}, QUICK)
    assert first.rows == [row for row in full.rows if row.layer == 0]
    alone = survey(w.labelling("validation"), states, QUICK)
    assert set(alone.rows) == {row for row in full.rows if row.split == "validation"}
    assert alone.embeddings.keys() == {("validation", layer) for layer in range(3)}


def test_the_order_of_layers_changes_only_the_seeds_of_k_means():
    w = world()
    states = w.states(layers=2, task=0.5, input=1, noise=0.5)
    forth = survey(w.labelling(), states, QUICK)
    back = survey(w.labelling(), {split: some[::-1] for split, some in states.items()}, QUICK)
    turned = {row._replace(layer=1 - row.layer) for row in back.rows}
    seedless = ("knn", "linear", "variance", "centred", "hard_share")
    assert all(any(row.measure.startswith(name) for row in forth.rows) for name in seedless)
    assert len(forth.embeddings) == 4
    assert {r for r in forth.rows if r.measure.startswith(seedless)} == {
        r for r in turned if r.measure.startswith(seedless)
    }
    for (split, layer), one in forth.embeddings.items():
        assert one.embedding.tobytes() == back.embeddings[split, 1 - layer].embedding.tobytes()


def test_threads_do_not_change_a_byte():
    w = world()
    states = w.states(layers=3, task=0.5, input=1, noise=0.5)
    one = survey(w.labelling(), states, QUICK)
    for threads in (2, 5):
        more = survey(w.labelling(), states, replace(QUICK, threads=threads))
        assert more.rows == one.rows  # in the same order
        assert list(more.embeddings) == list(one.embeddings)
        for place, found in one.embeddings.items():
            assert found.embedding.tobytes() == more.embeddings[place].embedding.tobytes()


def test_hard_examples_part_from_their_originals_where_they_lie_apart_and_not_where_they_lie_together():
    w = world()
    apart = survey(w.labelling("subset"), w.states(task=2), QUICK).rows
    found = table(apart, space="raw", labels="task", control="none")
    assert found["hard_separated"] == 1.0 and found["hard_share_own"] == 1.0 and found["hard_share_origin"] == 0.0
    states = w.states(task=2)
    (subset,) = (one for one in w.cohorts if one.split == "subset")
    hard, original = subset.pairs.T
    states["subset"][:, hard] = states["subset"][:, original]
    together = survey(w.labelling("subset"), states, QUICK).rows
    found = table(together, space="raw", labels="task", control="none")
    assert found["hard_separated"] == 0.0 and found["hard_share_own"] == 0.0 and found["hard_share_origin"] == 1.0
    assert not [r for r in survey(w.labelling("validation"), states, QUICK).rows if r.measure.startswith("hard")]


def test_an_input_of_one_task_alone_is_left_out_and_counted():
    w = world(own_input=True)
    rows = survey(w.labelling("validation"), w.states(input=3, task=1), QUICK).rows
    (validation,) = (one for one in w.cohorts if one.split == "validation")
    assert np.mean(validation.labels.input != 50) < 1
    assert table(rows, space="centred", labels=None)["centred_kept"] == np.mean(validation.labels.input != 50)
    assert table(rows, space="centred", labels="task", control="none")["ari"] > 0.85


def test_where_no_input_is_shared_there_are_no_centred_and_averaged_rows():
    w = world(shared=False)
    rows = survey(w.labelling(), w.states(input=1, task=1), QUICK).rows
    assert {row.space for row in rows} == {"raw", "tsne"}
    assert not [row for row in rows if row.measure == "centred_kept"]


@pytest.mark.parametrize("split", ["subset", "validation"])
def test_knn_share_of_one_layer_equals_counting_by_hand(split):
    w = world()
    states = w.states(task=0.3, input=0.5, noise=0.5)
    rows = survey(w.labelling(), states, QUICK).rows
    (one,) = (c for c in w.cohorts if c.split == split)
    query, known = one.labels, w.reference.labels
    shares, others = [], []
    scale = np.median(np.linalg.norm(states["train"][0].astype(float), axis=1))
    for i, state in enumerate(states[split][0].astype(float)):
        distance = np.linalg.norm(states["train"][0].astype(float) - state, axis=1)
        for counted, allowed in (
            (shares, known.instruction != query.instruction[i]),
            (others, (known.instruction != query.instruction[i]) & (known.input != query.input[i])),
        ):
            last = np.sort(distance[allowed])[9]
            tied = allowed & (abs(distance - last) <= TIE * (last + scale))
            nearer = allowed & (distance < last) & ~tied
            same = known.task == query.task[i]
            counted.append((np.sum(nearer & same) + (10 - nearer.sum()) * np.mean(same[tied])) / 10)
    found = table(rows, split=split, space="raw", labels="task", control="none")
    assert found["knn_share"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert found["knn_share_other_inputs"] == pytest.approx(np.mean(others), abs=1e-12)
    assert 0.2 < found["knn_share"] < 0.95  # neither trivial


@pytest.mark.parametrize("clusters", ["present", "all"])
def test_there_are_as_many_clusters_as_classes_among_the_points_or_as_in_the_training_set(clusters):
    made = world()
    labelling = made.labelling("validation")
    found = survey(labelling, made.states(task=1.0, input=1.0), replace(QUICK, clusters=clusters)).clusters
    (validation,) = labelling.cohorts
    among = validation if clusters == "present" else labelling.reference
    for kind in ("task", "distribution"):
        assert len(np.unique(found["validation", 0, "raw", kind])) == len(np.unique(among.classes(kind))), kind
    assert len(np.unique(validation.labels.task)) < len(np.unique(labelling.reference.labels.task))
