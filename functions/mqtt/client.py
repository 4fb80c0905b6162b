"""paho's client with what it lacks: the only importer of paho in the deployed code.

Its network loop, CONNECT and keep alive are paho's. Messages go past paho's bookkeeping, which is there to send them
again after its own reconnect: we never reconnect. All this uses names that paho keeps private; its version is pinned,
and tests on a real broker cover each.
"""

from __future__ import annotations

import contextlib
import math
import socket
import ssl
import struct
import time
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from functions.mqtt.outcome import MIN_REFUSAL
from functions.mqtt.packets import PUBLISH
from functions.settings.reach import as_address

if TYPE_CHECKING:
    from paho.mqtt.client import DisconnectFlags
    from paho.mqtt.reasoncodes import ReasonCode

    from functions.settings.reach import Targets

MIN_ACK_BYTES = 2  # packet identifier; a reason code may follow (MQTT 5 §3.4.2)
PLAIN_PUBACK = b"\x40\x02"  # without a reason code, which means success; a packet identifier follows
PLAIN_PUBACK_BYTES = 4
MAX_MID = 65535
RECEIVE_BYTES = 4096
MAX_PACKET_BYTES = 16384
"""What a broker may send at once: nobody has more to say to a publisher, and paho would read 256 MB into memory, or
take properties apart for minutes. MQTT 5 tells the broker so (§3.1.2.11.4)."""
UNACCEPTABLE_PROTOCOL = b"\x00\x01"  # MQTT 3.1.1 §3.2: a CONNACK's flags, and return code 1
UNSUPPORTED_PROTOCOL = 0x84  # MQTT 5 §3.2.2.2
MAX_REASON_CHARACTERS = 200
QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux only
DISCARD_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing drops what the kernel has not sent yet


class ForbiddenAddressError(Exception):
    """The broker's name leads to an address that its `targets` do not allow."""


class Connack(NamedTuple):
    """The broker's answer to CONNECT (MQTT 5 §3.2); codes of MQTT 3.1.1 are translated."""

    reason_code: int
    reason: str
    receive_maximum: int = MAX_MID
    maximum_packet_size: int | None = None
    maximum_qos: int = 2
    retain_available: bool = True
    said: str = ""
    """The broker's own words, its Reason String."""


class Listener(Protocol):
    """Hears what the broker says, from within `loop_read` and `loop_write`."""

    def connack(self, connack: Connack) -> None:
        """CONNECT is answered, accepted or refused."""

    def disconnected(self, reason: str, reason_code: int, said: str) -> None:
        """The broker has sent DISCONNECT; `said` are its own words."""

    def acknowledged(self, mid: int, reason_code: int, said: str) -> None:
        """A message above QoS 0 is over; `said` are the broker's own words about a refusal."""

    def subscribed(self, *, granted: bool) -> None:
        """SUBSCRIBE is answered."""

    def retained(self, topic: str, payload: bytes) -> None:
        """The broker keeps this message."""


class Client(paho.Client):
    """One client for one connection."""

    def __init__(self, client_id: str, *, version5: bool, listener: Listener) -> None:
        super().__init__(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if version5 else MQTTProtocolVersion.MQTTv311,
            # Otherwise paho answers some refusals with a blocking reconnect of its own from inside loop_read.
            reconnect_on_failure=False,
        )
        self._listener = listener
        self._pubrec_codes: dict[int, int] = {}
        self.on_connect = self._tell_connack
        self.on_disconnect = self._tell_disconnect
        self.targets: Targets | None = None  # judges what the name resolves to, before anything is sent there
        self.on_subscribe = self._tell_subscribed
        self.on_message = self._tell_message
        self.max_packet_bytes = MAX_PACKET_BYTES
        self.address: str | None = None  # to connect to, where it is not the host's name that is to be resolved
        self._unread = b""  # received and not yet taken by paho
        self._may_receive = True
        self.tls_alert = ""  # what the peer found wrong with our side of TLS: 1.3 says so only after the handshake

    def open(self, host: str, port: int, keepalive_seconds: int) -> None:
        """Connect, and send CONNECT."""
        properties = None
        if self.protocol == MQTTProtocolVersion.MQTTv5:
            properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call]  # paho has no types there
            properties.MaximumPacketSize = self.max_packet_bytes
        self.connect(host, port, keepalive_seconds, properties=properties)

    def receive(self) -> None:
        """Take in what has arrived. Call when the socket is readable."""
        self._acknowledge_at_once()
        self._may_receive = True
        self.loop_read()
        # Neither for what is buffered here nor for the rest of a TLS record will the socket become readable.
        while self.socket() is not None and (self._unread or self._rest_of_record):
            self.loop_read()

    @property
    def _rest_of_record(self) -> bool:
        sock = self.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _create_socket(self) -> socket.socket:
        """TCP and TLS within one `connect_timeout`, shared among the host's addresses; Nagle's delay off."""
        deadline = time.monotonic() + self.connect_timeout
        addresses = socket.getaddrinfo(self.address or self.host, self.port, type=socket.SOCK_STREAM)
        # If one of them is forbidden, all are: else the name's owner would choose by their order.
        if self.targets is not None and not all(self._may_reach(str(one[-1][0])) for one in addresses):
            raise ForbiddenAddressError
        for left in range(len(addresses), 0, -1):
            family, kind, protocol, _, address = addresses[-left]
            sock = socket.socket(family, kind, protocol)
            try:
                sock.settimeout(max(0.001, (deadline - time.monotonic()) / left))
                sock.connect(address)
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                break
            except OSError:
                sock.close()
                if left == 1:
                    raise
        if self._ssl_context is None:
            return sock
        try:
            sock.settimeout(max(0.001, deadline - time.monotonic()))
            return self._ssl_context.wrap_socket(sock, server_hostname=self.host)
        except BaseException:
            sock.close()
            raise

    def _may_reach(self, text: str) -> bool:
        address = as_address(text)
        return address is not None and self.targets is not None and self.targets.allow(self.host, address)

    def _sock_recv(self, bufsize: int) -> bytes:
        """As much as there is, at once: paho asks for a packet in three pieces. But only once for each `receive`.

        A broker that sends without end would otherwise be listened to for ever.
        """
        if bufsize > self.max_packet_bytes:
            raise ValueError(f"a packet larger than {self.max_packet_bytes} bytes")
        if not self._unread:
            if not (self._may_receive or self._rest_of_record):
                raise BlockingIOError
            self._may_receive = False
            try:
                self._unread = super()._sock_recv(RECEIVE_BYTES)
            except ssl.SSLError as error:
                self.tls_alert = error.reason or str(error)
                raise
        piece, self._unread = self._unread[:bufsize], self._unread[bufsize:]
        return piece

    def _packet_read(self) -> MQTTErrorCode:
        """As paho, but for plain PUBACKs: they are nearly all that comes, and paho reads each in three pieces."""
        if self._in_packet["command"] == 0:
            try:
                self._sock_recv(0)
            except BlockingIOError:
                return MQTTErrorCode.MQTT_ERR_AGAIN
            except OSError:
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            if not self._unread:  # the end
                return MQTTErrorCode.MQTT_ERR_CONN_LOST
            while self._unread.startswith(PLAIN_PUBACK) and len(self._unread) >= PLAIN_PUBACK_BYTES:
                mid = self._unread[2] << 8 | self._unread[3]
                self._unread = self._unread[PLAIN_PUBACK_BYTES:]
                self._last_bytes_received = time.monotonic()
                self._listener.acknowledged(mid, self._pubrec_codes.pop(mid, 0), "")
            if not self._unread:
                return MQTTErrorCode.MQTT_ERR_SUCCESS
        return super()._packet_read()

    def _handle_connack(self) -> MQTTErrorCode:
        result = super()._handle_connack()
        # paho keeps this one to itself, because it would try again with MQTT 3.1.
        if self.protocol == MQTTProtocolVersion.MQTTv311 and self._in_packet["packet"] == UNACCEPTABLE_PROTOCOL:
            self._listener.connack(Connack(UNSUPPORTED_PROTOCOL, "Unsupported protocol version"))
        return result

    def _handle_pubackcomp(self, cmd: Literal["PUBACK", "PUBCOMP"]) -> MQTTErrorCode:
        del cmd
        mid, reason_code = self._acknowledgement()
        # What PUBREC said holds when PUBCOMP says merely success.
        code = max(reason_code, self._pubrec_codes.pop(mid, 0))
        self._listener.acknowledged(mid, code, self._said_of(reason_code))
        return MQTTErrorCode.MQTT_ERR_SUCCESS

    def _handle_pubrec(self) -> MQTTErrorCode:
        mid, reason_code = self._acknowledgement()
        # MQTT 5 §4.3.3: after a PUBREC of 0x80 or more the message is over, and no PUBREL follows.
        if reason_code >= MIN_REFUSAL:
            self._listener.acknowledged(mid, reason_code, self._said_of(reason_code))
            return MQTTErrorCode.MQTT_ERR_SUCCESS
        if reason_code:
            self._pubrec_codes[mid] = reason_code
        return self._send_pubrel(mid)

    def _acknowledgement(self) -> tuple[int, int]:
        """Packet identifier and reason code of the packet in hand (MQTT 5 §3.4.2): none means success."""
        packet = self._in_packet["packet"]
        if len(packet) < MIN_ACK_BYTES:
            raise ValueError("an acknowledgement without a packet identifier")
        return packet[0] << 8 | packet[1], packet[2] if len(packet) > MIN_ACK_BYTES else 0

    def _said_of(self, reason_code: int) -> str:
        """The Reason String of the refusal in hand (MQTT 5 §3.4.2.2.2); nobody needs those of a success."""
        packed = self._in_packet["packet"][MIN_ACK_BYTES + 1 :]
        if reason_code < MIN_REFUSAL or not packed:
            return ""
        properties = Properties(PacketTypes.PUBACK)  # type: ignore[no-untyped-call]  # paho has no types there
        properties.unpack(bytes(packed))  # type: ignore[no-untyped-call]  # as above
        return _said(properties)

    def publish_packets(self, packets: bytes) -> None:
        """Put whole PUBLISH packets on the wire in one piece, behind what waits already."""
        if not self._out_packet:
            try:
                packets = packets[self._sock_send(packets) :]
                self._last_msg_out = time.monotonic()
            except OSError:  # no room (BlockingIOError), or an end: paho meets either again below
                pass
        if packets:
            # A QoS above 0, or paho would want a callback of its own for it.
            self._packet_queue(PUBLISH, packets, 0, 1)

    def _acknowledge_at_once(self) -> None:
        """Have the kernel confirm what arrives without its usual 40 ms delay; Linux forgets this again and again.

        Mosquitto leaves Nagle's algorithm on: it holds a second PUBACK back until the first is confirmed.
        """
        sock = self._sock
        if QUICK_ACK is not None and sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)  # type: ignore[attr-defined]  # `_create_socket` made it

    def ping(self) -> None:
        """Send PINGREQ."""
        self._send_pingreq()

    @property
    def ping_unanswered(self) -> bool:
        """Whether PINGRESP is due."""
        return self._ping_t > 0

    @property
    def due_at(self) -> float:
        """When `loop_misc` has something to do, unless there is traffic before; `time.monotonic`."""
        since = min(self._last_bytes_received, self._last_msg_out, self._ping_t or math.inf)
        return since + (self.keepalive or math.inf)

    @property
    def certificate_expires_at(self) -> float | None:
        """Until when the broker's certificate is valid (`time.time`); None without TLS."""
        sock = self.socket()
        certificate = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
        return ssl.cert_time_to_seconds(str(certificate["notAfter"])) if certificate else None

    def discard(self) -> None:
        """Close without DISCONNECT; what the kernel still holds is dropped, not sent."""
        sock = self.socket()
        if sock is not None:
            with contextlib.suppress(OSError, AttributeError):
                linger = socket.SO_LINGER, DISCARD_LINGER
                sock.setsockopt(socket.SOL_SOCKET, *linger)  # type: ignore[attr-defined]  # `_create_socket` made it
            self._sock_close()

    def _tell_connack(
        self, _client: paho.Client, _data: object, _flags: object, reason: ReasonCode, properties: Properties | None
    ) -> None:
        self._listener.connack(
            Connack(
                reason.value,
                reason.getName(),
                getattr(properties, "ReceiveMaximum", MAX_MID),
                getattr(properties, "MaximumPacketSize", None),
                getattr(properties, "MaximumQoS", 2),
                bool(getattr(properties, "RetainAvailable", 1)),
                _said(properties),
            )
        )

    def _tell_subscribed(
        self, _client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        self._listener.subscribed(granted=all(reason.value < MIN_REFUSAL for reason in reasons))

    def _tell_message(self, _client: paho.Client, _data: object, message: paho.MQTTMessage) -> None:
        if message.retain:
            self._listener.retained(message.topic, bytes(message.payload))

    def _tell_disconnect(
        self, _client: paho.Client, _data: object, flags: DisconnectFlags, reason: ReasonCode, properties: object
    ) -> None:
        if flags.is_disconnect_packet_from_server:
            self._listener.disconnected(reason.getName(), reason.value, _said(properties))


def _said(properties: object) -> str:
    """The Reason String in one line, and not longer than a person reads: a stranger wrote it."""
    text = str(getattr(properties, "ReasonString", ""))
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
    return plain if len(plain) <= MAX_REASON_CHARACTERS else f"{plain[:MAX_REASON_CHARACTERS]}…"
