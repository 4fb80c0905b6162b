"""uvicorn's HTTP protocol with what it lacks: a deadline and a bound for headers, and a short way to the fast door."""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from typing import Any, ClassVar

from functions.telemetry import logger
from infra.host.app import FAST_DOOR, MAX_BODY_BYTES, App
from infra.host.guard import GuardedProtocol
from infra.host.web.allowance import Allowance

HEADER_SECONDS = 10.0
MAX_HEADER_BYTES = 32 * 1024  # of a request: its line and its fields; checked between two reads
MAX_UNFINISHED_BYTES = 16 << 20  # of all headers that are on their way; those that come in one read never are
FIELD_BYTES = 160  # what a field takes beside its text
CONNECTION_BYTES = 1024  # what a parser and its request take beside their fields
_ACCEPTED = b"HTTP/1.1 202 Accepted\r\n%bcontent-length: 0\r\n\r\n"


class HostProtocol(GuardedProtocol):
    """One connection. uvicorn would wait for ever for the rest of a request's header, and keep however much came.

    An event at the fast door that has arrived in full, as a store sends it, is dealt with on the spot: nothing about
    it has to wait, and a task with all that belongs to it takes longer than the rest of its way to the broker. Whatever
    is not plainly that goes to the application, which has the same door.
    """

    _unfinished: ClassVar[Allowance[HostProtocol]] = Allowance(MAX_UNFINISHED_BYTES)  # of the process
    _deadline: asyncio.TimerHandle | None = None
    _header_bytes: int | None = None  # so far, of the header that is on its way
    _arriving_bytes = 0  # in this read
    _not_header_bytes = 0  # of those, at most, what belongs to the requests before
    _event: bytearray | None = None  # the body so far, of an event at the fast door

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - uvicorn's own signature
        """A fresh connection has `HEADER_SECONDS` to say what it wants."""
        super().connection_made(transport)
        self._arm()

    def data_received(self, data: bytes) -> None:
        """So has each later request on it, from its first byte on; whatever came ended uvicorn's own patience."""
        idle = not self._in_body and self._header_bytes is None
        self._arriving_bytes = len(data)
        self._not_header_bytes = 0 if idle else len(data)
        super().data_received(data)
        if self._over:
            return
        if self._event is not None:
            self._leave_to_application()
        if self._header_bytes is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES and not self.transport.is_closing():
                self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {MAX_HEADER_BYTES} bytes of header")
            else:
                held_bytes = CONNECTION_BYTES + self._header_bytes + FIELD_BYTES * len(self.headers)
                for greedy in self._unfinished.hold(self, held_bytes):
                    greedy.transport.abort()
        if self._idle and self.timeout_keep_alive_task is None:
            self._arm()

    def on_message_begin(self) -> None:
        """A header begins."""
        super().on_message_begin()
        self._header_bytes, self._not_header_bytes = -self._not_header_bytes, self._arriving_bytes

    def on_headers_complete(self) -> None:
        """The application has a deadline of its own for the body."""
        self._disarm()
        self._header_bytes = None
        self._unfinished.release(self)
        if self.url == FAST_DOOR and self._is_plain_post() and self._admits():
            self._event = bytearray()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of the body, within one read."""
        if self._event is None:
            super().on_body(body)
            return
        self._event += body
        if len(self._event) > MAX_BODY_BYTES:
            self._leave_to_application()

    def on_message_complete(self) -> None:
        """All of it is there."""
        if self._event is None:
            super().on_message_complete()
            return
        event, self._event = bytes(self._event), None
        try:
            self._app.ring_soon(event)
        except Exception:  # noqa: BLE001 - the parser would call it the client's fault
            logger.exception("the fast door failed")
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, "the log says more")
            return
        fields = b"".join(b"%b: %b\r\n" % field for field in self.server_state.default_headers)
        self.transport.write(_ACCEPTED % fields)
        self.on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for any more."""
        self._disarm()
        self._unfinished.release(self)
        super().connection_lost(exc)

    @property
    def _app(self) -> App:
        app: App = self.app  # `uvicorn_config` is given no other
        return app

    def _admits(self) -> bool:
        return self._app.admits(self.client[0] if self.client else "", self.headers)

    def _is_plain_post(self) -> bool:
        """Whether a request has nothing about it that the application would have to see to."""
        return (
            self.parser.get_method() == b"POST"
            and self.parser.should_keep_alive()
            and not self.expect_100_continue
            and not self.parser.should_upgrade()
            and self._idle  # answers keep the order of their requests
            and not self.transport.is_closing()
            and not self.flow.write_paused  # the application waits until the client reads
        )

    def _leave_to_application(self) -> None:
        """It is large, or not all there yet: to wait for the rest, to refuse and to answer is the application's."""
        body, self._event = self._event, None
        super().on_headers_complete()
        self.cycle.body += body or b""
        self.cycle.message_event.set()

    def _arm(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.close)

    def _disarm(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
