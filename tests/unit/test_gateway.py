"""The host's way to the handler: the event it builds, and its bounds in threads, time, requests and memory."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import AsyncIterator, Callable, Sized
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from aws_lambda_powertools.utilities.data_classes import APIGatewayProxyEventV2
from hypothesis import given
from hypothesis import strategies as st

from functions.telemetry import logger
from functions.web.messages import Request, unauthorised
from infra.host import gateway as module
from infra.host.body import Refusal
from infra.host.gateway import Daemons, Gateway, RateLimit, api_gateway_event
from infra.host.web import entrance
from infra.host.web.entrance import Entrance, Gate
from infra.host.web.origin import Proxies
from tests.hosts import on_uvloop, until
from tests.leftovers import threads
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

ONE = "one"
HOME, ABROAD = "192.0.2.1", "2001:db8::7"
OK = {"statusCode": 200, "headers": {"Content-Type": "application/json"}, "body": "{}", "isBase64Encoded": False}


class Clock:
    """Time that a test moves."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@dataclass
class Answered:
    """What a client of the gateway gets."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def problem(self) -> Any:  # noqa: ANN401 - JSON
        """The body of an RFC 9457 problem."""
        assert self.headers["content-type"] == "application/problem+json"
        document = json.loads(self.body)
        assert document["status"] == self.status
        return document


def scope(path: str = "/manifest", token: str | None = ONE, *, address: str = HOME, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - of a scope
    """A request as uvicorn tells of it."""
    headers = [(b"authorization", f"Bearer {token}".encode())] if token else []
    known = {"type": "http", "method": "GET", "path": path, "query_string": b"", "http_version": "1.1"}
    return {**known, "headers": headers, "client": (address, 50_000), **changes}


async def ask(gateway: Gateway, request: dict[str, Any] | None = None) -> Answered:
    """One request's answer, which comes in two messages."""
    sent: list[Any] = []

    async def send(message: Any) -> None:  # noqa: ANN401 - ASGI's message
        sent.append(message)

    await gateway(request or scope(), nothing_more, send)
    start, body = sent
    return Answered(start["status"], {n.decode(): v.decode() for n, v in start["headers"]}, body["body"])


async def nothing_more() -> Any:  # noqa: ANN401 - ASGI's message
    """The end of a request without a body, as often as it is asked for."""
    return {"type": "http.request", "body": b"", "more_body": False}


@asynccontextmanager
async def opened(
    handler: Callable[..., dict[str, Any]],
    per_minute: int = 0,
    **more: Any,  # noqa: ANN401 - of Gateway
) -> AsyncIterator[Gateway]:
    """A gateway whose threads end with it."""
    gateway = Gateway(handler, requests_per_minute=per_minute, **more)
    try:
        yield gateway
    finally:
        await gateway.close()


def gate_of(**more: Any) -> Gate:  # noqa: ANN401 - any field of Gate
    """A gate for tokens that begin with `good`; a key of ours once signed those that begin with `expired`."""

    def check(request: Request) -> None:
        if not request.bearer.startswith("good"):
            old = request.bearer.startswith("expired")
            raise unauthorised("expired" if old else "malformed", kid="k" if old else "", jti="j" if old else "")

    return Gate(Entrance(), check, **more)


# The rate.


@given(
    per_minute=st.integers(1, 200),
    now=st.floats(0, 1e7),
    steps=st.lists(st.floats(0, 2), max_size=30),
)
def test_whoever_asks_as_often_as_it_can_gets_the_share_and_what_comes_back(
    per_minute: int, now: float, steps: list[float]
) -> None:
    """The whole share at once, then as much of it as of a minute has passed, and never more."""
    clock = Clock(now)
    limit = RateLimit(per_minute, clock=clock)
    passed = 0
    for step in (0.0, *steps):
        clock.now += step
        while not limit.wait_seconds(b"k"):
            limit.take(b"k")
            passed += 1
    fair = per_minute * (1 + (clock.now - now) / 60)
    assert fair - 1.01 <= passed <= fair + 0.01


@pytest.mark.parametrize("per_minute", [1, 7, 11, 30, 60, 120, 999])
@pytest.mark.parametrize("now", [0.0, 12_345.678, 1e7])
def test_a_share_is_whole_at_once_and_comes_back_piece_by_piece(per_minute: int, now: float) -> None:
    """Exactly so many, then one for each interval, and after the wait that was named."""
    clock = Clock(now)
    limit = RateLimit(per_minute, clock=clock)
    for _ in range(per_minute):
        assert limit.wait_seconds(b"k") == 0
        limit.take(b"k")
    wait_seconds = limit.wait_seconds(b"k")
    assert wait_seconds == pytest.approx(60 / per_minute, abs=2e-4)
    assert limit.wait_seconds(b"other") == 0
    clock.now += wait_seconds * 0.9
    assert limit.wait_seconds(b"k") > 0
    clock.now += wait_seconds * 0.1
    assert limit.wait_seconds(b"k") == 0
    limit.take(b"k")
    assert limit.wait_seconds(b"k") > 0
    clock.now += 60
    for _ in range(per_minute):
        assert limit.wait_seconds(b"k") == 0
        limit.take(b"k")
    assert limit.wait_seconds(b"k") > 0


def shares(limit: RateLimit) -> int:
    """How many are left now; they are used up."""
    count = 0
    while not limit.wait_seconds(b"k"):
        limit.take(b"k")
        count += 1
    return count


def test_a_share_may_be_wider_than_a_minutes_but_comes_back_no_faster() -> None:
    """Pages add up; a shorter list later takes nothing back; there is an end to it."""
    clock = Clock()
    limit = RateLimit(60, clock=clock)
    limit.widen(b"k", 10, further=False)
    assert shares(limit) == 60
    limit.widen(b"k", 100, further=False)
    limit.widen(b"k", 50, further=True)
    assert shares(limit) == 90
    clock.now += 30
    assert shares(limit) == 30
    limit.widen(b"k", 20, further=False)
    assert shares(limit) == 0
    clock.now += 1000
    assert shares(limit) == 150
    for _ in range(3):
        limit.widen(b"k", module.MAX_AT_ONCE // 2, further=True)
    clock.now += 2 * module.MAX_AT_ONCE
    assert shares(limit) == module.MAX_AT_ONCE


@on_uvloop
async def test_what_a_manifest_lists_may_be_fetched_twice() -> None:
    """At once, by the one who was told; its pages count together."""

    def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
        pages = {"/manifest": {"statusCode": 200, "headers": {"Bucketbell-Listed": "10"}, "body": "{}"}}
        return pages.get(event["rawPath"], OK)

    async with opened(handler, per_minute=3) as gateway:
        assert (await ask(gateway, scope("/manifest"))).status == 200
        assert (await ask(gateway, scope("/manifest", query_string=b"next=x"))).status == 200
        statuses = [(await ask(gateway, scope("/assets/a"))).status for _ in range(43)]
        assert statuses == [200] * 42 + [429]
        assert [(await ask(gateway, scope("/assets/a", token="b"))).status for _ in range(4)] == [200, 200, 200, 429]


def test_zero_is_no_limit() -> None:
    """However many at once."""
    limit = RateLimit(0, clock=Clock())
    for _ in range(1000):
        assert limit.wait_seconds(b"k") == 0
        limit.take(b"k")


def test_keys_are_bounded_and_the_one_not_heard_of_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers by the million take no memory."""
    monkeypatch.setattr(module, "MAX_CALLERS", 3)
    limit = RateLimit(1, clock=Clock())
    for key in (b"a", b"b", b"c", b"a", b"d"):
        limit.take(key)
    assert [key for key in (b"a", b"b", b"c", b"d") if limit.wait_seconds(key)] == [b"a", b"c", b"d"]


@on_uvloop
async def test_a_token_beyond_its_share_gets_429_and_the_others_do_not() -> None:
    """With the seconds to wait, as a problem; the handler is not asked."""
    calls: list[str] = []

    def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
        calls.append(event["headers"]["authorization"])
        return OK

    async with opened(handler, per_minute=3) as gateway:
        assert [(await ask(gateway)).status for _ in range(4)] == [200, 200, 200, 429]
        refused = await ask(gateway)
        assert refused.headers["retry-after"] in {"20", "21"}
        assert refused.problem["title"] == "Too Many Requests"
        assert (await ask(gateway, scope(token="b"))).status == 200
        assert len(calls) == 4


@pytest.mark.parametrize("spelling", ["bearer one", "BEARER   one", "  Bearer one  "])
@on_uvloop
async def test_a_token_has_one_share_however_the_header_is_written(spelling: str) -> None:
    """In another case, with more blanks."""
    async with opened(lambda *_: OK, per_minute=1) as gateway:
        assert (await ask(gateway)).status == 200
        assert (await ask(gateway, scope(headers=[(b"authorization", spelling.encode())]))).status == 429


@on_uvloop
async def test_without_a_token_the_address_has_a_share() -> None:
    """And leaves that of tokens from there alone."""
    async with opened(lambda *_: OK, per_minute=1) as gateway:
        assert [(await ask(gateway, scope(token=None))).status for _ in range(2)] == [200, 429]
        assert (await ask(gateway, scope(token=None, address=ABROAD))).status == 200
        assert (await ask(gateway)).status == 200


@on_uvloop
async def test_wrong_tokens_never_shut_out_right_ones() -> None:
    """Behind a TLS proxy all have one address; who was never here before is let in as well."""
    async with opened(lambda *_: OK, gate=gate_of()) as gateway:
        for number in range(200):
            assert (await ask(gateway, scope(token=f"wrong-{number}"))).status == 401
            if number % 10 == 0:
                assert (await ask(gateway, scope(token=f"good-{number}"))).status == 200
        assert (await ask(gateway, scope(token="good-0"))).status == 200


@on_uvloop
async def test_nobody_without_a_good_token_costs_a_thread_or_a_share() -> None:
    """The handler is not asked, no body is read, and what is there for good tokens stays theirs."""
    calls: list[str] = []

    def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
        calls.append(event["headers"]["authorization"])
        return OK

    async with opened(handler, per_minute=1, gate=gate_of(), max_body_bytes=10) as gateway:
        for token in (None, "wrong", "other"):
            for method in ("GET", "PUT"):
                refused = await ask(gateway, scope(token=token, method=method))
                assert (refused.status, refused.problem["title"]) == (401, "Unauthorized")
                assert "www-authenticate" in refused.headers
        assert calls == []
        assert [(await ask(gateway, scope(token="good"))).status for _ in range(2)] == [200, 429]


@on_uvloop
async def test_what_needs_no_token_is_the_addresss_share_whatever_word_is_made_up() -> None:
    """A made-up bearer word brings no share of its own, and what is public lets nobody in."""
    gate = gate_of()
    async with opened(lambda *_: OK, per_minute=3, gate=gate, public=lambda *_: dict(OK)) as gateway:
        answers = [(await ask(gateway, scope(token=f"word-{number}"))).status for number in range(5)]
        assert answers == [200] * 3 + [429] * 2
        assert (await ask(gateway, scope(token="word-0", address=ABROAD))).status == 200
    async with opened(lambda *_: OK, gate=gate) as gateway:
        assert (await ask(gateway, scope(token="word-0"))).status == 401


@on_uvloop
async def test_strangers_are_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By why; of whom a key of ours vouches for, the log tells once."""
    seen: list[str] = []
    async with opened(lambda *_: OK, gate=gate_of(on_stranger=seen.append)) as gateway:
        for token in (None, "wrong", "wrong", "expired", "expired", "good"):
            await ask(gateway, scope(token=token))
    assert seen == ["no_token", *["bad_token"] * 4]
    assert [record.message for record in caplog.records if record.name == logger.name] == ["a token is not in force"]


@on_uvloop
async def test_a_trusted_proxys_clients_have_shares_of_their_own() -> None:
    """By the address that the proxy names; what somebody else says of itself is not believed."""
    proxies = Proxies([HOME])
    async with opened(lambda *_: OK, per_minute=1, public=lambda *_: dict(OK), proxies=proxies) as gateway:

        async def status(client: str, peer: str = HOME) -> int:
            named = [(b"x-forwarded-for", client.encode())]
            return (await ask(gateway, scope(token=None, address=peer, headers=named))).status

        assert [await status("198.51.100.1"), await status("198.51.100.2")] == [200, 200]
        assert await status("198.51.100.1") == 429
        assert [await status(f"203.0.113.{number}", ABROAD) for number in range(2)] == [200, 429]


@on_uvloop
async def test_memory_does_not_grow_with_strangers() -> None:
    """No more is kept than a fixed number, neither of those who fail nor of those who are let in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "MAX_CALLERS", 5)
        patch.setattr(entrance, "MAX_ADDRESSES", 5)
        gate = gate_of()
        async with opened(lambda *_: OK, per_minute=10, gate=gate) as gateway:
            for number in range(20):
                await ask(gateway, scope(token=f"good{number}", address=f"192.0.2.{number}"))
                await ask(gateway, scope(token=f"{number}", address=f"192.0.2.{number}"))
            kept: list[Sized] = [gateway._requests._whole_at, gate.entrance._failures]  # noqa: SLF001 - nothing else shows it
            assert [len(one) for one in kept] == [5, 5]
            assert gateway._waiting == 0  # noqa: SLF001 - as above


# Threads and time.


@on_uvloop
async def test_a_slow_handler_is_503_in_time_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the deadline, with Retry-After; what has not begun by then never begins."""
    monkeypatch.setattr(module, "HANDLER_SECONDS", 1.0)
    monkeypatch.setattr(module, "THREADS", 2)
    go = threading.Event()
    begun: list[str] = []

    def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
        begun.append(event["rawPath"])
        if event["rawPath"] == "/assets/slow":
            go.wait(PATIENCE_SECONDS)
        return OK

    async with opened(handler) as gateway:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        slow, quick = await asyncio.gather(ask(gateway, scope("/assets/slow")), ask(gateway))
        assert 0.99 < loop.time() - began_at < 1.0 + SLACK_SECONDS
        assert quick.status == 200
        assert (slow.status, slow.headers["retry-after"]) == (503, "1")
        assert slow.problem["title"] == "Service Unavailable"
        both = await asyncio.gather(ask(gateway, scope("/assets/slow")), ask(gateway, scope("/assets/late")))
        assert [one.status for one in both] == [503, 503]
        go.set()
        assert (await ask(gateway)).status == 200
        assert "/assets/late" not in begun


@on_uvloop
async def test_threads_and_waiting_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many handlers at a time; beyond those that may wait, 503 at once."""
    monkeypatch.setattr(module, "THREADS", 3)
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    go = threading.Event()
    lock = threading.Lock()
    running, most = 0, 0

    def handler(*_: object) -> dict[str, Any]:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(PATIENCE_SECONDS)
        with lock:
            running -= 1
        return OK

    before = threads()
    async with opened(handler) as gateway:
        asked = [asyncio.create_task(ask(gateway, scope(f"/assets/{number}"))) for number in range(10)]
        await until(lambda: running == 3)
        turned_away = await ask(gateway)
        assert (turned_away.status, turned_away.headers["retry-after"]) == (503, "1")
        go.set()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [200] * 10
        assert most == 3
        assert (await ask(gateway)).status == 200
    await until(lambda: threads() <= before)


@on_uvloop
async def test_who_asks_the_same_at_once_shares_an_answer_that_is_not_older_than_the_question() -> None:
    """Ten ask while two calls are under way: they wait for one more call together. Another token has one of its own."""
    calls: list[str] = []
    go = threading.Event()

    def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
        calls.append(event["headers"]["authorization"])
        number = len(calls)
        go.wait(PATIENCE_SECONDS)
        return {"statusCode": 200, "headers": {}, "body": str(number)}

    async with opened(handler, shares=True) as gateway:
        early = []
        for number in (1, 2):
            early.append(asyncio.create_task(ask(gateway)))
            await until(lambda number=number: len(calls) == number)  # type: ignore[misc]  # the default binds it
        others = [asyncio.create_task(ask(gateway)) for _ in range(10)]
        stranger = asyncio.create_task(ask(gateway, scope(token="two")))
        await until(lambda: len(calls) == 3)
        others[0].cancel()  # a client that goes away takes nothing from the others
        go.set()
        answers = await asyncio.gather(*early, stranger, *others[1:])
        assert [answer.body for answer in answers] == [b"1", b"2", b"3", *[b"4"] * 9]
        assert (await ask(gateway)).body == b"5", "nothing is kept"


@on_uvloop
async def test_who_asks_in_the_same_moment_shares_the_first_call() -> None:
    """Nobody has to wait for another's call to come along."""
    calls: list[object] = []

    def handler(*_: object) -> dict[str, Any]:
        calls.append(None)
        return OK

    async with opened(handler, shares=True) as gateway:
        answers = await asyncio.gather(*(ask(gateway) for _ in range(5)))
    assert ([answer.status for answer in answers], len(calls)) == ([200] * 5, 1)


@on_uvloop
async def test_who_waits_behind_a_failure_shares_it() -> None:
    """A store that hangs is not asked again for those who have waited for it already."""
    calls = 0
    go = threading.Event()

    def handler(*_: object) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        go.wait(PATIENCE_SECONDS)
        return {"statusCode": 503, "headers": {}, "body": ""}

    async with opened(handler, shares=True) as gateway:
        asked = []
        for number in (1, 2, 2, 2, 2):
            asked.append(asyncio.create_task(ask(gateway)))
            await until(lambda number=number: calls == number)  # type: ignore[misc]  # the default binds it
        await asyncio.sleep(0)  # the last one waits too
        go.set()
        assert [answer.status for answer in await asyncio.gather(*asked)] == [503] * 5
        assert calls == 2


@on_uvloop
async def test_a_thread_serves_one_request_after_the_other() -> None:
    """What is made once for a thread is not made for each request."""
    names: list[str] = []

    def handler(*_: object) -> dict[str, Any]:
        names.append(threading.current_thread().name)
        return OK

    async with opened(handler) as gateway:
        for _ in range(5):
            await ask(gateway)
            await until(lambda: gateway._pool._idle._value == 1)  # noqa: SLF001 - nothing else shows that it is back
    assert set(names) == {"gateway-1"}


@pytest.mark.parametrize("error", [RuntimeError("a secret"), TimeoutError("a secret")])
@on_uvloop
async def test_a_handler_that_fails_is_503_and_tells_nothing(error: Exception) -> None:
    """As a problem; the next request is answered."""
    errors = [error]

    def handler(*_: object) -> dict[str, Any]:
        if errors:
            raise errors.pop()
        return OK

    async with opened(handler) as gateway:
        answer = await ask(gateway)
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "secret" not in str(answer.problem)
        assert (await ask(gateway)).status == 200


@on_uvloop
async def test_what_hangs_does_not_hold_up_the_end() -> None:
    """`close` waits for nobody, and no thread of it keeps the process alive."""
    go = threading.Event()
    before = threads()
    async with opened(lambda *_: (go.wait(PATIENCE_SECONDS), OK)[1]) as gateway:
        hanging = asyncio.create_task(ask(gateway))
        await until(lambda: threads() - before)
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        await gateway.close()
        assert loop.time() - began_at < SLACK_SECONDS
        assert [(thread.name, thread.daemon) for thread in threads() - before] == [("gateway-1", True)]
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
    go.set()
    await until(lambda: threads() <= before)


def test_daemons_run_what_they_are_given_in_any_order_of_need() -> None:
    """Results and exceptions come back; there are never more threads than allowed."""
    before = threads()
    pool = Daemons(4)
    numbers = list(range(200))
    random.Random(7).shuffle(numbers)  # noqa: S311 - protects nothing
    futures = [pool.submit(lambda n: n * n // min(n % 7, 1), number) for number in numbers]
    for number, future in zip(numbers, futures, strict=True):
        if number % 7:
            assert future.result(5) == number * number
        else:
            assert isinstance(future.exception(5), ZeroDivisionError)
    assert 1 <= len(threads() - before) <= 4
    pool.shutdown()


# The event.


def test_the_event_is_what_an_http_api_sends() -> None:
    """Path decoded, query as it came, header names in lower case, repeated ones joined."""
    made = scope(
        "/assets/a b%2e/ü.bin",
        query_string=b"version_id=%2B&x=1&x=2",
        method="HEAD",
        headers=[(b"accept", b"a"), (b"accept", b"b"), (b"x", b"\xff"), (b"user-agent", b"esp")],
    )
    event = APIGatewayProxyEventV2(json.loads(json.dumps(api_gateway_event(made))))
    assert (event.version, event.route_key, event.is_base64_encoded) == ("2.0", "$default", False)
    assert (event.path, event.raw_query_string) == ("/assets/a b%2e/ü.bin", "version_id=%2B&x=1&x=2")
    assert event.headers == {"accept": "a,b", "x": "\xff", "user-agent": "esp"}
    http = event.request_context.http
    assert (http.method, http.source_ip, http.protocol, http.user_agent) == ("HEAD", HOME, "HTTP/1.1", "esp")
    assert event.http_method == "HEAD"
    assert event.request_context.stage == "$default"


def test_each_event_has_an_id_of_its_own_and_the_client_may_be_nobody() -> None:
    """A Unix socket has no address."""
    events = [api_gateway_event(scope(client=None)) for _ in range(2)]
    assert len({event["requestContext"]["requestId"] for event in events}) == 2
    assert [event["requestContext"]["http"]["sourceIp"] for event in events] == ["", ""]


@pytest.mark.parametrize(
    ("answer", "headers", "body"),
    [
        ({**OK}, {"content-type": "application/json", "content-length": "2"}, b"{}"),
        ({**OK, "body": "\u4e16"}, {"content-type": "application/json", "content-length": "3"}, "\u4e16".encode()),
        (
            {"statusCode": 307, "headers": {"Location": "http://s/x"}},
            {"location": "http://s/x", "content-length": "0"},
            b"",
        ),
        ({"statusCode": 200, "headers": {"Content-Length": "77"}, "body": ""}, {"content-length": "77"}, b""),
        ({"statusCode": 304, "headers": {"ETag": '"e"'}, "body": None}, {"etag": '"e"'}, b""),
        (
            {"statusCode": 200, "headers": {}, "body": "AP8=", "isBase64Encoded": True},
            {"content-length": "2"},
            b"\0\xff",
        ),
    ],
)
@on_uvloop
async def test_an_answer_becomes_http(answer: dict[str, Any], headers: dict[str, str], body: bytes) -> None:
    """Its length is added where it names none, but not to a 304, whose length is another answer's."""
    async with opened(lambda *_: answer) as gateway:
        got = await ask(gateway)
    assert (got.status, got.headers, got.body) == (answer["statusCode"], headers, body)


# Bodies.


async def sent(
    gateway: Gateway, method: str, *parts: bytes, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> list[Any]:
    """Send a body in parts; return what was asked for of it: how many messages."""
    left = list(parts)
    asked: list[Any] = []

    async def receive() -> Any:  # noqa: ANN401 - ASGI's message
        message = {"type": "http.request", "body": left.pop(0) if left else b"", "more_body": bool(left)}
        asked.append(message)
        return message

    async def send(_message: object) -> None:
        """Nobody looks."""

    await gateway(scope(method=method, headers=list(headers)), receive, send)
    return asked


@on_uvloop
async def test_a_body_reaches_the_handler_as_aws_sends_it() -> None:
    """Text as it is, other bytes in base64; a GET has none, however much is sent."""
    events: list[dict[str, Any]] = []

    def handler(event: dict[str, Any], _context: object) -> dict[str, Any]:
        events.append(event)
        return OK

    gateway = Gateway(handler, requests_per_minute=0, max_body_bytes=10)
    try:
        await sent(gateway, "PUT", "Gr\u00fc".encode()[:3], "Gr\u00fc\u00df".encode()[3:])
        await sent(gateway, "POST", b"\xff\x00")
        await sent(gateway, "DELETE")
        assert await sent(gateway, "GET", b"x") == []
        told = [APIGatewayProxyEventV2(json.loads(json.dumps(event))) for event in events]
        assert [one.decoded_body for one in told[:1]] == ["Gr\u00fc\u00df"]
        assert [(one.body, one.is_base64_encoded) for one in told[1:3]] == [("/wA=", True), ("", False)]
        assert told[3].body is None
    finally:
        await gateway.close()


@pytest.mark.parametrize("headers", [((b"content-length", b"1000000000"),), ()], ids=["announced", "in parts"])
@on_uvloop
async def test_a_body_beyond_the_limit_is_refused_before_the_handler(headers: tuple[tuple[bytes, bytes], ...]) -> None:
    """413; of one that is announced nothing is waited for but the rest of what is under way."""
    gateway = Gateway(lambda *_: pytest.fail("called"), requests_per_minute=0, max_body_bytes=10)
    try:
        with pytest.raises(Refusal) as refused:
            await sent(gateway, "PUT", *[b"x" * 6] * 3, headers=headers)
        assert refused.value.status == 413
    finally:
        await gateway.close()


@on_uvloop
async def test_without_a_limit_no_body_is_read() -> None:
    """The devices' gateway never asks for one."""
    gateway = Gateway(lambda *_: OK, requests_per_minute=0)
    try:
        assert await sent(gateway, "PUT", b"x") == []
    finally:
        await gateway.close()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/configs/x", True),
        ("/assets/x", True),
        ("/assets", True),
        ("/manifest", True),
        ("/", False),
        ("/configs", False),
        ("/events", False),
        ("//assets/x", False),
        ("/metrics", False),
        ("assets/x", False),
    ],
)
def test_only_paths_of_files_are_the_handlers(path: str, *, expected: bool) -> None:
    """The rest is the host's own."""
    assert Gateway(lambda *_: OK, requests_per_minute=0).takes(path) is expected
