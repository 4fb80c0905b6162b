"""A request as it came over the wire, and a reply as it goes."""

from __future__ import annotations

from email.utils import parsedate_to_datetime
from http import HTTPStatus

import pytest

from functions.web.messages import Problem, Reply
from infra.host.web.wire import decode, encode

OK = HTTPStatus.OK


def sent(reply: Reply, *, is_head: bool = False, closes: bool = False) -> tuple[str, dict[str, str], bytes]:
    """Status line, headers but the date, body."""
    head, _, body = encode(reply, is_head=is_head, closes=closes).partition(b"\r\n\r\n")
    line, *fields = head.decode("latin-1").split("\r\n")
    headers = dict(field.split(": ", 1) for field in fields)
    assert len(headers) == len(fields)
    parsedate_to_datetime(headers.pop("date"))
    return line, headers, body


@pytest.mark.parametrize(
    ("reply", "headers", "body"),
    [
        (Reply(OK, {}, "{}"), {"content-type": "application/json", "content-length": "2"}, b"{}"),
        (Reply(OK, {}, "世"), {"content-type": "application/json", "content-length": "3"}, "世".encode()),
        (Reply(OK, {}, b"\0\xff", "a/b"), {"content-type": "a/b", "content-length": "2"}, b"\0\xff"),
        (
            Reply(HTTPStatus.TEMPORARY_REDIRECT, {"Location": "http://s/x"}),
            {"location": "http://s/x", "content-length": "0"},
            b"",
        ),
        (Reply(OK, {"Content-Length": "77"}), {"content-length": "77"}, b""),
        (Reply(HTTPStatus.NOT_MODIFIED, {"ETag": '"e"'}), {"etag": '"e"'}, b""),
        (Reply(HTTPStatus.NO_CONTENT, {}), {}, b""),
        (Reply(HTTPStatus.ACCEPTED, {}), {"content-length": "0"}, b""),
    ],
)
def test_an_answer_says_how_long_it_is(reply: Reply, headers: dict[str, str], body: bytes) -> None:
    """Where it names no length itself; a 304's would be another answer's, and a 204 has none (RFC 9110 §8.6)."""
    assert sent(reply) == (f"HTTP/1.1 {reply.status.value} {reply.status.phrase}", headers, body)


def test_the_answer_to_a_head_is_a_gets_without_its_body() -> None:
    """RFC 9110 §9.3.2: the same fields."""
    reply = Reply(OK, {"ETag": '"e"'}, "text")
    line, headers, _ = sent(reply)
    assert sent(reply, is_head=True) == (line, headers, b"")


def test_the_last_answer_says_so() -> None:
    """And no other."""
    assert sent(Reply(OK, {}), closes=True)[1] == {"content-length": "0", "connection": "close"}


def test_the_date_is_that_of_the_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """In HTTP's own format (RFC 9110 §5.6.7)."""
    for now, expected in ((784111777.9, b"Sun, 06 Nov 1994 08:49:37 GMT"), (784111778.0, b"08:49:38 GMT")):
        monkeypatch.setattr("time.time", lambda now=now: now)
        assert expected in encode(Reply(OK, {}))


@pytest.mark.parametrize(
    ("url", "path", "query"),
    [
        (b"/", "/", ""),
        (b"/assets/a", "/assets/a", ""),
        (b"/assets/a%20b%2e/%C3%BC.bin?version_id=%2B&x=1&x=2", "/assets/a b./ü.bin", "version_id=%2B&x=1&x=2"),
        (b"/a%252Fb", "/a%2Fb", ""),
        (b"/a+b?", "/a+b", ""),
        (b"/a?b?c", "/a", "b?c"),
        (b"/a#b?c", "/a", ""),
        (b"//a/b", "//a/b", ""),
        (b"http://bell:80/a?b", "/a", "b"),
        (b"*", "*", ""),
    ],
)
def test_a_target_is_a_path_decoded_once_and_a_query_as_it_came(url: bytes, path: str, query: str) -> None:
    """Also in the form that a proxy is asked with (RFC 9112 §3.2.2); a fragment is nobody's."""
    request = decode(b"GET", url, [], "192.0.2.1")
    assert (request.method, request.path, request.query, request.address) == ("GET", path, query, "192.0.2.1")


@pytest.mark.parametrize("url", [b"", b"bell:80", b"/\xc3\xbc", b"/?\xff", b"http://[/x"])
def test_a_target_that_is_no_path_is_refused(url: bytes) -> None:
    """400, since nothing could be found there; what is not ASCII is no address (RFC 3986)."""
    with pytest.raises(Problem) as refused:
        decode(b"GET", url, [], "")
    assert (refused.value.status, refused.value.reason) == (400, "bad_target")


def test_a_header_that_comes_twice_is_one() -> None:
    """Joined by a comma (RFC 9110 §5.3); any byte is a character."""
    fields = [(b"accept", b"a"), (b"x", b"\xff"), (b"accept", b"b")]
    assert decode(b"HEAD", b"/", fields, "").headers == {"accept": "a,b", "x": "\xff"}
