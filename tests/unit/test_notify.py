"""What a Lambda event asks for, and what its source is told; no broker in sight."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from functions.events.plan import Settled, plan, plan_body, settle, sqs_answer, to_publish
from functions.events.routes import Routes, Skip, Upload
from functions.events_log import log
from functions.mqtt.outcome import Outcome, Status
from functions.notifier import Notifier, PublishFailed, direct_answer
from functions.settings import load
from functions.telemetry import SERVICE, logger

EVENTS = Path(__file__).parent.parent / "events"
FIXTURES = sorted(EVENTS.glob("*.json"))
DELIVERED = Outcome(Status.DELIVERED)
REFUSED = Outcome(Status.REFUSED, "the broker answered 0x87", 0x87)
LOST = Outcome(Status.UNCONFIRMED, "connection lost")


class _Lines(logging.Handler):
    """Keeps each log line as the JSON object that Lambda would print."""

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.lines: list[dict[str, Any]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(logger.registered_formatter.format(record)))


@pytest.fixture
def lines() -> Iterator[list[dict[str, Any]]]:
    """The log at its most talkative."""
    handler, plain = _Lines(), logging.getLogger(SERVICE)
    level = plain.level
    plain.addHandler(handler)
    plain.setLevel(logging.DEBUG)
    yield handler.lines
    plain.removeHandler(handler)
    plain.setLevel(level)


def _record(key: str, name: str = "ObjectCreated:Put") -> dict[str, Any]:
    return {
        "eventSource": "aws:s3",
        "eventName": name,
        "eventTime": "2026-11-20T00:00:00.000Z",
        "s3": {"bucket": {"name": "devices"}, "object": {"key": key, "eTag": "e", "size": 1, "sequencer": "01"}},
    }


def _batch(*bodies: object) -> dict[str, Any]:
    return {
        "Records": [
            {"messageId": f"m{n}", "eventSource": "aws:sqs", "body": b if isinstance(b, str) else json.dumps(b)}
            for n, b in enumerate(bodies, 1)
        ]
    }


def _settled(event: object, *outcomes: Outcome) -> list[Settled]:
    return settle(plan(event, Routes()), outcomes)


def _failed(*settled: Settled) -> list[str]:
    return [item["itemIdentifier"] for item in sqs_answer(settled)["batchItemFailures"]]


GOOD = {"Records": [_record("configs/aa-bb-cc-dd-ee-ff.json")]}
ASSET = {"Records": [_record("assets/fw.bin")]}
REMOVED = {"Records": [_record("configs/aa-bb-cc-dd-ee-ff.json", "ObjectRemoved:Delete")]}


@pytest.mark.parametrize("file", FIXTURES, ids=lambda file: file.stem)
def test_every_senders_document_gets_one_step_per_record_and_the_same_answer_however_it_comes(file: Path) -> None:
    """Direct, as a webhook's body or in SQS: the same notifications, each telling its record's own filename."""
    document = json.loads(file.read_text())
    steps = plan(document, Routes())
    assert steps
    assert [step.action for step in plan_body(file.read_bytes(), Routes())] == [step.action for step in steps]
    if not file.stem.startswith("sqs-"):
        wrapped = plan(_batch(document), Routes())
        assert [step.action for step in wrapped] == [step.action for step in steps]
        assert {step.message_id for step in wrapped} == {"m1"}
    for step in steps:
        if isinstance(step.action, Upload):
            assert json.loads(step.action.message.payload) == {"filename": step.action.filename}
    if "delete" in file.stem or "lifecycle" in file.stem or "tagging" in file.stem:
        assert to_publish(steps) == []


def test_only_what_may_still_succeed_or_needs_a_person_stays_in_the_queue() -> None:
    """Malformed and refused end in the dead-letter queue, the lost is tried again, the rest is acknowledged."""
    event = _batch(GOOD, "not json", REMOVED, ASSET, {"Records": [_record("configs/lamp.json")]}, GOOD)
    assert _failed(*_settled(event, DELIVERED, REFUSED, LOST)) == ["m2", "m4", "m6"]


def test_a_message_of_several_records_fails_once() -> None:
    """One failed record keeps its whole message, and names it once."""
    both = {"Records": [*GOOD["Records"], *ASSET["Records"]]}
    assert _failed(*_settled(_batch(both), LOST, LOST)) == ["m1"]
    assert _failed(*_settled(_batch(both), DELIVERED, REFUSED)) == ["m1"]
    assert _failed(*_settled(_batch(both), DELIVERED, DELIVERED)) == []


MAX_SQS_BYTES = 256 * 1024


def test_a_body_as_large_as_sqs_takes_is_read_in_a_moment() -> None:
    """Of a key longer than S3 knows, of a thousand records, or of nothing that is one."""
    deep = {"Records": [_record("assets/" + "k" * (MAX_SQS_BYTES - 1000))]}
    many = {"Records": [_record(f"assets/{n}") for n in range(1000)]}
    noise = ("[" * MAX_SQS_BYTES, '{"Records":[' + "{}," * (MAX_SQS_BYTES // 3 - 10) + "{}]}", "9" * MAX_SQS_BYTES)
    assert all(len(json.dumps(body)) <= MAX_SQS_BYTES for body in (deep, many))
    begun_at = time.thread_time()
    steps = plan(_batch(deep, many, *noise), Routes())
    assert time.thread_time() - begun_at < 3, "of the processor's own time: a fraction of it, unless it is quadratic"
    assert len(to_publish(steps)) == 1000
    assert {step.message_id for step in steps} == {"m1", "m2", "m3", "m4", "m5"}
    skipped = settle(steps, [DELIVERED] * 1000)
    assert _failed(*skipped) == ["m1", "m3", "m4", "m5"]


@pytest.mark.parametrize(
    ("record", "failed"),
    [
        (7, True),
        (None, True),
        ("text", True),
        ({}, True),
        ({"eventName": "ObjectCreated:Put"}, True),
        ({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": 7}, True),
        ({"eventSource": "aws:s3", "eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "b"}}}, True),
        ({**_record("x"), "s3": {"bucket": {"name": "b"}, "object": {"key": 7}}}, True),
        ({**_record("x"), "s3": {"bucket": {"name": "b"}, "object": {"key": ""}}}, True),
        (_record("configs/aa-bb-cc-dd-ee.json"), False),
        (_record("configs/"), False),
        (_record("assets/%"), None),
        (_record("assets/%ff"), True),
        (_record("assets/a/../b"), False),
    ],
)
def test_one_bad_record_harms_nobody_else(record: object, failed: bool | None) -> None:  # noqa: FBT001 - of a table
    """What S3 never writes is kept for a person; a key that is no name is skipped; the good one rings in any case."""
    settled = _settled(_batch({"Records": [record]}, GOOD), *[DELIVERED] * (2 if failed is None else 1))
    assert _failed(*settled) == (["m1"] if failed else [])
    assert [one.label for one in settled if one.step.message_id == "m2"] == ["delivered"]


@pytest.mark.parametrize("event", [{"Records": []}, {}, [], None, 7, "text", {"Records": None}, {"Records": {"a": 1}}])
def test_an_event_of_no_shape_is_summed_up_and_not_raised(event: object) -> None:
    """Another try would find the same."""
    answer = direct_answer(_settled(event))
    assert answer["published"] == 0
    assert answer["failed"] == (0 if event == {"Records": []} else 1)


def test_a_message_without_an_id_is_not_lost() -> None:
    """SQS always gives one; were there none, an empty name makes Lambda keep the whole batch."""
    assert _failed(*_settled({"Records": [{"eventSource": "aws:sqs", "body": "not json"}]})) == [""]


@pytest.mark.parametrize("body", [None, "", "  ", 7])
def test_a_message_without_a_usable_body_is_kept_for_a_person(body: object) -> None:
    """It is malformed, not ignored."""
    event = {"Records": [{"messageId": "m1", "eventSource": "aws:sqs", "body": body}]}
    assert _failed(*_settled(event)) == ["m1"]


def test_a_direct_invocation_is_summed_up() -> None:
    """Published, skipped and failed are counted; the failed are named with their reasons."""
    records = [*GOOD["Records"], *REMOVED["Records"], *ASSET["Records"], {"eventName": "ObjectCreated:Put"}]
    answer = direct_answer(_settled({"Records": records}, DELIVERED, REFUSED))
    assert (answer["published"], answer["skipped"], answer["failed"]) == (1, 1, 2)
    assert answer["failures"][0] == {"outcome": "refused", "reason": "the broker answered 0x87"}
    assert answer["failures"][1]["outcome"] == "malformed"


def test_a_direct_invocation_that_another_try_may_cure_is_raised() -> None:
    """So that Lambda tries again."""
    records = {"Records": [*GOOD["Records"], *ASSET["Records"]]}
    with pytest.raises(PublishFailed, match=r"1 of 2 records were not published: connection lost"):
        direct_answer(_settled(records, DELIVERED, LOST))


def test_a_publish_failure_is_logged_with_topic_filename_and_reason(lines: list[dict[str, Any]]) -> None:
    """As one line at ERROR, with the broker's reason code where it gave one."""
    (settled,) = _settled(GOOD, REFUSED)
    log(settled)
    (line,) = lines
    assert line["level"] == "ERROR"
    assert line["message"] == "publish failed"
    assert line["notification"]["topic"] == "iotsupport/updates/configs"
    assert line["notification"]["filename"] == "aa-bb-cc-dd-ee-ff.json"
    assert (line["reason"], line["reason_code"], line["outcome"]) == ("the broker answered 0x87", 0x87, "refused")


@pytest.mark.parametrize(
    ("event", "outcomes", "level"),
    [
        (GOOD, [DELIVERED], "DEBUG"),
        (GOOD, [LOST], "ERROR"),
        (REMOVED, [], "DEBUG"),
        ({"Records": [_record("configs/lamp.json")]}, [], "WARNING"),
        ({"Records": [_record("elsewhere")]}, [], "DEBUG"),
        ({"a": "b"}, [], "ERROR"),
    ],
)
def test_the_log_shouts_only_where_somebody_must_act(
    lines: list[dict[str, Any]], event: object, outcomes: list[Outcome], level: str
) -> None:
    """A removal is nobody's fault, a wrongly named config is a warning, a lost or malformed event an error."""
    for one in _settled(event, *outcomes):
        log(one)
    assert [line["level"] for line in lines] == [level]


def test_a_malformed_event_is_logged_with_a_bounded_excerpt(lines: list[dict[str, Any]]) -> None:
    """However long it is."""
    for one in _settled(_batch("x" * 100_000)):
        log(one)
    assert 0 < len(lines[0]["excerpt"]) <= 200


@pytest.mark.parametrize("environ", [{}, {"MQTT_URL": ""}, {"MQTT_URL": "  "}], ids=["unset", "empty", "blank"])
@pytest.mark.parametrize(
    ("event", "answer"),
    [
        (_batch(GOOD, "not json"), {"batchItemFailures": []}),
        (GOOD, {"published": 0, "skipped": 0, "failed": 0}),
        ({"Records": []}, {"published": 0, "skipped": 0, "failed": 0}),
    ],
    ids=["sqs", "direct", "empty"],
)
def test_without_mqtt_url_every_invocation_succeeds_in_silence(
    environ: dict[str, str],
    event: object,
    answer: dict[str, Any],
    lines: list[dict[str, Any]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    """No log line, no failure, and no metric but `mqtt_enabled` 0."""
    notifier = Notifier(load(environ).settings)
    assert notifier.handle(event, 10.0) == answer
    notifier.close()
    assert lines == []
    (document,) = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert document["mqtt_enabled"] == 0
    assert [metric["Name"] for metric in document["_aws"]["CloudWatchMetrics"][0]["Metrics"]] == ["mqtt_enabled"]


def test_a_notification_without_an_outcome_is_a_mistake_that_is_noticed() -> None:
    """Rather than an event that silently counts as done."""
    (step,) = plan(GOOD, Routes())
    assert isinstance(step.action, Upload)
    with pytest.raises((ValueError, StopIteration, RuntimeError)):
        settle([step], [])


def test_no_event_is_named_by_a_wrong_filename() -> None:
    """Traversal, control characters and foreign names are skipped."""
    for key in ("assets/../x", "assets//x", "assets/a%00b", "assets/a%0Ab", "configs/../assets/x", "assets/%ED%A0%80"):
        (step,) = plan({"Records": [_record(key)]}, Routes())
        assert isinstance(step.action, Skip)
