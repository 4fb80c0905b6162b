"""What can go wrong between a notification and a file in place: one exception with a reason as data."""

from __future__ import annotations

from typing import Literal

Reason = Literal[
    "cannot_store",  # the folder says no (permissions, I/O error)
    "conflict",  # a folder stands where the file belongs, a file where its folder does, or a link in between
    "corrupt",  # whole, and not what the ETag or checksum says
    "cut",  # the connection ended in the middle
    "disk_full",
    "expired",  # the store refuses the URL: renew it
    "gone",  # the server knows no such file (any more), or will not say
    "obsolete",  # a newer version was announced while this one was coming
    "protocol",  # an answer that makes no sense
    "rate_limited",
    "replaced",  # the object is another one than the URL was asked for
    "stopped",
    "timed_out",
    "unauthorized",  # the token is not accepted
    "unavailable",  # 5xx
    "unreachable",  # no connection, or TLS refused
]


class Trouble(Exception):
    """A file could not be had; `reason` decides what happens next.

    `after_seconds` is what the server asked to wait (`Retry-After`). The message never holds a URL: a presigned
    one is as good as a password.
    """

    def __init__(self, reason: Reason, detail: str, *, after_seconds: float | None = None) -> None:
        """Keep what the loop decides by; `detail` is for a person."""
        super().__init__(detail)
        self.reason: Reason = reason
        self.after_seconds = after_seconds
