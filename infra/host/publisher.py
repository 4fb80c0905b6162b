"""The warm MQTT publisher driven by the event loop: many callers share one connection, and none of them waits in it.

A late message must not cost the others their connection. So: what is unsent at its deadline is withdrawn; a slot is
freed only by an acknowledgement or by losing the connection; a late acknowledgement still settles its flight; and the
connection is discarded when no acknowledgement at all came for one deadline.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from functions.connection import Connection, ConnectionFailure
from functions.publisher import Outcome, Status, acknowledged, backoff_seconds, new_client_id, too_large
from functions.routes import Notification
from functions.settings import Broker
from functions.telemetry import Telemetry, logger

QUEUE_LIMIT = 10_000
HOUSEKEEPING_SECONDS = 0.25
LASTING_SECONDS = 10.0  # a connection that held for this long ends a row of failures
MAX_ACK_AGE = 4  # publish time-outs: an acknowledgement that others overtook for so long will not come
DEMAND_SECONDS = 1.0  # somebody waits for the broker: try this soon, whatever the back-off says
OPENING_MARGIN_SECONDS = 0.5  # for the opening thread to tell of its own time-out
FLUSH_SECONDS = 1.0  # at shutdown


class QueueFull(Exception):
    """More notifications wait than `QUEUE_LIMIT`."""


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The link to the broker, as last seen. `since` is wall-clock seconds; `broker` holds no credentials."""

    broker: str | None
    connected: bool
    since: float
    reason: str = ""
    reason_code: int | None = None


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
        self._broker = broker
        self._telemetry = telemetry
        self._on_change = on_change
        self._queue_limit = queue_limit
        self._client_id = new_client_id(broker.client_id_prefix) if broker else ""
        self._ack_seconds = broker.publish_timeout_seconds if broker else 0.0
        self._queue: deque[Flight] = deque()
        self._in_flight: dict[int, Flight] = {}
        self._progress_at = 0.0
        self._connection: Connection | None = None
        self._fd = -1
        self._changed = asyncio.Event()
        self._demand = asyncio.Event()
        self._stopping = False
        self._tasks: list[asyncio.Task[None]] = []
        self._opening: asyncio.Future[None] | None = None
        self.status = LinkStatus(broker.url if broker else None, connected=False, since=time.time(), reason="starting")
        telemetry.connection(connected=False)
        telemetry.enabled(enabled=False)

    @property
    def configured(self) -> bool:
        """Whether there is a broker to publish to."""
        return self._broker is not None

    @property
    def ready(self) -> bool:
        """Whether a notification submitted now would be sent now."""
        return self.status.connected and not self._stopping and len(self._queue) < self._queue_limit

    async def start(self) -> None:
        """Begin to connect, and to reconnect for ever. Returns at once."""
        if self._broker is not None and not self._tasks:
            self._tasks = [
                asyncio.create_task(self._stay_connected(self._broker), name="mqtt-link"),
                asyncio.create_task(self._keep_house(), name="mqtt-housekeeping"),
            ]

    def submit(self, notification: Notification) -> Flight:
        """Put one notification on its way; it is on the wire when this returns, where a slot is free.

        Raises `QueueFull`. While shutting down its outcome is *unconfirmed* at once.
        """
        now = time.monotonic()  # not the loop's clock: uvloop's counts whole milliseconds
        flight = Flight(notification, now, now + self._ack_seconds, asyncio.get_running_loop().create_future())
        if self._stopping:
            self._finish(flight, Outcome(Status.UNCONFIRMED, "shutting down"))
        elif len(self._queue) >= self._queue_limit:
            raise QueueFull
        else:
            self._queue.append(flight)
            self._pump()
            if not self.status.connected:
                self._demand.set()
        return flight

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
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks = []
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self._became(connected=False, failure=ConnectionFailure("shut down"))

    # The link.

    async def _stay_connected(self, broker: Broker) -> None:
        failures = 0
        while True:
            begun_at = time.monotonic()
            if failures:
                self._telemetry.reconnect_attempt()
            lasted = False
            try:
                connection = await self._connect(broker)
                connected_at = time.monotonic()
                await self._until_lost(connection)
                lasted = time.monotonic() - connected_at >= LASTING_SECONDS
                failure = connection.why("connection lost")
            except ConnectionFailure as error:
                failure = error
            except Exception as error:  # noqa: BLE001 - without this task nobody would ever connect again
                logger.exception("mqtt link")
                failure = ConnectionFailure(f"{broker.url}: {error!r}")
            self._lost(failure)
            failures = 1 if lasted else failures + 1
            await self._back_off(failures, begun_at, refused=failure.refused)

    async def _back_off(self, failures: int, begun_at: float, *, refused: bool) -> None:
        delay_seconds = backoff_seconds(failures)
        if refused:  # the broker answered: more attempts would only fill its log
            await asyncio.sleep(delay_seconds)
            return
        self._demand.clear()
        if self._queue:
            self._demand.set()
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._demand.wait(), delay_seconds)
        await asyncio.sleep(max(0.0, min(DEMAND_SECONDS, delay_seconds) - (time.monotonic() - begun_at)))

    async def _connect(self, broker: Broker) -> Connection:
        """Return with the broker's CONNACK. Raises `ConnectionFailure`."""
        deadline = time.monotonic() + broker.connect_timeout_seconds
        connection = self._connection = await self._open(broker, deadline)
        self._changed.clear()
        self._fd = connection.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
        self._watch_writable(connection)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while not connection.answered:
                    await self._changed.wait()
                    self._changed.clear()
        if not connection.connected:
            raise connection.why("no answer to CONNECT in time")
        self._became(connected=True)
        self._progress_at = time.monotonic()
        self._pump()
        return connection

    async def _open(self, broker: Broker, deadline: float) -> Connection:
        """Return a connection whose CONNECT is on the wire. Raises `ConnectionFailure`."""
        if self._opening is not None:  # one thread at the most: the last one may still be in the resolver
            await asyncio.wait([self._opening], timeout=deadline - time.monotonic())
            if not self._opening.done():
                raise ConnectionFailure(f"{broker.url}: the name was not resolved in time")
        connection = Connection(broker, self._client_id, before_close=lambda: self._unregister(connection))
        opening = asyncio.get_running_loop().create_future()
        # paho's connect blocks for as long as TCP and TLS take: a thread for that, and for nothing after it.
        # A daemon, since a resolver that hangs must not hold up the end of the process.
        threading.Thread(
            target=_open,
            args=(connection, broker.connect_timeout_seconds, asyncio.get_running_loop(), opening),
            name="mqtt-open",
            daemon=True,
        ).start()
        self._opening = opening
        try:
            await asyncio.wait([opening], timeout=deadline - time.monotonic() + OPENING_MARGIN_SECONDS)
        finally:
            if not opening.done():  # it may succeed yet, and nobody will want it then
                opening.add_done_callback(lambda _: connection.discard())
        if not opening.done():
            raise ConnectionFailure(f"{broker.url}: the name was not resolved in time")
        if connection.closed:
            raise connection.why("connection lost")
        return connection

    async def _until_lost(self, connection: Connection) -> None:
        while not connection.closed:
            await self._changed.wait()
            self._changed.clear()

    def _lost(self, failure: ConnectionFailure) -> None:
        """Clear up after a connection; what is still in time goes back to the head of the queue."""
        if self._connection is not None:
            self._connection.discard()
            self._connection = None
        now = time.monotonic()
        in_flight, self._in_flight = list(self._in_flight.values()), {}
        self._became(connected=False, failure=failure)
        for flight in reversed(in_flight):
            if flight.deadline > now and not self._stopping:
                self._queue.appendleft(flight)
            else:
                self._finish(flight, Outcome(Status.UNCONFIRMED, failure.reason, failure.reason_code))

    def _became(self, *, connected: bool, failure: ConnectionFailure | None = None) -> None:
        self._telemetry.connection(connected=connected)
        self._telemetry.enabled(enabled=connected)
        self.status = LinkStatus(
            self.status.broker,
            connected,
            self.status.since if connected == self.status.connected else time.time(),
            failure.reason if failure else "",
            failure.reason_code if failure else None,
        )
        self._on_change(self.status)

    def _unregister(self, connection: Connection) -> None:
        """Forget the descriptor while it is still ours: another thread may get the same number at once."""
        # A connection that the loop does not watch may end in any thread.
        if connection is self._connection and self._fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            self._fd = -1

    # The messages.

    def _on_readable(self) -> None:
        connection = self._connection
        if connection is None:
            return
        was_connected = connection.connected
        connection.read()
        self._take_acks(connection)
        if connection.closed or not was_connected:
            self._changed.set()
        else:
            self._pump()

    def _on_writable(self) -> None:
        connection = self._connection
        if connection is None:
            return
        connection.write()
        self._take_acks(connection)
        if connection.closed:
            self._changed.set()
        elif not connection.wants_write:
            asyncio.get_running_loop().remove_writer(self._fd)
            self._pump()

    def _take_acks(self, connection: Connection) -> None:
        acks = connection.take_acks()
        if acks:
            self._progress_at = time.monotonic()
        for ack in acks:
            flight = self._in_flight.pop(ack.mid, None)
            if flight is not None:
                self._finish(flight, acknowledged(ack.reason_code, connection.qos))

    def _pump(self) -> None:
        """Fill the free slots from the queue."""
        connection = self._connection
        if connection is None or not connection.connected:
            return
        while self._queue and len(self._in_flight) < connection.window and not connection.wants_write:
            flight = self._queue.popleft()
            if flight.deadline <= time.monotonic():
                self._finish(flight, Outcome(Status.UNCONFIRMED, "withdrawn: not sent in time"))
            elif not connection.fits(flight.notification):
                self._finish(flight, too_large(connection))
            else:
                if not self._in_flight:
                    self._progress_at = time.monotonic()
                try:
                    self._in_flight[connection.send(flight.notification)] = flight
                except ConnectionFailure:
                    self._queue.appendleft(flight)
                    self._changed.set()
                    return
                if connection.qos == 0:
                    self._take_acks(connection)
        self._watch_writable(connection)

    def _watch_writable(self, connection: Connection) -> None:
        if connection.wants_write and not connection.closed:
            asyncio.get_running_loop().add_writer(self._fd, self._on_writable)

    def _finish(self, flight: Flight, outcome: Outcome) -> None:
        if flight.done.done():
            return
        self._telemetry.published(
            flight.notification.topic,
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
        while self._queue and self._queue[0].deadline <= now:
            reason = self.status.reason or "withdrawn: not sent in time"
            self._finish(self._queue.popleft(), Outcome(Status.UNCONFIRMED, reason, self.status.reason_code))
        connection = self._connection
        if connection is None or not connection.connected:
            return
        connection.tick()
        self._watch_writable(connection)
        oldest = next(iter(self._in_flight.values()), None)
        if oldest is not None and (
            now - self._progress_at > self._ack_seconds or now - oldest.begun_at > MAX_ACK_AGE * self._ack_seconds
        ):
            connection.failure = ConnectionFailure(
                f"{self.status.broker}: no acknowledgement within {self._ack_seconds:g} s"
            )
            connection.discard()
        if connection.closed:
            self._changed.set()


def _open(
    connection: Connection,
    timeout_seconds: float,
    loop: asyncio.AbstractEventLoop,
    done: asyncio.Future[None],
) -> None:
    """Thread: connect, and tell the loop; the failure stays in `connection`."""
    try:
        connection.open(timeout_seconds)
    except ConnectionFailure:
        pass  # it is in connection.failure
    except Exception as error:  # noqa: BLE001 - nobody else could see it
        connection.failure = ConnectionFailure(repr(error))
        connection.discard()
    try:
        loop.call_soon_threadsafe(done.set_result, None)
    except RuntimeError:  # the loop has ended meanwhile
        connection.discard()
