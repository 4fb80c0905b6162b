"""Looks at something now and then, and sleeps while there is nothing to look at."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable

from functions.telemetry import logger

LONGEST_SECONDS = 60.0  # between two looks, at most


class Rounds:
    """Belongs to one event loop. `start` and `stop` are idempotent."""

    def __init__(self, name: str, period_seconds: float, look: Callable[[float], float]) -> None:
        """Look every `period_seconds`, or after as long as the last look has said, unless something stirs before.

        `look` is told how long it was since it looked last, or was stirred.
        """
        self._name = name
        self._period_seconds = period_seconds
        self._look = look
        self._stirred = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin. Returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._go(), name=self._name)

    def stir(self) -> None:
        """There may be something to look at: look within a period."""
        self._stirred.set()

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _go(self) -> None:
        while True:
            begun_at = time.monotonic()
            await asyncio.sleep(self._period_seconds)
            rest_seconds = 0.0
            self._stirred.clear()
            try:
                rest_seconds = min(self._look(time.monotonic() - begun_at), LONGEST_SECONDS) - self._period_seconds
            except Exception:  # noqa: BLE001 - without this task nobody would look again
                logger.exception(self._name)
            if rest_seconds > 0:
                with contextlib.suppress(TimeoutError):
                    # Not `wait_for`, which loses a cancellation that comes together with what it waits for.
                    async with asyncio.timeout(rest_seconds):
                        await self._stirred.wait()
