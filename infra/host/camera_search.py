"""Which cameras have events in the bucket: looked up once, at the host's start. Others are announced when heard."""

from __future__ import annotations

import json
import threading
import time
from typing import TYPE_CHECKING, NamedTuple

from functions.cameras.discovery import MAX_CAMERAS
from functions.cameras.message import Camera
from functions.s3.clients import StorageError, storage_errors
from functions.telemetry import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_s3.type_defs import ObjectTypeDef

    from functions.s3.objects import Objects

LOOK_SECONDS = 60.0
PAGE_OBJECTS = 1000  # S3's own limit for one LIST
MAX_PAGES = 5  # of one camera: one with more objects than that will soon be heard anyway
MAX_DOCUMENT_BYTES = 256 * 1024
DOCUMENT_SUFFIX = ".json"


class FoundCameras(NamedTuple):
    """Cameras, and when the newest document of each was uploaded; `complete` where there are no others."""

    cameras: Mapping[Camera, datetime]
    complete: bool

    def since(self, removed: Mapping[str, datetime]) -> list[Camera]:
        """Without those that were removed, by id and time, after their newest document."""
        return [one for one, at in self.cameras.items() if one.camera_id not in removed or at > removed[one.camera_id]]


def look(
    objects: Objects,
    bucket: str,
    events_prefix: str,
    *,
    stopped: threading.Event,
    seconds: float = LOOK_SECONDS,
) -> FoundCameras:
    """Return the cameras with events below `events_prefix`.

    For a thread of its own: one LIST of the prefix, then for each camera at most MAX_PAGES more and one GET, until
    `stopped` or for `seconds`, give or take one call. A camera whose newest document is not known for certain, or
    does not say its name, is left to its next event, or Home Assistant could show it by an old name. A store that fails
    ends the look and is logged; nothing is raised.
    """
    until = time.monotonic() + seconds
    found: dict[Camera, datetime] = {}
    complete = False
    left = 0
    try:
        s3 = objects.client
        for prefix in _prefixes(s3, bucket, events_prefix):
            if stopped.is_set():
                break
            camera_id = prefix[len(events_prefix) : -1]
            newest = _newest(s3, bucket, prefix) if camera_id and time.monotonic() < until else None
            if newest is None:
                left += 1
            else:
                found[Camera(camera_id, newest[0])] = newest[1]
    except StorageError as error:
        logger.warning(
            "the bucket was not searched for cameras: each is announced before its next event",
            extra={"bucket": bucket, "prefix": events_prefix, "reason": str(error), "found": len(found)},
        )
    else:
        complete = not left and not stopped.is_set()
        logger.info("cameras found in the bucket", extra={"found": len(found), "left_to_their_events": left})
    return FoundCameras(found, complete)


def _prefixes(s3: S3Client, bucket: str, events_prefix: str) -> list[str]:
    with storage_errors():
        page = s3.list_objects_v2(Bucket=bucket, Prefix=events_prefix, Delimiter="/", MaxKeys=MAX_CAMERAS)
    return [entry["Prefix"] for entry in page.get("CommonPrefixes", [])]


def _newest(s3: S3Client, bucket: str, prefix: str) -> tuple[str, datetime] | None:
    """What the camera's newest document calls it, and when it was uploaded; None if that is not known."""
    newest: ObjectTypeDef | None = None
    start_after = ""
    for _ in range(MAX_PAGES):
        with storage_errors():
            page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=start_after, MaxKeys=PAGE_OBJECTS)
        listed = page.get("Contents", [])
        documents = [entry for entry in listed if entry["Key"].endswith(DOCUMENT_SUFFIX)]
        newest = max((*documents, *([newest] if newest else [])), key=lambda entry: entry["LastModified"], default=None)
        if not page["IsTruncated"]:
            break
        start_after = listed[-1]["Key"]
    else:
        return None
    if newest is None or newest["Size"] > MAX_DOCUMENT_BYTES:
        return None
    name = _read_name(s3, bucket, newest["Key"])
    return None if name is None else (name, newest["LastModified"])


def _read_name(s3: S3Client, bucket: str, key: str) -> str | None:
    try:
        with storage_errors():
            body = s3.get_object(Bucket=bucket, Key=key)["Body"].read(MAX_DOCUMENT_BYTES)
    except StorageError as error:
        if error.answered:  # gone since it was listed, or not for us: no reason to leave the other cameras out
            return None
        raise
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return None
    name = document.get("camera_name") if isinstance(document, dict) else None
    return name if isinstance(name, str) else None
