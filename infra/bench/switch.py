"""Other broker settings are stored under a stream of events: none is lost, and none goes to the old broker any more.

They come through the host's sure door, each by itself, again every 3 s for as long as the host answers 503.
"""

from __future__ import annotations

import asyncio
import base64
import http.client
import json
import secrets
import time
from dataclasses import dataclass
from http import HTTPStatus

from infra.bench.events import ask, minio_event, post
from infra.bench.figures import Bench, Figure, NotMeasuredError
from infra.bench.rig import BUCKET, TOPIC
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import HostProcess
from infra.subscriber import Subscriber

EVENTS_PER_SECOND = 200
EVERY_SECONDS = 1.0  # a change
RETRY_SECONDS = 3.0  # MinIO's
ATTEMPTS = 10
LATE_SECONDS = 1.0
REQUEST_SECONDS = 10.0
TOKEN = ADMIN = "bench-bench-bench-bench"  # noqa: S105 - of a host on loopback
CONFIG = "/api/v1/integrations/mqtt/config"
STEM = "switch"


@dataclass(frozen=True, slots=True)
class _Change:
    """A stored change: asked for, answered, and to which of the two brokers (`time.monotonic`)."""

    asked_at: float
    answered_at: float
    to: int


def measure(bench: Bench) -> list[Figure]:
    """One stream, and as many changes to and fro."""
    changes = bench.count(20, 5)
    bench.say(f"{changes} changes of the broker under {EVENTS_PER_SECOND} events/s")
    return asyncio.run(_measure(bench, changes))


async def _measure(bench: Bench, count: int) -> list[Figure]:
    brokers = [Mosquitto(bench.directory / name) for name in ("one", "other")]
    subscribers = [Subscriber(broker.url, [TOPIC], qos=1) for broker in brokers]
    port = free_port()
    variables = {
        "MQTT_URL": brokers[0].url,
        "BUCKET": BUCKET,
        "WEBHOOK_TOKENS": TOKEN,
        "ADMIN_TOKENS": ADMIN,
        "DATABASE_URL": f"sqlite:///{bench.directory / 'settings.db'}",
        "ENCRYPTION_KEYS": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    }
    host = HostProcess(bench.directory / "host", port, variables)
    parts: list[Mosquitto | Subscriber | HostProcess] = [*brokers, *subscribers, host]
    try:
        for part in parts:
            part.start()
        posted_at: list[float] = []
        over = asyncio.Event()
        stream = asyncio.create_task(_stream(port, posted_at, over))
        changes = [await _change(port, brokers, (number + 1) % 2) for number in range(count)]
        await asyncio.sleep(EVERY_SECONDS)
        over.set()
        confirmed = await stream
        await asyncio.sleep(LATE_SECONDS)
    finally:
        for part in reversed(parts):
            part.stop()
    heard = [
        {_number(message.payload): message.received_at for message in subscriber.messages} for subscriber in subscribers
    ]
    wrong = 0
    for change, after in zip(changes, [*changes[1:], None], strict=True):
        until = after.asked_at if after else time.monotonic()
        later = [number for number, at in enumerate(posted_at) if change.answered_at <= at < until]
        wrong += sum(heard[1 - change.to].get(number, until) < until for number in later)
    took_seconds = [change.answered_at - change.asked_at for change in changes]
    detail = f"of {len(posted_at)}, {confirmed} confirmed, {count} changes"
    return [
        Figure(
            f"events unheard, broker changed under {EVENTS_PER_SECOND}/s",
            len(set(range(len(posted_at))) - heard[0].keys() - heard[1].keys()),
            "=",
            0,
            "",
            detail,
        ),
        Figure("events posted after the answer and heard at the old broker", wrong, "=", 0),
        Figure("the longest answer to a change of the broker", max(took_seconds) * 1e3, unit="ms"),
    ]


async def _stream(port: int, posted_at: list[float], over: asyncio.Event) -> int:
    """Post at the rate until `over`; how many were confirmed in the end."""
    begun_at = time.monotonic()
    deliveries: list[asyncio.Task[bool]] = []
    while not over.is_set():
        number = len(posted_at)
        await asyncio.sleep(begun_at + number / EVENTS_PER_SECOND - time.monotonic())
        posted_at.append(time.monotonic())
        deliveries.append(asyncio.create_task(_deliver(port, number)))
    return sum(await asyncio.gather(*deliveries))


async def _deliver(port: int, number: int) -> bool:
    request = post("/events", port, TOKEN, minio_event(BUCKET, STEM, number))
    for _ in range(ATTEMPTS):
        if (status := await ask(port, request)) != HTTPStatus.SERVICE_UNAVAILABLE:
            return status == HTTPStatus.OK
        await asyncio.sleep(RETRY_SECONDS)
    return False


async def _change(port: int, brokers: list[Mosquitto], to: int) -> _Change:
    """Let the events flow for a while, then store the other broker."""
    await asyncio.sleep(EVERY_SECONDS)
    asked_at = time.monotonic()
    await asyncio.to_thread(_put, port, {"broker_host": "127.0.0.1", "broker_port": brokers[to].port})
    return _Change(asked_at, time.monotonic(), to)


def _put(port: int, settings: dict[str, object]) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
    try:
        headers = {"Authorization": f"Bearer {ADMIN}", "Content-Type": "application/json"}
        connection.request("PUT", CONFIG, json.dumps({"topic_prefix": "bench", **settings}), headers)
        answer = connection.getresponse()
        if answer.status != HTTPStatus.OK:
            raise NotMeasuredError(f"the change was answered {answer.status}: {answer.read()!r}")
    finally:
        connection.close()


def _number(payload: bytes) -> int:
    return int(json.loads(payload)["filename"].removeprefix(f"{STEM}-").removesuffix(".bin"))
