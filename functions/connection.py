"""One MQTT connection, from CONNECT to its end: the only importer of paho. Nothing here waits, except `open`.

A connection is used once. When it fails it is discarded, never reconnected: paho keeps what it could not send and
sends it later, behind the back of whoever retried meanwhile. Its owner moves the bytes: it asks for `fileno`, calls
`read`, `write` and `tick`, and takes the acknowledgements.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from paho.mqtt.client import Client, ConnectFlags
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from functions.packets import pack_properties, publish_bytes
from functions.tls import TlsFileError, client_context

if TYPE_CHECKING:
    from collections.abc import Callable

    from paho.mqtt.client import DisconnectFlags

    from functions.routes import Notification
    from functions.settings import Broker

WINDOW = 20  # acknowledgements awaited at once; paho resends past its own limit after a reconnect (FACTS: paho 7)
MIN_REFUSAL = 0x80  # MQTT 5 §2.4: reason codes from here on are errors
NO_MATCHING_SUBSCRIBERS = 0x10  # MQTT 5 §3.4.2.1
PACKET_TOO_LARGE = 0x95
PUBREC_WITH_REASON_BYTES = 3  # packet identifier, reason code (MQTT 5 §3.5.2)
UNACCEPTABLE_PROTOCOL = b"\x00\x01"  # MQTT 3.1.1 §3.2: a CONNACK's flags, and return code 1
UNSUPPORTED_PROTOCOL, BAD_CREDENTIALS, NOT_AUTHORIZED = 0x84, 0x86, 0x87  # MQTT 5 §3.2.2.2
HOSTNAME_MISMATCH, ADDRESS_MISMATCH = 62, 64  # OpenSSL's X509_V_ERR_…
QUICK_ACK: int | None = getattr(socket, "TCP_QUICKACK", None)  # Linux only
DISCARD_LINGER = struct.pack("ii", 1, 0)  # SO_LINGER of 0 s: closing drops what the kernel has not sent yet


class ConnectionFailure(Exception):
    """A connection could not be made, or is lost. `reason_code` is the broker's, where it gave one."""

    def __init__(self, reason: str, *, reason_code: int | None = None, refused: bool = False) -> None:
        """`refused`: the broker answered and does not want us, so trying again at once is no use."""
        self.reason = reason
        self.reason_code = reason_code
        self.refused = refused
        super().__init__(reason)


@dataclass(frozen=True, slots=True)
class Ack:
    """What came back for one packet: at QoS 0 merely that it was written."""

    mid: int
    reason_code: int


class _Packed(Properties):
    """PUBLISH properties, encoded already: paho's own encoder costs more than the rest of a publish."""

    packed: bytes

    def __init__(self, packed: bytes) -> None:
        object.__setattr__(self, "packed", packed)  # paho's own __setattr__ takes property names only

    def pack(self) -> bytes:
        return self.packed


class _Client(Client):
    """paho's client with what it lacks: one deadline for a connect, a ping, and refusals that it keeps to itself.

    They use names that paho keeps private; its version is pinned, and a test covers each.
    """

    tls_alert = ""
    """What the peer found wrong with our side of TLS: version 1.3 says so only after the handshake."""

    def _create_socket(self) -> socket.socket:
        """TCP and TLS within one `connect_timeout`, shared among the host's addresses; Nagle's delay off."""
        deadline = time.monotonic() + self.connect_timeout
        addresses = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_STREAM)
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

    def _sock_recv(self, bufsize: int) -> bytes:
        try:
            return super()._sock_recv(bufsize)
        except ssl.SSLError as error:
            self.tls_alert = error.reason or str(error)
            raise

    def _handle_connack(self) -> MQTTErrorCode:
        result = super()._handle_connack()
        if self.protocol == MQTTProtocolVersion.MQTTv311 and self._in_packet["packet"] == UNACCEPTABLE_PROTOCOL:
            reason = ReasonCode(PacketTypes.CONNACK, identifier=UNSUPPORTED_PROTOCOL)
            self.on_connect(self, None, ConnectFlags(session_present=False), reason, None)  # type: ignore[misc, call-arg, arg-type]  # a union over paho's callback versions
        return result

    def _handle_pubrec(self) -> MQTTErrorCode:
        packet = self._in_packet["packet"]
        has_reason = self.protocol == MQTTProtocolVersion.MQTTv5 and len(packet) >= PUBREC_WITH_REASON_BYTES
        # MQTT 5 §4.3.3: after a PUBREC of 0x80 or more the message is over, and no PUBREL follows.
        if has_reason and packet[2] >= MIN_REFUSAL:
            mid = int.from_bytes(packet[:2], "big")
            if mid in self._out_messages:
                reason = ReasonCode(PacketTypes.PUBREC, identifier=packet[2])
                return self._do_on_publish(mid, reason, _Packed(b""))
        return super()._handle_pubrec()

    def acknowledge_at_once(self) -> None:
        """Have the kernel confirm what arrives without its usual 40 ms delay; Linux forgets this again and again.

        Mosquitto leaves Nagle's algorithm on: it holds a second PUBACK back until the first is confirmed.
        """
        sock = self._sock
        if QUICK_ACK is not None and sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.IPPROTO_TCP, QUICK_ACK, 1)  # type: ignore[attr-defined]  # as in `discard`

    def ping(self) -> None:
        self._send_pingreq()

    @property
    def ping_unanswered(self) -> bool:
        return self._ping_t > 0

    def discard(self) -> None:
        """Close without DISCONNECT; what the kernel still holds is dropped, not sent."""
        sock = self.socket()
        if sock is not None:
            with contextlib.suppress(OSError, AttributeError):
                # A real socket, since `_create_socket` made it.
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, DISCARD_LINGER)  # type: ignore[attr-defined]
            self._sock_close()


class Connection:
    """One connection to a broker. `connected` after its CONNACK, `closed` at its end, `failure` says why.

    `last_traffic_at` (`time.time`) is when the broker was last heard of.
    """

    def __init__(self, broker: Broker, client_id: str, *, before_close: Callable[[], None] | None = None) -> None:
        """Prepare; nothing is sent before `open`. `before_close` is called while the socket is still open."""
        self._broker = broker
        self._acks: list[Ack] = []
        self.connected = False
        self.failure: ConnectionFailure | None = None
        self.window = WINDOW
        self.maximum_packet_size: int | None = None
        self.qos = broker.qos
        self.last_traffic_at = time.time()
        version5 = broker.protocol == "5"
        self._client = _Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=MQTTProtocolVersion.MQTTv5 if version5 else MQTTProtocolVersion.MQTTv311,
            # Otherwise paho answers some refusals with a blocking reconnect of its own from inside loop_read.
            reconnect_on_failure=False,
        )
        if broker.username is not None:
            password = broker.password.get_secret_value() if broker.password else None
            self._client.username_pw_set(broker.username, password)
        self._client.on_connect = self._on_connect
        self._client.on_disconnect = self._on_disconnect
        self._client.on_publish = self._on_publish
        if before_close is not None:
            self._client.on_socket_close = lambda *_: before_close()

    def open(self, timeout_seconds: float) -> None:
        """Connect TCP and TLS, and send CONNECT; its answer is for `read`. Raises `ConnectionFailure`.

        The only call that blocks: `timeout_seconds` at the most, beside the resolver's own time.
        """
        broker = self._broker
        try:
            if broker.tls:
                self._client.tls_set_context(client_context(broker))
            self._client.connect_timeout = timeout_seconds
            self._client.connect(broker.host, broker.port, broker.keepalive_seconds)
            if self.closed:  # on writing CONNECT already
                self.failure = ConnectionFailure(self._lost())
        except TlsFileError as error:
            self.failure = ConnectionFailure(f"{broker.url}: {error}")
        except ssl.SSLCertVerificationError as error:
            other_name = error.verify_code in {HOSTNAME_MISMATCH, ADDRESS_MISMATCH}
            reason = f"{broker.url}: certificate refused: {error.verify_message}"
            self.failure = ConnectionFailure(f"{reason}: see {'MQTT_URL' if other_name else 'MQTT_CA_FILE'}")
        except ssl.SSLError as error:
            reason = f"{broker.url}: TLS failed: {error.reason or error}: does this port speak TLS?"
            self.failure = ConnectionFailure(reason)
        except TimeoutError:
            self.failure = ConnectionFailure(f"{broker.url}: no answer within {timeout_seconds:.1f} s")
        except (OSError, ValueError) as error:  # ValueError: a host name that IDNA refuses
            hint = ": does this port speak TLS?" if broker.tls and isinstance(error, ConnectionResetError) else ""
            self.failure = ConnectionFailure(f"{broker.url}: {getattr(error, 'strerror', None) or error}{hint}")
        if self.failure:
            self._client.discard()
            raise self.failure from None

    @property
    def closed(self) -> bool:
        """Whether the connection is over (or was never opened)."""
        return self._client.socket() is None

    @property
    def answered(self) -> bool:
        """Whether CONNECT has had its answer, if only the end of the connection."""
        return self.connected or self.closed

    @property
    def keepalive_seconds(self) -> int:
        """The keep alive in force: the broker's where it named one in CONNACK, and not 0, which means none."""
        return self._client.keepalive or self._broker.keepalive_seconds

    @property
    def wants_write(self) -> bool:
        """Whether packets wait for the socket to become writable."""
        return self._client.want_write()

    @property
    def ping_unanswered(self) -> bool:
        """Whether a PINGREQ was sent and no PINGRESP came yet."""
        return self._client.ping_unanswered

    def fileno(self) -> int:
        """Return the socket's descriptor, or -1 when closed."""
        sock = self._client.socket()
        return -1 if sock is None else sock.fileno()

    def read(self) -> None:
        """Take in what has arrived. Call when the socket is readable; it may be closed afterwards."""
        self._client.acknowledge_at_once()
        before = self.fileno()
        self._guard(self._client.loop_read)
        # A TLS record may hold more packets than loop_read takes: the socket will not become readable for them.
        while not self.closed and self.fileno() == before and self._pending():
            self._guard(self._client.loop_read)
        self.last_traffic_at = time.time()

    def write(self) -> None:
        """Send on. Call when the socket is writable and `wants_write`."""
        self._guard(self._client.loop_write)

    def tick(self) -> None:
        """Keep the link alive, and notice a dead one. Call about once a second where there is time to."""
        self._guard(self._client.loop_misc)

    def ping(self) -> None:
        """Send PINGREQ: `ping_unanswered` until its answer is read."""
        self._guard(self._client.ping)

    def send(self, notification: Notification) -> int:
        """Hand one message to the socket and return its packet identifier. Raises `ConnectionFailure`.

        The owner keeps at most `window` unacknowledged and has asked `fits` before.
        """
        properties = _Packed(pack_properties(notification)) if self._broker.protocol == "5" else None
        try:
            info = self._client.publish(notification.topic, notification.payload, self.qos, properties=properties)
        except Exception as error:  # noqa: BLE001 - whatever paho raises, this connection cannot be trusted any more
            self._fail(f"publish failed: {error!r}")
        else:
            if info.rc == MQTTErrorCode.MQTT_ERR_SUCCESS:
                return info.mid
            self._fail(f"connection lost: {info.rc.name}")
        raise self.why("connection lost")

    def fits(self, notification: Notification) -> bool:
        """Whether the whole PUBLISH packet is within the broker's Maximum Packet Size (MQTT 5 §3.2.2.3.6)."""
        return self.maximum_packet_size is None or publish_bytes(notification, self.qos) <= self.maximum_packet_size

    def why(self, otherwise: str) -> ConnectionFailure:
        """Return the failure, or one that says `otherwise` where the connection has noticed none."""
        return self.failure or ConnectionFailure(f"{self._broker.url}: {otherwise}")

    def take_acks(self) -> list[Ack]:
        """Return what has been acknowledged since the last call."""
        acks, self._acks = self._acks, []
        return acks

    def close(self) -> None:
        """Say DISCONNECT where the socket takes it, and close. Never blocks, never raises."""
        with contextlib.suppress(Exception):
            self._client.disconnect()
        self.discard()

    def discard(self) -> None:
        """Drop the connection at once, with everything that is not on the wire yet."""
        self._client.discard()
        self.connected = False

    def _pending(self) -> bool:
        sock = self._client.socket()
        return isinstance(sock, ssl.SSLSocket) and sock.pending() > 0

    def _guard(self, step: Callable[[], object]) -> None:
        """Run one step of paho; a peer that makes it raise (bad packets do) has ended the connection."""
        try:
            step()
        except Exception as error:  # noqa: BLE001 - a malformed packet surfaces as anything from KeyError to struct.error
            self._fail(f"protocol error: {error!r}")
        if self.closed:
            if self.failure is None:
                self.failure = ConnectionFailure(self._lost())
            self.connected = False

    def _lost(self) -> str:
        if self.connected:
            return f"{self._broker.url}: connection lost"
        if self._client.tls_alert:
            return f"{self._broker.url}: TLS failed: {self._client.tls_alert}: see MQTT_CERT_FILE and MQTT_KEY_FILE"
        hint = f"is this an MQTT port {'with' if self._broker.tls else 'without'} TLS?"
        if self._broker.tls and not self._broker.cert_file:  # its alert may be lost in the reset that follows
            hint += " If it asks for a client certificate, set MQTT_CERT_FILE."
        if self._broker.protocol == "5":
            hint += " If it speaks MQTT 3.1.1 only, set MQTT_PROTOCOL=3.1.1."
        return f"{self._broker.url}: closed before it answered CONNECT: {hint}"

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or ConnectionFailure(f"{self._broker.url}: {reason}")
        self.discard()

    def _on_connect(
        self,
        _client: Client,
        _userdata: object,
        _flags: ConnectFlags,
        reason: ReasonCode,
        properties: Properties | None,
    ) -> None:
        if reason.is_failure:
            hint = ""
            if reason.value in {BAD_CREDENTIALS, NOT_AUTHORIZED}:
                hint = ": check MQTT_USERNAME and MQTT_PASSWORD"
            elif reason.value == UNSUPPORTED_PROTOCOL:
                hint = f": set MQTT_PROTOCOL={'3.1.1' if self._broker.protocol == '5' else '5'}"
            words = f"{self._broker.url}: refused: {reason.getName()}{hint}"
            self.failure = ConnectionFailure(words, reason_code=reason.value, refused=True)
            return
        self.window = min(WINDOW, getattr(properties, "ReceiveMaximum", WINDOW))
        self.maximum_packet_size = getattr(properties, "MaximumPacketSize", None)
        self.qos = min(self._broker.qos, getattr(properties, "MaximumQoS", 2))
        self.connected = True

    def _on_disconnect(
        self,
        _client: Client,
        _userdata: object,
        flags: DisconnectFlags,
        reason: ReasonCode,
        _properties: Properties | None,
    ) -> None:
        if flags.is_disconnect_packet_from_server and self.failure is None:
            self.failure = ConnectionFailure(
                f"{self._broker.url}: disconnected by the broker: {reason.getName()}",
                reason_code=reason.value,
            )

    def _on_publish(
        self, _client: Client, _userdata: object, mid: int, reason: ReasonCode, _properties: Properties
    ) -> None:
        self._acks.append(Ack(mid, reason.value))
