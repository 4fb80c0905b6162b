"""What waits to be fetched, and how long it is left alone after it failed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from infra.device.names import Name
from infra.device.server import Ticket
from infra.device.trouble import Reason, Trouble

FIRST_RETRY_SECONDS, LONGEST_RETRY_SECONDS = 0.5, 60.0
ONCE_ATTEMPTS = 5

STALE: set[Reason] = {"expired", "replaced"}
"""The URL was good and is no longer: a new one is asked for at once."""

# The URL is still good after these, as far as anybody knows.
_KEEPS_TICKET: set[Reason] = {"cut", "timed_out", "unreachable", "unavailable", "disk_full", "cannot_store"}
_LINE: set[Reason] = {"cut", "timed_out"}
_HOPELESS: set[Reason] = {"conflict"}
_HOPELESS_ONCE: set[Reason] = {"unauthorized", "disk_full", "cannot_store"}
_MAX_DOUBLINGS = 16  # 2.0 ** failures would overflow after a week of them


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
    failures: int = 0
    again: bool = False
    """Announced anew while it was running."""
    furthest: int = 0
    """How many bytes of the ticket's version were ever there at once."""
    moved: bool = False
    """Whether the latest attempt went further than all before it."""

    def failed(self, trouble: Trouble, uniform: Callable[[float, float], float], *, once: bool) -> float | None:
        """Count a failure; returns for how many seconds to leave the job alone, None to give it up.

        A line that brings something is not punished for breaking. With `once` attempts are counted.
        """
        self.failures = 1 if self.moved and trouble.reason in _LINE else self.failures + 1
        hopeless = trouble.reason in _HOPELESS or (once and trouble.reason in _HOPELESS_ONCE)
        if hopeless or (once and self.failures >= ONCE_ATTEMPTS):
            return None
        if trouble.reason not in _KEEPS_TICKET:
            self.ticket = None
        longest = min(LONGEST_RETRY_SECONDS, FIRST_RETRY_SECONDS * 2.0 ** min(self.failures - 1, _MAX_DOUBLINGS))
        return (trouble.after_seconds or 0.0) + uniform(longest / 2, longest)
