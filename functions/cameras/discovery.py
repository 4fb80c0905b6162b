"""Pure: cameras as Home Assistant's MQTT discovery describes them, one retained message for each camera.

The rules are those of https://www.home-assistant.io/integrations/mqtt/#mqtt-discovery ("device discovery"); what
Home Assistant does with a message that breaks one was tried against Home Assistant 2025.4.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from threading import Lock
from typing import Any

from functions.cameras.message import Camera, CameraMessage
from functions.mqtt.message import Message

VERSION = "0.1.0"
MAX_CAMERAS = 1000
MAX_NAME_CHARACTERS = 100
"""Home Assistant makes entity ids of names, and cuts those at 255 characters."""
MAX_ID_CHARACTERS = 64
MAX_LEVEL_BYTES = 128  # of a topic: brokers take 65,535 bytes for the whole of it, AWS IoT Core 256
ACTIVE_SECONDS = 30
STALE_SECONDS = 300
"""A retained event comes again whenever Home Assistant subscribes: older than this, it is no activity."""

OBJECT_PREFIX = "bucketbell_"

OTHER_TYPE = "detection"
EVENT_TYPES = ("person", "vehicle", "animal", "package", "face", "licenseplate", "motion", "ring", OTHER_TYPE)
"""Home Assistant refuses an event of a type that was not announced: all others are a `detection`."""

_DIGEST_BYTES = 16
_CODED = re.compile(rf"-[0-9a-f]{{{2 * _DIGEST_BYTES}}}\Z")
_PLAIN_ID = re.compile(rf"[A-Za-z0-9_-]{{1,{MAX_ID_CHARACTERS}}}")
_WILD = frozenset("+#/")
_CONTROLS = dict.fromkeys((*range(0x20), *range(0x7F, 0xA0)), " ")

# `dict` keeps every field of the event, but replaces an `event_type` of the document's own.
_EVENT = (
    "{% set listed = [value_json.smart_detection_type, value_json.source_type] | map('string') | map('lower')"
    f" | select('in', {list(EVENT_TYPES)}) | list %}}"
    f"{{{{ dict(value_json, event_type=(listed + ['{OTHER_TYPE}'])[0]) | to_json }}}}"
)
_ACTIVE = "ON"
_ACTIVE_IF_FRESH = (
    f"{{{{ 'ON' if as_timestamp(now()) - as_timestamp(value_json.timestamp, 0) < {STALE_SECONDS} else 'OFF' }}}}"
)
# Adding "" to null fails, and then the picture stays as it was: any text that is no URL would be an ERROR in Home
# Assistant's log, and the old picture would be shown as if it were new.
_THUMBNAIL = "{{ value_json.thumbnail_url + '' }}"

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class Cameras:
    """The cameras that are known here: those heard of most recently, at most `limit`. Thread-safe.

    One that had to make room is announced again before its next event.
    """

    def __init__(self, limit: int = MAX_CAMERAS) -> None:
        """Begin empty, as after every restart."""
        self._limit = limit
        self._lock = Lock()
        self._names: OrderedDict[str, str] = OrderedDict()
        self._heard_at: dict[str, datetime] = {}

    def heard(self, camera: Camera) -> bool:
        """Note an event; return whether the camera is announced first, because it is new or has a new name."""
        with self._lock:
            is_due = self._names.get(camera.camera_id) != camera.name
            self._names[camera.camera_id] = camera.name
            self._names.move_to_end(camera.camera_id)
            self._heard_at[camera.camera_id] = datetime.now(UTC)
            if len(self._names) > self._limit:
                self._heard_at.pop(self._names.popitem(last=False)[0], None)
            return is_due

    def heard_since(self, camera_id: str, moment: datetime) -> bool:
        """Whether an event of it came after `moment`."""
        with self._lock:
            return camera_id in self._heard_at and self._heard_at[camera_id] > moment

    def found(self, cameras: Iterable[Camera]) -> tuple[Camera, ...]:
        """Add those that are not known yet, while there is room; they are the first to make room. Returns the added."""
        with self._lock:
            added: dict[str, Camera] = {}
            for camera in cameras:
                if camera.camera_id not in self._names and len(self._names) < self._limit:
                    self._names[camera.camera_id] = camera.name
                    self._names.move_to_end(camera.camera_id, last=False)
                    added[camera.camera_id] = camera
            return tuple(added.values())

    def forget(self, camera_id: str) -> bool:
        """Return whether it was known. Its next event announces it again. Also for a discovery message that failed."""
        with self._lock:
            self._heard_at.pop(camera_id, None)
            return self._names.pop(camera_id, None) is not None

    def __contains__(self, camera_id: str) -> bool:
        with self._lock:
            return camera_id in self._names

    def all(self) -> tuple[Camera, ...]:
        """Every camera that is known, for each connect."""
        with self._lock:
            return tuple(Camera(camera_id, name) for camera_id, name in self._names.items())


def camera_topic(topic_prefix: str, camera_id: str) -> str:
    """Where a camera's events are published: the id itself is a level of the topic where MQTT lets it be one."""
    return f"{topic_prefix}/camera/{_level(camera_id)}/event"


def availability_topic(topic_prefix: str, replica: str) -> str:
    """Where one host says that it is there. `replica` outlives restarts, or each leaves a retained message behind."""
    return f"{topic_prefix}/bucketbell/{_level(replica)}/availability"


def availability_label(topic_prefix: str) -> str:
    """What metrics call these topics."""
    return availability_topic(topic_prefix, "replica")


def discovery_label(discovery_prefix: str) -> str:
    """What metrics call the topics of discovery messages."""
    return f"{discovery_prefix}/device/+/config"


def discovery(
    camera: Camera,
    *,
    topic_prefix: str,
    discovery_prefix: str,
    qos: int = 1,
    retained: bool = False,
    availability_topics: Sequence[str] = (),
    support_url: str | None = None,
) -> Message:
    """The message that makes Home Assistant show `camera`.

    `qos` is what the events are published with, and what Home Assistant is told to subscribe with; `retained` says
    whether events are retained. The camera is there while any of `availability_topics` says `online`; without one it
    is there always. `support_url` is an http(s) address for people.
    """
    ours = object_id(camera.camera_id)
    topic = camera_topic(topic_prefix, camera.camera_id)
    payload: dict[str, Any] = {
        "device": {
            "identifiers": [ours],
            "name": display_name(camera),
            "manufacturer": "bucketbell",
            "model": "Camera",
        },
        "origin": {"name": "bucketbell", "sw_version": VERSION}
        | ({"support_url": support_url} if support_url is not None else {}),
        "components": {
            key: {"unique_id": f"{ours}_{key}", "qos": qos} | component
            for key, component in _components(topic, retained=retained).items()
        },
    }
    if availability_topics:
        payload |= {
            "availability": [{"topic": available} for available in dict.fromkeys(availability_topics)],
            "availability_mode": "any",
        }
    return _retained(camera.camera_id, discovery_prefix, _encode(payload).encode(), qos, camera)


def removed(camera_id: str, discovery_prefix: str, *, qos: int = 1) -> Message:
    """The message that makes Home Assistant forget a camera, and the broker what was retained about it."""
    return _retained(camera_id, discovery_prefix, b"", qos)


def object_id(camera_id: str) -> str:
    """A camera's name to Home Assistant's machinery, which takes letters, digits, `_` and `-` of ASCII."""
    return f"{OBJECT_PREFIX}{_coded(camera_id, is_plain=_PLAIN_ID.fullmatch(camera_id) is not None)}"


def display_name(camera: Camera) -> str:
    """A camera's name to people: on one line, and short; its id where it has none."""
    name = _one_line(camera.name) or _one_line(camera.camera_id) or object_id(camera.camera_id)
    return name if len(name) <= MAX_NAME_CHARACTERS else f"{name[: MAX_NAME_CHARACTERS - 1].rstrip()}…"


def _one_line(text: str) -> str:
    """`text` without controls, and without half surrogate pairs: Home Assistant reads no JSON that has them."""
    return " ".join(text.encode(errors="replace").decode().translate(_CONTROLS).split())


def _components(topic: str, *, retained: bool) -> dict[str, dict[str, Any]]:
    return {
        "event": {
            "platform": "event",
            "name": "Detection",
            "device_class": "motion",
            "state_topic": topic,
            "event_types": list(EVENT_TYPES),
            "value_template": _EVENT,
        },
        "activity": {
            "platform": "binary_sensor",
            "name": "Activity",
            "device_class": "motion",
            "state_topic": topic,
            "value_template": _ACTIVE_IF_FRESH if retained else _ACTIVE,
            "off_delay": ACTIVE_SECONDS,
        },
        "thumbnail": {
            "platform": "image",
            "name": "Thumbnail",
            "url_topic": topic,
            "url_template": _THUMBNAIL,
        },
        "timestamp": {
            "platform": "sensor",
            "name": "Last event",
            "device_class": "timestamp",
            "state_topic": topic,
            "value_template": "{{ value_json.timestamp }}",
            # All the fields: what Home Assistant still shows after its own restart, and where a description may be
            # longer than the 255 characters of a state.
            "json_attributes_topic": topic,
        },
    }


def discovery_topic(discovery_prefix: str, camera_id: str) -> str:
    """Where a camera's discovery message is retained."""
    return f"{discovery_prefix}/device/{object_id(camera_id)}/config"


def _retained(camera_id: str, discovery_prefix: str, payload: bytes, qos: int, about: Camera | None = None) -> Message:
    topic, label = discovery_topic(discovery_prefix, camera_id), discovery_label(discovery_prefix)
    if about is None:
        return Message(topic, payload, qos=qos, retain=True, label=label)
    return CameraMessage(topic, payload, qos=qos, retain=True, label=label, about=about)


def _level(text: str) -> str:
    """One level of a topic (MQTT 5 §4.7.1), without spaces: legal, but not in Home Assistant's discovery topics."""
    is_plain = text.isprintable() and " " not in text and _WILD.isdisjoint(text)
    return _coded(text, is_plain=is_plain and 0 < len(text.encode()) <= MAX_LEVEL_BYTES)


def _coded(text: str, *, is_plain: bool) -> str:
    """`text` itself where it is plain, or else what is readable of it and a digest of all of it.

    Two texts never share a code, since plain ones that look like a code are coded too.
    """
    if is_plain and not _CODED.search(text):
        return text
    digest = hashlib.blake2b(text.encode(errors="surrogatepass"), digest_size=_DIGEST_BYTES).hexdigest()
    readable = re.sub("[^A-Za-z0-9_-]+", "_", text)[: MAX_ID_CHARACTERS - len(digest) - 1]
    return f"{readable}-{digest}"
