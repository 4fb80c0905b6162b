"""The stores: where each comes from, how it is started, and how its events reach the host."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as version_of_package
from pathlib import Path

from infra.connect.documents import EVENTS
from infra.connect.minio import Doors
from infra.local.install import MINIO, VERSITYGW, binary_cache, find_minio, find_versitygw
from infra.local.stores import Minio, MotoServer, Store, VersityGateway
from tests.chaos.world import BUCKET
from tests.matrix.stores.ceph import Ceph
from tests.matrix.stores.garage import Garage
from tests.matrix.stores.install import find_ceph, find_garage, find_weed
from tests.matrix.stores.seaweedfs import SeaweedFS

VERSION_SECONDS = 30.0
TOPIC = "bucketbell"


@dataclass(frozen=True, slots=True)
class StoreKind:
    """One store.

    `events`: how they reach the host; "" where it has none. `word`: what brings it. `connect` tells the store where its
    events go; None: `bucketbell connect` does. `settle_seconds`: so long after a calm upload nothing more comes of it;
    `patience_seconds`: so long after an outage its events may still come. `keeps`: whether it has its objects on disk.
    """

    name: str
    events: str
    word: str
    how: str
    make: Callable[[Path, Doors], Store]
    version: Callable[[], str | None]
    connect: Callable[[Store, str, Doors], None] | None
    settle_seconds: float = 4.0
    patience_seconds: float = 8.0
    needs_host_first: bool = False
    keeps: bool = True


def _nothing(_store: Store, _bucket: str, _doors: Doors) -> None:
    """Its own configuration says where events go, or it has none."""


def _versity(directory: Path, doors: Doors) -> Store:
    url = f"{doors.host_url}/events".replace("://", f"://versity:{doors.token}@")
    return VersityGateway(directory, event_webhook_url=url)


def _seaweedfs(directory: Path, doors: Doors) -> Store:
    return SeaweedFS(directory, host_url=doors.host_url, token=str(doors.token), bucket=BUCKET)


def _ceph_topic(store: Store, bucket: str, doors: Doors) -> None:
    """A persistent topic: one that is not loses what the host does not take at once. Never ObjectRemoved."""
    endpoint = f"{doors.host_url}/events?token={doors.token}"
    attributes = {"push-endpoint": endpoint, "persistent": "true"}
    arn = store.client("sns").create_topic(Name=TOPIC, Attributes=attributes)["TopicArn"]
    rule = {"Id": TOPIC, "TopicArn": arn, "Events": list(EVENTS)}
    store.client().put_bucket_notification_configuration(
        Bucket=bucket, NotificationConfiguration={"TopicConfigurations": [rule]}
    )


def _said(program: Path | None, argument: str, pattern: str) -> str | None:
    """The version that a program says, None where it is not here."""
    if program is None:
        return None
    done = subprocess.run([program, argument], capture_output=True, text=True, timeout=VERSION_SECONDS, check=False)
    found = re.search(pattern, done.stdout + done.stderr)
    return found[1] if found else "unknown"


def _built(program: Path | None, pinned: str, pattern: str) -> str | None:
    """Built by `go install`, a program does not know its version: it is the one that is pinned."""
    is_ours = program is not None and program.parent == binary_cache()
    return pinned if is_ours else _said(program, "--version", pattern)


_KINDS = (
    StoreKind(
        "minio",
        "webhook, both doors",
        "make minio",
        "built by Go from github.com/minio/minio",
        lambda directory, doors: Minio(directory, environment=doors.environment()),
        lambda: _built(find_minio(), MINIO.version, r"version (\S+)"),
        None,
    ),
    StoreKind(
        "versitygw",
        "webhook, sure door",
        "make versitygw",
        "built by Go from github.com/versity/versitygw",
        _versity,
        lambda: _built(find_versitygw(), VERSITYGW.version, r"Version\s*: (\S+)"),
        _nothing,
        patience_seconds=4.0,
        needs_host_first=True,  # it ends at once where its webhook does not answer
    ),
    StoreKind(
        "moto",
        "SQS",
        "make setup",
        "the Python package; it stands in for AWS S3 and SQS, and keeps all in memory",
        lambda directory, _doors: MotoServer(directory),
        lambda: version_of_package("moto"),
        None,
        keeps=False,
    ),
    StoreKind(
        "ceph",
        "a persistent topic",
        "make ceph",
        "the system's packages (apt); one monitor, one OSD (BlueStore, in a file), one gateway",
        lambda directory, _doors: Ceph(directory),
        lambda: _said((find_ceph() or {}).get("radosgw"), "--version", r"version (\S+)"),
        _ceph_topic,
        settle_seconds=6.0,
        patience_seconds=120.0,  # a gateway takes up its queues some time after its start
    ),
    StoreKind(
        "seaweedfs",
        "webhook, sure door",
        "make seaweedfs",
        "built by Go from github.com/seaweedfs/seaweedfs",
        _seaweedfs,
        lambda: _said(find_weed(), "version", r"version \S+ (\d\S+)"),
        _nothing,
        patience_seconds=25.0,  # four tries in 21 s
    ),
    StoreKind(
        "garage",
        "",
        "make garage",
        "built by Cargo from the crate garage",
        lambda directory, _doors: Garage(directory, bucket=BUCKET),
        lambda: _said(find_garage(), "--version", r"(\d+\.\d+\.\d+)"),
        _nothing,
    ),
)

KINDS = {kind.name: kind for kind in _KINDS}
