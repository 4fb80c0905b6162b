"""Calls a Lambda handler for devices' requests, with the event that API Gateway would send (payload format 2.0)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import time
import uuid
from collections import OrderedDict
from collections.abc import Awaitable, Callable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from functions.telemetry import logger

PREFIXES = ("/configs/", "/assets", "/manifest")
THREADS = 16
MAX_WAITING = 256
HANDLER_SECONDS = 10.0  # the handler's own deadlines are shorter
BUSY_RETRY_SECONDS = 1
MAX_CALLERS = 50_000
REFUSALS_PER_MINUTE = 30  # of one address: guessing tokens is not worth it

Scope = MutableMapping[str, Any]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Event = dict[str, Any]


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
    """At most so many a minute for each key, with the whole minute's share at once; keys are bounded in number.

    The generic cell rate algorithm (ITU-T I.371): for each key the moment at which its share will be whole again.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute` 0: no limit."""
        self._interval_seconds = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._whole_at: OrderedDict[bytes, float] = OrderedDict()

    def wait_seconds(self, key: bytes) -> float:
        """How long until `key` has a share left: 0 means now."""
        return max(0.0, self._whole_at.get(key, 0.0) + self._interval_seconds - self._clock() - 60.0)

    def take(self, key: bytes) -> None:
        """Use one share."""
        self._whole_at[key] = max(self._whole_at.get(key, 0.0), self._clock()) + self._interval_seconds
        self._whole_at.move_to_end(key)
        while len(self._whole_at) > MAX_CALLERS:
            self._whole_at.popitem(last=False)


class Gateway:
    """Bounded in threads, in waiting requests, in time, and in requests per token."""

    def __init__(self, handler: Callable[[Event, Any], dict[str, Any]], *, requests_per_minute: int) -> None:
        """`handler` runs in a thread of the pool. `requests_per_minute` holds for each token; 0: no limit."""
        self._handler = handler
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="gateway")
        self._waiting = 0
        self._requests = RateLimit(requests_per_minute)
        self._refusals = RateLimit(REFUSALS_PER_MINUTE)

    async def warm_up(self, work: Callable[[], object]) -> None:
        """Do `work` in the pool: the first request must not pay for it."""
        asyncio.get_running_loop().run_in_executor(self._pool, work)

    @staticmethod
    def takes(path: str) -> bool:
        """Whether a request for this path is for the handler."""
        return path.startswith(PREFIXES)

    async def __call__(self, scope: Scope, send: Send) -> None:
        """Answer one request. Its body, if any, is not read: nothing here takes one."""
        event = api_gateway_event(scope)
        caller, address = _caller(event)
        wait_seconds = max(self._requests.wait_seconds(caller), self._refusals.wait_seconds(address))
        if wait_seconds > 0:
            await _refuse(send, 429, "Too Many Requests", int(wait_seconds) + 1)
        elif self._waiting >= MAX_WAITING:
            await _refuse(send, 503, "Service Unavailable", BUSY_RETRY_SECONDS)
        else:
            self._requests.take(caller)
            answer = await self._call(event)
            if answer is None:
                await _refuse(send, 503, "Service Unavailable", BUSY_RETRY_SECONDS)
                return
            if answer["statusCode"] == 401:  # noqa: PLR2004 - Unauthorized
                self._refusals.take(address)
            await _answer(send, answer)

    async def close(self) -> None:
        """Take no more; what runs ends within the handler's own deadlines."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    async def _call(self, event: Event) -> dict[str, Any] | None:
        """Return the handler's answer, None when it has none in time."""
        loop = asyncio.get_running_loop()
        self._waiting += 1
        future = loop.run_in_executor(self._pool, self._handler, event, Context(event["requestContext"]["requestId"]))
        future.add_done_callback(self._done)
        try:
            return await asyncio.wait_for(asyncio.shield(future), HANDLER_SECONDS)
        except TimeoutError:
            logger.error("a request took too long", extra={"path": event["rawPath"], "seconds": HANDLER_SECONDS})
        except Exception:  # noqa: BLE001 - whatever a handler raises, its client gets an answer
            logger.exception("a request failed")
        return None

    def _done(self, future: asyncio.Future[dict[str, Any]]) -> None:
        self._waiting -= 1
        if not future.cancelled():
            future.exception()  # looked at, whoever has stopped waiting for it


def api_gateway_event(scope: Scope) -> Event:
    """Build what an HTTP API sends: the path decoded once, the query as it came, repeated headers joined."""
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        headers[key] = f"{headers[key]},{text}" if key in headers else text
    address = scope["client"][0] if scope.get("client") else ""
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


def _caller(event: Event) -> tuple[bytes, bytes]:
    """Whose share a request takes: that of its token, else of its address; and the address."""
    address = event["requestContext"]["http"]["sourceIp"].encode()
    token = event["headers"].get("authorization")
    return (hashlib.blake2b(token.encode("latin-1"), digest_size=16).digest() if token else address), address


async def _answer(send: Send, answer: dict[str, Any]) -> None:
    text = answer.get("body") or ""
    body = base64.b64decode(text) if answer.get("isBase64Encoded") else text.encode()
    headers = [
        (name.lower().encode("latin-1"), str(value).encode("latin-1")) for name, value in answer["headers"].items()
    ]
    if not any(name == b"content-length" for name, _ in headers):
        headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": answer["statusCode"], "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def _refuse(send: Send, status: int, title: str, retry_after_seconds: int) -> None:
    problem = f'{{"title":"{title}","status":{status},"detail":"Come again in {retry_after_seconds} s."}}'
    headers = {"content-type": "application/problem+json", "retry-after": str(retry_after_seconds)}
    await _answer(send, {"statusCode": status, "headers": headers, "body": problem})
