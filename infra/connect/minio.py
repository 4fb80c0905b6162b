"""Says which lines the environment of MinIO or RustFS needs for the two doors."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar
from urllib.parse import quote, urlsplit

from infra.connect.documents import FAST_TARGET, SURE_TARGET, minio_arn

TOKEN_PLACEHOLDER = "<the first of WEBHOOK_TOKENS>"  # noqa: S105 - stands where the secret belongs
DEFAULT_QUEUE_DIRECTORY = "/var/lib/minio-events"
QUEUE_LIMIT_EVENTS = 100_000  # MinIO's own default, written out: beyond it, new events are lost
# Each event worker waits for every target of its event, so this many events may be stuck before one is
# in memory only, where a killed MinIO loses it. The default is the number of cores (measured: with 64, 0 of 40 were
# lost; with 2, 38 of 40).
EVENT_WORKERS = 64


@dataclass(frozen=True, slots=True)
class Doors:
    """Where a store posts events: `/events` of the host, and `/events/fast` too unless `sure_only`.

    `queue_directory` is on MinIO's machine. `token` is None where the host asks for none.
    """

    host_url: str
    sure_only: bool
    queue_directory: str
    token: str | None = field(repr=False)
    can_be_configured: ClassVar[bool] = True
    """Whether MinIO's admin API is used for its targets."""

    @property
    def targets(self) -> dict[str, str]:
        """MinIO's ARNs of the doors by name."""
        return self.arns(rustfs=False)

    def arns(self, *, rustfs: bool) -> dict[str, str]:
        """The doors' ARNs by name."""
        sure = {"sure": minio_arn(SURE_TARGET, rustfs=rustfs)}
        return sure if self.sure_only else {"fast": minio_arn(FAST_TARGET, rustfs=rustfs), **sure}

    @property
    def without_token(self) -> Doors:
        """The same, with a placeholder instead of the secret."""
        return self if self.token is None else replace(self, token=TOKEN_PLACEHOLDER)

    @property
    def url_with_query(self) -> str:
        """The sure door for a store that can set no header."""
        return f"{self.host_url}/events" + ("" if self.token is None else f"?token={_in_url(self.token)}")

    @property
    def url_with_user(self) -> str:
        """The sure door for a store that makes a header of the name and the password in a URL."""
        scheme, _, place = self.host_url.partition("://")
        user = "" if self.token is None else f"bucketbell:{_in_url(self.token)}@"
        return f"{scheme}://{user}{place}/events"

    def values(self) -> dict[str, dict[str, str]]:
        """By target, the sure one first: the values of MinIO's keys, `queue_dir` and so on."""
        token = self.token or ""
        sure = {
            "enable": "on",
            "endpoint": f"{self.host_url}/events",
            "auth_token": token,
            "queue_dir": self.queue_directory,
            "queue_limit": str(QUEUE_LIMIT_EVENTS),
        }
        fast = {"enable": "on", "endpoint": f"{self.host_url}/events/fast", "auth_token": token, "queue_dir": ""}
        return {SURE_TARGET: sure} if self.sure_only else {SURE_TARGET: sure, FAST_TARGET: fast}

    def environment(self) -> dict[str, str]:
        """MinIO's environment variables.

        Source: MinIO, "Environment variables for webhook notification targets"; internal/config/notify.
        """
        lines = {
            self.variable(key, target): value
            for target, values in reversed(self.values().items())
            for key, value in values.items()
            if value
        }
        # It would take uploads while it starts, before it has loaded its rules, and never tell of them (its
        # cmd/server-main.go: "freeze the services until the bucket notification subsystem gets initialized").
        lines["MINIO_SYNC_BOOT"] = "on"
        if self.sure_only:
            return {**lines, "MINIO_API_SYNC_EVENTS": "on"}
        return {**lines, "GOMAXPROCS": str(EVENT_WORKERS)}

    def variable(self, key: str, target: str) -> str:
        """The name of MinIO's environment variable for a target's key."""
        return variable(key, target)

    def rustfs_environment(self) -> dict[str, str]:
        """RustFS's environment variables.

        Source: RustFS's README, "Webhook notification quick start". A target without a directory gets the default one:
        both queues are looked at every half a second.
        """
        origin = urlsplit(self.host_url)
        return {
            "RUSTFS_NOTIFY_ENABLE": "true",
            "RUSTFS_OUTBOUND_ALLOW_ORIGINS": f"{origin.scheme}://{origin.netloc}",
            **{
                variable(key, target).replace("MINIO", "RUSTFS", 1): value
                for target, values in reversed(self.values().items())
                for key, value in values.items()
                if value
            },
        }


def variable(key: str, target: str) -> str:
    """The name of MinIO's environment variable for a target's key."""
    return f"MINIO_NOTIFY_WEBHOOK_{key.upper()}_{target}"


def _in_url(token: str) -> str:
    return token if token == TOKEN_PLACEHOLDER else quote(token, safe="")
