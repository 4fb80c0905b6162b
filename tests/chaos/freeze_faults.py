"""What happens to a function that is frozen between every two invocations, as Lambda freezes it."""

from __future__ import annotations

import time
from pathlib import Path

from infra.local.process import PartError
from tests.chaos.function import Function, FunctionWorld
from tests.chaos.verdict import Verdict
from tests.chaos.world import Profile, World, eventually

KEEPALIVE_SECONDS = 1
GIVEN_UP_SECONDS = 2.5  # the broker ends a connection one and a half keep alives after its last word
VISIBILITY_SECONDS = 2
BUSY_SECONDS = 10.0


def frozen_function(directory: Path, profile: Profile) -> World:
    """A function whose keep alive is shorter than some of its freezes."""
    variables = {"MQTT_KEEPALIVE_SECONDS": str(KEEPALIVE_SECONDS)}
    return FunctionWorld(directory, profile, visibility_seconds=VISIBILITY_SECONDS, variables=variables)


def outlast_keepalive(world: World, profile: Profile) -> None:
    """No upload for so long that the broker gives up the frozen function's connection."""
    del profile
    world.uploads.hold()
    time.sleep(GIVEN_UP_SECONDS)
    world.uploads.go()
    world.healed()


def restart_broker_meanwhile(world: World, profile: Profile) -> None:
    """The broker is killed and started again while the function is frozen: it learns of it at its next event.

    Not before it has passed on what it has confirmed: that would be its own loss, and no function's.
    """
    world.uploads.hold()
    eventually(lambda: world.uploads.answered.keys() <= {one.key for one in world.heard()}, "an upload is not heard")
    world.broker.kill()
    time.sleep(profile.outage_seconds / 3)
    world.broker.start()
    world.uploads.go()
    world.healed()


def go_deaf_meanwhile(world: World, profile: Profile) -> None:
    """Packets vanish for the outage, and nobody says so; then the line is back, and what was connected is dead."""
    world.proxy.blackhole()
    time.sleep(profile.outage_seconds)
    world.proxy.heal()
    world.healed()


def kill_sandbox(world: World, profile: Profile) -> None:
    """The sandbox dies (SIGKILL) with a batch in its hands; the next event gets a new one."""
    del profile
    function = _function(world)
    function.busy.clear()
    if not function.busy.wait(BUSY_SECONDS):
        raise PartError("no event came to the function")
    function.kill_sandbox()
    world.healed()


def was_frozen(world: World, _verdict: Verdict) -> str:
    """All invocations but each process's first must have found it stopped."""
    function = _function(world)
    if function.thawed < function.invocations - function.sandboxes or not function.thawed:
        return f"{function.invocations} invocations, but {function.thawed} of a frozen process"
    return ""


def _function(world: World) -> Function:
    if not isinstance(world, FunctionWorld):
        raise TypeError(world)
    return world.function
