"""One MQTT connection, from CONNECT to its end. Nothing here waits, except `open`.

A connection is used once. When it fails it is discarded, never reconnected: paho keeps what it could not send and
sends it later, although its sender may have retried meanwhile. Its owner moves the bytes: it asks for `fileno`, calls
`read`, `write` and `tick`, and takes the acknowledgements.
"""

from __future__ import annotations

import contextlib
import ssl
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Literal, NamedTuple

from functions.mqtt.client import MAX_MID, UNSUPPORTED_PROTOCOL, Client, Connack, ForbiddenAddressError
from functions.mqtt.outcome import MIN_REFUSAL
from functions.mqtt.packets import publish_packet
from functions.mqtt.tls import TlsFileError, client_context, incomplete

if TYPE_CHECKING:
    from collections.abc import Callable

    from functions.mqtt.broker import BrokerConfig
    from functions.mqtt.message import Message

WINDOW = 20  # acknowledgements awaited at once, and fewer where the broker's Receive Maximum asks for it
OFFLINE = b"offline"  # the last will's payload, in Home Assistant's words
BAD_CREDENTIALS, NOT_AUTHORIZED = 0x86, 0x87  # MQTT 5 §3.2.2.2
RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED = 0x9A, 0x9B
HOSTNAME_MISMATCH, ADDRESS_MISMATCH = 62, 64  # OpenSSL's X509_V_ERR_…

# What kind of failure it is, for callers that have their own words for it.
FailureKind = Literal[
    "other",
    "unreachable",
    "silent",
    "tls_file",  # a file of ours
    "tls_untrusted",
    "tls_name",
    "tls",
    "tls_alert",  # the peer found something wrong with us, after the handshake
    "closed",  # before CONNECT was answered
    "unanswered",  # CONNECT arrived, as far as we know
    "protocol",
    "forbidden",
]


class BrokerConnectionError(Exception):
    """A connection could not be made, or is lost. `reason_code` is the broker's, where it gave one."""

    def __init__(
        self,
        reason: str,
        *,
        reason_code: int | None = None,
        refused: bool = False,
        cause: FailureKind = "other",
        said: str = "",
        hint: str = "",
    ) -> None:
        """`refused`: the broker answered and does not want us, so trying again at once is no use.

        `said` are the broker's own words, `hint` what a person may try; `reason` holds both already.
        """
        self.reason = reason
        self.reason_code = reason_code
        self.refused = refused
        self.cause = cause
        self.said = said
        self.hint = hint
        super().__init__(reason)


class Ack(NamedTuple):
    """What came back for one packet: at QoS 0 merely that it was written."""

    mid: int
    reason_code: int
    qos: int
    said: str = ""


class Connection:
    """One connection to a broker. `connected` after its CONNACK, `closed` at its end, `failure` says why.

    `last_traffic_at` (`time.time`) is when the broker was last heard of; `certificate_expires_at` is None without TLS.
    """

    def __init__(
        self,
        broker: BrokerConfig,
        client_id: str,
        *,
        before_close: Callable[[], None] | None = None,
        address: str | None = None,
    ) -> None:
        """Prepare; nothing is sent before `open`. `before_close` is called while the socket is still open.

        `address` (IP) is connected to instead of what the broker's name resolves to; TLS asks for the name.
        """
        self._broker = broker
        self._acks: list[Ack] = []
        self._outbox = bytearray()
        self._written: list[int] = []
        self._last_mid = 0
        self._unacknowledged: dict[int, int] = {}  # packet identifier → QoS
        self.connected = False
        self.failure: BrokerConnectionError | None = None
        self.window = self.receive_maximum = WINDOW
        self.maximum_packet_size: int | None = None
        self.maximum_qos = 2
        self.retain_available = True
        self.last_traffic_at = time.time()
        self.certificate_expires_at: float | None = None
        self._client = Client(client_id, version5=broker.protocol == "5", listener=self)
        self._client.address = address
        self._client.targets = broker.targets
        if broker.username is not None:
            password = broker.password.get_secret_value() if broker.password else None
            self._client.username_pw_set(broker.username, password)
        if broker.availability_topic is not None:
            # QoS 0: a broker without QoS 1 refuses the whole CONNECT over a better one, and retained it is not lost.
            self._client.will_set(broker.availability_topic, OFFLINE, qos=0, retain=True)
        if before_close is not None:
            self._client.on_socket_close = lambda *_: before_close()

    def open(self, timeout_seconds: float) -> None:
        """Connect TCP and TLS, and send CONNECT; its answer is for `read`. Raises `BrokerConnectionError`.

        The only call that blocks: `timeout_seconds` at the most, beside the resolver's own time.
        """
        broker = self._broker
        try:
            if broker.tls:
                self._client.tls_set_context(client_context(broker))
            self._client.connect_timeout = timeout_seconds
            self._client.open(broker.host, broker.port, broker.keepalive_seconds)
            self.certificate_expires_at = self._client.certificate_expires_at
            if self.closed:  # on writing CONNECT already
                self.failure = self._lost()
        except TlsFileError as error:
            self.failure = BrokerConnectionError(f"{broker.url}: {error}", cause="tls_file")
        except ForbiddenAddressError:
            words = f"{broker.url}: an address that must not be connected to: see MQTT_TEST_ALLOWED_HOSTS"
            self.failure = BrokerConnectionError(words, cause="forbidden")
        except ssl.SSLCertVerificationError as error:
            other_name = error.verify_code in {HOSTNAME_MISMATCH, ADDRESS_MISMATCH}
            hint = incomplete(error)
            where = "MQTT_URL" if other_name else broker.variable("CA")
            words = f"{broker.url}: certificate refused: {error.verify_message}: {hint or f'see {where}'}"
            self.failure = BrokerConnectionError(words, cause="tls_name" if other_name else "tls_untrusted", hint=hint)
        except ssl.SSLError as error:
            reason = f"{broker.url}: TLS failed: {error.reason or error}: does this port speak TLS?"
            self.failure = BrokerConnectionError(reason, cause="tls")
        except TimeoutError:
            words = f"{broker.url}: no answer within {timeout_seconds:.1f} s"
            self.failure = BrokerConnectionError(words, cause="silent")
        except (OSError, ValueError) as error:  # ValueError: a host name that IDNA refuses
            in_tls = broker.tls and isinstance(error, ConnectionResetError)
            hint = ": does this port speak TLS?" if in_tls else ""
            words = f"{broker.url}: {getattr(error, 'strerror', None) or error}{hint}"
            self.failure = BrokerConnectionError(words, cause="tls" if in_tls else "unreachable")
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
    def qos(self) -> int:
        """The QoS in force for messages that have none of their own."""
        return min(self._broker.qos, self.maximum_qos)

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
        self._guard(self._client.receive)
        self.last_traffic_at = time.time()

    def write(self) -> None:
        """Send on. Call when the socket is writable and `wants_write`."""
        self._guard(self._client.loop_write)
        self._note_written()

    def tick(self) -> None:
        """Keep the link alive, and notice a dead one. Call about once a second where there is time to."""
        self._guard(self._client.loop_misc)

    @property
    def due_at(self) -> float:
        """When `tick` has something to do, unless there is traffic before; `time.monotonic`."""
        return self._client.due_at

    def ping(self) -> None:
        """Send PINGREQ: `ping_unanswered` until its answer is read."""
        self._guard(self._client.ping)

    def send(self, message: Message) -> int | None:
        """Put one message into the outbox for `flush`, and return its packet identifier.

        None: it is larger than the broker's Maximum Packet Size (MQTT 5 §3.2.2.3.6), and sending it would cost the
        connection. The owner keeps at most `window` unacknowledged.
        """
        if message.retain and not self.retain_available:  # MQTT 5 §3.2.2.3.5: it would cost the connection too
            message = replace(message, retain=False)
        mid = self._new_mid()
        qos = self.qos if message.qos is None else min(message.qos, self.maximum_qos)
        packet = publish_packet(message, mid, qos, properties=self._broker.protocol == "5")
        if self.maximum_packet_size is not None and len(packet) > self.maximum_packet_size:
            return None
        self._outbox += packet
        if qos:
            self._unacknowledged[mid] = qos
        else:
            self._written.append(mid)
        return mid

    def flush(self) -> None:
        """Put the outbox on the wire, in one piece. Raises `BrokerConnectionError`."""
        if self._outbox:
            packets, self._outbox = bytes(self._outbox), bytearray()
            self._guard(self._client.publish_packets, packets)
            if self.closed:
                raise self.why("connection lost")
            self._note_written()

    def why(self, otherwise: str) -> BrokerConnectionError:
        """Return the failure, or one that says `otherwise` where the connection has noticed none."""
        return self.failure or BrokerConnectionError(f"{self._broker.url}: {otherwise}")

    def unanswered(self) -> BrokerConnectionError:
        """Return why CONNECT has no answer, when there was time enough for one."""
        if self.failure is not None:
            return self.failure
        hint = f"Does the broker hang? {self._other_protocol}"
        return BrokerConnectionError(
            f"{self._broker.url}: no answer to CONNECT in time. {hint}", cause="unanswered", hint=hint
        )

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

    # What the client hears.

    def connack(self, connack: Connack) -> None:
        """See `Listener.connack`."""
        if connack.reason_code >= MIN_REFUSAL:
            hint = ""
            if connack.reason_code in {BAD_CREDENTIALS, NOT_AUTHORIZED}:
                hint = f": {self._broker.credentials_hint}"
                if self._broker.availability_topic is not None:
                    hint += f"; or it must not write its last will to {self._broker.availability_topic}"
            elif connack.reason_code in {RETAIN_NOT_SUPPORTED, QOS_NOT_SUPPORTED}:
                hint = ": it cannot keep our last will"
            elif connack.reason_code == UNSUPPORTED_PROTOCOL:
                hint = f": set MQTT_PROTOCOL={self._other}"
            words = f"{self._broker.url}: refused: {_with(connack.reason, connack.said)}{hint}"
            self.failure = BrokerConnectionError(
                words, reason_code=connack.reason_code, refused=True, said=connack.said, hint=hint
            )
            return
        self.receive_maximum = connack.receive_maximum
        self.window = min(WINDOW, connack.receive_maximum)
        self.maximum_packet_size = connack.maximum_packet_size
        self.maximum_qos = connack.maximum_qos
        self.retain_available = connack.retain_available
        self.connected = True

    def disconnected(self, reason: str, reason_code: int, said: str) -> None:
        """See `Listener.disconnected`."""
        words = f"{self._broker.url}: disconnected by the broker: {_with(reason, said)}"
        self.failure = self.failure or BrokerConnectionError(words, reason_code=reason_code, said=said)

    def acknowledged(self, mid: int, reason_code: int, said: str) -> None:
        """See `Listener.acknowledged`."""
        qos = self._unacknowledged.pop(mid, None)
        if qos is not None:
            self._acks.append(Ack(mid, reason_code, qos, said))

    def subscribed(self, *, granted: bool) -> None:
        """See `Listener.subscribed`: a publisher asks for nothing."""

    def retained(self, topic: str, payload: bytes) -> None:
        """See `Listener.retained`."""

    def _guard(self, step: Callable[..., object], *arguments: object) -> None:
        """Run one step of paho; a peer that makes it raise (bad packets do) has ended the connection."""
        try:
            step(*arguments)
        except Exception as error:  # noqa: BLE001 - a malformed packet surfaces as anything from KeyError to struct.error
            self._fail(f"protocol error: {error!r}")
        if self.closed:
            if self.failure is None:
                self.failure = self._lost()
            self.connected = False

    def _lost(self) -> BrokerConnectionError:
        if self.connected:
            return BrokerConnectionError(f"{self._broker.url}: connection lost")
        if self._client.tls_alert:
            where = f"{self._broker.variable('CERT')} and {self._broker.variable('KEY')}"
            words = f"{self._broker.url}: TLS failed: {self._client.tls_alert}: see {where}"
            return BrokerConnectionError(words, cause="tls_alert")
        hint = f"is this an MQTT port {'with' if self._broker.tls else 'without'} TLS?"
        if self._broker.tls and not (
            self._broker.cert_file or self._broker.cert_pem
        ):  # its alert may be lost in the reset that follows
            hint += " If it asks for a client certificate, set MQTT_CERT_FILE."
        look = self._broker.credentials_hint
        hint += (
            f" Some brokers close instead of refusing: {look}{'' if look[-1] == '?' else '.'} {self._other_protocol}"
        )
        words = f"{self._broker.url}: closed before it answered CONNECT: {hint}"
        return BrokerConnectionError(words, cause="closed", hint=hint)

    @property
    def _other(self) -> str:
        return "3.1.1" if self._broker.protocol == "5" else "5"

    @property
    def _other_protocol(self) -> str:
        return f"If it speaks MQTT {self._other} only, set MQTT_PROTOCOL={self._other}."

    def _fail(self, reason: str) -> None:
        self.failure = self.failure or BrokerConnectionError(f"{self._broker.url}: {reason}", cause="protocol")
        self.discard()

    def _note_written(self) -> None:
        # At QoS 0 a message is over when it is written.
        if self._written and not self.wants_write:
            self._acks += [Ack(mid, 0, 0) for mid in self._written]
            self._written.clear()

    def _new_mid(self) -> int:
        """The next packet identifier that is not in use (MQTT 5 §2.2.1)."""
        while True:
            self._last_mid = self._last_mid % MAX_MID + 1
            if self._last_mid not in self._unacknowledged:
                return self._last_mid


def _with(reason: str, said: str) -> str:
    """What the reason code means, and the broker's own words where they say more."""
    return f"{reason} ({said})" if said and said.casefold() != reason.casefold() else reason
