"""Reads a request's body: bounded in size and in time."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

BODY_SECONDS = 10.0
MAX_DRAIN_BYTES, DRAIN_SECONDS = 8 << 20, 1.0
CLOSE = (b"connection", b"close")

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]


class Refusal(Exception):
    """A request that gets no further, as an RFC 9457 problem."""

    def __init__(self, status: int, title: str, *headers: tuple[bytes, bytes]) -> None:
        """`status` is the HTTP status, `title` what to tell the client."""
        self.status = status
        self.title = title
        self.headers = headers
        super().__init__(title)


class Disconnected(Exception):
    """The client went away before its request was complete."""


class Body:
    """A request's body on its way in, whether its length was announced or not."""

    def __init__(self, headers: Headers, receive: Receive, limit_bytes: int) -> None:
        """Nothing is read yet."""
        self._receive = receive
        self._limit_bytes = limit_bytes
        announced = next((value for name, value in headers if name == b"content-length"), b"")
        self._announced = int(announced.lstrip(b"0") or 0)  # Python reads no number of more than 4,300 digits
        self._held_back = any(name == b"expect" for name, _ in headers)  # until we ask for it
        self._complete = False

    async def read(self) -> bytes:
        """Return the whole body, within BODY_SECONDS. Raises `Refusal` (408, 413), `Disconnected`."""
        received = bytearray()
        try:
            async with asyncio.timeout(BODY_SECONDS):
                while max(self._announced, len(received)) <= self._limit_bytes:
                    if self._complete:
                        return bytes(received)
                    received += await self._next()
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s", CLOSE) from None
        await self.drain()
        raise Refusal(413, f"the body is larger than {self._limit_bytes} bytes", CLOSE)

    async def drain(self) -> None:
        """Throw away what is still being sent: closing on it would reset the connection before our answer is read."""
        drained = 0
        with contextlib.suppress(TimeoutError, Disconnected):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not (self._complete or self._held_back) and drained < MAX_DRAIN_BYTES:
                    drained += len(await self._next())

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        self._held_back = False
        self._complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body
