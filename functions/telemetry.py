"""Logger and metrics: the names that dashboards know, on Lambda through Powertools (EMF).

The host counts the same names with prometheus_client (`infra.host.metrics`); both answer to `Telemetry`.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Protocol

from aws_lambda_powertools.logging import Logger
from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

NAMESPACE = SERVICE = "bucketbell"
MAX_EMF_VALUES = 99  # for one metric in one document; at CloudWatch's 100 Powertools prints by itself, too early

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
        `mqtt_publish_errors_total`, `mqtt_no_subscribers_total{topic}`.
        """

    def event(self, source: str, outcome: str) -> None:
        """`events_total{source,outcome}`: one record, and what became of it."""


class EmfTelemetry:
    """Collects during an invocation; `flush` prints what there is as CloudWatch embedded metric format."""

    def __init__(self) -> None:
        """Begin with nothing to tell."""
        self._gauges: dict[str, int] = {}
        self._counts: Counter[tuple[str, tuple[tuple[str, str], ...]]] = Counter()
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

    def flush(self) -> None:
        """Print an EMF document or more for each set of dimensions, and begin anew; the gauges are told every time."""
        documents: defaultdict[tuple[tuple[tuple[str, str], ...], int], EphemeralMetrics] = defaultdict(
            lambda: EphemeralMetrics(namespace=NAMESPACE, service=SERVICE)
        )
        for name, gauge in self._gauges.items():
            documents[(), 0].add_metric(name, MetricUnit.Count, gauge)
        for (name, dimensions), count in self._counts.items():
            documents[dimensions, 0].add_metric(name, MetricUnit.Count, count)
        for topic, durations in self._durations.items():
            for position, duration in enumerate(durations):
                document = documents[(("topic", topic),), position // MAX_EMF_VALUES]
                document.add_metric("mqtt_publish_duration_seconds", MetricUnit.Seconds, duration)
        for (dimensions, _), document in documents.items():
            for name, value in dimensions:
                document.add_dimension(name, value)
            document.flush_metrics()
        self._counts.clear()
        self._durations.clear()
