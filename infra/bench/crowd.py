"""Thousands of subscribers in one process, as cheap as can be.

`python -m infra.bench.crowd <mqtt port> <topics> [<user> <password>]`. Each is a connection of its own that confirms
what it hears at QoS 1 (MQTT 5 §3.1, §3.3, §3.4, §3.8, §3.10). Spaces separate topics, and a `+` in one stands for the
MAC address of each.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import uvloop

from infra.bench.child import obey
from infra.bench.rig import mac_address

CONNECT_SECONDS = 5.0
ORDER_SECONDS = 120.0  # Artemis writes each subscription to disk
LOOK_SECONDS = 0.002
AT_ONCE = 50  # connects; Mosquitto lets 100 wait

_CONNACK, _PUBLISH, _SUBACK, _UNSUBACK = 0x20, 0x30, 0x90, 0xB0
_LENGTH_BYTES = 2  # of a packet's length on the wire: none here is longer than 16 KiB


@dataclass(slots=True)
class Arrivals:
    """How many have heard the latest message, and when the first and the last of them did (`time.monotonic`)."""

    count: int = 0
    first_at: float = 0.0
    last_at: float = 0.0


class CrowdSubscriber(asyncio.Protocol):
    """One connection. `settled` counts the answers to what it asked: CONNECT, SUBSCRIBE, UNSUBSCRIBE."""

    def __init__(self, crowd: Crowd) -> None:
        """Connects by itself."""
        self.settled = 0
        self._crowd = crowd
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Say CONNECT."""
        self._transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one in all but name
        self._transport.write(self._crowd.hello)

    def ask(self, packet: bytes) -> None:
        """Send SUBSCRIBE or UNSUBSCRIBE."""
        if self._transport is not None:
            self._transport.write(packet)

    def data_received(self, data: bytes) -> None:
        """Take all packets that are complete."""
        buffer = self._buffer + data if self._buffer else data
        while len(buffer) > _LENGTH_BYTES:
            head = 1 + _LENGTH_BYTES if buffer[1] & 0x80 else _LENGTH_BYTES
            length = (buffer[1] & 0x7F) + (buffer[2] << 7) if buffer[1] & 0x80 else buffer[1]
            if len(buffer) < head + length:
                break
            self._take(buffer[0], buffer[head : head + length])
            buffer = buffer[head + length :]
        self._buffer = buffer

    def _take(self, kind: int, packet: bytes) -> None:
        if kind & 0xF0 == _PUBLISH:
            self._crowd.hear()
            at = 2 + int.from_bytes(packet[:2], "big")
            self.ask(b"\x40\x02" + packet[at : at + 2])
        elif kind in (_CONNACK, _SUBACK, _UNSUBACK):
            self.settled += 1


class Crowd:
    """All of them. Belongs to one event loop."""

    def __init__(self, port: int, topics: str, user: str = "", password: str = "") -> None:
        """Nobody is connected yet. Without a `user` they are anonymous."""
        flags, account = (0xC2, _text(user) + _text(password)) if user else (0x02, b"")
        self.hello = _packet(0x10, b"\x00\x04MQTT\x05" + bytes((flags,)) + b"\x00\x00\x00\x00\x00" + account)
        self._topics = topics
        self._port = port
        self._all: list[CrowdSubscriber] = []
        self._subscribed = 0
        self._heard = Arrivals()

    def hear(self) -> None:
        """One more has it."""
        heard = self._heard
        heard.count += 1
        heard.last_at = time.monotonic()
        heard.first_at = heard.first_at or heard.last_at

    async def connect(self, count: int) -> int:
        """Connect that many; how many there are then."""
        loop = asyncio.get_running_loop()
        while len(self._all) < count:
            fresh = [
                (await loop.create_connection(lambda: CrowdSubscriber(self), "127.0.0.1", self._port))[1]
                for _ in range(min(AT_ONCE, count - len(self._all)))
            ]
            self._all += fresh
            await _until(lambda: all(one.settled for one in self._all[-AT_ONCE:]), CONNECT_SECONDS)
        gc.freeze()
        return sum(one.settled > 0 for one in self._all)

    async def subscribe(self, count: int) -> int:
        """Have the first `count` of them subscribed, and no others; how many are."""
        kind, options = (0x82, b"\x01") if count > self._subscribed else (0xA2, b"")
        first = min(count, self._subscribed)
        asked = self._all[first : max(count, self._subscribed)]
        before = [one.settled for one in asked]
        for at in range(0, len(asked), AT_ONCE):
            for number, one in enumerate(asked[at : at + AT_ONCE], first + at):
                topics = self._topics.replace("+", mac_address(number)).split()
                one.ask(_packet(kind, b"\x00\x01\x00" + b"".join(_text(topic) + options for topic in topics)))
            await asyncio.sleep(0)
        await _until(
            lambda: all(one.settled > settled for one, settled in zip(asked, before, strict=True)), ORDER_SECONDS
        )
        answered = sum(one.settled > settled for one, settled in zip(asked, before, strict=True))
        self._subscribed += answered if count > self._subscribed else -answered
        return self._subscribed

    async def heard(self, seconds: float, hearers: int | None = None) -> tuple[int, float, float]:
        """How often it was heard, once by that many (None: all) or after `seconds`; the first's and the last's time."""
        wanted = self._subscribed if hearers is None else hearers
        await _until(lambda: self._heard.count >= wanted, seconds)
        heard, self._heard = self._heard, Arrivals()
        return heard.count, heard.first_at, heard.last_at


def _packet(kind: int, body: bytes) -> bytes:
    return bytes((kind, len(body))) + body


def _text(text: str) -> bytes:
    return len(text.encode()).to_bytes(2, "big") + text.encode()


async def _until(done: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:  # noqa: ASYNC110 - an event would be set five thousand times
        await asyncio.sleep(LOOK_SECONDS)


def serve(port: int, topics: str, *account: str) -> None:
    """Obey `["connect", n]`, `["subscribe", n]` and `["heard", seconds, hearers or nothing]` until input ends."""
    loop = uvloop.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    crowd = Crowd(port, topics, *account)

    async def do(name: str, value: float, hearers: int | None = None) -> object:
        if name == "heard":
            return await crowd.heard(value, hearers)
        return await (crowd.connect if name == "connect" else crowd.subscribe)(int(value))

    obey(lambda order: asyncio.run_coroutine_threadsafe(do(*order), loop).result())


if __name__ == "__main__":
    serve(int(sys.argv[1]), *sys.argv[2:])
