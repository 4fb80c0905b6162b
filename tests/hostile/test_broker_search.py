"""A broker that sends anything: the connection ends with words, believes nothing it was not told, and comes back."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.connection import WINDOW, BrokerConnectionError, Connection
from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from functions.mqtt.publisher import InlinePublisher
from functions.telemetry import EmfTelemetry
from tests.hostile.searching import Draw, damaged, tries

PATIENCE_SECONDS = 5.0
CONNACK, PUBLISH, PUBACK, PUBREC, PUBCOMP, DISCONNECT = 2, 3, 4, 5, 7, 14
MESSAGES = [Message("iotsupport/updates/assets", b'"%d"' % n) for n in range(1, 8)]
ACCEPTED = {"5": b"\x20\x03\x00\x00\x00", "3.1.1": b"\x20\x02\x00\x00"}


def varint(value: int) -> bytes:
    """MQTT 5 §1.5.5."""
    out = bytearray()
    while True:
        value, low = divmod(value, 128)
        out.append(low | (128 if value else 0))
        if not value:
            return bytes(out)


def framed(kind: int, body: bytes, flags: int = 0) -> bytes:
    """One packet."""
    return bytes([kind << 4 | flags]) + varint(len(body)) + body


def text(value: bytes) -> bytes:
    """A string, or what claims to be one."""
    return len(value).to_bytes(2, "big") + value


# Every property there is (MQTT 5 §2.2.2.2), and some that are none, with values that fit and values that do not.
PROPERTIES = st.lists(
    st.one_of(
        st.tuples(st.sampled_from([0x01, 0x17, 0x19, 0x24, 0x25, 0x28, 0x29, 0x2A]), st.binary(min_size=1, max_size=1)),
        st.tuples(
            st.sampled_from([0x13, 0x21, 0x22, 0x23]),
            st.sampled_from([0, 1, 2, 20, 65535]).map(lambda n: n.to_bytes(2, "big")),
        ),
        st.tuples(
            st.sampled_from([0x02, 0x11, 0x18, 0x27]),
            st.sampled_from([0, 1, 30, 2**28, 2**32 - 1]).map(lambda n: n.to_bytes(4, "big")),
        ),
        st.tuples(
            st.sampled_from([0x03, 0x08, 0x09, 0x12, 0x15, 0x16, 0x1A, 0x1C, 0x1F]), st.binary(max_size=9).map(text)
        ),
        st.tuples(
            st.just(0x26),
            st.tuples(st.binary(max_size=5), st.binary(max_size=5)).map(lambda p: text(p[0]) + text(p[1])),
        ),
        st.tuples(st.just(0x0B), st.integers(0, 2**28 - 1).map(varint)),
        st.tuples(st.integers(0, 255), st.binary(max_size=6)),
    ).map(lambda pair: bytes([pair[0]]) + pair[1]),
    max_size=4,
).map(lambda parts: varint(sum(map(len, parts))) + b"".join(parts))
CODES = st.sampled_from([0, 0, 0, 1, 0x10, 0x80, 0x83, 0x86, 0x87, 0x8E, 0x95, 0x97, 0x99, 0xFF])
MIDS = st.integers(1, 8) | st.integers(0, 65535)
ANSWERS = st.builds(
    lambda flags, code, properties: framed(CONNACK, bytes([flags, code]) + properties),
    st.sampled_from([0, 0, 0, 1, 255]),
    CODES,
    PROPERTIES | st.sampled_from([b"", b"\x00", b"\x00"]),
)
ACKNOWLEDGEMENTS = st.builds(
    lambda kind, mid, rest: framed(kind, mid.to_bytes(2, "big") + rest, 2 if kind == 6 else 0),
    st.sampled_from([PUBACK, PUBACK, PUBREC, 6, PUBCOMP]),
    MIDS,
    st.just(b"") | CODES.map(lambda code: bytes([code])) | st.builds(lambda c, p: bytes([c]) + p, CODES, PROPERTIES),
)
OTHERS = st.one_of(
    st.builds(lambda c, p: framed(DISCONNECT, bytes([c]) + p), CODES, PROPERTIES),
    st.builds(
        lambda flags, topic, mid, p, payload: framed(
            PUBLISH, text(topic) + mid.to_bytes(2, "big") + p + payload, flags
        ),
        st.integers(0, 15),
        st.binary(max_size=8),
        MIDS,
        PROPERTIES,
        st.binary(max_size=8),
    ),
    st.builds(framed, st.integers(0, 15), st.binary(max_size=12), st.integers(0, 15)),
    st.sampled_from([b"\xd0\x00", b"\xc0\x00", b"\xe0\x00", b"\x30\xff\xff\xff\x7f", b"\xff" * 6]),
)
SPEECHES = damaged(st.lists(ACKNOWLEDGEMENTS | ACKNOWLEDGEMENTS | OTHERS, max_size=8).map(b"".join), most=2)
OPENINGS = st.one_of(
    st.sampled_from(list(ACCEPTED.values())),
    ANSWERS,
    damaged(st.builds(lambda answer, rest: answer + rest, ANSWERS, SPEECHES), most=2),
    st.binary(max_size=40),
)


def packets(stream: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole packets in it, kind and body, until something is none."""
    at = 0
    while at + 2 <= len(stream):
        kind, length, shift = stream[at] >> 4, 0, 0
        at += 1
        while True:
            if at >= len(stream) or shift > 21:
                return
            length |= (stream[at] & 127) << shift
            shift, at = shift + 7, at + 1
            if stream[at - 1] < 128:
                break
        if at + length > len(stream):
            return
        yield kind, stream[at : at + length]
        at += length


def said_of(stream: bytes) -> set[tuple[int, int]]:
    """Every pair of packet identifier and reason code that could be read out of what the broker sent."""
    found = set[tuple[int, int]]()
    before = dict[int, int]()
    for kind, body in packets(stream):
        if kind in {PUBACK, PUBREC, PUBCOMP} and len(body) >= 2:
            mid, code = int.from_bytes(body[:2], "big"), body[2] if len(body) > 2 else 0
            if kind == PUBREC and code < 0x80:
                before[mid] = code or before.get(mid, 0)
            else:
                found |= {(mid, code), (mid, max(code, before.get(mid, 0)))}
    return found


class Stage:
    """A TCP port whose other end says what it is told to."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_SECONDS)
        self.port: int = self._listener.getsockname()[1]

    def accept(self) -> socket.socket:
        """The next connection, after its CONNECT."""
        peer, _ = self._listener.accept()
        peer.settimeout(PATIENCE_SECONDS)
        peer.recv(4096)
        return peer

    def close(self) -> None:
        """Listen no more."""
        self._listener.close()

    def broker(self, protocol: str = "5", qos: int = 1) -> BrokerConfig:
        """The settings that lead here."""
        return BrokerConfig("127.0.0.1", self.port, qos=qos, protocol="5" if protocol == "5" else "3.1.1", username="u")


@pytest.fixture(scope="module")
def stage() -> Iterator[Stage]:
    """One port for the whole module."""
    it = Stage()
    yield it
    it.close()


def hear(connection: Connection, wait_seconds: float) -> bool:
    """Read what is there, waiting for the first of it; whether there was any."""
    if connection.closed:
        return False
    poller = select.poll()
    poller.register(connection.fileno(), select.POLLIN)
    if not poller.poll(wait_seconds * 1000):
        return False
    connection.read()
    if connection.wants_write and not connection.closed:
        connection.write()
    return True


def hear_all(connection: Connection, sent: bytes) -> None:
    """Read until nothing more is there."""
    if sent and hear(connection, PATIENCE_SECONDS):
        while hear(connection, 0):
            pass


@st.composite
def chunks(draw: Draw, whole: st.SearchStrategy[bytes]) -> list[bytes]:
    """What a broker says, in the pieces in which it arrives."""
    said = draw(whole)
    cuts = sorted(draw(st.lists(st.integers(0, len(said)), max_size=3)))
    return [said[a:b] for a, b in zip([0, *cuts], [*cuts, len(said)], strict=True)]


@tries(400)
@given(st.sampled_from(["5", "5", "3.1.1"]), st.integers(0, 2), chunks(OPENINGS), chunks(SPEECHES))
def test_whatever_a_broker_says_ends_in_an_outcome(
    stage: Stage, protocol: str, qos: int, opening: list[bytes], speech: list[bytes]
) -> None:
    """No exception but ours, limits that can be kept, and no acknowledgement that was not sent."""
    connection = Connection(stage.broker(protocol, qos), "client")
    connection.open(PATIENCE_SECONDS)
    with stage.accept() as peer:
        try:
            converse(connection, peer, opening, speech)
        finally:
            connection.discard()


def converse(connection: Connection, peer: socket.socket, opening: list[bytes], speech: list[bytes]) -> None:
    """Connect, publish, hear the rest and the end."""
    sent: dict[int, int] = {}
    heard: list[tuple[int, int]] = []

    def take() -> None:
        for ack in connection.take_acks():
            assert ack.mid in sent
            assert ack.qos == sent.pop(ack.mid), "each is acknowledged once"
            if ack.qos:
                heard.append((ack.mid, ack.reason_code))

    for piece in opening:
        say(peer, piece)
        hear_all(connection, piece)
    if connection.connected:
        assert 1 <= connection.window <= WINDOW
        assert connection.maximum_packet_size is None or connection.maximum_packet_size > 0
        assert connection.keepalive_seconds > 0
        with suppress(BrokerConnectionError):
            for message in MESSAGES[: connection.window]:
                mid = connection.send(message)
                if mid is not None:
                    assert mid not in sent
                    sent[mid] = connection.qos
            connection.flush()
        take()
    for piece in speech:
        say(peer, piece)
        hear_all(connection, piece)
        take()
    with suppress(OSError):
        peer.shutdown(socket.SHUT_WR)
    while not connection.closed:
        assert hear(connection, PATIENCE_SECONDS), "it must notice the end"
    take()
    assert connection.failure is not None
    assert str(connection.failure).isprintable()
    assert not connection.connected
    assert set(heard) <= said_of(b"".join([*opening, *speech]))


def say(peer: socket.socket, piece: bytes) -> None:
    """Send, to somebody who may have gone."""
    with suppress(OSError):
        peer.sendall(piece)


@tries(12)
@given(st.sampled_from(["5", "3.1.1"]), OPENINGS, SPEECHES)
def test_the_publisher_gives_each_message_one_outcome_in_time(protocol: str, opening: bytes, speech: bytes) -> None:
    """Whatever happens to either of its two attempts; and what it calls delivered was acknowledged."""
    stage = Stage()
    said = [opening, speech]
    over = threading.Event()

    def perform() -> None:
        for _ in range(2):
            with suppress(OSError), stage.accept() as peer:
                peer.settimeout(0.05)
                say(peer, opening)
                with suppress(OSError):
                    peer.recv(4096)
                say(peer, speech)
            if over.is_set():
                return

    performing = threading.Thread(target=perform)
    performing.start()
    publisher = InlinePublisher(stage.broker(protocol), EmfTelemetry())
    begun_at = time.monotonic()
    try:
        outcomes = publisher.publish(MESSAGES, begun_at + 0.25)
        assert time.monotonic() - begun_at < PATIENCE_SECONDS
    finally:
        over.set()
        publisher.close()
        with suppress(OSError):  # the second attempt, if there was none
            socket.create_connection(("127.0.0.1", stage.port), 1.0).close()
        performing.join(PATIENCE_SECONDS)
        stage.close()
    assert len(outcomes) == len(MESSAGES)
    positive = sum(code < 0x80 for _, code in said_of(b"".join(said)) | said_of(speech))
    assert sum(one.status is Status.DELIVERED for one in outcomes) <= positive * 2
