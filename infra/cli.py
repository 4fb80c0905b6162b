"""`bucketbell`: the command for people. Each command imports what it needs when it runs."""

from __future__ import annotations

import json
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pydantic import SecretStr

from functions.mqtt.broker import Broker
from functions.mqtt.tls import TlsFileError
from functions.settings import Loaded, Settings, SettingsError, load
from infra.commands.common import subscriber_arguments
from infra.commands.connect import EPILOG as CONNECT_EPILOG
from infra.commands.connect import connect
from infra.commands.database import MIGRATE_EPILOG, ROTATE_KEYS_EPILOG, migrate, rotate_keys
from infra.commands.device import EPILOG as DEVICE_EPILOG
from infra.commands.device import device
from infra.commands.mqtt import mqtt
from infra.commands.tokens import token

if TYPE_CHECKING:
    from infra.subscriber import Received, Subscriber

ENV_FILE = Path(".env")

LISTEN_POLL_SECONDS = 0.5
MASK = "********"

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Put a file in the bucket; every device that needs it knows within milliseconds.\n\n"
    "Every setting is an environment variable, also read from `.env` in the working directory and from files in the "
    "directory `SECRETS_DIR`; the first that has it wins. `bucketbell config` shows them all.",
    epilog="Exit code 0: done. 1: it could not be done; standard error says why. 2: wrong options.",
)


def load_or_exit() -> Loaded:
    """Return the settings, or say what is wrong with them and exit 1."""
    try:
        return load(env_file=ENV_FILE)
    except SettingsError as error:
        _refuse(error)


def _refuse(error: SettingsError) -> NoReturn:
    for variable, problem in error.problems:
        typer.secho(variable, fg="red", bold=True, nl=False, err=True)
        print(f": {problem}", file=sys.stderr)
    raise typer.Exit(1)


def _fail(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    raise typer.Exit(1)


def _show_version(wanted: bool) -> None:  # noqa: FBT001 - Typer calls it with the option's value
    if wanted:
        print(f"bucketbell {version('bucketbell')}")
        raise typer.Exit


@app.callback()
def main(
    *,
    _version: Annotated[
        bool, typer.Option("--version", help="Show the version and exit.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """Take the options that stand before a command; the help is the application's."""


@app.command(epilog="Example: `MQTT_URL=mqtt://broker.local BUCKET=firmware bucketbell host`")
def host(
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback needs WEBHOOK_TOKENS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
) -> None:
    """Run the self-hosted process: the doors for the store's events, and the MQTT connection.

    `POST /events` answers when the broker has confirmed (the sure door), `POST /events/fast` answers 202 at once.
    `GET /healthz`: alive. `GET /readyz`: could publish now. `GET /metrics`: for Prometheus.

    With `SQS_QUEUE_URL` it polls that queue too. Without `MQTT_URL` it takes events and publishes nothing.
    SIGTERM or Ctrl-C finishes what is in flight and exits 0 within 3 seconds.
    """
    loaded = load_or_exit()
    _check_free(host, port)
    from infra.host.server import serve  # noqa: PLC0415 - what a host needs is only for this command

    try:
        serve(loaded.settings, host, port)
    except SettingsError as error:
        _refuse(error)
    except OSError as error:
        _fail(f"cannot listen on {host} port {port}: {error.strerror}.")


def _check_free(host: str, port: int) -> None:
    """Say in plain words that the address cannot be had, before anything is connected."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        _fail(f"cannot listen on {host} port {port}: {error.strerror}. Choose others with --host and --port.")


app.command(epilog=CONNECT_EPILOG)(connect)
app.command(epilog=DEVICE_EPILOG)(device)
app.add_typer(token)
app.command(epilog=MIGRATE_EPILOG)(migrate)
app.command(epilog=ROTATE_KEYS_EPILOG)(rotate_keys)
app.add_typer(mqtt)


@app.command(
    epilog="Example, as a check in a script: `bucketbell listen --json --count 1 --seconds 30`\n\n"
    "Standard output holds nothing but messages."
)
def listen(
    as_json: Annotated[
        bool,
        typer.Option("--json", help="One JSON object a line: topic, payload, qos, retain, properties, received_at."),
    ] = False,
    count: Annotated[int | None, typer.Option(help="Stop after this many messages.", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after this long; exit 1 when --count was not reached.", min=0)
    ] = None,
) -> None:
    """Subscribe to the update topics and print each notification as a device hears it, until Ctrl-C.

    With EVENTS_PREFIX also to the cameras' topics below TOPIC_PREFIX.

    It uses the same `MQTT_…` settings as the host, and reconnects when the broker goes away.
    """
    settings = load_or_exit().settings
    broker = Broker.of(settings)
    if broker is None:
        _refuse(SettingsError((("MQTT_URL", "must be set to listen, e.g. mqtt://broker.local"),)))
    from functions.events.routes import Routes  # noqa: PLC0415 - as below
    from infra.subscriber import SubscriberError  # noqa: PLC0415 - paho is only for this command

    topics: tuple[str, ...] = Routes.of(settings).topics
    if settings.events_prefix is not None:
        topics = (*topics, f"{settings.topic_prefix}/camera/+/event")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # `timeout` and supervisors end it as Ctrl-C does
    try:
        with _subscriber(broker, topics) as subscriber:
            print(f"listening on {broker.url}: {', '.join(topics)}", file=sys.stderr, flush=True)
            heard = _print_messages(subscriber, count, seconds, _as_json if as_json else _as_text)
    except SubscriberError as error:
        _fail(str(error))
    except KeyboardInterrupt:
        raise typer.Exit from None
    if count is not None and heard < count:
        _fail(f"heard {heard} of {count} messages in {seconds:g} s")


def _subscriber(broker: Broker, topics: tuple[str, ...]) -> Subscriber:
    from infra.subscriber import Subscriber  # noqa: PLC0415 - as above

    try:
        return Subscriber(topics=topics, **subscriber_arguments(broker))
    except (TlsFileError, OSError) as error:  # OSError: a file has gone since the settings were read
        _fail(str(error))


def _print_messages(
    subscriber: Subscriber, count: int | None, seconds: float | None, shape: Callable[[Received], str]
) -> int:
    """Print up to `count` messages for up to `seconds`, and say when the broker is lost; return how many came."""
    until = None if seconds is None else time.monotonic() + seconds
    heard = 0
    told = None
    while count is None or heard < count:
        left = LISTEN_POLL_SECONDS if until is None else min(LISTEN_POLL_SECONDS, until - time.monotonic())
        if left <= 0:
            break
        try:
            message = subscriber.next(left)
        except TimeoutError:
            lost = None if subscriber.last_error is None else str(subscriber.last_error)
            if lost != told:
                print(f"{lost}; trying on" if lost else "listening again", file=sys.stderr, flush=True)
            told = lost
        else:
            heard += 1
            print(shape(message), flush=True)
    return heard


def _as_json(message: Received) -> str:
    return json.dumps(
        {
            "topic": message.topic,
            "payload": message.payload.decode(errors="replace"),
            "qos": message.qos,
            "retain": message.retain,
            "properties": dict(message.user_properties),
            "received_at": message.received_wall,
        }
    )


def _as_text(message: Received) -> str:
    moment = time.strftime("%H:%M:%S", time.localtime(message.received_wall))
    # Anybody may have published it: no control character reaches the terminal.
    payload = "".join(
        c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in message.payload.decode(errors="replace")
    )
    return f"{moment}  {message.topic}  {payload}"


@app.command(epilog="Example: `bucketbell config --json`")
def config(
    as_json: Annotated[
        bool, typer.Option("--json", help="One JSON object: for each variable its value and origin.")
    ] = False,
) -> None:
    """Show the effective settings and where each came from; secrets are masked.

    Where some are wrong it names each of them, with what would be right, and exits 1. Connects to nothing.
    """
    loaded = load_or_exit()
    rows = {
        name.upper(): (shown(getattr(loaded.settings, name)), loaded.origins.get(name, "default"))
        for name in Settings.model_fields
    }
    if loaded.settings.s3_region is None:
        from functions.s3 import clients as storage  # noqa: PLC0415 - only for this command

        try:
            rows["S3_REGION"] = storage.region(loaded.settings)
        except storage.StorageError as error:
            _fail(f"S3_REGION: boto3 cannot read it from its own files: {error.message}")
    if as_json:
        document = {name: {"value": value, "origin": origin} for name, (value, origin) in rows.items()}
        print(json.dumps(document, indent=2))
        return
    # The value comes last: it may be long, and nothing is cut off.
    name_width, origin_width = (max(map(len, column)) for column in (rows, (origin for _, origin in rows.values())))
    for name, (value, origin) in rows.items():
        line = f"{name:<{name_width}}  {origin:<{origin_width}}  {'-' if value is None else value}"
        typer.secho(line, dim=origin == "default")


def shown(value: object) -> object:
    """Return a setting as it may be shown: a secret as stars, whatever its length; None for what is unset."""
    if isinstance(value, SecretStr):
        return MASK
    if isinstance(value, tuple):
        return ", ".join(str(shown(item)) for item in value) or None
    if value is None or isinstance(value, (int, float)):
        return value
    first, *others = str(value).splitlines() or [""]
    return f"{first} … ({len(others)} more lines)" if others else first
