"""Every sort of broker, well and ailing, behind a real store."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.local.certificates import make_certificates
from infra.local.mosquitto import Mosquitto
from tests.e2e.conftest import Build
from tests.e2e.world import ASSETS, BUCKET, CONFIGS, World, eventually, filename_of, fresh, fresh_config, id_of
from tests.timing import SLACK_SECONDS

PUBLISH_SECONDS = 2.0
PATIENCE = {"MQTT_PUBLISH_TIMEOUT_SECONDS": str(PUBLISH_SECONDS)}
SOON = {"VisibilityTimeout": "2"}  # seconds: what was not settled comes back, where `connect` sets 60
NOT_AUTHORISED = 0x87
USERS = {"bell": "ring-ring", "ear": "listen-well"}
MQTT_USER = {"MQTT_USERNAME": "bell", "MQTT_PASSWORD": USERS["bell"]}
EAR = {"username": "ear", "password": USERS["ear"]}
ACL = "user bell\ntopic write iotsupport/updates/#\n\nuser ear\ntopic read #\n"
DEAF_ACL = ACL.replace("iotsupport/updates/#", "elsewhere/#")


def upload_seconds(world: World, count: int = 8) -> tuple[list[str], list[float]]:
    """Upload so many assets: their names, and how long each took the uploader."""
    names, seconds = [fresh() for _ in range(count)], []
    for name in names:
        begun_at = time.monotonic()
        world.put(f"assets/{name}", b"firmware")
        seconds.append(time.monotonic() - begun_at)
    return names, seconds


# Well.


def test_many_uploads_share_one_mqtt_5_connection_and_one_more_follows_a_restart(build: Build) -> None:
    """Fifteen uploads, one CONNECT of protocol 5; after the broker's restart one more, and uploads ring."""
    world = build()
    names, _ = upload_seconds(world, 14)
    world.hear(*names)
    config = fresh_config()
    world.put(f"configs/{config}")
    world.hear(config, topic=CONFIGS)
    [connect] = world.connects()
    assert "(p5, " in connect
    world.broker.restart()
    assert eventually(lambda: world.ear.connected and world.readiness()[0])
    [name], _ = upload_seconds(world, 1)
    world.hear(name)
    assert len(world.connects()) == 1
    assert world.metric("mqtt_reconnect_attempts_total") >= 1


def test_an_mqtt_3_1_1_broker_gets_the_same_payload_without_properties(build_minio: Build) -> None:
    """MQTT_PROTOCOL=3.1.1 is what the broker sees, and the payload is byte for byte the same."""
    world = build_minio(mqtt={"MQTT_PROTOCOL": "3.1.1"})
    name = fresh_config()
    world.put(f"configs/{name}")
    [message] = world.hear(name, topic=CONFIGS)
    assert (message.payload, message.user_properties) == (json.dumps({"filename": name}).encode(), ())
    [connect] = world.connects()
    assert "(p2, " in connect


def test_a_broker_with_tls_and_client_certificates_rings(build_minio: Build, tmp_path: Path) -> None:
    """`mqtts://` with an authority of our own, and a certificate that the broker insists on."""
    files = make_certificates(tmp_path / "certificates")
    world = build_minio(
        broker=Mosquitto(tmp_path / "tls", certificates=files, require_client_certificate=True),
        mqtt={
            "MQTT_CA_FILE": str(files.ca_file),
            "MQTT_CERT_FILE": str(files.client_cert),
            "MQTT_KEY_FILE": str(files.client_key),
        },
        ears={"ca_file": files.ca_file, "cert_file": files.client_cert, "key_file": files.client_key},
    )
    name = fresh()
    world.put(f"assets/{name}")
    world.hear(name)


def test_a_broker_with_passwords_and_rules_rings(build_minio: Build, tmp_path: Path) -> None:
    """MQTT_USERNAME and MQTT_PASSWORD, allowed to write the update topics and nothing else."""
    world = build_minio(broker=Mosquitto(tmp_path / "users", users=USERS, acl=ACL), mqtt=MQTT_USER, ears=EAR)
    name = fresh()
    world.put(f"assets/{name}")
    world.hear(name)
    assert USERS["bell"] not in world.host.log_text()


def test_without_a_broker_uploads_are_fine_and_nothing_is_said(build: Build) -> None:
    """No MQTT_URL: no warning, no failure, no metric but `mqtt_enabled 0`, and the host is ready."""
    world = build(mqtt={"MQTT_URL": ""})
    names, _ = upload_seconds(world, 2)
    assert world.ear.silence(0.3) == []
    assert [world.etag(f"assets/{name}") for name in names]
    assert world.readiness() == (True, {"configured": False})
    assert world.log("WARNING", "ERROR", "CRITICAL") == []
    samples = {key: value for key, value in world.samples().items() if key[0].startswith(("mqtt_", "events_"))}
    assert samples["mqtt_enabled", frozenset()] == 0
    assert not any(samples.values())


def test_a_message_that_nobody_hears_is_a_success_and_counted(build_minio: Build) -> None:
    """The broker says that there is no subscriber (0x10): delivered, and `mqtt_no_subscribers_total` tells."""
    world = build_minio()
    world.ear.stop()
    world.put(f"assets/{fresh()}")
    assert eventually(lambda: world.metric("mqtt_no_subscribers_total", topic=ASSETS) == 1)
    assert world.metric("mqtt_publish_total", topic=ASSETS, status="success") == 1
    assert world.metric("events_total", outcome="no_subscribers") == 1
    assert world.log("WARNING", "ERROR") == []


# Ailing.


def test_a_broker_that_forbids_a_topic_harms_no_upload(build: Build, tmp_path: Path) -> None:
    """The object is there; topic, filename and reason are logged; what MinIO keeps rings once it is allowed."""
    broker = Mosquitto(tmp_path / "users", users=USERS, acl=DEAF_ACL)
    world = build(broker=broker, mqtt=MQTT_USER, ears=EAR)
    [name], [seconds] = upload_seconds(world, 1)
    assert seconds < SLACK_SECONDS
    assert world.etag(f"assets/{name}")
    assert eventually(lambda: name in world.failures()), world.last_words()
    line = world.failures()[name]
    assert (line["topic"], line["reason_code"]) == (ASSETS, NOT_AUTHORISED)
    assert "0x87" in str(line["reason"])
    failures = world.metric("mqtt_publish_total", topic=ASSETS, status="failure")
    assert failures >= 1
    assert world.metric("mqtt_publish_errors_total") >= failures
    assert world.metric("mqtt_publish_total", status="success") == 0
    assert world.readiness()[0]  # the connection is well; only this topic is not ours
    assert world.ear.drain() == []
    if world.kind == "minio":  # moto's queue asks again too late for a test, Versity GW never
        broker.set_acl(ACL)
        broker.reload()
        world.hear(name)
        assert eventually(lambda: world.queued() == 0)


@pytest.mark.parametrize(
    ("harm", "heal", "why"),
    [
        (World.lose_broker, World.bring_broker_back, "Connection refused|connection lost"),
        (lambda world: world.broker.freeze(), lambda world: world.broker.thaw(), "acknowledge|no answer"),
    ],
    ids=["away", "hung"],
)
def test_a_broker_in_trouble_harms_no_upload_and_hears_of_each_afterwards(
    build: Build, harm: Callable[[World], None], heal: Callable[[World], None], why: str
) -> None:
    """No upload waits for it, failures are logged and counted, and all rings once the broker is back."""
    world = build(mqtt=PATIENCE, queue=SOON, proxied=True)
    names, _ = upload_seconds(world)
    world.hear(*names)
    harm(world)
    names, ill_seconds = upload_seconds(world)
    assert sum(ill_seconds) < len(names) * PUBLISH_SECONDS / 2  # each that waited for the broker would wait so long
    assert all(world.etag(f"assets/{name}") for name in names)
    assert eventually(lambda: set(world.failures()) & set(names)), world.last_words()
    for line in world.failures().values():
        assert line["topic"] == ASSETS
        assert any(reason in str(line["reason"]) for reason in why.split("|")), line
    assert eventually(lambda: not world.readiness()[0])
    assert world.metric("mqtt_enabled") == world.metric("mqtt_connection_state") == 0
    assert eventually(lambda: world.metric("mqtt_publish_total", topic=ASSETS, status="failure") >= 1)
    heal(world)
    # What the broker had taken, unacknowledged, before it froze comes twice: each repeat with the first one's id.
    heard = world.hear_at_least(names)
    assert all(len({id_of(message) for message in messages}) == 1 for messages in heard.values())
    assert eventually(lambda: world.readiness()[0])
    assert world.metric("mqtt_enabled") == 1


def test_bad_credentials_are_reported_as_such_and_right_ones_put_it_right(build_minio: Build, tmp_path: Path) -> None:
    """`/readyz` names the broker's reason; `mqtt_enabled` is 1 only while the broker has accepted us."""
    broker = Mosquitto(tmp_path / "users", users={**USERS, "bell": "another"}, acl=ACL)
    world = build_minio(broker=broker, mqtt=MQTT_USER | PATIENCE, ears=EAR, ready=False)

    def refused() -> bool:
        ready, mqtt = world.readiness()
        return not ready and "MQTT_USERNAME" in mqtt["reason"] and mqtt["reason_code"] == NOT_AUTHORISED

    assert eventually(refused), world.readiness()
    assert world.metric("mqtt_enabled") == 0
    name = fresh()
    world.put(f"assets/{name}")
    assert eventually(lambda: name in world.failures()), world.last_words()
    assert world.failures()[name]["reason_code"] == NOT_AUTHORISED
    broker.set_users(USERS)
    broker.reload()
    assert eventually(lambda: world.readiness()[0] and world.ear.connected), world.readiness()
    assert [filename_of(m) for m in world.hear_at_least([name])[name]] == [name]
    assert world.metric("mqtt_enabled") == 1


def test_access_that_is_taken_away_disables_publishing_until_it_is_back(build_minio: Build, tmp_path: Path) -> None:
    """A connection that fails after the start is as good as none, and says why."""
    world = build_minio(broker=Mosquitto(tmp_path / "users", users=USERS, acl=ACL), mqtt=MQTT_USER, ears=EAR)
    world.broker.set_users({"ear": USERS["ear"]})
    world.broker.reload()
    assert eventually(lambda: world.readiness()[1].get("reason_code") == NOT_AUTHORISED), world.readiness()
    assert not world.readiness()[0]
    assert world.metric("mqtt_enabled") == 0
    world.broker.set_users(USERS)
    world.broker.reload()
    assert eventually(lambda: world.readiness()[0] and world.ear.connected), world.readiness()
    name = fresh()
    world.put(f"assets/{name}")
    world.hear(name)


def test_an_event_that_can_never_succeed_ends_in_the_dead_letter_queue(build_moto: Build, tmp_path: Path) -> None:
    """A topic that the broker refuses for good: SQS keeps the event for a person, however often it was delivered."""
    broker = Mosquitto(tmp_path / "users", users=USERS, acl=DEAF_ACL)
    world = build_moto(broker=broker, mqtt=MQTT_USER, ears=EAR, queue={"VisibilityTimeout": "1"})
    redrive = {"deadLetterTargetArn": world.dead_letter_queue()["QueueArn"], "maxReceiveCount": 2}
    world.set_queue({"RedrivePolicy": json.dumps(redrive)})
    [name], _ = upload_seconds(world, 1)
    assert eventually(lambda: name in world.failures()), world.last_words()
    assert eventually(lambda: world.dead_letter_queue()["ApproximateNumberOfMessages"] == "1"), world.samples()


# Versions: a bucket of its own, because versioning cannot be undone.


def test_a_delete_marker_is_silent_and_each_version_rings_with_its_id(build: Build) -> None:
    """In a versioned bucket a message names the version where the store does; a delete marker is silent."""
    world = build()
    world.s3.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Enabled"})
    world.add_foreign_rule("s3:ObjectRemoved:*")
    name, versions, heard = fresh(), [], []
    for body in (b"one", b"two"):
        versions.append(world.put(f"assets/{name}", body)["VersionId"])
        heard += world.hear(name)
    # moto's events name no version.
    expected = versions if world.kind == "minio" else [None, None]
    assert [dict(message.user_properties).get("versionid") for message in heard] == expected
    world.s3.delete_object(Bucket=BUCKET, Key=f"assets/{name}")
    world.s3.delete_object(Bucket=BUCKET, Key=f"assets/{name}", VersionId=versions[0])
    world.assert_silent()
    # MinIO tells of both, moto of neither.
    source, expected_removals = ("fast", 2) if world.kind == "minio" else ("sqs", 0)
    assert eventually(lambda: world.metric("events_total", source=source, outcome="removed") == expected_removals)
