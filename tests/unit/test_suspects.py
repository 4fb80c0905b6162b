"""Which message a broker closes the connection over, and when a broker's "nobody listens" is believed."""

from __future__ import annotations

from dataclasses import replace

from functions.mqtt.audience import EARLY_SECONDS, MAX_TOPICS, Audience
from functions.mqtt.message import Message
from functions.mqtt.outcome import not_sent
from functions.mqtt.suspects import (
    CLOSES,
    MAX_SUSPECTS,
    PACKET_TOO_LARGE,
    PAUSE_SECONDS,
    RETRY_SECONDS,
    TOPIC_CONVICTIONS,
    Suspects,
    likeliest_last,
)


def _message(name: str = "bad", topic: str = "forbidden") -> Message:
    return Message(topic, name.encode())


BAD, GOOD = _message(), _message("good", "allowed")


def _convicted(*messages: Message) -> Suspects:
    """Each of them closed the connection until it was convicted, and another message was acknowledged in between."""
    suspects = Suspects()
    for message in messages:
        for _ in range(CLOSES):
            suspects.lost([message], 0.1, 0.0)
            suspects.answered(GOOD, None)
    return suspects


def test_a_message_is_convicted_when_another_is_acknowledged_between_its_closes() -> None:
    """Not before the third time; then it is not sent until its time is over."""
    suspects = Suspects()
    assert suspects.lost([BAD], 0.1, 0.0)[0] is None
    suspects.answered(GOOD, None)
    assert suspects.lost([BAD], 0.1, 1.0)[0] is None
    assert suspects.conviction(BAD, 1.0) is None
    assert suspects.lost([BAD], 0.1, 2.0)[0] is not None
    assert suspects.conviction(BAD, 2.0 + RETRY_SECONDS - 0.1) is not None
    assert suspects.conviction(BAD, 2.0 + RETRY_SECONDS) is None
    assert suspects.suspected(BAD), "it travels alone when it is tried again"
    assert suspects.conviction(GOOD, 2.0) is None
    assert not suspects.suspected(GOOD)


def test_a_message_that_the_broker_names_too_large_is_convicted_at_once_and_its_topic_is_not() -> None:
    """Only what was on its way can be too large; with several on their way, it is not known which."""
    suspects = Suspects()
    assert suspects.lost([BAD, GOOD], 0.1, 0.0, PACKET_TOO_LARGE) == (None, True)
    conviction, _ = suspects.lost([BAD], 0.1, 0.0, PACKET_TOO_LARGE)
    assert conviction is not None
    assert not_sent(conviction).reason_code == PACKET_TOO_LARGE
    assert not not_sent(conviction).is_transient, "a store would bring it for ever"
    assert suspects.conviction(BAD, 1.0) == conviction
    assert not suspects.suspected(_message("small"))


def test_a_connection_that_lives_longer_without_it_is_contrast_too() -> None:
    """Where nothing else is to be sent."""
    suspects = Suspects()
    for _ in range(CLOSES - 1):
        suspects.lost([BAD], 0.5, 0.0)
    suspects.sending(BAD, 0.6)
    assert suspects.lost([BAD], 0.7, 0.0)[0] is not None


def test_without_contrast_nothing_is_convicted() -> None:
    """A link that dies after half a second, whatever is on it, says nothing about the message."""
    suspects = Suspects()
    for _ in range(100):
        suspects.sending(BAD, 0.4)
        assert suspects.lost([BAD], 0.5, 0.0)[0] is None
    assert suspects.conviction(BAD, 0.0) is None


def test_many_on_their_way_are_no_proof_and_travel_alone_the_likeliest_last() -> None:
    """Brokers answer in order, so the first without an answer comes last."""
    suspects = Suspects()
    others = [_message(str(number)) for number in range(5)]
    for _ in range(10):
        assert suspects.lost([BAD, *others], 0.1, 0.0) == (None, True)
        suspects.answered(GOOD, None)
    assert not any(suspects.suspected(one) for one in (BAD, *others))
    assert likeliest_last([BAD, *others]) == [*others, BAD]


def test_an_acknowledgement_clears() -> None:
    """Two closes and an acknowledgement: the next close is the first."""
    suspects = Suspects()
    suspects.lost([BAD], 0.1, 0.0)
    suspects.answered(GOOD, None)
    suspects.lost([BAD], 0.1, 0.0)
    suspects.answered(BAD, None)
    assert suspects.lost([BAD], 0.1, 0.0)[0] is None


def test_a_refusal_followed_by_the_end_convicts_at_once_and_spares_what_was_on_its_way() -> None:
    """HiveMQ answers 0x87 and then disconnects with 0x87."""
    suspects = Suspects()
    suspects.answered(BAD, 0x87)
    assert suspects.lost([GOOD], 0.1, 0.0) == (None, False)
    conviction = suspects.conviction(BAD, 0.0)
    assert conviction is not None
    assert conviction.reason_code == 0x87
    assert not suspects.suspected(GOOD)


def test_a_refusal_that_another_answer_follows_is_no_close() -> None:
    """Mosquitto refuses and stays."""
    suspects = Suspects()
    suspects.answered(BAD, 0x87)
    suspects.answered(GOOD, None)
    suspects.lost([], 0.1, 0.0)
    assert suspects.conviction(BAD, 0.0) is None


def test_after_a_conviction_another_message_of_the_topic_needs_one_close() -> None:
    """It travels alone from the start, on a connection that is old enough to be lost."""
    suspects, other = _convicted(BAD), _message("other")
    assert suspects.conviction(other, 0.0) is None
    assert suspects.suspected(other)
    assert suspects.pause_seconds(other) == PAUSE_SECONDS
    assert suspects.lost([other], 1.0, 0.0)[0] is not None


def test_after_some_convictions_it_is_the_topic() -> None:
    """Nothing on it is tried until the time is over, and then one message speaks for all."""
    suspects, other = _convicted(*(_message(str(n)) for n in range(TOPIC_CONVICTIONS))), _message("other")
    assert suspects.conviction(other, 0.0) is not None
    assert suspects.conviction(other, RETRY_SECONDS) is None
    assert suspects.lost([other], 1.0, RETRY_SECONDS)[0] is not None
    assert suspects.conviction(_message("0"), RETRY_SECONDS) is not None
    suspects.answered(other, None)
    assert suspects.conviction(_message("another"), RETRY_SECONDS) is None


def test_a_message_that_is_bad_in_itself_does_not_take_its_topic_along() -> None:
    """One larger than the broker says that it takes, for instance: the others are acknowledged, it stays convicted."""
    suspects = _convicted(BAD)
    suspects.answered(_message("other"), None)
    assert not suspects.suspected(_message("third"))
    assert suspects.conviction(BAD, 0.0) is not None


def test_each_close_makes_the_next_pause_longer() -> None:
    """So that a connection without the suspect can live longer; but not for ever."""
    suspects = Suspects()
    pauses = [suspects.pause_seconds(BAD)]
    for _ in range(10):
        suspects.lost([BAD], 0.1, 0.0)
        pauses.append(suspects.pause_seconds(BAD))
    assert pauses[:4] == [0.0, 1.0, 2.0, 3.0]
    assert max(pauses) == CLOSES * PAUSE_SECONDS


def test_what_is_remembered_is_bounded() -> None:
    """A million different suspects cost no more than `MAX_SUSPECTS`."""
    suspects = Suspects()
    for number in range(3 * MAX_SUSPECTS):
        suspects.answered(message := _message("x", str(number)), 0x87)
        suspects.lost([], 0.1, 0.0)
        assert suspects.conviction(message, 0.0) is not None
    assert sum(suspects.conviction(_message("x", str(n)), 0.0) is not None for n in range(3 * MAX_SUSPECTS)) <= (
        MAX_SUSPECTS
    )


def test_nobody_listens_is_doubted_moments_after_a_connect_where_somebody_did() -> None:
    """Not before the first subscriber, not elsewhere, not later, and not when somebody does listen."""
    audience, a, b = Audience(), _message(topic="a"), _message(topic="b")
    audience.connected(100.0)
    assert not audience.doubts(a, 0x10, 100.0)
    assert not audience.doubts(a, 0x00, 100.0)
    assert audience.doubts(a, 0x10, 100.0 + EARLY_SECONDS - 0.1)
    assert not audience.doubts(a, 0x10, 100.0 + EARLY_SECONDS)
    assert not audience.doubts(b, 0x10, 100.0)
    assert not audience.doubts(a, 0x10, 10.0), "the wall clock was set back"
    retained = replace(a, retain=True)
    assert not audience.doubts(retained, 0x10, 100.0), "the broker keeps it for whoever subscribes"
    audience.connected(200.0)
    assert audience.doubts(a, 0x10, 200.0)
    for number in range(2 * MAX_TOPICS):
        audience.doubts(_message(topic=str(number)), 0x00, 200.0)
    assert not audience.doubts(a, 0x10, 200.0), "bounded"


def test_a_host_that_listens_for_a_moment_is_no_subscriber_of_a_cameras_events() -> None:
    """It does so after each connect: what the broker says then is no reason to wait for subscribers later."""
    event = replace(_message(topic="home/camera/front/event"), label="camera/+/event")
    nothing = replace(event, label="", retain=True, payload=b"")
    audience = Audience()
    audience.connected(100.0)
    for early in (event, nothing):
        assert not audience.doubts(early, 0x00, 101.0)
    assert not audience.doubts(event, 0x10, 102.0)
    assert not audience.doubts(event, 0x00, 100.0 + EARLY_SECONDS)
    audience.connected(200.0)
    assert audience.doubts(event, 0x10, 201.0), "somebody was there for longer"
