"""Pure: a device on a channel as Home Assistant's `update` entity, made of what the fleet knows of it.

The rules are those of https://www.home-assistant.io/integrations/update.mqtt/; what Home Assistant does with a message
that breaks one was tried against Home Assistant 2025.4.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from functions.cameras.discovery import OBJECT_PREFIX, VERSION, discovery_label
from functions.events.names import is_mac
from functions.fleet.channels import channel, choose, stem, version
from functions.fleet.reports import HAS_IT
from functions.fleet.standing import standing
from functions.mqtt.message import Message

if TYPE_CHECKING:
    from functions.fleet.standing import KnownDevice, LastReport, Standing

INSTALL = "install"
"""The last level of the topic on which somebody asks for a device's update, and what is said there."""
MAX_SUMMARY_CHARACTERS = 255  # Home Assistant shows no more
MAX_VERSION_CHARACTERS = 64
ETAG_CHARACTERS = 8
UNTOLD = "unknown"
"""In place of a version: nobody has told which the device has. Home Assistant takes no null."""

_STATE = "versions"
STATE_LABEL = f"devices/+/{_STATE}"
"""What metrics call the topics of states."""

_DOTTED = re.compile(r"\d+(?:\.\d+)*", re.ASCII)

_encode = json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


class HomeAssistantTopics:
    """Where the messages about a device are. MACs are in lower case."""

    def __init__(self, topic_prefix: str, discovery_prefix: str, *, installs: bool) -> None:
        """`installs`: whether Home Assistant may ask for a device's update."""
        self.topic_prefix, self.discovery_prefix = topic_prefix, discovery_prefix
        self.installs = installs
        self._begins = f"{discovery_prefix}/device/{OBJECT_PREFIX}", f"{topic_prefix}/devices/"

    def of_device(self, mac: str, kind: str) -> str:
        """Beside the device's own topics."""
        return f"{self.topic_prefix}/devices/{mac}/{kind}"

    def discovery(self, mac: str) -> str:
        """Where its discovery message is retained."""
        return f"{self.discovery_prefix}/device/{OBJECT_PREFIX}{mac}/config"

    def of(self, mac: str) -> tuple[str, str]:
        """The topics of all that is retained about a device: first what the other tells of."""
        return self.of_device(mac, _STATE), self.discovery(mac)

    @property
    def filters(self) -> tuple[str, str]:
        """The same of all devices, to subscribe to; cameras have theirs among them."""
        return self.of_device("+", _STATE), f"{self.discovery_prefix}/device/+/config"

    def mac(self, topic: str) -> str:
        """Of which device a topic is; "" where it is none of these."""
        for begin in self._begins:
            found = topic.removeprefix(begin).partition("/")[0]
            if topic.startswith(begin) and is_mac(found) and topic in self.of(found):
                return found
        return ""

    def message(self, topic: str, payload: bytes) -> Message:
        """What is retained there from now on; with an empty payload nothing."""
        label = discovery_label(self.discovery_prefix) if topic.startswith(self._begins[0]) else STATE_LABEL
        return Message(topic, payload, qos=1, retain=True, label=label)


def update_payloads(
    device: KnownDevice,
    reports: Sequence[LastReport],
    current: Mapping[str, str],
    etag: Callable[[str], str],
    topics: HomeAssistantTopics,
) -> dict[str, bytes]:
    """What is to be retained of a device, by topic, in the order of publishing; nothing where it has no channel.

    `reports` are its last of each file, the newest first; `etag` is that of a file as it is now.
    """
    choice = choose(device.assigned, device.follows, current)
    if choice is None or not channel(choice.filename):
        return {}
    said = next((one for one in reports if one.filename == choice.filename), None)
    now = etag(choice.filename)
    at = standing(
        None if said is None else said.state,
        is_current=said is not None and said.etag == now,
        is_online=device.is_online,
    )
    state = _state(device, choice.filename, now, at, reports)
    bodies = _encode(state).encode(), _encode(_discovery(device, topics)).encode()
    return dict(zip(topics.of(device.mac), bodies, strict=True))


def _state(
    device: KnownDevice, filename: str, etag: str, at: Standing, reports: Sequence[LastReport]
) -> dict[str, Any]:
    """Every field each time: Home Assistant keeps those that are left out as they were."""
    kind = stem(filename)
    if at == "has_it":
        latest = installed = _called(filename, etag, device.version)
    else:
        latest = _called(filename, etag)
        held = next((one for one in reports if one.state in HAS_IT and stem(one.filename) == kind), None)
        if held is None:
            installed = device.version[:MAX_VERSION_CHARACTERS] or UNTOLD
        else:
            installed = _called(held.filename, held.etag, device.version)
        if version(filename) and not _is_newer(latest, installed):
            latest = f"{latest} ({etag[:ETAG_CHARACTERS]})"
    said = next((one for one in reports if one.filename == filename), None)
    is_on_the_way = at == "on_the_way"
    return {
        "installed_version": installed,
        "latest_version": latest,
        "title": kind or filename,
        "in_progress": is_on_the_way,
        "update_percentage": said.progress if said is not None and is_on_the_way else None,
        "release_summary": _summary(said) if at == "failed" and said is not None else "",
    }


def _called(filename: str, etag: str, told: str = "") -> str:
    """What a file's version is called: by its name, or as the device called what it has, or by its etag."""
    return (version(filename) or told)[:MAX_VERSION_CHARACTERS] or f"etag {etag[:ETAG_CHARACTERS]}"


def _is_newer(latest: str, installed: str) -> bool:
    """Whether Home Assistant sees that for certain.

    It offers no update to a version that it takes for an older one, nor to an equal one. What it cannot compare it
    offers. For us a file is newer because it was uploaded later.
    """
    if not (_DOTTED.fullmatch(latest) and _DOTTED.fullmatch(installed)):
        return False
    one, other = ([int(number) for number in text.split(".")] for text in (latest, installed))
    return one > other


def _summary(said: LastReport) -> str:
    words = said.state.replace("_", " ")
    return (f"{words}: {said.reason}" if said.reason else words)[:MAX_SUMMARY_CHARACTERS]


def _discovery(device: KnownDevice, topics: HomeAssistantTopics) -> dict[str, Any]:
    ours = f"{OBJECT_PREFIX}{device.mac}"
    firmware: dict[str, Any] = {
        "platform": "update",
        "unique_id": f"{ours}_update",
        "name": "Firmware",
        "device_class": "firmware",
        "state_topic": topics.of_device(device.mac, _STATE),
        "qos": 1,
    }
    if topics.installs:
        firmware |= {"command_topic": topics.of_device(device.mac, INSTALL), "payload_install": INSTALL}
    payload: dict[str, Any] = {
        "device": {
            "identifiers": [ours],
            "name": device.mac,
            "serial_number": device.mac,
            "manufacturer": "bucketbell",
            "model": "Device",
        },
        "origin": {"name": "bucketbell", "sw_version": VERSION},
        "components": {"update": firmware},
    }
    if device.is_online is not None:  # without a word of the broker's on it the entity would never be available
        payload["availability"] = [{"topic": topics.of_device(device.mac, "status")}]
    return payload
