"""What happens between a queue (SQS) and those who empty it: messages come back, too early or after a death."""

from __future__ import annotations

import time
from pathlib import Path

from functions.mqtt.outcome import Status
from infra.local.stores import MotoServer
from tests.chaos.function import FunctionWorld
from tests.chaos.host_faults import TwoHosts
from tests.chaos.metrics import host_metric
from tests.chaos.verdict import Verdict
from tests.chaos.world import Profile, World

VISIBILITY_SECONDS = {"short": 1, "long": 5}
# A PUBACK takes longer than that, and comes in time all the same.
SLOW_SECONDS = 1.5
SLOW_VISIBILITY_SECONDS = 1
PATIENCE_SECONDS = 5


def short_visibility(directory: Path, profile: Profile) -> World:
    """A queue that hands a message out again long before the outage is over."""
    return World(directory, profile, source="sqs", queue=_visible_after(VISIBILITY_SECONDS[profile.name]))


def function_with_short_visibility(directory: Path, profile: Profile) -> World:
    """The same queue, and a function that empties it."""
    return FunctionWorld(directory, profile, visibility_seconds=VISIBILITY_SECONDS[profile.name])


def two_hosts_at_one_queue(directory: Path, profile: Profile) -> World:
    """Two hosts that poll one queue, with patience for a slow broker, but whose messages become visible before that."""
    variables = {"MQTT_PUBLISH_TIMEOUT_SECONDS": str(PATIENCE_SECONDS)}
    return TwoHosts(
        directory, profile, source="sqs", queue=_visible_after(SLOW_VISIBILITY_SECONDS), variables=variables
    )


def lose_broker(world: World, profile: Profile) -> None:
    """The broker is out of reach for the outage: each message comes back again and again, and none may be deleted."""
    world.proxy.refuse_new = True
    world.proxy.cut()
    time.sleep(profile.outage_seconds)
    world.proxy.refuse_new = False
    world.healed()


def slow_broker(world: World, profile: Profile) -> None:
    """Each PUBACK takes 3 s, and a message is visible again after 1 s: while it is on its way it comes anew.

    What took it first deletes it with a receipt that is no longer the last one.
    """
    world.proxy.delay_seconds = SLOW_SECONDS
    time.sleep(profile.outage_seconds)
    world.proxy.delay_seconds = 0.0
    world.healed()


def freeze_queue(world: World, profile: Profile) -> None:
    """The queue's server is stopped (SIGSTOP), and goes on later: long polls and deletes hang meanwhile."""
    if not isinstance(world.store, MotoServer):
        raise TypeError(world.store)
    world.store.freeze()
    time.sleep(profile.outage_seconds)
    world.store.thaw()
    world.healed()


def came_back(world: World, _verdict: Verdict) -> str:
    """Messages must have been handed out again, or the visibility was not shorter than the outage."""
    kept = host_metric(world.host, "events_total", source="sqs", outcome=Status.UNCONFIRMED)
    return "" if kept else "no message came back to the host: this shows nothing"


def rang_again(_world: World, verdict: Verdict) -> str:
    """Messages must have come twice, or this has shown nothing."""
    return "" if verdict.repeats else "no message came back while it was on its way: this shows nothing"


def _visible_after(seconds: int) -> dict[str, str]:
    return {"VisibilityTimeout": str(seconds)}
