"""What each attempt to connect needs: a client id of its own, and after a failure a pause."""

from __future__ import annotations

import os
import random

MIN_BACKOFF_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60.0


def new_client_id(prefix: str) -> str:
    """Return a client id of this process alone: two clients with one id would disconnect each other for ever."""
    return f"{prefix}-{os.urandom(6).hex()}"


def backoff_seconds(failures: int) -> float:
    """Return how long to wait after `failures` (≥ 1) failed attempts: 1, 2, 4 … 60 s, less up to half by chance."""
    ceiling = min(MAX_BACKOFF_SECONDS, MIN_BACKOFF_SECONDS * 2.0 ** min(failures - 1, 16))
    return ceiling * random.uniform(0.5, 1.0)  # noqa: S311 - spreads reconnects, guards nothing
