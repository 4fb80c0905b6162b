"""DEVICE_TOPICS: configs on their devices' own topics, by the real host and the Lambda's notifier, over Mosquitto."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.notifier import Notifier
from functions.settings import load
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from infra.subscriber import Subscriber
from tests.fleet import MAC, OTHER, FleetRig, ask
from tests.hosts import Host, event, eventually, exactly, record
from tests.stored import ADMIN

CONFIG, ASSET = f"configs/{MAC.upper()}.json", "assets/fw.bin"
CONFIGS, ASSETS = "iotsupport/updates/configs", "iotsupport/updates/assets"
OWN, OWN_OF_OTHER = (f"iotsupport/devices/{mac}/updates" for mac in (MAC, OTHER))
LABEL = "devices/+/updates"
FORBIDDEN = "topic read #\ntopic write iotsupport/updates/#\n"
COMMAND = Path(sys.executable).with_name("bucketbell")

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


@pytest.fixture
def rig(tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto) -> FleetRig:
    """A device's config and an asset, in a bucket."""
    rig = FleetRig(tmp_path, moto, mosquitto)
    rig.put(CONFIG)
    rig.put(ASSET)
    return rig


@pytest.fixture
def strict(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that forbids devices' own topics to us."""
    with Mosquitto(tmp_path / "strict", acl=FORBIDDEN) as broker:
        yield broker


def identity(message: Received) -> str:
    """The event's."""
    return dict(message.user_properties)["id"]


def published(host: Host, topic: str, status: str) -> float:
    """How many messages were."""
    return host.metric("mqtt_publish_total", topic=topic, status=status)


def test_a_config_is_announced_twice_with_one_id(rig: FleetRig) -> None:
    """To all, and to its device; assets as ever. Metrics have one name for all devices' topics, from the start."""
    with rig.host(DEVICE_TOPICS="on") as host, Subscriber(rig.broker.url, ["iotsupport/#"]) as ear:
        assert published(host, LABEL, "success") == 0
        assert f'topic="{LABEL}"' in host.http.get("/metrics").text
        assert host.post(event(record(CONFIG), record(ASSET))).json() == {"outcomes": ["delivered"] * 2}
        messages = {one.topic: one for one in exactly(3, ear)}
        assert messages.keys() == {CONFIGS, OWN, ASSETS}
        assert messages[OWN].payload == messages[CONFIGS].payload
        assert identity(messages[OWN]) == identity(messages[CONFIGS])
        eventually(lambda: published(host, LABEL, "success") == 1)
        assert MAC not in host.http.get("/metrics").text
        found = ask(host, f"/why?key={CONFIG}")
        assert (found["route"]["topic"], found["route"]["device_topic"]) == (CONFIGS, OWN)


def test_with_only_a_config_goes_to_its_device_alone(rig: FleetRig) -> None:
    """Which is said at the start, since devices may listen elsewhere."""
    with rig.host(DEVICE_TOPICS="only") as host, Subscriber(rig.broker.url, ["iotsupport/#"]) as ear:
        assert [line["variable"] for line in host.lines("WARNING") if "own topics only" in line["message"]] == [
            "DEVICE_TOPICS"
        ]
        assert host.post(event(record(CONFIG), record(ASSET))).json() == {"outcomes": ["delivered"] * 2}
        assert {one.topic for one in exactly(2, ear)} == {OWN, ASSETS}
        assert f'topic="{CONFIGS}"' not in host.http.get("/metrics").text


def test_a_broker_that_forbids_devices_topics_costs_no_event(rig: FleetRig, strict: Mosquitto) -> None:
    """The broadcast settles it; the other leg is counted, and said once."""
    with (
        rig.host(DEVICE_TOPICS="on", MQTT_URL=strict.url) as host,
        Subscriber(strict.url, ["iotsupport/#"]) as ear,
    ):
        for _ in range(3):
            assert host.post(event(record(CONFIG))).json() == {"outcomes": ["delivered"]}
        assert {one.topic for one in exactly(3, ear)} == {CONFIGS}
        eventually(lambda: published(host, LABEL, "failure") == 3)
        assert len([line for line in host.lines("WARNING") if "own topic" in line["message"]]) == 1
        assert host.metric("events_total", source="sure", outcome="delivered") == 3


def test_any_file_is_announced_to_one_device_by_hand(rig: FleetRig) -> None:
    """With a new id each time, on its own topic only; by API and command; for all others it has not rung."""
    with rig.host(DEVICE_TOPICS="on") as host, Subscriber(rig.broker.url, ["iotsupport/#"]) as ear:
        first = ask(host, "/ring", "POST", json={"key": ASSET, "device": MAC.upper().replace("-", ":")})
        assert (first["ok"], first["topic"]) == (True, OWN)
        (message,) = exactly(1, ear)
        assert (message.topic, message.payload) == (OWN, b'{"filename": "fw.bin"}')
        assert identity(message) == first["id"]
        environment = os.environ | {"BUCKETBELL_TOKEN": ADMIN, "BUCKETBELL_SERVER": host.url}
        command = [str(COMMAND), "ring", "fw.bin", "--device", OTHER, "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout)
        assert (said["topic"], said["id"] != first["id"]) == (OWN_OF_OTHER, True)
        assert exactly(1, ear)[0].topic == OWN_OF_OTHER
        assert ask(host, f"/why?key={ASSET}")["events"] == []
        assert ask(host, "/uploads")["uploads"] == []
        assert host.metric("events_total", source="ring") == 2
        assert ask(host, "/ring", "POST", json={"key": ASSET, "device": "nobody"}) == 422
        assert ask(host, "/ring", "POST", json={"key": ASSET, "device": 7}) == 422
        assert ask(host, "/ring", "POST", json={"key": "assets/gone", "device": MAC}) == 404
        assert ear.silence(0.3) == []


def test_without_device_topics_one_device_cannot_be_told(rig: FleetRig) -> None:
    """409, with what to set."""
    with rig.host() as host:
        headers = {"Authorization": f"Bearer {ADMIN}"}
        answer = host.http.post("/api/v1/ring", json={"key": ASSET, "device": MAC}, headers=headers)
        assert answer.status_code == 409
        assert "DEVICE_TOPICS=on" in answer.json()["detail"]


def batch(*keys: str) -> dict[str, Any]:
    """A batch of the queue, a message for each key."""
    bodies = [json.dumps({"Records": [record(key, sequencer="01")]}) for key in keys]
    return {
        "Records": [{"messageId": f"m{n}", "eventSource": "aws:sqs", "body": body} for n, body in enumerate(bodies)]
    }


def test_the_function_announces_configs_to_their_devices(
    mosquitto: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, also when the queue brings the event again; counted under one name."""
    with Subscriber(mosquitto.url, ["iotsupport/#"]) as ear:
        notifier = Notifier(load({"MQTT_URL": mosquitto.url, "DEVICE_TOPICS": "on"}).settings)
        assert notifier.handle(batch(CONFIG, ASSET), 30) == {"batchItemFailures": []}
        assert sorted(one.topic for one in exactly(3, ear)) == [OWN, ASSETS, CONFIGS]
        assert notifier.handle(batch(CONFIG), 30) == {"batchItemFailures": []}
        assert [one.topic for one in exactly(1, ear)] == [CONFIGS]
        notifier.close()
    printed = capsys.readouterr().out
    assert LABEL in printed
    assert OWN not in printed


def test_the_function_loses_no_event_over_a_forbidden_second_message(
    strict: Mosquitto, capsys: pytest.CaptureFixture[str]
) -> None:
    """The queue is told that all is done."""
    with Subscriber(strict.url, ["iotsupport/#"]) as ear:
        notifier = Notifier(load({"MQTT_URL": strict.url, "DEVICE_TOPICS": "on"}).settings)
        assert notifier.handle(batch(CONFIG), 30) == {"batchItemFailures": []}
        assert [one.topic for one in exactly(1, ear)] == [CONFIGS]
        notifier.close()
    assert '"status": "failure"' in capsys.readouterr().out


def test_the_function_settles_an_event_by_its_only_message(strict: Mosquitto) -> None:
    """With `only` a forbidden topic keeps the event in the queue, for a person."""
    notifier = Notifier(load({"MQTT_URL": strict.url, "DEVICE_TOPICS": "only"}).settings)
    assert notifier.handle(batch(CONFIG, ASSET), 30) == {"batchItemFailures": [{"itemIdentifier": "m0"}]}
    notifier.close()
