"""Moving a task's part of a state: who is paired with whom, by what they are moved, what is counted; on networks made
by hand, of which one must follow and one must not."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from transformers import PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast

from nucleate.data.dataset import Instance
from nucleate.measures.neighbours import Labels
from nucleate.measures.transfer import (
    CentredStates,
    Pairs,
    is_there,
    no_shorter,
    other_prompts,
    outcomes,
    pairs_of,
    random_shift,
)
from nucleate.model.networks import word_tokenizer
from nucleate.refusal import Refused
from nucleate.transferring import refuse_unpaired, transfer

TASKS, INPUTS = 4, 5
FILLERS = ["f0", "f1", "f2"]
WORDS = [*FILLERS, *(f"t{t}" for t in range(TASKS)), *(f"x{x}" for x in range(INPUTS)), *(f"y{y}" for y in range(9))]
TOKENIZER = word_tokenizer(WORDS)
ID = TOKENIZER.get_vocab()


def output(task, given):
    """Nine outputs, which tasks share; no two tasks answer an input alike."""
    return (2 * task + given) % 9


class HandMade(PreTrainedModel):
    """Block 1 writes the task of the instruction into every later state; block 2 reads task and input and writes the
    answer. With `answers`, block 1 writes the answer at once, and no task."""

    config_class = PretrainedConfig
    base_model_prefix = "body"

    def __init__(self, config, answers=False, works=True):
        super().__init__(config)
        self.answers, self.works = answers, works
        self.embedding = torch.nn.Embedding(len(TOKENIZER), len(TOKENIZER))
        self.embedding.weight.data = torch.eye(len(TOKENIZER))
        self.blocks = torch.nn.ModuleList([torch.nn.Identity(), torch.nn.Identity()])
        task, given = torch.meshgrid(torch.arange(TASKS), torch.arange(INPUTS), indexing="ij")
        self.task_at, self.input_at = ID["t0"] + task.flatten(), ID["x0"] + given.flatten()
        self.said = torch.tensor([ID[f"y{output(t, x)}"] for t in range(TASKS) for x in range(INPUTS)])

    def get_input_embeddings(self):
        return self.embedding

    def get_output_embeddings(self):
        return self.embedding

    def forward(self, input_ids, attention_mask=None, position_ids=None, use_cache=None, output_hidden_states=False):
        hidden = self.embedding(input_ids)
        states = [hidden]
        hidden = self.blocks[0](hidden)
        if attention_mask is not None and attention_mask.ndim == 4:
            seen = (attention_mask[:, 0] == 0).to(hidden.dtype)
        else:
            seen = torch.ones(input_ids.shape[1], input_ids.shape[1]).tril().expand(len(input_ids), -1, -1)
        tasks = torch.zeros_like(hidden)
        tasks[..., ID["t0"] : ID["x0"]] = (seen @ hidden)[..., ID["t0"] : ID["x0"]].clamp(max=1)
        if self.works:
            hidden = hidden + (self.answered(hidden + tasks) if self.answers else tasks)
        states.append(hidden)
        hidden = self.blocks[1](hidden)
        logits = 10 * hidden if self.answers else hidden + 10 * self.answered(hidden)
        logits[..., : ID["y0"]] = -9
        states.append(hidden)
        return CausalLMOutputWithPast(logits=logits, hidden_states=tuple(states))

    def answered(self, hidden):
        """Task and input together are 2; the task that is most there decides."""
        both = hidden[..., self.task_at] + hidden[..., self.input_at]
        sharp = torch.softmax(50 * both, dim=-1)
        written = torch.zeros_like(hidden)
        return written.index_add(-1, self.said, sharp.to(hidden.dtype))


def network(**how):
    size = {"num_hidden_layers": 2, "hidden_size": len(TOKENIZER), "vocab_size": len(TOKENIZER)}
    return HandMade(PretrainedConfig(**size), **how).eval()


def instances():
    """Two distributions a task, six instructions each: four to train on, one for validation, one for test."""
    made = []
    for task in range(TASKS):
        for kind in ("a", "b"):
            for number, split in enumerate(("train", "train", "train", "train", "validation", "test")):
                fill = " ".join(FILLERS[(number >> bit) % 3] for bit in range(3))
                asked = f"{fill} t{task}" if kind == "a" else f"t{task} {fill}"
                for given in range(INPUTS):
                    one = (f"{asked}", f"x{given}", f"y{output(task, given)}", f"task {task}", f"{kind}{task}")
                    made.append(Instance(len(made), split, False, *one, f"m{task}{given}", False, None))
    return made


def sides(made):
    of = {split: np.array([n for n, one in enumerate(made) if one.split == split]) for split in ("train", *SPLITS)}
    return {split: (of[split], of["train"]) for split in SPLITS}


SPLITS = ("validation", "test")


def value(found, measure, **wanted):
    same = {"control": "none", "split": "test", "layer": 1, "arm": "mean", **wanted}
    values = [row["value"] for row in found.rows if row["measure"] == measure and same.items() <= row.items()]
    assert len(values) <= 1
    return values[0] if values else None


@pytest.fixture(scope="module")
def followed():
    made = instances()
    return transfer(network(), TOKENIZER, made, sides(made), untrained=network(works=False), seed=7)


def test_a_network_that_writes_the_task_follows_its_mean_and_no_control(followed):
    assert value(followed, "transfer_kept", arm=None) is None  # it has no layer
    kept = [row for row in followed.rows if row["measure"] == "transfer_kept"]
    assert [(row["split"], row["value"], row.get("layer")) for row in kept] == [(s, 1.0, None) for s in SPLITS]
    pairs = [row["value"] for row in followed.rows if row["measure"] == "transfer_pairs"]
    assert pairs == [TASKS * 2 * INPUTS * (TASKS - 1)] * 2
    for arm in ("mean", "mean_x2", "mean_x3", "state"):
        for split in SPLITS:
            assert value(followed, "transfer_target", arm=arm, split=split) == 1.0
            assert value(followed, "transfer_source", arm=arm, split=split) == 0.0
            assert value(followed, "transfer_likelier", arm=arm, split=split) == 1.0
            assert value(followed, "transfer_target", arm=arm, split=split, control="untrained") < 0.4
            assert value(followed, "transfer_target", arm=arm, split=split, control="random") < 0.3
    assert value(followed, "transfer_target", control="answers") < 0.1
    assert value(followed, "transfer_target", control="regrouped") < 0.7  # a deal may give a task its own
    # Others come to hold their own task and the target; of twice the shift there is more of the target.
    assert 0.2 < value(followed, "transfer_others_unchanged") < 0.8
    assert value(followed, "transfer_others_unchanged", arm="mean_x2") == 0.0


def test_nothing_follows_before_the_task_is_written_but_the_whole_sum_is_one(followed):
    for arm in ("mean", "mean_x2", "mean_x3", "state"):
        assert value(followed, "transfer_source", arm=arm, layer=0) == 1.0
        assert value(followed, "transfer_likelier", arm=arm, layer=0) == 0.0
    assert value(followed, "transfer_others_unchanged", layer=0) == 1.0
    parts = ("transfer_target", "transfer_source", "transfer_neither")
    told = {}
    for row in followed.rows:
        if row["measure"] in parts:
            place = tuple(row[name] for name in ("arm", "control", "split", "layer"))
            told[place] = told.get(place, 0) + row["value"]
    assert len(told) > 40 and all(total == pytest.approx(1) for total in told.values())
    spaces = {(row["arm"], row["space"]) for row in followed.rows if row["measure"] in parts}
    assert spaces == {("mean", "centred"), ("mean_x2", "centred"), ("mean_x3", "centred"), ("state", "raw")}


def test_a_network_that_writes_the_answer_alone_does_not_follow_the_mean_but_a_whole_state():
    made = instances()
    found = transfer(network(answers=True), TOKENIZER, made, sides(made), seed=7)
    assert value(found, "transfer_target") < 0.05
    assert value(found, "transfer_source") > 0.9
    assert value(found, "transfer_target", arm="state") == 1.0
    assert value(found, "transfer_target", control="answers") > 0.5  # its code is the answer


def test_the_tables_by_pair_of_tasks_add_up_to_the_rows(followed):
    for arm, control in (("mean", "none"), ("mean_x2", "regrouped"), ("state", "untrained")):
        place = {"arm": arm, "control": control, "split": "test", "layer": 1}
        here = [row for row in followed.by_tasks if place.items() <= row.items()]
        size = {(row["source"], row["target"]): row["value"] for row in here if row["measure"] == "transfer_pairs"}
        target = {(row["source"], row["target"]): row["value"] for row in here if row["measure"] == "transfer_target"}
        assert set(size) == {(f"task {a}", f"task {b}") for a in range(TASKS) for b in range(TASKS) if a != b}
        mean = sum(size[pair] * target[pair] for pair in size) / sum(size.values())
        assert mean == pytest.approx(value(found=followed, measure="transfer_target", arm=arm, control=control))


def test_every_move_tells_how_far_it_is_and_the_last_word_is_one():
    told, made = [], instances()
    transfer(
        network(), TOKENIZER, made, sides(made), seed=7, progress=lambda text, fraction: told.append((text, fraction))
    )
    moving = [fraction for text, fraction in told if "pairs" in text]
    assert len(moving) > 50 and told[-1] == ("the answers are counted", 1.0)
    fractions = [fraction for _, fraction in told]
    assert fractions == sorted(fractions) and fractions[0] == 0


def test_the_same_seed_gives_the_same_rows_and_fewer_pairs_are_told():
    made = instances()
    one, again, other = (transfer(network(), TOKENIZER, made, sides(made), seed=s, most=40) for s in (7, 7, 8))
    assert one.rows == again.rows and one.rows != other.rows
    assert [row["value"] for row in one.rows if row["measure"] == "transfer_pairs"] == [40, 40]
    assert one.notes == ["validation: 40 of 120 pairs are moved", "test: 40 of 120 pairs are moved"]


def test_of_fewer_than_thirty_kept_pairs_nothing_but_their_number_is_told():
    made = [replace(one, output=f"y{(int(one.output[1]) + 1) % 9}") for one in instances()]  # it answers otherwise
    found = transfer(network(), TOKENIZER, made, sides(made), untrained=network(works=False), seed=7)
    assert {row["measure"] for row in found.rows} == {"transfer_kept", "transfer_pairs", "transfer_instructions"}
    assert all(row["value"] < 30 for row in found.rows)


def test_pairs_whose_answers_begin_with_the_same_token_are_left_out_and_counted():
    made = [replace(one, output=f"y0 {one.task[-1]}") if one.input == "x0" else one for one in instances()]
    found = transfer(network(), TOKENIZER, made, sides(made), seed=7)
    assert found.notes[0] == "validation: 24 pairs are left out, whose two answers begin with the same token"


def test_what_cannot_be_moved_is_refused_by_who_asks_first_and_else_told():
    made = instances()
    with pytest.raises(Refused, match="no outputs"):
        refuse_unpaired([replace(one, output=None) for one in made], sides(made))
    with pytest.raises(Refused, match="no inputs"):
        refuse_unpaired([replace(one, input="") for one in made], sides(made))
    alone = [replace(one, output=one.input.replace("x", "y")) for one in made]  # all tasks answer alike
    with pytest.raises(Refused, match="whose tasks share inputs"):
        refuse_unpaired(alone, sides(alone))
    refuse_unpaired(made, sides(made))
    with pytest.raises(Refused, match="layer 2 cannot be moved"):
        transfer(network(), TOKENIZER, made, sides(made), seed=7, layers=[2])
    found = transfer(network(), TOKENIZER, alone, sides(alone), untrained=network(works=False), seed=7)
    assert [(row["measure"], row["value"]) for row in found.rows] == [
        ("transfer_pairs", 0.0),
        ("transfer_instructions", 0.0),
    ] * 2


# --- pairs, shifts and counts against slow ones -----------------------------------------------------------------------


@dataclass(frozen=True)
class Drawn:
    held: Labels
    known: Labels
    states: np.ndarray  # of the known
    pairs: Pairs


@pytest.fixture(scope="module", params=[1, 2, 3])
def drawn(request):
    """Labels at random, some of them unknown, inputs of one task alone among them, and instructions on both sides."""
    rng = np.random.default_rng(request.param)

    def labels(count):
        task, given = rng.integers(5, size=count), rng.integers(-1, 6, size=count)
        given[task == 4] = 6  # an input of its own
        made = np.where(given < 0, -1, (task * 2 + given) % 5)
        made[rng.random(count) < 0.1] = -1
        return Labels(task * 4 + rng.integers(4, size=count), given, made, task, task * 2 + rng.integers(2, size=count))

    held, known = labels(60), labels(200)
    return Drawn(held, known, rng.normal(size=(200, 7)).astype(np.float32), pairs_of(held, known, seed=4))


def test_pairs_are_all_other_tasks_that_have_the_input_with_one_other_output(drawn):
    held, known = drawn.held, drawn.known
    expected = []
    for i in range(len(held)):
        for task in range(5):
            there = (known.task == task) & (known.input == held.input[i]) & (known.output >= 0)
            outputs = set(known.output[there].tolist())
            is_known = held.input[i] >= 0 and held.output[i] >= 0
            if is_known and task != held.task[i] and len(outputs) == 1 and outputs != {held.output[i]}:
                expected.append((i, held.task[i], task))
    pairs = drawn.pairs
    assert list(zip(pairs.instance, pairs.source, pairs.target, strict=True)) == expected and len(expected) > 30
    assert (known.task[pairs.donor] == pairs.target).all()
    assert (known.input[pairs.donor] == held.input[pairs.instance]).all()
    assert (known.output[pairs.donor] != held.output[pairs.instance]).all()
    assert (pairs_of(held, known, seed=4).donor == pairs.donor).all()
    assert (pairs_of(held, known, seed=5).donor != pairs.donor).any()


def centred_by_hand(drawn):
    """place -> its state less its input's mean, of those whose input stands in two tasks."""
    found = {}
    for i, given in enumerate(drawn.known.input):
        same = drawn.known.input == given
        if given >= 0 and len(set(drawn.known.task[same])) >= 2:
            found[i] = drawn.states[i].astype(float) - drawn.states[same].astype(float).mean(axis=0)
    return found


def test_shifts_are_differences_of_means_that_are_taken_one_by_one(drawn):
    held, known, pairs = drawn.held, drawn.known, drawn.pairs
    points = centred_by_hand(drawn)
    centred = CentredStates.of(drawn.states, known)
    found = centred.task_shift(pairs, held)
    rng = np.random.default_rng(0)
    deals = np.stack([rng.permutation(known.task) for _ in range(3)])
    regrouped = centred.regrouped_shift(pairs, held, deals, seed=2)
    answers = centred.answer_shift(pairs, held, known)
    which = np.random.default_rng(2).integers(3, size=len(pairs))

    def mean(wanted):
        some = [point for place, point in points.items() if wanted(place)]
        return np.mean(some, axis=0) if some else np.full(7, np.nan)

    def apart(place, own, given):
        return known.instruction[place] != own and known.input[place] != given

    for n, (i, source, target) in enumerate(zip(pairs.instance, pairs.source, pairs.target, strict=True)):
        own = held.instruction[i]
        for tasks, shift in ((known.task, found), (deals[which[n]], regrouped)):
            one, other = (
                mean(lambda p, t=t, tasks=tasks, mine=(own, held.input[i]): tasks[p] == t and apart(p, *mine))
                for t in (source, target)
            )
            np.testing.assert_allclose(shift[n], other - one, atol=1e-5)

        def elsewhere(said, given=held.input[i], barred=(source, target)):
            return mean(lambda p: known.output[p] == said and known.task[p] not in barred and known.input[p] != given)

        expected = elsewhere(known.output[pairs.donor[n]]) - elsewhere(held.output[i])
        np.testing.assert_allclose(answers[n], expected, atol=1e-5)
    assert is_there(found).any() and is_there(answers).any()


def test_a_random_direction_has_the_length_of_the_shift():
    shift = np.random.default_rng(0).normal(size=(50, 300))
    drawn = random_shift(shift, seed=1)
    np.testing.assert_allclose(np.linalg.norm(drawn, axis=1), np.linalg.norm(shift, axis=1))
    cosines = (drawn * shift).sum(axis=1) / np.linalg.norm(shift, axis=1) ** 2
    assert np.abs(cosines).max() < 0.25
    assert (random_shift(shift, seed=2) != drawn).all()


def test_a_control_is_no_shorter_than_the_shift():
    rng = np.random.default_rng(0)
    shift, other = rng.normal(size=(2, 5, 6))
    shift[1], shift[2], other[3] = 0, np.nan, np.nan
    other[0], other[4] = other[0] * 100, other[4] / 100
    found = no_shorter(shift, other)
    np.testing.assert_allclose(np.linalg.norm(found[0]), np.linalg.norm(other[0]))
    np.testing.assert_allclose(found[0] / shift[0], (found[0] / shift[0])[0])  # in its own direction
    assert found[4].tolist() == shift[4].tolist()
    assert is_there(found).tolist() == [True, True, False, False, True]
    assert not found[1].any()  # as it has no direction


def test_other_prompts_are_of_neither_task(drawn):
    pairs, held = drawn.pairs, drawn.held
    others = other_prompts(pairs, held, seed=1)
    assert (held.task[others] != pairs.source).all() and (held.task[others] != pairs.target).all()
    two = held[held.task < 2]
    assert (other_prompts(Pairs(*np.array([[0], [0], [1], [0]])), two, seed=1) == -1).all()


def test_outcomes_are_counted_as_one_would_by_hand():
    rng = np.random.default_rng(0)
    predicted, source, target = rng.integers(4, size=(3, 200))
    logits = rng.normal(size=(200, 2))
    found = outcomes(predicted, logits, source, target)
    apart = source != target
    for n in np.flatnonzero(apart):
        said = "target" if predicted[n] == target[n] else "source" if predicted[n] == source[n] else "neither"
        assert [name for name in ("target", "source", "neither") if found[f"transfer_{name}"][n]] == [said]
        assert found["transfer_likelier"][n] == (logits[n][1] > logits[n][0])
