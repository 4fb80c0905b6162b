"""What MinIO says of its own targets: its administration and its metrics, asked on the S3 client's own connection."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from functions.s3.clients import storage_errors

if TYPE_CHECKING:
    from collections.abc import Mapping

    from mypy_boto3_s3.client import S3Client

    from functions.settings import Settings

INFO = "/minio/admin/v3/info"
METRICS = "/minio/v2/metrics/cluster"
JWT_SECONDS = 300
MAX_BYTES = 16 << 20
ONLINE = "online"

_METRIC = re.compile(r'^(minio_notify_target_\w+)\{(?:[^}]*,)?target_id="([^"]*)"[^}]*\} (\S+)$', re.MULTILINE)


@dataclass(frozen=True, slots=True)
class MinioTargets:
    """MinIO's webhook and NATS targets: by id, `online` or `offline`; and what its environment says of them.

    A target that was set by `mc admin config` has no variables. They hold the tokens, so that nothing shows them.
    """

    states: Mapping[str, str]
    variables: Mapping[str, str] = field(repr=False)
    workers: int = 0
    """Its event workers (GOMAXPROCS), on the node with the fewest."""
    nodes: int = 1
    offline: tuple[str, ...] = ()
    """The nodes that do not answer the one that was asked."""

    def variable(self, name: str, target: str) -> str | None:
        """The value of `MINIO_NOTIFY_WEBHOOK_<name>_<target>`."""
        return self.variables.get(f"MINIO_NOTIFY_WEBHOOK_{name}_{target}")


def look(s3: S3Client) -> MinioTargets:
    """Ask MinIO's administration. Raises StorageError: 403 without the right."""
    document = json.loads(_ask(s3, INFO))
    states: dict[str, str] = {}
    for kind in document.get("services", {}).get("notifications") or ():
        for one in (*kind.get("webhook", ()), *kind.get("nats", ())):
            states |= {str(name): str(state.get("status", "")).lower() for name, state in one.items()}
    variables: dict[str, str] = {}
    servers = document.get("servers") or ()
    for server in servers:
        variables |= {name: str(value) for name, value in (server.get("minio_env_vars") or {}).items()}
    return MinioTargets(
        states,
        variables,
        workers=min((int(server.get("go_max_procs") or 0) for server in servers), default=0),
        nodes=len(servers),
        offline=tuple(str(server.get("endpoint")) for server in servers if server.get("state") != ONLINE),
    )


def target_metrics(s3: S3Client, settings: Settings) -> dict[str, dict[str, float]]:
    """Of each target, by its id, the metrics without `minio_notify_target_`: `queue_length`, `failed_events`, ….

    MinIO works them out every 10 s at most. Raises StorageError: 403 without the right.
    """
    key_id, secret = settings.aws_access_key_id, settings.aws_secret_access_key
    token = _token(key_id, secret.get_secret_value()) if key_id and secret else None
    found: dict[str, dict[str, float]] = {}
    for name, target, value in _METRIC.findall(_ask(s3, METRICS, token).decode(errors="replace")):
        target_id = target.partition(":")[0]
        found.setdefault(target_id, {})[name.removeprefix("minio_notify_target_")] = float(value)
    return found


def _ask(s3: S3Client, path: str, bearer: str | None = None) -> bytes:
    """GET a path that is not S3's: it is signed as S3 is, and so goes in the place of a GetObject."""

    def aim(request: Any, **_: object) -> None:  # noqa: ANN401 - botocore's, which only the clients import
        request.url = s3.meta.endpoint_url.rstrip("/") + path

    def present(request: Any, **_: object) -> None:  # noqa: ANN401 - as above
        if bearer is not None:
            request.headers["Authorization"] = f"Bearer {bearer}"

    events = s3.meta.events
    events.register("before-sign.s3.GetObject", aim)
    events.register("before-send.s3.GetObject", present)
    try:
        with storage_errors():
            return s3.get_object(Bucket="minio", Key="info")["Body"].read(MAX_BYTES)
    finally:
        events.unregister("before-sign.s3.GetObject", aim)
        events.unregister("before-send.s3.GetObject", present)


def _token(key_id: str, secret: str) -> str:
    """What MinIO's metrics ask for, as `mc admin prometheus generate` makes it: a JWT by the secret key."""
    claims = {"exp": int(time.time()) + JWT_SECONDS, "sub": key_id, "iss": "prometheus"}
    parts = ".".join(_encoded(json.dumps(part).encode()) for part in ({"alg": "HS512", "typ": "JWT"}, claims))
    return f"{parts}.{_encoded(hmac.digest(secret.encode(), parts.encode(), hashlib.sha512))}"


def _encoded(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()
