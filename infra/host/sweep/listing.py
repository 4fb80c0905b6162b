"""Lists a bucket page by page, with the store's own time: by ListObjectsV2, and on by the store's own tokens."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from functions.s3.clients import BAD_REQUEST, StorageError, storage_errors
from functions.s3.objects import unquoted
from infra.host.sweep.judge import ListedObject

if TYPE_CHECKING:
    from collections.abc import Callable

    from mypy_boto3_s3.client import S3Client

PAGE_OBJECTS = 1000  # S3's own limit for one LIST
_MILLISECOND = timedelta(milliseconds=1)
_EPOCH = datetime.fromtimestamp(0, UTC)
_RULES = ("TopicConfigurations", "QueueConfigurations", "LambdaFunctionConfigurations", "EventBridgeConfiguration")


class ListPage(NamedTuple):
    """A part of a LIST. `store_time` is the `Date` of the answer, in ms since 1970; `token` is "" on the last page."""

    objects: list[ListedObject]
    store_time: int
    token: str = ""


class Lister:
    """One bucket. Every call blocks, and raises StorageError."""

    def __init__(self, open_client: Callable[[], S3Client], bucket: str) -> None:
        """Nothing is asked yet; `open_client` is asked for its client by each call."""
        self._open = open_client
        self._bucket = bucket

    def page(self, prefix: str, token: str = "", *, limit: int = PAGE_OBJECTS) -> ListPage:
        """What is there now below `prefix`: from its beginning, or from where the page ended that gave this `token`.

        By the store's token, because not every store lists in the order of the keys. Versions are not asked for: some
        stores have none, and one lists wrong ETags with them.
        """
        more: Any = {"ContinuationToken": token} if token else {}
        with storage_errors():
            found = self._open().list_objects_v2(Bucket=self._bucket, Prefix=prefix, MaxKeys=limit, **more)
        entries = found.get("Contents", [])
        try:
            objects = [
                ListedObject(
                    entry["Key"],
                    unquoted(entry.get("ETag", "")),
                    (entry["LastModified"] - _EPOCH) // _MILLISECOND,
                    entry.get("Size", 0),
                )
                for entry in entries
                if entry["Key"].startswith(prefix)
            ]
        except KeyError as missing:
            raise StorageError(BAD_REQUEST, f"the store's LIST lacks {missing}") from None
        goes_on = found.get("NextContinuationToken", "") if found.get("IsTruncated", False) else ""
        if found.get("IsTruncated", False) and goes_on in {"", token}:
            raise StorageError(BAD_REQUEST, "the store's LIST says that there is more, and not where")
        return ListPage(objects, _store_time(found), goes_on)

    def has_rules(self) -> bool | None:
        """Whether the store tells anybody of uploads to this bucket; None if it does not say."""
        try:
            with storage_errors():
                found = self._open().get_bucket_notification_configuration(Bucket=self._bucket)
        except StorageError as error:  # not every store has them, and not everybody may ask
            return False if error.answered and error.status != HTTPStatus.FORBIDDEN else None
        return any(name in found for name in _RULES)


def _store_time(found: Any) -> int:  # noqa: ANN401 - boto3's answer
    """The `Date` of an answer. Every store sends it (RFC 9110 §6.6.1); no other clock will do."""
    try:
        moment = parsedate_to_datetime(found["ResponseMetadata"]["HTTPHeaders"]["date"])
    except (KeyError, ValueError):
        raise StorageError(BAD_REQUEST, "the store's answer lacks a Date") from None
    return (moment.replace(tzinfo=moment.tzinfo or UTC) - _EPOCH) // _MILLISECOND
