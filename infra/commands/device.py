"""The command `bucketbell device`: its options, and how it starts and ends."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from functions.events.names import normalise_mac
from functions.events.routes import Routes, own_topic
from functions.mqtt.broker import BrokerConfig
from functions.settings import Settings
from infra.commands.common import (
    ca_file_option,
    fail,
    http_client,
    http_url,
    load_or_exit,
    subscriber_arguments,
    token_option,
)
from infra.device.names import Kind

if TYPE_CHECKING:
    from infra.device.loop import Device
    from infra.device.outbox import Outbox
    from infra.device.report import JsonReport, TextReport

SESSION_EXPIRY_SECONDS = 24 * 3600  # how long the broker keeps what was missed; the manifest knows of the rest
DEFAULT_SPREAD_SECONDS = 0.5
MAX_SPREAD_SECONDS = 86_400.0

EPILOG = (
    "Example: `DEVICE_TOKEN=$(bucketbell token a1-b2-c3-d4-e5-f6) bucketbell device --mac a1-b2-c3-d4-e5-f6 "
    "--server http://127.0.0.1:8080 --mqtt-url mqtt://127.0.0.1 --directory ./device`\n\n"
    "Exit code 0: it was stopped, or with --once it has every file. 1: with --once a file could not be fetched; or it "
    "could not start. 2: wrong options. The next run continues the downloads that this one has begun."
)


def _mac(text: str) -> str:
    try:
        return normalise_mac(text).lower()
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def device(
    *,
    mac: Annotated[
        str, typer.Option(envvar="DEVICE_MAC", callback=_mac, help="This device's MAC address: a1-b2-… or A1:B2:….")
    ],
    token: Annotated[str, token_option("DEVICE_TOKEN", "This device's token", "as `bucketbell token` prints it")],
    server: Annotated[
        str,
        typer.Option(envvar="DEVICE_SERVER", callback=http_url, help="The host, e.g. http://127.0.0.1:8080."),
    ],
    directory: Annotated[
        Path,
        typer.Option(
            envvar="DEVICE_DIRECTORY",
            file_okay=False,
            help="Where the files go: into `configs/` and `assets/` in it; the device's own notes into `.bucketbell/`.",
        ),
    ],
    mqtt_url: Annotated[
        str | None, typer.Option(help="The broker. Default: MQTT_URL. Not needed with --once.", show_default=False)
    ] = None,
    ca_file: Annotated[Path | None, ca_file_option("DEVICE_CA_FILE", "server and store")] = None,
    once: Annotated[bool, typer.Option("--once", help="Catch up by the manifest, then exit; needs no broker.")] = False,
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
    """Act as a device: hear of updates, fetch the files, verify them and keep them in a directory, until Ctrl-C.

    It catches up by the manifest when it starts, after each reconnection, and once a day. A file is replaced by one
    rename when the new one is complete. A broken download continues where it stopped. When less than half of its
    token's life is left, it gets the next one, and keeps it in `.bucketbell/`. The broker's other settings are the
    host's: MQTT_USERNAME, MQTT_PASSWORD, MQTT_CA_FILE, MQTT_CERT_FILE, MQTT_KEY_FILE, MQTT_PROTOCOL, TOPIC_PREFIX.
    """
    settings = load_or_exit(None if mqtt_url is None else {"MQTT_URL": mqtt_url}).settings
    broker = None if once else BrokerConfig.of(settings)
    if broker is None and not once:
        raise typer.BadParameter("name the broker with --mqtt-url, or set MQTT_URL")
    from infra.device.held_token import HeldToken  # noqa: PLC0415 - what this command needs is loaded when it runs
    from infra.device.loop import Device  # noqa: PLC0415 - as above
    from infra.device.outbox import Outbox  # noqa: PLC0415 - as above
    from infra.device.server import DownloadServer  # noqa: PLC0415 - as above
    from infra.device.store import DeviceStore, StoreError  # noqa: PLC0415 - as above

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # supervisors end it as Ctrl-C does
    try:
        with ExitStack() as opened:
            report = _report(as_json=as_json)
            opened.callback(report.close)
            store = DeviceStore(directory)
            opened.callback(store.close)
            outbox = Outbox(store, f"bucketbell/{version('bucketbell')}", by_http=once)
            web = opened.enter_context(http_client(ca_file, "DEVICE_CA_FILE"))
            agent = Device(
                mac,
                _topics(settings, mac),
                web=web,
                server=DownloadServer(web, server, HeldToken(token, store)),
                store=store,
                report=report,
                outbox=outbox,
                spread_seconds=spread_seconds,
            )
            if broker is not None:
                opened.enter_context(_hearing(settings, broker, agent, report, mac=mac, outbox=outbox))
            well = agent.run(once=once)
    except StoreError as error:
        fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit(1 if once else 0) from None
    if not well:
        raise typer.Exit(1)


def _topics(settings: Settings, mac: str) -> dict[str, Kind | None]:
    configs, assets = Routes.of(settings).topics
    return {configs: "config", assets: "asset", own_topic(settings.topic_prefix, mac): None}


def _report(*, as_json: bool) -> JsonReport | TextReport:
    from rich.console import Console  # noqa: PLC0415 - as above

    from infra.device.report import JsonReport, TextReport  # noqa: PLC0415 - as above

    return JsonReport(sys.stdout) if as_json else TextReport(Console(highlight=False))


@contextmanager
def _hearing(
    settings: Settings,
    broker: BrokerConfig,
    agent: Device,
    report: JsonReport | TextReport,
    *,
    mac: str,
    outbox: Outbox,
) -> Iterator[None]:
    """Let the device hear the broker. While the broker is down, it tries again."""
    from infra.device.outbox import MqttReports  # noqa: PLC0415 - as above
    from infra.subscriber import Subscriber, SubscriberError  # noqa: PLC0415 - as above

    *topics, own = _topics(settings, mac)
    reports = MqttReports(outbox, f"{settings.topic_prefix}/devices/{mac}/report", report)
    told: str | None = None

    def say(error: SubscriberError | None) -> None:
        nonlocal told
        if error is None:
            report("listening", broker=broker.url, topics=subscriber.granted)
            reports.connected()
            agent.listening()
        elif str(error) != told:  # it tries every few seconds
            report("deaf", detail=str(error))
        told = None if error is None else str(error)

    subscriber = Subscriber(
        topics=topics,
        optional_topics=(own,),
        sender=reports,
        qos=1,
        **subscriber_arguments(broker),
        client_id=f"bucketbell-device-{mac}",
        session_expiry_seconds=SESSION_EXPIRY_SECONDS,
        presence_topic=f"{settings.topic_prefix}/devices/{mac}/status",
        on_message=agent.hear,
        on_state=say,
    )
    subscriber.begin()
    try:
        yield
    finally:
        subscriber.stop()
