"""What the host says to systemd, which has started it: that it listens, that it is alive, that it ends (sd_notify(3)).

Anybody else's process has none of these variables, and nothing happens.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Iterator
from typing import TextIO


def is_journal(stream: TextIO) -> bool:
    """Whether what is written there goes to the journal."""
    journal = os.environ.get("JOURNAL_STREAM")
    if not journal:
        return False
    file = os.fstat(stream.fileno())
    return journal == f"{file.st_dev}:{file.st_ino}"


@contextlib.contextmanager
def supervised() -> Iterator[None]:
    """Ready from here on, and alive as long as the loop turns; at its end, stopping."""
    _tell("READY=1")
    alive = asyncio.create_task(_stay_alive(int(os.environ.get("WATCHDOG_USEC", "0")) / 1e6))
    try:
        yield
    finally:
        alive.cancel()
        _tell("STOPPING=1")


async def _stay_alive(limit_seconds: float) -> None:
    while limit_seconds > 0:
        _tell("WATCHDOG=1")
        await asyncio.sleep(limit_seconds / 3)


def _tell(what: str) -> None:
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address:
        return
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as to:
        to.settimeout(0)  # the loop waits for nobody
        to.sendto(what.encode(), f"\0{address[1:]}" if address[0] == "@" else address)
