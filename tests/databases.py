"""Databases of the tests' own, on SQLite and on a real PostgreSQL."""

from __future__ import annotations

import itertools
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psycopg
from cryptography.fernet import Fernet
from psycopg import sql
from pydantic import SecretStr

from functions.stored.database import Database
from functions.stored.encryption import PasswordCipher
from functions.stored.store import ConfigStore

if TYPE_CHECKING:
    from infra.local.postgres import Postgres

_numbers = itertools.count()


def new_key() -> SecretStr:
    """A key as ENCRYPTION_KEYS holds them."""
    return SecretStr(Fernet.generate_key().decode())


def new_sqlite(directory: Path) -> str:
    """The DATABASE_URL of a file that does not exist yet."""
    return f"sqlite:///{directory / 'settings.db'}"


def new_postgresql(server: Postgres) -> str:
    """The DATABASE_URL of an empty database."""
    name = f"test_{next(_numbers)}"
    with psycopg.connect(server.url(), autocommit=True, connect_timeout=30) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
    return server.url(name)


def store_of(url: str, *keys: SecretStr) -> ConfigStore:
    """The store at this URL with these keys."""
    return ConfigStore(Database(url), PasswordCipher(keys) if keys else None)


def execute(url: str, statement: str) -> list[tuple[Any, ...]]:
    """The rows of raw SQL, past all of our code."""
    if url.startswith("sqlite"):
        with closing(sqlite3.connect(url.removeprefix("sqlite:///"))) as connection, connection:
            return connection.execute(statement).fetchall()
    with psycopg.connect(url, connect_timeout=30) as server:
        cursor = server.execute(statement)
        return cursor.fetchall() if cursor.description else []
