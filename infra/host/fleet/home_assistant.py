"""Tells Home Assistant of devices on a channel, on a connection of its own; and passes on what it asks of them.

A broker may refuse such messages, or close the connection over them: neither the bell nor devices' reports pay for it.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from functions.fleet.channels import choose
from functions.fleet.home_assistant import INSTALL, STATE_LABEL, HomeAssistantTopics, update_payloads
from functions.mqtt.publisher import InlinePublisher
from functions.mqtt.tls import TlsFileError
from functions.s3.clients import StorageError
from functions.stored.errors import StoreUnavailableError
from functions.telemetry import logger
from functions.web.messages import Problem
from infra.host.fleet.listener import subscriber_to
from infra.incoming import Received

if TYPE_CHECKING:
    from functions.admin.fleet import FleetAnswers
    from functions.fleet.catalogue import Files
    from functions.fleet.standing import KnownDevice
    from functions.mqtt.broker import BrokerConfig
    from functions.mqtt.message import Message
    from functions.telemetry import Telemetry

PAUSE_SECONDS = 0.1
AT_ONCE = 25
"""Devices: no broker gets more than a thousand of these messages a second."""
IDLE_SECONDS = 0.5  # so long a change may wait; and no more often a device's progress is told
LOOK_SECONDS = 2.0  # at the broker, at whether discovery is on, and at new files
ROUND_SECONDS = 300.0  # all devices are looked at so often: what other hosts assign or remove is found so
FILES_SECONDS = 60.0
LEARN_SECONDS, QUIET_SECONDS = 5.0, 0.5
PUBLISH_SECONDS = 10.0
RETRY_SECONDS, REFUSED_SECONDS = 30.0, 600.0
STOP_SECONDS = 1.0
MAX_DEVICES = 10_000
MAX_ASKED = 1000
RING_AGAIN_SECONDS = 5.0
"""Who asks for a device's update more often is heard once: devices may share a user at the broker."""

ChannelRing = Callable[[str, str], object]
"""Announces the file of a key to the one device of a MAC. May block, and raise `Problem`."""


class _HomeAssistantPlace(NamedTuple):
    """Where Home Assistant hears of devices; the empty one: nowhere."""

    broker: BrokerConfig | None = None
    connection: int = 0
    """After another one the broker may have forgotten what it kept."""
    discovery_prefix: str | None = None


class DeviceUpdates:
    """`note` and `ask` may be called from any thread, and are cheap; all else happens in a thread of its own.

    What the broker keeps is learned first, and only what is otherwise is said.
    """

    def __init__(
        self,
        answers: FleetAnswers,
        topic_prefix: str,
        telemetry: Telemetry,
        *,
        broker: Callable[[], tuple[BrokerConfig | None, int]],
        discovery_prefix: Callable[[], str | None],
        ring: ChannelRing | None,
    ) -> None:
        """`broker`: that which is listened to, if any, and over which connection. Without `ring` nobody can `ask`.

        `discovery_prefix` is None while discovery is off.
        """
        self._answers = answers
        self._topic_prefix = topic_prefix
        self._telemetry = telemetry
        self._broker, self._discovery_prefix, self._ring = broker, discovery_prefix, ring
        self._place = _HomeAssistantPlace()
        self._topics = self._topics_at("")
        self._publisher: InlinePublisher | None = None
        self._kept: dict[str, int] = {}  # by topic, the hash of what the broker keeps
        self._due: dict[str, None] = {}
        self._asked: dict[str, None] = {}
        self._rang_at: dict[str, float] = {}
        self._files: Files | None = None
        self._after: str | None = None  # the MAC that the round came to; None between two rounds
        self._seen: set[str] = set()
        self._round_at = -math.inf
        self._failures = 0
        self._not_before = 0.0
        self._said = ""
        self._stopped = threading.Event()
        self._stirred = threading.Event()  # a device is due, or asked for
        self._thread: threading.Thread | None = None

    # From any thread.

    def start(self) -> None:
        """Begin."""
        self._thread = threading.Thread(target=self._run, name="home-assistant", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Disconnect. Bounded."""
        self._stopped.set()
        self._stirred.set()
        if self._thread is not None:
            self._thread.join(STOP_SECONDS)

    def labels(self) -> tuple[str, ...]:
        """What metrics call the topics, beside that of discovery."""
        return () if self._discovery_prefix() is None else (STATE_LABEL,)

    def note(self, mac: str) -> None:
        """Something is new of this device."""
        if self._place.discovery_prefix is None:
            return
        self._due[mac] = None
        if len(self._due) > MAX_DEVICES:
            self._due.clear()
            self._round_at = -math.inf
        self._stirred.set()

    def ask(self, mac: str, payload: bytes) -> None:
        """Somebody wants this device to be updated, if the payload says so."""
        if payload == INSTALL.encode() and len(self._asked) < MAX_ASKED:
            self._asked[mac] = None
            self._stirred.set()

    # In the thread.

    def _run(self) -> None:
        is_busy = False
        while True:
            if is_busy or self._stirred.wait(LOOK_SECONDS):
                self._stopped.wait(PAUSE_SECONDS if is_busy else IDLE_SECONDS)
            if self._stopped.is_set():
                break
            self._stirred.clear()
            try:
                self._pass_on()
                is_busy = self._turn()
            except (StoreUnavailableError, StorageError) as error:
                is_busy = False
                self._wait(str(error), RETRY_SECONDS)
            except Exception:  # noqa: BLE001 - without this thread nothing would be said ever again
                is_busy = False
                logger.exception("home assistant")
                self._wait("", RETRY_SECONDS)
        self._leave()

    def _turn(self) -> bool:
        """Say some of what is to be said; whether there is more."""
        wanted = _HomeAssistantPlace(*self._broker(), self._discovery_prefix())
        if wanted != self._place:
            if self._kept and wanted.broker == self._place.broker and wanted[2] != self._place[2]:
                taken_back = [self._topics.message(topic, b"") for topic in list(self._kept)[: 2 * AT_ONCE]]
                if not self._say(taken_back):
                    self._kept.clear()
                return True
            self._move(wanted)
        if self._place.discovery_prefix is None or time.monotonic() < self._not_before:
            return False
        files = self._answers.catalogue.files(FILES_SECONDS)
        if self._files is not None and files is not self._files and _differs(files, self._files):
            self._round_at = -math.inf
        self._files = files
        if self._due:
            macs = list(self._due)[:AT_ONCE]
            for mac in macs:
                self._due.pop(mac, None)
            self._tell(macs, self._answers.reader.these(macs), files)
        if self._after is not None or time.monotonic() - self._round_at > ROUND_SECONDS:
            self._go_round(files)
        self._goes_well()
        return bool(self._due or self._asked) or self._after is not None

    def _move(self, place: _HomeAssistantPlace) -> None:
        self._leave()
        self._place = place
        self._topics = self._topics_at(place.discovery_prefix or "")
        self._kept = {}
        self._due.clear()
        self._after, self._round_at, self._failures, self._not_before = None, -math.inf, 0, 0.0
        if place.broker is not None and place.discovery_prefix is not None:
            self._kept = self._learned(place.broker)
            self._publisher = InlinePublisher(place.broker, _CountedPublishes(self._telemetry))

    def _leave(self) -> None:
        if self._publisher is not None:
            self._publisher.close()
            self._publisher = None

    def _go_round(self, files: Files) -> None:
        """Look at the next devices in the order of their MACs; at the end, at those that are kept and were not seen."""
        if self._after is None:
            self._after, self._round_at = "", time.monotonic()
            self._seen.clear()
        known = {one.mac: one for one in self._answers.reader.devices(after=self._after, limit=AT_ONCE)}
        macs = list(known)
        self._seen.update(macs)
        self._tell(macs, known, files)
        self._after = macs[-1] if len(macs) == AT_ONCE else None
        if self._after is None:
            self._due.update(dict.fromkeys({self._topics.mac(topic) for topic in self._kept} - self._seen))
            self._seen.clear()

    def _tell(self, macs: Sequence[str], known: Mapping[str, KnownDevice], files: Files) -> None:
        """Say what is new of these devices, and take back what is said of those that are gone."""
        reports = self._answers.reader.reports(macs)
        messages: list[Message] = []
        for mac in macs:
            device = known.get(mac)
            wanted: Mapping[str, bytes] = {}
            if device is not None:
                wanted = update_payloads(device, reports.get(mac, ()), files.current, files.etag, self._topics)
            state, discovery = self._topics.of(mac)
            if wanted and discovery not in self._kept and len(self._kept) >= 2 * MAX_DEVICES:
                self._tell_once(f"there are more than {MAX_DEVICES} devices on a channel: the others are left out")
                continue
            for topic in (state, discovery) if wanted else (discovery, state):
                payload = wanted.get(topic, b"")
                if (hash(payload) if payload else None) != self._kept.get(topic):
                    messages.append(self._topics.message(topic, payload))
        self._say(messages)

    def _say(self, messages: Sequence[Message]) -> bool:
        """Publish these; whether that went well. What fails is due again later."""
        if self._publisher is None or not messages:
            return True
        outcomes = self._publisher.publish(messages, time.monotonic() + PUBLISH_SECONDS)
        failed = [
            (message, outcome) for message, outcome in zip(messages, outcomes, strict=True) if outcome.is_transient
        ]
        for message, outcome in zip(messages, outcomes, strict=True):
            if outcome.is_transient:
                self._due[self._topics.mac(message.topic)] = None
            elif message.payload:
                self._kept[message.topic] = hash(message.payload)
            else:
                self._kept.pop(message.topic, None)
        if not failed:
            return True
        _, worst = max(failed, key=lambda one: one[1].forbidden)
        self._wait(worst.reason, REFUSED_SECONDS if worst.forbidden else RETRY_SECONDS)
        return False

    def _learned(self, broker: BrokerConfig) -> dict[str, int]:
        """What the broker keeps of devices, by topic. What it does not tell is said again."""
        kept: dict[str, int] = {}
        heard_at = time.monotonic()
        until = heard_at + LEARN_SECONDS

        def hear(message: Received) -> None:
            nonlocal heard_at
            heard_at = time.monotonic()
            if message.payload and self._topics.mac(message.topic) and len(kept) < 2 * MAX_DEVICES:
                kept[message.topic] = hash(message.payload)

        try:
            listening = subscriber_to(broker, self._topics.filters, qos=0, on_message=hear)
        except (TlsFileError, OSError):
            return kept
        listening.begin(broker.connect_timeout_seconds)
        while time.monotonic() < until and listening.last_error is None and not self._stopped.wait(PAUSE_SECONDS):
            if not listening.connected:
                heard_at = time.monotonic()
            elif time.monotonic() - heard_at > QUIET_SECONDS:
                break
        listening.stop()
        return kept

    def _pass_on(self) -> None:
        """Ring some of those devices that somebody wants to be updated."""
        macs = list(self._asked)[:AT_ONCE]
        if not macs or self._ring is None:
            return
        known, files = self._answers.reader.these(macs), self._answers.catalogue.files()
        now = time.monotonic()
        self._rang_at = {mac: at for mac, at in self._rang_at.items() if now - at < RING_AGAIN_SECONDS}
        for mac in macs:
            self._asked.pop(mac, None)
            if mac not in known or mac in self._rang_at:
                continue
            choice = choose(known[mac].assigned, known[mac].follows, files.current)
            info = None if choice is None else files.assets.get(choice.filename)
            if info is None:
                logger.info("there is no update for this device", extra={"device": mac})
                continue
            logger.info("somebody asked for this device's update", extra={"device": mac, "key": info.object_key})
            self._rang_at[mac] = now
            try:
                self._ring(info.object_key, mac)
            except Problem as problem:
                logger.warning("the device was not told of its update", extra={"device": mac, "detail": str(problem)})

    def _wait(self, reason: str, longest_seconds: float) -> None:
        """Try again later and later."""
        self._failures += 1
        self._not_before = time.monotonic() + min(2.0 ** min(self._failures, 10), longest_seconds)
        self._after = None
        self._tell_once(reason)

    def _goes_well(self) -> None:
        if self._failures and time.monotonic() >= self._not_before:
            self._failures, self._said = 0, ""
            logger.info("Home Assistant hears of devices again")

    def _tell_once(self, reason: str) -> None:
        if reason and reason != self._said:
            self._said = reason
            logger.warning("Home Assistant does not hear all of devices", extra={"detail": reason})

    def _topics_at(self, discovery_prefix: str) -> HomeAssistantTopics:
        return HomeAssistantTopics(self._topic_prefix, discovery_prefix, installs=self._ring is not None)


class _CountedPublishes:
    """Counts publishes as all others are counted; the connection's state is another's to tell."""

    def __init__(self, telemetry: Telemetry) -> None:
        self.published = telemetry.published

    def enabled(self, *, enabled: bool) -> None:
        """Nothing."""

    def connection(self, *, connected: bool) -> None:
        """Nothing."""

    def reconnect_attempt(self) -> None:
        """Nothing."""

    def event(self, source: str, outcome: str) -> None:
        """Nothing."""


def _differs(one: Files, other: Files) -> bool:
    """Whether another file is current, or one has another content."""
    contents = [{name: info.etag for name, info in files.assets.items()} for files in (one, other)]
    return one.current != other.current or contents[0] != contents[1]
