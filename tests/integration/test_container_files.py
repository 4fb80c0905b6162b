"""What lies in `infra/deploy/container`, without an engine: at one with the rest, and its health check."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml  # type: ignore[import-untyped]  # as in test_kubernetes.py
from paho.mqtt import publish

from functions.settings import Settings, load
from infra.connect.minio import Doors
from infra.deploy.container import healthy, kit
from infra.local.certificates import make_certificates
from infra.local.install import MINIO
from infra.local.mosquitto import Mosquitto
from infra.subscriber import Subscriber, SubscriberError
from tests.hosts import Host, environment
from tests.timing import PATIENCE_SECONDS

FOLDER = Path(__file__).parents[2] / "infra/deploy/container"
SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))["services"]
TOKEN_VARIABLES = re.compile(r"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_")


def run_healthy(*arguments: str) -> int:
    """The exit status of the images' HEALTHCHECK, run as they run it."""
    command = [sys.executable, "-I", "-S", str(FOLDER / "healthy.py"), *arguments]
    return subprocess.run(command, timeout=PATIENCE_SECONDS, check=False).returncode


def test_minio_is_the_one_that_is_tested() -> None:
    """The image is built from the version that `make minio` builds."""
    assert f"ARG VERSION={MINIO.version}\n" in (FOLDER / "minio.Dockerfile").read_text()


def test_the_doors_are_those_of_connect() -> None:
    """MinIO's environment has each line that `bucketbell connect` prints; the tokens are in a file."""
    doors = Doors("http://host:8080", sure_only=False, queue_directory="/var/lib/minio-events", token="t")
    wanted = {name: value for name, value in doors.environment().items() if not TOKEN_VARIABLES.match(name)}
    own = {"MINIO_CONFIG_ENV_FILE": "/run/secrets/config.env", "MINIO_BROWSER": "off", "MINIO_UPDATE": "off"}
    assert SERVICES["store"]["environment"] == wanted | own


@pytest.mark.parametrize("service", ["connect", "host", "upload"])
def test_the_settings_are_settings(service: str) -> None:
    """Each name is one that bucketbell knows, and all values are right."""
    values = SERVICES[service]["environment"]
    assert values.keys() <= {name.upper() for name in Settings.model_fields}
    plain = {name: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value) for name, value in values.items()}
    assert load(plain, env_file=None).settings.bucket == "devices"


@pytest.mark.parametrize("service", SERVICES)
def test_no_image_names_a_registry(service: str) -> None:
    """Whose machine has a mirror or a proxy for images uses that."""
    image = re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", SERVICES[service]["image"])
    assert "." not in image.partition("/")[0].partition(":")[0], image
    assert not image.endswith(":latest") or "build" in SERVICES[service]


def test_secrets_are_made_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second start changes none, follows an edited token, and leaves the devices' passwords alone."""
    monkeypatch.setattr(os, "chown", lambda *_: None)  # only root may
    for service in ("host", "store", "broker"):
        (tmp_path / service).mkdir()
    kit.make_secrets(tmp_path)
    made = {file.name: file.read_text() for file in (tmp_path / "host").iterdir()}
    assert {"SECRETS_DIR", *made} <= {name.upper() for name in Settings.model_fields}
    assert load({"SECRETS_DIR": str(tmp_path / "host"), "MQTT_URL": "mqtt://broker"}).settings.admin_tokens
    with (tmp_path / "broker/passwords").open("a") as file:
        file.write("a1-b2-c3-d4-e5-f6:$7$…\n")
    (tmp_path / "host/WEBHOOK_TOKENS").write_text("new-one, old-one\n")
    kit.make_secrets(tmp_path)
    kept = {file.name: file.read_text() for file in (tmp_path / "host").iterdir()}
    assert kept == made | {"WEBHOOK_TOKENS": "new-one, old-one\n"}
    assert (tmp_path / "store/config.env").read_text().count("AUTH_TOKEN_") == 2
    assert (tmp_path / "store/config.env").read_text().count("=new-one\n") == 2
    users = [line.partition(":")[0] for line in (tmp_path / "broker/passwords").read_text().splitlines()]
    assert users == ["bucketbell", "a1-b2-c3-d4-e5-f6"]
    assert {file.stat().st_mode & 0o777 for file in tmp_path.glob("*/*")} == {0o600}


def test_mosquitto_reads_the_passwords(tmp_path: Path, mosquitto_binary: Path) -> None:
    """They are hashed as `mosquitto_passwd` does it."""
    del mosquitto_binary
    file = tmp_path / "passwords"
    file.write_text(f"bucketbell:{kit.hashed('right')}\n")
    file.chmod(0o600)
    with Mosquitto(tmp_path / "mosquitto", extra=["allow_anonymous false", f"password_file {file}"]) as broker:
        with Subscriber(broker.url, ["#"], username="bucketbell", password="right"):
            pass
        with pytest.raises(SubscriberError), Subscriber(broker.url, ["#"], username="bucketbell", password="wrong"):
            pass


def test_a_device_has_topics_of_its_own_and_no_other_devices(tmp_path: Path, mosquitto_binary: Path) -> None:
    """By the shipped rules: it hears broadcasts and its own topic, and writes its own state and reports."""
    del mosquitto_binary
    mine, other = "a1-b2-c3-d4-e5-f6", "a1-b2-c3-d4-e5-f7"
    users = dict.fromkeys(("bucketbell", mine, other), "a-password-of-16")
    acl = (FOLDER / "mosquitto.acl").read_text()
    with (
        Mosquitto(tmp_path, users=users, acl=acl) as broker,
        Subscriber(broker.url, ["#"], username="bucketbell", password=users[mine]) as host,
        Subscriber(broker.url, ["#"], username=mine, password=users[mine]) as device,
    ):
        sent = ["iotsupport/updates/configs", *(f"iotsupport/devices/{mac}/updates" for mac in (other, mine))]
        for user, topics in (
            ("bucketbell", sent),
            (mine, [f"iotsupport/devices/{mac}/{leaf}" for mac in (other, mine) for leaf in ("report", "status")]),
        ):
            messages: list[Any] = [(topic, b"x", 1, False) for topic in topics]
            auth: Any = {"username": user, "password": users[user]}
            publish.multiple(messages, hostname="127.0.0.1", port=broker.port, auth=auth)
        assert [one.topic for one in device.wait_for(2)] == [sent[0], sent[2]]
        assert [one.topic for one in host.wait_for(5)][3:] == [
            f"iotsupport/devices/{mine}/{leaf}" for leaf in ("report", "status")
        ]
        assert device.silence(0.3) == host.silence(0) == []


@pytest.mark.parametrize("tls", [False, True])
def test_the_health_check_sees_whether_the_host_answers(tmp_path: Path, *, tls: bool) -> None:
    """With HTTP and with HTTPS; not where it hangs, answers 503, or is gone."""
    files = make_certificates(tmp_path / "certificates")
    pair = {"HOST_CERT_FILE": str(files.server_cert), "HOST_KEY_FILE": str(files.server_key)}
    with Host(
        tmp_path,
        environment(None, **(pair if tls else {})),
        ready=False,
        ca_file=files.ca_file if tls else None,
    ) as host:
        assert run_healthy(str(host.port)) == 0
        assert run_healthy(str(host.port), "/readyz?for=downloads") == 1  # there is no bucket
        host.child.send_signal(signal.SIGSTOP)
        assert run_healthy(str(host.port)) == 1
        host.child.send_signal(signal.SIGCONT)
    assert run_healthy(str(host.port)) == 1


def test_the_health_check_ends_in_time() -> None:
    """Before the engine's own deadline, also where the other end accepts and says nothing to either protocol."""
    timeout = re.search(r"--timeout=(\d+)s", (FOLDER / "Dockerfile").read_text())
    assert timeout is not None
    assert int(timeout[1]) > 2 * healthy.SECONDS
