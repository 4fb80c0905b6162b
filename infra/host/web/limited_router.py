"""A router behind its limits: who is let in, how often, in how many threads, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from http import HTTPStatus
from typing import Any, Generic, TypeVar

from functions.devices.manifest import LISTED
from functions.telemetry import logger
from functions.web.messages import Problem, Reply, Request, unavailable
from functions.web.router import Route, Router, reply_to
from infra.host.threads import Daemons
from infra.host.web.door import Answer, Door
from infra.host.web.entrance import Gate, too_many
from infra.host.web.origin import neighbourhood
from infra.host.web.rate_limit import RateLimit
from infra.host.web.single_flight import SingleFlight

THREADS = 16
MAX_WAITING = 256
HANDLER_SECONDS = 10.0  # the router's own deadlines are shorter, but it may have to wait for a thread
BUSY_RETRY_SECONDS = 1
CATCH_UPS_AT_ONCE = 2  # a device may begin once more before its share is whole again
ASKED_BY = ("accept", "if-none-match")  # headers that a device's answer depends on, beside its token

Caller = TypeVar("Caller")
Found = Reply | Exception
"""What a route has answered, or raised: each who waits is refused by his own name."""


class LimitedRouter(Generic[Caller]):
    """Routes that wait for a store or a database. Belongs to one event loop."""

    def __init__(
        self, router: Router[Caller], gate: Gate, *, requests_per_minute: int, shares_answers: bool = False
    ) -> None:
        """`requests_per_minute` holds for each token; 0: no limit.

        `shares_answers`: identical requests at the same moment share one. Only for a router that answers them alike.
        """
        self._router = router
        self._gate = gate
        self._requests = RateLimit(requests_per_minute)
        self._mentions = RateLimit(1)
        self._pool = Daemons(THREADS)
        self._waiting = 0
        self._flights = SingleFlight[Found](_is_failure) if shares_answers else None

    def takes(self, path: str) -> bool:
        """Whether a request for this path is for the router."""
        return self._router.takes(path)

    def warm_up(self, work: Callable[[], object]) -> None:
        """Do `work` in the pool: the first request must not pay for it."""
        asyncio.get_running_loop().run_in_executor(self._pool, work)

    def close(self) -> None:
        """Take no more; what hangs is left to hang."""
        self._pool.shutdown()

    def open(self, request: Request) -> Door:
        """Let a request in, and tell what takes it. Raises Problem. No thread is asked before the token is."""
        route: Route[Caller] | Problem
        try:
            route = self._router.find(request)
        except Problem as problem:
            route = problem
        if isinstance(route, Route) and route.is_public:
            self._take(neighbourhood(request.address))
            return Door(lambda asked, answer: answer(self._router(asked)))
        share = self._admit(request)
        self._take(share)
        if isinstance(route, Problem):  # strangers do not learn what there is
            reply = self._router.refuse(route)
            return Door(lambda _asked, answer: answer(reply))
        caller = self._router.admit(request)
        return Door(lambda asked, answer: self._enter(route, asked, caller, share, answer), route.max_body_bytes)

    def _take(self, share: bytes) -> None:
        if wait_seconds := self._requests.wait_seconds(share):
            raise too_many(int(wait_seconds) + 1)
        self._requests.take(share)

    def _admit(self, request: Request) -> bytes:
        """Return whose share a request takes. Raises Problem."""
        try:
            return self._gate.admit(request)
        except Problem as problem:
            # Strangers are counted only. Whom a key of ours vouches for is no stranger, but may come again and again.
            key = problem.jti.encode()
            if problem.jti and not self._mentions.wait_seconds(key):
                self._mentions.take(key)
                details = {"reason": problem.reason, "kid": problem.kid, "jti": problem.jti}
                logger.info("a token is not in force", extra=details)
            raise

    def _enter(self, route: Route[Caller], request: Request, caller: Caller, share: bytes, answer: Answer) -> None:
        if self._waiting >= MAX_WAITING:
            raise _busy()

        def tell(found: Found) -> None:
            reply = self._refused(found, caller) if isinstance(found, Exception) else found
            if (listed := reply.headers.get(LISTED)) is not None:
                # A device is about to ask for what it was just told of: refusing that would be our own fault.
                self._requests.widen(share, CATCH_UPS_AT_ONCE * (int(listed) + 1), further="next=" in request.query)
            answer(reply)

        if self._flights is None:
            self._call(route, request, caller, tell)
        else:
            whose = "" if route.same_for_all else request.header("authorization")
            question = (whose, request.method, request.path, request.query, *map(request.header, ASKED_BY))
            self._flights.ask(question, lambda tell_all: self._call(route, request, caller, tell_all), tell)

    def _refused(self, error: Exception, caller: Caller) -> Reply:
        try:
            return self._router.refuse(error, caller)
        except Exception as unforeseen:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            return reply_to(unforeseen)

    def _call(self, route: Route[Caller], request: Request, caller: Caller, tell: Callable[[Found], None]) -> None:
        """Have a thread answer; what has not begun in time is not begun any more."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Reply] = loop.run_in_executor(self._pool, route.answer, request, caller)
        self._waiting += 1

        def too_late() -> None:
            if future.cancel():
                logger.error("a request took too long", extra={"path": request.path, "seconds": HANDLER_SECONDS})

        def done(_: asyncio.Future[Any]) -> None:
            timer.cancel()
            self._waiting -= 1
            if future.cancelled():
                tell(_busy().reply)
            elif isinstance(error := future.exception(), Exception):
                tell(error)
            else:
                tell(future.result())

        timer = loop.call_later(HANDLER_SECONDS, too_late)
        future.add_done_callback(done)


def _busy() -> Problem:
    return unavailable("busy", f"Come again in {BUSY_RETRY_SECONDS} s.", retry_after_seconds=BUSY_RETRY_SECONDS)


def _is_failure(found: Found) -> bool:
    """Whether it would fail the next one, too. What a route has not foreseen is a store that does not answer."""
    if isinstance(found, (Reply, Problem)):
        return found.status >= HTTPStatus.INTERNAL_SERVER_ERROR
    return True
