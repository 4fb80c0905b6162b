"""The parts of `make run`: broker, store, host and a device, as a person would set them up.

Everything listens on free ports of 127.0.0.1 and lives in one folder.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus
from pathlib import Path
from typing import Any

from rich.console import Console

from functions.web.tokens import Keyring
from infra.connect.documents import default_queue_name
from infra.connect.minio import Doors
from infra.incoming import Received
from infra.local.install import find_minio
from infra.local.mosquitto import Mosquitto
from infra.local.process import Process, free_port
from infra.local.stores import Minio, MotoServer, Store
from infra.subscriber import Subscriber

BUCKET = "devices"
TOPICS = ("iotsupport/updates/configs", "iotsupport/updates/assets")
EVENTS_PREFIX = "events/"
CAMERA_TOPICS = "iotsupport/camera/+/event"
MAC = "a1-b2-c3-d4-e5-f6"
MORE_MACS = ("a1-b2-c3-d4-e5-01", "a1-b2-c3-d4-e5-02")
CONNECT_SECONDS = 30.0
HEAR_SECONDS = 10.0
STOP_SECONDS = 2.5
LAST_WORDS_CHARACTERS = 1500

# Where Python has its programs elsewhere (`pip install --user`), the PATH knows.
_beside = Path(sys.executable).with_name("bucketbell")
BUCKETBELL = str(_beside if _beside.exists() else shutil.which("bucketbell") or _beside)
# What the person's own shell may say about brokers and stores is not about ours.
OURS = (
    *("MQTT_", "TOPIC_", "BUCKET", "CONFIGS_", "ASSETS_", "WEBHOOK_", "SQS_", "AWS_", "S3_", "URL_TTL_"),
    *("DEVICE_", "ADMIN_", "SECRET", "LOG_", "EVENTS_", "PUBLIC_", "DATABASE_", "ENCRYPTION_", "SWEEP_", "NATS_"),
    "FLEET_",
)

console = Console(highlight=False)


class DemoError(Exception):
    """A step of the demonstration was not seen."""


class HostProcess(Process):
    """`bucketbell host` with nothing but environment variables, as a person would run it."""

    def __init__(self, directory: Path, port: int, environment: dict[str, str]) -> None:
        """`environment` replaces what the person's own shell says about brokers and stores."""
        super().__init__(
            "host",
            [BUCKETBELL, "host", "--port", str(port)],
            directory,
            environment=environment,
            without=OURS,
            working_directory=directory,  # not the person's .env either
            ready=self._is_ready,
        )
        self.url = f"http://127.0.0.1:{port}"

    def prepare(self) -> None:
        """Write its settings down, for other commands of a person who is in its folder."""
        file = self.directory / ".env"
        file.touch(mode=0o600)
        file.write_text("".join(f"{name}={value}\n" for name, value in self.environment.items()))

    def _is_ready(self) -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.url}/readyz", timeout=1) as answer:  # noqa: S310 - our own http URL
            return bool(answer.status == HTTPStatus.OK)
        return False


class DeviceProcess(Process):
    """`bucketbell device`: hears, pulls, verifies, and tells of it in JSON lines."""

    def __init__(self, directory: Path, environment: dict[str, str]) -> None:
        """`environment` is all it knows: broker, server, MAC, token."""
        self.files = directory / "files"
        super().__init__(
            "device",
            [BUCKETBELL, "device", "--json", "--spread-seconds", "0"],
            directory,
            environment={**environment, "DEVICE_DIRECTORY": str(self.files)},
            without=OURS,
            working_directory=directory,
            ready=lambda: self._told("listening") is not None,
        )

    def verified(self, key: str, *, seconds: float) -> dict[str, Any]:
        """Wait for the line which says that this object's file is in place. Raises `DemoError`."""
        filename = key.split("/", 1)[1]
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            if (line := self._told("verified", filename)) is not None:
                return line
            time.sleep(0.01)
        raise DemoError(
            f"the device did not pull {key} within {seconds:g} s:\n{self.new_log_text()[-LAST_WORDS_CHARACTERS:]}"
        )

    def _told(self, event: str, filename: str | None = None) -> dict[str, Any] | None:
        for text in self.new_log_text().splitlines():
            line = json.loads(text) if text.startswith("{") and text.endswith("}") else {}
            if line.get("event") == event and filename in {None, line.get("filename")}:
                return dict(line)
        return None


class Stack:
    """Broker, store and host, started in that order; `stop` ends all of them at once."""

    def __init__(self, directory: Path, more_macs: Sequence[str] = ()) -> None:
        """Nothing is started yet. `more_macs` are further devices, for the fleet's page."""
        self.directory = directory
        self.token = secrets.token_hex(24)
        self.admin_token = secrets.token_hex(24)
        self.token_key = f"demo:{base64.b64encode(secrets.token_bytes(32)).decode()}"
        host_port = free_port()
        self.broker = Mosquitto(directory / "mosquitto")
        self.doors = Doors(
            f"http://127.0.0.1:{host_port}",
            sure_only=False,
            queue_directory=str(directory / "minio-events"),
            token=self.token,
        )
        self.store: Store
        if find_minio():
            self.store = Minio(directory / "minio", environment=self.doors.environment())
        else:
            self.store = MotoServer(directory / "moto")
        self.host = HostProcess(directory / "host", host_port, {})
        self.subscriber = Subscriber(self.broker.url, (*TOPICS, CAMERA_TOPICS))
        self.device = DeviceProcess(directory / "device", self.device_environment(MAC))
        self.more = [DeviceProcess(directory / mac, self.device_environment(mac)) for mac in more_macs]

    def device_environment(self, mac: str) -> dict[str, str]:
        """What a device is given."""
        return {
            "MQTT_URL": self.broker.url,
            "DEVICE_MAC": mac,
            "DEVICE_TOKEN": Keyring.parse([self.token_key]).mint(mac),
            "DEVICE_SERVER": self.host.url,
        }

    @property
    def credentials(self) -> dict[str, str]:
        """boto3's variables for the store."""
        return {
            "AWS_ENDPOINT_URL": self.store.endpoint_url,
            "AWS_ACCESS_KEY_ID": self.store.access_key,
            "AWS_SECRET_ACCESS_KEY": self.store.secret_key,
            "AWS_REGION": self.store.region,
        }

    def start(self) -> None:
        """Start everything and set the bucket up with `bucketbell connect`."""
        step("Mosquitto", self.broker.start, self.broker.url)
        if isinstance(self.store, Minio):
            what = f"MinIO at {self.store.endpoint_url}"
        else:
            what = f"moto at {self.store.endpoint_url}: S3 → SQS in memory; no MinIO here"
        step("object store", self.store.start, what)
        step("bucket", self._connect, f"{BUCKET}, set up by `bucketbell connect`")
        step("host", self._start_host, f"{self.host.url} is ready")
        step("subscriber", self.subscriber.start, "hears what is published")
        step("device", self.device.start, f"`bucketbell device` {MAC} listens")
        if self.more:
            step("more devices", self._start_more, f"{len(self.more)} like it")

    def stop(self) -> None:
        """End everything within `STOP_SECONDS`; idempotent."""
        with contextlib.suppress(Exception):
            self.subscriber.stop()
        with ThreadPoolExecutor() as pool:
            parts = (self.device, *self.more, self.host, self.store, self.broker)
            list(pool.map(lambda part: part.stop(STOP_SECONDS), parts))

    def uploads(self) -> list[dict[str, Any]]:
        """What the host says of the last uploads, each with how many devices have it."""
        request = urllib.request.Request(  # noqa: S310 - our own http URL
            f"{self.host.url}/api/v1/uploads", headers={"Authorization": f"Bearer {self.admin_token}"}
        )
        with urllib.request.urlopen(request, timeout=HEAR_SECONDS) as answer:  # noqa: S310 - as above
            return list(json.load(answer)["uploads"])

    def hear(self, key: str, subscriber: Subscriber | None = None) -> Received:
        """Take the next message after the upload of `key`. Raises `DemoError` when none comes."""
        try:
            return (subscriber or self.subscriber).next(HEAR_SECONDS)
        except TimeoutError:
            raise DemoError(
                f"nothing was heard within {HEAR_SECONDS:g} s of uploading {key}:\n{self.last_words()}"
            ) from None

    def last_words(self) -> str:
        """Return the ends of the logs, for a person who has to find out what went wrong."""
        parts = (self.broker, self.store, self.host, self.device)
        return "\n".join(f"--- {part.name}\n{part.log_text()[-LAST_WORDS_CHARACTERS:]}" for part in parts)

    def _start_more(self) -> None:
        with ThreadPoolExecutor() as pool:
            list(pool.map(lambda device: device.start(), self.more))

    def _connect(self) -> None:
        """Run the real command, as the README tells people to."""
        command = [BUCKETBELL, "connect", "--create", "--endpoint-url", self.store.endpoint_url]
        ours = {"EVENTS_PREFIX": EVENTS_PREFIX, "WEBHOOK_TOKENS": self.token}
        environment = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        done = subprocess.run(
            [*command, "--bucket", BUCKET, "--host-url", self.host.url],
            env={**environment, **self.credentials, **ours},
            cwd=self.directory,
            capture_output=True,
            text=True,
            timeout=CONNECT_SECONDS,
            check=False,
        )
        if done.returncode != 0:
            raise DemoError(f"`bucketbell connect` failed:\n{done.stdout}{done.stderr}")

    def _start_host(self) -> None:
        environment = {
            "MQTT_URL": self.broker.url,
            "BUCKET": BUCKET,
            "WEBHOOK_TOKENS": self.token,
            "DEVICE_TOKEN_KEYS": self.token_key,
            "EVENTS_PREFIX": EVENTS_PREFIX,
            "PUBLIC_BASE_URL": self.host.url,
            "DEVICE_TOPICS": "on",
            "ADMIN_TOKENS": self.admin_token,
            "DATABASE_URL": f"sqlite:///{self.directory}/bucketbell.db",
            "ENCRYPTION_KEYS": base64.urlsafe_b64encode(secrets.token_bytes(32)).decode(),
            **self.credentials,
        }
        if isinstance(self.store, MotoServer):
            queue = self.store.client("sqs").get_queue_url(QueueName=default_queue_name(BUCKET))
            environment["SQS_QUEUE_URL"] = queue["QueueUrl"]
        self.host.environment = environment
        self.host.start()


def step(name: str, work: Callable[[], object], result: str) -> None:
    """Do one thing, with a spinner (a line, without a terminal) while it takes, and say how it ended."""
    begun_at = time.monotonic()
    with console.status(f"{name} …"):
        work()
    console.print(f"[green]✓[/] {name:<13} {result}  [dim]{time.monotonic() - begun_at:.1f} s[/]")
