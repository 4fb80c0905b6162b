"""One table of routes: a `Router` makes a reply of a request. The same on Lambda and on the host."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Generic, TypeVar, cast

from functions.telemetry import logger
from functions.web.messages import Problem, Reply, Request, internal

Caller = TypeVar("Caller")
_PLACE = re.compile(r"\\\*|\\{\w+\\}")


@dataclass(frozen=True, slots=True)
class Route(Generic[Caller]):
    """One thing that can be asked for."""

    methods: tuple[str, ...]
    path: str
    """`*` stands for anything, `{name}` for one segment."""
    answer: Callable[[Request, Caller], Reply]
    """It may raise: `Router` makes a reply of that."""
    max_body_bytes: int = 0
    """0: a body is not read."""
    is_public: bool = False
    """Nobody is asked who it is; there is no `Caller` then."""
    same_for_all: bool = False
    """Whether all callers get the same answer, so that those who ask at once may share one."""
    pattern: re.Pattern[str] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Compile the path."""
        pattern = _PLACE.sub(lambda place: ".*" if "*" in place[0] else "[^/]+", re.escape(self.path))
        object.__setattr__(self, "pattern", re.compile(pattern, re.DOTALL))


@dataclass(frozen=True, slots=True)
class Router(Generic[Caller]):
    """The routes of one subject. Thread-safe."""

    subject: str
    """For the log."""
    routes: tuple[Route[Caller], ...]
    admit: Callable[[Request], Caller]
    """Who asks. Raises Problem for a bad token."""
    hint: str
    """What to ask for, where nothing is found."""
    explain: Callable[[Exception], Problem]
    """How a failure is told to the client; it logs what a person has to know."""
    names: Callable[[Caller], tuple[str, str]] = lambda _caller: ("", "")
    """The `kid` and `jti` of a caller's token, for the log."""

    def takes(self, path: str) -> bool:
        """Whether anything is here."""
        return any(route.pattern.fullmatch(path) for route in self.routes)

    def find(self, request: Request) -> Route[Caller]:
        """The route of a request. Raises Problem: 404, or 405 with what is allowed."""
        here = [route for route in self.routes if route.pattern.fullmatch(request.path)]
        for route in here:
            if request.method in route.methods:
                return route
        if not here:
            raise Problem(HTTPStatus.NOT_FOUND, "no_route", self.hint)
        allow = ", ".join(_unique(method for route in here for method in route.methods))
        status, detail = HTTPStatus.METHOD_NOT_ALLOWED, f"The method must be one of: {allow}."
        raise Problem(status, "method_not_allowed", detail, headers={"Allow": allow})

    def __call__(self, request: Request, read_body: Callable[[int], bytes] | None = None) -> Reply:
        """Answer; never raises. `read_body` brings a body of at most so many bytes, where the request has none yet."""
        caller = cast("Caller", None)
        try:
            route = self.find(request)
            if not route.is_public:
                caller = self.admit(request)
            if route.max_body_bytes and read_body is not None:
                request = request._replace(body=read_body(route.max_body_bytes))
            return route.answer(request, caller)
        except Exception as error:  # noqa: BLE001 - everything becomes a reply
            return self.refuse(error, caller)

    def refuse(self, error: Exception, caller: Caller | None = None) -> Reply:
        """What was raised, as a reply."""
        problem = error if isinstance(error, Problem) else self.explain(error)
        kid, jti = self.names(caller) if problem is error and caller is not None else (problem.kid, problem.jti)
        details = {"status": problem.status.value, "reason": problem.reason, "kid": kid, "jti": jti}
        logger.info(f"{self.subject} refused", extra={name: value for name, value in details.items() if value})
        return problem.reply


def unforeseen(error: Exception) -> Problem:
    """A 500 for an unexpected error; the log has the trace."""
    logger.error("request failed", exc_info=error)
    return internal()


def reply_to(error: Exception) -> Reply:
    """What a client gets where an error ends its request."""
    return (error if isinstance(error, Problem) else unforeseen(error)).reply


def _unique(texts: Iterable[str]) -> Iterable[str]:
    return dict.fromkeys(texts)
