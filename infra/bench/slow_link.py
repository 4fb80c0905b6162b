"""600 messages at 100 a second into a broker behind a slow link: each confirmed, hardly one sent twice.

They come through the host's sure door as from a store of many nodes: each message by itself, again every 3 s for as
long as the host answers 503.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from http import HTTPStatus

from infra.bench.events import ask, minio_event, post
from infra.bench.figures import Bench, Figure
from infra.bench.line import Line
from infra.bench.rig import BUCKET, TOPIC
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import HostProcess
from infra.subscriber import Subscriber

MESSAGES = 600
MESSAGES_PER_SECOND = 100
ROUND_TRIP_SECONDS = 0.4
DEADLINE_SECONDS = 2.0
RETRY_SECONDS = 3.0  # MinIO's
ALL_SECONDS = 120.0
LATE_SECONDS = 2.0  # copies that are still on the line
TOKEN = "bench-bench-bench-bench"  # noqa: S105 - of a host on loopback
COPIES_TARGET = MESSAGES * 1.01


def measure(bench: Bench) -> list[Figure]:
    """One run of all messages."""
    bench.say(f"{MESSAGES} messages at {MESSAGES_PER_SECOND}/s, {ROUND_TRIP_SECONDS * 1e3:g} ms to the broker and back")
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Figure]:
    broker = Mosquitto(bench.directory / "mosquitto")
    line = Line(broker.port, delay_seconds=ROUND_TRIP_SECONDS / 2)
    port = free_port()
    variables = {
        "MQTT_URL": f"mqtt://127.0.0.1:{line.port}",
        "MQTT_PUBLISH_TIMEOUT_SECONDS": str(DEADLINE_SECONDS),
        "BUCKET": BUCKET,
        "WEBHOOK_TOKENS": TOKEN,
    }
    host = HostProcess(bench.directory / "host", port, variables)
    subscriber = Subscriber(broker.url, [TOPIC])
    # The host needs the line, and the line this loop, while it starts.
    await asyncio.to_thread(broker.start)
    try:
        async with line:
            await asyncio.to_thread(subscriber.start)
            await asyncio.to_thread(host.start)
            begun_at = time.monotonic()
            requests = [post("/events", port, TOKEN, minio_event(BUCKET, "slow", number)) for number in range(MESSAGES)]
            attempts = await asyncio.gather(
                *(_deliver(port, request, number / MESSAGES_PER_SECOND) for number, request in enumerate(requests))
            )
            took_seconds = time.monotonic() - begun_at
            await asyncio.sleep(LATE_SECONDS)
            copies = Counter(json.loads(message.payload)["filename"] for message in subscriber.messages)
            connections = line.connections
    finally:
        subscriber.stop()
        host.stop()
        broker.stop()
    # A message that was confirmed but not heard was not confirmed rightly.
    confirmed = min(len(copies), sum(ok for ok, _ in attempts))
    detail = f"in {took_seconds:.1f} s, with {sum(requests for _, requests in attempts)} requests"
    return [
        Figure("messages confirmed and heard over a 400 ms link, 2 s deadline", confirmed, "=", MESSAGES, "", detail),
        Figure("copies of them", copies.total(), "≤", COPIES_TARGET),
        Figure("connections to the broker for them", connections, "=", 1),
    ]


async def _deliver(port: int, request: bytes, after_seconds: float) -> tuple[bool, int]:
    """Post until the host has the broker's word; whether it got it, and how many requests that took."""
    await asyncio.sleep(after_seconds)
    until = time.monotonic() + ALL_SECONDS
    attempts = 1
    while (status := await ask(port, request)) == HTTPStatus.SERVICE_UNAVAILABLE and time.monotonic() < until:
        await asyncio.sleep(RETRY_SECONDS)
        attempts += 1
    return status == HTTPStatus.OK, attempts
