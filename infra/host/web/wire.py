"""Pure: a request as it came over the wire, and a reply as it goes."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from email.utils import formatdate
from functools import cache, lru_cache
from http import HTTPStatus
from urllib.parse import unquote

import httptools

from functions.web.messages import Reply, Request, malformed

_LENGTHLESS = frozenset({HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED})  # RFC 9110 §8.6
_NOT_PLAIN = frozenset(b"%?#")  # what makes a target more than a path


def decode(method: bytes, url: bytes, fields: Iterable[tuple[bytes, bytes]], address: str) -> Request:
    """The request, without its body. Names in `fields` are in lower case. Raises Problem."""
    path, query = _target(url)
    headers: dict[str, str] = {}
    for raw_name, raw_value in fields:
        name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
        headers[name] = f"{headers[name]},{value}" if name in headers else value  # RFC 9110 §5.3
    return Request(method.decode("ascii"), path, query, headers, address=address)


def _target(url: bytes) -> tuple[str, str]:
    """Path, decoded once, and query, as it came (RFC 9112 §3.2)."""
    if url.isascii():
        if url.startswith(b"/") and _NOT_PLAIN.isdisjoint(url):
            return url.decode("ascii"), ""
        with suppress(httptools.HttpParserInvalidURLError):
            parsed = httptools.parse_url(url)
            if parsed.path is not None:
                return unquote(parsed.path.decode("ascii")), (parsed.query or b"").decode("ascii")
    raise malformed("bad_target", "The request target is no path.")


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
