"""The events that this host has in hand: announced and acknowledged, put off, or given up with a copy for a person."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from typing import TYPE_CHECKING

from nats.errors import ConnectionClosedError

from functions.backoff import backoff_seconds
from functions.events.plan import Settled, Step, plan_body
from functions.events.routes import Skip
from functions.telemetry import logger
from infra.host.bell import JETSTREAM
from infra.host.jetstream.announced import EventStanding
from infra.host.trouble import Trouble
from infra.jetstream.connection import explain

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nats.aio.msg import Msg
    from nats.js import JetStreamContext
    from nats.js.api import ConsumerConfig

    from infra.host.bell import Bell
    from infra.host.jetstream.announced import AnnouncedEvents
    from infra.host.metrics import JetStreamTelemetry
    from infra.host.mqtt.publisher import HostPublisher

MAX_IN_HAND = 100  # several times what is on its way to the broker at once
OUTAGE_DELAY_SECONDS = 1.0  # nothing is asked for before the broker is back
TAKEN_DELAY_SECONDS = 1.0  # beyond a publish's own deadline
DEAD_DELAY_SECONDS = 60.0
TRIES_PER_SECOND = 100.0  # of what is put off, at most
CROWDED = 0.8
"""Of MaxAckPending: beyond it JetStream delivers nothing, and what is put off counts too."""
MAX_OWED = 10_000
MAX_REASON_CHARACTERS = 200


class Hand:
    """Belongs to one event loop; outlives connections."""

    def __init__(
        self,
        bell: Bell,
        publisher: HostPublisher,
        telemetry: JetStreamTelemetry,
        known: AnnouncedEvents,
        *,
        dead_subject: str,
        stir: Callable[[], object],
    ) -> None:
        """`stir` is called when there is room again. Copies of what is given up go to `dead_subject`."""
        self.unsettled = 0
        """How many events of the consumer all hosts have in hand or have put off, as last seen."""
        self._bell = bell
        self._publisher = publisher
        self._telemetry = telemetry
        self._known = known
        self._dead_subject = dead_subject
        self._stir = stir
        self._js: JetStreamContext | None = None
        self._max_unsettled = 0
        self._messages: dict[asyncio.Task[None], Msg] = {}
        self._put_off: OrderedDict[int, float] = OrderedDict()  # until when, by the stream's number of the event
        self._owed: OrderedDict[int, str] = OrderedDict()  # why it was given up, where the copy is not there yet
        self._dead_trouble = Trouble(
            "what was given up cannot be copied to the dead-letter subject, and stays in the stream",
            "what was given up is copied again",
        )

    @property
    def room(self) -> int:
        """How many events to ask for: none while more than half of the room is taken."""
        free = MAX_IN_HAND - len(self._messages)
        return free if free >= MAX_IN_HAND // 2 else 0

    def use(self, js: JetStreamContext, consumer: ConsumerConfig) -> None:
        """Copy what is given up on this connection."""
        self._js = js
        self._max_unsettled = consumer.max_ack_pending or 0

    def take(self, message: Msg) -> None:
        """Deal with it. Returns at once."""
        task = asyncio.create_task(self._deal_with(message), name="jetstream-event")
        self._messages[task] = message
        task.add_done_callback(self._done)

    async def keep(self, period_seconds: float) -> None:
        """Say now and then that these are being worked on, for ever: nobody else shall get them."""
        while True:
            await asyncio.sleep(period_seconds)
            for message in tuple(self._messages.values()):
                await message.in_progress()

    async def emptied(self) -> None:
        """Wait until nothing is in hand."""
        while self._messages:
            await asyncio.wait(self._messages)

    def drop(self) -> None:
        """Leave what is in hand: it comes again, here or at another host."""
        for task in self._messages:
            task.cancel()

    def _done(self, task: asyncio.Task[None]) -> None:
        self._messages.pop(task, None)
        self._stir()
        if not task.cancelled() and (error := task.exception()) is not None:
            # It comes again, here or at another host, after the consumer's AckWait. That the connection was lost is
            # said elsewhere, and once.
            level = logger.debug if isinstance(error, ConnectionClosedError) else logger.warning
            level("an event of JetStream was left; it comes again", extra={"reason": explain(error)})

    async def _deal_with(self, message: Msg) -> None:
        number = message.metadata.sequence.stream
        is_first = message.metadata.num_delivered == 1
        self._put_off.pop(number, None)
        if (why := self._owed.get(number)) is not None:
            await self._give_up(message, why)
            return
        if not self._bell.configured:
            await message.nak(OUTAGE_DELAY_SECONDS)
            return
        steps = plan_body(message.data, self._bell.routes)
        if not await self._may_ring(steps, is_first=is_first):
            await self._delay(message, self._publisher.ack_seconds + TAKEN_DELAY_SECONDS)
            return
        settled = await self._bell.ring(steps, JETSTREAM)
        failed = [one for one in settled if one.failed]
        if any(one.retriable for one in failed):
            await self._try_again(message, failed)
        elif failed:
            await self._give_up(message, _why(failed))
        else:
            for identity in _identities(steps):
                if self._bell.knows(identity):
                    await self._known.announced(identity)
            await message.ack()

    async def _may_ring(self, steps: Sequence[Step], *, is_first: bool) -> bool:
        """Whether no other host has these in hand; what others have announced is known after this."""
        for identity in _identities(steps):
            if self._bell.knows(identity):
                continue
            standing = await self._known.look(identity, is_first=is_first)
            if standing is EventStanding.ANNOUNCED:
                self._bell.announced_elsewhere(identity)
            elif standing is EventStanding.TAKEN:
                return False
        return True

    async def _try_again(self, message: Msg, failed: Sequence[Settled]) -> None:
        if self._publisher.away:
            await self._delay(message, OUTAGE_DELAY_SECONDS)
        elif self._is_crowded:
            await self._give_up(message, f"too many events wait to be tried again; {_why(failed)}")
        else:
            paced_seconds = len(self._put_off) / TRIES_PER_SECOND
            await self._delay(message, max(backoff_seconds(message.metadata.num_delivered), paced_seconds))

    @property
    def _is_crowded(self) -> bool:
        now = time.monotonic()
        while self._put_off and next(iter(self._put_off.values())) < now:
            self._put_off.popitem(last=False)
        waiting = max(len(self._put_off), self.unsettled - len(self._messages))
        return 0 < CROWDED * self._max_unsettled <= waiting

    async def _delay(self, message: Msg, seconds: float) -> None:
        self._put_off[message.metadata.sequence.stream] = time.monotonic() + seconds
        await message.nak(seconds)

    async def _give_up(self, message: Msg, why: str) -> None:
        """Copy it for a person, and only then take it out of the stream."""
        metadata = message.metadata
        number = metadata.sequence.stream
        headers = {
            # A copy whose confirmation was lost is not made twice. A stream made anew counts from 1 again.
            "Nats-Msg-Id": f"{metadata.stream}.{number}.{metadata.timestamp.timestamp()}",
            "Bucketbell-Reason": why,
            "Bucketbell-Subject": message.subject,
        }
        try:
            if self._js is None:
                raise RuntimeError("no connection")  # noqa: TRY301 - as any other failure
            await self._js.publish(self._dead_subject, message.data, headers=headers)
        except Exception as error:  # noqa: BLE001 - whatever it is, the event must not be lost
            self._owed[number] = why
            while len(self._owed) > MAX_OWED:
                self._owed.popitem(last=False)
            reason = explain(error)
            self._dead_trouble.met(reason, kind=reason)
            await self._delay(message, DEAD_DELAY_SECONDS)
            return
        self._owed.pop(number, None)
        self._dead_trouble.ended()
        self._telemetry.dead_letter()
        await message.term()


def _identities(steps: Sequence[Step]) -> list[bytes]:
    return [step.action.identity for step in steps if not isinstance(step.action, Skip)]


def _why(failed: Sequence[Settled]) -> str:
    """In one line of a header's letters."""
    first = failed[0]
    words = f"{first.label}: {first.reason}"[:MAX_REASON_CHARACTERS]
    return "".join(letter if letter.isprintable() else " " for letter in words).encode("ascii", "replace").decode()
