"""Builds and merges what `connect` writes: a bucket's notification rules, a queue's policy and attributes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mypy_boto3_sqs.literals import QueueAttributeNameType

# PutBucketNotificationConfiguration's `NotificationConfiguration`, as boto3 parses and takes it.
Document = dict[str, Any]
Rule = dict[str, Any]

QUEUES = "QueueConfigurations"
TOPICS = "TopicConfigurations"
ARN_FIELDS = {
    TOPICS: "TopicArn",
    QUEUES: "QueueArn",
    "LambdaFunctionConfigurations": "LambdaFunctionArn",
}
# All that the S3 API Reference names in a NotificationConfiguration. boto3 reads past anything else, silently.
KNOWN_ELEMENTS = frozenset(
    {
        *("NotificationConfiguration", "EventBridgeConfiguration"),
        *("TopicConfiguration", "Topic", "QueueConfiguration", "Queue", "CloudFunctionConfiguration", "CloudFunction"),
        *("Id", "Event", "Filter", "S3Key", "FilterRule", "Name", "Value"),
    }
)

# MinIO's `s3:ObjectCreated:*` also means tagging, retention and legal hold (its internal/event/name.go).
EVENTS = tuple(f"s3:ObjectCreated:{how}" for how in ("Put", "Post", "Copy", "CompleteMultipartUpload"))

# Of cameras' events only the documents ring: each picture is uploaded before its own.
SUFFIXES = {"events": ".json"}

FAST_TARGET = "BUCKETBELLFAST"
SURE_TARGET = "BUCKETBELLSURE"

_OUR_ID = re.compile(r"bucketbell-(fast|sure|queue)-[a-z]+")
_TARGET_ARN = re.compile(r"arn:(minio|rustfs):sqs:[^:]*:([^:]+:[^:]+)")

QUEUE_VISIBILITY_SECONDS = 60
QUEUE_LONG_POLL_SECONDS = 20  # the longest that SQS allows
# With the visibility above, an outage of SHORTEST_OUTAGE_SECONDS does not fill the dead-letter queue.
MAX_RECEIVE_COUNT = 100
SHORTEST_OUTAGE_SECONDS = 3600
QUEUE_RETENTION_SECONDS = 4 * 24 * 3600
DEAD_LETTER_RETENTION_SECONDS = 14 * 24 * 3600  # the longest that SQS allows, and longer than the queue's


def minio_arn(target: str, *, rustfs: bool = False) -> str:
    """The ARN of a webhook target of MinIO or RustFS, without the region: both take it so, and answer with their own.

    Source: RustFS, `normalize_target_id` of its config: it knows its targets in lower case.
    """
    return f"arn:rustfs:sqs::{target.lower()}:webhook" if rustfs else f"arn:minio:sqs::{target}:webhook"


_OUR_TARGET_ARNS = frozenset(
    minio_arn(target, rustfs=rustfs) for target in (FAST_TARGET, SURE_TARGET) for rustfs in (False, True)
)


def wanted_rules(targets: Mapping[str, str], prefixes: Mapping[str, str], section: str = QUEUES) -> tuple[Rule, ...]:
    """One rule for each target (`fast`, `sure` or `queue` → ARN) and prefix (`configs` → `configs/`)."""
    return tuple(
        {
            "Id": f"bucketbell-{door}-{what}",
            ARN_FIELDS[section]: arn,
            "Events": list(EVENTS),
            "Filter": {"Key": {"FilterRules": _filter_rules(prefix, SUFFIXES.get(what))}},
        }
        for door, arn in targets.items()
        for what, prefix in prefixes.items()
    )


def _filter_rules(prefix: str, suffix: str | None) -> list[dict[str, str]]:
    rules = [{"Name": "prefix", "Value": prefix}]
    return rules if suffix is None else [*rules, {"Name": "suffix", "Value": suffix}]


def is_ours(rule: Rule) -> bool:
    """Whether `connect` made this rule, by its Id; without one (MinIO allows that), by its target."""
    if rule_id := rule.get("Id"):
        return _OUR_ID.fullmatch(str(rule_id)) is not None
    return _plain_arn(rule.get("QueueArn", "")) in _OUR_TARGET_ARNS


def merge(document: Document, wanted: Sequence[Rule], section: str = QUEUES) -> Document:
    """`document` with exactly `wanted` of our rules; all other rules and fields stay as and where they are.

    Returns an equal document when nothing is to change. `wanted=()` takes ours away.
    """
    missing = {_meaning(rule): rule for rule in wanted}
    # A rule of ours that already says what it should stays in place; a second copy of it goes.
    rules = [
        rule for rule in document.get(section, ()) if not is_ours(rule) or missing.pop(_meaning(rule), None) is not None
    ]
    rules += missing.values()
    if rules == document.get(section, []):
        return document
    if not rules:
        return {field: value for field, value in document.items() if field != section}
    return {**document, section: rules}


def overlapping(document: Document, wanted: Sequence[Rule]) -> tuple[str, ...]:
    """In words: others' rules that share events and keys with `wanted`. AWS refuses such rules.

    Source: S3 User Guide, "Configuring event notifications using object key name filtering".
    """
    filters = [_filters(rule) for rule in wanted]
    return tuple(
        describe(section, rule)
        for section, rule in _others(document)
        if any(_covers(event) for event in rule.get("Events", ()))
        and any(_meet(_filters(rule), ours) for ours in filters)
    )


def other_arns(document: Document) -> tuple[str, ...]:
    """The destinations of everyone else's rules, each once, in their order."""
    return tuple(dict.fromkeys(rule[ARN_FIELDS[section]] for section, rule in _others(document)))


def our_queue_names(document: Document) -> tuple[str, ...]:
    """The names of the queues that our rules send to, each once, in their order."""
    arns = (rule["QueueArn"] for rule in document.get(QUEUES, ()) if is_ours(rule))
    return tuple(dict.fromkeys(arn.split(":")[-1] for arn in arns))


def has_ours(document: Document) -> bool:
    """Whether any of these rules is ours."""
    return any(is_ours(rule) for _, rule in _rules(document))


def doors_of(document: Document, key: str) -> frozenset[str]:
    """`fast`, `sure` or `queue`: where our rules for exactly this key send its events."""
    found = [rule for _, rule in _rules(document) if _filters(rule) == {"prefix": key}]
    ids = (_OUR_ID.fullmatch(str(rule.get("Id"))) for rule in found)
    return frozenset(match[1] for match in ids if match)


def without(document: Document, key: str) -> Document:
    """`document` without rules for exactly this key."""
    return {
        section: [rule for rule in rules if _filters(rule) != {"prefix": key}] if section in ARN_FIELDS else rules
        for section, rules in document.items()
    }


@dataclass(frozen=True, slots=True)
class Difference:
    """What changes in the rules, each in words; `kept` are everyone else's and those of ours that are right."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]

    @property
    def lines(self) -> tuple[str, ...]:
        """The three as `+`, `-` and ` ` lines."""
        return (
            *(f"    {text}" for text in self.kept),
            *(f"  - {text}" for text in self.removed),
            *(f"  + {text}" for text in self.added),
        )


def difference(before: Document, after: Document) -> Difference:
    """Compares two documents rule by rule."""
    old = [describe(section, rule) for section, rule in _rules(before)]
    new = [describe(section, rule) for section, rule in _rules(after)]
    return Difference(
        added=tuple(text for text in new if text not in old),
        removed=tuple(text for text in old if text not in new),
        kept=tuple(text for text in new if text in old),
    )


def describe(section: str, rule: Rule) -> str:
    """A rule in one line: its Id, what it listens to, and where it sends that."""
    families: dict[str, list[str]] = {}
    for event in sorted(rule.get("Events", ())):
        family, _, kind = str(event).removeprefix("s3:").partition(":")
        families.setdefault(family, []).append(kind)
    events = ", ".join(f"{family}:{'|'.join(kinds)}" for family, kinds in families.items())
    filters = _filters(rule)
    keys = f"{filters.get('prefix', '')}*{filters.get('suffix', '')}"
    return f"{rule.get('Id') or '(no id)'}: {keys} → {rule.get(ARN_FIELDS[section], '?')} on {events}"


def queue_attributes(dead_letter_arn: str) -> dict[QueueAttributeNameType, str]:
    """SQS attributes of a queue that `connect` creates."""
    redrive = {"deadLetterTargetArn": dead_letter_arn, "maxReceiveCount": MAX_RECEIVE_COUNT}
    return {
        "VisibilityTimeout": str(QUEUE_VISIBILITY_SECONDS),
        "ReceiveMessageWaitTimeSeconds": str(QUEUE_LONG_POLL_SECONDS),
        "MessageRetentionPeriod": str(QUEUE_RETENTION_SECONDS),
        "RedrivePolicy": json.dumps(redrive),
    }


def dead_letter_attributes() -> dict[QueueAttributeNameType, str]:
    """SQS attributes of the dead-letter queue beside it."""
    return {"MessageRetentionPeriod": str(DEAD_LETTER_RETENTION_SECONDS)}


def default_queue_name(bucket: str) -> str:
    """`bucketbell-<bucket>`: with `-dlq` behind it at most 78 of the 80 characters that SQS allows."""
    return "bucketbell-" + bucket.replace(".", "-")


def allow_bucket(policy: str | None, *, bucket: str, queue_arn: str) -> str | None:
    """The queue's policy with the bucket allowed to send to it, and only that bucket, of the queue's own account.

    Other statements stay as they are. Returns None when nothing is to change.
    Source: S3 User Guide, "Granting permissions to publish event notification messages to a destination".
    """
    partition, account = queue_arn.split(":")[1], queue_arn.split(":")[4]
    statement = {
        "Sid": statement_id(bucket),
        "Effect": "Allow",
        "Principal": {"Service": "s3.amazonaws.com"},
        "Action": "sqs:SendMessage",
        "Resource": queue_arn,
        "Condition": {
            "ArnEquals": {"aws:SourceArn": f"arn:{partition}:s3:::{bucket}"},
            "StringEquals": {"aws:SourceAccount": account},
        },
    }
    document, statements = _policy(policy)
    if any({**other, "Sid": statement["Sid"]} == statement for other in statements):  # by us or by others
        return None
    others = [other for other in statements if other.get("Sid") != statement["Sid"]]
    return json.dumps({**document, "Statement": [*others, statement]})


def forget_bucket(policy: str | None, *, bucket: str) -> str | None:
    """The queue's policy without `allow_bucket`'s statement, None when it is not there; `""` deletes a policy."""
    document, statements = _policy(policy)
    others = [other for other in statements if other.get("Sid") != statement_id(bucket)]
    if others == statements:
        return None
    return json.dumps({**document, "Statement": others}) if others else ""


def statement_id(bucket: str) -> str:
    """A Sid for this bucket: policies allow letters and digits only, bucket names dots and dashes too."""
    return "bucketbell" + hashlib.sha256(bucket.encode()).hexdigest()[:12]


def _policy(policy: str | None) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    document: dict[str, Any] = json.loads(policy) if policy else {"Version": "2012-10-17"}
    statements = document.get("Statement", [])
    # A single statement need not be in a list (IAM User Guide, "Statement").
    return document, [statements] if isinstance(statements, dict) else statements


def _rules(document: Document) -> Iterator[tuple[str, Rule]]:
    for section in ARN_FIELDS:
        for rule in document.get(section, ()):
            yield section, rule


def _others(document: Document) -> Iterator[tuple[str, Rule]]:
    return ((section, rule) for section, rule in _rules(document) if section != QUEUES or not is_ours(rule))


def _meaning(rule: Rule) -> tuple[object, ...]:
    """What tells two rules of ours apart, however the store spells it."""
    events, filters = frozenset(rule.get("Events", ())), frozenset(_filters(rule).items())
    arn = next((rule[field] for field in ARN_FIELDS.values() if field in rule), "")
    return rule.get("Id"), _plain_arn(arn), events, filters


def _plain_arn(arn: str) -> str:
    match = _TARGET_ARN.fullmatch(arn)
    return f"arn:{match[1]}:sqs::{match[2]}" if match else arn


def _filters(rule: Rule) -> dict[str, str]:
    # AWS takes `prefix` and answers `Prefix`.
    rules = rule.get("Filter", {}).get("Key", {}).get("FilterRules", ())
    return {str(one.get("Name", "")).lower(): str(one.get("Value", "")) for one in rules}


def _covers(event: str) -> bool:
    return event in EVENTS or event == "s3:ObjectCreated:*"


def _meet(one: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether a key can match both filters."""
    prefix, other_prefix = one.get("prefix", ""), other.get("prefix", "")
    suffix, other_suffix = one.get("suffix", ""), other.get("suffix", "")
    return (prefix.startswith(other_prefix) or other_prefix.startswith(prefix)) and (
        suffix.endswith(other_suffix) or other_suffix.endswith(suffix)
    )
