"""States read in batches are those of prompts read one at a time; predictions and losses likewise."""

import random
from contextlib import nullcontext
from dataclasses import dataclass
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

from nucleate.data.dataset import Dataset, Instance
from nucleate.model import batches
from nucleate.model.finite import stop_if_not_finite
from nucleate.model.networks import gpt2, word_tokenizer
from nucleate.model.prefix_tree import Group
from nucleate.model.states import instances_as_groups, read_groups, read_states
from nucleate.model.texts import prompts_of, tokenise
from nucleate.refusal import Refused

SYMBOLS = list("abcdefghijklmnop")


@dataclass
class Line:
    instruction: str
    input: str
    output: str | None = None


def network(dropout=0.0, vocabulary=18, positions=24):
    model = gpt2(
        vocabulary=vocabulary,
        width=32,
        feed_forward=64,
        layers=3,
        heads=4,
        positions=positions,
        dropout=dropout,
        pad=0,
        seed=2,
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(5)
    return model


def prompts(count=12, seed=0):
    rng = random.Random(seed)
    return [
        (" ".join(rng.choices("abcdefgh", k=rng.randint(1, 14))), " ".join(rng.choices("ijkl", k=rng.randint(1, 2))))
        for _ in range(count)
    ]


def shared_prompts():
    return [(instruction, given) for instruction, _ in prompts(6) for given in ("i", "j k", "l")]


def one_at_a_time(model, tokens):
    with torch.no_grad():
        out = model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    return torch.stack([h[0, -1] for h in out.hidden_states]).numpy(), out.logits[0]


def test_each_prompt_has_the_states_that_it_has_alone():
    model, tokenizer = network(), word_tokenizer(SYMBOLS)
    pairs = shared_prompts() + prompts() + shared_prompts()[:2]  # the last two are there twice
    states = read_states(model, tokenizer, pairs, tokens_per_batch=60)
    assert states.shape == (4, len(pairs), 32) and states.dtype == np.float32
    for number, (instruction, given) in enumerate(pairs):
        alone, _ = one_at_a_time(model, tokenizer(f"{instruction} {given}")["input_ids"])
        np.testing.assert_allclose(states[:, number], alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())
    np.testing.assert_array_equal(states[:, -2:], states[:, :2])


@pytest.mark.parametrize(
    ("read", "template", "ends"),
    [
        ("instruction_end", "{instruction} {input}", "{instruction}"),
        ("input", "a {instruction} b {input} c d", "a {instruction} b {input}"),
        ("answer_start", "{instruction} {input} c d", "{instruction} {input} c d"),
        ("input", "{input} {instruction}", "{input}"),
        ("answer_start", "{instruction}", "{instruction}"),
    ],
)
def test_the_token_that_is_read_is_the_one_asked_for(read, template, ends):
    model, tokenizer = network(), word_tokenizer(SYMBOLS)
    pairs = shared_prompts()
    states = read_states(model, tokenizer, pairs, read=read, template=template, layers=[0, -1])
    for number, (instruction, given) in enumerate(pairs):
        text = ends.format(instruction=instruction, input=given)
        alone, _ = one_at_a_time(model, tokenizer(text)["input_ids"])
        np.testing.assert_allclose(states[:, number], alone[[0, -1]], rtol=1e-3, atol=1e-3)


def merging_tokenizer():
    """Characters; `t`, ` ` and `c` merge across the border of instruction and input. A start and an end token."""
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *"abct ", "ca", "t c", " c", "at"])}
    bpe = Tokenizer(models.BPE(vocabulary, [("c", "a"), (" ", "c"), ("t", " c"), ("a", "t")]))
    from tokenizers.processors import TemplateProcessing

    bpe.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>")


def test_tokens_that_merge_across_the_border_are_found_by_their_offsets():
    tokenizer = merging_tokenizer()
    pairs = [("bat", "c"), ("bat", "ca"), ("bb", "at")]
    tokens = [tokenizer.convert_ids_to_tokens(row) for row, _ in tokenise(tokenizer, pairs)]
    places = [place for _, place in tokenise(tokenizer, pairs)]
    assert tokens == [["<s>", "b", "a", "t c"], ["<s>", "b", "at", " ", "ca"], ["<s>", "b", "b", " ", "at"]]
    assert [row[place] for row, place in zip(tokens, places, strict=True)] == ["t c", "ca", "at"]
    ends = prompts_of(tokenizer, [Line(*pair) for pair in pairs], reads=["instruction_end"])
    assert [row[end.places[0]] for row, end in zip(tokens, ends, strict=True)] == ["t c", "at", "b"]
    model = network(vocabulary=13)
    states = read_states(model, tokenizer, pairs)
    for number, (row, place) in enumerate(tokenise(tokenizer, pairs)):
        alone, _ = one_at_a_time(model, row[: place + 1])
        np.testing.assert_allclose(states[:, number], alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())


def test_a_dataset_is_read_as_its_prompts():
    model, tokenizer = network(), word_tokenizer(SYMBOLS)
    rest = {"output": None, "distribution": None, "mapping": None, "is_hard": False, "origin": None}
    rows = (Instance(n, "test", False, a, b, task="t", **rest) for n, (a, b) in enumerate(shared_prompts()))
    dataset = Dataset(tuple(rows), {}, {}, {}, {})
    np.testing.assert_array_equal(
        read_states(model, tokenizer, dataset), read_states(model, tokenizer, shared_prompts())
    )


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("tokens_per_batch", [None, 40, 7])
def test_predictions_losses_and_states_equal_those_of_single_rows(packed, tokens_per_batch, monkeypatch):
    model, tokenizer = network(), word_tokenizer(SYMBOLS)
    lines = [Line(a, b, c) for (a, b), c in zip(shared_prompts() + prompts(), ["m", "n o", "p"] * 10, strict=True)]
    random.Random(1).shuffle(lines)
    groups, places = instances_as_groups(tokenizer, lines)
    assert sorted(places.tolist()) == list(range(len(lines)))
    candidates = [[13, 14], [14, 15, 16], [17]] * 10
    if not packed:
        monkeypatch.setattr(batches, "packing_is_exact", lambda model, groups: False)
    with nullcontext() if packed else pytest.warns(UserWarning, match="plain padded rows"):
        reading = read_groups(model, groups, candidates=candidates, tokens_per_batch=tokens_per_batch)
    assert (reading.note is None) == packed
    for k, number in enumerate(places):
        line = lines[number]
        fed = tokenizer(f"{line.instruction} {line.input}")["input_ids"]
        states, logits = one_at_a_time(model, fed)
        np.testing.assert_allclose(reading.states[:, k], states, rtol=1e-3, atol=1e-4 * np.abs(states).max())
        assert reading.predicted[k] == logits[-1].argmax()
        assert reading.restricted[k] == max(candidates[k], key=lambda token: logits[-1, token].item())
        whole = torch.tensor([tokenizer(f"{line.instruction} {line.input} {line.output}")["input_ids"]])
        with torch.no_grad():
            mean = model(input_ids=whole, labels=whole).loss.item()
        assert reading.predicted_tokens[k] == whole.shape[1] - 1
        assert reading.loss[k] == pytest.approx(mean * (whole.shape[1] - 1), rel=1e-4)


def test_answers_become_targets_and_branches_end_with_the_input():
    tokenizer = word_tokenizer(SYMBOLS)
    lines = [Line("a b", "i", "m"), Line("c", "j k", None), Line("a b", "j", "n o")]
    groups, places = instances_as_groups(tokenizer, lines)
    a, b, c, i, j, k, m, n, o = (2 + SYMBOLS.index(x) for x in "abcijkmno")
    assert groups == [Group((a, b), ((i,), (j,)), ((m,), (n, o))), Group((c, j), ((k,),), ((),))]
    assert places.tolist() == [0, 2, 1]


def test_layers_are_chosen_by_number_and_none_costs_no_states():
    model, tokenizer = network(), word_tokenizer(SYMBOLS)
    groups, _ = instances_as_groups(tokenizer, [Line(*p) for p in shared_prompts()])
    whole = read_groups(model, groups)
    np.testing.assert_array_equal(read_groups(model, groups, layers=[2, 0]).states, whole.states[[2, 0]])
    nothing = read_groups(model, groups, layers=[])
    assert nothing.states.shape[0] == 0
    np.testing.assert_array_equal(nothing.predicted, whole.predicted)
    np.testing.assert_allclose(nothing.loss, whole.loss)
    assert whole.restricted is None
    with pytest.raises(Refused, match=r"layers 0 .the embedding. to 3"):
        read_groups(model, groups, layers=[4])


def test_the_first_layer_is_the_embedding_and_the_last_comes_after_the_final_norm():
    model, tokenizer = network(), word_tokenizer(SYMBOLS)
    states = read_states(model, tokenizer, [("a b", "i")])
    token, place = 2 + SYMBOLS.index("i"), 2
    first = model.transformer.wte.weight[token] + model.transformer.wpe.weight[place]
    np.testing.assert_allclose(states[0, 0], first.detach(), rtol=1e-6)
    assert abs(states[-1, 0].mean()) < 1e-5 and states[-1, 0].std() == pytest.approx(1, abs=1e-3)


def test_reading_is_without_dropout_and_puts_the_mode_back():
    model, tokenizer = network(dropout=0.5), word_tokenizer(SYMBOLS)
    expected = read_states(model, tokenizer, shared_prompts())
    model.train()
    np.testing.assert_array_equal(read_states(model, tokenizer, shared_prompts()), expected)
    assert model.training


def test_low_precision_states_come_as_float32():
    tokenizer = word_tokenizer(SYMBOLS)
    exact = read_states(network(), tokenizer, shared_prompts())
    coarse = read_states(network().to(torch.bfloat16), tokenizer, shared_prompts())
    assert coarse.dtype == np.float32
    assert 0 < np.abs(coarse - exact).max() < 0.1 * np.abs(exact).max()


def test_a_family_whose_blocks_return_tuples_is_read_alike():
    torch.manual_seed(0)
    config = GPTJConfig(
        vocab_size=18, n_positions=24, n_embd=32, n_layer=2, n_head=4, rotary_dim=4, bos_token_id=1, eos_token_id=1
    )
    model, tokenizer = GPTJForCausalLM(config).eval(), word_tokenizer(SYMBOLS)
    states = read_states(model, tokenizer, shared_prompts())
    for number, (instruction, given) in enumerate(shared_prompts()):
        alone, _ = one_at_a_time(model, tokenizer(f"{instruction} {given}")["input_ids"])
        np.testing.assert_allclose(states[:, number], alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())


def test_unknown_words_are_read_and_counted():
    with pytest.warns(UserWarning, match="3 words of the prompts"):
        read_states(network(), word_tokenizer(SYMBOLS), [("a", "zz"), ("a b", "i"), ("yy xx", "i")])


@pytest.mark.parametrize(
    ("pairs", "settings", "message"),
    [
        ([], {}, "no prompts"),
        ([("a", "i"), ("a " * 30, "i")], {}, "prompt 1: .* 24 positions"),
        ([("a", "i"), ("a", "")], {}, "prompt 1: its input is empty"),
        ([("", "i")], {"read": "instruction_end"}, "prompt 0: its instruction is empty"),
        ([("a", "   ")], {}, "prompt 0: its input '   ' has no token"),
        ([("a", "i")], {"read": "middle"}, "read 'middle' is unknown"),
        ([("a", "i")], {"template": "{instruction}"}, "no .input."),
        ([("a", "i")], {"template": "{instruction} {inptu}"}, "inptu"),
        ([("a", "i")], {"template": "{instruction"}, "template"),
    ],
)
def test_prompts_that_cannot_be_read_are_refused_by_number(pairs, settings, message):
    with pytest.raises(Refused, match=message) as caught:
        read_states(network(), word_tokenizer(SYMBOLS), pairs, **settings)
    assert "\n" not in str(caught.value)


def test_braces_inside_an_instruction_are_text():
    tokenizer = word_tokenizer(["{input}", "i"])
    [(tokens, place)] = tokenise(tokenizer, [("{input}", "i")])
    assert (tokens, place) == ((2, 3), 1)


def test_a_network_and_a_tokenizer_that_do_not_belong_together_are_refused():
    with pytest.raises(Refused, match="do not belong together"):
        read_states(network(vocabulary=5), word_tokenizer(SYMBOLS), [("a", "p")])


def test_a_state_that_is_not_finite_is_never_silent():
    model = network()
    with torch.no_grad():
        model.transformer.h[1].mlp.c_proj.bias[0] = torch.inf
    with pytest.raises(RuntimeError, match=r"layer 2: a hidden state is not finite; .* check the weights"):
        read_states(model, word_tokenizer(SYMBOLS), shared_prompts())
    with pytest.warns(UserWarning, match="plain padded rows"):  # its answers cannot be compared
        assert read_states(model, word_tokenizer(SYMBOLS), shared_prompts(), layers=[0, 1]) is not None


def test_half_precision_that_overflows_is_told_as_such():
    states = torch.full((2, 3), 60_000.0).half()
    stop_if_not_finite(states, 4)
    with pytest.raises(RuntimeError, match=r"layer 4: .*float16 ends at 65,504"):
        stop_if_not_finite(states * 2, 4)


def test_a_slow_tokenizer_is_refused():
    with pytest.raises(Refused, match="fast"):
        tokenise(SimpleNamespace(is_fast=False), [("a", "i")])


def test_pre_tokenizers_that_strip_blanks_still_find_the_read_token():
    plain = Tokenizer(models.WordLevel({"<unk>": 0, "a": 1, "i": 2, "->": 3}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, unk_token="<unk>")
    [(tokens, place)] = tokenise(tokenizer, [(" a ", "i ")], template="{instruction} {input} ->")
    assert tokens[place] == 2 and len(tokens) == 3


def test_without_any_input_the_prompt_ends_with_its_instruction():
    model, tokenizer = network(vocabulary=13), merging_tokenizer()
    states = read_states(model, tokenizer, [("bat", ""), ("bb", "")])
    for number, text in enumerate(("bat", "bb")):
        tokens = [token for token in tokenizer(text)["input_ids"] if token != 2]  # </s> stands behind the text
        alone, _ = one_at_a_time(model, tokens)
        np.testing.assert_allclose(states[:, number], alone, rtol=1e-3, atol=1e-4 * np.abs(alone).max())
