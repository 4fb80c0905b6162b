"""Pure: what the HTTP server and the site behind it agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from functions.web.messages import Reply, Request

Answer = Callable[[Reply], None]


class Door(NamedTuple):
    """What takes a request. `enter` calls back with the reply, once, on the loop, now or later; it may raise Problem.

    `max_body_bytes` 0: the body is not read, and the answer does not wait for it.
    """

    enter: Callable[[Request, Answer], None]
    max_body_bytes: int = 0


class Site(Protocol):
    """Tells the door for a request, of which the body is not there yet."""

    def open(self, request: Request) -> Door:
        """Decide by method, path and headers. Raises Problem."""
