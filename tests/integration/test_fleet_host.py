"""Devices that report to a real host, over a real Mosquitto and over HTTP: kept once, and none is lost."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from functions.web.tokens import Keyring
from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from tests.fleet import FILE, KEY, MAC, OTHER, FleetRig, ask, hears, states
from tests.hosts import Host, event, eventually, record
from tests.stored import ADMIN

MANY = tuple(f"a/file-{number}.bin" for number in range(50))

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


@pytest.fixture
def rig(tmp_path: Path, moto: MotoServer, mosquitto: Mosquitto) -> FleetRig:
    """A device with a config in the bucket, and a firmware."""
    rig = FleetRig(tmp_path, moto, mosquitto)
    rig.put(f"configs/{MAC.upper()}.json")
    rig.put(f"assets/{FILE}")
    return rig


def test_a_device_with_a_config_in_the_bucket_is_heard(rig: FleetRig) -> None:
    """Its states in their order, its presence, and an upload's legs up to the device that has it."""
    with rig.host() as host:
        eventually(lambda: hears(host))
        rig.say(MAC, "status", b"online", retain=True)
        etag = rig.put(f"assets/{FILE}", b"newer")
        assert host.post(event(record(f"assets/{FILE}", eTag=etag))).json() == {"outcomes": ["no_subscribers"]}
        for state in ("downloading", "downloaded", "installing", "installed"):
            rig.report(state, etag=etag, version="1.2.4")
            eventually(lambda: states(host)[-1:] == [(FILE, state)])  # noqa: B023 - it is over before the next
        assert len(states(host)) == 4
        eventually(lambda: ask(host, "/uploads")["uploads"])
        eventually(lambda: ask(host, f"/devices/{MAC}")["standing"] == "has_it")  # the bucket is listed once a second
        device = ask(host, f"/devices/{MAC}")
        assert (device["online"], device["version"], device["source"]) == (True, "1.2.4", "config")
        (upload,) = ask(host, "/uploads")["uploads"]
        assert (upload["filename"], upload["has_it"]) == (FILE, 1)
        assert upload["confirmed_at"] is not None
        assert host.metric("device_reports_total", state="installed") == 1


def test_without_an_etag_the_file_as_it_is_now_is_meant(rig: FleetRig) -> None:
    """A device that does not know it; the next upload makes it wait again."""
    with rig.host() as host:
        eventually(lambda: hears(host))
        rig.report("installed")
        eventually(lambda: states(host))
        assert ask(host, f"/devices/{MAC}")["standing"] == "has_it"


def test_metrics_tell_how_a_rollout_goes(rig: FleetRig) -> None:
    """Where devices stand, also those whose config is named in upper case; nothing while the database is away."""
    counts_often = "from infra.host.fleet import census\ncensus.PAUSE_SECONDS, census.MAX_SHARE = 0.1, 1.0"
    config, name = f"configs/{MAC.upper()}.json", f"{MAC}.json"
    with Host(rig.directory, rig.environment, patch=counts_often) as host:
        eventually(lambda: hears(host))
        rig.report("failed")
        eventually(lambda: host.metric("fleet_devices", state="unknown") == 1)  # it follows nothing yet
        rig.report("installed")
        eventually(lambda: host.metric("fleet_devices", state="has_it") == 1)
        assert host.metric("fleet_devices") == 1
        assert host.metric("file_rollout_seconds_count") == 0, "nothing was announced"
        etag = rig.put(config, b"{}")
        host.post(event(record(config, eTag=etag)))
        rig.report("installed", MAC, name, etag=etag)
        eventually(lambda: host.metric("file_rollout_seconds_count") == 1)
        assert 0 < host.metric("file_rollout_seconds_sum") < 30
        assert [(one["filename"], one["has_it"]) for one in ask(host, "/uploads")["uploads"]] == [(name, 1)]
        with closing(sqlite3.connect(rig.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            eventually(lambda: "fleet_devices{" not in host.http.get("/metrics").text)
            other.execute("ROLLBACK")
        eventually(lambda: host.metric("fleet_devices", state="has_it") == 1)


def test_over_http_a_token_is_enough_to_be_known(rig: FleetRig) -> None:
    """204; an administrator's token is nobody's word."""
    token = Keyring.parse([KEY]).mint(OTHER)
    body = {"filename": FILE, "state": "failed", "reason": "flash is full"}
    with rig.host() as host:
        for credentials, status in ((token, 204), (token, 204), (ADMIN, 403), ("x" * 40, 401)):
            headers = {"Authorization": f"Bearer {credentials}"}
            assert host.http.post("/report", json=body, headers=headers).status_code == status
        headers = {"Authorization": f"Bearer {token}"}
        wrong = host.http.post("/report", json=body | {"state": "eaten"}, headers=headers)
        assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "state")
        assert host.http.post("/report", content=b"x" * 9000, headers=headers).status_code == 413
        assert states(host, OTHER) == [(FILE, "failed")]
        assert ask(host, f"/devices/{OTHER}")["source"] == "token"


def test_who_asks_for_a_file_is_known(rig: FleetRig) -> None:
    """Before it has ever reported."""
    headers = {"Authorization": f"Bearer {Keyring.parse([KEY]).mint(OTHER.upper())}"}
    with rig.host() as host:
        assert host.http.get(f"/assets/{FILE}", headers=headers).status_code == 307
        eventually(lambda: ask(host, f"/devices/{OTHER}") != 404)


def test_who_asks_for_a_file_and_reports_at_once_is_heard(rig: FleetRig) -> None:
    """Before it was noted that it is known: a device may be that quick."""
    headers = {"Authorization": f"Bearer {Keyring.parse([KEY]).mint(OTHER)}"}
    notes_late = "from infra.host.fleet import keeper\nkeeper.FLUSH_SECONDS = 3600.0"
    with Host(rig.directory, rig.environment, patch=notes_late) as host:
        eventually(lambda: hears(host))
        assert host.http.get(f"/assets/{FILE}", headers=headers).status_code == 307
        rig.report("installed", OTHER)
        eventually(lambda: states(host, OTHER) == [(FILE, "installed")])


def test_what_is_online_before_it_is_known_is_online(rig: FleetRig) -> None:
    """It connects first, and asks for its files then; or is assigned one later, or gets a config."""
    headers = {"Authorization": f"Bearer {Keyring.parse([KEY]).mint(OTHER)}"}
    assigned, configured = "a1-b2-c3-d4-e5-f8", "a1-b2-c3-d4-e5-f9"
    looks_often = "from infra.host.fleet import keeper\nkeeper.LOOK_AGAIN_SECONDS = 0.1"
    with Host(rig.directory, rig.environment, patch=looks_often) as host:
        eventually(lambda: hears(host))
        for mac in (OTHER, assigned, configured):
            rig.say(mac, "status", b"offline", b"online", retain=True)
        rig.report("installed", OTHER)  # behind those, and of a device that is not known
        eventually(lambda: host.metric("device_reports_refused_total", reason="unknown_device") == 1)
        assert ask(host, "/devices")["devices"] == []
        assert host.http.get(f"/assets/{FILE}", headers=headers).status_code == 307
        assert ask(host, f"/devices/{assigned}/assignment", "PUT", json={"filename": FILE})["source"] == "assignment"
        etag = rig.put(f"configs/{configured}.json")
        host.post(event(record(f"configs/{configured}.json", eTag=etag)))
        for mac in (OTHER, assigned, configured):
            eventually(lambda: ask(host, f"/devices/{mac}") != 404 and ask(host, f"/devices/{mac}")["online"])  # noqa: B023 - it is over before the next


def test_what_is_no_report_is_counted_and_disturbs_nothing(rig: FleetRig) -> None:
    """Each kind by its name; the good one behind them is kept."""
    kinds = {
        "not_json": b"{",
        "too_large": b" " * 1_000_000,
        "unknown_state": b'{"filename": "x", "state": "eaten"}',
        "foreign_mac": json.dumps({"filename": "x", "state": "failed", "mac": OTHER}).encode(),
        "bad_filename": b'{"filename": "../x", "state": "failed"}',
        "foreign_config": json.dumps({"filename": f"{OTHER}.json", "state": "failed"}).encode(),
        "bad_field": b'{"filename": "x", "state": "failed", "progress": "1"}',
    }
    with rig.host() as host:
        eventually(lambda: hears(host))
        for payload in kinds.values():
            rig.say(MAC, "report", payload)
        rig.say("nobody", "report", b"{}")
        rig.say(MAC, "report", b'{"filename": "x", "state": "failed"}', retain=True)
        rig.report("installed", OTHER)
        rig.report("downloading", at="1970-01-01T00:00:00Z", battery=3.7)
        eventually(lambda: (FILE, "downloading") in states(host))
        found = {kind: host.metric("device_reports_refused_total", reason=kind) for kind in (*kinds, "not_a_mac")}
        assert found == dict.fromkeys((*kinds, "not_a_mac"), 1)
        assert host.metric("device_reports_refused_total", reason="unknown_device") == 1
        assert host.metric("device_reports_odd_clock_total") == 1
        assert host.metric("device_reports_unknown_fields_total") == 1
        assert ask(host, f"/devices/{OTHER}") == 404
        assert len([line for line in host.lines("WARNING") if line.get("detail") == "not_json"]) == 1


def test_with_fleet_accept_unknown_a_report_is_enough(rig: FleetRig) -> None:
    """For fleets whose broker says who is who."""
    with rig.host(FLEET_ACCEPT_UNKNOWN="on") as host:
        eventually(lambda: hears(host))
        rig.report("installed", OTHER)
        eventually(lambda: states(host, OTHER))
        assert ask(host, f"/devices/{OTHER}")["source"] == "report"


def test_what_is_reported_while_the_host_is_down_is_heard_at_its_start(rig: FleetRig) -> None:
    """The broker keeps the session, also of a host that was killed."""
    with rig.host() as host:
        eventually(lambda: hears(host))
        host.child.kill()
    rig.report("downloading", MAC, *MANY)
    with rig.host() as host:
        eventually(lambda: len(states(host)) == len(MANY))


def test_a_database_that_is_locked_stops_reports_only(rig: FleetRig) -> None:
    """Uploads ring; what was reported meanwhile is kept once it is free, each once, in order."""
    with rig.host() as host:
        eventually(lambda: hears(host))
        rig.report("downloading")
        eventually(lambda: states(host))
        with closing(sqlite3.connect(rig.url.removeprefix("sqlite:///"), isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            rig.report("downloading", MAC, *MANY)
            eventually(lambda: "reports wait" in host.log)
            began_at = time.monotonic()
            assert host.post(event(record(f"assets/{FILE}"))).json() == {"outcomes": ["no_subscribers"]}
            assert time.monotonic() - began_at < 2
            other.execute("ROLLBACK")
        eventually(lambda: len(states(host)) == 1 + len(MANY))
        assert [name for name, _ in states(host)][1:] == list(MANY)


@pytest.fixture
def bad_acl(tmp_path: Path) -> Iterator[Mosquitto]:
    """A broker that lets nobody hear reports."""
    acl = "topic readwrite iotsupport/updates/#"
    with Mosquitto(tmp_path / "strict", users={"bell": "secret-of-bell"}, acl=f"user bell\n{acl}") as broker:
        yield broker


def test_a_broker_that_forbids_it_is_named_and_uploads_ring(rig: FleetRig, bad_acl: Mosquitto) -> None:
    """Once, not at each try."""
    with rig.host(MQTT_URL=bad_acl.url, MQTT_USERNAME="bell", MQTT_PASSWORD="secret-of-bell") as host:
        assert host.post(event(record(f"assets/{FILE}"))).json() == {"outcomes": ["no_subscribers"]}
        time.sleep(1)
        assert len([line for line in host.lines("WARNING") if "reports are not heard" in line["message"]]) <= 1


def test_changes_are_told_as_they_happen_and_none_is_missed(rig: FleetRig) -> None:
    """Server-sent events: who comes back says what it had last; who was away too long begins again."""

    def changes(host: Host, last: str = "") -> list[dict[str, str]]:
        headers = {"Authorization": f"Bearer {ADMIN}", "Last-Event-ID": last}
        answer = host.http.get("/api/v1/stream", headers=headers)
        assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
        blocks = answer.text.strip().split("\n\n")[1:]
        return [dict(line.split(": ", 1) for line in block.splitlines()) for block in blocks]

    with rig.host() as host:
        assert host.http.get("/api/v1/stream").status_code == 401
        eventually(lambda: hears(host))
        (first,) = changes(host)
        assert first["event"] == "begin_again"
        rig.report("downloading")
        found = changes(host, first["id"])
        rig.report("installed")
        found += changes(host, found[-1]["id"])
        assert [json.loads(one["data"])["state"] for one in found] == ["downloading", "installed"]
        assert changes(host, found[0]["id"]) == found[1:]
        host.post(event(record(f"assets/{FILE}")))
        (upload,) = changes(host, found[-1]["id"])
        assert (upload["event"], json.loads(upload["data"])["key"]) == ("upload", f"assets/{FILE}")
        (again,) = changes(host, "5")
        assert (again["event"], again["id"]) == ("begin_again", upload["id"])


def test_the_command_shows_who_has_what(rig: FleetRig) -> None:
    """As tables, and as JSON for scripts; a device is assigned a file, and forgotten."""
    with rig.host() as host:
        eventually(lambda: hears(host))
        rig.report("failed", reason="flash \x1b[31mis full")
        eventually(lambda: states(host))

        def run(*words: str, status: int = 0) -> str:
            environment = os.environ | {"BUCKETBELL_TOKEN": ADMIN, "BUCKETBELL_SERVER": host.url, "COLUMNS": "20"}
            command = [str(Path(sys.executable).with_name("bucketbell")), "fleet", *words]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == status, done.stderr
            return done.stdout

        etag = rig.put("assets/of-nobody.bin")
        host.post(event(record("assets/of-nobody.bin", eTag=etag)))  # else the bucket is listed in half a minute
        eventually(lambda: "of-nobody.bin  " in run("files"))
        assert FILE in run("files")
        assert "nobody" in run("files", "--search", "of-nobody").splitlines()[1].split()
        assert json.loads(run("files", "--search", "esp32", "--json"))["failed"] == 1
        assert MAC in run("devices", FILE, "--state", "failed")
        assert MAC not in run("devices", FILE, "--state", "has_it")
        assert "failed: flash" in run("device", MAC.replace("-", ":"))
        assert "\x1b" not in run("device", MAC)
        assert "assigned" in run("assign", MAC, FILE)
        assert MAC in run("devices")
        run("uploads")
        assert "forgotten" in run("forget", MAC)
        run("device", MAC, status=1)
