"""Lambda's edge of HTTP: an event of API Gateway becomes a request, a reply its answer."""

import base64
import json
from http import HTTPStatus

import pytest

from functions.web.api_gateway import answer_of, body_of, request_of, respond
from functions.web.messages import Problem, Reply, Request, malformed
from functions.web.router import Route, Router, unforeseen
from tests.gateway import http_event


def test_a_request_is_all_that_the_event_tells() -> None:
    """The path as AWS has decoded it, the query as the client sent it, names of headers in lower case."""
    event = http_event("/assets/a b", method="get", query="x=%2F&y", headers={"Accept": "a", "IF-None-Match": '"e"'})
    request = request_of(event)
    assert (request.method, request.path, request.query) == ("GET", "/assets/a b", "x=%2F&y")
    assert (request.headers["accept"], request.headers["if-none-match"]) == ("a", '"e"')
    assert (request.address, request.body) == ("192.0.2.1", b"")


@pytest.mark.parametrize(("path", "expected"), [("/manifest", "/manifest"), ("", "/"), ("/prod/x", "/prod/x")])
def test_the_stage_is_no_part_of_the_path(path: str, expected: str) -> None:
    """AWS puts it in front where it has a name."""
    assert request_of(http_event(path, stage="prod")).path == expected


@pytest.mark.parametrize(("body", "is_base64"), [("{}", False), (base64.b64encode(b"{}").decode(), True)])
def test_a_body_is_text_or_base64(body: str, is_base64: bool) -> None:  # noqa: FBT001 - a row of the table
    """AWS decides by the content type."""
    event = http_event("/x", method="PUT") | {"body": body, "isBase64Encoded": is_base64}
    assert body_of(event, 2) == b"{}"
    assert request_of(event).body == b"", "nobody has asked for it yet"


@pytest.mark.parametrize(
    ("body", "is_base64", "status"),
    [("x" * 11, False, 413), ("é" * 6, False, 413), ("x" * 1000, True, 413), ("=", True, 400), ("\ud800", False, 400)],
)
def test_a_body_that_cannot_be_used_is_refused(body: str, is_base64: bool, status: int) -> None:  # noqa: FBT001 - as above
    """By its size in bytes, or since it is neither text nor base64."""
    event = http_event("/x", method="PUT") | {"body": body, "isBase64Encoded": is_base64}
    with pytest.raises(Problem) as refused:
        body_of(event, 10)
    assert refused.value.status == status


def echo(request: Request, _caller: object) -> Reply:
    """The body, as it came."""
    return Reply(HTTPStatus.OK, {}, request.body.decode())


def refuse(_request: Request) -> object:
    """Nobody is let in."""
    raise malformed("nobody", "Nobody is let in.")


ROUTES: tuple[Route[object], ...] = (
    Route(("GET", "HEAD"), "/x", lambda *_: Reply(HTTPStatus.OK, {}, "{}")),
    Route(("PUT",), "/x", echo, max_body_bytes=10),
)
ROUTER: Router[object] = Router("sample", ROUTES, admit=lambda _: None, hint="", explain=unforeseen)


def test_an_event_is_answered_by_its_route() -> None:
    """With its body where the route reads one; the answer to a HEAD has none."""
    put = http_event("/x", method="PUT") | {"body": "text", "isBase64Encoded": False}
    assert respond(ROUTER, put)["body"] == "text"
    assert [respond(ROUTER, http_event("/x", method=method))["body"] for method in ("GET", "HEAD")] == ["{}", ""]
    large = http_event("/x", method="PUT") | {"body": "x" * 11, "isBase64Encoded": False}
    assert respond(ROUTER, large)["statusCode"] == 413


def test_a_strangers_body_is_not_decoded() -> None:
    """The refusal comes first."""
    closed: Router[object] = Router("sample", ROUTES, admit=refuse, hint="", explain=unforeseen)
    event = http_event("/x", method="PUT") | {"body": "=", "isBase64Encoded": True}
    assert json.loads(respond(closed, event)["body"])["detail"] == "Nobody is let in."


@pytest.mark.parametrize("event", [{}, {"requestContext": {}}, {"requestContext": None, "rawPath": "/x"}])
def test_an_event_that_no_gateway_sends_is_500(event: dict[str, object]) -> None:
    """As a problem; it does not end the function."""
    answer = respond(ROUTER, event)
    assert (answer["statusCode"], answer["headers"]["Content-Type"]) == (500, "application/problem+json")


def test_a_reply_becomes_json() -> None:
    """Bytes too; a HEAD's has no body."""
    reply = Reply(HTTPStatus.OK, {"ETag": '"e"'}, b"{}")
    answer = json.loads(json.dumps(answer_of(reply)))
    assert answer == {
        "statusCode": 200,
        "headers": {"ETag": '"e"', "Content-Type": "application/json"},
        "body": "{}",
        "isBase64Encoded": False,
    }
    assert answer_of(reply, is_head=True)["body"] == ""
