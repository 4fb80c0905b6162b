"""Not a store: answers LIST, as fast as it can, as one with that many assets would; and HEAD, as if all were there.

`python -m infra.bench.fast_store <port> <assets>`; nothing is signed or checked, and it keeps only what is PUT under
other names than these. `GET /calls` tells how many LISTs there were. It stands in where a real one
would need minutes to be filled, and much longer than we for its own part of a LIST.
"""

from __future__ import annotations

import sys
from email.utils import formatdate
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from infra.bench.rig import BUCKET, asset_keys

STEM = "listed"
PAGE = 1000
CALLS = "/calls"
MODIFIED = "2026-11-20T12:00:00.000Z"
ETAG = "5eb63bbbe01eeed093cb22bb8f5acdc3"

_COMMON = f"<LastModified>{MODIFIED}</LastModified><ETag>&#34;{ETAG}&#34;</ETag><Size>25</Size>"
_COMMON += "<StorageClass>STANDARD</StorageClass>"
_VERSION = (
    f"<Version><Key>%s</Key>{_COMMON}<Owner><ID>bench</ID></Owner>"
    "<IsLatest>true</IsLatest><VersionId>null</VersionId></Version>"
)
_OBJECT = f"<Contents><Key>%s</Key>{_COMMON}</Contents>"


class Listing:
    """The pages of one bucket, each made once."""

    def __init__(self, assets: int) -> None:
        """All keys are in S3's order."""
        self._keys = asset_keys(STEM, assets)
        self._places = {key: number for number, key in enumerate(self._keys)}
        self.page = cache(self._page)
        self.calls = 0
        self.kept: dict[str, bytes] = {}

    def _page(self, after: str, limit: int, prefix: str, *, versions: bool) -> bytes:
        """The XML of one page: the keys after `after`, which is one of them, or any text before the first.

        A prefix is that of all of them, or of none.
        """
        begin = self._places.get(after, -1) + 1 if self._keys[0].startswith(prefix) else len(self._keys)
        keys = self._keys[begin : begin + limit]
        more = begin + limit < len(self._keys)
        name, entry = ("ListVersionsResult", _VERSION) if versions else ("ListBucketResult", _OBJECT)
        following = ""
        if more:
            following = f"<NextKeyMarker>{keys[-1]}</NextKeyMarker>" if versions else ""
            following += "" if versions else f"<NextContinuationToken>{keys[-1]}</NextContinuationToken>"
        return (
            f'<?xml version="1.0" encoding="UTF-8"?><{name} xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<Name>{BUCKET}</Name><MaxKeys>{limit}</MaxKeys><KeyCount>{len(keys)}</KeyCount>"
            f"<IsTruncated>{str(more).lower()}</IsTruncated>{following}{''.join(entry % key for key in keys)}</{name}>"
        ).encode()


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    listing: Listing

    def do_GET(self) -> None:
        """A page, or what is kept."""
        place = urlsplit(self.path)
        if place.path == CALLS:
            body = str(self.listing.calls).encode()
            self._answer({"Content-Length": str(len(body))}, body)
            return
        if key := place.path.removeprefix(f"/{BUCKET}").strip("/"):
            kept = self.listing.kept.get(key)
            body = b"<Error><Code>NoSuchKey</Code></Error>" if kept is None else kept
            status = "404 Not Found" if kept is None else "200 OK"
            self._answer({"ETag": f'"{ETAG}"', "Content-Length": str(len(body))}, body, status)
            return
        self.listing.calls += 1
        query = parse_qs(place.query, keep_blank_values=True)
        limit = min(PAGE, int(query.get("max-keys", [str(PAGE)])[0]))
        after = [query[name][0] for name in ("key-marker", "continuation-token", "start-after") if name in query]
        prefix = query.get("prefix", [""])[0]
        body = self.listing.page(after[0] if after else "", limit, prefix, versions="versions" in query)
        self._answer({"Content-Type": "application/xml", "Content-Length": str(len(body))}, body)

    def do_HEAD(self) -> None:
        """A small object, whatever its name."""
        self._answer(
            {"ETag": f'"{ETAG}"', "Content-Length": "25", "Last-Modified": "Fri, 20 Nov 2026 12:00:00 GMT"}, b""
        )

    def do_PUT(self) -> None:
        """Keep it."""
        key = urlsplit(self.path).path.removeprefix(f"/{BUCKET}").strip("/")
        self.listing.kept[key] = self.rfile.read(int(self.headers["Content-Length"]))
        self._answer({"ETag": f'"{ETAG}"', "Content-Length": "0"}, b"")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the standard library's name
        """Nothing to tell."""

    def _answer(self, headers: dict[str, str], body: bytes, status: str = "200 OK") -> None:
        headers["Date"] = formatdate(usegmt=True)
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.wfile.write(f"HTTP/1.1 {status}\r\n{head}\r\n".encode() + body)


def main(port: int, assets: int) -> None:
    """Answer until SIGTERM."""
    Handler.listing = Listing(assets)
    ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
