"""Pure: the administration's operations, and the OpenAPI 3.1 document made of them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from functions.admin.doctor import ExaminationAnswer
from functions.admin.fleet_schemas import (
    Assignment,
    DeviceDetailAnswer,
    DevicesAnswer,
    FileDevicesAnswer,
    FleetFilesAnswer,
    UploadsAnswer,
)
from functions.admin.schemas import (
    ConfigAnswer,
    DiscoveryAnswer,
    FilesAnswer,
    ProbeAnswer,
    ProblemAnswer,
    RingAnswer,
    RingRequest,
    StatusAnswer,
    TokenAnswer,
    WhyAnswer,
)
from functions.fleet.standing import STANDINGS
from functions.stored.model import MqttConfigChange

PATH = "/openapi.json"
API = "/api/v1"
BASE = f"{API}/integrations/mqtt"
STATUS, WHY, RING = f"{BASE}/status", f"{API}/why", f"{API}/ring"
DEVICES, FILES = f"{API}/devices", f"{API}/files"
DOCTOR = f"{API}/doctor"
API_VERSION = "1.3.0"
STALE = "Bucketbell-Stale"

_PLACE = re.compile(r"{(\w+)}")
_ETAG = {"description": "The version, quoted.", "schema": {"type": "string"}}
_STALE = {
    "description": "The database does not answer: this is what it held at that time (RFC 3339), `never` if never read.",
    "schema": {"type": "string"},
}
_ALWAYS = (
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.INTERNAL_SERVER_ERROR,
    HTTPStatus.SERVICE_UNAVAILABLE,
)
_BODY = (
    HTTPStatus.BAD_REQUEST,
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    HTTPStatus.UNPROCESSABLE_ENTITY,
)
_MEANING = {
    HTTPStatus.BAD_REQUEST: "The request cannot be read.",
    HTTPStatus.UNAUTHORIZED: "A token of ADMIN_TOKENS is needed.",
    HTTPStatus.FORBIDDEN: "That broker must not be connected to.",
    HTTPStatus.NOT_FOUND: "There is no such camera, device or file.",
    HTTPStatus.REQUEST_TIMEOUT: "The body did not arrive in time.",
    HTTPStatus.CONFLICT: "Not here, or not now; `detail` says why, and what to do.",
    HTTPStatus.PRECONDITION_FAILED: "Somebody else has changed the settings meanwhile.",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "The body is larger than 65536 bytes.",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "The body must be application/json.",
    HTTPStatus.UNPROCESSABLE_ENTITY: "`errors` names each field that is not right. Nothing was stored.",
    HTTPStatus.TOO_MANY_REQUESTS: "Too many requests; see Retry-After.",
    HTTPStatus.INTERNAL_SERVER_ERROR: "Something went wrong.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not now, see Retry-After; or ADMIN_TOKENS is unset, and this API is off.",
}

_DEVICES_MEANING = {
    HTTPStatus.UNAUTHORIZED: "The device's own token is needed.",
    HTTPStatus.FORBIDDEN: "There is no next one for this token; `detail` says why.",
    HTTPStatus.SERVICE_UNAVAILABLE: "Not now, see Retry-After; or nothing can be downloaded here at all.",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that can be asked for; `name` is that of the method which does it."""

    name: str
    method: str
    path: str
    summary: str
    description: str
    answer: type[BaseModel] | None
    body: type[BaseModel] | None = None
    problems: tuple[HTTPStatus, ...] = ()
    headers: tuple[str, ...] = ()
    if_match: bool = False
    query: tuple[tuple[str, str, bool], ...] = ()
    """The parameters: name, description, whether it is needed."""


_LIMIT = ("limit", "How many, from 1 to 1,000; 100 unless told.", False)
_AFTER = ("after", "`next` of the page before.", False)
_STANDING = ("state", f"Only those that are so far: {', '.join(f'`{one}`' for one in STANDINGS)}.", False)
_PAGED = (HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.CONFLICT)

OPERATIONS = (
    Operation(
        "config",
        "GET",
        f"{BASE}/config",
        "The settings in force",
        "Where a row is stored it is in force, else the environment is. The password is never told.",
        ConfigAnswer,
        headers=("ETag", STALE),
    ),
    Operation(
        "replace_config",
        "PUT",
        f"{BASE}/config",
        "Store settings and reconnect",
        "The answering process reconnects at once, others within 30 seconds. A broker that cannot be reached is stored "
        "all the same: see the status. What is left out gets its default; the password, left out, stays as it is while "
        "host, port, TLS and user name do (otherwise 422).",
        ConfigAnswer,
        body=MqttConfigChange,
        problems=(*_BODY, HTTPStatus.CONFLICT, HTTPStatus.FORBIDDEN, HTTPStatus.PRECONDITION_FAILED),
        headers=("ETag",),
        if_match=True,
    ),
    Operation(
        "status",
        "GET",
        STATUS,
        "The connection",
        "Of the answering process, and what others last recorded; on Lambda what was recorded, and a live probe.",
        StatusAnswer,
        headers=(STALE,),
    ),
    Operation(
        "test",
        "POST",
        f"{BASE}/test",
        "Try settings",
        "One attempt to connect, within 5 seconds. Stores nothing and leaves the live connection alone. A password "
        "that is left out is the stored one if host, port, TLS and user name are, and none otherwise.",
        ProbeAnswer,
        body=MqttConfigChange,
        problems=(*_BODY, HTTPStatus.CONFLICT, HTTPStatus.FORBIDDEN),
    ),
    Operation(
        "publish_discovery",
        "POST",
        f"{BASE}/publish-discovery",
        "Tell Home Assistant of the cameras again",
        "Publishes each known camera's discovery message.",
        DiscoveryAnswer,
        problems=(HTTPStatus.CONFLICT,),
    ),
    Operation(
        "forget_camera",
        "DELETE",
        f"{BASE}/cameras/{{camera_id}}",
        "Take a camera out of Home Assistant",
        "Takes away what the broker keeps of the camera. All hosts leave it out until its next event.",
        None,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    ),
    Operation(
        "why",
        "GET",
        WHY,
        "What became of an upload",
        "Whether the file is there, whether and where it is announced, which events came, what the broker said, and "
        "what is in the way now. Of the last 10,000 events of the answering host, since its start at most.",
        WhyAnswer,
        problems=(HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY),
        query=(("key", "The key, e.g. `assets/x.bin`; a config's MAC or a bare file name will do.", True),),
    ),
    Operation(
        "ring",
        "POST",
        RING,
        "Announce a file again",
        "Under a new `id`, with the file's ETag, size and version as they are now; answers what the broker says. With "
        "`device` only that device hears it: for all others it was not announced, and the sweep still counts it so. "
        "Host only.",
        RingAnswer,
        body=RingRequest,
        problems=(*_BODY, HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    ),
    Operation(
        "modified_since",
        "GET",
        RING,
        "What was modified since then",
        "The files that are announced, by their keys; to announce each of them again. Host only.",
        FilesAnswer,
        problems=(HTTPStatus.BAD_REQUEST, HTTPStatus.UNPROCESSABLE_ENTITY, HTTPStatus.CONFLICT),
        query=(
            ("since", "A time with its zone (RFC 3339), by the store's clock.", True),
            ("after", "`next` of the answer before.", False),
        ),
    ),
    Operation(
        "examine",
        "POST",
        DOCTOR,
        "Look at everything",
        "Begins what `bucketbell doctor` does, with the host's own settings, unless it is running already; it takes up "
        "to half a minute. Host only.",
        ExaminationAnswer,
        problems=(HTTPStatus.CONFLICT,),
    ),
    Operation(
        "examination",
        "GET",
        DOCTOR,
        "What was found",
        "By the last examination since the host's start. Host only.",
        ExaminationAnswer,
        problems=(HTTPStatus.CONFLICT,),
    ),
    Operation(
        "devices",
        "GET",
        DEVICES,
        "The fleet's devices",
        "By MAC, each with the file that it should have and how far it is with that. Needs DATABASE_URL and BUCKET, as "
        "all that concerns the fleet.",
        DevicesAnswer,
        problems=_PAGED,
        query=(("search", "A part of the MAC, the version or the agent.", False), _STANDING, _AFTER, _LIMIT),
    ),
    Operation(
        "device",
        "GET",
        f"{DEVICES}/{{mac}}",
        "One device",
        "What it holds, and its last 100 states.",
        DeviceDetailAnswer,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    ),
    Operation(
        "remove_device",
        "DELETE",
        f"{DEVICES}/{{mac}}",
        "Forget a device",
        "And all that it said. It is known again when it asks for something.",
        None,
        problems=(HTTPStatus.NOT_FOUND, HTTPStatus.CONFLICT),
    ),
    Operation(
        "assign",
        "PUT",
        f"{DEVICES}/{{mac}}/assignment",
        "Say which asset a device should have",
        "Without an assignment it follows the newest of what it installed last.",
        DeviceDetailAnswer,
        body=Assignment,
        problems=(*_BODY, HTTPStatus.CONFLICT),
    ),
    Operation(
        "files",
        "GET",
        FILES,
        "Who has which file",
        "The bucket's configs and assets, newest first, each with how many devices should have it and have it.",
        FleetFilesAnswer,
        problems=_PAGED,
        query=(("search", "A part of the key.", False), _AFTER, _LIMIT),
    ),
    Operation(
        "file_devices",
        "GET",
        f"{FILES}/{{filename}}/devices",
        "Who has this file",
        "The devices that should have it, by MAC. The name may have folders.",
        FileDevicesAnswer,
        problems=(*_PAGED, HTTPStatus.NOT_FOUND),
        query=(("search", "A part of the MAC.", False), _STANDING, _AFTER, _LIMIT),
    ),
    Operation(
        "uploads",
        "GET",
        f"{API}/uploads",
        "The last uploads",
        "The last 1,000 at most, newest first: when each was announced and confirmed, and who has it.",
        UploadsAnswer,
        problems=_PAGED,
        query=(_LIMIT,),
    ),
)

RENEWAL = Operation(
    "renew_token",
    "POST",
    "/token",
    "A device's next token",
    "For the device that shows its own token, which must have been made for a year or more. The same token all day. It "
    "is signed by the first of DEVICE_TOKEN_KEYS, for the usual time, under the same id (`jti`): revoking that revokes "
    "them all. The one before stays valid until it ends.",
    TokenAnswer,
    problems=(HTTPStatus.FORBIDDEN,),
)
"""All that this document has of the devices' API. The other routes answer with redirects: see docs/devices.md."""


def document() -> dict[str, Any]:
    """Return the OpenAPI document: equal for equal code."""
    models = [(one.answer, "serialization") for one in (*OPERATIONS, RENEWAL) if one.answer is not None]
    models += [(one.body, "validation") for one in OPERATIONS if one.body is not None]
    models += [(ProblemAnswer, "serialization")]
    _, schemas = models_json_schema(
        list(dict.fromkeys(models)),  # type: ignore[arg-type]  # mypy widens the literals
        ref_template="#/components/schemas/{model}",
    )
    change = schemas["$defs"][MqttConfigChange.__name__]
    change["description"] = "The settings, and perhaps a password."
    del change["properties"]["password"]["default"]  # leaving it out is not the same as null
    paths: dict[str, Any] = {}
    for operation in (*OPERATIONS, RENEWAL):
        paths.setdefault(operation.path, {})[operation.method.lower()] = _operation(operation)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "bucketbell: administration",
            "version": API_VERSION,
            "description": "Broker settings, status and test; what became of an upload; who has which file. Each "
            "request needs `Authorization: Bearer <a token of ADMIN_TOKENS>`. And how a device renews its own token.",
            "license": {"name": "MIT", "identifier": "MIT"},
        },
        "servers": [{"url": "/"}],
        "security": [{"admin": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {caller: {"type": "http", "scheme": "bearer"} for caller in ("admin", "device")},
            "schemas": dict(sorted(schemas["$defs"].items())),
        },
    }


def _operation(operation: Operation) -> dict[str, Any]:
    parameters: list[dict[str, Any]] = []
    for name in _PLACE.findall(operation.path):
        schema = {"type": "string", "minLength": 1}
        parameters.append({"name": name, "in": "path", "required": True, "schema": schema})
    for name, words, is_needed in operation.query:
        schema = {"type": "string", "minLength": 1} if is_needed else {"type": "string"}
        parameters.append({"name": name, "in": "query", "required": is_needed, "description": words, "schema": schema})
    if operation.if_match:
        words = 'The ETag of the settings that were edited, e.g. `"3"`; `"0"` to store the first ones.'
        parameters.append({"name": "If-Match", "in": "header", "description": words, "schema": {"type": "string"}})
    answers: dict[str, Any] = {}
    if operation.answer is None:
        answers["204"] = {"description": "Done."}
    else:
        known = {"ETag": _ETAG, STALE: _STALE}
        answers["200"] = {"description": operation.summary, "content": _content(operation.answer)}
        if operation.headers:
            answers["200"]["headers"] = {name: known[name] for name in operation.headers}
    meaning = _MEANING | (_DEVICES_MEANING if operation is RENEWAL else {})
    for status in sorted({*_ALWAYS, *operation.problems}):
        content = _content(ProblemAnswer, "application/problem+json")
        answers[str(status.value)] = {"description": meaning[status], "content": content}
    described: dict[str, Any] = {
        "operationId": operation.name,
        "summary": operation.summary,
        "description": operation.description,
        "responses": answers,
    }
    if operation is RENEWAL:
        described["security"] = [{"device": []}]
    if parameters:
        described["parameters"] = parameters
    if operation.body is not None:
        described["requestBody"] = {"required": True, "content": _content(operation.body)}
    return described


def _content(model: type[BaseModel], content_type: str = "application/json") -> dict[str, Any]:
    return {content_type: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
