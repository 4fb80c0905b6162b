"""Asks Linux for short slices of the processor: a process that sleeps between events is then let in sooner."""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SLICE_SECONDS = 100e-6
"""The shortest that the kernel grants. The host needs less for an event, so that it loses nothing."""

# struct sched_attr of sched_setattr(2): size, policy, flags, nice, priority, runtime, deadline, period.
_ATTRIBUTES = struct.Struct("=IIQiIQQQ")
_SCHED_OTHER = 0
_CALL_NUMBERS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}  # C libraries have no name for it yet


def ask_for_short_slices() -> bool:
    """Ask for the calling thread, without any privilege; whether the kernel took it. Elsewhere nothing happens.

    Linux 6.12 and later let in first whose slice ends first (EEVDF): beside a busy MinIO an event waits less for a
    processor. Earlier kernels take the request and ignore it. The share of the processor does not change.
    """
    number = _CALL_NUMBERS.get(platform.machine())
    if sys.platform != "linux" or number is None:
        return False
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    runtime_nanoseconds = round(SLICE_SECONDS * 1e9)
    attributes = _ATTRIBUTES.pack(_ATTRIBUTES.size, _SCHED_OTHER, 0, nice, 0, runtime_nanoseconds, 0, 0)
    if os.sched_getscheduler(0) != os.SCHED_OTHER:  # somebody has decided otherwise
        return False
    return bool(ctypes.CDLL(None).syscall(ctypes.c_long(number), 0, attributes, 0) == 0)
