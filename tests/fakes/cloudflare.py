"""Cloudflare's HTTP API of one queue, as its documentation says ("Pull consumers"): no account can be had here."""

from __future__ import annotations

import base64
import json
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

from tests.timing import PATIENCE_SECONDS

TOKEN = "cloudflares-token-Zq7x9w"
PATH = "/client/v4/accounts/3f4b7e3dcab231cb/queues/1ad27d24c83de789"
NOT_ALLOWED = {"success": False, "errors": [{"code": 10000, "message": "Authentication error"}], "result": None}


@dataclass
class Kept:
    """A message of the queue."""

    body: object
    content_type: str
    attempts: int = 0
    visible_at: float = 0.0
    lease: str = ""


@dataclass
class CloudflareQueueApi:
    """Leases what it hands out, counts tries, and drops what has had too many, or moves it to `dead`."""

    max_retries: int = 100
    messages: list[Kept] = field(default_factory=list)
    dead: list[Kept] = field(default_factory=list)
    pulls: list[dict[str, Any]] = field(default_factory=list)
    acks: list[dict[str, Any]] = field(default_factory=list)
    answer: tuple[int, bytes] | None = None
    """What is answered in place of what is true."""

    def __enter__(self) -> Self:
        api = self
        self._lock = threading.Lock()
        self._leases = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            timeout = PATIENCE_SECONDS

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                status, answer = api.handle(self.path, self.headers.get("Authorization", ""), json.loads(body))
                self.send_response(status)
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join(PATIENCE_SECONDS)

    @property
    def url(self) -> str:
        """The queue's address, as R2_QUEUE_URL wants it."""
        return f"http://127.0.0.1:{self._server.server_port}{PATH}"

    def environment(self) -> dict[str, str]:
        """What a host needs to know."""
        return {"R2_QUEUE_URL": self.url, "R2_QUEUE_TOKEN": TOKEN}

    def send(self, document: Mapping[str, object] | str, content_type: str = "json") -> None:
        """Put a message there: JSON, as R2 does, or text as it is."""
        body = document if isinstance(document, str) else json.dumps(document)
        if content_type in {"json", "bytes"}:
            body = base64.b64encode(body.encode()).decode()
        with self._lock:
            self.messages.append(Kept(body, content_type))

    def depth(self) -> int:
        """How many messages are there, leased or not."""
        with self._lock:
            return len(self.messages)

    def handle(self, path: str, authorization: str, asked: dict[str, Any]) -> tuple[int, bytes]:
        """Answer one request."""
        if self.answer is not None:
            return self.answer
        if authorization != f"Bearer {TOKEN}":
            return 403, json.dumps(NOT_ALLOWED).encode()
        with self._lock:
            if path == f"{PATH}/messages/pull":
                self.pulls.append(asked)
                result: dict[str, object] = {"message_backlog_count": len(self.messages), "messages": self._pull(asked)}
            elif path == f"{PATH}/messages/ack":
                self.acks.append(asked)
                result = {"ackCount": len(asked["acks"]), "retryCount": len(asked["retries"]), "warnings": []}
                self._settle(asked)
            else:
                errors = [{"code": 11000, "message": "queue not found"}]
                return 404, json.dumps({"success": False, "errors": errors, "result": None}).encode()
        return 200, json.dumps({"success": True, "errors": [], "messages": [], "result": result}).encode()

    def _pull(self, asked: dict[str, Any]) -> list[dict[str, object]]:
        now = time.monotonic()
        found: list[dict[str, object]] = []
        for one in tuple(self.messages):
            if one.visible_at > now or len(found) == asked["batch_size"]:
                continue
            if one.attempts > self.max_retries:
                self.messages.remove(one)
                self.dead.append(one)
                continue
            self._leases += 1
            one.attempts += 1
            one.lease = f"lease-{self._leases}"
            one.visible_at = now + asked["visibility_timeout_ms"] / 1000
            found.append(
                {
                    "body": one.body,
                    "id": f"{id(one):x}",
                    "timestamp_ms": 1_689_615_013_586,
                    "attempts": one.attempts,
                    "metadata": {"CF-sourceMessageSource": "r2", "CF-Content-Type": one.content_type},
                    "lease_id": one.lease,
                }
            )
        return found

    def _settle(self, asked: dict[str, Any]) -> None:
        done = {one["lease_id"] for one in asked["acks"]}
        again = {one["lease_id"]: one.get("delay_seconds", 0) for one in asked["retries"]}
        self.messages[:] = [one for one in self.messages if one.lease not in done]
        for one in self.messages:
            if one.lease in again:
                one.visible_at = time.monotonic() + again[one.lease]
