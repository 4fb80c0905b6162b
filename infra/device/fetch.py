"""Fetches one version of one file from its presigned URL: resumed, verified, put in place."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from http import HTTPStatus

from infra.device.checks import By, Check, checksum_headers, choose, digest
from infra.device.names import Name
from infra.device.refusals import MAX_ERROR_BYTES, refusal
from infra.device.server import Ticket
from infra.device.store import DeviceStore, Part, storing
from infra.device.trouble import FetchError, Reason
from infra.http_client import Response, Web

DISK_RESERVE_BYTES = 64 * 1024  # for the notes, and for other programs on a small disk

_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19})")  # RFC 9110 §14.4

Progress = Callable[[int, int], None]
"""Called before the first chunk and after each: bytes on disk, and how many of them an earlier attempt had.

It may raise FetchError to end the download.
"""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A file in place: how it was verified, how many of its bytes an earlier attempt had, and the time of each leg."""

    by: By
    resumed_bytes: int
    download_seconds: float
    verify_seconds: float
    place_seconds: float


@storing()
def fetch(web: Web, store: DeviceStore, name: Name, ticket: Ticket, progress: Progress, *, fresh: bool) -> Fetched:
    """Download what is missing of `ticket`'s version, verify it, and put it in place; `fresh`: the ticket is new.

    Raises FetchError: what came of the file stays for the next attempt, unless it is `corrupt` or cannot be read.
    The file in place is only ever replaced by a whole one.
    """
    version = ticket.version
    began_at = time.monotonic()
    resumed_bytes = _download(web, store, name, ticket, progress, fresh=fresh)
    downloaded_at = time.monotonic()
    part = store.resume(name, version)
    if part is None:
        raise FetchError("cannot_store", "what was downloaded is not there any more")
    with part:
        if ticket.sha256:  # also where the part was begun without
            part.check = Check("sha256", ticket.sha256)
        found = _digest(store, part)
        verified_at = time.monotonic()
        if (part.length, found) != (version.size, part.check.value):
            store.drop(name)
            raise FetchError(
                "corrupt",
                f"{part.length:,} bytes came that are not what the store says ({part.check.by})",
                digest=found,
            )
        store.put_in_place(part)
    return Fetched(
        part.check.by,
        resumed_bytes,
        downloaded_at - began_at,
        verified_at - downloaded_at,
        time.monotonic() - verified_at,
    )


def _digest(store: DeviceStore, part: Part) -> str:
    try:
        return digest(part.check, part.file)
    except OSError as error:  # the disk does not give back what it took: to other sectors with it
        store.drop(part.name)
        raise FetchError("corrupt", f"what was downloaded cannot be read: {error.strerror}") from None


def _download(web: Web, store: DeviceStore, name: Name, ticket: Ticket, progress: Progress, *, fresh: bool) -> int:
    """Bring the part to its full length; returns how much of it was there already."""
    version = ticket.version
    with ExitStack() as opened:
        part = store.resume(name, version)
        if part is not None:
            opened.enter_context(part)
        offset = part.length if part else 0
        if part is not None and offset == version.size:
            return offset
        free_bytes = max(0, store.free_bytes() - DISK_RESERVE_BYTES)
        if version.size - offset > free_bytes:
            raise FetchError(
                "disk_full", f"{version.size - offset:,} bytes are to come; there is room for {free_bytes:,}"
            )
        answer, pinned = _ask(opened, web, ticket, offset, fresh=fresh)
        if answer.status == HTTPStatus.PARTIAL_CONTENT and not _fits(answer, ticket, offset, pinned=pinned):
            store.drop(name)  # or it would be sent the same again
            raise FetchError("protocol", "the store sent another part than was asked for, or does not say which")
        if part is None or answer.status == HTTPStatus.OK:
            offset = 0
            part = opened.enter_context(store.begin(name, version, choose(version.etag or "", answer.headers)))
        length = offset
        progress(length, offset)
        for chunk in answer.chunks():
            length += len(chunk)
            if length > version.size:
                store.drop(name)
                raise FetchError("corrupt", f"more came than the {version.size:,} bytes that the file has")
            part.append(chunk)
            progress(length, offset)
    if length < version.size:
        raise FetchError("cut", f"the store ended the connection after {length:,} of {version.size:,} bytes")
    return offset


def _ask(opened: ExitStack, web: Web, ticket: Ticket, offset: int, *, fresh: bool) -> tuple[Response, bool]:
    """The store's answer whose body is that of the ticket's version, and whether the store was held to that version.

    FetchError for any other answer.
    """
    headers = checksum_headers(ticket.url)
    if offset:
        headers["Range"] = f"bytes={offset}-"
    # If-Match pins the version also for the whole file: between the ticket and now it may have been replaced.
    pinned = {} if ticket.version.etag is None else {"If-Match": f'"{ticket.version.etag}"'}
    answer = opened.enter_context(web.get(ticket.url, headers | pinned))
    if answer.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and offset:
        del headers["Range"]
        answer = opened.enter_context(web.get(ticket.url, headers | pinned))
    if answer.status == HTTPStatus.PRECONDITION_FAILED and fresh and pinned:
        # The server saw this version a moment ago. Either it was replaced since, or the store cannot compare.
        pinned = {}
        answer = opened.enter_context(web.get(ticket.url, headers))
    _judge(answer, ticket, fresh=fresh)
    return answer, bool(pinned)


def _judge(answer: Response, ticket: Ticket, *, fresh: bool) -> None:
    """Return when what follows is of the ticket's version, as far as the answer says; FetchError otherwise."""
    status = answer.status
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        reason: Reason = "rate_limited" if status == HTTPStatus.TOO_MANY_REQUESTS else "unavailable"
        raise FetchError(reason, f"the store answered {status}", after_seconds=answer.retry_after_seconds)
    if status >= HTTPStatus.MULTIPLE_CHOICES:
        raise refusal(status, answer.beginning(MAX_ERROR_BYTES), fresh=fresh)
    if status not in {HTTPStatus.OK, HTTPStatus.PARTIAL_CONTENT}:
        raise FetchError("protocol", f"the store answered {status}")
    if _same(answer, ticket) is False:
        raise FetchError("replaced", "the object was replaced")


def _same(answer: Response, ticket: Ticket) -> bool | None:
    """Whether the answer is about the ticket's version: by its ETag, else by its time; None when neither tells."""
    etag = answer.headers.get("ETag")
    if etag is not None and ticket.version.etag is not None:
        # A proxy that compresses makes an ETag weak; RFC 9110 §8.8.3.
        return etag.removeprefix("W/").strip('"') == ticket.version.etag
    try:
        modified = parsedate_to_datetime(answer.headers.get("Last-Modified", ""))
        listed = datetime.fromisoformat(ticket.last_modified or "")
    except (TypeError, ValueError):
        return None
    return modified == listed.replace(microsecond=0)


def _fits(answer: Response, ticket: Ticket, offset: int, *, pinned: bool) -> bool:
    """Whether the part in a 206 continues what is there."""
    found = _RANGE.fullmatch(answer.headers.get("Content-Range", ""))
    if found is None or (int(found[1]), int(found[3])) != (offset, ticket.version.size):
        return False
    return pinned or _same(answer, ticket) is True
