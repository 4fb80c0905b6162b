"""Moves a connection's bytes inside a call, for callers without an event loop."""

from __future__ import annotations

import select
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functions.mqtt.connection import Connection

MAX_WAITING_PACKETS = 100  # read between two calls: nobody sends a publisher more than a few


def read_waiting(connection: Connection) -> None:
    """Take in what arrived while nobody looked: above all, that the broker has closed the connection."""
    for _ in range(MAX_WAITING_PACKETS):
        if connection.closed or not _poll(connection, 0):
            return


def wait(connection: Connection, until: float) -> None:
    """Move bytes once, as soon as any can be moved, at the latest at `until`."""
    _poll(connection, max(0.0, until - time.monotonic()))


def _poll(connection: Connection, timeout_seconds: float) -> bool:
    """Return whether anything was read."""
    # poll, not select: select fails from file descriptor 1024 on.
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
    readable = False
    for _, events in poller.poll(int(timeout_seconds * 1000) + (timeout_seconds > 0)):
        readable = bool(events & ~select.POLLOUT)
        if readable:
            connection.read()
        if events & select.POLLOUT and not connection.closed:
            connection.write()
    return readable
