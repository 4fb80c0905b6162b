"""Uploads whose topic the host's user must not use, again and again as a store brings them, beside many that it may."""

from __future__ import annotations

import json
import math
import re
import statistics
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Self

from infra.incoming import Received
from tests.chaos.uploads import Uploads
from tests.hosts import Host, upload
from tests.matrix.brokers.brand import ASSETS, FORBIDDEN, LIMITED, Running
from tests.matrix.brokers.contract import PER_SECOND, PROTOCOLS, SETTLE_SECONDS, config, host_of, milliseconds, outcome
from tests.matrix.result import Check

RETRY_SECONDS = 3.0  # as MinIO does
SECONDS = 7.0  # so that each is brought three times
EVENTS = 3
JOIN_SECONDS = 15.0
HELD_UP_SECONDS = 1.0  # an allowed message waits for nobody; a busy machine is faster than this too


def forbidden(broker: Running, directory: Path, figures: dict[str, float]) -> Iterator[Check]:
    """Both protocols at the same time: the files of each have names of their own."""
    with ThreadPoolExecutor() as pool:
        yield from pool.map(partial(_forbidden, broker, directory, figures), PROTOCOLS)


def _forbidden(broker: Running, directory: Path, figures: dict[str, float], protocol: str) -> Check:
    def named(key: str) -> str:
        return key.replace("/", f"/{protocol}-")

    directory /= protocol
    with broker.ear(protocol=protocol, qos=1) as ear, host_of(directory, broker, LIMITED, protocol=protocol) as host:

        def put(key: str) -> None:
            while outcome(host, upload(named(key)))[0] != 200:
                time.sleep(RETRY_SECONDS)

        with _Insisting(host) as insisting, Uploads(put, PER_SECOND) as uploads:
            time.sleep(SECONDS)
        messages = ear.silence(SETTLE_SECONDS)
        said = _how(host)
    heard_at = _heard_at(messages)
    took = [heard_at[named(key)] - one.began_at for key, one in uploads.answered.items() if named(key) in heard_at]
    middle = statistics.median(took) if took else math.inf
    figures[f"allowed beside forbidden, MQTT {protocol}, p50, ms"] = milliseconds(middle)
    name = f"forbidden beside allowed, MQTT {protocol}"
    lacking = len(uploads.answered) + len(uploads.unanswered) - len(took)
    if lacking or middle > HELD_UP_SECONDS:
        return Check(name, "failed", f"{lacking} allowed ones missing, p50 {milliseconds(middle)} ms; {said}")
    if any(message.topic == FORBIDDEN for message in messages):
        return Check(name, "failed", "it was published")
    if any(answer.startswith("200") for answer in insisting.answers):
        return Check(name, "lost", "the broker confirms it and throws it away, so nobody can know")
    return Check(name, "ok", said)


class _Insisting:
    """Brings some uploads to the sure door until it takes them, or this is over."""

    def __init__(self, host: Host) -> None:
        self.answers: set[str] = set()
        self._host = host
        self._over = threading.Event()
        bodies = [upload(config()) for _ in range(EVENTS)]
        self._threads = [threading.Thread(target=self._insist, args=(body,), daemon=True) for body in bodies]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _insist(self, body: bytes) -> None:
        while not self._over.is_set():
            status, word = outcome(self._host, body)
            self.answers.add(f"{status} {word}")
            if status == 200 or self._over.wait(RETRY_SECONDS):
                return


def _heard_at(messages: list[Received]) -> dict[str, float]:
    """When each asset was first heard of."""
    found: dict[str, float] = {}
    for message in messages:
        if message.topic == ASSETS:
            found.setdefault(f"assets/{json.loads(message.payload)['filename']}", message.received_at)
    return found


def _how(host: Host) -> str:
    """In which way the broker says no, and what that cost."""
    reasons = " ".join(str(line.get("reason")) for line in host.lines("ERROR") + host.lines("WARNING"))
    answer = re.search(r"the broker answered (0x\w\w)", reasons)
    ways = [f"PUBACK {answer[1]}"] if answer else []
    ways += ["DISCONNECT"] if "disconnected by the broker" in reasons else []
    lost = host.metric("mqtt_reconnect_attempts_total")
    ways = ways or ["closes without a word"] * bool(lost)
    return " and ".join(ways) + (f", {lost:g} reconnects in {SECONDS:g} s" if lost else "")
