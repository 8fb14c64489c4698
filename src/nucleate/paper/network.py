"""The fresh network that settings ask for."""

from collections.abc import Sequence
from dataclasses import asdict

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.config import Config
from nucleate.data.dataset import Dataset
from nucleate.model.networks import gpt2, word_tokenizer
from nucleate.refusal import Refused


def make_network(
    config: Config, dataset: Dataset, *, device: str, words: Sequence[str] = ()
) -> tuple[PreTrainedModel, PreTrainedTokenizerFast]:
    """A fresh network for the symbols of a dataset and further `words`; equal seeds give equal weights."""
    tokenizer = word_tokenizer([*dataset.vocabulary["instruction"], *dataset.vocabulary["task"], *words])
    model = gpt2(
        vocabulary=len(tokenizer),
        positions=_positions(dataset),
        pad=int(tokenizer.pad_token_id),
        seed=config.seed,
        **asdict(config.model),
    )
    torch.nn.Module.to(model, device)
    if config.measure.last_layer == "plain":
        model.config.tie_last_hidden_states = False
    return model, tokenizer


def _positions(dataset: Dataset) -> int:
    """Longest sequence + 4, at most 64."""
    longest = max(len(f"{i.instruction} {i.input} {i.output}".split()) for i in dataset.instances)
    return max(longest, min(64, longest + 4))


def check_network(config: Config) -> None:
    """Refuse settings of the network that only fail together."""
    if config.model.width % config.model.heads:
        raise Refused(f"model.width={config.model.width} is not a multiple of model.heads={config.model.heads}")
    if config.model.dropout >= 1:
        raise Refused(f"model.dropout={config.model.dropout} leaves nothing: it must be below 1")
