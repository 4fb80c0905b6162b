"""Mounts the administration's API in the host, and Swagger UI for it, whose files come along with Powertools."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from importlib.resources import files
from typing import Any

from functions.administration import Administration
from functions.broker import MAX_BODY_BYTES, PREFIXES, respond
from infra.host.gateway import Context, Event, Gateway

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


def mount(administration: Administration, *, requests_per_minute: int) -> Gateway:
    """Return what answers `/api/v1/integrations/mqtt/…`, `/openapi.json` and `/docs`."""

    def answer(event: Event, context: Context) -> dict[str, Any]:
        path = event["rawPath"]
        if path.startswith(DOCS) and event["requestContext"]["http"]["method"] in {"GET", "HEAD"}:
            found = _docs(path)
            if found is not None:
                return found
        return respond(administration, event, context)  # type: ignore[arg-type]  # it reads nothing of the context

    return Gateway(
        answer,
        requests_per_minute=requests_per_minute,
        prefixes=(*PREFIXES, DOCS),
        max_body_bytes=MAX_BODY_BYTES,
    )


@cache
def _files() -> dict[str, str]:
    folder = files("aws_lambda_powertools") / "event_handler" / "openapi" / "swagger_ui"
    names = ("swagger-ui.min.css", "swagger-ui-bundle.min.js")
    return {name: (folder / name).read_text(encoding="utf-8") for name in names} | {"start.js": _START}


def _docs(path: str) -> dict[str, Any] | None:
    if path == DOCS:
        return _page(_PAGE, "text/html; charset=utf-8")
    text = _files().get(name := path.removeprefix(DOCS + "/"))
    return None if text is None else _page(text, _TYPES[name.rpartition(".")[2]])


def _page(text: str, content_type: str) -> dict[str, Any]:
    headers = {
        "Content-Type": content_type,
        "Content-Security-Policy": _POLICY,
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-cache",
    }
    return {"statusCode": HTTPStatus.OK.value, "headers": headers, "body": text, "isBase64Encoded": False}
