"""Runs the host: settings in, one uvicorn process, exit 0 within three seconds of SIGTERM."""

from __future__ import annotations

import contextlib
import gc
import logging
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from types import FrameType
from typing import Any

import uvicorn

from functions.admin.operations import Administration
from functions.cameras.detections import LABEL
from functions.cameras.reader import Documents
from functions.download import Downloads, respond
from functions.events.routes import Routes
from functions.settings import Settings, SettingsError
from functions.stored.store import ConfigStore, StoreUnavailable
from functions.telemetry import logger
from functions.web.tokens import KeyringError
from infra.host.administration import mount
from infra.host.app import App
from infra.host.bell import DOORS, QUEUE, Bell
from infra.host.broker_settings import Integration
from infra.host.detections import Reader
from infra.host.gateway import Gateway
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.link import NO_TROUBLE, LinkStatus
from infra.host.mqtt.publisher import HostPublisher
from infra.host.poller import LONG_POLL_SECONDS, Poller
from infra.host.protocol import HostProtocol
from infra.host.slices import ask_for_short_slices
from infra.host.web.entrance import SHORT_SECRET_CHARACTERS, Entrance, Gate, StoreGate
from infra.host.web.origin import Proxies, is_loopback

KEEP_ALIVE_SECONDS = 75  # longer than MinIO's pause between two attempts: its connection stays warm
GRACE_SECONDS = 2  # after FLUSH_SECONDS every waiter has its answer
MAX_DESCRIPTORS = 65_536
OWN_DESCRIPTORS = 128  # for the broker, the store, the database and the log, whoever else connects


class Server(uvicorn.Server):
    """uvicorn's server, which would end by the signal instead of with exit status 0."""

    publisher: HostPublisher

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Handle SIGTERM and SIGINT until the server is down."""
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Finish what is in flight; a second signal changes nothing.

        It is soon over, and a terminal's Ctrl-C reaches the whole process group, whose leader then sends its own.
        """
        del sig, frame
        self.should_exit = True

    async def startup(self, sockets: Any = None) -> None:  # noqa: ANN401 - uvicorn's own signature
        """Say where we listen: uvicorn's own words are for developers."""
        await super().startup(sockets)
        if self.started:
            host = f"[{self.config.host}]" if ":" in self.config.host else self.config.host
            logger.info("listening", extra={"url": f"http://{host}:{self.config.port}"})

    async def shutdown(self, sockets: Any = None) -> None:  # noqa: ANN401 - uvicorn's own signature
        """Answer everybody who waits, then close."""
        self.publisher.hurry()
        await super().shutdown(sockets)


def build(settings: Settings, port: int = 0) -> tuple[App, HostPublisher]:
    """Put the host together; nothing is connected before the application's start. Raises `SettingsError`."""
    telemetry = PrometheusTelemetry()
    publisher = HostPublisher(settings.broker, telemetry, on_change=LinkLog())
    store = _store(settings)
    downloads = _downloads(settings)
    integration = Integration(settings, publisher, store, port=port, prepare=lambda: _migrate(settings))
    reader = _reader(settings, downloads, publisher, integration)
    bell = Bell(
        publisher,
        Routes.of(settings),
        telemetry,
        patience_seconds=settings.mqtt_publish_timeout_seconds,
        retry_seconds=settings.event_retry_seconds,
        reader=reader,
    )
    cameras = (LABEL,) if reader is not None else ()
    sources = DOORS | (QUEUE if settings.sqs_queue_url else {})
    telemetry.expected = lambda: (
        ((*bell.routes.topics, *cameras, *integration.labels), sources) if publisher.status.broker else ((), {})
    )
    proxies = Proxies(settings.trusted_proxies)
    stores = [token.get_secret_value() for token in settings.webhook_tokens]
    entrance = Entrance((*stores, *downloads.admin_tokens), downloads.keyring.needs_signature)
    gateway = Gateway(
        lambda event, context: respond(downloads, event, context),
        requests_per_minute=settings.device_requests_per_minute,
        shares=True,
        gate=Gate(entrance, downloads.admit, telemetry.stranger, signed=True),
        proxies=proxies,
    )
    administration = mount(
        Administration(settings, store, integration),
        entrance,
        requests_per_minute=settings.device_requests_per_minute,
        on_stranger=telemetry.stranger,
        proxies=proxies,
    )
    # What begins first ends last.
    on_start = [integration.start, publisher.start, bell.holdups.start]
    on_stop = [bell.holdups.stop, gateway.close, administration.close, publisher.stop, integration.stop]
    if reader is not None:
        on_stop.insert(0, reader.close)
    if settings.sqs_queue_url and (publisher.configured or store is not None):
        from functions.s3 import clients as storage  # noqa: PLC0415 - boto3 takes half a second, and only the poller needs it

        client = storage.client("sqs", settings, read_timeout_seconds=LONG_POLL_SECONDS + 10.0)
        poller = Poller(client, settings.sqs_queue_url, bell)
        on_start.append(poller.start)
        on_stop.insert(0, poller.stop)
    if settings.bucket and (settings.device_token_keys or settings.admin_tokens or reader is not None):
        on_start.append(lambda: gateway.warm_up(lambda: downloads.warm_up(ask_region=True)))
    app = App(
        bell,
        publisher,
        telemetry,
        stores=StoreGate(stores, entrance),
        proxies=proxies,
        public_base_url=settings.public_base_url,
        gateways=(gateway, administration),
        on_start=on_start,
        on_stop=on_stop,
    )
    return app, publisher


def _store(settings: Settings) -> ConfigStore | None:
    try:
        return ConfigStore.of(settings)
    except StoreUnavailable as error:
        raise SettingsError((("DATABASE_URL", str(error).removeprefix("DATABASE_URL ")),)) from None


def _migrate(settings: Settings) -> None:
    from infra.migrations.runner import upgrade  # noqa: PLC0415 - Alembic is for hosts with a database only

    if settings.database_url is not None and upgrade(settings.database_url.get_secret_value()):
        logger.info("the database's tables are up to date now")


def _reader(
    settings: Settings, downloads: Downloads, publisher: HostPublisher, integration: Integration
) -> Reader | None:
    """What reads detection events, where there are any."""
    if settings.events_prefix is None or downloads.objects is None:
        return None
    documents = Documents.of(settings, objects=downloads.objects, keyring=downloads.keyring)
    reader = Reader(documents, publisher, on_camera=integration.heard, on_camera_failed=integration.cameras.forget)
    integration.follow(reader.use)
    integration.look_in(downloads.objects)
    return reader


def _downloads(settings: Settings) -> Downloads:
    try:
        return Downloads.of(settings)
    except KeyringError as error:
        raise SettingsError((("DEVICE_TOKEN_KEYS", str(error).removeprefix("DEVICE_TOKEN_KEYS: ")),)) from None


def uvicorn_config(app: App, host: str, port: int) -> uvicorn.Config:
    """Return how uvicorn serves the application: quick, quiet, and bounded in time."""
    return uvicorn.Config(
        app,
        host=host,
        port=port,
        loop="uvloop",
        http=HostProtocol,
        ws="none",
        lifespan="on",
        access_log=False,
        proxy_headers=False,  # `Proxies` knows whom to believe
        log_config=None,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )


def room_for_connections() -> int:
    """Take the descriptors that the system grants, and return how many of them clients may have.

    Where clients have all of them, a lost broker could not be reached again.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, MAX_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):  # macOS grants fewer than it says
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    descriptors = MAX_DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    return max(descriptors - OWN_DESCRIPTORS, descriptors // 2)


def serve(settings: Settings, host: str, port: int) -> None:
    """Serve until SIGTERM or SIGINT. Raises `SettingsError` where the doors would stand open to the network."""
    if not settings.webhook_tokens and not is_loopback(host):
        problem = f"must be set to listen on {host}: anybody could ring. Set a token, or use --host 127.0.0.1"
        raise SettingsError((("WEBHOOK_TOKENS", problem),))
    configure_logging(settings.log_level)
    _warn_of_short_secrets(settings)
    app, publisher = build(settings, port)
    config = uvicorn_config(app, host, port)
    HostProtocol.max_connections = room_for_connections()
    gc.collect()
    gc.freeze()  # what is there now stays: the collector need not look at it again and again
    server = Server(config)
    server.publisher = publisher
    ask_for_short_slices()
    server.run()


def _warn_of_short_secrets(settings: Settings) -> None:
    for variable, tokens in (("WEBHOOK_TOKENS", settings.webhook_tokens), ("ADMIN_TOKENS", settings.admin_tokens)):
        if any(len(token) < SHORT_SECRET_CHARACTERS for token in tokens):
            words = "a token is so short that it may be guessed, and is refused where somebody tries"
            logger.warning(words, extra={"variable": variable, "wanted_characters": SHORT_SECRET_CHARACTERS})


class LinkLog:
    """Logs the link: each connect and disconnect at INFO, each cause of failure once at WARNING, with a count."""

    def __init__(self) -> None:
        """Begin with a link that was never up."""
        self._connected = False
        self._causes: Counter[str] = Counter()

    def __call__(self, status: LinkStatus) -> None:
        """Hear of a change."""
        details = {"broker": status.broker, "reason": status.reason, "reason_code": status.reason_code}
        if status.connected:
            failures = sum(self._causes.values())
            logger.info("mqtt connected", extra={"broker": status.broker, "failed_attempts": failures})
            self._causes.clear()
        elif self._connected:
            logger.info("mqtt disconnected", extra=details)
        if not status.connected and status.reason not in NO_TROUBLE:
            self._causes[status.reason] += 1
            if self._causes[status.reason] == 1:
                logger.warning("mqtt connection failed; trying on", extra=details)
        self._connected = status.connected


class _Lines(logging.Formatter):
    """One readable line for a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        extra = {key: value for key, value in vars(record).items() if key not in _PLAIN and value not in ("", None)}
        details = "  ".join(f"{key}={value}" for key, value in extra.items())
        moment = time.strftime("%H:%M:%S", time.localtime(record.created))
        line = f"{moment} {record.levelname:<7} {record.getMessage()}  {details}".rstrip()
        # A client's words may be in it: no control character reaches the terminal.
        line = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in line)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


_PLAIN = set(vars(logging.makeLogRecord({}))) | {"message", "color_message", "asctime"}


def configure_logging(level: str) -> None:
    """JSON lines as on Lambda; readable ones where stdout is a terminal."""
    logger.setLevel(level)
    uvicorn_logger = logging.getLogger("uvicorn.error")
    uvicorn_logger.setLevel(logging.WARNING)
    handler = logger.registered_handler
    if sys.stdout.isatty():
        handler.setFormatter(_Lines())
    uvicorn_logger.handlers = [handler]
    uvicorn_logger.propagate = False
