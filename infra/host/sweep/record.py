"""What rang is noted beside the event loop, and other hosts' rings are asked for: the bell waits for no database."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import TYPE_CHECKING

from functions.stored.errors import StoreUnavailableError
from functions.telemetry import logger
from infra.host.pending import Pending
from infra.host.threads import Daemons

if TYPE_CHECKING:
    from functions.stored.ring import Ring
    from infra.host.sweep.state import State

BATCH_SECONDS = 1.0  # at most so much is forgotten by a kill -9, and announced again by a sweep
SHARED_BATCH_SECONDS = 0.02  # the same upload may come to another host's door a moment later
MAX_BATCH = 1000
MAX_WAITING = 20_000  # 10 MB or so, while the database is away
ASK_SECONDS = 0.1
LOOK_SECONDS = 1.0  # between two looks whether there is an answer again
LAST_WORD_SECONDS = 0.5

_Asked = tuple[bytes, Pending[bool]]


class Rung:
    """Belongs to one event loop. What waits is bounded: the oldest goes first, and may be announced again."""

    def __init__(self, state: State, *, ask_seconds: float = ASK_SECONDS) -> None:
        """`ask_seconds`: for so long an event may wait for a word about whether it was announced."""
        self.is_shared = state.is_shared
        """Whether other hosts write there too: then `ask` has something to ask."""
        self.store = state
        self._ask_seconds = ask_seconds
        self._waiting: deque[Ring] = deque()
        self._dropped = 0
        self._problem = ""
        self._stirred = asyncio.Event()
        self._turn = asyncio.Lock()
        self._writer, self._reader = Daemons(1, "rung-writer"), Daemons(1, "rung-reader")
        self._task: asyncio.Task[None] | None = None
        self._asked: list[_Asked] = []
        self._is_asking = self._is_away = False
        self._again: asyncio.TimerHandle | None = None

    async def start(self) -> None:
        """Begin to write. Returns at once."""
        if self._task is None:
            self._task = asyncio.create_task(self._go(), name="rung")
            if self.is_shared:
                self._look()  # connect, before an event waits for it

    async def stop(self) -> None:
        """Write what waits, for as long as a process that ends may take. Idempotent."""
        if self._task is None:
            return
        self._task.cancel()
        if self._again is not None:
            self._again.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
        self._task = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_SECONDS):
                await self.flush()
                await self._written(self.store.save_last)
        self._writer.shutdown()
        self._reader.shutdown()

    def rang(self, ring: Ring) -> None:
        """Have it noted within `BATCH_SECONDS`, or as soon as that can be."""
        self._waiting.append(ring)
        self._bound()
        self._stirred.set()

    def ask(self, identity: bytes) -> Pending[bool]:
        """Whether another host, or this one before it started, has announced this event; who does not know says no.

        The answer is there after `ask_seconds` at the latest.
        """
        pending: Pending[bool] = Pending()
        if not self.is_shared or self._is_away:
            pending.set_result(False)
            return pending
        loop = asyncio.get_running_loop()
        self._asked.append((identity, pending))
        if not self._is_asking:
            self._is_asking = True
            loop.call_soon(self._look)  # together with what comes in this turn
        timer = loop.call_later(self._ask_seconds, self._lose_patience, pending)
        pending.add_done_callback(lambda _: timer.cancel())
        return pending

    async def flush(self) -> bool:
        """Write what waits now; whether all of it is written."""
        async with self._turn:
            left = len(self._waiting)
            while left > 0:
                batch = list(islice(self._waiting, MAX_BATCH))
                for _ in batch:
                    self._waiting.popleft()
                left -= len(batch)
                if not await self._written(lambda batch=batch: self.store.record(batch)):  # type: ignore[misc]  # the default binds this batch
                    self._waiting.extendleft(reversed(batch))
                    self._bound()
                    return False
            return True

    async def _go(self) -> None:
        while True:
            await self._stirred.wait()
            await asyncio.sleep(SHARED_BATCH_SECONDS if self.is_shared else BATCH_SECONDS)
            self._stirred.clear()
            try:
                if not await self.flush():
                    self._stirred.set()
            except Exception:  # noqa: BLE001 - without this task nothing would ever be noted
                logger.exception("what was announced cannot be noted")
                self._stirred.set()

    async def _written(self, call: Callable[[], object]) -> bool:
        """Run it in the writer's thread; whether it went well. Trouble is said when it begins and when it ends."""
        try:
            await asyncio.wrap_future(self._writer.submit(call))
        except StoreUnavailableError as error:
            if not self._problem:
                logger.warning("what was announced cannot be noted; it is kept", extra={"reason": str(error)})
            self._problem = str(error)
            return False
        if self._problem:
            logger.info("what was announced can be noted again", extra={"lost": self._dropped})
            self._problem, self._dropped = "", 0
        return True

    def _bound(self) -> None:
        while len(self._waiting) > MAX_WAITING:
            self._waiting.popleft()
            self._dropped += 1

    def _look(self) -> None:
        """Ask for all that is asked, in one question; for nothing, to see whether there is an answer."""
        self._is_asking = True
        asked, self._asked = self._asked, []
        begun_at = time.monotonic()
        identities = [identity for identity, _ in asked]
        future = asyncio.wrap_future(self._reader.submit(lambda: self.store.known(identities)))
        future.add_done_callback(lambda done: self._heard(asked, begun_at, done))

    def _heard(self, asked: list[_Asked], begun_at: float, done: asyncio.Future[set[bytes]]) -> None:
        self._is_asking = False
        if done.cancelled():
            return
        is_late = time.monotonic() - begun_at > self._ask_seconds
        error = done.exception()
        if error is None:
            known = done.result()
            self._tell(asked, known)
            if self._is_away and not is_late:
                self._is_away = False
                logger.info("other hosts' rings can be asked for again")
        elif isinstance(error, StoreUnavailableError):
            self._go_on_alone(asked, str(error))
        else:
            logger.error("other hosts' rings cannot be asked for", exc_info=error)
            self._go_on_alone(asked, type(error).__name__)
        if self._is_away:
            self._again = asyncio.get_running_loop().call_later(LOOK_SECONDS, self._look)
        elif self._asked:
            self._look()

    def _lose_patience(self, pending: Pending[bool]) -> None:
        self._go_on_alone([(b"", pending)], f"no answer within {self._ask_seconds:g} s")

    def _go_on_alone(self, asked: list[_Asked], reason: str) -> None:
        if not self._is_away:
            logger.warning("other hosts' rings cannot be asked for: events may ring twice", extra={"reason": reason})
        self._is_away = True
        waiting, self._asked = self._asked, []
        self._tell([*asked, *waiting], set())

    def _tell(self, asked: list[_Asked], known: set[bytes]) -> None:
        for identity, pending in asked:
            if not pending.done():
                pending.set_result(identity in known)
