"""What stored settings do to us: a host that starts does not know them yet, and cameras' events come all the same."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import urllib.request
from pathlib import Path
from typing import Any

from functions.admin.openapi import BASE
from infra.local.mosquitto import Mosquitto
from tests.chaos.host_faults import ADMIN_TOKEN, stop
from tests.chaos.verdict import Heard, Verdict
from tests.chaos.world import BUCKET, KEEP_ALL, Profile, World

EVENTS_PREFIX = "events/"
STORED_PREFIX = "home"
EARS = ("iotsupport/camera/#", f"{STORED_PREFIX}/camera/#")
REQUEST_SECONDS = 15.0


class CameraWorld(World):
    """Each upload is a camera's event, and the settings that say where it goes are stored."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        """As `World`. Raises `PartError`."""
        self.database = directory / "settings.db"
        variables = {
            "ADMIN_TOKENS": ADMIN_TOKEN,
            "DATABASE_URL": f"sqlite:///{self.database}",
            "EVENTS_PREFIX": EVENTS_PREFIX,
        }
        broker = Mosquitto(directory / "mosquitto", persistent=True, extra=KEEP_ALL)
        super().__init__(directory, profile, broker=broker, variables=variables, ear={"topics": list(EARS)})
        self.credentials["EVENTS_PREFIX"] = EVENTS_PREFIX  # for `bucketbell connect`

    def _first_ring(self) -> None:
        settings = {"broker_host": "127.0.0.1", "broker_port": self.proxy.port, "topic_prefix": STORED_PREFIX}
        request = urllib.request.Request(  # noqa: S310 - our own http URL
            f"{self.host.url}{BASE}/config",
            data=json.dumps(settings).encode(),
            headers={"Authorization": f"Bearer {ADMIN_TOKEN}", "Content-Type": "application/json"},
            method="PUT",
        )
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS):  # noqa: S310 - as above
            super()._first_ring()

    def put(self, key: str) -> None:
        """Upload the event that this key stands for."""
        document: dict[str, Any] = {
            "event_id": _event_id(key),
            "camera_id": "front",
            "camera_name": "Front door",
            "description": None,
            "objects_detected": [],
            "confidence": None,
            "source_type": "chaos",
            "smart_detection_type": None,
            "timestamp": "2026-11-20T12:00:00Z",
            "key": key,
        }
        self.s3.put_object(Bucket=BUCKET, Key=self.object_key(key), Body=json.dumps(document).encode())

    def object_key(self, key: str) -> str:
        """The event's document."""
        return f"{EVENTS_PREFIX}front/{_event_id(key)}.json"

    def heard(self) -> list[Heard]:
        """What came where the settings say."""
        return [
            Heard(json.loads(one.payload)["key"], dict(one.user_properties).get("id", ""), one.received_at)
            for one in self.subscriber.messages
            if one.topic.startswith(f"{STORED_PREFIX}/")
        ]


def _event_id(key: str) -> str:
    return key.replace("/", "-")


def start_without_settings(world: World, profile: Profile) -> None:
    """The host is restarted while the database is locked by somebody else: for a while it knows no settings."""
    assert isinstance(world, CameraWorld)
    stop(world.host)
    with contextlib.closing(sqlite3.connect(world.database, isolation_level=None, check_same_thread=False)) as lock:
        lock.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(profile.outage_seconds, lock.execute, ("ROLLBACK",))
        timer.start()
        world.host.start()  # returns when it is ready
        timer.join()
    world.healed()


def went_nowhere_else(world: World, verdict: Verdict) -> str:
    """Whether an event went where the environment says."""
    del verdict
    strays = [one.topic for one in world.subscriber.messages if not one.topic.startswith(f"{STORED_PREFIX}/")]
    return f"{len(strays)} events went to {strays[0]}" if strays else ""
