"""The sweep beside doors, and its way with the broker: graces, repeats, what is on its way, pace, failures, cameras."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import pytest

from functions.events.routes import Detection
from functions.mqtt.outcome import Outcome, Status
from functions.s3.clients import StorageError
from infra.host.causes import RETRY_SECONDS
from infra.host.detections import HostReader, Reading
from infra.host.sweep import ledger as ledger_module
from infra.host.sweep.judge import ListedObject, Young
from infra.host.sweep.listing import ListPage
from tests.fakes.swept import (
    DAY_MS,
    FORBIDDEN,
    REFUSED,
    UNCONFIRMED,
    A,
    B,
    SweptHost,
    again,
    ceph_event,
    lines,
    minio_event,
    new_host,
    swept_once,
    told,
    until_swept,
)
from tests.hostile.searching import strict_log
from tests.hosts import on_uvloop, until

# Clocks.


@pytest.mark.parametrize("ahead_ms", [-3_600_000, -1, 0, 3_600_000, 365 * DAY_MS])
@on_uvloop
async def test_a_file_rings_once_the_grace_has_passed_by_either_clock(ahead_ms: int) -> None:
    """However the store dates it: one that is dated ahead has been seen for so long."""
    host = await swept_once(grace_seconds=10.0)
    host.bucket.put(A, "e", host.bucket.now + ahead_ms)
    rang = await host.sweep()
    assert rang == ([(A, "e")] if ahead_ms <= -10_000 else [])
    host.pass_time(9.5)
    rang += await host.sweep()
    host.pass_time(2)
    rang += await host.sweep()
    assert rang == [(A, "e")]


@on_uvloop
async def test_a_file_that_changes_is_young_again() -> None:
    """Its grace begins with each content."""
    host = await swept_once(grace_seconds=10.0)
    for content in ("one", "two", "three"):
        host.bucket.put(A, content, host.bucket.now + 3_600_000)
        assert await host.sweep() == []
        host.pass_time(6)
    assert await host.sweep() == []
    host.pass_time(5)
    assert await host.sweep() == [(A, "three")]


def test_the_young_are_bounded() -> None:
    """The oldest of them are forgotten, and are young again at the next sweep."""
    young = Young(limit=100)
    for number in range(1000):
        assert young.is_young(ListedObject(f"{number}", "e", 1_000_000, 1), 0, number, 10.0)
    assert not young.is_young(ListedObject("999", "e", 1_000_000, 1), 0, 2000.0, 10.0)
    assert young.is_young(ListedObject("1", "e", 1_000_000, 1), 0, 2000.0, 10.0)


@on_uvloop
async def test_the_grace_is_short_where_no_store_tells_and_long_where_one_does() -> None:
    """A rule at the bucket, a queue to poll, or an event that has come."""
    for terms, prepare, grace in (
        ({}, None, False),
        ({"polls": True}, None, True),
        ({}, "rules", True),
        ({}, "event", True),
        ({"grace_seconds": 0.0, "polls": True}, None, False),
    ):
        host = new_host(**terms)
        host.bucket.rules = prepare == "rules"
        host.pass_time(60)
        await host.sweep()
        if prepare == "event":
            await host.event(minio_event(host.bucket.put(B, "e")), "fast")
        host.pass_time(5)
        host.bucket.put(A, "e")
        assert await host.sweep() == ([] if grace else [(A, "e")])
        host.pass_time(11)
        assert await host.sweep() == ([(A, "e")] if grace else [])


# Doors.


@pytest.mark.parametrize("event", ["minio", "ceph"])
@on_uvloop
async def test_what_a_door_announced_is_not_swept(event: str) -> None:
    """Neither in the same life of the host, nor in the next."""
    host = await swept_once(grace_seconds=0.0)
    listed = host.bucket.put(A, "e")
    told_event = minio_event(listed) if event == "minio" else ceph_event(listed, listed.modified + 1200)
    assert await host.event(told_event) == ["delivered"]
    assert await host.sweep() == await again(host, grace_seconds=0.0).sweep() == []


@pytest.mark.parametrize("source", ["sure", "fast", "sqs"])
@pytest.mark.parametrize("event", ["minio", "ceph"])
@on_uvloop
async def test_an_event_that_comes_after_the_sweep_is_a_repeat_once(event: str, source: str) -> None:
    """However often that event comes; another upload of the same bytes is none."""
    host = await swept_once(grace_seconds=0.0)
    make = minio_event if event == "minio" else ceph_event
    listed = host.bucket.put(A, "e")
    assert await host.sweep() == [(A, "e")]
    for _ in range(3):
        assert await host.event(make(listed, listed.modified + 1500), source) == ["repeated"]
    listed = host.bucket.put(A, "e", listed.modified + 3000)
    assert await host.event(make(listed, listed.modified), source) == ["delivered"]
    assert await host.sweep() == []


@on_uvloop
async def test_an_event_that_comes_while_the_sweeps_message_is_on_its_way_joins_it() -> None:
    """It has the id of that message, and no message of its own."""
    host = await swept_once(grace_seconds=0.0)
    listed = host.bucket.put(A, "e")
    host.publisher.holds = True
    sweeping = asyncio.create_task(host.sweeper.sweep())
    await until(lambda: host.publisher.held)
    event = asyncio.create_task(host.event(ceph_event(listed, listed.modified)))
    await asyncio.sleep(0.01)
    (pending,) = host.publisher.held
    pending.done.set_result(Outcome(Status.DELIVERED))
    assert await event == ["repeated"]
    await sweeping
    assert len(host.publisher.held) == 1
    assert host.metric("sweep_rang_total") == 1


@on_uvloop
async def test_what_is_on_its_way_from_a_door_is_not_swept() -> None:
    """It is left to the next sweep, which finds that it rang."""
    host = await swept_once(grace_seconds=0.0)
    listed = host.bucket.put(A, "e")
    host.publisher.holds = True
    event = asyncio.create_task(host.event(ceph_event(listed, listed.modified)))
    await asyncio.sleep(0.01)
    assert await host.sweep() == []
    (pending,) = host.publisher.held
    pending.done.set_result(Outcome(Status.DELIVERED))
    await event
    assert await host.sweep() == []
    assert len(host.publisher.held) == 1


@on_uvloop
async def test_a_list_that_is_older_than_what_rang_meanwhile_is_no_rollback() -> None:
    """A door announced the next content while the page was on its way."""
    host = await swept_once(grace_seconds=0.0)
    await host.event(minio_event(host.bucket.put(A, "one")))
    host.pass_time(60)
    page = host.bucket.page

    def slow(prefix: str, token: str = "", *, limit: int = 1000) -> ListPage:
        found = page(prefix, token, limit=limit)
        if prefix == "assets/":
            host.pass_time(1)
            event = host.event(minio_event(host.bucket.put(A, "two")))
            asyncio.run_coroutine_threadsafe(event, loop).result(5)
        return found

    loop = asyncio.get_running_loop()
    host.bucket.page = slow  # type: ignore[method-assign]
    assert await host.sweep() == [(A, "two")]  # the door's message
    assert host.metric("sweep_rollbacks_total") == 0


@on_uvloop
async def test_what_rings_between_two_sweeps_is_not_remembered_by_key() -> None:
    """A sweep may be a week away, and a million keys may ring until then."""
    host = await swept_once(grace_seconds=0.0)
    await host.event(minio_event(host.bucket.put(A, "e")))
    assert not host.ledger.is_busy(A)
    host.ledger.listen()
    await host.event(minio_event(host.bucket.put(B, "e")))
    assert host.ledger.is_busy(B)
    host.bucket.fails_at = 2
    with pytest.raises(StorageError):
        await host.sweep()
    await host.event(minio_event(host.bucket.put(B, "f")))
    assert not host.ledger.is_busy(B)


@on_uvloop
async def test_a_door_and_the_sweep_remember_a_bounded_number_of_messages(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest of the sweep's messages is forgotten: an event of it that comes then rings again."""
    monkeypatch.setattr(ledger_module, "MAX_KEYS", 10)
    host = await swept_once(grace_seconds=0.0)
    uploads = [host.bucket.put(f"assets/{number:02}", "e", host.bucket.now + number) for number in range(11)]
    assert len(await host.sweep()) == 11
    told_again = [await host.event(ceph_event(listed, listed.modified)) for listed in uploads]
    assert told_again == [["delivered"]] + [["repeated"]] * 10


# Announcing.


@on_uvloop
async def test_more_than_sweep_max_rings_wait_and_the_newest_go_first() -> None:
    """10,000 files while the host was down: each sweep announces its share, oldest first, and says how many wait."""
    host = await swept_once(max_rings=400, grace_seconds=0.0)
    host.bucket.page_objects = 1000
    for number in range(1000):
        host.pass_time(1)
        host.bucket.put(f"assets/{number:05}", "e")
    for begin, end, waiting in ((600, 1000, 600), (200, 600, 200), (0, 200, 0), (0, 0, 0)):
        with strict_log() as said:
            rang = [key for key, _ in await host.sweep()]
        assert rang == [f"assets/{number:05}" for number in range(begin, end)]
        assert host.metric("sweep_waiting") == waiting
        errors = lines(said, "ERROR")
        assert [line["waiting"] for line in errors] == ([waiting] if waiting else [])
        assert all("SWEEP_MAX_RINGS" in line["message"] for line in errors)


@on_uvloop
async def test_rings_are_paced() -> None:
    """At 100 a second, 50 take half a second."""
    host = await swept_once(rings_per_second=100)
    for number in range(50):
        host.bucket.put(f"assets/{number:05}", "e")
    begun_at = asyncio.get_running_loop().time()
    assert len(await host.sweep()) == 50
    assert asyncio.get_running_loop().time() - begun_at >= 0.45


@on_uvloop
async def test_nothing_is_listed_or_announced_while_the_link_is_down() -> None:
    """A link that is lost in the middle leaves the rest to the next sweep."""
    host = await swept_once(grace_seconds=0.0)
    for number in range(9):
        host.bucket.put(f"assets/{number}", "e")
    submit = host.publisher.submit

    def lose_the_fourth(message: Any) -> Any:  # noqa: ANN401 - a message
        host.publisher.away = len(host.publisher.messages) == 3
        return submit(message)

    host.publisher.submit = lose_the_fourth  # type: ignore[method-assign]
    assert len(await host.sweep()) == 3
    calls = host.bucket.calls
    sweeping = asyncio.create_task(host.sweep())
    await asyncio.sleep(0.05)
    assert host.bucket.calls == calls
    host.publisher.submit = submit  # type: ignore[method-assign]
    host.publisher.away = False
    assert len(await sweeping) == 6
    assert host.metric("events_total", source="sweep", outcome="unconfirmed") == 1


@on_uvloop
async def test_what_is_refused_for_good_is_not_tried_again_and_what_may_pass_is() -> None:
    """A message that is too large, say, and one that was not confirmed."""
    host = await swept_once(grace_seconds=0.0)
    for answer, tries in ((REFUSED, 1), (UNCONFIRMED, 3), (FORBIDDEN, 3)):
        host.bucket.put(f"assets/{answer.reason_code}", "e")
        host.publisher.answer = answer
        begin = host.metric("events_total", source="sweep", outcome=answer.status.value)
        for _ in range(3):
            await host.sweep()
        assert host.metric("events_total", source="sweep", outcome=answer.status.value) - begin == tries
        host.publisher.answer = Outcome(Status.DELIVERED)
        assert len(await host.sweep()) == (answer is not REFUSED)


def swept(host: SweptHost) -> float:
    """How often the sweep has tried to announce something."""
    outcomes = ("delivered", "refused", "gave_up", "repeated", "unconfirmed")
    return sum(host.metric("events_total", source="sweep", outcome=outcome) for outcome in outcomes)


@pytest.mark.parametrize("source", ["sure", "sweep"])
@on_uvloop
async def test_what_was_given_up_is_left_alone_until_its_cause_ends_or_the_host_restarts(source: str) -> None:
    """It is announced once then: by whoever gave it up, or by the sweep of the next process."""
    for restarts in (False, True):
        host = await swept_once(grace_seconds=0.0)
        host.publisher.answer = FORBIDDEN
        listed = host.bucket.put(A, "e")
        event = ceph_event(listed, listed.modified)
        for seconds in (1, RETRY_SECONDS, 0):
            await (host.event(event) if source == "sure" else host.sweep())
            host.bell.holdups._causes.pass_time(seconds)  # noqa: SLF001 - an hour
        assert host.metric("events_total", source=source, outcome="gave_up") == 1
        tries = swept(host)
        await host.sweep()
        assert swept(host) == tries
        host.publisher.answer = Outcome(Status.DELIVERED)
        if restarts:
            host = again(host, grace_seconds=0.0)
            assert await host.sweep() == [(A, "e")]
        else:
            assert await host.sweep() == []
            host.bell.holdups._causes.pass_time(100)  # noqa: SLF001 - a minute: it is tried again
            host.bell.holdups.tick(0)
            assert [told(message) for message in host.publisher.messages] == [(A, "e")]
        assert await host.sweep() == []


@on_uvloop
async def test_only_the_host_that_leads_sweeps() -> None:
    """Another one lists nothing."""
    host = await swept_once(grace_seconds=0.0)
    host.bucket.put(A, "e")
    host.rung.store.leads = False
    calls = host.bucket.calls
    assert await host.sweep() == []
    assert host.bucket.calls == calls
    host.rung.store.leads = True
    assert await host.sweep() == [(A, "e")]


@on_uvloop
async def test_a_store_that_fails_is_said_once_for_each_spell() -> None:
    """And when it is over; the sweep tries on."""
    host = await swept_once(pause_seconds=0.01)

    def broken(prefix: str, token: str = "", *, limit: int = 1000) -> ListPage:
        del prefix, token, limit
        host.bucket.calls += 1
        raise StorageError("InternalError", "500", status=500)

    page, host.bucket.page = host.bucket.page, broken  # type: ignore[method-assign]
    calls = host.bucket.calls
    with strict_log() as said:
        await host.sweeper.start()
        await until(lambda: host.bucket.calls >= calls + 5)
        host.bucket.page = page  # type: ignore[method-assign]
        host.bucket.put(A, "e")
        await until(lambda: host.publisher.messages)
        await until_swept(host, 3)
        await host.sweeper.stop()
    assert said.getvalue().count("cannot be swept") == said.getvalue().count("is swept again") == 1


# Cameras' events.


class Reader:
    """Reads nothing, and announces at once what it is given."""

    store_away = False

    def __init__(self) -> None:
        self.read: list[str] = []

    def submit(self, detection: Detection) -> Reading:
        """As `HostReader.submit`."""
        self.read.append(detection.object_key)
        reading = Reading()
        reading.done.set_result(Outcome(Status.DELIVERED))
        return reading


async def with_cameras(**terms: Any) -> tuple[SweptHost, Reader]:  # noqa: ANN401 - Terms' own
    """A host with EVENTS_PREFIX whose first sweep is over."""
    host = new_host(events_prefix="events/", **terms)
    reader = Reader()
    host.bell._reader = cast("HostReader", reader)  # noqa: SLF001 - it is made with one where there is a bucket to read
    host.bucket.put("events/porch/0.json", "e")
    host.bucket.put("events/porch/0.jpg", "e")
    host.pass_time(60)
    await host.sweep()
    assert reader.read == []
    return host, reader


@on_uvloop
async def test_a_cameras_young_event_is_announced_and_nothing_is_kept_of_an_old_one() -> None:
    """Younger than SWEEP_EVENTS_MAX_AGE_SECONDS; pictures ring nothing."""
    host, reader = await with_cameras(events_max_age_seconds=300)
    host.bucket.put("events/porch/1.json", "e")
    host.pass_time(301)
    host.bucket.put("events/porch/2.json", "e")
    host.bucket.put("events/porch/2.jpg", "e")
    await host.sweep()
    await host.sweep()
    assert reader.read == ["events/porch/2.json"]
    assert set(host.rung.store.by_key) == {"events/porch/2.json"}
    host.pass_time(2 * 24 * 3600)
    await host.sweep()
    assert not host.rung.store.by_key


@on_uvloop
async def test_an_event_is_no_news_once_its_camera_has_a_later_one() -> None:
    """Announced by a door, kept by the broker, or announced by the sweep; another camera's is news."""
    host, reader = await with_cameras(grace_seconds=0.0)
    host.bucket.put("events/porch/1.json", "e")
    host.bucket.put("events/door/1.json", "e")
    host.bucket.put("events/gate/1.json", "e")
    host.sweeper._kept = lambda camera: host.bucket.now if camera == "gate" else 0  # noqa: SLF001 - what the broker keeps
    host.pass_time(5)
    await host.event(minio_event(host.bucket.put("events/porch/2.json", "e")))
    host.sweeper._rounds = 0  # noqa: SLF001 - as after a start
    await host.sweep()
    assert reader.read == ["events/porch/2.json", "events/door/1.json"]


@on_uvloop
async def test_events_are_swept_at_the_start_and_then_where_no_door_speaks() -> None:
    """A list of all cameras' events costs as many calls as there are thousands of them."""
    host, reader = await with_cameras(grace_seconds=0.0)
    await host.event(minio_event(host.bucket.put(A, "e")))
    host.bucket.put("events/porch/1.json", "e")
    calls = host.bucket.calls
    await host.sweep()
    assert host.bucket.calls - calls == 2
    assert reader.read == []
    host.sweeper._rounds = 0  # noqa: SLF001 - as after a start
    await host.sweep()
    assert reader.read == ["events/porch/1.json"]


@on_uvloop
async def test_what_doors_announced_of_cameras_is_forgotten_after_a_day() -> None:
    """Although their events are not listed then: there may be ten thousand a day."""
    host, _ = await with_cameras()
    await host.event(minio_event(host.bucket.put("events/porch/1.json", "e")))
    await host.sweep()
    assert set(host.rung.store.by_key) == {"events/porch/1.json"}
    host.pass_time(2 * 24 * 3600)
    await host.sweep()
    assert not host.rung.store.by_key
