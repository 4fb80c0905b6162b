"""What bucketbell promises with any broker: what is heard, what is refused, and what is said about it."""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

from functions.events.plan import plan_body, to_publish
from functions.events.routes import Routes
from functions.mqtt.message import CONTENT_TYPE, Message
from infra.incoming import Received
from infra.subscriber import SubscriberError
from tests.hosts import Host, environment, eventually, upload
from tests.matrix.brokers.brand import BELL, Limits, Running
from tests.matrix.result import Check

PROTOCOLS = ("5", "3.1.1")
HEAR_SECONDS = 10.0
SETTLE_SECONDS = 0.3
RETRY_SECONDS = 1.0
PER_SECOND = 20.0
DEADLINE = {"MQTT_PUBLISH_TIMEOUT_SECONDS": "5"}  # the host's own
LATENCY_UPLOADS = 60
FEW_AT_ONCE = 60
NAME_CHARACTERS = 800  # of a file whose message is larger than the limit, and of S3's length
UNHEARD = "says that nobody listens (0x10)"

_numbers = itertools.count(1)


def asset() -> str:
    """The key of an object that never was before."""
    return f"assets/matrix-{next(_numbers):06}.bin"


def config() -> str:
    """The same, of a device's configuration."""
    mac = f"{next(_numbers):012x}"
    return f"configs/{'-'.join(mac[at : at + 2] for at in range(0, len(mac), 2))}.json"


def host_of(directory: Path, broker: Running, user: str = BELL, *, protocol: str = "5", **more: str) -> Host:
    """A host that is not started."""
    directory.mkdir(parents=True, exist_ok=True)
    return Host(directory, environment(None, **DEADLINE, **broker.environment(user, protocol=protocol), **more))


def outcome(host: Host, body: bytes) -> tuple[int, str]:
    """Status and word of the sure door's answer."""
    answer = host.post(body)
    return answer.status_code, " ".join(answer.json().get("outcomes", ["?"]))


def delivery(broker: Running, directory: Path, protocol: str) -> Iterator[Check]:
    """One upload at each QoS, heard as it was sent; and nothing of it is kept."""
    with ExitStack() as parts:
        ear = parts.enter_context(broker.ear(protocol=protocol))
        hosts = [
            host_of(directory / f"{protocol}-{qos}", broker, protocol=protocol, MQTT_QOS=str(qos)) for qos in (0, 1, 2)
        ]
        with ThreadPoolExecutor() as pool:
            list(pool.map(parts.enter_context, hosts))
        said, wrong, heard = [], [], []
        for qos, host in enumerate(hosts):
            body = upload(asset())
            status, word = outcome(host, body)
            try:
                message = ear.next(HEAR_SECONDS)
            except SubscriberError as error:
                wrong.append(f"QoS {qos}: {status} {word}, {error}")
                continue
            heard.append(message)
            [sent] = to_publish(plan_body(body, Routes()))
            wrong += [f"QoS {qos}: {what}" for what in _differences(sent, message, protocol)]
            said += [f"QoS {qos} arrives as {message.qos}"] * (message.qos != qos)
        yield Check(f"MQTT {protocol}: QoS 0, 1, 2", "failed" if wrong else "ok", "; ".join(wrong or [", ".join(said)]))
    if protocol == "5":
        names = [name for name, _ in heard[0].user_properties] if heard else []
        yield Check("user properties and content type", "failed" if wrong or not names else "ok")
        with broker.ear(protocol=protocol) as late:
            kept = late.silence(SETTLE_SECONDS) + [message for message in heard if message.retain]
        yield Check("uploads are never retained", "failed" if kept else "ok", f"{len(kept)} kept" if kept else "")


def _differences(sent: Message, message: Received, protocol: str) -> list[str]:
    found = [] if message.topic == sent.topic and message.payload == sent.payload else ["another message"]
    if protocol == "5":
        if message.user_properties != tuple(sent.user_properties):
            found.append(f"user properties {message.user_properties}")
        if message.content_type != CONTENT_TYPE:
            found.append(f"content type {message.content_type}")
    return found


def unheard(broker: Running, host: Host) -> Iterator[Check]:
    """Whether the broker tells that nobody listens, and not so where somebody does."""
    status, nobody = outcome(host, upload(config()))
    with broker.ear():
        status_heard, somebody = outcome(host, upload(asset()))
    words = f"nobody: {status} {nobody}; somebody: {status_heard} {somebody}"
    if (status, status_heard, somebody) != (200, 200, "delivered"):
        yield Check(UNHEARD, "failed", words)
    elif nobody == "no_subscribers":
        yield Check(UNHEARD, "ok")
    else:
        yield Check(UNHEARD, "not possible", "it says success")


def latency(broker: Running, host: Host, figures: dict[str, float]) -> Iterator[Check]:
    """One upload after the other, from the webhook to the subscriber: a figure."""
    took = []
    with broker.ear(qos=1) as ear:
        for _ in range(LATENCY_UPLOADS):
            begun_at = time.monotonic()
            host.post(upload(asset()))
            took.append(ear.next(HEAR_SECONDS).received_at - begun_at)
    figures["webhook → subscriber, p50, ms"] = milliseconds(statistics.median(took))
    yield from ()


def milliseconds(seconds: float) -> float:
    """For a figure."""
    return round(seconds * 1e3, 1)


def limits(broker: Running, directory: Path, told: Limits) -> Iterator[Check]:
    """What is too large is refused, and costs nobody anything; a small Receive Maximum is kept to."""
    with broker.ear(qos=1) as ear, host_of(directory, broker) as host:
        name = "Maximum Packet Size"
        if told.packet_bytes is None:
            yield Check(name, "not possible", "there is no such setting")
        else:
            said = _refused(host, upload(asset().replace(".bin", "x" * NAME_CHARACTERS)))
            status, word = outcome(host, upload(asset()))
            heard = ear.silence(SETTLE_SECONDS)
            good = (status, word, len(heard)) == (200, "delivered", 1)
            said += f"; then a small one: {status} {word}" if not good else ""
            yield Check(name, "ok" if good else "failed", said)
        name = "Receive Maximum"
        if told.receive_maximum is None:
            yield Check(name, "not possible", "there is no such setting")
            return
        before = host.metric("mqtt_reconnect_attempts_total")
        bodies = [upload(asset()) for _ in range(FEW_AT_ONCE)]
        with ThreadPoolExecutor(FEW_AT_ONCE) as pool:
            answers = list(pool.map(lambda body: outcome(host, body), bodies))
        eventually(lambda: len(ear.messages) >= FEW_AT_ONCE or not ear.connected, HEAR_SECONDS)
        heard = ear.silence(SETTLE_SECONDS)
        lost = host.metric("mqtt_reconnect_attempts_total") - before
        good = answers == [(200, "delivered")] * FEW_AT_ONCE and len(heard) == FEW_AT_ONCE and not lost
        words = f"{len(heard)} of {FEW_AT_ONCE} at once, {told.receive_maximum} on their way; {lost:g} reconnects"
        yield Check(name, "ok") if good else Check(name, "failed", words)


def _refused(host: Host, body: bytes) -> str:
    """What becomes of an upload whose message the broker will not take, and how many connections that costs."""
    until = time.monotonic() + 2 * HEAR_SECONDS
    while (answer := outcome(host, body)) != (200, "refused") and time.monotonic() < until:
        time.sleep(RETRY_SECONDS)
    reasons = [str(line["reason"]) for line in host.lines("WARNING") + host.lines("ERROR") if "reason" in line]
    if any("larger than the broker's" in reason for reason in reasons):
        return "announced"
    why = reasons[-1].rpartition(f"{host.environment['MQTT_URL']}: ")[2] if reasons else answer[0]
    return f"not announced; {answer[1]}: {why}; {host.metric('mqtt_reconnect_attempts_total'):g} reconnects"
