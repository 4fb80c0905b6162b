"""Signs for one bucket by botocore's own signer, past the rest of boto3's machinery: URLs, HEADs and small GETs."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from http import HTTPStatus
from http.client import responses
from typing import TYPE_CHECKING, Any, Self
from urllib.parse import parse_qs, quote

from functions.s3.clients import (
    BAD_REQUEST,
    NO_CREDENTIALS,
    StorageError,
    client,
    open_session,
    read_timestamp,
    storage_errors,
)

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.awsrequest import AWSPreparedRequest
    from botocore.credentials import Credentials
    from mypy_boto3_s3.client import S3Client

    from functions.settings import Settings

SESSION_PROMISE_SECONDS = 900
"""What a URL is promised to last when it is signed with a session token that hides its end, as Lambda's does: the
shortest session that STS gives (STS, AssumeRole, DurationSeconds). A URL dies with the session it was signed in."""

STALE_SECONDS = 0.5
"""If a connection closes so soon after a request, the store most likely closed it before the request came."""

USER_AGENT = "bucketbell"

# Where the region is wrong, or a name is: boto3 follows to another region, and knows one case from the other. Or the
# store cannot be asked for checksums.
_REFUSES_CHECKSUMS = frozenset({400, 501})
_FOR_BOTO3 = _REFUSES_CHECKSUMS | {301, 302, 307}


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a bucket's URLs begin, and for which region and service they are signed."""

    base: str
    region: str
    service: str
    host: str

    @classmethod
    def of(cls, s3: S3Client, bucket: str, credentials: Credentials) -> Self:
        """Read off one URL that boto3 itself presigns. Raises StorageError where that is not SigV4."""
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - as in `storage.client`
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - as in `storage.client`

        # At DEBUG it logs each signature.
        logging.getLogger("botocore.auth").setLevel(logging.INFO)
        with storage_errors():
            sample = s3.generate_presigned_url("get_object", Params={"Bucket": bucket, "Key": "k"})
        url, _, query = sample.partition("?")
        signed = {name: values[0] for name, values in parse_qs(query).items()}
        if signed.get("X-Amz-Algorithm") != "AWS4-HMAC-SHA256" or not url.endswith("/k"):
            raise StorageError(BAD_REQUEST, "boto3 does not sign this bucket's URLs with SigV4")
        _, _, region, service, _ = signed["X-Amz-Credential"].rsplit("/", 4)
        # The signer would take the same host apart from each URL, twice.
        host = S3SigV4QueryAuth(credentials, service, region).headers_to_sign(AWSRequest("GET", url))["host"]
        return cls(url.removesuffix("k"), region, service, host)

    def url(self, key: str) -> str:
        """The URL of `key`, unsigned."""
        return self.base + quote(key, safe="/~")  # `safe` as in botocore's serialiser of S3 keys


def _found_credentials(session: Session) -> Credentials:
    with storage_errors():
        credentials = session.get_credentials()
    if credentials is None:
        raise StorageError(NO_CREDENTIALS, "boto3 found none")
    return credentials


class Signer:
    """Presigns GETs of one bucket by botocore's own signer, past the rest of boto3's machinery, to the same bytes.

    Thread-safe. Raises StorageError without credentials, or where boto3 would not sign SigV4.
    """

    def __init__(
        self,
        settings: Settings,
        bucket: str,
        *,
        expires_seconds: int,
        endpoint_url: str | None = None,
        session: Session | None = None,
        region_name: str | None = None,
    ) -> None:
        """Ask boto3 once; `endpoint_url` is the one that devices see. It and the region go before the settings' own."""
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - as in `storage.client`
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - as in `storage.client`

        session = session or open_session(settings)
        self._credentials = _found_credentials(session)
        s3 = client("s3", settings, endpoint_url=endpoint_url, session=session, region_name=region_name)
        self._place = _Place.of(s3, bucket, self._credentials)
        self._expires_seconds = expires_seconds
        self._auth, self._request = S3SigV4QueryAuth, AWSRequest

    def sign(self, key: str, parameters: Mapping[str, str]) -> tuple[str, datetime]:
        """A URL for GET of `key` with these query parameters, and when it ends; `parameters` keep their order."""
        with storage_errors():  # temporary credentials may have to be fetched again
            credentials = self._credentials.get_frozen_credentials()
        place = self._place
        request = self._request("GET", place.url(key), headers={"host": place.host}, params=dict(parameters))
        self._auth(credentials, place.service, place.region, expires=self._expires_seconds).add_auth(request)
        signed_at = datetime.fromisoformat(request.context["timestamp"])
        return str(request.url), self._end(signed_at, hidden=bool(credentials.token))

    def _end(self, signed_at: datetime, *, hidden: bool) -> datetime:
        end = signed_at + timedelta(seconds=self._expires_seconds)
        # botocore has no public name for the end of credentials that it refreshes.
        session_end: datetime | None = getattr(self._credentials, "_expiry_time", None)
        if session_end is not None:
            return min(end, session_end.astimezone(UTC))
        return min(end, signed_at + timedelta(seconds=SESSION_PROMISE_SECONDS)) if hidden else end


class ObjectReader:
    """HEADs and GETs of one bucket's objects: signed by botocore's own signer, sent over a client's own connections.

    What boto3 does around that takes most of their processor time; it is asked itself where it would do more, as for
    a bucket in another region. Thread-safe.
    """

    def __init__(self, s3: S3Client, bucket: str, session: Session) -> None:
        """Take endpoint, connections, deadlines and hooks from `s3`, and the credentials from `session`."""
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - as in `storage.client`
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - as in `storage.client`
        from botocore.exceptions import ConnectionClosedError  # noqa: PLC0415 - as in `storage.client`
        from botocore.response import StreamingBody  # noqa: PLC0415 - as in `storage.client`

        self._s3, self._bucket = s3, bucket
        self._credentials = _found_credentials(session)
        self._place = _Place.of(s3, bucket, self._credentials)
        self._auth, self._request, self._closed = S3SigV4Auth, AWSRequest, ConnectionClosedError
        self._body = StreamingBody
        self._gives_checksums = True  # until the store refuses to
        # A private name; it brings the pool, TLS, proxies and time-outs that a LIST has.
        self._http: Any = getattr(getattr(s3, "_endpoint", None), "http_session", None)

    def head(self, key: str, version_id: str = "", *, with_checksum: bool = False) -> Mapping[str, Any]:
        """What boto3's `head_object` tells of an object, as far as it is needed here. Raises StorageError.

        A checksum is told only if it is asked for: with KMS that takes the right to decrypt.
        """
        asking = with_checksum and self._gives_checksums
        # Another service's sessions, such as S3 Express's, are boto3's to open.
        ours = self._http is not None and self._place.service == "s3"
        answer = self._send(key, version_id, with_checksum=asking) if ours else None
        if answer is None or answer.status_code in _FOR_BOTO3:
            # What is refused with a 400 may be the question for checksums.
            refused = asking and answer is not None and answer.status_code in _REFUSES_CHECKSUMS
            found = self._head_by_boto3(key, version_id, with_checksum=asking and not refused)
            self._gives_checksums &= not refused
            return found
        headers = answer.headers
        if answer.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            # No body says more: boto3 reads the same from it.
            status = answer.status_code
            raise StorageError(str(status), responses.get(status, ""), status=status, server=headers.get("server"))
        try:
            return {
                "ETag": headers.get("etag", ""),
                "ContentLength": int(headers["content-length"]),
                "LastModified": read_timestamp(headers["last-modified"]),
                "VersionId": headers.get("x-amz-version-id"),
                "ChecksumSHA256": headers.get("x-amz-checksum-sha256"),
                "ChecksumType": headers.get("x-amz-checksum-type"),
                "Metadata": {"sha256": headers.get("x-amz-meta-sha256", "")},
            }
        except (KeyError, ValueError):
            raise StorageError(BAD_REQUEST, "what answers a HEAD there is not S3") from None

    def _head_by_boto3(self, key: str, version_id: str, *, with_checksum: bool) -> Mapping[str, Any]:
        asked: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        if with_checksum:
            asked["ChecksumMode"] = "ENABLED"
        with storage_errors():
            return self._s3.head_object(Bucket=self._bucket, Key=key, **asked)

    def read(self, key: str, version_id: str, amount_bytes: int) -> bytes:
        """The first `amount_bytes` of an object. Raises StorageError, whose code is that of the store."""
        if self._http is not None and self._place.service == "s3":
            with storage_errors():
                answer = self._retried(lambda: self._send_once("GetObject", self._signed("GET", key, version_id)))
                if answer.status_code == HTTPStatus.OK:
                    with closing(self._body(answer.raw, answer.headers.get("content-length"))) as body:
                        return bytes(body.read(amount_bytes))
                answer.raw.close()
        # boto3 asks once more, and reads what an error's body says.
        version: dict[str, Any] = {"VersionId": version_id} if version_id else {}
        with storage_errors(), closing(self._s3.get_object(Bucket=self._bucket, Key=key, **version)["Body"]) as body:
            return bytes(body.read(amount_bytes))

    def _send(self, key: str, version_id: str, *, with_checksum: bool) -> Any:  # noqa: ANN401 - botocore's AWSResponse
        more = {"x-amz-checksum-mode": "ENABLED"} if with_checksum else None
        with storage_errors():
            return self._retried(lambda: self._send_once("HeadObject", self._signed("HEAD", key, version_id, more)))

    def _retried(self, send: Callable[[], Any]) -> Any:  # noqa: ANN401 - as above
        begun = time.monotonic()
        try:
            return send()
        except self._closed:
            if time.monotonic() - begun > STALE_SECONDS:
                raise
            return send()  # a HEAD and a GET may be repeated: RFC 9110 §9.2.2

    def _send_once(self, operation: str, prepared: AWSPreparedRequest) -> Any:  # noqa: ANN401 - as above
        # Hooks that count or answer the client's requests see these too.
        answers = self._s3.meta.events.emit(f"before-send.s3.{operation}", request=prepared)
        return next((answer for _, answer in answers if answer is not None), None) or self._http.send(prepared)

    def _signed(
        self, method: str, key: str, version_id: str, more: Mapping[str, str] | None = None
    ) -> AWSPreparedRequest:
        credentials = self._credentials.get_frozen_credentials()
        parameters = {"versionId": version_id} if version_id else {}
        headers = {"User-Agent": USER_AGENT, **(more or {})}
        # Streamed: only as much of the answer's body is read as is asked for.
        request = self._request(
            method, self._place.url(key), headers=headers, params=parameters, stream_output=method == "GET"
        )
        self._auth(credentials, self._place.service, self._place.region).add_auth(request)
        return request.prepare()
