"""Hears devices' reports and presence on a connection of its own, which the broker keeps a session for."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from functions.mqtt.tls import TlsFileError, client_context
from functions.stored.errors import StoreUnavailableError
from functions.telemetry import logger
from infra.incoming import Received
from infra.subscriber import Subscriber, SubscriberError

if TYPE_CHECKING:
    from functions.fleet.standing import HeardBy, Hearing
    from functions.mqtt.broker import BrokerConfig

LOOK_SECONDS = 2.0  # at the broker's settings, and at who leads
SESSION_SECONDS = 24 * 3600
"""So long the broker keeps reports for a host that is down: as many as its own limit lets it."""
STOP_SECONDS = 2.0


class ReportListener:
    """One connection at a time, to the broker that is in force; of several hosts on one database the leader's alone.

    All of them would use one client id, so that a new leader takes over the session with all that waits in it.
    """

    def __init__(
        self,
        topic_prefix: str,
        hear: Callable[[Sequence[Received]], bool],
        *,
        broker: Callable[[], BrokerConfig | None],
        leads: Callable[[], bool],
        hearing: Hearing,
        kinds: Sequence[str] = ("report", "status"),
    ) -> None:
        """`hear`: see `Subscriber`'s `on_batch`. `leads` may block for as long as the database does.

        `hearing` is kept up to date. `kinds` are the last levels of the topics below each device's.
        """
        self._topics = tuple(f"{topic_prefix}/devices/+/{kind}" for kind in kinds)
        self._client_id = f"bucketbell-fleet-{topic_prefix.replace('/', '-')}"
        self._hear = hear
        self._broker = broker
        self._leads = leads
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None
        self._present: BrokerConfig | None = None
        self._connections = 0
        self._hearing = hearing
        self._note("nobody", "the host has just been started")

    def start(self) -> None:
        """Begin, in a thread of its own."""
        self._thread = threading.Thread(target=self._run, name="fleet-listener", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect; the broker keeps the session. Bounded."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    @property
    def place(self) -> tuple[BrokerConfig | None, int]:
        """The broker that is listened to, and the number of the connection; None while nothing is heard."""
        return self._present if self._hearing.by == "this_process" else None, self._connections

    def _run(self) -> None:
        subscriber: Subscriber | None = None
        while True:
            wanted = self._wanted(self._present)
            if wanted != self._present:
                if subscriber is not None:
                    subscriber.stop()
                if self._hearing.by == "this_process":
                    self._note("nobody", "it connects to the broker")
                self._present = wanted
                subscriber = None if wanted is None else self._begin(wanted)
                self._present = wanted if subscriber is not None else None
            if self._stopped.wait(LOOK_SECONDS):
                break
        if subscriber is not None:
            subscriber.stop()

    def _wanted(self, present: BrokerConfig | None) -> BrokerConfig | None:
        try:
            leads = self._leads()
        except StoreUnavailableError as error:
            if present is None:
                self._note("nobody", str(error))
            return present  # who leads is not known: two leaders would push each other out
        broker = self._broker() if leads else None
        if not leads:
            self._note("another")
        elif broker is None:
            self._note("nobody", "no broker is configured")
        return broker

    def _begin(self, broker: BrokerConfig) -> Subscriber | None:
        try:
            subscriber = subscriber_to(
                broker,
                self._topics,
                qos=1,
                client_id=self._client_id,
                session_expiry_seconds=SESSION_SECONDS,
                on_batch=self._hear,
                on_state=self._changed,
            )
        except (TlsFileError, OSError) as error:
            self._changed(SubscriberError(str(error)))
            return None
        subscriber.begin(broker.connect_timeout_seconds)
        return subscriber

    def _changed(self, error: SubscriberError | None) -> None:
        self._connections += error is None
        if error is None and self._note("this_process"):
            logger.info("listening to devices' reports", extra={"topics": self._topics})
        elif error is not None and self._note("nobody", str(error)):
            logger.warning("devices' reports are not heard", extra={"detail": str(error)})

    def _note(self, by: HeardBy, detail: str = "") -> bool:
        """Whether that is new."""
        before = (self._hearing.by, self._hearing.detail)
        self._hearing.by, self._hearing.detail = by, detail
        return before != (by, detail)


def subscriber_to(broker: BrokerConfig, topics: Sequence[str], **more: Any) -> Subscriber:  # noqa: ANN401 - see `Subscriber`
    """A subscriber that connects as the publisher does. Raises `TlsFileError`, OSError."""
    return Subscriber(
        broker.url,
        topics,
        username=broker.username,
        password=None if broker.password is None else broker.password.get_secret_value(),
        context=client_context(broker) if broker.tls else None,
        protocol=broker.protocol,
        **more,
    )
