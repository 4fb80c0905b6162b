"""JetStream between MinIO and hosts: real NATS, real MinIO, real Mosquitto, hosts as processes."""

from __future__ import annotations

import json
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from nats.js import JetStreamContext
from nats.js.api import StreamConfig

from functions.events.plan import plan_body
from functions.events.routes import Routes, Upload
from infra.host.jetstream.announced import ANNOUNCED
from infra.local.mosquitto import Mosquitto
from infra.local.nats_server import NatsServer
from infra.subscriber import Subscriber
from tests.hosts import MAC_KEY, STOP_SECONDS, TOPICS, Host, eventually, exactly, upload
from tests.integration.jetstream_rig import (
    BUCKET,
    NAMES,
    ask,
    asking,
    host_environment,
    make_bucket,
    minio_for,
    publish,
    set_up,
    waiting,
)
from tests.timing import PATIENCE_SECONDS

NO_CONFIGS = f"topic readwrite {TOPICS[1]}\ntopic read {TOPICS[0]}\n"


@pytest.fixture
def stream(nats_server: NatsServer) -> NatsServer:
    """A server where `connect` has made the stream and what belongs to it."""
    set_up(nats_server)
    return nats_server


def names_heard(listener: Subscriber, count: int) -> Counter[str]:
    """The files of the next messages, and how often each was announced."""
    return Counter(json.loads(message.payload)["filename"] for message in exactly(count, listener))


def test_an_upload_rings_once_through_both_targets(
    stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto, minio_binary: Path
) -> None:
    """The fast target and the one with a queue tell of each upload; devices hear of it once; the stream is empty."""
    del minio_binary
    with (
        minio_for(stream, tmp_path) as minio,
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
    ):
        s3 = make_bucket(minio, stream)
        for key in (MAC_KEY, "assets/a b+c.bin", "others/x"):
            s3.put_object(Bucket=BUCKET, Key=key, Body=b"{}")
        s3.delete_object(Bucket=BUCKET, Key=MAC_KEY)
        assert names_heard(listener, 2) == {"aa-bb-cc-dd-ee-ff.json": 1, "a b+c.bin": 1}
        eventually(lambda: host.metric("events_total", source="nats") == 4)
        assert host.metric("events_total", source="nats", outcome="repeated") == 2
        assert host.metric("nats_up") == 1
        eventually(lambda: waiting(stream) == 0)
        assert listener.drain() == []
        assert not host.lines("ERROR")
        assert not host.lines("WARNING")


def test_two_hosts_ring_once(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """Each event is twice in the stream, as from two targets; both hosts work, and devices hear of each upload once."""
    events = [upload(f"assets/{number}.bin") for number in range(100)]
    with Subscriber(mosquitto.url, TOPICS) as listener:
        variables = host_environment(stream, mosquitto.url)
        with Host(tmp_path, variables) as one, Host(tmp_path, variables) as other:
            for host in (one, other):
                eventually(lambda host=host: host.metric("nats_up") == 1)  # type: ignore[misc]
            publish(stream, *(event for event in events for _ in range(2)))
            assert set(names_heard(listener, 100).values()) == {1}
            eventually(lambda: waiting(stream) == 0)
            assert listener.drain() == []
            for host in (one, other):
                assert host.metric("events_total", source="nats", outcome="delivered") > 0


def test_a_killed_host_loses_nothing(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """What it had in hand comes again after the consumer's AckWait, and what came meanwhile rings."""
    variables = host_environment(stream, mosquitto.url)
    with Subscriber(mosquitto.url, TOPICS) as listener:
        mosquitto.freeze()  # so that the events are in hand, and not announced
        try:
            with Host(tmp_path, variables, ready=False) as host:
                publish(stream, *(upload(f"assets/{number}") for number in range(3)))
                host.child.kill()
                host.child.wait(PATIENCE_SECONDS)
        finally:
            mosquitto.thaw()
        publish(stream, upload("assets/3"))
        with Host(tmp_path, variables):
            heard = {json.loads(message.payload)["filename"] for message in listener.wait_for(4, PATIENCE_SECONDS)}
            assert heard == {"0", "1", "2", "3"}
            eventually(lambda: waiting(stream) == 0)


def test_a_nats_server_that_is_killed_and_comes_back(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """One WARNING that names it; doors and readiness unharmed; what was in the stream rings when it is back."""
    variables = host_environment(stream, mosquitto.url)
    with Subscriber(mosquitto.url, TOPICS) as listener, Host(tmp_path, variables) as host:
        publish(stream, upload("assets/1"))
        listener.next()
        stream.kill()
        eventually(lambda: host.metric("nats_up") == 0)
        assert host.http.get("/readyz").status_code == 200
        assert host.post(upload("assets/2")).status_code == 200
        listener.next()
        stream.start()
        publish(stream, upload("assets/3"))
        assert json.loads(listener.next(PATIENCE_SECONDS).payload)["filename"] == "3"
        assert host.metric("nats_up") == 1
        warnings = [line for line in host.lines("WARNING") if "no events can be taken" in line["message"]]
        assert 1 <= len(warnings) <= 2  # the connection's end, and that it cannot be made
        assert listener.drain() == []


def test_nothing_is_taken_while_the_broker_is_away(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The stream keeps it: nothing is in anybody's hand, and all of it rings once when the broker is back."""
    with Host(tmp_path, host_environment(stream, mosquitto.url)) as host:
        mosquitto.stop()
        eventually(lambda: host.http.get("/readyz").status_code == 503)
        eventually(lambda: unsettled(stream) == 0)
        publish(stream, *(upload(f"assets/{number}") for number in range(5)))
        mosquitto.start()
        with Subscriber(mosquitto.url, TOPICS) as listener:
            assert names_heard(listener, 5) == {str(number): 1 for number in range(5)}
            eventually(lambda: waiting(stream) == 0)


def unsettled(server: NatsServer) -> int:
    """How many events hosts have in hand or have put off."""

    async def count(js: JetStreamContext) -> int:
        return (await js.consumer_info(NAMES.stream, NAMES.consumer)).num_ack_pending or 0

    return ask(server, count)


def test_a_forbidden_topic_delays_nobody_and_ends_as_a_dead_letter(
    stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """Beside refused messages, allowed ones ring; when the cause's time is over there is a copy with the reason."""
    mosquitto.set_acl(NO_CONFIGS)
    mosquitto.restart()
    variables = host_environment(stream, mosquitto.url, EVENT_RETRY_SECONDS="3")
    with Subscriber(mosquitto.url, TOPICS) as listener, Host(tmp_path, variables) as host:
        publish(stream, upload(MAC_KEY), upload("assets/1"))
        assert json.loads(listener.next().payload)["filename"] == "1"
        eventually(lambda: host.metric("events_total", source="nats", outcome="refused") >= 1)
        assert waiting(stream) == 1
        eventually(lambda: host.metric("nats_dead_letters_total") == 1)
        eventually(lambda: waiting(stream) == 0)
        assert host.metric("events_total", source="nats", outcome="gave_up") == 1
        publish(stream, upload("assets/2"))
        listener.next()

        async def dead(js: JetStreamContext) -> Any:  # noqa: ANN401 - NATS' raw message
            return await js.get_last_msg(NAMES.dead_stream, NAMES.dead_subject)

        copy = ask(stream, dead)
        assert b"aa-bb-cc-dd-ee-ff" in copy.data
        assert "0x87" in copy.headers["Bucketbell-Reason"]


def test_many_refused_messages_never_stop_the_stream(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """A consumer delivers nothing beyond its MaxAckPending: before that is reached, what is refused is copied away."""

    async def narrow(js: JetStreamContext) -> None:
        consumer = (await js.consumer_info(NAMES.stream, NAMES.consumer)).config
        await js.add_consumer(NAMES.stream, consumer.evolve(max_ack_pending=10))

    ask(stream, narrow)
    mosquitto.set_acl(NO_CONFIGS)
    mosquitto.restart()
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
    ):
        refused = [upload(f"configs/aa-bb-cc-dd-ee-{number:02x}.json") for number in range(30)]
        publish(stream, *refused, upload("assets/1"))
        assert json.loads(listener.next(PATIENCE_SECONDS).payload)["filename"] == "1"
        dead = waiting(stream, NAMES.dead_stream)
        assert dead >= 20
        assert waiting(stream) + dead == 30
        assert host.metric("events_total", source="nats", outcome="gave_up") == 0


def test_what_is_no_event_is_kept_for_a_person(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """It goes to the dead-letter subject at once, logged and counted, and holds nobody up."""
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
    ):
        publish(stream, b"not an event", b"\xff\xfe", upload("assets/1"), b"")
        listener.next()
        eventually(lambda: waiting(stream) == 0)
        assert waiting(stream, NAMES.dead_stream) == 2
        assert host.metric("nats_dead_letters_total") == 2
        assert host.metric("events_total", source="nats", outcome="malformed") == 2


def test_without_a_dead_letter_stream_nothing_is_lost(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """What was given up stays in the stream, and a WARNING says so; it is copied when that stream is back."""
    soon = "import infra.host.jetstream.hand as hand; hand.DEAD_DELAY_SECONDS = 1.0"
    with Host(tmp_path, host_environment(stream, mosquitto.url), patch=soon) as host:
        eventually(lambda: host.metric("nats_up") == 1)
        ask(stream, lambda js: js.delete_stream(NAMES.dead_stream))
        publish(stream, b"not an event")
        eventually(lambda: any("dead-letter" in line["message"] for line in host.lines("WARNING")))
        assert waiting(stream) == 1
        set_up(stream)
        eventually(lambda: waiting(stream) == 0)
        assert waiting(stream, NAMES.dead_stream) == 1


def test_without_the_shared_bucket_everything_rings(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """It is for ringing once, and its loss is named; events do not wait for it."""
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
    ):
        eventually(lambda: host.metric("nats_up") == 1)
        ask(stream, lambda js: js.delete_key_value(NAMES.bucket))
        event = upload("assets/1")
        publish(stream, event, event)
        exactly(1, listener)  # this host alone remembers it
        eventually(lambda: waiting(stream) == 0)
        assert any("may ring twice" in line["message"] for line in host.lines("WARNING"))
        assert host.metric("nats_up") == 1


def test_what_another_host_has_taken_or_announced(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """What was announced is a repeat; what another host took and never announced rings after a while."""
    announced, taken = upload("assets/announced"), upload("assets/taken")

    async def write(js: JetStreamContext) -> None:
        bucket = await js.key_value(NAMES.bucket)
        await bucket.put(identity(announced), ANNOUNCED)
        await bucket.put(identity(taken), b"taken by a host that has died")

    ask(stream, write)
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
    ):
        publish(stream, announced, taken)
        assert names_heard(listener, 1) == {"taken": 1}
        eventually(lambda: waiting(stream) == 0)
        assert host.metric("events_total", source="nats", outcome="repeated") == 1


def identity(body: bytes) -> str:
    """An event's key in the bucket."""
    (step,) = plan_body(body, Routes())
    assert isinstance(step.action, Upload)
    return step.action.identity.hex()


def test_a_host_that_may_not_acknowledge_says_so(tmp_path: Path, mosquitto: Mosquitto, nats_binary: Path) -> None:
    """Nobody answers an acknowledgement: without a word the events would come again and again."""
    del nats_binary
    rights = {"publish": ["$JS.API.>", "$KV.>"], "subscribe": ["_INBOX.>"]}
    users: tuple[dict[str, Any], ...] = (
        {"user": "admin", "password": "pw-of-admin"},
        {"user": "bell", "password": "pw-of-bell", "permissions": rights},
    )
    with NatsServer(tmp_path / "nats", users=users) as server:
        set_up(server, NATS_USERNAME="admin", NATS_PASSWORD="pw-of-admin")
        variables = host_environment(server, mosquitto.url, NATS_USERNAME="bell", NATS_PASSWORD="pw-of-bell")
        with Host(tmp_path, variables) as host:
            publish(server, upload("assets/1"), user="admin", password="pw-of-admin")
            eventually(lambda: any("$js.ack" in line["message"].lower() for line in host.lines("WARNING")))


def test_a_deleted_consumer_is_made_again(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """The stream holds only what is still to be announced, so that nothing is lost and nothing rings again."""
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
    ):
        publish(stream, upload("assets/1"))
        listener.next()
        eventually(lambda: waiting(stream) == 0)
        ask(stream, lambda js: js.delete_consumer(NAMES.stream, NAMES.consumer))
        publish(stream, upload("assets/2"))
        assert json.loads(listener.next(PATIENCE_SECONDS).payload)["filename"] == "2"
        assert any("has been made" in line["message"] for line in host.lines("WARNING"))
        assert listener.drain() == []


def test_a_deleted_stream_is_named(stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto) -> None:
    """With what makes it again; when it is there, the host goes on by itself."""
    with (
        Subscriber(mosquitto.url, TOPICS) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
    ):
        eventually(lambda: host.metric("nats_up") == 1)
        ask(stream, lambda js: js.delete_stream(NAMES.stream))
        eventually(lambda: "there is no stream bucketbell" in host.log and "bucketbell connect" in host.log)
        assert host.post(upload("assets/0")).status_code == 200
        listener.next()
        set_up(stream)
        publish(stream, upload("assets/1"))
        assert json.loads(listener.next(PATIENCE_SECONDS).payload)["filename"] == "1"


def test_a_full_stream_keeps_the_upload_in_minios_queue(
    stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto, minio_binary: Path
) -> None:
    """It refuses what is new; MinIO brings it again, and all of it rings when there is room."""
    del minio_binary

    async def narrow(js: JetStreamContext) -> None:
        config: StreamConfig = (await js.stream_info(NAMES.stream)).config
        await js.update_stream(config.evolve(max_msgs=2))

    ask(stream, narrow)
    with minio_for(stream, tmp_path) as minio:
        s3 = make_bucket(minio, stream)
        for number in range(4):
            s3.put_object(Bucket=BUCKET, Key=f"assets/{number}", Body=b"{}")
        eventually(lambda: waiting(stream) == 2)
        with (
            Subscriber(mosquitto.url, TOPICS) as listener,
            Host(tmp_path, host_environment(stream, mosquitto.url)),
        ):
            assert names_heard(listener, 4) == {str(number): 1 for number in range(4)}


def test_a_host_with_other_settings_takes_nothing_and_says_why(
    stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """What differs is named; the first host goes on alone, and after it has gone, the other one begins."""
    with (
        Subscriber(mosquitto.url, ("#",)) as listener,
        Host(tmp_path, host_environment(stream, mosquitto.url)) as host,
        ExitStack() as stack,
    ):
        eventually(lambda: asking(stream) == 1)  # it was there first
        other = stack.enter_context(Host(tmp_path, host_environment(stream, mosquitto.url, TOPIC_PREFIX="plant")))
        words = "TOPIC_PREFIX is 'iotsupport' there and 'plant' here"
        eventually(lambda: words in other.log)
        assert other.metric("nats_up") == 0
        assert host.metric("nats_up") == 1
        publish(stream, *(upload(f"assets/{number}") for number in range(20)))
        assert {message.topic for message in listener.wait_for(20)} == {TOPICS[1]}
        host.stop()
        publish(stream, upload("assets/20"))
        assert listener.next(PATIENCE_SECONDS).topic == "plant/updates/assets"


def test_a_server_without_jetstream_is_named(tmp_path: Path, mosquitto: Mosquitto, nats_binary: Path) -> None:
    """And when it is restarted with it, and set up, the host goes on."""
    del nats_binary
    with (
        NatsServer(tmp_path / "nats", jetstream=False) as server,
        Host(tmp_path, host_environment(server, mosquitto.url)) as host,
    ):
        eventually(lambda: "has no JetStream" in host.log)
        assert host.post(upload()).status_code == 200
        server.jetstream = True
        server.restart()
        set_up(server)
        eventually(lambda: host.metric("nats_up") == 1)


def test_wrong_credentials_are_named_and_never_shown(tmp_path: Path, mosquitto: Mosquitto, nats_binary: Path) -> None:
    """With the variables to correct."""
    del nats_binary
    users = ({"user": "bell", "password": "right-one-7719"},)
    with NatsServer(tmp_path / "nats", users=users) as server:
        wrong = host_environment(server, mosquitto.url, NATS_USERNAME="bell", NATS_PASSWORD="wrong-one-4411")
        with Host(tmp_path, wrong) as host:
            eventually(lambda: "the credentials are refused" in host.log and "NATS_PASSWORD" in host.log)
            assert "wrong-one" not in host.log
        set_up(server, NATS_USERNAME="bell", NATS_PASSWORD="right-one-7719")
        right = host_environment(server, mosquitto.url, NATS_USERNAME="bell", NATS_PASSWORD="right-one-7719")
        with Host(tmp_path, right) as host:
            eventually(lambda: host.metric("nats_up") == 1)


def test_the_rights_that_the_page_names_are_enough(tmp_path: Path, mosquitto: Mosquitto, nats_binary: Path) -> None:
    """docs/many-machines.md: for the host, a dead letter and another host's word included, and for MinIO."""
    del nats_binary
    inbox = {"subscribe": ["_INBOX.>"]}
    ours = ["$JS.API.>", "$JS.ACK.bucketbell.>", "$KV.bucketbell.>", NAMES.dead_subject]
    users: tuple[dict[str, Any], ...] = (
        {"user": "admin", "password": "pw-of-admin"},
        {"user": "bell", "password": "pw-of-bell", "permissions": inbox | {"publish": ours}},
        {"user": "minio", "password": "pw-of-minio", "permissions": inbox | {"publish": [NAMES.subject]}},
    )
    page = (Path(__file__).parents[2] / "docs" / "many-machines.md").read_text(encoding="utf-8")
    assert all(f"`{subject}`" in page for subject in (*ours, "_INBOX.>", NAMES.subject))
    with NatsServer(tmp_path / "nats", users=users) as server:
        set_up(server, NATS_USERNAME="admin", NATS_PASSWORD="pw-of-admin")
        variables = host_environment(server, mosquitto.url, NATS_USERNAME="bell", NATS_PASSWORD="pw-of-bell")
        with Subscriber(mosquitto.url, TOPICS) as listener, Host(tmp_path, variables) as host:
            publish(server, upload("assets/1"), b"not an event", user="minio", password="pw-of-minio")
            listener.next()
            eventually(lambda: host.metric("nats_dead_letters_total") == 1)
            assert not host.lines("WARNING")


def test_a_signal_while_it_waits_ends_the_host_in_time(
    stream: NatsServer, tmp_path: Path, mosquitto: Mosquitto
) -> None:
    """And while NATS is frozen, too."""
    with Host(tmp_path, host_environment(stream, mosquitto.url)) as host:
        eventually(lambda: host.metric("nats_up") == 1)
        assert host.stop() < STOP_SECONDS
        assert "Traceback" not in host.log
    with Host(tmp_path, host_environment(stream, mosquitto.url)) as host:
        eventually(lambda: host.metric("nats_up") == 1)
        stream.freeze()
        try:
            assert host.stop() < STOP_SECONDS
        finally:
            stream.thaw()
