"""Cameras in the host with stored settings: real MinIO and Mosquitto; topics, QoS, retained or not, discovery."""

from __future__ import annotations

import json
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio, MotoServer
from tests.databases import new_sqlite
from tests.discovery_rules import problems
from tests.hosts import TOPICS, Host, eventually, upload
from tests.stored import PASSWORD, SHORT, USER, Admin, readiness, stored, storing
from tests.yard import BODY, DISCOVERY, Yard, document, hearing, in_topic_order, kept, ring


@pytest.fixture
def yard(minio: Minio, tmp_path: Path) -> Yard:
    """An empty one."""
    return Yard(minio, tmp_path)


# Events.


@pytest.mark.parametrize("qos", [0, 1, 2])
def test_camera_events_go_as_stored_and_uploads_of_configs_as_ever(
    tmp_path: Path, mosquitto_binary: Path, yard: Yard, qos: int
) -> None:
    """Stored prefix, QoS and retaining for the one; TOPIC_PREFIX, MQTT_QOS and never retained for the other."""
    del mosquitto_binary
    broker = Mosquitto(tmp_path / "broker", users={USER: PASSWORD}, acl=f"user {USER}\ntopic readwrite #")
    changes: dict[str, object] = {"qos": qos, "retain_messages": True, "topic_prefix": "unifi/protect"}
    changes |= {"username": USER, "password": PASSWORD}
    with ExitStack() as parts:
        parts.enter_context(broker)
        host, _ = parts.enter_context(stored(tmp_path, yard.environment, broker.port, **changes))
        eventually(lambda: readiness(host)[0] == 200)
        with hearing(broker, "#") as listener:
            ring(host, yard, yard.detect())
            ring(host, yard, "configs/aa-bb-cc-dd-ee-ff.json")
            event, update = in_topic_order(listener.wait_for(2), last=TOPICS[0])
        assert (event.topic, event.qos) == ("unifi/protect/camera/front/event", qos)
        assert (update.topic, update.qos, update.retain) == (TOPICS[0], 1, False)
        heard = document(event)
        assert (heard["event_id"], heard["confidence"], heard["objects_detected"]) == ("e1", 0.93, ["person"])
        assert httpx.get(heard["thumbnail_url"], timeout=5.0).content == BODY
        assert kept(broker, "#") == {event.topic: event.payload}
        assert host.metric("mqtt_publish_total", topic="camera/+/event", status="success") == 1


def test_a_stored_change_of_prefix_qos_and_retaining_is_in_force_for_the_next_event(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """Without a new connection; the other topics stay, and what was retained before goes."""
    with stored(tmp_path, yard.environment, mosquitto.port, qos=2, retain_messages=True) as (host, admin):
        eventually(lambda: readiness(host)[0] == 200)
        with hearing(mosquitto, "#") as listener:
            ring(host, yard, yard.detect())
            admin.put(mosquitto.port, qos=0, topic_prefix="house")
            ring(host, yard, yard.detect())
            ring(host, yard, "assets/a.bin")
            heard = in_topic_order(listener.wait_for(4), last=TOPICS[1])
        assert [(one.topic, one.qos) for one in heard if one.payload] == [
            ("home/camera/front/event", 2),
            ("house/camera/front/event", 0),
            (TOPICS[1], 1),
        ]
        assert kept(mosquitto, "#") == {}


# Discovery.


def test_a_camera_is_announced_before_its_first_event_and_again_on_each_connect(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """Valid to Home Assistant, retained, available; not before its second event, but with a new name."""
    with stored(tmp_path, yard.environment, mosquitto.port, discovery_enabled=True) as (host, admin):
        eventually(lambda: readiness(host)[0] == 200)
        with hearing(mosquitto) as listener:
            online = listener.next()
            assert (online.payload, online.retain) == (b"online", True)
            ring(host, yard, yard.detect())
            announced, event = listener.wait_for(2)
            assert (announced.topic, event.topic) == (DISCOVERY, "home/camera/front/event")
            discovered = document(announced)
            assert problems(announced.topic, announced.payload, discovery_prefix="homeassistant") == []
            assert discovered["availability"] == [{"topic": online.topic}]
            ring(host, yard, yard.detect())
            assert listener.next().topic == event.topic
            ring(host, yard, yard.detect("Porch"))
            renamed, _ = listener.wait_for(2)
            assert (renamed.topic, document(renamed)["device"]["name"]) == (DISCOVERY, "Porch")
            assert admin.ask("POST", "publish-discovery").json() == {"cameras": 1}
            assert listener.next().topic == DISCOVERY
        assert kept(mosquitto) == {online.topic: b"online", DISCOVERY: renamed.payload}
        mosquitto.restart()  # it keeps nothing: all comes from the host
        eventually(lambda: kept(mosquitto) == {online.topic: b"online", DISCOVERY: renamed.payload})


def test_cameras_whose_events_are_in_the_bucket_are_announced_at_the_start(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """Before any event of this process."""
    yard.detect("Gate", "gate")
    with stored(tmp_path, yard.environment, mosquitto.port, discovery_enabled=True):
        eventually(lambda: "homeassistant/device/bucketbell_gate/config" in kept(mosquitto))


def test_a_removed_camera_leaves_nothing_behind_and_comes_back_with_its_next_event(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """The empty retained message, also for its last event; an unknown one is 404."""
    changes: dict[str, object] = {"discovery_enabled": True, "retain_messages": True}
    with stored(tmp_path, yard.environment, mosquitto.port, **changes) as (host, admin):
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
        assert set(kept(mosquitto, "homeassistant/#", "home/camera/#")) == {DISCOVERY, "home/camera/front/event"}
        assert admin.ask("DELETE", "cameras/front").status_code == 204
        eventually(lambda: kept(mosquitto, "homeassistant/#", "home/camera/#") == {})
        assert admin.ask("DELETE", "cameras/nobody").status_code == 404
        ring(host, yard, yard.detect())
        assert DISCOVERY in kept(mosquitto)


def test_availability_follows_the_host(tmp_path: Path, mosquitto: Mosquitto, yard: Yard) -> None:
    """`offline` by its last will when it dies, and by its own word at its end; `online` again in between."""
    topics = ("home/bucketbell/+/availability",)
    with ExitStack() as parts:
        host, _ = parts.enter_context(stored(tmp_path, yard.environment, mosquitto.port, discovery_enabled=True))
        eventually(lambda: list(kept(mosquitto, *topics).values()) == [b"online"])
        host.child.kill()
        eventually(lambda: list(kept(mosquitto, *topics).values()) == [b"offline"])
    with Host(tmp_path, yard.environment, patch=SHORT) as host:
        eventually(lambda: b"online" in kept(mosquitto, *topics).values())
        host.stop()
        assert set(kept(mosquitto, *topics).values()) == {b"offline"}


@pytest.mark.parametrize(
    "change", [{"topic_prefix": "house"}, {"discovery_enabled": False}, {"enabled": False}], ids=str
)
def test_where_it_said_online_the_host_says_offline_before_it_goes_elsewhere(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard, change: dict[str, object]
) -> None:
    """Nothing is left that says `online` for ever; `offline` neither, where the host is still there to take it away."""
    good: dict[str, object] = {"discovery_enabled": True}
    topics = "home/bucketbell/#"
    with stored(tmp_path, yard.environment, mosquitto.port, **good) as (_, admin), hearing(mosquitto, topics) as ear:
        eventually(lambda: list(kept(mosquitto, topics).values()) == [b"online"])
        admin.put(mosquitto.port, **good | change)
        is_gone = "enabled" in change
        eventually(lambda: list(kept(mosquitto, topics).values()) == ([b"offline"] if is_gone else []))
        said = [message.payload for message in ear.messages]
        assert said[said.index(b"offline") :] == ([b"offline"] if is_gone else [b"offline", b""])


def test_two_hosts_list_each_others_availability(tmp_path: Path, mosquitto: Mosquitto, yard: Yard) -> None:
    """A camera is there while either of them says so."""
    (tmp_path / "other").mkdir()
    with ExitStack() as parts:
        host, _ = parts.enter_context(stored(tmp_path, yard.environment, mosquitto.port, discovery_enabled=True))
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
        parts.enter_context(Host(tmp_path / "other", yard.environment, patch=SHORT))

        def named() -> set[str]:
            discovered = json.loads(kept(mosquitto, DISCOVERY)[DISCOVERY])
            assert discovered["availability_mode"] == "any"
            return {one["topic"] for one in discovered["availability"]}

        eventually(lambda: len(named()) == 2)
        assert set(kept(mosquitto, "home/bucketbell/#")) == named()


def test_discovery_that_is_off_or_cannot_be_published_is_a_conflict(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """With what to do about it; nothing is published by the way."""
    with stored(tmp_path, yard.environment, mosquitto.port) as (host, admin):
        eventually(lambda: readiness(host)[0] == 200)
        refused = admin.ask("POST", "publish-discovery")
        assert (refused.status_code, "discovery_enabled" in refused.json()["detail"]) == (409, True)
        ring(host, yard, yard.detect())
        assert kept(mosquitto) == {}
        admin.put(mosquitto.port, discovery_enabled=True)
        eventually(lambda: DISCOVERY in kept(mosquitto))
        mosquitto.kill()
        eventually(lambda: not admin.connected())
        assert admin.ask("POST", "publish-discovery").status_code == 409
        assert admin.ask("DELETE", "cameras/front").status_code == 409


# Switched off.


def test_a_queue_is_left_alone_while_publishing_is_switched_off(
    tmp_path: Path, mosquitto: Mosquitto, moto: MotoServer
) -> None:
    """What comes meanwhile waits there, and rings when it is switched on again."""
    sqs = moto.client("sqs")
    queue = sqs.create_queue(QueueName="switched-off", Attributes={"VisibilityTimeout": "1"})["QueueUrl"]
    known = storing(
        new_sqlite(tmp_path),
        SQS_QUEUE_URL=queue,
        AWS_ENDPOINT_URL=moto.endpoint_url,
        AWS_ACCESS_KEY_ID=moto.access_key,
        AWS_SECRET_ACCESS_KEY=moto.secret_key,
    )

    def waiting() -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        attributes = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=names)["Attributes"]
        return sum(int(attributes[name]) for name in names)

    with stored(tmp_path, known, mosquitto.port, enabled=False):
        pass
    with Host(tmp_path, known, patch=SHORT) as host, hearing(mosquitto, *TOPICS) as listener:
        eventually(lambda: readiness(host) == (200, {"configured": False}))
        sqs.send_message(QueueUrl=queue, MessageBody=upload().decode())
        assert listener.silence(3.0) == []
        assert waiting() == 1
        assert host.metric("mqtt_publish_total") == 0
        assert host.metric("events_total") == 0
        Admin(host).put(mosquitto.port)
        assert listener.next().topic == TOPICS[0]
        eventually(lambda: waiting() == 0)
    sqs.close()
