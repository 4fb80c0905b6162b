"""The warm MQTT publisher without threads, driven inline: bytes move only inside a call, so a freeze costs nothing.

The host drives the same `Connection` from its event loop instead (`infra.host.mqtt.publisher`).
"""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from functions.backoff import LONGEST_SECONDS, backoff_seconds
from functions.mqtt.audience import Audience
from functions.mqtt.broker import new_client_id
from functions.mqtt.connection import BrokerConnectionError, Connection
from functions.mqtt.message import newest_of_each
from functions.mqtt.outcome import Outcome, Status, acknowledged, not_sent, too_large
from functions.mqtt.polling import read_waiting, wait
from functions.mqtt.suspects import Suspects, likeliest_last

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from functions.mqtt.broker import BrokerConfig
    from functions.mqtt.message import Message
    from functions.telemetry import Telemetry

WARM_UP_SECONDS = 1.0  # a broker that is down must not take up the start of a process
CLOSE_SECONDS = 2.0
MAX_KEEPALIVES = 1.5  # after so many of them a broker ends a silent connection (MQTT 5 §3.1.2.10)


class InlinePublisher:
    """One warm connection, driven inside `publish`. Not for use from two threads at once.

    Without a broker every call is a silent no-op that returns no outcomes.
    """

    def __init__(self, broker: BrokerConfig | None, telemetry: Telemetry) -> None:
        """Prepare; nothing is connected before `warm_up` or the first `publish`."""
        self._broker = broker
        self._telemetry = telemetry
        self._connection: Connection | None = None
        self._client_id = ""
        self._process_id = 0
        self._attempts = 0
        self._refusals = 0
        self._refused_until = 0.0
        self._refusal: BrokerConnectionError | None = None
        self._closed = False
        # Wall clocks: the monotonic one may stand still while Lambda has the process frozen.
        self._suspects = Suspects()
        self._audience = Audience()
        self._accepted_over: Connection | None = None
        self._alive_at = 0.0
        if broker is None:
            telemetry.enabled(enabled=False)

    @property
    def enabled(self) -> bool:
        """Whether the broker has accepted us and the link has not been seen to fail since."""
        return self._connection is not None and self._connection.connected

    @property
    def attempts(self) -> int:
        """How often it was tried to connect, the first time included."""
        return self._attempts

    def warm_up(self) -> None:
        """Begin to connect without waiting for the broker's CONNACK. A failure is kept for `publish` to meet."""
        if self._broker is None or self._connection is not None or self._closed:
            return
        try:
            self._open(WARM_UP_SECONDS)
        except BrokerConnectionError:
            self._drop()

    def publish(self, messages: Sequence[Message], deadline: float) -> list[Outcome]:
        """Publish all, pipelined, and return one outcome for each, in order, by `deadline` (`time.monotonic`).

        A connection lost on the way is replaced, and what was on its way goes out once more: alone and last, since it
        may be what the broker closes over. At the deadline the connection is discarded, so that nothing is sent later
        behind the source's retry.
        """
        if self._broker is None or not messages:
            return []
        newest = newest_of_each(messages)
        batch = _Batch(newest.values(), self._suspects, self._audience)
        failure = BrokerConnectionError("shut down") if self._closed else self._deliver(batch, deadline)
        for message in batch.unresolved():
            reason = failure.reason if failure else "not acknowledged in time"
            reason_code = failure.reason_code if failure else None
            batch.resolve(message, Outcome(Status.UNCONFIRMED, reason, reason_code))
        for message, outcome in batch.outcomes.items():
            self._telemetry.published(
                message.metric_topic,
                success=outcome.success,
                no_subscribers=outcome.status is Status.NO_SUBSCRIBERS,
                duration_seconds=batch.durations[message],
            )
        return [batch.outcomes[newest[one.topic, one.payload]] for one in messages]

    def close(self) -> None:
        """Disconnect for good. Idempotent, bounded by `CLOSE_SECONDS`, and nothing is in flight between calls."""
        self._closed = True
        connection, self._connection = self._connection, None
        if connection is not None and self._process_id == os.getpid():
            deadline = time.monotonic() + CLOSE_SECONDS
            while connection.wants_write and not connection.closed and time.monotonic() < deadline:
                wait(connection, deadline)
            connection.close()
        if self._broker is not None:
            self._state(connected=False)

    def _deliver(self, batch: _Batch, deadline: float) -> BrokerConnectionError | None:
        """Return None when every message is resolved or the deadline has passed, else why the connection failed."""
        replaced = False
        while batch.unresolved():
            try:
                connection = self._ready(deadline)
            except BrokerConnectionError as failure:
                return failure
            ready_at, left = time.monotonic(), len(batch.unresolved())
            try:
                batch.exchange(connection, deadline)
            except BrokerConnectionError as failure:
                self._alive_at = time.time()
                progress = batch.lost(failure, time.monotonic() - ready_at) or len(batch.unresolved()) < left
                if time.monotonic() >= deadline or (replaced and not progress):
                    return failure
                replaced = True
            else:
                return None
            finally:
                # Also when a signal ends the process in here: `close` must not send what nobody waits for.
                if batch.unresolved() or connection.closed:
                    self._drop()
        return None

    def _ready(self, deadline: float) -> Connection:
        """Return a connection that the broker has accepted and that was alive a moment ago."""
        connection = self._connection
        if connection is not None and self._process_id != os.getpid():
            connection = self._connection = None  # after a fork the socket is the parent's
        if connection is not None:
            # The wall clock, as above. And before reading: what waits here may have come before the freeze.
            self._alive_at = connection.last_traffic_at
            idle_seconds = time.time() - self._alive_at
            read_waiting(connection)
            if connection.connected and idle_seconds > connection.keepalive_seconds / 2:
                self._prove_alive(connection, deadline)
            if connection.closed and not (connection.failure and connection.failure.refused):
                self._drop()
                connection = None
        if connection is None:
            if self._refusal and 0 < self._refused_until - time.time() <= LONGEST_SECONDS:
                raise self._refusal.with_traceback(None)  # each raise would add to it
            connect_seconds = self._broker.connect_timeout_seconds if self._broker else 0.0
            connection = self._open(min(connect_seconds, max(0.001, deadline - time.monotonic())))
        return self._accepted(connection, deadline)

    def _prove_alive(self, connection: Connection, deadline: float) -> None:
        """Ask a link that was idle for long whether it lives: half of the time left goes to the answer at most."""
        now = time.monotonic()
        until = now + (deadline - now) / 2
        connection.ping()
        while connection.ping_unanswered and not connection.closed and time.monotonic() < until:
            wait(connection, until)
        if connection.ping_unanswered:
            connection.discard()

    def _open(self, timeout_seconds: float) -> Connection:
        broker = self._broker
        if broker is None:
            raise BrokerConnectionError("no broker is configured")
        if self._process_id != os.getpid():
            self._process_id = os.getpid()
            self._client_id = new_client_id(broker.client_id_prefix)
        self._attempts += 1
        if self._attempts > 1:
            self._telemetry.reconnect_attempt()
        connection = self._connection = Connection(broker, self._client_id)
        try:
            connection.open(timeout_seconds)
        except BrokerConnectionError:
            self._drop()
            raise
        return connection

    def _accepted(self, connection: Connection, deadline: float) -> Connection:
        """Wait for CONNACK. Raises `BrokerConnectionError` with the broker's reason."""
        if not connection.connected:
            connect_seconds = self._broker.connect_timeout_seconds if self._broker else 0.0
            until = min(deadline, time.monotonic() + connect_seconds)
            while not connection.answered and time.monotonic() < until:
                wait(connection, until)
        if connection.connected:
            # After a long silence it was our freeze that cost us the last connection, not the broker's restart.
            silent_seconds = time.time() - self._alive_at
            if connection is not self._accepted_over and silent_seconds < MAX_KEEPALIVES * connection.keepalive_seconds:
                self._audience.connected(time.time())
            self._accepted_over = connection
            self._refusals, self._refusal = 0, None
            self._state(connected=True)
            return connection
        failure = connection.unanswered()
        if failure.refused:
            self._refusals += 1
            self._refusal = failure
            self._refused_until = time.time() + backoff_seconds(self._refusals)
        self._drop()
        raise failure

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.discard()
            self._connection = None
        self._state(connected=False)

    def _state(self, *, connected: bool) -> None:
        self._telemetry.connection(connected=connected)
        self._telemetry.enabled(enabled=connected)


class _Batch:
    """The messages of one call, and how far each has come."""

    def __init__(self, messages: Iterable[Message], suspects: Suspects, audience: Audience) -> None:
        self._messages = tuple(messages)
        self._suspects = suspects
        self._audience = audience
        self._begun_at: dict[Message, float] = {}
        self._call_at = time.monotonic()
        self._in_flight: dict[int, Message] = {}
        self._lone: dict[Message, bool] = {}  # the suspects, and whether they were lost in this call
        self.outcomes: dict[Message, Outcome] = {}
        self.durations: dict[Message, float] = {}

    def unresolved(self) -> list[Message]:
        return [message for message in self._messages if message not in self.outcomes]

    def resolve(self, message: Message, outcome: Outcome) -> None:
        self.outcomes[message] = outcome
        self.durations[message] = time.monotonic() - self._begun_at.get(message, self._call_at)

    def exchange(self, connection: Connection, deadline: float) -> None:
        """Send what is unresolved, a window at a time, and collect the answers until all are in or `deadline`.

        Suspects go last, and each alone. Raises `BrokerConnectionError` when the connection is lost.
        """
        waiting, suspects = self._sorted()
        while waiting or suspects or self._in_flight:
            if connection.closed:
                raise connection.why("connection lost")
            if time.monotonic() >= deadline:
                return
            if suspects and not waiting and not self._in_flight:
                waiting.append(suspects.pop())
            while waiting and len(self._in_flight) < connection.window and not connection.wants_write:
                message = waiting.pop()
                mid = connection.send(message)
                if mid is None:
                    self.resolve(message, too_large(connection.maximum_packet_size))
                else:
                    self._begun_at.setdefault(message, time.monotonic())
                    self._in_flight[mid] = message
            connection.flush()
            # At QoS 0 sending was all. Otherwise wait, and collect before sending more: should that fail, what has been
            # acknowledged must not go out again.
            if not self._collect(connection) and (self._in_flight or connection.wants_write):
                wait(connection, deadline)
                self._collect(connection)

    def lost(self, failure: BrokerConnectionError, age_seconds: float) -> bool:
        """Ask what is to blame for the end of the connection, and return whether anything may be.

        What is lost twice in one call is left to the source's retry.
        """
        in_flight, self._in_flight = list(self._in_flight.values()), {}
        conviction, is_open = self._suspects.lost(in_flight, age_seconds, time.time(), failure.reason_code)
        if conviction is not None:
            self.resolve(in_flight[0], not_sent(conviction))
        for message in likeliest_last(in_flight) if is_open else ():
            if self._lone.get(message) and message not in self.outcomes:
                self.resolve(message, Outcome(Status.UNCONFIRMED, failure.reason, failure.reason_code))
            self._lone[message] = True
        return is_open

    def _sorted(self) -> tuple[list[Message], list[Message]]:
        """What may go together, and the suspects; the next one of either comes last."""
        for message in self.unresolved():
            if conviction := self._suspects.conviction(message, time.time()):
                self.resolve(message, not_sent(conviction))
            elif self._suspects.suspected(message):
                self._lone[message] = self._lone.pop(message, False)  # behind those that were lost by chance
        suspects = [message for message in self._lone if message not in self.outcomes]
        return [message for message in self.unresolved() if message not in self._lone][::-1], suspects[::-1]

    def _collect(self, connection: Connection) -> int:
        """Resolve what has been acknowledged, and return how many packets that were."""
        acks = connection.take_acks()
        for ack in acks:
            if (message := self._in_flight.pop(ack.mid, None)) is None:
                continue
            outcome = acknowledged(ack.reason_code, ack.qos, ack.said)
            self._suspects.answered(message, ack.reason_code if outcome.forbidden else None)
            if self._audience.doubts(message, ack.reason_code, time.time()):
                words = "nobody is subscribed yet, moments after the connection was lost"
                outcome = Outcome(Status.UNCONFIRMED, words, ack.reason_code)
            self.resolve(message, outcome)
        return len(acks)
