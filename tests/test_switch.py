"""The switch and the second head: what they learn from is what a plain forward pass gives, and what they may touch."""

import numpy as np
import pytest
import torch
from torch import nn

from nucleate.model.networks import gpt2
from nucleate.model.packed_pass import batch_loss
from nucleate.model.prefix_tree import Group, pack
from nucleate.model.switch import Head, Switch, SwitchTraining, TargetStates, learn_head, learn_switch, remember
from nucleate.refusal import Refused

PACE = SwitchTraining(epochs=30, batch=20, learning_rate=3e-2, seed=5)


@pytest.fixture(scope="module")
def model():
    made = gpt2(vocabulary=30, width=16, feed_forward=32, layers=2, heads=2, positions=32, dropout=0.3, pad=0, seed=1)
    for parameter in made.parameters():  # further from the start, where all states are nearly alike
        parameter.data += 0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
    return made


@pytest.fixture(scope="module")
def groups():
    rng = np.random.default_rng(0)

    def tokens(count):
        return tuple(rng.integers(2, 30, count).tolist())

    return [Group(tokens(n), (tokens(1), tokens(2)), (tokens(1), tokens(2))) for n in (3, 5, 8, 6)]


def states_of(ends, others):
    """A memory of these end states alone, an instance a group."""
    nothing = torch.zeros(len(ends), 1)
    tokens = torch.zeros(len(ends), dtype=torch.long)
    starts = np.arange(len(ends) + 1)
    return TargetStates(ends, nothing, tokens, nothing[:, 0], starts, ends, (1,) * len(ends)), others


def test_what_is_remembered_gives_the_networks_own_loss_and_states(model, groups):
    memory = remember(model, groups, answers_only=False)
    model.eval()
    batch = pack(groups)
    losses = torch.nn.functional.cross_entropy(memory.logits, memory.tokens, reduction="none")
    loss = (losses * memory.weights).sum() / memory.weights.sum()
    assert loss.item() == pytest.approx(batch_loss(model, batch).item(), rel=1e-5)
    first = torch.tensor([[*groups[0].prefix, *groups[0].branches[0]]])
    with torch.no_grad():
        wanted = model(first, output_hidden_states=True)
    assert torch.allclose(memory.ends[0], wanted.hidden_states[-1][0, -1], atol=1e-5)
    assert torch.allclose(model.lm_head(memory.states), memory.logits, atol=1e-5)


def test_answers_alone_are_the_targets_in_order_predicted_from_where_they_are_asked(model, groups):
    memory = remember(model, groups, answers_only=True)
    assert memory.tokens.tolist() == [token for group in groups for target in group.targets for token in target]
    assert memory.starts.tolist() == [0, 3, 6, 9, 12]
    assert torch.equal(memory.states[0], memory.ends[0])  # the first answer is predicted by the input's last token
    assert torch.equal(memory.states[1], memory.ends[1])


def test_remembering_leaves_the_network_in_training_mode_and_without_gradients(model, groups):
    model.train()
    assert not remember(model, groups[:1], answers_only=True).states.requires_grad
    assert model.training
    model.eval()


@pytest.mark.parametrize("rank", [None, 8])
def test_a_head_adds_nothing_before_it_has_learnt_and_then_answers_otherwise(model, groups, rank):
    memory = remember(model, groups, answers_only=True)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    head = Head(16, 30, rank=rank, seed=1)
    assert not head(memory.states).any()
    reached = []
    for _ in learn_head(head, memory, SwitchTraining(epochs=100, batch=4, learning_rate=3e-2, seed=5)):
        with torch.no_grad():
            answers = (memory.logits + head(memory.states)).argmax(-1)
        reached.append((answers == memory.tokens).float().mean().item())
    assert (memory.logits.argmax(-1) == memory.tokens).float().mean() < 0.3
    assert reached[-1] > 0.9
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_head_learns_the_same_bytes_twice_and_others_in_another_order(model, groups):
    memory = remember(model, groups, answers_only=True)

    def learnt(seed):
        head = Head(16, 30)
        list(learn_head(head, memory, SwitchTraining(epochs=3, batch=2, learning_rate=1e-2, seed=seed)))
        return head.up.weight

    assert torch.equal(learnt(1), learnt(1))
    assert not torch.equal(learnt(1), learnt(2))


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_a_switch_parts_what_can_be_parted_from_one_example_of_each_other_task(kind):
    generator = torch.Generator().manual_seed(3)
    ours = torch.randn(120, 8, generator=generator) + 4
    others = torch.randn(6, 8, generator=generator)
    unseen = torch.randn(200, 8, generator=generator)
    switch = Switch(8, kind, seed=1)
    learn_switch(switch, *states_of(ours[:60], others), PACE)
    with torch.no_grad():
        assert (switch(ours[60:]) > 0).float().mean() > 0.95
        assert (switch(unseen) > 0).float().mean() < 0.05


def test_a_linear_switch_cannot_learn_what_needs_a_bend_and_an_mlp_can():
    generator = torch.Generator().manual_seed(4)
    states = torch.randn(400, 8, generator=generator)
    inside = states[:, 0] * states[:, 1] > 0
    right = {}
    for kind in ("linear", "mlp"):
        switch = Switch(8, kind, seed=1)
        learn_switch(switch, *states_of(states[inside], states[~inside]), PACE)
        with torch.no_grad():
            right[kind] = ((switch(states) > 0) == inside).float().mean().item()
    assert right["linear"] < 0.65
    assert right["mlp"] > 0.9


def test_scaling_and_shifting_states_changes_no_decision():
    generator = torch.Generator().manual_seed(5)
    ours, others = torch.randn(50, 6, generator=generator) + 1, torch.randn(10, 6, generator=generator)
    scale, shift = torch.tensor([1e3, 1.0, 1e-2, 5.0, 1.0, 1.0]), torch.arange(6.0)
    decided = []
    for change in (lambda x: x, lambda x: x * scale + shift):
        switch = Switch(6, "mlp", seed=2)
        learn_switch(switch, *states_of(change(ours), change(others)), PACE)
        with torch.no_grad():
            decided.append(switch(change(torch.cat([ours, others]))) > 0)
    assert torch.equal(*decided)


def test_both_sides_weigh_the_same_however_many_states_they_have():
    generator = torch.Generator().manual_seed(6)
    ours, others = torch.randn(40, 4, generator=generator), torch.randn(3, 4, generator=generator) + 9
    plain, repeated = Switch(4, "linear"), Switch(4, "linear")
    plain.look_at(ours, others)
    repeated.look_at(ours.repeat(10, 1), others)
    assert torch.allclose(plain.mean, repeated.mean, atol=1e-5)
    assert torch.allclose(plain.deviation, repeated.deviation, atol=1e-5)
    assert torch.allclose(plain.mean, (ours.mean(0) + others.mean(0)) / 2, atol=1e-5)


def test_the_mlp_has_three_layers_as_wide_as_the_states_and_the_linear_switch_one():
    def shapes(kind):
        return [
            (layer.in_features, layer.out_features) for layer in Switch(12, kind).layers if isinstance(layer, nn.Linear)
        ]

    assert shapes("mlp") == [(12, 12), (12, 12), (12, 1)]
    assert shapes("linear") == [(12, 1)]


def test_a_misspelt_switch_is_refused_with_the_nearest():
    with pytest.raises(Refused, match="did you mean 'linear'"):
        Switch(4, "liniar")
