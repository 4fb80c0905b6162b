"""The contract suite over object stores: real stores, a real Mosquitto, a real host."""

from __future__ import annotations

import datetime as dt
import multiprocessing
import signal
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import cache
from pathlib import Path

from infra.local.install import Say
from tests.matrix.result import Check, Subject
from tests.matrix.stores.contract import contract, p50_ms, rings
from tests.matrix.stores.kinds import KINDS
from tests.matrix.stores.outages import outages
from tests.matrix.stores.world import PROFILE, StoreWorld

NAMES = tuple(KINDS)


@cache
def missing(name: str) -> str | None:
    """What to type to bring it; None where it is at hand."""
    return None if KINDS[name].version() else KINDS[name].word


def run(names: Sequence[str], say: Say, *, jobs: int = 1) -> Iterator[Subject]:
    """Try each, `jobs` side by side: figures are worth something with one only."""
    # Fresh interpreters: a forked one would inherit the lifelines of the parts (infra.local.process).
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    try:
        for name in names:
            say(f"{name}: {KINDS[name].version()} …")
        for done in as_completed([pool.submit(try_store, name) for name in names]):
            yield done.result()
    except BaseException:
        for child in multiprocessing.active_children():
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def try_store(name: str) -> Subject:
    """The whole suite over one store. What keeps it from being played is a failed check."""
    # Its parts are stopped and its folder removed also when the run is ended.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    kind = KINDS[name]
    checks: list[Check] = []
    figures: dict[str, float] = {}
    try:
        with (
            tempfile.TemporaryDirectory(prefix=f"bucketbell-matrix-{name}-", ignore_cleanup_errors=True) as directory,
            StoreWorld(kind, Path(directory)) as world,
        ):
            for check in _suite(world, Path(directory), figures):
                checks.append(check)  # noqa: PERF402 - those before an exception count
    except Exception as error:  # noqa: BLE001 - whatever it was, the other stores can still be tried
        checks.append(Check("the suite could be played", "failed", f"{type(error).__name__}: {error}"[-600:]))
    today = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}"
    return Subject("store", name, kind.version() or "", today, tuple(checks), figures, kind.how)


def _suite(world: StoreWorld, directory: Path, figures: dict[str, float]) -> Iterator[Check]:
    """The contract by the store's own events where they come, else by the sweep; then the outages, both ways."""
    told = bool(world.kind.events) and rings(world)
    if told:
        yield Check("its own events ring", "ok", world.kind.events)
    elif world.kind.events:
        yield Check("its own events ring", "failed", f"nothing rang ({world.kind.events})")
    else:
        yield Check("its own events ring", "not possible", "it has none: all this is by the sweep")
    if not told:
        world.sweep(events_first=False)
    yield from contract(world, directory / "device")
    figures["p50 ms" if told else "p50 ms, swept every 2 s"] = p50_ms(world)
    if told:
        yield from outages(world, PROFILE.outage_seconds)
        world.sweep(events_first=True)
    yield from outages(world, PROFILE.outage_seconds)
