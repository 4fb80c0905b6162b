"""The whole promise on MinIO: upload → event → message → presigned URL → the verified file on the device's disk."""

from __future__ import annotations

import base64
import json
import random
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from functions.web.tokens import Keyring
from infra.local.process import Process
from tests.e2e.conftest import Build
from tests.e2e.world import World, eventually, fresh, fresh_config
from tests.timing import PATIENCE_SECONDS

KEY = base64.b64encode(bytes(range(32))).decode()
RING = Keyring.parse([f"2026:{KEY}"])
BUCKETBELL = Path(sys.executable).with_name("bucketbell")
OURS = ("MQTT_", "AWS_", "BUCKET", "TOPIC_", "DEVICE_", "WEBHOOK_", "S3_")
WITH_DOWNLOADS = {"DEVICE_TOKEN_KEYS": f"2026:{KEY}", "DEVICE_REQUESTS_PER_MINUTE": "0"}
STOP_SECONDS = 10.0  # then it is killed

Start = Callable[..., "Device"]


class Device(Process):
    """`bucketbell device --json` in a process of its own; a second start goes on with the same folder."""

    def __init__(self, directory: Path, world: World, mac: str, *, token: str, once: bool = False) -> None:
        self.files = directory / "files"
        super().__init__(
            "device",
            [str(BUCKETBELL), "device", "--json", *(["--once"] if once else [])],
            directory,
            environment={
                "DEVICE_MAC": mac,
                "DEVICE_TOKEN": token,
                "DEVICE_SERVER": world.host.url,
                "DEVICE_DIRECTORY": str(self.files),
                "DEVICE_SPREAD_SECONDS": "0",
                **({} if once else {"MQTT_URL": world.broker.url}),
            },
            without=OURS,
            working_directory=directory,
            ready=None if once else lambda: bool(self.said("listening") and self.said("caught_up")),
        )

    def said(self, event: str, **fields: object) -> list[dict[str, Any]]:
        """What this run has reported under that name, with (at least) these fields."""
        lines = [json.loads(line) for line in self.new_log_text().splitlines() if line.endswith("}")]
        return [line for line in lines if line["event"] == event and fields.items() <= line.items()]

    def end(self) -> int:
        """Wait until it ends by itself; returns its exit status."""
        assert self._child is not None
        return self._child.wait(2 * PATIENCE_SECONDS)

    def wait_for(self, event: str, **fields: object) -> dict[str, Any]:
        """The first such report; fails with all that was said when none comes in time."""
        assert eventually(lambda: self.said(event, **fields)), self.log_text()
        return self.said(event, **fields)[0]

    def holds(self) -> dict[str, bytes]:
        """Every file under its final name: path below the folder → content."""
        found = [
            file for folder in ("configs", "assets") for file in (self.files / folder).rglob("*") if file.is_file()
        ]
        return {str(file.relative_to(self.files)): file.read_bytes() for file in found}


@pytest.fixture
def world(build_minio: Build) -> World:
    """MinIO, broker and a host that hands out files."""
    return build_minio(mqtt=WITH_DOWNLOADS)


@pytest.fixture
def start(world: World, tmp_path: Path) -> Iterator[Start]:
    """Starts devices of that world, and ends them."""
    with ExitStack() as stack:

        def begin(mac: str, *, token: str | None = None, once: bool = False) -> Device:
            device = Device(tmp_path / f"device-{mac}", world, mac, token=token or RING.mint(mac), once=once)
            stack.callback(device.stop, STOP_SECONDS)
            return device.start()

        yield begin


def config() -> tuple[str, str]:
    """A config's file name that no other test has, and its device's MAC."""
    name = fresh_config()
    return name, name.removesuffix(".json")


def content(size: int) -> bytes:
    """Bytes that compress badly and repeat at no block's size."""
    return random.Random(size).randbytes(size)  # noqa: S311 - protects nothing


def ask(world: World, path: str, token: str) -> tuple[int, Mapping[str, str]]:
    """Status and headers of the host's answer to a device; no redirection is followed."""
    connection = HTTPConnection(world.host.url.removeprefix("http://"), timeout=PATIENCE_SECONDS)
    try:
        connection.request("GET", path, headers={"Authorization": f"Bearer {token}"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, dict(answer.getheaders())
    finally:
        connection.close()


def test_an_upload_is_on_the_devices_disk_byte_for_byte(world: World, start: Start) -> None:
    """Its config and an asset of a megabyte with a name that has to be escaped; then the config again."""
    name, mac = config()
    device = start(mac)
    asset = "dir/" + fresh("a b+c&100%\u00e9.bin")
    body = content(1_000_003)
    world.put(f"configs/{name}", b'{"interval": 1}')
    world.put(f"assets/{asset}", body)
    device.wait_for("verified", kind="config", size=15)
    device.wait_for("verified", kind="asset", filename=asset, size=len(body), by="md5")
    assert device.holds() == {f"configs/{name}": b'{"interval": 1}', f"assets/{asset}": body}
    world.put(f"configs/{name}", b'{"interval": 22}')
    device.wait_for("verified", kind="config", size=16)
    assert device.holds()[f"configs/{name}"] == b'{"interval": 22}'
    heard = device.said("heard", kind="asset")[0]
    assert heard["etag"] == world.etag(f"assets/{asset}")
    assert not device.said("failed")


def test_once_fetches_what_is_there_and_ends(world: World, start: Start) -> None:
    """Without a broker, all of the manifest; a second run finds everything unchanged."""
    name, mac = config()
    bodies = {f"configs/{name}": b"{}", **{f"assets/{fresh()}": content(number) for number in (0, 1, 70_000)}}
    for key, body in bodies.items():
        world.put(key, body)
    device = start(mac, once=True)
    assert device.end() == 0, device.log_text()
    assert device.holds() == bodies
    again = start(mac, once=True)
    assert again.end() == 0
    assert again.said("caught_up", wanted=0, unchanged=len(bodies))


def test_what_was_uploaded_while_it_was_away_is_caught_up(world: World, start: Start) -> None:
    """New, changed and unchanged, by the manifest, as soon as it is back; a message that waited for it does no harm."""
    name, mac = config()
    kept, changed, new = (f"assets/{fresh()}" for _ in range(3))
    for key in (f"configs/{name}", kept, changed):
        world.put(key, b"old")
    device = start(mac)
    assert eventually(lambda: len(device.holds()) == 3), device.log_text()
    device.stop(STOP_SECONDS)
    world.put(f"configs/{name}", b"new config")
    world.put(changed, content(300_000))
    world.put(new, content(5))
    device.start()
    wanted = {f"configs/{name}": b"new config", kept: b"old", changed: content(300_000), new: content(5)}
    assert eventually(lambda: device.holds() == wanted), device.log_text()
    assert {one["filename"] for one in device.said("verified")} == {
        key.partition("/")[2] for key in (f"configs/{name}", changed, new)
    }
    assert not device.said("failed")


def test_another_devices_config_never_lands(world: World, start: Start) -> None:
    """It is announced to both, listed for one, and fetched by that one alone; the asset after it reaches both."""
    (name, mac), (other_name, other_mac) = config(), config()
    world.put(f"configs/{other_name}", b"theirs, before")
    one, other = start(mac), start(other_mac)
    world.put(f"configs/{other_name}", b"theirs")
    world.put(f"configs/{name}", b"mine")
    last = fresh()
    world.put(f"assets/{last}", b"everybody's")
    for device in (one, other):
        device.wait_for("verified", filename=last)
        assert device.said("skipped", reason="not_ours")
    other.wait_for("verified", filename=other_name, size=6)
    one.wait_for("verified", filename=name)
    assert one.holds() == {f"configs/{name}": b"mine", f"assets/{last}": b"everybody's"}
    assert other.holds() == {f"configs/{other_name}": b"theirs", f"assets/{last}": b"everybody's"}
    assert not [file for file in one.files.rglob("*") if other_name in file.name]
    status, _ = ask(world, f"/configs/{other_name}", RING.mint(mac))
    assert status == 404


def test_a_revoked_token_is_401_and_the_device_says_so(world: World, start: Start) -> None:
    """After the host's restart with its id; what the device has stays, and another device goes on."""
    name, mac = config()
    token = RING.mint(mac)
    world.put(f"configs/{name}", b"before")
    device = start(mac, token=token, once=True)
    assert device.end() == 0
    world.host.environment["DEVICE_TOKENS_REVOKED"] = RING.verify(token).jti
    world.host.restart()
    status, headers = ask(world, f"/configs/{name}", token)
    assert (status, headers["www-authenticate"]) == (401, 'Bearer realm="bucketbell", error="invalid_token"')
    world.put(f"configs/{name}", b"after")
    again = start(mac, token=token, once=True)
    assert again.end() == 1
    assert again.said("failed", reason="unauthorized", detail="the server does not accept the token")
    assert again.holds() == {f"configs/{name}": b"before"}
    assert token not in again.log_text() + world.host.log_text()
    fresh_one = start(mac, once=True)
    assert fresh_one.end() == 0
    assert fresh_one.holds() == {f"configs/{name}": b"after"}
