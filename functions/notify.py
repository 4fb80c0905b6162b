"""Entry: the bucket's events in, MQTT notifications out; and `plan` and `settle`, which every host shares."""

from __future__ import annotations

import atexit
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from functions import collector
from functions.events import Ignored, Malformed, Record, parse, parse_body, sqs_messages
from functions.lifetime import Renewal, begin
from functions.publisher import InlinePublisher, Outcome, Status
from functions.routes import Notification, Routes, Skip
from functions.secret import DEADLINE_SECONDS as SECRET_DEADLINE_SECONDS
from functions.settings import SettingsError
from functions.telemetry import EmfTelemetry, logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from aws_lambda_powertools.utilities.typing import LambdaContext

    from functions.settings import Settings

ANSWER_MARGIN_SECONDS = 0.5  # kept of the invocation's time, to answer and to log
MAX_EXCERPT_CHARACTERS = 200
RENEW_SECONDS = 60.0  # between two looks into the secret, while the broker will not have us


class Step(NamedTuple):
    """One record of an event, and what is to be done about it: publish, or nothing for a reason."""

    record: Record
    action: Notification | Skip
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
    return tuple(
        Step(
            record,
            Skip(record.reason) if isinstance(record, (Ignored, Malformed)) else routes.route(record),
            message_id,
        )
        for record in records
    )


def to_publish(steps: Sequence[Step]) -> list[Notification]:
    """Return the notifications of `steps`, in order."""
    return [step.action for step in steps if isinstance(step.action, Notification)]


def settle(steps: Sequence[Step], outcomes: Sequence[Outcome]) -> list[Settled]:
    """Join each step with its outcome; `outcomes` are those of `to_publish(steps)`, in order."""
    remaining = iter(outcomes)
    return [settle_one(step, next(remaining) if isinstance(step.action, Notification) else None) for step in steps]


def settle_one(step: Step, outcome: Outcome | None) -> Settled:
    """Join a step with its outcome, None for a skipped one."""
    if isinstance(step.action, Skip):
        malformed = isinstance(step.record, Malformed)
        return Settled(step, "malformed" if malformed else step.action.reason, step.action.reason, hopeless=malformed)
    if outcome is None:
        raise ValueError("a notification needs an outcome")
    return Settled(
        step,
        outcome.status.value,
        outcome.reason,
        outcome.reason_code,
        retriable=outcome.retriable,
        hopeless=not outcome.success and not outcome.retriable,
    )


def log(settled: Settled) -> None:
    """Log one settled step: failures with topic, filename and reason; what is nobody's fault only at DEBUG."""
    step = settled.step
    details: dict[str, Any] = {"outcome": settled.label, "reason": settled.reason}
    if isinstance(step.action, Notification):
        # Nested, because `logging` keeps the name `filename` for itself and raises.
        details["notification"] = {
            "topic": step.action.topic,
            "filename": step.action.filename,
            "id": step.action.identity.hex(),
        }
        if settled.reason_code is not None:
            details["reason_code"] = settled.reason_code
        if settled.retriable or settled.hopeless:
            logger.error("publish failed", extra=details)
        else:
            logger.debug("published", extra=details)
    elif isinstance(step.record, Malformed):
        logger.error("malformed event", extra=details | {"excerpt": step.record.detail[:MAX_EXCERPT_CHARACTERS]})
    else:
        details |= {"bucket": step.record.bucket, "object_key": step.record.object_key}
        if step.action.is_warning:
            logger.warning("object key is not announced: its name is not valid", extra=details)
        else:
            logger.debug("skipped", extra=details)


class PublishFailed(Exception):
    """Raised to Lambda for an asynchronous invocation, so that it invokes again."""


class Notifier:
    """The handler's state: what is created once for each process and stays warm."""

    def __init__(self, settings: Settings, renewal: Renewal | None = None) -> None:
        """Nothing is connected yet. `renewal` is asked for other settings when the broker cannot be used."""
        self.telemetry = EmfTelemetry()
        self._renewal = renewal
        self._use(settings)

    def _use(self, settings: Settings) -> None:
        self._broker = settings.broker
        self._routes = Routes.of(settings)
        self.publisher = InlinePublisher(settings.broker, self.telemetry)

    def handle(self, event: object, remaining_seconds: float) -> dict[str, Any]:
        """Answer one invocation: `batchItemFailures` to SQS, a summary to a direct invocation.

        Raises `PublishFailed` for a direct invocation that another try may cure.
        """
        end = time.monotonic() + max(0.0, remaining_seconds - ANSWER_MARGIN_SECONDS)
        is_batch = sqs_messages(event) is not None
        if self._broker is None:
            self.telemetry.flush()
            return {"batchItemFailures": []} if is_batch else {"published": 0, "skipped": 0, "failed": 0}
        steps = plan(event, self._routes)
        settled = settle(steps, self._publish(to_publish(steps), end))
        for one in settled:
            self.telemetry.event("sqs" if is_batch else "direct", one.label)
        self.telemetry.flush()
        for one in settled:
            log(one)
        return sqs_answer(settled) if is_batch else direct_answer(settled)

    def _publish(self, notifications: Sequence[Notification], end: float) -> list[Outcome]:
        """Publish by `end` (`time.monotonic`); what is not confirmed once more, if there is another secret by now."""
        outcomes = self._try(notifications, end)
        again = [one for one, outcome in zip(notifications, outcomes, strict=True) if _is_unconfirmed(outcome)]
        if not again or time.monotonic() + SECRET_DEADLINE_SECONDS > end or not self._renewed():
            return outcomes
        retried = iter(self._try(again, end))
        return [next(retried, outcome) if _is_unconfirmed(outcome) else outcome for outcome in outcomes]

    def _try(self, notifications: Sequence[Notification], end: float) -> list[Outcome]:
        patience_seconds = self._broker.publish_timeout_seconds if self._broker else 0.0
        return self.publisher.publish(notifications, min(end, time.monotonic() + patience_seconds))

    def _renewed(self) -> bool:
        try:
            if self._renewal is None or not self._renewal.renew():
                return False
        except SettingsError as error:
            logger.error("settings cannot be read again", extra={"problem": str(error)})  # which holds no value
            return False
        logger.info("settings have changed")
        self.publisher.close()
        self._use(self._renewal.settings)
        return True

    def close(self) -> None:
        """Disconnect. Idempotent; a failure is logged and swallowed: the process is ending anyway."""
        try:
            self.publisher.close()
        except Exception:  # noqa: BLE001 - the process ends whatever happens here
            logger.exception("shutdown")


def _is_unconfirmed(outcome: Outcome) -> bool:
    return outcome.status is Status.UNCONFIRMED


def sqs_answer(settled: Sequence[Settled]) -> dict[str, Any]:
    """Name the messages that SQS shall keep: for another try, or for a person in the dead-letter queue.

    Source: AWS Lambda, "Implementing partial batch responses".
    """
    failed = dict.fromkeys(one.step.message_id for one in settled if one.retriable or one.hopeless)
    return {"batchItemFailures": [{"itemIdentifier": message_id} for message_id in failed]}


def direct_answer(settled: Sequence[Settled]) -> dict[str, Any]:
    """Count what became of the records; raise `PublishFailed` where another try may help."""
    retriable = [one for one in settled if one.retriable]
    if retriable:
        raise PublishFailed(f"{len(retriable)} of {len(settled)} records were not published: {retriable[0].reason}")
    published = sum(isinstance(one.step.action, Notification) and not one.hopeless for one in settled)
    failed = [one for one in settled if one.hopeless]
    summary: dict[str, Any] = {
        "published": published,
        "skipped": len(settled) - published - len(failed),
        "failed": len(failed),
    }
    if failed:
        summary["failures"] = [{"outcome": one.label, "reason": one.reason} for one in failed]
    return summary


_notifier: Notifier | None = None


def notifier() -> Notifier:
    """Return this process's notifier, made from the environment at the first call."""
    global _notifier  # noqa: PLW0603 - one warm connection for each process is the point of this module
    if _notifier is None:
        renewal = Renewal(after_seconds=RENEW_SECONDS)
        _notifier = Notifier(renewal.settings, renewal)
    return _notifier


def handler(event: object, context: LambdaContext) -> dict[str, Any]:
    """AWS Lambda entry: an SQS batch of S3 events, or an S3 (SNS, EventBridge) event by itself."""
    return notifier().handle(event, context.get_remaining_time_in_millis() / 1000)


def _start() -> None:
    """Have CONNACK travel while Lambda finishes the start."""
    global _notifier  # noqa: PLW0603 - as in `notifier`
    _notifier = None  # what a snapshot may hold is another process's
    notifier().publisher.warm_up()


@atexit.register
def _end() -> None:
    if _notifier is not None:
        _notifier.close()


begin(_start)
collector.resume()
