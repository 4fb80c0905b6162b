"""Keeps Python's garbage collector out of an entry's imports: an entry imports this first, and calls `resume` last.

What imports make stays. Looking through it again and again for what might go takes a tenth of a cold start.
"""

from __future__ import annotations

import gc

gc.disable()


def resume() -> None:
    """Collect from now on, and never again look at what is there already."""
    gc.freeze()
    gc.enable()
