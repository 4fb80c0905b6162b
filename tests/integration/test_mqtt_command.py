"""`bucketbell mqtt`, against a real host, broker and database."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from tests.admin import ADMIN
from tests.hosts import Host

USER, PASSWORD = "camera", "s3cret-of-the-camera"
SCRIPT = Path(sys.executable).with_name("bucketbell")
SECONDS = 60.0


@pytest.fixture
def guarded(tmp_path: Path, mosquitto_binary: Path) -> Iterator[Mosquitto]:
    """A Mosquitto with a password file."""
    del mosquitto_binary
    with Mosquitto(tmp_path / "guarded", users={USER: PASSWORD}) as broker:
        yield broker


def environment(url: str, **more: str) -> dict[str, str]:
    """What the command needs to know of the host."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("BUCKETBELL_")}
    return inherited | {"BUCKETBELL_SERVER": url, "BUCKETBELL_TOKEN": ADMIN} | more


def run(url: str, *arguments: str, stdin: str = "", **more: str) -> subprocess.CompletedProcess[str]:
    """The command as a script runs it. What it prints holds neither password nor token."""
    done = subprocess.run(
        [SCRIPT, "mqtt", *arguments],
        input=stdin,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        env=environment(url, **more),
        check=False,
    )
    assert PASSWORD not in done.stdout + done.stderr
    assert ADMIN not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def at(broker: Mosquitto) -> list[str]:
    """Options that name the broker."""
    return ["--broker-host", "127.0.0.1", "--broker-port", str(broker.port), "--username", USER]


def test_a_person_tests_stores_and_looks(host: Host, guarded: Mosquitto) -> None:
    """From an empty host to a connected one; each exit code is what a script needs."""
    assert run(host.url, "status").returncode == 1
    wrong = run(host.url, "test", *at(guarded), "--password", "stdin", stdin="wrong\n")
    assert (wrong.returncode, "not_authorized" in wrong.stdout) == (1, True)
    well = run(host.url, "test", *at(guarded), "--password", "env", BUCKETBELL_MQTT_PASSWORD=PASSWORD + "\n")
    assert (well.returncode, "accepted" in well.stdout) == (0, True)
    prefix = ["--topic-prefix", "unifi"]
    stored = run(host.url, "set", *at(guarded), *prefix, "--password", "stdin", stdin=PASSWORD + "\n")
    assert stored.returncode == 0, stored.stderr
    assert "stored as version 1" in stored.stdout
    assert "connected: mqtt://127.0.0.1" in stored.stdout
    again = run(host.url, "set", "--qos", "2", "--retain", "--discovery")
    assert again.returncode == 0
    settings = host.http.get("/api/v1/integrations/mqtt/config").json()
    assert (settings["qos"], settings["retain_messages"], settings["discovery_enabled"]) == (2, True, True)
    assert (settings["topic_prefix"], settings["username"], settings["has_password"]) == ("unifi", USER, True)
    assert run(host.url, "test").returncode == 0
    status = run(host.url, "status")
    assert (status.returncode, status.stdout.startswith("connected")) == (0, True)
    assert "\x1b" not in status.stdout


def test_json_is_the_apis_own(host: Host, guarded: Mosquitto) -> None:
    """One object on standard output, and nothing else."""
    stored = run(host.url, "set", *at(guarded), "--password", "stdin", "--json", stdin=PASSWORD)
    assert (stored.returncode, json.loads(stored.stdout)["version"]) == (0, 1)
    assert json.loads(run(host.url, "status", "--json").stdout)["connected"] is True
    assert json.loads(run(host.url, "test", "--json").stdout)["outcome"] == "ok"


def test_a_bad_broker_is_stored_and_the_exit_code_says_so(host: Host) -> None:
    """1, after the wait; with no wait 0."""
    bad = ["set", "--broker-host", "127.0.0.1", "--broker-port", str(free_port())]
    waited = run(host.url, *bad, "--wait-seconds", "1")
    assert (waited.returncode, "stored as version 1" in waited.stdout) == (1, True)
    assert "not connected" in waited.stdout
    assert run(host.url, *bad, "--wait-seconds", "0").returncode == 0
    assert run(host.url, "set", "--disabled").returncode == 0


def test_what_is_not_right_is_told_in_a_line(host: Host) -> None:
    """Exit 1 with the field; wrong options are 2; nothing is stored."""
    refused = run(host.url, "set", "--broker-host", "a..b")
    assert (refused.returncode, "broker_host" in refused.stderr) == (1, True)
    assert run(host.url, "set", "--broker-host", "x", "--qos", "3").returncode == 2
    assert run(host.url, "set", "--qos", "1").returncode == 2
    assert run(host.url, "set", "--broker-host", "x", "--password", "secret").returncode == 2
    assert run(host.url, "set", "--broker-host", "x", "--password", "env").returncode == 2
    assert host.http.get("/api/v1/integrations/mqtt/config").json()["version"] == 0


def test_trouble_with_the_host_is_told_in_a_line(host: Host) -> None:
    """Nobody there, a wrong token, a server that is another."""
    away = run(f"http://127.0.0.1:{free_port()}", "status")
    assert (away.returncode, away.stdout) == (1, "")
    assert "127.0.0.1" in away.stderr
    stranger = run(host.url, "status", BUCKETBELL_TOKEN="another-token-0123456789")
    assert (stranger.returncode, "ADMIN_TOKENS" in stranger.stderr) == (1, True)
    assert run(f"{host.url}/elsewhere", "status").returncode == 1
    assert run("ftp://x", "status").returncode == 2
    assert run(host.url, "status", BUCKETBELL_TOKEN="").returncode == 2


def test_a_prompt_does_not_show_the_password(host: Host, guarded: Mosquitto) -> None:
    """On a terminal, in colour, with the password typed and not echoed."""
    leader, follower = pty.openpty()
    child = subprocess.Popen(
        [SCRIPT, "mqtt", "test", *at(guarded), "--password", "prompt"],
        stdin=follower,
        stdout=follower,
        stderr=follower,
        env=environment(host.url, TERM="xterm-256color"),
        start_new_session=True,
    )
    os.close(follower)
    said = b""
    try:
        deadline = time.monotonic() + SECONDS
        while time.monotonic() < deadline:
            try:
                part = os.read(leader, 4096)
            except OSError:  # Linux: the other side is closed
                break
            said += part
            if b"Password at the broker" in part:
                time.sleep(0.2)  # until the terminal's echo is off
                os.write(leader, PASSWORD.encode() + b"\n")
        assert child.wait(SECONDS) == 0, said
    finally:
        child.kill()
        child.wait(SECONDS)
        os.close(leader)
    assert PASSWORD.encode() not in said
    assert b"accepted" in said
    assert b"\x1b[" in said
