"""What 5,000 subscribers of one Mosquitto cost the handler that publishes, beside one subscriber.

All are connected all the time, and as many as the round says are subscribed. A message is sent when the one before has
reached everybody and its acknowledgements are through. Mosquitto works in one thread, and acknowledges a publish after
it has written it to every subscriber (`handle__publish`: `sub__messages_queue`, then `send__puback`).
"""

from __future__ import annotations

import resource
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from itertools import count

from functions.events.plan import plan_body, to_publish
from functions.events.routes import Routes, own_topic
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.outcome import Status
from functions.mqtt.publisher import InlinePublisher
from infra.bench.child import Child
from infra.bench.events import config_event, minio_event, post
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, milliseconds
from infra.bench.rig import BUCKET, TOPIC, mac_address
from infra.bench.throughput import BROKER_LOG
from infra.host.metrics import PrometheusTelemetry
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import HostProcess

AUDIENCES = (1, 100, 1_000, 5_000)
GROWTH_TARGET = 1.5
PAUSE_SECONDS = 0.1
ORDER_SECONDS = 150.0
HEAR_SECONDS = 20.0
ANSWER_SECONDS = 5.0
SETTLE_SECONDS = 1.0  # in which a delivery too many would arrive
SPARE_FILES = 200
TOKEN = "bench-bench-bench-bench"  # noqa: S105 - of a host on loopback

PUBACK = "publish → PUBACK"
SURE = "sure door: webhook → the broker's verdict"
FAST = "fast door: webhook → 202"
BRIDGED = "publish → PUBACK of a broker that bridges to theirs"

BEHIND = "the broker acknowledges when it has written to all of them"
DELIVERED = b'["delivered"]}'

OWN, SHARED = "only", "off"  # DEVICE_TOPICS
WHERE = {OWN: "on its device's own topic", SHARED: "on one topic for all"}
DEVICE_TOPICS = f"iotsupport/updates/configs {own_topic('iotsupport', '+')}"

Ways = dict[str, Callable[[], None]]
"""How a message is sent; each returns when the handler would."""


def measure(bench: Bench) -> list[Figure]:
    """Each way for each audience, round after round; each round's figure is the median of its messages."""
    rounds, messages = bench.count(7, 5), bench.count(5, 3)
    handler: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    last: defaultdict[int, list[float]] = defaultdict(list)
    with ExitStack() as parts:
        parts.enter_context(open_files(AUDIENCES[-1] + SPARE_FILES))
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto", extra=BROKER_LOG))
        ways = parts.enter_context(_ways(bench, broker))
        crowd = parts.enter_context(_crowd(bench, broker, TOPIC))
        for number in range(rounds):
            for audience in AUDIENCES if number % 2 else reversed(AUDIENCES):
                bench.say(f"round {number + 1} of {rounds}: {audience:,} subscribed")
                _subscribe(crowd, audience)
                for way, send in ways.items():
                    took = [_tell(send, crowd, audience) for _ in range(messages)]
                    handler[way, audience].append(statistics.median(handled for handled, _ in took))
                    if way == SURE:
                        last[audience].append(statistics.median(heard for _, heard in took))
    return [
        *(
            compared(
                f"{way}, {audience:,} subscribers",
                "one subscriber",
                handler[way, audience],
                handler[way, AUDIENCES[0]],
                milliseconds,
                sense=None if way == BRIDGED else "≤",
                target=None if way == BRIDGED else GROWTH_TARGET,
                detail=BEHIND if way in (PUBACK, SURE) else "",
            )
            for way in ways
            for audience in AUDIENCES[1:]
        ),
        *(_last(audience, last[audience]) for audience in AUDIENCES),
    ]


def _last(audience: int, times: list[float]) -> Figure:
    shown = [seconds * 1e3 for seconds in times]
    whose = f"the last of {audience:,} subscribers" if audience > 1 else "the only subscriber"
    return Figure(
        f"webhook → {whose} has it",
        statistics.median(shown),
        unit="ms",
        detail="all subscribers are one process on the broker's machine",
        spread=(min(shown), max(shown)),
        rounds=len(shown),
    )


def measure_own(bench: Bench) -> list[Figure]:
    """A config on its device's own topic (`DEVICE_TOPICS=only`), and on the topic of all (`off`), in turn.

    Each side has a broker, a host and 5,000 devices, which subscribe to both topics. On own topics, the deliveries of a
    config for each device are counted. On the topic of all, those of a few configs are, and the others are computed.
    """
    rounds, messages, everyone = bench.count(7, 3), bench.count(9, 5), AUDIENCES[-1]
    took: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    with ExitStack() as parts:
        parts.enter_context(open_files(everyone + SPARE_FILES))
        sides = {mode: parts.enter_context(_devices(bench, mode)) for mode in WHERE}
        for number in range(rounds):
            for audience in (AUDIENCES[0], everyone) if number % 2 else (everyone, AUDIENCES[0]):
                bench.say(f"round {number + 1} of {rounds}: {audience:,} subscribed")
                for mode, (send, crowd) in sides.items():
                    _subscribe(crowd, audience)
                    hearers = 1 if mode == OWN else audience
                    told = [_tell(partial(send, one % audience), crowd, hearers) for one in range(messages)]
                    took[mode, audience].append(statistics.median(handled for handled, _ in told))
        bench.say(f"{everyone:,} configs, each on its device's own topic")
        deliveries = _deliveries(*sides[OWN], everyone)
    counted = rounds * messages
    return [
        Figure(
            f"the broker's deliveries of {everyone:,} configs for {everyone:,} devices, each {WHERE[OWN]}",
            deliveries,
            "=",
            everyone,
            peer="one topic for all",
            sides=(f"{deliveries:,}", f"{everyone * everyone:,}"),
            detail=f"the latter cut short: {counted} configs brought {counted * everyone:,}, the others are computed",
        ),
        *(
            compared(
                f"webhook → PUBACK of a config {WHERE[mode]}, {everyone:,} subscribers",
                "one subscriber",
                took[mode, everyone],
                took[mode, AUDIENCES[0]],
                milliseconds,
                sense="≤" if mode == OWN else None,
                target=GROWTH_TARGET if mode == OWN else None,
                detail="" if mode == OWN else BEHIND,
            )
            for mode in WHERE
        ),
    ]


@contextmanager
def _devices(bench: Bench, mode: str) -> Iterator[tuple[Callable[[int], None], Child]]:
    """What posts the config of the device of that number to a host in this mode; and the devices."""
    directory, port, numbers = bench.directory / mode, free_port(), count()
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(directory / "mosquitto", extra=BROKER_LOG))
        variables = {"MQTT_URL": broker.url, "BUCKET": BUCKET, "WEBHOOK_TOKENS": TOKEN, "DEVICE_TOPICS": mode}
        parts.enter_context(HostProcess(directory / "host", port, variables))
        connection = parts.enter_context(socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS))

        def send(device: int) -> None:
            event = config_event(BUCKET, mac_address(device), next(numbers))
            _post(connection, port, "/events", event, DELIVERED)

        yield send, parts.enter_context(_crowd(bench, broker, DEVICE_TOPICS))


def _deliveries(send: Callable[[int], None], crowd: Child, devices: int) -> int:
    """How often a device heard something, after a config for each."""
    _subscribe(crowd, devices)
    for device in range(devices):
        send(device)
    heard, _, _ = crowd.ask(["heard", HEAR_SECONDS, devices], 2 * HEAR_SECONDS)
    too_many, _, _ = crowd.ask(["heard", SETTLE_SECONDS, devices], HEAR_SECONDS)
    return int(heard) + int(too_many)


@contextmanager
def _crowd(bench: Bench, broker: Mosquitto, topics: str) -> Iterator[Child]:
    """As many as there will ever be, connected and not subscribed."""
    with Child("infra.bench.crowd", str(broker.port), topics) as crowd:
        bench.say(f"{AUDIENCES[-1]:,} subscribers connect")
        if (connected := crowd.ask(["connect", AUDIENCES[-1]], ORDER_SECONDS)) != AUDIENCES[-1]:
            raise NotMeasuredError(f"only {connected:,} subscribers could connect")
        yield crowd


def _subscribe(crowd: Child, audience: int) -> None:
    if (subscribed := crowd.ask(["subscribe", audience], ORDER_SECONDS)) != audience:
        raise NotMeasuredError(f"{subscribed:,} were subscribed, not {audience:,}")


def _tell(send: Callable[[], None], crowd: Child, audience: int) -> tuple[float, float]:
    """Seconds until the handler was done, and until the last of so many subscribers had the message."""
    time.sleep(PAUSE_SECONDS)
    begun_at = time.monotonic()
    send()
    handled_seconds = time.monotonic() - begun_at
    heard, _, last_at = crowd.ask(["heard", HEAR_SECONDS, audience], 2 * HEAR_SECONDS)
    if heard != audience:
        raise NotMeasuredError(f"{heard:,} of {audience:,} subscribers heard the message")
    return handled_seconds, last_at - begun_at


@contextmanager
def _ways(bench: Bench, broker: Mosquitto) -> Iterator[Ways]:
    numbers = count(1)
    with ExitStack() as parts:
        port = free_port()
        variables = {"MQTT_URL": broker.url, "BUCKET": BUCKET, "WEBHOOK_TOKENS": TOKEN}
        parts.enter_context(HostProcess(bench.directory / "host", port, variables))
        bridge = (
            "connection theirs",
            f"address 127.0.0.1:{broker.port}",
            "bridge_protocol_version mqttv50",
            "cleansession false",
            "notifications false",
            "topic # out 1",
        )
        front = parts.enter_context(Mosquitto(bench.directory / "front", extra=(*BROKER_LOG, *bridge)))
        connection = parts.enter_context(socket.create_connection(("127.0.0.1", port), ANSWER_SECONDS))

        def event() -> bytes:
            return minio_event(BUCKET, "fan", next(numbers))

        yield {
            PUBACK: _publishing(parts, broker, event),
            SURE: lambda: _post(connection, port, "/events", event(), DELIVERED),
            FAST: lambda: _post(connection, port, "/events/fast", event(), b"content-length: 0\r\n\r\n"),
            BRIDGED: _publishing(parts, front, event),
        }


def _publishing(parts: ExitStack, broker: Mosquitto, event: Callable[[], bytes]) -> Callable[[], None]:
    """What publishes as the Lambda handler does."""
    publisher = InlinePublisher(BrokerConfig(host=broker.host, port=broker.port), PrometheusTelemetry())
    publisher.warm_up()
    parts.callback(publisher.close)
    routes = Routes(bucket=BUCKET)

    def publish() -> None:
        notifications = to_publish(plan_body(event(), routes))
        for outcome in publisher.publish(notifications, time.monotonic() + ANSWER_SECONDS):
            if outcome.status is not Status.DELIVERED:
                raise NotMeasuredError(f"a message was {outcome.status}: {outcome.reason}")

    return publish


def _post(connection: socket.socket, port: int, path: str, event: bytes, wanted: bytes) -> None:
    connection.sendall(post(path, port, TOKEN, event))
    answer = b""
    with suppress(TimeoutError):  # another answer than we want says more
        while wanted not in answer and (more := connection.recv(1 << 16)):
            answer += more
    if wanted not in answer:
        raise NotMeasuredError(f"{path} answered {answer!r}")


@contextmanager
def open_files(needed: int) -> Iterator[None]:
    """Let us and what we start have that many open files. Raises `NotMeasuredError` where the system does not."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    soft, hard = before
    if soft < needed:
        if resource.RLIM_INFINITY != hard < needed:
            raise NotMeasuredError(f"{needed:,} open files are needed and {hard:,} allowed: see `ulimit -Hn`")
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
