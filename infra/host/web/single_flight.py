"""Lets clients that ask the same at the same moment share one answer, which is never older than the question."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
Tell = Callable[[T], None]

CALLS_AT_ONCE = 2  # one answer is being fetched while the clients that got the last one are being told


class SingleFlight(Generic[T]):
    """While `CALLS_AT_ONCE` calls for a key are under way, all who ask for it wait for the next one, together.

    Nothing is kept: a fleet that hears the bell asks for one asset at once, and must not get the one of before.
    Belongs to one event loop.
    """

    def __init__(self, failed: Callable[[T], bool]) -> None:
        """An answer that `failed` also goes to who waits behind it: asking a hung store again would double the wait."""
        self._failed = failed
        self._running: Counter[Hashable] = Counter()
        self._waiting: dict[Hashable, list[Tell[T]]] = {}

    def ask(self, key: Hashable, call: Callable[[Tell[T]], None], tell: Tell[T]) -> None:
        """Have `tell` told what `call` is, or another call for this key that begins later than now."""
        waiting = self._waiting.get(key)
        if waiting is not None:
            waiting.append(tell)
            return
        self._waiting[key] = [tell]
        if self._running[key] < CALLS_AT_ONCE:
            asyncio.get_running_loop().call_soon(self._begin, key, call)  # requests of this turn of the loop come along

    def _begin(self, key: Hashable, call: Callable[[Tell[T]], None]) -> None:
        tells = self._waiting.pop(key, [])
        if tells:
            self._running[key] += 1
            call(lambda answer: self._end(key, call, tells, answer))

    def _end(self, key: Hashable, call: Callable[[Tell[T]], None], tells: list[Tell[T]], answer: T) -> None:
        self._running[key] -= 1
        if not self._running[key]:
            del self._running[key]
        if self._failed(answer):
            tells = tells + self._waiting.pop(key, [])
        for tell in tells:
            tell(answer)
        self._begin(key, call)
