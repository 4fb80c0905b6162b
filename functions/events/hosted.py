"""What hosted stores tell in words of their own: Backblaze B2, Cloudflare R2, Tigris. All name the key as it is."""

from __future__ import annotations

from typing import Any

from functions.events.dialects import IgnoredReason, Record, as_object, ignored, moment, plain_upload

_B2_CREATED = {
    "b2:ObjectCreated:Upload": "ObjectCreated:Put",
    "b2:ObjectCreated:MultipartUpload": "ObjectCreated:CompleteMultipartUpload",
    "b2:ObjectCreated:Copy": "ObjectCreated:Copy",
    # Created here by a replication from another bucket.
    "b2:ObjectCreated:Replica": "ObjectCreated:Put",
    "b2:ObjectCreated:MultipartReplica": "ObjectCreated:CompleteMultipartUpload",
}
_B2_IGNORED: dict[str, IgnoredReason] = {
    "b2:TestEvent": "test_event",
    "b2:ObjectDeleted": "removed",
    "b2:HideMarkerCreated": "removed",  # S3's delete marker
    "b2:MultipartUploadCreated": "not_content",
}
_R2_CREATED = {
    "PutObject": "ObjectCreated:Put",
    "CopyObject": "ObjectCreated:Copy",
    "CompleteMultipartUpload": "ObjectCreated:CompleteMultipartUpload",
}
_R2_REMOVED = frozenset({"DeleteObject", "LifecycleDeletion"})
_MILLISECONDS = 1000


def b2_event(event: dict[Any, Any], event_type: str) -> Record:
    """Read one of `events` of Backblaze B2 ("Event Notifications Reference Guide"). It tells no etag. Never raises."""
    bucket, key = event.get("bucketName"), event.get("objectName")
    name = _B2_CREATED.get(event_type)
    if name is None:
        known = _B2_IGNORED.get(event_type) or _B2_IGNORED.get(event_type.rpartition(":")[0])
        return ignored(known or "unknown_event", event_type, bucket, key)
    sent = event.get("eventTimestamp")
    return plain_upload(
        bucket,
        key,
        name,
        event_time=moment(*divmod(sent, _MILLISECONDS), per_second=_MILLISECONDS) if isinstance(sent, int) else "",
        size=event.get("objectSize"),
        version_id=event.get("objectVersionId"),
    )


def r2_event(event: dict[Any, Any], action: str) -> Record:
    """Read what Cloudflare R2 puts into a queue (R2, "Event notifications", message format). Never raises."""
    fields, bucket = as_object(event.get("object")), event.get("bucket")
    name = _R2_CREATED.get(action)
    if name is None:
        return ignored("removed" if action in _R2_REMOVED else "unknown_event", action, bucket, fields.get("key"))
    return _upload(event, fields, name)


def tigris_event(event: dict[Any, Any], event_name: str) -> Record:
    """Read one of `events` of Tigris ("Object Notifications", notification format). Never raises."""
    fields = as_object(event.get("object"))
    if event_name != "OBJECT_CREATED_PUT":
        reason: IgnoredReason = "removed" if event_name == "OBJECT_DELETED" else "unknown_event"
        return ignored(reason, event_name, event.get("bucket"), fields.get("key"))
    return _upload(event, fields, "ObjectCreated:Put")


def _upload(event: dict[Any, Any], fields: dict[Any, Any], name: str) -> Record:
    return plain_upload(
        event.get("bucket"),
        fields.get("key"),
        name,
        event_time=event.get("eventTime"),
        etag=fields.get("eTag"),
        size=fields.get("size"),
    )
