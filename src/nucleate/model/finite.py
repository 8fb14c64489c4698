"""Numbers that cease to be numbers: a training or a reading stops at once, and says where and most likely why."""

import math

import torch
from torch import Tensor

_LARGEST_HALF = 65_504


def stop_if_diverged(value: Tensor, epoch: int, step: int) -> None:
    """`value` is finite as long as every loss and gradient was."""
    if not math.isfinite(value.item()):
        raise RuntimeError(
            f"epoch {epoch}, step {step}: the loss or its gradient is no longer finite; "
            "lower the learning rate, or train in float32"
        )


def stop_if_not_finite(states: Tensor, layer: int) -> None:
    """Hidden states of one layer, in the type that the network computed them in."""
    if states.isfinite().all():
        return
    half = states.dtype == torch.float16
    cause = f"float16 ends at {_LARGEST_HALF:,}: read in float32" if half else "read in float32, or check the weights"
    raise RuntimeError(f"layer {layer}: a hidden state is not finite; {cause}")
