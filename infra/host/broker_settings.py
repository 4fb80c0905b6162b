"""Keeps the host's publisher with the stored broker settings, tells how it is doing, and greets with the cameras."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from functions.admin.operations import CannotPublish, TopicVerdict
from functions.cameras.detections import CameraTopics
from functions.cameras.discovery import (
    Camera,
    Cameras,
    availability_label,
    availability_topic,
    camera_topic,
    discovery,
    discovery_label,
    removed,
)
from functions.events.routes import Notification
from functions.mqtt.broker import Broker
from functions.stored.in_force import GOES_ON, broker_in_force, camera_topics, still_known
from functions.stored.store import CredentialsUnreadable, ProcessStatus, StoreUnavailable
from functions.telemetry import logger
from infra.host.camera_search import look
from infra.host.mqtt.greetings import WILL
from infra.host.mqtt.link import NOT_READ
from infra.host.mqtt.publisher import HostPublisher
from infra.host.replicas import Replicas
from infra.host.threads import in_thread

if TYPE_CHECKING:
    from functions.s3.objects import Objects
    from functions.settings import Settings
    from functions.stored.model import MqttConfig
    from functions.stored.store import ConfigStore, Stored

RELOAD_SECONDS = 10.0  # another process may have stored settings; DESIGN gives it 30 s
RETRY_SECONDS = 1.0  # until the settings have been read once: nothing is published before
APPLY_SECONDS = 5.0
LAST_WORD_SECONDS = 0.5
ONLINE, OFFLINE = b"online", b"offline"

T = TypeVar("T")


class Integration:
    """One for each host. `apply`, `status`, `publish_discovery` and `forget_camera` are for handlers' threads.

    Without a store the environment's broker stays in force, and there is no discovery.
    """

    def __init__(
        self,
        settings: Settings,
        publisher: HostPublisher,
        store: ConfigStore | None = None,
        *,
        port: int = 0,
        prepare: Callable[[], object] = lambda: None,
    ) -> None:
        """`prepare`, in a thread, makes the store's tables. `port` tells two hosts on one machine apart."""
        self.process = f"{socket.gethostname()}:{port}"
        self.cameras = Cameras()
        self._settings = settings
        self._publisher = publisher
        self._store = store
        self._on_topics: Callable[[CameraTopics], None] = lambda _topics: None
        self._objects: Objects | None = None
        self._stopped = threading.Event()
        self._looking: asyncio.Task[None] | None = None
        self._prepare = prepare
        self._began_at = datetime.now(UTC)
        self._stored: Stored | None = None
        self._broker: Broker | None = Broker.of(settings)
        self._replicas = Replicas(self.process)
        self._problem = ""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None
        publisher.greetings = self._greetings
        publisher.farewells = lambda: self._available(OFFLINE)

    def follow(self, on_topics: Callable[[CameraTopics], None]) -> None:
        """Have `on_topics` hear where camera events go from now on."""
        self._on_topics = on_topics

    def look_in(self, objects: Objects) -> None:
        """Find the cameras whose events are in this bucket already, at the start."""
        self._objects = objects

    # On the loop.

    async def start(self) -> None:
        """Begin to read the store, before the publisher starts. Returns at once."""
        self._loop = asyncio.get_running_loop()
        if self._store is not None:
            self._publisher.hold(NOT_READ)
            self._task = asyncio.create_task(self._keep_up(self._store), name="stored-settings")
            if self._objects is not None:
                self._looking = asyncio.create_task(self._look(self._objects), name="cameras")

    async def stop(self) -> None:
        """Read no more, and record that this process is gone. What hangs in a thread is left to hang."""
        self._stopped.set()
        tasks = [task for task in (self._task, self._looking) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store = self._store
        if store is not None:
            with contextlib.suppress(TimeoutError, StoreUnavailable):
                await asyncio.wait_for(in_thread(lambda: store.record(self.status())), LAST_WORD_SECONDS)

    async def _look(self, objects: Objects) -> None:
        bucket, prefix = self._settings.bucket or "", self._settings.events_prefix or ""
        found = await in_thread(lambda: look(objects, bucket, prefix, self.cameras, stopped=self._stopped))
        self._publish(self._discoveries(found))

    async def _keep_up(self, store: ConfigStore) -> None:
        ready = False
        while True:
            try:
                if not ready:
                    await in_thread(self._prepare)
                before = self._stored
                read = await in_thread(store.load)
                stored = still_known(read, before)
                # What was stored through our own API meanwhile is newer than what was read.
                if self._stored is before and (not ready or stored != before):
                    self._apply(stored)
                ready = True
                await in_thread(lambda: store.record(self.status()))
                self._meet(await in_thread(store.recorded))
                self._trouble("" if stored == read else str(CredentialsUnreadable()))
            except StoreUnavailable as error:
                if ready or self._stored is not None:
                    self._trouble(str(error))
                else:
                    self._publisher.hold(f"{NOT_READ}: {error}")
            except Exception:  # noqa: BLE001 - without this task no change would ever arrive
                logger.exception("stored settings")
            await asyncio.sleep(RELOAD_SECONDS if ready else RETRY_SECONDS)

    def _apply(self, stored: Stored | None) -> None:
        """Publish as these settings say; the same broker keeps its connection."""
        self._stored = stored
        self._on_topics(self._topics)
        try:
            broker = broker_in_force(self._settings, stored)
        except CredentialsUnreadable as error:
            self._publisher.hold(str(error))
            self._broker = None
            return
        if broker is not None and self._announces:
            broker = replace(broker, availability_topic=self._availability)
        if broker != self._broker or self._publisher.status.reason:
            self._publisher.use(broker)  # which says `offline` where we were until now
            self._broker = broker
            logger.info("broker settings in force", extra={"broker": broker.url if broker else None})
        else:
            self._publisher.greet(self._greetings())

    def _meet(self, recorded: Sequence[ProcessStatus]) -> None:
        """Home Assistant takes a camera for available while any host says so: tell it of hosts that come and go."""
        before = self._replicas.there
        self._replicas.meet(recorded, time.monotonic())
        if self._replicas.there != before:
            self._publish(self._discoveries(self.cameras.all()))
        if self._announces and self._publisher.status.connected:
            topics = [availability_topic(self._topics.topic_prefix, gone) for gone in self._replicas.take_gone()]
            self._publish([self._availability_of(topic, b"") for topic in topics])

    def _trouble(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.warning(GOES_ON, extra={"reason": problem})
        elif self._problem and not problem:
            logger.info("the stored settings can be read again")
            self._publish(self._available(ONLINE))  # others may have taken us for gone
        self._problem = problem

    # What is published on their behalf.

    def heard(self, camera_id: str, name: str) -> tuple[Notification, ...]:
        """What goes before this camera's event: its discovery message, where that is due."""
        camera = Camera(camera_id, name)
        if not self.cameras.heard(camera) or self._leaves_out_discovery:
            return ()
        return self._discoveries((camera,))

    @property
    def _topics(self) -> CameraTopics:
        return camera_topics(self._settings, self._stored)

    @property
    def _announces(self) -> bool:
        return self._stored is not None and self._stored.config.discovery_enabled

    @property
    def labels(self) -> tuple[str, ...]:
        """What metrics call the topics of what is published for Home Assistant."""
        if self._stored is None or not self._stored.config.discovery_enabled:
            return ()
        config = self._stored.config
        return availability_label(config.topic_prefix), discovery_label(config.discovery_prefix)

    @property
    def _availability(self) -> str:
        return availability_topic(self._topics.topic_prefix, self.process)

    def _available(self, payload: bytes) -> tuple[Notification, ...]:
        topic = None if self._broker is None else self._broker.availability_topic
        if topic is None or self._leaves_out_availability:
            return ()
        return (self._availability_of(topic, payload),)

    def _greetings(self) -> Iterator[Notification]:
        """What a camera's discovery says of availability hangs on what the broker has said to `online` by then."""
        yield from self._available(ONLINE)
        for camera in self.cameras.all():
            yield from self._discoveries((camera,))

    def _availability_of(self, topic: str, payload: bytes) -> Notification:
        return Notification(topic, "", payload, b"", qos=1, retain=True, label=self._availability_label)

    @property
    def _availability_label(self) -> str:
        return availability_label(self._topics.topic_prefix)

    @property
    def _leaves_out_availability(self) -> bool:
        """Whether nothing is said of it: without the last will or `online`, it would be wrong sooner or later."""
        greeted = self._publisher.greeted
        return bool(greeted.leaves_out(WILL) or greeted.leaves_out(self._availability_label))

    @property
    def _leaves_out_discovery(self) -> str:
        if self._stored is None:
            return ""
        return self._publisher.greeted.leaves_out(discovery_label(self._stored.config.discovery_prefix))

    def _discoveries(self, cameras: Sequence[Camera]) -> tuple[Notification, ...]:
        if self._stored is None or not self._stored.config.discovery_enabled:
            return ()
        config = self._stored.config
        replicas = () if self._leaves_out_availability else self._replicas.there
        topics = [availability_topic(config.topic_prefix, replica) for replica in replicas]
        return tuple(
            discovery(
                camera,
                topic_prefix=config.topic_prefix,
                discovery_prefix=config.discovery_prefix,
                qos=config.qos,
                retained=config.retain_messages,
                availability_topics=topics,
            )
            for camera in cameras
        )

    def _publish(self, notifications: Sequence[Notification]) -> int:
        if not self._publisher.status.connected:
            return 0  # they are among the greetings
        self._publisher.greet(notifications)
        return len(notifications)

    def _publish_again(self) -> int:
        self._publisher.greeted.retry()
        return self._publish(self._discoveries(self.cameras.all()))

    def _forget(self, camera_id: str) -> bool:
        was_known = self.cameras.forget(camera_id)
        if self._stored is not None:
            config = self._stored.config
            self._publish((removed(camera_id, config.discovery_prefix, qos=config.qos),))
            if config.retain_messages:
                kept = camera_topic(config.topic_prefix, camera_id)
                self._publish((Notification(kept, "", b"", b"", qos=config.qos, retain=True, label="camera/+/event"),))
        return was_known

    # From a handler's thread: see `functions.admin.api.Publishing`.

    def status(self) -> ProcessStatus:
        """What this process says of its connection."""
        status = self._publisher.status
        error = status.last_error
        return ProcessStatus(
            process=self.process,
            scope="host",
            broker=status.broker,
            connected=status.connected,
            since=self._began_at,
            last_connected_at=_moment(status.last_connected_at),
            last_error=error.reason if error else None,
            last_error_code=error.reason_code if error else None,
            last_error_at=_moment(error.at if error else None),
            messages_published=self._publisher.messages_published,
            reconnect_attempts=status.reconnect_attempts,
            recorded_at=datetime.now(UTC),
        )

    def topics(self) -> tuple[TopicVerdict, ...]:
        """What the broker last said to each topic, as far as anything was published there."""
        return self._publisher.greeted.verdicts()

    def availability_topic(self, config: MqttConfig) -> str | None:
        """Where this host's last will would be, under these settings."""
        return availability_topic(config.topic_prefix, self.process) if config.discovery_enabled else None

    def apply(self, stored: Stored | None) -> None:
        """Publish as these settings say from now on: when this returns, nothing more goes to the broker before."""
        if stored is None or self._stored is None or _age(stored) > _age(self._stored):
            self._on_loop(self._apply, stored)

    def publish_discovery(self) -> int:
        """Publish every camera's discovery message again; return how many. Raises `CannotPublish`."""
        self._check_discovery()
        return self._on_loop(self._publish_again)

    def forget_camera(self, camera_id: str) -> bool:
        """Remove a camera from Home Assistant; whether it was known here. Raises `CannotPublish`."""
        self._check_discovery()
        return self._on_loop(self._forget, camera_id)

    def _check_discovery(self) -> None:
        if not self._announces:
            raise CannotPublish("Discovery is off: store settings with discovery_enabled.")
        if not self._publisher.status.connected:
            raise CannotPublish(f"The broker is not connected: {self._publisher.status.reason or 'try again soon'}.")

    def _on_loop(self, call: Callable[..., T], *arguments: object) -> T:
        if self._loop is None:
            raise RuntimeError("the host has not started")

        async def run() -> T:
            return call(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(APPLY_SECONDS)


def _age(stored: Stored) -> tuple[datetime, int]:
    """What grows with each change, also where the row was deleted in between and its versions began anew."""
    return stored.created_at, stored.version


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
