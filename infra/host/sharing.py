"""Lets who asks the same at the same moment share one answer, which is never older than the question."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from typing import Any, Generic, TypeVar

Answer = TypeVar("Answer")


class Sharing(Generic[Answer]):
    """While a call for a key is under way, all who ask for it wait for the next one, together.

    Nothing is kept: a fleet that hears the bell asks for one asset at once, and must not get the one of before.
    Belongs to one event loop.
    """

    def __init__(self, failed: Callable[[Answer], bool]) -> None:
        """An answer that `failed` also goes to who waits behind it: asking a hung store again would double the wait."""
        self._failed = failed
        self._running: dict[Hashable, asyncio.Task[Answer]] = {}
        self._next: dict[Hashable, asyncio.Task[Answer]] = {}

    async def ask(self, key: Hashable, call: Callable[[], Coroutine[Any, Any, Answer]]) -> Answer:
        """Return what `call` returns, or what somebody else's call for this key does that began later than this."""
        running = self._running.get(key)
        if running is None:
            task = self._begin(key, call())
        elif (task := self._next.get(key)) is None:  # type: ignore[assignment]  # None is dealt with right here
            task = self._next[key] = asyncio.create_task(self._follow(running, key, call))
        # Shielded: one client that goes away must not take the answer from the others.
        return await asyncio.shield(task)

    def _begin(self, key: Hashable, call: Coroutine[Any, Any, Answer]) -> asyncio.Task[Answer]:
        task = self._running[key] = asyncio.create_task(call)
        task.add_done_callback(lambda done: self._end(key, done))
        return task

    def _end(self, key: Hashable, done: asyncio.Task[Answer]) -> None:
        if self._running.get(key) is done:
            del self._running[key]

    async def _follow(
        self, running: asyncio.Task[Answer], key: Hashable, call: Callable[[], Coroutine[Any, Any, Answer]]
    ) -> Answer:
        await asyncio.wait([running])
        del self._next[key]
        if self._failed(running.result()):
            return running.result()
        return await asyncio.shield(self._begin(key, call()))
