"""Keeps unused memory small: garbage of the start, and what the C library keeps for later."""

from __future__ import annotations

import ctypes
import gc
import platform

_M_ARENA_MAX = -8  # mallopt(3)


def share_one_heap() -> None:
    """Have all threads share one heap of the C library. Call before there is a second thread.

    glibc gives most threads a heap of their own, so that they need not wait for each other; here they wait for
    Python's own lock anyway, and what one has freed no other can use.
    """
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)


def settle() -> None:
    """Call when much was imported: drop the garbage, and do not look at the rest again and again."""
    gc.collect()
    gc.freeze()
    if platform.libc_ver()[0] == "glibc":
        ctypes.CDLL(None).malloc_trim(0)
