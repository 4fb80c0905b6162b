"""What this process has running and open, told apart one by one.

A count would take in what other tests have left: it may end at any moment, which hides what is new, or come to its end
a little late, which looks like something new.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tests.hosts import eventually


def threads() -> set[threading.Thread]:
    """Those that run now."""
    return set(threading.enumerate())


def descriptors() -> set[tuple[str, str]]:
    """The number of each that is open, and what it leads to (Linux)."""
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one by which they are listed
            found.add((link.name, str(link.readlink())))
    return found


@contextmanager
def nothing_left() -> Iterator[None]:
    """Threads and descriptors that come up in the block are gone soon after it."""
    before = threads(), descriptors()
    yield
    with suppress(TimeoutError):  # the next two say what it is
        eventually(lambda: threads() <= before[0] and descriptors() <= before[1])
    assert not threads() - before[0]
    assert not descriptors() - before[1]
