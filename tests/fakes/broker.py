"""A scripted MQTT 5 and 3.1.1 broker, for what Mosquitto cannot be made to do."""

from __future__ import annotations

import asyncio
import contextlib
import struct
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Self

from infra.local.process import free_port
from tests.fakes import LoopThread
from tests.timing import PATIENCE_SECONDS

CLOSE_TIMEOUT_SECONDS = 5.0
MQTT_5 = 5
FAILURE = 0x80
RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 0x9A, 0x9B

HTTP_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
GARBAGE = b"\xff\xff\xff\xff\xff\x00garbage"


class Kind(IntEnum):
    """Packet types, MQTT 5 table 2-1."""

    CONNECT = 1
    CONNACK = 2
    PUBLISH = 3
    PUBACK = 4
    PUBREC = 5
    PUBREL = 6
    PUBCOMP = 7
    SUBSCRIBE = 8
    SUBACK = 9
    UNSUBSCRIBE = 10
    UNSUBACK = 11
    PINGREQ = 12
    PINGRESP = 13
    DISCONNECT = 14
    AUTH = 15


@dataclass(frozen=True, slots=True, kw_only=True)
class Packet:
    """A packet as received; `connection` counts from 1, `properties` are raw, `received_at` is monotonic."""

    kind: str
    connection: int
    received_at: float
    packet_id: int = 0
    topic: str = ""
    payload: bytes = b""
    properties: bytes = b""
    qos: int = 0
    dup: bool = False
    retain: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Connect:
    """What a CONNECT said; `protocol_level` is 5 or 4 (3.1.1)."""

    connection: int
    client_id: str
    username: str | None
    password: bytes | None
    keepalive_seconds: int
    protocol_level: int
    clean_start: bool
    properties: bytes
    will_topic: str | None
    will_payload: bytes
    will_qos: int
    will_retain: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """How the broker treats one connection; the default is a broker without fault.

    Counts are per connection. A 3.1.1 client gets no reason codes but CONNACK's, and no properties.

    - silent: accepts TCP and says nothing. `raw_answer`: these bytes instead of CONNACK, then the end.
    - connack_*: a reason other than 0 ends the connection; `connack_properties` are raw, and come last.
    - will_reason: the reason for a CONNECT that brings a will, instead of `connack_reason`; 0x9A and 0x9B follow by
      themselves from `retain_available` and `maximum_qos`, and end a connection that publishes so (MQTT 5 §3.2.2.3).
    - reason_string: the broker's own words, in CONNACK, PUBACK and DISCONNECT.
    - never_answers: reads CONNECT, and says nothing.
    - closes_on: ends the connection when it gets such a PUBLISH, by `disconnect_reason` where there is one.
    - acknowledge: False never acknowledges. `acknowledge_delay_seconds` delays acknowledgements, not reading.
    - puback_reason, pubrec_reason: the code, or a function of the PUBLISH; PUBREC >= 0x80 ends the flow.
    - half_puback: the first half of the acknowledgement, then the end. `raw_on_publish`: these bytes instead.
    - cut_at_publish: ends the connection at the n-th PUBLISH, read but unacknowledged (0: after CONNACK),
      with a DISCONNECT before if `disconnect_reason` is set; `cut_within_publish`: half of the n-th was read.
    - forbid: the same at a PUBLISH of which it is true, and `puback_reason` before that if it is a refusal.
    - suback_reason: for all filters, or by a filter's number; most_filters: the end at a SUBSCRIBE to more.
    - cut_after_pubrec, cut_at_pubrel: QoS 2, the end after PUBREC was sent, or on PUBREL, without PUBCOMP.
    """

    silent: bool = False
    raw_answer: bytes | None = None
    connack_reason: int = 0
    connack_delay_seconds: float = 0.0
    receive_maximum: int | None = None
    maximum_packet_size: int | None = None
    server_keep_alive_seconds: int | None = None
    maximum_qos: int | None = None
    connack_properties: bytes = b""
    will_reason: int = 0
    retain_available: bool | None = None
    reason_string: str = ""
    never_answers: bool = False
    closes_on: Callable[[Packet], bool] = lambda _publish: False
    acknowledge: bool = True
    acknowledge_delay_seconds: float = 0.0
    puback_reason: int | Callable[[Packet], int] = 0
    pubrec_reason: int | Callable[[Packet], int] = 0
    half_puback: bool = False
    raw_on_publish: bytes | None = None
    cut_at_publish: int | None = None
    cut_within_publish: int | None = None
    disconnect_reason: int | None = None
    forbid: Callable[[Packet], bool] | None = None
    cut_after_pubrec: bool = False
    cut_at_pubrel: bool = False
    answer_pings: bool = True
    suback_reason: int | Callable[[int], int] | None = None
    most_filters: int | None = None


class _CutError(Exception):
    """The script says that the connection ends here."""


@dataclass(eq=False, slots=True)
class _Connection:
    number: int
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    version: int = MQTT_5
    publishes: int = 0
    in_flight: set[int] = field(default_factory=set)


class FakeBroker:
    """Listens on 127.0.0.1 from construction to `stop()`; delivers nothing to anybody.

    The n-th connection follows `script[n - 1]`, later ones the last entry. `script` may be replaced at any
    time, also for connections that are open: `broker.script = [Behaviour()]` heals it.
    """

    def __init__(self, *, script: Sequence[Behaviour] = (Behaviour(),), port: int = 0) -> None:
        self.script = script
        self.port = port or free_port()
        self.connections = 0
        self.packets: list[Packet] = []
        self.connect_packets: list[Connect] = []
        self.max_in_flight = 0
        self._news = threading.Condition()
        self._open: set[_Connection] = set()
        self._thread = LoopThread("fake-broker")
        try:
            self._server = self._thread.call(self._listen())
        except BaseException:
            self._thread.stop()
            raise

    @property
    def url(self) -> str:
        """`mqtt://127.0.0.1:port`."""
        return f"mqtt://127.0.0.1:{self.port}"

    @property
    def connects(self) -> int:
        """How many CONNECT packets came, over all connections."""
        return len(self.connect_packets)

    @property
    def publishes(self) -> list[Packet]:
        """The PUBLISH packets so far, repeats included, in order of arrival."""
        return self.of_kind("PUBLISH")

    def of_kind(self, kind: str) -> list[Packet]:
        """The packets so far with that name, such as PINGREQ or DISCONNECT."""
        return [packet for packet in list(self.packets) if packet.kind == kind]

    def wait_for(self, kind: str, count: int = 1, timeout_seconds: float = PATIENCE_SECONDS) -> list[Packet]:
        """The packets of that kind once there are `count`; TimeoutError when there are fewer by then."""
        with self._news:
            if not self._news.wait_for(lambda: len(self.of_kind(kind)) >= count, timeout_seconds):
                raise TimeoutError(f"{len(self.of_kind(kind))} of {count} {kind} within {timeout_seconds:g} s")
        return self.of_kind(kind)

    def disconnect_all(self, reason: int | None = None) -> None:
        """Ends all connections now, with a DISCONNECT of that reason before if one is given."""
        self._thread.call(self._disconnect_all(reason))

    def stop(self) -> None:
        """Closes everything. Idempotent."""
        if not self._thread.loop.is_closed():
            self._thread.call(self._close())
            self._thread.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._accept, "127.0.0.1", self.port)

    async def _close(self) -> None:
        self._server.close()
        await self._disconnect_all(None)

    async def _disconnect_all(self, reason: int | None) -> None:
        for connection in list(self._open):
            if reason is not None:
                connection.writer.write(_packet(Kind.DISCONNECT, bytes([reason])))
                connection.writer.close()
            else:
                connection.writer.transport.abort()

    def _behaviour(self, connection: _Connection) -> Behaviour:
        return self.script[min(connection.number, len(self.script)) - 1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        connection = _Connection(self.connections, reader, writer)
        self._open.add(connection)
        try:
            behaviour = self._behaviour(connection)
            if behaviour.silent:
                await reader.read()
            elif behaviour.raw_answer is not None:
                await reader.read(1)
                writer.write(behaviour.raw_answer)
                await _end_gently(connection)
            else:
                await self._serve(connection)
        except (_CutError, OSError, asyncio.IncompleteReadError):
            pass
        finally:
            self._open.discard(connection)
            writer.transport.abort()

    async def _serve(self, connection: _Connection) -> None:
        while True:
            header, body = await self._read_packet(connection)
            kind = Kind(header >> 4)
            if kind is Kind.CONNECT:
                await self._on_connect(connection, body)
            elif kind is Kind.PUBLISH:
                await self._on_publish(connection, header, body)
            else:
                numbered = kind in {Kind.PUBREL, Kind.SUBSCRIBE, Kind.UNSUBSCRIBE}
                packet_id = int.from_bytes(body[:2], "big") if numbered else 0
                self._record(_received(kind, connection, packet_id=packet_id, payload=body))
                if kind is Kind.DISCONNECT:
                    return
                self._on_other(connection, kind, packet_id, body)

    async def _read_packet(self, connection: _Connection) -> tuple[int, bytes]:
        reader = connection.reader
        header = (await reader.readexactly(1))[0]
        length = shift = 0
        while True:
            digit = (await reader.readexactly(1))[0]
            length |= (digit & 0x7F) << shift
            shift += 7
            if not digit & 0x80:
                break
        cut_within = self._behaviour(connection).cut_within_publish
        if header >> 4 == Kind.PUBLISH and cut_within == connection.publishes + 1:
            await reader.readexactly(length // 2)
            raise _CutError
        return header, await reader.readexactly(length)

    async def _on_connect(self, connection: _Connection, body: bytes) -> None:
        connect = _parse_connect(connection.number, body)
        connection.version = connect.protocol_level
        self.connect_packets.append(connect)
        self._record(_received(Kind.CONNECT, connection, properties=connect.properties))
        behaviour = self._behaviour(connection)
        if behaviour.never_answers:
            return
        await asyncio.sleep(behaviour.connack_delay_seconds)
        reason = _connack_reason(connect, behaviour)
        answer = bytes([0, reason])
        if connection.version == MQTT_5:
            answer += _with_length(_connack_properties(behaviour))
        connection.writer.write(_packet(Kind.CONNACK, answer))
        if reason:
            await _end_gently(connection)
            raise _CutError
        if behaviour.cut_at_publish == 0:
            await self._cut(connection, behaviour)

    async def _on_publish(self, connection: _Connection, header: int, body: bytes) -> None:
        publish = _parse_publish(connection, header, body)
        connection.publishes += 1
        if publish.qos:
            connection.in_flight.add(publish.packet_id)
            self.max_in_flight = max(self.max_in_flight, len(connection.in_flight))
        self._record(publish)
        behaviour = self._behaviour(connection)
        if behaviour.cut_at_publish is not None and connection.publishes >= behaviour.cut_at_publish:
            await self._cut(connection, behaviour)
        if behaviour.forbid is not None and behaviour.forbid(publish):
            if _reason(behaviour.puback_reason, publish) >= FAILURE:
                await self._acknowledge(connection, publish, behaviour)
            await self._cut(connection, behaviour)
        if behaviour.closes_on(publish) or _asks_too_much(publish.qos, retain=publish.retain, behaviour=behaviour):
            await self._cut(connection, behaviour)
        if behaviour.raw_on_publish is not None:
            connection.writer.write(behaviour.raw_on_publish)
        elif publish.qos and behaviour.acknowledge:
            await self._acknowledge(connection, publish, behaviour)

    async def _acknowledge(self, connection: _Connection, publish: Packet, behaviour: Behaviour) -> None:
        first = publish.qos == 1
        reason = _reason(behaviour.puback_reason if first else behaviour.pubrec_reason, publish)
        kind = Kind.PUBACK if first else Kind.PUBREC
        packet = _answer(connection, kind, publish.packet_id, reason, behaviour.reason_string)
        if behaviour.half_puback:
            connection.writer.write(packet[: len(packet) // 2])
            await _end_gently(connection)
            raise _CutError
        over = first or reason >= FAILURE
        self._send_later(connection, packet, publish.packet_id if over else None)
        if not first and behaviour.cut_after_pubrec:
            await asyncio.sleep(behaviour.acknowledge_delay_seconds)
            await connection.writer.drain()
            raise _CutError

    def _on_other(self, connection: _Connection, kind: Kind, packet_id: int, body: bytes) -> None:
        behaviour = self._behaviour(connection)
        if kind is Kind.PUBREL:
            if behaviour.cut_at_pubrel:
                raise _CutError
            if behaviour.acknowledge:
                self._send_later(connection, _answer(connection, Kind.PUBCOMP, packet_id, 0), packet_id)
        elif kind is Kind.PINGREQ and behaviour.answer_pings:
            connection.writer.write(_packet(Kind.PINGRESP, b""))
        elif kind in {Kind.SUBSCRIBE, Kind.UNSUBSCRIBE}:
            options = _filter_options(connection.version, kind, body)
            if behaviour.most_filters is not None and len(options) > behaviour.most_filters:
                raise _CutError
            reason = behaviour.suback_reason
            reasons = reason if callable(reason) else lambda _, always=reason: always
            found = [(option & 3, reasons(number)) for number, option in enumerate(options)]
            granted = bytes(qos if refusal is None else refusal for qos, refusal in found)
            middle = b"\0" if connection.version == MQTT_5 else b""
            if kind is Kind.UNSUBSCRIBE and connection.version != MQTT_5:
                granted = b""
            answer = Kind.SUBACK if kind is Kind.SUBSCRIBE else Kind.UNSUBACK
            connection.writer.write(_packet(answer, packet_id.to_bytes(2, "big") + middle + granted))

    def _send_later(self, connection: _Connection, packet: bytes, over: int | None) -> None:
        """Sends an acknowledgement after the scripted delay; `over` is the packet id whose flow it ends."""

        def send() -> None:
            if over is not None:
                connection.in_flight.discard(over)
            if not connection.writer.is_closing():
                connection.writer.write(packet)

        delay_seconds = self._behaviour(connection).acknowledge_delay_seconds
        if delay_seconds:
            self._thread.loop.call_later(delay_seconds, send)
        else:
            send()

    async def _cut(self, connection: _Connection, behaviour: Behaviour) -> None:
        if behaviour.disconnect_reason is not None:
            connection.writer.write(
                _packet(Kind.DISCONNECT, bytes([behaviour.disconnect_reason]) + _said(behaviour.reason_string))
            )
            await _end_gently(connection)
        raise _CutError

    def _record(self, packet: Packet) -> None:
        with self._news:
            self.packets.append(packet)
            self._news.notify_all()


def _reason(chosen: int | Callable[[Packet], int], publish: Packet) -> int:
    return chosen(publish) if callable(chosen) else chosen


def _received(
    kind: Kind, connection: _Connection, *, packet_id: int = 0, payload: bytes = b"", properties: bytes = b""
) -> Packet:
    return Packet(
        kind=kind.name,
        connection=connection.number,
        received_at=time.monotonic(),
        packet_id=packet_id,
        payload=payload,
        properties=properties,
    )


def _parse_connect(number: int, body: bytes) -> Connect:
    _, body = _text(body)
    level, flags, keepalive_seconds = struct.unpack_from("!BBH", body)
    body = body[4:]
    properties, body = _properties(level, body)
    client_id, body = _text(body)
    will_topic: str | None = None
    will_payload = b""
    if flags & 0x04:
        _, body = _properties(level, body)
        will_topic, body = _text(body)
        will_payload, body = _binary(body)
    username: str | None = None
    password: bytes | None = None
    if flags & 0x80:
        username, body = _text(body)
    if flags & 0x40:
        password, body = _binary(body)
    return Connect(
        connection=number,
        client_id=client_id,
        username=username,
        password=password,
        keepalive_seconds=keepalive_seconds,
        protocol_level=level,
        clean_start=bool(flags & 0x02),
        properties=properties,
        will_topic=will_topic,
        will_payload=will_payload,
        will_qos=flags >> 3 & 3,
        will_retain=bool(flags & 0x20),
    )


def _parse_publish(connection: _Connection, header: int, body: bytes) -> Packet:
    qos = header >> 1 & 3
    topic, body = _text(body)
    packet_id = 0
    if qos:
        packet_id, body = int.from_bytes(body[:2], "big"), body[2:]
    properties, payload = _properties(connection.version, body)
    return Packet(
        kind=Kind.PUBLISH.name,
        connection=connection.number,
        received_at=time.monotonic(),
        packet_id=packet_id,
        topic=topic,
        payload=payload,
        properties=properties,
        qos=qos,
        dup=bool(header & 0x08),
        retain=bool(header & 0x01),
    )


def _filter_options(version: int, kind: Kind, body: bytes) -> list[int]:
    """The option byte of each topic filter in a SUBSCRIBE; 0 for each in an UNSUBSCRIBE."""
    _, body = _properties(version, body[2:])
    options = []
    while body:
        _, body = _text(body)
        if kind is Kind.SUBSCRIBE:
            options.append(body[0])
            body = body[1:]
        else:
            options.append(0)
    return options


def _connack_properties(behaviour: Behaviour) -> bytes:
    """MQTT 5 § 3.2.2.3."""
    named = (
        ("!BH", 0x21, behaviour.receive_maximum),
        ("!BI", 0x27, behaviour.maximum_packet_size),
        ("!BH", 0x13, behaviour.server_keep_alive_seconds),
        ("!BB", 0x24, behaviour.maximum_qos),
        ("!BB", 0x25, behaviour.retain_available),
    )
    packed = (struct.pack(shape, identifier, value) for shape, identifier, value in named if value is not None)
    said = _reason_string(behaviour.reason_string)
    return b"".join(packed) + said + behaviour.connack_properties


def _connack_reason(connect: Connect, behaviour: Behaviour) -> int:
    if connect.will_topic is not None:
        too_much = _asks_too_much(connect.will_qos, retain=connect.will_retain, behaviour=behaviour)
        return behaviour.will_reason or too_much or behaviour.connack_reason
    return behaviour.connack_reason


def _asks_too_much(qos: int, *, retain: bool, behaviour: Behaviour) -> int:
    if retain and behaviour.retain_available is False:
        return RETAIN_NOT_SUPPORTED
    return QOS_NOT_SUPPORTED if behaviour.maximum_qos is not None and qos > behaviour.maximum_qos else 0


def _said(reason_string: str) -> bytes:
    """A Reason String as the only property; nothing where there is none."""
    return _with_length(_reason_string(reason_string)) if reason_string else b""


def _reason_string(text: str) -> bytes:
    return b"\x1f" + len(text.encode()).to_bytes(2, "big") + text.encode() if text else b""


def _answer(connection: _Connection, kind: Kind, packet_id: int, reason: int, reason_string: str = "") -> bytes:
    code = bytes([reason]) + _said(reason_string) if reason and connection.version == MQTT_5 else b""
    return _packet(kind, packet_id.to_bytes(2, "big") + code)


def _packet(kind: Kind, body: bytes) -> bytes:
    return bytes([kind << 4]) + _with_length(body)


def _with_length(body: bytes) -> bytes:
    """The body after its length as a variable byte integer (MQTT 5 § 1.5.5)."""
    digits = bytearray()
    length = len(body)
    while True:
        length, digit = divmod(length, 128)
        digits.append(digit | 0x80 if length else digit)
        if not length:
            return bytes(digits) + body


def _properties(version: int, body: bytes) -> tuple[bytes, bytes]:
    """The raw properties and what follows them; none before MQTT 5."""
    if version != MQTT_5:
        return b"", body
    length = shift = used = 0
    while True:
        digit = body[used]
        length |= (digit & 0x7F) << shift
        shift += 7
        used += 1
        if not digit & 0x80:
            return body[used : used + length], body[used + length :]


def _binary(body: bytes) -> tuple[bytes, bytes]:
    end = 2 + int.from_bytes(body[:2], "big")
    return body[2:end], body[end:]


def _text(body: bytes) -> tuple[str, bytes]:
    raw, rest = _binary(body)
    return raw.decode(), rest


async def _end_gently(connection: _Connection) -> None:
    """Closes so that the peer gets the last bytes; closing on unread data would send it a reset instead."""
    with contextlib.suppress(OSError, TimeoutError):
        connection.writer.write_eof()
        async with asyncio.timeout(CLOSE_TIMEOUT_SECONDS):
            await connection.reader.read()
