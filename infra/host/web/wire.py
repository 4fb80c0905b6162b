"""Pure: a request target as path and query, and a reply as bytes."""

from __future__ import annotations

import time
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from urllib.parse import unquote

import httptools

from functions.web.messages import Reply, malformed

_LENGTHLESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})  # RFC 9110 §8.6
_NOT_PLAIN = frozenset(b"%?#")  # what makes a target more than a path


def target(url: bytes) -> tuple[str, str]:
    """Path, decoded once, and query, as it came (RFC 9112 §3.2). Raises Problem."""
    if url.startswith(b"/") and _NOT_PLAIN.isdisjoint(url):
        return url.decode("ascii"), ""
    try:
        parsed = httptools.parse_url(url)
    except httptools.HttpParserInvalidURLError:
        parsed = None
    if parsed is None or parsed.path is None:
        raise malformed("bad_target", "The request target is no path.")
    return unquote(parsed.path.decode("ascii")), (parsed.query or b"").decode("latin-1")


@cache
def _status_line(status: HTTPStatus) -> str:
    return f"HTTP/1.1 {status.value} {status.phrase}\r\n"


@lru_cache(1)
def _date(_second: int) -> str:
    return formatdate(usegmt=True)


def encode(reply: Reply, *, is_head: bool = False, closes: bool = False) -> bytes:
    """The reply as it goes over the wire."""
    body = reply.body.encode() if isinstance(reply.body, str) else reply.body
    head = f"{_status_line(reply.status)}date: {_date(int(time.time()))}\r\n"
    for name, value in reply.headers.items():
        head += f"{name.lower()}: {value}\r\n"
    if body:
        head += f"content-type: {reply.content_type}\r\n"
    if reply.status not in _LENGTHLESS and "Content-Length" not in reply.headers:
        head += f"content-length: {len(body)}\r\n"
    head += "connection: close\r\n\r\n" if closes else "\r\n"
    return head.encode("latin-1") + (b"" if is_head else body)
