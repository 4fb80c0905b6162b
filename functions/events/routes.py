"""Pure: an object's key → the message that devices hear, a document to read first, or why none is sent."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from functions.events.names import (
    CONFIG_SUFFIX,
    DOCUMENT_SUFFIX,
    PICTURE_SUFFIX,
    is_asset_path,
    is_config_name,
    is_event_id,
)
from functions.mqtt.message import Message

if TYPE_CHECKING:
    from functions.events.dialects import IgnoredReason
    from functions.events.envelopes import ObjectCreated
    from functions.settings import Settings

DeviceTopics = Literal["off", "on", "only"]
OWN_LABEL = "devices/+/updates"
"""What metrics call devices' own topics, without the prefix."""

_OF_A_FILE = frozenset({"etag", "size", "versionid"})

_encode = json.JSONEncoder(ensure_ascii=False).encode  # json.dumps would make one each time


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that devices use. Its message says which: the payload names it, the properties say everything else.

    The properties are CloudEvents 1.0 in the MQTT binary binding, then `etag`, `size`, `versionid`.
    """

    filename: str
    identity: bytes
    """16 bytes; the same for every repeat of the event."""
    message: Message
    own: Message | None = None
    """The same on the device's own topic, where that is the second of two. The event does not depend on it."""


@dataclass(frozen=True, slots=True)
class Detection:
    """A camera's event. Its document, the created object, has to be read before there is anything to publish."""

    object_key: str
    version_id: str
    """"" in a bucket without versions."""
    camera_id: str
    event_id: str
    identity: bytes
    """16 bytes; the same for every repeat of the event."""
    user_properties: tuple[tuple[str, str], ...] = ()
    """As an `Upload`'s, but for `etag`, `size` and `versionid`: the message holds what they would tell apart."""

    @property
    def picture_key(self) -> str:
        """Where the thumbnail is, if there is one: beside the document."""
        return self.object_key.removesuffix(DOCUMENT_SUFFIX) + PICTURE_SUFFIX


UnreadLabel = Literal["gone", "bad_detection", "store_failed"]
"""The document is there no more; it is no detection event; the store could not be asked."""


@dataclass(frozen=True, slots=True)
class Unread:
    """Why nothing is published of a `Detection`."""

    label: UnreadLabel
    reason: str = ""
    code: str = ""
    """The reason in one word, the same for all that fail alike."""
    answered: bool = False
    """Whether the store has said something about this very object, and is not merely out of reach or broken."""

    @property
    def success(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.label == "gone"

    @property
    def retriable(self) -> bool:
        """Whether another try may succeed."""
        return self.label == "store_failed"

    @property
    def is_transient(self) -> bool:
        """Whether it may succeed later, as `Outcome.is_transient`."""
        return self.retriable


SkipReason = Literal[
    "malformed",
    "foreign_bucket",
    "unmapped",
    "folder_marker",
    "bad_config_name",
    "bad_asset_name",
    "bad_event_name",
]


@dataclass(frozen=True, slots=True)
class Skip:
    """Why a record rings no bell."""

    reason: SkipReason | IgnoredReason

    @property
    def is_warning(self) -> bool:
        """Whether somebody meant the object for devices, or of a camera, and named it wrongly."""
        return self.reason in {"bad_config_name", "bad_asset_name", "bad_event_name"}


@dataclass(frozen=True, slots=True)
class Routes:
    """Which keys are announced on which topic."""

    configs_prefix: str = "configs/"
    assets_prefix: str = "assets/"
    topic_prefix: str = "iotsupport"
    bucket: str | None = None
    events_prefix: str | None = None
    """Where cameras' events are; None: they are not announced."""
    device_topics: DeviceTopics = "off"
    """Whether configs are announced on their devices' own topics: too, or only there."""

    @classmethod
    def of(cls, settings: Settings) -> Routes:
        """Take the routes from validated settings."""
        return cls(
            settings.configs_prefix,
            settings.assets_prefix,
            settings.topic_prefix,
            settings.bucket,
            settings.events_prefix,
            settings.device_topics,
        )

    @property
    def topics(self) -> tuple[str, str]:
        """The two topics that every device hears, configs first."""
        return f"{self.topic_prefix}/updates/configs", f"{self.topic_prefix}/updates/assets"

    @property
    def labels(self) -> tuple[str, ...]:
        """All that an update can be published to, as metrics name it."""
        shared = self.topics[1:] if self.device_topics == "only" else self.topics
        return shared if self.device_topics == "off" else (*shared, OWN_LABEL)

    @property
    def filters(self) -> tuple[str, ...]:
        """The same, to subscribe to."""
        return tuple(f"{self.topic_prefix}/{one}" if one == OWN_LABEL else one for one in self.labels)

    def route(self, created: ObjectCreated) -> Upload | Detection | Skip:
        """Map `created` to what it asks for. The filename is passed on exactly as it was uploaded."""
        key = created.object_key
        if self.bucket is not None and created.bucket != self.bucket:
            return Skip("foreign_bucket")
        is_config = key.startswith(self.configs_prefix)
        if not is_config and not key.startswith(self.assets_prefix):
            return self._detection(created)
        if key.endswith("/"):
            return Skip("folder_marker")
        filename = key.removeprefix(self.configs_prefix if is_config else self.assets_prefix)
        if is_config and not is_config_name(filename):
            return Skip("bad_config_name")
        if not is_config and not is_asset_path(filename):
            return Skip("bad_asset_name")
        identity = created.identity
        message = Message(
            topic=self.topics[0] if is_config else self.topics[1],
            payload=f'{{"filename": {_encode(filename)}}}'.encode(),
            user_properties=_cloud_event(created, identity),
        )
        own = None
        if is_config and self.device_topics != "off":
            own = self._to_device(message, filename.removesuffix(CONFIG_SUFFIX))
            if self.device_topics == "only":
                message, own = own, None
        return Upload(filename, identity, message, own)

    def to_device(self, upload: Upload, mac: str) -> Upload:
        """The same for one device, on its own topic. `mac` has dashes."""
        return replace(upload, message=self._to_device(upload.message, mac), own=None)

    def _to_device(self, message: Message, mac: str) -> Message:
        return replace(message, topic=own_topic(self.topic_prefix, mac), label=OWN_LABEL)

    def moved(self, message: Message, before: Routes) -> Message:
        """A message of the routes `before` as it is under these: the prefix may be another."""
        if message.topic not in before.topics and message.label != OWN_LABEL:
            return message
        return replace(message, topic=self.topic_prefix + message.topic.removeprefix(before.topic_prefix))

    def _detection(self, created: ObjectCreated) -> Detection | Skip:
        key = created.object_key
        if self.events_prefix is None or not key.startswith(self.events_prefix):
            return Skip("unmapped")
        if key.endswith("/"):
            return Skip("folder_marker")
        if not key.endswith(DOCUMENT_SUFFIX):
            return Skip("unmapped")  # such as the picture, whose document follows
        camera_id, separator, event_id = key[len(self.events_prefix) : -len(DOCUMENT_SUFFIX)].partition("/")
        if not separator or not is_event_id(camera_id) or not is_event_id(event_id):
            return Skip("bad_event_name")
        identity = created.identity
        return Detection(
            object_key=key,
            version_id=created.version_id,
            camera_id=camera_id,
            event_id=event_id,
            identity=identity,
            user_properties=tuple(pair for pair in _cloud_event(created, identity) if pair[0] not in _OF_A_FILE),
        )


def own_topic(prefix: str, mac: str) -> str:
    """Where one device hears what is for it alone. `mac` has dashes; a topic is one in lower case."""
    return f"{prefix}/devices/{mac.lower()}/updates"


def _cloud_event(created: ObjectCreated, identity: bytes) -> tuple[tuple[str, str], ...]:
    """Describe the event as CloudEvents 1.0 attributes (MQTT binding §3.1; type and source: its AWS S3 adapter)."""
    pairs = [
        ("specversion", "1.0"),
        ("id", identity.hex()),
        ("source", f"s3://{created.bucket}"),
        ("type", f"com.amazonaws.s3.{created.event_name}"),
        ("subject", created.object_key),
        ("time", created.event_time),
        ("etag", created.etag),
        ("size", "" if created.size is None else str(created.size)),
        ("versionid", created.version_id),
    ]
    return tuple([pair for pair in pairs if pair[1]])
