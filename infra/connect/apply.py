"""Looks at a bucket, plans what `connect` has to change, and changes it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Literal, cast
from xml.etree import ElementTree as ET

from functions.s3.clients import StorageError, storage_errors
from infra.connect import documents, queues
from infra.connect.documents import Document
from infra.connect.errors import ConnectError, explain, explained, unsupported

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

# SQS: "changes can take up to 60 seconds to propagate" (SetQueueAttributes), and S3 tries the queue at once.
PROPAGATION_SECONDS = 75.0
MINIO_START_SECONDS = 2.0
MINIO_POLL_SECONDS = 0.2
PROPAGATION_POLL_SECONDS = 3.0

Store = Literal["minio", "sqs"]

VERSITY = "versitygw"
"""It knows no notification rules, and yet posts events: its command line says where."""
_SEAWEED = "seaweedfs"  # its webhooks have a form of their own, which the host does not read

_NO_RULES = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})

_BEFORE_PARSE = "before-parse.s3.GetBucketNotificationConfiguration"
_ROOT = "NotificationConfiguration"


@dataclass(frozen=True, slots=True)
class Wish:
    """What was asked for.

    `prefixes` and `targets` (MinIO's ARNs) are by name. `store` `auto`: find out. `queue_url` beats `queue_name`.
    """

    bucket: str
    prefixes: Mapping[str, str]
    targets: Mapping[str, str]
    queue_name: str
    queue_url: str | None = None
    store: Store | Literal["auto"] = "auto"
    create: bool = False
    remove: bool = False


@dataclass(frozen=True, slots=True)
class Plan:
    """What there is and what it becomes; nothing has been changed yet.

    `queue` is where the events go, None on MinIO; `policies` are the queues whose policy changes, with the new one.
    `store` is `none` where it sends no events.
    """

    wish: Wish
    store: Store | Literal["none"]
    bucket_missing: bool
    before: Document
    after: Document
    queue: queues.Queue | None = None
    policies: tuple[tuple[queues.Queue, str], ...] = ()

    @property
    def steps(self) -> tuple[str, ...]:
        """What is done besides the bucket's rules, in words."""
        bucket = self.wish.bucket
        steps = [f"create the bucket {bucket}"] if self.bucket_missing else []
        if self.queue and self.queue.url is None:
            name = self.queue.name
            steps.append(f"create the queue {name} and its dead-letter queue {name}-dlq")
            steps.append(f"allow {bucket} to send to the queue {name}")
        word = "no longer allow" if self.wish.remove else "allow"
        return (*steps, *(f"{word} {bucket} to send to the queue {one.name}" for one, _ in self.policies))

    @property
    def changes_anything(self) -> bool:
        """Whether `carry_out` would write at all."""
        return bool(self.steps) or self.before != self.after


@dataclass(frozen=True, slots=True)
class Clients:
    """Clients of the store; SQS only on demand, because MinIO has none."""

    s3: S3Client
    sqs: Callable[[], SQSClient]
    region: str


def look(clients: Clients, wish: Wish) -> Plan:
    """Read what is there and plan the change. Writes nothing. Raises ConnectError."""
    try:
        before, server, missing = _read(clients.s3, wish.bucket)
    except StorageError as error:
        if error.code != "NotImplemented" and error.status not in _NO_RULES:
            raise explain(error, "s3:GetBucketNotification", wish.bucket) from None
        if error.server and error.server.lower().startswith(VERSITY):
            raise unsupported(VERSITY) from None
        return Plan(wish, "none", bucket_missing=False, before={}, after={})
    if server.startswith(_SEAWEED):
        return Plan(wish, "none", missing, before={}, after={})
    if missing and (wish.remove or not wish.create):
        advice = "Correct --bucket." if wish.remove else "Add --create to make it, or correct --bucket."
        raise ConnectError("NoSuchBucket", f"There is no bucket {wish.bucket}.", advice)
    if wish.store == "minio" or (wish.store == "auto" and server == "minio"):
        return Plan(wish, "minio", missing, before, _changed(before, wish, None))
    if wish.remove:
        return _plan_removal(clients, wish, before)
    found = _find_queue(clients, wish, server)
    if found.url is None and not wish.create:
        raise ConnectError(
            "NoSuchQueue",
            f"There is no queue {found.name}.",
            "Add --create to make it and its dead-letter queue, or name one with --queue or --queue-url.",
        )
    if found.name.endswith(".fifo"):
        advice = "Name a standard queue with --queue or --queue-url."
        raise ConnectError("FifoQueue", f"S3 sends no events to a FIFO queue such as {found.name}.", advice)
    after = _changed(before, wish, found)
    return Plan(wish, "sqs", missing, before, after, found, _new_policies(found, wish.bucket))


def carry_out(clients: Clients, plan: Plan, say: Callable[[str], None]) -> Plan:
    """Make the plan true; return it with the queue as it is now. Raises ConnectError. `say` hears of waits."""
    wish, found = plan.wish, plan.queue
    if plan.bucket_missing:
        with explained("s3:CreateBucket", wish.bucket):
            _create_bucket(clients, wish.bucket, plan.store)
    if found and found.url is None:
        with explained("sqs:CreateQueue, sqs:GetQueueAttributes", found.name):
            found = queues.create(clients.sqs(), found.name)
    policies = plan.policies if wish.remove or found is None else _new_policies(found, wish.bucket)
    if wish.remove:
        # Before the policies: S3 refuses rules, others' too, while it may not reach a queue that they name.
        _write_rules(clients.s3, wish, None)
    for one, policy in policies:
        with explained("sqs:SetQueueAttributes", one.name):
            queues.put_policy(clients.sqs(), one, policy)
    if not wish.remove:
        _write_patiently(clients.s3, plan, found, say, wait_seconds=PROPAGATION_SECONDS if policies else 0.0)
    return replace(plan, queue=found)


def _changed(before: Document, wish: Wish, found: queues.Queue | None) -> Document:
    """The rules as wished; ConnectError where somebody else's rule is in the way of a queue's."""
    if wish.remove:
        return documents.merge(before, ())
    wanted = documents.wanted_rules({"queue": found.arn} if found else wish.targets, wish.prefixes)
    in_the_way = documents.overlapping(before, wanted) if found else ()
    if in_the_way:
        raise ConnectError(
            "OverlappingRules",
            "The rules were not changed. S3 allows one rule for an event and a key, and the bucket has already:\n"
            + "\n".join(f"    {rule}" for rule in in_the_way),
            "Narrow or remove that rule, or let it send to an SNS topic or EventBridge that feeds both.",
        )
    return documents.merge(before, wanted)


def _read(s3: S3Client, bucket: str) -> tuple[Document, str, bool]:
    """The bucket's rules, the server's name in lower case, and whether the bucket is missing.

    MinIO leaves out a rule whose target its environment no longer has: such a rule is lost in writing.
    """
    unknown: list[str] = []

    def watch(response_dict: Mapping[str, Any], **_: object) -> None:
        unknown.extend(_unknown_elements(response_dict))

    s3.meta.events.register(_BEFORE_PARSE, watch)
    try:
        with storage_errors():
            answer = cast("dict[str, Any]", s3.get_bucket_notification_configuration(Bucket=bucket))
    except StorageError as error:
        if error.code == "NoSuchBucket":
            return {}, (error.server or "").lower(), True
        raise
    finally:
        s3.meta.events.unregister(_BEFORE_PARSE, watch)
    if unknown:
        raise ConnectError(
            "UnknownRules",
            f"The rules were not changed: they hold <{unknown[0]}>, which would be lost in writing them back.",
            "Set this bucket's rules with the store's own tools.",
        )
    return answer, answer.pop("ResponseMetadata")["HTTPHeaders"].get("server", "").lower(), False


def _unknown_elements(response: Mapping[str, Any]) -> list[str]:
    """The XML elements that boto3 would drop in silence."""
    try:
        root = ET.fromstring(response["body"])  # noqa: S314 - the next to parse these bytes is botocore, the same way
    except ET.ParseError:
        return []  # botocore will say so
    names = [element.tag.rpartition("}")[2] for element in root.iter()]
    # An error has a document of its own.
    return [name for name in names if name not in documents.KNOWN_ELEMENTS] if names[0] == _ROOT else []


def _find_queue(clients: Clients, wish: Wish, server: str) -> queues.Queue:
    certain = wish.store == "sqs" or "amazon" in server
    with explained("sqs:GetQueueUrl, sqs:GetQueueAttributes", wish.queue_url or wish.queue_name):
        try:
            return queues.find(clients.sqs(), name=wish.queue_name, url=wish.queue_url)
        except StorageError as error:
            if certain or error.code in queues.NO_SUCH_QUEUE:
                raise
            raise unsupported(server) from None


def _plan_removal(clients: Clients, wish: Wish, before: Document) -> Plan:
    policies = []
    for name in documents.our_queue_names(before):
        with explained("sqs:GetQueueUrl, sqs:GetQueueAttributes", name):
            found = queues.find(clients.sqs(), name=name)
        policy = documents.forget_bucket(found.policy, bucket=wish.bucket)
        if policy is not None:
            policies.append((found, policy))
    after = _changed(before, wish, None)
    return Plan(wish, "sqs", bucket_missing=False, before=before, after=after, policies=tuple(policies))


def _new_policies(found: queues.Queue, bucket: str) -> tuple[tuple[queues.Queue, str], ...]:
    if found.url is None:  # then its ARN, which the policy names, is not known either
        return ()
    policy = documents.allow_bucket(found.policy, bucket=bucket, queue_arn=found.arn)
    return () if policy is None else ((found, policy),)


def _create_bucket(clients: Clients, bucket: str, store: str) -> None:
    with storage_errors():
        # AWS wants the region named unless it is its first one; MinIO takes none but its own.
        if store == "minio" or clients.region == "us-east-1":
            clients.s3.create_bucket(Bucket=bucket)
        else:
            place = cast("Any", {"LocationConstraint": clients.region})
            clients.s3.create_bucket(Bucket=bucket, CreateBucketConfiguration=place)


def _write_rules(s3: S3Client, wish: Wish, found: queues.Queue | None) -> None:
    """Read the rules again, so that what somebody else changed meanwhile stays, and write them."""
    with explained("s3:PutBucketNotification", wish.bucket):
        before, _, _ = _read(s3, wish.bucket)
        after = _changed(before, wish, found)
        if after != before:
            with storage_errors():
                s3.put_bucket_notification_configuration(
                    Bucket=wish.bucket, NotificationConfiguration=cast("Any", after)
                )


def _write_patiently(
    s3: S3Client, plan: Plan, found: queues.Queue | None, say: Callable[[str], None], *, wait_seconds: float
) -> None:
    is_minio = plan.store == "minio"
    deadline = time.monotonic() + (MINIO_START_SECONDS if is_minio else wait_seconds)
    while True:
        try:
            _write_rules(s3, plan.wish, found)
        except ConnectError as error:
            if error.code != "InvalidArgument":
                raise
            if time.monotonic() >= deadline:
                raise (_unknown_target(plan, error) if is_minio else error) from None
            if is_minio:  # it answers a moment before it knows its targets
                time.sleep(MINIO_POLL_SECONDS)
                continue
            say("S3 may not send to the queue yet (its new policy takes up to a minute); trying again …")
            time.sleep(PROPAGATION_POLL_SECONDS)
        else:
            return


def _unknown_target(plan: Plan, error: ConnectError) -> ConnectError:
    targets = ", ".join(arn.split(":")[4] for arn in plan.wish.targets.values())
    advice = "Put the lines below into MinIO's environment, restart MinIO with them, then run this again."
    if others := documents.other_arns(plan.before):
        advice += (
            " Should it have them already, then a target of someone else's rule is gone, and that rule must go "
            f"too: {', '.join(others)}"
        )
    return ConnectError("UnknownTarget", f"MinIO does not know the targets {targets}. {error.message}", advice)
