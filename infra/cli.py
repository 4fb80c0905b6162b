"""`bucketbell`: the command for people. Each command imports what it needs when it runs."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from pydantic import SecretStr
from rich.console import Console
from rich.table import Table

from functions.settings import Loaded, Settings, SettingsError, load

ENV_FILE = Path(".env")

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
    help="Put a file in the bucket; every device that needs it knows within milliseconds. "
    "Every setting is an environment variable (also read from `.env` and from files in `SECRETS_DIR`): "
    "`bucketbell config` shows them.",
)


def load_or_exit() -> Loaded:
    """Return the settings, or say what is wrong with them and exit 1."""
    try:
        return load(env_file=ENV_FILE)
    except SettingsError as error:
        _refuse(error)


def _refuse(error: SettingsError) -> NoReturn:
    console = Console(stderr=True)
    for variable, problem in error.problems:
        console.print(f"[bold red]{variable}[/] {problem}", highlight=False)
    raise typer.Exit(1)


@app.command()
def host(
    host: Annotated[
        str, typer.Option(help="Address to listen on; anything but loopback needs WEBHOOK_TOKENS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
) -> None:
    """Run the self-hosted process: the doors for the store's events, and the MQTT connection.

    `POST /events` (sure: answers when the broker has confirmed) · `POST /events/fast` (202 at once) ·
    `GET /healthz` · `GET /readyz` · `GET /metrics`. With `SQS_QUEUE_URL` it polls that queue too.
    SIGTERM finishes what is in flight and exits 0.
    """
    loaded = load_or_exit()
    from infra.host.server import serve  # noqa: PLC0415 - uvicorn is only for this command

    try:
        serve(loaded.settings, host, port)
    except SettingsError as error:
        _refuse(error)


@app.command()
def listen(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object for each message, for scripts.")] = False,
    count: Annotated[int | None, typer.Option(help="Stop after this many messages.", min=1)] = None,
    seconds: Annotated[
        float | None, typer.Option(help="Stop after this long; exit 1 when --count was not reached.", min=0)
    ] = None,
) -> None:
    """Subscribe to the update topics and print each notification as a device hears it, until Ctrl-C."""
    settings = load_or_exit().settings
    broker = settings.broker
    if broker is None:
        _refuse(SettingsError((("MQTT_URL", "must be set to listen, e.g. mqtt://broker.local"),)))
    from functions.routes import Routes  # noqa: PLC0415 - as below
    from infra.subscriber import Subscriber, SubscriberError  # noqa: PLC0415 - paho is only for this command

    topics = Routes.of(settings).topics
    until = None if seconds is None else time.monotonic() + seconds
    heard = 0
    try:
        with Subscriber(
            broker.url,
            topics,
            username=broker.username,
            password=broker.password.get_secret_value() if broker.password else None,
            ca_file=broker.ca_file,
            protocol=broker.protocol,
        ) as subscriber:
            print(f"listening on {broker.url}: {', '.join(topics)}", file=sys.stderr)
            while (count is None or heard < count) and (until is None or time.monotonic() < until):
                try:
                    message = subscriber.next(0.5 if until is None else max(0.0, min(0.5, until - time.monotonic())))
                except TimeoutError:
                    continue
                heard += 1
                payload = message.payload.decode(errors="replace")
                if as_json:
                    document = {
                        "topic": message.topic,
                        "payload": payload,
                        "qos": message.qos,
                        "retain": message.retain,
                    }
                    document |= {
                        "properties": dict(message.user_properties),
                        "received_at": message.received_wall,
                    }
                    print(json.dumps(document), flush=True)
                else:
                    moment = time.strftime("%H:%M:%S", time.localtime(message.received_wall))
                    print(f"{moment}  {message.topic}  {payload}", flush=True)
    except SubscriberError as error:
        print(error, file=sys.stderr)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(0) from None
    if count is not None and heard < count:
        raise typer.Exit(1)


@app.command()
def config(
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object, for scripts.")] = False,
) -> None:
    """Show the effective settings and where each came from; secrets are masked. Exit 1 where one is wrong."""
    loaded = load_or_exit()
    rows = {
        name.upper(): (shown(getattr(loaded.settings, name)), loaded.origins.get(name, "default"))
        for name in Settings.model_fields
    }
    if as_json:
        print(
            json.dumps({name: {"value": value, "origin": origin} for name, (value, origin) in rows.items()}, indent=2)
        )
        return
    table = Table("variable", "value", "from", box=None, header_style="bold")
    for name, (value, origin) in rows.items():
        table.add_row(name, "-" if value is None else str(value), origin, style="dim" if origin == "default" else "")
    Console(width=None if sys.stdout.isatty() else int(os.environ.get("COLUMNS", "120"))).print(table)


def shown(value: object) -> object:
    """Return a setting as it may be shown: a secret as stars, whatever its length."""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, tuple):
        return ", ".join("********" if isinstance(item, SecretStr) else str(item) for item in value) or None
    return value if value is None or isinstance(value, (int, float)) else str(value)
