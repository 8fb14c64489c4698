"""Packed instances equal plain rows: loss, gradients and states, on our network and tiny ones of many families."""

import random

import numpy as np
import pytest
import torch
import transformers as hf

from nucleate.model.networks import gpt2
from nucleate.model.packed_pass import batch_loss, check_positions, evaluate, packing_is_exact, token_losses
from nucleate.model.prefix_tree import Group, instance_losses, pack, plain
from nucleate.model.states import read_groups
from nucleate.refusal import Refused

COMMON = {
    "vocab_size": 64,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 1,
}
LLAMA = {**COMMON, "num_key_value_heads": 2, "intermediate_size": 64, "max_position_embeddings": 64}
OLD = {"vocab_size": 64, "bos_token_id": 1, "eos_token_id": 1}
EXACT = {
    "llama": (hf.LlamaConfig, LLAMA),
    "gptj": (hf.GPTJConfig, {**OLD, "n_embd": 32, "n_layer": 2, "n_head": 4, "rotary_dim": 4, "n_positions": 64}),
    "gpt_neox": (hf.GPTNeoXConfig, {**COMMON, "intermediate_size": 64, "max_position_embeddings": 64}),
    "qwen3": (hf.Qwen3Config, {**LLAMA, "head_dim": 8}),
    "phi3": (hf.Phi3Config, LLAMA),
    "olmo2": (hf.Olmo2Config, LLAMA),
    "opt": (hf.OPTConfig, {**COMMON, "ffn_dim": 64, "word_embed_proj_dim": 32, "max_position_embeddings": 64}),
    "falcon": (hf.FalconConfig, {**COMMON, "max_position_embeddings": 64}),
}
INEXACT = {
    "mistral": (hf.MistralConfig, {**LLAMA, "sliding_window": 6}),
    "gemma3": (hf.Gemma3TextConfig, {**LLAMA, "head_dim": 8, "sliding_window": 6}),
    "gpt_neo": (
        hf.GPTNeoConfig,
        {
            **OLD,
            "hidden_size": 32,
            "num_layers": 2,
            "num_heads": 4,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 6,
            "max_position_embeddings": 64,
        },
    ),
    "mpt": (hf.MptConfig, {"vocab_size": 64, "d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64}),
    "bloom": (hf.BloomConfig, {**OLD, "hidden_size": 32, "n_layer": 2, "n_head": 4}),
    "mamba": (
        hf.MambaConfig,
        {**OLD, "pad_token_id": 0, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    ),
}


def some_groups(seed=0, count=6, stem=(3, 15), branches=4, answers=True):
    """Groups whose branches and answers have one to three tokens."""
    rng = random.Random(seed)

    def words(low, high):
        return tuple(rng.randrange(2, 62) for _ in range(rng.randint(low, high)))

    groups = []
    for _ in range(count):
        several = tuple(words(1, 3) for _ in range(branches))
        targets = tuple(words(1, 3) for _ in range(branches)) if answers else None
        groups.append(Group(words(*stem), several, targets))
    return groups


def ours(dropout=0.0, positions=44, width=32):
    return gpt2(
        vocabulary=64,
        width=width,
        feed_forward=2 * width,
        layers=3,
        heads=4,
        positions=positions,
        dropout=dropout,
        pad=0,
        seed=5,
    ).eval()


def tiny(kind):
    """A random network with weights large enough for attention to matter."""
    if kind == "gpt2":
        model = ours()
    else:
        config, settings = (EXACT | INEXACT)[kind]
        torch.manual_seed(1)
        model = hf.AutoModelForCausalLM.from_config(config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "mixer" not in name:
                parameter.mul_(6)
    return model


def layers_alone(model, tokens):
    """(layer, place, width) of one text in a batch of its own, and all else that the network puts out."""
    fed = torch.tensor([tokens])
    with torch.no_grad():
        out = model(input_ids=fed, output_hidden_states=True)
        hidden = out.hidden_states
        if model.config.model_type == "mamba":  # begins after the first block and ends with the last one twice
            hidden = (model.get_input_embeddings()(fed), *hidden[:-2], hidden[-1])
    return torch.stack([layer[0] for layer in hidden]).numpy(), out


def gradients(model, batch):
    model.zero_grad()
    loss = batch_loss(model, batch)
    loss.backward()
    return loss.item(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def ends(model, batch):
    with torch.no_grad():
        logits, hidden = evaluate(model, batch, hidden=True)
    states = torch.stack([h.flatten(0, 1)[batch.ends] for h in hidden])
    return states, instance_losses(token_losses(logits, batch).double().numpy(), batch)


@pytest.mark.parametrize("rows", [None, 1])
@pytest.mark.parametrize("kind", ["gpt2", *EXACT])
def test_packed_instances_have_the_loss_gradients_and_states_of_plain_rows(kind, rows):
    model, groups = tiny(kind), some_groups()
    loss, gradient = gradients(model, plain(groups))
    packed_loss, packed_gradient = gradients(model, pack(groups, rows=rows))
    assert packed_loss == pytest.approx(loss, rel=1e-6)
    assert gradient.keys() == packed_gradient.keys()
    # Attention ignores a constant added to all keys, so a key bias of its own has no gradient but rounding.
    noise = 1e-6 * max(g.abs().max() for g in gradient.values())
    for name, expected in gradient.items():
        gap = (packed_gradient[name] - expected).abs().max()
        assert gap <= 1e-4 * expected.abs().max() + noise * ("k_proj.bias" in name), name
    states, losses = ends(model, plain(groups))
    packed_states, packed_losses = ends(model, pack(groups, rows=rows))
    assert (packed_states - states).abs().max() <= 1e-4 * states.abs().max()
    np.testing.assert_allclose(packed_losses, losses, rtol=1e-5)
    assert packing_is_exact(model, groups)


@pytest.mark.parametrize("kind", INEXACT)
def test_a_network_that_goes_by_the_place_in_the_row_is_noticed_and_read_in_plain_rows(kind):
    model, groups = tiny(kind), some_groups(stem=(8, 15))
    assert not packing_is_exact(model, groups)
    with pytest.warns(UserWarning, match="plain padded rows"):
        reading = read_groups(model, groups)
    assert reading.note is not None
    sequences = [g.prefix + branch for g in groups for branch in g.branches]
    for number in range(0, len(sequences), 5):
        states, out = layers_alone(model, sequences[number])
        alone = states[:, -1]
        np.testing.assert_allclose(reading.states[:, number], alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())
        assert reading.predicted[number] == out.logits[0, -1].argmax()


@pytest.mark.parametrize("kind", ["mistral", "gemma3", "gpt_neo"])
def test_a_sliding_window_longer_than_the_text_allows_packing(kind):
    config, settings = INEXACT[kind]
    wide = {"window_size": 64} if kind == "gpt_neo" else {"sliding_window": 64}
    torch.manual_seed(1)
    model = hf.AutoModelForCausalLM.from_config(config(**(settings | wide))).eval()
    assert packing_is_exact(model, some_groups(count=2))


def test_the_check_survives_a_network_that_fails_and_leaves_its_mode_alone():
    class Broken(hf.GPT2LMHeadModel):
        def forward(self, *arguments, **named):
            raise IndexError("no")

    model = Broken(ours().config).train()
    assert not packing_is_exact(model, some_groups())
    assert model.training


def test_a_wrong_mask_is_noticed():
    class Careless(hf.GPT2LMHeadModel):
        def forward(self, input_ids=None, attention_mask=None, position_ids=None, **named):
            if attention_mask.ndim == 4:  # forgets what keeps the groups apart
                attention_mask = torch.full_like(attention_mask, torch.finfo().min).triu(1)
            return super().forward(
                input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids, **named
            )

    assert not packing_is_exact(Careless(ours().config).eval(), some_groups())


def test_the_loss_is_that_of_hugging_face_labels_on_padded_rows():
    model, groups = tiny("gpt2"), some_groups()
    rows = [g.prefix + b + t for g in groups for b, t in zip(g.branches, g.targets, strict=True)]
    longest = max(map(len, rows))
    tokens = torch.tensor([row + (0,) * (longest - len(row)) for row in rows])
    mask = torch.tensor([(1,) * len(row) + (0,) * (longest - len(row)) for row in rows])
    with torch.no_grad():
        expected = model(input_ids=tokens, attention_mask=mask, labels=tokens.masked_fill(mask == 0, -100)).loss
        for batch in (pack(groups), plain(groups)):
            assert batch_loss(model, batch).item() == pytest.approx(expected.item(), rel=1e-6)
            assert batch.predicted == sum(len(row) - 1 for row in rows)


def test_without_targets_the_tokens_that_are_fed_are_predicted():
    model, groups = tiny("gpt2"), some_groups(answers=False)
    with torch.no_grad():
        packed, rows = batch_loss(model, pack(groups)), batch_loss(model, plain(groups))
    assert packed.item() == pytest.approx(rows.item(), rel=1e-6)
    assert pack(groups).predicted == sum(len(g.prefix) + len(b) - 1 for g in groups for b in g.branches)


def test_instances_without_a_common_prefix_pack_too():
    model = tiny("gpt2")
    groups = [Group((), ((5, 6, 7), (8, 9)), ((10,), (11,))), Group((3,), ((4,),), ((12, 13),))]
    with torch.no_grad():
        assert batch_loss(model, pack(groups)).item() == pytest.approx(
            batch_loss(model, plain(groups)).item(), rel=1e-6
        )


def padding(batch, groups):
    """Share of the places that hold nothing."""
    return 1 - sum(group.size for group in groups) / batch.tokens.numel()


def test_padding_is_small_and_the_mask_never_hides_a_whole_row():
    rng = random.Random(3)
    groups = [some_groups(seed=rng.randrange(10**6), count=1, stem=(3, 40), branches=5)[0] for _ in range(26)]
    batch = pack(groups)
    assert padding(batch, groups) < 0.12
    assert (batch.mask == 0).any(-1).all()
    logits, _ = evaluate(ours(positions=64), batch)
    assert logits.isfinite().all()
    singles = [g.only([b]) for g in groups for b in range(5)]
    assert padding(pack(singles), singles) < 0.08 < padding(plain(singles), singles)


def test_bfloat16_masks_stay_finite():
    batch = pack(some_groups(), rows=1).to("cpu", torch.bfloat16)
    assert batch.mask.dtype == torch.bfloat16 and batch.mask.isfinite().all()
    logits, _ = evaluate(ours().to(torch.bfloat16), batch)
    assert logits.isfinite().all()


def test_ends_and_targets_point_at_the_right_tokens():
    groups = some_groups()
    for batch in (pack(groups), plain(groups)):
        flat, number = batch.tokens.flatten(), 0
        for g in groups:
            for branch in g.branches:
                assert flat[batch.ends[number]] == branch[-1]
                assert batch.positions.flatten()[batch.ends[number]] == len(g.prefix) + len(branch) - 1
                number += 1
        assert len(batch.ends) == number
        assert len(batch.target_at) == len(batch.target_token) == len(batch.target_weight)


def test_the_future_never_moves_the_past():
    model = tiny("gpt2")
    first, second = some_groups(count=2)
    changed = Group(first.prefix, (first.branches[0], *((60, 61),) * 3), (first.targets[0], *((7, 8),) * 3))
    a, _ = ends(model, pack([first, second], rows=1))
    b, _ = ends(model, pack([changed, second], rows=1))
    torch.testing.assert_close(a[:, 0], b[:, 0], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(a[:, 4:], b[:, 4:], rtol=1e-4, atol=1e-5)
    assert (a[:, 1] - b[:, 1]).abs().max() > 0.01  # while what did change does move


def test_soft_capped_and_scaled_heads_are_run_by_the_network_itself():
    torch.manual_seed(0)
    capped = hf.Gemma2Config(**LLAMA, head_dim=8, sliding_window=64, final_logit_softcapping=1.0)
    scaled = hf.CohereConfig(**LLAMA, logit_scale=0.1)
    for config in (capped, scaled):
        model, groups = hf.AutoModelForCausalLM.from_config(config).eval(), some_groups(count=3)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5)
            batch = plain(groups)
            logits, _ = evaluate(model, batch)
            full = model(input_ids=batch.tokens, attention_mask=batch.mask, position_ids=batch.positions).logits
        torch.testing.assert_close(logits, full.flatten(0, 1)[batch.logit_at], rtol=1e-4, atol=1e-5)


def test_groups_that_cannot_be_fed_are_refused():
    with pytest.raises(ValueError, match="at least one branch"):
        Group((1,), ())
    with pytest.raises(ValueError, match="at least one token"):
        Group((1,), ((),))
    with pytest.raises(ValueError, match="targets"):
        Group((1,), ((2,), (3,)), ((4,),))
    with pytest.raises(ValueError, match="predicts nothing"):
        batch_loss(ours(), pack([Group((), ((3,),))]))
    with pytest.raises(Refused, match="44 positions"):
        check_positions(ours(), [Group(tuple(range(2, 46)), ((3,),))])
