"""LIST as stores answer it, and as they should not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from typing import Any, cast

import pytest
from botocore.exceptions import ClientError

from functions.s3.clients import StorageError
from infra.host.sweep.judge import ListedObject
from infra.host.sweep.listing import Lister, ListPage

NOON = datetime(2026, 11, 30, 12, 0, 0, tzinfo=UTC)
NOON_MS = 1_796_040_000_000
DATE = {"ResponseMetadata": {"HTTPHeaders": {"date": "Mon, 30 Nov 2026 12:00:00 GMT"}}}


class Store:
    """Answers as it is told."""

    def __init__(self, answer: dict[str, Any]) -> None:
        self.answer = answer
        self.asked: list[dict[str, Any]] = []

    def list_objects_v2(self, **asked: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3's
        """As boto3's."""
        self.asked.append(asked)
        return self.answer

    def get_bucket_notification_configuration(self, **_: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3's
        """As boto3's."""
        if "Error" in self.answer:
            raise ClientError(cast("Any", self.answer), "GetBucketNotificationConfiguration")
        return self.answer


def page(answer: dict[str, Any], token: str = "") -> ListPage:
    """What a LIST of assets/ comes to."""
    return Lister(lambda: cast("Any", Store(answer)), "devices").page("assets/", token)


def entry(key: str = "assets/a", **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - boto3's
    """A line of a LIST."""
    fields = {"Key": key, "ETag": '"e"', "LastModified": NOON, "Size": 7} | changes
    return {name: value for name, value in fields.items() if value is not None}


def test_a_page_is_read_with_the_stores_time() -> None:
    """Milliseconds, whatever the zone; an ETag without quotes, "" where there is none; the next token."""
    found = page(
        DATE
        | {
            "Contents": [
                entry(LastModified=(NOON + timedelta(microseconds=123_999)).astimezone(timezone(timedelta(hours=2)))),
                entry("assets/b", ETag=None, Size=None),
                entry("assets/c", ETag=""),
                entry("configs/not-asked-for"),
            ],
            "IsTruncated": True,
            "NextContinuationToken": "t",
        }
    )
    assert found.store_time == NOON_MS
    assert found.token == "t"
    assert found.objects == [
        ListedObject("assets/a", "e", NOON_MS + 123, 7),
        ListedObject("assets/b", "", NOON_MS, 0),
        ListedObject("assets/c", "", NOON_MS, 7),
    ]


def test_the_next_page_is_asked_for_by_the_stores_own_token() -> None:
    """Not by a key: not every store lists in their order."""
    store = Store(DATE)
    lister = Lister(lambda: cast("Any", store), "devices")
    lister.page("assets/")
    lister.page("assets/", "t")
    assert [asked.get("ContinuationToken") for asked in store.asked] == [None, "t"]
    assert all("StartAfter" not in asked for asked in store.asked)


@pytest.mark.parametrize(
    "answer",
    [
        {"Contents": [entry()]},
        {"Contents": [entry()], "ResponseMetadata": {"HTTPHeaders": {}}},
        {"Contents": [entry()], "ResponseMetadata": {"HTTPHeaders": {"date": "yesterday"}}},
        DATE | {"Contents": [entry(LastModified=None)]},
        DATE | {"Contents": [entry()], "IsTruncated": True},
        DATE | {"Contents": [entry()], "IsTruncated": True, "NextContinuationToken": "same"},
    ],
)
def test_a_page_that_cannot_be_believed_is_none(answer: dict[str, Any]) -> None:
    """Without a Date, without a date of an object, or without a way on."""
    with pytest.raises(StorageError):
        page(answer, "same")


@pytest.mark.parametrize(
    ("answer", "wanted"),
    [
        ({}, False),
        ({"QueueConfigurations": [{}]}, True),
        ({"EventBridgeConfiguration": {}}, True),
        ({"Error": {"Code": "NotImplemented"}}, False),
        ({"Error": {"Code": "AccessDenied"}, "ResponseMetadata": {"HTTPStatusCode": 403}}, None),
        ({"Error": {"Code": "SlowDown"}, "ResponseMetadata": {"HTTPStatusCode": 503}}, None),
    ],
)
def test_whether_a_store_tells_anybody_is_asked_where_that_can_be(
    answer: dict[str, Any], *, wanted: bool | None
) -> None:
    """Many stores have no such thing, and not everybody may ask."""
    assert Lister(lambda: cast("Any", Store(answer)), "devices").has_rules() is wanted
