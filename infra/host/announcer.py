"""What the host tells the broker of cameras and of itself, by the settings of that moment; and what it takes back."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from functions.cameras.detections import LABEL, CameraTopics, addressed
from functions.cameras.discovery import (
    Cameras,
    availability_label,
    availability_topic,
    discovery_label,
    discovery_topic,
    removed,
)
from functions.cameras.message import Camera, CameraMessage, Sighting
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.stored.effective import announcement, camera_topics
from infra.host.mqtt.birth_messages import WILL
from infra.host.mqtt.publisher import HostPublisher, QueueFullError
from infra.host.mqtt.retained import Retained, nothing_of
from infra.host.replicas import Replicas

if TYPE_CHECKING:
    from functions.settings import Settings
    from functions.stored.store import Stored
    from functions.telemetry import Telemetry
    from infra.host.mqtt.link import LinkStatus

ONLINE, OFFLINE = b"online", b"offline"


class Announcer:
    """Belongs to the event loop, as does every call. `stored` and `broker` are what is in force."""

    def __init__(
        self,
        settings: Settings,
        telemetry: Telemetry,
        process: str,
        *,
        on_connected: Callable[[], object],
        on_change: Callable[[LinkStatus], None],
    ) -> None:
        """`process` is this host's name among those that share the stored settings. For the rest see `publisher`."""
        self.cameras = Cameras()
        self.removed: dict[str, datetime] = {}
        """The cameras that are left out until their next event, and since when."""
        self.retained = Retained()
        self.replicas = Replicas(process)
        self.stored: Stored | None = None
        self.broker: BrokerConfig | None = BrokerConfig.of(settings)
        self.publisher = HostPublisher(
            self.broker,
            telemetry,
            birth_messages=self.birth_messages,
            goodbye_messages=lambda: self.available(OFFLINE),
            addressed=self._addressed,
            on_connected=on_connected,
            on_change=on_change,
        )
        self._settings = settings
        self._process = process

    @property
    def topics(self) -> CameraTopics:
        """Where cameras' events go."""
        return camera_topics(self._settings, self.stored)

    @property
    def announces(self) -> bool:
        """Whether Home Assistant is to hear of cameras."""
        return self.stored is not None and self.stored.config.discovery_enabled

    @property
    def discovery_prefix(self) -> str | None:
        """Home Assistant's, if it is to hear of us."""
        return self.stored.config.discovery_prefix if self.stored is not None and self.announces else None

    @property
    def labels(self) -> tuple[str, ...]:
        """What metrics call the topics of what is published for Home Assistant."""
        if self.stored is None or not self.stored.config.discovery_enabled:
            return ()
        return self._availability_label, discovery_label(self.stored.config.discovery_prefix)

    @property
    def availability(self) -> str:
        """Where this host says that it is there."""
        return availability_topic(self.topics.topic_prefix, self._process)

    # What is said.

    def birth_messages(self) -> Iterator[Message]:
        """A camera's discovery mentions availability unless the broker has refused `online` before."""
        yield from self.available(ONLINE)
        for camera in self.cameras.all():
            yield from self._discoveries((camera,))

    def available(self, payload: bytes) -> tuple[Message, ...]:
        """`ONLINE` or `OFFLINE`, where that is said at all."""
        topic = None if self.broker is None else self.broker.availability_topic
        if topic is None or self._leaves_out_availability:
            return ()
        return (self._availability_of(topic, payload),)

    def heard(self, camera_id: str, name: str) -> tuple[Message, ...]:
        """What goes before this camera's event: its discovery message, where that is due."""
        camera = Camera(camera_id, name)
        self.removed.pop(camera_id, None)
        if not self.cameras.heard(camera) or self._leaves_out_discovery:
            return ()
        return self._discoveries((camera,))

    def found(self, cameras: Iterable[Camera]) -> None:
        """Announce the cameras that are new."""
        self.say(self._discoveries(self.cameras.found(cameras)))

    def say(self, messages: Sequence[Message]) -> int:
        """Say these as birth messages are said; return how many."""
        if not self.publisher.status.connected:
            return 0  # they are among the birth messages
        self.publisher.say(messages)
        return len(messages)

    def say_all(self) -> int:
        """Say of every camera that it is there; return how many."""
        return self.say(self._discoveries(self.cameras.all()))

    def say_again(self) -> int:
        """Do so although the broker did not want it: somebody has asked."""
        self.publisher.births.retry()
        return self.say_all()

    def _discoveries(self, cameras: Sequence[Camera]) -> tuple[Message, ...]:
        stored = self.stored
        if stored is None or not stored.config.discovery_enabled:
            return ()
        return tuple(self._announcement(stored, camera) for camera in cameras)

    def _announcement(self, stored: Stored, camera: Camera) -> Message:
        config = stored.config
        if self._is_gone(camera.camera_id):
            return removed(camera.camera_id, config.discovery_prefix, qos=config.qos)
        replicas = () if self._leaves_out_availability else self.replicas.there
        return announcement(config, camera, [availability_topic(config.topic_prefix, replica) for replica in replicas])

    def _addressed(self, message: Message) -> Message:
        """`message` as it is sent now: what it was made for may have changed meanwhile."""
        if isinstance(message, CameraMessage):
            if isinstance(message.about, Sighting):
                is_latest = self.retained.take(message.about)
                message = addressed(message, message.about, self.topics, retain=is_latest)
            elif self.stored is not None:
                message = self._announcement(self.stored, message.about)
        self.retained.sent(message)
        return message

    # What is left out.

    @property
    def _leaves_out_availability(self) -> bool:
        """Whether availability is left out: without the last will or `online` it would become wrong."""
        births = self.publisher.births
        return bool(births.leaves_out(WILL) or births.leaves_out(self._availability_label))

    @property
    def _leaves_out_discovery(self) -> str:
        if self.stored is None:
            return ""
        return self.publisher.births.leaves_out(discovery_label(self.stored.config.discovery_prefix))

    # What is taken back.

    def tidy_up(self) -> None:
        """Remove what the broker keeps and the settings do not want."""
        if self.stored is not None and self.publisher.status.connected:
            gone = [camera_id for camera_id in self.removed if self._is_gone(camera_id)]
            self._take_away(self.retained.unwanted(self.stored.config, gone))

    def take_away_gone(self) -> None:
        """Remove what the broker keeps of hosts that have gone."""
        if self.announces and self.publisher.status.connected:
            topics = [availability_topic(self.topics.topic_prefix, gone) for gone in self.replicas.take_gone()]
            self.say([self._availability_of(topic, b"") for topic in topics])

    def forget(self, camera_id: str, removed_at: datetime) -> None:
        """Remove a camera from the broker, until its next event."""
        self.removed[camera_id] = removed_at
        self.cameras.forget(camera_id)
        self.retained.forget(camera_id)
        if self.stored is not None and self.publisher.status.connected:
            self._take_away(nothing_of(camera_id, self.stored.config))

    def _is_gone(self, camera_id: str) -> bool:
        """Whether it was removed, and neither an event nor the bucket has brought it back."""
        return camera_id in self.removed and camera_id not in self.cameras

    def knows(self, camera_id: str) -> bool:
        """Whether there is such a camera, or something is kept of one."""
        topic = "" if self.stored is None else discovery_topic(self.stored.config.discovery_prefix, camera_id)
        return topic in self.retained or camera_id in self.cameras

    def _take_away(self, messages: Sequence[Message]) -> None:
        """Not as birth messages: the camera's next event may follow at once, and its messages must come later."""
        for message in messages:
            if message.label != LABEL and self.publisher.births.leaves_out(message.label):
                self.retained.stays(message)
                continue
            with contextlib.suppress(QueueFullError):
                pending = self.publisher.submit(message)
                pending.done.add_done_callback(
                    lambda done, message=message: None if done.result().success else self.retained.stays(message)  # type: ignore[misc]  # the default binds this one
                )

    def _availability_of(self, topic: str, payload: bytes) -> Message:
        return Message(topic, payload, qos=1, retain=True, label=self._availability_label)

    @property
    def _availability_label(self) -> str:
        return availability_label(self.topics.topic_prefix)
