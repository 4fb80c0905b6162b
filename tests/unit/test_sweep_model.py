"""A search for a history in which the sweep loses a file, or rings twice: uploads, lossy doors, restarts, clocks."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.s3.clients import StorageError
from tests.fakes.swept import Bucket, MemoryRings, SweptHost, ceph_event, minio_event, told
from tests.hostile.searching import Draw, tries

KEYS = ("assets/a", "assets/b", "assets/b/c", "assets/b-c", "configs/aa-bb-cc-dd-ee-ff.json")
ETAGS = ("one", "two")
GRACE_SECONDS = 10.0
HOUR_MS = 3_600_000


@dataclass
class World:
    """A bucket, its doors, hosts one after the other, and devices that fetch a file whenever its message comes."""

    tells_modified: bool
    bucket: Bucket = field(init=False)
    rings: MemoryRings = field(init=False)
    host: SweptHost = field(init=False)
    uploads: int = 0
    current: dict[str, int] = field(default_factory=dict)
    """The upload that each key shows."""
    before: dict[str, list[Any]] = field(default_factory=dict)
    """The versions below: an upload, and what a LIST shows of it."""
    rolled_back: set[str] = field(default_factory=set)
    waiting: list[tuple[int, str, dict[str, Any]]] = field(default_factory=list)
    """Events that the store has not told yet."""
    heard: Counter[int] = field(default_factory=Counter)
    """How often each upload rang in this life of the host."""
    fetched: dict[str, str] = field(default_factory=dict)
    """What devices have of each key."""
    counts: set[int] = field(default_factory=set)
    """What was uploaded before the first sweep."""

    def __post_init__(self) -> None:
        self.bucket = Bucket(page_objects=2, rounds_to=1 if self.tells_modified else 1000)
        self.rings = MemoryRings(lambda: 0)
        self.restart()

    def restart(self) -> None:
        """Another life: what was announced is recorded, what the process remembered is gone."""
        if hasattr(self, "host"):
            self.rings.record(self.host.rung.waiting)
        self.host = SweptHost(self.bucket, self.rings, grace_seconds=GRACE_SECONDS)
        self.heard.clear()

    def put(self, key: str, etag: str, seconds: float, way: str) -> None:
        """Upload, some time after whatever was before; the event is lost, told now, or told later."""
        self.host.pass_time(seconds)
        if key in self.current:
            self.before.setdefault(key, []).append((self.current[key], self.bucket.objects[key]))
        self.uploads += 1
        listed = self.bucket.put(key, etag)
        self.current[key] = self.uploads
        self.rolled_back.discard(key)
        event = minio_event(self.bucket.objects[key]) if self.tells_modified else ceph_event(listed, self.bucket.now)
        if way != "lost":
            self.waiting.append((self.uploads, key, event))

    async def tell(self, count: int) -> None:
        """Have the store tell so many of the events that wait, each at both doors."""
        told_now, self.waiting = self.waiting[:count], self.waiting[count:]
        for upload, _, event in told_now:
            for source in ("fast", "sure"):
                if await self.listen(self.host.event(event, source)):
                    self.heard[upload] += 1

    async def sweep(self) -> None:
        """Sweep; what it rings is what is there."""
        for key, etag in await self.listen(self.host.sweep()):
            assert key in self.current, f"{key} was deleted, and rings"
            assert self.bucket.objects[key].etag == etag
            self.heard[self.current[key]] += 1

    async def listen(self, ringing: Any) -> list[tuple[str, str]]:  # noqa: ANN401 - whatever may ring
        """What rang; devices fetch what is there then."""
        begin = len(self.host.publisher.messages)
        with contextlib.suppress(StorageError):  # a sweep of which a page failed
            await ringing
        rang = [told(message) for message in self.host.publisher.messages[begin:]]
        for key, _ in rang:
            if key in self.bucket.objects:
                self.fetched[key] = self.bucket.objects[key].etag
        return rang

    def delete(self, key: str) -> None:
        """Delete all versions."""
        self.bucket.objects.pop(key, None)
        self.current.pop(key, None)
        self.before.pop(key, None)

    def roll_back(self, key: str) -> None:
        """Delete the newest version."""
        if self.before.get(key):
            self.current[key], self.bucket.objects[key] = self.before[key].pop()
            self.rolled_back.add(key)


@st.composite
def histories(draw: Draw) -> list[tuple[Any, ...]]:
    """What happens, in order."""
    key = st.sampled_from(KEYS)
    step = st.one_of(
        st.tuples(
            st.just("put"),
            key,
            st.sampled_from(ETAGS),
            st.sampled_from([2.0, 4.0, 11.0, 60.0]),
            st.sampled_from(["lost", "told", "late"]),
        ),
        st.tuples(st.just("tell"), st.integers(1, 3)),
        st.tuples(st.just("sweep")),
        st.tuples(st.just("wait"), st.sampled_from([1.0, 11.0, 100.0])),
        st.tuples(st.just("delete"), key),
        st.tuples(st.just("roll back"), key),
        st.tuples(st.just("restart")),
        st.tuples(st.just("clock"), st.sampled_from([-HOUR_MS, HOUR_MS])),
        st.tuples(st.just("fail"), st.integers(1, 4)),
        st.tuples(st.just("link"), st.booleans()),
    )
    return draw(st.lists(step, min_size=1, max_size=30))


async def live(world: World, history: list[tuple[Any, ...]]) -> None:
    """Let it happen, and then let everything come to rest."""
    for what, *how in history:
        if what == "put":
            world.put(*how)
            if how[3] == "told":
                await world.tell(len(world.waiting))
        elif what == "tell":
            await world.tell(*how)
        elif what == "sweep":
            if not world.host.publisher.away:
                await world.sweep()
        elif what == "wait":
            world.host.pass_time(*how)
        elif what == "delete":
            world.delete(*how)
        elif what == "roll back":
            world.roll_back(*how)
        elif what == "restart":
            world.restart()
        elif what == "clock":
            world.bucket.now += how[0]
        elif what == "fail":
            world.bucket.fails_at = how[0]
            if not world.host.publisher.away:
                await world.sweep()
            world.bucket.fails_at = 0
        elif what == "link":
            world.host.publisher.away = not how[0]
    world.host.publisher.away = False
    await world.tell(len(world.waiting))
    for _ in range(2):  # the second: what is dated ahead was seen for long enough
        world.host.pass_time(GRACE_SECONDS + 1)
        await world.sweep()


@pytest.mark.parametrize("tells_modified", [True, False])
@tries(150)
@given(history=histories())
def test_a_search_for_a_history_that_loses_a_file_or_rings_twice(
    history: list[tuple[Any, ...]], *, tells_modified: bool
) -> None:
    """In the end devices have of each key what a LIST shows, unless it was there before or an old version came back.

    In one life of the host no upload rings twice, and nothing rings that was deleted.
    """

    async def scenario() -> World:
        world = World(tells_modified)
        world.put("assets/old", "one", 60.0, "lost")
        world.host.pass_time(60.0)
        await world.sweep()
        await live(world, history)
        return world

    world = asyncio.run(scenario())
    assert "assets/old" not in world.fetched
    shown = {key: listed.etag for key, listed in world.bucket.objects.items() if key != "assets/old"}
    for key, etag in shown.items():
        if key not in world.rolled_back:
            assert world.fetched.get(key) == etag, key
    assert all(count == 1 for count in world.heard.values()), world.heard
