"""Which hosts share the stored settings, by what they record; in a container each start has another name."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functions.stored.store import ProcessStatus

GONE_SECONDS = 60.0  # six rounds of recording


class Replicas:
    """`there` are the names of those that are running, our own among them."""

    def __init__(self, own: str) -> None:
        """Begin alone."""
        self.there: tuple[str, ...] = (own,)
        self._own = own
        self._last: dict[str, tuple[datetime, float]] = {}  # what each recorded last, and when that was new to us
        self._left: set[str] = set()

    def meet(self, recorded: Iterable[ProcessStatus], now: float) -> None:
        """Hear what all have recorded; `now` is monotonic, since another machine's clock may be wrong."""
        for one in recorded:
            if one.scope == "host" and self._last.get(one.process, (None, 0.0))[0] != one.recorded_at:
                self._last[one.process] = one.recorded_at, now
        running = {name for name, (_, heard_at) in self._last.items() if now - heard_at < GONE_SECONDS}
        self.there = tuple(sorted({self._own, *running}))
        self._left -= set(self.there)

    def take_gone(self) -> list[str]:
        """Those that have gone, each of them once."""
        gone = sorted(self._last.keys() - {*self.there, *self._left})
        self._left.update(gone)
        return gone
