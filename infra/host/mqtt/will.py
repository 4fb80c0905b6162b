"""Asks now and then whether the broker takes our last will after all: on a second connection, while ours goes on."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

from functions.admin.probe import probe
from functions.mqtt.outcome import Outcome, Status
from infra.host.mqtt.birth_messages import WILL
from infra.host.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from infra.host.mqtt.birth_messages import BirthMessages
    from infra.host.mqtt.link import Link


class WillTrial:
    """At most one at a time. Belongs to one event loop, as does every call."""

    def __init__(self, link: Link, births: Callable[[], BirthMessages]) -> None:
        """`births` is what is known of the present broker."""
        self._link = link
        self._births = births
        self._task: asyncio.Task[None] | None = None

    def begin(self) -> bool:
        """Begin to ask, unless that is going on already; return whether it has begun."""
        if self._task is not None and not self._task.done():
            return False
        self._task = asyncio.create_task(self._ask(), name="mqtt-will")
        return True

    async def stop(self) -> None:
        """Ask no more."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _ask(self) -> None:
        """Connect again if the broker takes it now."""
        broker, births = self._link.broker, self._births()
        if broker is None:
            return
        verdict = await in_thread(lambda: probe(broker))
        if births is not self._births():
            return
        if verdict.ok and not verdict.will_refused:
            births.take_in(WILL)
            self._link.use(broker)
        else:
            why = Outcome(Status.REFUSED, verdict.will_refused or verdict.detail, verdict.reason_code)
            births.leave_out(WILL, why, time.monotonic())
