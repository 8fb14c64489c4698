"""Work of strangers that must end: a chat template that comes with a model may loop for ever."""

import ctypes
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """`TimeoutError` inside, in whichever thread this is, once so much time is gone. It comes between two steps of
    Python: a single call into a library is waited for."""
    this, lock, ended, late = threading.get_ident(), threading.Lock(), False, False

    def end() -> None:
        nonlocal late
        with lock:
            if not ended:
                late = True
                _raise_in(this, TimeoutError)

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        with lock:
            ended = True
            if late:
                _raise_in(this, None)  # it may not have come yet, and must not come later
        timer.cancel()
    if late:
        raise TimeoutError


def _raise_in(thread: int, error: type[BaseException] | None) -> None:
    thrown = None if error is None else ctypes.py_object(error)
    ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread), thrown)
