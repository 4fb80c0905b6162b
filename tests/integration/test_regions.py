"""Links name the store as devices must ask it: in its own region, at its own endpoint, in its own way of addressing."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import pytest
from botocore.awsrequest import AWSRequest, AWSResponse
from botocore.compat import HTTPHeaders
from botocore.exceptions import EndpointConnectionError
from typer.testing import CliRunner

from functions.s3 import clients as storage
from functions.s3.objects import Objects
from functions.settings import Settings, load
from infra.cli import app
from infra.connect.errors import explain
from infra.local.mosquitto import Mosquitto
from infra.local.stack import OURS
from infra.local.stores import Minio, MotoServer, Store, VersityGateway
from infra.subscriber import Subscriber
from tests.fakes.s3_front import GARAGE, S3Front
from tests.hosts import Host, environment, eventually

if TYPE_CHECKING:
    from mypy_boto3_s3.client import S3Client
    from mypy_boto3_sqs.client import SQSClient

BUCKET, KEY, BODY = "devices", "assets/fw.bin", b"firmware"
REGION = "eu-central-1"
NO_STORE = {name: None for name in os.environ if name.startswith(OURS)}
NOWHERE = {"AWS_CONFIG_FILE": "/nowhere", "AWS_SHARED_CREDENTIALS_FILE": "/nowhere"}


@pytest.fixture(autouse=True)
def _without_aws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever runs the tests may have a profile, and a region in the environment."""
    for name in ("AWS_PROFILE", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"):
        monkeypatch.delenv(name, raising=False)
    for name, value in NOWHERE.items():
        monkeypatch.setenv(name, value)


def configured(**variables: str) -> Settings:
    """Settings with made-up credentials."""
    return load({"AWS_ACCESS_KEY_ID": "AKIAEXAMPLE", "AWS_SECRET_ACCESS_KEY": "secret", **variables}).settings


def objects(settings: Settings, bucket: str = BUCKET) -> Objects:
    """The bucket as devices see it."""
    public = settings.s3_public_endpoint_url
    return Objects(settings, bucket, url_ttl_seconds=900, public_endpoint_url=public)


def link(settings: Settings, bucket: str = BUCKET) -> str:
    """A URL without its signature."""
    return objects(settings, bucket).presign("k", filename="k").url.partition("?")[0]


def signed_for(url: str) -> str:
    """The region that a URL is signed for."""
    return url.partition("X-Amz-Credential=")[2].split("%2F")[2]


# --- AWS


@pytest.mark.parametrize(
    ("region", "host"),
    [
        ("us-east-1", "s3.us-east-1.amazonaws.com"),
        ("us-west-2", "s3.us-west-2.amazonaws.com"),
        ("eu-central-1", "s3.eu-central-1.amazonaws.com"),
        ("af-south-1", "s3.af-south-1.amazonaws.com"),
        ("cn-north-1", "s3.cn-north-1.amazonaws.com.cn"),
        ("us-gov-west-1", "s3.us-gov-west-1.amazonaws.com"),
        ("us-iso-east-1", "s3.us-iso-east-1.c2s.ic.gov"),
        ("us-isob-east-1", "s3.us-isob-east-1.sc2s.sgov.gov"),
        ("eusc-de-east-1", "s3.eusc-de-east-1.amazonaws.eu"),
    ],
)
def test_a_link_on_aws_names_the_regions_own_endpoint(region: str, host: str) -> None:
    """In every partition: the global one answers 400 for regions opened since 2019, and 307 for young buckets."""
    settings = configured(AWS_REGION=region)
    assert link(settings) == f"https://{BUCKET}.{host}/k"
    assert link(settings, "devices.example.com") == f"https://{host}/devices.example.com/k"
    assert link(configured(AWS_REGION=region, S3_ADDRESSING_STYLE="path")) == f"https://{host}/{BUCKET}/k"


@pytest.mark.parametrize(
    ("switches", "host"),
    [
        (("DUALSTACK",), "s3.dualstack.{}.amazonaws.com"),
        (("FIPS",), "s3-fips.{}.amazonaws.com"),
        (("DUALSTACK", "FIPS"), "s3-fips.dualstack.{}.amazonaws.com"),
    ],
)
@pytest.mark.parametrize("region", ["us-east-1", "us-west-2", "us-gov-west-1"])
def test_boto3s_own_switches_still_choose_the_endpoint(
    monkeypatch: pytest.MonkeyPatch, region: str, switches: tuple[str, ...], host: str
) -> None:
    """Dual-stack and FIPS, of that region, and no client leaves its choice to the next."""
    for switch in switches:
        monkeypatch.setenv(f"AWS_USE_{switch}_ENDPOINT", "true")
    assert link(configured(AWS_REGION=region)) == f"https://{BUCKET}.{host.format(region)}/k"
    for switch in switches:
        monkeypatch.delenv(f"AWS_USE_{switch}_ENDPOINT")
    assert link(configured(AWS_REGION=region)) == f"https://{BUCKET}.s3.{region}.amazonaws.com/k"


# --- where the region comes from

PROFILE = f"""[default]
region = ap-south-1
[profile other]
region = {REGION}
"""


def test_the_region_is_the_first_that_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The setting, the two variables, the queue's, the profile's, AWS's first; for S3, for SQS and for links."""
    (tmp_path / "config").write_text(PROFILE)
    queue = "https://sqs.eu-west-3.amazonaws.com/123456789012/bell"
    named = {"S3_REGION": "eu-north-1", "AWS_REGION": "eu-west-1", "AWS_DEFAULT_REGION": "eu-west-2"}
    named["SQS_QUEUE_URL"] = queue
    found = []
    while True:
        settings = configured(**named)
        found.append(storage.region(settings))
        regions = {storage.client("sqs", settings).meta.region_name, storage.client("s3", settings).meta.region_name}
        regions.add(signed_for(objects(settings).presign("k", filename="k").url))
        assert regions == {found[-1].name}
        if not named:
            break
        del named[next(iter(named))]
    assert found == [
        ("eu-north-1", "S3_REGION"),
        ("eu-west-1", "AWS_REGION"),
        ("eu-west-2", "AWS_DEFAULT_REGION"),
        ("eu-west-3", "SQS_QUEUE_URL"),
        ("us-east-1", "default"),
    ]
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert storage.region(configured()) == ("ap-south-1", "profile")
    monkeypatch.setenv("AWS_PROFILE", "other")
    assert storage.region(configured()) == (REGION, "profile")
    assert link(configured()) == f"https://{BUCKET}.s3.{REGION}.amazonaws.com/k"
    monkeypatch.setenv("AWS_PROFILE", "gone")
    with pytest.raises(storage.StorageError, match="gone"):
        storage.region(configured())


def test_an_endpoint_of_boto3s_files_is_addressed_as_one_of_the_settings(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A store of one's own has no DNS name for each bucket, whoever names it; unless boto3 is to ignore that."""
    (tmp_path / "config").write_text("[default]\nregion = home\nendpoint_url = http://minio.local:9000\n")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    assert link(configured()) == f"http://minio.local:9000/{BUCKET}/k"
    monkeypatch.setenv("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", "true")
    assert link(configured(AWS_REGION=REGION)) == f"https://{BUCKET}.s3.{REGION}.amazonaws.com/k"


# --- the bucket's own answer


def filled(store: Store) -> Store:
    """A store with one object."""
    s3 = store.client()
    s3.create_bucket(Bucket=BUCKET)
    s3.put_object(Bucket=BUCKET, Key=KEY, Body=BODY)
    return store


@pytest.fixture(scope="module")
def abroad(tmp_path_factory: pytest.TempPathFactory, minio_binary: Path) -> Iterator[Minio]:
    """A MinIO in a region that is not the default one; its answers name it in a header."""
    del minio_binary
    store = Minio(tmp_path_factory.mktemp("abroad"), environment={"MINIO_REGION": "", "MINIO_SITE_REGION": REGION})
    store.region = REGION
    with store:
        filled(store)
        yield store


@pytest.fixture(scope="module")
def silent(versitygw: VersityGateway) -> VersityGateway:
    """A Versity Gateway: it names its region, us-east-1, in the body of an error only, which HEAD has not."""
    filled(versitygw)
    return versitygw


def of_store(store: Store, **variables: str) -> Settings:
    """Settings for a real store."""
    return configured(
        AWS_ENDPOINT_URL_S3=store.endpoint_url,
        AWS_ACCESS_KEY_ID=store.access_key,
        AWS_SECRET_ACCESS_KEY=store.secret_key,
        **variables,
    )


def fetch(url: str, address: tuple[str, int] | None = None) -> tuple[int, bytes]:
    """Ask for exactly this URL; `address` is where its host would be if it had a DNS name."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(*(address or (str(parts.hostname), parts.port or 80)), timeout=10)
    try:
        connection.request("GET", f"{parts.path}?{parts.query}", headers={"Host": parts.netloc})
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


WRONG = [{}, {"AWS_REGION": "us-west-2"}, {"AWS_DEFAULT_REGION": "us-west-2"}, {"S3_REGION": "us-west-2"}]


@pytest.mark.parametrize("wrong", WRONG, ids=["unset", "AWS_REGION", "AWS_DEFAULT_REGION", "S3_REGION"])
@pytest.mark.parametrize("first", ["head", "absent", "read", "list", "background"])
def test_the_first_link_is_good_whatever_region_was_set(
    abroad: Minio, caplog: pytest.LogCaptureFixture, wrong: dict[str, str], first: str
) -> None:
    """The bucket names its region in its first answer, whatever was asked; the wrong variable is named, once."""
    ours = objects(of_store(abroad, **wrong))
    caplog.set_level(logging.INFO)
    match first:
        case "head":
            assert ours.head(KEY) is not None
        case "absent":
            assert ours.head("assets/absent") is None
        case "read":
            assert ours.read(KEY, limit_bytes=100) == BODY
        case "list":
            assert [one.object_key for one in ours.list_page("assets/").objects] == [KEY]
        case "background":
            ours.warm_up(ask_region=True)
    for _ in range(2):
        url = ours.presign(KEY, filename="fw.bin").url
        assert (signed_for(url), fetch(url)) == (REGION, (200, BODY))
        assert ours.head(KEY) is not None
    (said,) = (record for record in caplog.records if getattr(record, "region", None) == REGION)
    variable = next(iter(wrong), None)
    assert said.levelname == ("INFO" if variable is None else "WARNING")
    assert said.message.startswith(f"{variable} is not the store's region" if variable else "the bucket has named")


@pytest.mark.parametrize("first", ["head", "absent", "crowd", "background"])
def test_a_store_whose_head_names_no_region_is_asked_by_a_list(silent: VersityGateway, first: str) -> None:
    """A HEAD's refusal has no body to say why; a LIST's has."""
    ours = objects(of_store(silent, S3_REGION=REGION))
    if first == "background":
        ours.warm_up(ask_region=True)
    if first == "absent":
        assert ours.head("assets/absent") is None
    if first == "crowd":  # all are refused before any of them has asked why
        with ThreadPoolExecutor(8) as pool:
            assert list(pool.map(ours.head, [f"assets/{n}" for n in range(8)])) == [None] * 8
    info = ours.head(KEY)
    assert info is not None
    assert info.size == len(BODY)
    assert fetch(ours.presign(KEY, filename="fw.bin").url) == (200, BODY)


def test_the_host_asks_for_the_region_before_any_device_does(abroad: Minio, tmp_path: Path) -> None:
    """In the background of its start: the wrong variable is in the log, and the first device gets a good link."""
    admin = "admin-token-0123456789"
    known = {"AWS_ENDPOINT_URL": abroad.endpoint_url, "AWS_REGION": "us-west-2", "ADMIN_TOKENS": admin}
    known |= {"AWS_ACCESS_KEY_ID": abroad.access_key, "AWS_SECRET_ACCESS_KEY": abroad.secret_key, "BUCKET": BUCKET}
    with Host(tmp_path, environment(None, **known)) as host:
        eventually(lambda: host.lines("WARNING"))
        (said,) = host.lines("WARNING")
        assert said["message"].startswith("AWS_REGION is not the store's region")
        assert (said["region"], said["set"]) == (REGION, "us-west-2")
        headers = {"Authorization": f"Bearer {admin}", "Accept": "application/json"}
        answer = host.http.get("/assets/fw.bin", headers=headers)
        assert fetch(answer.json()["url"]) == (200, BODY)


def test_a_right_region_is_not_asked_about(abroad: Minio) -> None:
    """One request for a HEAD, and nothing is made anew."""
    ours = objects(of_store(abroad, S3_REGION=REGION))
    s3, requests = ours.client, []
    s3.meta.events.register("before-send.s3", lambda request, **_: requests.append(request.method))
    assert ours.head(KEY) is not None
    assert ours.head("assets/absent") is None
    assert (requests, ours.client is s3) == (["HEAD", "HEAD"], True)


def answer_as(ours: Objects, status: Callable[[AWSRequest], int], region: str, body: bytes = b"") -> list[str]:
    """Answer boto3 in the store's stead, naming `region`; returns the hosts that will have been asked."""
    return answer_by(ours.client, status, region, body)


def answer_by(made: S3Client | SQSClient, status: Callable[[AWSRequest], int], region: str, body: bytes) -> list[str]:
    """As `answer_as`, for one client."""
    asked: list[str] = []

    def answer(request: AWSRequest, **_: object) -> AWSResponse:
        asked.append(str(urlsplit(str(request.url)).hostname))
        headers = HTTPHeaders()
        headers["x-amz-bucket-region"] = region
        headers["etag"], headers["content-length"] = '"e"', "8"
        headers["last-modified"] = "Fri, 20 Nov 2026 12:00:00 GMT"
        return AWSResponse(str(request.url), status(request), headers, SimpleNamespace(stream=lambda: [body]))

    events: Any = made.meta.events  # its type stubs know of no answer
    events.register("before-send", answer)
    return asked


def test_on_aws_the_link_follows_to_the_other_regions_endpoint() -> None:
    """A bucket that answers 301 with its region, as AWS does: the link names the endpoint there."""
    ours = objects(configured(AWS_REGION="us-east-1"))
    asked = answer_as(ours, lambda request: 200 if "af-south-1" in str(request.url) else 301, "af-south-1")
    info = ours.head(KEY)
    assert info is not None
    assert asked[-1] == f"{BUCKET}.s3.af-south-1.amazonaws.com"
    url = ours.presign(KEY, filename="fw.bin").url
    assert url.startswith(f"https://{BUCKET}.s3.af-south-1.amazonaws.com/{KEY}?")
    assert signed_for(url) == "af-south-1"


# The document of Garage 2.5, and what AWS and MinIO say.
GARAGE_SAYS = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>AuthorizationHeaderMalformed</Code><Message>Authorization '
    b"header malformed, unexpected scope: &apos;20261130/us-east-1/s3/aws4_request&apos;, expected: "
    b"&apos;20261130/eu-test/s3/aws4_request&apos;</Message><Resource>/devices</Resource><Region>eu-test</Region></Error>"
)
AWS_SAYS = (
    b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>The authorization header is malformed; the region "
    b"'us-east-1' is wrong; expecting 'eu-test'</Message><Region>eu-test</Region></Error>"
)
IN_WORDS = [GARAGE_SAYS.replace(b"<Region>eu-test</Region>", b""), AWS_SAYS.replace(b"<Region>eu-test</Region>", b"")]
TOLD = "AWS_REGION is us-east-1, but the store signs for eu-test: set S3_REGION=eu-test"


@pytest.mark.parametrize("status", [400, 301])
@pytest.mark.parametrize("body", [GARAGE_SAYS, AWS_SAYS, *IN_WORDS, b""])
def test_what_is_wrong_with_the_region_is_told_by_every_client(status: int, body: bytes) -> None:
    """Whatever is asked, and however the store names its own; a store that goes on refusing is not followed."""
    settings = configured(AWS_ENDPOINT_URL="http://store.example", AWS_REGION="us-east-1")
    for ask in ("list_objects_v2", "get_bucket_notification_configuration", "head_bucket"):
        s3 = storage.client("s3", settings, attempts=1)
        answer_by(s3, lambda _: status, "" if body and ask != "head_bucket" else "eu-test", body)
        with pytest.raises(storage.StorageError) as caught, storage.storage_errors():
            getattr(s3, ask)(Bucket=BUCKET)
        assert caught.value.message == TOLD
        assert caught.value.is_of_region


def test_another_refusal_that_names_the_region_is_not_taken_for_it() -> None:
    """Garage says its region whatever is wrong."""
    body = b"<Error><Code>InvalidRequest</Code><Message>Bad part.</Message><Region>eu-test</Region></Error>"
    s3 = storage.client("s3", configured(AWS_ENDPOINT_URL="http://store.example", AWS_REGION="us-east-1"), attempts=1)
    answer_by(s3, lambda _: 400, "", body)
    with pytest.raises(storage.StorageError) as caught, storage.storage_errors():
        s3.list_objects_v2(Bucket=BUCKET)
    assert caught.value.message == "Bad part."
    assert not caught.value.is_of_region


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        ({}, "no region is set, and us-east-1 is assumed, but"),
        ({"AWS_DEFAULT_REGION": "eu-west-1"}, "AWS_DEFAULT_REGION is eu-west-1, but"),
        (
            {"SQS_QUEUE_URL": "https://sqs.eu-west-2.amazonaws.com/123456789012/q"},
            "the region in SQS_QUEUE_URL is eu-west-2, but",
        ),
    ],
)
def test_it_is_told_where_the_wrong_region_is_set(variables: dict[str, str], words: str) -> None:
    """So that nobody searches in the wrong place."""
    s3 = storage.client("s3", configured(AWS_ENDPOINT_URL="http://store.example", **variables), attempts=1)
    answer_by(s3, lambda _: 400, "", GARAGE_SAYS)
    with pytest.raises(storage.StorageError) as caught, storage.storage_errors():
        s3.list_objects_v2(Bucket=BUCKET)
    assert caught.value.message.startswith(words)


def test_a_queue_in_another_region_is_no_wrong_secret_key() -> None:
    """SQS refuses it with that code."""
    sqs = storage.client("sqs", configured(AWS_REGION="us-east-1"), attempts=1)
    body = json.dumps(
        {
            "__type": "com.amazonaws.sqs#SignatureDoesNotMatch",
            "message": "Credential should be scoped to a valid region.",
        }
    )
    answer_by(sqs, lambda _: 403, "", body.encode())
    with (
        pytest.raises(storage.StorageError, match="is S3_REGION, or else AWS_REGION") as caught,
        storage.storage_errors(),
    ):
        sqs.get_queue_url(QueueName="q")
    assert explain(caught.value, "sqs:GetQueueUrl", "q").advice.startswith("Set S3_REGION")


@pytest.mark.parametrize("names_region", [True, False])
def test_a_garage_with_the_wrong_region_is_named_and_used(
    names_region: bool,  # noqa: FBT001 - pytest's
    moto: MotoServer,
    mosquitto: Mosquitto,
    tmp_path: Path,
) -> None:
    """By `connect`, by `doctor` and in the log of a host that only sweeps; links are signed for the right one."""
    with S3Front(moto, replace(GARAGE, names_region=names_region)) as front:
        front.behind.create_bucket(Bucket=BUCKET)
        variables = {**front.variables, "AWS_REGION": "us-west-2", "BUCKET": BUCKET}
        with contextlib.chdir(tmp_path):
            connected = CliRunner().invoke(app, ["connect"], env={**NO_STORE, **variables})
            examined = CliRunner().invoke(app, ["doctor", "--json"], env={**NO_STORE, **variables})
        told = "AWS_REGION is us-west-2, but the store signs for garage"
        assert f"{told}: set S3_REGION=garage, for the host too." in connected.output
        assert "S3_REGION=garage" in connected.output.splitlines()
        wrong = next(one for one in json.loads(examined.stdout)["checks"] if one["health"] == "wrong")
        assert (wrong["name"], wrong["detail"], wrong["remedy"]) == (
            "region",
            f"{told}.",
            "Set S3_REGION=garage for the host.",
        )
        front.client().put_object(Bucket=BUCKET, Key="assets/before.bin", Body=BODY)
        ours = objects(load(variables).settings)
        assert ours.head("assets/before.bin") is not None
        assert signed_for(ours.presign("assets/before.bin", filename="before.bin").url) == "garage"
        lists = front.lists
        sweeping = environment(mosquitto.url, **variables, SWEEP_SECONDS="1", SWEEP_GRACE_SECONDS="0")
        with Subscriber(mosquitto.url, ["#"]) as ear, Host(tmp_path, sweeping) as host:
            eventually(lambda: front.lists > lists + 4)
            front.client().put_object(Bucket=BUCKET, Key=KEY, Body=BODY)
            assert json.loads(ear.next().payload) == {"filename": "fw.bin"}
            said = [line for line in host.lines("WARNING") if line.get("region") == "garage"]
            assert [(line["set"], line["by"]) for line in said] == [("us-west-2", "AWS_REGION")]


def test_a_store_that_names_no_region_is_asked_about() -> None:
    """Its code says that the region is wrong; the message asks for the setting, and HEAD brings it too."""
    ours = objects(configured(AWS_ENDPOINT_URL="http://store.example"))
    answer_as(ours, lambda _: 400, "", b"<Error><Code>AuthorizationHeaderMalformed</Code><Message>no</Message></Error>")
    with pytest.raises(storage.StorageError, match="is S3_REGION, or else AWS_REGION, the store's region") as caught:
        ours.head(KEY)
    assert caught.value.code == "AuthorizationHeaderMalformed"


def test_a_store_that_names_ever_other_regions_is_not_followed_for_ever() -> None:
    """Three are believed; then it is answered as any store that refuses."""
    ours = objects(configured(AWS_REGION="us-east-1"))
    clients = []
    for number in range(9):
        clients.append(ours.client)
        answer_as(ours, lambda _: 400, f"region-{number}")
        with pytest.raises(storage.StorageError):
            ours.head(KEY)
    assert len({id(one) for one in clients}) == 4


@pytest.mark.parametrize("region", ["eu-central-1a", "eu-middle-1"])
def test_a_region_that_aws_has_not_is_asked_about(region: str) -> None:
    """Its endpoint's name leads nowhere, and the message asks the right question."""
    ours = objects(configured(AWS_REGION=region))
    events: Any = ours.client.meta.events

    def answer(request: AWSRequest, **_: object) -> None:
        raise EndpointConnectionError(endpoint_url=str(request.url))

    events.register("before-send.s3", answer)
    with pytest.raises(storage.StorageError, match=r"is S3_REGION, or else AWS_REGION, the store's region\?") as caught:
        ours.head(KEY)
    assert caught.value.code == storage.UNREACHABLE


@pytest.mark.parametrize("named", ["evil.example/", "..", "aws-global", "", "x" * 64])
def test_what_is_no_region_is_not_believed(named: str) -> None:
    """A store's answer leads nowhere else than to another region."""
    ours = objects(configured(AWS_REGION="us-east-1"))
    before = ours.client
    answer_as(ours, lambda request: 403 if request.method == "GET" else 301, named)
    with pytest.raises(storage.StorageError):
        ours.head(KEY)
    assert ours.client is before
    assert ours.presign("k", filename="k").url.startswith(link(configured(AWS_REGION="us-east-1")) + "?")


# --- virtual hosts


def test_a_store_that_wants_virtual_hosts_gets_them(tmp_path: Path, minio_binary: Path) -> None:
    """`bucket.host/key`, signed as the store sees it; without the setting it is `host/bucket/key`."""
    del minio_binary
    with Minio(tmp_path / "minio", environment={"MINIO_DOMAIN": "s3.example"}) as store:
        filled(store)
        public = f"http://s3.example:{store.port}"
        variables = {"S3_PUBLIC_ENDPOINT_URL": public, "BUCKET": BUCKET}
        address = ("127.0.0.1", store.port)
        named = of_store(store, **variables).model_copy(update={"aws_endpoint_url_s3": public})
        for style, start in ((None, f"{public}/{BUCKET}/"), ("virtual", f"http://{BUCKET}.s3.example:{store.port}/")):
            url = objects(named.model_copy(update={"s3_addressing_style": style})).presign(KEY, filename="x").url
            assert url.startswith(start + KEY)
            assert fetch(url, address) == (200, BODY)
