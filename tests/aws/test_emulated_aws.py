"""The stack on an emulated AWS: an upload with an S3 client, the built functions, a subscriber's ear.

An emulation; `cloud` says what each of the two proves nothing about.
"""

from __future__ import annotations

import json

import pytest

from functions.web.tokens import Keyring
from infra.incoming import Received
from tests.aws.cloud import BELL, MAX_RECEIVE_COUNT, Cloud

MAC = "a1-b2-c3-d4-e5-f6"
OTHER_MAC = "00-00-00-00-00-01"
CONFIGS, ASSETS = "iotsupport/updates/configs", "iotsupport/updates/assets"


def assert_message(message: Received, *, topic: str, filename: str) -> None:
    """The message to the letter: one key, QoS 1, not retained."""
    assert message.topic == topic
    assert message.payload == f'{{"filename": "{filename}"}}'.encode()
    assert (message.qos, message.retain, message.content_type) == (1, False, "application/json")


def test_the_emulated_lambda_runs_the_built_package_and_knows_no_secret(cloud: Cloud) -> None:
    """Both functions have the package's hash (`configuration` compares it); secrets are named in them, not held."""
    for name, secret in (("NotifyFunction", "bell/broker"), ("DownloadFunction", "bell/download")):
        configuration = cloud.configuration(name)
        assert configuration["Runtime"] == "python3.13"
        assert configuration["Environment"]["Variables"]["SECRET_ID"] == secret
        assert cloud.broker.users is not None
        assert cloud.broker.users[BELL] not in json.dumps(configuration, default=str)


def test_the_emulated_bucket_greets_its_queue_with_a_test_event_which_is_acknowledged(cloud: Cloud) -> None:
    """S3 sends it when the stack's notification rules are set; it rings nobody."""
    cloud.wait_until_logged("skipped", '"test_event"')
    assert cloud.first_heard == []


@pytest.mark.parametrize(
    ("key", "topic", "filename"),
    [
        (f"configs/{MAC}.json", CONFIGS, f"{MAC}.json"),
        ("assets/firmware-1.0.bin", ASSETS, "firmware-1.0.bin"),
        ("assets/ein Ordner/größer+1.bin", ASSETS, "ein Ordner/größer+1.bin"),
    ],
)
def test_an_upload_rings_once_on_an_emulated_aws(cloud: Cloud, key: str, topic: str, filename: str) -> None:
    """S3 → SQS → the built function → Mosquitto → a subscriber; and again when it is replaced."""
    for content in (b"one", b"two"):
        uploaded = cloud.put(key, content)
        cloud.settle()
        (message,) = cloud.hear()
        assert_message(message, topic=topic, filename=filename)
        properties = dict(message.user_properties)
        assert properties["subject"] == key
        assert properties["etag"] == uploaded["ETag"].strip('"')
        assert properties["size"] == str(len(content))
        assert len(properties["id"]) == 32


def test_one_warm_connection_serves_all_invocations_on_an_emulated_aws(cloud: Cloud) -> None:
    """The broker sees no CONNECT between two invocations."""
    cloud.put("assets/first")
    cloud.settle()
    cloud.hear()
    before = cloud.broker.log_text().count("New client connected")
    cloud.put("assets/second")
    cloud.settle()
    cloud.hear()
    assert cloud.broker.log_text().count("New client connected") == before


def test_a_removal_is_silent_on_an_emulated_aws(cloud: Cloud) -> None:
    """The stack's rules do not ask for removals; where somebody adds one that does, the event is acknowledged."""
    key = "assets/gone"
    first, second = (cloud.put(key)["VersionId"] for _ in range(2))
    cloud.settle()
    cloud.wait_until_logged("published", '"gone"', times=2)
    assert {json.loads(one.payload)["filename"] for one in cloud.ear.drain()} == {"gone"}
    # Of versions: when a delete marker is made, moto tells nobody.
    cloud.s3.delete_object(Bucket=cloud.bucket, Key=key, VersionId=first)

    ours = cloud.s3.get_bucket_notification_configuration(Bucket=cloud.bucket)["QueueConfigurations"]
    somebodys = {"Id": "foreign", "QueueArn": ours[0]["QueueArn"], "Events": ["s3:ObjectRemoved:*"]}
    for rules in ([*ours, somebodys], ours):
        configuration = {"QueueConfigurations": rules}
        cloud.s3.put_bucket_notification_configuration(Bucket=cloud.bucket, NotificationConfiguration=configuration)
        if somebodys in rules:
            cloud.s3.delete_object(Bucket=cloud.bucket, Key=key, VersionId=second)
    cloud.settle()
    cloud.wait_until_logged("skipped", '"removed"')
    assert len(cloud.logged("skipped", '"removed"')) == 1  # the second: of the first, nobody was told
    assert cloud.ear.silence(0.3) == []


def test_a_poison_message_ends_in_the_emulated_dead_letter_queue_and_the_nine_beside_it_ring_once(
    cloud: Cloud,
) -> None:
    """Its id alone comes back; after MaxReceiveCount tries SQS itself moves it."""
    poison = '{"Records": [{"eventName": "ObjectCreated:Put"'
    with cloud.retrying():
        with cloud.paused():
            for number in range(9):
                cloud.put(f"assets/good-{number}")
            cloud.sqs.send_message(QueueUrl=cloud.queue_url, MessageBody=poison)
        cloud.settle()
    heard = sorted(json.loads(message.payload)["filename"] for message in cloud.hear(9))
    assert heard == [f"good-{number}" for number in range(9)]
    assert cloud.batches()[-MAX_RECEIVE_COUNT:] == [(10, 1), *[(1, 1)] * (MAX_RECEIVE_COUNT - 1)]
    cloud.wait_until_logged("malformed event", times=MAX_RECEIVE_COUNT)
    assert len(cloud.logged("malformed event")) == MAX_RECEIVE_COUNT
    assert cloud.dead_letters() == [poison]
    assert cloud.ear.drain() == []


def test_with_the_broker_down_everything_stays_in_the_emulated_queue_and_rings_when_it_is_back(cloud: Cloud) -> None:
    """All ids of the batch come back, SQS delivers them once more, and each rings once; the uploads are unharmed."""
    cloud.lose_broker()
    names = [f"patient-{number}" for number in range(3)]
    with cloud.retrying():
        with cloud.paused():
            for name in names:
                cloud.put(f"assets/{name}")
        cloud.attempt()
        for name in names:
            cloud.wait_until_logged("publish failed", f'"{name}"')
        assert cloud.queued() == len(names)
        cloud.bring_broker_back()
        cloud.settle()
    assert sorted(json.loads(message.payload)["filename"] for message in cloud.hear(len(names))) == names
    assert cloud.batches()[-2:] == [(3, 3), (3, 0)]
    for name in names:
        assert cloud.s3.get_object(Bucket=cloud.bucket, Key=f"assets/{name}")["Body"].read() == b"content"


def test_a_device_gets_its_files_from_the_emulated_function_and_store(cloud: Cloud) -> None:
    """The Location of its answer opens, and the bytes are those uploaded; another device's config is not there."""
    token = Keyring.parse([cloud.credentials.device_token_keys]).mint(MAC)
    files = {f"/configs/{MAC}.json": b'{"interval": 60}', "/assets/firmware-2.0.bin": bytes(range(256)) * 64}
    for path, content in files.items():
        cloud.put(path[1:], content)
        answer = cloud.ask(path, token)
        assert answer.status == 307, cloud.last_words()
        assert f"{cloud.emulator.endpoint_url}/{cloud.bucket}{path}?" in answer.headers["location"]
        assert cloud.fetch(answer.headers["location"]) == content
        assert cloud.fetch(answer.headers["location"], Range="bytes=3-") == content[3:]
    cloud.put(f"configs/{OTHER_MAC}.json", b"{}")
    manifest = cloud.ask("/manifest", token)
    assert manifest.status == 200
    assert f"{MAC}.json" in manifest.body
    assert "firmware-2.0.bin" in manifest.body
    assert OTHER_MAC not in manifest.body
    assert cloud.ask(f"/configs/{OTHER_MAC}.json", token).status == 404
    assert cloud.ask(f"/configs/{MAC}.json", "no token of ours").status == 401
    cloud.settle()
    cloud.hear(3)
