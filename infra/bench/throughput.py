"""Events a second through the host's sure door: beside the same application that only parses, one of threads, and Node.

Each answer waits for the broker's PUBACK, except for the side that only parses. All sides that publish are seen to
send the same message first.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import statistics
import sys
import urllib.request
from collections import defaultdict
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from itertools import product
from pathlib import Path

from infra.bench.child import Child
from infra.bench.figures import Bench, Figure, NotMeasuredError, compared, per_second
from infra.bench.load import Order
from infra.bench.node.install import HERE, find_node, modules
from infra.bench.rig import BUCKET, TOPIC
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stack import HostProcess
from infra.subscriber import Subscriber

CONNECTIONS = (1, 16, 64, 256)
TARGETS_AT = 64  # connections
WARM_SECONDS = 0.3
SECONDS = 1.0
ANSWER_SECONDS = 30.0
HEAR_SECONDS = 5.0
PARSING_TARGET, THREADS_TARGET, NODE_TARGET = 0.5, 2.0, 1.0
TOKEN = "bench-bench-bench-bench"  # noqa: S105 - of servers on loopback
# What Mosquitto logs unless told otherwise; our own brokers log each packet.
BROKER_LOG = ("log_type none", "log_type error", "log_type warning", "log_type notice", "log_type information")
PEERS = {
    "parse": "the same app that only parses",
    "threads": "a thread waiting for each publish",
    "node": "Node: http, mqtt",
}


def measure(bench: Bench) -> list[Figure]:
    """The host, the side that only parses and the one of threads, in turn, round after round."""
    targets = {("parse", TARGETS_AT): PARSING_TARGET, ("threads", TARGETS_AT): THREADS_TARGET}
    return _measure(bench, ("host", "parse", "threads"), targets)


def measure_node(bench: Bench) -> list[Figure]:
    """The host and the Node host in turn, round after round.

    A Python built without a profile of itself (pyenv's, unless it is told) costs the host an eighth of its speed:
    docs/decisions, "The way of an event stays plain".
    """
    return _measure(bench, ("host", "node"), {("node", connections): NODE_TARGET for connections in CONNECTIONS})


def _measure(bench: Bench, sides: Sequence[str], targets: Mapping[tuple[str, int], float]) -> list[Figure]:
    rounds = bench.count(7, 5)
    rates: defaultdict[tuple[str, int], list[float]] = defaultdict(list)
    each: defaultdict[tuple[str, int], list[float]] = defaultdict(list)  # seconds of CPU
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(bench.directory / "mosquitto", extra=BROKER_LOG))
        ports = {side: free_port() for side in sides}
        processes = {
            side: parts.enter_context(_side(bench.directory / side, side, ports[side], broker)) for side in sides
        }
        load = parts.enter_context(Child("infra.bench.load"))
        _compare_messages(load, broker, {side: port for side, port in ports.items() if side != "parse"})
        for batch, (number, connections) in enumerate(product(range(rounds), CONNECTIONS), 1):
            bench.say(f"round {number + 1} of {rounds}: {connections} connections")
            for side in sides if number % 2 else reversed(sides):
                outcome = "" if side == "parse" else "delivered"
                order = Order(
                    ports[side], broker.port, [TOKEN], batch, connections, WARM_SECONDS, SECONDS, outcome=outcome
                )
                before = _cpu_seconds(processes[side])
                good_rate, good = _fulfil(load, order)
                rates[side, connections].append(good_rate)
                each[side, connections].append((_cpu_seconds(processes[side]) - before) / good)
    return [
        compared(
            f"requests/s at {connections} connection{'s' if connections > 1 else ''}, PUBACK awaited",
            PEERS[side],
            rates["host", connections],
            rates[side, connections],
            per_second,
            sense="≥" if (side, connections) in targets else None,
            target=targets.get((side, connections)),
            detail=_each(each["host", connections], each[side, connections]),
        )
        for side in sides[1:]
        for connections in CONNECTIONS
    ]


def _side(directory: Path, side: str, port: int, broker: Mosquitto) -> Process:
    if side == "host":
        return HostProcess(directory, port, {"MQTT_URL": broker.url, "BUCKET": BUCKET, "WEBHOOK_TOKENS": TOKEN})
    return (
        node_process(directory, port, broker.port)
        if side == "node"
        else side_process(directory, side, port, broker.port)
    )


def side_process(directory: Path, name: str, port: int, mqtt_port: int) -> Process:
    """One of `infra.bench.sides`, to be started."""
    command = [sys.executable, "-m", "infra.bench.sides", name, str(port), str(mqtt_port), TOKEN]
    return Process(name, command, directory, ready=lambda: _answers(port))


def node_process(directory: Path, port: int, mqtt_port: int) -> Process:
    """The Node host, to be started. Raises `NotMeasuredError` where there is no Node."""
    directory.mkdir()
    (directory / "node_modules").symlink_to(modules())
    script = directory / "host.mjs"  # beside its packages, where Node looks for them
    script.write_bytes((HERE / script.name).read_bytes())
    command = [find_node(), str(script), str(port), str(mqtt_port), TOKEN, BUCKET]
    return Process("node", command, directory, environment={"NODE_ENV": "production"}, ready=lambda: _answers(port))


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1):
        return True
    return False


def _compare_messages(load: Child, broker: Mosquitto, ports: Mapping[str, int]) -> None:
    """Have each side announce the same upload. Raises `NotMeasuredError` where what is heard is not the same."""
    heard: dict[str, object] = {}
    with Subscriber(broker.url, [TOPIC], qos=1) as subscriber:
        for side, port in ports.items():
            rate(load, Order(port, broker.port, [TOKEN], 0, 1, seconds=HEAR_SECONDS, events=1))
            heard[side] = _essence(subscriber.next(HEAR_SECONDS))
    for side, message in heard.items():
        if message != heard["host"]:
            raise NotMeasuredError(f"{side} sends {message} where the host sends {heard['host']}")


def _essence(message: Received) -> object:
    """All that two sides must agree on; an id is of a side's own making."""
    properties = {name: value if name != "id" else len(value) for name, value in message.user_properties}
    return message.topic, json.loads(message.payload), message.qos, message.retain, message.content_type, properties


def rate(load: Child, order: Order) -> float:
    """Requests a second. Raises `NotMeasuredError` where any was not confirmed: that costs less than confirming."""
    return _fulfil(load, order)[0]


def _fulfil(load: Child, order: Order) -> tuple[float, int]:
    good_rate, failed, good = load.ask(asdict(order), ANSWER_SECONDS)
    if failed:
        raise NotMeasuredError(f"{failed} requests were not answered as they should be")
    if not good_rate:
        raise NotMeasuredError(f"no request was answered on port {order.port}")
    return float(good_rate), int(good)


def _cpu_seconds(process: Process) -> float:
    """What the process has used by now (Linux: proc(5)); nan elsewhere."""
    try:
        fields = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return math.nan
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _each(ours: Sequence[float], theirs: Sequence[float]) -> str:
    """CPU for one request, which tells the sides apart on a busy machine too."""
    mine, its = (statistics.median(seconds) * 1e6 for seconds in (ours, theirs))
    return "" if math.isnan(mine) else f"CPU of the process for each: {mine:.0f} µs / {its:.0f} µs"
