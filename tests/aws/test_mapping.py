"""The event source mapping of the emulated AWS, on moto's queues, with functions that answer what ours never would."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from infra.local.stores import MotoServer
from tests.aws.mapping import EventSourceMapping, Invoked, Turn, kept

MESSAGES = ("m1", "m2")
NONE: frozenset[str] = frozenset()


def failures(*ids: object) -> bytes:
    """The answer that names these messages."""
    return json.dumps({"batchItemFailures": [{"itemIdentifier": one} for one in ids]}).encode()


@pytest.mark.parametrize(
    "answer", [b"", b"null", b"{}", failures(), b'{"batchItemFailures": null}', b'{"statusCode": 500}']
)
def test_an_answer_without_failures_is_success(answer: bytes) -> None:
    """Also an empty one (AWS Lambda, "Implementing partial batch responses")."""
    assert kept(Invoked(answer), MESSAGES, partial=True) == NONE


def test_only_named_messages_stay() -> None:
    """Each once, however often it is named."""
    assert kept(Invoked(failures("m2", "m2")), MESSAGES, partial=True) == {"m2"}
    assert kept(Invoked(failures(*MESSAGES)), MESSAGES, partial=True) == set(MESSAGES)


@pytest.mark.parametrize(
    "answer",
    [
        b"not JSON",
        b"7",
        b"[]",
        b'"ok"',
        b'{"batchItemFailures": "m1"}',
        b'{"batchItemFailures": ["m1"]}',
        b'{"batchItemFailures": [{"itemIdentifer": "m1"}]}',
        failures(""),
        failures(None),
        failures(["m1"]),
        failures("m1", "m3"),
    ],
)
def test_a_malformed_answer_or_an_unknown_id_fails_the_whole_batch(answer: bytes) -> None:
    """Nothing is deleted that might not have been worked on."""
    assert kept(Invoked(answer), MESSAGES, partial=True) == set(MESSAGES)


def test_an_error_fails_the_whole_batch_whatever_was_answered() -> None:
    """With partial failures asked for or not."""
    for partial in (True, False):
        assert kept(Invoked(failures(), "raised"), MESSAGES, partial=partial) == set(MESSAGES)


def test_without_report_batch_item_failures_what_failed_is_deleted_with_the_rest() -> None:
    """The answer is not read: that is why the template asks for it."""
    assert kept(Invoked(failures("m1")), MESSAGES, partial=False) == NONE


Make = Callable[..., tuple[EventSourceMapping, list[str]]]


@pytest.fixture
def make(moto: MotoServer) -> Make:
    """Makes a mapping on a queue of its own with messages in it; their ids beside it."""
    moto.reset()
    sqs = moto.client("sqs")

    def mapping(invoke: Callable[[bytes], Invoked], messages: int, **more: Any) -> tuple[EventSourceMapping, list[str]]:  # noqa: ANN401 - JSON
        dead = sqs.create_queue(QueueName="dead")["QueueUrl"]
        arn = sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": 2})
        queue = sqs.create_queue(QueueName="q", Attributes={"VisibilityTimeout": "1", "RedrivePolicy": redrive})
        url = queue["QueueUrl"]
        ids = [sqs.send_message(QueueUrl=url, MessageBody=f"body {n}")["MessageId"] for n in range(messages)]
        configuration = {
            "EventSourceArn": "arn:aws:sqs:us-east-1:123456789012:q",
            "BatchSize": 10,
            "FunctionResponseTypes": ["ReportBatchItemFailures"],
        }
        return EventSourceMapping(sqs, queue_url=url, configuration=configuration | more, invoke=invoke), sorted(ids)

    return mapping


def test_a_function_gets_records_as_lambda_sends_them(make: Make) -> None:
    """All keys of a record; once it has succeeded, nothing is left."""
    events: list[dict[str, Any]] = []

    def invoke(event: bytes) -> Invoked:
        events.append(json.loads(event))
        return Invoked(failures())

    mapping, (message_id,) = make(invoke, 1)
    assert mapping.turn(1).kept == NONE
    (record,) = events[0]["Records"]
    assert (record["messageId"], record["body"]) == (message_id, "body 0")
    assert (record["eventSource"], record["awsRegion"]) == ("aws:sqs", "us-east-1")
    assert record["eventSourceARN"] == "arn:aws:sqs:us-east-1:123456789012:q"
    assert record["attributes"]["ApproximateReceiveCount"] == "1"
    assert record["attributes"].keys() >= {"SentTimestamp", "SenderId", "ApproximateFirstReceiveTimestamp"}
    assert len(record["md5OfBody"]) == 32
    assert record["messageAttributes"] == {}
    assert mapping.turn(2) == Turn()


def test_a_batch_is_no_larger_than_the_mapping_says(make: Make) -> None:
    """The rest comes in the next one."""
    mapping, ids = make(lambda _: Invoked(b""), 5, BatchSize=3)
    turns = [mapping.turn(1) for _ in range(3)]
    assert [len(turn.records) for turn in turns] == [3, 2, 0]
    assert sorted(turns[0].received + turns[1].received) == ids


@pytest.mark.parametrize(
    "answer", [Invoked(b"{}", "Runtime.ExitError: it ended"), Invoked(failures("nobody")), Invoked(b"Task timed out")]
)
def test_a_failed_batch_comes_back_until_the_queue_gives_it_up(make: Make, answer: Invoked) -> None:
    """All of it, after its visibility timeout; then SQS moves it to the dead-letter queue."""
    mapping, ids = make(lambda _: answer, 2)
    for _ in range(2):
        turn = mapping.turn(2)
        assert (turn.received, sorted(turn.kept)) == (ids, ids)
    assert mapping.turn(2) == Turn()


def test_a_window_is_not_emulated(make: Make) -> None:
    """It is refused rather than ignored."""
    with pytest.raises(ValueError, match="MaximumBatchingWindowInSeconds"):
        make(lambda _: Invoked(b""), 0, MaximumBatchingWindowInSeconds=1)
