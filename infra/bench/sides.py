"""The sides that the host's throughput is compared with: its own application, with another bell or handler inside.

`python -m infra.bench.sides parse|threads|constant|shared <port> <mqtt port> <token>` serves one of them as the host is
served: `parse` and `threads` take events, `constant` answers devices with one and the same redirect, `shared` does so
once for all who ask at the same moment.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import paho.mqtt.client as paho
import uvicorn
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from functions.events.routes import CONTENT_TYPE, Notification, Routes
from functions.mqtt.broker import Broker
from functions.mqtt.publisher import Outcome, Status
from functions.notify import Settled, Step, settle, to_publish
from infra.bench.rig import BUCKET
from infra.host.app import App
from infra.host.bell import Bell
from infra.host.gateway import Event, Gateway
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.host.server import uvicorn_config
from infra.host.web.entrance import Entrance, StoreGate

THREADS = 64
PATIENCE_SECONDS = 5.0

# As long as the host's own, which names a file, its disposition and a signature.
REDIRECT = {
    "statusCode": 307,
    "headers": {
        "Cache-Control": "no-store",
        "Location": f"http://127.0.0.1:9000/{BUCKET}/assets/x.bin?{'x' * 360}",
        "ETag": f'"{"0" * 32}"',
    },
    "body": "",
    "isBase64Encoded": False,
}


class ParsingBell(Bell):
    """Has had its event read and parsed, and leaves it at that."""

    async def ring(self, steps: Sequence[Step], source: str) -> list[Settled]:
        """Nothing to wait for."""
        del steps, source
        return []


class WaitingBell(Bell):
    """The usual design: paho's own network thread, and a thread of a pool that waits for each PUBACK."""

    def __init__(
        self, publisher: HostPublisher, routes: Routes, telemetry: PrometheusTelemetry, mqtt_port: int
    ) -> None:
        """Connects at once."""
        super().__init__(publisher, routes, telemetry, patience_seconds=PATIENCE_SECONDS)
        self._pool = ThreadPoolExecutor(THREADS)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, protocol=MQTTProtocolVersion.MQTTv5)
        self._client.connect("127.0.0.1", mqtt_port)
        self._client.loop_start()

    async def ring(self, steps: Sequence[Step], source: str) -> list[Settled]:
        """Wait for all, each in its thread."""
        del source
        loop = asyncio.get_running_loop()
        waits = [loop.run_in_executor(self._pool, self._publish, one) for one in to_publish(steps)]
        return settle(steps, await asyncio.gather(*waits))

    def _publish(self, notification: Notification) -> Outcome:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho left it untyped
        properties.PayloadFormatIndicator = 1
        properties.ContentType = CONTENT_TYPE
        properties.UserProperty = list(notification.user_properties)
        info = self._client.publish(notification.topic, notification.payload, 1, properties=properties)
        info.wait_for_publish(PATIENCE_SECONDS)
        return Outcome(Status.DELIVERED if info.is_published() else Status.UNCONFIRMED)


def _redirect(event: Event, context: object) -> dict[str, Any]:
    del event, context
    return REDIRECT


def serve(side: str, port: int, mqtt_port: int, token: str) -> None:
    """Serve until SIGTERM, with the server that the host has."""
    telemetry = PrometheusTelemetry()
    publisher = HostPublisher(
        Broker(host="127.0.0.1", port=mqtt_port), telemetry
    )  # not started: it only says "configured"
    routes = Routes(bucket=BUCKET)
    bell: Bell = (
        WaitingBell(publisher, routes, telemetry, mqtt_port)
        if side == "threads"
        else ParsingBell(publisher, routes, telemetry, patience_seconds=PATIENCE_SECONDS)
    )
    gateway = Gateway(_redirect, requests_per_minute=0, shares=side == "shared")
    app = App(bell, publisher, telemetry, stores=StoreGate([token], Entrance()), gateways=(gateway,))
    uvicorn.Server(uvicorn_config(app, "127.0.0.1", port)).run()


if __name__ == "__main__":
    serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4])
