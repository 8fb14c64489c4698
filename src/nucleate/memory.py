"""How much memory there is, and how much a process takes, on any system."""

import re
import sys
from pathlib import Path

import psutil

_CONTAINER = Path("/sys/fs/cgroup")  # what a Linux container may take (control groups, version 2); elsewhere missing


def total_memory() -> int:
    """Bytes of the machine, or of its container where that has less."""
    return min(psutil.virtual_memory().total, _container()[0])


def free_memory() -> int:
    """Bytes that new processes may take from the machine, or from its container where that has less."""
    return min(psutil.virtual_memory().available, _container()[1])


def memory_of(process: int | None = None) -> int:
    """Bytes that this process holds now, or another one, given by its id; 0 once that is gone."""
    try:
        return int(psutil.Process(process).memory_info().rss)
    except psutil.Error:
        return 0


def _container() -> tuple[int, int]:
    """Bytes that the container may take in all, and those still free; where nothing limits it, more than there are."""
    try:
        limit, taken = (int((_CONTAINER / f"memory.{name}").read_text("utf-8")) for name in ("max", "current"))
        cached = re.search(r"^inactive_file (\d+)", (_CONTAINER / "memory.stat").read_text("utf-8"), flags=re.MULTILINE)
    except (OSError, ValueError):  # no container; or no limit, then it says "max"
        return sys.maxsize, sys.maxsize
    return limit, limit - taken + (int(cached[1]) if cached else 0)
