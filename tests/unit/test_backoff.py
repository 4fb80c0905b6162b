from __future__ import annotations

import pytest

from functions.backoff import LONGEST_SECONDS, backoff_seconds


@pytest.mark.parametrize(("failures", "ceiling"), [(1, 1), (2, 2), (3, 4), (6, 32), (7, 60), (8, 60), (10_000, 60)])
def test_back_off_grows_from_one_to_sixty_seconds_with_jitter(failures: int, ceiling: float) -> None:
    """Doubling, between half of its ceiling and all of it, and never the same twice in a row of many."""
    delays = {backoff_seconds(failures) for _ in range(200)}
    assert all(ceiling / 2 <= delay <= ceiling <= LONGEST_SECONDS for delay in delays)
    assert len(delays) > 100


def test_back_off_is_as_long_as_its_caller_wants() -> None:
    """The first delay, the longest one, how it grows, and the chance are the caller's where it says so."""

    def seconds(failures: int) -> float:
        return backoff_seconds(
            failures, first_seconds=0.5, longest_seconds=3600.0, factor=4.0, uniform=lambda _, most: most
        )

    assert [seconds(failures) for failures in (1, 2, 3, 10)] == [0.5, 2.0, 8.0, 3600.0]
