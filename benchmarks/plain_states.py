"""States as anybody would read them: the forward pass of transformers with all hidden states, nothing of nucleate."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch


def plain_states(model: Any, tokenizer: Any, texts: Sequence[str], layers: Sequence[int]) -> dict[str, np.ndarray]:
    """last, mean -> (layer, text, width) float32: of the last token, and the mean over all that are not special.

    Texts of one length go together, so that nothing is padded."""
    distinct = list(dict.fromkeys(texts))
    tokens = [tokenizer(text)["input_ids"] for text in distinct]
    special = set(tokenizer.all_special_ids)
    order = sorted(range(len(distinct)), key=lambda place: len(tokens[place]))
    width = model.config.get_text_config().hidden_size
    found = {read: np.empty((len(layers), len(distinct), width), dtype=np.float32) for read in ("last", "mean")}
    start = 0
    with torch.inference_mode():
        while start < len(order):
            length = len(tokens[order[start]])
            some = [place for place in order[start : start + max(1, 2048 // length)] if len(tokens[place]) == length]
            start += len(some)
            ids = torch.tensor([tokens[place] for place in some])
            own = torch.tensor([[token not in special for token in tokens[place]] for place in some])[..., None]
            hidden = model(input_ids=ids, output_hidden_states=True, logits_to_keep=1).hidden_states
            for row, layer in enumerate(layers):
                states = hidden[layer].float()
                found["last"][row, some] = states[:, -1].numpy()
                found["mean"][row, some] = ((states * own).sum(1) / own.sum(1)).numpy()
    place = {text: number for number, text in enumerate(distinct)}
    rows = [place[text] for text in texts]
    return {read: one[:, rows] for read, one in found.items()}
