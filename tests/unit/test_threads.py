"""Blocking calls beside the loop: in how many threads, in which, and that none of them holds up the end."""

from __future__ import annotations

import random
import threading

from infra.host.threads import Daemons
from tests.hosts import eventually
from tests.leftovers import threads
from tests.timing import PATIENCE_SECONDS


def test_daemons_run_what_they_are_given_in_any_order_of_need() -> None:
    """Results and exceptions come back; there are never more threads than allowed."""
    before = threads()
    pool = Daemons(4)
    numbers = list(range(200))
    random.Random(7).shuffle(numbers)  # noqa: S311 - protects nothing
    futures = [pool.submit(lambda n: n * n // min(n % 7, 1), number) for number in numbers]
    for number, future in zip(numbers, futures, strict=True):
        if number % 7:
            assert future.result(5) == number * number
        else:
            assert isinstance(future.exception(5), ZeroDivisionError)
    assert 1 <= len(threads() - before) <= 4
    pool.shutdown()


def test_a_thread_serves_one_call_after_the_other() -> None:
    """What is made once for a thread is not made for each call."""
    pool = Daemons(4)
    names = set()
    for _ in range(5):
        names.add(pool.submit(lambda: threading.current_thread().name).result(PATIENCE_SECONDS))
        eventually(lambda: pool._idle._value == 1)  # noqa: SLF001 - nothing else shows that it is back
    assert names == {"daemon-1"}
    pool.shutdown()


def test_what_hangs_holds_up_nothing() -> None:
    """`shutdown` returns at once, the others end, and the thread that hangs keeps no process alive."""
    go = threading.Event()
    before = threads()
    pool = Daemons(2)
    hanging, begun = pool.submit(go.wait, PATIENCE_SECONDS), pool.submit(lambda: None)
    begun.result(PATIENCE_SECONDS)
    pool.shutdown()
    eventually(lambda: len(threads() - before) == 1)
    assert [thread.daemon for thread in threads() - before] == [True]
    assert not hanging.done()
    go.set()
    eventually(lambda: threads() <= before)


def test_what_was_cancelled_before_it_began_never_begins() -> None:
    """As a request that had to wait too long for a thread."""
    go = threading.Event()
    pool = Daemons(1)
    first = pool.submit(go.wait, PATIENCE_SECONDS)
    begun: list[object] = []
    late = pool.submit(begun.append, None)
    assert late.cancel()
    go.set()
    assert first.result(PATIENCE_SECONDS)
    pool.submit(lambda: None).result(PATIENCE_SECONDS)
    assert begun == []
    pool.shutdown()
