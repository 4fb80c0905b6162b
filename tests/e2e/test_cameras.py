"""A camera's event, from two uploads to Home Assistant's topics and a picture in a browser, on either store."""

from __future__ import annotations

import base64
import json
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from infra.cli import app
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber
from tests.databases import new_key, new_sqlite
from tests.e2e.conftest import Build
from tests.e2e.world import CONFIGS, SETTLE_SECONDS, World, eventually, fresh_config

ADMIN = "the-administrators-token-0123456789"
PICTURE = bytes.fromhex("ffd8ffe000104a464946") + bytes(range(256)) * 40
USER, PASSWORD = "cameras", "let-me-in"


def with_cameras(directory: Path) -> dict[str, str]:
    """The host's variables beside the usual ones."""
    return {
        "EVENTS_PREFIX": "events/",
        "DEVICE_TOKEN_KEYS": f"2026:{base64.b64encode(bytes(range(32))).decode()}",
        "ADMIN_TOKENS": ADMIN,
        "DATABASE_URL": new_sqlite(directory),
        "ENCRYPTION_KEYS": new_key().get_secret_value(),
    }


def document(event_id: str, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """What a camera's software uploads."""
    return {
        "event_id": event_id,
        "camera_id": "front-door",
        "camera_name": "Front door",
        "description": "A person with a parcel",
        "objects_detected": ["person", "package"],
        "confidence": 0.93,
        "source_type": "camera",
        "smart_detection_type": "person",
        "timestamp": "2026-11-21T12:00:00.250Z",
        "zone": "porch",
        **changes,
    }


def put(world: World, event_id: str, *, picture: bytes | None = PICTURE, **changes: object) -> dict[str, Any]:
    """Upload an event as docs/cameras.md tells people to: the picture first."""
    fields = document(event_id, **changes)
    if picture is not None:
        world.put(f"events/front-door/{event_id}.jpg", picture)
    world.put(f"events/front-door/{event_id}.json", json.dumps(fields).encode())
    return fields


def opened(message: Received) -> tuple[str, bytes]:
    """Content type and bytes behind a message's link, as a browser gets them."""
    link = json.loads(message.payload)["thumbnail_url"]
    with urllib.request.urlopen(link, timeout=10) as answer:  # noqa: S310 - our own http URL
        return answer.headers["Content-Type"], answer.read()


def without_link(message: Received) -> dict[str, Any]:
    """The message's fields; that there is a link or null among them is part of it."""
    fields: dict[str, Any] = json.loads(message.payload)
    del fields["thumbnail_url"]
    return fields


@pytest.fixture
def world(build: Build, tmp_path: Path) -> World:
    """A host that knows of cameras, its broker from the environment."""
    return build(mqtt=with_cameras(tmp_path))


def test_an_event_rings_once_and_its_link_opens_the_picture(world: World) -> None:
    """All fields of the document and more, QoS 1, not retained; the picture itself does not ring."""
    fields = put(world, "e1")
    message = world.ear.next()
    assert (message.topic, message.qos, message.retain) == ("iotsupport/camera/front-door/event", 1, False)
    assert without_link(message) == fields
    assert opened(message) == ("image/jpeg", PICTURE)
    world.assert_silent()


def test_an_event_without_a_picture_says_so(world: World) -> None:
    """Its `thumbnail_url` is null."""
    put(world, "e2", picture=None)
    assert json.loads(world.ear.next().payload)["thumbnail_url"] is None


def test_a_document_that_is_no_event_is_counted_and_blocks_nothing(world: World) -> None:
    """The log names its field; the event after it rings, and so does a config."""
    put(world, "bad", confidence="high")
    put(world, "good")
    assert without_link(world.ear.next())["event_id"] == "good"
    name = fresh_config()
    world.put(f"configs/{name}")
    world.hear(name, topic=CONFIGS)
    assert eventually(lambda: world.metric("events_total", outcome="bad_detection") >= 1), world.last_words()
    assert any("confidence" in json.dumps(line) for line in world.log("WARNING", "ERROR"))


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that nobody has told the host of, with a password."""
    with Mosquitto(tmp_path / "other", users={USER: PASSWORD}) as other:
        yield other


def bucketbell_mqtt(world: World, *arguments: str) -> Result:
    """`bucketbell mqtt …` as from an administrator's shell."""
    variables = {
        "BUCKETBELL_SERVER": world.host.url,
        "BUCKETBELL_TOKEN": ADMIN,
        "BUCKETBELL_MQTT_PASSWORD": PASSWORD,
    }
    return CliRunner().invoke(app, ["mqtt", *arguments], env=variables)


def test_a_broker_is_set_by_the_api_alone_and_home_assistant_is_told(
    build: Build, broker: Mosquitto, tmp_path: Path
) -> None:
    """Discovery comes before the event, both stay at the broker and so do the settings; configs are as ever."""
    world = build(mqtt={**with_cameras(tmp_path), "MQTT_URL": ""})
    assert bucketbell_mqtt(world, "status").exit_code == 1
    arguments = ("--broker-host", "127.0.0.1", "--broker-port", str(broker.port), "--username", USER)
    tried = bucketbell_mqtt(world, "test", *arguments, "--password", "env")
    assert tried.exit_code == 0, tried.output
    more = ("--topic-prefix", "home", "--qos", "2", "--retain", "--discovery")
    stored = bucketbell_mqtt(world, "set", *arguments, "--password", "env", *more)
    assert stored.exit_code == 0, stored.output
    assert bucketbell_mqtt(world, "status").exit_code == 0

    with Subscriber(broker.url, ["#"], username=USER, password=PASSWORD) as ear:
        assert [(message.payload, message.retain) for message in ear.wait_for(1)] == [(b"online", True)]
        fields = put(world, "e3")
        discovery, event = ear.wait_for(2)
        name = fresh_config()
        world.put(f"configs/{name}")
        config = ear.next()
    assert discovery.topic == "homeassistant/device/bucketbell_front-door/config"
    assert (event.topic, event.qos, without_link(event)) == ("home/camera/front-door/event", 2, fields)
    assert (config.topic, config.qos, json.loads(config.payload)) == (CONFIGS, 1, {"filename": name})
    assert world.ear.silence(SETTLE_SECONDS) == []  # the other broker

    world.host.restart()
    with Subscriber(broker.url, ["home/camera/#", CONFIGS], username=USER, password=PASSWORD) as late:
        kept = late.next()
        assert late.silence(SETTLE_SECONDS) == []
    assert (kept.retain, kept.payload) == (True, event.payload)
    assert opened(kept) == ("image/jpeg", PICTURE)
    assert eventually(lambda: bucketbell_mqtt(world, "status").exit_code == 0)
