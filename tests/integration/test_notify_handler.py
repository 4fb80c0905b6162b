"""The Lambda handler: events as their senders write them in, messages on a real Mosquitto out."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from functions.events.plan import plan, to_publish
from functions.events.routes import Routes
from functions.notifier import ANSWER_MARGIN_SECONDS, Notifier, PublishFailed
from functions.settings import load
from functions.telemetry import SERVICE, logger
from infra.local.mosquitto import Mosquitto
from infra.local.process import free_port
from infra.subscriber import Subscriber
from tests.fakes.broker import Behaviour, FakeBroker
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

ROOT = Path(__file__).parent.parent.parent
EVENTS = ROOT / "tests" / "events"
CONFIG = "configs/aa-bb-cc-dd-ee-ff.json"
PLENTY_SECONDS = 30.0
SILENCE_SECONDS = 0.3
SECRET = "correct-horse-battery"


class _Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(logger.registered_formatter.format(record)))


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The log as Lambda would print it."""
    handler = _Lines()
    logging.getLogger(SERVICE).addHandler(handler)
    yield handler.lines
    logging.getLogger(SERVICE).removeHandler(handler)


def _notifier(url: str, **environ: str) -> Notifier:
    return Notifier(load({"MQTT_URL": url, **environ}).settings)


def _record(key: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    s3 = {"bucket": {"name": "devices"}, "object": {"key": key, "eTag": "e", "size": 1, "sequencer": "01"}}
    return {"eventSource": "aws:s3", "eventName": name, "eventTime": "2026-11-20T00:00:00.000Z", "s3": s3}


def _s3(*keys: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {"Records": [_record(key, name) for key in keys]}


def _batch(*bodies: object) -> dict[str, Any]:
    return {
        "Records": [
            {"messageId": f"m{n}", "eventSource": "aws:sqs", "body": b if isinstance(b, str) else json.dumps(b)}
            for n, b in enumerate(bodies, 1)
        ]
    }


def _failures(*ids: str) -> dict[str, Any]:
    return {"batchItemFailures": [{"itemIdentifier": one} for one in ids]}


def _metrics(out: str) -> dict[tuple[str, ...], float]:
    """Read the printed EMF documents as name and dimension values → sum."""
    sums: dict[tuple[str, ...], float] = {}
    for line in out.splitlines():
        document = json.loads(line)
        for directive in document["_aws"]["CloudWatchMetrics"]:
            values = [document[name] for name in directive["Dimensions"][0] if name != "service"]
            for metric in directive["Metrics"]:
                name, value = (metric["Name"], *values), document[metric["Name"]]
                sums[name] = sums.get(name, 0) + (sum(value) if isinstance(value, list) else value)
    return sums


@pytest.mark.parametrize("file", sorted(EVENTS.glob("*.json")), ids=lambda file: file.stem)
@pytest.mark.parametrize("in_sqs", [False, True], ids=["direct", "sqs"])
def test_every_senders_document_rings_for_what_it_announces_and_for_nothing_else(
    shared: tuple[Notifier, Subscriber], file: Path, *, in_sqs: bool
) -> None:
    """Direct and in SQS; removals, tags and tests are silent."""
    notifier, subscriber = shared
    document = json.loads(file.read_text())
    wanted = {one.payload for one in to_publish(plan(document, Routes()))}
    answer = notifier.handle(_batch(document) if in_sqs else document, PLENTY_SECONDS)
    if in_sqs or file.stem.startswith("sqs-"):
        assert answer == _failures() or (file.stem, answer) == ("cloudevents-binary-body", _failures("m1"))
    else:
        assert answer["failed"] == 0
        assert bool(answer["published"]) is bool(wanted)
    # One more message behind them shows that nothing else came, without waiting for a silence.
    notifier.handle(_s3("assets/the-end"), PLENTY_SECONDS)
    messages = subscriber.wait_for(len(wanted) + 1)
    assert {message.payload for message in messages[:-1]} == wanted
    assert messages[-1].payload == b'{"filename": "the-end"}'


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, mosquitto_binary: Path) -> Iterator[tuple[Notifier, Subscriber]]:
    """One warm notifier on one Mosquitto, with a subscriber to everything."""
    del mosquitto_binary
    with Mosquitto(tmp_path_factory.mktemp("notify")) as broker, Subscriber(broker.url, ["#"]) as subscriber:
        notifier = _notifier(broker.url)
        yield notifier, subscriber
        notifier.close()
        assert broker.log_text().count("as bucketbell-") == 1, "one connection for all invocations"


def test_a_batch_fails_only_where_it_failed(
    tmp_path: Path,
    mosquitto_binary: Path,
    lines: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A malformed and a refused message stay in the queue; their neighbours ring and are done, each counted once."""
    del mosquitto_binary
    acl = "topic readwrite iotsupport/updates/configs\ntopic read #"
    with Mosquitto(tmp_path, acl=acl) as mosquitto, Subscriber(mosquitto.url, ["#"]) as subscriber:
        notifier = _notifier(mosquitto.url)
        event = _batch(_s3(CONFIG), "{", _s3("assets/fw.bin"), _s3(CONFIG, name="ObjectRemoved:Delete"))
        assert notifier.handle(event, PLENTY_SECONDS) == _failures("m2", "m3")
        assert subscriber.next().payload == b'{"filename": "aa-bb-cc-dd-ee-ff.json"}'
        assert subscriber.silence(SILENCE_SECONDS) == []
        notifier.close()
    metrics = _metrics(capsys.readouterr().out)
    for topic in Routes().topics:
        assert 0 < metrics.pop(("mqtt_publish_duration_seconds", topic)) < PLENTY_SECONDS
    assert metrics == {
        ("mqtt_enabled",): 1,
        ("mqtt_connection_state",): 1,
        ("mqtt_connection_status",): 1,
        ("mqtt_publish_total", "iotsupport/updates/configs", "success"): 1,
        ("mqtt_publish_total", "iotsupport/updates/assets", "failure"): 1,
        ("mqtt_messages_published_total",): 1,
        ("mqtt_publish_errors_total",): 1,
        ("events_total", "sqs", "delivered"): 1,
        ("events_total", "sqs", "malformed"): 1,
        ("events_total", "sqs", "refused"): 1,
        ("events_total", "sqs", "removed"): 1,
    }
    malformed, refused = sorted(lines, key=lambda line: line["message"])
    assert (malformed["message"], malformed["level"]) == ("malformed event", "ERROR")
    assert (refused["message"], refused["reason_code"]) == ("publish failed", 0x87)
    assert refused["reason"] == "the broker answered 0x87"
    assert refused["notification"]["topic"] == "iotsupport/updates/assets"
    assert refused["notification"]["filename"] == "fw.bin"


def test_with_the_broker_down_every_message_stays_and_a_direct_invocation_is_raised(
    lines: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """After counting and logging each; what asks for nothing is done all the same."""
    notifier = _notifier(f"mqtt://127.0.0.1:{free_port()}")
    event = _batch(_s3(CONFIG), _s3("assets/a"), _s3(CONFIG, name="ObjectRemoved:Delete"))
    assert notifier.handle(event, PLENTY_SECONDS) == _failures("m1", "m2")
    metrics = _metrics(capsys.readouterr().out)
    assert metrics["mqtt_enabled",] == metrics["mqtt_connection_state",] == 0
    assert metrics["mqtt_publish_errors_total",] == metrics["events_total", "sqs", "unconfirmed"] == 2
    assert not any("success" in name for name in metrics)
    assert [line["notification"]["filename"] for line in lines] == ["aa-bb-cc-dd-ee-ff.json", "a"]
    assert all("Connection refused" in line["reason"] for line in lines)
    with pytest.raises(PublishFailed, match=r"1 of 2 records were not published: .*Connection refused"):
        notifier.handle({"Records": [_record(CONFIG), _record(CONFIG, "ObjectRemoved:Delete")]}, PLENTY_SECONDS)
    assert len(lines) == 3
    assert _metrics(capsys.readouterr().out)["events_total", "direct", "unconfirmed"] == 1
    notifier.close()


@pytest.mark.parametrize(
    "event",
    [{"Records": []}, {}, [], None, 7, "text", _s3(CONFIG, name="ObjectRemoved:Delete"), {"Event": "s3:TestEvent"}],
)
def test_what_announces_nothing_connects_nowhere_and_succeeds(event: object) -> None:
    """Whatever it is."""
    notifier = _notifier(f"mqtt://127.0.0.1:{free_port()}")
    answer = notifier.handle(event, PLENTY_SECONDS)
    assert answer["published"] == 0
    assert not notifier.publisher.enabled


def test_the_invocations_time_is_respected() -> None:
    """With a broker that never acknowledges, the answer comes before the time is over that is left."""
    with FakeBroker(script=[Behaviour(acknowledge=False)]) as fake:
        notifier = _notifier(fake.url, MQTT_PUBLISH_TIMEOUT_SECONDS="10")
        begun_at = time.monotonic()
        # Of its 10 s it would wait for all, were it not told of less.
        assert notifier.handle(_batch(_s3(CONFIG)), 1.0) == _failures("m1")
        assert 0.4 < time.monotonic() - begun_at < 1.0 - ANSWER_MARGIN_SECONDS + SLACK_SECONDS
        begun_at = time.monotonic()
        assert notifier.handle(_batch(_s3(CONFIG)), 0.1) == _failures("m1")
        assert time.monotonic() - begun_at < SLACK_SECONDS
        begun_at = time.monotonic()
        impatient = _notifier(fake.url, MQTT_PUBLISH_TIMEOUT_SECONDS="0.2")
        assert impatient.handle(_batch(_s3(CONFIG)), PLENTY_SECONDS) == _failures("m1")
        assert time.monotonic() - begun_at < 0.2 + SLACK_SECONDS
        notifier.close()


def test_shutdown_is_logged_not_raised(lines: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch) -> None:
    """The process is ending anyway."""
    notifier = _notifier(f"mqtt://127.0.0.1:{free_port()}")

    def fail() -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(notifier.publisher, "close", fail)
    notifier.close()
    assert [line["message"] for line in lines] == ["shutdown"]


# The module as Lambda imports it.

PROGRAM = """
import json, sys, threading, time
from functions import notifier, notify

class Context:
    def get_remaining_time_in_millis(self):
        return 30000

print(json.dumps({"imported": threading.active_count()}), flush=True)
for line in sys.stdin:
    try:
        answer = notify.handler(json.loads(line), Context())
    except notifier.PublishFailed as error:
        answer = str(error)
    print(json.dumps({"answer": answer}), flush=True)
"""


@dataclass
class _Lambda:
    """The handler in a process of its own; `said` is all that it printed, on both streams."""

    child: subprocess.Popen[str]
    said: str = ""

    def hear(self, key: str) -> Any:  # noqa: ANN401 - JSON
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self.said += line
            if key in (document := json.loads(line)):
                return document[key]
        raise AssertionError(f"it ended: {self.said}")

    def invoke(self, event: object) -> Any:  # noqa: ANN401 - JSON
        print(json.dumps(event), file=self.child.stdin, flush=True)
        return self.hear("answer")

    def end(self) -> int:
        assert self.child.stdin is not None
        assert self.child.stdout is not None
        self.child.stdin.close()
        self.said += self.child.stdout.read()
        return self.child.wait(PATIENCE_SECONDS)


Lambdas = Callable[..., _Lambda]


@pytest.fixture
def lambdas() -> Iterator[Lambdas]:
    """Starts the handler with an environment of its own, and ends it."""
    started: list[_Lambda] = []

    def start(**environ: str) -> _Lambda:
        child = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM],
            cwd=ROOT,
            env={"PATH": "/usr/bin", "PYTHONPATH": str(ROOT), **environ},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(_Lambda(child))
        return started[-1]

    yield start
    for one in started:
        one.child.kill()
        one.child.wait(PATIENCE_SECONDS)
        for stream in (one.child.stdin, one.child.stdout):
            if stream is not None:
                stream.close()


@pytest.mark.parametrize(
    ("environ", "connects"),
    [
        ({"AWS_LAMBDA_FUNCTION_NAME": "notify"}, 1),
        ({"AWS_LAMBDA_FUNCTION_NAME": "notify", "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand"}, 1),
        ({"AWS_LAMBDA_FUNCTION_NAME": "notify", "AWS_LAMBDA_INITIALIZATION_TYPE": "snap-start"}, 0),
        ({}, 0),
    ],
    ids=["lambda", "on demand", "snap start", "elsewhere"],
)
def test_importing_connects_on_lambda_only_and_never_into_a_snapshot(
    lambdas: Lambdas, environ: dict[str, str], connects: int
) -> None:
    """No thread either; the first call connects where the import did not; the end of the process says DISCONNECT."""
    with FakeBroker() as fake:
        function = lambdas(MQTT_URL=fake.url, **environ)
        assert function.hear("imported") == 1
        if connects:
            fake.wait_for("CONNECT")
        assert fake.connections == connects
        for number in range(2):
            assert function.invoke(_batch(_s3(f"assets/{number}"))) == _failures()
        assert fake.connects == 1
        assert function.end() == 0
        assert len(fake.wait_for("DISCONNECT")) == 1


def test_importing_on_lambda_survives_a_broker_that_is_away(lambdas: Lambdas) -> None:
    """The first invocation reports it."""
    function = lambdas(MQTT_URL=f"mqtt://127.0.0.1:{free_port()}", AWS_LAMBDA_FUNCTION_NAME="notify")
    function.hear("imported")
    assert "Connection refused" in function.invoke(_s3(CONFIG))
    assert function.end() == 0


def test_no_mqtt_url_on_lambda_is_silent(lambdas: Lambdas) -> None:
    """Nothing is printed but `mqtt_enabled` 0."""
    function = lambdas(MQTT_URL=" ", AWS_LAMBDA_FUNCTION_NAME="notify")
    function.hear("imported")
    assert function.invoke(_batch(_s3(CONFIG), "{")) == _failures()
    assert function.end() == 0
    others = [line for line in function.said.splitlines() if "imported" not in line and "answer" not in line]
    assert [json.loads(line)["mqtt_enabled"] for line in others] == [0]


def test_a_password_is_printed_nowhere(tmp_path: Path, mosquitto_binary: Path, lambdas: Lambdas) -> None:
    """Not in logs, metrics or answers, neither when it is refused nor when it is right."""
    del mosquitto_binary
    with Mosquitto(tmp_path, users={"bell": "another"}) as mosquitto:
        function = lambdas(
            MQTT_URL=mosquitto.url,
            MQTT_USERNAME="bell",
            MQTT_PASSWORD=SECRET,
            AWS_LAMBDA_FUNCTION_NAME="notify",
            LOG_LEVEL="DEBUG",
        )
        function.hear("imported")
        assert "check MQTT_USERNAME and MQTT_PASSWORD" in function.invoke(_s3(CONFIG))
        mosquitto.set_users({"bell": SECRET})
        mosquitto.reload()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while "refused" in str(function.invoke(_s3(CONFIG))):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        assert function.end() == 0
        assert SECRET not in function.said
        assert '"publish failed"' in function.said
