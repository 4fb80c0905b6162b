"""A fleet as tests use it: a bucket, a broker, a host with a database, and devices that report."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from paho.mqtt import publish

from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer
from tests.databases import new_sqlite
from tests.hosts import Host
from tests.stored import ADMIN, storing

MAC, OTHER = "a1-b2-c3-d4-e5-f6", "a1-b2-c3-d4-e5-f7"
FILE = "esp32/fw-1.2.4.bin"
KEY = f"2026:{base64.b64encode(bytes(32)).decode()}"


class FleetRig:
    """A bucket, a broker and what a host needs to know of them."""

    def __init__(self, directory: Path, moto: MotoServer, broker: Mosquitto) -> None:
        moto.reset()
        self.directory, self.broker = directory, broker
        self.s3 = moto.client("s3")
        self.s3.create_bucket(Bucket="devices")
        self.url = new_sqlite(directory)
        self.environment = storing(
            self.url,
            broker.url,
            BUCKET="devices",
            DEVICE_TOKEN_KEYS=KEY,
            AWS_ENDPOINT_URL=moto.endpoint_url,
            AWS_ACCESS_KEY_ID=moto.access_key,
            AWS_SECRET_ACCESS_KEY=moto.secret_key,
        )

    def put(self, key: str, body: bytes = b"x") -> str:
        """Upload; return the etag."""
        return str(self.s3.put_object(Bucket="devices", Key=key, Body=body)["ETag"]).strip('"')

    def etag(self, key: str) -> str:
        """That of a file as it is now."""
        return str(self.s3.head_object(Bucket="devices", Key=key)["ETag"]).strip('"')

    def host(self, **more: str) -> Host:
        """The host, which is heard listening once it is entered."""
        return Host(self.directory, self.environment | more)

    def say(self, mac: str, what: str, *payloads: bytes, retain: bool = False) -> None:
        """Publish as a device does; return when the broker has all."""
        topic = f"iotsupport/devices/{mac}/{what}"
        messages: list[Any] = [(topic, payload, 1, retain) for payload in payloads]
        publish.multiple(messages, hostname="127.0.0.1", port=self.broker.port)

    def report(self, state: str, mac: str = MAC, *filenames: str, **more: object) -> None:
        """Report as a device does."""
        bodies = [json.dumps({"filename": one, "state": state, **more}).encode() for one in filenames or (FILE,)]
        self.say(mac, "report", *bodies)


def ask(host: Host, path: str, method: str = "GET", **more: Any) -> Any:  # noqa: ANN401 - JSON
    """An administrator's question."""
    answer = host.http.request(method, f"/api/v1{path}", headers={"Authorization": f"Bearer {ADMIN}"}, **more)
    return answer.json() if answer.status_code == 200 else answer.status_code


def hears(host: Host) -> bool:
    """Whether the host hears reports."""
    return "listening to devices' reports" in host.log


def states(host: Host, mac: str = MAC) -> list[tuple[str, str]]:
    """What a device said, oldest first."""
    device = ask(host, f"/devices/{mac}")
    return [] if device == 404 else [(one["filename"], one["state"]) for one in reversed(device["history"])]
