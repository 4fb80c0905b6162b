"""Asks JetStream for events, one request at a time: each event is handed on as it comes, not with its batch."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from infra.jetstream.connection import JetStreamError

if TYPE_CHECKING:
    from nats.aio.client import Client
    from nats.aio.msg import Msg
    from nats.aio.subscription import Subscription

    from infra.jetstream.layout import Names

EXPIRES_SECONDS = 30.0
HEARTBEAT_SECONDS = 5.0
REST_SECONDS = 1.0
SILENCE_SECONDS = 2.5 * HEARTBEAT_SECONDS

_STATUS, _WORDS = "Status", "Description"
_HEARTBEAT, _CONFLICT, _NOBODY = "100", "409", "503"
_GONE = "consumer deleted"


class Pull:
    """Belongs to one event loop and one connection."""

    def __init__(self, client: Client, names: Names, take: Callable[[Msg], object], stir: Callable[[], object]) -> None:
        """`take` is called with each event; `stir` when there may be something to do."""
        self.left = 0
        """How many events may still come for what was asked."""
        self._client = client
        self._subject = f"$JS.API.CONSUMER.MSG.NEXT.{names.stream}.{names.consumer}"
        self._take = take
        self._stir = stir
        self._number = 0
        self._inbox = ""
        self._subscription: Subscription | None = None
        self._heard_at = 0.0
        self._rests_until = 0.0
        self._lost = ""

    @property
    def may_ask(self) -> bool:
        """Whether nothing more comes for what was asked."""
        return not self.left and time.monotonic() >= self._rests_until

    async def ask(self, count: int) -> None:
        """Ask for so many events; they come as soon as there are any."""
        if self._subscription is None:
            self._inbox = self._client.new_inbox()
            self._subscription = await self._client.subscribe(f"{self._inbox}.*", cb=self._hear)
        self._number += 1
        self.left = count
        self._heard_at = time.monotonic()
        wish = {
            "batch": count,
            "expires": _nanoseconds(EXPIRES_SECONDS),
            "idle_heartbeat": _nanoseconds(HEARTBEAT_SECONDS),
        }
        await self._client.publish(self._subject, json.dumps(wish).encode(), reply=f"{self._inbox}.{self._number}")

    async def withdraw(self) -> None:
        """Have no more sent; what is on its way still comes."""
        self.left = 0
        if self._subscription is not None:
            subscription, self._subscription = self._subscription, None
            await subscription.drain()  # type: ignore[no-untyped-call]  # the library left it unannotated

    def check(self) -> None:
        """Raise `JetStreamError` where nothing will come any more."""
        if self._lost:
            raise JetStreamError(self._lost)
        if self.left and time.monotonic() - self._heard_at > SILENCE_SECONDS:
            raise JetStreamError(f"no word for {SILENCE_SECONDS:g} s, where a sign of life was due")

    async def _hear(self, message: Msg) -> None:
        self._heard_at = time.monotonic()
        headers = message.headers or {}
        status = headers.get(_STATUS)
        if status is None or message.data:
            self.left = max(0, self.left - 1)
            self._take(message)
        elif status == _NOBODY:
            self._lost = "the consumer is not there"
        elif status != _HEARTBEAT and message.subject.endswith(f".{self._number}"):
            words = headers.get(_WORDS, "")
            self.left = 0  # its time is over
            if status == _CONFLICT:  # the server moves, or has too many such requests
                self._rests_until = time.monotonic() + REST_SECONDS
                self._lost = "the consumer was deleted" if _GONE in words.lower() else ""
        self._stir()


def _nanoseconds(seconds: float) -> int:
    return int(seconds * 1_000_000_000)
