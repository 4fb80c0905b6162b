"""Pure: what the administration's API answers. Its JSON and its OpenAPI document come from these models."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer

from functions.web.messages import iso

Moment = Annotated[datetime, PlainSerializer(iso, return_type=str, when_used="json")]


def _to_the_millisecond(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


Instant = Annotated[datetime, PlainSerializer(_to_the_millisecond, return_type=str, when_used="json")]


class Schema(BaseModel):
    """An answer's body."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class ConfigAnswer(Schema):
    """The settings in force, never the password."""

    source: Literal["database", "environment"] = Field(description="Where they come from.")
    version: int = Field(description="Counts changes; 0 where nothing is stored. Also the ETag.")
    credentials: Literal["ok", "unreadable", "none"] = Field(
        description="`unreadable`: none of ENCRYPTION_KEYS decrypts the stored password; store it again, or bring the "
        "key back."
    )
    has_password: bool
    broker_host: str | None = Field(description="Null where no broker is configured.")
    broker_port: int | None
    username: str | None
    use_tls: bool
    topic_prefix: str
    qos: int
    enabled: bool
    discovery_enabled: bool
    discovery_prefix: str
    retain_messages: bool
    created_at: Moment | None
    updated_at: Moment | None


class ErrorAnswer(Schema):
    """What went wrong last; it may be long over."""

    reason: str
    reason_code: int | None = Field(description="The broker's (MQTT 5 §2.4), where it gave one.")
    at: Moment | None


class ProcessAnswer(Schema):
    """What a publishing process says of its connection; null is what nobody knows."""

    process: str | None = Field(description="Which process.")
    scope: Literal["host", "lambda"] = Field(
        description="`host`: the process that answers. `lambda`: the publishing functions, by what they last recorded."
    )
    broker: str | None = Field(description="Its URL, without credentials.")
    connected: bool | None
    since: Moment | None = Field(description="Since when it counts.")
    last_connected_at: Moment | None
    last_error: ErrorAnswer | None
    messages_published: int | None
    reconnect_attempts: int | None
    recorded_at: Moment | None = Field(description="When it said so.")


class TopicAnswer(Schema):
    """What the broker last answered to a message on this topic."""

    topic: str = Field(description="As metrics name it: `camera/+/event`. `last will`: what CONNECT asks for.")
    accepted: bool
    reason: str = Field(description="Why not, with the broker's own words where it has any.")
    reason_code: int | None = Field(description="The broker's (MQTT 5 §2.4), where it gave one.")
    at: Moment


class ProbeAnswer(Schema):
    """What came of one attempt to connect."""

    ok: bool
    outcome: str = Field(description="A word for programs, e.g. `ok`, `bad_credentials`, `unreachable`, `not_mqtt`.")
    detail: str = Field(description="What it means, and what to do.")
    reason_code: int | None = Field(description="The broker's (MQTT 5 §3.2.2.2), where it refused.")
    broker: str = Field(description="What was tried, without credentials.")
    address: str | None = Field(description="The IP address that was connected to.")
    password: Literal["given", "stored", "none"] = Field(
        description="Which password was sent. The stored one only goes where it belongs: same host, port, TLS and user."
    )
    duration_seconds: float
    at: Moment
    left_out: tuple[str, ...] = Field(
        default=(), description="What these settings ask for and the broker will not do, although it accepts us."
    )
    topics: tuple[TopicAnswer, ...] = Field(
        default=(),
        description="Where this is the broker in force: what it last said to each topic. A test publishes nothing, and "
        "cannot ask for topics' rights.",
    )


class EndingTokenAnswer(Schema):
    """A device whose newest token ends within 30 days, or has ended."""

    mac: str
    expires_at: Moment


class DeviceTokensAnswer(Schema):
    """What this process has seen of devices' tokens since its start, of the last 16,384."""

    devices: int = Field(description="How many devices have shown a valid one.")
    ending: tuple[EndingTokenAnswer, ...] = Field(description="The next to end first, at most 100.")


class StatusAnswer(ProcessAnswer):
    """This process's connection, and what all have recorded."""

    probe: ProbeAnswer | None = Field(
        description="A live attempt to connect, where the publishing processes are others (on Lambda); at most a few "
        "seconds old."
    )
    topics: tuple[TopicAnswer, ...] = Field(
        default=(), description="What the broker last said to this process, by topic: the rights that it has."
    )
    recorded: tuple[ProcessAnswer, ...] = Field(description="What other processes last recorded, newest first.")
    device_tokens: DeviceTokensAnswer | None = Field(
        default=None, description="Null where another process serves the devices, as on Lambda."
    )


class DiscoveryAnswer(Schema):
    """What was published again."""

    cameras: int = Field(description="How many cameras' discovery messages.")


class ObjectAnswer(Schema):
    """The object as it is in the bucket now."""

    state: Literal["present", "absent", "not_checked"]
    detail: str = Field(default="", description="Why it was not checked.")
    etag: str | None = None
    size: int | None = None
    last_modified: Moment | None = Field(default=None, description="By the store's clock.")
    version_id: str | None = None


class RouteAnswer(Schema):
    """Whether a key is announced, and where."""

    announced: bool
    topic: str | None = None
    device_topic: str | None = Field(
        default=None, description="The device's own, where a config is announced too (DEVICE_TOPICS)."
    )
    filename: str | None = Field(default=None, description="What the payload names.")
    camera: bool = Field(default=False, description="A camera's event: its document is read first.")
    reason: str | None = Field(default=None, description="Why not: the `outcome` in `events_total`.")
    detail: str = Field(default="", description="The same in words.")
    remedy: str = Field(default="", description="What to do.")


class HeardAnswer(Schema):
    """An event that came in, or several in a row that are alike."""

    at: Instant = Field(description="When it was settled.")
    until: Instant = Field(description="When the last of them was.")
    times: int
    door: str = Field(
        description="Where it came in, as `source` in `events_total`: `sure`, `fast`, `sqs`, `r2`, `sweep`, `again` "
        "(a new try of what was given up), `ring` (by hand)."
    )
    outcome: str = Field(description="What became of it, as `outcome` in `events_total`.")
    reason: str
    reason_code: int | None = Field(description="The broker's (MQTT 5 §2.4), where it gave one.")
    id: str = Field(description="The message's `id`; the same for each repeat of an event.")
    etag: str | None
    event_time: str | None = Field(description="As the store sent it.")
    detail: str = Field(description="All this in words.")


class SaidAnswer(Schema):
    """A line of the story; `at` is null for what holds now."""

    at: Instant | None
    text: str


class WhyAnswer(Schema):
    """What became of an upload."""

    key: str = Field(description="The whole key that was found for what was asked.")
    scope: Literal["host", "lambda"] = Field(
        description="`host`: the answering process publishes. `lambda`: another one does, and little is known here."
    )
    object: ObjectAnswer
    route: RouteAnswer
    events: tuple[HeardAnswer, ...] = Field(description="Oldest first, the last 100.")
    left_out: int = Field(description="How many older ones are remembered.")
    known_since: Moment | None = Field(description="Since when events are remembered; null: not here.")
    asked_at: Instant | None = Field(
        description="When this was answered, by the clock that `events` were timed with; null: there are none here."
    )
    sweep: Literal["off", "announced", "counted", "rolled_back", "unannounced", "not_checked"] = Field(
        description="What the sweep's record says of the file as it is now. `counted`: it was there before the first "
        "sweep. `rolled_back`: an older content has come back."
    )
    in_the_way: tuple[str, ...] = Field(description="What keeps it from being announced now.")
    story: tuple[SaidAnswer, ...] = Field(description="In order of time.")
    verdict: str = Field(
        description="A word for programs: `announced`, `nobody_listens`, `sent`, `waiting`, `refused`, `given_up`, "
        "`dropped`, `removed`, `not_announced`, `no_broker`, `no_file`, `counted`, `rolled_back`, `unheard`, "
        "`unknown`, `elsewhere`."
    )
    well: bool = Field(description="Whether it was announced.")
    answer: str = Field(description="The answer in one line.")


class RingRequest(Schema):
    """Which file to announce again."""

    key: str = Field(min_length=1, max_length=1024, description="Its key; a config's MAC or a bare file name will do.")
    device: str | None = Field(
        default=None,
        min_length=1,
        max_length=64,
        description="The MAC of the only device to hear it, on its own topic (DEVICE_TOPICS). Left out: all.",
    )


class RingAnswer(Schema):
    """What the broker said to the new announcement."""

    key: str
    ok: bool
    outcome: str = Field(description="As `outcome` in `events_total`.")
    detail: str
    reason_code: int | None = Field(description="The broker's (MQTT 5 §2.4), where it gave one.")
    id: str = Field(description="The message's new `id`.")
    topic: str | None
    etag: str | None
    size: int
    version_id: str | None


class FileAnswer(Schema):
    """A file that is announced."""

    key: str
    etag: str | None
    size: int
    last_modified: Moment


class FilesAnswer(Schema):
    """Files in the order of their keys."""

    files: tuple[FileAnswer, ...]
    next: str | None = Field(description="Ask on with this as `after`; null: that is all.")


class FieldProblem(Schema):
    """One field that is not right."""

    field: str
    problem: str
    expected: str


class ProblemAnswer(Schema):
    """Any other answer (RFC 9457)."""

    title: str
    status: int
    detail: str
    errors: tuple[FieldProblem, ...] | None = Field(default=None, description="With 422: each field that is not right.")
    current_version: int | None = Field(default=None, description="With 412: the version that is stored now.")


class TokenAnswer(Schema):
    """A device's next token."""

    token: str
    expires_at: Moment
