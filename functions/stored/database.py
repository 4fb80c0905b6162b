"""The tables in SQLite or PostgreSQL, and transactions on them.

Each transaction has a connection of its own, and nothing is pooled: transactions are rare, and a Lambda function would
find a pooled connection dead after a freeze.
"""

from __future__ import annotations

import os
import sqlite3
import stat
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sqlalchemy import (
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

from functions.stored import postgresql as server
from functions.stored.errors import StoreDamagedError, StoreUnavailableError
from functions.stored.postgresql import DEADLINE_SECONDS, SessionLock

MIGRATION_LOCK = 0x6275636B65746265  # ours by agreement with ourselves: what "bucketbell" begins with
VERSION_TABLE = "bucketbell_version"  # not Alembic's usual one: that may be another program's
MAX_STATUSES = 100
MAX_REMOVED = 1000
MAX_SAID_CHARACTERS = 300
POSTGRESQL_PORT = 5432

# SQLite, by the primary part of the error's name; https://sqlite.org/rescode.html
_SQLITE_SAYS = {
    "SQLITE_BUSY": server.LOCKED,
    "SQLITE_LOCKED": server.LOCKED,
    "SQLITE_PROTOCOL": server.LOCKED,
    "SQLITE_FULL": "the disk is full: make room",
    "SQLITE_IOERR": "the disk reports errors, or is full: look at its health and at the room on it",
    "SQLITE_READONLY": "it is read-only for this process: look at the owner and the mode of file and directory",
    "SQLITE_PERM": "it is read-only for this process: look at the owner and the mode of file and directory",
    "SQLITE_CANTOPEN": "the file cannot be opened: run `bucketbell migrate` to make it, and look at the owner and the "
    "mode of file and directory",
    "SQLITE_CORRUPT": "the file is damaged: bring back a copy",
    "SQLITE_NOTADB": "the file is no SQLite database: name another in DATABASE_URL",
    "SQLITE_ERROR": server.MIGRATE,  # an error in our SQL, which is fixed: the tables are not those that it names
    "SQLITE_SCHEMA": server.MIGRATE,
}

_DAMAGED = frozenset({"SQLITE_CORRUPT", "SQLITE_NOTADB"})


class Moment(TypeDecorator[datetime]):
    """A moment in UTC; SQLite has no zones, and gets it without."""

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
    Column("created_at", Moment, nullable=False),
    Column("updated_at", Moment, nullable=False),
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
    Column("since", Moment, nullable=False),
    Column("last_connected_at", Moment),
    Column("last_error", Text),
    Column("last_error_code", Integer),
    Column("last_error_at", Moment),
    Column("messages_published", BigInteger, nullable=False),
    Column("reconnect_attempts", BigInteger, nullable=False),
    Column("recorded_at", Moment, nullable=False),
)

REMOVED_CAMERAS = Table(
    "removed_cameras",
    METADATA,
    Column("camera_id", String(128), primary_key=True),
    Column("removed_at", Moment, nullable=False),
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
        """Delete the row of a camera, unless it was removed anew."""
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

    def __init__(
        self, url: str | Path, *, deadline_seconds: float = DEADLINE_SECONDS, keeps_connections: bool = False
    ) -> None:
        """A path is that of a SQLite file. `keeps_connections`, to a server: for whom uses it again and again."""
        address = make_url(url if isinstance(url, str) else "sqlite://")
        self._address, self._deadline_seconds = address, deadline_seconds
        self.file = None
        """SQLite's; None on PostgreSQL."""
        if address.get_backend_name() == "sqlite":
            self.file = Path(str(address.database)) if isinstance(url, str) else url
            self.name = f"the database {self.file}"
            self._engine = _sqlite_engine(self.file, deadline_seconds)
        else:
            port = address.port or POSTGRESQL_PORT
            place = f"{address.host} port {port}" if address.host else "the local socket"
            self.name = f"the database {address.database} at {place}"
            self._engine = server.open_engine(address, deadline_seconds, keeps=keeps_connections)

    @contextmanager
    def reading(self) -> Iterator[Rows]:
        """Give the rows. Raises `StoreUnavailableError`."""
        with self.transaction() as connection:
            yield Rows(connection, writing=False)

    @contextmanager
    def writing(self) -> Iterator[Rows]:
        """Give the rows; all is written at the end, or nothing. Raises `StoreUnavailableError`."""
        with self.transaction(writing=True) as connection:
            yield Rows(connection, writing=True)

    @contextmanager
    def migrating(self) -> Iterator[Connection]:
        """Give the database to one process at a time, for changes of its tables; a SQLite file is made.

        All is changed at the end, or nothing. Raises `StoreUnavailableError`.
        """
        if self.file is not None:
            self._make(self.file)
        with self._transaction("BEGIN EXCLUSIVE") as connection:
            if self.file is None:
                connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})")
            yield connection

    def transaction(self, *, writing: bool = False) -> AbstractContextManager[Connection]:
        """Give a connection, for what `Rows` does not know; as `reading` and `writing`."""
        return self._transaction("BEGIN IMMEDIATE" if writing else "BEGIN")

    def session_lock(self, number: int) -> SessionLock | None:
        """A lock that one process has at a time; None for SQLite, which one host has to itself."""
        return SessionLock(self._address, number, self._deadline_seconds) if self.file is None else None

    def copy_to(self, file: Path) -> None:
        """Write what the SQLite file holds into a new one, without its gaps. Raises `StoreUnavailableError`."""
        if self.file is None:
            raise ValueError("only a file can be copied")
        with self.explained(), closing(_opened(self.file, self._deadline_seconds)) as connection:
            connection.execute("VACUUM INTO ?", (str(file),))

    def dispose(self) -> None:
        """Close the connections that are kept."""
        self._engine.dispose()

    @contextmanager
    def _transaction(self, begin: str) -> Iterator[Connection]:
        with (
            self.explained(),
            self._engine.connect().execution_options(begin=begin) as connection,
            connection.begin(),
        ):
            yield connection

    @contextmanager
    def explained(self) -> Iterator[None]:
        """Turns what the driver raises inside the `with` into `StoreUnavailableError`."""
        try:
            yield
        except (SQLAlchemyError, sqlite3.Error) as error:
            failure = self._failure(error)
            try:
                raise failure from None
            finally:
                # `from None` merely hides it, and psycopg's errors hold what was connected with.
                failure.__context__ = None

    def _failure(self, error: SQLAlchemyError | sqlite3.Error) -> StoreUnavailableError:
        """Say in words what is wrong and what to do."""
        cause = error.orig if isinstance(error, DBAPIError) else error
        kind = None
        if self.file is not None:
            kind = "_".join(str(getattr(cause, "sqlite_errorname", "")).split("_")[:2])
            known = _SQLITE_SAYS.get(kind)
        else:
            state = getattr(cause, "sqlstate", None) or ""
            known = server.SAYS.get(state) or server.SAYS.get(state[:2])
            if known is None and not state:
                # libpq has no code for what goes wrong with a connection; its words name no password.
                said = str(cause) if isinstance(error, DBAPIError) else type(error).__name__
                said = " ".join(said.split())[:MAX_SAID_CHARACTERS]
                known = f"it does not answer, or not to us: start it, or look at DATABASE_URL ({said})"
        failure = StoreDamagedError if kind in _DAMAGED else StoreUnavailableError
        return failure(f"{self.name} cannot be used: {known or f'unexpected {type(cause).__name__}'}")

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
    # Never made by the way: an empty file in a wrong place is a riddle.
    connection = sqlite3.connect(
        f"file:{quote(str(file))}?mode=rw",
        uri=True,
        timeout=deadline_seconds,
        isolation_level=None,  # BEGIN is ours to say
        check_same_thread=False,
    )
    connection.execute("PRAGMA temp_store = MEMORY")  # the file's directory may be the only one that can be written
    return connection


def _sqlite_engine(file: Path, deadline_seconds: float) -> Engine:
    engine = create_engine(
        "sqlite://", creator=lambda: _opened(file, deadline_seconds), poolclass=NullPool, hide_parameters=True
    )

    def begin(connection: Connection) -> None:
        how = connection.get_execution_options().get("begin", "BEGIN")
        if how != "BEGIN":
            # Or a power cut could bring the journal's name back, and with it the state before what was written last.
            connection.exec_driver_sql("PRAGMA synchronous = EXTRA")
        # The driver's own BEGIN comes late and takes no write lock: two editors would both read, and one be refused.
        connection.exec_driver_sql(how)

    event.listen(engine, "begin", begin)
    return engine
