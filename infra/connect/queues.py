"""AWS and other stores with SQS: one queue takes a bucket's events, and its policy lets the bucket send."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from functions.s3.clients import StorageError, storage_errors
from infra.connect import by_hand, documents
from infra.connect.errors import NO_SUCH_QUEUE, ConnectError, Rest, explained
from infra.connect.kinds import KINDS, StoreKind
from infra.connect.plans import BucketState, Change, Clients, Plan, Speak, Wish, creation, replace_rules, whole

if TYPE_CHECKING:
    from mypy_boto3_sqs.client import SQSClient

NOT_YET_KNOWN = "(known once it is created)"
# SQS: "changes can take up to 60 seconds to propagate" (SetQueueAttributes), and S3 tries the queue at once.
PROPAGATION_SECONDS = 75.0
PROPAGATION_POLL_SECONDS = 3.0


@dataclass(frozen=True, slots=True)
class Queue:
    """A queue as it is; `url` is None where it does not exist, `policy` None where it has none."""

    name: str
    url: str | None
    arn: str
    policy: str | None = None
    remarks: tuple[str, ...] = ()


def plan(clients: Clients, wish: Wish, state: BucketState, kind: StoreKind) -> Plan:
    """Plan queue, policy and rules; where nothing says that it has queues, and it has none, by hand."""
    before = whole(state)
    if wish.remove:
        return _removal(clients, wish, before)
    name = wish.queue_url or wish.queue_name
    with explained("sqs:GetQueueUrl, sqs:GetQueueAttributes", name):
        try:
            found = find(clients.sqs(), name=wish.queue_name, url=wish.queue_url)
        except StorageError as error:
            if state.kind == kind or wish.store == kind.name or error.code in NO_SUCH_QUEUE:
                raise
            return by_hand.plan(clients, wish, state, KINDS["other"])
    if found.url is None and not wish.create:
        raise ConnectError(
            "NoSuchQueue",
            f"There is no queue {found.name}.",
            "Add --create to make it and its dead-letter queue, or name one with --queue or --queue-url.",
        )
    if found.name.endswith(".fifo"):
        advice = "Name a standard queue with --queue or --queue-url."
        raise ConnectError("FifoQueue", f"S3 sends no events to a FIFO queue such as {found.name}.", advice)
    steps = creation(wish, state)
    if found.url is None:
        steps += (
            Change(f"create the queue {found.name} and its dead-letter queue {found.name}-dlq", _create),
            Change(f"allow {wish.bucket} to send to the queue {found.name}", allow),
        )
    elif _new_policy(found, wish.bucket) is not None:
        steps += (Change(f"allow {wish.bucket} to send to the queue {found.name}", allow),)
    return Plan(wish, kind, before, _changed(before, wish, found), steps, queue=found, bucket_missing=state.missing)


def write(clients: Clients, plan: Plan, say: Speak) -> None:
    """Put the rules; S3 learns of a new policy a minute late."""
    deadline = time.monotonic() + plan.patience_seconds
    change = partial(_changed, wish=plan.wish, found=plan.queue)
    while True:
        try:
            return replace_rules(clients.s3, plan.wish, change)
        except ConnectError as error:
            if error.code != "InvalidArgument" or time.monotonic() >= deadline:
                raise
        say("S3 may not send to the queue yet (its new policy takes up to a minute); trying again …")
        time.sleep(PROPAGATION_POLL_SECONDS)


def rest(_: Clients, plan: Plan) -> Rest:
    """Say which line the host needs."""
    if plan.wish.remove:
        names = documents.our_queue_names(plan.before)
        left = f"Left as they are, with what is in them: {', '.join(names)} and the dead-letter queue."
        return Rest(remarks=(left,) if names else ())
    assert plan.queue is not None  # noqa: S101 - `plan` has found or named one
    url = plan.queue.url
    line = (
        f"The host's environment needs this line, unless it has it already:\n\nSQS_QUEUE_URL={url}\n\n"
        "(not where a Lambda function takes this queue's messages: the two would share them)"
    )
    return Rest((line,) if url else (), plan.queue.remarks, {"host_environment": {"SQS_QUEUE_URL": url}})


def _removal(clients: Clients, wish: Wish, before: documents.Document) -> Plan:
    """Rules first: S3 refuses rules, others' too, while it may not reach a queue that they name."""
    last = []
    for name in documents.our_queue_names(before):
        with explained("sqs:GetQueueUrl, sqs:GetQueueAttributes", name):
            found = find(clients.sqs(), name=name)
        policy = documents.forget_bucket(found.policy, bucket=wish.bucket)
        if policy is not None:
            words = f"no longer allow {wish.bucket} to send to the queue {name}"
            last.append(Change(words, partial(_put_policy, found, policy)))
    return Plan(wish, KINDS["sqs"], before, _changed(before, wish, None), last=tuple(last))


def _changed(before: documents.Document, wish: Wish, found: Queue | None) -> documents.Document:
    """The rules as wished; ConnectError where somebody else's rule is in the way."""
    wanted = wish.rules({"queue": found.arn} if found else {})
    in_the_way = documents.overlapping(before, wanted)
    if in_the_way:
        raise ConnectError(
            "OverlappingRules",
            "The rules were not changed. S3 allows one rule for an event and a key, and the bucket has already:\n"
            + "\n".join(f"    {rule}" for rule in in_the_way),
            "Narrow or remove that rule, or let it send to an SNS topic or EventBridge that feeds both.",
        )
    return documents.merge(before, wanted)


def _create(clients: Clients, plan: Plan, _: Speak) -> Plan:
    assert plan.queue is not None  # noqa: S101 - this step is planned with it
    with explained("sqs:CreateQueue, sqs:GetQueueAttributes", plan.queue.name):
        return replace(plan, queue=create(clients.sqs(), plan.queue.name))


def allow(clients: Clients, plan: Plan, say: Speak) -> Plan:
    """Let the bucket send to the queue, as the queue is now."""
    assert plan.queue is not None  # noqa: S101 - this step is planned with it
    policy = _new_policy(plan.queue, plan.wish.bucket)
    return plan if policy is None else _put_policy(plan.queue, policy, clients, plan, say)


def _new_policy(found: Queue, bucket: str) -> str | None:
    return documents.allow_bucket(found.policy, bucket=bucket, queue_arn=found.arn)


def _put_policy(queue: Queue, policy: str, clients: Clients, plan: Plan, _: Speak) -> Plan:
    with explained("sqs:SetQueueAttributes", queue.name):
        put_policy(clients.sqs(), queue, policy)
    return replace(plan, patience_seconds=PROPAGATION_SECONDS)


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
