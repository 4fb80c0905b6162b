"""The kinds of stores that `connect` knows: how each is told from the others, and what becomes of its events."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from infra.connect.sweep import Events

KindName = Literal["minio", "rustfs", "ceph", "seaweedfs", "versitygw", "sqs", "none", "other"]

# "tx", the transaction, the time, the instance, the zone: no other store's requests are called so. Older releases have
# no `Server` header.
_CEPH_REQUEST = re.compile(r"tx[0-9a-f]{21,}-[0-9a-f]+-[0-9a-f]+-.+")


@dataclass(frozen=True, slots=True)
class StoreKind:
    """One kind of store. `by_hand`: it has no rules that could be set. `lost`: what can become of its events."""

    name: KindName
    title: str
    events: Events
    lost: str = "Events can be lost."
    by_hand: bool = False


KINDS: Mapping[KindName, StoreKind] = {
    kind.name: kind
    for kind in (
        StoreKind("minio", "MinIO", "kept"),
        StoreKind("rustfs", "RustFS", "kept", "Events are lost if their queue on disk is full or torn."),
        StoreKind(
            "ceph",
            "Ceph RGW",
            "tried",
            "Ceph keeps events, but after a refused connection they can wait until radosgw is restarted.",
        ),
        StoreKind(
            "seaweedfs",
            "SeaweedFS",
            "tried",
            "SeaweedFS tries each event four times in 21 s; a killed filer loses those that wait.",
            by_hand=True,
        ),
        StoreKind("versitygw", "Versity Gateway", "tried", "Versity Gateway tries each event once.", by_hand=True),
        StoreKind("sqs", "A store with SQS", "queue"),
        StoreKind("none", "A store without events", "none", by_hand=True),
        StoreKind("other", "This store", "tried", by_hand=True),
    )
}

_SERVERS: Mapping[str, KindName] = {
    "minio": "minio",
    "rustfs": "rustfs",
    "ceph": "ceph",
    "seaweedfs": "seaweedfs",
    "versitygw": "versitygw",
    "amazons3": "sqs",
}


def recognise(headers: Mapping[str, str]) -> StoreKind | None:
    """Which kind answers with these headers (names in lower case); None if they do not say."""
    server = headers.get("server", "").lower()
    for beginning, name in _SERVERS.items():
        if server.startswith(beginning):
            return KINDS[name]
    return KINDS["ceph"] if _CEPH_REQUEST.fullmatch(headers.get("x-amz-request-id", "")) else None
