"""Pages for a person: the console at `/`, and Swagger UI for the API, whose files come along with Powertools."""

from __future__ import annotations

from functools import cache, partial
from http import HTTPStatus
from importlib.resources import files

from functions.web.messages import Reply, Request
from functions.web.router import Route

DOCS, CONSOLE = "/docs", "/console"

_SWAGGER = """<!DOCTYPE html>
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
# Nothing comes from elsewhere, and nothing is sent elsewhere.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{styles}; img-src 'self' data:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS = {"X-Content-Type-Options": "nosniff", "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
_OURS = {"Content-Security-Policy": _POLICY.format(styles=""), **_HEADERS}
_SWAGGERS = {
    "Content-Security-Policy": _POLICY.format(styles=" 'unsafe-inline'"),
    **_HEADERS,
}  # it writes into elements
_TYPES = {"html": "text/html; charset=utf-8", "css": "text/css; charset=utf-8", "js": "text/javascript; charset=utf-8"}
_SWAGGER_FILES = ("swagger-ui.min.css", "swagger-ui-bundle.min.js", "start.js")
_CONSOLE_FILES = ("app.js", "api.js", "dom.js", "views.js", "style.css")


def routes() -> tuple[Route[None], ...]:
    """The pages and their files: they hold nothing that needs a token."""
    return (
        _route("/", partial(_console, "index.html")),
        *(_route(f"{CONSOLE}/{name}", partial(_console, name)) for name in _CONSOLE_FILES),
        _route(DOCS, partial(_swagger, "index.html")),
        *(_route(f"{DOCS}/{name}", partial(_swagger, name)) for name in _SWAGGER_FILES),
    )


def _route(path: str, answer: partial[Reply]) -> Route[None]:
    def show(_request: Request, _caller: None) -> Reply:
        return answer()

    return Route(("GET", "HEAD"), path, show, is_public=True)


@cache
def _console(name: str) -> Reply:
    """Read a file once: clients that do not take it then hold the same bytes as all others."""
    body = (files("infra.host.web") / "console" / name).read_bytes()
    return Reply(HTTPStatus.OK, _OURS, body, _TYPES[name.rpartition(".")[2]])


@cache
def _swagger(name: str) -> Reply:
    """As `_console`."""
    written = {"index.html": _SWAGGER, "start.js": _START}
    folder = files("aws_lambda_powertools") / "event_handler" / "openapi" / "swagger_ui"
    body = written[name].encode() if name in written else (folder / name).read_bytes()
    return Reply(HTTPStatus.OK, _SWAGGERS, body, _TYPES[name.rpartition(".")[2]])
