"""A TCP proxy on loopback that delays, swallows or cuts what passes through it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Collection
from dataclasses import dataclass
from typing import Self

from infra.local.process import free_port
from tests.fakes import LoopThread

CHUNK_BYTES = 64 * 1024

# SO_LINGER on, 0 s: closing sends a reset, as a crashed peer's kernel would.
_RESET = struct.pack("ii", 1, 0)


# Chunks with the loop time at which each is due; an empty one is the end.
_Line = asyncio.Queue[tuple[float, bytes]]


@dataclass(eq=False, slots=True)
class _Passage:
    """One client's connection and ours to the target; `gap` once bytes of it were swallowed."""

    client: asyncio.StreamWriter
    target: asyncio.StreamWriter | None = None
    gap: bool = False
    bytes_up: int = 0


class TcpProxy:
    """Forwards 127.0.0.1:`port` to the target; its knobs may be turned from any thread while it runs.

    `delay_seconds` holds back every chunk that long in each direction, as a long line does: throughput stays.
    `cut_after_bytes` resets a connection once that many bytes have gone up (client to target) on it.
    `swallowed` are the MQTT packet types of the target's that never arrive, where it speaks MQTT without TLS.
    `connections` counts all that were accepted, `bytes_up` and `bytes_down` what was passed on.
    """

    def __init__(self, target_host: str, target_port: int, *, delay_seconds: float = 0.0) -> None:
        self.delay_seconds = delay_seconds
        self.swallowed: Collection[int] = ()
        self.cut_after_bytes: int | None = None
        self.connections = 0
        self.bytes_up = 0
        self.bytes_down = 0
        self.port = free_port()
        self._target = (target_host, target_port)
        self._passing = asyncio.Event()
        self._passing.set()
        self._passages: set[_Passage] = set()
        self._server: asyncio.Server | None = None
        self._thread = LoopThread("tcp-proxy")
        try:
            self._thread.call(self._listen())
        except BaseException:
            self._thread.stop()
            raise

    @property
    def url(self) -> str:
        """`mqtt://127.0.0.1:port`."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def open_connections(self) -> int:
        """How many clients are connected now."""
        return len(self._passages)

    @property
    def refuse_new(self) -> bool:
        """Whether new connections are refused, as by a port that nobody listens on."""
        return self._server is None

    @refuse_new.setter
    def refuse_new(self, refuse: bool) -> None:
        self._thread.call(self._close_listener() if refuse else self._listen())

    def blackhole(self) -> None:
        """Swallows everything, ends of connections included; connections stay open, new ones are accepted."""
        self._thread.loop.call_soon_threadsafe(self._passing.clear)

    def heal(self) -> None:
        """Lets traffic pass again. A connection that lost bytes stays deaf: TCP has no way to skip them."""
        self._thread.loop.call_soon_threadsafe(self._passing.set)

    def cut(self) -> None:
        """Resets all connections, on both sides."""
        self._thread.call(self._cut())

    def stop(self) -> None:
        """Resets all connections and stops listening. Idempotent."""
        if not self._thread.loop.is_closed():
            self._thread.call(self._close_listener())
            self._thread.call(self._cut())
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _listen(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _close_listener(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None

    async def _cut(self) -> None:
        for passage in list(self._passages):
            _reset(passage)

    async def _accept(self, from_client: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        self.connections += 1
        passage = _Passage(to_client)
        self._passages.add(passage)
        try:
            if not self._passing.is_set():
                # Nobody hears of this connection, now or later.
                passage.gap = True
                while await from_client.read(CHUNK_BYTES):
                    pass
                return
            from_target, passage.target = await asyncio.open_connection(*self._target)
            up: _Line = asyncio.Queue()
            down: _Line = asyncio.Queue()
            async with asyncio.TaskGroup() as pumps:
                pumps.create_task(self._collect(from_client, up))
                pumps.create_task(self._deliver(passage, up, passage.target, up=True))
                pumps.create_task(self._collect(from_target, down, _Sieve(self)))
                pumps.create_task(self._deliver(passage, down, to_client, up=False))
        except* OSError:
            pass
        finally:
            _reset(passage)
            self._passages.discard(passage)

    async def _collect(self, reader: asyncio.StreamReader, line: _Line, sieve: _Sieve | None = None) -> None:
        loop = asyncio.get_running_loop()
        due = 0.0
        chunk = b"?"
        while chunk:
            chunk = await reader.read(CHUNK_BYTES)
            # Never before the chunk in front of it, should the delay have been shortened.
            due = max(due, loop.time() + self.delay_seconds)
            kept = sieve.pass_on(chunk) if sieve is not None and chunk else chunk
            if kept or not chunk:
                line.put_nowait((due, kept))

    async def _deliver(self, passage: _Passage, line: _Line, writer: asyncio.StreamWriter, *, up: bool) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, chunk = await line.get()
            await asyncio.sleep(due - loop.time())
            if passage.gap or not self._passing.is_set():
                passage.gap = True
                if chunk:
                    continue
                # Once the line is back, the other side learns that its peer has gone: its kernel says so.
                await self._passing.wait()
                _reset(passage)
                return
            if not chunk:
                with contextlib.suppress(OSError):
                    writer.write_eof()
                return
            cut = False
            if up and self.cut_after_bytes is not None:
                chunk = chunk[: max(0, self.cut_after_bytes - passage.bytes_up)]
                cut = passage.bytes_up + len(chunk) >= self.cut_after_bytes
            writer.write(chunk)
            if up:
                passage.bytes_up += len(chunk)
                self.bytes_up += len(chunk)
            else:
                self.bytes_down += len(chunk)
            await writer.drain()
            if cut:
                _reset(passage)
                return


class _Sieve:
    """Takes the proxy's `swallowed` packets out of one stream of MQTT (MQTT 5 §2.1), however it is cut into chunks.

    It holds nothing back: the type is a packet's first byte. So any other stream passes as it is.
    """

    def __init__(self, proxy: TcpProxy) -> None:
        self._proxy = proxy
        self._keeps = True
        self._header_bytes = 0
        self._length = 0
        self._left_bytes = 0

    def pass_on(self, chunk: bytes) -> bytes:
        kept = bytearray()
        at = 0
        while at < len(chunk):
            begun_at = at
            if self._left_bytes:
                at = min(len(chunk), at + self._left_bytes)
                self._left_bytes -= at - begun_at
            else:
                self._take_header(chunk[at])
                at += 1
            if self._keeps:
                kept += chunk[begun_at:at]
        return bytes(kept)

    def _take_header(self, byte: int) -> None:
        if self._header_bytes == 0:
            self._keeps = byte >> 4 not in self._proxy.swallowed
            self._length = 0
        else:
            self._length += (byte & 0x7F) << 7 * (self._header_bytes - 1)
        if self._header_bytes and not byte & 0x80:
            self._left_bytes, self._header_bytes = self._length, 0
        else:
            self._header_bytes += 1


def _reset(passage: _Passage) -> None:
    for side in (passage.client, passage.target):
        if side is None or side.is_closing():
            continue
        raw = side.get_extra_info("socket")
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        side.transport.abort()
