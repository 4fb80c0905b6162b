"""Runs a real NATS server with JetStream on loopback, configured by its constructor."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from infra.local.certificates import Certificates
from infra.local.install import find_nats_server
from infra.local.process import PartError, Process, free_port

_READY = "Server is ready"


class NatsServer(Process):
    """A server on loopback, anonymous unless `users` are given: NATS' own objects, e.g. `{"user": …, "password": …}`.

    What it keeps lies in its directory and outlives it. With `certificates` it speaks TLS only, and with
    `require_client_certificate` it also asks the client for one. `extra` are further settings.
    """

    def __init__(
        self,
        directory: Path,
        *,
        port: int = 0,
        jetstream: bool = True,
        users: tuple[Mapping[str, Any], ...] = (),
        token: str = "",
        certificates: Certificates | None = None,
        require_client_certificate: bool = False,
        extra: Mapping[str, Any] | None = None,
    ) -> None:
        binary = find_nats_server()
        if binary is None:
            raise PartError("nats-server is not here: install the package `nats-server`")
        self.port = port or free_port()
        self.jetstream = jetstream
        self.users = users
        self.token = token
        self.certificates = certificates
        self.require_client_certificate = require_client_certificate
        self.extra = dict(extra or {})
        self._config_file = directory / "nats.conf"
        super().__init__(
            "nats",
            [str(binary), "-c", str(self._config_file)],
            directory,
            advice=f"Look at {self._config_file}; is another program listening on port {self.port}?",
        )

    @property
    def url(self) -> str:
        """`nats://127.0.0.1:port`, or with certificates `tls://localhost:port`."""
        scheme, host = ("nats", "127.0.0.1") if self.certificates is None else ("tls", "localhost")
        return f"{scheme}://{host}:{self.port}"

    def is_ready(self) -> bool:
        """By its log."""
        return _READY in self.new_log_text()

    def prepare(self) -> None:
        """Writes the configuration. NATS reads JSON too."""
        self.directory.mkdir(parents=True, exist_ok=True)
        document: dict[str, Any] = {"listen": f"127.0.0.1:{self.port}"}
        if self.jetstream:
            document["jetstream"] = {"store_dir": str(self.directory / "store"), "max_file_store": 2 << 30}
        if self.users:
            document["authorization"] = {"users": [dict(user) for user in self.users]}
        elif self.token:
            document["authorization"] = {"token": self.token}
        if self.certificates is not None:
            document["tls"] = {
                "cert_file": str(self.certificates.server_cert.absolute()),
                "key_file": str(self.certificates.server_key.absolute()),
                "ca_file": str(self.certificates.ca_file.absolute()),
                "verify": self.require_client_certificate,
            }
        self._config_file.write_text(json.dumps(document | self.extra))
