"""Makes clients of S3 and SQS, signs URLs; the only importer of boto3 and botocore, and not before their first use."""

from __future__ import annotations

import ipaddress
import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from http.client import responses
from threading import Lock
from typing import TYPE_CHECKING, Any, Generic, Literal, Self, TypeVar, overload
from urllib.parse import parse_qs, quote, urlsplit

from functions.settings import Settings

if TYPE_CHECKING:
    from boto3.session import Session
    from botocore.credentials import Credentials, ReadOnlyCredentials
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

CONNECT_TIMEOUT_SECONDS = 2.0
READ_TIMEOUT_SECONDS = 10.0
MAX_ATTEMPTS = 2
POOLED_CONNECTIONS = 10  # botocore's own default

SESSION_PROMISE_SECONDS = 900
"""What a URL is promised to last when it is signed with a session token that hides its end, as Lambda's does: the
shortest session that STS gives (STS, AssumeRole, DurationSeconds). A URL dies with the session it was signed in."""

STALE_SECONDS = 0.5
"""A connection that is closed so soon after a request was, most likely, closed by the store before it came."""

MAX_SIGNED_IN_A_SECOND = 1024
USER_AGENT = "bucketbell"

# Where the region is wrong, or a name is: boto3 follows to another region, and knows one case from the other.
_FOR_BOTO3 = frozenset({301, 302, 307, 400})

# Codes of our own, beside those of the services, which hold no space.
UNREACHABLE = "not reachable"
NO_CREDENTIALS = "no credentials"
BAD_REQUEST = "bad request"


class StorageError(Exception):
    """A store refused, or could not be asked.

    `code` is the service's own (`NoSuchBucket`, …) or UNREACHABLE, NO_CREDENTIALS or BAD_REQUEST. `status` and
    `server` (the `Server` header) are those of the HTTP answer, None when none came.
    """

    def __init__(self, code: str, message: str, *, status: int | None = None, server: str | None = None) -> None:
        """Keep the parts as data; the message is for people."""
        self.code = code
        self.message = message
        self.status = status
        self.server = server
        super().__init__(f"{code}: {message}")


@overload
def client(
    service: Literal["s3"],
    settings: Settings,
    *,
    endpoint_url: str | None = None,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts: int = MAX_ATTEMPTS,
    connections: int = POOLED_CONNECTIONS,
    session: Session | None = None,
) -> S3Client: ...
@overload
def client(
    service: Literal["sqs"],
    settings: Settings,
    *,
    endpoint_url: str | None = None,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts: int = MAX_ATTEMPTS,
    connections: int = POOLED_CONNECTIONS,
    session: Session | None = None,
) -> SQSClient: ...
def client(
    service: Literal["s3", "sqs"],
    settings: Settings,
    *,
    endpoint_url: str | None = None,
    connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts: int = MAX_ATTEMPTS,
    connections: int = POOLED_CONNECTIONS,
    session: Session | None = None,
) -> Any:
    """A boto3 client with `settings`' endpoint, credentials and region; what they leave open, boto3 looks up.

    `endpoint_url` goes before the settings' own. A long poll needs a `read_timeout_seconds` above its wait.
    `attempts` counts the first one too; `connections` are kept open at most. Clients of one `open_session` share its
    credentials. Raises StorageError for credentials or an endpoint that cannot be used.
    """
    # Half a second (FACTS, "Import cost") that a function which never asks S3 need not pay.
    from botocore.config import Config  # noqa: PLC0415 - see above

    endpoint = endpoint_url or configured_endpoint(service, settings)
    config = Config(
        # Without this boto3 presigns SigV2 in places (FACTS, "Presigned URLs").
        signature_version="s3v4" if service == "s3" else None,
        # A store at an address of its own has no wildcard DNS name for its buckets.
        s3={"addressing_style": "path"} if endpoint else None,
        connect_timeout=connect_timeout_seconds,
        read_timeout=read_timeout_seconds,
        max_pool_connections=connections,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        # A proxy named in the environment cannot reach this machine's loopback. None: as the environment says.
        proxies={} if endpoint and is_loopback(endpoint) else None,
    )
    key_id, secret, token = _credentials(settings)
    with storage_errors():
        return (open_session(settings) if session is None else session).client(
            service,
            endpoint_url=endpoint,
            region_name=settings.aws_region,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=config,
        )


def open_session(settings: Settings) -> Session:
    """A boto3 session with `settings`' credentials, or with those that boto3 finds."""
    import boto3  # noqa: PLC0415 - as in `client`
    import botocore.session  # noqa: PLC0415 - as in `client`

    core = botocore.session.get_session()
    # dateutil takes most of the time of reading a LIST.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_timestamp)
    key_id, secret, token = _credentials(settings)
    if key_id and secret:
        core.set_credentials(key_id, secret, token)
    return boto3.session.Session(botocore_session=core)


def _credentials(settings: Settings) -> tuple[str | None, str | None, str | None]:
    secret, token = settings.aws_secret_access_key, settings.aws_session_token
    return (
        settings.aws_access_key_id,
        secret.get_secret_value() if secret else None,
        token.get_secret_value() if token else None,
    )


def _timestamp(value: str) -> datetime:
    """Read a timestamp of an answer, most quickly the forms that S3's XML and headers have."""
    from botocore.utils import parse_timestamp  # noqa: PLC0415 - as in `client`

    try:
        if str(value).endswith("Z"):  # whatever its type stubs say, botocore hands on numbers too
            return datetime.fromisoformat(value)
        if str(value).endswith(" GMT"):
            return parsedate_to_datetime(value)
    except ValueError:
        pass
    return parse_timestamp(value)


Signed = TypeVar("Signed")
Stamp = tuple[str, "ReadOnlyCredentials"]


class _ThisSecond(Generic[Signed]):
    """What was signed in this second, with these credentials: a signature counts seconds, and would be the same."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._stamp: Stamp | None = None
        self._signed: dict[object, Signed] = {}

    def recall(self, what: object, credentials: ReadOnlyCredentials) -> Signed | None:
        """What `keep` was given for this, unless its second is over."""
        stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), credentials
        with self._lock:
            return self._signed.get(what) if stamp == self._stamp else None

    def keep(self, what: object, stamp: Stamp, signed: Signed) -> Signed:
        """Remember `signed` by the second that is in it, whichever that is by now."""
        with self._lock:
            if stamp != self._stamp or len(self._signed) >= MAX_SIGNED_IN_A_SECOND:
                self._stamp, self._signed = stamp, {}
            self._signed[what] = signed
        return signed


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
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - as in `client`
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - as in `client`

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
    ) -> None:
        """Ask boto3 once; `endpoint_url` is the one that devices see, and goes before the settings' own."""
        from botocore.auth import S3SigV4QueryAuth  # noqa: PLC0415 - as in `client`
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - as in `client`

        session = session or open_session(settings)
        self._credentials = _found_credentials(session)
        s3 = client("s3", settings, endpoint_url=endpoint_url, session=session)
        self._place = _Place.of(s3, bucket, self._credentials)
        self._expires_seconds = expires_seconds
        self._auth, self._request = S3SigV4QueryAuth, AWSRequest
        self._this_second: _ThisSecond[tuple[str, datetime]] = _ThisSecond()

    def sign(self, key: str, parameters: Mapping[str, str]) -> tuple[str, datetime]:
        """A URL for GET of `key` with these query parameters, and when it ends; `parameters` keep their order."""
        with storage_errors():  # temporary credentials may have to be fetched anew
            credentials = self._credentials.get_frozen_credentials()
        what = key, *parameters.items()
        if (signed := self._this_second.recall(what, credentials)) is not None:
            return signed
        place = self._place
        request = self._request("GET", place.url(key), headers={"host": place.host}, params=dict(parameters))
        self._auth(credentials, place.service, place.region, expires=self._expires_seconds).add_auth(request)
        timestamp = request.context["timestamp"]
        end = self._end(datetime.fromisoformat(timestamp), hidden=bool(credentials.token))
        return self._this_second.keep(what, (timestamp, credentials), (str(request.url), end))

    def _end(self, signed_at: datetime, *, hidden: bool) -> datetime:
        end = signed_at + timedelta(seconds=self._expires_seconds)
        # botocore tells by no public name when credentials that it refreshes will end.
        session_end: datetime | None = getattr(self._credentials, "_expiry_time", None)
        if session_end is not None:
            return min(end, session_end.astimezone(UTC))
        return min(end, signed_at + timedelta(seconds=SESSION_PROMISE_SECONDS)) if hidden else end


class Header:
    """HEADs of one bucket's objects: signed by botocore's own signer and sent over a client's own connections.

    What boto3 does around that takes most of a HEAD's processor time; it is asked itself where it would do more, as
    for a bucket in another region. Thread-safe.
    """

    def __init__(self, s3: S3Client, bucket: str, session: Session) -> None:
        """Take endpoint, connections, deadlines and hooks from `s3`, and the credentials from `session`."""
        from botocore.auth import S3SigV4Auth  # noqa: PLC0415 - as in `client`
        from botocore.awsrequest import AWSRequest  # noqa: PLC0415 - as in `client`
        from botocore.exceptions import ConnectionClosedError  # noqa: PLC0415 - as in `client`

        self._s3, self._bucket = s3, bucket
        self._credentials = _found_credentials(session)
        self._place = _Place.of(s3, bucket, self._credentials)
        self._auth, self._request, self._closed = S3SigV4Auth, AWSRequest, ConnectionClosedError
        # By no public name; with it come the same pool, TLS, proxies and time-outs that a LIST has.
        self._http: Any = getattr(getattr(s3, "_endpoint", None), "http_session", None)

    def head(self, key: str, version_id: str = "") -> Mapping[str, Any]:
        """What boto3's `head_object` tells of an object, as far as it is needed here. Raises StorageError."""
        # Another service's sessions, such as S3 Express's, are boto3's to open.
        answer = None if self._http is None or self._place.service != "s3" else self._send(key, version_id)
        if answer is None or answer.status_code in _FOR_BOTO3:
            version: dict[str, Any] = {"VersionId": version_id} if version_id else {}
            with storage_errors():
                return self._s3.head_object(Bucket=self._bucket, Key=key, **version)
        headers = answer.headers
        if answer.status_code >= HTTPStatus.MULTIPLE_CHOICES:
            # No body says more: boto3 reads the same from it.
            status = answer.status_code
            raise StorageError(str(status), responses.get(status, ""), status=status, server=headers.get("server"))
        return {
            "ETag": headers["etag"],
            "ContentLength": int(headers["content-length"]),
            "LastModified": _timestamp(headers["last-modified"]),
            "VersionId": headers.get("x-amz-version-id"),
        }

    def _send(self, key: str, version_id: str) -> Any:  # noqa: ANN401 - botocore's AWSResponse
        begun = time.monotonic()
        with storage_errors():
            try:
                return self._send_once(key, version_id)
            except self._closed:
                if time.monotonic() - begun > STALE_SECONDS:
                    raise
                return self._send_once(key, version_id)  # a HEAD may be repeated: RFC 9110 §9.2.2

    def _send_once(self, key: str, version_id: str) -> Any:  # noqa: ANN401 - as above
        parameters = {"versionId": version_id} if version_id else {}
        request = self._request("HEAD", self._place.url(key), headers={"User-Agent": USER_AGENT}, params=parameters)
        credentials = self._credentials.get_frozen_credentials()
        self._auth(credentials, self._place.service, self._place.region).add_auth(request)
        prepared = request.prepare()
        # Whoever counts, or answers, the client's requests does so with these too.
        answers = self._s3.meta.events.emit("before-send.s3.HeadObject", request=prepared)
        return next((answer for _, answer in answers if answer is not None), None) or self._http.send(prepared)


def configured_endpoint(service: Literal["s3", "sqs"], settings: Settings) -> str | None:
    """The endpoint that the settings name for `service`, None for AWS's own (or what boto3's files say)."""
    own = settings.aws_endpoint_url_s3 if service == "s3" else settings.aws_endpoint_url_sqs
    return own or settings.aws_endpoint_url


def is_loopback(url: str) -> bool:
    """Whether the URL's host is this machine by name or address."""
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")  # RFC 6761 §6.3


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns what botocore raises inside the `with` into StorageError."""
    from botocore import exceptions  # noqa: PLC0415 - as in `client`

    try:
        yield
    except exceptions.ClientError as error:
        details = error.response.get("Error", {})
        answer = error.response.get("ResponseMetadata", {})
        headers = answer.get("HTTPHeaders", {})
        raise StorageError(
            # An answer to HEAD has no body: MinIO says in a header what it would have said there.
            str(headers.get("x-minio-error-code") or details.get("Code", "unknown")),
            str(details.get("Message", error)),
            status=answer.get("HTTPStatusCode"),
            server=headers.get("server"),
        ) from None
    except (
        exceptions.NoCredentialsError,
        exceptions.PartialCredentialsError,
        exceptions.CredentialRetrievalError,
        exceptions.TokenRetrievalError,
        exceptions.ProfileNotFound,
    ) as error:
        raise StorageError(NO_CREDENTIALS, str(error)) from None
    except (exceptions.ConnectionError, exceptions.HTTPClientError) as error:
        raise StorageError(UNREACHABLE, str(error)) from None
    except (exceptions.BotoCoreError, ValueError) as error:
        # ValueError: botocore's word for an endpoint that is no URL.
        raise StorageError(BAD_REQUEST, str(error)) from None
