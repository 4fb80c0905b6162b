"""Runs a real PostgreSQL on loopback, with a data directory of its own, as a user who is not root."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

from infra.local.process import PartError, Process, free_port

INIT_TIMEOUT_SECONDS = 60.0
FAST_STOP_SECONDS = 10.0
PROBE_TIMEOUT_SECONDS = 1.0
USER, PASSWORD = "bucketbell", "bucketbell-local"

# Debian keeps the server's programs out of the PATH, by version.
_DEBIAN = Path("/usr/lib/postgresql")
_READY = "database system is ready to accept connections"


class Programs(NamedTuple):
    """The two programs of the server's package that make a database and serve it."""

    initdb: Path
    postgres: Path


def find_postgres() -> Programs | None:
    """PostgreSQL's server on the PATH, else the newest of Debian's."""
    debian = sorted(_DEBIAN.glob("*/bin"), key=lambda path: float(path.parent.name), reverse=True)
    places = [os.environ.get("PATH", ""), *map(str, debian)]
    for place in places:
        initdb, postgres = (shutil.which(name, path=place) for name in ("initdb", "postgres"))
        if initdb and postgres:
            return Programs(Path(initdb), Path(postgres))
    return None


class Postgres(Process):
    """A server on 127.0.0.1 that asks for a password. `settings` are lines of its configuration, by name.

    Started by root it runs as user `postgres`, or `nobody` where there is none: PostgreSQL refuses to be root. Its
    data, which is deleted when it stops for good (`remove`), therefore lies in a temporary directory.
    """

    def __init__(self, directory: Path, *, port: int = 0, settings: dict[str, str] | None = None) -> None:
        programs = find_postgres()
        if programs is None:
            raise PartError("PostgreSQL is not here: install the package `postgresql`")
        self.port = port or free_port()
        self._initdb = programs.initdb
        self._home = Path(tempfile.mkdtemp(prefix="bucketbell-postgres-"))
        self._data = self._home / "data"
        self._as_user: tuple[str, ...] = ()
        if os.geteuid() == 0:
            user, group = _unprivileged()
            os.chown(self._home, user, group)
            # Not su or runuser: they would stand between us and the server, and not pass signals on.
            self._as_user = ("setpriv", f"--reuid={user}", f"--regid={group}", "--clear-groups", "--")
        options = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": "",
            "fsync": "off",  # it need not survive a power cut
            **(settings or {}),
        }
        arguments = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
        super().__init__(
            "postgres",
            [*self._as_user, str(programs.postgres), "-D", str(self._data), *arguments],
            directory,
            without=("PG", "LC_", "LANG"),
            working_directory=self._home,
            advice=f"Is another program listening on port {self.port}?",
        )

    def url(self, database: str = "postgres", *, user: str = USER, password: str = PASSWORD) -> str:
        """A DATABASE_URL for one of its databases."""
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    def is_ready(self) -> bool:
        """Whether it says so itself, and takes a connection."""
        if _READY not in self.new_log_text():
            return False
        try:
            socket.create_connection(("127.0.0.1", self.port), PROBE_TIMEOUT_SECONDS).close()
        except OSError:
            return False
        return True

    def prepare(self) -> None:
        """Makes the data directory before the first start."""
        if self._data.exists():
            return
        secret = self._home / "password"
        secret.write_text(PASSWORD)
        secret.chmod(0o644)  # for the server's user, in a directory that is his alone
        command = [
            *(*self._as_user, str(self._initdb), "-D", str(self._data), "-U", USER, f"--pwfile={secret}"),
            *("--auth=scram-sha-256", "--encoding=UTF8", "--no-locale", "--no-sync", "--no-instructions"),
        ]
        made = subprocess.run(
            command, cwd=self._home, capture_output=True, text=True, timeout=INIT_TIMEOUT_SECONDS, check=False
        )
        if made.returncode:
            raise PartError(f"initdb could not make a database: {made.stderr.strip()}")

    def stop(self, timeout_seconds: float = FAST_STOP_SECONDS) -> None:
        """Ends it at once and in order, even with open connections (SIGINT; SIGTERM may take for ever)."""
        if self.running:
            self.thaw()
            os.kill(self.pid, signal.SIGINT)
        super().stop(timeout_seconds)

    def remove(self) -> None:
        """Stops it, and deletes its data."""
        self.stop()
        shutil.rmtree(self._home)


def _unprivileged() -> tuple[int, int]:
    """The ids of a user who is not root, and of his group."""
    known = {entry.pw_name: (entry.pw_uid, entry.pw_gid) for entry in pwd.getpwall()}
    return known.get("postgres") or known["nobody"]
