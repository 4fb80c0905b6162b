"""Logger and metrics: the names that dashboards know, on Lambda as CloudWatch's embedded metric format (EMF).

The host counts the same names with prometheus_client (`infra.host.metrics`); both answer to `Telemetry`.
"""

from __future__ import annotations

import json
import time
from collections import Counter, defaultdict
from functools import lru_cache
from typing import Protocol

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics

NAMESPACE = SERVICE = "bucketbell"
MAX_EMF_VALUES = 100  # for one metric in one document

Dimensions = tuple[tuple[str, str], ...]
_Metric = tuple[tuple[str, ...], str, str]  # the names of its dimensions, its own name, its unit

logger = Logger(service=SERVICE)


class Telemetry(Protocol):
    """What is counted. Every method is called before the side effect that it tells of (an answer, a log line)."""

    def enabled(self, *, enabled: bool) -> None:
        """`mqtt_enabled`: a broker is configured, and its last CONNACK stands."""

    def connection(self, *, connected: bool) -> None:
        """`mqtt_connection_state` and `mqtt_connection_status`: the link as it was last seen."""

    def reconnect_attempt(self) -> None:
        """`mqtt_reconnect_attempts_total`: an attempt after the first."""

    def published(self, topic: str, *, success: bool, no_subscribers: bool, duration_seconds: float) -> None:
        """Count one attempted publish as exactly one of success and failure.

        `mqtt_publish_total{topic,status}`, `mqtt_publish_duration_seconds{topic}`, `mqtt_messages_published_total` or
        `mqtt_publish_errors_total`, `mqtt_no_subscribers_total{topic}`: only where the broker says 0x10, in MQTT 5 and
        above QoS 0, which mochi, Artemis, aedes and AWS IoT Core never do.
        """

    def event(self, source: str, outcome: str) -> None:
        """`events_total{source,outcome}`: one record, and what became of it."""


class EmfTelemetry:
    """Collects during an invocation; `flush` prints what there is as CloudWatch embedded metric format."""

    def __init__(self) -> None:
        """Begin empty. POWERTOOLS_SERVICE_NAME tells the stacks of one account apart."""
        self._service = EphemeralMetrics(namespace=NAMESPACE).service or SERVICE  # which reads that variable
        self._gauges: dict[str, int] = {}
        self._counts: Counter[tuple[str, Dimensions]] = Counter()
        self._durations: defaultdict[str, list[float]] = defaultdict(list)

    def enabled(self, *, enabled: bool) -> None:
        """See `Telemetry.enabled`."""
        self._gauges["mqtt_enabled"] = int(enabled)

    def connection(self, *, connected: bool) -> None:
        """See `Telemetry.connection`."""
        self._gauges["mqtt_connection_state"] = self._gauges["mqtt_connection_status"] = int(connected)

    def reconnect_attempt(self) -> None:
        """See `Telemetry.reconnect_attempt`."""
        self._counts["mqtt_reconnect_attempts_total", ()] += 1

    def published(self, topic: str, *, success: bool, no_subscribers: bool, duration_seconds: float) -> None:
        """See `Telemetry.published`."""
        status = "success" if success else "failure"
        self._counts["mqtt_publish_total", (("topic", topic), ("status", status))] += 1
        self._counts["mqtt_messages_published_total" if success else "mqtt_publish_errors_total", ()] += 1
        if no_subscribers:
            self._counts["mqtt_no_subscribers_total", (("topic", topic),)] += 1
        self._durations[topic].append(duration_seconds)

    def event(self, source: str, outcome: str) -> None:
        """See `Telemetry.event`."""
        self._counts["events_total", (("source", source), ("outcome", outcome))] += 1

    def token_renewed(self) -> None:
        """`device_tokens_renewed_total`: a device got its next token."""
        self._counts["device_tokens_renewed_total", ()] += 1

    def flush(self) -> None:
        """Print what there is, and begin again; the gauges are printed every time."""
        documents: list[_Document] = []

        def tell(dimensions: Dimensions, name: str, unit: str, value: float | list[float]) -> None:
            for document in documents:
                if document.take(dimensions, name, unit, value):
                    return
            documents.append(_Document(self._service))
            documents[-1].take(dimensions, name, unit, value)

        for name, gauge in self._gauges.items():
            tell((), name, "Count", gauge)
        for (name, dimensions), count in self._counts.items():
            tell(dimensions, name, "Count", count)
        for topic, durations in self._durations.items():
            for at in range(0, len(durations), MAX_EMF_VALUES):
                values = durations[at : at + MAX_EMF_VALUES]
                tell((("topic", topic),), "mqtt_publish_duration_seconds", "Seconds", values)
        for document in documents:
            print(document)  # noqa: T201 - standard output is where CloudWatch reads it
        self._counts.clear()
        self._durations.clear()


class _Document:
    """One line of CloudWatch's embedded metric format, with metrics of several sets of dimensions.

    Powertools prints a line for each set, and takes as long for four of them as a publish does. Source: CloudWatch
    User Guide, "Specification: Embedded metric format".
    """

    def __init__(self, service: str) -> None:
        self._members: dict[str, object] = {"service": service}
        self._metrics: list[_Metric] = []

    def take(self, dimensions: Dimensions, name: str, unit: str, value: float | list[float]) -> bool:
        """Put a metric in, unless it would give a member of the document a second value."""
        members = self._members
        if name in members:
            return False
        for one, its in dimensions:
            if members.get(one, its) != its:
                return False
        members.update(dimensions)
        members[name] = value
        self._metrics.append((tuple([one for one, _ in dimensions]), name, unit))
        return True

    def __str__(self) -> str:
        about = f'{{"Timestamp": {int(time.time() * 1000)}, "CloudWatchMetrics": {_directives(tuple(self._metrics))}}}'
        return f'{{"_aws": {about}, {json.dumps(self._members)[1:]}'


@lru_cache(maxsize=64)  # most invocations tell the same metrics
def _directives(metrics: tuple[_Metric, ...]) -> str:
    """What the members are, as JSON: the metrics of each set of dimensions."""
    sets: defaultdict[tuple[str, ...], list[dict[str, str]]] = defaultdict(list)
    for dimensions, name, unit in metrics:
        sets[(*dimensions, "service")].append({"Name": name, "Unit": unit})
    return json.dumps(
        [{"Namespace": NAMESPACE, "Dimensions": [names], "Metrics": those} for names, those in sets.items()]
    )
