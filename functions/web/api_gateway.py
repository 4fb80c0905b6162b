"""Lambda's edge of HTTP: the event of an API Gateway HTTP API (payload format 2.0) as a request, a reply as its answer.

What AWS puts into the event (captures of a live gateway in github.com/hotsock/voker, `ingress-paths.json` and
`apigwv2-request.json`, 2026):

- `rawPath` is percent-*decoded*, although its name says raw: `%20` is a space there, `%2F` a slash. Sometimes it is
  decoded twice: `%252F` is a slash as well, `%25` before anything but a hex pair gets the client a 400 of AWS's own,
  and at `%3F` the path ends. So AWS cannot be asked by path for a name with `%` or `?` in it.
- `rawQueryString` is as the client sent it: a name in it, encoded once, arrives on every host.
- Repeated headers are joined by commas; header names are in lower case.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from functions.web.messages import Reply, Request, malformed, too_large
from functions.web.router import Caller, Router

Event = dict[str, Any]
DEFAULT_STAGE = "$default"


def respond(router: Router[Caller], event: Event, *others: Router[Any]) -> Event:
    """Answer one event, by `router` unless its path is one of the others'. Never raises."""
    try:
        request = request_of(event)
        chosen: Router[Any] = next((one for one in others if one.takes(request.path)), router)
        reply = chosen(request, lambda limit_bytes: body_of(event, limit_bytes))
    except Exception as error:  # noqa: BLE001 - an event that no gateway sends
        return answer_of(router.refuse(error))
    return answer_of(reply, is_head=request.method == "HEAD")


def request_of(event: Event) -> Request:
    """Read an event, without its body. Raises whatever comes of an event that no gateway sends."""
    context = event["requestContext"]
    http, stage = context["http"], context.get("stage", DEFAULT_STAGE)
    path: str = event["rawPath"]
    if stage != DEFAULT_STAGE:
        path = path.removeprefix(f"/{stage}") or "/"
    headers = {name.lower(): value or "" for name, value in (event.get("headers") or {}).items()}
    query = event.get("rawQueryString") or ""
    return Request(http["method"].upper(), path, query, headers, address=http.get("sourceIp") or "")


def body_of(event: Event, limit_bytes: int) -> bytes:
    """The body. Raises Problem if it is too large or cannot be decoded."""
    text = event.get("body") or ""
    if len(text) > 2 * limit_bytes:  # before it is decoded
        raise too_large(limit_bytes)
    try:
        body = base64.b64decode(text, validate=True) if event.get("isBase64Encoded") else text.encode()
    except (binascii.Error, UnicodeEncodeError):
        raise malformed("bad_body", "The body cannot be decoded.") from None
    if len(body) > limit_bytes:
        raise too_large(limit_bytes)
    return body


def answer_of(reply: Reply, *, is_head: bool = False) -> Event:
    """What the function returns. The answer to a HEAD has no body (RFC 9110 §9.3.2)."""
    headers = dict(reply.headers)
    if reply.body:
        headers["Content-Type"] = reply.content_type
    body = reply.body if isinstance(reply.body, str) else reply.body.decode()
    return {
        "statusCode": reply.status.value,
        "headers": headers,
        "body": "" if is_head else body,
        "isBase64Encoded": False,
    }
