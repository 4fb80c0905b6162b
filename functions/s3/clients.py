"""Makes boto3's clients, and turns what they raise into StorageError; boto3 is imported at the first use."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, cast, overload
from urllib.parse import urlsplit

from functions.s3.regions import QUESTION, WRONG_REGION, Region, mismatch, named_region, remedy
from functions.settings import Settings
from functions.settings.fields import is_region
from functions.settings.secret import DEFAULT_REGION

if TYPE_CHECKING:
    from boto3.session import Session
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

    class Options(TypedDict, total=False):
        """How one client differs from the others."""

        endpoint_url: str | None
        connect_timeout_seconds: float
        read_timeout_seconds: float
        attempts: int
        connections: int
        session: Session | None
        region_name: str | None


CONNECT_TIMEOUT_SECONDS = 2.0
READ_TIMEOUT_SECONDS = 10.0
MAX_ATTEMPTS = 2
POOLED_CONNECTIONS = 10  # botocore's own default

# Codes of our own, beside those of the services, which hold no space.
UNREACHABLE = "not reachable"
NO_CREDENTIALS = "no credentials"
BAD_REQUEST = "bad request"

OUR_SERVICES = frozenset({"s3", "sqs", "sns", "sts", "portal.sso", "oidc"})
"""Ours, and those that give credentials, by their names in botocore's list of endpoints."""

_QUESTION = f" ({QUESTION})"
_WRONG_SCOPE = "scoped to a valid region"  # as SQS says it, with the code of a wrong secret key
_ELSEWHERE = frozenset({301, 302, 307, 400})
# S3 tells queues of the bucket's own region only (S3, "Configuring event notifications").
_QUEUE_REGION = re.compile(r"https://sqs\.([a-z0-9-]+)\.amazonaws\.com(?:\.cn)?/")


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

    @property
    def is_of_region(self) -> bool:
        """Whether the store's region is another than ours; the message says so, and what to do."""
        return self.code != UNREACHABLE and "S3_REGION" in self.message

    @property
    def answered(self) -> bool:
        """Whether the store has answered, even by a refusal: no time-out, no broken connection, no 5xx."""
        if self.status is None:
            return self.code != UNREACHABLE
        return self.status < HTTPStatus.INTERNAL_SERVER_ERROR or self.status == HTTPStatus.NOT_IMPLEMENTED


@overload
def client(service: Literal["s3"], settings: Settings, **options: Unpack[Options]) -> S3Client: ...
@overload
def client(service: Literal["sqs"], settings: Settings, **options: Unpack[Options]) -> SQSClient: ...
@overload
def client(service: Literal["sns"], settings: Settings, **options: Unpack[Options]) -> Any: ...  # noqa: ANN401 - Ceph's
def client(service: Literal["s3", "sqs", "sns"], settings: Settings, **options: Unpack[Options]) -> Any:
    """A boto3 client with `settings`' endpoint, credentials and region; what they leave open, boto3 looks up.

    `endpoint_url` and `region_name` go before the settings' own. A long poll needs a `read_timeout_seconds` above its
    wait. `attempts` counts the first one too; `connections` are kept open at most. Clients of one `open_session` share
    its credentials. Raises StorageError for credentials or an endpoint that cannot be used.
    """
    # Half a second that a function which never asks S3 need not pay.
    from botocore.config import Config  # noqa: PLC0415 - see above

    session = options.get("session") or open_session(settings)
    endpoint = (
        options.get("endpoint_url") or configured_endpoint(service, settings) or _endpoint_of_files(service, session)
    )
    config = Config(
        # Without this boto3 1.44 presigns by Signature Version 2 in places, such as us-east-1 and any endpoint_url.
        signature_version="s3v4" if service == "s3" else None,
        s3=_addressing(settings, own_endpoint=bool(endpoint)) if service == "s3" else None,
        connect_timeout=options.get("connect_timeout_seconds", CONNECT_TIMEOUT_SECONDS),
        read_timeout=options.get("read_timeout_seconds", READ_TIMEOUT_SECONDS),
        max_pool_connections=options.get("connections", POOLED_CONNECTIONS),
        retries={"total_max_attempts": options.get("attempts", MAX_ATTEMPTS), "mode": "standard"},
        # A proxy named in the environment cannot reach this machine's loopback. None: as the environment says.
        proxies={} if endpoint and is_loopback(endpoint) else None,
    )
    key_id, secret, token = _credentials(settings)
    ours = region(settings, session)
    ours = Region(options.get("region_name") or ours.name, ours.origin)
    with storage_errors():
        made = session.client(
            cast("Literal['s3']", service),  # what it is for the caller, the overloads say
            endpoint_url=endpoint,
            region_name=ours.name,
            aws_access_key_id=key_id,
            aws_secret_access_key=secret,
            aws_session_token=token,
            config=config,
        )
    if service == "s3":
        made.meta.events.register_first("needs-retry.s3", partial(_explain_region, ours))
    return made


def _explain_region(ours: Region, response: tuple[Any, Any] | None = None, **_: object) -> None:
    """Write into a refusal what is wrong with our region, and have boto3 follow a store that says it in words only."""
    theirs = _other_region(ours.name, response)
    if response is None or not theirs:
        return
    error = response[1].setdefault("Error", {})
    code = str(error.get("Code"))
    if code in WRONG_REGION or code.isdigit():  # an answer to HEAD; some stores name their region whatever is wrong
        error["Region"] = theirs
        error["Message"] = f"{mismatch(ours, theirs)}: {remedy(theirs)}"


def _other_region(ours: str, response: tuple[Any, Any] | None) -> str:
    """The region that this answer names, where it refuses ours; else ""."""
    if response is None or response[0].status_code not in _ELSEWHERE:
        return ""
    headers = response[1].get("ResponseMetadata", {}).get("HTTPHeaders", {})
    error = response[1].get("Error", {})
    # An answer to HEAD has no body, and some stores have no such header.
    theirs = headers.get("x-amz-bucket-region") or error.get("Region") or named_region(str(error.get("Message", "")))
    return theirs if theirs != ours and is_region(theirs) else ""


def _addressing(settings: Settings, *, own_endpoint: bool) -> Any:  # noqa: ANN401 - botocore has no public type for it
    """What makes boto3 name the endpoint of the region in its URLs; each client writes more into its own copy."""
    if own_endpoint:  # most have no wildcard DNS name for their buckets
        return {"addressing_style": settings.s3_addressing_style or "path"}
    # Otherwise boto3 presigns for AWS's global endpoint, which knows no region that was opened since 2019. A bucket
    # whose name does not fit before a host is still put behind it.
    return {"addressing_style": settings.s3_addressing_style or "virtual", "us_east_1_regional_endpoint": "regional"}


def region(settings: Settings, session: Session | None = None) -> Region:
    """The store's region as far as it is known without asking the store. Raises StorageError."""
    queue = _QUEUE_REGION.match(settings.sqs_queue_url or "")
    named = {
        "S3_REGION": settings.s3_region,
        "AWS_REGION": settings.aws_region,
        "AWS_DEFAULT_REGION": settings.aws_default_region,
        "SQS_QUEUE_URL": queue and queue[1],
    }
    for variable, name in named.items():
        if name:
            return Region(name, variable)
    with storage_errors():
        name = (open_session(settings) if session is None else session).region_name
    return Region(name, "profile") if name else Region(DEFAULT_REGION, "default")


def on_other_region(s3: S3Client, hear: Callable[[str], None]) -> None:
    """Call `hear` with the region that the store names whenever it refuses the one that `s3` signs for.

    boto3 follows it for that call, and presigns as before. `hear` is called on the thread of the call.
    """
    ours = s3.meta.region_name

    def listen(response: tuple[Any, Any] | None = None, **_: object) -> None:
        if theirs := _other_region(ours, response):
            hear(theirs)

    s3.meta.events.register_first("needs-retry.s3", listen)


def open_session(settings: Settings) -> Session:
    """A boto3 session with `settings`' credentials, or with those that boto3 finds."""
    import boto3  # noqa: PLC0415 - as in `client`
    import botocore.session  # noqa: PLC0415 - as in `client`

    core = botocore.session.get_session()
    # dateutil takes most of the time of reading a LIST.
    core.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=read_timestamp)
    # Otherwise the endpoints of services that nobody uses keep seven megabytes of memory.
    regions = core.get_component("data_loader").load_data("endpoints")
    for partition in regions["partitions"]:
        partition["services"] = {
            name: partition["services"][name] for name in OUR_SERVICES & partition["services"].keys()
        }
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
    """Read a timestamp of an answer, fastest in the forms that S3's XML and headers have."""
    from botocore.utils import parse_timestamp  # noqa: PLC0415 - as in `client`

    try:
        if str(value).endswith("Z"):  # botocore passes numbers too, although its type stubs do not say so
            return datetime.fromisoformat(value)
        if str(value).endswith(" GMT"):
            return parsedate_to_datetime(value)
    except ValueError:
        pass
    return parse_timestamp(value)


def configured_endpoint(service: Literal["s3", "sqs", "sns"], settings: Settings) -> str | None:
    """The endpoint that the settings name for `service`, None for AWS's own (or what boto3's files say)."""
    own = {"s3": settings.aws_endpoint_url_s3, "sqs": settings.aws_endpoint_url_sqs}.get(service)
    return own or settings.aws_endpoint_url


def _endpoint_of_files(service: str, session: Session) -> str | None:
    """The endpoint that boto3's own files name for `service`, by its own reader of them."""
    from botocore.configprovider import ConfiguredEndpointProvider  # noqa: PLC0415 - as in `client`

    core: Any = getattr(session, "_session", None)  # a private name; another session would take 10 ms of a cold start
    with storage_errors():
        if core is None or core.get_config_variable("ignore_configured_endpoint_urls"):
            return None
        return ConfiguredEndpointProvider(core.full_config, core.get_scoped_config(), service).provide() or None


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
            # `from None` only hides it, and its frames hold the request: signed, with a session token.
            failure.__context__ = None


def _translated(error: Exception) -> StorageError:
    from botocore import exceptions  # noqa: PLC0415 - as in `client`

    if isinstance(error, exceptions.ClientError):
        details = error.response.get("Error", {})
        answer = error.response.get("ResponseMetadata", {})
        headers = answer.get("HTTPHeaders", {})
        # An answer to HEAD has no body: MinIO says in a header what it would have said there.
        code = str(headers.get("x-minio-error-code") or details.get("Code", "unknown"))
        message = str(details.get("Message", error))
        asks = (code in WRONG_REGION or _WRONG_SCOPE in message) and "S3_REGION" not in message
        return StorageError(
            code,
            message + (_QUESTION if asks else ""),
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
        # A region that AWS does not have, such as a zone's name, leads to a host that does not exist.
        is_aws = isinstance(error, exceptions.EndpointConnectionError) and ".amazonaws.com" in str(error)
        return StorageError(UNREACHABLE, str(error) + (_QUESTION if is_aws else ""))
    # ValueError: botocore's word for an endpoint that is no URL.
    return StorageError(BAD_REQUEST, str(error))
