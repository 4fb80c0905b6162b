"""The ASGI application: two doors for events, the way to the files, health, readiness and metrics."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, Sequence
from datetime import UTC, datetime

from prometheus_client import CONTENT_TYPE_LATEST

from functions.notify import plan_body
from functions.telemetry import logger
from infra.host.bell import Bell
from infra.host.body import CLOSE, Body, Disconnected, Receive, Refusal, Scope, Send
from infra.host.gateway import Gateway, peer
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.host.web.entrance import Entrance, StoreGate, offered, take_token
from infra.host.web.origin import Proxies, foreign_page

FAST_DOOR = b"/events/fast"
MAX_BODY_BYTES = 1 << 20
RETRY_AFTER_SECONDS = 3  # MinIO's own pace

Headers = Iterable[tuple[bytes, bytes]]

_JSON = (b"content-type", b"application/json")
_PROBLEM = (b"content-type", b"application/problem+json")


class App:
    """`POST /events` answers the broker's verdict, `POST /events/fast` never waits; the rest is for watching."""

    def __init__(
        self,
        bell: Bell,
        publisher: HostPublisher,
        telemetry: PrometheusTelemetry,
        *,
        stores: StoreGate | None = None,
        gateways: Sequence[Gateway] = (),
        on_start: Sequence[Callable[[], Awaitable[None]]] = (),
        on_stop: Sequence[Callable[[], Awaitable[None]]] = (),
        proxies: Proxies | None = None,
        public_base_url: str | None = None,
    ) -> None:
        """Without `stores` that present tokens anybody who can connect may post: bind to loopback then.

        A page in a browser of that machine can connect: what shows that it comes from one is refused.
        `gateways` answer devices and administrators. `proxies` are believed.
        """
        self._bell = bell
        self._publisher = publisher
        self._telemetry = telemetry
        self._stores = StoreGate((), Entrance()) if stores is None else stores
        self._proxies = Proxies() if proxies is None else proxies
        self._public_base_url = public_base_url
        self._gateways = tuple(gateways)
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
                await _refuse(send, Refusal(503, "shutting down", CLOSE))
            except Disconnected:
                pass  # nobody is left to answer

    async def _dispatch(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self._stores.is_open and (why := foreign_page(scope["headers"], self._public_base_url)):
            self._telemetry.stranger("foreign_page")
            await Body(scope["headers"], receive, MAX_BODY_BYTES).drain()
            raise Refusal(403, f"{why}: set WEBHOOK_TOKENS to let in more than this machine's own programs", CLOSE)
        route = self._routes.get(scope["path"])
        gateway = next((one for one in self._gateways if one.takes(scope["path"])), None) if route is None else None
        if gateway is not None:
            await gateway(scope, receive, send)
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
        body = Body(headers, receive, MAX_BODY_BYTES)
        in_address, scope["query_string"] = take_token(scope.get("query_string", b""))
        is_fast = scope["path"] == FAST_DOOR.decode()
        token = offered(headers) or (b"" if is_fast else in_address)
        address = self._proxies.client(peer(scope), headers)
        wait_seconds = self._stores.wait_seconds(token, address)
        if wait_seconds or not self._stores.admits(token):
            self._bell.turn_away("fast" if is_fast else "sure")
            await body.drain()
            if wait_seconds:
                raise Refusal(429, "too many wrong tokens", (b"retry-after", b"%d" % wait_seconds), CLOSE)
            if token:
                self._stores.entrance.failed(address)
            raise Refusal(401, "a token of WEBHOOK_TOKENS is needed", (b"www-authenticate", b"Bearer"), CLOSE)
        return await body.read()

    def admits(self, client: str, headers: Headers) -> bool:
        """Whether a request with these headers may post events at the fast door at once; the rest is for `__call__`."""
        if self._stores.is_open:
            return not foreign_page(headers, self._public_base_url)
        token = offered(headers)
        return not self._stores.wait_seconds(token, self._proxies.client(client, headers)) and self._stores.admits(
            token
        )

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


async def _refuse(send: Send, refusal: Refusal) -> None:
    problem = {"type": "about:blank", "title": refusal.title, "status": refusal.status}
    await _answer(send, refusal.status, json.dumps(problem).encode(), _PROBLEM, *refusal.headers)


async def _answer(send: Send, status: int, body: bytes = b"", *headers: tuple[bytes, bytes]) -> None:
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": status, "headers": [length, *headers]})
    await send({"type": "http.response.body", "body": body})
