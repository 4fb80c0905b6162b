"""What looks after something now and then, and sleeps meanwhile."""

from __future__ import annotations

import asyncio
import math

from infra.host.rounds import Rounds
from tests.hosts import on_uvloop, until

PERIOD_SECONDS = 0.01
PATIENCE_SECONDS = 5.0


@on_uvloop
async def test_it_looks_again_only_when_stirred() -> None:
    """Whoever says that there is nothing to look after is not asked again, until something stirs."""
    looks: list[float] = []

    def look(seconds: float) -> float:
        looks.append(seconds)
        return math.inf

    rounds = Rounds("test", PERIOD_SECONDS, look)
    rounds.start()
    try:
        await until(lambda: looks)
        await asyncio.sleep(20 * PERIOD_SECONDS)
        assert len(looks) == 1
        rounds.stir()
        await until(lambda: len(looks) == 2)
        assert looks[1] < 20 * PERIOD_SECONDS, "counted from the stir, not from the last look"
    finally:
        await rounds.stop()


@on_uvloop
async def test_it_looks_every_period_while_there_is_something() -> None:
    """A look that fails is said, and followed by another."""
    looks = 0

    def look(_: float) -> float:
        nonlocal looks
        looks += 1
        if looks == 1:
            raise ValueError
        return PERIOD_SECONDS

    rounds = Rounds("test", PERIOD_SECONDS, look)
    rounds.start()
    try:
        await until(lambda: looks > 3)
    finally:
        await rounds.stop()


@on_uvloop
async def test_it_ends_although_something_stirs_at_that_moment() -> None:
    """The end is not lost behind a stir of the same turn of the loop."""
    looked = asyncio.Event()

    def look(_: float) -> float:
        looked.set()
        return math.inf

    rounds = Rounds("test", PERIOD_SECONDS, look)
    rounds.start()
    await looked.wait()
    await asyncio.sleep(0)
    rounds.stir()
    async with asyncio.timeout(PATIENCE_SECONDS):
        await rounds.stop()
