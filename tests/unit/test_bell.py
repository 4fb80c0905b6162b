"""The memory and the ledger: one identity for each event, one flight for each identity."""

from __future__ import annotations

import asyncio
import time
import tracemalloc
from collections import Counter
from collections.abc import Awaitable
from typing import Any, cast

import pytest

from functions.notify import Step, plan
from functions.publisher import Outcome, Status
from functions.routes import Notification, Routes
from infra.host import bell as bell_module
from infra.host.aside import Flight
from infra.host.bell import FORBIDDEN_SECONDS, MEMORY_LIMIT, Bell, Memory
from infra.host.link import LinkStatus
from infra.host.metrics import PrometheusTelemetry
from infra.host.publisher import HostPublisher, QueueFull
from tests.hosts import on_uvloop, record
from tests.timing import PATIENCE_SECONDS

DELIVERED = Outcome(Status.DELIVERED)
REFUSED = Outcome(Status.REFUSED, "the broker answered 0x99", 0x99)
FORBIDDEN = Outcome(Status.REFUSED, "the broker answered 0x87", 0x87)
UNCONFIRMED = Outcome(Status.UNCONFIRMED, "connection lost")


class Publisher:
    """Takes notifications, and answers when the test says so."""

    configured = True
    status = LinkStatus("mqtt://broker", connected=False, since=0.0, reason="nobody there", reason_code=0x88)

    def __init__(self) -> None:
        self.flights: list[Flight] = []
        self.room = 1_000_000

    def withdraw_late(self) -> None:
        """As `HostPublisher.withdraw_late`: nothing here is unsent."""

    def submit(self, notification: Notification) -> Flight:
        """As `HostPublisher.submit`."""
        if len(self.flights) >= self.room:
            raise QueueFull
        flight = Flight(notification, 0.0, 0.0, asyncio.get_running_loop().create_future())
        self.flights.append(flight)
        return flight


class Case:
    """A bell on that publisher, what it counted and what it logged."""

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS) -> None:
        self.publisher = Publisher()
        self.telemetry = PrometheusTelemetry()
        self.routes = Routes()
        # The bell uses nothing else of it.
        self.bell = Bell(
            cast("HostPublisher", self.publisher), self.routes, self.telemetry, patience_seconds=patience_seconds
        )

    def steps(self, *records: object) -> tuple[Step, ...]:
        """What these records ask for."""
        return plan({"Records": list(records)}, self.routes)

    async def ring(self, *records: object, answer: Outcome | None = None) -> list[str]:
        """Rings at the sure door; `answer` comes as soon as the bell waits."""
        ringing = asyncio.create_task(self.bell.ring(self.steps(*records), "sure"))
        await asyncio.sleep(0)
        if answer is not None:
            self.answer(answer)
        return [settled.label for settled in await ringing]

    def answer(self, outcome: Outcome) -> None:
        """Lands every flight that is under way."""
        for flight in self.publisher.flights:
            if not flight.done.done():
                flight.done.set_result(outcome)

    def counted(self) -> dict[tuple[str, str], float]:
        """(source, outcome) → `events_total`."""
        samples = [s for m in self.telemetry.registry.collect() if m.name == "events" for s in m.samples]
        return {(s.labels["source"], s.labels["outcome"]): s.value for s in samples if s.name == "events_total"}


async def _together(one: Awaitable[list[str]], other: Awaitable[list[str]]) -> list[list[str]]:
    return list(await asyncio.gather(one, other))


@pytest.fixture
def logged(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often each outcome was logged."""
    lines: Counter[str] = Counter()
    monkeypatch.setattr(bell_module, "log", lambda settled: lines.update([settled.label]))
    return lines


@on_uvloop
async def test_a_repeat_of_a_delivered_event_is_settled_without_a_message() -> None:
    """What was delivered is remembered, and its repeat succeeds at once."""
    case, upload = Case(), record()
    assert await case.ring(upload, answer=DELIVERED) == ["delivered"]
    assert await case.ring(upload) == ["repeated"]
    assert len(case.publisher.flights) == 1
    assert case.counted() == {("sure", "delivered"): 1, ("sure", "repeated"): 1}


@pytest.mark.parametrize("outcome", [REFUSED, Outcome(Status.NO_SUBSCRIBERS), Outcome(Status.SENT)])
@on_uvloop
async def test_every_final_outcome_is_remembered(outcome: Outcome) -> None:
    """No second message for what is sent, has no listener, or is refused for good."""
    case, upload = Case(), record()
    assert await case.ring(upload, answer=outcome) == [outcome.status.value]
    assert await case.ring(upload) == ["repeated"]


@pytest.mark.parametrize("outcome", [UNCONFIRMED, Outcome(Status.REFUSED, "quota", 0x97)])
@on_uvloop
async def test_an_outcome_that_may_pass_is_tried_again(outcome: Outcome) -> None:
    """A repeat after a failure that a retry can cure is a new flight."""
    case, upload = Case(), record()
    settled = await case.ring(upload, answer=outcome)
    assert settled == [outcome.status.value]
    assert await case.ring(upload, answer=DELIVERED) == ["delivered"]
    assert len(case.publisher.flights) == 2


@on_uvloop
async def test_two_arrivals_at_once_share_one_flight() -> None:
    """The second of two concurrent arrivals waits for the first's verdict."""
    case, upload = Case(), record()
    both = asyncio.create_task(_together(case.ring(upload), case.ring(upload, upload)))
    await asyncio.sleep(0.01)
    case.answer(DELIVERED)
    assert await both == [["delivered"], ["repeated", "repeated"]]
    assert len(case.publisher.flights) == 1


@on_uvloop
async def test_a_second_arrival_shares_the_first_ones_failure_too() -> None:
    """Whoever waits for a flight that fails is told to come again."""
    case, upload = Case(), record()
    both = asyncio.create_task(_together(case.ring(upload), case.ring(upload)))
    await asyncio.sleep(0.01)
    case.answer(UNCONFIRMED)
    assert await both == [["unconfirmed"], ["unconfirmed"]]


@on_uvloop
async def test_a_refusal_is_told_once_but_to_a_queue_always() -> None:
    """Whoever joined the flight at a door needs nothing more; a queue must keep the message for a person."""
    case, upload = Case(), record()
    both = asyncio.create_task(_together(case.ring(upload), case.ring(upload)))
    await asyncio.sleep(0.01)
    case.answer(REFUSED)
    assert await both == [["refused"], ["repeated"]]
    case, upload = Case(), record()
    case.bell.ring_soon(case.steps(upload), "fast")
    polled = asyncio.create_task(case.bell.ring(case.steps(upload), "sqs"))
    await asyncio.sleep(0.01)
    case.answer(REFUSED)
    (settled,) = await polled
    assert (settled.label, settled.hopeless) == ("refused", True)


@on_uvloop
async def test_what_the_broker_forbids_is_tried_again_at_the_sure_door_until_the_right_is_back() -> None:
    """Also when the fast door brought it first, and for whoever joined the flight."""
    case, upload = Case(), record()
    case.bell.ring_soon(case.steps(upload), "fast")
    case.answer(FORBIDDEN)
    await asyncio.sleep(0)
    ringing = asyncio.create_task(case.bell.ring(case.steps(upload, upload), "sure"))
    await asyncio.sleep(0)
    case.answer(FORBIDDEN)
    assert [(one.label, one.retriable, one.hopeless) for one in await ringing] == [("refused", True, False)] * 2
    assert await case.ring(upload, answer=DELIVERED) == ["delivered"]
    assert await case.ring(upload) == ["repeated"]


@on_uvloop
async def test_what_the_broker_forbids_for_long_no_longer_holds_up_what_waits_behind_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An hour after a topic's first refusal the store is told that its events are done with, the later ones too."""
    case, upload, later = Case(), record(), record()
    now = time.monotonic
    assert await case.ring(upload, answer=FORBIDDEN) == ["refused"]
    monkeypatch.setattr("time.monotonic", lambda: now() + FORBIDDEN_SECONDS)
    for one in (upload, later):
        ringing = asyncio.create_task(case.bell.ring(case.steps(one), "sure"))
        await asyncio.sleep(0)
        case.answer(FORBIDDEN)
        (settled,) = await ringing
        assert (settled.label, settled.retriable, settled.hopeless) == ("refused", False, True)
        assert await case.ring(one) == ["repeated"]


@on_uvloop
async def test_a_topic_that_was_allowed_again_has_a_new_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rights that come and go are no reason to give an upload up at once."""
    case, upload, later = Case(), record(), record()
    now = time.monotonic
    assert await case.ring(upload, answer=FORBIDDEN) == ["refused"]
    assert await case.ring(upload, answer=DELIVERED) == ["delivered"]
    monkeypatch.setattr("time.monotonic", lambda: now() + FORBIDDEN_SECONDS)
    ringing = asyncio.create_task(case.bell.ring(case.steps(later), "sure"))
    await asyncio.sleep(0)
    case.answer(FORBIDDEN)
    (settled,) = await ringing
    assert (settled.label, settled.retriable) == ("refused", True)


@on_uvloop
async def test_a_late_acknowledgement_settles_the_event() -> None:
    """When patience ends, the caller hears why the link is down; the answer still counts when it comes."""
    case, upload = Case(patience_seconds=0.05), record()
    (settled,) = await case.bell.ring(case.steps(upload), "sure")
    assert (settled.label, settled.reason, settled.reason_code) == ("unconfirmed", "nobody there", 0x88)
    assert settled.retriable
    case.answer(DELIVERED)
    await asyncio.sleep(0)
    assert await case.ring(upload) == ["repeated"]
    assert len(case.publisher.flights) == 1


@on_uvloop
async def test_the_fast_door_rings_once_together_with_the_sure_one() -> None:
    """One event at both doors is one message, whichever comes first; each arrival is counted."""
    case, first, second = Case(), record(), record()
    case.bell.ring_soon(case.steps(first), "fast")
    assert await case.ring(first, answer=DELIVERED) == ["repeated"]
    assert await case.ring(second, answer=DELIVERED) == ["delivered"]
    case.bell.ring_soon(case.steps(second), "fast")
    await asyncio.sleep(0)
    assert len(case.publisher.flights) == 2
    assert case.counted() == {
        ("fast", "delivered"): 1,
        ("sure", "repeated"): 1,
        ("sure", "delivered"): 1,
        ("fast", "repeated"): 1,
    }


@on_uvloop
async def test_a_full_queue_drops_at_the_fast_door_and_asks_for_a_retry_at_the_sure_one(logged: Counter[str]) -> None:
    """Both are counted and logged; the sure door's event is not lost, for the store keeps it."""
    case = Case()
    case.publisher.room = 0
    case.bell.ring_soon(case.steps(record()), "fast")
    assert await case.ring(record()) == ["unconfirmed"]
    assert case.counted() == {("fast", "dropped"): 1, ("sure", "unconfirmed"): 1}
    assert logged == {"dropped": 1, "unconfirmed": 1}
    case.publisher.room = 1
    assert await case.ring(record(), answer=DELIVERED) == ["delivered"]


@on_uvloop
async def test_a_dropped_event_is_logged_as_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """A dropped event shows in the log with its topic, filename and reason."""
    case = Case()
    case.publisher.room = 0
    errors: list[dict[str, Any]] = []
    monkeypatch.setattr("functions.notify.logger.error", lambda _text, extra: errors.append(extra))
    case.bell.ring_soon(case.steps(record("assets/a.bin")), "fast")
    (error,) = errors
    assert (error["outcome"], error["reason"]) == ("dropped", "too many notifications wait already")
    assert error["notification"]["topic"] == "iotsupport/updates/assets"
    assert error["notification"]["filename"] == "a.bin"


@on_uvloop
async def test_skipped_events_are_remembered_and_warned_about_once(logged: Counter[str]) -> None:
    """A badly named config is skipped, and its repeat is neither judged nor logged again."""
    case, upload = Case(), record("configs/kitchen.json")
    assert await case.ring(upload) == ["bad_config_name"]
    assert await case.ring(upload) == ["repeated"]
    case.bell.ring_soon(case.steps(upload), "fast")
    assert logged == {"bad_config_name": 1}
    assert not case.publisher.flights


@on_uvloop
async def test_each_kind_of_malformed_event_is_logged_once_and_always_counted(logged: Counter[str]) -> None:
    """A store that repeats a broken event for ever does not fill the log."""
    case = Case()
    for _ in range(25):
        await case.ring(17)
    assert case.counted() == {("sure", "malformed"): 25}
    assert logged == {"malformed": 1}


@on_uvloop
async def test_one_kind_of_failure_is_logged_a_bounded_number_of_times(logged: Counter[str]) -> None:
    """An outage shows in the log without filling it; the counter has every one."""
    case = Case()
    for _ in range(25):
        await case.ring(record(), answer=UNCONFIRMED)
    assert logged == {"unconfirmed": bell_module.LOG_LINES_PER_KIND}
    assert case.counted() == {("sure", "unconfirmed"): 25}


@on_uvloop
async def test_a_mixed_body_gets_one_verdict_for_each_record_in_order() -> None:
    """Records that need nothing do not hold up, nor reorder, those that do."""
    case = Case()
    removed = record() | {"eventName": "s3:ObjectRemoved:Delete"}
    labels = await case.ring(removed, record(), 17, record("elsewhere/x"), record("assets/b"), answer=DELIVERED)
    assert labels == ["removed", "delivered", "malformed", "unmapped", "delivered"]


@on_uvloop
async def test_nothing_is_kept_of_a_flight_that_has_landed() -> None:
    """The ledger of flights is empty again once all have landed, however they did."""
    case = Case()
    for outcome in (DELIVERED, UNCONFIRMED, REFUSED):
        await case.ring(record(), answer=outcome)
    await asyncio.sleep(0)
    assert not case.bell._flights  # noqa: SLF001 - a leak shows nowhere else


def test_the_memory_forgets_the_oldest_beyond_its_limit() -> None:
    """Eviction follows the order in which events were settled."""
    memory = Memory(limit=3)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        memory.add(name)
    assert [name in memory for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert len(memory) == 3


def test_the_memory_forgets_what_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time an identity is new again."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    memory = Memory(seconds=60.0)
    memory.add(b"a")
    now[0] += 59.9
    assert b"a" in memory
    now[0] += 0.2
    assert b"a" not in memory
    memory.add(b"a")
    assert b"a" in memory


def test_a_full_memory_takes_at_most_20_megabytes() -> None:
    """50,000 settled identities, measured."""
    memory = Memory()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(MEMORY_LIMIT + 1000):
            memory.add(number.to_bytes(16, "big"))
        taken_bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(memory) == MEMORY_LIMIT == 50_000
    print(f"{taken_bytes / 1e6:.1f} MB")  # noqa: T201 - the figure, with `pytest -s`
    assert taken_bytes <= 20_000_000
