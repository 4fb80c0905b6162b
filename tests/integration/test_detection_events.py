"""Detection events from a real MinIO to a real Mosquitto: on the host's loop, and through the Lambda handler."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import httpx
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from functions.cameras.detections import CameraTopics
from functions.cameras.reader import DetectionReader
from functions.devices.api import router
from functions.devices.downloads import Downloads
from functions.events.plan import Fate, Settled, Step, plan
from functions.events.routes import Routes
from functions.mqtt.broker import BrokerConfig
from functions.mqtt.message import Message
from functions.notifier import Notifier, PublishFailed
from functions.s3.clients import StorageError
from functions.s3.objects import S3_DEADLINE_SECONDS, Objects
from functions.settings import Settings, load
from infra.host import detections as documents_module
from infra.host.bell import Bell
from infra.host.detections import HostReader
from infra.host.metrics import PrometheusTelemetry
from infra.host.mqtt.publisher import HostPublisher
from infra.incoming import Received
from infra.local.mosquitto import Mosquitto
from infra.local.stores import Minio
from infra.subscriber import Subscriber
from tests.fakes.proxy import TcpProxy
from tests.gateway import Answered, http_event
from tests.hosts import exactly, on_uvloop, record, until
from tests.timing import SLACK_SECONDS

ROOT = Path(__file__).parents[2]
BUCKETS = {"plain": "cameras", "versioned": "cameras-versioned"}
EVENTS = "events/"
CAMERA = "front door"
KEY = f"k1:{base64.b64encode(bytes(range(32))).decode()}"
ADMIN = "admin-token-0123456789"
BASE_URL = "https://bell.example/base"
PICTURE = b"\xff\xd8\xff\xe0" + bytes(range(256)) * 40 + b"\xff\xd9"
PLENTY_SECONDS = 30.0
SETTLE_SECONDS = 0.3
GOOD: dict[str, Any] = {
    "camera_id": CAMERA,
    "camera_name": "Front door",
    "description": "Somebody with a parcel — «naïve» ☃",
    "objects_detected": ["person", "package"],
    "confidence": 93,
    "source_type": "protect",
    "smart_detection_type": None,
    "timestamp": "2026-11-20T22:20:28.5+01:00",
    "zone": {"name": "porch", "points": [0.5, 1]},
}

OnCamera = Callable[[str, str], Sequence[Message]]


class Yard:
    """One bucket with events in it; `settings` are those of whoever reads them."""

    def __init__(self, store: Minio, bucket: str, mqtt_url: str, **more: str) -> None:
        self.store, self.bucket, self.s3 = store, bucket, store.client()
        known = {
            "MQTT_URL": mqtt_url,
            "MQTT_PUBLISH_TIMEOUT_SECONDS": "20",
            "BUCKET": bucket,
            "EVENTS_PREFIX": EVENTS,
            "AWS_ENDPOINT_URL": store.endpoint_url,
            "AWS_ACCESS_KEY_ID": store.access_key,
            "AWS_SECRET_ACCESS_KEY": store.secret_key,
            "PUBLIC_BASE_URL": BASE_URL,
            "DEVICE_TOKEN_KEYS": KEY,
            "ADMIN_TOKENS": ADMIN,
        }
        self.environment = {name: value for name, value in (known | more).items() if value}
        self.settings: Settings = load(self.environment).settings

    def document(self, event_id: str, **changes: object) -> dict[str, Any]:
        """What the camera says."""
        return GOOD | {"event_id": event_id} | changes

    def picture(self, event_id: str, camera_id: str = CAMERA, **more: str) -> str:
        """Upload a thumbnail; returns its key."""
        key = f"{EVENTS}{camera_id}/{event_id}.jpg"
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=PICTURE, **more)
        return key

    def upload(self, event_id: str, *, body: bytes | None = None, **changes: object) -> dict[str, Any]:
        """Upload a document; returns the record that MinIO sends of it."""
        camera_id = str(changes.get("camera_id", CAMERA))
        body = json.dumps(self.document(event_id, **changes)).encode() if body is None else body
        key = f"{EVENTS}{camera_id}/{event_id}.json"
        answer = self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        told = {"eTag": answer["ETag"].strip('"'), "size": len(body)}
        told |= {"versionId": answer["VersionId"]} if "VersionId" in answer else {}
        sent = record(key, **told)
        sent["s3"]["bucket"]["name"] = self.bucket
        return sent

    def ask(self, url: str, *, method: str = "GET", **headers: str) -> Answered:
        """Ask our own download for a link of ours, as a gateway passes it on."""
        assert url.startswith(f"{BASE_URL}/")
        parts = urlsplit(url.removeprefix(BASE_URL))
        event = http_event(unquote(parts.path), method=method, query=parts.query, headers=headers)
        return Answered.by(router(Downloads.of(self.settings)), event)


@pytest.fixture(scope="module")
def store(minio: Minio) -> Minio:
    """A MinIO with two buckets, one of which keeps versions."""
    s3 = minio.client()
    for bucket in BUCKETS.values():
        s3.create_bucket(Bucket=bucket)
    s3.put_bucket_versioning(Bucket=BUCKETS["versioned"], VersioningConfiguration={"Status": "Enabled"})
    return minio


@pytest.fixture(params=BUCKETS)
def yard(request: pytest.FixtureRequest, store: Minio, mosquitto: Mosquitto) -> Yard:
    """A bucket without versions, and one with them."""
    return Yard(store, BUCKETS[request.param], mosquitto.url)


@pytest.fixture
def plain(store: Minio, mosquitto: Mosquitto) -> Yard:
    """A bucket without versions."""
    return Yard(store, BUCKETS["plain"], mosquitto.url)


@pytest.fixture
def ear(mosquitto: Mosquitto) -> Iterator[Subscriber]:
    """Hears everything, with the QoS and the retain flag that it was published with."""
    with Subscriber(mosquitto.url, ["#"]) as subscriber:
        yield subscriber


class Host:
    """The host's bell with a reader, on the loop that the test runs on."""

    def __init__(self, yard: Yard, on_camera: OnCamera) -> None:
        self.telemetry = PrometheusTelemetry()
        self.publisher = HostPublisher(BrokerConfig.of(yard.settings), self.telemetry)
        self.routes = Routes.of(yard.settings)
        self.reader = HostReader(DetectionReader.of(yard.settings), self.publisher, on_camera=on_camera)
        self.bell = Bell(self.publisher, self.routes, self.telemetry, patience_seconds=20.0, reader=self.reader)

    def steps(self, *records: object) -> tuple[Step, ...]:
        """What these records ask for."""
        return plan({"Records": list(records)}, self.routes)

    async def ring(self, *records: object, source: str = "sure") -> list[str]:
        """Ring at a door that waits."""
        return [settled.label for settled in await self.bell.ring(self.steps(*records), source)]

    def counted(self) -> dict[tuple[str, str], float]:
        """(source, outcome) → `events_total`."""
        samples = [s for m in self.telemetry.registry.collect() if m.name == "events" for s in m.samples]
        return {(s.labels["source"], s.labels["outcome"]): s.value for s in samples if s.name == "events_total"}


@asynccontextmanager
async def hosting(yard: Yard, on_camera: OnCamera = lambda _id, _name: ()) -> AsyncIterator[Host]:
    """A host that is connected."""
    host = Host(yard, on_camera)
    await host.publisher.start()
    try:
        await until(lambda: host.publisher.status.connected)
        yield host
    finally:
        await host.reader.close()
        await host.publisher.stop()


@contextmanager
def notifying(yard: Yard) -> Iterator[Notifier]:
    """The Lambda handler's state."""
    notifier = Notifier(yard.settings)
    try:
        yield notifier
    finally:
        notifier.close()


def batch(*records: object) -> dict[str, Any]:
    """An SQS batch with one message `m1`, `m2` … for each record."""
    return {
        "Records": [
            {"messageId": f"m{n}", "eventSource": "aws:sqs", "body": json.dumps({"Records": [one]})}
            for n, one in enumerate(records, 1)
        ]
    }


def failures(*ids: str) -> dict[str, Any]:
    """An answer that keeps these messages."""
    return {"batchItemFailures": [{"itemIdentifier": one} for one in ids]}


def heard(ear: Subscriber) -> tuple[Received, dict[str, Any]]:
    """The next message, and what it says."""
    message = ear.next()
    return message, json.loads(message.payload)


# What arrives.


@on_uvloop
async def test_every_field_arrives_and_the_thumbnail_opens(yard: Yard, ear: Subscriber) -> None:
    """Picture first, then the document: one message, all fields, and a link whose bytes are the picture's."""
    async with hosting(yard) as host:
        yard.picture("e1")
        assert await host.ring(yard.upload("e1")) == ["delivered"]
    message, said = await asyncio.to_thread(heard, ear)
    url = said.pop("thumbnail_url")
    assert said == yard.document("e1") | {"timestamp": "2026-11-20T21:20:28.500Z"}
    assert list(said)[:2] == ["event_id", "camera_id"]
    assert message.topic.startswith("iotsupport/camera/")
    assert message.topic.endswith("/event")
    assert message.content_type == "application/json"
    properties = dict(message.user_properties)
    assert properties["subject"] == f"{EVENTS}{CAMERA}/e1.json"
    assert properties["source"] == f"s3://{yard.bucket}"
    assert not {"etag", "size", "versionid"} & set(properties)
    answer = yard.ask(url)
    assert answer.status == 307
    async with httpx.AsyncClient(trust_env=False) as browser:
        shown = await browser.get(answer.headers["location"])
    assert (shown.status_code, shown.content) == (200, PICTURE)
    assert shown.headers["content-type"] == "image/jpeg"
    assert shown.headers["content-disposition"] == "inline"


def test_the_function_publishes_the_same(yard: Yard, ear: Subscriber) -> None:
    """Through SQS and directly, in the order of the batch, in one go with a config's notification."""
    yard.picture("f1")
    config = record("configs/aa-bb-cc-dd-ee-ff.json")
    config["s3"]["bucket"]["name"] = yard.bucket
    with notifying(yard) as notifier:
        sent = [yard.upload("f1"), config, yard.upload("f2", camera_id="garage"), yard.upload("f3")]
        assert notifier.handle(batch(*sent), PLENTY_SECONDS) == failures()
        messages = ear.wait_for(4)
        answer = notifier.handle({"Records": [yard.upload("f4")]}, PLENTY_SECONDS)
    assert answer == {"published": 1, "skipped": 0, "failed": 0}
    assert messages[1].payload == b'{"filename": "aa-bb-cc-dd-ee-ff.json"}'
    events = [json.loads(message.payload) for message in (*messages[:1], *messages[2:], ear.next())]
    assert [one["event_id"] for one in events] == ["f1", "f2", "f3", "f4"]
    assert messages[2].topic == "iotsupport/camera/garage/event"
    link = events[0].pop("thumbnail_url")
    assert events[0] == yard.document("f1") | {"timestamp": "2026-11-20T21:20:28.500Z"}
    assert [one["thumbnail_url"] for one in events[1:]] == [None, None, None]
    assert httpx.get(yard.ask(link).headers["location"], trust_env=False).content == PICTURE


def test_any_document_round_trips(plain: Yard, ear: Subscriber) -> None:
    """Whatever text, numbers and further fields a camera sends, over store and broker."""
    with notifying(plain) as notifier:
        numbers = iter(range(1_000_000))

        @hypothesis_settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
        @given(
            changes=st.fixed_dictionaries(
                {
                    "camera_name": st.text(),
                    "description": st.none() | st.text(),
                    "objects_detected": st.lists(st.text()),
                    "confidence": st.none() | st.integers(0, 100) | st.floats(0, 100),
                    "extra": st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text()),
                }
            )
        )
        def round_trip(changes: dict[str, Any]) -> None:
            event_id = f"h{next(numbers)}"
            assert notifier.handle(batch(plain.upload(event_id, **changes)), PLENTY_SECONDS) == failures()
            _, said = heard(ear)
            expected = plain.document(event_id, **changes) | {"timestamp": "2026-11-20T21:20:28.500Z"}
            assert said == expected | {"thumbnail_url": None}

        round_trip()


@pytest.mark.parametrize("qos", [0, 1, 2])
@pytest.mark.parametrize("retain", [False, True])
@on_uvloop
async def test_qos_and_retain_are_the_stored_ones(
    plain: Yard, ear: Subscriber, mosquitto: Mosquitto, qos: int, *, retain: bool
) -> None:
    """A subscriber sees the QoS; a late one gets what was retained. Configs are never retained."""
    async with hosting(plain) as host:
        host.reader.use(CameraTopics(f"cams{qos}", qos, retain))
        config = record("configs/aa-bb-cc-dd-ee-ff.json")
        config["s3"]["bucket"]["name"] = plain.bucket
        labels = await host.ring(plain.upload("q1", camera_id="yard"), config)
        assert labels == ["sent" if qos == 0 else "delivered", "delivered"]
    messages = await asyncio.to_thread(ear.wait_for, 2)
    (event,) = [one for one in messages if one.topic == f"cams{qos}/camera/yard/event"]
    assert event.qos == qos
    with Subscriber(mosquitto.url, ["#"]) as late:
        kept = await asyncio.to_thread(exactly, int(retain), late)
    assert [(one.topic, one.payload) for one in kept] == [(event.topic, event.payload)] * retain


# Once.


@on_uvloop
async def test_an_event_at_both_doors_rings_once(plain: Yard, ear: Subscriber) -> None:
    """However they overlap, the document is read and published once."""
    async with hosting(plain) as host:
        upload = plain.upload("b1")
        host.bell.ring_soon(host.steps(upload), "fast")
        assert await host.ring(upload, upload) == ["repeated", "repeated"]
        host.bell.ring_soon(host.steps(upload), "fast")
        assert await host.ring(upload) == ["repeated"]
        assert host.counted() == {("fast", "delivered"): 1, ("fast", "repeated"): 1, ("sure", "repeated"): 3}
    await asyncio.to_thread(exactly, 1, ear)


@on_uvloop
async def test_an_invalid_document_is_counted_once_and_blocks_nothing(plain: Yard, ear: Subscriber) -> None:
    """Its field is named in the log, the sure door is answered for good, and its neighbours are published."""
    async with hosting(plain) as host:
        bad = plain.upload("i1", confidence="very")
        steps = host.steps(bad, plain.upload("i2"))
        host.bell.ring_soon(host.steps(bad), "fast")
        settled: list[Settled] = await host.bell.ring(steps, "sure")
        assert [(one.label, one.retriable) for one in settled] == [("repeated", False), ("delivered", False)]
        assert await host.ring(bad) == ["repeated"]
        assert host.counted()["fast", "bad_detection"] == 1
        assert ("sure", "bad_detection") not in host.counted()
    (message,) = await asyncio.to_thread(exactly, 1, ear)
    assert json.loads(message.payload)["event_id"] == "i2"


def test_an_invalid_document_ends_in_the_dead_letter_queue(
    plain: Yard, ear: Subscriber, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its message alone is kept for a person; what is logged names the field, and no value of it."""
    with notifying(plain) as notifier:
        sent = [
            plain.upload("d1"),
            plain.upload("d2", confidence="se cret"),
            plain.upload("d3", body=b"{"),
            plain.upload("d4"),
        ]
        assert notifier.handle(batch(*sent), PLENTY_SECONDS) == failures("m2", "m3")
        answer = notifier.handle({"Records": [sent[1]]}, PLENTY_SECONDS)
    reason = "confidence must be a number from 0 to 100, or null"
    assert answer["failures"] == [{"outcome": "bad_detection", "reason": reason}]
    assert (answer["published"], answer["failed"]) == (0, 1)
    assert [json.loads(one.payload)["event_id"] for one in ear.wait_for(2)] == ["d1", "d4"]
    told = [vars(one) for one in caplog.records if one.levelname == "ERROR"]
    assert [one["reason"] for one in told] == [reason, "the document must be JSON in UTF-8", reason]
    assert told[0]["detection"]["object_key"] == f"{EVENTS}{CAMERA}/d2.json"
    assert "se cret" not in caplog.text + str(told)
    counted = [json.loads(line) for line in capsys.readouterr().out.splitlines() if "events_total" in line]
    assert [one["events_total"] for one in counted if one.get("outcome") == "bad_detection"] == [2, 1]


@on_uvloop
async def test_a_document_that_is_gone_is_acknowledged_and_counted(yard: Yard, ear: Subscriber) -> None:
    """Deleted before it was read: nothing is published, and nothing asks again."""
    async with hosting(yard) as host:
        upload = yard.upload("g1")
        version = {"VersionId": upload["s3"]["object"]["versionId"]} if "versionId" in upload["s3"]["object"] else {}
        yard.s3.delete_object(Bucket=yard.bucket, Key=f"{EVENTS}{CAMERA}/g1.json", **version)
        (settled,) = await host.bell.ring(host.steps(upload), "sure")
        assert (settled.label, settled.fate) == ("gone", Fate.NOTHING_TO_DO)
        assert await host.ring(upload) == ["repeated"]
        with notifying(yard) as notifier:
            assert await asyncio.to_thread(notifier.handle, batch(upload), PLENTY_SECONDS) == failures()
        assert host.counted() == {("sure", "gone"): 1, ("sure", "repeated"): 1}
    assert await asyncio.to_thread(ear.silence, SETTLE_SECONDS) == []


def test_the_version_that_was_uploaded_is_published(yard: Yard, ear: Subscriber) -> None:
    """With versions each upload tells its own; without, both tell what is there now."""
    first = yard.upload("v1", description="first")
    second = yard.upload("v1", description="second")
    with notifying(yard) as notifier:
        assert notifier.handle(batch(first, second), PLENTY_SECONDS) == failures()
    # Without versions the two messages are one and the same.
    expected = ["first", "second"] if yard.bucket == BUCKETS["versioned"] else ["second"]
    assert [json.loads(one.payload)["description"] for one in exactly(len(expected), ear)] == expected


def test_a_local_time_without_a_zone_is_warned_about_once_for_each_camera(
    plain: Yard, ear: Subscriber, caplog: pytest.LogCaptureFixture
) -> None:
    """Where it would lie in the future as UTC; it is published all the same."""
    ahead = (datetime.now(UTC) + timedelta(hours=2)).replace(tzinfo=None).isoformat(timespec="seconds")
    with notifying(plain) as notifier:
        sent = [plain.upload(f"c{number}", timestamp=ahead, camera_id=f"c{number % 2}") for number in range(4)]
        assert notifier.handle(batch(*sent, plain.upload("c9")), PLENTY_SECONDS) == failures()
    assert {json.loads(one.payload)["timestamp"] for one in ear.wait_for(5)} >= {f"{ahead}Z"}
    warned = [vars(one) for one in caplog.records if one.levelname == "WARNING"]
    assert sorted(one["camera_id"] for one in warned) == ["c0", "c1"]
    assert "has no zone" in warned[0]["message"]


# The store in trouble.


@contextmanager
def behind_a_proxy(yard: Yard) -> Iterator[tuple[Yard, TcpProxy]]:
    """The same bucket, over a line that can be cut."""
    with TcpProxy("127.0.0.1", yard.store.port) as proxy:
        yield (
            Yard(
                yard.store, yard.bucket, yard.environment["MQTT_URL"], AWS_ENDPOINT_URL=f"http://127.0.0.1:{proxy.port}"
            ),
            proxy,
        )


@on_uvloop
async def test_a_store_that_is_down_is_asked_again_until_it_is_back(plain: Yard, ear: Subscriber) -> None:
    """The sure door says so each time, and the event is delivered once it can be read."""
    with behind_a_proxy(plain) as (yard, proxy):
        async with hosting(yard) as host:
            upload = plain.upload("t1")
            proxy.refuse_new = True
            proxy.cut()
            for _ in range(2):
                (settled,) = await host.bell.ring(host.steps(upload), "sure")
                assert (settled.label, settled.retriable) == ("store_failed", True)
                assert "not reachable" in settled.reason
            host.bell.ring_soon(host.steps(upload), "fast")
            await until(lambda: host.counted().get(("fast", "store_failed")) == 1)
            proxy.refuse_new = False
            assert await host.ring(upload) == ["delivered"]
    await asyncio.to_thread(exactly, 1, ear)


def test_the_function_keeps_the_message_of_what_it_could_not_read(plain: Yard, ear: Subscriber) -> None:
    """A batch fails only where it failed; a direct invocation is raised, and so repeated."""
    config = record("configs/aa-bb-cc-dd-ee-ff.json")
    config["s3"]["bucket"]["name"] = plain.bucket
    with behind_a_proxy(plain) as (yard, proxy), notifying(yard) as notifier:
        sent = [plain.upload("u1"), config]
        proxy.refuse_new = True
        assert notifier.handle(batch(*sent), PLENTY_SECONDS) == failures("m1")
        with pytest.raises(PublishFailed, match="not reachable"):
            notifier.handle({"Records": sent[:1]}, PLENTY_SECONDS)
        proxy.refuse_new = False
        assert notifier.handle(batch(sent[0]), PLENTY_SECONDS) == failures()
    assert exactly(2, ear)[0].topic == "iotsupport/updates/configs"


def test_a_store_that_is_silent_is_given_up_in_time_to_publish_the_rest(plain: Yard, ear: Subscriber) -> None:
    """Ten documents that nobody answers for cost one deadline, not ten."""
    config = record("configs/aa-bb-cc-dd-ee-ff.json")
    config["s3"]["bucket"]["name"] = plain.bucket
    with behind_a_proxy(plain) as (yard, proxy), notifying(yard) as notifier:
        sent = [plain.upload(f"w{number}") for number in range(10)]
        assert notifier.handle(batch(plain.upload("w-warm")), PLENTY_SECONDS) == failures()
        ear.next()
        proxy.blackhole()
        begun_at = time.monotonic()
        kept = notifier.handle(batch(*sent, config), PLENTY_SECONDS)
        took_seconds = time.monotonic() - begun_at
        assert kept == failures(*(f"m{number}" for number in range(1, 11)))
        assert took_seconds < S3_DEADLINE_SECONDS + SLACK_SECONDS
        # With little time left, half of it goes to reading, and the rest is published.
        begun_at = time.monotonic()
        assert notifier.handle(batch(sent[0], config), 5.0) == failures("m1")
        assert time.monotonic() - begun_at < 5.0
    assert {message.topic for message in exactly(2, ear)} == {"iotsupport/updates/configs"}


@on_uvloop
async def test_more_events_than_may_wait_are_turned_away(
    plain: Yard, ear: Subscriber, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dropped at the fast door, asked for again at the sure one; nothing is kept of them."""
    monkeypatch.setattr(documents_module, "MAX_WAITING", 1)
    async with hosting(plain) as host:
        first, second = plain.upload("x1"), plain.upload("x2")
        ringing = asyncio.create_task(host.ring(first))
        await asyncio.sleep(0)
        host.bell.ring_soon(host.steps(second), "fast")
        assert await host.ring(second) == ["unconfirmed"]
        assert await ringing == ["delivered"]
        assert host.counted() == {("fast", "dropped"): 1, ("sure", "unconfirmed"): 1, ("sure", "delivered"): 1}
        assert await host.ring(second) == ["delivered"]
    await asyncio.to_thread(exactly, 2, ear)


@on_uvloop
async def test_a_read_that_never_ends_is_given_up(plain: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store that trickles is none of the loop's deadlines; the event may be tried again."""
    with behind_a_proxy(plain) as (yard, proxy):
        async with hosting(yard) as host:
            upload = plain.upload("y1")
            assert await host.ring(plain.upload("y0")) == ["no_subscribers"]
            monkeypatch.setattr(documents_module, "READ_SECONDS", 0.2)
            proxy.blackhole()
            begun_at = time.monotonic()
            (settled,) = await host.bell.ring(host.steps(upload), "sure")
            assert (settled.label, settled.reason) == ("store_failed", "not read in time")
            assert time.monotonic() - begun_at < 0.2 + SLACK_SECONDS


# Cameras that are new.


def announcement(camera_id: str, name: str) -> Message:
    """Stands for a camera's discovery message."""
    return Message(f"found/{camera_id}", name.encode(), retain=True)


@on_uvloop
async def test_a_camera_is_announced_before_its_event(plain: Yard, ear: Subscriber) -> None:
    """What the hook returns goes first, on the same connection."""
    asked: list[tuple[str, str]] = []

    def on_camera(camera_id: str, name: str) -> Sequence[Message]:
        asked.append((camera_id, name))
        return (announcement(camera_id, name),) if len(asked) == 1 else ()

    async with hosting(plain, on_camera=on_camera) as host:
        assert await host.ring(plain.upload("n1", camera_id="yard"), plain.upload("n2", camera_id="yard")) == [
            "delivered",
            "delivered",
        ]
    assert asked == [("yard", "Front door")] * 2
    messages = await asyncio.to_thread(ear.wait_for, 3)
    assert messages[0].topic == "found/yard"
    assert {one.topic for one in messages[1:]} == {"iotsupport/camera/yard/event"}


# Thumbnails.


@pytest.fixture
def link(plain: Yard, ear: Subscriber) -> str:
    """The link that an event was published with."""
    plain.picture("p1")
    with notifying(plain) as notifier:
        notifier.handle(batch(plain.upload("p1")), PLENTY_SECONDS)
    url = heard(ear)[1]["thumbnail_url"]
    assert isinstance(url, str)
    return url


def test_a_link_answers_as_every_file_does(plain: Yard, link: str) -> None:
    """HEAD, conditions and JSON; nobody's cache may keep the redirect."""
    head = plain.ask(link, method="HEAD")
    assert (head.status, head.headers["content-length"]) == (200, str(len(PICTURE)))
    assert plain.ask(link, **{"if-none-match": head.headers["etag"]}).status == 304
    told = plain.ask(link, accept="application/json")
    assert (told.status, told.document["size"]) == (200, len(PICTURE))
    assert plain.ask(link).headers["cache-control"] == "no-store"
    assert plain.ask(link, method="POST").status == 405


def test_a_link_opens_its_own_picture_alone(plain: Yard, link: str) -> None:
    """Another picture's name with its token is as absent as one that is not there."""
    plain.picture("p2")
    plain.upload("p1")
    assert plain.ask(link.replace("p1.jpg", "p2.jpg")).status == 404
    assert plain.ask(link.replace("p1.jpg", "p3.jpg")).status == 404
    assert plain.ask(link.replace("p1.jpg", "p1.json")).status == 400
    token = link.partition("token=")[2]
    for path in ("/configs/aa-bb-cc-dd-ee-ff.json", "/assets/x", "/manifest", "/assets?filename=x"):
        assert plain.ask(f"{BASE_URL}{path}{'&' if '?' in path else '?'}token={token}").status == 401
        assert plain.ask(f"{BASE_URL}{path}", authorization=f"Bearer {token}").status == 401


def test_a_link_lasts_a_year_and_no_longer(plain: Yard, link: str) -> None:
    """A retained message may be read that late; a tampered, unsigned or other token never opens anything."""
    downloads = Downloads.of(plain.settings)
    key = f"{EVENTS}{CAMERA}/p1.jpg"
    base, _, token = link.partition("token=")
    assert plain.ask(link).status == 307
    claims = downloads.keyring.inspect(token).claims
    assert claims["sub"] == key
    assert claims["exp"] - claims["iat"] == 365 * 24 * 3600
    expired = downloads.keyring.mint_for_object(key, expires_seconds=-60)
    device = downloads.keyring.mint("aa-bb-cc-dd-ee-ff")
    for other in (expired, token[:-2], token[:-4] + "AAAA", device, ADMIN, "x", ""):
        assert plain.ask(f"{base}token={other}").status == 401
    assert plain.ask(f"{link}&token={token}").status == 400
    revoking = Yard(plain.store, plain.bucket, plain.environment["MQTT_URL"], DEVICE_TOKENS_REVOKED=str(claims["jti"]))
    assert revoking.ask(link).status == 401


def test_a_devices_token_opens_no_thumbnail_and_an_admins_every_one(plain: Yard, link: str) -> None:
    """Devices have their configs and assets; cameras are not theirs."""
    path = link.partition("?")[0]
    device = Downloads.of(plain.settings).keyring.mint("aa-bb-cc-dd-ee-ff")
    assert plain.ask(path, authorization=f"Bearer {device}").status == 404
    assert plain.ask(path, authorization=f"Bearer {ADMIN}").status == 307
    assert plain.ask(path).status == 401


def test_names_that_no_gateway_passes_on_have_links_too(plain: Yard, ear: Subscriber) -> None:
    """With percent signs, question marks, spaces and other scripts in them."""
    camera_id, event_id = "100% Küche?", "a b&c=d"
    plain.picture(event_id, camera_id)
    with notifying(plain) as notifier:
        assert notifier.handle(batch(plain.upload(event_id, camera_id=camera_id)), PLENTY_SECONDS) == failures()
    url = heard(ear)[1]["thumbnail_url"]
    assert httpx.get(plain.ask(url).headers["location"], trust_env=False).content == PICTURE


@pytest.mark.parametrize("missing", ["PUBLIC_BASE_URL", "DEVICE_TOKEN_KEYS"])
def test_without_a_base_url_or_a_key_links_are_presigned_and_retaining_is_warned_about_once(
    store: Minio, mosquitto: Mosquitto, ear: Subscriber, caplog: pytest.LogCaptureFixture, missing: str
) -> None:
    """They open without us, as long as URL_TTL_SECONDS says; a retained one would die in its place."""
    yard = Yard(store, BUCKETS["plain"], mosquitto.url, **{missing: "", "URL_TTL_SECONDS": "120"})
    yard.picture("z1", ContentType="text/html")
    yard.picture("z2")
    with notifying(yard) as notifier:
        assert notifier.handle(batch(yard.upload("z1")), PLENTY_SECONDS) == failures()
        assert not [one for one in caplog.records if one.levelname == "WARNING"]
        documents = notifier._reader  # noqa: SLF001 - stored settings do so, see test_follower
        assert documents is not None
        documents.topics = CameraTopics("iotsupport", retain=True)
        assert notifier.handle(batch(yard.upload("z1"), yard.upload("z2")), PLENTY_SECONDS) == failures()
    (warning,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert "PUBLIC_BASE_URL" in warning
    url = heard(ear)[1]["thumbnail_url"]
    assert url.startswith(store.endpoint_url)
    assert "X-Amz-Expires=120" in url
    shown = httpx.get(url, trust_env=False)
    assert (shown.content, shown.headers["content-type"]) == (PICTURE, "image/jpeg")


# What it costs who has no cameras.


def test_nothing_of_it_is_loaded_before_the_first_event(plain: Yard) -> None:
    """A function with EVENTS_PREFIX starts, and publishes a config's notification, without boto3."""
    program = """
import json, sys
from functions import notify
s3 = {"bucket": {"name": "cameras"}, "object": {"key": "configs/aa-bb-cc-dd-ee-ff.json", "eTag": "e"}}
print(notify.notifier().handle({"Records": [{"eventName": "ObjectCreated:Put", "s3": s3}]}, 10.0), file=sys.stderr)
print("\\n" + json.dumps(list(sys.modules)))
"""
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={"PATH": os.environ["PATH"], **plain.environment},
        capture_output=True,
        text=True,
        timeout=PLENTY_SECONDS,
        check=True,
    )
    assert "'published': 1" in done.stderr
    loaded = set(json.loads(done.stdout.splitlines()[-1]))
    assert not loaded & {"boto3", "botocore.session", "jwt", "functions.cameras.detections", "functions.cameras.reader"}


# Reading.


def test_an_object_is_read_to_its_bound_and_what_is_not_there_is_none(yard: Yard) -> None:
    """Absent, deleted, or of no such version; a bucket that is not there, or a refusal, is trouble instead."""
    objects = Objects(yard.settings, yard.bucket, url_ttl_seconds=60)
    yard.s3.put_object(Bucket=yard.bucket, Key="read/a", Body=b"0123456789")
    assert objects.read("read/a", limit_bytes=10) == b"0123456789"
    assert objects.read("read/a", limit_bytes=4) == b"01234"
    assert objects.read("read/absent", limit_bytes=4) is None
    assert objects.read(f"read/{'x' * 300}/a", limit_bytes=4) is None
    for version_id in ("7e0bf1b4-7e3c-4c0b-9d5a-3b1a9d2c8f10", "no version"):
        assert objects.read("read/a", version_id, limit_bytes=4) is None
    marker = yard.s3.delete_object(Bucket=yard.bucket, Key="read/a").get("VersionId", "")
    assert objects.read("read/a", limit_bytes=4) is None
    if marker:
        assert objects.read("read/a", marker, limit_bytes=4) is None
    with pytest.raises(StorageError, match="NoSuchBucket"):
        Objects(yard.settings, "no-such-bucket", url_ttl_seconds=60).read("a", limit_bytes=4)
    stranger = load(yard.environment | {"AWS_SECRET_ACCESS_KEY": "wrong-secret"}).settings
    with pytest.raises(StorageError, match="SignatureDoesNotMatch"):
        Objects(stranger, yard.bucket, url_ttl_seconds=60).read("read/a", limit_bytes=4)
