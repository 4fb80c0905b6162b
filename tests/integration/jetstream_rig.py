"""NATS, MinIO with both NATS targets, Mosquitto, and hosts, as `bucketbell connect --nats-url` sets them up."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

import nats
from nats.js import JetStreamContext

from functions.settings import Settings, load
from infra.connect import jetstream
from infra.connect.documents import merge, wanted_rules
from infra.jetstream.layout import Names
from infra.local.nats_server import NatsServer
from infra.local.stores import Minio
from tests.hosts import environment, eventually

PREFIXES = {"configs": "configs/", "assets": "assets/"}
BUCKET = "devices"
NAMES = Names("bucketbell", "bucketbell")

T = TypeVar("T")


def settings_for(server: NatsServer, **more: str) -> Settings:
    """Those of a host that takes events from there."""
    return load({"NATS_URL": server.url, **more}).settings


def set_up(server: NatsServer, **more: str) -> list[str]:
    """Make what lies in JetStream; what was said."""
    said: list[str] = []
    jetstream.set_up(settings_for(server, **more), said.append, dry_run=False)
    return said


def host_environment(server: NatsServer, mqtt_url: str, **more: str) -> dict[str, str]:
    """A host that takes events from there. Its publishes are given up soon, so that a test sees what comes of that."""
    known = {"NATS_URL": server.url, "BUCKET": BUCKET, "MQTT_PUBLISH_TIMEOUT_SECONDS": "3"}
    return environment(mqtt_url, **(known | more))


def minio_for(server: NatsServer, directory: Path) -> Minio:
    """A MinIO with both targets; not started."""
    streams = jetstream.Streams.of(settings_for(server), sure_only=False, queue_directory=str(directory / "queue"))
    return Minio(directory / "minio", environment=streams.environment())


def make_bucket(minio: Minio, server: NatsServer) -> Any:  # noqa: ANN401 - boto3's client
    """Make the bucket with the rules for both targets; the client."""
    s3 = minio.client()
    s3.create_bucket(Bucket=BUCKET)
    streams = jetstream.Streams.of(settings_for(server), sure_only=False, queue_directory="/q")
    rules = merge({}, wanted_rules(streams.targets, PREFIXES))

    def is_taken() -> bool:
        try:
            s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=rules)
        except s3.exceptions.ClientError:  # it answers a moment before it knows its targets
            return False
        return True

    eventually(is_taken)
    return s3


def ask(server: NatsServer, call: Callable[[JetStreamContext], Awaitable[T]], **login: str) -> T:
    """Call JetStream once, on a connection of its own."""

    async def asked() -> T:
        client = await nats.connect(server.url, **login)
        try:
            return await call(client.jetstream())
        finally:
            await client.close()

    return asyncio.run(asked())


def publish(server: NatsServer, *bodies: bytes, **login: str) -> None:
    """Put events into the stream as a store does."""

    async def put(js: JetStreamContext) -> None:
        for body in bodies:
            await js.publish(NAMES.subject, body)

    ask(server, put, **login)


def waiting(server: NatsServer, stream: str = NAMES.stream) -> int:
    """How many messages are in a stream: in this one, what no host has dealt with."""

    async def count(js: JetStreamContext) -> int:
        return (await js.stream_info(stream)).state.messages

    return ask(server, count)


def asking(server: NatsServer) -> int:
    """How many hosts wait for events: one that is connected may not yet have asked."""

    async def count(js: JetStreamContext) -> int:
        return (await js.consumer_info(NAMES.stream, NAMES.consumer)).num_waiting or 0

    return ask(server, count)
