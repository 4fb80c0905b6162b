"""The host with Home Assistant switched on, at brokers whose rules know the devices' topics only."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.databases import new_sqlite
from tests.fakes.broker import Behaviour, FakeBroker, Packet
from tests.hosts import TOPICS, Host, eventually, upload
from tests.stored import PASSWORD, SHORT, USER, readiness, stored, storing
from tests.yard import DISCOVERY, Yard, kept, ring

RENAMED = "import socket\nsocket.gethostname = lambda: '{}'\n"
QUICK = f"""{SHORT}
from infra.host import replicas
from infra.host.mqtt import birth_messages
birth_messages.RETRY_SECONDS = replicas.GONE_SECONDS = 1.0
"""
DEVICES_ONLY = f"user {USER}\ntopic write iotsupport/#\ntopic read #\ntopic write the-end/#\n"


@pytest.fixture
def yard(minio: Minio, tmp_path: Path) -> Yard:
    """An empty one."""
    return Yard(minio, tmp_path)


def is_forbidden(publish: Packet) -> bool:
    """By rules that know the devices' topics only."""
    return not publish.topic.startswith("iotsupport/")


@pytest.mark.parametrize(
    ("protocol", "behaviour"),
    [
        ("3.1.1", Behaviour(closes_on=is_forbidden)),
        ("5", Behaviour(closes_on=is_forbidden)),
        ("5", Behaviour(closes_on=is_forbidden, disconnect_reason=0x87)),
        ("5", Behaviour(will_reason=0x87, puback_reason=lambda one: 0x87 if is_forbidden(one) else 0)),
        ("5", Behaviour(retain_available=False)),
        ("5", Behaviour(maximum_qos=0)),
    ],
    ids=["closes, 3.1.1", "closes", "says goodbye", "refuses", "keeps nothing", "QoS 0"],
)
def test_uploads_ring_whatever_the_broker_thinks_of_home_assistant(
    tmp_path: Path, mosquitto_binary: Path, behaviour: Behaviour, protocol: str
) -> None:
    """Each of them, with at most a moment's wait, and the host says that it is ready."""
    del mosquitto_binary
    with FakeBroker(script=[behaviour]) as broker:
        known = storing(new_sqlite(tmp_path), MQTT_PROTOCOL=protocol)
        with stored(tmp_path, known, broker.port, discovery_enabled=True) as (host, _):
            eventually(lambda: readiness(host)[0] == 200)
            for number in range(15):
                eventually(lambda n=number: host.post(upload(f"assets/{n}")).status_code == 200)  # type: ignore[misc]  # this round's
            rang = {packet.payload for packet in broker.publishes if packet.topic == TOPICS[1]}
            assert len(rang) == 15


def test_where_online_is_forbidden_cameras_are_not_said_to_be_away(
    tmp_path: Path, mosquitto_binary: Path, yard: Yard
) -> None:
    """Discovery names no availability topic then; with the right it does, without a restart. The status tells why."""
    del mosquitto_binary
    acl = DEVICES_ONLY + "topic write homeassistant/#\ntopic write home/camera/#\n"
    with Mosquitto(tmp_path / "broker", users={USER: PASSWORD}, acl=acl) as broker:
        changes: dict[str, object] = {"discovery_enabled": True, "username": USER, "password": PASSWORD}
        with stored(tmp_path, yard.environment, broker.port, QUICK, **changes) as (host, admin):
            eventually(lambda: readiness(host)[0] == 200)
            ring(host, yard, yard.detect())
            assert b"availability" not in kept(broker, DISCOVERY)[DISCOVERY]
            topics = {one["topic"]: one for one in admin.status()["topics"]}
            refused = topics["home/bucketbell/replica/availability"]
            assert (refused["accepted"], refused["reason_code"]) == (False, 0x87)
            assert topics["homeassistant/device/+/config"]["accepted"]
            assert topics["camera/+/event"]["accepted"]
            (warning,) = [line for line in host.lines("WARNING") if "Home Assistant" in line["message"]]
            assert warning["topic"] == "home/bucketbell/replica/availability"
            broker.set_acl(f"user {USER}\ntopic readwrite #\n")
            broker.reload()
            eventually(lambda: b"availability" in kept(broker, DISCOVERY)[DISCOVERY])
            assert b"online" in kept(broker, "home/bucketbell/#").values()


def test_discovery_that_is_forbidden_costs_no_cameras_event(tmp_path: Path, mosquitto_binary: Path, yard: Yard) -> None:
    """It is tried once, not before each event; asked for by a person it is tried again."""
    del mosquitto_binary
    acl = DEVICES_ONLY + "topic write home/#\n"
    with Mosquitto(tmp_path / "broker", users={USER: PASSWORD}, acl=acl) as broker:
        changes: dict[str, object] = {"discovery_enabled": True, "username": USER, "password": PASSWORD}
        with stored(tmp_path, yard.environment, broker.port, **changes) as (host, admin):
            eventually(lambda: readiness(host)[0] == 200)
            for _ in range(3):
                ring(host, yard, yard.detect())
            assert broker.log_text().count(f"'{DISCOVERY}'") == 1
            broker.set_acl(f"user {USER}\ntopic readwrite #\n")
            broker.reload()
            assert admin.ask("POST", "publish-discovery").json() == {"cameras": 1}
            eventually(lambda: DISCOVERY in kept(broker, DISCOVERY))


def test_each_start_under_another_name_leaves_nothing_at_the_broker(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """As in containers: what is kept of a host that has gone, killed or not, goes soon; cameras name who is there."""
    topics = ("home/bucketbell/+/availability",)
    with stored(tmp_path, yard.environment, mosquitto.port, RENAMED.format("one") + QUICK, discovery_enabled=True) as (
        host,
        _,
    ):
        eventually(lambda: list(kept(mosquitto, *topics).values()) == [b"online"])
        host.stop()
    assert list(kept(mosquitto, *topics).values()) == [b"offline"]
    with Host(tmp_path, yard.environment, patch=RENAMED.format("two") + QUICK) as host:
        eventually(lambda: list(kept(mosquitto, *topics).values()) == [b"online"])
        host.child.kill()
        eventually(lambda: list(kept(mosquitto, *topics).values()) == [b"offline"])
    with Host(tmp_path, yard.environment, patch=RENAMED.format("three") + QUICK) as host:
        ring(host, yard, yard.detect())
        eventually(lambda: list(kept(mosquitto, *topics).values()) == [b"online"])
        with Subscriber(mosquitto.url, (DISCOVERY,)) as listener:
            (topic,) = kept(mosquitto, *topics)
            message = listener.next()
            assert topic.startswith("home/bucketbell/three")
            assert message.payload.count(b"/availability") == 1
