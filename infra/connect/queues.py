"""Finds, creates and allows the SQS queue that a bucket's events go to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from functions.s3.clients import StorageError, storage_errors
from infra.connect import documents

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

# The second is what the JSON protocol's exception is called, the first what it was called before.
NO_SUCH_QUEUE = frozenset({"AWS.SimpleQueueService.NonExistentQueue", "QueueDoesNotExist"})
NOT_YET_KNOWN = "(known once it is created)"


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it is; `url` is None where it does not exist, `policy` None where it has none."""

    name: str
    url: str | None
    arn: str
    policy: str | None = None
    remarks: tuple[str, ...] = ()


def find(sqs: SQSClient, *, name: str, url: str | None = None) -> Queue:
    """Look for a queue by `url`, else by `name`. Raises StorageError; a queue that a `url` names must exist."""
    try:
        with storage_errors():
            url = url or sqs.get_queue_url(QueueName=name)["QueueUrl"]
            attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
    except StorageError as error:
        if url is None and error.code in NO_SUCH_QUEUE:
            return Queue(name, None, NOT_YET_KNOWN)
        raise
    arn = attributes["QueueArn"]
    return Queue(arn.split(":")[-1], url, arn, attributes.get("Policy"), _remarks(attributes))


def create(sqs: SQSClient, name: str) -> Queue:
    """Make the queue and, first, its dead-letter queue `<name>-dlq`."""
    with storage_errors():
        dead_letter_url = sqs.create_queue(QueueName=f"{name}-dlq", Attributes=documents.dead_letter_attributes())[
            "QueueUrl"
        ]
        answer = sqs.get_queue_attributes(QueueUrl=dead_letter_url, AttributeNames=["QueueArn"])
        url = sqs.create_queue(QueueName=name, Attributes=documents.queue_attributes(answer["Attributes"]["QueueArn"]))[
            "QueueUrl"
        ]
    return find(sqs, name=name, url=url)


def put_policy(sqs: SQSClient, queue: Queue, policy: str) -> None:
    """Replace the queue's policy; an empty one deletes it."""
    assert queue.url is not None  # noqa: S101 - only a queue that was found has a policy to replace
    with storage_errors():
        sqs.set_queue_attributes(QueueUrl=queue.url, Attributes={"Policy": policy})


def _remarks(attributes: Mapping[Any, str]) -> tuple[str, ...]:
    """What a person should know about a queue that somebody else made. It is not changed."""
    remarks = []
    if "RedrivePolicy" not in attributes:
        remarks.append(
            "The queue has no dead-letter queue: an event that can never succeed comes back "
            "until the queue's retention ends."
        )
    else:
        receives = int(json.loads(attributes["RedrivePolicy"]).get("maxReceiveCount", 0))
        visibility_seconds = int(attributes.get("VisibilityTimeout", "0"))
        if receives * visibility_seconds < documents.SHORTEST_OUTAGE_SECONDS:
            remarks.append(
                f"With {receives} receives, {visibility_seconds} s apart, a broker outage of more than "
                f"{receives * visibility_seconds // 60} min moves events to the dead-letter queue."
            )
    if attributes.get("KmsMasterKeyId"):
        remarks.append(
            "The queue is encrypted with a KMS key: its key policy must let s3.amazonaws.com use "
            "kms:GenerateDataKey and kms:Decrypt."
        )
    return tuple(remarks)
