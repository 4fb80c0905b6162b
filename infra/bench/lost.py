"""Uploads while the broker, the host, or host and MinIO together are down: none may go unheard.

The subscriber is on the broker that is killed, and whatever a broker passes on before a subscriber is back is lost on
the subscriber. That is not ours to measure, so the host reaches the broker through a line that is opened again only
when the subscriber is back.
"""

from __future__ import annotations

import asyncio
import json
from collections import defaultdict
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

from infra.bench.figures import Bench, Figure, NotMeasuredError
from infra.bench.line import Line
from infra.bench.rig import BUCKET, TOPIC, Rig, asset_keys
from infra.subscriber import Subscriber

UPLOADS, UPLOADS_FROZEN = 60, 40
UPLOADS_SECONDS = 6.0  # they are spread over the outage
BEFORE_SECONDS = 0.5  # uploads that go before it, so that some are on their way when it begins
BROKER_DOWN_SECONDS = 6.0
HOST_DOWN_SECONDS = 4.0
HEAR_SECONDS = 60.0  # after the outage: MinIO tries again every 3 s
REPEAT_SECONDS = 7.0  # two of MinIO's rounds: what is going to ring twice has done so
BACK_SECONDS = 15.0
LOOK_SECONDS = 0.05


def measure(bench: Bench) -> list[Figure]:
    """The three outages, one after the other, each with parts of its own."""
    return [
        figure
        for number, (what, count, outage) in enumerate(
            (
                ("the broker is killed for 6 s", UPLOADS, _kill_broker),
                ("the host is killed", UPLOADS, _kill_host),
                ("the host is frozen and MinIO killed", UPLOADS_FROZEN, _freeze_host_kill_minio),
            )
        )
        for figure in asyncio.run(_measure(bench, bench.directory / str(number), what, count, outage))
    ]


class _Scene:
    """The parts, and what a scenario does with them. Everything that blocks runs in a thread: the line must go on."""

    def __init__(self, directory: Path) -> None:
        # MQTT_URL must name the line's port, and the line the broker's: so the rig comes first.
        self.rig = Rig(directory)
        self.line = Line(self.rig.broker.port)
        self.rig.host.environment["MQTT_URL"] = f"mqtt://127.0.0.1:{self.line.port}"
        # At QoS 2 paho hands a message over one round trip later, with a broker that is being killed.
        self.subscriber = Subscriber(self.rig.broker.url, [TOPIC], qos=1)

    async def start(self, parts: AsyncExitStack) -> None:
        await parts.enter_async_context(self.line)
        parts.callback(self.rig.stop)
        await asyncio.to_thread(self.rig.start)
        parts.callback(self.subscriber.stop)
        await asyncio.to_thread(self.subscriber.start)

    async def upload(self, keys: list[str], seconds: float) -> None:
        """Put all, evenly spread over `seconds`."""
        for key in keys:
            await asyncio.to_thread(self.rig.s3.put_object, Bucket=BUCKET, Key=key, Body=key.encode())
            await asyncio.sleep(seconds / len(keys))

    async def heard(self, wanted: Callable[[dict[str, list[str]]], bool], seconds: float) -> dict[str, list[str]]:
        """The ids heard for each key, in order, once they are as `wanted` or after `seconds`."""
        until = asyncio.get_running_loop().time() + seconds
        while True:
            ids: dict[str, list[str]] = defaultdict(list)
            for message in self.subscriber.messages:
                filename = json.loads(message.payload)["filename"]
                ids[f"assets/{filename}"].append(dict(message.user_properties).get("id", ""))
            if wanted(ids) or asyncio.get_running_loop().time() >= until:
                return ids
            await asyncio.sleep(LOOK_SECONDS)


async def _kill_broker(scene: _Scene, keys: list[str]) -> None:
    uploads = asyncio.create_task(scene.upload(keys, UPLOADS_SECONDS))
    await asyncio.sleep(BEFORE_SECONDS)
    scene.line.shut()
    await asyncio.to_thread(scene.rig.broker.kill)
    await asyncio.sleep(BROKER_DOWN_SECONDS)
    await asyncio.to_thread(scene.rig.broker.start)
    async with asyncio.timeout(BACK_SECONDS):
        while not scene.subscriber.connected:  # noqa: ASYNC110 - a thread's flag, there is no event to await
            await asyncio.sleep(LOOK_SECONDS)
    await scene.line.open()
    await uploads


async def _kill_host(scene: _Scene, keys: list[str]) -> None:
    uploads = asyncio.create_task(scene.upload(keys, UPLOADS_SECONDS))
    await asyncio.sleep(BEFORE_SECONDS)
    await asyncio.to_thread(scene.rig.host.kill)
    await asyncio.sleep(HOST_DOWN_SECONDS)
    await asyncio.to_thread(scene.rig.host.start)
    await uploads


async def _freeze_host_kill_minio(scene: _Scene, keys: list[str]) -> None:
    scene.rig.host.freeze()
    await scene.upload(keys, 0.0)
    await asyncio.to_thread(scene.rig.minio.kill)
    await asyncio.to_thread(scene.rig.minio.start)
    scene.rig.host.thaw()


async def _measure(
    bench: Bench, directory: Path, what: str, count: int, outage: Callable[[_Scene, list[str]], Awaitable[None]]
) -> list[Figure]:
    bench.say(f"{count} uploads while {what}")
    scene = _Scene(directory)
    async with AsyncExitStack() as parts:
        await scene.start(parts)
        (first,) = asset_keys("before", 1)
        await scene.upload([first], 0.0)
        if first not in await scene.heard(lambda ids: first in ids, BACK_SECONDS):
            raise NotMeasuredError("nothing rings even while all is well")
        keys = asset_keys("outage", count)
        await outage(scene, keys)
        bench.say("waiting for what is still on its way")
        await scene.heard(lambda ids: all(key in ids for key in keys), HEAR_SECONDS)
        ids = await scene.heard(lambda _: False, REPEAT_SECONDS)
    missing = [key for key in keys if key not in ids]
    repeats = sum(len(ids[key]) - 1 for key in keys if key in ids)
    renamed = [key for key in keys if len(set(ids.get(key, ()))) > 1 or "" in ids.get(key, ())]
    detail = f"of {count}; {repeats} repeats"
    return [
        Figure(f"uploads missing, while {what}", len(missing), "=", 0, "", detail),
        Figure(f"repeats with another id than the first, while {what}", len(renamed), "=", 0, "", f"of {repeats}"),
    ]
