"""Posts events, or gets a file, as fast as it is answered: plain sockets on uvloop in a process of its own.

While it posts, a subscriber that throws everything away is connected, as cheap as can be: the broker has somebody to
send to.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import cast

import uvloop

from infra.bench.child import obey
from infra.bench.events import get, minio_event, post
from infra.bench.rig import BUCKET, TOPIC

CONNECT_SECONDS = 5.0
ANSWERED_SECONDS = 10.0  # what is under way when the time is over
LOOK_SECONDS = 0.005
NUMBERS = 2_000_000  # an order's events are numbered from a multiple of this


@dataclass(frozen=True, slots=True)
class Order:
    """What to do: `connections` to `port`, `warm_seconds` unmeasured, then `seconds`; or `events`, within `seconds`.

    Each connection presents one of `tokens`, taken in turn.

    With `path` it is asked for, and answered by a redirect. Without, events are posted to `door`, and a broker is at
    `mqtt_port`; those of one `batch` have keys of their own. The sure door's answer has to hold `outcome`.
    """

    port: int
    mqtt_port: int
    tokens: Sequence[str]
    batch: int
    connections: int
    warm_seconds: float = 0.0
    seconds: float = 0.0
    path: str = ""
    events: int = 0
    door: str = "/events"
    outcome: str = "delivered"


class _Drain(asyncio.Protocol):
    """Subscribes to the topic at QoS 0 and reads on (MQTT 5 §3.1, §3.8). `subscribed` is done with the SUBACK."""

    def __init__(self) -> None:
        self.subscribed = asyncio.get_running_loop().create_future()
        self._answers = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        subscription = b"\x00\x01\x00" + len(TOPIC).to_bytes(2, "big") + TOPIC.encode() + b"\x00"
        writer = cast("asyncio.WriteTransport", transport)  # uvloop's is one in all but name
        writer.write(b"\x10\x0d\x00\x04MQTT\x05\x02\x00\x00\x00\x00\x00")
        writer.write(b"\x82" + len(subscription).to_bytes(1, "big") + subscription)

    def data_received(self, data: bytes) -> None:
        if not self.subscribed.done():
            self._answers += data
            connack_bytes = 2 + self._answers[1] if len(self._answers) > 1 else 2
            if self._answers[connack_bytes : connack_bytes + 1] == b"\x90":
                self.subscribed.set_result(None)


class _Client(asyncio.Protocol):
    """One keep-alive connection: the next event as soon as the last is answered."""

    def __init__(self, run: _Run, token: str) -> None:
        self._run = run
        self._token = token
        self._received = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)
        self._ask()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator or len(body) < _content_length(head):
            return
        self._received = b""
        self._run.answered(head, body)
        self._ask()

    def _ask(self) -> None:
        if self._transport is not None and not self._run.over:
            self._transport.write(self._run.request(self._token))

    def close(self) -> None:
        if self._transport is not None:
            self._transport.abort()


def _content_length(head: bytes) -> int:
    return int(head.lower().partition(b"content-length: ")[2].partition(b"\r")[0])


class _Run:
    """What the connections of one order share."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self._number = order.batch * NUMBERS
        self._last = self._number + order.events
        self._gets = {token: get(order.path, order.port, token) for token in order.tokens}
        self._good_head = (
            b"HTTP/1.1 307" if order.path else b"HTTP/1.1 202" if order.door != "/events" else b"HTTP/1.1 200"
        )
        self._good_body = order.outcome.encode() if self._good_head.endswith(b"200") else b""
        self.over = False
        self.good = self.bad = self.waiting = 0

    def request(self, token: str) -> bytes:
        order = self._order
        self.waiting += 1
        self._number += 1
        if self._number == self._last:
            self.over = True
        if order.path:
            return self._gets[token]
        return post(order.door, order.port, token, minio_event(BUCKET, "load", self._number))

    def answered(self, head: bytes, body: bytes) -> None:
        self.waiting -= 1
        if head.startswith(self._good_head) and self._good_body in body:
            self.good += 1
        else:
            self.bad += 1

    async def until(self, done: Callable[[], bool], seconds: float) -> None:
        """Return when `done`, or after `seconds`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not done():  # noqa: ASYNC110 - an event would be set a hundred thousand times
                    await asyncio.sleep(LOOK_SECONDS)


async def fulfil(order: Order) -> tuple[float, int, int]:
    """Good answers a second, how many requests had none or another, and how many had one, unmeasured ones too."""
    loop = asyncio.get_running_loop()
    run = _Run(order)
    drain: asyncio.WriteTransport | None = None
    async with asyncio.timeout(CONNECT_SECONDS):
        if not order.path:
            drain, protocol = await loop.create_connection(_Drain, "127.0.0.1", order.mqtt_port)
            await protocol.subscribed
        begun_at, before = time.perf_counter(), 0
        clients = [
            (await loop.create_connection(partial(_Client, run, token), "127.0.0.1", order.port))[1]
            for token in islice(cycle(order.tokens), order.connections)
        ]
    if order.events:
        await run.until(lambda: run.over and not run.waiting, order.seconds)
    else:
        await asyncio.sleep(order.warm_seconds)
        begun_at, before = time.perf_counter(), run.good
        await asyncio.sleep(order.seconds)
    rate = (run.good - before) / (time.perf_counter() - begun_at)
    run.over = True
    await run.until(lambda: not run.waiting, ANSWERED_SECONDS)
    for client in clients:
        client.close()
    if drain is not None:
        drain.abort()
    return rate, run.bad + run.waiting, run.good


if __name__ == "__main__":
    obey(lambda order: uvloop.run(fulfil(Order(**order))))
