"""Doors that tell of one upload with different fields."""

from __future__ import annotations

from typing import Any

import pytest

from functions.events.plan import Step, plan
from functions.events.routes import Routes, Upload
from infra.host.twins import MAX_OF_ONE_SECOND, Twins

FULL: dict[str, Any] = {"versionId": "v1", "eTag": "e1", "sequencer": "01"}
TIME = "2026-11-20T12:00:00.123Z"


def told(time: str = TIME, key: str = "assets/a", **fields: object) -> Step:
    """What a door asks for that tells of an upload with these fields."""
    s3 = {"bucket": {"name": "devices"}, "object": {"key": key, **fields}}
    event = {"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "eventTime": time, "s3": s3}
    (step,) = plan({"Records": [event]}, Routes())
    return step


def ids(*steps: Step) -> list[str]:
    """The `id` of each message, after all have passed, in order."""
    twins = Twins()
    found = []
    for step in steps:
        action = twins.known(step).action
        assert isinstance(action, Upload)
        assert dict(action.message.user_properties)["id"] == action.identity.hex()
        found.append(action.identity.hex())
    return found


@pytest.mark.parametrize("lacking", [*FULL, "all"])
def test_a_field_that_one_door_lacks_splits_nothing(lacking: str) -> None:
    """Whichever door is first, the second's message has the same id; with every field it is the upload's own."""
    full = told(**FULL)
    less = told(**{name: value for name, value in FULL.items() if lacking not in (name, "all")})
    assert full.action != less.action
    for steps in ((full, less), (less, full)):
        assert len(set(ids(*steps))) == 1
        assert ids(*steps)[0] == ids(steps[0])[0]


def test_a_door_that_tells_the_second_only_tells_of_the_same_upload() -> None:
    """EventBridge rounds the time."""
    assert len(set(ids(told(**FULL), told("2026-11-20T12:00:00Z", **FULL)))) == 1


@pytest.mark.parametrize(
    "other",
    [
        told(**FULL | {"eTag": "e2"}),
        told(**FULL | {"versionId": "v2"}),
        told(**FULL | {"sequencer": "02"}),
        told("2026-11-20T12:00:00.124Z", **FULL),
        told("2026-11-20T12:00:01.123Z", **FULL),
        told("2026-11-20T12:00:00.123+01:00", **FULL),
        told(key="assets/b", **FULL),
    ],
)
def test_a_field_that_says_otherwise_is_another_upload(other: Step) -> None:
    """Also where both have been told of by a door that lacks that field."""
    assert len(set(ids(told(**FULL), other))) == 2
    assert len(set(ids(told(), told(**FULL), other))) == 2


def test_without_a_time_nothing_is_the_same_but_what_agrees_in_all() -> None:
    """Bucket and key alone would make all uploads of a file one."""
    assert len(set(ids(told("", **FULL), told("")))) == 2


def test_what_is_remembered_is_bounded() -> None:
    """The oldest go first."""
    twins = Twins(limit=3)
    for number in range(10):
        twins.known(told(key=f"assets/{number}", **FULL))
    assert len(twins._told) == 3  # noqa: SLF001 - nothing else shows it


def test_uploads_to_one_key_in_one_second_are_bounded_too() -> None:
    """Each was kept and compared with all before it: two thousand took the host longer than all else together."""
    twins = Twins()
    for number in range(10 * MAX_OF_ONE_SECOND):
        twins.known(told(**FULL | {"sequencer": f"{number:04X}"}))
    (kept,) = twins._told.values()  # noqa: SLF001 - nothing else shows it
    assert len(kept) == MAX_OF_ONE_SECOND
