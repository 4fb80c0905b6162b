"""A publish over a link whose other end has vanished without a word: how long until it is heard, over a new one.

The line forgets a connection that lay idle for a while, as a firewall does: packets vanish, and nothing is closed.
Then one message is published, and whatever was not confirmed is published again after 3 s, as MinIO does. The host has
it from its sure door. The usual client learns of it by its keep alive, ours when an acknowledgement does not come.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.mqtt.publisher import InlinePublisher
from functions.telemetry import EmfTelemetry
from infra.bench.events import ask, minio_event, post
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, seconds
from infra.bench.line import Line
from infra.bench.rig import BUCKET, TOPIC
from infra.bench.threaded import ThreadedPublisher
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import HostProcess
from infra.subscriber import Subscriber

ROUNDS = 5
KEEPALIVE_SECONDS = 20  # a third of the default, so that the peer's wait is bearable
DEADLINE_SECONDS = 5.0  # the default
RETRY_SECONDS = 3.0  # MinIO's
ALL_SECONDS = 3.0 * KEEPALIVE_SECONDS
LATE_SECONDS = 2.0
TOKEN = "bench-bench-bench-bench"  # noqa: S105 - of a host on loopback
SIDES = HOST, INLINE, THREADED = ("host", "inline", "threaded")
OURS = {HOST: "by the host", INLINE: "by the inline publisher"}
PEER = "paho's threaded client"

Publish = Callable[[str, int], Awaitable[bool]]
"""Publishes the message of that stem and number once; whether that was confirmed."""


@dataclass(frozen=True, slots=True)
class _Link:
    """One link of one side, and how to publish over it."""

    side: str
    stem: str
    line: Line
    publish: Publish
    idle_seconds: float


def measure(bench: Bench) -> list[Figure]:
    """All rounds of all sides at once, for they only wait: each has its own line, idle for another while."""
    return asyncio.run(_measure(bench))


async def _measure(bench: Bench) -> list[Figure]:
    async with AsyncExitStack() as parts:
        broker = Mosquitto(bench.directory / "mosquitto")
        parts.callback(broker.stop)
        await asyncio.to_thread(broker.start)
        subscriber = Subscriber(broker.url, [TOPIC], qos=1)
        parts.callback(subscriber.stop)
        await asyncio.to_thread(subscriber.start)
        threads = parts.enter_context(ThreadPoolExecutor(len(SIDES) * ROUNDS))
        bench.say(f"{ROUNDS} links of each side are made, keep alive {KEEPALIVE_SECONDS} s")
        links = []
        for number in range(ROUNDS):
            for side in SIDES:
                line = await parts.enter_async_context(Line(broker.port))
                stem = f"{side}-{number}"
                publish = await _side(side, bench.directory / stem, line.port, parts, threads)
                links.append(_Link(side, stem, line, publish, KEEPALIVE_SECONDS * (number + 0.5) / ROUNDS))
        bench.say("they lie idle for a while, and are used again")
        began_at = await asyncio.gather(*(_use(link) for link in links))
        await asyncio.sleep(LATE_SECONDS)
        messages = subscriber.messages
    if unused := [link.stem for link in links if link.line.connections < 2]:  # noqa: PLR2004 - the first and a new one
        raise NotMeasuredError(f"published over the link that was forgotten: {', '.join(unused)}")
    return _figures({link.stem: at for link, at in zip(links, began_at, strict=True)}, messages)


async def _use(link: _Link) -> float:
    """Publish once while all is well, and once when the link has been forgotten; when the latter began."""
    if not await link.publish(link.stem, 0):
        raise NotMeasuredError(f"{link.stem} does not publish even while all is well")
    link.line.forget()
    await asyncio.sleep(link.idle_seconds)
    began_at = time.monotonic()
    while time.monotonic() - began_at < ALL_SECONDS:
        if await link.publish(link.stem, 1):
            break
        await asyncio.sleep(RETRY_SECONDS)
    return began_at


async def _side(
    side: str, directory: Path, mqtt_port: int, parts: AsyncExitStack, threads: ThreadPoolExecutor
) -> Publish:
    """A publisher of that kind, connected to that port."""
    loop = asyncio.get_running_loop()
    if side == HOST:
        port = free_port()
        variables = {
            "MQTT_URL": f"mqtt://127.0.0.1:{mqtt_port}",
            "MQTT_KEEPALIVE_SECONDS": str(KEEPALIVE_SECONDS),
            "BUCKET": BUCKET,
            "WEBHOOK_TOKENS": TOKEN,
        }
        host = HostProcess(directory, port, variables)
        parts.callback(host.stop)
        await asyncio.to_thread(host.start)

        async def post_event(stem: str, number: int) -> bool:
            request = post("/events", port, TOKEN, minio_event(BUCKET, stem, number))
            return await ask(port, request) == HTTPStatus.OK

        return post_event
    if side == INLINE:
        inline = InlinePublisher(
            BrokerConfig(host="127.0.0.1", port=mqtt_port, keepalive_seconds=KEEPALIVE_SECONDS), EmfTelemetry()
        )
        parts.callback(inline.close)

        def publish(filename: str) -> bool:
            payload = json.dumps({"filename": filename}).encode()
            message = Message(TOPIC, payload)
            (outcome,) = inline.publish([message], time.monotonic() + DEADLINE_SECONDS)
            return outcome.success
    else:
        threaded = await loop.run_in_executor(threads, ThreadedPublisher, mqtt_port, KEEPALIVE_SECONDS)
        parts.callback(threaded.close)
        publish = threaded.publish

    async def publish_in_thread(stem: str, number: int) -> bool:
        return await loop.run_in_executor(threads, publish, _filename(stem, number))

    return publish_in_thread


def _filename(stem: str, number: int) -> str:
    """As `minio_event` names it."""
    return f"{stem}-{number:09d}.bin"


def _figures(began_at: Mapping[str, float], messages: list[Received]) -> list[Figure]:
    heard: dict[str, list[float]] = {}
    for message in messages:
        heard.setdefault(json.loads(message.payload)["filename"], []).append(message.received_at)
    stems = {side: [stem for stem in began_at if stem.startswith(side)] for side in SIDES}
    at = {stem: heard.get(_filename(stem, 1), []) for stem in began_at}
    took = {side: [at[stem][0] - began_at[stem] for stem in of_side if at[stem]] for side, of_side in stems.items()}
    copies = {side: sum(len(at[stem]) for stem in of_side) for side, of_side in stems.items()}
    if len(took[THREADED]) < ROUNDS:
        raise NotMeasuredError(f"the peer took longer than {ALL_SECONDS:g} s")
    figures = []
    for side, name in OURS.items():
        figures.append(Figure(f"{name}: messages lost", ROUNDS - len(took[side]), "=", 0, detail=f"of {ROUNDS}"))
        if len(took[side]) == ROUNDS:
            longest = f"longest {seconds(max(took[side]))} / {seconds(max(took[THREADED]))}"
            what = f"{name}: published → heard, keep alive {KEEPALIVE_SECONDS} s"
            figures.append(compared(what, PEER, took[side], took[THREADED], seconds, sense="≤", detail=longest))
        sides = f"{copies[side]}", f"{copies[THREADED]}"
        figures.append(Figure(f"{name}: copies of {ROUNDS} messages", copies[side], "≤", peer=PEER, sides=sides))
    return figures
