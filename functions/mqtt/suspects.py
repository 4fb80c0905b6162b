"""Pure: which message a broker closes the connection over. Some forbid without another word (MQTT 3.1.1 §3.3.5).

A connection may end for any reason, so a message is convicted by contrast only: connections close `CLOSES` times while
it alone was on its way, and between them one without it lives longer, or has another message acknowledged. A convicted
message is tried again after `RETRY_SECONDS`, since a person may have given the right back.

Where the broker itself says in DISCONNECT that a packet is too large, and one message was on its way, nothing is left
to find out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from functions.mqtt.message import Message

CLOSES = 3
RETRY_SECONDS = 30.0
PAUSE_SECONDS = 1.0
ALONE_SECONDS = 1.0  # a broker that says nothing at all about a suspect holds up the others for so long
TOPIC_CONVICTIONS = 3  # different messages of one topic, and none acknowledged: it is the topic
MAX_SUSPECTS = 500
PACKET_TOO_LARGE = 0x95  # MQTT 5 §2.4

_Key = tuple[str, bytes]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Conviction:
    """Why a message is not sent; `reason_code` is the broker's, where it answered before it closed."""

    reason_code: int | None
    until: float


@dataclass(slots=True)
class _Suspicion:
    closes: int = 0
    shortest_life_seconds: float = math.inf
    """Of the connections that closed with it."""
    contrast: bool = False
    conviction: Conviction | None = None


@dataclass(slots=True)
class _Topic:
    messages: set[_Key] = field(default_factory=set)
    conviction: Conviction | None = None


class Suspects:
    """What is known of one broker. `now` is the caller's clock, always the same one."""

    def __init__(self) -> None:
        """Nothing is suspected."""
        self._messages: dict[_Key, _Suspicion] = {}
        self._topics: dict[str, _Topic] = {}
        """Where messages were convicted, and none has been acknowledged since."""
        self._refused: tuple[Message, int] | None = None
        """The last answer of all, where it was a refusal."""

    def conviction(self, message: Message, now: float) -> Conviction | None:
        """Return why `message` is not to be sent now."""
        if not self._messages:
            return None
        suspicion = self._messages.get(_key(message))
        topic = self._topics.get(message.topic)
        of_topic = topic.conviction if topic and len(topic.messages) >= TOPIC_CONVICTIONS else None
        for conviction in (suspicion.conviction if suspicion else None, of_topic):
            if conviction is not None and now < conviction.until:
                return conviction
        return None

    def suspected(self, message: Message) -> bool:
        """Return whether `message` has to travel alone."""
        return bool(self._messages) and (message.topic in self._topics or _key(message) in self._messages)

    def pause_seconds(self, message: Message) -> float:
        """Return how old a connection has to be before `message` goes out over it.

        Longer each time, so that a connection without it has the time to live longer; and losing a connection of that
        age costs the others nothing, since the next one may be opened at once.
        """
        suspicion = self._messages.get(_key(message))
        if suspicion is None:
            return PAUSE_SECONDS if message.topic in self._topics else 0.0
        return PAUSE_SECONDS * min(suspicion.closes, CLOSES)

    def sending(self, message: Message, age_seconds: float) -> None:
        """`message` goes out over a connection that has lived for `age_seconds` without it."""
        suspicion = self._messages.get(_key(message))
        if suspicion is not None and age_seconds > suspicion.shortest_life_seconds:
            suspicion.contrast = True

    def answered(self, message: Message, refusal: int | None) -> None:
        """The broker has answered `message`: with a `refusal`, where the reason code is one."""
        self._refused = None if refusal is None else (message, refusal)
        if not self._messages:
            return
        self._messages.pop(_key(message), None)
        if refusal is None:
            self._topics.pop(message.topic, None)
        for suspicion in self._messages.values():
            suspicion.contrast = True

    def lost(
        self, in_flight: list[Message], age_seconds: float, now: float, reason_code: int | None = None
    ) -> tuple[Conviction | None, bool]:
        """The connection is over, at this age, with these on their way; `reason_code` is DISCONNECT's.

        Return the conviction of the only one, where it is due, and whether they have to travel alone from now on.
        """
        refused, self._refused = self._refused, None
        if refused is not None:  # a refusal, and then the end: that was all the broker had to say
            self._convict(*refused, now)
            return None, False
        if len(in_flight) == 1 and reason_code == PACKET_TOO_LARGE:  # that is no fault of its topic
            conviction = self._suspicion(in_flight[0]).conviction = Conviction(reason_code, now + RETRY_SECONDS)
            return conviction, True
        if len(in_flight) == 1:
            return self._closed(in_flight[0], age_seconds, now), True
        return None, bool(in_flight)

    def _closed(self, message: Message, age_seconds: float, now: float) -> Conviction | None:
        suspicion = self._suspicion(message)
        suspicion.closes += 1
        suspicion.shortest_life_seconds = min(suspicion.shortest_life_seconds, age_seconds)
        by_contrast = suspicion.closes >= CLOSES and suspicion.contrast
        if by_contrast or suspicion.conviction is not None or message.topic in self._topics:
            return self._convict(message, None, now)
        return None

    def _convict(self, message: Message, reason_code: int | None, now: float) -> Conviction:
        conviction = self._suspicion(message).conviction = Conviction(reason_code, now + RETRY_SECONDS)
        if len(self._topics) >= MAX_SUSPECTS:
            del self._topics[next(iter(self._topics))]
        topic = self._topics.setdefault(message.topic, _Topic())
        topic.conviction = conviction
        if len(topic.messages) < TOPIC_CONVICTIONS:
            topic.messages.add(_key(message))
        return conviction

    def _suspicion(self, message: Message) -> _Suspicion:
        if len(self._messages) >= MAX_SUSPECTS:
            del self._messages[next(iter(self._messages))]
        return self._messages.setdefault(_key(message), _Suspicion())


def likeliest_last(in_flight: list[T]) -> list[T]:
    """Return what was on its way in the order in which it goes out again.

    Brokers answer in order: the first without an answer is the likeliest reason for the end.
    """
    return in_flight[1:] + in_flight[:1]


def _key(message: Message) -> _Key:
    return message.topic, message.payload
