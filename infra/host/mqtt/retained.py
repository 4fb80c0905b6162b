"""What the broker keeps of our cameras: learned at each connect, and taken away where the settings do not want it."""

from __future__ import annotations

import json
import select
import time
from collections import OrderedDict
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from functions.cameras.detections import LABEL, Latest, published_sighting
from functions.cameras.discovery import MAX_CAMERAS, OBJECT_PREFIX, camera_topic, discovery_topic
from functions.cameras.message import Sighting
from functions.mqtt.broker import new_client_id
from functions.mqtt.connection import Connection
from functions.mqtt.message import Message

if TYPE_CHECKING:
    import threading
    from collections.abc import Collection

    from functions.mqtt.broker import BrokerConfig
    from functions.stored.model import MqttConfig

LISTEN_SECONDS = 3.0  # to connect, and to hear all
QUIET_SECONDS = 0.3  # nothing more came for so long: that was all
POLL_SECONDS = 0.1
MAX_MESSAGE_BYTES = 1024 * 1024  # four documents of the largest size that is read
MAX_TOPICS = 2 * MAX_CAMERAS


@dataclass(slots=True)
class KeptByBroker:
    """What the broker keeps: each camera's event, and the topics of both kinds."""

    sightings: list[Sighting] = field(default_factory=list)
    topics: list[str] = field(default_factory=list)


def listen(broker: BrokerConfig, config: MqttConfig, *, stopped: threading.Event) -> KeptByBroker:
    """Ask the broker what it keeps under these settings. Raises `BrokerConnectionError` where it does not say.

    For a thread of its own, and on a connection of its own: a broker may answer a subscription that it forbids by
    closing the connection, and what it keeps may be larger than what a publisher takes in.
    """
    until = time.monotonic() + LISTEN_SECONDS
    connection = _Listening(broker, config)
    heard = connection.heard
    try:
        connection.open(min(broker.connect_timeout_seconds, LISTEN_SECONDS))
        while not connection.answered and time.monotonic() < until:
            _move(connection)
        if not connection.connected:
            raise connection.why("no answer to CONNECT in time")
        connection.subscribe()
        while connection.granted is None and not connection.closed and time.monotonic() < until:
            _move(connection)
        if not connection.granted:
            raise connection.why("the broker lets nobody subscribe to what it keeps of cameras")
        connection.last_at = time.monotonic()
        while time.monotonic() < min(until, connection.last_at + QUIET_SECONDS) and len(heard.topics) < MAX_TOPICS:
            if connection.closed or stopped.is_set():
                raise connection.why("connection lost")
            _move(connection)
    finally:
        connection.close()
    return heard


class _Listening(Connection):
    """A connection that is sent what the broker keeps."""

    def __init__(self, broker: BrokerConfig, config: MqttConfig) -> None:
        super().__init__(replace(broker, availability_topic=None), new_client_id(broker.client_id_prefix))
        self._client.max_packet_bytes = MAX_MESSAGE_BYTES
        self._config = config
        self.heard = KeptByBroker()
        self.last_at = 0.0
        self.granted: bool | None = None  # it has not answered yet

    def subscribe(self) -> None:
        filters = f"{_events(self._config)}+/event", f"{_discoveries(self._config)}+/config"
        self._guard(self._client.subscribe, [(one, 0) for one in filters])

    def subscribed(self, *, granted: bool) -> None:
        self.granted = granted

    def retained(self, topic: str, payload: bytes) -> None:
        self.last_at = time.monotonic()
        sighting = published_sighting(payload)
        if sighting is not None and topic == camera_topic(self._config.topic_prefix, sighting.camera_id):
            self.heard.sightings.append(sighting)
        elif not _is_ours(topic, payload, self._config):
            return
        self.heard.topics.append(topic)


class Retained:
    """The topics on which one broker keeps a message of ours, and each camera's latest event. Belongs to one loop."""

    def __init__(self) -> None:
        """Nothing is known yet."""
        self._latest = Latest()
        self._topics: OrderedDict[str, None] = OrderedDict()
        self._place: tuple[str, int, str] | None = None

    def __contains__(self, topic: str) -> bool:
        return topic in self._topics

    def learn(self, heard: KeptByBroker) -> None:
        """Take over what the broker keeps."""
        for sighting in heard.sightings:
            self.take(sighting)
        for topic in heard.topics:
            self._note(topic)

    def take(self, sighting: Sighting) -> bool:
        """Note an event that is being sent: whether it is its camera's latest."""
        return self._latest.take(sighting, datetime.now(UTC))

    def latest(self, camera_id: str) -> int:
        """When the camera's latest event was that we know of, in ms since 1970; 0: none is known."""
        at = self._latest.of(camera_id)
        return 0 if at is None else int(at.timestamp() * 1000)

    def sent(self, message: Message) -> None:
        """Note that the broker gets this one: what is retained is about cameras, or about us on their behalf."""
        if message.retain and message.payload:
            self._note(message.topic)
        elif message.retain:
            self._topics.pop(message.topic, None)

    def stays(self, message: Message) -> None:
        """Note that the broker did not get this one, which was to take something away."""
        self._note(message.topic)

    def forget(self, camera_id: str) -> None:
        """Take the camera's next event for its latest."""
        self._latest.forget(camera_id)

    def moved(self, config: MqttConfig | None) -> bool:
        """Go by these settings from now on: whether events are retained at another place than before."""
        before, self._place = self._place, None if config is None else _place(config)
        if before == self._place:
            return False
        self._latest.clear()
        if before is None or self._place is None or before[:2] != self._place[:2]:  # another broker
            self._topics.clear()
        return True

    def unwanted(self, config: MqttConfig, removed_ids: Collection[str]) -> tuple[Message, ...]:
        """What takes away all that is kept, and is not wanted by these settings."""
        prefixes = (_events(config),) * config.retain_messages
        prefixes += (_discoveries(config), f"{config.topic_prefix}/bucketbell/") * config.discovery_enabled
        gone = {topic for camera_id in removed_ids for topic in _both(config, camera_id)}
        topics = [topic for topic in self._topics if topic in gone or not topic.startswith(prefixes)]
        return tuple(empty(topic, config.qos) for topic in topics)

    def _note(self, topic: str) -> None:
        self._topics[topic] = None
        self._topics.move_to_end(topic)
        if len(self._topics) > MAX_TOPICS:
            self._topics.popitem(last=False)


def nothing_of(camera_id: str, config: MqttConfig) -> tuple[Message, ...]:
    """What takes away all that the broker may keep of a camera under these settings: Home Assistant forgets it."""
    return tuple(empty(topic, config.qos) for topic in _both(config, camera_id))


def empty(topic: str, qos: int) -> Message:
    """The message that takes away what a broker keeps (MQTT 5 §3.3.1.3)."""
    place, _, last = topic.rpartition("/")
    place = place.rpartition("/")[0]
    labels = {"event": LABEL, "availability": f"{place}/replica/availability"}
    return Message(topic, b"", qos=qos, retain=True, label=labels.get(last, f"{place}/+/{last}"))


def _place(config: MqttConfig) -> tuple[str, int, str]:
    return config.broker_host, config.broker_port, config.topic_prefix


def _both(config: MqttConfig, camera_id: str) -> tuple[str, str]:
    return discovery_topic(config.discovery_prefix, camera_id), camera_topic(config.topic_prefix, camera_id)


def _events(config: MqttConfig) -> str:
    return f"{config.topic_prefix}/camera/"


def _discoveries(config: MqttConfig) -> str:
    return f"{config.discovery_prefix}/device/"


def _is_ours(topic: str, payload: bytes, config: MqttConfig) -> bool:
    """Whether this is the discovery message of a camera whose events are below our prefix."""
    if not topic.startswith(_discoveries(config) + OBJECT_PREFIX):
        return False
    try:
        return str(json.loads(payload)["components"]["event"]["state_topic"]).startswith(_events(config))
    except (ValueError, RecursionError, TypeError, KeyError):
        return False


def _move(connection: Connection) -> None:
    """Move bytes once, within `POLL_SECONDS`."""
    poller = select.poll()  # not `select.select`, which knows no file descriptor beyond 1023
    poller.register(connection.fileno(), select.POLLIN | (select.POLLOUT if connection.wants_write else 0))
    for _, events in poller.poll(POLL_SECONDS * 1000):
        if events & ~select.POLLOUT:
            connection.read()
        if events & select.POLLOUT and not connection.closed:
            connection.write()
