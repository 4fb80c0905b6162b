"""What the host writes to its log, and how: JSON as on Lambda, readable lines on a terminal."""

from __future__ import annotations

import logging
import sys
import time
from collections import Counter

from functions.telemetry import logger
from infra.host.mqtt.link import NO_TROUBLE, LinkStatus


class LinkLog:
    """Logs the link: each connect and disconnect at INFO, each cause of failure once at WARNING, with a count."""

    def __init__(self) -> None:
        """Begin with a link that was never up."""
        self._connected = False
        self._causes: Counter[str] = Counter()

    def __call__(self, status: LinkStatus) -> None:
        """Hear of a change."""
        details = {"broker": status.broker, "reason": status.reason, "reason_code": status.reason_code}
        if status.connected:
            failures = sum(self._causes.values())
            logger.info("mqtt connected", extra={"broker": status.broker, "failed_attempts": failures})
            self._causes.clear()
        elif self._connected:
            logger.info("mqtt disconnected", extra=details)
        if not status.connected and status.reason not in NO_TROUBLE:
            self._causes[status.reason] += 1
            if self._causes[status.reason] == 1:
                logger.warning("mqtt connection failed; trying again", extra=details)
        self._connected = status.connected


class _Lines(logging.Formatter):
    """One readable line for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _PLAIN and value not in ("", None)}
        details = "  ".join(f"{key}={value}" for key, value in extra.items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {record.levelname:<7} {record.getMessage()}  {details}".rstrip()
        # A client's words may be in it: no control character reaches the terminal.
        line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "color_message", "asctime"}


def configure_logging(level: str) -> None:
    """JSON lines as on Lambda; readable ones where stdout is a terminal."""
    logger.setLevel(level)
    handler = logger.registered_handler
    if sys.stdout.isatty():
        handler.setFormatter(_Lines())
    loop_logger = logging.getLogger("asyncio")
    loop_logger.handlers = [handler]
    loop_logger.propagate = False
