"""One attempt to connect, against real brokers and against what is none."""

from __future__ import annotations

import ipaddress
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from functions.admin import probe as module
from functions.admin.probe import PROBE_SECONDS, probe
from functions.mqtt.broker import BrokerConfig
from functions.settings import SettingsError, load
from functions.settings.reach import Address, Targets
from infra.local.certificates import Certificates, make_certificates
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.fakes.broker import GARBAGE, HTTP_ANSWER, Behaviour, FakeBroker
from tests.hosts import eventually
from tests.leftovers import threads
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

USER, PASSWORD = "camera", "s3cret-of-the-camera"
ACL = "user camera\ntopic readwrite unifi/#\n"


def at(part: Mosquitto | FakeBroker, **changes: Any) -> BrokerConfig:  # noqa: ANN401 - any field of BrokerConfig
    """The broker there, by an address."""
    return replace(BrokerConfig("127.0.0.1", part.port), **changes)


def as_camera(broker: BrokerConfig, password: str = PASSWORD) -> BrokerConfig:
    """With the credentials that are right, or nearly."""
    return replace(broker, username=USER, password=SecretStr(password))


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path) -> Iterator[Mosquitto]:
    """A Mosquitto with a password file and an ACL."""
    del mosquitto_binary
    with Mosquitto(tmp_path_factory.mktemp("guarded"), users={USER: PASSWORD}, acl=ACL) as broker:
        yield broker


@pytest.fixture(scope="module")
def secured(
    tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path, certificates: Certificates
) -> Iterator[Mosquitto]:
    """A Mosquitto that speaks TLS only."""
    del mosquitto_binary
    with Mosquitto(tmp_path_factory.mktemp("secured"), certificates=certificates) as broker:
        yield broker


def test_good_settings_connect_once_and_say_goodbye(guarded: Mosquitto) -> None:
    """With a client id of its own; nothing is published, nothing subscribed to."""
    before = len(guarded.log_text())
    verdict = probe(as_camera(at(guarded)))
    assert (verdict.outcome, verdict.ok, verdict.reason_code, verdict.address) == ("ok", True, None, "127.0.0.1")
    eventually(lambda: "Received DISCONNECT" in guarded.log_text()[before:])
    said = guarded.log_text()[before:]
    assert said.count("New client connected") == 1
    assert "as bucketbell-" in said
    assert "Received DISCONNECT" in said
    assert "PUBLISH" not in said
    assert "SUBSCRIBE" not in said


@pytest.mark.parametrize("protocol", ["5", "3.1.1"])
@pytest.mark.parametrize("password", ["wrong", None])
def test_mosquitto_calls_a_wrong_password_not_authorized_and_so_do_the_words(
    guarded: Mosquitto, protocol: str, password: str | None
) -> None:
    """With either protocol: the words name both causes, and the password is not among them."""
    broker = as_camera(at(guarded, protocol=protocol), password or "x")
    verdict = probe(broker if password else replace(broker, username=None, password=None))
    assert (verdict.outcome, verdict.reason_code) == ("not_authorized", 0x87)
    assert "user name or password is wrong" in verdict.detail
    assert "wrong'" not in repr(verdict)


@pytest.mark.parametrize(
    ("code", "outcome"),
    [
        (0x86, "bad_credentials"),
        (0x87, "not_authorized"),
        (0x84, "wrong_protocol"),
        (0x88, "refused"),
        (0x97, "refused"),
    ],
)
def test_the_brokers_reasons_are_told_apart(code: int, outcome: str) -> None:
    """By the reason code of CONNACK."""
    with FakeBroker(script=[Behaviour(connack_reason=code)]) as broker:
        verdict = probe(at(broker))
    assert (verdict.outcome, verdict.reason_code) == (outcome, code)


@pytest.mark.parametrize(("code", "outcome"), [(4, "bad_credentials"), (5, "not_authorized"), (1, "wrong_protocol")])
def test_so_are_those_of_mqtt_3_1_1(code: int, outcome: str) -> None:
    """Its return codes are translated."""
    with FakeBroker(script=[Behaviour(connack_reason=code)]) as broker:
        assert probe(at(broker, protocol="3.1.1")).outcome == outcome


def test_a_port_that_nobody_listens_on_is_unreachable() -> None:
    """At once."""
    verdict = probe(BrokerConfig("127.0.0.1", free_port()))
    assert verdict.outcome == "unreachable"
    assert verdict.duration_seconds < SLACK_SECONDS


def test_a_name_that_nobody_has_is_not_resolved() -> None:
    """RFC 6761: there is nothing below `invalid`."""
    assert probe(BrokerConfig("no-such-host.invalid", 1883)).outcome == "name_not_resolved"


@pytest.mark.parametrize("tls", [False, True])
def test_a_broker_that_says_nothing_is_silent_in_time(*, tls: bool) -> None:
    """TCP is accepted, then nothing: within the deadline, also inside the TLS handshake."""
    with FakeBroker(script=[Behaviour(silent=True)]) as broker:
        began_at = time.monotonic()
        assert probe(at(broker, tls=tls), timeout_seconds=1.0).outcome == "silent"
        assert 0.9 < time.monotonic() - began_at < 1.0 + SLACK_SECONDS


def test_a_blackhole_is_answered_within_the_deadline() -> None:
    """A listener whose queue is full drops further SYNs, as a firewall does."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        waiting = [socket.socket() for _ in range(4)]
        try:
            for one in waiting:
                one.setblocking(False)  # noqa: FBT003 - socket's own
                one.connect_ex(("127.0.0.1", port))
            began_at = time.monotonic()
            assert probe(BrokerConfig("127.0.0.1", port)).outcome == "silent"
            assert PROBE_SECONDS - 0.5 < time.monotonic() - began_at < PROBE_SECONDS + SLACK_SECONDS
        finally:
            for one in waiting:
                one.close()


def test_a_resolver_that_hangs_costs_the_deadline_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many hang: their number is bounded, and once they are back there is room again."""
    go = threading.Event()

    def hang(_host: str) -> Iterator[Address]:
        go.wait(PATIENCE_SECONDS)
        yield ipaddress.ip_address("127.0.0.1")

    monkeypatch.setattr(module, "_lookup", hang)
    before = threads()
    for _ in range(module.MAX_RESOLVING + 2):
        began_at = time.monotonic()
        assert probe(BrokerConfig("slow.example", 1883), timeout_seconds=0.1).outcome == "name_not_resolved"
        assert time.monotonic() - began_at < 0.1 + SLACK_SECONDS
    assert len(threads() - before) == module.MAX_RESOLVING
    go.set()
    eventually(lambda: threads() <= before)
    assert probe(BrokerConfig("slow.example", free_port()), timeout_seconds=1.0).outcome == "unreachable"


@pytest.mark.parametrize("answer", [HTTP_ANSWER, GARBAGE, b""], ids=["http", "garbage", "nothing"])
def test_another_service_is_not_mqtt(answer: bytes) -> None:
    """A web server, noise, or one that closes."""
    with FakeBroker(script=[Behaviour(raw_answer=answer)]) as broker:
        verdict = probe(at(broker))
    assert verdict.outcome == "not_mqtt"
    assert "TLS" in verdict.detail


def test_without_tls_a_tls_port_is_not_mqtt(secured: Mosquitto) -> None:
    """The words say that it may want TLS."""
    verdict = probe(at(secured))
    assert (verdict.outcome, "does it want TLS" in verdict.detail) == ("not_mqtt", True)


def test_with_tls_a_plain_port_fails_in_tls(guarded: Mosquitto) -> None:
    """The words name the usual ports."""
    verdict = probe(at(guarded, host="localhost", tls=True))
    assert (verdict.outcome, "8883" in verdict.detail) == ("tls_failed", True)


def test_tls_is_verified(secured: Mosquitto, certificates: Certificates) -> None:
    """By the right authority; by another, or by the system's, it is untrusted."""
    broker = at(secured, host="localhost", tls=True, ca_file=certificates.ca_file)
    assert probe(broker).outcome == "ok"
    assert probe(replace(broker, ca_file=certificates.stranger_ca_file)).outcome == "tls_untrusted"
    assert probe(replace(broker, ca_file=None)).outcome == "tls_untrusted"


def test_another_name_for_the_same_address_is_told(
    secured: Mosquitto, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    """TLS asks for the name that was given, although an address is connected to."""
    monkeypatch.setattr(module, "_lookup", lambda _host: iter([ipaddress.ip_address("127.0.0.1")]))
    broker = at(secured, host="other.example", tls=True, ca_file=certificates.ca_file)
    assert probe(broker).outcome == "tls_name"


def test_a_broker_that_wants_a_client_certificate_says_so(
    tmp_path: Path, mosquitto_binary: Path, certificates: Certificates
) -> None:
    """And is content with one."""
    del mosquitto_binary
    with Mosquitto(tmp_path, certificates=certificates, require_client_certificate=True) as strict:
        broker = at(strict, host="localhost", tls=True, ca_file=certificates.ca_file)
        verdict = probe(broker)
        assert verdict.outcome == "client_certificate_needed"
        assert "MQTT_CERT_FILE" in verdict.detail
        own = replace(broker, cert_file=certificates.client_cert, key_file=certificates.client_key)
        assert probe(own).outcome == "ok"


def test_a_file_of_ours_that_is_no_certificate_is_told(secured: Mosquitto, tmp_path: Path) -> None:
    """It is not the broker's fault."""
    wrong = tmp_path / "ca.pem"
    wrong.write_text("no certificate")
    assert probe(at(secured, host="localhost", tls=True, ca_file=wrong)).outcome == "tls_files"


def test_every_address_of_a_name_is_tried(mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where nobody listens at the first."""
    addresses = [ipaddress.ip_address(text) for text in ("::1", "127.0.0.9", "127.0.0.1")]
    monkeypatch.setattr(module, "_lookup", lambda _host: iter(addresses))
    verdict = probe(at(mosquitto, host="many.example"))
    assert (verdict.outcome, verdict.address) == ("ok", "127.0.0.1")


def test_the_address_that_was_judged_is_the_one_that_is_connected_to(
    mosquitto: Mosquitto, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name is resolved once: a second answer, made for the connection, is never asked for."""
    answers = iter(["127.0.0.1", "169.254.169.254"])
    monkeypatch.setattr(module, "_lookup", lambda _host: iter([ipaddress.ip_address(next(answers))]))
    assert probe(at(mosquitto, host="rebinding.example")).outcome == "ok"
    assert next(answers) == "169.254.169.254"


# The connection that the host would make.

WILL = "home/bucketbell/here/availability"


def test_the_last_will_is_tried_too(mosquitto: Mosquitto) -> None:
    """It goes with a connection that ends well: nobody hears it."""
    with Subscriber(mosquitto.url, ("home/#",)) as listener:
        assert probe(at(mosquitto, availability_topic=WILL)).will_refused == ""
        assert listener.silence(0.3) == []


@pytest.mark.parametrize(
    ("behaviour", "words"),
    [
        (Behaviour(will_reason=0x87, reason_string="topic not allowed"), "topic not allowed"),
        (Behaviour(retain_available=False), "Retain not supported"),
        (Behaviour(will_reason=0x9A), "Retain not supported"),
    ],
)
def test_a_broker_that_refuses_the_last_will_alone_accepts_and_says_so(behaviour: Behaviour, words: str) -> None:
    """By a second attempt without it; a wrong password is none of the will's."""
    with FakeBroker(script=[behaviour]) as broker:
        verdict = probe(at(broker, availability_topic=WILL))
        assert (verdict.outcome, words in verdict.will_refused) == ("ok", True)
        assert [connect.will_topic for connect in broker.connect_packets] == [WILL, None]
        assert verdict.retain_available is ("Retain" not in words)
    with FakeBroker(script=[Behaviour(connack_reason=0x86)]) as broker:
        assert probe(at(broker, availability_topic=WILL)).outcome == "bad_credentials"


def test_what_the_broker_grants_is_told() -> None:
    """QoS and retained messages."""
    with FakeBroker(script=[Behaviour(maximum_qos=0, retain_available=False)]) as broker:
        verdict = probe(at(broker))
    assert (verdict.maximum_qos, verdict.retain_available, verdict.will_refused) == (0, False, "")


def test_words_fit_what_the_broker_knows_us_by(certificates: Certificates) -> None:
    """A certificate alone: its policy, not a password. And the broker's own words follow."""
    own = {"cert_file": certificates.client_cert, "key_file": certificates.client_key}
    with FakeBroker(script=[Behaviour(connack_reason=0x87, reason_string="inactive")]) as broker:
        verdict = probe(at(broker, **own))
    assert (verdict.outcome, "password" in verdict.detail) == ("not_authorized", False)
    assert verdict.detail.endswith("The broker says: inactive")


@pytest.mark.parametrize("behaviour", [Behaviour(connack_reason=0x87), Behaviour(raw_answer=b"")])
def test_aws_iot_core_is_asked_for_its_policy_once(
    certificates: Certificates, behaviour: Behaviour, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it refuses or closes: which right, and for which client id."""
    own = {"cert_file": certificates.client_cert, "key_file": certificates.client_key}
    with FakeBroker(script=[behaviour]) as broker:
        monkeypatch.setattr(module, "_lookup", lambda _host: iter([ipaddress.ip_address("127.0.0.1")]))
        detail = probe(at(broker, host="a1-ats.iot.us-east-1.amazonaws.com", **own)).detail
    assert detail.count("a policy that allows iot:Connect for client id bucketbell-*?") == 1


@pytest.mark.parametrize(("protocol", "other"), [("5", "3.1.1"), ("3.1.1", "5")])
def test_a_connect_that_is_never_answered_hints_at_the_other_protocol(protocol: str, other: str) -> None:
    """Amqtt says nothing to MQTT 5."""
    with FakeBroker(script=[Behaviour(never_answers=True)]) as broker:
        verdict = probe(at(broker, protocol=protocol), timeout_seconds=1.0)
    assert (verdict.outcome, f"MQTT_PROTOCOL={other}" in verdict.detail) == ("silent", True)


# What may be tested.

NEVER = [
    "169.254.169.254",
    "169.254.0.1",
    "fe80::1",
    "fd00:ec2::254",
    "100.100.100.200",
    "192.0.0.192",
    "168.63.129.16",
    "0.0.0.0",  # noqa: S104 - to be refused
    "0.1.2.3",
    "::",
    "224.0.0.1",
    "ff02::1",
    "255.255.255.255",
    "::ffff:169.254.169.254",
    "64:ff9b::a9fe:a9fe",
    "2002:a9fe:a9fe::1",
    "fd20:ce::254",
    "fd00:c1::a9fe:a9fe",
    "fd00:42::42",
    "64:ff9b:1::a9fe:a9fe",
    "64:ff9b:1:a9fe:0:a9fe::",
    "::169.254.169.254",
    "::ffff:0:169.254.169.254",
    "2001:db8::5efe:a9fe:a9fe",
    "2001:0:a9fe:a9fe::1",
    "2001:0:102:304::5601:5601",
]


@pytest.mark.parametrize("address", NEVER)
@pytest.mark.parametrize("allowed", [[], ["0.0.0.0/0", "::/0"], ["broker.example"]])
def test_some_addresses_are_never_tested(address: str, allowed: list[str]) -> None:
    """Link-local, metadata, unspecified, multicast, in whatever disguise, and whatever is allowed."""
    assert probe(BrokerConfig(address, 1883), Targets.parse(allowed)).outcome == "forbidden"
    assert not Targets.parse(allowed).allow("broker.example", ipaddress.ip_address(address))


def test_a_name_with_one_forbidden_address_is_forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or whoever owns the name would choose by their order."""
    addresses = [ipaddress.ip_address(text) for text in ("127.0.0.1", "169.254.169.254")]
    monkeypatch.setattr(module, "_lookup", lambda _host: iter(addresses))
    assert probe(BrokerConfig("mixed.example", 1883)).outcome == "forbidden"


@pytest.mark.parametrize(
    ("host", "address", "expected"),
    [
        ("broker.example", "192.0.2.1", True),
        ("BROKER.example.", "192.0.2.1", True),
        ("other.example", "192.0.2.1", False),
        ("sub.broker.example", "192.0.2.1", False),
        ("other.example", "10.1.2.3", True),
        ("other.example", "::ffff:10.1.2.3", True),
        ("10.1.2.3", "10.1.2.3", True),
        ("127.0.0.1", "127.0.0.1", False),
        ("x", "2001:db8::7", True),
        ("x", "2001:db8::8", False),
    ],
)
def test_what_is_allowed_is_a_name_or_a_network(host: str, address: str, *, expected: bool) -> None:
    """An operator's list, where there is one, holds for everything else."""
    targets = Targets.parse(["broker.example", "10.0.0.0/8", "2001:db8::7"])
    assert targets.allow(host, ipaddress.ip_address(address)) is expected


@pytest.mark.parametrize("entry", ["10.0.0.0/99", "not a name", "http://x", "a/b", " "])
def test_a_list_that_is_none_is_a_setting_that_is_wrong(entry: str) -> None:
    """Named, as every other."""
    with pytest.raises(SettingsError, match="MQTT_TEST_ALLOWED_HOSTS"):
        load({"MQTT_TEST_ALLOWED_HOSTS": f"broker.example,{entry}"})
