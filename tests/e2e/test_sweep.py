"""The sweep with real parts: a bucket that sends nothing, doors that lose events, doors and sweep together."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import missing
from tests.e2e.conftest import Build
from tests.e2e.world import BUCKET, World, eventually, filename_of, fresh, fresh_config, id_of
from tests.timing import PATIENCE_SECONDS

SWEEP = {"SWEEP_SECONDS": "1"}
UPLOADS = 300
STOP_SECONDS = 6.0  # 3 s are promised


@pytest.fixture
def versity(versitygw_binary: object, mosquitto_binary: object, tmp_path: Path) -> Iterator[World]:
    """A world with Versity GW, whose host sweeps."""
    del versitygw_binary, mosquitto_binary
    world = World("versitygw", tmp_path, mqtt=SWEEP)
    try:
        yield world.start()
    finally:
        world.stop()


def sweeps(world: World) -> float:
    """How many are over."""
    return world.metric("sweep_seconds_count")


def after_sweeps(world: World, count: int = 2) -> None:
    """Wait until so many have begun and ended."""
    begin = sweeps(world)
    assert eventually(lambda: sweeps(world) >= begin + count), world.last_words()


def test_a_bucket_that_sends_nothing_is_served_by_the_sweep_alone(build: Build) -> None:
    """New files, configs, and files that are overwritten; a deletion rings nothing, a restart nothing again."""
    world = build(mqtt=SWEEP)
    world.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    after_sweeps(world)
    name, config = fresh(), fresh_config()
    world.put(f"assets/{name}")
    (message,) = world.hear(name)
    assert dict(message.user_properties)["etag"] == world.etag(f"assets/{name}")
    world.put(f"configs/{config}")
    world.hear(config, topic="iotsupport/updates/configs")
    time.sleep(1.1)  # moto dates by the second
    world.put(f"assets/{name}", b"other")
    world.hear(name)
    world.s3.delete_object(Bucket=BUCKET, Key=f"assets/{name}")
    after_sweeps(world)
    world.host.restart()
    after_sweeps(world)
    assert world.ear.silence(0.2) == []
    assert world.log("WARNING", "ERROR") == []
    assert eventually(lambda: world.metric("sweep_list_calls_total") == 2 * sweeps(world)), "one for each prefix"


def assert_each_rings_once(world: World, uploads: int) -> None:
    """So many messages, each with an id of its own; and the sweep adds none."""
    messages = world.ear.wait_for(uploads, 2 * PATIENCE_SECONDS)
    after_sweeps(world, 3)
    messages += world.ear.drain()
    assert Counter(map(id_of, messages)).most_common(1)[0][1] == 1
    assert len(messages) == uploads, world.last_words()


def upload_many(world: World, count: int) -> None:
    """Uploads of a few contents to a few keys, so that most overwrite, some with the same bytes."""
    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda number: world.put(f"assets/many-{number % 23}.bin", b"%d" % (number % 5 // 2)), range(count)
            )
        )


def test_doors_and_sweep_together_ring_each_upload_once(build: Build) -> None:
    """Hundreds of uploads, most of them overwrite: on MinIO the sweep does not even wait for the doors."""
    world = build(mqtt=SWEEP)
    if world.kind == "minio":
        world.host.environment["SWEEP_GRACE_SECONDS"] = "0"
        world.host.restart()
    after_sweeps(world, 1)
    upload_many(world, UPLOADS)
    assert_each_rings_once(world, UPLOADS)


def test_an_event_that_comes_after_the_sweeps_message_is_a_repeat(build_minio: Build) -> None:
    """MinIO looks at its queue every 3 s: the sweep is first, under the very id of the event."""
    world = build_minio(sure_only=True, mqtt=SWEEP | {"SWEEP_GRACE_SECONDS": "0"})
    after_sweeps(world, 1)
    names = [fresh() for _ in range(10)]
    for name in names:
        world.put(f"assets/{name}")
        time.sleep(0.3)
    world.hear(*names)
    assert eventually(lambda: world.metric("events_total", source="sure") == len(names))
    swept = world.metric("sweep_rang_total")
    assert swept >= 1
    assert world.metric("events_total", source="sure", outcome="repeated") == swept
    assert world.ear.silence(0.2) == []


def test_whatever_way_an_object_comes_into_minio_it_rings_once_and_versions_that_come_back_do_not(
    build_minio: Build,
) -> None:
    """Parts, copies, copies onto themselves, empty and oddly named objects, with versions: one id, told or listed."""
    world = build_minio(mqtt=SWEEP | {"SWEEP_GRACE_SECONDS": "0"})
    world.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    after_sweeps(world, 1)
    parts, copy, empty, odd = (fresh(name) for name in ("parts", "copy", "empty", "o d+d%2F\u00fc&\u65e5"))
    upload = {"Bucket": BUCKET, "Key": f"assets/{parts}"}
    upload |= {"UploadId": world.s3.create_multipart_upload(**upload)["UploadId"]}
    etags = [
        world.s3.upload_part(**upload, PartNumber=number, Body=bytes(size))["ETag"]
        for number, size in ((1, 5 << 20), (2, 1))
    ]
    time.sleep(1.5)
    listed = [{"PartNumber": number, "ETag": etag} for number, etag in enumerate(etags, 1)]
    world.s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": listed})
    world.put(f"assets/{empty}", b"")
    world.put(f"assets/{odd}")
    source = {"Bucket": BUCKET, "Key": f"assets/{empty}"}
    world.s3.copy_object(Bucket=BUCKET, Key=f"assets/{copy}", CopySource=source)
    world.s3.copy_object(CopySource=source, MetadataDirective="REPLACE", Metadata={"a": "b"}, **source)
    assert_each_rings_once(world, 5)
    world.put(f"assets/{copy}", b"one")
    second = world.put(f"assets/{copy}", b"two")
    assert_each_rings_once(world, 2)
    world.s3.delete_object(Bucket=BUCKET, Key=f"assets/{copy}", VersionId=second["VersionId"])
    after_sweeps(world)
    assert world.metric("sweep_rollbacks_total") == 1
    marker = world.s3.delete_object(Bucket=BUCKET, Key=f"assets/{copy}")
    after_sweeps(world)
    world.s3.delete_object(Bucket=BUCKET, Key=f"assets/{copy}", VersionId=marker["VersionId"])
    after_sweeps(world)
    assert world.ear.drain() == []
    assert world.metric("sweep_rollbacks_total") == 1


def test_an_event_that_a_door_lost_rings_by_the_sweep(build: Build) -> None:
    """The bucket's rules were away for a moment; what its events told of meanwhile rings once."""
    world = build(mqtt=SWEEP | {"SWEEP_GRACE_SECONDS": "2"})
    after_sweeps(world, 1)
    rules = world.s3.get_bucket_notification_configuration(Bucket=BUCKET)
    del rules["ResponseMetadata"]
    world.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    lost = fresh()
    world.put(f"assets/{lost}")
    world.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration=rules)
    told = fresh()
    world.put(f"assets/{told}")
    world.hear(told, lost)
    assert eventually(lambda: world.metric("events_total", source="sweep", outcome="delivered") == 1)
    assert world.metric("sweep_rang_total") == 1
    after_sweeps(world)
    assert world.ear.drain() == []


def test_files_that_came_while_the_host_was_down_ring_in_shares(build_moto: Build) -> None:
    """Not more than SWEEP_MAX_RINGS in each sweep, the newest first; the log says how many wait."""
    shares = {"SWEEP_MAX_RINGS": "100", "SWEEP_RINGS_PER_SECOND": "200", "SWEEP_GRACE_SECONDS": "0"}
    world = build_moto(mqtt=SWEEP | shares)
    world.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    after_sweeps(world, 1)
    world.host.stop()
    names = [fresh() for _ in range(250)]
    for number, name in enumerate(names):
        if number in (50, 150):
            time.sleep(1.1)
        world.put(f"assets/{name}")
    world.host.start()
    heard = [filename_of(message) for message in world.ear.wait_for(len(names), 2 * PATIENCE_SECONDS)]
    assert set(heard[:100]) == set(names[150:])
    assert set(heard[100:200]) == set(names[50:150])
    assert set(heard[200:]) == set(names[:50])
    assert [line["waiting"] for line in world.log("ERROR")] == [150, 50]
    after_sweeps(world)
    assert world.ear.drain() == []


def test_a_host_that_is_stopped_in_the_middle_of_a_sweep_ends_in_time_and_goes_on_later(build_moto: Build) -> None:
    """What it had announced is not announced again, and nothing is left out."""
    world = build_moto(mqtt=SWEEP | {"SWEEP_RINGS_PER_SECOND": "10"})
    world.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    after_sweeps(world, 1)
    names = [fresh() for _ in range(60)]
    for name in names:
        world.put(f"assets/{name}")
    heard = world.ear.wait_for(5)
    begun_at = time.monotonic()
    world.host.stop(STOP_SECONDS + 10)
    assert time.monotonic() - begun_at < STOP_SECONDS
    world.host.environment["SWEEP_RINGS_PER_SECOND"] = "1000"
    world.host.start()
    heard += world.ear.wait_for(len(names) - len(heard), 2 * PATIENCE_SECONDS)
    after_sweeps(world)
    heard += world.ear.drain()
    assert sorted(map(filename_of, heard)) == sorted(names)


def test_files_in_the_folder_of_versity_ring_without_etag_and_under_new_names(
    versity: World,
) -> None:
    """Copied in by hand, copied over an object, and renamed: no event tells of these."""
    world = versity
    folder = next(path for path in world.directory.rglob(BUCKET) if path.is_dir())
    after_sweeps(world, 1)
    name, moved = fresh(), fresh()
    (folder / "assets").mkdir(exist_ok=True)
    (folder / "assets" / name).write_bytes(b"by hand")
    (message,) = world.hear(name)
    assert "etag" not in dict(message.user_properties)
    (folder / "assets" / name).rename(folder / "assets" / moved)
    world.hear(moved)
    put = fresh()
    world.put(f"assets/{put}")
    world.hear(put)
    time.sleep(6.0)  # within 5 s an event may tell of the same upload
    (folder / "assets" / put).write_bytes(b"copied over it")
    world.hear(put)
    after_sweeps(world)
    assert world.ear.drain() == []


def faked_time(offset: str) -> dict[str, str]:
    """What has a process see another time, but for its monotonic clock: as when somebody sets a machine's clock."""
    found = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    if not found:
        missing("libfaketime", "apt-get install faketime")
    return {"LD_PRELOAD": str(found[0]), "FAKETIME": offset, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "NO_FAKE_STAT": "1"}


def test_the_clock_of_the_host_does_not_matter(build_moto: Build) -> None:
    """An hour ahead, an hour behind, and set from one to the other: only what was not announced rings."""
    world = build_moto(mqtt=SWEEP | {"SWEEP_GRACE_SECONDS": "0"})
    world.s3.put_bucket_notification_configuration(Bucket=BUCKET, NotificationConfiguration={})
    after_sweeps(world, 1)
    for offset in ("+1h", "-1h", "+1h"):
        world.host.stop()
        away, name = fresh(), fresh()
        world.put(f"assets/{away}")
        world.host.environment |= faked_time(offset)
        world.host.start()
        world.hear(away)
        world.put(f"assets/{name}")
        world.hear(name)
        after_sweeps(world)
        assert world.ear.drain() == []
    assert world.log("ERROR") == []
