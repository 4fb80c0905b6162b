"""Proposes how long the host should pause between two sweeps, and says what their LIST calls cost."""

from __future__ import annotations

import shlex
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import urlsplit

from functions.s3.clients import StorageError, storage_errors
from functions.settings.secret import DEFAULT_REGION

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client

Events = Literal["kept", "queue", "tried", "none"]
"""What becomes of a store's events: on its disk, in a queue, tried a few times at most, or there are none."""

SECONDS: Mapping[Events, int] = {"kept": 300, "queue": 3600, "tried": 60}
WITHOUT_EVENTS_SECONDS = ((1_000, 2), (10_000, 5))  # up to so many objects
LONGEST_WITHOUT_EVENTS_SECONDS = 10

PAGE_OBJECTS = 1000  # S3's own limit for one LIST
MAX_PAGES = 10  # of each prefix are counted
COUNT_SECONDS = 5.0  # and no new page is asked for after that
MONTH_SECONDS = 30 * 24 * 3600

AWS_DOLLARS_EACH_1000 = 0.005
AWS_PRICE = "S3 Standard in us-east-1 at $0.005 for 1,000 LIST calls"


@dataclass(frozen=True, slots=True)
class Count:
    """How many objects are below the prefixes, and how many LIST calls show them; with `more`, at least so many."""

    objects: int = 0
    calls: int = 0
    more: bool = False


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is proposed for a bucket, or what is set already, and what it costs.

    `variables` is what the host's environment needs for it, besides the store's credentials. `count` is None where the
    store did not let us count: then `reason` says why.
    """

    proposed_seconds: int
    set_seconds: int
    variables: Mapping[str, str]
    is_aws: bool
    count: Count | None
    reason: str = ""

    @property
    def calls_a_month(self) -> int | None:
        """LIST calls, at most: the pause is between two sweeps. With more objects than were counted, at least."""
        seconds = self.set_seconds or self.proposed_seconds
        return None if self.count is None else self.count.calls * MONTH_SECONDS // seconds

    @property
    def dollars_a_month(self) -> float | None:
        """What AWS takes for them; None for other stores."""
        if self.calls_a_month is None or not self.is_aws:
            return None
        return round(self.calls_a_month / 1000 * AWS_DOLLARS_EACH_1000, 2)

    @property
    def document(self) -> dict[str, Any]:
        """For scripts."""
        return {
            "proposed_seconds": self.proposed_seconds,
            "set_seconds": self.set_seconds,
            "host_environment": dict(self.variables),
            "objects": self.count and self.count.objects,
            "more_objects": self.count and self.count.more,
            "list_calls_a_month": self.calls_a_month,
            "dollars_a_month": self.dollars_a_month,
        }

    @property
    def text(self) -> str:
        """For people: the lines, and what they cost."""
        if self.set_seconds:
            lines = f"SWEEP_SECONDS={self.set_seconds} is set here. The host must have it too."
        else:
            lines = "\n".join(f"{name}={shlex.quote(value)}" for name, value in self.variables.items())
            lines += "\n\n(and the store's credentials: AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY)"
        return f"{lines}\n{self._cost}"

    @property
    def _cost(self) -> str:
        if self.count is None:
            return f"What it costs is not known, because the objects could not be counted: {self.reason}"
        over, most = ("more than ", "more than") if self.count.more else ("", "at most")
        cost = (
            f"Files there now: {over}{self.count.objects:,}. A sweep takes {over}{self.count.calls:,} LIST calls, "
            f"{most} {self.calls_a_month:,} a month."
        )
        if self.dollars_a_month is None:
            return f"{cost} On a store of your own they cost nothing; a provider may charge for them."
        return f"{cost} This costs ${self.dollars_a_month:,.2f}, assuming {AWS_PRICE}."


def propose(s3: S3Client, bucket: str, prefixes: Mapping[str, str], events: Events, set_seconds: int) -> Proposal:
    """Count what is in the bucket, and propose a pause that fits the store. Writes nothing.

    Raises StorageError for a store without events: there the sweep is all that there is.
    """
    # A host with a door leaves cameras' events to it.
    swept = [prefix for name, prefix in prefixes.items() if name != "events" or events == "none"]
    count, reason = None, ""
    try:
        count = _count(s3, bucket, swept)
    except StorageError as error:
        if events == "none":
            raise
        reason = f"{error.message} ({error.code})"
    endpoint = s3.meta.endpoint_url
    is_aws = _is_aws(endpoint)
    seconds = SECONDS.get(events) or _without_events(count)
    variables = {"BUCKET": bucket, **({} if is_aws else {"AWS_ENDPOINT_URL": endpoint})}
    if (region := s3.meta.region_name) != DEFAULT_REGION:  # not every store names its own
        variables["S3_REGION"] = region
    return Proposal(seconds, set_seconds, {**variables, "SWEEP_SECONDS": str(seconds)}, is_aws, count, reason)


def _count(s3: S3Client, bucket: str, prefixes: list[str]) -> Count:
    """Read at most MAX_PAGES pages of each prefix, for COUNT_SECONDS or so. Raises StorageError."""
    objects = calls = 0
    more = False
    deadline = time.monotonic() + COUNT_SECONDS
    for prefix in prefixes:
        after = ""
        for number in range(MAX_PAGES + 1):
            if number == MAX_PAGES or (number and time.monotonic() >= deadline):
                more = True
                break
            with storage_errors():
                page = s3.list_objects_v2(Bucket=bucket, Prefix=prefix, StartAfter=after, MaxKeys=PAGE_OBJECTS)
            found = page.get("Contents", [])
            objects, calls = objects + len(found), calls + 1
            if not (page.get("IsTruncated") and found):
                break
            after = found[-1]["Key"]
    return Count(objects, calls, more)


def _without_events(count: Count | None) -> int:
    fitting = [
        seconds for limit, seconds in WITHOUT_EVENTS_SECONDS if count and not count.more and count.objects <= limit
    ]
    return min(fitting, default=LONGEST_WITHOUT_EVENTS_SECONDS)


def _is_aws(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    return host.endswith((".amazonaws.com", ".amazonaws.com.cn"))
