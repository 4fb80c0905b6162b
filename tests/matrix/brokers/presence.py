"""Availability for Home Assistant: retained while the host is there, and taken back by the broker when it is killed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from infra.subscriber import SubscriberError
from tests.databases import new_sqlite
from tests.hosts import Host
from tests.matrix.brokers.brand import BELL, HOME, PASSWORD, Running
from tests.matrix.brokers.contract import HEAR_SECONDS, SETTLE_SECONDS
from tests.matrix.result import Check
from tests.stored import Admin, stored, storing

TOPIC = f"{HOME}/bucketbell/+/availability"
WILL = "last will, retained availability"
WILDCARD = "retained messages for a wildcard"
NOW = ""  # the host's own times


def last_will(broker: Running, directory: Path) -> Iterator[Check]:
    """Also whether who subscribes to it later is told."""
    directory.mkdir(parents=True)
    wanted = {"username": broker.user(BELL), "password": PASSWORD, "discovery_enabled": True, "topic_prefix": HOME}
    variables = storing(new_sqlite(directory))
    with (
        broker.ear(TOPIC, qos=1) as ear,
        stored(directory, variables, broker.port, NOW, **wanted) as (host, admin),
    ):
        try:
            came = ear.next(HEAR_SECONDS)
        except SubscriberError:
            yield Check(WILL, "not possible", _why_not(host, admin))
            return
        with broker.ear(TOPIC, qos=1) as late:
            by_wildcard = late.silence(SETTLE_SECONDS)
        with broker.ear(came.topic, qos=1) as late:
            by_name = late.silence(SETTLE_SECONDS)
        host.child.kill()
        try:
            went = ear.next(HEAR_SECONDS)
        except SubscriberError:
            yield Check(WILL, "failed", "the host was killed, and nothing was said")
            return
    seen = [came.payload, *(message.payload for message in by_name), went.payload]
    right = seen == [b"online", b"online", b"offline"]
    yield Check(WILL, "ok") if right else Check(WILL, "failed", f"{seen}")
    if by_wildcard:
        yield Check(WILDCARD, "ok")
    else:
        yield Check(WILDCARD, "not possible", "Home Assistant forgets the cameras when it restarts")


def _why_not(host: Host, admin: Admin) -> str:
    """What the host has to say about its last will."""
    refused = [f"{one['topic']}: {one['reason']}" for one in admin.status()["topics"] if not one["accepted"]]
    reasons = [str(line["reason"]) for line in host.lines("WARNING") if line.get("reason")]
    return "; ".join(refused or reasons[:1] or ["the host says nothing"])
