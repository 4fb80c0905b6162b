"""Until when the broker's certificate is valid: a connection may live on for months after the broker has a new one."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import replace
from typing import TYPE_CHECKING

from functions.mqtt.broker import new_client_id
from functions.mqtt.connection import BrokerConnectionError, Connection
from infra.host.threads import in_thread

if TYPE_CHECKING:
    from collections.abc import Callable

    from functions.mqtt.broker import BrokerConfig

ENDS_SOON_SECONDS = 30 * 24 * 3600.0  # long before anybody is told
LOOK_AGAIN_SECONDS = 6 * 3600.0


async def follow(broker: BrokerConfig, expires_at: float | None, heard: Callable[[float | None], object]) -> None:
    """Look again while the certificate ends soon, and have `heard` hear of it. Goes on until it is cancelled."""
    while expires_at is not None:
        await asyncio.sleep(max(LOOK_AGAIN_SECONDS, expires_at - time.time() - ENDS_SOON_SECONDS))
        with contextlib.suppress(BrokerConnectionError):  # the link says what is wrong with the broker
            expires_at = await in_thread(lambda: _ask(broker), "mqtt-certificate")
            heard(expires_at)


def _ask(broker: BrokerConfig) -> float | None:
    """Ask on a connection of its own. Blocks. Raises `BrokerConnectionError`."""
    connection = Connection(replace(broker, availability_topic=None), new_client_id(broker.client_id_prefix))
    connection.open(broker.connect_timeout_seconds)
    try:
        return connection.certificate_expires_at
    finally:
        connection.close()
