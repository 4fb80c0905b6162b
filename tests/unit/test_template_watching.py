"""How `template.yaml` lets a person watch the stack: alarms, dashboard, logs, traces."""

from __future__ import annotations

import json
from importlib.metadata import packages_distributions
from typing import Any

import pytest

from functions.cameras.detections import LABEL
from functions.events.routes import Routes
from functions.settings import load
from functions.telemetry import EmfTelemetry
from infra.connect.documents import QUEUE_VISIBILITY_SECONDS
from tests.template import EVERYTHING, STACK, Stack

Metric = tuple[str, str, frozenset[tuple[str, str]]]
"""Namespace, name, dimensions: all three make a metric; one wrong, and CloudWatch shows another that has no values."""

# Lambda, "Types of metrics for Lambda functions"; SQS, "Available CloudWatch metrics"; API Gateway, "Monitor CloudWatch
# metrics for HTTP APIs".
OF_AWS = {
    ("AWS/Lambda", "FunctionName"): {"Invocations", "Errors", "Throttles", "Duration"},
    ("AWS/SQS", "QueueName"): {
        "ApproximateAgeOfOldestMessage",
        "ApproximateNumberOfMessagesVisible",
        "ApproximateNumberOfMessagesNotVisible",
    },
    ("AWS/ApiGateway", "ApiId"): {"Count", "4xx", "5xx", "Latency"},
}
MORE = {"EventsPrefix": "events/", "StoredSettings": "true", "BrokerSecret": "bell"}
OF_KIND = {
    "FunctionName": ("AWS::Lambda::Function", ""),
    "QueueName": ("AWS::SQS::Queue", ".QueueName"),
    "ApiId": ("AWS::ApiGatewayV2::Api", ""),
}


def emitted(stack: Stack, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> set[Metric]:
    """Every metric that NotifyFunction's code can print with the variables that the stack gives it."""
    environment = stack.environment("NotifyFunction")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    settings = load({name: value for name, value in environment.items() if name != "SECRET_ID"}).settings
    telemetry = EmfTelemetry()
    telemetry.enabled(enabled=True)
    telemetry.connection(connected=True)
    telemetry.reconnect_attempt()
    cameras = (LABEL,) if settings.events_prefix else ()
    for topic in (*Routes.of(settings).topics, *cameras):
        for success in (True, False):
            telemetry.published(topic, success=success, no_subscribers=True, duration_seconds=0.1)
    capsys.readouterr()
    telemetry.flush()
    documents = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    return {
        (directive["Namespace"], metric["Name"], frozenset((name, str(document[name])) for name in names))
        for document in documents
        for directive in document["_aws"]["CloudWatchMetrics"]
        for names in directive["Dimensions"]
        for metric in directive["Metrics"]
    }


def check(metric: Metric, stack: Stack, own: set[Metric]) -> None:
    """Assert that somebody writes this metric: our code, or AWS for one of the stack's resources."""
    namespace, name, dimensions = metric
    if not namespace.startswith("AWS/"):
        assert metric in own
        return
    ((dimension, value),) = dimensions
    assert name in OF_AWS[namespace, dimension]
    kind, attribute = OF_KIND[dimension]
    assert value.endswith(attribute)
    assert value.removesuffix(attribute) in stack.of(kind)


def alarms(stack: Stack) -> dict[str, dict[str, Any]]:
    """The stack's alarms by name."""
    return stack.of("AWS::CloudWatch::Alarm")


def of_alarm(alarm: dict[str, Any]) -> Metric:
    """What an alarm watches."""
    dimensions = frozenset((one["Name"], one["Value"]) for one in alarm["Dimensions"])
    return alarm["Namespace"], alarm["MetricName"], dimensions


def test_each_alarm_watches_a_metric_that_is_written(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By namespace, name and dimensions, as our code prints them or as AWS documents them."""
    stack = Stack(MqttUrl="mqtt://broker.example", TopicPrefix="plant/a", **MORE)
    own = emitted(stack, monkeypatch, capsys)
    for alarm in alarms(stack).values():
        check(of_alarm(alarm), stack, own)


@pytest.mark.parametrize("more", [{}, MORE], ids=["as is", "everything"])
def test_each_widget_shows_metrics_that_are_written(
    more: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The dashboard is JSON, shows every alarm and function, and has no line without values."""
    stack = Stack(MqttUrl="mqtt://broker.example", TopicPrefix="plant/a", **more)
    own = emitted(stack, monkeypatch, capsys)
    (dashboard,) = stack.of("AWS::CloudWatch::Dashboard").values()
    widgets = json.loads(dashboard["DashboardBody"])["widgets"]
    (status,) = (one["properties"] for one in widgets if one["type"] == "alarm")
    assert sorted(status["alarms"]) == sorted(f"{name}.Arn" for name in alarms(stack))
    places = [(widget["x"], widget["y"]) for widget in widgets]
    assert len(set(places)) == len(places)
    other = Stack(MqttUrl="mqtt://broker.example", DeviceTopics="only", **more)
    assert "devices/+/updates" in next(iter(other.of("AWS::CloudWatch::Dashboard").values()))["DashboardBody"]
    assert ("camera/+/event" in dashboard["DashboardBody"]) == bool(more)
    assert ('"IntegrationFunction"' in dashboard["DashboardBody"]) == bool(more)
    for widget in widgets:
        assert widget["x"] + widget["width"] <= 24
        for line in widget["properties"].get("metrics", ()):
            namespace, name, *rest = [part for part in line if isinstance(part, str)]
            check((namespace, name, frozenset(zip(rest[::2], rest[1::2], strict=True))), stack, own)


def test_stacks_of_one_account_do_not_share_metrics(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stack's name is a dimension of each: a development broker that is away must not ring for production."""
    for _, _, dimensions in emitted(Stack(), monkeypatch, capsys):
        assert ("service", STACK) in dimensions


def test_what_can_go_wrong_has_an_alarm() -> None:
    """Dead letters, failed invocations, age, errors and throttles of each function, the API's errors, the broker."""
    always = {
        ("ApproximateNumberOfMessagesVisible", "DeadLetterQueue.QueueName"),
        ("ApproximateNumberOfMessagesVisible", "FailedInvocations.QueueName"),
        ("ApproximateAgeOfOldestMessage", "EventQueue.QueueName"),
        ("Errors", "NotifyFunction"),
        ("Errors", "DownloadFunction"),
        ("Throttles", "NotifyFunction"),
        ("Throttles", "DownloadFunction"),
        ("5xx", "DownloadApi"),
        ("mqtt_connection_state", STACK),
        ("mqtt_publish_errors_total", STACK),
    }
    more = {("Errors", "IntegrationFunction"), ("Throttles", "IntegrationFunction")}
    for stack, wanted in ((Stack(), always), (Stack(**MORE), always | more)):
        watched = {of_alarm(one)[1:]: one for one in alarms(stack).values()}
        assert {(name, *sorted(value for _, value in dimensions)) for name, dimensions in watched} == wanted


def test_an_alarm_rings_for_trouble_and_not_for_silence() -> None:
    """Where no metric is written there is nothing to do, except that dead letters stay until they are fetched."""
    for name, alarm in alarms(Stack(**MORE)).items():
        lasting = name in {"DeadLettersAlarm", "FailedInvocationsAlarm"}
        assert alarm["TreatMissingData"] == ("ignore" if lasting else "notBreaching")
        assert alarm["DatapointsToAlarm"] <= alarm["EvaluationPeriods"]
        if lasting:
            assert (alarm["Statistic"], alarm["EvaluationPeriods"]) == ("Maximum", 1)
        if alarm["MetricName"] != "mqtt_connection_state":
            assert (alarm["ComparisonOperator"], alarm["Threshold"]) in {
                ("GreaterThanThreshold", 0),
                ("GreaterThanThreshold", 300),  # seconds of age
            }


def test_a_broker_that_is_away_for_five_minutes_rings() -> None:
    """The link is 0 for every copy of the function, at most of the tries that the queue makes in that time."""
    alarm = Stack()["MqttDisconnectedAlarm"]
    assert (alarm["Statistic"], alarm["ComparisonOperator"], alarm["Threshold"]) == ("Maximum", "LessThanThreshold", 1)
    assert alarm["Period"] * alarm["EvaluationPeriods"] == 300
    tries = 300 // QUEUE_VISIBILITY_SECONDS
    assert alarm["DatapointsToAlarm"] < tries  # each may slip into the next minute


@pytest.mark.parametrize(
    ("parameters", "receiver"),
    [
        ({}, []),
        ({"AlarmEmail": "ops@fleet.example"}, ["AlarmTopic"]),
        ({"AlarmTopicArn": "arn:aws:sns:eu-central-1:123456789012:ops"}, ["arn:aws:sns:eu-central-1:123456789012:ops"]),
    ],
    ids=["nobody", "e-mail", "topic"],
)
def test_alarms_are_told_to_whom_a_parameter_names(parameters: dict[str, str], receiver: list[str]) -> None:
    """To an address, or to a topic that exists; to nobody otherwise, and then no topic is made."""
    stack = Stack(**parameters)
    for alarm in alarms(stack).values():
        assert alarm["AlarmActions"] == alarm["OKActions"] == receiver
        assert alarm["AlarmDescription"]
    topics = stack.of("AWS::SNS::Topic")
    assert list(topics) == [name for name in receiver if not name.startswith("arn:")]
    for topic in topics.values():
        assert topic["Subscription"] == [{"Protocol": "email", "Endpoint": "ops@fleet.example"}]


def test_logs_are_kept_for_a_while() -> None:
    """Each function and the API write to a group of the stack's own, which forgets and goes with the stack."""
    stack = Stack(LogRetentionDays="7", **MORE)
    groups = stack.of("AWS::Logs::LogGroup")
    (stage,) = stack.of("AWS::ApiGatewayV2::Stage").values()
    used = {one["LoggingConfig"]["LogGroup"] for one in stack.of("AWS::Lambda::Function").values()}
    used.add(stage["AccessLogSettings"]["DestinationArn"].removesuffix(".Arn"))
    assert used == groups.keys() == {"NotifyLogs", "DownloadLogs", "IntegrationLogs", "ApiLogs"}
    for name, group in groups.items():
        assert group["RetentionInDays"] == "7"
        assert STACK in group["LogGroupName"]
        assert stack.resources[name]["DeletionPolicy"] == stack.resources[name]["UpdateReplacePolicy"] == "Delete"


def test_the_access_log_is_json_without_secrets() -> None:
    """Fixed fields; no header, no query, no body: tokens and signatures may be in those."""
    (stage,) = Stack().of("AWS::ApiGatewayV2::Stage").values()
    line = stage["AccessLogSettings"]["Format"]
    assert "\n" not in line
    fields = json.loads(line)
    assert {"requestId", "time", "ip", "method", "path", "status", "latencyMs"} <= fields.keys()
    assert set(fields.values()) == {
        "$context.requestId",
        "$context.requestTimeEpoch",
        "$context.identity.sourceIp",
        "$context.httpMethod",
        "$context.path",
        "$context.routeKey",
        "$context.status",
        "$context.responseLength",
        "$context.responseLatency",
        "$context.integration.status",
        "$context.error.responseType",
    }


def test_tracing_is_off_unless_asked_for() -> None:
    """Then Lambda sends its own segments, and both roles may; the code imports no X-Ray SDK."""
    for stack, mode in ((Stack(), "PassThrough"), (Stack(Tracing="true"), "Active"), (Stack(**EVERYTHING), "Active")):
        for function in stack.of("AWS::Lambda::Function").values():
            assert function["TracingConfig"] == {"Mode": mode}
        for role in stack.of("AWS::IAM::Role"):
            traces = {action for action, _ in stack.permissions(role) if action.startswith("xray:")}
            assert bool(traces) == (mode == "Active")
    assert not [package for package in packages_distributions() if package.startswith("aws_xray")]
