"""A folder in use by one process at a time. The lock is the operating system's: it is gone when the process dies."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout, lock_descriptor, unlock_descriptor

from nucleate.refusal import Refused

LOCK = ".lock"  # the file stays when the lock is given back: removed, two processes could each hold one of that name


@contextmanager
def locked(folder: Path, user: str = "process") -> Iterator[None]:
    """Holds the folder; refused at once where another `user` does. Children forked meanwhile do not hold it."""
    lock = FileLock(folder / LOCK, blocking=False, preserve_lock_file=True)
    try:
        held = lock.acquire()
    except Timeout:
        raise Refused(f"{folder} is in use by another {user}; wait for it, or name another folder") from None
    except OSError as error:
        raise Refused(f"{folder} cannot be locked ({error.strerror or error}); name another folder") from None
    with held:
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the folder. Nothing is written; False where there is no lock, or none we may read."""
    file = folder / LOCK
    try:
        with open(file, "r+b" if os.access(file, os.W_OK) else "rb") as stream:  # network disks ask for write access
            free = lock_descriptor(stream.fileno(), blocking=False)
            if free:
                unlock_descriptor(stream.fileno())
            return not free
    except OSError:
        return False
