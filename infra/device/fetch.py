"""Fetches one version of one file from its presigned URL: resumed, verified, put in place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from http import HTTPStatus

from infra.device.checks import By, checksum_headers, choose, passes
from infra.device.names import Name
from infra.device.server import Ticket
from infra.device.store import Store, Version
from infra.device.trouble import Trouble
from infra.device.web import Answer, Web

DISK_RESERVE_BYTES = 64 * 1024  # for the notes, and for whoever else lives on a small disk

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")  # RFC 9110 §14.4

Progress = Callable[[int, int], None]
"""Called before the first chunk and after each: bytes on disk, and how many of them an earlier attempt had.

It may raise Trouble to end the download.
"""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file in place: how it was verified, how many of its bytes an earlier attempt had, and the time of each leg."""

    by: By
    resumed_bytes: int
    download_seconds: float
    verify_seconds: float
    place_seconds: float


def fetch(web: Web, store: Store, name: Name, ticket: Ticket, progress: Progress) -> Fetched:
    """Download what is missing of `ticket`'s version, verify it, and put it in place.

    Raises Trouble: what was had of the file stays for the next attempt, except when it is `corrupt`. The file in
    place is only ever replaced by a whole one.
    """
    version = Version(ticket.etag, ticket.size)
    began_at = time.monotonic()
    resumed_bytes = _download(web, store, name, ticket, progress)
    downloaded_at = time.monotonic()
    part = store.resume(name, version)
    if part is None:
        raise Trouble("cannot_store", "what was downloaded is not there any more")
    with part:
        whole = part.length == version.size and passes(part.check, part.file)
        verified_at = time.monotonic()
        if not whole:
            store.drop(name)
            raise Trouble("corrupt", f"{part.length:,} bytes came that are not what the store says ({part.check.by})")
        store.put_in_place(part)
    return Fetched(
        part.check.by,
        resumed_bytes,
        downloaded_at - began_at,
        verified_at - downloaded_at,
        time.monotonic() - verified_at,
    )


def _download(web: Web, store: Store, name: Name, ticket: Ticket, progress: Progress) -> int:
    """Bring the part to its full length; returns how much of it was there already."""
    version = Version(ticket.etag, ticket.size)
    with ExitStack() as opened:
        part = store.resume(name, version)
        if part is not None:
            opened.enter_context(part)
        offset = part.length if part else 0
        if part is not None and offset == ticket.size:
            return offset
        free_bytes = max(0, store.free_bytes() - DISK_RESERVE_BYTES)
        if ticket.size - offset > free_bytes:
            raise Trouble("disk_full", f"{ticket.size - offset:,} bytes are to come; there is room for {free_bytes:,}")
        # If-Match pins the version also for the whole file: between the ticket and now it may have been replaced.
        headers = {"If-Match": f'"{ticket.etag}"', **checksum_headers(ticket.url)}
        if offset:
            headers["Range"] = f"bytes={offset}-"
        answer = opened.enter_context(web.get(ticket.url, headers))
        _judge(answer, ticket, offset)
        if part is None or answer.status == HTTPStatus.OK:
            offset = 0
            part = opened.enter_context(store.begin(name, version, choose(ticket.etag, answer.headers)))
        length = offset
        progress(length, offset)
        for chunk in answer.chunks():
            length += len(chunk)
            if length > ticket.size:
                store.drop(name)
                raise Trouble("corrupt", f"more came than the {ticket.size:,} bytes that the file has")
            part.append(chunk)
            progress(length, offset)
    if length < ticket.size:
        raise Trouble("cut", f"the store ended the connection after {length:,} of {ticket.size:,} bytes")
    return offset


def _judge(answer: Answer, ticket: Ticket, offset: int) -> None:
    """Return when the body that follows is the one that was asked for; Trouble otherwise."""
    status = answer.status
    # AWS answers 403 to an expired URL, and 400 (ExpiredToken) when the credentials that signed it have expired.
    if status in {HTTPStatus.BAD_REQUEST, HTTPStatus.FORBIDDEN}:
        raise Trouble("expired", f"the store refuses the URL ({status})")
    if status in {HTTPStatus.NOT_FOUND, HTTPStatus.PRECONDITION_FAILED}:
        raise Trouble(
            "replaced", "the object was deleted" if status == HTTPStatus.NOT_FOUND else "the object was replaced"
        )
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Trouble("unavailable", f"the store answered {status}")
    if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        raise Trouble("protocol", f"the store answered {status}")
    etag = answer.headers.get("ETag")
    if etag is not None and etag.strip('"') != ticket.etag:
        raise Trouble("replaced", "the object was replaced")
    if status == HTTPStatus.PARTIAL_CONTENT:
        found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
        if found is None or (int(found[1]), int(found[3])) != (offset, ticket.size):
            raise Trouble("protocol", "the store sent another range than was asked for")
