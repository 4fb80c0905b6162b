"""The kernel's own word on how long the host's slices are."""

from __future__ import annotations

import os
import platform
import subprocess
import sys

ASK = """
import os
from pathlib import Path
from infra.host.slices import ask_for_short_slices
os.nice(3)
print(ask_for_short_slices(), os.sched_getscheduler(0) == os.SCHED_OTHER, os.getpriority(os.PRIO_PROCESS, 0))
print(Path("/proc/self/sched").read_text() if Path("/proc/self/sched").exists() else "")
"""


def _ask() -> tuple[str, str]:
    """The answer of a process of its own, and what the kernel then says of it."""
    done = subprocess.run([sys.executable, "-c", ASK], capture_output=True, text=True, check=True, timeout=60)
    answer, _, sched = done.stdout.partition("\n")
    return answer, sched


def test_short_slices_change_neither_policy_nor_niceness() -> None:
    """Nothing is taken from anybody: only how finely the same share is cut."""
    known = sys.platform == "linux" and platform.machine() in {"x86_64", "aarch64", "riscv64"}
    assert _ask()[0].split() == [str(known), "True", str(min(os.getpriority(os.PRIO_PROCESS, 0) + 3, 19))]


def test_the_kernel_cuts_the_slices_as_asked() -> None:
    """From Linux 6.12 on, where `/proc/self/sched` tells; others take the request and leave things as they are."""
    version = tuple(int(part) for part in platform.release().split("-")[0].split(".")[:2])
    told = [line.split()[-1] for line in _ask()[1].splitlines() if line.startswith("se.slice")]
    assert version < (6, 12) or told in ([], ["100000"])
