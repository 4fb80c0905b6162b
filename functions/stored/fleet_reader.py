"""What is asked of the fleet in the database, page by page."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import and_, func, select

from functions.fleet.reports import HAS_IT, FileState
from functions.fleet.standing import Following, KnownDevice, LastReport, Reporting
from functions.stored import bulk
from functions.stored.database import Database
from functions.stored.fleet import DEVICES, HISTORY, REPORTS, UPLOADS

MAX_HISTORY = 100


class PastReport(NamedTuple):
    """A state that a file of a device was in."""

    filename: str
    etag: str
    state: FileState
    reason: str
    at: datetime
    arrived_at: datetime


class AnnouncedUpload(NamedTuple):
    """An upload and its legs. `has_it` devices have reported that they do; the first and the last of them and when."""

    identity: str
    object_key: str
    filename: str
    etag: str
    size: int | None
    uploaded_at: datetime | None
    rang_at: datetime
    confirmed_at: datetime | None
    has_it: int
    first_at: datetime | None
    last_at: datetime | None


class FleetReader:
    """Thread-safe; every call blocks. MACs are in lower case. Every method raises `StoreUnavailableError`."""

    def __init__(self, database: Database) -> None:
        """Connects to nothing yet."""
        self._database = database

    def device(self, mac: str) -> KnownDevice | None:
        """One device, if it is known."""
        with self._database.transaction() as connection:
            row = connection.execute(select(DEVICES).where(DEVICES.c.mac == mac)).first()
        return None if row is None else KnownDevice(*row)

    def devices(self, *, after: str = "", search: str = "", limit: int = 100) -> list[KnownDevice]:
        """Known devices behind the MAC `after`, in order; with `search` those whose MAC, version or agent has it."""
        question = select(DEVICES).where(DEVICES.c.mac > after)
        if search:
            columns = (DEVICES.c.mac, DEVICES.c.version, DEVICES.c.agent)
            wanted = [column.icontains(search, autoescape=True) for column in columns]
            question = question.where(wanted[0] | wanted[1] | wanted[2])
        with self._database.transaction() as connection:
            found = connection.execute(question.order_by(DEVICES.c.mac).limit(limit))
            return [KnownDevice(*row) for row in found]

    def these(self, macs: Sequence[str]) -> dict[str, KnownDevice]:
        """Those of these devices that are known."""
        with self._database.transaction() as connection:
            found = connection.execute(select(DEVICES).where(bulk.among(DEVICES.c.mac, macs, connection)))
            return {row.mac: KnownDevice(*row) for row in found}

    def reports(self, macs: Sequence[str]) -> dict[str, list[LastReport]]:
        """What these devices said last of each of their files, by MAC, the newest first."""
        found: dict[str, list[LastReport]] = {}
        with self._database.transaction() as connection:
            question = select(REPORTS).where(bulk.among(REPORTS.c.mac, macs, connection))
            for row in connection.execute(question.order_by(REPORTS.c.arrived_at.desc(), REPORTS.c.filename)):
                found.setdefault(row.mac, []).append(LastReport(*row))
        return found

    def history(self, mac: str, limit: int = MAX_HISTORY) -> list[PastReport]:
        """The last states of a device's files, the newest first."""
        columns = [HISTORY.c[name] for name in PastReport._fields]
        question = select(*columns).where(HISTORY.c.mac == mac).order_by(HISTORY.c.id.desc()).limit(limit)
        with self._database.transaction() as connection:
            return [PastReport(*row) for row in connection.execute(question)]

    def following(self) -> list[Following]:
        """How many devices follow what."""
        columns = (DEVICES.c.follows, DEVICES.c.assigned, DEVICES.c.is_online)
        with self._database.transaction() as connection:
            return [Following(*row) for row in connection.execute(select(*columns, func.count()).group_by(*columns))]

    def reporting(self) -> list[Reporting]:
        """How many devices said what of each asset; configs are left out."""
        columns = (
            DEVICES.c.follows,
            DEVICES.c.assigned,
            DEVICES.c.is_online,
            REPORTS.c.filename,
            REPORTS.c.etag,
            REPORTS.c.state,
        )
        question = select(*columns, func.count()).select_from(DEVICES.join(REPORTS, DEVICES.c.mac == REPORTS.c.mac))
        question = question.where(REPORTS.c.filename != REPORTS.c.mac + ".json").group_by(*columns)
        with self._database.transaction() as connection:
            return [Reporting(*row) for row in connection.execute(question)]

    def on_file(
        self, filename: str, stem: str, *, after: str = "", limit: int = 100
    ) -> list[tuple[KnownDevice, LastReport | None]]:
        """Devices behind the MAC `after` that reported of a file, have it assigned, or follow its `stem`."""
        said = and_(REPORTS.c.mac == DEVICES.c.mac, REPORTS.c.filename == filename)
        concerned = (REPORTS.c.mac.is_not(None)) | (DEVICES.c.assigned == filename)
        if stem:
            concerned |= (DEVICES.c.assigned == "") & (DEVICES.c.follows == stem)
        question = select(DEVICES, REPORTS).select_from(DEVICES.outerjoin(REPORTS, said)).where(concerned)
        question = question.where(DEVICES.c.mac > after).order_by(DEVICES.c.mac).limit(limit)
        width = len(KnownDevice._fields)
        with self._database.transaction() as connection:
            return [
                (KnownDevice(*row[:width]), None if row[width] is None else LastReport(*row[width:]))
                for row in connection.execute(question)
            ]

    def uploads(self, limit: int = 100) -> list[AnnouncedUpload]:
        """The last uploads, the newest first, each with when its first and its last device had it."""
        newest = select(UPLOADS).order_by(UPLOADS.c.id.desc()).limit(limit).subquery()
        had = and_(
            HISTORY.c.filename == newest.c.filename,
            HISTORY.c.etag == newest.c.etag,
            HISTORY.c.state.in_(HAS_IT),
            HISTORY.c.arrived_at >= newest.c.rang_at,
        )
        names = AnnouncedUpload._fields[:8]
        legs = (func.count(HISTORY.c.mac.distinct()), func.min(HISTORY.c.arrived_at), func.max(HISTORY.c.arrived_at))
        question = select(*(newest.c[name] for name in names), *legs).select_from(newest.outerjoin(HISTORY, had))
        question = question.group_by(newest.c.id, *(newest.c[name] for name in names)).order_by(newest.c.id.desc())
        with self._database.transaction() as connection:
            return [AnnouncedUpload(*row) for row in connection.execute(question)]
