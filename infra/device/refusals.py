"""Pure: what a store's refusal of a presigned URL means. The status alone says little: the body names the cause.

Codes are S3's ("Error responses"); MinIO, Ceph, Versity Gateway, Garage and others use the same.
"""

from __future__ import annotations

import html
import re
from http import HTTPStatus

from functions.s3.regions import named_region, remedy
from infra.device.trouble import FetchError, Reason

MAX_ERROR_BYTES = 8 * 1024
MAX_MESSAGE_CHARACTERS = 200

# Not an XML parser: only two words are wanted, and what sent them is not trusted.
_CODE = re.compile(r"<Code>\s*([A-Za-z0-9._-]{1,64})\s*</Code>")
_MESSAGE = re.compile(r"<Message>([^<]{1,2000})</Message>")
_SECRET = re.compile(r"://|Signature=|Security-Token=", re.IGNORECASE)  # a store may repeat the URL

_OTHER_REGION = "the server signs for another region than the store's"
_CODES: dict[str, tuple[Reason, str]] = {
    "InvalidObjectState": ("archived", "the object is in an archive, and must be restored first"),
    "RequestTimeTooSkewed": ("clock_skew", "the clocks of server and store differ"),
    "AccessDenied": ("forbidden", "the server's key may not read this object"),
    "AllAccessDisabled": ("forbidden", "nobody may read this object"),
    **dict.fromkeys(
        (
            "AuthorizationHeaderMalformed",
            "AuthorizationQueryParametersError",
            "IllegalLocationConstraintException",
            "PermanentRedirect",
            "TemporaryRedirect",
        ),
        ("misdirected", _OTHER_REGION),
    ),
    "SignatureDoesNotMatch": ("misdirected", "the server signs for another address, or with a wrong secret key"),
    **dict.fromkeys(
        ("InvalidAccessKeyId", "XAdminUserNotFound"),  # the latter is Versity Gateway's, with a 404
        ("misdirected", "the store does not know the server's access key"),
    ),
    "InvalidToken": ("misdirected", "the store does not accept the server's temporary credentials"),
    "NoSuchBucket": ("misdirected", "the URL names a bucket that the store does not have"),
}
# These come as 400 too: the store was slow, and nothing is wrong with the URL.
_BUSY = {"RequestTimeout", "SlowDown", "ServiceUnavailable", "InternalError"}
_STATUSES: dict[int, tuple[Reason, str]] = {
    HTTPStatus.NOT_FOUND: ("replaced", "the object was deleted"),
    HTTPStatus.PRECONDITION_FAILED: ("replaced", "the object was replaced"),
    HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE: ("replaced", "the object is shorter than it was"),
    HTTPStatus.UNAUTHORIZED: ("forbidden", "the store refuses a fresh URL"),
    HTTPStatus.FORBIDDEN: ("forbidden", "the store refuses a fresh URL"),
}
_AS_EXPIRED = {HTTPStatus.BAD_REQUEST, HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_TOO_YOUNG = re.compile("not yet valid|not valid yet", re.IGNORECASE)
_TOO_OLD = re.compile("expired|too old", re.IGNORECASE)


def refusal(status: int, body: bytes, *, fresh: bool) -> FetchError:
    """Say what a 3xx or 4xx of the store means; `fresh`: the URL was signed a moment ago.

    A URL that is not fresh is taken for expired unless the store names something that a new one would not cure: Ceph
    answers an expired one with `AccessDenied` and nothing more.
    """
    text = body[:MAX_ERROR_BYTES].decode(errors="replace")
    found = _CODE.search(text)
    code = found[1] if found else ""
    message = _message(text)
    reason: Reason
    if code in _BUSY:
        reason, meaning = "unavailable", "the store is slow"
    elif (told := _by_time(code, message, fresh=fresh)) is not None:
        reason, meaning = told
    else:
        reason, meaning = _CODES.get(code) or _STATUSES.get(status) or ("refused", "the store refuses this object")
        if not fresh and status in _AS_EXPIRED and reason in {"forbidden", "misdirected", "refused"}:
            reason, meaning = "expired", "the store no longer accepts the URL"
    if (region := named_region(text)) and meaning == _OTHER_REGION:
        meaning = f"{_OTHER_REGION}: {remedy(region)} there"
    said = "" if not message or _SECRET.search(message) else f": {message}"
    answer = f"the store answered {status} {code}".rstrip()
    return FetchError(reason, f"{meaning} ({answer}{said})", code=code or None)


def _by_time(code: str, message: str, *, fresh: bool) -> tuple[Reason, str] | None:
    """What is wrong where the store speaks of time, whatever its code."""
    if _TOO_YOUNG.search(message):
        return "clock_skew", "the clocks of server and store differ: the URL is not valid yet"
    if not _TOO_OLD.search(code + message):
        return None
    if not fresh:
        return "expired", "the URL has expired"
    if code == "ExpiredToken":
        return "misdirected", "the server's temporary credentials have expired"
    return "clock_skew", "the clocks of server and store differ: a fresh URL has expired"


def _message(text: str) -> str:
    found = _MESSAGE.search(text)
    return " ".join(html.unescape(found[1]).split())[:MAX_MESSAGE_CHARACTERS] if found else ""
