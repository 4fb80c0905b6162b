"""Many cameras' events at once, beside everything else, through MinIO's two doors and through SQS."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from urllib.parse import urlsplit

import httpx
import pytest

from tests.e2e.world import ASSETS, BUCKET, Kind, World, eventually, fresh
from tests.timing import PATIENCE_SECONDS

EVENTS = "events/"
KEY = f"k1:{base64.b64encode(bytes(range(32))).decode()}"
PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 100 + b"\xff\xd9"


@pytest.fixture(scope="module", params=["minio", "moto"])
def yard(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A world whose bucket also takes cameras' events, and whose host gives links of its own."""
    kind: Kind = request.param
    request.getfixturevalue("mosquitto_binary")
    if kind == "minio":
        request.getfixturevalue("minio_binary")
    world = World(kind, tmp_path_factory.mktemp("yard"), mqtt={"EVENTS_PREFIX": EVENTS, "DEVICE_TOKEN_KEYS": KEY})
    world.credentials |= {"BUCKET": BUCKET, "EVENTS_PREFIX": EVENTS}  # for `connect`
    world.host.environment["PUBLIC_BASE_URL"] = world.host.url
    try:
        yield world.start()
    finally:
        world.stop()


def upload(yard: World, camera_id: str, event_id: str, **changes: object) -> None:
    """Upload a document."""
    said = {
        "event_id": event_id,
        "camera_id": camera_id,
        "camera_name": "Front door",
        "description": "Somebody with a parcel",
        "objects_detected": ["person", "package"],
        "confidence": 0.93,
        "source_type": "protect",
        "smart_detection_type": "person",
        "timestamp": "2026-11-20T21:20:28Z",
    }
    yard.put(f"{EVENTS}{camera_id}/{event_id}.json", json.dumps(said | changes).encode())


def test_each_event_rings_once_at_however_many_doors_it_comes(yard: World) -> None:
    """Many at once, of several cameras, beside assets: each is one message, and the sure door hears that it is done."""
    ids = [fresh("e") for _ in range(20)]
    assets = [fresh() for _ in range(5)]
    before = yard.metric("events_total", outcome="repeated")
    for number, event_id in enumerate(ids):
        upload(yard, f"camera-{number % 3}", event_id)
    for name in assets:
        yard.put(f"assets/{name}")
    messages = yard.ear.wait_for(len(ids) + len(assets), PATIENCE_SECONDS)
    events = [json.loads(one.payload)["event_id"] for one in messages if one.topic != ASSETS]
    assert sorted(events) == sorted(ids)
    if yard.kind == "minio":
        expected = before + len(ids) + len(assets)
        assert eventually(lambda: yard.metric("events_total", outcome="repeated") >= expected)
    assert yard.ear.silence(0.3) == []


def test_pictures_alone_are_silent(yard: World) -> None:
    """The rules that `connect` made let only documents ring: the host does not even hear of them."""
    before = yard.metric("events_total")
    for number in range(3):
        yard.put(f"{EVENTS}gate/{fresh('alone')}-{number}.jpg", PICTURE)
    yard.assert_silent()
    assert not yard.metric("events_total", outcome="unmapped")
    assert yard.metric("events_total") > before


def test_a_link_opens_one_picture_on_the_host_and_no_other(yard: World) -> None:
    """One hop to the store as devices see it; without its token, or with one tampered with, none."""
    event_id = fresh("e")
    for name in (event_id, f"{event_id}-other"):
        yard.put(f"{EVENTS}front door/{name}.jpg", PICTURE)
    upload(yard, "front door", event_id)
    url = json.loads(yard.ear.next().payload)["thumbnail_url"]
    assert url.startswith(f"{yard.host.url}/thumbnails/front%20door/{event_id}.jpg?token=")
    shown = httpx.get(url, follow_redirects=True, trust_env=False)
    assert (shown.status_code, shown.content, shown.headers["content-type"]) == (200, PICTURE, "image/jpeg")
    assert [one.status_code for one in shown.history] == [307]
    assert urlsplit(str(shown.url)).netloc == urlsplit(yard.store.endpoint_url).netloc
    assert httpx.get(url.replace(".jpg", "-other.jpg"), trust_env=False).status_code == 404
    assert httpx.get(url[:-4] + "AAAA", trust_env=False).status_code == 401
    assert httpx.get(url.partition("?")[0], trust_env=False).status_code == 401
    for taken in ("/events", "/events/fast"):
        assert httpx.get(f"{yard.host.url}{taken}", trust_env=False).status_code == 405


def test_metrics_know_one_topic_for_all_cameras(yard: World) -> None:
    """However many there are."""
    for number in range(3):
        upload(yard, f"many-{number}", fresh("e"))
    yard.ear.wait_for(3)
    topics = {dict(labels).get("topic", "") for name, labels in yard.samples() if name == "mqtt_publish_total"}
    assert "camera/+/event" in topics
    assert not [topic for topic in topics if "many-" in topic]
