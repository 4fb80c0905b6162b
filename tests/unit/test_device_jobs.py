from __future__ import annotations

import gc

import pytest

from infra.device.jobs import LONGEST_REFUSED_SECONDS, LONGEST_RETRY_SECONDS, ONCE_ATTEMPTS, Job, Jobs
from infra.device.names import Name
from infra.device.trouble import FetchError, Reason


def pauses(job: Job, *troubles: FetchError, once: bool = False) -> list[float | None]:
    """How long the job is left alone after each, at most."""
    return [job.failed(trouble, lambda _low, high: high, once=once) for trouble in troubles]


def job(name: Name | None = None, due_at: float = 0.0) -> Job:
    """A job of its own."""
    return Job(name, due_at, 0.0)


@pytest.mark.parametrize("reason", ["corrupt", "forbidden", "archived", "misdirected", "clock_skew", "refused"])
def test_what_a_person_must_mend_is_tried_ever_more_seldom(reason: Reason) -> None:
    """A file that comes corrupt, or is refused, is not fetched anew each minute for ever."""
    waits = pauses(job(), *[FetchError(reason, "x")] * 12)
    assert waits[:4] == [0.5, 2.0, 8.0, 32.0]
    assert waits[-1] == LONGEST_REFUSED_SECONDS > LONGEST_RETRY_SECONDS


@pytest.mark.parametrize("reason", ["unreachable", "timed_out", "cut", "unavailable", "disk_full", "protocol"])
def test_an_outage_is_looked_at_each_minute(reason: Reason) -> None:
    """Whoever comes back is found soon, however long it was away."""
    assert pauses(job(), *[FetchError(reason, "x")] * 100)[-1] == LONGEST_RETRY_SECONDS


def test_an_outage_before_does_not_prolong_the_wait_after_a_refusal() -> None:
    """Each kind has a count of its own."""
    assert pauses(job(), *[FetchError("unreachable", "x")] * 50, FetchError("corrupt", "x"))[-1] == 0.5


def test_whoever_is_asked_to_come_later_has_not_failed() -> None:
    """No attempt is counted, nothing given up, and no more waited than was asked for and a moment."""
    late = FetchError("rate_limited", "x", after_seconds=7.0)
    it = job()
    assert pauses(it, *[late] * 100, once=True) == [7.5] * 100
    assert pauses(it, *[FetchError("unreachable", "x")] * ONCE_ATTEMPTS, once=True) == [0.5, 1.0, 2.0, 4.0, None]


def test_a_429_that_names_no_time_is_met_with_growing_pauses() -> None:
    """As AWS's gateway sends it; still nothing is given up."""
    waits = pauses(job(), *[FetchError("rate_limited", "x")] * 20, once=True)
    assert waits[:3] == [0.5, 1.0, 2.0]
    assert waits[-1] == LONGEST_RETRY_SECONDS


@pytest.mark.parametrize("reason", ["forbidden", "archived", "misdirected", "clock_skew", "refused", "unauthorized"])
def test_once_does_not_wait_for_a_person(reason: Reason) -> None:
    """Its exit status tells at once."""
    assert pauses(job(), FetchError(reason, "x"), once=True) == [None]


def test_jobs_come_in_the_order_in_which_they_are_due() -> None:
    """Of equals the first that came; what was put off, replaced or removed comes as it is now."""
    first, second, third, fourth = (Name("asset", str(number)) for number in range(4))
    jobs = Jobs()
    assert jobs.first() is None
    for name, due_at in ((second, 1.0), (first, 1.0), (third, 3.0), (fourth, 0.0)):
        jobs.put(job(name, due_at))
    off = jobs.first()
    assert off is not None
    off.due_at = 2.0
    jobs.put(off)
    jobs.put(job(second, 9.0))
    gone = jobs.get(third)
    assert gone is not None
    jobs.remove(gone)
    order = []
    while (it := jobs.first()) is not None:
        order.append(it.name)
        jobs.remove(it)
    assert order == [first, fourth, second]
    assert len(jobs) == 0


def test_a_flood_about_one_file_takes_no_memory() -> None:
    """Each message replaces the job: those before it go, in the end."""
    jobs = Jobs()
    name = Name("asset", "flood")
    for number in range(2000):
        jobs.put(job(name, float(number)))
    kept = [one for one in gc.get_objects() if isinstance(one, Job) and one.name is name]
    assert len(kept) < 200
    assert jobs.first() is jobs.get(name)
