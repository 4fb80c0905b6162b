"""What several commands share: the settings or exit 1, how a failure is told, options, and an HTTP client."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import typer

from functions.settings import Loaded, SettingsError, load
from functions.settings.addresses import parse_endpoint, parse_http_url
from functions.settings.fields import is_one_word

if TYPE_CHECKING:
    from functions.mqtt.broker import BrokerConfig
    from infra.http_client import Web

ENV_FILE = Path(".env")


def load_or_exit(given: Mapping[str, str] | None = None) -> Loaded:
    """Return the settings, or say what is wrong with them and exit 1. What was `given` as an option wins."""
    try:
        return load(env_file=ENV_FILE, given=given)
    except SettingsError as error:
        refuse(error)


def refuse(error: SettingsError) -> NoReturn:
    """Say which settings are wrong, one a line, and exit 1."""
    for variable, problem in error.problems:
        typer.secho(variable, fg="red", bold=True, nl=False, err=True)
        typer.echo(f": {plain(problem)}", err=True)
    raise typer.Exit(1)


def fail(message: str) -> NoReturn:
    """Say what could not be done, and exit 1."""
    typer.echo(plain(message), err=True)
    raise typer.Exit(1)


def plain(text: str) -> str:
    """Return `text` without control characters: a stranger may have written it, and it goes to a terminal."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def http_url(url: str | None) -> str | None:
    """Typer callback: a base URL without its last slash."""
    return None if url is None else _parsed(url, parse_http_url).rstrip("/")


def endpoint_url(url: str | None) -> str | None:
    """Typer callback: the same, for boto3."""
    return None if url is None else _parsed(url, parse_endpoint)


def _parsed(url: str, parse: Callable[[str], str]) -> str:
    try:
        return parse(url)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def token_option(envvar: str, which: str, source: str) -> Any:  # noqa: ANN401 - as typer declares it
    """Return an option for a token, e.g. "This device's token", and where it comes from."""

    def one_word(token: str) -> str:
        if not is_one_word(token := token.strip()):
            raise typer.BadParameter(f"must be one word, {source}")
        return token

    advice = "Better set it in the environment: every user of a machine can read command lines."
    return typer.Option(envvar=envvar, callback=one_word, help=f"{which}. {advice}", show_default=False)


def ca_file_option(envvar: str, whom: str) -> Any:  # noqa: ANN401 - as typer declares it
    """Return an option for the authorities that sign the certificates of `whom`."""
    words = f"PEM file with authorities to trust for {whom}, in addition to the system's."
    return typer.Option(envvar=envvar, exists=True, dir_okay=False, readable=True, help=words)


@contextmanager
def http_client(ca_file: Path | None, ca_variable: str) -> Iterator[Web]:
    """Open a client that goes through the environment's proxies and trusts `ca_file`, or say why not and exit 1."""
    from infra.http_client import Web  # noqa: PLC0415 - what a command needs is loaded when it runs
    from infra.proxies import ProxyError  # noqa: PLC0415 - as above

    try:
        web = Web(ca_file=ca_file, environment=os.environ)
    except ProxyError as error:
        fail(str(error))
    except OSError as error:  # OpenSSL's errors are OSErrors
        fail(f"{ca_variable} cannot be used: {error}")
    try:
        yield web
    finally:
        web.close()


def subscriber_arguments(broker: BrokerConfig) -> dict[str, Any]:
    """Return how `infra.subscriber.Subscriber` reaches the settings' broker, or say why it cannot and exit 1."""
    from functions.mqtt.tls import TlsFileError, client_context  # noqa: PLC0415 - what a command needs …

    try:
        context = client_context(broker) if broker.tls else None
    except (TlsFileError, OSError) as error:  # OSError: a file has gone since the settings were read
        fail(str(error))
    return {
        "url": broker.url,
        "username": broker.username,
        "password": broker.password.get_secret_value() if broker.password else None,
        "context": context,
        "protocol": broker.protocol,
    }
