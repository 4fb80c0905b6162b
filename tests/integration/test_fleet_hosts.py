"""Two hosts on one PostgreSQL: one hears what devices report, and the other goes on where it ends."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from infra.local.mosquitto import Mosquitto
from infra.local.postgres import Postgres
from infra.local.stores import MotoServer
from tests.databases import execute, new_postgresql
from tests.fleet import MAC, FleetRig, ask, hears
from tests.hosts import Host, eventually
from tests.timing import PATIENCE_SECONDS

AT_ONCE, TIMES = 20, 50
PAUSE_SECONDS = 0.05
LIMITS = ("max_queued_messages 100000", "max_inflight_messages 1000")

# What has been stored and is not acknowledged comes again, to the other host.
DIES_BEFORE_IT_ACKNOWLEDGES = """
import os, pathlib, signal
from infra.host.fleet.keeper import Keeper
hear = Keeper.hear
def hear_and_die(self, messages):
    kept = hear(self, messages)
    if pathlib.Path({mark!r}).exists():
        os.kill(os.getpid(), signal.SIGKILL)
    return kept
Keeper.hear = hear_and_die
"""

pytestmark = pytest.mark.usefixtures("mosquitto_binary")


def test_when_the_host_that_hears_is_killed_the_other_loses_nothing_and_keeps_nothing_twice(
    tmp_path: Path, moto: MotoServer, postgres_server: Postgres
) -> None:
    """Killed between the database and the acknowledgement, while devices report all the time."""
    url = new_postgresql(postgres_server)
    mark = tmp_path / "die"
    with Mosquitto(tmp_path / "broker", extra=LIMITS) as broker:
        rig = FleetRig(tmp_path, moto, broker)
        rig.put(f"configs/{MAC.upper()}.json")
        environment = rig.environment | {"DATABASE_URL": url}
        names = [f"a/{number:04}.bin" for number in range(AT_ONCE * TIMES)]
        kept = f"SELECT filename FROM fleet_history WHERE mac = '{MAC}'"  # noqa: S608 - our own constant

        def report() -> None:
            for begin in range(0, len(names), AT_ONCE):
                rig.report("installed", MAC, *names[begin : begin + AT_ONCE], etag="0")
                time.sleep(PAUSE_SECONDS)

        reporting = threading.Thread(target=report)
        with Host(tmp_path, environment, patch=DIES_BEFORE_IT_ACKNOWLEDGES.format(mark=str(mark))) as first:
            eventually(lambda: hears(first))
            with Host(tmp_path, environment) as second:
                reporting.start()
                eventually(lambda: len(execute(url, kept)) > AT_ONCE)
                assert not hears(second)
                mark.touch()
                assert first.child.wait(PATIENCE_SECONDS) != 0
                before = len(execute(url, kept))
                assert before < len(names)
                mark.unlink()
                eventually(lambda: hears(second))
                reporting.join()
                eventually(lambda: len(execute(url, kept)) >= len(names))
                assert sorted(name for (name,) in execute(url, kept)) == names
                assert ask(second, f"/devices/{MAC}")["source"] == "config"
