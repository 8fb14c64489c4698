"""Where to compute, and how exactly."""

from nucleate.refusal import Refused

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("float32", "bfloat16", "float16", "float64", "auto")  # of a given model's weights; auto: as stored


def device_for(asked: str) -> str:
    """`auto`: the GPU if there is one."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise Refused("--device cuda: torch sees no GPU here; leave --device out, or say cpu")
    if asked not in DEVICES:
        raise Refused(f"device {asked!r} is unknown; there are: {', '.join(DEVICES)}")
    return asked
