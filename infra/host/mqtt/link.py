"""The host's link to the broker: connects, and reconnects for ever, on the event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from functions.admin.probe import NO_RETAINED
from functions.backoff import backoff_seconds
from functions.mqtt.broker import BrokerConfig, new_client_id
from functions.mqtt.connection import RETAIN_NOT_SUPPORTED, Ack, BrokerConnectionError, Connection
from functions.mqtt.message import Message
from functions.telemetry import Telemetry, logger
from infra.host.mqtt.certificate import follow
from infra.host.threads import in_thread

LASTING_SECONDS = 10.0  # a connection that held for this long ends a row of failures
DEMAND_SECONDS = 1.0  # somebody waits for the broker: try this soon, whatever the back-off says
OPENING_MARGIN_SECONDS = 0.5  # for the opening thread to tell of its own time-out

# Reasons that are nobody's fault.
SHUT_DOWN = "shut down"
CHANGED = "the broker's settings have changed"
NOT_READ = "the stored settings are not read yet"
NO_TROUBLE = frozenset({SHUT_DOWN, CHANGED, NOT_READ})


@dataclass(frozen=True, slots=True)
class LinkError:
    """Why the link was lost, or not made; `at` is wall-clock seconds."""

    reason: str
    reason_code: int | None
    at: float


@dataclass(frozen=True, slots=True)
class LinkStatus:
    """The link to the broker, as last seen. `since` is wall-clock seconds; `broker` holds no credentials."""

    broker: str | None
    connected: bool
    since: float
    reason: str = ""
    reason_code: int | None = None
    last_connected_at: float | None = None
    last_error: LinkError | None = None
    """The last one, also while the link is well again."""
    reconnect_attempts: int = 0
    certificate_expires_at: float | None = None
    """Until when the broker's certificate is valid, as last seen; None without TLS."""

    @property
    def certificate(self) -> tuple[str, float] | None:
        """The broker, and until when its certificate is valid, where that is known."""
        if self.broker is None or self.certificate_expires_at is None:
            return None
        return self.broker, self.certificate_expires_at


class LinkUser(Protocol):
    """Whoever sends over the link. Called on the event loop; must not raise."""

    def link_made(self) -> None:
        """The broker has accepted us."""

    def will_refused(self, failure: BrokerConnectionError) -> None:
        """The broker accepts us without our last will; with it, it did not."""

    def link_moved(self) -> None:
        """Acknowledgements may have come, or there is room to write again."""

    def link_lost(self, failure: BrokerConnectionError) -> None:
        """The connection is over, or an attempt has failed; nothing sent before will be acknowledged."""

    def waiting(self) -> bool:
        """Whether something waits to be sent."""

    def goodbye_messages(self) -> Sequence[Message]:
        """What to say before DISCONNECT."""


class Link:
    """At most one connection at a time, under one client id. Belongs to one event loop, as does every call."""

    def __init__(
        self, broker: BrokerConfig | None, telemetry: Telemetry, user: LinkUser, on_change: Callable[[LinkStatus], None]
    ) -> None:
        """`on_change` hears of every connect, disconnect and failed attempt. Nothing is connected before `start`."""
        self._broker = broker
        self._telemetry = telemetry
        self._user = user
        self._on_change = on_change
        self._client_id = new_client_id(broker.client_id_prefix) if broker else ""
        self.started = False
        self._opened: Connection | None = None
        self._fd = -1
        self._changed = asyncio.Event()
        self._demand = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._opening: asyncio.Future[None] | None = None
        self._without_will: BrokerConnectionError | None = None  # why the next attempt leaves it out
        self.status = LinkStatus(broker.url if broker else None, connected=False, since=time.time(), reason="starting")
        telemetry.connection(connected=False)
        telemetry.enabled(enabled=False)

    @property
    def connection(self) -> Connection | None:
        """The connection to send over: None unless the broker has accepted us."""
        return self._opened if self._opened is not None and self._opened.connected else None

    def take_acks(self) -> list[Ack]:
        """Return what has been acknowledged since the last call, also just before the connection ended."""
        return self._opened.take_acks() if self._opened is not None else []

    @property
    def broker(self) -> BrokerConfig | None:
        """Where it connects to."""
        return self._broker

    def start(self) -> None:
        """Begin to connect. Idempotent."""
        self.started = True
        if self._broker is not None and self._task is None:
            self._task = asyncio.create_task(self._stay_connected(self._broker), name="mqtt-link")

    async def stop(self) -> None:
        """Say DISCONNECT and end. Idempotent."""
        task = self._task
        if self._leave():
            self._became(connected=False, failure=BrokerConnectionError(SHUT_DOWN))
        if task is not None:
            await asyncio.gather(task, return_exceptions=True)

    def use(self, broker: BrokerConfig | None, *, otherwise: str = CHANGED) -> None:
        """Leave the broker, and go to this one as a new client; None: to nobody, and `otherwise` says why."""
        self._leave()
        self._broker = broker
        self._without_will = None
        self._client_id = new_client_id(broker.client_id_prefix) if broker else ""
        changed = BrokerConnectionError(CHANGED if broker else otherwise)
        self.status = replace(
            self.status, broker=broker.url if broker else None, reconnect_attempts=0, certificate_expires_at=None
        )
        self._became(connected=False, failure=changed)
        self._user.link_lost(changed)
        if self.started:
            self.start()

    def demand(self) -> None:
        """Somebody waits: do not sit out a long back-off."""
        if not self.status.connected:
            self._demand.set()

    def flush(self) -> None:
        """Put on the wire what was handed to the connection."""
        connection = self._opened
        if connection is not None:
            with contextlib.suppress(BrokerConnectionError):  # it is in connection.failure
                connection.flush()
            self._look_after(connection)

    def tick(self) -> None:
        """Keep the link alive, and notice a dead one."""
        if self.connection is not None:
            self.connection.tick()
        if self._opened is not None:
            self._look_after(self._opened)

    @property
    def due_at(self) -> float:
        """When `tick` has something to do, unless there is traffic before; `time.monotonic`."""
        return self.connection.due_at if self.connection is not None else math.inf

    def give_up(self, reason: str) -> None:
        """Discard the connection, and begin anew."""
        connection = self._opened
        if connection is not None:
            connection.failure = connection.why(reason)
            connection.discard()
            self._changed.set()

    def _leave(self) -> bool:
        """Say the last words and DISCONNECT, and end the task; whether there was a connection."""
        if self._task is not None:
            self._task.cancel()
            self._task = None
        self._opening = None  # whoever opens for a task that was cancelled discards what it has opened
        if self._opened is None:
            return False
        if self._opened.connected:
            with contextlib.suppress(BrokerConnectionError):
                for message in self._user.goodbye_messages():
                    self._opened.send(message)
                self._opened.flush()
        self._opened.close()
        self._opened = None
        return True

    async def _stay_connected(self, broker: BrokerConfig) -> None:
        failures = 0
        while True:
            begun_at = time.monotonic()
            if failures:
                self._telemetry.reconnect_attempt()
                self.status = replace(self.status, reconnect_attempts=self.status.reconnect_attempts + 1)
            lasted = False
            try:
                connection = await self._connect(broker)
                connected_at = time.monotonic()
                await self._until_lost(broker, connection)
                lasted = time.monotonic() - connected_at >= LASTING_SECONDS
                failure = connection.why("connection lost")
            except BrokerConnectionError as error:
                failure = error
                self._suspect_will(broker, error)
            except Exception as error:  # noqa: BLE001 - without this task nobody would ever connect again
                logger.exception("mqtt link")
                failure = BrokerConnectionError(f"{broker.url}: {error!r}")
            if self._opened is not None:
                self._opened.discard()
                self._opened = None
            self._became(connected=False, failure=failure)
            self._user.link_lost(failure)
            failures = 1 if lasted else failures + 1
            await self._back_off(failures, begun_at, refused=failure.refused)

    def _suspect_will(self, broker: BrokerConfig, failure: BrokerConnectionError) -> None:
        """Where it may be our last will that the broker does not want: try without it, and with it after that."""
        if broker.availability_topic is not None and (failure.refused or failure.cause == "closed"):
            self._without_will = failure if self._without_will is None else None

    async def _back_off(self, failures: int, begun_at: float, *, refused: bool) -> None:
        delay_seconds = backoff_seconds(failures)
        if refused:  # the broker answered: more attempts would only fill its log
            await asyncio.sleep(delay_seconds)
            return
        self._demand.clear()
        if self._user.waiting():
            self._demand.set()
        with contextlib.suppress(TimeoutError):
            # Not `wait_for`, which loses a cancellation that comes together with what it waits for.
            async with asyncio.timeout(delay_seconds):
                await self._demand.wait()
        await asyncio.sleep(max(0.0, min(DEMAND_SECONDS, delay_seconds) - (time.monotonic() - begun_at)))

    async def _connect(self, broker: BrokerConfig) -> Connection:
        """Return with the broker's CONNACK. Raises `BrokerConnectionError`."""
        deadline = time.monotonic() + broker.connect_timeout_seconds
        connection = self._opened = await self._open(broker, deadline)
        self._changed.clear()
        self._fd = connection.fileno()
        asyncio.get_running_loop().add_reader(self._fd, self._on_readable)
        self._look_after(connection)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, deadline - time.monotonic())):
                while not connection.answered:
                    await self._changed.wait()
                    self._changed.clear()
        if not connection.connected:
            raise connection.unanswered()
        self._became(connected=True)
        if self._without_will is not None:
            connection.retain_available &= self._without_will.reason_code != RETAIN_NOT_SUPPORTED
            self._user.will_refused(self._without_will)
        elif broker.availability_topic is not None and not connection.retain_available:
            self._user.will_refused(BrokerConnectionError(NO_RETAINED))
        self._user.link_made()
        return connection

    async def _open(self, broker: BrokerConfig, deadline: float) -> Connection:
        """Return a connection whose CONNECT is on the wire. Raises `BrokerConnectionError`."""
        if self._opening is not None:  # one thread at the most: the last one may still be in the resolver
            await asyncio.wait([self._opening], timeout=deadline - time.monotonic())
            if not self._opening.done():
                raise BrokerConnectionError(f"{broker.url}: the name was not resolved in time")
        if self._without_will is not None:
            broker = replace(broker, availability_topic=None)
        connection = Connection(broker, self._client_id, before_close=lambda: self._unregister(connection))
        # paho's connect blocks for as long as TCP and TLS take: a thread for that, and for nothing after it.
        self._opening = opening = in_thread(lambda: _open(connection, broker.connect_timeout_seconds), "mqtt-open")
        try:
            await asyncio.wait([opening], timeout=deadline - time.monotonic() + OPENING_MARGIN_SECONDS)
        finally:
            if not opening.done():  # it may succeed yet, and nobody will want it then
                opening.add_done_callback(lambda _: connection.discard())
        if not opening.done():
            raise BrokerConnectionError(f"{broker.url}: the name was not resolved in time")
        if connection.closed:
            raise connection.why("connection lost")
        self._saw_certificate(connection.certificate_expires_at)
        return connection

    async def _until_lost(self, broker: BrokerConfig, connection: Connection) -> None:
        following = follow(broker, connection.certificate_expires_at, self._saw_certificate)
        certificate = asyncio.create_task(following, name="mqtt-certificate")
        try:
            while not connection.closed:
                await self._changed.wait()
                self._changed.clear()
        finally:
            certificate.cancel()
            await asyncio.gather(certificate, return_exceptions=True)

    def _saw_certificate(self, expires_at: float | None) -> None:
        self.status = replace(self.status, certificate_expires_at=expires_at)

    def _became(self, *, connected: bool, failure: BrokerConnectionError | None = None) -> None:
        self._telemetry.connection(connected=connected)
        self._telemetry.enabled(enabled=connected)
        now = time.time()
        reason, reason_code = (failure.reason, failure.reason_code) if failure else ("", None)
        is_error = failure is not None and reason not in NO_TROUBLE
        self.status = replace(
            self.status,
            connected=connected,
            since=self.status.since if connected == self.status.connected else now,
            reason=reason,
            reason_code=reason_code,
            last_connected_at=now if connected else self.status.last_connected_at,
            last_error=LinkError(reason, reason_code, now) if is_error else self.status.last_error,
        )
        self._on_change(self.status)

    def _on_readable(self) -> None:
        connection = self._opened
        if connection is not None:
            was_accepted = connection.connected
            connection.read()
            if not was_accepted:
                self._changed.set()
            self._look_after(connection)
            if was_accepted:
                self._user.link_moved()

    def _on_writable(self) -> None:
        connection = self._opened
        if connection is not None:
            connection.write()
            if not connection.wants_write and not connection.closed:
                asyncio.get_running_loop().remove_writer(self._fd)
            self._look_after(connection)
            self._user.link_moved()

    def _look_after(self, connection: Connection) -> None:
        """Have the loop watch for room to write where packets wait for it, and notice the end."""
        if connection.closed:
            self._changed.set()
        elif connection.wants_write:
            asyncio.get_running_loop().add_writer(self._fd, self._on_writable)

    def _unregister(self, connection: Connection) -> None:
        """Forget the descriptor while it is still ours: another thread may get the same number at once."""
        # A connection that the loop does not watch may end in any thread.
        if connection is self._opened and self._fd >= 0:
            loop = asyncio.get_running_loop()
            loop.remove_reader(self._fd)
            loop.remove_writer(self._fd)
            self._fd = -1


def _open(connection: Connection, timeout_seconds: float) -> None:
    """Thread: connect; the failure stays in `connection`."""
    try:
        connection.open(timeout_seconds)
    except BrokerConnectionError:
        pass  # it is in connection.failure
    except Exception as error:  # noqa: BLE001 - nobody else could see it
        connection.failure = BrokerConnectionError(repr(error))
        connection.discard()
