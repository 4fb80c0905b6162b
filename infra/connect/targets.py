"""MinIO and RustFS: rules that name webhook targets, which are in the server's environment or configuration."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import replace
from functools import partial

from functions.s3.clients import StorageError
from infra.connect import documents, minio_admin
from infra.connect.errors import ConnectError, Rest
from infra.connect.kinds import StoreKind
from infra.connect.minio import EVENT_WORKERS, TOKEN_PLACEHOLDER, Doors
from infra.connect.plans import BucketState, Clients, Plan, Speak, Wish, creation, replace_rules, whole
from infra.doctor.minio import MinioTargets
from infra.doctor.minio import look as look_at_targets

START_SECONDS = 2.0
POLL_SECONDS = 0.2


def plan(clients: Clients, wish: Wish, state: BucketState, kind: StoreKind) -> Plan:
    """Plan the rules, and with `--configure` the targets. Raises ConnectError."""
    before = whole(state)
    after = documents.merge(before, _wanted(wish, kind))
    planned = Plan(wish, kind, before, after, creation(wish, state), bucket_missing=state.missing)
    if not wish.configure:
        return planned
    if kind.name != "minio" or clients.admin is None or not wish.doors.can_be_configured:
        what = kind.title if wish.doors.can_be_configured else "NATS as a target"
        raise ConnectError(
            "NotConfigurable", f"{what} cannot be configured from here.", "Run this again without --configure."
        )
    first, last = minio_admin.changes(clients, wish)
    return replace(planned, first=(*planned.first, *first), last=last)


def write(clients: Clients, plan: Plan, _: Speak) -> None:
    """Put the rules; MinIO answers a moment before it knows its targets."""
    deadline = time.monotonic() + START_SECONDS
    change = partial(documents.merge, wanted=_wanted(plan.wish, plan.kind))
    while True:
        try:
            return replace_rules(clients.s3, plan.wish, change)
        except ConnectError as error:
            if error.code != "InvalidArgument":
                raise
            if time.monotonic() >= deadline:
                raise _unknown_target(plan, error) from None
        time.sleep(POLL_SECONDS)


def rest(clients: Clients, plan: Plan) -> Rest:
    """Say which lines the server's environment lacks, as far as it tells."""
    wish, doors = plan.wish, plan.wish.doors
    if wish.remove:
        return _after_removal(plan)
    seen = _seen(clients) if plan.store == "minio" else None
    missing = {} if seen is None else _missing(doors, seen, configured=wish.configure)
    todo = []
    if seen is None:
        todo.append(_lines(plan, _environment(doors, plan.kind), "unless they are there already"))
    elif missing:
        todo.append(_lines(plan, missing))
    if seen and seen.nodes > 1:
        todo.append(
            f"MinIO has {seen.nodes} nodes: look whether each of them may write {doors.queue_directory}, and "
            f"reaches {doors.host_url}. Only the one that was asked has tried."
        )
    document = {"minio_environment": _document(doors, plan.kind, show_token=wish.show_token)}
    return Rest(tuple(todo), remarks=(_IF_THEY_GO,), document=document)


_IF_THEY_GO = "Should the targets ever go, run `bucketbell connect --remove` first: the rules name them."


def _wanted(wish: Wish, kind: StoreKind) -> tuple[documents.Rule, ...]:
    return wish.rules(wish.doors.arns(rustfs=kind.name == "rustfs"))


def _environment(doors: Doors, kind: StoreKind) -> dict[str, str]:
    return doors.rustfs_environment() if kind.name == "rustfs" else doors.environment()


def _seen(clients: Clients) -> MinioTargets | None:
    """What MinIO says of its targets and its environment; None if it does not tell these credentials."""
    try:
        return look_at_targets(clients.s3)
    except (StorageError, json.JSONDecodeError):
        return None


def _missing(doors: Doors, seen: MinioTargets, *, configured: bool) -> dict[str, str]:
    """The lines of which MinIO says that they are missing or different."""
    in_configuration = {
        target
        for target in doors.values()
        if (configured or target in seen.states) and not any(name.endswith(f"_{target}") for name in seen.variables)
    }

    def is_there(name: str, value: str) -> bool:
        if name == "GOMAXPROCS":
            return seen.workers >= EVENT_WORKERS
        if name.rpartition("_")[2] in in_configuration:
            return True
        # Whoever needs more room has set another limit.
        return name in seen.variables and ("QUEUE_LIMIT" in name or seen.variables[name] == value)

    return {name: value for name, value in doors.environment().items() if not is_there(name, value)}


def _lines(plan: Plan, lines: dict[str, str], unless: str = "") -> str:
    """The lines in words; the token only where it may be shown."""
    doors = plan.wish.doors
    hidden = {name for name, value in lines.items() if value == doors.token and not plan.wish.show_token}
    told = "\n".join(
        f"{name}={TOKEN_PLACEHOLDER if name in hidden else shlex.quote(value)}" for name, value in lines.items()
    )
    secret = f"\n\n({TOKEN_PLACEHOLDER}: a secret; --show-token prints it.)" if hidden else ""
    return (
        f"{plan.kind.title}'s environment needs these lines (/etc/default/minio, compose, …) before it starts"
        f"{unless and f', {unless}'}:\n\n{told}{secret}"
    )


def _document(doors: Doors, kind: StoreKind, *, show_token: bool) -> dict[str, str | None]:
    # A placeholder is no value: a script must not take it for one.
    return {
        name: None if value == doors.token and not show_token else value
        for name, value in _environment(doors, kind).items()
    }


def _after_removal(plan: Plan) -> Rest:
    if plan.wish.configure:
        return Rest()
    what = f"take the targets BUCKETBELL… away too, once no other bucket's rules name them: out of {plan.kind.title}'s "
    with_configure = ", or by `--remove --configure` if they are in its configuration" if plan.store == "minio" else ""
    return Rest(todo=(f"{what}environment{with_configure}.",))


def _unknown_target(plan: Plan, error: ConnectError) -> ConnectError:
    title = plan.kind.title
    names = ", ".join(arn.split(":")[4] for arn in plan.wish.doors.arns(rustfs=plan.store == "rustfs").values())
    advice = f"Put the lines below into {title}'s environment, restart {title} with them, then run this again."
    if plan.store == "minio":
        advice += " Or run it with --configure and an administrator's key: then it sets the targets itself."
    if others := documents.other_arns(plan.before):
        advice += (
            " Should it have them already, then a target of someone else's rule is gone, and that rule must go "
            f"too: {', '.join(others)}"
        )
    lines = _environment(plan.wish.doors, plan.kind)
    document = {"minio_environment": _document(plan.wish.doors, plan.kind, show_token=plan.wish.show_token)}
    rest = Rest(todo=(_lines(plan, lines),), document=document)
    return ConnectError(
        "UnknownTarget", f"{title} does not know the targets {names}. {error.message}", advice, rest=rest
    )
