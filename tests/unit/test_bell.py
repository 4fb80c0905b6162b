"""The memory and the ledger: one identity for each event, one flight for each identity."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, cast

import pytest

from functions.events.names import CANARY_KEY
from functions.events.plan import Fate, Settled, Step, plan
from functions.events.routes import Routes, Upload
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status
from infra.host import bell as bell_module
from infra.host.bell import SEEN_LIMIT, Bell, SeenEvents
from infra.host.causes import RETRY_SECONDS, TRY_SECONDS
from infra.host.history import of_key
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.aside import PendingPublish
from infra.host.mqtt.link import LinkStatus
from infra.host.mqtt.publisher import HostPublisher, QueueFullError
from infra.host.pending import Patience, Pending
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
        self.flights: list[PendingPublish] = []
        self.room = 1_000_000
        self.away = False

    def withdraw_late(self) -> None:
        """As `HostPublisher.withdraw_late`: nothing here is unsent."""

    def submit(self, message: Message) -> PendingPublish:
        """As `HostPublisher.submit`."""
        if len(self.flights) >= self.room:
            raise QueueFullError
        flight = PendingPublish(message, 0.0, 0.0)
        self.flights.append(flight)
        return flight


class Case:
    """A bell on that publisher, what it counted and what it logged."""

    def __init__(self, patience_seconds: float = PATIENCE_SECONDS, *, retry_seconds: float = RETRY_SECONDS) -> None:
        self.publisher = Publisher()
        self.telemetry = PrometheusTelemetry()
        self.routes = Routes()
        # The bell uses nothing else of it.
        self.bell = Bell(
            cast("HostPublisher", self.publisher),
            self.routes,
            self.telemetry,
            patience_seconds=patience_seconds,
            retry_seconds=retry_seconds,
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
    assert (settled.label, settled.fate) == ("refused", Fate.PERMANENT)


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
    assert [(one.label, one.fate) for one in await ringing] == [("refused", Fate.RETRIABLE)] * 2
    assert await case.ring(upload, answer=DELIVERED) == ["delivered"]
    assert await case.ring(upload) == ["repeated"]


async def _for_an_hour(case: Case, upload: object, answer: Outcome | None) -> list[Settled]:
    """What the sure door says at first, after almost an hour, and after an hour of one cause."""
    said = []
    for seconds in (0.0, RETRY_SECONDS - 1.0, 1.0):
        case.bell.holdups.tick(seconds)
        ringing = asyncio.create_task(case.bell.ring(case.steps(upload), "sure"))
        await asyncio.sleep(0)
        if answer is not None:
            case.answer(answer)
        said += await ringing
    return said


@pytest.mark.parametrize(
    "outcome",
    [
        UNCONFIRMED,
        FORBIDDEN,
        Outcome(Status.REFUSED, "the broker answered 0x90", 0x90),
        Outcome(Status.REFUSED, "unspecified", 0x80),
        Outcome(Status.REFUSED, "implementation specific", 0x83),
        Outcome(Status.REFUSED, "quota", 0x97),
        Outcome(Status.REFUSED, "it closes the connection", convicted=True),
    ],
    ids=lambda outcome: f"{outcome.status} {outcome.reason}",
)
@on_uvloop
async def test_whatever_asks_for_a_retry_does_so_for_an_hour(outcome: Outcome) -> None:
    """Then it is answered 200 and counted as given up, and so is the next one of that cause, at its first try."""
    case, upload, later, other = Case(), record("assets/a"), record("assets/b"), record()
    said = await _for_an_hour(case, upload, outcome)
    assert [(one.label, one.fate) for one in said] == [
        (outcome.status, Fate.RETRIABLE),
        (outcome.status, Fate.RETRIABLE),
        ("gave_up", Fate.PERMANENT),
    ]
    assert said[-1].reason == outcome.reason
    assert await case.ring(later, answer=outcome) == ["gave_up"]
    assert await case.ring(upload) == await case.ring(later) == ["repeated"]
    assert await case.ring(other, answer=outcome) == [outcome.status], "another topic has a clock of its own"
    assert case.counted()["sure", "gave_up"] == 2


@on_uvloop
async def test_what_is_not_answered_in_time_or_finds_no_room_is_given_up_too() -> None:
    """Also what cannot even be put on its way: no answer of ours may hold a queue for ever."""
    case = Case(patience_seconds=0.01)
    assert [one.label for one in await _for_an_hour(case, record(), None)] == ["unconfirmed"] * 2 + ["gave_up"]
    case = Case()
    case.publisher.room = 0
    assert [one.label for one in await _for_an_hour(case, record(), None)] == ["unconfirmed"] * 2 + ["gave_up"]


@on_uvloop
async def test_an_event_that_breaks_us_is_an_answer_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error of our own asks for a retry, and is given up after an hour."""
    case = Case()
    monkeypatch.setattr(case.publisher, "submit", lambda _notification: 1 / 0)
    monkeypatch.setattr("functions.telemetry.logger.exception", lambda *_args, **_more: None)
    said = await _for_an_hour(case, record(), None)
    assert [(one.label, one.reason) for one in said] == [
        ("unconfirmed", "internal error: ZeroDivisionError"),
        ("unconfirmed", "internal error: ZeroDivisionError"),
        ("gave_up", "internal error: ZeroDivisionError"),
    ]


@on_uvloop
async def test_an_outage_stops_the_clock_and_nothing_is_given_up_in_it() -> None:
    """A broker that is down says nothing about any event, however long; nor does it once a cause has lasted."""
    case, upload = Case(), record()
    case.publisher.away = True
    assert [one.label for one in await _for_an_hour(case, upload, UNCONFIRMED)] == ["unconfirmed"] * 3
    case.publisher.away = False
    assert [one.label for one in await _for_an_hour(case, upload, UNCONFIRMED)][-1] == "gave_up"
    case.publisher.away = True
    assert await case.ring(record(), answer=UNCONFIRMED) == ["unconfirmed"]


@on_uvloop
async def test_an_answer_about_the_event_is_none_of_an_outage() -> None:
    """What the broker forbade a moment before it went away it has forbidden."""
    case = Case()
    assert (await _for_an_hour(case, record(), FORBIDDEN))[-1].label == "gave_up"
    case.publisher.away = True
    assert await case.ring(record(), answer=FORBIDDEN) == ["gave_up"]


@on_uvloop
async def test_sqs_and_the_fast_door_know_no_giving_up() -> None:
    """A queue of SQS goes on with what is behind, and has its own way with what comes back too often."""
    case, upload = Case(), record()
    assert (await _for_an_hour(case, upload, FORBIDDEN))[-1].label == "gave_up"
    for _ in range(2):
        ringing = asyncio.create_task(case.bell.ring(case.steps(upload), "sqs"))
        await asyncio.sleep(0)
        case.answer(FORBIDDEN)
        (settled,) = await ringing
        assert (settled.label, settled.retriable) == ("refused", True)


@on_uvloop
async def test_a_topic_that_was_allowed_again_has_a_new_hour() -> None:
    """Rights that come and go are no reason to give an upload up at once."""
    case, upload, later = Case(), record(), record()
    case.bell.holdups.tick(0.0)
    assert await case.ring(upload, answer=FORBIDDEN) == ["refused"]
    case.bell.holdups.tick(RETRY_SECONDS)
    assert await case.ring(record(), answer=DELIVERED) == ["delivered"]
    assert await case.ring(later, answer=FORBIDDEN) == ["refused"]


@on_uvloop
async def test_what_gave_up_is_announced_once_more_when_its_cause_ends(logged: Counter[str]) -> None:
    """At the next success on its topic; under its own id, and with a line in the counter of its own."""
    case, upload, later = Case(), record(), record()
    await _for_an_hour(case, upload, FORBIDDEN)
    assert await case.ring(later, answer=DELIVERED) == ["delivered"]
    case.bell.holdups.tick(1.0)
    case.answer(DELIVERED)
    await asyncio.sleep(0)
    first, again = case.publisher.flights[0].message, case.publisher.flights[-1].message
    assert again == first
    assert case.counted()["again", "delivered"] == 1
    assert await case.ring(upload) == ["repeated"]
    case.bell.holdups.tick(TRY_SECONDS)
    await asyncio.sleep(0)
    assert len(case.publisher.flights) == 5
    assert logged["gave_up"] == 1


@on_uvloop
async def test_what_gave_up_is_tried_now_and_then_and_says_nothing_while_it_fails(logged: Counter[str]) -> None:
    """A right may come back when nothing is uploaded; until then nothing new is to be said."""
    case, upload = Case(), record()
    await _for_an_hour(case, upload, FORBIDDEN)
    before = case.counted(), Counter(logged)
    for answer in (FORBIDDEN, FORBIDDEN, DELIVERED):
        assert (case.counted(), logged) == before
        case.bell.holdups.tick(TRY_SECONDS)
        case.answer(answer)
        await asyncio.sleep(0)
    assert case.counted()["again", "delivered"] == 1
    count = len(case.publisher.flights)
    case.bell.holdups.tick(TRY_SECONDS)
    assert len(case.publisher.flights) == count


@on_uvloop
async def test_the_clock_runs_while_the_host_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody needs to ring for time to pass."""
    monkeypatch.setattr("infra.host.causes.TICK_SECONDS", 0.01)
    case, upload = Case(retry_seconds=0.05), record()
    await case.bell.holdups.start()
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await case.ring(upload, answer=UNCONFIRMED) != ["gave_up"]:  # noqa: ASYNC110 - only asking tells
                await asyncio.sleep(0.01)
    finally:
        await case.bell.holdups.stop()


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
async def test_doors_that_tell_of_one_upload_with_different_fields_ring_once() -> None:
    """Ceph's topics have a sequencer each, and another door may know of no version: the id is the first one's."""
    case = Case()
    case.routes = Routes(assets_prefix="")
    for first, second in (
        [record("ceph") | {"eventSource": "ceph:s3"} for _ in range(2)],
        [record("assets/a", sequencer="01", versionId="v1"), record("assets/a", sequencer="01")],
    ):
        flights = len(case.publisher.flights)
        case.bell.ring_soon(case.steps(first), "fast")
        assert await case.ring(second, answer=UNCONFIRMED) == ["unconfirmed"]
        assert await case.ring(second, answer=DELIVERED) == ["delivered"]
        assert await case.ring(first) == await case.ring(second) == ["repeated"]
        one, again = (flight.message for flight in case.publisher.flights[flights:])
        (step,) = case.steps(first)
        assert isinstance(step.action, Upload)
        assert dict(one.user_properties)["id"] == dict(again.user_properties)["id"] == step.action.identity.hex()


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
    monkeypatch.setattr("functions.events_log.logger.error", lambda _text, extra: errors.append(extra))
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
    assert not case.bell._under_way  # noqa: SLF001 - a leak shows nowhere else


def test_the_memory_forgets_the_oldest_beyond_its_limit() -> None:
    """Eviction follows the order in which events were settled."""
    memory = SeenEvents(limit=3)
    for name in (b"a", b"b", b"c", b"a", b"d"):
        memory.add(name)
    assert [name in memory for name in (b"a", b"b", b"c", b"d")] == [True, False, True, True]
    assert len(memory) == 3


def test_the_memory_forgets_what_is_too_old(monkeypatch: pytest.MonkeyPatch) -> None:
    """After its time an identity is new again."""
    now = [1000.0]
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    memory = SeenEvents(seconds=60.0)
    memory.add(b"a")
    now[0] += 59.9
    assert b"a" in memory
    now[0] += 0.2
    assert b"a" not in memory
    memory.add(b"a")
    assert b"a" in memory


def test_a_full_memory_takes_at_most_20_megabytes() -> None:
    """50,000 settled identities, measured."""
    memory = SeenEvents()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(SEEN_LIMIT + 1000):
            memory.add(number.to_bytes(16, "big"))
        taken_bytes = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert len(memory) == SEEN_LIMIT == 50_000
    print(f"{taken_bytes / 1e6:.1f} MB")  # noqa: T201 - the figure, with `pytest -s`
    assert taken_bytes <= 20_000_000


@on_uvloop
async def test_patience_ends_for_each_who_still_waits() -> None:
    """Who waits is called back in turn, however often nobody waited in between; one that fails stops nobody else."""
    patience, lost = Patience(0.01), list[str]()
    asyncio.get_running_loop().set_exception_handler(lambda *_: lost.append("raised"))

    def answered() -> None:
        lost.append("answered")

    patience.begin(lambda: lost.append("first"))
    patience.begin(answered)
    patience.begin(lambda: 1 / 0)
    patience.begin(lambda: lost.append("last"))
    patience.end(answered)
    assert lost == []
    await _until(lambda: "last" in lost)
    patience.begin(lambda: lost.append("again"))
    await _until(lambda: "again" in lost)
    assert lost == ["first", "raised", "last", "again"]


async def _until(done: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not done():  # noqa: ASYNC110 - nothing else tells of it
            await asyncio.sleep(0.001)


class Others:
    """What other hosts have announced; they answer when the test says so."""

    def __init__(self) -> None:
        self.asked: dict[bytes, Pending[bool]] = {}

    def ask(self, identity: bytes) -> Pending[bool]:
        """As `Rung.ask`."""
        return self.asked.setdefault(identity, Pending())

    def answer(self, *, has_rung: bool) -> None:
        """To all who have asked."""
        for pending in list(self.asked.values()):
            if not pending.done():
                pending.set_result(has_rung)


def among_others() -> tuple[Case, Others]:
    """A bell that asks other hosts."""
    case, others = Case(), Others()
    case.bell._ask = others.ask  # noqa: SLF001 - it is made with it where there are others
    return case, others


@pytest.mark.parametrize("source", ["sure", "sqs"])
@on_uvloop
async def test_what_another_host_has_announced_is_a_repeat(source: str) -> None:
    """It is asked about once."""
    case, others = among_others()
    one, two = record("assets/1"), record("assets/2")
    ringing = asyncio.create_task(case.bell.ring(case.steps(one, two, one), source))
    await asyncio.sleep(0)
    assert len(others.asked) == 2
    assert not case.publisher.flights
    others.answer(has_rung=True)
    assert [settled.label for settled in await ringing] == ["repeated"] * 3
    assert [one.label for one in await case.bell.ring(case.steps(one), source)] == ["repeated"]
    assert len(others.asked) == 2


@on_uvloop
async def test_what_no_other_host_knows_of_rings() -> None:
    """And so does what cannot be told: the answer is no then."""
    case, others = among_others()
    ringing = asyncio.create_task(case.bell.ring(case.steps(record()), "sure"))
    await asyncio.sleep(0)
    others.answer(has_rung=False)
    (flight,) = case.publisher.flights
    flight.done.set_result(DELIVERED)
    assert [settled.label for settled in await ringing] == ["delivered"]


@on_uvloop
async def test_the_fast_door_asks_nobody_and_is_joined_by_who_does() -> None:
    """The event comes there while the sure door waits for an answer."""
    case, others = among_others()
    event = record()
    ringing = asyncio.create_task(case.bell.ring(case.steps(event), "sure"))
    await asyncio.sleep(0)
    case.bell.ring_soon(case.steps(event), "fast")
    assert len(others.asked) == 1
    (flight,) = case.publisher.flights
    others.answer(has_rung=False)
    flight.done.set_result(DELIVERED)
    assert [settled.label for settled in await ringing] == ["repeated"]
    assert len(case.publisher.flights) == 1


@on_uvloop
async def test_what_is_known_here_is_asked_nowhere() -> None:
    """On its way, announced, refused, or nothing to ring for."""
    case, others = among_others()
    event = record()
    case.bell.ring_soon(case.steps(event), "fast")
    ringing = asyncio.create_task(case.bell.ring(case.steps(event, record("nowhere/x")), "sure"))
    await asyncio.sleep(0)
    case.publisher.flights[0].done.set_result(DELIVERED)
    assert [settled.label for settled in await ringing] == ["repeated", "unmapped"]
    assert not others.asked


@on_uvloop
async def test_the_doctors_canary_is_remembered_and_counted_nowhere() -> None:
    """At each door it is an event that the host has heard of, and no upload."""
    case = Case()
    steps = case.steps(record(CANARY_KEY, eTag="11"))
    case.bell.ring_soon(steps, "fast")
    await case.bell.ring(steps, "sure")
    assert case.publisher.flights == []
    assert [(one.source, one.etag) for one in of_key(case.bell.history.events(), CANARY_KEY)[0]] == [
        ("fast", "11"),
        ("sure", "11"),
    ]
    counted = case.telemetry.exposition(((), {})).decode()
    assert [line for line in counted.splitlines() if line.startswith("events_total")] == []
