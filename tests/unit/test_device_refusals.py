from __future__ import annotations

import pytest

from infra.device.refusals import MAX_MESSAGE_CHARACTERS, refusal
from infra.device.trouble import Reason


def said(code: str = "", message: str = "") -> bytes:
    """An error of S3's."""
    return f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{message}</Message><Key>k</Key></Error>".encode()


@pytest.mark.parametrize(
    ("status", "code", "message", "fresh_reason", "old_reason"),
    [
        (403, "AccessDenied", "Request has expired", "clock_skew", "expired"),
        (403, "AccessDenied", "Request is not valid yet", "clock_skew", "clock_skew"),
        (403, "AccessDenied", "Request is not yet valid", "clock_skew", "clock_skew"),
        (400, "InvalidRequest", "Date is too old", "clock_skew", "expired"),
        (403, "RequestTimeTooSkewed", "The difference …", "clock_skew", "clock_skew"),
        (403, "AccessDenied", "Access Denied", "forbidden", "expired"),
        (403, "AccessDenied", "", "forbidden", "expired"),
        (403, "", "", "forbidden", "expired"),
        (400, "ExpiredToken", "The provided token has expired.", "misdirected", "expired"),
        (403, "InvalidObjectState", "The operation is not valid …", "archived", "archived"),
        (400, "AuthorizationHeaderMalformed", "the region is wrong", "misdirected", "expired"),
        (400, "AuthorizationQueryParametersError", "expecting 'eu-central-1'", "misdirected", "expired"),
        (403, "SignatureDoesNotMatch", "…", "misdirected", "expired"),
        (403, "InvalidAccessKeyId", "…", "misdirected", "expired"),
        (404, "XAdminUserNotFound", "…", "misdirected", "misdirected"),
        (301, "PermanentRedirect", "…", "misdirected", "misdirected"),
        (307, "TemporaryRedirect", "…", "misdirected", "misdirected"),
        (404, "NoSuchBucket", "…", "misdirected", "misdirected"),
        (400, "InvalidRequest", "stored using a form of Server Side Encryption", "refused", "expired"),
        (400, "RequestTimeout", "…", "unavailable", "unavailable"),
        (404, "NoSuchKey", "…", "replaced", "replaced"),
        (404, "", "", "replaced", "replaced"),
        (412, "PreconditionFailed", "…", "replaced", "replaced"),
        (416, "InvalidRange", "…", "replaced", "replaced"),
        (405, "MethodNotAllowed", "…", "refused", "refused"),
    ],
)
def test_the_stores_own_word_decides(
    status: int, code: str, message: str, fresh_reason: Reason, old_reason: Reason
) -> None:
    """A URL that was good may have expired; a fresh one has not: then the code names the cause."""
    for fresh, reason in ((True, fresh_reason), (False, old_reason)):
        trouble = refusal(status, said(code, message), fresh=fresh)
        assert (trouble.reason, trouble.code) == (reason, code or None)
        assert str(status) in str(trouble)
        assert code in str(trouble)


@pytest.mark.parametrize("body", [b"", b"\xff\xfe", b"<html>no S3</html>", b"<Code>a b</Code>", b"<Code>" * 9999])
def test_what_is_no_error_of_s3_is_judged_by_its_status(body: bytes) -> None:
    """A proxy's page, half of an answer, nonsense."""
    trouble = refusal(403, body, fresh=True)
    assert (trouble.reason, trouble.code) == ("forbidden", None)


def test_a_message_is_told_but_bounded_and_no_link_is() -> None:
    """It is one line of text; what could hold a presigned URL is left out."""
    told = str(refusal(400, said("AuthorizationHeaderMalformed", "the region &#39;x&#39;\n is  wrong"), fresh=True))
    assert "the region 'x' is wrong" in told
    assert len(str(refusal(403, said("AccessDenied", "long " * 300), fresh=True))) < 2 * MAX_MESSAGE_CHARACTERS
    for secret in ("no http://s/b?sig", "X-Amz-Signature=5ec4e7", "x-amz-security-token=5ec4e7"):
        told = str(refusal(403, said("AccessDenied", secret), fresh=True))
        assert secret not in told
        assert "AccessDenied" in told


@pytest.mark.parametrize(
    "message",
    [
        "The authorization header is malformed; the region is wrong; expecting &#39;eu-test&#39;.",
        "unexpected scope: &apos;20261130/x/s3/…&apos;, expected: &apos;20261130/eu-test/s3/aws4_request&apos;",
        "No.</Message><Region>eu-test</Region><Message>",
    ],
)
def test_the_stores_region_is_told_where_the_store_names_it(message: str) -> None:
    """With what to do at the server; no device can mend it."""
    told = str(refusal(400, said("AuthorizationHeaderMalformed", message), fresh=True))
    assert told.startswith(
        "the server signs for another region than the store's: set S3_REGION=eu-test there (the store answered 400"
    )
