"""NATS JetStream between MinIO and hosts: what happens to it, and to those who share it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from functions.settings import load
from infra.connect.jetstream import Streams
from infra.jetstream.connection import on_jetstream
from infra.jetstream.layout import Names, found_consumer
from infra.local.nats_server import NatsServer
from infra.local.process import PartError
from infra.local.stores import Minio, Store
from tests.chaos.host_faults import TwoHosts
from tests.chaos.metrics import host_metric
from tests.chaos.world import EVENTUALLY_SECONDS, LOOK_SECONDS, Profile, Source, World


class JetStreamWorld(World):
    """MinIO publishes into a stream by both of its NATS targets, and the host takes its events from there."""

    def __init__(self, directory: Path, profile: Profile, **more: Any) -> None:  # noqa: ANN401 - World's own arguments
        """As `World`. Raises `PartError`."""
        self.nats = NatsServer(directory / "nats")
        self.settings = load({"NATS_URL": self.nats.url}).settings
        super().__init__(directory, profile, variables={"NATS_URL": self.nats.url}, **more)
        self.credentials["NATS_URL"] = self.nats.url
        self.events_from = "MinIO through JetStream"

    def _make_store(self, directory: Path, source: Source) -> Store:
        del source
        streams = Streams.of(self.settings, sure_only=False, queue_directory=str(self.queue_directory))
        return Minio(directory / "minio", environment=streams.environment())

    def _start_parts(self) -> None:
        self.nats.start()
        super()._start_parts()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self.nats.stop()


class TwoHostsAtOneStream(TwoHosts, JetStreamWorld):
    """Two hosts that name one consumer."""


def kill_nats(world: World, profile: Profile) -> None:
    """SIGKILL, and a new start over its directory after the outage. MinIO keeps what it cannot publish."""
    nats = _stream(world).nats
    nats.kill()
    _cut_off(world, profile)
    nats.start()
    world.healed()


def freeze_nats(world: World, profile: Profile) -> None:
    """SIGSTOP, and SIGCONT after the outage: connections stay open, and nothing is answered."""
    nats = _stream(world).nats
    nats.freeze()
    time.sleep(profile.outage_seconds)
    nats.thaw()
    world.healed()


def delete_consumer(world: World, profile: Profile) -> None:
    """The durable consumer goes, with all that it knew of what is on its way. The host makes it again."""
    del profile
    stream = _stream(world)
    names = Names.of(stream.settings)

    async def delete() -> None:
        async with on_jetstream(stream.settings, "chaos") as js:
            await js.delete_consumer(names.stream, names.consumer)
            async with asyncio.timeout(EVENTUALLY_SECONDS):
                while await found_consumer(js, names) is None:  # noqa: ASYNC110 - the server has no event for it
                    await asyncio.sleep(LOOK_SECONDS)

    asyncio.run(delete())
    world.healed()


def _stream(world: World) -> JetStreamWorld:
    if not isinstance(world, JetStreamWorld):
        raise TypeError(world)
    return world


def _cut_off(world: World, profile: Profile) -> None:
    time.sleep(profile.outage_seconds)
    if host_metric(world.host, "nats_up"):
        raise PartError("the fault did not bite: the host still takes events from JetStream")
