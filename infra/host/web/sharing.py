"""Lets who asks the same at the same moment share one answer, which is never older than the question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")
Call = Callable[[], Coroutine[Any, Any, Answer]]

CALLS_AT_ONCE = 2  # one answer is being fetched while those who got the last one are being told


class Sharing(Generic[Answer]):
    """While `CALLS_AT_ONCE` calls for a key are under way, all who ask for it wait for the next one, together.

    Nothing is kept: a fleet that hears the bell asks for one asset at once, and must not get the one of before.
    Belongs to one event loop.
    """

    def __init__(self, failed: Callable[[Answer], bool]) -> None:
        """An answer that `failed` also goes to who waits behind it: asking a hung store again would double the wait."""
        self._failed = failed
        self._running: dict[Hashable, set[asyncio.Task[Answer]]] = {}
        self._next: dict[Hashable, asyncio.Task[Answer]] = {}

    async def ask(self, key: Hashable, call: Call[Answer]) -> Answer:
        """Return what `call` returns, or what somebody else's call for this key does that began later than this."""
        task = self._next.get(key)
        if task is None:
            task = self._next[key] = asyncio.create_task(self._begin(key, call))
        # Shielded: one client that goes away must not take the answer from the others.
        return await asyncio.shield(task)

    async def _begin(self, key: Hashable, call: Call[Answer]) -> Answer:
        running = self._running.get(key, set())
        if len(running) >= CALLS_AT_ONCE:
            done, _ = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
            if self._failed(answer := done.pop().result()):
                del self._next[key]
                return answer
        else:
            await asyncio.sleep(0)  # whoever asks in this turn of the loop comes along
        task = self._next.pop(key)
        self._running.setdefault(key, set()).add(task)
        try:
            return await call()
        finally:
            self._running[key].discard(task)
            if not self._running[key]:
                del self._running[key]
