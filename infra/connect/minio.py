"""Says which lines MinIO's environment needs for the two doors."""

from __future__ import annotations

from dataclasses import dataclass

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
    """Where MinIO posts events: `/events` of the host, and `/events/fast` too unless `sure_only`.

    `queue_directory` is on MinIO's machine. `token` is None where the host asks for none.
    """

    host_url: str
    sure_only: bool
    queue_directory: str
    token: str | None

    @property
    def targets(self) -> dict[str, str]:
        """The doors' ARNs by name."""
        sure = {"sure": minio_arn(SURE_TARGET)}
        return sure if self.sure_only else {"fast": minio_arn(FAST_TARGET), **sure}

    def environment(self) -> dict[str, str]:
        """MinIO's environment variables.

        Source: MinIO, "Environment variables for webhook notification targets"; internal/config/notify.
        """
        lines = {} if self.sure_only else self._target(FAST_TARGET, "/events/fast")
        lines |= self._target(SURE_TARGET, "/events")
        lines[f"MINIO_NOTIFY_WEBHOOK_QUEUE_DIR_{SURE_TARGET}"] = self.queue_directory
        lines[f"MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_{SURE_TARGET}"] = str(QUEUE_LIMIT_EVENTS)
        # It would take uploads while it starts, before it has loaded its rules, and never tell of them (its
        # cmd/server-main.go: "freeze the services until the bucket notification subsystem gets initialized").
        lines["MINIO_SYNC_BOOT"] = "on"
        if self.sure_only:
            return {**lines, "MINIO_API_SYNC_EVENTS": "on"}
        return {**lines, "GOMAXPROCS": str(EVENT_WORKERS)}

    def _target(self, target: str, path: str) -> dict[str, str]:
        lines = {
            f"MINIO_NOTIFY_WEBHOOK_ENABLE_{target}": "on",
            f"MINIO_NOTIFY_WEBHOOK_ENDPOINT_{target}": self.host_url.rstrip("/") + path,
        }
        if self.token is not None:
            lines[f"MINIO_NOTIFY_WEBHOOK_AUTH_TOKEN_{target}"] = self.token
        return lines
