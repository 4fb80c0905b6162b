"""What an event asks for, and what became of it. Lambda and every host meet here."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from functions.events.envelopes import Ignored, Malformed, Record, parse, parse_body, sqs_messages
from functions.events.routes import Detection, Routes, Skip, Unread, Upload

if TYPE_CHECKING:
    from collections.abc import Sequence

    from functions.mqtt.message import Message
    from functions.mqtt.outcome import Outcome


class Step(NamedTuple):
    """One record of an event, and what is to be done about it: publish, or nothing for a reason."""

    record: Record
    action: Upload | Detection | Skip
    message_id: str = ""
    """The SQS message that the record came in."""


class Settled(NamedTuple):
    """A step after publishing. `label` is its `outcome` in `events_total`."""

    step: Step
    label: str
    reason: str = ""
    reason_code: int | None = None
    retriable: bool = False
    """Another delivery of the same event may succeed."""
    hopeless: bool = False
    """No delivery of this event will ever succeed, and nobody meant it to be ignored."""


def plan(event: object, routes: Routes) -> tuple[Step, ...]:
    """Tell what each record of a Lambda event (an SQS batch, or S3's own) asks for. Never raises."""
    messages = sqs_messages(event)
    if messages is None:
        return _steps(parse(event), routes)
    return tuple(step for m in messages for step in _steps(parse_body(m.body), routes, m.message_id))


def plan_body(body: bytes, routes: Routes) -> tuple[Step, ...]:
    """Tell what each record of a webhook's body asks for. Never raises."""
    return _steps(parse_body(body), routes)


def _steps(records: list[Record], routes: Routes, message_id: str = "") -> tuple[Step, ...]:
    return tuple(Step(record, _action(record, routes), message_id) for record in records)


def _action(record: Record, routes: Routes) -> Upload | Detection | Skip:
    if isinstance(record, Malformed):
        return Skip("malformed")
    return Skip(record.reason) if isinstance(record, Ignored) else routes.route(record)


def to_publish(steps: Sequence[Step]) -> list[Message]:
    """Return the messages of `steps`, in order."""
    return [step.action.message for step in steps if isinstance(step.action, Upload)]


def settle(steps: Sequence[Step], outcomes: Sequence[Outcome | Unread]) -> list[Settled]:
    """Join each step with its outcome; `outcomes` are those of the steps that are not skipped, in order."""
    remaining = iter(outcomes)
    return [settle_one(step, None if isinstance(step.action, Skip) else next(remaining)) for step in steps]


def settle_one(step: Step, outcome: Outcome | Unread | None) -> Settled:
    """Join a step with its outcome, None for a skipped one."""
    if isinstance(step.action, Skip):
        label = step.action.reason
        if isinstance(step.record, Malformed):
            return Settled(step, label, step.record.reason, hopeless=True)
        return Settled(step, label, label)
    if outcome is None:
        raise ValueError("what is not skipped needs an outcome")
    if isinstance(outcome, Unread):
        retriable = outcome.retriable
        hopeless = not outcome.success and not retriable
        return Settled(step, outcome.label, outcome.reason, retriable=retriable, hopeless=hopeless)
    return Settled(
        step,
        outcome.status.value,
        outcome.reason,
        outcome.reason_code,
        retriable=outcome.retriable,
        hopeless=not outcome.success and not outcome.retriable,
    )


def sqs_answer(settled: Sequence[Settled]) -> dict[str, Any]:
    """Name the messages that SQS shall keep: for another try, or for a person in the dead-letter queue.

    Source: AWS Lambda, "Implementing partial batch responses".
    """
    failed = dict.fromkeys(one.step.message_id for one in settled if one.retriable or one.hopeless)
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}
