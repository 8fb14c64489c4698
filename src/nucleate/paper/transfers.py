"""Whether the trained network uses a task's part of its states: `transferring.py` asked of the paper's instances."""

from typing import Any

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from nucleate.config import Config
from nucleate.data.dataset import Dataset, is_inside
from nucleate.paper.instances import places_of
from nucleate.paper.network import is_causal, make_network
from nucleate.progress import Progress
from nucleate.transferring import MOST, transfer

HELD_OUT = ("validation", "test")
_ARMS = 20  # moves of each pair in a layer, controls among them
_SHARE = 1 / 7  # of a prompt: what a moved pair costs, its stem being shared


def transfer_rows(
    config: Config, dataset: Dataset, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, progress: Progress
) -> list[dict[str, Any]]:
    """What comes of moving held-out instances by training instances; beside it the network as it was at epoch 0.
    Nothing of an encoder, and where the input is not the last token, behind which the answer follows."""
    if is_inside(dataset) or not is_causal(config):
        return []
    fresh, _ = make_network(config, dataset, device=str(model.device))
    train, *held = (places_of(dataset.instances, split) for split in ("train", *HELD_OUT))
    sides: dict[str, tuple[np.ndarray, np.ndarray]] = {
        split: (some, train) for split, some in zip(HELD_OUT, held, strict=True)
    }
    found = transfer(model, tokenizer, dataset.instances, sides, untrained=fresh, seed=config.seed, progress=progress)
    return [{"experiment": "transfer", **row} for row in found.rows]


def passes(layers: int, taught: int, held: int) -> float:
    """About how many passes over the training instances that takes."""
    pairs = min(MOST, 5 * held)
    return 2 + len(HELD_OUT) * layers * _ARMS * pairs * _SHARE / taught
