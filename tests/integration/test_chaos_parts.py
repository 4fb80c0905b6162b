"""What the chaos rig relies on: a line that loses kinds of packets, a name server, certificates that expire."""

from __future__ import annotations

import datetime as dt
import os
import socket
import struct
import time
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.mqtt.publisher import InlinePublisher
from functions.settings import load
from infra.host.metrics import PrometheusTelemetry
from infra.local.certificates import make_certificates, renew_server
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber, SubscriberError
from tests.chaos.scenarios import PROFILES
from tests.chaos.uploads import Uploads
from tests.chaos.verdict import Upload
from tests.chaos.world import BUCKET, SWEEPING, World
from tests.conftest import missing
from tests.fakes.broker import Kind
from tests.fakes.dns import PORT, FakeDns
from tests.fakes.proxy import TcpProxy
from tests.hosts import eventually

PUBACK, PINGRESP = b"\x40\x02\x00\x07", b"\xd0\x00"
PUBLISH = b"\x30\xac\x02" + b"\x40" * 300  # its length takes two bytes, and its body looks like PUBACKs
PAYLOAD = b'{"filename": "kept"}'
ANSWER_SECONDS = 5.0
SILENT_SECONDS = 0.2


@pytest.mark.parametrize("chunk_bytes", [1, 2, 3, 7, 1000])
def test_swallowed_packets_are_gone_and_nothing_else(chunk_bytes: int) -> None:
    """However the stream is cut, and packets of that kind pass again afterwards."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        proxy = TcpProxy("127.0.0.1", server.getsockname()[1])
        proxy.swallowed = {Kind.PUBACK}
        stream = PUBACK + PINGRESP + PUBACK + PUBLISH + PUBACK
        try:
            with socket.create_connection(("127.0.0.1", proxy.port), ANSWER_SECONDS) as client:
                far, _ = server.accept()
                with far:
                    far.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                    for at in range(0, len(stream), chunk_bytes):
                        far.sendall(stream[at : at + chunk_bytes])
                    wanted = PINGRESP + PUBLISH
                    assert _read(client, len(wanted)) == wanted
                    client.settimeout(SILENT_SECONDS)
                    with pytest.raises(TimeoutError):
                        client.recv(1)
                    proxy.swallowed = ()
                    client.settimeout(ANSWER_SECONDS)
                    far.sendall(PUBACK)
                    assert _read(client, len(PUBACK)) == PUBACK
        finally:
            proxy.stop()


def test_the_name_server_answers_refuses_or_is_silent() -> None:
    """127.0.0.1 for an A query and nothing for AAAA; SERVFAIL; no answer."""
    if os.geteuid() != 0:
        missing("root, for a name server's port 53", "run the tests as root")
    with FakeDns() as dns, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(ANSWER_SECONDS)
        asker.connect((dns.address, PORT))
        asker.send(_query(kind=1))
        answer = asker.recv(512)
        assert answer[:4] == b"\x12\x34\x81\x80"
        assert answer.endswith(socket.inet_aton("127.0.0.1"))
        asker.send(_query(kind=28))
        assert struct.unpack("!H", asker.recv(512)[6:8]) == (0,)
        dns.mode = "failing"
        asker.send(_query(kind=1))
        assert asker.recv(512)[3] & 0x0F == 2
        dns.mode = "silent"
        asker.settimeout(SILENT_SECONDS)
        asker.send(_query(kind=1))
        with pytest.raises(TimeoutError):
            asker.recv(512)


def test_a_persistent_broker_keeps_what_waits_for_a_subscriber_over_a_kill(
    tmp_path: Path, mosquitto_binary: Path
) -> None:
    """Sessions and their messages are on disk, if a moment after the broker has confirmed them."""
    del mosquitto_binary
    with Mosquitto(tmp_path, persistent=True) as broker:

        def ear() -> Subscriber:
            return Subscriber(broker.url, ["a"], qos=1, client_id="ear", session_expiry_seconds=60)

        ear().start().stop()
        publisher = InlinePublisher(BrokerConfig.of(load({"MQTT_URL": broker.url}).settings), PrometheusTelemetry())
        publisher.publish([Message("a", PAYLOAD)], time.monotonic() + ANSWER_SECONDS)
        publisher.close()
        eventually(lambda: PAYLOAD in (tmp_path / "mosquitto.db").read_bytes())
        broker.kill()
        broker.start()
        with ear() as back:
            assert back.next(ANSWER_SECONDS).payload == PAYLOAD


def test_a_certificate_can_expire_and_be_renewed_while_the_broker_runs(tmp_path: Path, mosquitto_binary: Path) -> None:
    """By its own authority; a reload is enough."""
    del mosquitto_binary
    certificates = make_certificates(tmp_path / "certificates")
    with Mosquitto(tmp_path / "mosquitto", certificates=certificates) as broker:
        renew_server(certificates, valid_for=dt.timedelta(minutes=-1))
        broker.reload()
        with pytest.raises(SubscriberError, match="expired"):
            Subscriber(broker.url, ["a"], ca_file=certificates.ca_file).start()
        renew_server(certificates)
        broker.reload()
        with Subscriber(broker.url, ["a"], ca_file=certificates.ca_file) as subscriber:
            assert subscriber.connected


@pytest.mark.parametrize("sweeps", [True, False])
def test_a_list_says_what_must_be_heard(tmp_path: Path, mosquitto_binary: Path, *, sweeps: bool) -> None:
    """What was answered; with the sweep also what was not, and is there. What is not there is the store's own loss."""
    del mosquitto_binary
    world = World(tmp_path, PROFILES["short"], source="sqs", variables=SWEEPING if sweeps else {})
    keys = {name: f"assets/{name}.bin" for name in ("answered", "gone", "unanswered", "refused")}
    try:
        with world.store:
            world.s3.create_bucket(Bucket=BUCKET)
            for name in ("answered", "unanswered"):
                world.put(keys[name])
            world.uploads = cast(
                "Uploads",
                SimpleNamespace(
                    answered={keys[name]: Upload(0.0, 1.0) for name in ("answered", "gone")},
                    unanswered={keys[name]: Upload(0.0, 1.0) for name in ("unanswered", "refused")},
                ),
            )
            uploads, gone = world.to_be_heard()
    finally:
        world.proxy.stop()
    assert uploads.keys() == {keys["answered"], keys["gone"]} | ({keys["unanswered"]} if sweeps else set())
    assert gone == {keys["gone"]}


def _read(client: socket.socket, size: int) -> bytes:
    got = b""
    while len(got) < size:
        got += client.recv(size - len(got))
    return got


def _query(kind: int) -> bytes:
    name = b"\x06broker\x04test\x00"
    return struct.pack("!6H", 0x1234, 0x0100, 1, 0, 0, 0) + name + struct.pack("!HH", kind, 1)
