"""Where to compute."""

from nucleate.refusal import Refused


def device_for(asked: str) -> str:
    """`auto`: the GPU if there is one."""
    import torch

    if asked == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if asked == "cuda" and not torch.cuda.is_available():
        raise Refused("--device cuda: torch sees no GPU here; leave --device out, or say cpu")
    if asked not in ("cpu", "cuda"):
        raise Refused(f"device {asked!r} is unknown; there are: auto, cpu, cuda")
    return asked
