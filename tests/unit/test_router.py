"""One table says what can be asked; whatever goes wrong becomes a reply."""

import json
from dataclasses import replace
from http import HTTPStatus

import pytest

from functions.web.messages import Problem, Reply, Request, malformed, unauthorised
from functions.web.router import Route, Router, unforeseen


def said(text: str) -> Reply:
    """A reply with a JSON text."""
    return Reply(HTTPStatus.OK, {}, json.dumps(text))


def fail(_request: Request, _caller: str) -> Reply:
    """As code with a fault does."""
    raise RuntimeError("canary-7c1d")


def admit(request: Request) -> str:
    """Anybody with a name is let in."""
    if not request.bearer:
        raise unauthorised("no_token", kid="k", jti="j")
    return request.bearer


def ask(method: str, path: str, name: str = "ann") -> Request:
    """A request of somebody's."""
    return Request(method, path, headers={"authorization": f"Bearer {name}"} if name else {})


ROUTER: Router[str] = Router(
    "sample",
    (
        Route(("GET", "HEAD"), "/files/*", lambda request, _: said(request.path)),
        Route(("GET",), "/one", lambda _, caller: said(f"got by {caller}")),
        Route(("PUT",), "/one", lambda request, _: said(request.body.decode()), max_body_bytes=10),
        Route(("GET",), "/of/{one}/x", lambda request, _: said(request.path)),
        Route(("GET",), "/a.b", lambda *_: said("dot")),
        Route(("GET",), "/broken", fail),
        Route(("GET",), "/open", lambda _, caller: said(str(caller)), is_public=True),
    ),
    admit=admit,
    hint="There is /one.",
    explain=unforeseen,
)


@pytest.mark.parametrize(
    ("method", "path", "status", "body"),
    [
        ("GET", "/files/a/b", 200, '"/files/a/b"'),
        ("HEAD", "/files/", 200, '"/files/"'),
        ("GET", "/files", 404, None),
        ("GET", "/files/a\nb", 200, '"/files/a\\nb"'),
        ("GET", "/one", 200, '"got by ann"'),
        ("PUT", "/one", 200, '""'),
        ("GET", "/of/a/x", 200, '"/of/a/x"'),
        ("GET", "/of/a/b/x", 404, None),
        ("GET", "/of//x", 404, None),
        ("GET", "/a.b", 200, '"dot"'),
        ("GET", "/a+b", 404, None),
        ("GET", "/one/", 404, None),
        ("GET", "/ONE", 404, None),
    ],
)
def test_method_and_path_choose_the_route(method: str, path: str, status: int, body: str | None) -> None:
    """A star stands for anything, a name in braces for one segment, everything else for itself."""
    reply = ROUTER(ask(method, path))
    assert reply.status == status
    assert body is None or reply.body == body


def test_another_method_is_told_which_there_are() -> None:
    """405 with Allow (RFC 9110 §15.5.6), of all routes at that path."""
    reply = ROUTER(ask("DELETE", "/one"))
    assert (reply.status, reply.headers["Allow"]) == (405, "GET, PUT")


def test_what_is_nowhere_is_told_what_there_is() -> None:
    """404 as an RFC 9457 problem."""
    reply = ROUTER(ask("GET", "/two"))
    assert reply.content_type == "application/problem+json"
    assert json.loads(reply.body) == {"title": "Not Found", "status": 404, "detail": "There is /one."}


def test_a_failure_tells_the_client_nothing() -> None:
    """What was raised may quote a request."""
    reply = ROUTER(ask("GET", "/broken"))
    assert reply.status == 500
    assert "canary" not in str(reply)


def test_a_subject_explains_its_own_failures() -> None:
    """As the store's, by the devices' API."""

    def explain(error: Exception) -> Problem:
        return malformed("x", type(error).__name__)

    reply = replace(ROUTER, explain=explain)(ask("GET", "/broken"))
    assert (reply.status, json.loads(reply.body)["detail"]) == (400, "RuntimeError")


def test_a_route_is_told_who_asks_and_a_public_one_asks_nobody() -> None:
    """Without a token the former is 401, the latter answers."""
    assert ROUTER(ask("GET", "/one", "bob")).body == '"got by bob"'
    refused = ROUTER(ask("GET", "/one", ""))
    assert (refused.status, refused.headers["WWW-Authenticate"]) == (401, 'Bearer realm="bucketbell"')
    assert ROUTER(ask("GET", "/open", "")).body == '"None"'


def test_a_body_is_read_for_who_is_let_in_and_where_one_is_wanted() -> None:
    """A stranger's is not decoded, nor is that of a GET."""
    limits: list[int] = []

    def read(limit_bytes: int) -> bytes:
        limits.append(limit_bytes)
        return b"text"

    assert ROUTER(ask("PUT", "/one", ""), read).status == 401
    assert ROUTER(ask("GET", "/one"), read).status == 200
    assert ROUTER(ask("PUT", "/two"), read).status == 404
    assert limits == []
    assert ROUTER(ask("PUT", "/one"), read).body == '"text"'
    assert limits == [10]


def test_a_body_that_cannot_be_read_is_the_answer() -> None:
    """As a problem."""

    def read(_limit_bytes: int) -> bytes:
        raise malformed("bad_body", "The body cannot be decoded.")

    assert ROUTER(ask("PUT", "/one"), read).status == 400


def test_a_refusal_is_logged_with_its_reason_and_the_ids_of_the_token(caplog: pytest.LogCaptureFixture) -> None:
    """What the ids name is no secret; the token itself is."""
    ROUTER(ask("GET", "/one", ""))
    (line,) = caplog.records
    told = {name: vars(line)[name] for name in ("status", "reason", "kid", "jti")}
    assert (line.getMessage(), told) == (
        "sample refused",
        {"status": 401, "reason": "no_token", "kid": "k", "jti": "j"},
    )


@pytest.mark.parametrize(("path", "expected"), [("/one", True), ("/files/x", True), ("/two", False), ("/ones", False)])
def test_a_router_tells_whether_a_path_is_its_own(path: str, *, expected: bool) -> None:
    """By any method: what is not allowed is its business, too."""
    assert ROUTER.takes(path) is expected
