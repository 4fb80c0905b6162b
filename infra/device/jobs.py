"""What waits to be fetched, in order, and how long it waits after a failure."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import count

from functions.backoff import backoff_seconds
from infra.device.names import Name
from infra.device.server import Ticket
from infra.device.store import Version
from infra.device.trouble import FetchError, Reason

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 60.0
LONGEST_REFUSED_SECONDS = 3600.0
ONCE_ATTEMPTS = 5

STALE: set[Reason] = {"expired", "replaced"}
"""The URL was good and is no longer: a new one is asked for at once."""

# The URL is still good after these, as far as anybody knows.
_KEEPS_TICKET: set[Reason] = {
    "cut",
    "timed_out",
    "unreachable",
    "unavailable",
    "rate_limited",
    "disk_full",
    "cannot_store",
}
_LINE: set[Reason] = {"cut", "timed_out"}
# A person has to change something, or the whole file is fetched for nothing: waiting grows beyond a minute.
_NEEDS_A_PERSON: set[Reason] = {
    "archived",
    "clock_skew",
    "forbidden",
    "misdirected",
    "refused",
    "stale_etag",
    "unauthorized",
}
_SELDOM = _NEEDS_A_PERSON | {"corrupt", "replaced"}
_PASSING: set[Reason] = {
    "cut",
    "timed_out",
    "unreachable",
    "unavailable",
    "rate_limited",
    "protocol",
    "expired",
    "replaced",
    "obsolete",
}
LASTING_FAILURES = 3
_PERMANENT: set[Reason] = {"conflict"}
_PERMANENT_ONCE = _NEEDS_A_PERSON | {"disk_full", "cannot_store"}
MAX_STALE_ENTRIES = 64
STALE_ETAG = (
    "the store's ETag or checksum is of other bytes: the same bytes came twice and do not match it. Was a file copied "
    "over this one in the store's folder, or does its metadata `sha256` belong to another? Upload it through S3 again"
)


@dataclass(slots=True)
class Job:
    """A file to fetch, or with `name` None the manifest. Times are those of the device's clock."""

    name: Name | None
    due_at: float
    since: float
    """When it was heard or listed."""
    etag: str | None = None
    """As announced; None where the message did not say."""
    ticket: Ticket | None = None
    tried: Version | None = None
    """The version of the latest ticket."""
    failures: int = 0
    refusals: int = 0
    """How many of the latest failures, in a row, were of the seldom kind."""
    delays: int = 0
    """How many of the latest answers, in a row, asked to come later."""
    again: bool = False
    """Announced again while it was running."""
    furthest: int = 0
    """How many bytes of the ticket's version were ever there at once."""
    moved: bool = False
    """Whether the latest attempt went further than all before it."""
    corrupt: tuple[Version, str | None, str] | None = None
    """What came corrupt last: its version, when that was last modified, and the digest of what came."""
    is_stale: bool = False
    """Whether that came twice."""

    def anew(self, now: float) -> Job:
        """The job for what was announced while this one was running."""
        return Job(self.name, now, now, self.etag)

    def expect(self, ticket: Ticket) -> None:
        """Raise FetchError (`stale_etag`) for what need not be downloaded once more: it would be corrupt again."""
        if self.corrupt is not None and self.corrupt[:2] != (ticket.version, ticket.last_modified):
            self.corrupt, self.is_stale = None, False
        if self.is_stale:
            raise FetchError("stale_etag", STALE_ETAG)

    def came_corrupt(self, ticket: Ticket, digest: str) -> None:
        """Take note; raises FetchError (`stale_etag`) where the very same bytes came before.

        Accidents differ. What comes twice is what the store has.
        """
        came = (ticket.version, ticket.last_modified, digest)
        self.is_stale, self.corrupt = bool(digest) and came == self.corrupt, came
        self.expect(ticket)

    def has_failed(self, trouble: FetchError) -> bool:
        """Whether this failure is worth telling others: those that pass by themselves only when they last."""
        return trouble.reason not in _PASSING or self.failures >= LASTING_FAILURES

    def failed(self, trouble: FetchError, uniform: Callable[[float, float], float], *, once: bool) -> float | None:
        """Count a failure; returns for how many seconds to leave the job alone, None to give it up.

        A connection that brought something may break, and being asked to come later is no failure. With
        `once` attempts are counted.
        """
        reason = trouble.reason
        if reason not in _KEEPS_TICKET:
            self.ticket = None
        if reason == "rate_limited":
            self.delays += 1
            return _pause(trouble, 1 if trouble.after_seconds is not None else self.delays, uniform)
        self.delays = 0
        self.failures = 1 if self.moved and reason in _LINE else self.failures + 1
        self.refusals = self.refusals + 1 if reason in _SELDOM else 0
        permanent = reason in _PERMANENT or (once and reason in _PERMANENT_ONCE)
        if permanent or (once and self.failures >= ONCE_ATTEMPTS):
            return None
        if self.refusals:
            return _pause(trouble, self.refusals, uniform, factor=4.0, longest_seconds=LONGEST_REFUSED_SECONDS)
        return _pause(trouble, self.failures, uniform)


def _pause(
    trouble: FetchError,
    number: int,
    uniform: Callable[[float, float], float],
    *,
    factor: float = 2.0,
    longest_seconds: float = LONGEST_RETRY_SECONDS,
) -> float:
    """What was asked for, and a time that grows with `number`."""
    return (trouble.after_seconds or 0.0) + backoff_seconds(
        number, first_seconds=FIRST_RETRY_SECONDS, longest_seconds=longest_seconds, factor=factor, uniform=uniform
    )


class Jobs:
    """One job for each file; the one that is due first is known at once. Not thread-safe."""

    def __init__(self) -> None:
        """Nothing waits."""
        self._jobs: dict[Name | None, Job] = {}
        # Entries of jobs that have gone or were put off stay in the heap until they come to its top.
        self._heap: list[tuple[float, int, Job]] = []
        self._numbers = count()

    def __len__(self) -> int:
        """How many files (and the manifest) wait."""
        return len(self._jobs)

    def get(self, name: Name | None) -> Job | None:
        """The job for this file."""
        return self._jobs.get(name)

    def put(self, job: Job) -> None:
        """Add a job, or replace that of its file, or take note of a new `due_at`."""
        self._jobs[job.name] = job
        heappush(self._heap, (job.due_at, next(self._numbers), job))
        if len(self._heap) > 2 * len(self._jobs) + MAX_STALE_ENTRIES:  # a flood of messages about one file
            self._heap = list(filter(self._counts, self._heap))
            heapify(self._heap)

    def remove(self, job: Job) -> None:
        """Forget a job that is here."""
        del self._jobs[job.name]

    def first(self) -> Job | None:
        """The job that is due first, which stays; of equals the one that was put first."""
        while self._heap and not self._counts(self._heap[0]):
            heappop(self._heap)
        return self._heap[0][2] if self._heap else None

    def _counts(self, entry: tuple[float, int, Job]) -> bool:
        due_at, _, job = entry
        return self._jobs.get(job.name) is job and job.due_at == due_at
