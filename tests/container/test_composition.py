"""`docker compose up`, and an upload rings; and what holds for each container."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import boto3
import httpx
import pytest
from botocore.config import Config

from infra.local.process import PartError
from infra.sam.engine import docker
from infra.subscriber import Subscriber
from tests.container.bases import PYTHON
from tests.container.compose import ADDRESS, HOST_IMAGE, MINIO_IMAGE, RUN_SECONDS, Composition
from tests.hosts import STOP_SECONDS, eventually
from tests.timing import PATIENCE_SECONDS

MAC, OTHER = "a1-b2-c3-d4-e5-f6", "aa-bb-cc-dd-ee-ff"
PASSWORD = "of-this-device-alone"
MAX_BYTES_ABOVE_BASE = 120_000_000
EXAMINED_SECONDS = 60.0
SERVICES = ("broker", "store", "host")


@pytest.fixture(scope="session")
def device(composition: Composition) -> str:
    """A device with credentials of its own, added as docs/self-hosting.md says."""
    add_device(composition, MAC)
    return MAC


def add_device(composition: Composition, mac: str) -> None:
    """Give it a password, and have the broker read it."""
    passwords = ("mosquitto_passwd", "-b", "/mosquitto/secrets/passwords", mac, PASSWORD)
    composition.run("exec", "--no-TTY", "broker", *passwords)
    composition.run("kill", "--signal", "HUP", "broker")


@contextmanager
def listening(mac: str) -> Iterator[Subscriber]:
    """That device, which hears of updates."""
    url = f"mqtt://{ADDRESS}"
    with Subscriber(url, ["iotsupport/updates/#"], username=mac, password=PASSWORD) as subscriber:
        yield subscriber


def bucket(composition: Composition) -> Any:  # noqa: ANN401 - boto3 makes a client's methods at run time
    """The store as a person outside reaches it."""
    return boto3.client(
        "s3",
        endpoint_url=f"http://{ADDRESS}:9000",
        region_name="us-east-1",
        aws_access_key_id=composition.secret("AWS_ACCESS_KEY_ID"),
        aws_secret_access_key=composition.secret("AWS_SECRET_ACCESS_KEY"),
        config=Config(proxies={}),
    )


def heard(subscriber: Subscriber, filename: str) -> None:
    """It hears of this file. After a restart it may also hear again of another: at least once is the promise."""
    eventually(lambda: json.loads(subscriber.next(PATIENCE_SECONDS).payload) == {"filename": filename})


def inspected(name: str) -> dict[str, Any]:
    """What the engine knows of a container or an image."""
    found: list[dict[str, Any]] = json.loads(docker("inspect", name, deadline_seconds=RUN_SECONDS))
    return found[0]


def test_an_upload_rings(composition: Composition, device: str) -> None:
    """After nothing but `up`, a device with credentials of its own hears of what an S3 client has uploaded."""
    with listening(device) as subscriber:
        bucket(composition).put_object(Bucket="devices", Key="assets/firmware-1.0.bin", Body=b"v1")
        heard(subscriber, "firmware-1.0.bin")


def test_no_client_is_needed(composition: Composition, device: str) -> None:
    """The README's commands need nothing but the engine: the service `upload` stores what it reads."""
    with listening(device) as subscriber, tempfile.TemporaryFile() as file:
        file.write(b"v2")
        file.seek(0)
        composition.run("run", "--rm", "--no-TTY", "upload", "assets/firmware-2.0.bin", stdin=file)
        heard(subscriber, "firmware-2.0.bin")


def test_the_host_can_listen(composition: Composition) -> None:
    """`exec host bucketbell listen` shows what rings, with the host's own settings."""
    with tempfile.TemporaryFile() as file:
        command = ("timeout", "60", "bucketbell", "listen", "--json", "--count", "1")
        ear = subprocess.Popen(
            [shutil.which("docker") or "docker", "exec", composition.container("host"), *command],
            stdout=subprocess.PIPE,
            stderr=file,
            text=True,
        )
        eventually(lambda: b"listening" in os.pread(file.fileno(), 1000, 0))
        bucket(composition).put_object(Bucket="devices", Key=f"configs/{MAC}.json", Body=b"{}")
        said, _ = ear.communicate(timeout=PATIENCE_SECONDS)
    assert json.loads(json.loads(said)["payload"]) == {"filename": f"{MAC}.json"}


def test_a_device_pulls_from_outside(composition: Composition) -> None:
    """With a token of the host it gets a URL that leads to the store as the outside reaches it."""
    bucket(composition).put_object(Bucket="devices", Key="assets/pulled.bin", Body=b"what was asked for")
    token = composition.run("exec", "--no-TTY", "host", "bucketbell", "token", MAC).strip()
    with httpx.Client(trust_env=False) as client:
        bearer = {"Authorization": f"Bearer {token}"}
        answer = client.get(f"http://{ADDRESS}:8080/assets/pulled.bin", headers=bearer)
        assert (answer.status_code, answer.headers["location"].split("/")[2]) == (307, f"{ADDRESS}:9000")
        assert client.get(answer.headers["location"]).content == b"what was asked for"


def test_who_has_what_is_known(composition: Composition, device: str) -> None:
    """What a device reports of an upload is on the page and in the command, which need no setting."""
    bucket(composition).put_object(Bucket="devices", Key="assets/reported.bin", Body=b"x")
    composition.run("exec", "--no-TTY", "host", "bucketbell", "fleet", "assign", device, "reported.bin")
    with httpx.Client(trust_env=False) as client:
        assert client.get(f"http://{ADDRESS}:8080/").status_code == 200
    say = ("exec", "--no-TTY", "broker", "mosquitto_pub", "-V", "5", "-q", "1", "-u", device, "-P", PASSWORD)
    report = json.dumps({"filename": "reported.bin", "state": "installed"})
    composition.run(*say, "-t", f"iotsupport/devices/{device}/report", "-m", report)
    fleet = ("exec", "--no-TTY", "host", "bucketbell", "fleet", "files", "--search", "reported", "--json")
    eventually(lambda: json.loads(composition.run(*fleet))["has_it"] == 1)


def test_the_doctor_finds_nothing_wrong(composition: Composition) -> None:
    """Asked over HTTP it runs in the host's container: as its user, with a root file system that nobody can write."""
    bearer = {"Authorization": f"Bearer {composition.secret('ADMIN_TOKENS')}"}
    with httpx.Client(trust_env=False, headers=bearer, base_url=f"http://{ADDRESS}:8080/api/v1") as client:
        found = client.post("/doctor").json()
        until = time.monotonic() + EXAMINED_SECONDS
        while found["running"] and time.monotonic() < until:
            time.sleep(1)  # a token may not ask all the time
            found = client.get("/doctor").json()
    assert (found["trouble"], [one for one in found["checks"] if one["health"] == "wrong"]) == ("", [])
    assert {"canary", "store reaches host"} <= {one["name"] for one in found["checks"] if one["health"] == "ok"}


def test_a_device_writes_to_topics_of_its_own_only(composition: Composition, device: str) -> None:
    """Neither may it ring for others, nor speak as another device."""
    say = ("exec", "--no-TTY", "broker", "mosquitto_pub", "-V", "5", "-q", "1", "-u", device, "-P", PASSWORD)
    with Subscriber(
        f"mqtt://{ADDRESS}", ["iotsupport/#"], username="bucketbell", password=composition.secret("MQTT_PASSWORD")
    ) as ear:
        own = f"iotsupport/devices/{device}/status"
        for topic in ("iotsupport/updates/assets", f"iotsupport/devices/{OTHER}/status", own):
            composition.run(*say, "-t", topic, "-m", "x")
        assert ear.next(PATIENCE_SECONDS).topic == own, "what is forbidden reaches nobody"


@pytest.mark.parametrize("service", SERVICES)
def test_a_container_has_few_rights(composition: Composition, service: str) -> None:
    """A user of its own that is no root, a root file system that nobody can write, no capability, no new privileges."""
    container = inspected(composition.container(service))
    assert int(container["Config"]["User"].split(":")[0]) > 0
    config = container["HostConfig"]
    assert config["ReadonlyRootfs"]
    assert config["CapDrop"] == ["ALL"]
    assert not config["CapAdd"]
    assert "no-new-privileges:true" in config["SecurityOpt"]
    assert all(one["HostIp"] == ADDRESS for ports in config["PortBindings"].values() for one in ports)
    with pytest.raises(PartError, match=r"[Rr]ead-only file system"):
        composition.run("exec", "--no-TTY", service, "sh", "-c", "echo x > /etc/written")


def test_no_secret_is_in_an_environment(composition: Composition) -> None:
    """Who may ask the engine about its containers learns none: they are files."""
    secrets = [
        composition.secret(name)
        for name in ("WEBHOOK_TOKENS", "MQTT_PASSWORD", "AWS_SECRET_ACCESS_KEY", "ADMIN_TOKENS", "DEVICE_TOKEN_KEYS")
    ]
    assert all(len(secret) > 20 for secret in secrets)
    shown = json.dumps([inspected(composition.container(service)) for service in (*SERVICES, "connect", "secrets")])
    assert not [secret for secret in secrets if secret in shown]


def test_what_was_made_lasts(composition: Composition, device: str) -> None:
    """After `down` and `up` the secrets are the same, devices have their passwords, and uploads ring."""
    before = composition.secret("AWS_SECRET_ACCESS_KEY")
    composition.run("down")
    composition.up()
    assert composition.secret("AWS_SECRET_ACCESS_KEY") == before
    with listening(device) as subscriber:
        bucket(composition).put_object(Bucket="devices", Key="assets/firmware-3.0.bin", Body=b"v3")
        heard(subscriber, "firmware-3.0.bin")


def test_nothing_is_lost_while_the_host_is_away(composition: Composition, device: str) -> None:
    """The sure door's queue lies in a volume: it rings although the host was stopped, and the store began anew."""
    s3 = bucket(composition)
    composition.run("stop", "host")
    s3.put_object(Bucket="devices", Key="assets/firmware-4.0.bin", Body=b"v4")
    composition.run("up", "--detach", "--force-recreate", "--no-deps", "store")
    with listening(device) as subscriber:
        composition.run("start", "host")
        heard(subscriber, "firmware-4.0.bin")


def test_sigterm_ends_the_host(composition: Composition) -> None:
    """As process 1, within three seconds, with exit status 0."""
    container = composition.container("host")
    eventually(lambda: inspected(container)["State"]["Health"]["Status"] == "healthy")
    asked_at = time.monotonic()
    docker("kill", "--signal", "TERM", container, deadline_seconds=RUN_SECONDS)
    assert docker("wait", container, deadline_seconds=RUN_SECONDS) == "0"
    assert time.monotonic() - asked_at < STOP_SECONDS
    composition.up()


def test_the_image_is_small(images: Composition) -> None:
    """At most 120 MB above its base, and nobody's but a number's."""
    del images
    image = inspected(HOST_IMAGE)
    assert image["Size"] - inspected(PYTHON)["Size"] <= MAX_BYTES_ABOVE_BASE
    assert image["Config"]["User"] == "10001:10001"
    assert image["Config"]["Labels"]["org.opencontainers.image.title"] == "bucketbell"
    assert inspected(MINIO_IMAGE)["Config"]["User"] == "10002:10002"
