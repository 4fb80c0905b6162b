"""A store's queue and what may hold it up: the real host before a real MinIO and a real Mosquitto."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import httpx
import pytest
from botocore.awsrequest import AWSResponse
from botocore.compat import HTTPHeaders

from functions.cameras.reader import DetectionReader
from functions.events.plan import plan_body
from functions.events.routes import Routes
from functions.mqtt.broker import BrokerConfig
from functions.s3.objects import Objects
from functions.settings import load
from infra.host.bell import Bell
from infra.host.camera_search import look
from infra.host.causes import TICK_SECONDS
from infra.host.detections import HostReader
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.fakes.broker import Kind
from tests.fakes.proxy import TcpProxy
from tests.fakes.real_store import emptied
from tests.fakes.rights import restricted
from tests.hosts import Host, environment, event, eventually, exactly, on_uvloop, record, until
from tests.timing import PATIENCE_SECONDS

BUCKET = "holdups"
RETRY_SECONDS = 3
PAUSE_SECONDS = 0.2  # between two tries, as a store's queue makes
CAMERA: dict[str, Any] = {
    "camera_id": "front",
    "camera_name": "Front door",
    "description": None,
    "objects_detected": [],
    "confidence": None,
    "source_type": "protect",
    "smart_detection_type": None,
    "timestamp": "2026-11-20T21:20:28Z",
}
CONFIGS_ONLY = "topic read #\ntopic write iotsupport/updates/configs\n"
ALL = "topic readwrite #\n"


@pytest.fixture
def store(minio: Minio) -> Minio:
    """A MinIO with an empty bucket."""
    return emptied(minio, BUCKET)


def upload(store: Minio, event_id: str, *, picture: bool = False) -> bytes:
    """Upload a camera's event; returns what MinIO tells of it."""
    document = json.dumps(CAMERA | {"event_id": event_id}).encode()
    s3, key = store.client(), f"events/front/{event_id}.json"
    if picture:
        s3.put_object(Bucket=BUCKET, Key=f"events/front/{event_id}.jpg", Body=b"\xff\xd8")
    return told(key, s3.put_object(Bucket=BUCKET, Key=key, Body=document)["ETag"])


def told(key: str, etag: str = '"e"') -> bytes:
    """What MinIO tells of an upload of now."""
    one = record(key, eTag=etag.strip('"'))
    one["s3"]["bucket"]["name"] = BUCKET
    return event(one)


def started(tmp_path: Path, mqtt_url: str, store: Minio, **more: str) -> Host:
    """A host that gives a cause up after `RETRY_SECONDS`."""
    known = {
        "BUCKET": BUCKET,
        "EVENTS_PREFIX": "events/",
        "EVENT_RETRY_SECONDS": str(RETRY_SECONDS),
        "AWS_ENDPOINT_URL": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
    }
    return Host(tmp_path, environment(mqtt_url, **known | more))


def unavailable(request: Any, **_: object) -> AWSResponse:  # noqa: ANN401 - botocore's own, prepared
    """What the store says instead of what it would."""
    return AWSResponse(request.url, 503, HTTPHeaders(), BytesIO())


def outcome(answer: httpx.Response) -> tuple[int, str]:
    """Status and word of an answer to one event."""
    (label,) = answer.json()["outcomes"]
    return answer.status_code, label


def tried(host: Host, body: bytes, *, meanwhile: Callable[[], Any] = lambda: None) -> tuple[set[str], float]:
    """Post one event as a queue does until it is rid of it: all that was said, and how long that took."""
    begun_at = time.monotonic()
    said: set[str] = set()
    while time.monotonic() < begun_at + PATIENCE_SECONDS:
        status, label = outcome(host.post(body))
        said.add(label)
        if status == 200:
            return said, time.monotonic() - begun_at
        assert status == 503
        meanwhile()
        time.sleep(PAUSE_SECONDS)
    raise AssertionError(f"the queue stands still: {said}")


def test_documents_that_the_store_refuses_hold_up_the_queue_once(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """Although others come through the fast door meanwhile; then each is answered at its first try, and logged."""
    rights = restricted(store, f"{BUCKET}/events/front/locked*")
    with started(tmp_path, mosquitto.url, store, **rights) as host:
        locked = [upload(store, f"locked{number}") for number in range(3)]
        numbers = iter(range(1_000))
        said, seconds = tried(
            host, locked[0], meanwhile=lambda: host.post(upload(store, f"good{next(numbers)}"), "/events/fast")
        )
        assert said == {"store_failed", "gave_up"}
        assert seconds >= RETRY_SECONDS - TICK_SECONDS
        assert [outcome(host.post(one)) for one in locked[1:]] == [(200, "gave_up")] * 2
        assert outcome(host.post(told("configs/aa-bb-cc-dd-ee-ff.json"))) == (200, "delivered")
        assert host.metric("events_total", source="sure", outcome="gave_up") == 3
        (first, *_) = (line for line in host.lines("ERROR") if line.get("outcome") == "gave_up")
        assert "AccessDenied" in first["reason"]
        assert first["detection"]["object_key"] == "events/front/locked0.json"
        goods = next(numbers)
    assert len(ear.wait_for(goods + 1)) == goods + 1


def test_a_picture_that_cannot_be_seen_costs_the_link_and_never_the_event(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """Without the right to list, a picture that is not there is 403, as one that may not be read. It is said once."""
    rights = restricted(store, f"{BUCKET}/events/*.jpg")
    with started(tmp_path, mosquitto.url, store, **rights) as host:
        for name, picture in (("without", False), ("with", True)):
            assert outcome(host.post(upload(store, name, picture=picture))) == (200, "delivered")
            assert json.loads(ear.next().payload)["thumbnail_url"] is None
        (warning,) = (line for line in host.lines("WARNING") if "object_key" in line)
        assert warning["object_key"] == "events/front/without.jpg"
        assert warning["reason"].startswith("403")


def test_a_document_that_may_not_be_read_hides_no_other_camera(store: Minio) -> None:
    """The search at the host's start goes on; that camera is left to its events."""
    s3 = store.client()
    for camera in ("back", "front", "yard"):
        document = json.dumps({"camera_name": camera.title()}).encode()
        s3.put_object(Bucket=BUCKET, Key=f"events/{camera}/e.json", Body=document)
    rights = restricted(store, f"{BUCKET}/events/front/*")
    settings = load({"AWS_ENDPOINT_URL": store.endpoint_url, **rights}).settings
    objects = Objects(settings, BUCKET, url_ttl_seconds=60)
    found = look(objects, BUCKET, "events/", stopped=threading.Event())
    assert [camera.camera_id for camera in found.cameras] == ["back", "yard"]


@pytest.mark.parametrize("lists", [True, False], ids=["only that object", "all of the store"])
@on_uvloop
async def test_an_object_that_breaks_the_store_is_no_outage_but_a_store_that_is_broken_is(
    store: Minio, mosquitto: Mosquitto, *, lists: bool
) -> None:
    """Whether it answers a LIST of one key tells the one from the other."""
    known = {
        "MQTT_URL": mosquitto.url,
        "BUCKET": BUCKET,
        "EVENTS_PREFIX": "events/",
        "AWS_ENDPOINT_URL": store.endpoint_url,
        "AWS_ACCESS_KEY_ID": store.access_key,
        "AWS_SECRET_ACCESS_KEY": store.secret_key,
    }
    settings, telemetry = load(known).settings, PrometheusTelemetry()
    objects = Objects(settings, BUCKET, url_ttl_seconds=60)
    hooks: Any = objects.client.meta.events
    for operation in ("GetObject", *([] if lists else ["ListObjectsV2"])):
        hooks.register(f"before-send.s3.{operation}", unavailable)
    publisher, routes = HostPublisher(BrokerConfig.of(settings), telemetry), Routes.of(settings)
    reader = HostReader(DetectionReader.of(settings, objects=objects), publisher)
    bell = Bell(publisher, routes, telemetry, patience_seconds=PATIENCE_SECONDS, reader=reader)
    await publisher.start()
    try:
        await until(lambda: publisher.status.connected)
        labels = []
        body = await asyncio.to_thread(upload, store, "broken")
        for seconds in (0, 1800, 1800):
            bell.holdups.tick(seconds)
            (settled,) = await bell.ring(plan_body(body, routes), "sure")
            labels.append(settled.label)
        assert labels == ["store_failed", "store_failed", "gave_up" if lists else "store_failed"]
    finally:
        await reader.close()
        await publisher.stop()


def test_a_store_that_is_out_of_reach_stops_the_clock(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """However long it is away: nothing is given up, and all is delivered once it is back."""
    with (
        TcpProxy("127.0.0.1", store.port) as proxy,
        started(tmp_path, mosquitto.url, store, AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}") as host,
    ):
        waiting = upload(store, "waiting")
        proxy.refuse_new = True
        proxy.cut()
        until = time.monotonic() + 2 * RETRY_SECONDS
        while time.monotonic() < until:
            assert outcome(host.post(waiting)) == (503, "store_failed")
            time.sleep(PAUSE_SECONDS)
        proxy.refuse_new = False
        assert tried(host, waiting)[0] <= {"store_failed", "delivered"}
    exactly(1, ear)


def test_a_broker_that_is_away_or_silent_stops_the_clock(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, tmp_path: Path
) -> None:
    """No CONNACK, and no acknowledgement of anything, say nothing about an event."""
    with (
        TcpProxy("127.0.0.1", mosquitto.port) as proxy,
        started(tmp_path, f"mqtt://127.0.0.1:{proxy.port}", store, MQTT_PUBLISH_TIMEOUT_SECONDS="0.5") as host,
    ):
        waiting = told("configs/aa-bb-cc-dd-ee-ff.json")
        for swallow in (False, True):
            proxy.refuse_new = not swallow
            proxy.swallowed = {Kind.PUBACK} if swallow else ()
            proxy.cut()
            until = time.monotonic() + 2 * RETRY_SECONDS
            while time.monotonic() < until:
                assert outcome(host.post(waiting)) == (503, "unconfirmed")
                time.sleep(PAUSE_SECONDS)
        proxy.swallowed = ()
        assert "gave_up" not in tried(host, waiting)[0]
    assert ear.next().topic == "iotsupport/updates/configs"


def test_what_gave_up_over_a_forbidden_topic_is_announced_when_the_right_is_back(store: Minio, tmp_path: Path) -> None:
    """Without another upload: the host looks by itself."""
    with (
        Mosquitto(tmp_path / "mosquitto", acl=CONFIGS_ONLY) as broker,
        Subscriber(broker.url, ["#"]) as ear,
        started(tmp_path, broker.url, store) as host,
    ):
        forbidden = [told("assets/a.bin"), told("assets/b.bin")]
        assert tried(host, forbidden[0])[0] == {"refused", "gave_up"}
        assert outcome(host.post(forbidden[1])) == (200, "gave_up")
        assert outcome(host.post(told("configs/aa-bb-cc-dd-ee-ff.json"))) == (200, "delivered")
        assert ear.next().topic == "iotsupport/updates/configs"
        broker.set_acl(ALL)
        broker.reload()
        found = [json.loads(message.payload)["filename"] for message in ear.wait_for(2)]
        assert sorted(found) == ["a.bin", "b.bin"]
        eventually(lambda: host.metric("events_total", source="again", outcome="delivered") == 2)
        assert outcome(host.post(forbidden[0])) == (200, "repeated")
        assert not ear.silence(0.3)
