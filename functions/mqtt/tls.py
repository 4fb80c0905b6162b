"""TLS towards the broker, from the files or the PEM text that the settings name."""

from __future__ import annotations

import os
import ssl
from functools import lru_cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from functions.mqtt.broker import BrokerConfig

# OpenSSL's X509_V_ERR_… of what Python 3.13 and later do not let pass (VERIFY_X509_STRICT; RFC 5280).
_STRICT = range(79, 95)


class TlsFileError(Exception):
    """A file or text is not what its variable says; the message names the variable."""


def client_context(broker: BrokerConfig) -> ssl.SSLContext:
    """Return the context for the files as they are now: certificates are renewed while a process runs.

    Raises `TlsFileError`, and `OSError` when a file has gone.
    """
    files = (broker.ca_file, broker.cert_file, broker.key_file)
    return _context(broker, tuple(file.stat().st_mtime_ns if file else 0 for file in files))


@lru_cache(maxsize=4)  # reading the system's authorities takes tens of milliseconds
def _context(broker: BrokerConfig, _modified_at: tuple[int, ...]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=broker.ca_file, cadata=broker.ca_pem)
    except ssl.SSLError as error:
        variable = "MQTT_CA_PEM" if broker.ca_pem else "MQTT_CA_FILE"
        raise TlsFileError(f"{variable} is not usable: {error.reason or error}") from None
    kind = problem = ""
    try:
        if broker.cert_file and broker.key_file:
            kind = "FILE"
            # A password, because OpenSSL would ask the terminal for that of an encrypted key, and wait.
            context.load_cert_chain(broker.cert_file, broker.key_file, password="")
        elif broker.cert_pem and broker.key_pem:
            kind = "PEM"
            _load_pem(context, broker.cert_pem + broker.key_pem.get_secret_value())
    except ssl.SSLError as error:
        problem = error.reason or "is the key encrypted?"
    if problem:  # raised here: a traceback from inside would hold the key
        raise TlsFileError(f"MQTT_CERT_{kind} or MQTT_KEY_{kind} is not usable: {problem}")
    if broker.alpn:
        context.set_alpn_protocols([broker.alpn])
    return context


def _load_pem(context: ssl.SSLContext, text: str) -> None:
    """Load from a file in memory: `ssl` reads files only, and a key must not be on a disk."""
    with os.fdopen(os.memfd_create("pem"), "w") as file:
        file.write(text)
        file.flush()
        context.load_cert_chain(f"/proc/self/fd/{file.fileno()}", password="")


def incomplete(error: ssl.SSLCertVerificationError) -> str:
    """What to do where a certificate lacks what Python asks for since 3.13, "" where something else is wrong."""
    if error.verify_code not in _STRICT:
        return ""
    return (
        "Python 3.13 and later, also Lambda's, refuse incomplete certificates (RFC 5280), which older versions accept. "
        "Make the authority's again, with critical basicConstraints, subjectKeyIdentifier and a critical keyUsage of "
        "keyCertSign and cRLSign; sign the broker's with it, with subjectKeyIdentifier and authorityKeyIdentifier"
    )
