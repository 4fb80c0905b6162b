"""TLS for the host's own server: the certificate that the settings name, and the layer between socket and HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from functions.settings import Settings, SettingsError
from functions.telemetry import logger

if TYPE_CHECKING:
    from infra.host.web.protocol import HttpProtocol

CHECK_SECONDS = 60.0
RECORD_BYTES = 16 * 1024  # at most, RFC 8446 §5.1
CERT, KEY = "HOST_CERT_FILE", "HOST_KEY_FILE"


class Certificate:
    """A pair of files that may be replaced while the host runs: what connects later gets the new one."""

    def __init__(self, cert_file: Path, key_file: Path) -> None:
        """Raises `SettingsError`."""
        self._files = (cert_file, key_file)
        self._checked_at = time.monotonic()
        self._seen = self._stamp()
        try:
            self._context = _context(*self._files)
        except OSError as error:
            raise SettingsError((_problem(cert_file, error),)) from None

    @classmethod
    def of(cls, settings: Settings) -> Certificate | None:
        """Return that of the settings; None where the host speaks plain HTTP. Raises `SettingsError`."""
        if settings.host_cert_file is None or settings.host_key_file is None:
            return None
        return cls(settings.host_cert_file, settings.host_key_file)

    def context(self) -> ssl.SSLContext:
        """Return the context for one more connection. The files are looked at once in `CHECK_SECONDS` at the most."""
        now = time.monotonic()
        if now - self._checked_at >= CHECK_SECONDS:
            self._checked_at = now
            self._check()
        return self._context

    def _check(self) -> None:
        """Take new files into use. If they cannot be used, keep what is there, and say so once."""
        found = self._stamp()
        if found == self._seen:
            return
        self._seen = found
        try:
            self._context = _context(*self._files)
        except OSError as error:
            variable, problem = _problem(self._files[0], error)
            words = "the new certificate cannot be used; the old one stays"
            logger.warning(words, extra={"variable": variable, "problem": problem})
        else:
            logger.info("the certificate was renewed")

    def _stamp(self) -> object:
        """Return what changes with the files, also if they are links that now lead to other ones."""
        try:
            stats = [file.stat() for file in self._files]
        except OSError:  # `_context` says which
            return None
        return [(stat.st_mtime_ns, stat.st_ino, stat.st_size) for stat in stats]


def _context(cert_file: Path, key_file: Path) -> ssl.SSLContext:
    """Raises OSError, of which `ssl.SSLError` is one."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.options |= ssl.OP_NO_RENEGOTIATION  # a client could keep us busy with it
    # A password, because OpenSSL would ask the terminal for that of an encrypted key, and wait.
    context.load_cert_chain(cert_file, key_file, password="")
    context.set_alpn_protocols(["http/1.1"])
    return context


def _problem(cert_file: Path, error: OSError) -> tuple[str, str]:
    """Return which variable is wrong, and what would be right."""
    if not isinstance(error, ssl.SSLError):
        return CERT, f"this file or {KEY} cannot be read: {error.strerror}"
    reason = error.reason or ""
    if reason in {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH"}:
        return KEY, f"must be the key of the certificate in {CERT}, and is another one"
    if "TOO_" in reason:
        return CERT, f"cannot be used: {reason.replace('_', ' ').lower()}"
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_verify_locations(cert_file)
    except OSError:
        return CERT, "must be a PEM file with the certificate, followed by those of the authorities in between"
    return KEY, "must be a PEM file with the private key, without a password"


class TlsProtocol(asyncio.Protocol):
    """Decrypts for an `HttpProtocol`, and is the transport that it writes to.

    asyncio's own TLS calls a protocol only after the handshake, and does not tell it that a client leaves our answers
    unread. Here the HTTP side counts each connection from the start, its deadlines hold for the handshake too, and it
    sees what the socket sees.
    """

    _transport: Any = None
    _shaken = False
    _said_all = False
    _write_paused = False

    def __init__(self, context: ssl.SSLContext, http: HttpProtocol) -> None:
        """`http` belongs to this connection alone."""
        self._http = http
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_side=True)

    # Towards the socket.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        self._transport = transport
        self._http.connection_made(self)  # type: ignore[arg-type]  # it is what that needs of a transport

    def data_received(self, data: bytes) -> None:
        """Decrypt all of one read, and hand it on as one."""
        if self._said_all:  # nobody wants it any more; it is counted
            self._http.data_received(data)
            return
        self._in.write(data)
        plain, ended = bytearray(), False
        try:
            if not self._shaken:
                self._tls.do_handshake()
                self._shaken = True
            while chunk := self._tls.read(RECORD_BYTES):
                plain += chunk
            ended = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            ended = True
        except ssl.SSLError:  # it is not TLS, or no version of it that we speak; OpenSSL may have written an alert
            self._flush()
            self._transport.close()
            return
        if self._out.pending and self._write_paused:  # it makes us write, and reads nothing
            self._transport.abort()
            return
        self._flush()
        if plain:
            self._http.data_received(bytes(plain))
        if ended and not self._transport.is_closing():
            self.eof_received()

    def eof_received(self) -> bool:
        """Pass on the end of what the client says. It may still listen."""
        stays = self._shaken and self._http.eof_received()
        if not stays:
            self.close()
        return stays

    def connection_lost(self, exc: Exception | None) -> None:
        """Pass on."""
        self._http.connection_lost(exc)
        del self._http  # each knows the other

    def pause_writing(self) -> None:
        """Pass on."""
        self._write_paused = True
        self._http.pause_writing()

    def resume_writing(self) -> None:
        """Pass on."""
        self._write_paused = False
        self._http.resume_writing()

    def _flush(self) -> None:
        if self._out.pending:
            self._transport.write(self._out.read())

    # As a transport.

    def write(self, data: bytes) -> None:
        """Encrypt and send. Before the handshake there is nobody to tell."""
        if self._shaken and data:
            with contextlib.suppress(ssl.SSLError):  # closed by the other end: the socket will tell
                self._tls.write(data)
            self._flush()

    def write_eof(self) -> None:
        """Say that nothing more comes (RFC 8446 §6.1)."""
        if self._said_all:
            return
        self._said_all = True
        if self._shaken:
            with contextlib.suppress(ssl.SSLError):  # it would wait for the other end to say the same
                self._tls.unwrap()
            self._flush()
        self._transport.write_eof()

    def close(self) -> None:
        """Say so, send what is left, and close."""
        if not self._transport.is_closing():
            self.write_eof()
            self._transport.close()

    def __getattr__(self, name: str) -> Any:  # noqa: ANN401 - the rest is the socket's
        return getattr(self._transport, name)
