"""What the options of several commands have in common."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import typer

from functions.mqtt.broker import Broker
from functions.mqtt.tls import client_context
from functions.settings.addresses import parse_endpoint, parse_http_url


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


def subscriber_arguments(broker: Broker) -> dict[str, Any]:
    """How `infra.subscriber.Subscriber` reaches the settings' broker. Raises `functions.mqtt.tls.TlsFileError`."""
    return {
        "url": broker.url,
        "username": broker.username,
        "password": broker.password.get_secret_value() if broker.password else None,
        "context": client_context(broker) if broker.tls else None,
        "protocol": broker.protocol,
    }
