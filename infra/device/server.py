"""What the device asks the server: the manifest, a fresh presigned URL for one file, and its next token."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from functions.settings.fields import is_one_word
from infra.device.held_token import HeldToken
from infra.device.names import Name
from infra.device.store import Version
from infra.device.trouble import FetchError
from infra.http_client import Response, Web

MAX_TICKET_BYTES = 64 * 1024
MAX_PAGE_BYTES = 8 * 1024 * 1024
MAX_PAGES = 1000
MAX_TOKEN_CHARACTERS = 2048

_ETAG = re.compile(r"[!#-~]{1,256}")  # RFC 9110 §8.8.3, without what a header cannot take
_JSON = {"Accept": "application/json"}
_NO_RENEWAL = {HTTPStatus.NOT_FOUND, HTTPStatus.METHOD_NOT_ALLOWED}  # of a host that does not know the route
_SHA256 = re.compile(r"[0-9a-f]{64}")
_NOT_THIS_REPORT = {HTTPStatus.BAD_REQUEST, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, HTTPStatus.UNPROCESSABLE_ENTITY}
_NOT_NOW = {
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_TIME = re.compile(r"[0-9T:.Z+-]{1,40}")  # RFC 3339


@dataclass(frozen=True, slots=True)
class Ticket:
    """Where one version of a file can be had for a while. `last_modified` is known of every version.

    `sha256` is that of the content, in hex, where the store knows it.
    """

    url: str
    version: Version
    last_modified: str | None = None
    sha256: str | None = None
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class Listed:
    """A line of the manifest. `filename` is as it came: nobody has judged it."""

    kind: str
    filename: str
    version: Version
    version_id: str | None = None


@dataclass(frozen=True, slots=True)
class ServerManifest:
    """What is current for this device. `senseless` lines were left out: one of them must not hide the others."""

    objects: tuple[Listed, ...]
    senseless: int


@dataclass(frozen=True, slots=True)
class _Page:
    etag: str | None
    objects: tuple[Listed, ...]
    senseless: int
    next: str | None


class DownloadServer:
    """The server at `base_url`, as the device with this `token` sees it. Not thread-safe."""

    def __init__(self, web: Web, base_url: str, token: str | HeldToken) -> None:
        """Asks nothing yet."""
        self._web = web
        self._base_url = base_url.rstrip("/")
        self._token = HeldToken(token) if isinstance(token, str) else token
        self._pages: dict[str, _Page] = {}

    def locate(self, name: Name) -> Ticket:
        """A URL for the file, and its version; FetchError `gone` when there is none."""
        target = quote(name.path, safe="/")
        if name.kind == "asset" and {"%", "?"} & set(name.filename):
            # AWS decodes a path twice and ends it at an encoded question mark; a query arrives as it was sent.
            target = "assets?" + urlencode({"filename": name.filename}, quote_via=quote)
        with self._ask(target) as answer:
            document = _document(answer, MAX_TICKET_BYTES)
        url = document.get("url")
        if not isinstance(url, str) or not url.isascii() or not url.startswith(("http://", "https://")):
            raise FetchError("protocol", "the server named no http or https URL")
        if (version := _version(document)) is None:
            raise FetchError("protocol", "the server gave no ETag, or no size")
        sha256 = document.get("sha256")
        if sha256 is not None and not (isinstance(sha256, str) and _SHA256.fullmatch(sha256)):
            raise FetchError("protocol", "the server gave a SHA-256 that is not 64 hex digits")
        return Ticket(url, version, _last_modified(document), sha256, _version_id(document))

    def manifest(self) -> ServerManifest:
        """All that is current for this device, page by page; a page that did not change is not sent again."""
        known, self._pages = self._pages, {}
        objects: list[Listed] = []
        senseless = 0
        query = ""
        while True:
            page = self._page(query, known.get(query))
            self._pages[query] = page
            objects += page.objects
            senseless += page.senseless
            if page.next is None:
                return ServerManifest(tuple(objects), senseless)
            query = "?" + urlencode({"next": page.next})
            if query in self._pages or len(self._pages) >= MAX_PAGES:
                raise FetchError("protocol", "the manifest has no end")

    def renew_token(self) -> str | None:
        """Get the next token if it is time, and show it from now on. Returns until when it is good, as the server says.

        Every FetchError leaves the token as it is: `gone` where the host does not know how to renew.
        """
        if not self._token.is_due:
            return None
        with self._web.request("POST", f"{self._base_url}/token", self._token.headers | _JSON) as answer:
            if answer.status in _NO_RENEWAL:
                raise FetchError("gone", "this host does not renew tokens")
            if answer.status == HTTPStatus.FORBIDDEN:
                raise FetchError("forbidden", "the host does not renew this token: ask for a new one before it ends")
            document = _document(answer, MAX_TICKET_BYTES)
        token, until = document.get("token"), document.get("expires_at")
        if not isinstance(token, str) or not is_one_word(token) or len(token) > MAX_TOKEN_CHARACTERS:
            raise FetchError("protocol", "the server gave no token")
        self._token.replace(token)
        return until if isinstance(until, str) else ""

    def report(self, body: bytes) -> None:
        """Tell what became of a file. What the server does not understand would not be understood again either.

        FetchError `gone` where the server takes no reports at all, and another one where this may be sent again.
        """
        headers = self._token.headers | _JSON | {"Content-Type": "application/json"}
        with self._web.request("POST", f"{self._base_url}/report", headers, body) as answer:
            status = answer.status
            if status < HTTPStatus.MULTIPLE_CHOICES or status in _NOT_THIS_REPORT:
                return
            if status == HTTPStatus.TOO_MANY_REQUESTS or status in _NOT_NOW:
                raise FetchError(
                    "unavailable", f"the server answered {status}", after_seconds=answer.retry_after_seconds
                )
            raise FetchError("gone", "this host takes no reports")

    @contextmanager
    def _ask(self, target: str, **headers: str) -> Iterator[Response]:
        """Ask with the token; where a new one is not accepted, with the one before."""
        while True:
            with self._web.get(f"{self._base_url}/{target}", self._token.headers | _JSON | headers) as answer:
                if answer.status != HTTPStatus.UNAUTHORIZED or not self._token.step_back():
                    if answer.status < HTTPStatus.BAD_REQUEST:
                        self._token.accepted()
                    yield answer
                    return

    def _page(self, query: str, known: _Page | None) -> _Page:
        headers = {} if known is None or known.etag is None else {"If-None-Match": known.etag}
        with self._ask(f"manifest{query}", **headers) as answer:
            if answer.status == HTTPStatus.NOT_MODIFIED and known is not None:
                return known
            try:
                document = _document(answer, MAX_PAGE_BYTES)
            except FetchError as trouble:
                if trouble.reason == "gone":
                    raise FetchError("protocol", "the server has no manifest: is its address right?") from None
                raise
            etag = answer.headers.get("ETag")
        objects, following = document.get("objects"), document.get("next")
        if not isinstance(objects, list) or not isinstance(following, str | None):
            raise FetchError("protocol", "the manifest is not one")
        listed = tuple(entry for entry in map(_listed, objects) if entry is not None)
        return _Page(etag, listed, len(objects) - len(listed), following)


def _document(answer: Response, limit_bytes: int) -> dict[str, Any]:
    """The JSON object of a 200; FetchError for every other answer."""
    status = answer.status
    if status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
        raise FetchError("unauthorized", "the server does not accept the token")
    if status == HTTPStatus.NOT_FOUND:
        raise FetchError("gone", "the server has no such file for this device")
    if status == HTTPStatus.TOO_MANY_REQUESTS or status >= HTTPStatus.INTERNAL_SERVER_ERROR:
        raise FetchError(
            "rate_limited" if status == HTTPStatus.TOO_MANY_REQUESTS else "unavailable",
            f"the server answered {status}",
            after_seconds=answer.retry_after_seconds,
        )
    if status != HTTPStatus.OK:
        raise FetchError("protocol", f"the server answered {status}")
    try:
        document = json.loads(answer.body(limit_bytes))
    except (ValueError, RecursionError):
        raise FetchError("protocol", "the server's answer is not JSON") from None
    if not isinstance(document, dict):
        raise FetchError("protocol", "the server's answer is not a JSON object")
    return document


def _listed(entry: object) -> Listed | None:
    """A line of the manifest, None when it makes no sense."""
    if not isinstance(entry, dict):
        return None
    kind, filename, version = entry.get("kind"), entry.get("filename"), _version(entry)
    if not isinstance(kind, str) or not isinstance(filename, str) or version is None:
        return None
    return Listed(kind, filename, version, _version_id(entry))


def _version(document: dict[str, Any]) -> Version | None:
    """What the server says of a file; None when that makes no sense. An `etag` of null is a file without one."""
    etag, size = document.get("etag"), document.get("size")
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        return None
    if etag is None and "etag" in document:
        modified = _last_modified(document)
        return None if modified is None else Version(None, size, modified)
    if not isinstance(etag, str) or _ETAG.fullmatch(etag := etag.removeprefix('"').removesuffix('"')) is None:
        return None
    return Version(etag, size)


def _version_id(document: dict[str, Any]) -> str | None:
    text = document.get("version_id")
    return text if isinstance(text, str) and _ETAG.fullmatch(text) else None


def _last_modified(document: dict[str, Any]) -> str | None:
    text = document.get("last_modified")
    return text if isinstance(text, str) and _TIME.fullmatch(text) else None
