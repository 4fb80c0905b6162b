"""What the broker keeps of our cameras: each one's latest event, and nothing that the settings do not want."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from paho.mqtt.publish import single

from functions.settings import load
from functions.stored.model import MqttConfigChange
from functions.stored.store import ConfigStore
from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.hosts import Host, eventually
from tests.stored import PASSWORD, SHORT, USER, Admin, readiness, settings_of, stored
from tests.yard import DISCOVERY, Yard, hearing, kept, ring, told

EVENT = "home/camera/front/event"
NEVER = f"{SHORT}\nbroker_settings.RELOAD_SECONDS = 3600"
LONG_LOOK = (
    f"{SHORT}\nimport time\nfrom infra.host import camera_search as cameras\nread = cameras._prefixes\n"
    "def prefixes(*arguments):\n    time.sleep(3)\n    return read(*arguments)\ncameras._prefixes = prefixes"
)
"""A bucket in which it takes a while to find the cameras."""


@pytest.fixture
def yard(minio: Minio, tmp_path: Path) -> Yard:
    """An empty one."""
    return Yard(minio, tmp_path)


@pytest.fixture
def lasting(tmp_path: Path, mosquitto_binary: Path) -> Mosquitto:
    """A broker that keeps what it retains over a restart."""
    del mosquitto_binary
    return Mosquitto(tmp_path / "lasting", persistent=True)


def ago(**time: float) -> str:
    """A camera's timestamp of so long ago."""
    return (datetime.now(UTC) - timedelta(**time)).isoformat()


def event_ids(listener: Subscriber) -> list[str]:
    """The events that were heard, in order."""
    return [json.loads(message.payload)["event_id"] for message in listener.messages]


def save(yard: Yard, port: int, **changes: object) -> None:
    """Store settings while no host runs, as a function does."""
    store = ConfigStore.of(load(yard.environment).settings)
    assert store is not None
    store.save(MqttConfigChange.model_validate(settings_of(port, **changes)), expected_version=None)


def last_event(broker: Mosquitto) -> list[str]:
    """The event that the broker keeps of the camera."""
    with hearing(broker, EVENT) as listener:
        listener.silence(0.3)
        return event_ids(listener)


# Each camera's latest event.


def test_an_older_event_that_comes_later_is_heard_and_not_retained(
    tmp_path: Path, lasting: Mosquitto, yard: Yard
) -> None:
    """The broker was down for the first one, and the store brings it again after the second."""
    with ExitStack() as parts:
        parts.enter_context(lasting)
        host, admin = parts.enter_context(stored(tmp_path, yard.environment, lasting.port, retain_messages=True))
        eventually(lambda: readiness(host)[0] == 200)
        first, second = yard.detect(timestamp=ago(minutes=2)), yard.detect(timestamp=ago(minutes=1))
        lasting.kill()
        eventually(lambda: not admin.connected())
        delayed = told(yard, first)
        assert host.post(delayed).status_code == 503
        lasting.start()
        eventually(admin.connected)
        listener = parts.enter_context(hearing(lasting, EVENT))
        assert host.post(told(yard, second), "/events/fast").status_code == 202
        listener.wait_for(1)
        assert host.post(delayed).json() == {"outcomes": ["delivered"]}
        listener.wait_for(1)
        assert event_ids(listener) == ["e2", "e1"]
        assert last_event(lasting) == ["e2"]


def test_which_event_is_the_latest_is_learned_from_the_broker_at_each_start(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """Another process has published it, or we before a restart; whatever its size; and a newer one replaces it."""
    first, second = yard.detect(timestamp=ago(minutes=2)), yard.detect("x" * 100_000, timestamp=ago(minutes=1))
    with stored(tmp_path, yard.environment, mosquitto.port, retain_messages=True) as (host, _):
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, second)
        assert last_event(mosquitto) == ["e2"]
    with Host(tmp_path, yard.environment, ready=False, patch=SHORT) as host:
        assert host.post(told(yard, first)).json()["outcomes"] in (["delivered"], ["no_subscribers"])
        assert last_event(mosquitto) == ["e2"]
        ring(host, yard, yard.detect(timestamp=ago(seconds=1)))
        assert last_event(mosquitto) == ["e3"]


@pytest.mark.parametrize("restarted", [False, True])
def test_a_clock_that_is_far_ahead_blocks_no_later_event(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard, *, restarted: bool
) -> None:
    """A time more than five minutes ahead counts as now, as soon as it is heard of."""
    with ExitStack() as parts:
        host, _ = parts.enter_context(stored(tmp_path, yard.environment, mosquitto.port, retain_messages=True))
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect(timestamp="2099-01-01T00:00:00Z"))
        assert last_event(mosquitto) == ["e1"]
        if restarted:
            host.stop()
            host = parts.enter_context(Host(tmp_path, yard.environment, patch=SHORT))
            eventually(lambda: "what the broker keeps is known" in host.log)
        ring(host, yard, yard.detect(timestamp=ago(seconds=-1)))
        assert last_event(mosquitto) == ["e2"]


def test_a_broker_that_lets_nobody_read_keeps_the_latest_of_what_this_host_has_sent(
    tmp_path: Path, mosquitto_binary: Path, yard: Yard
) -> None:
    """Its rules know writing only: events are retained all the same, and the log says what is not known."""
    del mosquitto_binary
    rules = f"user {USER}\ntopic write #\nuser ear\ntopic read #"
    with ExitStack() as parts:
        broker = parts.enter_context(Mosquitto(tmp_path / "b", users={USER: PASSWORD, "ear": "ear"}, acl=rules))
        login: dict[str, object] = {"username": USER, "password": PASSWORD, "retain_messages": True}
        host, _ = parts.enter_context(stored(tmp_path, yard.environment, broker.port, **login))
        eventually(lambda: readiness(host)[0] == 200)
        first, second = yard.detect(timestamp=ago(minutes=2)), yard.detect(timestamp=ago(minutes=1))
        for key in (second, first):
            assert host.post(told(yard, key)).json()["outcomes"] in (["delivered"], ["no_subscribers"])
        with Subscriber(broker.url, [EVENT], username="ear", password="ear") as listener:
            listener.wait_for(1)
            assert event_ids(listener) == ["e2"]


# A camera that was removed.


@pytest.mark.parametrize("patch", [SHORT, NEVER], ids=["noted", "not noted"])
def test_a_removed_camera_stays_away_over_a_restart_until_its_next_event(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard, patch: str
) -> None:
    """Its documents are still in the bucket, where the host looks for cameras at its start.

    That an event brought it back, the host may have had no time to note.
    """
    with stored(tmp_path, yard.environment, mosquitto.port, discovery_enabled=True) as (host, admin):
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
        ring(host, yard, yard.detect("Gate", "gate"))
        assert admin.ask("DELETE", "cameras/front").status_code == 204
    gate = "homeassistant/device/bucketbell_gate/config"
    with hearing(mosquitto, "homeassistant/#") as listener, Host(tmp_path, yard.environment, patch=patch) as host:
        eventually(lambda: "cameras found in the bucket" in host.log)
        eventually(lambda: [one for one in listener.messages if not one.retain])
        listener.silence(0.3)
        assert set(kept(mosquitto, "homeassistant/#")) == {gate}
        ring(host, yard, yard.detect())
        assert set(kept(mosquitto, "homeassistant/#")) == {gate, DISCOVERY}
    with Host(tmp_path, yard.environment, patch=SHORT) as host:
        eventually(lambda: "cameras found in the bucket" in host.log and "what the broker keeps is known" in host.log)
        time.sleep(0.3)
        assert set(kept(mosquitto, "homeassistant/#")) == {gate, DISCOVERY}


def test_a_camera_can_be_removed_in_the_first_moments_after_a_start(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """Home Assistant shows it, and the host has not found it yet; nor does it come back when it is found."""
    with stored(tmp_path, yard.environment, mosquitto.port, discovery_enabled=True) as (host, admin):
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
    with Host(tmp_path, yard.environment, patch=LONG_LOOK) as host:
        admin = Admin(host)
        assert admin.ask("DELETE", "cameras/front").status_code == 204
        assert kept(mosquitto, "homeassistant/#") == {}
        eventually(lambda: "cameras found in the bucket" in host.log)
        assert admin.ask("DELETE", "cameras/nobody").status_code == 404
        assert kept(mosquitto, "homeassistant/#") == {}


def test_a_camera_that_one_host_removed_no_other_host_brings_back(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """Both know it, and both greet the broker after its restart."""
    (tmp_path / "other").mkdir()
    with ExitStack() as parts:
        host, admin = parts.enter_context(stored(tmp_path, yard.environment, mosquitto.port, discovery_enabled=True))
        other = parts.enter_context(Host(tmp_path / "other", yard.environment, patch=SHORT))
        for one in (host, other):
            eventually(lambda one=one: readiness(one)[0] == 200)  # type: ignore[misc]  # the default binds this one
            ring(one, yard, yard.detect())
        assert admin.ask("DELETE", "cameras/front").status_code == 204
        mosquitto.restart()
        eventually(lambda: len(kept(mosquitto, "home/bucketbell/#")) == 2)
        eventually(lambda: kept(mosquitto, "homeassistant/#") == {})
        ring(other, yard, yard.detect())
        assert set(kept(mosquitto, "homeassistant/#")) == {DISCOVERY}
        mosquitto.restart()
        eventually(lambda: set(kept(mosquitto, "homeassistant/#")) == {DISCOVERY})


# What the settings do not want any more.


@pytest.mark.parametrize("down", [False, True], ids=["while connected", "while the broker is down"])
@pytest.mark.parametrize(
    ("change", "left"),
    [
        ({"discovery_prefix": "ha"}, {"ha/device/bucketbell_front/config", EVENT}),
        ({"discovery_enabled": False}, {EVENT}),
        ({"topic_prefix": "house"}, {DISCOVERY}),
        ({"retain_messages": False}, {DISCOVERY}),
    ],
    ids=["another discovery prefix", "no discovery", "another topic prefix", "nothing retained"],
)
def test_what_was_retained_under_other_settings_is_taken_away(
    tmp_path: Path, lasting: Mosquitto, yard: Yard, change: dict[str, Any], left: set[str], *, down: bool
) -> None:
    """Another prefix, or switched off: Home Assistant would show a camera twice, or one that is dead."""
    good: dict[str, object] = {"discovery_enabled": True, "retain_messages": True}
    filters = ("homeassistant/#", "ha/#", "home/camera/#", "house/camera/#")
    with ExitStack() as parts:
        parts.enter_context(lasting)
        host, admin = parts.enter_context(stored(tmp_path, yard.environment, lasting.port, **good))
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
        assert set(kept(lasting, *filters)) == {DISCOVERY, EVENT}
        if down:
            lasting.kill()
            eventually(lambda: not admin.connected())
        admin.put(lasting.port, **good | change)
        if down:
            lasting.start()
        eventually(lambda: set(kept(lasting, *filters)) == left)


def test_what_other_settings_left_while_no_host_ran_is_taken_away_at_the_start(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """As long as the prefix is the same; and what another program retains is none of our business."""
    good: dict[str, object] = {"discovery_enabled": True, "retain_messages": True}
    other = {"components": {"event": {"state_topic": "other/camera/a/event"}}}
    foreign = {
        "homeassistant/device/bucketbell_other/config": json.dumps(other).encode(),
        "homeassistant/device/lamp/config": b"{}",
        "home/camera/lamp/event": b"on",
    }
    with stored(tmp_path, yard.environment, mosquitto.port, **good) as (host, _):
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
    for topic, payload in foreign.items():
        single(topic, payload, retain=True, port=mosquitto.port)
    save(yard, mosquitto.port, discovery_enabled=False, retain_messages=False)
    with Host(tmp_path, yard.environment, patch=SHORT):
        eventually(lambda: kept(mosquitto, "homeassistant/#", "home/camera/#") == foreign)


def test_a_camera_can_be_removed_while_discovery_is_off(tmp_path: Path, mosquitto: Mosquitto, yard: Yard) -> None:
    """It leaves nothing behind, and is not a conflict."""
    with stored(tmp_path, yard.environment, mosquitto.port, retain_messages=True) as (host, admin):
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
        assert set(kept(mosquitto)) == {EVENT}
        assert admin.ask("DELETE", "cameras/front").status_code == 204
        assert kept(mosquitto) == {}
