"""Runs a real Mosquitto broker on loopback, configured by its constructor."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from infra.local.certificates import Certificates
from infra.local.install import find_mosquitto, find_mosquitto_passwd
from infra.local.process import READY_POLL_SECONDS, PartError, Process, free_port

RELOAD_TIMEOUT_SECONDS = 10.0
HASH_TIMEOUT_SECONDS = 30.0

_RUNNING = re.compile(r"mosquitto version \S+ running")
_RELOADING = "Reloading config."


class Mosquitto(Process):
    """A broker on `host`, an address of this machine, anonymous unless `users` (name → password) are given.

    `acl` is the text of an ACL file. With `certificates` the listener speaks TLS only, and with
    `require_client_certificate` it also asks the client for one. `receive_maximum` is what the broker accepts
    unacknowledged per client, `max_packet_size` is in bytes, `max_keepalive` in seconds; `extra` are further
    configuration lines. Messages are kept in memory only, as is Mosquitto's default, unless `persistent`: then
    sessions and what waits in them are written to disk at every change.
    """

    def __init__(
        self,
        directory: Path,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        users: Mapping[str, str] | None = None,
        acl: str | None = None,
        certificates: Certificates | None = None,
        require_client_certificate: bool = False,
        max_packet_size: int | None = None,
        receive_maximum: int | None = None,
        max_keepalive: int | None = None,
        persistent: bool = False,
        extra: Sequence[str] = (),
    ) -> None:
        binary = find_mosquitto()
        if binary is None:
            raise PartError("Mosquitto is not here: run `python -m infra.local.install mosquitto`")
        if require_client_certificate and certificates is None:
            raise ValueError("require_client_certificate needs certificates")
        # Absolute: Mosquitto resolves the paths in its configuration against its own working directory.
        directory = directory.absolute()
        self.host = host
        self.port = port or free_port()
        self.users = None if users is None else dict(users)
        self.acl = acl
        self.certificates = certificates
        self.require_client_certificate = require_client_certificate
        self.max_packet_size = max_packet_size
        self.receive_maximum = receive_maximum
        self.max_keepalive = max_keepalive
        self.persistent = persistent
        self.extra = tuple(extra)
        self._config_file = directory / "mosquitto.conf"
        self._password_file = directory / "passwords"
        self._acl_file = directory / "acl"
        super().__init__(
            "mosquitto",
            [str(binary), "-c", str(self._config_file)],
            directory,
            advice=f"Look at {self._config_file}; is another program listening on port {self.port}?",
        )

    @property
    def url(self) -> str:
        """`mqtt://host:port`, or with certificates `mqtts://localhost:port`."""
        return f"mqtt://{self.host}:{self.port}" if self.certificates is None else f"mqtts://localhost:{self.port}"

    def set_users(self, users: Mapping[str, str] | None) -> None:
        """Replaces the password file (None: anonymous again); in force after `reload()`."""
        self.users = None if users is None else dict(users)
        self.prepare()

    def set_acl(self, acl: str | None) -> None:
        """Replaces the ACL file; in force after `reload()`."""
        self.acl = acl
        self.prepare()

    def reload(self) -> None:
        """Makes the broker read its files again (SIGHUP), and returns when it has begun to.

        It reads no socket before it is done, so that the new rules hold for all that is sent after this.
        Users who are gone are disconnected. PartError when it does not react.
        """
        before = self.log_text().count(_RELOADING)
        os.kill(self.pid, signal.SIGHUP)
        deadline = time.monotonic() + RELOAD_TIMEOUT_SECONDS
        while self.log_text().count(_RELOADING) == before:
            if time.monotonic() >= deadline:
                raise PartError(f"Mosquitto did not reload within {RELOAD_TIMEOUT_SECONDS:g} s: is it frozen?")
            time.sleep(READY_POLL_SECONDS)

    def is_ready(self) -> bool:
        """By its log: a connection would appear in that log among the clients under test."""
        return _RUNNING.search(self.new_log_text()) is not None

    def prepare(self) -> None:
        """Writes the configuration, the hashed passwords and the ACL."""
        self.directory.mkdir(parents=True, exist_ok=True)
        if self.users is not None:
            self._write_passwords(self.users)
        if self.acl is not None:
            self._acl_file.write_text(self.acl.rstrip("\n") + "\n")
            self._acl_file.chmod(0o600)
        self._config_file.write_text("\n".join(self._config()) + "\n")

    def _config(self) -> list[str]:
        lines = [
            f"listener {self.port} {self.host}",
            f"allow_anonymous {'true' if self.users is None else 'false'}",
            f"persistence {'true' if self.persistent else 'false'}",
            "log_dest stderr",
            "log_type all",
            "log_timestamp true",
            "log_timestamp_format %Y-%m-%dT%H:%M:%S",
        ]
        if self.persistent:
            # Changes, not seconds, and one is enough; the location is put before the file's name as it is.
            lines += [f"persistence_location {self.directory}/", "autosave_on_changes true", "autosave_interval 1"]
        # As root it would become user mosquitto, who may not read files of ours.
        if os.geteuid() == 0:
            lines.append("user root")
        if self.users is not None:
            lines.append(f"password_file {self._password_file}")
        if self.acl is not None:
            lines.append(f"acl_file {self._acl_file}")
        if self.certificates is not None:
            lines += [
                f"cafile {self.certificates.ca_file.absolute()}",
                f"certfile {self.certificates.server_cert.absolute()}",
                f"keyfile {self.certificates.server_key.absolute()}",
                f"require_certificate {'true' if self.require_client_certificate else 'false'}",
            ]
        limits = {
            "max_packet_size": self.max_packet_size,
            "max_inflight_messages": self.receive_maximum,
            "max_keepalive": self.max_keepalive,
        }
        lines += [f"{name} {value}" for name, value in limits.items() if value is not None]
        return [*lines, *self.extra]

    def _write_passwords(self, users: Mapping[str, str]) -> None:
        for name, password in users.items():
            # Mosquitto's file has no way to quote its separators, and `-U` reads it as the broker does.
            if not name or not password or {":", "\n"} & set(name + password):
                raise ValueError(f"user {name!r}: name and password must be non-empty, without colon or newline")
        # Hashed beside the live file: the broker may read that one at any moment.
        fresh = self._password_file.with_suffix(".new")
        fresh.touch(mode=0o600)
        fresh.write_text("".join(f"{name}:{password}\n" for name, password in users.items()))
        tool = find_mosquitto_passwd()
        if tool is None:
            raise PartError("mosquitto_passwd is not here, although Mosquitto is: install its whole package")
        if users:
            hashing = subprocess.run(
                [str(tool), "-U", str(fresh)],
                capture_output=True,
                text=True,
                timeout=HASH_TIMEOUT_SECONDS,
                check=False,
            )
            if hashing.returncode:
                raise PartError(f"mosquitto_passwd could not hash the passwords: {hashing.stderr.strip()}")
        fresh.replace(self._password_file)
