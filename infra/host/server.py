"""Runs the host: settings in, one process, exit 0 within three seconds of SIGTERM."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack
from dataclasses import replace
from typing import TYPE_CHECKING

import uvloop

from functions.admin.api import router as admin_router
from functions.admin.operations import Administration
from functions.admin.uploads import Uploads
from functions.cameras.detections import LABEL
from functions.cameras.reader import DetectionReader
from functions.devices.api import router as devices_router
from functions.devices.downloads import Downloads
from functions.events.routes import Routes
from functions.own_topics import warn_of_missing_broadcasts
from functions.settings import Settings, SettingsError
from functions.stored.errors import StoreUnavailableError
from functions.stored.store import ConfigStore
from functions.telemetry import logger
from functions.web.tokens import KeyringError
from infra.host import systemd
from infra.host.bell import DOORS, QUEUES, STREAM, SWEPT, Bell
from infra.host.broker_settings import Integration
from infra.host.examiner import Examiner
from infra.host.fleet.service import FleetService
from infra.host.fleet.stream import Stream
from infra.host.heap import settle, share_one_heap
from infra.host.inquiry import Inquiry
from infra.host.logs import LinkLog, configure_logging
from infra.host.metrics import JetStreamTelemetry, PrometheusTelemetry, SweepTelemetry
from infra.host.poller import LONG_POLL_SECONDS, PolledQueue, Poller, SqsQueue
from infra.host.slices import ask_for_short_slices
from infra.host.sweep.ledger import Ledger
from infra.host.sweep.listing import Lister
from infra.host.sweep.record import Rung
from infra.host.sweep.state import State
from infra.host.sweep.sweeper import Sweeper
from infra.host.sweep.terms import Terms
from infra.host.web import pages
from infra.host.web.door import Paths
from infra.host.web.entrance import SHORT_SECRET_CHARACTERS, Entrance, Gate, StoreGate
from infra.host.web.limited_router import LimitedRouter
from infra.host.web.origin import TrustedProxies, is_loopback
from infra.host.web.server import Server
from infra.host.web.site import HostSite
from infra.host.web.tls import Certificate

if TYPE_CHECKING:
    from infra.host.jetstream.source import JetStreamSource

MAX_DESCRIPTORS = 65_536
OWN_DESCRIPTORS = 128  # for the broker, the store, the database and the log


class Host:
    """One host: built from the settings, started and stopped in one place."""

    def __init__(self, settings: Settings, port: int = 0) -> None:
        """Nothing is connected before `run`; `port` tells two hosts on one machine apart. Raises `SettingsError`."""
        telemetry = PrometheusTelemetry()
        store = _store(settings)
        downloads = _downloads(settings)
        integration = Integration(
            settings,
            telemetry,
            store,
            _detection_reader(settings, downloads),
            port=port,
            prepare=lambda: _migrate(settings),
            on_change=LinkLog(),
        )
        publisher, reader, announcer = integration.publisher, integration.reader, integration.announcer
        state = _state(settings)
        rung = None if state is None else Rung(state)
        ledger = None if rung is None else Ledger(rung.rang)

        def ring(key: str, mac: str) -> object:
            return uploads.ring(key, mac)  # which is made of what is made of the fleet

        fleet = self._fleet = FleetService.of(
            settings,
            downloads,
            telemetry,
            broker=lambda: publisher.broker,
            discovery_prefix=lambda: announcer.discovery_prefix,
            ring=None if settings.device_topics == "off" else ring,
        )
        bell = Bell(
            publisher,
            Routes.of(settings),
            telemetry,
            patience_seconds=settings.mqtt_publish_timeout_seconds,
            retry_seconds=settings.event_retry_seconds,
            reader=reader,
            ledger=ledger,
            ask=rung.ask if rung is not None and rung.is_shared else None,
            tell=None if fleet is None else fleet.keeper.rang,
        )
        self._state, self._rung, self._sweeper = state, rung, None
        if state is not None and rung is not None and ledger is not None and settings.sweep_seconds:
            terms = Terms.of(settings)
            self._sweeper = Sweeper(
                terms,
                lister=Lister(state.s3, terms.bucket),
                state=state,
                rung=rung,
                ledger=ledger,
                bell=bell,
                publisher=publisher,
                telemetry=SweepTelemetry(telemetry.registry),
                kept=announcer.retained.latest,
                after_first=settle,
            )
        cameras = (LABEL,) if reader is not None else ()
        told = fleet.updates.labels if fleet is not None else tuple
        sources = _sources(settings) | (SWEPT if self._sweeper else {})
        telemetry.watch(lambda: publisher.status.certificate, lambda: integration.database_up)
        tokens = [token.get_secret_value() for token in settings.webhook_tokens]
        entrance = Entrance((*tokens, *downloads.admin_tokens), downloads.keyring.needs_signature)
        per_minute = settings.device_requests_per_minute
        of_devices = devices_router(downloads, telemetry.token_renewed)
        admits_devices = Gate(entrance, downloads.admit, telemetry.stranger, signed=True)
        if fleet is not None:
            of_devices = fleet.noticing(of_devices)
        devices = LimitedRouter(of_devices, admits_devices, requests_per_minute=per_minute, shares_answers=True)
        self._inquiry = Inquiry(bell, publisher, state=state, sweeper=self._sweeper)
        uploads = Uploads(bell.routes, downloads.objects, self._inquiry)
        operations = Administration(settings, store, integration, seen_tokens=downloads.keyring.seen)
        self._examiner = Examiner(settings)
        administration = admin_router(operations, uploads, None if fleet is None else fleet.answers, self._examiner)
        if downloads.admin_tokens:
            administration = replace(administration, routes=(*administration.routes, *pages.routes()))
        admits = Gate(entrance, administration.admit, telemetry.stranger)
        administrators = LimitedRouter(administration, admits, requests_per_minute=per_minute)
        self._paths: list[Paths] = [devices, administrators]
        if fleet is not None:
            reports = LimitedRouter(fleet.reports(downloads), admits_devices, requests_per_minute=per_minute)
            self._paths += [reports, Stream(fleet.changes, admits)]
        self.site = HostSite(
            bell,
            publisher,
            telemetry,
            stores=StoreGate(tokens, entrance),
            downloads=downloads,
            routers=self._paths,
            proxies=TrustedProxies(settings.trusted_proxies),
            public_base_url=settings.public_base_url,
            expected=lambda: (
                ((*bell.routes.labels, *cameras, *announcer.labels, *told()), sources)
                if publisher.status.broker
                else ((), {})
            ),
        )
        self.publisher, self._telemetry, self._settings = publisher, telemetry, settings
        self._certificate = Certificate.of(settings)
        self._integration = integration
        self._bell = bell
        self._reader = reader
        self._devices = devices
        self._downloads = downloads

    async def run(self, host: str, port: int) -> None:
        """Serve until SIGTERM or SIGINT. Raises OSError where nobody can listen there."""
        asked_to_end = _asked_to_end()
        async with AsyncExitStack() as stack:
            await self._start(stack)
            server = Server(self.site, max_connections=room_for_connections())
            await server.start(host, port, self._certificate)
            self._examiner.listen(host, port, tls=self._certificate is not None)
            stack.callback(self._examiner.stop)
            scheme = "http" if self._certificate is None else "https"
            logger.info("listening", extra={"url": f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"})
            with systemd.supervised():
                await asked_to_end.wait()
            self.publisher.hurry()  # after FLUSH_SECONDS everybody who waits has an answer
            await server.stop()

    async def _start(self, stack: AsyncExitStack) -> None:
        """What begins first ends last."""
        settings = self._settings

        def at_the_end(stop: Callable[[], Awaitable[None]]) -> None:
            stack.push_async_callback(_logged, stop)

        self._inquiry.start()
        await self._integration.start()
        at_the_end(self._integration.stop)
        if self._state is not None and self._rung is not None:
            stack.callback(self._state.close)
            await self._rung.start()
            at_the_end(self._rung.stop)
        if self._fleet is not None:
            self._fleet.start()
            stack.callback(self._fleet.stop)
        await self.publisher.start()
        at_the_end(self.publisher.stop)
        for paths in self._paths:
            stack.callback(paths.close)
        await self._bell.holdups.start()
        at_the_end(self._bell.holdups.stop)
        if self._reader is not None:
            at_the_end(self._reader.close)
        if self.publisher.configured or settings.database_url is not None:
            for source in self._fetching():
                await source.start()
                at_the_end(source.stop)
        if self._sweeper is not None:
            await self._sweeper.start()
            at_the_end(self._sweeper.stop)
        if settings.bucket and (settings.device_token_keys or settings.admin_tokens or self._reader is not None):
            self._devices.warm_up(self._warm_up)

    def _fetching(self) -> Iterator[Poller | JetStreamSource]:
        """What fetches events, where stores put them elsewhere than at the doors."""
        for queue in _queues(self._settings):
            yield Poller(queue, self._bell)
        if self._settings.nats_url:
            from infra.host.jetstream.source import JetStreamSource  # noqa: PLC0415 - NATS' client is for this only

            watched = JetStreamTelemetry(self._telemetry.registry)
            yield JetStreamSource(self._settings, self._bell, self.publisher, watched)

    def _warm_up(self) -> None:
        self._downloads.warm_up(ask_region=True)
        settle()


def _sources(settings: Settings) -> dict[str, tuple[str, ...]]:
    """Where events may come from, and what may become of them."""
    polled = {"sqs": settings.sqs_queue_url, "r2": settings.r2_queue_url}
    sources = DOORS | {name: QUEUES[name] for name, url in polled.items() if url}
    return sources | (STREAM if settings.nats_url else {})


async def _logged(stop: Callable[[], Awaitable[None]]) -> None:
    """The process ends in any case, and what is stopped next may still say goodbye."""
    try:
        await stop()
    except Exception:  # noqa: BLE001 - see above
        logger.exception("shutdown")


def _asked_to_end() -> asyncio.Event:
    """Set by SIGTERM or SIGINT. A second one changes nothing: a terminal's Ctrl-C reaches the whole process group."""
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, asked.set)
    return asked


def _store(settings: Settings) -> ConfigStore | None:
    try:
        return ConfigStore.of(settings)
    except StoreUnavailableError as error:
        raise SettingsError((("DATABASE_URL", str(error).removeprefix("DATABASE_URL ")),)) from None


def _state(settings: Settings) -> State | None:
    try:
        return State.of(settings)
    except StoreUnavailableError as error:
        raise SettingsError((("SWEEP_STATE_FILE", str(error)),)) from None


def _queues(settings: Settings) -> Iterator[PolledQueue]:
    # boto3 takes half a second, and urllib3 some memory: only hosts that poll need them.
    if settings.sqs_queue_url:
        from functions.s3 import clients  # noqa: PLC0415 - see above

        client = clients.client("sqs", settings, read_timeout_seconds=LONG_POLL_SECONDS + 10.0)
        yield SqsQueue(client, settings.sqs_queue_url)
    if settings.r2_queue_url and settings.r2_queue_token is not None:
        from infra.host.cloudflare import CloudflareQueue  # noqa: PLC0415 - see above
        from infra.http_client import Web  # noqa: PLC0415 - see above

        patience_seconds = settings.mqtt_publish_timeout_seconds
        url, token = settings.r2_queue_url, settings.r2_queue_token
        yield CloudflareQueue(Web(environment=os.environ), url, token, patience_seconds=patience_seconds)


def _migrate(settings: Settings) -> None:
    from infra.migrations.runner import upgrade  # noqa: PLC0415 - Alembic is for hosts with a database only

    if settings.database_url is not None and upgrade(settings.database_url.get_secret_value()):
        logger.info("the database's tables are up to date now")
        settle()


def _detection_reader(settings: Settings, downloads: Downloads) -> DetectionReader | None:
    if settings.events_prefix is None or downloads.objects is None:
        return None
    return DetectionReader.of(settings, objects=downloads.objects, keyring=downloads.keyring)


def _downloads(settings: Settings) -> Downloads:
    try:
        return Downloads.of(settings)
    except KeyringError as error:
        raise SettingsError((("DEVICE_TOKEN_KEYS", str(error).removeprefix("DEVICE_TOKEN_KEYS: ")),)) from None


def room_for_connections() -> int:
    """Take the descriptors that the system grants, and return how many of them clients may have.

    If clients had all of them, a lost broker could not be reached again.
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
    """Serve until SIGTERM or SIGINT. Raises `SettingsError` if the doors would be open to the network."""
    if not settings.webhook_tokens and not is_loopback(host):
        problem = f"must be set to listen on {host}: anybody could ring. Set a token, or use --host 127.0.0.1"
        raise SettingsError((("WEBHOOK_TOKENS", problem),))
    configure_logging(settings.log_level)
    _warn_of_short_secrets(settings)
    warn_of_missing_broadcasts(settings)
    share_one_heap()
    built = Host(settings, port)
    settle()
    ask_for_short_slices()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(built.run(host, port))


def _warn_of_short_secrets(settings: Settings) -> None:
    for variable, tokens in (("WEBHOOK_TOKENS", settings.webhook_tokens), ("ADMIN_TOKENS", settings.admin_tokens)):
        if any(len(token) < SHORT_SECRET_CHARACTERS for token in tokens):
            words = "a token is so short that it may be guessed, and is refused where somebody tries"
            logger.warning(words, extra={"variable": variable, "wanted_characters": SHORT_SECRET_CHARACTERS})
