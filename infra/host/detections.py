"""Brings detection events on their way: their documents are read in threads, then published."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence

from functions.cameras.detections import CameraTopics
from functions.cameras.reader import READERS, DetectionReader, ReadDetection, outcome
from functions.events.routes import Detection, Unread
from functions.mqtt.message import Message
from functions.mqtt.outcome import Outcome, Status
from infra.host.mqtt.publisher import HostPublisher, QueueFullError
from infra.host.pending import Pending
from infra.host.threads import Daemons

MAX_WAITING = 1_000
AWAY_SECONDS = 60.0  # a store that was out of reach counts as such for so long, unless it answers
READ_SECONDS = 8.0  # longer than the store's own deadlines, which hold while it is silent, not while it trickles


class Reading:
    """One detection event on its way. `done` gets exactly one verdict, also when nobody waits any more."""

    __slots__ = ("done", "object_key")

    def __init__(self, object_key: str = "") -> None:
        self.object_key = object_key
        self.done = Pending[Outcome | Unread]()


class HostReader:
    """Bounded in threads, in waiting events and in time. Every call belongs to the event loop."""

    def __init__(
        self,
        reader: DetectionReader,
        publisher: HostPublisher,
        *,
        on_camera: Callable[[str, str], Sequence[Message]] = lambda _camera_id, _name: (),
        on_camera_failed: Callable[[str], object] = lambda _camera_id: None,
    ) -> None:
        """`on_camera` says what goes before an event of this camera (its id, and its name as the event has it).

        `on_camera_failed` hears of a camera whose event, or what went before it, did not reach the broker.
        """
        self._reader = reader
        self._publisher = publisher
        self._on_camera = on_camera
        self._on_camera_failed = on_camera_failed
        self._pool = Daemons(READERS)
        self._control = Daemons(1)  # of its own: all readers may hang
        self._asking: asyncio.Future[bool] | None = None
        self._away_until = 0.0
        self._waiting = 0
        self._holds = False
        self._held: dict[Reading, tuple[ReadDetection, asyncio.TimerHandle]] = {}

    @property
    def store_away(self) -> bool:
        """Whether the store does not even answer a LIST."""
        return time.monotonic() < self._away_until

    def use(self, topics: CameraTopics | None) -> None:
        """Publish there what is read. None: it is not known yet, and events wait, but not longer than any other."""
        self._holds = topics is None
        if topics is not None:
            self._reader.topics = topics
            for reading in list(self._held):
                found, timer = self._held.pop(reading)
                timer.cancel()
                self._publish(found, reading)

    def submit(self, detection: Detection) -> Reading:
        """Put one event on its way. Raises `QueueFullError`."""
        if self._waiting >= MAX_WAITING:
            raise QueueFullError
        loop = asyncio.get_running_loop()
        reading = Reading(detection.object_key)
        self._waiting += 1
        read = loop.run_in_executor(self._pool, self._reader.read, detection)
        timer = loop.call_later(READ_SECONDS, read.cancel)
        read.add_done_callback(lambda _: self._has_read(read, timer, reading))
        return reading

    async def close(self) -> None:
        """Read no more. A thread that hangs is not waited for, and what waits to be sent is not confirmed."""
        self._pool.shutdown()
        self._control.shutdown()
        for reading in list(self._held):
            _, timer = self._held[reading]
            timer.cancel()
            self._give_up(reading)

    def _has_read(
        self, read: asyncio.Future[ReadDetection | Unread], timer: asyncio.TimerHandle, reading: Reading
    ) -> None:
        timer.cancel()
        found = outcome(read)
        if isinstance(found, Unread) and not found.answered and found.retriable:
            # First find out whether this event or all of the store is concerned: nobody has heard of it yet.
            self._waiting -= 1
            self._ask_store().add_done_callback(lambda _: reading.done.set_result(found))
            return
        self._away_until = 0.0
        if isinstance(found, Unread):
            self._waiting -= 1
            reading.done.set_result(found)
        elif self._holds:
            self._publisher.demand()
            loop = asyncio.get_running_loop()
            self._held[reading] = found, loop.call_later(self._publisher.ack_seconds, self._give_up, reading)
        else:
            self._publish(found, reading)

    def _give_up(self, reading: Reading) -> None:
        del self._held[reading]
        self._waiting -= 1
        status = self._publisher.status
        reason = status.reason or "what the broker keeps of cameras is not known yet"
        reading.done.set_result(Outcome(Status.UNCONFIRMED, reason, status.reason_code))

    def _publish(self, found: ReadDetection, reading: Reading) -> None:
        self._waiting -= 1
        try:
            before = [self._publisher.submit(one) for one in self._on_camera(found.camera_id, found.camera_name)]
            pending = self._publisher.submit(found.message)
        except QueueFullError:
            self._on_camera_failed(found.camera_id)
            reading.done.set_result(Outcome(Status.UNCONFIRMED, "too many notifications wait already"))
            return
        for one in before:
            one.done.add_done_callback(lambda done: self._has_announced(found.camera_id, done.result()))
        pending.done.add_done_callback(lambda done: reading.done.set_result(done.result()))

    def _ask_store(self) -> asyncio.Future[bool]:
        """Have `store_away` tell the truth; one call at a time is enough."""
        if self._asking is None:
            loop = asyncio.get_running_loop()
            self._asking = loop.run_in_executor(self._control, self._reader.store_answers)
            timer = loop.call_later(READ_SECONDS, self._asking.cancel)
            self._asking.add_done_callback(lambda asked: self._has_asked(asked, timer))
        return self._asking

    def _has_asked(self, asked: asyncio.Future[bool], timer: asyncio.TimerHandle) -> None:
        self._asking = None
        timer.cancel()
        answers = not asked.cancelled() and asked.exception() is None and asked.result()
        self._away_until = 0.0 if answers else time.monotonic() + AWAY_SECONDS

    def _has_announced(self, camera_id: str, fate: Outcome) -> None:
        if not fate.success:
            self._on_camera_failed(camera_id)
