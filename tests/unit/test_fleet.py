"""What a report may say, and which file a device follows."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from functions.fleet.channels import Choice, choose, newest, stem
from functions.fleet.reports import MAX_REASON_CHARACTERS, MAX_REPORT_BYTES, DeviceReport, ReportError, parse_report
from functions.fleet.standing import Following, Reporting, census

MAC = "a1-b2-c3-d4-e5-f6"
GOOD: dict[str, Any] = {"filename": "esp32/fw-1.2.4.bin", "state": "installed"}


def body(**changes: object) -> bytes:
    """A good report with some fields changed."""
    return json.dumps(GOOD | changes).encode()


def test_a_report_needs_a_filename_and_a_state() -> None:
    """All else is left empty where the device said nothing."""
    assert parse_report(body(), MAC.upper()) == DeviceReport(MAC, "esp32/fw-1.2.4.bin", "installed")


def test_every_field_of_a_report_is_read() -> None:
    """Entity tags come as devices have them: quoted or not, weak or not."""
    more = {"etag": 'W/"e1"', "version_id": "v", "progress": 39.6, "reason": "a\nb", "version": "1", "agent": "x"}
    found = parse_report(body(**more, at="2026-11-30T12:00:00+01:00", mac=MAC.upper()), MAC)
    assert found[3:9] == ("e1", "v", 40, "a b", "1", "x")
    assert found.at == datetime(2026, 11, 30, 11, tzinfo=UTC)
    assert not found.has_unknown_fields


def test_fields_that_nobody_knows_are_left_out_and_noticed() -> None:
    """A device of a later release may say more."""
    assert parse_report(body(battery=3.7), MAC) == parse_report(body(), MAC)._replace(has_unknown_fields=True)


def test_a_long_reason_is_cut() -> None:
    """It is for a person, not for a log of its own."""
    assert len(parse_report(body(reason="x" * 5000), MAC).reason) == MAX_REASON_CHARACTERS


def test_a_device_s_own_config_is_named_in_lower_case() -> None:
    """As its MAC is, whatever the case of the file in the bucket."""
    assert parse_report(body(filename=f"{MAC.upper()}.json"), MAC).filename == f"{MAC}.json"


@pytest.mark.parametrize(
    ("report", "refusal"),
    [
        (b"", "not_json"),
        (b"[]", "not_json"),
        (b"\xff", "not_json"),
        (b"[" * 5000, "not_json"),
        (b" " * (MAX_REPORT_BYTES + 1), "too_large"),
        (b'{"state": "installed"}', "bad_field"),
        (b'{"filename": "x"}', "unknown_state"),
        (body(state="eaten"), "unknown_state"),
        (body(filename="../x"), "bad_filename"),
        (body(filename="/x"), "bad_filename"),
        (body(filename=""), "bad_filename"),
        (body(filename="a1-b2-c3-d4-e5-f7.json"), "foreign_config"),
        (body(mac="a1-b2-c3-d4-e5-f7"), "foreign_mac"),
        (body(progress="40"), "bad_field"),
        (body(progress=101), "bad_field"),
        (body(progress=True), "bad_field"),
        (body(at="yesterday"), "bad_field"),
        (body(at="2026-11-30T12:00:00"), "bad_field"),
        (body(version="\0"), "bad_field"),
        (body(etag="x" * 129), "bad_field"),
        (body(filename="<img>")[:-1], "not_json"),
    ],
)
def test_a_bad_report_is_refused_by_name_and_not_quoted(report: bytes, refusal: str) -> None:
    """The metric has one word for each kind; what a device sent never reaches the log."""
    with pytest.raises(ReportError) as refused:
        parse_report(report, MAC)
    assert refused.value.refusal == refusal
    assert "eaten" not in str(refused.value)


def test_times_at_the_ends_of_the_calendar_are_read() -> None:
    """Converting them would overflow."""
    for at in ("9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00"):
        assert parse_report(body(at=at), MAC).at is not None


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        ("esp32/fw-1.2.4.bin", "esp32/fw.bin"),
        ("esp32/fw_v2.bin", "esp32/fw.bin"),
        ("esp32/fw.bin", "esp32/fw.bin"),
        ("esp32/fw-1.2.4", "esp32/fw"),
        ("esp32/1.2.3.bin", "esp32/.bin"),
        ("a/b/app-2026.11.30-rc1.tar.gz", "a/b/app.tar.gz"),
        ("esp32/fw-2026-11-30.bin", "esp32/fw.bin"),
        ("esp32/fw-1.2.4+build7.bin", "esp32/fw.bin"),
        ("esp32/esp32s3-1.0.bin", "esp32/esp32s3.bin"),
        ("esp32/model3.bin", "esp32/model3.bin"),
        ("fw-1.2.4.bin", ""),
        ("esp32/fw-1.2.4.bin.sig", ""),
        ("esp32/fw-1.2.4.SHA256", ""),
        ("esp32/notes-1.md", ""),
    ],
)
def test_the_versions_of_a_firmware_share_a_stem(filename: str, expected: str) -> None:
    """A digit that belongs to the name stays; the root is no channel; what lies beside a firmware is none."""
    assert stem(filename) == expected


def test_the_file_that_was_modified_last_is_current() -> None:
    """By the store's time, not by the number in the name: going back is an upload, too."""
    noon = datetime(2026, 11, 30, 12, tzinfo=UTC)
    files = [("c/fw-2.bin", noon), ("c/fw-1.bin", noon + timedelta(seconds=1)), ("c/other-9.bin", noon), ("root", noon)]
    current = newest(files)
    assert current == {"c/fw.bin": "c/fw-1.bin", "c/other.bin": "c/other-9.bin"}
    assert choose("", "c/fw.bin", current) == Choice("c/fw-1.bin", "channel")
    assert choose("c/fw-7.bin", "c/fw.bin", current) == Choice("c/fw-7.bin", "assigned")
    assert choose("", "", current) is None


def test_each_device_is_counted_once_by_the_file_that_it_should_have() -> None:
    """What it says of other files counts for nothing, and a device without a file is unknown."""
    current, etags = {"c/fw.bin": "c/fw-2.bin"}, {"c/fw-1.bin": "e1", "c/fw-2.bin": "e2", "root.bin": "e0"}
    follows = ("c/fw.bin", "")

    def groups(*rows: tuple[str, str, bool | None, int]) -> list[Following]:
        return [Following(*row) for row in rows]

    following = groups((*follows, True, 9), (*follows, False, 2), ("", "", None, 4), ("", "root.bin", None, 1))
    following += groups(("gone/fw.bin", "", True, 3), ("c/fw.bin", "gone.bin", True, 1))
    reporting = [
        Reporting(*follows, True, "c/fw-2.bin", "e2", "installed", 3),  # noqa: FBT003 - a row
        Reporting(*follows, True, "c/fw-2.bin", "e2", "downloading", 1),  # noqa: FBT003
        Reporting(*follows, True, "c/fw-2.bin", "e2", "rolled_back", 2),  # noqa: FBT003
        Reporting(*follows, True, "c/fw-2.bin", "older", "installed", 1),  # noqa: FBT003
        Reporting(*follows, True, "c/fw-1.bin", "e1", "installed", 9),  # noqa: FBT003
        Reporting("", "", None, "root.bin", "e0", "installed", 4),
    ]
    expected = {"has_it": 3, "on_the_way": 1, "failed": 2, "waiting": 3 + 1, "offline": 2, "unknown": 4 + 3 + 1}
    assert census(reporting, following, etags, current) == expected
    assert sum(expected.values()) == sum(group.devices for group in following)


def test_a_fleet_of_nobody_has_every_state() -> None:
    """With 0, so that a graph and an alert have something to begin with."""
    expected = dict.fromkeys(("has_it", "on_the_way", "failed", "waiting", "offline", "unknown"), 0)
    assert census([], [], {}, {}) == expected
