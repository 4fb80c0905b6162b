"""Topic, QoS and retaining of a camera's message are decided when it is sent: real host, MinIO and Mosquitto."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.fakes.broker import Kind
from tests.fakes.proxy import TcpProxy
from tests.hosts import Host, eventually
from tests.stored import SHORT, readiness, stored
from tests.yard import Yard, hearing, kept, ring, told

SLOW = (
    f"{SHORT}\nimport time\nfrom functions.stored.store import ConfigStore\nread = ConfigStore.load\n"
    "def load(store):\n    time.sleep(2)\n    return read(store)\nConfigStore.load = load"
)
"""A database that takes its time."""


@pytest.fixture
def yard(minio: Minio, tmp_path: Path) -> Yard:
    """An empty one, whose host keeps what waits for its broker for a while."""
    made = Yard(minio, tmp_path)
    made.environment["MQTT_PUBLISH_TIMEOUT_SECONDS"] = "20"
    return made


def topics(listener: Subscriber) -> set[tuple[str, int]]:
    """What was heard so far: on which topics, and at which QoS."""
    return {(message.topic, message.qos) for message in listener.messages}


def test_an_event_that_comes_before_the_stored_settings_are_known_goes_where_they_say(
    tmp_path: Path, mosquitto: Mosquitto, yard: Yard
) -> None:
    """There is such a moment at each start: at both doors events wait for it."""
    known = yard.environment | {"MQTT_URL": mosquitto.url}
    with stored(tmp_path, known, mosquitto.port, qos=2, retain_messages=True):
        pass
    with Host(tmp_path, known, ready=False, patch=SLOW) as host, hearing(mosquitto, "#") as listener:
        fast, sure = yard.detect(), yard.detect(camera_id="gate")
        assert host.post(told(yard, fast), "/events/fast").status_code == 202
        ring(host, yard, sure)
        listener.wait_for(2)
        assert listener.silence(0.3) == []
        assert topics(listener) == {("home/camera/front/event", 2), ("home/camera/gate/event", 2)}
    assert set(kept(mosquitto)) == {"home/camera/front/event", "home/camera/gate/event"}


def test_an_event_that_waited_for_its_broker_bears_the_settings_of_its_sending(
    tmp_path: Path, yard: Yard, mosquitto_binary: Path
) -> None:
    """Prefix and QoS as stored while it waited, and retained no more; updates for devices keep theirs."""
    del mosquitto_binary
    with ExitStack() as parts:
        old, new = (parts.enter_context(Mosquitto(tmp_path / name)) for name in ("old", "new"))
        host, admin = parts.enter_context(stored(tmp_path, yard.environment, old.port, retain_messages=True))
        eventually(lambda: readiness(host)[0] == 200)
        old.kill()
        eventually(lambda: not admin.connected())
        listener = parts.enter_context(hearing(new, "#"))
        assert host.post(told(yard, yard.detect()), "/events/fast").status_code == 202
        assert host.post(told(yard, "assets/a.bin"), "/events/fast").status_code == 202
        admin.put(new.port, qos=2, topic_prefix="house")
        listener.wait_for(2)
        assert topics(listener) == {("house/camera/front/event", 2), ("iotsupport/updates/assets", 1)}
        assert kept(new) == {}


def test_greetings_that_are_in_flight_do_not_follow_to_another_broker(
    tmp_path: Path, yard: Yard, mosquitto_binary: Path
) -> None:
    """They say where the host was: the new broker has birth messages of its own, each once."""
    del mosquitto_binary
    with ExitStack() as parts:
        old, new = (parts.enter_context(Mosquitto(tmp_path / name)) for name in ("old", "new"))
        proxy = parts.enter_context(TcpProxy("127.0.0.1", old.port))
        good: dict[str, object] = {"discovery_enabled": True}
        host, admin = parts.enter_context(stored(tmp_path, yard.environment, old.port, **good))
        eventually(lambda: readiness(host)[0] == 200)
        ring(host, yard, yard.detect())
        proxy.swallowed = {Kind.PUBACK}
        admin.put(proxy.port, **good)
        eventually(admin.connected)
        eventually(lambda: b"online" in kept(old, "home/bucketbell/#").values())
        listener = parts.enter_context(hearing(new, "#"))
        admin.put(new.port, **good | {"topic_prefix": "house", "discovery_prefix": "ha"})
        listener.wait_for(2)
        assert listener.silence(0.5) == []
        assert {topic.partition("/")[0] for topic, _ in topics(listener)} == {"house", "ha"}
