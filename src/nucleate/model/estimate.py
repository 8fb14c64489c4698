"""What reading a model will cost in time and memory, told beforehand from its settings alone: no weights are needed."""

import time
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import nn

from nucleate.model.batches import batch_budget
from nucleate.model.networks import network_shape
from nucleate.model.packed_pass import text_config
from nucleate.refusal import Refused

_SHARE = 0.7  # of the rate of bare matrix products that a whole forward pass reaches (0.8 at width 576, one thread)
_WORKING = 6  # what a layer needs in between, in states of its width (feed-forward, attention, norms)


@dataclass(frozen=True)
class Estimate:
    """`peak_bytes` covers weights, the states kept and one batch; `seconds` one reading, without loading."""

    parameters: int
    weight_bytes: int
    state_bytes: int
    peak_bytes: int
    seconds: float


def estimate(
    model: Any,
    prompts: int,
    tokens: int,
    *,
    layers: int | None = None,
    dtype: str = "float32",
    device: str = "cpu",
    rate: float | None = None,
    **loading: Any,
) -> Estimate:
    """Of a path, a hub id, a GGUF file, a configuration or a network. `tokens` counts all that are fed, shared ones
    once; `layers` those whose states are kept, over all reads (None: each layer at one read). `rate` is the machine's,
    in FLOP per second of matrix products: measured in half a second unless it is given. All experts of a mixture are
    counted, so for these the time is an upper bound."""
    network = network_shape(model, **loading)
    config = text_config(network)
    depth, width = config.num_hidden_layers, config.hidden_size
    stored = getattr(config, "dtype", None)
    precision = getattr(torch, dtype, None) if dtype != "auto" else stored or torch.float32
    if not isinstance(precision, torch.dtype):
        raise Refused(f"dtype {dtype!r} is none of torch's: take float32, bfloat16, float16 or auto")
    weights = sum(p.numel() for p in network.parameters()) * precision.itemsize
    states = (depth + 1 if layers is None else layers) * prompts * width * 4
    batch = min(tokens, batch_budget(network, True))
    between = batch * (
        width * (depth + 1 + _WORKING) * precision.itemsize + 2 * config.vocab_size * 4 * prompts / tokens
    )
    reader = network.get_encoder() if network.config.is_encoder_decoder else network
    each, head = _products(reader)
    flop = 2 * (tokens * each + prompts * head) + 4 * depth * width * tokens * min(256, tokens)
    return Estimate(
        parameters=weights // precision.itemsize,
        weight_bytes=weights,
        state_bytes=states,
        peak_bytes=int(weights + states + between),
        seconds=flop / ((rate or measure_rate(precision, device)) * _SHARE),
    )


@cache
def measure_rate(precision: torch.dtype = torch.float32, device: str = "cpu") -> float:
    """FLOP per second of matrix products, of a shape that a network of width 768 has."""
    rows, width, inner = 1024, 768, 3072
    a, b = (torch.zeros(shape, dtype=precision, device=device) for shape in ((rows, width), (width, inner)))
    done, began = 0, time.perf_counter()
    while (passed := time.perf_counter() - began) < 0.5 or done < 2:
        float((a @ b)[0, 0])  # waits for the device
        done += 1
    return 2 * rows * width * inner * done / passed


def _products(network: Any) -> tuple[int, int]:
    """How many weights each token is multiplied with, and how many in the head, where answers are read."""
    head = network.get_output_embeddings()
    looked_up = {id(m.weight) for m in network.modules() if isinstance(m, nn.Embedding)}
    last = {id(p) for p in head.parameters()} if head is not None else set()
    each = sum(p.numel() for p in network.parameters() if id(p) not in looked_up | last)
    return each, sum(p.numel() for p in head.parameters()) if head is not None else 0
