"""What can go wrong between a notification and a file in place: one exception with a reason as data."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "archived",  # the store has it in an archive: somebody has to restore it
    "cannot_store",  # the folder says no (permissions, I/O error)
    "clock_skew",  # the clocks of server and store differ: a fresh URL is too old or too young
    "conflict",  # a folder stands where the file belongs, a file where its folder does, or a link in between
    "corrupt",  # whole, and not what the ETag or checksum says
    "cut",  # the connection ended in the middle
    "disk_full",
    "expired",  # the store refuses a URL that was good: renew it
    "forbidden",  # the store refuses a fresh URL: whoever signed it may not read this file
    "gone",  # the server knows no such file (any more), or will not say
    "misdirected",  # the URL is signed for another region, address or bucket, or with a key the store does not know
    "obsolete",  # a newer version was announced while this one was coming
    "protocol",  # an answer that makes no sense
    "rate_limited",
    "refused",  # the store refuses this file for another reason
    "replaced",  # the object is another one than the URL was asked for
    "stale_etag",  # the same bytes came twice, and they are not those of the store's ETag or checksum
    "stopped",
    "timed_out",
    "unauthorized",  # the token is not accepted
    "unavailable",  # 5xx
    "unreachable",  # no connection, or TLS refused
]


class FetchError(Exception):
    """A file could not be had; `reason` decides what happens next.

    `after_seconds` is what was asked to wait (`Retry-After`), `code` the store's own word for the cause, `digest` what
    came of a file that is corrupt. The message never holds a URL: a presigned one is as good as a password.
    """

    def __init__(
        self,
        reason: Reason,
        detail: str,
        *,
        after_seconds: float | None = None,
        code: str | None = None,
        digest: str = "",
    ) -> None:
        """Keep what the loop decides by; `detail` is for a person."""
        super().__init__(detail)
        self.reason: Reason = reason
        self.after_seconds = after_seconds
        self.code = code
        self.digest = digest
