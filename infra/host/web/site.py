"""What the host serves: the doors for events, what is for watching, and the routers of devices and administrators."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from functools import lru_cache, partial
from http import HTTPStatus

from prometheus_client import CONTENT_TYPE_LATEST

from functions.devices.downloads import Downloads
from functions.events.plan import Settled, plan_body
from functions.web.messages import Problem, Reply, Request, as_json, malformed
from infra.host.bell import Bell
from infra.host.metrics import Expected, PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.host.web.door import Answer, Door, Paths
from infra.host.web.entrance import SIGNATURE, StoreGate, offered, take_token
from infra.host.web.origin import TrustedProxies, foreign_page

DOWNLOADS = "downloads"
SURE_DOOR, FAST_DOOR = "/events", "/events/fast"
MAX_BODY_BYTES = 4 << 20  # of SeaweedFS, for an object of 40 GB that replaces another: it lists the chunks of both
MAX_SIGNED_BYTES = 256 * 1024  # Backblaze B2 puts at most 50 events into a body
RETRY_AFTER_SECONDS = 3  # MinIO's own pace
WATCHING = ("GET", "HEAD")
RINGING = ("POST", "HEAD", "OPTIONS")
HINT = "There is nothing here: see /healthz, /readyz, /metrics. Events are posted to /events."

_ACCEPTED = Reply(HTTPStatus.ACCEPTED, {})
_REACHED = Reply(HTTPStatus.OK, {})
# A sender of CloudEvents asks whether it may ("HTTP 1.1 Web Hooks", §4). It may: each event has to bring a token.
_MAY_SEND = {"Allow": ", ".join(RINGING), "WebHook-Allowed-Origin": "*", "WebHook-Allowed-Rate": "*"}
_NOTHING_TO_DO = Reply(HTTPStatus.OK, {}, '{"outcomes": []}')


@lru_cache(maxsize=64)  # nearly all are the same
def _verdict(labels: tuple[str, ...], retriable: bool) -> Reply:  # noqa: FBT001 - a key of the cache
    outcomes = json.dumps({"outcomes": labels})
    if retriable:
        return Reply(HTTPStatus.SERVICE_UNAVAILABLE, {"Retry-After": str(RETRY_AFTER_SECONDS)}, outcomes)
    # 200 also for what can never succeed: a store retries anything else for ever, and blocks all behind it.
    return Reply(HTTPStatus.OK, {}, outcomes)


class HostSite:
    """`POST /events` answers the broker's verdict, `POST /events/fast` never waits."""

    def __init__(
        self,
        bell: Bell,
        publisher: HostPublisher,
        telemetry: PrometheusTelemetry,
        *,
        stores: StoreGate,
        downloads: Downloads,
        routers: Sequence[Paths] = (),
        proxies: TrustedProxies | None = None,
        public_base_url: str | None = None,
        expected: Callable[[], Expected] = lambda: ((), {}),
    ) -> None:
        """Without tokens in `stores` anybody who can connect may post: bind to loopback then.

        A page in a browser of that machine can connect: what shows that it comes from one is refused.
        `proxies` are believed. `expected`: see `PrometheusTelemetry.exposition`.
        """
        self._bell = bell
        self._publisher = publisher
        self._telemetry = telemetry
        self._stores = stores
        self._routers = tuple(routers)
        self._proxies = TrustedProxies() if proxies is None else proxies
        self._public_base_url = public_base_url
        self._downloads = downloads
        self._expected = expected
        self._doors: dict[str, tuple[tuple[str, ...], Callable[[Request], Door]]] = {
            SURE_DOOR: (RINGING, partial(self._open_door, "sure", self._ring)),
            FAST_DOOR: (RINGING, partial(self._open_door, "fast", self._ring_soon)),
            "/healthz": (WATCHING, lambda _: Door(self._alive)),
            "/readyz": (WATCHING, lambda _: Door(self._ready)),
            "/metrics": (WATCHING, lambda _: Door(self._metrics)),
        }

    def open(self, request: Request) -> Door:
        """See `Site.open`."""
        if self._stores.is_open and (why := foreign_page(request.headers, self._public_base_url)):
            self._telemetry.stranger("foreign_page")
            detail = f"{why}: set WEBHOOK_TOKENS to let in more than this machine's own programs."
            raise Problem(HTTPStatus.FORBIDDEN, "foreign_page", detail, closes=True)
        address = self._proxies.client(request.address, request.headers)
        if address != request.address:
            request = request._replace(address=address)
        found = self._doors.get(request.path)
        if found is None:
            router = next((one for one in self._routers if one.takes(request.path)), None)
            if router is None and (request.method, request.path) == ("HEAD", "/"):
                return Door(self._probed)
            if router is None:
                raise Problem(HTTPStatus.NOT_FOUND, "no_route", HINT)
            return router.open(request)
        methods, open_door = found
        if request.method not in methods:
            allow = ", ".join(methods)
            status, detail = HTTPStatus.METHOD_NOT_ALLOWED, f"The method must be one of: {allow}."
            raise Problem(status, "method_not_allowed", detail, headers={"Allow": allow})
        return open_door(request)

    # The doors.

    def _open_door(self, source: str, enter: Callable[[Request, Answer], None], request: Request) -> Door:
        """A header goes before what is in the address, which only stores need that can send none."""
        if request.method != "POST":
            return Door(self._probed)
        address, signature = request.address, request.header(SIGNATURE)
        if signature and "authorization" not in request.headers and not self._stores.is_open:
            return self._await_signed(source, enter, signature, address)
        try:
            token = offered(request) if "authorization" in request.headers else take_token(request.query)[0]
            self._stores.admit(token, address)
        except Problem:
            self._bell.turn_away(source)
            raise
        return Door(enter, MAX_BODY_BYTES)

    def _await_signed(
        self, source: str, enter: Callable[[Request, Answer], None], signature: str, address: str
    ) -> Door:
        def verify(request: Request, answer: Answer) -> None:
            try:
                self._stores.admit_signed(signature, request.body, address)
            except Problem:
                self._bell.turn_away(source)
                raise
            enter(request, answer)

        self._stores.await_signed(address)  # too many at once say nothing of a store's token
        return Door(verify, MAX_SIGNED_BYTES, is_strangers=True)

    def _probed(self, request: Request, answer: Answer) -> None:
        """A store sees that somebody is there before it sends its first event, such as RustFS. It learns no more."""
        answer(Reply(HTTPStatus.OK, _MAY_SEND) if request.method == "OPTIONS" else _REACHED)

    def _ring(self, request: Request, answer: Answer) -> None:
        if not self._bell.configured:
            answer(_NOTHING_TO_DO)
            return

        def tell(settled: list[Settled]) -> None:
            answer(_verdict(tuple([one.label for one in settled]), any(one.retriable for one in settled)))

        self._bell.ring_then(plan_body(request.body, self._bell.routes), "sure", tell)

    def _ring_soon(self, request: Request, answer: Answer) -> None:
        if self._bell.configured:
            self._bell.ring_soon(plan_body(request.body, self._bell.routes), "fast")
        answer(_ACCEPTED)

    # For watching.

    def _alive(self, _request: Request, answer: Answer) -> None:
        answer(Reply(HTTPStatus.OK, {}, as_json({"alive": True, "mqtt": self._mqtt()})))

    def _ready(self, request: Request, answer: Answer) -> None:
        whom_for = request.parameters("for").get("for")
        if whom_for == DOWNLOADS:
            answer(self._ready_for_downloads())
            return
        if whom_for is not None:
            detail = f"`for` can be `{DOWNLOADS}`; without it, this tells whether events can be published."
            raise malformed("bad_for", detail)
        ready = self._publisher.ready or not self._publisher.configured
        status = HTTPStatus.OK if ready else HTTPStatus.SERVICE_UNAVAILABLE
        answer(Reply(status, {}, as_json({"ready": ready, "mqtt": self._mqtt()})))

    def _ready_for_downloads(self) -> Reply:
        """Whether devices and administrators belong here. A store or database that is down is down for all hosts."""
        missing = self._downloads.missing if self._downloads.is_wanted else ""
        if missing:
            lacking = {"ready": False, "reason": f"Downloads are not configured: set {missing}."}
            return Reply(HTTPStatus.SERVICE_UNAVAILABLE, {}, as_json(lacking))
        return Reply(HTTPStatus.OK, {}, as_json({"ready": True}))

    def _metrics(self, _request: Request, answer: Answer) -> None:
        answer(Reply(HTTPStatus.OK, {}, self._telemetry.exposition(self._expected()), CONTENT_TYPE_LATEST))

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
