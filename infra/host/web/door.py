"""What the HTTP server and the site behind it agree on."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from functions.web.messages import Reply, Request, too_large
from functions.web.router import reply_to

Answer = Callable[[Reply], None]


class Door(NamedTuple):
    """What takes a request. `enter` calls back with the reply, once, on the loop, now or later; it may raise Problem.

    `max_body_bytes` 0: the body is not read, and the answer does not wait for it. `is_strangers`: only the body can
    say whether its sender is let in, so that of all such bodies only so much is kept.
    """

    enter: Callable[[Request, Answer], None]
    max_body_bytes: int = 0
    is_strangers: bool = False


class Paths(Protocol):
    """What takes the requests for some paths."""

    def takes(self, path: str) -> bool:
        """Whether a request for this path is for it."""

    def open(self, request: Request) -> Door:
        """See `Site.open`."""

    def close(self) -> None:
        """Take no more."""


class Site(Protocol):
    """Tells the door for a request, of which the body is not there yet."""

    def open(self, request: Request) -> Door:
        """Decide by method, path and headers. Raises Problem."""


def door_for(request: Request, site: Site) -> Door:
    """The door that `site` opens, or one that answers what went wrong. Never raises."""
    try:
        door = site.open(request)
    except Exception as error:  # noqa: BLE001 - whatever a site does, its client gets an answer
        return _refusing(reply_to(error))
    # llhttp has checked the number; Python reads none of more than 4,300 digits
    announced_bytes = int(request.header("content-length").lstrip("0") or 0) if door.max_body_bytes else 0
    return _refusing(too_large(door.max_body_bytes).reply) if announced_bytes > door.max_body_bytes else door


def _refusing(reply: Reply) -> Door:
    return Door(lambda _request, answer: answer(reply))
