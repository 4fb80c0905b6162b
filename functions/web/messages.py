"""Pure: what is asked over HTTP, and what is answered; problems are RFC 9457's.

The path of a request is decoded exactly once, by the server or by API Gateway; nothing here decodes it
again. `Host` and `X-Forwarded-*` are never read.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from types import MappingProxyType
from typing import NamedTuple
from urllib.parse import parse_qsl

THUMBNAILS = "/thumbnails"
MAX_QUERY_FIELDS = 20
MAX_IF_NONE_MATCH_CHARACTERS = 8192


class Request(NamedTuple):
    """What a request asks. `path` is decoded, `query` is not."""

    method: str
    path: str
    query: str = ""
    headers: Mapping[str, str] = MappingProxyType({})
    """Names in lower case; the values of a repeated one are joined by commas (RFC 9110 §5.3)."""
    body: bytes = b""
    address: str = ""
    """The client's IP address, as the socket or the gateway has it."""

    def header(self, name: str) -> str:
        """The value of a header, "" without one."""
        return self.headers.get(name, "")

    def parameters(self, *known: str) -> dict[str, str]:
        """Those of `known` that the query string has. Raises Problem (400) for one that is there twice."""
        try:
            pairs = parse_qsl(self.query, keep_blank_values=True, max_num_fields=MAX_QUERY_FIELDS, errors="strict")
        except ValueError:
            raise malformed("bad_query", "The query string is not percent-encoded UTF-8.") from None
        found = [(name, value) for name, value in pairs if name in known]
        if len(dict(found)) < len(found):
            raise malformed("repeated_parameter", "A query parameter is given twice.")
        return dict(found)

    @property
    def bearer(self) -> str:
        """The bearer token (RFC 6750 §2.1), "" without one."""
        scheme, _, token = self.header("authorization").strip().partition(" ")
        return token.strip() if scheme.lower() == "bearer" else ""

    @property
    def token_in_link(self) -> str:
        """The token that a link to a picture brings, "" without one. Raises Problem (400)."""
        return self.parameters("token").get("token", "") if self.path.startswith(THUMBNAILS) else ""

    @property
    def token(self) -> str:
        """What says who asks, "" where nothing does. Raises Problem (400)."""
        return self.token_in_link or self.bearer

    @property
    def wants_json(self) -> bool:
        """Whether the client names JSON among what it accepts; `*/*` does not."""
        ranges = ([part.strip().lower() for part in one.split(";")] for one in self.header("accept").split(","))
        return any(media == "application/json" and not {"q=0", "q=0.0"} & set(rest) for media, *rest in ranges)

    def has(self, etag: str) -> bool:
        """Whether the client holds this (unquoted) entity tag already: RFC 9110 §13.1.2, weak comparison.

        Of what has none ("") only `*` is true, which means whatever there is.
        """
        if_none_match = self.header("if-none-match")
        if len(if_none_match) > MAX_IF_NONE_MATCH_CHARACTERS:
            return False
        held = {tag.strip().removeprefix("W/") for tag in if_none_match.split(",")}
        return bool({"*", *tagged(etag).values()} & held)


@dataclass(frozen=True, slots=True)
class Reply:
    """What is answered."""

    status: HTTPStatus
    headers: Mapping[str, str]
    body: str | bytes = ""
    content_type: str = "application/json"
    closes: bool = False
    """Whether the connection ends with it, where there is one."""


class Problem(Exception):  # noqa: N818 - RFC 9457's own word
    """An answer other than the one asked for. `reason` is a slug for the log; `kid` and `jti` name the token."""

    def __init__(
        self,
        status: HTTPStatus,
        reason: str,
        detail: str,
        *,
        headers: Mapping[str, str] | None = None,
        kid: str = "",
        jti: str = "",
        closes: bool = False,
        more: Mapping[str, object] | None = None,
    ) -> None:
        """`detail` is for the client: it repeats nothing that the client or a store said.

        `closes`: the connection ends with the answer. `more` are further members of the answer.
        """
        self.status = status
        self.reason = reason
        self.detail = detail
        self.headers = dict(headers or {})
        self.kid = kid
        self.jti = jti
        self.closes = closes
        self.more = dict(more or {})
        super().__init__(reason)

    @property
    def reply(self) -> Reply:
        """The problem as an answer."""
        document = {"title": self.status.phrase, "status": self.status.value, "detail": self.detail} | self.more
        headers = {"Cache-Control": "no-store", **self.headers}
        return Reply(self.status, headers, as_json(document), "application/problem+json", self.closes)


def tagged(etag: str) -> dict[str, str]:
    """The header that tells an unquoted entity tag; none where there is no tag ("")."""
    return {"ETag": f'"{etag}"'} if etag else {}


def malformed(reason: str, detail: str) -> Problem:
    """A 400: nobody could fulfil this request."""
    return Problem(HTTPStatus.BAD_REQUEST, reason, detail)


def unfit(found: Iterable[Mapping[str, str]]) -> Problem:
    """A 422 that names each `field`, what is wrong with it (`problem`), and what is `expected`; never a value."""
    errors = [dict(one) for one in found]
    detail = "; ".join(f"{one['field']} {one['problem']}" for one in errors)
    return Problem(HTTPStatus.UNPROCESSABLE_ENTITY, "unfit", detail, more={"errors": errors})


def too_large(limit_bytes: int) -> Problem:
    """A 413. The connection ends: what is left of the body is not read."""
    detail = f"The body is larger than {limit_bytes} bytes."
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail, closes=True)


def internal() -> Problem:
    """A 500. It says nothing: what was raised may quote a request."""
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "Something went wrong here.")


def absent() -> Problem:
    """A 404, the same for what does not exist and for what the client must not know."""
    return Problem(HTTPStatus.NOT_FOUND, "not_found", "There is no such file for this token.")


def unauthorised(reason: str, *, kid: str = "", jti: str = "") -> Problem:
    """A 401 that asks for a bearer token (RFC 6750 §3); `reason` "no_token" when none was sent."""
    challenge = 'Bearer realm="bucketbell"' + ("" if reason == "no_token" else ', error="invalid_token"')
    detail = "A valid bearer token is needed: Authorization: Bearer <device token>."
    headers = {"WWW-Authenticate": challenge}
    return Problem(HTTPStatus.UNAUTHORIZED, reason, detail, headers=headers, kid=kid, jti=jti)


def unavailable(reason: str, detail: str, *, retry_after_seconds: int) -> Problem:
    """A 503, and when to come again."""
    headers = {"Retry-After": str(retry_after_seconds)}
    return Problem(HTTPStatus.SERVICE_UNAVAILABLE, reason, detail, headers=headers)


def as_json(document: object) -> str:
    """Compact JSON, the same for equal documents."""
    return json.dumps(document, ensure_ascii=False, separators=(",", ":"))


def iso(moment: datetime) -> str:
    """UTC to the second, e.g. `2026-11-20T12:00:00Z`: what HEAD and LIST both know (RFC 3339)."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
