"""One record of S3's form becomes a frozen value: an upload, something to ignore, or something unusable.

The differences are pinned by captured documents (`tests/events/README.md` names their sources):

==========  ==============================  ==========================================  ====================
sender      `eventSource`, `eventName`      `object.key`                                `object.size`
==========  ==============================  ==========================================  ====================
AWS, moto   `aws:s3`, `ObjectCreated:…`     query-escaped (moto escapes `/` as well)    integer
MinIO       `minio:s3`, `s3:` in front      query-escaped, `/` too                      left out when 0
RustFS      `rustfs:s3`, `s3:` in front     query-escaped, `/` too                      integer
Ceph RGW    `ceph:s3`, with or without it   as it is (`rgw_notify.cc`, populate_event)  string or integer
Versity GW  `aws:s3`, `s3:` in front        as it is                                    0 unless it was a PUT
==========  ==============================  ==========================================  ====================

Amazon EventBridge's `detail` names the key as it is. Any other sender is read like AWS. Documents of other forms:
`seaweedfs`, and `hosted` for Backblaze B2, Cloudflare R2 and Tigris.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import blake2b
from itertools import islice
from typing import Any, Literal
from urllib.parse import unquote_to_bytes

MAX_KEY_BYTES = 1024
"""S3's limit for an object key, in bytes of UTF-8 (S3 user guide, "Naming Amazon S3 objects")."""

MAX_BUCKET_CHARACTERS = 255
"""The longest bucket name that AWS ever allowed (us-east-1 before March 2018)."""

MAX_TEXT_CHARACTERS = 1024
"""Longer etags, versions, sequencers, times and ignored names are taken for nonsense."""

NULL_VERSION = "null"  # S3's name for the version of an object that has none
MAX_DETAIL_CHARACTERS = 200
MAX_SIZE_DIGITS = 19  # of a signed 64-bit integer, which is what every sender counts with

CREATED_NAMES = frozenset(
    {
        "ObjectCreated:Put",
        # Ceph also says Post where a multipart upload only begins: a ring too many, which is harmless.
        "ObjectCreated:Post",
        "ObjectCreated:Copy",
        "ObjectCreated:CompleteMultipartUpload",
    }
)
"""What rings. An allow-list: MinIO expands `s3:ObjectCreated:*` to tags, retention and legal hold as well."""

_UNCHANGED_CREATED_NAMES = frozenset(
    f"ObjectCreated:{action}" for action in ("PutTagging", "DeleteTagging", "PutRetention", "PutLegalHold")
)
_NOT_CONTENT_FAMILIES = frozenset(
    {
        "BucketCreated",
        "BucketRemoved",
        "IntelligentTiering",
        "LifecycleTransition",
        "ObjectAccessed",
        "ObjectAcl",
        "ObjectAnnotation",
        "ObjectLifecycle",
        "ObjectRestore",
        "ObjectTagging",
        "ObjectTransition",
        "ReducedRedundancyLostObject",
        "Replication",
        "Scanner",
    }
)
_EVENTBRIDGE_REASONS = {
    "PutObject": "ObjectCreated:Put",
    "POST Object": "ObjectCreated:Post",
    "CopyObject": "ObjectCreated:Copy",
    "CompleteMultipartUpload": "ObjectCreated:CompleteMultipartUpload",
}
_EVENTBRIDGE_TYPES = {
    "Object Deleted": "ObjectRemoved:Delete",
    "Object Restore Initiated": "ObjectRestore:Post",
    "Object Restore Completed": "ObjectRestore:Completed",
    "Object Restore Expired": "ObjectRestore:Delete",
    "Object Storage Class Changed": "LifecycleTransition",
    "Object Access Tier Changed": "IntelligentTiering",
    "Object ACL Updated": "ObjectAcl:Put",
    "Object Tags Added": "ObjectTagging:Put",
    "Object Tags Deleted": "ObjectTagging:Delete",
}
_UNESCAPED_SOURCES = frozenset({"aws.s3", "ceph:s3"})  # "aws.s3" is EventBridge's name for S3
_OMITS_ZERO_SIZE = frozenset({"minio:s3", "rustfs:s3"})
_SEQUENCED_BY_TIME = frozenset({"minio:s3", "rustfs:s3"})  # when the object was modified, in nanoseconds
_NANOSECONDS = re.compile(r"1[0-9A-F]{15}", re.ASCII)  # from 2006 to 2043
_JSON_TYPES = {
    type(None): "null",
    bool: "boolean",
    int: "number",
    float: "number",
    str: "string",
    list: "array",
}


@dataclass(frozen=True, slots=True)
class ObjectCreated:
    """An object's content was created or replaced."""

    bucket: str
    object_key: str
    """Decoded once: exactly as the object is named in the bucket. No NUL, at most `MAX_KEY_BYTES` long."""
    event_name: str
    """One of `CREATED_NAMES`, whatever the sender's spelling."""
    event_time: str = ""
    """As sent, which is RFC 3339 in every known dialect; "" when absent."""
    etag: str = ""
    """Without quotes; "" when absent."""
    size: int | None = None
    """Bytes; None where the sender said nothing usable."""
    version_id: str = ""
    """"" when absent; "null" is S3's own name for the version of an unversioned object and stays."""
    sequencer: str = ""
    """"" when absent, and where each door has another for the same upload (Ceph's topics)."""
    modified: int = 0
    """The object's LastModified as a LIST shows it, in milliseconds since 1970; 0 where the sender does not tell."""

    @property
    def version(self) -> str:
        """The version id, "" where there are no versions, whichever way the sender says so."""
        return "" if self.version_id == NULL_VERSION else self.version_id

    @property
    def identity(self) -> bytes:
        """16 bytes that are equal for one event however often, and at however many doors, it arrives.

        Made of bucket, key, version, etag, event time and sequencer. The time tells a re-upload from a repeat where
        the sequencer cannot (Versity GW's restarts at 1). The event name is not in it. Where `modified` is known it
        stands for version, time and sequencer: a LIST tells it too.
        """
        parts: tuple[str, ...] = self.bucket, self.object_key, self.etag
        if self.modified:
            parts += (str(self.modified),)
        else:
            parts += self.version, self.event_time, self.sequencer
        # Lengths in front, so that "ab" + "c" is not "a" + "bc".
        text = "".join([f"{len(part)}:{part}" for part in parts])
        return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).digest()


IgnoredReason = Literal["removed", "not_content", "unknown_event", "test_event", "subscription", "empty"]
"""`not_content`: tags, retention, restore, replication …; `subscription`: SNS asks a person to confirm an endpoint."""


@dataclass(frozen=True, slots=True)
class Ignored:
    """Understood, and nothing to do.

    The fields beside `reason` are for a log line, "" where they are absent or unusable.
    """

    reason: IgnoredReason
    event_name: str = ""
    bucket: str = ""
    object_key: str = ""


@dataclass(frozen=True, slots=True)
class Malformed:
    """Cannot be understood, and no retry will change that.

    `reason` is one of `not_utf8`, `not_json`, `not_base64`, `too_deep`, `not_an_event`, `missing_bucket`,
    `missing_key`, `bad_key` and `too_many`; `detail` shows at most `MAX_DETAIL_CHARACTERS` printable characters of it.
    """

    reason: str
    detail: str = ""


Record = ObjectCreated | Ignored | Malformed


def s3_record(record: dict[Any, Any], name: str) -> Record:
    """Read one record of S3's own form; `name` is its event name, as sent. Never raises."""
    event_name = name.removeprefix("s3:")
    source = printable(record.get("eventSource"))
    s3 = as_object(record.get("s3"))
    bucket = as_object(s3.get("bucket")).get("name")
    fields = as_object(s3.get("object"))
    versity = source == "aws:s3" and name.startswith("s3:")
    key = _key(fields.get("key"), escaped=not versity and source not in _UNESCAPED_SOURCES)
    # The name decides first: a removal stays a removal when the rest of its record is broken.
    if event_name not in CREATED_NAMES:
        reason = _why_ignored(event_name)
        return Ignored(reason, printable(event_name), printable(bucket), key if isinstance(key, str) else "")
    if not isinstance(bucket, str) or not _is_bucket_name(bucket):
        return Malformed("missing_bucket", excerpt(bucket))
    if isinstance(key, Malformed):
        return key
    etag = printable(fields.get("eTag")).strip('"')
    of_parts = "-" in etag and "sequencer" not in fields
    if of_parts and event_name == "ObjectCreated:Put" and source == "aws:s3" and not versity:
        # moto tells of a multipart upload twice, as Put too, a moment apart. AWS' events have a sequencer.
        return Ignored("not_content", event_name, bucket, key)
    size = _size(fields.get("size", 0 if source in _OMITS_ZERO_SIZE else None))
    if versity and size == 0 and event_name != "ObjectCreated:Put":
        size = None  # Versity GW says 0 for every copy and every multipart upload
    sequencer = "" if source == "ceph:s3" else printable(fields.get("sequencer"))
    is_time = source in _SEQUENCED_BY_TIME and _NANOSECONDS.fullmatch(sequencer)
    return ObjectCreated(
        bucket,
        key,
        event_name,
        printable(record.get("eventTime")),
        etag,
        size,
        printable(fields.get("versionId")),
        sequencer,
        int(sequencer, 16) // 1_000_000 if is_time else 0,
    )


def eventbridge_event(event: dict[Any, Any], detail_type: str) -> Record:
    """Read Amazon EventBridge's form (S3 user guide, "EventBridge event message structure") as S3's own."""
    detail = as_object(event.get("detail"))
    fields = as_object(detail.get("object"))
    if detail_type == "Object Created":
        reason = detail.get("reason")
        name = _EVENTBRIDGE_REASONS.get(reason, detail_type) if isinstance(reason, str) else detail_type
    else:
        name = _EVENTBRIDGE_TYPES.get(detail_type, detail_type)
    s3_object = {
        "key": fields.get("key"),
        "size": fields.get("size"),
        "eTag": fields.get("etag"),
        "versionId": fields.get("version-id"),
        "sequencer": fields.get("sequencer"),
    }
    record = {
        "eventSource": "aws.s3",
        "eventTime": event.get("time"),
        "s3": {"bucket": detail.get("bucket"), "object": s3_object},
    }
    return s3_record(record, name)


def plain_upload(
    bucket: object,
    key: object,
    event_name: str,
    *,
    event_time: object = "",
    etag: object = "",
    size: object = None,
    version_id: object = "",
    sequencer: str = "",
) -> Record:
    """An upload as a form that is not S3's tells of it, with the key as it is; `event_name` is S3's. Never raises."""
    if not isinstance(bucket, str) or not _is_bucket_name(bucket):
        return Malformed("missing_bucket", excerpt(bucket))
    found = _key(key, escaped=False)
    if isinstance(found, Malformed):
        return found
    time, tag, version = printable(event_time), printable(etag).strip('"'), printable(version_id)
    return ObjectCreated(bucket, found, event_name, time, tag, _size(size), version, sequencer)


def ignored(reason: IgnoredReason, event_name: str, bucket: object, key: object) -> Ignored:
    """What such a form tells of, and nothing is to be done about. Never raises."""
    found = _key(key, escaped=False)
    return Ignored(reason, printable(event_name), printable(bucket), found if isinstance(found, str) else "")


def moment(seconds: object, rest: object = 0, *, per_second: int = 1_000_000_000) -> str:
    """A time since 1970 in RFC 3339, to the millisecond where there is a rest; "" for nonsense."""
    if not isinstance(seconds, int) or not isinstance(rest, int) or not 0 <= rest < per_second:
        return ""
    try:
        text = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
    except (OverflowError, OSError, ValueError):  # no year of four digits
        return ""
    return f"{text}.{rest * 1000 // per_second:03}Z" if rest else f"{text}Z"


def _why_ignored(event_name: str) -> IgnoredReason:
    family = event_name.partition(":")[0]
    # Expirations are removals that do not say so: LifecycleExpiration, LifecycleDelMarkerExpiration (MinIO),
    # ObjectLifecycle:Expiration (Ceph).
    if family == "ObjectRemoved" or "Expiration" in event_name:
        return "removed"
    if event_name in _UNCHANGED_CREATED_NAMES or family in _NOT_CONTENT_FAMILIES:
        return "not_content"
    return "unknown_event"


def _is_bucket_name(name: str) -> bool:
    return 0 < len(name) <= MAX_BUCKET_CHARACTERS and name.isprintable()


def _key(sent: object, *, escaped: bool) -> str | Malformed:
    if not isinstance(sent, str) or not sent:
        return Malformed("missing_key", excerpt(sent))
    try:
        # As unquote_plus with strict errors, at half its cost: it decodes each run of escapes by itself.
        key = unquote_to_bytes(sent.replace("+", " ")).decode() if escaped else sent
        usable = len(key.encode()) <= MAX_KEY_BYTES and "\0" not in key
    except UnicodeError:  # escaped bytes that are not UTF-8, or half a surrogate pair
        usable = False
    return key if usable else Malformed("bad_key", excerpt(sent))


def _size(sent: object) -> int | None:
    """Read a size in bytes; nonsense is None, because the upload happened and the size only decorates it."""
    if isinstance(sent, str) and sent.isascii() and sent.isdigit() and len(sent) <= MAX_SIZE_DIGITS:
        sent = int(sent)
    if isinstance(sent, int) and not isinstance(sent, bool) and 0 <= sent < 1 << 63:
        return sent
    return None


def printable(sent: object) -> str:
    """Return a decoration as it was sent, "" where it is no short printable string."""
    return sent if isinstance(sent, str) and len(sent) <= MAX_TEXT_CHARACTERS and sent.isprintable() else ""


def as_object(sent: object) -> dict[Any, Any]:
    """Return a JSON object, an empty one in place of anything else."""
    return sent if isinstance(sent, dict) else {}


def excerpt(sent: object) -> str:
    """Return at most `MAX_DETAIL_CHARACTERS` printable characters that show what was sent."""
    if isinstance(sent, bytes):
        sent = sent[:MAX_DETAIL_CHARACTERS].decode(errors="replace")
    if not isinstance(sent, str):
        return describe(sent)
    shown = sent[:MAX_DETAIL_CHARACTERS]
    return "".join([c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in shown])


def describe(document: object) -> str:
    """Name what arrived without rendering it: it may be huge, or nested too deeply for repr()."""
    if isinstance(document, dict):
        keys = [key[:MAX_DETAIL_CHARACTERS] for key in islice(document, 10) if isinstance(key, str)]
        return excerpt("object with " + ", ".join(keys)) if keys else "object"
    return _JSON_TYPES.get(type(document), "not JSON")
