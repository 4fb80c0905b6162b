"""Runs one event through the runtime inside its image, as moto starts it: `once.py <handler> <event as JSON>`.

The runtime is told of one invocation by a Runtime API of our own (Lambda, "Using the Lambda runtime API"). Its answer
is the last line of stdout, all that it logs goes to stderr; the exit status is 1 where the function failed.
"""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
import time

REQUEST_ID = "00000000-0000-4000-8000-000000000001"
DEFAULT_TIMEOUT_SECONDS = 9.0
GRACE_SECONDS = 5.0


class RuntimeApi(http.server.ThreadingHTTPServer):
    """Hands out one event, and keeps what comes back."""

    def __init__(self, event: bytes, timeout_seconds: float) -> None:
        super().__init__(("127.0.0.1", 0), Exchange)
        self.event = event
        self.timeout_seconds = timeout_seconds
        self.answer: bytes | None = None
        self.failed = False
        self.given = False
        self.answered = threading.Event()


class Exchange(http.server.BaseHTTPRequestHandler):
    """One request of the runtime."""

    server: RuntimeApi
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        """`/2018-06-01/runtime/invocation/next`: the event; the next one never comes."""
        if self.server.given:
            self.server.answered.wait()
            time.sleep(GRACE_SECONDS)
            return
        self.server.given = True
        deadline_milliseconds = round((time.time() + self.server.timeout_seconds) * 1000)
        self.send_response(http.HTTPStatus.OK)
        self.send_header("Lambda-Runtime-Aws-Request-Id", REQUEST_ID)
        self.send_header("Lambda-Runtime-Deadline-Ms", str(deadline_milliseconds))
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(self.server.event)))
        self.end_headers()
        self.wfile.write(self.server.event)

    def do_POST(self) -> None:
        """`…/response`, or `…/error` of the invocation or of the start."""
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(http.HTTPStatus.ACCEPTED)
        self.send_header("Content-Length", "0")
        self.end_headers()
        self.server.answer = body
        self.server.failed = self.path.endswith("/error")
        self.server.answered.set()

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002 - the name that http.server gives it
        """Says nothing: stderr is the function's log."""


def run(handler: str, event: str) -> int:
    """Invoke `handler` once; the exit status."""
    timeout_seconds = float(os.environ.get("AWS_LAMBDA_FUNCTION_TIMEOUT") or DEFAULT_TIMEOUT_SECONDS)
    api = RuntimeApi(event.encode(), timeout_seconds)
    threading.Thread(target=api.serve_forever, daemon=True).start()
    variables = {"AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{api.server_port}", "_HANDLER": handler}
    runtime = subprocess.Popen(["/var/runtime/bootstrap"], env={**os.environ, **variables}, stdout=sys.stderr)
    deadline = time.monotonic() + timeout_seconds + GRACE_SECONDS
    while not api.answered.wait(0.01) and runtime.poll() is None and time.monotonic() < deadline:
        pass
    runtime.kill()
    runtime.wait()
    if api.answer is None:
        answer, failed = json.dumps({"errorType": "Runtime.ExitError", "errorMessage": "no answer in time"}), True
    else:
        answer, failed = api.answer.decode(), api.failed
    print(answer.replace("\n", " "), flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(run(*sys.argv[1:3]))
