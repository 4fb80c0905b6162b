"""What hosts on one consumer tell each other of each event: that one has taken it, and that it was announced.

JetStream gives each message to one host. But a store publishes every event twice, for speed and for safety, and the two
may come to two hosts at once. So the first to see an event writes that down before it announces it, and the other comes
back later. None of that may hold an event up for long: where the bucket does not answer, the event rings.
"""

from __future__ import annotations

import asyncio
import os
import time
from enum import Enum, auto
from typing import TYPE_CHECKING, Any, TypeVar

from nats.js import errors as js_errors

from functions.telemetry import logger
from infra.jetstream.connection import CALL_SECONDS, explain

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from nats.aio.client import Client
    from nats.js.kv import KeyValue

    from infra.jetstream.layout import Names

ASK_SECONDS = 0.1
STEPS = 2
"""In which that passes: where this process itself was busy, an answer that has come meanwhile is read in between."""
WRITE_SECONDS = 1.0  # nobody waits for that
AWAY_SECONDS = 5.0  # without an answer, so long nothing is asked
ANNOUNCED = b"announced"


T = TypeVar("T")


class EventStanding(Enum):
    """What is known of an event before it is announced."""

    FREE = auto()
    TAKEN = auto()
    """Another host has it in hand."""
    ANNOUNCED = auto()


class AnnouncedEvents:
    """Belongs to one event loop. Never raises."""

    def __init__(self) -> None:
        """Nothing is asked before `use`."""
        self._own = f"taken by {os.urandom(8).hex()}".encode()
        self._bucket: KeyValue | None = None
        self._away_until = 0.0
        self._is_away = False

    async def use(self, client: Client, names: Names) -> None:
        """Ask on this connection from now on."""
        try:
            self._bucket = await client.jetstream(timeout=CALL_SECONDS).key_value(names.bucket)
        except Exception as error:  # noqa: BLE001 - without it, all goes on
            self._bucket = None
            self._go_away(error)

    async def look(self, identity: bytes, *, is_first: bool) -> EventStanding:
        """What is known of it. `is_first`: whether its message comes for the first time; then this host takes it."""
        if self._bucket is None or time.monotonic() < self._away_until:
            return EventStanding.FREE
        key = identity.hex()
        try:
            if is_first:
                try:
                    await _within(ASK_SECONDS, self._bucket.create(key, self._own))
                except js_errors.KeyWrongLastSequenceError:
                    pass
                else:
                    self._come_back()
                    return EventStanding.FREE
            value = (await _within(ASK_SECONDS, self._bucket.get(key))).value
        except js_errors.KeyNotFoundError:
            value = None
        except Exception as error:  # noqa: BLE001 - whatever it is, the event rings
            self._go_away(error)
            return EventStanding.FREE
        self._come_back()
        if value == ANNOUNCED:
            return EventStanding.ANNOUNCED
        # Who took it may have died: a message that comes again does not wait for that host.
        return EventStanding.FREE if value in (None, self._own) or not is_first else EventStanding.TAKEN

    async def announced(self, identity: bytes) -> None:
        """Write down that it was announced."""
        if self._bucket is None or time.monotonic() < self._away_until:
            return
        try:
            await _within(WRITE_SECONDS, self._bucket.put(identity.hex(), ANNOUNCED))
        except Exception as error:  # noqa: BLE001 - it may ring twice then
            self._go_away(error)

    def _go_away(self, error: Exception) -> None:
        self._away_until = time.monotonic() + AWAY_SECONDS
        if not self._is_away:
            self._is_away = True
            reason = "there is no such bucket" if isinstance(error, js_errors.BucketNotFoundError) else explain(error)
            words = "other hosts' announcements cannot be asked for: events may ring twice"
            logger.warning(words, extra={"reason": reason})

    def _come_back(self) -> None:
        if self._is_away:
            self._is_away = False
            logger.info("other hosts' announcements can be asked for again")


async def _within(seconds: float, call: Coroutine[Any, Any, T]) -> T:
    """What it returns or raises; TimeoutError after so long."""
    task = asyncio.create_task(call)
    try:
        for _ in range(STEPS):
            if (await asyncio.wait({task}, timeout=seconds / STEPS))[0]:
                return task.result()
        raise TimeoutError
    finally:
        task.cancel()
