"""`bucketbell host`: runs the self-hosted process."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from typing import Annotated, NoReturn

import typer

from functions.settings import SettingsError
from infra.commands.common import fail, load_or_exit, refuse

EPILOG = "Example: `MQTT_URL=mqtt://broker.local BUCKET=firmware bucketbell host`"


def host(
    *,
    host: Annotated[
        str, typer.Option(help="Address to listen on. Anything but loopback needs WEBHOOK_TOKENS.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on.", min=1, max=65535)] = 8080,
) -> None:
    """Run the self-hosted process: it takes the store's events and publishes them by MQTT.

    `POST /events` answers when the broker has confirmed. `POST /events/fast` answers 202 at once.
    `GET /healthz`: the process is alive. `GET /readyz`: it could publish now; `?for=downloads`: it serves downloads.
    `GET /metrics`: for Prometheus.

    With HOST_CERT_FILE and HOST_KEY_FILE it serves HTTPS. With SQS_QUEUE_URL or R2_QUEUE_URL it also polls that
    queue, with NATS_URL it takes events from JetStream. Without MQTT_URL it takes events and publishes nothing. SIGTERM
    or Ctrl-C ends it within 3 seconds: it finishes what it has begun and exits 0.
    """
    # Until it serves, too: as process 1 of a container it would not be ended by a signal that it does not handle.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    loaded = load_or_exit()
    _check_free(host, port)
    from infra.host.server import serve  # noqa: PLC0415 - what a host needs is only for this command

    try:
        serve(loaded.settings, host, port)
    except SettingsError as error:
        refuse(error)
    except OSError as error:
        fail(f"cannot listen on {host} port {port}: {error.strerror}.")
    _leave()


def _leave() -> NoReturn:
    """End at once. A thread that hangs in a TLS handshake would meet an OpenSSL that has been cleaned up: SIGSEGV."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)


def _check_free(host: str, port: int) -> None:
    """Say in plain words that the address cannot be used, before anything is connected."""
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
            with socket.socket(family, kind, protocol) as probe:
                probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                probe.bind(address)
    except OSError as error:
        fail(f"cannot listen on {host} port {port}: {error.strerror}. Choose others with --host and --port.")
