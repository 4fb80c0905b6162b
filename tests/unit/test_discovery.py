"""Cameras in Home Assistant: every message keeps its rules, whatever a camera is called."""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import jinja2
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2.sandbox import ImmutableSandboxedEnvironment

from functions.cameras.discovery import (
    ACTIVE_SECONDS,
    EVENT_TYPES,
    MAX_ID_CHARACTERS,
    MAX_LEVEL_BYTES,
    MAX_NAME_CHARACTERS,
    STALE_SECONDS,
    VERSION,
    availability_topic,
    camera_topic,
    discovery,
    display_name,
    object_id,
    removed,
)
from functions.cameras.message import Camera
from functions.mqtt.message import Message
from tests.discovery_rules import problems

FRONT = Camera("front", "Front door")
REPLICAS = (availability_topic("home", "host-a"), availability_topic("home", "host-b"))
AWKWARD_IDS = [
    "",
    " ",
    "front door",
    "+",
    "#",
    "a/b",
    "$SYS",
    "Einfahrt Süd",
    "AA:BB:CC:DD:EE:FF",
    "192.168.1.5",
    "\x00",
    "\ud800",
    "\ufeff",
    "\U0001f3a5",
    "x" * 1024,
    "ü" * 500,
]
EVENT: Mapping[str, Any] = {
    "event_id": "0b6c",
    "camera_id": "front",
    "camera_name": "Front door",
    "description": "A person at the door. " * 50,
    "objects_detected": ["person"],
    "confidence": 0.97,
    "source_type": "camera",
    "smart_detection_type": "person",
    "timestamp": "2026-11-20T12:00:00Z",
    "thumbnail_url": "https://bell.example/thumbnail.jpg",
}


def announced(camera: Camera = FRONT, **changes: Any) -> Message:  # noqa: ANN401 - passed on as they are
    """The discovery message of `camera`, of a host with two replicas unless said otherwise."""
    return discovery(
        camera,
        **{
            "topic_prefix": "home",
            "discovery_prefix": "homeassistant",
            "availability_topics": REPLICAS,
            **changes,
        },
    )


def message(notification: Message) -> Any:  # noqa: ANN401 - JSON
    """What Home Assistant reads."""
    return json.loads(notification.payload)


def rendered(template: str, payload: Mapping[str, Any], now: datetime | None = None) -> str:
    """What Home Assistant makes of an event: its templates are Jinja's in a sandbox, with these additions."""

    def as_timestamp(value: datetime | str, default: float = 0.0) -> float:
        try:
            return datetime.fromisoformat(str(value)).timestamp()
        except ValueError:
            return default

    jinja = ImmutableSandboxedEnvironment()
    jinja.filters["to_json"] = json.dumps
    jinja.globals.update(as_timestamp=as_timestamp, now=lambda: now or datetime.now(UTC))
    return jinja.from_string(template).render(value=json.dumps(payload), value_json=payload).strip()


def rules_broken(notification: Message, discovery_prefix: str = "homeassistant") -> list[str]:
    """What Home Assistant would refuse."""
    return problems(notification.topic, notification.payload, discovery_prefix=discovery_prefix)


def test_a_camera_is_an_event_an_activity_a_picture_and_a_time() -> None:
    """One device with four entities, all of them fed by the camera's one topic."""
    described = message(announced())
    assert described["device"]["identifiers"] == ["bucketbell_front"]
    assert described["device"]["name"] == "Front door"
    assert described["origin"] == {"name": "bucketbell", "sw_version": VERSION}
    assert {key: component["platform"] for key, component in described["components"].items()} == {
        "event": "event",
        "activity": "binary_sensor",
        "thumbnail": "image",
        "timestamp": "sensor",
    }
    topics = {component.get("state_topic") or component["url_topic"] for component in described["components"].values()}
    assert topics == {"home/camera/front/event"}
    assert described["components"]["activity"]["off_delay"] == ACTIVE_SECONDS


def test_the_message_is_retained_on_its_own_topic_with_a_bounded_label() -> None:
    """Home Assistant finds it after its own restart, and metrics do not grow with the cameras."""
    notification = announced(qos=2)
    assert notification.topic == "homeassistant/device/bucketbell_front/config"
    assert notification.retain
    assert notification.qos == 2
    assert notification.metric_topic == "homeassistant/device/+/config"
    assert {component["qos"] for component in message(notification)["components"].values()} == {2}


def test_any_replica_keeps_the_cameras_available() -> None:
    """Each has a topic of its own; none twice."""
    described = message(announced(availability_topics=(*REPLICAS, REPLICAS[0])))
    assert described["availability_mode"] == "any"
    assert described["availability"] == [
        {"topic": "home/bucketbell/host-a/availability"},
        {"topic": "home/bucketbell/host-b/availability"},
    ]


def test_without_replicas_a_camera_is_always_available() -> None:
    """On Lambda nobody could say otherwise."""
    assert not {"availability", "availability_mode"} & message(announced(availability_topics=())).keys()


def test_the_version_is_the_projects() -> None:
    """There is no package metadata where the functions are deployed."""
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8"))
    assert project["project"]["version"] == VERSION


def test_a_removed_camera_leaves_nothing_behind() -> None:
    """An empty retained message: Home Assistant removes the device, the broker what it kept."""
    notification = removed("front", "homeassistant", qos=2)
    assert notification.topic == announced().topic
    assert notification.payload == b""
    assert notification.retain
    assert notification.qos == 2


@pytest.mark.parametrize("retained", [False, True])
@pytest.mark.parametrize("camera_id", ["front", *AWKWARD_IDS])
def test_no_camera_breaks_the_rules(camera_id: str, retained: bool) -> None:  # noqa: FBT001 - a parameter of the test
    """Home Assistant refuses nothing, whatever the camera is called."""
    camera = Camera(camera_id, camera_id * 2)
    assert not rules_broken(announced(camera, retained=retained, support_url="https://bell.example"))


@given(st.text(), st.text())
def test_no_name_breaks_the_rules(camera_id: str, name: str) -> None:
    """Nor does any other text."""
    assert not rules_broken(announced(Camera(camera_id, name)))


@given(st.text(), st.text())
def test_two_cameras_never_meet(one: str, other: str) -> None:
    """Neither in Home Assistant nor on a topic."""
    assert (object_id(one) == object_id(other)) is (one == other)
    assert (camera_topic("home", one) == camera_topic("home", other)) is (one == other)


@pytest.mark.parametrize("camera_id", AWKWARD_IDS)
def test_a_coded_id_cannot_be_taken_by_another_camera(camera_id: str) -> None:
    """A camera that is named as another one's code is coded itself."""
    code = object_id(camera_id).removeprefix("bucketbell_")
    level = camera_topic("home", camera_id).split("/")[2]
    assert object_id(code) != object_id(camera_id)
    assert level == camera_id or camera_topic("home", level) != camera_topic("home", camera_id)


@pytest.mark.parametrize("camera_id", ["front", "front_door-2", "0b6cb5c5-5b4e-4b5e-8c55-8f2f8f6c2f9a", "A" * 64])
def test_a_plain_id_stays_readable(camera_id: str) -> None:
    """It is used as it is, everywhere."""
    assert object_id(camera_id) == f"bucketbell_{camera_id}"
    assert camera_topic("home", camera_id) == f"home/camera/{camera_id}/event"


@pytest.mark.parametrize("camera_id", ["Einfahrt-Süd", "192.168.1.5", "AA:BB:CC:DD:EE:FF", "🎥"])
def test_a_topic_keeps_an_id_that_mqtt_allows(camera_id: str) -> None:
    """Home Assistant's own ids are narrower than topics."""
    assert camera_topic("home", camera_id) == f"home/camera/{camera_id}/event"
    assert object_id(camera_id) != f"bucketbell_{camera_id}"


@pytest.mark.parametrize("camera_id", AWKWARD_IDS)
def test_an_id_is_bounded_and_its_topic_has_four_levels(camera_id: str) -> None:
    """Whatever the length of the object key."""
    assert re.fullmatch(rf"bucketbell_[A-Za-z0-9_-]{{1,{MAX_ID_CHARACTERS}}}", object_id(camera_id))
    levels = camera_topic("home", camera_id).split("/")
    assert len(levels) == 4
    assert 0 < len(levels[2].encode()) <= MAX_LEVEL_BYTES


@pytest.mark.parametrize(
    ("camera", "shown"),
    [
        (Camera("front", " Front\n\tdoor "), "Front door"),
        (Camera("front"), "front"),
        (Camera("front", "\x00\x1b"), "front"),
        (Camera("front", "Tür \ud800"), "Tür ?"),
        (Camera("front", "n" * 300), "n" * (MAX_NAME_CHARACTERS - 1) + "…"),
        (Camera("\x00", ""), object_id("\x00")),
    ],
)
def test_a_name_is_one_short_line(camera: Camera, shown: str) -> None:
    """The id stands in for a camera without a name."""
    assert display_name(camera) == shown


@pytest.mark.parametrize(
    ("smart", "source", "event_type"),
    [
        ("person", "camera", "person"),
        ("Vehicle", "camera", "vehicle"),
        (None, "RING", "ring"),
        ("dragon", "camera", "detection"),
        (None, None, "detection"),
        ("dragon", "motion", "motion"),
    ],
)
def test_every_event_is_of_a_listed_type(smart: str | None, source: str | None, event_type: str) -> None:
    """Home Assistant refuses an event of any other type; all else of it arrives whole, as attributes."""
    component = message(announced())["components"]["event"]
    event = {**EVENT, "smart_detection_type": smart, "source_type": source, "event_type": "the document's own"}
    seen = json.loads(rendered(component["value_template"], event))
    assert seen.pop("event_type") == event_type
    assert event_type in component["event_types"] == list(EVENT_TYPES)
    assert seen == {key: value for key, value in event.items() if key != "event_type"}


def test_a_long_description_is_an_attribute_never_a_state() -> None:
    """States end at 255 characters: every one of them is short, and the text is whole beside the time."""
    components = message(announced())["components"]
    states = [rendered(components[key]["value_template"], EVENT) for key in ("activity", "timestamp")]
    assert states == ["ON", "2026-11-20T12:00:00Z"]
    assert len(EVENT["description"]) > 255
    assert components["timestamp"]["json_attributes_topic"] == components["timestamp"]["state_topic"]
    assert "json_attributes_template" not in components["timestamp"]


def test_an_old_event_that_was_retained_is_no_activity() -> None:
    """Home Assistant's restart would see somebody at the door again."""
    template = message(announced(retained=True))["components"]["activity"]["value_template"]
    at = datetime.fromisoformat(EVENT["timestamp"])
    assert rendered(template, EVENT, now=at + timedelta(seconds=STALE_SECONDS - 1)) == "ON"
    assert rendered(template, EVENT, now=at + timedelta(seconds=STALE_SECONDS + 1)) == "OFF"


def test_an_event_without_a_picture_leaves_the_last_one() -> None:
    """The template fails, which Home Assistant takes for nothing new; a text that is no URL would be an error."""
    template = message(announced())["components"]["thumbnail"]["url_template"]
    assert rendered(template, EVENT) == EVENT["thumbnail_url"]
    with pytest.raises(TypeError):
        rendered(template, {**EVENT, "thumbnail_url": None})


@pytest.mark.parametrize("key", ["event", "activity", "thumbnail", "timestamp"])
def test_templates_are_jinja(key: str) -> None:
    """Home Assistant refuses a component whose template does not compile."""
    component = message(announced(retained=True))["components"][key]
    jinja2.Environment(autoescape=True).parse(component.get("value_template") or component["url_template"])


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("~",), "home", "unknown key '~'"),
        (("device",), None, "no device"),
        (("device", "identifiers"), [], "neither identifiers nor connections"),
        (("device", "configuration_url"), "bell.example", "without a scheme"),
        (("origin",), None, "no origin"),
        (("origin", "name"), "", "origin: no name"),
        (("components",), {}, "no components"),
        (("components", "event", "platform"), "", "platform"),
        (("components", "event", "unique_id"), "a b", "unique_id"),
        (("components", "event", "unique_id"), "bucketbell_front_activity", "a unique_id twice"),
        (("components", "event", "event_types"), [], "no event_types"),
        (("components", "event", "device_class"), "cat", "device_class"),
        (("components", "event", "state_topic"), "home/camera/front door/event", "not allowed"),
        (("components", "activity", "off_delay"), 30.5, "off_delay"),
        (("components", "thumbnail", "content_type"), "image/jpeg", "content_type"),
        (("availability",), [{"topic": "home/+/availability"}], "not allowed"),
    ],
)
def test_the_rules_find_what_home_assistant_refuses(path: tuple[str, ...], value: object, words: str) -> None:
    """What the tests above stand on."""
    broken = message(announced())
    inner = broken
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    found = problems(announced().topic, json.dumps(broken).encode(), discovery_prefix="homeassistant")
    assert any(words in problem for problem in found), found


@pytest.mark.parametrize(
    "topic", ["homeassistant/device/a b/config", "homeassistant/camera/a/config", "device/ü/config"]
)
def test_the_rules_find_a_bad_topic(topic: str) -> None:
    """Home Assistant does not read those."""
    assert problems(topic, announced().payload, discovery_prefix="homeassistant")
