"""What devices report while something breaks: what the broker has acknowledged is kept, and once."""

from __future__ import annotations

import contextlib
import json
import sqlite3
import threading
import time
from collections import Counter
from pathlib import Path
from zlib import crc32

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion

from infra.local.mosquitto import Mosquitto
from infra.local.process import PartError
from tests.chaos.verdict import Verdict
from tests.chaos.world import EVENTUALLY_SECONDS, KEEP_ALL, LOOK_SECONDS, Profile, World, eventually

DEVICES = 10
INFLIGHT = "max_inflight_messages 1000"
LISTENING = "listening to devices' reports"
SAVED_SECONDS = 0.5  # after this Mosquitto has on disk what it has acknowledged
RETRY_SECONDS = 1


class ReportingWorld(World):
    """Each upload is reported by a device, which keeps its report until the broker acknowledges it."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        """As `World`. Raises `PartError`."""
        self.database = directory / "fleet.db"
        variables = {"DATABASE_URL": f"sqlite:///{self.database}", "FLEET_ACCEPT_UNKNOWN": "on"}
        broker = Mosquitto(directory / "mosquitto", persistent=True, extra=(*KEEP_ALL, INFLIGHT))
        super().__init__(directory, profile, broker=broker, variables=variables)
        self._lock = threading.Lock()
        self._unacknowledged: dict[int, str] = {}
        self.acknowledged: set[str] = set()
        """The keys whose reports the broker has."""
        self._devices = paho.Client(CallbackAPIVersion.VERSION2, client_id="devices", clean_session=False)
        self._devices.reconnect_delay_set(RETRY_SECONDS, RETRY_SECONDS)
        self._devices.on_publish = lambda _client, _data, mid, *_: self._taken(mid)

    def _first_ring(self) -> None:
        # A session that does not exist yet keeps nothing.
        eventually(lambda: LISTENING in self.host.log_text(), "the host does not listen to reports")
        self._devices.connect("127.0.0.1", self.broker.port)
        self._devices.loop_start()
        super()._first_ring()

    def put(self, key: str) -> None:
        """Upload, and have it reported."""
        super().put(key)
        device = f"02-00-00-00-00-{crc32(key.encode()) % DEVICES:02x}"
        said = {"filename": key.partition("/")[2], "etag": "0", "state": "installed"}
        with self._lock:  # or it might be acknowledged before it is noted
            sent = self._devices.publish(f"iotsupport/devices/{device}/report", json.dumps(said), 1)
            self._unacknowledged[sent.mid] = key

    def _taken(self, mid: int) -> None:
        with self._lock:
            self.acknowledged.add(self._unacknowledged.pop(mid))

    @property
    def waiting(self) -> int:
        """How many reports the broker has not acknowledged yet."""
        return len(self._unacknowledged)

    def kept(self) -> Counter[str]:
        """How often each upload's report is in the history, by key."""
        with contextlib.closing(sqlite3.connect(self.database, timeout=EVENTUALLY_SECONDS)) as database:
            rows = database.execute("SELECT filename FROM fleet_history").fetchall()
        return Counter(f"assets/{filename}" for (filename,) in rows)

    def __exit__(self, *raised: object) -> None:
        self._devices.disconnect()
        self._devices.loop_stop()
        super().__exit__(*raised)


def lock_database(world: World, profile: Profile) -> None:
    """Somebody else has locked the database, and gives it back after the outage. Uploads ring."""
    reporting = _reporting(world)
    said = world.host.log_text().count("reports wait")
    with contextlib.closing(sqlite3.connect(reporting.database, isolation_level=None)) as lock:
        eventually(lambda: _is_ours(lock), "the database cannot be locked")
        before = len(reporting.acknowledged)
        time.sleep(profile.outage_seconds)
        eventually(
            lambda: world.host.log_text().count("reports wait") > said, "the fault did not bite: reports do not wait"
        )
        if len(reporting.acknowledged) == before:
            raise PartError("the broker has taken no report meanwhile")
        lock.execute("ROLLBACK")
    world.healed()


def kill_broker(world: World, profile: Profile) -> None:
    """SIGKILL, and a new start over the same files.

    Mosquitto writes a message to disk a moment after it has acknowledged it, so that there is a pause before.
    """
    world.uploads.hold()
    eventually(lambda: not _reporting(world).waiting, "reports are not acknowledged")
    time.sleep(SAVED_SECONDS)
    world.broker.kill()
    world.uploads.go()
    world.suffer(profile.outage_seconds)
    world.broker.start()
    world.healed()


def none_is_lost(world: World, _verdict: Verdict) -> str:
    """What was reported must be in the history once, as soon as the broker has all of it."""
    reporting = _reporting(world)
    eventually(lambda: not reporting.waiting, "reports are not acknowledged")
    until = time.monotonic() + EVENTUALLY_SECONDS
    while (lost := reporting.acknowledged - reporting.kept().keys()) and time.monotonic() < until:
        time.sleep(LOOK_SECONDS)
    if lost:
        return f"{len(lost)} of {len(reporting.acknowledged)} reports are lost: {', '.join(sorted(lost)[:5])}"
    twice = [key for key, times in reporting.kept().items() if times > 1]
    return f"{len(twice)} reports were kept twice: {', '.join(sorted(twice)[:5])}" if twice else ""


def _is_ours(lock: sqlite3.Connection) -> bool:
    try:
        lock.execute("BEGIN EXCLUSIVE")
    except sqlite3.OperationalError:
        return False
    return True


def _reporting(world: World) -> ReportingWorld:
    if not isinstance(world, ReportingWorld):
        raise TypeError(world)
    return world
