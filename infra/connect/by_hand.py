"""Stores whose events cannot be set up from here, or that send none: says what to do there."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace

from functions.events.names import CANARY_KEY
from infra.connect.errors import NO_EVENTS, Rest, unsupported
from infra.connect.kinds import KindName, StoreKind
from infra.connect.plans import BucketState, Clients, Plan, Speak, Wish, creation


def plan(_: Clients, wish: Wish, state: BucketState, kind: StoreKind) -> Plan:
    """Plan the bucket at most."""
    return Plan(wish, kind, first=creation(wish, state), bucket_missing=state.missing)


def write(_: Clients, plan: Plan, __: Speak) -> None:
    """Nothing: it has no rules."""
    del plan


def rest(_: Clients, plan: Plan) -> Rest:
    """Say what has to be set in the store, and that nothing arrives before that."""
    wish = plan.wish
    if plan.store == "none":
        return Rest(remarks=(NO_EVENTS,))
    if wish.remove:
        return Rest((f"Take the webhook out of {plan.kind.title}'s own settings.",))
    words = _WORDS[plan.store](wish)
    document = {"webhook_url": f"{wish.doors.host_url}/events"}
    left = Rest((words,), (plan.kind.lost,), document)
    return replace(left, problem=unsupported(plan.store, plan.kind.title, left))


def _seaweedfs(wish: Wish) -> str:
    """Source: SeaweedFS, `weed scaffold -config=notification`."""
    doors = wish.doors if wish.show_token else wish.doors.without_token
    paths = [f"/buckets/{wish.bucket}/{prefix}" for prefix in (*wish.prefixes.values(), CANARY_KEY)]
    lines = (
        "[notification.webhook]",
        "enabled = true",
        f"endpoint = {json.dumps(f'{doors.host_url}/events')}",
        *(() if doors.token is None else (f"bearer_token = {json.dumps(doors.token)}",)),
        'event_types = ["create", "update", "rename"]',
        f"path_prefixes = {json.dumps(paths, ensure_ascii=False)}",
    )
    told = "\n".join(lines)
    return (
        "Write this to notification.toml, in the filer's directory, ~/.seaweedfs or /etc/seaweedfs, and restart the "
        f"filer:\n\n{told}\n\n"
        "If there is a [notification.webhook] for someone else, call this one [notification.webhook.bucketbell]."
        f"{_secret(wish)}"
    )


def _versitygw(wish: Wish) -> str:
    doors = wish.doors if wish.show_token else wish.doors.without_token
    return (
        "Start Versity Gateway with this line in its environment, and after the host (it ends if nobody answers):\n\n"
        f"VGW_EVENT_WEBHOOK_URL={doors.url_with_user}{_secret(wish)}"
    )


def _other(wish: Wish) -> str:
    doors = wish.doors if wish.show_token else wish.doors.without_token
    token = (
        "without a token (the host then listens on loopback only)"
        if doors.token is None
        else f"with the header `Authorization: Bearer {doors.token}`"
    )
    return (
        f"Let the store POST its events to {doors.host_url}/events, for created objects under "
        f"{', '.join(wish.prefixes.values())}, {token}. If it can send none (hosted stores mostly), SWEEP_SECONDS from "
        "2 to 10 is all that is needed. RustFS does not say its name: run this again with --store rustfs."
        f"{_secret(wish)}"
    )


def _secret(wish: Wish) -> str:
    is_hidden = wish.doors.token is not None and not wish.show_token
    return "\n\n(The token is a secret: --show-token prints it.)" if is_hidden else ""


_WORDS: Mapping[KindName, Callable[[Wish], str]] = {
    "seaweedfs": _seaweedfs,
    "versitygw": _versitygw,
    "other": _other,
}
