"""What the line between host and broker does to us: it swallows, delays, tears packets apart, loses its name."""

from __future__ import annotations

import os
import random
import shlex
import time
from pathlib import Path
from typing import Self

from infra.local.process import PartError
from tests.chaos.verdict import Verdict
from tests.chaos.world import Profile, World
from tests.fakes.dns import FakeDns

DELAY_SECONDS = 0.4  # in each direction
TORN_BYTES = (120, 1500)  # CONNECT alone is some 60 bytes, a message some 400
TORN_SECONDS = 0.4
FEWEST_TORN = 2
NAME = "broker.chaos.test"


def blackhole(world: World, profile: Profile) -> None:
    """Packets vanish in both directions, ends of connections included; new connections are accepted and mute.

    Like a firewall that forgot the connection, or a cable that was pulled: nobody says that anything ended. What TCP
    had taken for the old connection is gone for good.
    """
    world.proxy.blackhole()
    world.suffer(profile.outage_seconds)
    world.proxy.heal()
    world.healed()


def slow_down(world: World, profile: Profile) -> None:
    """Each byte takes 0.4 s in either direction, so that 20 messages in flight are 25 a second, and uploads are more.

    Like a broker on the other side of a satellite, or of a congested mobile link.
    """
    world.proxy.delay_seconds = DELAY_SECONDS
    time.sleep(profile.outage_seconds)
    world.proxy.delay_seconds = 0.0
    world.healed()


def tear_packets(world: World, profile: Profile) -> None:
    """Each connection is reset after a random number of bytes, most likely in the middle of a packet.

    Like a NAT that restarts, or a load balancer that sheds connections. The broker may have got a message whole whose
    PUBACK is torn off, or half a message.
    """
    before = world.proxy.connections
    until = time.monotonic() + profile.outage_seconds
    while time.monotonic() < until:
        world.proxy.cut_after_bytes = random.SystemRandom().randint(*TORN_BYTES)
        time.sleep(TORN_SECONDS)
    world.proxy.cut_after_bytes = None
    world.healed()
    if world.proxy.connections - before < FEWEST_TORN:
        raise PartError("the fault did not bite: hardly any connection was torn")


def took_long(world: World, verdict: Verdict) -> str:
    """Whether messages were delayed at all."""
    del world
    waited = verdict.longest_wait_seconds
    return "" if waited > DELAY_SECONDS else f"the fault did not bite: no message took longer than {waited:.1f} s"


class NamedWorld(World):
    """The host knows its broker by a name only, and asks `dns` for it: it sees a resolver configuration of its own."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        """Raises `PartError` without root: a name server needs port 53, and a mount namespace needs it too."""
        if os.geteuid() != 0:
            raise PartError("a name server and a mount namespace of our own need root: run `sudo make chaos`")
        self.dns = FakeDns()
        super().__init__(directory, profile)
        self.host.environment["MQTT_URL"] = f"mqtt://{NAME}:{self.proxy.port}"
        # glibc waits 5 s for an answer, twice, unless told otherwise.
        options = "options timeout:1 attempts:1\n" if profile.name == "short" else ""
        files = {"resolv.conf": f"nameserver {self.dns.address}\n{options}", "nsswitch.conf": "hosts: dns\n"}
        for name, text in files.items():
            (directory / name).write_text(text)
        mounts = "".join(f"mount --bind {shlex.quote(str(directory / name))} /etc/{name} && " for name in files)
        self.host.command = ["unshare", "--mount", "sh", "-c", f"{mounts}exec {shlex.join(self.host.command)}"]

    def __enter__(self) -> Self:
        self.dns.__enter__()
        return super().__enter__()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self.dns.__exit__(*raised)


def lose_name(world: World, profile: Profile) -> None:
    """The link is lost while the broker's name cannot be resolved.

    Half of the time the name server says SERVFAIL, then it says nothing at all, and the resolver hangs.
    """
    assert isinstance(world, NamedWorld)
    world.dns.mode = "failing"
    world.proxy.cut()
    world.suffer(profile.outage_seconds / 2)
    world.dns.mode = "silent"
    world.suffer(profile.outage_seconds / 2)
    world.dns.mode = "well"
    world.healed()
