"""One table says what can be asked; whatever goes wrong becomes a reply."""

import json
from http import HTTPStatus

import pytest

from functions.web.messages import Problem, Reply, Request, malformed
from functions.web.router import Route, Router


def said(text: str) -> Reply:
    """A reply with a JSON text."""
    return Reply(HTTPStatus.OK, {}, json.dumps(text))


def fail(_request: Request) -> Reply:
    """As code with a fault does."""
    raise RuntimeError("canary-7c1d")


ROUTER = Router(
    (
        Route(("GET", "HEAD"), "/files/*", lambda request: said(request.path)),
        Route(("GET",), "/one", lambda _: said("got")),
        Route(("PUT",), "/one", lambda _: said("put"), max_body_bytes=10),
        Route(("GET",), "/broken", fail),
    ),
    "There is /one.",
)


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/files/a/b", 200, '"/files/a/b"'),
        ("HEAD", "/files/", 200, '"/files/"'),
        ("GET", "/files", 404, None),
        ("GET", "/one", 200, '"got"'),
        ("PUT", "/one", 200, '"put"'),
        ("GET", "/one/", 404, None),
        ("GET", "/ONE", 404, None),
    ],
)
def test_method_and_path_choose_the_route(method: str, path: str, status: int, body: str | None) -> None:
    """A star stands for anything, everything else for itself."""
    reply = ROUTER(Request(method, path))
    assert reply.status == status
    assert body is None or reply.body == body


def test_another_method_is_told_which_there_are() -> None:
    """405 with Allow (RFC 9110 §15.5.6), of all routes at that path."""
    reply = ROUTER(Request("DELETE", "/one"))
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, PUT")


def test_what_is_nowhere_is_told_what_there_is() -> None:
    """404 as an RFC 9457 problem."""
    reply = ROUTER(Request("GET", "/two"))
    assert reply.content_type == "application/problem+json"
    assert json.loads(reply.body) == {"title": "Not Found", "status": 404, "detail": "There is /one."}


def test_a_failure_tells_the_client_nothing() -> None:
    """What was raised may quote a request."""
    reply = ROUTER(Request("GET", "/broken"))
    assert reply.status == 500
    assert "canary" not in str(reply)


def test_a_subject_explains_its_own_failures() -> None:
    """As the store's, by the devices' API."""

    def explain(error: Exception) -> Problem:
        return malformed("x", type(error).__name__)

    reply = Router(ROUTER.routes, "", explain)(Request("GET", "/broken"))
    assert (reply.status, json.loads(reply.body)["detail"]) == (400, "RuntimeError")
