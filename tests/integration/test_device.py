from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any, Self

import paho.mqtt.client as paho
import pytest
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.conftest import missing
from tests.fakes.device_rig import MAC, DeviceRig
from tests.fakes.proxy import TcpProxy
from tests.fakes.real_store import RealStore
from tests.fakes.slow_store import TOKEN, Behaviour, SlowStore
from tests.timing import SLACK_SECONDS

DEADLINE_SECONDS = 60.0
STOP_SECONDS = 3.0 + 2 * SLACK_SECONDS  # a whole process, on a busy machine
KILLS = 12
CONFIG, FILE = f"configs/{MAC.upper()}.json", "assets/firmware.bin"
COMMAND = (sys.executable, "-c", "import typer; from infra.commands.device import device; typer.run(device)")
WITHOUT = ("MQTT_", "DEVICE_", "TOPIC_")
STATUS_TOPIC = f"iotsupport/devices/{MAC}/status"

_buckets = count()


@pytest.fixture
def bucket(minio: Minio) -> RealStore:
    """An empty bucket of the real MinIO."""
    return RealStore(minio, f"device-{next(_buckets)}")


class DeviceProcess(Process):
    """`bucketbell device --json` in a process of its own; `events` reads what it has said so far."""

    def __init__(
        self,
        directory: Path,
        server_url: str,
        *options: str,
        files: Path | None = None,
        before: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.files = files or directory / "files"
        super().__init__(
            "device",
            [*before, *COMMAND, "--json", *options],
            directory,
            environment={
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "DEVICE_MAC": MAC,
                "DEVICE_TOKEN": TOKEN,
                "DEVICE_SERVER": server_url,
                "DEVICE_DIRECTORY": str(self.files),
                "DEVICE_SPREAD_SECONDS": "0",
                **(environment or {}),
            },
            without=WITHOUT,
            working_directory=directory,
        )

    def events(self) -> list[dict[str, Any]]:
        """What this run has reported."""
        return [json.loads(line) for line in self.new_log_text().splitlines() if line.endswith("}")]

    def named(self, event: str) -> list[dict[str, Any]]:
        """Those of one name."""
        return [said for said in self.events() if said["event"] == event]

    def wait_for(self, event: str, number: int = 1) -> dict[str, Any]:
        """The `number`th event of that name; fails when it does not come in time, or the process ends first."""
        wait_until(lambda: len(self.named(event)) >= number or not self.running, self.new_log_text)
        assert len(self.named(event)) >= number, self.new_log_text()
        return self.named(event)[number - 1]

    def run(self) -> int:
        """Let it end by itself; returns its exit status."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(WITHOUT)}
        self.directory.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(
            self.command,
            env={**inherited, **self.environment},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        self.log_file.write_text(done.stdout + done.stderr)
        self._log_start = 0
        return done.returncode

    def interrupt(self) -> int:
        """SIGTERM; returns its exit status, which must come soon."""
        assert self._child is not None
        self._child.terminate()
        status = self._child.wait(STOP_SECONDS)
        self.stop()
        return status

    def content(self, path: str) -> bytes:
        """What is under the final name."""
        return (self.files / path).read_bytes()

    def __enter__(self) -> Self:
        return self.start()


def wait_until(condition: Callable[[], bool], story: Callable[[], object] = str) -> None:
    """Poll with a deadline."""
    deadline = time.monotonic() + DEADLINE_SECONDS
    while not condition():
        assert time.monotonic() < deadline, story()
        time.sleep(0.01)


def announce(broker: Mosquitto, path: str, etag: str, event_id: str) -> None:
    """Publish the notification of an upload."""
    folder, _, filename = path.partition("/")
    properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho left it untyped
    properties.UserProperty = [("id", event_id), ("etag", etag), ("time", "2026-11-20T12:00:00.000Z")]
    client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
    client.connect("127.0.0.1", broker.port)
    wait_until(lambda: client.loop(0.01) == 0 and client.is_connected())
    sent = client.publish(
        f"iotsupport/updates/{folder}", json.dumps({"filename": filename}), qos=1, properties=properties
    )
    wait_until(lambda: client.loop(0.01) == 0 and sent.is_published())
    client.disconnect()


def test_the_whole_way(mosquitto: Mosquitto, bucket: RealStore, tmp_path: Path) -> None:
    """Catches up, hears, fetches, verifies; is away, catches up; hears again after the broker's restart."""
    first, second, third, fourth = (os.urandom(1_000_000) for _ in range(4))
    bucket.put(FILE, first)
    bucket.put("configs/00-00-00-00-00-00.json", b"{}")
    with (
        SlowStore(bucket) as server,
        DeviceProcess(tmp_path, server.url, "--mqtt-url", mosquitto.url) as device,
        Subscriber(mosquitto.url, [STATUS_TOPIC]) as watcher,
    ):
        device.wait_for("caught_up")
        device.wait_for("verified")
        assert watcher.next().payload == b"online"
        assert device.content(FILE) == first
        etag = bucket.put(CONFIG, b'{"interval_seconds": 30}')
        announce(mosquitto, CONFIG, etag, "1")
        announce(mosquitto, CONFIG, etag, "1")
        announce(mosquitto, "configs/00-00-00-00-00-00.json", "x", "2")
        config = device.wait_for("verified", 2)
        assert device.content(CONFIG) == b'{"interval_seconds": 30}'
        assert (config["kind"], config["by"]) == ("config", "md5")
        assert {said["reason"] for said in device.named("skipped")} <= {"repeat", "not_ours"}
        wait_until(lambda: len(device.named("skipped")) == 2)

        assert device.interrupt() == 0
        assert watcher.next().payload == b"offline"
        announce(mosquitto, FILE, bucket.put(FILE, second), "3")
        device.start()
        device.wait_for("verified")
        assert device.content(FILE) == second

        device.wait_for("listening")
        mosquitto.kill()
        bucket.put(FILE, third)
        device.wait_for("deaf")
        mosquitto.start()
        device.wait_for("listening", 2)
        device.wait_for("verified", 2)
        assert device.content(FILE) == third
        announce(mosquitto, FILE, bucket.put(FILE, fourth), "4")
        device.wait_for("verified", 3)
        assert device.content(FILE) == fourth

        device.kill()
        wait_until(lambda: b"offline" in [message.payload for message in watcher.drain()])
    assert not [file for file in device.files.rglob("*") if "00-00" in file.name]


def test_without_a_broker_it_still_catches_up(bucket: RealStore, tmp_path: Path) -> None:
    """A broker that is down is told once, and does not keep the files from coming."""
    bucket.put(FILE, b"x" * 100)
    with (
        SlowStore(bucket) as server,
        DeviceProcess(tmp_path, server.url, "--mqtt-url", f"mqtt://127.0.0.1:{free_port()}") as device,
    ):
        device.wait_for("verified")
        assert len(device.named("deaf")) == 1
        assert device.interrupt() == 0


def test_once_catches_up_and_exits(bucket: RealStore, tmp_path: Path) -> None:
    """Exit 0 when all is here, and at once when it was already; 1 when something cannot be had. No broker is needed."""
    keys = [CONFIG, "assets/a b+c%2e%2e&d='\"?#;.bin", "assets/日本/ünï.bin", "assets/" + "/".join(["é" * 99] * 5)]
    bodies = {key: os.urandom(50_000) for key in keys}
    for key, body in bodies.items():
        bucket.put(key, body)
    with SlowStore(bucket) as server:
        device = DeviceProcess(tmp_path, server.url, "--once")
        for _ in range(2):
            assert device.run() == 0
        assert device.named("caught_up")[0]["unchanged"] == len(keys)
        assert {key: device.content(key) for key in keys} == bodies
        device.environment["DEVICE_TOKEN"] = "another"
        assert device.run() == 1
        assert device.named("failed")[0]["reason"] == "unauthorized"


def test_killed_at_any_moment(bucket: RealStore, tmp_path: Path) -> None:
    """After each kill -9 the file is the old one or the new one, whole, and the next run has the new one."""
    chance = random.SystemRandom()
    old = os.urandom(8_000_000)
    bucket.put(FILE, old)
    with SlowStore(bucket) as server:
        device = DeviceProcess(tmp_path, server.url, "--once")
        assert device.run() == 0
        seen_new = 0
        new = os.urandom(len(old) + 1)
        bucket.put(FILE, new)
        for _ in range(KILLS):
            device.start()
            device.wait_for("downloading")
            time.sleep(chance.uniform(0, 0.06))
            device.kill()
            found = device.content(FILE)
            assert found in {old, new}
            if found == new:
                seen_new += 1
                old, new = new, os.urandom(len(new) + 1)
                bucket.put(FILE, new)
        assert device.run() == 0
        assert device.content(FILE) == new
        assert {file.suffix for file in (device.files / ".bucketbell").iterdir()} == {".json"}
        assert seen_new < KILLS, "no kill came in time"


@pytest.fixture
def passage(minio: Minio) -> Iterator[tuple[RealStore, TcpProxy]]:
    """A bucket of the real MinIO whose URLs lead through a proxy."""
    with TcpProxy("127.0.0.1", minio.port) as proxy:
        yield RealStore(minio, f"device-{next(_buckets)}", port=proxy.port), proxy


def cut_in_the_middle(rig: DeviceRig, proxy: TcpProxy, least_bytes: int) -> None:
    """Cut the first download after some of it has come, and let nobody back in yet."""
    wait_until(lambda: proxy.bytes_down > least_bytes, lambda: rig.events)
    proxy.refuse_new = True
    proxy.cut()
    rig.wait_for("failed")


@pytest.mark.parametrize("what", ["nothing", "expires", "is replaced", "is deleted"])
def test_a_cut_on_the_real_store(passage: tuple[RealStore, TcpProxy], tmp_path: Path, what: str) -> None:
    """What happens to URL or object while the line is down: MinIO's own 206, 403, 412 and the server's 404."""
    bucket, proxy = passage
    body, other = os.urandom(30_000_000), os.urandom(1_000_000)
    bucket.put(FILE, body)
    if what == "expires":
        bucket.ttl_seconds = [3]
    with SlowStore(bucket) as server, DeviceRig(tmp_path, server.url, pause_seconds=0.05) as rig:
        rig.start()
        cut_in_the_middle(rig, proxy, 10_000_000)
        assert not (tmp_path / FILE).exists()
        if what == "expires":
            time.sleep(3.5)
        elif what == "is replaced":
            bucket.put(FILE, other)
        elif what == "is deleted":
            bucket.s3.delete_object(Bucket=bucket.bucket, Key=FILE)
        proxy.refuse_new = False
        if what == "is deleted":
            rig.wait_for("gone")
            assert not (tmp_path / FILE).exists()
            return
        done = rig.wait_for("verified")
        assert rig.content(FILE) == (other if what == "is replaced" else body)
        assert rig.reasons("renewing") == {"expires": ["expired"], "is replaced": ["replaced"]}.get(what, [])
        assert (done["resumed_bytes"] > 0) == (what != "is replaced")


def test_a_multipart_object_is_verified_by_its_checksum(bucket: RealStore, tmp_path: Path) -> None:
    """Where the URL is signed for it, the checksum of the whole object is asked for and compared."""
    body = os.urandom(6_000_000)
    upload = bucket.s3.create_multipart_upload(
        Bucket=bucket.bucket, Key=FILE, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT"
    )
    where = {"Bucket": bucket.bucket, "Key": FILE, "UploadId": upload["UploadId"]}
    parts = []
    for number, piece in enumerate((body[:5_242_880], body[5_242_880:]), 1):
        done = bucket.s3.upload_part(**where, PartNumber=number, Body=piece, ChecksumAlgorithm="CRC32")
        parts.append({"PartNumber": number, "ETag": done["ETag"], "ChecksumCRC32": done["ChecksumCRC32"]})
    bucket.s3.complete_multipart_upload(**where, ChecksumType="FULL_OBJECT", MultipartUpload={"Parts": parts})
    for with_checksum, by in ((False, "size"), (True, "crc32")):
        bucket.with_checksum = with_checksum
        with SlowStore(bucket) as server, DeviceRig(tmp_path / by, server.url) as rig:
            assert rig.once()
            assert rig.wait_for("verified")["by"] == by
            assert rig.content(FILE) == body


def test_a_full_disk_keeps_the_old_file(mosquitto: Mosquitto, tmp_path: Path) -> None:
    """A real ENOSPC in the middle is told; the old file stays; when there is room again, the download goes on."""
    namespace = ("unshare", "--user", "--map-root-user", "--mount")
    if shutil.which("unshare") is None or subprocess.run([*namespace, "true"], check=False).returncode != 0:
        missing("a mount namespace", f"`{' '.join(namespace)}` must be allowed")
    old, new = os.urandom(300_000), os.urandom(2_000_000)
    disk = tmp_path / "disk"
    disk.mkdir()
    with SlowStore() as world:
        world.put(FILE, old)
        with DeviceProcess(
            tmp_path,
            world.url,
            *("--mqtt-url", mosquitto.url),
            files=disk / "files",
            before=(*namespace, "sh", "-ec", f'mount -t tmpfs -o size=4m tmpfs {disk}; exec "$0" "$@"'),
        ) as device:
            device.wait_for("verified")
            inside = Path(f"/proc/{device.pid}/root{disk}")
            held = threading.Event()
            world.script = [Behaviour(stall_after_bytes=500_000, go_on=True, at_stop=held.set)]
            announce(mosquitto, FILE, world.put(FILE, new).etag, "1")
            assert held.wait(DEADLINE_SECONDS)
            with (inside / "filler").open("wb", buffering=0) as filler, contextlib.suppress(OSError):
                while filler.write(bytes(4096)):
                    pass
            world.release.set()
            told = device.wait_for("failed")
            assert (told["reason"], told["detail"]) == ("disk_full", "No space left on device")
            assert told["retry_in_ms"] > 0
            assert (inside / "files" / FILE).read_bytes() == old
            (inside / "filler").unlink()
            device.wait_for("verified", 2)
            assert (inside / "files" / FILE).read_bytes() == new


@pytest.mark.parametrize(
    ("environment", "options", "status", "words"),
    [
        ({"DEVICE_MAC": "x"}, ("--once",), 2, "six hex pairs"),
        ({"DEVICE_SERVER": "ftp://x"}, ("--once",), 2, "http://127.0.0.1:9000"),
        ({"DEVICE_SERVER": "http://me:secret@x"}, ("--once",), 2, "without credentials"),
        ({"DEVICE_TOKEN": "two words"}, ("--once",), 2, "one word"),
        ({"DEVICE_CA_FILE": "/nowhere"}, ("--once",), 2, "does not exist"),
        ({"DEVICE_CA_FILE": __file__}, ("--once",), 1, "DEVICE_CA_FILE"),
        ({"DEVICE_DIRECTORY": "/dev/null/x"}, ("--once",), 1, "cannot be used"),
        ({}, (), 2, "MQTT_URL"),
        ({}, ("--mqtt-url", "http://x"), 1, "must start with mqtt://"),
        ({"MQTT_URL": "mqtts://x", "MQTT_CA_FILE": __file__}, (), 1, "MQTT_CA_FILE"),
    ],
    ids=str,
)
def test_wrong_options_are_named(
    tmp_path: Path, environment: dict[str, str], options: tuple[str, ...], status: int, words: str
) -> None:
    """What cannot work is said in one place, with what would be right, and no secret in it."""
    device = DeviceProcess(tmp_path, "http://127.0.0.1:1", *options, environment=environment)
    assert device.run() == status
    said = " ".join(device.new_log_text().replace("│", " ").split())
    assert words in said
    assert "secret" not in said
    assert "Traceback" not in said


def test_a_reader_that_went_away_is_no_wrong_certificate(bucket: RealStore, tmp_path: Path) -> None:
    """`bucketbell device --json | head -1` ends quietly."""
    bucket.put(FILE, b"x")
    with SlowStore(bucket) as server:
        device = DeviceProcess(tmp_path, server.url, "--once")
        reader, writer = os.pipe()
        os.close(reader)
        done = subprocess.run(
            device.command,
            env={**os.environ, **device.environment},
            cwd=tmp_path,
            stdout=writer,
            stderr=subprocess.PIPE,
            text=True,
            timeout=DEADLINE_SECONDS,
            check=False,
        )
        os.close(writer)
    assert done.returncode == 1
    assert "CA_FILE" not in done.stderr
    assert "Traceback" not in done.stderr


def test_a_person_sees_what_happens(bucket: RealStore, tmp_path: Path) -> None:
    """Without --json there is a line for each event, with the file's name, size, proof and times."""
    bucket.put(FILE, b"x" * 1234)
    with SlowStore(bucket) as server:
        device = DeviceProcess(tmp_path, server.url, "--once")
        device.command.remove("--json")
        assert device.run() == 0
    said = device.new_log_text()
    assert "caught_up" in said
    assert "asset firmware.bin  1,234 bytes, by md5" in said
    assert TOKEN not in said
    assert "X-Amz-Signature" not in said
