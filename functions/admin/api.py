"""The routes of the administration's API, made of the operations that OpenAPI tells of."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from functools import cache, partial
from http import HTTPStatus
from typing import TYPE_CHECKING, TypeVar

from pydantic import BaseModel, ValidationError

from functions.admin import openapi
from functions.admin.doctor import NobodyExamines
from functions.admin.fleet import FleetPage
from functions.admin.fleet_schemas import Assignment
from functions.admin.openapi import OPERATIONS, STALE, Operation
from functions.admin.schemas import RingRequest
from functions.settings import SettingsError
from functions.stored.errors import PasswordNeededError, StoreUnavailableError, VersionConflictError
from functions.stored.model import PASSWORD_NEEDED, MqttConfigChange, problems
from functions.telemetry import logger
from functions.web.messages import Problem, Reply, Request, as_json, internal, malformed, unavailable, unfit
from functions.web.router import Route, Router

if TYPE_CHECKING:
    from functions.admin.doctor import Examining
    from functions.admin.fleet import FleetAnswers
    from functions.admin.operations import Administration
    from functions.admin.schemas import Schema
    from functions.admin.uploads import Uploads

MAX_BODY_BYTES = 64 * 1024
BUSY_RETRY_SECONDS = 5  # the database is slow or down
BROKEN_RETRY_SECONDS = 60  # somebody has to set something right
MAX_VERSION_DIGITS = 18

_NO_STORE = {"Cache-Control": "no-store"}
_INVALID_JSON = "json_invalid"  # pydantic's name for it

T = TypeVar("T", bound=BaseModel)


def router(
    administration: Administration,
    uploads: Uploads,
    fleet: FleetAnswers | None = None,
    examiner: Examining | None = None,
) -> Router[None]:
    """All that an administrator can ask for."""
    doctor = NobodyExamines() if examiner is None else examiner
    answers: dict[str, Callable[[Request], Reply]] = {
        "config": lambda _: _config(administration),
        "replace_config": lambda request: _replace_config(administration, request),
        "status": lambda _: _status(administration),
        "test": lambda request: _json(administration.test(_change(request))),
        "publish_discovery": lambda _: _json(administration.publish_discovery()),
        "forget_camera": lambda request: _forget_camera(administration, request),
        "why": lambda request: _json(uploads.why(_needed(request, "key"))),
        "ring": lambda request: _ring(uploads, request),
        "modified_since": lambda request: _json(
            uploads.modified_since(_needed(request, "since"), request.parameters("after").get("after", ""))
        ),
        "examine": lambda _: _json(doctor.begin()),
        "examination": lambda _: _json(doctor.latest()),
    }
    asked_of_the_fleet: dict[str, Callable[[FleetAnswers, Request], Reply]] = {
        "devices": lambda fleet, request: _json(fleet.devices(_page(request))),
        "device": lambda fleet, request: _json(fleet.device(_between(request, openapi.DEVICES))),
        "remove_device": _remove_device,
        "assign": _assign,
        "files": lambda fleet, request: _json(fleet.files(_page(request))),
        "file_devices": lambda fleet, request: _json(
            fleet.file_devices(_between(request, openapi.FILES, "/devices"), _page(request))
        ),
        "uploads": lambda fleet, request: _json(fleet.uploads(_page(request).limit)),
    }
    answers |= {name: partial(_of_fleet, fleet, answer) for name, answer in asked_of_the_fleet.items()}
    routes = tuple(_route(operation, answers[operation.name]) for operation in OPERATIONS)
    # What can be asked is no secret.
    document: Route[None] = Route(("GET",), openapi.PATH, lambda _request, _caller: described(), is_public=True)
    hint = f"There is nothing here: see {openapi.PATH}."
    return Router(
        "administration", (document, *routes), lambda asked: admit(asked.bearer, administration.tokens), hint, explain
    )


def _route(operation: Operation, answer: Callable[[Request], Reply]) -> Route[None]:
    max_body_bytes = 0 if operation.body is None else MAX_BODY_BYTES
    path = operation.path.replace("{filename}", "*")  # which may have folders
    return Route((operation.method,), path, lambda request, _caller: answer(request), max_body_bytes)


def _of_fleet(fleet: FleetAnswers | None, answer: Callable[[FleetAnswers, Request], Reply], request: Request) -> Reply:
    if fleet is None:
        raise Problem(HTTPStatus.CONFLICT, "no_fleet", "Nothing is kept of devices: set DATABASE_URL and BUCKET.")
    return answer(fleet, request)


def _remove_device(fleet: FleetAnswers, request: Request) -> Reply:
    fleet.remove_device(_between(request, openapi.DEVICES))
    return Reply(HTTPStatus.NO_CONTENT, _NO_STORE)


def _assign(fleet: FleetAnswers, request: Request) -> Reply:
    right = {"field": "filename", "problem": "is not right", "expected": 'an asset: {"filename": "esp32/fw-1.2.bin"}'}
    filename = _read(Assignment, request, lambda _: [right]).filename
    return _json(fleet.assign(_between(request, openapi.DEVICES, "/assignment"), filename))


def _between(request: Request, base: str, end: str = "") -> str:
    """What stands in the path where it differs."""
    return request.path.removeprefix(f"{base}/").removesuffix(end)


def _page(request: Request) -> FleetPage:
    return FleetPage.of(request.parameters("after", "limit", "search", "state"))


def _config(administration: Administration) -> Reply:
    read = administration.config()
    return _json(read.value, version=read.value.version, stale=read.stale)


def _replace_config(administration: Administration, request: Request) -> Reply:
    expected_version = _expected_version(request)
    stored = administration.replace_config(_change(request), expected_version)
    return _json(stored, version=stored.version)


def _status(administration: Administration) -> Reply:
    read = administration.status()
    return _json(read.value, stale=read.stale)


def _forget_camera(administration: Administration, request: Request) -> Reply:
    administration.forget_camera(request.path.removeprefix(f"{openapi.BASE}/cameras/"))
    return Reply(HTTPStatus.NO_CONTENT, _NO_STORE)


def _needed(request: Request, name: str) -> str:
    """A parameter of the query. Raises Problem."""
    value = request.parameters(name).get(name, "")
    if not value:
        raise unfit([{"field": name, "problem": "is missing", "expected": "a query parameter"}])
    return value


def _change(request: Request) -> MqttConfigChange:
    """The settings in the body. Raises Problem."""
    return _read(MqttConfigChange, request, problems)


def _ring(uploads: Uploads, request: Request) -> Reply:
    right = {
        "key": 'an object\'s key: {"key": "assets/x.bin"}',
        "device": 'a device\'s MAC: {"key": "assets/x.bin", "device": "a1-b2-c3-d4-e5-f6"}',
    }

    def found(error: ValidationError) -> list[dict[str, str]]:
        fields = {
            str(one["loc"][0]) if one["loc"] else "" for one in error.errors(include_input=False, include_url=False)
        }
        wrong = [field for field in right if field in fields] or ["key"]
        return [{"field": field, "problem": "is not right", "expected": right[field]} for field in wrong]

    asked = _read(RingRequest, request, found)
    return _json(uploads.ring(asked.key, asked.device))


def _read(model: type[T], request: Request, found: Callable[[ValidationError], list[dict[str, str]]]) -> T:
    """The body; `found` tells which fields are not right. Raises Problem."""
    if request.header("content-type").partition(";")[0].strip().lower() != "application/json":
        detail = "Send JSON, and say so: Content-Type: application/json."
        raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_json", detail)
    try:
        return model.model_validate_json(request.body)
    except ValidationError as error:
        if any(one["type"] == _INVALID_JSON for one in error.errors(include_input=False, include_url=False)):
            raise malformed("bad_json", "The body is not JSON.") from None
        raise unfit(found(error)) from None


def _expected_version(request: Request) -> int | None:
    """What If-Match asks for (RFC 9110 §13.1.1), None for anything. Raises Problem: a tag of ours is a number."""
    tag = request.header("if-match").strip()
    if tag in {"", "*"}:
        return None
    version = tag.removeprefix('"').removesuffix('"')
    if tag != f'"{version}"' or not version.isascii() or not version.isdigit() or len(version) > MAX_VERSION_DIGITS:
        raise _outdated(None)  # weak ones and foreign ones never match
    return int(version)


def admit(bearer: str, tokens: tuple[str, ...]) -> None:
    """Raise Problem unless `bearer` is one of `tokens`."""
    if not tokens:
        detail = "The administration is off: set ADMIN_TOKENS."
        raise unavailable("not_configured", detail, retry_after_seconds=BROKEN_RETRY_SECONDS)
    offered = bearer.encode(errors="replace")
    # All are compared, so that the time does not tell which one is near.
    if not sum(hmac.compare_digest(offered, token.encode()) for token in tokens):
        challenge = 'Bearer realm="bucketbell"' + (', error="invalid_token"' if bearer else "")  # RFC 6750 §3
        detail = "A token of ADMIN_TOKENS is needed: Authorization: Bearer <token>."
        headers = {"WWW-Authenticate": challenge}
        raise Problem(HTTPStatus.UNAUTHORIZED, "bad_token" if bearer else "no_token", detail, headers=headers)


def explain(error: Exception) -> Problem:
    """How a failure is told to an administrator."""
    if isinstance(error, VersionConflictError):
        return _outdated(error.current)
    if isinstance(error, PasswordNeededError):
        return unfit([PASSWORD_NEEDED])
    if isinstance(error, StoreUnavailableError):
        logger.warning("database unavailable", extra={"problem": str(error)})  # which holds no credentials
        detail = f"The database cannot be used: {error}."
        return unavailable("database_unavailable", detail, retry_after_seconds=BUSY_RETRY_SECONDS)
    if isinstance(error, SettingsError):
        logger.error("settings cannot be used", extra={"problem": str(error)})  # which holds no value
        detail = "The administration is not configured: the log says what to set."
        return unavailable("bad_settings", detail, retry_after_seconds=BROKEN_RETRY_SECONDS)
    # Not its text, nor the trace's: either may quote what was sent.
    logger.error("request failed", extra={"kind": type(error).__name__})
    return internal()


def _outdated(current: int | None) -> Problem:
    """A 412: another editor was quicker; `current` is the version that is stored now, where it is known."""
    detail = "The settings have changed meanwhile: read them again, and store with If-Match on their ETag."
    known = current is not None
    headers = {"ETag": f'"{current}"'} if known else {}
    more = {"current_version": current} if known else {}
    return Problem(HTTPStatus.PRECONDITION_FAILED, "outdated", detail, headers=headers, more=more)


def _json(answer: Schema, *, version: int | None = None, stale: str = "") -> Reply:
    etag = {} if version is None else {"ETag": f'"{version}"'}
    return Reply(HTTPStatus.OK, {**_NO_STORE, **etag, **({STALE: stale} if stale else {})}, answer.model_dump_json())


@cache
def described() -> Reply:
    """The OpenAPI document."""
    return Reply(HTTPStatus.OK, {"Cache-Control": "no-cache"}, as_json(openapi.document()))
