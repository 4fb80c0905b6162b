"""What the host says for the cameras when it connects, and what of it the broker does not want.

A broker may refuse such a message, or close the connection over it: the messages to devices must not pay for that. So
a birth message travels alone, after what devices wait for; what is refused is left out, said, and tried again seldom.
"""

from __future__ import annotations

import math
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from functions.admin.operations import TopicVerdict
from functions.mqtt.outcome import Outcome, Status
from functions.mqtt.suspects import PACKET_TOO_LARGE
from functions.telemetry import logger

if TYPE_CHECKING:
    from functions.mqtt.connection import BrokerConnectionError
    from functions.mqtt.message import Message
    from infra.host.mqtt.aside import PendingPublish

# `functions.mqtt.suspects` convicts by contrast too: one message, within seconds, because somebody waits for it. Nobody
# waits for a birth message. So a whole label is judged here, also at QoS 0, where no answer comes, and a connection
# lives for long without it first: devices lose fewer connections. In common is only that both count to three.
ALONE_SECONDS = 1.0  # others wait no longer for a birth message, and it waits no longer for a gap between them
IN_DOUBT_SECONDS = 1.0  # a connection that ends so soon after a birth message of QoS 0 may have ended over it
CONTRAST_SECONDS = 10.0  # where a connection has ended over a birth message, the next one lives for so long without it
STRIKES = 3
RETRY_SECONDS = 600.0
WILL = "last will"
"""What the broker refuses in CONNECT, beside the topics."""


@dataclass(slots=True)
class _LeftOut:
    until: float
    reason: str


class BirthMessages:
    """Topics go by the names that metrics give them. Belongs to one event loop, as does every call."""

    def __init__(self) -> None:
        """Begin with an unknown broker."""
        self.pending: PendingPublish | None = None
        """The birth message that is on its way."""
        self._due: deque[Iterator[Message]] = deque()
        self._next: Message | None = None
        self._waits_since = 0.0
        self._in_doubt: tuple[str, float] | None = None
        self._left_out: dict[str, _LeftOut] = {}
        self._strikes: Counter[str] = Counter()
        self._told: dict[str, str] = {}
        self._optional = {WILL}
        self._verdicts: dict[str, tuple[Outcome, datetime]] = {}

    # What is to be said.

    def begin(self, messages: Iterable[Message], now: float) -> None:
        """Say these on a new connection. They are asked for one by one, when it is time."""
        self._quit()
        for label, strikes in self._strikes.items():
            if strikes < STRIKES and label in self._left_out:
                self._left_out[label].until = now + CONTRAST_SECONDS
        self.add(messages, now)

    def add(self, messages: Iterable[Message], now: float) -> None:
        """Say these as well."""
        if not self._due:
            self._waits_since = now
        self._due.append(iter(messages))

    def next(self) -> Message | None:
        """What is to be said next, if anything is: the same until `sent`."""
        while self._next is None and self._due:
            found = next(self._due[0], None)
            if found is None:
                self._due.popleft()
            elif not self.leaves_out(found.metric_topic):
                self._next = found
        if self._next and self._in_doubt and self._in_doubt[0] != self._next.metric_topic:
            return None  # or it would be blamed for the one before
        return self._next

    def hurries(self, now: float) -> bool:
        """Whether others have gone before for long enough."""
        waited_seconds = now - self._waits_since
        if waited_seconds > 2 * ALONE_SECONDS:  # there was no gap although others waited: it is their turn again
            self._waits_since, waited_seconds = now, 0.0
        return waited_seconds > ALONE_SECONDS and self.next() is not None

    def alone(self, now: float) -> bool:
        """Whether a birth message is on its way, and others shall wait for its end."""
        return self.pending is not None and now - self.pending.begun_at < ALONE_SECONDS

    def sent(self, pending: PendingPublish) -> None:
        """The next one is on its way."""
        self._next = None
        self._waits_since = pending.begun_at
        self._in_doubt = pending.message.metric_topic, pending.begun_at
        self.pending = pending

    # What the broker says to it.

    def hear(self, pending: PendingPublish, outcome: Outcome) -> None:
        """Note what became of any message, birth message or not."""
        label = pending.message.metric_topic
        was_birth = pending is self.pending
        if was_birth:
            self.pending = None
        if outcome.status is Status.UNCONFIRMED:
            return
        self._verdicts[label] = outcome, datetime.now(UTC)
        if label not in self._optional:
            return
        if outcome.status is Status.REFUSED:
            self._in_doubt = None if was_birth else self._in_doubt
            if outcome.reason_code != PACKET_TOO_LARGE:  # which the others need not be
                self.leave_out(label, outcome, pending.begun_at)
        elif outcome.status is not Status.SENT:  # which says nothing: see `tick`
            self._in_doubt = None if was_birth else self._in_doubt
            self.take_in(label)

    def lost(self, failure: BrokerConnectionError, now: float) -> PendingPublish | None:
        """The connection is over, not by our will, perhaps over a birth message. Returns what was on its way."""
        pending, doubt = self.pending, self._in_doubt
        self._quit()
        if doubt is not None and (pending is not None or now - doubt[1] < IN_DOUBT_SECONDS):
            label = doubt[0]
            self._strikes[label] += 1
            why = Outcome(Status.REFUSED, f"the connection ends over it: {failure.reason}", failure.reason_code)
            if self._strikes[label] < STRIKES:
                self._left_out[label] = _LeftOut(now + CONTRAST_SECONDS, why.reason)
            else:
                self.leave_out(label, why, now)
        return pending

    def tick(self, now: float) -> set[str]:
        """Call now and then while the broker is connected. Returns what is to be tried again now."""
        if self._in_doubt is not None and self.pending is None and now - self._in_doubt[1] > IN_DOUBT_SECONDS:
            self.take_in(self._in_doubt[0])  # QoS 0, and the connection lives
            self._in_doubt = None
        due = {label for label, left_out in self._left_out.items() if left_out.until <= now}
        for label in due:
            if label == WILL:  # left out until a connection has shown that it need not be
                self._left_out[label].until = now + RETRY_SECONDS
            else:
                del self._left_out[label]
        return due

    @property
    def due_at(self) -> float:
        """When `tick` has something to do, as far as is known now."""
        if self.pending or self._next or self._due or self._in_doubt:
            return 0.0
        return min((left_out.until for left_out in self._left_out.values()), default=math.inf)

    def verdicts(self) -> tuple[TopicVerdict, ...]:
        """What the broker last said to each topic."""
        return tuple(
            TopicVerdict(label, outcome.success, outcome.reason, outcome.reason_code, at)
            for label, (outcome, at) in sorted(self._verdicts.items())
        )

    # What is left out.

    def leaves_out(self, label: str) -> str:
        """Why messages to this topic are left out now, or "". The caller can do without them: a refusal counts now."""
        self._optional.add(label)
        left_out = self._left_out.get(label)
        return left_out.reason if left_out is not None else ""

    def leave_out(self, label: str, why: Outcome, now: float) -> None:
        """Leave it out for `RETRY_SECONDS`, and log that once for each reason."""
        self._left_out[label] = _LeftOut(now + RETRY_SECONDS, why.reason)
        self._verdicts[label] = why, datetime.now(UTC)
        if self._told.get(label) != why.reason:
            self._told[label] = why.reason
            words = "the broker does not want what tells Home Assistant of cameras: left out, and tried again later"
            details = {"topic": label, "reason": why.reason, "reason_code": why.reason_code}
            logger.warning(words, extra={**details, "again_after_seconds": RETRY_SECONDS})

    def suspect_will(self, reason: str, now: float) -> None:
        """Leave out availability: with the last will we were not let in. A `tick` soon asks whether that is why."""
        self._left_out.setdefault(WILL, _LeftOut(now, reason))

    def take_in(self, label: str) -> None:
        """The broker takes it."""
        self._strikes.pop(label, None)
        self._left_out.pop(label, None)
        if self._told.pop(label, None) is not None:
            logger.info("the broker takes it again", extra={"topic": label})

    def retry(self) -> None:
        """Leave nothing out any more, except the last will: somebody has asked."""
        self._left_out = {label: left_out for label, left_out in self._left_out.items() if label == WILL}

    def _quit(self) -> None:
        self.pending = self._next = self._in_doubt = None
        self._due.clear()
