"""What the device asks the server: the manifest, and a fresh presigned URL for one file."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from infra.device.names import Name
from infra.device.trouble import Trouble
from infra.device.web import Answer, Web

MAX_TICKET_BYTES = 64 * 1024
MAX_PAGE_BYTES = 8 * 1024 * 1024
MAX_PAGES = 1000
MAX_RETRY_AFTER_SECONDS = 300.0

_ETAG = re.compile(r"[!#-~]{1,256}")  # RFC 9110 §8.8.3, without what a header cannot take


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where one version of a file can be had for a while. `etag` is without quotes, `size` in bytes."""

    url: str
    etag: str
    size: int
    version_id: str | None


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the manifest. `filename` is as it came: nobody has judged it."""

    kind: str
    filename: str
    etag: str
    size: int


@dataclass(frozen=True, slots=True)
class _Page:
    etag: str | None
    objects: tuple[Listed, ...]
    next: str | None


class Server:
    """The server at `base_url`, as the device with this `token` sees it. Not thread-safe."""

    def __init__(self, web: Web, base_url: str, token: str) -> None:
        """Asks nothing yet."""
        self._web = web
        self._base_url = base_url.rstrip("/")
        self._headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        self._pages: dict[str, _Page] = {}

    def locate(self, name: Name) -> Ticket:
        """A URL for the file, and its version; Trouble `gone` when there is none."""
        target = quote(name.path, safe="/")
        if name.kind == "asset" and {"%", "?"} & set(name.filename):
            # AWS decodes a path twice and ends it at an encoded question mark; a query arrives as it was sent.
            target = "assets?" + urlencode({"filename": name.filename}, quote_via=quote)
        with self._web.get(f"{self._base_url}/{target}", self._headers) as answer:
            document = _document(answer, MAX_TICKET_BYTES)
        url, version_id = document.get("url"), document.get("version_id")
        if not isinstance(url, str) or not url.isascii() or not url.startswith(("http://", "https://")):
            raise Trouble("protocol", "the server named no http or https URL")
        return Ticket(
            url, _etag(document), _size(document), version_id=version_id if isinstance(version_id, str) else None
        )

    def manifest(self) -> tuple[Listed, ...]:
        """All that is current for this device, page by page; a page that did not change is not sent again."""
        known, self._pages = self._pages, {}
        objects: list[Listed] = []
        query = ""
        while True:
            page = self._page(query, known.get(query))
            self._pages[query] = page
            objects += page.objects
            if page.next is None:
                return tuple(objects)
            query = "?" + urlencode({"next": page.next})
            if query in self._pages or len(self._pages) >= MAX_PAGES:
                raise Trouble("protocol", "the manifest has no end")

    def _page(self, query: str, known: _Page | None) -> _Page:
        headers = self._headers
        if known is not None and known.etag is not None:
            headers = {**headers, "If-None-Match": known.etag}
        with self._web.get(f"{self._base_url}/manifest{query}", headers) as answer:
            if answer.status == HTTPStatus.NOT_MODIFIED and known is not None:
                return known
            try:
                document = _document(answer, MAX_PAGE_BYTES)
            except Trouble as trouble:
                if trouble.reason == "gone":
                    raise Trouble("protocol", "the server has no manifest: is its address right?") from None
                raise
            etag = answer.headers.get("ETag")
        objects, following = document.get("objects"), document.get("next")
        if not isinstance(objects, list) or not isinstance(following, str | None):
            raise Trouble("protocol", "the manifest is not one")
        return _Page(etag, tuple(map(_listed, objects)), following)


def _document(answer: Answer, limit_bytes: int) -> dict[str, Any]:
    """The JSON object of a 200; Trouble for every other answer."""
    status = answer.status
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise Trouble("unauthorized", "the server does not accept the token")
    if status == HTTPStatus.NOT_FOUND:
        raise Trouble("gone", "the server has no such file for this device")
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise Trouble(
            "rate_limited" if status == HTTPStatus.TOO_MANY_REQUESTS else "unavailable",
            f"the server answered {status}",
            after_seconds=_retry_after(answer.headers.get("Retry-After", "")),
        )
    if status != HTTPStatus.OK:
        raise Trouble("protocol", f"the server answered {status}")
    try:
        document = json.loads(answer.body(limit_bytes))
    except (ValueError, RecursionError):
        raise Trouble("protocol", "the server's answer is not JSON") from None
    if not isinstance(document, dict):
        raise Trouble("protocol", "the server's answer is no JSON object")
    return document


def _retry_after(text: str) -> float | None:
    """Seconds, bounded; the date that RFC 9110 §10.2.3 also allows would need a right clock, which few devices have."""
    return min(float(text), MAX_RETRY_AFTER_SECONDS) if re.fullmatch("[0-9]{1,9}", text) else None


def _listed(entry: object) -> Listed:
    if not isinstance(entry, dict):
        raise Trouble("protocol", "the manifest lists what is no object")
    kind, filename = entry.get("kind"), entry.get("filename")
    if not isinstance(kind, str) or not isinstance(filename, str):
        raise Trouble("protocol", "the manifest lists a file without kind or filename")
    return Listed(kind, filename, _etag(entry), _size(entry))


def _etag(document: dict[str, Any]) -> str:
    etag = document.get("etag")
    if not isinstance(etag, str) or _ETAG.fullmatch(etag := etag.removeprefix('"').removesuffix('"')) is None:
        raise Trouble("protocol", "the server gave no ETag")
    return etag


def _size(document: dict[str, Any]) -> int:
    size = document.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise Trouble("protocol", "the server gave no size")
    return size
