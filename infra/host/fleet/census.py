"""Counts the devices now and then, off the event loop, so that a scrape of the metrics asks no database."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping

from functions.stored.errors import StoreUnavailableError
from functions.telemetry import logger
from functions.web.messages import Problem

PAUSE_SECONDS = 30.0
FIRST_PAUSE_SECONDS = 1.0  # the tables may have to be made; each failure is followed by a longer one
MAX_SHARE = 0.02  # of the time: a fleet that takes long to count is counted more seldom


class Census:
    """The last count, in a thread of its own."""

    def __init__(self, count: Callable[[], Mapping[str, int]]) -> None:
        """`count` may block, and raise `Problem` or `StoreUnavailableError`."""
        self._count = count
        self._stopped = threading.Event()
        self.devices: Mapping[str, int] | None = None
        """How many devices stand how; None while that cannot be asked."""

    def start(self) -> None:
        """Begin to count."""
        threading.Thread(target=self._run, name="fleet-census", daemon=True).start()

    def stop(self) -> None:
        """Count no more. Waits for nothing."""
        self._stopped.set()

    def _run(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while not self._stopped.wait(pause):
            began = time.monotonic()
            pause = min(2 * pause, PAUSE_SECONDS)
            try:
                self.devices = self._count()
                pause = max(PAUSE_SECONDS, (time.monotonic() - began) / MAX_SHARE)
            except (Problem, StoreUnavailableError):  # which others tell of
                self.devices = None
            except Exception:  # noqa: BLE001 - without this thread nothing would be counted ever again
                self.devices = None
                logger.exception("fleet")
