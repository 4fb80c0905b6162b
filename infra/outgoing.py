"""What a subscriber publishes besides: each with the broker's word for it; a lost connection leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

MAX_IN_FLIGHT = 20


class Outgoing(NamedTuple):
    """One message, published with QoS 1 and not retained."""

    topic: str
    payload: bytes


class Sender(Protocol):
    """Where a subscriber's messages come from. All is called in the subscriber's thread, while it listens."""

    def next(self) -> Outgoing | None:
        """Return the next one to go out now."""

    def answered(self, message: Outgoing, reason_code: int) -> None:
        """Take in the broker's acknowledgement (MQTT 5 §3.4.2.1): refused from 0x80 on; 0x10: nobody listens."""

    def lost(self, messages: list[Outgoing]) -> None:
        """Take back what has no acknowledgement: the connection is over."""


class Sending:
    """What is on its way over one connection. `publish` returns a message's packet id."""

    def __init__(self, sender: Sender | None, publish: Callable[[Outgoing], int]) -> None:
        """Nothing goes out before `go_on`; nothing at all without a `sender`."""
        self._sender = sender
        self._publish = publish
        self._on_way: dict[int, Outgoing] = {}

    @property
    def is_used(self) -> bool:
        """Whether there may ever be something to send."""
        return self._sender is not None

    def go_on(self) -> None:
        """Send what is due, as long as few are on their way."""
        if self._sender is None:
            return
        while len(self._on_way) < MAX_IN_FLIGHT and (message := self._sender.next()) is not None:
            self._on_way[self._publish(message)] = message

    def answered(self, packet_id: int, reason_code: int) -> None:
        """The broker has acknowledged a message, perhaps none of these."""
        if self._sender is not None and (message := self._on_way.pop(packet_id, None)) is not None:
            self._sender.answered(message, reason_code)

    def lost(self) -> None:
        """Give back what is on its way: the connection is over."""
        messages = list(self._on_way.values())
        self._on_way.clear()
        if self._sender is not None and messages:
            self._sender.lost(messages)
