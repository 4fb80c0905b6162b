"""The parts that the other tests stand on do for real what they say."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.reasoncodes import ReasonCode

from infra.local import install
from infra.local.certificates import Certificates, make_certificates
from infra.local.install import find_minio, find_mosquitto, find_versitygw
from infra.local.mosquitto import Mosquitto
from infra.local.process import STOP_TIMEOUT_SECONDS, PartError, Process, free_port
from infra.local.stores import Minio, MotoServer, VersityGateway
from infra.subscriber import Subscriber, SubscriberError, SubscriberTimeoutError
from tests.conftest import missing
from tests.fakes.broker import GARBAGE, HTTP_ANSWER, Behaviour, FakeBroker, Packet
from tests.fakes.proxy import CHUNK_BYTES, TcpProxy
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

DEADLINE_SECONDS = PATIENCE_SECONDS


@pytest.fixture(autouse=True, scope="module")
def _mosquitto_is_here() -> None:
    find_mosquitto() or missing("mosquitto", "`python -m infra.local.install mosquitto`")


@pytest.fixture
def minio(tmp_path: Path) -> Iterator[Minio]:
    """A running MinIO without buckets."""
    find_minio() or missing("minio", "`make minio`")
    with Minio(tmp_path / "minio") as store:
        yield store


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    """Certificates for localhost."""
    return make_certificates(tmp_path_factory.mktemp("certificates"))


def _eventually(truth: Callable[[], bool], timeout_seconds: float = DEADLINE_SECONDS) -> bool:
    deadline = time.monotonic() + timeout_seconds
    while not truth():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


class _Talker:
    """A plain paho client in its own thread, and what it heard: CONNACK, acknowledgements, the end."""

    def __init__(
        self,
        port: int,
        *,
        protocol: MQTTProtocolVersion = MQTTProtocolVersion.MQTTv5,
        keepalive_seconds: int = 60,
        password: str | None = None,
    ) -> None:
        self.connack: ReasonCode | None = None
        self.acknowledged: dict[int, int] = {}
        self.disconnects: list[int] = []
        self.client = paho.Client(CallbackAPIVersion.VERSION2, protocol=protocol)
        if password is not None:
            self.client.username_pw_set("writer", password)
        self.client.on_connect = self._on_connect
        self.client.on_publish = self._on_publish
        self.client.on_disconnect = self._on_disconnect
        self.client.connect("127.0.0.1", port, keepalive_seconds)
        self.client.loop_start()

    def __enter__(self) -> Self:
        assert _eventually(lambda: self.connack is not None), "no CONNACK"
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.client.disconnect()
        self.client.loop_stop()

    def say(self, topic: str, payload: str = "{}", qos: int = 1, properties: Properties | None = None) -> int:
        return self.client.publish(topic, payload, qos, properties=properties).mid

    def verdict(self, mid: int) -> int:
        assert _eventually(lambda: mid in self.acknowledged), "no acknowledgement"
        return self.acknowledged[mid]

    def _on_connect(self, _c: object, _u: object, _f: object, reason: ReasonCode, _p: object) -> None:
        self.connack = reason

    def _on_publish(self, _c: object, _u: object, mid: int, reason: ReasonCode, _p: object) -> None:
        self.acknowledged[mid] = reason.value

    def _on_disconnect(self, _c: object, _u: object, _f: object, reason: ReasonCode, _p: object) -> None:
        self.disconnects.append(reason.value)


# Processes.


def test_a_program_that_ends_at_once_is_reported_with_its_last_words(tmp_path: Path) -> None:
    """A part that dies while starting raises its log's last lines and the advice."""
    part = Process(
        "part",
        ["/bin/sh", "-c", "echo no such flag >&2; exit 3"],
        tmp_path,
        ready=lambda: False,
        advice="Try x.",
    )
    with pytest.raises(PartError, match=r"part ended at once \(exit status 3\)[\s\S]*no such flag[\s\S]*Try x"):
        part.start()
    assert not part.running


def test_a_program_that_is_never_ready_is_killed_at_its_deadline(tmp_path: Path) -> None:
    """A part that does not get ready raises at its deadline and leaves no process."""
    part = Process("part", ["sleep", "60"], tmp_path, ready=lambda: False, start_timeout_seconds=0.2)
    with pytest.raises(PartError, match=r"not ready within 0\.2 s"):
        part.start()
    assert not part.running


def test_a_program_that_ignores_sigterm_is_killed(tmp_path: Path) -> None:
    """A deaf part and its own children are gone after stop(), in about the time allowed; twice is fine."""
    script = "trap '' TERM; sleep 60 & echo child $!; while :; do wait; sleep 1; done"
    part = Process("part", ["/bin/sh", "-c", script], tmp_path)
    part._ready = lambda: "child" in part.new_log_text()  # noqa: SLF001 - it must look at itself
    with part:
        grandchild = int(part.log_text().split()[1])
        began = time.monotonic()
        part.stop(timeout_seconds=0.2)
        assert time.monotonic() - began < 0.2 + SLACK_SECONDS
        part.stop()
    assert _eventually(lambda: not _alive(grandchild))


def test_a_killed_parent_leaves_nothing_behind(tmp_path: Path) -> None:
    """SIGKILL of their parent ends all parts, a frozen one and one that an ended thread started included."""
    script = f"""
import threading, time
from pathlib import Path
from typing import Self
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process
one = Mosquitto(Path({str(tmp_path)!r}) / "one").start()
one.freeze()
two = Process("two", ["sleep", "60"], Path({str(tmp_path)!r}))
starter = threading.Thread(target=two.start)
starter.start()
starter.join()
time.sleep(0.2)
print(one.pid, two.pid, two.running, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        first, second, running = parent.stdout.readline().split()
        assert running == "True"
        assert _alive(int(first))
        parent.kill()
    assert _eventually(lambda: not _alive(int(first)) and not _alive(int(second)))


def _alive(pid: int) -> bool:
    """Whether that process runs; one that nobody has reaped yet does not."""
    listed = subprocess.run(["/bin/ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return bool(listed.stdout.strip()) and not listed.stdout.strip().startswith("Z")


# Installation.


def test_what_is_there_is_not_installed_again() -> None:
    """Asking for a part that is there answers its path and says so."""
    said: list[str] = []
    assert install.ensure_mosquitto(said.append) == find_mosquitto()
    assert len(said) == 1
    assert "is there" in said[0]


def test_a_demonstration_installs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Mosquitto `bucketbell demo` names the command that brings it, and does not run it."""
    manager = tmp_path / "apt-get"
    manager.write_text(f"#!/bin/sh\ntouch {tmp_path}/was-run\n")
    manager.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(install, "_SYSTEM_DIRECTORIES", ())
    with pytest.raises(install.InstallError, match=r"Mosquitto is not here. Type: (sudo )?apt-get install mosquitto"):
        install.ensure_parts(print)
    assert not (tmp_path / "was-run").exists()


def test_a_missing_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Go, building says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BUCKETBELL_CACHE", str(tmp_path))
    monkeypatch.setattr(install, "_GO_DIRECTORIES", ())
    with pytest.raises(install.InstallError, match=r"Go is not here: install Go 1\.24"):
        install.build_minio(print)


def test_micropython_comes_from_debian_or_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without apt it is named as what a person installs; where apt cannot bring it, with what apt said."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BUCKETBELL_CACHE", str(tmp_path / "cache"))
    with pytest.raises(install.InstallError, match="this is not Debian: install the package `micropython`"):
        install.unpack_micropython(print)
    apt = tmp_path / "apt-get"
    apt.write_text("#!/bin/sh\necho no such archive >&2\nexit 100\n")
    apt.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    if shutil.which("micropython") is None:
        with pytest.raises(install.InstallError, match="no such archive"):
            install.unpack_micropython(print)
        assert not (tmp_path / "cache/bin/micropython").exists()


def test_an_old_go_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a Go that cannot fetch a newer one, building says which is needed."""
    _fake_go(tmp_path, 'echo "go version go1.19.8 linux/amd64"')
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("BUCKETBELL_CACHE", str(tmp_path))
    with pytest.raises(install.InstallError, match=r"is Go 1\.19, too old .* install Go 1\.25"):
        install.build_versitygw(print)


def test_a_slow_build_says_how_long_it_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A build reports the elapsed seconds, puts the binary into the cache, and is not repeated."""
    _fake_go(
        tmp_path,
        'if [ "$1" = version ]; then echo "go version go1.26.0 linux/amd64"; exit; fi\n'
        'sleep 2.5; echo "$2" > "$GOBIN/minio"; chmod +x "$GOBIN/minio"',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
    monkeypatch.setenv("BUCKETBELL_CACHE", str(tmp_path / "cache"))
    said: list[str] = []
    built = install.build_minio(said.append)
    assert built == tmp_path / "cache" / "bin" / "minio"
    assert built.read_text().strip() == f"github.com/minio/minio@{install.MINIO.version}"
    assert any(re.search("… [12] s$", line) for line in said)
    assert install.build_minio(said.append) == built
    assert "is there" in said[-1]


def _fake_go(directory: Path, script: str) -> None:
    go = directory / "go"
    go.write_text(f"#!/bin/sh\n{script}\n")
    go.chmod(0o755)


# Mosquitto and the subscriber.


def test_a_published_message_is_heard_with_its_properties(tmp_path: Path) -> None:
    """The subscriber hears topic, payload, QoS and MQTT 5 properties, and takes each message once."""
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho left it untyped
    properties.ContentType = "application/json"
    properties.UserProperty = [("id", "1"), ("source", "a b")]
    with (
        Mosquitto(tmp_path) as broker,
        Subscriber(broker.url, ["a/#"]) as subscriber,
        _Talker(broker.port) as talker,
    ):
        began = time.monotonic()
        assert talker.verdict(talker.say("a/b", '{"x": 1}', 1, properties)) == 0
        message = subscriber.next(DEADLINE_SECONDS)
        assert (message.topic, message.payload, message.qos, message.retain) == ("a/b", b'{"x": 1}', 1, False)
        assert message.user_properties == (("id", "1"), ("source", "a b"))
        assert message.content_type == "application/json"
        assert began < message.received_at < time.monotonic()
        talker.say("a/two", qos=2)
        talker.say("a/three", qos=0)
        both = subscriber.wait_for(2, DEADLINE_SECONDS)
        assert {(one.topic, one.qos) for one in both} == {("a/two", 2), ("a/three", 0)}
        assert subscriber.silence(0.1) == []
        assert len(subscriber.messages) == 3
        with pytest.raises(SubscriberTimeoutError, match="0 of 1 messages"):
            subscriber.next(0.05)


def test_a_3_1_1_subscriber_gets_the_same_payload(tmp_path: Path) -> None:
    """Under MQTT 3.1.1 the message comes without properties."""
    with (
        Mosquitto(tmp_path) as broker,
        Subscriber(broker.url, ["a"], protocol="3.1.1") as subscriber,
        _Talker(broker.port) as talker,
    ):
        talker.say("a", "x")
        message = subscriber.next(DEADLINE_SECONDS)
        assert (message.payload, message.user_properties, message.content_type) == (b"x", (), None)
        assert "as auto-" in broker.log_text()
        assert "(p2, c1" in broker.log_text()


def test_a_subscriber_returns_after_a_broker_restart(tmp_path: Path) -> None:
    """After a restart on the same port the subscriber has subscribed again by itself, and ends quickly."""
    with Mosquitto(tmp_path) as broker:
        subscriber = Subscriber(broker.url, ["a"]).start()
        port = broker.port
        broker.restart()
        assert broker.port == port
        assert _eventually(lambda: broker.new_log_text().count("Received SUBSCRIBE") == 1)
        assert _eventually(lambda: subscriber.connected)
        with _Talker(broker.port) as talker:
            talker.say("a", "again")
            assert subscriber.next(DEADLINE_SECONDS).payload == b"again"
        began = time.monotonic()
        subscriber.stop()
        assert time.monotonic() - began < SLACK_SECONDS
        assert _eventually(lambda: "Received DISCONNECT" in broker.new_log_text())


def test_a_subscriber_with_a_session_gets_what_came_while_it_was_away(tmp_path: Path) -> None:
    """With a session expiry and a client id the broker keeps messages between two connections."""
    with Mosquitto(tmp_path) as broker:

        def subscriber() -> Subscriber:
            return Subscriber(broker.url, ["a"], client_id="stays", session_expiry_seconds=60)

        with subscriber():
            pass
        with _Talker(broker.port) as talker:
            talker.verdict(talker.say("a", "missed"))
        with subscriber() as back:
            assert back.next(DEADLINE_SECONDS).payload == b"missed"


def test_users_acl_and_their_withdrawal(tmp_path: Path) -> None:
    """Passwords and ACL are enforced, and a reload takes a right or a user away at once."""
    acl = "user reader\ntopic read a\nuser writer\ntopic write a\n"
    with Mosquitto(tmp_path, users={"reader": "r-1", "writer": "w"}, acl=acl) as broker:
        assert "r-1" not in (tmp_path / "passwords").read_text()
        with pytest.raises(SubscriberError, match="refused the connection: Not authorized") as refused:
            Subscriber(broker.url, ["a"], username="reader", password="wrong").start()
        assert refused.value.reason_code == 0x87
        with pytest.raises(SubscriberError, match="refused the connection"):
            Subscriber(broker.url, ["a"]).start()
        with (
            Subscriber(broker.url, ["a"], username="reader", password="r-1") as subscriber,
            _Talker(broker.port, password="w") as talker,
        ):
            assert talker.verdict(talker.say("a")) == 0
            subscriber.next(DEADLINE_SECONDS)
            assert talker.verdict(talker.say("b")) == 0x87
            broker.set_acl("user reader\ntopic read a\n")
            broker.reload()
            assert talker.verdict(talker.say("a")) == 0x87
            broker.set_users({"reader": "r-1"})
            broker.reload()
            assert _eventually(lambda: talker.disconnects != [])
            assert subscriber.silence(0.1) == []


def test_tls_with_client_certificates(tmp_path: Path, certificates: Certificates) -> None:
    """The right authority and certificate get in; a stranger's authority and a missing certificate do not."""

    def subscriber(url: str, ca_file: Path) -> Subscriber:
        mine, key = certificates.client_cert, certificates.client_key
        return Subscriber(url, ["a"], ca_file=ca_file, cert_file=mine, key_file=key)

    with Mosquitto(tmp_path, certificates=certificates, require_client_certificate=True) as broker:
        assert broker.url == f"mqtts://localhost:{broker.port}"
        with subscriber(broker.url, certificates.ca_file) as allowed:
            assert allowed.connected
        with pytest.raises(SubscriberError, match=r"unreachable: .*certificate verify failed"):
            subscriber(broker.url, certificates.stranger_ca_file).start()
        with pytest.raises(SubscriberError):
            Subscriber(broker.url, ["a"], ca_file=certificates.ca_file).start()
        context = ssl.create_default_context(cafile=str(certificates.ca_file))
        with (
            socket.create_connection(("127.0.0.1", broker.port), DEADLINE_SECONDS) as raw,
            context.wrap_socket(raw, server_hostname="127.0.0.1"),
        ):
            pass  # The handshake was the test: the address is in the certificate too.


def test_a_frozen_broker_answers_when_thawed(tmp_path: Path) -> None:
    """While frozen the broker acknowledges nothing; thawed, it goes on where it was."""
    with Mosquitto(tmp_path) as broker, _Talker(broker.port) as talker:
        broker.freeze()
        mid = talker.say("a")
        time.sleep(0.2)
        assert mid not in talker.acknowledged
        broker.thaw()
        talker.verdict(mid)
        broker.freeze()
        began = time.monotonic()
        broker.stop()
        assert time.monotonic() - began < STOP_TIMEOUT_SECONDS + SLACK_SECONDS


def test_the_brokers_limits_reach_the_client(tmp_path: Path) -> None:
    """Receive Maximum, Maximum Packet Size and the longest keepalive are what CONNACK says."""
    with Mosquitto(tmp_path, receive_maximum=3, max_packet_size=500, max_keepalive=10) as broker:
        told: list[Properties] = []
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.on_connect = lambda _c, _u, _f, _r, properties: told.append(properties)
        client.connect("127.0.0.1", broker.port)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not told and time.monotonic() < deadline:
            client.loop(0.1)
        client.disconnect()
        limits = told[0].json()  # type: ignore[no-untyped-call] # paho left it untyped
        assert (limits["ReceiveMaximum"], limits["MaximumPacketSize"], limits["ServerKeepAlive"]) == (
            3,
            500,
            10,
        )


def test_an_unreachable_broker_is_named() -> None:
    """A port that nobody listens on, a broker that says nothing, and one that speaks HTTP are told apart."""
    with pytest.raises(SubscriberError, match=r"unreachable.*refused"):
        Subscriber(f"mqtt://127.0.0.1:{free_port()}", ["a"]).start()
    began = time.monotonic()
    with FakeBroker(script=[Behaviour(silent=True)]) as silent:
        with pytest.raises(SubscriberError, match=r"no subscription within 0\.3 s"):
            Subscriber(silent.url, ["a"]).start(timeout_seconds=0.3)
        with pytest.raises(SubscriberError, match=r"timed out|within 0\.3 s"):
            Subscriber(silent.url.replace("mqtt", "mqtts"), ["a"]).start(timeout_seconds=0.3)
    assert time.monotonic() - began < 2 * 0.3 + SLACK_SECONDS
    with (
        FakeBroker(script=[Behaviour(raw_answer=HTTP_ANSWER)]) as web,
        pytest.raises(SubscriberError, match="closed the connection"),
    ):
        Subscriber(web.url, ["a"]).start()


def test_a_refused_subscription_is_named() -> None:
    """A SUBACK of 0x87 raises with the topic and the reason."""
    with (
        FakeBroker(script=[Behaviour(suback_reason=0x87)]) as broker,
        pytest.raises(SubscriberError, match=r"refused the subscription to a/b: Not authorized \(0x87\)"),
    ):
        Subscriber(broker.url, ["a/b"]).start()


# Object stores.


def test_minio_keeps_its_data_over_a_restart(minio: Minio) -> None:
    """What was put is there after a restart on the same port, under an environment set in between."""
    minio.client().create_bucket(Bucket="bell")
    minio.client().put_object(Bucket="bell", Key="k", Body=b"kept")
    target = f"http://127.0.0.1:{free_port()}/"
    minio.environment |= {
        "MINIO_NOTIFY_WEBHOOK_ENABLE_BELL": "on",
        "MINIO_NOTIFY_WEBHOOK_ENDPOINT_BELL": target,
    }
    port = minio.port
    minio.restart()
    assert minio.port == port
    assert minio.client().get_object(Bucket="bell", Key="k")["Body"].read() == b"kept"
    minio.client().put_bucket_notification_configuration(
        Bucket="bell",
        NotificationConfiguration={
            "QueueConfigurations": [
                {"QueueArn": "arn:minio:sqs:us-east-1:BELL:webhook", "Events": ["s3:ObjectCreated:*"]}
            ]
        },
    )


def test_moto_passes_uploads_to_sqs_and_forgets_them(tmp_path: Path) -> None:
    """An upload to moto's S3 arrives in its SQS; a reset leaves no bucket."""
    with MotoServer(tmp_path) as moto:
        s3, sqs = moto.client("s3"), moto.client("sqs")
        queue = sqs.create_queue(QueueName="q")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        s3.create_bucket(Bucket="bell")
        s3.put_bucket_notification_configuration(
            Bucket="bell",
            NotificationConfiguration={"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]},
        )
        s3.put_object(Bucket="bell", Key="assets/x", Body=b"1")
        bodies = [
            message["Body"]
            for message in sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
        ]
        assert any("ObjectCreated:Put" in body for body in bodies)
        moto.reset()
        assert s3.list_buckets()["Buckets"] == []


def test_versity_gateway_posts_an_upload_to_its_webhook(tmp_path: Path) -> None:
    """An upload to Versity Gateway can be read back, and its event is posted."""
    find_versitygw() or missing("versitygw", "`make versitygw`")
    bodies: list[bytes] = []

    class Webhook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Webhook) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/"
        with VersityGateway(tmp_path, event_webhook_url=url) as gateway:
            s3 = gateway.client()
            s3.create_bucket(Bucket="bell")
            s3.put_object(Bucket="bell", Key="assets/x", Body=b"1")
            assert s3.get_object(Bucket="bell", Key="assets/x")["Body"].read() == b"1"
            assert _eventually(lambda: any(b"s3:ObjectCreated:Put" in body for body in bodies))
        server.shutdown()


# The fake broker.


def test_the_fake_broker_records_what_a_client_sends() -> None:
    """CONNECT and PUBLISH are recorded with their fields, and all three QoS flows end."""
    with FakeBroker() as broker, _Talker(broker.port, password="w", keepalive_seconds=7) as talker:
        for qos in (0, 1, 2):
            talker.verdict(talker.say("a/b", str(qos), qos))
        broker.wait_for("PUBLISH", 3)
        assert [(p.topic, p.payload, p.qos, p.dup, p.retain, p.connection) for p in broker.publishes] == [
            ("a/b", b"0", 0, False, False, 1),
            ("a/b", b"1", 1, False, False, 1),
            ("a/b", b"2", 2, False, False, 1),
        ]
        [connect] = broker.connect_packets
        assert (connect.username, connect.password, connect.keepalive_seconds) == ("writer", b"w", 7)
        assert (connect.protocol_level, connect.clean_start, broker.connects) == (5, True, 1)
        talker.close()
        assert len(broker.wait_for("DISCONNECT")) == 1


def test_the_fake_broker_speaks_3_1_1() -> None:
    """A 3.1.1 client connects and is acknowledged."""
    with FakeBroker() as broker, _Talker(broker.port, protocol=MQTTProtocolVersion.MQTTv311) as talker:
        talker.verdict(talker.say("a", qos=2))
        assert broker.connect_packets[0].protocol_level == 4


def test_the_fake_broker_withholds_and_delays_acknowledgements() -> None:
    """It can never acknowledge, and then acknowledge late without slowing what is in flight down."""
    with FakeBroker(script=[Behaviour(acknowledge=False)]) as broker, _Talker(broker.port) as talker:
        ignored = talker.say("a")
        broker.wait_for("PUBLISH")
        broker.script = [Behaviour(acknowledge_delay_seconds=0.2)]
        began = time.monotonic()
        mids = [talker.say("a", str(number)) for number in range(50)]
        for mid in mids:
            talker.verdict(mid)
        # One after the other they would take 10 s.
        assert 0.2 <= time.monotonic() - began < 0.2 + SLACK_SECONDS
        assert ignored not in talker.acknowledged
        assert broker.max_in_flight > 6


def test_the_fake_broker_refuses_publishes_by_reason() -> None:
    """PUBACK carries a chosen reason, by publish if wanted; a refused PUBREC ends the flow."""

    def only_bad(publish: Packet) -> int:
        return 0x97 if publish.topic == "bad" else 0x10

    script = [Behaviour(puback_reason=only_bad, pubrec_reason=0x87)]
    with FakeBroker(script=script) as broker, _Talker(broker.port) as talker:
        assert talker.verdict(talker.say("bad")) == 0x97
        assert talker.verdict(talker.say("good")) == 0x10
        talker.say("good", qos=2)
        broker.wait_for("PUBLISH", 3)
        assert broker.max_in_flight == 1


def test_the_fake_broker_refuses_connections_late() -> None:
    """CONNACK can be late and refuse with a reason; properties reach the client."""
    script = [Behaviour(connack_reason=0x86, connack_delay_seconds=0.2), Behaviour()]
    with FakeBroker(script=script) as broker:
        began = time.monotonic()
        with _Talker(broker.port) as talker:
            assert time.monotonic() - began >= 0.2
            assert talker.connack is not None
            assert talker.connack.value == 0x86


def test_the_fake_broker_states_its_limits() -> None:
    """Receive Maximum, Maximum Packet Size, Server Keep Alive and Maximum QoS are in its CONNACK."""
    limits = Behaviour(receive_maximum=2, maximum_packet_size=100, server_keep_alive_seconds=9, maximum_qos=1)
    with FakeBroker(script=[limits]) as broker:
        told: list[Properties] = []
        client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        client.on_connect = lambda _c, _u, _f, _r, properties: told.append(properties)
        client.connect("127.0.0.1", broker.port)
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not told and time.monotonic() < deadline:
            client.loop(0.1)
        client.disconnect()
    stated = told[0].json()  # type: ignore[no-untyped-call] # paho left it untyped
    assert stated == {"ReceiveMaximum": 2, "MaximumPacketSize": 100, "ServerKeepAlive": 9, "MaximumQoS": 1}


@pytest.mark.parametrize(
    ("first", "publishes"),
    [
        (Behaviour(cut_at_publish=1), 2),
        (Behaviour(cut_within_publish=1), 1),
        (Behaviour(half_puback=True), 2),
        (Behaviour(raw_on_publish=GARBAGE, cut_at_publish=2), 2),
        (Behaviour(cut_at_publish=1, disconnect_reason=0x8B), 2),
    ],
    ids=["at", "within", "half-puback", "garbage", "disconnect"],
)
def test_the_fake_broker_cuts_a_publish(first: Behaviour, publishes: int) -> None:
    """However the first connection ends during a publish, paho comes back and sends it again."""
    with FakeBroker(script=[first, Behaviour()]) as broker, _Talker(broker.port) as talker:
        talker.client.reconnect_delay_set(1, 1)
        talker.verdict(talker.say("a", "x" * 1000))
        assert broker.connects == 2
        assert len(broker.publishes) == publishes
        assert broker.publishes[-1].dup
        if first.disconnect_reason is not None:
            assert talker.disconnects == [0x8B]


@pytest.mark.parametrize("first", [Behaviour(cut_after_pubrec=True), Behaviour(cut_at_pubrel=True)])
def test_the_fake_broker_cuts_a_qos_2_flow(first: Behaviour) -> None:
    """A connection cut around PUBREL makes paho send PUBREL, and not PUBLISH, on the next one."""
    with FakeBroker(script=[first, Behaviour()]) as broker, _Talker(broker.port) as talker:
        talker.verdict(talker.say("a", qos=2))
        assert len(broker.publishes) == 1
        assert broker.of_kind("PUBREL")[-1].connection == 2


def test_the_fake_broker_ignores_pings() -> None:
    """A client whose PINGREQ stays unanswered gives the connection up."""
    with (
        FakeBroker(script=[Behaviour(answer_pings=False)]) as broker,
        _Talker(broker.port, keepalive_seconds=1) as talker,
    ):
        broker.wait_for("PINGREQ")
        assert _eventually(lambda: talker.disconnects != [])


# The proxy.


def test_the_proxy_delays_without_slowing_down() -> None:
    """A delay line holds each chunk back, yet many in a row take one delay, not many."""
    delay_seconds, chunks = 0.3, 100
    with (
        socket.create_server(("127.0.0.1", 0)) as target,
        TcpProxy("127.0.0.1", target.getsockname()[1], delay_seconds=delay_seconds) as proxy,
        socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_SECONDS) as client,
    ):
        target.settimeout(DEADLINE_SECONDS)
        far_end, _ = target.accept()
        with far_end:
            far_end.settimeout(DEADLINE_SECONDS)
            began = time.monotonic()
            client.sendall(bytes(chunks * CHUNK_BYTES))
            came_bytes = 0
            while came_bytes < chunks * CHUNK_BYTES:
                came_bytes += len(far_end.recv(CHUNK_BYTES))
            # One delay is 0.3 s, a hundred are 30 s: the bound is ten times from either.
            assert delay_seconds <= time.monotonic() - began < 10 * delay_seconds
        assert proxy.connections == 1
        assert _eventually(lambda: proxy.bytes_up == came_bytes)


def test_the_proxys_black_hole_swallows_until_healed() -> None:
    """Nothing passes a black hole and nothing is closed; healed, what was lost stays lost."""
    with FakeBroker() as broker, TcpProxy("127.0.0.1", broker.port) as proxy, _Talker(proxy.port) as talker:
        proxy.blackhole()
        mid = talker.say("a", "lost")
        time.sleep(0.2)
        assert broker.publishes == []
        assert talker.client.is_connected()
        proxy.heal()
        with _Talker(proxy.port) as second:
            second.verdict(second.say("a", "heard"))
        assert mid not in talker.acknowledged
        assert [publish.payload for publish in broker.publishes] == [b"heard"]


def test_the_proxy_cuts_and_refuses() -> None:
    """Connections are reset on command or after so many bytes, and new ones refused, as by a closed port."""
    with FakeBroker() as broker, TcpProxy("127.0.0.1", broker.port) as proxy:
        with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_SECONDS) as client:
            assert _eventually(lambda: proxy.open_connections == 1 and broker.connections == 1)
            proxy.cut()
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        proxy.cut_after_bytes = 10
        with socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_SECONDS) as client:
            client.sendall(b"x" * 4)
            assert _eventually(lambda: proxy.bytes_up == 4)
            client.sendall(b"x" * 100)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        assert proxy.bytes_up == 10
        proxy.refuse_new = True
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", proxy.port), DEADLINE_SECONDS)
        proxy.refuse_new = False
        proxy.cut_after_bytes = None
        with _Talker(proxy.port) as talker:
            talker.verdict(talker.say("a"))
