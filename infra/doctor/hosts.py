"""Hosts that do not know of each other: the broker has heard of one that the database has not."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from functions.cameras.discovery import availability_topic
from functions.mqtt.tls import client_context
from functions.stored.errors import StoreUnavailableError
from functions.stored.store import ConfigStore
from infra.doctor.broker import LOGIN
from infra.doctor.checks import Checkup, NotCheckedError, WrongError
from infra.doctor.database import STORED
from infra.host.replicas import GONE_SECONDS

if TYPE_CHECKING:
    from functions.mqtt.broker import BrokerConfig
    from infra.doctor.broker import BrokerLeg
    from infra.doctor.database import DatabaseLeg

HOSTS = "other hosts"

LISTEN_SECONDS = 0.5  # what a broker keeps comes at once


class HostsLeg:
    """All hosts at this broker, as far as they show themselves."""

    def __init__(self, database: DatabaseLeg, broker: BrokerLeg) -> None:
        """Nothing is asked yet."""
        self._database = database
        self._broker = broker

    def checks(self) -> tuple[Checkup, ...]:
        """One, where the hosts have a database: without it, none says that it is there."""
        if self._database.settings.database_url is None:
            return ()
        return (Checkup(HOSTS, self._hosts, (STORED, LOGIN)),)

    def count(self) -> int:
        """How many hosts share this database; 0 where that is not known."""
        try:
            return len(self._ours())
        except StoreUnavailableError:
            return 0

    def _ours(self) -> set[str]:
        """The hosts that share this database, by their names. Raises StoreUnavailableError."""
        store = ConfigStore.of(self._database.settings)
        since = datetime.now(UTC) - timedelta(seconds=GONE_SECONDS)
        recorded = () if store is None else store.recorded()
        return {one.process for one in recorded if one.scope == "host" and one.recorded_at > since}

    def _hosts(self) -> str:
        stored, broker = self._database.stored, self._broker.broker
        if stored is None or broker is None or not stored.config.discovery_enabled:
            raise NotCheckedError("hosts tell the broker of themselves only where discovery is on")
        try:
            ours = self._ours()
        except StoreUnavailableError as error:
            raise NotCheckedError(str(error)) from None
        prefix = stored.config.topic_prefix
        known = {availability_topic(prefix, process) for process in ours}
        strangers = sorted(_online(broker, f"{prefix}/bucketbell/+/availability") - known)
        if strangers:
            raise WrongError(
                f"A host is online at the broker and does not use this database: {', '.join(strangers)}. Hosts that "
                "share nothing announce each upload once each.",
                "Give all hosts one DATABASE_URL of PostgreSQL, or stop all but one. If that host is long gone, remove "
                "what the broker keeps on that topic: `mosquitto_pub -r -n -t TOPIC`.",
            )
        return f"{len(ours)} in this database, and no other at the broker"


def _online(broker: BrokerConfig, topic_filter: str) -> set[str]:
    """The topics on which a host says that it is online."""
    from infra.subscriber import Subscriber, SubscriberError  # noqa: PLC0415 - only for this check

    heard = Subscriber(
        broker.url,
        [topic_filter],
        username=broker.username,
        password=broker.password.get_secret_value() if broker.password else None,
        context=client_context(broker) if broker.tls else None,
        protocol=broker.protocol,
    )
    try:
        with heard:
            return {message.topic for message in heard.silence(LISTEN_SECONDS) if message.payload == b"online"}
    except SubscriberError as error:
        raise NotCheckedError(f"the broker lets nobody listen to {topic_filter}: {error}") from None
