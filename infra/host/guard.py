"""uvicorn's HTTP protocol, sure of three things more: answers keep their order, nothing piles up, everything ends."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Sized
from http import HTTPStatus
from typing import Any, ClassVar

import httptools
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from functions.telemetry import logger
from functions.web.messages import as_json
from infra.host.body import Refusal
from infra.host.web.allowance import Allowance

WRITE_SECONDS = 30.0  # for a client to take what it has asked for
LINGER_SECONDS = 1.0  # closing on what is still being sent would reset the connection before our answer is read
MAX_HEADER_FIELDS = 256
MAX_FRAMING_BYTES = 1 << 20  # of one request: all that is neither header nor body, as chunk extensions and trailers
MAX_PIPELINED = 256  # requests behind the one that is being answered
WARN_SECONDS = 60.0
UNSENT_BYTES = 16 * 1024  # in the kernel, which would else take megabytes of each answer that is not read
KERNEL_BYTES = 64 * 1024  # what it takes of one all the same
UNSENT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # not on every system
MAX_UNREAD_BYTES = 32 << 20  # of all answers that their clients leave to us


class _Flow(FlowControl):
    """Reads nothing more while requests wait for their turn: each answer, and each body, would let in a bufferful."""

    def __init__(self, transport: asyncio.Transport, waiting: Sized) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class GuardedProtocol(HttpToolsProtocol):
    """One connection, whatever its client does with it."""

    max_connections: int | None = None  # of the process
    _unread: ClassVar[Allowance[GuardedProtocol]] = Allowance(MAX_UNREAD_BYTES)  # of the process
    _warned_at: float = 0.0

    _running: RequestResponseCycle | None = None
    _in_body = False  # the request that is arriving has been passed on already
    _over = False  # nothing more is read: what is being answered is the last
    _lingers = False  # that last answer is given
    _leaving = False  # so does the process
    _framing_bytes = 0
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:  # noqa: ANN401 - uvicorn's own signature
        """Take a connection, if there is room for it."""
        super().connection_made(transport)
        self.flow = _Flow(transport, self.pipeline)
        # What is on its way to a client that reads has no bound by this, so it costs no speed.
        if UNSENT is not None and (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, UNSENT, UNSENT_BYTES)
        transport.set_write_buffer_limits(high=0)  # `pause_writing` then tells of any byte that the client leaves to us
        if self.max_connections is not None and len(self.connections) > self.max_connections:
            self._over = True
            transport.abort()
            self._warn()

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell who is answering, not only who came last as uvicorn does, and keep nothing, as its timer would."""
        if self._running is not None:
            self._leave(self._running)
        self.pipeline.clear()
        super().connection_lost(exc)
        self._unset_keepalive_if_required()
        self.resume_writing()

    # What comes in.

    def data_received(self, data: bytes) -> None:
        """Read on. What no parser understands is not logged: anybody could fill a disk with that."""
        if self._over:
            self._framing_bytes += len(data)
            if self._lingers and self._framing_bytes > MAX_FRAMING_BYTES:
                self.transport.abort()
            return
        self._unset_keepalive_if_required()
        self._framing_bytes += len(data)
        try:
            while data:
                data = self._read(data)
        except httptools.HttpParserError as error:
            refusal = error.__context__
            if isinstance(refusal, Refusal):
                self._refuse(HTTPStatus(refusal.status), refusal.title)
            else:
                self.send_400_response("Invalid HTTP request received.")
        else:
            if self._framing_bytes > MAX_FRAMING_BYTES:
                self.send_400_response("So much of this request is neither header nor body.")

    def _read(self, data: bytes) -> bytes:
        """Parse, and return what is to be parsed once more.

        A request for another protocol is read as if it had not asked (RFC 9110 §7.8): the parser would take its body
        for the next request.
        """
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            fields = b"".join(b"%b: %b\r\n" % field for field in self.headers if field[0] != b"upgrade")
            line = b"%b %b HTTP/%b" % (self.parser.get_method(), self.url, self.parser.get_http_version().encode())
            return line + b"\r\n" + fields + b"\r\n" + data[upgrade.args[0] :]
        return b""

    def eof_received(self) -> bool:  # type: ignore[override]  # uvicorn's says None, asyncio's may say either
        """A client that has said all it wants may still listen for the answer (RFC 9112 §9.6)."""
        if self._in_body or self._idle:
            return False
        self.cycle.keep_alive = False
        self._over = True
        return True

    def on_message_begin(self) -> None:
        """A header begins."""
        super().on_message_begin()
        self._in_body = False
        self._framing_bytes = 0

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field; those behind a body (trailers, RFC 9110 §6.5.1) are nobody's."""
        if self._in_body:
            return
        headers = self.headers
        if len(headers) == MAX_HEADER_FIELDS:
            raise Refusal(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"at most {MAX_HEADER_FIELDS} header fields")
        name = name.lower()
        if name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        """Pass a request on, unless it wants something else than HTTP."""
        if self.parser.should_upgrade():
            if self.parser.get_method() == b"CONNECT":
                raise Refusal(HTTPStatus.BAD_REQUEST, "this is no proxy")
            return  # see `_read`
        if len(self.pipeline) >= MAX_PIPELINED:
            raise Refusal(HTTPStatus.TOO_MANY_REQUESTS, f"at most {MAX_PIPELINED} requests at once")
        super().on_headers_complete()
        self._in_body = True

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._framing_bytes -= len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """All of it is there."""
        if self._in_body:
            self._in_body = False
            super().on_message_complete()

    # What goes out.

    def pause_writing(self) -> None:
        """Some of what was written is still here."""
        super().pause_writing()
        self._give_up_after(LINGER_SECONDS if self._leaving else WRITE_SECONDS)
        for greedy in self._unread.hold(self, self.transport.get_write_buffer_size() + KERNEL_BYTES):
            greedy.transport.abort()

    def resume_writing(self) -> None:
        """All of it is gone."""
        super().resume_writing()
        self._unread.release(self)
        if self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None

    def shutdown(self) -> None:
        """The process ends: it waits for answers, but not for clients that do not take them."""
        super().shutdown()
        self._leaving = True
        if self._stuck is not None:
            self._give_up_after(LINGER_SECONDS)

    def _give_up_after(self, seconds: float) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        self._stuck = self.loop.call_later(seconds, self.transport.abort)

    def send_400_response(self, msg: str) -> None:
        """As every other refusal: uvicorn's own is plain text."""
        self._refuse(HTTPStatus.BAD_REQUEST, msg)

    @property
    def _idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete  # type: ignore[redundant-expr]  # None at first

    def _refuse(self, status: HTTPStatus, detail: str) -> None:
        """Answer what goes no further, and close; where others wait for their answers, those are the last."""
        if self._over or self.transport.is_closing():
            return
        self._over = True
        own = self.cycle if self._in_body else None
        if own is not None and self.pipeline:
            self.pipeline.popleft()  # its turn does not come
        last = self.pipeline[0][0] if self.pipeline else self._running
        if last is not None and last is not own and not last.response_complete:
            last.keep_alive = False
            return
        if own is None or not own.response_complete:
            body = as_json({"title": status.phrase, "status": status.value, "detail": detail})
            head = f"HTTP/1.1 {status.value} {status.phrase}\r\ncontent-type: application/problem+json\r\n"
            self.transport.write(f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode())
        if own is not None:
            self._leave(own)
        self._lingers = True
        self.transport.write_eof()
        self.loop.call_later(LINGER_SECONDS, self.transport.abort)

    @staticmethod
    def _leave(cycle: RequestResponseCycle) -> None:
        cycle.disconnected = True
        cycle.message_event.set()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:  # noqa: ANN401 - uvicorn's own signature
        self._running = cycle
        super()._start_asgi_task(cycle, app)

    def _warn(self) -> None:
        now = self.loop.time()
        if now - GuardedProtocol._warned_at > WARN_SECONDS:
            GuardedProtocol._warned_at = now
            logger.warning("too many connections: new ones are closed", extra={"limit": self.max_connections})
