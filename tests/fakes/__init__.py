"""Hand-written network parts for what real ones cannot be made to do; loopback only."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

CALL_TIMEOUT_SECONDS = 30.0

T = TypeVar("T")


class LoopThread:
    """An asyncio loop in a thread of its own, for servers that plain, blocking tests talk to."""

    def __init__(self, name: str) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever, name=name, daemon=True)
        self._thread.start()

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs `work` on the loop and returns its result to the calling thread."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(CALL_TIMEOUT_SECONDS)

    def stop(self) -> None:
        """Cancels what runs on the loop, waits for it, ends the thread. Idempotent."""
        if self.loop.is_closed():
            return
        self.call(_cancel_all())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(CALL_TIMEOUT_SECONDS)
        self.loop.close()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    # Transports that were aborted close in the loop's next round.
    await asyncio.sleep(0)
    await asyncio.sleep(0)
