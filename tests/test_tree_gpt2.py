"""The written-out pass has transformers' loss and gradients; its dropout is dropout; other networks are left alone."""

import math
import random

import numpy as np
import pytest
import torch
import transformers as hf

from nucleate.model import tree_gpt2
from nucleate.model.networks import gpt2
from nucleate.model.packed_pass import batch_loss
from nucleate.model.prefix_tree import Group, plain
from nucleate.model.tree_gpt2 import Dropout, fits, lay, quick_products, tree_loss


def some_groups(seed=0, count=6, stem=(0, 15), branches=4):
    rng = random.Random(seed)

    def words(low, high):
        return tuple(rng.randrange(2, 62) for _ in range(rng.randint(low, high)))

    return [
        Group(words(*stem), tuple(words(1, 3) for _ in range(branches)), tuple(words(1, 3) for _ in range(branches)))
        for _ in range(count)
    ]


def ours(dropout=0.0, **changes):
    settings = dict(vocabulary=64, width=48, feed_forward=80, layers=3, heads=4, positions=40, pad=0, seed=5)
    model = gpt2(**(settings | changes), dropout=dropout)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(6)  # large enough for attention to matter
    return model


def gradients(model, loss):
    model.zero_grad()
    loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters()}


GROUPS = {
    "trees": some_groups(),
    "rows drawn one by one": [g.only([b]) for g in some_groups() for b in (0, 2)],
    "no answers": [Group(g.prefix, g.branches) for g in some_groups()],
    "no stems": some_groups(stem=(0, 0)),
    "a single token and a long text": [Group((), ((3,),)), Group(tuple(range(2, 36)), ((4, 5, 6),), ((7, 8),))],
}


@pytest.mark.parametrize("kind", GROUPS)
@pytest.mark.parametrize("quick", [False, True])
def test_loss_and_gradients_are_those_of_the_network_itself_on_plain_rows(kind, quick):
    model, groups = ours(), GROUPS[kind]
    expected = batch_loss(model, plain(groups))
    if quick:
        with quick_products():
            loss = tree_loss(model, lay(groups))
            found = gradients(model, loss)
    else:
        loss = tree_loss(model, lay(groups))
        found = gradients(model, loss)
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    noise = 1e-6 * max(g.abs().max() for g in found.values())  # a key's bias has no gradient but rounding
    for name, gradient in gradients(model, expected).items():
        assert (found[name] - gradient).abs().max() <= 1e-4 * gradient.abs().max() + noise, name


def test_tokens_lie_end_to_end_and_every_stem_is_there_once():
    group = Group((5, 6, 7), ((8,), (9, 10)), ((11,), (12, 13)))
    trees = lay([group, group])
    assert trees.tokens.tolist() == [5, 6, 7, 8, 9, 10, 12] * 2 + [0, 0]  # rounded up to a multiple of four
    assert trees.positions.tolist() == [0, 1, 2, 3, 3, 4, 5] * 2 + [0, 0]
    origin, shared, own, first = trees.sight
    sight = [[*range(o, o + s), *range(w, t + 1)] for t, (o, s, w) in enumerate(zip(origin, shared, own, strict=True))]
    assert sight[:7] == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3], [0, 1, 2, 4], [0, 1, 2, 4, 5], [0, 1, 2, 4, 5, 6]]
    assert sight[7:14] == [[u + 7 for u in one] for one in sight[:7]]
    assert sight[14:] == [[14], [15]]
    assert first.tolist() == np.cumsum([0, *map(len, sight)])[:-1].tolist() and trees.pairs == sum(map(len, sight))


def test_attention_with_dropout_is_that_of_dense_matrices_with_the_same_elements_dropped():
    trees, heads, size = lay(some_groups(stem=(3, 9))), 3, 5
    count, width = len(trees.tokens), 15
    qkv = torch.randn(count, 3 * width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    out = tree_gpt2._Attention.apply(qkv, trees.sight, trees.pairs, heads, Dropout(0.3, seed=7))
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(2))
    (gradient,) = torch.autograd.grad((out * weights).sum(), qkv)

    dropout = Dropout(0.3, seed=7)
    kept = dropout.bits(heads * trees.pairs).reshape(heads, -1) >= dropout.least
    seen, factor = torch.zeros(count, count, dtype=torch.bool), torch.zeros(heads, count, count)
    for t, (origin, shared, own, first) in enumerate(trees.sight.T):
        for j, u in enumerate([*range(origin, origin + shared), *range(own, t + 1)]):
            seen[t, u] = True
            factor[:, t, u] = torch.from_numpy(kept[:, first + j]) * dropout.scale
    q, k, v = qkv.view(count, 3, heads, size).permute(1, 2, 0, 3)
    shares = (q @ k.transpose(1, 2) / math.sqrt(size)).masked_fill(~seen, -torch.inf).softmax(-1)
    dense = ((shares * factor) @ v).transpose(0, 1).reshape(count, width)
    torch.testing.assert_close(out, dense, rtol=1e-4, atol=1e-5)
    (expected,) = torch.autograd.grad((dense * weights).sum(), qkv)
    torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
    assert 0.25 < 1 - kept.mean() < 0.35


def test_dropout_drops_a_share_of_p_and_keeps_the_mean():
    dropout = Dropout(0.2, seed=3)
    factors = dropout.factors(1000, 1000).clone()
    assert factors.unique().tolist() == [0, pytest.approx(1.25, rel=1e-5)]
    assert (factors == 0).float().mean() == pytest.approx(0.2, abs=0.002)  # five standard deviations
    assert factors.mean() == pytest.approx(1, abs=0.0025)
    neighbours = (factors[:, 1:] == 0) & (factors[:, :-1] == 0)
    assert neighbours.float().mean() == pytest.approx(0.04, abs=0.002)  # independent of each other
    again = dropout.factors(1000, 1000)
    assert not torch.equal(factors, again)  # every draw is another
    assert torch.equal(factors, Dropout(0.2, seed=3).factors(1000, 1000))
    assert not torch.equal(factors, Dropout(0.2, seed=4).factors(1000, 1000))


def test_losses_under_dropout_scatter_as_those_of_torchs_own():
    """In rows, where nothing is shared, both draw from the same distribution; without dropout they stand still."""
    model, groups = ours(dropout=0.2, seed=1).train(), GROUPS["rows drawn one by one"]
    dropout, rounds = Dropout(0.2, seed=1), 300
    trees, padded = lay(groups), plain(groups)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        mine = np.array([tree_loss(model, trees, dropout=dropout).item() for _ in range(rounds)])
        theirs = np.array([batch_loss(model, padded).item() for _ in range(rounds)])
    error = math.hypot(mine.std(), theirs.std()) / math.sqrt(rounds)
    assert abs(mine.mean() - theirs.mean()) < 4 * error
    assert 0.75 < mine.std() / theirs.std() < 1.33
    still = tree_loss(model, trees).item()
    assert tree_loss(model, trees, dropout=Dropout(0.0, seed=1)).item() == still
    assert abs(mine.mean() - still) > 4 * error


def test_bfloat16_is_coarse_and_close():
    model, trees = ours().float(), lay(GROUPS["trees"])
    exact, coarse = tree_loss(model, trees), tree_loss(model, trees, dtype=torch.bfloat16)
    assert coarse.dtype == torch.float32 and coarse.item() != exact.item()
    assert coarse.item() == pytest.approx(exact.item(), rel=0.02)
    a, b = gradients(model, exact), gradients(model, coarse)
    assert all(gradient.dtype == torch.float32 for gradient in b.values())
    for name in a:
        if not name.endswith("c_attn.bias"):
            assert (a[name] - b[name]).norm() < 0.1 * a[name].norm(), name


def test_what_is_not_finite_stays_so():
    for bad in (math.nan, math.inf):
        model = ours()
        with torch.no_grad():
            model.transformer.h[0].attn.c_attn.weight[0, 0] = bad
        assert not tree_loss(model, lay(GROUPS["trees"])).isfinite()


def test_only_our_networks_are_taken():
    groups = GROUPS["trees"]
    assert fits(ours(dropout=0.2).train(), groups)
    model = ours().train()
    assert fits(model, groups) and model.training
    for settings in ({"activation_function": "gelu_new"}, {"scale_attn_by_inverse_layer_idx": True}):
        config = ours().config
        config.update(settings)
        assert not fits(hf.GPT2LMHeadModel(config), groups)
    assert not fits(ours().to(torch.bfloat16), groups)
    uneven = ours(dropout=0.2)
    uneven.transformer.drop.p = 0.1
    assert not fits(uneven, groups)
    biased = ours()
    biased.transformer.h[1].mlp.c_fc = torch.nn.Linear(48, 80)
    assert not fits(biased, groups)
    llama = hf.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=4
    )
    assert not fits(hf.LlamaForCausalLM(llama), groups)


def test_quick_products_keep_float32s_precision_and_are_put_back(monkeypatch):
    setting = torch.backends.mkldnn.matmul
    before = setting.fp32_precision
    a, b = torch.randn(300, 200), torch.randn(200, 100)
    with pytest.raises(KeyError), quick_products():
        product = a @ b
        raise KeyError
    assert setting.fp32_precision == before
    exact = a.double() @ b.double()
    assert (product - exact).norm() < 1e-6 * exact.norm()
    monkeypatch.setattr(tree_gpt2, "_rounds_as_float32", lambda: False)  # as where hardware would round to bfloat16
    with quick_products():
        assert setting.fp32_precision == before
