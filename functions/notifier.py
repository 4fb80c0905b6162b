"""What a Lambda function does with an event: plans, reads, publishes, and tells its source what became of it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from functions.cameras.message import CameraMessage, Sighting
from functions.events.plan import Fate, Settled, Step, plan, settle, sqs_answer, to_publish
from functions.events.routes import Detection, Routes, Skip, Unread, Upload
from functions.events_log import log
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.outcome import Outcome, Status
from functions.mqtt.publisher import InlinePublisher
from functions.own_topics import OwnTopics, warn_of_missing_broadcasts
from functions.settings import SettingsError
from functions.settings.secret import DEADLINE_SECONDS as SECRET_DEADLINE_SECONDS
from functions.telemetry import EmfTelemetry, logger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from functions.cameras.reader import DetectionReader
    from functions.lifecycle import Renewal
    from functions.mqtt.message import Message
    from functions.settings import Settings
    from functions.stored.effective import StoredSettingsReader

ANSWER_MARGIN_SECONDS = 0.5  # kept of the invocation's time, to answer and to log


class PublishFailed(Exception):  # noqa: N818 - Lambda reports the name as the type of the error
    """Raised to Lambda for an asynchronous invocation, so that it invokes again."""


class Notifier:
    """The handler's state: what is created once for each process and stays warm."""

    def __init__(self, settings: Settings, renewal: Renewal | None = None) -> None:
        """Nothing is connected yet. `renewal` is asked for other settings when the broker cannot be used."""
        self.telemetry = EmfTelemetry()
        self._renewal = renewal
        self._own_topics = OwnTopics()
        self._use(settings)
        warn_of_missing_broadcasts(settings)

    def _use(self, settings: Settings) -> None:
        self._settings = settings
        self._reader: DetectionReader | None = None
        self._routes = Routes.of(settings)
        self._stored = None if settings.database_url is None else _stored_settings(settings)
        self._publish_to(BrokerConfig.of(settings) if self._stored is None else None)

    def _publish_to(self, broker: BrokerConfig | None) -> None:
        self._broker = broker
        self.publisher = InlinePublisher(broker, self.telemetry)

    @property
    def _problem(self) -> str:
        """Why the broker is not known; until it is, events wait at their source. "" if all is well."""
        return "" if self._stored is None else self._stored.problem

    def _look_up(self) -> None:
        """Switch to the broker that the stored settings name now."""
        if self._stored is not None and self._stored.look():
            self.publisher.close()
            self._publish_to(self._stored.broker)

    def warm_up(self) -> None:
        """Begin to connect without waiting for the broker's answer."""
        self._look_up()
        self.publisher.warm_up()

    def handle(self, event: object, remaining_seconds: float) -> dict[str, Any]:
        """Answer one invocation: `batchItemFailures` to SQS, a summary to a direct invocation.

        Raises `PublishFailed` for a direct invocation that another try may cure.
        """
        end = time.monotonic() + max(0.0, remaining_seconds - ANSWER_MARGIN_SECONDS)
        self._look_up()
        steps = plan(event, self._routes)
        is_batch = any(step.message_id is not None for step in steps)
        if self._broker is None and not self._problem:
            self.telemetry.flush()
            return {"batchItemFailures": []} if is_batch else {"published": 0, "skipped": 0, "failed": 0}
        has_detections = any(isinstance(step.action, Detection) for step in steps)
        outcomes = self._detect(steps, end) if has_detections else self._publish(to_publish(steps), end)
        settled = settle(steps, outcomes)
        self._announce_to_devices(settled, end)
        if self._stored is not None:
            self._stored.record(outcomes, connected=self.publisher.enabled, attempts=self.publisher.attempts)
        for one in settled:
            self.telemetry.event("sqs" if is_batch else "direct", one.label)
        self.telemetry.flush()
        for one in settled:
            log(one)
        return sqs_answer(settled) if is_batch else direct_answer(settled)

    def _announce_to_devices(self, settled: Sequence[Settled], end: float) -> None:
        """Publish the second messages, after the first: a broker that forbids them must not hold those up.

        What its source brings again, gets its second message then.
        """
        uploads = [one.step.action for one in settled if isinstance(one.step.action, Upload) and not one.retriable]
        due = [(one, own) for one in uploads if (own := self._own_topics.take(one)) is not None]
        if due:
            outcomes = self._publish([own for _, own in due], end)
            for (upload, _), outcome in zip(due, outcomes, strict=True):
                self._own_topics.landed(upload, outcome)

    def _detect(self, steps: Sequence[Step], end: float) -> list[Outcome | Unread]:
        """Read what has to be read first, then publish all, in order."""
        # It brings boto3: half a second that other events need not wait.
        from functions.cameras.reader import DetectionReader, read_all  # noqa: PLC0415 - see above

        if self._reader is None:
            self._reader = DetectionReader.of(self._settings)
        if self._stored is not None:
            self._reader.topics = self._stored.topics  # for what it warns of: all are addressed when they are sent
        now = time.monotonic()
        patience_seconds = self._broker.publish_timeout_seconds if self._broker else 0.0
        until = max(end - patience_seconds, now + (end - now) / 2)
        actions = [step.action for step in steps if not isinstance(step.action, Skip)]
        read = read_all(self._reader, [one for one in actions if isinstance(one, Detection)], until)
        found = [read[one.identity] if isinstance(one, Detection) else one for one in actions]
        messages: list[Message] = []
        before: list[tuple[str, Message]] = []
        for one in found:
            if isinstance(one, Upload):
                messages.append(one.message)
            elif not isinstance(one, Unread):
                announced = self._stored.before_event(one.camera_id, one.camera_name) if self._stored else ()
                before += [(one.camera_id, message) for message in announced]
                messages += [*announced, one.message]
        outcomes = dict(zip(messages, self._publish(messages, end), strict=True))
        for camera_id, message in before:
            if self._stored is not None and not outcomes[message].success:
                self._stored.forget(camera_id)
        return [one if isinstance(one, Unread) else outcomes[one.message] for one in found]

    def _publish(self, messages: Sequence[Message], end: float) -> list[Outcome]:
        """Publish by `end` (`time.monotonic`), and again what is not confirmed if the secret has changed."""
        outcomes = self._try(messages, end)
        again = [one for one, outcome in zip(messages, outcomes, strict=True) if _is_unconfirmed(outcome)]
        before = self._routes
        if not again or time.monotonic() + SECRET_DEADLINE_SECONDS > end or not self._renewed():
            return outcomes
        retried = iter(self._try([self._routes.moved(one, before) for one in again], end))
        return [next(retried, outcome) if _is_unconfirmed(outcome) else outcome for outcome in outcomes]

    def _try(self, messages: Sequence[Message], end: float) -> list[Outcome]:
        if self._problem:
            return [Outcome(Status.UNCONFIRMED, self._problem)] * len(messages)
        patience_seconds = self._broker.publish_timeout_seconds if self._broker else 0.0
        addressed = [self._addressed(one) for one in messages]
        return self.publisher.publish(addressed, min(end, time.monotonic() + patience_seconds))

    def _addressed(self, message: Message) -> Message:
        if self._stored is not None:
            return self._stored.addressed(message)
        if isinstance(message, CameraMessage) and isinstance(message.about, Sighting):
            from functions.cameras.detections import CameraTopics, addressed  # noqa: PLC0415 - imported with its documents

            return addressed(message, message.about, CameraTopics.of(self._settings))
        return message

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
        self._look_up()
        return True

    def close(self) -> None:
        """Disconnect. Idempotent; a failure is logged and swallowed: the process is ending anyway."""
        try:
            self.publisher.close()
        except Exception:  # noqa: BLE001 - the process ends whatever happens here
            logger.exception("shutdown")


def _stored_settings(settings: Settings) -> StoredSettingsReader:
    # It brings the database's packages, which others need not have.
    from functions.stored.effective import StoredSettingsReader  # noqa: PLC0415 - see above
    from functions.stored.errors import StoreUnavailableError  # noqa: PLC0415 - see above
    from functions.stored.store import ConfigStore  # noqa: PLC0415 - see above

    problem = "must be set"
    try:
        if (store := ConfigStore.of(settings)) is not None:
            return StoredSettingsReader(settings, store)
    except StoreUnavailableError as error:
        problem = str(error)
    raise SettingsError((("DATABASE_URL", problem),))


def _is_unconfirmed(outcome: Outcome) -> bool:
    return outcome.status is Status.UNCONFIRMED


def direct_answer(settled: Sequence[Settled]) -> dict[str, Any]:
    """Count what became of the records; raise `PublishFailed` where another try may help."""
    retriable = [one for one in settled if one.retriable]
    if retriable:
        raise PublishFailed(f"{len(retriable)} of {len(settled)} records were not published: {retriable[0].reason}")
    published = sum(one.fate is Fate.PUBLISHED for one in settled)
    failed = [one for one in settled if one.failed]
    summary: dict[str, Any] = {
        "published": published,
        "skipped": len(settled) - published - len(failed),
        "failed": len(failed),
    }
    if failed:
        summary["failures"] = [{"outcome": one.label, "reason": one.reason} for one in failed]
    return summary
