"""The sides that the host's throughput is compared with: its own server and site, with another bell or router inside.

`python -m infra.bench.sides parse|threads|constant <port> <mqtt port> <token>` serves one of them as the host is
served: `parse` and `threads` take events, `constant` answers devices with one and the same redirect.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from http import HTTPStatus

import paho.mqtt.client as paho
import uvloop
from paho.mqtt.enums import CallbackAPIVersion, MQTTProtocolVersion
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties

from functions.devices.downloads import Downloads
from functions.events.plan import Settled, Step, settle, to_publish
from functions.events.routes import Routes
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import CONTENT_TYPE, Message
from functions.mqtt.outcome import Outcome, Status
from functions.web.messages import Reply, Request
from functions.web.router import Route, Router, unforeseen
from functions.web.tokens import Keyring
from infra.bench.rig import BUCKET
from infra.host.bell import Bell
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.host.web.entrance import Entrance, Gate, StoreGate
from infra.host.web.limited_router import LimitedRouter
from infra.host.web.server import Server
from infra.host.web.site import HostSite

THREADS = 64
PATIENCE_SECONDS = 5.0
REQUESTS_PER_MINUTE = 60_000  # of each token: counted, and more than anybody asks for

# As long as the host's own, which names a file, its disposition and a signature.
REDIRECT = Reply(
    HTTPStatus.TEMPORARY_REDIRECT,
    {
        "Cache-Control": "no-store",
        "Location": f"http://127.0.0.1:9000/{BUCKET}/assets/x.bin?{'x' * 360}",
        "ETag": f'"{"0" * 32}"',
    },
)


class ParsingBell(Bell):
    """Has had its event read and parsed, and leaves it at that."""

    def ring_then(self, steps: Sequence[Step], source: str, tell: Callable[[list[Settled]], None]) -> None:
        """Nothing to wait for."""
        del steps, source
        tell([])


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

    def ring_then(self, steps: Sequence[Step], source: str, tell: Callable[[list[Settled]], None]) -> None:
        """Wait for all, each in its thread."""
        del source
        loop = asyncio.get_running_loop()
        waits = [loop.run_in_executor(self._pool, self._publish, one) for one in to_publish(steps)]
        asyncio.gather(*waits).add_done_callback(lambda done: tell(settle(steps, done.result())))

    def _publish(self, message: Message) -> Outcome:
        properties = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call] # paho left it untyped
        properties.PayloadFormatIndicator = 1
        properties.ContentType = CONTENT_TYPE
        properties.UserProperty = list(message.user_properties)
        info = self._client.publish(message.topic, message.payload, 1, properties=properties)
        info.wait_for_publish(PATIENCE_SECONDS)
        return Outcome(Status.DELIVERED if info.is_published() else Status.UNCONFIRMED)


def _admit(_request: Request) -> None:
    """Anybody."""


async def serve(side: str, port: int, mqtt_port: int, token: str) -> None:
    """Serve until the process is killed, with the server that the host has."""
    telemetry = PrometheusTelemetry()
    publisher = HostPublisher(
        BrokerConfig(host="127.0.0.1", port=mqtt_port), telemetry
    )  # not started: it only says "configured"
    routes = Routes(bucket=BUCKET)
    bell: Bell = (
        WaitingBell(publisher, routes, telemetry, mqtt_port)
        if side == "threads"
        else ParsingBell(publisher, routes, telemetry, patience_seconds=PATIENCE_SECONDS)
    )
    constant = Router("download", (Route(("GET",), "/assets/*", lambda *_: REDIRECT),), _admit, "", unforeseen)
    entrance = Entrance()
    devices = LimitedRouter(constant, Gate(entrance, _admit), requests_per_minute=REQUESTS_PER_MINUTE)
    site = HostSite(
        bell,
        publisher,
        telemetry,
        stores=StoreGate([token], entrance),
        downloads=Downloads(Keyring.parse([]), (), None),
        routers=[devices],
    )
    await Server(site).start("127.0.0.1", port)
    await asyncio.Event().wait()


if __name__ == "__main__":
    uvloop.run(serve(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4]))
