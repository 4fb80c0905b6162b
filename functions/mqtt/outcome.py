"""Pure: what became of a message, and what an acknowledgement says of it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from functions.mqtt.audience import NO_MATCHING_SUBSCRIBERS
from functions.mqtt.suspects import PACKET_TOO_LARGE

if TYPE_CHECKING:
    from functions.mqtt.suspects import Conviction

MIN_REFUSAL = 0x80  # MQTT 5 §2.4: reason codes from here on are errors
# Refusals that may pass with time: unspecified, implementation specific, packet identifier in use or not found,
# quota exceeded.
_PASSING_REFUSALS = frozenset({0x80, 0x83, 0x91, 0x92, 0x97})
# Refusals that a person can end: not authorised, and ejabberd's word for it, topic name invalid (ours are valid).
FORBIDDING_REFUSALS = frozenset({0x87, 0x90})


class Status(StrEnum):
    """What became of a message."""

    DELIVERED = "delivered"
    NO_SUBSCRIBERS = "no_subscribers"
    """Delivered, and the broker says that nobody listens."""
    SENT = "sent"
    """QoS 0: written to the socket; nobody will ever say more."""
    REFUSED = "refused"
    UNCONFIRMED = "unconfirmed"
    """No answer in time: it may have arrived or not."""


@dataclass(frozen=True)  # without slots, which leave no room for what is worked out once
class Outcome:
    """What became of one message, with the broker's reason code where it gave one, and the reason in words."""

    status: Status
    reason: str = ""
    reason_code: int | None = None
    convicted: bool = False
    """Refused without a word: the broker closes the connection whenever it gets this message."""

    @cached_property
    def success(self) -> bool:
        """Whether nothing is left to do for it."""
        return self.status is not Status.REFUSED and self.status is not Status.UNCONFIRMED

    @cached_property
    def retriable(self) -> bool:
        """Whether another try may succeed."""
        return self.status is Status.UNCONFIRMED or (
            self.status is Status.REFUSED and self.reason_code in _PASSING_REFUSALS
        )

    @cached_property
    def forbidden(self) -> bool:
        """Whether the broker refuses this message until time or a person changes that, perhaps for ever."""
        codes = _PASSING_REFUSALS | FORBIDDING_REFUSALS
        return self.status is Status.REFUSED and (self.convicted or self.reason_code in codes)

    @cached_property
    def is_transient(self) -> bool:
        """Whether it may succeed later: what failed passes, or a person corrects the broker's rules."""
        return self.retriable or self.forbidden


@lru_cache(maxsize=64)  # nearly all are the same
def acknowledged(reason_code: int, qos: int, said: str = "") -> Outcome:
    """Read an acknowledgement (MQTT 5 §3.4.2.1, §3.5.2.1); `said` are the broker's own words."""
    if reason_code >= MIN_REFUSAL:
        words = f"the broker answered 0x{reason_code:02x}{': ' if said else ''}{said}"
        return Outcome(Status.REFUSED, words, reason_code)
    if qos == 0:
        return Outcome(Status.SENT)
    if reason_code == NO_MATCHING_SUBSCRIBERS:
        return Outcome(Status.NO_SUBSCRIBERS, reason_code=reason_code)
    return Outcome(Status.DELIVERED, reason_code=reason_code)


def not_sent(conviction: Conviction) -> Outcome:
    """Tell that a message is not sent now: whenever the broker gets it, it closes the connection."""
    if conviction.reason_code == PACKET_TOO_LARGE:
        reason = "larger than the broker takes, which it does not announce: it answered 0x95, and closed the connection"
        return Outcome(Status.REFUSED, reason, PACKET_TOO_LARGE)
    if conviction.reason_code is not None:
        return acknowledged(conviction.reason_code, 1)
    question = "may this user, or this certificate, publish on this topic?"
    reason = f"the broker closes the connection whenever it gets this message: {question}"
    return Outcome(Status.REFUSED, reason, convicted=True)


def too_large(maximum_packet_size: int | None) -> Outcome:
    """Tell that a message would break the broker's Maximum Packet Size: sending it would cost the connection."""
    reason = f"larger than the broker's maximum packet size of {maximum_packet_size} bytes"
    return Outcome(Status.REFUSED, reason, PACKET_TOO_LARGE)
