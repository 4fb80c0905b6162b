"""Metric values, as CloudWatch would read them."""

from __future__ import annotations

import json
import time
from collections import Counter
from typing import Any

import pytest

from functions.telemetry import EmfTelemetry

Values = dict[tuple[str, tuple[tuple[str, str], ...]], list[float]]


def _flushed(telemetry: EmfTelemetry, capsys: pytest.CaptureFixture[str]) -> Values:
    """Flush, and read every document by the rules of the embedded metric format."""
    capsys.readouterr()
    telemetry.flush()
    values: Values = {}
    for line in capsys.readouterr().out.splitlines():
        document: dict[str, Any] = json.loads(line)
        assert abs(document["_aws"]["Timestamp"] / 1000 - time.time()) < 60
        for directive in document["_aws"]["CloudWatchMetrics"]:
            assert directive["Namespace"] == "bucketbell"
            assert len(directive["Metrics"]) <= 100, "CloudWatch takes no more in one directive"
            (names,) = directive["Dimensions"]
            dimensions = tuple((name, document[name]) for name in names if name != "service")
            assert document["service"]
            assert all(isinstance(value, str) for _, value in dimensions)
            for metric in directive["Metrics"]:
                found = document[metric["Name"]]
                found = found if isinstance(found, list) else [found]
                assert len(found) <= 100, "CloudWatch takes no more in one document"
                values.setdefault((metric["Name"], dimensions), []).extend(found)
    return values


def _publish(telemetry: EmfTelemetry, topic: str, *, success: bool = True, no_subscribers: bool = False) -> None:
    telemetry.published(topic, success=success, no_subscribers=no_subscribers, duration_seconds=0.25)


def test_every_attempt_counts_as_exactly_one_of_success_and_failure(capsys: pytest.CaptureFixture[str]) -> None:
    """By topic and status, before, after, and after the next."""
    telemetry = EmfTelemetry()
    assert _flushed(telemetry, capsys) == {}
    _publish(telemetry, "a")
    _publish(telemetry, "a", no_subscribers=True)
    _publish(telemetry, "a", success=False)
    _publish(telemetry, "b", success=False)
    assert _flushed(telemetry, capsys) == {
        ("mqtt_publish_total", (("topic", "a"), ("status", "success"))): [2],
        ("mqtt_publish_total", (("topic", "a"), ("status", "failure"))): [1],
        ("mqtt_publish_total", (("topic", "b"), ("status", "failure"))): [1],
        ("mqtt_messages_published_total", ()): [2],
        ("mqtt_publish_errors_total", ()): [2],
        ("mqtt_no_subscribers_total", (("topic", "a"),)): [1],
        ("mqtt_publish_duration_seconds", (("topic", "a"),)): [0.25] * 3,
        ("mqtt_publish_duration_seconds", (("topic", "b"),)): [0.25],
    }
    assert _flushed(telemetry, capsys) == {}, "counts are told once"


def test_gauges_are_told_every_time_and_hold_the_last_state(capsys: pytest.CaptureFixture[str]) -> None:
    """A dashboard sees the link's state also in minutes in which nothing changed."""
    telemetry = EmfTelemetry()
    telemetry.connection(connected=True)
    telemetry.enabled(enabled=True)
    up = {(name, ()): [1.0] for name in ("mqtt_enabled", "mqtt_connection_state", "mqtt_connection_status")}
    assert _flushed(telemetry, capsys) == up
    assert _flushed(telemetry, capsys) == up
    telemetry.connection(connected=False)
    telemetry.enabled(enabled=False)
    assert _flushed(telemetry, capsys) == {metric: [0.0] for metric in up}


def test_events_and_reconnects_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """By source and outcome."""
    telemetry = EmfTelemetry()
    telemetry.event("sqs", "delivered")
    telemetry.event("sqs", "delivered")
    telemetry.event("direct", "removed")
    telemetry.reconnect_attempt()
    assert _flushed(telemetry, capsys) == {
        ("events_total", (("source", "sqs"), ("outcome", "delivered"))): [2],
        ("events_total", (("source", "direct"), ("outcome", "removed"))): [1],
        ("mqtt_reconnect_attempts_total", ()): [1],
    }


def test_what_one_upload_has_to_tell_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    """Whatever dimensions its metrics have: each line costs time and money."""
    telemetry = EmfTelemetry()
    telemetry.connection(connected=True)
    telemetry.enabled(enabled=True)
    _publish(telemetry, "a", no_subscribers=True)
    telemetry.event("sqs", "no_subscribers")
    telemetry.flush()
    assert len(capsys.readouterr().out.splitlines()) == 1


@pytest.mark.parametrize("count", [98, 99, 100, 101, 250])
def test_a_large_batch_keeps_every_duration_and_its_topic(count: int, capsys: pytest.CaptureFixture[str]) -> None:
    """CloudWatch takes 100 values for one metric in one document: more go into several."""
    telemetry = EmfTelemetry()
    for _ in range(count):
        _publish(telemetry, "a")
    values = _flushed(telemetry, capsys)
    assert len(values["mqtt_publish_duration_seconds", (("topic", "a"),)]) == count
    assert Counter(name for name, _ in values)["mqtt_publish_duration_seconds"] == 1


def test_registering_twice_is_fine(capsys: pytest.CaptureFixture[str]) -> None:
    """Two in one process share nothing."""
    one, two = EmfTelemetry(), EmfTelemetry()
    one.reconnect_attempt()
    assert _flushed(two, capsys) == {}
    assert _flushed(one, capsys) == {("mqtt_reconnect_attempts_total", ()): [1]}
