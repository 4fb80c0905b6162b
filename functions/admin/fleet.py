"""What an administrator can ask of the fleet: who has which file; without HTTP."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, get_args

from functions.admin.fleet_schemas import (
    DeviceAnswer,
    DeviceDetailAnswer,
    DevicesAnswer,
    FileDeviceAnswer,
    FileDevicesAnswer,
    FleetFileAnswer,
    FleetFilesAnswer,
    HearingAnswer,
    HeldAnswer,
    PastAnswer,
    TargetAnswer,
    UploadAnswer,
    UploadsAnswer,
)
from functions.events.names import is_config_name, normalise_mac
from functions.fleet.catalogue import KEPT_SECONDS, Catalogue
from functions.fleet.channels import channel, choose, stem
from functions.fleet.standing import STANDINGS, Hearing, Standing, census, standing, tally
from functions.s3.clients import StorageError
from functions.web.messages import Problem, unavailable, unfit

if TYPE_CHECKING:
    from functions.fleet.catalogue import Files
    from functions.fleet.reports import DeviceReport
    from functions.fleet.standing import KnownDevice, LastReport, Tally
    from functions.s3.objects import ObjectInfo, Objects
    from functions.settings import Settings
    from functions.stored.fleet import FleetStore
    from functions.stored.fleet_reader import FleetReader

MAX_PAGE = 1000
PAGE = 100
SEARCH_SECONDS = 3.0  # of one answer that filters: the client asks on
STORE_RETRY_SECONDS = 5
CENSUS_FILES_SECONDS = 300.0  # what is counted again and again has the bucket listed seldom, unless there are uploads


@dataclass(frozen=True, slots=True)
class FleetPage:
    """Which page is asked for, and what of it."""

    after: str = ""
    limit: int = PAGE
    search: str = ""
    state: Standing | None = None

    @classmethod
    def of(cls, parameters: Mapping[str, str]) -> FleetPage:
        """Read a query's parameters. Raises Problem."""
        limit, state = parameters.get("limit", str(PAGE)), parameters.get("state", "")
        if not (
            limit.isascii() and limit.isdigit() and len(limit) <= len(str(MAX_PAGE)) and 1 <= int(limit) <= MAX_PAGE
        ):
            raise unfit([{"field": "limit", "problem": "is not right", "expected": f"a number from 1 to {MAX_PAGE}"}])
        if state and state not in STANDINGS:
            raise unfit([{"field": "state", "problem": "is not right", "expected": f"one of {', '.join(STANDINGS)}"}])
        found = next((one for one in get_args(Standing) if one == state), None)
        return cls(parameters.get("after", ""), int(limit), parameters.get("search", "").strip(), found)


class FleetAnswers:
    """Thread-safe. Methods raise `Problem` and `StoreUnavailableError`."""

    def __init__(self, catalogue: Catalogue, store: FleetStore, reader: FleetReader, hearing: Hearing) -> None:
        self.catalogue, self.store, self.reader, self.hearing = catalogue, store, reader, hearing
        self.changed: Callable[[str], object] = lambda _mac: None
        """Hears of each device that somebody assigned a file to, or removed. Must not block."""

    @classmethod
    def of(cls, settings: Settings, objects: Objects | None) -> FleetAnswers | None:
        """The fleet of DATABASE_URL, or None where that or BUCKET is unset. Connects to nothing yet."""
        if settings.database_url is None or objects is None:
            return None
        from functions.stored.database import Database  # noqa: PLC0415 - SQLAlchemy, only where it is needed
        from functions.stored.fleet import FleetStore  # noqa: PLC0415 - as above
        from functions.stored.fleet_reader import FleetReader  # noqa: PLC0415 - as above

        database = Database(settings.database_url.get_secret_value(), keeps_connections=True)
        catalogue = Catalogue(objects, configs_prefix=settings.configs_prefix, assets_prefix=settings.assets_prefix)
        return cls(catalogue, FleetStore(database), FleetReader(database), Hearing())

    def close(self) -> None:
        """Close the connections to the database that are kept."""
        self.store.close()

    def report(self, said: DeviceReport) -> None:
        """Keep what a device reports with its token, by which it is known."""
        now = datetime.now(UTC)
        self.store.know([said.mac], "token", since=now)
        self.store.record(
            [said if said.etag else said._replace(etag=self._files().etag(said.filename))], arrived_at=now
        )

    def devices(self, page: FleetPage) -> DevicesAnswer:
        """Known devices, by MAC."""
        files = self._files()
        until = time.monotonic() + SEARCH_SECONDS
        found: list[DeviceAnswer] = []
        after = page.after
        while True:
            known = self.reader.devices(after=after, search=page.search, limit=page.limit)
            reports = self.reader.reports([one.mac for one in known])
            for one in known:
                answer = DeviceAnswer(**_device(one, reports.get(one.mac, ()), files))
                after = one.mac
                if page.state in {None, answer.standing}:
                    found.append(answer)
                    if len(found) == page.limit:
                        return DevicesAnswer(devices=tuple(found), next=after)
            if len(known) < page.limit:
                return DevicesAnswer(devices=tuple(found), next=None)
            if time.monotonic() > until:
                return DevicesAnswer(devices=tuple(found), next=after)

    def device(self, asked: str) -> DeviceDetailAnswer:
        """One device with all that it said."""
        mac = _mac(asked)
        known = self.reader.device(mac)
        if known is None:
            raise _no_device()
        files = self._files()
        reports = self.reader.reports([mac]).get(mac, [])
        held = tuple(
            HeldAnswer(
                filename=one.filename,
                etag=one.etag or None,
                version_id=one.version_id or None,
                state=one.state,
                progress=one.progress,
                reason=one.reason,
                at=one.at,
                arrived_at=one.arrived_at,
                current=one.etag == files.etag(one.filename),
            )
            for one in reports
        )
        past = tuple(PastAnswer(**one._asdict() | {"etag": one.etag or None}) for one in self.reader.history(mac))
        return DeviceDetailAnswer(**_device(known, reports, files), files=held, history=past)

    def assign(self, asked: str, filename: str) -> DeviceDetailAnswer:
        """Have a device, known or not, follow this asset; "": what it follows by itself."""
        mac = _mac(asked)
        if filename and filename not in self._files().assets:
            right = "an asset in the bucket, e.g. esp32/fw-1.2.bin"
            raise unfit([{"field": "filename", "problem": "is no asset in the bucket", "expected": right}])
        self.store.assign([mac], filename, at=datetime.now(UTC))
        self.changed(mac)
        return self.device(mac)

    def remove_device(self, asked: str) -> None:
        """Forget a device that is gone, and all that it said."""
        mac = _mac(asked)
        if not self.store.remove(mac):
            raise _no_device()
        self.changed(mac)

    def census(self) -> dict[str, int]:
        """How many devices there are, by how far each is with the file that it should have."""
        following, reporting = self.reader.following(), self.reader.reporting()
        files = self._files(CENSUS_FILES_SECONDS)
        return census(reporting, following, _etags(files), files.current)

    def files(self, page: FleetPage) -> FleetFilesAnswer:
        """Files in the bucket, newest first, each with how many devices have it."""
        files = self._files()
        wanted = page.search.lower()
        listed = [one for one in files.behind(page.after) if wanted in one.object_key.lower()]
        shown, rest = listed[: page.limit], listed[page.limit :]
        counted = self._tallies(files, shown)
        found = tuple(self._file(files, one, counted[one.object_key]) for one in shown)
        return FleetFilesAnswer(
            files=found,
            reports=HearingAnswer(by=self.hearing.by, detail=self.hearing.detail),
            next=shown[-1].object_key if rest else None,
        )

    def file_devices(self, filename: str, page: FleetPage) -> FileDevicesAnswer:
        """The devices that should have a file, and how far each of them is."""
        files = self._files()
        found: list[FileDeviceAnswer] = []
        is_config = is_config_name(filename) and filename not in files.assets
        info = files.configs.get(filename.lower().removesuffix(".json")) if is_config else files.assets.get(filename)
        if info is None:
            raise Problem(HTTPStatus.NOT_FOUND, "no_such_file", "There is no such file in the bucket.")
        if is_config:
            found = [one for one in [self._on_config(info, filename.lower())] if one is not None]
            return FileDevicesAnswer(
                devices=tuple(one for one in found if page.state in {None, one.standing}), next=None
            )
        kind = stem(filename) if files.current.get(stem(filename)) == filename else ""
        until = time.monotonic() + SEARCH_SECONDS
        after = page.after
        while True:
            rows = self.reader.on_file(filename, kind, after=after, limit=page.limit)
            for device, said in rows:
                after = device.mac
                choice = choose(device.assigned, device.follows, files.current)
                if choice is not None and choice.filename != filename:
                    continue
                answer = _on_file(device, said, info.etag)
                if page.search in device.mac and page.state in {None, answer.standing}:
                    found.append(answer)
                    if len(found) == page.limit:
                        return FileDevicesAnswer(devices=tuple(found), next=after)
            if len(rows) < page.limit:
                return FileDevicesAnswer(devices=tuple(found), next=None)
            if time.monotonic() > until:
                return FileDevicesAnswer(devices=tuple(found), next=after)

    def uploads(self, limit: int) -> UploadsAnswer:
        """The last uploads, and how far each of them got."""
        return UploadsAnswer(
            uploads=tuple(
                UploadAnswer(
                    id=one.identity,
                    key=one.object_key,
                    filename=one.filename,
                    etag=one.etag or None,
                    size=one.size,
                    uploaded_at=one.uploaded_at,
                    rang_at=one.rang_at,
                    confirmed_at=one.confirmed_at,
                    has_it=one.has_it,
                    first_at=one.first_at,
                    last_at=one.last_at,
                )
                for one in self.reader.uploads(limit)
            )
        )

    def _files(self, kept_seconds: float = KEPT_SECONDS) -> Files:
        try:
            return self.catalogue.files(kept_seconds)
        except StorageError as error:
            words = f"Not now: the store cannot be asked ({error.code})."
            raise unavailable("store_unavailable", words, retry_after_seconds=STORE_RETRY_SECONDS) from None

    def _tallies(self, files: Files, shown: Sequence[ObjectInfo]) -> dict[str, Tally]:
        """By key, for these files."""
        by_asset = tally(self.reader.reporting(), self.reader.following(), _etags(files), files.current)
        found: dict[str, Tally] = {files.assets[name].object_key: counts for name, counts in by_asset.items()}
        of_configs = {info.object_key: mac for mac, info in files.configs.items()}
        macs = [of_configs[one.object_key] for one in shown if one.object_key in of_configs]
        known, reports = self.reader.these(macs), self.reader.reports(macs)
        for one in shown:
            mac = of_configs.get(one.object_key)
            if mac is not None:
                device = known.get(mac)
                said = next((report for report in reports.get(mac, ()) if report.filename == f"{mac}.json"), None)
                found[one.object_key] = (
                    Counter() if device is None else Counter([_on_file(device, said, one.etag).standing])
                )
        return found

    def _file(self, files: Files, info: ObjectInfo, counts: Tally) -> FleetFileAnswer:
        filename = self.catalogue.filename(info)
        is_asset = files.assets.get(filename) is info
        kind = stem(filename) if is_asset else ""
        return FleetFileAnswer(
            filename=filename,
            kind="asset" if is_asset else "config",
            key=info.object_key,
            etag=info.etag or None,
            size=info.size,
            last_modified=info.last_modified,
            channel=(channel(filename) or None) if is_asset else None,
            current=not is_asset or files.current.get(kind, filename) == filename,
            should=sum(counts.values()),
            **{name: counts.get(name, 0) for name in STANDINGS},
        )

    def _on_config(self, info: ObjectInfo, filename: str) -> FileDeviceAnswer | None:
        mac = filename.removesuffix(".json")
        device = self.reader.device(mac)
        said = next((one for one in self.reader.reports([mac]).get(mac, ()) if one.filename == filename), None)
        return None if device is None else _on_file(device, said, info.etag)


def _etags(files: Files) -> dict[str, str]:
    return {name: info.etag for name, info in files.assets.items()}


def _device(known: KnownDevice, reports: Sequence[LastReport], files: Files) -> dict[str, Any]:
    """The fields of a `DeviceAnswer`."""
    choice = choose(known.assigned, known.follows, files.current)
    target = at = None
    if choice is not None:
        etag = files.etag(choice.filename)
        target = TargetAnswer(filename=choice.filename, etag=etag or None, rule=choice.rule)
        said = next((one for one in reports if one.filename == choice.filename), None)
        at = _on_file(known, said, etag).standing
    return {
        "mac": known.mac,
        "source": known.source,
        "known_since": known.known_since,
        "online": known.is_online,
        "online_at": known.online_at,
        "reported_at": known.reported_at,
        "version": known.version or None,
        "agent": known.agent or None,
        "target": target,
        "standing": at,
    }


def _on_file(device: KnownDevice, said: LastReport | None, etag: str) -> FileDeviceAnswer:
    state = None if said is None else said.state
    is_current = said is not None and said.etag == etag
    return FileDeviceAnswer(
        mac=device.mac,
        standing=standing(state, is_current=is_current, is_online=device.is_online),
        online=device.is_online,
        state=state,
        progress=None if said is None else said.progress,
        reason="" if said is None else said.reason,
        etag=None if said is None else said.etag or None,
        at=None if said is None else said.at,
    )


def _mac(asked: str) -> str:
    try:
        return normalise_mac(asked).lower()
    except ValueError as error:
        raise Problem(HTTPStatus.NOT_FOUND, "no_such_device", f"That is no device: {error}.") from None


def _no_device() -> Problem:
    return Problem(HTTPStatus.NOT_FOUND, "no_such_device", "No such device is known.")
