"""Entry: a device's HTTP request in; a presigned URL, or the manifest of what is current, out.

An asset is `/assets/<path>`, or `/assets?filename=<path, percent-encoded>` where the path is none for AWS (see `web`).
So is a thumbnail `/thumbnails/<camera>/<event>.jpg`, with `token`, as in the link that its event was published with.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import format_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response

from functions import gc_pause as collector
from functions.devices.manifest import LISTED, Asked, Manifest, parse_limit
from functions.events.routes import MAX_FILENAME_BYTES, is_asset_path, is_config_name, is_picture_path
from functions.lifecycle import Renewal, begin
from functions.s3.clients import UNREACHABLE, StorageError
from functions.s3.objects import MAX_PAGE_OBJECTS, ObjectInfo, Objects
from functions.settings import SettingsError
from functions.telemetry import logger
from functions.web import messages as web
from functions.web.messages import (
    Problem,
    Reply,
    Request,
    absent,
    as_json,
    iso,
    malformed,
    tagged,
    unauthorised,
    unavailable,
)
from functions.web.tokens import DeviceToken, Keyring, KeyringError, TokenError, config_name, normalise_mac

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
    from aws_lambda_powertools.utilities.data_classes.common import BaseProxyEvent
    from aws_lambda_powertools.utilities.typing import LambdaContext

    from functions.settings import Settings

BUSY_RETRY_SECONDS = 5  # the store is slow or down
BROKEN_RETRY_SECONDS = 60  # somebody has to set something right
RENEW_SECONDS = 120.0  # between two looks into the secret: a rotated key is in force in 5 minutes, even if one fails
CONFIGS, ASSETS, THUMBNAILS = "/configs/", "/assets", web.THUMBNAILS
FILE_METHODS = ("GET", "HEAD")

# `no-store`: a link from a cache is a dead link.
_NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks: a device, somebody with a token for the one object `object_key`, or else with an admin token."""

    bearer: str
    device: DeviceToken | None = None
    object_key: str | None = None

    def owns(self, filename: str) -> bool:
        """Whether this config is the caller's to read: a MAC is the same device in any case."""
        if self.device is None:
            return self.object_key is None
        return filename.casefold() == config_name(self.device.mac).casefold()

    def sees(self, object_key: str) -> bool:
        """Whether this picture is the caller's to see: no device sees any."""
        return self.device is None and self.object_key in {None, object_key}


@dataclass(frozen=True, slots=True)
class Downloads:
    """Who may ask, and for what. Thread-safe. Every method raises Problem, or StorageError when the store does not."""

    keyring: Keyring
    admin_tokens: tuple[str, ...] = field(repr=False)
    objects: Objects | None
    configs_prefix: str = "configs/"
    assets_prefix: str = "assets/"
    events_prefix: str | None = None

    @classmethod
    def of(cls, settings: Settings) -> Downloads:
        """Take everything from validated settings. Raises KeyringError."""
        keys = [key.get_secret_value() for key in settings.device_token_keys]
        return cls(
            Keyring.parse(keys, revoked=settings.device_tokens_revoked),
            tuple(token.get_secret_value() for token in settings.admin_tokens),
            None
            if settings.bucket is None
            else Objects(
                settings,
                settings.bucket,
                url_ttl_seconds=settings.url_ttl_seconds,
                public_endpoint_url=settings.s3_public_endpoint_url,
            ),
            settings.configs_prefix,
            settings.assets_prefix,
            settings.events_prefix,
        )

    def admit(self, request: Request) -> tuple[Caller, Objects]:
        """Who asks, and the store, in exchange for a good token; a link to a thumbnail brings its own."""
        if self.objects is None or not (self.keyring.keys or self.admin_tokens):
            missing = "BUCKET" if self.objects is None else "DEVICE_TOKEN_KEYS or ADMIN_TOKENS"
            detail = f"Downloads are not configured: set {missing}."
            raise unavailable("not_configured", detail, retry_after_seconds=BROKEN_RETRY_SECONDS)
        in_link, bearer = request.token_in_link, request.token
        if not bearer:
            raise unauthorised("no_token")
        offered = bearer.encode(errors="replace")
        # All are compared, so that the time does not tell which one is near.
        if not in_link and sum(hmac.compare_digest(offered, token.encode()) for token in self.admin_tokens):
            return Caller(bearer), self.objects
        try:
            if in_link:
                return Caller(bearer, object_key=self.keyring.verify_for_object(bearer)), self.objects
            return Caller(bearer, self.keyring.verify(bearer)), self.objects
        except TokenError as error:
            raise unauthorised(error.reason, kid=error.kid, jti=error.jti) from None

    def warm_up(self, *, ask_region: bool = False) -> None:
        """Get ready for the first request, asking nobody but maybe the store; what is wrong will show then."""
        if self.objects is not None:
            with suppress(StorageError):
                self.objects.warm_up(ask_region=ask_region)

    def config(self, request: Request, caller: Caller, objects: Objects) -> Reply:
        """Answer `/configs/<mac>.json`."""
        name = request.path.removeprefix(CONFIGS)
        if not is_config_name(name):
            raise malformed("bad_config_name", "A config is named <mac>.json, e.g. aa-bb-cc-dd-ee-ff.json.")
        return _file(request, objects, self.configs_prefix, name, allowed=caller.owns(name))

    def asset(self, request: Request, caller: Caller, objects: Objects) -> Reply:
        """Answer `/assets/<path>` and `/assets?filename=<path>`."""
        del caller  # every token reaches every asset
        name = request.path.removeprefix(ASSETS + "/")
        if request.path == ASSETS:
            name = request.parameters("filename").get("filename", "")
        if not is_asset_path(name) or len((self.assets_prefix + name).encode()) > MAX_FILENAME_BYTES:
            raise malformed("bad_asset_name", "An asset's name is a relative path of at most 1,024 bytes.")
        return _file(request, objects, self.assets_prefix, name, allowed=True)

    def thumbnail(self, request: Request, caller: Caller, objects: Objects) -> Reply:
        """Answer `/thumbnails/<camera>/<event>.jpg` and `/thumbnails?filename=<camera>/<event>.jpg`."""
        name = request.path.removeprefix(THUMBNAILS + "/")
        if request.path == THUMBNAILS:
            name = request.parameters("filename").get("filename", "")
        if not is_picture_path(name):
            raise malformed("bad_thumbnail_name", "A thumbnail is named <camera>/<event>.jpg.")
        if (prefix := self.events_prefix) is None:
            raise absent()
        return _file(request, objects, prefix, name, allowed=caller.sees(prefix + name), is_picture=True)

    def manifest(self, request: Request, caller: Caller, objects: Objects) -> Reply:
        """Answer `/manifest`. An admin may name a device, or gets what every device gets together."""
        asked = request.parameters("limit", "next", "mac")
        limit = parse_limit(asked.get("limit", str(MAX_PAGE_OBJECTS)))
        mac = _whose(caller, asked.get("mac"))
        page = Manifest(self.configs_prefix, self.assets_prefix).page(
            objects, Asked(caller.bearer, mac, limit, asked.get("next"))
        )
        body = as_json(page)
        etag = hashlib.sha256(body.encode()).hexdigest()[:32]
        headers = {**_NO_STORE, **tagged(etag), LISTED: str(len(page["objects"]))}
        return Reply(HTTPStatus.NOT_MODIFIED, headers) if request.has(etag) else Reply(HTTPStatus.OK, headers, body)


def _file(
    request: Request, objects: Objects, prefix: str, filename: str, *, allowed: bool, is_picture: bool = False
) -> Reply:
    version_id = "" if is_picture else request.parameters("version_id").get("version_id", "")
    if len(version_id) > MAX_FILENAME_BYTES or not version_id.isascii() or not version_id.isprintable():
        raise malformed("bad_version", "That is no version id.")
    # Asked for what is forbidden, too: the time must not tell it from what is absent.
    info = objects.head(prefix + filename, version_id)
    if info is None or not allowed:
        raise absent()
    headers = {**_NO_STORE, **tagged(info.etag)}
    if request.has(info.etag):
        return Reply(HTTPStatus.NOT_MODIFIED, headers)
    if request.method == "HEAD":
        return Reply(HTTPStatus.OK, headers | _described(info))
    if is_picture:
        presigned = objects.presign_picture(info.object_key)
    else:
        presigned = objects.presign(info.object_key, version_id=version_id, filename=filename)
    if not request.wants_json:
        return Reply(HTTPStatus.TEMPORARY_REDIRECT, headers | {"Location": presigned.url})
    answer = {
        "url": presigned.url,
        "expires_at": iso(presigned.expires_at),
        "filename": filename,
        "size": info.size,
        "etag": info.etag or None,
        "last_modified": iso(info.last_modified),
        "version_id": info.version_id or None,
    }
    return Reply(HTTPStatus.OK, headers, as_json(answer))


def _described(info: ObjectInfo) -> dict[str, str]:
    """Tell of the file in headers.

    `Content-Length` is the file's (RFC 9110 §8.6), for whoever passes it on; `X-Object-Size` says the same behind a
    gateway that counts the empty body instead.
    """
    return {
        "Last-Modified": format_datetime(info.last_modified.astimezone(UTC), usegmt=True),
        "Content-Length": str(info.size),
        "X-Object-Size": str(info.size),
    }


def _whose(caller: Caller, asked: str | None) -> str | None:
    """Tell whose manifest it is: None for an admin who names no device."""
    try:
        mac = None if asked is None else normalise_mac(asked)
    except ValueError:
        raise malformed("bad_mac", "`mac` is six pairs of hex digits, e.g. aa-bb-cc-dd-ee-ff.") from None
    if caller.device is None:
        return mac
    if mac is not None and not caller.owns(config_name(mac)):
        raise absent()
    return caller.device.mac


class _Resolver(APIGatewayHttpResolver):
    """The routes, for one thread: Powertools keeps the event at hand in its resolver, and in a class attribute."""

    def __init__(self, downloads: Downloads) -> None:
        super().__init__(debug=False)  # whatever POWERTOOLS_DEV says: it prints events, tokens and all
        self.downloads = downloads
        # Not `<path>`: Powertools' own pattern knows no slash, quote or `#`.
        self.doors = (
            (re.compile("/configs/.*", re.DOTALL), FILE_METHODS, downloads.config),
            (re.compile("/assets(?:/.*)?", re.DOTALL), FILE_METHODS, downloads.asset),
            (re.compile("/thumbnails(?:/.*)?", re.DOTALL), FILE_METHODS, downloads.thumbnail),
            (re.compile("/manifest"), ("GET",), downloads.manifest),
        )
        for path, methods, answerer in self.doors:
            self.route(f"(?s:{path.pattern})", list(methods))(self._door(answerer))
        self.not_found(self._refuse)
        self.exception_handler(Exception)(self._fail)

    def _to_proxy_event(self, event: dict[str, Any]) -> BaseProxyEvent:
        # An instance's attribute goes before the class's, which other threads overwrite meanwhile.
        self.current_event = cast("APIGatewayProxyEventV2", super()._to_proxy_event(event))
        return self.current_event

    def _door(self, answerer: Callable[[Request, Caller, Objects], Reply]) -> Callable[[], Response[str]]:
        def answer() -> Response[str]:
            request = _request(self.current_event)
            caller, objects = self.downloads.admit(request)
            try:
                return _response(answerer(request, caller, objects))
            except Problem as problem:
                if caller.device is not None:
                    problem.kid, problem.jti = caller.device.kid, caller.device.jti
                raise

        return answer

    def _refuse(self, error: Exception) -> Response[str]:
        """Answer what has no route."""
        del error
        for path, methods, _ in self.doors:
            if path.fullmatch(self.current_event.path):
                allow = {"Allow": ", ".join(methods)}
                status, detail = HTTPStatus.METHOD_NOT_ALLOWED, "This is only to be read."
                raise Problem(status, "method_not_allowed", detail, headers=allow)
        raise Problem(HTTPStatus.NOT_FOUND, "no_route", "Ask for /configs/<mac>.json, /assets/<path> or /manifest.")

    def _fail(self, error: Exception) -> Response[str]:
        """Answer what was raised: the one place where that becomes HTTP."""
        problem = _problem(error)
        details = {"status": problem.status.value, "reason": problem.reason, "kid": problem.kid, "jti": problem.jti}
        logger.info("download refused", extra=details)
        return _response(problem.reply)


def _request(event: APIGatewayProxyEventV2) -> Request:
    headers = event.headers  # which Powertools makes anew each time

    def header(name: str) -> str:
        return headers.get(name) or ""

    return Request(
        event.http_method.upper(),
        event.path,
        event.raw_query_string,
        header("authorization"),
        header("accept"),
        header("if-none-match"),
    )


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, StorageError):
        busy = error.code == UNREACHABLE or (error.status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR
        details = {"code": error.code, "status": error.status}
        if busy:
            logger.warning("store is slow or down", extra=details)
        else:
            logger.error("store cannot be used", extra={**details, "detail": error.message})
        retry_after_seconds = BUSY_RETRY_SECONDS if busy else BROKEN_RETRY_SECONDS
        detail = "The object store does not answer as it should."
        return unavailable("store_busy" if busy else "store_broken", detail, retry_after_seconds=retry_after_seconds)
    if isinstance(error, (SettingsError, KeyringError)):
        logger.error("settings cannot be used", extra={"problem": str(error)})  # which holds no value
        detail = "Downloads are not configured: the log says what to set."
        return unavailable("bad_settings", detail, retry_after_seconds=BROKEN_RETRY_SECONDS)
    logger.error("request failed", exc_info=error)
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "Something went wrong here.")


def _response(reply: Reply) -> Response[str]:
    content_type = reply.content_type if reply.body else None
    return Response(reply.status.value, content_type, reply.body, dict(reply.headers))


_threads = threading.local()


def respond(downloads: Downloads, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer an event of an API Gateway HTTP API (payload format 2.0). Thread-safe, and never raises."""
    resolver: _Resolver | None = getattr(_threads, "resolver", None)
    if resolver is None or resolver.downloads is not downloads:
        resolver = _threads.resolver = _Resolver(downloads)
    try:
        answer = resolver.resolve(event, context)
    except Exception as error:  # noqa: BLE001 - an event that no gateway sends
        return _outside(error)
    if resolver.current_event.http_method.upper() == "HEAD":
        answer["body"] = ""  # RFC 9110 §9.3.2
    return answer


def _outside(error: Exception) -> dict[str, Any]:
    """Answer where there is no resolver to do it."""
    reply = _problem(error).reply
    headers = {**reply.headers, "Content-Type": reply.content_type}
    return {"statusCode": reply.status.value, "headers": headers, "body": reply.body, "isBase64Encoded": False}


_lock = threading.Lock()
_downloads: Downloads | None = None
_renewal: Renewal | None = None


def downloads() -> Downloads:
    """Return this process's downloads, by settings that are read again now and then; raises what `_outside` knows.

    The last good ones go on where Secrets Manager does not answer, or what it holds cannot be used.
    """
    global _downloads, _renewal  # noqa: PLW0603 - one warm client of the store for each process is the point of it
    with _lock:
        if _renewal is None or _downloads is None:
            _renewal = Renewal(after_seconds=RENEW_SECONDS)
            _downloads = Downloads.of(_renewal.settings)
        try:
            if _renewal.renew():
                _downloads = Downloads.of(_renewal.settings)
                logger.info("settings have changed")
        except (SettingsError, KeyringError) as error:
            logger.error("settings cannot be read again", extra={"problem": str(error)})  # which holds no value
        return _downloads


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda entry: an HTTP API's event (payload format 2.0)."""
    try:
        ready = downloads()
    except (SettingsError, KeyringError) as error:
        return _outside(error)
    return respond(ready, event, context)


def _start() -> None:
    """Take half a second of imports at the cheapest moment; what is wrong, each request will be told."""
    global _downloads  # noqa: PLW0603 - as in `downloads`
    _downloads = None  # what a snapshot may hold is out of date
    with suppress(SettingsError, KeyringError):
        downloads().warm_up()


begin(_start, asks_aws=True)
collector.resume()
