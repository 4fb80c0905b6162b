"""Sweeps: lists the bucket page by page, compares it with what was announced, and announces what is missing.

Beside the event loop, one page at a time, with pauses: whoever uploads meanwhile is served as ever.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from functions.events.plan import Fate, Settled, Step
from functions.events.routes import Detection, Skip
from functions.s3.clients import StorageError
from functions.stored.errors import StoreUnavailableError
from functions.stored.ring import Ring, Verdict, verdict
from functions.telemetry import logger
from infra.host.bell import REPEATED
from infra.host.sweep.judge import Compared, ListedObject, Newest, Young, compare, in_order
from infra.host.sweep.ledger import SWEEP, Ledger
from infra.host.sweep.terms import Round, Terms
from infra.host.threads import in_thread

if TYPE_CHECKING:
    from functions.stored.rings import PrefixProgress
    from infra.host.bell import Bell
    from infra.host.metrics import SweepTelemetry
    from infra.host.mqtt.publisher import HostPublisher
    from infra.host.sweep.listing import Lister, ListPage
    from infra.host.sweep.record import Rung
    from infra.host.sweep.state import State

GRACE_SECONDS = 10.0  # where the store tells of uploads itself, as a rule within seconds
WAIT_SECONDS = 0.5  # between two looks at whether the broker is there
LOOK_SECONDS = 10.0  # at most, until the store, the state and this host's turn are there
POLITENESS = 6  # a page's time on the processor, and so many times that for everybody else
LONG_SECONDS = 60.0  # a round that takes longer says how far it is
MAX_ROLLED_BACK = 10_000
BATCH = 500  # announced at once, at most: the queue to the broker is everybody's

T = TypeVar("T")


class Sweeper:
    """One for each host. Belongs to the event loop."""

    def __init__(
        self,
        terms: Terms,
        *,
        lister: Lister,
        state: State,
        rung: Rung,
        ledger: Ledger,
        bell: Bell,
        publisher: HostPublisher,
        telemetry: SweepTelemetry,
        kept: Callable[[str], int] = lambda _camera_id: 0,
        now: Callable[[], float] = time.monotonic,
        after_first: Callable[[], object] = lambda: None,
    ) -> None:
        """`kept` tells when a camera's event was that the broker keeps, in ms since 1970; `now` is monotonic.

        `after_first` is called in a thread when the first round is over, by when everything is imported.
        """
        self._terms = terms
        self._lister = lister
        self._state = state
        self._rung = rung
        self._ledger = ledger
        self._bell = bell
        self._publisher = publisher
        self._telemetry = telemetry
        self._kept = kept
        self._now = now
        self._after_first = after_first
        self._young = Young()
        self._has_rules: bool | None = None
        self._rolled_back: OrderedDict[str, ListedObject] = OrderedDict()
        """What was counted: each is seen again by every sweep."""
        self._in_order: dict[str, bool] = {}
        """Of each prefix: whether the whole of the last LIST came in the order of its keys."""
        self._rounds = 0
        self._has_begun = False
        self.problem = ""
        """Why the bucket cannot be swept now."""
        self._task: asyncio.Task[None] | None = None

    @property
    def pause_seconds(self) -> float:
        """Between two sweeps."""
        return self._terms.pause_seconds

    async def start(self) -> None:
        """Begin. Returns at once."""
        self._task = asyncio.create_task(self._go_on(), name="sweep")

    async def stop(self) -> None:
        """End, in the middle of a round if need be: the next one finds what this one left."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _go_on(self) -> None:
        while True:
            self._has_begun = False
            try:
                await self.sweep()
                self._say("")
            except (StorageError, StoreUnavailableError) as error:
                self._say(str(error))
            except Exception as error:  # noqa: BLE001 - without this task nothing would ever be swept again
                logger.exception("sweep")
                self._say(type(error).__name__)
            # Another host sweeps, or the first time is not noted yet: whatever is uploaded before counts as announced.
            look_seconds = math.inf if self._has_begun else LOOK_SECONDS
            await asyncio.sleep(min(self._terms.pause_seconds, look_seconds))

    def _say(self, problem: str) -> None:
        """Once for each spell."""
        if problem and problem != self.problem:
            logger.warning("the bucket cannot be swept; trying on", extra={"reason": problem})
        elif self.problem and not problem:
            logger.info("the bucket is swept again")
        self.problem = problem

    # A round.

    async def sweep(self) -> bool:
        """Go through all prefixes once, and announce what is missing; False: another host does.

        Raises StorageError where a page failed, of which nothing is judged then, and StoreUnavailableError.
        """
        await self._until(lambda: self._publisher.configured and self._publisher.status.broker is not None)
        if not await in_thread(self._state.lead, "sweep"):
            return False
        try:
            await self._sweep(Round(Newest(self._terms.max_rings), self._now()))
        finally:
            self._ledger.rest()
        return True

    async def _sweep(self, round_: Round) -> None:
        progress = await in_thread(self._begin, "sweep")
        self._has_begun = True
        if self._has_rules is None:
            self._has_rules = await in_thread(self._lister.has_rules, "sweep")
        failure: StorageError | None = None
        for prefix, begun in progress.items():
            if prefix == self._terms.events_prefix:
                await in_thread(partial(self._state.forget_gone, prefix, prefix, None, ()), "sweep")
                if self._rounds and self._ledger.door_has_spoken:
                    continue
            try:
                await self._go_through(prefix, begun, round_)
            except StorageError as error:  # what was found elsewhere is announced all the same
                failure = error
        self._rounds += 1
        await self._announce_all(round_)
        await in_thread(partial(self._state.save), "sweep")
        if failure is not None:
            raise failure
        self._tell(round_)
        if self._rounds == 1:
            await in_thread(self._after_first, "sweep")

    def _begin(self) -> dict[str, PrefixProgress]:
        """Each prefix with its beginning. All that are new begin with the store's time now, before any LIST of them."""
        prefixes = self._terms.prefixes
        if self._terms.events_prefix is not None:
            prefixes += (self._terms.events_prefix,)
        known = {prefix: self._state.progress(prefix) for prefix in prefixes}
        if None in known.values():
            self._telemetry.list_call()
            store_time = self._lister.page(prefixes[0], limit=1).store_time
            return {
                prefix: self._state.begin(prefix, store_time) if progress is None else progress
                for prefix, progress in known.items()
            }
        return {prefix: progress for prefix, progress in known.items() if progress is not None}

    async def _go_through(self, prefix: str, progress: PrefixProgress, round_: Round) -> None:
        is_events = prefix == self._terms.events_prefix
        begins = progress.t0
        token, after, was_in_order, is_in_order = "", "", self._in_order.get(prefix, False), True
        while True:
            await self._until(lambda: not self._publisher.away)
            self._ledger.listen()
            self._telemetry.list_call()
            page, spent = await in_thread(partial(_timed, partial(self._lister.page, prefix, token)), "sweep")
            await self._flush()
            begins = min(begins, page.store_time)  # the store's clock was set back
            horizon = begins - self._terms.catch_up_seconds * 1000 if progress.is_lost else begins
            keys = [listed.object_key for listed in page.objects]
            is_in_order = is_in_order and in_order(keys, after)
            # A store whose disk is not mounted shows nothing at all: that is no reason to forget everything.
            forgets = was_in_order and is_in_order and bool(keys)
            gone = (after or prefix, keys[-1] if page.token else None) if forgets else None
            judge = partial(self._judge_events if is_events else self._judge, prefix, page, horizon, progress, gone)
            compared, more = await in_thread(partial(_timed, judge), "sweep")
            self._take(page, compared, round_)
            if not page.token:
                break
            token, after = page.token, keys[-1] if keys else after
            await asyncio.sleep(POLITENESS * (spent + more))
        self._in_order[prefix] = is_in_order
        if not progress.is_complete:
            await in_thread(partial(self._state.complete, prefix), "sweep")
            round_.lost = round_.lost or progress.is_lost

    def _take(self, page: ListPage, compared: Compared, round_: Round) -> None:
        for listed in compared.candidates:
            round_.newest.add(listed)
        for listed in compared.rollbacks:
            is_stale = self._ledger.is_busy(listed.object_key)  # the LIST is older than what rang meanwhile
            if not is_stale and self._rolled_back.get(listed.object_key) != listed:
                self._rolled_back[listed.object_key] = listed
                if len(self._rolled_back) > MAX_ROLLED_BACK:
                    self._rolled_back.popitem(last=False)
                round_.rollbacks += 1
                self._telemetry.rolled_back()
        round_.listed += len(page.objects)
        round_.counted += len(compared.counted)
        now = self._now()
        if now - round_.told_at >= LONG_SECONDS:
            round_.told_at = now
            logger.info("the sweep goes on", extra=round_.figures(now))

    async def _flush(self) -> None:
        """What rang, and is not noted yet, would ring again."""
        if not await self._rung.flush():
            raise StoreUnavailableError("what was announced cannot be noted")

    # In a thread.

    def _judge(
        self, prefix: str, page: ListPage, horizon: int, progress: PrefixProgress, gone: tuple[str, str | None] | None
    ) -> Compared:
        compared = compare(
            page.objects,
            self._state.of_keys([listed.object_key for listed in page.objects]) if page.objects else {},
            is_wanted=self._is_wanted,
            counts_before=None if progress.is_complete else horizon,
            is_young=lambda listed: self._is_young(listed, page.store_time),
        )
        if compared.counted:
            self._state.record(compared.counted)
        if gone is not None:
            self._state.forget_gone(prefix, *gone, {listed.object_key for listed in page.objects})
        return compared

    def _judge_events(
        self,
        _prefix: str,
        page: ListPage,
        horizon: int,
        _progress: PrefixProgress,
        _gone: tuple[str, str | None] | None,
    ) -> Compared:
        """An event is news for a moment, and until its camera has another. Of what is older nothing is kept."""
        since = max(horizon, page.store_time - self._terms.events_max_age_seconds * 1000)
        objects = [listed for listed in page.objects if listed.modified >= since and self._is_news(listed)]
        rings = self._state.of_keys([listed.object_key for listed in objects]) if objects else {}
        compared = compare(objects, rings, is_young=lambda listed: self._is_young(listed, page.store_time))
        compared.rollbacks.clear()
        return compared

    def _is_wanted(self, listed: ListedObject) -> bool:
        """Whether it is for devices, or was meant to be and its name is wrong: that is said once."""
        action = self._step(listed).action
        return not isinstance(action, Skip) or action.is_warning

    def _is_news(self, listed: ListedObject) -> bool:
        action = self._step(listed).action
        if not isinstance(action, Detection):
            return False
        return listed.modified > max(self._ledger.latest(action.camera_id), self._kept(action.camera_id))

    def _is_young(self, listed: ListedObject, store_time: int) -> bool:
        grace_seconds = self._terms.grace_seconds
        if grace_seconds is None:
            has_doors = self._has_rules is not False or self._terms.polls or self._ledger.door_has_spoken
            grace_seconds = GRACE_SECONDS if has_doors else 0.0
        return self._young.is_young(listed, store_time, self._now(), grace_seconds)

    def _step(self, listed: ListedObject) -> Step:
        created = listed.created(self._terms.bucket)
        return Step(created, self._bell.routes.route(created))

    # Announcing.

    async def _announce_all(self, round_: Round) -> None:
        self._telemetry.waiting(round_.newest.left_out)
        if round_.newest.left_out:
            logger.error(
                "more files to announce than SWEEP_MAX_RINGS: the newest are announced now, the others by the next "
                "sweeps. Raise SWEEP_MAX_RINGS to announce more of them at once",
                extra={"announced": self._terms.max_rings, "waiting": round_.newest.left_out},
            )
        candidates = round_.newest.oldest_first()
        for at in range(0, len(candidates), self._batch_size):
            if not await self._announce(candidates[at : at + self._batch_size], round_):
                break

    @property
    def _batch_size(self) -> int:
        return min(self._terms.rings_per_second, BATCH)

    async def _announce(self, batch: Sequence[ListedObject], round_: Round) -> bool:
        """Announce these, paced, but for what a door has announced since; False where the broker is away."""
        self._ledger.listen()
        await self._flush()
        known_rings = await in_thread(lambda: self._state.of_keys([listed.object_key for listed in batch]), "sweep")
        began_at, begun = time.monotonic(), 0
        results: list[asyncio.Future[list[Settled]]] = []
        for listed in batch:
            early_seconds = began_at + begun / self._terms.rings_per_second - time.monotonic()
            if early_seconds > 0:
                await asyncio.sleep(early_seconds)
            if self._publisher.away:
                break
            known = (*known_rings.get(listed.object_key, ()), *self._ledger.given_up(listed.object_key))
            if self._ledger.is_busy(listed.object_key) or _knows(listed, known):
                continue
            step = self._step(listed)
            if isinstance(step.action, Detection) and not self._is_news(listed):
                continue
            begun += 1
            results.append(self._ring(step))
        if results:
            await asyncio.wait(results)
        for result in results:
            self._account(result.result()[0], round_)
        return not self._publisher.away

    def _ring(self, step: Step) -> asyncio.Future[list[Settled]]:
        result: asyncio.Future[list[Settled]] = asyncio.get_running_loop().create_future()
        self._bell.ring_then((step,), SWEEP, lambda found: None if result.done() else result.set_result(found))
        return result

    def _account(self, settled: Settled, round_: Round) -> None:
        if settled.fate is Fate.PUBLISHED:
            round_.rang += 1
            self._telemetry.rang()
        elif settled.failed:
            round_.failed += 1
        elif settled.label == REPEATED and self._bell.has_rung(settled.step):  # which is recorded no more
            self._ledger.landed(settled.step, is_settled=True)

    def _tell(self, round_: Round) -> None:
        seconds = self._now() - round_.began_at
        self._telemetry.swept(seconds)
        details = round_.figures(self._now())
        if round_.lost:
            logger.warning(
                "what was announced before is not known: what is younger than SWEEP_CATCH_UP_SECONDS is announced "
                "again, and the rest counts as announced",
                extra=details,
            )
        elif self._rounds == 1 or round_.rang or round_.failed or seconds >= LONG_SECONDS:
            logger.info("swept", extra=details)

    async def _until(self, truth: Callable[[], bool]) -> None:
        while not truth():  # noqa: ASYNC110 - the link tells nobody but its own log
            await asyncio.sleep(WAIT_SECONDS)


def _timed(call: Callable[[], T]) -> tuple[T, float]:
    """What it returns, and its time on the processor."""
    began_at = time.thread_time()
    return call(), time.thread_time() - began_at


def _knows(listed: ListedObject, rings: Sequence[Ring]) -> bool:
    return verdict(listed.etag, listed.modified, rings)[0] is not Verdict.NEW
