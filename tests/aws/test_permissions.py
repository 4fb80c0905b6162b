"""IAM on MiniStack: functions of the test's own get the stack's roles, and are allowed and denied accordingly."""

from __future__ import annotations

import io
import json
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator

import pytest
from botocore.exceptions import ClientError

from tests.aws.cloud import BROKER_SECRET, DOWNLOAD_SECRET, FETCH_SECONDS
from tests.aws.ministack_cloud import MiniStackCloud

PROBE = """
import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

def handler(event, context):
    client = boto3.client(event["service"], config=Config(s3={"addressing_style": "path"}))
    try:
        getattr(client, event["call"])(**event["arguments"])
    except ClientError as error:
        return error.response["Error"]["Code"]
    return "allowed"
"""
DENIED = {"AccessDenied", "AccessDeniedException"}
KEY = "assets/permitted"

Try = Callable[..., bool]


@pytest.fixture
def code() -> bytes:
    """The package of a function that calls AWS as it is told."""
    package = io.BytesIO()
    with zipfile.ZipFile(package, "w") as archive:
        archive.writestr("probe.py", PROBE)
    return package.getvalue()


@pytest.fixture(params=["NotifyRole", "DownloadRole"])
def allowed(request: pytest.FixtureRequest, ministack: MiniStackCloud, code: bytes) -> Iterator[Try]:
    """Whether the role may do this; any other refusal than IAM's is an error."""
    arn = ministack.emulator.client("iam").get_role(RoleName=ministack.stack.resources[request.param])["Role"]["Arn"]
    name = f"probe-{request.param}"
    ministack.functions.create_function(
        FunctionName=name, Runtime="python3.13", Role=arn, Handler="probe.handler", Code={"ZipFile": code}, Timeout=20
    )

    def attempt(service: str, call: str, **arguments: object) -> bool:
        event = {"service": service, "call": call, "arguments": arguments}
        answer = json.load(ministack.functions.invoke(FunctionName=name, Payload=json.dumps(event))["Payload"])
        assert answer in {"allowed", *DENIED}, answer
        return bool(answer == "allowed")

    yield attempt
    ministack.functions.delete_function(FunctionName=name)


def test_a_role_may_do_what_its_function_needs_and_nothing_else(
    request: pytest.FixtureRequest, ministack: MiniStackCloud, allowed: Try
) -> None:
    """Neither writes; only the downloads' role reads files; each reads its own secret; one takes from the queue."""
    ministack.put(KEY)
    ministack.put("other/file")
    ministack.hear()
    bucket, queue = {"Bucket": ministack.bucket}, {"QueueUrl": ministack.queue_url}
    with ministack.paused():
        may = {
            "read files": allowed("s3", "get_object", **bucket, Key=KEY),
            "list": allowed("s3", "list_objects_v2", **bucket),
            "read others": allowed("s3", "get_object", **bucket, Key="other/file"),
            "write": allowed("s3", "put_object", **bucket, Key=KEY),
            "delete": allowed("s3", "delete_object", **bucket, Key=KEY),
            "read the broker's secret": allowed("secretsmanager", "get_secret_value", SecretId=BROKER_SECRET),
            "read the downloads' secret": allowed("secretsmanager", "get_secret_value", SecretId=DOWNLOAD_SECRET),
            "change secrets": allowed("secretsmanager", "put_secret_value", SecretId=BROKER_SECRET, SecretString="{}"),
            "take from the queue": allowed("sqs", "receive_message", **queue, WaitTimeSeconds=0),
            "send to the queue": allowed("sqs", "send_message", **queue, MessageBody="{}"),
            "invoke": allowed("lambda", "invoke", FunctionName=ministack.stack.resources["DownloadFunction"]),
        }
    role = request.node.callspec.params["allowed"]
    expected = {
        "NotifyRole": {"read the broker's secret", "take from the queue"},
        "DownloadRole": {"read files", "list", "read the downloads' secret"},
    }
    assert {what for what, yes in may.items() if yes} == expected[role]


@pytest.fixture
def uploader(ministack: MiniStackCloud) -> Iterator[tuple[str, str]]:
    """The keys of somebody whom IAM allows everything in S3."""
    iam, who = ministack.emulator.client("iam"), {"UserName": "uploader"}
    everything = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    iam.create_user(**who)
    iam.put_user_policy(**who, PolicyName="s3", PolicyDocument=json.dumps(everything))
    key = iam.create_access_key(**who)["AccessKey"]
    yield key["AccessKeyId"], key["SecretAccessKey"]
    iam.delete_access_key(**who, AccessKeyId=key["AccessKeyId"])
    iam.delete_user_policy(**who, PolicyName="s3")
    iam.delete_user(**who)


def test_the_buckets_policy_refuses_what_does_not_come_by_tls(
    ministack: MiniStackCloud, uploader: tuple[str, str]
) -> None:
    """Also from somebody whom IAM allows everything in S3."""
    client = ministack.emulator.client(credentials=uploader)
    url = client.generate_presigned_url("put_object", {"Bucket": ministack.bucket, "Key": "other/by-tls"})

    def put(scheme: str) -> int:
        # What a load balancer says of how the request came to it: MiniStack speaks nothing but TLS here.
        request = urllib.request.Request(url, b"x", {"X-Forwarded-Proto": scheme}, method="PUT")  # noqa: S310 - MiniStack's
        try:
            with urllib.request.urlopen(request, timeout=FETCH_SECONDS, context=ministack.emulator.tls) as answer:  # noqa: S310 - as above
                return int(answer.status)
        except urllib.error.HTTPError as error:
            error.close()
            return error.code

    assert (put("https"), put("http")) == (200, 403)


def test_a_wrong_signature_is_refused(ministack: MiniStackCloud, uploader: tuple[str, str]) -> None:
    """The right key with a wrong secret."""
    ministack.put("other/signed")
    where = {"Bucket": ministack.bucket, "Key": "other/signed"}
    ministack.emulator.client(credentials=uploader).head_object(**where)
    forger = ministack.emulator.client(credentials=(uploader[0], "not the secret"))
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        forger.get_object(**where)


def test_the_queues_policy_refuses_another_bucket(ministack: MiniStackCloud) -> None:
    """Its events would ring the bell."""
    ministack.s3.create_bucket(Bucket="stranger")
    about = {"QueueUrl": ministack.queue_url, "AttributeNames": ["QueueArn"]}
    arn = ministack.sqs.get_queue_attributes(**about)["Attributes"]["QueueArn"]
    rules = {"QueueConfigurations": [{"QueueArn": arn, "Events": ["s3:ObjectCreated:*"]}]}
    with pytest.raises(ClientError, match="Unable to validate the following destination configurations"):
        ministack.s3.put_bucket_notification_configuration(Bucket="stranger", NotificationConfiguration=rules)
