"""The manifest: what is current for a device, page by page, by one LIST for each page and no call for an object.

With checksums there is a call for each object that nobody has asked about before: no LIST tells them.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from functions.events.names import config_name, is_asset_path, is_config_name
from functions.s3.objects import MAX_PAGE_OBJECTS, ObjectInfo, Objects
from functions.web.messages import Problem, iso, malformed

MAX_CURSOR_CHARACTERS = 2048
CURSOR_MAC_BYTES = 16
CHECKSUM_SECONDS = 2.0  # after which a page with checksums ends early
MAX_CHECKSUMS = 10_000  # kept: about 6 MB
LISTED = "Bucketbell-Listed"
"""A header: how many files are on this page. The host grants a device requests for them."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which page is asked for: `mac` is None for every device's; `cursor` is None for the first; `bearer` asks.

    With `checksums` each object's `sha256` is there too, as far as the store knows it.
    """

    bearer: str
    mac: str | None
    limit: int = MAX_PAGE_OBJECTS
    cursor: str | None = None
    checksums: bool = False


class Checksums:
    """The SHA-256 of objects that a LIST has told of: the store is asked once for each. Thread-safe."""

    def __init__(self) -> None:
        self._known: dict[ObjectInfo, str] = {}
        self._lock = Lock()

    def of(self, objects: Objects, info: ObjectInfo) -> str:
        """In hex; "" where the store knows none, or the object is another one by now. Raises StorageError."""
        if (known := self._known.get(info)) is not None:
            return known
        found = objects.head(info.object_key, info.version_id, with_checksum=True)
        if found is None or (found.etag, found.size) != (info.etag, info.size):
            return ""
        with self._lock:
            if len(self._known) >= MAX_CHECKSUMS:
                del self._known[next(iter(self._known))]  # the oldest
            self._known[info] = found.sha256
        return found.sha256


@dataclass(frozen=True, slots=True)
class Manifest:
    """Lists only the names that are announced: the device's config first, then assets in S3's order."""

    configs_prefix: str = "configs/"
    assets_prefix: str = "assets/"
    checksums: Checksums = field(default_factory=Checksums)

    def page(self, objects: Objects, asked: Asked) -> dict[str, Any]:
        """One page as the client reads it: at most one LIST, and a HEAD of the device's config before the first page.

        It may hold fewer objects than asked for, or none, and yet have a `next`. Without a MAC come all configs, then
        all assets. Raises StorageError, and Problem (400) for a cursor that was not given to this token.
        """
        # A cursor must not lead a device into the others' configs.
        prefixes = (self.assets_prefix,) if asked.mac else (self.configs_prefix, self.assets_prefix)
        scope = (asked.mac or "").casefold()
        found: list[ObjectInfo] = []
        if asked.cursor is not None:
            start_after = _open_cursor(asked.cursor, asked.bearer, scope)
        else:
            start_after = prefixes[0]
            if asked.mac:
                found = _own_config(objects, self.configs_prefix, asked.mac)
        prefix = next((one for one in prefixes if start_after.startswith(one)), None)
        if prefix is None:
            raise _bad_cursor()
        if len(found) < asked.limit:
            page = objects.list_page(prefix, start_after=start_after, limit=asked.limit - len(found))
            found += [info for info in page.objects if self._is_announced(info.object_key)]
            start_after = page.next_start_after or (prefixes[-1] if prefix != prefixes[-1] else "")
        entries = [self._entry(info) for info in found]
        if asked.checksums:
            told = self._tell_checksums(objects, found, entries)
            if told < len(found):
                start_after = found[told - 1].object_key
                del entries[told:]
        following = _seal_cursor(start_after, asked.bearer, scope) if start_after else None
        return {"objects": entries, "next": following}

    def _tell_checksums(self, objects: Objects, found: list[ObjectInfo], entries: list[dict[str, Any]]) -> int:
        """Add them to `entries`; returns to how many before the time was over, at least two of the first page.

        The first may be the config, after which no LIST can go on.
        """
        deadline = time.monotonic() + CHECKSUM_SECONDS
        for told, (info, entry) in enumerate(zip(found, entries, strict=True)):
            if told > 1 and time.monotonic() > deadline:
                return told
            entry["sha256"] = self.checksums.of(objects, info) or None
        return len(found)

    def _is_announced(self, key: str) -> bool:
        if key.startswith(self.configs_prefix):
            return is_config_name(key.removeprefix(self.configs_prefix))
        return is_asset_path(key.removeprefix(self.assets_prefix))

    def _entry(self, info: ObjectInfo) -> dict[str, Any]:
        is_config = info.object_key.startswith(self.configs_prefix)
        return {
            "filename": info.object_key.removeprefix(self.configs_prefix if is_config else self.assets_prefix),
            "kind": "config" if is_config else "asset",
            "etag": info.etag or None,
            "size": info.size,
            "last_modified": iso(info.last_modified),
            "version_id": info.version_id or None,
        }


def _own_config(objects: Objects, prefix: str, mac: str) -> list[ObjectInfo]:
    """Find the device's config under its MAC as the token spells it, else in lower, else in upper case."""
    for spelling in dict.fromkeys((mac, mac.lower(), mac.upper())):
        if (info := objects.head(prefix + config_name(spelling))) is not None:
            return [info]
    return []


def parse_limit(text: str) -> int:
    """The number of objects on a page; raises Problem (400)."""
    if text.isascii() and text.isdigit() and len(text) <= len(str(MAX_PAGE_OBJECTS)):
        limit = int(text)
        if 1 <= limit <= MAX_PAGE_OBJECTS:
            return limit
    raise malformed("bad_limit", f"`limit` is a number from 1 to {MAX_PAGE_OBJECTS}.")


def _cursor_mac(start_after: bytes, bearer: str, scope: str) -> bytes:
    """Bind a cursor to the token it was given to. It is no secret from the holder: a cursor opens nothing by itself."""
    key = hashlib.sha256(b"bucketbell manifest\0" + bearer.encode(errors="replace")).digest()
    return hmac.digest(key, scope.encode() + b"\0" + start_after, "sha256")[:CURSOR_MAC_BYTES]


def _seal_cursor(start_after: str, bearer: str, scope: str) -> str:
    text = start_after.encode()
    return base64.urlsafe_b64encode(_cursor_mac(text, bearer, scope) + text).decode().rstrip("=")


def _open_cursor(cursor: str, bearer: str, scope: str) -> str:
    try:
        padded = cursor[:MAX_CURSOR_CHARACTERS] + "=" * (-len(cursor) % 4)
        sealed = base64.b64decode(padded, altchars=b"-_", validate=True)
        text = sealed[CURSOR_MAC_BYTES:]
        if hmac.compare_digest(sealed[:CURSOR_MAC_BYTES], _cursor_mac(text, bearer, scope)):
            return text.decode()
    except ValueError:
        pass
    raise _bad_cursor()


def _bad_cursor() -> Problem:
    return malformed("bad_cursor", "`next` is not what was given to this token: begin again without it.")
