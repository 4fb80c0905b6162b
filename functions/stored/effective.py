"""Tells which broker is the effective one, and where cameras' events go: as stored, or else as the environment says."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from functions.cameras.detections import CameraTopics, addressed
from functions.cameras.discovery import Cameras, discovery, removed
from functions.cameras.message import Camera, CameraMessage, Sighting
from functions.events.routes import Unread
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.settings.reach import Targets
from functions.stored.errors import CredentialsUnreadableError, StoreUnavailableError
from functions.stored.store import ConfigStore, ProcessStatus
from functions.telemetry import logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import SecretStr

    from functions.mqtt.outcome import Outcome
    from functions.settings import Settings
    from functions.stored.model import MqttConfig
    from functions.stored.store import Stored

LOOK_SECONDS = 30.0  # a change reaches the other processes within this
RETRY_SECONDS = 1.0  # while nothing is known
GOES_ON = "the stored settings cannot be read; the last good ones stay"


def broker_of(settings: Settings, config: MqttConfig, password: SecretStr | None) -> BrokerConfig:
    """The broker of `config`; certificates, protocol and deadlines are the environment's."""
    broker = BrokerConfig.at(
        config.broker_host,
        config.broker_port,
        settings,
        tls=config.use_tls,
        username=config.username,
        password=password,
    )
    return replace(broker, targets=Targets.parse(settings.mqtt_test_allowed_hosts))


def effective_broker(settings: Settings, stored: Stored | None) -> BrokerConfig | None:
    """The broker to publish to, None where nothing is to be published. Raises CredentialsUnreadableError."""
    if stored is None:
        return BrokerConfig.of(settings)
    if not stored.config.enabled:
        return None
    if not stored.credentials_readable:
        raise CredentialsUnreadableError
    return broker_of(settings, stored.config, stored.password)


def camera_topics(settings: Settings, stored: Stored | None) -> CameraTopics:
    """Where cameras' events go, and how."""
    if stored is None:
        return CameraTopics.of(settings)
    return CameraTopics(stored.config.topic_prefix, stored.config.qos, stored.config.retain_messages)


def still_known(stored: Stored | None, known: Stored | None) -> Stored | None:
    """Return `stored`, with its password where no key reads that any more and it is `known`.

    Keys are rotated without a change of settings: a connected process need not disconnect.
    """
    if stored is None or known is None or stored.credentials_readable:
        return stored
    again = replace(stored, password=known.password, credentials_readable=known.credentials_readable)
    return again if again == known else stored


def announcement(config: MqttConfig, camera: Camera, availability_topics: Sequence[str] = ()) -> Message:
    """What Home Assistant is told of `camera`; while discovery is off, that it does not exist."""
    if not config.discovery_enabled:
        return removed(camera.camera_id, config.discovery_prefix, qos=config.qos)
    return discovery(
        camera,
        topic_prefix=config.topic_prefix,
        discovery_prefix=config.discovery_prefix,
        qos=config.qos,
        retained=config.retain_messages,
        availability_topics=availability_topics,
    )


class StoredSettingsReader:
    """The effective broker of a function's process, which has no thread to look it up: it looks when it is called.

    Not for use from two threads at once.
    """

    def __init__(self, settings: Settings, store: ConfigStore) -> None:
        """Nothing is looked up yet."""
        self.broker: BrokerConfig | None = None
        self.topics = CameraTopics.of(settings)
        self.problem = "the stored settings are not read yet"
        """Why the broker is not known or cannot be used; then nothing is confirmed. "" if all is well."""
        self.process = f"{socket.gethostname()}:{os.getpid()}"
        self._settings = settings
        self._store = store
        self._stored: Stored | None = None
        self._cameras = Cameras()
        self._looked_at = 0.0
        self._began_at = datetime.now(UTC)
        self._connected_at: datetime | None = None
        self._error: tuple[str, int | None, datetime] | None = None
        self._published = 0
        self._last_word: tuple[bool, bool, BrokerConfig | None] | None = None
        self._recorded_at = 0.0

    def look(self) -> bool:
        """Look up what is effective, if the last look is long enough ago; whether the broker is another one now."""
        # The wall clock: the monotonic one may stand still while Lambda has the process frozen.
        if 0 <= time.time() - self._looked_at < (RETRY_SECONDS if self.problem else LOOK_SECONDS):
            return False
        self._looked_at = time.time()
        before = self.broker
        try:
            stored = self._store.load()
            self._stored = still_known(stored, self._stored)
            self.topics = camera_topics(self._settings, self._stored)
            self.broker, self.problem = effective_broker(self._settings, self._stored), ""
            if self._stored != stored:
                logger.warning(GOES_ON, extra={"reason": str(CredentialsUnreadableError())})
        except CredentialsUnreadableError as error:
            self.broker, self.problem = None, str(error)
            logger.error("publishing waits", extra={"reason": self.problem})
        except StoreUnavailableError as error:  # the last good ones go on
            logger.warning("the stored settings cannot be read", extra={"reason": str(error)})
            if self.problem:
                self.problem = str(error)
        return self.broker != before

    def before_event(self, camera_id: str, name: str) -> tuple[Message, ...]:
        """What goes before this camera's event: its discovery message, once for each process."""
        camera = Camera(camera_id, name)
        config = self._stored.config if self._stored is not None else None
        if not self._cameras.heard(camera) or config is None or not config.discovery_enabled:
            return ()
        return (announcement(config, camera),)

    def addressed(self, message: Message) -> Message:
        """`message` as it is sent now: what it was made for may have changed meanwhile."""
        if not isinstance(message, CameraMessage):
            return message
        if isinstance(message.about, Sighting):
            return addressed(message, message.about, self.topics)
        return message if self._stored is None else announcement(self._stored.config, message.about)

    def forget(self, camera_id: str) -> None:
        """Announce this camera again before its next event."""
        self._cameras.forget(camera_id)

    def record(self, outcomes: Sequence[Outcome | Unread], *, connected: bool, attempts: int) -> None:
        """Leave word for the API of how publishing went, now and then, and at once when it went otherwise than before.

        A database that is down is no reason to fail.
        """
        now = datetime.now(UTC)
        published = [one for one in outcomes if not isinstance(one, Unread)]
        self._published += sum(one.success for one in published)
        self._connected_at = now if connected else self._connected_at
        failed = next((one for one in published if not one.success), None)
        if failed is not None:
            self._error = failed.reason, failed.reason_code, now
        word = connected, failed is None, self.broker
        if word == self._last_word and 0 <= time.time() - self._recorded_at < LOOK_SECONDS:
            return
        self._last_word, self._recorded_at = word, time.time()
        reason, reason_code, at = self._error or (None, None, None)
        status = ProcessStatus(
            process=self.process,
            scope="lambda",
            broker=self.broker.url if self.broker else None,
            connected=connected,
            since=self._began_at,
            last_connected_at=self._connected_at,
            last_error=reason,
            last_error_code=reason_code,
            last_error_at=at,
            messages_published=self._published,
            reconnect_attempts=max(0, attempts - 1),
            recorded_at=now,
        )
        try:
            self._store.record(status)
        except StoreUnavailableError as error:
            logger.warning("the status cannot be recorded", extra={"reason": str(error)})
