"""What happens to hosts: they die, are restarted, hang, stand beside each other, and their clock jumps."""

from __future__ import annotations

import time
import urllib.request
from collections.abc import Iterator
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

from infra.local.process import PartError, free_port
from infra.local.stack import HostProcess
from tests.chaos.world import STOP_SECONDS, Profile, World, eventually
from tests.fakes.balancer import Balancer

GOODBYE_SECONDS = 3.5  # the host's own promise is three seconds
JUMP_SECONDS = 20 * 60
CLOCK_NEARLY_SECONDS = 30.0
CLOCK_SEEN_SECONDS = 10.0
ANSWER_SECONDS = 20.0
ADMIN_TOKEN = "the-admin-of-the-chaos-rig-0123"


def kill_host(world: World, profile: Profile) -> None:
    """SIGKILL, and a new start after the outage: what the host knew and had in flight is gone."""
    world.host.kill()
    time.sleep(profile.outage_seconds)
    world.host.start()
    world.healed()


def terminate_host(world: World, profile: Profile) -> None:
    """SIGTERM and a new start at once, as service managers do for an update."""
    del profile
    stop(world.host)
    world.host.start()
    world.healed()


def freeze_host(world: World, profile: Profile) -> None:
    """SIGSTOP, and SIGCONT after the outage.

    Like a machine that swaps or is suspended. The host refuses nothing: the store's workers all wait for its fast
    door, and the events behind them are in the store's memory.
    """
    world.host.freeze()
    time.sleep(profile.outage_seconds)
    world.host.thaw()
    world.healed()


def stop(host: HostProcess) -> None:
    """SIGTERM. Raises `PartError` when it would not end by itself in time."""
    begun_at = time.monotonic()
    host.stop(GOODBYE_SECONDS)
    if time.monotonic() - begun_at >= GOODBYE_SECONDS:
        raise PartError(f"the host was still there {GOODBYE_SECONDS:g} s after SIGTERM")


class TwoHosts(World):
    """Two hosts that know nothing of each other, behind one address that takes connections for them in turn."""

    def __init__(self, directory: Path, profile: Profile, **more: Any) -> None:  # noqa: ANN401 - World's own arguments
        """As `World`. Raises `PartError`."""
        door_port = free_port()
        super().__init__(directory, profile, door_port=door_port, **more)
        second_port = free_port()
        self.second = HostProcess(directory / "second", second_port, {})
        self.balancer = Balancer([int(self.host.url.rpartition(":")[2]), second_port], door_port)

    def _connect(self) -> None:
        # The second host is told what the first is, and starts before it.
        super()._connect()
        self.second.environment = dict(self.host.environment)
        self.second.start()

    def hosts(self) -> Iterator[HostProcess]:
        """Both."""
        yield from (self.host, self.second)

    def __exit__(self, *raised: object) -> None:
        self.second.stop(STOP_SECONDS)
        super().__exit__(*raised)
        self.balancer.stop()


def update_hosts_in_turn(world: World, profile: Profile) -> None:
    """One of two hosts is killed (SIGKILL), later the other one stopped (SIGTERM); one of them is always there.

    Like a rolling update behind a load balancer. Each remembers only what came to itself, so an upload may ring once
    for each of them, and all of its messages have one id.
    """
    if not isinstance(world, TwoHosts):
        raise TypeError(world)
    for host, end in zip(world.hosts(), (HostProcess.kill, stop), strict=True):
        end(host)
        time.sleep(profile.outage_seconds / 2)
        host.start()
        time.sleep(profile.outage_seconds / 2)
    world.healed()


def host_with_a_clock_of_its_own(directory: Path, profile: Profile) -> World:
    """The host sees libfaketime's clock, which follows a file; the machine's own clock is never touched.

    Its monotonic clock stays as it is, as it does when somebody corrects a machine's time.
    """
    world = World(directory, profile, variables={"ADMIN_TOKENS": ADMIN_TOKEN})
    _set_clock(world, 0)
    world.host.environment |= {
        "LD_PRELOAD": str(_libfaketime()),
        "FAKETIME_TIMESTAMP_FILE": str(_clock_file(world)),
        "FAKETIME_CACHE_DURATION": "1",  # seconds between two looks into the file
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "NO_FAKE_STAT": "1",  # or Python would take its compiled modules for outdated
    }
    return world


def jump_clock(world: World, profile: Profile) -> None:
    """The host's clock jumps 20 minutes ahead, from there 40 minutes back, then to the right time.

    Meanwhile MinIO refuses whatever the host signs (RequestTimeTooSkewed, from 15 minutes on), and the host must say
    503 to a device that asks; once the time is right, its signatures must be good again.
    """
    for seconds in (JUMP_SECONDS, -JUMP_SECONDS, 0):
        _set_clock(world, seconds)
        eventually(
            lambda seconds=seconds: abs(_clock_error_seconds(world) - seconds) < CLOCK_NEARLY_SECONDS,  # type: ignore[misc]  # the default binds this jump
            f"the host's clock did not jump by {seconds} s: does libfaketime work here?",
            CLOCK_SEEN_SECONDS,
        )
        if (status := _manifest_status(world)) != (HTTPStatus.SERVICE_UNAVAILABLE if seconds else HTTPStatus.OK):
            raise AssertionError(f"GET /manifest answered {status} with the clock {seconds:+d} s off")
        if seconds:
            time.sleep(profile.outage_seconds / 2)
    world.healed()


def _manifest_status(world: World) -> int:
    """What a device gets; to answer, the host asks the store with a signed request."""
    request = urllib.request.Request(  # noqa: S310 - an http URL of ours
        f"{world.host.url}/manifest", headers={"Authorization": f"Bearer {ADMIN_TOKEN}"}
    )
    try:
        with urllib.request.urlopen(request, timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - as above
            return int(answer.status)
    except HTTPError as error:
        return error.code


def _libfaketime() -> Path:
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        raise PartError("libfaketime is not here: apt-get install faketime")
    return found[0]


def _clock_file(world: World) -> Path:
    return world.directory / "clock"


def _set_clock(world: World, seconds: int) -> None:
    fresh = _clock_file(world).with_suffix(".new")
    fresh.write_text(f"{seconds:+d}\n")
    fresh.replace(_clock_file(world))  # the host may read it at any moment


def _clock_error_seconds(world: World) -> float:
    """By how much the host's clock is ahead: its answers bear a date."""
    with urllib.request.urlopen(f"{world.host.url}/healthz", timeout=ANSWER_SECONDS) as answer:  # noqa: S310 - as above
        return parsedate_to_datetime(answer.headers["Date"]).timestamp() - time.time()
