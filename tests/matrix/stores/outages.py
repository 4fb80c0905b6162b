"""What becomes of uploads while the host is killed, the store is killed, or both."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

from tests.chaos.verdict import Verdict, judge
from tests.matrix.result import Check
from tests.matrix.stores.world import StoreWorld

PER_SECOND = 15
CALM_SECONDS = 1.0
MORE_UPLOADS = 10  # after all is well again
BACK_SECONDS = 90.0
SWEPT_PATIENCE_SECONDS = 30.0
LOOK_SECONDS = 0.1


def kill_host(world: StoreWorld, outage_seconds: float) -> None:
    """SIGKILL, and a new start after the outage."""
    world.host.kill()
    time.sleep(outage_seconds)
    world.host.start()


def kill_store(world: StoreWorld, outage_seconds: float) -> None:
    """SIGKILL, and a new start on the same disk after the outage."""
    world.store.kill()
    time.sleep(outage_seconds)
    world.store.start()


def kill_both(world: StoreWorld, outage_seconds: float) -> None:
    """The host first, then the store with the events that it could not get rid of."""
    world.host.kill()
    time.sleep(CALM_SECONDS)
    world.store.kill()
    time.sleep(outage_seconds)
    world.host.start()  # Versity GW does not start while its webhook does not answer
    world.store.start()


OUTAGES: dict[str, Callable[[StoreWorld, float], None]] = {
    "host killed": kill_host,
    "store killed": kill_store,
    "both killed": kill_both,
}


def outages(world: StoreWorld, outage_seconds: float) -> Iterator[Check]:
    """One check for each outage, with the sweep as the world has it now."""
    mode = "with the sweep" if world.is_sweeping else "without the sweep"
    for name, happen in OUTAGES.items():
        title = f"{name}, {mode}"
        if happen is not kill_host and not world.kind.keeps:
            yield Check(title, "not possible", "it keeps its objects in memory")
            continue
        with world.uploading(title.replace(" ", "-").replace(",", ""), PER_SECOND) as uploads:
            time.sleep(CALM_SECONDS)
            happen(world, outage_seconds)
            uploads.reach(len(uploads.answered) + MORE_UPLOADS, BACK_SECONDS)
        yield told(title, _listen(world), is_sweeping=world.is_sweeping)


def told(title: str, verdict: Verdict, *, is_sweeping: bool) -> Check:
    """What an outage has come to."""
    missing = len(verdict.missing)
    said = f"{missing} of {verdict.uploaded} missing"
    if verdict.lost:
        said += f"; {len(verdict.lost)} that the store had answered are no longer in it"
    if not missing:
        return Check(title, "ok", said)
    # With the sweep nothing may be missing. Without it, only what the store still tells of can ring.
    return Check(title, "failed" if is_sweeping else "lost", said)


def _listen(world: StoreWorld) -> Verdict:
    """Wait for what is missing, for as long as it grows less."""
    uploads, gone = world.to_be_heard()
    patience_seconds = SWEPT_PATIENCE_SECONDS if world.is_sweeping else world.kind.patience_seconds
    left, until = len(uploads) + 1, 0.0
    while True:
        verdict = judge(uploads, world.heard(), gone=gone)
        missing = len(verdict.missing)
        if missing < left:
            left, until = missing, time.monotonic() + patience_seconds
        if not missing or time.monotonic() > until:
            return verdict
        time.sleep(LOOK_SECONDS)
