"""The host's memory, open files and threads after ten thousand events and after a million, all different.

The host remembers the last 50,000 identities (`infra.host.bell.SEEN_LIMIT`), so it grows until it has seen that many;
what counts is what it has grown since.
"""

from __future__ import annotations

import threading
import time
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path

from infra.bench.child import Child
from infra.bench.figures import Bench, Figure, NotMeasuredError
from infra.bench.load import Order
from infra.bench.rig import BUCKET, device_token, download_variables
from infra.bench.throughput import BROKER_LOG, TOKEN
from infra.host.bell import SEEN_LIMIT
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stack import HostProcess
from infra.local.stores import Minio

CONNECTIONS = 64
FIRST = 10_000
STEP = 50_000
BASELINE = 2 * SEEN_LIMIT  # events, after which the host's memory of them is full
EVENTS, QUICK_EVENTS = 1_000_000, 200_000
MIX_EVENTS, QUICK_MIX_EVENTS = 400_000, 200_000
STEP_SECONDS = 120.0
CALM_SECONDS = 5.0  # until the host has noticed that all connections are closed
LOOK_SECONDS = 0.05
GROWTH_TARGET_MB = 4.0
MB = 1e6
COUNTER = "mqtt_messages_published_total"


@dataclass(frozen=True, slots=True)
class Sample:
    """What the process has, after that many events."""

    events: int
    resident_bytes: int
    files: int
    threads: int


def measure(bench: Bench) -> list[Figure]:
    """Through the sure door."""
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto", extra=BROKER_LOG))
        host = _host(bench.directory, parts, broker)
        load = parts.enter_context(Child("infra.bench.load"))

        def post(batch: int, events: int) -> None:
            _fulfil(load, _order(host, broker, batch, events))

        samples, seconds, _ = _watch(bench, host, post, bench.count(EVENTS, QUICK_EVENTS))
        return _figures(samples, seconds, "")


def measure_mix(bench: Bench) -> list[Figure]:
    """Through both doors in turn, while a file is asked for all the time."""
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto", extra=BROKER_LOG))
        minio = parts.enter_context(Minio(bench.directory / "minio"))
        s3 = minio.client()
        s3.create_bucket(Bucket=BUCKET)
        s3.put_object(Bucket=BUCKET, Key="assets/x.bin", Body=b"x")
        host = _host(bench.directory, parts, broker, download_variables(minio))
        load = parts.enter_context(Child("infra.bench.load"))
        devices = parts.enter_context(Child("infra.bench.load"))
        downloads = 0

        def mix(batch: int, events: int) -> None:
            nonlocal downloads
            asked = events // 5
            order = Order(
                _port(host), 0, [device_token(0)], 0, 8, 0.0, STEP_SECONDS, path="/assets/x.bin", events=asked
            )
            fetching = threading.Thread(target=_fulfil, args=(devices, order))
            fetching.start()
            _fulfil(load, _order(host, broker, 2 * batch, events // 2))
            _fulfil(load, _order(host, broker, 2 * batch + 1, events - events // 2, door="/events/fast"))
            fetching.join()
            downloads += asked

        # At full speed the fast door may find its queue full, and drop: that bound is part of this.
        events = bench.count(MIX_EVENTS, QUICK_MIX_EVENTS)
        samples, seconds, published = _watch(bench, host, mix, events, may_drop=True)
        return _figures(
            samples, seconds, f" at both doors and {downloads:,} downloads", f"; {events - published:,} dropped"
        )


def _host(directory: Path, parts: ExitStack, broker: Mosquitto, more: dict[str, str] | None = None) -> HostProcess:
    variables = {"MQTT_URL": broker.url, "BUCKET": BUCKET, "WEBHOOK_TOKENS": TOKEN, **(more or {})}
    return parts.enter_context(HostProcess(directory / "host", free_port(), variables))


def _port(host: HostProcess) -> int:
    return int(host.url.rpartition(":")[2])


def _order(host: HostProcess, broker: Mosquitto, batch: int, events: int, *, door: str = "/events") -> Order:
    return Order(_port(host), broker.port, [TOKEN], batch, CONNECTIONS, 0.0, STEP_SECONDS, events=events, door=door)


def _fulfil(load: Child, order: Order) -> None:
    _, failed, _ = load.ask(asdict(order), 2 * STEP_SECONDS)
    if failed:
        raise NotMeasuredError(f"{failed} requests were not answered as they should be")


def _watch(
    bench: Bench, host: HostProcess, post: Callable[[int, int], None], events: int, *, may_drop: bool = False
) -> tuple[list[Sample], float, int]:
    """Post in steps, and look at the host after each; the samples, the seconds of posting, and what was published."""
    steps = [FIRST, STEP - FIRST, *[STEP] * (events // STEP - 1)]
    idle_files = _sample(host, 0).files
    samples, seconds = [], 0.0
    for batch, (step, total) in enumerate(zip(steps, accumulate(steps), strict=True)):
        begun_at = time.monotonic()
        post(batch, step)
        seconds += time.monotonic() - begun_at
        until = time.monotonic() + CALM_SECONDS
        while (sample := _sample(host, total)).files > idle_files and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
        samples.append(sample)
        bench.say(f"{total:,} of {events:,} events: {sample.resident_bytes / MB:.1f} MB")
    until = time.monotonic() + CALM_SECONDS
    while (published := _published(host)) != events and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    if published != events and not may_drop:
        raise NotMeasuredError(f"the host published {published:,} of {events:,} events")
    return samples, seconds, published


def _sample(process: Process, events: int) -> Sample:
    """Look at a process (Linux: proc(5)). Raises `NotMeasuredError` where there is no /proc."""
    place = Path("/proc") / str(process.pid)
    if not place.exists():
        raise NotMeasuredError("there is no /proc here: run it on Linux")
    status = dict(line.split(":", 1) for line in (place / "status").read_text().splitlines())
    return Sample(
        events,
        int(status["VmRSS"].split()[0]) * 1024,
        len(list((place / "fd").iterdir())),
        int(status["Threads"]),
    )


def _published(host: HostProcess) -> int:
    with urllib.request.urlopen(f"{host.url}/metrics", timeout=CALM_SECONDS) as answer:  # noqa: S310 - our own http URL
        for line in answer.read().decode().splitlines():
            if line.startswith(f"{COUNTER} "):
                return int(float(line.split()[1]))
    raise NotMeasuredError(f"the host has no {COUNTER}")


def _figures(samples: Sequence[Sample], seconds: float, what: str, also: str = "") -> list[Figure]:
    first, last = samples[0], samples[-1]
    baseline = next(sample for sample in samples if sample.events >= BASELINE)
    since = [(sample.resident_bytes - baseline.resident_bytes) / MB for sample in samples if sample.events > BASELINE]
    after = f"after {last.events:,} events{what}"
    return [
        Figure(
            f"the host's resident memory {after}, more than after {BASELINE:,}",
            since[-1],
            "≤",
            GROWTH_TARGET_MB,
            "MB",
            f"{_megabytes(baseline)} → {_megabytes(last)}, at most {max(since):+.1f} MB between, "
            f"{last.events / seconds:,.0f} events/s; {_megabytes(first)} after {first.events:,}, "
            f"before {SEEN_LIMIT:,} identities were remembered{also}",
        ),
        *(
            Figure(
                f"its {name} {after}, more than after {first.events:,}", now - before, "=", 0, "", f"{before} → {now}"
            )
            for name, before, now in (
                ("open files", first.files, last.files),
                ("threads", first.threads, last.threads),
            )
        ),
    ]


def _megabytes(sample: Sample) -> str:
    return f"{sample.resident_bytes / MB:.1f} MB"
