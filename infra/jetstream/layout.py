"""What lies in JetStream: a stream of events, its consumer, and what hosts keep beside it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from nats.js import errors as js_errors
from nats.js.api import (
    AckPolicy,
    ConsumerConfig,
    ConsumerInfo,
    DiscardPolicy,
    KeyValueConfig,
    RetentionPolicy,
    StorageType,
    StreamConfig,
    StreamInfo,
)

if TYPE_CHECKING:
    from nats.js import JetStreamContext

    from functions.settings import Settings

MAX_BYTES = 256 << 20  # events of some 700 bytes: hundreds of thousands
MAX_EVENT_BYTES = 1 << 20  # as at the host's doors, and NATS' own limit for a message
DEAD_SECONDS = 14 * 24 * 3600.0
DEAD_BYTES = 64 << 20
KNOWN_SECONDS = 24 * 3600.0
KNOWN_BYTES = 128 << 20
ACK_WAIT_SECONDS = 15.0
MAX_ACK_PENDING = 10_000  # what is refused waits among them


@dataclass(frozen=True, slots=True)
class Names:
    """What lies in JetStream: all is called after the stream."""

    stream: str
    consumer: str

    @classmethod
    def of(cls, settings: Settings) -> Names:
        """Those of the settings."""
        return cls(settings.nats_stream, settings.nats_consumer)

    @property
    def subject(self) -> str:
        """Where stores publish events."""
        return f"{self.stream}.events"

    @property
    def dead_stream(self) -> str:
        """The stream of what was given up."""
        return f"{self.stream}-dead"

    @property
    def dead_subject(self) -> str:
        """Where copies of what was given up go."""
        return f"{self.stream}.dead"

    @property
    def bucket(self) -> str:
        """The key-value bucket that hosts share."""
        return self.stream


def stream_config(names: Names) -> StreamConfig:
    """A full stream refuses: the store's queue keeps the event. What was dealt with makes room."""
    return StreamConfig(
        name=names.stream,
        description="Events of a store, for bucketbell",
        subjects=[names.subject],
        retention=RetentionPolicy.WORK_QUEUE,
        storage=StorageType.FILE,
        discard=DiscardPolicy.NEW,
        max_bytes=MAX_BYTES,
        max_msg_size=MAX_EVENT_BYTES,
    )


def dead_stream_config(names: Names) -> StreamConfig:
    """The oldest goes first: a full one must never hold up the events."""
    return StreamConfig(
        name=names.dead_stream,
        description="Events that bucketbell gave up",
        subjects=[names.dead_subject],
        storage=StorageType.FILE,
        discard=DiscardPolicy.OLD,
        max_age=DEAD_SECONDS,
        max_bytes=DEAD_BYTES,
    )


def consumer_config(names: Names, publish_seconds: float) -> ConsumerConfig:
    """`publish_seconds` is how long a publish may take: an event does not come again before."""
    return ConsumerConfig(
        durable_name=names.consumer,
        ack_policy=AckPolicy.EXPLICIT,
        ack_wait=max(ACK_WAIT_SECONDS, 3 * publish_seconds),
        max_ack_pending=MAX_ACK_PENDING,
        max_deliver=-1,
    )


def bucket_config(names: Names) -> KeyValueConfig:
    """What was announced is remembered for a day."""
    return KeyValueConfig(
        bucket=names.bucket,
        description="What bucketbell's hosts tell each other",
        history=1,
        ttl=KNOWN_SECONDS,
        max_bytes=KNOWN_BYTES,
        storage=StorageType.FILE,
    )


async def make_beside(js: JetStreamContext, names: Names) -> list[str]:
    """Make the stream of what is given up, and the bucket, where they are missing; return the names of those made.

    Raises what `explain` explains.
    """
    made = []
    if await _is_missing(js, names.dead_stream):
        await js.add_stream(dead_stream_config(names))
        made.append(names.dead_stream)
    if await _is_missing(js, f"KV_{names.bucket}"):
        await js.create_key_value(bucket_config(names))
        made.append(names.bucket)
    return made


async def _is_missing(js: JetStreamContext, stream: str) -> bool:
    return await found_stream(js, stream) is None


async def found_stream(js: JetStreamContext, stream: str) -> StreamInfo | None:
    """The stream, or None where there is none."""
    try:
        return await js.stream_info(stream)
    except js_errors.NotFoundError:
        return None


async def found_consumer(js: JetStreamContext, names: Names) -> ConsumerInfo | None:
    """The stream's durable consumer, or None where there is none."""
    try:
        found: ConsumerInfo = await js.consumer_info(names.stream, names.consumer)
    except js_errors.NotFoundError:
        return None
    return found


def is_work_queue(stream: StreamConfig) -> bool:
    """Whether the stream holds nothing but what is still to be announced."""
    return stream.retention == RetentionPolicy.WORK_QUEUE


def unfit(consumer: ConsumerConfig) -> str:
    """Why the host cannot take events from a consumer that others have made; "" where it can."""
    if consumer.deliver_subject:
        return "it is a push consumer"
    if consumer.ack_policy != AckPolicy.EXPLICIT:
        return "it does not ask for an acknowledgement of each event"
    return ""


def remarks(stream: StreamConfig, consumer: ConsumerConfig | None, publish_seconds: float) -> list[str]:
    """What can be lost with these settings, which others have made; nothing to say of `connect`'s."""
    found = []
    if stream.discard == DiscardPolicy.OLD and any(
        limit and limit > 0 for limit in (stream.max_msgs, stream.max_bytes)
    ):
        found.append(
            "When the stream is full it drops its oldest events. Let it discard new ones: the store keeps them."
        )
    if stream.max_age:
        found.append(f"The stream drops events after {stream.max_age / 3600:g} h, announced or not.")
    if stream.storage == StorageType.MEMORY:
        found.append("The stream is in memory: when its server stops, its events are lost.")
    if consumer is not None and consumer.max_deliver and consumer.max_deliver > 0:
        found.append(f"The consumer drops an event after {consumer.max_deliver} tries. Set its MaxDeliver to -1.")
    if consumer is not None and consumer.ack_wait and consumer.ack_wait <= publish_seconds:
        found.append(
            f"The consumer brings an event again after {consumer.ack_wait:g} s, when it may still be on its way to "
            f"the broker: set its AckWait above {publish_seconds:g} s (MQTT_PUBLISH_TIMEOUT_SECONDS)."
        )
    return found
