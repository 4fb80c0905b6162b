"""What was announced of one bucket, key by key, and how far its sweeps have got.

Keys, entity tags and prefixes are kept as bytes: they are in the order in which S3 lists, whatever the database thinks
of letters, and whatever a store calls text finds room.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    Boolean,
    Column,
    ColumnElement,
    Connection,
    Index,
    Integer,
    LargeBinary,
    Table,
    Text,
    and_,
    delete,
    func,
    select,
    update,
)

from functions.stored import bulk
from functions.stored.database import METADATA, Database
from functions.stored.errors import StoreDamagedError, StoreUnavailableError
from functions.stored.led import LedStore
from functions.stored.ring import KEPT, Ring

KEPT_MS = 24 * 3600 * 1000
"""So long identities are known, and rings of a key that is gone are kept: it may have been moved and come back."""

MAX_KEY_BYTES = 1024  # S3's own limit; PostgreSQL's index has one too
AT_ONCE = 1000  # rows in one question or one change: nobody waits long for the next
MAX_FOUND = 2 * AT_ONCE  # one look is enough where a page's keys are all there
MAX_FORGOTTEN = 5000  # identities at a time: after a long rest the first change would take very long

RINGS = Table(
    "sweep_rings",
    METADATA,
    Column("id", BigInteger().with_variant(Integer, "sqlite"), primary_key=True),
    Column("scope", BigInteger, nullable=False),
    Column("object_key", LargeBinary, nullable=False),
    Column("etag", LargeBinary, nullable=False),
    Column("modified", BigInteger, nullable=False),
    Column("is_exact", Boolean, nullable=False),
    Column("identity", LargeBinary, nullable=False),
    Column("rang_at", BigInteger, nullable=False),
)
Index("sweep_rings_of_key", RINGS.c.scope, RINGS.c.object_key, RINGS.c.id)

IDENTITIES = Table(
    "sweep_identities",
    METADATA,
    Column("scope", BigInteger, primary_key=True, autoincrement=False),
    Column("identity", LargeBinary, primary_key=True),
    Column("rang_at", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)
Index("sweep_identities_by_age", IDENTITIES.c.scope, IDENTITIES.c.rang_at)

PREFIXES = Table(
    "sweep_prefixes",
    METADATA,
    Column("scope", BigInteger, primary_key=True, autoincrement=False),
    Column("prefix", LargeBinary, primary_key=True),
    Column("t0", BigInteger, nullable=False),
    Column("is_complete", Boolean, nullable=False),
    Column("is_lost", Boolean, nullable=False),
)

SCOPES = Table(
    "sweep_scopes",
    METADATA,
    Column("scope", BigInteger, primary_key=True, autoincrement=False),
    Column("bucket", Text, nullable=False),
    Column("endpoint", Text, nullable=False),
)


class Scope(NamedTuple):
    """Whose rings they are: those of another bucket, or of one of that name elsewhere, are not ours."""

    bucket: str
    endpoint: str

    @property
    def number(self) -> int:
        """The same on every host, and also after a database was restored: no table needs to say it."""
        digest = hashlib.sha256(f"{self.bucket}\n{self.endpoint}".encode(errors="surrogatepass")).digest()
        return int.from_bytes(digest[:8], "big", signed=True)

    def __str__(self) -> str:
        return f"{self.bucket} at {self.endpoint}"


class PrefixProgress(NamedTuple):
    """How far the sweeps of a prefix have got. `t0` is the store's time at the first, in milliseconds since 1970.

    `is_complete`: all of it was listed once. `is_lost`: there was a first sweep before, whose state is gone.
    """

    t0: int
    is_complete: bool
    is_lost: bool


class RingStore(LedStore):
    """One bucket's rings in a database, which several hosts may share. Thread-safe; every call blocks.

    Every method raises `StoreUnavailableError`.
    """

    def __init__(
        self, database: Database, scope: Scope, *, sweeps: bool = True, now: Callable[[], float] = time.time
    ) -> None:
        """Without `sweeps`, rings of keys are kept only if another host sweeps: nobody else would ever forget them."""
        super().__init__(database, scope.number)
        self.scope = scope
        self._number = scope.number
        self._sweeps = sweeps
        self._now = now
        self.changes = 0
        """Grows with each change that this process has made."""

    def record(self, rings: Sequence[Ring]) -> None:
        """Note what was announced, in this order. Of each key the last `KEPT` contents stay."""
        rings = [ring for ring in rings if len(_raw(ring.object_key)) <= MAX_KEY_BYTES]
        for index in range(0, len(rings), AT_ONCE):
            with self._writing() as connection:
                self._record(connection, rings[index : index + AT_ONCE])

    def of_keys(self, keys: Sequence[str]) -> dict[str, list[Ring]]:
        """Return what was announced of these keys, newest first; keys of which nothing was are left out."""
        found: dict[str, list[Ring]] = {}
        with self.database.transaction() as connection:
            for index in range(0, len(keys), AT_ONCE):
                for row in self._rows(connection, [_raw(key) for key in keys[index : index + AT_ONCE]]):
                    ring = row.ring
                    found.setdefault(ring.object_key, []).append(ring)
        return {key: rings[:KEPT] for key, rings in found.items()}

    def known(self, identities: Sequence[bytes]) -> set[bytes]:
        """Return those of these events that were announced, by whichever host."""
        table = IDENTITIES.c
        with self.database.transaction() as connection:
            found = connection.execute(
                select(table.identity).where(
                    table.scope == self._number, bulk.among(table.identity, identities, connection)
                )
            )
            return {bytes(identity) for identity in found.scalars()}

    def forget_gone(self, prefix: str, after: str, upto: str | None, keys: Collection[str]) -> int:
        """Drop the rings of keys behind `after` up to `upto` that are not in `keys`; return how many keys.

        None is the end of the prefix. A key's rings stay until the newest is `KEPT_MS` old.
        """
        there = {_raw(key) for key in keys}
        before = self._milliseconds() - KEPT_MS
        forgotten, last = 0, _raw(after)
        while True:
            with self.database.transaction() as connection:
                found = connection.execute(self._question(_raw(prefix), last, upto)).all()
            gone = [key for key, rang_at in found if rang_at < before and bytes(key) not in there]
            if gone:
                with self._writing() as connection:
                    connection.execute(delete(RINGS).where(self._of(gone, connection)))
                forgotten += len(gone)
            if len(found) < MAX_FOUND:
                return forgotten
            last = bytes(found[-1][0])

    def progress(self, prefix: str) -> PrefixProgress | None:
        """Return how far the sweeps of this prefix have got; None: there was none."""
        return self.prefixes().get(prefix)

    def prefixes(self) -> dict[str, PrefixProgress]:
        """Return how far the sweeps of each prefix have got."""
        table = PREFIXES.c
        question = select(table.prefix, table.t0, table.is_complete, table.is_lost).where(table.scope == self._number)
        with self.database.transaction() as connection:
            return {_text(prefix): PrefixProgress(*rest) for prefix, *rest in connection.execute(question)}

    def begin(self, prefix: str, t0: int, *, lost: bool) -> PrefixProgress:
        """Note that the first sweep of this prefix begins; return what counts, which another host may have noted."""
        scope = {"scope": self._number, "bucket": self.scope.bucket, "endpoint": self.scope.endpoint}
        row = {"scope": self._number, "prefix": _raw(prefix), "t0": t0, "is_complete": False, "is_lost": lost}
        with self._writing() as connection:
            bulk.insert(connection, SCOPES, [scope])
            bulk.insert(connection, PREFIXES, [row])
        return self.prefixes()[prefix]

    def complete(self, prefix: str) -> None:
        """Note that all of this prefix was listed once."""
        table = PREFIXES.c
        mine = and_(table.scope == self._number, table.prefix == _raw(prefix))
        with self._writing() as connection:
            connection.execute(update(PREFIXES).where(mine).values(is_complete=True))

    def check(self) -> None:
        """Look at all of a SQLite file. Raises `StoreDamagedError`."""
        if self.database.file is None:
            return
        with self.database.transaction() as connection:
            said = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        if said != "ok":
            raise StoreDamagedError(f"{self.database.name} is damaged: {said}")

    def scopes(self) -> list[Scope]:
        """Return whose rings there are, besides ours."""
        table = SCOPES.c
        with self.database.transaction() as connection:
            found = connection.execute(select(table.bucket, table.endpoint).where(table.scope != self._number))
            return [Scope(*row) for row in found]

    @contextmanager
    def _writing(self) -> Iterator[Connection]:
        with self.database.transaction(writing=True) as connection:
            yield connection
        self.changes += 1

    def _record(self, connection: Connection, rings: Sequence[Ring]) -> None:
        now = self._milliseconds()
        identities = sorted(
            {ring.identity for ring in rings if ring.identity}
        )  # or two hosts could wait for each other
        if identities:
            new = [{"scope": self._number, "identity": identity, "rang_at": now} for identity in identities]
            bulk.insert(connection, IDENTITIES, new)
        self._forget_identities(connection, before=now - KEPT_MS)
        if not self._sweeps and not self._is_swept(connection):
            return
        keys = {ring.object_key: _raw(ring.object_key) for ring in rings}
        kept: dict[str, list[_Row]] = {}  # newest first, one of each content
        surplus: list[int] = []
        new_rows = (_Row(0, ring) for ring in reversed(rings))
        for row in (*new_rows, *self._rows(connection, list(keys.values()))):
            ours = kept.setdefault(row.ring.object_key, [])
            if len(ours) < KEPT and all(row.ring[1:4] != other.ring[1:4] for other in ours):
                ours.append(row)
            elif row.number:
                surplus.append(row.number)
        if surplus:
            connection.execute(delete(RINGS).where(bulk.among(RINGS.c.id, surplus, connection)))
        # Oldest first: their numbers are the order in which they came.
        rows = [row.ring for key in keys for row in reversed(kept[key]) if not row.number]
        bulk.insert(connection, RINGS, [self._columns(ring, keys[ring.object_key], now) for ring in rows])

    def _columns(self, ring: Ring, key: bytes, now: int) -> dict[str, Any]:
        return {
            "scope": self._number,
            "object_key": key,
            "etag": _raw(ring.etag),
            "modified": ring.modified,
            "is_exact": ring.is_exact,
            "identity": ring.identity,
            "rang_at": now,
        }

    def _rows(self, connection: Connection, keys: Sequence[bytes]) -> list[_Row]:
        """The rows of these keys, of each the newest first."""
        table = RINGS.c
        columns = (table.id, table.object_key, table.etag, table.modified, table.is_exact, table.identity)
        question = select(*columns).where(self._of(keys, connection)).order_by(table.object_key, table.id.desc())
        try:
            return [
                _Row(number, Ring(_text(key), _text(etag), int(modified), is_exact, bytes(identity)))
                for number, key, etag, modified, is_exact, identity in connection.execute(question).all()
            ]
        except (TypeError, ValueError):  # SQLite holds any kind of value in any column
            raise StoreUnavailableError(
                f"a row of {RINGS.name} was changed by hand and is not valid: delete it there"
            ) from None

    def _of(self, keys: Sequence[bytes], connection: Connection) -> ColumnElement[bool]:
        return and_(RINGS.c.scope == self._number, bulk.among(RINGS.c.object_key, keys, connection))

    def _question(self, prefix: bytes, after: bytes, upto: str | None) -> Any:  # noqa: ANN401 - a SELECT of two columns
        table = RINGS.c
        # One lower bound: of two, SQLite would begin at the first, and pass over all that is between.
        begin = table.object_key > after if after >= prefix else table.object_key >= prefix
        bounds = [table.scope == self._number, begin]
        if upto is not None:
            bounds.append(table.object_key <= _raw(upto))
        elif prefix:
            bounds.append(table.object_key < _behind(prefix))
        question = select(table.object_key, func.max(table.rang_at)).where(*bounds)
        return question.group_by(table.object_key).order_by(table.object_key).limit(MAX_FOUND)

    def _is_swept(self, connection: Connection) -> bool:
        return connection.execute(select(PREFIXES.c.t0).where(PREFIXES.c.scope == self._number)).first() is not None

    def _forget_identities(self, connection: Connection, *, before: int) -> None:
        table = IDENTITIES.c
        mine = table.scope == self._number
        old = select(table.identity).where(mine, table.rang_at < before).limit(MAX_FORGOTTEN)
        if found := [bytes(identity) for identity in connection.execute(old).scalars()]:
            connection.execute(delete(IDENTITIES).where(mine, bulk.among(table.identity, found, connection)))

    def _milliseconds(self) -> int:
        return int(self._now() * 1000)


class _Row(NamedTuple):
    """A ring as it is stored; one that is not yet has no number."""

    number: int
    ring: Ring


def _raw(text: str) -> bytes:
    return text.encode(errors="surrogatepass")


def _text(raw: bytes) -> str:
    return bytes(raw).decode(errors="surrogatepass")


def _behind(prefix: bytes) -> bytes:
    """The first that is no longer below `prefix`; UTF-8 has no byte that is the last of all."""
    return prefix[:-1] + bytes([prefix[-1] + 1])
