"""A line to a local port that takes its time, counts its connections, and can be shut or fall silent."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from typing import Self

from infra.local.process import free_port

CHUNK_BYTES = 64 * 1024
CLOSE_SECONDS = 2.0


class Line:
    """Forwards 127.0.0.1:`port` to `target_port`, each chunk held back `delay_seconds` in either direction.

    `connections` counts those that were accepted. Lives in the event loop that enters it.
    """

    def __init__(self, target_port: int, *, delay_seconds: float = 0.0) -> None:
        """Nothing listens yet, but `port` is known."""
        self.port = free_port()
        self.connections = 0
        self._target_port = target_port
        self._delay_seconds = delay_seconds
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._silent: set[asyncio.StreamWriter] = set()
        self._passages: set[asyncio.Task[None] | None] = set()

    async def open(self) -> None:
        """Accept connections."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    def shut(self) -> None:
        """Reset all connections, and refuse new ones. Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()

    def forget(self) -> None:
        """Carry nothing more over the connections that there are, nor their ends: neither side is told.

        So does a firewall that has forgotten them. New ones are carried.
        """
        self._silent |= self._writers

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.shut()
        if passages := {passage for passage in self._passages if passage is not None}:
            await asyncio.wait(passages, timeout=CLOSE_SECONDS)

    async def _accept(self, from_near: asyncio.StreamReader, to_near: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            from_far, to_far = await asyncio.open_connection("127.0.0.1", self._target_port)
        except OSError:
            to_near.transport.abort()
            return
        passage, ends = asyncio.current_task(), {to_near, to_far}
        self._passages.add(passage)
        self._writers |= ends
        await asyncio.gather(self._carry(from_near, to_far), self._carry(from_far, to_near))
        self._writers -= ends
        self._silent -= ends
        self._passages.discard(passage)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held: deque[bytes] = deque()

        def deliver() -> None:
            chunk = held.popleft()
            if writer in self._silent:
                return
            if chunk:
                writer.write(chunk)
            else:
                writer.close()

        chunk = b"?"
        while chunk:
            chunk = b""
            with contextlib.suppress(OSError):
                chunk = await reader.read(CHUNK_BYTES)
            held.append(chunk)
            asyncio.get_running_loop().call_later(self._delay_seconds, deliver)
