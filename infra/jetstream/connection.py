"""The connection to NATS by the settings, and its trouble in plain words."""

from __future__ import annotations

import asyncio
import os
import random
import re
import ssl
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import nats.errors
from nats.aio.client import Client
from nats.js import errors as js_errors

from functions.settings.addresses import is_tls, parse_nats_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

    from nats.js import JetStreamContext

    from functions.settings import Settings

CONNECT_SECONDS = 5.0  # for each server
CALL_SECONDS = 5.0
PING_SECONDS, MAX_PINGS = 10, 2  # a server that is silent for so long is left

_NO_JETSTREAM = "this server has no JetStream, or none for this account: start it with `-js`, or enable it there"
_REFUSED = "the credentials are refused: correct NATS_USERNAME and NATS_PASSWORD, or what stands in their place"
_CREDS = re.compile("BEGIN NATS USER JWT.*BEGIN USER NKEY SEED", re.DOTALL)
_SEED = re.compile(r"\bSU[A-Z2-7]{56}\b")
_PERMISSION, _AUTHORIZATION = "permissions violation", "authorization violation"


class JetStreamError(Exception):
    """JetStream cannot be used; the message says why, and what to do."""


class JetStreamClient(Client):
    """NATS' client, which does not fall back to plain text."""

    def __init__(self, *, tls: bool) -> None:
        super().__init__()
        self._wants_tls = tls

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:  # noqa: FBT001, FBT002 - the base class's
        # The library encrypts only if the server's first line asks for it, and sends the credentials in any case.
        if initial_connection and self._wants_tls and not info.get("tls_required"):
            raise nats.errors.Error("the server does not ask for TLS, which tls:// in NATS_URL promises")
        await super()._process_info(info, initial_connection)


async def connect(
    settings: Settings, name: str, *, on_closed: Callable[[], Awaitable[None]] | None = None
) -> tuple[JetStreamClient, Complaints]:
    """Connect once, to one of the servers. Raises `JetStreamError`. `on_closed` hears of the connection's end."""
    complaints = Complaints()
    servers = [_server(url) for url in settings.nats_url]
    random.shuffle(servers)  # the library tries one, and gives up at its first bad answer
    tls = is_tls(settings.nats_url[0])
    options = _login(settings) | ({"tls": _tls(settings)} if tls else {})
    reason = ""
    for server in servers:
        client = JetStreamClient(tls=tls)
        complaints.last = ""
        try:
            async with asyncio.timeout(CONNECT_SECONDS):
                await client.connect(
                    [server],
                    name=name,
                    allow_reconnect=False,
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    connect_timeout=int(CONNECT_SECONDS),
                    ping_interval=PING_SECONDS,
                    max_outstanding_pings=MAX_PINGS,
                    error_cb=complaints.hear,
                    closed_cb=on_closed,
                    **options,
                )
        except Exception as error:  # noqa: BLE001 - the library raises what it meets: the system's, TLS', its own
            await quietly_close(client)
            reason = f"{server}: {explain(error, complaints.last)}"
        except BaseException:
            await quietly_close(client)
            raise
        else:
            return client, complaints
    raise JetStreamError(reason)


@asynccontextmanager
async def on_jetstream(settings: Settings, name: str) -> AsyncIterator[JetStreamContext]:
    """A connection for a few calls. Raises `JetStreamError` also for what they raise."""
    client, complaints = await connect(settings, name)
    try:
        yield client.jetstream(timeout=CALL_SECONDS)
    except Exception as error:  # noqa: BLE001 - the library raises what it meets
        raise JetStreamError(explain(error, complaints.last)) from None
    finally:
        await quietly_close(client)


class Complaints:
    """What the server has said on a connection beside its answers: refused rights come so, and the call times out."""

    def __init__(self) -> None:
        self.last = ""

    def take(self) -> str:
        """The last one, once; "" where there is none."""
        last, self.last = self.last, ""
        return last

    async def hear(self, error: Exception) -> None:
        """The library's error callback."""
        self.last = str(error) or type(error).__name__
        if isinstance(error, OSError) and (error.errno or 0) > 0:
            self.last = os.strerror(error.errno or 0).lower()  # asyncio's own words are longer


async def quietly_close(client: Client) -> None:
    """End a connection, whatever state it is in."""
    try:
        async with asyncio.timeout(1.0):
            await client.close()
    except Exception:  # noqa: BLE001, S110 - it is given up in any case
        pass


def _server(url: str) -> str:
    tls, host, port = parse_nats_url(url)
    return f"{'tls' if tls else 'nats'}://{f'[{host}]' if ':' in host else host}:{port}"


def _login(settings: Settings) -> dict[str, Any]:
    if settings.nats_username is not None and settings.nats_password is not None:
        return {"user": settings.nats_username, "password": settings.nats_password.get_secret_value()}
    if settings.nats_token is not None:
        return {"token": settings.nats_token.get_secret_value()}
    if settings.nats_creds_file is not None:
        if not _CREDS.search(_text(settings.nats_creds_file, "NATS_CREDS_FILE")):
            raise JetStreamError("NATS_CREDS_FILE holds no JWT with a seed: it is a file that ends in .creds")
        return {"user_credentials": str(settings.nats_creds_file)}
    if settings.nats_nkey_file is not None:
        if not _SEED.search(_text(settings.nats_nkey_file, "NATS_NKEY_FILE")):
            raise JetStreamError("NATS_NKEY_FILE holds no user's seed: it is one word that begins with SU")
        return {"nkeys_seed": str(settings.nats_nkey_file)}
    return {}


def _text(file: Path, variable: str) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError as error:
        raise JetStreamError(f"{variable} cannot be read: {error.strerror}") from None


def _tls(settings: Settings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=settings.nats_ca_file)
    except ssl.SSLError as error:
        raise JetStreamError(f"NATS_CA_FILE is not usable: {error.reason or error}") from None
    if settings.nats_cert_file and settings.nats_key_file:
        try:
            # A password, because OpenSSL would ask the terminal for that of an encrypted key, and wait.
            context.load_cert_chain(settings.nats_cert_file, settings.nats_key_file, password="")
        except ssl.SSLError as error:
            why = error.reason or "is the key encrypted?"
            raise JetStreamError(f"NATS_CERT_FILE or NATS_KEY_FILE is not usable: {why}") from None
    return context


def explain(error: BaseException, complaint: str = "") -> str:
    """What went wrong, in words, and what to do about it. `complaint` is what the server said beside."""
    text = f"{complaint} {error}".lower()
    if isinstance(error, JetStreamError):
        return str(error)
    if _AUTHORIZATION in text:
        return _REFUSED
    if _PERMISSION in text:
        said = complaint if _PERMISSION in complaint.lower() else str(error)
        return f"a right is missing: {said.removeprefix('nats: ')}"
    for kinds, words in _WORDS:
        if isinstance(error, kinds) and (found := words(error, complaint)):
            return found
    return str(error).removeprefix("nats: ") or type(error).__name__


_WORDS: tuple[tuple[Any, Callable[[Any, str], str | None]], ...] = (
    (nats.errors.AuthorizationError, lambda _, __: _REFUSED),
    ((js_errors.ServiceUnavailableError, nats.errors.NoRespondersError), lambda _, __: _NO_JETSTREAM),
    (js_errors.APIError, lambda error, _: f"JetStream answers: {error.description or error.code}"),
    (
        js_errors.NoStreamResponseError,
        lambda _, __: "no stream takes this subject: run `bucketbell connect --nats-url …`",
    ),
    (nats.errors.NoServersError, lambda _, complaint: complaint.removeprefix("nats: ") or "not reachable"),
    (TimeoutError, lambda _, __: "no answer in time"),
    (
        ssl.SSLCertVerificationError,
        lambda error, _: f"its certificate is not trusted ({error.verify_message}): correct NATS_CA_FILE",
    ),
    (OSError, lambda error, _: error.strerror),
)
"""In this order: the first that fits and has something to say."""
