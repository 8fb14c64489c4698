"""The architectures that `model.architecture` names: families of transformers, each built from the same few settings.

All of them are trained, read, saved and loaded by the same code, and all but BERT are causal language models. What a
family has no place for (dropout in Mamba) is refused at the door by `paper/network.py`; docs/paper.md tells of each.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    BertConfig,
    LlamaConfig,
    MambaConfig,
    MarianConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from nucleate.model.networks import gpt2


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What all families are built from."""

    vocabulary: int
    width: int
    feed_forward: int
    layers: int
    heads: int
    positions: int
    dropout: float
    initial_scale: float
    pad: int


@dataclass(frozen=True)
class Family:
    """How a family is built, and what the settings may ask of it."""

    settings: Callable[[Shape], PreTrainedConfig]
    has_dropout: bool = True
    has_final_norm: bool = True  # one that can be left out: in a post-norm network every block ends with its own
    has_attention: bool = True  # else there are no heads
    shares_tokens: bool = True  # can instances share an instruction, and rows?
    is_causal: bool = True  # else it is an encoder, which predicts the output alone
    has_rotary_positions: bool = False  # which turn pairs of dimensions


def fresh_network(architecture: str, shape: Shape, *, seed: int) -> PreTrainedModel:
    """A network with fresh weights; equal seeds give equal bytes, and the caller's random state stays as it was."""
    if architecture == "gpt2":
        return gpt2(**asdict(shape), seed=seed)
    with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU, whatever device they go to
        torch.default_generator.manual_seed(seed % 2**63)
        family = FAMILIES[architecture]
        kind = AutoModelForCausalLM if family.is_causal else AutoModelForMaskedLM
        # With dropout, torch's fused attention on a CPU falls back to a slower path than plain matrix products.
        model = kind.from_config(family.settings(shape), attn_implementation="eager")
    for name, part in model.named_modules():
        if name.endswith(("encoder_attn", "encoder_attn_layer_norm")):
            _retire(part)  # Marian's look at a text to translate: in every block, and without one never used
    return model


def _retire(part: nn.Module) -> None:
    """Weights that stand in the files for the sake of the family: nothing reads them, so they are zero and stay so."""
    for weight in part.parameters():
        nn.init.zeros_(weight).requires_grad_(False)


def _opt(shape: Shape) -> OPTConfig:
    """Post-norm, learned positions, a head of its own, ReLU: GPT-2's blocks before GPT-2. No dropout on embeddings."""
    return OPTConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        word_embed_proj_dim=shape.width,
        ffn_dim=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.positions,
        do_layer_norm_before=False,
        activation_function="relu",
        dropout=shape.dropout,
        attention_dropout=shape.dropout,
        layerdrop=0.0,
        init_std=shape.initial_scale,
        tie_word_embeddings=False,
        **_tokens(shape),
    )


def _marian(shape: Shape) -> MarianConfig:
    """Post-norm, fixed sinusoids, embeddings times the root of the width, a head of its own, ReLU: as in "Attention Is
    All You Need" and torch's tutorial on language modelling. Dropout in all four places."""
    decoder: dict[str, Any] = {
        f"{side}_{name}": value  # the encoder's are never built, but the family counts its layers by them
        for side in ("encoder", "decoder")
        for name, value in {
            "layers": shape.layers,
            "ffn_dim": shape.feed_forward,
            "attention_heads": shape.heads,
            "layerdrop": 0.0,
        }.items()
    }
    return MarianConfig(
        vocab_size=shape.vocabulary,
        d_model=shape.width,
        max_position_embeddings=shape.positions,
        scale_embedding=True,
        activation_function="relu",
        dropout=shape.dropout,
        attention_dropout=shape.dropout,
        activation_dropout=shape.dropout,
        init_std=shape.initial_scale,
        decoder_start_token_id=shape.pad,
        forced_eos_token_id=None,
        share_encoder_decoder_embeddings=False,
        tie_word_embeddings=False,
        is_decoder=True,
        is_encoder_decoder=False,
        **decoder,
        **_tokens(shape),
    )


def _llama(shape: Shape) -> LlamaConfig:
    """Pre-norm by root mean square, rotary positions, gated SiLU (three matrices), no biases, a head of its own.
    Dropout on attention alone: the family has no other place."""
    return LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=shape.positions,
        attention_dropout=shape.dropout,
        initializer_range=shape.initial_scale,
        tie_word_embeddings=False,
        **_tokens(shape),
    )


def _mamba(shape: Shape) -> MambaConfig:
    """A state-space model: no attention, no positions, no heads; one inner width (`feed_forward`), tied head. Of
    `initial_scale` only what the family does not draw by a law of its own (convolution, output, transitions)."""
    # The inner width itself, not the whole number of widths (`expand`) that the family's signature has.
    settings: dict[str, Any] = {"intermediate_size": shape.feed_forward, **_tokens(shape)}
    return MambaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        num_hidden_layers=shape.layers,
        initializer_range=shape.initial_scale,
        **settings,
    )


def _bert(shape: Shape) -> BertConfig:
    """An encoder: post-norm, every token sees every other, tied head. The output is predicted at the input's token,
    where the others predict it too, and nothing else is, for whatever stands in the text is seen. Dropout on
    embeddings, residuals and attention."""
    return BertConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=shape.feed_forward,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=shape.positions,
        hidden_dropout_prob=shape.dropout,
        attention_probs_dropout_prob=shape.dropout,
        initializer_range=shape.initial_scale,
        type_vocab_size=1,
        **_tokens(shape),
    )


def _tokens(shape: Shape) -> dict[str, Any]:
    """Padding, and no other special token: the families' own lie outside a small vocabulary."""
    return {"pad_token_id": shape.pad, "bos_token_id": None, "eos_token_id": None}


FAMILIES = {
    "opt": Family(_opt, has_final_norm=False),
    "marian": Family(_marian, has_final_norm=False),
    "llama": Family(_llama, has_rotary_positions=True),
    "mamba": Family(_mamba, has_dropout=False, has_final_norm=False, has_attention=False, shares_tokens=False),
    "bert": Family(_bert, has_final_norm=False, shares_tokens=False, is_causal=False),
}
