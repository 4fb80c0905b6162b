"""A database that is down, locked, full, read-only, not made, not ours: said in words, in time, without credentials."""

import os
import signal
import sqlite3
import stat
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql
from pydantic import SecretStr
from sqlalchemy import Pool, event

from functions.stored.database import Database
from functions.stored.errors import StoreUnavailableError
from functions.stored.model import MqttConfigChange
from functions.stored.postgresql import GRACE_SECONDS
from functions.stored.store import ConfigStore
from infra.local.postgres import Postgres
from infra.local.process import free_port
from infra.migrations.runner import upgrade
from tests.databases import new_key, new_postgresql, new_sqlite, store_of
from tests.leftovers import nothing_left
from tests.timing import PATIENCE_SECONDS, SLACK_SECONDS

DEADLINE_SECONDS = 1.0
NOBODY = 65534
CANARY = "canary-5f3a"
NOW = datetime(2026, 11, 21, tzinfo=UTC)
STATUS = {
    "process": "host-1",
    "scope": "host",
    "connected": False,
    "since": NOW,
    "messages_published": 0,
    "reconnect_attempts": 0,
    "recorded_at": NOW,
}
CHANGE = MqttConfigChange(broker_host="b", topic_prefix="x")


def hasty(url: str) -> ConfigStore:
    """A store that waits a short time only."""
    return ConfigStore(Database(url, deadline_seconds=DEADLINE_SECONDS), None)


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Fail when it took longer."""
    started = time.monotonic()
    yield
    assert time.monotonic() - started < seconds + SLACK_SECONDS


def refusal(store: ConfigStore, *, saving: bool = False) -> str:
    """What the store says of its trouble; nothing of the driver's error is shown along with it."""
    with pytest.raises(StoreUnavailableError) as caught:
        store.save(CHANGE, expected_version=None) if saving else store.load()
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert CANARY not in "".join(traceback.format_exception(caught.value))
    return str(caught.value)


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """A SQLite database with its tables."""
    upgrade(url := new_sqlite(tmp_path))
    return url


@pytest.fixture
def postgresql_url(postgres_server: Postgres) -> str:
    """A PostgreSQL database with its tables."""
    upgrade(url := new_postgresql(postgres_server))
    return url


def file_of(url: str) -> Path:
    """SQLite's file."""
    return Path(url.removeprefix("sqlite:///"))


@pytest.fixture
def ordinary_directory() -> Iterator[Path]:
    """A directory of a user whom modes bind: where we are root, who may do all, we are somebody else for this test."""
    root = os.geteuid() == 0
    with tempfile.TemporaryDirectory() as name:
        if root:
            os.chown(name, NOBODY, -1)
            os.seteuid(NOBODY)
        try:
            yield Path(name)
        finally:
            if root:
                os.seteuid(0)


def test_without_its_tables_the_command_is_named(database_url: str) -> None:
    """Reading and writing say `bucketbell migrate`, and make nothing by the way."""
    for saving in (False, True):
        assert "bucketbell migrate" in refusal(store_of(database_url), saving=saving)
    if database_url.startswith("sqlite"):
        assert not file_of(database_url).exists()


@pytest.mark.parametrize("content", [b"", None])
def test_an_empty_sqlite_database_wants_its_tables(tmp_path: Path, content: bytes | None) -> None:
    """An empty file, or one with tables of somebody else."""
    url = new_sqlite(tmp_path)
    if content is None:
        with closing(sqlite3.connect(file_of(url))) as connection, connection:
            connection.execute("CREATE TABLE other (id INTEGER)")
    else:
        file_of(url).write_bytes(content)
    assert "bucketbell migrate" in refusal(store_of(url))


def test_a_new_sqlite_file_is_its_owners_alone(tmp_path: Path) -> None:
    """Mode 0600, and its journal too, whatever the umask."""
    before = os.umask(0)
    try:
        upgrade(url := new_sqlite(tmp_path))
        with Database(url).writing() as rows:
            rows.forget_statuses(before=datetime.now(UTC))
            rows.put_status(STATUS)
            modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in tmp_path.glob("settings*")}
    finally:
        os.umask(before)
    assert modes == {"settings.db": 0o600, "settings.db-journal": 0o600}


def test_a_locked_sqlite_database_is_waited_for_and_given_up(sqlite_url: str) -> None:
    """Readers go on; a writer says so after the deadline, and succeeds when the lock goes in time."""
    store = hasty(sqlite_url)
    with closing(sqlite3.connect(file_of(sqlite_url), isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert store.load() is None
        with within(DEADLINE_SECONDS):
            assert "locked: try again" in refusal(store, saving=True)
        release = threading.Timer(DEADLINE_SECONDS / 2, other.execute, ["ROLLBACK"])
        release.start()
        assert store.save(CHANGE, expected_version=0).version == 1
        release.join()


def test_a_full_disk_is_said(sqlite_url: str) -> None:
    """SQLite may take no further page: what was stored stays, and can be read."""
    store = store_of(sqlite_url, new_key())
    stored = store.save(CHANGE, expected_version=None)

    def no_more_pages(connection: Any, record: object) -> None:  # noqa: ANN401 - the driver's
        del record
        connection.execute("PRAGMA max_page_count = 1")  # SQLite makes it the present count

    large = MqttConfigChange(broker_host="b", topic_prefix="x", username="u", password=SecretStr(CANARY * 300))
    event.listen(Pool, "connect", no_more_pages)
    try:
        with pytest.raises(StoreUnavailableError, match="the disk is full: make room") as caught:
            store.save(large, expected_version=None)
        assert CANARY not in "".join(traceback.format_exception(caught.value))
        assert store.load() == stored
    finally:
        event.remove(Pool, "connect", no_more_pages)
    assert store.save(large, expected_version=1).version == 2


def test_a_read_only_sqlite_database_is_said(ordinary_directory: Path) -> None:
    """Owner and mode are what to look at."""
    upgrade(url := new_sqlite(ordinary_directory))
    file_of(url).chmod(0o400)
    assert "look at the owner and the mode" in refusal(store_of(url), saving=True)


def test_a_sqlite_database_that_cannot_be_made_is_said(ordinary_directory: Path) -> None:
    """A directory that is not there, or not ours."""
    with pytest.raises(StoreUnavailableError, match=r"No such file or directory\. Make its directory"):
        upgrade(new_sqlite(ordinary_directory / "nowhere"))
    (ordinary_directory / "closed").mkdir(mode=0o500)
    with pytest.raises(StoreUnavailableError, match="Permission denied"):
        upgrade(new_sqlite(ordinary_directory / "closed"))


def test_a_file_that_is_no_database_is_said(tmp_path: Path) -> None:
    """And it stays as it is."""
    url = new_sqlite(tmp_path)
    file_of(url).write_bytes(b"a letter to a friend\n" * 100)
    assert "not a SQLite database" in refusal(store_of(url))
    with pytest.raises(StoreUnavailableError, match="not a SQLite database"):
        upgrade(url)
    assert file_of(url).read_bytes() == b"a letter to a friend\n" * 100


@pytest.mark.parametrize("column", ["created_at", "version", "qos", "username", "password_encrypted"])
def test_a_sqlite_row_of_anything_is_no_crash(sqlite_url: str, column: str) -> None:
    """SQLite lets a hand write any kind of value into any column: it is explained, and gone with the row."""
    store = store_of(sqlite_url, new_key())
    store.save(CHANGE, expected_version=None)
    with closing(sqlite3.connect(file_of(sqlite_url))) as hand, hand:
        hand.execute("PRAGMA ignore_check_constraints = ON")
        hand.execute(f"UPDATE mqtt_config SET {column} = x'00ff'")  # noqa: S608 - of this test
    for saving in (False, True):
        assert "a row of mqtt_config was changed by hand" in refusal(store, saving=saving)
    with closing(sqlite3.connect(file_of(sqlite_url))) as hand, hand:
        hand.execute("DELETE FROM mqtt_config")
    assert store.save(CHANGE, expected_version=0).version == 1


def test_a_sqlite_path_is_taken_literally(tmp_path: Path) -> None:
    """Whatever characters a directory has."""
    directory = tmp_path / "100% a b&c=d;\N{SNOWMAN}"
    directory.mkdir()
    url = new_sqlite(directory)
    upgrade(url)
    assert [file.name for file in directory.glob("*.db")] == ["settings.db"]
    assert store_of(url).load() is None


def test_a_server_that_is_not_there_is_said() -> None:
    """Host and port are named, and the password of the URL is not."""
    port = free_port()
    said = refusal(hasty(f"postgresql://u:{CANARY}@127.0.0.1:{port}/settings"))
    assert f"the database settings at 127.0.0.1 port {port} cannot be used" in said
    assert "look at DATABASE_URL" in said


def test_a_server_that_refuses_us_is_said(postgres_server: Postgres) -> None:
    """A wrong password, and a database that does not exist."""
    said = refusal(hasty(postgres_server.url(password=CANARY)))
    assert "password authentication failed" in said
    assert 'database "nowhere" does not exist' in refusal(hasty(postgres_server.url("nowhere")))


def test_a_user_without_rights_is_said(postgres_server: Postgres, postgresql_url: str) -> None:
    """What to grant is the administrator's to know; that it is rights is said."""
    with psycopg.connect(postgresql_url, autocommit=True, connect_timeout=int(PATIENCE_SECONDS)) as administrator:
        name = sql.Identifier(f"guest_{free_port()}")
        administrator.execute(sql.SQL("CREATE ROLE {} LOGIN PASSWORD {}").format(name, sql.Literal(f"{CANARY}/@:%")))
    database = postgresql_url.rpartition("/")[2]
    guest = postgres_server.url(database, user=name.as_string().strip('"'), password=quote(f"{CANARY}/@:%", safe=""))
    assert "may not use the tables" in refusal(hasty(guest))


def test_a_locked_table_is_waited_for_and_given_up(postgresql_url: str) -> None:
    """A writer says so after the deadline, and readers go on."""
    store = hasty(postgresql_url)
    with psycopg.connect(postgresql_url, connect_timeout=int(PATIENCE_SECONDS)) as other:
        other.execute("LOCK TABLE mqtt_config IN SHARE ROW EXCLUSIVE MODE")
        assert store.load() is None
        with within(DEADLINE_SECONDS):
            assert "locked: try again" in refusal(store, saving=True)
    assert store.save(CHANGE, expected_version=0).version == 1


@pytest.fixture
def halt(postgres_server: Postgres) -> Iterator[Callable[[], None]]:
    """Halts the server and the processes, one each, that serve its connections, until the test ends."""
    halted: list[int] = []

    def stop_them_all() -> None:
        children = Path(f"/proc/{postgres_server.pid}/task/{postgres_server.pid}/children").read_text().split()
        halted.extend((postgres_server.pid, *map(int, children)))
        for pid in halted:
            os.kill(pid, signal.SIGSTOP)

    yield stop_them_all
    for pid in halted:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


def test_a_server_that_hangs_is_given_up(halt: Callable[[], None], postgresql_url: str) -> None:
    """With a connection, and while connecting: time-outs of the server's own would never come."""
    database = Database(postgresql_url, deadline_seconds=DEADLINE_SECONDS)
    store = ConfigStore(database, None)
    assert store.load() is None
    with within(DEADLINE_SECONDS + GRACE_SECONDS), pytest.raises(StoreUnavailableError, match="does not answer"):
        ask_after(halt, database)
    with within(2):  # psycopg's least
        assert "does not answer" in refusal(store)


def ask_after(halt: Callable[[], None], database: Database) -> None:
    """Ask on a connection whose server was halted."""
    with database.reading() as rows:
        halt()
        rows.config()


def test_a_server_that_hangs_at_first_is_given_up(halt: Callable[[], None], postgresql_url: str) -> None:
    """SQLAlchemy has questions of its own on the first connection: the deadline holds for them too."""

    def halt_once_connected(driver: object, record: object) -> None:
        del driver, record
        halt()

    event.listen(Pool, "connect", halt_once_connected, insert=True)
    try:
        with within(DEADLINE_SECONDS + GRACE_SECONDS):
            assert "does not answer" in refusal(hasty(postgresql_url))
    finally:
        event.remove(Pool, "connect", halt_once_connected)


def test_a_server_that_restarts_is_used_again(postgres_server: Postgres, postgresql_url: str) -> None:
    """No connection is kept, so none is found dead."""
    store = store_of(postgresql_url)
    stored = store.save(CHANGE, expected_version=None)
    postgres_server.stop()
    assert "does not answer" in refusal(store)
    postgres_server.start()
    assert store.load() == stored


def test_nothing_is_left_open(database_url: str) -> None:
    """Neither descriptors nor threads, after success and after failure."""
    # What watches over a connection ends by itself at the deadline: not while we look.
    store, nobody = (
        ConfigStore(Database(url, deadline_seconds=2 * PATIENCE_SECONDS), None)
        for url in (database_url, "postgresql://127.0.0.1:1/x")
    )
    upgrade(database_url)
    store.load()
    with nothing_left():
        for _ in range(10):
            store.load()
            refusal(nobody)
