"""Feeds the bell from an SQS queue, for stores that speak S3 → SQS, in the batches that Lambda would get."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from functions.notify import plan, sqs_answer
from functions.publisher import backoff_seconds
from functions.telemetry import logger
from infra.host.bell import Bell

LONG_POLL_SECONDS = 20  # SQS' own maximum
MAX_MESSAGES = 10  # SQS' own maximum
STOP_SECONDS = 0.5

T = TypeVar("T")


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
        self._failures = 0

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
            try:
                await self._once()
                if self._failures:
                    logger.info("the queue is polled again", extra={"failed_attempts": self._failures})
                self._failures = 0
            except Exception as error:  # noqa: BLE001 - whatever ails the queue, events wait in it until it is well
                self._failures += 1
                if self._failures == 1:
                    logger.warning("the queue cannot be polled; trying on", extra={"reason": str(error)})
                await asyncio.sleep(backoff_seconds(self._failures))

    async def _once(self) -> None:
        received = await _in_thread(
            lambda: self._client.receive_message(
                QueueUrl=self._queue_url, MaxNumberOfMessages=MAX_MESSAGES, WaitTimeSeconds=LONG_POLL_SECONDS
            )
        )
        messages = received.get("Messages", [])
        if messages:
            self._batch = asyncio.create_task(self._settle(messages), name="sqs-batch")
            await asyncio.shield(self._batch)

    async def _settle(self, messages: list[dict[str, str]]) -> None:
        records = [{"messageId": m["MessageId"], "body": m["Body"], "eventSource": "aws:sqs"} for m in messages]
        settled = await self._bell.ring(plan({"Records": records}, self._bell.routes), "sqs")
        kept = {failure["itemIdentifier"] for failure in sqs_answer(settled)["batchItemFailures"]}
        done = [
            {"Id": str(index), "ReceiptHandle": m["ReceiptHandle"]}
            for index, m in enumerate(messages)
            if m["MessageId"] not in kept
        ]
        if done:
            await _in_thread(lambda: self._client.delete_message_batch(QueueUrl=self._queue_url, Entries=done))


async def _in_thread(call: Callable[[], T]) -> T:
    """Run a blocking call beside the loop, in a daemon: a long poll must not hold up the end of the process."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(result: T | None, error: BaseException | None) -> None:
        if future.done():
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]  # None only where T is None

    def work() -> None:
        result, error = None, None
        try:
            result = call()
        except Exception as raised:  # noqa: BLE001 - handed to whoever awaits
            error = raised
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(settle, result, error)

    threading.Thread(target=work, name="sqs", daemon=True).start()
    return await future
