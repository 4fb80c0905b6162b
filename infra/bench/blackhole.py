"""The test of broker settings that name an address where nobody ever answers: how long a person waits."""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http import HTTPStatus

from infra.bench.figures import Bench, Figure, NotMeasuredError
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import HostProcess

TARGET_SECONDS = 5.5
REQUEST_SECONDS = 20.0
FILLERS = 4
TOKEN = "bench-bench-bench-bench"  # noqa: S105 - of a host on loopback
TEST = "/api/v1/integrations/mqtt/test"


def measure(bench: Bench) -> list[Figure]:
    """Several attempts at an address that swallows SYNs, and at one that takes connections and says nothing."""
    count = bench.count(5, 2)
    port = free_port()
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto"))
        variables = {"MQTT_URL": broker.url, "WEBHOOK_TOKENS": TOKEN, "ADMIN_TOKENS": TOKEN}
        parts.enter_context(HostProcess(bench.directory / "host", port, variables))
        places = {
            "swallows SYNs": parts.enter_context(_swallowing()),
            "accepts and is silent": parts.enter_context(_silent()),
        }
        figures = []
        for what, there in places.items():
            took_seconds = []
            for number in range(count):
                bench.say(f"{what}: attempt {number + 1} of {count}")
                took_seconds.append(_test(port, there))
            about = f"the longest test of settings whose broker {what}"
            figures.append(Figure(about, max(took_seconds), "≤", TARGET_SECONDS, "s", f"{count} attempts"))
    return figures


@contextmanager
def _swallowing() -> Iterator[int]:
    """A port whose queue of connections is full: the kernel drops further SYNs, as a firewall does."""
    with ExitStack() as parts:
        listener = parts.enter_context(socket.socket())
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        address = listener.getsockname()
        for _ in range(FILLERS):
            filler = parts.enter_context(socket.socket())
            filler.setblocking(False)  # noqa: FBT003 - socket's own
            filler.connect_ex(address)
        with socket.socket() as check:
            check.settimeout(0.5)
            with contextlib.suppress(TimeoutError):
                check.connect(address)
                raise NotMeasuredError("this system's kernel takes connections beyond a full queue")
        yield int(address[1])


@contextmanager
def _silent() -> Iterator[int]:
    """A port where the kernel takes connections, and nobody ever reads."""
    with socket.create_server(("127.0.0.1", 0), backlog=64) as listener:
        yield int(listener.getsockname()[1])


def _test(port: int, broker_port: int) -> float:
    """Seconds until the answer, which must say that nobody answered."""
    settings = {"broker_host": "127.0.0.1", "broker_port": broker_port, "topic_prefix": "bench"}
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=REQUEST_SECONDS)
    began_at = time.monotonic()
    try:
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": "application/json"}
        connection.request("POST", TEST, json.dumps(settings), headers)
        answer = connection.getresponse()
        body = json.loads(answer.read())
    finally:
        connection.close()
    if answer.status != HTTPStatus.OK or body["outcome"] != "silent":
        raise NotMeasuredError(f"the test was answered {answer.status}: {body}")
    return time.monotonic() - began_at
