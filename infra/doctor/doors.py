"""MinIO's way to the host: do its targets reach it, with a token that counts, and does its queue empty itself."""

from __future__ import annotations

import hmac
import time
from typing import TYPE_CHECKING

from functions.s3.clients import StorageError
from infra.connect.documents import SURE_TARGET
from infra.connect.minio import QUEUE_LIMIT_EVENTS
from infra.doctor import minio
from infra.doctor.checks import Checkup, NotCheckedError, WrongError
from infra.doctor.host import HOST, READY
from infra.doctor.host import TOKEN as HOST_TOKEN
from infra.doctor.rules import RULES

if TYPE_CHECKING:
    from infra.doctor.host import HostLeg
    from infra.doctor.minio import MinioTargets
    from infra.doctor.rules import RulesLeg
    from infra.doctor.store import StoreLeg

REACHES, TOKEN, QUEUE = "store reaches host", "store's token", "store's queue"

AGAIN_SECONDS = 4.0  # MinIO tries every 3 s
METRICS_SECONDS = 11.0  # MinIO works its metrics out every 10 s


class DoorsLeg:
    """What the store sends, on its way to the host."""

    def __init__(self, store: StoreLeg, rules: RulesLeg, host: HostLeg) -> None:
        """Nothing is asked yet."""
        self._store = store
        self._rules = rules
        self._host = host
        self._asked_at = 0.0
        self._waiting: float | None = None  # events in MinIO's queue, at the first look

    def checks(self) -> tuple[Checkup, ...]:
        """All of them, in order."""
        return (
            Checkup(REACHES, self._reaches, (RULES, HOST)),
            Checkup(TOKEN, self._token, (RULES, HOST_TOKEN), seconds=AGAIN_SECONDS + 4),
            Checkup(QUEUE, self._queue, (RULES, REACHES, TOKEN, READY), seconds=METRICS_SECONDS + 4),
        )

    @property
    def _targets(self) -> MinioTargets:
        if self._store.server != "minio":
            raise NotCheckedError("only MinIO tells")
        if self._rules.targets is None:
            raise NotCheckedError(self._rules.reason)
        return self._rules.targets

    def _reaches(self) -> str:
        targets = self._targets
        away = [name for name in self._rules.names if targets.states.get(name) != minio.ONLINE]
        endpoints = {name: targets.variable("ENDPOINT", name) for name in self._rules.names}
        if away:
            where = ", ".join(dict.fromkeys(filter(None, (endpoints[name] for name in away))))
            raise WrongError(
                f"MinIO cannot reach the host: its target {' and '.join(away)} is offline{where and f' ({where})'}.",
                "Run `bucketbell connect --host-url http://HOST:8080` with the host's address as MinIO's machine "
                "reaches it, put the lines that it prints into MinIO's environment, and restart MinIO.",
            )
        for name, endpoint in endpoints.items():
            path = "/events" if name == SURE_TARGET else "/events/fast"
            if endpoint is not None and not endpoint.endswith(path):
                raise WrongError(
                    f"MinIO's target {name} posts to {endpoint}, which is no door of the host.",
                    f"Set MINIO_NOTIFY_WEBHOOK_ENDPOINT_{name} to the host's address and {path}, and restart MinIO.",
                )
        return ", ".join(name if endpoint is None else endpoint for name, endpoint in endpoints.items())

    def _token(self) -> str:
        ours = [token.get_secret_value() for token in self._store.settings.webhook_tokens]
        if self._rules.targets is not None and ours:
            theirs = {name: self._rules.targets.variable("AUTH_TOKEN", name) for name in self._rules.names}
            for name, token in theirs.items():
                if token is not None and not any(_same(token.removeprefix("Bearer "), one) for one in ours):
                    raise WrongError(
                        f"The token of MinIO's target {name} is none of WEBHOOK_TOKENS: the host turns it away.",
                        f"Set MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{name} to the first of WEBHOOK_TOKENS (`bucketbell "
                        "connect --show-token` prints the lines), and restart MinIO.",
                    )
            if theirs and None not in theirs.values():
                return "one of WEBHOOK_TOKENS"
        before = self._host.turned_away()
        if not before:
            raise NotCheckedError("only the store knows which token it presents; the host has turned nobody away yet")
        time.sleep(AGAIN_SECONDS)
        more = self._host.turned_away() - before
        if more > 0:
            raise WrongError(
                f"Somebody presents a wrong token to the host: {more:.0f} times in the last {AGAIN_SECONDS:.0f} s.",
                "Give the store the first of WEBHOOK_TOKENS as its token, and restart it if it wants that.",
            )
        raise NotCheckedError(f"the host has turned away {before:.0f} requests since its start, and none just now")

    def _queue(self) -> str:
        targets = self._targets
        directory = targets.variable("QUEUE_DIR", SURE_TARGET)
        if targets.variable("ENDPOINT", SURE_TARGET) and not directory:  # otherwise the configuration says where
            raise WrongError(
                f"MinIO keeps nothing: its target {SURE_TARGET} has no queue directory.",
                f"Set MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_{SURE_TARGET} to a directory that lasts, and restart MinIO.",
            )
        place = directory or "MinIO's queue directory"
        asked_at = time.monotonic()
        first = self._figures()
        waiting, failed = first.get("queue_length", 0.0), first.get("failed_events", 0.0)
        limit = float(targets.variable("QUEUE_LIMIT", SURE_TARGET) or QUEUE_LIMIT_EVENTS)
        if failed or waiting >= limit:
            raise WrongError(
                f"MinIO's queue is full or cannot be written: {failed:.0f} events were lost since MinIO's start, "
                f"{waiting:.0f} wait.",
                f"Make room on the disk of {place} and let MinIO write there, or raise "
                f"MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_{SURE_TARGET}; then restart MinIO. With SWEEP_SECONDS the host "
                "announces what was lost.",
            )
        if not waiting:
            return f"empty ({place})"
        time.sleep(max(0.0, METRICS_SECONDS - (time.monotonic() - asked_at)))
        second = self._figures()
        left = second.get("queue_length", 0.0)
        # New ones may have come meanwhile, as many as have gone.
        gone = waiting - left + second.get("total_events", 0.0) - first.get("total_events", 0.0)
        if gone > 0:
            return f"{left:.0f} wait, and {gone:.0f} have gone meanwhile"
        raise WrongError(
            f"MinIO's queue stands still: {left:.0f} events wait, although the host takes them.",
            f"Look below {place} for the oldest `*.event` file, which is empty or torn (no JSON), and remove it: MinIO "
            "stops there. Its own event is lost; with SWEEP_SECONDS the file is announced all the same.",
        )

    def _figures(self) -> dict[str, float]:
        try:
            return minio.target_metrics(self._store.s3, self._store.settings).get(SURE_TARGET, {})
        except StorageError as error:
            raise NotCheckedError(
                f"these credentials may not read MinIO's metrics (admin:Prometheus): {error.message}"
            ) from None


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode(), other.encode())
