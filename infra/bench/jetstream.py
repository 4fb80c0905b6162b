"""NATS JetStream between MinIO and the hosts: what it costs, what a second host brings, and what a killed one loses."""

from __future__ import annotations

import asyncio
import random
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Any

from functions.settings import Settings, load
from infra.bench.ear import Ear
from infra.bench.events import minio_event
from infra.bench.figures import (
    TIMES,
    Bench,
    Figure,
    NotMeasuredError,
    compared,
    compared_percentiles,
    per_second,
)
from infra.bench.latency import HEAR_SECONDS, WHAT, heard_twice, upload_of
from infra.bench.line import Line
from infra.bench.rig import BUCKET, PREFIXES, TOPIC, Rig
from infra.connect.documents import merge, wanted_rules
from infra.connect.jetstream import Streams, set_up
from infra.jetstream.connection import on_jetstream
from infra.jetstream.layout import Names
from infra.local.mosquitto import Mosquitto
from infra.local.nats_server import NatsServer
from infra.local.process import free_port
from infra.local.stack import HostProcess
from infra.local.stores import Minio

LATENCY_TARGET, HOSTS_TARGET = 1.5, 1.6
OTHER_PREFIX = "jetstream"
OTHER_TOPIC = f"{OTHER_PREFIX}/updates/assets"
PUBACK_SECONDS = 0.02
FIRST_SECONDS = 30.0
ALL_SECONDS = 180.0
LOOK_SECONDS = 0.05
NEARLY_ALL = 0.95  # the last few wait for one host alone
KILLS = 20
KILL_PAUSE_SECONDS = (0.2, 2.0)
UPLOAD_PAUSE_SECONDS = 0.05
REPEAT_SECONDS = 5.0


def _settings(server: NatsServer) -> Settings:
    return load({"NATS_URL": server.url}).settings


def _host(directory: Path, broker_url: str, server: NatsServer, **more: str) -> HostProcess:
    variables = {"MQTT_URL": broker_url, "BUCKET": BUCKET, "NATS_URL": server.url, **more}
    return HostProcess(directory, free_port(), variables)


def measure(bench: Bench) -> list[Figure]:
    """Two webhooks and two NATS targets on the same uploads; each way has a host of its own, on the same broker."""
    count = bench.count(1000, 300)
    rig = Rig(bench.directory)
    with ExitStack() as parts:
        server = parts.enter_context(NatsServer(bench.directory / "nats"))
        set_up(_settings(server), bench.say, dry_run=False)
        streams = Streams.of(_settings(server), sure_only=False, queue_directory=str(bench.directory / "nats-queue"))
        rig.minio.environment |= streams.environment()
        parts.enter_context(rig)
        rules = [{**rule, "Id": f"other-{rule['Id']}"} for rule in wanted_rules(streams.targets, PREFIXES)]
        both = merge({"QueueConfigurations": rules}, wanted_rules(rig.doors.targets, PREFIXES))
        rig.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=both)
        parts.enter_context(_host(bench.directory / "other", rig.broker.url, server, TOPIC_PREFIX=OTHER_PREFIX))
        ear = parts.enter_context(Ear(rig.broker.url, (TOPIC, OTHER_TOPIC)))
        took = heard_twice(bench, rig, ear, (TOPIC, OTHER_TOPIC), count)
    return [
        compared_percentiles(
            f"{WHAT}, through JetStream",
            "both webhook doors",
            took[OTHER_TOPIC],
            took[TOPIC],
            percent,
            sense="≤" if target else None,
            target=target,
            detail=f"{count} uploads",
        )
        for percent, target in ((50, LATENCY_TARGET), (99, None))
    ]


def measure_hosts(bench: Bench) -> list[Figure]:
    """A stream that was filled before, and a broker whose PUBACK takes 20 ms: one host, then two, round after round."""
    count, rounds = bench.count(10_000, 4_000), bench.count(5, 3)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for number in range(rounds):
        for hosts in sorted(rates, reverse=bool(number % 2)):
            bench.say(f"round {number + 1} of {rounds}: {hosts} of 2 hosts, {count} events")
            directory = bench.directory / f"{number}-{hosts}"
            rates[hosts].append(asyncio.run(_rate(directory, hosts, count)))
    return [
        compared(
            "events a second with two hosts, PUBACK after 20 ms",
            "one host",
            rates[2],
            rates[1],
            per_second,
            sense="≥",
            target=HOSTS_TARGET,
            detail=f"{count} events in the stream before",
        )
    ]


async def _rate(directory: Path, hosts: int, count: int) -> float:
    """Events a second from when each host has announced one, until nearly all are heard."""
    broker = Mosquitto(directory / "mosquitto", extra=("log_type error",))
    server = NatsServer(directory / "nats")
    line = Line(broker.port, delay_seconds=PUBACK_SECONDS / 2)
    async with line:
        with ExitStack() as parts:
            for part in (broker, server):
                await asyncio.to_thread(parts.enter_context, part)
            await asyncio.to_thread(set_up, _settings(server), lambda _: None, dry_run=False)
            await _fill(server, count)
            ear = await asyncio.to_thread(parts.enter_context, Ear(broker.url, (TOPIC,)))
            url = f"mqtt://127.0.0.1:{line.port}"
            running = [_host(directory / f"host-{number}", url, server) for number in range(hosts)]
            await asyncio.gather(*(asyncio.to_thread(parts.enter_context, host) for host in running))
            return await asyncio.to_thread(_heard_rate, ear, running, count)


async def _fill(server: NatsServer, count: int) -> None:
    async with on_jetstream(_settings(server), "bench") as js:
        subject = Names("bucketbell", "bucketbell").subject
        for begin in range(0, count, 100):
            bodies = [minio_event(BUCKET, "stream", number) for number in range(begin, begin + 100)]
            await asyncio.gather(*(js.publish(subject, body) for body in bodies))


def _heard_rate(ear: Ear, hosts: Sequence[HostProcess], count: int) -> float:
    began_at = _all_have_begun(hosts)
    times: list[float] = []
    until = time.monotonic() + ALL_SECONDS
    while len(times) < NEARLY_ALL * count:
        if (message := ear.next(HEAR_SECONDS)) is None or time.monotonic() > until:
            raise NotMeasuredError(f"only {len(times)} of {count} events were heard")
        times.append(message.received_at)
    counted = sum(one > began_at for one in times)
    if counted < count / 2:
        raise NotMeasuredError("the hosts began too far apart")
    return counted / (times[-1] - began_at)


def _all_have_begun(hosts: Sequence[HostProcess]) -> float:
    until = time.monotonic() + FIRST_SECONDS
    while not all(_delivered(host) for host in hosts):
        if time.monotonic() > until:
            raise NotMeasuredError("a host has announced nothing")
        time.sleep(LOOK_SECONDS)
    return time.monotonic()


def _delivered(host: HostProcess) -> bool:
    with urllib.request.urlopen(f"{host.url}/metrics", timeout=5) as answer:  # noqa: S310 - our own http URL
        lines = answer.read().decode().splitlines()
    return any(
        line.startswith('events_total{outcome="delivered",source="nats"}') and float(line.split()[-1]) > 0
        for line in lines
    )


def measure_kills(bench: Bench) -> list[Figure]:
    """Uploads to MinIO all the time, two hosts, and 20 times one of them is killed at random, and started again."""
    kills = bench.count(KILLS, KILLS)
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto"))
        server = parts.enter_context(NatsServer(bench.directory / "nats"))
        set_up(_settings(server), bench.say, dry_run=False)
        streams = Streams.of(_settings(server), sure_only=False, queue_directory=str(bench.directory / "queue"))
        minio = parts.enter_context(Minio(bench.directory / "minio", environment=streams.environment()))
        rules = merge({}, wanted_rules(streams.targets, PREFIXES))
        s3 = _bucket(minio, rules)
        hosts = [
            parts.enter_context(_host(bench.directory / f"host-{number}", broker.url, server)) for number in range(2)
        ]
        ear = parts.enter_context(Ear(broker.url, (TOPIC,)))
        heard: Counter[str] = Counter()
        with _uploads(s3) as keys:
            for number in range(kills):
                bench.say(f"kill {number + 1} of {kills}, {len(keys)} uploads")
                host = random.choice(hosts)
                _hear(ear, heard, random.uniform(*KILL_PAUSE_SECONDS))
                host.kill()
                _hear(ear, heard, random.uniform(*KILL_PAUSE_SECONDS))
                host.start()
        bench.say("waiting for what is still to come")
        until = time.monotonic() + ALL_SECONDS
        while any(key not in heard for key in keys) and time.monotonic() < until:
            _hear(ear, heard, 0.5)
        _hear(ear, heard, REPEAT_SECONDS)
    missing = sum(key not in heard for key in keys)
    repeats = sum(heard.values()) - len(heard)
    detail = f"of {len(keys)}; {repeats} repeats"
    return [Figure(f"uploads missing, one of two hosts killed {kills} {TIMES}", missing, "=", 0, "", detail)]


def _bucket(minio: Minio, rules: dict[str, Any]) -> Any:  # noqa: ANN401 - boto3's client
    s3 = minio.client()
    s3.create_bucket(Bucket=BUCKET)
    until = time.monotonic() + HEAR_SECONDS
    while True:
        try:
            s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=rules)
        except s3.exceptions.ClientError:  # it answers a moment before it knows its targets
            if time.monotonic() > until:
                raise
            time.sleep(LOOK_SECONDS)
        else:
            return s3


def _hear(ear: Ear, heard: Counter[str], seconds: float) -> None:
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        if (message := ear.next(left)) is not None:
            heard[upload_of(message.payload)[1]] += 1


@contextmanager
def _uploads(s3: Any) -> Iterator[list[str]]:  # noqa: ANN401 - boto3's client
    """Uploads in a thread of their own until the end; the list of those that succeeded grows meanwhile."""
    done: list[str] = []
    enough = Event()

    def put() -> None:
        while not enough.wait(UPLOAD_PAUSE_SECONDS):
            key = f"assets/kill-{len(done):05d}.bin"
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
            done.append(key)

    thread = Thread(target=put, name="uploads")
    thread.start()
    try:
        yield done
    finally:
        enough.set()
        thread.join()
