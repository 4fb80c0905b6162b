"""One object in the bucket says what was swept there and by whom, and carries the sweep's state if that has no home.

Its first line is JSON; behind it there may be a SQLite file, compressed.
"""

from __future__ import annotations

import base64
import gzip
import json
import os
import socket
import stat
import tempfile
import threading
import time
import zlib
from contextlib import suppress
from typing import IO, TYPE_CHECKING, Any

from functions.s3.clients import StorageError, client, on_other_region, storage_errors
from functions.s3.objects import log_other_region
from functions.telemetry import logger

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from mypy_boto3_s3.client import S3Client

    from functions.settings import Settings

KEY = ".bucketbell/sweep"

FORMAT = 1
CHUNK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 16
MAX_STATE_BYTES = 4 << 30  # whoever may write to the bucket shall not fill our disk
MAX_SCOPES = 16
MAX_HOSTS = 16
FORGOTTEN_SECONDS = 24 * 3600
MAX_REMOVED = 100  # older versions at a time
FORBIDDEN = 403

Swept = dict[str, dict[str, int]]
"""By scope: the prefixes of which there was a first sweep, and when that was."""

Sweeping = dict[str, tuple[int, int]]
"""By host, of one life of it each: when it first wrote the object and when it last did, by its own clock (Unix)."""


class MarkerDamagedError(Exception):
    """What is in the bucket under this name cannot be read."""


class NewerMarkerError(Exception):
    """It was written by a newer release."""


class Marker:
    """The object, as it is and as we want it. For one thread at a time; raises StorageError."""

    def __init__(self, settings: Settings, bucket: str) -> None:
        """Nothing is asked yet."""
        self._settings = settings
        self._bucket = bucket
        self._lock = threading.Lock()
        self._client: S3Client | None = None
        self._said: set[str] = set()
        self._name = f"{socket.gethostname()} ({os.urandom(2).hex()})"  # a container's every start may bear one name
        self._first: int | None = None
        self.hosts: Sweeping = {}
        """Who wrote it, as far as it was read or written."""

    def fetch(self, into: Path | None = None) -> Swept | None:
        """Return what was swept; write the state that it carries, if any, to a file. None: there is no such object.

        Raises `MarkerDamagedError` and `NewerMarkerError`.
        """
        try:
            with storage_errors():
                body = self.s3().get_object(Bucket=self._bucket, Key=KEY)["Body"]
                with body:
                    return self._read(body, into)
        except StorageError as error:
            if error.code == "NoSuchKey" or error.status == 404:  # noqa: PLR2004 - as HTTP says it
                return None
            if error.status == FORBIDDEN:
                self._say("read", error)
                return None
            raise

    def put(self, swept: Mapping[str, Mapping[str, int]], state: Path | None = None) -> bool:
        """Write it, with the state in this file; older versions are removed. False: we have no right to."""
        header = {
            "bucketbell": "sweep",
            "format": FORMAT,
            "swept": dict(list(swept.items())[-MAX_SCOPES:]),
            "hosts": self._join(),
        }
        with tempfile.TemporaryFile(dir=None if state is None else state.parent) as file:
            file.write(json.dumps(header).encode() + b"\n")
            if state is not None:
                _compress(state, file)
            checksum = _checksum(file)
            try:
                with storage_errors():
                    # A checksum of boto3's own would come behind the body, in a form that not every store knows.
                    answer = self.s3().put_object(
                        Bucket=self._bucket,
                        Key=KEY,
                        Body=file,
                        ChecksumCRC32=checksum,
                        ContentType="application/octet-stream",
                    )
            except StorageError as error:
                if error.status != FORBIDDEN:
                    raise
                self._say("write", error)
                return False
        if version := answer.get("VersionId"):
            self._remove_older(version)
        return True

    def _join(self) -> Sweeping:
        """Those who write this object, ourselves among them: two that take turns at it both sweep."""
        with suppress(StorageError, MarkerDamagedError, NewerMarkerError), storage_errors():
            some = f"bytes=0-{MAX_HEADER_BYTES - 1}"
            with self.s3().get_object(Bucket=self._bucket, Key=KEY, Range=some)["Body"] as body:
                self._read(body, None)
        now = int(time.time())
        self._first = now if self._first is None else self._first
        self.hosts[self._name] = self._first, now
        kept = sorted(self.hosts.items(), key=lambda one: one[1][1])[-MAX_HOSTS:]
        self.hosts = {name: times for name, times in kept if now - times[1] < FORGOTTEN_SECONDS}
        return self.hosts

    def set_aside(self) -> str:
        """Keep what is there under another name, which is returned."""
        name = f"{KEY}.damaged"
        with suppress(StorageError), storage_errors():
            self.s3().copy_object(Bucket=self._bucket, Key=name, CopySource={"Bucket": self._bucket, "Key": KEY})
        return name

    def _read(self, body: Any, into: Path | None) -> Swept:  # noqa: ANN401 - botocore's
        begin = b""
        while b"\n" not in begin and len(begin) < MAX_HEADER_BYTES and (chunk := body.read(MAX_HEADER_BYTES)):
            begin += chunk
        line, _, rest = begin.partition(b"\n")
        try:
            header = json.loads(line)
            if header["bucketbell"] != "sweep":
                raise MarkerDamagedError("it is not ours")
            if header["format"] > FORMAT:
                raise NewerMarkerError
            swept = {
                str(scope): {str(prefix): int(t0) for prefix, t0 in prefixes.items()}
                for scope, prefixes in header["swept"].items()
            }
            hosts = {str(name): (int(since), int(last)) for name, (since, last) in header.get("hosts", {}).items()}
        except (ValueError, TypeError, KeyError, AttributeError):
            raise MarkerDamagedError("its first line is not ours") from None
        self.hosts = hosts
        if into is not None:
            _decompress(rest, body, into)
        return swept

    def _remove_older(self, version: str) -> None:
        """Nobody needs them, and a bucket with versions would keep each for ever."""
        s3 = self.s3()
        try:
            with storage_errors():
                found = s3.list_object_versions(Bucket=self._bucket, Prefix=KEY).get("Versions", [])
                older = [one["VersionId"] for one in found if one["Key"] == KEY and one["VersionId"] != version]
                for one in older[:MAX_REMOVED]:
                    s3.delete_object(Bucket=self._bucket, Key=KEY, VersionId=one)
        except StorageError as error:
            self._say("remove older versions of", error)

    def _say(self, what: str, error: StorageError) -> None:
        """Once: nothing else depends on it."""
        if what not in self._said:
            self._said.add(what)
            logger.warning(f"the sweep cannot {what} {KEY} in the bucket", extra={"reason": str(error)})

    def _hear(self, region: str) -> None:
        if "region" not in self._said:
            self._said.add("region")
            log_other_region(self._settings, self._bucket, region)

    def s3(self) -> S3Client:
        """The client, which others may use as well: each takes megabytes."""
        with self._lock:
            if self._client is None:
                self._client = client("s3", self._settings)
                on_other_region(self._client, self._hear)
            return self._client


def _compress(state: Path, file: IO[bytes]) -> None:
    with state.open("rb") as source, gzip.GzipFile(fileobj=file, mode="wb", compresslevel=3, mtime=0) as packed:
        while chunk := source.read(CHUNK_BYTES):
            packed.write(chunk)


def _decompress(begin: bytes, body: Any, into: Path) -> None:  # noqa: ANN401 - botocore's
    unpacker, written, chunk = zlib.decompressobj(wbits=31), 0, begin
    is_empty = True
    into.touch(mode=stat.S_IRUSR | stat.S_IWUSR)
    with into.open("wb") as file:
        while chunk or (chunk := body.read(CHUNK_BYTES)):
            is_empty = False
            try:
                unpacked = unpacker.decompress(chunk, CHUNK_BYTES)
            except zlib.error:
                raise MarkerDamagedError("what it carries is torn") from None
            written += file.write(unpacked)
            chunk = unpacker.unconsumed_tail
            if written > MAX_STATE_BYTES:
                raise MarkerDamagedError("what it carries is too large")
            if unpacker.eof:
                return
    if not is_empty:
        raise MarkerDamagedError("what it carries is torn")
    into.unlink()


def _checksum(file: IO[bytes]) -> str:
    file.seek(0)
    value = 0
    while chunk := file.read(CHUNK_BYTES):
        value = zlib.crc32(chunk, value)
    file.seek(0)
    return base64.b64encode(value.to_bytes(4, "big")).decode()
