"""What became of the last events, for whoever asks why a file was announced or was not. Bounded in number and bytes."""

from __future__ import annotations

import time
from collections import deque
from typing import TYPE_CHECKING

from functions.admin.known import HeardEvent
from functions.events.dialects import Ignored, ObjectCreated
from functions.events.routes import Skip

if TYPE_CHECKING:
    from collections.abc import Iterable

    from functions.events.plan import Settled

MAX_EVENTS = 10_000
MAX_TEXT_BYTES = 1_700_000
"""Of all keys, etags, times and reasons together: with the rest, 10,000 events take 4 MB at most."""

MAX_SHOWN = 100
_IDENTITY_BYTES = 16
_NO_IDENTITY = bytes(_IDENTITY_BYTES)
_END = "\0"  # no key holds it, nor does what is printable


Remembered = tuple[float, str, str, str, int | None, bytes]
"""When it was settled, its source, what became of it, the reason and its code; then a text that is small to keep.

That is its identity, then key, etag and time. A tuple, because a named one takes four times as long to make.
"""

_now = time.time


class History:
    """Belongs to the event loop. Every event of every door passes here, so it keeps no more than it must."""

    def __init__(self, max_events: int = MAX_EVENTS, max_text_bytes: int = MAX_TEXT_BYTES) -> None:
        """Begin empty, as after every restart."""
        self._max_events = max_events
        self._max_text_bytes = max_text_bytes
        self._events: deque[Remembered] = deque()
        self._text_bytes = 0
        self._since = time.time()

    def __len__(self) -> int:
        return len(self._events)

    @property
    def since(self) -> float:
        """Since when nothing is forgotten, in wall-clock seconds."""
        return self._since

    def add(self, settled: Settled, source: str) -> None:
        """Remember it, and forget the oldest beyond the limits. What names no object is not remembered."""
        (record, action, _), label, reason, reason_code, _ = settled
        if isinstance(record, ObjectCreated):
            identity = _NO_IDENTITY if isinstance(action, Skip) else action.identity
            text = identity + f"{record.object_key}\0{record.etag}\0{record.event_time}".encode(errors="replace")
        elif isinstance(record, Ignored):
            text = _NO_IDENTITY + f"{record.object_key}\0\0".encode(errors="replace")
        else:
            return
        self._events.append((_now(), source, label, reason, reason_code, text))
        self._text_bytes += len(text) + len(reason)
        while self._text_bytes > self._max_text_bytes or len(self._events) > self._max_events:
            self._since, _, _, old_reason, _, old_text = self._events.popleft()
            self._text_bytes -= len(old_text) + len(old_reason)

    def events(self) -> tuple[Remembered, ...]:
        """All of them, oldest first: a copy, to be read in another thread."""
        return tuple(self._events)


def of_key(events: Iterable[Remembered], key: str) -> tuple[list[HeardEvent], int]:
    """The last `MAX_SHOWN` that are about `key`, those in a row that are alike as one; and how many are left out."""
    begins = (key + _END).encode(errors="replace")
    found: list[HeardEvent] = []
    for at, source, outcome, reason, reason_code, text in events:
        if not text.startswith(begins, _IDENTITY_BYTES):
            continue
        identity = text[:_IDENTITY_BYTES]
        etag, _, event_time = text[_IDENTITY_BYTES + len(begins) :].decode().partition(_END)
        kind = source, outcome, reason, reason_code
        heard = HeardEvent(at, at, *kind, b"" if identity == _NO_IDENTITY else identity, etag, event_time)
        if found and _is_like(found[-1], heard):
            heard = HeardEvent(found[-1].at, at, *kind, heard.identity, etag, event_time, found[-1].times + 1)
            found.pop()
        found.append(heard)
    return found[-MAX_SHOWN:], max(0, len(found) - MAX_SHOWN)


def _is_like(one: HeardEvent, other: HeardEvent) -> bool:
    same = one.source, one.outcome, one.reason, one.identity, one.etag
    return same == (other.source, other.outcome, other.reason, other.identity, other.etag)
