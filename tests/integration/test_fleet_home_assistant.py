"""Devices on a channel in Home Assistant's eyes: what a real host retains on a real Mosquitto, and when it does not."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from infra.subscriber import Subscriber
from tests.discovery_rules import problems, update_problems
from tests.fleet import FILE, MAC, OTHER, FleetRig, ask, hears
from tests.hosts import Host, event, eventually, record
from tests.stored import ADMIN, SHORT, Admin

STATE, DISCOVERY = f"iotsupport/devices/{MAC}/versions", f"homeassistant/device/bucketbell_{MAC}/config"
INSTALL, OWN = f"iotsupport/devices/{MAC}/install", f"iotsupport/devices/{MAC}/updates"
NEXT = "esp32/fw-1.2.5.bin"
QUICK = f"""{SHORT}
from infra.host.fleet import home_assistant
home_assistant.ROUND_SECONDS = 1
"""

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


class HomeAssistant(Subscriber):
    """What is retained for Home Assistant, as it is now; each message was one that it takes."""

    def __init__(self, url: str, discovery_prefix: str = "homeassistant") -> None:
        self.discovery_prefix = discovery_prefix
        self.kept: dict[str, Any] = {}
        self.heard: list[str] = []
        self.wrong: list[str] = []
        topics = [f"{discovery_prefix}/device/+/config", "iotsupport/devices/+/versions"]
        super().__init__(url, [*topics, "iotsupport/devices/+/updates"], on_message=self._take)

    def _take(self, message: Any) -> None:  # noqa: ANN401 - `Received`
        self.heard.append(message.topic)
        if not message.payload:
            self.kept.pop(message.topic, None)
            return
        self.kept[message.topic] = json.loads(message.payload)
        if message.topic.endswith("/versions"):
            self.wrong += update_problems(message.payload)
        elif message.topic.endswith("/config"):
            self.wrong += problems(message.topic, message.payload, discovery_prefix=self.discovery_prefix)

    def versions(self, mac: str = MAC) -> tuple[str, str] | None:
        """Which is installed, and which is the latest; None without a device."""
        state = self.kept.get(f"iotsupport/devices/{mac}/versions")
        is_there = f"{self.discovery_prefix}/device/bucketbell_{mac}/config" in self.kept
        return (state["installed_version"], state["latest_version"]) if state and is_there else None


@pytest.fixture
def rig(tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto) -> FleetRig:
    """Two devices with a config in the bucket, and a firmware."""
    rig = FleetRig(tmp_path, moto, mosquitto)
    for mac in (MAC, OTHER):
        rig.put(f"configs/{mac}.json")
    rig.put(f"assets/{FILE}")
    return rig


@contextmanager
def discovering(rig: FleetRig, **more: str) -> Iterator[tuple[Host, Admin]]:
    """A host with discovery, and a device that has the firmware."""
    with Host(rig.directory, rig.environment | more, ready=False, patch=QUICK) as host:
        admin = Admin(host)
        eventually(lambda: admin.ask("GET", "config").status_code == 200)
        admin.put(rig.broker.port, discovery_enabled=True)
        eventually(lambda: hears(host))
        rig.report("installed")
        yield host, admin


def upload(rig: FleetRig, host: Host, filename: str = NEXT) -> str:
    """Upload a file, and ring for it; its etag."""
    etag = rig.put(f"assets/{filename}", filename.encode())
    assert host.post(event(record(f"assets/{filename}", eTag=etag))).status_code == 200
    return etag


def test_a_device_is_shown_with_what_it_has_and_what_it_should_have(rig: FleetRig) -> None:
    """Through an upload, its progress and its failure, up to the device that has it."""
    with HomeAssistant(rig.broker.url) as shown, discovering(rig) as (host, _):
        eventually(lambda: shown.versions() == ("1.2.4", "1.2.4"))
        assert "availability" not in shown.kept[DISCOVERY]
        rig.say(MAC, "status", b"online", retain=True)
        eventually(lambda: "availability" in shown.kept[DISCOVERY])
        etag = upload(rig, host)
        eventually(lambda: shown.versions() == ("1.2.4", "1.2.5"))
        for percent in (10, 90):
            rig.report("downloading", MAC, NEXT, etag=etag, progress=percent)
            eventually(lambda: shown.kept[STATE]["update_percentage"] == percent)  # noqa: B023 - it is over before the next
        rig.report("failed", MAC, NEXT, etag=etag, reason="flash is full")
        eventually(lambda: shown.kept[STATE]["release_summary"] == "failed: flash is full")
        assert not shown.kept[STATE]["in_progress"]
        rig.report("installed", MAC, NEXT, etag=etag)
        eventually(lambda: shown.versions() == ("1.2.5", "1.2.5"))
        assert shown.versions(OTHER) is None, "it is on no channel"
        assert shown.wrong == []
        assert "command_topic" not in shown.kept[DISCOVERY]["components"]["update"], "it has no topic of its own"
        labels = ("devices/+/versions", "homeassistant/device/+/config")
        eventually(lambda: all(host.metric("mqtt_publish_total", topic=one, status="success") for one in labels))
        assert host.metric("mqtt_publish_total", topic=labels[0], status="failure") == 0


def test_install_rings_that_device_on_its_own_topic(rig: FleetRig) -> None:
    """For the file that it should have; nobody else hears of it. A device that is on no channel is not rung."""
    with HomeAssistant(rig.broker.url) as shown, discovering(rig, DEVICE_TOPICS="on") as (host, _):
        upload(rig, host)
        eventually(lambda: shown.versions() == ("1.2.4", "1.2.5"))
        update = shown.kept[DISCOVERY]["components"]["update"]
        assert (update["command_topic"], update["payload_install"]) == (INSTALL, "install")
        rig.say(OTHER, "status", b"online", retain=True)
        eventually(lambda: ask(host, f"/devices/{OTHER}") != 404)
        rig.say(MAC, "install", b"", b"uninstall")
        rig.say(OTHER, "install", b"install")
        rig.say("a1-b2-c3-d4-e5-f8", "install", b"install")  # whom nobody knows
        rig.say(MAC, "install", b"install", b"install", b"install")
        eventually(lambda: shown.kept.get(OWN) == {"filename": NEXT})
        rig.say(MAC, "install", b"install")
        upload(rig, host, "esp32/fw-1.2.6.bin")
        eventually(lambda: shown.versions() == ("1.2.4", "1.2.6"))
        assert shown.heard.count(OWN) == 1, "who asks again at once has been heard"
        assert f"iotsupport/devices/{OTHER}/updates" not in shown.kept
        eventually(lambda: host.log.count("there is no update for this device") == 1)
        assert shown.wrong == []


def test_a_device_that_is_removed_or_assigned_is_shown_so(rig: FleetRig) -> None:
    """Also after the broker has forgotten all; and what is as it was is not said again."""
    headers = {"Authorization": f"Bearer {ADMIN}"}
    with HomeAssistant(rig.broker.url) as shown, discovering(rig) as (host, _):
        eventually(lambda: shown.versions() is not None)
        answer = host.http.put(f"/api/v1/devices/{OTHER}/assignment", json={"filename": FILE}, headers=headers)
        assert answer.status_code == 200, answer.text
        eventually(lambda: shown.versions(OTHER) == ("unknown", "1.2.4 (9dd4e461)"))
        said = len(shown.heard)
        rig.broker.restart()  # keeps nothing
        eventually(lambda: shown.heard[said:].count(DISCOVERY) == 1)
        eventually(lambda: shown.versions(OTHER) is not None)
        assert host.http.delete(f"/api/v1/devices/{OTHER}", headers=headers).status_code == 204
        eventually(lambda: shown.versions(OTHER) is None)
        eventually(lambda: not any(OTHER in topic for topic in shown.kept))
        assert shown.heard[said:].count(DISCOVERY) == 1, "rounds say nothing new"


def test_what_became_of_devices_while_the_host_was_down_is_found(rig: FleetRig) -> None:
    """What the broker keeps is learned at the start: what is as it should be is left, what is gone is removed."""
    gone = f"homeassistant/device/bucketbell_{OTHER}/config"
    camera = "homeassistant/device/bucketbell_front/config"
    with HomeAssistant(rig.broker.url) as shown:
        with discovering(rig) as (host, admin):
            eventually(lambda: shown.versions() is not None)
            host.stop()
        with Subscriber(rig.broker.url, ("x",)) as speaker:
            for topic in (gone, camera):
                speaker._client.publish(topic, b'{"components": {}}', 1, retain=True)  # noqa: SLF001 - the nearest client
            eventually(lambda: gone in shown.kept and camera in shown.kept)
        said = len(shown.heard)
        with discovering(rig) as (host, admin):
            eventually(lambda: gone not in shown.kept)
            assert {DISCOVERY, STATE}.isdisjoint(shown.heard[said:])
            assert camera in shown.kept
            admin.put(rig.broker.port, discovery_enabled=False)
            eventually(lambda: DISCOVERY not in shown.kept and STATE not in shown.kept)


def test_another_discovery_prefix_takes_the_devices_along(rig: FleetRig) -> None:
    """They are taken back where they were."""
    with (
        HomeAssistant(rig.broker.url) as shown,
        HomeAssistant(rig.broker.url, "ha") as other,
        discovering(rig) as (_, admin),
    ):
        eventually(lambda: shown.versions() is not None)
        admin.put(rig.broker.port, discovery_enabled=True, discovery_prefix="ha")
        eventually(lambda: other.versions() == ("1.2.4", "1.2.4"))
        eventually(lambda: DISCOVERY not in shown.kept)
        assert (shown.wrong, other.wrong) == ([], [])


def test_a_broker_that_refuses_costs_neither_the_bell_nor_reports(tmp_path: Path, moto: MotoServer) -> None:
    """It is said once; both go on."""
    acl = "topic readwrite iotsupport/#\ntopic deny homeassistant/#\n"
    with Mosquitto(tmp_path / "mosquitto", acl=acl) as broker:
        rig = FleetRig(tmp_path, moto, broker)
        rig.put(f"configs/{MAC}.json")
        rig.put(f"assets/{FILE}")
        with discovering(rig) as (host, _):
            eventually(lambda: "Home Assistant does not hear all of devices" in host.log)
            etag = upload(rig, host)
            rig.report("installed", MAC, NEXT, etag=etag)
            eventually(lambda: host.metric("file_rollout_seconds_count") == 1)
            assert host.log.count("Home Assistant does not hear") == 1
