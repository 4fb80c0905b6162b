"""The reference device tells the fleet what became of its files: over a real Mosquitto and HTTP, to a real host."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.web.tokens import Keyring
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stores import MotoServer
from infra.subscriber import Subscriber
from tests.fakes.broker import Behaviour, FakeBroker
from tests.fleet import FILE, KEY, MAC, FleetRig, ask, hears, states
from tests.hosts import Host, event, eventually, record
from tests.integration.test_device import DeviceProcess
from tests.timing import PATIENCE_SECONDS

CONFIG = f"configs/{MAC.upper()}.json"
REPORT = f"iotsupport/devices/{MAC}/report"
OWN = f"iotsupport/devices/{MAC}/updates"
INSTALLED = [(f"{MAC}.json", "installed"), (FILE, "installed")]
FORBIDDEN = "topic readwrite iotsupport/updates/#\ntopic readwrite iotsupport/devices/+/status\ntopic read #\n"

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


@pytest.fixture
def rig(tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto) -> FleetRig:
    """A device's config and a firmware, in a bucket."""
    rig = FleetRig(tmp_path, moto, mosquitto)
    rig.put(CONFIG)
    rig.put(f"assets/{FILE}", b"firmware")
    return rig


def device(rig: FleetRig, server_url: str, *options: str, broker: Mosquitto | None = None) -> DeviceProcess:
    """The reference device, in a process of its own."""
    environment = {"DEVICE_TOKEN": Keyring.parse([KEY]).mint(MAC), "MQTT_URL": (broker or rig.broker).url}
    return DeviceProcess(rig.directory / "device", server_url, *options, environment=environment)


def kept(running: DeviceProcess) -> list[dict[str, Any]]:
    """The reports that wait on its disk."""
    found = [json.loads(file.read_text())["body"] for file in (running.files / ".bucketbell").glob("*.report.json")]
    return sorted(found, key=lambda body: str(body["filename"]))


def counted(host: Host) -> float:
    """How many reports the host has kept or heard again."""
    return host.metric("device_reports_total")


def test_a_device_on_disk_is_seen_in_the_fleet(rig: FleetRig) -> None:
    """What it holds, by which version, and an upload's way up to it; after a restart nothing is told again."""
    with rig.host() as host, device(rig, host.url) as running:
        eventually(lambda: sorted(states(host)) == sorted(INSTALLED))
        found = ask(host, f"/devices/{MAC}")
        assert (found["standing"], found["online"]) == ("has_it", True)
        assert found["agent"].startswith("bucketbell/")
        etag = rig.put(f"assets/{FILE}", b"newer firmware")
        host.post(event(record(f"assets/{FILE}", eTag=etag)))
        eventually(lambda: len(states(host)) == 3)
        eventually(lambda: [one["has_it"] for one in ask(host, "/uploads")["uploads"]] == [1])
        eventually(lambda: kept(running) == [])
        told = counted(host)
        assert running.interrupt() == 0
        running.start()
        running.wait_for("listening")
        running.wait_for("caught_up")
        running.interrupt()
        assert counted(host) == told


def test_what_cannot_be_delivered_is_kept_and_sent_later(rig: FleetRig) -> None:
    """While the broker is down a file comes and another fails; both are told by the next run, which has no server."""
    (rig.directory / "device/files/assets" / FILE).mkdir(parents=True)  # a folder is in its way
    with rig.host() as host:
        eventually(lambda: hears(host))
        rig.broker.kill()
        with device(rig, host.url) as running:
            running.wait_for("verified")
            running.wait_for("failed")
            assert [(one["filename"], one["state"]) for one in kept(running)] == [
                (f"{MAC.upper()}.json", "installed"),
                (FILE, "failed"),
            ]
            assert running.running
            os.kill(running.pid, signal.SIGKILL)
        rig.broker.start()
        with device(rig, f"http://127.0.0.1:{free_port()}") as running:
            eventually(lambda: sorted(states(host)) == sorted([(f"{MAC}.json", "installed"), (FILE, "failed")]))
            eventually(lambda: kept(running) == [])
        (failed,) = [one for one in ask(host, f"/devices/{MAC}")["history"] if one["state"] == "failed"]
        assert failed["reason"].startswith("conflict: ")


def test_a_broker_killed_in_between_loses_no_report(rig: FleetRig) -> None:
    """The device is told of many files while the broker is killed again and again."""
    names = [f"many/{number}.bin" for number in range(30)]
    with rig.host() as host, device(rig, host.url) as running:
        eventually(lambda: len(states(host)) == 2)
        for name in names:
            rig.put(f"assets/{name}", name.encode())
        for _ in range(3):
            rig.broker.kill()
            rig.broker.start()
            listening = len(running.named("listening"))
            running.wait_for("listening", listening + 1)
        eventually(lambda: {name for name, state in states(host) if state == "installed"} >= set(names))
        eventually(lambda: kept(running) == [])


def test_without_a_broker_it_reports_by_http(rig: FleetRig) -> None:
    """With `--once`, once: the next run has nothing to tell."""
    with rig.host() as host:
        running = device(rig, host.url, "--once")
        assert running.run() == 0
        assert sorted(states(host)) == sorted(INSTALLED)
        assert running.run() == 0
        assert counted(host) == 2
        assert kept(running) == []


def test_a_broker_that_forbids_reports_costs_none(rig: FleetRig, tmp_path: Path) -> None:
    """It is said once, and the host is told by HTTP; the device hears uploads as before."""
    with (
        Mosquitto(tmp_path / "strict", acl=FORBIDDEN) as strict,
        rig.host(MQTT_URL=strict.url) as host,
        device(rig, host.url, broker=strict) as running,
    ):
        eventually(lambda: sorted(states(host)) == sorted(INSTALLED))
        assert len(running.named("unreported")) == 1
        etag = rig.put(f"assets/{FILE}", b"newer firmware")
        host.post(event(record(f"assets/{FILE}", eTag=etag)))
        eventually(lambda: len(states(host)) == 3)


def test_where_nobody_listens_a_report_waits(rig: FleetRig) -> None:
    """The broker says so; it is kept, and told once the device has connected again and a host listens."""
    with rig.host(DATABASE_URL="", ENCRYPTION_KEYS="") as host, device(rig, host.url) as running:
        running.wait_for("verified", 2)
        eventually(lambda: len(kept(running)) == 2)
        assert running.named("unreported") == []
        with rig.host() as other:
            eventually(lambda: hears(other))
            rig.broker.kill()
            rig.broker.start()
            eventually(lambda: sorted(states(other)) == sorted(INSTALLED))
            eventually(lambda: kept(running) == [])


def test_a_host_that_takes_no_reports_is_no_failure(rig: FleetRig) -> None:
    """`--once` at a host without a database: as if there were no reports."""
    with rig.host(DATABASE_URL="", ENCRYPTION_KEYS="") as host:
        running = device(rig, host.url, "--once")
        assert running.run() == 0
        assert {one["event"] for one in running.events()} == {"caught_up", "downloading", "verified"}


def test_a_device_hears_its_own_topic_and_drops_what_it_has_heard(rig: FleetRig) -> None:
    """A config comes on both topics with one id, and is fetched once; any file comes by `ring --device`."""
    with rig.host(DEVICE_TOPICS="on") as host, device(rig, host.url) as running:
        assert running.wait_for("listening")["topics"][2] == OWN
        running.wait_for("verified", 2)
        etag = rig.put(CONFIG, b'{"interval_seconds": 5}')
        host.post(event(record(CONFIG, eTag=etag)))
        running.wait_for("verified", 3)
        eventually(lambda: [one["reason"] for one in running.named("skipped")] == ["repeat"])
        rig.put(f"assets/{FILE}", b"only for this one")
        assert ask(host, "/ring", "POST", json={"key": f"assets/{FILE}", "device": MAC})["ok"]
        running.wait_for("verified", 4)
        assert running.content(f"assets/{FILE}") == b"only for this one"


def test_with_only_its_own_topic_a_device_gets_its_config(rig: FleetRig) -> None:
    """And assets as ever."""
    with rig.host(DEVICE_TOPICS="only") as host, device(rig, host.url) as running:
        running.wait_for("verified", 2)
        for key in (CONFIG, f"assets/{FILE}"):
            host.post(event(record(key, eTag=rig.put(key, os.urandom(9)))))
        running.wait_for("verified", 4)
        assert {one["event"] for one in running.events()} & {"skipped", "failed"} == set()


@pytest.fixture(params=["refused", "closed"])
def narrow(request: pytest.FixtureRequest) -> Iterator[FakeBroker]:
    """A broker that lets us hear two topics, and not the third."""
    refused = Behaviour(suback_reason=lambda number: 0x87 if number == 2 else 1)
    broker = FakeBroker(script=[refused if request.param == "refused" else Behaviour(most_filters=2)])
    yield broker
    broker.stop()


def test_a_broker_that_forbids_the_own_topic_makes_no_device_deaf(narrow: FakeBroker) -> None:
    """Whether it says so, or closes the connection: the other topics are heard, after each connect."""
    ear = Subscriber(f"mqtt://127.0.0.1:{narrow.port}", ["a", "b"], optional_topics=["c"])
    ear.begin()
    try:
        eventually(lambda: ear.connected)
        assert ear.granted == ("a", "b")
    finally:
        ear.stop()


def documented(title: str) -> bytes:
    """A packet of docs/devices.md, which says how long it is."""
    page = (Path(__file__).parents[2] / "docs/devices.md").read_text(encoding="utf-8")
    head, *lines = page[page.index(f"> {title},") :].split("```")[0].split("\n\n")[0].splitlines()
    found = [match[0] for line in lines if (match := re.match("[0-9a-f]{2}(?: +[0-9a-f]{2})*(?= |$)", line))]
    packet = bytes.fromhex("".join(found))
    assert head == f"> {title}, {len(packet)} bytes"
    return packet


def test_the_documented_bytes_are_the_reference_devices(rig: FleetRig) -> None:
    """CONNECT and SUBSCRIBE, as they come over the socket."""
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(PATIENCE_SECONDS)
        environment = {"DEVICE_TOKEN": "x", "MQTT_URL": f"mqtt://127.0.0.1:{server.getsockname()[1]}"}
        nowhere = f"http://127.0.0.1:{free_port()}"
        with DeviceProcess(rig.directory / "device", nowhere, environment=environment):
            connection, _ = server.accept()
            with connection:
                connection.settimeout(PATIENCE_SECONDS)
                for title, answer in (("CONNECT", "20 03 00 00 00"), ("SUBSCRIBE", "90 06 00 01 00 01 01 01")):
                    heard.append(connection.recv(len(documented(title)), socket.MSG_WAITALL))
                    connection.sendall(bytes.fromhex(answer))
    assert heard == [documented("CONNECT"), documented("SUBSCRIBE")]


def test_the_documented_report_is_one(rig: FleetRig) -> None:
    """The bytes of the page, sent to a real broker as a microcontroller does, are acknowledged and stored."""
    rig.put("assets/firmware-1.0.bin", b"firmware")
    with rig.host() as host:
        eventually(lambda: hears(host))
        with socket.create_connection(("127.0.0.1", rig.broker.port), PATIENCE_SECONDS) as connection:
            connection.sendall(documented("CONNECT"))
            connack = connection.recv(2, socket.MSG_WAITALL)
            connection.recv(connack[1], socket.MSG_WAITALL)
            connection.sendall(documented("PUBLISH"))
            assert connection.recv(4, socket.MSG_WAITALL) == bytes.fromhex("40 02 00 02")
        eventually(lambda: states(host) == [("firmware-1.0.bin", "installed")])
        (report,) = ask(host, f"/devices/{MAC}")["history"]
        assert report["etag"] == "ede3d3b685b4e137ba4cb2521329a75e"
