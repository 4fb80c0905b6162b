"""Several processes, and what breaks: killed while it writes, who leads, a server that goes and comes back."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import psycopg
import pytest

from functions.stored.database import Database
from functions.stored.errors import StoreUnavailableError
from functions.stored.postgresql import GRACE_SECONDS
from functions.stored.ring import KEPT, Ring
from functions.stored.rings import RingStore, Scope
from infra.local.postgres import Postgres
from infra.migrations.runner import upgrade
from tests.databases import execute, new_postgresql, new_sqlite
from tests.hosts import eventually
from tests.leftovers import nothing_left

ROOT = Path(__file__).parents[2]
SCOPE = Scope("bucket", "http://store:9000")
DEADLINE_SECONDS = 1.0
OURS = "application_name = 'bucketbell'"

# Records batch after batch and says the number of each as soon as it is written.
WRITER = """
import sys
from functions.stored.database import Database
from functions.stored.ring import Ring
from functions.stored.rings import RingStore, Scope
rings = RingStore(Database(sys.argv[1], keeps_connections=True), Scope("bucket", "http://store:9000"))
first = int(sys.argv[2])
for number in range(first, first + 10_000):
    batch = [Ring(f"k{key}", f"e{number}", number, True, number.to_bytes(8, "big") * 2) for key in range(50)]
    rings.record(batch)
    print(number, flush=True)
"""
LEADER = """
import sys
from functions.stored.database import Database
from functions.stored.rings import RingStore, Scope
rings = RingStore(Database(sys.argv[1]), Scope("bucket", "http://store:9000"))
for line in sys.stdin:
    print(rings.lead(), flush=True)
"""


def store(url: str, **more: float) -> RingStore:
    """A host's store, which waits a short time only."""
    return RingStore(Database(url, keeps_connections=True, **{"deadline_seconds": DEADLINE_SECONDS} | more), SCOPE)


@contextmanager
def child(script: str, *arguments: str) -> "Iterator[subprocess.Popen[str]]":
    """A Python process that is gone at the end."""
    with subprocess.Popen(
        [sys.executable, "-c", script, *arguments], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def hear(process: "subprocess.Popen[str]") -> str:
    """One line; pytest's deadline is ours."""
    assert process.stdout is not None
    return process.stdout.readline().strip()


def ask(process: "subprocess.Popen[str]") -> str:
    """What it answers to a line."""
    assert process.stdin is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return hear(process)


@pytest.fixture
def postgresql_url(postgres_server: Postgres) -> str:
    """A PostgreSQL database with its tables."""
    upgrade(url := new_postgresql(postgres_server))
    return url


def test_what_was_recorded_outlives_a_kill(migrated_url: str) -> None:
    """Killed in the midst of it, again and again: each batch is there whole or not at all, and no word was empty."""
    rings, said = store(migrated_url), 0
    for turn in range(4):
        with child(WRITER, migrated_url, str(said + 1)) as writer:
            for _ in range(10 + 3 * turn):
                said = int(hear(writer))
            time.sleep(0.003 * turn)
            writer.kill()
            assert writer.stdout is not None
            said = max([said, *(int(line) for line in writer.stdout.read().split("\n")[:-1] if line)])
        newest = {key: found[0].modified for key, found in rings.of_keys([f"k{key}" for key in range(50)]).items()}
        assert len(newest) == 50
        assert len(set(newest.values())) == 1, "half a batch"
        assert said <= newest["k0"] <= said + 1
        identity = newest["k0"].to_bytes(8, "big") * 2
        assert rings.known([identity, (10**9).to_bytes(16, "big")]) == {identity}
        said = newest["k0"]
    rings.close()


def test_several_hosts_record_at_once(postgresql_url: str) -> None:
    """None waits for the other for ever, nothing is lost, and the tables stay small."""
    with child(WRITER, postgresql_url, "1") as one, child(WRITER, postgresql_url, "100000") as other:
        for _ in range(30):
            first, second = int(hear(one)), int(hear(other))
    rings = store(postgresql_url)
    assert rings.known([number.to_bytes(8, "big") * 2 for number in (1, first, 100_000, second)]).__len__() == 4
    rings.record([Ring(f"k{key}", "last", 1, is_exact=True) for key in range(50)])
    assert execute(postgresql_url, "SELECT count(*) FROM sweep_rings") == [(50 * KEPT,)]
    rings.close()


def test_one_process_leads_until_it_is_gone(postgresql_url: str) -> None:
    """Of two on one server; a leader that is killed leads no more at once, and it is asked of a bucket each."""
    with child(LEADER, postgresql_url) as first:
        assert ask(first) == "True"
        with child(LEADER, postgresql_url) as second:
            assert [ask(second), ask(first), ask(second)] == ["False", "True", "False"]
            elsewhere = RingStore(Database(postgresql_url), Scope("other", SCOPE.endpoint))
            assert elsewhere.lead()
            elsewhere.close()
            first.send_signal(signal.SIGKILL)
            first.wait()
            eventually(lambda: ask(second) == "True")
    rings = store(postgresql_url)
    eventually(rings.lead)
    rings.close()


def test_a_leader_says_goodbye(postgresql_url: str) -> None:
    """`close` gives the lock back, and may be called twice."""
    first, second = store(postgresql_url), store(postgresql_url)
    assert first.lead()
    assert not second.lead()
    first.close()
    first.close()
    eventually(second.lead)
    second.close()


def test_the_leaders_connection_outlives_the_deadline_of_a_question(postgresql_url: str) -> None:
    """The watch that ends a blocking wait belongs to a question, not to the connection."""
    rings, other = store(postgresql_url, deadline_seconds=0.2), store(postgresql_url)
    assert rings.lead()
    before = execute(postgresql_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'")
    time.sleep(0.2 + 2 * GRACE_SECONDS)
    assert not other.lead()
    assert rings.lead()
    assert execute(postgresql_url, "SELECT pid FROM pg_locks WHERE locktype = 'advisory'") == before
    rings.close()


def test_whose_connection_was_lost_does_not_lead(postgresql_url: str) -> None:
    """Another may have taken the lock meanwhile: it is asked for anew."""
    rings, other = store(postgresql_url), store(postgresql_url)
    assert rings.lead()
    execute(postgresql_url, "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'")
    eventually(other.lead)
    assert not rings.lead()
    other.close()
    eventually(rings.lead)
    rings.close()


def test_a_server_that_restarts_is_used_again(postgres_server: Postgres, postgresql_url: str) -> None:
    """Away it is said in words; back, no connection that was kept is in the way, neither for rings nor for the lead."""
    rings = store(postgresql_url)
    rings.record([Ring("k", "e", 1, is_exact=True, identity=b"1" * 16)])
    assert rings.lead()
    postgres_server.stop()
    try:
        for call in (lambda: rings.known([b"1" * 16]), lambda: rings.record([Ring("k", "f", 2, is_exact=True)])):
            with pytest.raises(StoreUnavailableError, match="cannot be used"):
                call()
        with pytest.raises(StoreUnavailableError, match="does not answer"):
            rings.lead()
    finally:
        postgres_server.start()
    assert rings.known([b"1" * 16])
    assert rings.lead()
    rings.close()


def test_a_restart_between_two_questions_goes_unnoticed(postgres_server: Postgres, postgresql_url: str) -> None:
    """A connection that was kept has been closed by the server: that is seen before it is used."""
    rings = store(postgresql_url)
    rings.known([b"1" * 16])
    postgres_server.stop()
    postgres_server.start()
    assert rings.known([b"1" * 16]) == set()
    rings.close()


def test_a_connection_is_kept_for_the_next_question(postgresql_url: str) -> None:
    """The server would have to begin a process for each event; and whoever closes leaves none."""
    rings = store(postgresql_url)
    backend = f"SELECT pid FROM pg_stat_activity WHERE {OURS} AND datname = current_database()"  # noqa: S608 - a constant
    rings.known([b"1" * 16])
    before = execute(postgresql_url, backend)
    time.sleep(DEADLINE_SECONDS + 2 * GRACE_SECONDS)
    for _ in range(5):
        rings.known([b"1" * 16])
    assert execute(postgresql_url, backend) == before
    assert len(before) == 1
    rings.close()
    eventually(lambda: execute(postgresql_url, backend) == [])


def test_a_kept_connection_to_a_server_that_hangs_is_given_up(postgres_server: Postgres, postgresql_url: str) -> None:
    """Each question has its deadline, the last as the first; and so has the question who leads."""
    rings = store(postgresql_url)
    assert rings.lead()
    rings.known([b"1" * 16])
    children = Path(f"/proc/{postgres_server.pid}/task/{postgres_server.pid}/children").read_text().split()
    halted = [postgres_server.pid, *map(int, children)]
    for pid in halted:
        os.kill(pid, signal.SIGSTOP)
    try:
        for call in (lambda: rings.known([b"1" * 16]), rings.lead):
            with pytest.raises(StoreUnavailableError):
                call()
    finally:
        for pid in halted:
            os.kill(pid, signal.SIGCONT)
    assert rings.known([b"1" * 16]) == set()
    eventually(rings.lead)
    rings.close()


def test_nothing_is_left_open(migrated_url: str) -> None:
    """Neither descriptors nor threads, of rings that were used and closed."""
    with nothing_left():
        for _ in range(5):
            rings = store(migrated_url)
            assert rings.lead()
            rings.record([Ring("k", "e", 1, is_exact=True)])
            rings.of_keys(["k"])
            rings.close()


def test_a_locked_file_is_said(tmp_path: Path) -> None:
    """Another process that holds it for long; afterwards all is as it was."""
    upgrade(url := new_sqlite(tmp_path))
    rings = store(url)
    with closing(sqlite3.connect(tmp_path / "settings.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(StoreUnavailableError, match="locked: try again"):
            rings.record([Ring("k", "e", 1, is_exact=True)])
        assert rings.of_keys(["k"]) == {}
    rings.record([Ring("k", "e", 1, is_exact=True)])
    assert rings.of_keys(["k"])


def test_rings_and_settings_share_a_server(postgresql_url: str) -> None:
    """A transaction of somebody else that lasts is in nobody's way but that of a row it has changed."""
    rings = store(postgresql_url)
    with psycopg.connect(postgresql_url, connect_timeout=30) as other:
        other.execute("INSERT INTO removed_cameras VALUES ('c', now())")
        rings.record([Ring("k", "e", 1, is_exact=True)])
    rings.close()
