"""Something fails again and again: said when that begins and when it ends, and how long to wait in between."""

from __future__ import annotations

from functions.backoff import backoff_seconds
from functions.telemetry import logger


class Trouble:
    """Belongs to one thing that is tried."""

    def __init__(self, begins: str, ends: str) -> None:
        """What is logged."""
        self._begins, self._ends = begins, ends
        self._failures = 0
        self._said = ""

    def met(self, reason: str, kind: str = "") -> float:
        """Note a failure; return how many seconds to wait before the next try. Each `kind` in a row is said once."""
        self._failures += 1
        if self._failures == 1 or kind != self._said:
            logger.warning(self._begins, extra={"reason": reason})
        self._said = kind
        return backoff_seconds(self._failures)

    def ended(self) -> None:
        """It goes well again."""
        if self._failures:
            logger.info(self._ends, extra={"failed_attempts": self._failures})
        self._failures = 0
