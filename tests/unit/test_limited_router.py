"""A router's bounds on the host: who is let in, how often, in how many threads, and for how long."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Callable, Sized
from contextlib import asynccontextmanager
from http import HTTPStatus
from typing import Any

import pytest

from functions.devices.manifest import LISTED
from functions.telemetry import logger
from functions.web.messages import Problem, Reply, Request, unauthorised
from functions.web.router import Route, Router, reply_to, unforeseen
from infra.host.web import entrance, rate_limit
from infra.host.web import limited_router as module
from infra.host.web.door import door_for
from infra.host.web.entrance import Entrance, Gate
from infra.host.web.limited_router import LimitedRouter
from tests.hosts import on_uvloop, until
from tests.leftovers import threads
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

HOME, ABROAD = "192.0.2.1", "2001:db8::7"
ONE = "one"
OK = Reply(HTTPStatus.OK, {}, "{}")


def asked(path: str = "/manifest", token: str | None = ONE, *, address: str = HOME, **changes: Any) -> Request:  # noqa: ANN401 - of a request
    """A request as the HTTP server makes it of what it reads."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    return Request("GET", path, headers=headers, address=address)._replace(**changes)


async def ask(limited: LimitedRouter[Any], request: Request | None = None) -> Reply:
    """One request's reply."""
    request = request or asked()
    future: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    try:
        door_for(request, limited).enter(request, lambda reply: None if future.done() else future.set_result(reply))
    except Problem as problem:
        return reply_to(problem)
    return await future


def problem_of(reply: Reply) -> Any:  # noqa: ANN401 - JSON
    """The body of an RFC 9457 problem."""
    assert reply.content_type == "application/problem+json"
    document = json.loads(reply.body)
    assert document["status"] == reply.status
    return document


def router_of(
    answer: Callable[[Request], Reply], *, is_public: bool = False, explain: Callable[[Exception], Problem] = unforeseen
) -> Router[None]:
    """A router that answers so at any path, and reads the body of a PUT."""

    def called(request: Request, _caller: None) -> Reply:
        return answer(request)

    routes: tuple[Route[None], ...] = (
        Route(("GET",), "/*", called, is_public=is_public),
        Route(("PUT",), "/*", called, max_body_bytes=10),
    )
    return Router("sample", routes, admit=lambda _: None, hint="", explain=explain)


def gate_of(**more: Any) -> Gate:  # noqa: ANN401 - any field of Gate
    """A gate for tokens that begin with `good`; a key of ours once signed those that begin with `expired`."""

    def check(request: Request) -> None:
        if not request.bearer.startswith("good"):
            old = request.bearer.startswith("expired")
            raise unauthorised("expired" if old else "malformed", kid="k" if old else "", jti="j" if old else "")

    return Gate(Entrance(), check, **more)


@asynccontextmanager
async def opened(
    answer: Callable[[Request], Reply] | Router[Any],
    per_minute: int = 0,
    *,
    gate: Gate | None = None,
    **more: bool,
) -> AsyncIterator[LimitedRouter[Any]]:
    """A router whose threads end with it; without a gate, everybody is let in."""
    router = answer if isinstance(answer, Router) else router_of(answer)
    everybody = Gate(Entrance(), lambda _: None)
    limited = LimitedRouter(router, gate or everybody, requests_per_minute=per_minute, **more)
    try:
        yield limited
    finally:
        limited.close()


# The rate.


@on_uvloop
async def test_what_a_manifest_lists_may_be_fetched_twice() -> None:
    """At once, by the one who was told; its pages count together."""

    def answer(request: Request) -> Reply:
        return Reply(HTTPStatus.OK, {LISTED: "10"}, "{}") if request.path == "/manifest" else OK

    async with opened(answer, per_minute=3) as limited:
        assert (await ask(limited, asked("/manifest"))).status == 200
        assert (await ask(limited, asked("/manifest", query="next=x"))).status == 200
        statuses = [(await ask(limited, asked("/assets/a"))).status for _ in range(43)]
        assert statuses == [200] * 42 + [429]
        assert [(await ask(limited, asked("/assets/a", "b"))).status for _ in range(4)] == [200, 200, 200, 429]


@on_uvloop
async def test_a_token_beyond_its_share_gets_429_and_the_others_do_not() -> None:
    """With the seconds to wait, as a problem; the router is not asked."""
    calls: list[str] = []

    def answer(request: Request) -> Reply:
        calls.append(request.bearer)
        return OK

    async with opened(answer, per_minute=3) as limited:
        assert [(await ask(limited)).status for _ in range(4)] == [200, 200, 200, 429]
        refused = await ask(limited)
        assert refused.headers["Retry-After"] in {"20", "21"}
        assert problem_of(refused)["title"] == "Too Many Requests"
        assert (await ask(limited, asked(token="b"))).status == 200
        assert len(calls) == 4


@pytest.mark.parametrize("spelling", ["bearer one", "BEARER   one", "  Bearer one  "])
@on_uvloop
async def test_a_token_has_one_share_however_the_header_is_written(spelling: str) -> None:
    """In another case, with more blanks."""
    async with opened(lambda _: OK, per_minute=1) as limited:
        assert (await ask(limited)).status == 200
        assert (await ask(limited, asked(headers={"authorization": spelling}))).status == 429


@on_uvloop
async def test_wrong_tokens_never_shut_out_right_ones() -> None:
    """Behind a TLS proxy all have one address; who was never here before is let in as well."""
    async with opened(lambda _: OK, gate=gate_of()) as limited:
        for number in range(200):
            assert (await ask(limited, asked(token=f"wrong-{number}"))).status == 401
            if number % 10 == 0:
                assert (await ask(limited, asked(token=f"good-{number}"))).status == 200
        assert (await ask(limited, asked(token="good-0"))).status == 200


@on_uvloop
async def test_nobody_without_a_good_token_costs_a_thread_or_a_share() -> None:
    """The router is not asked, no body is read, and what is there for good tokens stays theirs."""
    calls: list[Request] = []

    def answer(request: Request) -> Reply:
        calls.append(request)
        return OK

    async with opened(answer, per_minute=1, gate=gate_of()) as limited:
        for token in (None, "wrong", "other"):
            for method in ("GET", "PUT"):
                request = asked(token=token, method=method)
                refused = await ask(limited, request)
                assert (refused.status, problem_of(refused)["title"]) == (401, "Unauthorized")
                assert "WWW-Authenticate" in refused.headers
                assert door_for(request, limited).max_body_bytes == 0
        assert calls == []
        assert [(await ask(limited, asked(token="good"))).status for _ in range(2)] == [200, 429]


@on_uvloop
async def test_strangers_do_not_learn_what_there_is() -> None:
    """401 at any path and by any method; who is let in is told that there is nothing, or how to ask."""
    async with opened(router_of(lambda _: OK), gate=gate_of()) as limited:
        for request in (asked("nowhere", "bad"), asked(token="bad", method="DELETE")):
            assert (await ask(limited, request)).status == 401
        assert (await ask(limited, asked("nowhere", "good"))).status == 404
        not_allowed = await ask(limited, asked(token="good", method="DELETE"))
        assert (not_allowed.status, not_allowed.headers["Allow"]) == (405, "GET, PUT")


@on_uvloop
async def test_what_needs_no_token_is_the_addresss_share_whatever_word_is_made_up() -> None:
    """A made-up bearer word brings no share of its own, and what is public lets nobody in."""
    gate = gate_of()
    async with opened(router_of(lambda _: OK, is_public=True), per_minute=3, gate=gate) as limited:
        answers = [(await ask(limited, asked(token=f"word-{number}"))).status for number in range(5)]
        assert answers == [200] * 3 + [429] * 2
        assert [(await ask(limited, asked(token="word-0", address=ABROAD))).status] == [200]
        assert (await ask(limited, asked(token="good"))).status == 429, "a token is not asked for here"
        assert (await ask(limited, asked(token="word-0", method="PUT"))).status == 401
        assert (await ask(limited, asked(token="good", method="PUT"))).status == 200
    async with opened(lambda _: OK, gate=gate) as limited:
        assert (await ask(limited, asked(token="word-0"))).status == 401


@on_uvloop
async def test_strangers_are_counted_and_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    """By why; of whom a key of ours vouches for, the log tells once."""
    seen: list[str] = []
    async with opened(lambda _: OK, gate=gate_of(on_stranger=seen.append)) as limited:
        for token in (None, "wrong", "wrong", "expired", "expired", "good"):
            await ask(limited, asked(token=token))
    assert seen == ["no_token", *["bad_token"] * 4]
    assert [record.message for record in caplog.records if record.name == logger.name] == ["a token is not in force"]


@on_uvloop
async def test_memory_does_not_grow_with_strangers() -> None:
    """No more is kept than a fixed number, neither of those who fail nor of those who are let in."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(rate_limit, "MAX_CALLERS", 5)
        patch.setattr(entrance, "MAX_ADDRESSES", 5)
        gate = gate_of()
        async with opened(lambda _: OK, per_minute=10, gate=gate) as limited:
            for number in range(20):
                await ask(limited, asked(token=f"good{number}", address=f"192.0.2.{number}"))
                await ask(limited, asked(token=f"{number}", address=f"192.0.2.{number}"))
            kept: list[Sized] = [limited._requests._whole_at, gate.entrance._failures]  # noqa: SLF001 - nothing else shows it
            assert [len(one) for one in kept] == [5, 5]
            assert limited._waiting == 0  # noqa: SLF001 - as above


# Threads and time.


@on_uvloop
async def test_a_slow_answer_is_503_in_time_and_does_not_stop_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Within the deadline, with Retry-After; what has not begun by then never begins."""
    monkeypatch.setattr(module, "HANDLER_SECONDS", 1.0)
    monkeypatch.setattr(module, "THREADS", 2)
    go = threading.Event()
    begun: list[str] = []

    def answer(request: Request) -> Reply:
        begun.append(request.path)
        if request.path == "/assets/slow":
            go.wait(PATIENCE_SECONDS)
        return OK

    async with opened(answer) as limited:
        loop = asyncio.get_running_loop()
        began_at = loop.time()
        slow, quick = await asyncio.gather(ask(limited, asked("/assets/slow")), ask(limited))
        assert 0.99 < loop.time() - began_at < 1.0 + SLACK_SECONDS
        assert quick.status == 200
        assert (slow.status, slow.headers["Retry-After"]) == (503, "1")
        assert problem_of(slow)["title"] == "Service Unavailable"
        both = await asyncio.gather(ask(limited, asked("/assets/slow")), ask(limited, asked("/assets/late")))
        assert [one.status for one in both] == [503, 503]
        go.set()
        assert (await ask(limited)).status == 200
        assert "/assets/late" not in begun


@on_uvloop
async def test_threads_and_waiting_requests_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """At most so many at a time; beyond those that may wait, 503 at once."""
    monkeypatch.setattr(module, "THREADS", 3)
    monkeypatch.setattr(module, "MAX_WAITING", 10)
    go = threading.Event()
    lock = threading.Lock()
    running, most = 0, 0

    def answer(_: Request) -> Reply:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        go.wait(PATIENCE_SECONDS)
        with lock:
            running -= 1
        return OK

    before = threads()
    async with opened(answer) as limited:
        waiting = [asyncio.create_task(ask(limited, asked(f"/assets/{number}"))) for number in range(10)]
        await until(lambda: running == 3)
        turned_away = await ask(limited)
        assert (turned_away.status, turned_away.headers["Retry-After"]) == (503, "1")
        go.set()
        assert [reply.status for reply in await asyncio.gather(*waiting)] == [200] * 10
        assert most == 3
        assert (await ask(limited)).status == 200
    await until(lambda: threads() <= before)


@on_uvloop
async def test_identical_requests_share_an_answer_and_others_do_not() -> None:
    """The same token, path, query and conditions are the same; each of them alone makes another request."""
    calls: list[Request] = []
    lock = threading.Lock()

    def answer(request: Request) -> Reply:
        with lock:
            calls.append(request)
        return OK

    one = asked()
    others = [
        asked(token="two"),
        asked("/assets"),
        asked(query="x=1"),
        *(one._replace(headers={**one.headers, name: "x"}) for name in ("accept", "if-none-match")),
    ]
    for shares, expected in ((True, 6), (False, 10)):
        calls.clear()
        async with opened(answer, shares_answers=shares) as limited:
            replies = await asyncio.gather(*(ask(limited, request) for request in [one] * 5 + others))
        assert ([reply.status for reply in replies], len(calls)) == ([200] * 10, expected)


def shared_router(answer: Callable[[Request], Reply]) -> Router[str]:
    """A router that answers everybody alike, and knows who asks by the token."""
    route: Route[str] = Route(("GET",), "/*", lambda request, _: answer(request), same_for_all=True)
    return Router("sample", (route,), lambda request: request.bearer, "", unforeseen, lambda who: ("k", who))


@on_uvloop
async def test_a_fleet_with_a_token_each_shares_what_is_the_same_for_all() -> None:
    """Thirty devices told of one asset have the answer, for a few calls; each of them uses its own share."""
    calls: list[str] = []

    def answer(request: Request) -> Reply:
        calls.append(request.bearer)
        time.sleep(0.01)
        return OK

    fleet = [f"device-{number}" for number in range(30)]
    async with opened(shared_router(answer), per_minute=2, shares_answers=True) as limited:
        for _ in range(2):
            replies = await asyncio.gather(*(ask(limited, asked("/assets/a", token)) for token in fleet))
            assert [reply.status for reply in replies] == [200] * 30
        assert len(calls) < 10
        assert [(await ask(limited, asked("/assets/a", token))).status for token in fleet] == [429] * 30
        assert (await ask(limited, asked("/assets/a", "another"))).status == 200


@on_uvloop
async def test_each_of_a_fleet_is_refused_by_the_name_of_its_own_token(caplog: pytest.LogCaptureFixture) -> None:
    """Although the answer is shared, the log names every device."""

    def answer(_: Request) -> Reply:
        raise Problem(HTTPStatus.NOT_FOUND, "not_found", "There is no such file.")

    fleet = [f"device-{number}" for number in range(30)]
    caplog.set_level("INFO", logger=logger.name)
    async with opened(shared_router(answer), shares_answers=True) as limited:
        replies = await asyncio.gather(*(ask(limited, asked("/assets/a", token)) for token in fleet))
    assert [reply.status for reply in replies] == [404] * 30
    lines = [vars(record) for record in caplog.records if record.getMessage() == "sample refused"]
    assert sorted(line["jti"] for line in lines) == sorted(fleet)
    assert {(line["status"], line["reason"], line["kid"]) for line in lines} == {(404, "not_found", "k")}


@pytest.mark.parametrize("error", [RuntimeError("a secret"), TimeoutError("a secret")])
@pytest.mark.parametrize("where", ["answer", "explain"])
@on_uvloop
async def test_a_router_that_fails_is_500_and_tells_nothing(error: Exception, where: str) -> None:
    """As a problem, whatever fails in it; the next request is answered."""
    errors = [error]

    def answer(_: Request) -> Reply:
        if errors:
            raise errors.pop()
        return OK

    def explain(failed: Exception) -> Problem:
        if where == "explain":
            raise failed
        return unforeseen(failed)

    async with opened(router_of(answer, explain=explain)) as limited:
        reply = await ask(limited)
        assert reply.status == 500
        assert "secret" not in str(problem_of(reply))
        assert (await ask(limited)).status == 200


@on_uvloop
async def test_what_hangs_does_not_hold_up_the_end() -> None:
    """`close` waits for nobody, and no thread of it keeps the process alive."""
    go = threading.Event()
    before = threads()

    def answer(_: Request) -> Reply:
        go.wait(PATIENCE_SECONDS)
        return OK

    async with opened(answer) as limited:
        hanging = asyncio.create_task(ask(limited))
        await until(lambda: threads() - before)
        limited.close()
        assert [thread.daemon for thread in threads() - before] == [True]
        assert not hanging.done()
        go.set()
        assert (await hanging).status == 200
    await until(lambda: threads() <= before)


@on_uvloop
async def test_a_body_is_read_where_a_route_wants_one() -> None:
    """It reaches the router as it came."""
    bodies: list[bytes] = []

    def answer(request: Request) -> Reply:
        bodies.append(request.body)
        return OK

    async with opened(answer) as limited:
        wanted = [door_for(asked(method=method), limited).max_body_bytes for method in ("GET", "PUT", "DELETE")]
        assert wanted == [0, 10, 0]
        assert (await ask(limited, asked(method="PUT", body=b"\xff\x00"))).status == 200
    assert bodies == [b"\xff\x00"]
