"""`bucketbell mqtt`: shows, tries and stores the broker settings of a running host, by its API."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from enum import StrEnum
from functools import wraps
from inspect import Signature, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from functions.settings.sources import plain as line
from infra.commands.common import plain
from infra.commands.host_api import SERVER, Api, AsJson, CaFile, HostAnswer, ServerUrl, Token, open_api, print_json

if TYPE_CHECKING:
    from rich.console import Console

BASE = "/api/v1/integrations/mqtt"
PASSWORD_VARIABLE = "BUCKETBELL_MQTT_PASSWORD"  # noqa: S105 - a variable's name
POLL_SECONDS = 0.25
DEFAULT_WAIT_SECONDS = 8.0
# What a GET tells of the settings that a PUT takes back.
KEPT: tuple[str, ...] = ("broker_host", "broker_port", "username", "use_tls", "topic_prefix", "qos", "enabled")
KEPT += ("discovery_enabled", "discovery_prefix", "retain_messages")

EPILOG = (
    "Examples: `bucketbell mqtt status` · `bucketbell mqtt test --broker-host 192.0.2.7 --username me --password env` "
    "· `bucketbell mqtt set --broker-host 192.0.2.7 --username me --password prompt --discovery`. The token is one of "
    "the host's ADMIN_TOKENS. Exit code 0: connected, or done. 1: not connected, or not done; 2: wrong options."
)


class PasswordFrom(StrEnum):
    """Where the password comes from: never the command line, which every user of a machine can read."""

    keep = "keep"
    prompt = "prompt"
    stdin = "stdin"
    env = "env"
    clear = "clear"


BrokerHost = Annotated[str | None, typer.Option(help="Name or address of the broker.")]
BrokerPort = Annotated[int | None, typer.Option(help="Port of the broker.", min=1, max=65535)]
Username = Annotated[str | None, typer.Option(help='User name at the broker; "" for none.')]
Password = Annotated[
    PasswordFrom,
    typer.Option(
        help=f"keep the stored one, clear it, or read it from a prompt, from stdin or from {PASSWORD_VARIABLE} (env)."
    ),
]
Tls = Annotated[bool | None, typer.Option("--tls/--no-tls", help="Whether to connect by TLS.")]

mqtt = typer.Typer(
    name="mqtt",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    epilog=EPILOG,
    help="Show, try and store the broker settings of a running host, by its API.",
)


def _api(server: str, token: str, ca_file: Path | None) -> AbstractContextManager[Api]:
    return open_api(server, token, ca_file, BASE)


def _changes_broker(command: Callable[..., None]) -> Callable[..., None]:
    """Give `command` the host's API, and what the options that it shares with others say of the broker."""

    @wraps(command, assigned=("__name__", "__doc__"))
    def run(
        *,
        server: ServerUrl = SERVER,
        token: Token,
        ca_file: CaFile = None,
        broker_host: BrokerHost = None,
        broker_port: BrokerPort = None,
        username: Username = None,
        password: Password = PasswordFrom.keep,
        tls: Tls = None,
        **own: object,
    ) -> None:
        given = {"broker_host": broker_host, "broker_port": broker_port, "username": username, "use_tls": tls}
        with _api(server, token, ca_file) as api:
            command(api, given, password, **own)

    shared = list(signature(run, follow_wrapped=False, eval_str=True).parameters.values())[:-1]
    options = [one for one in signature(command, eval_str=True).parameters.values() if one.kind is one.KEYWORD_ONLY]
    vars(run)["__signature__"] = Signature([*shared, *options])  # Typer makes the command line's options of it
    return run


@mqtt.command()
def status(*, server: ServerUrl = SERVER, token: Token, ca_file: CaFile = None, as_json: AsJson = False) -> None:
    """Show whether the host is connected to the broker. Exit 1 if it is not."""
    with _api(server, token, ca_file) as api:
        answer = api.ask("GET", "status")
        if as_json:
            print_json(answer.document)
        else:
            _show_status(answer)
    if not _is_connected(answer.document):
        raise typer.Exit(1)


@mqtt.command(name="test")
@_changes_broker
def attempt(api: Api, given: dict[str, Any], password: PasswordFrom, *, as_json: AsJson = False) -> None:
    """Let the host try to connect once, with the settings in force and those given here. It stores nothing."""
    settings = _changed(api.ask("GET", "config"), given, password)
    with _spinner(f"connecting to {settings['broker_host']} …", quiet=as_json):
        answer = api.ask("POST", "test", settings)
    verdict = answer.document
    if as_json:
        print_json(verdict)
    else:
        _say(f"{verdict['broker']}: {verdict['detail']}", well=verdict["ok"])
        told = ("outcome", "reason_code", "address", "password", "duration_seconds")
        _rows({name: verdict[name] for name in told} | _topics(verdict))
    if not verdict["ok"]:
        raise typer.Exit(1)


@mqtt.command(name="set")
@_changes_broker
def store(
    api: Api,
    given: dict[str, Any],
    password: PasswordFrom,
    *,
    topic_prefix: Annotated[str | None, typer.Option(help="Topics of camera events begin with it.")] = None,
    qos: Annotated[
        int | None, typer.Option(help="Quality of service of camera events: 0, 1 or 2.", min=0, max=2)
    ] = None,
    enabled: Annotated[bool | None, typer.Option("--enabled/--disabled", help="Whether to publish at all.")] = None,
    discovery: Annotated[
        bool | None, typer.Option("--discovery/--no-discovery", help="Whether to tell Home Assistant of cameras.")
    ] = None,
    discovery_prefix: Annotated[str | None, typer.Option(help="Home Assistant's discovery prefix.")] = None,
    retain: Annotated[
        bool | None, typer.Option("--retain/--no-retain", help="Whether the broker keeps each camera's last event.")
    ] = None,
    wait_seconds: Annotated[
        float, typer.Option(help="How long to wait for the connection. 0: do not wait.", min=0, max=60)
    ] = DEFAULT_WAIT_SECONDS,
    as_json: AsJson = False,
) -> None:
    """Store the settings given here, leave the others as they are, and see whether the host connects.

    Exit 1 if nothing was stored. Exit 1 also if the host does not connect in time: then the settings are stored.
    """
    given |= {
        "topic_prefix": topic_prefix,
        "qos": qos,
        "enabled": enabled,
        "discovery_enabled": discovery,
        "discovery_prefix": discovery_prefix,
        "retain_messages": retain,
    }
    before = api.ask("GET", "config")
    stored = api.ask("PUT", "config", _changed(before, given, password), if_match=before.etag)
    if as_json:
        print_json(stored.document)
    else:
        _say(f"stored as version {stored.document['version']}")
        _rows(stored.document)
    if not wait_seconds or not stored.document["enabled"]:
        return
    with _spinner(f"waiting for {stored.document['broker_host']} …", quiet=as_json):
        now = _wait(api, wait_seconds)
    if not as_json:
        _show_status(now)
    if not _is_connected(now.document):
        raise typer.Exit(1)


def _wait(api: Api, wait_seconds: float) -> HostAnswer:
    until = time.monotonic() + wait_seconds
    while True:
        answer = api.ask("GET", "status")
        if _is_connected(answer.document) or time.monotonic() >= until:
            return answer
        time.sleep(POLL_SECONDS)


def _is_connected(document: dict[str, Any]) -> bool:
    live = document.get("probe")
    return bool(live["ok"] if live else document["connected"])


def _changed(before: HostAnswer, given: dict[str, Any], password: PasswordFrom) -> dict[str, Any]:
    """The settings in force, with what is given; the password, if any."""
    if before.stale:
        typer.echo(f"the database does not answer; these settings are of {before.stale}", err=True)
    settings = {name: before.document[name] for name in KEPT}
    if settings["broker_host"] is None:  # nothing was enabled before, and a broker is given now
        settings["enabled"] = True
    settings |= {name: value for name, value in given.items() if value is not None}
    settings["username"] = settings["username"] or None
    if settings["broker_host"] is None:
        raise typer.BadParameter("no broker is configured yet: name one with --broker-host")
    if settings["broker_port"] is None:
        settings["broker_port"] = 8883 if settings["use_tls"] else 1883
    return settings | _secret(password)


def _secret(source: PasswordFrom) -> dict[str, str | None]:
    if source is PasswordFrom.keep:
        return {}
    if source is PasswordFrom.clear:
        return {"password": None}
    if source is PasswordFrom.prompt:
        return {"password": typer.prompt("Password at the broker", hide_input=True, err=True)}
    given = sys.stdin.readline() if source is PasswordFrom.stdin else os.environ.get(PASSWORD_VARIABLE, "")
    secret = line(given)
    if not secret:
        where = "standard input" if source is PasswordFrom.stdin else PASSWORD_VARIABLE
        raise typer.BadParameter(f"there is no password in {where}", param_hint="--password")
    return {"password": secret}


def _console() -> Console:
    from rich.console import Console  # noqa: PLC0415 - as above

    return Console(highlight=False, soft_wrap=True)


def _spinner(words: str, *, quiet: bool) -> AbstractContextManager[object]:
    from rich.markup import escape  # noqa: PLC0415 - as above

    console = _console()
    console.quiet = quiet
    return console.status(escape(plain(words)))


def _show_status(answer: HostAnswer) -> None:
    document = answer.document
    live = document.get("probe")
    broker = (live or document)["broker"] or "no broker is configured"
    well = _is_connected(document)
    _say(f"{'connected' if well else 'not connected'}: {broker}", well=well)
    if live:
        _rows({"live probe": live["detail"]})
    error = document["last_error"]
    _rows(
        {
            "scope": document["scope"],
            "last connected": document["last_connected_at"],
            "last error": None if error is None else f"{error['reason']} ({error['at']})",
            "messages published": document["messages_published"],
            "reconnect attempts": document["reconnect_attempts"],
            **_topics(document),
        }
    )
    for other in document["recorded"]:
        words = "connected" if other["connected"] else "not connected"
        _rows({str(other["process"]): f"{words}, {other['messages_published']} messages, as of {other['recorded_at']}"})
    if answer.stale:
        typer.echo(f"the database does not answer; what others recorded is of: {answer.stale}", err=True)


def _topics(document: Mapping[str, Any]) -> dict[str, str]:
    """What the broker last said to the host, by topic."""
    return {
        one["topic"]: f"{'taken' if one['accepted'] else one['reason']} ({one['at']})" for one in document["topics"]
    }


def _say(words: str, *, well: bool = True) -> None:
    from rich.markup import escape  # noqa: PLC0415 - as above

    _console().print(f"[bold {'green' if well else 'red'}]{escape(plain(words))}[/]")


def _rows(rows: Mapping[str, object]) -> None:
    from rich.markup import escape  # noqa: PLC0415 - as above

    console = _console()
    width = max(map(len, rows))
    for name, value in rows.items():
        shown = "-" if value is None else json.dumps(value) if isinstance(value, bool) else str(value)
        console.print(f"  [dim]{escape(plain(name)):<{width}}[/]  {escape(plain(shown))}")
