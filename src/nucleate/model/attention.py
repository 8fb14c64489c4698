"""What each block's attention puts out, for whoever wants to measure that instead of what the whole block does."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from nucleate.model.packed_pass import text_config
from nucleate.refusal import Refused

_NAMES = (".attn", ".self_attn", ".attention.output.dense")  # of GPT-2 and its kin; OPT, Marian, LLaMA; BERT


@contextmanager
def attention_outputs(model: nn.Module) -> Iterator[list[Tensor]]:
    """Inside, every forward pass leaves here what the attention of each block puts out (row, place, width), in the
    order of the blocks: after its own projection, before the residual is added."""
    parts = [part for name, part in model.named_modules() if name.endswith(_NAMES)]
    depth = text_config(model).num_hidden_layers
    if len(parts) != depth:
        raise Refused(
            f"{type(model).__name__} has {depth} blocks, but {len(parts)} parts that are known as their attention, so "
            "it cannot be measured alone; set measure.state=block"
        )
    found: list[Tensor] = [Tensor()] * depth

    def keep(number: int) -> Any:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            found[number] = output[0] if isinstance(output, tuple) else output

        return hook

    handles = [part.register_forward_hook(keep(number)) for number, part in enumerate(parts)]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
