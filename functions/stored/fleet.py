"""The fleet in the database: which devices there are, and what each said of its files. Written in batches."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    Connection,
    Index,
    Integer,
    String,
    Table,
    Text,
    delete,
    select,
    update,
)

from functions.events.names import MAC_CHARACTERS
from functions.fleet.channels import stem
from functions.fleet.reports import HAS_IT, DeviceReport, believed
from functions.fleet.standing import KnownBy
from functions.stored import bulk
from functions.stored.database import METADATA, Database, UtcDateTime
from functions.stored.led import LedStore

LEADER_LOCK = 0x6275636B666C6565  # our own choice: the first letters of "buck" and "fleet"
AT_ONCE = 1000  # rows in one change: nobody waits long for the next
MAX_UPLOADS = 1000
NEVER = datetime.max.replace(tzinfo=UTC)
MAX_FORGOTTEN = 5000  # rows of history at a time: after a long rest the first change would take very long

DEVICES = Table(
    "fleet_devices",
    METADATA,
    Column("mac", String(MAC_CHARACTERS), primary_key=True),
    Column("source", String(16), nullable=False),
    Column("known_since", UtcDateTime, nullable=False),
    Column("is_online", Boolean),
    Column("online_at", UtcDateTime),
    Column("reported_at", UtcDateTime),
    Column("version", Text, nullable=False),
    Column("agent", Text, nullable=False),
    Column("follows", Text, nullable=False),
    Column("assigned", Text, nullable=False),
)
Index("fleet_devices_following", DEVICES.c.follows)
Index("fleet_devices_assigned", DEVICES.c.assigned)

REPORTS = Table(
    "fleet_reports",
    METADATA,
    Column("mac", String(MAC_CHARACTERS), primary_key=True),
    Column("filename", Text, primary_key=True),
    Column("etag", Text, nullable=False),
    Column("version_id", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("progress", Integer),
    Column("reason", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("arrived_at", UtcDateTime, nullable=False),
)
Index("fleet_reports_of_file", REPORTS.c.filename, REPORTS.c.state, REPORTS.c.mac)

HISTORY = Table(
    "fleet_history",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("mac", String(MAC_CHARACTERS), nullable=False),
    Column("filename", Text, nullable=False),
    Column("etag", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("arrived_at", UtcDateTime, nullable=False),
)
Index("fleet_history_of_device", HISTORY.c.mac, HISTORY.c.id)
Index("fleet_history_of_file", HISTORY.c.filename, HISTORY.c.etag, HISTORY.c.state)
Index("fleet_history_by_age", HISTORY.c.arrived_at)

UPLOADS = Table(
    "fleet_uploads",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("identity", String(32), nullable=False, unique=True),
    Column("object_key", Text, nullable=False),
    Column("filename", Text, nullable=False),
    Column("etag", Text, nullable=False),
    Column("size", BigInteger),
    Column("uploaded_at", UtcDateTime),
    Column("rang_at", UtcDateTime, nullable=False),
    Column("confirmed_at", UtcDateTime),
)

_SAID = ("etag", "version_id", "state", "progress", "reason")


class Recorded(NamedTuple):
    """What became of a batch of reports."""

    changes: tuple[DeviceReport, ...]
    """What the devices said that was new: of each file of a device its newest state in the batch."""
    unknown: int
    """Reports by nobody whom we know; they are not kept."""
    disbelieved: int
    """Reports whose `at` cannot be right; the time of their arrival stands for it."""
    rollouts: tuple[timedelta, ...] = ()
    """Of each device that has a file now: how long ago that file's upload rang."""


class FleetStore(LedStore):
    """The fleet of one database, which several hosts may share. Thread-safe; every call blocks.

    MACs are in lower case. Every method raises `StoreUnavailableError`.
    """

    def __init__(self, database: Database) -> None:
        """Connects to nothing yet."""
        super().__init__(database, LEADER_LOCK)

    def record(
        self, reports: Sequence[DeviceReport], *, arrived_at: datetime, accepts_unknown: bool = False
    ) -> Recorded:
        """Keep what devices reported, in this order: at most `AT_ONCE`. Of equal reports only the first is kept.

        `accepts_unknown`: a report alone makes a device known.
        """
        batch: dict[tuple[str, str], DeviceReport] = {}  # in the order of arrival
        for one in reports:
            batch.pop((one.mac, one.filename), None)
            batch[one.mac, one.filename] = one
        macs = sorted({mac for mac, _ in batch})
        with self.database.transaction(writing=True) as connection:
            if accepts_unknown:
                bulk.insert(connection, DEVICES, [_new_device(mac, "report", arrived_at) for mac in macs])
            devices = _devices(connection, macs)
            before = _reports(connection, macs)
            times = {
                key: believed(batch[key].at, arrived_at=arrived_at, last_at=devices[key[0]]["reported_at"])
                for key in batch
                if key[0] in devices
            }
            changed = [key for key in times if _said(batch[key]) != before.get(key)]
            rows = [{**batch[key]._asdict(), "at": times[key], "arrived_at": arrived_at} for key in changed]
            bulk.upsert(connection, REPORTS, sorted(_only(REPORTS, rows), key=_by_key), (*_SAID, "at", "arrived_at"))
            moved = [
                row for row in rows if (row["etag"], row["state"]) != _state(before.get((row["mac"], row["filename"])))
            ]
            bulk.insert(connection, HISTORY, _only(HISTORY, moved))
            have_it = [row for row in moved if row["state"] in HAS_IT]
            rang_at = _rang_at(connection, {row["filename"] for row in have_it})
            for key, at in times.items():
                _hear(devices[key[0]], batch[key], at)
            bulk.upsert(connection, DEVICES, list(devices.values()), ("reported_at", "version", "agent", "follows"))
        return Recorded(
            changes=tuple(batch[key] for key in changed),
            unknown=sum(one.mac not in devices for one in reports),
            disbelieved=sum(batch[key].at not in {None, at} for key, at in times.items()),
            rollouts=tuple(
                arrived_at - rang_at[row["filename"], row["etag"]]
                for row in have_it
                if arrived_at >= rang_at.get((row["filename"], row["etag"]), NEVER)
            ),
        )

    def know(self, macs: Iterable[str], source: KnownBy, *, since: datetime) -> None:
        """Have these devices known; those that are keep their source."""
        order = sorted(macs)
        for index in range(0, len(order), AT_ONCE):
            with self.database.transaction(writing=True) as connection:
                new = [_new_device(mac, source, since) for mac in order[index : index + AT_ONCE]]
                bulk.insert(connection, DEVICES, new)

    def note_presence(self, online: Mapping[str, bool], *, at: datetime) -> set[str]:
        """Note which devices the broker says are there; return those that are not known, of which nothing is kept."""
        order = sorted(online)
        known: set[str] = set()
        for index in range(0, len(order), AT_ONCE):
            with self.database.transaction(writing=True) as connection:
                devices = _devices(connection, order[index : index + AT_ONCE])
                known.update(devices)
                rows = [{**row, "is_online": online[mac], "online_at": at} for mac, row in devices.items()]
                rows = [row for row in rows if row["is_online"] is not devices[row["mac"]]["is_online"]]
                bulk.upsert(connection, DEVICES, rows, ("is_online", "online_at"))
        return online.keys() - known

    def assign(self, macs: Iterable[str], filename: str, *, at: datetime) -> None:
        """Have these devices, known or not, follow this asset; "": what they follow by themselves."""
        order = sorted(macs)
        for index in range(0, len(order), AT_ONCE):
            with self.database.transaction(writing=True) as connection:
                new = [
                    _new_device(mac, "assignment", at) | {"assigned": filename}
                    for mac in order[index : index + AT_ONCE]
                ]
                bulk.upsert(connection, DEVICES, new, ("assigned",))

    def note_uploads(self, uploads: Sequence[Mapping[str, Any]]) -> None:
        """Keep these rows of `UPLOADS`, without their `id`: the last `MAX_UPLOADS`. Of a known one the confirmation."""
        with self.database.transaction(writing=True) as connection:
            known = select(UPLOADS.c.identity).where(
                bulk.among(UPLOADS.c.identity, [one["identity"] for one in uploads], connection)
            )
            old = set(connection.execute(known).scalars())
            for one in uploads:
                if one["identity"] in old and one["confirmed_at"] is not None:
                    this = UPLOADS.c.identity == one["identity"]
                    connection.execute(update(UPLOADS).where(this).values(confirmed_at=one["confirmed_at"]))
            bulk.insert(connection, UPLOADS, uploads)
            newest = select(UPLOADS.c.id).order_by(UPLOADS.c.id.desc()).offset(MAX_UPLOADS).limit(1).scalar_subquery()
            connection.execute(delete(UPLOADS).where(UPLOADS.c.id <= newest))

    def remove(self, mac: str) -> bool:
        """Forget a device and all that it said; whether there was one."""
        with self.database.transaction(writing=True) as connection:
            for table in (HISTORY, REPORTS):
                connection.execute(delete(table).where(table.c.mac == mac))
            return connection.execute(delete(DEVICES).where(DEVICES.c.mac == mac)).rowcount > 0

    def forget_history(self, *, before: datetime) -> bool:
        """Drop what was reported before, some thousands at a time; whether there may be more."""
        with self.database.transaction(writing=True) as connection:
            old = select(HISTORY.c.id).where(HISTORY.c.arrived_at < before).limit(MAX_FORGOTTEN)
            found = list(connection.execute(old).scalars())
            if found:
                connection.execute(delete(HISTORY).where(bulk.among(HISTORY.c.id, found, connection)))
            return len(found) == MAX_FORGOTTEN


def _new_device(mac: str, source: KnownBy, since: datetime) -> dict[str, Any]:
    empty: dict[str, Any] = {"is_online": None, "online_at": None, "reported_at": None}
    texts = {"version": "", "agent": "", "follows": "", "assigned": ""}
    return {"mac": mac, "source": source, "known_since": since, **empty, **texts}


def _devices(connection: Connection, macs: Sequence[str]) -> dict[str, dict[str, Any]]:
    """The rows of those devices that are known, by MAC, in order."""
    question = select(DEVICES).where(bulk.among(DEVICES.c.mac, macs, connection))
    rows = {row["mac"]: dict(row) for row in connection.execute(question).mappings()}
    return {mac: rows[mac] for mac in macs if mac in rows}


def _reports(connection: Connection, macs: Sequence[str]) -> dict[tuple[str, str], tuple[Any, ...]]:
    """What these devices said last of each file."""
    columns = (REPORTS.c.mac, REPORTS.c.filename, *(REPORTS.c[name] for name in _SAID))
    question = select(*columns).where(bulk.among(REPORTS.c.mac, macs, connection))
    return {(mac, filename): tuple(said) for mac, filename, *said in connection.execute(question)}


def _rang_at(connection: Connection, filenames: Collection[str]) -> dict[tuple[str, str], datetime]:
    """When the last upload of each of these files rang, by filename and etag."""
    if not filenames:
        return {}
    columns = UPLOADS.c.filename, UPLOADS.c.etag, UPLOADS.c.rang_at
    question = select(*columns).where(bulk.among(UPLOADS.c.filename, list(filenames), connection))
    return {(filename, etag): at for filename, etag, at in connection.execute(question.order_by(UPLOADS.c.id))}


def _by_key(row: Mapping[str, Any]) -> tuple[str, str]:
    return row["mac"], row["filename"]


def _said(report: DeviceReport) -> tuple[Any, ...]:
    return tuple(getattr(report, name) for name in _SAID)


def _state(said: tuple[Any, ...] | None) -> tuple[str, str] | None:
    return None if said is None else (said[_SAID.index("etag")], said[_SAID.index("state")])


def _hear(device: dict[str, Any], report: DeviceReport, at: datetime) -> None:
    """Change what is known of a device as its report says."""
    device["reported_at"] = max(at, device["reported_at"] or at)
    device["version"] = report.version or device["version"]
    device["agent"] = report.agent or device["agent"]
    if report.state == "installed":
        device["follows"] = stem(report.filename) or device["follows"]


def _only(table: Table, rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The columns that a table has."""
    names = [column.name for column in table.columns if column.name != "id"]
    return [{name: row[name] for name in names} for row in rows]
