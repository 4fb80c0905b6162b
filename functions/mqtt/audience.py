"""Pure: when a broker's "nobody listens" is believed: after its restart we may be back before the subscribers are."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functions.mqtt.message import Message

EARLY_SECONDS = 5.0
MAX_TOPICS = 10_000

NO_MATCHING_SUBSCRIBERS = 0x10  # MQTT 5 §3.4.2.1


class Audience:
    """Which topics of one broker had a subscriber. `now` is the caller's clock, always the same one."""

    def __init__(self) -> None:
        """Nobody has been heard of."""
        self._topics: set[str] = set()
        self._until = 0.0

    def early(self, now: float) -> bool:
        """Return whether subscribers may still be on their way back."""
        return 0 < self._until - now <= EARLY_SECONDS

    def connected(self, now: float) -> None:
        """The broker has accepted us, perhaps again."""
        self._until = now + EARLY_SECONDS

    def doubts(self, message: Message, reason_code: int, now: float) -> bool:
        """Take in an acknowledgement, and return whether it says nothing: the topic had a subscriber, and may again.

        A retained message waits at the broker for later subscribers.
        """
        # Right after they connect, hosts themselves listen to cameras' topics for a moment: those that have a label.
        is_of_cameras = bool(message.label) or message.retain
        if reason_code == 0 and not (is_of_cameras and self.early(now)):
            if len(self._topics) >= MAX_TOPICS:
                self._topics.clear()
            self._topics.add(message.topic)
        is_silent = reason_code == NO_MATCHING_SUBSCRIBERS and not message.retain
        return is_silent and message.topic in self._topics and self.early(now)
