"""What holds up a store's queue, for how long, and what is given up because of it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.events.routes import Detection, Unread, Upload
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status
from infra.host import causes as module
from infra.host.causes import FORBIDDEN, LAPSE_SECONDS, RETRY_SECONDS, TRY_SECONDS, Cause, Causes, cause_of

TOPIC, OTHER_TOPIC = "iotsupport/updates/configs", "iotsupport/updates/assets"
RIGHT = Cause(TOPIC, FORBIDDEN)
DENIED = Cause("store events", "AccessDenied")
QUEUE_PAUSE_SECONDS = 3.0  # MinIO's, between two tries of the first event


def event(number: int) -> bytes:
    """An event's identity."""
    return number.to_bytes(16, "big")


def last(causes: Causes[str], identity: bytes, cause: Cause, seconds: float) -> bool:
    """Have one event tried by its queue for so long; whether it was given up in the end."""
    given_up = causes.failed(identity, cause)
    passed = 0.0
    while passed < seconds:
        causes.pass_time(QUEUE_PAUSE_SECONDS)
        passed += QUEUE_PAUSE_SECONDS
        given_up = causes.failed(identity, cause)
    return given_up


def gave_up(cause: Cause = DENIED, *events: int) -> Causes[str]:
    """Causes of which one has lasted, with these events given up."""
    causes: Causes[str] = Causes()
    assert last(causes, event(1), cause, RETRY_SECONDS)
    for number in events or (1,):
        assert causes.failed(event(number), cause)
        causes.give_up(event(number), f"event {number}")
    return causes


def test_a_cause_has_one_clock_for_all_its_events() -> None:
    """Whichever event meets it when its time is over is given up, at its first try too."""
    causes: Causes[str] = Causes()
    assert not last(causes, event(1), DENIED, RETRY_SECONDS - QUEUE_PAUSE_SECONDS)
    causes.pass_time(QUEUE_PAUSE_SECONDS)
    assert causes.failed(event(2), DENIED)
    assert not causes.failed(event(3), DENIED._replace(reason="InvalidRequest"))
    assert not causes.failed(event(4), DENIED._replace(place="store other"))


def test_time_that_is_not_told_is_no_time() -> None:
    """In an outage no time is told, and so no cause grows older."""
    causes: Causes[str] = Causes()
    assert not any(causes.failed(event(1), DENIED) for _ in range(10_000))


def test_the_success_of_an_event_ends_what_it_failed_for() -> None:
    """The cause has a new clock afterwards, and what was given up for it is due."""
    causes = gave_up(DENIED, 1, 2)
    assert causes.succeeded(event(1), "camera x") == [DENIED]
    assert causes.to_try() == ["event 2"]
    assert not causes.failed(event(3), DENIED)


def test_the_success_of_others_proves_nothing_about_an_object() -> None:
    """One encrypted document among good ones, which pass through another door, is given up all the same."""
    causes: Causes[str] = Causes()
    for number in range(int(RETRY_SECONDS / QUEUE_PAUSE_SECONDS)):
        assert not causes.failed(event(0), DENIED)
        assert causes.succeeded(event(1 + number), "camera x") == []
        causes.pass_time(QUEUE_PAUSE_SECONDS)
    assert causes.failed(event(0), DENIED)


def test_any_success_on_a_topic_shows_that_its_right_is_back() -> None:
    """The broker's rules go by topics: what it forbade there it forbids no more, on that topic alone."""
    causes = gave_up(RIGHT)
    assert causes.succeeded(event(7), OTHER_TOPIC) == []
    assert causes.failed(event(8), RIGHT)
    assert causes.succeeded(event(7), TOPIC) == [RIGHT]
    assert causes.to_try() == ["event 1"]
    assert not causes.failed(event(9), RIGHT)


def test_a_cause_that_no_queue_meets_any_more_has_a_new_clock_later() -> None:
    """An event that was removed a week ago is no reason to give another one up at its first try."""
    causes: Causes[str] = Causes()
    assert not causes.failed(event(1), DENIED)
    causes.pass_time(RETRY_SECONDS + LAPSE_SECONDS)
    assert not causes.failed(event(2), DENIED)
    assert last(causes, event(2), DENIED, RETRY_SECONDS)


def test_a_cause_for_which_something_is_given_up_keeps_its_verdict() -> None:
    """However seldom bad events come, they stall the queue once."""
    causes = gave_up()
    for number in range(2, 10):
        causes.pass_time(100 * RETRY_SECONDS)
        assert causes.failed(event(number), DENIED)


def test_what_was_given_up_is_tried_now_and_then_one_of_each_cause_in_turn() -> None:
    """Nothing else may ever show that a cause has ended: a right may come back when nothing is uploaded."""
    causes = gave_up(DENIED, 1, 2, 3)
    last(causes, event(4), RIGHT, RETRY_SECONDS)
    causes.give_up(event(4), "event 4")
    tried = []
    for _ in range(4):
        tried.append(causes.to_try())
        assert causes.to_try() == []
        causes.pass_time(TRY_SECONDS)
    assert [len(one) for one in tried] == [2, 2, 2, 2]
    assert {name for one in tried[:3] for name in one} == {"event 1", "event 2", "event 3", "event 4"}


def test_what_is_due_goes_out_bit_by_bit_and_each_again_until_it_succeeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker that is well again has others to serve; what fails again is listed under its cause again."""
    monkeypatch.setattr(module, "MAX_AT_ONCE", 2)
    causes = gave_up(DENIED, 1, 2, 3, 4)
    causes.to_try()  # that of a cause that lasts
    causes.succeeded(event(1), "camera x")
    assert causes.to_try() == ["event 2", "event 3"]
    causes.succeeded(event(2), "camera x")
    causes.failed(event(3), DENIED)
    assert causes.to_try() == ["event 4"]
    assert len(causes) == 2
    causes.succeeded(event(4), "camera x")
    assert causes.to_try() == []
    causes.pass_time(TRY_SECONDS)
    assert causes.to_try() == ["event 3"]


def test_what_nothing_is_to_be_done_about_is_forgotten_and_with_the_last_one_its_cause() -> None:
    """Whoever removes the bad objects has ended the cause."""
    causes = gave_up(DENIED, 1, 2)
    causes.forget(event(1))
    assert causes.failed(event(3), DENIED)
    causes.forget(event(2))
    causes.forget(event(3))
    assert len(causes) == 0
    assert not causes.failed(event(4), DENIED)


def test_causes_and_events_are_bounded_in_number(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest go first."""
    monkeypatch.setattr(module, "MAX_EVENTS", 5)
    monkeypatch.setattr(module, "MAX_CAUSES", 3)
    causes = gave_up(DENIED, *range(1, 20))
    assert len(causes) == 5
    for number in range(20, 40):
        causes.failed(event(number), Cause(f"topic {number}", FORBIDDEN))
    assert len(causes._clocks) == 3  # noqa: SLF001 - nothing else shows it
    assert len(causes._events) == 5  # noqa: SLF001 - as above


@given(st.lists(st.sampled_from(["good", "bad", "worse"]), min_size=1, max_size=60), st.integers(1, 4))
def test_bad_events_stall_a_queue_once_for_each_cause(waiting: list[str], bad_events_pass: int) -> None:
    """However many there are, and in whatever order among good ones, which come through a second door as well."""
    reasons = {"bad": DENIED, "worse": Cause("store events", "InvalidRequest")}
    causes: Causes[str] = Causes(retry_seconds=60.0)
    good: Iterator[int] = itertools.count(1_000)
    stalled_seconds = 0.0
    for number, kind in enumerate(waiting):
        while kind != "good" and not causes.failed(event(number), reasons[kind]):
            for _ in range(bad_events_pass):
                causes.succeeded(event(next(good)), "camera x")
            causes.pass_time(QUEUE_PAUSE_SECONDS)
            stalled_seconds += QUEUE_PAUSE_SECONDS
        if kind == "good":
            causes.succeeded(event(number), "camera x")
    assert stalled_seconds == 60.0 * len({*waiting} - {"good"})


def _upload() -> Upload:
    return Upload("f", event(1), Message(TOPIC, b"{}"))


def _detection(camera_id: str = "front", event_id: str = "e1") -> Detection:
    return Detection(f"events/{camera_id}/{event_id}.json", "", camera_id, event_id, event(1))


@pytest.mark.parametrize(
    ("outcome", "reason"),
    [
        (Outcome(Status.REFUSED, "the broker answered 0x87", 0x87), FORBIDDEN),
        (Outcome(Status.REFUSED, "the broker answered 0x90", 0x90), FORBIDDEN),
        (Outcome(Status.REFUSED, "the broker answered 0x83", 0x83), "refused 0x83"),
        (Outcome(Status.REFUSED, "it closes the connection", convicted=True), "refused without a word"),
        (Outcome(Status.UNCONFIRMED, "not acknowledged in time"), "unconfirmed"),
        (Outcome(Status.UNCONFIRMED, "another text", 0x88), "unconfirmed"),
    ],
)
def test_a_brokers_cause_is_topic_and_reason(outcome: Outcome, reason: str) -> None:
    """Of one camera too, whose topic is its own."""
    assert cause_of(_upload(), outcome) == Cause(TOPIC, reason)
    assert cause_of(_detection("back"), outcome) == Cause("camera back", reason)


def test_a_stores_cause_is_prefix_and_reason_for_all_cameras() -> None:
    """What the store says of an object, which names it, is no part of it."""
    one, other = (
        cause_of(
            _detection(camera, camera), Unread("store_failed", f"AccessDenied: {camera}", "AccessDenied", answered=True)
        )
        for camera in ("front", "back")
    )
    assert one == other == Cause("store events", "AccessDenied")


def test_time_is_of_use_only_while_it_can_change_something() -> None:
    """Not before a first failure, nor when its cause has lapsed; but for as long as something is to be tried again."""
    causes: Causes[str] = Causes()
    assert causes.is_idle()
    causes.failed(event(1), DENIED)
    assert not causes.is_idle()
    causes.pass_time(max(LAPSE_SECONDS, RETRY_SECONDS) + 1.0)
    assert causes.is_idle(), "its next failure has a new clock, whatever time it is"
    assert not causes.failed(event(1), DENIED)
    causes = gave_up(DENIED, 1, 2)
    causes.pass_time(10 * RETRY_SECONDS)
    assert not causes.is_idle()
    causes.succeeded(event(1), TOPIC)
    assert not causes.is_idle(), "the other one is due"
    causes.succeeded(event(2), TOPIC)
    assert causes.is_idle()
