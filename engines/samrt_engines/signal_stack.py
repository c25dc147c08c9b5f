"""The stack on which a thread's signal handlers run, kept what it was while a library does as it pleases."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

_RUNNING = 1  # SS_ONSTACK: a handler is at work on it


class _Stack(ctypes.Structure):
    """Linux' ``stack_t``."""

    _fields_ = (("address", ctypes.c_void_p), ("flags", ctypes.c_int), ("size_bytes", ctypes.c_size_t))


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Give the calling thread back the signal stack it had before the block or the function. Does nothing but on Linux.

    OpenVINO's CPU plugin (2026.4) gives the thread that loads it a stack of its own and, when it goes, the one it found.
    Where several go in another order than they came, the thread is left with a stack that is freed, and the next Ctrl-C
    ends the process.
    """
    if sys.platform != "linux":
        yield
        return
    libc, before = ctypes.CDLL(None), _Stack()
    libc.sigaltstack(None, ctypes.byref(before))
    try:
        yield
    finally:
        if not before.flags & _RUNNING:
            libc.sigaltstack(ctypes.byref(before), None)
