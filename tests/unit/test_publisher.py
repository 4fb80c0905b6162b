"""What the publisher decides without a socket."""

from __future__ import annotations

import time

import pytest

from functions.mqtt.broker import BrokerConfig, new_client_id
from functions.mqtt.message import Message, newest_of_each
from functions.mqtt.outcome import Outcome, Status, acknowledged
from functions.mqtt.publisher import InlinePublisher
from functions.telemetry import EmfTelemetry

NOWHERE = BrokerConfig("broker.invalid", 1883)


def _message(name: str, *, at: str = "", number: int = 0) -> Message:
    return Message("t", name.encode(), (("id", f"{number}"), ("time", at)))


@pytest.mark.parametrize(
    ("reason_code", "qos", "status", "retriable"),
    [
        (0x00, 1, Status.DELIVERED, False),
        (0x00, 2, Status.DELIVERED, False),
        (0x10, 1, Status.NO_SUBSCRIBERS, False),
        (0x00, 0, Status.SENT, False),
        (0x80, 1, Status.REFUSED, True),
        (0x83, 1, Status.REFUSED, True),
        (0x87, 1, Status.REFUSED, False),
        (0x87, 2, Status.REFUSED, False),
        (0x90, 1, Status.REFUSED, False),
        (0x91, 2, Status.REFUSED, True),
        (0x92, 2, Status.REFUSED, True),
        (0x97, 1, Status.REFUSED, True),
        (0x99, 1, Status.REFUSED, False),
    ],
)
def test_an_acknowledgement_says_what_became_of_a_message(
    reason_code: int, qos: int, status: Status, *, retriable: bool
) -> None:
    """Below 0x80 is success, QoS 0 is sent and never delivered, and only passing refusals are worth another try."""
    outcome = acknowledged(reason_code, qos)
    assert (outcome.status, outcome.retriable, outcome.success) == (status, retriable, reason_code < 0x80)
    assert outcome.reason_code == (None if qos == 0 else reason_code)
    assert bool(outcome.reason) is not outcome.success


@pytest.mark.parametrize("reason_code", [0x80, 0x83, 0x87, 0x90, 0x91, 0x92, 0x97])
def test_all_ways_of_forbidding_are_one(reason_code: int) -> None:
    """Not authorised, ejabberd's word for it, a refusal that may never pass, and a close without a word."""
    assert acknowledged(reason_code, 1).forbidden
    assert Outcome(Status.REFUSED, "closed", convicted=True).forbidden


@pytest.mark.parametrize("outcome", [acknowledged(0, 1), acknowledged(0x99, 1), Outcome(Status.UNCONFIRMED, "", 0x87)])
def test_what_succeeds_is_wrong_in_itself_or_has_no_answer_is_not_forbidden(outcome: Outcome) -> None:
    """No change at the broker would help a bad message; and a lost connection says nothing of the message."""
    assert not outcome.forbidden


def test_unconfirmed_is_a_failure_that_another_try_may_cure() -> None:
    """Nobody knows whether it arrived, so it counts as failed and is tried again."""
    outcome = Outcome(Status.UNCONFIRMED)
    assert not outcome.success
    assert outcome.retriable


def test_identical_messages_fold_into_the_newest_event_in_order_of_first_appearance() -> None:
    """Whatever the order of arrival, the newest event's properties go out; of equal times, the later arrival's."""
    old, new = _message("a", at="2026-01-01", number=1), _message("a", at="2026-01-02", number=2)
    tied, other = _message("a", at="2026-01-02", number=3), _message("b")
    assert list(newest_of_each([old, other, new]).values()) == [new, other]
    assert list(newest_of_each([new, other, old]).values()) == [new, other]
    assert list(newest_of_each([new, tied]).values()) == [tied]


def test_no_two_client_ids_are_alike() -> None:
    """Two clients with one id would kick each other out for ever."""
    ids = {new_client_id("bucketbell") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(len(one) == len("bucketbell-") + 12 for one in ids)


def test_without_a_broker_everything_is_a_silent_no_op(capsys: pytest.CaptureFixture[str]) -> None:
    """No outcome, no error, no metric but `mqtt_enabled` 0."""
    telemetry = EmfTelemetry()
    publisher = InlinePublisher(None, telemetry)
    publisher.warm_up()
    assert publisher.publish([_message("a")], time.monotonic() + 1) == []
    assert not publisher.enabled
    publisher.close()
    publisher.close()
    telemetry.flush()
    line = capsys.readouterr().out
    assert '"mqtt_enabled": 0' in line
    assert line.count('"Name"') == 1


def test_nothing_to_publish_connects_nowhere() -> None:
    """An empty batch does not even look the broker up."""
    publisher = InlinePublisher(NOWHERE, EmfTelemetry())
    assert publisher.publish([], time.monotonic() + 1) == []


def test_a_closed_publisher_says_so_and_stays_closed() -> None:
    """After `close` nothing connects again; what is still handed in is unconfirmed, so that its source keeps it."""
    publisher = InlinePublisher(NOWHERE, EmfTelemetry())
    publisher.close()
    publisher.close()
    publisher.warm_up()
    assert publisher.publish([_message("a")], time.monotonic() + 1) == [
        Outcome(Status.UNCONFIRMED, "shut down"),
    ]
