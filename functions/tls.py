"""TLS towards the broker, from the files that the settings name."""

from __future__ import annotations

import ssl
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    from functions.settings import Broker


class TlsFileError(Exception):
    """A file is not what its variable says; the message names the variable."""


def client_context(broker: Broker) -> ssl.SSLContext:
    """Return the context for the files as they are now: certificates are renewed while a process runs.

    Raises `TlsFileError`, and `OSError` when a file has gone.
    """
    files = (broker.ca_file, broker.cert_file, broker.key_file)
    return _context(*files, tuple(file.stat().st_mtime_ns if file else 0 for file in files))


@lru_cache(maxsize=4)  # reading the system's authorities takes tens of milliseconds
def _context(
    ca_file: Path | None, cert_file: Path | None, key_file: Path | None, _modified_at: tuple[int, ...]
) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise TlsFileError(f"MQTT_CA_FILE is not usable: {error.reason or error}") from None
    if cert_file and key_file:
        try:
            # A password, because OpenSSL would ask the terminal for that of an encrypted key, and wait.
            context.load_cert_chain(cert_file, key_file, password="")
        except ssl.SSLError as error:
            reason = error.reason or "is the key encrypted?"
            raise TlsFileError(f"MQTT_CERT_FILE or MQTT_KEY_FILE is not usable: {reason}") from None
    return context
