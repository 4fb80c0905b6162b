"""A host with a database of its own and an administrator, as tests of its API use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from functions.admin.openapi import BASE
from tests.databases import new_key, new_sqlite
from tests.hosts import Host, environment, eventually

ADMIN = "admin-token-0123456789"


@contextmanager
def administered(directory: Path, *, patch: str = "", **more: str) -> Iterator[Host]:
    """The real process, without a broker in its environment; `http` asks with the admin token."""
    variables = environment(
        None,
        ADMIN_TOKENS=ADMIN,
        DATABASE_URL=new_sqlite(directory),
        ENCRYPTION_KEYS=new_key().get_secret_value(),
        MQTT_CONNECT_TIMEOUT_SECONDS="5",
        DEVICE_REQUESTS_PER_MINUTE="0",
        **more,
    )
    with Host(directory, variables, ready=False, patch=patch) as host:
        host.http.headers["Authorization"] = f"Bearer {ADMIN}"
        eventually(lambda: host.http.get(f"{BASE}/config").status_code == 200)  # the tables are made
        yield host
