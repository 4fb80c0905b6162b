"""Entry: an administrator's HTTP request in; broker settings, status, or what came of a test out."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, cast

from aws_lambda_powertools.event_handler import APIGatewayHttpResolver, Response
from pydantic import ValidationError

from functions.admin import openapi
from functions.admin.openapi import OPERATIONS, STALE, Operation
from functions.admin.operations import Administration, CannotPublish, TopicVerdict
from functions.admin.schemas import Answer, FieldProblem, ProblemAnswer
from functions.lifecycle import Renewal, begin
from functions.settings import SettingsError
from functions.stored.model import PASSWORD_NEEDED, MqttConfig, MqttConfigChange, problems
from functions.stored.store import ConfigStore, PasswordNeeded, StoreUnavailable, VersionConflict
from functions.telemetry import logger
from functions.web.messages import Problem, Reply, Request, as_json, malformed, unavailable

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
    from aws_lambda_powertools.utilities.data_classes.common import BaseProxyEvent
    from aws_lambda_powertools.utilities.typing import LambdaContext

    from functions.stored.store import ProcessStatus, Stored

MAX_BODY_BYTES = 64 * 1024
BUSY_RETRY_SECONDS = 5  # the database is slow or down
BROKEN_RETRY_SECONDS = 60  # somebody has to set something right
RENEW_SECONDS = 120.0  # between two looks into the secret
MAX_VERSION_DIGITS = 18
PREFIXES = (openapi.BASE + "/", openapi.PATH)

_NO_STORE = {"Cache-Control": "no-store"}
_INVALID_JSON = "json_invalid"  # pydantic's name for it


class Unfit(Problem):
    """A 422 that names each field."""

    def __init__(self, found: Iterable[Mapping[str, str]]) -> None:
        """`found` holds nothing of a value: see `mqtt_config.problems`."""
        self.errors = tuple(FieldProblem(**one) for one in found)
        detail = "; ".join(f"{one.field} {one.problem}" for one in self.errors)
        super().__init__(HTTPStatus.UNPROCESSABLE_ENTITY, "unfit", detail)

    @property
    def reply(self) -> Reply:
        """With the fields as data."""
        return _problem_reply(self, errors=self.errors)


class Outdated(Problem):
    """A 412: another editor was quicker."""

    def __init__(self, current: int | None) -> None:
        """`current` is the version that is stored now, where it is known."""
        self.current = current
        detail = "The settings have changed meanwhile: read them again, and store with If-Match on their ETag."
        headers = {} if current is None else {"ETag": f'"{current}"'}
        super().__init__(HTTPStatus.PRECONDITION_FAILED, "outdated", detail, headers=headers)

    @property
    def reply(self) -> Reply:
        """With the version as data."""
        return _problem_reply(self, current_version=self.current)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request, admitted or not."""

    request: Request
    content_type: str
    if_match: str
    body: bytes

    @classmethod
    def of(cls, event: APIGatewayProxyEventV2) -> _Asked:
        """Read an event. Raises Problem for a body that is none."""
        headers = event.headers
        request = Request(
            event.http_method.upper(),
            event.path,
            event.raw_query_string,
            headers.get("authorization") or "",
        )
        text = event.body or ""
        if len(text) > 2 * MAX_BODY_BYTES:  # before it is decoded
            raise _too_large()
        try:
            body = base64.b64decode(text, validate=True) if event.is_base64_encoded else text.encode()
        except (binascii.Error, UnicodeEncodeError):
            raise malformed("bad_body", "The body cannot be decoded.") from None
        if len(body) > MAX_BODY_BYTES:
            raise _too_large()
        return cls(request, headers.get("content-type") or "", headers.get("if-match") or "", body)

    @property
    def change(self) -> MqttConfigChange:
        """The settings in the body. Raises Problem."""
        if self.content_type.partition(";")[0].strip().lower() != "application/json":
            detail = "Send JSON, and say so: Content-Type: application/json."
            raise Problem(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "not_json", detail)
        try:
            return MqttConfigChange.model_validate_json(self.body)
        except ValidationError as error:
            if any(one["type"] == _INVALID_JSON for one in error.errors(include_input=False, include_url=False)):
                raise malformed("bad_json", "The body is not JSON.") from None
            raise Unfit(problems(error)) from None

    @property
    def expected_version(self) -> int | None:
        """What If-Match asks for (RFC 9110 §13.1.1), None for anything. Raises Problem: a tag of ours is a number."""
        tag = self.if_match.strip()
        if tag in {"", "*"}:
            return None
        version = tag.removeprefix('"').removesuffix('"')
        if tag != f'"{version}"' or not version.isascii() or not version.isdigit() or len(version) > MAX_VERSION_DIGITS:
            raise Outdated(None)  # weak ones and foreign ones never match
        return int(version)


class _Resolver(APIGatewayHttpResolver):
    """The routes, for one thread: Powertools keeps the event at hand in its resolver, and in a class attribute."""

    def __init__(self, administration: Administration) -> None:
        super().__init__(debug=False)  # whatever POWERTOOLS_DEV says: it prints events, tokens and all
        self.administration = administration
        self.doors: list[tuple[re.Pattern[str], str]] = [(re.compile(re.escape(openapi.PATH)), "GET")]
        self.route(openapi.PATH, ["GET"])(_document)
        for operation in OPERATIONS:
            # Not `<camera_id>`: Powertools' own pattern knows fewer characters.
            path = re.escape(operation.path).replace(r"\{camera_id\}", "[^/]+")
            self.doors.append((re.compile(path, re.DOTALL), operation.method))
            self.route(f"(?s:{path})", [operation.method])(self._door(operation))
        self.not_found(self._refuse)
        self.exception_handler(Exception)(self._fail)

    def _to_proxy_event(self, event: dict[str, Any]) -> BaseProxyEvent:
        # An instance's attribute goes before the class's, which other threads overwrite meanwhile.
        self.current_event = cast("APIGatewayProxyEventV2", super()._to_proxy_event(event))
        return self.current_event

    def _door(self, operation: Operation) -> Callable[[], Response[str]]:
        do: Callable[[_Asked], Reply] = getattr(self, f"_{operation.name}")

        def answer() -> Response[str]:
            authorization = Request("", "", authorization=self.current_event.headers.get("authorization") or "")
            admit(authorization.bearer, self.administration.tokens)
            return _response(do(_Asked.of(self.current_event)))

        return answer

    def _config(self, asked: _Asked) -> Reply:
        del asked
        read = self.administration.config()
        return _json(read.value, version=read.value.version, stale=read.stale)

    def _replace_config(self, asked: _Asked) -> Reply:
        expected_version = asked.expected_version
        stored = self.administration.replace_config(asked.change, expected_version)
        return _json(stored, version=stored.version)

    def _status(self, asked: _Asked) -> Reply:
        del asked
        read = self.administration.status()
        return _json(read.value, stale=read.stale)

    def _test(self, asked: _Asked) -> Reply:
        return _json(self.administration.test(asked.change))

    def _publish_discovery(self, asked: _Asked) -> Reply:
        del asked
        return _json(self.administration.publish_discovery())

    def _forget_camera(self, asked: _Asked) -> Reply:
        self.administration.forget_camera(asked.request.path.removeprefix(f"{openapi.BASE}/cameras/"))
        return Reply(HTTPStatus.NO_CONTENT, _NO_STORE)

    def _refuse(self, error: Exception) -> Response[str]:
        """Answer what has no route."""
        del error
        methods = [method for path, method in self.doors if path.fullmatch(self.current_event.path)]
        if methods:
            allow = ", ".join(methods)
            detail = f"The method must be {allow}."
            raise Problem(HTTPStatus.METHOD_NOT_ALLOWED, "method_not_allowed", detail, headers={"Allow": allow})
        raise Problem(HTTPStatus.NOT_FOUND, "no_route", f"There is nothing here: see {openapi.PATH}.")

    def _fail(self, error: Exception) -> Response[str]:
        """Answer what was raised: the one place where that becomes HTTP."""
        problem = _problem(error)
        logger.info("administration refused", extra={"status": problem.status.value, "reason": problem.reason})
        return _response(problem.reply)


def admit(bearer: str, tokens: tuple[str, ...]) -> None:
    """Raise Problem where `bearer` is none of `tokens`."""
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


def _problem(error: Exception) -> Problem:
    if isinstance(error, Problem):
        return error
    if isinstance(error, VersionConflict):
        return Outdated(error.current)
    if isinstance(error, PasswordNeeded):
        return Unfit([PASSWORD_NEEDED])
    if isinstance(error, StoreUnavailable):
        logger.warning("database unavailable", extra={"problem": str(error)})  # which holds no credentials
        detail = f"The database cannot be used: {error}."
        return unavailable("database_unavailable", detail, retry_after_seconds=BUSY_RETRY_SECONDS)
    if isinstance(error, SettingsError):
        logger.error("settings cannot be used", extra={"problem": str(error)})  # which holds no value
        detail = "The administration is not configured: the log says what to set."
        return unavailable("bad_settings", detail, retry_after_seconds=BROKEN_RETRY_SECONDS)
    # Not its text, nor the trace's: either may quote what was sent.
    logger.error("request failed", extra={"kind": type(error).__name__})
    return Problem(HTTPStatus.INTERNAL_SERVER_ERROR, "internal", "Something went wrong here.")


def _problem_reply(problem: Problem, **more: object) -> Reply:
    status = problem.status
    body = ProblemAnswer.model_validate(
        {"title": status.phrase, "status": status.value, "detail": problem.detail} | more
    )
    content = body.model_dump_json(exclude_none=True)
    return Reply(status, {**_NO_STORE, **problem.headers}, content, "application/problem+json")


def _too_large() -> Problem:
    detail = f"The body is larger than {MAX_BODY_BYTES} bytes."
    return Problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too_large", detail)


def _json(answer: Answer, *, version: int | None = None, stale: str = "") -> Reply:
    etag = {} if version is None else {"ETag": f'"{version}"'}
    return Reply(HTTPStatus.OK, {**_NO_STORE, **etag, **({STALE: stale} if stale else {})}, answer.model_dump_json())


@cache
def _document_text() -> str:
    return as_json(openapi.document())


def described() -> Reply:
    """Tell what can be asked; that is no secret."""
    return Reply(HTTPStatus.OK, {"Cache-Control": "no-cache"}, _document_text())


def _document() -> Response[str]:
    return _response(described())


def _response(reply: Reply) -> Response[str]:
    content_type = reply.content_type if reply.body else None
    return Response(reply.status.value, content_type, reply.body, dict(reply.headers))


_threads = threading.local()


def respond(administration: Administration, event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """Answer an event of an API Gateway HTTP API (payload format 2.0). Thread-safe, and never raises."""
    resolver: _Resolver | None = getattr(_threads, "resolver", None)
    if resolver is None or resolver.administration is not administration:
        resolver = _threads.resolver = _Resolver(administration)
    try:
        return resolver.resolve(event, context)
    except Exception as error:  # noqa: BLE001 - an event that no gateway sends
        return _outside(error)


def _outside(error: Exception) -> dict[str, Any]:
    """Answer where there is no resolver to do it."""
    reply = _problem(error).reply
    headers = {**reply.headers, "Content-Type": reply.content_type}
    return {"statusCode": reply.status.value, "headers": headers, "body": reply.body, "isBase64Encoded": False}


class Elsewhere:
    """The `Publishing` of a function that answers requests: other functions publish, and look at the database."""

    def status(self) -> ProcessStatus | None:
        """See `Publishing.status`."""
        return None

    def topics(self) -> tuple[TopicVerdict, ...]:
        """See `Publishing.topics`."""
        return ()

    def availability_topic(self, config: MqttConfig) -> None:
        """See `Publishing.availability_topic`: a frozen function's last will would lie."""

    def apply(self, stored: Stored | None) -> None:
        """See `Publishing.apply`: those others will."""

    def publish_discovery(self) -> int:
        """See `Publishing.publish_discovery`."""
        raise CannotPublish("On Lambda a camera is announced with its next event; only the host can do so at once.")

    def forget_camera(self, camera_id: str) -> bool:
        """See `Publishing.forget_camera`."""
        del camera_id
        raise CannotPublish("Only the host can remove a camera. Without one: publish an empty retained message.")


_lock = threading.Lock()
_administration: Administration | None = None
_renewal: Renewal | None = None


def administration() -> Administration:
    """Return this process's administration, by settings that are read again now and then."""
    global _administration, _renewal  # noqa: PLW0603 - one warm pool of database connections for each process
    with _lock:
        if _renewal is None:
            _renewal = Renewal(after_seconds=RENEW_SECONDS)
        try:
            changed = _renewal.renew()
        except SettingsError as error:
            changed = False
            logger.error("settings cannot be read again", extra={"problem": str(error)})  # which holds no value
        if _administration is None or changed:
            settings = _renewal.settings
            _administration = Administration(settings, ConfigStore.of(settings), Elsewhere())
        return _administration


def handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda entry: an HTTP API's event (payload format 2.0)."""
    try:
        ready = administration()
    except (SettingsError, StoreUnavailable) as error:
        return _outside(error)
    return respond(ready, event, context)


def _start() -> None:
    global _administration  # noqa: PLW0603 - as in `administration`
    _administration = None  # what a snapshot may hold is out of date
    _document_text()


begin(_start)
