"""The second message of a config, on its device's own topic: what is due, and what became of it.

An event does not depend on it. Lambda and every host meet here.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from functions.telemetry import logger

if TYPE_CHECKING:
    from functions.events.routes import Upload
    from functions.mqtt.message import Message
    from functions.mqtt.outcome import Outcome
    from functions.settings import Settings

LIMIT = 10_000  # events: after that, a repeat can bring the second message again, with the same `id`
SAID_AGAIN_SECONDS = 60.0
MAX_REASONS = 100


class OwnTopics:
    """What is known of the second messages; one for each process."""

    def __init__(self, limit: int = LIMIT) -> None:
        """Begin empty, as after every restart."""
        self._limit = limit
        self._confirmed: dict[bytes, None] = {}
        self._on_way: set[bytes] = set()
        self._said_at: dict[str, float] = {}

    def take(self, upload: Upload) -> Message | None:
        """Return the second message if it has to go out now; its outcome is to be told by `landed`."""
        if upload.own is None or upload.identity in self._confirmed or upload.identity in self._on_way:
            return None
        self._on_way.add(upload.identity)
        return upload.own

    def landed(self, upload: Upload, outcome: Outcome) -> None:
        """Remember one that is confirmed; say why another is not, once a minute for each reason."""
        self._on_way.discard(upload.identity)
        if outcome.success:
            self._confirmed[upload.identity] = None
            if len(self._confirmed) > self._limit:
                del self._confirmed[next(iter(self._confirmed))]
            return
        now = time.monotonic()
        if now - self._said_at.get(outcome.reason, -SAID_AGAIN_SECONDS) < SAID_AGAIN_SECONDS:
            return
        if len(self._said_at) >= MAX_REASONS:
            self._said_at.clear()
        self._said_at[outcome.reason] = now
        about = {"topic": upload.own.topic if upload.own else "", "id": upload.identity.hex(), "reason": outcome.reason}
        logger.warning("a config was not announced on its device's own topic", extra={"notification": about})


def warn_of_missing_broadcasts(settings: Settings) -> None:
    """Say at the start that configs are not where devices usually listen."""
    if settings.device_topics == "only":
        words = "configs are announced on devices' own topics only: a device that does not subscribe to its own, misses"
        logger.warning(f"{words} them", extra={"variable": "DEVICE_TOPICS", "value": "only"})
