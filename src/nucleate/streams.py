"""Every random stream derives from a seed and names, never from the order of use."""

import hashlib


def stream(seed: int, *names: object) -> int:
    """A seed of its own for whatever is named, 63 bits."""
    text = "/".join(str(name) for name in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
