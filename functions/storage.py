"""Makes clients of S3 and SQS; the only importer of boto3 and botocore, and not before a client is asked for."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, overload
from urllib.parse import urlsplit

from functions.settings import Settings

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

CONNECT_TIMEOUT_SECONDS = 2.0
READ_TIMEOUT_SECONDS = 10.0
MAX_ATTEMPTS = 2

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
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts: int = MAX_ATTEMPTS,
) -> S3Client: ...
@overload
def client(
    service: Literal["sqs"],
    settings: Settings,
    *,
    endpoint_url: str | None = None,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts: int = MAX_ATTEMPTS,
) -> SQSClient: ...
def client(
    service: Literal["s3", "sqs"],
    settings: Settings,
    *,
    endpoint_url: str | None = None,
    read_timeout_seconds: float = READ_TIMEOUT_SECONDS,
    attempts: int = MAX_ATTEMPTS,
) -> Any:
    """A boto3 client with `settings`' endpoint, credentials and region; what they leave open, boto3 looks up.

    `endpoint_url` goes before the settings' own. A long poll needs a `read_timeout_seconds` above its wait.
    `attempts` counts the first one too. Raises StorageError for credentials or an endpoint that cannot be used.
    """
    # Half a second (FACTS, "Import cost") that a function which never asks S3 need not pay.
    import boto3  # noqa: PLC0415 - see above
    from botocore.config import Config  # noqa: PLC0415 - see above

    endpoint = endpoint_url or configured_endpoint(service, settings)
    config = Config(
        # Without this boto3 presigns SigV2 in places (FACTS, "Presigned URLs").
        signature_version="s3v4" if service == "s3" else None,
        # A store at an address of its own has no wildcard DNS name for its buckets.
        s3={"addressing_style": "path"} if endpoint else None,
        connect_timeout=CONNECT_TIMEOUT_SECONDS,
        read_timeout=read_timeout_seconds,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        # A proxy named in the environment cannot reach this machine's loopback. None: as the environment says.
        proxies={} if endpoint and is_loopback(endpoint) else None,
    )
    secret, token = settings.aws_secret_access_key, settings.aws_session_token
    with storage_errors():
        return boto3.session.Session().client(
            service,
            endpoint_url=endpoint,
            region_name=settings.aws_region,
            aws_access_key_id=settings.aws_access_key_id,
            aws_secret_access_key=secret.get_secret_value() if secret else None,
            aws_session_token=token.get_secret_value() if token else None,
            config=config,
        )


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
        raise StorageError(
            str(details.get("Code", "unknown")),
            str(details.get("Message", error)),
            status=answer.get("HTTPStatusCode"),
            server=answer.get("HTTPHeaders", {}).get("server"),
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
