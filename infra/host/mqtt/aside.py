"""What waits apart from the queue: suspects, which travel alone, and what was sent before its subscribers were back."""

from __future__ import annotations

from collections import deque

from functions.mqtt.audience import Audience
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome
from functions.mqtt.suspects import Conviction, Suspects, likeliest_last
from infra.host.pending import Pending


class Flight:
    """One message on its way. `done` gets exactly one `Outcome`, also when nobody waits any more."""

    __slots__ = ("begun_at", "deadline", "done", "has_closed", "message", "sent_at", "suspect")

    def __init__(self, message: Message, begun_at: float, deadline: float) -> None:
        self.message = message
        self.begun_at = begun_at
        self.deadline = deadline
        self.done = Pending[Outcome]()
        self.sent_at = begun_at
        self.suspect = False  # it was on its way when a connection ended
        self.has_closed = False  # alone


class Aside:
    """What is known of one broker, and the flights that wait because of it."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self.suspects = Suspects()
        self.audience = Audience()
        self._alone: dict[str, deque[Flight]] = {}  # by topic
        self._unheard: dict[str, deque[Flight]] = {}

    def __len__(self) -> int:
        return sum(map(len, self._alone.values())) + sum(map(len, self._unheard.values()))

    def take_all(self) -> list[Flight]:
        """Take everything."""
        flights = [flight for kept in (self._alone, self._unheard) for flights in kept.values() for flight in flights]
        self._alone, self._unheard = {}, {}
        return flights

    def takes(self, flight: Flight) -> bool:
        """Keep `flight` if it has to travel alone."""
        if not (flight.suspect or self.suspects.suspected(flight.message)):
            return False
        flights = self._alone.setdefault(flight.message.topic, deque())
        if flight.has_closed:
            flights.appendleft(flight)
        else:
            flights.append(flight)
        return True

    def lost(
        self, in_flight: list[Flight], *, blames: bool, age_seconds: float, now: float
    ) -> tuple[list[Flight], Conviction | None]:
        """The connection is over, at this age, and because of one of these where it `blames` them.

        Return them in the order in which they go out again, and the conviction of the only one, where it is due.
        """
        blamed = in_flight if blames else []
        conviction, is_open = self.suspects.lost([flight.message for flight in blamed], age_seconds, now)
        for flight in in_flight:
            flight.suspect = flight.suspect or (bool(blamed) and is_open)
            flight.has_closed = flight.suspect and len(blamed) == 1
        return likeliest_last(blamed) or in_flight, conviction

    def due(self, age_seconds: float) -> Flight | None:
        """Return the next suspect that may go out over a connection of this age.

        For each topic only the first: it speaks for those behind it, which the broker may well forbid too.
        """
        for flights in self._alone.values():
            if self.suspects.pause_seconds(flights[0].message) <= age_seconds:
                return flights[0]
        return None

    def send(self, flight: Flight, age_seconds: float) -> None:
        """Take what is `due`: it goes out."""
        topic = flight.message.topic
        self._alone[topic].popleft()
        self._forget_empty(topic)
        self.suspects.sending(flight.message, age_seconds)

    def take_late(self, now: float) -> list[Flight]:
        """Take the suspects whose deadline has passed."""
        late = []
        for topic, flights in list(self._alone.items()):
            while flights and flights[0].deadline <= now:
                late.append(flights.popleft())
            self._forget_empty(topic)
        return late

    def _forget_empty(self, topic: str) -> None:
        if not self._alone[topic]:
            del self._alone[topic]

    def keep_unheard(self, flight: Flight) -> None:
        """Keep what nobody was there to hear."""
        self._unheard.setdefault(flight.message.topic, deque()).append(flight)

    def take_heard(self, topic: str) -> deque[Flight]:
        """Take what waits for the subscribers of `topic`: one is back."""
        return self._unheard.pop(topic, deque())

    def take_unheard(self, now: float) -> list[Flight]:
        """Take what is to be sent again: one message of each topic, and all when the answer will be believed."""
        if not self.audience.early(now):
            return [flight for topic in list(self._unheard) for flight in self.take_heard(topic)]
        probes = [flights.popleft() for flights in self._unheard.values()]
        self._unheard = {topic: flights for topic, flights in self._unheard.items() if flights}
        return probes
