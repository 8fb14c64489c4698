"""The fresh network that settings ask for."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.config import Config
from nucleate.data.dataset import Dataset, is_inside, refuse_inside
from nucleate.data.inside import MARK, text_of
from nucleate.model.architectures import FAMILIES, Shape, fresh_network
from nucleate.model.networks import word_tokenizer
from nucleate.refusal import Refused


def make_network(
    config: Config, dataset: Dataset, *, device: str, words: Sequence[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A fresh network for the symbols of a dataset and further `words`; equal seeds give equal weights."""
    words = [*words, MARK] if is_inside(dataset) else words
    tokenizer = word_tokenizer([*dataset.vocabulary["instruction"], *dataset.vocabulary["task"], *words])
    settings = asdict(config.model)
    architecture = settings.pop("architecture")
    shape = Shape(vocabulary=len(tokenizer), positions=_positions(dataset), pad=int(tokenizer.pad_token_id), **settings)
    model = fresh_network(architecture, shape, seed=config.seed)
    torch.nn.Module.to(model, device)
    if config.measure.last_layer == "plain":
        model.config.tie_last_hidden_states = False
    return model, tokenizer


def _positions(dataset: Dataset) -> int:
    """Longest sequence + 4, at most 64."""
    text = text_of(dataset)
    longest = max(len(f"{text(i)} {i.output}".split()) for i in dataset.instances)
    return max(longest, min(64, longest + 4))


def forms_of(config: Config, dataset: Dataset) -> dict[str, Any]:
    """How the network is fed the instances of a dataset, as `Members.of` takes it."""
    return {"text": text_of(dataset), "answers_only": not is_causal(config)}


def check_alone(config: Config, dataset: Dataset, verb: str) -> None:
    """Refuse, at the door of other verbs, what is for `nucleate learn` alone."""
    refuse_inside(dataset, verb)
    if not is_causal(config):
        raise Refused(
            f"{verb}: model.architecture={config.model.architecture} is for `nucleate learn` alone: it predicts no "
            "instruction and loads without its head; take another"
        )


def is_causal(config: Config) -> bool:
    """Does the network predict what follows, token by token? An encoder does not."""
    family = FAMILIES.get(config.model.architecture)
    return family is None or family.is_causal


def check_network(config: Config) -> None:
    """Refuse settings of the network that only fail together."""
    settings, family = config.model, FAMILIES.get(config.model.architecture)
    named = f"model.architecture={settings.architecture}"
    if (family is None or family.has_attention) and settings.width % settings.heads:
        raise Refused(f"model.width={settings.width} is not a multiple of model.heads={settings.heads}")
    if settings.dropout >= 1:
        raise Refused(f"model.dropout={settings.dropout} leaves nothing: it must be below 1")
    if config.measure.state == "attention" and config.measure.last_layer == "plain":
        raise Refused(
            "measure.last_layer=plain is about the state of a block; with measure.state=attention leave it out"
        )
    if family is None:
        return
    if settings.dropout and not family.has_dropout:
        raise Refused(f"{named} has no dropout, and model.dropout={settings.dropout} would do nothing; set it to 0")
    if family.has_rotary_positions and settings.width // settings.heads % 2:
        raise Refused(
            f"model.width={settings.width} by model.heads={settings.heads} makes heads of odd width, which the rotary "
            f"positions of {named} cannot turn; change one"
        )
    if config.training.is_packed and not family.shares_tokens:
        raise Refused(
            f"training.packing={config.training.packing} computes an instruction once for all its inputs, which "
            f"{named} cannot; leave out --fast, or set training.packing=rows"
        )
    if config.measure.state == "attention" and not family.has_attention:
        raise Refused(f"measure.state=attention measures what {named} has not; set it to block")
    if config.measure.last_layer == "plain" and not family.has_final_norm:
        raise Refused(
            f"measure.last_layer=plain takes the state before the final norm, which {named} has none of that could be "
            "left out; set it to normed"
        )
