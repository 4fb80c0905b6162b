"""The sweep, on a bucket and a broker in memory: what it announces, what it leaves alone, and what it says."""

from __future__ import annotations

import asyncio
import tracemalloc
from typing import Any

import pytest

from functions.s3.clients import StorageError
from functions.stored.errors import StoreUnavailableError
from functions.stored.ring import Ring
from infra.host.sweep import sweeper as sweeper_module
from infra.host.sweep.judge import ListedObject
from infra.host.sweep.listing import ListPage
from tests.fakes.swept import (
    CONFIG,
    DAY_MS,
    EPOCH_MS,
    A,
    B,
    Bucket,
    MemoryRings,
    SweptHost,
    again,
    lines,
    minio_event,
    new_host,
    swept_once,
    told,
    until_swept,
)
from tests.hostile.searching import strict_log
from tests.hosts import on_uvloop, until

# The first sweep.


@on_uvloop
async def test_what_was_there_before_the_first_sweep_counts_as_announced() -> None:
    """What came after its beginning is announced, whatever page it is on, and once."""
    host = new_host()
    for number in range(7):
        host.bucket.put(f"assets/{number}", "e")
    host.pass_time(60)
    late: list[str] = []

    def upload() -> None:
        if not late:
            late.extend(("assets/0-late", "assets/9-late", CONFIG))
            for key in late:
                host.bucket.put(key, "e", host.bucket.now + 300)

    host.rung.store.on_look = upload
    rang = await host.sweep()
    assert {key for key, _ in rang} <= set(late)
    rang += await host.sweep()
    assert sorted(key for key, _ in rang) == sorted(late)
    assert await host.sweep() == []


@on_uvloop
async def test_the_first_sweep_goes_on_after_a_restart_from_where_its_time_began() -> None:
    """A page that fails ends the round: its keys are neither announced nor counted as announced."""
    host = new_host()
    for number in range(9):
        host.bucket.put(f"assets/{number}", "e")
    host.pass_time(60)
    host.bucket.fails_at = 4  # the time, configs, the first page of assets, and this one
    with pytest.raises(StorageError):
        await host.sweep()
    host.pass_time(3600)
    host.bucket.put("assets/9", "e")
    host = again(host)
    assert await host.sweep() == [("assets/9", "e")]


@on_uvloop
async def test_a_page_that_always_fails_keeps_nothing_else_from_being_announced() -> None:
    """The pages before it, and the other prefixes."""
    host = await swept_once()
    for key in (CONFIG, *(f"assets/{number}" for number in range(9))):
        host.bucket.put(key, "e")
    rang = []
    for _ in range(2):
        host.bucket.fails_at = 3
        with pytest.raises(StorageError):
            await host.sweep()
        await host.rung.flush()
        rang.append(sorted(told(message)[0] for message in host.publisher.messages))
    assert rang == [["assets/0", "assets/1", "assets/2", CONFIG]] * 2
    assert len(await host.sweep()) == 6


@on_uvloop
async def test_a_store_whose_clock_is_set_back_during_the_first_sweep_loses_nothing() -> None:
    """What is uploaded then is dated before the beginning."""
    host = new_host()
    for number in range(5):
        host.bucket.put(f"assets/{number}", "e", EPOCH_MS - DAY_MS)

    def set_back() -> None:
        host.rung.store.on_look = lambda: None
        host.bucket.now -= 3_600_000
        host.bucket.put("assets/9", "e")

    host.rung.store.on_look = set_back
    assert await host.sweep() == [("assets/9", "e")]


@on_uvloop
async def test_a_prefix_that_is_new_has_a_beginning_of_its_own() -> None:
    """CONFIGS_PREFIX changed: what lies there already is not announced, what comes then is."""
    host = await swept_once()
    host.bucket.put("devices/aa-bb-cc-dd-ee-ff.json", "e")
    host.pass_time(60)
    moved = again(host, prefixes=("devices/", "assets/"))
    moved.bell.routes = moved.routes.__class__("devices/", "assets/", "iotsupport", "devices")
    assert await moved.sweep() == []
    moved.bucket.put("devices/aa-bb-cc-dd-ee-00.json", "e")
    moved.bucket.put(B, "e")
    assert {key for key, _ in await moved.sweep()} == {"devices/aa-bb-cc-dd-ee-00.json", B}


@on_uvloop
async def test_without_a_broker_nothing_is_listed_and_the_time_begins_when_there_is_one() -> None:
    """A broker that is configured a month later: what was uploaded before counts as announced."""
    host = new_host()
    host.publisher.configured = False
    await host.sweeper.start()
    await asyncio.sleep(0.05)
    host.bucket.put(A, "e")
    host.pass_time(30 * 24 * 3600)
    assert host.bucket.calls == 0
    host.publisher.configured = True
    await until_swept(host, 1)
    await host.sweeper.stop()
    assert host.publisher.messages == []
    host.bucket.put(B, "e")
    assert await host.sweep() == [(B, "e")]


@on_uvloop
async def test_the_time_begins_although_the_broker_is_away() -> None:
    """What is uploaded before it is back for the first time is announced then."""
    host = new_host()
    host.publisher.away = True
    await host.sweeper.start()
    await until(lambda: host.rung.store.prefixes)
    host.pass_time(60)
    host.bucket.put(A, "e")
    host.publisher.away = False
    await until_swept(host, 1)
    await host.sweeper.stop()
    assert [told(message) for message in host.publisher.messages] == [(A, "e")]


@on_uvloop
async def test_when_the_state_is_lost_what_is_young_is_announced_again() -> None:
    """Younger than SWEEP_CATCH_UP_SECONDS; the rest counts as announced, and the log says how many of each."""
    host = new_host(catch_up_seconds=3600)
    host.rung.store.is_lost = True
    host.bucket.put(A, "e")
    host.pass_time(3601)
    host.bucket.put(B, "e")
    host.pass_time(1800)
    with strict_log() as said:
        assert await host.sweep() == [(B, "e")]
    (line,) = lines(said, "WARNING")
    assert "SWEEP_CATCH_UP_SECONDS" in line["message"]
    assert (line["announced"], line["counted_as_announced"]) == (1, 1)
    assert await host.sweep() == []


# Later.


@on_uvloop
async def test_an_unchanged_bucket_costs_its_pages_and_writes_nothing() -> None:
    """One LIST for each page of each prefix."""
    host = await swept_once()
    for number in range(8):
        host.bucket.put(f"assets/{number}", "e")
    await host.sweep()
    calls, writes = host.bucket.calls, host.rung.store.writes
    assert await host.sweep() == []
    assert host.bucket.calls - calls == 1 + 3
    assert host.rung.store.writes == writes
    assert host.metric("sweep_list_calls_total") == host.bucket.calls


@on_uvloop
async def test_a_key_that_is_overwritten_twice_between_two_sweeps_rings_once_with_the_last() -> None:
    """Also where the last content is the first one again."""
    host = await swept_once()
    host.bucket.put(A, "one")
    assert await host.sweep() == [(A, "one")]
    for content in ("two", "three"):
        host.pass_time(1)
        host.bucket.put(A, content)
    assert await host.sweep() == [(A, "three")]
    for content in ("two", "three"):
        host.pass_time(1)
        host.bucket.put(A, content)
    assert await host.sweep() == [(A, "three")]


@on_uvloop
async def test_a_content_that_comes_back_is_counted_once_and_not_announced() -> None:
    """A version was deleted; and a deletion rings nothing."""
    host = await swept_once()
    first = host.bucket.put(A, "one")
    await host.sweep()
    host.pass_time(60)
    host.bucket.put(A, "two")
    await host.sweep()
    host.bucket.objects[A] = first
    assert await host.sweep() == await host.sweep() == []
    assert host.metric("sweep_rollbacks_total") == 1
    del host.bucket.objects[A]
    assert await host.sweep() == []


@on_uvloop
async def test_a_key_that_is_renamed_rings_under_its_new_name() -> None:
    """A file moved within a store's folder keeps its date."""
    host = await swept_once()
    host.bucket.put(A, "e")
    await host.sweep()
    host.pass_time(600)
    moved = host.bucket.objects.pop(A)
    host.bucket.put(B, "e", moved.modified)
    assert await host.sweep() == [(B, "e")]


@on_uvloop
async def test_a_file_that_keeps_an_old_date_is_announced() -> None:
    """No date is compared with the last sweep's: a copied file is dated as the one that it was copied from."""
    host = await swept_once()
    host.bucket.put(A, "", EPOCH_MS - 365 * DAY_MS)
    assert await host.sweep() == [(A, "")]
    assert await host.sweep() == []
    host.bucket.put(A, "", EPOCH_MS - 364 * DAY_MS)
    assert await host.sweep() == [(A, "")]


@on_uvloop
async def test_a_key_that_is_gone_for_a_day_is_forgotten_where_the_store_lists_in_order() -> None:
    """One that is there stays, however old; a store that shows nothing at all makes nobody forget."""
    host = await swept_once()
    for key in (A, B, "assets/z"):
        host.bucket.put(key, "e")
    await host.sweep()
    rings = host.rung.store.by_key
    del host.bucket.objects[B]
    host.pass_time(2 * 24 * 3600)
    kept, host.bucket.objects = host.bucket.objects, {}
    await host.sweep()
    host.bucket.objects = kept
    assert {A, B, "assets/old", "assets/z"} <= rings.keys()
    await host.sweep()  # a whole LIST in order, and then
    await host.sweep()
    assert rings.keys() == {A, "assets/old", "assets/z"}
    assert await host.sweep() == []


@on_uvloop
async def test_where_pages_come_in_another_order_nothing_is_forgotten_or_announced_twice() -> None:
    """A key that comes on a later page than its bytes say is not gone."""
    host = await swept_once()
    host.bucket.order = lambda key: key.replace("-", "\x7f")
    for key in ("assets/x-y", "assets/x/1", "assets/x/2", "assets/x/3", "assets/x/4"):
        host.bucket.put(key, "e")
    assert len(await host.sweep()) == 5
    for _ in range(3):
        host.pass_time(2 * 24 * 3600)
        assert await host.sweep() == []
    assert "assets/x-y" in host.rung.store.by_key
    assert host.metric("events_total", source="sweep", outcome="repeated") == 0  # or it was forgotten meanwhile


@on_uvloop
async def test_a_name_that_is_wrong_is_said_once_and_a_folder_not_at_all() -> None:
    """A store without events has nobody else to say it."""
    host = await swept_once()
    host.bucket.put("configs/kitchen.json", "e")
    host.bucket.put("assets/folder/", "e")
    with strict_log() as said:
        for _ in range(3):
            assert await host.sweep() == []
    assert said.getvalue().count("kitchen.json") == 1
    assert len(lines(said, "WARNING")) == 1
    assert host.metric("events_total", source="sweep", outcome="bad_config_name") == 1
    assert host.metric("events_total", source="sweep", outcome="folder_marker") == 0


@on_uvloop
async def test_nothing_is_compared_before_what_rang_is_noted() -> None:
    """A database that is away ends the round: what a door announced would be announced again."""
    host = await swept_once()
    await host.event(minio_event(host.bucket.put(A, "e")))
    host.rung.fails = True
    with pytest.raises(StoreUnavailableError):
        await host.sweep()
    host.rung.fails = False
    assert await host.sweep() == []


@on_uvloop
async def test_until_the_first_time_is_noted_it_is_tried_often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is uploaded before counts as announced, and the pause may be an hour."""
    monkeypatch.setattr(sweeper_module, "LOOK_SECONDS", 0.01)
    host = new_host(pause_seconds=3600.0)
    host.bucket.fails_at = 1
    await host.sweeper.start()
    await until(lambda: host.rung.store.prefixes)
    await until_swept(host, 1)
    await host.sweeper.stop()
    assert host.bucket.calls == 1 + 1 + 2


# A bucket of very many objects.


class Endless(Bucket):
    """Very many objects that never change, made page by page."""

    def __init__(self, count: int) -> None:
        super().__init__(page_objects=1000)
        self.count = count

    def page(self, prefix: str, token: str = "", *, limit: int = 1000) -> ListPage:
        """As `Lister.page`."""
        self.calls += 1
        begin = int(token or 0)
        end = min(begin + limit, self.count) if prefix == "assets/" else begin
        page = [ListedObject(f"{prefix}{number:07}", "e", EPOCH_MS - 1000, 1) for number in range(begin, end)]
        return ListPage(page, self.now, str(end) if begin < end < self.count else "")


class AllKnown(MemoryRings):
    """Knows every key as it is."""

    def of_keys(self, keys: Any) -> Any:  # noqa: ANN401 - as `MemoryRings`
        """As `RingStore.of_keys`."""
        return {key: [Ring(key, "e", EPOCH_MS - 1000, is_exact=True)] for key in keys}


@on_uvloop
async def test_very_many_unchanged_objects_take_no_more_memory_than_a_page(monkeypatch: pytest.MonkeyPatch) -> None:
    """And one LIST for each thousand."""
    monkeypatch.setattr(sweeper_module, "POLITENESS", 0)
    bucket = Endless(100_000)
    host = SweptHost(bucket, AllKnown())
    tracemalloc.start()
    await host.sweep()
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert bucket.calls == 1 + 1 + 100
    assert peak_bytes < 4 << 20
