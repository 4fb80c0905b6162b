"""Mounts the administration's API in the host, and Swagger UI for it, whose files come along with Powertools."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from functions.admin.api import MAX_BODY_BYTES, PREFIXES, admit, described, respond
from functions.admin.openapi import PATH
from functions.admin.operations import Administration
from functions.web.messages import as_json
from infra.host.gateway import BODILESS, Context, Event, Gateway
from infra.host.web.entrance import Entrance, Gate
from infra.host.web.origin import Proxies

DOCS = "/docs"

_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>bucketbell</title>
<link rel="stylesheet" href="docs/swagger-ui.min.css">
</head>
<body>
<div id="swagger-ui"></div>
<script src="docs/swagger-ui-bundle.min.js"></script>
<script src="docs/start.js"></script>
</body>
</html>
"""
_START = 'SwaggerUIBundle({url: "openapi.json", dom_id: "#swagger-ui", deepLinking: true, validatorUrl: null});\n'
# Nothing comes from elsewhere, and nothing is sent elsewhere; Swagger UI writes styles into its elements.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_TYPES = {"css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}


def mount(
    administration: Administration,
    entrance: Entrance,
    *,
    requests_per_minute: int,
    on_stranger: Callable[[str], None] = lambda _reason: None,
    proxies: Proxies | None = None,
) -> Gateway:
    """Return what answers `/api/v1/integrations/mqtt/…`, `/openapi.json`, and `/docs` where there are ADMIN_TOKENS."""

    def answer(event: Event, context: Context) -> dict[str, Any]:
        return respond(administration, event, context)  # type: ignore[arg-type]  # it reads nothing of the context

    def public(method: str, path: str) -> Event | None:
        if path == PATH and method == "GET":
            return _described()
        if path.startswith(DOCS) and method in BODILESS:
            return (_docs(path) if administration.tokens else None) or _NOWHERE
        return None

    return Gateway(
        answer,
        requests_per_minute=requests_per_minute,
        prefixes=(*PREFIXES, DOCS),
        max_body_bytes=MAX_BODY_BYTES,
        gate=Gate(
            entrance,
            lambda request: admit(request.bearer, administration.tokens),
            on_stranger,
        ),
        public=public,
        proxies=proxies,
    )


_NOWHERE = {
    "statusCode": HTTPStatus.NOT_FOUND.value,
    "headers": {"Content-Type": "application/problem+json"},
    "body": as_json({"title": "Not Found", "status": 404, "detail": f"There is nothing here: see {PATH}."}),
}


@cache
def _described() -> Event:
    reply = described()
    headers = {**reply.headers, "Content-Type": reply.content_type}
    return {"statusCode": reply.status.value, "headers": headers, "body": reply.body.encode()}


@cache
def _files() -> dict[str, bytes]:
    """Read the files once: who does not take them then holds the same bytes as everybody else."""
    folder = files("aws_lambda_powertools") / "event_handler" / "openapi" / "swagger_ui"
    names = ("swagger-ui.min.css", "swagger-ui-bundle.min.js")
    return {name: (folder / name).read_bytes() for name in names} | {"start.js": _START.encode()}


def _docs(path: str) -> Event | None:
    if path == DOCS:
        return _page(_PAGE.encode(), "text/html; charset=utf-8")
    body = _files().get(name := path.removeprefix(DOCS + "/"))
    return None if body is None else _page(body, _TYPES[name.rpartition(".")[2]])


def _page(body: bytes, content_type: str) -> Event:
    headers = {
        "Content-Type": content_type,
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return {"statusCode": HTTPStatus.OK.value, "headers": headers, "body": body}
