"""Pure: at most so many requests a minute for each caller."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TypeVar

MAX_CALLERS = 50_000
MAX_AT_ONCE = 100_000  # requests of one token
ROUNDING_SECONDS = 1e-4  # sums of intervals are not exact, and nobody should wait for that

T = TypeVar("T")


class RateLimit:
    """At most so many a minute for each key, and at once the whole minute's share or more; keys are bounded in number.

    The generic cell rate algorithm (ITU-T I.371): for each key the moment at which its share will be whole again.
    """

    def __init__(self, per_minute: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        """`per_minute` 0: no limit."""
        self._interval_seconds = 60.0 / per_minute if per_minute else 0.0
        self._clock = clock
        self._whole_at: OrderedDict[bytes, float] = OrderedDict()
        self._at_once: OrderedDict[bytes, tuple[int, int]] = OrderedDict()

    def widen(self, key: bytes, at_once: int, *, further: bool) -> None:
        """Let `key` use that many at once, where that is more than before; they come back no faster.

        `further`: on top of what the latest calls asked for.
        """
        widest, latest = self._at_once.get(key, (0, 0))
        latest = min(at_once + (latest if further else 0), MAX_AT_ONCE)
        # Never fewer: who has used more than that already would be shut out for long.
        _keep(self._at_once, key, (max(widest, latest), latest))

    def wait_seconds(self, key: bytes) -> float:
        """How long until `key` has a share left: 0 means now."""
        whole_seconds = max(60.0, self._at_once.get(key, (0, 0))[0] * self._interval_seconds)
        wait_seconds = self._whole_at.get(key, 0.0) + self._interval_seconds - self._clock() - whole_seconds
        return wait_seconds if wait_seconds > ROUNDING_SECONDS else 0.0

    def take(self, key: bytes) -> None:
        """Use one share."""
        _keep(self._whole_at, key, max(self._whole_at.get(key, 0.0), self._clock()) + self._interval_seconds)


def _keep(callers: OrderedDict[bytes, T], caller: bytes, value: T) -> None:
    """Remember `value`; whoever was not heard of for longest is forgotten."""
    callers[caller] = value
    callers.move_to_end(caller)
    if len(callers) > MAX_CALLERS:
        callers.popitem(last=False)
