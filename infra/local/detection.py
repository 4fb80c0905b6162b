"""One camera's detection event on the stack of `make run`, as a camera's software would upload it."""

from __future__ import annotations

import json
import time
import urllib.request
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from infra.local.stack import BUCKET, EVENTS_PREFIX, DemoError, Stack

if TYPE_CHECKING:
    from infra.incoming import Received
    from infra.subscriber import Subscriber

CAMERA_ID = "front-door"
PICTURE = Path(__file__).with_name("front-door.jpg")
OPEN_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Detected:
    """One detection that was seen all the way, from the upload of its picture to the picture behind the message's link.

    The times are how long the upload of the document took, how long after its beginning the message came, and how
    long the link took to open.
    """

    key: str
    message: Received
    uploaded_ms: float
    heard_ms: float
    opened_ms: float
    content_type: str


def detect(stack: Stack, subscriber: Subscriber | None = None, *, topic_prefix: str = "iotsupport") -> Detected:
    """Upload a picture and then its document as a camera's software would; hear of it, and open the link.

    `subscriber` is the stack's own, unless another hears better. Raises `DemoError` when another message or none is
    heard, or when the link does not give what was uploaded.
    """
    s3 = stack.store.client("s3")
    event_id = str(uuid.uuid4())
    key = f"{EVENTS_PREFIX}{CAMERA_ID}/{event_id}"
    document = {
        "event_id": event_id,
        "camera_id": CAMERA_ID,
        "camera_name": "Front door",
        "description": "A person with a parcel",
        "objects_detected": ["person", "package"],
        "confidence": 0.93,
        "source_type": "camera",
        "smart_detection_type": "person",
        "timestamp": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
    }
    s3.upload_file(str(PICTURE), BUCKET, f"{key}.jpg")
    began_at = time.monotonic()
    s3.put_object(Bucket=BUCKET, Key=f"{key}.json", Body=json.dumps(document).encode())
    uploaded_at = time.monotonic()
    message = stack.hear(f"{key}.json", subscriber)
    heard = json.loads(message.payload)
    link = heard.pop("thumbnail_url", None)
    if (message.topic, heard) != (f"{topic_prefix}/camera/{CAMERA_ID}/event", document):
        raise DemoError(f"heard something else after uploading {key}.json: {message}")
    if not str(link).startswith(f"{stack.host.url}/"):
        raise DemoError(f"the message has no link to the host: {link}")
    opening_at = time.monotonic()
    content_type, picture = _open(link)
    opened_at = time.monotonic()
    if picture != PICTURE.read_bytes():
        raise DemoError(f"{link} gives {len(picture)} bytes that are not the picture which was uploaded")
    return Detected(
        key,
        message,
        uploaded_ms=1e3 * (uploaded_at - began_at),
        heard_ms=1e3 * (message.received_at - began_at),
        opened_ms=1e3 * (opened_at - opening_at),
        content_type=content_type,
    )


def _open(link: str) -> tuple[str, bytes]:
    """What a browser gets, with its content type; it follows the redirect to the store."""
    try:
        with urllib.request.urlopen(link, timeout=OPEN_SECONDS) as answer:  # noqa: S310 - our own http URL, as checked
            return answer.headers["Content-Type"], answer.read()
    except OSError as error:
        raise DemoError(f"{link} does not open: {error}") from error
