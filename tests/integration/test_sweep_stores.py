"""The sweep over stores as they are: other orders, dates and ETags than AWS's, and none of them tells of an upload."""

from __future__ import annotations

import base64
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from botocore.exceptions import ClientError

from functions.web.tokens import Keyring
from infra.local.mosquitto import Mosquitto
from infra.local.stores import MotoServer, VersityGateway
from infra.subscriber import Subscriber
from tests.databases import execute
from tests.fakes.device_rig import MAC
from tests.fakes.s3_front import GARAGE, SEAWEED, Habits, S3Front
from tests.hosts import TOPICS, Host, environment, eventually
from tests.integration.test_device import DeviceProcess
from tests.timing import PATIENCE_SECONDS

KEY = base64.b64encode(bytes(range(32))).decode()
TOKEN = Keyring.parse([f"k:{KEY}"]).mint(MAC)
SWEEPS = 3  # what is going to ring twice has done so
KINDS = {"garage": GARAGE, "seaweedfs": SEAWEED}
WHOLE_SECONDS = 1.0  # what is in the bucket already must be older than the host's first answer, which is dated by these
IN_ORDER = ["a-b.bin", "a/x.bin", "a/y.bin", "a.bin", "b.bin"]  # no two stores agree on it


@pytest.fixture(params=KINDS)
def front(request: pytest.FixtureRequest, moto: MotoServer) -> Iterator[S3Front]:
    """A store that tells nobody of anything."""
    with S3Front(moto, KINDS[request.param]) as front:
        yield front


class Bucket:
    """A bucket of one test, a host that sweeps it every second, and what is heard."""

    def __init__(self, store: Any, variables: dict[str, str], directory: Path, broker: Mosquitto) -> None:  # noqa: ANN401 - a boto3 client
        self.name = f"swept-{uuid4().hex[:8]}"
        self.s3 = store
        self.state = directory / "sweep.db"
        self._directory = directory
        self._environment = environment(
            broker.url,
            BUCKET=self.name,
            SWEEP_SECONDS="1",
            SWEEP_STATE_FILE=str(self.state),
            DEVICE_TOKEN_KEYS=f"k:{KEY}",
            **variables,
        )
        self.ear = Subscriber(broker.url, TOPICS, qos=1)

    def put(self, name: str, body: bytes = b"1") -> None:
        """Upload an asset."""
        self.s3.put_object(Bucket=self.name, Key=f"assets/{name}", Body=body)

    @contextmanager
    def swept(self, **more: str) -> Iterator[Host]:
        """A host whose first sweep is over."""
        time.sleep(WHOLE_SECONDS)
        with Host(self._directory, self._environment | more) as host:
            rounds(host, 1)
            yield host

    def heard(self, *names: str, seconds: float = PATIENCE_SECONDS) -> None:
        """These assets are told of, in whatever order, each once."""
        messages = self.ear.wait_for(len(names), seconds)
        assert sorted(json.loads(message.payload)["filename"] for message in messages) == sorted(names)

    def silent(self, host: Host) -> None:
        """Nothing more is heard over a few whole sweeps."""
        rounds(host, SWEEPS)
        assert [json.loads(message.payload) for message in self.ear.silence(0.1)] == []


def rounds(host: Host, count: int) -> None:
    """Wait for so many sweeps more."""
    before = host.metric("sweep_seconds_count")
    eventually(lambda: host.metric("sweep_seconds_count") >= before + count, PATIENCE_SECONDS)


@pytest.fixture
def bucket(front: S3Front, tmp_path: Path, mosquitto: Mosquitto) -> Iterator[Bucket]:
    """Of this test."""
    made = Bucket(front.client(), front.variables, tmp_path, mosquitto)
    front.behind.create_bucket(Bucket=made.name)
    with made.ear:
        yield made


def test_the_front_is_as_garage_is(moto: MotoServer) -> None:
    """It takes its own region only, which it names, tells nobody of anything, and has no versions."""
    with S3Front(moto, GARAGE) as front:
        s3 = front.client()
        front.behind.create_bucket(Bucket="like-garage")
        s3.put_object(Bucket="like-garage", Key="assets/a", Body=b"a")
        for call in (s3.get_bucket_notification_configuration, s3.list_object_versions):
            with pytest.raises(ClientError) as refused:
                call(Bucket="like-garage")
            assert refused.value.response["ResponseMetadata"]["HTTPStatusCode"] == 501
        front.region = "us-east-1"
        front.client().list_objects_v2(Bucket="like-garage")  # boto3 follows for a bucket
        with pytest.raises(
            ClientError, match=r"AuthorizationHeaderMalformed.*expected: '[0-9]{8}/garage/s3/aws4_request'"
        ):
            front.client().list_buckets()


def test_the_front_is_as_seaweedfs_is(moto: MotoServer) -> None:
    """It lists folder by folder, dates by the second, and shows wrong ETags where it lists versions."""
    with S3Front(moto, SEAWEED) as front:
        s3 = front.client()
        s3.create_bucket(Bucket="like-seaweedfs")
        bodies = dict.fromkeys(IN_ORDER, b"1") | {"b.bin": b"", "a.bin": bytes(5 * 1024 * 1024)}
        etags = {
            f"assets/{name}": s3.put_object(Bucket="like-seaweedfs", Key=f"assets/{name}", Body=body)["ETag"]
            for name, body in bodies.items()
        }
        front.page_objects = 2
        pages = [*s3.get_paginator("list_objects_v2").paginate(Bucket="like-seaweedfs")]
        found = [entry for page in pages for entry in page["Contents"]]
        names = [entry["Key"].removeprefix("assets/") for entry in found]
        assert (len(pages), names) == (3, ["a/x.bin", "a/y.bin", "a-b.bin", "a.bin", "b.bin"])
        assert {entry["Key"]: entry["ETag"] for entry in found} == etags
        assert {entry["LastModified"].microsecond for entry in found} == {0}
        front.page_objects = 1000
        versions = s3.list_object_versions(Bucket="like-seaweedfs")["Versions"]
        wrong = {entry["Key"]: entry["ETag"] for entry in versions if entry["ETag"] != etags[entry["Key"]]}
        assert wrong == {"assets/b.bin": '""', "assets/a.bin": etags["assets/a.bin"][:-1] + '-2"'}


def test_the_front_dates_an_object_when_it_was_uploaded(moto: MotoServer) -> None:
    """By its own clock, which goes on beside, and a page that fails is that one only."""
    with S3Front(moto) as front:
        s3 = front.client()
        s3.create_bucket(Bucket="dated")
        front.ahead = timedelta(hours=1)
        s3.put_object(Bucket="dated", Key="early", Body=b"1")
        front.ahead = timedelta(hours=-1)
        s3.put_object(Bucket="dated", Key="late", Body=b"1")
        early, late = s3.list_objects_v2(Bucket="dated")["Contents"]
        assert timedelta(hours=1.9) < early["LastModified"] - late["LastModified"] < timedelta(hours=2.1)
        assert s3.head_object(Bucket="dated", Key="early")["LastModified"] == early["LastModified"].replace(
            microsecond=0
        )
        front.page_objects, front.failing_pages = 1, {2}
        assert s3.list_objects_v2(Bucket="dated")["IsTruncated"]
        with pytest.raises(ClientError, match="InternalError"):
            s3.list_objects_v2(Bucket="dated", StartAfter="early")


def test_what_a_store_does_not_tell_is_told(bucket: Bucket) -> None:
    """Each upload and each other content once, also of an object without a byte; not what was there before."""
    bucket.put("old.bin")
    with bucket.swept() as host:
        bucket.put("new.bin")
        bucket.put("empty.bin", b"")
        bucket.heard("new.bin", "empty.bin")
        bucket.put("new.bin", b"2")
        bucket.put("old.bin", b"2")
        bucket.heard("new.bin", "old.bin")
        bucket.silent(host)
        assert host.lines("ERROR") == []
        assert host.metric("sweep_rang_total") == 4


def test_what_is_told_is_in_the_manifest_and_reaches_a_device(bucket: Bucket, tmp_path: Path) -> None:
    """With the ETags that HEAD has, or none: a device that catches up has every file, and is unchanged afterwards."""
    bodies = {f"assets/{name}": b"%d" % number for number, name in enumerate(IN_ORDER)}
    bodies |= {"assets/empty.bin": b"", "assets/long.bin": os.urandom(5 * 1024 * 1024), f"configs/{MAC}.json": b""}
    etags = {
        key: bucket.s3.put_object(Bucket=bucket.name, Key=key, Body=body)["ETag"].strip('"')
        for key, body in bodies.items()
    }
    with bucket.swept() as host:
        answer = host.http.get("/manifest", headers={"Authorization": f"Bearer {TOKEN}"}).json()
        found = {f"{entry['kind']}s/{entry['filename']}": entry["etag"] for entry in answer["objects"]}
        assert {key: etag for key, etag in found.items() if etag is not None} == {
            key: etag for key, etag in etags.items() if found[key] is not None
        }
        assert found.keys() == etags.keys()
        device = DeviceProcess(tmp_path, host.url, "--once", environment={"DEVICE_TOKEN": TOKEN})
        assert device.run() == 0
        assert {key: device.content(key) for key in bodies} == bodies
        assert device.run() == 0
        assert device.named("caught_up")[0]["unchanged"] == len(bodies)


def test_a_page_that_fails_holds_back_what_is_on_it(bucket: Bucket, front: S3Front) -> None:
    """What is on it, and behind it, is told of once the store is well again; what is before it at once; none twice."""
    front.page_objects = 2
    for name in IN_ORDER:
        bucket.put(name)
    in_order = sorted(IN_ORDER, key=front.place)
    with bucket.swept() as host:
        front.failing_pages = {2}
        for name in IN_ORDER:
            bucket.put(name, b"2")
        bucket.heard(*in_order[:2])
        asked = front.lists
        eventually(lambda: front.lists >= asked + 4 * SWEEPS, PATIENCE_SECONDS)
        assert bucket.ear.silence(0.1) == []
        said = [line for line in host.lines("WARNING") if "swept" in line["message"]]
        assert len(said) == 1, said
        front.failing_pages = set()
        bucket.heard(*in_order[2:])
        bucket.silent(host)


def test_keys_in_another_order_are_not_forgotten(bucket: Bucket, front: S3Front) -> None:
    """A store that lists `a/x` before `a-b` shows all of them, and what the sweep remembers of each is kept."""
    front.page_objects = 2
    for name in IN_ORDER:
        bucket.put(name)
    with bucket.swept() as host:
        host.stop()
    execute(f"sqlite:///{bucket.state}", "UPDATE sweep_rings SET rang_at = rang_at - 172800000")  # two days
    with bucket.swept() as host:
        bucket.silent(host)
        for name in IN_ORDER:
            bucket.put(name, b"2")
        bucket.heard(*IN_ORDER)
        bucket.silent(host)


@pytest.mark.parametrize("hours", [1, -1])
def test_the_stores_clock_may_be_wrong(bucket: Bucket, front: S3Front, hours: int) -> None:
    """Whatever it says, an upload is told of once."""
    front.ahead = timedelta(hours=hours)
    bucket.put("old.bin")
    with bucket.swept() as host:
        bucket.put("new.bin")
        bucket.heard("new.bin")
        bucket.silent(host)


@pytest.mark.parametrize("hours", [1, -1])
def test_the_stores_clock_may_be_set_in_the_middle_of_a_sweep(bucket: Bucket, front: S3Front, hours: int) -> None:
    """Ahead or back: what is uploaded before and after is told of once, and nothing else is."""
    front.page_objects = 2
    for name in IN_ORDER:
        bucket.put(name)

    def set_clock(number: int) -> None:
        if number == 2:
            front.ahead = timedelta(hours=hours)

    with bucket.swept() as host:
        bucket.put("before.bin")
        front.on_page = set_clock
        eventually(lambda: front.ahead, PATIENCE_SECONDS)
        bucket.put("after.bin")
        bucket.heard("before.bin", "after.bin")
        bucket.silent(host)


def test_files_dated_in_the_past_and_in_the_future_are_told_of(bucket: Bucket, front: S3Front) -> None:
    """Stores that keep a copied file's date show new files that are years old, or not yet there."""
    with bucket.swept(SWEEP_GRACE_SECONDS="1") as host:
        for name, days in (("past.bin", -3000), ("future.bin", 3000)):
            front.dated[f"{bucket.name}/assets/{name}"] = front.now() + timedelta(days=days)
            # Past the front, which would date it by its clock.
            front.behind.put_object(Bucket=bucket.name, Key=f"assets/{name}", Body=b"1")
        bucket.heard("past.bin", "future.bin")
        bucket.silent(host)


def test_a_slow_page_keeps_nobody_waiting(bucket: Bucket, front: S3Front) -> None:
    """An event that comes meanwhile is told of at once."""
    bucket.put("old.bin")
    slow = 2.0
    with bucket.swept() as host:
        front.on_page = lambda _: time.sleep(slow)
        asked = front.lists
        eventually(lambda: front.lists > asked, PATIENCE_SECONDS)
        begun_at = time.monotonic()
        assert host.post(told_of(bucket.name, "assets/event.bin")).status_code == 200
        bucket.heard("event.bin", seconds=slow)
        assert time.monotonic() - begun_at < slow  # while the page is still awaited


def told_of(bucket: str, key: str) -> bytes:
    """An event as Ceph would send it."""
    fields = {"key": key, "size": 1, "eTag": "c4ca4238a0b923820dcc509a6f75849b", "sequencer": uuid4().hex}
    record = {
        "eventSource": "ceph:s3",
        "eventTime": "2026-11-30T00:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "s3": {"bucket": {"name": bucket}, "object": fields},
    }
    return json.dumps({"Records": [record]}).encode()


@pytest.fixture
def folder(versitygw: VersityGateway, tmp_path: Path, mosquitto: Mosquitto) -> Iterator[tuple[Bucket, Path]]:
    """A bucket of Versity Gateway, which is a folder."""
    variables = {
        "AWS_ENDPOINT_URL": versitygw.endpoint_url,
        "AWS_ACCESS_KEY_ID": versitygw.access_key,
        "AWS_SECRET_ACCESS_KEY": versitygw.secret_key,
        "AWS_REGION": versitygw.region,
    }
    made = Bucket(versitygw.client(), variables, tmp_path, mosquitto)
    made.s3.create_bucket(Bucket=made.name)
    place = versitygw.data / made.name / "assets"
    place.mkdir()
    with made.ear:
        yield made, place


def test_files_copied_into_versitys_folder_are_told_of(folder: tuple[Bucket, Path], tmp_path: Path) -> None:
    """They have no ETag, and what is copied over an object keeps the old one: each is told of once, and fetched."""
    bucket, place = folder
    bucket.put("put.bin", b"put")
    source = tmp_path / "source.bin"
    source.write_bytes(b"copied")
    os.utime(source, (1_000_000_000, 1_000_000_000))
    with bucket.swept() as host:
        shutil.copy2(source, place / "dated.bin")  # with its date, of 2001
        (place / "copied.bin").write_bytes(b"copied")
        bucket.heard("dated.bin", "copied.bin")
        (place / "put.bin").write_bytes(b"new")
        (place / "copied.bin").write_bytes(b"again")
        bucket.heard("put.bin", "copied.bin")
        bucket.silent(host)
        device = DeviceProcess(tmp_path, host.url, "--once", environment={"DEVICE_TOKEN": TOKEN})
        device.run()
        assert {name: device.content(f"assets/{name}") for name in ("dated.bin", "copied.bin")} == {
            "dated.bin": b"copied",
            "copied.bin": b"again",
        }


def test_a_renamed_file_is_told_of_under_its_new_name(folder: tuple[Bucket, Path]) -> None:
    """It keeps its date and has no ETag; its old name is told of no more, until a file has it again."""
    bucket, place = folder
    (place / "a.bin").write_bytes(b"1")
    with bucket.swept() as host:
        (place / "a.bin").rename(place / "b.bin")
        bucket.heard("b.bin")
        bucket.silent(host)
        (place / "a.bin").write_bytes(b"2")
        bucket.heard("a.bin")
        bucket.silent(host)


def test_a_folder_is_swept_when_a_day_lies_between(folder: tuple[Bucket, Path]) -> None:
    """A host that was away tells of what has changed since, not of what has not."""
    bucket, place = folder
    (place / "same.bin").write_bytes(b"1")
    (place / "other.bin").write_bytes(b"1")
    with bucket.swept() as host:
        host.stop()
    (place / "other.bin").write_bytes(b"2")
    (place / "new.bin").write_bytes(b"1")
    with bucket.swept() as host:
        bucket.heard("other.bin", "new.bin")
        bucket.silent(host)


def test_habits_are_aws_own_without_a_kind(moto: MotoServer) -> None:
    """A front without habits passes everything on."""
    with S3Front(moto, Habits()) as front:
        s3 = front.client()
        s3.create_bucket(Bucket="plain")
        assert s3.get_bucket_notification_configuration(Bucket="plain")["ResponseMetadata"]["HTTPStatusCode"] == 200
