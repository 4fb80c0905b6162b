"""Applies the stored settings to the host's publisher, learns which cameras there are, and tells the status."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from functions.admin.operations import CannotPublishError, TopicVerdict
from functions.cameras.discovery import availability_topic
from functions.events.names import is_event_id
from functions.mqtt.connection import BrokerConnectionError
from functions.stored.effective import GOES_ON, effective_broker, still_known
from functions.stored.errors import CredentialsUnreadableError, StoreUnavailableError
from functions.stored.store import ProcessStatus
from functions.telemetry import logger
from infra.host.announcer import ONLINE, Announcer
from infra.host.camera_search import look
from infra.host.detections import HostReader
from infra.host.mqtt.link import NOT_READ
from infra.host.mqtt.retained import listen
from infra.host.threads import in_thread

if TYPE_CHECKING:
    from functions.cameras.reader import DetectionReader
    from functions.s3.objects import Objects
    from functions.settings import Settings
    from functions.stored.model import MqttConfig
    from functions.stored.store import ConfigStore, Stored
    from functions.telemetry import Telemetry
    from infra.host.mqtt.link import LinkStatus

RELOAD_SECONDS = 10.0  # another process may have stored settings: they are in force here within 30 s
RETRY_SECONDS = 1.0  # until the settings have been read once: nothing is published before
APPLY_SECONDS = 5.0
KNOWN_SECONDS = 5.0  # a camera to be removed may not be found yet, right after a start
LAST_WORD_SECONDS = 0.5

_DISCOVERY_IS_OFF = "Discovery is off: store settings with discovery_enabled."

T = TypeVar("T")


class Integration:
    """One for each host. `apply`, `status`, `publish_discovery` and `forget_camera` are for handlers' threads.

    Without a store the environment's broker stays in force, and there is no discovery.
    """

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        store: ConfigStore | None,
        reader: DetectionReader | None,
        *,
        port: int,
        prepare: Callable[[], object],
        on_change: Callable[[LinkStatus], None],
    ) -> None:
        """`prepare`, in a thread, makes the store's tables. `port` tells two hosts on one machine apart.

        `reader` reads cameras' events, where there are any. `on_change`: see `HostPublisher`.
        """
        self.process = f"{socket.gethostname()}:{port}"
        self.announcer = announcer = Announcer(
            settings, telemetry, self.process, on_connected=self._begin_to_learn, on_change=on_change
        )
        self.publisher = announcer.publisher
        self.reader: HostReader | None = None
        self._objects: Objects | None = None
        if reader is not None:
            self.reader = HostReader(
                reader, self.publisher, on_camera=announcer.heard, on_camera_failed=announcer.cameras.forget
            )
            self._objects = reader.objects
        self._settings = settings
        self._store = store
        self._stopped = threading.Event()
        self._looking: asyncio.Task[None] | None = None
        self._listening: asyncio.Task[None] | None = None
        self._is_learned = False
        """Whether what the broker keeps is known, as far as possible: else an old event could pass for the latest."""
        self._knows_kept = self._knows_bucket = False
        self._settled = threading.Event()
        """What could be learned of cameras at the start is learned."""
        self._prepare = prepare
        self._began_at = datetime.now(UTC)
        self._problem = ""
        self.database_up: bool | None = None
        """Whether the settings could be read the last time; None before that, and without a store."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def _stored(self) -> Stored | None:
        return self.announcer.stored

    # On the loop.

    async def start(self) -> None:
        """Begin to read the store, before the publisher starts. Returns at once."""
        self._loop = asyncio.get_running_loop()
        if self._store is not None:
            self.publisher.hold(NOT_READ)
            if self.reader is not None:
                self.reader.use(None)
            self._task = asyncio.create_task(self._keep_up(self._store), name="stored-settings")

    async def stop(self) -> None:
        """Read no more, and record that this process is gone. A thread that hangs is not waited for."""
        self._stopped.set()
        tasks = [task for task in (self._task, self._looking, self._listening) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        store = self._store
        if store is not None:
            with contextlib.suppress(TimeoutError, StoreUnavailableError):
                await asyncio.wait_for(in_thread(lambda: store.record(self.status())), LAST_WORD_SECONDS)

    async def _keep_up(self, store: ConfigStore) -> None:
        ready = False
        while True:
            try:
                if not ready:
                    await in_thread(self._prepare)
                before = self._stored
                read = await in_thread(store.load)
                await self._leave_out_removed(store)
                self.database_up = True
                stored = still_known(read, before)
                # What was stored through our own API meanwhile is newer than what was read.
                if self._stored is before and (not ready or stored != before):
                    self._apply(stored)
                if not ready and self._objects is not None:
                    self._looking = asyncio.create_task(self._look(self._objects), name="cameras")
                ready = True
                self._meet(await in_thread(lambda: self._exchange(store)))
                self._trouble("" if stored == read else str(CredentialsUnreadableError()))
            except StoreUnavailableError as error:
                self.database_up = False
                if ready or self._stored is not None:
                    self._trouble(str(error))
                else:
                    self.publisher.hold(f"{NOT_READ}: {error}")
            except Exception:  # noqa: BLE001 - without this task no change would ever arrive
                logger.exception("stored settings")
            await asyncio.sleep(RELOAD_SECONDS if ready else RETRY_SECONDS)

    def _apply(self, stored: Stored | None) -> None:
        """Publish as these settings say; the same broker keeps its connection."""
        announcer = self.announcer
        announcer.stored = stored
        if announcer.retained.moved(None if stored is None else stored.config):
            self._is_learned = False
        try:
            broker = effective_broker(self._settings, stored)
        except CredentialsUnreadableError as error:
            self.publisher.hold(str(error))
            announcer.broker = None
            self._tell_topics()
            return
        if broker is not None and announcer.announces:
            broker = replace(broker, availability_topic=announcer.availability)
        if broker != announcer.broker or self.publisher.status.reason:
            self.publisher.use(broker)  # which says `offline` where we were until now
            announcer.broker = broker
            logger.info("broker settings in force", extra={"broker": broker.url if broker else None})
        elif self.publisher.status.connected:
            announcer.tidy_up()  # first, while Home Assistant still reads it as before
            self.publisher.say(announcer.birth_messages())
            self._begin_to_learn()
        self._tell_topics()

    def _tell_topics(self) -> None:
        topics = self.announcer.topics
        if self.reader is not None:
            self.reader.use(None if topics.retain and not self._is_learned else topics)

    def _exchange(self, store: ConfigStore) -> Sequence[ProcessStatus]:
        """Record how this process does, and return what all have recorded."""
        store.record(self.status())
        return store.recorded()

    def _meet(self, recorded: Sequence[ProcessStatus]) -> None:
        """Tell Home Assistant of hosts that come and go: a camera is available while one of them says so."""
        replicas = self.announcer.replicas
        before = replicas.there
        replicas.meet(recorded, time.monotonic())
        if replicas.there != before:
            self.announcer.say_all()
        self.announcer.take_away_gone()

    def _trouble(self, problem: str) -> None:
        if problem and problem != self._problem:
            logger.warning(GOES_ON, extra={"reason": problem})
        elif self._problem and not problem:
            logger.info("the stored settings can be read again")
            self.announcer.say(self.announcer.available(ONLINE))  # others may have thought that we are gone
        self._problem = problem

    # What is learned of cameras.

    async def _look(self, objects: Objects) -> None:
        bucket, prefix = self._settings.bucket or "", self._settings.events_prefix or ""
        found = await in_thread(lambda: look(objects, bucket, prefix, stopped=self._stopped))
        self.announcer.found(found.since(self.announcer.removed))
        self._knows_bucket = found.complete
        self._looking = None
        self._settle()

    def _begin_to_learn(self) -> None:
        if self._listening is not None:
            self._listening.cancel()
        self._listening = asyncio.create_task(self._learn(), name="retained")

    async def _learn(self) -> None:
        """Hear what the broker keeps; remove what is not wanted. If it does not tell, go by what we have sent."""
        announcer = self.announcer
        broker, stored = announcer.broker, announcer.stored
        if broker is not None and stored is not None and self._objects is not None:
            announcer.tidy_up()
            try:
                heard = await in_thread(lambda: listen(broker, stored.config, stopped=self._stopped))
            except BrokerConnectionError as failure:
                if not self.publisher.status.connected:
                    return  # the next connect asks again
                logger.info("what the broker keeps is not known", extra={"reason": failure.reason})
            except Exception:  # noqa: BLE001 - cameras' events wait for this task
                logger.exception("what the broker keeps is not known")
            else:
                self._knows_kept = True
                announcer.retained.learn(heard)
                announcer.tidy_up()
                logger.info("what the broker keeps is known", extra={"messages": len(heard.topics)})
        self._is_learned = True
        self._listening = None
        self._tell_topics()
        self._settle()

    def _settle(self) -> None:
        if self._is_learned and self._looking is None:
            self._settled.set()

    async def _leave_out_removed(self, store: ConfigStore) -> None:
        """Leave out cameras that any host has removed, until any host hears their next event."""
        announcer = self.announcer
        before = set(announcer.removed)
        removed = await in_thread(store.removed_cameras)
        for camera_id, at in removed.items():
            if announcer.cameras.heard_since(camera_id, at):
                await in_thread(lambda camera_id=camera_id, at=at: store.restore_camera(camera_id, at))  # type: ignore[misc]  # the defaults bind these
            elif announcer.removed.get(camera_id) != at:
                announcer.forget(camera_id, at)
        for camera_id in before - set(removed):
            announcer.removed.pop(camera_id, None)

    # From a handler's thread: see `functions.admin.api.Publishing`.

    def status(self) -> ProcessStatus:
        """What this process says of its connection."""
        status = self.publisher.status
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
            messages_published=self.publisher.messages_published,
            reconnect_attempts=status.reconnect_attempts,
            recorded_at=datetime.now(UTC),
        )

    def topics(self) -> tuple[TopicVerdict, ...]:
        """What the broker last said to each topic, as far as anything was published there."""
        return self.publisher.births.verdicts()

    def availability_topic(self, config: MqttConfig) -> str | None:
        """Where this host's last will would be, under these settings."""
        return availability_topic(config.topic_prefix, self.process) if config.discovery_enabled else None

    def apply(self, stored: Stored | None) -> None:
        """Publish as these settings say from now on: when this returns, nothing more goes to the broker before."""
        if stored is None or self._stored is None or _age(stored) > _age(self._stored):
            self._on_loop(self._apply, stored)

    def publish_discovery(self) -> int:
        """Publish every camera's discovery message again; return how many. Raises `CannotPublishError`."""
        if not self.announcer.announces:
            raise CannotPublishError(_DISCOVERY_IS_OFF)
        self._check_connected()
        return self._on_loop(self.announcer.say_again)

    def forget_camera(self, camera_id: str) -> bool:
        """Remove a camera from Home Assistant; False: there is none.

        Raises `CannotPublishError`, `StoreUnavailableError`.
        """
        if self._stored is None or self._store is None:
            raise CannotPublishError(_DISCOVERY_IS_OFF)
        self._check_connected()
        if not is_event_id(camera_id):
            return False
        if not self._on_loop(self.announcer.knows, camera_id):
            self._settled.wait(KNOWN_SECONDS)
            knows_all = self._knows_kept and (self._objects is None or self._knows_bucket)
            if knows_all and not self._on_loop(self.announcer.knows, camera_id):
                return False
        removed_at = datetime.now(UTC)
        self._store.remove_camera(camera_id, removed_at)
        self._on_loop(self.announcer.forget, camera_id, removed_at)
        return True

    def _check_connected(self) -> None:
        if not self.publisher.status.connected:
            raise CannotPublishError(
                f"The broker is not connected: {self.publisher.status.reason or 'try again soon'}."
            )

    def _on_loop(self, call: Callable[..., T], *arguments: object) -> T:
        if self._loop is None:
            raise RuntimeError("the host has not started")

        async def run() -> T:
            return call(*arguments)

        return asyncio.run_coroutine_threadsafe(run(), self._loop).result(APPLY_SECONDS)


def _age(stored: Stored) -> tuple[datetime, int]:
    """What grows with each change, even if the row was deleted meanwhile and its versions began again."""
    return stored.created_at, stored.version


def _moment(at: float | None) -> datetime | None:
    return None if at is None else datetime.fromtimestamp(at, UTC)
