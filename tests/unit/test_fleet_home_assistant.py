"""Devices in Home Assistant: what is retained of each keeps its rules, and tells what the fleet knows."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.events.names import is_asset_path
from functions.fleet.channels import stem, version
from functions.fleet.home_assistant import MAX_SUMMARY_CHARACTERS, HomeAssistantTopics, update_payloads
from functions.fleet.reports import STATES, FileState
from functions.fleet.standing import KnownDevice, LastReport
from tests.discovery_rules import problems, update_problems

MAC = "a1-b2-c3-d4-e5-f6"
OLD, NEW, BARE = "esp32/fw-1.2.3.bin", "esp32/fw-1.2.4.bin", "esp32/fw.bin"
NOON = datetime(2026, 11, 30, 12, tzinfo=UTC)
DEVICE = KnownDevice(MAC, "config", NOON, True, NOON, NOON, "", "", "esp32/fw.bin", "")  # noqa: FBT003 - a row
ETAG = "a1b2c3d4e5f6"
TOPICS = HomeAssistantTopics("iot", "homeassistant", installs=True)


def said(state: FileState, filename: str = NEW, etag: str = ETAG, **more: Any) -> LastReport:  # noqa: ANN401 - of each field its own type
    """What the device said last of a file."""
    return LastReport(MAC, filename, etag, "", state, None, "", NOON, NOON)._replace(**more)


def retained(
    *reports: LastReport,
    current: str = NEW,
    topics: HomeAssistantTopics = TOPICS,
    etag: str = ETAG,
    **device: Any,  # noqa: ANN401 - as above
) -> Mapping[str, bytes]:
    """What is retained of the device, by topic, where `current` is its channel's newest file."""
    return update_payloads(DEVICE._replace(**device), reports, {stem(current): current}, lambda _: etag, topics)


def state(*reports: LastReport, **more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """The update's state, which keeps its rules."""
    payload = retained(*reports, **more)[f"iot/devices/{MAC}/versions"]
    assert update_problems(payload) == []
    return dict(json.loads(payload))


def described(**more: Any) -> dict[str, Any]:  # noqa: ANN401 - JSON
    """The discovery message, which keeps its rules."""
    topic = f"homeassistant/device/bucketbell_{MAC}/config"
    payload = retained(**more)[topic]
    assert problems(topic, payload, discovery_prefix="homeassistant") == []
    return dict(json.loads(payload))


def versions(*reports: LastReport, **more: Any) -> tuple[str, str]:  # noqa: ANN401 - as above
    """Which is installed, and which is the latest."""
    shown = state(*reports, **more)
    return shown["installed_version"], shown["latest_version"]


def test_a_device_is_an_update_with_a_state_and_a_command() -> None:
    """The state first, so that it is there when Home Assistant subscribes to it."""
    shown = described()
    assert shown["device"]["identifiers"] == [f"bucketbell_{MAC}"]
    assert shown["availability"] == [{"topic": f"iot/devices/{MAC}/status"}]
    update = shown["components"]["update"]
    assert update["platform"] == "update"
    assert (update["command_topic"], update["payload_install"]) == (f"iot/devices/{MAC}/install", "install")
    assert update["state_topic"] == next(iter(retained()))


def test_without_a_topic_of_its_own_nobody_can_ask_a_device() -> None:
    """Home Assistant shows no button then."""
    topics = HomeAssistantTopics("iot", "homeassistant", installs=False)
    assert "command_topic" not in described(topics=topics)["components"]["update"]


def test_a_device_that_never_says_that_it_is_there_is_always_available() -> None:
    """Home Assistant would wait for its word for ever."""
    assert "availability" not in described(is_online=None)
    assert "availability" in described(is_online=False)


@pytest.mark.parametrize(
    "device", [{"follows": ""}, {"follows": "esp32/other.bin"}, {"assigned": "root-1.2.bin"}], ids=str
)
def test_a_device_on_no_channel_is_not_shown(device: dict[str, Any]) -> None:
    """It follows nothing, nothing that is there, or a file that is in no folder."""
    assert retained(**device) == {}


@pytest.mark.parametrize(
    ("reports", "more", "expected"),
    [
        ([said("installed")], {}, ("1.2.4", "1.2.4")),
        ([said("installed", OLD)], {}, ("1.2.3", "1.2.4")),
        ([said("failed"), said("installed", OLD)], {}, ("1.2.3", "1.2.4")),
        ([], {}, ("unknown", "1.2.4 (a1b2c3d4)")),
        ([], {"version": "1.2.2"}, ("1.2.2", "1.2.4")),
        # Uploaded later is newer, whatever the number says: Home Assistant must not compare them.
        ([said("installed", NEW)], {"current": OLD}, ("1.2.4", "1.2.3 (a1b2c3d4)")),
        ([said("installed", etag="e0")], {}, ("1.2.4", "1.2.4 (a1b2c3d4)")),
        ([said("installed", "esp32/fw-1.2.bin")], {}, ("1.2", "1.2.4")),
        ([said("installed", "esp32/fw-1.10.bin")], {"current": "esp32/fw-1.9.bin"}, ("1.10", "1.9 (a1b2c3d4)")),
        ([said("installed", OLD)], {"current": "esp32/fw-1.2.4-rc1.bin"}, ("1.2.3", "1.2.4-rc1 (a1b2c3d4)")),
        # Names without a version.
        ([said("installed", BARE)], {"current": BARE}, ("etag a1b2c3d4", "etag a1b2c3d4")),
        ([said("installed", BARE)], {"current": BARE, "version": "7"}, ("7", "7")),
        ([said("installed", BARE, "e0e0e0e0")], {"current": BARE}, ("etag e0e0e0e0", "etag a1b2c3d4")),
        ([said("downloading", BARE)], {"current": BARE, "version": "7"}, ("7", "etag a1b2c3d4")),
    ],
)  # fmt: skip
def test_versions_are_those_of_names_or_what_the_device_says(
    reports: list[LastReport], more: dict[str, str], expected: tuple[str, str]
) -> None:
    """The same text exactly where the device has its file; otherwise one that Home Assistant offers."""
    assert versions(*reports, **more) == expected


def test_progress_is_told_while_the_device_is_at_it() -> None:
    """Afterwards it is taken back, since Home Assistant keeps what is left out."""
    keys = ("in_progress", "update_percentage", "release_summary")

    def shown(report: LastReport) -> tuple[Any, ...]:
        found = state(report)
        return tuple(found[key] for key in keys)

    assert shown(said("downloading", progress=40)) == (True, 40, "")
    assert shown(said("installing")) == (True, None, "")
    assert shown(said("installed", progress=100)) == (False, None, "")
    assert shown(said("rolled_back", reason="no boot")) == (False, None, "rolled back: no boot")
    assert shown(said("downloading", etag="e0", progress=40)) == (False, None, ""), "of the content before"
    assert len(state(said("failed", reason="x" * 300))["release_summary"]) == MAX_SUMMARY_CHARACTERS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("installed_version", None),
        ("latest_version", None),
        ("release_summary", None),
        ("update_percentage", 101),
        ("in_progress", None),
        ("release_notes", "x"),
    ],
)
def test_the_rules_find_what_home_assistant_refuses(field: str, value: object) -> None:
    """Seen there: nulls in place of texts, more than all, and fields that it does not know."""
    good = state(said("installed"))
    assert len(update_problems(json.dumps(good | {field: value}).encode())) == 1
    del good["title"]
    assert update_problems(json.dumps(good).encode()) == ["no title", "title is no text"]


def test_a_topic_tells_its_device() -> None:
    """What the broker keeps is recognised; what is a camera's, or another's, is left alone."""
    assert [TOPICS.mac(topic) for topic in TOPICS.of(MAC)] == [MAC, MAC]
    strangers = (
        "homeassistant/device/bucketbell_front/config",
        f"homeassistant/device/bucketbell_{MAC}/other",
        f"homeassistant/device/{MAC}/config",
        f"iot/devices/{MAC}/status",
        f"other/devices/{MAC}/versions",
        f"iot/devices/{MAC.upper()}/versions/x",
    )
    assert {TOPICS.mac(topic) for topic in strangers} == {""}
    messages = [TOPICS.message(topic, b"x") for topic in TOPICS.of(MAC)]
    assert [one.metric_topic for one in messages] == ["devices/+/versions", "homeassistant/device/+/config"]
    assert all(one.retain for one in messages)


@given(
    st.text(max_size=200).map(lambda name: f"c/{name}").filter(is_asset_path),
    st.text(max_size=128),
    st.text(max_size=40),
    st.sampled_from(STATES),
    st.none() | st.integers(0, 100),
)
def test_whatever_files_and_versions_are_called_the_rules_are_kept(
    filename: str, told: str, reason: str, last: FileState, progress: int | None
) -> None:
    """An assigned file may have any name, and a device may say any version."""
    found = state(said(last, filename, progress=progress, reason=reason), assigned=filename, version=told)
    assert (found["installed_version"] == found["latest_version"]) == (last == "installed")
    described(assigned=filename, version=told)


@pytest.mark.parametrize(
    ("filename", "expected"),
    [
        (NEW, "1.2.4"),
        ("esp32/fw_v2.bin", "2"),
        ("esp32/1.2.3.bin", "1.2.3"),
        ("a/app-2026-11-30.tar.gz", "2026-11-30"),
        ("esp32/fw-1.2.4-rc1", "1.2.4-rc1"),
        ("esp32/fw.bin", ""),
        ("esp32/model3.bin", ""),
    ],
)
def test_a_version_is_what_the_stem_leaves_out(filename: str, expected: str) -> None:
    """Without what only joins it to the name."""
    assert version(filename) == expected
