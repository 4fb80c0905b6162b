"""Makes boto3's clients, and turns what they raise into StorageError; boto3 is imported at the first use."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import urlsplit

from functions.settings import Settings

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

CONNECT_TIMEOUT_SECONDS = 2.0
READ_TIMEOUT_SECONDS = 10.0
MAX_ATTEMPTS = 2
POOLED_CONNECTIONS = 10  # botocore's own default

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
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=read_timestamp)
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


def read_timestamp(value: str) -> datetime:
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
    except (exceptions.ClientError, exceptions.BotoCoreError, ValueError) as error:
        failure = _translated(error)
        try:
            raise failure from None
        finally:
            # `from None` merely hides it, and its frames hold the request: signed, with a session token.
            failure.__context__ = None


def _translated(error: Exception) -> StorageError:
    from botocore import exceptions  # noqa: PLC0415 - as in `client`

    if isinstance(error, exceptions.ClientError):
        details = error.response.get("Error", {})
        answer = error.response.get("ResponseMetadata", {})
        headers = answer.get("HTTPHeaders", {})
        return StorageError(
            # An answer to HEAD has no body: MinIO says in a header what it would have said there.
            str(headers.get("x-minio-error-code") or details.get("Code", "unknown")),
            str(details.get("Message", error)),
            status=answer.get("HTTPStatusCode"),
            server=headers.get("server"),
        )
    if isinstance(
        error,
        (
            exceptions.NoCredentialsError,
            exceptions.PartialCredentialsError,
            exceptions.CredentialRetrievalError,
            exceptions.TokenRetrievalError,
            exceptions.ProfileNotFound,
        ),
    ):
        return StorageError(NO_CREDENTIALS, str(error))
    if isinstance(error, (exceptions.ConnectionError, exceptions.HTTPClientError)):
        return StorageError(UNREACHABLE, str(error))
    # ValueError: botocore's word for an endpoint that is no URL.
    return StorageError(BAD_REQUEST, str(error))
