"""What the doors and the poller share: one identity for each event, published once, and a memory."""

from __future__ import annotations

import asyncio
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import Any, NamedTuple, get_args, overload

from functions.admin.known import BY_HAND
from functions.events.dialects import IgnoredReason
from functions.events.envelopes import Malformed, ObjectCreated
from functions.events.names import CANARY_KEY
from functions.events.plan import Fate, Settled, Step, settle_one
from functions.events.routes import Detection, Routes, Skip, SkipReason, Unread, UnreadLabel, Upload
from functions.events_log import log
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status
from functions.own_topics import OwnTopics
from functions.telemetry import Telemetry, logger
from infra.host.causes import RETRY_SECONDS, Holdups
from infra.host.detections import HostReader, Reading
from infra.host.history import History
from infra.host.mqtt.aside import PendingPublish
from infra.host.mqtt.publisher import HostPublisher, QueueFullError
from infra.host.pending import Patience, Pending
from infra.host.sweep.ledger import SWEEP, Ledger
from infra.host.twins import Twins

SEEN_LIMIT = 50_000
SEEN_SECONDS = 24 * 3600.0
REPEATED, DROPPED, UNAUTHORISED, GAVE_UP = "repeated", "dropped", "unauthorised", "gave_up"
AGAIN = "again"  # the source of what was given up and is tried anew
OUTCOMES = (*Status, *get_args(SkipReason), *get_args(IgnoredReason), *get_args(UnreadLabel), REPEATED)
"""What may become of a record from any source."""
DOORS = {
    "sure": (*OUTCOMES, UNAUTHORISED, GAVE_UP),
    "fast": (*OUTCOMES, UNAUTHORISED, DROPPED),
    AGAIN: (*Status, *get_args(UnreadLabel)),
    BY_HAND: (*Status, *get_args(UnreadLabel)),
}
QUEUES = {"sqs": OUTCOMES, "r2": OUTCOMES}
JETSTREAM = "nats"
STREAM = {JETSTREAM: (*OUTCOMES, GAVE_UP)}
ASKING = ("sure", *QUEUES, JETSTREAM)
"""Who can wait for a moment: for a word whether another host has announced it."""
SWEPT = {SWEEP: (*OUTCOMES, GAVE_UP)}
LOG_LINES_PER_KIND = 10
LOG_WINDOW_SECONDS = 60.0
MAX_LOG_KINDS = 1_000


class SeenEvents:
    """Settled identities, bounded in number and age: after that a repeat can ring again, with the same `id`."""

    def __init__(self, limit: int = SEEN_LIMIT, seconds: float = SEEN_SECONDS) -> None:
        """Begin empty, as after every restart."""
        self._limit = limit
        self._seconds = seconds
        # By the last byte. Python replaces a table in which much was added and removed, and one of all identities has
        # megabytes, which the allocator keeps now and then: the process grew by 11 MB in a million events.
        self._tables: tuple[dict[bytes, float], ...] = tuple({} for _ in range(256))
        self._order: deque[tuple[bytes, float]] = deque()

    def __contains__(self, identity: bytes) -> bool:
        settled_at = self._tables[identity[-1]].get(identity)
        return settled_at is not None and time.monotonic() - settled_at < self._seconds

    def __len__(self) -> int:
        return sum(map(len, self._tables))

    def add(self, identity: bytes) -> None:
        """Remember `identity` (16 bytes), and forget the oldest beyond the limit."""
        settled_at = self._tables[identity[-1]][identity] = time.monotonic()
        self._order.append((identity, settled_at))
        while len(self._order) > self._limit:
            oldest, since = self._order.popleft()
            table = self._tables[oldest[-1]]
            if table.get(oldest) is since:  # not added anew
                del table[oldest]


class _Joined(NamedTuple):
    """An arrival that waits for a message on its way; `began` it, or met it."""

    step: Step
    pending: PendingPublish | Reading
    began: bool


class Bell:
    """Rings at most once for each event, however often and at however many doors it arrives."""

    def __init__(
        self,
        publisher: HostPublisher,
        routes: Routes,
        telemetry: Telemetry,
        *,
        patience_seconds: float,
        retry_seconds: float = RETRY_SECONDS,
        reader: HostReader | None = None,
        ledger: Ledger | None = None,
        ask: Callable[[bytes], Pending[bool]] | None = None,
        tell: Callable[[Settled], None] | None = None,
    ) -> None:
        """`patience_seconds`: how long `ring` waits for the broker's word. `reader` is for routes with detections.

        `retry_seconds`: for how long one cause may hold up a store's queue. `ledger`: where what rings is recorded.
        `ask`: whether another host has announced this event, where there are others. `tell` hears of each event that is
        no repeat.
        """
        self.routes = routes
        self._publisher = publisher
        self._reader = reader
        self._telemetry = telemetry
        self._patience = Patience(patience_seconds)
        self._twins = Twins()
        self._ledger = ledger
        self._ask = ask
        self._tell = tell
        self._own_topics = OwnTopics()
        self._seen = SeenEvents()
        self._refused = SeenEvents()
        self.history = History()
        self.holdups = Holdups(retry_seconds, is_outage=self._is_outage, try_again=self._try_again)
        self._under_way: dict[bytes, PendingPublish | Reading] = {}
        self._log_counts: Counter[tuple[str, str, str]] = Counter()
        self._log_window_at = 0.0

    @property
    def configured(self) -> bool:
        """Whether there is a broker; without one nothing is counted, logged or remembered."""
        return self._publisher.configured

    @property
    def is_ready(self) -> bool:
        """Whether a message would be sent now."""
        return self._publisher.ready

    async def ring(self, steps: Sequence[Step], source: str) -> list[Settled]:
        """Publish what is to be published, and return each step's fate within the patience."""
        settled: asyncio.Future[list[Settled]] = asyncio.get_running_loop().create_future()
        self.ring_then(steps, source, lambda found: None if settled.done() else settled.set_result(found))
        return await settled

    def ring_then(self, steps: Sequence[Step], source: str, tell: Callable[[list[Settled]], None]) -> None:
        """As `ring`; `tell` is called with each step's fate as soon as that is known."""
        steps = [self._known(step, source) for step in steps]
        unknown = self._unknown(steps) if self._ask is not None and source in ASKING else None
        if unknown:
            self._ask_others(unknown, lambda: self._ring_then(steps, source, tell))
        else:
            self._ring_then(steps, source, tell)

    def _ring_then(self, steps: Sequence[Step], source: str, tell: Callable[[list[Settled]], None]) -> None:
        arrivals = [self._begin(step, source) for step in steps]
        waiting = [arrival.pending.done for arrival in arrivals if isinstance(arrival, _Joined)]
        left = len(waiting)

        def settle() -> None:
            settled = [one if isinstance(one, Settled) else self._verdict(one, source) for one in arrivals]
            for one in settled:
                self._account(one, source)
            tell(settled)

        def count(_: Pending[Any]) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                self._patience.end(lose_patience)
                settle()

        def lose_patience() -> None:
            nonlocal left
            left = -1  # what comes now is too late
            self._publisher.withdraw_late()
            settle()

        if not waiting:
            settle()
            return
        self._patience.begin(lose_patience)
        for one in waiting:
            one.add_done_callback(count)

    def ring_soon(self, steps: Sequence[Step], source: str) -> None:
        """Put what is to be published on its way, and return at once."""
        for told in steps:
            step = self._known(told, source)
            arrival = self._begin(step, source)
            if isinstance(arrival, Settled):
                # Nobody will ask again at this door: what found no room is gone here.
                self._account(arrival._replace(label=DROPPED) if arrival.retriable else arrival, source)
            elif arrival.began:
                arrival.pending.done.add_done_callback(
                    lambda done, step=arrival.step: self._account(settle_one(step, done.result()), source)  # type: ignore[misc]  # the default binds this step
                )
            else:
                self._account(Settled(arrival.step, REPEATED), source)

    async def ring_device(self, step: Step, upload: Upload) -> Settled:
        """Announce `upload` once, by itself: for all but one device the event of this step has not rung."""
        pending = self._submit(upload.message)
        settled = settle_one(
            step._replace(action=upload), pending if isinstance(pending, Outcome) else await pending.done
        )
        self._telemetry.event(BY_HAND, settled.label)
        log(settled)
        return settled

    def has_rung(self, step: Step) -> bool:
        """Whether it was announced, as far as is remembered."""
        return not isinstance(step.action, Skip) and self.knows(step.action.identity)

    def knows(self, identity: bytes) -> bool:
        """Whether this event needs no announcement any more."""
        return identity in self._seen

    def announced_elsewhere(self, identity: bytes) -> None:
        """Another host has announced it: here it is a repeat."""
        self._seen.add(identity)

    def turn_away(self, source: str) -> None:
        """Count an event that came without a valid token, and say so once a minute: its store may well stay silent."""
        self._telemetry.event(source, UNAUTHORISED)
        if self._may_log((source, UNAUTHORISED, ""), 1):
            words = "a store came without a valid token: compare its token with WEBHOOK_TOKENS"
            logger.warning(words, extra={"door": source})

    def _known(self, step: Step, source: str) -> Step:
        """Return `step` under the identity by which its upload is known already, if it is."""
        if source == BY_HAND:
            return step
        if self._ledger is None:
            return self._twins.known(step)
        # The sweep has compared times itself, with what was announced before this process began, too.
        return step if source == SWEEP else self._ledger.known(self._twins.known(step))

    def on_way(self, key: str) -> tuple[bytes, ...]:
        """The identities of what of this key waits for a verdict."""
        return tuple(identity for identity, pending in self._under_way.items() if pending.object_key == key)

    def _unknown(self, steps: Sequence[Step]) -> set[bytes]:
        """What we know nothing of; another host may."""
        identities = {step.action.identity for step in steps if not isinstance(step.action, Skip)}
        tables = self._seen, self._refused, self._under_way
        return {identity for identity in identities if all(identity not in table for table in tables)}

    def _ask_others(self, identities: Collection[bytes], go_on: Callable[[], None]) -> None:
        left = len(identities)

        def hear(identity: bytes, has_rung: Pending[bool]) -> None:
            nonlocal left
            if has_rung.result():
                self._seen.add(identity)
            left -= 1
            if left == 0:
                go_on()

        if self._ask is not None:
            for identity in identities:
                self._ask(identity).add_done_callback(partial(hear, identity))

    def _begin(self, step: Step, source: str) -> Settled | _Joined:
        record, action = step.record, step.action
        if not isinstance(record, ObjectCreated):
            return settle_one(step, None)
        identity = record.identity if isinstance(action, Skip) else action.identity
        # A queue asks again on purpose, perhaps after a person has corrected the broker's rules.
        if identity in self._seen or (identity in self._refused and source not in QUEUES):
            return Settled(step, REPEATED)
        if isinstance(action, Skip):
            self._seen.add(identity)
            if self._ledger is not None and action.is_warning:
                self._ledger.landed(step, is_settled=True)
            return settle_one(step, None)
        if (under_way := self._under_way.get(identity)) is not None:
            return _Joined(step, under_way, began=False)
        pending = self._take_off(step, action, source)
        if isinstance(pending, Outcome):
            return self._put_off(step, pending, source)
        return _Joined(step, pending, began=True)

    def _take_off(self, step: Step, action: Upload | Detection, source: str) -> PendingPublish | Reading | Outcome:
        """Put one on its way; an outcome says why that cannot be."""
        pending = self._submit(action if isinstance(action, Detection) else action.message)
        if isinstance(pending, Outcome):
            return pending
        self._under_way[action.identity] = pending
        if self._ledger is not None:
            self._ledger.took_off(step, source)
        pending.done.add_done_callback(lambda done: self._landed(step, action, done.result()))
        if isinstance(action, Upload) and (own := self._own_topics.take(action)) is not None:
            on_way = self._submit(own)
            if isinstance(on_way, Outcome):
                self._own_topics.landed(action, on_way)
            else:
                on_way.done.add_done_callback(lambda done: self._own_topics.landed(action, done.result()))
        return pending

    @overload
    def _submit(self, what: Message) -> PendingPublish | Outcome: ...
    @overload
    def _submit(self, what: Message | Detection) -> PendingPublish | Reading | Outcome: ...
    def _submit(self, what: Message | Detection) -> PendingPublish | Reading | Outcome:
        try:
            return self._read(what) if isinstance(what, Detection) else self._publisher.submit(what)
        except QueueFullError:
            return Outcome(Status.UNCONFIRMED, "too many notifications wait already")
        except Exception as error:  # noqa: BLE001 - whatever it is, a store's queue must not stand still over it
            logger.exception("an event cannot be put on its way")
            return Outcome(Status.UNCONFIRMED, f"internal error: {type(error).__name__}")

    def _read(self, detection: Detection) -> Reading:
        if self._reader is None:
            raise RuntimeError("routes with detections need a reader")
        return self._reader.submit(detection)

    def _landed(self, step: Step, action: Upload | Detection, outcome: Outcome | Unread) -> None:
        self._under_way.pop(action.identity, None)
        if self._ledger is not None:
            self._ledger.landed(step, is_settled=not outcome.is_transient)
        self.holdups.landed(action, outcome)
        if outcome.success:
            self._seen.add(action.identity)
        elif not outcome.is_transient:
            self._refused.add(action.identity)

    def _verdict(self, joined: _Joined, source: str) -> Settled:
        step, done = joined.step, joined.pending.done
        if done.done():
            outcome = done.result()
        else:
            reason = self._publisher.status.reason or "not acknowledged in time"
            outcome = Outcome(Status.UNCONFIRMED, reason, self._publisher.status.reason_code)
        if outcome.is_transient:
            return self._put_off(step, outcome, source)
        is_final = outcome.success or source not in QUEUES
        return Settled(step, REPEATED) if is_final and not joined.began else settle_one(step, outcome)

    def _put_off(self, step: Step, outcome: Outcome | Unread, source: str) -> Settled:
        """Have its source bring it again. A store's queue not for ever: behind it waits whatever else is in there."""
        settled = settle_one(step, outcome)._replace(fate=Fate.RETRIABLE)
        # A queue goes on with what is behind, and has its own way with what comes back too often.
        asks_again = source in ("sure", SWEEP, JETSTREAM)
        if not asks_again or isinstance(step.action, Skip) or not self.holdups.gives_up(step, step.action, outcome):
            return settled
        self._refused.add(step.action.identity)
        if self._ledger is not None:
            self._ledger.gave_up(step)
        return settled._replace(label=GAVE_UP, fate=Fate.PERMANENT)

    def _is_outage(self) -> bool:
        return self._publisher.away or (self._reader is not None and self._reader.store_away)

    def _try_again(self, step: Step) -> None:
        """Announce what was given up, if it can be."""
        action = step.action
        if isinstance(action, Skip) or action.identity in self._under_way:
            return
        pending = self._take_off(step, action, AGAIN)
        if not isinstance(pending, Outcome):
            pending.done.add_done_callback(lambda done: self._tried_again(step, done.result()))

    def _tried_again(self, step: Step, outcome: Outcome | Unread) -> None:
        if isinstance(step.action, Skip) or self.holdups.lasts(step.action, outcome):
            return
        self._account(settle_one(step, outcome), AGAIN)

    def _account(self, settled: Settled, source: str) -> None:
        """Count every record; log each kind a bounded number of times a minute, and a repeat not at all."""
        self.history.add(settled, source)
        record = settled.step.record
        if not isinstance(record, Malformed) and record.object_key == CANARY_KEY:
            return  # no upload: `doctor` asks where it was heard
        self._telemetry.event(source, settled.label)
        if settled.label == REPEATED:
            return
        if self._tell is not None:
            self._tell(settled)
        # One malformed event looks like the next; a failed publish names its file.
        lines = 1 if isinstance(record, Malformed) else LOG_LINES_PER_KIND
        if self._may_log((source, settled.label, settled.reason), lines):
            log(settled)

    def _may_log(self, kind: tuple[str, str, str], lines: int) -> bool:
        now = time.monotonic()
        if now - self._log_window_at > LOG_WINDOW_SECONDS or len(self._log_counts) > MAX_LOG_KINDS:
            self._log_window_at = now
            self._log_counts.clear()
        self._log_counts[kind] += 1
        return self._log_counts[kind] <= lines
