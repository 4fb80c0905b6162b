"""The unit under a real systemd: installed as docs/self-hosting.md says, few rights, started anew when it hangs."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import pytest

from infra.local.process import PartError
from infra.sam.engine import engine
from tests.container import machine as machines
from tests.container.bases import make, systemd_base
from tests.container.machine import SECRETS, SETTINGS, Machine
from tests.hosts import STOP_SECONDS, eventually, upload

TOKEN, ADMIN = "t0ken-of-the-store-9931", "t0ken-of-an-administrator-5512"
KEY = "3q2-7wAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="
SETTINGS_TEXT = """MQTT_URL=mqtt://127.0.0.1
BUCKET=devices
DATABASE_URL=sqlite:////var/lib/bucketbell/settings.db
"""
HANGS_FOR_SECONDS = 2


@pytest.fixture(scope="module")
def machine() -> Iterator[Machine]:
    """The machine, with a broker, and the service started by the page's last command."""
    with engine():
        make(systemd_base())
        machines.build()
        with machines.booted() as booted:
            booted.run("systemctl", "start", "mosquitto")
            booted.write(SETTINGS, SETTINGS_TEXT)
            for name, value in {"WEBHOOK_TOKENS": TOKEN, "ADMIN_TOKENS": ADMIN, "ENCRYPTION_KEYS": KEY}.items():
                booted.write(f"{SECRETS}/{name}", f"{value}\n")
            booted.run("sh", "-c", machines.commands()[-1])
            yield booted


def asked(machine: Machine, path: str, body: bytes | None = None, token: str = TOKEN) -> str:
    """What the host answers there."""
    code = (
        "import sys, urllib.request as u; "
        "path, token, *body = sys.argv[1:]; "
        "print(u.urlopen(u.Request('http://127.0.0.1:8080' + path, body[0].encode() if body else None, "
        "{'Authorization': 'Bearer ' + token}), timeout=10).read().decode())"
    )
    return machine.run("python3", "-c", code, path, token, *([] if body is None else [body.decode()]))


def pid(machine: Machine) -> int:
    """The host's process."""
    return int(machine.shows("MainPID"))


def test_an_upload_rings(machine: Machine) -> None:
    """With the secrets that systemd has copied, and an event as MinIO sends it."""
    listen = ("stdbuf", "-oL", "mosquitto_sub", "-V", "5", "-t", "iotsupport/updates/#", "-v", "-d")
    machine.run("systemd-run", "--unit", "ear", *listen)
    heard = ("journalctl", "--unit", "ear", "--output", "cat")
    eventually(lambda: "SUBACK" in machine.run(*heard))
    asked(machine, "/events", upload("assets/firmware-1.0.bin"))
    rung = 'iotsupport/updates/assets {"filename": "firmware-1.0.bin"}'
    eventually(lambda: rung in machine.run(*heard))
    with pytest.raises(PartError, match="401"):
        asked(machine, "/events", b"{}", token="wrong")


def test_it_has_few_rights(machine: Machine) -> None:
    """Neither root's nor another user's; it can write to its own folder only, and not read where root keeps secrets."""
    status = machine.run("cat", f"/proc/{pid(machine)}/status")
    said = dict(line.split(":\t", 1) for line in status.splitlines() if ":\t" in line)
    assert "0" not in said["Uid"].split()
    assert int(said["CapEff"], 16) == int(said["CapBnd"], 16) == 0
    assert (said["NoNewPrivs"].strip(), said["Seccomp"].strip()) == ("1", "2")
    inside = ("nsenter", "--target", str(pid(machine)), "--mount")
    for path in ("/etc/written", "/opt/bucketbell/written", "/var/written"):
        with pytest.raises(PartError, match=r"[Rr]ead-only file system"):
            machine.run(*inside, "touch", path)
    user = ("--user", "--setuid", said["Uid"].split()[0], "--setgid", said["Gid"].split()[0])
    machine.run(*inside, *user, "cat", "/etc/passwd")
    with pytest.raises(PartError, match="Permission denied"):
        machine.run(*inside, *user, "cat", f"{SECRETS}/ADMIN_TOKENS")
    assert TOKEN not in machine.run("cat", f"/proc/{pid(machine)}/environ")


def test_what_it_keeps_lasts(machine: Machine) -> None:
    """It lies in the folder that systemd gives it, for it alone; also after another start, as another process."""
    database = ("stat", "--format=%i %U", "/var/lib/bucketbell/settings.db")
    assert json.loads(asked(machine, "/api/v1/integrations/mqtt/config", token=ADMIN))
    process, before = pid(machine), machine.run(*database)
    machine.run("systemctl", "restart", "bucketbell")
    assert pid(machine) not in {process, 0}
    assert json.loads(asked(machine, "/api/v1/integrations/mqtt/config", token=ADMIN))
    assert machine.run(*database) == before
    assert machine.run("stat", "--format=%a", "/var/lib/bucketbell/") == "700"


def test_a_changed_secret_counts_after_a_restart(machine: Machine) -> None:
    """As the page says; the old one is refused."""
    machine.write(f"{SECRETS}/WEBHOOK_TOKENS", "another-token-of-the-store-1177")
    try:
        machine.run("systemctl", "restart", "bucketbell")
        asked(machine, "/events", b"{}", token="another-token-of-the-store-1177")
        with pytest.raises(PartError, match="401"):
            asked(machine, "/events", b"{}")
    finally:
        machine.write(f"{SECRETS}/WEBHOOK_TOKENS", TOKEN)
        machine.run("systemctl", "restart", "bucketbell")


def test_a_wrong_setting_fails_the_start_and_is_named(machine: Machine) -> None:
    """By `systemctl`, and in what `journalctl -p warning` shows; when it is right again, the host comes by itself."""
    machine.write(SETTINGS, f"{SETTINGS_TEXT}MQTT_KEEPALIVE_SECONDS=soon\n")
    try:
        with pytest.raises(PartError, match=r"bucketbell\.service"):
            machine.run("systemctl", "restart", "bucketbell")
        eventually(lambda: "MQTT_KEEPALIVE_SECONDS" in machine.journal("--priority", "warning"))
    finally:
        machine.write(SETTINGS, SETTINGS_TEXT)
    eventually(lambda: machine.shows("ActiveState") == "active")


def test_one_that_hangs_is_started_anew(machine: Machine) -> None:
    """The watchdog ends it, and says so."""
    soon = f"[Service]\nWatchdogSec={HANGS_FOR_SECONDS}\nTimeoutAbortSec=1\nRestartSec=0\n"
    machine.write("/run/systemd/system/bucketbell.service.d/soon.conf", soon)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", "bucketbell")
    before = pid(machine)
    time.sleep(2 * HANGS_FOR_SECONDS)
    assert pid(machine) == before, "one that lives is left alone"
    machine.run("kill", "-STOP", str(before))
    eventually(lambda: pid(machine) not in {before, 0} and machine.shows("ActiveState") == "active")
    eventually(lambda: "Watchdog timeout" in machine.journal())


def test_the_journal_knows_how_grave_a_line_is(machine: Machine) -> None:
    """So that `-p warning` leaves out what is well."""
    lines = machine.journal("--output", "json", "--priority", "info..info").splitlines()
    said = [json.loads(line) for line in lines]
    assert any('"listening"' in one["MESSAGE"] and one["PRIORITY"] == "6" for one in said)
    assert '"listening"' not in machine.journal("--priority", "warning")


def test_it_stops_in_time(machine: Machine) -> None:
    """And the copies of its secrets are gone; the last test of this machine."""
    began_at = time.monotonic()
    machine.run("systemctl", "stop", "bucketbell")
    assert time.monotonic() - began_at < STOP_SECONDS
    assert machine.shows("Result") == "success"
    assert "bucketbell" not in machine.run("ls", "/run/credentials")
