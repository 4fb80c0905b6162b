"""Client certificates as text in variables, without a file, at a real Mosquitto that asks for them; and ALPN."""

from __future__ import annotations

import os
import socket
import ssl
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import paho
import pytest
from pydantic import SecretStr

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.tls import TlsFileError, client_context
from functions.notifier import Notifier, PublishFailed
from functions.settings import load
from infra.local.certificates import Certificates, make_certificates
from infra.local.mosquitto import Mosquitto
from infra.sam.tool import SamError, runtime_python
from infra.subscriber import Subscriber
from tests.conftest import missing
from tests.leftovers import nothing_left

PLENTY_SECONDS = 30.0


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """An authority of our own, a server's certificate and a client's."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="module")
def strict(
    tmp_path_factory: pytest.TempPathFactory, certificates: Certificates, mosquitto_binary: Path
) -> Iterator[Mosquitto]:
    """A Mosquitto that talks to nobody without a client certificate."""
    del mosquitto_binary
    directory = tmp_path_factory.mktemp("strict")
    with Mosquitto(directory, certificates=certificates, require_client_certificate=True) as broker:
        yield broker


def environ(url: str, certificates: Certificates, line_end: str = "\n") -> dict[str, str]:
    """What a function without files is given."""
    files = {"CA": certificates.ca_file, "CERT": certificates.client_cert, "KEY": certificates.client_key}
    return {
        "MQTT_URL": url,
        **{f"MQTT_{name}_PEM": file.read_text().replace("\n", line_end) for name, file in files.items()},
    }


EVENT = {
    "Records": [
        {
            "eventSource": "aws:s3",
            "eventName": "ObjectCreated:Put",
            "eventTime": "2026-11-20T00:00:00.000Z",
            "s3": {"bucket": {"name": "devices"}, "object": {"key": "assets/fw", "eTag": "e", "size": 1}},
        }
    ]
}


def ring(variables: dict[str, str]) -> int:
    """How many messages one event makes; raises what Lambda would see."""
    notifier = Notifier(load(variables).settings)
    try:
        return int(notifier.handle(EVENT, PLENTY_SECONDS)["published"])
    finally:
        notifier.close()


@pytest.mark.parametrize("line_end", ["\n", r"\n", " "], ids=["lines", "written out", "spaces"])
def test_a_broker_that_asks_for_certificates_gets_them_from_text(
    strict: Mosquitto, certificates: Certificates, line_end: str
) -> None:
    """However the variable holds its lines; the message arrives."""
    with Subscriber(
        strict.url,
        ["#"],
        ca_file=certificates.ca_file,
        cert_file=certificates.client_cert,
        key_file=certificates.client_key,
    ) as subscriber:
        assert ring(environ(strict.url, certificates, line_end)) == 1
        assert subscriber.next().payload == b'{"filename": "fw"}'


def test_text_that_does_not_fit_is_named_by_its_variable(strict: Mosquitto, certificates: Certificates) -> None:
    """An authority that signed nothing, no certificate at all, another's key, and text that is no certificate."""
    good = environ(strict.url, certificates)
    stranger = certificates.stranger_ca_file.read_text()
    nonsense = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----"
    anonymous = {name: value for name, value in good.items() if name in {"MQTT_URL", "MQTT_CA_PEM"}}
    for variables, said in (
        (good | {"MQTT_CA_PEM": stranger}, "certificate refused.*see MQTT_CA_PEM"),
        (anonymous, "MQTT_CERT_FILE"),
        (good | {"MQTT_KEY_PEM": certificates.server_key.read_text()}, "MQTT_CERT_PEM or MQTT_KEY_PEM is not usable"),
        (good | {"MQTT_CERT_PEM": nonsense}, "MQTT_CERT_PEM or MQTT_KEY_PEM is not usable"),
        (good | {"MQTT_CA_PEM": nonsense}, "MQTT_CA_PEM is not usable"),
    ):
        with pytest.raises(PublishFailed, match=said):
            ring(variables)


def test_a_certificate_of_another_authority_is_refused_by_words_that_name_the_text(
    tmp_path: Path, strict: Mosquitto, certificates: Certificates
) -> None:
    """The broker says so after the handshake."""
    other = make_certificates(tmp_path)
    mine = environ(strict.url, certificates)
    wrong = mine | {"MQTT_CERT_PEM": other.client_cert.read_text(), "MQTT_KEY_PEM": other.client_key.read_text()}
    with pytest.raises(PublishFailed) as caught:
        ring(wrong)
    assert "MQTT_CERT_FILE" not in str(caught.value)


def test_a_key_leaves_nothing_on_the_disk(certificates: Certificates) -> None:
    """No file is opened for writing and no descriptor stays open, also when the text is no use."""
    broker = BrokerConfig.of(load(environ("mqtts://b", certificates)).settings)
    assert broker is not None
    written: list[object] = []
    watching = True

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        if watching and event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR):
            written.append(arguments[0])

    sys.addaudithook(watch)
    with nothing_left():
        client_context(replace(broker, client_id_prefix="another"))  # not one that is remembered
        with pytest.raises(TlsFileError):
            client_context(replace(broker, key_pem=SecretStr(certificates.server_key.read_text())))
    watching = False
    # The file in memory is opened by its descriptor.
    assert not [file for file in written if not isinstance(file, int)]


@pytest.mark.parametrize("alpn", ["x-amzn-mqtt-ca", "mqtt", ""])
def test_the_protocol_is_asked_for_by_alpn(certificates: Certificates, alpn: str) -> None:
    """A server that speaks MQTT beside something else at one port, as AWS IoT Core does at 443, sees it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates.server_cert, certificates.server_key)
    context.load_verify_locations(certificates.ca_file)
    context.verify_mode = ssl.CERT_REQUIRED
    context.set_alpn_protocols(["http/1.1", "x-amzn-mqtt-ca", "mqtt"])
    seen: list[object] = []

    def serve() -> None:
        plain, _ = listener.accept()
        plain.settimeout(PLENTY_SECONDS)
        with context.wrap_socket(plain, server_side=True) as server:
            seen.extend((server.selected_alpn_protocol(), bool(server.getpeercert())))
            server.recv(1024)
            server.sendall(b"\x20\x02\x00\x00")  # CONNACK
            packet = server.recv(1024)
            topic_end = 4 + packet[3]
            server.sendall(b"\x40\x02" + packet[topic_end : topic_end + 2])  # PUBACK
            server.recv(1024)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        url = f"mqtts://localhost:{listener.getsockname()[1]}"
        assert ring(environ(url, certificates) | {"MQTT_ALPN": alpn, "MQTT_PROTOCOL": "3.1.1"}) == 1
        thread.join(PLENTY_SECONDS)
    assert seen == [alpn or None, True]


ROOT = Path(__file__).parents[2]


# What Python 3.13, Lambda's, asks of certificates.

CONNECT = """
import sys, types
# Without the settings' face: pydantic is not there for that Python.
sys.modules["functions.settings"] = settings = types.ModuleType("functions.settings")
settings.__path__ = [sys.argv[3]]
from functions.mqtt.connection import Connection, BrokerConnectionError

class Broker:
    url = "mqtts://localhost"
    host, port, tls, protocol, alpn = "localhost", int(sys.argv[1]), True, "5", None
    username = password = availability_topic = cert_file = key_file = ca_pem = cert_pem = key_pem = targets = None
    keepalive_seconds = 60
    variable = staticmethod(lambda name: f"MQTT_{name}_FILE")

from pathlib import Path
Broker.ca_file = Path(sys.argv[2])
connection = Connection(Broker(), "a")
try:
    connection.open(30.0)
    connection.close()
    print("connected")
except BrokerConnectionError as failure:
    print(failure.reason)
"""


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "without key usage"])
def test_an_authority_without_key_usage_is_refused_by_lambdas_python_with_the_way_out(
    tmp_path: Path, mosquitto_binary: Path, *, complete: bool
) -> None:
    """Python 3.11 and 3.12 take it; 3.13 does not, and the words say what is missing and how to make it."""
    del mosquitto_binary
    made = make_certificates(tmp_path / "certificates", complete_authority=complete)
    with Mosquitto(tmp_path / "broker", certificates=made) as broker:

        def connect(python: Path) -> str:
            packages = Path(paho.__file__).parents[1]  # pure Python, as all that a connection needs
            done = subprocess.run(
                [python, "-c", CONNECT, str(broker.port), str(made.ca_file), str(ROOT / "functions" / "settings")],
                capture_output=True,
                text=True,
                timeout=PLENTY_SECONDS,
                env={"PYTHONPATH": f"{ROOT}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"},
                check=True,
            )
            return done.stdout.strip()

        if complete or sys.version_info < (3, 13):
            assert connect(Path(sys.executable)) == "connected"
        try:
            lambdas = runtime_python()
        except SamError as error:
            missing("Python 3.13", str(error))
        said = connect(lambdas)
        assert complete is (said == "connected")
        if not complete:
            assert "key usage" in said
            assert "Python 3.13" in said
            assert "keyCertSign" in said
