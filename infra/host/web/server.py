"""The host's HTTP server: listens, bounds the number of connections, and ends when everybody has an answer."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from functions.telemetry import logger
from infra.host.web.allowance import Allowance
from infra.host.web.protocol import HttpProtocol
from infra.host.web.tls import Certificate, TlsProtocol

if TYPE_CHECKING:
    from infra.host.web.door import Site

BACKLOG = 2048
GRACE_SECONDS = 2.0  # for what is being answered at the end
WARN_SECONDS = 60.0
MAX_UNREAD_BYTES = 32 << 20  # of all answers that their clients leave to us
MAX_UNFINISHED_BYTES = 16 << 20  # of what is on its way: headers, which are not if they come in one read; signed bodies


class Server:
    """Belongs to the running loop."""

    def __init__(self, site: Site, *, max_connections: int | None = None) -> None:
        """Nobody is heard before `start`."""
        self.site = site
        self.loop = asyncio.get_running_loop()
        self.connections: set[HttpProtocol] = set()
        self.unread = Allowance[HttpProtocol](MAX_UNREAD_BYTES)
        self.unfinished = Allowance[HttpProtocol](MAX_UNFINISHED_BYTES)
        self.leaving = False
        self._max_connections = max_connections
        self._warned_at = -WARN_SECONDS
        self._listener: asyncio.Server | None = None

    def takes(self, connection: HttpProtocol) -> bool:
        """Whether there is room for one more: the broker and the store need descriptors, too."""
        if self._max_connections is not None and len(self.connections) >= self._max_connections:
            if time.monotonic() - self._warned_at > WARN_SECONDS:
                self._warned_at = time.monotonic()
                logger.warning("too many connections: new ones are closed", extra={"limit": self._max_connections})
            return False
        self.connections.add(connection)
        return True

    def forget(self, connection: HttpProtocol) -> None:
        """It is over."""
        self.connections.discard(connection)
        self.unread.release(connection)
        self.unfinished.release(connection)

    async def start(self, host: str, port: int, certificate: Certificate | None = None) -> None:
        """Listen; with a certificate for TLS, and nothing else. Raises OSError."""

        def protocol() -> asyncio.Protocol:
            http = HttpProtocol(self)
            return http if certificate is None else TlsProtocol(certificate.context(), http)

        self._listener = await self.loop.create_server(protocol, host, port, backlog=BACKLOG)

    async def stop(self) -> None:
        """Listen no more, and wait for the answers that are due, `GRACE_SECONDS` at the most. Idempotent."""
        self.leaving = True
        if self._listener is not None:
            self._listener.close()
        for connection in tuple(self.connections):
            connection.leave()
        deadline = self.loop.time() + GRACE_SECONDS
        while self.connections and self.loop.time() < deadline:  # noqa: ASYNC110 - once in a process's life
            await asyncio.sleep(0.01)
        for end in (HttpProtocol.give_up, HttpProtocol.abort):
            for connection in tuple(self.connections):
                end(connection)
            await asyncio.sleep(0)  # for them to hear of it
