"""Entry: the bucket's events in, MQTT messages out."""

from __future__ import annotations

import atexit
from typing import TYPE_CHECKING, Any

from functions import lean_imports
from functions.lifecycle import Renewal, begin
from functions.notifier import Notifier

if TYPE_CHECKING:
    from aws_lambda_powertools.utilities.typing import LambdaContext

RENEW_SECONDS = 60.0  # between two looks into the secret, while the broker will not have us

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
    notifier().warm_up()


@atexit.register
def _end() -> None:
    if _notifier is not None:
        _notifier.close()


begin(_start)
lean_imports.end()
