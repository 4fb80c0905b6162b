"""Polls an SQS queue and invokes a function as Lambda's event source mapping does.

Source: AWS Lambda, "Using Lambda with Amazon SQS" and "Handling errors for an SQS event source". Moto has a mapping of
its own, which invokes inside the send, one record at a time, and deletes what the function names as failed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient
    from mypy_boto3_sqs.type_defs import MessageTypeDef

MAX_RECEIVED = 10  # SQS hands out no more at a time, and without a window a batch is no larger


@dataclass(frozen=True, slots=True)
class Invoked:
    """What became of an invocation: the function's answer, or where `error` is set, what is said of its failure."""

    payload: bytes
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Turn:
    """One batch: its records as the function got them, what stays in the queue, and the invocation, if any."""

    records: tuple[dict[str, Any], ...] = ()
    kept: frozenset[str] = frozenset()
    invoked: Invoked | None = None

    @property
    def received(self) -> list[str]:
        """The ids of its messages, sorted."""
        return sorted(one["messageId"] for one in self.records)


def kept(invoked: Invoked, message_ids: Iterable[str], *, partial: bool) -> frozenset[str]:
    """Which messages stay in the queue; `partial` is whether the mapping asks for `ReportBatchItemFailures`.

    An empty or null list of failures is success; an answer that is no JSON object, an id that is empty, null or
    unknown, or a wrong key name fails the whole batch.
    """
    everything = tuple(message_ids)
    failed = _failed(invoked.payload) if partial and invoked.error is None else []
    if invoked.error is not None or failed is None or not all(one in everything for one in failed):
        return frozenset(everything)
    return frozenset(map(str, failed))


def _failed(payload: bytes) -> list[object] | None:
    """The ids that an answer names, of any type; None where it is no answer."""
    try:
        answer = json.loads(payload or b"null")
    except ValueError:
        return None
    match answer:
        case {"batchItemFailures": list(failures)}:
            return [one.get("itemIdentifier") if isinstance(one, dict) else None for one in failures]
        case {"batchItemFailures": wrong} if wrong is not None:
            return None
        case None | dict():
            return []
    return None


class EventSourceMapping:
    """A queue, a function, and what `configuration` says of them in the words of the Lambda API.

    It deletes what succeeded and does nothing about the rest: that comes back when its visibility timeout is over, and
    SQS itself moves it to the dead-letter queue. One batch at a time: the emulated function stands for one sandbox.
    """

    def __init__(
        self,
        sqs: SQSClient,
        *,
        queue_url: str,
        configuration: Mapping[str, Any],
        invoke: Callable[[bytes], Invoked],
    ) -> None:
        """`configuration` needs `EventSourceArn`; a window to gather batches in is not emulated, and refused."""
        if int(configuration.get("MaximumBatchingWindowInSeconds") or 0):
            raise ValueError("MaximumBatchingWindowInSeconds is not emulated")
        self._sqs = sqs
        self._queue_url = queue_url
        self._queue_arn = str(configuration["EventSourceArn"])
        self._batch_size = min(int(configuration.get("BatchSize") or MAX_RECEIVED), MAX_RECEIVED)
        self._partial = "ReportBatchItemFailures" in (configuration.get("FunctionResponseTypes") or ())
        self._invoke = invoke

    def turn(self, wait_seconds: int) -> Turn:
        """Wait that long for a batch (0 to 20 s), have it worked on, and delete what is done."""
        messages = self._sqs.receive_message(
            QueueUrl=self._queue_url,
            MaxNumberOfMessages=self._batch_size,
            WaitTimeSeconds=wait_seconds,
            MessageSystemAttributeNames=["All"],
            MessageAttributeNames=["All"],
        ).get("Messages", [])
        if not messages:
            return Turn()
        records = tuple(map(self._record, messages))
        invoked = self._invoke(json.dumps({"Records": records}).encode())
        staying = kept(invoked, (one["MessageId"] for one in messages), partial=self._partial)
        done = [one for one in messages if one["MessageId"] not in staying]
        if done:
            answer = self._sqs.delete_message_batch(
                QueueUrl=self._queue_url,
                Entries=[{"Id": one["MessageId"], "ReceiptHandle": one["ReceiptHandle"]} for one in done],
            )
            assert not answer.get("Failed"), answer
        return Turn(records, staying, invoked)

    def _record(self, message: MessageTypeDef) -> dict[str, Any]:
        return {
            "messageId": message["MessageId"],
            "receiptHandle": message["ReceiptHandle"],
            "body": message["Body"],
            "attributes": message["Attributes"],
            "messageAttributes": message.get("MessageAttributes", {}),
            "md5OfBody": message["MD5OfBody"],
            "eventSource": "aws:sqs",
            "eventSourceARN": self._queue_arn,
            "awsRegion": self._queue_arn.split(":")[3],
        }
