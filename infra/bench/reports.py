"""Devices' reports: how many a second the host stores, and what that does to the bell.

SQLite, one host, MQTT 5 at QoS 1, 5,000 devices that report in turn, acknowledged once it is stored. Mosquitto has the
limits of our container composition (`infra/deploy/container/mosquitto.conf`). One process publishes the reports.
"""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import cast

import uvloop

from functions.mqtt.message import Message
from functions.mqtt.packets import publish_packet
from infra.bench.child import Child, obey
from infra.bench.ear import Ear
from infra.bench.figures import Bench, Figure, compared_percentiles
from infra.bench.rig import TOPIC, Rig, download_variables, mac_address
from infra.bench.sweep import bell_of, metric, until
from infra.bench.throughput import BROKER_LOG

DEVICES = 5_000
STORED_TARGET, GROWTH_TARGET_MB, P50_TARGET = 5_000, 4.0, 1.15
FIRST, COUNT, QUICK_COUNT = 20_000, 200_000, 60_000
PER_SECOND = 2_000
ROUNDS, QUICK_ROUNDS = 20, 8
ROUND_EVENTS = 75
WARM_EVENTS = 100
SETTLE_SECONDS = 0.5
WINDOW = 1_000  # reports that the broker has not acknowledged
TICK_SECONDS = 0.001
CONNECT_SECONDS = 5.0
RUN_SECONDS = 180.0
HEARD, UNHEARD = "iotsupport", "elsewhere"
STATES = ("downloading", "downloaded", "installing", "installed")
STORED = "device_reports_total"
MB = 1e6


@dataclass(frozen=True, slots=True)
class Burst:
    """Publish `count` reports from number `first`, `per_second` (0: as fast as the broker takes them)."""

    port: int
    prefix: str
    first: int
    count: int
    per_second: float = 0.0


def measure(bench: Bench) -> list[Figure]:
    """Stored as fast as they come; then the bell, with 2,000 reports a second for the host, and for nobody, in turn."""
    with _parts(bench.directory) as (rig, load, ear):
        figures = _stored(bench, rig, load)
        return [*figures, _bell(bench, rig, load, ear)]


@contextmanager
def _parts(directory: Path) -> Iterator[tuple[Rig, Child, Ear]]:
    with ExitStack() as parts:
        rig = parts.enter_context(fleet_rig(directory))
        load = parts.enter_context(Child("infra.bench.reports"))
        ear = parts.enter_context(Ear(rig.broker.url, (TOPIC,)))
        yield rig, load, ear


@contextmanager
def fleet_rig(directory: Path, **variables: str) -> Iterator[Rig]:
    """A started rig whose host hears reports, and to whom a report makes a device known; `variables` are the host's."""
    rig = Rig(directory)
    rig.broker.receive_maximum = 1_000
    rig.broker.extra = ("max_queued_messages 1000000", *BROKER_LOG)
    rig.host.environment |= download_variables(rig.minio) | variables
    rig.host.environment |= {
        "DATABASE_URL": f"sqlite:///{directory / 'bucketbell.db'}",
        "FLEET_ACCEPT_UNKNOWN": "on",
    }
    with rig:
        until(lambda: "listening to devices' reports" in rig.host.log_text(), CONNECT_SECONDS)
        yield rig


def _stored(bench: Bench, rig: Rig, load: Child) -> list[Figure]:
    count = bench.count(COUNT, QUICK_COUNT)
    bench.say(f"{FIRST:,} reports, then {count:,} more")
    _publish(rig, load, 0, FIRST)
    before_mb = _resident_mb(rig)
    began_at = time.monotonic()
    _publish(rig, load, FIRST, count)
    seconds = time.monotonic() - began_at
    growth = _resident_mb(rig) - before_mb
    detail = f"{count:,} in {seconds:.1f} s, published as fast as the broker took them"
    what = f"the host's resident memory after {FIRST + count:,} reports, more than after {FIRST:,}"
    return [
        Figure("reports stored a second", count / seconds, "≥", STORED_TARGET, "/s", detail),
        Figure(what, growth, "≤", GROWTH_TARGET_MB, "MB", f"{before_mb:.1f} MB then"),
    ]


def _publish(rig: Rig, load: Child, first: int, count: int) -> None:
    """Publish, and return once all of it is stored."""
    load.ask(asdict(Burst(rig.broker.port, HEARD, first, count)), RUN_SECONDS)
    until(lambda: metric(rig.host, STORED) >= first + count, RUN_SECONDS)


def _bell(bench: Bench, rig: Rig, load: Child, ear: Ear) -> Figure:
    took: dict[str, list[float]] = {HEARD: [], UNHEARD: []}
    rounds = bench.count(ROUNDS, QUICK_ROUNDS)
    stored, stored_seconds = 0.0, 0.0
    with bell_of(rig.host, ear, rig.doors.token or "") as bell:
        for _ in range(WARM_EVENTS):
            bell()
        for number in range(rounds):
            bench.say(f"events while reports are stored, and while nobody hears them: round {number + 1} of {rounds}")
            for prefix in took if number % 2 else reversed(took):
                with _reporting(rig, load, prefix, number * PER_SECOND * 100):
                    before, began_at = metric(rig.host, STORED), time.monotonic()
                    took[prefix] += [bell() for _ in range(ROUND_EVENTS)]
                    if prefix == HEARD:
                        stored += metric(rig.host, STORED) - before
                        stored_seconds += time.monotonic() - began_at
    return compared_percentiles(
        f"an event posted while the host stores {PER_SECOND:,} reports a second → heard",
        "the same reports on topics that nobody hears",
        took[HEARD],
        took[UNHEARD],
        50,
        rounds=rounds,
        sense="≤",
        target=P50_TARGET,
        detail=f"{len(took[HEARD])} events each; {stored / stored_seconds:,.0f} reports stored a second",
    )


@contextmanager
def _reporting(rig: Rig, load: Child, prefix: str, first: int) -> Iterator[None]:
    """Have reports published, until this is left."""
    stop = threading.Event()

    def publish() -> None:
        number = first
        while not stop.is_set():
            load.ask(asdict(Burst(rig.broker.port, prefix, number, PER_SECOND // 2, PER_SECOND)), RUN_SECONDS)
            number += PER_SECOND // 2

    thread = threading.Thread(target=publish, name="reports")
    thread.start()
    try:
        time.sleep(SETTLE_SECONDS)
        yield
    finally:
        stop.set()
        thread.join()
    time.sleep(SETTLE_SECONDS)  # what is still to be stored belongs to nobody's turn


def _resident_mb(rig: Rig) -> float:
    """The host's (Linux: proc(5))."""
    status = Path("/proc", str(rig.host.pid), "status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / MB


class _Reporter(asyncio.Protocol):
    """One connection for all devices (MQTT 3.1.1), which counts what the broker acknowledged (§3.4: 4 bytes each)."""

    def __init__(self) -> None:
        self.connected = asyncio.get_running_loop().create_future()
        self.acknowledged = 0
        self._bytes = 0
        self.transport: asyncio.WriteTransport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast("asyncio.WriteTransport", transport)  # uvloop's is one in all but name
        self.transport.write(b"\x10\x0c\x00\x04MQTT\x04\x02\x00\x00\x00\x00")

    def data_received(self, data: bytes) -> None:
        self._bytes += len(data)
        self.acknowledged = self._bytes // 4 - 1  # CONNACK has four bytes, too
        if not self.connected.done():
            self.connected.set_result(None)


async def fulfil(burst: Burst) -> int:
    """How many the broker has acknowledged: all."""
    loop = asyncio.get_running_loop()
    async with asyncio.timeout(CONNECT_SECONDS):
        _, reporter = await loop.create_connection(_Reporter, "127.0.0.1", burst.port)
        await reporter.connected
    began_at, sent = time.monotonic(), 0
    async with asyncio.timeout(RUN_SECONDS):
        while reporter.acknowledged < burst.count:
            due = burst.count
            if burst.per_second:
                due = min(due, round((time.monotonic() - began_at) * burst.per_second))
            until_number = min(due, reporter.acknowledged + WINDOW)
            if until_number > sent:
                reporter.transport.write(
                    b"".join(_report(burst.prefix, burst.first + one) for one in range(sent, until_number))
                )
                sent = until_number
            await asyncio.sleep(TICK_SECONDS if burst.per_second else 0)
    reporter.transport.write(b"\xe0\x00")
    reporter.transport.close()
    return reporter.acknowledged


def _report(prefix: str, number: int) -> bytes:
    """The packet: another state than that which the same device reported last."""
    turn, device = divmod(number, DEVICES)
    document = {"filename": "esp32/fw.bin", "etag": f"{turn // len(STATES):032x}", "state": STATES[turn % len(STATES)]}
    message = Message(f"{prefix}/devices/{mac_address(device)}/report", json.dumps(document).encode())
    return publish_packet(message, number % 65_535 + 1, 1, properties=False)


if __name__ == "__main__":
    obey(lambda order: uvloop.run(fulfil(Burst(**order))))
