"""What waits apart from the queue: suspects, which travel alone, and what was sent before its subscribers were back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from functions.mqtt.audience import Audience
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome
from functions.mqtt.suspects import Conviction, Suspects, likeliest_last
from infra.host.pending import Pending


class PendingPublish:
    """One message on its way. `done` gets exactly one `Outcome`, also when nobody waits any more."""

    __slots__ = ("begun_at", "deadline", "done", "has_closed", "message", "sent_at", "suspect")

    def __init__(self, message: Message, begun_at: float, deadline: float) -> None:
        self.message = message
        self.begun_at = begun_at
        self.deadline = deadline
        self.done: Pending[Outcome] = Pending()
        self.sent_at = begun_at
        self.suspect = False  # it was on its way when a connection ended
        self.has_closed = False  # alone

    @property
    def object_key(self) -> str:
        """Of the file that it tells of; "" for what is no event."""
        return next((value for name, value in self.message.user_properties if name == "subject"), "")


class Aside:
    """What is known of one broker, and the messages that wait because of it."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.suspects = Suspects()
        self.audience = Audience()
        self._alone: dict[str, deque[PendingPublish]] = {}  # by topic
        self._unheard: dict[str, deque[PendingPublish]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._alone.values())) + sum(map(len, self._unheard.values()))

    def take_all(self) -> list[PendingPublish]:
        """Take everything."""
        publishes = [
            pending for kept in (self._alone, self._unheard) for publishes in kept.values() for pending in publishes
        ]
        self._alone, self._unheard = {}, {}
        return publishes

    def takes(self, pending: PendingPublish) -> bool:
        """Keep `pending` if it has to travel alone."""
        if not (pending.suspect or self.suspects.suspected(pending.message)):
            return False
        publishes = self._alone.setdefault(pending.message.topic, deque())
        if pending.has_closed:
            publishes.appendleft(pending)
        else:
            publishes.append(pending)
        return True

    def lost(
        self,
        in_flight: list[PendingPublish],
        *,
        blames: bool,
        age_seconds: float,
        now: float,
        reason_code: int | None = None,
    ) -> tuple[list[PendingPublish], Conviction | None]:
        """The connection is over, at this age, and because of one of these where it `blames` them.

        Return them in the order in which they go out again, and the conviction of the only one, where it is due.
        """
        blamed = in_flight if blames else []
        conviction, is_open = self.suspects.lost([pending.message for pending in blamed], age_seconds, now, reason_code)
        for pending in in_flight:
            pending.suspect = pending.suspect or (bool(blamed) and is_open)
            pending.has_closed = pending.suspect and len(blamed) == 1
        return likeliest_last(blamed) or in_flight, conviction

    def due(self, age_seconds: float) -> PendingPublish | None:
        """Return the next suspect that may go out over a connection of this age.

        For each topic only the first: it speaks for those behind it, which the broker may well forbid too.
        """
        for publishes in self._alone.values():
            if self.suspects.pause_seconds(publishes[0].message) <= age_seconds:
                return publishes[0]
        return None

    def send(self, pending: PendingPublish, age_seconds: float) -> None:
        """Take what is `due`: it goes out."""
        topic = pending.message.topic
        self._alone[topic].popleft()
        self._forget_empty(topic)
        self.suspects.sending(pending.message, age_seconds)

    def take_late(self, now: float) -> list[PendingPublish]:
        """Take the suspects whose deadline has passed."""
        late = []
        for topic, publishes in list(self._alone.items()):
            while publishes and publishes[0].deadline <= now:
                late.append(publishes.popleft())
            self._forget_empty(topic)
        return late

    def _forget_empty(self, topic: str) -> None:
        if not self._alone[topic]:
            del self._alone[topic]

    def keep_unheard(self, pending: PendingPublish) -> None:
        """Keep a message that nobody heard."""
        self._unheard.setdefault(pending.message.topic, deque()).append(pending)

    def take_heard(self, topic: str) -> Iterable[PendingPublish]:
        """Take what waits for the subscribers of `topic`: one is back."""
        return self._unheard.pop(topic, ())

    def take_unheard(self, now: float) -> list[PendingPublish]:
        """Take what is to be sent again: one message of each topic, and all when the answer will be believed."""
        if not self.audience.early(now):
            return [pending for topic in list(self._unheard) for pending in self.take_heard(topic)]
        probes = [publishes.popleft() for publishes in self._unheard.values()]
        self._unheard = {topic: publishes for topic, publishes in self._unheard.items() if publishes}
        return probes
