"""What the host knows of one key, put together for an administrator; and a file that is announced again by hand."""

from __future__ import annotations

import asyncio
import time
import uuid
from datetime import UTC
from typing import TYPE_CHECKING, TypeVar

from functions.admin.known import BY_HAND, HeardEvent, Held, Known, Sweep
from functions.admin.operations import CannotPublishError
from functions.events.dialects import ObjectCreated
from functions.events.plan import Settled, Step
from functions.events.routes import Skip, Upload
from functions.stored.errors import StoreUnavailableError
from functions.stored.ring import Verdict, verdict
from infra.host.history import Remembered, of_key
from infra.host.twins import renamed

if TYPE_CHECKING:
    from collections.abc import Coroutine, Sequence

    from functions.s3.objects import ObjectInfo
    from functions.stored.ring import Ring
    from infra.host.bell import Bell
    from infra.host.mqtt.publisher import HostPublisher
    from infra.host.sweep.state import State
    from infra.host.sweep.sweeper import Sweeper

LOOP_SECONDS = 2.0
RING_SECONDS = 6.0  # for the broker's word: the client waits for all of it

T = TypeVar("T")


class Inquiry:
    """The host's `functions.admin.uploads.Ringing`: its methods are for handlers' threads."""

    def __init__(
        self, bell: Bell, publisher: HostPublisher, *, state: State | None = None, sweeper: Sweeper | None = None
    ) -> None:
        """`state` is what the sweep knows of rings, where there is a sweep."""
        self._bell = bell
        self._publisher = publisher
        self._state = state
        self._sweeper = sweeper
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Begin to take questions, on the running loop."""
        self._loop = asyncio.get_running_loop()

    def known(self, key: str, found: ObjectInfo | None) -> Known:
        """See `Ringing.known`."""
        history = self._bell.history

        async def look() -> tuple[tuple[Remembered, ...], float, tuple[bytes, ...]]:
            return history.events(), history.since, self._bell.on_way(key)

        remembered, since, on_way = self._on_loop(look(), LOOP_SECONDS)
        events, left_out = of_key(remembered, key)
        held, rung = self._on_loop(self._judged(events, on_way), LOOP_SECONDS)
        sweep, detail, at = self._swept(found)
        status = self._publisher.status
        return Known(
            since=since,
            now=time.time(),
            broker=status.broker,
            connected=status.connected,
            trouble=status.reason,
            events=tuple(events),
            left_out=left_out,
            on_way=on_way,
            rung=rung,
            held=held,
            sweep=sweep,
            sweep_detail=detail,
            sweep_trouble="" if self._sweeper is None else self._sweeper.problem,
            sweep_at=at,
        )

    def has_heard(self, key: str) -> bool:
        """See `Ringing.has_heard`."""

        async def look() -> tuple[Remembered, ...]:
            return self._bell.history.events()

        return bool(of_key(self._on_loop(look(), LOOP_SECONDS), key)[0])

    def ring(self, found: ObjectInfo, device: str | None) -> Settled:
        """See `Ringing.ring`."""
        status = self._publisher.status
        if status.broker is None:
            raise CannotPublishError("No broker is configured: set MQTT_URL.")
        if not status.connected:
            raise CannotPublishError(f"The broker is not connected: {status.reason or 'try again soon'}.")
        modified = found.last_modified.astimezone(UTC)
        # The sweep compares what rang by etag and this time.
        created = ObjectCreated(
            self._bell.routes.bucket or "",
            found.object_key,
            "ObjectCreated:Put",
            modified.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            found.etag,
            found.size,
            found.version_id,
        )
        action = self._bell.routes.route(created)
        if not isinstance(action, Skip):
            action = renamed(action, uuid.uuid4().bytes)  # devices drop what has an id that they know

        async def ring() -> Settled:
            step = Step(created, action)
            if device is not None and isinstance(action, Upload):
                return await self._bell.ring_device(step, self._bell.routes.to_device(action, device))
            (settled,) = await self._bell.ring((step,), BY_HAND)
            return settled

        try:
            return self._on_loop(ring(), RING_SECONDS)
        except TimeoutError:
            raise CannotPublishError("The broker has not answered in time; the message may have arrived.") from None

    async def _judged(
        self, events: list[HeardEvent], on_way: tuple[bytes, ...]
    ) -> tuple[Held | None, frozenset[bytes]]:
        """Why the latest of these fails now, if it does; and which of them were announced."""
        identities = [*on_way, *(one.identity for one in reversed(events) if one.identity)]
        found = next(filter(None, map(self._bell.holdups.of, identities)), None)
        held = None if found is None else Held(f"{found[0].reason} ({found[0].place})", *found[1:])
        return held, frozenset(filter(self._bell.knows, identities))

    def _swept(self, found: ObjectInfo | None) -> tuple[Sweep, str, float | None]:
        """What the sweep's record says of the file as it is, in words, and when that was."""
        if self._state is None or self._sweeper is None:
            return "off", "", None
        if found is None:
            return "not_checked", "", None
        try:
            rings = self._state.of_keys([found.object_key]).get(found.object_key, [])
        except StoreUnavailableError as error:
            return "not_checked", str(error), None
        return _compared(found, rings, self._sweeper.pause_seconds)

    def _on_loop(self, call: Coroutine[object, object, T], seconds: float) -> T:
        if self._loop is None:
            call.close()
            raise RuntimeError("the host has not started")
        future = asyncio.run_coroutine_threadsafe(call, self._loop)
        try:
            return future.result(seconds)
        except TimeoutError:
            future.cancel()
            raise


def _compared(found: ObjectInfo, rings: Sequence[Ring], pause_seconds: float) -> tuple[Sweep, str, float | None]:
    """What the record says of the file as it is, in words, and when that was."""
    modified = int(found.last_modified.timestamp() * 1000)
    if modified % 1000 == 0:  # as HEAD tells it; LIST may know more
        rings = [ring._replace(modified=ring.modified // 1000 * 1000) if ring.is_exact else ring for ring in rings]
    what, ring = verdict(found.etag, modified, rings)
    if what is Verdict.ROLLBACK:
        words = "an older content has come back, which is not announced again (a version was deleted?)"
        return "rolled_back", words, None if ring is None else ring.modified / 1000
    if ring is None:
        return (
            "unannounced",
            f"the sweep announces it within {pause_seconds:g} s and the grace, unless a door does",
            None,
        )
    if not ring.identity:
        return "counted", "it was there before the first sweep, and counts as announced", ring.modified / 1000
    return (
        "announced",
        f"the sweep's record holds its announcement (id {ring.identity.hex()})",
        ring.modified / 1000,
    )
