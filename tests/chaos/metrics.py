"""What the parts under test count themselves, read from their Prometheus pages."""

from __future__ import annotations

import urllib.request

from prometheus_client.parser import text_string_to_metric_families

from infra.connect.documents import SURE_TARGET
from infra.local.stack import HostProcess
from infra.local.stores import Store

ANSWER_SECONDS = 5.0

# MinIO's page is for administrators only, unless its environment says this.
MINIO_METRICS_FOR_ALL = {"MINIO_PROMETHEUS_AUTH_TYPE": "public"}


def host_metric(host: HostProcess, name: str, **labels: str) -> float:
    """The sum of a host's samples with these labels among theirs; it begins at 0 with each start."""
    return _sum(f"{host.url}/metrics", name, labels)


def sure_door_dropped(store: Store) -> int:
    """How many events MinIO could not put on disk for the sure door since it started: it forgets them."""
    return int(_sure_door(store, "minio_notify_target_failed_events_total"))  # the parser gives each counter this end


def sure_door_waiting(store: Store) -> int:
    """How many events wait in the sure door's queue."""
    return int(_sure_door(store, "minio_notify_target_queue_length"))


def _sure_door(store: Store, name: str) -> float:
    return _sum(f"{store.endpoint_url}/minio/v2/metrics/cluster", name, {"target_id": SURE_TARGET})


def _sum(url: str, name: str, labels: dict[str, str]) -> float:
    with urllib.request.urlopen(url, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - an http URL of ours
        families = text_string_to_metric_families(answer.read().decode())
        samples = [sample for family in families for sample in family.samples if sample.name == name]
    return sum(sample.value for sample in samples if labels.items() <= sample.labels.items())
