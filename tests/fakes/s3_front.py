"""An S3 server that lists and dates as Garage or SeaweedFS does, before a real store that keeps the objects.

What it does not answer itself it passes on as it came, signature included. Its clock, and single pages of a LIST, can
be made to go wrong.
"""

from __future__ import annotations

import http.client
import math
import re
import threading
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, NamedTuple, Self
from urllib.parse import parse_qs, quote, unquote, urlsplit
from xml.sax.saxutils import escape

from infra.local.stores import Store

ANSWER_SECONDS = 30.0
PAGE_OBJECTS = 1000
SEAWEED_CHUNK_BYTES = 4 * 1024 * 1024
_SCOPE = re.compile(r"Credential=[^/]+/\d{8}/([^/]+)/")
# Ours to say: they belong to a connection, or to the server that the client believes to talk to.
_NOT_PASSED_ON = frozenset({"connection", "date", "keep-alive", "server", "transfer-encoding"})


@dataclass(frozen=True, slots=True)
class Habits:
    """What a kind of store does otherwise than AWS, as seen of Garage 2.5 and SeaweedFS 4.53.

    `server` is its header of that name, `region` the only one that it takes a signature for ("": any); it says which
    in words, and with `names_region` for programs, too. Without `events` it knows no notifications, without `versions`
    no ListObjectVersions; `wrong_etags` are those that the latter shows. `by_directory` lists each folder before the
    names that only begin like it (`a/x` before `a-b`), and `whole_seconds` dates objects without a fraction.
    """

    server: str = ""
    region: str = ""
    names_region: bool = True
    events: bool = True
    versions: bool = True
    wrong_etags: bool = False
    by_directory: bool = False
    whole_seconds: bool = False


GARAGE = Habits(region="garage", events=False, versions=False)
SEAWEED = Habits(server="SeaweedFS 30GB 4.53", events=False, wrong_etags=True, by_directory=True, whole_seconds=True)


class ListedObject(NamedTuple):
    """An object of a bucket."""

    key: str
    etag: str
    size: int
    modified: datetime


class S3Front:
    """Listens on 127.0.0.1:`port` before `store`; the knobs may be turned from any thread.

    A LIST has at most `page_objects` on a page; `failing_pages` (the first is 1) are answered by 500, and `on_page`
    is called with the number of each before it is answered. `ahead` is how much the store's clock is ahead of ours:
    an object keeps the date that the clock had when it was uploaded here, and `dated` holds these by `bucket/key`.
    `behind` is a client of the store itself, and `lists` counts the pages that were asked for.
    """

    def __init__(self, store: Store, habits: Habits = Habits()) -> None:
        """Listens at once."""
        self.habits = habits
        self.page_objects = PAGE_OBJECTS
        self.failing_pages: set[int] = set()
        self.on_page: Callable[[int], object] = lambda _: None
        self.ahead = timedelta()
        self.dated: dict[str, datetime] = {}
        self.lists = 0
        self.access_key, self.secret_key = store.access_key, store.secret_key
        self.region = habits.region or store.region
        self._dating = threading.RLock()  # no LIST between an upload and its date
        self._store = store
        self.behind: Any = store.client()
        self._http = _Listener(("127.0.0.1", 0), _Handler)
        self._http.front = self
        self.port = self._http.server_port
        self.endpoint_url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.02,), name="s3-front", daemon=True)
        self._thread.start()

    @property
    def variables(self) -> dict[str, str]:
        """What a host needs to know of this store."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.access_key,
            "AWS_SECRET_ACCESS_KEY": self.secret_key,
            "AWS_REGION": self.region,
        }

    def client(self) -> Any:  # noqa: ANN401 - boto3 makes its clients at run time
        """A boto3 client that comes through here."""
        port, region = self._store.port, self._store.region
        self._store.port, self._store.region = self.port, self.region
        try:
            return self._store.client()
        finally:
            self._store.port, self._store.region = port, region

    def now(self) -> datetime:
        """By the store's clock."""
        return datetime.now(UTC) + self.ahead

    def stop(self) -> None:
        """Ends it. Idempotent."""
        self._http.shutdown()
        self._http.server_close()
        self._thread.join(ANSWER_SECONDS)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def page(self, bucket: str, query: dict[str, str]) -> bytes | None:
        """The XML of a page, None where it fails."""
        self.lists += 1
        versions = "versions" in query
        found = [entry for entry in self._objects(bucket) if entry.key.startswith(query.get("prefix", ""))]
        found.sort(key=lambda entry: self.place(entry.key))
        after = query.get("continuation-token") or query.get("start-after") or query.get("key-marker") or ""
        begin = sum(self.place(entry.key) <= self.place(after) for entry in found) if after else 0
        size = min(self.page_objects, int(query.get("max-keys", PAGE_OBJECTS)))
        number = 1 + math.ceil(begin / self.page_objects)
        self.on_page(number)
        if number in self.failing_pages:
            return None
        spell = quote if query.get("encoding-type") == "url" else escape
        return _page(found[begin : begin + size], spell, more=begin + size < len(found), versions=versions)

    def place(self, key: str) -> tuple[bytes, ...]:
        """What a LIST is sorted by."""
        return tuple(key.encode().split(b"/")) if self.habits.by_directory else (key.encode(),)

    def _objects(self, bucket: str) -> list[ListedObject]:
        pages = self.behind.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        with self._dating:
            return [self._seen(bucket, entry) for page in pages for entry in page.get("Contents", ())]

    def _seen(self, bucket: str, entry: dict[str, Any]) -> ListedObject:
        modified = self.dated.get(f"{bucket}/{entry['Key']}", entry["LastModified"])
        if self.habits.whole_seconds:
            modified = modified.replace(microsecond=0)
        return ListedObject(entry["Key"], entry["ETag"], entry["Size"], modified)

    def pass_on(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        """What the store says to this request."""
        makes_object = _makes_object(method, target)
        with self._dating if makes_object else nullcontext():
            answer = self._ask(method, target, headers, body)
            place = unquote(urlsplit(target).path).strip("/")
            if answer.status == HTTPStatus.OK and makes_object:
                self.dated[place] = self.now()
        for name in [name for name in answer.headers if name.lower() == "last-modified" and place in self.dated]:
            answer.headers[name] = format_datetime(self.dated[place].replace(microsecond=0), usegmt=True)
        return answer

    def _ask(self, method: str, target: str, headers: dict[str, str], body: bytes) -> Answer:
        connection = http.client.HTTPConnection("127.0.0.1", self._store.port, timeout=ANSWER_SECONDS)
        try:
            connection.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name, value)
            connection.endheaders(body)
            came = connection.getresponse()
            return Answer(came.status, dict(came.getheaders()), came.read())
        finally:
            connection.close()


@dataclass(slots=True)
class Answer:
    """Of the store, or ours."""

    status: int
    headers: dict[str, str]
    body: bytes


def _makes_object(method: str, target: str) -> bool:
    place = urlsplit(target)
    if "/" not in place.path.strip("/"):
        return False
    return (method, bool(place.query)) == ("PUT", False) or (method == "POST" and "uploadId=" in place.query)


def _page(entries: Sequence[ListedObject], spell: Callable[[str], str], *, more: bool, versions: bool) -> bytes:
    root, each = ("ListVersionsResult", "Version") if versions else ("ListBucketResult", "Contents")
    told = ["<?xml version='1.0' encoding='UTF-8'?>", f"<{root} xmlns='http://s3.amazonaws.com/doc/2006-03-01/'>"]
    told.append(f"<IsTruncated>{str(more).lower()}</IsTruncated><KeyCount>{len(entries)}</KeyCount>")
    if spell is quote:
        told.append("<EncodingType>url</EncodingType>")
    if more:
        last = entries[-1].key
        told.append(f"<NextContinuationToken>{escape(last)}</NextContinuationToken>")
        told.append(f"<NextKeyMarker>{spell(last)}</NextKeyMarker><NextVersionIdMarker>null</NextVersionIdMarker>")
    for entry in entries:
        modified = entry.modified.strftime("%Y-%m-%dT%H:%M:%S.") + f"{entry.modified.microsecond // 1000:03}Z"
        etag = _seaweed_etag(entry) if versions else entry.etag
        told.append(f"<{each}><Key>{spell(entry.key)}</Key><LastModified>{modified}</LastModified>")
        told.append(f"<ETag>{escape(etag)}</ETag><Size>{entry.size}</Size><StorageClass>STANDARD</StorageClass>")
        told.append("<IsLatest>true</IsLatest><VersionId>null</VersionId>" if versions else "")
        told.append(f"</{each}>")
    return "".join((*told, f"</{root}>")).encode()


def _seaweed_etag(entry: ListedObject) -> str:
    """As SeaweedFS's ListObjectVersions has it for a bucket without versions."""
    if not entry.size:
        return '""'
    chunks = math.ceil(entry.size / SEAWEED_CHUNK_BYTES)
    return f'"{entry.etag.strip(chr(34))}-{chunks}"' if chunks > 1 else entry.etag


def _refusal(status: int, code: str, message: str, more: str = "") -> Answer:
    body = f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{code}</Code><Message>{message}</Message>{more}</Error>'
    return Answer(status, {"Content-Type": "application/xml"}, body.encode())


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    front: S3Front


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Listener

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = self._own() or self.server.front.pass_on(self.command, self.path, dict(self.headers), body)
        self.send_response_only(answer.status)
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in _NOT_PASSED_ON}
        if self.command != "HEAD":
            kept = {name: value for name, value in kept.items() if name.lower() != "content-length"}
            kept["Content-Length"] = str(len(answer.body))
        kept["Date"] = format_datetime(self.server.front.now(), usegmt=True)
        if self.server.front.habits.server:
            kept["Server"] = self.server.front.habits.server
        for name, value in kept.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)

    def do_GET(self) -> None:
        self._answer()

    def do_HEAD(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_DELETE(self) -> None:
        self._answer()

    def _own(self) -> Answer | None:
        """What this kind of store answers otherwise than the one behind it; None: nothing."""
        habits = self.server.front.habits
        signed_for = _SCOPE.search(self.headers.get("Authorization") or unquote(self.path))
        if habits.region and signed_for and signed_for[1] != habits.region:
            return _refusal(
                HTTPStatus.BAD_REQUEST,
                "AuthorizationHeaderMalformed",
                "Authorization header malformed, unexpected scope: "
                f"&apos;{signed_for[0].split('/', 1)[1]}s3/aws4_request&apos;, expected: "
                f"&apos;{signed_for[0].split('/')[1]}/{habits.region}/s3/aws4_request&apos;",
                f"<Region>{habits.region}</Region>" if habits.names_region else "",
            )
        place = urlsplit(self.path)
        query = {name: values[0] for name, values in parse_qs(place.query, keep_blank_values=True).items()}
        bucket = unquote(place.path).strip("/")
        is_of_bucket = self.command == "GET" and bucket and "/" not in bucket
        for word, known in (("notification", habits.events), ("versions", habits.versions)):
            if is_of_bucket and word in query and not known:
                return _refusal(HTTPStatus.NOT_IMPLEMENTED, "NotImplemented", f"Unimplemented feature: {word}")
        if is_of_bucket and (query.get("list-type") == "2" or ("versions" in query and habits.wrong_etags)):
            page = self.server.front.page(bucket, query)
            if page is None:
                return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR, "InternalError", "Please try again.")
            return Answer(HTTPStatus.OK, {"Content-Type": "application/xml"}, page)
        return None

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Nothing to tell."""
