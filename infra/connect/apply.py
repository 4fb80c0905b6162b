"""Looks at a bucket, plans what `connect` has to change, and changes it: each kind of store in its own way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from http import HTTPStatus

from functions.s3.clients import StorageError
from infra.connect import by_hand, queues, targets, topics
from infra.connect.errors import ConnectError, Rest, explained
from infra.connect.kinds import KINDS, KindName
from infra.connect.plans import BucketState, Clients, Plan, RefusedRulesError, Way, Wish, read

_NO_RULES = frozenset({HTTPStatus.METHOD_NOT_ALLOWED, HTTPStatus.NOT_IMPLEMENTED})

WAYS: Mapping[KindName, Way] = {
    "minio": targets,
    "rustfs": targets,
    "ceph": topics,
    "sqs": queues,
    "seaweedfs": by_hand,
    "versitygw": by_hand,
    "none": by_hand,
    "other": by_hand,
}


def look(clients: Clients, wish: Wish) -> Plan:
    """Read what is there and plan the change. Writes nothing. Raises ConnectError."""
    wished = None if wish.store == "auto" else KINDS[wish.store]
    try:
        with explained("s3:GetBucketNotification", wish.bucket):
            state = read(clients.s3, wish.bucket, _has_no_rules)
    except RefusedRulesError as refused:
        kind = next((one for one in (wished, refused.kind) if one and one.by_hand), KINDS["none"])
        return by_hand.plan(clients, wish, BucketState({}, (), missing=False, kind=kind, server=""), kind)
    # With neither: it has queues as AWS has, or `queues` finds that it has none.
    kind = wished or state.kind or KINDS["sqs"]
    if state.missing and (wish.remove or not wish.create):
        advice = "Correct --bucket." if wish.remove else "Add --create to make it, or correct --bucket."
        raise ConnectError("NoSuchBucket", f"There is no bucket {wish.bucket}.", advice)
    return WAYS[kind.name].plan(clients, wish, state, kind)


def carry_out(clients: Clients, plan: Plan, say: Callable[[str], None]) -> Plan:
    """Make the plan true; return it as it is now. Raises ConnectError. `say` hears of waits."""
    for step in plan.first:
        plan = step.make(clients, plan, say)
    if plan.before != plan.after or plan.first:
        WAYS[plan.store].write(clients, plan, say)
    for step in plan.last:
        plan = step.make(clients, plan, say)
    return replace(plan, bucket_missing=False)


def rest(clients: Clients, plan: Plan) -> Rest:
    """Say what people have to do themselves once the plan is true."""
    return WAYS[plan.store].rest(clients, plan)


def _has_no_rules(error: StorageError) -> bool:
    return error.code == "NotImplemented" or error.status in _NO_RULES
