"""Many rows in one statement, on SQLite and on PostgreSQL."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import ARRAY, Column, ColumnElement, Connection, Table, any_, cast, func, select
from sqlalchemy.dialects import postgresql, sqlite


def insert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]]) -> None:
    """Insert those that break no rule of uniqueness, in this order."""
    _insert(connection, table, rows, lambda statement: statement.on_conflict_do_nothing())


def upsert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], columns: Collection[str]) -> None:
    """Insert, or set these columns of the row with the same primary key. Sort the rows: two writers would deadlock."""

    def on_conflict(statement: Any) -> Any:  # noqa: ANN401 - the dialects' two types have no common one with this method
        new = {name: statement.excluded[name] for name in columns}
        return statement.on_conflict_do_update(index_elements=table.primary_key, set_=new)

    _insert(connection, table, rows, on_conflict)


def among(column: Column[Any], values: Sequence[object], connection: Connection) -> ColumnElement[bool]:
    """Whether the column has one of these values: at most some thousands."""
    if connection.dialect.name == "sqlite":
        return column.in_(values)
    return column == any_(cast(values, ARRAY(column.type)))  # see `_insert`


def _insert(connection: Connection, table: Table, rows: Sequence[Mapping[str, Any]], on_conflict: Any) -> None:  # noqa: ANN401 - see `upsert`
    if not rows:
        return
    if connection.dialect.name == "sqlite":
        connection.execute(on_conflict(sqlite.insert(table)), rows)
        return
    # One array for each column: thousands of parameters take many times as long.
    names = list(rows[0])
    columns = (cast([row[name] for row in rows], ARRAY(table.c[name].type)) for name in names)
    new = select(*func.unnest(*columns).table_valued(*names).render_derived().c)
    connection.execute(on_conflict(postgresql.insert(table).from_select(names, new)))
