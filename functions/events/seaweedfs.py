"""SeaweedFS tells of its filer's entries: one becomes an upload where it is an object's new content.

A bucket is a directory below `/buckets`, so there is much besides objects: directories, the parts of an upload, the
store's own files. An object of a versioned bucket is a directory `<key>.versions`, and each version a file in it.
"""

from __future__ import annotations

import binascii
from typing import Any

from functions.events.dialects import Ignored, Record, as_object, ignored, moment, plain_upload, printable

_BUCKETS = "/buckets/"
_PARTS = ".uploads/"
_VERSIONS = ".versions/v_"
_ETAG, _VERSION, _DELETE_MARKER = "Seaweed-X-Amz-ETag", "Seaweed-X-Amz-Version-Id", "Seaweed-X-Amz-Delete-Marker"
_NUMBER_OF_PARTS, _WRITE = "X-Seaweedfs-Multipart-Parts-Count", "x-seaweedfs-write-id"


def seaweedfs_event(event: dict[Any, Any], event_type: str) -> Record:
    """Read what its webhook sends (`weed/notification/webhook`). Never raises."""
    message = as_object(event.get("message"))
    old, new = as_object(message.get("old_entry")), as_object(message.get("new_entry"))
    sent = event.get("key")
    path = old_path = sent if isinstance(sent, str) else ""
    parent, name = message.get("new_parent_path"), new.get("name")
    if isinstance(parent, str) and isinstance(name, str) and parent and name:
        path = f"{parent}/{name}"  # after a rename another one than `key`
    bucket, _, key = path.removeprefix(_BUCKETS).partition("/")
    if not path.startswith(_BUCKETS) or not key or bucket.startswith(".") or f"{key}/".startswith(_PARTS):
        return Ignored("not_content", printable(event_type))
    if (new or old).get("is_directory"):
        return ignored("not_content", event_type, bucket, key)
    extended = as_object(new.get("extended"))
    version = _text(extended.get(_VERSION))
    if version and key.endswith(_VERSIONS + version):
        key = key.removesuffix(_VERSIONS + version)
    if not new or _text(extended.get(_DELETE_MARKER)) == "true":
        return ignored("removed", event_type, bucket, key)
    # Tags, rights, and that a version is not the newest any more: the entry is written anew with the same content.
    if old and path == old_path and _content(old) == _content(new):
        return ignored("not_content", event_type, bucket, key)
    attributes = as_object(new.get("attributes"))
    committed = new.get("commit_ts_ns")
    return plain_upload(
        bucket,
        key,
        "ObjectCreated:CompleteMultipartUpload" if _NUMBER_OF_PARTS in extended else "ObjectCreated:Put",
        # The time of the entry, which a LIST shows: the event may come seconds later.
        event_time=moment(attributes.get("mtime"), attributes.get("mtime_ns", 0)),
        etag=_text(extended.get(_ETAG)) or _hex(attributes.get("md5")),  # the latter where it did not come through S3
        size=attributes.get("file_size", None if new.get("chunks") or new.get("content") else 0),
        version_id=version,
        sequencer=str(committed) if isinstance(committed, int) and 0 < committed < 1 << 63 else "",
    )


def _content(entry: dict[Any, Any]) -> tuple[object, ...]:
    """What is another after each upload, of the same bytes too."""
    attributes, sent = as_object(entry.get("attributes")), entry.get("chunks")
    chunks = [_chunk(as_object(one)) for one in sent] if isinstance(sent, list) else []
    written = as_object(entry.get("extended")).get(_WRITE)
    return attributes.get("mtime"), attributes.get("mtime_ns"), written, entry.get("content"), chunks


def _chunk(chunk: dict[Any, Any]) -> tuple[object, ...]:
    """Where it is: the old entry has both names, the new one `fid` alone."""
    return chunk.get("fid") or chunk.get("file_id"), chunk.get("size"), chunk.get("modified_ts_ns"), chunk.get("e_tag")


def _bytes(sent: object) -> bytes:
    try:
        return binascii.a2b_base64(sent, strict_mode=True) if isinstance(sent, str) else b""
    except ValueError:  # binascii.Error, or a character outside ASCII
        return b""


def _text(sent: object) -> str:
    return printable(_bytes(sent).decode(errors="replace"))


def _hex(sent: object) -> str:
    return printable(_bytes(sent).hex())
