"""The ASGI application: two doors for events, the way to the files, health, readiness and metrics."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping, Sequence
from datetime import UTC, datetime
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import SecretStr

from functions.notify import plan_body
from functions.telemetry import logger
from infra.host.bell import Bell
from infra.host.gateway import Gateway
from infra.host.metrics import PrometheusTelemetry
from infra.host.publisher import HostPublisher

FAST_DOOR = b"/events/fast"
MAX_BODY_BYTES = 1 << 20
BODY_SECONDS = 10.0
MAX_DRAIN_BYTES, DRAIN_SECONDS = 8 << 20, 1.0
RETRY_AFTER_SECONDS = 3  # MinIO's own pace

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")
_CLOSE = (b"connection", b"close")


class Refusal(Exception):
    """A request that gets no further, as an RFC 9457 problem."""

    def __init__(self, status: int, title: str, *headers: tuple[bytes, bytes]) -> None:
        """`status` is the HTTP status, `title` what to tell the client."""
        self.status = status
        self.title = title
        self.headers = headers
        super().__init__(title)


class Disconnected(Exception):
    """The client went away before its request was complete."""


class App:
    """`POST /events` answers the broker's verdict, `POST /events/fast` never waits; the rest is for watching."""

    def __init__(
        self,
        bell: Bell,
        publisher: HostPublisher,
        telemetry: PrometheusTelemetry,
        *,
        tokens: Sequence[SecretStr] = (),
        gateway: Gateway | None = None,
        on_start: Sequence[Callable[[], Awaitable[None]]] = (),
        on_stop: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        """Without `tokens` anybody who can connect may post: bind to loopback then. `gateway` answers devices."""
        self._bell = bell
        self._publisher = publisher
        self._telemetry = telemetry
        self._tokens = tuple(token.get_secret_value().encode() for token in tokens)
        self._gateway = gateway
        self._on_start = on_start
        self._on_stop = on_stop
        self._routes: dict[str, tuple[tuple[str, ...], Callable[[Scope, Receive, Send], Awaitable[None]]]] = {
            "/events": (("POST",), self._sure),
            FAST_DOOR.decode(): (("POST",), self._fast),
            "/healthz": (("GET", "HEAD"), self._alive),
            "/readyz": (("GET", "HEAD"), self._ready),
            "/metrics": (("GET", "HEAD"), self._metrics),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """ASGI 3.0."""
        if scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        elif scope["type"] == "http":
            try:
                await self._dispatch(scope, receive, send)
            except Refusal as refusal:
                await _refuse(send, refusal)
            except asyncio.CancelledError:  # uvicorn's, to a request that did not arrive in full before the end
                await _refuse(send, Refusal(503, "shutting down", _CLOSE))
            except Disconnected:
                pass  # nobody is left to answer

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        route = self._routes.get(scope["path"])
        if route is None and self._gateway is not None and self._gateway.takes(scope["path"]):
            await self._gateway(scope, send)
            return
        if route is None:
            raise Refusal(404, "there is nothing here: see /healthz, /readyz, /metrics; events are posted to /events")
        methods, endpoint = route
        if scope["method"] not in methods:
            allowed = ", ".join(methods)
            raise Refusal(405, f"the method must be {allowed}", (b"allow", allowed.encode()))
        await endpoint(scope, receive, send)

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        await receive()
        for start in self._on_start:
            await start()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        for stop in self._on_stop:
            try:
                await stop()
            except Exception:  # noqa: BLE001 - the process ends whatever happens, and the next one may still say good-bye
                logger.exception("shutdown")
        await send({"type": "lifespan.shutdown.complete"})

    # The doors.

    async def _sure(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._event_body(scope, receive)
        if not self._bell.configured:
            await _answer(send, 200, b'{"outcomes": []}', _JSON)
            return
        settled = await self._bell.ring(plan_body(body, self._bell.routes), "sure")
        answer = json.dumps({"outcomes": [one.label for one in settled]}).encode()
        if any(one.retriable for one in settled):
            await _answer(send, 503, answer, _JSON, (b"retry-after", str(RETRY_AFTER_SECONDS).encode()))
        else:
            # 200 also for what can never succeed: a store retries anything else for ever, and blocks all behind it.
            await _answer(send, 200, answer, _JSON)

    def ring_soon(self, body: bytes) -> None:
        """Put what an event at the fast door asks for on its way, and return at once."""
        if self._bell.configured:
            self._bell.ring_soon(plan_body(body, self._bell.routes), "fast")

    async def _fast(self, scope: Scope, receive: Receive, send: Send) -> None:
        body = await self._event_body(scope, receive)
        self.ring_soon(body)
        await _answer(send, 202)

    async def _event_body(self, scope: Scope, receive: Receive) -> bytes:
        headers: Headers = scope["headers"]
        body = _Body(headers, receive)
        if not self.admits(headers):
            self._bell.turn_away("fast" if scope["path"].endswith("/fast") else "sure")
            await body.drain()
            raise Refusal(401, "a bearer token of WEBHOOK_TOKENS is needed", (b"www-authenticate", b"Bearer"), _CLOSE)
        try:
            async with asyncio.timeout(BODY_SECONDS):
                return await body.read()
        except TimeoutError:
            raise Refusal(408, f"the body did not arrive within {BODY_SECONDS:g} s", _CLOSE) from None
        except Refusal:
            await body.drain()
            raise

    def admits(self, headers: Headers) -> bool:
        """Whether a request with these headers may post events."""
        if not self._tokens:
            return True
        given = [value for name, value in headers if name == b"authorization"]
        scheme, _, token = given[0].partition(b" ") if len(given) == 1 else (b"", b"", b"")
        # Every token is compared, whole: the time must not tell which one, or how much of it, was right.
        matches = [hmac.compare_digest(token.strip(), known) for known in self._tokens]
        return scheme.lower() == b"bearer" and any(matches)

    # For watching.

    async def _alive(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await _answer(send, 200, json.dumps({"alive": True, "mqtt": self._mqtt()}).encode(), _JSON)

    async def _ready(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        ready = self._publisher.ready or not self._publisher.configured
        document = {"ready": ready, "mqtt": self._mqtt()}
        await _answer(send, 200 if ready else 503, json.dumps(document).encode(), _JSON)

    async def _metrics(self, _scope: Scope, _receive: Receive, send: Send) -> None:
        await _answer(send, 200, self._telemetry.exposition(), (b"content-type", CONTENT_TYPE_LATEST.encode()))

    def _mqtt(self) -> dict[str, object]:
        status = self._publisher.status
        if not self._publisher.configured:
            return {"configured": False}
        return {
            "configured": True,
            "broker": status.broker,
            "connected": status.connected,
            "since": datetime.fromtimestamp(status.since, UTC).isoformat(timespec="milliseconds"),
            "reason": status.reason,
            "reason_code": status.reason_code,
        }


class _Body:
    """A request's body on its way in, whether its length was announced or not."""

    def __init__(self, headers: Headers, receive: Receive) -> None:
        self._receive = receive
        self._announced = int(next((value for name, value in headers if name == b"content-length"), b"0"))
        self._held_back = any(name == b"expect" for name, _ in headers)  # until we ask for it
        self._complete = False

    async def read(self) -> bytes:
        """Return the whole body. Raises `Refusal` (413), `Disconnected`."""
        received = bytearray()
        while max(self._announced, len(received)) <= MAX_BODY_BYTES:
            if self._complete:
                return bytes(received)
            received += await self._next()
        raise Refusal(413, f"the body is larger than {MAX_BODY_BYTES} bytes", _CLOSE)

    async def drain(self) -> None:
        """Throw away what is still being sent: closing on it would reset the connection before our answer is read."""
        drained = 0
        with contextlib.suppress(TimeoutError, Disconnected):
            async with asyncio.timeout(DRAIN_SECONDS):
                while not (self._complete or self._held_back) and drained < MAX_DRAIN_BYTES:
                    drained += len(await self._next())

    async def _next(self) -> bytes:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise Disconnected
        self._held_back = False
        self._complete = not message.get("more_body", False)
        body: bytes = message.get("body", b"")
        return body


async def _refuse(send: Send, refusal: Refusal) -> None:
    problem = {"type": "about:blank", "title": refusal.title, "status": refusal.status}
    await _answer(send, refusal.status, json.dumps(problem).encode(), _PROBLEM, *refusal.headers)


async def _answer(send: Send, status: int, body: bytes = b"", *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})
