"""One HTTP/1.1 connection (RFC 9112): requests in, each answered in its turn, everything bounded in size and in time.

httptools (llhttp) reads the bytes. What happens with a request is the `Site`'s business.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING

import httptools

from functions.web.messages import Problem, Reply, Request, malformed, too_large
from functions.web.router import reply_to
from infra.host.web.door import Door, door_for
from infra.host.web.wire import decode, encode

if TYPE_CHECKING:
    from infra.host.web.server import Server

HEADER_SECONDS = 10.0  # from a header's first byte to its last; and from the connection to the first header
BODY_SECONDS = 10.0  # from the end of the header to the end of the body
KEEP_ALIVE_SECONDS = 75.0  # longer than MinIO's pause between two attempts: its connection stays warm
WRITE_SECONDS = 30.0  # for a client to take what it has asked for
LINGER_SECONDS = 1.0  # closing on what is still being sent would reset the connection before our answer is read
READ_BYTES = 16 * 1024  # at once: the event loop reads far more, and limits are checked in between
MAX_HEADER_BYTES = 32 * 1024  # beside the read in which it began
MAX_HEADER_FIELDS = 256
MAX_FRAMING_BYTES = 1 << 20  # of one request: what is neither header nor body, such as chunk extensions and trailers
MAX_DISCARDED_BYTES = 8 << 20  # of bodies that nobody reads
MAX_PIPELINED = 256  # requests behind the one that is being answered
FIELD_BYTES = 160  # what a field takes beside its text
CONNECTION_BYTES = 1024  # what a parser and its request take beside their fields
UNSENT_BYTES = 16 * 1024  # in the kernel, which would else take megabytes of each answer that is not read
KERNEL_BYTES = 64 * 1024  # what it takes of one all the same
UNSENT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)  # not on every system

_ENDING = Problem(HTTPStatus.SERVICE_UNAVAILABLE, "ending", "The process ends before the request is answered.")
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@dataclass(slots=True, eq=False)
class _Exchange:
    """A request and its answer."""

    request: Request
    door: Door
    closes: bool
    """Whether the connection ends with this answer."""
    held_back: bool
    """Whether the client waits for our word before it sends the body (RFC 9110 §10.1.1)."""
    body: bytearray = field(default_factory=bytearray)
    discarded_bytes: int = 0
    complete: bool = False
    entered: bool = False
    answered: bool = False


class HttpProtocol(asyncio.Protocol):
    """One connection, whatever its client does with it."""

    _transport: asyncio.Transport
    _address = ""
    _url = b""
    _headers: list[tuple[bytes, bytes]]
    _framing_bytes = 0  # since the last message began
    _in_header = False
    _began = False  # a header or a body, in this read
    _began_bytes = 0  # of the read in which the header began
    _arriving: _Exchange | None = None  # its body is
    _running: _Exchange | None = None
    _advancing = _reading_paused = False
    _heard_out = False  # the client sends no more
    _lingers = False
    _over = False  # nothing more is read: what waits for its answer now is the last
    _discarded_bytes = 0
    _due = 0.0  # loop time; 0: the client owes us nothing
    _timer: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def __init__(self, server: Server) -> None:
        """`server` knows the site, and all connections."""
        self._server = server
        self._loop = server.loop
        self._parser = httptools.HttpRequestParser(self)
        self._queue: deque[_Exchange] = deque()

    # The connection.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # there is no other
        """Take a connection, if there is room for it. It has `HEADER_SECONDS` to say what it wants."""
        self._transport = transport
        if not self._server.takes(self):
            self._over = True
            transport.abort()
            return
        # What is on its way to a client that reads has no bound by this, so it costs no speed.
        if UNSENT is not None and (sock := transport.get_extra_info("socket")) is not None:
            sock.setsockopt(socket.IPPROTO_TCP, UNSENT, UNSENT_BYTES)
        # `pause_writing` then tells of what the client leaves to us; TLS would call at once where it is 0.
        transport.set_write_buffer_limits(high=1)
        peer = transport.get_extra_info("peername")  # None where the client has reset it already
        self._address = peer[0] if peer else ""
        self._expect(HEADER_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """Keep nothing, and hear no answer."""
        del exc
        self._server.forget(self)
        self._over = True
        self._running = self._arriving = None
        self._queue.clear()
        for timer in (self._timer, self._stuck):
            if timer is not None:
                timer.cancel()

    def eof_received(self) -> bool:
        """A client that has said all it wants may still listen for the answer (RFC 9112 §9.6)."""
        self._over = self._heard_out = True
        last = self._queue[-1] if self._queue else self._running
        if self._in_header or self._arriving is not None or last is None or not self._transport.can_write_eof():
            return False
        last.closes = True
        return True

    def pause_writing(self) -> None:
        """Some of what was written is still here."""
        self._give_up_after(LINGER_SECONDS if self._server.leaving else WRITE_SECONDS)
        for greedy in self._server.unread.hold(self, self._transport.get_write_buffer_size() + KERNEL_BYTES):
            greedy.abort()

    def resume_writing(self) -> None:
        """All of it is gone."""
        self._server.unread.release(self)
        if self._lingers:
            self._give_up_after(LINGER_SECONDS)
        elif self._stuck is not None:
            self._stuck.cancel()
            self._stuck = None
        self._advance()

    def leave(self) -> None:
        """The process ends: what waits for an answer gets it, all others are closed."""
        if self._stuck is not None:
            self._give_up_after(LINGER_SECONDS)
        elif self._arriving is not None:
            self._refuse(_ENDING)
        elif self._running is None and not self._queue:
            self._transport.close()

    def give_up(self) -> None:
        """The process waits no longer: what has no answer yet gets none but this."""
        if self._running is not None:
            self._answer(self._running, _ENDING.reply)

    def abort(self) -> None:
        """Close at once."""
        self._transport.abort()

    def _give_up_after(self, seconds: float) -> None:
        if self._stuck is not None:
            self._stuck.cancel()
        self._stuck = self._loop.call_later(seconds, self.abort)

    # What comes in.

    def data_received(self, data: bytes) -> None:
        """Read on. What no parser understands is not logged: anybody could fill a disk with that."""
        if self._over:
            self._discarded_bytes += len(data)
            if self._discarded_bytes > MAX_DISCARDED_BYTES:
                self.abort()
            return
        was_idle = self._running is None and not self._in_header and self._arriving is None
        self._began = False
        try:
            for start in range(0, len(data), READ_BYTES):
                self._read(data[start : start + READ_BYTES])
            if self._began and (self._in_header or self._arriving is not None):
                self._expect(HEADER_SECONDS if self._in_header else BODY_SECONDS)
            elif was_idle and not self._began:  # blank lines are the start of a header, too
                self._expect(min(HEADER_SECONDS, self._due - self._loop.time()))
        except Problem as problem:
            self._refuse(problem)
        except httptools.HttpParserError as error:
            cause = error.__context__  # what a callback has raised
            not_http = malformed("bad_http", "The request is not valid HTTP (RFC 9112).")
            self._refuse(cause if isinstance(cause, Problem) else not_http)
        self._advance()

    def _read(self, data: bytes) -> None:
        self._framing_bytes += len(data)
        unread = data
        while unread:
            unread = self._parse(unread)
        status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE if self._in_header else HTTPStatus.BAD_REQUEST
        limit_bytes = MAX_HEADER_BYTES if self._in_header else MAX_FRAMING_BYTES
        if self._framing_bytes > limit_bytes:
            raise Problem(status, "too_long", f"At most {limit_bytes} bytes of a request may be no body.")
        if self._in_header:
            self._began_bytes = self._began_bytes or len(data)
            held_bytes = self._framing_bytes + self._began_bytes + FIELD_BYTES * len(self._headers)
            for greedy in self._server.unfinished.hold(self, CONNECTION_BYTES + held_bytes):
                greedy.abort()

    def _parse(self, data: bytes) -> bytes:
        """Parse, and return what is to be parsed once more.

        A request for another protocol is read as if it had not asked (RFC 9110 §7.8): the parser would take its body
        for the next request.
        """
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            fields = b"".join(b"%b: %b\r\n" % field for field in self._headers if field[0] != b"upgrade")
            line = b"%b %b HTTP/%b" % (self._parser.get_method(), self._url, self._parser.get_http_version().encode())
            return line + b"\r\n" + fields + b"\r\n" + data[upgrade.args[0] :]
        return b""

    def on_message_begin(self) -> None:
        """A header begins."""
        self._url = b""
        self._headers = []
        self._framing_bytes = self._began_bytes = 0
        self._in_header = self._began = True

    def on_url(self, url: bytes) -> None:
        """A part of the request target."""
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a field; those behind a body (trailers, RFC 9110 §6.5.1) are nobody's."""
        if self._in_header:
            if len(self._headers) == MAX_HEADER_FIELDS:
                detail = f"A header has at most {MAX_HEADER_FIELDS} fields."
                raise Problem(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, "too_long", detail)
            self._headers.append((name.lower(), value))

    def on_headers_complete(self) -> None:
        """Find out what takes the request."""
        parser = self._parser
        if parser.should_upgrade():
            if parser.get_method() == b"CONNECT":
                raise malformed("bad_method", "This is no proxy.")
            return  # see `_parse`
        if len(self._queue) > MAX_PIPELINED:
            detail = f"At most {MAX_PIPELINED} requests may wait for their answers."
            raise Problem(HTTPStatus.TOO_MANY_REQUESTS, "pipelined", detail)
        request = decode(parser.get_method(), self._url, self._headers, self._address)
        door = door_for(request, self._server.site)
        self._in_header, self._began = False, True
        held_back = request.header("expect").lower() == "100-continue" and parser.get_http_version() != "1.0"
        self._arriving = _Exchange(request, door, closes=not parser.should_keep_alive(), held_back=held_back)
        self._queue.append(self._arriving)

    def on_body(self, body: bytes) -> None:
        """A part of the body."""
        self._framing_bytes -= len(body)
        exchange = self._arriving
        if exchange is None:
            return
        exchange.held_back = False
        if exchange.door.max_body_bytes:
            exchange.body += body
            if len(exchange.body) > exchange.door.max_body_bytes:
                raise too_large(exchange.door.max_body_bytes)
            if exchange.door.is_strangers:
                for greedy in self._server.unfinished.hold(self, CONNECTION_BYTES + len(exchange.body)):
                    greedy.abort()
        else:
            exchange.discarded_bytes += len(body)
            if exchange.discarded_bytes > MAX_DISCARDED_BYTES:
                raise too_large(MAX_DISCARDED_BYTES)

    def on_message_complete(self) -> None:
        """All of it is there."""
        self._server.unfinished.release(self)
        if self._arriving is not None:
            self._arriving.complete = True
            self._arriving = None

    # What goes out.

    def _advance(self) -> None:
        """Answer what can be answered, one after the other."""
        if self._advancing or self._transport.is_closing():  # an answer that came at once: the loop below goes on
            return
        self._advancing, finished = True, False
        while (exchange := self._running or self._next()) is not None:
            self._running = exchange
            if not exchange.entered and (exchange.complete or not exchange.door.max_body_bytes):
                exchange.entered = True
                self._enter(exchange)
            elif exchange.held_back and not exchange.entered:
                exchange.held_back = False
                self._transport.write(_CONTINUE)
            if not exchange.answered or not (exchange.complete or exchange.closes):
                break
            self._running, finished = None, True
            if exchange.closes:
                self._queue.clear()
                self._close(linger=self._over or not exchange.complete)
        self._advancing = False
        self._look_ahead(finished=finished)

    def _look_ahead(self, *, finished: bool) -> None:
        """See what is to be read next, and by when."""
        if self._reading_paused != bool(self._queue) and not self._transport.is_closing():
            self._reading_paused = not self._reading_paused  # nothing more is read while requests wait for their turn
            (self._transport.pause_reading if self._reading_paused else self._transport.resume_reading)()
            if self._reading_paused:
                self._due = 0.0  # what we do not read cannot come too late
            elif self._in_header or self._arriving is not None:
                self._expect(HEADER_SECONDS if self._in_header else BODY_SECONDS)
        if not (self._over or self._in_header or self._arriving):
            if self._running or self._queue:
                self._due = 0.0
            elif finished:
                self._expect(KEEP_ALIVE_SECONDS)

    def _next(self) -> _Exchange | None:
        can_begin = self._queue and self._stuck is None and not self._transport.is_closing()
        return self._queue.popleft() if can_begin else None

    def _enter(self, exchange: _Exchange) -> None:
        request = exchange.request._replace(body=bytes(exchange.body)) if exchange.body else exchange.request
        try:
            exchange.door.enter(request, lambda reply: self._answer(exchange, reply))
        except Exception as error:  # noqa: BLE001 - whatever a door does, its client gets an answer
            self._answer(exchange, reply_to(error))

    def _answer(self, exchange: _Exchange, reply: Reply) -> None:
        if self._running is not exchange or exchange.answered or self._transport.is_closing():
            return
        exchange.answered = True
        exchange.closes = exchange.closes or reply.closes or self._server.leaving
        is_head = exchange.request.method == "HEAD"
        try:
            answer = encode(reply, is_head=is_head, closes=exchange.closes)
        except UnicodeEncodeError as error:
            answer = encode(reply_to(error), is_head=is_head, closes=exchange.closes)
        self._transport.write(answer)
        self._advance()

    def _refuse(self, problem: Problem) -> None:
        """Answer what goes no further, and close; where others wait for their answers, those are the last."""
        own, self._arriving = self._arriving, None
        self._over, self._in_header = True, False
        if own is not None and self._queue and self._queue[-1] is own:
            self._queue.pop()  # its turn does not come
        before = self._queue[-1] if self._queue else self._running
        if before is not None and before is not own:
            before.closes = True
            return
        self._running = None
        if own is None or not own.answered:
            self._transport.write(encode(problem.reply, closes=True))
        self._close(linger=True)

    def _close(self, *, linger: bool) -> None:
        """Close; `linger`: hear the client out for a moment, since a reset would take our answer from it."""
        self._over = True
        self._due = 0.0
        if not linger or self._heard_out or self._transport.is_closing():
            self._transport.close()
            return
        if self._reading_paused:
            self._reading_paused = False
            self._transport.resume_reading()
        if self._transport.can_write_eof():
            self._transport.write_eof()
        self._lingers = True
        if self._stuck is None:  # else when the client has taken what is written
            self._give_up_after(LINGER_SECONDS)

    # What the client owes us.

    def _expect(self, seconds: float) -> None:
        """Give the client so long. The timer is moved only where it would come too late: few deadlines are met."""
        self._due = self._loop.time() + seconds
        if self._timer is None or self._timer.when() > self._due:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = self._loop.call_at(self._due, self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        if self._due == 0.0 or self._transport.is_closing():
            return
        if self._due > self._loop.time():
            self._timer = self._loop.call_at(self._due, self._on_timer)
        elif self._running or self._queue or self._arriving:
            detail = f"The request did not arrive within {BODY_SECONDS:g} s."
            self._refuse(Problem(HTTPStatus.REQUEST_TIMEOUT, "slow", detail))
        else:
            self._transport.close()
