"""What keeps events from being announced, for how long, and what was given up because of it.

A store's queue tries its first event again and nothing else, so an answer that asks for another try is a decision about
everybody behind it. That is why the clock belongs to the cause and not to the event: a hundred bad events stall a queue
once. In an outage nothing is learnt about any event, and no clock goes on.

`Causes` is pure and is told the time; `Holdups` reads outcomes for it, and lets time pass on the event loop.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

from functions.events.routes import Detection, Unread, Upload
from functions.mqtt.outcome import FORBIDDING_REFUSALS, Outcome, Status
from functions.telemetry import logger
from infra.host.rounds import Rounds

if TYPE_CHECKING:
    from functions.events.plan import Step

RETRY_SECONDS = 3600.0
LAPSE_SECONDS = 600.0  # at least: a cause that no queue has met for so long stalls none, and has a new clock later
TRY_SECONDS = 60.0  # between two looks at whether a cause has ended
MAX_EVENTS = 10_000
MAX_CAUSES = 1_000
MAX_AT_ONCE = 100  # a broker that is well again has others to serve

TICK_SECONDS = 1.0
FORBIDDEN = "forbidden"
"""A right that goes by topic: any success there shows that it is back."""

T = TypeVar("T")


class Cause(NamedTuple):
    """Why an event fails: where (a topic, or a place in the store), and for which reason."""

    place: str
    reason: str


@dataclass(slots=True)
class _Clock:
    began: float
    met: float
    has_run_out: bool = False


@dataclass(slots=True)
class _Event(Generic[T]):
    """`given_up` is what to announce when the cause ends; None while a queue still brings it again."""

    cause: Cause
    given_up: T | None = None


class Causes(Generic[T]):
    """Bounded in causes and in events. An event is known by its identity."""

    def __init__(self, retry_seconds: float = RETRY_SECONDS) -> None:
        """A cause that has lasted `retry_seconds` makes `failed` say so."""
        self._retry_seconds = retry_seconds
        self._lapse_seconds = max(LAPSE_SECONDS, retry_seconds)
        self._now = self._tried_at = 0.0
        self._clocks: OrderedDict[Cause, _Clock] = OrderedDict()
        self._events: OrderedDict[bytes, _Event[T]] = OrderedDict()
        self._due: OrderedDict[bytes, T] = OrderedDict()

    def __len__(self) -> int:
        """How many events are given up and not announced yet."""
        return len(self._due) + sum(event.given_up is not None for event in self._events.values())

    def is_idle(self) -> bool:
        """Whether time changes nothing until an event fails again."""
        return not len(self) and all(clock.has_run_out or self._lapsed(clock) for clock in self._clocks.values())

    def pass_time(self, seconds: float) -> None:
        """Let so much time pass in which both broker and store could be asked."""
        self._now += seconds

    def failed(self, identity: bytes, cause: Cause) -> bool:
        """Note that an event of a queue failed for this cause; return whether to give it up."""
        clock = self._clocks.get(cause)
        if clock is None or (not clock.has_run_out and self._lapsed(clock)):
            clock = self._clocks[cause] = _Clock(self._now, self._now)
            _bound(self._clocks, MAX_CAUSES)
        clock.met = self._now
        clock.has_run_out = clock.has_run_out or self._now - clock.began >= self._retry_seconds
        known = self._events.pop(identity, None)
        given_up = self._due.pop(identity, known.given_up if known is not None else None)
        self._keep(identity, _Event(cause, given_up))
        return clock.has_run_out

    def give_up(self, identity: bytes, event: T) -> None:
        """List an event that has `failed`, to be announced when its cause ends."""
        known = self._events.get(identity)
        if known is not None:
            known.given_up = event

    def succeeded(self, identity: bytes, place: str) -> list[Cause]:
        """Note that an event was announced at this topic; return the causes that this has ended.

        That ends the cause that this event failed for, and each cause that holds for the whole topic. Others that
        succeed prove nothing: one object may be encrypted with a key that nobody here has.
        """
        if not self._clocks and not self._events and not self._due:
            return []  # as nearly always
        self._due.pop(identity, None)
        known = self._events.pop(identity, None)
        ended = {known.cause} if known is not None else set[Cause]()
        if (right := Cause(place, FORBIDDEN)) in self._clocks:
            ended.add(right)
        for cause in ended:
            self._end(cause)
        return list(ended)

    def forget(self, identity: bytes) -> None:
        """Forget this event: its object is gone, for instance."""
        self._due.pop(identity, None)
        known = self._events.pop(identity, None)
        if known is not None and all(event.cause != known.cause for event in self._events.values()):
            self._clocks.pop(known.cause, None)

    def of(self, identity: bytes) -> tuple[Cause, float, bool] | None:
        """What this event fails for, how long that has lasted without outages, and whether the event is given up."""
        event = self._events.get(identity)
        clock = None if event is None else self._clocks.get(event.cause)
        if event is None or clock is None:
            return None
        return event.cause, self._now - clock.began, event.given_up is not None

    def to_try(self) -> list[T]:
        """Return what was given up and is to be tried now.

        All whose cause has ended, a few at a time; and now and then one of each cause that lasts: nothing else may ever
        show its end.
        """
        due = list(self._due)[:MAX_AT_ONCE]
        for identity in due:
            self._due.move_to_end(identity)
        tried = [self._due[identity] for identity in due]
        if self._now - self._tried_at < min(TRY_SECONDS, self._retry_seconds):
            return tried
        self._tried_at = self._now
        causes: set[Cause] = set()
        for identity, event in list(self._events.items()):
            if event.given_up is not None and event.cause not in causes and len(causes) < MAX_AT_ONCE:
                causes.add(event.cause)
                tried.append(event.given_up)
                self._events.move_to_end(identity)
        return tried

    def _lapsed(self, clock: _Clock) -> bool:
        return self._now - clock.met > self._lapse_seconds

    def _keep(self, identity: bytes, event: _Event[T]) -> None:
        self._events[identity] = event
        _bound(self._events, MAX_EVENTS - len(self._due))

    def _end(self, cause: Cause) -> None:
        self._clocks.pop(cause, None)
        for identity in [one for one, event in self._events.items() if event.cause == cause]:
            given_up = self._events.pop(identity).given_up
            if given_up is not None:
                self._due[identity] = given_up


def _bound(table: OrderedDict[bytes, _Event[T]] | OrderedDict[Cause, _Clock], limit: int) -> None:
    while len(table) > limit:
        table.popitem(last=False)


class Holdups:
    """Judges for one process whether a store shall bring an event again. Belongs to the event loop."""

    def __init__(
        self, retry_seconds: float, *, is_outage: Callable[[], bool], try_again: Callable[[Step], object]
    ) -> None:
        """`is_outage`: whether broker or store are out of reach. `try_again` is called with what was given up."""
        self._causes: Causes[Step] = Causes(retry_seconds)
        self._is_outage = is_outage
        self._try_again = try_again
        # At most twice a tick: while the process was stopped, nothing was tried.
        self._rounds = Rounds("holdups", TICK_SECONDS, lambda seconds: self.tick(min(seconds, 2 * TICK_SECONDS)))

    async def start(self) -> None:
        """Begin to count time. Returns at once."""
        self._rounds.start()

    async def stop(self) -> None:
        """End that. Idempotent."""
        await self._rounds.stop()

    def gives_up(self, step: Step, action: Upload | Detection, outcome: Outcome | Unread) -> bool:
        """Whether what failed has held up a queue for long enough; then it is listed, to be announced later."""
        if not self._failed(action, outcome):
            return False
        self._causes.give_up(action.identity, step)
        return True

    def landed(self, action: Upload | Detection, outcome: Outcome | Unread) -> None:
        """Hear what became of an event from any source."""
        if isinstance(outcome, Outcome) and outcome.success:
            for cause in self._causes.succeeded(action.identity, _topic(action)):
                logger.info("announced again", extra={"place": cause.place, "reason": cause.reason})
        elif not outcome.is_transient:
            self._causes.forget(action.identity)

    def of(self, identity: bytes) -> tuple[Cause, float, bool] | None:
        """See `Causes.of`."""
        return self._causes.of(identity)

    def lasts(self, action: Upload | Detection, outcome: Outcome | Unread) -> bool:
        """Whether an event that was given up still fails; then it stays on the list."""
        if not outcome.is_transient:
            return False
        self._failed(action, outcome)
        return True

    def tick(self, seconds: float) -> float:
        """Let time pass, unless there is an outage, and try again what is due. Returns when to call again."""
        if not self._is_outage():
            self._causes.pass_time(seconds)
            for step in self._causes.to_try():
                self._try_again(step)
        return math.inf if self._causes.is_idle() else TICK_SECONDS

    def _failed(self, action: Upload | Detection, outcome: Outcome | Unread) -> bool:
        if not _is_answer(outcome) and self._is_outage():
            return False
        self._rounds.stir()
        return self._causes.failed(action.identity, cause_of(action, outcome))


def cause_of(action: Upload | Detection, outcome: Outcome | Unread) -> Cause:
    """Why it failed, the same for every event that fails alike: no text that names an object, or a number of bytes."""
    if isinstance(outcome, Unread):
        return Cause(f"store {_prefix(action)}", outcome.code)
    if outcome.status is not Status.REFUSED:
        return Cause(_topic(action), outcome.status)
    if outcome.reason_code in FORBIDDING_REFUSALS:
        return Cause(_topic(action), FORBIDDEN)
    code = "without a word" if outcome.reason_code is None else f"0x{outcome.reason_code:02x}"
    return Cause(_topic(action), f"{outcome.status} {code}")


def _is_answer(outcome: Outcome | Unread) -> bool:
    """Whether the broker, or the store, has said something about this event: then there is no outage."""
    return outcome.answered if isinstance(outcome, Unread) else outcome.status is Status.REFUSED


def _prefix(action: Upload | Detection) -> str:
    """Where the store keeps the documents of all cameras: its rules go by prefixes."""
    return action.object_key.rsplit("/", 2)[0] if isinstance(action, Detection) else ""


def _topic(action: Upload | Detection) -> str:
    """What the broker's rules go by; a camera has a topic of its own."""
    return action.message.topic if isinstance(action, Upload) else f"camera {action.camera_id}"
