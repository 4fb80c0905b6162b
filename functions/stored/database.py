"""The tables in SQLite or PostgreSQL: the only importer of SQLAlchemy.

Each transaction has a connection of its own, and nothing is pooled: transactions are rare, and a Lambda function would
find a pooled connection dead after a freeze.
"""

from __future__ import annotations

import os
import socket
import sqlite3
import stat
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from math import ceil
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
    URL,
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Connection,
    DateTime,
    Dialect,
    Engine,
    Integer,
    MetaData,
    NullPool,
    Select,
    String,
    Table,
    Text,
    TypeDecorator,
    create_engine,
    delete,
    event,
    make_url,
    select,
)
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.pool import ConnectionPoolEntry

from functions.stored.errors import StoreUnavailableError

DEADLINE_SECONDS = 3.0
GRACE_SECONDS = 0.5  # for the server to say itself that the time is over
MIGRATION_LOCK = 0x6275636B65746265  # our own choice: the first letters of "bucketbell"
VERSION_TABLE = "bucketbell_version"  # not Alembic's usual one: that may be another program's
MAX_STATUSES = 100
MAX_REMOVED = 1000
MAX_SAID_CHARACTERS = 300
POSTGRESQL_PORT = 5432

MIGRATE = "its tables are missing or of another release: run `bucketbell migrate`"

# SQLite, by the primary part of the error's name; https://sqlite.org/rescode.html
_SQLITE_SAYS = {
    "SQLITE_BUSY": "another process holds it locked: try again",
    "SQLITE_LOCKED": "another process holds it locked: try again",
    "SQLITE_PROTOCOL": "another process holds it locked: try again",
    "SQLITE_FULL": "the disk is full: make room",
    "SQLITE_IOERR": "the disk reports errors, or is full: look at its health and at the room on it",
    "SQLITE_READONLY": "it is read-only for this process: look at the owner and the mode of file and directory",
    "SQLITE_PERM": "it is read-only for this process: look at the owner and the mode of file and directory",
    "SQLITE_CANTOPEN": "the file cannot be opened: run `bucketbell migrate` to make it, and look at the owner and the "
    "mode of file and directory",
    "SQLITE_CORRUPT": "the file is damaged: bring back a copy",
    "SQLITE_NOTADB": "the file is not a SQLite database: name another in DATABASE_URL",
    "SQLITE_ERROR": MIGRATE,  # an error in our SQL, which is fixed: the tables are not those that it names
    "SQLITE_SCHEMA": MIGRATE,
}

# PostgreSQL, by SQLSTATE or its class; https://www.postgresql.org/docs/current/errcodes-appendix.html
_POSTGRESQL_SAYS = {
    "42P01": MIGRATE,  # undefined table
    "42703": MIGRATE,  # undefined column
    "3F000": MIGRATE,  # no such schema
    "42501": "its user may not use the tables: grant that, or name another user in DATABASE_URL",
    "25006": "it is read-only: name the primary server in DATABASE_URL",
    "53100": "its disk is full: make room there",
    "53300": "it has no connection left: raise its limit, or try again",
    "55P03": "another process holds it locked: try again",
    "40P01": "another process holds it locked: try again",
    "40001": "another process holds it locked: try again",
    "57014": "it took too long: try again",
    "57": "it is stopping or starting: try again",
}


class UtcDateTime(TypeDecorator[datetime]):
    """A moment in UTC; SQLite has no zones, so it gets it without one."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Hand it on in UTC."""
        if value is None:
            return None
        value = value.astimezone(UTC)
        return value.replace(tzinfo=None) if dialect.name == "sqlite" else value

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        """Return it in UTC, whatever zone the server is in."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if dialect.name == "sqlite" else value.astimezone(UTC)


METADATA = MetaData()

CONFIG = Table(
    "mqtt_config",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("broker_host", String(253), nullable=False),
    Column("broker_port", Integer, nullable=False),
    Column("username", String(256)),
    Column("password_encrypted", Text),
    Column("use_tls", Boolean, nullable=False),
    Column("topic_prefix", String(128), nullable=False),
    Column("qos", Integer, nullable=False),
    Column("enabled", Boolean, nullable=False),
    Column("discovery_enabled", Boolean, nullable=False),
    Column("discovery_prefix", String(128), nullable=False),
    Column("retain_messages", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("updated_at", UtcDateTime, nullable=False),
    Column("version", Integer, nullable=False),
    CheckConstraint("id = 1", name="mqtt_config_one_row"),
    CheckConstraint("broker_port BETWEEN 1 AND 65535", name="mqtt_config_broker_port"),
    CheckConstraint("qos IN (0, 1, 2)", name="mqtt_config_qos"),
    CheckConstraint("version >= 1", name="mqtt_config_version"),
)

PROCESS_STATUS = Table(
    "mqtt_process_status",
    METADATA,
    Column("process", String(128), primary_key=True),
    Column("scope", String(16), nullable=False),
    Column("broker", String(512)),
    Column("connected", Boolean, nullable=False),
    Column("since", UtcDateTime, nullable=False),
    Column("last_connected_at", UtcDateTime),
    Column("last_error", Text),
    Column("last_error_code", Integer),
    Column("last_error_at", UtcDateTime),
    Column("messages_published", BigInteger, nullable=False),
    Column("reconnect_attempts", BigInteger, nullable=False),
    Column("recorded_at", UtcDateTime, nullable=False),
)

REMOVED_CAMERAS = Table(
    "removed_cameras",
    METADATA,
    Column("camera_id", String(128), primary_key=True),
    Column("removed_at", UtcDateTime, nullable=False),
)

_ROW = 1


class Rows:
    """The tables' rows within one transaction, as mappings by column."""

    def __init__(self, connection: Connection, *, writing: bool) -> None:
        self._connection = connection
        self._postgresql = connection.dialect.name == "postgresql"
        self._writing = writing

    def config(self) -> dict[str, Any] | None:
        """Return the one row of settings, without its id; in a writing transaction it is ours until the end."""
        if self._writing and self._postgresql:
            # A row that does not exist yet cannot be locked, and two would create it. Readers pass.
            self._connection.exec_driver_sql(f"LOCK TABLE {CONFIG.name} IN SHARE ROW EXCLUSIVE MODE")
        rows = self._found(CONFIG, select(CONFIG).where(CONFIG.c.id == _ROW))
        return {name: value for name, value in rows[0].items() if name != "id"} if rows else None

    def put_config(self, row: Mapping[str, Any]) -> None:
        """Write the one row of settings."""
        self._put(CONFIG, {"id": _ROW, **row})

    def statuses(self) -> list[dict[str, Any]]:
        """Return the newest `MAX_STATUSES` rows of the processes, newest first."""
        order = (PROCESS_STATUS.c.recorded_at.desc(), PROCESS_STATUS.c.process)
        return self._found(PROCESS_STATUS, select(PROCESS_STATUS).order_by(*order).limit(MAX_STATUSES))

    def put_status(self, row: Mapping[str, Any]) -> None:
        """Write the row of one process."""
        self._put(PROCESS_STATUS, row)

    def forget_statuses(self, *, before: datetime) -> None:
        """Delete the rows of processes that recorded nothing since."""
        self._connection.execute(delete(PROCESS_STATUS).where(PROCESS_STATUS.c.recorded_at < before))

    def removed_cameras(self) -> list[dict[str, Any]]:
        """Return the newest `MAX_REMOVED` rows of cameras that were removed."""
        order = REMOVED_CAMERAS.c.removed_at.desc()
        return self._found(REMOVED_CAMERAS, select(REMOVED_CAMERAS).order_by(order).limit(MAX_REMOVED))

    def put_removed_camera(self, row: Mapping[str, Any]) -> None:
        """Write the row of one camera."""
        self._put(REMOVED_CAMERAS, row)

    def forget_removed_camera(self, camera_id: str, *, before: datetime) -> None:
        """Delete the row of a camera, unless it was removed again."""
        table = REMOVED_CAMERAS.c
        self._connection.execute(
            delete(REMOVED_CAMERAS).where(table.camera_id == camera_id, table.removed_at <= before)
        )

    def _found(self, table: Table, question: Select[Any]) -> list[dict[str, Any]]:
        # SQLite holds any kind of value in any column.
        with suppress(ValueError, TypeError):
            rows = [dict(row) for row in self._connection.execute(question).mappings()]
            kinds = {column.name: column.type.python_type for column in table.columns}
            if all(value is None or isinstance(value, kinds[name]) for row in rows for name, value in row.items()):
                return rows
        raise StoreUnavailableError(f"a row of {table.name} was changed by hand and is not valid: delete it there")

    def _put(self, table: Table, row: Mapping[str, Any]) -> None:
        dialect = postgresql if self._postgresql else sqlite
        self._connection.execute(
            dialect.insert(table).values(row).on_conflict_do_update(index_elements=table.primary_key, set_=row)
        )


class Database:
    """SQLite or PostgreSQL at a URL that `addresses.check_database_url` let pass. Thread-safe; connects when used.

    A transaction has `deadline_seconds`; connecting has at most `DEADLINE_SECONDS`, for each address of the server.
    """

    def __init__(self, url: str, *, deadline_seconds: float = DEADLINE_SECONDS) -> None:
        address = make_url(url)
        self._file = Path(str(address.database)) if address.get_backend_name() == "sqlite" else None
        if self._file is not None:
            self.name = f"the database {self._file}"
            self._engine = _sqlite_engine(self._file, deadline_seconds)
        else:
            place = f"{address.host} port {address.port or POSTGRESQL_PORT}" if address.host else "the local socket"
            self.name = f"the database {address.database} at {place}"
            self._engine = _postgresql_engine(address, deadline_seconds)

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """Give the rows. Raises `StoreUnavailableError`."""
        with self._transaction("BEGIN") as connection:
            yield Rows(connection, writing=False)

    @contextmanager
    def writing(self) -> Iterator[Rows]:
        """Give the rows; all is written at the end, or nothing. Raises `StoreUnavailableError`."""
        with self._transaction("BEGIN IMMEDIATE") as connection:
            yield Rows(connection, writing=True)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Give the database to one process at a time, for changes of its tables; a SQLite file is made.

        All is changed at the end, or nothing. Raises `StoreUnavailableError`.
        """
        if self._file is not None:
            self._make(self._file)
        with self._transaction("BEGIN EXCLUSIVE") as connection:
            if self._file is None:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            yield connection

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        try:
            with self._engine.connect().execution_options(begin=begin) as connection, connection.begin():
                yield connection
        except SQLAlchemyError as error:
            failure = StoreUnavailableError(f"{self.name} cannot be used: {self._explained(error)}")
            try:
                raise failure from None
            finally:
                # `from None` only hides it, and psycopg's errors hold what was connected with.
                failure.__context__ = None

    def _explained(self, error: SQLAlchemyError) -> str:
        """Return in words what is wrong and what to do."""
        cause = error.orig if isinstance(error, DBAPIError) else None
        if self._file is not None:
            kind = "_".join(str(getattr(cause, "sqlite_errorname", "")).split("_")[:2])
            known = _SQLITE_SAYS.get(kind)
        else:
            state = getattr(cause, "sqlstate", None) or ""
            known = _POSTGRESQL_SAYS.get(state) or _POSTGRESQL_SAYS.get(state[:2])
            if known is None and not state:
                # libpq has no code for what goes wrong with a connection; its words name no password.
                said = " ".join(str(cause or type(error).__name__).split())[:MAX_SAID_CHARACTERS]
                known = f"it does not answer, or not to us: start it, or look at DATABASE_URL ({said})"
        return known or f"unexpected {type(cause or error).__name__}"

    def _make(self, file: Path) -> None:
        """Make the SQLite file, for its owner alone; SQLite gives its journal the same mode.

        It keeps the rollback journal: with a write-ahead log nothing could be read while the disk is full.
        """
        try:
            os.close(os.open(file, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, stat.S_IRUSR | stat.S_IWUSR))
        except OSError as error:
            said = error.strerror
        else:
            return
        raise StoreUnavailableError(
            f"{self.name} cannot be made: {said}. Make its directory, writable for this process"
        )


def _opened(file: Path, deadline_seconds: float) -> sqlite3.Connection:
    # Opening does not make it: an empty file in a wrong place would be a riddle.
    return sqlite3.connect(
        f"file:{quote(str(file))}?mode=rw",
        uri=True,
        timeout=deadline_seconds,
        isolation_level=None,  # BEGIN is ours to say
        check_same_thread=False,
    )


def _sqlite_engine(file: Path, deadline_seconds: float) -> Engine:
    engine = create_engine(
        "sqlite://", creator=lambda: _opened(file, deadline_seconds), poolclass=NullPool, hide_parameters=True
    )

    def begin(connection: Connection) -> None:
        # The driver's own BEGIN comes late and takes no write lock: two editors would both read, and one be refused.
        connection.exec_driver_sql(connection.get_execution_options().get("begin", "BEGIN"))

    event.listen(engine, "begin", begin)
    return engine


def _postgresql_engine(address: URL, deadline_seconds: float) -> Engine:
    engine = create_engine(
        address.set(drivername="postgresql+psycopg"),
        poolclass=NullPool,
        hide_parameters=True,
        connect_args={
            "connect_timeout": ceil(min(deadline_seconds, DEADLINE_SECONDS)),
            "application_name": "bucketbell",
        },
    )

    def begin(connection: Connection) -> None:
        # Not as options of the connection: PgBouncer and RDS Proxy refuse those.
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {deadline_seconds * 1000:.0f}")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {deadline_seconds * 500:.0f}")  # time is left to work

    def watch(driver: Any, record: ConnectionPoolEntry) -> None:  # noqa: ANN401 - psycopg's, which only SQLAlchemy imports
        # A server that hangs keeps no time-outs: cutting the line is what ends a blocking wait for it.
        line = socket.socket(fileno=os.dup(driver.fileno()))
        timer = threading.Timer(deadline_seconds + GRACE_SECONDS, _cut, (line,))
        timer.daemon = True
        timer.start()
        record.info["watch"] = (timer, line)

    def unwatch(driver: Any, record: ConnectionPoolEntry) -> None:  # noqa: ANN401 - as above
        del driver
        timer, line = record.info.pop("watch")
        timer.cancel()
        line.close()

    event.listen(engine, "begin", begin)
    event.listen(engine, "connect", watch, insert=True)  # before SQLAlchemy's own first questions
    event.listen(engine, "close", unwatch)
    return engine


def _cut(line: socket.socket) -> None:
    with suppress(OSError):  # closed in the same moment
        line.shutdown(socket.SHUT_RDWR)
    line.close()  # here too: SQLAlchemy drops a connection that failed its first questions without closing it
