"""Feeds the bell from a queue, for stores that put their events into one: SQS, or one of its like."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

from functions.events.envelopes import Malformed, SqsMessage
from functions.events.plan import Step, plan_batch, to_keep
from functions.telemetry import logger
from infra.host.bell import Bell
from infra.host.threads import in_thread
from infra.host.trouble import Trouble

LONG_POLL_SECONDS = 20  # SQS' own maximum
MAX_MESSAGES = 10  # SQS' own maximum
STOP_SECONDS = 0.5
OFF_SECONDS = 1.0  # between two looks whether there is a broker to publish to
WARN_SECONDS = 60.0


class QueuedMessage(NamedTuple):
    """A message, what the queue wants to hear when it is dealt with, and how often it has come so far."""

    message: SqsMessage
    receipt: str
    tries: int = 1


class PolledQueue(Protocol):
    """Where messages come from. Its calls block, and raise if the queue cannot be asked."""

    source: str
    """Its name among the sources of events."""
    pause_seconds: float
    """Between two calls of `receive` of which the first has brought nothing."""
    is_shared: bool
    """Whether what is not for us may be for others. Such a queue counts tries, too: nothing may be fetched in vain."""

    def receive(self) -> list[QueuedMessage]:
        """What is there, or comes while the queue waits for us."""

    def settle(self, done: Sequence[QueuedMessage], kept: Sequence[QueuedMessage]) -> None:
        """Take out what is done. What is kept comes again."""


class SqsQueue:
    """An SQS queue, in the batches that Lambda would get. What is kept comes back when its visibility time-out ends."""

    source = "sqs"
    pause_seconds = 0.0  # its call waits
    is_shared = False

    def __init__(self, client: Any, queue_url: str) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
        """`client` is boto3's for SQS, with a read time-out above `LONG_POLL_SECONDS`."""
        self._client = client
        self._queue_url = queue_url

    def receive(self) -> list[QueuedMessage]:
        """See `PolledQueue`."""
        received = self._client.receive_message(
            QueueUrl=self._queue_url, MaxNumberOfMessages=MAX_MESSAGES, WaitTimeSeconds=LONG_POLL_SECONDS
        )
        messages = received.get("Messages", [])
        return [QueuedMessage(SqsMessage.of(one["MessageId"], one["Body"]), one["ReceiptHandle"]) for one in messages]

    def settle(self, done: Sequence[QueuedMessage], kept: Sequence[QueuedMessage]) -> None:
        """See `PolledQueue`."""
        del kept
        entries = [{"Id": str(index), "ReceiptHandle": one.receipt} for index, one in enumerate(done)]
        if entries:
            self._client.delete_message_batch(QueueUrl=self._queue_url, Entries=entries)


class Poller:
    """Receives, rings, and takes out only what succeeded.

    A call that is under way at `stop` is abandoned: a message that it would have brought is delayed, not lost.
    """

    def __init__(self, queue: PolledQueue, bell: Bell) -> None:
        """Nothing is asked before `start`."""
        self._queue = queue
        self._bell = bell
        self._task: asyncio.Task[None] | None = None
        self._batch: asyncio.Task[None] | None = None
        self._warned_at = -WARN_SECONDS
        self._trouble = Trouble("the queue cannot be polled; trying again", "the queue is polled again")

    async def start(self) -> None:
        """Begin to poll. Returns at once."""
        self._task = asyncio.create_task(self._run(), name=f"{self._queue.source}-poller")

    async def stop(self) -> None:
        """End; a batch in hand is finished first, within `STOP_SECONDS`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task, self._batch] if self._batch else [self._task], timeout=STOP_SECONDS)

    @property
    def _is_wanted(self) -> bool:
        """Whether to take anything. If publishing is switched off, the queue keeps what comes meanwhile."""
        return self._bell.configured and (self._bell.is_ready or not self._queue.is_shared)

    async def _run(self) -> None:
        while True:
            if not self._is_wanted:
                await asyncio.sleep(OFF_SECONDS)
                continue
            try:
                is_idle = not await self._once()
                self._trouble.ended()
                if is_idle:
                    await asyncio.sleep(self._queue.pause_seconds)
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the queue, its events wait
                await asyncio.sleep(self._trouble.met(str(error)))

    async def _once(self) -> bool:
        """Deal with what is there; whether anything was."""
        received = await in_thread(self._queue.receive)
        if received and self._bell.configured:  # switched off during a long poll: they come back to the queue
            self._batch = asyncio.create_task(self._settle(received), name=f"{self._queue.source}-batch")
            await asyncio.shield(self._batch)
        return bool(received)

    async def _settle(self, received: list[QueuedMessage]) -> None:
        steps = plan_batch([one.message for one in received], self._bell.routes)
        foreign = {step.message_id for step in steps if self._is_foreign(step)} if self._queue.is_shared else set()
        kept = foreign.union(to_keep(await self._bell.ring(steps, self._queue.source)))
        if foreign and time.monotonic() - self._warned_at > WARN_SECONDS:
            self._warned_at = time.monotonic()
            words = "the queue holds messages that are no events of our bucket: they are left to its retries"
            logger.warning(words, extra={"queue": self._queue.source, "messages": len(foreign)})
        done = [one for one in received if one.message.message_id not in kept]
        left = [one for one in received if one.message.message_id in kept]
        await in_thread(lambda: self._queue.settle(done, left))

    def _is_foreign(self, step: Step) -> bool:
        """Whether it tells of another bucket, or of no bucket at all."""
        ours = self._bell.routes.bucket
        return isinstance(step.record, Malformed) or (ours is not None and step.record.bucket != ours)
