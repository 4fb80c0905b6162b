"""What an event asks for, and what became of it. Lambda and every host meet here."""

from __future__ import annotations

from enum import Enum, auto
from typing import TYPE_CHECKING, Any, NamedTuple

from functions.events.envelopes import Ignored, Malformed, Record, SqsMessage, parse, parse_body, sqs_messages
from functions.events.routes import Detection, Routes, Skip, Unread, Upload

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from functions.mqtt.message import Message
    from functions.mqtt.outcome import Outcome


class Step(NamedTuple):
    """One record of an event, and what is to be done about it: publish, or nothing for a reason."""

    record: Record
    action: Upload | Detection | Skip
    message_id: str | None = None
    """The SQS message that the record came in, if it came in one."""


class Fate(Enum):
    """What became of an event, for its source."""

    PUBLISHED = auto()
    NOTHING_TO_DO = auto()
    RETRIABLE = auto()
    """Another delivery of the same event may succeed."""
    PERMANENT = auto()
    """No delivery of this event will ever succeed, and nobody meant it to be ignored."""


class Settled(NamedTuple):
    """A step after publishing. `label` is its `outcome` in `events_total`."""

    step: Step
    label: str
    reason: str = ""
    reason_code: int | None = None
    fate: Fate = Fate.NOTHING_TO_DO

    @property
    def retriable(self) -> bool:
        """See `Fate.RETRIABLE`."""
        return self.fate is Fate.RETRIABLE

    @property
    def failed(self) -> bool:
        """Whether it was to be published, and was not."""
        return self.fate is Fate.RETRIABLE or self.fate is Fate.PERMANENT


def plan(event: object, routes: Routes) -> tuple[Step, ...]:
    """Tell what each record of a Lambda event (an SQS batch, or S3's own) asks for. Never raises."""
    messages = sqs_messages(event)
    return _steps(parse(event), routes) if messages is None else plan_batch(messages, routes)


def plan_batch(messages: Iterable[SqsMessage], routes: Routes) -> tuple[Step, ...]:
    """Tell what each record of these messages asks for, at least one of each. Never raises."""
    return tuple(step for one in messages for step in _steps(parse_body(one.body), routes, one.message_id))


def plan_body(body: bytes, routes: Routes) -> tuple[Step, ...]:
    """Tell what each record of a webhook's body asks for. Never raises."""
    return _steps(parse_body(body), routes)


def _steps(records: list[Record], routes: Routes, message_id: str | None = None) -> tuple[Step, ...]:
    return tuple([Step(record, _action(record, routes), message_id) for record in records])


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
            return Settled(step, label, step.record.reason, fate=Fate.PERMANENT)
        return Settled(step, label, label)
    if outcome is None:
        raise ValueError("what is not skipped needs an outcome")
    if isinstance(outcome, Unread):
        return Settled(step, outcome.label, outcome.reason, fate=_fate(outcome, Fate.NOTHING_TO_DO))
    return Settled(step, outcome.status.value, outcome.reason, outcome.reason_code, _fate(outcome, Fate.PUBLISHED))


def _fate(outcome: Outcome | Unread, success: Fate) -> Fate:
    if outcome.success:
        return success
    return Fate.RETRIABLE if outcome.retriable else Fate.PERMANENT


def to_keep(settled: Sequence[Settled]) -> list[str]:
    """Name the messages that SQS shall keep: for another try, or for a person in the dead-letter queue."""
    return list(dict.fromkeys(one.step.message_id or "" for one in settled if one.failed))


def sqs_answer(settled: Sequence[Settled]) -> dict[str, Any]:
    """Answer a batch. Source: AWS Lambda, "Implementing partial batch responses"."""
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in to_keep(settled)]}
