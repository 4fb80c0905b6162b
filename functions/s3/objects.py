"""One bucket's objects: what is there now, page by page, and URLs to fetch it with; every call within a deadline."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from http import HTTPStatus
from threading import RLock
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from functions.events.dialects import NULL_VERSION
from functions.s3.clients import (
    BAD_REQUEST,
    StorageError,
    client,
    on_other_region,
    open_session,
    region,
    storage_errors,
)
from functions.s3.signing import ObjectReader, Signer
from functions.telemetry import logger

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

    from functions.settings import Settings

S3_CONNECT_TIMEOUT_SECONDS = 1.0
S3_READ_TIMEOUT_SECONDS = 2.0
S3_DEADLINE_SECONDS = S3_CONNECT_TIMEOUT_SECONDS + S3_READ_TIMEOUT_SECONDS
"""A store that says nothing for so long is down. One attempt: a device that is told so comes again by itself."""

S3_CONNECTIONS = 32  # as many as the host has threads for these calls
MAX_PAGE_OBJECTS = 1000  # S3's own limit for one LIST
MAX_REGIONS = 3  # a store that names one region after another is not followed for ever
SHA256_BYTES = 32
MAX_SAVED_NAME_BYTES = 255  # a file name on ext4, NTFS, APFS

IMPOSSIBLE_NAME = "XMinioInvalidObjectName"  # a segment of more than 255 bytes: MinIO keeps objects in files
_ABSENT = frozenset({400, 404, 405})
"""HEAD has no body to say why: 404; 405 is a delete marker asked for by version; 400 a version id S3 cannot read."""
_SHA256_HEX = re.compile("[0-9a-fA-F]{64}")
_GONE = frozenset(
    {"NoSuchKey", "MethodNotAllowed", IMPOSSIBLE_NAME}
)  # the second: a delete marker asked for by version
_NO_SUCH_VERSION = frozenset({"NoSuchVersion", "InvalidArgument"})  # the second: a version id that S3 cannot read
_SHOWN = {"response-content-disposition": "inline", "response-content-type": "image/jpeg"}
_NO_VERSIONS = frozenset({400, 403, 404, 405, 501})
"""A store without versions, or a policy without s3:GetBucketVersioning or s3:ListBucketVersions."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """One object as it is now. `etag` is unquoted; it, `version_id` and `sha256` are "" where the store has none.

    A file that was copied into the folder of a store (Versity Gateway) has no ETag. `sha256` is that of the content, in
    hex; a LIST does not tell it.
    """

    object_key: str
    etag: str
    size: int
    last_modified: datetime
    version_id: str = ""
    sha256: str = ""


@dataclass(frozen=True, slots=True)
class Presigned:
    """A URL for GET alone (S3 answers HEAD with 403), and the moment from which it is dead."""

    url: str
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class Page:
    """Objects in S3's order (UTF-8 bytes), maybe fewer than asked for; `next_start_after` is "" on the last page."""

    objects: tuple[ObjectInfo, ...]
    next_start_after: str = ""


class Objects:
    """One bucket, as devices see it. Thread-safe; boto3 is imported and asked for clients at the first call.

    Every method raises StorageError; against a silent store within S3_DEADLINE_SECONDS.
    """

    def __init__(
        self, settings: Settings, bucket: str, *, url_ttl_seconds: int, public_endpoint_url: str | None = None
    ) -> None:
        """URLs live for `url_ttl_seconds` and name `public_endpoint_url`, or else the endpoint that we use."""
        self._settings = settings
        self._bucket = bucket
        self._url_ttl_seconds = url_ttl_seconds
        self._public_endpoint_url = public_endpoint_url
        # Again and again by one thread: to sign for S3 Express, boto3 asks the store, whose answer may be `_hear`d.
        self._lock = RLock()
        self._tools: tuple[S3Client, ObjectReader, Signer] | None = None
        self._regions: list[str] = []  # which the store itself has named, none of them twice
        self._lists_versions: bool | None = None  # nobody has asked yet

    @property
    def client(self) -> S3Client:
        """The boto3 client whose connections HEAD and LIST use."""
        return self._open()[0]

    def warm_up(self, *, ask_region: bool = False) -> None:
        """Import boto3 and make the client and the signer; the store is asked for its region only."""
        self._open()
        if ask_region:
            self.look_up_region()

    def look_up_region(self) -> None:
        """Ask the store for something small: it refuses a wrong region, and names its own."""
        s3 = self.client
        with storage_errors():
            s3.list_objects_v2(Bucket=self._bucket, MaxKeys=1)

    def _hear(self, name: str) -> None:
        """Make all again for the region that the store named: boto3 would follow, but sign links as before."""
        with self._lock:
            if name in self._regions or len(self._regions) == MAX_REGIONS:
                return
            self._regions.append(name)
            self._tools = None
        log_other_region(self._settings, self._bucket, name)

    def head(self, key: str, version_id: str = "", *, with_checksum: bool = False) -> ObjectInfo | None:
        """What `key` is now, or was at that version; None where there is no such object or version.

        Its `sha256` is the store's own checksum only `with_checksum`, which takes the rights that a GET takes.
        """
        return self._head(key, version_id, with_checksum=with_checksum, asks_region=True)

    def read(self, key: str, version_id: str = "", *, limit_bytes: int) -> bytes | None:
        """What `key` holds now, or held at that version: at most `limit_bytes` + 1 of it, to tell that there is more.

        None where there is no such object or version.
        """
        try:
            return self._open()[1].read(key, version_id, limit_bytes + 1)
        except StorageError as error:
            # By its code: a 404 may be the bucket's, and a 400 that of credentials that have expired.
            if error.code in _GONE or (version_id and error.code in _NO_SUCH_VERSION):
                return None
            raise

    def answers(self) -> bool:
        """Whether the store answers at all, by a LIST of one key, which depends on no object."""
        try:
            s3 = self.client
            with storage_errors():
                s3.list_objects_v2(Bucket=self._bucket, MaxKeys=1)
        except StorageError as error:
            return error.answered
        return True

    def presign(self, key: str, *, version_id: str = "", filename: str) -> Presigned:
        """A URL that downloads `key`, and makes a browser save it under the last part of `filename`."""
        parameters = {"response-content-disposition": content_disposition(filename)}
        if version_id:
            parameters["versionId"] = version_id
        return Presigned(*self._open()[2].sign(key, parameters))

    def presign_picture(self, key: str) -> Presigned:
        """A URL that shows `key` as a JPEG, whatever it was uploaded as: a browser would save, or run, what it is."""
        return Presigned(*self._open()[2].sign(key, _SHOWN))

    def list_page(self, prefix: str, *, start_after: str = "", limit: int = MAX_PAGE_OBJECTS) -> Page:
        """The objects below `prefix` after the key `start_after`, by one LIST of at most `limit` entries.

        Older versions and delete markers are entries too, so a page can hold fewer objects, or none. Whether the bucket
        has versions is asked before the first page, once.
        """
        if self._has_versions() if self._lists_versions is None else self._lists_versions:
            try:
                with _complete():
                    page = self._list_versions(prefix, start_after, limit)
            except StorageError as error:
                if not _lacks_versions(error):
                    raise
                page = None
            if page is not None:
                self._lists_versions = True
                return page
        with _complete():
            page = self._list_objects(prefix, start_after, limit)
        self._lists_versions = False
        return page

    def _has_versions(self) -> bool:
        """Whether the bucket has or had versions: without, some stores (SeaweedFS) list them with wrong ETags."""
        s3 = self.client
        try:
            with storage_errors():
                return "Status" in s3.get_bucket_versioning(Bucket=self._bucket)
        except StorageError as error:
            if not _lacks_versions(error):
                raise
            return False

    def _open(self) -> tuple[S3Client, ObjectReader, Signer]:
        with self._lock:  # boto3 makes clients on one thread at a time only
            if self._tools is None:
                session = open_session(self._settings)
                found = self._regions[-1] if self._regions else None
                s3 = client(
                    "s3",
                    self._settings,
                    connect_timeout_seconds=S3_CONNECT_TIMEOUT_SECONDS,
                    read_timeout_seconds=S3_READ_TIMEOUT_SECONDS,
                    attempts=1,
                    connections=S3_CONNECTIONS,
                    session=session,
                    region_name=found,
                )
                on_other_region(s3, self._hear)
                signer = Signer(
                    self._settings,
                    self._bucket,
                    expires_seconds=self._url_ttl_seconds,
                    endpoint_url=self._public_endpoint_url,
                    session=session,
                    region_name=found,
                )
                self._tools = s3, ObjectReader(s3, self._bucket, session), signer
            return self._tools

    def _head(self, key: str, version_id: str, *, with_checksum: bool, asks_region: bool) -> ObjectInfo | None:
        header = self._open()[1]
        try:
            found = header.head(key, version_id, with_checksum=with_checksum)
        except StorageError as error:
            if error.status in (_ABSENT if version_id else {404}) or error.code == IMPOSSIBLE_NAME:
                return None
            if error.status != HTTPStatus.BAD_REQUEST or not asks_region:
                raise
            self.look_up_region()  # a HEAD's refusal has no body to say why
            if self._open()[1] is header:
                raise
            return self._head(key, version_id, with_checksum=with_checksum, asks_region=False)
        with _complete():
            return _told(key, found, found["ContentLength"])

    def _list_versions(self, prefix: str, start_after: str, limit: int) -> Page | None:
        """A page with version ids; None from a store that begins *at* the marker, as Versity Gateway does."""
        s3 = self.client
        # A marker without a version: what is left of that key's history is passed over. None on the first page: moto
        # loses an object to a marker that is no key.
        marker: dict[str, Any] = {"KeyMarker": start_after} if start_after not in {"", prefix} else {}
        with storage_errors():
            found = s3.list_object_versions(Bucket=self._bucket, Prefix=prefix, MaxKeys=limit, **marker)
        versions, deleted = found.get("Versions", []), found.get("DeleteMarkers", [])
        newest = [entry for entry in versions if entry["IsLatest"]]
        # Not NextKeyMarker, which S3's manual takes for the first key that is *not* on the page. Each key's newest
        # entry comes first, so whatever the page was cut in, its last key has been dealt with.
        last = max((entries[-1]["Key"] for entries in (versions, deleted) if entries), key=str.encode, default="")
        after = start_after.encode()
        if any(entry["Key"].encode() <= after for entry in newest if marker):
            return None
        is_truncated = found.get("IsTruncated", False)
        if is_truncated and last.encode() <= after:
            return None
        objects = tuple(_told(entry["Key"], entry, entry["Size"]) for entry in newest)
        return Page(objects, last if is_truncated else "")

    def _list_objects(self, prefix: str, start_after: str, limit: int) -> Page:
        s3 = self.client
        with storage_errors():
            found = s3.list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=limit, StartAfter=start_after)
        objects = tuple(_told(entry["Key"], entry, entry["Size"]) for entry in found.get("Contents", []))
        return Page(objects, objects[-1].object_key if found.get("IsTruncated") and objects else "")


def log_other_region(settings: Settings, bucket: str, theirs: str) -> None:
    """Log, once for each client, that the store has named another region than ours."""
    ours = region(settings)
    details = {"bucket": bucket, "region": theirs, "set": ours.name, "by": ours.origin}
    if ours.origin == "default":
        logger.info("the bucket has named its region; S3_REGION would spare the question", extra=details)
    else:
        logger.warning(f"{ours.origin} is not the store's region: the bucket's own is used", extra=details)


def _lacks_versions(error: StorageError) -> bool:
    """Whether the store has no versions, or does not let us see them: ListObjectsV2 tells the rest."""
    return error.code == BAD_REQUEST or (error.status in _NO_VERSIONS and error.code != "NoSuchBucket")


def _told(key: str, found: Mapping[str, Any], size: int) -> ObjectInfo:
    """What a HEAD or a line of a LIST tells of an object."""
    etag = unquoted(found.get("ETag", ""))
    return ObjectInfo(key, etag, size, found["LastModified"], _version(found.get("VersionId")), _sha256(found, etag))


def _sha256(found: Mapping[str, Any], etag: str) -> str:
    """The content's SHA-256 in hex: the store's own checksum, else what the uploader wrote down; "" without either.

    A multipart object's checksum is made of its parts', and moto does not say so: its ETag does.
    """
    if found.get("ChecksumType") == "FULL_OBJECT" or (not found.get("ChecksumType") and "-" not in etag):
        with suppress(ValueError):  # binascii.Error is one
            checksum = base64.b64decode(found.get("ChecksumSHA256") or "", validate=True)
            if len(checksum) == SHA256_BYTES:
                return checksum.hex()
    claimed = str(found.get("Metadata", {}).get("sha256", ""))
    return claimed.lower() if _SHA256_HEX.fullmatch(claimed) else ""


@contextmanager
def _complete() -> Iterator[None]:
    """Turns an element that S3 always sends and this store did not into StorageError."""
    try:
        yield
    except KeyError as missing:
        raise StorageError(BAD_REQUEST, f"the store's answer lacks {missing}") from None


def unquoted(etag: str) -> str:
    """An entity tag without its quotes, as S3's events name it."""
    return etag.strip('"')


def _version(version_id: str | None) -> str:
    return "" if version_id is None or version_id == NULL_VERSION else version_id


_NOT_QUOTED = re.compile(r"[^ !#$&'()+,\-.0-9;=@A-Z\[\]^_`a-z{}~]")  # `%` too: browsers disagree on it (RFC 6266 D)


def content_disposition(filename: str) -> str:
    """`Content-Disposition` to save the last part of `filename` (RFC 6266; RFC 8187 for what ASCII cannot say)."""
    name = filename.rpartition("/")[2]
    encoded = name.encode(errors="replace")
    if len(encoded) > MAX_SAVED_NAME_BYTES:  # no file system takes it, and it would treble a long URL
        return "attachment"
    plain = _NOT_QUOTED.sub("_", name)
    header = f'attachment; filename="{plain}"'
    return header if plain == name else f"{header}; filename*=UTF-8''{quote(encoded, safe='')}"
