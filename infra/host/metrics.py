"""The host's metrics, counted by prometheus_client under the names of `functions.telemetry`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    Metric,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from functions.fleet.reports import REFUSALS, STATES

if TYPE_CHECKING:
    from functions.stored.fleet import Recorded

# A second series for every counter, that no dashboard reads.
disable_created_metrics()  # type: ignore[no-untyped-call]  # the library left it unannotated

_STATUSES = ("failure", "success")
OTHER_REFUSALS = ("not_a_mac", "retained", "unknown_device")  # beside what `parse_report` finds
STRANGERS = ("no_token", "bad_token", "too_many", "foreign_page")
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
ROLLOUT_BUCKETS_SECONDS = (1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 6 * 3600, 24 * 3600, 7 * 24 * 3600)
SWEEP_BUCKETS_SECONDS = (0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0)

Expected = tuple[Sequence[str], Mapping[str, Sequence[str]]]
"""Topics, and outcomes by source."""


class PrometheusTelemetry:
    """See `functions.telemetry.Telemetry` for what each method counts."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        """Register into `registry`, or into one of its own: two in one process do not collide."""
        self.registry = registry or CollectorRegistry()
        ProcessCollector(registry=self.registry)
        publish = Counter("mqtt_publish_total", "Attempted publishes.", ["topic", "status"], registry=self.registry)
        duration = Histogram(
            "mqtt_publish_duration_seconds",
            "From taking a notification to the broker's answer, or to giving up.",
            ["topic"],
            buckets=BUCKETS_SECONDS,
            registry=self.registry,
        )
        self._state = Gauge("mqtt_connection_state", "1 while the broker is connected.", registry=self.registry)
        self._status = Gauge("mqtt_connection_status", "As mqtt_connection_state.", registry=self.registry)
        self._enabled = Gauge(
            "mqtt_enabled",
            "1 while a broker is configured and its last CONNACK stands.",
            registry=self.registry,
        )
        self._reconnects = Counter(
            "mqtt_reconnect_attempts_total", "Attempts to connect after a failure.", registry=self.registry
        )
        self._errors = Counter("mqtt_publish_errors_total", "Failed publishes.", registry=self.registry)
        self._messages = Counter("mqtt_messages_published_total", "Published messages.", registry=self.registry)
        no_subscribers = Counter(
            "mqtt_no_subscribers_total",
            "Messages that the broker took, saying that nobody listens. Not every broker ever says so.",
            ["topic"],
            registry=self.registry,
        )
        events = Counter(
            "events_total",
            "Records that arrived, and what became of them.",
            ["source", "outcome"],
            registry=self.registry,
        )

        self._renewed = Counter(
            "device_tokens_renewed_total", "Devices that got their next token.", registry=self.registry
        )
        strangers = Counter(
            "strangers_total",
            "Requests that were turned away before anybody was asked, by why.",
            ["reason"],
            registry=self.registry,
        )

        # Looking a label up costs more than counting; there are a handful of each.
        self._publish, self._duration = cache(publish.labels), cache(duration.labels)
        self._strangers = cache(strangers.labels)
        for reason in STRANGERS:
            self._strangers(reason)
        self._no_subscribers, self._events = cache(no_subscribers.labels), cache(events.labels)

    def watch(
        self, certificate: Callable[[], tuple[str, float] | None], database_up: Callable[[], bool | None]
    ) -> None:
        """Show what these say at each exposition, and nothing where they say None. Call once.

        `certificate`: the broker, and until when its certificate is valid. `database_up`: whether the stored settings
        could be read the last time.
        """
        self.registry.register(_Seen(certificate, database_up))

    def enabled(self, *, enabled: bool) -> None:
        """`mqtt_enabled`."""
        self._enabled.set(enabled)

    def connection(self, *, connected: bool) -> None:
        """`mqtt_connection_state`, `mqtt_connection_status`."""
        self._state.set(connected)
        self._status.set(connected)

    def reconnect_attempt(self) -> None:
        """`mqtt_reconnect_attempts_total`."""
        self._reconnects.inc()

    def published(self, topic: str, *, success: bool, no_subscribers: bool, duration_seconds: float) -> None:
        """`mqtt_publish_total` and its companions."""
        self._publish(topic, _STATUSES[success]).inc()
        (self._messages if success else self._errors).inc()
        if no_subscribers:
            self._no_subscribers(topic).inc()
        self._duration(topic).observe(duration_seconds)

    def event(self, source: str, outcome: str) -> None:
        """`events_total`."""
        self._events(source, outcome).inc()

    def token_renewed(self) -> None:
        """`device_tokens_renewed_total`."""
        self._renewed.inc()

    def stranger(self, reason: str) -> None:
        """`strangers_total`."""
        self._strangers(reason).inc()

    def exposition(self, expected: Expected = ((), {})) -> bytes:
        """Return every metric in Prometheus' text format 0.0.4.

        What is `expected` is shown before it is counted: Prometheus sees no rise from nothing.
        """
        topics, outcomes = expected
        for topic in topics:
            self._duration(topic)
            self._no_subscribers(topic)
            for status in _STATUSES:
                self._publish(topic, status)
        for source, labels in outcomes.items():
            for label in labels:
                self._events(source, label)
        return generate_latest(self.registry)


class SweepTelemetry:
    """What the sweep counts, where there is one."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register into `registry`."""
        self._list_calls = Counter("sweep_list_calls_total", "LIST requests of the sweep.", registry=registry)
        self._seconds = Histogram(
            "sweep_seconds", "How long a sweep of all prefixes took.", buckets=SWEEP_BUCKETS_SECONDS, registry=registry
        )
        self._rang = Counter(
            "sweep_rang_total", "Messages of the sweep: files of which no event has come.", registry=registry
        )
        self._rollbacks = Counter(
            "sweep_rollbacks_total", "Contents that came back: announced once, and not again.", registry=registry
        )
        self._waiting = Gauge("sweep_waiting", "Files beyond SWEEP_MAX_RINGS: they wait.", registry=registry)

    def list_call(self) -> None:
        """`sweep_list_calls_total`."""
        self._list_calls.inc()

    def swept(self, seconds: float) -> None:
        """`sweep_seconds`."""
        self._seconds.observe(seconds)

    def rang(self) -> None:
        """`sweep_rang_total`."""
        self._rang.inc()

    def rolled_back(self) -> None:
        """`sweep_rollbacks_total`."""
        self._rollbacks.inc()

    def waiting(self, files: int) -> None:
        """`sweep_waiting`."""
        self._waiting.set(files)


class JetStreamTelemetry:
    """What is seen of JetStream, where the host takes events from it."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register into `registry`."""
        self._up = Gauge("nats_up", "1 while the host takes events from JetStream.", registry=registry)
        self._pending = Gauge("nats_consumer_pending", "Events in the stream that no host has yet.", registry=registry)
        words = "Events that a host has, or that wait to be tried again."
        self._unsettled = Gauge("nats_consumer_ack_pending", words, registry=registry)
        words = "Events that were given up, with a copy on the dead-letter subject."
        self._dead = Counter("nats_dead_letters_total", words, registry=registry)

    def up(self, *, up: bool) -> None:
        """`nats_up`."""
        self._up.set(up)

    def consumer(self, pending: int, unsettled: int) -> None:
        """`nats_consumer_pending`, `nats_consumer_ack_pending`."""
        self._pending.set(pending)
        self._unsettled.set(unsettled)

    def dead_letter(self) -> None:
        """`nats_dead_letters_total`."""
        self._dead.inc()


class _Seen(Collector):
    """What is there only where it is known: a value in place of "unknown" would ring an alarm."""

    def __init__(
        self, certificate: Callable[[], tuple[str, float] | None], database_up: Callable[[], bool | None]
    ) -> None:
        self._certificate = certificate
        self._database_up = database_up

    def collect(self) -> Iterable[Metric]:
        if (certificate := self._certificate()) is not None:
            broker, expires_at = certificate
            words = "When the broker's certificate ends, as Unix time."
            family = GaugeMetricFamily("mqtt_certificate_expires_seconds", words, labels=["broker"])
            family.add_metric([broker], expires_at)
            yield family
        if (up := self._database_up()) is not None:
            yield GaugeMetricFamily("database_up", "1 while the stored settings can be read.", value=up)


class FleetTelemetry:
    """What is counted of devices' reports, where there is a database."""

    def __init__(self, registry: CollectorRegistry) -> None:
        """Register into `registry`."""
        reports = Counter("device_reports_total", "Reports that said something new.", ["state"], registry=registry)
        refused = Counter("device_reports_refused_total", "Reports that were not kept.", ["reason"], registry=registry)
        self._odd_clocks = Counter(
            "device_reports_odd_clock_total", "Reports whose time cannot be right.", registry=registry
        )
        self._unread = Counter(
            "device_reports_unknown_fields_total", "Reports with fields that nobody knows.", registry=registry
        )
        self._not_noted = Counter(
            "fleet_uploads_not_noted_total", "Uploads that the database could not be told of.", registry=registry
        )
        self._rollout = Histogram(
            "file_rollout_seconds",
            "From the message that announced an upload to a device's report that it is installed.",
            buckets=ROLLOUT_BUCKETS_SECONDS,
            registry=registry,
        )
        self._registry = registry
        self._reports, self._refused = cache(reports.labels), cache(refused.labels)
        for state in STATES:
            self._reports(state)
        for reason in (*REFUSALS, *OTHER_REFUSALS):
            self._refused(reason)

    def watch(self, devices: Callable[[], Mapping[str, int] | None]) -> None:
        """Show `fleet_devices` as this says at each exposition, and nothing where it says None. Call once."""
        self._registry.register(_Devices(devices))

    def recorded(self, recorded: Recorded, *, unread: int) -> None:
        """A batch is stored; `unread` reports of it had fields that nobody knows."""
        for one in recorded.changes:
            self._reports(one.state).inc()
        if recorded.unknown:
            self._refused("unknown_device").inc(recorded.unknown)
        self._odd_clocks.inc(recorded.disbelieved)
        self._unread.inc(unread)
        for took in recorded.rollouts:
            self._rollout.observe(took.total_seconds())

    def refused(self, reason: str) -> None:
        """`device_reports_refused_total`."""
        self._refused(reason).inc()

    def not_noted(self, count: int) -> None:
        """`fleet_uploads_not_noted_total`."""
        self._not_noted.inc(count)


class _Devices(Collector):
    """How many devices stand how; not there while that is not known: an old count would hide that."""

    def __init__(self, devices: Callable[[], Mapping[str, int] | None]) -> None:
        self._devices = devices

    def collect(self) -> Iterable[Metric]:
        if (devices := self._devices()) is not None:
            words = "Devices by how far each is with the file that it should have."
            family = GaugeMetricFamily("fleet_devices", words, labels=["state"])
            for state, count in devices.items():
                family.add_metric([state], count)
            yield family
