"""The device's server and an S3 in one, on loopback, for what real ones cannot be made to do on demand."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit

TOKEN = "device-token"
MODIFIED = datetime(2026, 11, 20, 12, 0, tzinfo=UTC)
CHUNK_BYTES = 8 * 1024
STALL_SECONDS = 30.0
PAGE = 2


class Provider(Protocol):
    """Where tickets come from: this module's own objects, or a real store."""

    def ticket(self, path: str) -> dict[str, Any] | None:
        """The JSON answer for `configs/…` or `assets/…`, None when there is no such object."""

    def listing(self) -> list[dict[str, Any]]:
        """The manifest's objects."""


@dataclass(slots=True)
class Behaviour:
    """What happens to one GET of an object, instead of the plain answer."""

    status: int | None = None
    """Answer this, with an XML error of `code` and `message`."""
    code: str = ""
    message: str = ""
    cut_after_bytes: int | None = None
    """Close the connection once that many bytes of the body have gone."""
    stall_after_bytes: int | None = None
    """Send no more after that many until `release` is set; then end, or with `go_on` send the rest."""
    go_on: bool = False
    at_stop: Callable[[], object] = lambda: None
    """Called where it cuts or stalls."""
    body: bytes | None = None
    """Send this instead of the object's bytes (of the same range)."""
    headers: Mapping[str, str] = field(default_factory=dict)
    ignore_conditions: bool = False
    """Neither Range nor If-Match is heeded."""
    content_length: int | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """One request."""

    path: str
    headers: Mapping[str, str]
    status: int


@dataclass(frozen=True, slots=True)
class FakeObject:
    """A stored object; `etag` is without quotes, "" where it has none, `headers` go with each response."""

    body: bytes
    etag: str
    modified: datetime
    headers: Mapping[str, str] = field(default_factory=dict)


class SlowStore:
    """Server at `url`, store at `url` + `/bucket`; `script` holds the behaviour of the next downloads, in order.

    `server_answers` holds what the server says to the next requests instead: (status, headers). The store refuses
    a request with an Authorization header, as S3 does with two ways to authenticate.
    """

    def __init__(self, provider: Provider | None = None, *, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, FakeObject] = {}
        self.script: list[Behaviour] = []
        self.server_answers: list[tuple[int, dict[str, str]]] = []
        self.server_body: bytes | None = None
        self.seen: list[Seen] = []
        self.release = threading.Event()
        self.ticket_changes: dict[str, Any] = {}
        self.refuses_if_match = False
        """Answer 412 to each If-Match, also a right one."""
        self.provider = provider or self
        self._http = _Listener(("127.0.0.1", 0), _Handler)
        self._http.world = self
        if tls is not None:
            self._http.socket = tls.wrap_socket(self._http.socket, server_side=True)
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{self._http.server_address[1]}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="slow-store", daemon=True)
        self._thread.start()

    def put(
        self, path: str, body: bytes, *, etag: str | None = None, modified: datetime = MODIFIED, **headers: str
    ) -> FakeObject:
        """Store an object under `configs/…` or `assets/…`, with the MD5 for an ETag unless said otherwise."""
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest() if etag is None else etag
        self.objects[path] = FakeObject(body, etag, modified, {k.replace("_", "-"): v for k, v in headers.items()})
        return self.objects[path]

    def ticket(self, path: str) -> dict[str, Any] | None:
        """As `download.handler` answers in JSON mode."""
        found = self.objects.get(path)
        if found is None:
            return None
        return {
            "url": f"{self.url}/bucket/{quote(path)}?X-Amz-SignedHeaders=host",
            "expires_at": "2030-01-01T00:00:00Z",
            "filename": path.partition("/")[2],
            "size": len(found.body),
            "etag": found.etag or None,
            "last_modified": _iso(found.modified),
            "version_id": None,
            **self.ticket_changes,
        }

    def listing(self) -> list[dict[str, Any]]:
        """As the manifest lists them."""
        return [
            listed(path, found.etag or None, len(found.body), found.modified)
            for path, found in sorted(self.objects.items())
        ]

    def downloads(self) -> list[Seen]:
        """The requests that reached the store."""
        return [seen for seen in list(self.seen) if seen.path.startswith("/bucket/")]

    def asked(self, prefix: str = "/") -> list[Seen]:
        """The requests that reached the server."""
        return [
            seen for seen in list(self.seen) if seen.path.startswith(prefix) and not seen.path.startswith("/bucket/")
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.release.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(5)


def _iso(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def listed(path: str, etag: str | None, size: int, modified: datetime = MODIFIED) -> dict[str, Any]:
    """One line of the manifest."""
    folder, _, filename = path.partition("/")
    kind = {"configs": "config", "assets": "asset"}[folder]
    return {
        "filename": filename,
        "kind": kind,
        "etag": etag,
        "size": size,
        "last_modified": _iso(modified),
        "version_id": None,
    }


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    world: SlowStore

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def do_GET(self) -> None:
        self.world = self.server.world
        if self.path.startswith("/bucket/"):
            self._object()
        else:
            self._server()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's signature
        """Say nothing."""

    def _answer(self, status: int, body: bytes, headers: Mapping[str, str], length: int | None = None) -> None:
        self.world.seen.append(Seen(self.path, dict(self.headers), status))
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)

    # The server.

    def _server(self) -> None:
        if self.world.server_answers:
            status, headers = self.world.server_answers.pop(0)
            self._answer(status, b"{}", headers)
        elif self.headers.get("Authorization") != f"Bearer {TOKEN}":
            self._answer(401, b"{}", {})
        elif self.world.server_body is not None:
            self._answer(200, self.world.server_body, {})
        elif self.path.startswith("/manifest"):
            self._manifest()
        else:
            path, _, query = self.path[1:].partition("?")
            path = f"{path}/{parse_qs(query)['filename'][0]}" if query else unquote(path)
            ticket = self.world.provider.ticket(path)
            self._answer(404 if ticket is None else 200, json.dumps(ticket or {}).encode(), {})

    def _manifest(self) -> None:
        start = int(parse_qs(urlsplit(self.path).query).get("next", ["0"])[0])
        objects = self.world.provider.listing()
        following = str(start + PAGE) if start + PAGE < len(objects) else None
        body = json.dumps({"objects": objects[start : start + PAGE], "next": following}).encode()
        etag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
        if self.headers.get("If-None-Match") == etag:
            self._answer(304, b"", {"ETag": etag})
        else:
            self._answer(200, body, {"ETag": etag})

    # The store.

    def _object(self) -> None:
        does = self.world.script.pop(0) if self.world.script else Behaviour()
        found = self.world.objects.get(unquote(urlsplit(self.path).path.removeprefix("/bucket/")))
        conditions: Mapping[str, str] = {} if does.ignore_conditions else dict(self.headers)
        if does.status is not None or self.headers.get("Authorization"):
            said = f"<Error><Code>{does.code}</Code><Message>{does.message}</Message></Error>"
            self._answer(does.status or 400, said.encode(), does.headers)
        elif found is None:
            self._answer(404, b"<Error/>", {})
        elif "If-Match" in conditions and (self.world.refuses_if_match or conditions["If-Match"] != f'"{found.etag}"'):
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>", {})
        else:
            self._send(does, found, conditions.get("Range"))

    def _send(self, does: Behaviour, found: FakeObject, wanted: str | None) -> None:
        whole = found.body if does.body is None else does.body
        modified = format_datetime(found.modified, usegmt=True)
        tag = {"ETag": f'"{found.etag}"'} if found.etag else {}
        headers = {**tag, "Last-Modified": modified, **found.headers, **does.headers}
        status, body = 200, whole
        if wanted is not None:
            match = re.fullmatch(r"bytes=(\d+)-", wanted)
            assert match is not None, wanted
            start = int(match[1])
            status, body = 206, whole[start:]
            headers = {"Content-Range": f"bytes {start}-{len(whole) - 1}/{len(whole)}", **headers}
        self._answer(status, b"", headers, len(body) if does.content_length is None else does.content_length)
        stop = min(len(body) if limit is None else limit for limit in (does.cut_after_bytes, does.stall_after_bytes))
        for offset in range(0, stop, CHUNK_BYTES):
            self.wfile.write(body[offset : min(offset + CHUNK_BYTES, stop)])
        if does.cut_after_bytes is not None or does.stall_after_bytes is not None:
            self.wfile.flush()
            does.at_stop()
        if does.cut_after_bytes is not None:
            # Not a reset: that would take what the client has not read yet with it.
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
        elif does.stall_after_bytes is not None:
            self.world.release.wait(STALL_SECONDS)
            if does.go_on:
                self.wfile.write(body[stop:])
            self.close_connection = not does.go_on
