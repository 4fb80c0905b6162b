"""From a plain S3 client's upload to a device, through a host that runs all the while."""

from __future__ import annotations

import json

import pytest

from infra.subscriber import Subscriber
from tests.e2e.conftest import Build
from tests.e2e.world import ASSETS, BUCKET, CONFIGS, World, eventually, fresh, fresh_config, id_of

PART_BYTES = 5 * 1024 * 1024  # S3's smallest part, the last one excepted


@pytest.fixture(scope="module")
def removals_world(world: World) -> World:
    """The same world, in which the store also tells us of removals and tags."""
    world.add_foreign_rule("s3:ObjectRemoved:*", *(["s3:ObjectCreated:PutTagging"] if world.kind == "minio" else []))
    return world


def upload_multipart(world: World, key: str, *bodies: bytes) -> None:
    """Upload in as many parts as there are bodies."""
    upload = world.s3.create_multipart_upload(Bucket=BUCKET, Key=key)["UploadId"]
    parts = []
    for number, body in enumerate(bodies, start=1):
        answer = world.s3.upload_part(Bucket=BUCKET, Key=key, UploadId=upload, PartNumber=number, Body=body)
        parts.append({"PartNumber": number, "ETag": answer["ETag"]})
    world.s3.complete_multipart_upload(Bucket=BUCKET, Key=key, UploadId=upload, MultipartUpload={"Parts": parts})


def test_a_config_that_is_created_and_then_replaced_rings_twice_with_its_name_alone(world: World) -> None:
    """Each save of a config is one message whose payload is `{"filename": "<mac>.json"}` and nothing else."""
    name = fresh_config()
    for body in (b'{"interval_seconds": 30}', b'{"interval_seconds": 60}'):
        world.put(f"configs/{name}", body)
        [message] = world.hear(name, topic=CONFIGS)
        assert message.payload == json.dumps({"filename": name}).encode()
    world.assert_silent()


def test_the_same_bytes_uploaded_again_ring_again(world: World) -> None:
    """A save is a save, even where the etag did not change."""
    name = fresh_config()
    ids = []
    for _ in range(2):
        world.put(f"configs/{name}", b"{}")
        ids += [id_of(message) for message in world.hear(name, topic=CONFIGS)]
    assert ids[0] != ids[1]


@pytest.mark.parametrize("body", [b"firmware", b""], ids=["content", "empty"])
def test_an_asset_rings_whatever_its_size(world: World, body: bytes) -> None:
    """One upload in one piece is one message, with the size that was uploaded, 0 included."""
    name = fresh()
    world.put(f"assets/{name}", body)
    [message] = world.hear(name)
    assert dict(message.user_properties)["size"] == str(len(body))


def test_an_asset_in_parts_rings_once(build: Build) -> None:
    """A multipart upload is one message, though to moto it is a Put and a CompleteMultipartUpload."""
    world = build()
    name = fresh()
    upload_multipart(world, f"assets/{name}", bytes(PART_BYTES), b"the end")
    [message] = world.hear(name)
    properties = dict(message.user_properties)
    assert (properties["size"], properties["etag"]) == (str(PART_BYTES + 7), world.etag(f"assets/{name}"))
    # Many, because the two events are often, but not always, of one millisecond.
    names = [fresh() for _ in range(15)]
    for name in names:
        upload_multipart(world, f"assets/{name}", b"the only part")
    world.hear(*names)
    world.assert_silent()


def test_a_copied_asset_rings_with_the_name_of_the_copy(world: World) -> None:
    """CopyObject makes an object, and so rings."""
    source, target = fresh(), fresh()
    world.put(f"assets/{source}")
    world.hear(source)
    world.s3.copy_object(Bucket=BUCKET, Key=f"assets/{target}", CopySource=f"{BUCKET}/assets/{source}")
    world.hear(target)


def test_uploads_outside_the_prefixes_are_silent(world: World) -> None:
    """What is neither a config nor an asset rings no bell."""
    world.put(fresh("notes.txt"))
    world.put(f"archive/{fresh_config()}")
    world.assert_silent()


def test_a_message_is_qos_1_not_retained_and_its_topic_begins_without_a_slash(world: World) -> None:
    """A subscriber sees QoS 1 and no retain flag; one that comes later hears nothing."""
    name = fresh()
    world.put(f"assets/{name}")
    [message] = world.hear(name)
    assert (message.topic, message.qos, message.retain) == (ASSETS, 1, False)
    assert message.content_type == "application/json"
    with Subscriber(world.broker.url, ["#", "/#"]) as late:
        assert late.silence(0.3) == []


def test_the_properties_describe_the_object_as_cloudevents_do(world: World) -> None:
    """Specversion, id, source, type, subject and time, then etag and size: what the bucket says of the object."""
    name = fresh()
    world.put(f"assets/{name}", b"12345")
    [message] = world.hear(name)
    properties = dict(message.user_properties)
    assert [key for key, _ in message.user_properties] == [
        *("specversion", "id", "source", "type", "subject", "time", "etag", "size")
    ]
    assert properties["specversion"] == "1.0"
    assert len(bytes.fromhex(properties["id"])) == 16
    assert properties["source"] == f"s3://{BUCKET}"
    assert properties["type"] == "com.amazonaws.s3.ObjectCreated:Put"
    assert properties["subject"] == f"assets/{name}"
    assert properties["time"].startswith("20")
    assert (properties["etag"], properties["size"]) == (world.etag(f"assets/{name}"), "5")


def test_one_upload_moves_every_metric_by_its_amount(world: World) -> None:
    """One publish is one success, one duration and one delivered event; nothing fails."""
    counted = [
        ("mqtt_publish_total", {"topic": ASSETS, "status": "success"}, 1),
        ("mqtt_publish_total", {"topic": ASSETS}, 1),
        ("mqtt_publish_total", {"topic": CONFIGS}, 0),
        ("mqtt_publish_duration_seconds_count", {"topic": ASSETS}, 1),
        ("mqtt_messages_published_total", {}, 1),
        ("mqtt_publish_errors_total", {}, 0),
        ("mqtt_reconnect_attempts_total", {}, 0),
        ("mqtt_no_subscribers_total", {}, 0),
        ("events_total", {"outcome": "delivered"}, 1),
    ]

    def values() -> list[float]:
        return [world.metric(name, **labels) for name, labels, _ in counted]

    before = values()
    name = fresh()
    world.put(f"assets/{name}")
    world.hear(name)
    expected = [value + amount for value, (_, _, amount) in zip(before, counted, strict=True)]
    assert eventually(lambda: values() == expected), (expected, values())
    for gauge in ("mqtt_enabled", "mqtt_connection_state", "mqtt_connection_status"):
        assert world.metric(gauge) == 1


@pytest.mark.parametrize("told", [False, True], ids=["as connect sets it up", "told of removals by a foreign rule"])
def test_removals_and_tags_never_ring(request: pytest.FixtureRequest, world: World, *, told: bool) -> None:
    """Deleting one object or many, or tagging one, is silent; where the store tells of it, it is counted."""
    if told:
        request.getfixturevalue("removals_world")
    names = [fresh() for _ in range(4)]
    for name in names:
        world.put(f"assets/{name}")
    world.hear(*names)
    source = "fast" if world.kind == "minio" else "sqs"
    skipped = world.metric("events_total", source=source, outcome="removed")
    tags = {"TagSet": [{"Key": "stage", "Value": "beta"}]}
    world.s3.put_object_tagging(Bucket=BUCKET, Key=f"assets/{names[0]}", Tagging=tags)
    world.s3.delete_object(Bucket=BUCKET, Key=f"assets/{names[0]}")
    world.s3.delete_objects(
        Bucket=BUCKET, Delete={"Objects": [{"Key": f"assets/{name}"} for name in names[1:]], "Quiet": True}
    )
    world.assert_silent()
    expected = skipped + len(names) * told
    assert eventually(lambda: world.metric("events_total", source=source, outcome="removed") == expected)
    assert world.log("ERROR") == []
