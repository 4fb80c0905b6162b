"""How an event that was dealt with is logged, on Lambda and on every host."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from functions.events.envelopes import Malformed
from functions.events.routes import Detection, Skip
from functions.telemetry import logger

if TYPE_CHECKING:
    from functions.events.plan import Settled

MAX_EXCERPT_CHARACTERS = 200


def log(settled: Settled) -> None:
    """Log one settled step: failures with topic, filename and reason; what is nobody's fault only at DEBUG."""
    step = settled.step
    details: dict[str, Any] = {"outcome": settled.label, "reason": settled.reason}
    action = step.action
    if not isinstance(action, Skip):
        # Nested, because `logging` keeps the name `filename` for itself and raises.
        if isinstance(action, Detection):
            details["detection"] = {"object_key": action.object_key, "id": action.identity.hex()}
        else:
            details["notification"] = {
                "topic": action.message.topic,
                "filename": action.filename,
                "id": action.identity.hex(),
            }
        if settled.reason_code is not None:
            details["reason_code"] = settled.reason_code
        if settled.failed:
            logger.error("publish failed", extra=details)
        else:
            logger.debug("published", extra=details)
    elif isinstance(step.record, Malformed):
        logger.error("malformed event", extra=details | {"excerpt": step.record.detail[:MAX_EXCERPT_CHARACTERS]})
    else:
        details |= {"bucket": step.record.bucket, "object_key": step.record.object_key}
        if action.is_warning:
            logger.warning("object key is not announced: its name is not valid", extra=details)
        else:
            logger.debug("skipped", extra=details)
