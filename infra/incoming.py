"""What a subscriber hears, gathered into batches: each is acknowledged once it was taken."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

MAX_BATCH = 1000
"""Also what the broker may send without an acknowledgement, if it likes so much; Mosquitto's own limit is 20."""
MAX_HELD = 2 * MAX_BATCH
"""So many are held while they are refused. Beyond that nothing is read, so that the broker has to keep the rest."""
REFUSED_BATCH_SECONDS = 1.0
GATHER_SECONDS = (0.005, 0.01, 0.02, 0.04)


@dataclass(frozen=True, slots=True)
class Received:
    """A message as it arrived; properties are empty under MQTT 3.1.1.

    `received_at` is `time.monotonic()`, `received_wall` is `time.time()`, both in seconds.
    """

    topic: str
    payload: bytes
    qos: int
    retain: bool
    user_properties: tuple[tuple[str, str], ...]
    content_type: str | None
    received_at: float
    received_wall: float


class Batches:
    """Belongs to the subscriber's thread."""

    def __init__(
        self, take: Callable[[list[Received]], bool], read: Callable[[], object], ack: Callable[[int, int], object]
    ) -> None:
        """`read` takes in what is there, and adds it; `ack` is paho's: of a message id, with its QoS."""
        self._take, self._read, self._ack = take, read, ack
        self._held: list[tuple[int, Received]] = []
        self._due_at = 0.0

    def __len__(self) -> int:
        return len(self._held)

    @property
    def is_full(self) -> bool:
        """Whether nothing more is to be read."""
        return len(self._held) >= MAX_HELD

    def add(self, mid: int, received: Received) -> None:
        """Hold one."""
        self._held.append((mid, received))

    def clear(self) -> None:
        """Forget them: the broker sends again what it has no acknowledgement for."""
        self._held.clear()

    def hand_over(self) -> None:
        """Take in what else is there or comes soon, hand over the oldest, and acknowledge that."""
        if not self._held or time.monotonic() < self._due_at:
            return
        self._gather()
        batch = self._held[:MAX_BATCH]
        if not self._take([received for _, received in batch]):
            self._due_at = time.monotonic() + REFUSED_BATCH_SECONDS
            return
        for mid, received in batch:
            self._ack(mid, received.qos)
        del self._held[: len(batch)]

    def _gather(self) -> None:
        """Take in what is there, and wait while more comes: a batch costs far more than a message in it."""
        before = 0
        for pause_seconds in GATHER_SECONDS:
            now = -1
            while now < len(self._held) < MAX_BATCH:
                now = len(self._held)
                self._read()  # of what goes wrong in it the next turn hears, too
            if not before < len(self._held) < MAX_BATCH:
                return
            before = len(self._held)
            time.sleep(pause_seconds)
