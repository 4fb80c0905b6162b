"""What only the sweep puts right: a store that tells nobody, or once, or has no rules now; and what ails the sweep."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from infra.connect.documents import FAST_TARGET, SURE_TARGET
from infra.local.postgres import Postgres
from infra.local.stack import HostProcess
from infra.local.stores import Minio, Store, VersityGateway
from tests.chaos.host_faults import TwoHosts, stop
from tests.chaos.metrics import host_metric
from tests.chaos.store_faults import SWEPT
from tests.chaos.verdict import Verdict
from tests.chaos.world import BUCKET, SWEEPING, TOKEN, Profile, Source, World, eventually

MARKER = ".bucketbell/sweep"
FOUND = 5
FIND_SECONDS = 60.0
SLOWLY = {"SWEEP_RINGS_PER_SECOND": "10"}


class Silent(World):
    """A bucket without a rule, in a store that knows no host: it tells nobody of an upload."""

    def __init__(self, directory: Path, profile: Profile, variables: Mapping[str, str] | None = None) -> None:
        """As `World`. Raises `PartError`."""
        super().__init__(directory, profile, variables=SWEEPING | dict(variables or {}))
        self.events_from = "nowhere"

    def _make_store(self, directory: Path, source: Source) -> Store:
        del source
        return Minio(directory / "minio")

    def _connect(self) -> None:
        eventually(self._has_made_bucket, "the store takes no bucket")

    def _has_made_bucket(self) -> bool:
        """MinIO says it is ready a moment before it is."""
        try:
            self.s3.create_bucket(Bucket=BUCKET)
        except self.s3.exceptions.ClientError:
            return False
        return True


class TellsOnce(Silent):
    """Versity Gateway, which tells of an upload once, and does not start while nobody listens."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        """As `World`. Raises `PartError`."""
        super().__init__(directory, profile)
        self.events_from = "Versity GW"

    def _make_store(self, directory: Path, source: Source) -> Store:
        del source
        url = f"{self._doors.host_url}/events".replace("://", f"://versity:{TOKEN}@")
        return VersityGateway(directory / "versity", event_webhook_url=url)

    def _start_parts(self) -> None:
        self.broker.start()
        self.host.start()
        self.store.start()
        self._connect()


def with_state_in_a_file(directory: Path, profile: Profile) -> World:
    """What was announced is in a file of the host's."""
    return Silent(directory, profile, {"SWEEP_STATE_FILE": str(_state(directory))})


def restart_host(world: World, profile: Profile) -> None:
    """The host is stopped (SIGTERM), and started again after the outage."""
    stop(world.host)
    time.sleep(profile.outage_seconds)
    world.host.start()
    world.healed()


def lose_state(world: World, profile: Profile) -> None:
    """The host is killed, and what it knew of the bucket has gone when it is started again."""
    _find_some(world)
    world.host.kill()
    state = _state(world.directory)
    files = [*state.parent.glob(f"{state.name}*")]  # SQLite's journal beside it
    if not files:
        raise AssertionError("the sweep has no state that could be lost")
    for file in files:
        file.unlink()
    time.sleep(profile.outage_seconds)
    world.host.start()
    world.healed()


def tear_state(world: World, profile: Profile) -> None:
    """The host is stopped, and half of what it saved in the bucket is left when it is started again."""
    _find_some(world)
    stop(world.host)
    whole = world.s3.get_object(Bucket=BUCKET, Key=MARKER)["Body"].read()
    world.s3.put_object(Bucket=BUCKET, Key=MARKER, Body=whole[: len(whole) // 2])
    time.sleep(profile.outage_seconds)
    world.host.start()
    world.healed()


def heard_again(_world: World, verdict: Verdict) -> str:
    """What was announced before must be announced again, or the state was not lost."""
    return "" if verdict.repeats else "nothing was heard twice: the state was not lost, and this shows nothing"


class OneSweeps(TwoHosts):
    """Two hosts with one PostgreSQL: the first has the fast door, the second the sure one, and one of them sweeps."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        """As `World`. Raises `PartError`."""
        self.postgres = Postgres(directory / "postgres")
        super().__init__(directory, profile, variables=SWEEPING | SLOWLY | {"DATABASE_URL": self.postgres.url()})
        for target, host, door in ((FAST_TARGET, self.host, "/events/fast"), (SURE_TARGET, self.second, "/events")):
            self.store.environment[f"MINIO_NOTIFY_WEBHOOK_ENDPOINT_{target}"] = host.url + door

    def _start_parts(self) -> None:
        self.postgres.start()
        super()._start_parts()

    def __exit__(self, *raised: object) -> None:
        super().__exit__(*raised)
        self.postgres.remove()

    def sweeper(self) -> HostProcess | None:
        """The host that has found something since it was started."""
        return next((host for host in self.hosts() if host.running and host_metric(host, SWEPT) >= FOUND), None)


def kill_sweeper(world: World, profile: Profile) -> None:
    """The bucket's rules are taken away for a while, and the host that has begun to tell what nobody told is killed."""
    if not isinstance(world, OneSweeps):
        raise TypeError(world)
    rules = partial(world.s3.put_bucket_notification_configuration, Bucket=BUCKET)
    found = world.s3.get_bucket_notification_configuration(Bucket=BUCKET)
    rules(NotificationConfiguration={})
    time.sleep(profile.outage_seconds)
    rules(NotificationConfiguration={"QueueConfigurations": found["QueueConfigurations"]})
    eventually(world.sweeper, "nobody sweeps", FIND_SECONDS)
    sweeper = world.sweeper()
    assert sweeper is not None  # nobody else ends it
    sweeper.kill()
    time.sleep(profile.outage_seconds)
    sweeper.start()
    world.healed()


def the_other_went_on(world: World, _verdict: Verdict) -> str:
    """The one that was not killed must have found the rest."""
    if not isinstance(world, OneSweeps):
        raise TypeError(world)
    found = sum(host_metric(host, SWEPT) for host in world.hosts())
    return "" if found else "nothing was left to find when the sweeper was killed: this shows nothing"


def _find_some(world: World) -> None:
    """Let uploads be announced of which nothing will be known."""
    enough = host_metric(world.host, SWEPT) + FOUND
    eventually(lambda: host_metric(world.host, SWEPT) >= enough, "nobody sweeps", FIND_SECONDS)


def _state(directory: Path) -> Path:
    return directory / "sweep-state.db"
