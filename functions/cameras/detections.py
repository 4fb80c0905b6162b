"""Pure: a camera's detection event, from the document that was uploaded to the message that is published.

Timestamps are published as RFC 3339 in UTC. In a document they may be

- text: RFC 3339, or the same with a space for the `T`, without seconds, or without a zone, which then means UTC; a
  leap second (`23:59:60Z`, RFC 3339 §5.7) is the first second of the next day, as clocks that know none show it;
- a number: seconds since 1970-01-01T00:00Z; from 10^11 on, which is the year 5138, milliseconds.
"""

from __future__ import annotations

import json
import math
import re
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NoReturn
from uuid import UUID

from functions.cameras.discovery import MAX_CAMERAS, camera_topic
from functions.cameras.message import CameraMessage, Sighting
from functions.events.routes import Detection

if TYPE_CHECKING:
    from functions.settings import Settings

MAX_DOCUMENT_BYTES = 256 * 1024
MAX_CONFIDENCE = 100
"""Some cameras count to 1, some to 100: the number is passed on as it is."""

AHEAD = timedelta(minutes=5)
"""A time that is further ahead of this process's clock is not believed."""

LABEL = "camera/+/event"
FIRST_MILLISECONDS = 1e11

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# `datetime.fromisoformat` alone would take digits of an epoch number for a date.
_MOMENT = re.compile(r"\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d(\.\d+)?)?([Zz]|[+-]\d\d:?\d\d)?", re.ASCII)
_LEAP_SECOND = re.compile(r"(?<=:\d\d):60", re.ASCII)


class BadDetectionError(ValueError):
    """A document is no detection event. `field` is what is wrong with it, "" for the document as a whole.

    Nothing here repeats what the document says.
    """

    def __init__(self, field: str, problem: str) -> None:
        """`problem` says what would be right."""
        self.field = field
        self.problem = problem
        super().__init__(f"{field or 'the document'} {problem}")


@dataclass(frozen=True, slots=True)
class CameraTopics:
    """Below which prefix cameras' events are published, and how."""

    topic_prefix: str
    qos: int | None = None
    """None: as everything else."""
    retain: bool = False

    @classmethod
    def of(cls, settings: Settings) -> CameraTopics:
        """What the environment says: stored settings may say more."""
        return cls(settings.topic_prefix)


@dataclass(frozen=True, slots=True)
class DetectionEvent:
    """What a camera saw. `timestamp` is in UTC, and without a zone where the document names none.

    `extra` are the fields of the document that nobody here knows.
    """

    event_id: str | UUID
    camera_id: str | UUID
    camera_name: str
    description: str | None
    objects_detected: tuple[str, ...]
    confidence: float | None
    source_type: str
    smart_detection_type: str | None
    timestamp: datetime
    extra: Mapping[str, object] = field(default_factory=dict)

    @property
    def sighting(self) -> Sighting:
        """What decides whether this is its camera's latest event."""
        return Sighting(str(self.camera_id), _in_utc(self.timestamp))

    def lacks_zone(self, now: datetime) -> bool:
        """Whether the camera sends its local time without saying so: in UTC it would be ahead of `now`."""
        return self.timestamp.tzinfo is None and _in_utc(self.timestamp) > now + AHEAD

    def payload(self, thumbnail_url: str | None) -> bytes:
        """The event as JSON, known fields first. Raises BadDetectionError for what no JSON can hold."""
        document = {name: getattr(self, name) for name in _READERS} | {"thumbnail_url": thumbnail_url}
        try:
            return _encode({**document, **{n: v for n, v in self.extra.items() if n not in document}}).encode()
        except UnicodeEncodeError:
            raise BadDetectionError("", "must be Unicode text, without half surrogate pairs") from None
        except (ValueError, RecursionError):
            raise BadDetectionError("", "must hold finite numbers, in some hundred levels at most") from None


def parse(document: bytes, detection: Detection) -> DetectionEvent:
    """Read the document of `detection`. Raises BadDetectionError with the first field that is missing or wrong."""
    if len(document) > MAX_DOCUMENT_BYTES:
        raise BadDetectionError("", f"must have at most {MAX_DOCUMENT_BYTES} bytes")
    try:
        # UTF-8 alone, if need be with the mark that some editors put before it.
        fields = json.loads(document.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        raise BadDetectionError("", "must be JSON in UTF-8") from None
    if not isinstance(fields, dict):
        raise BadDetectionError("", "must be a JSON object")
    read: dict[str, Any] = {}
    for name, reader in _READERS.items():
        if name not in fields:
            raise BadDetectionError(name, "is missing")
        try:
            read[name] = reader(fields.pop(name))
        except ValueError as error:
            raise BadDetectionError(name, str(error)) from None
    for name, in_the_key in (("event_id", detection.event_id), ("camera_id", detection.camera_id)):
        if read[name] != in_the_key:
            raise BadDetectionError(name, "must be the one that the object's key names")
    return DetectionEvent(**read, extra=fields)


def event_message(
    detection: Detection, event: DetectionEvent, topics: CameraTopics, thumbnail_url: str | None
) -> CameraMessage:
    """What is published of `event`. Raises BadDetectionError."""
    return CameraMessage(
        topic=camera_topic(topics.topic_prefix, detection.camera_id),
        payload=event.payload(thumbnail_url),
        user_properties=detection.user_properties,
        qos=topics.qos,
        retain=topics.retain,
        label=LABEL,
        about=event.sighting,
    )


def addressed(
    message: CameraMessage, sighting: Sighting, topics: CameraTopics, *, retain: bool = True
) -> CameraMessage:
    """`message`, which tells of `sighting`, as it is sent under these `topics`; not `retain`: whatever they say."""
    topic = camera_topic(topics.topic_prefix, sighting.camera_id)
    return replace(message, topic=topic, qos=topics.qos, retain=topics.retain and retain)


class Latest:
    """Each camera's latest event, of the `limit` cameras that were heard of most recently. Not thread-safe."""

    def __init__(self, limit: int = MAX_CAMERAS) -> None:
        """Begin empty."""
        self._limit = limit
        self._times: OrderedDict[str, datetime] = OrderedDict()

    def take(self, sighting: Sighting, now: datetime) -> bool:
        """Note an event: whether its camera has no later one. A time far ahead counts as `now`, or it stayed latest."""
        at = now if sighting.at > now + AHEAD else sighting.at
        known = self._times.get(sighting.camera_id)
        self._times[sighting.camera_id] = at if known is None else max(at, known)
        self._times.move_to_end(sighting.camera_id)
        if len(self._times) > self._limit:
            self._times.popitem(last=False)
        return known is None or at >= known

    def of(self, camera_id: str) -> datetime | None:
        """When that was; None: it is not known."""
        return self._times.get(camera_id)

    def forget(self, camera_id: str) -> None:
        """Take the camera's next event for its latest."""
        self._times.pop(camera_id, None)

    def clear(self) -> None:
        """Forget all: another broker keeps none of them."""
        self._times.clear()


def published_sighting(payload: bytes) -> Sighting | None:
    """The event that a message of ours tells of; None for what is none, or nobody's."""
    try:
        fields = json.loads(payload)
        camera_id, timestamp = _text(fields["camera_id"]), _moment(fields["timestamp"])
    except (ValueError, RecursionError, TypeError, KeyError):
        return None
    return Sighting(camera_id, _in_utc(timestamp)) if "event_id" in fields else None


def rfc3339(moment: datetime) -> str:
    """`moment` in UTC, e.g. `2026-11-20T12:00:00.250Z`; without a zone it is taken for UTC. Raises ValueError."""
    try:
        utc = _in_utc(moment)
    except OverflowError:
        raise ValueError("must be in the years 1 to 9999") from None
    is_whole_millisecond = utc.microsecond and not utc.microsecond % 1000
    return utc.isoformat(timespec="milliseconds" if is_whole_millisecond else "auto").replace("+00:00", "Z")


def _in_utc(moment: datetime) -> datetime:
    return (moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)).astimezone(UTC)


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError("must be text")  # noqa: TRY004 - the document is wrong, not the program
    return value


def _text_or_null(value: object) -> str | None:
    if value is not None and not isinstance(value, str):
        raise ValueError("must be text or null")
    return value


def _texts(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(one, str) for one in value):
        raise ValueError("must be a list of text")
    return tuple(value)


def _confidence(value: object) -> float | None:
    # true is an int to Python.
    if value is None or (
        isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= MAX_CONFIDENCE
    ):
        return value
    raise ValueError(f"must be a number from 0 to {MAX_CONFIDENCE}, or null")


def _moment(value: object) -> datetime:
    try:
        if isinstance(value, str) and _MOMENT.fullmatch(value):
            text, leap_seconds = _LEAP_SECOND.subn(":59", value.upper())
            moment = datetime.fromisoformat(text) + timedelta(seconds=leap_seconds)
            moment = moment.astimezone(UTC) if moment.tzinfo is not None else moment
            if not leap_seconds or (moment.hour, moment.minute) == (0, 0):  # no other minute has 61 seconds
                return moment
        if isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
            return _EPOCH + timedelta(seconds=value / 1000 if abs(value) >= FIRST_MILLISECONDS else value)
    except (ValueError, OverflowError):
        pass
    raise ValueError("must be a date and time such as 2026-11-20T12:00:00Z, or seconds since 1970")


_READERS = {
    "event_id": _text,
    "camera_id": _text,
    "camera_name": _text,
    "description": _text_or_null,
    "objects_detected": _texts,
    "confidence": _confidence,
    "source_type": _text,
    "smart_detection_type": _text_or_null,
    "timestamp": _moment,
}


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return rfc3339(value)
    if isinstance(value, UUID):
        return str(value)
    raise ValueError(type(value).__name__)


_encode = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain).encode
