"""A search for a history in which the sweep loses a file, or rings twice: uploads, lossy doors, restarts, clocks."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from functions.events.dialects import ObjectCreated
from functions.events.plan import Settled, Step
from functions.s3.clients import StorageError
from functions.stored.database import Database
from functions.stored.ring import Ring
from functions.stored.rings import PrefixProgress, RingStore, Scope
from infra.host.sweep.judge import ListedObject
from infra.host.sweep.ledger import SWEEP
from infra.migrations.runner import upgrade
from tests.fakes.swept import Bucket, MemoryRings, SweptHost, ceph_event, minio_event
from tests.hostile.searching import tries

CONFIG = "configs/aa-bb-cc-dd-ee-ff.json"
KEYS = st.sampled_from(["assets/a", "assets/a", "assets/a", CONFIG, "assets/b/c", "assets/b-c"])
ETAGS = st.sampled_from(["one", "two"])
OLD = "assets/old"
GRACE_SECONDS = 10.0
HOUR_MS = 3_600_000

Act = tuple[Any, ...]


class World:
    """A bucket, its doors, hosts one after the other, and devices that fetch a file whenever its message comes."""

    def __init__(self, *, tells_modified: bool, rings: MemoryRings | None = None) -> None:
        self.tells_modified = tells_modified
        self.bucket = Bucket(page_objects=2, rounds_to=1 if tells_modified else 1000)
        self.rings = rings or MemoryRings(lambda: 0)
        self.host: SweptHost
        self.uploads = 0
        self.shown: dict[str, int] = {}
        """The upload that a LIST shows of each key."""
        self.listed: dict[int, ListedObject] = {}
        self.versions: dict[str, list[int]] = {}
        self.rolled_back: set[str] = set()
        self.waiting: list[tuple[int, dict[str, Any]]] = []
        """Events that the store has not told yet."""
        self.heard: Counter[int] = Counter()
        """How often each upload rang in this life of the host."""
        self.fetched: dict[str, str] = {}
        """What devices have of each key."""
        self.is_calm = True
        self.restart()

    def restart(self) -> None:
        """Another life: what was announced is recorded, what the process remembered is gone."""
        if self.uploads:
            self.rings.record(self.host.rung.waiting)
        self.host = SweptHost(self.bucket, self.rings, grace_seconds=GRACE_SECONDS)
        self.heard.clear()
        ring_then = self.host.bell.ring_then

        def overheard(steps: Sequence[Step], source: str, tell: Callable[[list[Settled]], None]) -> None:
            def hear(settled: list[Settled]) -> None:
                for one in settled:
                    if source == SWEEP and one.label == "delivered":
                        self.hear_swept(one.step)
                tell(settled)

            ring_then(steps, source, hear)

        self.host.bell.ring_then = overheard  # type: ignore[method-assign]

    def hear_swept(self, step: Step) -> None:
        """The sweep rings what was there when it looked."""
        record = step.record
        assert isinstance(record, ObjectCreated)
        upload = next(n for n, one in self.listed.items() if one == (*one[:1], record.etag, record.modified, one.size))
        self.hear(record.object_key, upload)
        if self.is_calm:
            assert self.shown.get(record.object_key) == upload, f"{record.object_key} is gone, and rings"

    def hear(self, key: str, upload: int) -> None:
        """A device fetches what is there now."""
        self.heard[upload] += 1
        if key in self.bucket.objects:
            self.fetched[key] = self.bucket.objects[key].etag

    async def act(self, act: Act) -> None:
        """Have one thing happen."""
        what, *how = act
        await getattr(self, what)(*how)

    async def put(self, key: str, etag: str, seconds: float, way: str) -> None:
        """Upload, some time after whatever was before; the event is lost, told now, or told later."""
        self.host.pass_time(seconds)
        self.uploads += 1
        listed = self.listed[self.uploads] = self.bucket.put(key, etag)
        self.shown[key] = self.uploads
        self.versions.setdefault(key, []).append(self.uploads)
        self.rolled_back.discard(key)
        event = minio_event(listed) if self.tells_modified else ceph_event(listed, self.bucket.now)
        if way != "lost":
            self.waiting.append((self.uploads, event))
        if way == "told":
            await self.tell()

    async def tell(self, count: int = 100) -> None:
        """Have the store tell so many of the events that wait, each at both doors."""
        told_now, self.waiting = self.waiting[:count], self.waiting[count:]
        for upload, event in told_now:
            for source in ("fast", "sure"):
                labels = await self.host.event(event, source)
                if labels == ["delivered"]:
                    self.hear(self.listed[upload].object_key, upload)
                if labels == ["unconfirmed"] and source == "sure":
                    self.waiting.append((upload, event))

    async def sweep(self, *meanwhile: Act) -> None:
        """Sweep; the store goes on meanwhile, at every moment at which it matters."""
        if self.host.publisher.away:
            return
        todo = list(meanwhile)
        loop = asyncio.get_running_loop()

        def go_on() -> None:
            if todo:
                asyncio.run_coroutine_threadsafe(self.act(todo.pop(0)), loop).result(10)

        self.rings.on_look = go_on
        self.is_calm = not meanwhile
        with contextlib.suppress(StorageError):
            await self.host.sweeper.sweep()
        self.rings.on_look = lambda: None
        for act in todo:
            await self.act(act)

    async def fail(self, call: int) -> None:
        """Sweep while this call of LIST is answered with 500."""
        self.bucket.fails_at = call
        await self.sweep()
        self.bucket.fails_at = 0

    async def wait(self, seconds: float) -> None:
        """Let time pass."""
        self.host.pass_time(seconds)

    async def clock(self, milliseconds: int) -> None:
        """Set the store's clock."""
        self.bucket.now += milliseconds

    async def link(self, away: bool) -> None:  # noqa: FBT001 - a part of a history
        """The broker goes, or comes."""
        self.host.publisher.away = away

    async def renew(self) -> None:
        """Restart the host."""
        self.restart()

    async def delete(self, key: str) -> None:
        """Delete all versions."""
        self.bucket.objects.pop(key, None)
        self.shown.pop(key, None)
        self.versions.pop(key, None)

    async def roll_back(self, key: str) -> None:
        """Delete the newest version."""
        versions = self.versions.get(key, [])
        if len(versions) > 1:
            versions.pop()
            self.shown[key] = versions[-1]
            self.bucket.objects[key] = self.listed[versions[-1]]
            self.rolled_back.add(key)

    async def come_to_rest(self) -> None:
        """The link is up, the store tells the rest, and two sweeps follow: the second knows what was dated ahead."""
        self.host.publisher.away = False
        await self.tell()
        for _ in range(2):
            self.host.pass_time(GRACE_SECONDS + 1)
            await self.sweep()


PUT = st.tuples(
    st.just("put"), KEYS, ETAGS, st.sampled_from([2.0, 2.0, 4.0, 11.0]), st.sampled_from(["lost", "told", "late"])
)
TELL = st.tuples(st.just("tell"), st.integers(1, 3))
CALM = st.one_of(PUT, PUT, TELL, st.tuples(st.just("wait"), st.sampled_from([1.0, 11.0])))
SOMETHING = st.one_of(
    PUT,
    PUT,
    TELL,
    st.builds(lambda acts: ("sweep", *acts), st.lists(CALM, max_size=3)),
    st.sampled_from([("sweep",), ("wait", 11.0)]),
    st.sampled_from([("renew",), ("clock", -HOUR_MS), ("clock", HOUR_MS)]),
    st.tuples(st.sampled_from(["delete", "roll_back"]), KEYS),
    st.tuples(st.just("fail"), st.integers(1, 4)),
    st.sampled_from([("link", True), ("link", False)]),
)


async def live(world: World, history: Sequence[Act]) -> None:
    """What was there before, what happens, and the end of it."""
    await world.put(OLD, "one", 60.0, "lost")
    await world.wait(60.0)
    await world.sweep()
    for act in history:
        await world.act(act)
    await world.come_to_rest()


class StoredRings(MemoryRings):
    """As they are kept for real."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.store = RingStore(Database(file, keeps_connections=True), Scope("devices", "http://store"))

    def record(self, rings: Sequence[Ring]) -> None:
        """As `State.record`."""
        self.store.record(rings)

    def of_keys(self, keys: Sequence[str]) -> Mapping[str, Sequence[Ring]]:
        """As `State.of_keys`."""
        self.on_look()
        found = self.store.of_keys(keys)
        self.on_look()
        return found

    def forget_gone(self, prefix: str, after: str, upto: str | None, keys: Collection[str]) -> int:
        """As `State.forget_gone`."""
        return self.store.forget_gone(prefix, after, upto, keys)

    def progress(self, prefix: str) -> PrefixProgress | None:
        """As `State.progress`."""
        return self.store.progress(prefix)

    def begin(self, prefix: str, t0: int) -> PrefixProgress:
        """As `State.begin`."""
        return self.store.begin(prefix, t0, lost=False)

    def complete(self, prefix: str) -> None:
        """As `State.complete`."""
        self.store.complete(prefix)


def judge(world: World) -> None:
    """In the end devices have of each key what a LIST shows, unless an old version came back; nothing rang twice."""
    assert OLD not in world.fetched
    for key, listed in world.bucket.objects.items():
        if key != OLD and key not in world.rolled_back:
            assert world.fetched.get(key) == listed.etag, key
    assert all(count == 1 for count in world.heard.values()), world.heard


@pytest.mark.parametrize("tells_modified", [True, False])
@tries(300)
@given(history=st.lists(SOMETHING, min_size=1, max_size=12))
def test_a_search_for_a_history_that_loses_a_file_or_rings_twice(
    history: Sequence[Act], *, tells_modified: bool
) -> None:
    """Devices have in the end what a LIST shows, no upload rings twice in one life, and nothing deleted rings."""

    async def scenario() -> World:
        world = World(tells_modified=tells_modified)
        await live(world, history)
        return world

    judge(asyncio.run(scenario()))


@pytest.mark.parametrize("tells_modified", [True, False])
@tries(25)
@given(history=st.lists(SOMETHING, min_size=1, max_size=12))
def test_the_same_search_with_the_database_that_is_used(
    empty_database: Path, history: Sequence[Act], *, tells_modified: bool
) -> None:
    """What is kept of a key, and forgotten, is enough."""

    async def scenario() -> World:
        with tempfile.TemporaryDirectory() as directory:
            file = Path(directory) / "state.db"
            shutil.copy(empty_database, file)
            rings = StoredRings(file)
            world = World(tells_modified=tells_modified, rings=rings)
            await live(world, history)
            rings.store.close()
        return world

    judge(asyncio.run(scenario()))


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its tables, and nothing in them."""
    file = tmp_path_factory.mktemp("database") / "empty.db"
    upgrade(file)
    return file
