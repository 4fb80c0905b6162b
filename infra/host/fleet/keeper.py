"""Keeps what devices say: judged, stored in one transaction a batch, counted; and which uploads rang for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from functions.admin.known import ANNOUNCED
from functions.events.dialects import ObjectCreated
from functions.events.names import is_config_name, is_mac
from functions.events.routes import Upload
from functions.fleet.home_assistant import INSTALL
from functions.fleet.reports import DeviceReport, ReportError, parse_report
from functions.s3.clients import StorageError
from functions.stored.errors import StoreUnavailableError
from functions.telemetry import logger

if TYPE_CHECKING:
    from functions.events.plan import Settled
    from functions.fleet.catalogue import Catalogue
    from functions.stored.fleet import FleetStore
    from infra.host.metrics import FleetTelemetry
    from infra.incoming import Received

FLUSH_SECONDS = 0.5
SAID_AGAIN_SECONDS = 60.0
FORGET_SECONDS = 3600.0
LOOK_AGAIN_SECONDS = 60.0
"""Whether those that are online have become known by a config, an assignment, or another host."""
MAX_WAITING = 10_000  # uploads, devices that asked for something, and those that are not known; more are not noted
MAX_KNOWN = 200_000
LAST_FLUSH_SECONDS = 2.0
ONLINE = b"online"


class Keeper:
    """Thread-safe. `hear` blocks for a transaction; `rang` and `asked` never do, and are cheap.

    The database being away stops reports, and nothing else: the broker holds what is not acknowledged.
    """

    def __init__(
        self,
        store: FleetStore,
        catalogue: Catalogue,
        telemetry: FleetTelemetry,
        *,
        accepts_unknown: bool,
        retention_days: int,
        tell: Callable[[str, Mapping[str, object]], None] = lambda _kind, _data: None,
        asks: Callable[[str, bytes], object] = lambda _mac, _payload: None,
    ) -> None:
        """Nothing runs before `start`. `tell` hears of what has changed, `asks` what somebody wants of which device.

        Neither may block.
        """
        self._asks = asks
        self._tell = tell
        self._store, self._catalogue, self._telemetry = store, catalogue, telemetry
        self._accepts_unknown = accepts_unknown
        self._retention = timedelta(days=retention_days)
        self._known: set[str] = set()  # of which the database has a row
        self._uploads: deque[dict[str, Any]] = deque(maxlen=MAX_WAITING)
        self._askers: dict[str, None] = {}
        self._early: dict[str, bool] = {}  # whether devices that are not known are there: the broker says it once
        self._presence = threading.Lock()  # what is noted last was heard last
        self._looked_at = time.monotonic()
        self._said_at: dict[str, float] = {}
        self._stopped = threading.Event()
        self._stirred = threading.Event()  # there is something to write
        self._stirred.set()  # once at the start: what is too old may lie there
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to write what is noted, in a thread."""
        self._thread = threading.Thread(target=self._run, name="fleet", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Write what is left, if that can be done at once."""
        self._stopped.set()
        self._stirred.set()
        if self._thread is not None:
            self._thread.join(LAST_FLUSH_SECONDS)

    def hear(self, messages: Sequence[Received]) -> bool:
        """Keep reports and presence; False: the database cannot be used, and all of it must come again."""
        reports: list[DeviceReport] = []
        online: dict[str, bool] = {}
        for message in messages:
            mac, _, kind = message.topic.rpartition("/devices/")[2].partition("/")
            if not is_mac(mac):
                self._refuse("not_a_mac")
            elif kind == "status":
                online[mac.lower()] = message.payload == ONLINE
            elif message.retain:
                self._refuse("retained")  # it would be heard again at each start
            elif kind == INSTALL:
                self._asks(mac.lower(), message.payload)
            else:
                try:
                    reports.append(parse_report(message.payload, mac))
                except ReportError as error:
                    self._refuse(error.refusal)
        try:
            self.record(reports)
            self._note_presence(online)
        except StoreUnavailableError as error:
            self._say("reports wait", str(error))
            return False
        return True

    def record(self, reports: Sequence[DeviceReport]) -> None:
        """Keep these. Raises `StoreUnavailableError`."""
        if not reports:
            return
        if any(one.mac in self._askers for one in reports):
            self._write_askers()
        self._meet(one.mac for one in reports)
        reports = [one if one.etag else one._replace(etag=self._etag(one.filename)) for one in reports]
        self._write_uploads()  # of which these may tell
        arrived_at = datetime.now(UTC)
        recorded = self._store.record(reports, arrived_at=arrived_at, accepts_unknown=self._accepts_unknown)
        for one in recorded.changes:
            said = {"mac": one.mac, "filename": one.filename, "state": one.state, "progress": one.progress}
            self._tell("report", said)
        self._telemetry.recorded(recorded, unread=sum(one.has_unknown_fields for one in reports))
        if recorded.unknown:
            self._say("reports of unknown devices are not kept", "FLEET_ACCEPT_UNKNOWN=on would keep them")

    def record_one(self, report: DeviceReport) -> None:
        """Keep what a device reports with its token. Raises `StoreUnavailableError`."""
        self.record([report])

    def asked(self, mac: str) -> None:
        """A device has asked for something with a good token: it is known from now on."""
        mac = mac.lower()
        if mac not in self._known and len(self._askers) < MAX_WAITING:
            self._askers[mac] = None
            self._stirred.set()

    def rang(self, settled: Settled) -> None:
        """An event of an upload is settled."""
        step = settled.step
        record, action = step.record, step.action
        if not isinstance(action, Upload) or not isinstance(record, ObjectCreated):
            return
        now = datetime.now(UTC)
        self._catalogue.forget()
        self._uploads.append(
            {
                "identity": action.identity.hex(),
                "object_key": record.object_key,
                "filename": action.filename.lower() if is_config_name(action.filename) else action.filename,
                "etag": record.etag,
                "size": record.size,
                "uploaded_at": _moment(record.event_time),
                "rang_at": now,
                "confirmed_at": now if settled.label in ANNOUNCED else None,
            }
        )
        self._stirred.set()

    def _run(self) -> None:
        forgotten_at = 0.0
        while True:
            self._stirred.wait(LOOK_AGAIN_SECONDS)
            if self._stopped.wait(FLUSH_SECONDS):  # more may come, and is written with it
                break
            self._stirred.clear()
            self._flush()
            if self._askers or self._uploads:  # the database is away
                self._stirred.set()
            if time.monotonic() - forgotten_at > FORGET_SECONDS:
                forgotten_at = time.monotonic()
                self._forget()
        self._flush()

    def _flush(self) -> None:
        try:
            self._write_uploads()
            self._write_askers()
            if time.monotonic() - self._looked_at > LOOK_AGAIN_SECONDS:
                self._looked_at = time.monotonic()
                self._note_presence({}, list(self._early))
        except StoreUnavailableError as error:
            self._say("devices that ask are not noted for the fleet", str(error))
        except Exception:  # noqa: BLE001 - without this thread nothing would be noted ever again
            logger.exception("fleet")

    def _write_uploads(self) -> None:
        uploads: dict[str, dict[str, Any]] = {}
        with suppress(IndexError):  # two threads come here
            while True:
                one = self._uploads.popleft()
                uploads[one["identity"]] = one
        if not uploads:
            return
        try:
            self._store.note_uploads(list(uploads.values()))
        except StoreUnavailableError as error:
            # They are worth no memory without an end: the uploads are announced all the same.
            self._telemetry.not_noted(len(uploads))
            self._say("uploads are not noted for the fleet", str(error))
            return
        for one in uploads.values():
            self._tell("upload", {"key": one["object_key"], "confirmed": one["confirmed_at"] is not None})

    def _write_askers(self) -> None:
        askers = list(self._askers)
        if askers:
            self._store.know(askers, "token", since=datetime.now(UTC))
            self._remember(askers)
            for mac in askers:
                self._askers.pop(mac, None)
            self._note_presence({}, askers)

    def _note_presence(self, online: Mapping[str, bool], again: Iterable[str] = ()) -> None:
        """Note who is there, and of `again` those that were not known when it was heard. Raises as `_meet`."""
        with self._presence:
            online = {mac: self._early[mac] for mac in again if mac in self._early} | dict(online)
            if not online:
                return
            self._meet(online)
            unknown = self._store.note_presence(online, at=datetime.now(UTC))
            for mac, is_online in online.items():
                self._early.pop(mac, None)
                if mac not in unknown:
                    self._tell("presence", {"mac": mac, "online": is_online})
                elif len(self._early) < MAX_WAITING:
                    self._early[mac] = is_online

    def _forget(self) -> None:
        try:
            while self._store.forget_history(before=datetime.now(UTC) - self._retention):
                if self._stopped.is_set():
                    return
        except StoreUnavailableError as error:
            self._say("old reports are not forgotten", str(error))

    def _meet(self, macs: Iterable[str]) -> None:
        """Have those of these devices known that have a config in the bucket. Raises `StoreUnavailableError`."""
        new = {mac for mac in macs if mac not in self._known}
        if not new:
            return
        try:
            configs = self._catalogue.files().configs
        except StorageError as error:
            self._say("the bucket cannot be listed, so that it is not known which devices have a config", error.code)
            return
        found = new & configs.keys()
        if found:
            self._store.know(found, "config", since=datetime.now(UTC))
            self._remember(found)

    def _remember(self, macs: Iterable[str]) -> None:
        if len(self._known) > MAX_KNOWN:
            self._known.clear()
        self._known.update(macs)

    def _etag(self, filename: str) -> str:
        """That of the file as it is now: the device did not say what it has."""
        try:
            return self._catalogue.files().etag(filename)
        except StorageError:
            return ""

    def _refuse(self, reason: str) -> None:
        self._telemetry.refused(reason)
        self._say("reports are not valid, and not kept", reason)

    def _say(self, words: str, detail: str) -> None:
        """Once a minute, each."""
        now = time.monotonic()
        if now - self._said_at.get(words + detail, -SAID_AGAIN_SECONDS) >= SAID_AGAIN_SECONDS:
            self._said_at[words + detail] = now
            logger.warning(words, extra={"detail": detail})


def _moment(text: str) -> datetime | None:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo is not None else moment.replace(tzinfo=UTC)
