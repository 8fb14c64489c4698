"""A network's own head: where it stands, and what it makes of last-layer states."""

from typing import Any

import torch
from torch import Tensor, nn

from nucleate.refusal import Refused


def parts_of(network: Any) -> tuple[nn.Module, Any]:
    """The body that gives the last hidden states and the head that makes logits of them; refused where there are none,
    or where something stands between."""
    name = type(network).__name__
    top = network.get_output_embeddings()
    body = network.get_decoder() if hasattr(network, "get_decoder") else getattr(network, "base_model", None)
    if top is None or body is None or body is network or network.config.is_encoder_decoder:
        raise Refused(f"{name} is no causal language model with a head of its own: take one that generates text")
    seen: list[Tensor] = []
    handles = [
        body.register_forward_hook(lambda module, arguments, output: seen.append(output[0])),
        top.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[0])),
    ]
    try:
        with torch.inference_mode():
            network(input_ids=torch.tensor([[1, 1]], device=next(network.parameters()).device), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    if len(seen) != 2 or not torch.equal(seen[0].to(seen[1].device), seen[1]):
        raise Refused(f"{name} does not hand its last hidden states to its head as they are: it cannot be switched")
    return body, top


def head_logits(network: Any, states: Tensor) -> Tensor:
    """(state, vocabulary) float32 what the network's own code makes of last-layer states, scales and caps included."""
    top = network.get_output_embeddings()
    there = states.to(top.weight)[None]
    handle = top.register_forward_pre_hook(lambda module, arguments: (there,))
    try:
        with torch.inference_mode():
            out = network(input_ids=torch.ones(1, 1, dtype=torch.long, device=there.device), use_cache=False)
    finally:
        handle.remove()
    return out.logits[0].float().cpu()
