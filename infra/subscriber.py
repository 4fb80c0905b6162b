"""Listens to MQTT topics, for people, devices, tests and measurements."""

from __future__ import annotations

import ssl
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from functions.backoff import backoff_seconds
from infra.incoming import MAX_BATCH, Batches, Received
from infra.outgoing import Sender, Sending

START_TIMEOUT_SECONDS = 5.0
MESSAGE_TIMEOUT_SECONDS = 20.0
KEEPALIVE_SECONDS = 30
STOP_TIMEOUT_SECONDS = 1.0
LOOP_SECONDS = 0.05  # between two looks at what is held, or is to be sent
REST_SECONDS = 1.0  # otherwise: a message ends the wait, and so does `stop`
FIRST_RETRY_SECONDS = 0.1
LONGEST_RETRY_SECONDS = 5.0

_PROTOCOLS = {
    5: MQTTProtocolVersion.MQTTv5,
    "5": MQTTProtocolVersion.MQTTv5,
    4: MQTTProtocolVersion.MQTTv311,
    "3.1.1": MQTTProtocolVersion.MQTTv311,
}
_DEFAULT_PORTS = {"mqtt": 1883, "mqtts": 8883}


class SubscriberError(Exception):
    """The subscriber does not hear its topics; `reason_code` is the broker's, where it gave one."""

    def __init__(self, message: str, reason_code: int | None = None) -> None:
        super().__init__(message)
        self.reason_code = reason_code


class SubscriberTimeoutError(SubscriberError, TimeoutError):
    """Fewer messages came than were waited for."""


class Subscriber:
    """Hears `topics` on the broker at `url` (`mqtt://` or `mqtts://`), reconnecting by itself once started.

    What arrived is taken once, by `next`, `wait_for`, `drain` or `silence`, from any thread; `messages` keeps
    all. With `on_message` none is kept: it is given each instead, before the broker gets its acknowledgement. With
    `on_batch` neither: it is given what came within hundredths of a second, at most `MAX_BATCH`, and the broker gets
    the acknowledgements after it has returned True; after False it is given the same again, and more, a second later.
    `on_state` is given None whenever the broker has confirmed the subscriptions, so again after each reconnection,
    and the reason whenever it could not listen. All are called in the subscriber's own thread.
    `context` goes instead of the TLS files.
    `optional_topics` are heard where the broker lets us; `granted` are those that it does. `sender` says what is
    published besides.
    `presence_topic` gets a retained `online` while it listens, and `offline` at the end or, as the last will, when
    the connection is lost. `protocol` is 5 or "3.1.1". With `session_expiry_seconds` above 0 the broker keeps the
    session under `client_id` (3.1.1: for as long as it likes). paho watches the socket with select(), which fails
    from file descriptor 1,024 on.
    """

    def __init__(
        self,
        url: str,
        topics: Sequence[str],
        *,
        qos: int = 2,
        username: str | None = None,
        password: str | None = None,
        ca_file: Path | str | None = None,
        cert_file: Path | str | None = None,
        key_file: Path | str | None = None,
        context: ssl.SSLContext | None = None,
        client_id: str = "",
        protocol: int | str = 5,
        session_expiry_seconds: int = 0,
        presence_topic: str | None = None,
        optional_topics: Sequence[str] = (),
        sender: Sender | None = None,
        on_message: Callable[[Received], None] | None = None,
        on_batch: Callable[[list[Received]], bool] | None = None,
        on_state: Callable[[SubscriberError | None], None] | None = None,
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS or not parts.hostname:
            raise ValueError(f"{url!r} is not a broker: write mqtt://host[:1883] or mqtts://host[:8883]")
        if protocol not in _PROTOCOLS:
            raise ValueError(f'protocol {protocol!r} is not known: 5 or "3.1.1"')
        if isinstance(topics, str) or not topics:
            raise ValueError("topics must be a list of at least one topic filter")
        if session_expiry_seconds and not client_id:
            raise ValueError("a session that outlives its connection needs a client_id")
        port = parts.port or _DEFAULT_PORTS[parts.scheme]
        self._where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}"
        self._topics = tuple(topics)
        self._optional_topics = tuple(optional_topics)
        self._asked: tuple[str, ...] = ()
        self._unanswered = 0  # SUBSCRIBEs in a row: some brokers close the connection over a topic that they forbid
        self.granted: tuple[str, ...] = ()
        self._qos = qos
        self._presence_topic = presence_topic
        self._take_message = on_message
        self._take_state = on_state
        self._news = threading.Condition()
        self._unread: deque[Received] = deque()
        self._all: list[Received] = []
        self._subscribed = False
        self._error: SubscriberError | None = None
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._client = self._make_client(
            _PROTOCOLS[protocol], client_id, session_expiry_seconds, acknowledges_later=on_batch is not None
        )
        self._is_batched = on_batch is not None
        self._batches = Batches(on_batch or (lambda _: True), self._client.loop_read, self._client.ack)
        self._sending = Sending(sender, lambda one: self._client.publish(one.topic, one.payload, qos=1).mid)
        in_flight = None if on_batch is None else MAX_BATCH
        self._aim = partial(_aim, self._client, parts.hostname, port, session_expiry_seconds, in_flight)
        if username is not None:
            self._client.username_pw_set(username, password)
        if parts.scheme == "mqtts":
            context = context or ssl.create_default_context(cafile=None if ca_file is None else str(ca_file))
            if cert_file is not None:
                context.load_cert_chain(str(cert_file), None if key_file is None else str(key_file))
            context.sslsocket_class = _TidySocket
            self._client.tls_set_context(context)

    @property
    def messages(self) -> list[Received]:
        """All messages so far, taken or not, oldest first."""
        with self._news:
            return list(self._all)

    @property
    def connected(self) -> bool:
        """Whether the broker has confirmed the subscriptions of the present connection."""
        return self._subscribed

    @property
    def held(self) -> int:
        """How many messages wait for `on_batch` to take them: bounded, however many come."""
        return len(self._batches)

    @property
    def last_error(self) -> SubscriberError | None:
        """Why it was last unable to listen, None while it listens."""
        return self._error

    def start(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> Self:
        """Returns once the broker has confirmed every subscription; SubscriberError says why it did not."""
        if self._thread is not None:
            return self
        self.begin(timeout_seconds)
        with self._news:
            self._news.wait_for(lambda: self._subscribed or self._error is not None, timeout_seconds)
            error = self._error
            if self._subscribed:
                return self
        self.stop()
        raise error or SubscriberError(f"{self._where} confirmed no subscription within {timeout_seconds:g} s")

    def begin(self, timeout_seconds: float = START_TIMEOUT_SECONDS) -> None:
        """Starts to listen without waiting for it; while it cannot, `last_error` says why, and it tries on.

        The time-out is that of one connection attempt. Idempotent.
        """
        if self._thread is not None:
            return
        self._client.connect_timeout = timeout_seconds
        self._aim()
        # A daemon: a connection attempt that hangs must not hold up the end of the process.
        self._thread = threading.Thread(target=self._run, name="subscriber", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnects and stops listening. Idempotent; what has arrived can still be taken."""
        self._stopping.set()
        if (wake := self._client._sockpairW) is not None:  # noqa: SLF001 - nothing public ends paho's `loop` early
            with suppress(OSError):  # it has been closed meanwhile
                wake.send(b"\0")
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(STOP_TIMEOUT_SECONDS)

    def next(self, timeout_seconds: float = MESSAGE_TIMEOUT_SECONDS) -> Received:
        """The oldest message not taken yet; SubscriberTimeoutError when none comes in time."""
        return self.wait_for(1, timeout_seconds)[0]

    def wait_for(self, count: int, timeout_seconds: float = MESSAGE_TIMEOUT_SECONDS) -> list[Received]:
        """Takes the next `count` messages; SubscriberTimeoutError, taking none, when fewer come in time."""
        with self._news:
            if not self._news.wait_for(lambda: len(self._unread) >= count, timeout_seconds):
                came = f"{self._where} brought {len(self._unread)} of {count} messages in {timeout_seconds:g} s"
                raise SubscriberTimeoutError(f"{came}; not listening: {self._error}" if self._error else came)
            return [self._unread.popleft() for _ in range(count)]

    def drain(self) -> list[Received]:
        """Takes whatever has arrived and was not taken, without waiting."""
        with self._news:
            taken = list(self._unread)
            self._unread.clear()
            return taken

    def silence(self, seconds: float) -> list[Received]:
        """Waits that long and takes what was there or came; an empty list is silence."""
        time.sleep(seconds)
        return self.drain()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _make_client(
        self, protocol: MQTTProtocolVersion, client_id: str, session_expiry_seconds: int, *, acknowledges_later: bool
    ) -> paho.Client:
        client = paho.Client(
            CallbackAPIVersion.VERSION2,
            client_id=client_id,
            protocol=protocol,
            # MQTT 5 has Clean Start instead, and paho refuses the old name there.
            clean_session=None if protocol is MQTTProtocolVersion.MQTTv5 else not session_expiry_seconds,
            manual_ack=acknowledges_later,
        )
        if self._presence_topic is not None:
            client.will_set(self._presence_topic, b"offline", qos=1, retain=True)
        client.on_connect = self._on_connect
        client.on_subscribe = self._on_subscribe
        client.on_message = self._on_message
        client.on_publish = lambda _client, _data, mid, reason, _properties: self._sending.answered(mid, reason.value)
        client.suppress_exceptions = True
        return client

    # From here on all runs in the one thread that touches paho. Its own, loop_start(), cannot be ended in a
    # bounded time (its connect blocks), and forgets why a connection failed.

    def _run(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                self._client.reconnect()
            except (OSError, ValueError) as error:  # ValueError: a host name that cannot be encoded
                self._fail(f"{self._where} is unreachable: {error}")
            else:
                while self._turn() is MQTTErrorCode.MQTT_ERR_SUCCESS:
                    if self._subscribed:
                        failures = 0
                    if self._stopping.is_set():
                        break
                    self._batches.hand_over()
                    if self._subscribed:
                        self._sending.go_on()
                else:
                    self._lost()
                self._sending.lost()
                self._client._out_messages.clear()  # noqa: SLF001 - or paho would send them again by itself
                self._batches.clear()
            failures += 1
            pause = backoff_seconds(failures, first_seconds=FIRST_RETRY_SECONDS, longest_seconds=LONGEST_RETRY_SECONDS)
            self._stopping.wait(pause)
        if self._presence_topic is not None and self._subscribed:
            self._client.publish(self._presence_topic, b"offline", retain=True)  # DISCONNECT annuls the will
        self._client.disconnect()
        self._subscribed = False
        # paho leaves the pair of sockets that `loop` makes to the garbage collector, which warns of them.
        self._client._reset_sockets(sockpair_only=True)  # noqa: SLF001 - there is no other way to it

    def _turn(self) -> MQTTErrorCode:
        if not self._batches.is_full:
            is_calm = self._subscribed and not self._batches and not self._sending.is_used
            return self._client.loop(REST_SECONDS if is_calm else LOOP_SECONDS)
        # The broker's answers to our pings are not read either: after a minute or two the connection is opened anew.
        self._stopping.wait(LOOP_SECONDS)
        return self._client.loop_misc()

    def _lost(self) -> None:
        # A refusal closes the connection too: keep its reason.
        if self._subscribed or self._error is None:
            self._fail(f"{self._where} closed the connection")

    def _fail(self, message: str, reason_code: int | None = None) -> None:
        self._enter(SubscriberError(message, reason_code))

    def _enter(self, error: SubscriberError | None) -> None:
        with self._news:
            self._subscribed = error is None
            self._error = error
            self._news.notify_all()
        if self._take_state is not None:
            self._take_state(error)

    def _on_connect(
        self, client: paho.Client, _data: object, _flags: object, reason: ReasonCode, _properties: object
    ) -> None:
        if reason.is_failure:
            self._fail(f"{self._where} refused the connection: {reason} (0x{reason.value:02x})", reason.value)
            return
        # If it closed the connection over the last one, an optional topic may be why.
        self._asked = (*self._topics, *(() if self._unanswered % 2 else self._optional_topics))
        self._unanswered += 1
        client.subscribe([(topic, self._qos) for topic in self._asked])

    def _on_subscribe(
        self, client: paho.Client, _data: object, _mid: int, reasons: list[ReasonCode], _properties: object
    ) -> None:
        self._unanswered = 0
        answers = dict(zip(self._asked, reasons, strict=False))
        self.granted = tuple(topic for topic, reason in answers.items() if not reason.is_failure)
        for topic, reason in answers.items():
            if reason.is_failure and topic not in self._optional_topics:
                self._fail(
                    f"{self._where} refused the subscription to {topic}: {reason} (0x{reason.value:02x})",
                    reason.value,
                )
                client.disconnect()
                return
        if self._presence_topic is not None:
            client.publish(self._presence_topic, b"online", qos=1, retain=True)
        self._enter(None)

    def _on_message(self, _client: paho.Client, _data: object, arrived: paho.MQTTMessage) -> None:
        received_at, received_wall = time.monotonic(), time.time()
        properties: Any = arrived.properties  # paho gives it its attributes at run time
        message = Received(
            topic=arrived.topic,
            payload=bytes(arrived.payload),
            qos=arrived.qos,
            retain=arrived.retain,
            user_properties=tuple(getattr(properties, "UserProperty", ())),
            content_type=getattr(properties, "ContentType", None),
            received_at=received_at,
            received_wall=received_wall,
        )
        if self._is_batched:
            self._batches.add(arrived.mid, message)
            return
        if self._take_message is not None:
            self._take_message(message)
            return
        with self._news:
            self._all.append(message)
            self._unread.append(message)
            self._news.notify_all()


class _TidySocket(ssl.SSLSocket):
    """Closes itself after a failed handshake, which paho forgets to do (2.2)."""

    def do_handshake(self, block: bool = False) -> None:  # noqa: FBT001, FBT002 - the standard library's signature
        try:
            super().do_handshake(block)
        except BaseException:
            self.close()
            raise


def _aim(client: paho.Client, host: str, port: int, session_expiry_seconds: int, receive_maximum: int | None) -> None:
    """Tells paho where to connect and for how long the session is to be kept; opens nothing."""
    if client.protocol is not MQTTProtocolVersion.MQTTv5:
        client.connect_async(host, port, KEEPALIVE_SECONDS)
        return
    properties = Properties(PacketTypes.CONNECT)  # type: ignore[no-untyped-call] # paho left it untyped
    properties.SessionExpiryInterval = session_expiry_seconds
    if receive_maximum is not None:
        properties.ReceiveMaximum = receive_maximum
    client.connect_async(host, port, KEEPALIVE_SECONDS, clean_start=not session_expiry_seconds, properties=properties)
