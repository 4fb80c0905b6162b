"""The sweep: what rings twice beside the doors, what a bucket of 100,000 objects costs, and how late a lone upload is.

The pause between two sweeps is 2 s where nothing else is said. It never adapts: a lone upload is found as quickly after
ten quiet minutes as after ten quiet seconds.
"""

from __future__ import annotations

import http.client
import itertools
import json
import math
import random
import sys
import threading
import time
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from infra.bench.ear import Ear
from infra.bench.events import minio_event
from infra.bench.fast_store import CALLS, PAGE
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared_percentiles, percentile
from infra.bench.latency import upload
from infra.bench.rig import BUCKET, TOPIC, Rig, device_token, download_variables
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stack import HostProcess
from infra.local.stores import Minio

PAUSE_SECONDS = 2
OBJECTS = 100_000
PREFIXES = 2  # configs/ and assets/; the one that is empty takes one LIST as well
MEMORY_TARGET_MB, P50_TARGET, LONE_TARGET_SECONDS = 40.0, 1.15, 1.5
MB = 1e6
TOKEN = "the-token-of-the-sweep-bench-0123"  # noqa: S105 - of a host on loopback, for a minute

UPLOADS, QUICK_UPLOADS = 20_000, 3_200  # whole sixteens
CONTENTS = (b"a", b"b", b"b", b"a")  # of a key: another, the same again, and the first again
OVERWRITTEN = len(CONTENTS)
UPLOAD_THREADS = 4
PER_SECOND = 100.0
QUIET_SECONDS = 20.0  # the grace, and a few sweeps

ROUNDS, QUICK_ROUNDS = 8, 4
ROUND_EVENTS = 150
EVENT_PAUSE_SECONDS = 0.01
WARM_EVENTS = 100

LONE, QUICK_LONE = 60, 15
HEAR_SECONDS = 15.0
SWEEP_LIMIT_SECONDS = 300.0
ANSWER_SECONDS = 10.0
LOOK_SECONDS = 0.05


def measure(bench: Bench) -> list[Figure]:
    """The three runs, one after the other."""
    return [*_twice(bench), *_unchanged(bench), *_lone(bench)]


def _twice(bench: Bench) -> list[Figure]:
    """Uploads at a steady rate through both doors and under the sweep: each message beyond one for each upload."""
    count = bench.count(UPLOADS, QUICK_UPLOADS)
    rig = Rig(bench.directory / "twice")
    rig.host.environment |= download_variables(rig.minio) | {"SWEEP_SECONDS": str(PAUSE_SECONDS)}
    heard: Counter[str] = Counter()
    with (
        rig,
        Ear(rig.broker.url, (TOPIC,)) as ear,
        _counting(ear, heard),
        ThreadPoolExecutor(UPLOAD_THREADS) as threads,
    ):
        begun_at = time.monotonic()

        def put(thread: int) -> None:
            # The uploads of a key are one thread's: side by side a store may keep either. Half of the threads overwrite
            # a key within a moment, the others when they have been through all.
            keys = count // UPLOAD_THREADS // OVERWRITTEN
            for turn, number in enumerate(range(thread, count, UPLOAD_THREADS)):
                at, time_of_key = divmod(turn, OVERWRITTEN) if thread % 2 else reversed(divmod(turn, keys))
                time.sleep(max(0.0, begun_at + number / PER_SECOND - time.monotonic()))
                rig.s3.put_object(Bucket=BUCKET, Key=f"assets/{thread}-{at:05d}.bin", Body=CONTENTS[time_of_key])

        bench.say(f"{count:,} uploads, each key {OVERWRITTEN} times")
        for done in [threads.submit(put, thread) for thread in range(UPLOAD_THREADS)]:
            done.result()
        seconds = time.monotonic() - begun_at
        until(lambda: heard.total() >= count, HEAR_SECONDS)
        time.sleep(QUIET_SECONDS)
        sweeps, rang = (metric(rig.host, name) for name in ("sweep_seconds_count", "sweep_rang_total"))
    twice = sum(max(0, times - OVERWRITTEN) for times in heard.values())
    missing = count - heard.total() + twice
    detail = f"each key {OVERWRITTEN} times, in {seconds:.0f} s; {sweeps:.0f} sweeps, which rang {rang:.0f}"
    what = f"of {count:,} uploads with doors and sweep"
    return [
        Figure(f"messages rung twice, {what}", twice, "=", 0, "", detail),
        Figure(f"messages missing, {what}", missing, "=", 0, ""),
    ]


def _unchanged(bench: Bench) -> list[Figure]:
    """Two hosts take events in turn: one that sweeps 100,000 unchanged objects meanwhile, and one that never does.

    The objects are listed by the program that lists and does nothing else (`infra.bench.fast_store`). The host that
    sweeps is stopped (SIGSTOP) while the other has its turn.
    """
    directory = bench.directory / "unchanged"
    took: dict[str, list[float]] = {"off": [], "on": []}
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(directory / "mosquitto"))
        stores = {name: parts.enter_context(_fast_store(directory / f"store-{name}")) for name in took}
        sweeps = {"SWEEP_SECONDS": "1", "SWEEP_STATE_FILE": str(directory / "sweep.db")}
        hosts = {
            name: parts.enter_context(_host(directory / f"host-{name}", broker, stores[name], more))
            for name, more in (("off", {}), ("on", sweeps))
        }
        ear = parts.enter_context(Ear(broker.url, (TOPIC,)))
        bells = {name: parts.enter_context(bell_of(host, ear, TOKEN)) for name, host in hosts.items()}
        bench.say(f"the first sweep of {OBJECTS:,} objects")
        _next_sweep(hosts["on"])
        first_mb = _peak_mb(hosts["on"]) - _peak_mb(hosts["off"])
        bench.say("a sweep by itself")
        before, begun_at = _calls(stores["on"]), time.monotonic()
        _next_sweep(hosts["on"])
        calls, seconds = _calls(stores["on"]) - before, time.monotonic() - begun_at
        for bell in bells.values():
            for _ in range(WARM_EVENTS):
                bell()
        at_start = _calls(stores["off"])  # what the store's region is
        rounds = bench.count(ROUNDS, QUICK_ROUNDS)
        for number in range(rounds):
            bench.say(f"events while it sweeps, and while nobody does: round {number + 1} of {rounds}")
            for name in took if number % 2 else reversed(took):
                if name == "off":
                    hosts["on"].freeze()
                took[name] += [bells[name]() for _ in range(ROUND_EVENTS)]
                hosts["on"].thaw()
        more_mb = _peak_mb(hosts["on"]) - _peak_mb(hosts["off"])
        without = _calls(stores["off"]) - at_start
    lists = math.ceil(OBJECTS / PAGE) + PREFIXES - 1
    what = f"a sweep of {OBJECTS:,} unchanged objects"
    return [
        Figure(
            f"{what}: LIST calls", calls, "=", lists, "", f"{PREFIXES} prefixes, one of them empty; {seconds:.1f} s"
        ),
        Figure(
            f"{what}: the host's memory, highest above that of a host that never sweeps",
            more_mb,
            "≤",
            MEMORY_TARGET_MB,
            "MB",
            f"{first_mb:.1f} MB after the first sweep, which notes all of them",
        ),
        compared_percentiles(
            f"{what}: an event posted meanwhile → heard",
            "a host that never sweeps",
            took["on"],
            took["off"],
            50,
            rounds=rounds,
            sense="≤",
            target=P50_TARGET,
            detail=f"{len(took['on'])} events each",
        ),
        Figure("LIST calls of a host that never sweeps, meanwhile", without, "=", 0),
    ]


def _lone(bench: Bench) -> list[Figure]:
    """One upload at a time to a MinIO without a rule, at a moment of a sweep's pause that chance has chosen."""
    directory = bench.directory / "lone"
    count = bench.count(LONE, QUICK_LONE)
    took = []
    rig = Rig(directory)
    rig.minio.environment = {}
    rig.host.environment |= download_variables(rig.minio) | {"SWEEP_SECONDS": str(PAUSE_SECONDS)}
    with ExitStack() as parts:
        parts.enter_context(rig.broker)
        parts.enter_context(rig.minio)
        rig.s3.create_bucket(Bucket=BUCKET)
        parts.enter_context(rig.host)
        ear = parts.enter_context(Ear(rig.broker.url, (TOPIC,)))
        until(lambda: metric(rig.host, "sweep_seconds_count"), HEAR_SECONDS)
        for number in range(count):
            bench.say(f"lone upload {number + 1} of {count}")
            time.sleep(random.uniform(0, PAUSE_SECONDS))
            began_at = upload(rig, BUCKET, f"assets/lone-{number}.bin")
            message = ear.next(HEAR_SECONDS)
            if message is None:
                raise NotMeasuredError(f"a lone upload was not heard of within {HEAR_SECONDS:g} s")
            took.append(message.received_at - began_at)
    return [
        Figure(
            f"a lone upload on a store without events, SWEEP_SECONDS={PAUSE_SECONDS}: upload began → heard, p50",
            percentile(took, 50),
            "≤",
            LONE_TARGET_SECONDS,
            "s",
            f"{count} uploads, {min(took):.2f} to {max(took):.2f} s",
        )
    ]


@contextmanager
def _counting(ear: Ear, heard: Counter[str]) -> Iterator[None]:
    """Count what is heard, by key, in a thread."""
    over = threading.Event()

    def count() -> None:
        while not over.is_set():
            if (message := ear.next(LOOK_SECONDS)) is not None:
                heard[f"assets/{json.loads(message.payload)['filename']}"] += 1

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@contextmanager
def _fast_store(directory: Path) -> Iterator[int]:
    """The program that only lists; its port."""
    port = free_port()
    command = [sys.executable, "-m", "infra.bench.fast_store", str(port), str(OBJECTS)]
    with Process("fast-store", command, directory, ready=lambda: _answers(port)):
        yield port


def _host(directory: Path, broker: Mosquitto, store: int, more: dict[str, str]) -> HostProcess:
    variables = download_variables(Minio(directory))  # only its credentials, which nobody checks
    variables |= {"AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{store}"} | more
    return HostProcess(directory, free_port(), {"MQTT_URL": broker.url, "WEBHOOK_TOKENS": TOKEN, **variables})


@contextmanager
def bell_of(host: HostProcess, ear: Ear, token: str) -> Iterator[Callable[[], float]]:
    """A function that posts an event, over one connection, and returns how long it took to be heard."""
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    stem = Path(host.directory).name
    numbers = itertools.count()
    with closing(http.client.HTTPConnection("127.0.0.1", _port(host), timeout=ANSWER_SECONDS)) as connection:
        # So that both have asked the store for something, by boto3.
        connection.request("HEAD", "/assets/x.bin", headers={"Authorization": f"Bearer {device_token(0)}"})
        connection.getresponse().read()

        def ring() -> float:
            time.sleep(EVENT_PAUSE_SECONDS)
            began_at = time.monotonic()
            connection.request("POST", "/events", minio_event(BUCKET, stem, next(numbers)), headers)
            message = ear.next(ANSWER_SECONDS)
            answer = connection.getresponse()
            answer.read()
            if message is None or stem.encode() not in message.payload or answer.status != http.HTTPStatus.OK:
                raise NotMeasuredError(f"an event was answered with {answer.status}, and {message} was heard")
            return message.received_at - began_at

        yield ring


def _next_sweep(host: HostProcess) -> None:
    """Return as soon as a sweep more is over."""
    before = metric(host, "sweep_seconds_count")
    until(lambda: metric(host, "sweep_seconds_count") > before, SWEEP_LIMIT_SECONDS)


def until(truth: Callable[[], object], within_seconds: float) -> None:
    """Return once `truth()` holds. Raises `NotMeasuredError` when it does not in time."""
    end = time.monotonic() + within_seconds
    while not truth():
        if time.monotonic() > end:
            raise NotMeasuredError(f"waited for {within_seconds:g} s in vain")
        time.sleep(LOOK_SECONDS)


def metric(host: HostProcess, name: str) -> float:
    """The sum of all samples of this name."""
    with urllib.request.urlopen(f"{host.url}/metrics", timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - our own http URL
        lines = [line.rpartition(" ") for line in answer.read().decode().splitlines()]
    return sum(float(value) for sample, _, value in lines if sample.partition("{")[0] == name)


def _calls(port: int) -> int:
    """How many LISTs the program that only lists has answered."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{CALLS}", timeout=ANSWER_SECONDS) as answer:
        return int(answer.read())


def _answers(port: int) -> bool:
    try:
        return _calls(port) == 0
    except OSError:
        return False


def _port(host: HostProcess) -> int:
    return int(host.url.rpartition(":")[2])


def _peak_mb(host: HostProcess) -> float:
    """The most memory that it has ever held (Linux: proc(5))."""
    status = Path("/proc", str(host.pid), "status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / MB
