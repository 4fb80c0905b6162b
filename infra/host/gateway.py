"""Calls a Lambda handler for devices' requests, with the event that API Gateway would send (payload format 2.0)."""

from __future__ import annotations

import asyncio
import base64
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from http import HTTPStatus
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

from functions.devices.manifest import LISTED
from functions.telemetry import logger
from functions.web.messages import Problem, Request, unavailable
from infra.host.body import Body, Receive, Scope, Send
from infra.host.web.entrance import Gate, share_of, too_many
from infra.host.web.origin import Proxies, neighbourhood
from infra.host.web.sharing import Sharing

PREFIXES = ("/configs/", "/assets", "/thumbnails", "/manifest")
THREADS = 16
MAX_WAITING = 256
BODILESS = frozenset({"GET", "HEAD"})
HANDLER_SECONDS = 10.0  # the handler's own deadlines are shorter, but it may have to wait for a thread
BUSY_RETRY_SECONDS = 1
MAX_CALLERS = 50_000
CATCH_UPS_AT_ONCE = 2  # a device may begin once more before its share is whole again
MAX_AT_ONCE = 100_000  # requests of one token
ROUNDING_SECONDS = 1e-4  # sums of intervals are not exact, and nobody should wait for that

Event = dict[str, Any]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Context:
    """What handlers read of Lambda's context object."""

    aws_request_id: str
    function_name: str = "bucketbell"
    memory_limit_in_mb: int = 128
    invoked_function_arn: str = ""

    def get_remaining_time_in_millis(self) -> int:
        """As much as we wait."""
        return int(HANDLER_SECONDS * 1000)


class RateLimit:
    """At most so many a minute for each key, and at once the whole minute's share or more; keys are bounded in number.

    The generic cell rate algorithm (ITU-T I.371): for each key the moment at which its share will be whole again.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute` 0: no limit."""
        self._interval_seconds = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._whole_at: OrderedDict[bytes, float] = OrderedDict()
        self._at_once: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def widen(self, key: bytes, at_once: int, *, further: bool) -> None:
        """Let `key` use that many at once, where that is more than before; they come back no faster.

        `further`: on top of what the latest calls asked for.
        """
        widest, latest = self._at_once.get(key, (0, 0))
        latest = min(at_once + (latest if further else 0), MAX_AT_ONCE)
        # Never fewer: who has used more than that already would be shut out for long.
        _keep(self._at_once, key, (max(widest, latest), latest))

    def wait_seconds(self, key: bytes) -> float:
        """How long until `key` has a share left: 0 means now."""
        whole_seconds = max(60.0, self._at_once.get(key, (0, 0))[0] * self._interval_seconds)
        wait_seconds = self._whole_at.get(key, 0.0) + self._interval_seconds - self._clock() - whole_seconds
        return wait_seconds if wait_seconds > ROUNDING_SECONDS else 0.0

    def take(self, key: bytes) -> None:
        """Use one share."""
        _keep(self._whole_at, key, max(self._whole_at.get(key, 0.0), self._clock()) + self._interval_seconds)


class Daemons(Executor):
    """Threads that the process does not wait for at its end, unlike ThreadPoolExecutor's: a store may hang."""

    def __init__(self, threads: int) -> None:
        """Start none yet: each is started when it is needed."""
        self._limit = threads
        self._threads = 0
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `call` in a thread; belongs to one thread, the loop's."""
        future: Future[T] = Future()
        self._work.put((future, lambda: call(*args, **kwargs)))
        if not self._idle.acquire(blocking=False) and self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._run, name=f"gateway-{self._threads}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:  # noqa: FBT001, FBT002 - Executor's
        """Let threads end after what they are at; waits for nothing and cancels nothing."""
        del wait, cancel_futures
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 - handed to whoever awaits
                    future.set_exception(error)
            del work, future, call  # nothing of a request outlives it here
            self._idle.release()


class Gateway:
    """Bounded in threads, in waiting requests, in time, and in requests per token."""

    def __init__(
        self,
        handler: Callable[[Event, Any], dict[str, Any]],
        *,
        requests_per_minute: int,
        shares: bool = False,
        prefixes: tuple[str, ...] = PREFIXES,
        max_body_bytes: int = 0,
        gate: Gate | None = None,
        public: Callable[[str, str], Event | None] = lambda _method, _path: None,
        proxies: Proxies | None = None,
    ) -> None:
        """`handler` runs in a thread of the pool. `requests_per_minute` holds for each token; 0: no limit.

        `shares`: identical requests at the same moment share an answer. Only for a handler that merely reads.
        `prefixes` of the paths that are the handler's. `max_body_bytes` 0: bodies are not read. `gate` decides who is
        let in, before the handler has a thread; None: everybody. `public` answers a method and path for which nobody
        needs a token, at once. `proxies` are believed.
        """
        self._prefixes = prefixes
        self._max_body_bytes = max_body_bytes
        self._shares = shares
        self._handler = handler
        self._pool = Daemons(THREADS)
        self._waiting = 0
        self._requests = RateLimit(requests_per_minute)
        self._gate = gate
        self._public = public
        self._proxies = Proxies() if proxies is None else proxies
        self._mentions = RateLimit(1)
        self._sharing = Sharing[dict[str, Any] | None](_is_failure)

    async def warm_up(self, work: Callable[[], object]) -> None:
        """Do `work` in the pool: the first request must not pay for it."""
        asyncio.get_running_loop().run_in_executor(self._pool, work)

    def takes(self, path: str) -> bool:
        """Whether a request for this path is for the handler."""
        return path.startswith(self._prefixes)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises `Refusal` and `Disconnected` about its body."""
        address = self._proxies.client(peer(scope), scope["headers"])
        event = api_gateway_event(scope, address)
        answer = self._public(scope["method"], scope["path"])
        try:
            caller = self._admit(event, address) if answer is None else neighbourhood(address)
            if wait_seconds := self._requests.wait_seconds(caller):
                raise too_many(int(wait_seconds) + 1)
        except Problem as problem:
            await _answer(send, _as_answer(problem))
            return
        self._requests.take(caller)
        if answer is None:
            answer = await self._handled(event, scope, receive)
        if (listed := answer["headers"].get(LISTED)) is not None:
            # A device is about to ask for what it was just told of: refusing that would be our own fault.
            is_further_page = "next=" in event["rawQueryString"]
            self._requests.widen(caller, CATCH_UPS_AT_ONCE * (int(listed) + 1), further=is_further_page)
        await _answer(send, answer)

    async def _handled(self, event: Event, scope: Scope, receive: Receive) -> Event:
        if self._waiting >= MAX_WAITING:
            return _as_answer(_busy())
        if self._max_body_bytes and scope["method"] not in BODILESS:
            _put_body(event, await Body(scope["headers"], receive, self._max_body_bytes).read())
        if self._shares:
            answer = await self._sharing.ask(_question(event), lambda: self._call(event))
        else:
            answer = await self._call(event)
        return _as_answer(_busy()) if answer is None else answer

    def _admit(self, event: Event, address: str) -> bytes:
        """Return whose share a request takes. Raises Problem."""
        http = event["requestContext"]["http"]
        authorization = event["headers"].get("authorization", "")
        request = Request(http["method"], event["rawPath"], event["rawQueryString"], authorization)
        if self._gate is None:
            return share_of(request.bearer) if request.bearer else neighbourhood(address)
        try:
            return self._gate.admit(request, address)
        except Problem as problem:
            # Strangers are counted only. Whom a key of ours vouches for is no stranger, but may come again and again.
            key = problem.jti.encode()
            if problem.jti and not self._mentions.wait_seconds(key):
                self._mentions.take(key)
                details = {"reason": problem.reason, "kid": problem.kid, "jti": problem.jti}
                logger.info("a token is not in force", extra=details)
            raise

    async def close(self) -> None:
        """Take no more; what hangs is left to hang."""
        self._pool.shutdown()

    async def _call(self, event: Event) -> dict[str, Any] | None:
        """Return the handler's answer, None when it has none in time: then it is not begun any more."""
        loop = asyncio.get_running_loop()
        self._waiting += 1
        try:
            context = Context(event["requestContext"]["requestId"])
            return await asyncio.wait_for(
                loop.run_in_executor(self._pool, self._handler, event, context), HANDLER_SECONDS
            )
        except TimeoutError:
            logger.error("a request took too long", extra={"path": event["rawPath"], "seconds": HANDLER_SECONDS})
        except Exception:  # noqa: BLE001 - whatever a handler raises, its client gets an answer
            logger.exception("a request failed")
        finally:
            self._waiting -= 1
        return None


def _keep(callers: OrderedDict[bytes, T], caller: bytes, value: T) -> None:
    """Remember `value`; whoever was not heard of for longest is forgotten."""
    callers[caller] = value
    callers.move_to_end(caller)
    if len(callers) > MAX_CALLERS:
        callers.popitem(last=False)


def api_gateway_event(scope: Scope, address: str | None = None) -> Event:
    """Build what an HTTP API sends: the path decoded once, the query as it came, repeated headers joined."""
    values: dict[str, list[str]] = {}
    for name, value in scope["headers"]:
        values.setdefault(name.decode("latin-1"), []).append(value.decode("latin-1"))
    headers = {name: ",".join(texts) for name, texts in values.items()}
    if address is None:
        address = peer(scope)
    now = time.time()
    return {
        "version": "2.0",
        "routeKey": "$default",
        "rawPath": scope["path"],
        "rawQueryString": scope["query_string"].decode("latin-1"),
        "headers": headers,
        "requestContext": {
            "accountId": "anonymous",
            "apiId": "bucketbell",
            "domainName": "localhost",
            "http": {
                "method": scope["method"],
                "path": scope["path"],
                "protocol": f"HTTP/{scope['http_version']}",
                "sourceIp": address,
                "userAgent": headers.get("user-agent", ""),
            },
            "requestId": uuid.uuid4().hex,
            "routeKey": "$default",
            "stage": "$default",
            "timeEpoch": int(now * 1000),
        },
        "isBase64Encoded": False,
    }


def peer(scope: Scope) -> str:
    """Return the address of the other end of the connection, "" where it has none."""
    return scope["client"][0] if scope.get("client") else ""


def _put_body(event: Event, body: bytes) -> None:
    """As AWS does: text as it is, anything else in base64."""
    try:
        event["body"] = body.decode()
    except UnicodeDecodeError:
        event["body"], event["isBase64Encoded"] = base64.b64encode(body).decode(), True


def _question(event: Event) -> tuple[str, ...]:
    """All that an answer depends on: who asks the same gets the same."""
    http, headers = event["requestContext"]["http"], event["headers"]
    named = (headers.get(name, "") for name in ("authorization", "accept", "if-none-match"))
    return http["method"], event["rawPath"], event["rawQueryString"], *named


def _is_failure(answer: dict[str, Any] | None) -> bool:
    return answer is None or answer["statusCode"] >= HTTPStatus.INTERNAL_SERVER_ERROR


async def _answer(send: Send, answer: dict[str, Any]) -> None:
    text = answer.get("body") or b""
    body = base64.b64decode(text) if answer.get("isBase64Encoded") else text.encode() if isinstance(text, str) else text
    headers = [
        (name.lower().encode("latin-1"), str(value).encode("latin-1")) for name, value in answer["headers"].items()
    ]
    # A 304's length would be that of the answer it stands for, and a 204 has none (RFC 9110 §8.6).
    lengthless = answer["statusCode"] in {HTTPStatus.NOT_MODIFIED, HTTPStatus.NO_CONTENT}
    if not lengthless and not any(name == b"content-length" for name, _ in headers):
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": answer["statusCode"], "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _busy() -> Problem:
    return unavailable("busy", f"Come again in {BUSY_RETRY_SECONDS} s.", retry_after_seconds=BUSY_RETRY_SECONDS)


def _as_answer(problem: Problem) -> Event:
    reply = problem.reply
    headers = {**reply.headers, "Content-Type": reply.content_type}
    return {"statusCode": reply.status.value, "headers": headers, "body": reply.body}
