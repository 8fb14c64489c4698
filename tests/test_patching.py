"""A moved state changes what it should and nothing else: every family against passes that are moved by hand."""

import numpy as np
import pytest
import torch
from torch import nn

from nucleate.model.packed_pass import evaluate
from nucleate.model.patching import answers_when_moved, blocks_of
from nucleate.model.prefix_tree import Group
from nucleate.model.prefix_tree import plain as plain_rows
from nucleate.refusal import Refused
from test_families import CAUSAL, WHOLE, tiny
from test_prefix_tree import INEXACT

PROMPTS = [
    ((5, 9, 11, 7, 20), 4),
    ((5, 9, 11, 7, 21), 4),
    ((5, 9, 11, 7, 20), 4),  # once more
    ((5, 9, 11, 7, 22, 8, 30), 4),  # goes on behind the moved token
    ((6, 3, 23), 2),
    ((6, 3, 12, 2, 14, 33, 40, 41, 42, 23, 5), 9),
    ((24, 6), 0),  # nothing before it
]
ASK = np.array([[2, 40], [3, 9], [2, 40], [60, 5], [7, 8], [9, 10], [1, 62]])


def shifts(seed=0, scale=3.0, width=32):
    return (scale * np.random.default_rng(seed).normal(size=(len(PROMPTS), width))).astype(np.float32)


def by_hand(model, tokens, place, layer, state, instead):
    """The last logits of one prompt in a pass of its own, its state moved by a hook that is written out here."""
    blocks = next(m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == 2)

    def move(hidden):
        hidden = hidden.clone()
        hidden[0, place] = state if instead else hidden[0, place] + state
        return hidden

    def into(module, arguments, named):
        if arguments:
            return (move(arguments[0]), *arguments[1:]), named
        return (), {**named, "hidden_states": move(named["hidden_states"])}

    def out_of(module, arguments, output):
        return (move(output[0]), *output[1:]) if isinstance(output, tuple) else move(output)

    if layer == 2:
        handle = blocks[1].register_forward_hook(out_of)
    else:
        handle = blocks[layer].register_forward_pre_hook(into, with_kwargs=True)
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([tokens])).logits[0, -1]
    handle.remove()
    return logits


def answer_states(model):
    """(layer, prompt, width) the states of the tokens that are moved, as they are read everywhere else."""
    groups = [Group(tokens[:place], (tokens[place:],)) for tokens, place in PROMPTS]
    batch = plain_rows(groups)
    with torch.no_grad():
        _, hidden = evaluate(model, batch, hidden=True)
    behind = torch.tensor([len(tokens) - 1 - place for tokens, place in PROMPTS])
    return torch.stack([layer.flatten(0, 1)[batch.ends - behind] for layer in hidden]).numpy()


def hooks_of(model):
    """Ours; transformers leaves some of its own."""
    hooks = [hook for m in model.modules() for hook in (*m._forward_hooks.values(), *m._forward_pre_hooks.values())]
    return [hook for hook in hooks if hook.__module__ == "nucleate.model.patching"]


@pytest.mark.parametrize("kind", CAUSAL)
def test_a_shift_of_nothing_gives_the_logits_of_the_plain_pass_bit_for_bit(kind):
    model = tiny(kind)
    plain = answers_when_moved(model, PROMPTS, ask=ASK)
    for layer in (0, 1, 2):
        moved = answers_when_moved(model, PROMPTS, layer=layer, states=0 * shifts(), ask=ASK)
        np.testing.assert_array_equal(moved.logits, plain.logits)
        np.testing.assert_array_equal(moved.predicted, plain.predicted)
    assert (plain.note is None) == (kind not in INEXACT and kind != "falcon_alibi")
    for row, (tokens, _) in enumerate(PROMPTS):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([tokens])).logits[0, -1].numpy()
        np.testing.assert_allclose(plain.logits[row], alone[ASK[row]], atol=1e-3 * np.abs(alone).max())


@pytest.mark.parametrize("instead", [False, True])
@pytest.mark.parametrize("kind", CAUSAL)
def test_a_moved_state_answers_as_one_prompt_at_a_time_with_a_hook_written_by_hand(kind, instead):
    model, states = tiny(kind), shifts(1)
    plain = answers_when_moved(model, PROMPTS, ask=ASK)
    for layer in (0, 1, 2):
        found = answers_when_moved(model, PROMPTS, layer=layer, states=states, replace=instead, ask=ASK)
        for row, (tokens, place) in enumerate(PROMPTS):
            expected = by_hand(model, tokens, place, layer, torch.from_numpy(states[row]), instead).numpy()
            scale = 1e-3 * np.abs(expected).max()
            np.testing.assert_allclose(found.logits[row], expected[ASK[row]], atol=scale)
            assert expected[found.predicted[row]] >= expected.max() - scale
        last = np.array([place == len(tokens) - 1 for tokens, place in PROMPTS])
        changed = (found.logits != plain.logits).any(axis=1)
        assert changed[last].all()
        if layer == 2:  # behind the last block nothing reaches another token
            np.testing.assert_allclose(found.logits[~last], plain.logits[~last], rtol=1e-4, atol=1e-4)
    assert not hooks_of(model)


def test_behind_the_last_block_the_final_norm_and_the_head_are_all_that_follows():
    """Of a GPT-2, whose parts have names: the output of the last block, edited, then norm and head by hand."""
    model, states = tiny("gpt2"), shifts(2)
    kept = []
    handle = model.transformer.h[-1].register_forward_hook(
        lambda module, arguments, output: kept.append(output[0] if isinstance(output, tuple) else output)
    )
    found = answers_when_moved(model, PROMPTS, layer=2, states=states, ask=ASK)
    kept.clear()
    for row, (tokens, place) in enumerate(PROMPTS):
        if place != len(tokens) - 1:
            continue
        with torch.no_grad():
            model(input_ids=torch.tensor([tokens]))
            state = kept.pop().view(len(tokens), -1)[-1] + torch.from_numpy(states[row])
            logits = model.lm_head(model.transformer.ln_f(state)).numpy()
        np.testing.assert_allclose(found.logits[row], logits[ASK[row]], rtol=1e-3, atol=1e-3)
    handle.remove()


@pytest.mark.parametrize("kind", ["gpt2", "llama", "mistral", "mamba"])
def test_equal_prompts_that_are_moved_differently_give_their_own_answers(kind):
    model, states = tiny(kind), shifts(3)
    many = [PROMPTS[0]] * 150  # more than a group, and than a batch, holds
    several = np.concatenate([states] * 22)[:150]
    ask = np.tile(np.arange(64), (150, 1))
    found = answers_when_moved(model, many, layer=1, states=several, ask=ask, tokens_per_batch=64)
    for row in (0, 1, 2, 147):
        expected = by_hand(model, *PROMPTS[0], 1, torch.from_numpy(several[row]), False).numpy()
        np.testing.assert_allclose(found.logits[row], expected, atol=1e-3 * np.abs(expected).max())
    assert np.abs(found.logits[0] - found.logits[1]).max() > 0.01
    np.testing.assert_allclose(found.logits[0], found.logits[7], rtol=1e-4, atol=1e-4)  # the same shift again


def test_the_size_of_a_batch_moves_no_answer():
    model, states = tiny("llama"), shifts(4)
    one, other = (
        answers_when_moved(model, PROMPTS, layer=1, states=states, ask=ASK, tokens_per_batch=size) for size in (12, 999)
    )
    np.testing.assert_allclose(one.logits, other.logits, rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(one.predicted, other.predicted)


@pytest.mark.parametrize("kind", CAUSAL)
def test_the_blocks_of_a_family_are_found_without_its_name(kind):
    model = tiny(kind)
    assert len(blocks_of(model)) == 2
    states = answer_states(model)
    for layer in range(2):  # what is moved is what is read: put in its own place, a state changes nothing
        kept = answers_when_moved(model, PROMPTS, layer=layer, states=states[layer], replace=True, ask=ASK)
        plain = answers_when_moved(model, PROMPTS, ask=ASK)
        np.testing.assert_allclose(kept.logits, plain.logits, atol=1e-3 * np.abs(plain.logits).max())
    assert not hooks_of(model)


@pytest.mark.parametrize("kind", WHOLE)
def test_what_answers_nothing_is_refused(kind):
    with pytest.raises(Refused, match="no causal language model"):
        answers_when_moved(tiny(kind), PROMPTS, states=shifts())


def test_a_network_whose_blocks_take_in_something_else_is_refused():
    model = tiny("gpt2")
    for block in model.transformer.h:
        block.register_forward_pre_hook(lambda module, arguments: (2 * arguments[0], *arguments[1:]))
    with pytest.raises(Refused, match="no list of 2 blocks"):
        answers_when_moved(model, PROMPTS, states=shifts())


def test_layers_and_prompts_that_there_are_not_are_refused():
    model = tiny("gpt2")
    with pytest.raises(Refused, match="layer 3 does not exist"):
        answers_when_moved(model, PROMPTS, layer=3, states=shifts())
    with pytest.raises(Refused, match="no prompts"):
        answers_when_moved(model, [])
    with pytest.raises(ValueError, match="7 prompts but states of shape"):
        answers_when_moved(model, PROMPTS, states=shifts()[:2])


def test_the_hooks_are_gone_after_an_exception():
    model = tiny("gpt2")
    with pytest.raises(RuntimeError):
        answers_when_moved(model, PROMPTS, states=shifts(width=31))
    assert not hooks_of(model)
    before = answers_when_moved(model, PROMPTS, ask=ASK).logits
    np.testing.assert_array_equal(before, answers_when_moved(model, PROMPTS, ask=ASK).logits)
