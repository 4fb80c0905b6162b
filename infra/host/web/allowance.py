"""Pure: a bound on what many hold together; beyond it those who hold most are let go."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

Holder = TypeVar("Holder")
KEPT = 0.75  # of the bound, when it was passed


class Allowance(Generic[Holder]):
    """How many bytes each holder has, and all together. A bound for each alone is none where anybody can be many."""

    def __init__(self, limit_bytes: int) -> None:
        """Nobody holds anything yet."""
        self._limit_bytes = limit_bytes
        self._held: dict[Holder, int] = {}
        self.total_bytes = 0

    def hold(self, holder: Holder, size_bytes: int) -> Iterator[Holder]:
        """Note what `holder` has now, and yield who must let go where that is too much.

        Who holds most goes first, and among equals who began first: whoever merely comes slowly holds little. Not
        only as few as would do: else each byte more would have all of them compared.
        """
        self.total_bytes += size_bytes - self._held.get(holder, 0)
        self._held[holder] = size_bytes
        if self.total_bytes <= self._limit_bytes:
            return
        for greedy in sorted(self._held, key=self._held.__getitem__, reverse=True):
            if self.total_bytes <= self._limit_bytes * KEPT:
                return
            self.release(greedy)
            yield greedy

    def release(self, holder: Holder) -> None:
        """Note that `holder` has nothing any more."""
        self.total_bytes -= self._held.pop(holder, 0)
