"""What changes, as server-sent events: each answer waits for the next changes, and ends with them.

Clients of such streams come back by themselves and say what they had last, so that nothing is missed in between. An
answer without an end would need a second way through the server, with its own bounds for clients that do not read.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from functions.web.messages import Reply, Request
from infra.host.web.door import Answer, Door

if TYPE_CHECKING:
    from infra.host.web.entrance import Gate

PATH = "/api/v1/stream"
KEPT = 1000
"""Who was away for more than so many changes is told to begin again."""
WAIT_SECONDS = 25.0  # less than what proxies usually wait for an answer
RETRY_MILLISECONDS = 200
MAX_DIGITS = 20
GATHER_SECONDS = 0.2  # a thousand devices that report at once are one answer

BEGIN_AGAIN = "begin_again"


@dataclass(frozen=True, slots=True)
class FleetChange:
    """One event of the stream."""

    number: int
    kind: str
    data: Mapping[str, object]

    def __str__(self) -> str:
        return f"id: {self.number}\nevent: {self.kind}\ndata: {json.dumps(self.data)}\n\n"


class Changes:
    """The last changes. `tell` may be called from any thread, all else belongs to the event loop."""

    def __init__(self, now: Callable[[], int]) -> None:
        """Numbers begin at `now`, so that a client of the process before this one is told to begin again."""
        self._numbers = itertools.count(now())
        self._kept: deque[FleetChange] = deque([FleetChange(next(self._numbers), BEGIN_AGAIN, {})], maxlen=KEPT)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._waiting: list[Callable[[], None]] = []
        self._is_due = False

    def start(self) -> None:
        """Begin to answer, on the running loop."""
        self._loop = asyncio.get_running_loop()

    def tell(self, kind: str, data: Mapping[str, object]) -> None:
        """Something has changed."""
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._add, kind, data)

    def since(self, last: int | None) -> list[FleetChange]:
        """What came after the change `last`; where that is not kept any more, or None, what says so."""
        newest, oldest = self._kept[-1], self._kept[0]
        if last is None or last > newest.number or last < oldest.number:
            return [FleetChange(newest.number, BEGIN_AGAIN, {})]
        return [one for one in self._kept if one.number > last]

    def wait(self, call: Callable[[], None]) -> None:
        """Have `call` called at the next change."""
        self._waiting.append(call)

    def _add(self, kind: str, data: Mapping[str, object]) -> None:
        self._kept.append(FleetChange(next(self._numbers), kind, data))
        if not self._is_due and self._loop is not None:
            self._is_due = True
            self._loop.call_later(GATHER_SECONDS, self._wake)

    def _wake(self) -> None:
        self._is_due = False
        waiting, self._waiting = self._waiting, []
        for call in waiting:
            call()


class Stream:
    """The one path of it."""

    def __init__(self, changes: Changes, gate: Gate) -> None:
        self._changes, self._gate = changes, gate

    def takes(self, path: str) -> bool:
        """Whether a request for this path is for the stream."""
        return path == PATH

    def open(self, request: Request) -> Door:
        """See `Site.open`."""
        self._gate.admit(request)
        return Door(self._enter)

    def close(self) -> None:
        """Nothing is kept."""

    def _enter(self, request: Request, answer: Answer) -> None:
        text = request.header("last-event-id")
        last = int(text) if text.isascii() and text.isdigit() and len(text) <= MAX_DIGITS else None
        found = self._changes.since(last)
        if found:
            answer(_reply(found))
            return
        is_over = False

        def end() -> None:
            nonlocal is_over
            if not is_over:
                is_over = True
                timer.cancel()
                answer(_reply(self._changes.since(last)))

        timer = asyncio.get_running_loop().call_later(WAIT_SECONDS, end)
        self._changes.wait(end)


def _reply(changes: list[FleetChange]) -> Reply:
    body = f"retry: {RETRY_MILLISECONDS}\n\n" + "".join(map(str, changes))
    return Reply(HTTPStatus.OK, {"Cache-Control": "no-store"}, body, "text/event-stream")
