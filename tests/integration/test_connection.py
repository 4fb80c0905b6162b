"""One connection against real brokers, and against what only a fake one does."""

from __future__ import annotations

import json
import os
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import SecretStr

from functions.events.envelopes import ObjectCreated
from functions.events.names import is_asset_path
from functions.events.routes import Routes, Upload
from functions.mqtt.broker import BrokerConfig, new_client_id
from functions.mqtt.connection import WINDOW, BrokerConnectionError, Connection
from functions.mqtt.message import Message
from functions.mqtt.outcome import Status
from functions.mqtt.publisher import InlinePublisher
from functions.settings.reach import Targets
from functions.telemetry import EmfTelemetry
from infra.local.certificates import Certificates, make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.fakes.broker import GARBAGE, HTTP_ANSWER, Behaviour, FakeBroker
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

TOPIC = "iotsupport/updates/assets"
AES = BestAvailableEncryption(b"secret")

_Line = tuple[Mosquitto, InlinePublisher, Subscriber]


def _broker(part: Mosquitto | FakeBroker, **changes: Any) -> BrokerConfig:  # noqa: ANN401 - any field of BrokerConfig
    tls = isinstance(part, Mosquitto) and part.certificates is not None
    return replace(BrokerConfig("localhost" if tls else "127.0.0.1", part.port, tls=tls), **changes)


def _send(connection: Connection, notification: Message) -> int | None:
    mid = connection.send(notification)
    connection.flush()
    return mid


def _drive(connection: Connection, done: Callable[[], bool], seconds: float = PATIENCE_SECONDS) -> bool:
    deadline = time.monotonic() + seconds
    while not done() and not connection.closed and time.monotonic() < deadline:
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
        for _, events in poller.poll(50):
            if events & ~select.POLLOUT:
                connection.read()
            if events & select.POLLOUT and not connection.closed:
                connection.write()
    return done()


def _connect(broker: BrokerConfig, seconds: float = PATIENCE_SECONDS) -> Connection:
    """Return the connection after its CONNACK, or raise why there is none."""
    connection = Connection(broker, new_client_id("bucketbell"))
    try:
        connection.open(seconds)
    except BrokerConnectionError:
        assert connection.closed
        raise
    if _drive(connection, lambda: connection.connected):
        return connection
    connection.discard()
    raise connection.why("no answer")


def _refusal(broker: BrokerConfig) -> BrokerConnectionError:
    with pytest.raises(BrokerConnectionError) as caught:
        _connect(broker).discard()
    return caught.value


def _notification(name: str = "a.bin", padding: int = 0) -> Message:
    payload = json.dumps({"filename": name}, ensure_ascii=False).encode() + b" " * padding
    return Message(TOPIC, payload, user_properties=(("id", "1"), ("subject", name)))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def tls_mosquitto(
    tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path, certificates: Certificates
) -> Iterator[Mosquitto]:
    """A Mosquitto that speaks TLS only."""
    del mosquitto_binary
    with Mosquitto(tmp_path_factory.mktemp("tls"), certificates=certificates) as broker:
        yield broker


@pytest.fixture(scope="module")
def strict_mosquitto(
    tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path, certificates: Certificates
) -> Iterator[Mosquitto]:
    """A Mosquitto that also asks for a client certificate."""
    del mosquitto_binary
    directory = tmp_path_factory.mktemp("strict")
    with Mosquitto(directory, certificates=certificates, require_client_certificate=True) as broker:
        yield broker


# What goes over the wire.


def test_a_subscriber_sees_exactly_the_payload_and_the_properties(mosquitto: Mosquitto) -> None:
    """MQTT 5: content type, user properties in order, not retained; and the protocol as the broker saw it."""
    connection = _connect(_broker(mosquitto))
    notification = _notification("Ünï cöde/\u2028\U0001f514.bin")
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        mid = _send(connection, notification)
        assert _drive(connection, lambda: bool(connection._acks))  # noqa: SLF001 - looks without taking
        assert [(ack.mid, ack.reason_code) for ack in connection.take_acks()] == [(mid, 0)]
        message = subscriber.next()
    assert (message.topic, message.payload) == (notification.topic, notification.payload)
    assert (message.qos, message.retain) == (1, False)
    assert message.content_type == "application/json"
    assert message.user_properties == notification.user_properties
    with Subscriber(mosquitto.url, ["#"]) as late:
        assert late.silence(0.1) == []
    assert "(p5, c1, k60)" in mosquitto.log_text()
    connection.close()
    assert connection.closed


def test_mqtt_3_1_1_carries_the_same_payload_without_properties(mosquitto: Mosquitto) -> None:
    """For brokers and subscribers of the older protocol."""
    connection = _connect(_broker(mosquitto, protocol="3.1.1"))
    with Subscriber(mosquitto.url, ["#"], protocol="3.1.1") as old, Subscriber(mosquitto.url, ["#"]) as new:
        _send(connection, _notification())
        assert old.next().payload == new.next().payload == b'{"filename": "a.bin"}'
        assert new.messages[0].user_properties == ()
    assert "(p2, c1, k60)" in mosquitto.log_text()
    connection.close()


@pytest.fixture(scope="module")
def open_line(tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path) -> Iterator[_Line]:
    """A Mosquitto, a publisher and a subscriber that many examples share."""
    del mosquitto_binary
    with Mosquitto(tmp_path_factory.mktemp("names")) as broker, Subscriber(broker.url, ["#"], qos=1) as subscriber:
        publisher = InlinePublisher(_broker(broker), EmfTelemetry())
        yield broker, publisher, subscriber
        publisher.close()


def _ring(line: _Line, names: list[str]) -> None:
    """Publish one message for each name; all arrive exactly, and the connection survives."""
    broker, publisher, subscriber = line
    notifications = [Routes().route(ObjectCreated("devices", f"assets/{name}", "ObjectCreated:Put")) for name in names]
    wanted = [one.message for one in notifications if isinstance(one, Upload)]
    assert len(wanted) == len(names)
    outcomes = publisher.publish(wanted, time.monotonic() + PATIENCE_SECONDS)
    assert {outcome.status for outcome in outcomes} <= {Status.DELIVERED}
    for name, message in zip(names, subscriber.wait_for(len(names)), strict=True):
        assert json.loads(message.payload) == {"filename": name}
        assert dict(message.user_properties)["subject"] == f"assets/{name}"
    assert broker.log_text().count("as bucketbell-") == 1, "the connection did not survive"


def test_every_character_that_routes_lets_through_arrives_exactly(open_line: _Line) -> None:
    """All of the Basic Multilingual Plane and the edges of the others, in one connection: Mosquitto accepts each."""
    points = [*range(0x10000), *(p * 0x10000 + low for p in range(1, 17) for low in (0, 1, 0xFFFD, 0xFFFE, 0xFFFF))]
    letters = [c for c in map(chr, points) if c not in "./" and is_asset_path(c)]
    assert 60_000 < len(letters) < 65_536
    names = ["".join(letters[start : start + 250]) for start in range(0, len(letters), 250)]
    _ring(open_line, names)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(
    st.lists(
        st.text(st.characters() | st.sampled_from("/.\\\"'+#$% \x00\x1f\x85\ufffe\ud800"), max_size=60),
        max_size=15,
        unique=True,
    )
)
def test_any_accepted_name_arrives_exactly(open_line: _Line, names: list[str]) -> None:
    """Whatever the asset is called, quotes, backslashes and wildcards included."""
    if accepted := [name for name in names if is_asset_path(name)]:
        _ring(open_line, accepted)


def test_a_packet_fits_up_to_exactly_the_brokers_maximum() -> None:
    """The size is that of the whole packet; measured against what really went out, at every QoS."""
    for qos in (0, 1, 2):
        with FakeBroker(script=[Behaviour(maximum_packet_size=200)]) as fake:
            connection = _connect(_broker(fake, qos=qos))
            padding = next(n for n in range(200) if connection.send(_notification(padding=n)) is None) - 1
            connection.discard()
            connection = _connect(_broker(fake, qos=qos))
            assert _send(connection, _notification(padding=padding)) is not None
            (publish,) = fake.wait_for("PUBLISH")
            body = 2 + len(publish.topic) + (2 if qos else 0) + 1 + len(publish.properties) + len(publish.payload)
            assert 3 + body == 200, "type, two bytes of length, body"
            connection.discard()


def test_what_the_broker_grants_in_connack_is_kept() -> None:
    """Receive Maximum, Maximum Packet Size, Maximum QoS and Server Keep Alive; none of them is exceeded."""
    granted = Behaviour(receive_maximum=3, maximum_packet_size=99, maximum_qos=1, server_keep_alive_seconds=7)
    with FakeBroker(
        script=[granted, Behaviour(), Behaviour(receive_maximum=1000, server_keep_alive_seconds=0)]
    ) as fake:
        first = _connect(_broker(fake, qos=2))
        assert (first.window, first.maximum_packet_size, first.qos, first.keepalive_seconds) == (3, 99, 1, 7)
        second = _connect(_broker(fake, qos=2))
        assert (second.window, second.maximum_packet_size, second.qos, second.keepalive_seconds) == (20, None, 2, 60)
        third = _connect(_broker(fake))
        assert (third.window, third.keepalive_seconds) == (WINDOW, 60), "0 means no keep alive, not one of 0 s"
        for connection in (first, second, third):
            connection.close()
        assert [connect.keepalive_seconds for connect in fake.connect_packets] == [60] * 3
        assert all(connect.clean_start for connect in fake.connect_packets)


def test_credentials_go_out_only_where_they_are_given() -> None:
    """A user name without a password, both, and none."""
    with FakeBroker() as fake:
        for changes in ({}, {"username": "u"}, {"username": "u", "password": SecretStr("p")}):
            _connect(_broker(fake, **changes)).close()
        seen = [(connect.username, connect.password) for connect in fake.connect_packets]
        assert seen == [(None, None), ("u", None), ("u", b"p")]


# Refusals and what they say.


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
def test_a_wrong_password_is_reported_as_such(tmp_path: Path, mosquitto_binary: Path, protocol: str) -> None:
    """By a real Mosquitto, with a reason code, and never with the password itself."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "right-password"}) as mosquitto:
        broker = _broker(mosquitto, protocol=protocol, username="bell", password=SecretStr("wrong-password"))
        failure = _refusal(broker)
        assert failure.refused
        assert failure.reason_code == 0x87
        assert failure.reason.endswith("refused: Not authorized: check MQTT_USERNAME and MQTT_PASSWORD")
        assert "wrong-password" not in repr(broker) + repr(failure) + repr(vars(failure))
        _connect(replace(broker, password=SecretStr("right-password"))).close()


@pytest.mark.parametrize(
    ("protocol", "behaviour", "reason_code", "words"),
    [
        ("5", Behaviour(connack_reason=0x86), 0x86, "check MQTT_USERNAME and MQTT_PASSWORD"),
        ("5", Behaviour(connack_reason=0x88), 0x88, "Server unavailable"),
        ("5", Behaviour(connack_reason=0x84), 0x84, "set MQTT_PROTOCOL=3.1.1"),
        ("5", Behaviour(raw_answer=b"\x20\x02\x00\x01"), 0x84, "set MQTT_PROTOCOL=3.1.1"),
        ("3.1.1", Behaviour(connack_reason=1), 0x84, "set MQTT_PROTOCOL=5"),
        ("3.1.1", Behaviour(connack_reason=2), 0x85, "Client identifier not valid"),
        ("3.1.1", Behaviour(connack_reason=3), 0x88, "Server unavailable"),
        ("3.1.1", Behaviour(connack_reason=4), 0x86, "check MQTT_USERNAME and MQTT_PASSWORD"),
        ("3.1.1", Behaviour(connack_reason=5), 0x87, "check MQTT_USERNAME and MQTT_PASSWORD"),
    ],
)
def test_a_refused_connack_gives_the_brokers_reason(
    protocol: str, behaviour: Behaviour, reason_code: int, words: str
) -> None:
    """In both protocols, with what to do about it where that is known."""
    with FakeBroker(script=[behaviour]) as fake:
        failure = _refusal(_broker(fake, protocol=protocol))
    assert (failure.refused, failure.reason_code) == (True, reason_code)
    assert words in failure.reason


SAID = "user bell must not connect from here"


def test_the_brokers_own_words_are_kept(certificates: Certificates) -> None:
    """The Reason String of CONNACK, of PUBACK and PUBREC, and of DISCONNECT; not for ever long, and in one line."""
    with FakeBroker(script=[Behaviour(connack_reason=0x87, reason_string=SAID)]) as fake:
        failure = _refusal(_broker(fake))
        assert (failure.said, SAID in failure.reason) == (SAID, True)
    for qos in (1, 2):
        refusing = Behaviour(puback_reason=0x87, pubrec_reason=0x87, reason_string=SAID)
        with FakeBroker(script=[refusing, Behaviour(reason_string=SAID)]) as fake:
            for said in (SAID, ""):  # nobody needs words about a success
                connection = _connect(_broker(fake, qos=qos))
                _send(connection, _notification())
                assert _drive(connection, lambda one=connection: bool(one._acks))  # type: ignore[misc]  # noqa: SLF001 - looks
                assert [ack.said for ack in connection.take_acks()] == [said]
                connection.discard()
    ending = Behaviour(cut_at_publish=1, disconnect_reason=0x97, reason_string="line one\n" + "x" * 1000)
    with FakeBroker(script=[ending]) as fake:
        connection = _connect(_broker(fake))
        _send(connection, _notification())
        _drive(connection, lambda: False)
        assert connection.failure is not None
        assert "Quota exceeded (line one\N{REPLACEMENT CHARACTER}xx" in connection.failure.reason
        assert len(connection.failure.reason) < 300
    by_certificate = {"cert_file": certificates.client_cert, "key_file": certificates.client_key}
    with FakeBroker(script=[Behaviour(connack_reason=0x87)]) as fake:
        failure = _refusal(_broker(fake, **by_certificate))
        assert "MQTT_PASSWORD" not in failure.reason
        assert "MQTT_CERT_FILE" in failure.reason


IOT_CORE = "a1b2c3-ats.iot.eu-central-1.amazonaws.com"
ASKS_FOR_POLICY = "attached to a policy that allows iot:Connect for client id bell-*?"


@pytest.mark.parametrize(
    "behaviour", [Behaviour(connack_reason=0x87), Behaviour(raw_answer=b"")], ids=["refuses", "closes"]
)
@pytest.mark.parametrize("host", [IOT_CORE, f"{IOT_CORE}.cn", "b-1.mq.eu-central-1.amazonaws.com"])
def test_aws_iot_core_hints_at_the_certificates_policy(
    certificates: Certificates, behaviour: Behaviour, host: str
) -> None:
    """Whether it refuses or closes; not another broker of AWS, and not to whom a user name was given."""
    own = {"cert_file": certificates.client_cert, "key_file": certificates.client_key}
    with FakeBroker(script=[behaviour]) as fake:
        for account, hints in (({}, ".iot." in host), ({"username": "bell"}, False)):
            broker = _broker(fake, host=host, client_id_prefix="bell", **own, **account)
            connection = Connection(broker, "bell-1", address="127.0.0.1")
            connection.open(PATIENCE_SECONDS)
            _drive(connection, lambda one=connection: one.closed)  # type: ignore[misc]
            reason = connection.unanswered().reason
            assert (f"is the certificate in MQTT_CERT_FILE active, and {ASKS_FOR_POLICY}" in reason) == hints
            connection.discard()


@pytest.mark.parametrize(("protocol", "other"), [("5", "3.1.1"), ("3.1.1", "5")])
@pytest.mark.parametrize("behaviour", [Behaviour(raw_answer=b""), Behaviour(never_answers=True)], ids=["ends", "waits"])
def test_a_port_that_does_not_know_the_protocol_gets_the_hint_for_the_other(
    behaviour: Behaviour, protocol: str, other: str
) -> None:
    """It closes, as most do, or never answers, as amqtt: `MQTT_PROTOCOL` is named in both cases, and both ways."""
    with FakeBroker(script=[behaviour]) as fake:
        connection = Connection(_broker(fake, protocol=protocol), "a")
        connection.open(PATIENCE_SECONDS)
        _drive(connection, lambda: connection.closed, 0.5)
        assert f"set MQTT_PROTOCOL={other}" in connection.unanswered().reason
        assert "check MQTT_USERNAME" in connection.unanswered().reason or behaviour.never_answers
        connection.discard()


@pytest.mark.parametrize("answer", [HTTP_ANSWER, GARBAGE, b"", b"\x20\x03\x00\x00", b"\x20\x03\x00\xee\x00"])
def test_what_is_no_mqtt_broker_is_said_to_be_none(answer: bytes) -> None:
    """A web server, garbage, a hang-up, half a CONNACK, an unknown reason code: a clear reason, never an exception."""
    with FakeBroker(script=[Behaviour(raw_answer=answer)]) as fake:
        failure = _refusal(_broker(fake))
    assert not failure.refused
    assert "closed before it answered CONNECT: is this an MQTT port without TLS?" in failure.reason


@pytest.mark.parametrize("properties", [b"\x21\x00\x00", b"\x27\x00\x00\x00\x00"], ids=["receive", "packet size"])
def test_limits_of_zero_are_a_protocol_error(properties: bytes) -> None:
    """MQTT 5 §3.2.2.3: a window of nothing would never send, and never end."""
    with FakeBroker(script=[Behaviour(connack_properties=properties)]) as fake:
        assert not _refusal(_broker(fake)).refused


@pytest.mark.parametrize(
    ("host", "words"),
    [("a" * 64 + ".example", "label"), ("no-such-host.invalid", "mqtt://no-such-host.invalid:1883: ")],
)
def test_a_bad_host_name_is_a_failure_not_an_exception(host: str, words: str) -> None:
    """One that IDNA refuses, and one that no resolver knows."""
    assert words in _refusal(BrokerConfig(host, 1883)).reason


def test_a_closed_port_refuses_at_once() -> None:
    """Without using up the deadline."""
    begun_at = time.monotonic()
    assert "refused" in _refusal(BrokerConfig("127.0.0.1", free_port())).reason.lower()
    assert time.monotonic() - begun_at < SLACK_SECONDS


# Deadlines.


def _full_backlog() -> tuple[socket.socket, list[socket.socket]]:
    """Return a listener that answers no SYN any more, and what fills it."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=0)
    fillers = []
    for _ in range(4):
        filler = socket.socket()
        filler.settimeout(0)
        filler.connect_ex(listener.getsockname())
        fillers.append(filler)
    return listener, fillers


def test_an_unanswered_syn_keeps_the_deadline() -> None:
    """A host that is down costs `timeout_seconds`, not the kernel's minutes."""
    listener, fillers = _full_backlog()
    begun_at = time.monotonic()
    with pytest.raises(BrokerConnectionError, match=r"no answer within 0\.3 s"):
        Connection(BrokerConfig("127.0.0.1", listener.getsockname()[1]), "a").open(0.3)
    assert 0.25 < time.monotonic() - begun_at < 0.3 + SLACK_SECONDS
    for sock in (listener, *fillers):
        sock.close()


def test_a_silent_tls_server_keeps_the_same_deadline(certificates: Certificates) -> None:
    """TCP and TLS share one deadline, where paho gives each its own."""
    with FakeBroker(script=[Behaviour(silent=True)]) as fake:
        begun_at = time.monotonic()
        broker = BrokerConfig("localhost", fake.port, tls=True, ca_file=certificates.ca_file)
        with pytest.raises(BrokerConnectionError, match=r"no answer within 0\.3 s"):
            Connection(broker, "a").open(0.3)
        assert 0.25 < time.monotonic() - begun_at < 0.3 + SLACK_SECONDS


def test_the_hosts_addresses_share_the_deadline(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two dead addresses before a live one leave time for it; a refused one costs nothing."""
    listener, fillers = _full_backlog()
    dead = (socket.AF_INET, socket.SOCK_STREAM, 6, "", listener.getsockname())
    refusing = (socket.AF_INET6, socket.SOCK_STREAM, 6, "", ("::1", mosquitto.port, 0, 0))
    alive = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", mosquitto.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [dead, refusing, alive])
    begun_at = time.monotonic()
    _connect(BrokerConfig("two.faced", mosquitto.port), 4.5).close()
    assert 1.5 <= time.monotonic() - begun_at < 4.5, "a third each, and nothing for the refusing one"
    for sock in (listener, *fillers):
        sock.close()


def test_ipv6_works(tmp_path: Path, mosquitto_binary: Path) -> None:
    """As `mqtt://[::1]`."""
    del mosquitto_binary
    port = free_port()
    with Mosquitto(tmp_path, extra=(f"listener {port} ::1", "allow_anonymous true")):
        _connect(BrokerConfig("::1", port)).close()
    assert BrokerConfig("::1", port).url == f"mqtt://[::1]:{port}"


# TLS.


def test_tls_with_our_own_authority(tls_mosquitto: Mosquitto, certificates: Certificates) -> None:
    """Many messages: a TLS record holds several acknowledgements, and none is left lying in it."""
    publisher = InlinePublisher(_broker(tls_mosquitto, ca_file=certificates.ca_file), EmfTelemetry())
    batch = [_notification(f"{n}.bin") for n in range(100)]
    outcomes = publisher.publish(batch, time.monotonic() + PATIENCE_SECONDS)
    assert {outcome.status for outcome in outcomes} == {Status.NO_SUBSCRIBERS}
    publisher.close()


@pytest.mark.parametrize("acknowledgements", [5, 20])
def test_acknowledgements_in_one_tls_record_are_all_taken(certificates: Certificates, acknowledgements: int) -> None:
    """The socket becomes readable once for all of them."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            plain, _ = listener.accept()
            with context.wrap_socket(plain, server_side=True) as server:
                server.recv(1000)
                server.sendall(b"\x20\x03\x00\x00\x00")
                received = b""
                while received.count(TOPIC.encode()) < acknowledgements:
                    received += server.recv(10_000)
                server.sendall(b"".join(b"\x40\x02" + mid.to_bytes(2, "big") for mid in range(1, acknowledgements + 1)))
                server.recv(1000)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        connection = _connect(BrokerConfig("localhost", port, tls=True, ca_file=certificates.ca_file))
        for number in range(acknowledgements):
            _send(connection, _notification(f"{number}"))
        poller = select.poll()
        poller.register(connection.fileno(), select.POLLIN)
        assert poller.poll(3000)
        connection.read()
        assert len(connection.take_acks()) == acknowledgements
        connection.close()
        thread.join(3)


def test_acknowledgements_are_all_taken_wherever_the_stream_is_cut() -> None:
    """Bare ones and others, in two pieces at every place, and the end of the connection right behind them."""
    looks_like_one = b"\x40\x02\x00\x05"
    stream = b"\x40\x02\x00\x01\x40\x03\x00\x02\x10\xd0\x00\x40\x02\x00\x03"
    stream += b"\x40\x0b\x00\x04\x00\x07\x1f\x00\x04" + looks_like_one + b"\x40\x02\x00\x05"
    for cut in range(len(stream)):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            connection = Connection(BrokerConfig("127.0.0.1", listener.getsockname()[1]), "bell")
            connection.open(PATIENCE_SECONDS)
            server, _ = listener.accept()
            with server:
                server.sendall(b"\x20\x03\x00\x00\x00")
                assert _drive(connection, lambda: connection.connected)  # noqa: B023 - called at once
                for number in range(5):
                    _send(connection, _notification(f"{number}"))
                server.sendall(stream[:cut])
                _drive(connection, lambda: False, 0.005)
                server.sendall(stream[cut:])
                server.shutdown(socket.SHUT_WR)
                assert _drive(connection, lambda: connection.closed)  # noqa: B023 - called at once
        acks = [(ack.mid, ack.reason_code) for ack in connection.take_acks()]
        assert acks == [(1, 0), (2, 0x10), (3, 0), (4, 0), (5, 0)], cut


def test_an_unknown_authority_is_refused_by_name(tls_mosquitto: Mosquitto, certificates: Certificates) -> None:
    """The words say which setting to look at."""
    failure = _refusal(_broker(tls_mosquitto, ca_file=certificates.stranger_ca_file))
    assert "certificate refused" in failure.reason
    assert failure.reason.endswith("see MQTT_CA_FILE")
    assert "certificate refused" in _refusal(_broker(tls_mosquitto)).reason, "the system does not know it either"


def test_a_certificate_of_another_name_is_refused(
    tls_mosquitto: Mosquitto, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name in MQTT_URL must be one that the certificate bears."""
    address = (socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", tls_mosquitto.port))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_args, **_options: [address])
    failure = _refusal(_broker(tls_mosquitto, host="broker.example", ca_file=certificates.ca_file))
    assert "Hostname mismatch" in failure.reason
    assert failure.reason.endswith("see MQTT_URL")


def test_a_client_certificate_is_shown_where_it_is_asked_for(
    strict_mosquitto: Mosquitto, certificates: Certificates
) -> None:
    """With it we are in; without it the words name its setting, although TLS 1.3 tells only after the handshake."""
    broker = _broker(strict_mosquitto, ca_file=certificates.ca_file)
    _connect(replace(broker, cert_file=certificates.client_cert, key_file=certificates.client_key)).close()
    assert "MQTT_CERT_FILE" in _refusal(broker).reason


def test_tls_to_a_plain_port_and_plain_to_a_tls_port_say_so(
    mosquitto: Mosquitto, tls_mosquitto: Mosquitto, certificates: Certificates
) -> None:
    """The two most common mistakes in MQTT_URL."""
    tls = _refusal(BrokerConfig("localhost", mosquitto.port, tls=True, ca_file=certificates.ca_file))
    assert "TLS" in tls.reason
    plain = _refusal(BrokerConfig("localhost", tls_mosquitto.port))
    assert "is this an MQTT port without TLS?" in plain.reason


def test_unusable_tls_files_are_named(tls_mosquitto: Mosquitto, certificates: Certificates, tmp_path: Path) -> None:
    """A CA file that holds no certificate, a key of another certificate, and an encrypted key: nobody is asked."""
    nonsense = tmp_path / "nonsense.pem"
    nonsense.write_text("nothing")
    broker = _broker(tls_mosquitto, ca_file=certificates.ca_file, cert_file=certificates.client_cert)
    assert "MQTT_CA_FILE is not usable" in _refusal(replace(broker, ca_file=nonsense, cert_file=None)).reason
    assert "MQTT_KEY_FILE is not usable" in _refusal(replace(broker, key_file=certificates.server_key)).reason
    locked = tmp_path / "locked.key"
    key = load_pem_private_key(certificates.client_key.read_bytes(), None)
    locked.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, AES))
    assert "MQTT_KEY_FILE is not usable" in _refusal(replace(broker, key_file=locked)).reason


def test_renewed_certificates_are_used_without_a_restart(
    tls_mosquitto: Mosquitto, certificates: Certificates, tmp_path: Path
) -> None:
    """The files are looked at for each connection, and read again when they have changed."""
    trusted = tmp_path / "ca.pem"
    trusted.write_bytes(certificates.stranger_ca_file.read_bytes())
    os.utime(trusted, (1, 1))
    broker = _broker(tls_mosquitto, ca_file=trusted)
    assert "certificate refused" in _refusal(broker).reason
    trusted.write_bytes(certificates.ca_file.read_bytes())
    _connect(broker).close()


# The end.


def test_close_says_disconnect_and_is_idempotent(mosquitto: Mosquitto) -> None:
    """The broker hears a goodbye, not a hang-up; a second close, or a discard, does nothing."""
    connection = _connect(_broker(mosquitto))
    connection.close()
    connection.close()
    connection.discard()
    deadline = time.monotonic() + PATIENCE_SECONDS
    while "Received DISCONNECT from bucketbell-" not in mosquitto.log_text() and time.monotonic() < deadline:
        time.sleep(0.01)
    assert "Received DISCONNECT from bucketbell-" in mosquitto.log_text()


def test_a_server_disconnect_gives_its_reason() -> None:
    """Which is more than that the connection is lost."""
    with FakeBroker() as fake:
        connection = _connect(_broker(fake))
        fake.disconnect_all(0x8B)
        assert _drive(connection, lambda: connection.closed)
        assert connection.failure is not None
        assert connection.failure.reason_code == 0x8B
        assert "disconnected by the broker: Server shutting down" in connection.failure.reason
        assert not connection.connected


def test_the_owner_hears_of_the_end_while_the_socket_is_still_open() -> None:
    """An event loop must forget the descriptor before somebody else gets its number."""
    seen: list[int] = []
    with FakeBroker() as fake:
        connection = Connection(_broker(fake), "a", before_close=lambda: seen.append(descriptor.fileno()))
        connection.open(PATIENCE_SECONDS)
        fake.wait_for("CONNECT")
        descriptor = socket.socket(fileno=os.dup(connection.fileno()))
        connection.discard()
        connection.discard()
        assert len(seen) == 1
        assert seen[0] >= 0
        descriptor.close()


@pytest.mark.parametrize("raw", [b"\x40\x01\x00", b"\x50\x00", b"\xff" * 6])
def test_a_malformed_packet_ends_the_connection_and_raises_nothing(raw: bytes) -> None:
    """Half an acknowledgement, an empty PUBREC, an endless length."""
    with FakeBroker(script=[Behaviour(raw_on_publish=raw)]) as fake:
        connection = _connect(_broker(fake))
        _send(connection, _notification())
        assert _drive(connection, lambda: connection.closed)
        assert connection.failure is not None
        with pytest.raises(BrokerConnectionError):
            _send(connection, _notification())


@pytest.mark.parametrize("forbidden", ["169.254.169.254", "fd00:ec2::254"])
def test_a_name_that_leads_to_a_forbidden_address_is_not_connected_to(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch, forbidden: str
) -> None:
    """Where an administrator named the broker; nobody is asked, not even those of its addresses that are allowed."""
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 6, "", (text, mosquitto.port)) for text in ("127.0.0.1", forbidden)
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)
    broker = BrokerConfig("rebinding.example", mosquitto.port)
    said = mosquitto.log_text()
    refused = Connection(replace(broker, targets=Targets()), "bell")
    with pytest.raises(BrokerConnectionError, match="MQTT_TEST_ALLOWED_HOSTS") as failure:
        refused.open(PATIENCE_SECONDS)
    assert failure.value.cause == "forbidden"
    assert mosquitto.log_text() == said
    opened = Connection(broker, "bell")
    opened.open(PATIENCE_SECONDS)
    opened.close()
