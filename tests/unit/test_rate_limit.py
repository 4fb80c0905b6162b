"""So many requests a minute for each caller: what is left, when it comes back, and what is kept. Time is the test's."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.host.web import rate_limit
from infra.host.web.rate_limit import RateLimit


class Clock:
    """Time that a test moves."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        """Seconds."""
        return self.now


@given(
    per_minute=st.integers(1, 200),
    now=st.floats(0, 1e7),
    steps=st.lists(st.floats(0, 2), max_size=30),
)
def test_whoever_asks_as_often_as_it_can_gets_the_share_and_what_comes_back(
    per_minute: int, now: float, steps: list[float]
) -> None:
    """The whole share at once, then as much of it as of a minute has passed, and never more."""
    clock = Clock(now)
    limit = RateLimit(per_minute, clock=clock)
    passed = 0
    for step in (0.0, *steps):
        clock.now += step
        while not limit.wait_seconds(b"k"):
            limit.take(b"k")
            passed += 1
    fair = per_minute * (1 + (clock.now - now) / 60)
    assert fair - 1.01 <= passed <= fair + 0.01


@pytest.mark.parametrize("per_minute", [1, 7, 11, 30, 60, 120, 999])
@pytest.mark.parametrize("now", [0.0, 12_345.678, 1e7])
def test_a_share_is_whole_at_once_and_comes_back_piece_by_piece(per_minute: int, now: float) -> None:
    """Exactly so many, then one for each interval, and after the wait that was named."""
    clock = Clock(now)
    limit = RateLimit(per_minute, clock=clock)
    for _ in range(per_minute):
        assert limit.wait_seconds(b"k") == 0
        limit.take(b"k")
    wait_seconds = limit.wait_seconds(b"k")
    assert wait_seconds == pytest.approx(60 / per_minute, abs=2e-4)
    assert limit.wait_seconds(b"other") == 0
    clock.now += wait_seconds * 0.9
    assert limit.wait_seconds(b"k") > 0
    clock.now += wait_seconds * 0.1
    assert limit.wait_seconds(b"k") == 0
    limit.take(b"k")
    assert limit.wait_seconds(b"k") > 0
    clock.now += 60
    for _ in range(per_minute):
        assert limit.wait_seconds(b"k") == 0
        limit.take(b"k")
    assert limit.wait_seconds(b"k") > 0


def shares(limit: RateLimit) -> int:
    """How many are left now; they are used up."""
    count = 0
    while not limit.wait_seconds(b"k"):
        limit.take(b"k")
        count += 1
    return count


def test_a_share_may_be_wider_than_a_minutes_but_comes_back_no_faster() -> None:
    """Pages add up; a shorter list later takes nothing back; there is an end to it."""
    clock = Clock()
    limit = RateLimit(60, clock=clock)
    limit.widen(b"k", 10, further=False)
    assert shares(limit) == 60
    limit.widen(b"k", 100, further=False)
    limit.widen(b"k", 50, further=True)
    assert shares(limit) == 90
    clock.now += 30
    assert shares(limit) == 30
    limit.widen(b"k", 20, further=False)
    assert shares(limit) == 0
    clock.now += 1000
    assert shares(limit) == 150
    for _ in range(3):
        limit.widen(b"k", rate_limit.MAX_AT_ONCE // 2, further=True)
    clock.now += 2 * rate_limit.MAX_AT_ONCE
    assert shares(limit) == rate_limit.MAX_AT_ONCE


def test_zero_is_no_limit() -> None:
    """However many at once."""
    limit = RateLimit(0, clock=Clock())
    for _ in range(1000):
        assert limit.wait_seconds(b"k") == 0
        limit.take(b"k")


def test_keys_are_bounded_and_the_one_not_heard_of_for_longest_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Strangers by the million take no memory."""
    monkeypatch.setattr(rate_limit, "MAX_CALLERS", 3)
    limit = RateLimit(1, clock=Clock())
    for key in (b"a", b"b", b"c", b"a", b"d"):
        limit.take(key)
    assert [key for key in (b"a", b"b", b"c", b"d") if limit.wait_seconds(key)] == [b"a", b"c", b"d"]
