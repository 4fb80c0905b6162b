"""What rings is noted beside the loop, and other hosts' rings are asked for: nothing ever waits for a database."""

import asyncio
import os
import signal
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from pathlib import Path

import pytest

from functions.settings import load
from functions.stored.ring import Ring
from infra.host.sweep import record
from infra.host.sweep.record import LAST_WORD_SECONDS, MAX_WAITING, Rung
from infra.host.sweep.state import CLOSE_SECONDS, State
from infra.local.postgres import Postgres
from tests.databases import execute, new_postgresql, new_sqlite
from tests.hosts import until
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

IDENTITY = b"1" * 16


def ring(number: int) -> Ring:
    """One of many."""
    return Ring(f"k{number}", "e", number, is_exact=False, identity=number.to_bytes(16, "big"))


@asynccontextmanager
async def running(url: str) -> AsyncIterator[Rung]:
    """A host's, which is patient, for the test is not of that; on PostgreSQL one of several."""
    sweeping = {"BUCKET": "b", "SWEEP_SECONDS": "60"} if url.startswith("sqlite") else {}
    state = State.of(load({"DATABASE_URL": url, **sweeping}).settings)
    assert state is not None
    rung = Rung(state, ask_seconds=PATIENCE_SECONDS)
    await rung.start()
    try:
        yield rung
    finally:
        await rung.stop()
        state.close()


@pytest.fixture
def postgresql_url(postgres_server: Postgres) -> str:
    """A PostgreSQL database; the tables are made by whoever needs them first."""
    return new_postgresql(postgres_server)


@contextmanager
def away(server: Postgres) -> Iterator[None]:
    """The server is stopped meanwhile."""
    server.stop()
    try:
        yield
    finally:
        server.start()


def noted(url: str) -> int:
    """How many events are known."""
    return int(execute(url, "SELECT count(*) FROM sweep_identities")[0][0])


def said(caplog: pytest.LogCaptureFixture, words: str) -> int:
    """How often that was said."""
    return sum(words in one.getMessage() for one in caplog.records)


async def test_what_rang_is_noted_soon(database_url: str) -> None:
    """Without anybody's asking for it; what comes later too."""
    async with running(database_url) as rung:
        for number in range(3):
            rung.rang(ring(number))
            await until(lambda number=number: noted_or_none(database_url) == number + 1)  # type: ignore[misc]  # binds


def noted_or_none(url: str) -> int | None:
    """As `noted`; the tables may not be made yet."""
    try:
        return noted(url)
    except Exception:  # noqa: BLE001 - either driver's own
        return None


async def test_what_waits_can_be_written_at_once(database_url: str) -> None:
    """`flush` says whether all of it is there; in more than one batch."""
    async with running(database_url) as rung:
        assert await rung.flush()
        for number in range(2500):
            rung.rang(ring(number))
        assert await rung.flush()
        assert noted(database_url) == 2500


async def test_the_end_of_a_process_writes_what_waits(database_url: str) -> None:
    """`stop` does, and may be called twice."""
    async with running(database_url) as rung:
        assert await rung.flush()
        rung.rang(ring(1))
        await rung.stop()
        await rung.stop()
        assert noted(database_url) == 1


async def test_what_rang_while_the_database_is_away_is_noted_later(
    postgres_server: Postgres, postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It is said once that it is away, and once that it is back; the loop waits for nothing."""
    async with running(postgresql_url) as rung:
        rung.rang(ring(0))
        assert await rung.flush()
        with away(postgres_server):
            for number in range(1, 1500):
                rung.rang(ring(number))
            assert not await rung.flush()
            assert not await rung.flush()
        await until(lambda: noted(postgresql_url) == 1500)
        await until(lambda: said(caplog, "can be noted again") == 1)
    assert said(caplog, "cannot be noted") == 1


async def test_what_waits_is_bounded(
    postgres_server: Postgres, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is given up: a sweep may announce it again."""
    assert MAX_WAITING * 500 < 20_000_000, "bytes, at half a kilobyte each"
    monkeypatch.setattr(record, "MAX_WAITING", 100)
    async with running(postgresql_url) as rung:
        assert await rung.flush()
        with away(postgres_server):
            for number in range(250):
                rung.rang(ring(number))
            assert not await rung.flush()
            rung.rang(ring(250))
        assert await rung.flush()
    newest = "SELECT identity FROM sweep_identities ORDER BY identity"
    assert execute(postgresql_url, newest) == [(number.to_bytes(16, "big"),) for number in range(151, 251)]


async def test_another_hosts_ring_is_known(postgresql_url: str) -> None:
    """Of many that are asked at once each gets its own answer; one that nobody rang is not known."""
    async with running(postgresql_url) as first, running(postgresql_url) as second:
        assert first.is_shared
        await second.ask(IDENTITY)
        for number in range(0, 100, 2):
            first.rang(ring(number))
        assert await first.flush()
        asked = [second.ask(ring(number).identity) for number in range(100)]
        assert [await one for one in asked] == [number % 2 == 0 for number in range(100)]


async def test_a_hosts_own_file_is_not_asked(tmp_path: Path) -> None:
    """Nobody else writes there: the answer is there at once."""
    async with running(new_sqlite(tmp_path)) as rung:
        assert not rung.is_shared
        assert rung.ask(IDENTITY).result() is False


async def test_who_knows_nothing_in_time_says_no(
    postgresql_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And nobody waits again until somebody has answered in time."""
    async with running(postgresql_url) as rung:
        rung.rang(ring(1))
        assert await rung.flush()
        assert await rung.ask(ring(1).identity) is True
        monkeypatch.setattr(rung, "_ask_seconds", 0.1)
        release, known = threading.Event(), rung.store.known

        def slow(identities: Sequence[bytes]) -> set[bytes]:
            release.wait(PATIENCE_SECONDS)
            return known(identities)

        monkeypatch.setattr(rung.store, "known", slow)
        assert await rung.ask(ring(1).identity) is False
        assert rung.ask(ring(1).identity).result() is False, "at once"
        assert said(caplog, "cannot be asked") == 1
        monkeypatch.setattr(rung, "_ask_seconds", PATIENCE_SECONDS)
        release.set()
        await until(lambda: said(caplog, "can be asked for again") == 1)
        assert await rung.ask(ring(1).identity) is True


async def test_a_database_that_is_away_holds_up_nothing(
    postgres_server: Postgres, postgresql_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """It rings rather twice than not at all; back, it is asked again."""
    async with running(postgresql_url) as rung:
        rung.rang(ring(1))
        assert await rung.flush()
        assert await rung.ask(ring(1).identity) is True
        with away(postgres_server):
            assert await rung.ask(ring(1).identity) is False
            assert rung.ask(ring(1).identity).result() is False, "at once"
        deadline = time.monotonic() + PATIENCE_SECONDS
        while await rung.ask(ring(1).identity) is False:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
    assert said(caplog, "cannot be asked") == 1


async def test_a_server_that_hangs_holds_up_nothing(
    postgres_server: Postgres, postgresql_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither an event that asks nor the end of the process; what waited is then lost, and may ring again."""
    async with running(postgresql_url) as rung:
        rung.rang(ring(1))
        assert await rung.flush()
        assert await rung.ask(ring(1).identity) is True
        monkeypatch.setattr(rung, "_ask_seconds", 0.1)
        with halted(postgres_server):
            asked = [rung.ask(ring(number).identity) for number in range(1000)]
            assert not any([await one for one in asked])
            rung.rang(ring(2))
            began_at = time.monotonic()
            await rung.stop()
            rung.store.close()
            assert time.monotonic() - began_at < 2 * LAST_WORD_SECONDS + CLOSE_SECONDS + SLACK_SECONDS


@contextmanager
def halted(server: Postgres) -> Iterator[None]:
    """The server and its processes stand still meanwhile."""
    children = Path(f"/proc/{server.pid}/task/{server.pid}/children").read_text().split()
    pids = [server.pid, *map(int, children)]
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


async def test_a_disk_that_is_full_is_said_and_what_waits_stays(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """SQLite gets no further page; when there is room, all of it is written."""
    url = new_sqlite(tmp_path)
    async with running(url) as rung:
        assert await rung.flush()
        rung.rang(ring(0))
        assert await rung.flush()
        with full():
            for number in range(1, 2000):
                rung.rang(ring(number))
            assert not await rung.flush()
        assert await rung.flush()
        assert noted(url) == 2000
    (reason,) = [vars(one)["reason"] for one in caplog.records if "cannot be noted" in one.getMessage()]
    assert "the disk is full: make room" in reason


@contextmanager
def full() -> Iterator[None]:
    """SQLite files may grow no more meanwhile."""
    from sqlalchemy import Pool, event  # noqa: PLC0415 - of this test alone

    def no_more_pages(connection: sqlite3.Connection, record: object) -> None:
        del record
        connection.execute("PRAGMA max_page_count = 1")  # SQLite makes it the present count

    event.listen(Pool, "connect", no_more_pages)
    try:
        yield
    finally:
        event.remove(Pool, "connect", no_more_pages)


async def test_a_locked_file_is_waited_for(tmp_path: Path) -> None:
    """Somebody looks into it with a tool of his own: nothing is lost, and the loop goes on."""
    url = new_sqlite(tmp_path)
    async with running(url) as rung:
        rung.rang(ring(0))
        assert await rung.flush()
        with closing(sqlite3.connect(tmp_path / "settings.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            rung.rang(ring(1))
            writing = asyncio.create_task(rung.flush())
            await asyncio.sleep(0.1)
            assert not writing.done()
            other.execute("ROLLBACK")
            assert await writing
        assert noted(url) == 2
