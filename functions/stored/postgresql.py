"""Connections to PostgreSQL that keep a deadline, whatever the server does: for a transaction each, kept, or locked."""

from __future__ import annotations

import os
import select
import socket
import threading
import time
from contextlib import suppress
from math import ceil
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, NullPool, QueuePool, create_engine, event
from sqlalchemy.exc import DisconnectionError

if TYPE_CHECKING:
    from sqlalchemy import PoolProxiedConnection
    from sqlalchemy.pool import ConnectionPoolEntry

DEADLINE_SECONDS = 3.0
GRACE_SECONDS = 0.5  # for the server to say itself that the time is over
RELEASE_SECONDS = 0.2
KEPT_CONNECTIONS = 2
MAX_CONNECTIONS = 4
IDLE_SECONDS = 60.0  # less than what any firewall on the way forgets a silent connection after

MIGRATE = "its tables are missing or of another release: run `bucketbell migrate`"
LOCKED = "another process holds it locked: try again"

# By SQLSTATE or its class; https://www.postgresql.org/docs/current/errcodes-appendix.html
SAYS = {
    "42P01": MIGRATE,  # undefined table
    "42703": MIGRATE,  # undefined column
    "3F000": MIGRATE,  # no such schema
    "42501": "its user may not use the tables: grant that, or name another user in DATABASE_URL",
    "25006": "it is read-only: name the primary server in DATABASE_URL",
    "53100": "its disk is full: make room there",
    "53300": "it has no connection left: raise its limit, or try again",
    "55P03": LOCKED,
    "40P01": LOCKED,
    "40001": LOCKED,
    "57014": "it took too long: try again",
    "57": "it is stopping or starting: try again",
}

# A machine that vanishes says no goodbye: the server notices within 40 s, and another process may have the lock.
_NOTICE_THE_DEAD = "SET tcp_keepalives_idle = 10; SET tcp_keepalives_interval = 10; SET tcp_keepalives_count = 3"


class Watch:
    """Cuts the line of a connection unless it is stopped in time.

    A server that hangs keeps no time-outs: cutting the line is what ends a blocking wait for it.
    """

    def __init__(self, driver: Any, seconds: float) -> None:  # noqa: ANN401 - psycopg's, which only SQLAlchemy imports
        """The time begins now."""
        self._line = socket.socket(fileno=os.dup(driver.fileno()))
        self._timer = threading.Timer(seconds, self._cut)
        self._timer.daemon = True
        self._timer.start()

    def stop(self) -> None:
        """Leave the line alone."""
        self._timer.cancel()
        self._line.close()

    def _cut(self) -> None:
        with suppress(OSError):  # closed in the same moment
            self._line.shutdown(socket.SHUT_RDWR)
        self._line.close()  # here too: SQLAlchemy drops a connection that failed its first questions without closing it


def open_engine(address: URL, deadline_seconds: float, *, keeps: bool = False) -> Engine:
    """An engine whose transactions have `deadline_seconds` each.

    `keeps`: a connection stays open for the next transaction, for as long as it is used. Whether it is still good is
    seen without asking: a server that has gone has closed it.
    """
    pool: dict[str, Any] = {"poolclass": NullPool}
    if keeps:
        pool = {
            "poolclass": QueuePool,
            "pool_size": KEPT_CONNECTIONS,
            "max_overflow": MAX_CONNECTIONS - KEPT_CONNECTIONS,
            "pool_timeout": deadline_seconds,
            "pool_use_lifo": True,
        }
    engine = _engine(address, deadline_seconds, **pool)

    def begin(connection: Connection) -> None:
        # Not as options of the connection: PgBouncer and RDS Proxy refuse those.
        connection.exec_driver_sql(f"SET LOCAL statement_timeout = {deadline_seconds * 1000:.0f}")
        connection.exec_driver_sql(f"SET LOCAL lock_timeout = {deadline_seconds * 500:.0f}")  # time is left to work

    def take(driver: Any, record: ConnectionPoolEntry, proxy: PoolProxiedConnection) -> None:  # noqa: ANN401 - as above
        del proxy
        if "watch" in record.info:
            return  # it was opened for this
        if time.monotonic() - record.info["used_at"] > IDLE_SECONDS or _has_news(driver):
            raise DisconnectionError
        record.info["watch"] = Watch(driver, deadline_seconds + GRACE_SECONDS)

    is_over = False

    def end(engine: Engine) -> None:
        nonlocal is_over
        is_over = True
        del engine

    def give_back(driver: Any, record: ConnectionPoolEntry) -> None:  # noqa: ANN401 - as above
        record.info["used_at"] = time.monotonic()
        _unwatch(driver, record)
        if is_over and driver is not None:
            driver.close()  # it was in use when the others were closed

    event.listen(engine, "begin", begin)
    event.listen(engine, "checkout", take)
    event.listen(engine, "checkin", give_back)
    event.listen(engine, "engine_disposed", end)
    return engine


def _engine(address: URL, deadline_seconds: float, **more: Any) -> Engine:  # noqa: ANN401 - SQLAlchemy's own options
    engine = create_engine(
        address.set(drivername="postgresql+psycopg"),
        hide_parameters=True,
        connect_args={
            "connect_timeout": ceil(min(deadline_seconds, DEADLINE_SECONDS)),
            "application_name": "bucketbell",
        },
        **more,
    )

    def watch(driver: Any, record: ConnectionPoolEntry) -> None:  # noqa: ANN401 - psycopg's, which only SQLAlchemy imports
        record.info["watch"] = Watch(driver, deadline_seconds + GRACE_SECONDS)

    event.listen(engine, "connect", watch, insert=True)  # before SQLAlchemy's own first questions
    event.listen(engine, "close", _unwatch)
    return engine


def _unwatch(driver: Any, record: ConnectionPoolEntry) -> None:  # noqa: ANN401 - as above
    del driver
    watch = record.info.pop("watch", None)
    if watch is not None:
        watch.stop()


def _has_news(driver: Any) -> bool:  # noqa: ANN401 - as above
    """Whether the server has said something unasked: goodbye, nearly always."""
    if driver.closed:
        return True
    poll = select.poll()
    poll.register(driver.fileno(), select.POLLIN)
    return bool(poll.poll(0))


class SessionLock:
    """One of the server's locks, which one process has at a time; the server takes it back when our connection ends.

    It has a connection of its own, which stays open while the lock is ours. Thread-safe. Raises SQLAlchemyError.
    """

    def __init__(self, address: URL, number: int, deadline_seconds: float) -> None:
        """Nothing is connected yet. `number` has 64 bits, with its sign."""
        self._engine = _engine(address, deadline_seconds, poolclass=NullPool, isolation_level="AUTOCOMMIT")
        self._number = number
        self._deadline_seconds = deadline_seconds
        self._turn = threading.Lock()
        self._connection: Connection | None = None

    def hold(self) -> bool:
        """Whether the lock is ours now; it is taken if it is free."""
        with self._turn:
            return self._is_held() or self._take()

    def release(self) -> None:
        """Give it back. Idempotent; who is asking at this moment gives it back by the end of the process."""
        if self._turn.acquire(timeout=RELEASE_SECONDS):
            try:
                self._drop()
            finally:
                self._turn.release()

    def _is_held(self) -> bool:
        connection = self._connection
        if connection is None:
            return False
        watch = Watch(connection.connection.driver_connection, self._deadline_seconds)
        try:
            connection.exec_driver_sql("SELECT 1")
        except Exception:  # noqa: BLE001 - whatever it is, the server may have given the lock to another
            self._drop()
            return False
        finally:
            watch.stop()
        return True

    def _take(self) -> bool:
        connection = self._connection = self._engine.connect()
        is_ours = False
        try:
            connection.exec_driver_sql(_NOTICE_THE_DEAD)
            is_ours = bool(connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({self._number})").scalar())
            connection.info.pop("watch").stop()
        finally:
            if not is_ours:
                self._drop()
        return is_ours

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(Exception):
                connection.invalidate()
                connection.close()
