"""What a device may fetch: a presigned URL for a file, or the manifest of what is current.

An asset is `/assets/<path>`, or `/assets?filename=<path, percent-encoded>` where AWS cannot be asked by path (see
`functions.web.api_gateway`). So is a thumbnail `/thumbnails/<camera>/<event>.jpg`, with `token`, as in the link that
its event was published with.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC
from email.utils import format_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING

from functions.devices.manifest import LISTED, Asked, Checksums, Manifest, parse_limit
from functions.events.names import (
    MAX_FILENAME_BYTES,
    config_name,
    is_asset_path,
    is_config_name,
    is_picture_path,
    normalise_mac,
)
from functions.s3.clients import StorageError
from functions.s3.objects import MAX_PAGE_OBJECTS, ObjectInfo, Objects
from functions.web.messages import (
    THUMBNAILS,
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
from functions.web.tokens import DeviceToken, Keyring, TokenError

if TYPE_CHECKING:
    from functions.settings import Settings

BROKEN_RETRY_SECONDS = 60  # somebody has to set something right
CONFIGS, ASSETS = "/configs/", "/assets"

# `no-store`: a link from a cache is a dead link.
_NO_STORE = {"Cache-Control": "no-store"}


@dataclass(frozen=True, slots=True)
class Principal:
    """Who asks: a device, somebody with a token for the one object `object_key`, or else with an admin token."""

    bearer: str
    objects: Objects
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
    checksums: Checksums = field(default_factory=Checksums, repr=False, compare=False)

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

    @property
    def missing(self) -> str:
        """Which setting is missing, so that nothing can be downloaded; "" where none is."""
        if self.objects is None:
            return "BUCKET"
        return "" if self.keyring.keys or self.admin_tokens else "DEVICE_TOKEN_KEYS or ADMIN_TOKENS"

    @property
    def is_wanted(self) -> bool:
        """Whether any setting says that devices ask here; administrators may do so without."""
        return self.objects is not None or bool(self.keyring.keys) or not self.admin_tokens

    def admit(self, request: Request) -> Principal:
        """Who asks, in exchange for a good token; a link to a thumbnail brings its own."""
        if self.objects is None or self.missing:
            detail = f"Downloads are not configured: set {self.missing}."
            raise unavailable("not_configured", detail, retry_after_seconds=BROKEN_RETRY_SECONDS)
        in_link, bearer = request.token_in_link, request.token
        if not bearer:
            raise unauthorised("no_token")
        offered = bearer.encode(errors="replace")
        # All are compared, so that the time does not tell which one is near.
        if not in_link and sum(hmac.compare_digest(offered, token.encode()) for token in self.admin_tokens):
            return Principal(bearer, self.objects)
        try:
            if in_link:
                return Principal(bearer, self.objects, object_key=self.keyring.verify_for_object(bearer))
            return Principal(bearer, self.objects, self.keyring.verify(bearer))
        except TokenError as error:
            raise unauthorised(error.reason, kid=error.kid, jti=error.jti) from None

    def admit_device(self, request: Request) -> DeviceToken:
        """Which device asks, in exchange for its token: nobody else's word counts."""
        principal = self.admit(request)
        if principal.device is None:
            raise Problem(HTTPStatus.FORBIDDEN, "no_device", "Only a device reports: use a device's token.")
        return principal.device

    def warm_up(self, *, ask_region: bool = False) -> None:
        """Prepare for the first request. Only the store may be asked; what is wrong shows at that request."""
        if self.objects is not None:
            with suppress(StorageError):
                self.objects.warm_up(ask_region=ask_region)

    def config(self, request: Request, caller: Principal) -> Reply:
        """Answer `/configs/<mac>.json`."""
        name = request.path.removeprefix(CONFIGS)
        if not is_config_name(name):
            raise malformed("bad_config_name", "A config is named <mac>.json, e.g. aa-bb-cc-dd-ee-ff.json.")
        return _file(request, caller, self.configs_prefix, name, allowed=caller.owns(name))

    def asset(self, request: Request, caller: Principal) -> Reply:
        """Answer `/assets/<path>` and `/assets?filename=<path>`."""
        name = request.path.removeprefix(ASSETS + "/")
        if request.path == ASSETS:
            name = request.parameters("filename").get("filename", "")
        if not is_asset_path(name) or len((self.assets_prefix + name).encode()) > MAX_FILENAME_BYTES:
            raise malformed("bad_asset_name", "An asset's name is a relative path of at most 1,024 bytes.")
        return _file(request, caller, self.assets_prefix, name, allowed=True)

    def thumbnail(self, request: Request, caller: Principal) -> Reply:
        """Answer `/thumbnails/<camera>/<event>.jpg` and `/thumbnails?filename=<camera>/<event>.jpg`."""
        name = request.path.removeprefix(THUMBNAILS + "/")
        if request.path == THUMBNAILS:
            name = request.parameters("filename").get("filename", "")
        if not is_picture_path(name):
            raise malformed("bad_thumbnail_name", "A thumbnail is named <camera>/<event>.jpg.")
        if (prefix := self.events_prefix) is None:
            raise absent()
        return _file(request, caller, prefix, name, allowed=caller.sees(prefix + name), is_picture=True)

    def manifest(self, request: Request, caller: Principal) -> Reply:
        """Answer `/manifest`. An admin may name a device, or gets what every device gets together."""
        asked = request.parameters("limit", "next", "mac", "checksums")
        checksums = asked.get("checksums", "0")
        if checksums not in {"0", "1"}:
            raise malformed("bad_checksums", "`checksums` is 0 or 1.")
        limit = parse_limit(asked.get("limit", str(MAX_PAGE_OBJECTS)))
        mac = _whose(caller, asked.get("mac"))
        page = Manifest(self.configs_prefix, self.assets_prefix, self.checksums).page(
            caller.objects, Asked(caller.bearer, mac, limit, asked.get("next"), checksums=checksums == "1")
        )
        body = as_json(page)
        etag = hashlib.sha256(body.encode()).hexdigest()[:32]
        headers = {**_NO_STORE, **tagged(etag), LISTED: str(len(page["objects"]))}
        return Reply(HTTPStatus.NOT_MODIFIED, headers) if request.has(etag) else Reply(HTTPStatus.OK, headers, body)


def _file(
    request: Request, caller: Principal, prefix: str, filename: str, *, allowed: bool, is_picture: bool = False
) -> Reply:
    version_id = "" if is_picture else request.parameters("version_id").get("version_id", "")
    if len(version_id) > MAX_FILENAME_BYTES or not version_id.isascii() or not version_id.isprintable():
        raise malformed("bad_version", "That is not a version id.")
    objects = caller.objects
    # The store is asked for forbidden files too: the time must not tell them from missing ones.
    info = objects.head(prefix + filename, version_id, with_checksum=not is_picture)
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
        "sha256": info.sha256 or None,
    }
    return Reply(HTTPStatus.OK, headers, as_json(answer))


def _described(info: ObjectInfo) -> dict[str, str]:
    """Tell of the file in headers. Not so in a redirect, where `Repr-Digest` (RFC 9530) would be of its own body.

    `Content-Length` is the file's (RFC 9110 §8.6), for a proxy that passes it on; `X-Object-Size` says the same behind
    a gateway that counts the empty body instead.
    """
    digest = base64.b64encode(bytes.fromhex(info.sha256)).decode()
    return {
        **({"Repr-Digest": f"sha-256=:{digest}:"} if digest else {}),
        "Last-Modified": format_datetime(info.last_modified.astimezone(UTC), usegmt=True),
        "Content-Length": str(info.size),
        "X-Object-Size": str(info.size),
    }


def _whose(caller: Principal, asked: str | None) -> str | None:
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
