"""States and answers of many families equal those of prompts read one at a time; what is stored in the ordinary ways
loads."""

import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
import transformers as hf
from tokenizers import Tokenizer, models, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from nucleate.model.networks import load_network, save_network, untrained
from nucleate.model.prompts import read_prompts_states
from test_prefix_tree import COMMON, EXACT, INEXACT, LLAMA, OLD, layers_alone

WIDE = {**COMMON, "intermediate_size": 64, "max_position_embeddings": 64}
CAUSAL = {
    "gpt2": (hf.GPT2Config, {**OLD, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}),
    **EXACT,
    **INEXACT,
    "qwen2": (hf.Qwen2Config, LLAMA),
    "gemma": (hf.GemmaConfig, {**LLAMA, "head_dim": 8}),
    "phi": (hf.PhiConfig, {**LLAMA, "partial_rotary_factor": 0.5}),
    "stablelm": (hf.StableLmConfig, LLAMA),
    "falcon_alibi": (hf.FalconConfig, {**COMMON, "alibi": True}),
}
WHOLE = {
    "bert": (hf.BertConfig, WIDE),
    "roberta": (hf.RobertaConfig, {**WIDE, "max_position_embeddings": 66}),
    "distilbert": (
        hf.DistilBertConfig,
        {"vocab_size": 64, "dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64, "pad_token_id": 0},
    ),
    "t5": (
        hf.T5Config,
        {"vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4, "pad_token_id": 0},
    ),
    "bart": (
        hf.BartConfig,
        {
            **{"vocab_size": 64, "d_model": 32, "encoder_layers": 2, "decoder_layers": 1, "pad_token_id": 0},
            **{
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 64,
                "decoder_ffn_dim": 64,
            },
            **{"max_position_embeddings": 64, "bos_token_id": 1, "eos_token_id": 2, "forced_eos_token_id": None},
        },
    ),
}
STEMS = [f"w{number}" for number in range(30)]
ENDS = [f"x{number}" for number in range(30)]


@dataclass(frozen=True)
class Line:
    instruction: str
    input: str
    output: str | None
    task: str


def words(closing=False):
    """A token per word, which `closing` puts between a start and an end token."""
    vocabulary = ["<pad>", "<s>", "</s>", "<unk>", *STEMS, *ENDS]
    plain = Tokenizer(models.WordLevel({word: i for i, word in enumerate(vocabulary)}, unk_token="<unk>"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if closing:
        plain.post_processor = TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return hf.PreTrainedTokenizerFast(tokenizer_object=plain, pad_token="<pad>", unk_token="<unk>")


def lines(seed=0):
    """Shared instructions of many lengths, inputs and outputs of one to three tokens, a prompt of a single token, one
    instruction of its own, one that begins like another, and a prompt twice."""
    rng = random.Random(seed)
    several = [" ".join(rng.choices(STEMS, k=k)) for k in (1, 2, 8, 15)]
    made = [
        Line(one, " ".join(rng.choices(ENDS, k=rng.randint(1, 3))), " ".join(rng.choices(ENDS, k=rng.randint(1, 3))), t)
        for one, t in zip([*several, several[-1] + " w3"], "ababa", strict=True)
        for _ in range(3)
    ]
    return [*made, Line("", "x3", "x4", "b"), Line("w7", "x5", None, "a"), made[4]]


def tiny(kind):
    """A random network with weights large enough for attention to matter."""
    config, settings = (CAUSAL | WHOLE)[kind]
    torch.manual_seed(1)
    auto = hf.AutoModelForCausalLM if kind in CAUSAL else hf.AutoModelForTextEncoding if kind == "t5" else hf.AutoModel
    model = auto.from_config(config(**settings)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 2 and "mixer" not in name:
                parameter.mul_(6)
    return model


def read(model, tokenizer, prompts, **more):
    reads = {"input": None, "instruction_end": [0, -1], "answer_start": [1]}
    return read_prompts_states(
        model, tokenizer, prompts, reads=reads, template="{instruction} {input} w0", tokens_per_batch=90, **more
    )


def alone(model, tokens):
    """Every layer (layer, place, width) and the logits of one prompt in a batch of its own."""
    states, out = layers_alone(model.get_encoder() if model.config.is_encoder_decoder else model, tokens)
    return states, getattr(out, "logits", [None])[0]


def check_states(model, tokenizer, prompts, reading):
    """Of the largest absolute state of that prompt and layer, 1e-4."""
    for row, number in enumerate(reading.kept):
        one = prompts[number]
        tokens = tokenizer(f"{one.instruction} {one.input} w0")["input_ids"]
        first = int(tokens[0] == 1)  # a start token
        ends = {
            "input": first + len(f"{one.instruction} {one.input}".split()) - 1,
            "instruction_end": first + len(one.instruction.split()) - 1,
            "answer_start": first + len(f"{one.instruction} {one.input} w0".split()) - 1,
        }
        states, _ = alone(model, tokens)
        for read, place in ends.items():
            expected = states[list(reading.layers[read]), place]
            gap = np.abs(reading.states[read][:, row] - expected).max(axis=-1)
            assert (gap <= 1e-4 * np.abs(states).max(axis=(1, 2))[list(reading.layers[read])]).all(), (row, read)


@pytest.mark.parametrize("kind", CAUSAL)
def test_states_and_answers_are_those_of_prompts_read_one_at_a_time(kind):
    model, tokenizer = tiny(kind), words()
    prompts = [one for one in lines() if one.instruction]
    reading = read(model, tokenizer, prompts)
    assert reading.layers == {"input": (0, 1, 2), "instruction_end": (0, 2), "answer_start": (1,)}
    assert (reading.note is None) == (kind not in INEXACT and kind != "falcon_alibi")
    assert reading.kept.tolist() == list(range(len(prompts))) and not reading.dropped
    check_states(model, tokenizer, prompts, reading)
    own = {t: {tokenizer(p.output)["input_ids"][0] for p in prompts if p.task == t and p.output} for t in "ab"}
    for row, one in enumerate(prompts):
        fed = tokenizer(f"{one.instruction} {one.input} w0")["input_ids"]
        answer = tokenizer(one.output)["input_ids"] if one.output else []
        logits = alone(model, fed + answer)[1]
        best = logits[len(fed) - 1 :].argmax(-1).tolist()
        assert reading.answers[row] == tokenizer.decode([best[0]])
        assert reading.scored[row] == bool(answer)
        if answer:
            assert reading.predicted[row] == (best[0] == answer[0])
            assert reading.whole[row] == (best[: len(answer)] == answer)
            allowed = sorted(own[one.task])
            assert reading.restricted[row] == (allowed[logits[len(fed) - 1][allowed].argmax()] == answer[0])


@pytest.mark.parametrize("kind", WHOLE)
@pytest.mark.parametrize("closing", [False, True])
def test_encoders_read_whole_rows_and_give_no_answers(kind, closing):
    model, tokenizer = tiny(kind), words(closing)
    prompts = [one for one in lines() if one.instruction]
    reading = read(model, tokenizer, prompts)
    check_states(model, tokenizer, prompts, reading)
    assert reading.answers is reading.predicted is reading.whole is reading.restricted is reading.scored is None
    assert reading.note is None


@pytest.mark.parametrize("kind", ["llama", "gptj", "mistral", "mamba", "bert", "t5"])
def test_prompts_of_a_single_token_are_read(kind):
    model, tokenizer = tiny(kind), words()
    prompts = [Line("", one, "x1 x2", "a") for one in ("x3", "x4", "x3 x5", "x6")]
    reading = read_prompts_states(model, tokenizer, prompts, reads={"input": None}, template="{instruction} {input}")
    for row, one in enumerate(prompts):
        expected = alone(model, tokenizer(one.input)["input_ids"])[0][:, -1]
        np.testing.assert_allclose(reading.states["input"][:, row], expected, atol=1e-4 * np.abs(expected).max())


@pytest.mark.parametrize("kind", [*CAUSAL, *WHOLE])
def test_a_saved_network_of_any_family_loads_and_fresh_weights_are_others(kind, tmp_path):
    model, tokenizer = tiny(kind), words()
    save_network(model, tokenizer, tmp_path / "net")
    # transformers rebuilds the tokenizer of some families (Qwen2) from what a tokenizer of words does not have.
    loaded, same = load_network(tmp_path / "net", tokenizer=tokenizer)
    assert type(loaded) is type(model) and same is tokenizer
    prompts = [one for one in lines() if one.instruction]
    expected, found = read(model, tokenizer, prompts), read(loaded, same, prompts)
    np.testing.assert_allclose(found.states["input"], expected.states["input"], rtol=1e-4, atol=1e-4)
    fresh, again, other = untrained(loaded, 3), untrained(loaded, 3), untrained(loaded, 4)
    assert type(fresh) is type(model) and not fresh.training
    different = read(fresh, same, prompts).states["input"]
    np.testing.assert_array_equal(different, read(again, same, prompts).states["input"])
    for states in (expected.states["input"], read(other, same, prompts).states["input"]):
        assert np.abs(different - states).max() > 0.01


@pytest.mark.parametrize(("window", "shared"), [(5, False), (64, True)])
def test_layers_that_see_a_window_beside_ones_that_see_all_are_read_as_alone(window, shared, monkeypatch):
    """Gemma 3: shorter than the text, nothing is shared; longer, as in its real weights, instructions are."""
    kinds = ["sliding_attention", "full_attention"]
    wide = {**LLAMA, "head_dim": 8, "sliding_window": window, "layer_types": kinds}
    monkeypatch.setitem(CAUSAL, "gemma3", (hf.Gemma3TextConfig, wide))
    model, prompts = tiny("gemma3"), [one for one in lines() if one.instruction]
    assert max(len(f"{one.instruction} {one.input}".split()) for one in prompts) > 3 * 5
    reading = read(model, words(), prompts)
    assert (reading.note is None) == shared
    check_states(model, words(), prompts, reading)
    far, near = (alone(model, tokens)[0][:, -1] for tokens in ([4, *range(5, 20)], [9, *range(5, 20)]))
    seen = np.abs(far - near).max(axis=-1)
    assert seen[1] == 0 if window == 5 else seen[1] > 1e-3, "the first token lies outside the window of the first layer"
    assert seen[2] > 1e-3, "but not of the second"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["llama", "gptj", "mistral"])
def test_sharded_half_precision_checkpoints_load_and_are_read(kind, dtype, tmp_path):
    """What LLaMA-7B, LLaMA-2-7B-Instruct, GPT-J-6B and their kin are published as, in small."""
    model, tokenizer = tiny(kind).to(dtype), words()
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    tokenizer.save_pretrained(tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) > 2
    prompts = [one for one in lines() if one.instruction]
    exact, same = load_network(tmp_path)  # float32
    assert exact.dtype == torch.float32
    check_states(exact, same, prompts, read(exact, same, prompts))
    stored, _ = load_network(tmp_path, dtype="auto")
    assert stored.dtype == dtype
    states = read(stored, same, prompts).states["input"]
    expected = read(exact, same, prompts).states["input"]
    assert states.dtype == np.float32 and 0 < np.abs(states - expected).max() < 0.1 * np.abs(expected).max()
