"""What happens to MinIO: it dies, its queue on disk is full or has no room, and its token is changed."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path

from infra.connect.documents import FAST_TARGET, SURE_TARGET
from infra.host.bell import GAVE_UP
from infra.local.stores import Minio
from tests.chaos.host_faults import stop
from tests.chaos.metrics import MINIO_METRICS_FOR_ALL, host_metric, sure_door_dropped, sure_door_waiting
from tests.chaos.verdict import Verdict
from tests.chaos.world import BUCKET, SWEEPING, Profile, World, eventually
from tests.fakes.rights import restricted

SMALL_QUEUE_EVENTS = {"short": 40, "long": 800}
# An event takes a page of memory there, as it takes a block on a disk.
SMALL_DISK_KIBIBYTES = {"short": 160, "long": 3200}
DROPPED_EVENTS = 10
SOME_EVENTS = 10
FULL_SECONDS = 120.0
SWEPT = "sweep_rang_total"
EMPTY_SECONDS = 90.0
HANG_SECONDS = 1.0
REFUSED_SECONDS = 15.0
REFUSED_DOCUMENTS = 3
GIVE_UP_SECONDS = 60.0
EVENTS_PREFIX = "events/"


def kill_store(world: World, profile: Profile) -> None:
    """SIGKILL, and a new start after the outage; uploads begin again as soon as MinIO takes them."""
    world.store.kill()
    time.sleep(profile.outage_seconds)
    world.store.start()
    world.healed()


def kill_store_with_full_hands(world: World, profile: Profile) -> None:
    """The host is down, and MinIO, which holds its events meanwhile, is killed and started again."""
    world.host.kill()
    time.sleep(profile.outage_seconds / 2)
    world.store.kill()
    world.store.start()
    time.sleep(profile.outage_seconds / 2)
    world.host.start()
    world.healed()


def hang_host_and_kill_store(world: World, profile: Profile) -> None:
    """The host hangs (SIGSTOP) and MinIO is killed: what its workers were waiting with is on disk all the same.

    That holds for as many events as MinIO has workers: 64, as `connect` says. What is uploaded beyond them meanwhile
    is in MinIO's memory only, so the rate of this scenario leaves it at fewer (docs/self-hosting.md, "Two doors").
    """
    del profile
    world.host.freeze()
    time.sleep(HANG_SECONDS)
    world.store.kill()
    world.host.thaw()
    world.store.start()
    world.healed()


def small_queue(directory: Path, profile: Profile) -> World:
    """A MinIO that keeps few events, and a host that sweeps."""
    return _with_queue(directory, profile, SMALL_QUEUE_EVENTS[profile.name], SWEEPING)


def ample_queue(directory: Path, profile: Profile) -> World:
    """A MinIO that keeps ten times as many, more than are uploaded while the host is down."""
    return _with_queue(directory, profile, 10 * SMALL_QUEUE_EVENTS[profile.name])


def small_disk(directory: Path, profile: Profile) -> World:
    """A MinIO with hardly any room under its queue directory: a file system in memory that nobody else sees.

    It is mounted in a mount namespace of MinIO's own, which ends with it. That needs root, or a kernel that lets
    users have namespaces.
    """
    world = World(directory, profile, variables=SWEEPING)
    world.queue_directory.mkdir()
    user = () if os.geteuid() == 0 else ("--user", "--map-root-user")
    mount = f'mount -t tmpfs -o size={SMALL_DISK_KIBIBYTES[profile.name]}k tmpfs "$0" && exec "$@"'
    world.store.command = [
        *("unshare", "--mount", *user, "sh", "-c", mount),
        *(str(world.queue_directory), *world.store.command),
    ]
    world.store.environment |= MINIO_METRICS_FOR_ALL
    return world


def overflow(world: World, profile: Profile) -> None:
    """The host is down for longer than MinIO has room for events, and comes back."""
    world.host.kill()
    enough = sure_door_dropped(world.store) + DROPPED_EVENTS
    eventually(lambda: sure_door_dropped(world.store) >= enough, "the queue never was full", FULL_SECONDS)
    time.sleep(profile.outage_seconds)
    _come_back(world)


def stay_away(world: World, profile: Profile) -> None:
    """The host is down, and comes back."""
    world.host.kill()
    time.sleep(profile.outage_seconds)
    _come_back(world)


def tear_queue_file(world: World, profile: Profile) -> None:
    """A file in MinIO's queue is cut in half while MinIO is down, as a loss of power can leave it.

    MinIO tries that one again and again, and all others wait behind it, until somebody removes it.
    """
    world.host.kill()
    rang = set(_queue_files(world))  # through the fast door, some of them
    eventually(lambda: world.queued() >= len(rang) + SOME_EVENTS, "MinIO does not keep events")
    world.store.kill()
    torn = next(file for file in _queue_files(world) if file not in rang)
    whole, modified_at = torn.read_bytes(), torn.stat().st_mtime
    torn.write_bytes(whole[: len(whole) // 2])
    os.utime(torn, (modified_at, modified_at))
    world.store.start()
    world.host.start()
    time.sleep(profile.outage_seconds)
    if not torn.exists() or world.queued() < SOME_EVENTS:
        raise AssertionError("MinIO got past the torn file: nobody need be told to remove it")
    torn.unlink()
    world.healed()


def sweeping(directory: Path, profile: Profile) -> World:
    """A host that sweeps."""
    return World(directory, profile, variables=SWEEPING)


def swept_what_was_dropped(world: World, _verdict: Verdict) -> str:
    """MinIO must have dropped some, and the sweep must have found them."""
    dropped = sure_door_dropped(world.store)
    return found_by_sweep(world, _verdict) if dropped else "MinIO's queue was not full: this shows nothing"


def found_by_sweep(world: World, _verdict: Verdict) -> str:
    """The sweep must have found something, or this has shown nothing of it."""
    return "" if host_metric(world.host, SWEPT) else "the sweep had nothing to do: this shows nothing"


def dropped_nothing(world: World, _verdict: Verdict) -> str:
    """With room enough MinIO must not have dropped any."""
    dropped = sure_door_dropped(world.store)
    return f"MinIO dropped {dropped}" if dropped else ""


def rotate_overlapping(world: World, profile: Profile) -> None:
    """The host is given the new token beside the old one, then MinIO the new one, then the host forgets the old one.

    This is the order that the documentation gives: no event is ever refused.
    """
    old = world.host.environment["WEBHOOK_TOKENS"]
    new = secrets.token_hex(16)
    _tell_host(world, f"{old},{new}")
    _tell_store(world, new)
    time.sleep(profile.outage_seconds / 2)
    refused = host_metric(world.host, "events_total", outcome="unauthorised")
    if refused:
        raise AssertionError(f"{refused:g} events were refused although both tokens are known")
    _tell_host(world, new)
    world.healed()


def rotate_store_first(world: World, profile: Profile) -> None:
    """MinIO is given the new token, and the host hears of it only after the outage: until then it refuses all."""
    new = secrets.token_hex(16)
    _tell_store(world, new)
    _see_refusals(world, profile)
    _tell_host(world, new)
    world.healed()


def rotate_host_first(world: World, profile: Profile) -> None:
    """The host is given the new token instead of the old one, and MinIO only after the outage."""
    new = secrets.token_hex(16)
    _tell_host(world, new)
    _see_refusals(world, profile)
    _tell_store(world, new)
    world.healed()


class BlockedQueue(World):
    """MinIO's queue is the only way to the host, which may not read cameras' documents."""

    def __init__(self, directory: Path, profile: Profile) -> None:
        variables = {"EVENTS_PREFIX": EVENTS_PREFIX, "EVENT_RETRY_SECONDS": f"{profile.outage_seconds:.0f}"}
        super().__init__(directory, profile, variables=variables)
        self.events_from = "MinIO, sure door only"

    def _connect(self) -> None:
        super()._connect()
        if not isinstance(self.store, Minio):
            raise TypeError(self.store)
        self.host.environment |= restricted(self.store, f"{BUCKET}/{EVENTS_PREFIX}*")
        found = self.s3.get_bucket_notification_configuration(Bucket=BUCKET)["QueueConfigurations"]
        rules = [rule for rule in found if FAST_TARGET not in rule["QueueArn"]]
        cameras = {"Key": {"FilterRules": [{"Name": "prefix", "Value": EVENTS_PREFIX}]}}
        rules.append({name: rules[0][name] for name in ("QueueArn", "Events")} | {"Filter": cameras})
        self.s3.put_bucket_notification_configuration(
            Bucket=BUCKET, NotificationConfiguration={"QueueConfigurations": rules}
        )


def block_queue(world: World, _profile: Profile) -> None:
    """Cameras' documents that the host may not read wait before everybody else's events, until they are given up."""
    before = _given_up(world)
    for number in range(REFUSED_DOCUMENTS):
        world.put(f"{EVENTS_PREFIX}front/{time.monotonic_ns()}-{number}.json")
    eventually(lambda: _given_up(world) > before, "MinIO's queue stands still for ever", GIVE_UP_SECONDS)
    world.healed()
    eventually(lambda: _given_up(world) == before + REFUSED_DOCUMENTS, "one of them is not given up", GIVE_UP_SECONDS)


def gave_up_only_what_was_refused(world: World, _verdict: Verdict) -> str:
    """Each refused document must have been given up, and nothing else."""
    given_up, refused = _given_up(world), REFUSED_DOCUMENTS * len(world.healed_at)
    return "" if given_up == refused else f"{given_up:g} given up, but {refused} were refused"


def _given_up(world: World) -> float:
    return host_metric(world.host, "events_total", source="sure", outcome=GAVE_UP)


def _with_queue(directory: Path, profile: Profile, limit: int, variables: Mapping[str, str] | None = None) -> World:
    world = World(directory, profile, variables=variables)
    world.store.environment |= {
        f"MINIO_NOTIFY_WEBHOOK_QUEUE_LIMIT_{SURE_TARGET}": str(limit),
        **MINIO_METRICS_FOR_ALL,
    }
    return world


def _queue_files(world: World) -> list[Path]:
    """The oldest first, as MinIO sends them."""
    return sorted(world.queue_directory.rglob("*.event"), key=lambda file: file.stat().st_mtime)


def _come_back(world: World) -> None:
    world.host.start()
    world.healed()
    world.uploads.hold()  # or there would always be some that wait for MinIO's next look
    eventually(lambda: not sure_door_waiting(world.store), "MinIO's queue never was empty again", EMPTY_SECONDS)
    world.uploads.go()


def _tell_host(world: World, tokens: str) -> None:
    world.host.environment["WEBHOOK_TOKENS"] = tokens
    stop(world.host)
    world.host.start()


def _tell_store(world: World, token: str) -> None:
    if not isinstance(world.store, Minio):
        raise TypeError(world.store)
    world.store.environment = {
        name: token if "_AUTH_TOKEN_" in name else value for name, value in world.store.environment.items()
    }
    world.store.restart()


def _see_refusals(world: World, profile: Profile) -> None:
    time.sleep(profile.outage_seconds)
    eventually(
        lambda: host_metric(world.host, "events_total", outcome="unauthorised"),
        "no event was refused: the tokens do not matter",
        REFUSED_SECONDS,
    )
