"""A subscriber that takes messages in batches, at a real Mosquitto: what is refused stays with the broker."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
from paho.mqtt import publish

from infra.incoming import MAX_BATCH, MAX_HELD, Received
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.hosts import eventually

COUNT = 3 * MAX_HELD
NO_LIMIT = ("max_inflight_messages 0", "max_queued_messages 100000", "log_type error")

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


class Taker:
    """Takes batches, or refuses them."""

    def __init__(self, *, takes: bool) -> None:
        self.takes = threading.Event()
        if takes:
            self.takes.set()
        self.sizes: list[int] = []
        self.taken: list[int] = []

    def __call__(self, batch: Sequence[Received]) -> bool:
        """Note what came."""
        self.sizes.append(len(batch))
        if self.takes.is_set():
            self.taken += [int(one.payload) for one in batch]
        return self.takes.is_set()


def say(broker: Mosquitto, count: int, qos: int = 1) -> None:
    """Publish numbers; return when the broker has all."""
    publish.multiple([("a", str(number), qos, False) for number in range(count)], port=broker.port)


@pytest.mark.parametrize(("protocol", "held"), [("3.1.1", MAX_HELD), ("5", MAX_BATCH)])
def test_what_is_refused_for_long_takes_no_more_memory(tmp_path: Path, protocol: str, held: int) -> None:
    """With a broker that has no limit of its own, too; nothing is lost, nothing comes twice, and all in order."""
    taker = Taker(takes=False)
    with (
        Mosquitto(tmp_path, extra=("log_type notice", "log_type information", *NO_LIMIT)) as broker,
        Subscriber(
            broker.url, ["a"], qos=1, client_id="x", session_expiry_seconds=60, protocol=protocol, on_batch=taker
        ) as subscriber,
    ):
        say(broker, COUNT)
        eventually(lambda: subscriber.held == held)
        refused = len(taker.sizes)
        eventually(lambda: len(taker.sizes) > refused + 1)
        assert subscriber.held == held
        taker.takes.set()
        eventually(lambda: len(taker.taken) >= COUNT)
        assert taker.taken == list(range(COUNT))
        assert max(taker.sizes) <= MAX_BATCH
        eventually(lambda: not subscriber.held)


def test_what_needs_no_acknowledgement_is_bounded_too(tmp_path: Path) -> None:
    """At QoS 0 no broker waits for anybody: the connection's own buffers fill up."""
    taker = Taker(takes=False)
    with (
        Mosquitto(tmp_path) as broker,
        Subscriber(broker.url, ["a"], qos=1, client_id="x", session_expiry_seconds=60, on_batch=taker) as subscriber,
    ):
        say(broker, COUNT, qos=0)
        eventually(lambda: subscriber.held == MAX_HELD)
        say(broker, COUNT, qos=0)
        refused = len(taker.sizes)
        eventually(lambda: len(taker.sizes) > refused + 1)
        assert subscriber.held == MAX_HELD
        taker.takes.set()
        eventually(lambda: len(taker.taken) >= MAX_HELD)
        assert max(taker.sizes) <= MAX_BATCH
