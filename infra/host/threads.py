"""Runs blocking calls in daemon threads: one that hangs must not hold up the end of the process."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


class Daemons(Executor):
    """Threads that the process does not wait for at its end, unlike ThreadPoolExecutor's: a store may hang."""

    def __init__(self, threads: int, name: str = "daemon") -> None:
        """Start none yet: each is started when it is needed."""
        self._name = name
        self._limit = threads
        self._threads = 0
        self._idle = threading.Semaphore(0)
        self._work: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()

    def submit(self, call: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Run `call` in a thread; belongs to one thread, the loop's."""
        future: Future[T] = Future()
        self._work.put((future, lambda: call(*args, **kwargs)))
        if not self._idle.acquire(blocking=False) and self._threads < self._limit:
            self._threads += 1
            threading.Thread(target=self._run, name=f"{self._name}-{self._threads}", daemon=True).start()
        return future

    def shutdown(self, wait: bool = False, *, cancel_futures: bool = True) -> None:  # noqa: FBT001, FBT002 - Executor's
        """Let threads end after their present call; waits for nothing and cancels nothing."""
        del wait, cancel_futures
        for _ in range(self._threads):
            self._work.put(None)

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            future, call = work
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(call())
                except BaseException as error:  # noqa: BLE001 - raised where it is awaited
                    future.set_exception(error)
            del work, future, call  # nothing of a request outlives it here
            self._idle.release()


def in_thread(call: Callable[[], T], name: str = "call") -> asyncio.Future[T]:
    """Run `call` in a thread of its own. It goes on even if nobody waits for it any more."""
    once = Daemons(1, name)
    future = asyncio.wrap_future(once.submit(call))
    once.shutdown()
    return future
