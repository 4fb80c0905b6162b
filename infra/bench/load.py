"""Posts events, or gets a file, as fast as it is answered: plain sockets on uvloop in a process of its own.

While it posts, a subscriber that throws everything away is connected, as cheap as can be: the broker has somebody to
send to.
"""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import cast

import uvloop

from infra.bench.child import obey
from infra.bench.events import get, minio_event, post
from infra.bench.rig import BUCKET, TOPIC

CONNECT_SECONDS = 5.0
NUMBERS = 10_000_000  # an order's events are numbered from a multiple of this


@dataclass(frozen=True, slots=True)
class Order:
    """What to do: `connections` to `port`, `warm_seconds` unmeasured, then `seconds`; `round_number` makes keys new.

    With `path` it is asked for, and answered by a redirect; without, events are posted, and a broker is at `mqtt_port`.
    """

    port: int
    mqtt_port: int
    token: str
    round_number: int
    connections: int
    warm_seconds: float
    seconds: float
    path: str = ""


class _Drain(asyncio.Protocol):
    """Subscribes to the topic at QoS 0 and reads on (MQTT 5 §3.1, §3.8)."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        subscription = b"\x00\x01\x00" + len(TOPIC).to_bytes(2, "big") + TOPIC.encode() + b"\x00"
        writer = cast("asyncio.WriteTransport", transport)  # uvloop's is one in all but name
        writer.write(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
        writer.write(b"\x82" + len(subscription).to_bytes(1, "big") + subscription)


class _Client(asyncio.Protocol):
    """One keep-alive connection: the next event as soon as the last is answered."""

    def __init__(self, run: _Run) -> None:
        self._run = run
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._transport.write(self._run.request())

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        self._received = b""
        self._run.answered(head)
        if self._transport is not None and not self._run.over:
            self._transport.write(self._run.request())

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])


class _Run:
    """What the connections of one order share."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._number = order.round_number * NUMBERS
        self._get = get(order.path, order.port, order.token)
        self._good_head = b"HTTP/1.1 307" if order.path else b"HTTP/1.1 200"
        self.over = False
        self.good = self.bad = 0

    def request(self) -> bytes:
        order = self._order
        if order.path:
            return self._get
        self._number += 1
        return post("/events", order.port, order.token, minio_event(BUCKET, "load", self._number))

    def answered(self, head: bytes) -> None:
        if head.startswith(self._good_head):
            self.good += 1
        else:
            self.bad += 1


async def fulfil(order: Order) -> tuple[float, int]:
    """Good answers a second, and how many others came."""
    loop = asyncio.get_running_loop()
    run = _Run(order)
    drain: asyncio.WriteTransport | None = None
    async with asyncio.timeout(CONNECT_SECONDS):
        if not order.path:
            drain, _ = await loop.create_connection(_Drain, "127.0.0.1", order.mqtt_port)
        clients = [
            (await loop.create_connection(lambda: _Client(run), "127.0.0.1", order.port))[1]
            for _ in range(order.connections)
        ]
    await asyncio.sleep(order.warm_seconds)
    begun_at, before = time.perf_counter(), run.good
    await asyncio.sleep(order.seconds)
    rate = (run.good - before) / (time.perf_counter() - begun_at)
    run.over = True
    await asyncio.sleep(order.warm_seconds)  # what is under way is answered
    for client in clients:
        client.close()
    if drain is not None:
        drain.abort()
    return rate, run.bad


if __name__ == "__main__":
    obey(lambda order: uvloop.run(fulfil(Order(**order))))
