"""The built functions in containers, as `sam local` runs them: what a subscriber hears, what a device downloads."""

from __future__ import annotations

import base64
import json
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

import boto3
import httpx
import pytest
from botocore import UNSIGNED
from botocore.config import Config

from functions.web.tokens import Keyring
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.stores import REGION, Minio, MotoServer
from infra.sam import tool
from infra.sam.engine import HOST
from infra.sam.image import ARCHITECTURE
from infra.subscriber import Subscriber
from tests.gateway import Answered, http_event
from tests.sam.invoking import INVOKE_SECONDS, Sam

EVENTS = Path(__file__).parents[1] / "events"
VALIDATE_SECONDS = 60.0
DOWNLOAD_SECONDS = 30.0
SILENCE_SECONDS = 0.5
MAC = "aa-bb-cc-dd-ee-ff"
CONFIG = f"configs/{MAC}.json"
ASSET = "assets/fw/a b+c.bin"
CONTENT = b'{"interval_seconds": 60}'
BUCKET = "devices"
EVENTS_BUCKET = "amzn-s3-demo-bucket"
LARGEST_BODY_BYTES = 256 * 1024


def event(name: str) -> Any:  # noqa: ANN401 - JSON
    """An event as its sender wrote it."""
    return json.loads((EVENTS / f"{name}.json").read_text())


def created(key: str) -> str:
    """S3's document about one upload, as it stands in the body of an SQS message."""
    document = event("aws-put")
    document["Records"][0]["s3"]["object"]["key"] = key
    return json.dumps(document)


def batch(*bodies: str) -> dict[str, Any]:
    """An SQS batch whose messages are `m0`, `m1` and so on."""
    form = event("sqs-batch")["Records"][0]
    return {"Records": [form | {"messageId": f"m{index}", "body": body} for index, body in enumerate(bodies)]}


def failures(answer: Any) -> list[str]:  # noqa: ANN401 - JSON
    """The ids that SQS is to keep."""
    assert set(answer) == {"batchItemFailures"}, answer
    return [failure["itemIdentifier"] for failure in answer["batchItemFailures"]]


def broker(mosquitto: Mosquitto) -> dict[str, str]:
    """The variables of a function that announces the events' bucket on this broker."""
    return {"MQTT_URL": f"mqtt://{HOST}:{mosquitto.port}", "BUCKET": EVENTS_BUCKET}


def heard(subscriber: Subscriber, count: int) -> list[Received]:
    """What came: so many messages, and none after them."""
    messages = subscriber.wait_for(count) if count else []
    assert subscriber.silence(SILENCE_SECONDS) == []
    return messages


@dataclass(frozen=True, slots=True)
class Shop:
    """A bucket with a config and an asset, and what a function and a device need to get at them."""

    endpoint_url: str
    variables: dict[str, str]
    environment: dict[str, str]
    """SAM's own: it hands its credentials to the function, as Lambda those of a role."""
    headers: dict[str, str]


@pytest.fixture
def shop(minio: Minio, moto: MotoServer) -> Shop:
    """A MinIO, which the function and a device know by different names, and a secret with the keys of device tokens."""
    s3 = minio.client()
    if BUCKET not in {bucket["Name"] for bucket in s3.list_buckets()["Buckets"]}:
        s3.create_bucket(Bucket=BUCKET)
    for key in (CONFIG, ASSET):
        s3.put_object(Bucket=BUCKET, Key=key, Body=CONTENT)
    keys = ["k:" + base64.b64encode(bytes(range(32))).decode()]
    return Shop(
        endpoint_url=minio.endpoint_url,
        variables={
            "BUCKET": BUCKET,
            "AWS_ENDPOINT_URL_S3": f"http://{HOST}:{minio.port}",
            "S3_PUBLIC_ENDPOINT_URL": minio.endpoint_url,
            **_to_secret(moto, json.dumps({"DEVICE_TOKEN_KEYS": keys[0]})),
        },
        environment={
            "AWS_ACCESS_KEY_ID": minio.access_key,
            "AWS_SECRET_ACCESS_KEY": minio.secret_key,
            "AWS_DEFAULT_REGION": REGION,
        },
        headers={"authorization": f"Bearer {Keyring.parse(keys).mint(MAC)}"},
    )


def test_template_is_valid() -> None:
    """`sam validate --lint` has nothing to say against template.yaml."""
    done = tool.sam("validate", "--lint", deadline_seconds=VALIDATE_SECONDS)
    assert "is a valid SAM Template" in done.stdout


def test_upload_is_announced_exactly(sam: Sam, mosquitto: Mosquitto, subscriber: Subscriber) -> None:
    """S3's own event becomes one message: topic, payload, QoS 1, not retained, CloudEvents' attributes."""
    done = sam.invoke("NotifyFunction", event("aws-put"), broker(mosquitto))
    (message,) = heard(subscriber, 1)
    assert message.topic == "iotsupport/updates/configs"
    assert message.payload == b'{"filename": "aa-bb-cc-dd-ee-ff.json"}'
    assert (message.qos, message.retain, message.content_type) == (1, False, "application/json")
    properties = dict(message.user_properties)
    assert len(bytes.fromhex(properties.pop("id"))) == 16
    assert properties == {
        "specversion": "1.0",
        "source": "s3://amzn-s3-demo-bucket",
        "type": "com.amazonaws.s3.ObjectCreated:Put",
        "subject": CONFIG,
        "time": "2026-11-20T12:00:00.123Z",
        "etag": "d41d8cd98f00b204e9800998ecf8427e",
        "size": "1024",
        "versionid": "096fKKXTRTtl3on89fVO.nfljtsv6qko",
    }
    assert done.answer == {"published": 1, "skipped": 0, "failed": 0}


def test_bad_record_alone_comes_back(sam: Sam, mosquitto: Mosquitto, subscriber: Subscriber) -> None:
    """Of a batch with one poison message its id alone is returned, and the nine others are published once."""
    bodies = [created(f"assets/{index}.bin") for index in range(9)]
    bodies.insert(4, "{poison")
    done = sam.invoke("NotifyFunction", batch(*bodies), broker(mosquitto))
    messages = heard(subscriber, 9)
    assert failures(done.answer) == ["m4"]
    assert [json.loads(message.payload)["filename"] for message in messages] == [f"{index}.bin" for index in range(9)]


def test_batch_comes_back_while_the_broker_is_down(sam: Sam, mosquitto: Mosquitto) -> None:
    """With no broker every id is returned, and the log says why."""
    mosquitto.stop()
    bodies = [created(f"assets/{index}.bin") for index in range(3)]
    done = sam.invoke("NotifyFunction", batch(*bodies), broker(mosquitto))
    assert failures(done.answer) == ["m0", "m1", "m2"]
    assert "publish failed" in {line.get("message") for line in done.logged}


def test_direct_event_is_raised_while_the_broker_is_down(sam: Sam, mosquitto: Mosquitto) -> None:
    """A direct invocation raises, so that Lambda tries again; `sam local invoke` ends with 0 all the same."""
    mosquitto.stop()
    done = sam.invoke("NotifyFunction", event("aws-put"), broker(mosquitto))
    assert done.answer["errorType"] == "PublishFailed"
    assert "1 of 1 records were not published" in done.answer["errorMessage"]


@pytest.mark.parametrize(
    ("document", "answer"),
    [
        pytest.param({"Records": []}, {"published": 0, "skipped": 1, "failed": 0}, id="no records"),
        pytest.param({"hello": "world"}, {"published": 0, "skipped": 0, "failed": 1}, id="another shape"),
        pytest.param(batch("x" * LARGEST_BODY_BYTES), ["m0"], id="256 KB of nothing"),
        pytest.param(batch(created("configs/no-mac.json")), [], id="mapped but malformed key"),
    ],
)
def test_what_cannot_be_announced_publishes_nothing(
    sam: Sam,
    mosquitto: Mosquitto,
    subscriber: Subscriber,
    document: dict[str, Any],
    answer: dict[str, int] | list[str],
) -> None:
    """A wrong shape is answered, never a crash: kept by SQS, or counted for a direct invocation."""
    done = sam.invoke("NotifyFunction", document, broker(mosquitto))
    assert heard(subscriber, 0) == []
    if isinstance(answer, list):
        assert failures(done.answer) == answer
    else:
        assert {key: done.answer.get(key) for key in answer} == answer


def test_without_a_broker_it_is_silent(sam: Sam) -> None:
    """No MQTT_URL: an answer, and no line but the metric that says so; by no flag beyond those of samconfig.toml."""
    done = tool.sam(
        *("local", "invoke", "NotifyFunction", "--event", str(EVENTS / "aws-put.json")),
        # Nothing where samconfig.toml and the template's defaults are for this machine.
        *([] if ARCHITECTURE == "x86_64" else ["--parameter-overrides", f"Architecture={ARCHITECTURE}"]),
        deadline_seconds=INVOKE_SECONDS,
        directory=sam.build.parents[1],
    )
    invocation = sam.read(done.stdout, done.stderr)
    assert invocation.answer == {"published": 0, "skipped": 0, "failed": 0}
    (line,) = invocation.logged
    assert [metric["Name"] for metric in line["_aws"]["CloudWatchMetrics"][0]["Metrics"]] == ["mqtt_enabled"]
    assert line["mqtt_enabled"] in (0, [0])


def test_warm_container_keeps_its_connection(sam: Sam, mosquitto: Mosquitto, subscriber: Subscriber) -> None:
    """Three invocations of one warm container make three messages over one connection."""
    with sam.serve("start-lambda", "NotifyFunction", broker(mosquitto)) as url:
        config = Config(signature_version=UNSIGNED, read_timeout=INVOKE_SECONDS, retries={"total_max_attempts": 1})
        client = boto3.client("lambda", endpoint_url=url, region_name=REGION, config=config)
        for index in range(3):
            payload = json.dumps(batch(created(f"assets/{index}.bin")))
            done = client.invoke(FunctionName="NotifyFunction", Payload=payload)
            assert failures(json.load(done["Payload"])) == []
    messages = heard(subscriber, 3)
    assert [json.loads(message.payload)["filename"] for message in messages] == ["0.bin", "1.bin", "2.bin"]
    assert mosquitto.log_text().count("New client connected") == 2, "the subscriber and the function"


def test_download_redirects_to_the_bytes(sam: Sam, shop: Shop) -> None:
    """With its keys in a secret the function answers 307, and the Location opens from outside and holds the bytes."""
    asked = http_event(f"/{CONFIG}", headers=shop.headers)
    done = sam.invoke("DownloadFunction", asked, shop.variables, environment=shop.environment)
    answer = Answered.of(done.answer)
    assert answer.status == 307, answer
    location = answer.headers["location"]
    assert location.startswith(f"{shop.endpoint_url}/{BUCKET}/{CONFIG}?"), "signed for those outside"
    with urllib.request.urlopen(location, timeout=DOWNLOAD_SECONDS) as opened:  # noqa: S310 - our own MinIO's
        assert opened.read() == CONTENT


def test_http_api_leads_to_the_bytes(sam: Sam, shop: Shop) -> None:
    """Behind the routes of the template (`sam local start-api`) a device finds its config, assets and manifest."""
    with (
        sam.serve("start-api", "DownloadFunction", shop.variables, environment=shop.environment) as url,
        httpx.Client(base_url=url, headers=shop.headers, follow_redirects=True, timeout=INVOKE_SECONDS) as device,
    ):
        for key in (CONFIG, ASSET):
            answer = device.get(f"/{quote(key)}")
            assert [before.status_code for before in answer.history] == [307]
            assert answer.content == CONTENT
        manifest = device.get("/manifest").json()
        refused = httpx.get(f"{url}/{CONFIG}", timeout=INVOKE_SECONDS)
    assert [entry["filename"] for entry in manifest["objects"]] == [f"{MAC}.json", ASSET.removeprefix("assets/")]
    assert refused.status_code == 401


@pytest.mark.parametrize("function", ["NotifyFunction", "DownloadFunction"])
def test_secret_that_is_not_json_is_named(sam: Sam, moto: MotoServer, function: str) -> None:
    """A secret that is no JSON fails the start with its variable's name, and shows nothing of what is in it."""
    done = sam.invoke(
        function,
        event("aws-put"),
        _to_secret(moto, "hunter2{"),
        environment={"AWS_DEFAULT_REGION": REGION},
    )
    assert done.answer is not None, "the runtime could not even report it"
    said = json.dumps([done.answer, done.lines])
    assert "SECRET_ID" in said
    assert "hunter2" not in said


def _to_secret(moto: MotoServer, text: str) -> dict[str, str]:
    """The variables of a function whose secret holds this text."""
    secrets = moto.client("secretsmanager")
    moto.reset()
    secrets.create_secret(Name="bucketbell", SecretString=text)
    return {"SECRET_ID": "bucketbell", "AWS_ENDPOINT_URL_SECRETS_MANAGER": f"http://{HOST}:{moto.port}"}
