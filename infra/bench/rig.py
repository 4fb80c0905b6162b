"""The parts that several measurements share: Mosquitto, MinIO with both doors on, the host."""

from __future__ import annotations

import base64
import secrets
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

from functions.web.tokens import Keyring
from infra.connect.documents import Document, merge, wanted_rules
from infra.connect.minio import Doors
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.local.stack import HostProcess
from infra.local.stores import Minio

BUCKET = "bench"
TOPIC = "iotsupport/updates/assets"
TARGETS_SECONDS = 10.0
LOOK_SECONDS = 0.1
PREFIXES = {"configs": "configs/", "assets": "assets/"}
DEVICE_TOKEN_KEYS = f"bench:{base64.b64encode(secrets.token_bytes(32)).decode()}"


class Rig:
    """Broker, MinIO and host, set up as `bucketbell connect` says; started in that order, stopped in reverse."""

    def __init__(self, directory: Path) -> None:
        """Nothing is started yet. Raises `PartError` where a program is missing."""
        host_port = free_port()
        token = secrets.token_hex(24)
        queue_directory = str(directory / "minio-events")
        self.doors = Doors(
            f"http://127.0.0.1:{host_port}", sure_only=False, queue_directory=queue_directory, token=token
        )
        self.broker = Mosquitto(directory / "mosquitto")
        self.minio = Minio(directory / "minio", environment=self.doors.environment())
        self.host = HostProcess(
            directory / "host",
            host_port,
            {
                "MQTT_URL": self.broker.url,
                "BUCKET": BUCKET,
                "WEBHOOK_TOKENS": token,
            },
        )
        self.s3: Any = self.minio.client()
        self._parts = ExitStack()

    def start(self) -> Self:
        """Start all and make the bucket. Raises `PartError`."""
        with ExitStack() as parts:
            parts.enter_context(self.broker)
            parts.enter_context(self.minio)
            self.make_bucket(BUCKET, merge({}, wanted_rules(self.doors.targets, PREFIXES)))
            parts.enter_context(self.host)
            self._parts = parts.pop_all()
        return self

    def stop(self) -> None:
        """Stop all. Idempotent."""
        self._parts.close()

    def make_bucket(self, name: str, rules: Document) -> None:
        """Make a bucket with these notification rules."""
        self.s3.create_bucket(Bucket=name)
        until = time.monotonic() + TARGETS_SECONDS
        while True:
            try:
                self.s3.put_bucket_notification_configuration(Bucket=name, NotificationConfiguration=rules)
            except self.s3.exceptions.ClientError as error:
                # MinIO says it is ready a moment before it knows its targets.
                if error.response["Error"]["Code"] != "InvalidArgument" or time.monotonic() > until:
                    raise
                time.sleep(LOOK_SECONDS)
            else:
                return

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()


def download_variables(minio: Minio, *, requests_per_minute: int = 0) -> dict[str, str]:
    """What the host needs to hand out this MinIO's files, to `device_token`'s holders; 0: as often as they ask."""
    return {
        "BUCKET": BUCKET,
        "AWS_ENDPOINT_URL_S3": minio.endpoint_url,
        "AWS_ACCESS_KEY_ID": minio.access_key,
        "AWS_SECRET_ACCESS_KEY": minio.secret_key,
        "AWS_REGION": minio.region,
        "DEVICE_TOKEN_KEYS": DEVICE_TOKEN_KEYS,
        "DEVICE_REQUESTS_PER_MINUTE": str(requests_per_minute),
    }


def mac_address(number: int) -> str:
    """The MAC address of a bench's device."""
    return "-".join(f"{byte:02x}" for byte in (0x02BE0000_0000 + number).to_bytes(6, "big"))


def device_token(number: int) -> str:
    """A token for the device of that `mac_address`."""
    return Keyring.parse([DEVICE_TOKEN_KEYS]).mint(mac_address(number))


def asset_keys(stem: str, count: int) -> list[str]:
    """Distinct keys that ring, in order."""
    return [f"assets/{stem}-{number:05d}.bin" for number in range(count)]
