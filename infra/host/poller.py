"""Feeds the bell from an SQS queue, for stores that speak S3 → SQS, in the batches that Lambda would get."""

from __future__ import annotations

import asyncio
from typing import Any

from functions.events.envelopes import SqsMessage
from functions.events.plan import plan_batch, to_keep
from infra.host.bell import Bell
from infra.host.threads import in_thread
from infra.host.trouble import Trouble

LONG_POLL_SECONDS = 20  # SQS' own maximum
MAX_MESSAGES = 10  # SQS' own maximum
STOP_SECONDS = 0.5
OFF_SECONDS = 1.0  # between two looks whether there is a broker to publish to


class Poller:
    """Receives, rings, and deletes only what succeeded; the rest comes back when its visibility time-out ends.

    A long poll that is under way at `stop` is abandoned: a message that it would have brought is delayed, not lost.
    """

    def __init__(self, client: Any, queue_url: str, bell: Bell) -> None:  # noqa: ANN401 - boto3 makes its clients at run time
        """`client` is boto3's for SQS, with a read time-out above `LONG_POLL_SECONDS`."""
        self._client = client
        self._queue_url = queue_url
        self._bell = bell
        self._task: asyncio.Task[None] | None = None
        self._batch: asyncio.Task[None] | None = None
        self._trouble = Trouble("the queue cannot be polled; trying again", "the queue is polled again")

    async def start(self) -> None:
        """Begin to poll. Returns at once."""
        self._task = asyncio.create_task(self._run(), name="sqs-poller")

    async def stop(self) -> None:
        """End; a batch in hand is finished first, within `STOP_SECONDS`."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task, self._batch] if self._batch else [self._task], timeout=STOP_SECONDS)

    async def _run(self) -> None:
        while True:
            if not self._bell.configured:  # publishing is switched off: the queue keeps what comes meanwhile
                await asyncio.sleep(OFF_SECONDS)
                continue
            try:
                await self._once()
                self._trouble.ended()
            except Exception as error:  # noqa: BLE001 - whatever is wrong with the queue, its events wait
                await asyncio.sleep(self._trouble.met(str(error)))

    async def _once(self) -> None:
        received = await in_thread(
            lambda: self._client.receive_message(
                QueueUrl=self._queue_url, MaxNumberOfMessages=MAX_MESSAGES, WaitTimeSeconds=LONG_POLL_SECONDS
            )
        )
        messages = received.get("Messages", [])
        if messages and self._bell.configured:  # switched off during the long poll: they come back to the queue
            self._batch = asyncio.create_task(self._settle(messages), name="sqs-batch")
            await asyncio.shield(self._batch)

    async def _settle(self, messages: list[dict[str, str]]) -> None:
        batch = [SqsMessage.of(m["MessageId"], m["Body"]) for m in messages]
        kept = to_keep(await self._bell.ring(plan_batch(batch, self._bell.routes), "sqs"))
        done = [
            {"Id": str(index), "ReceiptHandle": m["ReceiptHandle"]}
            for index, m in enumerate(messages)
            if m["MessageId"] not in kept
        ]
        if done:
            await in_thread(lambda: self._client.delete_message_batch(QueueUrl=self._queue_url, Entries=done))
