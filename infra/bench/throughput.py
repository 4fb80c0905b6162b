"""Events a second through the host's sure door, beside the same application that only parses, and one of threads."""

from __future__ import annotations

import contextlib
import statistics
import sys
import urllib.request
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from infra.bench.child import Child
from infra.bench.figures import TIMES, Bench, Figure, NotMeasuredError
from infra.bench.load import Order
from infra.bench.rig import BUCKET
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stack import Host

CONNECTIONS = 64
WARM_SECONDS = 0.4
SECONDS = 2.0
ANSWER_SECONDS = 30.0
PARSING_TARGET, THREADS_TARGET = 0.5, 2.0
TOKEN = "bench-bench-bench-bench"  # noqa: S105 - of servers on loopback
SIDES = ("host", "parse", "threads")


def measure(bench: Bench) -> list[Figure]:
    """The three sides in turn, round after round; the median of the rounds' ratios."""
    rounds = bench.count(12, 4)
    rates: dict[str, list[float]] = {side: [] for side in SIDES}
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto"))
        ports = {side: free_port() for side in SIDES}
        variables = {"MQTT_URL": broker.url, "BUCKET": BUCKET, "WEBHOOK_TOKENS": TOKEN}
        parts.enter_context(Host(bench.directory / "host", ports["host"], variables))
        for side in ("parse", "threads"):
            parts.enter_context(side_process(bench.directory / side, side, ports[side], broker.port))
        load = parts.enter_context(Child("infra.bench.load"))
        for number in range(rounds):
            bench.say(f"round {number + 1} of {rounds}")
            for side in SIDES if number % 2 else reversed(SIDES):
                order = Order(ports[side], broker.port, TOKEN, number, CONNECTIONS, WARM_SECONDS, SECONDS)
                rates[side].append(rate(load, order))
    medians = {side: statistics.median(values) for side, values in rates.items()}
    return [
        Figure(
            f"requests/s at {CONNECTIONS} connections, PUBACK awaited, against {against}",
            statistics.median(ours / theirs for ours, theirs in zip(rates["host"], rates[side], strict=True)),
            "≥",
            target,
            TIMES,
            f"{medians['host']:,.0f}/s / {medians[side]:,.0f}/s, {rounds} rounds",
        )
        for side, against, target in (
            ("parse", "the same app that only parses", PARSING_TARGET),
            ("threads", "a thread waiting for each publish", THREADS_TARGET),
        )
    ]


def side_process(directory: Path, name: str, port: int, mqtt_port: int) -> Process:
    """One of `infra.bench.sides`, to be started."""
    command = [sys.executable, "-m", "infra.bench.sides", name, str(port), str(mqtt_port), TOKEN]
    return Process(name, command, directory, ready=lambda: _answers(port))


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
        return True
    return False


def rate(load: Child, order: Order) -> float:
    """Requests a second. Raises `NotMeasuredError` where any was not confirmed: that costs less than confirming."""
    good_rate, failed = load.ask(asdict(order), ANSWER_SECONDS)
    if failed:
        raise NotMeasuredError(f"{failed} requests were not answered as they should be")
    if not good_rate:
        raise NotMeasuredError(f"no request was answered on port {order.port}")
    return float(good_rate)
