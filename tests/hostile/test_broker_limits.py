"""A broker that sends too much: no flood, no giant packet and no heap of properties takes time or memory from us."""

from __future__ import annotations

import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.client import MAX_PACKET_BYTES
from functions.mqtt.connection import Connection
from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from functions.mqtt.publisher import InlinePublisher
from functions.telemetry import EmfTelemetry
from tests.fakes.broker import FakeBroker
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

ACCEPTED = {"5": b"\x20\x03\x00\x00\x00", "3.1.1": b"\x20\x02\x00\x00"}
MESSAGE = Message("iotsupport/updates/assets", b"{}")
DEADLINE_SECONDS = 1.0
FLOOD_BYTES = 1 << 16
GIANT = b"\x30\xff\xff\xff\x7f"  # a PUBLISH of 256 MB: the most that a length can say (MQTT 5 §1.5.5)


@contextmanager
def broker(protocol: str, perform: Callable[[socket.socket], None]) -> Iterator[BrokerConfig]:
    """One that accepts each connection, waits for more than CONNECT, and then does as told until nobody listens."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        with suppress(OSError):
            while True:
                peer, _ = listener.accept()
                with suppress(OSError), peer:
                    peer.settimeout(DEADLINE_SECONDS)
                    peer.recv(4096)
                    peer.sendall(ACCEPTED[protocol])
                    peer.recv(4096)
                    perform(peer)

    threading.Thread(target=serve, daemon=True).start()
    try:
        port = listener.getsockname()[1]
        yield BrokerConfig("127.0.0.1", port, protocol="5" if protocol == "5" else "3.1.1", publish_timeout_seconds=1)
    finally:
        listener.close()


def reason(target: BrokerConfig) -> str:
    """Why a message was not confirmed; in time."""
    publisher = InlinePublisher(target, EmfTelemetry())
    begun_at = time.monotonic()
    (outcome,) = publisher.publish([MESSAGE], begun_at + DEADLINE_SECONDS)
    assert time.monotonic() - begun_at < DEADLINE_SECONDS + SLACK_SECONDS
    publisher.close()
    assert outcome.status is Status.UNCONFIRMED
    return outcome.reason


# Of 4093 bytes, which is prime: after 4093 reads of 4096 the end of a packet is that of a read for the first time.
MANY_PROPERTIES = b"\x30\xfa\x1f\x00\x01a\xf5\x1f" + b"\x26\x00\x00\x00\x00" * 817


@pytest.mark.parametrize("packet", [b"\x40\x03\x00\x09\x00", b"\xd0\x00", b"\xc0\x00", MANY_PROPERTIES])
def test_a_flood_of_packets_keeps_the_deadline(packet: bytes) -> None:
    """However quickly others' acknowledgements, pings or messages come: there is a look at the clock in between."""

    def flood(peer: socket.socket) -> None:
        while True:
            peer.sendall(packet * (FLOOD_BYTES // len(packet)))

    with broker("5", flood) as target:
        reason(target)


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_giant_packet_ends_the_connection_before_it_is_read(protocol: str) -> None:
    """Nobody sends a publisher that much, and a function of 128 MB has no room for it."""

    def send_giant(peer: socket.socket) -> None:
        peer.sendall(GIANT)
        for _ in range(512):
            peer.sendall(bytes(FLOOD_BYTES))

    tracemalloc.start()
    with broker(protocol, send_giant) as target:
        assert "larger than" in reason(target)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 4 << 20


def test_the_broker_is_told_how_much_it_may_send() -> None:
    """By CONNECT's Maximum Packet Size (MQTT 5 §3.1.2.11.4): it drops what is larger, not us."""
    with FakeBroker() as fake:
        connection = Connection(BrokerConfig("127.0.0.1", fake.port), "client")
        connection.open(PATIENCE_SECONDS)
        fake.wait_for("CONNECT")
        connection.discard()
        (connect,) = fake.connect_packets
    assert connect.properties == b"\x27" + MAX_PACKET_BYTES.to_bytes(4, "big")


def test_a_heap_of_properties_is_read_quickly_or_not_at_all() -> None:
    """The largest packet that is read at all, full of the smallest properties, takes no time that others would miss."""
    pairs = b"\x26\x00\x00\x00\x00" * ((MAX_PACKET_BYTES - 10) // 5)
    body = b"\x8e" + _length(len(pairs)) + pairs
    disconnect = b"\xe0" + _length(len(body)) + body
    with broker("5", lambda peer: peer.sendall(disconnect)) as target:
        assert "Session taken over" in reason(target)


def _length(value: int) -> bytes:
    low, high = value & 127, value >> 7
    return bytes([low | 128, high & 127 | 128, high >> 7])
