"""The broker is killed and started again, over and over, under a steady stream of uploads: none may go unheard.

The subscriber is on the broker that is killed, which keeps nothing on disk: what it confirms before the subscriber is
back is lost on the subscriber. So the host reaches it through a line that is opened again only then.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from contextlib import AsyncExitStack

from infra.bench.figures import Bench, Figure, NotMeasuredError
from infra.bench.line import Line
from infra.bench.rig import BUCKET, TOPIC, Rig, asset_keys
from infra.host.mqtt.link import DEMAND_SECONDS
from infra.subscriber import Subscriber

UPLOADS_PER_SECOND = 50
UPLOADERS = 4
QOS = (1, 2)
DOWN_SECONDS = 1.0
UP_SECONDS = 1.5
BACK_SECONDS = 15.0
HEAR_SECONDS = 90.0  # after the last outage: MinIO tries again every 3 s
LOOK_SECONDS = 0.02
# While somebody waits the host does not sit out its back-off, but tries once in DEMAND_SECONDS.
RECOVERY_TARGET_SECONDS = DEMAND_SECONDS + 2.0


def measure(bench: Bench) -> list[Figure]:
    """All kills at QoS 1, then all at QoS 2, each with parts of its own."""
    return [figure for qos in QOS for figure in asyncio.run(_measure(bench, qos))]


async def _measure(bench: Bench, qos: int) -> list[Figure]:
    kills = bench.count(20, 4)
    rig = Rig(bench.directory / f"qos-{qos}")
    line = Line(rig.broker.port)
    rig.host.environment |= {"MQTT_URL": f"mqtt://127.0.0.1:{line.port}", "MQTT_QOS": str(qos)}
    subscriber = Subscriber(rig.broker.url, [TOPIC], qos=1)
    keys: list[str] = []
    over = asyncio.Event()
    async with AsyncExitStack() as parts:
        await parts.enter_async_context(line)
        parts.callback(rig.stop)
        await asyncio.to_thread(rig.start)
        parts.callback(subscriber.stop)
        await asyncio.to_thread(subscriber.start)
        begun_at = time.monotonic()
        uploads = asyncio.create_task(_upload(rig, qos, keys, over))
        recoveries = []
        for number in range(kills):
            bench.say(f"QoS {qos}: kill {number + 1} of {kills}")
            await asyncio.sleep(UP_SECONDS)
            recoveries.append(await _outage(rig, line, subscriber))
        over.set()
        await uploads
        rate = len(keys) / (time.monotonic() - begun_at)
        bench.say("waiting for what is still in the bucket's queue")
        missing = await _missing(subscriber, keys)
    what = f"{kills} kills of the broker under uploads at QoS {qos}"
    worst = max(recoveries)
    return [
        Figure(f"uploads missing after {what}", missing, "=", 0, "", f"of {len(keys)}, {rate:.0f}/s"),
        Figure(
            f"the longest recovery of {what}, broker back → next message heard",
            worst,
            "≤",
            RECOVERY_TARGET_SECONDS,
            "s",
            f"median {sorted(recoveries)[len(recoveries) // 2]:.2f} s",
        ),
    ]


async def _upload(rig: Rig, qos: int, keys: list[str], over: asyncio.Event) -> None:
    """Put at the rate until `over`; `keys` tells what was put."""
    loop = asyncio.get_running_loop()
    begun_at, slots = loop.time(), asyncio.Semaphore(UPLOADERS)
    uploads: set[asyncio.Task[None]] = set()

    async def put(key: str) -> None:
        try:
            await asyncio.to_thread(rig.s3.put_object, Bucket=BUCKET, Key=key, Body=key.encode())
            keys.append(key)
        finally:
            slots.release()

    for number, key in enumerate(asset_keys(f"qos-{qos}", 100_000)):
        if over.is_set():
            break
        await asyncio.sleep(begun_at + number / UPLOADS_PER_SECOND - loop.time())
        await slots.acquire()
        upload = asyncio.create_task(put(key))
        uploads.add(upload)
        upload.add_done_callback(uploads.discard)
    await asyncio.gather(*uploads)


async def _outage(rig: Rig, line: Line, subscriber: Subscriber) -> float:
    """Kill the broker and start it again; how many seconds after that the next message was heard."""
    await asyncio.to_thread(rig.broker.kill)
    line.shut()
    await asyncio.sleep(DOWN_SECONDS)
    heard = len(subscriber.messages)
    await asyncio.to_thread(rig.broker.start)
    async with asyncio.timeout(BACK_SECONDS):
        while not subscriber.connected:  # noqa: ASYNC110 - a thread's flag, there is no event to await
            await asyncio.sleep(LOOK_SECONDS)
        await line.open()
        back_at = time.monotonic()
        while len(subscriber.messages) == heard:  # noqa: ASYNC110 - as above
            await asyncio.sleep(LOOK_SECONDS)
    return subscriber.messages[heard].received_at - back_at


async def _missing(subscriber: Subscriber, keys: Sequence[str]) -> int:
    """How many were not heard, once none is missing or after `HEAR_SECONDS`."""
    if not keys:
        raise NotMeasuredError("nothing was uploaded")
    until = time.monotonic() + HEAR_SECONDS
    wanted = set(keys)
    while True:
        left = wanted - {f"assets/{json.loads(message.payload)['filename']}" for message in subscriber.messages}
        if not left or time.monotonic() > until:
            return len(left)
        await asyncio.sleep(1.0)
