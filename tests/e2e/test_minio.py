"""What only MinIO can show: two doors, a queue on disk, and everything killed once."""

from __future__ import annotations

import re
import shlex
import threading

from infra.connect.minio import Doors
from infra.incoming import Received
from tests.e2e.conftest import Build
from tests.e2e.world import BUCKET, World, eventually, fresh, id_of
from tests.timing import PATIENCE_SECONDS

UPLOADS = 20
KILL_AT = 8
START_AT = 14


def assert_repeats_keep_their_id(heard: dict[str, list[Received]]) -> None:
    """Every repeat of an upload's message carries the id of the first, so that a device can drop it."""
    ids = {name: {id_of(message) for message in messages} for name, messages in heard.items()}
    assert all(len(one) == 1 for one in ids.values())
    assert len(set.union(*ids.values())) == len(ids)


def hear_until_settled(world: World, names: list[str]) -> None:
    """Nothing is missing, MinIO's queue runs empty, and whatever rang again did so with the first one's id."""
    heard = world.hear_at_least(names)
    assert eventually(lambda: world.queued() == 0), world.last_words()
    for message in world.ear.silence(0.2):
        heard.setdefault(dict(message.user_properties)["subject"].removeprefix("assets/"), []).append(message)
    assert sorted(heard) == sorted(names)
    assert_repeats_keep_their_id(heard)


def test_with_both_doors_on_each_upload_rings_once_and_its_repeat_ends_at_the_sure_door(build_minio: Build) -> None:
    """The fast door rings, within milliseconds; the sure one, up to 3 s later, knows the event already."""
    world = build_minio()
    names = [fresh() for _ in range(5)]
    for name in names:
        world.put(f"assets/{name}")
    world.hear(*names)
    assert eventually(lambda: world.metric("events_total", source="sure") == len(names))
    assert world.metric("events_total", source="fast", outcome="delivered") == len(names)
    assert world.metric("events_total", source="sure", outcome="repeated") == len(names)
    assert world.metric("mqtt_publish_total") == len(names)
    assert world.queued() == 0
    assert world.ear.drain() == []


def test_no_upload_is_lost_when_the_broker_is_killed_and_started_again(build_minio: Build) -> None:
    """Twenty uploads, the broker gone in their middle: all of them ring, repeats with the first one's id."""
    world = build_minio(proxied=True, mqtt={"MQTT_PUBLISH_TIMEOUT_SECONDS": "2"})
    assert world.proxy
    # Some are on the wire when the link is cut, and some of those unacknowledged though the broker has them.
    world.proxy.delay_seconds = 0.05
    names = [fresh() for _ in range(UPLOADS)]
    for number, name in enumerate(names):
        if number == KILL_AT:
            world.lose_broker()
        world.put(f"assets/{name}")
    assert eventually(lambda: world.metric("events_total", outcome="unconfirmed") >= 1)
    world.bring_broker_back()
    hear_until_settled(world, names)


def test_no_upload_is_lost_when_the_host_is_killed_and_started_again(build_minio: Build) -> None:
    """Twenty uploads, the host killed (SIGKILL) in their middle: MinIO's queue on disk keeps what it missed."""
    world = build_minio()
    names = [fresh() for _ in range(UPLOADS)]
    for number, name in enumerate(names):
        if number == KILL_AT:
            world.host.kill()
        if number == START_AT:
            world.host.start()
        world.put(f"assets/{name}")
    hear_until_settled(world, names)


def test_no_upload_is_lost_when_the_host_is_asked_to_stop_while_one_is_under_way(build_minio: Build) -> None:
    """SIGTERM right after uploads began: what it took it finishes, what it refused comes again after the restart."""
    world = build_minio()
    names = [fresh() for _ in range(6)]
    uploader = threading.Thread(target=lambda: [world.put(f"assets/{name}", bytes(256 * 1024)) for name in names])
    uploader.start()
    world.host.stop()
    uploader.join(PATIENCE_SECONDS)
    said = world.log("WARNING", "ERROR")
    world.host.start()
    hear_until_settled(world, names)
    assert said == []


def test_a_wrong_token_rings_nothing_and_the_right_one_rings_what_was_kept(build_minio: Build) -> None:
    """401 at both doors; MinIO keeps the events, and delivers them once its environment is corrected."""
    world = build_minio()
    wrong = Doors(world.doors.host_url, sure_only=False, queue_directory=world.doors.queue_directory, token="w" * 32)
    world.store.environment = wrong.environment()
    world.store.restart()
    names = [fresh() for _ in range(3)]
    for name in names:
        world.put(f"assets/{name}")
    for door in ("events/fast", "events"):
        assert eventually(lambda door=door: f"/{door} returned '401" in world.store.new_log_text())  # type: ignore[misc]  # the default binds this door
    turned_away = world.metric("events_total", outcome="unauthorised")
    assert world.metric("events_total") == turned_away >= len(names)
    assert eventually(lambda: world.queued() == len(names))
    world.store.environment = world.doors.environment()
    world.store.restart()
    hear_until_settled(world, names)


def test_strict_mode_rings_through_the_sure_door_alone(build_minio: Build) -> None:
    """`connect --sure-only`: one target, one message, once MinIO has looked at its queue."""
    world = build_minio(sure_only=True)
    rules = world.s3.get_bucket_notification_configuration(Bucket=BUCKET)["QueueConfigurations"]
    assert {rule["QueueArn"].split(":")[4] for rule in rules} == {"BUCKETBELLSURE"}
    name = fresh()
    world.put(f"assets/{name}")
    world.hear(name)
    assert eventually(lambda: world.metric("events_total", source="sure", outcome="delivered") == 1)
    assert world.metric("events_total") == 1


def test_the_words_of_connect_and_the_environment_are_all_that_it_takes(build_minio: Build) -> None:
    """A MinIO that knows nothing, the lines that `connect` printed, a restart, `connect` again: uploads ring."""
    world = build_minio()
    world.store.stop()
    world.store.environment = {}
    world.store.start()
    # Its rules name targets that this MinIO does not have any more: a bucket that was never connected.
    world.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    options = ("--queue-dir", str(world.queue_directory), "--show-token")
    refused = world.connect(*options)
    assert (refused.exit_code, "restart MinIO" in refused.stderr) == (1, True)
    lines = re.findall(r"^((?:MINIO_|GOMAXPROCS)\w*)=(.*)$", refused.stdout, re.MULTILINE)
    world.store.environment = {name: shlex.split(value)[0] for name, value in lines}
    world.store.restart()
    assert world.connect(*options).exit_code == 0
    name = fresh()
    world.put(f"assets/{name}")
    world.hear(name)
    assert eventually(lambda: world.metric("events_total", source="sure", outcome="repeated") == 1)
