"""MinIO's own configuration: sets webhook targets by its admin API, and restarts it. Loads `minio` when it is used."""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from functions.s3 import clients as storage
from functions.s3.clients import StorageError, storage_errors
from infra.connect.documents import FAST_TARGET, SURE_TARGET
from infra.connect.errors import ConnectError, explained
from infra.connect.minio import Doors, variable
from infra.connect.plans import Change, Clients, Plan, Speak, Wish
from infra.doctor.minio import MinioTargets
from infra.doctor.minio import look as look_at_targets

if TYPE_CHECKING:
    from minio.minioadmin import MinioAdmin

    from functions.settings import Settings

ANSWER_SECONDS = 20.0  # it tries to reach the host for 5 s before it takes a target
RESTART_SECONDS = 60.0
POLL_SECONDS = 0.3

SUBSYSTEM = "notify_webhook"
MARK = "bucketbell connect"

Values = Mapping[str, str]

_TARGET_LINE = re.compile(rf"^{SUBSYSTEM}:(\S+) (.*)$", re.MULTILINE)
_VALUE = re.compile(r'(\w+)=("[^"]*"|\S*)')
_REFUSAL = re.compile(r"Status: (\d+), Body: (.*)", re.DOTALL)


def open_admin(settings: Settings, endpoint_url: str, region: str) -> MinioAdmin:
    """Make a client of the admin API with the store's credentials. Raises StorageError, ConnectError."""
    import urllib3  # noqa: PLC0415 - only --configure needs it
    from minio.credentials.providers import StaticProvider  # noqa: PLC0415 - as above
    from minio.minioadmin import MinioAdmin  # noqa: PLC0415 - as above

    with storage_errors():
        found = storage.open_session(settings).get_credentials()
        if found is None:
            raise StorageError(storage.NO_CREDENTIALS, "There are no credentials.")
        keys: Any = found.get_frozen_credentials()
    secure, _, address = endpoint_url.rstrip("/").partition("://")
    try:
        return MinioAdmin(
            endpoint=address,
            secure=secure == "https",
            credentials=StaticProvider(keys.access_key, keys.secret_key, keys.token),
            region=region,
            http_client=urllib3.PoolManager(
                timeout=urllib3.Timeout(connect=storage.CONNECT_TIMEOUT_SECONDS, read=ANSWER_SECONDS),
                retries=False,
                ca_certs=os.environ.get("AWS_CA_BUNDLE"),  # as boto3 does
            ),
        )
    except ValueError as error:
        raise ConnectError("BadRequest", str(error), "Give MinIO's own address as --endpoint-url.") from None


def changes(clients: Clients, wish: Wish) -> tuple[tuple[Change, ...], tuple[Change, ...]]:
    """Say what has to change in MinIO's configuration before the rules are written, and after that."""
    seen, configured = _look(clients, _admin(clients))
    wanted = {} if wish.remove else wish.doors.values()
    first: list[Change] = []
    for target, values in wanted.items():
        different = _different(target, values, configured, seen.variables)
        _refuse_pinned(target, different, seen.variables)
        if different:
            first.append(_setting(target, values, different))
    last = [
        _taking_away(target)
        for target, values in configured.items()
        if target in {FAST_TARGET, SURE_TARGET} - wanted.keys()
        and values.get("comment", "").startswith(MARK)
        and not _used_elsewhere(clients, target, wish.bucket)
    ]
    nodes = f" ({seen.nodes} nodes)" if seen.nodes > 1 else ""
    restart = Change(f"restart MinIO{nodes}: it does not answer for some seconds", _restart)
    return (*first, restart) if first else (), (*last, restart) if last else ()


def mark(token: str | None) -> str:
    """Return the comment of a target of ours: MinIO shows nobody the token, so this says which it is."""
    return f"{MARK} {hashlib.sha256(token.encode()).hexdigest()[:12] if token else '(no token)'}"


def _look(clients: Clients, admin: MinioAdmin) -> tuple[MinioTargets, dict[str, Values]]:
    """What MinIO runs with: its targets and environment, and its configuration by target."""
    with explained("admin:ServerInfo", "MinIO"):
        seen = look_at_targets(clients.s3)
    with _answers():
        try:
            text = admin.config_get(SUBSYSTEM)
        except UnboundLocalError as error:  # minio 7.2.20 hides by it what went wrong
            raise error.__context__ or error from None
    found: dict[str, Values] = {
        target: {key: value.strip('"') for key, value in _VALUE.findall(values)}
        for target, values in _TARGET_LINE.findall(text)
    }
    return seen, found


def _different(target: str, wanted: Values, configured: Mapping[str, Values], environment: Values) -> list[str]:
    """The keys whose value is another than is wanted; the environment wins, as in MinIO."""
    ours = configured.get(target, {"enable": "off"} if variable("enable", target) not in environment else {})
    found = {"enable": "on", **ours, "auth_token": ours.get("comment", "")}
    found |= {key: environment[variable(key, target)] for key in wanted if variable(key, target) in environment}
    if variable("auth_token", target) in environment:
        found["auth_token"] = mark(found["auth_token"])
    elif variable("enable", target) in environment and target not in configured:
        found["auth_token"] = mark(None)
    right = {**wanted, "auth_token": mark(wanted["auth_token"])}
    if found.get("queue_limit", "0") != "0":
        right.pop("queue_limit", None)  # whoever needs more room has set another
    return [key for key, value in right.items() if found.get(key, "") != value]


def _refuse_pinned(target: str, different: list[str], environment: Values) -> None:
    pinned = [name for key in different if (name := variable(key, target)) in environment]
    if pinned:
        raise ConnectError(
            "PinnedByEnvironment",
            f"MinIO's environment says otherwise, and wins: {', '.join(pinned)}.",
            "Take these lines out of MinIO's environment (or correct them: `bucketbell connect --dry-run` prints them "
            "all), restart MinIO, then run this again.",
        )


def _setting(target: str, values: Values, different: list[str]) -> Change:
    # Not in the words: the token.
    words = ", ".join("its token" if key == "auth_token" else f"{key} {values[key]!r}" for key in different)

    def make(clients: Clients, plan: Plan, _: Speak) -> Plan:
        token = plan.wish.doors.token
        # The token comes last: MinIO finds each key by its first `key=`.
        right = {**values, "comment": mark(token)}
        right["auth_token"] = right.pop("auth_token")
        with _answers(plan.wish.doors):
            _admin(clients).config_set(f"{SUBSYSTEM}:{target}", right)
        return plan

    return Change(f"set MinIO's target {target}: {words}", make)


def _taking_away(target: str) -> Change:
    def make(clients: Clients, plan: Plan, _: Speak) -> Plan:
        with _answers():
            _admin(clients).config_reset(SUBSYSTEM, target)
        return plan

    return Change(f"take MinIO's target {target} away", make)


def _used_elsewhere(clients: Clients, target: str, bucket: str) -> bool:
    """Whether another bucket's rules name it."""
    with explained("s3:ListAllMyBuckets, s3:GetBucketNotification", "all buckets"), storage_errors():
        names = [one["Name"] for one in clients.s3.list_buckets()["Buckets"]]
        rules = (clients.s3.get_bucket_notification_configuration(Bucket=name) for name in names if name != bucket)
        return any(f":{target}:" in rule["QueueArn"] for one in rules for rule in one.get("QueueConfigurations", ()))


def _restart(clients: Clients, plan: Plan, say: Speak) -> Plan:
    """Restart MinIO, and wait until all of it runs with what was set."""
    admin = _admin(clients)
    with _answers():
        admin.service_restart()
    say("Waiting for MinIO …")
    deadline = time.monotonic() + RESTART_SECONDS
    reason = ""
    while time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        try:
            seen, configured = _look(clients, admin)
        except ConnectError as error:
            reason = error.message
            continue
        if not seen.offline and _is_as_set(plan.wish, seen, configured):
            return plan
        reason = f"It answers, but without the targets{seen.offline and ' of ' + ', '.join(seen.offline)}."
    raise ConnectError(
        "NotBack",
        f"MinIO was told to restart, and is not back after {RESTART_SECONDS:g} s. {reason}",
        "Look at its log and start it by hand; its targets are set. Then run this again.",
    )


def _is_as_set(wish: Wish, seen: MinioTargets, configured: Mapping[str, Values]) -> bool:
    if wish.remove:
        return True
    return all(
        target in seen.states and not _different(target, values, configured, seen.variables)
        for target, values in wish.doors.values().items()
    )


def _admin(clients: Clients) -> MinioAdmin:
    assert clients.admin is not None  # noqa: S101 - there is no such plan without it
    admin: MinioAdmin = clients.admin()
    return admin


@contextmanager
def _answers(doors: Doors | None = None) -> Iterator[None]:
    """Turn what the admin API raises into a ConnectError."""
    from minio.error import MinioAdminException  # noqa: PLC0415 - as in `open_admin`
    from urllib3.exceptions import HTTPError  # noqa: PLC0415 - as in `open_admin`

    try:
        yield
    except MinioAdminException as error:
        raise _explained(str(error), doors) from None
    except HTTPError as error:
        message = f"MinIO's admin API does not answer: {error}"
        raise ConnectError(
            storage.UNREACHABLE, message, "Is MinIO running, and is --endpoint-url its own address?"
        ) from None


def _explained(text: str, doors: Doors | None) -> ConnectError:
    match = _REFUSAL.search(text)
    status, body = (match[1], match[2]) if match else ("", text)
    try:
        answer = json.loads(body)
        code, message = str(answer["Code"]), str(answer["Message"])
    except (ValueError, KeyError, TypeError):
        code, message = f"MinIO {status}".strip(), body[:200]
    advice = "Correct that, then run this again."
    if code == "AccessDenied":
        message = "This key may not administer MinIO (admin:ServerInfo, admin:ConfigUpdate, admin:ServiceRestart)."
        advice = (
            "Use an administrator's key (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY). Or run this without --configure: "
            "then it prints what MinIO's environment needs."
        )
    elif doors and "queue store" in message:
        message = f"MinIO cannot write the directory for its queue: {message}"
        advice = (
            "Let MinIO write there, or name another directory on its machine with --queue-dir. Then run this again."
        )
    elif doors and "dial " in message:
        message = f"MinIO does not reach the host at {doors.host_url}: {message}"
        advice = "Start the host, or give its address as MinIO's machine reaches it (--host-url). Then run this again."
    return ConnectError(code, message, advice)
