"""Ceph RGW: a persistent topic posts to the sure door, and each rule is put and taken away by itself."""

from __future__ import annotations

import json
from functools import partial
from typing import Any, cast

from functions.s3.clients import storage_errors
from infra.connect import documents
from infra.connect.documents import TOPICS, Document
from infra.connect.errors import Rest, explained
from infra.connect.kinds import StoreKind
from infra.connect.plans import BucketState, Change, Clients, Plan, Speak, Wish, creation, read

NOT_YET_KNOWN = "(known once it is created)"
RETRY_SECONDS = 3  # otherwise a host that answers 503 is asked hundreds of times a second; older releases ignore it

_GET_RULES = "before-sign.s3.GetBucketNotificationConfiguration"


def plan(clients: Clients, wish: Wish, state: BucketState, kind: StoreKind) -> Plan:
    """Plan topic and rules. Raises ConnectError."""
    name = wish.queue_name
    if clients.sns is None:
        arn, is_right = _arn_in(state.rules), True
    else:
        with explained("sns:ListTopics, sns:GetTopicAttributes", name):
            arn, is_right = _find(clients.sns(), wish)
    after = documents.merge(state.rules, wish.rules({"sure": arn or NOT_YET_KNOWN}, TOPICS), TOPICS)
    first = creation(wish, state)
    last: tuple[Change, ...] = ()
    if wish.remove and arn:
        last = (Change(f"delete the topic {name}", partial(_delete, arn)),)
    elif not wish.remove and not is_right:
        words = f"{'set' if arn else 'create'} the topic {name}: it keeps events, and posts them to "
        first += (Change(f"{words}{wish.doors.without_token.url_with_query}", _create),)
    return Plan(wish, kind, state.rules, after, first, last, bucket_missing=state.missing)


def write(clients: Clients, plan: Plan, _: Speak) -> None:
    """Put the rules that are missing, and take those away that are too many: Ceph leaves all others alone."""
    wish = plan.wish
    arn = None if wish.remove or clients.sns is None else _find(clients.sns(), wish)[0]
    wanted = wish.rules({"sure": arn or NOT_YET_KNOWN}, TOPICS)
    with explained("s3:PutBucketNotification", wish.bucket):
        before = read(clients.s3, wish.bucket).rules
        after = documents.merge(before, wanted, TOPICS)
        ids, kept = ({rule.get("Id") for rule in rules.get(TOPICS, ())} for rules in (before, after))
        for rule_id in ids - kept:
            _delete_rule(clients, wish.bucket, rule_id)
        if wanted:  # those that are right too: each holds what the topic was when it was put
            with storage_errors():
                clients.s3.put_bucket_notification_configuration(
                    Bucket=wish.bucket, NotificationConfiguration=cast("Any", {TOPICS: list(wanted)})
                )


def rest(_: Clients, plan: Plan) -> Rest:
    """Nothing: all of it can be set from here."""
    del plan
    return Rest()


def _arn_in(rules: Document) -> str | None:
    return next((str(rule["TopicArn"]) for rule in rules.get(TOPICS, ()) if documents.is_ours(rule)), None)


def _find(sns: Any, wish: Wish) -> tuple[str | None, bool]:  # noqa: ANN401 - boto3 makes a client's methods at run time
    """The topic's ARN, None where there is none, and whether it is as it should be."""
    with storage_errors():
        arns = [one["TopicArn"] for page in sns.get_paginator("list_topics").paginate() for one in page["Topics"]]
        arn = next((one for one in arns if one.rpartition(":")[2] == wish.queue_name), None)
        found = sns.get_topic_attributes(TopicArn=arn)["Attributes"] if arn else {}
    try:
        endpoint = json.loads(found.get("EndPoint", "{}"))
        is_persistent = str(endpoint.get("Persistent")).lower() == "true"
        return arn, is_persistent and endpoint.get("EndpointAddress") == wish.doors.url_with_query
    except (ValueError, AttributeError):
        return arn, False


def _create(clients: Clients, plan: Plan, _: Speak) -> Plan:
    """Make the topic, or set it again. Not persistent, it would hold uploads while the host is down, and lose them."""
    assert clients.sns is not None  # noqa: S101 - there is no such plan without it
    attributes = {
        "push-endpoint": plan.wish.doors.url_with_query,
        "persistent": "true",
        "retry_sleep_duration": str(RETRY_SECONDS),
    }
    with explained("sns:CreateTopic", plan.wish.queue_name), storage_errors():
        clients.sns().create_topic(Name=plan.wish.queue_name, Attributes=attributes)
    return plan


def _delete(arn: str, clients: Clients, plan: Plan, _: Speak) -> Plan:
    assert clients.sns is not None  # noqa: S101 - there is no such plan without it
    with explained("sns:DeleteTopic", plan.wish.queue_name), storage_errors():
        clients.sns().delete_topic(TopicArn=arn)
    return plan


def _delete_rule(clients: Clients, bucket: str, rule_id: str) -> None:
    """`DELETE /<bucket>?notification=<id>`, for which boto3 has no call.

    It goes in the place of a GET: if that is not turned into it, it only reads.
    """

    def turn(request: Any, **_: object) -> None:  # noqa: ANN401 - botocore's, which only the clients import
        request.method = "DELETE"
        request.url += f"={rule_id}"

    clients.s3.meta.events.register(_GET_RULES, turn)
    try:
        with storage_errors():
            clients.s3.get_bucket_notification_configuration(Bucket=bucket)
    finally:
        clients.s3.meta.events.unregister(_GET_RULES, turn)
