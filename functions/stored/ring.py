"""Pure: what was announced of a key, as the sweep remembers it, and whether what a LIST shows is one of that."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Sequence

KEPT = 4
"""So many rings of a key are kept at least: whether an old version has come back is asked of them."""

SAME_UPLOAD_MS = 5_000
"""At most so far apart are an event's time and the object's LastModified: AWS dates by the second, for instance."""

ROUNDED_MS = 1_000
"""By so much may a LastModified be rounded down."""


class Ring(NamedTuple):
    """One content of a key that was announced, or that counts as announced."""

    object_key: str
    etag: str
    """Without quotes; "" where the store has none."""
    modified: int
    """Milliseconds since 1970: LastModified where `is_exact`, otherwise the time of the event."""
    is_exact: bool
    identity: bytes = b""
    """The event's 16 bytes; empty where none was announced."""

    @property
    def of_parts(self) -> bool:
        """Whether it was uploaded in parts: AWS dates such an object by its beginning, and its event by its end."""
        return "-" in self.etag

    def has_bytes_of(self, etag: str) -> bool:
        """Whether the content may be the same; a field that one side lacks never tells two apart."""
        return self.etag == etag or not self.etag or not etag


class Verdict(Enum):
    """What a LIST shows of a key."""

    KNOWN = auto()
    """The newest content that was announced."""
    ROLLBACK = auto()
    """An older one: a version was deleted, for instance."""
    NEW = auto()


def verdict(etag: str, modified: int, rings: Sequence[Ring]) -> tuple[Verdict, Ring | None]:
    """Compare an object of a LIST with the key's rings, newest first; return the ring that it is, too.

    What LIST shows is the newest state. So the newest ring of these bytes is of this upload also when its event came
    later than the object's date: an object of parts, or of a slow upload, is dated by its beginning.
    """
    for index, ring in enumerate(rings):
        if not ring.has_bytes_of(etag):
            continue
        apart = ring.modified - modified
        is_same = apart == 0 if ring.is_exact else abs(apart) <= SAME_UPLOAD_MS or ring.of_parts
        if not is_same and not (index == 0 and not ring.is_exact and apart > 0):
            continue
        others = [other.modified for other in rings if not other.has_bytes_of(etag)]
        # Announced, replaced by something else that was announced, and then perhaps uploaded again: better twice.
        if not ring.is_exact and any(ring.modified < other <= modified + ROUNDED_MS for other in others):
            continue
        is_newest = index == 0 or all(ring.modified > other for other in others)  # events may overtake each other
        return (Verdict.KNOWN if is_newest else Verdict.ROLLBACK), ring
    return Verdict.NEW, None


def is_repeat(ring: Ring, etag: str, event_time: int) -> bool:
    """Whether an event that comes now tells of what a sweep has announced (`ring`, from a LIST)."""
    return ring.has_bytes_of(etag) and (abs(event_time - ring.modified) <= SAME_UPLOAD_MS or ring.of_parts)
