"""The warm MQTT publisher driven by the event loop: many callers share one connection, and none of them waits in it.

A late message must not cost the others their connection. So: what is unsent at its deadline is withdrawn; a slot is
freed only by an acknowledgement or by losing the connection; a late acknowledgement still settles its message; and the
connection is discarded when no acknowledgement at all came for one deadline. What was on its way when the broker closed
the connection travels alone from then on, or one forbidden message would take the others along for ever.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from functions.mqtt.audience import EARLY_SECONDS
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.connection import BrokerConnectionError, Connection
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status, acknowledged, not_sent, too_large
from functions.mqtt.suspects import ALONE_SECONDS
from functions.telemetry import Telemetry
from infra.host.mqtt.aside import Aside, PendingPublish
from infra.host.mqtt.birth_messages import WILL, BirthMessages
from infra.host.mqtt.link import CHANGED, NO_TROUBLE, Link, LinkStatus
from infra.host.mqtt.will import WillTrial
from infra.host.rounds import Rounds

QUEUE_LIMIT = 10_000
HOUSEKEEPING_SECONDS = 0.25
MAX_ACK_AGE = 4  # publish time-outs: an acknowledgement that others overtook for so long will not come
SILENT_SECONDS = 60.0  # a broker that acknowledged nothing is taken to be out of reach for as long, unless it does
FLUSH_SECONDS = 1.0  # at shutdown
UNKNOWN_ACK_SECONDS = 5.0  # how long a message waits while there is no broker yet
CLOCK_SLACK_SECONDS = 0.005  # the loop's timers count whole milliseconds


class QueueFullError(Exception):
    """More messages wait than `QUEUE_LIMIT`."""


class HostPublisher:
    """Created once for each process; `start` and `stop` belong to its event loop, as does every call."""

    def __init__(
        self,
        broker: BrokerConfig | None,
        telemetry: Telemetry,
        *,
        birth_messages: Callable[[], Iterable[Message]] = tuple,
        goodbye_messages: Callable[[], Sequence[Message]] = tuple,
        addressed: Callable[[Message], Message] = lambda message: message,
        on_connected: Callable[[], object] = lambda: None,
        on_change: Callable[[LinkStatus], None] = lambda _status: None,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        """Nothing is connected before `start`.

        `birth_messages` go out on each connect, after what waits for it; `goodbye_messages` before each DISCONNECT.
        `addressed` is a message as it is sent now: settings may have changed since it was submitted. `on_connected`
        hears of each connect, before anything is sent, and `on_change` of failed attempts and disconnects too.
        """
        self.configured = broker is not None
        self.messages_published = 0
        self.births = BirthMessages()
        self.birth_messages, self.goodbye_messages = birth_messages, goodbye_messages
        self.addressed, self.on_connected = addressed, on_connected
        self._telemetry = telemetry
        self._queue_limit = queue_limit
        self.ack_seconds = broker.publish_timeout_seconds if broker else UNKNOWN_ACK_SECONDS
        """How long a message may take."""
        self._link = Link(broker, telemetry, self, on_change)
        self._queue: deque[PendingPublish] = deque()
        self._aside = Aside()
        self._in_flight: dict[int, PendingPublish] = {}
        self._lone: PendingPublish | None = None  # the suspect among them
        self._others_next = self._gave_up = False
        self._made_at = self._progress_at = self._silent_until = 0.0
        self._pumping = self._stopping = False
        self._will = WillTrial(self._link, lambda: self.births)
        self._housekeeping = Rounds("mqtt-housekeeping", HOUSEKEEPING_SECONDS, lambda _: self._tidy_up())

    @property
    def status(self) -> LinkStatus:
        """The link as last seen."""
        return self._link.status

    @property
    def broker(self) -> BrokerConfig | None:
        """The broker in force."""
        return self._link.broker

    @property
    def ready(self) -> bool:
        """Whether a message submitted now would be sent now."""
        return self.status.connected and not self._stopping and not self._full

    @property
    def _full(self) -> bool:
        return len(self._queue) + len(self._aside) >= self._queue_limit

    @property
    def away(self) -> bool:
        """Whether nothing is to be learnt about any message: no CONNACK, or no acknowledgement of any."""
        return not self.status.connected or time.monotonic() < self._silent_until

    async def start(self) -> None:
        """Begin to connect, and to reconnect for ever. Returns at once."""
        self._link.start()
        self._begin_housekeeping()

    def _begin_housekeeping(self) -> None:
        if self.configured and self._link.started:
            self._housekeeping.start()

    def submit(self, message: Message) -> PendingPublish:
        """Put one message on its way: at once when nothing else is, else with all others of this turn of the loop.

        Raises `QueueFullError`. While shutting down its outcome is *unconfirmed* at once.
        """
        now = time.monotonic()  # not the loop's clock: uvloop's counts whole milliseconds
        pending = PendingPublish(message, now, now + self.ack_seconds)
        if self._stopping:
            self._finish(pending, Outcome(Status.UNCONFIRMED, "shutting down"))
        elif self._full:
            raise QueueFullError
        else:
            if not self._aside.takes(pending):
                self._queue.append(pending)
            self._housekeeping.stir()
            self._link.demand()
            if not self._in_flight:
                self._pump()
            elif not self._pumping:  # busy: what this turn of the loop brings goes out in one write
                self._pumping = True
                asyncio.get_running_loop().call_soon(self._pump)
        return pending

    def demand(self) -> None:
        """Somebody waits for the broker, and has not submitted anything yet."""
        self._link.demand()

    def say(self, messages: Iterable[Message]) -> None:
        """Say these in the way of birth messages; nothing where the broker is not connected."""
        if self.status.connected and not self._stopping:
            self.births.add(messages, time.monotonic())
            self._housekeeping.stir()
            self._pump()

    def withdraw_late(self) -> None:
        """Give up what is still unsent at its deadline: its outcome is *unconfirmed*."""
        now = time.monotonic() + CLOCK_SLACK_SECONDS
        late = self._aside.take_late(now)
        while self._queue and self._queue[0].deadline <= now:
            late.append(self._queue.popleft())
        for pending in late:
            reason = self.status.reason or "withdrawn: not sent in time"
            self._finish(pending, Outcome(Status.UNCONFIRMED, reason, self.status.reason_code))

    def hurry(self) -> None:
        """Take nothing more, and give what is on its way `FLUSH_SECONDS`: then it is *unconfirmed*. Idempotent."""
        if not self._stopping:
            self._stopping = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._abandon, "shutting down")

    async def stop(self) -> None:
        """Flush, say DISCONNECT and end. Idempotent, bounded by `FLUSH_SECONDS`, never raises."""
        self.hurry()
        waiting = [pending.done for pending in (*self._in_flight.values(), *self._queue)]
        if waiting and self.status.connected:
            await asyncio.wait([asyncio.ensure_future(one) for one in waiting], timeout=FLUSH_SECONDS)
        self._abandon("shutting down")
        await self._housekeeping.stop()
        await self._will.stop()
        await self._link.stop()

    def use(self, broker: BrokerConfig | None) -> None:
        """Publish to `broker` from now on, and nothing more to the one before; None: publishing is switched off.

        What the one before has not acknowledged goes to the next, if it is still in time.
        """
        if not self._stopping:
            self._use(broker, CHANGED)
            if broker is None:
                self._abandon("publishing is switched off")

    def hold(self, reason: str) -> None:
        """Leave the broker, and confirm nothing until `use`: it is not known, or cannot be used, for this `reason`."""
        if not self._stopping:
            self._use(None, reason)
            self.configured = True
            self._begin_housekeeping()

    def _use(self, broker: BrokerConfig | None, otherwise: str) -> None:
        self.configured = broker is not None
        if broker is not None:
            self.ack_seconds = broker.publish_timeout_seconds
        self._link.use(broker, otherwise=otherwise)
        self._queue.extend(self._aside.take_all())
        self._aside = Aside()
        self.births = BirthMessages()
        self._begin_housekeeping()

    # What the link asks and tells.

    def link_made(self) -> None:
        """See `LinkUser.link_made`."""
        now = self._made_at = time.monotonic()
        self._housekeeping.stir()
        self._aside.audience.connected(now)
        self.on_connected()
        self.births.begin(self.birth_messages(), now)
        self._pump()

    def will_refused(self, failure: BrokerConnectionError) -> None:
        """See `LinkUser.will_refused`."""
        self.births.suspect_will(failure.reason, time.monotonic())

    def link_moved(self) -> None:
        """See `LinkUser.link_moved`."""
        self._take_acks()
        self._pump()

    def link_lost(self, failure: BrokerConnectionError) -> None:
        """See `LinkUser.link_lost`: what is still in time waits again, suspects apart from the others."""
        now = time.monotonic()
        self._housekeeping.stir()
        birth = self.births.pending if failure.reason in NO_TROUBLE else self.births.lost(failure, now)
        in_flight, self._in_flight = [one for one in self._in_flight.values() if one is not birth], {}
        if birth is not None:  # the next connection has its own
            self._finish(birth, Outcome(Status.UNCONFIRMED, failure.reason, failure.reason_code))
        lone, self._lone = self._lone, None
        # Not to blame: what the broker had for long, what was beside a suspect, and nothing when the end was ours.
        is_ours = self._gave_up or failure.reason in NO_TROUBLE
        is_old = all(now - pending.sent_at > self.ack_seconds for pending in in_flight)
        is_beside = lone is not None and len(in_flight) > 1
        blames = not (birth or is_ours or is_old or is_beside)
        self._gave_up = False
        publishes, conviction = self._aside.lost(
            in_flight, blames=blames, age_seconds=now - self._made_at, now=now, reason_code=failure.reason_code
        )
        again = []
        for pending in publishes:
            if conviction is not None:
                self._finish(pending, not_sent(conviction))
            elif pending.deadline <= now or self._stopping:
                self._finish(pending, Outcome(Status.UNCONFIRMED, failure.reason, failure.reason_code))
            elif not self._aside.takes(pending):
                again.append(pending)
        self._queue.extendleft(reversed(again))

    def waiting(self) -> bool:
        """See `LinkUser.waiting`."""
        return bool(self._queue or self._aside)

    def _take_acks(self) -> None:
        acks = self._link.take_acks()
        if not acks:
            return
        now = self._progress_at = time.monotonic()
        self._silent_until = 0.0
        for ack in acks:
            pending = self._in_flight.pop(ack.mid, None)
            if pending is None:
                continue
            if pending is self._lone:
                self._lone = None
            topic, outcome = pending.message.topic, acknowledged(ack.reason_code, ack.qos, ack.said)
            self._aside.suspects.answered(pending.message, ack.reason_code if outcome.forbidden else None)
            pending.suspect = pending.has_closed = False
            if self._aside.audience.doubts(pending.message, ack.reason_code, now):
                pending.deadline = now + EARLY_SECONDS + self.ack_seconds  # nobody else may ask for it again
                self._aside.keep_unheard(pending)
                continue
            if outcome.status is Status.DELIVERED:
                self._queue.extend(self._aside.take_heard(topic))
            self._finish(pending, outcome)

    def _pump(self) -> None:
        """Send what waits, and birth messages in the gaps."""
        self._pumping = False
        connection = self._link.connection
        now = time.monotonic()
        lone = self._lone
        is_held_up = self.births.alone(now) or (lone is not None and now - lone.sent_at < ALONE_SECONDS)
        if connection is None or is_held_up:
            return
        hurries = self.births.hurries(now)
        if not hurries:
            self._fill_by_turns(connection, now)
        self._link.flush()
        self._take_acks()  # at QoS 0 sending was all
        if hurries or not self._queue:
            self._send_birth_messages()

    def _send_birth_messages(self) -> None:
        """Send the next birth message, where nothing else is on its way."""
        while (
            not self._in_flight
            and (connection := self._link.connection) is not None
            and (message := self.births.next()) is not None
        ):
            now = time.monotonic()
            pending = PendingPublish(self.addressed(message), now, now + self.ack_seconds)
            self.births.sent(pending)
            if self._hand_over(connection, pending, now):
                self._link.flush()
                self._take_acks()

    def _fill_by_turns(self, connection: Connection, now: float) -> None:
        """Send from the queue; where a suspect is due, it and the others take turns."""
        age_seconds = now - self._made_at
        suspect = self._aside.due(age_seconds) if self._lone is None else None
        if suspect is None:
            self._fill(connection, now)
        elif not self._in_flight and self._others_next and self._queue:
            self._others_next = False
            self._fill(connection, now)
        elif all(now - pending.sent_at >= ALONE_SECONDS for pending in self._in_flight.values()):
            self._others_next = True
            while suspect is not None and self._lone is None:
                self._aside.send(suspect, age_seconds)
                self._lone = suspect if self._send(connection, suspect, now) else None
                suspect = self._aside.due(age_seconds)
            if self._lone is None:
                self._fill(connection, now)

    def _fill(self, connection: Connection, now: float) -> None:
        while self._queue and len(self._in_flight) < connection.window and not connection.wants_write:
            pending = self._queue.popleft()
            if not self._aside.takes(pending):
                self._send(connection, pending, now)

    def _send(self, connection: Connection, pending: PendingPublish, now: float) -> bool:
        """Return whether it is on its way now; otherwise its outcome says why not."""
        if pending.deadline <= now:
            self._finish(pending, Outcome(Status.UNCONFIRMED, "withdrawn: not sent in time"))
            return False
        pending.message = self.addressed(pending.message)
        conviction = self._aside.suspects.conviction(pending.message, now)
        if conviction is not None:
            self._finish(pending, not_sent(conviction))
            return False
        return self._hand_over(connection, pending, now)

    def _hand_over(self, connection: Connection, pending: PendingPublish, now: float) -> bool:
        mid = connection.send(pending.message)
        if mid is None:
            self._finish(pending, too_large(connection.maximum_packet_size))
            return False
        if not self._in_flight:
            self._progress_at = now
        pending.sent_at = now
        self._in_flight[mid] = pending
        return True

    def _finish(self, pending: PendingPublish, outcome: Outcome) -> None:
        if pending.done.done():
            return
        self.births.hear(pending, outcome)
        self.messages_published += outcome.success
        self._telemetry.published(
            pending.message.metric_topic,
            success=outcome.success,
            no_subscribers=outcome.status is Status.NO_SUBSCRIBERS,
            duration_seconds=time.monotonic() - pending.begun_at,
        )
        pending.done.set_result(outcome)

    def _abandon(self, reason: str) -> None:
        publishes = [*self._in_flight.values(), *self._queue, *self._aside.take_all()]
        self._in_flight.clear()
        self._lone = None
        self._queue.clear()
        for pending in publishes:
            self._finish(pending, Outcome(Status.UNCONFIRMED, reason))

    def _tidy_up(self) -> float:
        """Withdraw what waited too long, keep the link alive, discard it when it has gone silent; return when again."""
        now = time.monotonic()
        self.withdraw_late()
        self._link.tick()
        if self._link.connection is not None:
            self._queue.extend(self._aside.take_unheard(now))
            again = self.births.tick(now)
            if again and (WILL not in again or not self._will.begin()):
                self.births.begin(self.birth_messages(), now)
            self._pump()  # also what waited for a birth message that is not answered
        oldest = next(iter(self._in_flight.values()), None)
        is_silent = oldest is not None and now - self._progress_at > self.ack_seconds
        if is_silent:
            self._silent_until = now + SILENT_SECONDS
        if is_silent or (oldest is not None and now - oldest.sent_at > MAX_ACK_AGE * self.ack_seconds):
            self._gave_up = True
            self._link.give_up(f"no acknowledgement within {self.ack_seconds:g} s")
        if self._in_flight or self._queue or self._aside:
            return HOUSEKEEPING_SECONDS
        return math.inf if self._link.connection is None else min(self._link.due_at, self.births.due_at) - now
