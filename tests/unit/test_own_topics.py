"""A config's second message: out once for each event, and the event never depends on it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import cast

import pytest

from functions.events.plan import Step, plan
from functions.events.routes import Routes, Upload
from functions.mqtt.outcome import Outcome, Status
from functions.own_topics import LIMIT, MAX_REASONS, OwnTopics
from functions.telemetry import SERVICE
from infra.host.bell import Bell
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from tests.hosts import on_uvloop, record
from tests.timing import PATIENCE_SECONDS
from tests.unit.test_bell import Publisher

MAC = "a1-b2-c3-d4-e5-f6"
KEY = f"configs/{MAC.upper()}.json"
BROADCAST, OWN = "iotsupport/updates/configs", f"iotsupport/devices/{MAC}/updates"
DELIVERED = Outcome(Status.DELIVERED)
LOST = Outcome(Status.UNCONFIRMED, "connection lost")


class _Messages(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if "own topic" in record.getMessage():
            self.found.append(str(record.__dict__["notification"]))


@pytest.fixture
def warnings() -> Iterator[list[str]]:
    """What was said of second messages."""
    handler, plain = _Messages(), logging.getLogger(SERVICE)
    plain.addHandler(handler)
    yield handler.found
    plain.removeHandler(handler)


class Case:
    """A bell with DEVICE_TOPICS=on whose broker answers as the test says."""

    def __init__(self, room: int = 1000) -> None:
        self.publisher = Publisher()
        self.publisher.room = room
        self.telemetry = PrometheusTelemetry()
        self.routes = Routes(device_topics="on")
        self.record = record(KEY)
        publisher = cast("HostPublisher", self.publisher)
        self.bell = Bell(publisher, self.routes, self.telemetry, patience_seconds=PATIENCE_SECONDS)

    def steps(self) -> tuple[Step, ...]:
        """One upload."""
        return plan({"Records": [self.record]}, self.routes)

    async def ring(self, broadcast: Outcome, own: Outcome | None = None) -> tuple[list[str], list[str]]:
        """The topics that go out, and the event's outcome."""
        before = len(self.publisher.flights)
        ringing = asyncio.create_task(self.bell.ring(self.steps(), "sure"))
        await asyncio.sleep(0)
        flights = self.publisher.flights[before:]
        for flight in flights:
            outcome = broadcast if flight.message.topic == BROADCAST else own
            if outcome is not None:
                flight.done.set_result(outcome)
        return [one.message.topic for one in flights], [one.label for one in await ringing]


@on_uvloop
async def test_the_event_is_settled_by_the_broadcast(warnings: list[str]) -> None:
    """Also while the second message waits, and where it fails: that is said once, and is no outcome of an event."""
    case = Case()
    assert await case.ring(DELIVERED) == ([BROADCAST, OWN], ["delivered"])
    case.publisher.flights[1].done.set_result(LOST)
    assert len(warnings) == 1
    assert (OWN in warnings[0], "connection lost" in warnings[0]) == (True, True)
    assert await case.ring(DELIVERED) == ([], ["repeated"])


@on_uvloop
async def test_a_confirmed_second_message_is_not_published_again_on_a_retry() -> None:
    """One that is on its way, or lost, follows by the same rule."""
    case = Case()
    assert await case.ring(LOST, LOST) == ([BROADCAST, OWN], ["unconfirmed"])
    assert await case.ring(LOST, DELIVERED) == ([BROADCAST, OWN], ["unconfirmed"])
    assert await case.ring(LOST) == ([BROADCAST], ["unconfirmed"])
    assert await case.ring(DELIVERED) == ([BROADCAST], ["delivered"])


@on_uvloop
async def test_one_that_is_on_its_way_is_not_sent_beside_itself() -> None:
    """The retry of the event comes while the broker has not answered the second message."""
    case = Case()
    assert await case.ring(LOST) == ([BROADCAST, OWN], ["unconfirmed"])
    assert await case.ring(LOST) == ([BROADCAST], ["unconfirmed"])


@on_uvloop
async def test_no_room_for_the_second_message_is_no_failure_of_the_event(warnings: list[str]) -> None:
    """The queue is full in between."""
    case = Case(room=1)
    assert await case.ring(DELIVERED) == ([BROADCAST], ["delivered"])
    assert len(warnings) == 1


@on_uvloop
async def test_one_device_is_told_by_itself_and_nothing_is_remembered() -> None:
    """The event rings for all others when it comes."""
    case = Case()
    (step,) = case.steps()
    assert isinstance(step.action, Upload)
    ringing = asyncio.create_task(case.bell.ring_device(step, case.routes.to_device(step.action, MAC)))
    await asyncio.sleep(0)
    (flight,) = case.publisher.flights
    assert flight.message.topic == OWN
    flight.done.set_result(DELIVERED)
    assert (await ringing).label == "delivered"
    assert await case.ring(DELIVERED, DELIVERED) == ([BROADCAST, OWN], ["delivered"])


def test_memory_is_bounded(warnings: list[str]) -> None:
    """By the number of events, and of reasons; the oldest is forgotten first, and each reason is said once."""
    own = OwnTopics()
    uploads = []
    for number in range(LIMIT + 1):
        (step,) = plan({"Records": [record(KEY, sequencer=f"{number:016X}")]}, Routes(device_topics="on"))
        assert isinstance(step.action, Upload)
        uploads.append(step.action)
        assert own.take(step.action) is step.action.own
        own.landed(step.action, DELIVERED)
    assert own.take(uploads[0]) is not None
    assert own.take(uploads[1]) is None
    for number in range(3 * MAX_REASONS):
        own.landed(uploads[0], Outcome(Status.UNCONFIRMED, f"reason {number // 3}"))
    assert len(warnings) == MAX_REASONS
