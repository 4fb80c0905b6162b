"""What a device tells of its files: the newest state, at most once a second for each, the last one always."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from infra.device.names import Name
from infra.device.outbox import BUSY_SECONDS, GAP_SECONDS, MAX_LOSSES, SETTLE_SECONDS, MqttReports, Outbox, deliver
from infra.device.server import DownloadServer, Ticket
from infra.device.store import DeviceStore, Version
from infra.device.trouble import FetchError

NAME, OTHER = Name("asset", "esp32/fw-1.2.bin"), Name("asset", "other.bin")
TOPIC = "iotsupport/devices/a1-b2-c3-d4-e5-f6/report"
TICKET = Ticket("http://store", Version("e1", 200), version_id="v1")


class Case:
    """An outbox on a disk, with a clock of its own."""

    def __init__(self, directory: Path, *, by_http: bool = False) -> None:
        self.now = 1000.0
        self.store = DeviceStore(directory)
        self.outbox = Outbox(self.store, "bucketbell/1", by_http=by_http, clock=lambda: self.now)
        self.said: list[str] = []
        self.mqtt = MqttReports(self.outbox, TOPIC, self.say)

    def say(self, event: str, /, **_fields: object) -> None:
        """As the device's report."""
        self.said.append(event)

    def out(self) -> list[tuple[str, Any]]:
        """What goes out now, and is acknowledged: state and progress."""
        found = []
        while (report := self.outbox.next()) is not None:
            found.append((report.body["state"], report.body.get("progress")))
            self.outbox.delivered(report)
        return found

    def installed(self, name: Name = NAME, etag: str = "e1", *, is_new: bool = True) -> None:
        """The file is in place."""
        self.outbox.held(name, etag, None, is_new=is_new)


@pytest.fixture
def case(tmp_path: Path) -> Iterator[Case]:
    """An empty one."""
    case = Case(tmp_path)
    yield case
    case.store.close()


def again(case: Case) -> Case:
    """The next run on the same disk."""
    case.store.close()
    return Case(case.store.directory)


def test_a_long_download_is_told_once_a_second_and_its_end_always(case: Case) -> None:
    """Each with the newest progress; what is over soon, is told by its end alone."""
    told = []
    for length in range(0, 200, 5):
        case.outbox.coming(NAME, TICKET, length)
        case.now += GAP_SECONDS / 8
        told += [(case.now, *one) for one in case.out()]
    assert [state for _, state, _ in told] == ["downloading"] * len(told)
    assert all(later[0] - earlier[0] >= GAP_SECONDS for earlier, later in itertools.pairwise(told))
    assert 4 <= len(told) <= 6
    assert [percent for *_, percent in told] == sorted({percent for *_, percent in told})
    case.outbox.coming(NAME, TICKET, 200)
    case.installed()
    case.now += GAP_SECONDS
    assert case.out() == [("installed", None)]
    case.outbox.coming(OTHER, TICKET, 0)
    case.installed(OTHER)
    assert case.out() == [("installed", None)]


def test_a_download_that_takes_a_while_is_told_of_at_its_beginning(case: Case) -> None:
    """And whole but not verified is a state of its own."""
    case.outbox.coming(NAME, TICKET, 0)
    assert case.out() == []
    case.now += SETTLE_SECONDS
    assert case.out() == [("downloading", 0)]
    case.outbox.coming(NAME, TICKET, 200)
    assert case.out() == []
    case.now += GAP_SECONDS
    assert case.out() == [("downloaded", None)]


def test_a_report_says_which_file_by_whom_and_when(case: Case) -> None:
    """Nothing more than is known."""
    case.outbox.coming(NAME, TICKET, 100)
    case.outbox.note(OTHER, "failed", etag=None, reason="disk_full: no room")
    case.now += 1
    bodies = [report.body for report in (case.outbox.next(), case.outbox.next()) if report is not None]
    moments = [body.pop("at") for body in bodies]
    assert all(moment.endswith("+00:00") for moment in moments)
    agent = "bucketbell/1"
    assert bodies == [
        {
            "filename": "esp32/fw-1.2.bin",
            "state": "downloading",
            "agent": agent,
            "etag": "e1",
            "version_id": "v1",
            "progress": 50,
        },
        {"filename": "other.bin", "state": "failed", "agent": agent, "reason": "disk_full: no room"},
    ]


def test_what_is_in_place_is_told_until_that_was_delivered_once(case: Case) -> None:
    """Also by a device that could not tell it when it came; another version is news."""
    case.installed(is_new=False)
    assert case.outbox.next() is not None  # on its way when the process ends
    later = again(case)
    later.installed(is_new=False)
    assert later.out() == [("installed", None)]
    later.installed(is_new=False)
    assert later.out() == []
    last = again(later)
    last.installed(is_new=False)
    assert last.out() == []
    last.now += GAP_SECONDS
    last.installed(etag="e2", is_new=False)
    assert last.out() == [("installed", None)]
    last.store.close()


def test_the_newest_state_of_each_file_is_kept(case: Case) -> None:
    """A failure that was followed by success is not told later; what is being downloaded is not kept."""
    case.outbox.note(NAME, "failed", etag="e1", reason="cut: x")
    case.installed()
    case.outbox.coming(OTHER, TICKET, 1)
    later = again(case)
    assert later.out() == [("installed", None)]
    later.store.close()


def test_an_older_reports_acknowledgement_does_not_settle_a_newer_one(case: Case) -> None:
    """It is still kept."""
    case.outbox.note(NAME, "failed", etag="e1", reason="conflict: x")
    older = case.outbox.next()
    assert older is not None
    case.installed(etag="e2")
    case.outbox.delivered(older)
    later = again(case)
    assert later.out() == [("installed", None)]
    later.store.close()


def test_what_was_lost_goes_out_again_unless_there_is_news(case: Case) -> None:
    """The newer state stays."""
    case.installed()
    case.installed(OTHER)
    mine, other = case.mqtt.next(), case.mqtt.next()
    assert mine is not None
    assert other is not None
    case.outbox.note(OTHER, "failed", etag="e2", reason="corrupt: x")
    case.mqtt.lost([mine, other])
    case.now += GAP_SECONDS
    assert sorted(state for state, _ in case.out()) == ["failed", "installed"]


def test_a_broker_that_closes_over_reports_is_not_asked_for_ever(case: Case) -> None:
    """By HTTP from then on; said once. One acknowledgement in between, and it was something else."""
    case.installed()
    for _ in range(MAX_LOSSES - 1):
        message = case.mqtt.next()
        assert message is not None
        case.mqtt.lost([message])
    message = case.mqtt.next()
    assert message is not None
    case.mqtt.answered(message, 0)
    for _ in range(MAX_LOSSES):
        case.now += GAP_SECONDS
        case.installed()
        message = case.mqtt.next()
        assert message is not None
        case.mqtt.lost([message])
    assert case.outbox.by_http
    assert case.mqtt.next() is None
    assert case.said == ["unreported"]


def test_where_nobody_listens_it_asks_ever_more_rarely(case: Case) -> None:
    """And at once after the next connect."""
    case.installed()
    pauses = []
    for _ in range(12):
        before = case.now
        while (message := case.mqtt.next()) is None:
            case.now += 1
        pauses.append(case.now - before)
        case.mqtt.answered(message, 0x10)
    assert pauses[0] == 0
    assert BUSY_SECONDS / 2 <= pauses[1] <= BUSY_SECONDS + 1
    assert 1800 <= pauses[-1] <= 3601
    assert case.mqtt.next() is None
    case.mqtt.connected()
    assert case.mqtt.next() is not None


class Server(DownloadServer):
    """Takes reports as the test says."""

    def __init__(self, *answers: FetchError | None) -> None:
        self.answers = list(answers)
        self.bodies: list[bytes] = []

    def report(self, body: bytes) -> None:
        """As `DownloadServer.report`."""
        self.bodies.append(body)
        if self.answers and (trouble := self.answers.pop(0)) is not None:
            raise trouble


@pytest.mark.parametrize(
    ("trouble", "seconds"),
    [
        (FetchError("unavailable", "503", after_seconds=7), 7),
        (FetchError("unreachable", "no host"), BUSY_SECONDS),
        (FetchError("gone", "404"), 3600),
    ],
)
def test_a_host_that_takes_no_report_now_is_left_alone_for_a_while(
    case: Case, trouble: FetchError, seconds: float
) -> None:
    """What it did not take goes out later."""
    case.installed()
    server = Server(trouble)
    deliver(case.outbox, server)
    case.now += seconds - 0.1
    deliver(case.outbox, server)
    assert len(server.bodies) == 1
    case.now += 0.2
    deliver(case.outbox, server)
    assert server.bodies[1:] == server.bodies[:1]
    assert case.out() == []


def test_a_damaged_note_on_the_disk_harms_nothing(case: Case) -> None:
    """As after a power cut: it is as if it were not there."""
    case.installed()
    case.installed(OTHER)
    notes = sorted((case.store.directory / ".bucketbell").glob("*.report.json"))
    notes[0].write_bytes(b"")
    (notes[0].parent / "x.report.json").write_text('{"path": "assets/../up", "body": {"state": "installed"}}')
    (notes[0].parent / "y.report.json").write_text('{"path": "elsewhere/a", "body": {"state": "installed"}}')
    later = again(case)
    assert later.out() == [("installed", None)]
    later.store.close()
