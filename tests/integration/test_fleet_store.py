"""What devices reported, on SQLite and on PostgreSQL: kept once, in order, within bounds; forgotten in time."""

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions.fleet.reports import DeviceReport, FileState
from functions.stored.database import Database
from functions.stored.fleet import MAX_UPLOADS, FleetStore
from tests.databases import execute

MAC, OTHER = "a1-b2-c3-d4-e5-f6", "a1-b2-c3-d4-e5-f7"
FILE = "esp32/fw-1.2.4.bin"
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)


@pytest.fixture
def fleet(migrated_url: str) -> FleetStore:
    """A fleet of one known device."""
    store = FleetStore(Database(migrated_url))
    store.know([MAC], "config", since=NOON)
    return store


def said(state: FileState = "installed", filename: str = FILE, mac: str = MAC, **more: Any) -> DeviceReport:  # noqa: ANN401 - of each field its own type
    """A report."""
    return DeviceReport(mac, filename, state, "e1")._replace(**more)


def rows(url: str, table: str, columns: str) -> list[tuple[Any, ...]]:
    """What is in a table."""
    return execute(url, f"SELECT {columns} FROM {table} ORDER BY {columns}")  # noqa: S608 - this file's own words


def test_each_state_is_kept_and_an_equal_report_is_one(fleet: FleetStore, migrated_url: str) -> None:
    """A device may say the same again: on every start, or because nobody acknowledged it."""
    for state in ("downloading", "installed", "installed"):
        fleet.record([said(state)], arrived_at=NOON)
    assert rows(migrated_url, "fleet_reports", "filename, state") == [(FILE, "installed")]
    assert rows(migrated_url, "fleet_history", "id, state") == [(1, "downloading"), (2, "installed")]
    assert fleet.record([said("installed")], arrived_at=NOON).changes == ()


def test_of_one_batch_a_device_s_newest_word_on_a_file_counts(fleet: FleetStore, migrated_url: str) -> None:
    """However fast one device reports, it costs a row for each file and batch."""
    many = [said("downloading", progress=percent) for percent in range(100)]
    recorded = fleet.record([*many, said("downloaded", "b.bin")], arrived_at=NOON)
    assert [(one.filename, one.progress) for one in recorded.changes] == [(FILE, 99), ("b.bin", None)]
    assert len(rows(migrated_url, "fleet_history", "id")) == 2


def test_progress_alone_is_no_history(fleet: FleetStore, migrated_url: str) -> None:
    """The table of reports shows it; the history says which states there were."""
    for percent in (1, 50, 99):
        fleet.record([said("downloading", progress=percent)], arrived_at=NOON)
    assert rows(migrated_url, "fleet_reports", "progress") == [(99,)]
    assert len(rows(migrated_url, "fleet_history", "id")) == 1


def test_a_stranger_s_report_is_counted_and_not_kept(fleet: FleetStore, migrated_url: str) -> None:
    """A million invented addresses fill no table, unless that is asked for."""
    recorded = fleet.record([said(mac=OTHER), said()], arrived_at=NOON)
    assert (recorded.unknown, len(recorded.changes)) == (1, 1)
    assert rows(migrated_url, "fleet_devices", "mac") == [(MAC,)]
    assert fleet.record([said(mac=OTHER)], arrived_at=NOON, accepts_unknown=True).unknown == 0
    assert rows(migrated_url, "fleet_devices", "mac, source") == [(MAC, "config"), (OTHER, "report")]


def test_a_clock_is_believed_between_the_last_report_and_five_minutes_ahead(fleet: FleetStore) -> None:
    """One that is wrong changes no order: the time of arrival stands for it."""
    times = [
        (datetime(1970, 1, 1, tzinfo=UTC), 1),  # no clock
        (NOON - MINUTE, 1),  # before the last report, which counts as said at its arrival
        (NOON + 4 * MINUTE, 0),
        (NOON + 3 * MINUTE, 1),
        (NOON + 6 * MINUTE, 1),
        (datetime(2050, 1, 1, tzinfo=UTC), 1),
        (None, 0),
    ]
    for number, (at, disbelieved) in enumerate(times):
        found = fleet.record([said(etag=str(number), at=at)], arrived_at=NOON)
        assert (number, found.disbelieved) == (number, disbelieved)


def test_a_first_report_may_have_waited_for_days(fleet: FleetStore, migrated_url: str) -> None:
    """The device had no line; it says when it was."""
    assert fleet.record([said(at=NOON - 3 * DAY)], arrived_at=NOON).disbelieved == 0
    (found,) = rows(migrated_url, "fleet_reports", "at")
    assert "2026-11-27 12:00" in str(found[0])


def test_what_a_device_installed_last_is_what_it_follows(fleet: FleetStore, migrated_url: str) -> None:
    """Its own config, and a file of no channel, change nothing."""
    fleet.record([said(), said("installed", f"{MAC}.json")], arrived_at=NOON)
    fleet.record([said("failed", "esp8266/other-2.bin"), said("installed", "root-1.bin")], arrived_at=NOON)
    assert rows(migrated_url, "fleet_devices", "mac, follows") == [(MAC, "esp32/fw.bin")]


def test_presence_and_assignments_are_kept_beside_what_was_reported(fleet: FleetStore, migrated_url: str) -> None:
    """Neither takes anything of the other away; an assignment makes a device known, presence does not."""
    fleet.record([said(version="1.2.4", agent="esp")], arrived_at=NOON)
    fleet.note_presence({MAC: True, OTHER: True}, at=NOON)
    fleet.assign([MAC, OTHER], "esp32/fw-2.bin", at=NOON)
    fleet.note_presence({MAC: False}, at=NOON + MINUTE)
    fleet.record([said("downloading", "esp32/fw-2.bin")], arrived_at=NOON)
    columns = "mac, source, is_online, version, agent, follows, assigned"
    false = 0 if migrated_url.startswith("sqlite") else False
    assert rows(migrated_url, "fleet_devices", columns) == [
        (MAC, "config", false, "1.2.4", "esp", "esp32/fw.bin", "esp32/fw-2.bin"),
        (OTHER, "assignment", None, "", "", "", "esp32/fw-2.bin"),
    ]


def test_a_device_that_is_removed_leaves_nothing(fleet: FleetStore, migrated_url: str) -> None:
    """Neither its reports nor its history; and it is asked once only."""
    fleet.record([said()], arrived_at=NOON)
    assert fleet.remove(MAC)
    assert not fleet.remove(MAC)
    for table in ("fleet_devices", "fleet_reports", "fleet_history"):
        assert rows(migrated_url, table, "mac") == []


def test_history_ends_with_its_time_and_reports_stay(fleet: FleetStore, migrated_url: str) -> None:
    """What a device has does not get old."""
    fleet.record([said("downloading")], arrived_at=NOON)
    fleet.record([said("installed")], arrived_at=NOON + MINUTE)
    assert not fleet.forget_history(before=NOON + MINUTE)
    assert rows(migrated_url, "fleet_history", "state") == [("installed",)]
    assert rows(migrated_url, "fleet_reports", "state") == [("installed",)]


def test_the_last_uploads_are_kept_and_confirmed(fleet: FleetStore, migrated_url: str) -> None:
    """Beyond the limit the oldest goes."""

    def upload(number: int, confirmed_at: datetime | None = None) -> dict[str, Any]:
        return {
            "identity": f"{number:032x}",
            "object_key": f"assets/{number}",
            "filename": str(number),
            "etag": "e",
            "size": None,
            "uploaded_at": NOON,
            "rang_at": NOON,
            "confirmed_at": confirmed_at,
        }

    fleet.note_uploads([upload(number) for number in range(MAX_UPLOADS)])
    fleet.note_uploads([upload(1, NOON), upload(MAX_UPLOADS)])
    found = rows(migrated_url, "fleet_uploads", "identity, confirmed_at")
    assert len(found) == MAX_UPLOADS
    assert found[0][0] == f"{1:032x}"
    assert found[0][1] is not None
    assert found[1][1] is None


def test_a_rollout_lasts_from_the_ring_to_the_report_of_that_content(fleet: FleetStore) -> None:
    """Once for each device; of an upload that is repeated the last ring counts; nothing is invented."""
    fleet.know([OTHER], "config", since=NOON)
    rows = [
        {"identity": str(number), "object_key": f"assets/{FILE}", "filename": FILE, "etag": etag, "size": 1}
        | {"uploaded_at": None, "rang_at": NOON + number * MINUTE, "confirmed_at": None}
        for number, etag in enumerate(("e0", "e1", "e1", "e2"))
    ]
    fleet.note_uploads(rows)

    def took(*reports: DeviceReport, minutes: int = 5) -> list[float]:
        recorded = fleet.record(reports, arrived_at=NOON + minutes * MINUTE)
        return [one / MINUTE for one in recorded.rollouts]

    assert took(said("downloading"), said("installed"), said("downloaded", mac=OTHER)) == [3]
    assert took(said("installed"), said("installed", reason="again")) == [], "the device has had it"
    assert took(said("installed", mac=OTHER), minutes=12) == [10]
    assert took(said("installed", etag="e3"), said("installed", "other.bin"), minutes=13) == [], "never announced"
    assert took(said("installed", etag="e2"), minutes=2) == [], "it has not rung yet"
