"""The host as tests use it: the real process on a free port, events to post, and its loop for tests inside it."""

from __future__ import annotations

import asyncio
import functools
import gc
import itertools
import json
import os
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any, ParamSpec, Self
from urllib.parse import quote_plus

import httpx
import uvloop
from prometheus_client.parser import text_string_to_metric_families

from infra.incoming import Received
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

TOKEN, NEXT_TOKEN = "t0ken-of-this-quarter", "t0ken-of-next-quarter"
MAC_KEY = "configs/aa-bb-cc-dd-ee-ff.json"
TOPICS = ("iotsupport/updates/configs", "iotsupport/updates/assets")
TEST_SECONDS = 100.0  # less than pytest's own time-out, which does not get through to a loop
EXIT_SECONDS = 30.0  # then it hangs: the promise is `STOP_SECONDS`
STOP_SECONDS = 3.0 + 2 * SLACK_SECONDS  # the host ends within 3 s; a whole process is slower still, where all is slow

_numbers = itertools.count(1)
_OURS = (
    "MQTT_",
    "HOST_",
    "AWS_",
    "S3_",
    "WEBHOOK_",
    "SQS_",
    "SWEEP_",
    "NATS_",
    "TOPIC_",
    "BUCKET",
    "CONFIGS_",
    "DEVICE_",
    "ASSETS_",
    "LOG_",
    "SECRETS_",
)

P = ParamSpec("P")


def record(key: str = MAC_KEY, **changes: object) -> dict[str, Any]:
    """One S3 record of MinIO's, of an upload that never was before; `changes` replace fields of its object."""
    sequencer = f"{0x18E9DDA500000000 + next(_numbers) * 1_000_000:X}"  # when it was modified, in ns
    fields = {"key": quote_plus(key), "size": 16, "eTag": "4d22", "sequencer": sequencer}
    return {
        "eventSource": "minio:s3",
        "eventTime": "2026-11-20T21:20:28.873Z",
        "eventName": "s3:ObjectCreated:Put",
        "s3": {"bucket": {"name": "devices"}, "object": fields | changes},
    }


def event(*records: object) -> bytes:
    """The body of a webhook with `records`, one new upload by default."""
    return json.dumps({"Records": list(records) or [record()]}).encode()


def upload(key: str = MAC_KEY) -> bytes:
    """The body of a webhook that tells of a new upload to `key`."""
    return event(record(key))


def on_uvloop(test: Callable[P, Awaitable[None]]) -> Callable[P, None]:
    """Runs a test on the loop of production; it fails on what that loop would only have logged."""

    @functools.wraps(test)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        unseen: list[dict[str, Any]] = []

        async def scenario() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unseen.append(context))
            async with asyncio.timeout(TEST_SECONDS):
                await test(*args, **kwargs)
            gc.collect()  # a task whose exception nobody took says so when it goes
            left = asyncio.all_tasks() - {asyncio.current_task()}
            assert not left

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(scenario())
        assert not unseen

    return run


async def until(truth: Callable[[], object], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """Returns as soon as `truth()` holds; TimeoutError otherwise."""
    async with asyncio.timeout(timeout_seconds):
        while not truth():  # noqa: ASYNC110 - what is waited for happens in another thread or process
            await asyncio.sleep(0.01)


def eventually(truth: Callable[[], object], timeout_seconds: float = PATIENCE_SECONDS) -> None:
    """As `until`, outside of a loop."""
    deadline = time.monotonic() + timeout_seconds
    while not truth():
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.02)


def exactly(count: int, listener: Subscriber, settle_seconds: float = 0.3) -> list[Received]:
    """The next messages: so many, and for a while no more."""
    messages = listener.wait_for(count)
    assert listener.silence(settle_seconds) == []
    return messages


class Host:
    """`bucketbell host` as a child process, listening when entered; `http` is a client of it."""

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *,
        ready: bool = True,
        patch: str = "",
        ca_file: Path | None = None,
        port: int = 0,
    ) -> None:
        """With `ready`, entering also waits for the broker; `patch` is Python that the process runs first.

        `ca_file` is trusted by a client of a host that speaks TLS.
        """
        self.port = port or free_port()
        self.url = f"{'http' if ca_file is None else 'https'}://127.0.0.1:{self.port}"
        self.log_file = directory / f"host-{self.port}.log"
        script = Path(sys.executable).with_name("bucketbell")
        start = ["-c", f"{patch}\nfrom infra.cli import app\napp()"] if patch else [str(script)]
        self._command = [sys.executable, *start, "host", "--port", str(self.port)]
        self._ready = ready
        self._directory = directory
        self.environment = {n: v for n, v in os.environ.items() if not n.startswith(_OURS)} | dict(environment)
        self.environment["PYTHONPATH"] = str(Path(__file__).parents[1])
        self.child: subprocess.Popen[bytes]
        trusted = ssl.create_default_context(cafile=ca_file)
        self.http = httpx.Client(base_url=self.url, timeout=PATIENCE_SECONDS, trust_env=False, verify=trusted)

    def __enter__(self) -> Self:
        with self.log_file.open("ab") as log:
            self.child = subprocess.Popen(
                self._command, cwd=self._directory, env=self.environment, stdout=log, stderr=log
            )
        try:
            eventually(lambda: "listening" in self.log or self.child.poll() is not None)
            assert self.child.poll() is None, self.log
            if self._ready:
                eventually(lambda: self.http.get("/readyz").status_code == 200)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.http.close()
        self.child.kill()
        self.child.wait(EXIT_SECONDS)

    @property
    def log(self) -> str:
        """All that it has said so far."""
        return self.log_file.read_text(errors="replace") if self.log_file.exists() else ""

    def lines(self, level: str) -> list[dict[str, Any]]:
        """Its log lines of `level`, as JSON objects."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["level"] == level]

    def post(self, body: bytes, door: str = "/events", token: str | None = TOKEN) -> httpx.Response:
        """Posts one event as MinIO does."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return self.http.post(door, content=body, headers=headers | {"Content-Type": "application/json"})

    def metric(self, name: str, **labels: str) -> float:
        """The sum of that metric's samples with (at least) these labels; 0 where there are none."""
        families = text_string_to_metric_families(self.http.get("/metrics").text)
        samples = [sample for family in families for sample in family.samples if sample.name == name]
        return sum(s.value for s in samples if labels.items() <= s.labels.items())

    def descriptors(self) -> int:
        """How many files and sockets the process has open (Linux)."""
        return len(list(Path(f"/proc/{self.child.pid}/fd").iterdir()))

    def descriptors_at_rest(self) -> int:
        """The same with its broker and our client connected, either of which may come back later otherwise."""
        assert self.http.get("/readyz").status_code == 200
        return self.descriptors()

    def stop(self, number: signal.Signals = signal.SIGTERM) -> float:
        """Sends a signal and waits for exit status 0; returns the seconds that took."""
        begun_at = time.monotonic()
        self.child.send_signal(number)
        assert self.child.wait(EXIT_SECONDS) == 0, self.log
        return time.monotonic() - begun_at


def environment(mqtt_url: str | None, **more: str) -> dict[str, str]:
    """What a host needs to know. A test whose broker stays away says how long an event may wait for it."""
    known = {"WEBHOOK_TOKENS": f"{TOKEN},{NEXT_TOKEN}", "MQTT_PUBLISH_TIMEOUT_SECONDS": "10"}
    return known | ({"MQTT_URL": mqtt_url} if mqtt_url else {}) | more
