"""Cameras are found in a real bucket by their newest documents, and a store in trouble stops nothing."""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any
from uuid import uuid4

import pytest

from functions.cameras.discovery import Cameras
from functions.cameras.message import Camera
from functions.s3.objects import S3_DEADLINE_SECONDS, Objects
from functions.settings import load
from functions.telemetry import SERVICE
from infra.host import camera_search as looking
from infra.host.camera_search import LOOK_SECONDS, MAX_DOCUMENT_BYTES, look
from infra.local.process import free_port
from infra.local.stores import Minio
from tests.timing import SLACK_SECONDS

PREFIX = "events/"


class Bucket:
    """A bucket of this test alone."""

    def __init__(self, store: Minio) -> None:
        self.name = f"cameras-{uuid4().hex[:12]}"
        self.store = store
        self.s3 = store.client()
        self.s3.create_bucket(Bucket=self.name)

    def put(self, key: str, document: object) -> None:
        """Upload a document as JSON, or bytes as they are."""
        body = document if isinstance(document, bytes) else json.dumps(document).encode()
        self.s3.put_object(Bucket=self.name, Key=PREFIX + key, Body=body)

    def look(self, cameras: Cameras, **changes: Any) -> tuple[Camera, ...]:  # noqa: ANN401 - passed on as they are
        """What the host does at its start."""
        objects = objects_at(self.store.endpoint_url, self.store, self.name)
        found = look(objects, self.name, PREFIX, **{"stopped": threading.Event(), **changes})
        return cameras.found(found.cameras)


def objects_at(endpoint_url: str, store: Minio, bucket: str) -> Objects:
    """The bucket through this endpoint."""
    variables = {
        "AWS_ENDPOINT_URL_S3": endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
    }
    return Objects(load(variables).settings, bucket, url_ttl_seconds=60)


class Lines(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.records.append(record)


@pytest.fixture
def lines() -> Iterator[Lines]:
    """What the project's logger says meanwhile."""
    handler = Lines()
    logging.getLogger(SERVICE).addHandler(handler)
    yield handler
    logging.getLogger(SERVICE).removeHandler(handler)


@pytest.fixture
def bucket(minio: Minio) -> Bucket:
    """An empty one."""
    return Bucket(minio)


def named(name: object) -> dict[str, object]:
    """As much of a detection's document as matters here."""
    return {"camera_name": name}


def test_each_camera_goes_by_the_name_in_its_newest_document(bucket: Bucket) -> None:
    """Newest by its upload, whatever the order of the event ids; pictures and other prefixes do not count."""
    bucket.put("front/zzz.json", named("Old name"))
    bucket.put("back yard/1.json", named("Back \N{SUN BEHIND CLOUD}"))
    bucket.put("assets.json", named("No camera"))
    time.sleep(0.01)  # the store's clock tells milliseconds
    bucket.put("front/aaa.json", named("Front door"))
    bucket.put("front/zzz.jpg", b"a picture")
    cameras = Cameras()
    expected = {Camera("front", "Front door"), Camera("back yard", "Back \N{SUN BEHIND CLOUD}")}
    assert set(bucket.look(cameras)) == expected
    assert set(cameras.all()) == expected
    assert not cameras.heard(Camera("front", "Front door"))


@pytest.mark.parametrize(
    "document",
    [b"no json", b"[" * 100_000, [1], {}, named(None), named(7), b" " * MAX_DOCUMENT_BYTES + b"{}"],
    ids=["no json", "deep", "list", "nameless", "null", "number", "large"],
)
def test_a_camera_whose_name_cannot_be_read_is_left_to_its_events(
    bucket: Bucket, lines: Lines, document: object
) -> None:
    """Another one is found all the same."""
    bucket.put("bad/1.json", document)
    bucket.put("good/1.json", named("Good"))
    bucket.put("pictures/1.jpg", b"a picture")
    assert bucket.look(Cameras()) == (Camera("good", "Good"),)
    assert [(record.levelname, vars(record)["left_to_their_events"]) for record in lines.records] == [("INFO", 2)]


def test_a_camera_is_read_over_several_pages_but_not_without_end(
    bucket: Bucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the last page its newest document is not known, and an old name would be worse than none."""
    monkeypatch.setattr(looking, "PAGE_OBJECTS", 2)
    monkeypatch.setattr(looking, "MAX_PAGES", 3)
    for number in range(5):
        bucket.put(f"quiet/{number}.json", named(f"Quiet {number}"))
        time.sleep(0.002)
    for number in range(7):
        bucket.put(f"busy/{number}.json", named("Busy"))
    assert bucket.look(Cameras()) == (Camera("quiet", "Quiet 4"),)


def test_what_was_heard_meanwhile_stands(bucket: Bucket) -> None:
    """An event that arrives during the search knows better."""
    bucket.put("front/1.json", named("Old name"))
    cameras = Cameras()
    cameras.heard(Camera("front", "New name"))
    assert bucket.look(cameras) == ()
    assert cameras.all() == (Camera("front", "New name"),)


def test_a_search_ends_when_the_host_does(bucket: Bucket) -> None:
    """And at its own deadline."""
    bucket.put("front/1.json", named("Front"))
    stopped = threading.Event()
    stopped.set()
    assert bucket.look(Cameras(), stopped=stopped) == ()
    assert bucket.look(Cameras(), seconds=0.0) == ()
    assert bucket.look(Cameras(), seconds=LOOK_SECONDS) == (Camera("front", "Front"),)


def test_an_empty_bucket_has_no_cameras(bucket: Bucket) -> None:
    """Nothing to say about it."""
    assert bucket.look(Cameras()) == ()


def test_a_store_that_is_away_is_one_warning(minio: Minio, lines: Lines) -> None:
    """The host runs on."""
    objects = objects_at(f"http://127.0.0.1:{free_port()}", minio, "away")
    assert look(objects, "away", PREFIX, stopped=threading.Event()).cameras == {}
    assert [record.levelname for record in lines.records] == ["WARNING"]


def test_a_missing_bucket_is_one_warning(minio: Minio, lines: Lines) -> None:
    """With the store's own reason."""
    objects = objects_at(minio.endpoint_url, minio, "missing")
    assert look(objects, "missing", PREFIX, stopped=threading.Event()).cameras == {}
    assert "NoSuchBucket" in vars(lines.records[0])["reason"]


def test_a_silent_store_holds_the_search_for_one_call(minio: Minio, lines: Lines) -> None:
    """Then it is given up."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        objects = objects_at(f"http://127.0.0.1:{silent.getsockname()[1]}", minio, "silent")
        objects.warm_up()
        began = time.monotonic()
        assert look(objects, "silent", PREFIX, stopped=threading.Event()).cameras == {}
        assert time.monotonic() - began < S3_DEADLINE_SECONDS + SLACK_SECONDS
    assert [record.levelname for record in lines.records] == ["WARNING"]
