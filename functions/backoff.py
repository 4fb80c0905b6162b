"""Pure: how long to wait before the next attempt, for everything that tries again."""

from __future__ import annotations

import random
from collections.abc import Callable

FIRST_SECONDS = 1.0
LONGEST_SECONDS = 60.0
_MAX_GROWTHS = 16  # 2.0 ** failures would overflow after a week of them


def backoff_seconds(
    failures: int,
    *,
    first_seconds: float = FIRST_SECONDS,
    longest_seconds: float = LONGEST_SECONDS,
    factor: float = 2.0,
    uniform: Callable[[float, float], float] = random.uniform,
) -> float:
    """Return how long to wait after `failures` (≥ 1) failed attempts: 1, 2, 4 … 60 s, less up to half by chance.

    The chance keeps clients apart that failed at the same moment.
    """
    most = min(longest_seconds, first_seconds * factor ** min(failures - 1, _MAX_GROWTHS))
    return uniform(most / 2, most)
