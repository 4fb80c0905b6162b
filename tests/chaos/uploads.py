"""Numbered objects at a steady rate, from a few threads, until told to stop."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from itertools import count
from typing import Self

from tests.chaos.verdict import Upload

THREADS = 4
JOIN_SECONDS = 15.0  # longer than the longest PUT: see the read time-out in `infra.local.stores`
LOOK_SECONDS = 0.05


class NotUploadedError(Exception):
    """The store did not take what it was to take."""


class Uploads:
    """Calls `put` with keys `assets/000001.bin`, … at `per_second`, from entering until leaving it.

    Every attempt has a number of its own. One that fails is not repeated: a second PUT of the same key would be
    another upload, with an event of its own. So `answered`, which holds those that the store answered with 200, has
    gaps, which `unanswered` fills: such an object may be there or not, and its event too.
    """

    def __init__(self, put: Callable[[str], None], per_second: float) -> None:
        """Nothing is uploaded yet. `put` raises when the store did not answer 200."""
        self._put = put
        self._interval_seconds = THREADS / per_second
        self._answered: dict[str, Upload] = {}
        self._unanswered: dict[str, Upload] = {}
        self._numbers = count(1)
        self._lock = threading.Lock()
        self._over = threading.Event()
        self._going = threading.Event()
        self._going.set()
        self._threads = [
            threading.Thread(target=self._run, args=(place / per_second,), name=f"uploads-{place}", daemon=True)
            for place in range(THREADS)
        ]

    @property
    def answered(self) -> dict[str, Upload]:
        """What was uploaded so far, in the order of the answers."""
        with self._lock:
            return dict(self._answered)

    @property
    def unanswered(self) -> dict[str, Upload]:
        """What the store did not answer with 200 so far, and when it was given up."""
        with self._lock:
            return dict(self._unanswered)

    def reach(self, wanted: int, within_seconds: float) -> None:
        """Return once so many are answered. Raises `NotUploadedError`."""
        until = time.monotonic() + within_seconds
        while len(self._answered) < wanted:
            if time.monotonic() > until:
                raise NotUploadedError(f"{len(self._answered)} of {wanted} uploads within {within_seconds:g} s")
            time.sleep(LOOK_SECONDS)

    def hold(self) -> None:
        """Begin no upload until `go`: for a store that takes what it will not tell of."""
        self._going.clear()

    def go(self) -> None:
        """Go on after `hold`."""
        self._going.set()

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._going.set()
        for thread in self._threads:
            thread.join(JOIN_SECONDS)

    def _run(self, first_after_seconds: float) -> None:
        due_at = time.monotonic() + first_after_seconds
        while not self._over.wait(max(0.0, due_at - time.monotonic())):
            self._going.wait()
            due_at = max(due_at, time.monotonic()) + self._interval_seconds  # no burst after a pause
            with self._lock:
                number = next(self._numbers)
            key = f"assets/{number:06}.bin"
            began_at = time.monotonic()
            ended = self._answered
            try:
                self._put(key)
            except Exception:  # noqa: BLE001 - whatever it was, the store has not said that it has this one
                ended = self._unanswered
            with self._lock:
                ended[key] = Upload(began_at, time.monotonic())
