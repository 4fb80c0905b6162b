"""Swagger UI for the administration's API; its files come along with Powertools."""

from __future__ import annotations

from functools import cache
from http import HTTPStatus
from importlib.resources import files

from functions.web.messages import Reply
from functions.web.router import Route

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
_HEADERS = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff", "Cache-Control": "no-cache"}
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_FILES = ("swagger-ui.min.css", "swagger-ui-bundle.min.js", "start.js")


def routes() -> tuple[Route[None], ...]:
    """The page and its files."""
    page: Route[None] = Route(("GET", "HEAD"), DOCS, lambda _asked, _caller: _page(), is_public=True)
    return (page, *(_file_route(name) for name in _FILES))


def _file_route(name: str) -> Route[None]:
    return Route(("GET", "HEAD"), f"{DOCS}/{name}", lambda _asked, _caller: _file(name), is_public=True)


def _page() -> Reply:
    return Reply(HTTPStatus.OK, _HEADERS, _PAGE, _TYPES["html"])


@cache
def _file(name: str) -> Reply:
    """Read a file once: clients that do not take it then hold the same bytes as all others."""
    if name == "start.js":
        body = _START.encode()
    else:
        folder = files("aws_lambda_powertools") / "event_handler" / "openapi" / "swagger_ui"
        body = (folder / name).read_bytes()
    return Reply(HTTPStatus.OK, _HEADERS, body, _TYPES[name.rpartition(".")[2]])
