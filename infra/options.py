"""What the options of several commands have in common."""

from __future__ import annotations

from typing import Any

import typer

from functions.addresses import is_http_url
from functions.settings import Broker
from functions.tls import client_context


def http_url(url: str | None) -> str | None:
    """Typer callback: a base URL without its last slash."""
    if url is not None and not is_http_url(url):
        raise typer.BadParameter("must be http://host:port or https://host:port, without credentials")
    return None if url is None else url.rstrip("/")


def subscriber_arguments(broker: Broker) -> dict[str, Any]:
    """How `infra.subscriber.Subscriber` reaches the broker of the settings. Raises `functions.tls.TlsFileError`."""
    return {
        "url": broker.url,
        "username": broker.username,
        "password": broker.password.get_secret_value() if broker.password else None,
        "context": client_context(broker) if broker.tls else None,
        "protocol": broker.protocol,
    }
