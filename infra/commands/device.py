"""The command `bucketbell device`: its options, and how it starts and ends."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer

from functions.events.names import normalise_mac
from functions.events.routes import Routes
from functions.mqtt.broker import Broker
from functions.mqtt.tls import TlsFileError
from functions.settings import Settings, SettingsError, load
from infra.commands.common import http_url, subscriber_arguments
from infra.device.names import Kind

if TYPE_CHECKING:
    from infra.device.loop import Device
    from infra.device.report import JsonReport, TextReport
    from infra.http_client import Web

ENV_FILE = Path(".env")
SESSION_EXPIRY_SECONDS = 24 * 3600  # how long the broker keeps what was missed; the manifest knows of the rest
DEFAULT_SPREAD_SECONDS = 0.5
MAX_SPREAD_SECONDS = 86_400.0

EPILOG = (
    "Example: `DEVICE_TOKEN=$(bucketbell token a1-b2-c3-d4-e5-f6) bucketbell device --mac a1-b2-c3-d4-e5-f6 "
    "--server http://127.0.0.1:8080 --mqtt-url mqtt://127.0.0.1 --directory ./device`\n\n"
    "Exit code 0: stopped, or with --once all is here. 1: with --once something could not be had; or it could not "
    "start. 2: wrong options. Files it has begun are resumed by the next run, however this one ended."
)


def _mac(text: str) -> str:
    try:
        return normalise_mac(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _token(token: str) -> str:
    token = token.strip()
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise typer.BadParameter("must be one word, as `bucketbell token` prints it")
    return token


def device(
    *,
    mac: Annotated[
        str, typer.Option(envvar="DEVICE_MAC", callback=_mac, help="This device's MAC address: a1-b2-… or A1:B2:….")
    ],
    token: Annotated[
        str,
        typer.Option(
            envvar="DEVICE_TOKEN",
            callback=_token,
            help="This device's token. Better by environment: every user of a machine can read command lines.",
        ),
    ],
    server: Annotated[
        str,
        typer.Option(envvar="DEVICE_SERVER", callback=http_url, help="The host, e.g. http://127.0.0.1:8080."),
    ],
    directory: Annotated[
        Path,
        typer.Option(
            envvar="DEVICE_DIRECTORY",
            file_okay=False,
            help="Where the files go: `configs/` and `assets/` in it; notes of the device's own in `.bucketbell/`.",
        ),
    ],
    mqtt_url: Annotated[
        str | None, typer.Option(help="The broker. Default: MQTT_URL. Not needed with --once.", show_default=False)
    ] = None,
    ca_file: Annotated[
        Path | None,
        typer.Option(
            envvar="DEVICE_CA_FILE",
            exists=True,
            dir_okay=False,
            readable=True,
            help="PEM file with authorities to trust for server and store, besides the system's.",
        ),
    ] = None,
    once: Annotated[bool, typer.Option("--once", help="Catch up by the manifest, then exit; no broker.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line for each event.")] = False,
    spread_seconds: Annotated[
        float,
        typer.Option(
            envvar="DEVICE_SPREAD_SECONDS",
            min=0,
            max=MAX_SPREAD_SECONDS,
            help="Wait a random time up to this before fetching, so that a fleet does not arrive at once.",
        ),
    ] = DEFAULT_SPREAD_SECONDS,
) -> None:
    """Be a device: hear of updates, pull the files, verify them, keep them in a directory, until Ctrl-C.

    Catches up by the manifest at the start and after each reconnection. A file is replaced by one rename, when the
    new one is whole; a broken download goes on where it stopped. The broker's other settings are the host's own:
    MQTT_USERNAME, MQTT_PASSWORD, MQTT_CA_FILE, MQTT_CERT_FILE, MQTT_KEY_FILE, MQTT_PROTOCOL, TOPIC_PREFIX.
    """
    settings = _settings(mqtt_url)
    broker = None if once else Broker.of(settings)
    if broker is None and not once:
        raise typer.BadParameter("name the broker with --mqtt-url, or set MQTT_URL")
    from infra.device.loop import Device  # noqa: PLC0415 - what this command needs is loaded when it runs
    from infra.device.server import Server  # noqa: PLC0415 - as above
    from infra.device.store import Store, StoreError  # noqa: PLC0415 - as above

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # supervisors end it as Ctrl-C does
    try:
        with ExitStack() as opened:
            report = _report(as_json=as_json)
            opened.callback(report.close)
            store = Store(directory)
            opened.callback(store.close)
            web = opened.enter_context(_web(ca_file))
            it = Device(
                mac,
                _topics(settings),
                web=web,
                server=Server(web, server, token),
                store=store,
                report=report,
                spread_seconds=spread_seconds,
            )
            if broker is not None:
                opened.enter_context(_hearing(settings, broker, mac, it, report))
            well = it.run(once=once)
    except StoreError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(1 if once else 0) from None
    if not well:
        raise typer.Exit(1)


@contextmanager
def _web(ca_file: Path | None) -> Iterator[Web]:
    from infra.http_client import Web  # noqa: PLC0415 - as above
    from infra.proxies import ProxyError  # noqa: PLC0415 - as above

    try:
        web = Web(ca_file=ca_file, environment=os.environ)
    except ProxyError as error:
        _fail(str(error))
    except OSError as error:  # OpenSSL's errors are some
        _fail(f"DEVICE_CA_FILE is not what it should be: {error}")
    try:
        yield web
    finally:
        web.close()


def _settings(mqtt_url: str | None) -> Settings:
    variables = dict(os.environ) if mqtt_url is None else {**os.environ, "MQTT_URL": mqtt_url}
    try:
        return load(variables, env_file=ENV_FILE).settings
    except SettingsError as error:
        _fail(str(error))


def _topics(settings: Settings) -> dict[str, Kind]:
    configs, assets = Routes.of(settings).topics
    return {configs: "config", assets: "asset"}


def _report(*, as_json: bool) -> JsonReport | TextReport:
    from rich.console import Console  # noqa: PLC0415 - as above

    from infra.device.report import JsonReport, TextReport  # noqa: PLC0415 - as above

    return JsonReport(sys.stdout) if as_json else TextReport(Console(highlight=False))


@contextmanager
def _hearing(
    settings: Settings, broker: Broker, mac: str, it: Device, report: JsonReport | TextReport
) -> Iterator[None]:
    """Let `it` hear the broker, which may be away: then it tries on."""
    from infra.subscriber import Subscriber, SubscriberError  # noqa: PLC0415 - as above

    topics = tuple(_topics(settings))
    told: str | None = None

    def say(error: SubscriberError | None) -> None:
        nonlocal told
        if error is None:
            report("listening", broker=broker.url, topics=topics)
            it.listening()
        elif str(error) != told:  # it tries every few seconds
            report("deaf", detail=str(error))
        told = None if error is None else str(error)

    try:
        reach = subscriber_arguments(broker)
    except (TlsFileError, OSError) as error:  # OSError: a file has gone since the settings were read
        _fail(str(error))
    subscriber = Subscriber(
        topics=topics,
        qos=1,
        **reach,
        client_id=f"bucketbell-device-{mac}",
        session_expiry_seconds=SESSION_EXPIRY_SECONDS,
        presence_topic=f"{settings.topic_prefix}/devices/{mac}/status",
        on_message=it.hear,
        on_state=say,
    )
    subscriber.begin()
    try:
        yield
    finally:
        subscriber.stop()


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(1)
