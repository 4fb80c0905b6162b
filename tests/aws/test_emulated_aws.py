"""The stack on an emulated AWS: an upload with an S3 client, the built functions in containers, a subscriber's ear.

An emulation: it proves nothing about IAM, signatures, TLS, API Gateway or how Lambda scales (see `cloud`).
"""

from __future__ import annotations

import json
import urllib.request

import pytest

from functions.web.tokens import Keyring
from infra.subscriber import Received
from tests.aws.cloud import BELL, MAX_RECEIVE_COUNT, VISIBILITY_SECONDS, Cloud
from tests.aws.mapping import Turn
from tests.gateway import Answered, http_event
from tests.template import transformed

MAC = "a1-b2-c3-d4-e5-f6"
OTHER_MAC = "00-00-00-00-00-01"
CONFIGS, ASSETS = "iotsupport/updates/configs", "iotsupport/updates/assets"
FETCH_SECONDS = 30.0


def bodies(turn: Turn) -> list[str]:
    """What the messages of a batch said."""
    return [one["body"] for one in turn.records]


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
    assert [json.loads(body)["Event"] for body in bodies(cloud.first)] == ["s3:TestEvent"]
    assert cloud.first.kept == frozenset()
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
    """S3 → SQS → the built function in its container → Mosquitto → a subscriber; and again when it is replaced."""
    for content in (b"one", b"two"):
        uploaded = cloud.put(key, content)
        cloud.work_off(1)
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
    cloud.work_off(1)
    before = cloud.broker.log_text().count("New client connected")
    cloud.put("assets/second")
    cloud.work_off(1)
    cloud.hear(2)
    assert cloud.broker.log_text().count("New client connected") == before


def test_a_removal_is_silent_on_an_emulated_aws(cloud: Cloud) -> None:
    """The stack's rules do not ask for removals; where somebody adds one that does, the event is acknowledged."""
    key = "assets/gone"
    first, second = (cloud.put(key)["VersionId"] for _ in range(2))
    cloud.work_off(2)
    cloud.hear()  # one message for two versions in one batch
    # Of versions: when a delete marker is made, moto tells nobody.
    cloud.s3.delete_object(Bucket=cloud.bucket, Key=key, VersionId=first)
    assert cloud.turn(wait_seconds=1) == Turn()

    ours = cloud.s3.get_bucket_notification_configuration(Bucket=cloud.bucket)["QueueConfigurations"]
    somebodys = {"Id": "foreign", "QueueArn": ours[0]["QueueArn"], "Events": ["s3:ObjectRemoved:*"]}
    for rules in ([*ours, somebodys], ours):
        configuration = {"QueueConfigurations": rules}
        cloud.s3.put_bucket_notification_configuration(Bucket=cloud.bucket, NotificationConfiguration=configuration)
        if somebodys in rules:
            cloud.s3.delete_object(Bucket=cloud.bucket, Key=key, VersionId=second)
    turn = cloud.work_off(3)  # with the test event that each change of the rules sends
    assert any('"ObjectRemoved:' in body for body in bodies(turn))
    assert cloud.ear.silence(0.3) == []


def test_a_poison_message_ends_in_the_emulated_dead_letter_queue_and_the_nine_beside_it_ring_once(
    cloud: Cloud,
) -> None:
    """Its id alone comes back; after MaxReceiveCount tries SQS itself moves it."""
    for number in range(9):
        cloud.put(f"assets/good-{number}")
    poison = '{"Records": [{"eventName": "ObjectCreated:Put"'
    poison_id = cloud.sqs.send_message(QueueUrl=cloud.queue_url, MessageBody=poison)["MessageId"]
    turn = cloud.turn()
    assert len(turn.records) == 10
    assert turn.kept == {poison_id}
    heard = sorted(json.loads(message.payload)["filename"] for message in cloud.hear(9))
    assert heard == [f"good-{number}" for number in range(9)]
    for _ in range(MAX_RECEIVE_COUNT - 1):
        again = cloud.turn()
        assert again.received == [poison_id]
        assert again.kept == {poison_id}
    assert cloud.turn(wait_seconds=2 * VISIBILITY_SECONDS) == Turn()
    assert cloud.dead_letters() == [poison]
    assert cloud.queued() == 0
    assert cloud.ear.drain() == []


def test_with_the_broker_down_everything_stays_in_the_emulated_queue_and_rings_when_it_is_back(cloud: Cloud) -> None:
    """All ids of the batch come back, SQS delivers them once more, and each rings once; the uploads are unharmed."""
    cloud.lose_broker()
    names = [f"patient-{number}" for number in range(3)]
    for name in names:
        cloud.put(f"assets/{name}")
    turn = cloud.turn()
    assert turn.invoked is not None
    assert turn.invoked.error is None
    assert sorted(turn.kept) == turn.received
    assert cloud.queued() == len(turn.records) == len(names)

    cloud.bring_broker_back()
    again = cloud.work_off(len(names))
    assert again.received == turn.received
    assert {one["attributes"]["ApproximateReceiveCount"] for one in again.records} == {"2"}
    assert sorted(json.loads(message.payload)["filename"] for message in cloud.hear(len(names))) == names
    for name in names:
        assert cloud.s3.get_object(Bucket=cloud.bucket, Key=f"assets/{name}")["Body"].read() == b"content"


def ask(cloud: Cloud, path: str, token: str) -> Answered:
    """What DownloadFunction answers to a request that the template's API routes to it."""
    paths = transformed()["Resources"]["DownloadApi"]["Properties"]["Body"]["paths"]
    folder = path.rsplit("/", 1)[0] + "/{"
    (route,) = (
        methods["get"] for template, methods in paths.items() if template.startswith(folder) or template == path
    )
    assert "DownloadFunction" in json.dumps(route["x-amazon-apigateway-integration"]["uri"])
    event = http_event(path, headers={"authorization": f"Bearer {token}"})
    invoked = cloud.download.invoke(json.dumps(event).encode())
    assert invoked.error is None, cloud.last_words()
    return Answered.of(json.loads(invoked.payload))


def test_a_device_gets_its_files_from_the_emulated_function_and_store(cloud: Cloud) -> None:
    """The Location of its answer opens, and the bytes are those uploaded; another device's config is not there.

    Moto verifies no signature: that of the URL is tested on MinIO, elsewhere.
    """
    keys = json.loads(cloud.secrets.get_secret_value(SecretId="bell/download")["SecretString"])["DEVICE_TOKEN_KEYS"]
    token = Keyring.parse([keys]).mint(MAC)
    files = {f"/configs/{MAC}.json": b'{"interval": 60}', "/assets/firmware-2.0.bin": bytes(range(256)) * 64}
    for path, content in files.items():
        cloud.put(path[1:], content)
        answer = ask(cloud, path, token)
        assert answer.status == 307, cloud.last_words()
        assert f"{cloud.moto.endpoint_url}/{cloud.bucket}{path}?" in answer.headers["location"]
        with urllib.request.urlopen(answer.headers["location"], timeout=FETCH_SECONDS) as response:  # noqa: S310 - moto's
            assert response.read() == content
    manifest = ask(cloud, "/manifest", token)
    assert manifest.status == 200
    cloud.put(f"configs/{OTHER_MAC}.json", b"{}")
    assert ask(cloud, f"/configs/{OTHER_MAC}.json", token).status == 404
    assert ask(cloud, f"/configs/{MAC}.json", "no token of ours").status == 401
    cloud.work_off(3)
    cloud.hear(3)
