"""Pure: what a page of a LIST asks for. It is told what was announced, the store's time and a monotonic one.

How old an object is goes by the store's clock. What was announced goes by no clock: see `functions.stored.ring`.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import NamedTuple

from functions.events.dialects import ObjectCreated
from functions.stored.ring import Ring, Verdict, verdict

MAX_YOUNG = 10_000


class ListedObject(NamedTuple):
    """An object as a LIST shows it. `etag` is unquoted, "" where the store has none; `modified` in ms since 1970."""

    object_key: str
    etag: str
    modified: int
    size: int

    @property
    def ring(self) -> Ring:
        """It, as announced before anybody counted."""
        return Ring(self.object_key, self.etag, self.modified, is_exact=True)

    def created(self, bucket: str) -> ObjectCreated:
        """It, as an event would tell."""
        seconds, milliseconds = divmod(self.modified, 1000)
        moment = datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S")
        return ObjectCreated(
            bucket,
            self.object_key,
            "ObjectCreated:Put",
            f"{moment}.{milliseconds:03}Z",
            self.etag,
            self.size,
            modified=self.modified,
        )


class Young:
    """What was too young to be announced, and since when it has been seen as it is. Bounded in number.

    An object that is dated ahead of the store's clock would be young until that has caught up.
    """

    def __init__(self, limit: int = MAX_YOUNG) -> None:
        """Begin empty."""
        self._limit = limit
        self._seen: OrderedDict[str, tuple[str, int, float]] = OrderedDict()

    def is_young(self, listed: ListedObject, store_time: int, now: float, grace_seconds: float) -> bool:
        """Whether an event of it may be about to come: by the store's clock, and by how long we have seen it.

        `store_time` in ms since 1970, `now` in monotonic seconds.
        """
        if store_time - listed.modified >= grace_seconds * 1000:
            self._seen.pop(listed.object_key, None)
            return False
        known = self._seen.get(listed.object_key)
        if known is None or known[:2] != (listed.etag, listed.modified):
            self._seen[listed.object_key] = (listed.etag, listed.modified, now)
            if len(self._seen) > self._limit:
                self._seen.popitem(last=False)
            return grace_seconds > 0
        return now - known[2] < grace_seconds


class Newest:
    """The newest of what is to be announced, at most so many; how many more there are is counted."""

    def __init__(self, limit: int) -> None:
        """Begin empty."""
        self._limit = limit
        self._heap: list[tuple[int, str, ListedObject]] = []
        self.left_out = 0

    def add(self, listed: ListedObject) -> None:
        """Take it, maybe in place of an older one."""
        item = (listed.modified, listed.object_key, listed)
        if len(self._heap) < self._limit:
            heapq.heappush(self._heap, item)
        else:
            heapq.heappushpop(self._heap, item)
            self.left_out += 1

    def oldest_first(self) -> list[ListedObject]:
        """Return them in the order in which they are announced."""
        return [listed for _, _, listed in sorted(self._heap)]


@dataclass(slots=True)
class Compared:
    """What a page asks for."""

    counted: list[Ring] = field(default_factory=list)
    """It counts as announced: it is older than the first sweep."""
    rollbacks: list[ListedObject] = field(default_factory=list)
    """An older content came back, of a version for instance: it is not announced again."""
    candidates: list[ListedObject] = field(default_factory=list)


def compare(
    page: Iterable[ListedObject],
    rings: Mapping[str, Sequence[Ring]],
    *,
    is_wanted: Callable[[ListedObject], bool] = lambda _: True,
    counts_before: int | None = None,
    is_young: Callable[[ListedObject], bool],
) -> Compared:
    """Compare a page with what was announced: the rings of each key, newest first.

    `counts_before`: what was modified before, and was never heard of, counts as announced; None: nothing does.
    `is_wanted` is asked about what is new only.
    """
    found = Compared()
    for listed in page:
        what, _ = verdict(listed.etag, listed.modified, rings.get(listed.object_key, ()))
        if what is Verdict.ROLLBACK:
            found.rollbacks.append(listed)
        elif what is not Verdict.NEW or not is_wanted(listed):
            continue
        elif counts_before is not None and listed.modified < counts_before:
            found.counted.append(listed.ring)
        elif not is_young(listed):
            found.candidates.append(listed)
    return found


def in_order(keys: Sequence[str], after: str) -> bool:
    """Whether a page goes on in the order of UTF-8 bytes behind `after`: then what it does not show is not there."""
    last = after.encode()
    for key in keys:
        encoded = key.encode(errors="surrogatepass")
        if encoded <= last:
            return False
        last = encoded
    return True
