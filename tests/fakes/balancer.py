"""A TCP balancer on loopback: several servers behind one address, each connection to the next of them that answers."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Self

from infra.local.process import free_port
from tests.fakes import LoopThread

CHUNK_BYTES = 64 * 1024


class Balancer:
    """Takes connections at 127.0.0.1:`port` for `target_ports`, in turn, past those that refuse.

    `connections` counts, by target port, those that were passed on.
    """

    def __init__(self, target_ports: Sequence[int], port: int = 0) -> None:
        """Listens at once."""
        self.port = port or free_port()
        self.connections = dict.fromkeys(target_ports, 0)
        self._targets = list(target_ports)
        self._lines: set[asyncio.StreamWriter] = set()
        self._thread = LoopThread("balancer")
        try:
            self._server = self._thread.call(asyncio.start_server(self._accept, "127.0.0.1", self.port))
        except BaseException:
            self._thread.stop()
            raise

    def stop(self) -> None:
        """Refuses, and ends all connections. Idempotent."""
        if not self._thread.loop.is_closed():
            self._thread.call(self._close())
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _close(self) -> None:
        self._server.close()
        for line in self._lines:
            line.transport.abort()

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        for _ in range(len(self._targets)):
            self._targets.append(target := self._targets.pop(0))
            try:
                from_target, to_target = await asyncio.open_connection("127.0.0.1", target)
            except OSError:
                continue
            self.connections[target] += 1
            lines = {to_client, to_target}
            self._lines |= lines
            ways = {
                asyncio.create_task(_carry(from_client, to_target)),
                asyncio.create_task(_carry(from_target, to_client)),
            }
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            self._lines -= lines
            to_target.close()
            break
        to_client.close()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while chunk := await reader.read(CHUNK_BYTES):
            writer.write(chunk)
            await writer.drain()
