"""Reads what a detection event consists of from the bucket, its document and its thumbnail, and makes the message."""

from __future__ import annotations

import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from urllib.parse import quote, urlencode

from functions.cameras.detections import MAX_DOCUMENT_BYTES, BadDetectionError, CameraTopics, event_message, parse
from functions.cameras.discovery import MAX_CAMERAS
from functions.events.routes import Unread
from functions.s3.clients import StorageError
from functions.s3.objects import Objects
from functions.telemetry import logger
from functions.web.tokens import Keyring, KeyringError

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Iterable

    from functions.cameras.detections import DetectionEvent
    from functions.events.routes import Detection
    from functions.mqtt.message import Message
    from functions.settings import Settings

READERS = 10  # as many as SQS hands over at once, by default
THUMBNAILS = "/thumbnails"
_NOT_IN_A_PATH = frozenset("%?")  # which AWS's gateway takes for something else, however they are encoded (see `web`)


@dataclass(frozen=True, slots=True)
class ReadDetection:
    """A detection event that was read: the camera as its document names it, and what is to be published."""

    camera_id: str
    camera_name: str
    message: Message


class DetectionReader:
    """Thread-safe. boto3 is imported and asked for clients at the first `read`, unless `objects` has it already."""

    def __init__(
        self,
        objects: Objects,
        topics: CameraTopics,
        *,
        events_prefix: str,
        base_url: str | None = None,
        keyring: Keyring | None = None,
    ) -> None:
        """Thumbnails' links begin with `base_url` if there is one, and a key to sign their tokens with."""
        self.default_topics = self.topics = topics
        """May be replaced at any time: what is read from then on goes there."""
        self.objects = objects
        self._events_prefix = events_prefix
        self._base_url = (base_url or "").rstrip("/")
        self._keyring = keyring if base_url is not None and keyring is not None and keyring.can_sign else None
        self._warned = False
        self._said: set[str] = set()
        self._zoneless = set[object]()
        """The cameras that were warned about."""

    @classmethod
    def of(
        cls, settings: Settings, *, objects: Objects | None = None, keyring: Keyring | None = None
    ) -> DetectionReader:
        """Take everything from settings with BUCKET and EVENTS_PREFIX; what exists already is not made again.

        Without a usable `keyring`, links are presigned, and the log says so: an event is not lost over it.
        """
        if settings.bucket is None or settings.events_prefix is None:
            raise ValueError("needs BUCKET and EVENTS_PREFIX")
        if objects is None:
            objects = Objects(
                settings,
                settings.bucket,
                url_ttl_seconds=settings.url_ttl_seconds,
                public_endpoint_url=settings.s3_public_endpoint_url,
            )
        if keyring is None and settings.public_base_url is not None:
            try:
                keyring = Keyring.parse([key.get_secret_value() for key in settings.device_token_keys])
            except KeyringError as error:
                logger.error("thumbnails' links are presigned", extra={"problem": str(error)})  # which holds no value
        return cls(
            objects,
            CameraTopics.of(settings),
            events_prefix=settings.events_prefix,
            base_url=settings.public_base_url,
            keyring=keyring,
        )

    def read(self, detection: Detection) -> ReadDetection | Unread:
        """Read the document, in the version that the event tells of where there are versions, and make the message.

        Without versions it is the current document: an upload that has overwritten it rings too. Within
        two of the store's deadlines where it is silent; never raises for what a store or a document may be. A picture
        that cannot be seen costs the message its link.
        """
        topics = self.topics
        try:
            document = self.objects.read(detection.object_key, detection.version_id, limit_bytes=MAX_DOCUMENT_BYTES)
            if document is None:
                return Unread("gone")
            event = parse(document, detection)
            self._check_clock(event)
            message = event_message(detection, event, topics, self._thumbnail_url(detection, retain=topics.retain))
        except StorageError as error:
            return Unread("store_failed", str(error), error.code, error.answered)
        except BadDetectionError as error:
            return Unread("bad_detection", str(error))
        return ReadDetection(detection.camera_id, event.camera_name, message)

    def store_answers(self) -> bool:
        """Whether the store answers at all: if so, a failure concerns one object and is not an outage."""
        return self.objects.answers()

    def _check_clock(self, event: DetectionEvent) -> None:
        if event.lacks_zone(datetime.now(UTC)) and event.camera_id not in self._zoneless:
            if len(self._zoneless) >= MAX_CAMERAS:
                self._zoneless.clear()
            self._zoneless.add(event.camera_id)
            logger.warning(
                "a camera's timestamp has no zone, and lies ahead if it is taken for UTC: "
                "end it with Z in UTC, or with an offset such as +01:00",
                extra={"camera_id": event.camera_id},
            )

    def _thumbnail_url(self, detection: Detection, *, retain: bool) -> str | None:
        try:
            return self._link(detection, retain=retain)
        except StorageError as error:  # without the right to list, a picture that is not there is 403
            if error.code not in self._said:  # it will be the same for the next one
                self._said.add(error.code)
                details = {"object_key": detection.picture_key, "reason": str(error)}
                logger.warning("events are announced without their thumbnails", extra=details)
            return None

    def _link(self, detection: Detection, *, retain: bool) -> str | None:
        if self.objects.head(detection.picture_key) is None:
            return None
        if self._keyring is not None:
            token = self._keyring.mint_for_object(detection.picture_key)
            return f"{self._base_url}{thumbnail_path(detection.picture_key.removeprefix(self._events_prefix), token)}"
        if retain and not self._warned:
            self._warned = True
            logger.warning(
                "retained messages will hold dead links to thumbnails: set PUBLIC_BASE_URL and DEVICE_TOKEN_KEYS"
            )
        return self.objects.presign_picture(detection.picture_key).url


def read_all(
    reader: DetectionReader, detections: Iterable[Detection], end: float
) -> dict[bytes, ReadDetection | Unread]:
    """Read all by `end` (`time.monotonic`), in parallel, each event once; by identity."""
    wanted = {detection.identity: detection for detection in detections}
    pool = ThreadPoolExecutor(min(len(wanted), READERS))
    reads = {identity: pool.submit(reader.read, detection) for identity, detection in wanted.items()}
    wait(reads.values(), timeout=max(0.0, end - time.monotonic()))
    pool.shutdown(wait=False, cancel_futures=True)
    return {identity: outcome(read) for identity, read in reads.items()}


def outcome(read: Future[ReadDetection | Unread] | asyncio.Future[ReadDetection | Unread]) -> ReadDetection | Unread:
    """What came of a read that is done, or that nobody waits for any more."""
    if not read.done() or read.cancelled():
        return Unread("store_failed", "not read in time", "not read in time")
    error = read.exception()
    if error is not None:
        logger.error("a detection event was not read", exc_info=error)
        return Unread("store_failed", type(error).__name__, type(error).__name__)
    return read.result()


def thumbnail_path(name: str, token: str) -> str:
    """The path and query of a thumbnail's link; `name` is its key below EVENTS_PREFIX."""
    if _NOT_IN_A_PATH.isdisjoint(name):
        return f"{THUMBNAILS}/{quote(name)}?{urlencode({'token': token})}"
    return f"{THUMBNAILS}?{urlencode({'filename': name, 'token': token}, quote_via=quote)}"
