"""The warm MQTT publisher driven by the event loop: many callers share one connection, and none of them waits in it.

A late message must not cost the others their connection. So: what is unsent at its deadline is withdrawn; a slot is
freed only by an acknowledgement or by losing the connection; a late acknowledgement still settles its flight; and the
connection is discarded when no acknowledgement at all came for one deadline.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence

from functions.connection import ConnectionFailure
from functions.publisher import Outcome, Status, acknowledged, too_large
from functions.routes import Notification
from functions.settings import Broker
from functions.telemetry import Telemetry, logger
from infra.host.link import CHANGED, Link, LinkStatus

QUEUE_LIMIT = 10_000
HOUSEKEEPING_SECONDS = 0.25
MAX_ACK_AGE = 4  # publish time-outs: an acknowledgement that others overtook for so long will not come
FLUSH_SECONDS = 1.0  # at shutdown
UNKNOWN_ACK_SECONDS = 5.0  # how long a notification waits while there is no broker yet
CLOCK_SLACK_SECONDS = 0.005  # the loop's timers count whole milliseconds


class QueueFull(Exception):
    """More notifications wait than `QUEUE_LIMIT`."""


class Flight:
    """One notification on its way. `done` gets exactly one `Outcome`, also when nobody waits any more."""

    __slots__ = ("begun_at", "deadline", "done", "notification")

    def __init__(
        self, notification: Notification, begun_at: float, deadline: float, done: asyncio.Future[Outcome]
    ) -> None:
        self.notification = notification
        self.begun_at = begun_at
        self.deadline = deadline
        self.done = done


class HostPublisher:
    """Created once for each process; `start` and `stop` belong to its event loop, as does every call."""

    def __init__(
        self,
        broker: Broker | None,
        telemetry: Telemetry,
        *,
        on_change: Callable[[LinkStatus], None] = lambda _status: None,
        queue_limit: int = QUEUE_LIMIT,
    ) -> None:
        """`on_change` hears of every connect, disconnect and failed attempt. Nothing is connected before `start`."""
        self.configured = broker is not None
        self.messages_published = 0
        self.greetings: Callable[[], Sequence[Notification]] = tuple
        """What to publish first on each connect."""
        self.farewells: Callable[[], Sequence[Notification]] = tuple
        """What to send before each DISCONNECT."""
        self._telemetry = telemetry
        self._queue_limit = queue_limit
        self._ack_seconds = broker.publish_timeout_seconds if broker else UNKNOWN_ACK_SECONDS
        self._link = Link(broker, telemetry, self, on_change)
        self._queue: deque[Flight] = deque()
        self._in_flight: dict[int, Flight] = {}
        self._progress_at = 0.0
        self._pumping = False
        self._stopping = False
        self._housekeeping: asyncio.Task[None] | None = None

    @property
    def status(self) -> LinkStatus:
        """The link as last seen."""
        return self._link.status

    @property
    def ready(self) -> bool:
        """Whether a notification submitted now would be sent now."""
        return self.status.connected and not self._stopping and len(self._queue) < self._queue_limit

    async def start(self) -> None:
        """Begin to connect, and to reconnect for ever. Returns at once."""
        self._link.start()
        self._begin_housekeeping()

    def _begin_housekeeping(self) -> None:
        if self.configured and self._link.started and self._housekeeping is None:
            self._housekeeping = asyncio.create_task(self._keep_house(), name="mqtt-housekeeping")

    def submit(self, notification: Notification) -> Flight:
        """Put one notification on its way: at once when nothing else is, else with all others of this turn of the loop.

        Raises `QueueFull`. While shutting down its outcome is *unconfirmed* at once.
        """
        loop = asyncio.get_running_loop()
        now = time.monotonic()  # not the loop's clock: uvloop's counts whole milliseconds
        flight = Flight(notification, now, now + self._ack_seconds, loop.create_future())
        if self._stopping:
            self._finish(flight, Outcome(Status.UNCONFIRMED, "shutting down"))
        elif len(self._queue) >= self._queue_limit:
            raise QueueFull
        else:
            self._queue.append(flight)
            self._link.demand()
            if not self._in_flight:
                self._pump()
            elif not self._pumping:  # busy: what this turn of the loop brings goes out in one write
                self._pumping = True
                loop.call_soon(self._pump)
        return flight

    def withdraw_late(self) -> None:
        """Give up what is still unsent at its deadline: its outcome is *unconfirmed*."""
        now = time.monotonic() + CLOCK_SLACK_SECONDS
        while self._queue and self._queue[0].deadline <= now:
            reason = self.status.reason or "withdrawn: not sent in time"
            self._finish(self._queue.popleft(), Outcome(Status.UNCONFIRMED, reason, self.status.reason_code))

    def hurry(self) -> None:
        """Take nothing more, and give what is on its way `FLUSH_SECONDS`: then it is *unconfirmed*. Idempotent."""
        if not self._stopping:
            self._stopping = True
            asyncio.get_running_loop().call_later(FLUSH_SECONDS, self._abandon, "shutting down")

    async def stop(self) -> None:
        """Flush, say DISCONNECT and end. Idempotent, bounded by `FLUSH_SECONDS`, never raises."""
        self.hurry()
        waiting = [flight.done for flight in (*self._in_flight.values(), *self._queue)]
        if waiting and self.status.connected:
            await asyncio.wait(waiting, timeout=FLUSH_SECONDS)
        self._abandon("shutting down")
        if self._housekeeping is not None:
            self._housekeeping.cancel()
            await asyncio.gather(self._housekeeping, return_exceptions=True)
        await self._link.stop()

    def use(self, broker: Broker | None) -> None:
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

    def _use(self, broker: Broker | None, otherwise: str) -> None:
        self.configured = broker is not None
        if broker is not None:
            self._ack_seconds = broker.publish_timeout_seconds
        self._link.use(broker, otherwise=otherwise)
        self._begin_housekeeping()

    # What the link asks and tells.

    def link_made(self) -> None:
        """See `LinkUser.link_made`."""
        now = time.monotonic()
        loop = asyncio.get_running_loop()
        for notification in reversed(self.greetings()):
            self._queue.appendleft(Flight(notification, now, now + self._ack_seconds, loop.create_future()))
        self._pump()

    def last_words(self) -> Sequence[Notification]:
        """See `LinkUser.last_words`."""
        return self.farewells()

    def link_moved(self) -> None:
        """See `LinkUser.link_moved`."""
        self._take_acks()
        self._pump()

    def link_lost(self, failure: ConnectionFailure) -> None:
        """See `LinkUser.link_lost`: what is still in time goes back to the head of the queue."""
        now = time.monotonic()
        in_flight, self._in_flight = list(self._in_flight.values()), {}
        for flight in reversed(in_flight):
            if flight.deadline > now and not self._stopping:
                self._queue.appendleft(flight)
            else:
                self._finish(flight, Outcome(Status.UNCONFIRMED, failure.reason, failure.reason_code))

    def waiting(self) -> bool:
        """See `LinkUser.waiting`."""
        return bool(self._queue)

    def _take_acks(self) -> None:
        connection = self._link.connection
        acks = connection.take_acks() if connection is not None else ()
        if connection is None or not acks:
            return
        self._progress_at = time.monotonic()
        for ack in acks:
            flight = self._in_flight.pop(ack.mid, None)
            if flight is not None:
                self._finish(flight, acknowledged(ack.reason_code, ack.qos))

    def _pump(self) -> None:
        """Fill the free slots from the queue."""
        self._pumping = False
        connection = self._link.connection
        if connection is None or not self._queue:
            return
        now = time.monotonic()
        while self._queue and len(self._in_flight) < connection.window and not connection.wants_write:
            flight = self._queue.popleft()
            if flight.deadline <= now:
                self._finish(flight, Outcome(Status.UNCONFIRMED, "withdrawn: not sent in time"))
                continue
            mid = connection.send(flight.notification)
            if mid is None:
                self._finish(flight, too_large(connection))
                continue
            if not self._in_flight:
                self._progress_at = now
            self._in_flight[mid] = flight
        self._link.flush()
        self._take_acks()  # at QoS 0 sending was all

    def _finish(self, flight: Flight, outcome: Outcome) -> None:
        if flight.done.done():
            return
        self.messages_published += outcome.success
        self._telemetry.published(
            flight.notification.metric_topic,
            success=outcome.success,
            no_subscribers=outcome.status is Status.NO_SUBSCRIBERS,
            duration_seconds=time.monotonic() - flight.begun_at,
        )
        flight.done.set_result(outcome)

    def _abandon(self, reason: str) -> None:
        flights = [*self._in_flight.values(), *self._queue]
        self._in_flight.clear()
        self._queue.clear()
        for flight in flights:
            self._finish(flight, Outcome(Status.UNCONFIRMED, reason))

    async def _keep_house(self) -> None:
        while True:
            await asyncio.sleep(HOUSEKEEPING_SECONDS)
            try:
                self._tidy_up(time.monotonic())
            except Exception:  # noqa: BLE001 - without this task nothing would ever be withdrawn again
                logger.exception("mqtt housekeeping")

    def _tidy_up(self, now: float) -> None:
        """Withdraw what waited too long, keep the link alive, and discard it when it has gone silent."""
        self.withdraw_late()
        self._link.tick()
        oldest = next(iter(self._in_flight.values()), None)
        if oldest is not None and (
            now - self._progress_at > self._ack_seconds or now - oldest.begun_at > MAX_ACK_AGE * self._ack_seconds
        ):
            self._link.give_up(f"no acknowledgement within {self._ack_seconds:g} s")
