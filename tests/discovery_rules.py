"""What Home Assistant refuses in a device-discovery message, and in an update's state, as rules for tests.

They are those of Home Assistant 2025.4: most refuse the whole message with a line in its log, some one component only.
Stricter than Home Assistant: unknown keys inside a component, which are typos; a fraction in `off_delay`, which it cuts
off; a space in a topic of a component; a list of device classes that holds no more than cameras and devices need; an
update's state that leaves a field out, which would stay as it was.
"""

from __future__ import annotations

import json
import re
from typing import Any

MAX_STATE_CHARACTERS = 255
TOP_LEVEL = {
    "device",
    "origin",
    "components",
    "availability",
    "availability_mode",
    "availability_template",
    "availability_topic",
    "payload_available",
    "payload_not_available",
    "state_topic",
    "command_topic",
    "qos",
    "encoding",
}
DEVICE = {
    "identifiers",
    "connections",
    "manufacturer",
    "model",
    "model_id",
    "name",
    "hw_version",
    "serial_number",
    "sw_version",
    "via_device",
    "suggested_area",
    "configuration_url",
}
ORIGIN = {"name", "sw_version", "support_url"}
ATTRIBUTES = {"json_attributes_topic", "json_attributes_template"}
COMPONENT = {"platform", "unique_id", "name", "qos", "device_class"} | ATTRIBUTES
PLATFORMS = {
    "event": COMPONENT | {"state_topic", "value_template", "event_types"},
    "binary_sensor": COMPONENT | {"state_topic", "value_template", "off_delay", "payload_on", "payload_off"},
    "image": (COMPONENT - {"device_class"}) | {"url_topic", "url_template", "image_topic", "image_encoding"},
    "sensor": COMPONENT | {"state_topic", "value_template"},
    "update": COMPONENT | {"state_topic", "value_template", "command_topic", "payload_install", "title", "retain"},
}
DEVICE_CLASSES = {
    "event": {"button", "doorbell", "motion"},
    "binary_sensor": {"motion", "occupancy", "presence", "sound"},
    "sensor": {"timestamp", "date", "enum"},
    "update": {"firmware"},
}
NEEDED = {
    "event": "state_topic",
    "binary_sensor": "state_topic",
    "sensor": "state_topic",
    "update": "state_topic",
    "image": "url_topic",
}
UPDATE_TEXTS = ("installed_version", "latest_version", "title", "release_summary")
UPDATE_STATE = {*UPDATE_TEXTS, "in_progress", "update_percentage"}
MAX_PERCENTAGE = 100
DISCOVERY_TOPIC = re.compile(r"device/[a-zA-Z0-9_-]+/config")


def problems(topic: str, payload: bytes, *, discovery_prefix: str) -> list[str]:
    """Everything about this message that Home Assistant would refuse; none of it in a good one."""
    found = [] if DISCOVERY_TOPIC.fullmatch(topic.removeprefix(f"{discovery_prefix}/")) else [f"topic {topic!r}"]
    try:
        message = json.loads(payload.decode())
    except ValueError as error:
        return [*found, f"no JSON: {error}"]
    if not isinstance(message, dict):
        return [*found, "no object"]
    found += _unknown("message", message, TOP_LEVEL)
    found += _device(message.get("device")) + _origin(message.get("origin")) + _availability(message)
    components = message.get("components")
    if not isinstance(components, dict) or not components:
        return [*found, "no components"]
    for key, component in components.items():
        found += [f"{key}: {problem}" for problem in _component(component)]
    unique = [component.get("unique_id") for component in components.values()]
    return found + ([] if len(set(unique)) == len(unique) else ["a unique_id twice"])


def update_problems(payload: bytes) -> list[str]:
    """Everything about this state of an update that Home Assistant would refuse, or keep from the state before."""
    state = json.loads(payload)
    if not isinstance(state, dict):
        return ["no object"]
    found = _unknown("state", state, UPDATE_STATE) + [f"no {key}" for key in UPDATE_STATE - state.keys()]
    found += [f"{key} is no text" for key in UPDATE_TEXTS if not isinstance(state.get(key), str)]
    percentage = state.get("update_percentage")
    if percentage is not None and not (type(percentage) is int and 0 <= percentage <= MAX_PERCENTAGE):
        found.append("update_percentage")
    return found if isinstance(state.get("in_progress"), bool) else [*found, "in_progress is no truth"]


def _unknown(where: str, value: dict[str, Any], known: set[str]) -> list[str]:
    return [f"{where}: unknown key {key!r}" for key in value.keys() - known]


def _device(device: object) -> list[str]:
    if not isinstance(device, dict):
        return ["no device"]
    found = _unknown("device", device, DEVICE)
    if not (device.get("identifiers") or device.get("connections")):
        found.append("device: neither identifiers nor connections")
    if not _is_text(device.get("name")):
        found.append("device: no name")
    return found + _url("configuration_url", device)


def _origin(origin: object) -> list[str]:
    if not isinstance(origin, dict):
        return ["no origin"]
    found = _unknown("origin", origin, ORIGIN) + _url("support_url", origin)
    return found if _is_text(origin.get("name")) else [*found, "origin: no name"]


def _url(key: str, value: dict[str, Any]) -> list[str]:
    return [] if re.match("https?://[^/ ]+", value.get(key, "http://x")) else [f"{key} without a scheme"]


def _availability(message: dict[str, Any]) -> list[str]:
    availability = message.get("availability", [])
    if not isinstance(availability, list) or not all(isinstance(one, dict) for one in availability):
        return ["availability is no list of objects"]
    found = [] if message.get("availability_mode", "any") in {"all", "any", "latest"} else ["availability_mode"]
    for one in availability:
        keys = {"topic", "payload_available", "payload_not_available", "value_template"}
        found += _unknown("availability", one, keys) + _topic("availability", one.get("topic"))
    return found


def _component(component: object) -> list[str]:
    if not isinstance(component, dict):
        return ["no object"]
    platform = component.get("platform")
    if platform not in PLATFORMS:
        return [f"platform {platform!r}"]
    found = _unknown(platform, component, PLATFORMS[platform])
    if not re.fullmatch("[a-zA-Z0-9_-]+", str(component.get("unique_id", ""))):
        found.append("unique_id")
    if NEEDED[platform] not in component:
        found.append(f"no {NEEDED[platform]}")
    topics = {"state_topic", "url_topic", "image_topic", "json_attributes_topic", "command_topic"}
    for key in component.keys() & topics:
        found += _topic(key, component[key])
    if "device_class" in component and component["device_class"] not in DEVICE_CLASSES.get(platform, set()):
        found.append(f"device_class {component['device_class']!r}")
    if type(component.get("qos", 0)) is not int or component.get("qos", 0) not in {0, 1, 2}:
        found.append("qos")
    return found + _of_one_platform(component)


def _of_one_platform(component: dict[str, Any]) -> list[str]:
    found = []
    if component["platform"] == "event" and not component.get("event_types"):
        found.append("no event_types")
    if "command_topic" in component and not component.get("payload_install"):
        found.append("nothing to say on command_topic")  # Home Assistant finds that out when somebody installs
    if type(component.get("off_delay", 1)) is not int:
        found.append("off_delay is no integer")
    return found


def _topic(where: str, topic: object) -> list[str]:
    """MQTT 5 §4.7; and a wildcard would subscribe to other cameras' events."""
    if not isinstance(topic, str) or not topic or len(topic.encode()) > 65_535:
        return [f"{where} is no topic"]
    if re.search("[+# \x00-\x1f\x7f-\x9f\ufdd0-\ufdef\ufffe\uffff]", topic):
        return [f"{where} has a character that is not allowed: {topic!r}"]
    return []


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value) and len(value) <= MAX_STATE_CHARACTERS
